//! HTTP on hyper with our own connector, because the phases must be seen apart. One request, or several in order.

mod body;
mod connect;
mod http3;
mod oauth;
mod request;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri, Version, header};
use probity_proto::v1::{Capture, Header, HttpAuth, HttpCheck, HttpExpect, HttpStep, Reason, TlsOptions};
use serde_json::Value;

use super::bodies::{FREE_BYTES, Held};
use super::capture::Captures;
use super::patterns::Patterns;
use super::{Attempt, Failure, assert};
pub(super) use connect::{HEAD_BYTES_MAX, Pool, failure};
pub(super) use oauth::Tokens;
use request::Draft;

/// A larger body is judged on another thread.
const JUDGED_HERE_BYTES: usize = FREE_BYTES as usize;

/// One request as it is written, wherever it stands.
#[derive(Clone, Copy)]
struct Step<'c> {
    url: &'c str,
    method: &'c str,
    headers: &'c [Header],
    body: &'c str,
    form: &'c [Header],
    json_body: &'c str,
    body_secret_ref: &'c str,
    auth: Option<&'c HttpAuth>,
    expect: Option<&'c HttpExpect>,
    follow_redirects: u32,
    captures: &'c [Capture],
}

impl<'c> Step<'c> {
    fn single(check: &'c HttpCheck) -> Step<'c> {
        Step {
            url: &check.url,
            method: &check.method,
            headers: &check.headers,
            body: &check.body,
            form: &check.form,
            json_body: &check.json_body,
            body_secret_ref: &check.body_secret_ref,
            auth: check.auth.as_ref(),
            expect: check.expect.as_ref(),
            follow_redirects: check.follow_redirects,
            captures: &[],
        }
    }

    fn of(step: &'c HttpStep) -> Step<'c> {
        Step {
            url: &step.url,
            method: &step.method,
            headers: &step.headers,
            body: &step.body,
            form: &step.form,
            json_body: &step.json_body,
            body_secret_ref: &step.body_secret_ref,
            auth: step.auth.as_ref(),
            expect: step.expect.as_ref(),
            follow_redirects: step.follow_redirects,
            captures: &step.captures,
        }
    }
}

/// What holds for every request of a run.
#[derive(Clone, Copy)]
struct Shared<'c> {
    check: &'c HttpCheck,
    tls: &'c TlsOptions,
}

/// What came back.
struct Answer {
    status: StatusCode,
    version: Version,
    headers: HeaderMap,
    /// Decoded, if that was asked for; empty when the answer is a redirect that is followed.
    body: Bytes,
    /// The room that the body takes.
    held: Option<Held>,
}

pub(crate) async fn run(attempt: &mut Attempt<'_>, check: &HttpCheck) -> Result<(), Failure> {
    let default = TlsOptions::default();
    let shared = Shared { check, tls: check.tls.as_ref().unwrap_or(&default) };
    let mut captures = Captures::default();
    if check.steps.is_empty() {
        return one(attempt, shared, Step::single(check), &mut captures).await;
    }
    for step in &check.steps {
        let named = |f: Failure| Failure::new(f.reason, format!("{}: {}", step.name, f.message));
        one(attempt, shared, Step::of(step), &mut captures).await.map_err(named)?;
    }
    attempt.fact("http.requests", check.steps.len().to_string());
    Ok(())
}

/// One request with its redirects, judged.
async fn one(attempt: &mut Attempt<'_>, shared: Shared<'_>, step: Step<'_>, captures: &mut Captures) -> Result<(), Failure> {
    let answer = follow(attempt, shared, step, captures).await?;
    let default = HttpExpect::default();
    let expect = step.expect.unwrap_or(&default);
    assert::version(expect, answer.version)?;
    assert::headers(&attempt.context.patterns, expect, &answer.headers)?;
    let mut answer = body_as_expected(attempt, expect, answer).await?;
    for capture in step.captures {
        let value;
        (value, answer) = captured(attempt, capture, answer).await?;
        captures.keep(&capture.name, value)?;
    }
    Ok(())
}

/// A large one takes milliseconds or more: not on a thread that times other runs, and not past the time-out of its own. The answer comes back.
async fn body_as_expected(attempt: &mut Attempt<'_>, expect: &HttpExpect, answer: Answer) -> Result<Answer, Failure> {
    let context = attempt.context;
    if expect.body.is_empty() || answer.body.len() <= JUDGED_HERE_BYTES {
        return assert::body(&context.patterns, expect, &answer.body).map(|()| answer);
    }
    let (patterns, expect) = (context.patterns.clone(), expect.clone());
    attempt.work(move || assert::body(&patterns, &expect, &answer.body).map(|()| answer)).await?
}

/// The same of what is carried on.
async fn captured(attempt: &mut Attempt<'_>, wanted: &Capture, answer: Answer) -> Result<(Value, Answer), Failure> {
    let context = attempt.context;
    if answer.body.len() <= JUDGED_HERE_BYTES {
        return capture(&context.patterns, wanted, &answer).map(|value| (value, answer));
    }
    let (patterns, wanted) = (context.patterns.clone(), wanted.clone());
    attempt.work(move || capture(&patterns, &wanted, &answer).map(|value| (value, answer))).await?
}

/// Sends a request, and what its redirects ask for.
async fn follow(attempt: &mut Attempt<'_>, shared: Shared<'_>, step: Step<'_>, captures: &Captures) -> Result<Answer, Failure> {
    let mut url = captures.text(step.url).into_owned();
    let parsed = |url: &str| url.parse::<Uri>().map_err(|_| Failure::new(Reason::ProtocolError, format!("{url:?} is no URL")));
    let mut uri = parsed(&url)?;
    let mut draft = Draft::new(attempt, shared, step, captures, uri.host().unwrap_or_default()).await?;
    let mut seen: Vec<(Method, String)> = Vec::new();
    let mut first_host: Option<String> = None;
    let mut elsewhere: Option<TlsOptions> = None;
    loop {
        let host = uri.host().unwrap_or_default();
        let shared = match &first_host {
            Some(first) if !first.eq_ignore_ascii_case(host) => Shared { tls: elsewhere.get_or_insert_with(|| of_another_host(shared.tls)), ..shared },
            _ => shared,
        };
        let answer = connect::exchange(attempt, shared, &uri, &mut draft, Some(step)).await?;
        let location = answer.headers.get(header::LOCATION).and_then(|l| l.to_str().ok());
        let Some(location) = location.filter(|_| answer.status.is_redirection() && step.follow_redirects > 0) else {
            attempt.fact("http.redirects", seen.len().to_string());
            return Ok(answer);
        };
        if seen.len() as u32 >= step.follow_redirects {
            return Err(Failure::new(Reason::RedirectLimit, format!("more than {} redirects", step.follow_redirects)));
        }
        let next = absolute(&uri, location).ok_or_else(|| Failure::new(Reason::ProtocolError, format!("redirect to {location:?}, which is no URL")))?;
        first_host.get_or_insert_with(|| host.to_owned());
        seen.push((draft.method.clone(), url));
        draft.redirected(answer.status, &uri, &next);
        if seen.iter().any(|(method, earlier)| *method == draft.method && *earlier == next) {
            return Err(Failure::new(Reason::RedirectLoop, format!("redirected to {next} again")));
        }
        uri = parsed(&next)?;
        url = next;
    }
}

/// TLS with a host that the target redirects to: who we are, and who the target must be, are for the target alone.
fn of_another_host(tls: &TlsOptions) -> TlsOptions {
    TlsOptions {
        server_name: String::new(),
        client_certificate_secret_ref: String::new(),
        client_key_secret_ref: String::new(),
        pins: Vec::new(),
        ..tls.clone()
    }
}

fn capture(patterns: &Patterns, capture: &Capture, answer: &Answer) -> Result<Value, Failure> {
    let missing = |what: String| Failure::new(Reason::CaptureMissing, format!("nothing to capture as {:?}: {what}", capture.name));
    let value = if !capture.json_path.is_empty() {
        let document: Value = serde_json::from_slice(&answer.body).map_err(|_| missing("the body is no JSON".to_owned()))?;
        let path = patterns.path(&capture.json_path)?;
        path.query(&document).first().cloned().ok_or_else(|| missing(format!("{} selects nothing", capture.json_path)))?
    } else if !capture.header.is_empty() {
        let value = answer.headers.get(&capture.header).ok_or_else(|| missing(format!("no header {:?}", capture.header)))?;
        Value::String(String::from_utf8_lossy(value.as_bytes()).into_owned())
    } else {
        Value::Null
    };
    Ok(if capture.pattern.is_empty() {
        value
    } else {
        let text = match &value {
            Value::Null => answer.body.clone(),
            Value::String(text) => Bytes::copy_from_slice(text.as_bytes()),
            other => Bytes::from(other.to_string()),
        };
        let pattern = patterns.regex(&capture.pattern)?;
        let found = pattern.captures(&text).ok_or_else(|| missing(format!("{:?} does not match", capture.pattern)))?;
        let group = found.get(1).or(found.get(0)).map_or(&b""[..], |m| m.as_bytes());
        Value::String(String::from_utf8_lossy(group).into_owned())
    })
}

/// A `Location` against the URL that gave it (RFC 3986, section 5), its fragment left out.
fn absolute(base: &Uri, location: &str) -> Option<String> {
    let location = location.split('#').next().unwrap_or_default();
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_owned());
    }
    // Another scheme: a colon before any slash.
    if location.split(['/', '?']).next().is_some_and(|first| first.contains(':')) {
        return None;
    }
    let authority = base.authority()?;
    let scheme = base.scheme_str()?;
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    let (path, query) = location.split_once('?').map_or((location, None), |(p, q)| (p, Some(q)));
    let path = match path {
        "" => base.path().to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("{}/{path}", base.path().rsplit_once('/').map_or("", |(d, _)| d)),
    };
    let query = query.map_or(String::new(), |q| format!("?{q}"));
    Some(format!("{scheme}://{authority}{}{query}", without_dots(&path)))
}

/// `/a/b/../c` is `/a/c`.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            ".." => {
                kept.pop();
                if last {
                    kept.push("");
                }
            }
            "." if last => kept.push(""),
            "." => {}
            segment => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

/// For tests/fuzz.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_coding(bytes: &[u8]) {
    body::fuzz(bytes);
}

/// For tests/fuzz: a line with the URL that answered, then its `Location`.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_redirect(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (base, location) = text.split_once('\n').unwrap_or(("https://a.test/b/c?d", &text));
    let Some(base) = base.parse::<Uri>().ok().filter(|u| u.host().is_some() && matches!(u.scheme_str(), Some("http" | "https"))) else { return };
    let Some(next) = absolute(&base, location) else { return };
    assert!(next.starts_with("http://") || next.starts_with("https://"), "{next:?} is no URL of ours");
    request::fuzz_redirected(&base, &next);
    if let Ok(uri) = next.parse::<Uri>() {
        // What is followed next begins from there: it is the same URL, its fragment aside.
        assert_eq!(absolute(&base, &next).as_deref(), Some(next.as_str()));
        let _ = absolute(&uri, location);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let base: Uri = "http://h:81/a/b?c".parse().expect("a URL");
        for (location, url) in [
            ("/x", "http://h:81/x"),
            ("x", "http://h:81/a/x"),
            ("../x/./y?q=..#f", "http://h:81/x/y?q=.."),
            ("?d", "http://h:81/a/b?d"),
            ("../../..", "http://h:81/"),
            ("//o/x", "http://o/x"),
            ("https://z/#top", "https://z/"),
        ] {
            assert_eq!(absolute(&base, location).as_deref(), Some(url), "{location}");
        }
        assert_eq!(absolute(&base, "ftp://x/"), None);
    }
}
