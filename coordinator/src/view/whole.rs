//! Tests that what is read in pieces is the whole.

use std::time::{Duration, Instant};

use probity_core::{State, account, apply, verdict};
use probity_proto::v1::check_kind::Kind;
use probity_proto::v1::command::Op;
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;
use probity_rpc::access::Caller;
use prost::Message;

use super::pieces::{Pass, Turn};
use super::sums::Total;
use super::{Scope, Still, items, total, verdicts};

fn everybody() -> Scope {
    Scope::of(&Caller::local("me".to_owned()))
}

struct Fleet {
    state: State,
    index: u64,
    time_us: i64,
}

impl Fleet {
    fn apply(&mut self, op: Op) {
        self.index += 1;
        self.time_us += 1_000;
        let command = Command { version: 1, time_us: self.time_us, op: Some(op), ..Command::default() };
        let result = apply(&mut self.state, self.index, &command);
        assert!(matches!(result.result, Some(command_result::Result::Applied(_))), "{result:?}");
        self.state.take_changes();
    }

    fn put(&mut self, name: &str, targets: std::ops::Range<usize>) {
        let target = |t: usize| Target { key: format!("target-{t:06}"), address: format!("10.0.0.1:{}", t % 60_000), ..Target::default() };
        let tcp = TcpCheck { address: "$(target.address)".to_owned(), ..TcpCheck::default() };
        let spec = ProbeSpec {
            interval_us: 30_000_000,
            timeout_us: 1_000_000,
            targets: targets.map(target).collect(),
            kind: Some(CheckKind { kind: Some(Kind::Tcp(tcp)) }),
            ..ProbeSpec::default()
        };
        let put = Resource {
            kind: "Probe".to_owned(),
            namespace: "default".to_owned(),
            name: name.to_owned(),
            spec: Some(Spec::Probe(spec)),
            document_json: "{\"spec\":{}}".to_owned(),
            ..Resource::default()
        };
        let base_revision = self.state.meta().resource_revision;
        self.apply(Op::ApplyResources(ApplyResources { base_revision, put: vec![put], ..ApplyResources::default() }));
    }

    fn tick(&mut self, seconds: i64) {
        self.time_us += seconds * 1_000_000;
        self.apply(Op::Tick(Tick {}));
    }
}

/// `checks` of probes with `targets` each, three probers a check, and what they said last.
fn fleet(probers: usize, checks: usize, targets: usize) -> Fleet {
    let mut fleet = Fleet { state: State::new(), index: 0, time_us: 1_780_000_000_000_000 };
    fleet.apply(Op::InitCluster(InitCluster { cluster_id: "c".to_owned(), version: 1, ..InitCluster::default() }));
    fleet.apply(Op::LeaderStarted(LeaderStarted { member: 1, term: 1 }));
    for n in 0..probers {
        let hello = ProberHello { name: format!("p{n:04}"), labels: [("zone".to_owned(), format!("z{}", n % 10))].into(), ..ProberHello::default() };
        fleet.apply(Op::FleetChange(FleetChange { joined: vec![ProberJoined { hello: Some(hello) }], ..FleetChange::default() }));
    }
    for n in 0..checks.div_ceil(targets) {
        fleet.put(&format!("probe-{n:03}"), 0..targets.min(checks - n * targets));
    }
    fleet.tick(100);
    // What a change moves is moved in pieces.
    while probity_core::next_deadline(&fleet.state).is_some_and(|at| at <= fleet.state.now()) {
        fleet.tick(0);
    }
    let voters: Vec<VoterRecord> = fleet.state.assignments.iter().map(|a| said(&a.check, &a.prober)).collect();
    for voter in voters {
        fleet.state.voters.put(voter);
    }
    fleet
}

fn said(check: &str, prober: &str) -> VoterRecord {
    let phase = |name: &str| Phase { name: name.to_owned(), start_us: 100, duration_us: 900 };
    let detail = |n: u64| RunDetail {
        n,
        started_at_us: 1_780_000_000_000_000,
        duration_us: 1_000,
        reason: Reason::Good as i32,
        phases: vec![phase("resolve"), phase("connect")],
        trace_id: "0123456789abcdef0123456789abcdef".to_owned(),
        peer: "10.0.0.1:80".to_owned(),
        ..RunDetail::default()
    };
    VoterRecord {
        check: check.to_owned(),
        prober: prober.to_owned(),
        voice: Verdict::Up as i32,
        last_reason: Reason::Good as i32,
        last_at_us: 1_780_000_000_000_000,
        last_duration_us: 1_000,
        recent: vec![OutcomeRun { count: 60, reason: Reason::Good as i32, ..OutcomeRun::default() }],
        details: (0..4).map(|n| detail(n).encode_to_vec().into()).collect(),
        ..VoterRecord::default()
    }
}

#[test]
fn what_is_put_together_is_the_whole() {
    let mut fleet = fleet(5, 300, 100);
    // Targets go, a probe goes, and what was due of them is still counted.
    fleet.put("probe-001", 0..50);
    let delete = vec![ResourceKey { kind: "Probe".to_owned(), namespace: "default".to_owned(), name: "probe-002".to_owned() }];
    let base_revision = fleet.state.meta().resource_revision;
    fleet.apply(Op::ApplyResources(ApplyResources { base_revision, delete, ..ApplyResources::default() }));
    let still = Still::of(fleet.state);
    let now = still.state.now();
    let whole = account::total(&still.state, now);
    assert!(whole.planned > 0 && whole.pending > 0 && whole.unexplained == 0, "{whole:?}");
    assert_eq!(Still::done(total(&still, now)), whole);
    let status = still.read("/api/v1/status", &everybody()).expect("a status");
    let counted: u64 = ["up", "down", "unknown"].iter().filter_map(|verdict| status["checks"][verdict].as_u64()).sum();
    assert_eq!((counted, status["runs"]["planned"].as_u64()), (150, Some(whole.planned)), "{status}");
    for name in ["probe-000", "probe-001"] {
        let path = format!("/api/v1/probes/default/{name}");
        let one = still.read(&path, &everybody()).expect("a probe");
        let account = account::of_probe(&still.state, "default", name, now);
        assert_eq!(one["status"]["runs"], super::account(&account), "{name}");
        let checks = if name == "probe-000" { 100 } else { 50 };
        assert_eq!(one["status"]["checks"].as_array().map(Vec::len), Some(checks));
        let bare = still.read(&format!("{path}?checks=false"), &everybody()).expect("a probe");
        assert!(bare["status"]["checks"].is_null() && bare["status"]["checkCount"] == checks && bare["status"]["proberCount"] == 3 * checks);
    }
    let verdicts = Still::done(verdicts(&still));
    assert_eq!(verdicts.len(), 150);
}

/// Targets go, come back, and go with their probe, between the pieces: the sum is what it is at a stroke.
#[test]
fn what_moves_meanwhile_is_counted_once() {
    let mut fleet = fleet(5, 300, 100);
    let now = fleet.state.now();
    let mut total = Total::at(now);
    let mut pieces = 0;
    while !total.go_on(&fleet.state, &mut Turn::short()) {
        pieces += 1;
        match pieces {
            // Both what was counted and what is still to be.
            2 => fleet.put("probe-000", 50..100),
            3 => fleet.put("probe-001", 0..10),
            5 => fleet.put("probe-000", 0..100),
            8 => fleet.put("probe-001", 5..60),
            12 => {
                let delete = vec![ResourceKey { kind: "Probe".to_owned(), namespace: "default".to_owned(), name: "probe-002".to_owned() }];
                let base_revision = fleet.state.meta().resource_revision;
                fleet.apply(Op::ApplyResources(ApplyResources { base_revision, delete, ..ApplyResources::default() }));
            }
            _ => {}
        }
    }
    assert!(pieces > 12, "{pieces}");
    let whole = account::total(&fleet.state, now);
    assert!(whole.planned > 0);
    let seen = total.view.finish();
    assert_eq!((seen.planned, seen.pending, seen.unexplained), (whole.planned, whole.pending, 0), "{seen:?} {whole:?}");
}

#[test]
fn pages_are_the_whole_and_more_than_fits_is_refused() {
    let still = Still::of(fleet(3, 5_000, 2_500).state);
    let refused = still.read("/api/v1/probes", &everybody()).expect_err("more than 15 MiB");
    assert!(refused.code == "too_large" && refused.message.contains("paged=true"), "{refused:?}");
    let (mut path, mut pages, mut seen) = ("/api/v1/probes?paged=true".to_owned(), 0, Vec::new());
    loop {
        let page = still.read(&path, &everybody()).expect("a page");
        assert!(page.to_string().len() < 16 * 1024 * 1024);
        pages += 1;
        for item in page["items"].as_array().expect("items") {
            let of = item["metadata"]["name"].as_str().expect("a name");
            seen.extend(item["status"]["checks"].as_array().into_iter().flatten().map(|c| c["check"].as_str().expect("a name").to_owned()));
            assert!(item["status"]["runs"].is_object() || pages > 1, "the summary of {of} is where it begins");
        }
        let Some(next) = page["continue"].as_str() else { break };
        path = format!("/api/v1/probes?from={}", next.replace('\n', "%0A"));
    }
    assert!(pages >= 2, "{pages}");
    let all: Vec<String> = still.state.checks.iter().map(|c| c.check.clone()).collect();
    assert_eq!(seen, all, "each check once, in order");
}

/// Not a test of anything: `cargo test --release -p probity-coordinator scale -- --ignored --nocapture`.
#[test]
#[ignore = "prints how long the state is held by readings of 100,000 checks"]
fn scale() {
    let still = Still::of(fleet(1_000, 100_000, 1_000).state);
    let row = |what: &str, work: &dyn Fn() -> usize| {
        still.looks.lock().expect("not poisoned").clear();
        let bytes = work();
        let looks = still.looks.lock().expect("not poisoned").clone();
        let (sum, most) = (looks.iter().sum::<Duration>(), looks.iter().max().copied().unwrap_or_default());
        println!(
            "{what:<44} {:>6} looks, {:>8.1} ms in all, longest {:>7.1} ms, {bytes} bytes",
            looks.len(),
            sum.as_secs_f64() * 1e3,
            most.as_secs_f64() * 1e3
        );
    };
    let read = |path: &str| still.read(path, &everybody()).map_or(0, |value| value.to_string().len());
    row("get probes (checks=false)", &|| read("/api/v1/probes?checks=false"));
    row("get probes -o json, one page", &|| read("/api/v1/probes?paged=true"));
    row("get probes -o json, all pages", &|| {
        let (mut path, mut bytes) = ("/api/v1/probes?paged=true".to_owned(), 0);
        loop {
            let page = still.read(&path, &everybody()).expect("a page");
            bytes += page.to_string().len();
            let Some(next) = page["continue"].as_str() else { return bytes };
            path = format!("/api/v1/probes?from={}", next.replace('\n', "%0A"));
        }
    });
    row("status", &|| read("/api/v1/status"));
    row("metrics: the account and the verdicts", &|| {
        Still::done(total(&still, still.state.now()));
        Still::done(verdicts(&still)).len()
    });
    row("get probers", &|| read("/api/v1/probers"));
    row("describe one probe", &|| read("/api/v1/probes/default/probe-007"));
    // As it was: at a stroke.
    let stroke = |what: &str, work: &dyn Fn() -> usize| {
        let began = Instant::now();
        let n = work();
        println!("{what:<44} at a stroke {:>8.1} ms ({n})", began.elapsed().as_secs_f64() * 1e3);
    };
    stroke("every check as JSON", &|| still.state.checks.iter().map(|c| items::check(&still.state, c)).collect::<Vec<_>>().len());
    stroke("the account of all", &|| account::total(&still.state, still.state.now()).planned as usize);
    stroke("findings of all", &|| still.state.checks.iter().map(|c| verdict::findings(&still.state, &c.check).len()).sum());
}
