//! Resources: the YAML documents that operators apply, checked as a whole and lowered to messages with every default filled.
//!
//! Every problem of every document is reported at once, with file, line, column, what was wrong and what would be right.

mod alerting;
pub mod blackbox;
mod docs;
mod probe;
mod read;
mod scenario;
mod slo;
mod tree;

use std::collections::BTreeMap;
use std::fmt;

pub use docs::{FieldDoc, explain, json_schema};
pub use probe::{
    FAMILIES, STARTTLS, coding, interface, json_path, pin, proxy_url, rcode_name, record_type_name, record_type_number, regex, resolver_server, status_range,
    target_problem,
};

use crate::v1::{Resource, resource::Spec};
use read::{At, Fields, Mistakes};
use tree::Node;

/// A YAML value without places: for what no person wrote as a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plain {
    /// Nothing.
    Null,
    /// Text, whatever it looks like.
    Scalar(String),
    /// A list.
    Sequence(Vec<Plain>),
    /// A mapping, in the order written; no key is there twice.
    Mapping(Vec<(String, Plain)>),
}

/// The documents of a YAML (or JSON) text, within the same bounds as resources.
pub fn plain(text: &str) -> Result<Vec<Plain>, String> {
    let documents = tree::parse(text).map_err(|broken| format!("no valid YAML or JSON: {}:{}: {}", broken.line, broken.column, broken.message))?;
    Ok(documents.into_iter().map(plain_node).collect())
}

fn plain_node(node: Node) -> Plain {
    match node.value {
        _ if node.is_null() => Plain::Null,
        tree::Value::Scalar(text, _) => Plain::Scalar(text),
        tree::Value::Sequence(items) => Plain::Sequence(items.into_iter().map(plain_node).collect()),
        tree::Value::Mapping(entries) => Plain::Mapping(entries.into_iter().map(|(key, _, value)| (key, plain_node(value))).collect()),
    }
}

/// The API version of Probity's own kinds.
pub const API_VERSION: &str = "probity/v1";
/// The API version of OpenSLO documents.
pub const OPENSLO_VERSION: &str = "openslo/v1";
/// More documents in one apply are refused.
const DOCUMENTS_MAX: usize = 10_000;

/// A file to parse.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// For messages.
    pub name: String,
    /// Its whole text.
    pub text: String,
}

/// Something wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Name of the file.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1.
    pub column: u32,
    /// `spec.steps[0].with.delay`
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What would be right; may be empty.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, " ({})", self.hint) }
    }
}

/// A resource with the tree that it came from.
#[derive(Debug, Clone)]
pub struct ParsedResource {
    /// Lowered; without generation and times.
    pub resource: Resource,
    /// Name of its file.
    pub file: String,
    tree: Node,
}

impl ParsedResource {
    /// A problem that was found later, at the place of its path.
    pub fn problem(&self, path: &str, message: impl Into<String>, hint: impl Into<String>) -> Problem {
        let (line, column) = self.tree.place_of(path);
        Problem { file: self.file.clone(), line, column, path: path.to_owned(), message: message.into(), hint: hint.into() }
    }
}

/// What came of parsing: resources count only when there is no problem.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The well-formed ones.
    pub resources: Vec<ParsedResource>,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
}

/// Parses and lowers all documents of all files.
pub fn parse(files: &[SourceFile], default_namespace: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    for file in files {
        let documents = match tree::parse(&file.text) {
            Ok(documents) => documents,
            Err(broken) => {
                parsed.problems.push(Problem {
                    file: file.name.clone(),
                    line: broken.line,
                    column: broken.column,
                    path: String::new(),
                    message: format!("no valid YAML: {}", broken.message),
                    hint: String::new(),
                });
                continue;
            }
        };
        for tree in documents {
            if places.len() >= DOCUMENTS_MAX {
                parsed.problems.push(problem(&file.name, &tree, "more than 10,000 documents in one apply"));
                return parsed;
            }
            document(file, tree, default_namespace, &mut places, &mut parsed);
        }
    }
    parsed
}

fn problem(file: &str, tree: &Node, message: &str) -> Problem {
    Problem { file: file.to_owned(), line: tree.line, column: tree.column, path: String::new(), message: message.to_owned(), hint: String::new() }
}

fn document(file: &SourceFile, tree: Node, default_namespace: &str, places: &mut BTreeMap<String, String>, parsed: &mut Parsed) {
    let mut mistakes = Mistakes::default();
    let resource = read(&tree, default_namespace, &mut mistakes);
    if let Some(resource) = resource {
        let key = format!("{}/{}/{}", resource.kind, resource.namespace, resource.name);
        let place = format!("{}:{}", file.name, tree.line);
        if let Some(first) = places.insert(key, place) {
            mistakes.add(
                "metadata.name",
                tree.place_of("metadata.name"),
                format!("{} {:?} is given twice", resource.kind, resource.name),
                format!("first at {first}"),
            );
        }
        if mistakes.0.is_empty() {
            parsed.resources.push(ParsedResource { resource, file: file.name.clone(), tree });
        }
    }
    parsed.problems.extend(mistakes.0.into_iter().map(|m| Problem {
        file: file.name.clone(),
        line: m.line,
        column: m.column,
        path: m.path,
        message: m.message,
        hint: m.hint,
    }));
}

/// Reads one document; what it returns with mistakes beside it is good for nothing but its name.
fn read(tree: &Node, default_namespace: &str, mistakes: &mut Mistakes) -> Option<Resource> {
    let mut top = At { path: String::new(), node: tree }.fields(mistakes)?;
    let api = top.need_text("apiVersion", mistakes);
    let kind_at = top.need("kind", mistakes)?;
    let kind = kind_at.text(mistakes)?;
    let expected = match kind.as_str() {
        "SLO" => OPENSLO_VERSION,
        "Probe" | "BurnRatePolicy" | "Receiver" | "Route" | "Maintenance" | "Scenario" => API_VERSION,
        _ => {
            let known = ["Probe", "SLO", "BurnRatePolicy", "Receiver", "Route", "Maintenance", "Scenario"];
            let hint = read::nearest(&kind, &known).map_or_else(|| format!("known: {}", known.join(", ")), |k| format!("did you mean {k:?}?"));
            mistakes.add("kind", kind_at.place(), format!("unknown kind {kind:?}"), hint);
            return None;
        }
    };
    if api != expected && !api.is_empty() {
        let place = tree.place_of("apiVersion");
        mistakes.add("apiVersion", place, format!("{api:?} has no kind {kind}"), format!("want {expected}"));
    }
    let (namespace, name, labels) = metadata(&mut top, &kind, default_namespace, mistakes);
    let spec = top.need("spec", mistakes).and_then(|at| at.fields(mistakes));
    top.finish(mistakes);
    let spec = spec.and_then(|fields| self::spec(&kind, fields, mistakes));
    Some(Resource { kind, namespace, name, labels, document_json: tree.json().to_string(), spec, ..Resource::default() })
}

fn spec(kind: &str, fields: Fields<'_>, mistakes: &mut Mistakes) -> Option<Spec> {
    Some(match kind {
        "Probe" => Spec::Probe(probe::read(fields, mistakes)?),
        "SLO" => Spec::Slo(slo::read(fields, mistakes)?),
        "BurnRatePolicy" => Spec::BurnRatePolicy(alerting::policy(fields, mistakes)),
        "Receiver" => Spec::Receiver(alerting::receiver(fields, mistakes)?),
        "Route" => Spec::Route(alerting::route(fields, mistakes)),
        "Scenario" => Spec::Scenario(scenario::read(fields, mistakes)),
        _ => {
            mistakes.add("kind", fields.place(), "kind Maintenance is not supported by this version", "");
            return None;
        }
    })
}

fn metadata(top: &mut Fields<'_>, kind: &str, default_namespace: &str, mistakes: &mut Mistakes) -> (String, String, BTreeMap<String, String>) {
    let Some(mut fields) = top.need("metadata", mistakes).and_then(|at| at.fields(mistakes)) else { return Default::default() };
    let mut named = |key, mistakes: &mut Mistakes| fields.get(key).and_then(|at| at.parsed(mistakes, name));
    let own = named("namespace", mistakes);
    let resource_name = named("name", mistakes).unwrap_or_default();
    if !fields.has("name") {
        mistakes.add("metadata.name", fields.place(), "is missing", "");
    }
    let labels = fields.map("labels", mistakes);
    let annotations = fields.map("annotations", mistakes);
    if kind == "SLO" {
        fields.get("displayName");
    }
    fields.finish(mistakes);
    let namespace = own.or_else(|| annotations.get("probity/namespace").cloned()).unwrap_or_else(|| default_namespace.to_owned());
    (namespace, resource_name, labels)
}

/// A name as in DNS labels: it stands in paths, labels and file names.
fn name(text: &str) -> Result<String, String> {
    let fine = !text.is_empty()
        && text.len() <= 63
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if fine { Ok(text.to_owned()) } else { Err(format!("{text:?} is no name (want 1 to 63 of a-z, 0-9 and -, no - at the ends)")) }
}

#[cfg(test)]
mod tests;
