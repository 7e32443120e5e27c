//! A prober at work: the whole pipeline of a scheduled run (slot, run, assertion, account row on the disk, report over the real stream, traces of
//! bad runs, metrics), beside a bare loop that does the same exchange; how late slots start; what a probe costs in memory, and whether
//! that or the cost of a run depends on how many there are.
//!
//! The prober is a process of its own; coordinator, collector and load are this one, the targets are nginx and knot.

mod capture;
mod ping;
mod sink;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use probity_proto::resources::{SourceFile, parse};
use probity_proto::slots::Schedule;
use probity_proto::v1::resource::Spec;
use probity_proto::v1::{AssignmentSpec, CheckSpec};
use prost::Message;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::bare::Kind;
use crate::cluster::Process;
use crate::ports::free_ports;
use crate::stats::{cpu_seconds, median, percentile, print_table, rss_mib};
use crate::target::{self, ADDRESSES};
pub(crate) use ping::{compare, flood};
use sink::{Seen, Sink, now_us};

type Error = Box<dyn std::error::Error>;

/// What the body of a good answer matches.
pub(crate) const BODY_PATTERN: &str = r#""status":\s*"ok""#;
/// One HTTP run of so many finds another body than it wants, and is traced.
const BAD_ONE_IN: usize = 100;
/// Slots begin so long after they were assigned.
const LEAD_US: i64 = 2_000_000;
/// From then until anything is counted.
const WARM_UP: Duration = Duration::from_secs(2);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// CPU per run beside a bare loop: HTTP, TCP, DNS
    Cost,
    /// How late slots start at 5,000 runs/s
    Lag,
    /// CPU per run and memory per probe, from 100 to 100,000 probes
    Flat,
    /// Pings: CPU beside fping, losses, RTT beside the kernel's time stamps
    Icmp,
}

/// How it is measured.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) parts: Vec<Part>,
    pub(crate) seconds: u64,
    pub(crate) rounds: usize,
    pub(crate) rate: u64,
    pub(crate) soak_minutes: u64,
}

pub(crate) async fn run(probity: &Path, options: &Options) -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let ports = free_ports(2);
    let addresses = target::addresses(ADDRESSES);
    let _nginx = target::nginx(dir.path(), &addresses, ports[0]).map_err(|e| format!("nginx is not installed (Debian: nginx-light): {e}"))?;
    target::answers("127.0.0.1", ports[0]).await?;
    let knot = target::knot(dir.path(), ports[1]);
    if knot.is_ok() {
        target::resolves(ports[1]).await?;
    }
    let targets = Targets { addresses, web: ports[0], dns: knot.is_ok().then_some(ports[1]) };
    println!("load average {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    if options.soak_minutes > 0 {
        return soak(probity, &targets, options).await;
    }
    for part in &options.parts {
        match part {
            Part::Cost => cost(probity, &targets, options).await?,
            Part::Lag => lag(probity, &targets, options).await?,
            Part::Flat => flat(probity, &targets, options).await?,
            Part::Icmp => ping::run(options).await?,
        }
    }
    Ok(())
}

struct Targets {
    addresses: Vec<String>,
    web: u16,
    dns: Option<u16>,
}

impl Targets {
    /// What is probed, as the bare loop and as a document say it.
    fn of(&self, kind: Kind) -> Vec<String> {
        match (kind, self.dns) {
            (Kind::Dns, Some(port)) => vec![format!("127.0.0.1:{port}")],
            _ => self.addresses.iter().map(|a| format!("{a}:{}", self.web)).collect(),
        }
    }

    /// Probe number `i` of a kind.
    fn check(&self, kind: Kind, i: usize) -> Result<CheckSpec, Error> {
        let of_kind = self.of(kind);
        let address = &of_kind[i % of_kind.len()];
        let pattern = if i % BAD_ONE_IN == BAD_ONE_IN - 1 { "nothing like it" } else { BODY_PATTERN };
        let spec = match kind {
            Kind::Http => format!("target: 'http://{address}/', http: {{expect: {{status: [2xx], body: [{{matches: '{pattern}'}}]}}}}"),
            Kind::Tcp => format!("target: '{address}', tcp: {{}}"),
            Kind::Dns => format!("target: '{address}', dns: {{name: www.bench.test, server: '{address}', expect: {{rcodes: [NOERROR]}}}}"),
        };
        check(&spec)
    }

    /// So many probes, each every `interval_us`, their starts spread.
    fn assignments(&self, kind: Kind, count: usize, interval_us: u64, first_id: u64) -> Result<Vec<AssignmentSpec>, Error> {
        let distinct: Vec<CheckSpec> = (0..count.min(ADDRESSES * BAD_ONE_IN)).map(|i| self.check(kind, i)).collect::<Result<_, _>>()?;
        let from_us = now_us() + LEAD_US;
        let assignment = |i: usize| {
            // In whole milliseconds, as the coordinator has them.
            let phase_us = i as u64 * interval_us / count as u64 / 1_000 * 1_000;
            AssignmentSpec {
                id: first_id + i as u64,
                check: format!("default/bench/target-{i}"),
                generation: 1,
                spec: Some(distinct[i % distinct.len()].clone()),
                interval_us,
                phase_us,
                from_us,
                next_n: Schedule { interval_us, phase_us }.first_at_or_after(from_us),
                ..AssignmentSpec::default()
            }
        };
        Ok((0..count).map(assignment).collect())
    }
}

/// A probe's `spec`, lowered as the coordinator does it.
fn check(spec: &str) -> Result<CheckSpec, Error> {
    let text = format!("apiVersion: probity/v1\nkind: Probe\nmetadata: {{name: bench}}\nspec: {{interval: 10s, timeout: 5s, {spec}}}\n");
    let parsed = parse(&[SourceFile { name: "bench.yaml".to_owned(), text }], "default");
    if let Some(problem) = parsed.problems.first() {
        return Err(format!("{}: {} ({})", problem.path, problem.message, problem.hint).into());
    }
    let probe = parsed.resources.into_iter().find_map(|r| if let Some(Spec::Probe(probe)) = r.resource.spec { Some(probe) } else { None });
    let probe = probe.ok_or("no probe")?;
    Ok(probity_proto::lower::check_spec(&probe, &probe.targets.first().cloned().unwrap_or_default())?)
}

/// A prober with its coordinator and its collector.
struct Running {
    _dir: TempDir,
    process: Process,
    sink: Sink,
    http: u16,
}

impl Running {
    async fn start(probity: &Path, flush_us: u64) -> Result<Running, Error> {
        let dir = tempfile::tempdir()?;
        let (sink, coordinator) = Sink::start(flush_us).await?;
        let http = free_ports(1)[0];
        let config = dir.path().join("prober.yaml");
        let text = format!(
            "name: bench\ncoordinators: [\"127.0.0.1:{coordinator}\"]\ndataDir: {}/data\nlisten: {{http: \"127.0.0.1:{http}\"}}\nallowLoopback: true\nselfCheck: {{route: false, resolver: false}}\n",
            dir.path().display()
        );
        std::fs::write(&config, text)?;
        let collector = collector().await?;
        let child = Command::new(probity)
            .args(["prober", "--insecure", "--config"])
            .arg(&config)
            .env("RUST_LOG", "error")
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{collector}"))
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let process = Process(child);
        target::answers("127.0.0.1", http).await?;
        Ok(Running { _dir: dir, process, sink, http })
    }

    fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Finished runs by outcome, as the prober's own metrics count them.
    async fn counts(&self) -> Result<Counts, Error> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http)).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let mut counts = Counts::default();
        for line in text.lines().filter(|l| l.starts_with("probity_probe_runs_total")) {
            let n = line.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
            if line.contains("reason=\"body_mismatch\"") || line.contains("outcome=\"good\"") {
                counts.expected += n;
            } else {
                counts.others += n;
            }
        }
        Ok(counts)
    }

    /// Lets it run; CPU microseconds per run, runs per second, and those that were missed or found anything but what is there.
    async fn measure(&self, seconds: u64) -> Result<(f64, f64, u64), Error> {
        let (before, cpu, start) = (self.counts().await?, cpu_seconds(self.pid()), Instant::now());
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let (after, used, took) = (self.counts().await?, cpu_seconds(self.pid()) - cpu, start.elapsed().as_secs_f64());
        let runs = after.expected - before.expected;
        Ok((used * 1e6 / runs as f64, runs as f64 / took, after.others - before.others))
    }
}

#[derive(Debug, Default)]
struct Counts {
    expected: u64,
    others: u64,
}

/// An OTLP collector that takes everything and keeps nothing.
async fn collector() -> std::io::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                let _ = http_body_util::BodyExt::collect(request.into_body()).await;
                Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Empty::<bytes::Bytes>::new()))
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(hyper_util::rt::TokioIo::new(stream), service));
        }
    });
    Ok(port)
}

/// (microseconds of processor time per exchange, exchanges per second).
async fn bare(kind: Kind, targets: &Targets, seconds: u64, rate: u64) -> Result<(f64, f64), Error> {
    let addresses = targets.of(kind);
    let kind = format!("{kind:?}").to_lowercase();
    let output = tokio::process::Command::new(std::env::current_exe()?)
        .args(["bare", &kind, "--seconds", &seconds.to_string(), "--rate", &rate.to_string()])
        .args(&addresses)
        .output()
        .await?;
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [made, took, cpu_us] = numbers[..] else { return Err(format!("the bare loop failed: {}", String::from_utf8_lossy(&output.stderr)).into()) };
    Ok((cpu_us, made / took))
}

async fn cost(probity: &Path, targets: &Targets, options: &Options) -> Result<(), Error> {
    println!(
        "\nscheduled runs in the whole pipeline, one a second of each probe; beside it a bare loop on one thread, at the same rate and flat out with 32 at once; {} rounds of {} s, medians",
        options.rounds, options.seconds
    );
    let mut rows = vec![
        ["KIND", "ASKED/S", "RUNS/S", "MISSED OR WRONG", "CPU US/RUN", "BARE US FLAT OUT", "RATIO", "BARE/S FLAT OUT", "BARE US SAME RATE", "RATIO"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for kind in [Kind::Http, Kind::Tcp, Kind::Dns] {
        if kind == Kind::Dns && targets.dns.is_none() {
            println!("knotd is not installed (Debian: knot): no DNS");
            continue;
        }
        let (mut ours, mut rates, mut wrong) = (Vec::new(), Vec::new(), 0);
        let (mut bares, mut flat_out, mut bare_rates) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..options.rounds as u64 {
            let running = Running::start(probity, 10_000_000).await?;
            running.sink.want(targets.assignments(kind, options.rate as usize, 1_000_000, round << 32 | 1)?);
            tokio::time::sleep(Duration::from_micros(LEAD_US as u64) + WARM_UP).await;
            let (cpu_us, rate, others) = running.measure(options.seconds).await?;
            drop(running);
            ours.push(cpu_us);
            rates.push(rate);
            wrong += others;
            bares.push(bare(kind, targets, options.seconds, options.rate).await?.0);
            let (cpu_us, rate) = bare(kind, targets, options.seconds.min(3), 0).await?;
            flat_out.push(cpu_us);
            bare_rates.push(rate);
        }
        let (ours, bare, flat_out) = (median(&mut ours), median(&mut bares), median(&mut flat_out));
        let word = format!("{kind:?}").to_lowercase();
        rows.push(vec![
            word,
            options.rate.to_string(),
            format!("{:.0}", median(&mut rates)),
            wrong.to_string(),
            format!("{ours:.1}"),
            format!("{flat_out:.1}"),
            format!("{:.2}", ours / flat_out),
            format!("{:.0}", median(&mut bare_rates)),
            format!("{bare:.1}"),
            format!("{:.2}", ours / bare),
        ]);
    }
    print_table(&rows);
    Ok(())
}

async fn lag(probity: &Path, targets: &Targets, options: &Options) -> Result<(), Error> {
    const RATE: usize = 5_000;
    println!("\nhow late slots start at {RATE} HTTP runs/s, {} rounds of {} s", options.rounds, options.seconds);
    let mut rows = vec![["ROUND", "SAMPLES", "P50 MS", "P99 MS", "P99.9 MS", "WORST MS"].map(str::to_owned).to_vec()];
    for round in 0..options.rounds {
        // Rows of one second, so that each run's lag is in one.
        let running = Running::start(probity, 1_000_000).await?;
        running.sink.want(targets.assignments(Kind::Http, RATE, 1_000_000, 1)?);
        tokio::time::sleep(Duration::from_micros(LEAD_US as u64) + WARM_UP).await;
        running.sink.take();
        tokio::time::sleep(Duration::from_secs(options.seconds)).await;
        let Seen { mut lags_us, .. } = running.sink.take();
        lags_us.sort_by(f64::total_cmp);
        let at = |percent: f64| format!("{:.3}", percentile(&lags_us, percent) / 1e3);
        rows.push(vec![(round + 1).to_string(), lags_us.len().to_string(), at(50.0), at(99.0), at(99.9), at(100.0)]);
    }
    print_table(&rows);
    Ok(())
}

async fn flat(probity: &Path, targets: &Targets, options: &Options) -> Result<(), Error> {
    const RATE: u64 = 1_000;
    println!("\n{RATE} HTTP runs/s from more and more probes; memory beyond that of a prober without probes, and beyond the probes' own text");
    let mut rows =
        vec![["PROBES", "EVERY", "RUNS/S", "MISSED OR WRONG", "CPU US/RUN", "RSS MIB", "BYTES/PROBE", "OF TEXT", "BEYOND"].map(str::to_owned).to_vec()];
    let empty = Running::start(probity, 10_000_000).await?;
    tokio::time::sleep(WARM_UP).await;
    let without = rss_mib(empty.pid());
    drop(empty);
    for count in [100u64, 1_000, 10_000, 100_000] {
        let interval_us = count * 1_000_000 / RATE;
        let running = Running::start(probity, 10_000_000).await?;
        let assignments = targets.assignments(Kind::Http, count as usize, interval_us, 1)?;
        let text = assignments.iter().map(Message::encoded_len).sum::<usize>() as f64 / count as f64;
        running.sink.want(assignments);
        tokio::time::sleep(Duration::from_micros(LEAD_US as u64) + 2 * WARM_UP).await;
        let mut measured = Vec::new();
        let (mut rates, mut wrong) = (Vec::new(), 0);
        for _ in 0..options.rounds {
            let (cpu_us, rate, others) = running.measure(options.seconds).await?;
            measured.push(cpu_us);
            rates.push(rate);
            wrong += others;
        }
        let rss = rss_mib(running.pid());
        let each = (rss - without).max(0.0) * 1_048_576.0 / count as f64;
        rows.push(vec![
            count.to_string(),
            format!("{} s", interval_us as f64 / 1e6),
            format!("{:.0}", median(&mut rates)),
            wrong.to_string(),
            format!("{:.1}", median(&mut measured)),
            format!("{rss:.0}"),
            format!("{each:.0}"),
            format!("{text:.0}"),
            format!("{:.0}", each - text),
        ]);
    }
    print_table(&rows);
    println!("(a prober without probes: {without:.0} MiB)");
    Ok(())
}

/// The same load for long: what grows?
async fn soak(probity: &Path, targets: &Targets, options: &Options) -> Result<(), Error> {
    let running = Running::start(probity, 10_000_000).await?;
    running.sink.want(targets.assignments(Kind::Http, options.rate as usize, 1_000_000, 1)?);
    tokio::time::sleep(Duration::from_micros(LEAD_US as u64) + Duration::from_secs(30)).await;
    let file = |running: &Running| std::fs::metadata(running._dir.path().join("data/prober.redb")).map_or(0.0, |m| m.len() as f64 / 1_048_576.0);
    let open = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let mut rows = vec![["MINUTE", "RUNS/S", "MISSED OR WRONG", "CPU US/RUN", "RSS MIB", "STORE MIB", "DESCRIPTORS"].map(str::to_owned).to_vec()];
    let first = (rss_mib(running.pid()), file(&running));
    for minute in 1..=options.soak_minutes {
        let (cpu_us, rate, others) = running.measure(60).await?;
        let Seen { rows: sent, .. } = running.sink.take();
        let pid = running.pid();
        rows.push(vec![
            minute.to_string(),
            format!("{rate:.0}"),
            others.to_string(),
            format!("{cpu_us:.1}"),
            format!("{:.1}", rss_mib(pid)),
            format!("{:.1}", file(&running)),
            open(pid).to_string(),
        ]);
        eprintln!("minute {minute}: {sent} rows");
    }
    print_table(&rows);
    println!("grown in {} minutes: memory {:+.1} MiB, store {:+.1} MiB", options.soak_minutes, rss_mib(running.pid()) - first.0, file(&running) - first.1);
    Ok(())
}
