//! Placement: which probers run a check. Rendezvous hashing with a zone spread, in integers: every replica computes the
//! same, and a prober that comes or goes moves its own share only.

use std::collections::BTreeMap;
use std::hash::Hasher;

use probity_proto::v1::*;
use siphasher::sip::SipHasher13;

use crate::state::State;
use crate::{assign, fleet, verdict};

/// How many probers run a check that does not say.
pub const DEFAULT_COUNT: usize = 3;

/// How much a check wants a prober: the same everywhere and for ever.
pub fn score(check: &str, prober: &str) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(check.as_bytes());
    hasher.write_u8(0);
    hasher.write(prober.as_bytes());
    hasher.finish()
}

/// The probers that should run `check`, by name.
pub fn choose(check: &str, placement: &Placement, candidates: &[&ProberRecord]) -> Vec<String> {
    let count = match placement {
        Placement { all: true, .. } => candidates.len(),
        Placement { count: 0, .. } => DEFAULT_COUNT.min(candidates.len()),
        Placement { count, .. } => (*count as usize).min(candidates.len()),
    };
    let spread_by = if placement.spread_by.is_empty() { "zone" } else { &placement.spread_by };
    let zone = |p: &ProberRecord| p.labels.get(spread_by).cloned().unwrap_or_default();
    let mut left: Vec<&&ProberRecord> = candidates.iter().collect();
    left.sort_by_key(|p| (std::cmp::Reverse(score(check, &p.name)), p.name.clone()));
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    let mut chosen = Vec::new();
    while chosen.len() < count {
        // The highest score among the zones used least; the order of `left` breaks ties.
        let Some(best) = left.iter().enumerate().min_by_key(|(i, p)| (used.get(&zone(p)).copied().unwrap_or(0), *i)).map(|(i, _)| i) else {
            break;
        };
        let prober = left.remove(best);
        *used.entry(zone(prober)).or_default() += 1;
        chosen.push(prober.name.clone());
    }
    chosen
}

fn matches(selector: Option<&Selector>, labels: &BTreeMap<String, String>) -> bool {
    selector.is_none_or(|s| s.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v)))
}

/// Makes a check's assignments follow the fleet.
pub(crate) fn place(state: &mut State, check: &str) {
    let Some(record) = state.checks.get(check).cloned() else { return };
    let placement = record.placement.clone().unwrap_or_default();
    let now = state.now();
    let candidates: Vec<&ProberRecord> =
        state.probers.iter().filter(|p| fleet::eligible(p, now) && matches(placement.selector.as_ref(), &p.labels)).collect();
    let open: Vec<(u64, String)> =
        assign::of_check(state, check).filter(|a| a.until_us == 0).map(|a| (a.id, a.prober.clone())).collect();
    // Nobody else could run it: it stays with those who had it, who may be probing alone (rule R9), or will say that they were off.
    if candidates.is_empty() {
        return;
    }
    let chosen = choose(check, &placement, &candidates);
    for (id, prober) in &open {
        if !chosen.contains(prober) {
            assign::end(state, *id);
        }
    }
    for prober in &chosen {
        if !open.iter().any(|(_, p)| p == prober) {
            assign::start(state, &record, prober);
        }
    }
    verdict::judge(state, check, now, 0);
}

/// The same for all checks.
pub(crate) fn place_all(state: &mut State) {
    for check in state.checks.keys() {
        place(state, &check);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prober(name: &str, zone: &str) -> ProberRecord {
        ProberRecord { name: name.to_owned(), labels: [("zone".to_owned(), zone.to_owned())].into(), ..ProberRecord::default() }
    }

    #[test]
    fn zones_are_spread() {
        let fleet: Vec<ProberRecord> = (0..9).map(|i| prober(&format!("p{i}"), ["a", "b", "c"][i % 3])).collect();
        let all: Vec<&ProberRecord> = fleet.iter().collect();
        for n in 0..50 {
            let chosen = choose(&format!("default/c{n}"), &Placement::default(), &all);
            let zones: std::collections::BTreeSet<_> =
                chosen.iter().filter_map(|name| fleet.iter().find(|p| &p.name == name)).map(|p| &p.labels["zone"]).collect();
            assert_eq!(zones.len(), 3, "{chosen:?}");
        }
    }

    #[test]
    fn a_leave_moves_only_its_share() {
        let fleet: Vec<ProberRecord> = (0..10).map(|i| prober(&format!("p{i}"), "a")).collect();
        let all: Vec<&ProberRecord> = fleet.iter().collect();
        let rest: Vec<&ProberRecord> = fleet.iter().skip(1).collect();
        for n in 0..200 {
            let check = format!("default/c{n}");
            let before = choose(&check, &Placement::default(), &all);
            let after = choose(&check, &Placement::default(), &rest);
            let kept = before.iter().filter(|p| after.contains(p)).count();
            let lost = usize::from(before.contains(&"p0".to_owned()));
            assert_eq!(kept, before.len() - lost);
        }
    }
}
