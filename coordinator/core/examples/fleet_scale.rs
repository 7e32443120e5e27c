//! What a large fleet costs the core: `cargo run --release -p probity-core --example fleet_scale -- [PROBERS] [CHECKS]`.
//!
//! One replica, in memory, without a log: the time of apply alone. Prints a table; asserts nothing.

use std::time::{Duration, Instant};

use probity_core::{State, apply, next_deadline};
use probity_proto::v1::check_kind::Kind;
use probity_proto::v1::command::Op;
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;

/// Targets of one probe, so that checks come in probes of a common size.
const TARGETS: usize = 1_000;

struct Core {
    state: State,
    index: u64,
    time_us: i64,
    /// Of one command.
    longest: Duration,
}

impl Core {
    fn apply(&mut self, op: Op) -> Duration {
        self.index += 1;
        self.time_us += 1_000;
        let command = Command { version: 1, time_us: self.time_us, op: Some(op), ..Command::default() };
        let began = Instant::now();
        let result = apply(&mut self.state, self.index, &command);
        let took = began.elapsed();
        assert!(matches!(result.result, Some(command_result::Result::Applied(_))), "{result:?}");
        // As the replica does now and then; not part of apply.
        self.state.take_changes();
        self.longest = self.longest.max(took);
        took
    }

    /// What a command left to do is done in ticks.
    fn settle(&mut self) -> Duration {
        let mut all = Duration::ZERO;
        while next_deadline(&self.state).is_some_and(|at| at <= self.state.now()) {
            all += self.apply(Op::Tick(Tick {}));
        }
        all
    }

    fn longest(&mut self) -> String {
        format!("longest {:.0} ms", std::mem::take(&mut self.longest).as_secs_f64() * 1e3)
    }

    fn join(&mut self, names: &[usize]) -> Duration {
        let joined = names.iter().map(|n| {
            let labels = [("zone".to_owned(), format!("z{}", n % 10))].into();
            ProberJoined { hello: Some(ProberHello { name: format!("prober-{n:04}"), labels, ..ProberHello::default() }) }
        });
        self.apply(Op::FleetChange(FleetChange { joined: joined.collect(), ..FleetChange::default() })) + self.settle()
    }

    /// As a leader tells it: the commands one after the other, with whatever they leave to do behind them.
    fn leave(&mut self, names: &[String]) -> Duration {
        let change = |left: &[String]| Op::FleetChange(FleetChange { left: left.to_vec(), ..FleetChange::default() });
        names.chunks(64).map(|left| self.apply(change(left))).sum::<Duration>() + self.settle()
    }

    fn put(&mut self, checks: usize) -> Duration {
        let mut all = Duration::ZERO;
        for probe in 0..checks.div_ceil(TARGETS) {
            let targets = (0..TARGETS.min(checks - probe * TARGETS)).map(|t| Target {
                key: format!("target-{t:04}"),
                address: format!("10.0.0.1:{t}"),
                ..Target::default()
            });
            let tcp = TcpCheck { address: "$(target.address)".to_owned(), ..TcpCheck::default() };
            let spec = ProbeSpec {
                interval_us: 30_000_000,
                timeout_us: 1_000_000,
                targets: targets.collect(),
                kind: Some(CheckKind { kind: Some(Kind::Tcp(tcp)) }),
                ..ProbeSpec::default()
            };
            let resource = Resource {
                kind: "Probe".to_owned(),
                namespace: "default".to_owned(),
                name: format!("probe-{probe:03}"),
                spec: Some(Spec::Probe(spec)),
                ..Resource::default()
            };
            let base_revision = self.state.meta().resource_revision;
            all += self.apply(Op::ApplyResources(ApplyResources { base_revision, put: vec![resource], ..ApplyResources::default() }));
        }
        all
    }
}

/// Resident memory of this process, by Linux.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) * 1_024
}

fn core() -> Core {
    let mut core = Core { state: State::new(), index: 0, time_us: 1_780_000_000_000_000, longest: Duration::ZERO };
    core.apply(Op::InitCluster(InitCluster { cluster_id: "scale".to_owned(), version: 1, ..InitCluster::default() }));
    core.apply(Op::LeaderStarted(LeaderStarted { member: 1, term: 1 }));
    core
}

fn row(what: &str, took: Duration, note: &str) {
    println!("{what:<58} {:>9.3} s  {note}", took.as_secs_f64());
}

fn main() {
    let number = |n: usize, default: usize| std::env::args().nth(n).map_or(default, |text| text.parse().expect("a number"));
    let (probers, checks) = (number(1, 1_000), number(2, 100_000));
    println!("{probers} probers x {checks} checks, 3 probers a check, 10 zones; apply alone, one replica\n");
    let everybody: Vec<usize> = (0..probers).collect();

    let empty = resident_bytes();
    let mut core = core();
    row("the fleet joins, one command each, before any check", everybody.iter().map(|n| core.join(&[*n])).sum(), "");
    let fleet = resident_bytes();
    let put = core.put(checks);
    row("all checks are applied, 1,000 to a command", put, &format!("{} assignments", core.state.assignments.len()));
    let full = resident_bytes();
    println!("{:<58} {:>9} B", "memory per prober", (fleet - empty) / probers as u64);
    println!("{:<58} {:>9} B", "memory per check, its 3 assignments included", (full - fleet) / checks as u64);

    let newcomers = probers / 10;
    let before = core.state.meta().next_assignment;
    core.longest();
    let took = (probers..probers + newcomers).map(|n| core.join(&[n])).sum::<Duration>();
    let moved = core.state.meta().next_assignment - before;
    let a_join = took.as_secs_f64() * 1e3 / newcomers as f64;
    row("10 % more join, one command each", took, &format!("{moved} assignments moved, {a_join:.2} ms a join, {}", core.longest()));
    let many: Vec<usize> = (probers + newcomers..probers + 4 * newcomers).collect();
    let before = core.state.meta().next_assignment;
    let took = many.chunks(64).map(|names| core.join(names)).sum();
    let moved = core.state.meta().next_assignment - before;
    row("30 % more join, 64 to a command", took, &format!("{moved} assignments moved, {}", core.longest()));

    let left: Vec<String> = (0..newcomers).map(|n| format!("prober-{:04}", n * 10)).collect();
    let before = core.state.meta().next_assignment;
    let took = core.leave(&left);
    row("10 % are lost, 64 to a command", took, &format!("{} assignments moved, {}", core.state.meta().next_assignment - before, core.longest()));
    let left: Vec<String> = (0..probers + 4 * newcomers).filter(|n| !n.is_multiple_of(10) && n % 10 < 5).map(|n| format!("prober-{n:04}")).collect();
    let before = core.state.meta().next_assignment;
    let took = core.leave(&left);
    row("four of ten zones are lost, 64 to a command", took, &format!("{} assignments moved, {}", core.state.meta().next_assignment - before, core.longest()));
    row("everybody says hello again to a new leader", everybody.iter().filter(|n| *n % 10 > 4).map(|n| core.join(&[*n])).sum(), "nothing moves");
    row("a tick", core.apply(Op::Tick(Tick {})), "");

    let mut core = self::core();
    core.put(checks);
    core.longest();
    let took = everybody.chunks(64).map(|names| core.join(names)).sum();
    row("the whole fleet joins 64 to a command, checks first", took, &core.longest());
}
