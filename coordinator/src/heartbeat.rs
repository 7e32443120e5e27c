//! Dead man's switches: a URL is called while those can be told for whom it stands. It stops when there is no leader, no quorum, or when
//! deliveries are stuck: silence is the alarm.
//!
//! Each switch is by itself: its own task, its own look, its own time-out. One without a namespace stands for the cluster, which can page as long as
//! one of the receivers that routes name can be told; a team's broken receiver is the matter of the team's own switch.

use std::collections::BTreeSet;
use std::time::Duration;

use probity_core::{State, resource_key};
use probity_proto::v1::resource::Spec;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::HeartbeatConfig;
use crate::node::Node;
use crate::outside::cause;
use crate::secrets::Secrets;

/// A delivery that failed this often is stuck.
const STUCK_ATTEMPTS: u32 = 5;
/// A call may take so long.
const CALL: Duration = Duration::from_secs(10);

/// Calls it while this member leads.
pub(crate) async fn run(node: Node, config: HeartbeatConfig, secrets: Secrets, stop: CancellationToken) {
    let Ok(client) = reqwest::Client::builder().timeout(CALL).build() else { return };
    let mut leadership = node.leadership();
    let (mut led, mut next) = (false, Instant::now());
    let mut said = None;
    loop {
        let leading = leadership.borrow_and_update().leading;
        // Who begins to lead calls at once: the one before may have died when it was about to.
        if !leading || (led && Instant::now() < next) {
            led = leading;
            tokio::select! {
                () = stop.cancelled() => return,
                end = leadership.changed() => if end.is_err() { return },
                () = tokio::time::sleep_until(next), if leading => {}
            }
            continue;
        }
        (led, next) = (true, Instant::now() + config.every);
        let called = tokio::select! {
            () = stop.cancelled() => return,
            called = beat(&node, &client, &config, &secrets) => called,
        };
        let why = called.err();
        if said != why {
            match &why {
                Some(why) => tracing::warn!(switch = config.stands_for(), why, "no heartbeat"),
                None => tracing::info!(switch = config.stands_for(), "heartbeat goes out"),
            }
            said = why;
        }
    }
}

/// One call, or why there is none.
async fn beat(node: &Node, client: &reqwest::Client, config: &HeartbeatConfig, secrets: &Secrets) -> Result<(), String> {
    node.read_index().await.map_err(|e| e.to_string())?;
    let switch = config.clone();
    node.query(move |state, _| may_call(state, &switch)).await.map_err(|e| e.to_string())??;
    let url = secrets.read(&config.url_secret_ref).await?;
    let sent = client.post(url.trim()).send().await.and_then(reqwest::Response::error_for_status);
    sent.map(|_| ()).map_err(|e| format!("not delivered: {}", cause(&e.without_url())))
}

/// Whether those can be told for whom the switch stands; the error says who cannot.
fn may_call(state: &State, switch: &HeartbeatConfig) -> Result<(), String> {
    let there = |namespace: &str, name: &str| state.resources.get(&resource_key("Receiver", namespace, name)).is_some();
    let stuck: BTreeSet<(&str, &str)> = state
        .outbox
        .iter()
        .filter(|row| row.attempts >= STUCK_ATTEMPTS && there(&row.namespace, &row.receiver))
        .map(|row| (row.namespace.as_str(), row.receiver.as_str()))
        .collect();
    if !switch.receiver.is_empty() && !there(&switch.namespace, &switch.receiver) {
        return Err(format!("there is no receiver {} in namespace {}", switch.receiver, switch.namespace));
    }
    if !switch.namespace.is_empty() {
        let of = |(namespace, receiver): &&(&str, &str)| *namespace == switch.namespace && (switch.receiver.is_empty() || *receiver == switch.receiver);
        return stuck.iter().find(of).map_or(Ok(()), |(_, receiver)| Err(format!("receiver {receiver} was not told in {STUCK_ATTEMPTS} attempts")));
    }
    if stuck.is_empty() {
        return Ok(());
    }
    let mut told = 0;
    for resource in state.resources.prefix("Route/") {
        let Some(Spec::Route(route)) = &resource.spec else { continue };
        let namespace = resource.namespace.as_str();
        told += route.receivers.iter().filter(|r| there(namespace, r) && !stuck.contains(&(namespace, r.as_str()))).count();
    }
    if told > 0 { Ok(()) } else { Err(format!("no receiver can be told: {} failed {STUCK_ATTEMPTS} times or more", stuck.len())) }
}

#[cfg(test)]
mod tests {
    use probity_proto::v1::*;

    use super::*;

    fn switch(namespace: &str, receiver: &str) -> HeartbeatConfig {
        HeartbeatConfig { namespace: namespace.to_owned(), receiver: receiver.to_owned(), ..HeartbeatConfig::default() }
    }

    fn state(receivers: &[(&str, &str)], rows: &[(&str, &str, u32)]) -> State {
        let mut state = State::default();
        for (namespace, name) in receivers {
            let resource = |kind: &str, spec: Spec| Resource {
                kind: kind.to_owned(),
                namespace: (*namespace).to_owned(),
                name: (*name).to_owned(),
                spec: Some(spec),
                ..Resource::default()
            };
            let route = RouteSpec { receivers: vec![(*name).to_owned()], ..RouteSpec::default() };
            state.resources.put(resource("Receiver", Spec::Receiver(ReceiverSpec::default())));
            state.resources.put(resource("Route", Spec::Route(route)));
        }
        for (n, (namespace, receiver, attempts)) in rows.iter().enumerate() {
            let (namespace, receiver) = ((*namespace).to_owned(), (*receiver).to_owned());
            state.outbox.put(OutboxRecord { episode: n.to_string(), namespace, receiver, attempts: *attempts, ..OutboxRecord::default() });
        }
        state
    }

    #[test]
    fn a_team_s_broken_receiver_stops_the_team_s_switch_alone() {
        let state =
            state(&[("shop", "pager"), ("search", "chat"), ("search", "pager")], &[("search", "chat", 5), ("search", "pager", 1), ("shop", "pager", 4)]);
        for (namespace, receiver, calls) in
            [("", "", true), ("shop", "", true), ("search", "", false), ("search", "chat", false), ("search", "pager", true), ("shop", "pager", true)]
        {
            assert_eq!(may_call(&state, &switch(namespace, receiver)).is_ok(), calls, "{namespace} {receiver}");
        }
    }

    #[test]
    fn a_switch_for_a_receiver_that_is_not_there_is_silent() {
        let state = state(&[("shop", "pager")], &[]);
        assert!(may_call(&state, &switch("shop", "pager")).is_ok());
        assert!(may_call(&state, &switch("shop", "pagr")).is_err_and(|why| why.contains("no receiver pagr in namespace shop")));
    }

    #[test]
    fn a_cluster_that_can_tell_nobody_is_silent() {
        let both = [("shop", "pager"), ("search", "chat")];
        assert!(may_call(&state(&both, &[("shop", "pager", 5), ("search", "chat", 9)]), &switch("", "")).is_err());
        assert!(may_call(&state(&both[..1], &[("shop", "pager", 5)]), &switch("", "")).is_err());
        assert!(may_call(&state(&[], &[]), &switch("", "")).is_ok(), "there is nobody to tell");
        // What was meant for a receiver that is deleted is nobody's matter.
        assert!(may_call(&state(&both[..1], &[("search", "chat", 9)]), &switch("", "")).is_ok());
    }
}
