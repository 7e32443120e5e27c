//! `probity probe`: what a person types, as a check.

use probity_proto::v1::check_kind::Kind;
use probity_proto::v1::*;

use crate::typed;

/// Options of one-shot probes.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// HTTP method; empty = GET.
    pub method: String,
    /// Headers to send.
    pub headers: Vec<(String, String)>,
    /// Statuses that are good; empty = 2xx and 3xx.
    pub status: Vec<StatusRange>,
    /// Text that the body must contain.
    pub body: Option<String>,
    /// Certificates are not verified.
    pub insecure: bool,
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

/// The check of `https://host/path`, `host` (https), `host:port` (tcp), `tcp://host:port`, `udp://host:port`, `dns://server/name?type=AAAA`,
/// `ping://host`, `grpc://host:port/service`, `ws://host/path`; options behind a `?` (of WebSockets a `#`) have the names of resources.
pub fn check(target: &str, options: &Options) -> Result<CheckSpec, String> {
    let tls = TlsOptions { skip_verify: options.insecure, ..TlsOptions::default() };
    let (scheme, rest) = match target.split_once("://") {
        Some(found) => found,
        None if target.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) => ("tcp", target),
        None => ("https", target),
    };
    if rest.is_empty() || rest.contains(char::is_whitespace) {
        return Err(format!("{target:?} is no target (want a URL, a host or host:port)"));
    }
    let kind = match scheme {
        "http" | "https" => {
            let url = format!("{scheme}://{rest}");
            if url.parse::<http::Uri>().ok().and_then(|u| u.host().map(str::len)).unwrap_or(0) == 0 {
                return Err(format!("{target:?} is no URL"));
            }
            let status = if options.status.is_empty() { vec![StatusRange { from: 200, to: 399 }] } else { options.status.clone() };
            let body = options.body.iter().map(|text| BodyAssertion { assertion: Some(body_assertion::Assertion::Contains(text.clone())) }).collect();
            Kind::Http(HttpCheck {
                url,
                method: if options.method.is_empty() { "GET".to_owned() } else { options.method.clone() },
                headers: options.headers.iter().map(|(name, value)| Header { name: name.clone(), value: value.clone() }).collect(),
                expect: Some(HttpExpect { status, body, headers: Vec::new() }),
                tls: Some(tls),
                max_body_bytes: 10 << 20,
                ..HttpCheck::default()
            })
        }
        "tcp" => {
            if rest.rsplit_once(':').and_then(|(_, p)| p.parse::<u16>().ok()).is_none() {
                return Err(format!("{target:?} has no port (want tcp://host:port)"));
            }
            Kind::Tcp(TcpCheck { address: rest.to_owned(), ..TcpCheck::default() })
        }
        "dns" | "ping" | "icmp" | "trace" | "udp" | "grpc" | "grpcs" | "ws" | "wss" => typed::kind(scheme, rest, options)?,
        other => return Err(format!("unknown scheme {other:?} (known: https, http, tcp, udp, dns, ping, trace, grpc, grpcs, ws, wss)")),
    };
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
        ];
        for (target, (kind, text)) in cases {
            let spec = check(target, &Options::default()).expect(target);
            assert_eq!(describe(&spec.kind.expect("a kind")), (kind, text.to_owned()));
        }
        for wrong in ["", "ftp://x", "tcp://host", "dns://server", "https://"] {
            assert!(check(wrong, &Options::default()).is_err(), "{wrong}");
        }
    }
}
