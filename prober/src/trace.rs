//! A run as a trace: a root span, a child for each phase. Every bad run is exported, and a share of the good.

use std::borrow::Cow;

use opentelemetry::KeyValue;
use probity_otel::{Otel, Span, SpanIds};
use probity_proto::check::CheckName;
use probity_proto::lower;
use probity_proto::reason::Class;
use probity_proto::v1::check_kind::Kind;
use probity_proto::v1::{CheckKind, CheckSpec, Reason};

use crate::kinds::{ProbeContext, RunInfo, RunResult};

pub(crate) fn export(context: &ProbeContext, spec: &CheckSpec, info: &RunInfo<'_>, result: &RunResult, root: SpanIds, share_sampled: bool) {
    let otel = &context.otel;
    if !otel.enabled() {
        return;
    }
    let class = result.reason.class();
    count(otel, spec, info, result);
    if class == Class::Missed || class == Class::Good && !share_sampled {
        return;
    }
    let default = CheckKind::default();
    let kind = spec.kind.as_ref().unwrap_or(&default);
    let (kind_word, target) = lower::describe(kind);
    let outcome = outcome(class);
    let mut attributes = vec![
        KeyValue::new("probity.check", info.check.to_owned()),
        KeyValue::new("probity.prober", info.prober.to_owned()),
        KeyValue::new("probity.slot", info.n as i64),
        KeyValue::new("probity.outcome", outcome),
        KeyValue::new("probity.attempts", i64::from(result.attempts)),
        KeyValue::new("probity.lag_us", info.lag_us as i64),
        // The mark of synthetic traffic in the semantic conventions.
        KeyValue::new("user_agent.synthetic.type", "test"),
        KeyValue::new("probity.target", target),
    ];
    if let Some(name) = CheckName::parse(info.check) {
        attributes.push(KeyValue::new("probity.namespace", name.namespace.to_owned()));
    }
    attributes.extend(kind_attributes(kind));
    if let Some((address, port)) = result.peer.rsplit_once(':').filter(|_| kind_word != "icmp") {
        attributes.push(KeyValue::new("network.peer.address", address.trim_matches(['[', ']']).to_owned()));
        attributes.extend(port.parse::<i64>().ok().map(|p| KeyValue::new("network.peer.port", p)));
    } else if !result.peer.is_empty() {
        attributes.push(KeyValue::new("network.peer.address", result.peer.clone()));
    }
    for (name, value) in &result.facts {
        attributes.push(match value.parse::<i64>() {
            Ok(number) => KeyValue::new(*name, number),
            Err(_) => KeyValue::new(*name, value.clone()),
        });
    }
    if class == Class::Bad {
        attributes.push(KeyValue::new("error.type", result.reason.label()));
    }
    for (i, failed) in result.failed.iter().enumerate() {
        export_attempt(otel, info, failed, i + 1, root);
    }
    if result.failed.is_empty() {
        export_phases(otel, info, result, root);
    } else {
        export_attempt(otel, info, result, result.failed.len() + 1, root);
    }
    otel.export(Span {
        trace_id: root.trace_id(),
        span_id: root.span_id(),
        parent_id: String::new(),
        name: Cow::Owned(format!("probe {kind_word}")),
        client: true,
        // It begins with its first attempt: what came before is the lag, not the target's.
        start_us: start_us(info, result.failed.first().unwrap_or(result)),
        end_us: end_us(info, result),
        attributes,
        links: if info.game_day_trace.is_empty() { Vec::new() } else { vec![info.game_day_trace.to_owned()] },
        error: (class == Class::Bad).then(|| result.message.clone()),
    });
}

fn outcome(class: Class) -> &'static str {
    match class {
        Class::Good => "good",
        Class::Bad => "bad",
        Class::Missed => "missed",
    }
}

/// Counts a finished run. Good ones are the many, and always have a duration: where they are counted is kept.
fn count(otel: &Otel, spec: &CheckSpec, info: &RunInfo<'_>, result: &RunResult) {
    otel.record_lag(info.lag_us as f64 / 1e6);
    let seconds = result.duration.as_secs_f64();
    match info.good.filter(|_| result.reason == Reason::Good) {
        Some(kept) => kept.get_or_init(|| otel.series(&counted_by(spec, info, result.reason))).count(seconds),
        None => otel.count(&counted_by(spec, info, result.reason), (result.reason.class() != Class::Missed).then_some(seconds)),
    }
}

fn counted_by(spec: &CheckSpec, info: &RunInfo<'_>, reason: Reason) -> [KeyValue; 5] {
    let kind = spec.kind.as_ref().map_or("unknown", |kind| lower::describe(kind).0);
    [
        KeyValue::new("probity.check", info.check.to_owned()),
        KeyValue::new("probity.prober", info.prober.to_owned()),
        KeyValue::new("probity.kind", kind),
        KeyValue::new("probity.outcome", outcome(reason.class())),
        KeyValue::new("error.type", reason.label()),
    ]
}

fn start_us(info: &RunInfo<'_>, attempt: &RunResult) -> i64 {
    info.started_at_us + attempt.offset.as_micros() as i64
}

fn end_us(info: &RunInfo<'_>, attempt: &RunResult) -> i64 {
    start_us(info, attempt) + attempt.duration.as_micros() as i64
}

/// Of a run with retries each attempt is a span, so that none is hidden by the one that decided.
fn export_attempt(otel: &Otel, info: &RunInfo<'_>, attempt: &RunResult, number: usize, root: SpanIds) {
    let bad = attempt.reason.class() == Class::Bad;
    let ids = root.child();
    let mut attributes = vec![KeyValue::new("probity.attempt", number as i64), KeyValue::new("probity.peer", attempt.peer.clone())];
    if bad {
        attributes.push(KeyValue::new("error.type", attempt.reason.label()));
    }
    export_phases(otel, info, attempt, ids);
    otel.export(Span {
        trace_id: ids.trace_id(),
        span_id: ids.span_id(),
        parent_id: root.span_id(),
        name: Cow::Borrowed("attempt"),
        client: false,
        start_us: start_us(info, attempt),
        end_us: end_us(info, attempt),
        attributes,
        links: Vec::new(),
        error: bad.then(|| attempt.message.clone()),
    });
}

fn export_phases(otel: &Otel, info: &RunInfo<'_>, attempt: &RunResult, parent: SpanIds) {
    let at = |us: u64| start_us(info, attempt) + us as i64;
    for phase in &attempt.phases {
        otel.export(Span {
            trace_id: parent.trace_id(),
            span_id: parent.child().span_id(),
            parent_id: parent.span_id(),
            name: Cow::Borrowed(phase.name),
            client: false,
            start_us: at(phase.start_us),
            end_us: at(phase.start_us + phase.duration_us),
            attributes: Vec::new(),
            links: Vec::new(),
            error: None,
        });
    }
}

/// By the semantic conventions, where there are some for the kind.
fn kind_attributes(kind: &CheckKind) -> Vec<KeyValue> {
    match &kind.kind {
        Some(Kind::Http(http)) => {
            // Of several requests the first says what the probe is about.
            let (method, url) = http.steps.first().map_or((&http.method, &http.url), |step| (&step.method, &step.url));
            let mut found = vec![KeyValue::new("http.request.method", method.clone()), KeyValue::new("url.full", url.clone())];
            if let Some(host) = url.parse::<http::Uri>().ok().and_then(|u| u.host().map(str::to_owned)) {
                found.push(KeyValue::new("server.address", host));
            }
            found
        }
        Some(Kind::Tcp(tcp)) => vec![KeyValue::new("network.transport", "tcp"), KeyValue::new("server.address", tcp.address.clone())],
        Some(Kind::Tls(tls)) => vec![KeyValue::new("network.transport", "tcp"), KeyValue::new("server.address", tls.address.clone())],
        Some(Kind::Dns(dns)) => vec![KeyValue::new("dns.question.name", dns.name.clone()), KeyValue::new("dns.question.type", dns.record_type.clone())],
        Some(Kind::Icmp(icmp)) => vec![KeyValue::new("server.address", icmp.host.clone())],
        Some(Kind::Udp(udp)) => vec![KeyValue::new("network.transport", "udp"), KeyValue::new("server.address", udp.address.clone())],
        Some(Kind::Grpc(grpc)) => vec![
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.service", "grpc.health.v1.Health"),
            KeyValue::new("rpc.method", "Check"),
            KeyValue::new("server.address", grpc.address.clone()),
        ],
        Some(Kind::Websocket(websocket)) => vec![KeyValue::new("url.full", websocket.url.clone())],
        None => Vec::new(),
    }
}
