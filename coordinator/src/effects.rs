//! Telling receivers: at least once, recognisable as a repeat, a resolve never lost (rule R4). What came of it is committed.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use probity_core::slo::outbox;
use probity_core::{State, resource_key};
use probity_proto::v1::command::Op;
use probity_proto::v1::receiver_spec::Receiver;
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::node::Node;
use crate::outside::{Policy, cause, host_of};
use crate::secrets::Secrets;
use crate::view::rfc3339;

/// Deliveries at once.
const DELIVERIES_MAX: usize = 128;
/// Of one receiver: one that hangs keeps no other waiting.
const RECEIVER_MAX: usize = 4;
/// Of one namespace: nor do all of somebody's.
const NAMESPACE_MAX: usize = 16;
const SECOND_US: i64 = 1_000_000;
/// Alertmanager forgets an alert that is not sent again within its resolve_timeout (5 min by default).
const RESEND_US: i64 = 60 * SECOND_US;
/// A resolved alert is sent again to Alertmanager for this long: one replica may have been away.
const RESEND_RESOLVED_FOR_US: i64 = 300 * SECOND_US;
/// One replica that was not told, while another was: it is told again after this.
const RETRY_REPLICA_US: i64 = 15 * SECOND_US;
/// Waits between attempts: doubling to this.
const RETRY_MAX_US: i64 = 60 * SECOND_US;

/// Events API v2.
const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";

/// One thing to tell.
#[derive(Debug, Clone)]
struct Delivery {
    row: OutboxRecord,
    episode: EpisodeRecord,
    receiver: Receiver,
    cluster: String,
}

/// Of whom an episode is told: one delivery of it at a time, or a resolve would overtake what it resolves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Telling {
    namespace: String,
    receiver: String,
    episode: String,
}

/// What is under way.
#[derive(Debug, Clone, Default)]
struct UnderWay(Arc<Mutex<BTreeSet<Telling>>>);

impl UnderWay {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<Telling>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one, if there is room for it and it is not under way already; it ends when what is returned is dropped.
    fn begin(&self, row: &OutboxRecord) -> Option<Begun> {
        let telling = Telling { namespace: row.namespace.clone(), receiver: row.receiver.clone(), episode: row.episode.clone() };
        let mut all = self.lock();
        let of_namespace = all.iter().filter(|t| t.namespace == telling.namespace);
        let of_receiver = of_namespace.clone().filter(|t| t.receiver == telling.receiver).count();
        if all.len() >= DELIVERIES_MAX || of_namespace.count() >= NAMESPACE_MAX || of_receiver >= RECEIVER_MAX || !all.insert(telling.clone()) {
            return None;
        }
        Some(Begun { all: self.clone(), telling })
    }
}

#[derive(Debug)]
struct Begun {
    all: UnderWay,
    telling: Telling,
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.all.lock().remove(&self.telling);
    }
}

/// A receiver that was told.
struct Told {
    status: u16,
    /// What one of its replicas answered that was not.
    untold: Option<String>,
}

impl Told {
    fn all(status: u16) -> Told {
        Told { status, untold: None }
    }
}

/// The one who tells.
#[derive(Debug, Clone)]
pub(crate) struct Effects {
    client: reqwest::Client,
    secrets: Secrets,
    policy: Policy,
    under_way: UnderWay,
    tasks: TaskTracker,
}

impl Effects {
    pub(crate) fn new(secrets: Secrets, policy: Policy) -> Result<Effects, reqwest::Error> {
        let client = policy.client(0).build()?;
        Ok(Effects { client, secrets, policy, under_way: UnderWay::default(), tasks: TaskTracker::new() })
    }

    /// Starts every delivery that is due and not under way.
    pub(crate) async fn deliver_due(&self, node: &Node) {
        let now = node.now_us();
        let Ok(mut due) = node.query(move |state, _| due(state, now)).await else { return };
        // What was never tried goes before what failed.
        due.sort_by_key(|d| d.row.attempts);
        for delivery in due {
            let Some(begun) = self.under_way.begin(&delivery.row) else { continue };
            let (effects, node) = (self.clone(), node.clone());
            self.tasks.spawn(async move {
                let done = effects.deliver(&node, &delivery).await;
                // Not committed: it is due still, and told again.
                let _ = node.propose(Node::command(Op::EffectsDone(EffectsDone { done: vec![done] }))).await;
                drop(begun);
            });
        }
    }

    pub(crate) async fn finish(&self) {
        self.tasks.close();
        let _ = tokio::time::timeout(Duration::from_secs(2), self.tasks.wait()).await;
    }

    async fn deliver(&self, node: &Node, delivery: &Delivery) -> EffectDone {
        let sent = match &delivery.receiver {
            Receiver::Webhook(webhook) => self.webhook(node, delivery, webhook).await,
            Receiver::Alertmanager(alertmanager) => self.alertmanager(node, delivery, alertmanager).await,
            Receiver::Pagerduty(pagerduty) => self.pagerduty(delivery, pagerduty).await,
            Receiver::Slack(slack) => self.slack(delivery, slack).await,
        };
        let row = &delivery.row;
        let at_us = node.now_us();
        let mut done = EffectDone { episode: row.episode.clone(), receiver: row.receiver.clone(), revision: row.revision, at_us, ..EffectDone::default() };
        match sent {
            Ok(Told { status, untold }) => {
                done.delivered = true;
                done.status = u32::from(status);
                done.next_at_us = resend_at(delivery, at_us);
                if let Some(error) = untold {
                    tracing::warn!(receiver = row.receiver, episode = row.episode, error, "one of its replicas is not told");
                    // What is over for long is not told again, to nobody.
                    if done.next_at_us != 0 {
                        done.error = error;
                        done.next_at_us = done.next_at_us.min(at_us + RETRY_REPLICA_US);
                    }
                }
            }
            Err((status, error)) => {
                tracing::warn!(receiver = row.receiver, episode = row.episode, error, "not delivered");
                let wait = (SECOND_US << row.attempts.min(6)).min(RETRY_MAX_US);
                done.status = u32::from(status);
                done.error = error;
                done.next_at_us = at_us + wait;
            }
        }
        done
    }

    async fn webhook(&self, node: &Node, delivery: &Delivery, webhook: &WebhookReceiver) -> Result<Told, (u16, String)> {
        let url = if webhook.url_secret_ref.is_empty() { webhook.url.clone() } else { self.secret(&webhook.url_secret_ref, delivery, None).await? };
        let token = match webhook.token_secret_ref.as_str() {
            "" => None,
            name => Some(self.secret(name, delivery, Some(&url)).await?),
        };
        let (name, namespace) = (delivery.episode.slo.clone(), delivery.episode.namespace.clone());
        let explain = node.query(move |state, _| crate::view::slo_summary(state, &namespace, &name)).await.ok().flatten();
        let body = cloud_event(delivery, explain);
        self.post(&url, &body, "application/cloudevents+json", token.as_deref()).await.map(Told::all)
    }

    async fn alertmanager(&self, node: &Node, delivery: &Delivery, receiver: &AlertmanagerReceiver) -> Result<Told, (u16, String)> {
        let e = &delivery.episode;
        // While firing, the end lies ahead: should everybody here die, Alertmanager resolves it by then.
        let ends_at = if e.resolved_at_us != 0 { e.resolved_at_us } else { node.now_us() + 5 * RESEND_US };
        let alert = json!([{
            "labels": e.labels,
            "annotations": e.annotations,
            "startsAt": rfc3339(e.fired_at_us),
            "endsAt": rfc3339(ends_at),
        }]);
        let mut outcome = Err((0, "no URL".to_owned()));
        let mut failed = None;
        // Every replica is told, since one behind a balancer would not know; and all at once, since one may hang.
        let mut told = JoinSet::new();
        for url in &receiver.urls {
            let (effects, url, alert) = (self.clone(), format!("{}/api/v2/alerts", url.trim_end_matches('/')), alert.clone());
            told.spawn(async move { effects.post(&url, &alert, "application/json", None).await });
        }
        while let Some(one) = told.join_next().await {
            match one.unwrap_or_else(|e| Err((0, e.to_string()))) {
                Ok(status) => outcome = Ok(status),
                Err(e) => failed = Some(e),
            }
        }
        // One that knows tells the others, unless they are apart: told is told, and the rest is made good soon.
        match (outcome, failed) {
            (Ok(status), untold) => Ok(Told { status, untold: untold.map(|(_, error)| error) }),
            (Err(none), failed) => Err(failed.unwrap_or(none)),
        }
    }

    async fn pagerduty(&self, delivery: &Delivery, receiver: &PagerDutyReceiver) -> Result<Told, (u16, String)> {
        let e = &delivery.episode;
        let routing_key = self.secret(&receiver.routing_key_secret_ref, delivery, Some(PAGERDUTY)).await?;
        let severity = if e.severity() == Severity::Page { "critical" } else { "warning" };
        // Events API v2: at most 1,024 characters.
        let summary: String = e.annotations.get("summary").map(|s| s.chars().take(1_024).collect()).unwrap_or_default();
        let body = json!({
            "routing_key": routing_key,
            "event_action": if delivery.row.resolved { "resolve" } else { "trigger" },
            "dedup_key": e.id,
            "payload": {"summary": summary, "source": format!("probity/{}", delivery.cluster), "severity": severity, "timestamp": rfc3339(e.fired_at_us),
                        "component": e.slo, "group": e.namespace, "class": e.rule, "custom_details": e.labels},
        });
        self.post(PAGERDUTY, &body, "application/json", None).await.map(Told::all)
    }

    async fn slack(&self, delivery: &Delivery, receiver: &SlackReceiver) -> Result<Told, (u16, String)> {
        let e = &delivery.episode;
        let url = self.secret(&receiver.url_secret_ref, delivery, None).await?;
        let word = if delivery.row.resolved { "resolved" } else { "FIRING" };
        let summary = e.annotations.get("summary").cloned().unwrap_or_default();
        let body = json!({"text": format!("{word}: {}/{} in {}: {summary}", e.slo, e.rule, e.namespace)});
        self.post(&url, &body, "application/json", None).await.map(Told::all)
    }

    /// A secret for the receiver's namespace, to be sent to `url`.
    async fn secret(&self, name: &str, delivery: &Delivery, url: Option<&str>) -> Result<String, (u16, String)> {
        let host = url.map(host_of);
        self.secrets.read_for(name, &delivery.row.namespace, host.as_deref()).await.map_err(|message| (0, message))
    }

    /// Posts JSON. An error is (status or 0, what a person is told): never the URL, which may be a secret.
    async fn post(&self, url: &str, body: &Value, content_type: &str, token: Option<&str>) -> Result<u16, (u16, String)> {
        let parsed = reqwest::Url::parse(url).map_err(|_| (0, "the receiver's URL is no URL".to_owned()))?;
        self.policy.check_url(&parsed).map_err(|message| (0, message))?;
        let mut request = self.client.post(parsed).header("content-type", content_type).body(body.to_string());
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(|e| (0, cause(&e.without_url())))?;
        let status = response.status();
        if status.is_success() { Ok(status.as_u16()) } else { Err((status.as_u16(), format!("the receiver answered {status}"))) }
    }
}

fn due(state: &State, now: i64) -> Vec<Delivery> {
    state
        .outbox
        .iter()
        .filter(|row| outbox::due(row, now))
        .filter_map(|row| {
            let episode = state.episodes.get(&row.episode)?.clone();
            let resource = state.resources.get(&resource_key("Receiver", &row.namespace, &row.receiver))?;
            let Some(Spec::Receiver(ReceiverSpec { receiver: Some(receiver) })) = &resource.spec else { return None };
            Some(Delivery { row: row.clone(), episode, receiver: receiver.clone(), cluster: state.meta().cluster_name.clone() })
        })
        .collect()
}

/// When to send the same again; 0 = never.
fn resend_at(delivery: &Delivery, now: i64) -> i64 {
    let resolved_at = delivery.episode.resolved_at_us;
    match &delivery.receiver {
        Receiver::Alertmanager(_) if resolved_at == 0 || now < resolved_at + RESEND_RESOLVED_FOR_US => now + RESEND_US,
        _ => 0,
    }
}

/// CloudEvents 1.0, structured mode. The id follows from episode and state: a resend bears the same.
fn cloud_event(delivery: &Delivery, explain: Option<Value>) -> Value {
    let e = &delivery.episode;
    let resolved = delivery.row.resolved;
    let word = if resolved { "resolved" } else { "firing" };
    let mut data = json!({
        "status": word,
        "episode": e.id,
        "labels": e.labels,
        "annotations": e.annotations,
        "startsAt": rfc3339(e.fired_at_us),
    });
    if resolved {
        data["endsAt"] = rfc3339(e.resolved_at_us).into();
    }
    if let Some(explain) = explain {
        data["slo"] = explain;
    }
    json!({
        "specversion": "1.0",
        "id": format!("{}/{word}", e.id),
        "source": format!("probity/{}", delivery.cluster),
        "type": format!("dev.probity.alert.{word}"),
        "subject": format!("{}/{}", e.slo, e.rule),
        "time": rfc3339(if resolved { e.resolved_at_us } else { e.fired_at_us }),
        "datacontenttype": "application/json",
        "data": data,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(namespace: &str, receiver: &str, episode: usize, revision: u32) -> OutboxRecord {
        let (namespace, receiver) = (namespace.to_owned(), receiver.to_owned());
        OutboxRecord { namespace, receiver, episode: episode.to_string(), revision, ..OutboxRecord::default() }
    }

    #[test]
    fn receivers_that_hang_keep_no_other_waiting() {
        let under_way = UnderWay::default();
        let hung: Vec<Begun> = (0..100).filter_map(|n| under_way.begin(&row("search", "blackhole", n, 1))).collect();
        assert_eq!(hung.len(), RECEIVER_MAX);
        let more: Vec<Begun> = (0..100).filter_map(|n| under_way.begin(&row("search", &format!("hangs-{n}"), n, 1))).collect();
        assert_eq!(hung.len() + more.len(), NAMESPACE_MAX);
        let page = under_way.begin(&row("shop", "pager", 7, 1));
        assert!(page.is_some(), "another namespace has its own room");
        drop((hung, more));
        assert!(under_way.begin(&row("search", "blackhole", 1, 1)).is_some());
    }

    #[test]
    fn a_resolve_does_not_overtake_what_it_resolves() {
        let under_way = UnderWay::default();
        let firing = under_way.begin(&row("shop", "pager", 7, 1));
        assert!(firing.is_some() && under_way.begin(&row("shop", "pager", 7, 2)).is_none());
        drop(firing);
        assert!(under_way.begin(&row("shop", "pager", 7, 2)).is_some());
    }
}
