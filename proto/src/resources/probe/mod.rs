//! `kind: Probe`: what all kinds share; one file for each kind.

mod assertion;
mod discovery;
mod dns;
mod dns_types;
mod grpc;
mod http;
mod icmp;
mod net;
mod tcp;
mod tls;
mod udp;
mod websocket;

use super::read::{At, Fields, Mistakes};
use crate::v1::check_kind::Kind;
use crate::v1::*;
use crate::{lower, units};

pub use assertion::{json_path, regex};
pub use dns_types::{rcode_name, record_type_name, record_type_number};
pub use http::{coding, proxy_url, status_range};
pub use net::{FAMILIES, interface, resolver_server};
pub use tls::{STARTTLS, pin};

/// What `maxDuration` may limit: the phases of all kinds, as they are written and as runs name them.
const PHASES: &[(&str, &str)] = &[
    ("total", "total"),
    ("resolve", "resolve"),
    ("connect", "connect"),
    ("proxy", "proxy"),
    ("starttls", "starttls"),
    ("tls", "tls"),
    ("auth", "auth"),
    ("request", "request"),
    ("firstByte", "first_byte"),
    ("transfer", "transfer"),
    ("rtt", "rtt"),
];
const SECOND: u64 = 1_000_000;
const INTERVAL_MIN_US: u64 = 100_000;
const INTERVAL_MAX_US: u64 = 24 * 3_600 * SECOND;

pub(super) fn read(mut fields: Fields<'_>, mistakes: &mut Mistakes) -> Option<ProbeSpec> {
    let interval_us = duration_in(&mut fields, "interval", INTERVAL_MIN_US, INTERVAL_MAX_US, mistakes).unwrap_or(30 * SECOND);
    let timeout_us = timeout(&mut fields, interval_us, mistakes);
    let retries = fields.int("retries", 0..=10, mistakes).unwrap_or(0) as u32;
    let attempt_timeout_us = duration_in(&mut fields, "attemptTimeout", 1_000, timeout_us, mistakes).unwrap_or(0);
    let net = net::net(&mut fields, mistakes);
    let invert_at = fields.get("invert");
    let invert = invert_at.as_ref().and_then(|at| at.flag(mistakes)).unwrap_or(false);
    let limits = limits(&mut fields, mistakes);
    let default_target = fields.text("target", mistakes);
    let targets_at = fields.get("targets");
    let placement = placement(&mut fields, mistakes);
    let kind = kind(&mut fields, default_target.as_deref(), mistakes);
    let verdict = verdict(&mut fields, &placement, mistakes);
    let discovery::Targets { fixed: targets, discovery } = match (default_target, &targets_at) {
        (Some(_), Some(at)) => {
            mistakes.add(&at.path, at.place(), "both target and targets are given", "keep one");
            discovery::Targets::default()
        }
        (Some(address), None) => discovery::Targets { fixed: vec![Target { address, ..Target::default() }], discovery: None },
        (None, Some(at)) => discovery::targets(at, mistakes),
        (None, None) => discovery::Targets { fixed: vec![Target::default()], discovery: None },
    };
    let place = fields.place();
    let path = fields.path.clone();
    fields.finish(mistakes);
    let spec = ProbeSpec {
        interval_us,
        timeout_us,
        retries,
        targets,
        kind: Some(CheckKind { kind: Some(kind?) }),
        placement: Some(placement),
        verdict: Some(verdict),
        net,
        invert,
        attempt_timeout_us,
        limits,
        discovery,
    };
    if let (Some(at), true) = (&targets_at, mistakes.0.is_empty()) {
        discovery::dropped_labels(&spec, at, mistakes);
    }
    if let Some(Kind::Icmp(check)) = spec.kind.as_ref().and_then(|k| k.kind.as_ref())
        && let Err(message) = icmp::fits(check, timeout_us)
    {
        mistakes.add(&format!("{path}.icmp.packetInterval"), place, message, "send fewer, or faster, or set a longer timeout");
    }
    if let Some(what) = spec.kind.as_ref().filter(|_| invert).and_then(more_than_one_target)
        && let Some(at) = &invert_at
    {
        mistakes.add(
            &at.path,
            at.place(),
            format!("an inverted probe cannot have {what}: which of the hosts must be unreachable?"),
            "leave it out, or write a probe for each",
        );
    }
    // What was read wrongly would only be told again.
    let clean = mistakes.0.is_empty();
    for (i, target) in spec.targets.iter().enumerate() {
        let placed = spec.placement.as_ref().map_or(Ok(()), |p| lower::placement(p, target).map(drop));
        if let Err(message) = lower::check_spec(&spec, target).and_then(|s| if clean { lowered(&s) } else { Ok(()) }).and(placed) {
            let hint = if message.ends_with("refers to nothing") { "a target has address, key and labels" } else { "" };
            mistakes.add(&format!("{path}.targets[{i}]"), place, message, hint);
        }
    }
    Some(spec)
}

/// What makes a check talk to further hosts.
fn more_than_one_target(kind: &CheckKind) -> Option<&'static str> {
    match kind.kind.as_ref()? {
        Kind::Http(check) if !check.steps.is_empty() => Some("requests"),
        Kind::Http(check) if check.follow_redirects > 0 => Some("followRedirects"),
        Kind::Dns(check) if check.expect.as_ref().is_some_and(|e| !e.same_serial_as.is_empty()) => Some("sameSerialAs"),
        _ => None,
    }
}

/// `maxDuration: 800ms`, or `{total: 1s, connect: 100ms}`.
fn limits(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> Vec<PhaseLimit> {
    let Some(at) = fields.get("maxDuration") else { return Vec::new() };
    let limit = |phase: &str, max_us| PhaseLimit { phase: phase.to_owned(), max_us };
    if !at.is_mapping() {
        return at.parsed(mistakes, units::parse_duration).map(|us| limit("total", us)).into_iter().collect();
    }
    let Some(mut f) = at.fields(mistakes) else { return Vec::new() };
    let found = PHASES.iter().filter_map(|(key, phase)| Some(limit(phase, f.duration(key, mistakes)?))).collect();
    f.finish(mistakes);
    found
}

fn duration_in(fields: &mut Fields<'_>, key: &'static str, min: u64, max: u64, mistakes: &mut Mistakes) -> Option<u64> {
    let at = fields.get(key)?;
    at.parsed(mistakes, |text| {
        let us = units::parse_duration(text)?;
        if us < min || us > max {
            return Err(format!("{text} is out of range (want {} to {})", units::format_duration(min), units::format_duration(max)));
        }
        Ok(us)
    })
}

fn timeout(fields: &mut Fields<'_>, interval_us: u64, mistakes: &mut Mistakes) -> u64 {
    let default = interval_us.min(10 * SECOND);
    let Some(at) = fields.get("timeout") else { return default };
    at.parsed(mistakes, |text| {
        let us = units::parse_duration(text)?;
        if us > interval_us {
            return Err(format!("{text} is above the interval (want at most {})", units::format_duration(interval_us)));
        }
        if us < 1_000 { Err(format!("{text} is too short (want at least 1ms)")) } else { Ok(us) }
    })
    .unwrap_or(default)
}

fn placement(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> Placement {
    let mut placement = Placement::default();
    let Some(mut f) = fields.get("placement").and_then(|at| at.fields(mistakes)) else { return placement };
    if let Some(mut selector) = f.get("selector").and_then(|at| at.fields(mistakes)) {
        let match_labels = selector.map("matchLabels", mistakes);
        selector.not_yet(&["matchExpressions"], mistakes);
        selector.finish(mistakes);
        placement.selector = Some(Selector { match_labels });
    }
    if let Some(at) = f.get("count") {
        let count = at.parsed(mistakes, |text| match (text, text.parse::<u32>()) {
            ("all", _) => Ok((true, 0)),
            (_, Ok(n)) if (1..=1_000).contains(&n) => Ok((false, n)),
            _ => Err(format!("{text:?} is no count (want 1 to 1000, or all)")),
        });
        (placement.all, placement.count) = count.unwrap_or_default();
    }
    placement.spread_by = f.text("spreadBy", mistakes).unwrap_or_default();
    f.finish(mistakes);
    placement
}

fn verdict(fields: &mut Fields<'_>, placement: &Placement, mistakes: &mut Mistakes) -> VerdictRule {
    let quorum = if placement.count == 1 { 1 } else { 2 };
    let mut rule = VerdictRule { quorum, down_after: 2, recover_after: 2 };
    let Some(mut f) = fields.get("verdict").and_then(|at| at.fields(mistakes)) else { return rule };
    let path = f.path.clone();
    let place = f.place();
    let mut read = |key, default: u32, mistakes: &mut Mistakes| f.int(key, 1..=100, mistakes).map_or(default, |n| n as u32);
    rule =
        VerdictRule { quorum: read("quorum", quorum, mistakes), down_after: read("downAfter", 2, mistakes), recover_after: read("recoverAfter", 2, mistakes) };
    f.finish(mistakes);
    if placement.count > 0 && rule.quorum > placement.count {
        let message = format!("a quorum of {} of {} probers can never be reached", rule.quorum, placement.count);
        mistakes.add(&format!("{path}.quorum"), place, message, format!("at most placement.count, {}", placement.count));
    }
    rule
}

fn kind(fields: &mut Fields<'_>, target: Option<&str>, mistakes: &mut Mistakes) -> Option<Kind> {
    let given: Vec<(&'static str, At<'_>)> =
        ["http", "tcp", "dns", "icmp", "tls", "udp", "grpc", "websocket"].into_iter().filter_map(|kind| Some((kind, fields.get(kind)?))).collect();
    if let [_, (_, second), ..] = given.as_slice() {
        mistakes.add(&second.path, second.place(), "a probe has one kind", "keep one of http, tcp, dns, icmp, tls, udp, grpc, websocket");
        return None;
    }
    let Some((kind, at)) = given.into_iter().next() else {
        // `target: https://...` says enough.
        if let Some(url) = target.filter(|t| t.starts_with("http://") || t.starts_with("https://")) {
            return Some(Kind::Http(HttpCheck { url: url.to_owned(), ..http::default_http() }));
        }
        mistakes.add(&fields.path, fields.place(), "no kind is given", "want one of http, tcp, dns, icmp, tls, udp, grpc, websocket");
        return None;
    };
    let mut f = at.fields(mistakes)?;
    let kind = match kind {
        "http" => Kind::Http(http::http(&mut f, mistakes)),
        "tcp" => Kind::Tcp(tcp::tcp(&mut f, mistakes)),
        "dns" => Kind::Dns(dns::dns(&mut f, mistakes)),
        "udp" => Kind::Udp(udp::udp(&mut f, mistakes)),
        "grpc" => Kind::Grpc(grpc::grpc(&mut f, mistakes)),
        "websocket" => Kind::Websocket(websocket::websocket(&mut f, mistakes)),
        "tls" => Kind::Tls(tls::watch(&mut f, mistakes)),
        _ => Kind::Icmp(icmp::icmp(&mut f, mistakes)),
    };
    f.finish(mistakes);
    Some(kind)
}

/// A field that defaults to the probe's target.
fn target_or(f: &mut Fields<'_>, key: &'static str, mistakes: &mut Mistakes) -> String {
    f.text(key, mistakes).unwrap_or_else(|| "$(target.address)".to_owned())
}

/// The name of a secret: a file of that name in the host's secrets directory, so no path.
pub(super) fn secret_ref(f: &mut Fields<'_>, key: &'static str, mistakes: &mut Mistakes) -> String {
    f.need(key, mistakes).and_then(|at| at.parsed(mistakes, super::name)).unwrap_or_default()
}

/// `KEY: {secretRef: NAME}`; empty when it is not given.
fn secret_field(f: &mut Fields<'_>, key: &'static str, mistakes: &mut Mistakes) -> String {
    let Some(mut secret) = f.get(key).and_then(|at| at.fields(mistakes)) else { return String::new() };
    let name = secret_ref(&mut secret, "secretRef", mistakes);
    secret.finish(mistakes);
    name
}

/// References to what no earlier step captures.
fn undefined_captures(at: &At<'_>, text: &str, captured: &[String], mistakes: &mut Mistakes) {
    for reference in lower::references(text) {
        let Some(name) = reference.strip_prefix("captures.") else { continue };
        if !captured.iter().any(|known| known == name) {
            let hint = if captured.is_empty() { "nothing is captured before".to_owned() } else { format!("captured before: {}", captured.join(", ")) };
            mistakes.add(&at.path, at.place(), format!("$({reference}) refers to nothing"), hint);
        }
    }
}

/// What keeps a discovered target from being checked.
pub fn target_problem(spec: &ProbeSpec, target: &Target) -> Option<String> {
    let placed = spec.placement.as_ref().map_or(Ok(()), |p| lower::placement(p, target).map(drop));
    lower::check_spec(spec, target).and_then(|s| lowered(&s)).and(placed).err()
}

/// What only shows once a target's references are replaced.
fn lowered(spec: &CheckSpec) -> Result<(), String> {
    match spec.kind.as_ref().and_then(|k| k.kind.as_ref()) {
        Some(Kind::Http(check)) if check.steps.is_empty() => http::url(&check.url).and_then(|url| http::scheme_fits(check, &url)),
        // Its URL may need what an earlier request captures.
        Some(Kind::Http(check)) => {
            let known = check.steps.iter().map(|s| &s.url).filter(|url| !url.contains("$(captures."));
            known.into_iter().try_for_each(|url| http::url(url).and_then(|url| http::scheme_fits(check, &url)))
        }
        Some(Kind::Tcp(check)) => host_port(&check.address),
        Some(Kind::Tls(check)) => host_port(&check.address),
        _ => Ok(()),
    }
}

fn host_port(address: &str) -> Result<(), String> {
    let fine = address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
    if fine { Ok(()) } else { Err(format!("{address:?} is no address (want host:port)")) }
}
