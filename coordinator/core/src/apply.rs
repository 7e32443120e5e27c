//! The one way in: a command at an index of the log.

use probity_proto::v1::command::Op;
use probity_proto::v1::*;

use crate::state::State;
use crate::{account, events, fleet, gameday, placement, requests, resources, slo};

/// The newest command set that this build understands. A cluster runs at the lowest of its members'.
pub const COMMAND_VERSION: u32 = 1;

/// Applies the command at `index` of the log. Never fails: a refusal is an answer like any other.
pub fn apply(state: &mut State, index: u64, command: &Command) -> CommandResult {
    if let Some(answered) = requests::find(state, &command.request_id) {
        return answered;
    }
    let before = state.now();
    if command.time_us > before {
        state.meta_mut().time_us = command.time_us;
    }
    let result = match run(state, index, command) {
        Ok(applied) => command_result::Result::Applied(applied),
        Err(refused) => command_result::Result::Refused(refused),
    };
    follow_up(state, before);
    let result = CommandResult { result: Some(result) };
    requests::remember(state, &command.request_id, &result);
    result
}

fn run(state: &mut State, index: u64, command: &Command) -> Result<Applied, Refused> {
    let Some(op) = &command.op else { return Err(refused(RefusalCode::Version, "a command that this version does not know")) };
    let mut applied = Applied { index, ..Applied::default() };
    let initialized = !state.meta().cluster_id.is_empty();
    let always = matches!(op, Op::InitCluster(_) | Op::LeaderStarted(_) | Op::PutMember(_) | Op::Tick(_));
    if !initialized && !always {
        return Err(refused(RefusalCode::NotInitialized, "the cluster is not initialised"));
    }
    if initialized && command.version > state.meta().version {
        let (needs, runs) = (command.version, state.meta().version);
        return Err(refused(RefusalCode::Version, format!("needs command version {needs}, the cluster runs {runs}")));
    }
    match op {
        Op::InitCluster(op) => init(state, op)?,
        Op::LeaderStarted(op) => leader_started(state, index, op),
        Op::Tick(_) => {}
        Op::ApplyResources(op) => applied.changes = resources::apply(state, command, op)?,
        Op::FleetChange(op) => fleet::change(state, op),
        Op::AcceptRows(op) => account::accept(state, &op.rows),
        Op::StartGameDay(op) => {
            if let Some(halt) = &state.meta().halt {
                return Err(refused(RefusalCode::Halted, format!("halted by {}: {} (`probity halt lift` ends it)", halt.actor, halt.reason)));
            }
            applied.name = gameday::start(state, index, op, &command.actor)?;
        }
        Op::AbortGameDay(op) => gameday::abort(state, op)?,
        Op::FaultReports(op) => gameday::on_fault_reports(state, &op.reports),
        Op::SetHalt(op) => halt(state, command, &op.reason),
        Op::LiftHalt(_) => {
            if state.meta_mut().halt.take().is_some() {
                state.meta_mut().desired_revision += 1;
                crate::audit::record(state, command, "lift halt", "Halt/cluster", "", "");
                events::record(state, "halt", "", "Halt/cluster", format!("lifted by {}", command.actor));
            }
        }
        Op::EffectsDone(op) => slo::outbox::on_effects_done(state, &op.done),
        Op::SetClusterVersion(op) => {
            let runs = state.meta().version;
            if op.version < runs {
                return Err(refused(RefusalCode::Version, format!("the cluster runs command version {runs}; it cannot go back to {}", op.version)));
            }
            state.meta_mut().version = op.version;
        }
        Op::PutMember(op) => {
            if let Some(member) = &op.member {
                state.members.put(member.clone());
            }
        }
    }
    Ok(applied)
}

/// What follows from the time that has passed, and from whatever the command changed.
fn follow_up(state: &mut State, before: i64) {
    let now = state.now();
    if fleet::became_eligible(state, before, now) {
        placement::place_all(state);
    }
    // Once a second is soon enough for what nobody waits for.
    if before / 1_000_000 != now / 1_000_000 {
        account::expire(state);
    }
    slo::evaluate(state);
    gameday::advance(state);
    requests::prune(state);
}

fn init(state: &mut State, op: &InitCluster) -> Result<(), Refused> {
    if !state.meta().cluster_id.is_empty() {
        return Err(refused(RefusalCode::AlreadyExists, format!("already initialised as cluster {}", state.meta().cluster_id)));
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
    events::record(state, "cluster", "", "Cluster/cluster", format!("cluster {} formed", op.cluster_id));
    Ok(())
}

/// A new leader: the index of this command is its fence.
fn leader_started(state: &mut State, index: u64, op: &LeaderStarted) {
    let meta = state.meta_mut();
    meta.fence = index;
    meta.leader_id = op.member;
    meta.desired_revision += 1;
    let name = state.members.get(&crate::number_key(op.member)).map_or_else(|| format!("{:x}", op.member), |m| m.name.clone());
    events::record(state, "leader", "", &format!("Member/{name}"), format!("leads in term {}", op.term));
}

fn halt(state: &mut State, command: &Command, reason: &str) {
    let now = state.now();
    state.meta_mut().halt = Some(Halt { reason: reason.to_owned(), actor: command.actor.clone(), at_us: now });
    state.meta_mut().desired_revision += 1;
    crate::audit::record(state, command, "halt", "Halt/cluster", "", reason);
    events::record(state, "halt", "", "Halt/cluster", format!("{} halted every fault: {reason}", command.actor));
    gameday::on_halt(state);
}

/// A refusal.
pub(crate) fn refused(code: RefusalCode, message: impl Into<String>) -> Refused {
    Refused { code: code as i32, message: message.into() }
}
