//! The way to a target over QUIC (RFC 9000), by quinn: a fresh socket for each connection, its phases, and bounds on what it may bring.
//!
//! `connect` ends with the first datagram from the target, `tls` with the end of the handshake: the marks that curl sets for
//! `time_connect` and `time_appconnect`. Addresses are tried as with TCP (RFC 8305); the first one that says anything is kept.
//!
//! The socket is our own: it is connected, so that the kernel says when nobody listens on the port; it counts what comes; and its
//! buffers are of one datagram, where quinn's own are of megabytes for each connection.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use probity_proto::v1::{NetOptions, Reason, TlsOptions};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Connecting, ConnectionError, Endpoint, EndpointConfig, TokioRuntime, TransportConfig, UdpPoller, VarInt};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use super::net::{io_reason, udp_socket};
use super::tls::{QuicTls, Shown};
use super::{Attempt, Failure};

/// Bytes of a connection that are not read yet, at most: one run may hold as many.
const WINDOW_BYTES: u32 = 1 << 20;
/// Bytes that may come while nothing comes of them: a window, and as much again for what is sent twice. Past it the target is only
/// filling memory: a head, a setting or a frame without an end.
const IDLE_BYTES_MAX: u64 = 2 * WINDOW_BYTES as u64;
/// What a piece of use is wrapped in, at least: a frame's head, its part of a datagram.
const FRAME_BYTES: u64 = 16;
/// Streams that a server may open: control, QPACK's two, and some that are there to be ignored (RFC 9114, section 6.2).
const SERVER_STREAMS_MAX: u32 = 16;
/// `no_application_protocol` of TLS (RFC 7301) as QUIC has it (RFC 9001, section 4.8).
const NO_ALPN: u64 = 0x100 + 120;

static TRANSPORT: LazyLock<Arc<TransportConfig>> = LazyLock::new(|| {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(0u32.into())
        .max_concurrent_uni_streams(SERVER_STREAMS_MAX.into())
        .receive_window(WINDOW_BYTES.into())
        .stream_receive_window(WINDOW_BYTES.into())
        .datagram_receive_buffer_size(None)
        // A run is over before a larger datagram would pay.
        .mtu_discovery_config(None)
        // The run's deadline rules.
        .max_idle_timeout(None);
    Arc::new(transport)
});

/// A connection whose handshake is done.
pub(super) struct Dialed {
    pub(super) connection: quinn::Connection,
    pub(super) line: Arc<Line>,
}

struct Dialing {
    connecting: Connecting,
    line: Arc<Line>,
    shown: Shown,
}

/// A connection's socket.
#[derive(Debug)]
pub(super) struct Line {
    socket: UdpSocket,
    peer: SocketAddr,
    state: Mutex<State>,
    heard: Notify,
    troubled: Notify,
}

#[derive(Debug, Default)]
struct State {
    received_bytes: u64,
    allowed_bytes: u64,
    /// More came than was allowed: for good, since nothing is handed on from then.
    too_much: bool,
    error: Option<io::Error>,
}

/// Why a connection is of no more use.
pub(super) enum Trouble {
    Socket(io::Error),
    /// Bytes, and nothing came of them.
    TooMuch,
}

impl Line {
    fn new(socket: UdpSocket, peer: SocketAddr) -> Line {
        let state = Mutex::new(State { allowed_bytes: IDLE_BYTES_MAX, ..State::default() });
        Line { socket, peer, state, heard: Notify::new(), troubled: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many bytes of what was received were of use: as many more may come, with what they are wrapped in. What h3 holds of frames that are
    /// not whole is therefore never more than [`IDLE_BYTES_MAX`], however long a connection is kept.
    pub(super) fn of_use(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.state().allowed_bytes += bytes + bytes / 8 + FRAME_BYTES;
    }

    /// Whether it is known to be of no more use.
    pub(super) fn is_useless(&self) -> bool {
        let state = self.state();
        state.error.is_some() || state.too_much
    }

    /// Ends when the connection is of no more use.
    pub(super) async fn trouble(&self) -> Trouble {
        loop {
            {
                let mut state = self.state();
                if let Some(e) = state.error.take() {
                    return Trouble::Socket(e);
                }
                if state.too_much {
                    return Trouble::TooMuch;
                }
            }
            self.troubled.notified().await;
        }
    }

    fn broke(&self, error: io::Error) {
        self.state().error.get_or_insert(error);
        self.troubled.notify_one();
    }

    /// Whether that was not too much.
    fn received(&self, bytes: usize) -> bool {
        let mut state = self.state();
        state.received_bytes += bytes as u64;
        state.too_much |= state.received_bytes > state.allowed_bytes;
        if state.too_much {
            self.troubled.notify_one();
        }
        !state.too_much
    }
}

impl AsyncUdpSocket for Line {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.socket.try_send(transmit.contents) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(e),
            Err(e) => {
                self.broke(e);
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    fn poll_recv(&self, cx: &mut Context<'_>, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let mut buffer = ReadBuf::new(buffer);
            match self.socket.poll_recv(cx, &mut buffer) {
                Poll::Ready(Ok(())) => {
                    let len = buffer.filled().len();
                    *meta = RecvMeta { addr: self.peer, len, stride: len, ecn: None, dst_ip: None };
                    if !self.received(len) {
                        // Nothing more is handed on: nobody reads what is buffered behind this.
                        return Poll::Pending;
                    }
                    count += 1;
                }
                // It is told once; the connection is then given up.
                Poll::Ready(Err(e)) => {
                    self.broke(e);
                    cx.waker().wake_by_ref();
                    break;
                }
                Poll::Pending => break,
            }
        }
        if count == 0 {
            return Poll::Pending;
        }
        self.heard.notify_one();
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

#[derive(Debug)]
struct Writable(Arc<Line>);

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.socket.poll_send_ready(cx)
    }
}

impl Attempt<'_> {
    /// A QUIC connection to whichever address answers first, its handshake done and its certificate judged.
    pub(super) async fn quic(&mut self, addresses: &[IpAddr], port: u16, host: &str, options: &TlsOptions, alpn: &[&[u8]]) -> Result<Dialed, Failure> {
        let tls = self.quic_tls(host, options, alpn).await?;
        self.fact("network.transport", "quic");
        let net = self.net;
        let dialing = self.race(addresses, port, |address| dial(net, address, &tls)).await?;
        self.phases.next("tls");
        let done = tokio::select! {
            biased;
            done = dialing.connecting => done.map_err(|e| failure(&e)),
            trouble = dialing.line.trouble() => Err(trouble.failure(Reason::TlsHandshake, "the handshake has no end")),
        };
        let done = done.map(|connection| Dialed { connection, line: dialing.line });
        self.quic_judged(&dialing.shown, options, done)
    }
}

/// Says hello to an address, and hears something of it.
async fn dial(net: &NetOptions, peer: SocketAddr, tls: &QuicTls) -> io::Result<Dialing> {
    let line = Arc::new(Line::new(udp_socket(net, peer).await?, peer));
    let endpoint = Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, line.clone(), Arc::new(TokioRuntime))?;
    let (config, shown) = tls.for_one();
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).map_err(io::Error::other)?));
    config.transport_config(TRANSPORT.clone());
    let connecting = endpoint.connect_with(config, peer, &tls.server_name).map_err(io::Error::other)?;
    tokio::select! {
        biased;
        () = line.heard.notified() => Ok(Dialing { connecting, line, shown }),
        trouble = line.trouble() => Err(match trouble {
            Trouble::Socket(e) => e,
            // Nothing was heard yet.
            Trouble::TooMuch => io::Error::other("too many bytes"),
        }),
    }
}

impl Trouble {
    /// As a run's failure; of too many bytes with this reason.
    pub(super) fn failure(self, too_much: Reason, what: &str) -> Failure {
        match self {
            Trouble::Socket(e) => Failure::new(io_reason(&e, Reason::ConnectError), e.to_string()),
            Trouble::TooMuch => Failure::new(too_much, format!("{what}: {IDLE_BYTES_MAX} bytes and more, and nothing comes of them")),
        }
    }
}

/// Why a connection ended.
pub(super) fn failure(error: &ConnectionError) -> Failure {
    let of_transport = |code: u64, otherwise: Reason| match code {
        NO_ALPN => Failure::new(Reason::VersionMismatch, "the server does not offer HTTP/3 (ALPN)"),
        0x100..=0x1ff => Failure::new(Reason::TlsHandshake, error.to_string()),
        // CONNECTION_REFUSED
        0x02 => Failure::new(Reason::ConnectRefused, error.to_string()),
        _ => Failure::new(otherwise, error.to_string()),
    };
    match error {
        ConnectionError::VersionMismatch => Failure::new(Reason::VersionMismatch, "the server speaks no version of QUIC that is known here"),
        ConnectionError::TransportError(e) => of_transport(e.code.into(), Reason::ProtocolError),
        ConnectionError::ConnectionClosed(close) => of_transport(close.error_code.into(), Reason::ConnectionClosed),
        ConnectionError::Reset => Failure::new(Reason::ConnectionReset, "the server knows nothing of the connection any more"),
        ConnectionError::CidsExhausted => Failure::new(Reason::ProberError, error.to_string()),
        _ => Failure::new(Reason::ConnectionClosed, error.to_string()),
    }
}

/// `H3_NO_ERROR` (RFC 9114, section 8.1)
pub(super) const NO_ERROR: VarInt = VarInt::from_u32(0x100);
