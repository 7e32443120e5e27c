//! What probers are told: changes since the revision that they follow, which add up to the whole set.

mod common;

use std::collections::BTreeMap;

use common::*;
use probity_core::State;
use probity_core::desired::{CHANGES_KEPT, Touched, desired_set, desired_since, is_news, touched_since};
use probity_proto::v1::*;

/// A prober that follows what it is told, and nothing else.
#[derive(Default)]
struct Follower {
    revision: u64,
    assignments: BTreeMap<u64, AssignmentSpec>,
    whole: usize,
}

impl Follower {
    fn follow(&mut self, state: &State, prober: &str) {
        if !is_news(state, prober, self.revision) {
            return;
        }
        let set = desired_since(state, prober, self.revision, 0);
        if set.base_revision == 0 {
            self.whole += 1;
            self.assignments.clear();
        } else {
            assert_eq!(set.base_revision, self.revision);
        }
        self.assignments.extend(set.assignments.into_iter().map(|a| (a.id, a)));
        set.removed.iter().for_each(|id| drop(self.assignments.remove(id)));
        self.revision = set.revision;
    }

    fn has_all(&self, state: &State, prober: &str) {
        let (wanted, _) = desired_set(state, prober, 0);
        // How far an assignment is the prober knows best.
        let plain = |a: &AssignmentSpec| AssignmentSpec { next_n: 0, ..a.clone() };
        assert_eq!(self.assignments.values().map(plain).collect::<Vec<_>>(), wanted.iter().map(plain).collect::<Vec<_>>());
    }
}

fn fleet(world: &mut World) {
    for (name, zone) in [("p0", "a"), ("p1", "b"), ("p2", "c"), ("p3", "a")] {
        world.join(name, zone);
    }
}

#[test]
fn changes_add_up_to_the_whole_set() {
    let mut world = World::new();
    fleet(&mut world);
    let mut follower = Follower::default();
    // Looks at every step, and one that looks now and then.
    let mut rarely = Follower::default();
    let mut step = |world: &mut World, n: usize| {
        follower.follow(&world.state, "p1");
        follower.has_all(&world.state, "p1");
        if n.is_multiple_of(3) {
            rarely.follow(&world.state, "p1");
            rarely.has_all(&world.state, "p1");
        }
        (follower.whole, rarely.whole)
    };
    world.put((0..20).map(|i| probe(&format!("c{i}"), S)).collect());
    step(&mut world, 0);
    world.pass(5 * S);
    world.put(vec![probe("c3", 2 * S), probe("new", S)]);
    step(&mut world, 1);
    world.leave(&["p0"]);
    step(&mut world, 2);
    world.delete("Probe", "c4");
    step(&mut world, 3);
    world.join("p0", "a");
    world.pass(31 * S);
    step(&mut world, 4);
    // Ended ones go once they are accounted for.
    for check in ["default/c3", "default/c5"] {
        world.report(check, "p1", Reason::Good);
    }
    world.leave(&["p2", "p3"]);
    step(&mut world, 5);
    // What nobody reports is given up, all at once.
    world.time_us += 26 * HOUR;
    world.apply(command::Op::Tick(Tick {}));
    assert_eq!(step(&mut world, 6), (1, 1), "whole at the start, and never again");
}

#[test]
fn who_is_not_concerned_is_not_woken() {
    let mut world = World::new();
    fleet(&mut world);
    let only = |zone: &str| Placement { selector: Some(Selector { match_labels: [("zone".to_owned(), zone.to_owned())].into() }), ..Placement::default() };
    world.put(vec![probe_with("b", S, only("b"), &[("", "127.0.0.1:1")])]);
    let before = world.state.meta().desired_revision;
    world.put(vec![probe_with("c", S, only("c"), &[("", "127.0.0.1:1")])]);
    assert_eq!(touched_since(&world.state, before), Touched::These(vec!["p2".to_owned()]));
    assert!(is_news(&world.state, "p2", before) && !is_news(&world.state, "p1", before));
    // Somebody says hello again: nothing changed.
    let before = world.state.meta().desired_revision;
    world.join("p1", "b");
    assert_eq!(world.state.meta().desired_revision, before);
    world.apply(command::Op::LeaderStarted(LeaderStarted { member: 2, term: 2 }));
    assert_eq!(touched_since(&world.state, before), Touched::Everybody);
    let told = desired_since(&world.state, "p1", before, 0);
    assert_eq!((told.base_revision, told.assignments.len(), told.fence), (before, 0, world.index), "the new fence, and no assignment again");
}

#[test]
fn what_is_not_known_any_more_is_told_whole() {
    let mut world = World::new();
    fleet(&mut world);
    world.put(vec![probe("web", S)]);
    let first = world.state.meta().desired_revision;
    for future in [first + 1, u64::MAX] {
        assert_eq!(desired_since(&world.state, "p1", future, 0).base_revision, 0, "a revision that this cluster never had");
    }
    // A member that restarted knows the state, and not how it came about.
    let mut restarted = State::new();
    for (table, key, value) in world.state.rows() {
        restarted.load(table, &key, &value).expect("a row");
    }
    let mut follower = Follower { revision: first - 1, ..Follower::default() };
    follower.follow(&restarted, "p1");
    follower.has_all(&restarted, "p1");
    assert_eq!(desired_since(&restarted, "p1", first - 1, 0).base_revision, 0);
    assert!(!is_news(&restarted, "p1", first), "the same revision means the same there");
    // More changes than are kept: each ends one assignment and begins another.
    let targets: Vec<(String, &str)> = (0..CHANGES_KEPT / 2 + 1).map(|i| (format!("t{i}"), "127.0.0.1:1")).collect();
    let targets: Vec<(&str, &str)> = targets.iter().map(|(key, address)| (key.as_str(), *address)).collect();
    for interval_us in [S, 2 * S] {
        let only = Selector { match_labels: [("zone".to_owned(), "b".to_owned())].into() };
        world.put(vec![probe_with("many", interval_us, Placement { selector: Some(only), ..Placement::default() }, &targets)]);
    }
    assert_eq!(desired_since(&world.state, "p1", first, 0).base_revision, 0);
}
