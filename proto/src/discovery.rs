//! What a discovery finds, turned into targets: Prometheus' target groups (file_sd and http_sd), labels, keys, bounds.
//!
//! Format: <https://prometheus.io/docs/prometheus/latest/http_sd/>. A target of a group has the group's labels and `__address__`.
//! Labels that begin with `__` are for choosing a key, and dropped unless `labels` names them.

use std::collections::BTreeMap;

use crate::resources;
use crate::v1::*;
use crate::{lower, resources::Plain};

/// The largest set of a probe.
pub const TARGETS_MAX: usize = 10_000;
/// Labels of one target, as found.
const LABELS_MAX: usize = 200;
/// Bytes of a label's value, a key or an address.
const VALUE_BYTES_MAX: usize = 1_024;
/// All that is kept of a set: it is one entry of the log.
const SET_BYTES_MAX: usize = 2 * 1024 * 1024;
/// What was left out is told so often.
const NOTES_MAX: usize = 5;

/// A target as it was found: every label, `__address__` among them.
pub type Found = BTreeMap<String, String>;

/// The label that holds a target's address.
pub const ADDRESS: &str = "__address__";

/// Whether Prometheus would take it for a label's name.
pub fn is_label_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 128 && !text.starts_with(|c: char| c.is_ascii_digit()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Reads target groups, as JSON or YAML: `[{"targets": ["host:port"], "labels": {"a": "b"}}]`.
pub fn parse_groups(text: &str) -> Result<Vec<Found>, String> {
    let documents = resources::plain(text)?;
    let groups = match documents.as_slice() {
        [] => return Ok(Vec::new()),
        [Plain::Sequence(groups)] => groups,
        _ => return Err("want one list of {targets: [...], labels: {...}}".to_owned()),
    };
    let mut found = Vec::new();
    for (i, group) in groups.iter().enumerate() {
        let wrong = |what: &str| format!("group {}: {what}", i + 1);
        let Plain::Mapping(fields) = group else { return Err(wrong("want {targets: [...], labels: {...}}")) };
        let (mut labels, mut addresses): (Found, Vec<&String>) = Default::default();
        for (key, value) in fields {
            match (key.as_str(), value) {
                ("labels", Plain::Mapping(entries)) => {
                    for (name, value) in entries {
                        let Plain::Scalar(value) = value else { return Err(wrong(&format!("label {name:?} is no text"))) };
                        if !is_label_name(name) {
                            return Err(wrong(&format!("{name:?} is no label name")));
                        }
                        labels.insert(name.clone(), value.clone());
                    }
                }
                ("targets", Plain::Sequence(items)) => {
                    for item in items {
                        let Plain::Scalar(address) = item else { return Err(wrong("a target is no text (want host:port)")) };
                        addresses.push(address);
                    }
                }
                ("labels" | "targets", Plain::Null) => {}
                // Of older Prometheus, and of no use here.
                ("source", _) => {}
                (other, _) => return Err(wrong(&format!("unknown or wrong {other:?} (want targets, a list, and labels, a mapping)"))),
            }
        }
        if labels.len() > LABELS_MAX {
            return Err(wrong(&format!("{} labels, at most {LABELS_MAX} are read", labels.len())));
        }
        if found.len() + addresses.len() > TARGETS_MAX {
            return Err(format!("more than {TARGETS_MAX} targets"));
        }
        for address in addresses {
            let mut target = labels.clone();
            target.insert(ADDRESS.to_owned(), address.clone());
            found.push(target);
        }
    }
    Ok(found)
}

/// The targets of a probe, sorted by their keys, and what was left out, for people. The error says why there are none.
pub fn targets_of(spec: &ProbeSpec, found: Vec<Found>) -> Result<(Vec<Target>, String), String> {
    let discovery = spec.discovery.as_ref().ok_or("the probe discovers nothing")?;
    let (mut targets, mut left_out, mut count): (BTreeMap<String, Target>, Vec<String>, usize) = Default::default();
    let mut leave_out = |message: String| {
        count += 1;
        if left_out.len() < NOTES_MAX {
            left_out.push(message);
        }
    };
    let mut bytes = 0;
    let mut found: Vec<Found> = found;
    // One order, whatever the source's: of two with one key the first counts.
    found.sort();
    for labels in found {
        let address = labels.get(ADDRESS).cloned().unwrap_or_default();
        let lookup = |name: &str| match name {
            "target.address" => Some(address.clone()),
            _ => name.strip_prefix("target.labels.").and_then(|l| labels.get(l)).cloned(),
        };
        let key = match lower::substitute(&discovery.key, lookup) {
            Ok(key) if !key.is_empty() && key.len() <= VALUE_BYTES_MAX && !key.contains('\u{1f}') => key,
            Ok(key) => {
                leave_out(format!("{address}: its key has {} bytes (want 1 to {VALUE_BYTES_MAX}, and no control characters)", key.len()));
                continue;
            }
            Err(message) => {
                leave_out(format!("{address}: no key: {message}"));
                continue;
            }
        };
        let keeps = |name: &String| if discovery.plain_labels { !name.starts_with("__") } else { discovery.labels.contains(name) };
        let kept: BTreeMap<String, String> = labels.iter().filter(|(name, _)| keeps(name)).map(|(k, v)| (k.clone(), v.clone())).collect();
        let target = Target { key, address, labels: kept };
        if let Some(problem) = too_long(&target).or_else(|| resources::target_problem(spec, &target)) {
            leave_out(format!("{}: {problem}", target.key));
            continue;
        }
        match targets.get(&target.key) {
            Some(first) if *first == target => {}
            Some(first) => leave_out(format!("{}: this key has {} already, and {} is left out (spec.targets.key)", target.key, first.address, target.address)),
            None => {
                bytes += prost::Message::encoded_len(&target);
                targets.insert(target.key.clone(), target);
            }
        }
    }
    let more = count.saturating_sub(left_out.len());
    let mut note = left_out.join("; ");
    if more > 0 {
        note.push_str(&format!("; and {more} more"));
    }
    if targets.is_empty() {
        return Err(if note.is_empty() { "nothing was found".to_owned() } else { format!("nothing that can be checked was found: {note}") });
    }
    if targets.len() > discovery.max as usize {
        return Err(format!("{} targets were found, spec.targets.max is {}", targets.len(), discovery.max));
    }
    if bytes > SET_BYTES_MAX {
        return Err(format!("{bytes} bytes of targets were found, at most {SET_BYTES_MAX} are taken (spec.targets.labels keeps fewer labels)"));
    }
    Ok((targets.into_values().collect(), note))
}

fn too_long(target: &Target) -> Option<String> {
    let values = target.labels.values().chain([&target.address]);
    values.into_iter().find(|v| v.len() > VALUE_BYTES_MAX).map(|v| format!("a value of {} bytes (at most {VALUE_BYTES_MAX})", v.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::check_kind::Kind;

    fn spec(key: &str, labels: &[&str], plain_labels: bool) -> ProbeSpec {
        let discovery =
            Discovery { key: key.to_owned(), labels: labels.iter().map(|l| (*l).to_owned()).collect(), plain_labels, max: 3, ..Discovery::default() };
        ProbeSpec {
            kind: Some(CheckKind { kind: Some(Kind::Tcp(TcpCheck { address: "$(target.address)".to_owned(), ..TcpCheck::default() })) }),
            discovery: Some(discovery),
            ..ProbeSpec::default()
        }
    }

    #[test]
    fn groups_as_prometheus_writes_them() {
        let json = r#"[{"targets": ["a:1", "b:2"], "labels": {"store": "s1", "__meta_x": "y"}}, {"targets": ["c:3"]}]"#;
        let yaml = "- targets: [a:1, 'b:2']\n  labels:\n    store: s1\n    __meta_x: y\n- targets:\n  - c:3\n  labels: null\n";
        assert_eq!(parse_groups(json), parse_groups(yaml));
        let found = parse_groups(json).expect("groups");
        assert_eq!(found.iter().map(|f| f[ADDRESS].as_str()).collect::<Vec<_>>(), ["a:1", "b:2", "c:3"]);
        assert_eq!(found[1]["store"], "s1");
        assert_eq!(parse_groups(""), Ok(Vec::new()));
        assert_eq!(parse_groups("[]"), Ok(Vec::new()));
        for (wrong, message) in [
            ("{}", "want one list of {targets: [...], labels: {...}}"),
            ("[1]", "group 1: want {targets: [...], labels: {...}}"),
            (r#"[{"targets": "a:1"}]"#, r#"group 1: unknown or wrong "targets" (want targets, a list, and labels, a mapping)"#),
            (r#"[{"target": ["a:1"]}]"#, r#"group 1: unknown or wrong "target" (want targets, a list, and labels, a mapping)"#),
            (r#"[{"targets": [["a"]]}]"#, "group 1: a target is no text (want host:port)"),
            (r#"[{"targets": ["a:1"], "labels": {"1x": "y"}}]"#, r#"group 1: "1x" is no label name"#),
        ] {
            assert_eq!(parse_groups(wrong), Err(message.to_owned()), "{wrong}");
        }
        assert!(parse_groups("[").is_err_and(|m| m.starts_with("no valid YAML or JSON")));
    }

    #[test]
    fn keys_labels_and_bounds() {
        let found = |text: &str| parse_groups(text).expect("groups");
        let both = r#"[{"targets": ["a:1"], "labels": {"store": "s1", "__meta_x": "m"}}, {"targets": ["b:2"], "labels": {"store": "s2"}}]"#;
        let (targets, note) = targets_of(&spec("$(target.labels.store)", &[], true), found(both)).expect("targets");
        assert_eq!(targets.iter().map(|t| (t.key.as_str(), t.address.as_str())).collect::<Vec<_>>(), [("s1", "a:1"), ("s2", "b:2")]);
        assert_eq!((targets[0].labels.len(), note.as_str()), (1, ""), "what begins with __ is dropped");
        let (targets, note) = targets_of(&spec("$(target.labels.__meta_x)", &["__meta_x"], false), found(both)).expect("targets");
        assert_eq!((targets.len(), targets[0].labels.get("__meta_x").map(String::as_str)), (1, Some("m")), "kept when it is named");
        assert_eq!(note, "b:2: no key: $(target.labels.__meta_x) refers to nothing");
        // The same target twice is one; another one with its key is left out, and told.
        let twice = r#"[{"targets": ["a:1", "a:1", "b:2"], "labels": {"store": "s"}}]"#;
        let (targets, note) = targets_of(&spec("$(target.labels.store)", &[], true), found(twice)).expect("targets");
        assert_eq!((targets.len(), note.as_str()), (1, "s: this key has a:1 already, and b:2 is left out (spec.targets.key)"));
        let many = r#"[{"targets": ["a:1", "b:1", "c:1", "d:1"]}]"#;
        assert_eq!(targets_of(&spec("$(target.address)", &[], true), found(many)), Err("4 targets were found, spec.targets.max is 3".to_owned()));
        let wrong = r#"[{"targets": ["no-port"]}]"#;
        let none = targets_of(&spec("$(target.address)", &[], true), found(wrong));
        assert_eq!(none, Err(r#"nothing that can be checked was found: no-port: "no-port" is no address (want host:port)"#.to_owned()));
        assert_eq!(targets_of(&spec("$(target.address)", &[], true), Vec::new()), Err("nothing was found".to_owned()));
    }
}
