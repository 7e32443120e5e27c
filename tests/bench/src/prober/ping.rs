//! Pings: how many a second one process can do on loopback, how many are lost, what they cost beside fping's, and how far the round trips that
//! it tells are from the kernel's own.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::UsageWho;
use probity_prober::kinds::{ContextConfig, run as run_check};
use probity_prober::policy::AddressPolicy;
use probity_prober::{ProbeContext, RunInfo, RunResult};
use probity_proto::v1::check_kind::Kind;
use probity_proto::v1::{CheckKind, CheckSpec, IcmpCheck};

use super::Options;
use super::capture::Capture;
use crate::bare::cpu;
use crate::stats::{median, print_table};
use crate::target;

type Error = Box<dyn std::error::Error>;

const PACKETS_PER_RUN: u32 = 100;
const PACKET_INTERVAL_US: u64 = 10_000;
/// Pings a second beside a capture.
const COMPARED_PER_S: u64 = 10_000;
/// What fping sends at most in one go.
const FPING_PACKETS_MAX: u64 = 60_000;

/// Pings at a rate, spread over 127.0.0.0/16 in runs of 100, as a prober with many targets would; prints one line of numbers: pings a
/// second, sent, lost, microseconds of processor time each, per cent with the kernel's stamps, and the 50th and 99th percentile of the
/// runs' mean round trips in microseconds.
pub(crate) async fn flood(rate: u64, seconds: u64) {
    let runners = (rate * PACKET_INTERVAL_US / 1_000_000).max(1);
    let context = Arc::new(ProbeContext::new(ContextConfig { address_policy: AddressPolicy::Anywhere, ..ContextConfig::default() }));
    let before = cpu(UsageWho::RUSAGE_SELF);
    let runner = |i: u64| {
        let context = context.clone();
        async move {
            let host = Ipv4Addr::new(127, 0, (i / 250 % 250) as u8, (i % 250 + 1) as u8);
            // Spread, as slots are: no two runs begin at once.
            tokio::time::sleep(Duration::from_micros(PACKET_INTERVAL_US * u64::from(PACKETS_PER_RUN) * i / runners)).await;
            let began = Instant::now();
            let mut results = Vec::new();
            for _ in 0..=seconds {
                results.push(run_check(&context, &check(host, PACKETS_PER_RUN), &RunInfo::default()).await);
            }
            (results, began.elapsed())
        }
    };
    let tasks: Vec<_> = (0..runners).map(|i| tokio::spawn(runner(i))).collect();
    let mut results: Vec<RunResult> = Vec::new();
    let mut per_second = 0.0;
    for (of_runner, took) in futures_util::future::join_all(tasks).await.into_iter().flatten() {
        // Of each while it ran: together they are the rate while all did.
        per_second += of_runner.len() as f64 * f64::from(PACKETS_PER_RUN) / took.as_secs_f64();
        results.extend(of_runner);
    }
    let fact = |r: &RunResult, name: &str| r.facts.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone()).unwrap_or_default();
    let number = |r: &RunResult, name: &str| fact(r, name).parse::<u64>().unwrap_or(0);
    let sum = |name: &str| results.iter().map(|r| number(r, name)).sum::<u64>();
    let (sent, received) = (sum("icmp.sent"), sum("icmp.received"));
    let mut means: Vec<f64> = results.iter().map(|r| number(r, "icmp.rtt_mean_ns") as f64 / 1e3).collect();
    means.sort_by(f64::total_cmp);
    let by_kernel = results.iter().filter(|r| fact(r, "icmp.stamps") == "kernel").count();
    println!(
        "{per_second:.0} {sent} {} {:.3} {} {:.2} {:.2}",
        sent - received,
        (cpu(UsageWho::RUSAGE_SELF) - before).as_secs_f64() * 1e6 / sent as f64,
        by_kernel * 100 / results.len().max(1),
        crate::stats::percentile(&means, 50.0),
        crate::stats::percentile(&means, 99.0)
    );
}

/// Pings at a rate, each a run of its own, beside a capture of them; prints one line of numbers: pings compared, those that one of the two did
/// not see, and the 50th, 99th and 100th percentile of how far the two round trips of a ping are apart, in microseconds.
pub(crate) async fn compare(rate: u64, seconds: u64) -> Result<(), Error> {
    let runners = (rate * PACKET_INTERVAL_US / 1_000_000).max(1);
    let context = Arc::new(ProbeContext::new(ContextConfig { address_policy: AddressPolicy::Anywhere, ..ContextConfig::default() }));
    let capture = Capture::start().map_err(|e| format!("nothing can be captured: {e}"))?;
    let start = tokio::time::Instant::now();
    let runner = |i: u64| {
        let context = context.clone();
        async move {
            // Each its own address, so that its pings are told apart by their order.
            let host = Ipv4Addr::new(127, 9, (i / 250) as u8, (i % 250 + 1) as u8);
            let mut told = Vec::new();
            for n in 0..seconds * 1_000_000 / PACKET_INTERVAL_US {
                tokio::time::sleep_until(start + Duration::from_micros(PACKET_INTERVAL_US * n + PACKET_INTERVAL_US * i / runners)).await;
                let found = run_check(&context, &check(host, 1), &RunInfo::default()).await;
                let rtt = found.facts.iter().find(|(name, _)| *name == "icmp.rtt_mean_ns").and_then(|(_, ns)| ns.parse::<i64>().ok());
                told.extend(rtt);
            }
            (host, told)
        }
    };
    let tasks: Vec<_> = (0..runners).map(|i| tokio::spawn(runner(i))).collect();
    let mut all = Vec::new();
    for task in tasks {
        all.push(task.await?);
    }
    let seen = capture.end()?;
    let (mut apart_us, mut unmatched) = (Vec::new(), 0);
    for (host, told) in all {
        let seen = seen.get(&host).map_or(&[][..], Vec::as_slice);
        if seen.len() != told.len() {
            unmatched += told.len().max(seen.len());
            continue;
        }
        apart_us.extend(told.iter().zip(seen).map(|(told, seen)| (told - seen).abs() as f64 / 1e3));
    }
    apart_us.sort_by(f64::total_cmp);
    let at = |percent| crate::stats::percentile(&apart_us, percent);
    println!("{} {unmatched} {:.3} {:.3} {:.3}", apart_us.len(), at(50.0), at(99.0), at(100.0));
    Ok(())
}

fn check(host: Ipv4Addr, count: u32) -> CheckSpec {
    let host = host.to_string();
    let icmp = IcmpCheck { host, count, packet_interval_us: PACKET_INTERVAL_US, payload_bytes: 56, ttl: 64, ..IcmpCheck::default() };
    CheckSpec { timeout_us: 5_000_000, kind: Some(CheckKind { kind: Some(Kind::Icmp(icmp)) }), ..CheckSpec::default() }
}

/// The numbers that one of the two prints, in a process of its own.
async fn ours<const N: usize>(what: &str, rate: u64, seconds: u64) -> Result<[f64; N], Error> {
    let output = tokio::process::Command::new(std::env::current_exe()?).args([what, &rate.to_string(), &seconds.to_string()]).output().await?;
    let numbers: Vec<f64> = String::from_utf8(output.stdout)?.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    numbers.try_into().map_err(|_| format!("{what} failed: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// The same by fping: (pings a second, sent, lost, microseconds each), or nothing where it is not installed.
fn fping(rate: u64, seconds: u64) -> Option<(f64, u64, u64, f64)> {
    let hosts = (rate * PACKET_INTERVAL_US / 1_000_000).max(1);
    let between_ms = PACKET_INTERVAL_US as f64 / 1e3 / hosts as f64;
    // It numbers its packets with 16 bits, and uses none again for 10 s.
    let count = (seconds * 1_000_000 / PACKET_INTERVAL_US).min(FPING_PACKETS_MAX / hosts);
    let (start, before) = (Instant::now(), cpu(UsageWho::RUSAGE_CHILDREN));
    let output = Command::new("fping")
        .args(["-q", "-c", &count.to_string(), "-p", &(PACKET_INTERVAL_US / 1_000).to_string(), "-i", &format!("{between_ms:.4}"), "-b", "56"])
        .args(target::addresses(hosts as usize))
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let used = cpu(UsageWho::RUSAGE_CHILDREN) - before;
    // "127.0.0.1 : xmt/rcv/%loss = 100/100/0%, min/avg/max = ..."
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let counts = text.lines().filter_map(|l| l.split("%loss = ").nth(1)).filter_map(|l| {
        let mut parts = l.split('/');
        Some((parts.next()?.parse::<u64>().ok()?, parts.next()?.parse::<u64>().ok()?))
    });
    let (sent, received) = counts.fold((0, 0), |(s, r), (sent, received)| (s + sent, r + received));
    (sent > 0).then(|| (sent as f64 / start.elapsed().as_secs_f64(), sent, sent - received, used.as_secs_f64() * 1e6 / sent as f64))
}

pub(super) async fn run(options: &Options) -> Result<(), Error> {
    println!(
        "\npings of 56 bytes over loopback addresses, {} rounds of {} s, medians; fping with the same targets and pauses",
        options.rounds, options.seconds
    );
    let mut rows =
        vec![["PROCESS", "ASKED/S", "PINGS/S", "SENT", "LOST", "CPU US/PING", "RTT P50 US", "RTT P99 US", "KERNEL STAMPS"].map(str::to_owned).to_vec()];
    for rate in [10_000u64, 50_000, 100_000, 150_000] {
        let mut found: Vec<[f64; 7]> = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..options.rounds {
            found.push(ours("flood", rate, options.seconds).await?);
            theirs.extend(fping(rate, options.seconds));
        }
        let column = |i: usize| median(&mut found.iter().map(|f| f[i]).collect::<Vec<_>>());
        let total = |i: usize| found.iter().map(|f| f[i]).sum::<f64>();
        let mut row = vec!["probity".to_owned(), rate.to_string(), format!("{:.0}", column(0)), format!("{:.0}", total(1)), format!("{:.0}", total(2))];
        row.extend([format!("{:.2}", column(3)), format!("{:.2}", column(5)), format!("{:.2}", column(6)), format!("{:.0} %", column(4))]);
        rows.push(row);
        if theirs.is_empty() {
            continue;
        }
        let per_s = median(&mut theirs.iter().map(|t| t.0).collect::<Vec<_>>());
        let cpu_us = median(&mut theirs.iter().map(|t| t.3).collect::<Vec<_>>());
        let (sent, lost) = theirs.iter().fold((0, 0), |(s, l), t| (s + t.1, l + t.2));
        rows.push(vec!["fping".to_owned(), rate.to_string(), format!("{per_s:.0}"), sent.to_string(), lost.to_string(), format!("{cpu_us:.2}")]);
    }
    print_table(&rows);
    println!("\nhow far the prober's round trips are from those of a capture on the loopback (as tcpdump's), {COMPARED_PER_S} pings/s, each a run of its own");
    let mut rows = vec![["ROUND", "COMPARED", "SEEN BY ONE ALONE", "P50 US", "P99 US", "WORST US"].map(str::to_owned).to_vec()];
    for round in 1..=options.rounds {
        match ours::<5>("compare", COMPARED_PER_S, options.seconds).await {
            Ok([compared, unmatched, p50, p99, worst]) => {
                let mut row = vec![round.to_string(), format!("{compared:.0}"), format!("{unmatched:.0}")];
                row.extend([p50, p99, worst].map(|us| format!("{us:.2}")));
                rows.push(row);
            }
            Err(e) => println!("{e}"),
        }
    }
    print_table(&rows);
    Ok(())
}
