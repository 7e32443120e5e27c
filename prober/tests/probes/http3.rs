//! HTTP/3 against real QUIC servers, good and bad.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h3::server::RequestStream;
use http::{Request, Response};
use probity_prober::RunResult;
use probity_prober::policy::AddressPolicy;
use probity_proto::v1::Reason;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::net::UdpSocket;

use super::common::ocsp;
use super::common::quic::{quic, raw, tls};
use super::common::tls::{Authority, Identity};
use super::common::*;

type Stream = RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>;

/// An HTTP/3 server whose every request is handled by a function.
async fn h3<F, Fut>(config: ServerConfig, handler: F) -> SocketAddr
where
    F: Fn(Request<()>, Stream) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    quic(config, move |connection| {
        let handler = handler.clone();
        async move {
            let Ok(mut connection) = h3::server::Connection::new(h3_quinn::Connection::new(connection)).await else { return };
            while let Ok(Some(asked)) = connection.accept().await {
                let handler = handler.clone();
                tokio::spawn(async move {
                    if let Ok((request, stream)) = asked.resolve_request().await {
                        handler(request, stream).await;
                    }
                });
            }
        }
    })
    .await
}

async fn say(stream: &mut Stream, response: http::response::Builder, body: &str) {
    let _ = stream.send_response(response.body(()).expect("an answer")).await;
    let _ = stream.send_data(Bytes::copy_from_slice(body.as_bytes())).await;
}

/// Sends the request back as the body; what the paths of redirects say.
async fn echo(request: Request<()>, mut stream: Stream) {
    let mut body = Vec::new();
    while let Ok(Some(mut data)) = stream.recv_data().await {
        body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
    }
    let path = request.uri().path();
    let target = request.headers().get("x-to").and_then(|v| v.to_str().ok()).unwrap_or("/end");
    if path == "/redirect" {
        say(&mut stream, Response::builder().status(302).header("location", target), "").await;
    } else {
        let headers: Vec<String> = request.headers().iter().map(|(n, v)| format!("{n}: {}\n", v.to_str().unwrap_or("?"))).collect();
        let text = format!("{} {}\n{}\n{}", request.method(), request.uri(), headers.concat(), String::from_utf8_lossy(&body));
        let response = Response::builder().header("content-length", text.len()).header("x-kind", "echo");
        // A HEAD's answer announces what it does not send.
        if request.method() == http::Method::HEAD {
            let _ = stream.send_response(response.body(()).expect("an answer")).await;
        } else {
            say(&mut stream, response, &text).await;
        }
    }
    let _ = stream.finish().await;
}

/// A probe of `shop.test` by HTTP/3.
fn spec(authority: &Authority, address: SocketAddr, path: &str, tls: &str, http: &str, more: &str) -> String {
    let ca = authority.pem().trim_end().replace('\n', "\n      ");
    let lines = |text: &str, indent: &str| text.lines().map(|l| format!("{indent}{l}\n")).collect::<String>();
    format!(
        "hosts: {{shop.test: 127.0.0.1}}\n{more}\nhttp:\n  version: 3\n  url: https://shop.test:{}{path}\n  tls:\n    ca: |\n      {ca}\n{}{}",
        address.port(),
        lines(tls, "    "),
        lines(http, "  ")
    )
}

async fn run(authority: &Authority, address: SocketAddr, http: &str, more: &str) -> RunResult {
    let more = if more.contains("timeout") { more.to_owned() } else { format!("timeout: 10s\n{more}") };
    probe(&spec(authority, address, "/p", "", http, &more)).await
}

#[tokio::test]
async fn requests_and_answers() {
    let authority = Authority::new();
    let a = h3(tls(authority.issue("shop.test"), b"h3"), echo).await;
    let good = run(&authority, a, "expect: {version: ['3'], headers: [{name: x-kind, equals: echo}], body: [{contains: 'GET https://shop.test'}, {contains: 'user-agent: probity/'}, {contains: 'traceparent: 00-'}]}", "").await;
    assert_reason(&good, Reason::Good);
    assert_eq!(phase_names(&good.phases), ["resolve", "connect", "tls", "request", "first_byte", "transfer"]);
    assert_eq!(good.peer, a.to_string());
    for (name, value) in [
        ("network.protocol.version", "3"),
        ("network.transport", "quic"),
        ("network.type", "ipv4"),
        ("tls.protocol.version", "1.3"),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(fact(&good, name), value, "{name}: {good:#?}");
    }
    assert!(!fact(&good, "tls.server.not_after").is_empty(), "{good:#?}");
    let cases = [
        ("method: PUT\nbody: 'a b'\nexpect: {body: [{contains: 'PUT '}, {contains: 'content-length: 3'}, {contains: 'a b'}]}", Reason::Good),
        ("json: {n: 1}\nexpect: {body: [{contains: 'application/json'}, {contains: '{\"n\":1}'}]}", Reason::Good),
        ("headers: {Host: other.test, Connection: close}\nexpect: {body: [{contains: 'https://other.test/p'}]}", Reason::Good),
        ("method: HEAD\nmaxBodyBytes: 1", Reason::Good),
        ("maxBodyBytes: 10", Reason::BodyTooLarge),
        ("expect: {status: [404]}", Reason::StatusMismatch),
        ("expect: {version: ['2']}", Reason::VersionMismatch),
        ("expect: {body: [{contains: nowhere}]}", Reason::BodyMismatch),
        ("expect: {headers: [{name: x-kind, equals: other}]}", Reason::HeaderMismatch),
    ];
    for (http, reason) in cases {
        let result = run(&authority, a, http, "").await;
        assert_eq!(result.reason, reason, "{http}\n{result:#?}");
    }
    // Bodies of many frames, both ways.
    let long = "x".repeat(300_000);
    let result = run(&authority, a, &format!("body: {long}\nexpect: {{size: {{min: 300KB}}, body: [{{matches: 'x{{900}}$'}}]}}"), "").await;
    assert_reason(&result, Reason::Good);
}

#[tokio::test]
async fn empty_frames_and_trailers() {
    let authority = Authority::new();
    let body = |body: &'static [&'static str]| {
        move |_: Request<()>, mut stream: Stream| async move {
            let _ = stream.send_response(Response::new(())).await;
            for part in body {
                let _ = stream.send_data(Bytes::from_static(part.as_bytes())).await;
            }
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-sum", "1".parse().expect("a value"));
            let _ = stream.send_trailers(trailers).await;
            let _ = stream.finish().await;
        }
    };
    // An empty frame is no end of a body, wherever it stands.
    for parts in [&["a", "", "b"][..], &["", "", "ab"], &["ab", ""], &["ab"]] {
        let server = h3(tls(authority.issue("shop.test"), b"h3"), body(parts)).await;
        let result = run(&authority, server, "expect: {size: {min: 2, max: 2}, body: [{matches: '^ab$'}]}", "").await;
        assert_reason(&result, Reason::Good);
    }
}

#[tokio::test]
async fn redirects_and_the_policy() {
    let authority = Authority::new();
    let a = h3(tls(authority.issue("shop.test"), b"h3"), echo).await;
    let follow = |to: &str| spec(&authority, a, "/redirect", "", &format!("followRedirects: 3\nheaders: {{X-To: '{to}'}}"), "timeout: 10s");
    let result = probe(&follow("/end")).await;
    assert_reason(&result, Reason::Good);
    assert_eq!(fact(&result, "http.redirects"), "1");
    assert_reason(&probe(&follow("/redirect")).await, Reason::RedirectLoop);
    assert_reason(&probe(&follow("http://shop.test/")).await, Reason::VersionMismatch);
    let strict = context_with(AddressPolicy::Remote, None);
    assert_reason(&probe_in(&strict, &follow("/end")).await, Reason::AddressForbidden);
}

#[tokio::test]
async fn certificates() {
    let authority = Authority::new();
    let good = h3(tls(authority.issue("shop.test"), b"h3"), echo).await;
    let named = h3(tls(authority.issue("other.test"), b"h3"), echo).await;
    let expired = authority.issue_with("shop.test", |p| {
        p.not_before = rcgen::date_time_ymd(2020, 1, 1);
        p.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    let expired = h3(tls(expired, b"h3"), echo).await;
    let soon = authority.issue_with("shop.test", |p| p.not_after = time::OffsetDateTime::now_utc() + time::Duration::hours(30));
    let soon = h3(tls(soon, b"h3"), echo).await;
    let stranger = h3(tls(Authority::new().issue("shop.test"), b"h3"), echo).await;
    let pin = format!("sha256/{}", "A".repeat(43) + "=");
    let context = context();
    for (address, options, reason) in [
        (good, "", Reason::Good),
        (named, "", Reason::TlsNameMismatch),
        (named, "serverName: other.test", Reason::Good),
        (expired, "", Reason::TlsExpired),
        (expired, "skipVerify: true", Reason::Good),
        (stranger, "", Reason::TlsUntrusted),
        (good, "minDays: 2", Reason::Good),
        (soon, "minDays: 2", Reason::TlsExpiresSoon),
        (good, "requireStaple: true", Reason::TlsNotStapled),
        (good, &format!("pins: ['{pin}']"), Reason::TlsPinMismatch),
    ] {
        let result = probe_in(&context, &spec(&authority, address, "/", options, "", "timeout: 10s")).await;
        assert_eq!(result.reason, reason, "{options}\n{result:#?}");
        assert!(!fact(&result, "tls.server.not_after").is_empty(), "what was shown is told: {result:#?}");
        assert_eq!(phase_names(&result.phases)[..3], ["resolve", "connect", "tls"], "{result:#?}");
    }
    // The key that it has; the message of a pin that it has not tells it.
    let own = probe_in(&context, &spec(&authority, good, "/", "", "", "timeout: 10s")).await;
    let own = fact(&own, "tls.server.spki_sha256").to_owned();
    let pinned = probe_in(&context, &spec(&authority, good, "/", &format!("pins: ['sha256/{own}']"), "", "timeout: 10s")).await;
    assert_reason(&pinned, Reason::Good);
    let other = probe_in(&context, &spec(&authority, good, "/", &format!("pins: ['{pin}']"), "", "timeout: 10s")).await;
    assert!(other.message.contains(&own), "{}", other.message);
    // How long it is valid for.
    let left = probe_in(&context, &spec(&authority, soon, "/", "minDays: 1", "", "timeout: 10s")).await;
    assert_reason(&left, Reason::Good);
    assert_eq!(fact(&left, "tls.server.days_left"), "1");
    // Many at once, on whichever threads: each hears of its own server.
    let runs = (0..40).map(|i| {
        let spec = spec(&authority, if i % 2 == 0 { good } else { named }, "/", "", "", "timeout: 10s");
        let context = &context;
        async move { (i, probe_in(context, &spec).await.reason) }
    });
    for (i, reason) in futures_util::future::join_all(runs).await {
        assert_eq!(reason, if i % 2 == 0 { Reason::Good } else { Reason::TlsNameMismatch });
    }
}

#[tokio::test]
async fn stapled_status() {
    let authority = Authority::new();
    for (status, required, word) in [(&[0x80, 0][..], Reason::Good, "good"), (b"\xa1\x11\x18\x0f20260101000000Z", Reason::TlsRevoked, "revoked")] {
        let Identity { chain, key, .. } = authority.issue("shop.test");
        let response = ocsp::response(&chain, status, "20990101000000Z", &[], |bytes| authority.sign(bytes));
        let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert_with_ocsp(chain, key, response).expect("a configuration");
        config.alpn_protocols = vec![b"h3".to_vec()];
        let server = h3(config, echo).await;
        let result = probe(&spec(&authority, server, "/", "requireStaple: true", "", "timeout: 10s")).await;
        assert_eq!((result.reason, fact(&result, "tls.server.ocsp")), (required, word), "{result:#?}");
    }
}

#[tokio::test]
async fn client_certificates() {
    let authority = Authority::new();
    let mut roots = rustls::RootCertStore::empty();
    let identity = authority.issue("shop.test");
    roots.add(identity.chain[1].clone()).expect("an authority");
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("a verifier");
    let mut config = ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(identity.chain, identity.key).expect("a configuration");
    config.alpn_protocols = vec![b"h3".to_vec()];
    let a = h3(config, echo).await;
    let secrets = tempfile::tempdir().expect("a directory");
    std::fs::write(secrets.path().join("me"), authority.issue("probe.test").pem).expect("a file");
    let context = context_with(AddressPolicy::Anywhere, Some(secrets.path().to_owned()));
    let with = probe_in(&context, &spec(&authority, a, "/", "clientCertificate: {secretRef: me}", "", "timeout: 10s")).await;
    assert_reason(&with, Reason::Good);
    let without = probe_in(&context, &spec(&authority, a, "/", "", "", "timeout: 10s")).await;
    assert_reason(&without, Reason::TlsHandshake);
}

#[tokio::test]
async fn kept_connections() {
    let authority = Authority::new();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let a = quic(tls(authority.issue("shop.test"), b"h3"), move |connection| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            let Ok(mut server) = h3::server::Connection::new(h3_quinn::Connection::new(connection.clone())).await else { return };
            while let Ok(Some(asked)) = server.accept().await {
                let Ok((request, stream)) = asked.resolve_request().await else { return };
                let last = request.uri().path() == "/last";
                echo(request, stream).await;
                if last {
                    // After the answer has been read.
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    connection.close(0x100u32.into(), b"");
                }
            }
        }
    })
    .await;
    let context = context();
    let ask = |path: &str| spec(&authority, a, path, "", "reuse: true", "timeout: 10s");
    let first = probe_in(&context, &ask("/")).await;
    assert_reason(&first, Reason::Good);
    assert_eq!(fact(&first, "http.connection.reused"), "false");
    let second = probe_in(&context, &ask("/last")).await;
    assert_reason(&second, Reason::Good);
    assert_eq!(fact(&second, "http.connection.reused"), "true");
    assert_eq!(phase_names(&second.phases), ["request", "first_byte", "transfer"]);
    tokio::time::sleep(Duration::from_millis(800)).await;
    let third = probe_in(&context, &ask("/")).await;
    assert_reason(&third, Reason::Good);
    assert_eq!(fact(&third, "http.connection.reused"), "false");
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn the_way_there() {
    let authority = Authority::new();
    let a = h3(tls(authority.issue("shop.test"), b"h3"), echo).await;
    let from = run(&authority, a, "", "source: {address: 127.0.0.9}").await;
    assert_reason(&from, Reason::Good);
    assert_reason(&run(&authority, a, "", "source: {interface: lo}").await, Reason::Good);
    assert_reason(&run(&authority, a, "", "source: {address: 192.0.2.1}").await, Reason::ProberError);
    // The first address is silent: the second gets its turn.
    let local = h3(tls(authority.issue("localhost"), b"h3"), echo).await;
    let _silent = UdpSocket::bind(("::1", local.port())).await.expect("a free port");
    let of_local = |more: &str| spec(&authority, local, "/", "", "", more).replace("https://shop.test", "https://localhost");
    let result = probe(&of_local("timeout: 10s\nattemptDelay: 120ms")).await;
    assert_reason(&result, Reason::Good);
    assert_eq!(result.peer, local.to_string());
    assert!(result.duration.as_millis() >= 120, "IPv6 had its head start: {result:?}");
    assert_reason(&probe(&of_local("timeout: 300ms\nfamily: 6")).await, Reason::ConnectTimeout);
}

#[tokio::test]
async fn nobody_answers() {
    let authority = Authority::new();
    let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let a = silent.local_addr().expect("its address");
    let result = run(&authority, a, "", "timeout: 400ms").await;
    assert_reason(&result, Reason::ConnectTimeout);
    assert!(result.message.contains("UDP is blocked on the way"), "{result:?}");
    assert_eq!(phase_names(&result.phases), ["resolve", "connect"]);
    drop(silent);
    // The port is closed: the kernel says so at once.
    let result = run(&authority, a, "", "timeout: 10s").await;
    assert_reason(&result, Reason::ConnectRefused);
    // Somebody who speaks something else.
    let other = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let a = other.local_addr().expect("its address");
    tokio::spawn(async move {
        let mut buffer = [0; 2_048];
        while let Ok((_, peer)) = other.recv_from(&mut buffer).await {
            let _ = other.send_to(b"this is not QUIC at all, whatever you say", peer).await;
        }
    });
    assert_reason(&run(&authority, a, "", "timeout: 400ms").await, Reason::TlsTimeout);
    let elsewhere = quic(tls(authority.issue("shop.test"), b"doq"), |c| async move { drop(c.closed().await) }).await;
    assert_reason(&run(&authority, elsewhere, "", "").await, Reason::VersionMismatch);
}

#[tokio::test]
async fn servers_that_misbehave() {
    let authority = Authority::new();
    let config = || tls(authority.issue("shop.test"), b"h3");
    let mute = quic(config(), |c| async move { drop(c.closed().await) }).await;
    assert_reason(&run(&authority, mute, "", "timeout: 500ms").await, Reason::ResponseTimeout);
    let hasty = quic(config(), |c| async move { c.close(0x101u32.into(), b"no") }).await;
    assert_reason(&run(&authority, hasty, "", "").await, Reason::ConnectionClosed);
    let refusing = h3(config(), |_, mut stream: Stream| async move { stream.stop_stream(h3::error::Code::H3_REQUEST_CANCELLED) }).await;
    assert_reason(&run(&authority, refusing, "", "").await, Reason::ConnectionReset);
    let endless_body = h3(config(), |_, mut stream: Stream| async move {
        let _ = stream.send_response(Response::new(())).await;
        while stream.send_data(Bytes::from_static(&[b'x'; 8_192])).await.is_ok() {}
    })
    .await;
    assert_reason(&run(&authority, endless_body, "", "").await, Reason::BodyTooLarge);
    let dripping = h3(config(), |_, mut stream: Stream| async move {
        let _ = stream.send_response(Response::new(())).await;
        while stream.send_data(Bytes::from_static(b"x")).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    assert_reason(&run(&authority, dripping, "", "timeout: 700ms").await, Reason::TransferTimeout);
    for (announced, reason) in [("100", Reason::ConnectionClosed), ("2", Reason::ProtocolError)] {
        let lying = h3(config(), move |_, mut stream: Stream| async move {
            say(&mut stream, Response::builder().header("content-length", announced), "short").await;
            let _ = stream.finish().await;
        })
        .await;
        assert_reason(&run(&authority, lying, "", "").await, reason);
    }
}

#[tokio::test]
async fn frames_that_are_none() {
    let authority = Authority::new();
    const FILL: &[u8] = &[0x21; 4_096];
    // HEADERS (0x01) of 2^30 bytes that do come; status 200 by QPACK's static table, then an unknown frame (0x21) of as many.
    let endless_head = raw(&authority, &[0x01, 0xc0, 0, 0, 0, 0x40, 0, 0, 0], FILL).await;
    let result = run(&authority, endless_head, "", "").await;
    assert_reason(&result, Reason::HeadersTooLarge);
    assert!(result.message.contains("no end"), "{result:?}");
    let endless_frame = raw(&authority, &[0x01, 0x03, 0x00, 0x00, 0xd9, 0x21, 0xc0, 0, 0, 0, 0x40, 0, 0, 0], FILL).await;
    let result = run(&authority, endless_frame, "", "").await;
    assert_reason(&result, Reason::ProtocolError);
    assert!(result.message.contains("does not go on"), "{result:?}");
    // Status 200, and `x` with 100,000 bytes of `y` (RFC 9204, section 4.5.6), although our settings allow less.
    let long_head = [&[0x01, 0x80, 0x01, 0x86, 0xa9, 0x00, 0x00, 0xd9, 0x21, b'x', 0x7f, 0xa1, 0x8c, 0x06][..], &[b'y'; 100_000]].concat();
    assert_reason(&run(&authority, raw(&authority, &long_head, b"").await, "", "").await, Reason::HeadersTooLarge);
    // DATA before HEADERS; a HEADERS frame that is no QPACK; an end without an answer.
    for head in [&[0x00, 0x01, b'x'][..], &[0x01, 0x04, 0xff, 0xff, 0xff, 0xff], &[]] {
        let address = raw(&authority, head, b"").await;
        assert_reason(&run(&authority, address, "", "").await, Reason::ProtocolError);
    }
}

#[tokio::test]
async fn what_is_poured_beside_a_body_ends_the_run() {
    let authority = Authority::new();
    let pouring = quic(tls(authority.issue("shop.test"), b"h3"), |connection| async move {
        let Ok(mut control) = connection.open_uni().await else { return };
        // SETTINGS, and an unknown frame of 2^30 bytes that never ends, while each byte of the body is progress.
        let _ = control.write_all(&[0x00, 0x04, 0x00, 0x21, 0xc0, 0, 0, 0, 0x40, 0, 0, 0]).await;
        let Ok((mut to, _from)) = connection.accept_bi().await else { return };
        tokio::spawn(async move { while control.write_all(&[0x21; 4_096]).await.is_ok() {} });
        let _ = to.write_all(&[0x01, 0x03, 0x00, 0x00, 0xd9]).await;
        while to.write_all(&[0x00, 0x01, b'x']).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let result = run(&authority, pouring, "", "timeout: 30s").await;
    assert_reason(&result, Reason::ProtocolError);
    assert!(result.message.contains("does not go on"), "{result:?}");
}

#[tokio::test]
async fn a_kept_connection_that_is_closed_under_a_request() {
    let authority = Authority::new();
    let closing = quic(tls(authority.issue("shop.test"), b"h3"), |connection| async move {
        let Ok(mut server) = h3::server::Connection::new(h3_quinn::Connection::new(connection.clone())).await else { return };
        let Ok(Some(first)) = server.accept().await else { return };
        let Ok((request, stream)) = first.resolve_request().await else { return };
        echo(request, stream).await;
        if let Ok(Some(second)) = server.accept().await {
            drop(second.resolve_request().await);
            connection.close(0x100u32.into(), b"");
        }
    })
    .await;
    let context = context();
    let ask = |method: &str| spec(&authority, closing, "/", "", &format!("reuse: true\nmethod: {method}"), "timeout: 10s");
    assert_reason(&probe_in(&context, &ask("GET")).await, Reason::Good);
    let again = probe_in(&context, &ask("GET")).await;
    assert_reason(&again, Reason::Good);
    assert_eq!((fact(&again, "http.connection.reused"), fact(&again, "http.connection.retried")), ("false", "connection_closed"));
    // What may not be done twice is not.
    let posted = probe_in(&context, &ask("POST")).await;
    assert!(matches!(posted.reason, Reason::ConnectionClosed | Reason::ConnectionReset), "{posted:#?}");
}
