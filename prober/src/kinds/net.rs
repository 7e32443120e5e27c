//! Resolve and connect: the policy after resolution, one address after the other with a head start (RFC 8305, simplified).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use probity_proto::v1::Reason;
use tokio::net::TcpStream;

use super::{Attempt, Failure};

/// Head start of an address before the next is tried beside it (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Splits `host:port`; an IPv6 literal stands in brackets.
pub(crate) fn host_port(address: &str) -> Result<(&str, u16), Failure> {
    address
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse().ok()?)))
        .filter(|(host, _)| !host.is_empty())
        .ok_or_else(|| Failure::new(Reason::ConnectError, format!("{address:?} is no address (want host:port)")))
}

impl Attempt<'_> {
    /// The addresses of a host that may be probed, both families in turn.
    pub(crate) async fn resolve(&mut self, host: &str) -> Result<Vec<IpAddr>, Failure> {
        self.phases.next("resolve");
        let found = self.context.resolver.lookup(host).await.map_err(|(reason, message)| Failure::new(reason, message))?;
        let allowed: Vec<IpAddr> = found.iter().copied().filter(|ip| self.context.policy.allows(*ip)).collect();
        if let (true, Some(first)) = (allowed.is_empty(), found.first()) {
            self.peer = first.to_string();
            let message = format!("{first} is not allowed for this prober (loopback, link-local and metadata addresses are not)");
            return Err(Failure::new(Reason::AddressForbidden, message));
        }
        Ok(interleave(allowed))
    }

    /// Connects to whichever address answers first.
    pub(crate) async fn connect(&mut self, addresses: &[IpAddr], port: u16) -> Result<TcpStream, Failure> {
        self.phases.next("connect");
        let mut tries = FuturesUnordered::new();
        for (i, ip) in addresses.iter().enumerate() {
            let address = SocketAddr::new(*ip, port);
            tries.push(async move {
                tokio::time::sleep(ATTEMPT_DELAY * i as u32).await;
                (address, TcpStream::connect(address).await)
            });
        }
        self.peer = addresses.first().map(|ip| SocketAddr::new(*ip, port).to_string()).unwrap_or_default();
        let mut last = Failure::new(Reason::ConnectError, "no address to connect to");
        while let Some((address, tried)) = tries.next().await {
            match tried {
                Ok(stream) => {
                    self.peer = address.to_string();
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(e) => last = Failure::new(io_reason(&e, Reason::ConnectError), format!("{address}: {e}")),
            }
        }
        Err(last)
    }
}

/// IPv6 first, then the families in turn.
fn interleave(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (v6, v4): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let longest = v6.len().max(v4.len());
    (0..longest).flat_map(|i| [v6.get(i), v4.get(i)]).flatten().copied().collect()
}

/// What an I/O error says of the target; the host's own want of ports, memory or descriptors is not the target's.
pub(crate) fn io_reason(error: &io::Error, otherwise: Reason) -> Reason {
    use io::ErrorKind::*;
    // EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL
    if let Some(24 | 23 | 105 | 12 | 99) = error.raw_os_error() {
        return Reason::ProberError;
    }
    match error.kind() {
        ConnectionRefused => Reason::ConnectRefused,
        ConnectionReset | BrokenPipe | ConnectionAborted => Reason::ConnectionReset,
        UnexpectedEof => Reason::ConnectionClosed,
        HostUnreachable | NetworkUnreachable | NetworkDown => Reason::ConnectUnreachable,
        TimedOut => Reason::ConnectTimeout,
        PermissionDenied => Reason::NoPermission,
        _ => otherwise,
    }
}
