//! `http:` of a probe.

use super::super::read::{Fields, Mistakes};
use super::assertion::{body_assertion, header_assertion};
use super::{secret_ref, target_or, tls};
use crate::units;
use crate::v1::*;

pub(super) fn default_http() -> HttpCheck {
    HttpCheck {
        method: "GET".to_owned(),
        expect: Some(HttpExpect { status: vec![StatusRange { from: 200, to: 299 }], ..HttpExpect::default() }),
        max_body_bytes: 1 << 20,
        ..HttpCheck::default()
    }
}

pub(super) fn http(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> HttpCheck {
    f.not_yet(&["version", "proxy", "compression", "requests", "reuse", "form", "json", "bodyFile"], mistakes);
    let default = default_http();
    let method = f.get("method").and_then(|at| {
        at.parsed(mistakes, |m| {
            let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
            if known.contains(&m) { Ok(m.to_owned()) } else { Err(format!("{m:?} is no method (want {})", known.join(", "))) }
        })
    });
    let headers = f.map("headers", mistakes).into_iter().map(|(name, value)| Header { name, value }).collect();
    let expect = f.get("expect").and_then(|at| at.fields(mistakes)).map(|e| http_expect(e, mistakes));
    let max_body = f.get("maxBodyBytes").and_then(|at| at.parsed(mistakes, units::parse_bytes));
    HttpCheck {
        url: target_or(f, "url", mistakes),
        method: method.unwrap_or(default.method),
        headers,
        body: f.text("body", mistakes).unwrap_or_default(),
        auth: auth(f, mistakes),
        expect: expect.or(default.expect),
        tls: tls::tls(f, mistakes),
        follow_redirects: f.int("followRedirects", 0..=20, mistakes).unwrap_or(0) as u32,
        max_body_bytes: max_body.unwrap_or(default.max_body_bytes),
    }
}

fn auth(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<HttpAuth> {
    let mut auth = f.get("auth").and_then(|at| at.fields(mistakes))?;
    auth.not_yet(&["oauth2"], mistakes);
    let bearer = auth.get("bearer").and_then(|at| at.fields(mistakes)).map(|mut b| {
        let secret = secret_ref(&mut b, "secretRef", mistakes);
        b.finish(mistakes);
        http_auth::Auth::BearerSecretRef(secret)
    });
    let basic = auth.get("basic").and_then(|at| at.fields(mistakes)).map(|mut b| {
        let username = b.need_text("username", mistakes);
        let mut password = b.need("password", mistakes).and_then(|at| at.fields(mistakes));
        let password_secret_ref = password.as_mut().map(|p| secret_ref(p, "secretRef", mistakes)).unwrap_or_default();
        if let Some(password) = password {
            password.finish(mistakes);
        }
        b.finish(mistakes);
        http_auth::Auth::Basic(BasicAuth { username, password_secret_ref })
    });
    let (path, place) = (auth.path.clone(), auth.place());
    auth.finish(mistakes);
    if bearer.is_some() == basic.is_some() {
        mistakes.add(&path, place, "one way to authenticate is wanted", "bearer or basic");
    }
    Some(HttpAuth { auth: bearer.or(basic) })
}

fn http_expect(mut f: Fields<'_>, mistakes: &mut Mistakes) -> HttpExpect {
    let statuses = f.get("status").map(|at| at.items(mistakes)).unwrap_or_default();
    let mut status: Vec<StatusRange> = statuses.iter().filter_map(|at| at.parsed(mistakes, status_range)).collect();
    if status.is_empty() {
        status.push(StatusRange { from: 200, to: 299 });
    }
    let bodies = f.get("body").map(|at| at.items(mistakes)).unwrap_or_default();
    let body = bodies.iter().filter_map(|at| body_assertion(at, mistakes)).collect();
    let headers = f.get("headers").map(|at| at.items(mistakes)).unwrap_or_default();
    let headers = headers.iter().filter_map(|at| header_assertion(at, mistakes)).collect();
    f.not_yet(&["maxDuration", "version", "size"], mistakes);
    f.finish(mistakes);
    HttpExpect { status, body, headers }
}

/// A range of HTTP statuses: `200`, `2xx`, `200-204`.
pub fn status_range(text: &str) -> Result<StatusRange, String> {
    let wrong = || format!("{text:?} is no status (want for example 200, 2xx or 200-299)");
    let number = |t: &str| t.parse::<u32>().ok().filter(|n| (100..=599).contains(n)).ok_or_else(wrong);
    if let Some(class) = text.strip_suffix("xx") {
        let from = number(&format!("{class}00"))?;
        return Ok(StatusRange { from, to: from + 99 });
    }
    match text.split_once('-') {
        Some((from, to)) if number(from)? <= number(to)? => Ok(StatusRange { from: number(from)?, to: number(to)? }),
        Some(_) => Err(wrong()),
        None => Ok(StatusRange { from: number(text)?, to: number(text)? }),
    }
}
