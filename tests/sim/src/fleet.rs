//! Streams between probers and coordinators: in order, whole, until they break. The coordinator's side mirrors
//! `coordinator/src/fleet.rs`.

use std::collections::VecDeque;

use probity_core::desired::{desired_since, is_news};
use probity_core::gameday::LEASE_US;
use probity_proto::v1::command::Op;
use probity_proto::v1::coordinator_message::Message as ToProber;
use probity_proto::v1::prober_message::Message as FromProber;
use probity_proto::v1::*;

use crate::member::{Request, Said, Waiter, command};
use crate::net::Host;
use crate::world::{Event, World};

/// Messages of rows of one prober that wait for their commit: behind them the stream is not read on.
const ROWS_WAITING: usize = 4;
/// A prober's heartbeats.
pub(crate) const HEARTBEAT_US: u64 = 1_000_000;
/// Rows of a steady pair are sent this often.
const FLUSH_US: u64 = 2_000_000;

/// A stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) p: usize,
    pub(crate) prober_life: u64,
    pub(crate) m: usize,
    pub(crate) member_life: u64,
    broken: bool,
    /// When the newest message of each direction arrives: nothing overtakes.
    arrives: [u64; 2],
}

/// The coordinator's side of a stream.
#[derive(Debug)]
pub(crate) struct Session {
    prober: String,
    spool_id: String,
    joined: bool,
    waiting: VecDeque<FromProber>,
    committing: bool,
    /// What came behind a full queue.
    unread: VecDeque<FromProber>,
    /// The revision that the prober follows, as far as it was told.
    told: u64,
    told_halted: Option<bool>,
}

impl World {
    /// A prober calls a coordinator.
    pub(crate) fn connect(&mut self, p: usize, life: u64, m: usize) {
        if self.probers[p].life != life {
            return;
        }
        let (from, to) = (Host::Prober(p), Host::Member(m));
        let reachable = self.members[m].node.is_some() && self.paused(m).is_none() && !self.net.is_blocked(from, to) && !self.net.is_blocked(to, from);
        if !reachable {
            return self.connect_later(p, None);
        }
        self.next_stream += 1;
        let stream = self.next_stream;
        let member_life = self.members[m].life;
        self.streams.insert(stream, Stream { p, prober_life: life, m, member_life, broken: false, arrives: [0; 2] });
        self.prober_connected(p, stream);
    }

    /// The stream is cut: each side learns of it some time later.
    pub(crate) fn break_stream(&mut self, stream: u64, slowly: bool) {
        let Some(s) = self.streams.get_mut(&stream).filter(|s| !s.broken) else { return };
        s.broken = true;
        self.counts.add("stream broken");
        // A dead process's host says so at once; of a dead host only keep-alives tell.
        let most = if slowly { 10_000_000 } else { 5_000 };
        let (a, b) = (self.rng.hosts.below(most), self.rng.hosts.below(most));
        self.after(a, Event::MemberLearnsBreak { stream });
        self.after(b, Event::ProberLearnsBreak { stream });
    }

    fn arrival(&mut self, stream: u64, up: bool) -> Option<u64> {
        let s = self.streams.get(&stream).filter(|s| !s.broken)?;
        let (p, m) = (Host::Prober(s.p), Host::Member(s.m));
        let (from, to) = if up { (p, m) } else { (m, p) };
        let Some(delay) = self.net.stream(from, to, &mut self.counts) else {
            self.break_stream(stream, true);
            return None;
        };
        let at = self.now + delay;
        let last = &mut self.streams.get_mut(&stream)?.arrives[usize::from(up)];
        *last = at.max(*last + 1);
        Some(*last)
    }

    pub(crate) fn tell_member(&mut self, stream: u64, message: FromProber) {
        if let Some(at) = self.arrival(stream, true) {
            self.at(at, Event::ToMember { stream, message: Box::new(ProberMessage { message: Some(message) }) });
        }
    }

    fn tell_prober(&mut self, stream: u64, message: ToProber) {
        if let Some(at) = self.arrival(stream, false) {
            self.at(at, Event::ToProber { stream, message: Box::new(CoordinatorMessage { message: Some(message) }) });
        }
    }

    /// The live stream, when its member is the one that it was opened to.
    fn served(&self, stream: u64) -> Option<(usize, usize)> {
        let s = self.streams.get(&stream)?;
        (self.members[s.m].life == s.member_life && self.members[s.m].node.is_some()).then_some((s.m, s.p))
    }

    pub(crate) fn member_hears(&mut self, stream: u64, message: ProberMessage) {
        let Some((m, _)) = self.served(stream) else { return };
        let mono = self.members[m].clock.mono_us(self.now);
        let Some(node) = &mut self.members[m].node else { return };
        match message.message {
            Some(FromProber::Hello(hello)) => {
                if !node.leading {
                    return self.not_leader(m, stream);
                }
                node.heard.insert(hello.name.clone(), mono);
                let session = Session {
                    prober: hello.name.clone(),
                    spool_id: hello.spool_id.clone(),
                    joined: false,
                    waiting: VecDeque::new(),
                    committing: false,
                    unread: VecDeque::new(),
                    told: if hello.cluster_id == node.replica.state().meta().cluster_id { hello.desired_revision } else { 0 },
                    told_halted: None,
                };
                node.sessions.insert(stream, session);
                let op = Op::FleetChange(FleetChange { joined: vec![ProberJoined { hello: Some(hello) }], ..FleetChange::default() });
                self.propose_for(m, stream, command(op), Said::Hello);
            }
            Some(said) => {
                let Some(session) = node.sessions.get_mut(&stream).filter(|s| s.joined) else { return };
                session.unread.push_back(said);
                self.read_on(m, stream);
            }
            None => {}
        }
    }

    /// Reads a stream as far as there is room for what it says: heartbeats wait behind reports that nobody takes.
    fn read_on(&mut self, m: usize, stream: u64) {
        loop {
            let Some(session) = self.members[m].node.as_mut().and_then(|n| n.sessions.get_mut(&stream)) else { return };
            match session.unread.pop_front() {
                Some(FromProber::Heartbeat(heartbeat)) => self.heartbeat_heard(m, stream, &heartbeat),
                Some(report) if session.waiting.len() < ROWS_WAITING => {
                    session.waiting.push_back(report);
                    self.commit_next(m, stream);
                }
                Some(report) => {
                    session.unread.push_front(report);
                    return self.counts.add("report waits behind a full queue");
                }
                None => return,
            }
        }
    }

    /// The probers that cannot be heard for a reason that is not their own.
    pub(crate) fn unheard(&self, m: usize) -> Vec<String> {
        let sessions = self.members[m].node.iter().flat_map(|n| n.sessions.values());
        sessions.filter(|s| !s.unread.is_empty()).map(|s| s.prober.clone()).collect()
    }

    fn heartbeat_heard(&mut self, m: usize, stream: u64, heartbeat: &Heartbeat) {
        let mono = self.members[m].clock.mono_us(self.now);
        let now_us = self.cluster_us(m);
        let Some(node) = &mut self.members[m].node else { return };
        let Some(session) = node.sessions.get(&stream) else { return };
        node.heard.insert(session.prober.clone(), mono);
        // Only a leader renews leases.
        if !node.leading {
            return self.not_leader(m, stream);
        }
        let state = node.replica.state();
        let meta = state.meta();
        // It was given up while it was silent: a new hello brings it back.
        if state.probers.get(&session.prober).is_none_or(|p| !p.alive) {
            return self.not_leader(m, stream);
        }
        let reply =
            HeartbeatReply { echo_us: heartbeat.sent_us, cluster_time_us: now_us, fence: meta.fence, lease_us: LEASE_US as u64, halted: meta.halt.is_some() };
        self.tell_prober(stream, ToProber::Heartbeat(reply));
    }

    /// Proposes what a prober said, as `Node::propose_while_leading` does.
    fn propose_for(&mut self, m: usize, stream: u64, command: Box<Command>, said: Said) {
        self.request(m, Request::Propose(command.clone(), Waiter::Prober { stream, command, said }));
    }

    /// The same again, after raft took nothing; unless leadership has ended meanwhile, and the stream with it.
    pub(crate) fn propose_again(&mut self, m: usize, life: u64, stream: u64, command: Box<Command>, said: Said) {
        let served = self.members[m].node.as_ref().is_some_and(|n| n.sessions.contains_key(&stream));
        if self.members[m].life == life && served {
            self.propose_for(m, stream, command, said);
        }
    }

    /// Commits what a prober reports, in its order, one at a time.
    fn commit_next(&mut self, m: usize, stream: u64) {
        let Some(session) = self.members[m].node.as_mut().and_then(|n| n.sessions.get_mut(&stream)) else { return };
        if session.committing {
            return;
        }
        let Some(report) = session.waiting.pop_front() else { return };
        session.committing = true;
        let prober = session.prober.clone();
        let (op, said) = match report {
            FromProber::Rows(rows) => (Op::AcceptRows(AcceptRows { rows: rows.rows }), Said::Rows),
            FromProber::Fault(report) => {
                let ack = FaultAck { fault_id: report.fault_id.clone(), state: report.state };
                (Op::FaultReports(FaultReports { reports: vec![ProberFaultReport { prober, report: Some(report) }] }), Said::Fault(ack))
            }
            _ => return,
        };
        self.propose_for(m, stream, command(op), said);
    }

    fn ack(&self, m: usize, stream: u64) -> Option<RowsAck> {
        let node = self.members[m].node.as_ref()?;
        let session = node.sessions.get(&stream)?;
        let known = node.replica.state().probers.get(&session.prober).filter(|p| p.spool_id == session.spool_id);
        Some(RowsAck { sequence: known.map_or(0, |p| p.last_sequence), spool_id: session.spool_id.clone() })
    }

    pub(crate) fn joined(&mut self, m: usize, stream: u64, applied: bool) {
        if !applied {
            return self.not_leader(m, stream);
        }
        let Some(ack) = self.ack(m, stream) else { return };
        if let Some(session) = self.members[m].node.as_mut().and_then(|n| n.sessions.get_mut(&stream)) {
            session.joined = true;
        }
        let cluster_id = self.members[m].node.as_ref().map(|n| n.replica.state().meta().cluster_id.clone()).unwrap_or_default();
        let welcome = Welcome { cluster_id, member: format!("c{m}"), heartbeat_us: HEARTBEAT_US, flush_us: FLUSH_US, unsteady_flush_us: 200_000 };
        self.tell_prober(stream, ToProber::Welcome(welcome));
        self.tell_prober(stream, ToProber::Ack(ack));
        self.tell_desired(m);
    }

    pub(crate) fn reported(&mut self, m: usize, stream: u64, applied: bool, fault: Option<FaultAck>) {
        if !applied {
            return self.not_leader(m, stream);
        }
        let Some(ack) = self.ack(m, stream) else { return };
        let ack = fault.map_or(ToProber::Ack(ack), ToProber::FaultAck);
        if let Some(session) = self.members[m].node.as_mut().and_then(|n| n.sessions.get_mut(&stream)) {
            session.committing = false;
        }
        self.tell_prober(stream, ack);
        self.commit_next(m, stream);
        self.read_on(m, stream);
    }

    /// Tells the prober to go elsewhere, and ends the stream.
    pub(crate) fn not_leader(&mut self, m: usize, stream: u64) {
        let leader_address = self.hint(m).map_or_else(String::new, |to| format!("c{to}"));
        self.tell_prober(stream, ToProber::NotLeader(NotLeader { leader_address }));
        if let Some(node) = &mut self.members[m].node {
            node.sessions.remove(&stream);
        }
    }

    /// Who leads, as a member knows.
    pub(crate) fn hint(&self, m: usize) -> Option<usize> {
        let leader = self.members[m].node.as_ref()?.replica.status().leader?;
        self.member_of(leader)
    }

    pub(crate) fn member_loses(&mut self, stream: u64) {
        if let Some((m, _)) = self.served(stream)
            && let Some(node) = &mut self.members[m].node
        {
            node.sessions.remove(&stream);
        }
    }

    /// Sends the desired sets that changed.
    pub(crate) fn tell_desired(&mut self, m: usize) {
        let now_us = self.cluster_us(m);
        let Some(node) = &mut self.members[m].node else { return };
        if !node.leading {
            return;
        }
        let state = node.replica.state();
        let halted = state.meta().halt.is_some();
        let mut changed = Vec::new();
        for (stream, session) in node.sessions.iter_mut().filter(|(_, s)| s.joined) {
            if session.told_halted != Some(halted) || is_news(state, &session.prober, session.told) {
                let set = DesiredSet { cluster_time_us: now_us, ..desired_since(state, &session.prober, session.told, 0) };
                (session.told, session.told_halted) = (set.revision, Some(halted));
                changed.push((*stream, set));
            }
        }
        for (stream, set) in changed {
            self.tell_prober(stream, ToProber::Desired(set));
        }
    }
}
