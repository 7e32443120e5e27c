//! Who is sick, since when, and what becomes of its runs and of those who wait for an alert.

mod common;

use common::*;
use probity_core::account;
use probity_core::verdict::{Finding, findings};
use probity_proto::v1::command::Op;
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;

const SICK: u32 = Reason::ProberSick as u32;

/// Four checks on three probers of three zones, all up, with an SLO on the first.
fn watched(zones: &[(&str, &str)]) -> World {
    let mut world = World::new();
    for (name, zone) in zones {
        world.join(name, zone);
    }
    let all = Placement { all: true, ..Placement::default() };
    world.put(CHECKS.iter().map(|c| probe_with(c, S, all.clone(), &[("", "127.0.0.1:1")])).collect());
    world.put(vec![slo("web-slo", "web", 0)]);
    world.pass(S);
    let names: Vec<&str> = zones.iter().map(|(name, _)| *name).collect();
    seconds(&mut world, 4, &names, Reason::Good, &CHECKS);
    assert!(CHECKS.iter().all(|c| world.verdict(&format!("default/{c}")) == Verdict::Up));
    world
}

const CHECKS: [&str; 4] = ["web", "db", "mail", "dns"];
const THREE: [(&str, &str); 3] = [("p0", "a"), ("p1", "b"), ("p2", "c")];

fn report(world: &mut World, probers: &[&str], reason: Reason, checks: &[&str]) {
    for prober in probers {
        for check in checks {
            world.report(&format!("default/{check}"), prober, reason);
        }
    }
}

fn seconds(world: &mut World, seconds: usize, probers: &[&str], reason: Reason, checks: &[&str]) {
    for _ in 0..seconds {
        world.pass(S);
        report(world, probers, reason, checks);
    }
}

fn is_sick(world: &World, prober: &str) -> bool {
    world.state.probers.get(prober).expect("joined").sick
}

#[test]
fn one_whose_checks_are_fine_elsewhere_is_sick_from_its_first_failure() {
    let mut world = watched(&THREE);
    let before = world.account();
    for _ in 0..3 {
        world.pass(S);
        report(&mut world, &["p0"], Reason::ConnectTimeout, &CHECKS);
        report(&mut world, &["p1", "p2"], Reason::Good, &CHECKS);
    }
    assert!(is_sick(&world, "p0") && !is_sick(&world, "p1"));
    let account = world.account();
    assert_eq!(account.bad, before.bad, "what was counted before anybody knew is missed too");
    assert_eq!(account.missed.get(&SICK), Some(&12));
    let ledger = world.state.ledgers.get("default/web-slo").expect("a ledger");
    assert!(ledger.series.iter().flat_map(|s| &s.buckets).all(|b| b.bad == 0), "{ledger:?}");
    assert_eq!(world.verdict("default/web"), Verdict::Up);
    // It is heard again when its checks are fine here too; what it found meanwhile stays missed.
    seconds(&mut world, 4, &["p0", "p1", "p2"], Reason::Good, &CHECKS);
    assert!(!is_sick(&world, "p0"));
    seconds(&mut world, 1, &["p0", "p1", "p2"], Reason::ConnectRefused, &["web"]);
    assert_eq!(account::of_check(&world.state, "default/web", world.time_us).bad, 3, "believed again");
}

#[test]
fn a_path_is_no_sickness() {
    let mut world = watched(&THREE);
    for _ in 0..10 {
        world.pass(S);
        report(&mut world, &["p0"], Reason::ConnectTimeout, &["web", "db"]);
        report(&mut world, &["p0"], Reason::Good, &["mail", "dns"]);
        report(&mut world, &["p1", "p2"], Reason::Good, &CHECKS);
    }
    assert!(!is_sick(&world, "p0"), "half of its checks");
    assert_eq!(account::of_check(&world.state, "default/web", world.time_us).bad, 10);
}

#[test]
fn what_fails_everywhere_makes_nobody_sick_until_it_is_fine_elsewhere() {
    let mut world = watched(&THREE);
    seconds(&mut world, 5, &["p0", "p1", "p2"], Reason::ConnectRefused, &CHECKS);
    assert!(["p0", "p1", "p2"].iter().all(|p| !is_sick(&world, p)));
    assert_eq!(world.verdict("default/web"), Verdict::Down);
    for _ in 0..4 {
        world.pass(S);
        report(&mut world, &["p0"], Reason::ConnectRefused, &CHECKS);
        report(&mut world, &["p1", "p2"], Reason::Good, &CHECKS);
    }
    assert!(is_sick(&world, "p0"), "it still fails what the others find well");
}

#[test]
fn two_probers_cannot_tell_who_is_sick() {
    let mut world = watched(&THREE[..2]);
    for _ in 0..5 {
        world.pass(S);
        report(&mut world, &["p0"], Reason::ConnectTimeout, &CHECKS);
        report(&mut world, &["p1"], Reason::Good, &CHECKS);
    }
    assert!(!is_sick(&world, "p0") && !is_sick(&world, "p1"));
}

#[test]
fn a_zone_that_fails_as_a_whole_is_a_broken_path() {
    let mut world = watched(&[("p0", "a"), ("p1", "a"), ("p2", "b"), ("p3", "b"), ("p4", "c")]);
    for _ in 0..5 {
        world.pass(S);
        report(&mut world, &["p0", "p1"], Reason::ConnectTimeout, &CHECKS);
        report(&mut world, &["p2", "p3", "p4"], Reason::Good, &CHECKS);
    }
    assert!(!is_sick(&world, "p0") && !is_sick(&world, "p1"));
    assert!(world.account().bad > 0, "users of that zone feel it");
}

#[test]
fn a_self_check_counts_from_its_onset_and_no_further_back_than_the_last_one() {
    let mut world = watched(&THREE);
    seconds(&mut world, 3, &["p0"], Reason::ConnectTimeout, &["web"]);
    let onset = world.time_us - 2 * S;
    world.sick_since("p0", true, onset);
    let web = |world: &World| account::of_check(&world.state, "default/web", world.time_us);
    assert_eq!((web(&world).bad, web(&world).missed.get(&SICK)), (1, Some(&2)));
    world.pass(S);
    world.sick("p0", false);
    let well = world.time_us;
    report(&mut world, &["p0"], Reason::ConnectTimeout, &["web"]);
    assert_eq!(web(&world).missed.get(&SICK), Some(&3));
    world.pass(S);
    report(&mut world, &["p0"], Reason::ConnectTimeout, &["web"]);
    world.sick_since("p0", true, onset);
    assert_eq!(web(&world).missed.get(&SICK), Some(&4));
    assert_eq!(world.state.probers.get("p0").expect("joined").sick_since_us, well);
}

#[test]
fn the_sick_raise_their_own_alert() {
    let mut world = watched(&THREE);
    let pager = ReceiverSpec { receiver: Some(receiver_spec::Receiver::Webhook(WebhookReceiver::default())) };
    let route = RouteSpec { r#match: [("alertname".to_owned(), "ProbityProberSick".to_owned())].into(), receivers: vec!["ops".to_owned()] };
    world.put(vec![resource("Receiver", "ops", Spec::Receiver(pager)), resource("Route", "sick", Spec::Route(route))]);
    world.sick("p0", true);
    let episode = world.state.episodes.iter().next().expect("an episode").clone();
    assert_eq!(episode.labels["prober"], "p0");
    assert!(episode.annotations["summary"].contains("no default route"), "{episode:?}");
    let told = |world: &World| world.state.outbox.iter().map(|o| (o.receiver.clone(), o.resolved)).collect::<Vec<_>>();
    assert_eq!(told(&world), [("ops".to_owned(), false)]);
    // It is nobody's SLO, so no change of one ends it; neither does a restart of the leader.
    world.put(vec![slo("other", "db", 0)]);
    world.apply(Op::LeaderStarted(LeaderStarted { member: 2, term: 2 }));
    assert_eq!(told(&world), [("ops".to_owned(), false)]);
    world.sick("p0", false);
    assert_eq!(told(&world), [("ops".to_owned(), true)]);
    assert!(world.state.alerts.iter().all(|a| a.state() != AlertState::Firing));
    world.sick("p0", true);
    assert_eq!(world.state.episodes.len(), 2, "each sickness is an episode");
}

#[test]
fn down_a_broken_path_and_a_sick_prober_are_three_things() {
    let probers = [("p0", "a"), ("p1", "a"), ("p2", "b"), ("p3", "b"), ("p4", "c")];
    let mut world = watched(&probers);
    let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    assert_eq!(findings(&world.state, "default/web"), []);
    // From one zone, and one prober of another.
    for _ in 0..3 {
        world.pass(S);
        report(&mut world, &["p0", "p1"], Reason::ConnectTimeout, &["web"]);
        report(&mut world, &["p2", "p3", "p4"], Reason::Good, &["web"]);
    }
    // Two of five are a quorum here, so ask for three.
    let mut web = probe_with("web", S, Placement { all: true, ..Placement::default() }, &[("", "127.0.0.1:1")]);
    let Some(Spec::Probe(spec)) = &mut web.spec else { unreachable!("made above") };
    spec.verdict = Some(VerdictRule { quorum: 3, down_after: 2, recover_after: 2 });
    world.put(vec![web]);
    assert_eq!(findings(&world.state, "default/web"), [Finding::PathBroken { zones: names(&["a"]), probers: names(&["p0", "p1"]) }]);
    world.sick("p4", true);
    let sick = Finding::ProberSick { prober: "p4".to_owned(), reason: "its self-check fails: no default route".to_owned() };
    assert_eq!(findings(&world.state, "default/web")[1], sick);
    for _ in 0..3 {
        world.pass(S);
        report(&mut world, &["p0", "p1", "p2"], Reason::ConnectTimeout, &["web"]);
        report(&mut world, &["p3"], Reason::Good, &["web"]);
    }
    assert_eq!(findings(&world.state, "default/web"), [Finding::TargetDown { probers: names(&["p0", "p1", "p2"]) }, sick]);
}
