//! `kind: Probe`.

use super::read::{At, Fields, Mistakes};
use crate::v1::check_kind::Kind;
use crate::v1::*;
use crate::{lower, units};

const SECOND: u64 = 1_000_000;
const INTERVAL_MIN_US: u64 = 100_000;
const INTERVAL_MAX_US: u64 = 24 * 3_600 * SECOND;

pub(super) fn read(mut fields: Fields<'_>, mistakes: &mut Mistakes) -> Option<ProbeSpec> {
    let interval_us = duration_in(&mut fields, "interval", INTERVAL_MIN_US, INTERVAL_MAX_US, mistakes).unwrap_or(30 * SECOND);
    let timeout_us = timeout(&mut fields, interval_us, mistakes);
    let retries = fields.int("retries", 0..=10, mistakes).unwrap_or(0) as u32;
    fields.not_yet(&["invert", "source", "family", "resolver"], mistakes);
    let default_target = fields.text("target", mistakes);
    let targets_at = fields.get("targets");
    let placement = placement(&mut fields, mistakes);
    let kind = kind(&mut fields, default_target.as_deref(), mistakes);
    let verdict = verdict(&mut fields, &placement, mistakes);
    let targets = match (default_target, targets_at) {
        (Some(_), Some(at)) => {
            mistakes.add(&at.path, at.place(), "both target and targets are given", "keep one");
            Vec::new()
        }
        (Some(address), None) => vec![Target { address, ..Target::default() }],
        (None, Some(at)) => targets(&at, mistakes),
        (None, None) => vec![Target::default()],
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
    };
    for (i, target) in spec.targets.iter().enumerate() {
        let placed = spec.placement.as_ref().map_or(Ok(()), |p| lower::placement(p, target).map(drop));
        if let Err(message) = lower::check_spec(&spec, target).map(drop).and(placed) {
            mistakes.add(&format!("{path}.targets[{i}]"), place, message, "a target has address, key and labels");
        }
    }
    Some(spec)
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

fn targets(at: &At<'_>, mistakes: &mut Mistakes) -> Vec<Target> {
    let Some(mut fields) = at.fields(mistakes) else { return Vec::new() };
    fields.not_yet(&["httpSD", "fileSD", "dnsSRV", "kubernetes"], mistakes);
    let mut targets: Vec<Target> = Vec::new();
    for item in fields.need("static", mistakes).map(|at| at.items(mistakes)).unwrap_or_default() {
        let Some(mut f) = item.fields(mistakes) else { continue };
        let address = f.need_text("address", mistakes);
        let key = f.text("key", mistakes).unwrap_or_else(|| address.clone());
        let labels = f.map("labels", mistakes);
        f.finish(mistakes);
        if targets.iter().any(|t| t.key == key) {
            mistakes.add(&item.path, item.place(), format!("target key {key:?} is given twice"), "each target needs its own key");
        }
        targets.push(Target { key, address, labels });
    }
    fields.finish(mistakes);
    targets
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
    fields.not_yet(&["grpc", "websocket", "tls", "udp"], mistakes);
    let given: Vec<(&'static str, At<'_>)> = ["http", "tcp", "dns", "icmp"].into_iter().filter_map(|kind| Some((kind, fields.get(kind)?))).collect();
    if let [_, (_, second), ..] = given.as_slice() {
        mistakes.add(&second.path, second.place(), "a probe has one kind", "keep one of http, tcp, dns, icmp");
        return None;
    }
    let Some((kind, at)) = given.into_iter().next() else {
        // `target: https://...` says enough.
        if let Some(url) = target.filter(|t| t.starts_with("http://") || t.starts_with("https://")) {
            return Some(Kind::Http(HttpCheck { url: url.to_owned(), ..default_http() }));
        }
        mistakes.add(&fields.path, fields.place(), "no kind is given", "want one of http, tcp, dns, icmp");
        return None;
    };
    let mut f = at.fields(mistakes)?;
    let kind = match kind {
        "http" => Kind::Http(http(&mut f, mistakes)),
        "tcp" => Kind::Tcp(tcp(&mut f, mistakes)),
        "dns" => Kind::Dns(dns(&mut f, mistakes)),
        _ => Kind::Icmp(icmp(&mut f, mistakes)),
    };
    f.finish(mistakes);
    Some(kind)
}

/// A field that defaults to the probe's target.
fn target_or(f: &mut Fields<'_>, key: &'static str, mistakes: &mut Mistakes) -> String {
    f.text(key, mistakes).unwrap_or_else(|| "$(target.address)".to_owned())
}

fn default_http() -> HttpCheck {
    HttpCheck {
        method: "GET".to_owned(),
        expect: Some(HttpExpect { status: vec![StatusRange { from: 200, to: 299 }], ..HttpExpect::default() }),
        max_body_bytes: 1 << 20,
        ..HttpCheck::default()
    }
}

fn http(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> HttpCheck {
    f.not_yet(&["version", "proxy", "compression", "requests", "reuse", "form", "json", "bodyFile"], mistakes);
    let default = default_http();
    let method = f.get("method").and_then(|at| {
        at.parsed(mistakes, |m| {
            let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
            if known.contains(&m) { Ok(m.to_owned()) } else { Err(format!("{m:?} is no method (want {})", known.join(", "))) }
        })
    });
    let headers = f.map("headers", mistakes).into_iter().map(|(name, value)| Header { name, value }).collect();
    let expect = f.get("expect").and_then(|at| at.fields(mistakes)).map(|e| http_expect(e, mistakes));
    let max_body = f.get("maxBodyBytes").and_then(|at| at.parsed(mistakes, units::parse_bytes));
    HttpCheck {
        url: target_or(f, "url", mistakes),
        method: method.unwrap_or(default.method),
        headers,
        body: f.text("body", mistakes).unwrap_or_default(),
        auth: auth(f, mistakes),
        expect: expect.or(default.expect),
        tls: tls(f, mistakes),
        follow_redirects: f.int("followRedirects", 0..=20, mistakes).unwrap_or(0) as u32,
        max_body_bytes: max_body.unwrap_or(default.max_body_bytes),
    }
}

fn auth(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<HttpAuth> {
    let mut auth = f.get("auth").and_then(|at| at.fields(mistakes))?;
    auth.not_yet(&["oauth2"], mistakes);
    let bearer = auth.get("bearer").and_then(|at| at.fields(mistakes)).map(|mut b| {
        let secret = secret_ref(&mut b, "secretRef", mistakes);
        b.finish(mistakes);
        http_auth::Auth::BearerSecretRef(secret)
    });
    let basic = auth.get("basic").and_then(|at| at.fields(mistakes)).map(|mut b| {
        let username = b.need_text("username", mistakes);
        let mut password = b.need("password", mistakes).and_then(|at| at.fields(mistakes));
        let password_secret_ref = password.as_mut().map(|p| secret_ref(p, "secretRef", mistakes)).unwrap_or_default();
        if let Some(password) = password {
            password.finish(mistakes);
        }
        b.finish(mistakes);
        http_auth::Auth::Basic(BasicAuth { username, password_secret_ref })
    });
    let (path, place) = (auth.path.clone(), auth.place());
    auth.finish(mistakes);
    if bearer.is_some() == basic.is_some() {
        mistakes.add(&path, place, "one way to authenticate is wanted", "bearer or basic");
    }
    Some(HttpAuth { auth: bearer.or(basic) })
}

/// The name of a secret: a file of that name in the host's secrets directory, so no path.
pub(super) fn secret_ref(f: &mut Fields<'_>, key: &'static str, mistakes: &mut Mistakes) -> String {
    f.need(key, mistakes).and_then(|at| at.parsed(mistakes, super::name)).unwrap_or_default()
}

fn tls(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<TlsOptions> {
    let mut tls = f.get("tls").and_then(|at| at.fields(mistakes))?;
    tls.not_yet(&["clientCertificate", "pin", "minDays"], mistakes);
    let options = TlsOptions {
        server_name: tls.text("serverName", mistakes).unwrap_or_default(),
        skip_verify: tls.flag("skipVerify", mistakes).unwrap_or(false),
        ca_pem: tls.text("ca", mistakes).unwrap_or_default(),
        min_version: tls.choice("minVersion", &[("1.2", "1.2"), ("1.3", "1.3")], mistakes).unwrap_or_default().to_owned(),
    };
    tls.finish(mistakes);
    Some(options)
}

fn http_expect(mut f: Fields<'_>, mistakes: &mut Mistakes) -> HttpExpect {
    let statuses = f.get("status").map(|at| at.items(mistakes)).unwrap_or_default();
    let mut status: Vec<StatusRange> = statuses.iter().filter_map(|at| at.parsed(mistakes, status_range)).collect();
    if status.is_empty() {
        status.push(StatusRange { from: 200, to: 299 });
    }
    let bodies = f.get("body").map(|at| at.items(mistakes)).unwrap_or_default();
    let body = bodies.iter().filter_map(|at| body_assertion(at, mistakes)).collect();
    let headers = f.get("headers").map(|at| at.items(mistakes)).unwrap_or_default();
    let headers = headers.iter().filter_map(|at| header_assertion(at, mistakes)).collect();
    f.not_yet(&["maxDuration", "version", "size"], mistakes);
    f.finish(mistakes);
    HttpExpect { status, body, headers }
}

/// A range of HTTP statuses: `200`, `2xx`, `200-204`.
pub fn status_range(text: &str) -> Result<StatusRange, String> {
    let wrong = || format!("{text:?} is no status (want for example 200, 2xx or 200-299)");
    let number = |t: &str| t.parse::<u32>().ok().filter(|n| (100..=599).contains(n)).ok_or_else(wrong);
    if let Some(class) = text.strip_suffix("xx") {
        let from = number(&format!("{class}00"))?;
        return Ok(StatusRange { from, to: from + 99 });
    }
    match text.split_once('-') {
        Some((from, to)) if number(from)? <= number(to)? => Ok(StatusRange { from: number(from)?, to: number(to)? }),
        Some(_) => Err(wrong()),
        None => Ok(StatusRange { from: number(text)?, to: number(text)? }),
    }
}

fn regex(text: &str) -> Result<String, String> {
    regex::RegexBuilder::new(text).size_limit(1 << 20).build().map(|_| text.to_owned()).map_err(|e| {
        let line = e.to_string().lines().last().unwrap_or_default().trim().to_owned();
        format!("{text:?} is no regular expression: {line}")
    })
}

fn body_assertion(at: &At<'_>, mistakes: &mut Mistakes) -> Option<BodyAssertion> {
    use body_assertion::Assertion;
    let mut f = at.fields(mistakes)?;
    f.not_yet(&["schema", "hash"], mistakes);
    let mut found = Vec::new();
    found.extend(f.text("contains", mistakes).map(Assertion::Contains));
    found.extend(f.text("notContains", mistakes).map(Assertion::NotContains));
    found.extend(f.get("matches").and_then(|at| at.parsed(mistakes, regex)).map(Assertion::Matches));
    found.extend(f.get("notMatches").and_then(|at| at.parsed(mistakes, regex)).map(Assertion::NotMatches));
    if let Some(path) = f.text("jsonPath", mistakes) {
        let equals_json = f.need("equals", mistakes).map(|at| at.node.json().to_string()).unwrap_or_default();
        if !path.starts_with('$') {
            mistakes.add(&format!("{}.jsonPath", at.path), at.place(), format!("{path:?} is no JSONPath"), "want for example $.status");
        }
        found.push(Assertion::JsonPath(JsonPathAssertion { path, equals_json }));
    }
    f.finish(mistakes);
    one(found, at, "contains, notContains, matches, notMatches, jsonPath", mistakes).map(|assertion| BodyAssertion { assertion: Some(assertion) })
}

fn header_assertion(at: &At<'_>, mistakes: &mut Mistakes) -> Option<HeaderAssertion> {
    use header_assertion::Assertion;
    let mut f = at.fields(mistakes)?;
    let name = f.need_text("name", mistakes);
    let mut found = Vec::new();
    found.extend(f.text("equals", mistakes).map(Assertion::Equals));
    found.extend(f.get("matches").and_then(|at| at.parsed(mistakes, regex)).map(Assertion::Matches));
    found.extend(f.flag("present", mistakes).filter(|p| *p).map(Assertion::Present));
    found.extend(f.flag("absent", mistakes).filter(|p| *p).map(Assertion::Absent));
    f.finish(mistakes);
    one(found, at, "equals, matches, present: true, absent: true", mistakes).map(|assertion| HeaderAssertion { name, assertion: Some(assertion) })
}

fn one<T>(mut found: Vec<T>, at: &At<'_>, of: &str, mistakes: &mut Mistakes) -> Option<T> {
    if found.len() != 1 {
        mistakes.add(&at.path, at.place(), "one assertion is wanted", format!("one of {of}"));
        return None;
    }
    found.pop()
}

fn tcp(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> TcpCheck {
    f.not_yet(&["dialogue", "starttls"], mistakes);
    TcpCheck {
        address: target_or(f, "address", mistakes),
        tls: tls(f, mistakes),
        send: f.text("send", mistakes).unwrap_or_default().into_bytes(),
        expect: f.get("expect").and_then(|at| at.parsed(mistakes, regex)).unwrap_or_default(),
    }
}

fn dns(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> DnsCheck {
    let types = ["A", "AAAA", "CAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"];
    let record_type = f.get("type").and_then(|at| {
        at.parsed(mistakes, |t| if types.contains(&t) { Ok(t.to_owned()) } else { Err(format!("{t:?} is no record type (want {})", types.join(", "))) })
    });
    let tcp = f.choice("transport", &[("udp", false), ("tcp", true)], mistakes).unwrap_or(false);
    let expect = f.get("expect").and_then(|at| at.fields(mistakes)).map(|mut e| {
        let mut list = |key, mistakes: &mut Mistakes| -> Vec<String> {
            e.get(key).map(|at| at.items(mistakes)).unwrap_or_default().iter().filter_map(|at| at.text(mistakes)).collect()
        };
        let expect = DnsExpect { rcodes: list("rcodes", mistakes), answers: list("answers", mistakes), min_answers: 0 };
        let min_answers = e.int("minAnswers", 0..=1_000, mistakes).unwrap_or(0) as u32;
        e.finish(mistakes);
        DnsExpect { min_answers, ..expect }
    });
    DnsCheck {
        server: target_or(f, "server", mistakes),
        name: f.need_text("name", mistakes),
        record_type: record_type.unwrap_or_else(|| "A".to_owned()),
        tcp,
        expect,
    }
}

fn icmp(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> IcmpCheck {
    IcmpCheck {
        host: target_or(f, "host", mistakes),
        count: f.int("count", 1..=100, mistakes).unwrap_or(1) as u32,
        packet_interval_us: f.duration("packetInterval", mistakes).unwrap_or(200_000),
        payload_bytes: f.int("payloadSize", 16..=9_000, mistakes).unwrap_or(56) as u32,
        ttl: f.int("ttl", 1..=255, mistakes).unwrap_or(64) as u32,
        max_loss_ppm: f.get("maxLoss").and_then(|at| at.parsed(mistakes, units::parse_percent_ppm)).unwrap_or(0),
    }
}
