//! The prober's session and the core, over a network that loses, repeats and reorders what it likes: whatever happens, every
//! planned slot is accounted for (R1), with what the prober found there, once (R2).
//!
//! The ledger here knows the rules and none of the code: what was planned it reads off the assignments as they come and go, what
//! became of a slot off the rows that a spool's numbering lets in.

mod common;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use common::*;
use probity_core::desired::{desired_since, is_news};
use probity_core::{account, assign};
use probity_proto::reason::Class;
use probity_proto::slots::Schedule;
use probity_proto::v1::command::Op;
use probity_proto::v1::*;
use probity_session::{Config, RunDone, Session};
use proptest::prelude::*;

const PROBERS: [&str; 4] = ["p0", "p1", "p2", "p3"];
const PROBES: [&str; 3] = ["web", "db", "mail"];
/// A spool this small drops now and then.
const SPOOL_BYTES: u64 = 3_000;
const STEP_US: i64 = 200_000;

#[derive(Debug, Clone)]
enum Step {
    Pass {
        ms: i64,
    },
    /// The schedule of a probe changes, or it begins.
    Put {
        probe: usize,
        interval: usize,
    },
    Delete {
        probe: usize,
    },
    /// The stream is cut: what is under way on it may still come, late.
    Cut {
        prober: usize,
    },
    Connect {
        prober: usize,
    },
    /// kill -9, and the process comes back at the next connect.
    Crash {
        prober: usize,
    },
    /// The same, and its disk is gone.
    Wipe {
        prober: usize,
    },
    /// A message of rows comes twice, or before its predecessor, or never.
    Repeat {
        pick: usize,
    },
    Swap {
        pick: usize,
    },
    Lose {
        pick: usize,
    },
    /// What the coordinator said never comes.
    Deafen {
        prober: usize,
    },
    NewLeader,
    Leave {
        prober: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let prober = 0..PROBERS.len();
    let probe = 0..PROBES.len();
    prop_oneof![
        12 => (1..8_000i64).prop_map(|ms| Step::Pass { ms }),
        1 => (30_000..90_000i64).prop_map(|ms| Step::Pass { ms }),
        3 => (probe.clone(), 0..3usize).prop_map(|(probe, interval)| Step::Put { probe, interval }),
        1 => probe.prop_map(|probe| Step::Delete { probe }),
        3 => prober.clone().prop_map(|prober| Step::Cut { prober }),
        5 => prober.clone().prop_map(|prober| Step::Connect { prober }),
        2 => prober.clone().prop_map(|prober| Step::Crash { prober }),
        1 => prober.clone().prop_map(|prober| Step::Wipe { prober }),
        2 => any::<usize>().prop_map(|pick| Step::Repeat { pick }),
        2 => any::<usize>().prop_map(|pick| Step::Swap { pick }),
        2 => any::<usize>().prop_map(|pick| Step::Lose { pick }),
        1 => prober.clone().prop_map(|prober| Step::Deafen { prober }),
        1 => Just(Step::NewLeader),
        1 => prober.prop_map(|prober| Step::Leave { prober }),
    ]
}

/// A disk that outlives the process.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<Vec<u8>>>);

impl redb::StorageBackend for Disk {
    fn len(&self) -> Result<u64, std::io::Error> {
        Ok(self.0.lock().expect("one thread").len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        let at = offset as usize;
        out.copy_from_slice(&self.0.lock().expect("one thread")[at..at + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.0.lock().expect("one thread").resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), std::io::Error> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        let at = offset as usize;
        self.0.lock().expect("one thread")[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// A prober's host.
#[derive(Default)]
struct Host {
    disk: Disk,
    session: Option<Session>,
    /// How many processes there were: each brings an id for a new spool.
    starts: u32,
    connected: bool,
    cut_at: i64,
    /// The revision that the coordinator told on this stream.
    told: u64,
    down: VecDeque<DesiredSet>,
    /// Runs under way: when each ends, and its assignment and slot.
    running: Vec<(i64, u64, u64)>,
}

/// What should come of it all, counted apart.
#[derive(Default)]
struct Ledger {
    /// (spool, last sequence, retired ones) of each prober.
    spools: BTreeMap<String, (String, u64, BTreeSet<String>)>,
    /// Everything before this slot is known, of each assignment.
    known: BTreeMap<u64, u64>,
    good: u64,
    bad: u64,
    missed: BTreeMap<u32, u64>,
    extra: u64,
    /// Slots that no row covers although later ones are.
    gaps: u64,
}

impl Ledger {
    /// Whether a row comes next in its spool.
    fn lets_in(&mut self, row: &ReportRow) -> bool {
        let (spool, last, retired) = self.spools.entry(row.prober.clone()).or_default();
        let fresh = *spool != row.spool_id && row.sequence == 1 && !retired.contains(&row.spool_id);
        if fresh {
            retired.insert(std::mem::replace(spool, row.spool_id.clone()));
            *last = 1;
            return true;
        }
        let next = *spool == row.spool_id && row.sequence == *last + 1;
        *last += u64::from(next);
        next
    }

    /// `present`: the assignment before this row, if it is not closed.
    fn take(&mut self, row: &ReportRow, present: Option<&AssignmentRecord>) {
        if !self.lets_in(row) {
            return;
        }
        let outcomes = row.outcomes.iter().flat_map(|o| std::iter::repeat_n(o.reason(), o.count as usize));
        let Some(a) = present else {
            self.extra += outcomes.filter(|r| r.class() != Class::Missed).count() as u64;
            return;
        };
        let end = if a.until_us == 0 { u64::MAX } else { due_before(a, a.until_us).max(a.first_n) };
        let known = self.known.entry(a.id).or_insert(a.first_n);
        self.gaps += row.first_n.min(end).saturating_sub(*known);
        *known = (*known).max(row.first_n.min(end));
        for (n, reason) in (row.first_n..).zip(outcomes) {
            let outside = n < a.first_n || n >= end;
            match reason.class() {
                _ if !outside && n < *known => continue,
                Class::Missed if outside => {}
                _ if outside => self.extra += 1,
                Class::Good => self.good += 1,
                Class::Bad => self.bad += 1,
                Class::Missed => *self.missed.entry(reason as u32).or_default() += 1,
            }
            if !outside {
                *known = n + 1;
            }
        }
    }
}

/// Slots that were due before `t`, of all assignments that ever were.
fn planned(world: &World, t: i64) -> u64 {
    world.history.values().map(|a| due_before(a, if a.until_us == 0 { t } else { a.until_us.min(t) }).saturating_sub(a.first_n)).sum()
}

fn due_before(a: &AssignmentRecord, t: i64) -> u64 {
    Schedule { interval_us: a.interval_us, phase_us: a.phase_us }.first_at_or_after(t)
}

struct Net {
    world: World,
    hosts: Vec<Host>,
    /// Rows on their way: nothing orders them.
    up: VecDeque<Vec<ReportRow>>,
    ledger: Ledger,
}

impl Net {
    fn new() -> Net {
        let mut net = Net { world: World::new(), hosts: Vec::new(), up: VecDeque::new(), ledger: Ledger::default() };
        net.hosts.resize_with(PROBERS.len(), Host::default);
        for prober in 0..PROBERS.len() {
            net.connect(prober);
        }
        net
    }

    fn open(&mut self, prober: usize) {
        let (now, host) = (self.world.time_us, &mut self.hosts[prober]);
        host.starts += 1;
        let config = Config {
            prober: PROBERS[prober].to_owned(),
            new_spool_id: format!("{}-{}", PROBERS[prober], host.starts),
            spool_bytes_max: SPOOL_BYTES,
            flush_us: 3_000_000,
            unsteady_flush_us: 200_000,
            ahead_us: 0,
        };
        let db = redb::Database::builder().create_with_backend(host.disk.clone()).expect("opens");
        host.session = Some(Session::open(db, config, now).expect("opens"));
    }

    fn connect(&mut self, prober: usize) {
        if self.hosts[prober].connected {
            return;
        }
        if self.hosts[prober].session.is_none() {
            self.open(prober);
        }
        let name = PROBERS[prober].to_owned();
        let Some(session) = &mut self.hosts[prober].session else { return };
        let labels = [("zone".to_owned(), format!("z{}", prober % 3))].into();
        let hello =
            ProberHello { name: name.clone(), labels, spool_id: session.spool_id().to_owned(), desired_revision: session.revision(), ..ProberHello::default() };
        let follows = if session.cluster_id() == "c1" { session.revision() } else { 0 };
        session.on_connected();
        session.on_welcome("c1");
        let spool_id = session.spool_id().to_owned();
        self.world.apply(Op::FleetChange(FleetChange { joined: vec![ProberJoined { hello: Some(hello) }], ..FleetChange::default() }));
        let known = self.world.state.probers.get(&name).filter(|p| p.spool_id == spool_id).map_or(0, |p| p.last_sequence);
        let host = &mut self.hosts[prober];
        (host.connected, host.told) = (true, follows);
        host.down.clear();
        if let Some(session) = &mut host.session {
            session.on_ack(&RowsAck { spool_id, sequence: known });
        }
    }

    fn cut(&mut self, prober: usize) {
        let host = &mut self.hosts[prober];
        if host.connected {
            (host.connected, host.cut_at) = (false, self.world.time_us);
            host.down.clear();
        }
    }

    fn crash(&mut self, prober: usize) {
        self.cut(prober);
        let host = &mut self.hosts[prober];
        host.session = None;
        host.running.clear();
    }

    /// The host does what is due.
    fn work(&mut self, prober: usize) {
        let now = self.world.time_us;
        let Host { session: Some(session), connected, told, down, running, .. } = &mut self.hosts[prober] else { return };
        if *connected {
            if is_news(&self.world.state, PROBERS[prober], *told) {
                let set = desired_since(&self.world.state, PROBERS[prober], *told, 0);
                *told = set.revision;
                down.push_back(set);
            }
            for set in down.drain(..) {
                session.on_desired(set, now);
            }
        }
        for start in session.due(now) {
            // Some runs take long: later slots wait for them.
            let takes = if dice(start.n, prober, 1).is_multiple_of(13) { 2_500_000 } else { 0 };
            running.push((now + takes, start.assignment, start.n));
        }
        for (_, assignment, n) in running.extract_if(.., |(ends, ..)| *ends <= now) {
            let reason = if dice(n, prober, assignment).is_multiple_of(4) { Reason::ConnectRefused } else { Reason::Good };
            session.on_run_done(assignment, n, RunDone { reason, started_at_us: now, duration_us: 1_000, ..RunDone::default() }, now);
        }
        session.close_rows(now);
        // The disk is slower than the rest: what a crash meets on its way there was never done.
        if !dice(now as u64, prober, 7).is_multiple_of(3) {
            session.commit().expect("stored");
        }
        if !*connected {
            return;
        }
        let rows = session.rows_to_send();
        let lost = session.revision() == 0;
        if !rows.is_empty() {
            self.up.push_back(rows);
        }
        if lost {
            self.cut(prober);
        }
    }

    /// One message of rows is committed; its acknowledgement comes if the stream is still there.
    fn deliver(&mut self, rows: Vec<ReportRow>) {
        let prober = rows[0].prober.clone();
        for row in rows {
            let present = self.world.state.assignments.get(&probity_core::number_key(row.assignment)).cloned();
            self.ledger.take(&row, present.as_ref());
            self.world.rows(vec![row]);
        }
        let known = self.world.state.probers.get(&prober).expect("joined");
        let ack = RowsAck { spool_id: known.spool_id.clone(), sequence: known.last_sequence };
        assert_eq!(self.ledger.spools[&prober].1, ack.sequence, "the spool's numbering");
        let host = &mut self.hosts[PROBERS.iter().position(|p| *p == prober).expect("known")];
        if let Some(session) = host.session.as_mut().filter(|_| host.connected) {
            session.on_ack(&ack);
        }
    }

    fn pass(&mut self, us: i64) {
        let end = self.world.time_us + us;
        while self.world.time_us < end {
            self.world.pass(STEP_US.min(end - self.world.time_us));
            for (prober, name) in PROBERS.iter().enumerate() {
                self.work(prober);
                let host = &self.hosts[prober];
                let alive = self.world.state.probers.get(name).is_some_and(|p| p.alive);
                if alive && !host.connected && self.world.time_us - host.cut_at > 3 * S {
                    self.world.leave(&[name]);
                }
            }
            // The network takes its time: a message now and then.
            if dice(self.world.time_us as u64, 0, 0).is_multiple_of(2)
                && let Some(rows) = self.up.pop_front()
            {
                self.deliver(rows);
            }
        }
    }

    fn step(&mut self, step: &Step) {
        let pick = |at: usize, of: usize| at.checked_rem(of).filter(|_| of > 1);
        match *step {
            Step::Pass { ms } => self.pass(ms * 1_000),
            Step::Put { probe: which, interval } => drop(self.world.put(vec![probe(PROBES[which], [S, 700_000, 5 * S][interval])])),
            Step::Delete { probe } => drop(self.world.delete("Probe", PROBES[probe])),
            Step::Cut { prober } => self.cut(prober),
            Step::Connect { prober } => self.connect(prober),
            Step::Crash { prober } => self.crash(prober),
            Step::Wipe { prober } => {
                self.crash(prober);
                // More than are remembered would be another story.
                if self.hosts[prober].starts < 8 {
                    self.hosts[prober].disk = Disk::default();
                }
            }
            Step::Repeat { pick: at } => pick(at, self.up.len()).into_iter().for_each(|at| self.up.push_back(self.up[at].clone())),
            Step::Swap { pick: at } => pick(at, self.up.len()).into_iter().for_each(|at| self.up.swap(at, 0)),
            // A stream loses nothing but by being cut.
            Step::Lose { pick: at } => {
                if let Some(rows) = pick(at, self.up.len()).and_then(|at| self.up.remove(at)) {
                    let prober = PROBERS.iter().position(|p| *p == rows[0].prober).expect("known");
                    self.cut(prober);
                }
            }
            Step::Deafen { prober } => self.hosts[prober].told = self.world.state.meta().desired_revision.max(1),
            Step::NewLeader => {
                self.world.apply(Op::LeaderStarted(LeaderStarted { member: 1, term: 2 }));
                (0..PROBERS.len()).for_each(|p| self.cut(p));
            }
            Step::Leave { prober } => self.world.leave(&[PROBERS[prober]]),
        }
    }

    /// Everything works again, for long enough that all is said.
    fn heal(&mut self) {
        for prober in 0..PROBERS.len() {
            self.cut(prober);
            self.connect(prober);
        }
        self.pass(40 * S);
        while let Some(rows) = self.up.pop_front() {
            self.deliver(rows);
        }
        // What was lost or out of order goes out again on a new stream, now in order.
        for prober in 0..PROBERS.len() {
            self.cut(prober);
            self.connect(prober);
        }
        for _ in 0..100 {
            self.pass(STEP_US);
            while let Some(rows) = self.up.pop_front() {
                self.deliver(rows);
            }
        }
    }
}

/// Random, and the same again for the same slot.
fn dice(a: u64, b: usize, c: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (b as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ c.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ x >> 32
}

fn whole(steps: &[Step]) -> Result<(), TestCaseError> {
    let mut net = Net::new();
    net.world.put(vec![probe("web", S), probe("db", 2 * S)]);
    for step in steps {
        net.step(step);
    }
    net.heal();
    let now = net.world.time_us;
    let (mut view, ledger) = (account::total(&net.world.state, now), &net.ledger);
    prop_assert_eq!(view.planned, planned(&net.world, now), "planned");
    // By chance a prober is alone with its failures now and then, and its runs do not count for a while.
    let sick = view.missed.get(&(Reason::ProberSick as u32)).copied().unwrap_or(0);
    prop_assert_eq!((view.good + view.bad + sick, view.extra), (ledger.good + ledger.bad, ledger.extra), "runs, extra");
    prop_assert!(view.good <= ledger.good && view.bad <= ledger.bad, "{view:?} makes more of good or bad than was reported");
    view.missed.remove(&(Reason::ProberSick as u32));
    let gap_reasons = [Reason::SpoolDropped as u32, Reason::SpoolReplaced as u32];
    let of =
        |missed: &BTreeMap<u32, u64>, gaps: bool| missed.iter().filter(|(r, _)| gap_reasons.contains(r) == gaps).map(|(r, n)| (*r, *n)).collect::<Vec<_>>();
    prop_assert_eq!(of(&view.missed, false), of(&ledger.missed, false), "missed, as the probers said");
    let told_dropped: u64 = of(&ledger.missed, true).iter().map(|(_, n)| n).sum();
    prop_assert_eq!(of(&view.missed, true).iter().map(|(_, n)| n).sum::<u64>(), told_dropped + ledger.gaps, "missed, as rows left out");
    // Nothing is owed but what is not due to be told yet.
    for a in net.world.state.assignments.iter() {
        let lately = now - 12 * S;
        prop_assert!(a.next_n >= assign::end_n(a, lately), "{} owes slots from {} on: {:?}", a.prober, a.next_n, a);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_slot_is_accounted_for_once(steps in proptest::collection::vec(step(), 1..60)) {
        whole(&steps)?;
    }
}
