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

/// Upper bounds of the duration buckets, in microseconds: 1 ms to 10 s, the range of a probe's time-out.
const BUCKETS_US: [u64; 13] = [1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000];
/// Probes with series of their own; those that come later share one, `probe="other"`.
const PROBES_MAX: usize = 5_000;

/// What is shown; the driver writes it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    prober: String,
    /// By (namespace, probe).
    runs: BTreeMap<(String, String), Runs>,
    spool: (u64, u64, u64),
    assignments: usize,
    connected: bool,
}

/// Finished runs of one probe.
#[derive(Debug, Default)]
struct Runs {
    /// By reason number.
    reasons: BTreeMap<i32, u64>,
    /// Durations of those that reached their target; the last bucket has no bound.
    buckets: [u64; BUCKETS_US.len() + 1],
    sum_us: u64,
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
        let (namespace, probe) = CheckName::parse(check).map_or(("", check), |name| (name.namespace, name.probe));
        let Ok(mut shown) = self.0.lock() else { return };
        let mut key = (namespace.to_owned(), probe.to_owned());
        if shown.runs.len() >= PROBES_MAX && !shown.runs.contains_key(&key) {
            key = (String::new(), "other".to_owned());
        }
        let runs = shown.runs.entry(key).or_default();
        *runs.reasons.entry(reason as i32).or_default() += 1;
        if reason.class() != Class::Missed {
            runs.buckets[BUCKETS_US.partition_point(|bound| *bound < duration_us)] += 1;
            runs.sum_us += duration_us;
        }
    }

    fn text(&self) -> String {
        let Ok(shown) = self.0.lock() else { return String::new() };
        let mut out = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, samples: Vec<(String, u64)>| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(out, "{name}{{prober={:?}{labels}}} {value}", shown.prober);
            }
        };
        let mut runs = Vec::new();
        for ((namespace, probe), of) in &shown.runs {
            for (reason, n) in &of.reasons {
                let reason = probity_proto::reason::from_number(*reason);
                runs.push((format!(",namespace={namespace:?},probe={probe:?},outcome=\"{}\",reason=\"{}\"", outcome(reason), reason.label()), *n));
            }
        }
        metric("probity_probe_runs_total", "counter", "Finished runs by outcome and reason.", runs);
        metric("probity_prober_assignments", "gauge", "Checks that this prober runs.", vec![(String::new(), shown.assignments as u64)]);
        metric("probity_prober_spool_rows", "gauge", "Rows that are not acknowledged.", vec![(String::new(), shown.spool.0)]);
        metric("probity_prober_spool_bytes", "gauge", "Their size.", vec![(String::new(), shown.spool.1)]);
        metric("probity_prober_dropped_slots_total", "counter", "Slots whose outcome the spool could not hold.", vec![(String::new(), shown.spool.2)]);
        metric("probity_prober_connected", "gauge", "Whether a coordinator is connected.", vec![(String::new(), u64::from(shown.connected))]);
        durations(&shown, &mut out);
        out
    }
}

/// The histogram, in seconds as Prometheus wants it.
fn durations(shown: &Shown, out: &mut String) {
    let name = "probity_probe_duration_seconds";
    let _ = writeln!(out, "# HELP {name} How long runs took that reached their target.\n# TYPE {name} histogram");
    for ((namespace, probe), of) in &shown.runs {
        let labels = format!("prober={:?},namespace={namespace:?},probe={probe:?}", shown.prober);
        let mut total = 0;
        let bounds = BUCKETS_US.iter().map(|us| (*us as f64 / 1e6).to_string()).chain(["+Inf".to_owned()]);
        for (count, le) in of.buckets.iter().zip(bounds) {
            total += count;
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{le}\"}} {total}");
        }
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {total}", of.sum_us as f64 / 1e6);
    }
}

/// Serves until `stop`.
pub(crate) async fn serve(listener: TcpListener, health: Health, stop: CancellationToken) {
    let router = Router::new()
        .route("/metrics", get(move || async move { ([("content-type", "text/plain; version=0.0.4")], health.text()) }))
        .route("/healthz", get(|| async { "ok\n" }));
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
        let text = health.text();
        for line in [
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
