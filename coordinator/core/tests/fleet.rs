//! Who runs what when probers come and go: nothing is planned twice, nothing that was planned is forgotten.

mod common;

use std::collections::BTreeMap;

use common::*;
use probity_core::{State, apply, assign, next_deadline};
use probity_proto::v1::command::Op;
use probity_proto::v1::*;

const WEB: &str = "default/web";

/// Three probers in three zones, one probe that all of them run.
fn three() -> World {
    let mut world = World::new();
    for (name, zone) in [("p0", "a"), ("p1", "b"), ("p2", "c")] {
        world.join(name, zone);
    }
    world.put(vec![probe("web", S)]);
    world.pass(10 * S);
    assert_eq!(world.runners(WEB), ["p0", "p1", "p2"]);
    world
}

fn ids(world: &World) -> Vec<u64> {
    assign::of_check(&world.state, WEB).filter(|a| a.until_us == 0).map(|a| a.id).collect()
}

#[test]
fn a_restart_of_everything_goes_on_where_it_was() {
    let mut world = three();
    let before = ids(&world);
    // Not all of them were noticed at once.
    world.leave(&["p0", "p1", "p2"]);
    world.pass(3_600 * S);
    assert_eq!(ids(&world), before, "nobody else could run it");
    for (name, zone) in [("p1", "b"), ("p0", "a"), ("p2", "c")] {
        world.join(name, zone);
        world.pass(S / 10);
    }
    assert_eq!(ids(&world), before, "the same assignments go on, and nobody waits");
    for prober in ["p0", "p1", "p2"] {
        world.report(WEB, prober, Reason::ProberOff);
    }
    let account = world.account();
    assert_eq!((account.missed_total(), account.pending), (account.planned, 0));
}

#[test]
fn noticed_one_by_one_a_restart_of_everything_waits_for_nobody() {
    let mut world = three();
    for name in ["p0", "p1", "p2"] {
        world.leave(&[name]);
        world.pass(S);
    }
    for (name, zone) in [("p0", "a"), ("p1", "b"), ("p2", "c")] {
        world.join(name, zone);
        world.pass(S);
    }
    assert_eq!(world.runners(WEB), ["p0", "p1", "p2"]);
}

#[test]
fn who_does_not_come_back_is_not_waited_for() {
    let mut world = three();
    world.leave(&["p0", "p1", "p2"]);
    world.pass(S);
    world.join("p0", "a");
    assert_eq!(world.runners(WEB), ["p0", "p1", "p2"], "the others may follow");
    world.pass(31 * S);
    assert_eq!(world.runners(WEB), ["p0"]);
    world.join("p1", "b");
    assert_eq!(world.runners(WEB), ["p0"], "too late: it must stay first");
}

#[test]
fn checks_move_in_the_command_that_tells_of_the_silence() {
    let mut world = three();
    world.join("p3", "a");
    world.join("p4", "b");
    world.pass(5 * S);
    for leaver in ["p0", "p1", "p2", "p3", "p4"] {
        if !world.runners(WEB).contains(&leaver.to_owned()) {
            continue;
        }
        let others: Vec<String> = world.runners(WEB).into_iter().filter(|p| p != leaver).collect();
        world.leave(&[leaver]);
        let now = world.runners(WEB);
        assert!(!now.contains(&leaver.to_owned()));
        assert!(others.iter().all(|p| now.contains(p)), "only its own share moves");
        assert_eq!(now.len(), 3, "somebody else runs it");
        break;
    }
}

#[test]
fn the_wait_doubles_with_each_flap_and_is_forgiven() {
    let mut world = three();
    for wait in [30, 60, 120, 240, 480, 600, 600] {
        world.leave(&["p2"]);
        assert_eq!(world.runners(WEB), ["p0", "p1"]);
        world.join("p2", "c");
        world.pass(wait * S - 1);
        assert_eq!(world.runners(WEB), ["p0", "p1"], "before {wait} s");
        world.pass(1);
        assert_eq!(world.runners(WEB), ["p0", "p1", "p2"], "after {wait} s");
    }
    world.pass(601 * S);
    world.leave(&["p2"]);
    world.join("p2", "c");
    world.pass(30 * S);
    assert_eq!(world.runners(WEB), ["p0", "p1", "p2"]);
}

#[test]
fn the_only_one_left_need_not_wait() {
    let mut world = three();
    world.leave(&["p2"]);
    world.join("p2", "c");
    world.leave(&["p0", "p1"]);
    assert_eq!(world.runners(WEB), ["p2"], "waiting helps no one");
}

#[test]
fn what_moved_is_still_owed_by_who_had_it() {
    let mut world = three();
    let old = world.open(WEB, "p2").expect("runs");
    let due = assign::end_n(&old, world.time_us);
    world.leave(&["p2"]);
    world.pass(S);
    // Isolated, it went on for a while: what came after its end is extra, what it missed there is nothing.
    let rows = [(due - old.next_n) as u32, 5, 2];
    let row = world.next_row("p2", old.id, old.next_n, &[(rows[0], Reason::Good), (rows[1], Reason::Good), (rows[2], Reason::ProberOff)]);
    world.rows(vec![row]);
    let account = world.account();
    assert_eq!((account.good, account.extra), (u64::from(rows[0]), 5));
    assert!(world.state.assignments.get(&probity_core::number_key(old.id)).is_none(), "all known: folded");
    assert_eq!(account, probity_core::account::of_probe(&world.state, "default", "web", world.state.now()));
}

#[test]
fn a_prober_that_no_longer_fits_stops_even_when_nobody_does() {
    let mut world = three();
    let nowhere = Placement { selector: Some(Selector { match_labels: [("zone".to_owned(), "mars".to_owned())].into() }), ..Placement::default() };
    world.put(vec![probe_with("web", S, nowhere, &[("", "127.0.0.1:1")])]);
    assert!(world.runners(WEB).is_empty());
    assert_eq!(world.verdict(WEB), Verdict::Unknown);
}

#[test]
fn a_target_chooses_its_vantage_points() {
    let mut world = three();
    let mut tills = probe_with("tills", S, Placement::default(), &[("t1", "10.0.0.1:1"), ("t2", "10.0.0.2:1")]);
    let Some(resource::Spec::Probe(spec)) = &mut tills.spec else { unreachable!("made above") };
    spec.placement =
        Some(Placement { selector: Some(Selector { match_labels: [("zone".to_owned(), "$(target.labels.zone)".to_owned())].into() }), ..Placement::default() });
    for (target, zone) in spec.targets.iter_mut().zip(["a", "c"]) {
        target.labels.insert("zone".to_owned(), zone.to_owned());
    }
    world.put(vec![tills]);
    assert_eq!(world.runners("default/tills/t1"), ["p0"]);
    assert_eq!(world.runners("default/tills/t2"), ["p2"]);
}

#[test]
fn what_nobody_reports_is_lost_after_the_spools_bound() {
    let mut world = three();
    world.leave(&["p2"]);
    let owed = world.account().pending;
    world.delete("Probe", "web");
    world.pass(24 * HOUR);
    assert_eq!(world.account().pending, owed, "its spool may still come");
    world.pass(2 * HOUR);
    let account = world.account();
    assert_eq!(account.missed, [(Reason::ProberLost as u32, owed)].into());
    assert_eq!((account.pending, world.state.assignments.len()), (0, 0));
}

const DAY: i64 = 24 * HOUR;

fn remove(world: &mut World, name: &str) -> Result<(), (RefusalCode, String)> {
    match world.apply(command::Op::RemoveProber(RemoveProber { name: name.to_owned() })) {
        command_result::Result::Applied(_) => Ok(()),
        command_result::Result::Refused(refused) => Err((refused.code(), refused.message)),
    }
}

fn silent_alerts(world: &World) -> Vec<(String, bool)> {
    let silent = world.state.episodes.iter().filter(|e| e.rule == "silent");
    silent.map(|e| (e.labels["prober"].clone(), e.resolved_at_us == 0)).collect()
}

#[test]
fn who_is_silent_for_long_is_somebodys_to_look_after() {
    let mut world = three();
    world.leave(&["p2"]);
    world.pass(599 * S);
    assert_eq!(silent_alerts(&world), [], "a reboot");
    world.pass(2 * S);
    assert_eq!(silent_alerts(&world), [("p2".to_owned(), true)]);
    let episode = world.state.episodes.iter().next().expect("one");
    assert_eq!(episode.labels["alertname"], "ProbityProberSilent");
    assert!(episode.summary.contains("prober p2 has been silent for 10m"), "{}", episode.summary);
    world.pass(HOUR);
    assert_eq!(silent_alerts(&world).len(), 1, "told once");
    world.join("p2", "c");
    assert_eq!(silent_alerts(&world), [("p2".to_owned(), false)]);
}

#[test]
fn who_is_gone_for_good_is_removed_and_owes_nothing() {
    let mut world = three();
    for _ in 0..3 {
        world.report(WEB, "p2", Reason::Good);
        world.pass(2 * S);
    }
    assert_eq!(remove(&mut world, "p9").expect_err("nobody").0, RefusalCode::NotFound);
    let (code, said) = remove(&mut world, "p2").expect_err("it lives");
    assert!(code == RefusalCode::Invalid && said.contains("is alive: stop it first"), "{said}");
    world.leave(&["p2"]);
    world.pass(700 * S);
    let before = world.account();
    let owed = assign::of_prober(&world.state, "p2").map(|a| assign::end_n(a, world.time_us) - a.next_n).sum::<u64>();
    assert!(owed > 0);
    assert_eq!(remove(&mut world, "p2"), Ok(()));
    assert!(world.state.probers.get("p2").is_none() && assign::of_prober(&world.state, "p2").next().is_none());
    assert_eq!(silent_alerts(&world), [("p2".to_owned(), false)]);
    let after = world.account();
    assert_eq!((after.unexplained, after.planned, after.pending), (0, before.planned, before.pending - owed));
    assert_eq!(after.missed[&(Reason::ProberLost as u32)], owed);
    assert!(world.state.audit.iter().any(|a| a.action == "remove" && a.subject == "Prober/p2" && a.actor == "ops"));
    assert!(remove(&mut world, "p2").is_err(), "it is gone");

    // It comes back all the same, with the spool that it had, and never heard the last acknowledgement: its rows go on after what was taken, each once.
    let (spool_id, sequence) = world.spools["p2"].clone();
    let hello = ProberHello {
        name: "p2".to_owned(),
        labels: [("zone".to_owned(), "c".to_owned())].into(),
        spool_id,
        cluster_id: "c1".to_owned(),
        acknowledged: sequence - 1,
        ..ProberHello::default()
    };
    world.apply(command::Op::FleetChange(FleetChange { joined: vec![ProberJoined { hello: Some(hello) }], ..FleetChange::default() }));
    assert_eq!(world.state.probers.get("p2").map(|p| p.last_sequence), Some(sequence));
    world.pass(60 * S);
    let good = world.account().good;
    let a = world.open(WEB, "p2").expect("it runs again");
    let row = world.next_row("p2", a.id, a.next_n, &[(5, Reason::Good)]);
    world.rows(vec![row.clone(), row]);
    assert_eq!(world.account().good, good + 5);
}

/// The only one that may run a check is removed: nobody runs it, and nobody says that it is up.
#[test]
fn who_is_removed_speaks_no_more() {
    let mut world = World::new();
    world.join("p0", "a");
    world.put(vec![probe("web", S)]);
    world.pass(10 * S);
    world.report(WEB, "p0", Reason::Good);
    world.leave(&["p0"]);
    world.pass(60 * S);
    assert_eq!(remove(&mut world, "p0"), Ok(()));
    assert_eq!((world.runners(WEB).len(), world.verdict(WEB)), (0, Verdict::Unknown));
    world.join("p1", "a");
    world.pass(S);
    assert_eq!(world.runners(WEB), ["p1"]);
}

#[test]
fn who_lived_for_a_day_leaves_nothing_behind() {
    let mut world = three();
    world.leave(&["p2"]);
    world.delete("Probe", "web");
    for _ in 0..6 {
        world.pass(DAY);
        assert!(world.state.probers.get("p2").is_some());
    }
    world.pass(DAY + S);
    assert!(world.state.probers.get("p2").is_none() && world.state.probers.get("p1").is_some());
    assert_eq!(silent_alerts(&world), [("p2".to_owned(), false)]);

    // Not while slots of it are owed: it is the only one for this.
    let mut world = World::new();
    world.join("p0", "a");
    world.put(vec![probe("web", HOUR)]);
    world.pass(2 * HOUR);
    world.leave(&["p0"]);
    world.pass(9 * DAY);
    assert!(world.state.probers.get("p0").is_some());
    world.delete("Probe", "web");
    world.pass(3 * DAY);
    assert!(world.state.probers.get("p0").is_none(), "looked at again each day");
}

#[test]
fn what_nobody_can_run_is_told_with_the_reason() {
    use probity_core::placement::why_nobody;
    let mut world = three();
    let placement = |zone: &str, needs: &[&str]| Placement {
        selector: Some(Selector { match_labels: [("zone".to_owned(), zone.to_owned())].into() }),
        needs: needs.iter().map(|n| (*n).to_owned()).collect(),
        ..Placement::default()
    };
    assert_eq!(why_nobody(&world.state, &placement("a", &[])), None);
    assert_eq!(why_nobody(&world.state, &placement("mars", &[])).as_deref(), Some("no prober has the labels zone=mars"));
    let http3 = placement("a", &["probe/http3"]);
    let why = "none of the 1 probers that it may run on has probe/http3: upgrade them";
    assert_eq!(why_nobody(&world.state, &http3).as_deref(), Some(why));
    assert_eq!(why_nobody(&probity_core::State::new(), &http3).as_deref(), Some("there is no prober"));

    // A prober that is upgraded on the fly gets what it can run now.
    let mut web = probe_with("web3", S, placement("a", &[]), &[("", "127.0.0.1:1")]);
    let Some(resource::Spec::Probe(spec)) = &mut web.spec else { unreachable!("made above") };
    let http = HttpCheck { url: "https://127.0.0.1:1/".to_owned(), version: HttpVersion::HttpVersion3 as i32, ..HttpCheck::default() };
    spec.kind = Some(CheckKind { kind: Some(check_kind::Kind::Http(http)) });
    world.put(vec![web]);
    assert!(world.runners("default/web3").is_empty());
    let able = Capability { name: "probe/http3".to_owned(), available: true, ..Capability::default() };
    let hello = ProberHello {
        name: "p0".to_owned(),
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        spool_id: world.spools["p0"].0.clone(),
        capabilities: vec![able],
        ..ProberHello::default()
    };
    world.apply(probity_proto::v1::command::Op::FleetChange(FleetChange { joined: vec![ProberJoined { hello: Some(hello) }], ..FleetChange::default() }));
    assert_eq!(world.runners("default/web3"), ["p0"]);
}

/// Who runs each of many checks.
fn everywhere(world: &World) -> BTreeMap<String, Vec<String>> {
    world.state.checks.iter().map(|c| (c.check.clone(), world.runners(&c.check))).collect()
}

#[test]
fn what_a_large_fleet_moves_is_moved_in_pieces() {
    let names: Vec<String> = (0..3_500).map(|n| format!("t{n:04}")).collect();
    let targets: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "127.0.0.1:1")).collect();
    let many = || vec![probe_with("many", 60 * S, Placement::default(), &targets)];
    let fleet = |probers: std::ops::Range<usize>| {
        let mut world = World::new();
        probers.clone().for_each(|n| world.join(&format!("p{n:02}"), ["a", "b", "c"][n % 3]));
        world.put(many());
        world.pass(S);
        world
    };
    let mut world = fleet(0..9);
    let placed = everywhere(&world);
    assert_eq!(placed.values().map(Vec::len).sum::<usize>(), 3 * 3_500, "all of a large change is placed");
    // A replica that starts from what is on the disk in the middle of it has no numbers at hand.
    let mut restarted = State::default();
    let reload = |from: &State, to: &mut State| {
        *to = State::default();
        from.rows().for_each(|(table, key, value)| to.load(table, &key, &value).expect("a row"));
    };
    let in_pieces_from = |world: &mut World, restarted: &mut State, what: &str| {
        assert_eq!(next_deadline(&world.state), Some(world.state.now()), "{what}: not in one command");
        for _ in 0..100 {
            if next_deadline(&world.state) != Some(world.state.now()) {
                break;
            }
            let before = everywhere(world);
            world.time_us += 1_000;
            world.apply(Op::Tick(Tick {}));
            let tick = world.log.last().expect("the tick");
            apply(restarted, world.index, tick);
            assert!(world.state.rows().eq(restarted.rows()), "{what}: a replica that was restarted disagrees");
            let after = everywhere(world);
            let moved = after.iter().filter(|(check, runners)| before[*check] != **runners).count();
            assert!(moved <= 1_100, "{what}: {moved} at once");
        }
    };
    let in_pieces = |world: &mut World, restarted: &mut State, what: &str| {
        reload(&world.state, restarted);
        in_pieces_from(world, restarted, what);
    };
    world.leave(&["p00", "p01", "p02", "p03", "p04", "p05"]);
    // Commands of which hundreds may be in a step move none of it.
    let begun = everywhere(&world);
    world.apply(Op::AcceptRows(AcceptRows::default()));
    assert_eq!(everywhere(&world), begun);
    in_pieces(&mut world, &mut restarted, "a loss");
    assert_eq!(everywhere(&world), everywhere(&fleet(6..9)));
    // More come while those are placed.
    for some in [9..14, 14..60, 60..63] {
        let hellos = some.map(|n| ProberHello {
            name: format!("p{n:02}"),
            labels: [("zone".to_owned(), ["a", "b", "c"][n % 3].to_owned())].into(),
            ..Default::default()
        });
        let joined = hellos.map(|hello| ProberJoined { hello: Some(hello) }).collect();
        world.apply(Op::FleetChange(FleetChange { joined, ..FleetChange::default() }));
    }
    in_pieces(&mut world, &mut restarted, "newcomers");
    assert_eq!(everywhere(&world), everywhere(&fleet(6..63)));
    assert!(world.state.rows().all(|(table, ..)| table != 72), "nothing is left to do");

    // Nobody left or came, and yet every check is another one's too.
    world.put(vec![probe_with("many", 60 * S, Placement { count: 5, ..Placement::default() }, &targets)]);
    in_pieces(&mut world, &mut restarted, "a larger count");
    assert!(everywhere(&world).values().all(|runners| runners.len() == 5));
    // One that comes is compared, by a replica that has the numbers as by one that has none.
    reload(&world.state, &mut restarted);
    let hello = ProberHello { name: "p63".to_owned(), labels: [("zone".to_owned(), "a".to_owned())].into(), ..ProberHello::default() };
    world.apply(Op::FleetChange(FleetChange { joined: vec![ProberJoined { hello: Some(hello) }], ..FleetChange::default() }));
    let joined = world.log.last().expect("the hello");
    apply(&mut restarted, world.index, joined);
    in_pieces_from(&mut world, &mut restarted, "one more");
    assert!(everywhere(&world).values().any(|runners| runners.contains(&"p63".to_owned())));

    // Many leave and are back, with a wait, before the rest of their checks was looked at.
    world.leave(&["p20", "p21", "p22", "p23", "p24", "p25", "p26", "p27", "p28", "p29"]);
    for n in 20..30 {
        world.join(&format!("p{n}"), ["a", "b", "c"][n % 3]);
    }
    in_pieces(&mut world, &mut restarted, "a flap");
    let flapped = |name: &String| ("p20"..="p29").contains(&name.as_str());
    assert!(everywhere(&world).values().all(|runners| runners.len() == 5 && !runners.iter().any(flapped)), "they must stay first");
}
