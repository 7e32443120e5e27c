//! Pings: how many a second one process can do on loopback, how many are lost, what they cost beside fping's, and how far the round trips that
//! it tells are from the kernel's own.

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
use crate::bare::cpu;
use crate::stats::{median, print_table};
use crate::target;

type Error = Box<dyn std::error::Error>;

const PACKETS_PER_RUN: u32 = 100;
const PACKET_INTERVAL_US: u64 = 10_000;
/// What fping sends at most in one go.
const FPING_PACKETS_MAX: u64 = 60_000;

/// Pings at a rate, spread over 127.0.0.0/16 in runs of 100, as a prober with many targets would; prints one line of numbers: pings a
/// second, sent, lost, microseconds of processor time each, per cent with the kernel's stamps, and the 50th and 99th percentile of the
/// runs' mean round trips in microseconds.
pub(crate) async fn flood(rate: u64, seconds: u64) {
    let runners = (rate * PACKET_INTERVAL_US / 1_000_000).max(1);
    let context = Arc::new(ProbeContext::new(ContextConfig { address_policy: AddressPolicy::Anywhere, ..ContextConfig::default() }));
    let (start, before) = (Instant::now(), cpu(UsageWho::RUSAGE_SELF));
    let runner = |i: u64| {
        let context = context.clone();
        async move {
            // Spread, as slots are.
            tokio::time::sleep(Duration::from_micros(PACKET_INTERVAL_US * i / runners)).await;
            let mut results = Vec::new();
            for _ in 0..seconds {
                results.push(run_check(&context, &check(i), &RunInfo::default()).await);
            }
            results
        }
    };
    let tasks: Vec<_> = (0..runners).map(|i| tokio::spawn(runner(i))).collect();
    let mut results: Vec<RunResult> = Vec::new();
    for task in tasks {
        results.extend(task.await.unwrap_or_default());
    }
    let fact = |r: &RunResult, name: &str| r.facts.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone()).unwrap_or_default();
    let number = |r: &RunResult, name: &str| fact(r, name).parse::<u64>().unwrap_or(0);
    let sum = |name: &str| results.iter().map(|r| number(r, name)).sum::<u64>();
    let (sent, received) = (sum("icmp.sent"), sum("icmp.received"));
    let mut means: Vec<f64> = results.iter().map(|r| number(r, "icmp.rtt_mean_ns") as f64 / 1e3).collect();
    means.sort_by(f64::total_cmp);
    let by_kernel = results.iter().filter(|r| fact(r, "icmp.stamps") == "kernel").count();
    println!(
        "{:.0} {sent} {} {:.3} {} {:.2} {:.2}",
        sent as f64 / start.elapsed().as_secs_f64(),
        sent - received,
        (cpu(UsageWho::RUSAGE_SELF) - before).as_secs_f64() * 1e6 / sent as f64,
        by_kernel * 100 / results.len().max(1),
        crate::stats::percentile(&means, 50.0),
        crate::stats::percentile(&means, 99.0)
    );
}

fn check(i: u64) -> CheckSpec {
    let host = format!("127.0.{}.{}", i / 250 % 250, i % 250 + 1);
    let icmp = IcmpCheck { host, count: PACKETS_PER_RUN, packet_interval_us: PACKET_INTERVAL_US, payload_bytes: 56, ttl: 64, ..IcmpCheck::default() };
    CheckSpec { timeout_us: 5_000_000, kind: Some(CheckKind { kind: Some(Kind::Icmp(icmp)) }), ..CheckSpec::default() }
}

/// A flood in a process of its own.
async fn ours(rate: u64, seconds: u64) -> Result<Vec<f64>, Error> {
    let output = tokio::process::Command::new(std::env::current_exe()?).args(["flood", &rate.to_string(), &seconds.to_string()]).output().await?;
    let numbers: Vec<f64> = String::from_utf8(output.stdout)?.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    if numbers.len() == 7 { Ok(numbers) } else { Err(format!("the flood failed: {}", String::from_utf8_lossy(&output.stderr)).into()) }
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
        let mut found: Vec<Vec<f64>> = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..options.rounds {
            found.push(ours(rate, options.seconds).await?);
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
    Ok(())
}
