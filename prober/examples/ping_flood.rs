//! How many pings a second one process can do on loopback, how many are lost, and what they cost.
//!
//! `cargo run --release -p probity-prober --example ping_flood -- [RATE [SECONDS]]`; needs the right to ping. One row for each round:
//! pings are spread over 127.0.0.0/16 in runs of 100, as a prober with many targets would.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use probity_prober::kinds::{ContextConfig, run};
use probity_prober::policy::AddressPolicy;
use probity_prober::{ProbeContext, RunInfo};
use probity_proto::v1::check_kind::Kind;
use probity_proto::v1::{CheckKind, CheckSpec, IcmpCheck, Reason};

const PACKETS_PER_RUN: u32 = 100;
const PACKET_INTERVAL_US: u64 = 10_000;

fn check(i: u32) -> CheckSpec {
    let host = format!("127.0.{}.{}", i / 250 % 250, i % 250 + 1);
    let icmp = IcmpCheck { host, count: PACKETS_PER_RUN, packet_interval_us: PACKET_INTERVAL_US, payload_bytes: 56, ttl: 64, ..IcmpCheck::default() };
    CheckSpec { timeout_us: 5_000_000, kind: Some(CheckKind { kind: Some(Kind::Icmp(icmp)) }), ..CheckSpec::default() }
}

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("getrusage");
    let time = |t: nix::sys::time::TimeVal| Duration::from_micros((t.tv_sec() * 1_000_000 + t.tv_usec()) as u64);
    time(usage.user_time()) + time(usage.system_time())
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>().expect("a number"));
    let rate = args.next().unwrap_or(10_000);
    let seconds = args.next().unwrap_or(3);
    let runners = (rate * PACKET_INTERVAL_US / 1_000_000).max(1) as u32;
    let context = Arc::new(ProbeContext::new(ContextConfig { address_policy: AddressPolicy::Anywhere, ..ContextConfig::default() }));
    println!("{:>10} {:>9} {:>7} {:>12} {:>11} {:>11} {:>8}", "pings/s", "sent", "lost", "rtt p50 us", "rtt p99 us", "cpu us/ping", "stamps");
    for _ in 0..3 {
        let (start, cpu_start) = (Instant::now(), cpu());
        let tasks: Vec<_> = (0..runners)
            .map(|i| {
                let context = context.clone();
                tokio::spawn(async move {
                    // Spread, as slots are.
                    tokio::time::sleep(Duration::from_micros(PACKET_INTERVAL_US * u64::from(i) / u64::from(runners))).await;
                    let mut results = Vec::new();
                    for _ in 0..seconds {
                        results.push(run(&context, &check(i), &RunInfo::default()).await);
                    }
                    results
                })
            })
            .collect();
        let mut results = Vec::new();
        for task in tasks {
            results.extend(task.await.expect("a run does not panic"));
        }
        let fact = |r: &probity_prober::RunResult, name: &str| r.facts.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone()).unwrap_or_default();
        let number = |r: &probity_prober::RunResult, name: &str| fact(r, name).parse::<u64>().unwrap_or(0);
        let sent: u64 = results.iter().map(|r| number(r, "icmp.sent")).sum();
        let received: u64 = results.iter().map(|r| number(r, "icmp.received")).sum();
        let mut means: Vec<u64> = results.iter().map(|r| number(r, "icmp.rtt_mean_ns")).collect();
        means.sort_unstable();
        let took = start.elapsed().as_secs_f64();
        let at = |share: usize| means[(means.len() - 1) * share / 100] as f64 / 1e3;
        let by_kernel = results.iter().filter(|r| fact(r, "icmp.stamps") == "kernel").count();
        println!(
            "{:>10.0} {sent:>9} {:>7} {:>12.2} {:>11.2} {:>11.2} {:>7}%",
            sent as f64 / took,
            sent - received,
            at(50),
            at(99),
            (cpu() - cpu_start).as_secs_f64() * 1e6 / sent as f64,
            by_kernel * 100 / results.len()
        );
        if let Some(bad) = results.iter().find(|r| r.reason != Reason::Good) {
            println!("  {}: {}", bad.reason.label(), bad.message);
        }
    }
}
