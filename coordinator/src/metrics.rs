//! `/metrics` in Prometheus' text format. Series of SLOs come from the leader only, so that sums are right.

use std::fmt::Write;

use probity_core::account::AccountView;
use probity_core::{State, slo};
use probity_proto::reason;
use probity_proto::v1::*;
use probity_replica::Role;

use crate::listen::Connections;
use crate::node::{Live, Node, ProposeError};
use crate::view;

/// Writes samples of one metric.
struct Text(String);

impl Text {
    fn metric(&mut self, name: &str, kind: &str, help: &str, samples: impl IntoIterator<Item = (String, f64)>) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }
}

/// Escapes a label's value.
fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// Of both sides of this member.
pub(crate) fn connections(connections: &Connections) -> String {
    let mut out = Text(String::new());
    let count = |n: &std::sync::atomic::AtomicU64| [(String::new(), n.load(std::sync::atomic::Ordering::Relaxed) as f64)];
    out.metric("probity_connections", "gauge", "Connections that are up here.", [(String::new(), connections.len() as f64)]);
    out.metric("probity_connections_refused_total", "counter", "Connections that were turned away for want of room.", count(&connections.refused));
    out.metric("probity_handshakes_failed_total", "counter", "TLS handshakes that came to nothing.", count(&connections.failed));
    out.0
}

/// Prometheus' text. Checks are many: they are gathered in pieces.
pub(crate) async fn scrape(node: &Node) -> Result<String, ProposeError> {
    let look = |state: &State, live: &Live<'_>| (gather(state, live), live.status.role == Role::Leader, live.now_us);
    let (text, leading, now_us) = node.query(look).await?;
    if !leading {
        return Ok(text);
    }
    let mut text = Text(text);
    let _room = view::room().await;
    runs(&view::total(node, now_us).await?, &mut text);
    let verdicts = view::verdicts(node).await?;
    let samples = verdicts.iter().flat_map(|(namespace, probe, target, is)| {
        let of = format!("namespace={},probe={},target={}", quoted(namespace), quoted(probe), quoted(target));
        let sample = move |(word, v)| (format!("{of},verdict=\"{word}\""), f64::from(u8::from(*is == v)));
        [("up", Verdict::Up), ("down", Verdict::Down), ("unknown", Verdict::Unknown)].map(sample)
    });
    if !verdicts.is_empty() {
        text.metric("probity_check_verdict", "gauge", "1 for the verdict of a check.", samples);
    }
    Ok(text.0)
}

fn runs(total: &AccountView, out: &mut Text) {
    let one = |value: f64| [(String::new(), value)];
    let mut runs = vec![("outcome=\"good\",reason=\"good\"".to_owned(), total.good as f64), ("outcome=\"bad\",reason=\"\"".to_owned(), total.bad as f64)];
    runs.extend(total.missed.iter().map(|(r, n)| (format!("outcome=\"missed\",reason={}", quoted(&reason::from_number(*r as i32).label())), *n as f64)));
    out.metric("probity_runs_accounted_total", "counter", "Slots whose outcome is known.", runs);
    out.metric("probity_runs_planned_total", "counter", "Slots that were due.", one(total.planned as f64));
    out.metric("probity_runs_pending", "gauge", "Slots that were due and are not reported.", one(total.pending as f64));
    out.metric("probity_runs_unexplained", "gauge", "What the account lacks: 0, or a bug.", one(total.unexplained as f64));
}

fn gather(state: &State, live: &Live<'_>) -> String {
    let mut out = Text(String::new());
    let status = live.status;
    let leading = status.role == Role::Leader;
    let one = |value: f64| [(String::new(), value)];
    out.metric("probity_build_info", "gauge", "Version of this member.", [(format!("version={}", quoted(env!("CARGO_PKG_VERSION"))), 1.0)]);
    out.metric("probity_raft_leader", "gauge", "Whether this member leads.", one(f64::from(u8::from(leading))));
    out.metric("probity_raft_term", "gauge", "The term that this member knows.", one(status.term as f64));
    out.metric("probity_raft_applied_index", "gauge", "The newest entry that is applied here.", one(status.applied as f64));
    out.metric("probity_raft_commit_index", "gauge", "The newest entry that is committed, as known here.", one(status.commit as f64));
    if !leading {
        return out.0;
    }
    out.metric("probity_invariant_violations", "gauge", "Broken rules of the design in the present state: 0, or a bug.", one(live.violations as f64));
    let probers = state.probers.iter().map(|p| (format!("prober={}", quoted(&p.name)), f64::from(u8::from(p.alive))));
    out.metric("probity_prober_alive", "gauge", "Whether a prober is heard of.", probers);
    discoveries(state, &mut out);
    slos(state, &mut out);
    let stuck = state.outbox.iter().filter(|r| r.delivered_revision != r.revision).count();
    out.metric("probity_notifications_waiting", "gauge", "Receivers that do not know the latest state of an episode.", one(stuck as f64));
    out.metric(
        "probity_faults_active",
        "gauge",
        "Faults that are active.",
        one(state.faults.iter().filter(|f| f.active_at_us != 0 && f.ended_at_us == 0).count() as f64),
    );
    out.0
}

fn discoveries(state: &State, out: &mut Text) {
    let each = |value: fn(&DiscoveryRecord) -> f64| {
        state.discoveries.iter().map(move |d| (format!("namespace={},probe={}", quoted(&d.namespace), quoted(&d.probe)), value(d))).collect::<Vec<_>>()
    };
    out.metric("probity_discovery_targets", "gauge", "Discovered targets of a probe that are checked.", each(|d| d.targets.len() as f64));
    out.metric(
        "probity_discovery_failing",
        "gauge",
        "Whether the newest discovery gave nothing, and the old targets are kept.",
        each(|d| f64::from(u8::from(d.failing_since_us != 0))),
    );
    out.metric(
        "probity_discovery_held_targets",
        "gauge",
        "Targets of a much smaller set that waits for a person; 0: none does.",
        each(|d| d.held.len() as f64),
    );
}

fn slos(state: &State, out: &mut Text) {
    let all: Vec<(String, slo::Explain)> = state
        .resources
        .prefix("SLO/")
        .filter_map(|r| {
            let labels = format!("namespace={},slo={}", quoted(&r.namespace), quoted(&r.name));
            Some((labels, slo::explain(state, &r.namespace, &r.name)?))
        })
        .collect();
    let objective = all.iter().map(|(l, e)| (l.clone(), f64::from(e.target_ppm) / 1e6));
    out.metric("probity_slo_objective_ratio", "gauge", "The objective.", objective);
    let left = all.iter().map(|(l, e)| (l.clone(), 1.0 - e.spent_ppm as f64 / 1e6));
    out.metric("probity_slo_budget_left_ratio", "gauge", "The share of the error budget that is left.", left);
    let burns = all.iter().flat_map(|(l, e)| {
        e.rules.iter().flat_map(move |r| {
            let of = |window: &str, milli: u64| (format!("{l},rule={},window=\"{window}\"", quoted(&r.rule.name)), milli as f64 / 1e3);
            [of("long", r.long_burn_milli), of("short", r.short_burn_milli)]
        })
    });
    out.metric("probity_slo_burn_rate", "gauge", "The burn rate over a rule's windows.", burns);
    let firing = all
        .iter()
        .flat_map(|(l, e)| e.rules.iter().map(move |r| (format!("{l},rule={}", quoted(&r.rule.name)), f64::from(u8::from(r.state == AlertState::Firing)))));
    out.metric("probity_alert_firing", "gauge", "Whether a rule fires.", firing);
}
