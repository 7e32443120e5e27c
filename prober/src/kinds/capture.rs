//! Values that one step of a run finds and later ones use: `$(captures.NAME)`.

use std::borrow::Cow;

use probity_proto::lower::substitute;
use probity_proto::v1::Reason;
use serde_json::Value;

use super::Failure;

/// Bytes of one captured value, written as JSON where it is no text: a token or an id, never a page.
const VALUE_BYTES_MAX: usize = 16 * 1024;

/// What a run has captured so far.
#[derive(Debug, Default)]
pub(crate) struct Captures(Vec<(String, Value)>);

impl Captures {
    /// Keeps a value, in the place of an earlier one of that name.
    pub(crate) fn keep(&mut self, name: &str, value: Value) -> Result<(), Failure> {
        let bytes = match &value {
            Value::String(text) => text.len(),
            other => other.to_string().len(),
        };
        if bytes > VALUE_BYTES_MAX {
            return Err(Failure::new(Reason::CaptureMissing, format!("what is captured as {name:?} has more than {VALUE_BYTES_MAX} bytes")));
        }
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), value));
        Ok(())
    }

    fn value(&self, reference: &str) -> Option<&Value> {
        let name = reference.strip_prefix("captures.")?;
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// A text with its references replaced. What refers to nothing stands: the resource was checked before.
    pub(crate) fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.0.is_empty() || !text.contains("$(captures.") {
            return Cow::Borrowed(text);
        }
        let lookup = |reference: &str| Some(self.value(reference).map_or_else(|| format!("$({reference})"), plain));
        substitute(text, lookup).map_or(Cow::Borrowed(text), Cow::Owned)
    }

    /// A JSON document with its references replaced: one that is a whole string keeps its value's type.
    pub(crate) fn json<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.0.is_empty() || !text.contains("$(captures.") {
            return Cow::Borrowed(text);
        }
        let Ok(mut document) = serde_json::from_str::<Value>(text) else { return Cow::Borrowed(text) };
        self.replace(&mut document);
        Cow::Owned(document.to_string())
    }

    fn replace(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                let whole = text.strip_prefix("$(").and_then(|t| t.strip_suffix(')')).and_then(|reference| self.value(reference));
                *value = match whole {
                    Some(found) => found.clone(),
                    None => Value::String(self.text(text).into_owned()),
                };
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.replace(item)),
            Value::Object(fields) => fields.values_mut().for_each(|field| self.replace(field)),
            _ => {}
        }
    }
}

/// As it stands in a URL or a header: a string without its quotes.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_replaced_and_keep_their_type() {
        let mut captures = Captures::default();
        assert_eq!(captures.text("$(captures.id)"), "$(captures.id)");
        captures.keep("id", json!(7)).expect("short");
        captures.keep("name", json!("a \"b\"")).expect("short");
        assert_eq!(captures.text("/x/$(captures.id)?n=$(captures.name)&$(captures.other)"), "/x/7?n=a \"b\"&$(captures.other)");
        let document = r#"{"id":"$(captures.id)","list":["n: $(captures.name)",1]}"#;
        assert_eq!(captures.json(document), r#"{"id":7,"list":["n: a \"b\"",1]}"#);
        captures.keep("id", json!("new")).expect("short");
        assert_eq!(captures.text("$(captures.id)"), "new");
        assert!(captures.keep("big", json!("x".repeat(20_000))).is_err());
        assert!(captures.keep("big", json!({"a": ["x".repeat(10_000), "x".repeat(10_000)]})).is_err(), "of an object too");
        captures.keep("fits", json!({"a": "x"})).expect("short");
    }
}
