//! `/api/v1/status`: one look at the cluster.

use std::collections::BTreeMap;

use probity_core::verdict::{self, Finding};
use probity_core::{State, account, assign, gameday, number_key};
use probity_proto::v1::*;
use probity_replica::Role;
use serde_json::{Value, json};

use super::items::why_nobody;
use super::{Scope, account as account_json, compact, rfc3339};
use crate::node::Live;
use crate::peer::DISK_FULL;

/// The name of a member, or its id.
pub(super) fn member_name(state: &State, id: u64) -> String {
    state.members.get(&number_key(id)).map_or_else(|| format!("{id:x}"), |m| m.name.clone())
}

/// Counts of things are those that `scope` sees; the account of all runs is the cluster's, and names nothing.
pub(super) fn status(state: &State, live: &Live<'_>, scope: &Scope) -> Value {
    let meta = state.meta();
    let total = account::total(state, live.now_us);
    let count = |wanted: Verdict| state.checks.iter().filter(|c| c.verdict() == wanted && scope.sees(&c.namespace)).count();
    let alerts = |wanted: AlertState| state.alerts.iter().filter(|a| a.state() == wanted && scope.sees(&a.namespace)).count();
    let leader = live.status.leader.map(|id| {
        let member = state.members.get(&number_key(id)).cloned().unwrap_or_default();
        json!({"id": format!("{id:x}"), "name": member_name(state, id), "address": member.address})
    });
    let running: Vec<String> = gameday::running(state).into_iter().filter(|day| scope.sees(day.split('/').next().unwrap_or_default())).collect();
    let halt = meta.halt.as_ref().map(|h| json!({"reason": h.reason, "actor": h.actor, "at": rfc3339(h.at_us)}));
    compact(json!({
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
        "checks": {"up": count(Verdict::Up), "down": count(Verdict::Down), "unknown": count(Verdict::Unknown)},
        "alerts": {"firing": alerts(AlertState::Firing), "pending": alerts(AlertState::Pending)},
        "gameDays": {"running": running},
        "faults": {"active": state.faults.iter().filter(|f| f.active_at_us != 0 && f.ended_at_us == 0).count()},
        "runs": account_json(&total),
        "halt": halt,
        "degraded": degraded(state, live, scope, total.unexplained),
    }))
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

/// Probes with checks that nobody runs which are told one by one: of a fleet that is not there yet all would be.
const UNWATCHED_TOLD: usize = 20;

/// Probes with checks that nobody runs, each with the reason for the first of them.
fn unwatched(state: &State, scope: &Scope) -> Vec<String> {
    let runs = |c: &CheckRecord| assign::of_check(state, &c.check).any(|a| a.until_us == 0);
    let mut of_probe: BTreeMap<(&str, &str), (usize, &CheckRecord)> = BTreeMap::new();
    for check in state.checks.iter().filter(|c| scope.sees(&c.namespace) && !runs(c)) {
        of_probe.entry((&check.namespace, &check.probe)).or_insert((0, check)).0 += 1;
    }
    let more = of_probe.len().saturating_sub(UNWATCHED_TOLD);
    let told = of_probe.into_iter().take(UNWATCHED_TOLD).map(|((namespace, probe), (n, first))| {
        let checks = if n == 1 { "a check".to_owned() } else { format!("{n} checks") };
        format!("nobody runs {checks} of probe {namespace}/{probe}: {}", why_nobody(state, first))
    });
    told.chain((more > 0).then(|| format!("nobody runs checks of {more} more probes"))).collect()
}

/// What a person should look at.
fn degraded(state: &State, live: &Live<'_>, scope: &Scope, unexplained: i64) -> Vec<String> {
    let mut found = Vec::new();
    if live.status.disk_full {
        found.push(format!("member {}: {DISK_FULL}", member_name(state, live.status.identity.id)));
    }
    if live.status.leader.is_none() {
        found.push("no leader: there is no quorum".to_owned());
    }
    if live.status.role == Role::Leader {
        for (id, progress) in &live.status.progress {
            if !progress.recent {
                let why = live.conditions.get(id).map_or("does not answer".to_owned(), |text| format!("is silent: {text}"));
                found.push(format!("member {} {why}", member_name(state, *id)));
            }
        }
    }
    let mute = state.members.iter().filter(|m| !m.cannot_issue.is_empty());
    found.extend(mute.map(|m| format!("member {} {}", m.name, m.cannot_issue)));
    if unexplained != 0 {
        found.push(format!("{unexplained} runs are unexplained: a bug, please report it"));
    }
    for prober in state.probers.iter().filter(|p| !p.alive) {
        found.push(format!("prober {} is silent", prober.name));
    }
    for prober in state.probers.iter().filter(|p| p.alive && p.sick) {
        found.push(format!("prober {} is sick: {}", prober.name, prober.sick_reason));
    }
    found.extend(unwatched(state, scope));
    for d in state.discoveries.iter().filter(|d| scope.sees(&d.namespace)) {
        let probe = format!("{}/{}", d.namespace, d.probe);
        if d.failing_since_us != 0 {
            found.push(format!("discovery of {probe} fails, {} targets are kept: {}", d.targets.len(), d.error));
        }
        if d.held_since_us != 0 {
            let (from, to) = (d.targets.len(), d.held.len());
            found.push(format!("targets of {probe} would shrink from {from} to {to}: held until `probity targets accept {} -n {}`", d.probe, d.namespace));
        }
    }
    for check in state.checks.iter().filter(|c| c.verdict() != Verdict::Down && scope.sees(&c.namespace)) {
        for finding in verdict::findings(state, &check.check) {
            if let Finding::PathBroken { zones, probers } = finding {
                let zones = if zones.is_empty() { String::new() } else { format!(" (all of zone {})", zones.join(", ")) };
                found.push(format!("{} cannot be reached from {}{zones}, but from elsewhere", check.check, probers.join(", ")));
            }
        }
    }
    for alert in state.alerts.iter().filter(|a| a.state() == AlertState::Firing && scope.sees(&a.namespace)) {
        found.push(format!("alert {}/{} fires", alert.slo, alert.rule));
    }
    for check in state.checks.iter().filter(|c| c.verdict() == Verdict::Down && scope.sees(&c.namespace)) {
        found.push(format!("{} is down", check.check));
    }
    for row in state.outbox.iter().filter(|r| !r.last_error.is_empty() && scope.sees(&r.namespace)) {
        found.push(format!("receiver {} cannot be told: {}", row.receiver, row.last_error));
    }
    if let Some(halt) = &state.meta().halt {
        found.push(format!("halted by {}: {}", halt.actor, halt.reason));
    }
    found
}
