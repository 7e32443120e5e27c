//! Benchmarks of the whole system, each beside the peer that does the same, in the same run. They print tables for docs/benchmarks.md; nothing here
//! asserts a time: machines differ, ratios stay.
//!
//! `cargo build --release && cargo run --release -p probity-bench -- control`

mod bare;
mod blackbox;
mod cluster;
mod control;
mod etcd;
mod failover;
#[path = "../../common/ports.rs"]
#[allow(unreachable_pub, reason = "the tests take it from outside")]
mod ports;
mod prober;
mod rows;
mod stats;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The same as the product's: a bare loop is to differ in what it does, not in this.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Benchmarks of Probity, side by side with its peers.
#[derive(Debug, Parser)]
#[command(
    name = "probity-bench",
    after_help = "Examples:\n  cargo run --release -p probity-bench -- control\n  cargo run --release -p probity-bench -- failover --kills 30\n  cargo run --release -p probity-bench -- rows"
)]
struct Cli {
    /// The probity binary; beside this one when absent
    #[arg(long, global = true, value_name = "FILE")]
    probity: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Committed changes per second and their latency, three members on this machine; etcd with the same where it is installed
    Control {
        /// Seconds of each measurement
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// Numbers of concurrent clients
        #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
        clients: Vec<usize>,
        /// Rounds; the median is printed
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// From kill -9 of the leader to the first commit under the new one
    Failover {
        /// How often
        #[arg(long, default_value_t = 30)]
        kills: usize,
    },
    /// The reports of a large fleet, accounted for by three members: simulated probers, checks once a second, rows every 10 s
    Rows {
        /// Probers
        #[arg(long, default_value_t = 1_000)]
        probers: usize,
        /// Checks, each by one prober
        #[arg(long, default_value_t = 200_000)]
        checks: usize,
        /// Seconds of each measurement
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// Processor time of a probe through /probe, beside Debian's blackbox_exporter where it is installed
    Blackbox {
        /// Probes of each round
        #[arg(long, default_value_t = 5_000)]
        probes: usize,
        /// Probes at once
        #[arg(long, default_value_t = 16)]
        concurrency: usize,
        /// Rounds; the median is printed
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// A prober's scheduled runs: processor time beside a bare loop, slot lag, memory, pings beside fping
    Prober {
        /// What is measured; everything when absent
        #[arg(long, value_delimiter = ',', value_enum, default_value = "cost,lag,flat,icmp")]
        parts: Vec<prober::Part>,
        /// Seconds of each measurement
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Rounds; the median is printed
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Runs a second
        #[arg(long, default_value_t = 10_000)]
        rate: u64,
        /// Minutes under load instead, for what grows
        #[arg(long, default_value_t = 0, value_name = "MINUTES")]
        soak: u64,
    },
    /// A loop that does one kind of exchange and nothing else: what `prober` compares with
    #[command(hide = true)]
    Bare {
        kind: bare::Kind,
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// Exchanges a second; 0 = as many as it can, 32 at once
        #[arg(long, default_value_t = 0)]
        rate: u64,
        addresses: Vec<String>,
    },
    /// Pings at a rate: what `prober` runs beside fping
    #[command(hide = true)]
    Flood { rate: u64, seconds: u64 },
    /// Pings beside a capture of them
    #[command(hide = true)]
    Compare { rate: u64, seconds: u64 },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // A flood is what a prober does; for all else one thread, since the rest of the machine is for what is measured.
    let mut builder = if matches!(cli.what, What::Flood { .. } | What::Compare { .. }) {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    match builder.enable_all().build() {
        Ok(runtime) => runtime.block_on(bench(cli)),
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(1)
        }
    }
}

async fn bench(cli: Cli) -> ExitCode {
    let probity = cli.probity.unwrap_or_else(|| {
        let mut path = std::env::current_exe().unwrap_or_default();
        path.set_file_name("probity");
        path
    });
    if !probity.exists() {
        eprintln!("{} is not there (cargo build --release makes it; --probity says where it is)", probity.display());
        return ExitCode::from(2);
    }
    let done = match cli.what {
        What::Control { seconds, clients, rounds } => tokio::task::LocalSet::new().run_until(control::run(&probity, seconds, &clients, rounds)).await,
        What::Failover { kills } => failover::run(&probity, kills).await,
        What::Rows { probers, checks, seconds } => {
            let plan = rows::Plan { probers: probers.max(1), checks: checks.max(probers), seconds: seconds.max(1) };
            tokio::task::LocalSet::new().run_until(rows::run(&probity, plan)).await
        }
        What::Prober { parts, seconds, rounds, rate, soak } => {
            let options = prober::Options { parts, seconds: seconds.max(1), rounds: rounds.max(1), rate: rate.max(1), soak_minutes: soak };
            prober::run(&probity, &options).await
        }
        What::Bare { kind, seconds, rate, addresses } => bare::run(kind, addresses, seconds, rate).await.map_err(|e| e as Box<dyn std::error::Error>),
        What::Flood { rate, seconds } => {
            prober::flood(rate, seconds).await;
            Ok(())
        }
        What::Compare { rate, seconds } => prober::compare(rate, seconds).await,
        What::Blackbox { probes, concurrency, rounds } => blackbox::run(&probity, probes.max(1), concurrency.max(1), rounds.max(1)).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(1)
        }
    }
}
