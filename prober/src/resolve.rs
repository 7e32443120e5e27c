//! Names to addresses. A resolver's failure is not the target's: it has reasons of its own.

use std::net::IpAddr;

use hickory_resolver::TokioResolver;
use hickory_resolver::net::NetError;
use probity_proto::v1::Reason;

/// The host's resolver.
#[derive(Debug)]
pub(crate) struct Resolver {
    inner: Result<TokioResolver, String>,
}

impl Resolver {
    /// As the system is configured. Answers are not cached: a probe sees what is there now.
    pub(crate) fn system() -> Resolver {
        let inner = TokioResolver::builder_tokio()
            .and_then(|mut builder| {
                builder.options_mut().cache_size = 0;
                builder.options_mut().attempts = 1;
                builder.build()
            })
            .map_err(|e| e.to_string());
        Resolver { inner }
    }

    /// The addresses of a host: of a literal, itself.
    pub(crate) async fn lookup(&self, host: &str) -> Result<Vec<IpAddr>, (Reason, String)> {
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = literal.parse() {
            return Ok(vec![ip]);
        }
        if literal.eq_ignore_ascii_case("localhost") {
            return Ok(vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])]);
        }
        let resolver = self.inner.as_ref().map_err(|e| (Reason::DnsError, format!("no resolver on this host: {e}")))?;
        match resolver.lookup_ip(host).await {
            Ok(found) => {
                let addresses: Vec<IpAddr> = found.iter().collect();
                if addresses.is_empty() { Err((Reason::DnsNoAddress, format!("{host} has no address"))) } else { Ok(addresses) }
            }
            Err(e) => Err((reason(&e), format!("{host}: {e}"))),
        }
    }
}

fn reason(error: &NetError) -> Reason {
    match error {
        NetError::Timeout => Reason::DnsTimeout,
        e if e.is_nx_domain() => Reason::DnsNxdomain,
        e if e.is_no_records_found() => Reason::DnsNoAddress,
        _ => Reason::DnsError,
    }
}
