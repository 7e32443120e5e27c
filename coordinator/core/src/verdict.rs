//! Verdicts: is it up? k of the n assigned probers decide, by their voices ([`crate::voice`]).

use std::collections::BTreeSet;

use probity_proto::v1::*;

use crate::state::State;
use crate::{assign, events, gameday, pair_key};

/// The rule of a check, with its defaults.
pub fn rule(state: &State, check: &str) -> VerdictRule {
    let rule = state.checks.get(check).and_then(|c| c.rule).unwrap_or_default();
    VerdictRule { quorum: rule.quorum.max(1), down_after: rule.down_after.max(1), recover_after: rule.recover_after.max(1) }
}

/// Counts the voices of the assigned probers; a quorum above their number is lowered to it, never below for those who abstain.
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
    let voices: Vec<Verdict> = assign::of_check(state, check).filter(|a| a.until_us == 0).map(|a| heard(state, check, &a.prober)).collect();
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

/// What is wrong with a check, told apart: three different things for three different people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A quorum of those who are trusted says so.
    TargetDown {
        /// Who says down.
        probers: Vec<String>,
    },
    /// It is not down, but cannot be reached from somewhere.
    PathBroken {
        /// Zones from which nobody reaches it.
        zones: Vec<String>,
        /// Who does not.
        probers: Vec<String>,
    },
    /// A prober does not count: its own network is broken.
    ProberSick {
        /// Who.
        prober: String,
        /// Why.
        reason: String,
    },
}

/// Everything that is wrong with a check, as its probers see it.
pub fn findings(state: &State, check: &str) -> Vec<Finding> {
    let Some(record) = state.checks.get(check) else { return Vec::new() };
    let spread_by = record.placement.as_ref().map(|p| p.spread_by.as_str()).filter(|s| !s.is_empty()).unwrap_or("zone");
    let mut found = Vec::new();
    let (mut down, mut up_zones, mut down_zones) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let assigned: BTreeSet<&String> = assign::of_check(state, check).filter(|a| a.until_us == 0).map(|a| &a.prober).collect();
    for prober in assigned.into_iter().filter_map(|name| state.probers.get(name)) {
        let zone = prober.labels.get(spread_by).cloned().unwrap_or_default();
        match heard(state, check, &prober.name) {
            Verdict::Up => drop(up_zones.insert(zone)),
            Verdict::Down => {
                down.push(prober.name.clone());
                down_zones.insert(zone);
            }
            Verdict::Unknown if prober.sick => found.push(Finding::ProberSick { prober: prober.name.clone(), reason: prober.sick_reason.clone() }),
            Verdict::Unknown => {}
        }
    }
    if record.verdict() == Verdict::Down {
        found.insert(0, Finding::TargetDown { probers: down });
    } else if !down.is_empty() && !up_zones.is_empty() {
        let zones = down_zones.difference(&up_zones).filter(|z| !z.is_empty()).cloned().collect();
        found.insert(0, Finding::PathBroken { zones, probers: down });
    }
    found
}

/// The voice of an assigned prober; an absent or sick one abstains.
pub(crate) fn heard(state: &State, check: &str, prober: &str) -> Verdict {
    let trusted = state.probers.get(prober).is_some_and(|p| p.alive && !p.sick);
    let voter = state.voters.get(&pair_key(check, prober)).filter(|_| trusted);
    voter.map_or(Verdict::Unknown, |v| v.voice())
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
