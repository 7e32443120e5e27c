//! The seeds that every change must pass, and the proof of the proof: known bugs that the same seeds find.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use probity_sim::{BUGS, Bug, Counts, Report, run};

/// Seeds of one test run.
const SEEDS: u64 = 300;

/// Runs seeds in parallel until one breaks a rule; everything that was counted, and the failure.
fn run_seeds(seeds: u64, bug: Option<Bug>) -> (Counts, Option<Report>) {
    let next = AtomicU64::new(0);
    let all: Mutex<(Counts, Option<Report>)> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    let report = run(seed, bug);
                    let mut all = all.lock().expect("no panic");
                    all.0.merge(&report.counts);
                    if report.violation.is_some() {
                        next.store(seeds, Ordering::Relaxed);
                        all.1.get_or_insert(report);
                    }
                }
            });
        }
    });
    all.into_inner().expect("no panic")
}

#[test]
fn every_rule_holds_under_faults_and_what_was_begun_ends() {
    let (counts, failure) = run_seeds(SEEDS, None);
    if let Some(report) = failure {
        let v = report.violation.expect("a failure");
        panic!(
            "seed {} broke {} at {} us: {}\nagain: cargo run --release -p probity-sim -- --from {} --seeds 1",
            report.seed, v.rule, v.at_us, v.detail, report.seed
        );
    }
    for (what, n) in counts.iter() {
        println!("{n:>12}  {what}");
    }
    // A fault that never comes proves nothing.
    let wanted = [
        "bit rot found, member refuses to start",
        "disk full",
        "downgrade refused",
        "entries sent before they were written",
        "file made smaller",
        "leadership handed over by an operator",
        "leadership handed over for a slow disk",
        "leadership handed over for a wall clock",
        "member back after a full disk",
        "member ended by a failed sync",
        "member joined",
        "member paused for longer than an election",
        "member removed",
        "member replaced",
        "discovery that gave nothing",
        "held targets accepted",
        "silent prober removed",
        "target came back",
        "targets held",
        "request handed on to the leader",
        "request handed on to one that does not lead",
        "report proposed again",
        "report waits behind a full queue",
        "member started with a newer build",
        "prober ended by a failed sync",
        "prober lost its disk",
        "snapshot chunk sent",
        "bad weather",
        "change acknowledged",
        "game-day fault begun",
        "game-day fault ended by its lease",
        "leader isolated",
        "member died in a write or sync",
        "member killed",
        "member lost power right after a vote",
        "member paused",
        "message cut off by a partition",
        "message duplicated",
        "message late, overtaken",
        "message lost",
        "notification delivered",
        "one-way or partial partition",
        "prober cut off",
        "prober declared silent",
        "prober died in a write or sync",
        "prober lost power",
        "unsynced write lost",
        "unsynced write torn",
        "wall clock set",
    ];
    let never: Vec<&str> = wanted.into_iter().filter(|what| counts.get(what) == 0).collect();
    assert_eq!(never, [""; 0], "faults that were never injected");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..6 {
        assert_eq!(run(seed, None), run(seed, None), "seed {seed}");
    }
    assert_ne!(run(0, None).trace, run(1, None).trace);
}

/// Each known bug, and within how many seeds it must be found.
const WITHIN: &[(Bug, u64)] = &[
    (Bug::VoteNotPersisted, 120),
    (Bug::AckBeforeCommit, 10),
    (Bug::DuplicateRowApplied, 10),
    (Bug::LeaseByWallClock, 160),
    (Bug::HashMapOrder, 10),
    (Bug::EndedIdForgotten, 80),
    (Bug::ApplyBeforeCommit, 10),
    (Bug::SnapshotWithoutConfState, 80),
    (Bug::ReadWithoutQuorum, 100),
    (Bug::LogNotSynced, 10),
    (Bug::WallClockUnchecked, 80),
    (Bug::RequestForgotten, 60),
    (Bug::SmallSetTaken, 60),
];

#[test]
fn known_bugs_are_found() {
    let listed: BTreeMap<Bug, &str> = BUGS.iter().map(|(name, bug)| (*bug, *name)).collect();
    assert_eq!(WITHIN.len(), listed.len(), "a bug without its number of seeds");
    for (bug, seeds) in WITHIN {
        let (_, failure) = run_seeds(*seeds, Some(*bug));
        let report = failure.unwrap_or_else(|| panic!("{} was not found within {seeds} seeds", listed[bug]));
        let v = report.violation.expect("a failure");
        println!("{}: seed {} broke {}: {}", listed[bug], report.seed, v.rule, v.detail);
    }
}
