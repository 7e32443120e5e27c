//! The paths of blackbox_exporter.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use probity_proto::resources::blackbox::{Module, Prober};

use super::{Asked, Exporter};

/// As Prometheus says how long it will wait.
const TIMEOUT_HEADER: &str = "x-prometheus-scrape-timeout-seconds";
/// Where nobody says it.
const TIMEOUT_DEFAULT_S: f64 = 120.0;
/// A day: beyond it a number is a mistake.
const TIMEOUT_MAX_S: f64 = 86_400.0;
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All paths, for a server of its own.
pub fn router(exporter: Arc<Exporter>) -> Router {
    let own = exporter.clone();
    probe_router(exporter).route("/metrics", get(move || async move { ([(header::CONTENT_TYPE, METRICS_TYPE)], own.own_metrics()) }))
}

/// All but `/metrics`, which a prober has already.
pub(crate) fn probe_router(exporter: Arc<Exporter>) -> Router {
    Router::new()
        .route("/probe", get(probe))
        .route("/logs", get(logs))
        .route("/config", get(config))
        .route("/-/reload", post(reload).put(reload).fallback(only_post))
        .route("/-/healthy", get(|| async { "Healthy" }))
        .route("/", get(index))
        .with_state(exporter)
}

type Parameters = Query<HashMap<String, String>>;

async fn probe(State(exporter): State<Arc<Exporter>>, Query(parameters): Parameters, headers: HeaderMap) -> Response {
    let text = |name: &str| parameters.get(name).map_or("", String::as_str);
    let name = if text("module").is_empty() { "http_2xx" } else { text("module") };
    let config = exporter.config();
    let Some(module) = config.modules.get(name) else {
        exporter.count_unknown();
        return (StatusCode::BAD_REQUEST, format!("Unknown module {name:?}\n")).into_response();
    };
    let timeout_us = match timeout_us(module, headers.get(TIMEOUT_HEADER).map(|v| v.as_bytes()), exporter.options.timeout_offset_us) {
        Ok(timeout_us) => timeout_us,
        Err(message) => return (StatusCode::INTERNAL_SERVER_ERROR, message).into_response(),
    };
    let target = target(text("target"));
    if target.is_empty() {
        return (StatusCode::BAD_REQUEST, "Target parameter is missing\n").into_response();
    }
    let hostname = text("hostname");
    if let Some(message) = conflict(module, hostname) {
        return (StatusCode::BAD_REQUEST, message).into_response();
    }
    let Ok(_running) = exporter.running.try_acquire() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many probes at once\n").into_response();
    };
    let asked = Asked { name, module, target: &target, hostname, timeout_us };
    let record = exporter.remember(exporter.probe(&asked).await);
    if text("debug") == "true" {
        return ([(header::CONTENT_TYPE, "text/plain")], record.report()).into_response();
    }
    ([(header::CONTENT_TYPE, METRICS_TYPE)], record.metrics.clone()).into_response()
}

/// The scrape's time-out less the offset, and at most the module's own.
fn timeout_us(module: &Module, header: Option<&[u8]>, offset_us: u64) -> Result<u64, String> {
    let wrong = |text: &str| format!("Failed to parse timeout from Prometheus header: {text:?} is no number of seconds\n");
    let seconds = match header {
        None => 0.0,
        Some(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            text.parse::<f64>().ok().filter(|s| s.is_finite() && *s >= 0.0).ok_or_else(|| wrong(&text))?
        }
    };
    let seconds = if seconds == 0.0 { TIMEOUT_DEFAULT_S } else { seconds.min(TIMEOUT_MAX_S) };
    let whole_us = (seconds * 1e6) as u64;
    Ok(match (whole_us.checked_sub(offset_us).filter(|us| *us > 0), module.timeout_us) {
        (Some(scrape), 0) => scrape,
        (Some(scrape), own) => own.min(scrape),
        // The offset leaves nothing: then the module's own, or what the scrape gives.
        (None, 0) => whole_us,
        (None, own) => own.min(whole_us),
    })
}

/// A target is decoded once, so that a `+` stays one; a URL that was encoded twice is still understood.
fn target(given: &str) -> String {
    let lower = given.to_ascii_lowercase();
    if !lower.starts_with("http%3a%2f%2f") && !lower.starts_with("https%3a%2f%2f") {
        return given.to_owned();
    }
    let mut bytes = Vec::with_capacity(given.len());
    let mut rest = given.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let byte = after.get(..2).filter(|_| *first == b'%').and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn conflict(module: &Module, hostname: &str) -> Option<String> {
    let Prober::Http(http) = &module.prober else { return None };
    let (_, host) = http.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"))?;
    (!hostname.is_empty() && host != hostname)
        .then(|| format!("Host header defined both in module configuration ({host}) and with URL-parameter 'hostname' ({hostname})\n"))
}

async fn logs(State(exporter): State<Arc<Exporter>>, Query(parameters): Parameters) -> Response {
    let plain = [(header::CONTENT_TYPE, "text/plain")];
    let not_found = |what: &'static str| (StatusCode::NOT_FOUND, what).into_response();
    let Ok(history) = exporter.history.lock() else { return not_found("no history\n") };
    let found = match parameters.get("id") {
        Some(id) => match id.parse() {
            Ok(id) => history.by_id(id),
            Err(_) => return (StatusCode::BAD_REQUEST, "Invalid probe id\n").into_response(),
        },
        None => {
            let text = |name: &str| parameters.get(name).map_or("", String::as_str);
            if text("target").is_empty() || text("module").is_empty() {
                return (StatusCode::BAD_REQUEST, "id, or target and module, must be given\n").into_response();
            }
            history.newest(text("module"), text("target"))
        }
    };
    drop(history);
    match found {
        Some(record) => (plain, record.report()).into_response(),
        None => not_found("Probe id not found\n"),
    }
}

async fn config(State(exporter): State<Arc<Exporter>>) -> Response {
    let config = exporter.config();
    let modules: serde_json::Map<_, _> = config.modules.iter().map(|(name, m)| (name.clone(), serde_json::Value::clone(&m.shown))).collect();
    let text = serde_saphyr::to_string(&serde_json::json!({"modules": modules})).unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain")], text).into_response()
}

async fn reload(State(exporter): State<Arc<Exporter>>) -> Response {
    match tokio::task::spawn_blocking(move || exporter.reload()).await {
        Ok(Ok(())) => StatusCode::OK.into_response(),
        Ok(Err(message)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("failed to reload config: {message}\n")).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

async fn only_post() -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, "This endpoint requires a POST request.\n").into_response()
}

async fn index(State(exporter): State<Arc<Exporter>>) -> Html<String> {
    let records = exporter.history.lock().map(|h| h.list()).unwrap_or_default();
    let mut rows = String::new();
    for record in records {
        let result = if record.success { "Success" } else { "<strong>Failure</strong>" };
        let (module, target) = (escaped(&record.module), escaped(&record.target));
        let _ = writeln!(rows, "<tr><td>{module}</td><td>{target}</td><td>{result}</td><td><a href=\"logs?id={}\">Logs</a></td></tr>", record.id);
    }
    Html(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Probity as blackbox exporter</title></head><body>\n\
         <h1>Probity as blackbox exporter</h1>\n<p><a href=\"metrics\">Metrics</a></p>\n<p><a href=\"config\">Configuration</a></p>\n\
         <h2>Recent probes</h2>\n<table border=\"1\"><tr><th>Module</th><th>Target</th><th>Result</th><th>Debug</th></tr>\n{rows}</table>\n</body></html>\n"
    ))
}

/// Text in HTML: a target is whatever somebody asked for.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

/// For tests/fuzz: a query of `/probe` and a scrape's time-out, for a module of each kind, up to what would be run.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(bytes: &[u8]) {
    use probity_proto::resources::{SourceFile, blackbox};
    const MODULES: &str = "modules:\n  http_2xx: {prober: http, http: {headers: {Host: a.test}}}\n  plain: {prober: http}\n  tcp: {prober: tcp, tcp: {tls: true}}\n  \
        icmp: {prober: icmp}\n  dns: {prober: dns, dns: {query_name: a.test}}\n  grpc: {prober: grpc, timeout: 5s}\n";
    thread_local! {
        static RIG: (blackbox::Config, tokio::runtime::Runtime) = {
            let config = blackbox::parse(&SourceFile { name: "blackbox.yml".to_owned(), text: MODULES.to_owned() }).expect("modules");
            (config, tokio::runtime::Builder::new_current_thread().build().expect("a runtime"))
        };
    }
    let (header, query) = bytes.iter().position(|b| *b == b'\n').map_or((&b""[..], bytes), |at| (&bytes[..at], &bytes[at + 1..]));
    let Ok(uri) = format!("/probe?{}", String::from_utf8_lossy(query)).parse() else { return };
    let Ok(Query(parameters)) = Query::<HashMap<String, String>>::try_from_uri(&uri) else { return };
    let text = |name: &str| parameters.get(name).map_or("", String::as_str);
    let (target, hostname) = (target(text("target")), text("hostname"));
    let secrets = crate::secret::Secrets::new(None, false, std::collections::BTreeMap::new());
    RIG.with(|(config, runtime)| {
        for (name, module) in &config.modules {
            let _ = conflict(module, hostname);
            let Ok(timeout_us) = timeout_us(module, Some(header), 500_000) else { continue };
            let asked = Asked { name, module, target: &target, hostname, timeout_us };
            let _ = runtime.block_on(super::module::check(&secrets, &asked));
        }
    });
    assert!(!escaped(&target).contains(['<', '>', '"', '\'']), "nobody writes HTML into the page");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_outs() {
        let module = |timeout_us| Module { timeout_us, prober: Prober::Tcp(Box::default()), shown: Arc::default() };
        for (own, header, offset_us, us) in [
            (0, None, 500_000, 119_500_000),
            (0, Some("10"), 500_000, 9_500_000),
            (5_000_000, Some("10"), 500_000, 5_000_000),
            (15_000_000, Some("10.5"), 500_000, 10_000_000),
            (0, Some("0"), 0, 120_000_000),
            (0, Some("0.3"), 500_000, 300_000),
            (5_000_000, Some("0.3"), 500_000, 300_000),
        ] {
            assert_eq!(timeout_us(&module(own), header.map(str::as_bytes), offset_us), Ok(us), "{own} {header:?}");
        }
        for wrong in ["x", "-1", "NaN", "inf", ""] {
            assert!(timeout_us(&module(0), Some(wrong.as_bytes()), 0).is_err(), "{wrong}");
        }
    }

    #[test]
    fn targets() {
        for (given, wanted) in
            [("a+b", "a+b"), ("http://x/a%20b", "http://x/a%20b"), ("http%3A%2F%2Fx%2Fa%20b", "http://x/a b"), ("https%3a%2f%2fx%2", "https://x%2")]
        {
            assert_eq!(target(given), wanted);
        }
    }

    #[test]
    fn nobody_writes_html_into_the_page() {
        assert_eq!(escaped("<script>'\"&"), "&lt;script&gt;&#39;&quot;&amp;");
    }
}
