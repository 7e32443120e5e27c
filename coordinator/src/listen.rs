//! Taking connections, for both sides: bounded, with TLS from files that may change, and each of them can be cut.
//!
//! A connection without a certificate gets through the handshake; what it may do is decided for each request (see `gate`). What is
//! decided here is how many there may be, so that nobody unknown keeps out those who are known.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use probity_rpc::tls::{Certified, Stamp, TlsError, TlsFiles};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::gather::Gather;
use crate::room::{Place, Room};

/// Connections of those who showed a certificate: a fleet of thousands, and its people.
const KNOWN_MAX: usize = 8_192;
/// Connections of those who did not (yet): they are enrolling, or read with a token.
const UNKNOWN_MAX: usize = 512;
/// Of them from one address: a proxy has as many for its readers, and more addresses than one who is up to no good.
const UNKNOWN_EACH: usize = 128;
/// Handshakes at a time: each costs a signature.
const HANDSHAKES_MAX: usize = 128;
/// Of them from one address: a fleet behind one comes in turns.
const HANDSHAKES_EACH: usize = 32;
/// A client speaks first, and at once.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(1);
/// A handshake takes no longer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that wait to be served.
const WAITING: usize = 64;

/// Who is at the other end of a connection: every request on it carries this.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    pub(crate) certified: Option<Arc<Certified>>,
}

/// The server's TLS; the files are read again when they changed.
#[derive(Debug)]
pub(crate) struct ServerTls {
    files: TlsFiles,
    protocols: &'static [&'static str],
    loaded: Mutex<(Stamp, Arc<rustls::ServerConfig>)>,
}

impl ServerTls {
    pub(crate) fn load(files: TlsFiles, protocols: &'static [&'static str]) -> Result<ServerTls, TlsError> {
        let stamp = files.stamp();
        let config = Arc::new(files.server(protocols)?);
        Ok(ServerTls { files, protocols, loaded: Mutex::new((stamp, config)) })
    }

    /// As the files are now; what is of no use is said once, and the last good one stays.
    fn current(&self) -> Arc<rustls::ServerConfig> {
        let mut loaded = self.loaded.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let stamp = self.files.stamp();
        if stamp != loaded.0 {
            loaded.0 = stamp;
            match self.files.server(self.protocols) {
                Ok(config) => {
                    tracing::info!(dir = %self.files.dir.display(), "the TLS files changed: new connections use them");
                    loaded.1 = Arc::new(config);
                }
                Err(e) => tracing::warn!(error = %e, "the TLS files changed and are of no use; the old ones stay"),
            }
        }
        loaded.1.clone()
    }
}

/// Who counts as one: of IPv6 a network of 64 bits, which is what a host is given.
fn one(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// Whose a connection is, and what ends it.
type Live = (Option<Arc<Certified>>, CancellationToken);

/// The connections that are up.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    live: Mutex<BTreeMap<u64, Live>>,
    next: AtomicU64,
    /// Turned away for want of room.
    pub(crate) refused: AtomicU64,
    /// Handshakes that came to nothing: garbage, a certificate of another authority.
    pub(crate) failed: AtomicU64,
}

impl Connections {
    /// Ends those whose certificate is refused now.
    pub(crate) fn cut(&self, refused: impl Fn(&Certified) -> bool) {
        let Ok(live) = self.live.lock() else { return };
        for (certified, cut) in live.values() {
            if certified.as_ref().is_some_and(|c| refused(c)) {
                cut.cancel();
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.live.lock().map_or(0, |l| l.len())
    }

    fn add(self: &Arc<Self>, certified: Option<Arc<Certified>>) -> (Registered, CancellationToken) {
        let (id, cut) = (self.next.fetch_add(1, Ordering::Relaxed), CancellationToken::new());
        if let Ok(mut live) = self.live.lock() {
            live.insert(id, (certified, cut.clone()));
        }
        (Registered { connections: self.clone(), id }, cut)
    }
}

#[derive(Debug)]
struct Registered {
    connections: Arc<Connections>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Ok(mut live) = self.connections.live.lock() {
            live.remove(&self.id);
        }
    }
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A connection: bytes, until it is cut.
#[derive(Debug)]
pub(crate) struct Conn {
    stream: Gather<Stream>,
    pub(crate) link: Link,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _registered: Registered,
    _place: Place<IpAddr>,
}

impl Conn {
    fn is_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the certificate is refused now")),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl tonic::transport::server::Connected for Conn {
    type ConnectInfo = Link;

    fn connect_info(&self) -> Link {
        self.link.clone()
    }
}

/// Takes connections until `stop`; those that are ready come out of the channel.
pub(crate) fn incoming(listener: TcpListener, tls: Option<ServerTls>, connections: Arc<Connections>, stop: CancellationToken) -> mpsc::Receiver<Conn> {
    let (tx, rx) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let door = Arc::new(Door {
            tls,
            connections,
            known: Room::new(KNOWN_MAX, KNOWN_MAX),
            unknown: Room::new(UNKNOWN_MAX, UNKNOWN_EACH),
            handshakes: Room::new(HANDSHAKES_MAX, HANDSHAKES_EACH),
        });
        loop {
            let (stream, address) = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(e) => {
                        // Most likely no file descriptors are left: give the others time to end.
                        tracing::warn!(error = %e, "cannot take a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let Ok(handshake) = door.handshakes.take(one(address.ip())) else {
                door.connections.refused.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let (door, tx) = (door.clone(), tx.clone());
            tokio::spawn(async move {
                let ready = door.admit(stream, address).await;
                drop(handshake);
                if let Some(conn) = ready {
                    let _ = tx.send(conn).await;
                }
            });
        }
    });
    rx
}

#[derive(Debug)]
struct Door {
    tls: Option<ServerTls>,
    connections: Arc<Connections>,
    known: Arc<Room<IpAddr>>,
    unknown: Arc<Room<IpAddr>>,
    handshakes: Arc<Room<IpAddr>>,
}

impl Door {
    async fn admit(&self, stream: TcpStream, address: SocketAddr) -> Option<Conn> {
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else { return self.enter(Stream::Plain(stream), address, None, &self.known) };
        let speaks = tokio::time::timeout(FIRST_BYTE_TIMEOUT, stream.peek(&mut [0])).await;
        if !matches!(speaks, Ok(Ok(1))) {
            self.connections.failed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let handshake = TlsAcceptor::from(tls.current()).accept(stream);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => {
                self.connections.failed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%address, error = %e, "a TLS handshake failed");
                return None;
            }
            Err(_) => {
                self.connections.failed.fetch_add(1, Ordering::Relaxed);
                return None;
            }
        };
        // A certificate of our authority that says nothing we understand is as good as none.
        let certified = stream.get_ref().1.peer_certificates().and_then(|chain| Certified::of_chain(chain).ok()).map(Arc::new);
        let room = if certified.is_some() { &self.known } else { &self.unknown };
        self.enter(Stream::Tls(Box::new(stream)), address, certified, room)
    }

    fn enter(&self, stream: Stream, address: SocketAddr, certified: Option<Arc<Certified>>, room: &Arc<Room<IpAddr>>) -> Option<Conn> {
        let Ok(place) = room.take(one(address.ip())) else {
            self.connections.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let (registered, cut) = self.connections.add(certified.clone());
        Some(Conn {
            stream: Gather::new(stream),
            link: Link { address, certified },
            cut: Box::pin(cut.cancelled_owned()),
            _registered: registered,
            _place: place,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_counts_as_one_in_all_its_forms() {
        let of = |address: &str| one(address.parse().expect("an address"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"), "a network of 64 bits");
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
