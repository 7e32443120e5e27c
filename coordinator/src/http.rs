//! The HTTP side: read API, web page, metrics. Architecture invariant: read-only, whoever asks.
//!
//! Where TLS files are configured it speaks TLS with the same certificate as the gRPC side, and wants a credential: a client
//! certificate, a token, or one of the OpenID provider (as a bearer, or as the password of a browser's dialog). Without them it is for
//! loopback. Bounded in connections, headers, bodies and time; no DNS rebinding (Host check).

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use probity_proto::v1::MemberRecord;
use probity_rpc::access::READ;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;

use crate::gate::Gate;
use crate::listen::{Conn, Connections, Link};
use crate::node::Node;
use crate::{metrics, view};

const PAGE: &str = include_str!("page.html");

/// A request's headers must be there by then; so must the next request on a connection that is kept.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(15);
/// Headers of a request: a browser sends about twenty.
const HEADERS_MAX: usize = 64;
/// All of them together, in bytes: a provider's token can have some thousands.
const HEADER_BYTES_MAX: usize = 32 * 1024;
/// What only reads is asked without a body.
const BODY_BYTES_MAX: usize = 1_024;

/// What the handlers share.
#[derive(Debug, Clone)]
struct Shared {
    node: Node,
    gate: Gate,
    connections: Arc<Connections>,
    /// Lower-case names that it is called by, besides addresses and localhost.
    names: Arc<Vec<String>>,
}

/// The routes.
pub(crate) fn router(node: Node, gate: Gate, connections: Arc<Connections>, own: &MemberRecord, names: &[String]) -> Router {
    let names = names.iter().map(|n| n.to_ascii_lowercase()).chain([host_of(&own.address)]).collect();
    let shared = Shared { node, gate, connections, names: Arc::new(names) };
    Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/gamedays/{*name}", get(|| async { Html(PAGE) }))
        .route("/metrics", get(prometheus))
        .route("/api/v1/{*path}", get(api))
        .layer(middleware::from_fn_with_state(shared.clone(), admit))
        // These two tell nothing but that there is somebody.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .layer(RequestBodyLimitLayer::new(BODY_BYTES_MAX))
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(10)))
        .layer(middleware::from_fn_with_state(shared.clone(), guard))
        .with_state(shared)
}

/// Serves connections until `stop`.
pub(crate) async fn serve(mut conns: mpsc::Receiver<Conn>, router: Router, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT).max_headers(HEADERS_MAX).max_buf_size(HEADER_BYTES_MAX);
    loop {
        let conn = tokio::select! {
            () = stop.cancelled() => break,
            conn = conns.recv() => match conn {
                Some(conn) => conn,
                None => break,
            },
        };
        let service = TowerToHyperService::new(router.clone().layer(Extension(conn.link.clone())));
        let serving = builder.serve_connection(TokioIo::new(conn), service);
        let stop = stop.clone();
        tasks.spawn(async move {
            tokio::pin!(serving);
            tokio::select! {
                // A client that goes away, or speaks no HTTP, is its own affair.
                _ = &mut serving => return,
                () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
            }
            let _ = serving.await;
        });
    }
    tasks.close();
    let _ = tokio::time::timeout(Duration::from_secs(1), tasks.wait()).await;
}

/// Refuses what is not for us or would write, and adds the security headers to every answer.
async fn guard(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default().to_owned();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut response = if !known_host(&host, &shared.names) {
        let hint = "httpNames in the coordinator's configuration lists the names it is called by";
        error(StatusCode::MISDIRECTED_REQUEST, "bad_request", format!("host {host:?} is not served here ({hint})"))
    } else if !reads {
        let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "bad_request", "the HTTP side only reads; changes go over gRPC".to_owned());
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        response
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("content-security-policy", policy),
        ("cross-origin-resource-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cache-control", "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Lets in who shows a credential that holds.
async fn admit(State(shared): State<Shared>, Extension(link): Extension<Link>, mut request: Request, next: Next) -> Response {
    let authorization = request.headers().get(header::AUTHORIZATION).and_then(|h| h.to_str().ok()).map(str::to_owned);
    let caller = match shared.gate.caller(&link, authorization.as_deref()).await {
        Ok(Some(caller)) => caller,
        Ok(None) => return unauthenticated("a token is wanted (`probity ca token --read NAME` makes one), or a client certificate"),
        Err(why) => return unauthenticated(&why),
    };
    // Metrics name the things of all namespaces.
    let whole = request.uri().path() == "/metrics";
    if !caller.grants.iter().any(|g| READ.contains(&g.role)) || whole && !caller.may_everywhere(READ) {
        let place = if whole { " of the whole cluster" } else { "" };
        return error(StatusCode::FORBIDDEN, "forbidden", format!("{} may not read this: it needs viewer{place}", caller.described()));
    }
    request.extensions_mut().insert(view::Scope::of(&caller));
    next.run(request).await
}

fn unauthenticated(why: &str) -> Response {
    let mut response = error(StatusCode::UNAUTHORIZED, "unauthenticated", why.to_owned());
    // A browser asks for a password then: the token is one.
    for challenge in ["Bearer realm=\"probity\"", "Basic realm=\"probity: a token as the password\", charset=\"UTF-8\""] {
        response.headers_mut().append(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    response
}

/// The host of host:port, lower-case, without brackets.
fn host_of(address: &str) -> String {
    let without_port = match address.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => address,
    };
    without_port.trim_matches(['[', ']']).to_ascii_lowercase()
}

/// An address, this host, the member's advertised name or a configured one: what a page of somebody else cannot make its own name
/// resolve to unseen.
fn known_host(host: &str, names: &[String]) -> bool {
    let host = host_of(host);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok() || !host.is_empty() && names.contains(&host)
}

fn error(status: StatusCode, code: &str, message: String) -> Response {
    (status, axum::Json(json!({"error": {"code": code, "message": message}}))).into_response()
}

async fn api(State(shared): State<Shared>, Extension(scope): Extension<view::Scope>, uri: Uri) -> Response {
    let path = uri.path_and_query().map_or("", |p| p.as_str()).to_owned();
    let stale = uri.query().is_some_and(|q| q.contains("stale=true"));
    // Without the flag a reader gets nothing older than what was committed when it asked, or is told so.
    if !stale && shared.node.read_index().await.is_err() {
        return error(StatusCode::SERVICE_UNAVAILABLE, "no_quorum", "no quorum now (?stale=true answers from what this member knows)".to_owned());
    }
    match view::answer(&shared.node, &path, &scope).await {
        Ok(Ok(answer)) => axum::Json(answer.value).into_response(),
        Ok(Err(e)) => {
            let status = match e.code {
                "not_found" => StatusCode::NOT_FOUND,
                "forbidden" => StatusCode::FORBIDDEN,
                _ => StatusCode::BAD_REQUEST,
            };
            error(status, e.code, e.message)
        }
        Err(e) => error(StatusCode::SERVICE_UNAVAILABLE, "no_quorum", e.to_string()),
    }
}

async fn prometheus(State(shared): State<Shared>) -> Response {
    match metrics::scrape(&shared.node).await {
        Ok(scrape) => {
            let text = scrape + &metrics::connections(&shared.connections);
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
        }
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
        let names = ["c1.example.com".to_owned(), "status.example.com".to_owned()];
        for (host, ours) in [
            ("127.0.0.1:7600", true),
            ("localhost:7600", true),
            ("[::1]:7600", true),
            ("c1.example.com:7600", true),
            ("STATUS.example.com", true),
            ("evil.example:7600", false),
            ("c1.example.com.evil.example", false),
            ("", false),
        ] {
            assert_eq!(known_host(host, &names), ours, "{host}");
        }
    }
}
