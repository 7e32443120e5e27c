//! One function per kind: records to JSON.

use probity_core::account::AccountView;
use probity_core::verdict::{self, Finding};
use probity_core::{State, account, assign, discovery, pair_key, placement, slo};
use probity_proto::lower;
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;
use probity_scenario::{Fault, undo_word};
use prost::Message;
use serde_json::{Value, json};

use super::{Query, account as account_json, compact, milli, rfc3339, seconds, seconds_u, status, text, time};
use crate::node::Live;

/// The kinds of the read API.
pub(super) const KINDS: &[&str] = &[
    "probes",
    "slos",
    "burnratepolicies",
    "receivers",
    "routes",
    "scenarios",
    "maintenances",
    "probers",
    "members",
    "alerts",
    "episodes",
    "gamedays",
    "faults",
    "events",
    "audit",
    "tokens",
    "revocations",
];

/// Of those, what only an admin of the whole cluster sees.
pub(super) const ACCESS_KINDS: &[&str] = &["tokens", "revocations"];

fn resource_kind(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "probes" => "Probe",
        "slos" => "SLO",
        "burnratepolicies" => "BurnRatePolicy",
        "receivers" => "Receiver",
        "routes" => "Route",
        "scenarios" => "Scenario",
        "maintenances" => "Maintenance",
        _ => return None,
    })
}

/// A list; `None` for an unknown kind.
pub(super) fn list(state: &State, live: &Live<'_>, kind: &str, query: &Query) -> Option<Vec<Value>> {
    let in_namespace = |namespace: &str| query.includes(namespace);
    if let Some(name) = resource_kind(kind) {
        let prefix = format!("{name}/");
        let all = state.resources.prefix(&prefix).filter(|r| in_namespace(&r.namespace) && query.selects(&r.labels));
        return Some(all.map(|r| resource_in(state, r)).collect());
    }
    Some(match kind {
        "members" => state.members.iter().map(|m| item("Member", "", &m.name, status::member(live, m))).collect(),
        "alerts" => state.alerts.iter().filter(|a| a.state() != AlertState::Inactive && in_namespace(&a.namespace)).map(|a| alert(state, a)).collect(),
        "episodes" => {
            let mut all: Vec<&EpisodeRecord> = state.episodes.iter().filter(|e| in_namespace(&e.namespace)).collect();
            all.sort_by_key(|e| std::cmp::Reverse(e.number));
            all.into_iter().map(|e| episode(state, e)).collect()
        }
        "gamedays" => {
            let mut all: Vec<&GameDayRecord> = state.game_days.iter().filter(|d| d.plan.as_ref().is_some_and(|p| in_namespace(&p.namespace))).collect();
            all.sort_by_key(|d| std::cmp::Reverse(d.started_at_us));
            all.into_iter().map(|d| game_day(state, d)).collect()
        }
        "faults" => state.faults.iter().filter(|f| in_namespace(f.game_day.split('/').next().unwrap_or(""))).map(fault).collect(),
        "events" => {
            let subject = |e: &&EventRecord| query.subject.as_ref().is_none_or(|s| e.subject.eq_ignore_ascii_case(s));
            let after = |e: &&EventRecord| query.after.is_none_or(|after| e.sequence > after);
            let namespace = |e: &&EventRecord| e.namespace.is_empty() || in_namespace(&e.namespace);
            state.events.iter().filter(subject).filter(after).filter(namespace).map(event).collect()
        }
        "audit" => {
            // What belongs to no namespace is for who sees the whole.
            let whole = query.scope.is_whole() && query.namespace.is_none();
            let seen = |a: &&AuditRecord| if a.namespace.is_empty() { whole } else { in_namespace(&a.namespace) };
            let subject = |a: &&AuditRecord| query.subject.as_ref().is_none_or(|s| a.subject.eq_ignore_ascii_case(s));
            let after = |a: &&AuditRecord| query.after.is_none_or(|after| a.sequence > after);
            state.audit.iter().filter(seen).filter(subject).filter(after).map(audit).collect()
        }
        "tokens" => state.tokens.iter().map(token).collect(),
        "revocations" => state.revocations.iter().map(revocation).collect(),
        _ => return None,
    })
}

/// One thing.
pub(super) fn one(state: &State, live: &Live<'_>, kind: &str, path: &[String]) -> Option<Value> {
    match (kind, path) {
        ("probers", [name]) => state.probers.get(name).map(|p| prober(state, live, p)),
        ("members", [name]) => state.members.iter().find(|m| &m.name == name).map(|m| item("Member", "", &m.name, status::member(live, m))),
        ("alerts", [namespace, slo, rule]) => state.alerts.get(&format!("{namespace}/{slo}/{rule}")).map(|a| alert(state, a)),
        ("gamedays", [namespace, name]) => state.game_days.get(&format!("{namespace}/{name}")).map(|d| game_day(state, d)),
        (kind, [namespace, name]) => {
            let record = state.resources.get(&probity_core::resource_key(resource_kind(kind)?, namespace, name))?;
            Some(resource_in(state, record))
        }
        _ => None,
    }
}

fn item(kind: &str, namespace: &str, name: &str, status: Value) -> Value {
    compact(json!({"apiVersion": "probity/v1", "kind": kind, "metadata": {"namespace": text(namespace), "name": name}, "status": status}))
}

fn resource_in(state: &State, r: &Resource) -> Value {
    let status = match &r.spec {
        Some(Spec::Slo(_)) => slo_status(state, &r.namespace, &r.name).unwrap_or_default(),
        _ => Value::Null,
    };
    resource(r, status)
}

/// A resource as it was applied, with its status.
pub(super) fn resource(r: &Resource, status: Value) -> Value {
    let document: Value = serde_json::from_str(&r.document_json).unwrap_or_default();
    let api = if r.kind == "SLO" { "openslo/v1" } else { "probity/v1" };
    compact(json!({
        "apiVersion": api,
        "kind": r.kind,
        "metadata": {
            "namespace": r.namespace, "name": r.name, "labels": r.labels, "generation": r.generation,
            "createdAt": rfc3339(r.created_at_us), "updatedAt": rfc3339(r.updated_at_us),
        },
        "spec": document["spec"],
        "status": status,
    }))
}

fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Up => "up",
        Verdict::Down => "down",
        Verdict::Unknown => "unknown",
    }
}

/// What the checks of a probe say together, one after the other.
pub(super) struct ProbeSum {
    /// Of the probe, should it have no check.
    of_probe: (String, String),
    /// Of the first check.
    first: Option<(String, String)>,
    checks: usize,
    /// Probers that run them, all together.
    probers: usize,
    /// The first of the worst.
    worst: Option<(Verdict, i64)>,
    account: AccountView,
    /// The newest run over all probers.
    newest: Option<Newest>,
    /// Why nobody runs the first check of which that is so.
    nobody: Option<String>,
    discovery: Option<Value>,
}

struct Newest {
    at_us: i64,
    reason: Reason,
    duration_us: u64,
    message: String,
}

fn severity(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Down => 2,
        Verdict::Unknown => 1,
        Verdict::Up => 0,
    }
}

impl ProbeSum {
    pub(super) fn begin(state: &State, r: &Resource, spec: &ProbeSpec) -> ProbeSum {
        let described = |kind: &CheckKind| {
            let (word, target) = lower::describe(kind);
            (word.to_owned(), target)
        };
        ProbeSum {
            of_probe: spec.kind.as_ref().map_or(("unknown".to_owned(), String::new()), described),
            first: None,
            checks: 0,
            probers: 0,
            worst: None,
            account: AccountView::default(),
            newest: None,
            nobody: None,
            discovery: spec.discovery.as_ref().map(|_| discovered(state, r)),
        }
    }

    pub(super) fn account(&mut self) -> &mut AccountView {
        &mut self.account
    }

    pub(super) fn add(&mut self, state: &State, c: &CheckRecord, t: i64) {
        if self.checks == 0 {
            self.first = c.spec.as_ref().and_then(|s| s.kind.as_ref()).map(lower::describe).map(|(word, target)| (word.to_owned(), target));
        }
        self.checks += 1;
        let running = assign::of_check(state, &c.check).filter(|a| a.until_us == 0).count();
        self.probers += running;
        if running == 0 && self.nobody.is_none() {
            self.nobody = Some(why_nobody(state, c));
        }
        if self.worst.is_none_or(|(worst, _)| severity(c.verdict()) > severity(worst)) {
            self.worst = Some((c.verdict(), c.verdict_since_us));
        }
        account::add_check(state, &c.check, t, &mut self.account);
        for v in state.voters.prefix(&c.check).filter(|v| v.check == c.check) {
            if self.newest.as_ref().is_none_or(|n| v.last_at_us >= n.at_us) {
                let last = details(v).rev().find(|d| d.reason == v.last_reason);
                let (duration_us, message) = last.map_or((v.last_duration_us, String::new()), |d| (d.duration_us, d.message));
                self.newest = Some(Newest { at_us: v.last_at_us, reason: v.last_reason(), duration_us, message });
            }
        }
    }

    /// All but its checks.
    pub(super) fn status(self) -> Value {
        let (kind, target) = self.first.unwrap_or(self.of_probe);
        let target = if self.checks > 1 { format!("{} targets", self.checks) } else { target };
        let last = self.newest.as_ref();
        json!({
            "kind": kind,
            "target": target,
            "verdict": self.worst.map_or("unknown", |(verdict, _)| verdict_word(verdict)),
            "since": self.worst.map_or(Value::Null, |(_, since)| time(since)),
            "runs": account_json(&self.account.finish()),
            "lastReason": last.map(|n| n.reason.label()),
            "lastDurationSeconds": last.map(|n| seconds_u(n.duration_us)).filter(|s| *s > 0.0),
            "lastAt": last.map_or(Value::Null, |n| time(n.at_us)),
            "lastMessage": last.map_or(Value::Null, |n| text(&n.message)),
            "checkCount": self.checks,
            "proberCount": self.probers,
            "nobody": self.nobody,
            "discovery": self.discovery,
        })
    }
}

/// What was discovered: how many are checked, what fails, what is held.
fn discovered(state: &State, r: &Resource) -> Value {
    let Some(d) = discovery::of_probe(state, &r.namespace, &r.name) else { return json!({"targets": 0, "pending": true}) };
    let held = (d.held_since_us != 0).then(|| {
        let keys: std::collections::BTreeSet<&str> = d.held.iter().map(|t| t.key.as_str()).collect();
        let lost: Vec<&str> = d.targets.iter().map(|t| t.key.as_str()).filter(|key| !keys.contains(key)).collect();
        json!({"targets": d.held.len(), "since": time(d.held_since_us), "revision": d.held_revision, "lost": lost.len(), "lostFirst": lost.iter().take(10).collect::<Vec<_>>()})
    });
    json!({
        "targets": d.targets.len(), "changedAt": time(d.changed_at_us), "error": text(&d.error), "failingSince": time(d.failing_since_us),
        "note": text(&d.note), "held": held,
    })
}

pub(super) fn check(state: &State, c: &CheckRecord) -> Value {
    let mut probers: Vec<&str> = assign::of_check(state, &c.check).filter(|a| a.until_us == 0).map(|a| a.prober.as_str()).collect();
    probers.sort_unstable();
    let target = c.spec.as_ref().and_then(|s| s.kind.as_ref()).map(|k| lower::describe(k).1).unwrap_or_default();
    let voters: Vec<Value> = probers
        .into_iter()
        .map(|name| {
            let zone = state.probers.get(name).and_then(|p| p.labels.get("zone")).cloned();
            let sick = state.probers.get(name).is_some_and(|p| p.sick).then_some(true);
            let Some(v) = state.voters.get(&pair_key(&c.check, name)) else {
                return json!({"prober": name, "zone": zone, "sick": sick, "voice": "unknown", "recent": [], "details": []});
            };
            json!({
                "prober": name,
                "zone": zone,
                "sick": sick,
                "voice": verdict_word(v.voice()),
                "lastReason": v.last_reason().label(),
                "lastAt": time(v.last_at_us),
                "lastDurationSeconds": seconds_u(v.last_duration_us),
                "recent": v.recent.iter().map(|o| json!({"count": o.count, "reason": o.reason().label()})).collect::<Vec<_>>(),
                "details": details(v).map(|d| detail(&d)).collect::<Vec<_>>(),
            })
        })
        .collect();
    let nobody = voters.is_empty().then(|| why_nobody(state, c));
    json!({
        "nobody": nobody,
        "check": c.check, "target": target, "verdict": verdict_word(c.verdict()), "since": time(c.verdict_since_us),
        "generation": c.generation, "probers": voters, "findings": verdict::findings(state, &c.check).iter().map(finding).collect::<Vec<_>>(),
    })
}

/// Why nobody runs a check, which nobody does.
pub(super) fn why_nobody(state: &State, c: &CheckRecord) -> String {
    let why = placement::why_nobody(state, &c.placement.clone().unwrap_or_default());
    why.unwrap_or_else(|| "the probers that could are not there yet".to_owned())
}

fn finding(finding: &Finding) -> Value {
    match finding {
        Finding::TargetDown { probers } => json!({"what": "target_down", "probers": probers}),
        Finding::PathBroken { zones, probers } => json!({"what": "path_broken", "zones": zones, "probers": probers}),
        Finding::ProberSick { prober, reason } => json!({"what": "prober_sick", "probers": [prober], "reason": text(reason)}),
    }
}

/// What a prober told of its newest runs, oldest first.
fn details(v: &VoterRecord) -> impl DoubleEndedIterator<Item = RunDetail> + '_ {
    v.details.iter().filter_map(|bytes| RunDetail::decode(&bytes[..]).ok())
}

fn detail(d: &RunDetail) -> Value {
    let phases: Vec<Value> =
        d.phases.iter().map(|p| json!({"name": p.name, "startSeconds": seconds_u(p.start_us), "durationSeconds": seconds_u(p.duration_us)})).collect();
    json!({
        "n": d.n, "at": time(d.started_at_us), "durationSeconds": seconds_u(d.duration_us), "reason": d.reason().label(),
        "message": text(&d.message), "traceId": text(&d.trace_id), "peer": text(&d.peer), "phases": phases,
        "lagSeconds": seconds_u(d.lag_us), "failedAttempts": d.failed_attempts.iter().map(failed_attempt).collect::<Vec<_>>(),
    })
}

fn failed_attempt(a: &FailedAttempt) -> Value {
    json!({"reason": a.reason().label(), "durationSeconds": seconds_u(a.duration_us), "message": text(&a.message)})
}

fn alert_word(state: AlertState) -> &'static str {
    match state {
        AlertState::Inactive => "inactive",
        AlertState::Pending => "pending",
        AlertState::Firing => "firing",
    }
}

fn severity_word(severity: Severity) -> &'static str {
    if severity == Severity::Page { "page" } else { "ticket" }
}

/// The status of an SLO.
pub(super) fn slo_status(state: &State, namespace: &str, name: &str) -> Option<Value> {
    let explain = slo::explain(state, namespace, name)?;
    let (_, spec) = slo::find(state, namespace, name)?;
    let left_ppm = 1_000_000i64 - explain.spent_ppm as i64;
    let left_us = explain.budget_us as i128 * i128::from(left_ppm) / 1_000_000;
    let rules: Vec<Value> = explain
        .rules
        .iter()
        .map(|r| {
            json!({
                "name": r.rule.name, "severity": severity_word(r.rule.severity()), "burnRate": milli(r.rule.burn_rate_milli),
                "longSeconds": seconds_u(r.rule.long_us), "shortSeconds": seconds_u(r.rule.short_us),
                "state": alert_word(r.state), "since": time(r.since_us),
                "longBurn": milli(r.long_burn_milli), "shortBurn": milli(r.short_burn_milli),
                "fullOutageFiresAfterSeconds": seconds_u(r.full_outage_us), "failuresToFire": r.failures_to_fire, "oneFailureFires": r.failures_to_fire <= 1,
            })
        })
        .collect();
    Some(json!({
        "probe": spec.probe,
        "targetPpm": explain.target_ppm,
        "windowSeconds": seconds_u(explain.window_us),
        "budget": {"totalSeconds": seconds_u(explain.budget_us), "leftSeconds": left_us as f64 / 1e6, "leftPpm": left_ppm, "spentPpm": explain.spent_ppm},
        "window": {"planned": explain.window.planned, "good": explain.window.good, "bad": explain.window.bad, "missed": explain.window.missed},
        "rules": rules,
        "noData": explain.no_data,
    }))
}

fn receivers(state: &State, episode: &str) -> Vec<Value> {
    let prefix = format!("{episode}\u{1f}");
    state
        .outbox
        .prefix(&prefix)
        .map(|row| {
            json!({
                "receiver": row.receiver, "resolved": row.resolved, "delivered": row.delivered_revision == row.revision,
                "attempts": row.attempts, "lastStatus": row.last_status, "lastError": text(&row.last_error),
                "deliveredAt": time(row.delivered_at_us), "suppressed": row.suppressed,
            })
        })
        .collect()
}

fn alert(state: &State, a: &AlertRecord) -> Value {
    let episode = state.episodes.get(&a.episode);
    let status = json!({
        "state": alert_word(a.state()), "severity": severity_word(a.severity()), "since": time(a.since_us), "episode": text(&a.episode),
        "longBurn": milli(a.long_burn_milli), "shortBurn": milli(a.short_burn_milli),
        "labels": episode.map(|e| e.labels.clone()), "annotations": episode.map(|e| e.annotations.clone()),
        "receivers": receivers(state, &a.episode),
    });
    item("Alert", &a.namespace, &format!("{}/{}", a.slo, a.rule), status)
}

fn episode(state: &State, e: &EpisodeRecord) -> Value {
    let status = json!({
        "slo": e.slo, "rule": e.rule, "severity": severity_word(e.severity()), "firedAt": time(e.fired_at_us), "resolvedAt": time(e.resolved_at_us),
        "labels": e.labels, "annotations": e.annotations, "receivers": receivers(state, &e.id),
    });
    item("Episode", &e.namespace, &e.id, status)
}

pub(super) fn prober(state: &State, live: &Live<'_>, p: &ProberRecord) -> Value {
    let heard = live.fleet.get(&p.name);
    let capabilities: Vec<Value> = p
        .capabilities
        .iter()
        .map(|c| json!({"name": c.name, "available": c.available, "detail": text(&c.detail), "undo": (c.undo != 0).then(|| undo_word(c.undo()))}))
        .collect();
    let status = json!({
        "alive": p.alive, "since": time(p.since_us), "sick": p.sick, "sickReason": text(&p.sick_reason), "sickSince": if p.sick { time(p.sick_since_us) } else { Value::Null }, "zone": p.labels.get("zone"), "version": p.version,
        "checks": assign::of_prober(state, &p.name).filter(|a| a.until_us == 0).count(),
        "capabilities": capabilities,
        "proxies": p.proxies.iter().map(|x| json!({"name": x.name, "listen": x.listen, "upstream": x.upstream})).collect::<Vec<_>>(),
        "lastHeartbeatSeconds": heard.map(|h| h.at.elapsed().as_secs_f64()),
        "spooledRows": heard.map(|h| h.heartbeat.spooled_rows), "spooledBytes": heard.map(|h| h.heartbeat.spooled_bytes),
        "droppedSlots": heard.map(|h| h.heartbeat.dropped_slots),
        "eligibleAt": (p.eligible_at_us > live.now_us).then(|| rfc3339(p.eligible_at_us)),
    });
    let mut value = item("Prober", "", &p.name, status);
    value["metadata"]["labels"] = json!(p.labels);
    value
}

fn fault_status(f: &FaultRecord) -> Value {
    let spec = f.spec.clone().unwrap_or_default();
    let word = f.state().as_str_name().trim_start_matches("FAULT_STATE_").to_lowercase();
    json!({
        "id": f.id, "gameDay": f.game_day, "prober": f.prober, "kind": spec.kind, "params": spec.params, "state": word, "undo": undo_word(spec.undo()),
        "fence": f.fence, "notAfter": time(f.not_after_us), "activeAt": time(f.active_at_us), "seenAt": time(f.seen_at_us), "endedAt": time(f.ended_at_us),
        "detail": text(&f.detail), "wanted": f.wanted,
    })
}

fn fault(f: &FaultRecord) -> Value {
    item("Fault", f.game_day.split('/').next().unwrap_or_default(), &f.id, fault_status(f))
}

fn game_day(state: &State, d: &GameDayRecord) -> Value {
    let plan_record = d.plan.clone().unwrap_or_default();
    let key = format!("{}/{}", plan_record.namespace, plan_record.name);
    let phase = d.phase().as_str_name().trim_start_matches("GAME_DAY_PHASE_").to_lowercase();
    let result = d.result().as_str_name().trim_start_matches("GAME_DAY_RESULT_").to_lowercase();
    let timeline: Vec<Value> = d
        .timeline
        .iter()
        .map(|t| json!({"at": time(t.at_us), "offsetSeconds": seconds(t.at_us - d.started_at_us), "errorSeconds": seconds_u(t.clock_error_us), "what": t.what, "detail": t.detail}))
        .collect();
    let measured: Vec<Value> = d
        .measured
        .iter()
        .map(|m| {
            json!({
                "what": m.what, "withinSeconds": (m.within_us > 0).then(|| seconds_u(m.within_us)),
                "measuredSeconds": m.text.is_empty().then(|| seconds(m.measured_us)), "errorSeconds": m.text.is_empty().then(|| seconds_u(m.error_us)),
                "ok": m.ok, "text": text(&m.text), "limit": text(&m.limit), "note": text(&m.note),
            })
        })
        .collect();
    let accounts: Vec<Value> = d.accounts.iter().filter_map(account_delta).collect();
    let budgets: Vec<Value> =
        d.budgets.iter().map(|b| json!({"slo": b.slo, "startPpm": b.start_ppm, "endPpm": b.end_ppm, "bad": b.bad_end.saturating_sub(b.bad_start)})).collect();
    let mut status = plan(state, &plan_record);
    let more = json!({
        "scenario": plan_record.scenario, "phase": phase, "result": if result == "none" { Value::Null } else { result.into() }, "reason": text(&d.result_reason),
        "actor": d.actor, "startedAt": time(d.started_at_us), "endedAt": time(d.ended_at_us), "step": d.step, "traceId": text(&d.trace_id),
        "injectedAt": time(d.injected_at_us), "undoneAt": time(d.undone_at_us),
        "timeline": timeline, "measured": measured, "accounts": accounts, "budgets": budgets,
        "faults": state.faults.iter().filter(|f| f.game_day == key).map(fault_status).collect::<Vec<_>>(),
    });
    if let (Some(status), Value::Object(more)) = (status.as_object_mut(), more) {
        status.extend(more);
    }
    item("GameDay", &plan_record.namespace, &plan_record.name, status)
}

/// What a probe's account grew by during a game day.
fn account_delta(a: &ProbeAccount) -> Option<Value> {
    let (start, end) = (a.start.as_ref()?, a.end.as_ref()?);
    let missed = |x: &Account| x.missed.values().sum::<u64>();
    Some(json!({
        "probe": a.probe, "planned": end.planned.saturating_sub(start.planned), "good": end.good.saturating_sub(start.good),
        "bad": end.bad.saturating_sub(start.bad), "missed": missed(end).saturating_sub(missed(start)), "pending": 0,
    }))
}

/// A plan: what will be done, by whom, for how long.
pub(super) fn plan(state: &State, plan: &GameDayPlan) -> Value {
    let steps: Vec<Value> = plan
        .steps
        .iter()
        .map(|step| {
            let spec = step.faults.first().and_then(|f| f.spec.clone()).unwrap_or_default();
            let object = Fault::parse(&spec).map(|f| f.proxy().to_owned()).unwrap_or_default();
            json!({
                "name": step.name, "fault": spec.kind, "object": object, "params": spec.params, "undo": undo_word(spec.undo()),
                "afterSeconds": seconds_u(step.after_us), "holdSeconds": seconds_u(step.hold_us),
                "hosts": step.faults.iter().map(|f| f.prober.clone()).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "cluster": state.meta().cluster_name, "namespace": plan.namespace, "scenario": plan.scenario, "parameters": plan.parameters, "seed": plan.seed,
        "maxDurationSeconds": seconds_u(plan.max_duration_us), "steps": steps,
    })
}

fn event(e: &EventRecord) -> Value {
    let status =
        json!({"sequence": e.sequence, "at": time(e.at_us), "kind": e.kind, "subject": e.subject, "namespace": text(&e.namespace), "message": e.message});
    item("Event", &e.namespace, &e.sequence.to_string(), status)
}

fn audit(a: &AuditRecord) -> Value {
    let document = |t: &str| serde_json::from_str::<Value>(t).unwrap_or_else(|_| text(t));
    let status = json!({
        "sequence": a.sequence, "at": time(a.at_us), "actor": a.actor, "origin": text(&a.origin), "action": a.action, "subject": a.subject,
        "before": document(&a.before_json), "after": document(&a.after_json), "credential": text(&a.credential),
    });
    item("Audit", &a.namespace, &a.sequence.to_string(), status)
}

/// Never its hash: nobody needs it.
fn token(t: &TokenRecord) -> Value {
    let status = json!({
        "use": if t.r#use() == TokenUse::Read { "read" } else { "enrol" }, "for": t.name, "roles": t.grants, "hosts": t.hosts,
        "createdAt": time(t.created_at_us), "createdBy": t.created_by, "expiresAt": time(t.expires_at_us),
        "usedAt": time(t.used_at_us), "usedFrom": text(&t.used_from), "revokedAt": time(t.revoked_at_us),
    });
    item("Token", "", &t.id, status)
}

fn revocation(r: &RevocationRecord) -> Value {
    let (kind, of) = r.subject.split_once('/').unwrap_or(("", &r.subject));
    item("Revocation", "", of, json!({"kind": kind, "at": time(r.at_us), "actor": r.actor, "reason": text(&r.reason)}))
}
