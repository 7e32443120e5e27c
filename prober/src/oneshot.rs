//! `probity probe`: what a person types, as a check.

use probity_proto::v1::check_kind::Kind;
use probity_proto::v1::*;

use crate::typed;

/// Options of one-shot probes.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Further requests' fields: method, headers, body, auth, version... Its URL, TLS and status are filled in.
    pub http: HttpCheck,
    /// Statuses that are good; empty = 2xx and 3xx.
    pub status: Vec<StatusRange>,
    /// What the body must be like.
    pub body: Vec<BodyAssertion>,
    /// What the headers must be like.
    pub headers: Vec<HeaderAssertion>,
    /// How servers are verified, of all kinds that speak TLS.
    pub tls: TlsOptions,
    /// TLS on TCP targets.
    pub tcp_tls: bool,
    /// STARTTLS of TCP and TLS targets.
    pub starttls: String,
    /// What is sent to TCP, UDP and WebSocket targets, and what must come back.
    pub exchange: (String, String),
    /// The run's time-out.
    pub timeout_us: u64,
    /// Further attempts in one run.
    pub retries: u32,
    /// Good is what cannot be reached.
    pub invert: bool,
    /// Limits on phases.
    pub limits: Vec<PhaseLimit>,
    /// Family, source, resolver, given addresses.
    pub net: NetOptions,
}

/// The check of `https://host/path`, `host` (https), `host:port` (tcp), `tcp://host:port`, `tls://host:port`, `udp://host:port`, `dns://server/name?type=AAAA`,
/// `ping://host`, `grpc://host:port/service`, `ws://host/path`; options behind a `?` (of WebSockets a `#`) have the names of resources.
pub fn check(target: &str, options: &Options) -> Result<CheckSpec, String> {
    let (scheme, rest) = match target.split_once("://") {
        Some(found) => found,
        None if target.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) => ("tcp", target),
        None => ("https", target),
    };
    if rest.is_empty() || rest.contains(char::is_whitespace) {
        return Err(format!("{target:?} is no target (want a URL, a host or host:port)"));
    }
    let kind = match scheme {
        "http" | "https" => http(target, &format!("{scheme}://{rest}"), options)?,
        "tcp" => {
            let (send, expect) = &options.exchange;
            Kind::Tcp(TcpCheck {
                address: with_port(target, rest, None)?,
                tls: (options.tcp_tls || !options.starttls.is_empty()).then(|| options.tls.clone()),
                starttls: options.starttls.clone(),
                send: send.clone().into_bytes(),
                expect: expect.clone(),
                ..TcpCheck::default()
            })
        }
        "tls" => Kind::Tls(TlsCheck { address: with_port(target, rest, Some(443))?, options: Some(options.tls.clone()), starttls: options.starttls.clone() }),
        "dns" | "ping" | "icmp" | "trace" | "udp" | "grpc" | "grpcs" | "ws" | "wss" => typed::kind(scheme, rest, options)?,
        other => return Err(format!("unknown scheme {other:?} (known: https, http, tcp, tls, udp, dns, ping, trace, grpc, grpcs, ws, wss)")),
    };
    let has = |fields: &[(&'static str, bool)]| -> Vec<&'static str> { fields.iter().filter(|(_, asked)| *asked).map(|(flag, _)| *flag).collect() };
    let asked = has(&asked_of_http(options));
    if !asked.is_empty() && !matches!(kind, Kind::Http(_)) {
        return Err(format!("{target:?} is no HTTP, so {} cannot hold", asked.join(", ")));
    }
    let asked = has(&[("--send", !options.exchange.0.is_empty()), ("--expect", !options.exchange.1.is_empty())]);
    if !asked.is_empty() && !matches!(kind, Kind::Tcp(_) | Kind::Udp(_) | Kind::Websocket(_)) {
        let hint = if matches!(kind, Kind::Http(_)) { "--data, --expect-body and --expect-match are HTTP's" } else { "tcp, udp and ws targets have it" };
        return Err(format!("{target:?} has no dialogue, so {} cannot hold ({hint})", asked.join(", ")));
    }
    let asked = has(&asked_of_tls(&options.tls));
    if !asked.is_empty() && !speaks_tls(&kind) {
        let hint = if scheme == "tcp" { " (--tls or --starttls)" } else { "" };
        return Err(format!("{target:?} speaks no TLS{hint}, so {} cannot hold", asked.join(", ")));
    }
    Ok(CheckSpec {
        timeout_us: options.timeout_us,
        retries: options.retries,
        kind: Some(CheckKind { kind: Some(kind) }),
        net: Some(options.net.clone()),
        invert: options.invert,
        limits: options.limits.clone(),
        ..CheckSpec::default()
    })
}

/// The flags that want something of an answer, or send something: silently passed over they would seem to hold. Headers go to gRPC and WebSockets too.
fn asked_of_http(options: &Options) -> [(&'static str, bool); 6] {
    let http = &options.http;
    [
        ("--expect-status", !options.status.is_empty()),
        ("--expect-body, --expect-match or --expect-json", !options.body.is_empty()),
        ("--expect-header", !options.headers.is_empty()),
        ("--data, --json or --form", !http.body.is_empty() || !http.json_body.is_empty() || !http.form.is_empty()),
        ("--user", http.auth.is_some()),
        ("--proxy", http.proxy.is_some()),
    ]
}

/// The flags that want something of a certificate, or show one.
fn asked_of_tls(tls: &TlsOptions) -> [(&'static str, bool); 5] {
    [
        ("--cert", !tls.client_certificate_secret_ref.is_empty()),
        ("--key", !tls.client_key_secret_ref.is_empty()),
        ("--min-days", tls.min_days > 0),
        ("--pin", !tls.pins.is_empty()),
        ("--cert-status", tls.require_staple),
    ]
}

fn speaks_tls(kind: &Kind) -> bool {
    match kind {
        // A redirect may lead to TLS.
        Kind::Http(http) => http.url.starts_with("https://") || http.follow_redirects > 0,
        Kind::Tcp(tcp) => tcp.tls.is_some(),
        Kind::Tls(_) => true,
        Kind::Grpc(grpc) => grpc.tls.is_some(),
        Kind::Websocket(websocket) => websocket.url.starts_with("wss://"),
        Kind::Dns(dns) => matches!(dns.transport(), DnsTransport::Tls | DnsTransport::Https),
        Kind::Icmp(_) | Kind::Udp(_) => false,
    }
}

fn http(target: &str, url: &str, options: &Options) -> Result<Kind, String> {
    if url.parse::<http::Uri>().ok().and_then(|u| u.host().map(str::len)).unwrap_or(0) == 0 {
        return Err(format!("{target:?} is no URL"));
    }
    let default = HttpCheck { method: "GET".to_owned(), max_body_bytes: 10 << 20, max_decompressed_bytes: 100 << 20, ..HttpCheck::default() };
    let given = options.http.clone();
    let status = if options.status.is_empty() { vec![StatusRange { from: 200, to: 399 }] } else { options.status.clone() };
    Ok(Kind::Http(HttpCheck {
        url: url.to_owned(),
        method: if given.method.is_empty() { default.method } else { given.method },
        expect: Some(HttpExpect { status, body: options.body.clone(), headers: options.headers.clone(), ..HttpExpect::default() }),
        tls: Some(options.tls.clone()),
        max_body_bytes: default.max_body_bytes,
        max_decompressed_bytes: default.max_decompressed_bytes,
        ..given
    }))
}

fn with_port(target: &str, rest: &str, default: Option<u16>) -> Result<String, String> {
    let port = rest.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.ends_with(':')).and_then(|(_, p)| p.parse::<u16>().ok());
    match (port, default) {
        (Some(_), _) => Ok(rest.to_owned()),
        (None, Some(port)) => Ok(format!("{rest}:{port}")),
        (None, None) => Err(format!("{target:?} has no port (want tcp://host:port)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use probity_proto::lower::describe;

    #[test]
    fn what_people_type() {
        let cases = [
            ("example.com", ("http", "https://example.com")),
            ("example.com:443", ("tcp", "example.com:443")),
            ("http://example.com/x", ("http", "http://example.com/x")),
            ("dns://127.0.0.1:53/shop?type=aaaa", ("dns", "127.0.0.1:53 AAAA shop")),
            ("ping://10.0.0.1", ("icmp", "10.0.0.1")),
            ("tls://example.com", ("tls", "example.com:443")),
            ("tls://mail.example.com:25", ("tls", "mail.example.com:25")),
        ];
        for (target, (kind, text)) in cases {
            let spec = check(target, &Options::default()).expect(target);
            assert_eq!(describe(&spec.kind.expect("a kind")), (kind, text.to_owned()));
        }
        for wrong in ["", "ftp://x", "tcp://host", "dns://server", "https://"] {
            assert!(check(wrong, &Options::default()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_asked_of_a_certificate_is_refused_where_there_is_none() {
        let options =
            Options { timeout_us: 1_000_000, tls: TlsOptions { min_days: 14, pins: vec!["p".to_owned()], ..TlsOptions::default() }, ..Options::default() };
        for target in ["ping://h", "udp://h:1", "http://h/", "ws://h/", "grpc://h:1", "h:1", "dns://1.1.1.1/a"] {
            let refused = check(target, &options).expect_err(target);
            assert!(refused.contains("speaks no TLS") && refused.contains("--min-days, --pin"), "{refused}");
        }
        for target in ["https://h/", "tls://h:1", "wss://h/", "grpcs://h:1", "dns://1.1.1.1/a?transport=tls"] {
            assert!(check(target, &options).is_ok(), "{target}");
        }
    }

    #[test]
    fn what_is_asked_of_another_kind_is_refused() {
        let status = Options { status: vec![StatusRange { from: 200, to: 200 }], ..Options::default() };
        let dialogue = Options { exchange: ("hi".to_owned(), "ho".to_owned()), ..Options::default() };
        let posted = Options { http: HttpCheck { body: "x".to_owned(), ..HttpCheck::default() }, ..Options::default() };
        for (options, flag, good, bad) in [
            (status, "--expect-status", &["https://h/"][..], &["h:1", "tls://h", "dns://s/n", "ping://h", "ws://h/", "grpc://h:1"][..]),
            (dialogue, "--send, --expect cannot hold", &["h:1", "udp://h:1", "ws://h/"], &["https://h/", "tls://h", "ping://h", "trace://h", "grpc://h:1"]),
            (posted, "--data", &["http://h/"], &["h:1", "ws://h/"]),
        ] {
            let options = Options { timeout_us: 1_000_000, ..options };
            for target in good {
                assert!(check(target, &options).is_ok(), "{target} {flag}");
            }
            for target in bad {
                assert!(check(target, &options).expect_err(target).contains(flag), "{target} {flag}");
            }
        }
    }
}
