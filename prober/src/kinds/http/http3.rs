//! HTTP/3 (RFC 9114) by h3, over a QUIC connection straight to the target: no `Alt-Svc` is asked for or followed.

use std::sync::Arc;

use ::h3::client::{RequestStream, SendRequest};
use ::h3::error::{Code, StreamError};
use bytes::{Buf, Bytes};
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use probity_proto::v1::Reason;
use tokio_util::task::AbortOnDropHandle;

use super::super::quic::{self, Dialed, Line};
use super::super::{Attempt, Failure};
use super::body::{Received, content_length};
use super::connect::{Error, HEAD_BYTES_MAX};

/// What an exchange brings besides its head and its body: acknowledgements, its part of control frames.
const HEAD_BYTES: usize = 1_024;
/// Empty frames of a body in a row: who sends more breaks the protocol, as with HTTP/2.
const EMPTY_FRAMES_MAX: usize = 16;

/// What asks over a connection, which ends with it.
pub(super) struct Sender {
    requests: SendRequest<h3_quinn::OpenStreams, Bytes>,
    quic: Dialed,
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.quic.connection.close(quic::NO_ERROR, b"");
    }
}

/// HTTP/3 on a connection, and what drives it.
pub(super) async fn open(quic: Dialed) -> Result<(Sender, AbortOnDropHandle<()>), Failure> {
    let mut builder = ::h3::client::builder();
    builder.max_field_section_size(HEAD_BYTES_MAX as u64).send_grease(false);
    let built = builder.build(h3_quinn::Connection::new(quic.connection.clone())).await;
    let (mut driver, requests) =
        built.map_err(|e| quic.connection.close_reason().map_or_else(|| Failure::new(Reason::ProtocolError, e.to_string()), |why| quic::failure(&why)))?;
    let driver = tokio::spawn(async move { drop(driver.wait_idle().await) });
    Ok((Sender { requests, quic }, AbortOnDropHandle::new(driver)))
}

impl Sender {
    pub(super) fn closed(&self) -> bool {
        self.quic.connection.close_reason().is_some() || self.quic.line.is_useless()
    }

    /// Sends a request; the answer's head.
    pub(super) async fn send(&mut self, attempt: &mut Attempt<'_>, request: Request<Full<Bytes>>) -> Result<Response<Received>, Error> {
        let line = self.quic.line.clone();
        tokio::select! {
            biased;
            answer = self.ask(attempt, request) => answer,
            trouble = line.trouble() => Err(Error::Unanswered(trouble.failure(Reason::HeadersTooLarge, "the answer's head has no end"))),
        }
    }

    async fn ask(&mut self, attempt: &mut Attempt<'_>, request: Request<Full<Bytes>>) -> Result<Response<Received>, Error> {
        let (mut parts, body) = request.into_parts();
        let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        if !body.is_empty() || matches!(parts.method, Method::POST | Method::PUT | Method::PATCH) {
            parts.headers.entry(CONTENT_LENGTH).or_insert(body.len().into());
        }
        let bodiless = parts.method == Method::HEAD;
        let connection = self.quic.connection.clone();
        let failed = |e: &StreamError| failure(&connection, e);
        let stream = match self.requests.send_request(Request::from_parts(parts, ())).await {
            Ok(stream) => stream,
            Err(StreamError::HeaderTooBig { max_size, .. }) => {
                return Err(Failure::new(Reason::ProtocolError, format!("the server takes at most {max_size} bytes of headers")).into());
            }
            Err(e) => return Err(unsent(&connection, &e).unwrap_or_else(|| failed(&e).into())),
        };
        let (mut to, mut from) = stream.split();
        let early = {
            let sending = async {
                if !body.is_empty() {
                    to.send_data(body).await?;
                }
                to.finish().await
            };
            tokio::select! {
                biased;
                // That it cannot be sent is no failure yet: a server may answer without having read it, and then resets it.
                _ = sending => None,
                answer = from.recv_response() => Some(answer),
            }
        };
        attempt.phases.next("first_byte");
        let mut answer = match early {
            Some(answer) => answer,
            None => from.recv_response().await,
        };
        while answer.as_ref().is_ok_and(|a| a.status().is_informational()) {
            answer = from.recv_response().await;
        }
        let (parts, ()) = match answer {
            Ok(answer) => answer.into_parts(),
            // Another connection may be asked then (RFC 9114, section 4.1.1).
            Err(StreamError::RemoteTerminate { code: Code::H3_REQUEST_REJECTED, .. }) => return Err(Error::Unsent),
            Err(e) => return Err(Error::Unanswered(failed(&e))),
        };
        self.quic.line.of_use(parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>() + HEAD_BYTES);
        let bodiless = bodiless || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let body = Body { from, connection, line: self.quic.line.clone(), left: (!bodiless).then(|| content_length(&parts.headers)).flatten() };
        Ok(Response::from_parts(parts, Received::Quic(Box::new(body))))
    }
}

/// A body as it comes.
pub(super) struct Body {
    from: RequestStream<h3_quinn::RecvStream, Bytes>,
    connection: quinn::Connection,
    line: Arc<Line>,
    /// Of what was announced.
    left: Option<u64>,
}

impl Body {
    /// The next piece; after the last one nothing.
    pub(super) async fn chunk(&mut self) -> Option<Result<Bytes, Failure>> {
        let data = tokio::select! {
            biased;
            data = next(&mut self.from) => data.map_err(|e| failure(&self.connection, &e)),
            trouble = self.line.trouble() => Err(trouble.failure(Reason::ProtocolError, "the answer's body does not go on")),
        };
        let data = data.transpose()?;
        Some(data.and_then(|data| self.counted(data)))
    }

    /// RFC 9114, section 4.1.2: what does not have the announced length is malformed.
    fn counted(&mut self, data: Bytes) -> Result<Bytes, Failure> {
        self.line.of_use(data.len());
        if let Some(left) = &mut self.left {
            *left =
                left.checked_sub(data.len() as u64).ok_or_else(|| Failure::new(Reason::ProtocolError, "the body has more bytes than its content-length"))?;
        }
        Ok(data)
    }

    /// Bytes that were announced and did not come.
    pub(super) fn missing(&self) -> u64 {
        self.left.unwrap_or(0)
    }

    pub(super) fn announced(&self) -> Option<u64> {
        self.left
    }
}

/// The next piece of a body, or its end. h3 takes an empty frame for the end of a body (RFC 9114, section 7.2.1, allows one anywhere), so the end is only
/// believed when nothing follows; trailers, which may, are read here, and passed over.
async fn next(from: &mut RequestStream<h3_quinn::RecvStream, Bytes>) -> Result<Option<Bytes>, StreamError> {
    for _ in 0..EMPTY_FRAMES_MAX {
        if let Some(mut data) = from.recv_data().await? {
            return Ok(Some(data.copy_to_bytes(data.remaining())));
        }
    }
    from.recv_trailers().await.map(|_| None)
}

/// A connection that was gone already is no failure of the target's: another one is made.
fn unsent(connection: &quinn::Connection, error: &StreamError) -> Option<Error> {
    let gone = match connection.close_reason() {
        Some(quinn::ConnectionError::ApplicationClosed(close)) => close.error_code == quic::NO_ERROR,
        Some(quinn::ConnectionError::Reset | quinn::ConnectionError::TimedOut) => true,
        Some(_) => false,
        None => matches!(error, StreamError::RemoteClosing { .. }),
    };
    gone.then_some(Error::Unsent)
}

fn failure(connection: &quinn::Connection, error: &StreamError) -> Failure {
    match connection.close_reason() {
        // By h3, for a reason that its error tells.
        None | Some(quinn::ConnectionError::LocallyClosed) => {}
        Some(why) => return quic::failure(&why),
    }
    match error {
        StreamError::HeaderTooBig { .. } => Failure::new(Reason::HeadersTooLarge, format!("the answer's head has more than {HEAD_BYTES_MAX} bytes")),
        StreamError::RemoteTerminate { code, .. } => Failure::new(Reason::ConnectionReset, format!("the server gave the request up: {code}")),
        StreamError::RemoteClosing { .. } => Failure::new(Reason::ConnectionClosed, "the server closes the connection"),
        e => Failure::new(Reason::ProtocolError, e.to_string()),
    }
}
