//! The paths of blackbox_exporter, served for real on loopback. Beside the real one: tests/blackbox/run.

use std::net::SocketAddr;
use std::sync::Arc;

use probity_prober::ProbeContext;
use probity_prober::blackbox::{Exporter, Options, router};
use probity_prober::kinds::ContextConfig;
use probity_prober::policy::AddressPolicy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const CONFIG: &str = "modules:\n  http_2xx: {prober: http}\n  post: {prober: http, http: {method: POST, basic_auth: {username: u, password: hush}}}\n  regex: {prober: http, http: {fail_if_body_not_matches_regexp: ['{\"status\": *\"ok']}}\n  not_regex: {prober: http, http: {fail_if_body_matches_regexp: [status]}}\n  missing: {prober: http, http: {valid_status_codes: [404]}}\n  host: {prober: http, http: {headers: {Host: a.example}}}\n  banner: {prober: tcp, timeout: 2s, tcp: {query_response: [{expect: '^220 .*ready$'}]}}\n  talk: {prober: tcp, timeout: 2s, tcp: {query_response: [{send: NICK x}, {expect: 'PING :([^ ]+)', send: 'PONG ${1}'}, {expect: '^ok$'}]}}\n  silent: {prober: tcp, timeout: 50ms, tcp: {query_response: [{expect: '^421'}]}}\n";

struct Served {
    address: SocketAddr,
    config: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

async fn served() -> Served {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("blackbox.yml");
    std::fs::write(&config, CONFIG).expect("it can be written");
    let context = ProbeContext::new(ContextConfig { address_policy: AddressPolicy::Anywhere, ..ContextConfig::default() });
    let exporter = Exporter::new(Options::new(config.clone()), Arc::new(context)).expect("the configuration is fine");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move { axum::serve(listener, router(Arc::new(exporter))).await });
    Served { address, config, _dir: dir }
}

impl Served {
    /// The status and the body of an answer.
    async fn ask(&self, method: &str, path: &str, headers: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.expect("it listens");
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        (head[9..12].parse().expect("a status"), body.to_owned())
    }

    async fn probe(&self, module: &str, target: &str) -> String {
        let (status, body) = self.ask("GET", &format!("/probe?module={module}&target={target}"), "").await;
        assert_eq!(status, 200, "a failed probe is an answer too: {body}");
        body
    }
}

/// A shop that sells over HTTP, and says what it was asked.
async fn shop() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                    let mut buffer = [0; 1_024];
                    match stream.read(&mut buffer).await {
                        Ok(n) if n > 0 => head.extend_from_slice(&buffer[..n]),
                        _ => return,
                    }
                }
                let head = String::from_utf8_lossy(&head).to_lowercase();
                let status = match head.split(' ').nth(1) {
                    Some("/missing") => "404 Not Found",
                    Some("/redirect") => "302 Found\r\nlocation: /",
                    _ if head.starts_with("post") && !head.contains("authorization: basic dtpodxno") => "401 Unauthorized",
                    _ => "200 OK",
                };
                let body = "{\"status\": \"ok\"}\n";
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nlast-modified: Tue, 14 Nov 2023 22:13:20 GMT\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

async fn banner() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(b"hello\r\n220 shop ready\r\n").await;
                // As an IRC server does it.
                let mut buffer = [0; 64];
                while let Ok(n) = stream.read(&mut buffer).await {
                    let answer: &[u8] = match &buffer[..n] {
                        b"NICK x\n" => b"PING :token\r\nother\r\n",
                        b"PONG token\n" => b"ok\r\n",
                        _ => return,
                    };
                    let _ = stream.write_all(answer).await;
                }
            });
        }
    });
    address
}

#[track_caller]
fn assert_lines(text: &str, wanted: &[&str]) {
    for line in wanted {
        assert!(text.lines().any(|l| l == *line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn http_modules() {
    let (served, shop) = (served().await, shop().await);
    let plain = served.probe("http_2xx", &shop.to_string()).await;
    assert_lines(
        &plain,
        &[
            "probe_success 1",
            "probe_http_status_code 200",
            "probe_http_content_length 17",
            "probe_http_uncompressed_body_length 17",
            "probe_http_redirects 0",
            "probe_http_version 1.1",
            "probe_http_ssl 0",
            "probe_http_last_modified_timestamp_seconds 1700000000",
            "probe_ip_protocol 4",
            "probe_failed_due_to_regex 0",
            "probe_timeout_seconds 119.5",
            "probe_http_duration_seconds{phase=\"tls\"} 0",
            "# TYPE probe_success gauge",
        ],
    );
    let at = |path: &str| format!("http://{shop}{path}");
    assert_lines(&served.probe("http_2xx", &at("/redirect")).await, &["probe_success 1", "probe_http_redirects 1"]);
    assert_lines(&served.probe("http_2xx", &at("/missing")).await, &["probe_success 0", "probe_http_status_code 404", "probe_failed_due_to_regex 0"]);
    assert_lines(&served.probe("missing", &at("/missing")).await, &["probe_success 1"]);
    assert_lines(&served.probe("post", &at("/")).await, &["probe_success 1"]);
    assert_lines(&served.probe("regex", &at("/")).await, &["probe_success 1"]);
    assert_lines(&served.probe("not_regex", &at("/")).await, &["probe_success 0", "probe_failed_due_to_regex 1"]);
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("its address");
    assert_lines(&served.probe("http_2xx", &closed.to_string()).await, &["probe_success 0", "probe_http_status_code 0", "probe_ip_protocol 4"]);
}

#[tokio::test]
async fn tcp_modules() {
    let (served, banner) = (served().await, banner().await.to_string());
    assert_lines(&served.probe("banner", &banner).await, &["probe_success 1", "probe_failed_due_to_regex 0"]);
    assert_lines(&served.probe("talk", &banner).await, &["probe_success 1"]);
    assert_lines(&served.probe("silent", &banner).await, &["probe_success 0", "probe_timeout_seconds 0.05"]);
}

#[tokio::test]
async fn what_is_asked_wrongly() {
    let served = served().await;
    for (path, headers, status) in [
        ("/probe?module=nope&target=x", "", 400),
        ("/probe?module=http_2xx", "", 400),
        ("/probe?module=host&target=x&hostname=b.example", "", 400),
        ("/probe?module=http_2xx&target=x", "x-prometheus-scrape-timeout-seconds: soon\r\n", 500),
        ("/logs", "", 400),
        ("/logs?id=x", "", 400),
        ("/logs?id=7", "", 404),
        ("/-/reload", "", 405),
        ("/-/healthy", "", 200),
    ] {
        assert_eq!(served.ask("GET", path, headers).await.0, status, "{path}");
    }
    let (_, metrics) = served.ask("GET", "/metrics", "").await;
    assert_lines(&metrics, &["blackbox_module_unknown_total 1", "blackbox_exporter_config_last_reload_successful 1"]);
}

#[tokio::test]
async fn people_can_look() {
    let (served, shop) = (served().await, shop().await);
    let (_, report) = served.ask("GET", &format!("/probe?module=post&target={shop}&debug=true"), "").await;
    for part in ["Logs for the probe:", "Metrics that would have been returned:", "probe_success 1", "Module configuration:", "prober: http", "<secret>"] {
        assert!(report.contains(part), "{part} is not in\n{report}");
    }
    assert!(!report.contains("hush"), "a secret in\n{report}");
    let (_, by_id) = served.ask("GET", "/logs?id=0", "").await;
    assert_eq!(by_id, report);
    assert_eq!(served.ask("GET", &format!("/logs?module=post&target={shop}"), "").await.1, report);
    let (_, page) = served.ask("GET", "/", "").await;
    assert!(page.contains("<td>post</td>") && page.contains("logs?id=0"), "{page}");
    let (_, config) = served.ask("GET", "/config", "").await;
    assert!(config.contains("fail_if_body_matches_regexp") && !config.contains("hush"), "{config}");
}

#[tokio::test]
async fn a_file_with_a_mistake_is_not_taken() {
    let (served, shop) = (served().await, shop().await.to_string());
    std::fs::write(&served.config, "modules: {other: {prober: http, nonsense: 1}}").expect("it can be written");
    let (status, why) = served.ask("POST", "/-/reload", "").await;
    assert_eq!(status, 500);
    assert!(why.contains("blackbox.yml:1:33: modules.other.nonsense: unknown key"), "{why}");
    assert_lines(&served.probe("http_2xx", &shop).await, &["probe_success 1"]);
    assert_lines(&served.ask("GET", "/metrics", "").await.1, &["blackbox_exporter_config_last_reload_successful 0"]);
    std::fs::write(&served.config, "modules: {other: {prober: http}}").expect("it can be written");
    assert_eq!(served.ask("POST", "/-/reload", "").await.0, 200);
    assert_lines(&served.probe("other", &shop).await, &["probe_success 1"]);
    assert_eq!(served.ask("GET", "/probe?module=http_2xx&target=x", "").await.0, 400);
}
