//! HTTP/1.1 on hyper with our own connector, because the phases must be seen apart.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use probity_proto::v1::{HttpCheck, HttpExpect, Reason, TlsOptions, http_auth};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Attempt, Failure, assert, net};

pub(crate) async fn run(attempt: &mut Attempt<'_>, check: &HttpCheck) -> Result<(), Failure> {
    let mut url = check.url.clone();
    let mut redirects = 0;
    loop {
        let uri: Uri = url.parse().map_err(|_| Failure::new(Reason::ProtocolError, format!("{url:?} is no URL")))?;
        let next = exchange(attempt, check, &uri, redirects < check.follow_redirects).await?;
        let Some(location) = next else { return Ok(()) };
        redirects += 1;
        url = absolute(&uri, &location).ok_or_else(|| Failure::new(Reason::ProtocolError, format!("redirect to {location:?}, which is no URL")))?;
    }
}

/// A `Location` against the URL that gave it.
fn absolute(base: &Uri, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_owned());
    }
    let authority = base.authority()?;
    let scheme = base.scheme_str()?;
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    let directory = base.path().rsplit_once('/').map_or("", |(d, _)| d);
    Some(format!("{scheme}://{authority}{directory}/{location}"))
}

/// One request; the location when it is a redirect to follow.
async fn exchange(attempt: &mut Attempt<'_>, check: &HttpCheck, uri: &Uri, follow: bool) -> Result<Option<String>, Failure> {
    let secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(Failure::new(Reason::ProtocolError, format!("{uri} is neither http nor https"))),
    };
    let host = uri.host().unwrap_or_default().to_owned();
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let request = request(attempt, check, uri).await?;
    let addresses = attempt.resolve(&host).await?;
    let stream = attempt.connect(&addresses, port).await?;
    if secure {
        let default = TlsOptions::default();
        let stream = attempt.tls(stream, &host, check.tls.as_ref().unwrap_or(&default), &[]).await?;
        over(attempt, check, request, stream, follow).await
    } else {
        over(attempt, check, request, stream, follow).await
    }
}

async fn request(attempt: &Attempt<'_>, check: &HttpCheck, uri: &Uri) -> Result<Request<Full<Bytes>>, Failure> {
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let authority = uri.authority().map(|a| a.as_str().rsplit('@').next().unwrap_or_default().to_owned()).unwrap_or_default();
    let mut builder = Request::builder()
        .method(Method::from_bytes(check.method.as_bytes()).unwrap_or(Method::GET))
        .uri(path)
        .header(header::HOST, authority)
        .header(header::USER_AGENT, concat!("probity/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .header("traceparent", &attempt.traceparent);
    if let Some(auth) = check.auth.as_ref().and_then(|a| a.auth.as_ref()) {
        let secret = |name: &str| {
            let name = name.to_owned();
            async move { attempt.context.secrets.read(&name).await.map_err(|m| Failure::new(Reason::SecretMissing, m)) }
        };
        let value = match auth {
            http_auth::Auth::BearerSecretRef(name) => format!("Bearer {}", secret(name).await?),
            http_auth::Auth::Basic(basic) => {
                let password = secret(&basic.password_secret_ref).await?;
                format!("Basic {}", STANDARD.encode(format!("{}:{password}", basic.username)))
            }
        };
        let mut value = http::HeaderValue::try_from(value).map_err(|_| Failure::new(Reason::SecretMissing, "the secret cannot stand in a header"))?;
        value.set_sensitive(true);
        builder = builder.header(header::AUTHORIZATION, value);
    }
    let mut request = builder
        .body(Full::new(Bytes::from(check.body.clone())))
        .map_err(|e| Failure::new(Reason::ProtocolError, format!("the request cannot be made: {e}")))?;
    for h in &check.headers {
        let (Ok(name), Ok(value)) = (http::HeaderName::try_from(&h.name), http::HeaderValue::try_from(&h.value)) else {
            return Err(Failure::new(Reason::ProtocolError, format!("header {:?} cannot be sent", h.name)));
        };
        request.headers_mut().insert(name, value);
    }
    Ok(request)
}

async fn over(
    attempt: &mut Attempt<'_>,
    check: &HttpCheck,
    request: Request<Full<Bytes>>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    follow: bool,
) -> Result<Option<String>, Failure> {
    attempt.phases.next("request");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failure(&e))?;
    let work = async {
        sender.ready().await.map_err(|e| failure(&e))?;
        let sending = sender.send_request(request);
        attempt.phases.next("first_byte");
        let response = sending.await.map_err(|e| failure(&e))?;
        attempt.phases.next("transfer");
        read(attempt, check, response, follow).await
    };
    tokio::pin!(work);
    tokio::pin!(connection);
    // No task is spawned: the connection lives as long as the work.
    tokio::select! {
        done = &mut work => done,
        _ = &mut connection => work.await,
    }
}

async fn read(attempt: &mut Attempt<'_>, check: &HttpCheck, response: Response<Incoming>, follow: bool) -> Result<Option<String>, Failure> {
    let default = HttpExpect::default();
    let expect = check.expect.as_ref().unwrap_or(&default);
    let (parts, mut body) = response.into_parts();
    attempt.facts.retain(|(name, _)| !name.starts_with("http."));
    attempt.facts.push(("http.response.status_code", parts.status.as_str().to_owned()));
    let location = parts.headers.get(header::LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
    if let (true, Some(location)) = (parts.status.is_redirection(), &location) {
        if follow {
            return Ok(Some(location.clone()));
        }
        if check.follow_redirects > 0 {
            return Err(Failure::new(Reason::RedirectLimit, format!("more than {} redirects", check.follow_redirects)));
        }
    }
    assert::status(expect, parts.status.as_u16())?;
    assert::headers(expect, &parts.headers)?;
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| failure(&e))?;
        if let Some(data) = frame.data_ref() {
            if bytes.len() + data.len() > check.max_body_bytes as usize {
                return Err(Failure::new(Reason::BodyTooLarge, format!("the body has more than {} bytes", check.max_body_bytes)));
            }
            bytes.extend_from_slice(data);
        }
    }
    attempt.facts.push(("http.response.body.size", bytes.len().to_string()));
    assert::body(expect, &bytes)?;
    Ok(None)
}

/// hyper's error by its cause.
fn failure(error: &hyper::Error) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut text = error.to_string();
    while let Some(e) = cause {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            return Failure::new(net::io_reason(io, Reason::ProtocolError), io.to_string());
        }
        text = e.to_string();
        cause = e.source();
    }
    let reason = if error.is_incomplete_message() || error.is_closed() || error.is_canceled() { Reason::ConnectionClosed } else { Reason::ProtocolError };
    Failure::new(reason, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let base: Uri = "http://h:81/a/b?c".parse().expect("a URL");
        for (location, url) in [("/x", "http://h:81/x"), ("x", "http://h:81/a/x"), ("//o/x", "http://o/x"), ("https://z/", "https://z/")] {
            assert_eq!(absolute(&base, location).as_deref(), Some(url));
        }
    }
}
