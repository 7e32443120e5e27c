//! Ledgers: counts of slots per bucket of time. Twelve buckets to a short window, kept for that rule's long window; hourly ones
//! for the objective's window. Integers only: every ratio is computed when it is read (rule R14).

use probity_proto::reason::Class;
use probity_proto::slots::Schedule;
use probity_proto::v1::*;

use super::{SlotFacts, of_probe, policy};
use crate::state::State;
use crate::{assign, checks};

/// `judge_at_us` of a ledger that nothing waits for.
pub(crate) const NEVER: i64 = i64::MAX;
/// An SLO is judged at most this often: one on thousands of checks costs each judgement a look at all of them.
const PACE_US: i64 = 100_000;
const HOUR_US: u64 = 3_600 * 1_000_000;

/// Makes an SLO's ledger, or lets the one it has follow its rules. Buckets that it keeps stay as they are.
pub(crate) fn ensure(state: &mut State, namespace: &str, name: &str, spec: &SloSpec) {
    let now = state.now();
    let mut wanted: Vec<(u64, u32)> = Vec::new();
    for rule in policy::of(state, namespace, spec).iter().flat_map(|p| &p.rules) {
        let width = (rule.short_us / 12).max(1);
        let keep = u32::try_from(rule.long_us.div_ceil(width) + 2).unwrap_or(u32::MAX);
        match wanted.iter_mut().find(|(w, _)| *w == width) {
            Some((_, kept)) => *kept = (*kept).max(keep),
            None => wanted.push((width, keep)),
        }
    }
    let hourly = u32::try_from(spec.window_us.div_ceil(HOUR_US) + 2).unwrap_or(u32::MAX);
    match wanted.iter_mut().find(|(w, _)| *w == HOUR_US) {
        Some((_, kept)) => *kept = (*kept).max(hourly),
        None => wanted.push((HOUR_US, hourly)),
    }
    wanted.sort_unstable();
    let key = format!("{namespace}/{name}");
    let old = state.ledgers.get(&key).cloned().unwrap_or_else(|| LedgerRecord {
        namespace: namespace.to_owned(),
        slo: name.to_owned(),
        created_at_us: now,
        planned_through_us: now,
        ..LedgerRecord::default()
    });
    let series = wanted
        .into_iter()
        .map(|(width_us, keep)| {
            let buckets = old.series.iter().find(|s| s.width_us == width_us).map(|s| s.buckets.clone()).unwrap_or_default();
            BucketSeries { width_us, keep, buckets }
        })
        .collect();
    // Whatever changed, its rules are judged by what they are now.
    let new = LedgerRecord { series, window_us: spec.window_us, deleted_at_us: 0, judge_at_us: now, ..old };
    if let Some(old) = state.ledgers.get(&key) {
        state.index.remove_ledger(old);
    }
    state.index.add_ledger(&new);
    state.ledgers.put(new);
}

/// Adds the outcome of some slots to the ledgers of the SLOs on their probe.
pub(crate) fn on_slots(state: &mut State, facts: &SlotFacts<'_>) {
    each_series(state, facts, |series, class, schedule| {
        spread(series, schedule, facts.first_n, facts.first_n + facts.count, |bucket, slots| *field(bucket, class) += slots);
    });
}

/// What was counted with this outcome turns out to say nothing: now it is missed.
pub(crate) fn recount_as_missed(state: &mut State, facts: &SlotFacts<'_>) {
    each_series(state, facts, |series, class, schedule| {
        let kept_from = series.buckets.first().map_or(u64::MAX, |b| b.index);
        spread(series, schedule, facts.first_n, facts.first_n + facts.count, |bucket, slots| {
            // Older buckets are gone, with what was in them.
            if bucket.index >= kept_from {
                let counted = field(bucket, class);
                let moved = slots.min(*counted);
                *counted -= moved;
                bucket.missed += moved;
            }
        });
        series.buckets.retain(|b| b.index >= kept_from);
    });
}

fn field(bucket: &mut Bucket, class: Class) -> &mut u64 {
    match class {
        Class::Good => &mut bucket.good,
        Class::Bad => &mut bucket.bad,
        Class::Missed => &mut bucket.missed,
    }
}

/// Calls `change` for each series of each SLO on the slots' probe, with what the outcome is to that SLO.
fn each_series(state: &mut State, facts: &SlotFacts<'_>, change: impl Fn(&mut BucketSeries, Class, Schedule)) {
    let Some((namespace, probe)) = checks::probe_of(state, &facts.assignment.check) else { return };
    let keys: Vec<(String, u64)> = of_probe(state, &namespace, &probe).map(|(r, s)| (format!("{}/{}", r.namespace, r.name), s.max_duration_us)).collect();
    let schedule = assign::schedule(facts.assignment);
    for (key, max_duration_us) in keys {
        // The place of this SLO's limit among the assignment's: a run above it is bad for this SLO.
        let limit = facts.assignment.thresholds_us.iter().position(|t| *t == max_duration_us);
        let slow = limit.is_some_and(|i| facts.slower_than as usize > i);
        let class = match facts.reason.class() {
            Class::Good if slow => Class::Bad,
            class => class,
        };
        let Some(ledger) = state.ledgers.get_mut(&key) else { continue };
        ledger.series.iter_mut().for_each(|series| change(series, class, schedule));
        news(state, &key, class);
    }
}

/// Counts the slots that were due up to now as planned, before an assignment of `check` goes.
pub(crate) fn materialize_check(state: &mut State, check: &str) {
    let Some((namespace, probe)) = checks::probe_of(state, check) else { return };
    let keys: Vec<String> = of_probe(state, &namespace, &probe).map(|(r, _)| format!("{}/{}", r.namespace, r.name)).collect();
    for key in keys {
        materialize(state, &key, &namespace, &probe);
    }
}

/// Counts the slots that were due since the last time as planned.
pub(crate) fn materialize(state: &mut State, key: &str, namespace: &str, probe: &str) {
    let now = state.now();
    let Some(ledger) = state.ledgers.get(key) else { return };
    let from = ledger.planned_through_us;
    if from >= now {
        return;
    }
    let ranges: Vec<(Schedule, u64, u64)> = assign::of_probe(state, namespace, probe)
        .filter_map(|a| {
            let schedule = assign::schedule(a);
            let first = schedule.first_at_or_after(from).max(a.first_n);
            let end = assign::end_n(a, now);
            (end > first).then_some((schedule, first, end))
        })
        .collect();
    let Some(ledger) = state.ledgers.get_mut(key) else { return };
    ledger.planned_through_us = now;
    for series in &mut ledger.series {
        for (schedule, first, end) in &ranges {
            spread(series, *schedule, *first, *end, |bucket, slots| bucket.planned += slots);
        }
        trim(series, now);
    }
}

/// Calls `add` for each bucket that slots [first, end) fall into, with how many.
fn spread(series: &mut BucketSeries, schedule: Schedule, first: u64, end: u64, mut add: impl FnMut(&mut Bucket, u64)) {
    let width = series.width_us.max(1);
    let mut n = first;
    while n < end {
        let index = schedule.due(n).max(0) as u64 / width;
        let bucket_end = i64::try_from((index + 1) * width).unwrap_or(i64::MAX);
        let next = schedule.first_at_or_after(bucket_end).clamp(n + 1, end);
        add(bucket_at(series, index), next - n);
        n = next;
    }
}

fn bucket_at(series: &mut BucketSeries, index: u64) -> &mut Bucket {
    let place = match series.buckets.binary_search_by_key(&index, |b| b.index) {
        Ok(place) => place,
        Err(place) => {
            series.buckets.insert(place, Bucket { index, ..Bucket::default() });
            place
        }
    };
    &mut series.buckets[place]
}

fn trim(series: &mut BucketSeries, now: i64) {
    let newest = now.max(0) as u64 / series.width_us.max(1);
    let oldest = newest.saturating_sub(u64::from(series.keep));
    let surplus = series.buckets.partition_point(|b| b.index < oldest);
    series.buckets.drain(..surplus);
}

/// Sums the buckets with an index in [from, to].
pub(crate) fn sum(series: &BucketSeries, from: u64, to: u64) -> Bucket {
    let mut total = Bucket::default();
    let start = series.buckets.partition_point(|b| b.index < from);
    for bucket in series.buckets[start..].iter().take_while(|b| b.index <= to) {
        total.planned += bucket.planned;
        total.good += bucket.good;
        total.bad += bucket.bad;
        total.missed += bucket.missed;
    }
    total
}

/// When its SLO is judged next; a tombstone's end.
pub(crate) fn due_at(ledger: &LedgerRecord) -> i64 {
    if ledger.deleted_at_us == 0 { ledger.judge_at_us } else { ledger.deleted_at_us.saturating_add(i64::try_from(ledger.window_us).unwrap_or(NEVER)) }
}

/// Changes a ledger's times, and what is derived from them.
pub(crate) fn update(state: &mut State, key: &str, change: impl FnOnce(&mut LedgerRecord)) {
    let Some(ledger) = state.ledgers.get_mut(key) else { return };
    let before = due_at(ledger);
    change(ledger);
    let after = due_at(ledger);
    if before != after {
        state.index.judge.remove(&(before, key.into()));
        state.index.judge.insert((after, key.into()));
    }
}

/// Forgets a ledger.
pub(crate) fn forget(state: &mut State, key: &str) {
    match state.ledgers.remove(key) {
        Some(ledger) => state.index.remove_ledger(&ledger),
        None => state.index.judge.retain(|(_, k)| k != key),
    }
}

/// News of some slots: bad or missing ones are judged soon, any while the SLO is restless.
fn news(state: &mut State, key: &str, class: Class) {
    let now = state.now();
    update(state, key, |ledger| {
        if class != Class::Good || ledger.restless {
            ledger.judge_at_us = ledger.judge_at_us.min(now.max(ledger.judged_at_us + PACE_US));
        }
    });
}
