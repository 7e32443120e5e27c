//! Targets from SRV records (RFC 2782): the target's name and port; priority and weight mean nothing to a check of all of them.

use std::net::SocketAddr;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ProtocolConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use probity_proto::discovery::{ADDRESS, Found, TARGETS_MAX};
use probity_proto::v1::{DnsSrvDiscovery, ResolverServer, ResolverTransport};

use crate::outside::Policy;

/// Every name must be answered, or none counts.
pub(super) async fn ask(policy: Policy, srv: &DnsSrvDiscovery) -> Result<Vec<Found>, String> {
    let resolver = resolver(policy, &srv.servers)?;
    let mut found = Vec::new();
    for name in &srv.names {
        // A final dot: no search domain is tried.
        let query = format!("{}.", name.trim_end_matches('.'));
        let answer = resolver.lookup(query, RecordType::SRV).await.map_err(|e| format!("{name}: {e}"))?;
        for record in answer.answers() {
            let RData::SRV(srv) = &record.data else { continue };
            let target = srv.target.to_string();
            // "The service is decidedly not available at this domain."
            if target == "." {
                continue;
            }
            let host = target.trim_end_matches('.');
            found.push(Found::from([
                (ADDRESS.to_owned(), format!("{host}:{}", srv.port)),
                ("__meta_dns_name".to_owned(), name.clone()),
                ("__meta_dns_srv_record_target".to_owned(), target.clone()),
                ("__meta_dns_srv_record_port".to_owned(), srv.port.to_string()),
            ]));
        }
        if found.len() > TARGETS_MAX {
            return Err(format!("more than {TARGETS_MAX} targets"));
        }
    }
    Ok(found)
}

fn resolver(policy: Policy, servers: &[ResolverServer]) -> Result<TokioResolver, String> {
    let mut builder = if servers.is_empty() {
        TokioResolver::builder_tokio().map_err(|e| format!("no resolver on this host: {e}"))?
    } else {
        let servers = servers.iter().map(|s| name_server(policy, s)).collect::<Result<Vec<_>, _>>()?;
        TokioResolver::builder_with_config(ResolverConfig::from_name_servers(servers), TokioRuntimeProvider::default())
    };
    builder.options_mut().cache_size = 0;
    builder.build().map_err(|e| e.to_string())
}

fn name_server(policy: Policy, server: &ResolverServer) -> Result<NameServerConfig, String> {
    let address: SocketAddr = server.address.parse().map_err(|_| format!("{:?} is no address", server.address))?;
    policy.check(address.ip())?;
    let connection = |protocol| {
        let mut config = ConnectionConfig::new(protocol);
        config.port = address.port();
        config
    };
    let connections = match server.transport() {
        ResolverTransport::Udp => vec![connection(ProtocolConfig::Udp), connection(ProtocolConfig::Tcp)],
        _ => vec![connection(ProtocolConfig::Tcp)],
    };
    Ok(NameServerConfig::new(address.ip(), true, connections))
}
