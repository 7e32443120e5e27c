//! The paths of blackbox_exporter, served for real on loopback. Beside the real one: tests/blackbox/run.

mod common;

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
    served_with(CONFIG).await
}

async fn served_with(text: &str) -> Served {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("blackbox.yml");
    std::fs::write(&config, text).expect("it can be written");
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

/// The conversations of blackbox's own example configuration: mail with STARTTLS in the middle, and a banner whose parts become labels.
#[tokio::test]
async fn tcp_modules_of_the_example() {
    let authority = common::tls::Authority::new();
    let text = format!(
        "modules:\n  smtp_starttls:\n    prober: tcp\n    timeout: 5s\n    tcp:\n      tls_config: {{server_name: mail.test, ca: {:?}}}\n      query_response:\n        \
         - expect: \"^220 ([^ ]+) ESMTP (.+)$\"\n        - send: \"EHLO prober\\r\"\n        - expect: \"^250-STARTTLS\"\n        - send: \"STARTTLS\\r\"\n        \
         - expect: \"^220\"\n        - starttls: true\n        - send: \"EHLO prober\\r\"\n        - expect: \"^250-AUTH\"\n        - send: \"QUIT\\r\"\n  \
         ssh_banner_extract:\n    prober: tcp\n    timeout: 5s\n    tcp:\n      query_response:\n        - expect: \"^SSH-2.0-([^ -]+)(?: (.*))?$\"\n          labels:\n          \
         - name: ssh_version\n            value: \"${{1}}\"\n          - name: ssh_comments\n            value: \"${{2}}\"\n  \
         ssh_and_more:\n    prober: tcp\n    timeout: 5s\n    tcp:\n      query_response:\n        - expect: \"^SSH-2.0-(.*)$\"\n          labels:\n          \
         - name: ssh_version\n            value: \"${{1}}\"\n        - expect: \"^more\"\n",
        authority.pem()
    );
    let served = served_with(&text).await;
    let acceptor = authority.acceptor("mail.test", &[]);
    let mail = |injected: &'static str| {
        let acceptor = acceptor.clone();
        common::serve(move |mut stream, _| {
            let acceptor = acceptor.clone();
            async move {
                let mut said = [0; 256];
                let _ = stream.write_all(b"220 mail.test ESMTP ready\r\n").await;
                let _ = stream.read(&mut said).await;
                let _ = stream.write_all(b"250-mail.test\r\n250-STARTTLS\r\n250 OK\r\n").await;
                let _ = stream.read(&mut said).await;
                let _ = stream.write_all(format!("220 go\r\n{injected}").as_bytes()).await;
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let n = stream.read(&mut said).await.unwrap_or(0);
                assert_eq!(&said[..n], b"EHLO prober\r\n");
                let _ = stream.write_all(b"250-mail.test\r\n250-AUTH PLAIN\r\n250 OK\r\n").await;
                let _ = stream.read(&mut said).await;
            }
        })
    };
    let good = served.probe("smtp_starttls", &mail("").await.to_string()).await;
    assert_lines(&good, &["probe_success 1", "probe_failed_due_to_regex 0"]);
    assert!(good.contains("probe_ssl_earliest_cert_expiry ") && good.contains("probe_tls_version_info{version=\"TLS 1.3\"} 1"), "{good}");
    // Plain text beside the consent is nobody's that TLS knows.
    let injected = served.probe("smtp_starttls", &mail("250-AUTH\r\n").await.to_string()).await;
    assert_lines(&injected, &["probe_success 0"]);
    let ssh = |banner: &'static str| common::serve(move |mut stream, _| async move { drop(stream.write_all(banner.as_bytes()).await) });
    let labelled = served.probe("ssh_banner_extract", &ssh("SSH-2.0-OpenSSH_9.2p1 Debian \"x\"\r\n").await.to_string()).await;
    assert_lines(&labelled, &["probe_success 1", r#"probe_expect_info{ssh_comments="Debian \"x\"",ssh_version="OpenSSH_9.2p1"} 1"#]);
    // What was said before a later step failed stays said.
    let half = served.probe("ssh_and_more", &ssh("SSH-2.0-OpenSSH_9.2p1\r\n").await.to_string()).await;
    assert_lines(&half, &["probe_success 0", r#"probe_expect_info{ssh_version="OpenSSH_9.2p1"} 1"#]);
    let other = served.probe("ssh_banner_extract", &ssh("220 no shell\r\n").await.to_string()).await;
    assert_lines(&other, &["probe_success 0", "probe_failed_due_to_regex 1"]);
    assert!(!other.contains("probe_expect_info"), "{other}");
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

/// A server that knows a token, wants it, and wants a header twice; as a proxy it wants a name and a password.
async fn guarded() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = String::new();
                let whole = |text: &str| {
                    let (head, body) = text.split_once("\r\n\r\n")?;
                    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok()).unwrap_or(0);
                    (body.len() >= length).then_some(())
                };
                while whole(&asked).is_none() {
                    let mut buffer = [0; 4_096];
                    match stream.read(&mut buffer).await {
                        Ok(n) if n > 0 => asked.push_str(&String::from_utf8_lossy(&buffer[..n]).to_lowercase()),
                        _ => return,
                    }
                }
                let body =
                    if asked.starts_with("post /token ") { "{\"access_token\": \"t0k\", \"token_type\": \"bearer\", \"expires_in\": 60}" } else { "hello" };
                let good = if asked.starts_with("post /token ") {
                    // RFC 6749, section 2.3.1: by Basic, or in the body.
                    asked.contains("grant_type=client_credentials")
                        && asked.contains("audience=shop")
                        && (asked.contains("authorization: basic") || asked.contains("client_secret=hush"))
                } else if asked.starts_with("get http://192.0.2.1/") {
                    // p:%68ush
                    asked.contains("proxy-authorization: basic cdpodxno")
                } else {
                    asked.contains("authorization: bearer t0k") && asked.matches("\r\nx-a: ").count() == 2
                };
                let status = if good { "200 OK" } else { "403 No" };
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nx-there: 7\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn headers_tokens_and_proxies() {
    let server = guarded().await;
    let header =
        |pattern: &str, name: &str, missing: bool| format!("fail_if_header_not_matches: [{{header: {name}, regexp: '{pattern}', allow_missing: {missing}}}]");
    let oauth = format!(
        "oauth2: {{client_id: c, client_secret: hush, token_url: 'http://{server}/token', scopes: [a], endpoint_params: {{audience: shop}}}}, http_headers: {{X-A: {{values: [one], secrets: [two]}}}}"
    );
    let served = served_with(&format!(
        "modules:\n  token: {{prober: http, http: {{{oauth}}}}}\n  twice: {{prober: http, http: {{{}}}}}\n  there: {{prober: http, http: {{{oauth}, {}}}}}\n  wrong: {{prober: http, http: {{{oauth}, {}}}}}\n  gone: {{prober: http, http: {{{oauth}, {}}}}}\n  must: {{prober: http, http: {{{oauth}, {}}}}}\n  proxy: {{prober: http, http: {{proxy_url: 'http://p:%68ush@{server}', skip_resolve_phase_with_proxy: true}}}}\n  stranger: {{prober: http, http: {{proxy_url: 'http://{server}'}}}}\n",
        oauth.replace(", secrets: [two]", ""),
        header("^7$", "X-There", true),
        header("^8$", "X-There", true),
        header("^8$", "X-Gone", true),
        header("^8$", "X-Gone", false),
    ))
    .await;
    let target = format!("http://{server}/");
    for (module, target, good) in [
        ("token", target.as_str(), true),
        ("twice", &target, false),
        ("there", &target, true),
        ("wrong", &target, false),
        ("gone", &target, true),
        ("must", &target, false),
        ("proxy", "http://192.0.2.1/", true),
        ("stranger", "http://192.0.2.1/", false),
    ] {
        let metrics = served.probe(module, target).await;
        assert!(metrics.contains(&format!("probe_success {}\n", u8::from(good))), "{module}: {metrics}");
        assert!(!metrics.contains("hush"));
    }
}

#[tokio::test]
async fn client_certificates() {
    let authority = common::tls::Authority::new();
    let identity = authority.issue("127.0.0.1");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(identity.chain[1].clone()).expect("an authority");
    let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("a verifier");
    let config = rustls::ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(identity.chain, identity.key).expect("a configuration");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let server = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let _ = stream.read(&mut [0; 1_024]).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            });
        }
    });
    let dir = tempfile::tempdir().expect("a directory");
    let ours = authority.issue("probe.test").pem;
    let key_at = ours.find("-----BEGIN PRIVATE KEY-----").expect("a key");
    for (name, text) in [("cert.pem", &ours[..key_at]), ("key.pem", &ours[key_at..]), ("ca.pem", &authority.pem())] {
        std::fs::write(dir.path().join(name), text).expect("a file");
    }
    let path = |name: &str| dir.path().join(name).display().to_string();
    let ca = format!("ca_file: '{}'", path("ca.pem"));
    let served = served_with(&format!(
        "modules:\n  shown: {{prober: http, http: {{tls_config: {{{ca}, cert_file: '{}', key_file: '{}'}}}}}}\n  none: {{prober: http, http: {{tls_config: {{{ca}}}}}}}\n",
        path("cert.pem"),
        path("key.pem")
    ))
    .await;
    for (module, good) in [("shown", 1), ("none", 0)] {
        let metrics = served.probe(module, &format!("https://{server}/")).await;
        assert!(metrics.contains(&format!("probe_success {good}\n")), "{module}: {metrics}");
    }
}

#[tokio::test]
async fn records_are_validated_as_a_whole() {
    use hickory_proto::op::{Message, MessageType};
    use hickory_proto::rr::{RData, Record, rdata::A};
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let server = socket.local_addr().expect("its address");
    tokio::spawn(async move {
        let mut buffer = [0; 1_500];
        while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
            let mut answer = Message::from_vec(&buffer[..n]).expect("a query");
            answer.metadata.message_type = MessageType::Response;
            let name = answer.queries[0].name().clone();
            for last in [1, 2] {
                answer.add_answer(Record::from_rdata(name.clone(), 300, RData::A(A::new(10, 0, 0, last))));
            }
            let _ = socket.send_to(&answer.to_vec().expect("it encodes"), from).await;
        }
    });
    let cases = [
        ("fail_if_matches_regexp", r"A\t10\.0\.0\.2$", 0),
        ("fail_if_matches_regexp", "192", 1),
        ("fail_if_all_match_regexp", r"A\t10\.", 0),
        ("fail_if_all_match_regexp", r"0\.2$", 1),
        ("fail_if_not_matches_regexp", r"^shop\.example\.\t300\tIN\tA\t10", 1),
        ("fail_if_not_matches_regexp", r"0\.2$", 0),
        ("fail_if_none_matches_regexp", r"0\.2$", 1),
        ("fail_if_none_matches_regexp", "192", 0),
    ];
    let module = |(i, (key, pattern, _)): (usize, &(&str, &str, u8))| {
        format!("  m{i}: {{prober: dns, dns: {{query_name: shop.example, query_type: A, validate_answer_rrs: {{{key}: ['{pattern}']}}}}}}\n")
    };
    let modules: String = cases.iter().enumerate().map(module).collect();
    let served = served_with(&format!("modules:\n{modules}")).await;
    for (i, (key, pattern, good)) in cases.iter().enumerate() {
        let metrics = served.probe(&format!("m{i}"), &server.to_string()).await;
        assert!(metrics.contains(&format!("probe_success {good}\n")), "{key} {pattern}: {metrics}");
    }
}
