//! `probe`: one run from here, without any server, with what a prober of a cluster would do.

use std::net::IpAddr;
use std::process::ExitCode;

use clap::Args;
use probity_prober::kinds::{ContextConfig, Hop, run as run_once};
use probity_prober::oneshot::{self, Options};
use probity_prober::policy::AddressPolicy;
use probity_prober::{ProbeContext, RunInfo, RunResult};
use probity_proto::reason::Class;
use probity_proto::resources::{FAMILIES, interface, resolver_server, status_range};
use probity_proto::v1::{AddressFamily, CheckSpec, NetOptions, PhaseLimit, ResolverServer, StatusRange};
use probity_proto::{lower, units};
use serde_json::{Value, json};

use crate::exit;
use crate::output::{coloured, paint, print_json, print_lines, seconds};

/// Columns of the longest bar.
const BAR: u64 = 40;

#[derive(Debug, Args)]
#[command(
    after_help = "Targets: https://host/path, host (https), host:port (tcp), tcp://host:port, udp://host:port,\n  dns://server/name?type=AAAA, ping://host, trace://host, grpc://host:port/service (grpcs://), ws://host/path (wss://)\n  Options of dns, ping, trace, udp and grpc stand behind a ?, of ws behind a #, by the names that `probity explain probe.spec` has.\n\nExamples:\n  probity probe https://example.com\n  probity probe example.com:443 dns://127.0.0.53:53/example.com ping://127.0.0.1\n  probity probe 'ping://10.0.0.1?count=10&packetInterval=100ms&maxLoss=10%&maxRtt.p95=20ms'\n  probity probe 'trace://example.com?protocol=tcp&port=443'\n  probity probe 'dns://1.1.1.1/example.com?type=AAAA&transport=tls&expect.minAnswers=1' dns:///example.com\n  probity probe grpcs://shop.example.com:443/shop.Cart 'wss://shop.example.com/live#send=hello&expect=welcome'\n  probity probe https://example.com/health --expect-status 200,204 --expect-body ok -o json\n\nExit codes: 0 every run was good, 1 one was not, 2 misuse."
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
    /// Use IPv4 only
    #[arg(short = '4', conflicts_with_all = ["ipv6", "family"], help_heading = "Way to the target")]
    ipv4: bool,
    /// Use IPv6 only
    #[arg(short = '6', conflicts_with = "family", help_heading = "Way to the target")]
    ipv6: bool,
    /// any (Happy Eyeballs), 4, 6, prefer4, prefer6, or both: each by itself
    #[arg(long, value_parser = family, default_value = "any", hide_default_value = true, value_name = "FAMILY", help_heading = "Way to the target")]
    family: AddressFamily,
    /// An address of this host to come from
    #[arg(long, value_name = "ADDRESS", help_heading = "Way to the target")]
    source: Option<IpAddr>,
    /// A network interface of this host to come from
    #[arg(long, value_parser = interface, value_name = "NAME", help_heading = "Way to the target")]
    interface: Option<String>,
    /// A DNS server to ask instead of the host's: udp://10.0.0.53, tcp://, tls://1.1.1.1#NAME, https://1.1.1.1/dns-query#NAME
    #[arg(long, value_parser = resolver_server, value_name = "SERVER", help_heading = "Way to the target")]
    resolver: Vec<ResolverServer>,
    /// Give a name's address, as 'host:address' or curl's 'host:port:address'
    #[arg(long, value_parser = given_address, value_name = "HOST:ADDRESS", help_heading = "Way to the target")]
    resolve: Vec<(String, IpAddr)>,
    /// Good is what cannot be reached: a firewall's check
    #[arg(long)]
    invert: bool,
    /// Further attempts in one run; all must fail for a bad run
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=10), value_name = "N")]
    retries: u32,
    /// A slower run is bad, as 800ms, or connect=100ms for one phase; may be given again
    #[arg(long, value_parser = limit, value_name = "[PHASE=]DURATION")]
    max_duration: Vec<PhaseLimit>,
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

fn family(text: &str) -> Result<AddressFamily, String> {
    FAMILIES.iter().find(|(word, _)| *word == text).map(|(_, family)| *family).ok_or_else(|| {
        let words: Vec<&str> = FAMILIES.iter().map(|(word, _)| *word).collect();
        format!("want {}", words.join(", "))
    })
}

/// `host:address`, or `host:port:address` whose port stands for all: a run has one target.
fn given_address(text: &str) -> Result<(String, IpAddr), String> {
    let (host, rest) = text.split_once(':').unwrap_or((text, ""));
    let bare = |t: &str| t.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    let after_port = || rest.split_once(':').filter(|(port, _)| port.parse::<u16>().is_ok()).and_then(|(_, address)| bare(address));
    let found = bare(rest).or_else(after_port).filter(|_| !host.is_empty());
    found.map(|ip| (host.to_ascii_lowercase(), ip)).ok_or_else(|| "want host:address, for example shop.example.com:10.0.0.7".to_owned())
}

fn limit(text: &str) -> Result<PhaseLimit, String> {
    let (phase, duration) = text.split_once('=').unwrap_or(("total", text));
    if phase.is_empty() || !phase.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
        return Err(format!("{phase:?} is no phase (want total, resolve, connect, tls, request, first_byte, transfer or rtt)"));
    }
    Ok(PhaseLimit { phase: phase.to_owned(), max_us: units::parse_duration(duration)? })
}

impl ProbeArgs {
    fn net(&self) -> NetOptions {
        let family = match (self.ipv4, self.ipv6) {
            (true, _) => AddressFamily::V4,
            (_, true) => AddressFamily::V6,
            _ => self.family,
        };
        NetOptions {
            family: family as i32,
            source_address: self.source.map(|ip| ip.to_string()).unwrap_or_default(),
            source_interface: self.interface.clone().unwrap_or_default(),
            resolver_servers: self.resolver.clone(),
            hosts: self.resolve.iter().map(|(host, ip)| (host.clone(), ip.to_string())).collect(),
            ..NetOptions::default()
        }
    }
}

/// Probes every target, and says what came of it.
pub(crate) async fn run(args: ProbeArgs, as_json: bool) -> ExitCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let options = Options {
        retries: args.retries,
        invert: args.invert,
        limits: args.max_duration.clone(),
        net: args.net(),
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
    for (i, failed) in result.failed.iter().enumerate() {
        lines.push(format!("  attempt {} failed: {} {}", i + 1, failed.reason.label(), failed.message));
    }
    lines.extend(result.path.iter().map(hop_line));
    if !result.facts.is_empty() {
        let facts: Vec<String> = result.facts.iter().filter(|(name, _)| *name != "icmp.path").map(|(name, value)| format!("{name}={value}")).collect();
        lines.push(format!("  {}", facts.join("  ")));
    }
    lines
}

/// `  3  10.0.0.1  0/3 lost  0.41 ms 0.52 ms 0.71 ms`: of each hop the fastest, mean and slowest answer.
fn hop_line(hop: &Hop) -> String {
    if hop.received == 0 {
        return format!("  {:>2}  *", hop.ttl);
    }
    let hosts: Vec<String> = hop.hosts.iter().map(ToString::to_string).collect();
    let times: Vec<String> = [hop.rtt_min_ns, hop.rtt_mean_ns, hop.rtt_max_ns].iter().map(|ns| seconds(*ns as f64 / 1e9)).collect();
    let said = if hop.said.is_empty() { String::new() } else { format!("  {}", hop.said) };
    format!("  {:>2}  {:<15}  {}/{} lost  {}{said}", hop.ttl, hosts.join(" "), hop.sent - hop.received, hop.sent, times.join("  "))
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
        "failedAttempts": result.failed.iter().map(|f| json!({
            "reason": f.reason.label(), "message": f.message, "durationSeconds": f.duration.as_secs_f64(),
        })).collect::<Vec<_>>(),
        "facts": result.facts.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect::<serde_json::Map<_, _>>(),
    });
    if !result.path.is_empty() {
        let hop = |h: &Hop| {
            json!({
                "ttl": h.ttl, "hosts": h.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(), "sent": h.sent, "received": h.received,
                "rttMinSeconds": h.rtt_min_ns as f64 / 1e9, "rttMeanSeconds": h.rtt_mean_ns as f64 / 1e9, "rttMaxSeconds": h.rtt_max_ns as f64 / 1e9,
                "said": h.said, "target": h.target,
            })
        };
        value["path"] = result.path.iter().map(hop).collect();
    }
    for (key, text) in [("message", &result.message), ("peer", &result.peer)] {
        if !text.is_empty() {
            value[key] = json!(text);
        }
    }
    value
}
