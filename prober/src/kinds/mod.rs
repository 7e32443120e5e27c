//! The probe kinds: one function for all, one file each.

mod assert;
mod bodies;
mod capture;
mod certificate;
mod chain;
mod dns;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod grpc;
mod http;
mod icmp;
mod judge;
mod lines;
mod net;
mod ocsp;
mod patterns;
mod phases;
mod proxy;
mod quic;
mod starttls;
mod tcp;
mod tls;
mod udp;
mod websocket;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use probity_otel::{Otel, Series, SpanIds};
use probity_proto::check::CheckName;
use probity_proto::reason::Class;
use probity_proto::v1::check_kind::Kind;
use probity_proto::v1::{AddressFamily, CheckSpec, NetOptions, Reason};
pub use probity_session::Phase;
use tokio::time::Instant;

use crate::policy::AddressPolicy;
use crate::resolve::Resolvers;
use crate::secret::Secrets;
pub use bodies::BODIES_BYTES_MAX;
pub use icmp::Hop;
pub(crate) use lines::LABELS_FACT;
use phases::Phases;
pub(crate) use tls::add_pem;

/// What every run of a prober shares.
#[derive(Debug)]
pub struct ProbeContext {
    policy: AddressPolicy,
    resolvers: Resolvers,
    secrets: Secrets,
    tls: tls::Tls,
    patterns: Arc<patterns::Patterns>,
    pool: http::Pool,
    tokens: http::Tokens,
    icmp: icmp::Sockets,
    bad: BadChecks,
    pub(crate) bodies: Arc<bodies::Bodies>,
    pub(crate) otel: Otel,
    /// What a person is told who lacks the right to ping; empty when it is there.
    pub(crate) ping_hint: String,
}

/// What makes a context.
#[derive(Debug, Clone)]
pub struct ContextConfig {
    /// Where probes may go.
    pub address_policy: AddressPolicy,
    /// Where secrets are.
    pub secrets_dir: Option<PathBuf>,
    /// A secret without `NAME.allow` beside it is for no probe.
    pub secrets_need_allow: bool,
    /// Secrets that are given beside it, by their names: one's own, for one-shot probes.
    pub secrets: BTreeMap<String, String>,
    /// Bytes of answers' bodies that all runs may hold together.
    pub bodies_bytes_max: u64,
    /// Where spans and metrics go.
    pub otel: Otel,
}

impl Default for ContextConfig {
    fn default() -> ContextConfig {
        ContextConfig {
            address_policy: AddressPolicy::default(),
            secrets_dir: None,
            secrets_need_allow: false,
            secrets: BTreeMap::new(),
            bodies_bytes_max: BODIES_BYTES_MAX,
            otel: Otel::default(),
        }
    }
}

impl ProbeContext {
    /// Opens what runs share. Call it on a tokio runtime.
    pub fn new(config: ContextConfig) -> ProbeContext {
        ProbeContext {
            policy: config.address_policy,
            resolvers: Resolvers::system(),
            secrets: Secrets::new(config.secrets_dir, config.secrets_need_allow, config.secrets),
            tls: tls::Tls::load(),
            patterns: Arc::new(patterns::Patterns::new()),
            pool: http::Pool::default(),
            tokens: http::Tokens::new(),
            ping_hint: icmp::Sockets::hint(),
            icmp: icmp::Sockets::default(),
            bad: BadChecks::default(),
            bodies: bodies::Bodies::new(config.bodies_bytes_max),
            otel: config.otel,
        }
    }
}

impl ProbeContext {
    /// Where secrets are read.
    pub(crate) fn secrets(&self) -> &Secrets {
        &self.secrets
    }
}

/// What a run is of.
#[derive(Debug, Clone, Default)]
pub struct RunInfo<'r> {
    /// The check.
    pub check: &'r str,
    /// The prober.
    pub prober: &'r str,
    /// The slot.
    pub n: u64,
    /// The trace of the game day that disturbs the check.
    pub game_day_trace: &'r str,
    /// Share of good runs that are traced.
    pub trace_ppm: u32,
    /// Wall-clock start, for the spans.
    pub started_at_us: i64,
    /// How late the slot started.
    pub lag_us: u64,
    /// Where the check's good runs are counted, of a check that keeps it from run to run.
    pub good: Option<&'r OnceLock<Series>>,
}

/// What a run found: all but the last two are of the attempt that decided.
#[derive(Debug, Clone, Default)]
pub struct RunResult {
    /// Good, or why not.
    pub reason: Reason,
    /// All phases together.
    pub duration: Duration,
    /// Those that were reached, in order.
    pub phases: Vec<Phase>,
    /// For people.
    pub message: String,
    /// The address.
    pub peer: String,
    /// The run's trace: it exists whether or not it is exported.
    pub trace_id: u128,
    /// Attributes: `http.response.status_code`, `tls.certificate.not_after`, ...
    pub facts: Vec<(&'static str, String)>,
    /// When the attempt began, from the start of the run.
    pub offset: Duration,
    /// Attempts that were made.
    pub attempts: u32,
    /// Those before it, which failed.
    pub failed: Vec<RunResult>,
    /// The way to the target, where it was traced.
    pub path: Vec<Hop>,
}

/// Why an attempt ended early.
#[derive(Debug)]
pub(crate) struct Failure {
    reason: Reason,
    message: String,
}

impl Failure {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Failure {
        Failure { reason, message: message.into() }
    }
}

/// What an attempt learns on its way.
#[derive(Debug)]
pub(crate) struct Attempt<'c> {
    pub(crate) context: &'c ProbeContext,
    /// The probe's: secrets may be for some only. Empty for a run by hand.
    pub(crate) namespace: &'c str,
    pub(crate) net: &'c NetOptions,
    /// As `net` says; of `both`, the one whose turn it is.
    pub(crate) family: AddressFamily,
    pub(crate) deadline: Instant,
    pub(crate) phases: Phases,
    pub(crate) peer: String,
    pub(crate) facts: Vec<(&'static str, String)>,
    pub(crate) path: Vec<Hop>,
    /// The run's own span, and whether it is exported whatever is found.
    span: (SpanIds, bool),
}

impl Attempt<'_> {
    /// What tells the target of which trace a request is (W3C Trace Context).
    pub(crate) fn traceparent(&self) -> String {
        probity_otel::traceparent(self.span.0, self.span.1)
    }

    /// A secret of this host, by its name, to be sent to a host.
    pub(crate) async fn secret(&self, name: &str, to: &str) -> Result<String, Failure> {
        self.context.secrets.read_for(name, self.namespace, to).await.map_err(|m| Failure::new(Reason::SecretMissing, m))
    }

    /// Notes a fact, in the place of an earlier one of that name.
    pub(crate) fn fact(&mut self, name: &'static str, value: impl Into<String>) {
        match self.facts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value.into(),
            None => self.facts.push((name, value.into())),
        }
    }
}

/// Runs a check once: with its retries, within its time-out.
pub async fn run(context: &ProbeContext, spec: &CheckSpec, info: &RunInfo<'_>) -> RunResult {
    let ids = SpanIds::root();
    let share_sampled = sampled(ids.trace, info.trace_ppm);
    let start = Instant::now();
    let deadline = start + Duration::from_micros(spec.timeout_us);
    let namespace = CheckName::parse(info.check).map_or("", |c| c.namespace);
    let mut failed: Vec<RunResult> = Vec::new();
    let mut result = loop {
        let now = Instant::now();
        let until = match spec.attempt_timeout_us {
            0 => deadline,
            us => deadline.min(now + Duration::from_micros(us)),
        };
        let mut result = families(context, spec, namespace, (ids, share_sampled), until).await;
        result.offset = now - start;
        let over = failed.len() >= spec.retries as usize || Instant::now() >= deadline;
        if over || result.reason.class() != Class::Bad {
            break result;
        }
        failed.push(result);
    };
    result.attempts = failed.len() as u32 + 1;
    result.failed = failed;
    result.trace_id = ids.trace;
    trace_path(context, spec, info, &mut result).await;
    crate::trace::export(context, spec, info, &result, ids, share_sampled);
    result
}

/// Traces the path of a check that has just turned bad; after the run, so that none of its times hold it.
async fn trace_path(context: &ProbeContext, spec: &CheckSpec, info: &RunInfo<'_>, result: &mut RunResult) {
    let Some(Kind::Icmp(check)) = spec.kind.as_ref().and_then(|k| k.kind.as_ref()) else { return };
    if check.trace.as_ref().is_none_or(|t| t.alone) {
        return;
    }
    let bad = result.reason.class() == Class::Bad;
    if context.bad.turned(info.check, bad) {
        let default = NetOptions::default();
        result.path = icmp::path_of_bad(context, spec.net.as_ref().unwrap_or(&default), check, &result.peer).await;
    }
    if !result.path.is_empty() {
        result.facts.push(("icmp.path", icmp::path_text(&result.path)));
    }
}

/// The checks whose last run was bad.
#[derive(Debug, Default)]
struct BadChecks(Mutex<BTreeSet<String>>);

impl BadChecks {
    /// More are taken for good.
    const MAX: usize = 10_000;

    /// Notes a run; whether it is the first bad one. A run by hand has no check, and always is.
    fn turned(&self, check: &str, bad: bool) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (bad, check.is_empty()) {
            (true, true) => true,
            (true, false) => known.len() < BadChecks::MAX && known.insert(check.to_owned()),
            (false, _) => {
                known.remove(check);
                false
            }
        }
    }
}

/// Whether a good run of this trace id is among the traced share.
fn sampled(trace_id: u128, ppm: u32) -> bool {
    trace_id as u64 % 1_000_000 < u64::from(ppm)
}

/// One attempt; of `both`, one in each family, IPv6 first with half of the time.
async fn families(context: &ProbeContext, spec: &CheckSpec, namespace: &str, span: (SpanIds, bool), deadline: Instant) -> RunResult {
    let family = spec.net.as_ref().map_or(AddressFamily::Any, NetOptions::family);
    if family != AddressFamily::Both {
        return attempt(context, spec, namespace, family, span, deadline).await;
    }
    let now = Instant::now();
    let v6 = attempt(context, spec, namespace, AddressFamily::V6, span, now + (deadline - now) / 2).await;
    let v4 = attempt(context, spec, namespace, AddressFamily::V4, span, deadline).await;
    both(v6, v4)
}

/// Both must be good; the phases of the second follow those of the first.
fn both(mut v6: RunResult, mut v4: RunResult) -> RunResult {
    let before_us = v6.duration.as_micros() as u64;
    let mut phases = std::mem::take(&mut v6.phases);
    phases.extend(v4.phases.drain(..).map(|p| Phase { start_us: p.start_us + before_us, ..p }));
    let duration = v6.duration + v4.duration;
    for (result, family) in [(&mut v6, "IPv6"), (&mut v4, "IPv4")] {
        if !result.message.is_empty() {
            result.message = format!("{family}: {}", result.message);
        }
    }
    let deciding = if v6.reason != Reason::Good { v6 } else { v4 };
    RunResult { phases, duration, ..deciding }
}

async fn attempt(context: &ProbeContext, spec: &CheckSpec, namespace: &str, family: AddressFamily, span: (SpanIds, bool), deadline: Instant) -> RunResult {
    let default = NetOptions::default();
    let net = spec.net.as_ref().unwrap_or(&default);
    let start = Instant::now();
    let mut attempt =
        Attempt { context, namespace, net, family, deadline, phases: Phases::start(), peer: String::new(), facts: Vec::new(), path: Vec::new(), span };
    let kind = spec.kind.as_ref().and_then(|k| k.kind.as_ref());
    // Each in a box of its own size: a run of one kind need not carry the room of the largest, nor be moved with it.
    let work = async {
        match kind {
            Some(Kind::Http(check)) => Box::pin(http::run(&mut attempt, check)).await,
            Some(Kind::Tcp(check)) => Box::pin(tcp::run(&mut attempt, check)).await,
            Some(Kind::Dns(check)) => Box::pin(dns::run(&mut attempt, check)).await,
            Some(Kind::Tls(check)) => Box::pin(tcp::watch(&mut attempt, check)).await,
            Some(Kind::Icmp(check)) => Box::pin(icmp::run(&mut attempt, check)).await,
            Some(Kind::Udp(check)) => Box::pin(udp::run(&mut attempt, check)).await,
            Some(Kind::Grpc(check)) => Box::pin(grpc::run(&mut attempt, check)).await,
            Some(Kind::Websocket(check)) => Box::pin(websocket::run(&mut attempt, check)).await,
            None => Err(Failure::new(Reason::Unsupported, "a kind that this prober does not know")),
        }
    };
    let outcome = match tokio::time::timeout_at(deadline, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(attempt.late_by_waiting().unwrap_or_else(|| timed_out(&attempt, spec, deadline - start))),
    };
    let (duration, phases) = attempt.phases.finish();
    let datagrams = match kind {
        Some(Kind::Udp(_)) => true,
        Some(Kind::Dns(check)) => check.transport() == probity_proto::v1::DnsTransport::Udp,
        _ => false,
    };
    let answered = attempt.facts.iter().any(|(name, _)| *name == "dns.response_code");
    let outcome = judge::inverted(spec.invert, &attempt.peer, datagrams, answered, outcome).and_then(|()| judge::limits(&spec.limits, duration, &phases));
    let (reason, message) = match outcome {
        Ok(()) => (Reason::Good, String::new()),
        Err(failure) => (failure.reason, failure.message),
    };
    RunResult { reason, duration, phases, message, peer: attempt.peer, facts: attempt.facts, path: attempt.path, ..RunResult::default() }
}

/// It ran out of `whole`, the time that this attempt had.
fn timed_out(attempt: &Attempt<'_>, spec: &CheckSpec, whole: Duration) -> Failure {
    let (reason, phase) = attempt.phases.timeout();
    let whole_us = whole.as_micros() as u64;
    // As the probe writes it: a busy host may have lost some of it before.
    let asked = [spec.timeout_us, spec.attempt_timeout_us].into_iter().find(|us| us.abs_diff(whole_us) <= us / 10).unwrap_or(whole_us);
    let over_quic = reason == Reason::ConnectTimeout && attempt.facts.contains(&("network.transport", "quic".to_owned()));
    let hint = if over_quic { " (QUIC: UDP is blocked on the way, or nobody speaks it there)" } else { "" };
    Failure::new(reason, format!("no answer within {} in {phase}{hint}", probity_proto::units::format_duration(asked)))
}
