//! WebSocket (RFC 6455): the upgrade over a connection of ours, then a dialogue. Messages come whole; their size is bounded.

use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, Uri, header};
use probity_proto::v1::web_socket_step::Step;
use probity_proto::v1::{Reason, TlsOptions, WebSocketCheck};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::bodies::Metered;
use super::{Attempt, Failure, net};

/// Of a ping, so that its pong is known.
const PING: &[u8] = b"probity";
/// Read at once: a run's share of what is read ahead.
const READ_BYTES: usize = 16 << 10;
/// Before the data of a ping or pong (RFC 6455, section 5.2): a server's is not masked, and has at most 125 bytes of data.
const CONTROL_HEAD_BYTES: usize = 2;
/// What is quoted of a message that was not expected.
const QUOTE_BYTES_MAX: usize = 80;

pub(crate) async fn run(attempt: &mut Attempt<'_>, check: &WebSocketCheck) -> Result<(), Failure> {
    let wrong = |what: &str| Failure::new(Reason::Unsupported, format!("{:?} {what}", check.url));
    let uri: Uri = check.url.parse().map_err(|_| wrong("is no URL"))?;
    let secure = match uri.scheme_str() {
        Some("ws") => false,
        Some("wss") => true,
        _ => return Err(wrong("is neither ws:// nor wss://")),
    };
    let host = uri.host().ok_or_else(|| wrong("has no host"))?.to_owned();
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let request = request(attempt, check).await?;
    let addresses = attempt.resolve(&host).await?;
    let stream = attempt.connect(&addresses, port).await?;
    if secure {
        let default = TlsOptions::default();
        let stream = attempt.tls(stream, &host, check.tls.as_ref().unwrap_or(&default), &[b"http/1.1"]).await?;
        over(attempt, check, stream, request).await
    } else {
        over(attempt, check, stream, request).await
    }
}

async fn request(attempt: &Attempt<'_>, check: &WebSocketCheck) -> Result<http::Request<()>, Failure> {
    let unsupported = |m: String| Failure::new(Reason::Unsupported, m);
    let mut request = check.url.as_str().into_client_request().map_err(|e| unsupported(format!("{:?}: {e}", check.url)))?;
    let mut headers = HeaderMap::new();
    for pair in &check.headers {
        let wrong = || unsupported(format!("header {:?} cannot be sent", pair.name));
        headers.append(header::HeaderName::try_from(&pair.name).map_err(|_| wrong())?, header::HeaderValue::try_from(&pair.value).map_err(|_| wrong())?);
    }
    attempt.secret_headers(&check.secret_headers, request.uri().host().unwrap_or_default(), &mut headers).await?;
    if !check.subprotocols.is_empty() {
        let offered = check.subprotocols.join(", ");
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, header::HeaderValue::try_from(offered).map_err(|e| unsupported(e.to_string()))?);
    }
    if let Ok(traceparent) = header::HeaderValue::try_from(attempt.traceparent()) {
        headers.insert("traceparent", traceparent);
    }
    request.headers_mut().extend(headers);
    Ok(request)
}

async fn over(
    attempt: &mut Attempt<'_>,
    check: &WebSocketCheck,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: http::Request<()>,
) -> Result<(), Failure> {
    attempt.phases.next("first_byte");
    let bound = usize::try_from(check.max_message_bytes).ok();
    let config = WebSocketConfig::default().max_message_size(bound).max_frame_size(bound).read_buffer_size(READ_BYTES);
    let stream = Metered::new(stream, attempt.context.bodies.part());
    let (mut socket, response) = client_async_with_config(request, stream, Some(config)).await.map_err(|e| failure(&e))?;
    if let Some(chosen) = response.headers().get(header::SEC_WEBSOCKET_PROTOCOL).and_then(|v| v.to_str().ok()) {
        attempt.fact("websocket.subprotocol", chosen);
    }
    attempt.phases.next("transfer");
    for step in check.dialogue.iter().filter_map(|s| s.step.as_ref()) {
        match step {
            Step::Send(text) => socket.send(Message::text(text)).await.map_err(|e| failure(&e))?,
            Step::SendBinary(bytes) => socket.send(Message::binary(bytes.clone())).await.map_err(|e| failure(&e))?,
            Step::Ping(_) => {
                socket.send(Message::Ping(PING.into())).await.map_err(|e| failure(&e))?;
                while !matches!(next(&mut socket).await?, Message::Pong(data) if data[..] == *PING) {}
            }
            Step::Expect(pattern) => expect(attempt, &mut socket, pattern).await?,
        }
    }
    // Politely; its answer is of no interest.
    let _ = socket.close(None).await;
    Ok(())
}

async fn expect(attempt: &mut Attempt<'_>, socket: &mut WebSocketStream<Metered<impl AsyncRead + AsyncWrite + Unpin>>, pattern: &str) -> Result<(), Failure> {
    let expected = attempt.context.patterns.regex(pattern)?;
    let mut others = 0u64;
    loop {
        let message = next(socket).await?;
        if !matches!(message, Message::Text(_) | Message::Binary(_)) {
            continue;
        }
        let bytes = message.into_data();
        if expected.is_match(&bytes) {
            return Ok(());
        }
        others += 1;
        // For the time-out, should none ever match.
        let quote = String::from_utf8_lossy(&bytes[..bytes.len().min(QUOTE_BYTES_MAX)]).into_owned();
        attempt.fact("websocket.unexpected", format!("{others}, the last one {quote:?}"));
    }
}

async fn next(socket: &mut WebSocketStream<Metered<impl AsyncRead + AsyncWrite + Unpin>>) -> Result<Message, Failure> {
    let heard = socket.next().await;
    let connection = socket.get_mut();
    match &heard {
        // They may stand between the fragments of another message, which goes on.
        Some(Ok(Message::Ping(data) | Message::Pong(data))) => connection.passed(CONTROL_HEAD_BYTES + data.len()),
        // Any other ends what was kept for it: it is looked at, and dropped.
        _ => connection.all_passed(),
    }
    match heard {
        Some(Ok(Message::Close(frame))) => {
            let why = frame.map_or_else(|| "without a reason".to_owned(), |f| format!("with {} {}", u16::from(f.code), f.reason).trim_end().to_owned());
            Err(Failure::new(Reason::ConnectionClosed, format!("the server closed {why}")))
        }
        Some(Ok(message)) => Ok(message),
        Some(Err(e)) => Err(failure(&e)),
        None => Err(Failure::new(Reason::ConnectionClosed, "the server closed")),
    }
}

fn failure(error: &Error) -> Failure {
    let reason = match error {
        Error::Http(response) => return Failure::new(Reason::WebsocketRefused, format!("status {}, want 101 Switching Protocols", response.status().as_u16())),
        Error::Io(e) => net::io_reason(e, Reason::ConnectionReset),
        Error::ConnectionClosed | Error::AlreadyClosed | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Reason::ConnectionClosed,
        Error::Protocol(ProtocolError::HandshakeIncomplete) => Reason::ConnectionClosed,
        Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => Reason::HeaderMismatch,
        Error::Capacity(CapacityError::MessageTooLong { .. }) => Reason::BodyTooLarge,
        _ => Reason::ProtocolError,
    };
    Failure::new(reason, error.to_string())
}
