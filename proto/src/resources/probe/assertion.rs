//! Assertions on what came back: regular expressions, bodies, headers.

use serde_json_path::JsonPath;

use super::super::read::{At, Fields, Mistakes};
use crate::v1::*;

/// Bytes of a JSONPath, and brackets in one another.
const JSON_PATH_BYTES_MAX: usize = 1_024;
const JSON_PATH_DEPTH_MAX: usize = 16;

/// How the values of a JSONPath are compared, as it is written.
const COMPARISONS: &[(&str, JsonComparison)] = &[
    ("equals", JsonComparison::Equals),
    ("notEquals", JsonComparison::NotEquals),
    ("below", JsonComparison::Below),
    ("atMost", JsonComparison::AtMost),
    ("above", JsonComparison::Above),
    ("atLeast", JsonComparison::AtLeast),
    ("matches", JsonComparison::Matches),
    ("exists", JsonComparison::Exists),
    ("count", JsonComparison::Count),
];

/// A regular expression, of the regex crate's syntax, within a bound of memory.
pub fn regex(text: &str) -> Result<String, String> {
    regex::bytes::RegexBuilder::new(text).size_limit(1 << 20).build().map(|_| text.to_owned()).map_err(|e| {
        let line = e.to_string().lines().last().unwrap_or_default().trim().to_owned();
        format!("{text:?} is no regular expression: {line}")
    })
}

/// A JSONPath of RFC 9535.
pub fn json_path(text: &str) -> Result<String, String> {
    // Its parser calls itself for each, and tries more than one way: a few hundred would overflow its stack.
    let depth = text.chars().try_fold(0usize, |depth, c| match c {
        '[' | '(' => Some(depth + 1).filter(|d| *d <= JSON_PATH_DEPTH_MAX),
        ']' | ')' => Some(depth.saturating_sub(1)),
        _ => Some(depth),
    });
    if text.len() > JSON_PATH_BYTES_MAX || depth.is_none() {
        return Err(format!("a JSONPath has at most {JSON_PATH_BYTES_MAX} bytes, and {JSON_PATH_DEPTH_MAX} brackets in one another"));
    }
    JsonPath::parse(text).map(|_| text.to_owned()).map_err(|e| format!("{text:?} is no JSONPath (RFC 9535): {} (want for example $.status)", e.message()))
}

pub(super) fn body_assertion(at: &At<'_>, mistakes: &mut Mistakes) -> Option<BodyAssertion> {
    use body_assertion::Assertion;
    let mut f = at.fields(mistakes)?;
    if f.has("jsonPath") {
        let assertion = json_assertion(at, &mut f, mistakes);
        f.finish(mistakes);
        return Some(BodyAssertion { assertion: Some(Assertion::JsonPath(assertion?)) });
    }
    let mut found = Vec::new();
    found.extend(f.text("contains", mistakes).map(Assertion::Contains));
    found.extend(f.text("notContains", mistakes).map(Assertion::NotContains));
    found.extend(f.get("matches").and_then(|at| at.parsed(mistakes, regex)).map(Assertion::Matches));
    found.extend(f.get("notMatches").and_then(|at| at.parsed(mistakes, regex)).map(Assertion::NotMatches));
    found.extend(f.get("schema").and_then(|at| json_schema(&at, mistakes)).map(Assertion::JsonSchema));
    found.extend(f.get("sha256").and_then(|at| at.parsed(mistakes, sha256)).map(Assertion::Sha256));
    f.get("jsonPath");
    let wrong_value = found.is_empty() && ["matches", "notMatches", "schema", "sha256"].iter().any(|key| f.has(key));
    f.finish(mistakes);
    if wrong_value {
        return None;
    }
    one(found, at, "assertion", "contains, notContains, matches, notMatches, jsonPath, schema, sha256", mistakes)
        .map(|assertion| BodyAssertion { assertion: Some(assertion) })
}

fn json_assertion(at: &At<'_>, f: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<JsonPathAssertion> {
    let path = f.get("jsonPath").and_then(|at| at.parsed(mistakes, json_path));
    let mut found = Vec::new();
    for (key, comparison) in COMPARISONS {
        let Some(at) = f.get(key) else { continue };
        let json = at.node.json();
        let (fine, wanted) = match comparison {
            JsonComparison::Below | JsonComparison::AtMost | JsonComparison::Above | JsonComparison::AtLeast => (json.is_number(), "a number"),
            JsonComparison::Matches => (json.as_str().is_some_and(|text| regex(text).is_ok()), "a regular expression"),
            JsonComparison::Exists => (json.is_boolean(), "true or false"),
            JsonComparison::Count => (json.is_u64(), "a whole number"),
            _ => (true, ""),
        };
        if !fine {
            mistakes.add(&at.path, at.place(), format!("{json} cannot be compared with by {key}"), format!("want {wanted}"));
        }
        let comparison = if json == false && *comparison == JsonComparison::Exists { JsonComparison::Absent } else { *comparison };
        found.push((comparison, json.to_string()));
    }
    let words: Vec<&str> = COMPARISONS.iter().map(|(word, _)| *word).collect();
    let (comparison, equals_json) = one(found, at, "comparison", &words.join(", "), mistakes)?;
    Some(JsonPathAssertion { path: path?, equals_json, comparison: comparison as i32 })
}

/// The outline of a JSON Schema; references to other documents are not followed, so they are refused.
fn json_schema(at: &At<'_>, mistakes: &mut Mistakes) -> Option<String> {
    let schema = at.node.json();
    if !schema.is_object() && !schema.is_boolean() {
        mistakes.add(&at.path, at.place(), format!("is {}, want a JSON Schema", at.node.what()), "for example {type: object, required: [status]}");
        return None;
    }
    if let Err(message) = schema_problem(&schema) {
        mistakes.add(&at.path, at.place(), message, "");
        return None;
    }
    Some(schema.to_string())
}

fn schema_problem(schema: &serde_json::Value) -> Result<(), String> {
    const TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];
    let Some(fields) = schema.as_object() else { return Ok(()) };
    if let Some(serde_json::Value::String(name)) = fields.get("type")
        && !TYPES.contains(&name.as_str())
    {
        return Err(format!("{name:?} is no JSON Schema type (want {})", TYPES.join(", ")));
    }
    if let Some(serde_json::Value::String(reference)) = fields.get("$ref")
        && !reference.starts_with('#')
    {
        return Err(format!("$ref {reference:?} leads to another document, which is not fetched (want #/...)"));
    }
    if let Some(serde_json::Value::String(pattern)) = fields.get("pattern") {
        regex(pattern)?;
    }
    let properties = fields.get("properties").and_then(|p| p.as_object());
    properties.into_iter().flat_map(|p| p.values()).chain(fields.get("items")).try_for_each(schema_problem)
}

fn sha256(text: &str) -> Result<String, String> {
    let fine = text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit());
    if fine { Ok(text.to_ascii_lowercase()) } else { Err(format!("{text:?} is no SHA-256 (want 64 hexadecimal digits)")) }
}

pub(super) fn header_assertion(at: &At<'_>, mistakes: &mut Mistakes) -> Option<HeaderAssertion> {
    use header_assertion::Assertion;
    let mut f = at.fields(mistakes)?;
    let name = f.need_text("name", mistakes);
    let mut found = Vec::new();
    found.extend(f.text("equals", mistakes).map(Assertion::Equals));
    found.extend(f.get("matches").and_then(|at| at.parsed(mistakes, regex)).map(Assertion::Matches));
    found.extend(f.get("notMatches").and_then(|at| at.parsed(mistakes, regex)).map(Assertion::NotMatches));
    found.extend(f.flag("present", mistakes).filter(|p| *p).map(Assertion::Present));
    found.extend(f.flag("absent", mistakes).filter(|p| *p).map(Assertion::Absent));
    let wrong_value = found.is_empty() && ["matches", "notMatches"].iter().any(|key| f.has(key));
    f.finish(mistakes);
    if wrong_value {
        return None;
    }
    one(found, at, "assertion", "equals, matches, notMatches, present: true, absent: true", mistakes)
        .map(|assertion| HeaderAssertion { name, assertion: Some(assertion) })
}

/// The one of several that is wanted.
pub(super) fn one<T>(mut found: Vec<T>, at: &At<'_>, what: &str, of: &str, mistakes: &mut Mistakes) -> Option<T> {
    if found.len() != 1 {
        mistakes.add(&at.path, at.place(), format!("one {what} is wanted"), format!("one of {of}"));
        return None;
    }
    found.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_path_nests_a_little() {
        let nested = |n: usize| format!("{}@.b{}", "$.a[?(".repeat(n), ")]".repeat(n));
        assert!(json_path(&nested(8)).is_ok());
        assert!(json_path(&nested(9)).is_err_and(|m| m.contains("16 brackets")));
        assert!(json_path(&format!("$.{}", "a".repeat(1_100))).is_err());
        // What its parser makes of the worst that is let in must come to an end.
        assert!(json_path(&"$[?(".repeat(8)).is_err());
        assert!(json_path(&"$[?!(!(".repeat(5)).is_err());
    }
}
