//! A prober's own HTTP side: `/metrics` and `/healthz`.
//!
//! Classic histograms: the text format has no exponential ones (those go out by OTLP). Series are per probe, never per target: their
//! number is bounded, and what a probe's targets do apart is in the coordinator's account.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::routing::get;
use probity_proto::check::CheckName;
use probity_proto::reason::Class;
use probity_proto::v1::Reason;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::blackbox::Exporter;
use crate::kinds::ProbeContext;

/// Upper bounds of the duration buckets, in microseconds: 1 ms to 10 s, the range of a probe's time-out.
const BUCKETS_US: [u64; 13] = [1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000];
/// The same for how late slots start: around the 0.2 ms and 2 ms that a prober with room to spare keeps.
const LAG_BUCKETS_US: [u64; 12] = [50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000];
/// Probes with series of their own; those that come later share one, `probe="other"`.
const PROBES_MAX: usize = 5_000;

/// What is shown; the driver writes it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health(Arc<Mutex<Shown>>);

#[derive(Debug, Clone, Default)]
struct Shown {
    prober: String,
    /// By "namespace/probe".
    runs: BTreeMap<String, Runs>,
    spool: (u64, u64, u64),
    assignments: usize,
    connected: bool,
    /// Runs by the bucket of their lag; the last one has no bound.
    lag: [u64; LAG_BUCKETS_US.len() + 1],
    lag_sum_us: u64,
    failed_attempts: u64,
}

/// Finished runs of one probe.
#[derive(Debug, Clone, Default)]
struct Runs {
    /// By reason number.
    reasons: BTreeMap<i32, u64>,
    /// Durations of those that reached their target; the last bucket has no bound.
    buckets: [u64; BUCKETS_US.len() + 1],
    sum_us: u64,
}

/// Namespace and name of a probe.
fn names(probe: &str) -> (&str, &str) {
    probe.split_once('/').unwrap_or(("", probe))
}

fn outcome(reason: Reason) -> &'static str {
    match reason.class() {
        Class::Good => "good",
        Class::Bad => "bad",
        Class::Missed => "missed",
    }
}

impl Health {
    pub(crate) fn set(&self, prober: &str, spool: (u64, u64, u64), assignments: usize, connected: bool) {
        if let Ok(mut shown) = self.0.lock() {
            if shown.prober.is_empty() {
                shown.prober = prober.to_owned();
            }
            (shown.spool, shown.assignments, shown.connected) = (spool, assignments, connected);
        }
    }

    /// Counts a finished run.
    pub(crate) fn count(&self, check: &str, reason: Reason, duration_us: u64) {
        let probe = CheckName::parse(check).map_or(check, |name| &check[..name.namespace.len() + 1 + name.probe.len()]);
        let Ok(mut shown) = self.0.lock() else { return };
        let probe = if shown.runs.len() < PROBES_MAX || shown.runs.contains_key(probe) { probe } else { "other" };
        if !shown.runs.contains_key(probe) {
            shown.runs.insert(probe.to_owned(), Runs::default());
        }
        let Some(runs) = shown.runs.get_mut(probe) else { return };
        *runs.reasons.entry(reason as i32).or_default() += 1;
        if reason.class() != Class::Missed {
            runs.buckets[BUCKETS_US.partition_point(|bound| *bound < duration_us)] += 1;
            runs.sum_us += duration_us;
        }
    }

    /// Counts a run that was started: how late, and how often it was tried before.
    pub(crate) fn started(&self, lag_us: u64, failed_attempts: usize) {
        let Ok(mut shown) = self.0.lock() else { return };
        shown.lag[LAG_BUCKETS_US.partition_point(|bound| *bound < lag_us)] += 1;
        shown.lag_sum_us += lag_us;
        shown.failed_attempts += failed_attempts as u64;
    }

    fn text(&self, body_bytes: u64) -> String {
        // A copy: whoever writes is the thread of the slots, and must not wait for a page of text.
        let Ok(shown) = self.0.lock().map(|shown| shown.clone()) else { return String::new() };
        let mut out = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, samples: Vec<(String, u64)>| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(out, "{name}{{prober={:?}{labels}}} {value}", shown.prober);
            }
        };
        let mut runs = Vec::new();
        for (name, of) in &shown.runs {
            let (namespace, probe) = names(name);
            for (reason, n) in &of.reasons {
                let reason = probity_proto::reason::from_number(*reason);
                runs.push((format!(",namespace={namespace:?},probe={probe:?},outcome=\"{}\",reason=\"{}\"", outcome(reason), reason.label()), *n));
            }
        }
        metric("probity_probe_runs_total", "counter", "Finished runs by outcome and reason.", runs);
        let failed = vec![(String::new(), shown.failed_attempts)];
        metric("probity_prober_failed_attempts_total", "counter", "Attempts that failed before another was made.", failed);
        metric("probity_prober_assignments", "gauge", "Checks that this prober runs.", vec![(String::new(), shown.assignments as u64)]);
        metric("probity_prober_spool_rows", "gauge", "Rows that are not acknowledged.", vec![(String::new(), shown.spool.0)]);
        metric("probity_prober_spool_bytes", "gauge", "Their size.", vec![(String::new(), shown.spool.1)]);
        metric("probity_prober_dropped_slots_total", "counter", "Slots whose outcome the spool could not hold.", vec![(String::new(), shown.spool.2)]);
        metric(
            "probity_prober_body_bytes",
            "gauge",
            "Bytes of answers' bodies that runs hold, beside the first 64 KiB of each.",
            vec![(String::new(), body_bytes)],
        );
        metric("probity_prober_connected", "gauge", "Whether a coordinator is connected.", vec![(String::new(), u64::from(shown.connected))]);
        durations(&shown, &mut out);
        out
    }
}

/// The histograms.
fn durations(shown: &Shown, out: &mut String) {
    let name = "probity_probe_duration_seconds";
    let _ = writeln!(out, "# HELP {name} How long runs took that reached their target.\n# TYPE {name} histogram");
    for (of_probe, of) in &shown.runs {
        let (namespace, probe) = names(of_probe);
        let labels = format!("prober={:?},namespace={namespace:?},probe={probe:?}", shown.prober);
        histogram(out, name, &labels, &BUCKETS_US, &of.buckets, of.sum_us);
    }
    let name = "probity_prober_slot_lag_seconds";
    let _ = writeln!(out, "# HELP {name} How late slots started.\n# TYPE {name} histogram");
    histogram(out, name, &format!("prober={:?}", shown.prober), &LAG_BUCKETS_US, &shown.lag, shown.lag_sum_us);
}

/// One series, in seconds as Prometheus wants it; the last count is above all bounds.
fn histogram(out: &mut String, name: &str, labels: &str, bounds_us: &[u64], counts: &[u64], sum_us: u64) {
    let mut total = 0;
    let bounds = bounds_us.iter().map(|us| (*us as f64 / 1e6).to_string()).chain(["+Inf".to_owned()]);
    for (count, le) in counts.iter().zip(bounds) {
        total += count;
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{le}\"}} {total}");
    }
    let _ = writeln!(out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {total}", sum_us as f64 / 1e6);
}

/// Serves until `stop`.
pub(crate) async fn serve(listener: TcpListener, health: Health, context: Arc<ProbeContext>, blackbox: Option<Arc<Exporter>>, stop: CancellationToken) {
    let own = blackbox.clone();
    let text = move || health.text(context.bodies.held()) + &own.map_or(String::new(), |exporter| exporter.own_metrics());
    let mut router = Router::new()
        .route("/metrics", get(move || async move { ([("content-type", "text/plain; version=0.0.4")], text()) }))
        .route("/healthz", get(|| async { "ok\n" }));
    if let Some(exporter) = blackbox {
        router = router.merge(crate::blackbox::probe_router(exporter));
    }
    let _ = axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_counted_and_their_durations_add_up() {
        let health = Health::default();
        health.set("p", (0, 0, 0), 1, true);
        health.count("shop/checkout/berlin", Reason::Good, 1_000);
        health.count("shop/checkout/paris", Reason::ConnectRefused, 20_000);
        health.count("shop/checkout/paris", Reason::ProberOff, 0);
        for lag_us in [0, 200, 201, 9_000_000] {
            health.started(lag_us, 1);
        }
        let text = health.text(7);
        for line in [
            r#"probity_prober_body_bytes{prober="p"} 7"#,
            r#"probity_prober_slot_lag_seconds_bucket{prober="p",le="0.0002"} 2"#,
            r#"probity_prober_slot_lag_seconds_bucket{prober="p",le="1"} 3"#,
            r#"probity_prober_slot_lag_seconds_bucket{prober="p",le="+Inf"} 4"#,
            r#"probity_prober_slot_lag_seconds_sum{prober="p"} 9.000401"#,
            r#"probity_prober_failed_attempts_total{prober="p"} 4"#,
            r#"probity_probe_runs_total{prober="p",namespace="shop",probe="checkout",outcome="bad",reason="connect_refused"} 1"#,
            r#"probity_probe_runs_total{prober="p",namespace="shop",probe="checkout",outcome="missed",reason="prober_off"} 1"#,
            r#"probity_probe_duration_seconds_bucket{prober="p",namespace="shop",probe="checkout",le="0.001"} 1"#,
            r#"probity_probe_duration_seconds_bucket{prober="p",namespace="shop",probe="checkout",le="0.025"} 2"#,
            r#"probity_probe_duration_seconds_bucket{prober="p",namespace="shop",probe="checkout",le="+Inf"} 2"#,
            r#"probity_probe_duration_seconds_sum{prober="p",namespace="shop",probe="checkout"} 0.021"#,
            r#"probity_probe_duration_seconds_count{prober="p",namespace="shop",probe="checkout"} 2"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
