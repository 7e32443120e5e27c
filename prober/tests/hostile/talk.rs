//! Proxies, STARTTLS, dialogues, WebSocket, TLS, token servers and resolvers that never come to an end, or lie.

use super::*;
use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record};
use tokio::net::UdpSocket;

#[tokio::test]
async fn proxies() {
    let bench = Bench::new().await;
    let via = |server: SocketAddr, scheme: &str| format!("http: {{url: 'https://shop.test/', proxy: {{url: '{scheme}://{server}'}}}}");
    for (name, scheme, head, drop, pause, message) in [
        ("CONNECT: headers", "http", &b"HTTP/1.1 200 OK\r\n"[..], &b"x-more: yes\r\n"[..], NO_PAUSE, "its answer has no end"),
        ("CONNECT: no HTTP", "http", b"SSH-2.0-x\r\n\r\n", b"", NO_PAUSE, "it does not speak HTTP"),
        ("CONNECT: a byte a second", "http", b"HTTP/1.1 200 OK\r\n", b"x", BYTE_A_SECOND, "no answer within 1s in proxy"),
        ("SOCKS: noise", "socks5", &[0x5a; 64], &[0x5a; 64], NO_PAUSE, "it does not speak SOCKS5"),
        ("SOCKS: an address of no kind", "socks5", &[5, 0, 5, 0, 0, 9, 1, 2], b"", NO_PAUSE, "it does not speak SOCKS5"),
        ("SOCKS: a name that never ends", "socks5", &[5, 0, 5, 0, 0, 3, 255], b"x", BYTE_A_SECOND, "no answer within 1s in proxy"),
        ("SOCKS: silence", "socks5", &[5, 0], b"", NO_PAUSE, "no answer within 1s in proxy"),
    ] {
        let server = endless(head, drop, pause).await;
        bench.probe(name, &via(server, scheme), Reason::ProxyError, message).await;
    }
}

#[tokio::test]
async fn starttls() {
    let bench = Bench::new().await;
    let more = "more than 16384 bytes";
    for (protocol, head, drop, reason, message) in [
        ("smtp", "", "220-and more\r\n", Reason::ProtocolError, more),
        ("ftp", "220 x", "x", Reason::ProtocolError, more),
        ("imap", "* OK", "x", Reason::ProtocolError, more),
        ("pop3", "+OK", "x", Reason::ProtocolError, more),
        // An LDAP message of 4 GiB.
        ("ldap", "\x30\u{4}", "x", Reason::ProtocolError, ""),
        ("postgres", "", "x", Reason::ProtocolError, "the server answered 'x'"),
    ] {
        let server = endless_at_once(head, drop.repeat(64), NO_PAUSE).await;
        bench.probe(&format!("starttls: {protocol}"), &format!("timeout: 20s\ntarget: {server}\ntls: {{starttls: {protocol}}}"), reason, message).await;
        let slow = endless_at_once(head, if protocol == "postgres" { "" } else { "x" }, BYTE_A_SECOND).await;
        if protocol != "ldap" {
            bench
                .probe(
                    &format!("starttls: {protocol}, slow"),
                    &format!("target: {slow}\ntls: {{starttls: {protocol}}}"),
                    Reason::ResponseTimeout,
                    "in starttls",
                )
                .await;
        }
    }
}

#[tokio::test]
async fn dialogues() {
    let bench = Bench::new().await;
    let noise = endless_at_once("", [b'x'; 8_192], NO_PAUSE).await;
    bench.probe("tcp", &format!("timeout: 20s\ntarget: {noise}\ntcp: {{expect: hello}}"), Reason::ExpectMismatch, "bytes without \"hello\"").await;
    let drip = endless_at_once("", "x", BYTE_A_SECOND).await;
    bench.probe("tcp, slow", &format!("target: {drip}\ntcp: {{expect: hello}}"), Reason::TransferTimeout, "in transfer").await;
    let upgrade = "HTTP/1.1 101 Switching Protocols\r\n";
    let headers = endless(upgrade, b"x-more: yes\r\n".repeat(500), NO_PAUSE).await;
    bench.probe("websocket: headers", &format!("timeout: 20s\ntarget: ws://{headers}/\nwebsocket: {{}}"), Reason::ProtocolError, "").await;
    // After a good upgrade: each frame by RFC 6455, section 5.2.
    for (name, head, drop, reason, message) in [
        ("pings", &[][..], &b"\x89\x00"[..], Reason::TransferTimeout, "in transfer"),
        ("empty parts of a message", &b"\x01\x00"[..], &b"\x00\x00"[..], Reason::TransferTimeout, "in transfer"),
        ("parts of a message", &b"\x01\x00"[..], &b"\x00\x08xxxxxxxx"[..], Reason::BodyTooLarge, ""),
        ("messages of no interest", &[], b"\x81\x02no", Reason::TransferTimeout, "in transfer"),
        ("a frame of 2^63 bytes", b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff", b"xxxx", Reason::BodyTooLarge, ""),
        ("a reserved opcode", b"\x8f\x00", b"", Reason::ProtocolError, ""),
    ] {
        let (head, drop) = (leaked(head.to_vec()), leaked(drop.repeat(200)));
        let server = serve(move |mut stream, _| async move {
            let request = read_request(&mut stream).await;
            let key = request.lines().find_map(|l| l.strip_prefix("Sec-WebSocket-Key: ").or(l.strip_prefix("sec-websocket-key: "))).unwrap_or_default();
            let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
            let answer = format!("{upgrade}upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
            pour(stream, head, drop, NO_PAUSE).await;
        })
        .await;
        let timeout = if reason == Reason::TransferTimeout { "1s" } else { "20s" };
        let spec = format!("timeout: {timeout}\ntarget: ws://{server}/\nwebsocket: {{dialogue: [{{expect: yes}}], maxMessageBytes: 64KiB}}");
        bench.probe(&format!("websocket: {name}"), &spec, reason, message).await;
    }
}

#[tokio::test]
async fn tls_without_end() {
    let bench = Bench::new().await;
    let record = |kind: u8, payload: &[u8]| [&[kind, 3, 3], &(payload.len() as u16).to_be_bytes()[..], payload].concat();
    // A ServerHello of 16 MiB in parts; a warning, a change of cipher spec, an empty part again and again.
    for (name, head, drop, reason) in [
        ("a handshake of 16 MiB", record(22, &[2, 0xff, 0xff, 0xff]), record(22, &[0; 8_192]), Reason::TlsHandshake),
        ("empty records", vec![], record(22, &[]), Reason::TlsHandshake),
        ("warnings", vec![], record(21, &[1, 90]), Reason::TlsHandshake),
        ("change of cipher spec", vec![], record(20, &[1]), Reason::TlsHandshake),
        ("noise", vec![], vec![0x5a; 8_192], Reason::TlsHandshake),
    ] {
        let server = endless(head, drop.repeat(10), NO_PAUSE).await;
        bench.probe(&format!("tls: {name}"), &format!("timeout: 10s\ntarget: {server}\ntls: {{}}"), reason, "").await;
    }
    let slow = endless(record(22, &[2, 0, 0, 99]), record(22, &[0]), BYTE_A_SECOND).await;
    bench.probe("tls: a byte a second", &format!("target: {slow}\ntls: {{}}"), Reason::TlsTimeout, "no answer within 1s in tls").await;
}

#[tokio::test]
async fn token_servers() {
    let secrets = tempfile::tempdir().expect("a directory");
    std::fs::write(secrets.path().join("pw"), "pw").expect("a file");
    let bench = Bench::with_secrets(Some(secrets.path())).await;
    let auth = |server: SocketAddr| {
        format!("http: {{url: 'http://{server}/', auth: {{oauth2: {{tokenUrl: 'http://{server}/token', clientId: me, clientSecret: {{secretRef: pw}}}}}}}}")
    };
    let head = "HTTP/1.1 200 OK\r\n\r\n";
    for (name, head, drop, pause, message) in [
        ("without an end", head, "x".repeat(8_192), NO_PAUSE, "more than 65536 bytes"),
        ("a byte a second", head, "x".to_owned(), BYTE_A_SECOND, "no answer within 1s in auth"),
        ("nonsense", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", String::new(), NO_PAUSE, "the answer is no token"),
        ("a token that no header takes", "HTTP/1.1 200 OK\r\ncontent-length: 25\r\n\r\n{\"access_token\":\"a\\nb\"}   ", String::new(), NO_PAUSE, "token"),
    ] {
        let server = endless(head, drop, pause).await;
        bench.probe(&format!("token: {name}"), &auth(server), Reason::AuthError, message).await;
    }
}

/// A DNS server over UDP whose every query is answered so.
async fn dns(answer: impl Fn(&Message) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let address = socket.local_addr().expect("its address");
    tokio::spawn(async move {
        let mut buffer = [0; 4_096];
        while let Ok((n, peer)) = socket.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..n]).expect("a query");
            for answer in answer(&query) {
                let _ = socket.send_to(&answer, peer).await;
            }
        }
    });
    address
}

fn reply(query: &Message) -> Message {
    let mut answer = query.clone();
    answer.metadata.message_type = MessageType::Response;
    answer
}

#[tokio::test]
async fn resolvers() {
    let bench = Bench::new().await;
    let name = |text: &str| Name::from_ascii(text).expect("a name");
    // a is b, and b is a.
    let circle = dns(move |q| {
        let mut answer = reply(q);
        for (from, to) in [("a.example.", "b.example."), ("b.example.", "a.example.")] {
            answer.add_answer(Record::from_rdata(name(from), 60, RData::CNAME(CNAME(name(to)))));
        }
        vec![answer.to_vec().expect("it encodes")]
    })
    .await;
    let through = |server: SocketAddr| format!("timeout: 3s\ntarget: a.example:80\ntcp: {{}}\nresolver: {{servers: ['{server}']}}");
    bench.probe("names in a circle", &through(circle), Reason::DnsNoAddress, "").await;
    // One more name each time.
    let chain = dns(move |q| {
        let mut answer = reply(q);
        let asked = q.queries[0].name().clone();
        let next = name(&format!("n{}.example.", q.metadata.id));
        answer.add_answer(Record::from_rdata(asked, 60, RData::CNAME(CNAME(next))));
        vec![answer.to_vec().expect("it encodes")]
    })
    .await;
    bench.probe("a chain of names without an end", &through(chain), Reason::DnsNoAddress, "").await;
    let noise = dns(|_| vec![vec![0xff; 512]; 50]).await;
    bench.probe("a resolver's noise", &through(noise).replace("3s", "1s"), Reason::DnsTimeout, "").await;
    // Answers to no query of ours, as fast as they can come.
    let flood = dns(|q| {
        let mut answer = reply(q);
        answer.metadata.id ^= 1;
        vec![answer.to_vec().expect("it encodes"); 20_000]
    })
    .await;
    bench.probe("a flood of wrong answers", &format!("target: {flood}\ndns: {{name: a.example}}"), Reason::DnsUnsolicited, "to no query of ours").await;
}
