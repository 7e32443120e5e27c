//! The one way in: a command at an index of the log.

use probity_proto::v1::command::Op;
use probity_proto::v1::*;

use crate::state::State;
use crate::{access, account, audit, desired, discovery, events, fleet, gameday, members, pass, requests, resources, rows, sickness, slo};

/// The newest command set that this build understands. A cluster runs at the lowest of its members'.
pub const COMMAND_VERSION: u32 = 1;

/// Applies the command at `index` of the log. Never fails: a refusal is an answer like any other.
pub fn apply(state: &mut State, index: u64, command: &Command) -> CommandResult {
    // First of all, and without a trace: members that know the newer command set refuse it with the same words.
    if let Some(refused) = too_new(state, command) {
        return CommandResult { result: Some(command_result::Result::Refused(refused)) };
    }
    let before = state.now();
    (state.placed_now, state.pass_goes_on) = (0, matches!(command.op, Some(Op::Tick(_))));
    if command.time_us > before {
        state.meta_mut().time_us = command.time_us;
    }
    if let Some(answered) = requests::find(state, &command.request_id) {
        follow_up(state, before);
        return answered;
    }
    let result = match run(state, index, command) {
        Ok(applied) => command_result::Result::Applied(applied),
        Err(refused) => command_result::Result::Refused(refused),
    };
    let result = CommandResult { result: Some(result) };
    requests::remember(state, &command.request_id, &result);
    follow_up(state, before);
    result
}

fn too_new(state: &State, command: &Command) -> Option<Refused> {
    let (needs, runs) = (command.version, state.meta().version);
    let initialized = !state.meta().cluster_id.is_empty();
    (initialized && needs > runs).then(|| refused(RefusalCode::Version, format!("needs command version {needs}, the cluster runs {runs}")))
}

fn run(state: &mut State, index: u64, command: &Command) -> Result<Applied, Refused> {
    let Some(op) = &command.op else { return Err(refused(RefusalCode::Version, "a command that this version does not know")) };
    let mut applied = Applied { index, ..Applied::default() };
    let initialized = !state.meta().cluster_id.is_empty();
    let always = matches!(op, Op::InitCluster(_) | Op::LeaderStarted(_) | Op::PutMember(_) | Op::Tick(_));
    if !initialized && !always {
        return Err(refused(RefusalCode::NotInitialized, "the cluster is not initialised"));
    }
    match op {
        Op::InitCluster(op) => init(state, command, op)?,
        Op::LeaderStarted(op) => leader_started(state, index, op),
        Op::Tick(_) => {}
        Op::ApplyResources(op) => applied.changes = resources::apply(state, command, op)?,
        Op::FleetChange(op) => fleet::change(state, op),
        Op::AcceptRows(op) => rows::accept(state, &op.rows),
        Op::StartGameDay(op) => applied.name = start_game_day(state, index, command, op)?,
        Op::AbortGameDay(op) => {
            gameday::abort(state, op)?;
            audit::record_in(state, command, &op.namespace, "abort", &format!("GameDay/{}", op.name), "", &op.reason);
        }
        Op::FaultReports(op) => gameday::on_fault_reports(state, &sane(state, &op.reports)),
        Op::SetHalt(op) => halt(state, command, &op.reason),
        Op::LiftHalt(_) => lift_halt(state, command),
        Op::EffectsDone(op) => slo::outbox::on_effects_done(state, &op.done),
        Op::SetClusterVersion(op) => set_version(state, command, op.version)?,
        Op::PutMember(op) => members::put(state, command, op)?,
        Op::AddMember(op) => members::add(state, command, op)?,
        Op::PromoteMember(op) => members::promote(state, command, op.id)?,
        Op::RemoveMember(op) => members::remove(state, command, op.id)?,
        Op::RemoveProber(op) => {
            fleet::remove(state, &op.name)?;
            audit::record(state, command, "remove", &format!("Prober/{}", op.name), "", "");
        }
        Op::CreateToken(op) => applied.token = Some(Box::new(access::create(state, command, op)?)),
        Op::UseToken(op) => {
            let token = access::use_token(state, command, op)?;
            (applied.owed_since_us, applied.name_revoked_us) = (token.used_at_us, access::name_revoked_us(state, &token.name));
            applied.token = Some(Box::new(token));
        }
        Op::Revoke(op) => applied.name = access::revoke(state, command, op)?.to_owned(),
        Op::DiscoverTargets(op) => discovery::discovered(state, op)?,
        Op::AcceptTargets(op) => discovery::accept(state, command, op)?,
        Op::RecordIssue(op) => {
            access::record_issue(state, command, op)?;
            (applied.owed_since_us, applied.name_revoked_us) = (state.now(), access::name_revoked_us(state, &op.name));
        }
    }
    Ok(applied)
}

/// What follows from the time that has passed, and from whatever the command changed.
fn follow_up(state: &mut State, before: i64) {
    fleet::turn(state, before);
    pass::go_on(state);
    account::expire(state);
    let turned = std::mem::take(&mut state.turned);
    sickness::look(state, &turned);
    slo::evaluate(state);
    gameday::advance(state);
    requests::prune(state);
}

fn init(state: &mut State, command: &Command, op: &InitCluster) -> Result<(), Refused> {
    if !state.meta().cluster_id.is_empty() {
        return Err(refused(RefusalCode::AlreadyExists, format!("already initialised as cluster {}", state.meta().cluster_id)));
    }
    if op.cluster_id.is_empty() {
        return Err(refused(RefusalCode::Invalid, "a cluster needs an id"));
    }
    let now = state.now();
    let meta = state.meta_mut();
    meta.cluster_id = op.cluster_id.clone();
    meta.cluster_name = op.cluster_name.clone();
    meta.version = op.version;
    meta.initialized_at_us = now;
    for member in &op.members {
        state.members.put(member.clone());
    }
    let members: Vec<&str> = op.members.iter().map(|m| m.name.as_str()).collect();
    audit::record(state, command, "init", "Cluster/cluster", "", &members.join(", "));
    events::record(state, "cluster", "", "Cluster/cluster", format!("cluster {} formed", op.cluster_id));
    Ok(())
}

fn set_version(state: &mut State, command: &Command, version: u32) -> Result<(), Refused> {
    let runs = state.meta().version;
    if version < runs {
        return Err(refused(RefusalCode::Version, format!("the cluster runs command version {runs}; it cannot go back to {version}")));
    }
    if let Some(old) = state.members.iter().find(|m| m.max_command_version < version) {
        return Err(refused(RefusalCode::Version, format!("{} understands command version {} only", old.name, old.max_command_version)));
    }
    state.meta_mut().version = version;
    audit::record(state, command, "set version", "Cluster/cluster", &runs.to_string(), &version.to_string());
    Ok(())
}

/// A new leader: the index of this command is its fence.
fn leader_started(state: &mut State, index: u64, op: &LeaderStarted) {
    let meta = state.meta_mut();
    meta.fence = index;
    meta.leader_id = op.member;
    desired::everybody(state);
    let name = state.members.get(&crate::number_key(op.member)).map_or_else(|| format!("{:x}", op.member), |m| m.name.clone());
    events::record(state, "leader", "", &format!("Member/{name}"), format!("leads in term {}", op.term));
}

fn halt(state: &mut State, command: &Command, reason: &str) {
    let now = state.now();
    let before = state.meta().halt.as_ref().map(|h| h.reason.clone()).unwrap_or_default();
    state.meta_mut().halt = Some(Halt { reason: reason.to_owned(), actor: command.actor.clone(), at_us: now });
    desired::everybody(state);
    audit::record(state, command, "halt", "Halt/cluster", &before, reason);
    events::record(state, "halt", "", "Halt/cluster", format!("{} halted every fault: {reason}", command.actor));
    gameday::on_halt(state);
}

fn lift_halt(state: &mut State, command: &Command) {
    if let Some(halt) = state.meta_mut().halt.take() {
        desired::everybody(state);
        audit::record(state, command, "lift halt", "Halt/cluster", &halt.reason, "");
        events::record(state, "halt", "", "Halt/cluster", format!("lifted by {}", command.actor));
    }
}

fn start_game_day(state: &mut State, index: u64, command: &Command, op: &StartGameDay) -> Result<String, Refused> {
    if let Some(halt) = &state.meta().halt {
        return Err(refused(RefusalCode::Halted, format!("halted by {}: {} (`probity halt lift` ends it)", halt.actor, halt.reason)));
    }
    let name = gameday::start(state, index, op, &command.actor)?;
    let (namespace, scenario) = op.plan.as_ref().map_or_else(Default::default, |p| (p.namespace.clone(), p.scenario.clone()));
    audit::record_in(state, command, &namespace, "start", &format!("GameDay/{name}"), "", &format!("Scenario/{scenario}"));
    Ok(name)
}

/// Reports as they came, with times that can be calculated with.
fn sane(state: &State, reports: &[ProberFaultReport]) -> Vec<ProberFaultReport> {
    let mut reports = reports.to_vec();
    for report in reports.iter_mut().filter_map(|r| r.report.as_mut()) {
        report.at_us = report.at_us.clamp(0, state.now().saturating_add(rows::AHEAD_US));
        report.clock_error_us = report.clock_error_us.min(rows::LONGEST_US);
    }
    reports
}

/// A refusal.
pub(crate) fn refused(code: RefusalCode, message: impl Into<String>) -> Refused {
    Refused { code: code as i32, message: message.into() }
}
