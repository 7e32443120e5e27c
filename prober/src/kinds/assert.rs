//! Assertions on an HTTP answer.

use http::HeaderMap;
use probity_proto::v1::{BodyAssertion, HeaderAssertion, HttpExpect, Reason, body_assertion, header_assertion};
use regex::bytes::Regex;
use serde_json::Value;

use super::Failure;

/// Checks the status.
pub(crate) fn status(expect: &HttpExpect, status: u16) -> Result<(), Failure> {
    let status = u32::from(status);
    if expect.status.iter().any(|r| (r.from..=r.to).contains(&status)) {
        return Ok(());
    }
    let wanted: Vec<String> = expect.status.iter().map(|r| if r.from == r.to { r.from.to_string() } else { format!("{}-{}", r.from, r.to) }).collect();
    Err(Failure::new(Reason::StatusMismatch, format!("status {status}, want {}", wanted.join(" or "))))
}

/// Checks the headers.
pub(crate) fn headers(expect: &HttpExpect, headers: &HeaderMap) -> Result<(), Failure> {
    expect.headers.iter().try_for_each(|assertion| header(assertion, headers))
}

fn header(assertion: &HeaderAssertion, headers: &HeaderMap) -> Result<(), Failure> {
    use header_assertion::Assertion;
    let values: Vec<&[u8]> = headers.get_all(&assertion.name).iter().map(|v| v.as_bytes()).collect();
    let holds = match &assertion.assertion {
        Some(Assertion::Equals(text)) => values.contains(&text.as_bytes()),
        Some(Assertion::Matches(pattern)) => regex(pattern)?.is_some_and(|r| values.iter().any(|v| r.is_match(v))),
        Some(Assertion::Present(_)) => !values.is_empty(),
        Some(Assertion::Absent(_)) => values.is_empty(),
        None => true,
    };
    if holds { Ok(()) } else { Err(Failure::new(Reason::HeaderMismatch, format!("header {:?} is not as expected", assertion.name))) }
}

fn regex(pattern: &str) -> Result<Option<Regex>, Failure> {
    Regex::new(pattern).map(Some).map_err(|e| Failure::new(Reason::Unsupported, e.to_string()))
}

/// Checks the body.
pub(crate) fn body(expect: &HttpExpect, body: &[u8]) -> Result<(), Failure> {
    expect.body.iter().try_for_each(|assertion| one_body(assertion, body))
}

fn one_body(assertion: &BodyAssertion, body: &[u8]) -> Result<(), Failure> {
    use body_assertion::Assertion;
    let contains = |text: &str| text.is_empty() || body.windows(text.len()).any(|w| w == text.as_bytes());
    let wrong = |message: String| Err(Failure::new(Reason::BodyMismatch, message));
    match &assertion.assertion {
        Some(Assertion::Contains(text)) if !contains(text) => wrong(format!("the body does not contain {text:?}")),
        Some(Assertion::NotContains(text)) if contains(text) => wrong(format!("the body contains {text:?}")),
        Some(Assertion::Matches(pattern)) if !regex(pattern)?.is_some_and(|r| r.is_match(body)) => wrong(format!("the body does not match {pattern:?}")),
        Some(Assertion::NotMatches(pattern)) if regex(pattern)?.is_some_and(|r| r.is_match(body)) => wrong(format!("the body matches {pattern:?}")),
        Some(Assertion::JsonPath(assertion)) => {
            let Ok(value) = serde_json::from_slice::<Value>(body) else { return wrong("the body is no JSON".to_owned()) };
            let wanted: Value = serde_json::from_str(&assertion.equals_json).unwrap_or(Value::Null);
            match json_path(&value, &assertion.path) {
                Some(found) if *found == wanted => Ok(()),
                Some(found) => wrong(format!("{} is {found}, want {wanted}", assertion.path)),
                None => wrong(format!("{} is not in the body", assertion.path)),
            }
        }
        _ => Ok(()),
    }
}

/// `$.a.b[0]`: members and indexes, which is what health checks need (a subset of RFC 9535).
fn json_path<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    let mut here = value;
    for part in path.strip_prefix('$')?.split('.').filter(|p| !p.is_empty()) {
        let (name, indexes) = part.split_once('[').unwrap_or((part, ""));
        if !name.is_empty() {
            here = here.get(name)?;
        }
        for index in indexes.split('[').filter(|i| !i.is_empty()) {
            here = here.get(index.strip_suffix(']')?.parse::<usize>().ok()?)?;
        }
    }
    Some(here)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_paths() {
        let value = json!({"a": {"b": [1, {"c": "x"}]}, "list": [[2]]});
        for (path, found) in [("$.a.b[0]", json!(1)), ("$.a.b[1].c", json!("x")), ("$.list[0][0]", json!(2)), ("$", value.clone())] {
            assert_eq!(json_path(&value, path), Some(&found), "{path}");
        }
        for path in ["$.z", "$.a.b[7]", "a", "$.a.b[x]"] {
            assert_eq!(json_path(&value, path), None, "{path}");
        }
    }
}
