//! `http:` of a probe: one request, or several in order.

use super::super::read::{At, Fields, Mistakes};
use super::assertion::{body_assertion, header_assertion, json_path, regex};
use super::{secret_field, secret_ref, target_or, tls, undefined_captures};
use crate::units;
use crate::v1::*;

/// Requests of one probe, and captures of one request.
const REQUESTS_MAX: usize = 20;
const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

pub(super) fn default_http() -> HttpCheck {
    HttpCheck {
        method: "GET".to_owned(),
        expect: Some(HttpExpect { status: vec![StatusRange { from: 200, to: 299 }], ..HttpExpect::default() }),
        max_body_bytes: 1 << 20,
        max_decompressed_bytes: 10 << 20,
        ..HttpCheck::default()
    }
}

pub(super) fn http(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> HttpCheck {
    let default = default_http();
    let mut size = |key, default, mistakes: &mut Mistakes| f.get(key).and_then(|at| at.parsed(mistakes, body_size)).unwrap_or(default);
    let max_body_bytes = size("maxBodyBytes", default.max_body_bytes, mistakes);
    let max_decompressed_bytes = size("maxDecompressedBytes", default.max_decompressed_bytes, mistakes);
    let shared = HttpCheck {
        tls: tls::tls(f, mistakes),
        version: f.get("version").and_then(|at| at.parsed(mistakes, http_version)).unwrap_or_default() as i32,
        reuse: f.flag("reuse", mistakes).unwrap_or(false),
        proxy: f.get("proxy").and_then(|at| at.fields(mistakes)).map(|p| proxy(p, mistakes)),
        compression: f.get("compression").map(|at| at.items(mistakes).iter().filter_map(|at| at.parsed(mistakes, coding)).collect()).unwrap_or_default(),
        max_body_bytes,
        max_decompressed_bytes,
        ..HttpCheck::default()
    };
    if shared.version() == HttpVersion::HttpVersion3 {
        fits_quic(f, &shared, mistakes);
    }
    if let Some(at) = f.get("requests") {
        return HttpCheck { steps: requests(&at, mistakes), ..shared };
    }
    let step = request(f, mistakes);
    for text in texts(&step) {
        undefined_captures(&At { path: f.path.clone(), node: f.node() }, text, &[], mistakes);
    }
    HttpCheck {
        url: step.url,
        method: step.method,
        headers: step.headers,
        body: step.body,
        form: step.form,
        json_body: step.json_body,
        body_secret_ref: step.body_secret_ref,
        auth: step.auth,
        expect: step.expect,
        follow_redirects: step.follow_redirects,
        ..shared
    }
}

fn body_size(text: &str) -> Result<u64, String> {
    let bytes = units::parse_bytes(text)?;
    // Every run under way may hold as much.
    if bytes <= 100 << 20 { Ok(bytes) } else { Err(format!("{text} is too much (want at most 100MiB)")) }
}

fn http_version(text: &str) -> Result<HttpVersion, String> {
    match text {
        "auto" => Ok(HttpVersion::Auto),
        "1.1" => Ok(HttpVersion::HttpVersion11),
        "2" => Ok(HttpVersion::HttpVersion2),
        "3" => Ok(HttpVersion::HttpVersion3),
        _ => Err(format!("{text:?} is unknown (want auto, 1.1, 2, 3)")),
    }
}

/// What QUIC does not have: a tunnel through a proxy for streams, and TLS before 1.3 (RFC 9001, section 4.2).
fn fits_quic(f: &Fields<'_>, check: &HttpCheck, mistakes: &mut Mistakes) {
    if check.proxy.is_some() {
        mistakes.add(&f.path_of("proxy"), f.place(), "HTTP/3 goes straight to the target", "leave the proxy out, or want version auto, 1.1 or 2");
    }
    if check.tls.as_ref().is_some_and(|t| t.max_version == "1.2") {
        mistakes.add(&f.path_of("tls.maxVersion"), f.place(), "HTTP/3 is spoken with TLS 1.3 only", "leave maxVersion out");
    }
}

/// The scheme that a version needs.
pub(super) fn scheme_fits(check: &HttpCheck, url: &str) -> Result<(), String> {
    match (check.version(), url.starts_with("http://")) {
        (HttpVersion::HttpVersion3, true) => Err(format!("{url:?} cannot be asked with HTTP/3 (want https://)")),
        _ => Ok(()),
    }
}

/// A content coding that can be asked for.
pub fn coding(text: &str) -> Result<String, String> {
    let known = ["gzip", "br", "zstd", "deflate"];
    if known.contains(&text) { Ok(text.to_owned()) } else { Err(format!("{text:?} is unknown (want {})", known.join(", "))) }
}

/// `http://host:port` or `socks5://host:port`.
pub fn proxy_url(text: &str) -> Result<String, String> {
    let fine = |rest: &str| {
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':')?;
        (!host.is_empty() && !host.contains(['/', '@']) && port.parse::<u16>().is_ok()).then_some(())
    };
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("socks5://"));
    match rest.and_then(fine) {
        Some(()) => Ok(text.trim_end_matches('/').to_owned()),
        None => Err(format!("{text:?} is no proxy (want http://host:port or socks5://host:port; who we are stands in username and password)")),
    }
}

fn proxy(mut f: Fields<'_>, mistakes: &mut Mistakes) -> HttpProxy {
    let url = f.need("url", mistakes).and_then(|at| at.parsed(mistakes, proxy_url)).unwrap_or_default();
    let username = f.text("username", mistakes).unwrap_or_default();
    let password_secret_ref = secret_field(&mut f, "password", mistakes);
    if username.is_empty() != password_secret_ref.is_empty() {
        mistakes.add(&f.path, f.place(), "username and password belong together", "give both or none");
    }
    f.finish(mistakes);
    HttpProxy { url, username, password_secret_ref }
}

fn requests(at: &At<'_>, mistakes: &mut Mistakes) -> Vec<HttpStep> {
    let items = at.items(mistakes);
    if items.is_empty() || items.len() > REQUESTS_MAX {
        mistakes.add(&at.path, at.place(), format!("{} requests are given", items.len()), format!("want 1 to {REQUESTS_MAX}"));
    }
    let mut captured: Vec<String> = Vec::new();
    let mut steps = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let Some(mut f) = item.fields(mistakes) else { continue };
        let mut step = request(&mut f, mistakes);
        step.name = f.text("name", mistakes).unwrap_or_else(|| format!("request {}", i + 1));
        step.captures = f.get("capture").map(|at| captures(&mut f, &at, mistakes)).unwrap_or_default();
        f.finish(mistakes);
        for text in texts(&step) {
            undefined_captures(item, text, &captured, mistakes);
        }
        captured.extend(step.captures.iter().map(|c| c.name.clone()));
        steps.push(step);
    }
    steps
}

/// Where a request may refer to what was captured.
fn texts(step: &HttpStep) -> impl Iterator<Item = &str> {
    let pairs = step.headers.iter().chain(&step.form).map(|h| h.value.as_str());
    [step.url.as_str(), step.body.as_str(), step.json_body.as_str()].into_iter().chain(pairs)
}

fn captures(f: &mut Fields<'_>, at: &At<'_>, mistakes: &mut Mistakes) -> Vec<Capture> {
    let mut found = Vec::new();
    for (name, at) in f.children("capture") {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            mistakes.add(&at.path, at.place(), format!("{name:?} is no name of a capture"), "want letters, digits and _");
        }
        let Some(mut f) = at.fields(mistakes) else { continue };
        let capture = Capture {
            name,
            json_path: f.get("jsonPath").and_then(|at| at.parsed(mistakes, json_path)).unwrap_or_default(),
            header: f.text("header", mistakes).unwrap_or_default(),
            pattern: f.get("matches").and_then(|at| at.parsed(mistakes, regex)).unwrap_or_default(),
        };
        let sources = usize::from(f.has("jsonPath")) + usize::from(f.has("header"));
        if sources > 1 || sources == 0 && !f.has("matches") {
            mistakes.add(&f.path, f.place(), "one source is wanted", "jsonPath, header, or matches alone: the body is searched");
        }
        f.finish(mistakes);
        found.push(capture);
    }
    if found.len() > REQUESTS_MAX {
        mistakes.add(&at.path, at.place(), format!("{} values are captured", found.len()), format!("want at most {REQUESTS_MAX}"));
    }
    found
}

/// What one request and its answer have.
fn request(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> HttpStep {
    let default = default_http();
    let json = f.get("json").map(|at| at.node.json().to_string());
    let form = f.map("form", mistakes).into_iter().map(|(name, value)| Header { name, value }).collect();
    let body_secret_ref = secret_field(f, "bodyFile", mistakes);
    let bodies = ["body", "form", "json", "bodyFile"].iter().filter(|key| f.has(key)).count();
    let step = HttpStep {
        url: target_or(f, "url", mistakes),
        method: f.get("method").and_then(|at| at.parsed(mistakes, method)).unwrap_or_else(|| if bodies > 0 { "POST".to_owned() } else { default.method }),
        headers: headers(f, mistakes),
        body: f.text("body", mistakes).unwrap_or_default(),
        form,
        json_body: json.unwrap_or_default(),
        body_secret_ref,
        auth: auth(f, mistakes),
        expect: f.get("expect").and_then(|at| at.fields(mistakes)).map(|e| http_expect(e, mistakes)).or(default.expect),
        follow_redirects: f.int("followRedirects", 0..=20, mistakes).unwrap_or(0) as u32,
        ..HttpStep::default()
    };
    if bodies > 1 {
        mistakes.add(&f.path, f.place(), "several bodies are given", "keep one of body, form, json, bodyFile");
    }
    step
}

fn method(text: &str) -> Result<String, String> {
    if METHODS.contains(&text) { Ok(text.to_owned()) } else { Err(format!("{text:?} is no method (want {})", METHODS.join(", "))) }
}

fn headers(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> Vec<Header> {
    let given = f.map("headers", mistakes);
    for (name, at) in f.children("headers") {
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(token) {
            mistakes.add(&at.path, at.place(), format!("{name:?} is no name of a header"), "want for example X-Request-Id");
        }
        if given.get(&name).is_some_and(|value| value.chars().any(char::is_control)) {
            mistakes.add(&at.path, at.place(), "a header's value has no line breaks or control characters", "");
        }
    }
    given.into_iter().map(|(name, value)| Header { name, value }).collect()
}

fn auth(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<HttpAuth> {
    let mut auth = f.get("auth").and_then(|at| at.fields(mistakes))?;
    let mut found = Vec::new();
    if let Some(mut b) = auth.get("bearer").and_then(|at| at.fields(mistakes)) {
        found.push(http_auth::Auth::BearerSecretRef(secret_ref(&mut b, "secretRef", mistakes)));
        b.finish(mistakes);
    }
    if let Some(mut b) = auth.get("basic").and_then(|at| at.fields(mistakes)) {
        let username = b.need_text("username", mistakes);
        b.need("password", mistakes);
        let password_secret_ref = secret_field(&mut b, "password", mistakes);
        b.finish(mistakes);
        found.push(http_auth::Auth::Basic(BasicAuth { username, password_secret_ref }));
    }
    if let Some(o) = auth.get("oauth2").and_then(|at| at.fields(mistakes)) {
        found.push(http_auth::Auth::Oauth2(oauth2(o, mistakes)));
    }
    let (path, place) = (auth.path.clone(), auth.place());
    auth.finish(mistakes);
    if found.len() != 1 {
        mistakes.add(&path, place, "one way to authenticate is wanted", "bearer, basic or oauth2");
    }
    Some(HttpAuth { auth: found.pop() })
}

fn oauth2(mut f: Fields<'_>, mistakes: &mut Mistakes) -> OAuth2ClientCredentials {
    f.need("clientSecret", mistakes);
    let credentials = OAuth2ClientCredentials {
        token_url: f.need("tokenUrl", mistakes).and_then(|at| at.parsed(mistakes, url)).unwrap_or_default(),
        client_id: f.need_text("clientId", mistakes),
        client_secret_ref: secret_field(&mut f, "clientSecret", mistakes),
        scopes: f.get("scopes").map(|at| at.items(mistakes).iter().filter_map(|at| at.text(mistakes)).collect()).unwrap_or_default(),
        parameters: f.map("parameters", mistakes).into_iter().map(|(name, value)| Header { name, value }).collect(),
    };
    f.finish(mistakes);
    credentials
}

/// A URL as it may be shown.
fn without_user(text: &str) -> String {
    match (text.split_once("://"), text.split_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://...@{rest}"),
        _ => text.to_owned(),
    }
}

/// The outline of a URL.
pub(super) fn url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let fine = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', ':', '?']) && !rest.contains(char::is_whitespace));
    if rest.is_some_and(|rest| rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))) {
        return Err(format!(
            "{:?} has a name or a password in it, which would be shown everywhere (auth: {{basic: {{username, password: {{secretRef}}}}}} sends them)",
            without_user(text)
        ));
    }
    if fine { Ok(text.to_owned()) } else { Err(format!("{text:?} is no URL (want http:// or https:// and a host)")) }
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
    let version = |text: &str| {
        let known = ["1.0", "1.1", "2", "3"];
        if known.contains(&text) { Ok(text.to_owned()) } else { Err(format!("{text:?} is no version (want {})", known.join(", "))) }
    };
    let versions = f.get("version").map(|at| at.items(mistakes)).unwrap_or_default();
    let versions = versions.iter().filter_map(|at| at.parsed(mistakes, version)).collect();
    let (mut body_min_bytes, mut body_max_bytes) = (0, 0);
    if let Some(mut size) = f.get("size").and_then(|at| at.fields(mistakes)) {
        let mut bytes = |key, mistakes: &mut Mistakes| size.get(key).and_then(|at| at.parsed(mistakes, units::parse_bytes));
        body_min_bytes = bytes("min", mistakes).unwrap_or(0);
        body_max_bytes = bytes("max", mistakes).unwrap_or(0);
        if body_max_bytes > 0 && body_min_bytes > body_max_bytes {
            mistakes.add(&size.path, size.place(), format!("min, {body_min_bytes}, is above max, {body_max_bytes}"), "");
        }
        size.finish(mistakes);
    }
    if let Some(at) = f.get("maxDuration") {
        mistakes.add(&at.path, at.place(), "a limit on time is the probe's", "want spec.maxDuration");
    }
    f.finish(mistakes);
    HttpExpect { status, body, headers, versions, body_min_bytes, body_max_bytes }
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
