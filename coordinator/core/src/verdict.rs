//! Verdicts: is it up? k of n probers decide, each with hysteresis; a new one abstains until it has seen enough.

use probity_proto::reason::Class;
use probity_proto::v1::*;

use crate::slo::SlotFacts;
use crate::state::State;
use crate::{assign, events, gameday, pair_key};

/// Data older than this repairs budgets; it never changes a verdict.
const LATE_US: i64 = 120 * 1_000_000;
/// This many missing runs in a row, and a prober's voice is no longer heard.
const MISSED_ABSTAINS: u32 = 3;

/// One outcome, several slots long, of one prober: its voice may change, and with it the verdict.
pub(crate) fn on_slots(state: &mut State, facts: &SlotFacts<'_>, row: &ReportRow) {
    let a = facts.assignment;
    let schedule = assign::schedule(a);
    let last_n = facts.first_n + facts.count - 1;
    let last_due = schedule.due(last_n);
    let rule = rule(state, &a.check);
    let late = last_due + LATE_US < state.now();
    let key = pair_key(&a.check, &a.prober);
    if state.voters.get(&key).is_none() {
        state.voters.put(VoterRecord { check: a.check.clone(), prober: a.prober.clone(), ..VoterRecord::default() });
    }
    let Some(voter) = state.voters.get_mut(&key) else { return };
    let count = u32::try_from(facts.count).unwrap_or(u32::MAX);
    voter.last_reason = facts.reason as i32;
    voter.last_n = last_n;
    voter.last_at_us = last_due;
    let before = voter.voice;
    // Slots of this outcome until the voice changes.
    let mut turns_after = 0;
    match facts.reason.class() {
        Class::Good => {
            voter.missed_streak = 0;
            voter.bad_streak = 0;
            turns_after = rule.recover_after.saturating_sub(voter.good_streak).max(1);
            voter.good_streak = voter.good_streak.saturating_add(count);
            if voter.good_streak >= rule.recover_after && !late {
                voter.voice = Verdict::Up as i32;
            }
        }
        Class::Bad => {
            voter.missed_streak = 0;
            voter.good_streak = 0;
            turns_after = rule.down_after.saturating_sub(voter.bad_streak).max(1);
            voter.bad_streak = voter.bad_streak.saturating_add(count);
            voter.last_bad_at_us = last_due;
            if voter.bad_streak >= rule.down_after && !late {
                voter.voice = Verdict::Down as i32;
            }
        }
        Class::Missed => {
            voter.missed_streak = voter.missed_streak.saturating_add(count);
            if voter.missed_streak >= MISSED_ABSTAINS && !late {
                voter.voice = Verdict::Unknown as i32;
            }
        }
    }
    if voter.voice == before {
        return;
    }
    let turned_n = facts.first_n + u64::from(turns_after.saturating_sub(1)).min(facts.count - 1);
    let detail = row.details.iter().find(|d| d.n == turned_n);
    let seen_at_us = detail.map_or_else(|| schedule.due(turned_n), |d| d.started_at_us + d.duration_us as i64);
    let check = a.check.clone();
    judge(state, &check, seen_at_us, row.clock_error_us);
}

/// The rule of a check, with its defaults.
pub fn rule(state: &State, check: &str) -> VerdictRule {
    let rule = state.checks.get(check).and_then(|c| c.rule).unwrap_or_default();
    VerdictRule { quorum: rule.quorum.max(1), down_after: rule.down_after.max(1), recover_after: rule.recover_after.max(1) }
}

/// Counts the voices of the assigned probers.
pub fn of_voices(quorum: u32, voices: &[Verdict]) -> Verdict {
    let quorum = (quorum as usize).clamp(1, voices.len().max(1));
    let count = |verdict: Verdict| voices.iter().filter(|v| **v == verdict).count();
    let (up, down) = (count(Verdict::Up), count(Verdict::Down));
    if down >= quorum {
        Verdict::Down
    } else if up + down >= quorum {
        Verdict::Up
    } else {
        Verdict::Unknown
    }
}

/// Judges a check anew, because of something that was seen at `seen_at_us`.
pub(crate) fn judge(state: &mut State, check: &str, seen_at_us: i64, clock_error_us: u64) {
    let Some(record) = state.checks.get(check) else { return };
    let quorum = rule(state, check).quorum;
    // The voices of sick probers are not heard.
    let assigned: Vec<&str> = assign::of_check(state, check).filter(|a| a.until_us == 0).map(|a| a.prober.as_str()).collect();
    let voices: Vec<Verdict> = assigned
        .iter()
        .filter(|p| state.probers.get(p).is_none_or(|p| !p.sick))
        .map(|p| state.voters.get(&pair_key(check, p)).map_or(Verdict::Unknown, |v| v.voice()))
        .collect();
    let (old, new) = (record.verdict(), of_voices(quorum, &voices));
    if old == new {
        return;
    }
    let down = voices.iter().filter(|v| **v == Verdict::Down).count();
    let (namespace, probe) = (record.namespace.clone(), record.probe.clone());
    let now = state.now();
    if let Some(record) = state.checks.get_mut(check) {
        record.verdict = new as i32;
        record.verdict_since_us = now;
        record.verdict_seen_at_us = seen_at_us;
        record.verdict_clock_error_us = clock_error_us;
    }
    let word = |v: Verdict| match v {
        Verdict::Up => "up",
        Verdict::Down => "down",
        Verdict::Unknown => "unknown",
    };
    let message = format!("{check}: {} -> {} ({down} of {} probers say down)", word(old), word(new), voices.len());
    events::record(state, "verdict", &namespace, &format!("Probe/{probe}"), message);
    gameday::on_verdict(state, check, new, seen_at_us, clock_error_us, down, voices.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Down, Unknown, Up};

    #[test]
    fn k_of_n() {
        let cases: &[(u32, &[Verdict], Verdict)] = &[
            (2, &[Up, Up, Up], Up),
            (2, &[Up, Up, Down], Up),
            (2, &[Up, Down, Down], Down),
            (2, &[Unknown, Unknown, Up], Unknown),
            (2, &[Unknown, Up, Down], Up),
            (2, &[Up], Up),
            (2, &[Down], Down),
            (1, &[Up, Down], Down),
            (2, &[], Unknown),
        ];
        for (quorum, voices, expected) in cases {
            assert_eq!(of_voices(*quorum, voices), *expected, "{quorum} of {voices:?}");
        }
    }
}
