//! A large fleet's reports: simulated probers, each with a stream of its own, send the rows that real ones would, in real time. What three members
//! make of them: runs accounted for, processor time, memory, bytes written, and how long a row waits for its acknowledgement.
//!
//! The probers are simulated because a thousand real ones would leave no processor for the coordinators. Stream, placement, log, account and
//! acknowledgement are the real ones.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use probity_proto::slots::Schedule;
use probity_proto::v1::coordinator_message::Message as ToProber;
use probity_proto::v1::prober_message::Message as FromProber;
use probity_proto::v1::*;
use probity_rpc::MESSAGE_BYTES_MAX;
use probity_rpc::client::channel;
use probity_rpc::v1::fleet_client::FleetClient;
use probity_rpc::v1::{ApplyRequest, ReadRequest, SourceFile};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::cluster::Cluster;
use crate::stats::{cpu_seconds, percentile, print_table, rss_mib, written_bytes};

type Error = Box<dyn std::error::Error>;

/// Checks of one resource.
const TARGETS: usize = 1_000;
/// Probers that share a TCP connection: coordinators let in some hundreds of unknown ones.
const PER_CONNECTION: usize = 8;
/// Rows go out this often.
const FLUSH: Duration = Duration::from_secs(10);
/// A row of bad runs carries so many details.
const DETAILS: u64 = 4;
/// How long the fleet may take to be ready.
const PATIENCE: Duration = Duration::from_secs(180);

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) probers: usize,
    pub(crate) checks: usize,
    pub(crate) seconds: u64,
}

/// What all simulated probers found.
#[derive(Debug, Default)]
struct Seen {
    /// Assignments that were told.
    assigned: usize,
    rows: u64,
    runs: u64,
    bytes: u64,
    ack_ms: Vec<f64>,
    streams_lost: u64,
    bad: bool,
}

type Shared = Rc<RefCell<Seen>>;

pub(crate) async fn run(probity: &Path, plan: Plan) -> Result<(), Error> {
    let mut rows =
        vec![["", "runs/s", "rows/s", "ack p50", "ack p99", "cpu leader", "cpu followers", "cpu/row", "memory", "disk writes"].map(str::to_owned).to_vec()];
    let cluster = Cluster::start(probity).await?;
    let leader = cluster.leader().await?;
    let seen: Shared = Rc::default();
    let began = Instant::now();
    let mut channels = Vec::new();
    for n in 0..plan.probers {
        if n % PER_CONNECTION == 0 {
            channels = cluster.servers.iter().map(|s| channel(s, None)).collect::<Result<_, _>>()?;
        }
        let (channels, seen) = (channels.clone(), seen.clone());
        tokio::task::spawn_local(async move { Prober::new(n).serve(&channels, leader, &seen).await });
        if n % 50 == 49 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    apply(&cluster, plan.checks / plan.probers * plan.probers).await?;
    wait(&seen, plan.checks / plan.probers * plan.probers).await?;
    println!("{} probers have {} checks after {:.1} s", plan.probers, seen.borrow().assigned, began.elapsed().as_secs_f64());
    for bad in [false, true] {
        seen.borrow_mut().bad = bad;
        // Everybody has sent rows of this kind once before anything is measured.
        tokio::time::sleep(FLUSH + Duration::from_secs(2)).await;
        rows.push(measure(&cluster, leader, &seen, if bad { "every run bad" } else { "every run good" }, plan.seconds).await?);
    }
    print_table(&rows);
    println!("{}", account(&cluster).await?);
    let lost = seen.borrow().streams_lost;
    if lost > 0 {
        println!("{lost} streams were lost on the way");
    }
    Ok(())
}

async fn apply(cluster: &Cluster, checks: usize) -> Result<(), Error> {
    let mut operator = cluster.operator();
    for (p, first) in (0..checks).step_by(TARGETS).enumerate() {
        let targets: Vec<String> =
            (first..checks.min(first + TARGETS)).map(|t| format!("    - {{key: t{t:06}, address: \"10.0.0.1:{}\"}}", 1 + t % 60_000)).collect();
        let text = format!(
            "apiVersion: probity/v1\nkind: Probe\nmetadata: {{name: p{p:03}}}\nspec:\n  interval: 1s\n  timeout: 500ms\n  placement: {{count: 1}}\n  verdict: {{quorum: 1}}\n  tcp: {{address: \"$(target.address)\"}}\n  targets:\n    static:\n{}\n",
            targets.join("\n")
        );
        let request = ApplyRequest {
            request_id: probity_rpc::client::request_id(),
            files: vec![SourceFile { name: "bench.yaml".to_owned(), text }],
            default_namespace: "default".to_owned(),
            ..ApplyRequest::default()
        };
        let reply = operator.call(async |mut c| c.apply(request.clone()).await).await?;
        if let Some(problem) = reply.problems.first() {
            return Err(format!("the probes are refused: {problem:?}").into());
        }
    }
    Ok(())
}

async fn wait(seen: &Shared, checks: usize) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    while seen.borrow().assigned < checks {
        if Instant::now() > deadline {
            return Err(format!("only {} of {checks} checks reached a prober", seen.borrow().assigned).into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn measure(cluster: &Cluster, leader: usize, seen: &Shared, what: &str, seconds: u64) -> Result<Vec<String>, Error> {
    let pids: Vec<u32> = cluster.members.iter().map(|m| m.0.id()).collect();
    let look = || pids.iter().map(|p| (cpu_seconds(*p), written_bytes(*p))).collect::<Vec<_>>();
    let before = look();
    {
        let mut seen = seen.borrow_mut();
        (seen.rows, seen.runs, seen.bytes) = (0, 0, 0);
        seen.ack_ms.clear();
    }
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let (took, after) = (began.elapsed().as_secs_f64(), look());
    let mut seen = seen.borrow_mut();
    seen.ack_ms.sort_by(f64::total_cmp);
    let cpu: Vec<f64> = before.iter().zip(&after).map(|(b, a)| (a.0 - b.0) / took).collect();
    let followers: f64 = cpu.iter().enumerate().filter(|(i, _)| *i != leader).map(|(_, c)| c).sum();
    let written: u64 = before.iter().zip(&after).map(|(b, a)| a.1.saturating_sub(b.1)).sum();
    Ok(vec![
        what.to_owned(),
        format!("{:.0}", seen.runs as f64 / took),
        format!("{:.0}", seen.rows as f64 / took),
        format!("{:.0} ms", percentile(&seen.ack_ms, 50.0)),
        format!("{:.0} ms", percentile(&seen.ack_ms, 99.0)),
        format!("{:.0} %", cpu[leader] * 100.0),
        format!("{:.0} %", followers * 50.0),
        format!("{:.0} us", cpu.iter().sum::<f64>() * took * 1e6 / seen.rows.max(1) as f64),
        pids.iter().map(|p| format!("{:.0}", rss_mib(*p))).collect::<Vec<_>>().join("/") + " MiB",
        format!("{:.1} MiB/s each for {:.1} MiB/s of rows", written as f64 / took / 3.0 / 1_048_576.0, seen.bytes as f64 / took / 1_048_576.0),
    ])
}

/// What the cluster itself says of all runs.
async fn account(cluster: &Cluster) -> Result<String, Error> {
    let request = ReadRequest { path: "/api/v1/status".to_owned(), stale: false };
    let mut operator = cluster.operator();
    let reply = operator.look(async |mut c| c.read(request.clone()).await).await?;
    let status: Value = serde_json::from_str(&reply.json)?;
    Ok(format!("the account of the cluster: {}", status["runs"]))
}

fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64)
}

/// One simulated prober: it does what it is told and finds what it is told to find.
struct Prober {
    name: String,
    spool_id: String,
    place: usize,
    sequence: u64,
    /// By id: the schedule, and the first slot that was not reported.
    assignments: BTreeMap<u64, (Schedule, u64)>,
    /// Last sequence, time of the first sending, and the rows, until the acknowledgement.
    sent: VecDeque<(u64, Instant, Vec<ReportRow>)>,
}

impl Prober {
    fn new(place: usize) -> Prober {
        let name = format!("prober-{place:04}");
        Prober { spool_id: format!("{name}-1"), name, place, sequence: 0, assignments: BTreeMap::new(), sent: VecDeque::new() }
    }

    /// From stream to stream, until the benchmark ends.
    async fn serve(mut self, channels: &[tonic::transport::Channel], leader: usize, seen: &Shared) {
        for turn in leader.. {
            if let Err(e) = self.stream(channels[turn % channels.len()].clone(), seen).await {
                let mut seen = seen.borrow_mut();
                seen.streams_lost += 1;
                if seen.streams_lost == 1 {
                    eprintln!("{}: {e}", self.name);
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn stream(&mut self, channel: tonic::transport::Channel, seen: &Shared) -> Result<(), Error> {
        let mut client = FleetClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (tx, rx) = mpsc::channel(64);
        let labels = [("zone".to_owned(), format!("z{}", self.place % 10))].into();
        let capability = Capability { name: "probe/tcp".to_owned(), available: true, ..Capability::default() };
        let hello = ProberHello { name: self.name.clone(), labels, spool_id: self.spool_id.clone(), capabilities: vec![capability], ..ProberHello::default() };
        tx.send(ProberMessage { message: Some(FromProber::Hello(hello)) }).await?;
        let mut incoming = client.session(ReceiverStream::new(rx)).await?.into_inner();
        let mut heartbeat = tokio::time::interval(Duration::from_secs(1));
        // Probers of a fleet do not flush in step.
        let offset = FLUSH.mul_f64(self.place as f64 * 0.618 % 1.0);
        let mut flush = tokio::time::interval_at(tokio::time::Instant::now() + offset, FLUSH);
        let mut told = false;
        loop {
            tokio::select! {
                message = incoming.message() => match message?.and_then(|m| m.message) {
                    Some(ToProber::Desired(set)) => self.follow(set, seen),
                    Some(ToProber::Ack(ack)) => {
                        while self.sent.front().is_some_and(|(s, ..)| *s <= ack.sequence) {
                            let Some((_, at, _)) = self.sent.pop_front() else { break };
                            seen.borrow_mut().ack_ms.push(at.elapsed().as_secs_f64() * 1e3);
                        }
                        // The first acknowledgement of a stream says what is to be sent again.
                        if !std::mem::replace(&mut told, true) {
                            for (_, _, rows) in &self.sent {
                                tx.send(ProberMessage { message: Some(FromProber::Rows(ReportRows { rows: rows.clone() })) }).await?;
                            }
                        }
                    }
                    Some(ToProber::NotLeader(_)) | None => return Err("the stream ended".into()),
                    _ => {}
                },
                _ = heartbeat.tick() => tx.send(ProberMessage { message: Some(FromProber::Heartbeat(Heartbeat::default())) }).await?,
                _ = flush.tick(), if told => {
                    let rows = self.rows(seen);
                    if !rows.is_empty() {
                        self.sent.push_back((self.sequence, Instant::now(), rows.clone()));
                        tx.send(ProberMessage { message: Some(FromProber::Rows(ReportRows { rows })) }).await?;
                    }
                }
            }
        }
    }

    fn follow(&mut self, set: DesiredSet, seen: &Shared) {
        let before = self.assignments.len();
        if set.base_revision == 0 {
            self.assignments.clear();
        }
        for id in &set.removed {
            self.assignments.remove(id);
        }
        for a in set.assignments {
            let schedule = Schedule { interval_us: a.interval_us.max(1), phase_us: a.phase_us };
            let first = schedule.first_at_or_after(a.from_us).max(a.next_n);
            self.assignments.entry(a.id).or_insert((schedule, first));
        }
        let mut seen = seen.borrow_mut();
        seen.assigned = seen.assigned + self.assignments.len() - before;
    }

    /// What was found since the last time.
    fn rows(&mut self, seen: &Shared) -> Vec<ReportRow> {
        let mut seen = seen.borrow_mut();
        let now = now_us();
        let mut rows = Vec::with_capacity(self.assignments.len());
        for (id, (schedule, next)) in &mut self.assignments {
            let to = schedule.first_at_or_after(now);
            if to <= *next {
                continue;
            }
            self.sequence += 1;
            let row = row(&self.name, &self.spool_id, self.sequence, (*id, *schedule), *next..to, seen.bad);
            seen.rows += 1;
            seen.runs += to - *next;
            seen.bytes += prost::Message::encoded_len(&row) as u64;
            *next = to;
            rows.push(row);
        }
        rows
    }
}

fn row(prober: &str, spool_id: &str, sequence: u64, (assignment, schedule): (u64, Schedule), slots: std::ops::Range<u64>, bad: bool) -> ReportRow {
    let count = slots.end - slots.start;
    let reason = if bad { Reason::ConnectRefused } else { Reason::Good };
    let phase = |name: &str, start_us, duration_us| Phase { name: name.to_owned(), start_us, duration_us };
    let detail = |n: u64| RunDetail {
        n,
        started_at_us: schedule.due(n),
        duration_us: 1_234,
        reason: reason as i32,
        phases: vec![phase("resolve", 0, 200), phase("connect", 200, 1_034)],
        message: if bad { "10.0.0.1:1234: connection refused".to_owned() } else { String::new() },
        trace_id: if bad { "4bf92f3577b34da6a3ce929d0e0e4736".to_owned() } else { String::new() },
        peer: "10.0.0.1:1234".to_owned(),
        lag_us: 100,
        ..RunDetail::default()
    };
    ReportRow {
        prober: prober.to_owned(),
        spool_id: spool_id.to_owned(),
        sequence,
        assignment,
        first_n: slots.start,
        outcomes: vec![OutcomeRun { count: count as u32, reason: reason as i32, slower_than: 0 }],
        latency: (!bad).then(|| LatencySketch { index: vec![160, 161, 164], count: vec![count - 2.min(count), 1.min(count), 1.min(count.saturating_sub(1))] }),
        details: if bad { (slots.end - DETAILS.min(count)..slots.end).map(detail).collect() } else { vec![detail(slots.end - 1)] },
        clock_error_us: 500,
        retried: 0,
    }
}
