//! Whole answers of servers, over real connections on loopback: the first byte says what is asked, the rest is what the server says.

use std::cell::RefCell;
use std::time::Duration;

use probity_prober::kinds::{ContextConfig, RunInfo};
use probity_prober::policy::AddressPolicy;
use probity_prober::{ProbeContext, kinds};
use probity_proto::resources::{SourceFile, parse};
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;
use probity_proto::{lower, v1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Runtime;

/// What is asked; PORT is the server's.
const KINDS: [&str; 20] = [
    "http: {url: 'http://127.0.0.1:PORT/', compression: [gzip, br, zstd, deflate], expect: {headers: [{name: a, matches: b}], body: [{jsonPath: $.a, equals: b}, {contains: x}]}}",
    "http: {url: 'http://127.0.0.1:PORT/', followRedirects: 2}",
    "http: {url: 'http://127.0.0.1:PORT/', version: '2'}",
    "http: {url: 'http://192.0.2.1/', proxy: {url: 'http://127.0.0.1:PORT'}}",
    "http: {url: 'http://192.0.2.1/', proxy: {url: 'socks5://127.0.0.1:PORT'}}",
    "tcp: {address: '127.0.0.1:PORT', starttls: smtp}",
    "tcp: {address: '127.0.0.1:PORT', starttls: imap}",
    "tcp: {address: '127.0.0.1:PORT', starttls: ldap}",
    "tcp: {address: '127.0.0.1:PORT', dialogue: [{expect: '^220 (?P<host>.*)'}, {send: 'HELO $(captures.host)'}, {expect: '^250'}]}",
    "tls: {address: '127.0.0.1:PORT'}",
    "websocket: {url: 'ws://127.0.0.1:PORT/', expect: a}",
    "grpc: {address: '127.0.0.1:PORT'}",
    "dns: {server: '127.0.0.1:PORT', name: a.test, transport: tcp}",
    "udp: {address: '127.0.0.1:PORT', send: a, expect: b}",
    "tcp: {address: '127.0.0.1:PORT', starttls: pop3}",
    "tcp: {address: '127.0.0.1:PORT', starttls: ftp}",
    "tcp: {address: '127.0.0.1:PORT', starttls: postgres}",
    "tcp: {address: '127.0.0.1:PORT', lines: [{expect: '^220 (.*)', send: 'HELO ${1}'}, {expect: '^250'}]}",
    "http: {url: 'http://127.0.0.1:PORT/', auth: {oauth2: {tokenUrl: 'http://127.0.0.1:PORT/token', clientId: a, clientSecret: {secretRef: s}}}}",
    "http: {requests: [{name: a, url: 'http://127.0.0.1:PORT/', capture: {x: {jsonPath: $.a}, y: {header: a, matches: '.'}, z: {matches: 'a(.)'}}}, {name: b, url: 'http://127.0.0.1:PORT/$(captures.x)', headers: {A: $(captures.y)}, expect: {body: [{contains: $(captures.z)}, {schema: {type: object}}]}}]}",
];

struct Rig {
    runtime: Runtime,
    context: ProbeContext,
    tcp: TcpListener,
    udp: UdpSocket,
    checks: Vec<CheckSpec>,
}

impl Rig {
    fn new() -> Rig {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (context, tcp, udp) = runtime.block_on(async {
            let context = ProbeContext::new(ContextConfig {
                address_policy: AddressPolicy::Anywhere,
                secrets: [("s".to_owned(), "secret".to_owned())].into(),
                ..ContextConfig::default()
            });
            // One port for both.
            loop {
                let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                if let Ok(udp) = UdpSocket::bind(tcp.local_addr().expect("its address")).await {
                    break (context, tcp, udp);
                }
            }
        });
        let port = tcp.local_addr().expect("its address").port().to_string();
        let checks = KINDS.iter().map(|kind| check(&kind.replace("PORT", &port))).collect();
        Rig { runtime, context, tcp, udp, checks }
    }
}

fn check(kind: &str) -> CheckSpec {
    let text = format!("apiVersion: probity/v1\nkind: Probe\nmetadata: {{name: fuzz}}\nspec:\n  interval: 1s\n  timeout: 300ms\n  {kind}\n");
    let parsed = parse(&[SourceFile { name: "fuzz".to_owned(), text }], "default");
    assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
    let Some(Spec::Probe(spec)) = &parsed.resources[0].resource.spec else { unreachable!("a probe") };
    lower::check_spec(spec, &v1::Target::default()).expect("resolves")
}

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

/// Runs one check against a server that says this.
pub(crate) fn run(bytes: &[u8]) {
    let Some((kind, answer)) = bytes.split_first() else { return };
    RIG.with_borrow(|rig| {
        let spec = &rig.checks[usize::from(*kind) % rig.checks.len()];
        let info = RunInfo::default();
        rig.runtime.block_on(async {
            let serve = async {
                let mut buffer = [0; 2_048];
                loop {
                    tokio::select! {
                        accepted = rig.tcp.accept() => {
                            let Ok((mut stream, _)) = accepted else { continue };
                            // Its question first: a reset would hide the answer.
                            let _ = tokio::time::timeout(Duration::from_millis(2), stream.read(&mut buffer)).await;
                            let _ = stream.write_all(answer).await;
                            let _ = stream.shutdown().await;
                        }
                        asked = rig.udp.recv_from(&mut buffer) => if let Ok((_, from)) = asked { let _ = rig.udp.send_to(&answer[..answer.len().min(1_400)], from).await; },
                    }
                }
            };
            let result = tokio::select! {
                result = kinds::run(&rig.context, spec, &info) => result,
                () = serve => return,
            };
            // Every answer is good, or bad for a reason of the closed set.
            assert_ne!(result.reason, Reason::Unsupported, "{}", result.message);
        });
    });
}

/// An answer of each kind that is nearly right.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let answers: [&[u8]; 20] = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\na: b\r\n\r\n{\"a\":\"b\"}",
        b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n",
        b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x05\0\0\0\x01\x88",
        b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"\x05\0\x05\0\0\x01\x7f\0\0\x01\0\x50HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"220 mail.test ESMTP\r\n250-mail.test\r\n250 STARTTLS\r\n220 go\r\n",
        b"* OK ready\r\na1 OK go\r\n",
        b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\0\x04\0\x04\0",
        b"220 mail.test\r\n250 hello\r\n",
        b"\x16\x03\x03\0\x31\x02\0\0\x2d\x03\x03",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: x\r\n\r\n\x81\x01a",
        b"\0\0\0\x04\0\0\0\0\0\0\0\x07\0\x05\0\0\0\x01\0\0\0\0\x02\x08\x01",
        b"\0\x1d\0\0\x81\x80\0\x01\0\x01\0\0\0\0\x01a\x04test\0\0\x01\0\x01",
        b"b",
        b"+OK ready\r\n+OK go\r\n",
        b"220-ready\r\n hello\r\n220 ready\r\n234 go\r\n",
        b"S",
        b"220 mail.test\r\n250 hello\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 24\r\nconnection: close\r\n\r\n{\"access_token\":\"a b c\"}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\na: b\r\nconnection: close\r\n\r\n{\"a\":\"b\"}",
    ];
    answers.iter().enumerate().map(|(kind, answer)| [&[kind as u8], *answer].concat()).collect()
}
