//! Runs many seeds in parallel, one thread to a seed: `cargo run --release -p probity-sim -- --seeds N --from S`.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use probity_sim::{BUGS, Bug, Counts, Report, run};

/// Simulates clusters of coordinators, probers and operators under faults, and checks that every rule holds.
#[derive(Debug, Parser)]
#[command(
    name = "probity-sim",
    after_help = "Examples:\n  probity-sim --seeds 1000\n  probity-sim --from 148 --seeds 1 --verbose\n  probity-sim --bug ack-before-commit --seeds 100\n  probity-sim --bug list"
)]
struct Arguments {
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Switch a known bug on, which must be found; `list` names them
    #[arg(long)]
    bug: Option<String>,
    /// Seeds at once
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, |n| n.get() as u64))]
    threads: u64,
    /// Go on after a failure, and print a line for each seed
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let bug = match arguments.bug.as_deref() {
        None => None,
        Some("list") => {
            for (name, _) in BUGS {
                println!("{name}");
            }
            return ExitCode::SUCCESS;
        }
        Some(wanted) => match BUGS.iter().find(|(name, _)| *name == wanted) {
            Some((_, bug)) => Some(*bug),
            None => {
                eprintln!("no known bug {wanted:?}; `--bug list` names them");
                return ExitCode::from(2);
            }
        },
    };
    let start = Instant::now();
    let (counts, failures, done) = run_all(&arguments, bug);
    let seconds = start.elapsed().as_secs_f64();
    for (what, n) in counts.iter() {
        println!("{n:>12}  {what}");
    }
    println!("{done} seeds in {seconds:.1} s, {:.1} seeds/s, {} failed", done as f64 / seconds, failures.len());
    for report in failures.iter().take(10) {
        if let Some(v) = &report.violation {
            let flag = arguments.bug.as_ref().map_or_else(String::new, |bug| format!(" --bug {bug}"));
            println!("seed {} broke {} at {:.3} s: {}", report.seed, v.rule, v.at_us as f64 / 1e6, v.detail);
            println!("  again: cargo run --release -p probity-sim -- --from {} --seeds 1{flag}", report.seed);
        }
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn run_all(arguments: &Arguments, bug: Option<Bug>) -> (Counts, Vec<Report>, u64) {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let all: Mutex<(Counts, Vec<Report>, u64)> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= arguments.seeds {
                        break;
                    }
                    let start = Instant::now();
                    let report = run(arguments.from + n, bug);
                    if arguments.verbose {
                        let rule = report.violation.as_ref().map_or("ok", |v| v.rule);
                        println!("seed {} trace {:016x} {:>6} ms {rule}", report.seed, report.trace, start.elapsed().as_millis());
                    }
                    let mut all = all.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    all.0.merge(&report.counts);
                    all.2 += 1;
                    if report.violation.is_some() {
                        all.1.push(report);
                        stop.store(!arguments.verbose, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut all = all.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    all.1.sort_by_key(|r| r.seed);
    all
}
