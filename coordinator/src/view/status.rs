//! `/api/v1/status`: one look at the cluster.

use probity_core::account::AccountView;
use probity_core::{State, gameday, number_key};
use probity_proto::v1::*;
use probity_replica::Role;
use serde_json::{Value, json};

use super::{Scope, account as account_json, compact, rfc3339};
use crate::node::Live;
use crate::peer::DISK_FULL;

/// The name of a member, or its id.
pub(super) fn member_name(state: &State, id: u64) -> String {
    state.members.get(&number_key(id)).map_or_else(|| format!("{id:x}"), |m| m.name.clone())
}

/// What is said of the cluster without looking at each check.
pub(super) struct Head {
    value: Value,
    /// Degraded, before and after what the checks have to say.
    first: Found,
    probers: Found,
    alerts: Found,
    last: Found,
    pub(super) index: u64,
    pub(super) as_of_us: i64,
}

/// What the checks have to say, as `scope` sees them.
pub(super) struct Seen {
    pub(super) scope: Scope,
    pub(super) after: String,
    pub(super) up: usize,
    pub(super) down: usize,
    pub(super) unknown: usize,
    pub(super) broken: usize,
    pub(super) first_down: Vec<String>,
    /// Check, zones, probers.
    pub(super) first_broken: Vec<(String, Vec<String>, Vec<String>)>,
    /// Probe, its checks that nobody runs, and why the first of them.
    pub(super) unwatched: Vec<(String, usize, String)>,
}

impl Seen {
    pub(super) fn new(scope: Scope) -> Seen {
        Seen { scope, after: String::new(), up: 0, down: 0, unknown: 0, broken: 0, first_down: Vec::new(), first_broken: Vec::new(), unwatched: Vec::new() }
    }
}

/// Counts of things are those that `scope` sees.
pub(super) fn head(state: &State, live: &Live<'_>, scope: &Scope) -> Head {
    let meta = state.meta();
    let alerts = |wanted: AlertState| state.alerts.iter().filter(|a| a.state() == wanted && scope.sees(&a.namespace)).count();
    let leader = live.status.leader.map(|id| {
        let member = state.members.get(&number_key(id)).cloned().unwrap_or_default();
        json!({"id": format!("{id:x}"), "name": member_name(state, id), "address": member.address})
    });
    let running: Vec<String> = gameday::running(state).into_iter().filter(|day| scope.sees(day.split('/').next().unwrap_or_default())).collect();
    let halt = meta.halt.as_ref().map(|h| json!({"reason": h.reason, "actor": h.actor, "at": rfc3339(h.at_us)}));
    let value = json!({
        "cluster": {"id": meta.cluster_id, "name": meta.cluster_name, "version": meta.version, "initialized": !meta.cluster_id.is_empty()},
        "leader": leader,
        "term": live.status.term,
        "index": live.status.applied,
        "stateHash": format!("{:016x}", state.hash()),
        // The hash is of the last round of writing, which is behind what is applied.
        "stateHashIndex": live.status.hashed,
        "members": state.members.iter().map(|m| member(live, m)).collect::<Vec<_>>(),
        "probers": {
            "total": state.probers.len(),
            "alive": state.probers.iter().filter(|p| p.alive).count(),
            "sick": state.probers.iter().filter(|p| p.sick).count(),
        },
        "alerts": {"firing": alerts(AlertState::Firing), "pending": alerts(AlertState::Pending)},
        "gameDays": {"running": running},
        "faults": {"active": state.faults.iter().filter(|f| f.active_at_us != 0 && f.ended_at_us == 0).count()},
        "halt": halt,
        "asOf": super::as_of(state, live),
    });
    let (index, as_of_us) = (live.status.applied, state.now());
    Head { value, first: of_members(state, live), probers: of_probers(state), alerts: of_alerts(state, scope), last: of_rest(state, scope), index, as_of_us }
}

/// All of it; the account of all runs is the cluster's, and names nothing.
pub(super) fn whole(head: &mut Head, seen: Seen, total: &AccountView) -> Value {
    let mut value = head.value.take();
    value["checks"] = json!({"up": seen.up, "down": seen.down, "unknown": seen.unknown});
    value["runs"] = account_json(total);
    let mut found = std::mem::take(&mut head.first);
    if total.unexplained != 0 {
        found.one(format!("{} runs are unexplained: a bug, please report it", total.unexplained));
    }
    found.append(&mut head.probers);
    found.some(seen.unwatched, "probes have checks that nobody runs", |(probe, n, why)| {
        let checks = if n == 1 { "a check".to_owned() } else { format!("{n} checks") };
        format!("nobody runs {checks} of probe {probe}: {why}")
    });
    found.append(&mut head.alerts);
    let (broken, down) = (seen.broken - seen.first_broken.len(), seen.down - seen.first_down.len());
    found.counted(seen.first_broken, broken, "checks cannot be reached from some probers", |(check, zones, probers)| {
        let zones = if zones.is_empty() { String::new() } else { format!(" (all of zone {})", zones.join(", ")) };
        format!("{check} cannot be reached from {}{zones}, but from elsewhere", probers.join(", "))
    });
    found.counted(seen.first_down, down, "checks are down", |check| format!("{check} is down"));
    found.append(&mut head.last);
    value["degraded"] = found.0.into();
    compact(value)
}

pub(super) fn member(live: &Live<'_>, m: &MemberRecord) -> Value {
    let status = live.status;
    let progress = status.progress.get(&m.id);
    let role = match status.leader {
        Some(id) if id == m.id => "leader",
        _ if status.learners.contains(&m.id) => "learner",
        Some(_) if status.voters.contains(&m.id) => "follower",
        _ => "unknown",
    };
    json!({
        "id": format!("{:x}", m.id), "name": m.name, "address": m.address, "httpAddress": m.http_address, "version": m.software_version,
        "role": role,
        "matchIndex": progress.map(|p| p.matched),
        "votes": status.voters.contains(&m.id) || status.voters_outgoing.contains(&m.id),
        "leaving": status.voters_outgoing.contains(&m.id) && !status.voters.contains(&m.id),
        "replaces": (m.replaces != 0).then(|| format!("{:x}", m.replaces)),
        "commandVersion": m.max_command_version,
        "condition": condition(live, m.id),
        "cannotIssue": (!m.cannot_issue.is_empty()).then_some(&m.cannot_issue),
        "lagEntries": progress.map(|p| status.last.saturating_sub(p.matched)),
        "reachable": progress.map(|p| p.recent),
    })
}

/// What keeps a member from taking part, when it is known.
fn condition<'l>(live: &'l Live<'_>, id: u64) -> Option<&'l str> {
    if id == live.status.identity.id && live.status.disk_full {
        return Some(DISK_FULL);
    }
    live.conditions.get(&id).map(String::as_str)
}

/// What is told one by one of a sort: of a fleet that is not there, or a site that is dark, all would be.
pub(super) const TOLD: usize = 20;

/// What a person should look at, a bounded number of each sort.
#[derive(Debug, Default)]
struct Found(Vec<String>);

impl Found {
    fn one(&mut self, text: String) {
        self.0.push(text);
    }

    fn append(&mut self, other: &mut Found) {
        self.0.append(&mut other.0);
    }

    /// The first of a sort, of which `more` are not among them.
    fn counted<T>(&mut self, first: Vec<T>, left: usize, more: &str, text: impl Fn(T) -> String) {
        self.some(first, more, text);
        if left > 0 {
            self.one(format!("{left} more {more}"));
        }
    }

    /// The first of a sort, and how many more there are; what is told already is told once.
    fn some<T>(&mut self, all: impl IntoIterator<Item = T>, more: &str, text: impl Fn(T) -> String) {
        let mut all = all.into_iter();
        let mut told = 0;
        for item in all.by_ref() {
            let line = text(item);
            if self.0.contains(&line) {
                continue;
            }
            self.0.push(line);
            told += 1;
            if told == TOLD {
                break;
            }
        }
        let left = all.count();
        if left > 0 {
            self.0.push(format!("{left} more {more}"));
        }
    }
}

fn of_members(state: &State, live: &Live<'_>) -> Found {
    let mut found = Found::default();
    if live.status.disk_full {
        found.one(format!("member {}: {DISK_FULL}", member_name(state, live.status.identity.id)));
    } else if live.status.leader.is_none() {
        found.one("no leader: there is no quorum".to_owned());
    }
    if live.status.role == Role::Leader {
        for (id, progress) in &live.status.progress {
            if !progress.recent {
                let why = live.conditions.get(id).map_or("does not answer".to_owned(), |text| format!("is silent: {text}"));
                found.one(format!("member {} {why}", member_name(state, *id)));
            }
        }
    }
    let mute = state.members.iter().filter(|m| !m.cannot_issue.is_empty());
    found.some(mute, "members cannot issue certificates", |m| format!("member {} {}", m.name, m.cannot_issue));
    found
}

fn of_probers(state: &State) -> Found {
    let mut found = Found::default();
    found.some(state.probers.iter().filter(|p| !p.alive), "probers are silent", |p| format!("prober {} is silent", p.name));
    let sick = state.probers.iter().filter(|p| p.alive && p.sick);
    found.some(sick, "probers are sick", |p| format!("prober {} is sick: {}", p.name, p.sick_reason));
    found
}

fn of_alerts(state: &State, scope: &Scope) -> Found {
    let mut found = Found::default();
    let failing = state.discoveries.iter().filter(|d| scope.sees(&d.namespace) && d.failing_since_us != 0);
    found.some(failing, "discoveries fail", |d| format!("discovery of {}/{} fails, {} targets are kept: {}", d.namespace, d.probe, d.targets.len(), d.error));
    let held = state.discoveries.iter().filter(|d| scope.sees(&d.namespace) && d.held_since_us != 0);
    found.some(held, "probes have targets that are held", |d| {
        let (namespace, probe, from, to) = (&d.namespace, &d.probe, d.targets.len(), d.held.len());
        format!("targets of {namespace}/{probe} would shrink from {from} to {to}: held until `probity targets accept {probe} -n {namespace}`")
    });
    let firing = state.alerts.iter().filter(|a| a.state() == AlertState::Firing && scope.sees(&a.namespace));
    found.some(firing, "alerts fire", |a| format!("alert {}/{} fires", a.slo, a.rule));
    found
}

fn of_rest(state: &State, scope: &Scope) -> Found {
    let mut found = Found::default();
    let untold = state.outbox.iter().filter(|r| !r.last_error.is_empty() && scope.sees(&r.namespace));
    found.some(untold, "deliveries fail", |r| match r.delivered_revision == r.revision {
        true => format!("receiver {} is told, but not all of its replicas: {}", r.receiver, r.last_error),
        false => format!("receiver {} cannot be told: {}", r.receiver, r.last_error),
    });
    if let Some(halt) = &state.meta().halt {
        found.one(format!("halted by {}: {}", halt.actor, halt.reason));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_bounded_and_told_once() {
        let mut found = Found::default();
        found.some(0..100_000, "checks are down", |n| format!("check {n} is down"));
        assert_eq!((found.0.len(), found.0[TOLD].as_str()), (TOLD + 1, "99980 more checks are down"));
        let mut found = Found::default();
        found.some([1, 1, 1, 2], "deliveries fail", |n| format!("receiver {n} cannot be told"));
        assert_eq!(found.0, ["receiver 1 cannot be told", "receiver 2 cannot be told"]);
    }
}
