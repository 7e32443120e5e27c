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

/// What a prober would have in its secrets directory.
type Secrets = BTreeMap<String, String>;

/// Columns of the longest bar.
const BAR: u64 = 40;
/// Columns of the lines of facts.
const WIDTH: usize = 100;

#[derive(Debug, Args)]
#[command(after_help = "Targets:
  https://host/path, http://..., host   HTTP: --expect-status, -H, -d, -L; HTTP/3 with --http 3
  host:port, tcp://host:port            TCP: --send, --expect, --tls, --starttls
  tls://host[:443]                      certificate watch: --min-days, --pin, --starttls
  dns://server/name?type=AAAA           DNS; dns:///name asks this host's resolver
  ping://host?count=10                  ICMP echo
  trace://host?protocol=tcp&port=443    the path there, hop by hop
  udp://host:port                       UDP: --send, --expect
  grpc://host:port/service (grpcs://)   gRPC health: -H
  ws://host/path (wss://)               WebSocket: -H, --send, --expect

Options of a target stand behind a ? (of ws behind a #), with & between them; %20 is a blank, and
lists stand in []. Each with its default, or what it may be:
  dns    type=A class=IN transport=udp|tcp|tls|https path=/dns-query recursion=true edns.size=1232
         edns.dnssecOk checkingDisabled dnssec dnssec.anchors=[...] expect.rcodes=[NOERROR]
         expect.flags.aa=true expect.minAnswers=0 expect.answers=[...] expect.maxSize
         expect.sameSerialAs=[...] expect.answer.equals=[...], and of answer, authority and
         additional: minCount, maxCount, contains, matches, notMatches, ttl.min, ttl.max
  ping   count=1 packetInterval=200ms payloadSize=56 dontFragment ttl=64 tos=0 dscp=ef maxLoss=0%
         maxRtt.min maxRtt.mean maxRtt.p95 maxRtt.max maxJitter noDuplicates noReordering trace
  trace  protocol=icmp|udp|tcp port=443 maxHops=30 queries=3 wait=1s
  udp    send sendHex expect
  grpc   expect.status=[SERVING]
  ws     send expect subprotocols=[...] maxMessageBytes=1MiB
What each means: `probity explain probe.spec.dns`, .icmp, .icmp.trace, .udp, .grpc, .websocket.

Examples:
  probity probe https://example.com
  probity probe example.com:443 dns://127.0.0.53:53/example.com ping://127.0.0.1
  probity probe https://example.com/health --expect-status 200,204 --expect-json '$.status=ok'
  probity probe https://example.com -d @order.json -H 'content-type: text/json' -u me:secret
  probity probe https://example.com -L --compressed --http 2 --max-duration 800ms -o json
  probity probe https://example.com --max-duration connect=50ms --http 3
  probity probe https://shop.example.com --resolve shop.example.com:10.0.0.7 --cacert ca.pem
  probity probe https://example.com --resolver tls://1.1.1.1#cloudflare-dns.com --family prefer4
  probity probe https://example.com -x socks5://127.0.0.1:1080
  probity probe tls://example.com --min-days 14
  probity probe tls://mail.example.com:25 --starttls smtp
  probity probe mail.example.com:25 --send 'EHLO me\\r\\n' --expect '^220'
  probity probe 10.0.0.1:23 --invert
  probity probe 'ping://10.0.0.1?count=10&packetInterval=100ms&maxLoss=10%&maxRtt.p95=20ms'
  probity probe 'trace://example.com?protocol=tcp&port=443'
  probity probe 'dns://1.1.1.1/example.com?type=AAAA&transport=tls&expect.minAnswers=1'
  probity probe dns:///example.com 'dns://9.9.9.9/example.com?type=MX&expect.answer.minCount=1'
  probity probe udp://10.0.0.9:9999 --send ping --expect '(?i)^pong'
  probity probe grpcs://shop.example.com:443/shop.Cart -H 'x-tenant: shop'
  probity probe 'wss://shop.example.com/live#send=hello&expect=welcome'

A run is good or bad by its reason; `missed` is this host's own failing. Phases are in order, and add up to the duration.
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
    /// Text to send to tcp, udp and ws targets; \r and \n are line ends
    #[arg(long, value_name = "TEXT")]
    send: Option<String>,
    /// Regular expression that a tcp, udp or ws target's answer must match
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
    fn options(&self) -> Result<(Options, Secrets), String> {
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

    /// What is to be run, or every mistake at once.
    fn checks(&self) -> Result<(Vec<CheckSpec>, Secrets), Vec<String>> {
        let (options, secrets) = self.options().map_err(|problem| vec![problem])?;
        let (checks, wrong): (Vec<_>, Vec<_>) = self.targets.iter().map(|t| oneshot::check(t, &options)).partition(Result::is_ok);
        if wrong.is_empty() {
            Ok((checks.into_iter().filter_map(Result::ok).collect(), secrets))
        } else {
            Err(wrong.into_iter().filter_map(Result::err).collect())
        }
    }
}

/// Probes every target, and says what came of it.
pub(crate) async fn run(args: ProbeArgs, as_json: bool) -> ExitCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (checks, secrets) = match args.checks() {
        Ok(found) => found,
        Err(problems) => {
            for problem in problems {
                eprintln!("error: {problem}");
            }
            return ExitCode::from(exit::MISUSE);
        }
    };
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
        let facts = result.facts.iter().filter(|(name, _)| *name != "icmp.path").map(|(name, value)| format!("{name}={value}"));
        lines.extend(wrapped(facts));
    }
    lines
}

/// As many to a line as there is room for.
fn wrapped(facts: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for fact in facts {
        match lines.last_mut().filter(|line| line.chars().count() + 2 + fact.chars().count() <= WIDTH) {
            Some(line) => *line = format!("{line}  {fact}"),
            None => lines.push(format!("  {fact}")),
        }
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use clap::{CommandFactory, Parser};
    use probity_proto::resources::{SourceFile, explain, parse};

    use super::*;

    use crate::args::{Cli, Command};

    fn help() -> String {
        let cli = Cli::command();
        cli.find_subcommand("probe").and_then(clap::Command::get_after_help).expect("its help").to_string()
    }

    /// The words of a command line as a shell has them: blanks apart, single quotes keep, a # begins a comment.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
        for c in line.chars() {
            match c {
                '\'' => (quoted, begun) = (!quoted, true),
                '#' if !quoted && !begun => break,
                ' ' if !quoted => {
                    if std::mem::take(&mut begun) {
                        words.push(std::mem::take(&mut word));
                    }
                }
                c => {
                    word.push(c);
                    begun = true;
                }
            }
        }
        assert!(!quoted, "{line}");
        words.extend(begun.then_some(word));
        words
    }

    #[test]
    fn no_example_is_stale() {
        let root = env!("CARGO_MANIFEST_DIR");
        let mut texts = vec![("--help".to_owned(), help())];
        for page in ["README.md", "docs/probes.md", "docs/probes-dns-icmp.md"] {
            texts.push((page.to_owned(), std::fs::read_to_string(format!("{root}/{page}")).expect("a page")));
        }
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in [("order.json", "{}"), ("ca.pem", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")] {
            std::fs::write(directory.path().join(name), text).expect("a file");
        }
        let file = |name: &str| directory.path().join(name).display().to_string();
        let mut kinds = BTreeSet::new();
        for (page, text) in &texts {
            let lines = text.lines().map(str::trim_start).map(|line| line.strip_prefix("./target/release/").unwrap_or(line));
            for line in lines.filter(|line| line.starts_with("probity probe ")) {
                let args = words(line).into_iter().map(|w| w.replace("order.json", &file("order.json")).replace("ca.pem", &file("ca.pem")));
                let cli = Cli::try_parse_from(args).unwrap_or_else(|e| panic!("{page}: {line}: {e}"));
                let Command::Probe(probe) = cli.command else { panic!("{line}") };
                let (checks, _) = probe.checks().unwrap_or_else(|e| panic!("{page}: {line}: {e:?}"));
                kinds.extend(checks.iter().map(|check| target(check).0));
            }
        }
        assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["dns", "grpc", "http", "icmp", "tcp", "tls", "trace", "udp", "websocket"]);
    }

    #[test]
    fn no_yaml_of_the_docs_is_stale() {
        let pem = rcgen::generate_simple_self_signed(["a.test".to_owned()]).expect("a certificate").cert.pem().replace('\n', "\n      ");
        for page in ["probes.md", "probes-dns-icmp.md"] {
            let text = std::fs::read_to_string(format!("{}/docs/{page}", env!("CARGO_MANIFEST_DIR"))).expect("a page");
            for (number, block) in text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).enumerate() {
                // Most show a part of a spec.
                let head = "apiVersion: probity/v1\nkind: Probe\nmetadata: {name: example}\n";
                let whole = match block {
                    b if b.starts_with("apiVersion") => b.to_owned(),
                    b if b.starts_with("spec:") => format!("{head}{b}"),
                    b => format!("{head}spec:\n{b}"),
                };
                let text = whole.replace("-----BEGIN CERTIFICATE-----\n      ...\n", &format!("{}\n", pem.trim_end()));
                let parsed = parse(&[SourceFile { name: format!("{page}, block {}", number + 1), text }], "default");
                assert!(parsed.problems.is_empty() && parsed.resources.len() == 1, "{:?}", parsed.problems);
            }
        }
    }

    /// Fields that a target, a flag or a resource has instead.
    const ELSEWHERE: [&str; 14] =
        ["dnssec.validate", "server", "name", "host", "address", "url", "service", "metadata", "headers", "dialogue", "tls", "edns", "maxRtt", "expect"];

    #[test]
    fn the_help_has_every_option_and_no_other() {
        let help = help();
        let mut listed: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        let mut scheme = "";
        let text = help.split("may be:\n").nth(1).and_then(|t| t.split("What each means").next()).expect("options");
        for line in text.lines() {
            if line.as_bytes()[2] != b' ' {
                scheme = line.split_whitespace().next().expect("a scheme");
            }
            let own = line.split_whitespace().skip(usize::from(line.as_bytes()[2] != b' '));
            let options = own.map(|w| w.trim_end_matches([',', ':'])).filter(|w| !matches!(*w, "and" | "of" | "answer" | "authority" | "additional"));
            listed.entry(scheme).or_default().extend(options.map(|w| w.split('=').next().unwrap_or(w).to_owned()));
        }
        for (scheme, path) in [("dns", "dns"), ("ping", "icmp"), ("trace", "icmp.trace"), ("udp", "udp"), ("grpc", "grpc"), ("ws", "websocket")] {
            let path = format!("probe.spec.{path}");
            let explained = explain(&path).expect("a kind").to_string();
            let below = format!("{path}.");
            let known: BTreeSet<String> = explained.split_whitespace().filter_map(|word| word.strip_prefix(&below)).map(str::to_owned).collect();
            let wanted = known.iter().filter(|f| !ELSEWHERE.contains(&f.as_str()) && !f.starts_with("tls.") && !f.starts_with("trace."));
            // What a section of an answer may be like has no fields of its own in the documentation.
            let wanted: BTreeSet<&String> =
                wanted.filter(|f| !["expect.answer", "expect.authority", "expect.additional", "expect.flags"].contains(&f.as_str())).collect();
            let there = &listed[scheme];
            for field in wanted {
                assert!(there.contains(field), "{scheme} has {field}, and the help does not say so");
            }
            for field in there {
                let first = field.split('.').next().expect("a name");
                assert!(known.contains(field) || scheme == "dns" && (first == "expect" || !known.contains(first)), "{scheme} has no {field}");
            }
        }
    }
}
