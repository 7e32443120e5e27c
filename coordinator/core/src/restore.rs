//! A backup's state becomes the first state of another cluster.
//!
//! What the old cluster did after the backup is not known here. So nothing is taken for still going on: faults count as ended
//! with an unknown undo (their leases end them), game days are aborted, and the new cluster begins halted. Probers meet a new
//! cluster id: they drop assignments, rows and fences of the old one, and begin a new spool. Runs whose rows came after the
//! backup become missed(prober_lost). Numbers that receivers know jump, so that none is given twice.

use probity_proto::v1::*;

use crate::apply::refused;
use crate::state::State;
use crate::{audit, events, gameday};

/// Log indexes, and so fences and revisions, go on this far after those of the backup: above all that the old cluster still gave out.
pub const INDEX_JUMP: u64 = 1_000_000_000;
/// The same for numbers of alerts' episodes.
const EPISODE_JUMP: u64 = 1_000_000;

/// Turns the state of a backup, which was of `index`, into the first state of cluster `cluster_id`, whose only member is `member`.
pub fn into_new_cluster(state: &mut State, index: u64, cluster_id: &str, member: MemberRecord) -> Result<(), Refused> {
    let old = state.meta().cluster_id.clone();
    if old.is_empty() {
        return Err(refused(RefusalCode::NotInitialized, "the backup is of no initialised cluster"));
    }
    if cluster_id.is_empty() || cluster_id == old {
        return Err(refused(RefusalCode::Invalid, "a restored cluster needs an id of its own"));
    }
    if member.max_command_version < state.meta().version {
        let (needs, can) = (state.meta().version, member.max_command_version);
        return Err(refused(RefusalCode::Version, format!("the backup is of command version {needs}, this build understands {can}")));
    }
    for key in state.members.keys() {
        state.members.remove(&key);
    }
    let now = state.now();
    let reason = format!("restored from a backup of cluster {old} at index {index}");
    let meta = state.meta_mut();
    meta.cluster_id = cluster_id.to_owned();
    meta.leader_id = 0;
    meta.retired_members.clear();
    meta.next_episode += EPISODE_JUMP;
    meta.next_assignment += INDEX_JUMP;
    meta.desired_revision += INDEX_JUMP;
    meta.resource_revision += INDEX_JUMP;
    meta.halt = Some(Halt { reason: reason.clone(), actor: "restore".to_owned(), at_us: now });
    state.members.put(member);
    gameday::on_halt(state);
    let unknown: Vec<ProberFaultReport> = state
        .faults
        .iter()
        .filter(|f| f.ended_at_us == 0)
        .map(|f| {
            let detail = format!("{reason}: its lease has ended it");
            let report = FaultReport { fault_id: f.id.clone(), state: FaultState::Unknown as i32, at_us: now, detail, ..FaultReport::default() };
            ProberFaultReport { prober: f.prober.clone(), report: Some(report) }
        })
        .collect();
    gameday::on_fault_reports(state, &unknown);
    let command = Command { actor: "restore".to_owned(), ..Command::default() };
    audit::record(state, &command, "restore", "Cluster/cluster", &old, cluster_id);
    events::record(state, "cluster", "", "Cluster/cluster", reason);
    Ok(())
}
