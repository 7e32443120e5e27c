//! Placement: which probers run a check. Rendezvous hashing with a zone spread, in integers: every replica computes the
//! same, and a prober that comes or goes moves its own share only.

use std::collections::BTreeMap;
use std::hash::Hasher;

use probity_proto::v1::*;
use siphasher::sip::SipHasher13;

use crate::state::State;
use crate::{assign, fleet, verdict, voice};

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

/// How many probers a check wants.
fn wanted(placement: &Placement) -> usize {
    match placement {
        Placement { all: true, .. } => usize::MAX,
        Placement { count: 0, .. } => DEFAULT_COUNT,
        Placement { count, .. } => *count as usize,
    }
}

/// The probers that should run `check`, most wanted first: as many as there are, up to what the placement says.
pub fn choose(check: &str, placement: &Placement, candidates: &[&ProberRecord]) -> Vec<String> {
    let spread_by = if placement.spread_by.is_empty() { "zone" } else { &placement.spread_by };
    let mut ranked = candidates.to_vec();
    ranked.sort_by_cached_key(|p| (std::cmp::Reverse(score(check, &p.name)), p.name.clone()));
    // The best of every zone come first, then the second of every zone, ...
    let mut seen_in_zone: BTreeMap<&str, usize> = BTreeMap::new();
    let mut in_turn: Vec<(usize, usize, &str)> = Vec::with_capacity(ranked.len());
    for (rank, prober) in ranked.iter().enumerate() {
        let seen = seen_in_zone.entry(prober.labels.get(spread_by).map_or("", String::as_str)).or_default();
        in_turn.push((*seen, rank, &prober.name));
        *seen += 1;
    }
    in_turn.sort_unstable();
    in_turn.into_iter().take(wanted(placement)).map(|(_, _, name)| name.to_owned()).collect()
}

fn matches(selector: Option<&Selector>, labels: &BTreeMap<String, String>) -> bool {
    selector.is_none_or(|s| s.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v)))
}

/// Makes a check's assignments follow the fleet.
pub(crate) fn place(state: &mut State, check: &str) {
    let Some(record) = state.checks.get(check).cloned() else { return };
    let now = state.now();
    let open: Vec<(u64, String)> = assign::of_check(state, check).filter(|a| a.until_us == 0).map(|a| (a.id, a.prober.clone())).collect();
    let placed = placed(state, &record, &open, now);
    for (id, _) in open.iter().filter(|(_, p)| !placed.contains(p)) {
        assign::end(state, *id);
    }
    for prober in placed.iter().filter(|p| !open.iter().any(|(_, o)| o == *p)) {
        assign::start(state, &record, prober);
    }
    voice::drop_unassigned(state, check);
    verdict::judge(state, check, now, 0);
}

/// Who runs a check. Those who may; if there is none, those who wait to be trusted again; if nobody is there at all, those
/// who had it: they may be probing alone (rule R9), or will say that they were off.
fn placed(state: &State, check: &CheckRecord, open: &[(u64, String)], now: i64) -> Vec<String> {
    let placement = check.placement.clone().unwrap_or_default();
    let wanted = wanted(&placement);
    let fit = |may: &dyn Fn(&ProberRecord) -> bool| -> Vec<String> {
        let candidates: Vec<&ProberRecord> = state.probers.iter().filter(|p| may(p) && matches(placement.selector.as_ref(), &p.labels)).collect();
        choose(&check.check, &placement, &candidates)
    };
    let holds = |p: &ProberRecord| open.iter().any(|(_, name)| name == &p.name);
    let mut placed = fit(&|p| fleet::eligible(p, now));
    if placed.is_empty() {
        placed = fit(&|p| p.alive);
    }
    let nobody = placed.is_empty();
    if placed.len() < wanted {
        let absent = fit(&|p| !p.alive && holds(p) && (nobody || fleet::keeps(p, now)));
        placed.extend(absent.into_iter().take(wanted - placed.len()));
    }
    placed
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

    proptest::proptest! {
        /// Whatever the zones and the count: a leave costs a check at most the leaver, a join brings at most the new one, and a
        /// zone is used twice only when every other one with somebody left is used.
        #[test]
        fn a_join_or_leave_moves_only_its_share(zones in proptest::collection::vec(0..4usize, 2..16), count in 0..6u32, leaver: proptest::sample::Index) {
            let fleet: Vec<ProberRecord> = zones.iter().enumerate().map(|(i, z)| prober(&format!("p{i}"), ["a", "b", "c", "d"][*z])).collect();
            let all: Vec<&ProberRecord> = fleet.iter().collect();
            let gone = &fleet[leaver.index(fleet.len())].name;
            let rest: Vec<&ProberRecord> = fleet.iter().filter(|p| &p.name != gone).collect();
            let placement = Placement { count, ..Placement::default() };
            for n in 0..20 {
                let check = format!("default/c{n}");
                let (with, without) = (choose(&check, &placement, &all), choose(&check, &placement, &rest));
                proptest::prop_assert!(with.iter().filter(|p| *p != gone).all(|p| without.contains(p)));
                let new = without.iter().filter(|p| !with.contains(p)).count();
                proptest::prop_assert!(new <= usize::from(with.contains(gone)));
                let used = |zone: &str| fleet.iter().filter(|p| p.labels["zone"] == zone && with.contains(&p.name)).count();
                let free = |zone: &str| fleet.iter().any(|p| p.labels["zone"] == zone && !with.contains(&p.name));
                for zone in ["a", "b", "c", "d"].into_iter().filter(|z| free(z)) {
                    proptest::prop_assert!(["a", "b", "c", "d"].iter().all(|other| used(other) <= used(zone) + 1));
                }
            }
        }
    }

    #[test]
    fn checks_are_spread_over_the_fleet() {
        let fleet: Vec<ProberRecord> = (0..10).map(|i| prober(&format!("p{i}"), "a")).collect();
        let all: Vec<&ProberRecord> = fleet.iter().collect();
        let mut load: BTreeMap<String, usize> = BTreeMap::new();
        for n in 0..1_000 {
            for name in choose(&format!("default/c{n}"), &Placement::default(), &all) {
                *load.entry(name).or_default() += 1;
            }
        }
        assert!(load.len() == 10 && load.values().all(|n| (230..=370).contains(n)), "{load:?}");
    }
}
