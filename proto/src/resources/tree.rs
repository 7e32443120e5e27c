//! YAML as a tree whose every node knows its line and column, so that a problem found later still has a place.

use std::collections::BTreeMap;

use granit_parser::{Event, Parser, ScalarStyle, Span};

/// Nodes of one file, aliases expanded: more is refused (alias bombs).
const NODES_MAX: usize = 200_000;
/// Nesting of one file.
const DEPTH_MAX: usize = 64;

/// A node.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) line: u32,
    pub(super) column: u32,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// Text, and whether it was quoted (a quoted scalar is never a number, a boolean or null).
    Scalar(String, bool),
    Sequence(Vec<Node>),
    /// In the order written: key, its place, value.
    Mapping(Vec<(String, (u32, u32), Node)>),
}

/// Where and why a text is no YAML.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) line: u32,
    pub(super) column: u32,
    pub(super) message: String,
}

struct Builder<'i, I: Iterator<Item = Result<(Event<'i>, Span), granit_parser::ScanError>>> {
    events: I,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
}

/// The documents of a text.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, Broken> {
    let mut builder = Builder { events: Parser::new_from_str(text), anchors: BTreeMap::new(), nodes: 0 };
    let mut documents = Vec::new();
    loop {
        let (event, span) = builder.next()?;
        match event {
            Event::StreamEnd => return Ok(documents),
            Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
            event => {
                let node = builder.node(event, span, 0)?;
                let empty = matches!(&node.value, Value::Scalar(text, false) if text.is_empty() || text == "~" || text == "null");
                if !empty {
                    documents.push(node);
                }
            }
        }
    }
}

fn place(span: Span) -> (u32, u32) {
    (span.start.line() as u32, span.start.col() as u32 + 1)
}

impl<'i, I: Iterator<Item = Result<(Event<'i>, Span), granit_parser::ScanError>>> Builder<'i, I> {
    fn next(&mut self) -> Result<(Event<'i>, Span), Broken> {
        loop {
            return match self.events.next() {
                Some(Ok((Event::Comment(..), _))) => continue,
                Some(Ok(next)) => Ok(next),
                Some(Err(error)) => {
                    let marker = error.marker();
                    Err(Broken { line: marker.line() as u32, column: marker.col() as u32 + 1, message: error.info() })
                }
                None => Ok((Event::StreamEnd, Span::default())),
            };
        }
    }

    fn node(&mut self, event: Event<'i>, span: Span, depth: usize) -> Result<Node, Broken> {
        let (line, column) = place(span);
        let broken = |message: &str| Broken { line, column, message: message.to_owned() };
        self.nodes += 1;
        if depth > DEPTH_MAX {
            return Err(broken("nested too deeply (at most 64 levels)"));
        }
        if self.nodes > NODES_MAX {
            return Err(broken("too many values in one file (at most 200,000, aliases expanded)"));
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => (Value::Scalar(text.into_owned(), style != ScalarStyle::Plain), anchor),
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    match event {
                        Event::SequenceEnd => break,
                        event => items.push(self.node(event, span, depth + 1)?),
                    }
                }
                (Value::Sequence(items), anchor)
            }
            Event::MappingStart(_, anchor, _) => (self.mapping(depth)?, anchor),
            Event::Alias(id) => {
                let target = self.anchors.get(&id).cloned().ok_or_else(|| broken("an alias of itself"))?;
                self.nodes += count(&target);
                if self.nodes > NODES_MAX {
                    return Err(broken("too many values in one file (at most 200,000, aliases expanded)"));
                }
                (target.value, 0)
            }
            _ => return Err(broken("unexpected YAML")),
        };
        let node = Node { value, line, column };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, Broken> {
        let mut entries: Vec<(String, (u32, u32), Node)> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let (line, column) = place(span);
            let key = match event {
                Event::MappingEnd => return Ok(Value::Mapping(entries)),
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(Broken { line, column, message: "a key must be text".to_owned() }),
            };
            if entries.iter().any(|(k, ..)| *k == key) {
                return Err(Broken { line, column, message: format!("key {key:?} is given twice") });
            }
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            entries.push((key, (line, column), value));
        }
    }
}

fn count(node: &Node) -> usize {
    1 + match &node.value {
        Value::Scalar(..) => 0,
        Value::Sequence(items) => items.iter().map(count).sum(),
        Value::Mapping(entries) => entries.iter().map(|(.., v)| count(v)).sum(),
    }
}

impl Node {
    /// What it is, for a message.
    pub(super) fn what(&self) -> &'static str {
        match &self.value {
            Value::Scalar(..) => "a single value",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
        }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(text, false) if matches!(text.as_str(), "" | "~" | "null"))
    }

    /// As JSON, plain scalars by YAML's core schema.
    pub(super) fn json(&self) -> serde_json::Value {
        match &self.value {
            Value::Scalar(text, true) => text.clone().into(),
            Value::Scalar(text, false) => match text.as_str() {
                "" | "~" | "null" => serde_json::Value::Null,
                "true" => true.into(),
                "false" => false.into(),
                _ => match (text.parse::<i64>(), text.parse::<f64>()) {
                    (Ok(int), _) => int.into(),
                    (_, Ok(float)) if float.is_finite() && text.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '.') => float.into(),
                    _ => text.clone().into(),
                },
            },
            Value::Sequence(items) => items.iter().map(Node::json).collect(),
            Value::Mapping(entries) => entries.iter().map(|(k, _, v)| (k.clone(), v.json())).collect::<serde_json::Map<_, _>>().into(),
        }
    }

    /// The place of a path such as `spec.steps[0].with.delay`; the nearest node above it that exists, when it does not.
    pub(super) fn place_of(&self, path: &str) -> (u32, u32) {
        let mut here = (self.line, self.column);
        let mut node = self;
        for part in path.split('.') {
            let (key, indexes) = part.split_once('[').unwrap_or((part, ""));
            let Value::Mapping(entries) = &node.value else { return here };
            let Some((_, place, value)) = entries.iter().find(|(k, ..)| k == key) else { return here };
            here = *place;
            node = value;
            for index in indexes.split('[').filter_map(|i| i.trim_end_matches(']').parse::<usize>().ok()) {
                let Value::Sequence(items) = &node.value else { return here };
                let Some(item) = items.get(index) else { return here };
                here = (item.line, item.column);
                node = item;
            }
        }
        here
    }
}
