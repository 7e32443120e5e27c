//! The probe kinds: one function for all, one file each.

mod assert;
mod dns;
mod http;
mod icmp;
mod net;
mod phases;
mod tcp;
mod tls;

use std::path::PathBuf;
use std::time::Duration;

use probity_otel::Otel;
use probity_proto::reason::Class;
use probity_proto::v1::check_kind::Kind;
use probity_proto::v1::{CheckSpec, Phase, Reason};
use tokio::time::Instant;

use crate::policy::AddressPolicy;
use crate::resolve::Resolver;
use crate::secret::Secrets;
use phases::Phases;

/// What every run of a prober shares.
#[derive(Debug)]
pub struct ProbeContext {
    policy: AddressPolicy,
    resolver: Resolver,
    secrets: Secrets,
    tls: tls::Roots,
    icmp: icmp::Sockets,
    pub(crate) otel: Otel,
    /// What a person is told who lacks the right to ping; empty when it is there.
    pub(crate) ping_hint: String,
}

/// What makes a context.
#[derive(Debug, Clone, Default)]
pub struct ContextConfig {
    /// Where probes may go.
    pub address_policy: AddressPolicy,
    /// Where secrets are.
    pub secrets_dir: Option<PathBuf>,
    /// Where spans and metrics go.
    pub otel: Otel,
}

impl ProbeContext {
    /// Opens what runs share. Call it on a tokio runtime.
    pub fn new(config: ContextConfig) -> ProbeContext {
        let icmp = icmp::Sockets::open();
        ProbeContext {
            policy: config.address_policy,
            resolver: Resolver::system(),
            secrets: Secrets { dir: config.secrets_dir },
            tls: tls::Roots::load(),
            ping_hint: icmp.hint(),
            icmp,
            otel: config.otel,
        }
    }
}

/// What a run is of.
#[derive(Debug, Clone, Default)]
pub struct RunInfo {
    /// The check.
    pub check: String,
    /// The prober.
    pub prober: String,
    /// The slot.
    pub n: u64,
    /// The trace of the game day that disturbs the check.
    pub game_day_trace: String,
    /// Share of good runs that are traced.
    pub trace_ppm: u32,
    /// Wall-clock start, for the spans.
    pub started_at_us: i64,
}

/// What a run found.
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
    pub trace_id: String,
    /// Attributes: `http.response.status_code`, `tls.certificate.not_after`, ...
    pub facts: Vec<(&'static str, String)>,
    /// Attempts that were made.
    pub attempts: u32,
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
    pub(crate) phases: Phases,
    pub(crate) peer: String,
    pub(crate) facts: Vec<(&'static str, String)>,
    pub(crate) traceparent: String,
}

/// Runs a check once: with its retries, within its time-out.
pub async fn run(context: &ProbeContext, spec: &CheckSpec, info: &RunInfo) -> RunResult {
    let trace_id = probity_otel::new_trace_id();
    let root_id = probity_otel::new_span_id();
    let share_sampled = sampled(&trace_id, info.trace_ppm);
    let traceparent = probity_otel::traceparent(&trace_id, &root_id, share_sampled);
    let deadline = Instant::now() + Duration::from_micros(spec.timeout_us);
    let mut attempts = 0;
    let mut result = loop {
        attempts += 1;
        let mut result = attempt(context, spec, &traceparent, deadline).await;
        result.attempts = attempts;
        let over = attempts > spec.retries || Instant::now() >= deadline;
        if over || result.reason.class() != Class::Bad {
            break result;
        }
    };
    result.trace_id = trace_id;
    crate::trace::export(context, spec, info, &result, &root_id, share_sampled);
    result
}

/// Whether a good run of this trace id is among the traced share.
fn sampled(trace_id: &str, ppm: u32) -> bool {
    let low = u64::from_str_radix(&trace_id[16..], 16).unwrap_or(0);
    low % 1_000_000 < u64::from(ppm)
}

async fn attempt(context: &ProbeContext, spec: &CheckSpec, traceparent: &str, deadline: Instant) -> RunResult {
    let mut attempt = Attempt { context, phases: Phases::start(), peer: String::new(), facts: Vec::new(), traceparent: traceparent.to_owned() };
    let kind = spec.kind.as_ref().and_then(|k| k.kind.as_ref());
    let work = async {
        match kind {
            Some(Kind::Http(check)) => http::run(&mut attempt, check).await,
            Some(Kind::Tcp(check)) => tcp::run(&mut attempt, check).await,
            Some(Kind::Dns(check)) => dns::run(&mut attempt, check).await,
            Some(Kind::Icmp(check)) => icmp::run(&mut attempt, check, deadline).await,
            None => Err(Failure::new(Reason::Unsupported, "a kind that this prober does not know")),
        }
    };
    let outcome = match tokio::time::timeout_at(deadline, work).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let (reason, phase) = attempt.phases.timeout();
            Err(Failure::new(reason, format!("no answer within {} in {phase}", probity_proto::units::format_duration(spec.timeout_us))))
        }
    };
    let (duration, phases) = attempt.phases.finish();
    let (reason, message) = match outcome {
        Ok(()) => (Reason::Good, String::new()),
        Err(failure) => (failure.reason, failure.message),
    };
    RunResult { reason, duration, phases, message, peer: attempt.peer, facts: attempt.facts, ..RunResult::default() }
}
