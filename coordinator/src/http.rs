//! The HTTP side: read API, web page, metrics. Read-only; bounded in time; no DNS rebinding (Host check).

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use probity_proto::v1::MemberRecord;
use serde_json::json;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::timeout::TimeoutLayer;

use crate::node::Node;
use crate::{metrics, view};

const PAGE: &str = include_str!("page.html");

/// What the handlers share.
#[derive(Debug, Clone)]
struct Shared {
    node: Node,
    own: MemberRecord,
}

/// The routes.
pub(crate) fn router(node: Node, own: MemberRecord) -> Router {
    let shared = Shared { node, own };
    Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/gamedays/{*name}", get(|| async { Html(PAGE) }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(prometheus))
        .route("/api/v1/{*path}", get(api))
        .layer(middleware::from_fn_with_state(shared.clone(), guard))
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(10)))
        .with_state(shared)
}

/// Serves until `stop`.
pub(crate) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let shutdown = stop.clone();
    let serving = axum::serve(listener, router).with_graceful_shutdown(async move { shutdown.cancelled().await });
    tokio::select! {
        _ = async { serving.await } => {}
        () = async { stop.cancelled().await; tokio::time::sleep(Duration::from_secs(1)).await } => {}
    }
}

/// Refuses a Host that is not ours, and adds the security headers.
async fn guard(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default().to_owned();
    if !known_host(&host, &shared.own) {
        return error(StatusCode::MISDIRECTED_REQUEST, "bad_request", format!("host {host:?} is not served here"));
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'";
    for (name, value) in
        [("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer"), ("content-security-policy", policy), ("cache-control", "no-store")]
    {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// An address, this host, or the member's advertised name: what a page of somebody else cannot make its own name resolve to unseen.
fn known_host(host: &str, own: &MemberRecord) -> bool {
    let name = |address: &str| {
        let without_port = match address.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => address,
        };
        without_port.trim_matches(['[', ']']).to_ascii_lowercase()
    };
    let host = name(host);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok() || host == name(&own.address)
}

fn error(status: StatusCode, code: &str, message: String) -> Response {
    (status, axum::Json(json!({"error": {"code": code, "message": message}}))).into_response()
}

async fn api(State(shared): State<Shared>, uri: Uri) -> Response {
    let path = uri.path_and_query().map_or("", |p| p.as_str()).to_owned();
    let stale = uri.query().is_some_and(|q| q.contains("stale=true"));
    // Without the flag a reader gets nothing older than what was committed when it asked, or is told so.
    if !stale && shared.node.read_index().await.is_err() {
        return error(StatusCode::SERVICE_UNAVAILABLE, "no_quorum", "no quorum now (?stale=true answers from what this member knows)".to_owned());
    }
    match shared.node.query(move |state, live| view::read(state, live, &path)).await {
        Ok(Ok(value)) => axum::Json(value).into_response(),
        Ok(Err(e)) => {
            let status = if e.code == "not_found" { StatusCode::NOT_FOUND } else { StatusCode::BAD_REQUEST };
            error(status, e.code, e.message)
        }
        Err(e) => error(StatusCode::SERVICE_UNAVAILABLE, "no_quorum", e.to_string()),
    }
}

async fn prometheus(State(shared): State<Shared>) -> Response {
    match shared.node.query(metrics::render).await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(e) => error(StatusCode::SERVICE_UNAVAILABLE, "no_quorum", e.to_string()),
    }
}

/// Ready: in a group that has a leader.
async fn ready(State(shared): State<Shared>) -> Response {
    match shared.node.leadership.borrow().leader {
        Some(_) => "ready\n".into_response(),
        None => error(StatusCode::SERVICE_UNAVAILABLE, "no_quorum", "no leader is known".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_others_are_refused() {
        let own = MemberRecord { address: "c1.example.com:7601".to_owned(), ..MemberRecord::default() };
        for (host, ours) in
            [("127.0.0.1:7600", true), ("localhost:7600", true), ("[::1]:7600", true), ("c1.example.com:7600", true), ("evil.example:7600", false), ("", false)]
        {
            assert_eq!(known_host(host, &own), ours, "{host}");
        }
    }
}
