//! What rows do to the account and to verdicts.

mod common;

use common::*;
use probity_core::{account, assign, rows};
use probity_proto::v1::*;

const WEB: &str = "default/web";
const ALL: [&str; 3] = ["p0", "p1", "p2"];

fn three() -> World {
    let mut world = World::new();
    for (name, zone) in ALL.iter().zip(["a", "b", "c"]) {
        world.join(name, zone);
    }
    world.put(vec![probe("web", S), probe("db", S)]);
    world
}

/// Each prober reports, second by second.
fn seconds(world: &mut World, seconds: usize, probers: &[&str], reason: Reason) {
    for _ in 0..seconds {
        world.pass(S);
        for prober in probers {
            world.report(WEB, prober, reason);
        }
    }
}

#[test]
fn a_verdict_needs_a_quorum_and_patience() {
    let mut world = three();
    seconds(&mut world, 1, &ALL, Reason::Good);
    assert_eq!(world.verdict(WEB), Verdict::Unknown, "new voters abstain");
    seconds(&mut world, 2, &ALL, Reason::Good);
    assert_eq!(world.verdict(WEB), Verdict::Up);
    for _ in 0..5 {
        seconds(&mut world, 1, &["p0"], Reason::ConnectRefused);
        world.report(WEB, "p1", Reason::Good);
    }
    seconds(&mut world, 1, &["p1"], Reason::ConnectRefused);
    assert_eq!(world.verdict(WEB), Verdict::Up, "one voice and a single failure");
    world.pass(S);
    let a = world.open(WEB, "p1").expect("runs");
    let mut row = world.next_row("p1", a.id, a.next_n, &[(1, Reason::ConnectRefused)]);
    let ended = assign::schedule(&a).due(a.next_n) + 7_000;
    row.details = vec![RunDetail { n: a.next_n, started_at_us: ended - 2_000, duration_us: 2_000, ..RunDetail::default() }];
    row.clock_error_us = 400;
    world.rows(vec![row]);
    assert_eq!(world.verdict(WEB), Verdict::Down);
    let check = world.state.checks.get(WEB).expect("a check");
    assert_eq!((check.verdict_seen_at_us, check.verdict_clock_error_us), (ended, 400), "the end of the run that decided, at its origin");
    seconds(&mut world, 2, &ALL, Reason::Good);
    assert_eq!(world.verdict(WEB), Verdict::Up);
}

#[test]
fn who_misses_three_runs_or_is_silent_abstains() {
    let mut world = three();
    seconds(&mut world, 4, &ALL, Reason::Good);
    seconds(&mut world, 2, &ALL, Reason::NoPermission);
    assert_eq!(world.verdict(WEB), Verdict::Up);
    seconds(&mut world, 1, &["p0", "p1"], Reason::NoPermission);
    assert_eq!(world.verdict(WEB), Verdict::Unknown, "one voice is no quorum of two");
    seconds(&mut world, 3, &ALL, Reason::Good);
    assert_eq!(world.verdict(WEB), Verdict::Up);
    world.leave(&ALL);
    assert_eq!(world.verdict(WEB), Verdict::Unknown, "nobody is there to say so");
}

#[test]
fn late_data_repairs_the_account_and_no_verdict() {
    let mut world = three();
    seconds(&mut world, 4, &ALL, Reason::Good);
    world.pass(600 * S);
    for prober in ALL {
        let a = world.open(WEB, prober).expect("runs");
        let row = world.next_row(prober, a.id, a.next_n, &[(100, Reason::ConnectRefused)]);
        world.rows(vec![row]);
    }
    assert_eq!(account::of_check(&world.state, WEB, world.time_us).bad, 300);
    assert_eq!(world.verdict(WEB), Verdict::Up);
    // The same outage until now turns it, from when it was timely on.
    for prober in ALL {
        world.report(WEB, prober, Reason::ConnectRefused);
    }
    assert_eq!(world.verdict(WEB), Verdict::Down);
    let seen = world.state.checks.get(WEB).expect("a check").verdict_seen_at_us;
    assert!(seen >= world.time_us - 121 * S, "{seen}");
}

#[test]
fn a_sick_probers_runs_say_nothing() {
    let mut world = three();
    seconds(&mut world, 4, &ALL, Reason::Good);
    world.pass(S);
    world.report(WEB, "p0", Reason::Good);
    world.sick("p0", true);
    let before = world.account();
    seconds(&mut world, 3, &["p0"], Reason::ConnectTimeout);
    world.pass(2 * S);
    world.sick("p0", false);
    let row_time = world.time_us;
    world.pass(2 * S);
    // One row over the end of the sickness.
    world.report(WEB, "p0", Reason::ConnectTimeout);
    let after = world.account();
    assert_eq!(after.missed.get(&(Reason::ProberSick as u32)), Some(&5), "from its onset to its end");
    assert_eq!(after.bad - before.bad, 2, "since {row_time}");
    assert_eq!(world.verdict(WEB), Verdict::Up);
}

#[test]
fn two_sick_voters_leave_no_quorum() {
    let mut world = three();
    seconds(&mut world, 4, &ALL, Reason::Good);
    world.sick("p0", true);
    assert_eq!(world.verdict(WEB), Verdict::Up);
    world.sick("p1", true);
    assert_eq!(world.verdict(WEB), Verdict::Unknown);
}

#[test]
fn rows_count_once_and_in_order() {
    let mut world = three();
    world.pass(30 * S);
    let a = world.open(WEB, "p0").expect("runs");
    let first = world.next_row("p0", a.id, a.next_n, &[(3, Reason::Good)]);
    let second = world.next_row("p0", a.id, a.next_n + 3, &[(2, Reason::Good)]);
    world.rows(vec![second.clone()]);
    assert_eq!(world.account().good, 0, "not before the first");
    world.rows(vec![first.clone(), second.clone()]);
    world.rows(vec![first.clone(), second.clone(), first]);
    assert_eq!(world.account().good, 5);
    let overlapping = world.next_row("p0", a.id, a.next_n + 2, &[(4, Reason::ConnectRefused)]);
    world.rows(vec![overlapping]);
    let account = world.account();
    assert_eq!((account.good, account.bad), (5, 1), "only what is new of it");
    let after_gap = world.next_row("p0", a.id, a.next_n + 10, &[(1, Reason::Good)]);
    world.rows(vec![after_gap]);
    assert_eq!(world.account().missed, [(Reason::SpoolDropped as u32, 4)].into());
}

#[test]
fn good_runs_that_needed_a_retry_are_counted_once() {
    let mut world = three();
    world.pass(30 * S);
    let a = world.open(WEB, "p0").expect("runs");
    let row = ReportRow { retried: 2, ..world.next_row("p0", a.id, a.next_n, &[(3, Reason::Good), (1, Reason::ConnectRefused)]) };
    world.rows(vec![row.clone(), row]);
    assert_eq!((world.account().good, world.account().retried), (3, 2));
    // More than its good runs it cannot be; what was counted before is not counted again.
    let more = ReportRow { retried: 9, ..world.next_row("p0", a.id, a.next_n + 3, &[(1, Reason::Good), (2, Reason::Good)]) };
    world.rows(vec![more]);
    assert_eq!((world.account().good, world.account().retried), (5, 4));
    world.delete("Probe", "web");
    world.pass(60 * S);
    assert_eq!(world.account().retried, 4, "with the check's account it goes into the cluster's");
}

#[test]
fn a_new_spool_retires_the_old_one_and_owns_up_to_its_gaps() {
    let mut world = three();
    world.pass(10 * S);
    let (web, db) = (world.open(WEB, "p0").expect("runs"), world.open("default/db", "p0").expect("runs"));
    let old = world.next_row("p0", web.id, web.next_n, &[(2, Reason::Good)]);
    let late = world.next_row("p0", web.id, web.next_n + 2, &[(1, Reason::Good)]);
    world.rows(vec![old]);
    world.spools.insert("p0".to_owned(), ("p0-2".to_owned(), 0));
    let rows = [world.next_row("p0", web.id, web.next_n + 5, &[(1, Reason::Good)]), world.next_row("p0", db.id, db.next_n + 4, &[(1, Reason::Good)])];
    world.rows(rows.to_vec());
    // The old spool came back from somewhere.
    world.rows(vec![late]);
    let account = world.account();
    assert_eq!(account.missed, [(Reason::SpoolReplaced as u32, 3 + 4)].into(), "of both assignments");
    assert_eq!(account.good, 4);
}

#[test]
fn nonsense_is_refused_as_a_whole_counted_and_explained() {
    let mut world = three();
    world.pass(30 * S);
    let a = world.open(WEB, "p0").expect("runs");
    let detail = RunDetail { n: a.next_n, started_at_us: START, ..RunDetail::default() };
    let nonsense: Vec<fn(&mut ReportRow)> = vec![
        |r| r.first_n = u64::MAX,
        |r| r.outcomes = vec![OutcomeRun { count: u32::MAX, ..OutcomeRun::default() }; 2],
        |r| r.outcomes = vec![OutcomeRun::default(); 20_000],
        |r| r.details = vec![r.details[0].clone(); 100],
        |r| r.details[0].message = "x".repeat(10_000),
        |r| r.details[0].n += 2_000,
        |r| r.details[0].duration_us = u64::MAX,
        |r| r.details[0].started_at_us = -1,
        |r| r.clock_error_us = u64::MAX,
        // A slot of next week.
        |r| r.first_n += 7 * 86_400,
    ];
    for (i, spoil) in nonsense.iter().enumerate() {
        let mut row = world.next_row("p0", a.id, a.next_n, &[(3, Reason::Good)]);
        row.details = vec![detail.clone()];
        spoil(&mut row);
        world.rows(vec![row]);
        assert_eq!(world.state.meta().refused_rows, i as u64 + 1);
        assert_eq!(world.account().good, 0);
    }
    let row = world.next_row("p0", a.id, a.next_n + 3, &[(1, Reason::Good)]);
    assert_eq!(rows::malformed(&row), None);
    world.rows(vec![row]);
    let account = world.account();
    assert_eq!((account.good, account.missed_total()), (1, 3), "what was refused is a gap");
}

#[test]
fn a_reason_of_a_newer_prober_is_never_good() {
    let mut world = three();
    world.pass(10 * S);
    let a = world.open(WEB, "p0").expect("runs");
    for (number, bad, missed) in [(77, 1, 0), (177, 1, 1), (-5, 1, 2)] {
        let next = world.open(WEB, "p0").expect("runs").next_n;
        let mut row = world.next_row("p0", a.id, next, &[(1, Reason::Good)]);
        row.outcomes[0].reason = number;
        world.rows(vec![row]);
        let account = world.account();
        assert_eq!((account.good, account.bad, account.missed_total()), (0, bad, missed), "{number}");
    }
}

#[test]
fn a_row_touches_its_own_records_only() {
    let mut world = three();
    world.put((0..100).map(|i| probe(&format!("other{i}"), S)).collect());
    seconds(&mut world, 10, &ALL, Reason::Good);
    world.state.take_changes();
    let a = world.open(WEB, "p0").expect("runs");
    let row = world.next_row("p0", a.id, a.next_n, &[(1, Reason::Good)]);
    world.rows(vec![row]);
    let mut tables: Vec<u32> = world.state.take_changes().iter().map(|c| c.table).collect();
    tables.dedup();
    // The prober's sequence, its voice, its assignment.
    assert_eq!(tables, [4, 6, 7]);
}
