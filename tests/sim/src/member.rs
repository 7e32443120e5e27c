//! A coordinator's host: its disk, its clock, and its process, which starts and ends. What the process does is in `step` and `lead`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use probity_proto::v1::command::Op;
use probity_proto::v1::*;
use probity_replica::{ClusterClock, Config, OpenError, Replica};

use crate::checks::Applied;
use crate::client::{Ask, Caller};
use crate::clock::HostClock;
use crate::disk::Disk;
use crate::fleet::Session;
use crate::inventory::Asked;
use crate::plan::Plan;
use crate::world::{Event, World};

/// raft's tick, by the host's monotonic clock.
pub(crate) const TICK_US: u64 = 50_000;
/// Who waits for a proposal or a read.
#[derive(Debug)]
pub(crate) enum Waiter {
    Call {
        caller: Caller,
        ask: Box<Ask>,
        tries: u32,
    },
    Read {
        caller: Caller,
        key: String,
    },
    LeaderStarted,
    Tick,
    /// A prober's hello, or what it reports (a fault report has its acknowledgement with it): waited for as long as this member leads, and proposed
    /// again when raft takes nothing for a moment.
    Prober {
        stream: u64,
        command: Box<Command>,
        said: Said,
    },
    Left,
    Found,
    Effect {
        key: (String, String, u32),
    },
    /// Whoever asked looks at what came of it.
    Operator,
}

/// What a prober said that has to be committed.
#[derive(Debug, Clone)]
pub(crate) enum Said {
    Hello,
    Rows,
    Fault(FaultAck),
}

/// What waits for the replica's owner.
#[derive(Debug)]
pub(crate) enum Request {
    Tick,
    Peer(Box<PeerMessage>),
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
    pub(crate) to_start: bool,
    pub(crate) full: bool,
    pub(crate) ticks: u64,
    pub(crate) seen: (u64, Option<u64>),
    pub(crate) waiting: BTreeMap<u64, Waiter>,
    pub(crate) next_tag: u64,
    pub(crate) inbox: VecDeque<Request>,
    pub(crate) busy_until: u64,
    pub(crate) step_planned: bool,
    pub(crate) tick_proposed: bool,
    pub(crate) election: usize,
    /// When each prober was heard of, by the monotonic clock.
    pub(crate) heard: BTreeMap<String, u64>,
    pub(crate) grace_from: u64,
    pub(crate) left_under_way: bool,
    pub(crate) deliveries: BTreeSet<(String, String, u32)>,
    pub(crate) sessions: BTreeMap<u64, Session>,
    pub(crate) asked: Asked,
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
    pub(crate) restart_us: Option<u64>,
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
    pub(crate) early: Arc<Mutex<Vec<PeerMessage>>>,
    /// What it applied in its last step.
    pub(crate) applied: Arc<Mutex<Vec<Applied>>>,
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
pub(crate) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a damaged store leads to must not end the simulation.
pub(crate) fn guarded<T>(damaged: bool, f: impl FnOnce() -> T) -> Option<T> {
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
            asked: Asked::default(),
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

    pub(crate) fn found_damaged(&mut self, m: usize) {
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
}

/// A command with nothing but its operation; the driver stamps version and time.
pub(crate) fn command(op: Op) -> Box<Command> {
    Box::new(Command { op: Some(op), ..Command::default() })
}
