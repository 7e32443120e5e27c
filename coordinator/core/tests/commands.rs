//! Commands that are refused, retried, or change resources.

mod common;

use common::*;
use probity_core::State;
use probity_proto::v1::command::Op;
use probity_proto::v1::command_result::Result::{Applied, Refused};
use probity_proto::v1::*;

fn code(result: &command_result::Result) -> RefusalCode {
    match result {
        Refused(refused) => refused.code(),
        Applied(_) => RefusalCode::Unspecified,
    }
}

fn actions(result: &command_result::Result) -> Vec<(String, u64)> {
    match result {
        Applied(applied) => applied.changes.iter().map(|c| (c.action.clone(), c.generation)).collect(),
        Refused(refused) => panic!("{refused:?}"),
    }
}

#[test]
fn a_command_of_a_newer_version_leaves_no_trace() {
    let mut world = World::new();
    world.state.take_changes();
    let hash = world.state.hash();
    world.time_us += 5 * S;
    let newer = Command { version: 2, request_id: "r1".to_owned(), op: Some(Op::Tick(Tick {})), ..Command::default() };
    assert_eq!(code(&world.command(newer.clone())), RefusalCode::Version);
    assert_eq!(world.state.take_changes(), []);
    assert_eq!(world.state.hash(), hash);
    world.apply(Op::SetClusterVersion(SetClusterVersion { version: 2 }));
    assert_eq!(code(&world.command(newer)), RefusalCode::Unspecified);
    assert_eq!(code(&world.apply(Op::SetClusterVersion(SetClusterVersion { version: 1 }))), RefusalCode::Version);
}

#[test]
fn before_it_is_formed_a_cluster_takes_nothing_in() {
    let mut state = State::new();
    let halt = Command { version: 1, op: Some(Op::SetHalt(SetHalt::default())), ..Command::default() };
    let result = probity_core::apply(&mut state, 1, &halt).result.expect("an answer");
    assert_eq!(code(&result), RefusalCode::NotInitialized);
    let mut world = World::new();
    assert_eq!(code(&world.apply(Op::InitCluster(InitCluster { cluster_id: "other".to_owned(), ..InitCluster::default() }))), RefusalCode::AlreadyExists);
}

#[test]
fn a_retry_is_answered_and_not_applied_for_a_quarter_of_an_hour() {
    let mut world = World::new();
    let put = Op::ApplyResources(ApplyResources { put: vec![probe("web", S)], ..ApplyResources::default() });
    let command = Command { version: 1, request_id: "r1".to_owned(), actor: "ops".to_owned(), op: Some(put), ..Command::default() };
    let first = world.command(command.clone());
    world.pass(15 * 60 * S);
    assert_eq!(world.command(command.clone()), first);
    assert_eq!(world.state.audit.len(), 2, "the cluster's making, and the probe's");
    world.pass(S);
    assert_eq!(actions(&world.command(command)), [("unchanged".to_owned(), 1)], "applied anew");
    world.pass(16 * 60 * S);
    assert!(world.state.requests.is_empty());
}

#[test]
fn a_change_that_others_came_in_between_is_judged_anew() {
    let mut world = World::new();
    let slo_first = ApplyResources { base_revision: 7, put: vec![slo("web", "web", 0)], ..ApplyResources::default() };
    let command = Command { version: 1, request_id: "r1".to_owned(), actor: "ops".to_owned(), op: Some(Op::ApplyResources(slo_first)), ..Command::default() };
    assert_eq!(code(&world.command(command.clone())), RefusalCode::Conflict, "its probe is not there");
    world.put(vec![probe("web", S)]);
    assert_eq!(actions(&world.command(command)), [("created".to_owned(), 1)], "asked for again under the same id");
}

#[test]
fn resources_change_as_a_whole_and_against_what_was_seen() {
    let mut world = World::new();
    let result = world.put(vec![probe("web", S), slo("web", "web", 0)]);
    assert_eq!(actions(&result), [("created".to_owned(), 1), ("created".to_owned(), 1)]);
    let revision = world.state.meta().resource_revision;
    assert_eq!(actions(&world.put(vec![probe("web", S)])), [("unchanged".to_owned(), 1)]);
    assert_eq!(world.state.meta().resource_revision, revision);
    let mut labelled = probe("web", S);
    labelled.labels.insert("team".to_owned(), "shop".to_owned());
    assert_eq!(actions(&world.put(vec![labelled])), [("configured".to_owned(), 1)], "no new generation");
    assert_eq!(actions(&world.put(vec![probe("web", 2 * S)])), [("configured".to_owned(), 2)]);
    let late = ApplyResources { base_revision: revision, put: vec![slo("late", "web", 0)], ..ApplyResources::default() };
    assert_eq!(actions(&world.apply(Op::ApplyResources(late))), [("created".to_owned(), 1)], "it stands beside what came in between");
    let broken = ApplyResources { base_revision: revision, put: vec![slo("broken", "gone", 0)], ..ApplyResources::default() };
    assert_eq!(code(&world.apply(Op::ApplyResources(broken))), RefusalCode::Conflict, "what it refers to is not there");
    let key = |kind: &str, name: &str| ResourceKey { kind: kind.to_owned(), namespace: "default".to_owned(), name: name.to_owned() };
    let needed = ApplyResources { base_revision: revision, delete: vec![key("Probe", "web")], ..ApplyResources::default() };
    assert_eq!(code(&world.apply(Op::ApplyResources(needed))), RefusalCode::Conflict, "an objective refers to it");
    let free = ApplyResources { base_revision: revision, delete: vec![key("SLO", "late")], ..ApplyResources::default() };
    assert_eq!(actions(&world.apply(Op::ApplyResources(free))), [("deleted".to_owned(), 1)]);
    world.put(vec![probe("web", S)]);
    world.put(vec![probe("web", 2 * S)]);
    let last = world.state.audit.iter().next_back().expect("an audit record").clone();
    assert_eq!((last.actor.as_str(), last.action.as_str(), last.subject.as_str()), ("ops", "configured", "Probe/web"));
    assert!(last.before_json.contains("1000000") && last.after_json.contains("2000000"));
}

#[test]
fn what_is_run_or_when_makes_a_generation_and_nothing_else_does() {
    let mut world = World::new();
    world.join("p0", "a");
    let generation = |world: &World| world.state.checks.get("default/web").expect("a check").generation;
    world.put(vec![probe("web", S)]);
    world.put(vec![slo("plain", "web", 0)]);
    let mut quorum = probe("web", S);
    let Some(resource::Spec::Probe(spec)) = &mut quorum.spec else { unreachable!("made above") };
    spec.verdict = Some(VerdictRule { quorum: 1, down_after: 3, recover_after: 1 });
    world.put(vec![quorum]);
    assert_eq!(generation(&world), 1);
    world.pass(5 * S);
    let before = world.open("default/web", "p0").expect("runs");
    world.put(vec![slo("fast", "web", 300_000), slo("faster", "web", 100_000)]);
    assert_eq!(generation(&world), 2);
    let after = world.open("default/web", "p0").expect("runs");
    assert_eq!(after.thresholds_us, [100_000, 300_000]);
    assert_ne!(before.id, after.id);
    world.put(vec![probe("web", 2 * S)]);
    assert_eq!(generation(&world), 3);
    world.delete("SLO", "fast");
    assert_eq!(generation(&world), 4);
    world.report("default/web", "p0", Reason::Good);
}

#[test]
fn a_halt_ends_every_fault_and_lets_none_begin() {
    let mut world = World::new();
    world.join("p0", "a");
    let fault = PlannedFault { fault_id: "f".to_owned(), prober: "p0".to_owned(), spec: Some(FaultSpec::default()) };
    let step = PlannedStep { hold_us: 60 * S as u64, faults: vec![fault], ..PlannedStep::default() };
    let plan = GameDayPlan {
        namespace: "default".to_owned(),
        scenario: "cut".to_owned(),
        max_duration_us: 600 * S as u64,
        steps: vec![step],
        ..GameDayPlan::default()
    };
    let start = Op::StartGameDay(StartGameDay { plan: Some(plan), trace_id: String::new() });
    assert_eq!(code(&world.apply(start.clone())), RefusalCode::Unspecified);
    assert!(world.state.faults.iter().any(|f| f.wanted));
    let revision = world.state.meta().desired_revision;
    world.apply(Op::SetHalt(SetHalt { reason: "stop".to_owned() }));
    assert!(world.state.faults.iter().all(|f| !f.wanted));
    assert!(world.state.meta().desired_revision > revision);
    assert_eq!(code(&world.apply(start.clone())), RefusalCode::Halted);
    world.apply(Op::LiftHalt(LiftHalt {}));
    assert_eq!(code(&world.apply(start)), RefusalCode::Conflict, "the first one still waits for its undo");
}

#[test]
fn members_keep_their_names_and_never_come_back_under_an_old_id() {
    let mut world = World::new();
    let member = |id, name: &str| MemberRecord { id, name: name.to_owned(), address: format!("{name}:1"), max_command_version: 1, ..MemberRecord::default() };
    let add = |member| Op::AddMember(AddMember { member: Some(member) });
    assert_eq!(code(&world.apply(add(member(7, "c7")))), RefusalCode::Unspecified);
    assert_eq!(code(&world.apply(add(member(8, "c7")))), RefusalCode::AlreadyExists, "the name is taken");
    let replacement = MemberRecord { replaces: 7, ..member(8, "c7") };
    assert_eq!(code(&world.apply(add(replacement.clone()))), RefusalCode::Unspecified);
    // What it says of itself does not undo what the cluster says of it.
    world.apply(Op::PutMember(PutMember { member: Some(MemberRecord { software_version: "2".to_owned(), ..member(8, "c7") }) }));
    world.apply(Op::PromoteMember(PromoteMember { id: 8 }));
    // That it cannot issue is told once, and so is its end.
    for cannot_issue in ["cannot issue: why", "cannot issue: why", ""] {
        let said = MemberRecord { software_version: "2".to_owned(), cannot_issue: cannot_issue.to_owned(), ..member(8, "c7") };
        assert_eq!(code(&world.apply(Op::PutMember(PutMember { member: Some(said) }))), RefusalCode::Unspecified);
    }
    let told = world.state.events.iter().filter(|e| e.subject == "Member/c7").map(|e| e.message.as_str()).filter(|t| t.contains("issue"));
    assert_eq!(told.collect::<Vec<_>>(), ["cannot issue: why", "can issue certificates again"]);
    let names: Vec<(u64, &str)> = world.state.members.iter().filter(|m| m.name == "c7").map(|m| (m.id, m.software_version.as_str())).collect();
    assert_eq!(names, [(8, "2")]);
    assert_eq!(code(&world.apply(add(member(7, "again")))), RefusalCode::AlreadyExists, "a retired id");
    assert_eq!(code(&world.apply(Op::PutMember(PutMember { member: Some(member(7, "again")) }))), RefusalCode::NotFound);
    assert_eq!(code(&world.apply(Op::RemoveMember(RemoveMember { id: 8 }))), RefusalCode::Unspecified);
    assert_eq!(code(&world.apply(Op::RemoveMember(RemoveMember { id: 8 }))), RefusalCode::NotFound);
    world.apply(Op::SetClusterVersion(SetClusterVersion { version: 2 }));
    assert_eq!(code(&world.apply(add(member(9, "old")))), RefusalCode::Version);
}
