//! `http:` of a module.

use std::collections::BTreeMap;

use super::super::read::{At, Fields, Mistakes};
use super::values::{Ip, Secret, Tls, ip, patterns, secret, texts, tls};
use crate::units;

/// `http:`
#[derive(Debug, Clone)]
pub struct Http {
    /// Empty = 200 to 299.
    pub valid_status_codes: Vec<u32>,
    /// "1.1", "2"; empty = any.
    pub valid_http_versions: Vec<String>,
    /// In upper case or not, as it is written.
    pub method: String,
    /// In the order of their names.
    pub headers: BTreeMap<String, String>,
    /// The same with several values of one name, which may be secret.
    pub http_headers: Vec<(String, Secret)>,
    /// The way there: http:// or socks5://, perhaps with a name and a password.
    pub proxy_url: Option<Secret>,
    /// 0 = no limit but our own.
    pub body_size_limit: u64,
    /// gzip, br, deflate, identity, or empty.
    pub compression: String,
    /// Redirects are followed.
    pub follow_redirects: bool,
    /// Bad when TLS was used.
    pub fail_if_ssl: bool,
    /// Bad when it was not.
    pub fail_if_not_ssl: bool,
    /// Bad when one of them matches.
    pub fail_if_body_matches: Vec<String>,
    /// Bad when one of them does not.
    pub fail_if_body_not_matches: Vec<String>,
    /// Bad when one of them matches.
    pub fail_if_header_matches: Vec<HeaderMatch>,
    /// Bad when one of them does not.
    pub fail_if_header_not_matches: Vec<HeaderMatch>,
    /// TLS.
    pub tls: Tls,
    /// Who we are.
    pub authorization: Option<Authorization>,
    /// HTTP/2 may be spoken over TLS.
    pub enable_http2: bool,
    /// HTTP/3 is spoken, and nothing else.
    pub enable_http3: bool,
    /// Families.
    pub ip: Ip,
    /// What is sent.
    pub body: Option<Secret>,
}

/// A rule on a header.
#[derive(Debug, Clone)]
pub struct HeaderMatch {
    /// Its name.
    pub header: String,
    /// Of its value.
    pub pattern: String,
    /// Fine when the header is not there.
    pub allow_missing: bool,
}

/// How a request says who we are.
#[derive(Debug, Clone)]
pub enum Authorization {
    /// RFC 7617
    Basic {
        /// The name.
        username: String,
        /// The password; none = empty.
        password: Option<Secret>,
    },
    /// OAuth 2 client credentials (RFC 6749, section 4.4).
    OAuth2(OAuth2),
    /// A scheme and what follows it.
    Scheme {
        /// `Bearer` mostly.
        scheme: String,
        /// The token.
        credentials: Secret,
    },
}

/// `oauth2`
#[derive(Debug, Clone)]
pub struct OAuth2 {
    /// Who asks.
    pub client_id: String,
    /// And proves it.
    pub client_secret: Option<Secret>,
    /// What for.
    pub scopes: Vec<String>,
    /// Where tokens are.
    pub token_url: String,
    /// Further parameters of the request.
    pub endpoint_params: BTreeMap<String, String>,
}

impl Default for Http {
    fn default() -> Http {
        Http {
            valid_status_codes: Vec::new(),
            valid_http_versions: Vec::new(),
            method: "GET".to_owned(),
            headers: BTreeMap::new(),
            http_headers: Vec::new(),
            proxy_url: None,
            body_size_limit: 0,
            compression: String::new(),
            follow_redirects: true,
            fail_if_ssl: false,
            fail_if_not_ssl: false,
            fail_if_body_matches: Vec::new(),
            fail_if_body_not_matches: Vec::new(),
            fail_if_header_matches: Vec::new(),
            fail_if_header_not_matches: Vec::new(),
            tls: Tls::default(),
            authorization: None,
            enable_http2: true,
            enable_http3: false,
            ip: Ip::default(),
            body: None,
        }
    }
}

/// Known by name, and not yet done here.
const NOT_YET: [&str; 5] = ["fail_if_body_json_matches_cel", "fail_if_body_json_not_matches_cel", "no_proxy", "proxy_from_environment", "proxy_connect_header"];

pub(super) fn http(f: &mut Fields<'_>, used: bool, mistakes: &mut Mistakes) -> Http {
    if used {
        f.not_yet(&NOT_YET, mistakes);
    } else {
        NOT_YET.iter().for_each(|key| drop(f.get(key)));
    }
    let default = Http::default();
    let codes = f.get("valid_status_codes").map(|at| at.items(mistakes)).unwrap_or_default();
    let code = |text: &str| text.parse::<u32>().ok().filter(|n| (100..=999).contains(n)).ok_or_else(|| format!("{text:?} is no HTTP status"));
    let versions = f.get("valid_http_versions").map(|at| at.items(mistakes)).unwrap_or_default();
    let codings = [("gzip", "gzip"), ("br", "br"), ("deflate", "deflate"), ("identity", "identity"), ("", "")];
    let compression = f.choice("compression", &codings, mistakes).unwrap_or_default().to_owned();
    let follow = f.flag("follow_redirects", mistakes);
    // Deprecated, and stronger.
    let no_follow = f.flag("no_follow_redirects", mistakes);
    let headers = f.map("headers", mistakes);
    let enable_http3 = f.flag("enable_http3", mistakes).unwrap_or(false);
    if used && enable_http3 && f.has("proxy_url") {
        mistakes.add(&f.path_of("proxy_url"), f.place(), "HTTP/3 goes straight to the target", "keep one of enable_http3 and proxy_url");
    }
    Http {
        valid_status_codes: codes.iter().filter_map(|at| at.parsed(mistakes, code)).collect(),
        valid_http_versions: versions.iter().filter_map(|at| at.parsed(mistakes, version)).collect(),
        method: f.text("method", mistakes).filter(|m| !m.is_empty()).unwrap_or(default.method),
        authorization: authorization(f, mistakes),
        http_headers: http_headers(f, mistakes),
        proxy_url: proxy(f, mistakes),
        headers,
        body_size_limit: f.get("body_size_limit").and_then(|at| at.parsed(mistakes, size)).unwrap_or(0),
        compression,
        follow_redirects: no_follow.map_or(follow.unwrap_or(true), |no| !no),
        fail_if_ssl: f.flag("fail_if_ssl", mistakes).unwrap_or(false),
        fail_if_not_ssl: f.flag("fail_if_not_ssl", mistakes).unwrap_or(false),
        fail_if_body_matches: patterns(f, "fail_if_body_matches_regexp", mistakes),
        fail_if_body_not_matches: patterns(f, "fail_if_body_not_matches_regexp", mistakes),
        fail_if_header_matches: header_matches(f, "fail_if_header_matches", mistakes),
        fail_if_header_not_matches: header_matches(f, "fail_if_header_not_matches", mistakes),
        tls: tls(f, mistakes),
        enable_http2: f.flag("enable_http2", mistakes).unwrap_or(true),
        enable_http3,
        ip: ip(f, mistakes),
        body: secret(f, "body", "body_file", mistakes),
    }
}

fn version(text: &str) -> Result<String, String> {
    let known = [("HTTP/1.0", "1.0"), ("HTTP/1.1", "1.1"), ("HTTP/2.0", "2"), ("HTTP/2", "2"), ("HTTP/3.0", "3"), ("HTTP/3", "3")];
    known
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, v)| (*v).to_owned())
        .ok_or_else(|| format!("{text:?} is no version of HTTP (want HTTP/1.0, HTTP/1.1, HTTP/2.0 or HTTP/3.0)"))
}

/// `http_headers: {NAME: {values: [...], secrets: [...], files: [...]}}`
fn http_headers(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> Vec<(String, Secret)> {
    f.get("http_headers");
    let mut found = Vec::new();
    for (name, at) in f.children("http_headers") {
        let Some(mut h) = at.fields(mistakes) else { continue };
        let given = [texts(&mut h, "values", mistakes), texts(&mut h, "secrets", mistakes)].concat();
        found.extend(given.into_iter().map(|value| (name.clone(), Secret::Given(value))));
        found.extend(texts(&mut h, "files", mistakes).into_iter().map(|path| (name.clone(), Secret::File(path))));
        h.finish(mistakes);
    }
    found
}

/// Names are the proxy's to resolve here, which is what `skip_resolve_phase_with_proxy` asks for.
fn proxy(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<Secret> {
    f.flag("skip_resolve_phase_with_proxy", mistakes);
    let url = f.get("proxy_url")?.parsed(mistakes, |text| {
        let known = text.starts_with("http://") || text.starts_with("socks5://");
        if known { Ok(text.trim_end_matches('/').to_owned()) } else { Err("is no proxy (want http://host:port or socks5://host:port)".to_owned()) }
    })?;
    Some(Secret::Given(url))
}

fn oauth2(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<OAuth2> {
    let mut o = f.get("oauth2").and_then(|at| at.fields(mistakes))?;
    o.not_yet(&["client_secret_ref", "tls_config", "proxy_url", "no_proxy", "proxy_from_environment", "proxy_connect_header"], mistakes);
    let found = OAuth2 {
        client_id: o.need_text("client_id", mistakes),
        client_secret: secret(&mut o, "client_secret", "client_secret_file", mistakes),
        scopes: texts(&mut o, "scopes", mistakes),
        token_url: o.need_text("token_url", mistakes),
        endpoint_params: o.map("endpoint_params", mistakes),
    };
    o.finish(mistakes);
    Some(found)
}

fn header_matches(f: &mut Fields<'_>, key: &'static str, mistakes: &mut Mistakes) -> Vec<HeaderMatch> {
    let items = f.get(key).map(|at| at.items(mistakes)).unwrap_or_default();
    items.iter().filter_map(|at| header_match(at, mistakes)).collect()
}

fn header_match(at: &At<'_>, mistakes: &mut Mistakes) -> Option<HeaderMatch> {
    let mut f = at.fields(mistakes)?;
    let header = f.need_text("header", mistakes);
    let pattern = f.need("regexp", mistakes).and_then(|at| at.parsed(mistakes, super::from_go));
    let allow_missing = f.flag("allow_missing", mistakes).unwrap_or(false);
    f.finish(mistakes);
    Some(HeaderMatch { header, pattern: pattern?, allow_missing })
}

fn authorization(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<Authorization> {
    let mut found: Vec<Authorization> = Vec::new();
    if let Some(mut basic) = f.get("basic_auth").and_then(|at| at.fields(mistakes)) {
        basic.not_yet(&["username_file", "username_ref", "password_ref"], mistakes);
        let username = basic.text("username", mistakes).unwrap_or_default();
        let password = secret(&mut basic, "password", "password_file", mistakes);
        basic.finish(mistakes);
        found.push(Authorization::Basic { username, password });
    }
    if let Some(mut scheme) = f.get("authorization").and_then(|at| at.fields(mistakes)) {
        scheme.not_yet(&["credentials_ref"], mistakes);
        let word = scheme.text("type", mistakes).unwrap_or_else(|| "Bearer".to_owned());
        if word.trim().eq_ignore_ascii_case("basic") {
            mistakes.add(&scheme.path_of("type"), scheme.place(), "Basic cannot stand here", "use basic_auth");
        }
        let credentials = secret(&mut scheme, "credentials", "credentials_file", mistakes);
        scheme.finish(mistakes);
        found.extend(credentials.map(|credentials| Authorization::Scheme { scheme: word.trim().to_owned(), credentials }));
    }
    if let Some(token) = f.text("bearer_token", mistakes) {
        found.push(Authorization::Scheme { scheme: "Bearer".to_owned(), credentials: Secret::Given(token) });
    }
    if let Some(at) = f.get("bearer_token_file") {
        found.extend(at.text(mistakes).map(|path| Authorization::Scheme { scheme: "Bearer".to_owned(), credentials: Secret::File(path) }));
    }
    found.extend(oauth2(f, mistakes).map(Authorization::OAuth2));
    if found.len() > 1 {
        mistakes.add(&f.path, f.place(), "several ways to authenticate are given", "one of basic_auth, authorization, oauth2, bearer_token, bearer_token_file");
    }
    found.pop()
}

/// `10MB`: as blackbox reads it, K, M and G are powers of 1024 with or without an `i`.
fn size(text: &str) -> Result<u64, String> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("{text:?} has no unit (want for example 512KB, 10MB)"));
    }
    let text = text.replace("KB", "KiB").replace("MB", "MiB").replace("GB", "GiB");
    units::parse_bytes(&text)
}
