//! Assertions on what came back: regular expressions, bodies, headers.

use super::super::read::{At, Mistakes};
use crate::v1::*;

pub(super) fn regex(text: &str) -> Result<String, String> {
    regex::bytes::RegexBuilder::new(text).size_limit(1 << 20).build().map(|_| text.to_owned()).map_err(|e| {
        let line = e.to_string().lines().last().unwrap_or_default().trim().to_owned();
        format!("{text:?} is no regular expression: {line}")
    })
}

pub(super) fn body_assertion(at: &At<'_>, mistakes: &mut Mistakes) -> Option<BodyAssertion> {
    use body_assertion::Assertion;
    let mut f = at.fields(mistakes)?;
    f.not_yet(&["schema", "hash"], mistakes);
    let mut found = Vec::new();
    found.extend(f.text("contains", mistakes).map(Assertion::Contains));
    found.extend(f.text("notContains", mistakes).map(Assertion::NotContains));
    found.extend(f.get("matches").and_then(|at| at.parsed(mistakes, regex)).map(Assertion::Matches));
    found.extend(f.get("notMatches").and_then(|at| at.parsed(mistakes, regex)).map(Assertion::NotMatches));
    if let Some(path) = f.text("jsonPath", mistakes) {
        let equals_json = f.need("equals", mistakes).map(|at| at.node.json().to_string()).unwrap_or_default();
        if !path.starts_with('$') {
            mistakes.add(&format!("{}.jsonPath", at.path), at.place(), format!("{path:?} is no JSONPath"), "want for example $.status");
        }
        found.push(Assertion::JsonPath(JsonPathAssertion { path, equals_json }));
    }
    f.finish(mistakes);
    one(found, at, "contains, notContains, matches, notMatches, jsonPath", mistakes).map(|assertion| BodyAssertion { assertion: Some(assertion) })
}

pub(super) fn header_assertion(at: &At<'_>, mistakes: &mut Mistakes) -> Option<HeaderAssertion> {
    use header_assertion::Assertion;
    let mut f = at.fields(mistakes)?;
    let name = f.need_text("name", mistakes);
    let mut found = Vec::new();
    found.extend(f.text("equals", mistakes).map(Assertion::Equals));
    found.extend(f.get("matches").and_then(|at| at.parsed(mistakes, regex)).map(Assertion::Matches));
    found.extend(f.flag("present", mistakes).filter(|p| *p).map(Assertion::Present));
    found.extend(f.flag("absent", mistakes).filter(|p| *p).map(Assertion::Absent));
    f.finish(mistakes);
    one(found, at, "equals, matches, present: true, absent: true", mistakes).map(|assertion| HeaderAssertion { name, assertion: Some(assertion) })
}

pub(super) fn one<T>(mut found: Vec<T>, at: &At<'_>, of: &str, mistakes: &mut Mistakes) -> Option<T> {
    if found.len() != 1 {
        mistakes.add(&at.path, at.place(), "one assertion is wanted", format!("one of {of}"));
        return None;
    }
    found.pop()
}
