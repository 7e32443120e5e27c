//! From the session's decisions to the engine, and back.

use std::time::Duration;

use probity_chaos::{Engine, FaultOrder};
use probity_session::FaultAction;

/// Tells the engine what the session decided. The ids that ended are on the disk before.
pub(crate) async fn tell(engine: &Engine, actions: Vec<FaultAction>) {
    for action in actions {
        match action {
            FaultAction::Start { fault_id, spec, lease_us, not_after_us } => {
                let (lease, not_after) = (Duration::from_micros(lease_us), Duration::from_micros(not_after_us));
                engine.start(FaultOrder { fault_id, spec, lease, not_after }).await;
            }
            FaultAction::Renew { fault_id, lease_us } => engine.renew(&fault_id, Duration::from_micros(lease_us)).await,
            FaultAction::End { fault_id, reason } => engine.end(&fault_id, &reason).await,
        }
    }
}
