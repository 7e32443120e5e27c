//! DNS: one query straight to a server, or through the resolver; what comes back is believed only where it must be an answer to it.

mod anchored;
mod answer;
mod dnssec;
mod judge;
mod transport;

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use probity_proto::resources::record_type_number;
use probity_proto::v1::{DnsCheck, DnsExpect, DnsTransport, NetOptions, Reason, ResolverTransport};

use super::{Attempt, Failure, net};
use transport::Server;

pub(crate) async fn run(attempt: &mut Attempt<'_>, check: &DnsCheck) -> Result<(), Failure> {
    let server = server(attempt, check).await?;
    let query = query(check, server.transport)?;
    let answer = attempt.ask(&server, check, &query).await?;
    let default = DnsExpect::default();
    let expect = check.expect.as_ref().unwrap_or(&default);
    attempt.facts_of(&answer);
    judge::judge(&attempt.context.patterns, &answer, &query, expect)?;
    if let Some(validation) = &check.validate {
        attempt.phases.next("validate");
        dnssec::validate(attempt, &server, check, &query, validation).await?;
    }
    if !expect.same_serial_as.is_empty() {
        same_serial(attempt, check, &server, expect).await?;
    }
    Ok(())
}

fn unsupported(message: String) -> Failure {
    Failure::new(Reason::Unsupported, message)
}

/// Whom to ask.
async fn server(attempt: &mut Attempt<'_>, check: &DnsCheck) -> Result<Server, Failure> {
    let mut transport = check.transport();
    if check.tcp {
        transport = DnsTransport::Tcp;
    }
    let server = if check.server.is_empty() {
        resolver(attempt.net, transport)?
    } else {
        let (host, port) = host_and_port(&check.server, transport);
        Server { transport, host: host.to_owned(), address: SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port), path: check.https_path.clone() }
    };
    at_its_address(attempt, server).await
}

/// Its host resolved, where the address policy allows it.
async fn at_its_address(attempt: &mut Attempt<'_>, mut server: Server) -> Result<Server, Failure> {
    server.address.set_ip(attempt.one_address(&server.host).await?);
    attempt.peer = server.address.to_string();
    Ok(server)
}

/// The probe's own resolver; else the first one of this host.
fn resolver(net: &NetOptions, transport: DnsTransport) -> Result<Server, Failure> {
    if let Some(own) = net.resolver_servers.first()
        && let Ok(address) = own.address.parse::<SocketAddr>()
    {
        let transport = match own.transport() {
            ResolverTransport::Udp => DnsTransport::Udp,
            ResolverTransport::Tcp => DnsTransport::Tcp,
            ResolverTransport::Tls => DnsTransport::Tls,
            ResolverTransport::Https => DnsTransport::Https,
        };
        return Ok(Server { transport, host: address.ip().to_string(), address, path: own.path.clone() });
    }
    let none = |why: String| Failure::new(Reason::ProberError, format!("no resolver on this host: {why}"));
    let (config, _) = hickory_resolver::system_conf::read_system_conf().map_err(|e| none(e.to_string()))?;
    let first = config.name_servers().first().ok_or_else(|| none("/etc/resolv.conf names none".to_owned()))?;
    let port = first.connections.first().map_or(53, |c| c.port);
    Ok(Server { transport, host: first.ip.to_string(), address: SocketAddr::new(first.ip, port), path: String::new() })
}

/// `host:port`, or a host with the transport's own port; a bare IPv6 address is a host.
fn host_and_port(server: &str, transport: DnsTransport) -> (&str, u16) {
    let default = match transport {
        DnsTransport::Udp | DnsTransport::Tcp => 53,
        DnsTransport::Tls => 853,
        DnsTransport::Https => 443,
    };
    if server.parse::<IpAddr>().is_ok() {
        return (server, default);
    }
    net::host_port(server).unwrap_or((server, default))
}

fn name_of(text: &str) -> Result<Name, Failure> {
    let mut name = Name::from_utf8(text).map_err(|e| unsupported(format!("{text:?} is no name: {e}")))?;
    name.set_fqdn(true);
    Ok(name)
}

fn query(check: &DnsCheck, transport: DnsTransport) -> Result<Message, Failure> {
    let number = record_type_number(&check.record_type).ok_or_else(|| unsupported(format!("{:?} is no record type", check.record_type)))?;
    let mut question = Query::query(name_of(&check.name)?, RecordType::from(number));
    if check.class != 0 {
        question.set_query_class(DNSClass::from(check.class as u16));
    }
    let mut query = Message::query();
    // RFC 8484, section 4.1: 0, so that caches of HTTP work.
    query.metadata.id = if transport == DnsTransport::Https { 0 } else { rand::random() };
    query.metadata.recursion_desired = !check.no_recursion;
    query.metadata.checking_disabled = check.checking_disabled;
    query.add_query(question);
    if check.edns_bytes > 0 || check.dnssec_ok || check.validate.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(if check.edns_bytes == 0 { 1_232 } else { check.edns_bytes as u16 });
        edns.set_dnssec_ok(check.dnssec_ok || check.validate.is_some());
        query.set_edns(edns);
    }
    Ok(query)
}

/// A zone whose servers disagree is half transferred.
async fn same_serial(attempt: &mut Attempt<'_>, check: &DnsCheck, server: &Server, expect: &DnsExpect) -> Result<(), Failure> {
    let soa = DnsCheck { record_type: "SOA".to_owned(), validate: None, ..check.clone() };
    let wanted = serial(attempt, &soa, server).await?;
    attempt.fact("dns.serial", wanted.to_string());
    for other in &expect.same_serial_as {
        let (host, port) = host_and_port(other, server.transport);
        let other = Server { host: host.to_owned(), address: SocketAddr::new(server.address.ip(), port), ..server.clone() };
        let other = at_its_address(attempt, other).await?;
        let found = serial(attempt, &soa, &other).await?;
        if found != wanted {
            let message = format!("the serial of {} is {wanted} on {}, but {found} on {}", check.name, server.address, other.address);
            return Err(Failure::new(Reason::DnsSerialMismatch, message));
        }
    }
    Ok(())
}

async fn serial(attempt: &mut Attempt<'_>, soa: &DnsCheck, server: &Server) -> Result<u32, Failure> {
    let query = query(soa, server.transport)?;
    let answer = attempt.ask(server, soa, &query).await?;
    let serial = answer.message.answers.iter().find_map(|r| if let RData::SOA(soa) = &r.data { Some(soa.serial) } else { None });
    serial.ok_or_else(|| Failure::new(Reason::DnsSerialMismatch, format!("{} has no SOA record of {}", server.address, soa.name)))
}

/// For tests/fuzz.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(bytes: &[u8]) {
    answer::fuzz(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_as_people_write_them() {
        for (text, host, port) in [
            ("1.1.1.1", "1.1.1.1", 853),
            ("1.1.1.1:53", "1.1.1.1", 53),
            ("::1", "::1", 853),
            ("[::1]:5353", "[::1]", 5353),
            ("dns.example", "dns.example", 853),
        ] {
            assert_eq!(host_and_port(text, DnsTransport::Tls), (host, port), "{text}");
        }
    }
}
