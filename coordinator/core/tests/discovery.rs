//! Discovered targets: a failure changes nothing, a much smaller set waits, who comes back keeps its account.

mod common;

use std::collections::BTreeSet;

use common::*;
use probity_core::discovery::{self, SHRINK_PERCENT};
use probity_core::{account, assign, checks};
use probity_proto::v1::command::Op;
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;
use proptest::prelude::*;

fn discovering(name: &str, max: u32) -> Resource {
    let mut resource = probe_with(name, S, Placement { count: 1, ..Placement::default() }, &[]);
    let Some(Spec::Probe(spec)) = &mut resource.spec else { unreachable!("a probe") };
    spec.discovery = Some(Discovery { max, plain_labels: true, key: "$(target.address)".to_owned(), refresh_us: 60_000_000, ..Discovery::default() });
    spec.verdict = Some(VerdictRule { quorum: 1, down_after: 1, recover_after: 1 });
    resource
}

fn target(n: usize) -> Target {
    Target { key: format!("t{n:03}"), address: format!("10.0.0.1:{}", n + 1), ..Target::default() }
}

fn world() -> World {
    let mut world = World::new();
    for (name, zone) in [("p0", "a"), ("p1", "b")] {
        world.join(name, zone);
    }
    world.put(vec![discovering("tills", 100)]);
    world
}

fn told(world: &mut World, targets: Vec<Target>, error: &str) -> command_result::Result {
    let generation = world.state.resources.get("Probe/default/tills").map_or(0, |r| r.generation);
    let op = DiscoverTargets { namespace: "default".to_owned(), probe: "tills".to_owned(), generation, targets, error: error.to_owned(), note: String::new() };
    world.apply(Op::DiscoverTargets(op))
}

fn found(world: &mut World, numbers: impl IntoIterator<Item = usize>) -> command_result::Result {
    let numbers: BTreeSet<usize> = numbers.into_iter().collect();
    told(world, numbers.into_iter().map(target).collect(), "")
}

fn accept(world: &mut World, revision: u64) -> command_result::Result {
    world.apply(Op::AcceptTargets(AcceptTargets { namespace: "default".to_owned(), probe: "tills".to_owned(), revision }))
}

fn checked(world: &World) -> Vec<String> {
    checks::of_probe(&world.state, "default", "tills")
}

fn record(world: &World) -> DiscoveryRecord {
    discovery::of_probe(&world.state, "default", "tills").expect("discovered").clone()
}

fn refusal(result: command_result::Result) -> RefusalCode {
    match result {
        command_result::Result::Refused(refused) => refused.code(),
        command_result::Result::Applied(_) => panic!("it was applied"),
    }
}

fn alert(world: &World) -> Option<&EpisodeRecord> {
    let alert = world.state.alerts.get("default/targets:tills/held")?;
    world.state.episodes.get(&alert.episode)
}

#[test]
fn a_failed_or_empty_discovery_keeps_the_old_set_and_says_so() {
    let mut world = world();
    found(&mut world, 0..10);
    assert_eq!(checked(&world).len(), 10);
    told(&mut world, vec![], "the server answered 500");
    assert_eq!((checked(&world).len(), record(&world).error.as_str()), (10, "the server answered 500"));
    let since = record(&world).failing_since_us;
    world.pass(60 * S);
    told(&mut world, vec![], "");
    assert_eq!((checked(&world).len(), record(&world).error.as_str()), (10, "nothing was found"));
    assert_eq!(record(&world).failing_since_us, since, "it has failed since then");
    found(&mut world, 0..11);
    assert_eq!((checked(&world).len(), record(&world).failing_since_us), (11, 0));
    let events: Vec<String> = world.state.events.iter().filter(|e| e.kind == "discovery").map(|e| e.message.clone()).collect();
    assert_eq!(
        events,
        [
            "10 targets: 10 came, 0 went, 0 changed",
            "discovery fails, 10 targets are kept: the server answered 500",
            "discovery works again: 11 targets",
            "11 targets: 1 came, 0 went, 0 changed",
        ]
    );
}

#[test]
fn a_set_that_shrinks_too_much_is_held_until_it_is_accepted() {
    let mut world = world();
    let route = RouteSpec { r#match: [("alertname".to_owned(), "ProbityTargetsHeld".to_owned())].into(), receivers: vec!["oncall".to_owned()] };
    let receiver = ReceiverSpec {
        receiver: Some(receiver_spec::Receiver::Webhook(WebhookReceiver { url: "http://pager.test/".to_owned(), ..WebhookReceiver::default() })),
    };
    world.put(vec![resource("Receiver", "oncall", Spec::Receiver(receiver)), resource("Route", "all", Spec::Route(route))]);
    found(&mut world, 0..10);
    // 30 % is not more than 30 %.
    found(&mut world, 0..7);
    assert_eq!((checked(&world).len(), alert(&world)), (7, None));
    found(&mut world, 0..4);
    assert_eq!((checked(&world).len(), record(&world).held.len(), record(&world).held_revision), (7, 4, 1));
    let episode = alert(&world).expect("an alert").clone();
    assert_eq!(episode.labels["probe"], "tills");
    assert_eq!(world.state.outbox.len(), 1, "and somebody is told");
    // The same again is no news; another set is.
    let index = record(&world);
    found(&mut world, 0..4);
    assert_eq!(record(&world), index);
    found(&mut world, 0..3);
    assert_eq!(refusal(accept(&mut world, 1)), RefusalCode::Conflict, "who accepts has seen another set");
    let audited = world.state.audit.len();
    accept(&mut world, 2);
    assert_eq!((checked(&world).len(), record(&world).held.len(), alert(&world)), (3, 0, None));
    assert_eq!(world.state.audit.len(), audited + 1);
    let over = world.state.episodes.get(&episode.id).expect("kept");
    assert!(over.resolved_at_us > 0 && over.annotations["summary"].starts_with("held of tills is over"), "{over:?}");
    assert_eq!(refusal(accept(&mut world, 2)), RefusalCode::NotFound);
}

#[test]
fn a_set_that_grows_back_is_not_held_any_more() {
    let mut world = world();
    found(&mut world, 0..10);
    found(&mut world, 0..2);
    assert!(alert(&world).is_some());
    // A failure says nothing of the set that is held.
    told(&mut world, vec![], "no answer");
    assert!(alert(&world).is_some());
    found(&mut world, 1..9);
    assert_eq!((checked(&world).len(), alert(&world), record(&world).held_since_us), (8, None, 0));
}

#[test]
fn a_target_that_comes_back_keeps_its_account() {
    let mut world = world();
    found(&mut world, 0..10);
    world.pass(5 * S);
    let check = "default/tills/t003".to_owned();
    let prober = world.runners(&check)[0].clone();
    world.report(&check, &prober, Reason::Good);
    let before = account::of_check(&world.state, &check, world.state.now());
    assert!(before.good >= 4);
    let whole = world.account().planned;
    found(&mut world, (0..10).filter(|n| *n != 3));
    assert!(world.state.checks.get(&check).is_none());
    assert!(account::of_probe(&world.state, "default", "tills", world.state.now()).good >= before.good, "the probe's account goes on");
    assert!(world.account().planned >= whole);
    // What was due before it went is still taken.
    world.pass(3_600 * S);
    found(&mut world, 0..10);
    world.pass(5 * S);
    let prober = world.runners(&check)[0].clone();
    world.report(&check, &prober, Reason::Good);
    let after = account::of_check(&world.state, &check, world.state.now());
    assert!(after.good >= before.good + 4 && after.planned < before.planned + 20, "{before:?} {after:?}");
    let record = world.state.checks.get(&check).expect("a check");
    assert_eq!((record.generation, record.created_at_us), (2, world.state.checks.get("default/tills/t001").expect("a check").created_at_us));
    // With the probe everything goes; the cluster's account stays whole.
    let good = world.account().good;
    world.delete("Probe", "tills");
    assert_eq!((world.state.retired_checks.len(), world.state.discoveries.len(), world.account().good), (0, 0, good));
}

#[test]
fn what_was_due_before_a_target_went_counts_for_the_objective() {
    let mut world = world();
    world.put(vec![slo("tills", "tills", 0)]);
    found(&mut world, 0..10);
    world.pass(5 * S);
    let check = "default/tills/t003".to_owned();
    let prober = world.runners(&check)[0].clone();
    let open = world.open(&check, &prober).expect("assigned");
    found(&mut world, (0..10).filter(|n| *n != 3));
    world.pass(2 * S);
    let ended = assign::of_check(&world.state, &check).find(|a| a.id == open.id).expect("not reported yet").clone();
    let due = (assign::last_end_n(&ended) - ended.next_n) as u32;
    assert!(due >= 4);
    let row = world.next_row(&prober, open.id, ended.next_n, &[(due, Reason::ConnectRefused)]);
    world.rows(vec![row]);
    world.pass(2 * S);
    let account = account::of_probe(&world.state, "default", "tills", world.state.now());
    assert_eq!(account.bad, u64::from(due));
    for series in &world.state.ledgers.get("default/tills").expect("a ledger").series {
        let bad: u64 = series.buckets.iter().map(|b| b.bad).sum();
        assert_eq!(bad, account.bad, "in buckets of {} us", series.width_us);
    }
}

#[test]
fn what_cannot_be_a_set_is_refused() {
    let mut world = world();
    assert_eq!(refusal(found(&mut world, 0..101)), RefusalCode::Invalid);
    assert_eq!(refusal(told(&mut world, vec![target(2), target(1)], "")), RefusalCode::Invalid);
    assert_eq!(refusal(told(&mut world, vec![target(1), target(1)], "")), RefusalCode::Invalid);
    let op = DiscoverTargets { namespace: "default".to_owned(), probe: "tills".to_owned(), generation: 7, targets: vec![target(1)], ..Default::default() };
    assert_eq!(refusal(world.apply(Op::DiscoverTargets(op.clone()))), RefusalCode::Conflict);
    world.put(vec![probe("tills", S)]);
    assert_eq!(refusal(world.apply(Op::DiscoverTargets(op))), RefusalCode::NotFound);
    assert!(world.state.discoveries.is_empty(), "a probe with a target of its own discovers nothing");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever is found, in whatever order, with failures, acceptances and probers that come and go in between: what is checked is a set
    /// that was found, it never shrinks by more than the bound unless somebody accepted that, every slot is accounted for (the world
    /// looks after each command), and an alert fires exactly while a set is held.
    #[test]
    fn no_sequence_loses_targets_silently(steps in proptest::collection::vec((0..7u8, proptest::collection::btree_set(0..40usize, 0..30)), 1..30)) {
        let mut world = world();
        for (what, numbers) in steps {
            let before = checked(&world);
            match what {
                0 => { told(&mut world, vec![], "no answer"); }
                1 => {
                    let revision = discovery::of_probe(&world.state, "default", "tills").map_or(0, |r| r.held_revision);
                    accept(&mut world, revision);
                }
                2 => {
                    world.pass(2 * S);
                    for check in checked(&world) {
                        for prober in world.runners(&check) {
                            world.report(&check, &prober, Reason::Good);
                        }
                    }
                }
                3 => { world.leave(&["p1"]); }
                4 => world.join("p1", "b"),
                _ => { found(&mut world, numbers.iter().copied()); }
            }
            let after = checked(&world);
            if what != 1 {
                prop_assert!(after.len() * 100 >= before.len() * (100 - SHRINK_PERCENT), "{} -> {}", before.len(), after.len());
            }
            if what >= 5 && !numbers.is_empty() && !discovery::shrinks_too_much(before.len(), numbers.len()) {
                let wanted: Vec<String> = numbers.iter().map(|n| format!("default/tills/t{n:03}")).collect();
                prop_assert_eq!(&after, &wanted);
            }
            let known = discovery::of_probe(&world.state, "default", "tills").cloned().unwrap_or_default();
            let keys: Vec<String> = known.targets.iter().map(|t| format!("default/tills/{}", t.key)).collect();
            prop_assert_eq!(after, keys);
            prop_assert_eq!(alert(&world).is_some(), known.held_since_us != 0);
        }
    }
}
