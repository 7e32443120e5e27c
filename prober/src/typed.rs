//! One-shot targets whose options stand behind a `?`, by the names that a resource has: `ping://host?count=10&maxRtt.p95=20ms`.
//! They are read as a resource is, so every option, bound and message is the same.

use probity_proto::resources::{SourceFile, parse};
use probity_proto::v1::check_kind::Kind;
use probity_proto::v1::resource::Spec;
use probity_proto::v1::{DnsTransport, IcmpCheck, TlsOptions};
use serde_json::{Map, Value, json};

use crate::oneshot::Options;

/// The kind of a target with one of these schemes.
pub(crate) fn kind(scheme: &str, rest: &str, options: &Options) -> Result<Kind, String> {
    // The query of a WebSocket's URL is its server's.
    let mark = if scheme.starts_with("ws") { '#' } else { '?' };
    let (target, query) = rest.split_once(mark).unwrap_or((rest, ""));
    let mut spec = Map::new();
    let headers = || -> Value { options.http.headers.iter().map(|h| (h.name.clone(), json!(h.value))).collect::<Map<_, _>>().into() };
    let (word, target) = match scheme {
        "ping" | "icmp" => ("icmp", target.to_owned()),
        "trace" => return trace(target, query, options),
        "udp" => ("udp", target.to_owned()),
        "dns" => {
            let (server, name) =
                target.split_once('/').ok_or_else(|| format!("\"dns://{rest}\" asks nothing (want dns://server/name?type=A, or dns:///name)"))?;
            set(&mut spec, "name", json!(name));
            set(&mut spec, "server", json!(if server.is_empty() { "system" } else { server }));
            ("dns", server.to_owned())
        }
        "grpc" | "grpcs" => {
            let (address, service) = target.split_once('/').unwrap_or((target, ""));
            set(&mut spec, "service", json!(service));
            if scheme == "grpcs" {
                set(&mut spec, "tls", json!({}));
            }
            if !options.http.headers.is_empty() {
                set(&mut spec, "metadata", headers());
            }
            ("grpc", address.to_owned())
        }
        _ => {
            if !options.http.headers.is_empty() {
                set(&mut spec, "headers", headers());
            }
            ("websocket", format!("{scheme}://{target}"))
        }
    };
    if target.is_empty() && word != "dns" {
        return Err(format!("\"{scheme}://{rest}\" has no target"));
    }
    if WITH_TEXTS.contains(&word) {
        for (key, text) in [("send", &options.exchange.0), ("expect", &options.exchange.1)] {
            if !text.is_empty() {
                set(&mut spec, key, json!(text));
            }
        }
    }
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, if pair == "dnssec" { "{}" } else { "true" }));
        set(&mut spec, key, json!(decoded(value)));
    }
    let mut kind = read(word, &target, &spec, options.timeout_us)?;
    if let Some(tls) = tls_of(&mut kind, scheme) {
        lay_over(tls, &options.tls);
    }
    Ok(kind)
}

/// The TLS options of a kind that speaks TLS.
fn tls_of<'k>(kind: &'k mut Kind, scheme: &str) -> Option<&'k mut TlsOptions> {
    match kind {
        Kind::Grpc(grpc) => grpc.tls.as_mut(),
        Kind::Websocket(websocket) if scheme == "wss" => Some(websocket.tls.get_or_insert_default()),
        Kind::Dns(dns) if matches!(dns.transport(), DnsTransport::Tls | DnsTransport::Https) => Some(dns.tls.get_or_insert_default()),
        _ => None,
    }
}

/// What was given for all targets, where this one does not say otherwise.
fn lay_over(own: &mut TlsOptions, given: &TlsOptions) {
    own.skip_verify |= given.skip_verify;
    own.require_staple |= given.require_staple;
    for (own, given) in [
        (&mut own.server_name, &given.server_name),
        (&mut own.ca_pem, &given.ca_pem),
        (&mut own.min_version, &given.min_version),
        (&mut own.max_version, &given.max_version),
        (&mut own.client_certificate_secret_ref, &given.client_certificate_secret_ref),
        (&mut own.client_key_secret_ref, &given.client_key_secret_ref),
    ] {
        if own.is_empty() {
            own.clone_from(given);
        }
    }
    if own.min_days == 0 {
        own.min_days = given.min_days;
    }
    if own.pins.is_empty() {
        own.pins.clone_from(&given.pins);
    }
}

/// The options of a trace are those below `icmp.trace`.
fn trace(target: &str, query: &str, options: &Options) -> Result<Kind, String> {
    let mut spec = Map::new();
    set(&mut spec, "trace", json!({}));
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, "true"));
        set(&mut spec, &format!("trace.{key}"), json!(decoded(value)));
    }
    let mut kind = read("icmp", target, &spec, options.timeout_us)?;
    if let Kind::Icmp(IcmpCheck { trace: Some(trace), .. }) = &mut kind {
        trace.alone = true;
    }
    Ok(kind)
}

/// Puts a value at a dotted path.
fn set(map: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            map.insert(path.to_owned(), value);
        }
        Some((first, rest)) => {
            let below = map.entry(first).or_insert_with(|| json!({}));
            if !below.is_object() {
                *below = json!({});
            }
            if let Some(below) = below.as_object_mut() {
                set(below, rest, value);
            }
        }
    }
}

/// `%20` and the like (RFC 3986, section 2.1); anything else stands for itself.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|b| (*b as char).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// These are never a list or mapping of these kinds, whatever they begin with: `{"id": 7}`, `[0-9]+`. Other kinds have a mapping `expect`.
const TEXTS: [&str; 2] = ["send", "expect"];
const WITH_TEXTS: [&str; 2] = ["udp", "websocket"];

/// A value as YAML: a list or mapping as it is written, text quoted.
fn yaml(value: &Value, texts: &[&str]) -> String {
    match value {
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| {
                let text = value.is_string() && texts.contains(&key.as_str());
                format!("{}: {}", json!(key), if text { value.to_string() } else { yaml(value, &[]) })
            };
            let entries: Vec<String> = map.iter().map(entry).collect();
            format!("{{{}}}", entries.join(", "))
        }
        Value::String(text) if text.starts_with(['[', '{']) => text.clone(),
        other => other.to_string(),
    }
}

fn read(word: &str, target: &str, spec: &Map<String, Value>, timeout_us: u64) -> Result<Kind, String> {
    let timeout = if timeout_us == 0 { String::new() } else { format!(", timeout: {timeout_us}us") };
    let text = format!(
        "apiVersion: probity/v1\nkind: Probe\nmetadata: {{name: probe}}\nspec: {{interval: 24h{timeout}, target: {}, {word}: {}}}\n",
        json!(target),
        yaml(&Value::Object(spec.clone()), if WITH_TEXTS.contains(&word) { &TEXTS } else { &[] })
    );
    let parsed = parse(&[SourceFile { name: String::new(), text }], "default");
    if !parsed.problems.is_empty() {
        let problems: Vec<String> = parsed
            .problems
            .iter()
            .map(|p| {
                let path = p.path.strip_prefix("spec.").unwrap_or(&p.path);
                let hint = if p.hint.is_empty() { String::new() } else { format!(" ({})", p.hint) };
                format!("{path}: {}{hint}", p.message)
            })
            .collect();
        return Err(problems.join("; "));
    }
    let probe = parsed.resources.into_iter().find_map(|r| if let Some(Spec::Probe(probe)) = r.resource.spec { Some(probe) } else { None });
    let probe = probe.ok_or("no probe")?;
    let target = probe.targets.first().cloned().unwrap_or_default();
    probity_proto::lower::check_spec(&probe, &target)?.kind.and_then(|k| k.kind).ok_or_else(|| "no kind".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(scheme: &str, rest: &str) -> Result<Kind, String> {
        kind(scheme, rest, &Options { timeout_us: 5_000_000, tls: TlsOptions { skip_verify: true, ..TlsOptions::default() }, ..Options::default() })
    }

    #[test]
    fn options_have_the_names_of_resources() {
        let Ok(Kind::Icmp(icmp)) = typed("ping", "10.0.0.1?count=10&packetInterval=100ms&maxRtt.p95=20ms&dontFragment") else { panic!("icmp") };
        assert_eq!((icmp.host.as_str(), icmp.count, icmp.max_rtt_p95_us, icmp.dont_fragment), ("10.0.0.1", 10, 20_000, true));
        let Ok(Kind::Dns(dns)) = typed("dns", "1.1.1.1/example.com?type=aaaa&transport=tls&expect.rcodes=[NOERROR,%20NXDOMAIN]") else { panic!("dns") };
        assert_eq!((dns.server.as_str(), dns.record_type.as_str(), dns.transport()), ("1.1.1.1", "AAAA", DnsTransport::Tls));
        assert_eq!(dns.expect.map(|e| e.rcodes), Some(vec!["NOERROR".to_owned(), "NXDOMAIN".to_owned()]));
        assert!(dns.tls.is_some_and(|t| t.skip_verify));
        let Ok(Kind::Dns(dns)) = typed("dns", "1.1.1.1/example.com?expect={rcodes: [NXDOMAIN]}") else { panic!("dns") };
        assert_eq!(dns.expect.map(|e| e.rcodes), Some(vec!["NXDOMAIN".to_owned()]));
        let Ok(Kind::Dns(dns)) = typed("dns", "1.1.1.1/example.com?dnssec") else { panic!("dns") };
        assert!(dns.validate.is_some(), "{dns:?}");
        let Ok(Kind::Dns(dns)) = typed("dns", "/example.com") else { panic!("dns") };
        assert_eq!((dns.server.as_str(), dns.name.as_str()), ("", "example.com"));
        let Ok(Kind::Grpc(grpc)) = typed("grpcs", "shop.example:443/shop.Cart") else { panic!("grpc") };
        assert_eq!((grpc.address.as_str(), grpc.service.as_str(), grpc.tls.is_some()), ("shop.example:443", "shop.Cart", true));
        let Ok(Kind::Websocket(ws)) = typed("wss", "shop.example/chat?room=1#send=hi&expect=^HI$") else { panic!("websocket") };
        assert_eq!((ws.url.as_str(), ws.dialogue.len()), ("wss://shop.example/chat?room=1", 2));
        let Ok(Kind::Udp(udp)) = typed("udp", "127.0.0.1:9?sendHex=00ff") else { panic!("udp") };
        assert_eq!(udp.send, [0, 255]);
    }

    #[test]
    fn headers_and_dialogues_reach_every_kind_that_has_them() {
        let header = |name: &str, value: &str| probity_proto::v1::Header { name: name.to_owned(), value: value.to_owned() };
        let http = probity_proto::v1::HttpCheck { headers: vec![header("X-Store", "7")], ..probity_proto::v1::HttpCheck::default() };
        let options = Options { timeout_us: 5_000_000, http, exchange: ("{\"id\": 7}".to_owned(), "[0-9]+".to_owned()), ..Options::default() };
        let Ok(Kind::Websocket(ws)) = kind("ws", "h/", &options) else { panic!("websocket") };
        assert_eq!((ws.headers.len(), ws.dialogue.len()), (1, 2), "{ws:?}");
        let Ok(Kind::Udp(udp)) = kind("udp", "h:1?expect=\\{", &options) else { panic!("udp") };
        assert_eq!((udp.send.as_slice(), udp.expect.as_str()), (b"{\"id\": 7}".as_slice(), "\\{"));
        let Ok(Kind::Grpc(grpc)) = kind("grpc", "h:1", &options) else { panic!("grpc") };
        assert_eq!(grpc.metadata.len(), 1, "{grpc:?}");
    }

    #[test]
    fn what_is_given_for_all_reaches_every_kind_that_speaks_tls() {
        let tls = TlsOptions { min_days: 14, pins: vec!["p".to_owned()], client_certificate_secret_ref: "cert".to_owned(), ..TlsOptions::default() };
        let options = Options { timeout_us: 5_000_000, tls, ..Options::default() };
        for (scheme, rest) in [("grpcs", "h:1"), ("wss", "h/"), ("dns", "1.1.1.1/a?transport=tls"), ("dns", "1.1.1.1/a?transport=https&tls.minDays=3")] {
            let mut kind = kind(scheme, rest, &options).expect(rest);
            let tls = tls_of(&mut kind, scheme).expect("TLS");
            let days = if rest.contains("minDays") { 3 } else { 14 };
            assert_eq!((tls.min_days, tls.pins.len(), tls.client_certificate_secret_ref.as_str()), (days, 1, "cert"), "{scheme}://{rest}");
        }
    }

    #[test]
    fn mistakes_are_those_of_resources() {
        for (scheme, rest, message) in [
            ("ping", "h?count=0", r#"icmp.count: "0" is out of range (want a whole number from 1 to 1000)"#),
            ("ping", "h?cuont=1", r#"icmp.cuont: unknown key "cuont" (did you mean "count"?)"#),
            (
                "ping",
                "h?count=100&packetInterval=1s",
                "icmp.packetInterval: the last of 100 packets is sent after 1m39s, and the run's time-out is 5s (send fewer, or faster, or set a longer timeout)",
            ),
            ("dns", "server", r#""dns://server" asks nothing (want dns://server/name?type=A, or dns:///name)"#),
            ("dns", "s/n?type=NOPE", r#"dns.type: "NOPE" is no record type (want a name such as A, AAAA, TXT, HTTPS, or a number)"#),
            ("udp", "h:1?sendHex=0", r#"udp.sendHex: "0" is not hexadecimal (want pairs of 0-9, a-f, for example 00ff)"#),
            ("ping", "?count=1", r#""ping://?count=1" has no target"#),
        ] {
            assert_eq!(typed(scheme, rest).map(|_| ()), Err(message.to_owned()), "{scheme}://{rest}");
        }
    }

    #[test]
    fn percent_signs() {
        for (text, decoded) in [("a%20b", "a b"), ("%", "%"), ("%2", "%2"), ("%zz", "%zz"), ("%C3%A9", "é"), ("100%25", "100%")] {
            assert_eq!(super::decoded(text), decoded);
        }
    }
}
