//! `get`, `events` and every other list.

use std::process::ExitCode;

use serde_json::Value;

use crate::api::{Api, encode};
use crate::args::{AuditArgs, EventsArgs, Format, GetArgs};
use crate::output::{Table, age, at, cell, duration, pairs, percent, print_json, print_lines, print_yaml};
use crate::{Fail, Outcome};

/// The kinds of the read API with the words that people use for them; the last flag: has a namespace.
const KINDS: &[(&str, &[&str], bool)] = &[
    ("probes", &["probe"], true),
    ("slos", &["slo"], true),
    ("burnratepolicies", &["burnratepolicy", "policy", "policies"], true),
    ("receivers", &["receiver"], true),
    ("routes", &["route"], true),
    ("maintenances", &["maintenance"], true),
    ("scenarios", &["scenario"], true),
    ("probers", &["prober"], false),
    ("members", &["member"], false),
    ("alerts", &["alert"], true),
    ("episodes", &["episode"], true),
    ("gamedays", &["gameday"], true),
    ("faults", &["fault"], true),
    ("events", &["event"], true),
    ("audit", &[], false),
    ("tokens", &["token"], false),
    ("revocations", &["revocation"], false),
];

/// The kind that a word means.
pub(super) fn kind(word: &str) -> Result<(&'static str, bool), Fail> {
    let lower = word.to_ascii_lowercase();
    KINDS
        .iter()
        .find(|(plural, others, _)| *plural == lower || others.contains(&lower.as_str()))
        .map(|(plural, _, namespaced)| (*plural, *namespaced))
        .ok_or_else(|| {
            let all: Vec<&str> = KINDS.iter().map(|(plural, _, _)| *plural).collect();
            Fail::misuse(format!("unknown kind {word:?} (known: {})", all.join(", ")))
        })
}

/// The path of one thing.
pub(super) fn item_path(kind: &str, namespaced: bool, namespace: &str, name: &str) -> String {
    // An alert's name is slo/rule: its slash stays one.
    let name = name.split('/').map(encode).collect::<Vec<_>>().join("/");
    if namespaced { format!("/api/v1/{kind}/{}/{name}", encode(namespace)) } else { format!("/api/v1/{kind}/{name}") }
}

pub(super) async fn get(api: &mut Api, args: GetArgs, format: Format) -> Outcome {
    let (kind, namespaced) = kind(&args.kind)?;
    let mut query = Vec::new();
    if kind == "probes" {
        // A table has a line for a probe; its checks may be 100,000.
        let table = matches!(format, Format::Table | Format::Wide);
        query.extend(if table { Some("checks=false".to_owned()) } else { (!args.watch).then(|| "paged=true".to_owned()) });
    }
    let path = match &args.name {
        Some(name) => format!("{}?{}", item_path(kind, namespaced, &api.namespace, name), query.join("&")),
        None => {
            if namespaced && !args.all_namespaces {
                query.push(format!("namespace={}", encode(&api.namespace)));
            }
            if let Some(selector) = &args.selector {
                super::apply::selector(selector)?;
                query.push(format!("selector={}", encode(selector)));
            }
            format!("/api/v1/{kind}?{}", query.join("&"))
        }
    };
    let wide = format == Format::Wide;
    let show = |value: &Value| show(kind, value, format, args.all_namespaces, wide);
    if !args.watch {
        let value = api.read(&path).await?;
        show(&value);
        return Ok(ExitCode::SUCCESS);
    }
    super::watch::watch(api, &path, |value| lines(kind, value, format, args.all_namespaces, wide)).await
}

/// A list of a kind as it is.
pub(super) async fn plain(api: &mut Api, kind: &str, format: Format) -> Outcome {
    let path = format!("/api/v1/{kind}?namespace={}", encode(&api.namespace));
    let value = api.read(&path).await?;
    show(kind, &value, format, false, format == Format::Wide);
    Ok(ExitCode::SUCCESS)
}

/// Who changed what, oldest first: in all namespaces that may be seen, unless one is asked for.
pub(super) async fn audit(api: &mut Api, args: AuditArgs, format: Format) -> Outcome {
    let mut query = Vec::new();
    if api.namespace_given {
        query.push(format!("namespace={}", encode(&api.namespace)));
    }
    if let Some(subject) = &args.subject {
        query.push(format!("for={}", encode(subject)));
    }
    let value = api.read(&format!("/api/v1/audit?{}", query.join("&"))).await?;
    show("audit", &value, format, !api.namespace_given, format == Format::Wide);
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn events(api: &mut Api, args: EventsArgs, format: Format) -> Outcome {
    let subject = args.subject.map(|s| format!("&for={}", encode(&s))).unwrap_or_default();
    let namespace = encode(&api.namespace);
    let path = format!("/api/v1/events?namespace={namespace}{subject}");
    let value = api.read(&path).await?;
    show("events", &value, format, false, false);
    if !args.watch {
        return Ok(ExitCode::SUCCESS);
    }
    let mut last = last_sequence(&value);
    let mut stream = api.watch(&path).await?;
    loop {
        let Some(value) = stream.next().await else {
            // A failover: nothing is shown twice, and nothing is left out that is still kept.
            stream = api.watch(&path).await?;
            continue;
        };
        for item in items(&value) {
            let sequence = at(item, "status.sequence").as_u64();
            if sequence > last {
                last = sequence;
                match format {
                    Format::Json => print_lines(&[item.to_string()]),
                    _ => print_lines(&[row("events", item, false).join("  ")]),
                }
            }
        }
    }
}

fn last_sequence(value: &Value) -> Option<u64> {
    items(value).iter().filter_map(|item| at(item, "status.sequence").as_u64()).max()
}

/// The items of a list, or the one thing.
fn items(value: &Value) -> Vec<&Value> {
    match value["items"].as_array() {
        Some(items) => items.iter().collect(),
        None => vec![value],
    }
}

fn show(kind: &str, value: &Value, format: Format, all_namespaces: bool, wide: bool) {
    match format {
        Format::Json => print_json(value),
        Format::Yaml => print_yaml(value),
        Format::Table | Format::Wide => print_lines(&lines(kind, value, format, all_namespaces, wide)),
    }
}

/// A list as a table.
pub(super) fn table(kind: &str, value: &Value) -> Vec<String> {
    lines(kind, value, Format::Table, false, false)
}

fn lines(kind: &str, value: &Value, format: Format, all_namespaces: bool, wide: bool) -> Vec<String> {
    if format == Format::Json {
        return vec![value.to_string()];
    }
    let items = items(value);
    if items.is_empty() {
        return vec![format!("no {kind} found")];
    }
    let mut header = columns(kind, wide);
    if all_namespaces {
        header.insert(0, "NAMESPACE");
    }
    let mut table = Table::new(&header);
    let mut notes = Vec::new();
    for item in items {
        let mut cells = row(kind, item, wide);
        if all_namespaces {
            cells.insert(0, cell(item, "metadata.namespace"));
        }
        table.row(cells);
        if let Some(note) = mend(kind, item) {
            notes.push(note);
        }
    }
    let mut lines = table.lines();
    notes.dedup();
    lines.extend(notes);
    lines
}

/// What a person can do about a missing permission, or a probe that nobody runs, under the table.
fn mend(kind: &str, item: &Value) -> Option<String> {
    let status = &item["status"];
    if kind != "probes" {
        return None;
    }
    let nobody = status["nobody"].as_str();
    match nobody {
        Some(why) => Some(format!("  nobody runs {}: {why}", cell(item, "metadata.name"))),
        None if status["lastReason"] == "no_permission" => status["lastMessage"].as_str().map(|m| format!("  {m}")),
        None => None,
    }
}

fn columns(kind: &str, wide: bool) -> Vec<&'static str> {
    let mut columns = match kind {
        "probes" => vec!["PROBE", "KIND", "TARGET", "VERDICT", "RUNS", "LAST"],
        "slos" => vec!["SLO", "PROBE", "OBJECTIVE", "WINDOW", "BUDGET LEFT", "ALERTS"],
        "probers" => vec!["PROBER", "ALIVE", "ZONE", "CHECKS", "SEEN", "SPOOLED", "VERSION"],
        "members" => vec!["MEMBER", "ID", "ADDRESS", "ROLE", "LAG", "VERSION"],
        "alerts" => vec!["ALERT", "SEVERITY", "STATE", "SINCE", "BURN", "RECEIVERS"],
        "episodes" => vec!["EPISODE", "SEVERITY", "FIRED", "RESOLVED"],
        "gamedays" => vec!["GAMEDAY", "SCENARIO", "PHASE", "RESULT", "STARTED", "REASON"],
        "faults" => vec!["FAULT", "KIND", "PROBER", "STATE", "UNDO", "DETAIL"],
        "events" => vec!["AT", "KIND", "SUBJECT", "MESSAGE"],
        "audit" => vec!["AT", "ACTOR", "FROM", "ACTION", "SUBJECT", "CHANGE"],
        "tokens" => vec!["TOKEN", "USE", "FOR", "ROLES", "EXPIRES", "USED", "REVOKED"],
        "revocations" => vec!["REVOKED", "KIND", "AT", "BY", "REASON"],
        _ => vec!["NAME", "GENERATION", "AGE"],
    };
    if wide && kind == "probes" {
        columns.extend(["SINCE", "MISSED", "PROBERS"]);
    }
    if wide {
        columns.push("LABELS");
    }
    columns
}

fn row(kind: &str, item: &Value, wide: bool) -> Vec<String> {
    let status = &item["status"];
    let name = cell(item, "metadata.name");
    let mut cells = match kind {
        "probes" => vec![name, cell(status, "kind"), cell(status, "target"), cell(status, "verdict"), runs(status), last(status)],
        "slos" => vec![
            name,
            cell(status, "probe"),
            percent(at(status, "targetPpm").as_f64().unwrap_or(0.0)),
            duration(status, "windowSeconds"),
            format!("{} ({})", duration(status, "budget.leftSeconds"), percent(at(status, "budget.leftPpm").as_f64().unwrap_or(0.0))),
            rules(status),
        ],
        "probers" => vec![
            name,
            cell(status, "alive"),
            cell(status, "zone"),
            cell(status, "checks"),
            duration(status, "lastHeartbeatSeconds"),
            cell(status, "spooledRows"),
            cell(status, "version"),
        ],
        "members" => {
            vec![name, cell(status, "id"), cell(status, "address"), cell(status, "role"), super::cluster::lag(status), cell(status, "version")]
        }
        "alerts" => vec![name, cell(status, "severity"), cell(status, "state"), age(status, "since"), cell(status, "longBurn"), receivers(status)],
        "episodes" => vec![name, cell(status, "severity"), cell(status, "firedAt"), cell(status, "resolvedAt")],
        "gamedays" => vec![name, cell(status, "scenario"), cell(status, "phase"), cell(status, "result"), cell(status, "startedAt"), cell(status, "reason")],
        "faults" => vec![name, cell(status, "kind"), cell(status, "prober"), cell(status, "state"), cell(status, "undo"), cell(status, "detail")],
        "events" => vec![cell(status, "at"), cell(status, "kind"), cell(status, "subject"), cell(status, "message")],
        "audit" => {
            let mut cells: Vec<String> = ["at", "actor", "origin", "action", "subject"].iter().map(|key| cell(status, key)).collect();
            cells.push(change(status));
            cells
        }
        "tokens" => {
            let roles = status["roles"].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(",");
            let mut cells = vec![name, cell(status, "use"), cell(status, "for"), roles];
            cells.extend(["expiresAt", "usedAt", "revokedAt"].iter().map(|key| cell(status, key)));
            cells
        }
        "revocations" => vec![name, cell(status, "kind"), cell(status, "at"), cell(status, "actor"), cell(status, "reason")],
        _ => vec![name, cell(item, "metadata.generation"), age(item, "metadata.createdAt")],
    };
    if wide && kind == "probes" {
        cells.extend([age(status, "since"), pairs(at(status, "runs.missed")), cell(status, "proberCount")]);
    }
    if wide {
        cells.push(pairs(at(item, "metadata.labels")));
    }
    cells
}

/// What a change did, on one line: which top-level fields of a document differ, or the texts before and after.
fn change(status: &Value) -> String {
    let (before, after) = (&status["before"], &status["after"]);
    if let (Some(old), Some(new)) = (before["spec"].as_object(), after["spec"].as_object()) {
        let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let changed: Vec<&str> = keys.into_iter().filter(|k| old.get(*k) != new.get(*k)).map(String::as_str).collect();
        return if changed.is_empty() { "labels".to_owned() } else { format!("spec.{}", changed.join(", spec.")) };
    }
    match (before.as_str(), after.as_str()) {
        (Some(old), Some(new)) => format!("{old} -> {new}"),
        (None, Some(new)) => new.to_owned(),
        (Some(old), None) => old.to_owned(),
        (None, None) => "-".to_owned(),
    }
}

/// Good runs of those that are accounted for.
fn runs(status: &Value) -> String {
    let count = |path: &str| at(status, path).as_u64().unwrap_or(0);
    let known = count("runs.planned").saturating_sub(count("runs.pending"));
    format!("{}/{known}", count("runs.good"))
}

/// The last run: how long it took when it was good, else why it was not.
fn last(status: &Value) -> String {
    match status["lastReason"].as_str() {
        Some("good") => duration(status, "lastDurationSeconds"),
        Some(reason) => reason.to_owned(),
        None => "-".to_owned(),
    }
}

fn rules(status: &Value) -> String {
    let Some(rules) = status["rules"].as_array() else { return "-".to_owned() };
    let loud: Vec<String> = rules.iter().filter(|r| r["state"] != "inactive").map(|r| format!("{} {}", cell(r, "name"), cell(r, "state"))).collect();
    if loud.is_empty() { "inactive".to_owned() } else { loud.join(", ") }
}

fn receivers(status: &Value) -> String {
    let Some(receivers) = status["receivers"].as_array() else { return "-".to_owned() };
    let all: Vec<String> = receivers
        .iter()
        .map(|r| {
            let told = if r["delivered"] == true { cell(r, "lastStatus") } else { "not yet".to_owned() };
            format!("{} ({told})", cell(r, "receiver"))
        })
        .collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}
