use super::*;
use prost::Message;
use redb::backends::InMemoryBackend;

const SECOND: i64 = 1_000_000;

fn open_at(now_us: i64) -> Session {
    open_ahead(now_us, 0)
}

fn open_ahead(now_us: i64, ahead_us: i64) -> Session {
    let db = redb::Database::builder().create_with_backend(InMemoryBackend::new()).expect("in memory");
    let config =
        Config { prober: "p".to_owned(), new_spool_id: "s1".to_owned(), spool_bytes_max: 1 << 20, flush_us: 10_000_000, unsteady_flush_us: 200_000, ahead_us };
    Session::open(db, config, now_us).expect("opens")
}

fn assignment(id: u64, from_s: i64) -> AssignmentSpec {
    AssignmentSpec { id, check: "default/c".to_owned(), interval_us: 1_000_000, from_us: from_s * SECOND, next_n: from_s as u64, ..AssignmentSpec::default() }
}

fn desired(assignments: Vec<AssignmentSpec>) -> DesiredSet {
    DesiredSet { revision: 1, fence: 1, assignments, lease_us: 15_000_000, ..DesiredSet::default() }
}

fn run(session: &mut Session, from_s: i64, to_s: i64, reason: Reason) {
    for s in from_s..to_s {
        for start in session.due(s * SECOND) {
            let done = RunDone { reason, started_at_us: start.due_us, duration_us: 500, ..RunDone::default() };
            session.on_run_done(start.assignment, start.n, done, s * SECOND);
        }
    }
}

fn outcomes(rows: &[ReportRow]) -> Vec<(u64, u32, Reason)> {
    let mut found = Vec::new();
    for row in rows {
        let mut n = row.first_n;
        for o in &row.outcomes {
            found.push((n, o.count, o.reason()));
            n += u64::from(o.count);
        }
    }
    found
}

#[test]
fn steady_runs_make_one_row_and_bad_ones_are_sent_soon() {
    let mut session = open_at(100 * SECOND);
    session.on_desired(desired(vec![assignment(1, 101)]), 100 * SECOND);
    session.commit().expect("stored");
    run(&mut session, 101, 110, Reason::Good);
    // The first runs of a pair are unsteady; they go out after 200 ms.
    session.close_rows(111 * SECOND);
    session.commit().expect("stored");
    assert_eq!(outcomes(&session.rows_to_send()), [(101, 9, Reason::Good)]);
    run(&mut session, 110, 115, Reason::Good);
    assert_eq!(session.close_rows(115 * SECOND), 0, "steady: waits for 10 s");
    run(&mut session, 115, 116, Reason::ConnectRefused);
    assert_eq!(session.close_rows(115 * SECOND + 200_000), 1);
    assert!(session.rows_to_send().is_empty(), "not before it is on the disk");
    session.commit().expect("stored");
    assert_eq!(outcomes(&session.rows_to_send()), [(110, 5, Reason::Good), (115, 1, Reason::ConnectRefused)]);
    session.on_ack(&RowsAck { spool_id: "s1".to_owned(), sequence: 2 });
    session.commit().expect("stored");
    assert_eq!(session.spooled().0, 0);
}

#[test]
fn an_unfinished_slot_holds_later_ones_back() {
    let mut session = open_at(100 * SECOND);
    session.on_desired(desired(vec![assignment(1, 101)]), 100 * SECOND);
    session.commit().expect("stored");
    let first = session.due(101 * SECOND);
    let second = session.due(102 * SECOND);
    session.on_run_done(1, second[0].n, RunDone::default(), 102 * SECOND);
    session.close_rows(200 * SECOND);
    session.commit().expect("stored");
    assert!(session.rows_to_send().is_empty());
    session.on_run_done(1, first[0].n, RunDone { reason: Reason::ConnectTimeout, ..RunDone::default() }, 103 * SECOND);
    session.close_rows(200 * SECOND);
    session.commit().expect("stored");
    assert_eq!(outcomes(&session.rows_to_send()), [(101, 1, Reason::ConnectTimeout), (102, 1, Reason::Good)]);
}

#[test]
fn a_pause_is_missed_and_never_a_burst() {
    let mut session = open_at(100 * SECOND);
    session.on_desired(desired(vec![assignment(1, 101)]), 100 * SECOND);
    session.commit().expect("stored");
    run(&mut session, 101, 103, Reason::Good);
    let starts = session.due(160 * SECOND);
    assert!(starts.len() <= 2, "{starts:?}");
    for start in starts {
        session.on_run_done(1, start.n, RunDone::default(), 160 * SECOND);
    }
    session.close_everything(160 * SECOND);
    session.commit().expect("stored");
    let all = outcomes(&session.rows_to_send());
    assert_eq!(all[1], (103, 57, Reason::Overloaded), "{all:?}");
}

#[test]
fn a_pause_of_many_checks_is_no_burst_either() {
    let mut session = open_at(100 * SECOND);
    let checks = (0..10_000).map(|id| AssignmentSpec { interval_us: 10_000_000, phase_us: id * 1_000, next_n: 11, ..assignment(id, 110) });
    session.on_desired(desired(checks.collect()), 100 * SECOND);
    assert_eq!(session.due(110 * SECOND).len(), 1, "phases are spread");
    let at = 116 * SECOND;
    assert_eq!(session.due(at).len(), 1_001, "what was due within the last second");
    let mut again = at;
    for _ in 0..1_000 {
        again += 10_000;
        assert_eq!(session.due(again).len(), 10, "and then as planned");
    }
}

#[test]
fn slots_are_handed_out_ahead_and_one_to_come_makes_none_overslept() {
    let mut session = open_ahead(100 * SECOND, 150_000);
    let fast = AssignmentSpec { interval_us: 100_000, next_n: 1_010, ..assignment(1, 101) };
    session.on_desired(desired(vec![fast]), 100 * SECOND);
    assert!(session.due(101 * SECOND - 150_001).is_empty());
    assert_eq!(session.next_wakeup(), Some(101 * SECOND - 150_000));
    // Late by 50 ms, when the next one is to come in 50 ms.
    let slots = session.due(101 * SECOND + 50_000);
    assert_eq!(slots.iter().map(|s| (s.n, s.due_us)).collect::<Vec<_>>(), [(1_010, 101 * SECOND)]);
    let slots = session.due(101 * SECOND + 50_000);
    assert_eq!(slots.iter().map(|s| (s.n, s.due_us)).collect::<Vec<_>>(), [(1_011, 101 * SECOND + 100_000)], "handed out, not overslept");
    assert_eq!(slots[0].spec().expect("an assignment").check, "default/c");
    session.on_run_done(1, 1_011, RunDone::default(), 102 * SECOND);
    session.on_run_done(1, 1_010, RunDone::default(), 102 * SECOND);
    session.close_everything(102 * SECOND);
    session.commit().expect("stored");
    assert_eq!(outcomes(&session.rows_to_send()), [(1_010, 2, Reason::Good)]);
}

#[test]
fn an_assignment_that_ended_before_it_was_heard_of_is_owned_up_to() {
    let mut session = open_at(100 * SECOND);
    session.on_desired(desired(vec![AssignmentSpec { until_us: 102 * SECOND, ..assignment(1, 101) }]), 105 * SECOND);
    assert!(session.due(105 * SECOND).is_empty());
    assert!(session.next_wakeup().is_some_and(|at| at <= 115 * SECOND), "its row is to be sent");
    session.close_rows(115 * SECOND);
    session.commit().expect("stored");
    assert_eq!(outcomes(&session.rows_to_send()), [(101, 1, Reason::AssignedLate)]);
}

#[test]
fn what_is_under_way_to_the_disk_of_another_cluster_is_not_taken_for_the_new_ones() {
    let mut session = open_at(100 * SECOND);
    session.on_welcome("c1");
    session.on_desired(desired(vec![assignment(1, 101)]), 100 * SECOND);
    run(&mut session, 101, 105, Reason::Good);
    session.close_everything(105 * SECOND);
    let old = session.take_batch().expect("rows");
    session.on_welcome("c2");
    session.on_desired(DesiredSet { fence: 2, ..desired(vec![assignment(1, 201)]) }, 200 * SECOND);
    assert!(session.fault_actions(200 * SECOND).is_empty(), "its fence is not on the disk");
    run(&mut session, 201, 203, Reason::Good);
    session.close_everything(203 * SECOND);
    let written = old.commit().expect("stored");
    session.on_written(written);
    assert!(session.rows_to_send().is_empty(), "sequence 1 is the old spool's");
    session.commit().expect("stored");
    assert_eq!(outcomes(&session.rows_to_send()), [(201, 2, Reason::Good)]);
}

#[test]
fn a_crash_before_a_write_forgets_as_if_it_had_not_been() {
    let dir = tempfile::tempdir().expect("a directory");
    let db = || redb::Database::create(dir.path().join("p.redb")).expect("opens");
    let config = || Config { prober: "p".to_owned(), new_spool_id: "s1".to_owned(), spool_bytes_max: 1 << 20, flush_us: 1, unsteady_flush_us: 1, ahead_us: 0 };
    let mut session = Session::open(db(), config(), 100 * SECOND).expect("opens");
    session.on_desired(desired(vec![assignment(1, 101)]), 100 * SECOND);
    run(&mut session, 101, 103, Reason::Good);
    session.close_everything(103 * SECOND);
    session.commit().expect("stored");
    run(&mut session, 103, 105, Reason::Good);
    session.close_everything(105 * SECOND);
    let lost = session.take_batch().expect("a row");
    drop((lost, session));
    let mut session = Session::open(db(), config(), 110 * SECOND).expect("opens");
    session.due(110 * SECOND);
    session.close_everything(110 * SECOND);
    session.commit().expect("stored");
    let rows = session.rows_to_send();
    assert_eq!(outcomes(&rows), [(101, 2, Reason::Good), (103, 7, Reason::ProberOff)]);
    assert_eq!(rows.iter().map(|r| r.sequence).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_restart_goes_on_where_rows_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("p.redb");
    let config =
        |id: &str| Config { prober: "p".to_owned(), new_spool_id: id.to_owned(), spool_bytes_max: 1 << 20, flush_us: 1, unsteady_flush_us: 1, ahead_us: 0 };
    let mut session = Session::open(redb::Database::create(&path).expect("creates"), config("s1"), 100 * SECOND).expect("opens");
    session.on_desired(desired(vec![assignment(1, 101)]), 100 * SECOND);
    session.commit().expect("stored");
    run(&mut session, 101, 104, Reason::Good);
    session.close_rows(104 * SECOND);
    session.commit().expect("stored");
    run(&mut session, 104, 106, Reason::Good); // never in a row: lost with the process
    drop(session);
    let mut session = Session::open(redb::Database::create(&path).expect("opens"), config("s2"), 120 * SECOND).expect("opens");
    assert_eq!(session.spool_id(), "s1", "the id lives with the disk");
    run(&mut session, 120, 122, Reason::Good);
    session.close_everything(122 * SECOND);
    session.commit().expect("stored");
    let all = outcomes(&session.rows_to_send());
    assert_eq!(all, [(101, 3, Reason::Good), (104, 16, Reason::ProberOff), (120, 2, Reason::Good)]);
}

#[test]
fn what_the_spool_cannot_hold_is_dropped_with_its_size() {
    let mut session = open_at(100 * SECOND);
    session.config.spool_bytes_max = 2_000;
    session.on_desired(desired(vec![assignment(1, 101)]), 100 * SECOND);
    session.commit().expect("stored");
    for s in 101..201 {
        run(&mut session, s, s + 1, Reason::ConnectRefused);
        session.close_everything((s + 1) * SECOND);
        session.commit().expect("stored");
    }
    let rows = session.rows_to_send();
    assert_eq!(rows.iter().map(row::slots).sum::<u64>(), 100, "every slot is there");
    assert_eq!(rows.iter().map(|r| r.sequence).collect::<Vec<_>>(), (1..=100).collect::<Vec<_>>());
    let dropped = outcomes(&rows).iter().filter(|(.., r)| *r == Reason::SpoolDropped).count() as u64;
    assert!(dropped > 0 && dropped == session.spooled().2);
}

#[test]
fn faults_obey_fence_end_and_halt() {
    let wish = |id: &str, wanted| FaultWish {
        fault_id: id.to_owned(),
        fence: 5,
        spec: Some(FaultSpec::default()),
        not_after_us: 200 * SECOND,
        wanted,
        game_day: String::new(),
    };
    let set = |fence, faults, halted| DesiredSet { fence, faults, halted, lease_us: 15_000_000, ..DesiredSet::default() };
    let mut session = open_at(100 * SECOND);
    let now = 100 * SECOND;
    session.on_desired(set(5, vec![wish("f", true)], false), now);
    session.commit().expect("stored");
    assert!(matches!(&session.fault_actions(now)[..], [FaultAction::Start { .. }]));
    session.on_desired(set(4, vec![], false), now);
    session.commit().expect("stored");
    assert!(session.fault_actions(now).is_empty(), "an older fence is not obeyed");
    session.on_desired(set(5, vec![wish("f", true)], true), now);
    session.commit().expect("stored");
    assert!(matches!(&session.fault_actions(now)[..], [FaultAction::End { .. }]), "a halt ends it");
    session.faults.on_event("f", FaultState::Undone, String::new(), UndoClass::FdLifetime, now);
    session.on_desired(set(6, vec![wish("f", true)], false), now);
    session.commit().expect("stored");
    assert!(session.fault_actions(now).is_empty(), "an ended id never starts again");
    let late = 300 * SECOND;
    session.on_desired(set(6, vec![wish("g", true)], false), late);
    session.commit().expect("stored");
    assert!(session.fault_actions(late).is_empty(), "never past notAfter");
}

/// A session on a disk that outlives it.
fn open_on(path: &std::path::Path, now_us: i64) -> Session {
    let config = Config {
        prober: "p".to_owned(),
        new_spool_id: "s1".to_owned(),
        spool_bytes_max: 1 << 20,
        flush_us: 10_000_000,
        unsteady_flush_us: 200_000,
        ahead_us: 0,
    };
    Session::open(redb::Database::create(path).expect("a file"), config, now_us).expect("opens")
}

#[test]
fn a_fault_that_was_handed_out_never_begins_again_even_after_a_crash_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("p.redb");
    let wish =
        FaultWish { fault_id: "f1".to_owned(), spec: Some(FaultSpec::default()), wanted: true, fence: 1, not_after_us: 60 * SECOND, ..FaultWish::default() };
    let set = DesiredSet { faults: vec![wish], ..desired(Vec::new()) };
    let mut session = open_on(&path, 0);
    session.on_desired(set.clone(), SECOND);
    assert!(session.fault_actions(SECOND).is_empty(), "its id is not on the disk yet");
    session.commit().expect("stored");
    assert!(matches!(&session.fault_actions(SECOND)[..], [FaultAction::Start { .. }]));
    // The process ends before the engine has said a word, and the engine's journal is gone.
    drop(session);
    let mut session = open_on(&path, 0);
    session.on_desired(set.clone(), 2 * SECOND);
    session.commit().expect("stored");
    assert!(session.fault_actions(SECOND).is_empty());
    // Nobody waits for its end in vain, and nobody is told that it was looked at.
    let report = session.faults.next_report().expect("a report");
    assert_eq!((report.fault_id.as_str(), report.state()), ("f1", FaultState::Unknown));
    session.on_desired(set, 3 * SECOND);
    assert!(session.faults.next_report().is_none(), "once");
}

#[test]
fn reports_are_handed_out_one_by_one_so_that_none_is_lost_for_want_of_room() {
    let mut session = open_at(100 * SECOND);
    for id in ["a", "b"] {
        session.faults.on_event(id, FaultState::Undone, String::new(), UndoClass::FdLifetime, 100 * SECOND);
    }
    let next = |session: &mut Session| session.faults.next_report().map(|r| r.fault_id);
    assert_eq!(next(&mut session).as_deref(), Some("a"));
    // The stream took one, and is full for a while.
    assert_eq!(next(&mut session).as_deref(), Some("b"));
    assert_eq!(next(&mut session), None);
    session.faults.on_ack(&FaultAck { fault_id: "a".to_owned(), state: FaultState::Undone as i32 });
    session.on_connected();
    assert_eq!(next(&mut session).as_deref(), Some("b"), "what was not acknowledged goes out again");
}

#[test]
fn a_change_adds_to_the_revision_that_is_followed() {
    let mut session = open_at(100 * SECOND);
    session.on_desired(desired(vec![assignment(1, 101), assignment(2, 101)]), 100 * SECOND);
    session.commit().expect("stored");
    let change = DesiredSet { revision: 7, base_revision: 1, removed: vec![2, 99], ..desired(vec![assignment(3, 103)]) };
    session.on_desired(change.clone(), 102 * SECOND);
    session.commit().expect("stored");
    assert_eq!((session.revision(), session.assignments()), (7, 2));
    assert_eq!(session.due(103 * SECOND).iter().map(|s| s.assignment).collect::<BTreeSet<_>>(), [1, 3].into());
    // The same again is no change to 7: what is followed stays, and the whole set is asked for.
    session.on_desired(change, 104 * SECOND);
    session.commit().expect("stored");
    assert_eq!((session.revision(), session.assignments()), (0, 2));
    session.on_desired(DesiredSet { revision: 9, ..desired(vec![assignment(3, 103)]) }, 105 * SECOND);
    session.commit().expect("stored");
    assert_eq!((session.revision(), session.assignments()), (9, 1));
}

#[test]
fn a_restart_follows_the_revision_on_its_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let db = || redb::Database::create(dir.path().join("p.redb")).expect("opens");
    let config = || Config { prober: "p".to_owned(), new_spool_id: "s1".to_owned(), spool_bytes_max: 1 << 20, flush_us: 1, unsteady_flush_us: 1, ahead_us: 0 };
    let mut session = Session::open(db(), config(), 100 * SECOND).expect("opens");
    session.on_welcome("c1");
    session.commit().expect("stored");
    session.on_desired(desired(vec![assignment(1, 101)]), 100 * SECOND);
    session.commit().expect("stored");
    session.on_desired(DesiredSet { revision: 5, base_revision: 1, ..desired(vec![assignment(2, 101)]) }, 100 * SECOND);
    session.commit().expect("stored");
    // Nothing to write: a newer revision of the same.
    session.on_desired(DesiredSet { revision: 6, base_revision: 5, ..desired(vec![]) }, 100 * SECOND);
    session.commit().expect("stored");
    drop(session);
    let session = Session::open(db(), config(), 200 * SECOND).expect("opens");
    assert_eq!((session.revision(), session.cluster_id(), session.assignments()), (5, "c1", 2), "at most what its assignments are");
}

#[test]
fn another_cluster_gets_nothing_of_the_old_one() {
    let mut session = open_at(100 * SECOND);
    session.on_welcome("c1");
    session.commit().expect("stored");
    let wish =
        FaultWish { fault_id: "f".to_owned(), fence: 9, spec: Some(FaultSpec::default()), not_after_us: 200 * SECOND, wanted: true, ..FaultWish::default() };
    session.on_desired(DesiredSet { fence: 9, faults: vec![wish], ..desired(vec![assignment(1, 101)]) }, 100 * SECOND);
    session.commit().expect("stored");
    session.fault_actions(100 * SECOND);
    run(&mut session, 101, 105, Reason::Good);
    session.close_everything(105 * SECOND);
    session.commit().expect("stored");
    session.on_welcome("c1");
    session.commit().expect("stored");
    assert_eq!((session.spooled().0, session.spool_id()), (1, "s1"), "the same cluster: nothing happens");
    for (cluster, spool) in [("c2", "s1-2"), ("c1", "s1-3")] {
        session.on_welcome(cluster);
        session.commit().expect("stored");
        assert_eq!((session.spooled().0, session.assignments(), session.revision(), session.spool_id()), (0, 0, 0, spool));
    }
    assert!(matches!(&session.fault_actions(100 * SECOND)[..], [FaultAction::End { .. }, ..]));
    session.on_desired(DesiredSet { fence: 2, ..desired(vec![assignment(1, 201)]) }, 200 * SECOND);
    session.commit().expect("stored");
    assert_eq!(session.assignments(), 1, "its fences begin anew");
}

/// A bad run of slot `s` that took a second, and what went into rows by then.
fn bad_run(session: &mut Session, s: i64) -> usize {
    for start in session.due(s * SECOND) {
        let run = RunDone { reason: Reason::ConnectTimeout, started_at_us: start.due_us, duration_us: 1_000_000, ..RunDone::default() };
        session.on_run_done(start.assignment, start.n, run, (s + 1) * SECOND);
    }
    session.close_everything((s + 1) * SECOND);
    session.commit().expect("stored");
    session.spooled().0 as usize
}

#[test]
fn a_bad_run_waits_for_the_self_check_and_counts_when_that_is_well() {
    let mut session = open_at(100 * SECOND);
    session.expect_self_checks();
    session.on_desired(desired(vec![assignment(1, 101)]), 100 * SECOND);
    session.commit().expect("stored");
    assert_eq!(bad_run(&mut session, 101), 0, "held back");
    session.on_self_check(102 * SECOND - 1, None, 102 * SECOND);
    session.close_everything(102 * SECOND);
    session.commit().expect("stored");
    assert_eq!(session.spooled().0, 0, "that check began before the run had ended");
    session.on_self_check(102 * SECOND, None, 102 * SECOND + 1);
    session.close_everything(102 * SECOND + 1);
    session.commit().expect("stored");
    assert_eq!(outcomes(&session.rows_to_send()), [(101, 1, Reason::ConnectTimeout)]);
    // One that never says anything does not hold runs for ever.
    assert_eq!(bad_run(&mut session, 102), 1);
    assert!(session.next_wakeup().is_some_and(|at| at <= 109 * SECOND));
    session.close_everything(110 * SECOND);
    session.commit().expect("stored");
    assert_eq!(outcomes(&session.rows_to_send()), [(102, 1, Reason::ConnectTimeout)]);
}

#[test]
fn the_runs_of_a_sick_prober_are_missed_from_the_first_on() {
    let mut session = open_at(100 * SECOND);
    session.expect_self_checks();
    session.on_desired(desired(vec![assignment(1, 101), assignment(2, 101)]), 100 * SECOND);
    session.commit().expect("stored");
    run(&mut session, 101, 103, Reason::Good);
    bad_run(&mut session, 103);
    session.on_self_check(105 * SECOND, Some("no default route"), 106 * SECOND);
    assert_eq!(session.sick(), Some((103 * SECOND, "no default route")), "since the first run that was in doubt");
    run(&mut session, 104, 106, Reason::Good);
    bad_run(&mut session, 106);
    session.on_self_check(108 * SECOND, None, 108 * SECOND);
    assert_eq!(session.sick(), None);
    run(&mut session, 107, 109, Reason::Good);
    session.close_everything(109 * SECOND);
    session.commit().expect("stored");
    let rows = session.rows_to_send();
    let found: Vec<(u64, u32, Reason)> = outcomes(&rows.iter().filter(|r| r.assignment == 1).cloned().collect::<Vec<_>>());
    assert_eq!(found.iter().filter(|(.., r)| *r == Reason::ProberSick).map(|(_, count, _)| count).sum::<u32>(), 4, "{found:?}");
    assert_eq!((found.first().copied(), found.last().copied()), (Some((101, 2, Reason::Good)), Some((107, 2, Reason::Good))));
    assert!(rows.iter().flat_map(|r| &r.details).any(|d| d.message == "found while sick: connect_timeout"), "what it found is told to people");
}

#[test]
fn what_grows_too_old_is_dropped_with_its_size() {
    let mut session = open_at(100 * SECOND);
    session.set_spool_age(60 * SECOND as u64);
    session.on_desired(desired(vec![assignment(1, 101)]), 100 * SECOND);
    session.commit().expect("stored");
    for s in 101..191 {
        run(&mut session, s, s + 1, Reason::ConnectRefused);
        session.close_rows((s + 1) * SECOND);
        session.commit().expect("stored");
    }
    session.close_everything(191 * SECOND);
    session.commit().expect("stored");
    let rows = session.rows_to_send();
    let all = outcomes(&rows);
    assert_eq!(all.iter().map(|(_, count, _)| count).sum::<u32>(), 90, "every slot is there");
    let dropped: u32 = all.iter().filter(|(.., r)| *r == Reason::SpoolDropped).map(|(_, count, _)| count).sum();
    assert!((28..=31).contains(&dropped) && u64::from(dropped) == session.spooled().2, "{dropped}");
    // Acknowledged ones are gone; the next to grow too old is found all the same.
    let ack = RowsAck { spool_id: "s1".to_owned(), sequence: rows[40].sequence };
    session.on_ack(&ack);
    session.commit().expect("stored");
    session.close_rows(1_000 * SECOND);
    session.commit().expect("stored");
    let rows = session.rows_to_send();
    assert!(rows.is_empty(), "they were sent already");
    session.on_connected();
    assert!(outcomes(&session.rows_to_send()).iter().all(|(.., r)| *r == Reason::SpoolDropped));
}

#[test]
fn a_crash_after_a_change_owns_up_to_the_open_row() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("p.redb");
    let mut session = open_on(&path, 100 * SECOND);
    session.on_desired(desired(vec![assignment(1, 101)]), 100 * SECOND);
    session.commit().expect("stored");
    run(&mut session, 101, 104, Reason::Good);
    // The assignment ends while its last outcomes wait in the open row.
    let ended = AssignmentSpec { until_us: 104 * SECOND, ..assignment(1, 101) };
    session.on_desired(DesiredSet { revision: 2, base_revision: 1, ..desired(vec![ended]) }, 104 * SECOND);
    session.commit().expect("stored");
    drop(session);
    let mut session = open_on(&path, 110 * SECOND);
    session.due(110 * SECOND);
    session.close_everything(110 * SECOND);
    session.commit().expect("stored");
    assert_eq!(outcomes(&session.rows_to_send()), [(101, 3, Reason::ProberOff)], "nothing is left out");
}

#[test]
fn a_slow_disk_delays_a_beginning_and_no_end() {
    let wish = |id: &str| FaultWish {
        fault_id: id.to_owned(),
        fence: 1,
        spec: Some(FaultSpec::default()),
        not_after_us: 110 * SECOND,
        wanted: true,
        ..FaultWish::default()
    };
    let set = |faults| DesiredSet { fence: 1, faults, lease_us: 15_000_000, ..DesiredSet::default() };
    let start = |session: &mut Session, at: i64| {
        session.commit().expect("stored");
        session.fault_actions(at)
    };
    let mut session = open_at(100 * SECOND);
    session.on_desired(set(vec![wish("waits")]), 100 * SECOND);
    assert!(session.fault_actions(100 * SECOND).is_empty());
    // What the disk takes goes off its times.
    let began = start(&mut session, 104 * SECOND);
    let [FaultAction::Start { lease_us, not_after_us, .. }] = &began[..] else { panic!("{began:?}") };
    assert_eq!((*lease_us, *not_after_us), (11_000_000, 6_000_000));
    // Its end waits for nothing, though there is something to be written.
    session.on_desired(set(vec![wish("never")]), 105 * SECOND);
    assert!(matches!(&session.fault_actions(105 * SECOND)[..], [FaultAction::End { fault_id, .. }] if fault_id == "waits"));
    // One that was halted or whose time was over before it began never does, and says so.
    session.on_heartbeat(&HeartbeatReply { fence: 1, halted: true, ..HeartbeatReply::default() }, 106 * SECOND);
    assert!(start(&mut session, 106 * SECOND).iter().all(|a| !matches!(a, FaultAction::Start { .. })));
    session.on_desired(set(vec![wish("late")]), 107 * SECOND);
    assert!(start(&mut session, 111 * SECOND).iter().all(|a| !matches!(a, FaultAction::Start { .. })));
    let reports: Vec<_> = std::iter::from_fn(|| session.faults.next_report()).map(|r| (r.fault_id.clone(), r.state())).collect();
    assert_eq!(reports, [("never".to_owned(), FaultState::Undone), ("late".to_owned(), FaultState::Undone)]);
}

#[test]
fn a_fence_that_a_heartbeat_brought_outlives_a_crash() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("p.redb");
    let mut session = open_on(&path, 0);
    session.on_heartbeat(&HeartbeatReply { fence: 9, ..HeartbeatReply::default() }, SECOND);
    session.commit().expect("stored");
    drop(session);
    let mut session = open_on(&path, 0);
    let wish =
        FaultWish { fault_id: "f".to_owned(), fence: 8, spec: Some(FaultSpec::default()), not_after_us: 60 * SECOND, wanted: true, ..FaultWish::default() };
    session.on_desired(DesiredSet { fence: 8, faults: vec![wish], lease_us: 15_000_000, ..DesiredSet::default() }, 2 * SECOND);
    session.commit().expect("stored");
    assert!(session.fault_actions(2 * SECOND).is_empty(), "an older leader's wish");
}

#[test]
fn a_probe_that_waits_is_its_text_and_little_more() {
    let spec = AssignmentSpec { spec: Some(CheckSpec { timeout_us: 1, ..CheckSpec::default() }), ..assignment(1, 101) };
    let running = Running::new(&spec, (0, Reason::AssignedLate));
    assert_eq!(AssignmentSpec::decode(&**running.packed()).expect("an assignment"), spec);
    // A hundred thousand of them, each with two entries of an agenda, are to fit into 2 KiB each with the newest result.
    let (here, decoded) = (size_of::<Running>(), size_of::<AssignmentSpec>());
    assert!(here <= 384, "{here} bytes, and {decoded} decoded");
}
