//! How a run begins, and what it works on: hosts, the first resources, probes that come and go, game days.

use probity_proto::v1::check_kind::Kind;
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;

use crate::client::{Ask, Client, holder};
use crate::clock::HostClock;
use crate::disk::Disk;
use crate::engine::Journal;
use crate::inventory::{PROBE, discovery};
use crate::member::Member;
use crate::plan::Fault;
use crate::prober::Prober;
use crate::rng::Rng;
use crate::world::{Event, World};

const SECOND_US: u64 = 1_000_000;
/// Before this nothing is disturbed: the group forms, the first resources arrive.
pub(crate) const CALM_US: u64 = 3 * SECOND_US;

impl World {
    pub(crate) fn set_up(&mut self) {
        for m in 0..self.plan.hosts() {
            let clock = self.clock();
            let sync_us = self.plan.sync_us;
            let spare = m >= self.plan.members;
            self.members.push(Member::new(m, spare, clock, sync_us));
            self.checks.add_member();
            self.start_member(m);
        }
        for p in 0..self.plan.probers {
            let clock = self.clock();
            self.probers.push(Prober {
                name: format!("p{p}"),
                disk: Disk::default(),
                clock,
                journal: Journal::default(),
                life: 0,
                process: None,
                off_since: None,
                off_us: 0,
                starts: 0,
                wiped: 0,
                overslept_max: 0,
            });
            self.start_prober(p);
        }
        for c in 0..self.plan.clients {
            self.clients.push(Client::default());
            self.at(if c == 0 { 1_500_000 } else { CALM_US }, Event::ClientTurn { c });
        }
        let members = (0..self.plan.members).map(|m| self.members[m].record(m)).collect();
        let init = InitCluster { cluster_id: "sim".to_owned(), cluster_name: "sim".to_owned(), version: 1, members };
        let mut first = base();
        if self.plan.has(Fault::Inventory) {
            first.extend([found(&mut self.rng.clients), slo_of(PROBE)]);
        }
        self.clients[0].script.extend([Ask::Init(init), Ask::Put(first)]);
        self.at(CALM_US, Event::Nemesis);
        self.at(self.plan.chaos_us, Event::Progress);
    }

    fn clock(&mut self) -> HostClock {
        let drift = self.rng.hosts.between(0, 2 * self.plan.max_drift_ppm) as i64 - self.plan.max_drift_ppm as i64;
        // Most hosts are kept right by somebody: nothing can be changed while a quorum's wall clocks differ.
        let astray = self.plan.has(Fault::ClockJump) && self.rng.hosts.percent(15);
        let off = if astray { self.rng.hosts.skewed(1_000, 60 * SECOND_US) as i64 } else { self.rng.hosts.skewed(1_000, 300_000) as i64 };
        let offset = if self.rng.hosts.percent(50) { off } else { -off };
        HostClock::new(drift, offset, self.rng.hosts.below(1_000 * SECOND_US))
    }
}

fn resource(kind: &str, name: &str, spec: Spec) -> Resource {
    Resource {
        kind: kind.to_owned(),
        namespace: "default".to_owned(),
        name: name.to_owned(),
        document_json: format!("{spec:?}"),
        spec: Some(spec),
        ..Resource::default()
    }
}

fn probe_of(name: &str, interval_us: u64, count: u32, targets: u64) -> Resource {
    let tcp = TcpCheck { address: "$(target.address)".to_owned(), ..TcpCheck::default() };
    let target = |i: u64| Target { key: if targets == 1 { String::new() } else { format!("t{i}") }, address: format!("10.0.0.{i}:1"), ..Target::default() };
    let spec = ProbeSpec {
        interval_us,
        timeout_us: interval_us.min(SECOND_US),
        targets: (0..targets).map(target).collect(),
        kind: Some(CheckKind { kind: Some(Kind::Tcp(tcp)) }),
        placement: Some(Placement { count, ..Placement::default() }),
        verdict: Some(VerdictRule { quorum: 2, down_after: 2, recover_after: 2 }),
        ..ProbeSpec::default()
    };
    resource("Probe", name, Spec::Probe(spec))
}

/// One of the probes that come, change and go.
pub(crate) fn probe(rng: &mut Rng) -> Resource {
    let name = format!("p{}", rng.below(3));
    let interval = *rng.pick(&[500_000, SECOND_US, 2 * SECOND_US]);
    probe_of(&name, interval, rng.below(3) as u32, rng.between(1, 2))
}

/// The probe whose targets are discovered, on one schedule or another.
pub(crate) fn found(rng: &mut Rng) -> Resource {
    let interval = *rng.pick(&[SECOND_US, 2 * SECOND_US]);
    let mut probe = probe_of(PROBE, interval, 1, 0);
    if let Some(Spec::Probe(spec)) = &mut probe.spec {
        spec.discovery = Some(discovery());
    }
    probe.document_json = format!("{:?}", probe.spec);
    probe
}

/// An objective, by the name of its probe.
fn slo_of(probe: &str) -> Resource {
    let slo = SloSpec {
        service: "shop".to_owned(),
        probe: probe.to_owned(),
        window_us: 24 * 3_600 * SECOND_US,
        target_ppm: 900_000,
        policy: "short".to_owned(),
        ..SloSpec::default()
    };
    resource("SLO", probe, Spec::Slo(slo))
}

/// What every run has from its beginning to its end: a probe with an objective, short windows, and a pager.
fn base() -> Vec<Resource> {
    let rule =
        BurnRateRule { name: "fast".to_owned(), severity: Severity::Page as i32, burn_rate_milli: 2_000, long_us: 10 * SECOND_US, short_us: 3 * SECOND_US };
    let policy = BurnRatePolicySpec { rules: vec![rule], evidence: Some(Evidence { bad_runs: 2, probers: 1 }), ..BurnRatePolicySpec::default() };
    let route = RouteSpec { receivers: vec!["pager".to_owned()], ..RouteSpec::default() };
    vec![
        resource("BurnRatePolicy", "short", Spec::BurnRatePolicy(policy)),
        holder("pager", "pager"),
        resource("Route", "all", Spec::Route(route)),
        probe_of("steady", SECOND_US, 0, 1),
        slo_of("steady"),
    ]
}

/// A game day of one or two faults on one prober each.
pub(crate) fn game_day(rng: &mut Rng, client: usize, probers: usize) -> GameDayPlan {
    let faults = |rng: &mut Rng, step: u64| {
        let prober = format!("p{}", rng.below(probers as u64));
        let params = [("proxy".to_owned(), "shop".to_owned())].into();
        PlannedFault { fault_id: format!("{step}/f"), prober, spec: Some(FaultSpec { kind: "proxy.reset".to_owned(), params, undo: 0 }) }
    };
    let steps = (0..rng.between(1, 2))
        .map(|step| PlannedStep {
            name: format!("step{step}"),
            after_us: rng.below(2 * SECOND_US),
            hold_us: rng.skewed(SECOND_US, 8 * SECOND_US),
            faults: vec![faults(rng, step)],
        })
        .collect();
    GameDayPlan { namespace: "default".to_owned(), scenario: format!("day{client}"), max_duration_us: 20 * SECOND_US, steps, ..GameDayPlan::default() }
}
