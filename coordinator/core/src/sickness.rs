//! Sick probers: those whose own network is broken, so that what they find says nothing of the targets.
//!
//! A prober is sick while its own self-check fails (it says so), or while most of its checks fail that are fine elsewhere (seen here,
//! from three probers on a check up). One failing check is a path, not a sickness; and where a whole zone of several probers
//! fails alike, it is the zone's path that is broken, which users there feel too: their runs count.
//! From its onset a sick prober's runs are missed(prober_sick) (rule R10), those that were counted before it was known included, as
//! far back as its newest outcomes are kept. It keeps its checks: how else would it be seen to recover?

use std::collections::BTreeSet;

use probity_proto::reason::{self, Class};
use probity_proto::v1::*;

use crate::slo::{self, SlotFacts};
use crate::state::State;
use crate::{assign, events, fleet, pair_key, verdict};

/// So many of its checks must fail alone: one could be its path.
const ALONE_MIN: usize = 2;
/// So many others must have a voice on a check for it to tell anything.
const OTHERS_MIN: usize = 2;

/// The newest time, from and to, in which a prober's runs say nothing; it may last.
pub(crate) fn between(state: &State, prober: &str) -> Option<(i64, i64)> {
    let prober = state.probers.get(prober).filter(|p| p.sick_since_us != 0)?;
    Some((prober.sick_since_us, if prober.sick { i64::MAX } else { prober.sick_until_us }))
}

/// What a prober says of its own self-check.
pub(crate) fn told(state: &mut State, op: &ProberSickness) {
    let Some(prober) = state.probers.get(&op.prober).filter(|p| p.self_sick != op.sick).cloned() else { return };
    let since_us = if op.since_us == 0 { state.now() } else { op.since_us };
    let reason = if op.reason.is_empty() { "its self-check fails".to_owned() } else { format!("its self-check fails: {}", op.reason) };
    turn(state, ProberRecord { self_sick: op.sick, ..prober }, since_us, reason);
}

/// How a prober's voices compare with the others'.
#[derive(Debug, Default)]
struct Compared {
    /// Checks on which enough others have a voice.
    comparable: usize,
    /// Of these, how many are down here and fine elsewhere.
    alone: usize,
    /// When each began to fail here that is fine elsewhere, down or about to be; and the longest interval among them.
    failing_since: Vec<i64>,
    interval_us: i64,
}

impl Compared {
    fn most_fail_alone(&self) -> bool {
        self.alone >= ALONE_MIN && 2 * self.alone > self.comparable
    }

    /// Whether it is like the others again: with a distance, so that it does not flap at the border.
    fn fine(&self) -> bool {
        4 * self.alone <= self.comparable
    }

    /// When most of them had begun to fail: the first one that failed within an interval before.
    fn onset(&self) -> i64 {
        let mut since = self.failing_since.clone();
        since.sort_unstable();
        let most = since.get(self.comparable / 2).or(since.last()).copied().unwrap_or(0);
        since.into_iter().find(|s| *s >= most - self.interval_us).unwrap_or(most)
    }
}

fn compare(state: &State, prober: &str) -> Compared {
    let mut found = Compared::default();
    for a in assign::of_prober(state, prober).filter(|a| a.until_us == 0) {
        let Some(own) = state.voters.get(&pair_key(&a.check, prober)).filter(|v| v.voice() != Verdict::Unknown) else { continue };
        let others: Vec<Verdict> = assign::of_check(state, &a.check)
            .filter(|o| o.until_us == 0 && o.prober != prober)
            .map(|o| verdict::heard(state, &a.check, &o.prober))
            .filter(|v| *v != Verdict::Unknown)
            .collect();
        if others.len() < OTHERS_MIN {
            continue;
        }
        found.comparable += 1;
        let up = others.iter().filter(|v| **v == Verdict::Up).count();
        if 2 * up <= others.len() {
            continue;
        }
        found.alone += usize::from(own.voice() == Verdict::Down);
        if own.bad_streak > 0 {
            let first_bad = (own.last_n + 1).saturating_sub(u64::from(own.bad_streak)).max(a.first_n);
            found.failing_since.push(assign::schedule(a).due(first_bad));
            found.interval_us = found.interval_us.max(a.interval_us as i64);
        }
    }
    found
}

/// Looks again at whoever may be alone with its failures, after voices on these checks turned.
pub(crate) fn look(state: &mut State, turned: &BTreeSet<String>) {
    if turned.is_empty() {
        return;
    }
    let down = |check: &String| {
        let open: Vec<&AssignmentRecord> = assign::of_check(state, check).filter(|a| a.until_us == 0).collect();
        // With fewer a check tells nothing of anybody.
        let voters = if open.len() > OTHERS_MIN { open } else { Vec::new() };
        let down = voters.into_iter().filter(|a| state.voters.get(&pair_key(check, &a.prober)).is_some_and(|v| v.voice() == Verdict::Down));
        down.map(|a| a.prober.clone()).collect::<Vec<_>>()
    };
    let mut suspects: BTreeSet<String> = turned.iter().flat_map(down).collect();
    suspects.extend(state.probers.iter().filter(|p| p.lonely).map(|p| p.name.clone()));
    for name in suspects {
        let Some(prober) = state.probers.get(&name).filter(|p| p.alive).cloned() else { continue };
        let compared = compare(state, &name);
        let lonely = if prober.lonely { !compared.fine() } else { compared.most_fail_alone() };
        let lonely = lonely && !whole_zone_fails(state, &prober);
        if lonely != prober.lonely {
            let reason = format!("{} of {} checks fail that are fine elsewhere", compared.alone, compared.comparable);
            turn(state, ProberRecord { lonely, ..prober }, compared.onset(), reason);
        }
    }
}

/// Whether every other prober of its zone, and there is one, fails alone too.
fn whole_zone_fails(state: &State, prober: &ProberRecord) -> bool {
    let zone = prober.labels.get("zone");
    let others = state.probers.iter().filter(|p| p.alive && !p.self_sick && p.name != prober.name && p.labels.get("zone") == zone);
    let mut compared = others.map(|p| compare(state, &p.name)).filter(|c| c.comparable > 0).peekable();
    zone.is_some() && compared.peek().is_some() && compared.all(|c| c.most_fail_alone())
}

/// Stores a prober whose reasons to be sick changed; when it became sick or well, everything that follows.
fn turn(state: &mut State, mut prober: ProberRecord, since_us: i64, reason: String) {
    let now = state.now();
    let (was, is) = (prober.sick, prober.self_sick || prober.lonely);
    prober.sick = is;
    if is == was {
        fleet::put(state, prober);
        return;
    }
    let name = prober.name.clone();
    if is {
        // What lies in the last sickness is missed already.
        prober.sick_since_us = since_us.min(now).max(prober.sick_until_us).max(1);
        prober.sick_until_us = 0;
        prober.sick_reason = reason.clone();
    } else {
        prober.sick_until_us = now;
        prober.sick_reason.clear();
    }
    let onset = prober.sick_since_us;
    fleet::put(state, prober);
    let message = if is { format!("is sick: {reason}") } else { "is well again".to_owned() };
    events::record(state, "prober", "", &format!("Prober/{name}"), message);
    slo::prober_alert(state, &name, is.then_some(reason.as_str()));
    let checks: BTreeSet<String> = assign::of_prober(state, &name).filter(|a| a.until_us == 0).map(|a| a.check.clone()).collect();
    for check in checks {
        if is {
            recount(state, &check, &name, onset);
        }
        verdict::judge(state, &check, now, 0);
    }
}

/// What was counted since the onset, before anybody knew: now missed(prober_sick).
fn recount(state: &mut State, check: &str, prober: &str, onset: i64) {
    let open = assign::of_check(state, check).find(|a| a.until_us == 0 && a.prober == prober).cloned();
    let (Some(a), Some(voter)) = (open, state.voters.get(&pair_key(check, prober))) else { return };
    let from = assign::schedule(&a).first_at_or_after(onset).max(a.first_n);
    let mut end = a.next_n;
    let mut pieces = Vec::new();
    for run in voter.recent.iter().rev() {
        if end <= from {
            break;
        }
        let first_n = end.saturating_sub(u64::from(run.count)).max(from);
        pieces.push((first_n, end - first_n, reason::from_number(run.reason), run.slower_than));
        end = end.saturating_sub(u64::from(run.count));
    }
    for (first_n, count, reason, slower_than) in pieces {
        if reason.class() == Class::Missed {
            continue;
        }
        let mut moved = 0;
        assign::update(state, a.id, |a| moved = move_to_sick(a, reason, count));
        slo::ledger::recount_as_missed(state, &SlotFacts { assignment: &a, first_n, count: moved, reason, slower_than });
    }
}

/// Takes back at most what was counted: the newest outcomes are kept per prober, and may begin with those of an earlier assignment.
fn move_to_sick(a: &mut AssignmentRecord, reason: Reason, count: u64) -> u64 {
    let moved = match reason.class() {
        Class::Good => {
            let moved = count.min(a.good);
            a.good -= moved;
            moved
        }
        _ => {
            let counted = a.bad_by_reason.entry(reason as u32).or_default();
            let moved = count.min(*counted);
            *counted -= moved;
            a.bad -= moved;
            a.bad_by_reason.retain(|_, n| *n > 0);
            moved
        }
    };
    if moved > 0 {
        *a.missed.entry(Reason::ProberSick as u32).or_default() += moved;
    }
    moved
}
