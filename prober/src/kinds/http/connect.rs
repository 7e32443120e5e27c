//! From a URL to an answer: the way there (perhaps by a proxy), TLS, HTTP/1.1, 2 or 3, and connections that are kept.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode, Uri, Version};
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use probity_proto::v1::{HttpVersion, Reason};
use prost::Message;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::super::net::{Wire, io_reason};
use super::super::quic::Dialed;
use super::super::{Attempt, Failure, assert, proxy};
use super::body::Received;
use super::request::{Draft, basic};
use super::{Answer, Shared, Step, body, http3, oauth};

/// Bytes of an answer's head: a larger one is refused.
pub(in super::super) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Connections that are kept, all probes together.
const KEPT_MAX: usize = 1_024;
/// How long one is kept without use: servers commonly close theirs after 60 to 75 s.
const KEPT_FOR: Duration = Duration::from_secs(55);

type Body = Full<Bytes>;

enum Sender {
    H1(http1::SendRequest<Body>),
    H2(http2::SendRequest<Body>),
    H3(http3::Sender),
}

impl Sender {
    fn version(&self) -> Version {
        match self {
            Sender::H1(_) => Version::HTTP_11,
            Sender::H2(_) => Version::HTTP_2,
            Sender::H3(_) => Version::HTTP_3,
        }
    }

    fn closed(&self) -> bool {
        match self {
            Sender::H1(sender) => sender.is_closed(),
            Sender::H2(sender) => sender.is_closed(),
            Sender::H3(sender) => sender.closed(),
        }
    }

    /// Until a request can be sent. A connection that is gone by then has seen nothing of it, whatever its method.
    async fn ready(&mut self) -> Result<(), Error> {
        let ready = match self {
            Sender::H1(sender) => sender.ready().await,
            Sender::H2(sender) => sender.ready().await,
            Sender::H3(_) => Ok(()),
        };
        ready.map_err(|_| Error::Unsent)
    }

    async fn send(&mut self, attempt: &mut Attempt<'_>, request: Request<Body>) -> Result<Response<Received>, Error> {
        self.ready().await?;
        // Before it is handed over: what writes it may run on another thread, and be answered before this one goes on.
        if !matches!(self, Sender::H3(_)) {
            attempt.phases.next("first_byte");
        }
        let answered = match self {
            Sender::H1(sender) => sender.send_request(request).await,
            Sender::H2(sender) => sender.send_request(request).await,
            Sender::H3(sender) => return sender.send(attempt, request).await,
        };
        match answered {
            Ok(response) => Ok(response.map(Received::Tcp)),
            Err(e) if e.is_canceled() => Err(Error::Unsent),
            Err(e) => Err(Error::Unanswered(failure(&e))),
        }
    }
}

/// A connection on which nothing was asked yet.
enum Opened {
    H1(Wire),
    H2(Wire),
    H3(Dialed),
}

/// A connection between two requests.
struct Kept {
    sender: Sender,
    _driver: AbortOnDropHandle<()>,
    peer: String,
    since: Instant,
}

/// Connections that probes with `reuse` keep, by everything that makes them what they are.
#[derive(Default)]
pub(crate) struct Pool(Mutex<HashMap<Vec<u8>, Vec<Kept>>>);

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pool")
    }
}

impl Pool {
    fn take(&self, key: &[u8]) -> Option<Kept> {
        let mut all = self.0.lock().ok()?;
        let of_key = all.get_mut(key)?;
        while let Some(kept) = of_key.pop() {
            if !kept.sender.closed() && kept.since.elapsed() < KEPT_FOR {
                return Some(kept);
            }
        }
        all.remove(key);
        None
    }

    fn put(&self, key: Vec<u8>, kept: Kept) {
        let Ok(mut all) = self.0.lock() else { return };
        if all.values().map(Vec::len).sum::<usize>() >= KEPT_MAX {
            all.retain(|_, of_key| {
                of_key.retain(|k| !k.sender.closed() && k.since.elapsed() < KEPT_FOR);
                !of_key.is_empty()
            });
        }
        if all.values().map(Vec::len).sum::<usize>() < KEPT_MAX {
            all.entry(key).or_default().push(kept);
        }
    }
}

/// Where a URL leads.
struct Way<'u> {
    secure: bool,
    host: &'u str,
    port: u16,
}

impl<'u> Way<'u> {
    fn of(uri: &'u Uri) -> Result<Way<'u>, Failure> {
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(Failure::new(Reason::ProtocolError, format!("{uri} is neither http nor https"))),
        };
        Ok(Way { secure, host: uri.host().unwrap_or_default(), port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }) })
    }
}

/// One request and its answer, judged by the step's status; where the step follows redirects one is handed back as it is, without its body.
pub(super) async fn exchange(attempt: &mut Attempt<'_>, shared: Shared<'_>, uri: &Uri, draft: &mut Draft, step: Option<Step<'_>>) -> Result<Answer, Failure> {
    let way = Way::of(uri)?;
    attempt.fact("url.scheme", if way.secure { "https" } else { "http" });
    let proxy = shared.check.proxy.as_ref();
    let to_proxy = !way.secure && proxy.is_some_and(|p| p.url.starts_with("http://"));
    if let Some(proxy) = proxy.filter(|p| to_proxy && !p.username.is_empty()) {
        draft.proxy_authorization = Some(basic(&proxy.username, &attempt.secret(&proxy.password_secret_ref, proxy::host(proxy)).await?)?);
    }
    let version = match shared.check.version() {
        // A token is asked for as its server likes.
        HttpVersion::HttpVersion3 if step.is_none() => HttpVersion::Auto,
        version => version,
    };
    let exchange = Exchange { shared, uri, draft, step, to_proxy };
    if !shared.check.reuse {
        let opened = open(attempt, shared, &way, version).await?;
        return exchange.fresh(attempt, opened).await;
    }
    let key = key(attempt, shared, &way, version);
    if let Some(kept) = attempt.context.pool.take(&key) {
        attempt.peer.clone_from(&kept.peer);
        attempt.fact("http.connection.reused", "true");
        attempt.phases.next("request");
        match exchange.over(attempt, kept.sender).await {
            // The server closed it before it saw the request: that is no failure of the target's.
            Err(Error::Unsent) => {}
            // Or while it was on its way to it. Who keeps connections must expect that (RFC 9110, section 9.2.2): once more, on a fresh one,
            // which then tells whether it is the target's failure. Over UDP a server that is gone refuses.
            Err(Error::Unanswered(f))
                if matches!(f.reason, Reason::ConnectionClosed | Reason::ConnectionReset | Reason::ConnectRefused) && draft.method.is_idempotent() =>
            {
                attempt.fact("http.connection.retried", f.reason.label());
            }
            other => return exchange.keep(attempt, key, kept._driver, other),
        }
    }
    attempt.fact("http.connection.reused", "false");
    let opened = open(attempt, shared, &way, version).await?;
    attempt.phases.next("request");
    let (sender, driver) = spawned(opened).await?;
    let done = exchange.over(attempt, sender).await;
    exchange.keep(attempt, key, driver, done)
}

/// Why there is no answer.
pub(super) enum Error {
    /// The connection was gone before the request was on its way.
    Unsent,
    /// No answer's head came.
    Unanswered(Failure),
    Failed(Failure),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        Error::Failed(failure)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::Unsent => Failure::new(Reason::ConnectionClosed, "the server closed the connection before the request was sent"),
            Error::Unanswered(failure) | Error::Failed(failure) => failure,
        }
    }
}

#[derive(Clone, Copy)]
struct Exchange<'x> {
    shared: Shared<'x>,
    uri: &'x Uri,
    draft: &'x Draft,
    step: Option<Step<'x>>,
    /// The proxy is asked for the whole URL, because nothing is tunnelled.
    to_proxy: bool,
}

impl Exchange<'_> {
    /// Over a connection that ends with the request. No task for HTTP/1.1: the connection lives as long as the work.
    async fn fresh(self, attempt: &mut Attempt<'_>, opened: Opened) -> Result<Answer, Failure> {
        attempt.phases.next("request");
        let wire = match opened {
            Opened::H1(wire) => wire,
            opened => {
                let (sender, _driver) = spawned(opened).await?;
                return Ok(self.over(attempt, sender).await?.0);
            }
        };
        let (sender, connection) = h1().handshake(TokioIo::new(wire)).await.map_err(|e| failure(&e))?;
        let work = self.over(attempt, Sender::H1(sender));
        tokio::pin!(work);
        tokio::pin!(connection);
        let (done, ended) = tokio::select! {
            // The request first: then the connection has something to send when its turn comes.
            biased;
            done = &mut work => (done, None),
            ended = &mut connection => ((&mut work).await, Some(ended)),
        };
        match (done, ended) {
            // Why the connection ended tells more: a server that wants a client certificate says so before it reads a request (TLS 1.3).
            (Err(Error::Unsent), Some(Err(e))) => Err(failure(&e)),
            (Err(Error::Unsent), None) => match connection.now_or_never() {
                Some(Err(e)) => Err(failure(&e)),
                _ => Err(Error::Unsent.into()),
            },
            (done, _) => Ok(done?.0),
        }
    }

    /// The answer, and the sender when its connection can be used again.
    async fn over(self, attempt: &mut Attempt<'_>, mut sender: Sender) -> Result<(Answer, Option<Sender>), Error> {
        let check = self.shared.check;
        let request = self.draft.request(self.uri, sender.version(), self.to_proxy, check.reuse)?;
        let response = sender.send(attempt, request).await?;
        attempt.phases.next("transfer");
        let (parts, incoming) = response.into_parts();
        attempt.fact("http.response.status_code", parts.status.as_str());
        attempt.fact("network.protocol.version", assert::version_word(parts.version));
        let text = |name| parts.headers.get(name).and_then(|v| v.to_str().ok());
        if let Some(length) = text(http::header::CONTENT_LENGTH) {
            attempt.fact("http.response.header.content-length", length);
        }
        // As seconds since 1970: what compares them needs numbers.
        if let Some(at) = text(http::header::LAST_MODIFIED).and_then(|t| jiff::fmt::rfc2822::parse(t).ok()) {
            attempt.fact("http.response.header.last-modified", at.timestamp().as_second().to_string());
        }
        let mut answer = Answer { status: parts.status, version: parts.version, headers: parts.headers, body: Bytes::new(), held: None };
        let follows = self.step.is_some_and(|s| s.follow_redirects > 0);
        if follows && parts.status.is_redirection() && answer.headers.contains_key(http::header::LOCATION) {
            return Ok((answer, None));
        }
        if parts.status == StatusCode::UNAUTHORIZED {
            oauth::forget(attempt, self.step.and_then(|s| s.auth));
        }
        if let Some(expect) = self.step.and_then(|s| s.expect) {
            assert::status(expect, parts.status.as_u16())?;
        }
        let (body, held) = body::read(attempt, check, &answer.headers, incoming).await?;
        (answer.body, answer.held) = (body, Some(held));
        Ok((answer, Some(sender)))
    }

    fn keep(
        self,
        attempt: &mut Attempt<'_>,
        key: Vec<u8>,
        driver: AbortOnDropHandle<()>,
        done: Result<(Answer, Option<Sender>), Error>,
    ) -> Result<Answer, Failure> {
        let (answer, sender) = done?;
        if let Some(sender) = sender.filter(|s| !s.closed()) {
            attempt.context.pool.put(key, Kept { sender, _driver: driver, peer: attempt.peer.clone(), since: Instant::now() });
        }
        Ok(answer)
    }
}

/// A connection that a task drives.
async fn spawned(opened: Opened) -> Result<(Sender, AbortOnDropHandle<()>), Failure> {
    let wire = match opened {
        Opened::H1(wire) => wire,
        Opened::H2(wire) => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.max_header_list_size(HEAD_BYTES_MAX as u32);
            let (sender, connection) = builder.handshake(TokioIo::new(wire)).await.map_err(|e| failure(&e))?;
            let driver = tokio::spawn(async move { drop(connection.await) });
            return Ok((Sender::H2(sender), AbortOnDropHandle::new(driver)));
        }
        Opened::H3(quic) => {
            let (sender, driver) = http3::open(quic).await?;
            return Ok((Sender::H3(sender), driver));
        }
    };
    let (sender, connection) = h1().handshake(TokioIo::new(wire)).await.map_err(|e| failure(&e))?;
    let driver = tokio::spawn(async move { drop(connection.await) });
    Ok((Sender::H1(sender), AbortOnDropHandle::new(driver)))
}

fn h1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES_MAX);
    builder
}

/// A connection to the target.
async fn open(attempt: &mut Attempt<'_>, shared: Shared<'_>, way: &Way<'_>, version: HttpVersion) -> Result<Opened, Failure> {
    if version == HttpVersion::HttpVersion3 {
        if !way.secure {
            return Err(Failure::new(Reason::VersionMismatch, "HTTP/3 is spoken with https only"));
        }
        if shared.check.proxy.is_some() {
            return Err(Failure::new(Reason::Unsupported, "HTTP/3 goes straight to the target, and a proxy is given"));
        }
        let addresses = attempt.resolve(way.host).await?;
        return attempt.quic(&addresses, way.port, way.host, shared.tls, &[b"h3"]).await.map(Opened::H3);
    }
    let stream = match &shared.check.proxy {
        Some(proxy) => proxy::connect(attempt, proxy, way.host, way.port, way.secure).await?,
        None => {
            let addresses = attempt.resolve(way.host).await?;
            attempt.connect(&addresses, way.port).await?
        }
    };
    if !way.secure {
        let wire = Wire::Plain(stream);
        return Ok(if version == HttpVersion::HttpVersion2 { Opened::H2(wire) } else { Opened::H1(wire) });
    }
    let alpn: &[&[u8]] = match version {
        HttpVersion::HttpVersion11 => &[b"http/1.1"],
        HttpVersion::HttpVersion2 => &[b"h2"],
        _ => &[b"h2", b"http/1.1"],
    };
    let stream = attempt.tls(stream, way.host, shared.tls, alpn).await?;
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let wire = Wire::Tls(Box::new(stream));
    match (version, h2) {
        (HttpVersion::HttpVersion2, false) => Err(Failure::new(Reason::VersionMismatch, "the server does not offer HTTP/2 (ALPN)")),
        (_, true) => Ok(Opened::H2(wire)),
        (_, false) => Ok(Opened::H1(wire)),
    }
}

/// Everything that makes a connection what it is.
fn key(attempt: &Attempt<'_>, shared: Shared<'_>, way: &Way<'_>, version: HttpVersion) -> Vec<u8> {
    // Who a connection shows itself as is a namespace's.
    let mut key = format!("{} {} {}:{} {} {}", attempt.namespace, way.secure, way.host, way.port, version as i32, attempt.family as i32).into_bytes();
    for part in [shared.tls.encode_length_delimited_to_vec(), attempt.net.encode_length_delimited_to_vec()] {
        key.extend(part);
    }
    key.extend(shared.check.proxy.iter().flat_map(Message::encode_length_delimited_to_vec));
    key
}

/// A server of HTTP/2 that ends a connection or a stream in good form (RFC 9113, sections 6.8 and 6.4) breaks no protocol.
fn ended_by_server(error: &h2::Error) -> Option<Failure> {
    let code = error.reason().filter(|_| error.is_remote())?;
    if error.is_go_away() {
        return Some(Failure::new(Reason::ConnectionClosed, format!("the server closed the connection (GOAWAY): {code}")));
    }
    error.is_reset().then(|| Failure::new(Reason::ConnectionReset, format!("the server gave the request up (RST_STREAM): {code}")))
}

/// hyper's error by its cause.
pub(in super::super) fn failure(error: &hyper::Error) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut text = error.to_string();
    while let Some(e) = cause {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            // A server that wants a client certificate says so only after its handshake (TLS 1.3).
            if io.get_ref().is_some_and(|e| e.is::<rustls::Error>()) {
                return Failure::new(Reason::TlsHandshake, io.to_string());
            }
            return Failure::new(io_reason(io, Reason::ProtocolError), io.to_string());
        }
        if let Some(ended) = e.downcast_ref::<h2::Error>().and_then(ended_by_server) {
            return ended;
        }
        text = e.to_string();
        cause = e.source();
    }
    if error.is_parse_too_large() {
        return Failure::new(Reason::HeadersTooLarge, format!("the answer's head has more than {HEAD_BYTES_MAX} bytes or 100 headers"));
    }
    let closed = error.is_incomplete_message() || error.is_closed() || error.is_canceled();
    Failure::new(if closed { Reason::ConnectionClosed } else { Reason::ProtocolError }, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_is_gone_has_seen_no_request() {
        let (near, _far) = tokio::io::duplex(1_024);
        let (sender, connection) = h1().handshake::<_, Body>(TokioIo::new(near)).await.expect("a connection");
        drop(connection);
        assert!(matches!(Sender::H1(sender).ready().await, Err(Error::Unsent)));
        let (near, _far) = tokio::io::duplex(1_024);
        let (sender, connection) = http2::Builder::new(TokioExecutor::new()).handshake::<_, Body>(TokioIo::new(near)).await.expect("a connection");
        drop(connection);
        assert!(matches!(Sender::H2(sender).ready().await, Err(Error::Unsent)));
    }
}
