//! Properties over random histories: replicas agree (R3), whatever they wrote can be loaded again, every slot is accounted
//! for exactly once (R1, R2).

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use probity_core::{Key, State, apply, assign};
use probity_proto::reason::Class;
use probity_proto::v1::command::Op;
use probity_proto::v1::*;
use proptest::prelude::*;

const PROBERS: [&str; 5] = ["p0", "p1", "p2", "p3", "p4"];
const PROBES: [&str; 3] = ["web", "db", "mail"];
const REASONS: [Reason; 5] = [Reason::Good, Reason::ConnectRefused, Reason::TlsExpired, Reason::ProberOff, Reason::NoPermission];

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    Pass { ms: i64 },
    Join { prober: usize },
    Leave { probers: Vec<usize> },
    Sick { prober: usize, sick: bool },
    PutProbe { probe: usize, interval: usize, placement: usize, targets: usize },
    DeleteProbe { probe: usize },
    PutSlo { probe: usize, limit: usize },
    DeleteSlo { probe: usize },
    Row { prober: usize, pick: usize, back: u64, skip: u64, ahead: u64, outcomes: Vec<(u32, usize)>, broken: usize },
    Resend { prober: usize, back: usize },
    NewSpool { prober: usize },
    StartDay { prober: usize },
    AbortDay,
    Fault { state: i32 },
    Halt,
    Lift,
    Leader,
    Retry { back: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let row = (0..5usize, 0..8usize, 0..4u64, 0..6u64, 0..3u64, prop::collection::vec((0..40u32, 0..5usize), 0..5), 0..24usize).prop_map(
        |(prober, pick, back, skip, ahead, outcomes, broken)| Step::Row {
            prober,
            pick,
            back: back.saturating_sub(1),
            skip: skip.saturating_sub(3),
            ahead: ahead.saturating_sub(1) * 4,
            outcomes,
            broken,
        },
    );
    prop_oneof![
        12 => row,
        4 => (1..20_000i64).prop_map(|ms| Step::Pass { ms }),
        1 => (1..40i64).prop_map(|h| Step::Pass { ms: h * 3_600_000 }),
        3 => (0..5usize).prop_map(|prober| Step::Join { prober }),
        2 => prop::collection::vec(0..5usize, 1..4).prop_map(|probers| Step::Leave { probers }),
        1 => (0..5usize, any::<bool>()).prop_map(|(prober, sick)| Step::Sick { prober, sick }),
        2 => (0..3usize, 0..3usize, 0..4usize, 1..3usize).prop_map(|(probe, interval, placement, targets)| Step::PutProbe { probe, interval, placement, targets }),
        1 => (0..3usize).prop_map(|probe| Step::DeleteProbe { probe }),
        1 => (0..3usize, 0..2usize).prop_map(|(probe, limit)| Step::PutSlo { probe, limit }),
        1 => (0..3usize).prop_map(|probe| Step::DeleteSlo { probe }),
        2 => (0..5usize, 0..5usize).prop_map(|(prober, back)| Step::Resend { prober, back }),
        1 => (0..5usize).prop_map(|prober| Step::NewSpool { prober }),
        1 => (0..5usize).prop_map(|prober| Step::StartDay { prober }),
        1 => Just(Step::AbortDay),
        1 => (1..7i32).prop_map(|state| Step::Fault { state }),
        1 => Just(Step::Halt),
        1 => Just(Step::Lift),
        1 => Just(Step::Leader),
        1 => (0..6usize).prop_map(|back| Step::Retry { back }),
    ]
}

/// What a history did, kept apart from the state.
#[derive(Default)]
struct Witness {
    /// Newest interval of every assignment ever seen.
    intervals: BTreeMap<u64, AssignmentRecord>,
    /// Rows that were sent, by prober.
    sent: BTreeMap<String, Vec<ReportRow>>,
    /// (assignment, slot) of every run that was ever reported good, bad.
    reported: [BTreeSet<(u64, u64)>; 2],
}

impl Witness {
    fn look(&mut self, state: &State) {
        // What ended with nothing owed is gone within the command that ended it.
        for (id, a) in self.intervals.iter_mut().filter(|(_, a)| a.until_us == 0) {
            if state.assignments.get(&probity_core::number_key(*id)).is_none() {
                a.until_us = state.now();
            }
        }
        for a in state.assignments.iter() {
            self.intervals.insert(a.id, a.clone());
        }
    }

    fn send(&mut self, world: &mut World, row: ReportRow) {
        let mut n = row.first_n;
        for run in &row.outcomes {
            let class = probity_proto::reason::from_number(run.reason).class();
            for _ in 0..run.count.min(1_000) {
                match class {
                    Class::Good => self.reported[0].insert((row.assignment, n)),
                    Class::Bad => self.reported[1].insert((row.assignment, n)),
                    Class::Missed => false,
                };
                n = n.saturating_add(1);
            }
        }
        self.sent.entry(row.prober.clone()).or_default().push(row.clone());
        world.rows(vec![row]);
    }

    /// Slots that were planned, one by one.
    fn planned(&self) -> u64 {
        self.intervals.values().map(slots_one_by_one).sum()
    }
}

fn slots_one_by_one(a: &AssignmentRecord) -> u64 {
    assert_ne!(a.until_us, 0, "assignment {} is still open", a.id);
    let (interval, phase) = (a.interval_us as i64, a.phase_us as i64);
    let mut n = a.from_us / interval - 1;
    let mut planned = 0;
    while phase + n * interval < a.until_us {
        planned += u64::from(phase + n * interval >= a.from_us);
        n += 1;
    }
    planned
}

fn zone(prober: usize) -> &'static str {
    ["a", "b", "c"][prober % 3]
}

fn run(world: &mut World, witness: &mut Witness, step: &Step) {
    match step {
        Step::Pass { ms } => {
            world.time_us += ms * 1_000;
            world.apply(Op::Tick(Tick {}));
        }
        Step::Join { prober } => world.join(PROBERS[*prober], zone(*prober)),
        Step::Leave { probers } => world.leave(&probers.iter().map(|p| PROBERS[*p]).collect::<Vec<_>>()),
        Step::Sick { prober, sick } => world.sick(PROBERS[*prober], *sick),
        Step::PutProbe { probe, interval, placement, targets } => {
            let placement = match placement {
                0 => Placement::default(),
                1 => Placement { count: 2, ..Placement::default() },
                2 => Placement { all: true, ..Placement::default() },
                _ => Placement { selector: Some(Selector { match_labels: [("zone".to_owned(), "a".to_owned())].into() }), ..Placement::default() },
            };
            let targets: &[(&str, &str)] = if *targets == 1 { &[("", "127.0.0.1:1")] } else { &[("t1", "127.0.0.1:1"), ("t2", "127.0.0.1:2")] };
            world.put(vec![probe_with(PROBES[*probe], [1, 2, 7][*interval] * S, placement, targets)]);
        }
        Step::DeleteProbe { probe } => drop(world.delete("Probe", PROBES[*probe])),
        Step::PutSlo { probe, limit } => drop(world.put(vec![slo(PROBES[*probe], PROBES[*probe], [0, 300_000][*limit])])),
        Step::DeleteSlo { probe } => drop(world.delete("SLO", PROBES[*probe])),
        Step::Row { prober, pick, back, skip, ahead, outcomes, broken } => {
            let name = PROBERS[*prober];
            // Mostly its own assignments, sometimes another's or one that is gone.
            let own: Vec<AssignmentRecord> = assign::of_prober(&world.state, name).cloned().collect();
            let any: Vec<AssignmentRecord> = witness.intervals.values().cloned().collect();
            let from = if *pick < 7 { &own } else { &any };
            let Some(a) = from.get(pick % from.len().max(1)).cloned() else { return };
            if !world.spools.contains_key(name) {
                return;
            }
            let due = assign::end_n(&AssignmentRecord { until_us: 0, ..a.clone() }, world.time_us) + ahead;
            let first_n = (a.next_n + skip).saturating_sub(*back).min(due);
            let mut left = due - first_n;
            let outcomes: Vec<(u32, Reason)> = outcomes
                .iter()
                .map(|(count, reason)| {
                    let count = u64::from(*count).min(left);
                    left -= count;
                    (count as u32, REASONS[*reason])
                })
                .collect();
            let mut row = world.next_row(name, a.id, first_n, &outcomes);
            row.details = vec![RunDetail { n: first_n, started_at_us: world.time_us, duration_us: 1_000, ..RunDetail::default() }];
            match broken {
                0 => row.first_n = u64::MAX - 1,
                1 => row.outcomes = vec![OutcomeRun { count: u32::MAX, reason: 777, slower_than: 9 }; 3],
                2 => row.first_n += 1_000_000_000,
                3 => row.clock_error_us = u64::MAX,
                4 => row.details[0].started_at_us = i64::MAX,
                5 => row.details[0].duration_us = u64::MAX,
                _ => {}
            }
            witness.send(world, row);
        }
        Step::Resend { prober, back } => {
            let old = witness.sent.get(PROBERS[*prober]).and_then(|rows| rows.iter().rev().nth(*back)).cloned();
            if let Some(row) = old {
                witness.send(world, row);
            }
        }
        Step::NewSpool { prober } => {
            if let Some((id, sequence)) = world.spools.get_mut(PROBERS[*prober]) {
                let number: u64 = id.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
                *id = format!("{}-{}", PROBERS[*prober], number + 1);
                *sequence = 0;
            }
        }
        Step::StartDay { prober } => drop(world.apply(Op::StartGameDay(StartGameDay { plan: Some(plan(PROBERS[*prober])), trace_id: "t".to_owned() }))),
        Step::AbortDay => {
            let name = world.state.game_days.iter().filter(|d| d.ended_at_us == 0).find_map(|d| Some(d.plan.as_ref()?.name.clone()));
            let abort = AbortGameDay { namespace: "default".to_owned(), name: name.unwrap_or_default(), reason: "enough".to_owned() };
            world.apply(Op::AbortGameDay(abort));
        }
        Step::Fault { state } => {
            let reports = world.state.faults.iter().map(|f| ProberFaultReport {
                prober: f.prober.clone(),
                report: Some(FaultReport { fault_id: f.id.clone(), state: *state, at_us: world.time_us, ..FaultReport::default() }),
            });
            let reports = reports.collect();
            world.apply(Op::FaultReports(FaultReports { reports }));
        }
        Step::Halt => drop(world.apply(Op::SetHalt(SetHalt { reason: "stop".to_owned() }))),
        Step::Lift => drop(world.apply(Op::LiftHalt(LiftHalt {}))),
        Step::Leader => drop(world.apply(Op::LeaderStarted(LeaderStarted { member: 1, term: world.index }))),
        Step::Retry { back } => {
            let id = format!("request-{}", world.index as usize / 4 - (*back).min(world.index as usize / 4));
            world.command(Command { version: 1, request_id: id, op: Some(Op::SetHalt(SetHalt { reason: "again".to_owned() })), ..Command::default() });
        }
    }
    witness.look(&world.state);
}

fn plan(prober: &str) -> GameDayPlan {
    GameDayPlan {
        namespace: "default".to_owned(),
        scenario: "outage".to_owned(),
        max_duration_us: 60 * S as u64,
        steps: vec![PlannedStep {
            name: "cut".to_owned(),
            hold_us: 5 * S as u64,
            faults: vec![PlannedFault {
                fault_id: "f1".to_owned(),
                prober: prober.to_owned(),
                spec: Some(FaultSpec { kind: "proxy.reset".to_owned(), ..FaultSpec::default() }),
            }],
            ..PlannedStep::default()
        }],
        expect: vec![Expectation {
            expect: Some(expectation::Expect::Verdict(VerdictExpectation {
                probe: "web".to_owned(),
                verdict: Verdict::Down as i32,
                within_us: 5 * S as u64,
                recovers_within_us: 5 * S as u64,
            })),
        }],
        ..GameDayPlan::default()
    }
}

fn history(steps: &[Step]) -> (World, Witness) {
    // What is done in pieces is done in small ones half of the time.
    probity_proto::bugs::set_small_pieces(steps.len() % 2 == 1);
    let mut world = World::new();
    let mut witness = Witness::default();
    for (i, prober) in PROBERS.iter().enumerate().take(3) {
        world.join(prober, zone(i));
    }
    world.put(vec![probe("web", S), slo("web", "web", 0)]);
    witness.look(&world.state);
    for step in steps {
        run(&mut world, &mut witness, step);
    }
    (world, witness)
}

type Rows = Vec<(u32, Key, Vec<u8>)>;

fn rows_of(state: &State) -> Rows {
    state.rows().collect()
}

fn load(rows: impl IntoIterator<Item = (u32, Key, Vec<u8>)>) -> State {
    let mut state = State::default();
    for (table, key, value) in rows {
        state.load(table, &key, &value).expect("what was written can be read");
    }
    state
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// R3: the same log makes the same state, however often it is written, and wherever a replica came in.
    #[test]
    fn replicas_agree(steps in prop::collection::vec(step(), 1..90), restart in 0..90usize, every in 1..9usize) {
        let (world, _) = history(&steps);
        let (mut eager, mut lazy) = (State::new(), State::new());
        let mut restarted = State::new();
        let mut store = BTreeMap::new();
        for (i, command) in world.log.iter().enumerate() {
            let index = i as u64 + 1;
            let answer = apply(&mut eager, index, command);
            prop_assert_eq!(&answer, &apply(&mut lazy, index, command));
            prop_assert_eq!(&answer, &apply(&mut restarted, index, command));
            for change in eager.take_changes() {
                match change.value {
                    Some(value) => drop(store.insert((change.table, change.key), value)),
                    None => drop(store.remove(&(change.table, change.key))),
                }
            }
            if i % every == 0 {
                lazy.take_changes();
                prop_assert_eq!(eager.hash(), lazy.hash());
            }
            if i == restart {
                restarted = load(rows_of(&restarted));
                prop_assert_eq!(eager.hash(), restarted.hash());
            }
        }
        lazy.take_changes();
        restarted.take_changes();
        prop_assert_eq!(eager.hash(), lazy.hash());
        prop_assert_eq!(eager.hash(), restarted.hash());
        let stored = load(store.into_iter().map(|((table, key), value)| (table, key, value)));
        prop_assert_eq!(stored.hash(), eager.hash());
        prop_assert_eq!(rows_of(&stored), rows_of(&eager));
    }

    /// Pieces of a round that are written while the state goes on are the rows as of its beginning, and so is the hash.
    #[test]
    fn a_round_of_writing_is_of_one_index(steps in prop::collection::vec(step(), 1..90), bytes in 1..4_000usize, whole in 1..5usize) {
        let (world, _) = history(&steps);
        let mut state = State::new();
        let mut store = BTreeMap::new();
        let mut log = (1..).zip(&world.log);
        let mut ended = false;
        for round in 0.. {
            let (rows, hash) = (rows_of(&state), load(rows_of(&state)).hash());
            let all = round % whole == 0;
            if all {
                store.clear();
            }
            state.freeze(all);
            let mut written = BTreeSet::new();
            loop {
                let (changes, done) = state.drain(bytes);
                for change in changes {
                    let key = (change.table, change.key);
                    // One that is gone and back is told as gone first.
                    prop_assert!(written.insert((key.clone(), change.value.is_some())), "each row once: {:?}", key);
                    prop_assert!(change.value.is_some() || !written.contains(&(key.clone(), true)), "gone after it was back: {:?}", key);
                    match change.value {
                        Some(value) => drop(store.insert(key, value)),
                        None => drop(store.remove(&key)),
                    }
                }
                if done {
                    break;
                }
                log.next().into_iter().for_each(|(index, command)| drop(apply(&mut state, index, command)));
            }
            prop_assert_eq!(state.hash(), hash);
            let stored: Rows = store.iter().map(|((table, key), value)| (*table, key.clone(), value.clone())).collect();
            prop_assert_eq!(stored, rows);
            if ended {
                break;
            }
            match log.next() {
                Some((index, command)) => drop(apply(&mut state, index, command)),
                None => ended = true,
            }
        }
    }

    /// R1 and R2: whatever rows came, when everything has ended each planned slot is known, and no run was counted twice.
    #[test]
    fn every_slot_is_accounted_for(steps in prop::collection::vec(step(), 1..90)) {
        let (mut world, mut witness) = history(&steps);
        for probe in PROBES {
            world.delete("Probe", probe);
        }
        witness.look(&world.state);
        world.time_us += 26 * HOUR;
        world.apply(Op::Tick(Tick {}));
        let account = world.account();
        prop_assert_eq!(account.unexplained, 0);
        prop_assert_eq!(account.pending, 0);
        prop_assert_eq!(world.state.assignments.len(), 0);
        prop_assert_eq!(account.planned, witness.planned());
        prop_assert_eq!(account.planned, account.good + account.bad + account.missed_total());
        prop_assert!(account.good <= witness.reported[0].len() as u64);
        prop_assert!(account.bad <= witness.reported[1].len() as u64);
    }
}
