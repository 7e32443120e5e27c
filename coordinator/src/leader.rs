//! The leader's duties outside the log: who fell silent, and what receivers must be told.

use std::time::Duration;

use probity_proto::v1::FleetChange;
use probity_proto::v1::command::Op;
use tokio_util::sync::CancellationToken;

use crate::effects::Effects;
use crate::fleet::SILENT;
use crate::node::Node;
use crate::telemetry::GameDayTraces;

/// How often duties are looked at when nothing changes.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Does the duties while this member leads.
pub(crate) async fn run(node: Node, effects: Effects, mut traces: GameDayTraces, stop: CancellationToken) {
    let mut changed = node.changed();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = changed.changed() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if !node.leadership.borrow().leading {
            continue;
        }
        silent(&node).await;
        effects.deliver_due(&node).await;
        traces.look(&node).await;
    }
    effects.finish().await;
}

/// Departures go in one command: their checks move at once.
async fn silent(node: &Node) {
    let Ok(alive) = node.query(|state, _| state.probers.iter().filter(|p| p.alive).map(|p| p.name.clone()).collect::<Vec<_>>()).await else { return };
    let left: Vec<String> = alive.into_iter().filter(|p| node.shared.fleet.silent_for(p) > SILENT).collect();
    if left.is_empty() {
        return;
    }
    tracing::warn!(?left, "probers fell silent");
    let _ = node.propose(Node::command(Op::FleetChange(FleetChange { left, ..FleetChange::default() }))).await;
}
