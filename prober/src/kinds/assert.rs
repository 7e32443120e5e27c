//! Assertions on an HTTP answer.

use http::{HeaderMap, Version};
use probity_proto::v1::{BodyAssertion, HeaderAssertion, HttpExpect, JsonComparison, JsonPathAssertion, Reason, body_assertion, header_assertion};
use serde_json::Value;

use super::Failure;
use super::patterns::Patterns;

/// Characters of a value that a message shows: a body may hold what is nobody's business.
const SHOWN: usize = 80;

/// Checks the status.
pub(crate) fn status(expect: &HttpExpect, status: u16) -> Result<(), Failure> {
    let status = u32::from(status);
    if expect.status.is_empty() || expect.status.iter().any(|r| (r.from..=r.to).contains(&status)) {
        return Ok(());
    }
    let wanted: Vec<String> = expect.status.iter().map(|r| if r.from == r.to { r.from.to_string() } else { format!("{}-{}", r.from, r.to) }).collect();
    Err(Failure::new(Reason::StatusMismatch, format!("status {status}, want {}", wanted.join(" or "))))
}

/// As resources and traces write it.
pub(crate) fn version_word(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    }
}

/// Checks the protocol's version.
pub(crate) fn version(expect: &HttpExpect, version: Version) -> Result<(), Failure> {
    let found = version_word(version);
    if expect.versions.is_empty() || expect.versions.iter().any(|v| v == found) {
        return Ok(());
    }
    Err(Failure::new(Reason::VersionMismatch, format!("HTTP/{found}, want HTTP/{}", expect.versions.join(" or "))))
}

/// Checks the headers.
pub(crate) fn headers(patterns: &Patterns, expect: &HttpExpect, headers: &HeaderMap) -> Result<(), Failure> {
    expect.headers.iter().try_for_each(|assertion| header(patterns, assertion, headers))
}

fn header(patterns: &Patterns, assertion: &HeaderAssertion, headers: &HeaderMap) -> Result<(), Failure> {
    use header_assertion::Assertion;
    let name = &assertion.name;
    let values: Vec<&[u8]> = headers.get_all(name).iter().map(|v| v.as_bytes()).collect();
    let (holds, wanted) = match &assertion.assertion {
        Some(Assertion::Equals(text)) => (values.contains(&text.as_bytes()), format!("want {text:?}")),
        Some(Assertion::Matches(pattern)) => {
            let regex = patterns.regex(pattern)?;
            (values.iter().any(|v| regex.is_match(v)), format!("want a match of {pattern:?}"))
        }
        Some(Assertion::MatchesIfPresent(pattern)) => {
            let regex = patterns.regex(pattern)?;
            (values.is_empty() || values.iter().any(|v| regex.is_match(v)), format!("want a match of {pattern:?}, or none"))
        }
        Some(Assertion::NotMatches(pattern)) => {
            let regex = patterns.regex(pattern)?;
            (!values.iter().any(|v| regex.is_match(v)), format!("want no match of {pattern:?}"))
        }
        Some(Assertion::Present(_)) => (!values.is_empty(), "want it".to_owned()),
        Some(Assertion::Absent(_)) => (values.is_empty(), "want none".to_owned()),
        None => return Ok(()),
    };
    if holds {
        return Ok(());
    }
    let found = match values.first() {
        Some(value) => format!("is {:?}", shown(&String::from_utf8_lossy(value))),
        None => "is not there".to_owned(),
    };
    Err(Failure::new(Reason::HeaderMismatch, format!("header {name:?} {found}, {wanted}")))
}

/// Checks the body, parsing it as JSON at most once.
pub(crate) fn body(patterns: &Patterns, expect: &HttpExpect, body: &[u8]) -> Result<(), Failure> {
    let size = body.len() as u64;
    if size < expect.body_min_bytes {
        return wrong(format!("the body has {size} bytes, want at least {}", expect.body_min_bytes));
    }
    if expect.body_max_bytes > 0 && size > expect.body_max_bytes {
        return wrong(format!("the body has {size} bytes, want at most {}", expect.body_max_bytes));
    }
    let mut document = None;
    expect.body.iter().try_for_each(|assertion| one_body(patterns, assertion, body, &mut document))
}

fn wrong(message: String) -> Result<(), Failure> {
    Err(Failure::new(Reason::BodyMismatch, message))
}

fn one_body(patterns: &Patterns, assertion: &BodyAssertion, body: &[u8], document: &mut Option<Value>) -> Result<(), Failure> {
    use body_assertion::Assertion;
    let contains = |text: &str| text.is_empty() || memchr::memmem::find(body, text.as_bytes()).is_some();
    let mut json = || -> Result<Value, Failure> {
        if let Some(document) = document {
            return Ok(std::mem::take(document));
        }
        serde_json::from_slice(body).map_err(|e| Failure::new(Reason::BodyMismatch, format!("the body is no JSON: {e}")))
    };
    match &assertion.assertion {
        Some(Assertion::Contains(text)) if !contains(text) => wrong(format!("the body does not contain {text:?}")),
        Some(Assertion::NotContains(text)) if contains(text) => wrong(format!("the body contains {text:?}")),
        Some(Assertion::Matches(pattern)) if !patterns.regex(pattern)?.is_match(body) => wrong(format!("the body does not match {pattern:?}")),
        Some(Assertion::NotMatches(pattern)) if patterns.regex(pattern)?.is_match(body) => wrong(format!("the body matches {pattern:?}")),
        Some(Assertion::JsonPath(assertion)) => {
            let value = json()?;
            json_path(patterns, assertion, &value)?;
            *document = Some(value);
            Ok(())
        }
        Some(Assertion::JsonSchema(schema)) => {
            let value = json()?;
            json_schema(patterns, schema, &value)?;
            *document = Some(value);
            Ok(())
        }
        Some(Assertion::Sha256(wanted)) => {
            let found = hex(ring::digest::digest(&ring::digest::SHA256, body).as_ref());
            if found == *wanted { Ok(()) } else { wrong(format!("the body's SHA-256 is {found}, want {wanted}")) }
        }
        _ => Ok(()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn json_schema(patterns: &Patterns, schema: &str, value: &Value) -> Result<(), Failure> {
    let validator = patterns.schema(schema)?;
    match validator.iter_errors(value).next() {
        Some(error) => wrong(format!("the body does not fit the schema at {:?}: {}", error.instance_path().to_string(), shown(&error.to_string()))),
        None => Ok(()),
    }
}

fn json_path(patterns: &Patterns, assertion: &JsonPathAssertion, value: &Value) -> Result<(), Failure> {
    let path = &assertion.path;
    let found = patterns.path(path)?.query(value).all();
    let wanted: Value = serde_json::from_str(&assertion.equals_json).unwrap_or(Value::Null);
    let comparison = assertion.comparison();
    match comparison {
        JsonComparison::Absent => return if found.is_empty() { Ok(()) } else { wrong(format!("{path} is in the body, want none")) },
        JsonComparison::Count => {
            let fits = wanted.as_u64() == Some(found.len() as u64);
            return if fits { Ok(()) } else { wrong(format!("{path} selects {} values, want {wanted}", found.len())) };
        }
        _ if found.is_empty() => return wrong(format!("{path} is not in the body")),
        _ => {}
    }
    for value in found {
        let fits = match comparison {
            JsonComparison::Exists => true,
            JsonComparison::Equals => equal(value, &wanted),
            JsonComparison::NotEquals => !equal(value, &wanted),
            JsonComparison::Matches => match (value, wanted.as_str()) {
                (Value::String(text), Some(pattern)) => patterns.regex(pattern)?.is_match(text.as_bytes()),
                (other, Some(pattern)) => patterns.regex(pattern)?.is_match(other.to_string().as_bytes()),
                _ => false,
            },
            ordered => value.as_f64().zip(wanted.as_f64()).is_some_and(|(value, wanted)| match ordered {
                JsonComparison::Below => value < wanted,
                JsonComparison::AtMost => value <= wanted,
                JsonComparison::Above => value > wanted,
                _ => value >= wanted,
            }),
        };
        if !fits {
            return wrong(format!("{path} is {}, want {} {wanted}", shown(&value.to_string()), word(comparison)));
        }
    }
    Ok(())
}

/// Numbers by their value: 1 is 1.0.
fn equal(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) if !(a.is_u64() && b.is_u64()) => x == y,
        _ => a == b,
    }
}

fn word(comparison: JsonComparison) -> &'static str {
    match comparison {
        JsonComparison::NotEquals => "not",
        JsonComparison::Below => "below",
        JsonComparison::AtMost => "at most",
        JsonComparison::Above => "above",
        JsonComparison::AtLeast => "at least",
        JsonComparison::Matches => "a match of",
        _ => "equal to",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_paths_and_comparisons() {
        let value = json!({"status": "ok", "n": 5, "list": [{"p": 1.5, "ok": true}, {"p": 9, "ok": true}], "empty": []});
        let patterns = Patterns::new();
        let check = |path: &str, comparison, wanted: Value| {
            let assertion = JsonPathAssertion { path: path.to_owned(), equals_json: wanted.to_string(), comparison: comparison as i32 };
            json_path(&patterns, &assertion, &value).map_err(|f| f.message)
        };
        use JsonComparison::*;
        for (path, comparison, wanted) in [
            ("$.status", Equals, json!("ok")),
            ("$.n", Equals, json!(5.0)),
            ("$.status", NotEquals, json!("bad")),
            ("$.list[*].p", Above, json!(1)),
            ("$.list[*].p", AtMost, json!(9)),
            ("$.list[?@.p > 5].p", Equals, json!(9)),
            ("$..ok", Equals, json!(true)),
            ("$.status", Matches, json!("^o")),
            ("$.n", Matches, json!("^5$")),
            ("$.list", Exists, json!(true)),
            ("$.none", Absent, json!(false)),
            ("$.list[*]", Count, json!(2)),
            ("$.empty[*]", Count, json!(0)),
        ] {
            assert_eq!(check(path, comparison, wanted.clone()), Ok(()), "{path} {comparison:?} {wanted}");
        }
        for (path, comparison, wanted, message) in [
            ("$.status", Equals, json!("no"), "$.status is \"ok\", want equal to \"no\""),
            ("$.list[*].p", Below, json!(9), "$.list[*].p is 9, want below 9"),
            ("$.status", Above, json!(1), "$.status is \"ok\", want above 1"),
            ("$.none", Equals, json!(1), "$.none is not in the body"),
            ("$.n", Absent, json!(false), "$.n is in the body, want none"),
            ("$.list[*]", Count, json!(3), "$.list[*] selects 2 values, want 3"),
        ] {
            assert_eq!(check(path, comparison, wanted), Err(message.to_owned()));
        }
    }
}
