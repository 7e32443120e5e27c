//! The world: true time, the queue of events, and who gets them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use probity_proto::v1::*;
use probity_replica::Outputs;
use prost::Message as _;

use crate::change::Change;
use crate::checks::Checks;
use crate::client::{Answer, Call, Caller, Client};
use crate::duties::Delivery;
use crate::fleet::Stream;
use crate::inventory::Inventory;
use crate::member::{Member, Said};
use crate::nemesis::Nemesis;
use crate::net::{Host, Net};
use crate::plan::Plan;
use crate::prober::Prober;
use crate::report::{Counts, Report, Trace, Violation};
use crate::rng::Rng;
use probity_session::RunDone;

/// Something that happens at a moment. A `life` is of the host it was meant for: an earlier one's events are void.
#[derive(Debug)]
pub(crate) enum Event {
    Tick { m: usize, life: u64 },
    Resume { m: usize, life: u64 },
    Step { m: usize, life: u64 },
    Emit { m: usize, life: u64, outputs: Outputs },
    Duties { m: usize, life: u64 },
    Expire { m: usize, life: u64, tag: u64 },
    ProposeAgain { m: usize, life: u64, stream: u64, command: Box<Command>, said: Said },
    Delivered { m: usize, life: u64, delivery: Box<Delivery> },
    Found { m: usize, life: u64, found: Box<DiscoverTargets> },
    Peer { m: usize, message: PeerMessage },
    Call { m: usize, call: Call },
    HandedBack { m: usize, life: u64, caller: Caller, answer: Answer },
    Answer { c: usize, op: u64, answer: Answer },
    ClientTurn { c: usize },
    ClientRetry { c: usize, op: u64, attempt: u32 },
    ClientTimeout { c: usize, op: u64, attempt: u32 },
    Connect { p: usize, life: u64, m: usize },
    ToMember { stream: u64, message: Box<ProberMessage> },
    ToProber { stream: u64, message: Box<CoordinatorMessage> },
    MemberLearnsBreak { stream: u64 },
    ProberLearnsBreak { stream: u64 },
    Wake { p: usize, life: u64, turn: u64 },
    Ran { p: usize, life: u64, assignment: u64, n: u64, run: Box<RunDone> },
    CrashMember { m: usize, life: u64, power: bool },
    CrashProber { p: usize, life: u64, power: bool },
    StartMember { m: usize },
    StartProber { p: usize },
    Nemesis,
    Operator,
    Undo(crate::nemesis::Undo),
    Progress,
}

struct Scheduled {
    at: u64,
    /// Equal times happen in the order of their making.
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Randomness of each part.
pub(crate) struct Streams {
    pub(crate) disks: Rng,
    pub(crate) elections: Rng,
    pub(crate) hosts: Rng,
    pub(crate) clients: Rng,
    pub(crate) probes: Rng,
}

/// Which part of the run this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Faults come, rules must hold.
    Chaos,
    /// No faults any more; everything must come to its end.
    Heal,
    /// All demands are met.
    Done,
}

/// Everything.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) now: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    pub(crate) phase: Phase,
    pub(crate) plan: Plan,
    pub(crate) rng: Streams,
    pub(crate) net: Net,
    pub(crate) members: Vec<Member>,
    pub(crate) probers: Vec<Prober>,
    pub(crate) clients: Vec<Client>,
    pub(crate) streams: BTreeMap<u64, Stream>,
    pub(crate) next_stream: u64,
    pub(crate) nemesis: Nemesis,
    /// The change of members that is under way.
    pub(crate) change: Option<Change>,
    /// The log's end when the leader saw that a removed member votes no more.
    pub(crate) settled_at: Option<u64>,
    pub(crate) changes_asked: u64,
    pub(crate) checks: Checks,
    pub(crate) counts: Counts,
    pub(crate) trace: Trace,
    /// The probes' targets answer.
    pub(crate) targets_up: bool,
    pub(crate) inventory: Inventory,
}

impl World {
    pub(crate) fn new(seed: u64) -> World {
        let plan = Plan::new(seed);
        let stream = |name: &str| Rng::new(seed, name);
        let rng =
            Streams { disks: stream("disks"), elections: stream("elections"), hosts: stream("hosts"), clients: stream("clients"), probes: stream("probes") };
        let mut world = World {
            seed,
            now: 0,
            queue: BinaryHeap::new(),
            scheduled: 0,
            phase: Phase::Chaos,
            rng,
            net: Net::new(stream("net")),
            members: Vec::new(),
            probers: Vec::new(),
            clients: Vec::new(),
            streams: BTreeMap::new(),
            next_stream: 0,
            nemesis: Nemesis::new(stream("nemesis")),
            change: None,
            settled_at: None,
            changes_asked: 0,
            checks: Checks::new(),
            counts: Counts::default(),
            trace: Trace::new(),
            targets_up: true,
            inventory: Inventory::new(),
            plan,
        };
        world.set_up();
        world
    }

    /// Something will happen at a moment; moments that have passed are now.
    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse(Scheduled { at: at.max(self.now), order: self.scheduled, event }));
    }

    pub(crate) fn after(&mut self, us: u64, event: Event) {
        self.at(self.now + us, event);
    }

    /// A rule does not hold: the run ends here.
    pub(crate) fn violate(&mut self, rule: &'static str, detail: String) {
        let at_us = self.now;
        self.checks.violation.get_or_insert(Violation { rule, detail, at_us });
    }

    pub(crate) fn run(mut self) -> Report {
        while self.checks.violation.is_none() && self.phase != Phase::Done {
            let Some(Reverse(next)) = self.queue.pop() else { break };
            self.now = next.at;
            self.counts.add("events");
            self.happen(next.event);
        }
        self.counts.merge(&self.checks.discovered.counts);
        self.counts.add_n("simulated seconds", self.now / 1_000_000);
        Report { seed: self.seed, trace: self.trace.hash(), counts: self.counts, violation: self.checks.violation }
    }

    /// The trace is of what happened, not of what was planned.
    fn note(&mut self, kind: u8, whom: u64) {
        self.trace.bytes(&[kind]);
        self.trace.number(self.now);
        self.trace.number(whom);
    }

    /// The member that an event is for, if it happens inside its process.
    fn inside(&self, event: &Event) -> Option<usize> {
        match event {
            Event::Tick { m, .. }
            | Event::Step { m, .. }
            | Event::Emit { m, .. }
            | Event::Duties { m, .. }
            | Event::Expire { m, .. }
            | Event::ProposeAgain { m, .. }
            | Event::HandedBack { m, .. }
            | Event::Found { m, .. }
            | Event::Delivered { m, .. }
            | Event::Peer { m, .. }
            | Event::Call { m, .. } => Some(*m),
            Event::ToMember { stream, .. } | Event::MemberLearnsBreak { stream } => self.streams.get(stream).map(|s| s.m),
            _ => None,
        }
    }

    /// A process that stands still does later, and in the same order, what it should have done meanwhile.
    fn happen(&mut self, event: Event) {
        if let Some(m) = self.inside(&event).filter(|m| self.paused(*m).is_some() || !self.members[*m].held.is_empty()) {
            let member = &mut self.members[m];
            if member.held.is_empty() {
                let (life, at) = (member.life, member.paused_until);
                self.at(at, Event::Resume { m, life });
            }
            self.members[m].held.push_back(event);
            return;
        }
        match event {
            Event::Resume { m, life } => self.member_resumes(m, life),
            Event::Tick { m, life } => self.member_tick(m, life),
            Event::Step { m, life } => {
                self.note(1, m as u64);
                self.member_step(m, life);
            }
            Event::Emit { m, life, outputs } => self.member_emit(m, life, outputs),
            Event::Duties { m, life } => self.member_duties(m, life),
            Event::Expire { m, life, tag } => self.member_expire(m, life, tag),
            Event::ProposeAgain { m, life, stream, command, said } => self.propose_again(m, life, stream, command, said),
            Event::Delivered { m, life, delivery } => self.member_delivered(m, life, *delivery),
            Event::Found { m, life, found } => self.member_found(m, life, *found),
            Event::Peer { m, message } => {
                self.note(2, m as u64);
                self.trace.bytes(&message.encode_to_vec());
                self.member_peer(m, message);
            }
            Event::Call { m, call } => self.member_call(m, call),
            Event::HandedBack { m, life, caller, answer } => self.handed_back(m, life, caller, answer),
            Event::Answer { c, op, answer } => {
                self.note(3, c as u64);
                self.client_answer(c, op, answer);
            }
            Event::ClientTurn { c } => self.client_turn(c),
            Event::ClientRetry { c, op, attempt } => self.client_retry(c, op, attempt),
            Event::ClientTimeout { c, op, attempt } => self.client_timeout(c, op, attempt),
            Event::Connect { p, life, m } => self.connect(p, life, m),
            Event::ToMember { stream, message } => {
                self.note(4, stream);
                self.trace.bytes(&message.encode_to_vec());
                self.member_hears(stream, *message);
            }
            Event::ToProber { stream, message } => {
                self.note(5, stream);
                self.trace.bytes(&message.encode_to_vec());
                self.prober_hears(stream, *message);
            }
            Event::MemberLearnsBreak { stream } => self.member_loses(stream),
            Event::ProberLearnsBreak { stream } => self.prober_loses(stream, None),
            Event::Wake { p, life, turn } => self.prober_wake(p, life, turn),
            Event::Ran { p, life, assignment, n, run } => self.prober_ran(p, life, assignment, n, *run),
            Event::CrashMember { m, life, power } => {
                if self.members[m].life == life {
                    self.crash_member(m, power);
                }
            }
            Event::CrashProber { p, life, power } => {
                if self.probers[p].life == life && self.probers[p].process.is_some() {
                    self.counts.add("prober ended soon after a fault began or ended");
                    self.crash_prober(p, power);
                }
            }
            Event::StartMember { m } => {
                self.note(6, m as u64);
                self.start_member(m);
            }
            Event::StartProber { p } => {
                self.note(7, p as u64);
                self.start_prober(p);
            }
            Event::Nemesis => self.nemesis_turn(),
            Event::Operator => self.operator_turn(),
            Event::Undo(undo) => self.undo(undo),
            Event::Progress => self.progress_turn(),
        }
    }

    fn member_resumes(&mut self, m: usize, life: u64) {
        if self.members[m].life != life {
            return;
        }
        if let Some(until) = self.paused(m) {
            return self.at(until, Event::Resume { m, life });
        }
        for event in std::mem::take(&mut self.members[m].held) {
            self.happen(event);
        }
    }

    /// Sends a datagram: each copy that arrives is made by `event`.
    pub(crate) fn send(&mut self, from: Host, to: Host, mut event: impl FnMut() -> Event) {
        for delay in self.net.send(from, to, &mut self.counts) {
            self.after(delay, event());
        }
    }
}
