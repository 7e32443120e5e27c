//! What probes of all kinds share on their way to the target: family, source, resolver, given addresses.

use std::net::{IpAddr, SocketAddr};

use super::super::read::{At, Fields, Mistakes};
use super::duration_in;
use crate::v1::*;

/// Servers of one probe's resolver.
const SERVERS_MAX: usize = 8;
/// Names whose address one probe may give.
const HOSTS_MAX: usize = 100;

/// The words of `family`.
pub const FAMILIES: &[(&str, AddressFamily)] = &[
    ("any", AddressFamily::Any),
    ("4", AddressFamily::V4),
    ("6", AddressFamily::V6),
    ("prefer4", AddressFamily::PreferV4),
    ("prefer6", AddressFamily::PreferV6),
    ("both", AddressFamily::Both),
];

pub(super) fn net(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<NetOptions> {
    let mut net = NetOptions {
        family: fields.choice("family", FAMILIES, mistakes).unwrap_or_default() as i32,
        // RFC 8305, section 8: not below 10 ms, not above 2 s.
        attempt_delay_us: duration_in(fields, "attemptDelay", 10_000, 2_000_000, mistakes).unwrap_or(0),
        ..NetOptions::default()
    };
    if let Some(mut source) = fields.get("source").and_then(|at| at.fields(mistakes)) {
        source_of(&mut source, &mut net, mistakes);
        source.finish(mistakes);
    }
    if let Some(mut resolver) = fields.get("resolver").and_then(|at| at.fields(mistakes)) {
        if let Some(at) = resolver.need("servers", mistakes) {
            let items = at.items(mistakes);
            if items.is_empty() || items.len() > SERVERS_MAX {
                mistakes.add(&at.path, at.place(), format!("{} servers are given", items.len()), format!("want 1 to {SERVERS_MAX}"));
            }
            net.resolver_servers = items.iter().filter_map(|at| at.parsed(mistakes, resolver_server)).collect();
        }
        net.resolver_ca_pem = resolver.get("ca").and_then(|at| at.parsed(mistakes, super::tls::pem)).unwrap_or_default();
        resolver.finish(mistakes);
    }
    if let Some(at) = fields.get("hosts") {
        net.hosts = hosts(fields, &at, mistakes);
    }
    (net != NetOptions::default()).then_some(net)
}

fn source_of(source: &mut Fields<'_>, net: &mut NetOptions, mistakes: &mut Mistakes) {
    let address = source.get("address");
    let ip = address.as_ref().and_then(|at| at.parsed(mistakes, ip));
    if let (Some(at), Some(ip)) = (&address, ip) {
        let wrong = match net.family() {
            AddressFamily::V4 => ip.is_ipv6(),
            AddressFamily::V6 => ip.is_ipv4(),
            AddressFamily::Both => true,
            _ => false,
        };
        if wrong {
            mistakes.add(&at.path, at.place(), format!("{ip} cannot be the source for this family"), "leave family out: it follows the source");
        }
        net.source_address = ip.to_string();
    }
    net.source_interface = source.get("interface").and_then(|at| at.parsed(mistakes, interface)).unwrap_or_default();
}

fn hosts(fields: &mut Fields<'_>, at: &At<'_>, mistakes: &mut Mistakes) -> std::collections::BTreeMap<String, String> {
    let given = fields.map("hosts", mistakes);
    if given.len() > HOSTS_MAX {
        mistakes.add(&at.path, at.place(), format!("{} names are given", given.len()), format!("want at most {HOSTS_MAX}"));
    }
    for (name, address) in &given {
        if let Err(message) = ip(address) {
            mistakes.add(&format!("{}.{name}", at.path), at.place(), message, "");
        }
    }
    given.into_iter().map(|(name, address)| (name.to_ascii_lowercase(), address)).collect()
}

fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is no IP address"))
}

/// A name of a network interface as Linux takes it.
pub fn interface(text: &str) -> Result<String, String> {
    let fine = !text.is_empty() && text.len() < 16 && text.chars().all(|c| c.is_ascii_graphic() && c != '/' && c != ':');
    if fine { Ok(text.to_owned()) } else { Err(format!("{text:?} is no network interface (want for example eth0)")) }
}

/// A server of a resolver: `1.1.1.1`, `udp://1.1.1.1:53`, `tcp://...`, `tls://1.1.1.1:853#cloudflare-dns.com`,
/// `https://1.1.1.1/dns-query#cloudflare-dns.com`; what follows `#` is the name in its certificate.
pub fn resolver_server(text: &str) -> Result<ResolverServer, String> {
    let wrong = || format!("{text:?} is no DNS server (want for example udp://10.0.0.53, tls://1.1.1.1#cloudflare-dns.com, https://1.1.1.1/dns-query)");
    let (scheme, rest) = text.split_once("://").unwrap_or(("udp", text));
    let (transport, port) = match scheme {
        "udp" => (ResolverTransport::Udp, 53),
        "tcp" => (ResolverTransport::Tcp, 53),
        "tls" => (ResolverTransport::Tls, 853),
        "https" => (ResolverTransport::Https, 443),
        _ => return Err(wrong()),
    };
    let secure = matches!(transport, ResolverTransport::Tls | ResolverTransport::Https);
    let (rest, server_name) = rest.split_once('#').unwrap_or((rest, ""));
    let (address, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    if !server_name.is_empty() && !secure || !path.is_empty() && transport != ResolverTransport::Https {
        return Err(wrong());
    }
    let address = match (address.parse::<SocketAddr>(), address.trim_matches(['[', ']']).parse::<IpAddr>()) {
        (Ok(address), _) => address,
        (_, Ok(ip)) => SocketAddr::new(ip, port),
        _ if address.is_empty() => return Err(wrong()),
        _ => return Err(format!("{address:?} is no IP address: a resolver by name would need a resolver (want for example tls://1.1.1.1#cloudflare-dns.com)")),
    };
    let path = if transport == ResolverTransport::Https && path.is_empty() { "/dns-query" } else { path };
    Ok(ResolverServer { transport: transport as i32, address: address.to_string(), server_name: server_name.to_owned(), path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_as_people_write_them() {
        for (text, transport, address, name, path) in [
            ("1.1.1.1", ResolverTransport::Udp, "1.1.1.1:53", "", ""),
            ("tcp://[::1]:5353", ResolverTransport::Tcp, "[::1]:5353", "", ""),
            ("tls://1.1.1.1#one.example", ResolverTransport::Tls, "1.1.1.1:853", "one.example", ""),
            ("https://1.1.1.1", ResolverTransport::Https, "1.1.1.1:443", "", "/dns-query"),
            ("https://[2606::1]/q#x", ResolverTransport::Https, "[2606::1]:443", "x", "/q"),
        ] {
            let expected = ResolverServer { transport: transport as i32, address: address.to_owned(), server_name: name.to_owned(), path: path.to_owned() };
            assert_eq!(resolver_server(text), Ok(expected), "{text}");
        }
        for wrong in ["", "dns.example", "quic://1.1.1.1", "udp://1.1.1.1#x", "tcp://1.1.1.1/x", "https://dns.google/dns-query", "udp://"] {
            assert!(resolver_server(wrong).is_err(), "{wrong}");
        }
    }
}
