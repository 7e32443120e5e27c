//! A query out and its answer back: UDP, TCP (RFC 7766), TLS (RFC 7858), HTTPS (RFC 8484, by HTTP/2 where the server offers it, else 1.1).

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use probity_proto::v1::{DnsCheck, DnsTransport, Reason, TlsOptions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout_at;
use tokio_rustls::client::TlsStream;

use super::super::{Attempt, Failure, net};
use super::answer::{Answer, Read, read, text};

/// What is spoken over HTTPS, the better first (RFC 8484, section 5.2).
pub(super) const ALPN_HTTPS: &[&[u8]] = &[b"h2", b"http/1.1"];
/// A datagram that is larger than was agreed is still read up to here.
const DATAGRAM_BYTES_MIN: usize = 4_096;
/// The length field of RFC 1035, section 4.2.2.
const MESSAGE_BYTES_MAX: usize = 65_535;
/// Of the answers, in a fact.
const FACT_BYTES_MAX: usize = 1_024;
/// The query gives up that much before its time-out, so that the reason is ours to tell.
const SPARE: Duration = Duration::from_millis(5);

/// A server and how it is asked.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) transport: DnsTransport,
    pub(super) host: String,
    pub(super) address: SocketAddr,
    pub(super) path: String,
}

impl Attempt<'_> {
    pub(super) async fn ask(&mut self, server: &Server, check: &DnsCheck, query: &Message) -> Result<Answer, Failure> {
        let bytes = query.to_vec().map_err(|e| super::unsupported(e.to_string()))?;
        let default = TlsOptions::default();
        let tls = check.tls.as_ref().unwrap_or(&default);
        match server.transport {
            DnsTransport::Udp => {
                let answer = self.ask_udp(server.address, &bytes, query).await?;
                if !answer.message.metadata.truncation {
                    return Ok(answer);
                }
                self.fact("dns.truncated", "true");
                self.ask_tcp(server.address, &bytes, query).await
            }
            DnsTransport::Tcp => self.ask_tcp(server.address, &bytes, query).await,
            DnsTransport::Tls => {
                let stream = self.connect(&[server.address.ip()], server.address.port()).await?;
                let stream = self.tls(stream, &server.host, tls, &[]).await?;
                self.ask_stream(stream, &bytes, query).await
            }
            DnsTransport::Https => {
                let stream = self.connect(&[server.address.ip()], server.address.port()).await?;
                let stream = self.tls(stream, &server.host, tls, ALPN_HTTPS).await?;
                let phases = &mut self.phases;
                let (body, version) = https(stream, server, bytes, |phase| phases.next(phase)).await?;
                self.fact("network.protocol.version", version);
                only(&body, query)
            }
        }
    }

    async fn ask_udp(&mut self, server: SocketAddr, bytes: &[u8], query: &Message) -> Result<Answer, Failure> {
        self.phases.next("first_byte");
        let socket = self.udp(server).await?;
        let room = query.edns.as_ref().map_or(0, |e| usize::from(e.max_payload())).max(DATAGRAM_BYTES_MIN);
        let until = self.deadline.checked_sub(SPARE).unwrap_or(self.deadline);
        let mut foreign = 0u32;
        match timeout_at(until, exchange_udp(&socket, bytes, query, room, &mut foreign)).await {
            Ok(outcome) => outcome.map_err(|failure| failure.into_failure(server)),
            Err(_) if foreign > 0 => {
                let message = format!("{server}: no answer, but {foreign} that are to no query of ours");
                Err(Failure::new(Reason::DnsUnsolicited, message))
            }
            // The frame's own message says how long that was.
            Err(_) => std::future::pending().await,
        }
    }

    async fn ask_tcp(&mut self, server: SocketAddr, bytes: &[u8], query: &Message) -> Result<Answer, Failure> {
        let stream = self.connect(&[server.ip()], server.port()).await?;
        self.ask_stream(stream, bytes, query).await
    }

    async fn ask_stream(&mut self, mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8], query: &Message) -> Result<Answer, Failure> {
        self.phases.next("first_byte");
        let peer = self.peer.clone();
        let io = |e: std::io::Error| Failure::new(net::io_reason(&e, Reason::ConnectionReset), format!("{peer}: {e}"));
        send_framed(&mut stream, bytes).await.map_err(io)?;
        let length = stream.read_u16().await.map_err(io)?;
        self.phases.next("transfer");
        let answer = receive_framed(&mut stream, length).await.map_err(io)?;
        only(&answer, query)
    }

    pub(super) fn facts_of(&mut self, answer: &Answer) {
        let metadata = &answer.message.metadata;
        self.fact("dns.response_code", super::judge::rcode(&answer.message));
        for (name, records) in [
            ("dns.answer_count", &answer.message.answers),
            ("dns.authority_count", &answer.message.authorities),
            ("dns.additional_count", &answer.message.additionals),
        ] {
            self.fact(name, records.len().to_string());
        }
        if let Some(serial) = answer.message.answers.iter().find_map(|r| if let RData::SOA(soa) = &r.data { Some(soa.serial) } else { None }) {
            self.fact("dns.soa_serial", serial.to_string());
        }
        self.fact("dns.flags", super::judge::flags(metadata).join(" "));
        self.fact("dns.bytes", answer.bytes.to_string());
        let mut answers = answer.message.answers.iter().map(text).collect::<Vec<_>>().join(" ");
        if answers.len() > FACT_BYTES_MAX {
            let cut = (0..=FACT_BYTES_MAX).rev().find(|i| answers.is_char_boundary(*i)).unwrap_or(0);
            answers.truncate(cut);
        }
        self.fact("dns.answers", answers);
        if let Some(ttl) = answer.message.answers.iter().map(|r| r.ttl).min() {
            self.fact("dns.ttl_min_s", ttl.to_string());
        }
    }
}

/// A query by HTTPS over a connection; `turn` is told of each phase. The body of the answer, and the version of HTTP.
pub(super) async fn https(
    stream: TlsStream<TcpStream>,
    server: &Server,
    bytes: Vec<u8>,
    mut turn: impl FnMut(&'static str),
) -> Result<(Bytes, &'static str), Failure> {
    turn("request");
    let wrong = |e: hyper::Error| Failure::new(Reason::ProtocolError, net::chain(&e));
    let path = if server.path.is_empty() { "/dns-query" } else { &server.path };
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    // HTTP/2 has the host in the URI, HTTP/1.1 in a header.
    let uri = if h2 { format!("https://{}{path}", server.host) } else { path.to_owned() };
    let mut request = http::Request::post(&uri)
        .header(http::header::CONTENT_TYPE, "application/dns-message")
        .header(http::header::ACCEPT, "application/dns-message")
        .body(Full::new(Bytes::from(bytes)))
        .map_err(|e| super::unsupported(format!("{uri:?}: {e}")))?;
    if h2 {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(wrong)?;
        let body = answered(async move { sender.send_request(request).await }, connection, turn).await?;
        return Ok((body, "2"));
    }
    let host = http::HeaderValue::try_from(&server.host).map_err(|e| super::unsupported(e.to_string()))?;
    request.headers_mut().insert(http::header::HOST, host);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(wrong)?;
    let body = answered(async move { sender.send_request(request).await }, connection, turn).await?;
    Ok((body, "1.1"))
}

async fn answered(
    response: impl Future<Output = hyper::Result<http::Response<Incoming>>>,
    connection: impl Future,
    mut turn: impl FnMut(&'static str),
) -> Result<Bytes, Failure> {
    let exchange = async {
        let response = response.await.map_err(|e| Failure::new(Reason::ProtocolError, net::chain(&e)))?;
        turn("transfer");
        if response.status() != http::StatusCode::OK {
            return Err(Failure::new(Reason::StatusMismatch, format!("status {}, want 200", response.status().as_u16())));
        }
        let body = Limited::new(response.into_body(), MESSAGE_BYTES_MAX).collect().await;
        body.map(|b| b.to_bytes()).map_err(|e| Failure::new(Reason::DnsMalformed, e.to_string()))
    };
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        done = &mut exchange => done,
        // However it was closed: the answer may have come before.
        _ = &mut connection => exchange.await,
    }
}

/// What went wrong with an exchange over UDP.
#[derive(Debug)]
pub(super) enum Trouble {
    Io(std::io::Error),
    Malformed(String),
}

impl Trouble {
    pub(super) fn into_failure(self, server: SocketAddr) -> Failure {
        match self {
            Trouble::Io(e) => Failure::new(net::io_reason(&e, Reason::ConnectError), format!("{server}: {e}")),
            Trouble::Malformed(e) => malformed(&e),
        }
    }
}

fn malformed(error: &str) -> Failure {
    Failure::new(Reason::DnsMalformed, format!("the answer is no DNS message: {error}"))
}

/// Over a connected socket, so that what comes from elsewhere never gets here.
pub(super) async fn exchange_udp(socket: &UdpSocket, bytes: &[u8], query: &Message, room: usize, foreign: &mut u32) -> Result<Answer, Trouble> {
    socket.send(bytes).await.map_err(Trouble::Io)?;
    let mut buffer = vec![0; room];
    loop {
        let n = socket.recv(&mut buffer).await.map_err(Trouble::Io)?;
        match read(&buffer[..n], query) {
            Read::Ours(answer) => return Ok(*answer),
            Read::Foreign => *foreign = foreign.saturating_add(1),
            Read::Malformed(e) => return Err(Trouble::Malformed(e)),
        }
    }
}

/// With the length before it, in one segment (RFC 7766, section 8).
pub(super) async fn send_framed(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    stream.flush().await
}

pub(super) async fn receive_framed(stream: &mut (impl AsyncRead + Unpin), length: u16) -> std::io::Result<Vec<u8>> {
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    Ok(buffer)
}

/// On a connection of our own there is nobody else's answer.
fn only(bytes: &[u8], query: &Message) -> Result<Answer, Failure> {
    match read(bytes, query) {
        Read::Ours(answer) => Ok(*answer),
        Read::Foreign => Err(Failure::new(Reason::DnsUnsolicited, "the answer is to another query")),
        Read::Malformed(e) => Err(malformed(&e)),
    }
}
