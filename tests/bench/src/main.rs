//! Benchmarks of the whole system, each beside the peer that does the same, in the same run. They print tables for docs/benchmarks.md; nothing here
//! asserts a time: machines differ, ratios stay.
//!
//! `cargo build --release && cargo run --release -p probity-bench -- control`

mod blackbox;
mod cluster;
mod control;
mod etcd;
mod failover;
mod rows;
mod stats;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
}

// One thread for the load: the rest of the machine is for what is measured.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
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
