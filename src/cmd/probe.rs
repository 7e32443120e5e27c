//! `probe`: one run from here, without any server, with what a prober of a cluster would do.

use std::process::ExitCode;

use clap::Args;
use probity_prober::kinds::{ContextConfig, run as run_once};
use probity_prober::oneshot::{self, Options};
use probity_prober::policy::AddressPolicy;
use probity_prober::{ProbeContext, RunInfo, RunResult};
use probity_proto::reason::Class;
use probity_proto::resources::status_range;
use probity_proto::v1::{CheckSpec, StatusRange};
use probity_proto::{lower, units};
use serde_json::{Value, json};

use crate::exit;
use crate::output::{coloured, paint, print_json, print_lines, seconds};

/// Columns of the longest bar.
const BAR: u64 = 40;

#[derive(Debug, Args)]
#[command(
    after_help = "Targets: https://host/path, host (https), host:port (tcp), tcp://host:port, dns://server/name?type=AAAA, ping://host\n\nExamples:\n  probity probe https://example.com\n  probity probe example.com:443 dns://127.0.0.53:53/example.com ping://127.0.0.1\n  probity probe https://example.com/health --expect-status 200,204 --expect-body ok -o json\n\nExit codes: 0 every run was good, 1 one was not, 2 misuse."
)]
pub(crate) struct ProbeArgs {
    /// What to probe
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// How long a run may take
    #[arg(long, default_value = "10s", value_parser = units::parse_duration, value_name = "DURATION")]
    timeout: u64,
    /// Statuses that are good, as 2xx, 200-204 or 301; the default is 2xx and 3xx
    #[arg(long, value_parser = status_range, value_delimiter = ',', value_name = "STATUS")]
    expect_status: Vec<StatusRange>,
    /// Text that the body must contain
    #[arg(long, value_name = "TEXT")]
    expect_body: Option<String>,
    /// HTTP method
    #[arg(short = 'X', long, default_value = "GET", value_name = "METHOD")]
    method: String,
    /// A header to send, as 'Name: value'; may be given again
    #[arg(short = 'H', long, value_parser = header, value_name = "HEADER")]
    header: Vec<(String, String)>,
    /// Do not verify certificates
    #[arg(short = 'k', long)]
    insecure: bool,
    /// Runs, one a second
    #[arg(short = 'c', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.trim().to_owned())),
        _ => Err("want 'Name: value'".to_owned()),
    }
}

/// Probes every target, and says what came of it.
pub(crate) async fn run(args: ProbeArgs, as_json: bool) -> ExitCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let options = Options {
        method: args.method,
        headers: args.header,
        status: args.expect_status,
        body: args.expect_body,
        insecure: args.insecure,
        timeout_us: args.timeout,
    };
    let (checks, wrong): (Vec<_>, Vec<_>) = args.targets.iter().map(|t| oneshot::check(t, &options)).partition(Result::is_ok);
    if !wrong.is_empty() {
        for problem in wrong.into_iter().filter_map(Result::err) {
            eprintln!("error: {problem}");
        }
        return ExitCode::from(exit::MISUSE);
    }
    let checks: Vec<CheckSpec> = checks.into_iter().filter_map(Result::ok).collect();
    let context = ProbeContext::new(ContextConfig { address_policy: AddressPolicy::Anywhere, ..ContextConfig::default() });
    let mut all_good = true;
    let mut items = Vec::new();
    for round in 0..args.count {
        if round > 0 {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        // All at once, shown in the order they were asked for.
        let info = RunInfo { started_at_us: jiff::Timestamp::now().as_microsecond(), ..RunInfo::default() };
        let results = futures_util::future::join_all(checks.iter().map(|check| run_once(&context, check, &info))).await;
        for (check, result) in checks.iter().zip(&results) {
            all_good &= result.reason.class() == Class::Good;
            if as_json {
                items.push(json(check, result));
            } else {
                print_lines(&lines(check, result));
            }
        }
    }
    if as_json {
        print_json(&json!({"items": items}));
    }
    if all_good { ExitCode::SUCCESS } else { ExitCode::from(exit::NO) }
}

fn target(check: &CheckSpec) -> (&'static str, String) {
    check.kind.as_ref().map_or(("unknown", String::new()), lower::describe)
}

fn class(result: &RunResult) -> &'static str {
    match result.reason.class() {
        Class::Good => "good",
        Class::Bad => "bad",
        Class::Missed => "missed",
    }
}

/// The head line, a bar for each phase, what was learned.
fn lines(check: &CheckSpec, result: &RunResult) -> Vec<String> {
    let (kind, text) = target(check);
    let took = seconds(result.duration.as_secs_f64());
    let why = if result.reason.class() == Class::Good { String::new() } else { format!(" {}", result.reason.label()) };
    let mut lines = vec![format!("{kind} {text}  {}{why}  {took}{}", paint(class(result)), at(&result.peer))];
    if !result.message.is_empty() {
        lines.push(format!("  {}", result.message));
    }
    let whole = (result.duration.as_micros() as u64).max(1);
    for phase in &result.phases {
        let column = |us: u64| (us * BAR + whole / 2) / whole;
        let from = column(phase.start_us).min(BAR - 1);
        let to = column(phase.start_us + phase.duration_us).clamp(from + 1, BAR);
        let (pad, bar) = (" ".repeat(from as usize), bar((to - from) as usize));
        lines.push(format!("  {:<9} {:>9}  {pad}{bar}", phase.name, seconds(phase.duration_us as f64 / 1e6)));
    }
    if !result.facts.is_empty() {
        let facts: Vec<String> = result.facts.iter().map(|(name, value)| format!("{name}={value}")).collect();
        lines.push(format!("  {}", facts.join("  ")));
    }
    lines
}

fn at(peer: &str) -> String {
    if peer.is_empty() { String::new() } else { format!("  from {peer}") }
}

fn bar(columns: usize) -> String {
    let bar = "=".repeat(columns);
    if coloured() { format!("\u{1b}[36m{bar}\u{1b}[0m") } else { bar }
}

fn json(check: &CheckSpec, result: &RunResult) -> Value {
    let (kind, text) = target(check);
    let phases: Vec<Value> =
        result.phases.iter().map(|p| json!({"name": p.name, "startSeconds": p.start_us as f64 / 1e6, "durationSeconds": p.duration_us as f64 / 1e6})).collect();
    let mut value = json!({
        "kind": kind, "target": text, "outcome": class(result), "reason": result.reason.label(),
        "durationSeconds": result.duration.as_secs_f64(), "phases": phases, "attempts": result.attempts,
        "facts": result.facts.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect::<serde_json::Map<_, _>>(),
    });
    for (key, text) in [("message", &result.message), ("peer", &result.peer)] {
        if !text.is_empty() {
            value[key] = json!(text);
        }
    }
    value
}
