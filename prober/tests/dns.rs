//! DNS probes against servers of this test: honest ones, and liars.

mod common;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::tls::Authority;
use common::*;
use hickory_proto::dnssec::crypto::Ed25519SigningKey;
use hickory_proto::dnssec::rdata::{DNSKEY, DNSSECRData, RRSIG};
use hickory_proto::dnssec::{DnssecSigner, SigningKey};
use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, MX, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordSet, RecordType};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use probity_proto::v1::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// An answer to a query, with what a recursive server sets.
fn answer_to(query: &Message) -> Message {
    let mut answer = query.clone();
    answer.metadata.message_type = MessageType::Response;
    answer.metadata.recursion_available = true;
    answer.edns = query.edns.as_ref().map(|_| Edns::new());
    answer
}

type Answering = Arc<dyn Fn(&Message) -> Vec<Vec<u8>> + Send + Sync>;

/// A server over UDP, whose answers to each query are these datagrams.
async fn udp(answering: impl Fn(&Message) -> Vec<Vec<u8>> + Send + Sync + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let address = socket.local_addr().expect("its address");
    serve_udp(socket, Arc::new(answering));
    address
}

fn serve_udp(socket: UdpSocket, answering: Answering) {
    tokio::spawn(async move {
        let mut buffer = [0; 4_096];
        while let Ok((n, peer)) = socket.recv_from(&mut buffer).await {
            let Ok(query) = Message::from_vec(&buffer[..n]) else { continue };
            for bytes in answering(&query) {
                let _ = socket.send_to(&bytes, peer).await;
            }
        }
    });
}

async fn answer_stream(stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin), answering: &Answering) {
    let Ok(length) = stream.read_u16().await else { return };
    let mut bytes = vec![0; usize::from(length)];
    if stream.read_exact(&mut bytes).await.is_err() {
        return;
    }
    for answer in answering(&Message::from_vec(&bytes).expect("a query")) {
        let _ = stream.write_all(&[&(answer.len() as u16).to_be_bytes()[..], &answer].concat()).await;
    }
    let _ = stream.flush().await;
}

/// UDP and TCP on one port.
async fn both(
    over_udp: impl Fn(&Message) -> Vec<Vec<u8>> + Send + Sync + 'static,
    over_tcp: impl Fn(&Message) -> Vec<Vec<u8>> + Send + Sync + 'static,
) -> SocketAddr {
    let answering: Answering = Arc::new(over_tcp);
    let address = serve(move |mut stream, _| {
        let answering = answering.clone();
        async move { answer_stream(&mut stream, &answering).await }
    })
    .await;
    serve_udp(UdpSocket::bind(address).await.expect("the same port over UDP"), Arc::new(over_udp));
    address
}

/// A zone that knows some names.
fn zone(query: &Message) -> Message {
    let mut answer = answer_to(query);
    answer.metadata.authoritative = true;
    let question = query.queries[0].clone();
    let data = match (question.name().to_string().as_str(), u16::from(question.query_type())) {
        ("shop.example.", 1) => vec![RData::A(A(Ipv4Addr::new(192, 0, 2, 1))), RData::A(A(Ipv4Addr::new(192, 0, 2, 2)))],
        ("shop.example.", 15) => vec![RData::MX(MX::new(10, name("Mail.Shop.example.")))],
        ("shop.example.", 16) if question.query_class() == DNSClass::CH => vec![RData::TXT(TXT::new(vec!["chaos".to_owned()]))],
        ("shop.example.", 16) => vec![RData::TXT(TXT::new(vec!["v=spf1 -all".to_owned()]))],
        ("example.", 6) => vec![RData::SOA(SOA::new(name("ns.example."), name("admin.example."), 2026, 60, 60, 60, 60))],
        ("loop.example.", _) => vec![],
        ("shop.example.", 65_280) => vec![RData::Unknown { code: RecordType::Unknown(65_280), rdata: hickory_proto::rr::rdata::NULL::with(vec![1, 171]) }],
        _ => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            answer.add_authority(Record::from_rdata(
                name("example."),
                60,
                RData::SOA(SOA::new(name("ns.example."), name("admin.example."), 2026, 60, 60, 60, 60)),
            ));
            vec![]
        }
    };
    for data in data {
        let mut record = Record::from_rdata(question.name().clone(), 300, data);
        record.dns_class = question.query_class();
        answer.add_answer(record);
    }
    if question.name() == &name("loop.example.") {
        answer.add_answer(Record::from_rdata(name("loop.example."), 60, RData::CNAME(CNAME(name("pool.example.")))));
        answer.add_answer(Record::from_rdata(name("pool.example."), 60, RData::CNAME(CNAME(name("LOOP.example.")))));
    }
    answer
}

fn bytes(message: &Message) -> Vec<Vec<u8>> {
    vec![message.to_vec().expect("it encodes")]
}

#[tokio::test]
async fn assertions_on_every_part_of_an_answer() {
    let server = udp(|q| bytes(&zone(q))).await;
    let context = context();
    for (options, reason, text) in [
        ("name: shop.example", Reason::Good, ""),
        ("name: nosuch.example", Reason::DnsNxdomain, "the server answered NXDOMAIN"),
        ("name: nosuch.example, expect: {rcodes: [nxdomain], authority: {minCount: 1, matches: ['2026']}}", Reason::Good, ""),
        ("name: shop.example, expect: {rcodes: [REFUSED, 23]}", Reason::DnsRcodeMismatch, "the server answered NOERROR, want REFUSED or BADCOOKIE"),
        ("name: shop.example, expect: {flags: {aa: true, ra: true, rd: true, tc: false, ad: false}}", Reason::Good, ""),
        ("name: shop.example, recursion: false, expect: {flags: {rd: false}}", Reason::Good, ""),
        ("name: shop.example, checkingDisabled: true, expect: {flags: {cd: true}}", Reason::Good, ""),
        ("name: shop.example, expect: {flags: {ad: true}}", Reason::DnsFlagsMismatch, "flag ad is not set (flags are aa rd ra)"),
        ("name: shop.example, expect: {flags: {aa: false}}", Reason::DnsFlagsMismatch, "flag aa is set (flags are aa rd ra)"),
        ("name: shop.example, expect: {minAnswers: 3}", Reason::DnsAnswerMismatch, "2 records, want at least 3"),
        ("name: shop.example, expect: {answers: [192.0.2.2]}", Reason::Good, ""),
        ("name: shop.example, expect: {answer: {maxCount: 1}}", Reason::DnsAnswerMismatch, "2 records, want at most 1"),
        ("name: shop.example, expect: {answer: {equals: [192.0.2.2, 192.0.2.1]}}", Reason::Good, ""),
        ("name: shop.example, expect: {answer: {equals: [192.0.2.1]}}", Reason::DnsAnswerMismatch, "\"192.0.2.2\" is not among [\"192.0.2.1\"]"),
        (
            "name: shop.example, expect: {answer: {contains: [192.0.2.9]}}",
            Reason::DnsAnswerMismatch,
            "\"192.0.2.9\" is not among [\"192.0.2.1\", \"192.0.2.2\"]",
        ),
        ("name: shop.example, expect: {answer: {matches: ['^192[.]'], notMatches: ['^10[.]']}}", Reason::Good, ""),
        ("name: shop.example, expect: {answer: {notMatches: ['2$']}}", Reason::DnsAnswerMismatch, "\"192.0.2.2\" matches \"2$\""),
        ("name: shop.example, expect: {answer: {ttl: {min: 5m, max: 5m}}}", Reason::Good, ""),
        ("name: shop.example, expect: {answer: {ttl: {min: 301s}}}", Reason::DnsTtlMismatch, "a TTL of 300 s, want at least 301 s"),
        ("name: shop.example, expect: {answer: {ttl: {max: 299s}}}", Reason::DnsTtlMismatch, "a TTL of 300 s, want at most 299 s"),
        ("name: shop.example, expect: {additional: {maxCount: 0}}", Reason::Good, ""),
        ("name: shop.example, type: MX, expect: {answer: {equals: [10 mail.shop.example]}}", Reason::Good, ""),
        ("name: shop.example, type: TXT, expect: {answer: {equals: ['v=spf1 -all']}}", Reason::Good, ""),
        ("name: shop.example, type: txt, class: ch, expect: {answer: {equals: [chaos]}}", Reason::Good, ""),
        ("name: shop.example, type: TYPE65280, expect: {answer: {equals: ['\\# 2 01AB']}}", Reason::Good, ""),
        ("name: shop.example, edns: none, expect: {maxSize: 512}", Reason::Good, ""),
        ("name: loop.example", Reason::DnsAliasLoop, "the aliases of the answer go in a circle"),
    ] {
        let result = probe_in(&context, &format!("target: {server}\ndns: {{{options}}}")).await;
        assert_reason(&result, reason);
        assert_eq!(result.message, text, "{options}");
    }
    let result = probe_in(&context, &format!("target: {server}\ndns: {{name: shop.example, expect: {{maxSize: 40}}}}")).await;
    assert_reason(&result, Reason::DnsTooLarge);
    assert_eq!(fact(&result, "dns.flags"), "aa rd ra");
    assert_eq!(fact(&result, "dns.answers"), "192.0.2.1 192.0.2.2");
}

#[tokio::test]
async fn truncated_answers_come_again_over_tcp() {
    let cut = |q: &Message| {
        let mut answer = answer_to(q);
        answer.metadata.truncation = true;
        bytes(&answer)
    };
    let server = both(cut, |q| bytes(&zone(q))).await;
    let result = probe(&format!("target: {server}\ndns: {{name: shop.example, expect: {{minAnswers: 2}}}}")).await;
    assert_reason(&result, Reason::Good);
    assert_eq!((fact(&result, "dns.truncated"), phase_names(&result.phases)), ("true", vec!["resolve", "first_byte", "connect", "first_byte", "transfer"]));
    let tcp = probe(&format!("target: {server}\ndns: {{name: shop.example, transport: tcp}}")).await;
    assert_reason(&tcp, Reason::Good);
    assert_eq!(phase_names(&tcp.phases), ["resolve", "connect", "first_byte", "transfer"]);
    // Nobody is there over TCP.
    let alone = udp(cut).await;
    assert_reason(&probe(&format!("target: {alone}\ndns: {{name: shop.example}}")).await, Reason::ConnectRefused);
}

#[tokio::test]
async fn over_tls_and_https() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("dns.example", &[]);
    let answering: Answering = Arc::new(|q| bytes(&zone(q)));
    let tls = serve(move |stream, _| {
        let (acceptor, answering) = (acceptor.clone(), answering.clone());
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            answer_stream(&mut stream, &answering).await;
        }
    })
    .await;
    let ca: String = authority.pem().lines().map(|l| format!("      {l}\n")).collect();
    let spec = |server: SocketAddr, transport: &str, more: &str| {
        format!(
            "target: {server}\ndns:\n  name: shop.example\n  transport: {transport}\n  expect: {{minAnswers: 2}}\n{more}  tls:\n    serverName: dns.example\n    ca: |\n{ca}"
        )
    };
    let result = probe(&spec(tls, "tls", "")).await;
    assert_reason(&result, Reason::Good);
    assert_eq!(phase_names(&result.phases), ["resolve", "connect", "tls", "first_byte", "transfer"]);
    assert_reason(&probe(&format!("target: {tls}\ndns: {{name: shop.example, transport: tls}}")).await, Reason::TlsUntrusted);

    let acceptor = authority.acceptor("dns.example", &[]);
    let https = serve(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut request = Vec::new();
            let mut buffer = [0; 1_024];
            let body = loop {
                let Ok(n) = stream.read(&mut buffer).await else { return };
                request.extend_from_slice(&buffer[..n]);
                let Some(head) = request.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
                // A query has at least its header.
                if request.len() >= head + 4 + 12 {
                    break request.split_off(head + 4);
                }
            };
            let query = Message::from_vec(&body).expect("a query");
            assert_eq!(query.metadata.id, 0, "RFC 8484, section 4.1");
            let path_is_right = request.starts_with(b"POST /dns-query HTTP/1.1\r\n");
            let answer = zone(&query).to_vec().expect("it encodes");
            let status = if path_is_right { "200 OK" } else { "404 Not Found" };
            let _ = stream
                .write_all(format!("HTTP/1.1 {status}\r\ncontent-type: application/dns-message\r\ncontent-length: {}\r\n\r\n", answer.len()).as_bytes())
                .await;
            let _ = stream.write_all(&answer).await;
            let _ = stream.flush().await;
        }
    })
    .await;
    assert_reason(&probe(&spec(https, "https", "")).await, Reason::Good);
    assert_reason(&probe(&spec(https, "https", "  path: /other\n")).await, Reason::StatusMismatch);

    // By HTTP/2 where the server offers it.
    let (https2, _) = https2(&authority, zone).await;
    let result = probe(&spec(https2, "https", "")).await;
    assert_reason(&result, Reason::Good);
    assert_eq!(fact(&result, "network.protocol.version"), "2");
    assert_eq!(phase_names(&result.phases), ["resolve", "connect", "tls", "request", "transfer"]);
    assert_reason(&probe(&spec(https2, "https", "  path: /other\n")).await, Reason::StatusMismatch);
}

/// DNS over HTTPS by HTTP/2 alone, and how many queries came.
async fn https2(authority: &Authority, answering: impl Fn(&Message) -> Message + Send + Sync + 'static) -> (SocketAddr, Arc<AtomicUsize>) {
    let acceptor = authority.acceptor("dns.example", &[b"h2"]);
    let (answering, asked) = (Arc::new(answering), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    let address = serve(move |stream, _| {
        let (acceptor, answering, count) = (acceptor.clone(), answering.clone(), count.clone());
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (answering, count) = (answering.clone(), count.clone());
                async move {
                    count.fetch_add(1, Ordering::SeqCst);
                    let good = request.uri().path() == "/dns-query" && request.method() == http::Method::POST;
                    let body = request.into_body().collect().await?.to_bytes();
                    let answer = answering(&Message::from_vec(&body).expect("a query")).to_vec().expect("it encodes");
                    let status = if good { 200 } else { 404 };
                    Ok::<_, hyper::Error>(http::Response::builder().status(status).body(Full::new(bytes::Bytes::from(answer))).expect("a response"))
                }
            });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await;
    (address, asked)
}

#[tokio::test]
async fn servers_that_lie() {
    let context = context();
    let run = async |server: SocketAddr| probe_in(&context, &format!("target: {server}\ndns: {{name: shop.example}}\ntimeout: 500ms")).await;
    // Wrong identifiers, another question, a query for an answer, noise: then the truth, or nothing.
    let lies = |q: &Message| {
        let truth = zone(q);
        let mut wrong_id = truth.clone();
        wrong_id.metadata.id ^= 1;
        let mut other = truth.clone();
        other.queries[0].set_name(name("bank.example."));
        let mut no_answer = truth.clone();
        no_answer.metadata.message_type = MessageType::Query;
        let mut none = truth.clone();
        none.queries.clear();
        [wrong_id, other, no_answer, none].iter().flat_map(bytes).chain([vec![], vec![0; 3], vec![0xff; 600]]).collect::<Vec<_>>()
    };
    let liar = udp(lies).await;
    let result = run(liar).await;
    assert_reason(&result, Reason::DnsUnsolicited);
    assert_eq!(result.message, format!("{liar}: no answer, but 7 that are to no query of ours"));
    let late = udp(move |q| lies(q).into_iter().chain(bytes(&zone(q))).collect()).await;
    assert_reason(&run(late).await, Reason::Good);

    let silent = udp(|_| Vec::new()).await;
    let result = run(silent).await;
    assert_reason(&result, Reason::ResponseTimeout);
    assert_eq!(result.message, "no answer within 500ms in first_byte");

    // Compression pointers in a circle, a record cut short, counts that promise more than there is.
    let pointers = udp(|q| {
        let mut bytes = zone(q).to_vec().expect("it encodes");
        bytes.truncate(12 + 13 + 4 + 1);
        let at = bytes.len() as u16;
        bytes.extend_from_slice(&(0xc000 | at).to_be_bytes());
        bytes.extend_from_slice(&[0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
        vec![bytes]
    })
    .await;
    assert_reason(&run(pointers).await, Reason::DnsMalformed);
    let cut = udp(|q| vec![zone(q).to_vec().expect("it encodes")[..40].to_vec()]).await;
    assert_reason(&run(cut).await, Reason::DnsMalformed);
    let promises = udp(|q| {
        let mut bytes = zone(q).to_vec().expect("it encodes");
        bytes[6..8].copy_from_slice(&[0xff, 0xff]);
        vec![bytes]
    })
    .await;
    assert_reason(&run(promises).await, Reason::DnsMalformed);

    // From another port than was asked.
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let spoofed = socket.local_addr().expect("its address");
    tokio::spawn(async move {
        let elsewhere = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let mut buffer = [0; 4_096];
        while let Ok((n, peer)) = socket.recv_from(&mut buffer).await {
            let answer = zone(&Message::from_vec(&buffer[..n]).expect("a query")).to_vec().expect("it encodes");
            let _ = elsewhere.send_to(&answer, peer).await;
        }
    });
    assert_reason(&run(spoofed).await, Reason::ResponseTimeout);
}

#[tokio::test]
async fn servers_that_lie_over_tcp() {
    let context = context();
    let run = async |server: SocketAddr| probe_in(&context, &format!("target: {server}\ndns: {{name: shop.example, transport: tcp}}\ntimeout: 500ms")).await;
    let answers = async |answer: fn(&Message) -> Vec<u8>| {
        serve(move |mut stream, _| async move {
            let length = stream.read_u16().await.expect("a length");
            let mut query = vec![0; usize::from(length)];
            stream.read_exact(&mut query).await.expect("a query");
            let _ = stream.write_all(&answer(&Message::from_vec(&query).expect("a query"))).await;
            // Until the prober gives up.
            let _ = stream.read_u8().await;
        })
        .await
    };
    assert_reason(&run(answers(|_| vec![0]).await).await, Reason::ResponseTimeout);
    assert_reason(&run(answers(|_| vec![0xff, 0xff, 1, 2, 3]).await).await, Reason::TransferTimeout);
    assert_reason(&run(answers(|_| vec![0, 3, 1, 2, 3]).await).await, Reason::DnsUnsolicited);
    let wrong = answers(|q| {
        let mut answer = zone(q);
        answer.metadata.id ^= 1;
        let bytes = answer.to_vec().expect("it encodes");
        [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat()
    });
    assert_reason(&run(wrong.await).await, Reason::DnsUnsolicited);
    let closes = serve(|mut stream, _| async move {
        let _ = stream.read(&mut [0; 100]).await;
    })
    .await;
    assert_reason(&run(closes).await, Reason::ConnectionClosed);
}

#[tokio::test]
async fn serials_of_all_servers() {
    let with_serial = async |serial: u32| {
        udp(move |q| {
            let mut answer = answer_to(q);
            answer.add_answer(Record::from_rdata(name("example."), 60, RData::SOA(SOA::new(name("ns."), name("admin."), serial, 60, 60, 60, 60))));
            bytes(&answer)
        })
        .await
    };
    let (one, same, other) = (with_serial(7).await, with_serial(7).await, with_serial(8).await);
    let spec = |others: &str| format!("target: {one}\ndns: {{name: example, type: SOA, expect: {{sameSerialAs: [{others}]}}}}");
    let result = probe(&spec(&format!("'{same}'"))).await;
    assert_reason(&result, Reason::Good);
    assert_eq!(fact(&result, "dns.serial"), "7");
    let result = probe(&spec(&format!("'{same}', '{other}'"))).await;
    assert_reason(&result, Reason::DnsSerialMismatch);
    assert_eq!(result.message, format!("the serial of example is 7 on {one}, but 8 on {other}"));
}

#[tokio::test]
async fn the_target_s_name_through_a_resolver() {
    let server = udp(|q| bytes(&zone(q))).await;
    let result = probe(&format!("target: shop.example\ndns: {{server: system, expect: {{minAnswers: 2}}}}\nresolver: {{servers: ['{server}']}}")).await;
    assert_reason(&result, Reason::Good);
    assert_eq!(result.peer, server.to_string());
}

/// A zone that is signed by one key, which is its trust anchor.
struct Signed {
    signer: DnssecSigner,
    key: DNSKEY,
}

impl Signed {
    fn new() -> Signed {
        Signed::with(|key| key)
    }

    /// Its key is no longer to be trusted (RFC 5011, section 2.1).
    fn revoked() -> Signed {
        Signed::with(|key| DNSKEY::new(true, true, true, key.public_key().clone()))
    }

    fn with(flags: impl FnOnce(DNSKEY) -> DNSKEY) -> Signed {
        let pkcs8 = Ed25519SigningKey::generate_pkcs8().expect("a key");
        let key = Ed25519SigningKey::from_pkcs8(&pkcs8).expect("a key");
        let dnskey = flags(DNSKEY::from_key(&key.to_public_key().expect("its public part")));
        let signer = DnssecSigner::new(dnskey.clone(), Box::new(key), name("example."), std::time::Duration::from_secs(7_200));
        Signed { signer, key: dnskey }
    }

    fn anchor(&self) -> String {
        format!("example. DNSKEY {}", self.key)
    }

    fn sign(&self, answer: &mut Message, owner: Name, data: RData) {
        self.sign_at(answer, owner, vec![data], time::OffsetDateTime::now_utc() - time::Duration::hours(1));
    }

    fn sign_at(&self, answer: &mut Message, owner: Name, data: Vec<RData>, inception: time::OffsetDateTime) {
        let mut set = RecordSet::with_ttl(owner.clone(), data[0].record_type(), 60);
        for data in data {
            set.add_rdata(data);
        }
        let signature = RRSIG::from_rrset(&set, DNSClass::IN, inception, &self.signer).expect("it signs");
        for record in set.records_without_rrsigs() {
            answer.add_answer(record.clone());
        }
        answer.add_answer(Record::from_rdata(owner, 60, RData::DNSSEC(DNSSECRData::RRSIG(signature))));
    }

    fn answer(&self, query: &Message) -> Message {
        let mut answer = answer_to(query);
        let question = &query.queries[0];
        match question.query_type() {
            RecordType::DNSKEY => self.sign(&mut answer, name("example."), RData::DNSSEC(DNSSECRData::DNSKEY(self.key.clone()))),
            RecordType::A => self.sign(&mut answer, question.name().clone(), RData::A(A(Ipv4Addr::new(192, 0, 2, 1)))),
            _ => {}
        }
        answer
    }
}

#[tokio::test]
async fn signatures_are_validated_from_a_given_anchor() {
    let zone = Arc::new(Signed::new());
    let anchor = zone.anchor();
    let honest = zone.clone();
    let server = udp(move |q| bytes(&honest.answer(q))).await;
    let spec = |server: SocketAddr, anchor: &str| format!("target: {server}\ndns:\n  name: shop.example\n  dnssec: {{anchors: ['{anchor}']}}");
    let result = probe(&spec(server, &anchor)).await;
    assert_reason(&result, Reason::Good);
    assert_eq!((fact(&result, "dns.dnssec"), phase_names(&result.phases)), ("secure", vec!["resolve", "first_byte", "validate"]));

    // Somebody on the way changes the address.
    let forged = zone.clone();
    let liar = udp(move |q| {
        let mut answer = forged.answer(q);
        for record in &mut answer.answers {
            if let RData::A(_) = record.data {
                record.data = RData::A(A(Ipv4Addr::new(203, 0, 113, 66)));
            }
        }
        bytes(&answer)
    })
    .await;
    let result = probe(&spec(liar, &anchor)).await;
    assert_reason(&result, Reason::DnssecBogus);
    // The anchor beside a key of somebody else's: only what the anchor signed, and in its time, makes that key the zone's.
    let (stranger, revoked) = (Arc::new(Signed::new()), Arc::new(Signed::revoked()));
    let ago = |hours| time::OffsetDateTime::now_utc() - time::Duration::hours(hours);
    // Who is beside the anchor, who signed the keys and when, and who the address.
    for (beside, signer, hours, of_address, reason) in [
        (&stranger, &zone, 1, &stranger, Reason::Good),
        (&stranger, &stranger, 1, &stranger, Reason::DnssecBogus),
        (&stranger, &zone, 3, &stranger, Reason::DnssecBogus),
        (&stranger, &zone, -3, &stranger, Reason::DnssecBogus),
        // A key on its way out harms nothing, and proves nothing.
        (&revoked, &zone, 1, &zone, Reason::Good),
        (&revoked, &zone, 1, &revoked, Reason::DnssecBogus),
    ] {
        let (signer, both, of_address) = (signer.clone(), [zone.key.clone(), beside.key.clone()], of_address.clone());
        let server = udp(move |q| {
            if q.queries[0].query_type() != RecordType::DNSKEY {
                return bytes(&of_address.answer(q));
            }
            let mut answer = answer_to(q);
            signer.sign_at(&mut answer, name("example."), both.clone().map(|key| RData::DNSSEC(DNSSECRData::DNSKEY(key))).to_vec(), ago(hours));
            bytes(&answer)
        })
        .await;
        assert_reason(&probe(&spec(server, &anchor)).await, reason);
    }
    // Signed, but by another key than the anchor.
    assert_reason(&probe(&spec(server, &Signed::new().anchor())).await, Reason::DnssecBogus);
}

#[tokio::test]
async fn the_chain_is_asked_for_in_the_way_of_the_query() {
    let zone = Arc::new(Signed::new());
    let anchor = zone.anchor();
    let authority = Authority::new();
    let ca: String = authority.pem().lines().map(|l| format!("      {l}\n")).collect();
    let spec = |server: SocketAddr, transport: &str, anchor: &str| {
        let tls = if transport == "tcp" { String::new() } else { format!("  tls:\n    serverName: dns.example\n    ca: |\n{ca}") };
        let anchors = if anchor.is_empty() { "validate: true".to_owned() } else { format!("anchors: ['{anchor}']") };
        format!("target: {server}\ndns:\n  name: shop.example\n  transport: {transport}\n  dnssec: {{{anchors}}}\n{tls}")
    };
    let answering = |zone: &Arc<Signed>| -> Answering {
        let zone = zone.clone();
        Arc::new(move |q| bytes(&zone.answer(q)))
    };

    let honest = answering(&zone);
    let tcp = serve(move |mut stream, _| {
        let honest = honest.clone();
        async move { answer_stream(&mut stream, &honest).await }
    })
    .await;
    let (acceptor, honest) = (authority.acceptor("dns.example", &[]), answering(&zone));
    let tls = serve(move |stream, _| {
        let (acceptor, honest) = (acceptor.clone(), honest.clone());
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            answer_stream(&mut stream, &honest).await;
        }
    })
    .await;
    let signed = zone.clone();
    let (https, asked) = https2(&authority, move |q| signed.answer(q)).await;
    let stranger = Signed::new().anchor();
    for (server, transport) in [(tcp, "tcp"), (tls, "tls"), (https, "https")] {
        let result = probe(&spec(server, transport, &anchor)).await;
        assert_reason(&result, Reason::Good);
        assert_eq!(fact(&result, "dns.dnssec"), "secure", "{transport}");
        assert_reason(&probe(&spec(server, transport, &stranger)).await, Reason::DnssecBogus);
        // From the root's own keys: this zone hangs on none of them, and no signature of this server can make it so.
        let result = probe(&spec(server, transport, "")).await;
        assert!(matches!(result.reason, Reason::DnssecBogus | Reason::DnssecInsecure), "{transport}: {:?} {}", result.reason, result.message);
    }
    assert!(asked.load(Ordering::SeqCst) >= 6, "its keys were asked for by HTTPS too");
}
