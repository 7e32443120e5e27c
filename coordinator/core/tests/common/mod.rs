//! A cluster of one state: commands are applied to it, and after each one the rules of the design are checked.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::BTreeMap;

use probity_core::{State, apply, assign, invariants, number_key};
use probity_proto::v1::check_kind::Kind;
use probity_proto::v1::command::Op;
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;

pub const S: i64 = 1_000_000;
pub const HOUR: i64 = 3_600 * S;
/// A day in 2026.
pub const START: i64 = 1_780_000_000 * S;

pub struct World {
    pub state: State,
    pub index: u64,
    pub time_us: i64,
    /// (spool id, last sequence) of each prober.
    pub spools: BTreeMap<String, (String, u64)>,
    /// Everything that was applied.
    pub log: Vec<Command>,
    /// Every assignment that ever was, as it was last seen; one that ended and went in the same command ends as the rules say.
    pub history: BTreeMap<u64, AssignmentRecord>,
}

impl World {
    pub fn new() -> World {
        let mut world = World { state: State::new(), index: 0, time_us: START, spools: BTreeMap::new(), log: Vec::new(), history: BTreeMap::new() };
        let init = InitCluster { cluster_id: "c1".to_owned(), cluster_name: "test".to_owned(), version: 1, members: vec![] };
        world.apply(Op::InitCluster(init));
        world.apply(Op::LeaderStarted(LeaderStarted { member: 1, term: 1 }));
        world
    }

    pub fn apply(&mut self, op: Op) -> command_result::Result {
        self.command(Command { version: 1, actor: "ops".to_owned(), op: Some(op), ..Command::default() })
    }

    pub fn command(&mut self, command: Command) -> command_result::Result {
        self.index += 1;
        let command = Command { time_us: self.time_us, ..command };
        let before = self.state.now();
        let result = apply(&mut self.state, self.index, &command);
        assert!(self.state.now() >= before, "log time went back");
        assert_eq!(invariants::check(&self.state), [], "after {command:?}");
        let gone = |a: &&mut AssignmentRecord| a.until_us == 0 && self.state.assignments.get(&number_key(a.id)).is_none();
        for a in self.history.values_mut().filter(gone) {
            let reported = if a.next_n > a.first_n { assign::schedule(a).due(a.next_n - 1) + 1 } else { 0 };
            a.until_us = self.state.now().max(a.from_us).max(reported);
        }
        self.history.extend(self.state.assignments.iter().map(|a| (a.id, a.clone())));
        self.log.push(command);
        result.result.expect("apply always answers")
    }

    /// Time passes; every deadline on the way gets its tick, as from a leader.
    pub fn pass(&mut self, us: i64) {
        let end = self.time_us + us;
        for _ in 0..20_000 {
            match probity_core::next_deadline(&self.state) {
                Some(at) if at < end => {
                    self.time_us = at.max(self.time_us + 1);
                    self.apply(Op::Tick(Tick {}));
                }
                _ => break,
            }
        }
        self.time_us = end;
        self.apply(Op::Tick(Tick {}));
    }

    pub fn join(&mut self, name: &str, zone: &str) {
        let hello = ProberHello { name: name.to_owned(), labels: [("zone".to_owned(), zone.to_owned())].into(), ..ProberHello::default() };
        self.spools.entry(name.to_owned()).or_insert_with(|| (format!("{name}-1"), 0));
        self.apply(Op::FleetChange(FleetChange { joined: vec![ProberJoined { hello: Some(hello) }], ..FleetChange::default() }));
    }

    pub fn leave(&mut self, names: &[&str]) {
        let left = names.iter().map(|n| (*n).to_owned()).collect();
        self.apply(Op::FleetChange(FleetChange { left, ..FleetChange::default() }));
    }

    pub fn sick(&mut self, prober: &str, sick: bool) {
        self.sick_since(prober, sick, 0);
    }

    pub fn sick_since(&mut self, prober: &str, sick: bool, since_us: i64) {
        let sickness = vec![ProberSickness { prober: prober.to_owned(), sick, since_us, reason: "no default route".to_owned() }];
        self.apply(Op::FleetChange(FleetChange { sickness, ..FleetChange::default() }));
    }

    pub fn put(&mut self, resources: Vec<Resource>) -> command_result::Result {
        let base_revision = self.state.meta().resource_revision;
        self.apply(Op::ApplyResources(ApplyResources { base_revision, put: resources, ..ApplyResources::default() }))
    }

    pub fn delete(&mut self, kind: &str, name: &str) -> command_result::Result {
        let base_revision = self.state.meta().resource_revision;
        let key = ResourceKey { kind: kind.to_owned(), namespace: "default".to_owned(), name: name.to_owned() };
        self.apply(Op::ApplyResources(ApplyResources { base_revision, delete: vec![key], ..ApplyResources::default() }))
    }

    /// The next row of a prober's spool.
    pub fn next_row(&mut self, prober: &str, assignment: u64, first_n: u64, outcomes: &[(u32, Reason)]) -> ReportRow {
        let (spool_id, sequence) = self.spools.get_mut(prober).expect("joined");
        *sequence += 1;
        ReportRow {
            prober: prober.to_owned(),
            spool_id: spool_id.clone(),
            sequence: *sequence,
            assignment,
            first_n,
            outcomes: outcomes.iter().map(|(count, reason)| OutcomeRun { count: *count, reason: *reason as i32, slower_than: 0 }).collect(),
            ..ReportRow::default()
        }
    }

    pub fn rows(&mut self, rows: Vec<ReportRow>) {
        self.apply(Op::AcceptRows(AcceptRows { rows }));
    }

    /// Reports everything that is due for an open assignment, with one outcome.
    pub fn report(&mut self, check: &str, prober: &str, reason: Reason) {
        let a = self.open(check, prober).unwrap_or_else(|| panic!("{prober} does not run {check}"));
        let due = assign::end_n(&a, self.time_us);
        if due > a.next_n {
            let row = self.next_row(prober, a.id, a.next_n, &[((due - a.next_n) as u32, reason)]);
            self.rows(vec![row]);
        }
    }

    pub fn open(&self, check: &str, prober: &str) -> Option<AssignmentRecord> {
        assign::of_check(&self.state, check).find(|a| a.prober == prober && a.until_us == 0).cloned()
    }

    /// Who runs a check now, sorted.
    pub fn runners(&self, check: &str) -> Vec<String> {
        let mut names: Vec<String> = assign::of_check(&self.state, check).filter(|a| a.until_us == 0).map(|a| a.prober.clone()).collect();
        names.sort();
        names
    }

    pub fn verdict(&self, check: &str) -> Verdict {
        self.state.checks.get(check).expect("a check").verdict()
    }

    pub fn account(&self) -> probity_core::account::AccountView {
        probity_core::account::total(&self.state, self.state.now())
    }
}

pub fn resource(kind: &str, name: &str, spec: Spec) -> Resource {
    Resource {
        kind: kind.to_owned(),
        namespace: "default".to_owned(),
        name: name.to_owned(),
        document_json: format!("{spec:?}"),
        spec: Some(spec),
        ..Resource::default()
    }
}

pub fn probe(name: &str, interval_us: i64) -> Resource {
    probe_with(name, interval_us, Placement::default(), &[("", "127.0.0.1:1")])
}

pub fn probe_with(name: &str, interval_us: i64, placement: Placement, targets: &[(&str, &str)]) -> Resource {
    let tcp = TcpCheck { address: "$(target.address)".to_owned(), ..TcpCheck::default() };
    let spec = ProbeSpec {
        interval_us: interval_us as u64,
        timeout_us: 1_000_000,
        targets: targets.iter().map(|(key, address)| Target { key: (*key).to_owned(), address: (*address).to_owned(), ..Target::default() }).collect(),
        kind: Some(CheckKind { kind: Some(Kind::Tcp(tcp)) }),
        placement: Some(placement),
        verdict: Some(VerdictRule { quorum: 2, down_after: 2, recover_after: 2 }),
        ..ProbeSpec::default()
    };
    resource("Probe", name, Spec::Probe(spec))
}

pub fn slo(name: &str, probe: &str, max_duration_us: u64) -> Resource {
    let spec = SloSpec {
        service: "shop".to_owned(),
        probe: probe.to_owned(),
        max_duration_us,
        window_us: 24 * HOUR as u64,
        target_ppm: 990_000,
        ..SloSpec::default()
    };
    resource("SLO", name, Spec::Slo(spec))
}
