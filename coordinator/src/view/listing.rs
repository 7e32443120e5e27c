//! Probes and probers as lists: an item after the other in pieces, and page by page where an answer would be larger than a message.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use probity_core::{Key, State, account, resource_key};
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;
use serde_json::{Value, json};

use super::pieces::{Answer, Look, Pass, Turn, run};
use super::{Query, ViewError, as_of, items, not_found};
use crate::node::{Live, ProposeError};

/// An answer may have so many bytes: a gRPC message has 16 MiB.
const ANSWER_BYTES_MAX: usize = 15 * 1024 * 1024;
/// A page that another one follows: half of that, because checks differ.
const PAGE_BYTES: usize = 8 * 1024 * 1024;

/// A prober at a time, since each has as many assignments as it has.
pub(super) async fn probers(node: &impl Look, query: Arc<Query>) -> Result<Answer, ProposeError> {
    let (mut items, mut after, mut first) = (Vec::new(), Some(String::new()), None);
    while let Some(from) = after {
        let (query, asked) = (query.clone(), Instant::now());
        let look = move |state: &State, live: &Live<'_>| {
            let (mut piece, mut turn) = (Vec::new(), Turn::begin(asked));
            for prober in state.probers.after(&from) {
                if query.selects(&prober.labels) {
                    piece.push(items::prober(state, live, prober));
                }
                if !turn.more() {
                    return (piece, Some(prober.name.clone()), as_of(state, live), live.status.applied, state.now());
                }
            }
            (piece, None, as_of(state, live), live.status.applied, state.now())
        };
        let (piece, next, as_of, index, as_of_us) = node.look(look).await?;
        items.extend(piece);
        first.get_or_insert((as_of, index, as_of_us));
        after = next;
    }
    let (as_of, index, as_of_us) = first.unwrap_or_default();
    Ok(Answer { value: json!({"items": items, "asOf": as_of}), index, as_of_us })
}

pub(super) async fn probes(node: &impl Look, query: Arc<Query>, one: Option<(String, String)>) -> Result<Result<Answer, ViewError>, ProposeError> {
    let (asked, only) = (query.clone(), one.clone());
    let head = move |state: &State, live: &Live<'_>| {
        let keys: VecDeque<Key> = match only {
            Some((namespace, name)) => [resource_key("Probe", &namespace, &name)].into(),
            None => {
                let all = state.resources.prefix("Probe/").filter(|r| asked.includes(&r.namespace) && asked.selects(&r.labels));
                all.map(|r| resource_key(&r.kind, &r.namespace, &r.name)).collect()
            }
        };
        (keys, as_of(state, live), live.status.applied, state.now(), live.now_us)
    };
    let (mut keys, as_of, index, as_of_us, t) = node.look(head).await?;
    let from = match query.from.as_deref().map(|from| from.split_once('\n').ok_or(from)) {
        Some(Ok((key, check))) => {
            keys.retain(|k| k.as_str() >= key);
            Some((key.to_owned(), check.to_owned()))
        }
        Some(Err(from)) => {
            let message = format!("from={from:?} is no place in a list (want what `continue` said, percent-encoded)");
            return Ok(Err(ViewError { code: "bad_request", message }));
        }
        None => None,
    };
    let pages = query.paged || from.is_some();
    let pass = Probes { keys, t, with_checks: query.checks, pages, from, current: None, ready: Vec::new(), items: Vec::new(), bytes: 0, next: None };
    let Probes { mut items, bytes, next, .. } = run(node, pass).await?;
    if !pages && bytes > ANSWER_BYTES_MAX {
        let mib = ANSWER_BYTES_MAX >> 20;
        let message = format!(
            "the answer would be larger than {mib} MiB: ask for one probe, a namespace or a selector, without the checks (checks=false), or page by page (paged=true)"
        );
        return Ok(Err(ViewError { code: "too_large", message }));
    }
    let mut value = match one {
        None => json!({"items": items}),
        Some((namespace, name)) => match items.pop() {
            Some(item) => item,
            None => return Ok(Err(not_found(format!("no probe {name:?} in namespace {namespace:?}")))),
        },
    };
    if let Some(next) = next {
        value["continue"] = next.into();
    }
    value["asOf"] = as_of;
    Ok(Ok(Answer { value, index, as_of_us }))
}

/// Probes one after the other, each check by check.
struct Probes {
    keys: VecDeque<Key>,
    t: i64,
    with_checks: bool,
    /// It ends at a page's size, and says where the next one begins.
    pages: bool,
    /// Where this page begins: a probe, and the last check that was on the page before.
    from: Option<(String, String)>,
    current: Option<Current>,
    /// Looked at, and not made into items yet.
    ready: Vec<Current>,
    items: Vec<Value>,
    bytes: usize,
    next: Option<String>,
}

/// A probe that is being looked at.
struct Current {
    resource: Resource,
    probe: items::ProbeSum,
    /// The last check that was looked at.
    after: String,
    checks: Vec<Value>,
    /// The checks that were made into text to know how long it is.
    measured: usize,
    /// Its summary was on an earlier page.
    goes_on: bool,
    /// No more checks on this page: the last one that is.
    cut: Option<String>,
}

impl Probes {
    fn begin(&mut self, state: &State, key: &str) -> Option<Current> {
        let resource = state.resources.get(key)?;
        let Some(Spec::Probe(spec)) = &resource.spec else { return None };
        let probe = items::ProbeSum::begin(state, resource, spec);
        // Its specification is in the document; decoded it is as long again.
        let resource = without_spec(resource);
        let from = self.from.take_if(|(of, _)| of == key).map(|(_, check)| check).filter(|check| !check.is_empty());
        let goes_on = from.is_some();
        Some(Current { resource, probe, after: from.unwrap_or_default(), checks: Vec::new(), measured: 0, goes_on, cut: None })
    }
}

fn without_spec(r: &Resource) -> Resource {
    Resource {
        kind: r.kind.clone(),
        namespace: r.namespace.clone(),
        name: r.name.clone(),
        labels: r.labels.clone(),
        generation: r.generation,
        document_json: r.document_json.clone(),
        created_at_us: r.created_at_us,
        updated_at_us: r.updated_at_us,
        ..Resource::default()
    }
}

impl Pass for Probes {
    fn go_on(&mut self, state: &State, turn: &mut Turn) -> bool {
        loop {
            let Some(mut current) = self.current.take() else {
                if self.next.is_some() {
                    return true;
                }
                let Some(key) = self.keys.pop_front() else { return true };
                self.current = self.begin(state, &key);
                if !turn.more() {
                    return false;
                }
                continue;
            };
            let whole = format!("{}/{}", current.resource.namespace, current.resource.name);
            let prefix = format!("{whole}/");
            let single = state.checks.get(&whole).filter(|_| current.after.is_empty());
            let start = if current.after.len() > whole.len() { current.after.clone() } else { prefix.clone() };
            let rest = state.checks.after(&start).take_while(|c| c.check.starts_with(&prefix));
            for check in single.into_iter().chain(rest) {
                if !current.goes_on {
                    current.probe.add(state, check, self.t);
                }
                if self.with_checks && current.cut.is_none() {
                    current.checks.push(items::check(state, check));
                }
                current.after = check.check.clone();
                if !turn.more() {
                    self.current = Some(current);
                    return false;
                }
                // The rest of it is another page's.
                if current.goes_on && current.cut.is_some() {
                    break;
                }
            }
            if !current.goes_on {
                account::add_retired(state, &current.resource.namespace, &current.resource.name, self.t, current.probe.account());
            }
            if let Some(cut) = &current.cut {
                let key = resource_key("Probe", &current.resource.namespace, &current.resource.name);
                self.next = Some(format!("{key}\n{cut}"));
            }
            self.ready.push(current);
        }
    }

    fn between(&mut self) {
        let length = |checks: &[Value]| checks.iter().map(|c| c.to_string().len()).sum::<usize>();
        for current in self.ready.iter_mut().chain(&mut self.current) {
            self.bytes += length(&current.checks[current.measured..]);
            current.measured = current.checks.len();
        }
        for mut done in std::mem::take(&mut self.ready) {
            let checks = std::mem::take(&mut done.checks);
            let mut item = done.item();
            self.bytes += item.to_string().len();
            if self.with_checks {
                item["status"]["checks"] = super::compact(checks.into());
            }
            self.items.push(item);
        }
        if self.pages && self.bytes >= PAGE_BYTES {
            match &mut self.current {
                Some(current) => current.cut = current.cut.take().or_else(|| Some(current.after.clone())),
                None => self.next = self.next.take().or_else(|| self.keys.front().map(|key| format!("{key}\n"))),
            }
        } else if !self.pages && self.bytes > ANSWER_BYTES_MAX {
            // It will be refused: nothing more is gathered.
            (self.current, self.ready) = (None, Vec::new());
            self.keys.clear();
            self.items.clear();
        }
    }
}

impl Current {
    /// All but its checks.
    fn item(self) -> Value {
        let Current { resource, probe, goes_on, .. } = self;
        if goes_on {
            let metadata = json!({"namespace": resource.namespace, "name": resource.name});
            return super::compact(json!({"apiVersion": "probity/v1", "kind": "Probe", "metadata": metadata}));
        }
        items::resource(&resource, probe.status())
    }
}
