//! The gRPC health checking protocol (grpc/grpc, doc/health-checking.md) over HTTP/2 of our own, so that the phases are seen apart.

use bytes::{Bytes, BytesMut};
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use probity_proto::v1::{GrpcCheck, Reason, SecretHeader};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::{Attempt, Failure, net};

/// A health answer has a few bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Flag and length before each message.
const PREFIX_BYTES: usize = 5;
const METHOD: &str = "/grpc.health.v1.Health/Check";
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

pub(crate) async fn run(attempt: &mut Attempt<'_>, check: &GrpcCheck) -> Result<(), Failure> {
    let (host, port) = net::host_port(&check.address)?;
    let mut headers = HeaderMap::new();
    for pair in &check.metadata {
        insert(&mut headers, &pair.name, &pair.value)?;
    }
    attempt.secret_headers(&check.secret_metadata, host, &mut headers).await?;
    let addresses = attempt.resolve(host).await?;
    let stream = attempt.connect(&addresses, port).await?;
    match &check.tls {
        Some(options) => {
            let stream = attempt.tls(stream, host, options, &[b"h2"]).await?;
            call(attempt, check, stream, headers).await
        }
        None => call(attempt, check, stream, headers).await,
    }
}

fn insert(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), Failure> {
    let wrong = || Failure::new(Reason::Unsupported, format!("{name:?} cannot stand in a header"));
    headers.append(HeaderName::try_from(name).map_err(|_| wrong())?, HeaderValue::try_from(value).map_err(|_| wrong())?);
    Ok(())
}

impl Attempt<'_> {
    /// Headers whose values are secrets of this host, to be sent to another.
    pub(super) async fn secret_headers(&self, wanted: &[SecretHeader], to: &str, headers: &mut HeaderMap) -> Result<(), Failure> {
        for header in wanted {
            let secret = self.secret(&header.secret_ref, to).await?;
            let wrong = |what| Failure::new(Reason::SecretMissing, format!("{what} {:?} cannot stand in a header", header.secret_ref));
            let mut value = HeaderValue::try_from(format!("{}{secret}", header.prefix)).map_err(|_| wrong("the secret"))?;
            value.set_sensitive(true);
            headers.append(HeaderName::try_from(&header.name).map_err(|_| wrong("the name beside"))?, value);
        }
        Ok(())
    }
}

async fn call(
    attempt: &mut Attempt<'_>,
    check: &GrpcCheck,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    headers: HeaderMap,
) -> Result<(), Failure> {
    attempt.phases.next("request");
    let broken = |e: hyper::Error| super::http::failure(&e);
    let scheme = if check.tls.is_some() { "https" } else { "http" };
    let uri: Uri =
        format!("{scheme}://{}{METHOD}", check.address).parse().map_err(|_| Failure::new(Reason::Unsupported, format!("{:?} is no address", check.address)))?;
    // The server may give up when we do.
    let left = attempt.deadline.saturating_duration_since(Instant::now()).as_millis().clamp(1, 99_999_999);
    let mut request = Request::post(uri)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, concat!("probity/", env!("CARGO_PKG_VERSION")))
        .header("grpc-timeout", format!("{left}m"))
        .header("traceparent", attempt.traceparent())
        .body(Full::new(question(&check.service)))
        .map_err(|e| Failure::new(Reason::Unsupported, e.to_string()))?;
    request.headers_mut().extend(headers);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.max_header_list_size(super::http::HEAD_BYTES_MAX as u32);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let (head, body, trailers) = {
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            attempt.phases.next("transfer");
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|e| match e.downcast::<hyper::Error>() {
                Ok(e) => broken(*e),
                Err(_) => Failure::new(Reason::BodyTooLarge, format!("the answer has more than {ANSWER_BYTES_MAX} bytes")),
            })?;
            let trailers = body.trailers().cloned().unwrap_or_default();
            Ok::<_, Failure>((head, body.to_bytes(), trailers))
        };
        tokio::pin!(exchange);
        tokio::pin!(connection);
        tokio::select! {
            biased;
            done = &mut exchange => done?,
            // However it was closed: the answer may have come before.
            _ = &mut connection => exchange.await?,
        }
    };
    if head.status != http::StatusCode::OK {
        return Err(Failure::new(Reason::StatusMismatch, format!("status {}: no gRPC server", head.status.as_u16())));
    }
    // A call that fails at once has its status where headers are.
    let trailers = if head.headers.contains_key("grpc-status") { head.headers } else { trailers };
    judge(attempt, check, &body, &trailers)
}

fn judge(attempt: &mut Attempt<'_>, check: &GrpcCheck, body: &[u8], trailers: &HeaderMap) -> Result<(), Failure> {
    let text = |name| trailers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or_default();
    let Ok(code) = text("grpc-status").parse::<usize>() else { return Err(Failure::new(Reason::ProtocolError, "the answer has no grpc-status")) };
    attempt.fact("rpc.grpc.status_code", code.to_string());
    if code != 0 {
        let word = CODES.get(code).copied().unwrap_or("an unknown code");
        // A service that is not registered is NOT_FOUND by the protocol: SERVICE_UNKNOWN is what Watch says of it.
        if code == 5 && check.statuses.iter().any(|s| s == "SERVICE_UNKNOWN") {
            return Ok(());
        }
        return Err(Failure::new(Reason::GrpcStatus, format!("{word} ({code}): {}", text("grpc-message"))));
    }
    let status = answer(body).ok_or_else(|| Failure::new(Reason::ProtocolError, "the answer is no HealthCheckResponse"))?;
    let word = STATUSES.get(status as usize).copied().unwrap_or("unknown");
    attempt.fact("grpc.health.status", word);
    let good = if check.statuses.is_empty() { word == "SERVING" } else { check.statuses.iter().any(|s| s == word) };
    if good { Ok(()) } else { Err(Failure::new(Reason::GrpcNotServing, format!("the service is {word}"))) }
}

/// A HealthCheckRequest (field 1: service), uncompressed.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.extend_from_slice(&[0x0a]);
        let mut length = service.len();
        while length >= 0x80 {
            message.extend_from_slice(&[length as u8 | 0x80]);
            length >>= 7;
        }
        message.extend_from_slice(&[length as u8]);
        message.extend_from_slice(service.as_bytes());
    }
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    out.extend_from_slice(&[0]);
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(&message);
    out.freeze()
}

/// The status of a HealthCheckResponse (field 1, an enum): the last one counts, and what is unknown is skipped.
fn answer(body: &[u8]) -> Option<u64> {
    let (prefix, rest) = body.split_at_checked(PREFIX_BYTES)?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    let mut message = rest.get(..length).filter(|_| prefix[0] == 0)?;
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match key & 7 {
            0 => {
                let value = varint(&mut message)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// For tests/fuzz.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(bytes: &[u8]) {
    let _ = answer(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages() {
        assert_eq!(question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(question("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(question(&"x".repeat(200))[5..8], [0x0a, 0xc8, 1]);
        assert_eq!(answer(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(answer(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        // An unknown text, then the status.
        assert_eq!(answer(&[0, 0, 0, 0, 5, 0x12, 1, b'x', 8, 2]), Some(2));
        for wrong in [&[][..], &[0, 0, 0, 0, 9, 8, 1], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 1, 8], &[0, 0, 0, 0, 2, 0x12, 9]] {
            assert_eq!(answer(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_from_outside_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), length in any::<u32>()) {
            let _ = answer(&bytes);
            let _ = answer(&[&[0][..], &length.to_be_bytes(), &bytes].concat());
            let _ = answer(&[&[0][..], &(bytes.len() as u32).to_be_bytes(), &bytes].concat());
        }
    }
}
