//! The read API (docs/api.md): functions from the state to JSON. The same for HTTP, the command line and the web page. What grows with the fleet is
//! looked at in pieces (`pieces`).

mod diff;
mod items;
mod listing;
mod pieces;
mod status;
#[cfg(any(test, feature = "fuzz"))]
mod still;
mod sums;
#[cfg(test)]
mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use probity_core::State;
use probity_core::account::AccountView;
use probity_proto::reason;
use probity_proto::v1::GameDayPlan;
use probity_rpc::access::{ADMINISTER, Caller, READ};
use serde_json::{Value, json};

use crate::node::Live;
pub(crate) use diff::diff;
pub(crate) use pieces::{Answer, answer, room};
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use still::Still;
pub(crate) use sums::{total, verdicts};

/// Why there is no answer.
#[derive(Debug, Clone)]
pub struct ViewError {
    /// `not_found`, `bad_request` or `forbidden`.
    pub code: &'static str,
    /// For a person.
    pub message: String,
}

fn not_found(message: impl Into<String>) -> ViewError {
    ViewError { code: "not_found", message: message.into() }
}

/// What of the state a reader may see.
#[derive(Debug, Clone)]
pub struct Scope {
    /// `None`: all namespaces, and what belongs to none.
    namespaces: Option<BTreeSet<String>>,
    /// Also who gets in: tokens and revocations.
    access: bool,
    who: String,
}

impl Scope {
    /// Of whoever asks.
    pub fn of(caller: &Caller) -> Scope {
        Scope { namespaces: caller.namespaces(READ), access: caller.may_everywhere(ADMINISTER), who: caller.described() }
    }

    /// Whether things in a namespace are seen.
    fn sees(&self, namespace: &str) -> bool {
        self.namespaces.as_ref().is_none_or(|all| all.contains(namespace))
    }

    /// Whether everything is seen.
    fn is_whole(&self) -> bool {
        self.namespaces.is_none()
    }

    fn must_see(&self, namespace: &str) -> Result<(), ViewError> {
        if self.sees(namespace) { Ok(()) } else { Err(self.forbidden(&format!("viewer in namespace {namespace:?}"))) }
    }

    fn forbidden(&self, needs: &str) -> ViewError {
        ViewError { code: "forbidden", message: format!("{} may not read this: it needs {needs}", self.who) }
    }
}

/// Filters of a list.
#[derive(Debug)]
struct Query {
    scope: Scope,
    namespace: Option<String>,
    selector: BTreeMap<String, String>,
    subject: Option<String>,
    after: Option<u64>,
    /// Of probes: each check with what its probers say.
    checks: bool,
    /// Of probes: a page, which says where the next one begins.
    paged: bool,
    from: Option<String>,
}

impl Query {
    /// Whether the labels are those that are asked for.
    fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.iter().all(|(k, v)| labels.get(k) == Some(v))
    }

    /// Whether things in a namespace are asked for, and may be seen.
    fn includes(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|n| n == namespace) && self.scope.sees(namespace)
    }
}

/// What a path asks for.
#[derive(Debug)]
enum Asked {
    Status,
    Probers(Query),
    Probes(Query),
    Probe(Query, String, String),
    Other(Query, Vec<String>),
}

/// Reads a path such as `/api/v1/probes?namespace=shop`.
fn ask(path: &str, scope: &Scope) -> Result<Asked, ViewError> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let query = parse_query(query, scope)?;
    if let Some(namespace) = &query.namespace {
        scope.must_see(namespace)?;
    }
    let rest = path.strip_prefix("/api/v1/").ok_or_else(|| not_found(format!("no path {path:?} (the read API is below /api/v1/)")))?;
    let parts: Vec<String> = rest.split('/').filter(|p| !p.is_empty()).map(decode).collect();
    match parts.as_slice() {
        [] => return Err(not_found("nothing is asked for (see docs/api.md)")),
        [one] if one == "status" => return Ok(Asked::Status),
        [kind, ..] if !items::KINDS.contains(&kind.as_str()) => return Err(unknown_kind(kind)),
        [kind, ..] if items::ACCESS_KINDS.contains(&kind.as_str()) && !scope.access => return Err(scope.forbidden("admin of the whole cluster")),
        [kind] if kind == "probers" => return Ok(Asked::Probers(query)),
        [kind] if kind == "probes" => return Ok(Asked::Probes(query)),
        [_, namespace, _, ..] => scope.must_see(namespace)?,
        _ => {}
    }
    match parts.as_slice() {
        [kind, namespace, name] if kind == "probes" => Ok(Asked::Probe(query, namespace.clone(), name.clone())),
        _ => Ok(Asked::Other(query, parts)),
    }
}

/// What does not grow with the fleet, at a stroke.
fn small(state: &State, live: &Live<'_>, asked: &Asked) -> Result<Value, ViewError> {
    let Asked::Other(query, parts) = asked else { return Err(not_found("this is answered in pieces")) };
    let mut value = match parts.as_slice() {
        [kind] => {
            let items = items::list(state, live, kind, query).ok_or_else(|| unknown_kind(kind))?;
            json!({"items": items})
        }
        [kind, rest @ ..] => {
            let missing = || {
                not_found(format!(
                    "no {} {:?}{}",
                    kind.trim_end_matches('s'),
                    rest[rest.len() - 1],
                    if rest.len() > 1 { format!(" in namespace {:?}", rest[0]) } else { String::new() }
                ))
            };
            items::one(state, live, kind, rest).ok_or_else(missing)?
        }
        [] => return Err(not_found("nothing is asked for (see docs/api.md)")),
    };
    value["asOf"] = as_of(state, live);
    Ok(value)
}

/// As of when an answer is, and of which member.
fn as_of(state: &State, live: &Live<'_>) -> Value {
    json!({
        "index": live.status.applied,
        "time": rfc3339(state.now()),
        "ageSeconds": seconds_u(live.age_us),
        "member": status::member_name(state, live.status.identity.id),
    })
}

fn unknown_kind(kind: &str) -> ViewError {
    not_found(format!("no kind {kind:?} (known: status, {})", items::KINDS.join(", ")))
}

fn parse_query(query: &str, scope: &Scope) -> Result<Query, ViewError> {
    let mut parsed =
        Query { scope: scope.clone(), namespace: None, selector: BTreeMap::new(), subject: None, after: None, checks: true, paged: false, from: None };
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value);
        match key {
            "namespace" => parsed.namespace = Some(value),
            "for" => parsed.subject = Some(value),
            "after" => parsed.after = value.parse().ok(),
            "checks" => parsed.checks = value != "false",
            "paged" => parsed.paged = value != "false",
            "from" => parsed.from = Some(value),
            "selector" => {
                for label in value.split(',').filter(|l| !l.is_empty()) {
                    let Some((k, v)) = label.split_once('=') else {
                        return Err(ViewError { code: "bad_request", message: format!("{label:?} is no label (want key=value)") });
                    };
                    parsed.selector.insert(k.to_owned(), v.to_owned());
                }
            }
            "stale" => {}
            other => return Err(ViewError { code: "bad_request", message: format!("unknown parameter {other:?}") }),
        }
    }
    Ok(parsed)
}

/// Undoes percent-encoding.
fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[i], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 3;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A time as RFC 3339 in UTC with microseconds.
pub(crate) fn rfc3339(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).map(|t| format!("{t:.6}")).unwrap_or_default()
}

/// A time that may not have come yet.
fn time(us: i64) -> Value {
    if us == 0 { Value::Null } else { rfc3339(us).into() }
}

fn seconds(us: i64) -> f64 {
    us as f64 / 1e6
}

fn seconds_u(us: u64) -> f64 {
    us as f64 / 1e6
}

/// A number of thousandths.
fn milli(value: u64) -> f64 {
    value as f64 / 1e3
}

/// Text that may be empty: then it is absent.
fn text(value: &str) -> Value {
    if value.is_empty() { Value::Null } else { value.into() }
}

/// Drops absent fields: an absent value is absent, never null.
fn compact(mut value: Value) -> Value {
    match &mut value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            for v in map.values_mut() {
                *v = compact(v.take());
            }
        }
        Value::Array(items) => {
            for item in items {
                *item = compact(item.take());
            }
        }
        _ => {}
    }
    value
}

fn account(view: &AccountView) -> Value {
    let missed: serde_json::Map<String, Value> =
        view.missed.iter().map(|(number, count)| (reason::from_number(*number as i32).label(), (*count).into())).collect();
    json!({
        "planned": view.planned, "good": view.good, "bad": view.bad, "missed": missed,
        "pending": view.pending, "extra": view.extra, "retried": view.retried, "unexplained": view.unexplained,
    })
}

/// The numbers of an SLO, for notifications.
pub(crate) fn slo_summary(state: &State, namespace: &str, name: &str) -> Option<Value> {
    items::slo_status(state, namespace, name).map(compact)
}

/// A plan, as `gameday plan` shows it.
pub(crate) fn plan(state: &State, plan: &GameDayPlan) -> Value {
    items::plan(state, plan)
}

/// The same for two readings that differ in nothing but when they were taken.
pub(crate) fn digest(reading: &mut Value) -> u64 {
    let as_of = reading.as_object_mut().and_then(|o| o.remove("asOf"));
    let mut hasher = std::hash::DefaultHasher::new();
    reading.to_string().hash(&mut hasher);
    if let Some(as_of) = as_of {
        reading["asOf"] = as_of;
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use probity_proto::v1::*;

    use super::*;

    fn scope(grants: &[&str]) -> Scope {
        let grants = grants.iter().map(|g| probity_rpc::access::Grant::parse(g).expect("a grant")).collect();
        Scope::of(&Caller { name: "me".to_owned(), grants, credential: String::new(), origin: String::new() })
    }

    fn put(state: &mut State, namespace: &str) {
        let name = format!("of-{namespace}");
        state.resources.put(Resource { kind: "Receiver".to_owned(), namespace: namespace.to_owned(), name: name.clone(), ..Resource::default() });
        state.checks.put(CheckRecord {
            check: format!("{namespace}/{name}"),
            namespace: namespace.to_owned(),
            verdict: Verdict::Down as i32,
            ..CheckRecord::default()
        });
        for (sequence, namespace) in [(state.events.len() as u64, namespace), (state.events.len() as u64 + 1, "")] {
            state.events.put(EventRecord { sequence, namespace: namespace.to_owned(), subject: name.clone(), ..EventRecord::default() });
            state.audit.put(AuditRecord { sequence, namespace: namespace.to_owned(), subject: name.clone(), ..AuditRecord::default() });
        }
    }

    #[test]
    fn nobody_sees_into_another_namespace() {
        let mut state = State::new();
        put(&mut state, "shop");
        put(&mut state, "search");
        state.tokens.put(TokenRecord { id: "t-1".to_owned(), ..TokenRecord::default() });
        let still = Still::of(state);
        let read = |path: &str, grants: &[&str]| still.read(path, &scope(grants));
        let count = |path: &str, grants: &[&str]| read(path, grants).expect(path)["items"].as_array().map_or(0, Vec::len);
        for (path, whole, shop) in [("receivers", 2, 1), ("events", 4, 3), ("audit", 4, 1), ("receivers?namespace=shop", 1, 1)] {
            let path = format!("/api/v1/{path}");
            assert_eq!(count(&path, &["viewer"]), whole, "{path}");
            assert_eq!(count(&path, &["chaos:shop"]), shop, "{path}");
            assert_eq!(count(&path, &["viewer:shop", "operator:search"]), if path.ends_with("audit") { 2 } else { whole }, "{path}");
        }
        assert!(read("/api/v1/receivers/shop/of-shop", &["viewer:shop"]).is_ok());
        for path in ["/api/v1/receivers/search/of-search", "/api/v1/receivers?namespace=search", "/api/v1/tokens", "/api/v1/revocations"] {
            let refused = read(path, &["admin:shop"]).expect_err(path);
            assert_eq!(refused.code, "forbidden", "{path}");
        }
        assert!(read("/api/v1/tokens", &["viewer"]).is_err());
        assert_eq!(count("/api/v1/tokens", &["admin"]), 1);
        let degraded = |grants: &[&str]| read("/api/v1/status", grants).expect("a status")["degraded"].to_string();
        assert!(degraded(&["viewer"]).contains("of-search") && !degraded(&["viewer:shop"]).contains("of-search"));
        assert!(degraded(&["viewer:shop"]).contains("of-shop"));
    }
}
