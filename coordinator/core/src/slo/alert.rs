//! Alerts: inactive, pending (long window over, short not), firing. An episode is one firing; it never resolves for lack of data.

use std::collections::BTreeMap;

use probity_proto::units;
use probity_proto::v1::*;

use super::{all, burn, ledger, outbox, policy};
use crate::state::State;
use crate::{assign, checks, events, gameday};

/// A slot that nobody reported this long after its time-out is missing, for the no-data rule.
const OVERDUE_US: i64 = 30 * 1_000_000;

/// Alerts of probers are of this namespace, and their subject begins so, as no name of an SLO can.
const PROBER_NAMESPACE: &str = "default";
const PROBER_PREFIX: &str = "prober:";
const SICK: &str = "sick";
const SILENT: &str = "silent";
/// Likewise of a probe's targets, in the probe's own namespace.
const TARGETS_PREFIX: &str = "targets:";
const HELD: &str = "held";

/// A quiet SLO is looked at this often, all at the same moments: overdue slots are noticed, for a tick each only while nothing else happens.
const QUIET_US: i64 = 10 * 1_000_000;

/// How many episodes are kept.
const EPISODES_KEPT: usize = 500;

/// What is needed to judge the rules of one SLO.
struct Judged {
    namespace: String,
    name: String,
    service: String,
    spec: SloSpec,
    policy: BurnRatePolicySpec,
}

/// Judges the rules of one SLO, by its ledger's key, and says when to do so again.
pub(crate) fn judge_slo(state: &mut State, key: &str) {
    let now = state.now();
    let Some(slo) = judged(state, key) else {
        // No alerts are wanted.
        ledger::update(state, key, |l| (l.judge_at_us, l.judged_at_us, l.restless) = (ledger::NEVER, now, false));
        return;
    };
    let missing_ppm = missing_ppm(state, &slo);
    if !quiet(state, &slo, missing_ppm) {
        ledger::materialize(state, key, &slo.namespace, &slo.spec.probe);
        no_data(state, &slo, missing_ppm);
        let blind = slo.policy.no_data.is_some_and(|r| r.missing_ppm > 0 && missing_ppm > r.missing_ppm);
        for rule in &slo.policy.rules {
            judge(state, &slo, rule, blind);
        }
    }
    let restless = !quiet(state, &slo, missing_ppm);
    let again = if restless {
        let width = slo.policy.rules.iter().map(|r| (r.short_us / 12).max(1)).min().unwrap_or(60_000_000) as i64;
        // Not more often than five times a second, however narrow a window is.
        next_multiple(now, width).max(now + 200_000)
    } else {
        next_multiple(now, QUIET_US)
    };
    ledger::update(state, key, |l| (l.judge_at_us, l.judged_at_us, l.restless) = (again, now, restless));
}

fn next_multiple(now: i64, width: i64) -> i64 {
    (now / width + 1) * width
}

fn judged(state: &State, key: &str) -> Option<Judged> {
    let ledger = state.ledgers.get(key)?;
    let (resource, spec) = super::find(state, &ledger.namespace, &ledger.slo)?;
    let policy = policy::of(state, &resource.namespace, spec)?;
    Some(Judged { namespace: resource.namespace.clone(), name: resource.name.clone(), service: spec.service.clone(), spec: spec.clone(), policy })
}

/// Nothing bad in any rule's window, nothing missing, no alert alive.
fn quiet(state: &State, slo: &Judged, missing_ppm: u32) -> bool {
    let prefix = format!("{}/{}/", slo.namespace, slo.name);
    let alive = state.alerts.prefix(&prefix).any(|a| a.state() != AlertState::Inactive || a.missing_since_us != 0 || a.long_burn_milli != 0);
    !alive && missing_ppm == 0 && !bad_in_windows(state, slo)
}

fn bad_in_windows(state: &State, slo: &Judged) -> bool {
    let Some(record) = state.ledgers.get(&format!("{}/{}", slo.namespace, slo.name)) else { return false };
    let now = state.now().max(0) as u64;
    slo.policy.rules.iter().any(|rule| {
        let width = (rule.short_us / 12).max(1);
        let oldest = (now / width + 1).saturating_sub(rule.long_us.div_ceil(width));
        let series = record.series.iter().find(|s| s.width_us == width);
        series.is_some_and(|s| s.buckets.iter().rev().take_while(|b| b.index >= oldest).any(|b| b.bad > 0))
    })
}

/// The share of the assigned (check, prober) pairs whose newest slots are missed or overdue, in parts per million.
fn missing_ppm(state: &State, slo: &Judged) -> u32 {
    let now = state.now();
    let (mut pairs, mut missing) = (0u64, 0u64);
    for check in checks::of_probe(state, &slo.namespace, &slo.spec.probe) {
        for a in assign::of_check(state, &check).filter(|a| a.until_us == 0) {
            pairs += 1;
            let timeout = a.timeout_us as i64;
            let overdue = assign::schedule(a).due(a.next_n) + timeout + 2 * a.interval_us as i64 + OVERDUE_US < now;
            let voter = state.voters.get(&crate::pair_key(&check, &a.prober));
            missing += u64::from(overdue || voter.is_some_and(|v| v.missed_streak > 0));
        }
    }
    (missing * 1_000_000).checked_div(pairs).map_or(1_000_000, |ppm| ppm as u32)
}

/// The no-data rule: too much missing for too long.
fn no_data(state: &mut State, slo: &Judged, missing_ppm: u32) {
    let Some(rule) = slo.policy.no_data.filter(|r| r.missing_ppm > 0) else { return };
    let now = state.now();
    let mut alert = alert_of(state, slo, policy::NO_DATA, rule.severity());
    let missing = missing_ppm > rule.missing_ppm;
    alert.missing_since_us = match (missing, alert.missing_since_us) {
        (false, _) => 0,
        (true, 0) => now,
        (true, since) => since,
    };
    let over = missing && now - alert.missing_since_us >= rule.for_us as i64;
    let next = match (over, missing) {
        (true, _) => AlertState::Firing,
        (false, true) => AlertState::Pending,
        (false, false) => AlertState::Inactive,
    };
    turn(state, slo, alert, next, format!("{}% of the probers report nothing for {}", missing_ppm / 10_000, slo.spec.probe));
}

fn judge(state: &mut State, slo: &Judged, rule: &BurnRateRule, blind: bool) {
    let now = state.now();
    let Some(record) = state.ledgers.get(&format!("{}/{}", slo.namespace, slo.name)) else { return };
    let width = (rule.short_us / 12).max(1);
    let long = burn::over(state, record, &slo.spec, width, rule.long_us);
    let short = burn::over(state, record, &slo.spec, width, rule.short_us);
    let mut alert = alert_of(state, slo, &rule.name, rule.severity());
    alert.long_burn_milli = long.burn_milli;
    alert.short_burn_milli = short.burn_milli;
    let (long_over, short_over) = (long.burn_milli >= rule.burn_rate_milli, short.burn_milli >= rule.burn_rate_milli);
    let next = match alert.state() {
        AlertState::Firing if short_over || blind => AlertState::Firing,
        AlertState::Firing => AlertState::Inactive,
        _ if long_over && short_over && enough_evidence(state, slo, &long, now - rule.long_us as i64) => AlertState::Firing,
        _ if long_over => AlertState::Pending,
        _ => AlertState::Inactive,
    };
    let message =
        format!("{} burns its budget {}x too fast over the long window, {}x over the short one", slo.name, long.burn_milli / 1_000, short.burn_milli / 1_000);
    turn(state, slo, alert, next, message);
}

/// Enough bad runs, from enough probers: at most as many as are assigned.
fn enough_evidence(state: &State, slo: &Judged, long: &burn::Burn, since: i64) -> bool {
    let evidence = slo.policy.evidence.unwrap_or_default();
    let (bad, assigned) = burn::witnesses(state, &slo.namespace, &slo.spec.probe, since);
    long.bad >= u64::from(evidence.bad_runs) && bad >= evidence.probers.min(assigned)
}

fn alert_of(state: &State, slo: &Judged, rule: &str, severity: Severity) -> AlertRecord {
    let known = state.alerts.get(&format!("{}/{}/{rule}", slo.namespace, slo.name)).cloned();
    let mut alert = known.unwrap_or_else(|| AlertRecord {
        namespace: slo.namespace.clone(),
        slo: slo.name.clone(),
        rule: rule.to_owned(),
        since_us: state.now(),
        ..AlertRecord::default()
    });
    alert.severity = severity as i32;
    alert
}

/// Stores an alert in its next state; opens or ends its episode.
fn turn(state: &mut State, slo: &Judged, mut alert: AlertRecord, next: AlertState, message: String) {
    let before = alert.state();
    if before != next {
        alert.state = next as i32;
        alert.since_us = state.now();
        let subject = format!("SLO/{}", slo.name);
        if next == AlertState::Firing {
            alert.episode = open(state, slo, &alert, &message);
            events::record(state, "alert", &slo.namespace, &subject, format!("{} fires: {message}", alert.rule));
        } else if before == AlertState::Firing {
            let episode = std::mem::take(&mut alert.episode);
            resolve(state, &episode);
            events::record(state, "alert", &slo.namespace, &subject, format!("{} resolved", alert.rule));
        }
    }
    let key = format!("{}/{}/{}", alert.namespace, alert.slo, alert.rule);
    if state.alerts.get(&key) != Some(&alert) {
        state.alerts.put(alert);
    }
}

fn open(state: &mut State, slo: &Judged, alert: &AlertRecord, message: &str) -> String {
    // A fixed set: labels are the identity of an alert at its receivers.
    let mut labels: BTreeMap<String, String> = slo.policy.labels.clone();
    let own = [
        ("alertname", if alert.rule == policy::NO_DATA { "ProbityNoData" } else { "ProbityErrorBudgetBurn" }),
        ("service", &slo.service),
        ("slo", &alert.slo),
        ("rule", &alert.rule),
    ];
    labels.extend(own.map(|(k, v)| (k.to_owned(), v.to_owned())));
    open_episode(state, alert, labels, slo.policy.annotations.clone(), message)
}

/// An episode of an alert, told to whom its labels route it.
fn open_episode(
    state: &mut State,
    alert: &AlertRecord,
    mut labels: BTreeMap<String, String>,
    mut annotations: BTreeMap<String, String>,
    message: &str,
) -> String {
    let now = state.now();
    let meta = state.meta_mut();
    meta.next_episode += 1;
    let number = meta.next_episode;
    let id = format!("{}/{}/{}#{number}", alert.namespace, alert.slo, alert.rule);
    let severity = if alert.severity() == Severity::Page { "page" } else { "ticket" };
    labels.extend([("severity", severity), ("namespace", &alert.namespace)].map(|(k, v)| (k.to_owned(), v.to_owned())));
    let own = !annotations.contains_key("summary");
    annotations.entry("summary".to_owned()).or_insert_with(|| message.to_owned());
    let episode = EpisodeRecord {
        id: id.clone(),
        namespace: alert.namespace.clone(),
        slo: alert.slo.clone(),
        rule: alert.rule.clone(),
        severity: alert.severity,
        labels,
        annotations,
        fired_at_us: now,
        seen_at_us: now,
        number,
        summary: if own { message.to_owned() } else { String::new() },
        ..EpisodeRecord::default()
    };
    state.episodes.put(episode.clone());
    outbox::open(state, &episode);
    gameday::on_alert(state, &alert.namespace, &format!("{}/{}", alert.slo, alert.rule), true);
    trim(state);
    id
}

fn resolve(state: &mut State, id: &str) {
    let now = state.now();
    let Some(episode) = state.episodes.get_mut(id) else { return };
    episode.resolved_at_us = now;
    if !episode.summary.is_empty() {
        let fired_for = units::format_duration(now.saturating_sub(episode.fired_at_us).max(0) as u64 / 1_000_000 * 1_000_000);
        let summary = format!("{} is over after {fired_for}; when it fired: {}", subject(episode), episode.summary);
        episode.annotations.insert("summary".to_owned(), summary);
    }
    let (namespace, alert) = (episode.namespace.clone(), format!("{}/{}", episode.slo, episode.rule));
    outbox::resolve(state, id);
    gameday::on_alert(state, &namespace, &alert, false);
}

/// What an episode is about, for a sentence.
fn subject(episode: &EpisodeRecord) -> String {
    match episode.slo.split_once(':') {
        Some((_, name)) => format!("{} of {name}", episode.rule),
        None => format!("{} of SLO {}", episode.rule, episode.slo),
    }
}

/// Keeps the newest episodes, and every one that still fires or is still to be told.
fn trim(state: &mut State) {
    let surplus = state.episodes.len().saturating_sub(EPISODES_KEPT);
    if surplus == 0 {
        return;
    }
    let mut old: Vec<(u64, String)> =
        state.episodes.iter().filter(|e| e.resolved_at_us != 0 && outbox::settled(state, &e.id)).map(|e| (e.number, e.id.clone())).collect();
    old.sort();
    for (_, id) in old.into_iter().take(surplus) {
        outbox::forget(state, &id);
        state.episodes.remove(&id);
    }
}

/// A prober is sick, and why, or well again. Its alert is of the namespace `default`, and routed like any other by its labels.
pub(crate) fn prober_alert(state: &mut State, prober: &str, sick: Option<&str>) {
    let message = sick.map(|reason| format!("prober {prober} is sick, its runs do not count: {reason}"));
    let labels = [("alertname", "ProbityProberSick"), ("prober", prober), ("rule", SICK)];
    plain_alert(state, PROBER_NAMESPACE, format!("{PROBER_PREFIX}{prober}"), SICK, &labels, message.as_deref());
}

/// A prober has been silent for so long, or is back or forgotten.
pub(crate) fn silent_alert(state: &mut State, prober: &str, silent_for: Option<String>) {
    let message = silent_for.map(|time| {
        format!("prober {prober} has been silent for {time}: is its host up? Its checks are others'; `probity delete prober {prober}` if it is gone for good")
    });
    let labels = [("alertname", "ProbityProberSilent"), ("prober", prober), ("rule", SILENT)];
    plain_alert(state, PROBER_NAMESPACE, format!("{PROBER_PREFIX}{prober}"), SILENT, &labels, message.as_deref());
}

/// A probe's targets are held, and why, or not any more.
pub(crate) fn targets_alert(state: &mut State, namespace: &str, probe: &str, held: Option<&str>) {
    let labels = [("alertname", "ProbityTargetsHeld"), ("probe", probe), ("rule", HELD)];
    plain_alert(state, namespace, format!("{TARGETS_PREFIX}{probe}"), HELD, &labels, held);
}

/// A ticket that is of no SLO: it fires with a message, and resolves without one.
fn plain_alert(state: &mut State, namespace: &str, subject: String, rule: &str, labels: &[(&str, &str)], message: Option<&str>) {
    let key = format!("{namespace}/{subject}/{rule}");
    match (message, state.alerts.get(&key).cloned()) {
        (Some(message), None) => {
            let mut alert = AlertRecord {
                namespace: namespace.to_owned(),
                slo: subject,
                rule: rule.to_owned(),
                severity: Severity::Ticket as i32,
                state: AlertState::Firing as i32,
                since_us: state.now(),
                ..AlertRecord::default()
            };
            let labels: BTreeMap<String, String> = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            alert.episode = open_episode(state, &alert, labels, BTreeMap::new(), message);
            state.alerts.put(alert);
        }
        (None, Some(alert)) => {
            state.alerts.remove(&key);
            resolve(state, &alert.episode);
        }
        _ => {}
    }
}

/// Alerts whose SLO or rule is gone resolve, and go.
pub(crate) fn drop_orphans(state: &mut State) {
    let mut wanted = std::collections::BTreeSet::new();
    for (resource, spec) in all(state) {
        let Some(policy) = policy::of(state, &resource.namespace, spec) else { continue };
        let rules = policy.rules.iter().map(|r| r.name.clone()).chain([policy::NO_DATA.to_owned()]);
        wanted.extend(rules.map(|rule| format!("{}/{}/{rule}", resource.namespace, resource.name)));
    }
    // No name of an SLO has a colon.
    let plain = |key: &str| key.split('/').nth(1).is_some_and(|subject| subject.starts_with(PROBER_PREFIX) || subject.starts_with(TARGETS_PREFIX));
    for key in state.alerts.keys() {
        if !wanted.contains(key.as_str())
            && !plain(&key)
            && let Some(alert) = state.alerts.remove(&key)
            && !alert.episode.is_empty()
        {
            resolve(state, &alert.episode);
        }
    }
}
