//! Entries of crates whose parsers are public, and what all entries begin from.

use std::cell::RefCell;
use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use hickory_proto::op::{Message as DnsMessage, Query};
use hickory_proto::rr::rdata::{CNAME, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use probity_core::{State, apply, invariants};
use probity_proto::discovery::{parse_groups, targets_of};
use probity_proto::resources::{self, SourceFile};
use probity_proto::v1::check_kind::Kind;
use probity_proto::v1::command::Op;
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;
use probity_proto::{lower, units};
use probity_rpc::access::Grant;
use probity_rpc::enrol::JoinToken;
use probity_rpc::v1::{OnBehalfOf, ShownCertificate};
use prost::Message;

fn texts(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|t| t.as_bytes().to_vec()).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn dns_seeds() -> Vec<Vec<u8>> {
    let name = |text: &str| Name::from_ascii(text).expect("a name");
    let answer = |records: Vec<Record>| {
        let mut message = DnsMessage::query();
        message.metadata.id = 0x1234;
        message.metadata.message_type = hickory_proto::op::MessageType::Response;
        message.add_query(Query::query(name("shop.example."), RecordType::A));
        records.into_iter().for_each(|r| {
            message.add_answer(r);
        });
        message.to_vec().expect("encodes")
    };
    vec![
        answer(vec![Record::from_rdata(name("shop.example."), 60, RData::A(std::net::Ipv4Addr::LOCALHOST.into()))]),
        answer(vec![
            Record::from_rdata(name("shop.example."), 60, RData::CNAME(CNAME(name("b.example.")))),
            Record::from_rdata(name("b.example."), 60, RData::CNAME(CNAME(name("shop.example.")))),
        ]),
        answer(vec![Record::from_rdata(name("shop.example."), 60, RData::TXT(TXT::new(vec!["a b".to_owned()])))]),
        b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x04shop\x07example\0\0\x01\0\x01\xc0\x0c\xff\x00\0\x01\0\0\0\x3c\0\x03abc".to_vec(),
    ]
}

pub(crate) fn icmp_seeds() -> Vec<Vec<u8>> {
    let echo = b"\x00\x00\x00\x00\x12\x34\x00\x01aaaaaaaaaaaaaaaaaaaaaaaa12345678".to_vec();
    let inner = [b"\x45\x00\x00\x54\0\0\0\0\x40\x01\0\0\x7f\0\0\x01\x7f\0\0\x02\x08\0\0\0\x12\x34\0\x01".as_slice(), b"abcdefghijklmnop12345678"].concat();
    vec![
        echo.clone(),
        [b"\x45\x00\x00\x3c\0\0\0\0\x40\x01\0\0\x7f\0\0\x01\x7f\0\0\x01".as_slice(), &echo].concat(),
        [b"\x03\x03\0\0\0\0\0\0".as_slice(), &inner].concat(),
        [b"\x0b\0\0\0\0\0\0\0".as_slice(), &inner].concat(),
        b"\x81\0\0\0\x12\x34\0\x01aaaaaaaa12345678".to_vec(),
    ]
}

pub(crate) fn certificate_seeds() -> Vec<Vec<u8>> {
    let made = rcgen::generate_simple_self_signed(vec!["shop.example".to_owned(), "127.0.0.1".to_owned()]).expect("a certificate");
    vec![made.cert.der().to_vec()]
}

pub(crate) fn ocsp_seeds() -> Vec<Vec<u8>> {
    let good = b"\x30\x53\x0a\x01\0\xa0\x4e\x30\x4c\x06\x09\x2b\x06\x01\x05\x05\x07\x30\x01\x01\x04\x3f\x30\x3d\x30\x3b\xa2\x06\x04\x04abcd\x18\x0f20260101000000Z\x30\x20\x30\x1e\x30\x09\x04\x07abcdefg\x80\x00\x18\x0f20260101000000Z";
    vec![good.to_vec(), b"\x30\x03\x0a\x01\x03".to_vec(), b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\0\x04\0\x04\0".to_vec()]
}

pub(crate) fn coding_seeds() -> Vec<Vec<u8>> {
    let body = "hello hello hello ".repeat(20);
    let mut gzip = GzEncoder::new(vec![0], Compression::best());
    let mut zlib = ZlibEncoder::new(vec![1], Compression::best());
    gzip.write_all(body.as_bytes()).expect("into memory");
    zlib.write_all(body.as_bytes()).expect("into memory");
    vec![
        gzip.finish().expect("into memory"),
        zlib.finish().expect("into memory"),
        b"\x02\x0b\x02\x80hello\x03".to_vec(),
        b"\x03\x28\xb5\x2f\xfd\x04\x00\x29\x00\x00hello\x00\x00\x00\x00".to_vec(),
    ]
}

pub(crate) fn grpc_seeds() -> Vec<Vec<u8>> {
    vec![b"\0\0\0\0\x02\x08\x01".to_vec(), b"\0\0\0\0\0".to_vec(), b"\0\0\0\0\x05\x12\x01x\x08\x02".to_vec()]
}

pub(crate) fn redirect_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "https://a.test/b/c?d\n../e#f",
        "http://a.test:81/\n//b.test/x",
        "https://a.test/\nhttps://a.test:443/?q=..",
        "http://[::1]:80/a\n?x",
        "https://me@a.test/x\nftp://b/",
        "https://a.test/\nhttps://u:p@a.test/",
    ])
}

pub(crate) fn query_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "10\nmodule=http_2xx&target=https%3A%2F%2Fa.test%2F&debug=true",
        "0.3\nmodule=tcp&target=a.test:443&hostname=b.test",
        "1e9\ntarget=http%253A%252F%252Fx%252Fa%2520b",
        "\nmodule=dns&target=tcp://1.1.1.1:53",
        "5\nmodule=grpc&target=[::1]:50051&hostname=a",
        "5\ntarget=a+b%zz%00",
    ])
}

/// Certificates that peers show, and requests for one.
pub(crate) fn shown_certificate(bytes: &[u8]) {
    let _ = probity_rpc::tls::Certified::of_chain(&[bytes.to_vec().into(), bytes.to_vec().into()]);
    let _ = probity_rpc::pki::Checked::read(&text(bytes)).map(|request| request.key_hash());
}

pub(crate) fn shown_seeds() -> Vec<Vec<u8>> {
    let request = probity_rpc::pki::request("edge-1").expect("a request");
    let mut params = rcgen::CertificateParams::new(vec!["edge-1".to_owned(), "127.0.0.1".to_owned()]).expect("names");
    params.distinguished_name.push(rcgen::DnType::CommonName, "edge-1");
    params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, "prober operator:shop");
    let key = rcgen::KeyPair::generate().expect("a key");
    vec![params.self_signed(&key).expect("signed").der().to_vec(), request.csr_pem.into_bytes()]
}

pub(crate) fn forwarded_seeds() -> Vec<Vec<u8>> {
    let certificate =
        ShownCertificate { name: "me".to_owned(), grants: vec!["operator:shop".to_owned()], serial: "ab".to_owned(), ..ShownCertificate::default() };
    let said = OnBehalfOf { origin: "192.0.2.7:4711".to_owned(), certificate: Some(certificate) };
    vec![
        STANDARD_NO_PAD.encode(said.encode_to_vec()).into_bytes(),
        STANDARD_NO_PAD.encode(OnBehalfOf { origin: "[::1]:1".to_owned(), certificate: None }.encode_to_vec()).into_bytes(),
    ]
}

/// One-shot targets.
pub(crate) fn target(bytes: &[u8]) {
    let _ = probity_prober::oneshot::check(&text(bytes), &probity_prober::oneshot::Options { timeout_us: 5_000_000, ..Default::default() });
}

pub(crate) fn target_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "https://example.com/a?b=c",
        "example.com",
        "example.com:443",
        "tls://example.com",
        "dns://1.1.1.1/example.com?type=AAAA&expect.minAnswers=1",
        "ping://[::1]?count=10&maxRtt.p95=20ms",
        "trace://example.com?protocol=tcp&port=443",
        "grpcs://example.com:443/service",
        "wss://example.com/x#expect=a",
        "udp://127.0.0.1:53?sendHex=00ff&expect=.",
    ])
}

/// Resource documents.
pub(crate) fn resources(bytes: &[u8]) {
    let parsed = resources::parse(&[SourceFile { name: "fuzz".to_owned(), text: text(bytes) }], "default");
    for problem in &parsed.problems {
        let _ = problem.to_string();
    }
    for resource in &parsed.resources {
        let _ = resource.problem("spec.targets.static[0].address", "x", "");
        let bytes = resource.resource.encode_to_vec();
        assert_eq!(Resource::decode(bytes.as_slice()).as_ref(), Ok(&resource.resource), "what is read can be stored");
    }
}

pub(crate) fn resource_seeds() -> Vec<Vec<u8>> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let mut found = Vec::new();
    let mut left = vec![dir];
    while let Some(dir) = left.pop() {
        for path in std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| e.path()) {
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|e| e == "yaml")
                && let Ok(bytes) = std::fs::read(&path)
            {
                found.push(bytes);
            }
        }
    }
    found.sort();
    let probe = |spec: &str| format!("apiVersion: probity/v1\nkind: Probe\nmetadata: {{name: a, labels: {{b: c}}}}\nspec:\n  interval: 1s\n{spec}");
    found.extend(
        [
            "  target: https://a.test/\n  http: {expect: {status: [2xx], body: [{jsonPath: $.a, equals: b}, {matches: '(a|b)+'}]}}\n",
            "  targets: {httpSD: {url: 'http://a.test/'}, key: $(target.labels.x), labels: [x]}\n  tcp: {address: $(target.address)}\n",
            "  target: a.test\n  icmp: {count: 3, maxRtt: {p95: 10ms}, dscp: ef}\n  placement: {count: all}\n",
            "  target: 1.1.1.1\n  dns: {name: a.test, type: TYPE65, expect: {answer: {matches: a, ttl: {min: 1}}}}\n",
            "  target: a.test:1\n  tcp: {dialogue: [{send: a}, {expect: '(?P<x>b)'}, {send: $(captures.x)}], tls: {minDays: 1}}\n",
            "  x: &a [1, 2]\n  y: [*a, *a, {z: *a}]\n",
        ]
        .map(|s| probe(s).into_bytes()),
    );
    found.push(b"apiVersion: openslo/v1\nkind: SLO\nmetadata: {name: a}\nspec:\n  service: s\n  indicator: {metadata: {name: i}, spec: {ratioMetric: {counter: true, good: {metricSource: {type: probity, spec: {probe: p, outcome: good}}}, total: {metricSource: {type: probity, spec: {probe: p}}}}}}\n  timeWindow: [{duration: 30d, isRolling: true}]\n  budgetingMethod: Occurrences\n  objectives: [{displayName: a, target: 0.999}]\n".to_vec());
    found
}

/// `blackbox.yml`.
pub(crate) fn blackbox(bytes: &[u8]) {
    let text = text(bytes);
    let _ = resources::blackbox::parse(&SourceFile { name: "fuzz".to_owned(), text: text.clone() });
    let _ = resources::blackbox::from_go(&text);
}

pub(crate) fn blackbox_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "modules:\n  a:\n    prober: http\n    timeout: 5s\n    http:\n      valid_status_codes: [200]\n      method: POST\n      headers: {a: b}\n      fail_if_body_matches_regexp: ['(?i)x.*']\n      tls_config: {insecure_skip_verify: true}\n      basic_auth: {username: u, password: p}\n",
        "modules:\n  b:\n    prober: tcp\n    tcp:\n      query_response:\n        - expect: '^SSH-2.0-'\n        - {send: 'x', starttls: false}\n      tls: true\n",
        "modules:\n  c: {prober: dns, dns: {query_name: a.test, query_type: MX, validate_answer_rrs: {fail_if_matches_regexp: ['.*127.0.0.1']}}}\n  d: {prober: icmp, icmp: {preferred_ip_protocol: ip4}}\n  e: {prober: grpc, grpc: {service: s, tls: true}}\n",
        r"^[[:alpha:]]+\Q.\E(?P<x>\pL{2,5})\z",
    ])
}

/// Small values of all kinds.
pub(crate) fn values(bytes: &[u8]) {
    let text = &text(bytes);
    if let Ok(us) = units::parse_duration(text) {
        let _ = units::format_duration(us);
    }
    let _ = (resources::json_path(text), resources::regex(text), resources::pin(text), resources::proxy_url(text), resources::coding(text));
    let _ = (resources::resolver_server(text), resources::status_range(text), resources::interface(text), resources::record_type_number(text));
    let _ = (lower::references(text), lower::substitute(text, |name| (name.len() < 4).then(|| name.to_owned())), resources::explain(text));
    let _ = probity_proto::check::CheckName::parse(text);
}

pub(crate) fn value_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "1h30m",
        "300ms",
        "30d",
        "$.a[?(@.b > 1)].c",
        "(?i)a(b|c)+$",
        "sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        "socks5://proxy.test:1080",
        "https://1.1.1.1/dns-query#one.test",
        "200-299",
        "TYPE65",
        "a $(target.labels.x) $(b",
        "probe.spec.http",
        "gzip",
        "eth0",
        "shop/web/a/b",
    ])
}

/// What a discovery's source answers.
pub(crate) fn discovery(bytes: &[u8]) {
    let Ok(found) = parse_groups(&text(bytes)) else { return };
    let discovery = Discovery { key: "$(target.labels.store)$(target.address)".to_owned(), plain_labels: true, max: 100, ..Discovery::default() };
    let tcp = TcpCheck { address: "$(target.address)".to_owned(), ..TcpCheck::default() };
    let spec = ProbeSpec { kind: Some(CheckKind { kind: Some(Kind::Tcp(tcp)) }), discovery: Some(discovery), ..ProbeSpec::default() };
    if let Ok((targets, _)) = targets_of(&spec, found) {
        assert!(!targets.is_empty() && targets.len() <= 100 && targets.windows(2).all(|pair| pair[0].key < pair[1].key), "a set that apply takes");
    }
}

pub(crate) fn discovery_seeds() -> Vec<Vec<u8>> {
    texts(&[
        r#"[{"targets": ["a:1", "b:2"], "labels": {"store": "s", "__meta_x": "y"}}, {"targets": ["c:3"], "labels": {"store": ""}}]"#,
        "- targets: [a:1, 'b:2']\n  labels:\n    store: s\n- targets:\n  - c:3\n  labels: null\n",
        "[]",
    ])
}

pub(crate) fn kubernetes_seeds() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"metadata": {"continue": "x"}, "items": [{"metadata": {"name": "a", "namespace": "b", "labels": {"c/d": "e"}, "annotations": {"f": "g"}}, "spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1", "ports": [{"name": "h", "port": 80, "protocol": "TCP"}]}}]}"#,
        r#"{"items": [{"metadata": {"name": "a"}, "spec": {"tls": [{"hosts": ["*.a.test"]}], "rules": [{"host": "b.a.test", "http": {"paths": [{"path": "/"}]}}]}}]}"#,
    ])
}

pub(crate) fn jwt_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "eyJhbGciOiJSUzI1NiIsImtpZCI6ImsifQ.eyJpc3MiOiJodHRwczovL2EudGVzdCIsImF1ZCI6InByb2JpdHkiLCJleHAiOjQwMDAwMDAwMDAsInN1YiI6Im1lIiwiZ3JvdXBzIjpbInNyZSJdfQ.AAAA",
        r#"{"kty": "RSA", "kid": "k", "n": "AQAB", "e": "AQAB", "use": "sig"}"#,
        r#"{"kty": "EC", "crv": "P-256", "kid": "k", "x": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "y": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#,
        r#"{"iss": "https://a.test", "aud": ["probity"], "exp": 4000000000.5, "nbf": 1, "sub": "me", "groups": "sre"}"#,
    ])
}

/// What people and hosts show to be let in.
pub(crate) fn credentials(bytes: &[u8]) {
    let text = &text(bytes);
    probity_coordinator::fuzz::authorization(text);
    if let Ok(token) = JoinToken::parse(text) {
        assert_eq!(JoinToken::parse(&token.written()), Ok(token), "what is read can be written");
    }
    if let Ok(grant) = Grant::parse(text) {
        assert_eq!(Grant::parse(&grant.to_string()), Ok(grant), "what is read can be written");
    }
}

pub(crate) fn credential_seeds() -> Vec<Vec<u8>> {
    let token = JoinToken { token: "t-1a2b3c4d.secret".to_owned(), root_fingerprint: "ab".repeat(32) };
    let mut seeds = texts(&["Bearer t-1a2b3c4d.secret", "Basic dXNlcjpwYXNz", "operator:shop", "viewer", "t-1a2b3c4d.secret"]);
    seeds.push(token.written().into_bytes());
    seeds
}

pub(crate) fn path_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "/api/v1/probes?namespace=shop&selector=a%3Db",
        "/api/v1/status",
        "/api/v1/probes/default/web",
        "/api/v1/events?for=Probe%2Fweb&after=3",
        "/api/v1/alerts/default/slo/rule",
        "/api/v1/tokens",
    ])
}

pub(crate) fn peer_seeds() -> Vec<Vec<u8>> {
    let entry = RaftEntry { entry_type: 0, term: 2, index: 9, data: b"data".to_vec().into(), ..RaftEntry::default() };
    let change = RaftEntry {
        entry_type: 2,
        data: ConfChangeRecord { changes: vec![ConfChangeSingle { change_type: 0, node: 3 }], ..Default::default() }.encode_to_vec().into(),
        ..entry.clone()
    };
    let raft = |msg_type, entries| RaftMessage { msg_type, term: 2, index: 8, log_term: 2, entries, commit: 8, ..RaftMessage::default() };
    let snapshot = RaftMessage { snapshot: Some(SnapshotManifest::default()), ..raft(7, Vec::new()) };
    let peer = |message| PeerMessage { cluster_id: "c".to_owned(), from: 1, to: 2, message: Some(message) }.encode_to_vec();
    vec![
        peer(peer_message::Message::Raft(raft(3, vec![entry, change]))),
        peer(peer_message::Message::Raft(raft(8, Vec::new()))),
        peer(peer_message::Message::Raft(snapshot)),
        peer(peer_message::Message::Chunk(SnapshotChunk::default())),
    ]
}

/// A message of another member, taken by one that follows in a group of three. Messages of the peers that the group has: who else speaks is
/// turned away at the connection.
pub(crate) fn raft_step(bytes: &[u8]) {
    let Ok(mut peer) = PeerMessage::decode(bytes) else { return };
    let db = redb::Builder::new().create_with_backend(redb::backends::InMemoryBackend::new()).expect("a store in memory");
    let mut replica = probity_replica::Replica::open(probity_replica::Config { new_id: 1, ..Default::default() }, db, 1).expect("it opens");
    replica.form("c", &[1, 2, 3]).expect("a new group");
    "c".clone_into(&mut peer.cluster_id);
    (peer.from, peer.to) = (2 + peer.from % 2, 1);
    for _ in 0..2 {
        if replica.step([probity_replica::Input::Peer(peer.clone()), probity_replica::Input::Tick]).is_err() {
            return;
        }
    }
}

thread_local! {
    static WATCHED: RefCell<(State, u64)> = RefCell::new(watched());
}

/// A cluster with two probers and a check.
fn watched() -> (State, u64) {
    let mut state = State::new();
    let mut index = 0;
    let mut applied = |op| {
        index += 1;
        apply(&mut state, index, &Command { version: 1, time_us: 1_780_000_000_000_000 + index as i64 * 5_000_000, op: Some(op), ..Command::default() });
    };
    applied(Op::InitCluster(InitCluster { cluster_id: "c".to_owned(), cluster_name: "c".to_owned(), version: 1, members: Vec::new() }));
    applied(Op::LeaderStarted(LeaderStarted { member: 1, term: 1 }));
    for name in ["p0", "p1"] {
        let hello = ProberHello { name: name.to_owned(), spool_id: format!("{name}-1"), ..ProberHello::default() };
        applied(Op::FleetChange(FleetChange { joined: vec![ProberJoined { hello: Some(hello) }], ..FleetChange::default() }));
    }
    let spec = ProbeSpec {
        interval_us: 1_000_000,
        timeout_us: 1_000_000,
        targets: vec![Target { address: "a.test:1".to_owned(), ..Target::default() }],
        kind: Some(CheckKind { kind: Some(Kind::Tcp(TcpCheck { address: "a.test:1".to_owned(), ..TcpCheck::default() })) }),
        placement: Some(Placement::default()),
        verdict: Some(VerdictRule { quorum: 2, down_after: 2, recover_after: 2 }),
        ..ProbeSpec::default()
    };
    let probe =
        Resource { kind: "Probe".to_owned(), namespace: "default".to_owned(), name: "web".to_owned(), spec: Some(Spec::Probe(spec)), ..Resource::default() };
    applied(Op::ApplyResources(ApplyResources { put: vec![probe], ..ApplyResources::default() }));
    applied(Op::Tick(Tick {}));
    applied(Op::Tick(Tick {}));
    (state, index)
}

/// What a prober may say, taken by the core: its rules hold after it.
pub(crate) fn prober_message(bytes: &[u8]) {
    let Ok(message) = ProberMessage::decode(bytes) else { return };
    let op = match message.message {
        Some(prober_message::Message::Hello(hello)) => {
            Op::FleetChange(FleetChange { joined: vec![ProberJoined { hello: Some(hello) }], ..FleetChange::default() })
        }
        Some(prober_message::Message::Rows(rows)) => Op::AcceptRows(AcceptRows { rows: rows.rows }),
        Some(prober_message::Message::Fault(report)) => {
            Op::FaultReports(FaultReports { reports: vec![ProberFaultReport { prober: "p0".to_owned(), report: Some(report) }] })
        }
        _ => return,
    };
    let (mut state, index) = WATCHED.with_borrow(Clone::clone);
    let time_us = state.now() + 1_000_000;
    apply(&mut state, index + 1, &Command { version: 1, time_us, op: Some(op), ..Command::default() });
    let broken = invariants::check(&state);
    assert!(broken.is_empty(), "{broken:?}");
}

pub(crate) fn prober_seeds() -> Vec<Vec<u8>> {
    let (state, _) = watched();
    let rows = state.assignments.iter().map(|a| ReportRow {
        prober: a.prober.clone(),
        spool_id: format!("{}-1", a.prober),
        sequence: 1,
        assignment: a.id,
        first_n: a.first_n,
        outcomes: vec![OutcomeRun { count: 3, ..OutcomeRun::default() }, OutcomeRun { count: 2, reason: 1, slower_than: 0 }],
        details: vec![RunDetail { n: a.first_n, started_at_us: state.now(), duration_us: 5, ..RunDetail::default() }],
        ..ReportRow::default()
    });
    let message = |m| ProberMessage { message: Some(m) }.encode_to_vec();
    let mut seeds: Vec<Vec<u8>> = rows.map(|row| message(prober_message::Message::Rows(ReportRows { rows: vec![row] }))).collect();
    seeds.push(message(prober_message::Message::Hello(ProberHello {
        name: "p2".to_owned(),
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        spool_id: "x".to_owned(),
        ..ProberHello::default()
    })));
    seeds.push(message(prober_message::Message::Fault(FaultReport { fault_id: "f".to_owned(), at_us: 1, ..FaultReport::default() })));
    seeds
}

/// Whatever decodes can be encoded, and reads the same again.
pub(crate) fn protobufs(bytes: &[u8]) {
    fn one<M: Message + Default + PartialEq>(bytes: &[u8]) {
        if let Ok(message) = M::decode(bytes) {
            assert!(M::decode(message.encode_to_vec().as_slice()).is_ok_and(|again| again == message), "it reads the same again");
        }
    }
    let Some((which, rest)) = bytes.split_first() else { return };
    match which % 8 {
        0 => one::<CoordinatorMessage>(rest),
        1 => one::<Command>(rest),
        2 => one::<BackupPart>(rest),
        3 => one::<StateRows>(rest),
        4 => one::<SnapshotManifest>(rest),
        5 => one::<AssignmentSpec>(rest),
        6 => one::<Resource>(rest),
        _ => {
            // A row of the store: what cannot be read is an error, never a panic.
            let table = u32::from(rest.first().copied().unwrap_or(0));
            let _ = State::new().load(table, "key", rest.get(1..).unwrap_or_default());
        }
    }
}

pub(crate) fn protobuf_seeds() -> Vec<Vec<u8>> {
    let resource = Resource { kind: "Probe".to_owned(), name: "a".to_owned(), spec: Some(Spec::Probe(ProbeSpec::default())), ..Resource::default() };
    let command =
        Command { version: 1, op: Some(Op::ApplyResources(ApplyResources { put: vec![resource.clone()], ..ApplyResources::default() })), ..Command::default() };
    let with = |which: u8, bytes: Vec<u8>| [vec![which], bytes].concat();
    let mut seeds = vec![with(1, command.encode_to_vec()), with(6, resource.encode_to_vec()), with(0, CoordinatorMessage::default().encode_to_vec())];
    let (state, _) = watched();
    seeds.extend(state.rows().map(|(table, _, bytes)| [&[7, table as u8], bytes.as_slice()].concat()));
    seeds
}
