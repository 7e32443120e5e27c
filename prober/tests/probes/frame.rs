//! What all kinds share: families, source, resolver, inversion, retries, limits, the address policy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::common::*;
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use probity_prober::policy::AddressPolicy;
use probity_proto::v1::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;

/// The same port on both loopback addresses.
async fn on_both<F, Fut>(handler: F) -> u16
where
    F: Fn(tokio::net::TcpStream, SocketAddr) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let v4 = serve(handler.clone()).await;
    serve_on(format!("[::1]:{}", v4.port()).parse().expect("an address"), handler).await.port()
}

#[tokio::test]
async fn families() {
    let port = on_both(|_, _| async {}).await;
    let target = format!("target: localhost:{port}\ntcp: {{}}\n");
    for (family, peer, kind) in
        [("any", "[::1]", "ipv6"), ("4", "127.0.0.1", "ipv4"), ("6", "[::1]", "ipv6"), ("prefer4", "127.0.0.1", "ipv4"), ("prefer6", "[::1]", "ipv6")]
    {
        let result = probe(&format!("{target}family: {family}")).await;
        assert_reason(&result, Reason::Good);
        assert_eq!((result.peer.clone(), fact(&result, "network.type")), (format!("{peer}:{port}"), kind), "{family}");
    }
    let both = probe(&format!("{target}family: both")).await;
    assert_reason(&both, Reason::Good);
    assert_eq!(phase_names(&both.phases), ["resolve", "connect", "resolve", "connect"]);
    let only_v4 = serve(|_, _| async {}).await.port();
    let target = format!("target: localhost:{only_v4}\ntcp: {{}}\n");
    assert_reason(&probe(&target).await, Reason::Good);
    let both = probe(&format!("{target}family: both")).await;
    assert_reason(&both, Reason::ConnectRefused);
    assert!(both.message.starts_with("IPv6: [::1]:"), "{}", both.message);
    assert_reason(&probe(&format!("target: 127.0.0.1:{only_v4}\ntcp: {{}}\nfamily: 6")).await, Reason::DnsNoAddress);
}

#[tokio::test]
async fn happy_eyeballs_goes_on_beside_a_silent_address() {
    let (v6, _held, _listener) = blackhole("[::1]:0".parse().expect("an address")).await;
    serve_on(format!("127.0.0.1:{}", v6.port()).parse().expect("an address"), |_, _| async {}).await;
    let result = probe(&format!("target: localhost:{}\ntcp: {{}}\nattemptDelay: 120ms", v6.port())).await;
    assert_reason(&result, Reason::Good);
    assert_eq!(result.peer, format!("127.0.0.1:{}", v6.port()));
    assert!(result.duration.as_millis() >= 120, "IPv6 had its head start: {result:?}");
    let alone = probe(&format!("target: localhost:{}\ntcp: {{}}\nfamily: 6\ntimeout: 300ms", v6.port())).await;
    assert_reason(&alone, Reason::ConnectTimeout);
    assert_eq!(alone.message, "no answer within 300ms in connect");
}

#[tokio::test]
async fn the_source_is_what_the_server_sees() {
    let address = serve(|mut stream, peer| async move {
        let _ = stream.write_all(peer.ip().to_string().as_bytes()).await;
    })
    .await;
    let spec = |source: &str, expect: &str| format!("target: {address}\ntcp: {{expect: '^{expect}$'}}\nsource: {source}");
    assert_reason(&probe(&spec("{address: 127.0.0.9}", "127.0.0.9")).await, Reason::Good);
    assert_reason(&probe(&spec("{interface: lo}", "127.0.0.1")).await, Reason::Good);
    // Not the target's failing.
    assert_reason(&probe(&spec("{interface: nosuch0}", "x")).await, Reason::ProberError);
    assert_reason(&probe(&spec("{address: 192.0.2.1}", "x")).await, Reason::ProberError);
    assert_reason(&probe(&spec("{address: '::1'}", "x")).await, Reason::DnsNoAddress);
}

#[tokio::test]
async fn inverted_probes_want_no_answer() {
    let open = serve(|_, _| async {}).await;
    let closed = closed_port().await;
    let (silent, _held, _listener) = blackhole("127.0.0.1:0".parse().expect("an address")).await;
    let result = probe(&format!("target: {open}\ntcp: {{}}\ninvert: true")).await;
    assert_reason(&result, Reason::Reachable);
    assert_eq!(result.message, format!("{open} can be reached, and must not"));
    assert_reason(&probe(&format!("target: {closed}\ntcp: {{}}\ninvert: true")).await, Reason::Good);
    assert_reason(&probe(&format!("target: {silent}\ntcp: {{}}\ninvert: true\ntimeout: 200ms")).await, Reason::Good);
    assert_reason(&probe(&format!("target: http://{open}/\nhttp: {{}}\ninvert: true")).await, Reason::Reachable);
    // Of datagrams silence is all there is; a port that is refused says so by ICMP.
    let quiet = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let mute = quiet.local_addr().expect("its address");
    for kind in ["udp: {send: x}", "dns: {name: a.example}"] {
        assert_reason(&probe(&format!("target: {mute}\n{kind}\ninvert: true\ntimeout: 200ms")).await, Reason::Good);
        assert_reason(&probe(&format!("target: {mute}\n{kind}\ntimeout: 200ms")).await, Reason::ResponseTimeout);
    }
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((n, from)) = quiet.recv_from(&mut buffer).await {
            // Any answer: to a query of DNS, that it is refused.
            buffer[2] |= 0x80;
            buffer[3] = 5;
            let _ = quiet.send_to(&buffer[..n], from).await;
        }
    });
    for kind in ["udp: {send: xxxx}", "dns: {name: a.example}"] {
        assert_reason(&probe(&format!("target: {mute}\n{kind}\ninvert: true\ntimeout: 1s")).await, Reason::Reachable);
    }
}

#[tokio::test]
async fn retries_are_immediate_and_hide_nothing() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let address = serve(move |mut stream, _| {
        let turn = count.fetch_add(1, Ordering::SeqCst);
        async move {
            read_request(&mut stream).await;
            match turn % 3 {
                0 => {}
                1 => drop(stream.write_all(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n").await),
                _ => drop(stream.write_all(ok("yes").as_bytes()).await),
            }
        }
    })
    .await;
    let result = probe(&format!("target: http://{address}/\nretries: 5")).await;
    assert_reason(&result, Reason::Good);
    assert_eq!(result.attempts, 3);
    let reasons: Vec<Reason> = result.failed.iter().map(|f| f.reason).collect();
    assert_eq!(reasons, [Reason::ConnectionClosed, Reason::StatusMismatch]);
    assert!(result.failed[0].offset < result.failed[1].offset && result.failed[1].offset < result.offset);
    assert_reason(&probe(&format!("target: http://{address}/\nretries: 1")).await, Reason::StatusMismatch);
    assert_eq!(seen.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn an_attempt_has_its_own_time_out() {
    let first = Arc::new(AtomicUsize::new(0));
    let address = serve(move |mut stream, _| {
        let turn = first.fetch_add(1, Ordering::SeqCst);
        async move {
            read_request(&mut stream).await;
            if turn == 0 {
                tokio::time::sleep(std::time::Duration::from_secs(60)).await;
            }
            let _ = stream.write_all(ok("").as_bytes()).await;
        }
    })
    .await;
    let result = probe(&format!("target: http://{address}/\nretries: 1\nattemptTimeout: 200ms")).await;
    assert_reason(&result, Reason::Good);
    assert_eq!(result.failed[0].message, "no answer within 200ms in first_byte");
}

#[tokio::test]
async fn limits_on_phases() {
    let address = serve(|mut stream, _| async move {
        read_request(&mut stream).await;
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
        let _ = stream.write_all(ok("").as_bytes()).await;
    })
    .await;
    let spec = |limit: &str| format!("target: http://{address}/\nmaxDuration: {limit}");
    assert_reason(&probe(&spec("{firstByte: 30s, total: 60s}")).await, Reason::Good);
    for limit in ["{firstByte: 50ms}", "50ms"] {
        let result = probe(&spec(limit)).await;
        assert_reason(&result, Reason::TooSlow);
        assert!(result.message.ends_with("want at most 50ms"), "{}", result.message);
    }
}

/// Answers for `both.test` (both families), `four.test`; other names with the code that their first label says.
fn dns_answer(bytes: &[u8]) -> Option<Vec<u8>> {
    let query = Message::from_vec(bytes).ok()?;
    let question = query.queries.first()?.clone();
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.message_type = MessageType::Response;
    answer.metadata.recursion_available = true;
    let name = question.name().to_ascii().to_ascii_lowercase();
    let data = match (name.as_str(), question.query_type()) {
        ("both.test." | "four.test.", RecordType::A) => Some(RData::A(A::new(127, 0, 0, 1))),
        ("both.test.", RecordType::AAAA) => Some(RData::AAAA(AAAA::new(0, 0, 0, 0, 0, 0, 0, 1))),
        _ => None,
    };
    answer.metadata.response_code = match name.split('.').next() {
        Some("both" | "four") => ResponseCode::NoError,
        Some("servfail") => ResponseCode::ServFail,
        Some("refused") => ResponseCode::Refused,
        Some("silent") => return None,
        _ => ResponseCode::NXDomain,
    };
    answer.answers.extend(data.map(|d| Record::from_rdata(question.name().clone(), 60, d)));
    answer.queries.push(question);
    answer.to_vec().ok()
}

async fn dns_over_udp() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let address = socket.local_addr().expect("its address");
    tokio::spawn(async move {
        let mut buffer = [0; 1_500];
        while let Ok((n, peer)) = socket.recv_from(&mut buffer).await {
            if let Some(answer) = dns_answer(&buffer[..n]) {
                let _ = socket.send_to(&answer, peer).await;
            }
        }
    });
    address
}

async fn dns_over_stream(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    while let Ok(length) = stream.read_u16().await {
        let mut query = vec![0; usize::from(length)];
        let _ = stream.read_exact(&mut query).await;
        if let Some(answer) = dns_answer(&query) {
            let _ = stream.write_all(&[&(answer.len() as u16).to_be_bytes(), answer.as_slice()].concat()).await;
        }
    }
}

#[tokio::test]
async fn resolvers_and_their_failures() {
    let port = on_both(|_, _| async {}).await;
    let server = dns_over_udp().await;
    let spec = |name: &str| format!("target: {name}.test:{port}\ntcp: {{}}\ntimeout: 1s\nresolver: {{servers: ['udp://{server}']}}");
    let result = probe(&spec("both")).await;
    assert_reason(&result, Reason::Good);
    assert_eq!(result.peer, format!("[::1]:{port}"));
    let result = probe(&spec("four")).await;
    assert_reason(&result, Reason::Good);
    assert_eq!(result.peer, format!("127.0.0.1:{port}"));
    for (name, reason) in [("gone", Reason::DnsNxdomain), ("servfail", Reason::DnsServfail), ("refused", Reason::DnsRefused), ("silent", Reason::DnsTimeout)] {
        let result = probe(&spec(name)).await;
        assert_reason(&result, reason);
        assert_eq!(phase_names(&result.phases), ["resolve"]);
    }
    let six = probe(&format!("{}\nfamily: 6", spec("four"))).await;
    assert_reason(&six, Reason::DnsNoAddress);
}

#[tokio::test]
async fn resolvers_over_tcp_tls_and_https() {
    let port = on_both(|_, _| async {}).await;
    let authority = tls::Authority::new();
    let over_tcp = serve(|stream, _| dns_over_stream(stream)).await;
    let acceptor = authority.acceptor("dns.test", &[]);
    let over_tls = serve(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                dns_over_stream(stream).await;
            }
        }
    })
    .await;
    let acceptor = authority.acceptor("dns.test", &[b"h2"]);
    let over_https = serve(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                use http_body_util::BodyExt;
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await?.to_bytes();
                let answer = dns_answer(&body).filter(|_| path == "/q").unwrap_or_default();
                let response = http::Response::builder().header("content-type", "application/dns-message").header("content-length", answer.len());
                Ok::<_, hyper::Error>(response.body(http_body_util::Full::new(bytes::Bytes::from(answer))).expect("a response"))
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let _ = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new()).serve_connection(io, service).await;
        }
    })
    .await;
    let ca = authority.pem().replace('\n', "\n      ");
    for server in [format!("tcp://{over_tcp}"), format!("tls://{over_tls}#dns.test"), format!("https://{over_https}/q#dns.test")] {
        let spec = format!("target: both.test:{port}\ntcp: {{}}\ntimeout: 5s\nresolver:\n  servers: ['{server}']\n");
        let result = probe(&format!("{spec}  ca: |\n      {ca}")).await;
        assert_reason(&result, Reason::Good);
        if !server.starts_with("tcp") {
            // Whoever cannot be trusted is not believed; it is the resolver's failure.
            let result = probe(&spec).await;
            assert!(matches!(result.reason, Reason::DnsError | Reason::DnsTimeout), "{server}: {result:?}");
        }
    }
}

#[tokio::test]
async fn given_addresses_are_not_asked_for() {
    let address = serve(|_, _| async {}).await;
    let result = probe(&format!("target: Shop.Test:{}\ntcp: {{}}\nhosts: {{shop.test: 127.0.0.1}}", address.port())).await;
    assert_reason(&result, Reason::Good);
}

#[tokio::test]
async fn the_policy_holds_for_whatever_a_name_resolves_to() {
    let context = context_with(AddressPolicy::Remote, None);
    let address = serve(|_, _| async {}).await;
    for spec in [
        format!("target: {address}\ntcp: {{}}"),
        format!("target: localhost:{}\ntcp: {{}}", address.port()),
        format!("target: shop.test:{}\ntcp: {{}}\nhosts: {{shop.test: 127.0.0.1}}", address.port()),
        "target: 10.0.0.1:1\ntcp: {}\nresolver: {servers: ['127.0.0.1']}".to_owned(),
    ] {
        let result = probe_in(&context, &spec).await;
        assert_eq!(result.reason, Reason::AddressForbidden, "{spec}: {result:?}");
    }
}
