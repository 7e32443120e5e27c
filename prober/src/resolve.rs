//! Names to addresses. A resolver's failure is not the target's: it has reasons of its own.
//!
//! Answers are never cached: a probe sees what is there now. The connections of DNS over TLS and HTTPS are kept between runs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ProtocolConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, RecordType};
use probity_proto::v1::{NetOptions, Reason, ResolverServer, ResolverTransport};

use crate::cache::Cache;

/// Sets of servers that probes name themselves: more than this are made anew each time.
const RESOLVERS_MAX: usize = 256;
/// How long the other family's answer is waited for once there is one (RFC 8305, section 3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// Which addresses are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    V4,
    V6,
    Any,
}

type Servers = (Vec<ResolverServer>, String);

/// The host's resolver, and those that probes name.
#[derive(Debug)]
pub(crate) struct Resolvers {
    system: Result<TokioResolver, String>,
    named: Cache<Servers, Arc<TokioResolver>>,
}

impl Resolvers {
    /// As the system is configured.
    pub(crate) fn system() -> Resolvers {
        let system = TokioResolver::builder_tokio()
            .and_then(|mut builder| {
                builder.options_mut().cache_size = 0;
                builder.options_mut().attempts = 1;
                builder.build()
            })
            .map_err(|e| e.to_string());
        Resolvers { system, named: Cache::new(RESOLVERS_MAX) }
    }

    /// The addresses of a host: of a literal, itself; then what the options give; then what the resolver says.
    pub(crate) async fn lookup(
        &self,
        host: &str,
        wanted: Wanted,
        options: &NetOptions,
        roots: &rustls::RootCertStore,
    ) -> Result<Vec<IpAddr>, (Reason, String)> {
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = literal.parse() {
            return of_family(vec![ip], host, wanted);
        }
        if let Some(given) = options.hosts.get(&literal.to_ascii_lowercase()) {
            let ip = given.parse().map_err(|_| (Reason::DnsError, format!("{given:?}, given for {host}, is no IP address")))?;
            return of_family(vec![ip], host, wanted);
        }
        if literal.eq_ignore_ascii_case("localhost") {
            return of_family(vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()], host, wanted);
        }
        if options.resolver_servers.is_empty() {
            let resolver = self.system.as_ref().map_err(|e| (Reason::DnsError, format!("no resolver on this host: {e}")))?;
            return ask(resolver, host, wanted).await;
        }
        let key = (options.resolver_servers.clone(), options.resolver_ca_pem.clone());
        let resolver = self.named.get_or(&key, || named(&key, roots)).map_err(|e| (Reason::DnsError, e))?;
        ask(&resolver, host, wanted).await
    }
}

/// A resolver that asks the servers that a probe names, and nobody else.
fn named((servers, ca_pem): &Servers, roots: &rustls::RootCertStore) -> Result<Arc<TokioResolver>, String> {
    let configs = servers.iter().map(name_server).collect::<Result<Vec<_>, _>>()?;
    let mut builder = TokioResolver::builder_with_config(ResolverConfig::from_name_servers(configs), TokioRuntimeProvider::default());
    let options = builder.options_mut();
    options.cache_size = 0;
    options.attempts = 1;
    // A name that the host's file knows must still be asked for: that is what the probe names servers for.
    options.use_hosts_file = hickory_resolver::config::ResolveHosts::Never;
    let secure = |s: &ResolverServer| matches!(s.transport(), ResolverTransport::Tls | ResolverTransport::Https);
    if servers.iter().any(secure) {
        let mut roots = roots.clone();
        crate::kinds::add_pem(&mut roots, ca_pem).map_err(|e| format!("resolver.ca: {e}"))?;
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        builder = builder.with_tls_config(tls);
    }
    builder.build().map(Arc::new).map_err(|e| e.to_string())
}

fn name_server(server: &ResolverServer) -> Result<NameServerConfig, String> {
    let address: SocketAddr = server.address.parse().map_err(|_| format!("resolver {:?} is no address", server.address))?;
    let name: Arc<str> = if server.server_name.is_empty() { address.ip().to_string() } else { server.server_name.clone() }.into();
    let connection = |protocol| {
        let mut config = ConnectionConfig::new(protocol);
        config.port = address.port();
        config
    };
    let connections = match server.transport() {
        ResolverTransport::Udp => vec![connection(ProtocolConfig::Udp), connection(ProtocolConfig::Tcp)],
        ResolverTransport::Tcp => vec![connection(ProtocolConfig::Tcp)],
        ResolverTransport::Tls => vec![connection(ProtocolConfig::Tls { server_name: name })],
        ResolverTransport::Https => vec![connection(ProtocolConfig::Https { server_name: name, path: server.path.as_str().into() })],
    };
    Ok(NameServerConfig::new(address.ip(), true, connections))
}

/// Both families at once; one that is late by more than the resolution delay is done without.
async fn ask(resolver: &TokioResolver, host: &str, wanted: Wanted) -> Result<Vec<IpAddr>, (Reason, String)> {
    let failed = |e: NetError| (reason(&e), format!("{host}: {e}"));
    match wanted {
        Wanted::V4 => return one(resolver, host, RecordType::A).await.map_err(failed),
        Wanted::V6 => return one(resolver, host, RecordType::AAAA).await.map_err(failed),
        Wanted::Any => {}
    }
    let v4 = one(resolver, host, RecordType::A);
    let v6 = one(resolver, host, RecordType::AAAA);
    tokio::pin!(v4);
    tokio::pin!(v6);
    let (v6, v4) = tokio::select! {
        found = &mut v6 => match found {
            Ok(found) => (Ok(found), tokio::time::timeout(RESOLUTION_DELAY, v4).await.unwrap_or(Ok(Vec::new()))),
            Err(e) => (Err(e), v4.await),
        },
        found = &mut v4 => match found {
            Ok(found) => (tokio::time::timeout(RESOLUTION_DELAY, v6).await.unwrap_or(Ok(Vec::new())), Ok(found)),
            Err(e) => (v6.await, Err(e)),
        },
    };
    match (v6, v4) {
        (Ok(mut v6), Ok(v4)) => {
            v6.extend(v4);
            if v6.is_empty() { Err((Reason::DnsNoAddress, format!("{host} has no address"))) } else { Ok(v6) }
        }
        (Ok(found), Err(_)) | (Err(_), Ok(found)) if !found.is_empty() => Ok(found),
        (_, Err(e)) | (Err(e), _) => Err(failed(e)),
    }
}

async fn one(resolver: &TokioResolver, host: &str, record_type: RecordType) -> Result<Vec<IpAddr>, NetError> {
    let found = resolver.lookup(host, record_type).await?;
    let ip = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    };
    Ok(found.answers().iter().filter_map(|r| ip(&r.data)).collect())
}

fn of_family(addresses: Vec<IpAddr>, host: &str, wanted: Wanted) -> Result<Vec<IpAddr>, (Reason, String)> {
    let fits = |ip: &IpAddr| match wanted {
        Wanted::V4 => ip.is_ipv4(),
        Wanted::V6 => ip.is_ipv6(),
        Wanted::Any => true,
    };
    let found: Vec<IpAddr> = addresses.into_iter().filter(fits).collect();
    let family = if wanted == Wanted::V4 { "IPv4" } else { "IPv6" };
    if found.is_empty() { Err((Reason::DnsNoAddress, format!("{host} has no {family} address"))) } else { Ok(found) }
}

fn reason(error: &NetError) -> Reason {
    match error {
        NetError::Timeout => Reason::DnsTimeout,
        e if e.is_nx_domain() => Reason::DnsNxdomain,
        e if e.is_no_records_found() => match e {
            NetError::Dns(DnsError::NoRecordsFound(none)) => code(none.response_code).unwrap_or(Reason::DnsNoAddress),
            _ => Reason::DnsNoAddress,
        },
        NetError::Dns(DnsError::ResponseCode(found)) => code(*found).unwrap_or(Reason::DnsError),
        _ => Reason::DnsError,
    }
}

fn code(code: ResponseCode) -> Option<Reason> {
    match code {
        ResponseCode::ServFail => Some(Reason::DnsServfail),
        ResponseCode::Refused => Some(Reason::DnsRefused),
        ResponseCode::NXDomain => Some(Reason::DnsNxdomain),
        ResponseCode::NoError => None,
        _ => Some(Reason::DnsError),
    }
}
