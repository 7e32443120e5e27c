//! A coordinator's host: the real replica, and a thin driver that mirrors `coordinator/src/driver.rs`: it batches, stamps,
//! proposes ticks that are due, says that it leads, and answers callers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use probity_core::next_deadline;
use probity_proto::v1::command::Op;
use probity_proto::v1::*;
use probity_replica::{ClusterClock, Config, Input, Outputs, Replica, Reply, Role};

use crate::client::{Answer, Ask};
use crate::clock::HostClock;
use crate::disk::Disk;
use crate::fleet::Session;
use crate::net::Host;
use crate::plan::Plan;
use crate::world::{Event, World};

/// raft's tick, by the host's monotonic clock.
pub(crate) const TICK_US: u64 = 50_000;
/// Inputs of one step.
const BATCH: usize = 512;
/// How long a proposal may take until its outcome is called unknown.
const PROPOSE_TIMEOUT_US: u64 = 5_000_000;
/// What a step costs beside its syncs.
const STEP_US: u64 = 30;

/// Who waits for a proposal or a read.
#[derive(Debug)]
pub(crate) enum Waiter {
    Call { client: usize, op: u64, ask: Ask, tries: u32 },
    Read { client: usize, op: u64, key: String },
    LeaderStarted,
    Tick,
    Join { stream: u64 },
    Rows { stream: u64 },
    Fault { stream: u64, ack: FaultAck },
    Left,
    Effect { key: (String, String, u32) },
}

/// What waits for the replica's owner.
#[derive(Debug)]
pub(crate) enum Request {
    Tick,
    Peer(PeerMessage),
    Propose(Box<Command>, Waiter),
    Read(Waiter),
}

/// A running coordinator.
pub(crate) struct Node {
    pub(crate) replica: Replica,
    pub(crate) clock: ClusterClock,
    /// It leads, and its LeaderStarted is applied: it may act.
    pub(crate) leading: bool,
    seen: (u64, Option<u64>),
    pub(crate) waiting: BTreeMap<u64, Waiter>,
    next_tag: u64,
    pub(crate) inbox: VecDeque<Request>,
    busy_until: u64,
    step_planned: bool,
    tick_proposed: bool,
    election: usize,
    /// When each prober was heard of, by the monotonic clock.
    pub(crate) heard: BTreeMap<String, u64>,
    pub(crate) grace_from: u64,
    pub(crate) left_under_way: bool,
    pub(crate) deliveries: BTreeSet<(String, String, u32)>,
    pub(crate) sessions: BTreeMap<u64, Session>,
}

/// A coordinator's host.
pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) disk: Disk,
    pub(crate) clock: HostClock,
    /// Grows when its process ends.
    pub(crate) life: u64,
    pub(crate) node: Option<Node>,
    pub(crate) paused_until: u64,
    /// What it will do when it goes on.
    pub(crate) held: VecDeque<Event>,
    /// It starts again this soon after its next end.
    restart_us: Option<u64>,
    pub(crate) sync_us: u64,
}

impl Member {
    pub(crate) fn new(m: usize, clock: HostClock, sync_us: u64) -> Member {
        Member { id: member_id(m), disk: Disk::default(), clock, life: 0, node: None, paused_until: 0, held: VecDeque::new(), restart_us: None, sync_us }
    }
}

/// The id of a member, as its data directory made it.
pub(crate) fn member_id(m: usize) -> u64 {
    1_000 + 37 * (m as u64 + 1)
}

fn config(plan: &Plan, id: u64) -> Config {
    Config { new_id: id, flush_entries: plan.flush_entries, flush_ticks: plan.flush_ticks, log_entries_max: plan.log_entries_max, ..Config::default() }
}

impl World {
    pub(crate) fn member_of(&self, id: u64) -> Option<usize> {
        (0..self.members.len()).find(|m| self.members[*m].id == id)
    }

    /// The member that leads and may act; the newest term's when two think so.
    pub(crate) fn leader(&self) -> Option<usize> {
        let leads = |m: &usize| self.members[*m].node.as_ref().is_some_and(|n| n.leading);
        (0..self.members.len()).filter(leads).max_by_key(|m| self.members[*m].node.as_ref().map_or(0, |n| n.seen.0))
    }

    /// Starts the process of a member.
    pub(crate) fn start_member(&mut self, m: usize) {
        let member = &mut self.members[m];
        if member.node.is_some() {
            return;
        }
        let voters: Vec<u64> = (0..self.plan.members).map(member_id).collect();
        let config = config(&self.plan, member.id);
        let opened = member.disk.open().map_err(|e| e.to_string()).and_then(|db| {
            let mut replica = Replica::open(config, db, (m as u64 + 1) << 32 | member.life).map_err(|e| format!("{e:?}"))?;
            replica.form("sim", &voters).map_err(|e| format!("{e:?}"))?;
            Ok(replica)
        });
        let replica = match opened {
            Ok(replica) => replica,
            Err(_) if member.disk.is_dead() => return self.crash_member(m, true),
            Err(e) => return self.violate("R2", format!("member {m} cannot open its own store: {e}")),
        };
        let (mono, wall) = (member.clock.mono_us(self.now), member.clock.wall_us(self.now));
        let node = Node {
            clock: ClusterClock::new(wall, mono),
            replica,
            leading: false,
            seen: (0, None),
            waiting: BTreeMap::new(),
            next_tag: 1,
            inbox: VecDeque::new(),
            busy_until: self.now,
            step_planned: false,
            tick_proposed: false,
            election: 10,
            heard: BTreeMap::new(),
            grace_from: mono,
            left_under_way: false,
            deliveries: BTreeSet::new(),
            sessions: BTreeMap::new(),
        };
        let life = member.life;
        self.checks.started(m, &node.replica, self.now);
        self.members[m].node = Some(node);
        self.new_election_timeout(m);
        let (tick, duties) = (self.rng.hosts.below(TICK_US), self.rng.hosts.below(200_000));
        self.after(tick, Event::Tick { m, life });
        self.after(duties, Event::Duties { m, life });
        self.poke(m);
    }

    /// The process ends: by itself (what it wrote arrives), or with the power.
    pub(crate) fn crash_member(&mut self, m: usize, power: bool) {
        let member = &mut self.members[m];
        member.life += 1;
        member.paused_until = 0;
        member.held.clear();
        if power {
            let (lost, torn) = member.disk.cut_power(&mut self.rng.disks);
            self.counts.add_n("unsynced write lost", lost);
            self.counts.add_n("unsynced write torn", torn);
            self.counts.add("member lost power");
        } else {
            member.disk.kill();
            self.counts.add("member killed");
        }
        drop(self.members[m].node.take());
        let streams: Vec<u64> = self.streams.iter().filter(|(_, s)| s.m == m).map(|(id, _)| *id).collect();
        for stream in streams {
            self.break_stream(stream, power);
        }
        let soon = self.members[m].restart_us.take().or((self.phase == crate::world::Phase::Heal).then_some(200_000));
        let wait = soon.unwrap_or_else(|| self.rng.hosts.skewed(60_000, 6_000_000));
        self.after(wait, Event::StartMember { m });
    }

    fn new_election_timeout(&mut self, m: usize) {
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
        let next = self.members[m].clock.true_us(TICK_US);
        let Some(node) = &mut self.members[m].node else { return };
        node.inbox.push_back(Request::Tick);
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
        let mut inputs = Vec::with_capacity(requests.len());
        let mut tags = Vec::new();
        for request in requests {
            let tag = node.next_tag;
            let (input, waiter) = match request {
                Request::Tick => (Input::Tick, None),
                Request::Peer(message) => (Input::Peer(message), None),
                Request::Propose(command, waiter) => {
                    let command = Command { version: command.version.max(1), time_us: now_us, ..*command };
                    (Input::Propose { tag, command }, Some(waiter))
                }
                Request::Read(waiter) => (Input::Read { tag }, Some(waiter)),
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
        let stepped = node.replica.step(inputs);
        let after = member.disk.work();
        if member.disk.is_dead() {
            self.counts.add("member died in a write or sync");
            return self.crash_member(m, true);
        }
        let outputs = match stepped {
            Ok(outputs) => outputs,
            Err(e) => return self.violate("R2", format!("member {m} stopped although nothing was wrong with its disk: {e:?}")),
        };
        let status = node.replica.status();
        let took = STEP_US + (after.0 - before.0) * member.sync_us;
        node.busy_until = self.now + took;
        let more = !node.inbox.is_empty();
        self.checks.stepped(m, &node.replica, &outputs, self.now);
        if (role, term) != (status.role, status.term) {
            self.new_election_timeout(m);
        } else if let Some(node) = &mut self.members[m].node {
            node.replica.set_election_timeout(node.election);
        }
        self.after(took, Event::Emit { m, life, outputs });
        for tag in tags {
            self.after(PROPOSE_TIMEOUT_US, Event::Expire { m, life, tag });
        }
        if more {
            self.poke(m);
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
        for message in outputs.messages {
            if let Some(to) = self.member_of(message.to) {
                self.send(Host::Member(m), Host::Member(to), || Event::Peer { m: to, message: message.clone() });
            }
        }
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

    /// A change of role: a new leader takes its clock, and says so in the log before it acts.
    fn follow_role(&mut self, m: usize) {
        let member = &mut self.members[m];
        let Some(node) = &mut member.node else { return };
        let status = node.replica.status();
        if node.seen == (status.term, status.leader) {
            return;
        }
        node.seen = (status.term, status.leader);
        node.leading = false;
        // What an earlier leadership proposed for itself says nothing of this one.
        node.tick_proposed = false;
        node.waiting.retain(|_, w| !matches!(w, Waiter::Tick | Waiter::LeaderStarted));
        let sessions: Vec<u64> = node.sessions.keys().copied().collect();
        if status.role == Role::Leader {
            let (mono, wall) = (member.clock.mono_us(self.now), member.clock.wall_us(self.now));
            node.clock.lead_from(node.replica.state().now(), wall, mono);
            node.grace_from = mono;
            node.heard.clear();
            let op = Op::LeaderStarted(LeaderStarted { member: status.identity.id, term: status.term });
            node.inbox.push_front(Request::Propose(command(op), Waiter::LeaderStarted));
            self.counts.add("leader elected");
        }
        for stream in sessions {
            self.not_leader(m, stream);
        }
        self.poke(m);
    }

    /// An answer, or none within its time.
    fn reply(&mut self, m: usize, waiter: Waiter, reply: Option<Reply>) {
        let refused = |result: &CommandResult| matches!(result.result, Some(command_result::Result::Refused(_)));
        let applied = matches!(&reply, Some(Reply::Applied { result, .. }) if !refused(result));
        match waiter {
            Waiter::Call { client, op, ask, tries } => self.call_reply(m, client, op, ask, tries, reply),
            Waiter::Read { client, op, key } => {
                if matches!(reply, Some(Reply::ReadReady)) {
                    let value = self.members[m].node.as_ref().and_then(|n| crate::client::value_of(n.replica.state(), &key));
                    self.answer(m, client, op, Answer::Read(value));
                }
            }
            Waiter::LeaderStarted => {
                if let Some(node) = self.members[m].node.as_mut().filter(|n| applied && n.replica.status().role == Role::Leader) {
                    node.leading = true;
                }
            }
            Waiter::Tick => {
                if let Some(node) = &mut self.members[m].node {
                    node.tick_proposed = false;
                }
            }
            Waiter::Left => {
                if let Some(node) = &mut self.members[m].node {
                    node.left_under_way = false;
                }
            }
            Waiter::Effect { key } => {
                if let Some(node) = &mut self.members[m].node {
                    node.deliveries.remove(&key);
                }
            }
            Waiter::Join { stream } => self.joined(m, stream, applied),
            Waiter::Rows { stream } => self.reported(m, stream, applied, None),
            Waiter::Fault { stream, ack } => self.reported(m, stream, applied, Some(ack)),
        }
    }

    pub(crate) fn member_expire(&mut self, m: usize, life: u64, tag: u64) {
        if self.members[m].life != life {
            return;
        }
        let waiter = self.members[m].node.as_mut().and_then(|n| n.waiting.remove(&tag));
        match waiter {
            // The driver waits for its own as long as it takes.
            Some(own @ (Waiter::Tick | Waiter::LeaderStarted)) => {
                if let Some(node) = &mut self.members[m].node {
                    node.waiting.insert(tag, own);
                }
            }
            Some(waiter) => self.reply(m, waiter, None),
            None => {}
        }
    }

    pub(crate) fn member_peer(&mut self, m: usize, message: PeerMessage) {
        self.request(m, Request::Peer(message));
    }
}

/// A command with nothing but its operation; the driver stamps version and time.
pub(crate) fn command(op: Op) -> Box<Command> {
    Box::new(Command { op: Some(op), ..Command::default() })
}
