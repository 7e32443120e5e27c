//! A prober's voice in a verdict, and its newest runs for people to see.
//!
//! A voice turns after some equal outcomes in a row. A new one abstains until then; so does one that misses too many runs.

use probity_proto::reason::Class;
use probity_proto::v1::*;
use prost::Message;

use crate::slo::SlotFacts;
use crate::state::State;
use crate::{assign, pair_key, rows, verdict};

/// Data older than this repairs budgets; it never changes a verdict.
const LATE_US: i64 = 120 * 1_000_000;
/// This many missing runs in a row, and a prober's voice is no longer heard.
const MISSED_ABSTAINS: u32 = 3;
/// How many outcomes of a prober a check shows.
pub const RECENT_KEPT: u64 = 60;
/// How many details of a prober a check shows.
pub const DETAILS_KEPT: usize = 4;

/// Slots of one outcome: a voice may turn, and the verdict with it.
pub(crate) fn on_slots(state: &mut State, facts: &SlotFacts<'_>, row: Option<&ReportRow>) {
    let a = facts.assignment;
    // Rows are mostly of open assignments; those of an ended one count where it has a successor.
    if a.until_us != 0 && !assigned(state, &a.check, &a.prober) {
        return;
    }
    let schedule = assign::schedule(a);
    let (end_n, last_n) = (facts.first_n + facts.count, facts.first_n + facts.count - 1);
    let rule = verdict::rule(state, &a.check);
    let first_timely = schedule.first_at_or_after(state.now() - LATE_US);
    let key = pair_key(&a.check, &a.prober);
    if state.voters.get(&key).is_none() {
        state.voters.put(VoterRecord { check: a.check.clone(), prober: a.prober.clone(), ..VoterRecord::default() });
    }
    let Some(voter) = state.voters.get_mut(&key) else { return };
    // Rows of an ended assignment may come after the first ones of its successor.
    if schedule.due(last_n) < voter.last_at_us {
        return;
    }
    voter.last_reason = facts.reason as i32;
    voter.last_n = last_n;
    voter.last_at_us = schedule.due(last_n);
    remember(voter, facts);
    let before = voter.voice();
    let (next, after) = turn(voter, facts, &rule, schedule.due(last_n));
    if next == before || last_n < first_timely {
        return;
    }
    voter.voice = next as i32;
    state.turned.insert(a.check.clone());
    // The run that turned it.
    let turned_n = (facts.first_n + u64::from(after.saturating_sub(1))).clamp(first_timely.min(last_n), last_n);
    let seen_at_us = rows::ended_at(a, row, turned_n, (turned_n + 1).min(end_n));
    verdict::judge(state, &a.check, seen_at_us, row.map_or(0, |r| r.clock_error_us));
}

/// Counts streaks; returns the voice that they speak for, and how many of these slots it took.
fn turn(voter: &mut VoterRecord, facts: &SlotFacts<'_>, rule: &VerdictRule, last_due: i64) -> (Verdict, u32) {
    let count = u32::try_from(facts.count).unwrap_or(u32::MAX);
    // A streak that goes on, and how long it must be; another one that it ends.
    let (streak, needed, turns_to) = match facts.reason.class() {
        Class::Good => {
            (voter.missed_streak, voter.bad_streak) = (0, 0);
            (&mut voter.good_streak, rule.recover_after, Verdict::Up)
        }
        Class::Bad => {
            (voter.missed_streak, voter.good_streak) = (0, 0);
            voter.last_bad_at_us = last_due;
            (&mut voter.bad_streak, rule.down_after, Verdict::Down)
        }
        Class::Missed => (&mut voter.missed_streak, MISSED_ABSTAINS, Verdict::Unknown),
    };
    let after = needed.saturating_sub(*streak).max(1);
    *streak = streak.saturating_add(count);
    let turned = *streak >= needed;
    (if turned { turns_to } else { voter.voice() }, after)
}

/// Whether a prober runs a check now.
fn assigned(state: &State, check: &str, prober: &str) -> bool {
    assign::of_check(state, check).any(|a| a.until_us == 0 && a.prober == prober)
}

/// A silent prober: until it has spoken again, its voice abstains.
pub(crate) fn silence(state: &mut State, prober: &str) {
    let checks: Vec<String> = assign::of_prober(state, prober).filter(|a| a.until_us == 0).map(|a| a.check.clone()).collect();
    for check in checks {
        if let Some(voter) = state.voters.get_mut(&pair_key(&check, prober)) {
            voter.voice = Verdict::Unknown as i32;
            (voter.good_streak, voter.bad_streak) = (0, 0);
        }
    }
}

/// Drops the voters of a check that do not run it any more.
pub(crate) fn drop_unassigned(state: &mut State, check: &str) {
    let prefix = format!("{check}\u{1f}");
    let gone: Vec<_> = state.voters.prefix(&prefix).filter(|v| !assigned(state, check, &v.prober)).map(crate::Record::key).collect();
    for key in gone {
        state.voters.remove(&key);
    }
}

/// Keeps the newest outcomes: for people, and for what a sickness makes of them.
fn remember(voter: &mut VoterRecord, facts: &SlotFacts<'_>) {
    let count = u32::try_from(facts.count).unwrap_or(u32::MAX);
    match voter.recent.last_mut() {
        Some(last) if last.reason == facts.reason as i32 && last.slower_than == facts.slower_than => last.count = last.count.saturating_add(count),
        _ => voter.recent.push(OutcomeRun { count, reason: facts.reason as i32, slower_than: facts.slower_than }),
    }
    let mut surplus = voter.recent.iter().map(|r| u64::from(r.count)).sum::<u64>().saturating_sub(RECENT_KEPT);
    let mut whole = 0;
    for run in &mut voter.recent {
        if u64::from(run.count) > surplus {
            run.count -= surplus as u32;
            break;
        }
        surplus -= u64::from(run.count);
        whole += 1;
    }
    voter.recent.drain(..whole);
}

/// Keeps the newest details, for people.
pub(crate) fn show(state: &mut State, a: &AssignmentRecord, row: &ReportRow) {
    if row.details.is_empty() {
        return;
    }
    let Some(voter) = state.voters.get_mut(&pair_key(&a.check, &a.prober)) else { return };
    voter.details.extend(row.details.iter().map(|d| d.encode_to_vec().into()));
    let surplus = voter.details.len().saturating_sub(DETAILS_KEPT);
    voter.details.drain(..surplus);
    if let Some(newest) = row.details.last() {
        voter.last_duration_us = newest.duration_us;
    }
}
