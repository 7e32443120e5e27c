//! A coordinator's host: the real replica, and a thin driver that mirrors `coordinator/src/driver.rs`: it batches, stamps,
//! proposes ticks that are due, says that it leads, and answers callers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use probity_core::next_deadline;
use probity_proto::v1::command::Op;
use probity_proto::v1::*;
use probity_replica::{ClusterClock, Config, Fatal, FormError, Input, OpenError, Outputs, Replica, Reply, Role};

use crate::checks::Applied;
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
/// Wall clocks that were compared differ by no more than this: what is allowed, and half of the longest round trip.
const CLOCKS_DIFFER_US: u64 = 1_600_000;
/// A clock that was set within this time may have been another one when it was asked for.
const CLOCK_SET_LATELY_US: u64 = 10_000_000;
/// What a step costs beside its syncs.
const STEP_US: u64 = 30;

/// Who waits for a proposal or a read.
#[derive(Debug)]
pub(crate) enum Waiter {
    Call {
        client: usize,
        op: u64,
        ask: Ask,
        tries: u32,
    },
    Read {
        client: usize,
        op: u64,
        key: String,
    },
    LeaderStarted,
    Tick,
    Join {
        stream: u64,
    },
    Rows {
        stream: u64,
    },
    Fault {
        stream: u64,
        ack: FaultAck,
    },
    Left,
    Effect {
        key: (String, String, u32),
    },
    /// Whoever asked looks at what came of it.
    Operator,
}

/// What waits for the replica's owner.
#[derive(Debug)]
pub(crate) enum Request {
    Tick,
    Peer(PeerMessage),
    Propose(Box<Command>, Waiter),
    Read(Waiter),
    Configure(Box<Command>),
    Transfer(u64),
    Join,
    Persistence(u64),
}

/// Why a store does not open.
enum Opening {
    Version,
    Removed,
    Other(String),
}

/// A running coordinator.
pub(crate) struct Node {
    pub(crate) replica: Replica,
    pub(crate) clock: ClusterClock,
    /// It leads, and its LeaderStarted is applied: it may act.
    pub(crate) leading: bool,
    /// It was elected, and does not know yet whether its wall clock is a quorum's.
    to_start: bool,
    full: bool,
    ticks: u64,
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
    /// Not in the group, and not running: it may join.
    pub(crate) gone: bool,
    /// The newest command set that its build understands.
    pub(crate) build: u32,
    /// How many disks this host has had.
    disks: u64,
    /// Its store was found to be damaged: it is to be replaced.
    pub(crate) damaged: bool,
    /// When its wall clock was last set.
    pub(crate) clock_set_at: u64,
    /// What leaves while the disk still writes.
    early: Arc<Mutex<Vec<PeerMessage>>>,
    /// What it applied in its last step.
    applied: Arc<Mutex<Vec<Applied>>>,
}

impl Member {
    pub(crate) fn new(m: usize, spare: bool, clock: HostClock, sync_us: u64) -> Member {
        Member {
            id: member_id(m, 0),
            disk: Disk::default(),
            clock,
            life: 0,
            node: None,
            paused_until: 0,
            held: VecDeque::new(),
            restart_us: None,
            sync_us,
            gone: spare,
            build: 1,
            disks: 0,
            damaged: false,
            clock_set_at: 0,
            early: Arc::default(),
            applied: Arc::default(),
        }
    }

    /// What it says of itself.
    pub(crate) fn record(&self, m: usize) -> MemberRecord {
        MemberRecord { id: self.id, name: format!("c{m}"), address: format!("c{m}"), max_command_version: self.build, ..MemberRecord::default() }
    }

    /// A new disk, and so another member; the old id is never seen again.
    pub(crate) fn renew(&mut self, m: usize) {
        self.disks += 1;
        self.disk.wipe();
        self.life += 1;
        self.id = member_id(m, self.disks);
        self.damaged = false;
        self.gone = false;
    }
}

/// The id of a member, as its data directory made it.
fn member_id(m: usize, disk: u64) -> u64 {
    1_000 + 37 * (m as u64 + 1) + 10_000 * disk
}

fn config(plan: &Plan, id: u64, build: u32) -> Config {
    Config {
        new_id: id,
        flush_entries: plan.flush_entries,
        flush_ticks: plan.flush_ticks,
        piece_bytes: plan.piece_bytes,
        apply_bytes: plan.apply_bytes,
        changes_bytes_min: plan.changes_bytes_min,
        log_entries_max: plan.log_entries_max,
        compact_bytes_min: 1 << 20,
        slow_persist_us: 20_000,
        slow_ticks: 20,
        command_version: build,
        ..Config::default()
    }
}

/// One thread runs all of it: the locks are only what the hooks ask for.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a damaged store leads to must not end the simulation.
fn guarded<T>(damaged: bool, f: impl FnOnce() -> T) -> Option<T> {
    if damaged { crate::quietly(|| catch_unwind(AssertUnwindSafe(f)).ok()) } else { Some(f()) }
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
        let voters: Vec<u64> = (0..self.plan.members).map(|m| member_id(m, 0)).collect();
        let member = &mut self.members[m];
        if member.node.is_some() || member.gone || member.damaged {
            return;
        }
        let config = config(&self.plan, member.id, member.build);
        let first = member.disks == 0 && m < self.plan.members;
        let (disk, incarnation) = (member.disk.clone(), (m as u64 + 1) << 40 | member.life << 8);
        let opened = guarded(disk.is_rotten(), || {
            let db = disk.open().map_err(|e| Opening::Other(e.to_string()))?;
            let mut replica = Replica::open_on(config, db, Box::new(disk.clone()), incarnation).map_err(|e| match e {
                OpenError::Version { .. } => Opening::Version,
                OpenError::Removed { .. } => Opening::Removed,
                e => Opening::Other(format!("{e:?}")),
            })?;
            if first {
                replica.form("sim", &voters).map_err(|e| Opening::Other(format!("{e:?}")))?;
            }
            Ok(replica)
        });
        let mut replica = match opened {
            Some(Ok(replica)) => replica,
            Some(Err(_)) if member.disk.is_dead() => return self.crash_member(m, true),
            Some(Err(_)) if member.disk.take_sync_failed() => {
                self.counts.add("member ended by a failed sync");
                return self.crash_member(m, true);
            }
            Some(Err(Opening::Version)) => {
                self.counts.add("downgrade refused");
                member.build = 2;
                return self.after(100_000, Event::StartMember { m });
            }
            Some(Err(Opening::Removed)) => return self.retire(m),
            // Before it takes part a full disk is an error like others: it is started again.
            Some(Err(_)) if member.disk.has_limit() => {
                self.counts.add("member did not start for want of room");
                return self.after(1_000_000, Event::StartMember { m });
            }
            None | Some(Err(Opening::Other(_))) if member.disk.is_rotten() => {
                self.counts.add("bit rot found, member refuses to start");
                return self.found_damaged(m);
            }
            Some(Err(Opening::Other(e))) => return self.violate("R2", format!("member {m} cannot open its own store: {e}")),
            None => return self.violate("R2", format!("member {m} panics over its own store")),
        };
        if self.plan.early {
            let early = member.early.clone();
            replica.send_early(move |message| lock(&early).push(message));
        }
        let applied = member.applied.clone();
        replica.watch_applied(move |index, term, data| lock(&applied).push(Applied { index, term, data: data.to_vec() }));
        let (mono, wall) = (member.clock.mono_us(self.now), member.clock.wall_us(self.now));
        let node = Node {
            clock: ClusterClock::new(wall, mono),
            replica,
            leading: false,
            to_start: false,
            full: false,
            ticks: 0,
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

    /// The process of a member that has no place in the group any more is ended for good.
    pub(crate) fn retire(&mut self, m: usize) {
        if self.members[m].node.is_some() {
            self.end_member(m, false);
        }
        self.members[m].gone = true;
        self.counts.add("removed member stopped");
    }

    fn found_damaged(&mut self, m: usize) {
        if self.members[m].node.is_some() {
            self.end_member(m, false);
        }
        self.members[m].damaged = true;
        self.replace(m);
    }

    /// The process ends: by itself (what it wrote arrives), or with the power.
    pub(crate) fn crash_member(&mut self, m: usize, power: bool) {
        self.end_member(m, power);
        let soon = self.members[m].restart_us.take().or((self.phase == crate::world::Phase::Heal).then_some(200_000));
        let wait = soon.unwrap_or_else(|| self.rng.hosts.skewed(60_000, 6_000_000));
        self.after(wait, Event::StartMember { m });
    }

    pub(crate) fn end_member(&mut self, m: usize, power: bool) {
        let member = &mut self.members[m];
        member.life += 1;
        member.paused_until = 0;
        member.held.clear();
        lock(&member.early).clear();
        lock(&member.applied).clear();
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
                Request::Peer(message) => (Input::Peer(message), None),
                Request::Propose(command, waiter) => {
                    let version = command.version.clamp(1, node.replica.command_version());
                    let command = Command { version, time_us: now_us, ..*command };
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

    /// A change of role; and a leader whose wall clock is a quorum's begins to lead.
    fn follow_role(&mut self, m: usize) {
        let member = &mut self.members[m];
        let Some(node) = &mut member.node else { return };
        let status = node.replica.status();
        if node.seen != (status.term, status.leader) {
            node.seen = (status.term, status.leader);
            node.leading = false;
            node.to_start = status.role == Role::Leader;
            // What an earlier leadership proposed for itself says nothing of this one.
            node.tick_proposed = false;
            node.waiting.retain(|_, w| !matches!(w, Waiter::Tick | Waiter::LeaderStarted));
            self.counts.add_n("leader elected", u64::from(status.role == Role::Leader));
            let sessions: Vec<u64> = node.sessions.keys().copied().collect();
            for stream in sessions {
                self.not_leader(m, stream);
            }
        }
        self.start_leading(m);
    }

    /// A leader takes its clock, and says so in the log before it acts.
    fn start_leading(&mut self, m: usize) {
        let member = &mut self.members[m];
        let Some(node) = member.node.as_mut().filter(|n| n.to_start && n.replica.clocks_agree()) else { return };
        node.to_start = false;
        let status = node.replica.status();
        let (mono, wall) = (member.clock.mono_us(self.now), member.clock.wall_us(self.now));
        node.clock.lead_from(node.replica.state().now(), wall, mono);
        node.grace_from = mono;
        node.heard.clear();
        let op = Op::LeaderStarted(LeaderStarted { member: status.identity.id, term: status.term });
        node.inbox.push_front(Request::Propose(command(op), Waiter::LeaderStarted));
        self.counts.add("leader began to lead");
        self.poke(m);
        if let Some(detail) = self.time_of_few(m, wall, &status.voters) {
            self.violate("time", detail);
        }
    }

    /// A leader's wall clock is that of a quorum, as far as clocks were not set just now.
    fn time_of_few(&self, m: usize, wall: i64, voters: &[u64]) -> Option<String> {
        let shares = |member: &Member| {
            let set_lately = self.now.saturating_sub(member.clock_set_at) < CLOCK_SET_LATELY_US && member.clock_set_at != 0;
            set_lately || member.clock.wall_us(self.now).abs_diff(wall) <= CLOCKS_DIFFER_US
        };
        let shared = self.members.iter().filter(|member| voters.contains(&member.id) && shares(member)).count();
        (2 * shared <= voters.len()).then(|| format!("member {m} leads by a wall clock that {shared} of {} voters share", voters.len()))
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
                if let Some(node) = self.members[m].node.as_mut().filter(|n| n.replica.status().role == Role::Leader) {
                    node.leading = applied;
                    node.to_start = !applied;
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
            Waiter::Operator => {}
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
