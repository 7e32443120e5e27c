//! From a probe and one of its targets to what is run: every `$(target.*)` reference replaced.

use std::collections::BTreeMap;

use crate::v1::check_kind::Kind;
use crate::v1::*;

/// The specification of one check. Fails when a reference names nothing the target has.
pub fn check_spec(probe: &ProbeSpec, target: &Target) -> Result<CheckSpec, String> {
    let mut kind = probe.kind.clone().ok_or("a probe without a kind")?;
    let resolve = |text: &mut String| -> Result<(), String> {
        *text = substitute(text, |name| lookup(target, name))?;
        Ok(())
    };
    match kind.kind.as_mut().ok_or("a probe without a kind")? {
        Kind::Http(http) => {
            resolve(&mut http.url)?;
            resolve(&mut http.body)?;
            resolve_json(&mut http.json_body, target)?;
            http.headers.iter_mut().chain(&mut http.form).try_for_each(|h| resolve(&mut h.value))?;
            for step in &mut http.steps {
                resolve(&mut step.url)?;
                resolve(&mut step.body)?;
                resolve_json(&mut step.json_body, target)?;
                step.headers.iter_mut().chain(&mut step.form).try_for_each(|h| resolve(&mut h.value))?;
            }
            http.tls.iter_mut().try_for_each(|tls| resolve(&mut tls.server_name))?;
        }
        Kind::Tcp(tcp) => {
            resolve(&mut tcp.address)?;
            tcp.tls.iter_mut().try_for_each(|tls| resolve(&mut tls.server_name))?;
        }
        Kind::Tls(tls) => {
            resolve(&mut tls.address)?;
            tls.options.iter_mut().try_for_each(|tls| resolve(&mut tls.server_name))?;
        }
        Kind::Dns(dns) => {
            resolve(&mut dns.server)?;
            resolve(&mut dns.name)?;
        }
        Kind::Icmp(icmp) => resolve(&mut icmp.host)?,
        Kind::Udp(udp) => resolve(&mut udp.address)?,
        Kind::Grpc(grpc) => {
            resolve(&mut grpc.address)?;
            resolve(&mut grpc.service)?;
            grpc.metadata.iter_mut().try_for_each(|h| resolve(&mut h.value))?;
            grpc.tls.iter_mut().try_for_each(|tls| resolve(&mut tls.server_name))?;
        }
        Kind::Websocket(websocket) => {
            resolve(&mut websocket.url)?;
            websocket.headers.iter_mut().try_for_each(|h| resolve(&mut h.value))?;
            websocket.tls.iter_mut().try_for_each(|tls| resolve(&mut tls.server_name))?;
        }
    }
    Ok(CheckSpec {
        timeout_us: probe.timeout_us,
        retries: probe.retries,
        kind: Some(kind),
        target_labels: target.labels.clone(),
        net: probe.net.clone(),
        invert: probe.invert,
        attempt_timeout_us: probe.attempt_timeout_us,
        limits: probe.limits.clone(),
    })
}

/// A JSON document's references stand in its strings, and what replaces them is quoted as JSON wants it.
fn resolve_json(text: &mut String, target: &Target) -> Result<(), String> {
    if !text.contains("$(") {
        return Ok(());
    }
    let mut document: serde_json::Value = serde_json::from_str(text).map_err(|e| format!("no JSON: {e}"))?;
    resolve_value(&mut document, target)?;
    *text = document.to_string();
    Ok(())
}

fn resolve_value(value: &mut serde_json::Value, target: &Target) -> Result<(), String> {
    match value {
        serde_json::Value::String(text) => {
            *text = substitute(text, |name| lookup(target, name))?;
            Ok(())
        }
        serde_json::Value::Array(items) => items.iter_mut().try_for_each(|item| resolve_value(item, target)),
        serde_json::Value::Object(fields) => fields.values_mut().try_for_each(|field| resolve_value(field, target)),
        _ => Ok(()),
    }
}

/// Where the check of one target runs.
pub fn placement(placement: &Placement, target: &Target) -> Result<Placement, String> {
    let mut placement = placement.clone();
    for value in placement.selector.iter_mut().flat_map(|s| s.match_labels.values_mut()) {
        *value = substitute(value, |name| lookup(target, name))?;
    }
    Ok(placement)
}

/// The target's labels that a probe refers to, or what else is wrong with its references.
pub fn target_labels(probe: &ProbeSpec) -> Result<Vec<String>, String> {
    let mut target = Target { key: "key".to_owned(), address: "host.test:1".to_owned(), ..Target::default() };
    loop {
        let placed = probe.placement.as_ref().map_or(Ok(()), |p| placement(p, &target).map(drop));
        let Err(message) = check_spec(probe, &target).map(drop).and(placed) else { return Ok(target.labels.into_keys().collect()) };
        // Each turn knows one label more.
        match message.strip_prefix("$(target.labels.").and_then(|m| m.strip_suffix(") refers to nothing")) {
            Some(name) if !target.labels.contains_key(name) => target.labels.insert(name.to_owned(), "value".to_owned()),
            _ => return Err(message),
        };
    }
}

fn lookup(target: &Target, name: &str) -> Option<String> {
    match name {
        "target.address" => Some(target.address.clone()),
        "target.key" => Some(target.key.clone()),
        // Known only while it runs.
        captured if captured.starts_with("captures.") => Some(format!("$({captured})")),
        _ => name.strip_prefix("target.labels.").and_then(|label| target.labels.get(label)).cloned(),
    }
}

/// Replaces every `$(name)`; an unknown name is an error that names it.
pub fn substitute(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("$(") {
        let Some(length) = rest[start..].find(')') else { break };
        let name = &rest[start + 2..start + length];
        out.push_str(&rest[..start]);
        out.push_str(&lookup(name).ok_or_else(|| format!("$({name}) refers to nothing"))?);
        rest = &rest[start + length + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// The names in `$(...)` of a text.
pub fn references(text: &str) -> Vec<String> {
    let mut found = std::cell::RefCell::new(Vec::new());
    let _ = substitute(text, |name| {
        found.borrow_mut().push(name.to_owned());
        Some(String::new())
    });
    found.get_mut().clone()
}

/// Replaces `$(params.x)` by parameters.
pub fn with_parameters(text: &str, parameters: &BTreeMap<String, String>) -> Result<String, String> {
    substitute(text, |name| name.strip_prefix("params.").and_then(|p| parameters.get(p)).cloned())
}

/// What a check is about, for people: its address or URL.
pub fn describe(kind: &CheckKind) -> (&'static str, String) {
    match &kind.kind {
        Some(Kind::Http(http)) => ("http", http.steps.first().map_or(&http.url, |step| &step.url).clone()),
        Some(Kind::Tls(tls)) => ("tls", tls.address.clone()),
        Some(Kind::Tcp(tcp)) => ("tcp", tcp.address.clone()),
        Some(Kind::Dns(dns)) => {
            let server = if dns.server.is_empty() { "resolver" } else { &dns.server };
            ("dns", format!("{server} {} {}", dns.record_type, dns.name))
        }
        Some(Kind::Icmp(icmp)) if icmp.trace.as_ref().is_some_and(|t| t.alone) => ("trace", icmp.host.clone()),
        Some(Kind::Icmp(icmp)) => ("icmp", icmp.host.clone()),
        Some(Kind::Udp(udp)) => ("udp", udp.address.clone()),
        Some(Kind::Grpc(grpc)) if grpc.service.is_empty() => ("grpc", grpc.address.clone()),
        Some(Kind::Grpc(grpc)) => ("grpc", format!("{} {}", grpc.address, grpc.service)),
        Some(Kind::Websocket(websocket)) => ("websocket", websocket.url.clone()),
        None => ("unknown", String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_replaced_or_named() {
        let target = Target { key: "s1".to_owned(), address: "10.0.0.1:80".to_owned(), labels: [("store".to_owned(), "s1".to_owned())].into() };
        let probe = |address: &str| ProbeSpec {
            kind: Some(CheckKind { kind: Some(Kind::Tcp(TcpCheck { address: address.to_owned(), ..TcpCheck::default() })) }),
            ..ProbeSpec::default()
        };
        let spec = check_spec(&probe("$(target.address)"), &target).expect("resolves");
        assert_eq!(describe(&spec.kind.expect("kind")), ("tcp", "10.0.0.1:80".to_owned()));
        assert_eq!(check_spec(&probe("$(target.labels.zone)"), &target), Err("$(target.labels.zone) refers to nothing".to_owned()));
        assert_eq!(references("a $(params.x) $(target.key)"), ["params.x", "target.key"]);
    }
}
