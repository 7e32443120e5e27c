//! OAuth 2 client credentials (RFC 6749, section 4.4), with tokens kept until shortly before they expire.
//!
//! Whoever gives out tokens is not the target: what goes wrong there is `auth_error`, in the phase `auth`.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use probity_proto::v1::{Header, HttpAuth, HttpCheck, HttpExpect, OAuth2ClientCredentials, Reason, TlsOptions, http_auth};
use prost::Message;
use serde::Deserialize;
use tokio::time::Instant;

use super::super::{Attempt, Failure};
use super::request::Draft;
use super::{Captures, Shared, Step, connect};
use crate::cache::Cache;

/// Tokens of different credentials.
const TOKENS_MAX: usize = 1_024;
/// A token's answer has some hundred bytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// Where the server does not say how long a token lasts.
const LIFE_DEFAULT: Duration = Duration::from_secs(300);
/// A token is renewed this long before its end, so that none expires on its way.
const MARGIN: Duration = Duration::from_secs(10);

/// Tokens that are still good, by the encoding of their credentials.
#[derive(Debug)]
pub(crate) struct Tokens(Cache<Vec<u8>, Arc<Token>>);

/// It shows in no debug output.
struct Token {
    secret: String,
    until: Instant,
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    token_type: Option<String>,
    expires_in: Option<f64>,
}

impl Tokens {
    pub(crate) fn new() -> Tokens {
        Tokens(Cache::new(TOKENS_MAX))
    }
}

/// The target did not accept it: the next run gets a new one.
pub(super) fn forget(attempt: &Attempt<'_>, auth: Option<&HttpAuth>) {
    if let Some(http_auth::Auth::Oauth2(credentials)) = auth.and_then(|a| a.auth.as_ref()) {
        attempt.context.tokens.0.remove(&key(attempt, credentials));
    }
}

/// A token is the namespace's that may name its secret.
fn key(attempt: &Attempt<'_>, credentials: &OAuth2ClientCredentials) -> Vec<u8> {
    let mut key = format!("{} ", attempt.namespace).into_bytes();
    key.extend(credentials.encode_to_vec());
    key
}

/// A token for these credentials.
pub(super) async fn token(attempt: &mut Attempt<'_>, shared: Shared<'_>, credentials: &OAuth2ClientCredentials) -> Result<String, Failure> {
    let tokens = &attempt.context.tokens.0;
    let key = key(attempt, credentials);
    if let Some(token) = tokens.get(&key).filter(|t| t.until > Instant::now()) {
        return Ok(token.secret.clone());
    }
    let host = credentials.token_url.parse::<Uri>().ok().and_then(|u| u.host().map(str::to_owned)).unwrap_or_default();
    let secret = attempt.secret(&credentials.client_secret_ref, &host).await?;
    let before = attempt.phases.alias(Some("auth"));
    let (peer, facts) = (attempt.peer.clone(), attempt.facts.clone());
    let answered = ask(attempt, shared, credentials, &secret).await;
    // What was learned on the way is of the token's server.
    (attempt.peer, attempt.facts) = (peer, facts);
    attempt.phases.alias(before);
    let token = answered.map_err(|f| match f.reason as i32 {
        // On this side: not allowed, no port left, a secret that is missing.
        100.. => f,
        _ => Failure::new(Reason::AuthError, format!("no token from {}: {}", credentials.token_url, f.message)),
    })?;
    let value = token.secret.clone();
    attempt.context.tokens.0.put(key, Arc::new(token));
    Ok(value)
}

async fn ask(attempt: &mut Attempt<'_>, shared: Shared<'_>, credentials: &OAuth2ClientCredentials, secret: &str) -> Result<Token, Failure> {
    let wrong = |message: String| Failure::new(Reason::AuthError, message);
    let uri: Uri = credentials.token_url.parse().map_err(|_| wrong("that is no URL".to_owned()))?;
    let mut form = vec![Header { name: "grant_type".to_owned(), value: "client_credentials".to_owned() }];
    if !credentials.scopes.is_empty() {
        form.push(Header { name: "scope".to_owned(), value: credentials.scopes.join(" ") });
    }
    form.extend(credentials.parameters.iter().cloned());
    let headers = [Header { name: "accept".to_owned(), value: "application/json".to_owned() }];
    let expect = HttpExpect::default();
    let step = Step {
        url: &credentials.token_url,
        method: "POST",
        headers: &headers,
        body: "",
        form: &form,
        json_body: "",
        body_secret_ref: "",
        auth: None,
        expect: Some(&expect),
        follow_redirects: 0,
        captures: &[],
    };
    // The same authorities, way and proxy; nothing else of the target's is for the token's server.
    let tls = TlsOptions { ca_pem: shared.tls.ca_pem.clone(), ..TlsOptions::default() };
    let check = HttpCheck { proxy: shared.check.proxy.clone(), max_body_bytes: ANSWER_BYTES_MAX, ..HttpCheck::default() };
    let shared = Shared { check: &check, tls: &tls };
    let mut draft = Draft::new(attempt, shared, step, &Captures::default(), uri.host().unwrap_or_default()).await?;
    draft.authorize(&credentials.client_id, secret)?;
    let asked_at = Instant::now();
    let answer = connect::exchange(attempt, shared, &uri, &mut draft, None).await?;
    if !answer.status.is_success() {
        return Err(wrong(format!("status {}", answer.status.as_u16())));
    }
    let answer: Answer = serde_json::from_slice(&answer.body).map_err(|_| wrong("the answer is no token (RFC 6749, section 5.1)".to_owned()))?;
    if answer.token_type.as_ref().is_some_and(|t| !t.eq_ignore_ascii_case("bearer")) {
        return Err(wrong("the token is no bearer token".to_owned()));
    }
    let life = answer.expires_in.map_or(LIFE_DEFAULT, |s| Duration::from_secs_f64(s.clamp(0.0, 31_536_000.0)));
    Ok(Token { secret: answer.access_token, until: asked_at + life.saturating_sub(MARGIN) })
}
