//! What a member's process does, step by step: a thin driver that mirrors `coordinator/src/driver.rs`. It batches what came in, stamps and
//! proposes it, steps the replica once, and hands out what follows when it is on the disk.

use probity_core::next_deadline;
use probity_proto::v1::command::Op;
use probity_proto::v1::*;
use probity_replica::{Draft, Fatal, FormError, Input, Outputs, Role};

use crate::member::{Request, TICK_US, Waiter, command, guarded, lock};
use crate::net::Host;
use crate::world::{Event, World};

/// Inputs of one step.
const BATCH: usize = 512;
/// How long a proposal may take until its outcome is called unknown.
const PROPOSE_TIMEOUT_US: u64 = 5_000_000;
/// What a step costs beside its syncs.
const STEP_US: u64 = 30;

impl World {
    pub(crate) fn new_election_timeout(&mut self, m: usize) {
        let timeout = 10 + self.rng.elections.below(self.plan.election_spread) as usize;
        if let Some(node) = &mut self.members[m].node {
            node.election = timeout;
            node.replica.set_election_timeout(timeout);
        }
    }

    /// Until when a paused member does nothing.
    pub(crate) fn paused(&self, m: usize) -> Option<u64> {
        Some(self.members[m].paused_until).filter(|until| *until > self.now)
    }

    /// Plans a step, once something waits for it.
    pub(crate) fn poke(&mut self, m: usize) {
        let life = self.members[m].life;
        let Some(node) = &mut self.members[m].node else { return };
        if !node.step_planned {
            node.step_planned = true;
            let at = node.busy_until;
            self.at(at, Event::Step { m, life });
        }
    }

    pub(crate) fn request(&mut self, m: usize, request: Request) {
        if let Some(node) = &mut self.members[m].node {
            node.inbox.push_back(request);
            self.poke(m);
        }
    }

    pub(crate) fn member_tick(&mut self, m: usize, life: u64) {
        if self.members[m].life != life {
            return;
        }
        // A process that stood still gets one tick for all that it missed.
        let now_us = self.cluster_us(m);
        let (next, sync_us) = (self.members[m].clock.true_us(TICK_US), self.members[m].sync_us);
        let Some(node) = &mut self.members[m].node else { return };
        node.inbox.push_back(Request::Tick);
        node.ticks += 1;
        if node.ticks.is_multiple_of(20) {
            node.inbox.push_back(Request::Persistence(sync_us));
        }
        if node.leading && !node.tick_proposed && next_deadline(node.replica.state()).is_some_and(|at| at <= now_us) {
            node.tick_proposed = true;
            node.inbox.push_back(Request::Propose(command(Op::Tick(Tick {})), Waiter::Tick));
        }
        self.poke(m);
        self.after(next, Event::Tick { m, life });
    }

    /// Cluster time as a member knows it.
    pub(crate) fn cluster_us(&self, m: usize) -> i64 {
        let member = &self.members[m];
        member.node.as_ref().map_or(0, |n| n.clock.now_us(member.clock.mono_us(self.now)))
    }

    pub(crate) fn member_step(&mut self, m: usize, life: u64) {
        if self.members[m].life != life {
            return;
        }
        let now_us = self.cluster_us(m);
        let member = &mut self.members[m];
        let Some(node) = &mut member.node else { return };
        node.step_planned = false;
        let take = node.inbox.len().min(BATCH);
        let requests: Vec<Request> = node.inbox.drain(..take).collect();
        let (mono_us, wall_us) = (member.clock.mono_us(self.now), member.clock.wall_us(self.now));
        let mut inputs = vec![Input::Clock { mono_us, wall_us }];
        let mut tags = Vec::new();
        let mut joined = Ok(());
        for request in requests {
            let tag = node.next_tag;
            let (input, waiter) = match request {
                Request::Tick => (Input::Tick, None),
                Request::Peer(message) => (Input::Peer(*message), None),
                Request::Propose(command, waiter) => {
                    let command = Draft::of(*command).stamped(node.replica.command_version(), now_us);
                    (Input::Propose { tag, command }, Some(waiter))
                }
                Request::Read(waiter) => (Input::Read { tag }, Some(waiter)),
                Request::Configure(command) => {
                    let command = Command { version: command.version.max(1), time_us: now_us, ..*command };
                    (Input::Configure { tag, command }, Some(Waiter::Operator))
                }
                Request::Transfer(to) => (Input::Transfer { tag, to }, Some(Waiter::Operator)),
                Request::Persistence(p99_us) => (Input::Persistence { p99_us }, None),
                Request::Join => {
                    joined = joined.and(node.replica.join("sim"));
                    continue;
                }
            };
            if let Some(waiter) = waiter {
                node.next_tag += 1;
                node.waiting.insert(tag, waiter);
                tags.push(tag);
            }
            inputs.push(input);
        }
        let before = member.disk.work();
        let (role, term) = (node.replica.status().role, node.replica.status().term);
        let (handed_over, clock_handovers, compactions) = (node.replica.handed_over(), node.replica.clock_handovers(), node.replica.compactions());
        let replica = &mut node.replica;
        let stepped = match joined {
            // A store that failed ends the member.
            Err(FormError::Fatal(fatal)) => Some(Err(fatal)),
            _ => guarded(member.disk.is_rotten(), || replica.step(inputs)),
        };
        let after = member.disk.work();
        // These left before the disk was done, whatever became of it.
        let early = std::mem::take(&mut *lock(&member.early));
        let applied = std::mem::take(&mut *lock(&member.applied));
        let outputs = match stepped {
            _ if member.disk.is_dead() => {
                self.counts.add("member died in a write or sync");
                self.send_to_peers(m, early);
                return self.crash_member(m, true);
            }
            Some(Ok(outputs)) => outputs,
            Some(Err(_)) if member.disk.take_sync_failed() => {
                self.counts.add("member ended by a failed sync");
                self.send_to_peers(m, early);
                return self.crash_member(m, true);
            }
            Some(Err(Fatal::Version { .. })) => {
                self.counts.add("older build stopped by the cluster's version");
                member.build = 2;
                return self.crash_member(m, false);
            }
            Some(Err(Fatal::Removed { .. })) => return self.retire(m),
            // Only before it takes part: later it is outlived.
            Some(Err(_)) if member.disk.has_limit() && role == Role::Unformed => {
                self.counts.add("member did not start for want of room");
                return self.crash_member(m, false);
            }
            None | Some(Err(_)) if member.disk.is_rotten() => {
                self.counts.add("bit rot found by a running member");
                return self.found_damaged(m);
            }
            Some(Err(e)) => return self.violate("R2", format!("member {m} stopped although nothing was wrong with its disk: {e:?}")),
            None => return self.violate("R2", format!("member {m} panics")),
        };
        self.counts.add_n("leadership handed over for a slow disk", node.replica.handed_over() - handed_over);
        self.counts.add_n("leadership handed over for a wall clock", node.replica.clock_handovers() - clock_handovers);
        self.counts.add_n("file made smaller", node.replica.compactions() - compactions);
        self.counts.add_n("entries sent before they were written", early.len() as u64);
        let chunk = |message: &PeerMessage| matches!(message.message, Some(peer_message::Message::Chunk(_)));
        self.counts.add_n("snapshot chunk sent", outputs.messages.iter().filter(|m| chunk(m)).count() as u64);
        if node.replica.disk_full() != node.full {
            node.full = !node.full;
            self.counts.add(if node.full { "disk full" } else { "member back after a full disk" });
            if !node.full {
                // As after a restart it goes on from what was written.
                self.checks.started(m, &node.replica, self.now);
            }
        }
        let status = node.replica.status();
        let took = STEP_US + (after.0 - before.0) * member.sync_us;
        node.busy_until = self.now + took;
        let more = outputs.more || !node.inbox.is_empty();
        self.checks.stepped(m, &node.replica, &outputs, &applied, self.now);
        if (role, term) != (status.role, status.term) {
            self.new_election_timeout(m);
        } else if let Some(node) = &mut self.members[m].node {
            node.replica.set_election_timeout(node.election);
        }
        self.send_to_peers(m, early);
        self.after(took, Event::Emit { m, life, outputs });
        for tag in tags {
            self.after(PROPOSE_TIMEOUT_US, Event::Expire { m, life, tag });
        }
        if more {
            self.poke(m);
        }
    }

    fn send_to_peers(&mut self, m: usize, messages: Vec<PeerMessage>) {
        for message in messages {
            if let Some(to) = self.member_of(message.to) {
                self.send(Host::Member(m), Host::Member(to), || Event::Peer { m: to, message: message.clone() });
            }
        }
    }

    /// What a step led to, once it is on the disk.
    pub(crate) fn member_emit(&mut self, m: usize, life: u64, outputs: Outputs) {
        if self.members[m].life != life {
            return;
        }
        let mono = self.members[m].clock.mono_us(self.now);
        let Some(node) = &mut self.members[m].node else { return };
        if outputs.applied && node.replica.status().role != Role::Leader {
            let log_time = node.replica.state().now();
            node.clock.follow(log_time, mono);
        }
        let voted = outputs.messages.iter().any(crate::checks::is_vote);
        self.send_to_peers(m, outputs.messages);
        for (tag, reply) in outputs.replies {
            let waiter = self.members[m].node.as_mut().and_then(|n| n.waiting.remove(&tag));
            if let Some(waiter) = waiter {
                self.reply(m, waiter, Some(reply));
            }
        }
        self.follow_role(m);
        if outputs.applied {
            self.tell_desired(m);
        }
        if voted && self.phase == crate::world::Phase::Chaos && self.rng.hosts.chance(self.plan.crash_after_vote_ppm) {
            self.counts.add("member lost power right after a vote");
            let wait = self.rng.hosts.below(3_000);
            // Back before the election is over, so that what it promised is asked for.
            self.members[m].restart_us = Some(self.rng.hosts.between(5_000, 100_000));
            self.after(wait, Event::CrashMember { m, life, power: true });
        }
    }

    pub(crate) fn member_peer(&mut self, m: usize, message: PeerMessage) {
        self.request(m, Request::Peer(Box::new(message)));
    }
}
