//! The dead man's switch: a URL is called while the cluster can page. It stops when there is no leader, no quorum, or when
//! deliveries are stuck: silence is the alarm.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::HeartbeatConfig;
use crate::node::Node;
use crate::secrets::Secrets;

/// A delivery that failed this often is stuck.
const STUCK_ATTEMPTS: u32 = 5;

/// Calls it while this member leads.
pub(crate) async fn run(node: Node, config: HeartbeatConfig, secrets: Secrets, stop: CancellationToken) {
    let Ok(client) = reqwest::Client::builder().timeout(Duration::from_secs(10)).build() else { return };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(config.every) => {}
        }
        if !node.leadership.borrow().leading || !can_page(&node).await {
            continue;
        }
        let url = match secrets.read(&config.url_secret_ref).await {
            Ok(url) => url,
            Err(why) => {
                tracing::error!(why, "no heartbeat is sent");
                continue;
            }
        };
        if let Err(e) = client.post(url.trim()).send().await.and_then(reqwest::Response::error_for_status) {
            tracing::warn!(error = %e.without_url(), "heartbeat not delivered");
        }
    }
}

/// A quorum answers, and no delivery is stuck.
async fn can_page(node: &Node) -> bool {
    if node.read_index().await.is_err() {
        return false;
    }
    node.query(|state, _| state.outbox.iter().all(|row| row.attempts < STUCK_ATTEMPTS)).await.unwrap_or(false)
}
