//! What is compiled once and used by many runs: regular expressions, JSONPaths, JSON Schemas.

use std::sync::Arc;

use jsonschema::Validator;
use probity_proto::v1::Reason;
use regex::bytes::{Regex, RegexBuilder};
use serde_json::Value;
use serde_json_path::JsonPath;

use super::Failure;
use crate::cache::Cache;

/// Compiled things of each kind that are kept; probes from one template share theirs.
const COMPILED_MAX: usize = 4_096;
/// Memory of one compiled regular expression, the same as when the resource was read.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// The caches.
#[derive(Debug)]
pub(crate) struct Patterns {
    regexes: Cache<String, Arc<Regex>>,
    paths: Cache<String, Arc<JsonPath>>,
    schemas: Cache<String, Arc<Validator>>,
}

impl Patterns {
    pub(crate) fn new() -> Patterns {
        Patterns { regexes: Cache::new(COMPILED_MAX), paths: Cache::new(COMPILED_MAX), schemas: Cache::new(COMPILED_MAX) }
    }

    pub(crate) fn regex(&self, pattern: &str) -> Result<Arc<Regex>, Failure> {
        self.regexes.get_or(pattern, || RegexBuilder::new(pattern).size_limit(REGEX_BYTES_MAX).build().map(Arc::new).map_err(unusable))
    }

    pub(crate) fn path(&self, path: &str) -> Result<Arc<JsonPath>, Failure> {
        self.paths.get_or(path, || JsonPath::parse(path).map(Arc::new).map_err(unusable))
    }

    pub(crate) fn schema(&self, schema: &str) -> Result<Arc<Validator>, Failure> {
        self.schemas.get_or(schema, || {
            let value: Value = serde_json::from_str(schema).map_err(unusable)?;
            jsonschema::validator_for(&value).map(Arc::new).map_err(|e| unusable(format!("no usable JSON Schema: {e}")))
        })
    }
}

/// The resource was checked when it was applied: this is a prober of another version.
fn unusable(error: impl ToString) -> Failure {
    Failure::new(Reason::Unsupported, error.to_string())
}
