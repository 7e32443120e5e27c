//! What is sent: method, headers, body; and what of it survives a redirect.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};
use http_body_util::Full;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use probity_proto::v1::{Header, Reason, http_auth};

use super::super::capture::Captures;
use super::super::{Attempt, Failure};
use super::{Shared, Step, oauth};

/// What application/x-www-form-urlencoded leaves as it is (WHATWG URL, section 5.1).
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'*').remove(b'-').remove(b'.').remove(b'_');

/// A request before it is known over which connection it goes.
pub(super) struct Draft {
    pub(super) method: Method,
    headers: HeaderMap,
    body: Bytes,
    /// The body is a secret of this host.
    secret_body: bool,
    /// For a proxy that is spoken to in the target's stead.
    pub(super) proxy_authorization: Option<HeaderValue>,
}

impl Draft {
    /// One to a host: where its secrets go.
    pub(super) async fn new(attempt: &mut Attempt<'_>, shared: Shared<'_>, step: Step<'_>, captures: &Captures, host: &str) -> Result<Draft, Failure> {
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("probity/", env!("CARGO_PKG_VERSION"))));
        headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        headers.extend(HeaderValue::try_from(attempt.traceparent()).ok().map(|v| (HeaderName::from_static("traceparent"), v)));
        if !shared.check.compression.is_empty() {
            headers.insert(header::ACCEPT_ENCODING, value(&shared.check.compression.join(", "))?);
        }
        let (body, content_type) = body(attempt, step, host, captures).await?;
        headers.extend(content_type.map(|t| (header::CONTENT_TYPE, HeaderValue::from_static(t))));
        if let Some(auth) = authorization(attempt, shared, step, host).await? {
            headers.insert(header::AUTHORIZATION, auth);
        }
        for (i, h) in step.headers.iter().enumerate() {
            let name = HeaderName::try_from(&h.name).map_err(|_| unsendable(&h.name))?;
            let value = value(&captures.text(&h.value)).map_err(|_| unsendable(&h.name))?;
            // The first takes the place of ours; further ones of its name stand beside it.
            if step.headers[..i].iter().any(|before| before.name.eq_ignore_ascii_case(&h.name)) {
                headers.append(name, value);
            } else {
                headers.insert(name, value);
            }
        }
        let method = Method::from_bytes(step.method.as_bytes()).map_err(|_| Failure::new(Reason::Unsupported, format!("{:?} is no method", step.method)))?;
        Ok(Draft { method, headers, body, secret_body: !step.body_secret_ref.is_empty(), proxy_authorization: None })
    }

    /// Says who we are by RFC 6749, section 2.3.1: both form-encoded first.
    pub(super) fn authorize(&mut self, client_id: &str, secret: &str) -> Result<(), Failure> {
        let encode = |t: &str| utf8_percent_encode(t, FORM).to_string().replace("%20", "+");
        self.headers.insert(header::AUTHORIZATION, basic(&encode(client_id), &encode(secret))?);
        Ok(())
    }

    /// RFC 9110, section 15.4: who is asked elsewhere does not get what was meant for the first.
    pub(super) fn redirected(&mut self, status: StatusCode, from: &Uri, to: &str) {
        let to_get = status == StatusCode::SEE_OTHER && self.method != Method::HEAD
            || matches!(status, StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND) && self.method == Method::POST;
        if to_get {
            self.method = Method::GET;
            self.body = Bytes::new();
            self.headers.remove(header::CONTENT_TYPE);
        }
        let origin = |uri: &Uri| (uri.scheme_str().map(str::to_owned), uri.authority().map(ToString::to_string));
        if to.parse::<Uri>().ok().is_none_or(|to| origin(&to) != origin(from)) {
            for name in [header::AUTHORIZATION, header::COOKIE, header::HOST] {
                self.headers.remove(name);
            }
            if self.secret_body {
                self.body = Bytes::new();
            }
        }
    }

    /// The request as it goes over a connection of that version.
    pub(super) fn request(&self, uri: &Uri, version: Version, to_proxy: bool, keep: bool) -> Result<Request<Full<Bytes>>, Failure> {
        let given = self.headers.get(header::HOST).and_then(|h| h.to_str().ok());
        let of_url = || uri.authority().map(|a| a.as_str().rsplit('@').next().unwrap_or_default()).unwrap_or_default();
        let authority = given.unwrap_or_else(of_url).to_owned();
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let absolute = || format!("{}://{authority}{path}", uri.scheme_str().unwrap_or("http"));
        let wrong = |e: http::Error| Failure::new(Reason::ProtocolError, format!("the request cannot be made: {e}"));
        // Their heads have the host in the URL.
        let framed = matches!(version, Version::HTTP_2 | Version::HTTP_3);
        let mut request = Request::builder().method(self.method.clone());
        request = if framed || to_proxy { request.uri(absolute()) } else { request.uri(uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from)) };
        let mut request = request.body(Full::new(self.body.clone())).map_err(wrong)?;
        let mut headers = self.headers.clone();
        if framed {
            *request.version_mut() = version;
            // RFC 9113, section 8.2.2; RFC 9114, section 4.2
            for name in [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
                headers.remove(name);
            }
        } else {
            headers.insert(header::HOST, value(&authority)?);
            if !keep && !headers.contains_key(header::CONNECTION) {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            if to_proxy && let Some(auth) = &self.proxy_authorization {
                headers.insert(header::PROXY_AUTHORIZATION, auth.clone());
            }
        }
        *request.headers_mut() = headers;
        Ok(request)
    }
}

fn value(text: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::try_from(text).map_err(|_| Failure::new(Reason::ProtocolError, "a header's value cannot be sent"))
}

fn unsendable(name: &str) -> Failure {
    Failure::new(Reason::ProtocolError, format!("header {name:?} cannot be sent"))
}

async fn body(attempt: &Attempt<'_>, step: Step<'_>, to: &str, captures: &Captures) -> Result<(Bytes, Option<&'static str>), Failure> {
    Ok(if !step.body_secret_ref.is_empty() {
        (Bytes::from(attempt.secret(step.body_secret_ref, to).await?), None)
    } else if !step.json_body.is_empty() {
        (Bytes::from(captures.json(step.json_body).into_owned()), Some("application/json"))
    } else if !step.form.is_empty() {
        (Bytes::from(form(step.form, |text| captures.text(text).into_owned())), Some("application/x-www-form-urlencoded"))
    } else {
        (Bytes::from(captures.text(step.body).into_owned()), None)
    })
}

/// application/x-www-form-urlencoded
pub(super) fn form(pairs: &[Header], text: impl Fn(&str) -> String) -> String {
    let encode = |t: &str| utf8_percent_encode(t, FORM).to_string().replace("%20", "+");
    let pairs: Vec<String> = pairs.iter().map(|p| format!("{}={}", encode(&p.name), encode(&text(&p.value)))).collect();
    pairs.join("&")
}

/// `Basic`, as RFC 7617 has it; it shows in no debug output.
pub(super) fn basic(username: &str, password: &str) -> Result<HeaderValue, Failure> {
    secret_value(format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

fn secret_value(text: String) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::try_from(text).map_err(|_| Failure::new(Reason::SecretMissing, "the secret cannot stand in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn authorization(attempt: &mut Attempt<'_>, shared: Shared<'_>, step: Step<'_>, to: &str) -> Result<Option<HeaderValue>, Failure> {
    let Some(auth) = step.auth.and_then(|a| a.auth.as_ref()) else { return Ok(None) };
    match auth {
        http_auth::Auth::BearerSecretRef(name) => secret_value(format!("Bearer {}", attempt.secret(name, to).await?)),
        http_auth::Auth::Basic(b) => basic(&b.username, &attempt.secret(&b.password_secret_ref, to).await?),
        // The token's own request is drafted the same way: without an end, were it not boxed.
        http_auth::Auth::Oauth2(o) => secret_value(format!("Bearer {}", Box::pin(oauth::token(attempt, shared, o)).await?))
            .map_err(|_| Failure::new(Reason::AuthError, format!("the token from {} cannot stand in a header", o.token_url))),
    }
    .map(Some)
}

/// For tests/fuzz: who we are goes to nobody else.
#[cfg(feature = "fuzz")]
pub(super) fn fuzz_redirected(from: &Uri, to: &str) {
    let secret = [header::AUTHORIZATION, header::COOKIE, header::HOST];
    let headers = secret.iter().map(|name| (name.clone(), HeaderValue::from_static("secret"))).collect();
    let mut draft = Draft { method: Method::POST, headers, body: Bytes::from_static(b"secret"), secret_body: true, proxy_authorization: None };
    draft.redirected(StatusCode::TEMPORARY_REDIRECT, from, to);
    let Ok(uri) = to.parse::<Uri>() else {
        assert!(draft.headers.is_empty() && draft.body.is_empty(), "{to:?} is nobody");
        return;
    };
    let same = uri.scheme() == from.scheme() && uri.authority() == from.authority();
    assert!(same || draft.headers.is_empty() && draft.body.is_empty(), "{from} and {to} are two");
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let _ = draft.request(&uri, version, false, false);
    }
}
