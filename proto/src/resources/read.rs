//! Reading a tree by expected fields. Every mistake is collected with its path and place; nothing stops at the first.

use std::collections::BTreeMap;

use super::tree::{Node, Value};
use crate::units;

/// A mistake in one document.
#[derive(Debug, Clone)]
pub(super) struct Mistake {
    pub(super) path: String,
    pub(super) line: u32,
    pub(super) column: u32,
    pub(super) message: String,
    pub(super) hint: String,
}

/// Collects mistakes.
#[derive(Debug, Default)]
pub(super) struct Mistakes(pub(super) Vec<Mistake>);

impl Mistakes {
    pub(super) fn add(&mut self, path: &str, place: (u32, u32), message: impl Into<String>, hint: impl Into<String>) {
        self.0.push(Mistake { path: path.to_owned(), line: place.0, column: place.1, message: message.into(), hint: hint.into() });
    }
}

/// A mapping that is being read.
pub(super) struct Fields<'t> {
    pub(super) path: String,
    place: (u32, u32),
    node: &'t Node,
    entries: &'t [(String, (u32, u32), Node)],
    known: Vec<&'static str>,
}

/// A value with its path.
#[derive(Clone)]
pub(super) struct At<'t> {
    pub(super) path: String,
    pub(super) node: &'t Node,
}

impl<'t> At<'t> {
    pub(super) fn place(&self) -> (u32, u32) {
        (self.node.line, self.node.column)
    }

    pub(super) fn is_sequence(&self) -> bool {
        matches!(self.node.value, Value::Sequence(_))
    }

    pub(super) fn is_mapping(&self) -> bool {
        matches!(self.node.value, Value::Mapping(_))
    }

    pub(super) fn text(&self, mistakes: &mut Mistakes) -> Option<String> {
        match &self.node.value {
            Value::Scalar(text, _) => Some(text.clone()),
            _ => {
                mistakes.add(&self.path, self.place(), format!("is {}, want text", self.node.what()), "");
                None
            }
        }
    }

    pub(super) fn fields(&self, mistakes: &mut Mistakes) -> Option<Fields<'t>> {
        match &self.node.value {
            Value::Mapping(entries) => Some(Fields { path: self.path.clone(), place: self.place(), node: self.node, entries, known: Vec::new() }),
            _ => {
                mistakes.add(&self.path, self.place(), format!("is {}, want a mapping", self.node.what()), "");
                None
            }
        }
    }

    pub(super) fn items(&self, mistakes: &mut Mistakes) -> Vec<At<'t>> {
        match &self.node.value {
            Value::Sequence(items) => items.iter().enumerate().map(|(i, node)| At { path: format!("{}[{i}]", self.path), node }).collect(),
            _ => {
                mistakes.add(&self.path, self.place(), format!("is {}, want a list", self.node.what()), "");
                Vec::new()
            }
        }
    }

    /// A text through a parser whose error is the message.
    pub(super) fn flag(&self, mistakes: &mut Mistakes) -> Option<bool> {
        self.parsed(mistakes, |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(format!("{text:?} is no boolean (want true or false)")),
        })
    }

    pub(super) fn parsed<T>(&self, mistakes: &mut Mistakes, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(mistakes)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(message) => {
                mistakes.add(&self.path, self.place(), message, "");
                None
            }
        }
    }
}

impl<'t> Fields<'t> {
    pub(super) fn place(&self) -> (u32, u32) {
        self.place
    }

    /// The mapping itself.
    pub(super) fn node(&self) -> &'t Node {
        self.node
    }

    /// The path of a key of this mapping.
    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// An optional value; null is absent.
    pub(super) fn get(&mut self, key: &'static str) -> Option<At<'t>> {
        self.known.push(key);
        let (.., node) = self.entries.iter().find(|(k, ..)| k == key)?;
        (!node.is_null()).then(|| At { path: self.path_of(key), node })
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(k, _, v)| k == key && !v.is_null())
    }

    /// A value that must be there.
    pub(super) fn need(&mut self, key: &'static str, mistakes: &mut Mistakes) -> Option<At<'t>> {
        let found = self.get(key);
        if found.is_none() {
            mistakes.add(&self.path_of(key), self.place, "is missing", "");
        }
        found
    }

    pub(super) fn text(&mut self, key: &'static str, mistakes: &mut Mistakes) -> Option<String> {
        self.get(key)?.text(mistakes)
    }

    pub(super) fn need_text(&mut self, key: &'static str, mistakes: &mut Mistakes) -> String {
        self.need(key, mistakes).and_then(|at| at.text(mistakes)).unwrap_or_default()
    }

    pub(super) fn duration(&mut self, key: &'static str, mistakes: &mut Mistakes) -> Option<u64> {
        self.get(key)?.parsed(mistakes, units::parse_duration)
    }

    pub(super) fn int(&mut self, key: &'static str, range: std::ops::RangeInclusive<u64>, mistakes: &mut Mistakes) -> Option<u64> {
        let at = self.get(key)?;
        let (low, high) = (*range.start(), *range.end());
        at.parsed(mistakes, |text| match text.parse::<u64>() {
            Ok(n) if range.contains(&n) => Ok(n),
            _ => Err(format!("{text:?} is out of range (want a whole number from {low} to {high})")),
        })
    }

    pub(super) fn flag(&mut self, key: &'static str, mistakes: &mut Mistakes) -> Option<bool> {
        self.get(key)?.flag(mistakes)
    }

    /// One word of a closed set.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)], mistakes: &mut Mistakes) -> Option<T> {
        self.get(key)?.parsed(mistakes, |text| {
            words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
                let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                format!("{text:?} is unknown (want {})", all.join(", "))
            })
        })
    }

    /// A mapping of text to text.
    pub(super) fn map(&mut self, key: &'static str, mistakes: &mut Mistakes) -> BTreeMap<String, String> {
        let Some(at) = self.get(key) else { return BTreeMap::new() };
        let Some(fields) = at.fields(mistakes) else { return BTreeMap::new() };
        fields.entries.iter().filter_map(|(k, _, node)| Some((k.clone(), At { path: fields.path_of(k), node }.text(mistakes)?))).collect()
    }

    /// Reports keys that nobody asked for.
    pub(super) fn finish(self, mistakes: &mut Mistakes) {
        for (key, place, _) in self.entries {
            if self.known.iter().any(|k| k == key) {
                continue;
            }
            let near = nearest(key, &self.known);
            let hint = match near {
                Some(word) => format!("did you mean {word:?}?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            mistakes.add(&self.path_of(key), *place, format!("unknown key {key:?}"), hint);
        }
    }

    /// Takes a key that is part of the interface but not of this version: refused by name, never ignored.
    pub(super) fn not_yet(&mut self, keys: &[&'static str], mistakes: &mut Mistakes) {
        for key in keys {
            if let Some(at) = self.get(key) {
                mistakes.add(&at.path, at.place(), format!("{key} is not supported by this version"), "");
            }
        }
    }
}

/// The known word that is at most two edits away.
pub(super) fn nearest<'w>(word: &str, known: &[&'w str]) -> Option<&'w str> {
    known.iter().map(|k| (edits(word, k), *k)).filter(|(d, _)| *d <= 2).min().map(|(_, k)| k)
}

/// Levenshtein distance, upper and lower case alike.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.to_lowercase().chars().collect(), b.to_lowercase().chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let next = (diagonal + usize::from(ca != cb)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

impl<'t> Fields<'t> {
    /// The entries of a mapping under `key`, whose keys are the user's own names.
    pub(super) fn children(&self, key: &str) -> Vec<(String, At<'t>)> {
        let Some((.., node)) = self.entries.iter().find(|(k, ..)| k == key) else { return Vec::new() };
        let Value::Mapping(entries) = &node.value else { return Vec::new() };
        let path = self.path_of(key);
        entries.iter().map(|(name, _, node)| (name.clone(), At { path: format!("{path}.{name}"), node })).collect()
    }
}
