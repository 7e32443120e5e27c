//! `probe`: one run from here, without any server, with what a prober of a cluster would do.

mod args;

use std::collections::BTreeMap;
use std::process::ExitCode;

use args::{HttpArgs, NetArgs, TlsArgs, limit};
use clap::Args;
use probity_prober::kinds::{ContextConfig, Hop, run as run_once};
use probity_prober::oneshot::{self, Options};
use probity_prober::policy::AddressPolicy;
use probity_prober::{ProbeContext, RunInfo, RunResult};
use probity_proto::reason::Class;
use probity_proto::v1::{CheckSpec, PhaseLimit};
use probity_proto::{lower, units};
use serde_json::{Value, json};

use crate::exit;
use crate::output::{coloured, paint, print_json, print_lines, seconds};

/// Columns of the longest bar.
const BAR: u64 = 40;

#[derive(Debug, Args)]
#[command(after_help = "Targets:
  https://host/path, http://..., host      HTTP
  host:port, tcp://host:port               TCP
  tls://host[:443]                         certificate watch
  dns://server/name?type=AAAA              DNS
  ping://host, trace://host                ICMP, path
  udp://host:port                          UDP
  grpc://host:port/service (grpcs://)      gRPC health
  ws://host/path (wss://)                  WebSocket
Options of dns, ping, trace, udp and grpc stand behind a ?, of ws behind a #, by the names that `probity explain probe.spec` has.

Examples:
  probity probe https://example.com
  probity probe example.com:443 dns://127.0.0.53:53/example.com ping://127.0.0.1
  probity probe https://example.com/health --expect-status 200,204 --expect-json '$.status=ok' -o json
  probity probe https://example.com -d @order.json -H 'content-type: application/json' -u me:secret
  probity probe https://example.com -L --compressed --http 2 --max-duration 800ms --max-duration connect=50ms
  probity probe https://shop.example.com --resolve shop.example.com:10.0.0.7 --cacert ca.pem
  probity probe https://example.com --resolver tls://1.1.1.1#cloudflare-dns.com --family both
  probity probe https://example.com -x socks5://127.0.0.1:1080
  probity probe tls://example.com --min-days 14
  probity probe tls://mail.example.com:25 --starttls smtp
  probity probe mail.example.com:25 --send 'EHLO me\\r\\n' --expect '^220'
  probity probe 10.0.0.1:23 --invert
  probity probe 'ping://10.0.0.1?count=10&packetInterval=100ms&maxLoss=10%&maxRtt.p95=20ms'
  probity probe 'trace://example.com?protocol=tcp&port=443'
  probity probe 'dns://1.1.1.1/example.com?type=AAAA&transport=tls&expect.minAnswers=1' dns:///example.com
  probity probe grpcs://shop.example.com:443/shop.Cart 'wss://shop.example.com/live#send=hello&expect=welcome'

Exit codes: 0 every run was good, 1 one was not, 2 misuse.")]
pub(crate) struct ProbeArgs {
    /// What to probe
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// How long a run may take
    #[arg(long, default_value = "10s", value_parser = units::parse_duration, value_name = "DURATION")]
    timeout: u64,
    #[command(flatten)]
    net: NetArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    http: HttpArgs,
    /// Text to send to tcp targets; \r and \n are line ends
    #[arg(long, value_name = "TEXT")]
    send: Option<String>,
    /// Regular expression that a tcp target's answer must match
    #[arg(long, value_parser = probity_proto::resources::regex, value_name = "REGEX")]
    expect: Option<String>,
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

impl ProbeArgs {
    /// What all targets share, and the secrets that it names.
    fn options(&self) -> Result<(Options, BTreeMap<String, String>), String> {
        let mut secrets = BTreeMap::new();
        let (tls, tcp_tls, starttls) = self.tls.options(&mut secrets)?;
        let unescaped = self.send.as_ref().map(|text| text.replace("\\r", "\r").replace("\\n", "\n")).unwrap_or_default();
        let options = Options {
            http: self.http.request(&mut secrets)?,
            status: self.http.expect_status.clone(),
            body: self.http.body_assertions(),
            headers: self.http.header_assertions(),
            tls,
            tcp_tls,
            starttls,
            exchange: (unescaped, self.expect.clone().unwrap_or_default()),
            timeout_us: self.timeout,
            retries: self.retries,
            invert: self.invert,
            limits: self.max_duration.clone(),
            net: self.net.options(),
        };
        Ok((options, secrets))
    }
}

/// Probes every target, and says what came of it.
pub(crate) async fn run(args: ProbeArgs, as_json: bool) -> ExitCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (options, secrets) = match args.options() {
        Ok(found) => found,
        Err(message) => {
            eprintln!("error: {message}");
            return ExitCode::from(exit::MISUSE);
        }
    };
    let (checks, wrong): (Vec<_>, Vec<_>) = args.targets.iter().map(|t| oneshot::check(t, &options)).partition(Result::is_ok);
    if !wrong.is_empty() {
        for problem in wrong.into_iter().filter_map(Result::err) {
            eprintln!("error: {problem}");
        }
        return ExitCode::from(exit::MISUSE);
    }
    let checks: Vec<CheckSpec> = checks.into_iter().filter_map(Result::ok).collect();
    let context = ProbeContext::new(ContextConfig { address_policy: AddressPolicy::Anywhere, secrets, ..ContextConfig::default() });
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
    if let Some((_, found)) = result.facts.iter().find(|(name, _)| *name == "tls.verification") {
        lines.push(format!("  WARNING: the certificate was not verified ({found})"));
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
