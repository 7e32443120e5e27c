//! Resolve and connect: the policy after resolution, then Happy Eyeballs (RFC 8305), from the source that the probe names.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use probity_proto::v1::{AddressFamily, NetOptions, Reason};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio_rustls::client::TlsStream;

use super::{Attempt, Failure};
use crate::resolve::Wanted;

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
    /// The addresses of a host that may be probed, in the order in which they are to be tried.
    pub(crate) async fn resolve(&mut self, host: &str) -> Result<Vec<IpAddr>, Failure> {
        self.phases.next("resolve");
        self.resolver_allowed()?;
        let source: Option<IpAddr> = self.net.source_address.parse().ok();
        let wanted = match (self.family, source) {
            (AddressFamily::V4, _) => Wanted::V4,
            (AddressFamily::V6, _) => Wanted::V6,
            // Nothing of the other family can be reached from there.
            (_, Some(source)) => {
                if source.is_ipv4() {
                    Wanted::V4
                } else {
                    Wanted::V6
                }
            }
            _ => Wanted::Any,
        };
        let roots = self.context.tls.roots();
        let mut found = self.context.resolvers.lookup(host, wanted, self.net, roots).await.map_err(|(reason, message)| Failure::new(reason, message))?;
        let first = found.first().copied();
        found.retain(|ip| self.context.policy.allows(*ip));
        if let (true, Some(first)) = (found.is_empty(), first) {
            self.peer = first.to_string();
            return Err(forbidden(first));
        }
        Ok(interleave(found, self.family))
    }

    /// Whether the policy allows an address that nothing resolves.
    pub(crate) fn allowed(&self, ip: IpAddr) -> Result<(), Failure> {
        if self.context.policy.allows(ip) { Ok(()) } else { Err(forbidden(ip)) }
    }

    /// A probe's own resolver is a target too.
    fn resolver_allowed(&self) -> Result<(), Failure> {
        let servers = self.net.resolver_servers.iter().filter_map(|s| s.address.parse::<SocketAddr>().ok());
        servers.map(|a| a.ip()).try_for_each(|ip| self.allowed(ip))
    }

    /// Connects to whichever address answers first.
    pub(crate) async fn connect(&mut self, addresses: &[IpAddr], port: u16) -> Result<TcpStream, Failure> {
        let net = self.net;
        self.race(addresses, port, |address| tcp(net, address)).await
    }

    /// Opens a way to whichever address answers first; the next one starts when the one before it failed, or has had its head start.
    pub(crate) async fn race<T, F: Future<Output = io::Result<T>>>(
        &mut self,
        addresses: &[IpAddr],
        port: u16,
        open: impl Fn(SocketAddr) -> F,
    ) -> Result<T, Failure> {
        self.phases.next("connect");
        if let [ip] = *addresses {
            // Nobody to race with, as it mostly is.
            let address = SocketAddr::new(ip, port);
            self.peer = address.to_string();
            return match open(address).await {
                Ok(opened) => {
                    self.met(address);
                    Ok(opened)
                }
                Err(e) => Err(unopened(address, &e)),
            };
        }
        let delay = if self.net.attempt_delay_us == 0 { ATTEMPT_DELAY } else { Duration::from_micros(self.net.attempt_delay_us) };
        self.peer = addresses.first().map(|ip| SocketAddr::new(*ip, port).to_string()).unwrap_or_default();
        let mut waiting = addresses.iter().map(|ip| SocketAddr::new(*ip, port));
        let mut tries = FuturesUnordered::new();
        let mut last = Failure::new(Reason::ConnectError, "no address to connect to");
        loop {
            if let Some(address) = waiting.next() {
                let opening = open(address);
                tries.push(async move { (address, opening.await) });
            }
            let more = waiting.len() > 0;
            let (address, tried) = tokio::select! {
                next = tries.next() => match next {
                    Some(tried) => tried,
                    None => return Err(last),
                },
                () = tokio::time::sleep(delay), if more => continue,
            };
            match tried {
                Ok(opened) => {
                    self.peer = address.to_string();
                    self.met(address);
                    return Ok(opened);
                }
                Err(e) => last = unopened(address, &e),
            }
        }
    }

    fn met(&mut self, address: SocketAddr) {
        self.fact("network.type", if address.is_ipv4() { "ipv4" } else { "ipv6" });
    }

    /// Where datagrams go, which race nobody: the first address of the host that there is a route to (RFC 6724, section 6, rule 1), else the first.
    pub(crate) async fn one_address(&mut self, host: &str) -> Result<IpAddr, Failure> {
        let addresses = self.resolve(host).await?;
        let first = addresses.first().copied().ok_or_else(|| Failure::new(Reason::DnsNoAddress, format!("{host} has no address")))?;
        if addresses.len() == 1 {
            return Ok(first);
        }
        Ok(addresses.into_iter().find(|ip| has_route(self.net, *ip)).unwrap_or(first))
    }

    /// A datagram socket that is connected to its peer, from the source that the probe names.
    pub(crate) async fn udp(&mut self, peer: SocketAddr) -> Result<UdpSocket, Failure> {
        self.peer = peer.to_string();
        let socket = udp_socket(self.net, peer).await.map_err(|e| unopened(peer, &e))?;
        self.met(peer);
        Ok(socket)
    }
}

/// A connection, in plain text or not. Not boxed: plain text is the common case, and its reads are counted in nanoseconds.
#[derive(Debug)]
pub(crate) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Wire::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Wire::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Wire::Plain(stream) => stream.is_write_vectored(),
            Wire::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

fn unopened(address: SocketAddr, error: &io::Error) -> Failure {
    Failure::new(io_reason(error, Reason::ConnectError), format!("{address}: {error}"))
}

fn forbidden(ip: IpAddr) -> Failure {
    Failure::new(Reason::AddressForbidden, format!("{ip} is not allowed for this prober (loopback, link-local and metadata addresses are not)"))
}

/// A connected datagram socket.
pub(crate) async fn udp_socket(net: &NetOptions, peer: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(peer), socket2::Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    bind(&socket, net, peer.ip())?;
    let socket = UdpSocket::from_std(socket.into())?;
    socket.connect(peer).await?;
    Ok(socket)
}

/// Whether the kernel knows a way: connecting a datagram socket asks for one, and sends nothing.
fn has_route(net: &NetOptions, ip: IpAddr) -> bool {
    let peer = SocketAddr::new(ip, 9);
    let connected = || {
        let socket = socket2::Socket::new(socket2::Domain::for_address(peer), socket2::Type::DGRAM, None)?;
        bind(&socket, net, ip)?;
        socket.connect(&peer.into())
    };
    connected().is_ok()
}

/// A connection.
pub(crate) async fn tcp(net: &NetOptions, address: SocketAddr) -> io::Result<TcpStream> {
    let stream = if net.source_address.is_empty() && net.source_interface.is_empty() {
        TcpStream::connect(address).await?
    } else {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        bind(&socket2::SockRef::from(&socket), net, address.ip())?;
        socket.connect(address).await?
    };
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Puts a socket of any kind on the source that the probe names, if it names one.
pub(crate) fn bind(socket: &socket2::Socket, net: &NetOptions, peer: IpAddr) -> io::Result<()> {
    if !net.source_interface.is_empty() {
        socket.bind_device(Some(net.source_interface.as_bytes()))?;
    }
    if let Ok(source) = net.source_address.parse::<IpAddr>() {
        if source.is_ipv4() != peer.is_ipv4() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{peer} cannot be reached from {source}")));
        }
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(())
}

/// The families in turn, IPv6 first unless the other is preferred.
fn interleave(addresses: Vec<IpAddr>, family: AddressFamily) -> Vec<IpAddr> {
    if let [_] = addresses.as_slice() {
        return addresses;
    }
    let v4_first = family == AddressFamily::PreferV4;
    let (first, second): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(|ip| ip.is_ipv4() == v4_first);
    let longest = first.len().max(second.len());
    (0..longest).flat_map(|i| [first.get(i), second.get(i)]).flatten().copied().collect()
}

/// An error with its causes: libraries keep what matters there.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text
}

/// What an I/O error says of the target; the host's own want of ports, memory or descriptors is not the target's.
pub(crate) fn io_reason(error: &io::Error, otherwise: Reason) -> Reason {
    use io::ErrorKind::*;
    // EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL, ENODEV (no such interface)
    if let Some(24 | 23 | 105 | 12 | 99 | 19) = error.raw_os_error() {
        return Reason::ProberError;
    }
    match error.kind() {
        ConnectionRefused => Reason::ConnectRefused,
        ConnectionReset | BrokenPipe | ConnectionAborted => Reason::ConnectionReset,
        UnexpectedEof => Reason::ConnectionClosed,
        HostUnreachable | NetworkUnreachable | NetworkDown => Reason::ConnectUnreachable,
        TimedOut => Reason::ConnectTimeout,
        PermissionDenied => Reason::NoPermission,
        // Of ours: the system's own has a number, and came before.
        OutOfMemory => Reason::Overloaded,
        _ => otherwise,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let ips = |texts: &[&str]| -> Vec<IpAddr> { texts.iter().map(|t| t.parse().expect("an address")).collect() };
        let found = ips(&["1.1.1.1", "1.1.1.2", "::1", "1.1.1.3"]);
        assert_eq!(interleave(found.clone(), AddressFamily::Any), ips(&["::1", "1.1.1.1", "1.1.1.2", "1.1.1.3"]));
        assert_eq!(interleave(found, AddressFamily::PreferV4), ips(&["1.1.1.1", "::1", "1.1.1.2", "1.1.1.3"]));
    }

    #[test]
    fn addresses_of_hosts_and_ports() {
        assert_eq!(host_port("[::1]:80").ok(), Some(("[::1]", 80)));
        assert!(["x", ":80", "x:", "x:99999"].iter().all(|a| host_port(a).is_err()));
    }
}
