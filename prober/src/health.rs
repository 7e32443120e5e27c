//! A prober's own HTTP side: `/metrics` and `/healthz`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::routing::get;
use probity_proto::reason::Class;
use probity_proto::v1::Reason;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What is shown; the driver writes it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    prober: String,
    runs: BTreeMap<(&'static str, String), u64>,
    spool: (u64, u64, u64),
    assignments: usize,
    connected: bool,
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

    pub(crate) fn count(&self, reason: Reason) {
        let outcome = match reason.class() {
            Class::Good => "good",
            Class::Bad => "bad",
            Class::Missed => "missed",
        };
        if let Ok(mut shown) = self.0.lock() {
            *shown.runs.entry((outcome, reason.label())).or_default() += 1;
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
        let runs = shown.runs.iter().map(|((outcome, reason), n)| (format!(",outcome=\"{outcome}\",reason=\"{reason}\""), *n)).collect();
        metric("probity_prober_runs_total", "counter", "Finished runs by outcome and reason.", runs);
        metric("probity_prober_assignments", "gauge", "Checks that this prober runs.", vec![(String::new(), shown.assignments as u64)]);
        metric("probity_prober_spool_rows", "gauge", "Rows that are not acknowledged.", vec![(String::new(), shown.spool.0)]);
        metric("probity_prober_spool_bytes", "gauge", "Their size.", vec![(String::new(), shown.spool.1)]);
        metric("probity_prober_dropped_slots_total", "counter", "Slots whose outcome the spool could not hold.", vec![(String::new(), shown.spool.2)]);
        metric("probity_prober_connected", "gauge", "Whether a coordinator is connected.", vec![(String::new(), u64::from(shown.connected))]);
        out
    }
}

/// Serves until `stop`.
pub(crate) async fn serve(listener: TcpListener, health: Health, stop: CancellationToken) {
    let router = Router::new()
        .route("/metrics", get(move || async move { ([("content-type", "text/plain; version=0.0.4")], health.text()) }))
        .route("/healthz", get(|| async { "ok\n" }));
    let _ = axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await;
}
