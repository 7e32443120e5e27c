//! Placement: which probers run a check. Rendezvous hashing with a zone spread, in integers: every replica computes the
//! same, and a prober that comes or goes moves its own share only.
//!
//! What a command costs follows what it moves, not what there is: a prober that leaves has its own checks placed again; for one that
//! comes, each check compares it with those it has, by numbers kept at hand, and only what it wins is placed again.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::ops::Bound;

use probity_proto::bugs::{self, Bug};
use probity_proto::v1::*;
use siphasher::sip::SipHasher13;

use crate::state::State;
use crate::{assign, fleet, verdict, voice};

/// How many probers run a check that does not say.
pub const DEFAULT_COUNT: usize = 3;
/// The label whose values a check is spread over, if it does not say.
const SPREAD_BY: &str = "zone";

/// How much a check wants a prober: the same everywhere and for ever.
pub fn score(check: &str, prober: &str) -> u64 {
    mix(hash(check), hash(prober))
}

fn hash(name: &str) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(name.as_bytes());
    hasher.finish()
}

/// The finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014) over both hashes.
fn mix(check: u64, prober: u64) -> u64 {
    let mut x = check ^ prober.rotate_left(32);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// How many probers a check wants.
fn wanted(placement: &Placement) -> usize {
    match placement {
        Placement { all: true, .. } => usize::MAX,
        Placement { count: 0, .. } => DEFAULT_COUNT,
        Placement { count, .. } => *count as usize,
    }
}

/// HTTP/3: a prober that knows nothing of it would ask by TCP, and call it good.
const HTTP3: &str = "probe/http3";
/// Capabilities that a check may need. What a prober of any age refuses by itself is not among them.
const NEEDED: [&str; 1] = [HTTP3];

/// What a prober must have announced to run a check.
pub(crate) fn needs(spec: &CheckSpec) -> Vec<String> {
    match spec.kind.as_ref().and_then(|k| k.kind.as_ref()) {
        Some(check_kind::Kind::Http(http)) if http.version() == HttpVersion::HttpVersion3 => vec![HTTP3.to_owned()],
        _ => Vec::new(),
    }
}

/// Which of [`NEEDED`] somebody announced.
pub(crate) fn able(capabilities: &[Capability]) -> Vec<&'static str> {
    NEEDED.into_iter().filter(|needed| capabilities.iter().any(|c| c.available && c.name == *needed)).collect()
}

fn spread_by(placement: &Placement) -> &str {
    if placement.spread_by.is_empty() { SPREAD_BY } else { &placement.spread_by }
}

/// A prober as placement sees it.
#[derive(Debug, Clone)]
pub struct Candidate {
    name: String,
    labels: BTreeMap<String, String>,
    able: Vec<&'static str>,
    hash: u64,
    /// Of its label [`SPREAD_BY`].
    zone: u64,
}

impl Candidate {
    /// Of a prober.
    pub fn of(prober: &ProberRecord) -> Candidate {
        let zone = hash(prober.labels.get(SPREAD_BY).map_or("", String::as_str));
        Candidate { name: prober.name.clone(), labels: prober.labels.clone(), able: able(&prober.capabilities), hash: hash(&prober.name), zone }
    }

    fn zone_by(&self, label: &str) -> u64 {
        if label == SPREAD_BY { self.zone } else { hash(self.labels.get(label).map_or("", String::as_str)) }
    }

    fn fits(&self, placement: &Placement) -> bool {
        selects(placement, &self.labels) && placement.needs.iter().all(|need| self.able.contains(&need.as_str()))
    }
}

/// One that a check may be given to: its zone, and how much it is wanted.
#[derive(Debug, Clone, Copy)]
struct Ranked<'a> {
    zone: u64,
    score: u64,
    name: &'a str,
}

/// The probers that should run `check`, most wanted first: as many as there are, up to what the placement says.
pub fn choose<'a>(check: &str, placement: &Placement, candidates: impl IntoIterator<Item = &'a Candidate>) -> Vec<String> {
    choose_ranked(check, placement, candidates).into_iter().map(|r| r.name.to_owned()).collect()
}

/// The best of every zone come first, then the second of every zone, ...
fn choose_ranked<'a>(check: &str, placement: &Placement, candidates: impl IntoIterator<Item = &'a Candidate>) -> Vec<Ranked<'a>> {
    let (count, label, check) = (wanted(placement), spread_by(placement), hash(check));
    // Of a zone no more can be chosen than are wanted at all. A fleet comes zone by zone, mostly.
    let mut zones: Vec<(u64, Vec<Ranked<'a>>)> = Vec::new();
    let mut at_of: BTreeMap<u64, usize> = BTreeMap::new();
    let mut at = 0;
    for candidate in candidates.into_iter().filter(|c| c.fits(placement)) {
        let new = Ranked { zone: candidate.zone_by(label), score: mix(check, candidate.hash), name: &candidate.name };
        if zones.get(at).is_none_or(|(zone, _)| *zone != new.zone) {
            at = *at_of.entry(new.zone).or_insert(zones.len());
            if at == zones.len() {
                zones.push((new.zone, Vec::new()));
            }
        }
        let best = &mut zones[at].1;
        if best.len() < count || best.last().is_some_and(|last| better(&new, last).is_lt()) {
            best.insert(best.partition_point(|b| better(b, &new).is_lt()), new);
            best.truncate(count);
        }
    }
    let mut in_turn: Vec<(usize, Ranked<'a>)> = zones.into_iter().flat_map(|(_, best)| best.into_iter().enumerate()).collect();
    in_turn.sort_unstable_by(|(seen, a), (other, b)| seen.cmp(other).then_with(|| better(a, b)));
    in_turn.into_iter().take(count).map(|(_, ranked)| ranked).collect()
}

/// Whether one comes before another.
fn better(a: &Ranked<'_>, b: &Ranked<'_>) -> std::cmp::Ordering {
    b.score.cmp(&a.score).then_with(|| a.name.cmp(b.name))
}

/// Why nobody can run what is to be placed so, for a person; `None` when somebody can, or could if he were there.
pub fn why_nobody(state: &State, placement: &Placement) -> Option<String> {
    let all_able = |p: &ProberRecord| placement.needs.is_empty() || placement.needs.iter().all(|need| able(&p.capabilities).contains(&need.as_str()));
    let (mut selected, mut fit) = (0, 0);
    for prober in state.probers.iter().filter(|p| selects(placement, &p.labels)) {
        selected += 1;
        fit += usize::from(all_able(prober));
    }
    match (selected, fit) {
        _ if state.probers.is_empty() => Some("there is no prober".to_owned()),
        (0, _) => {
            let labels: Vec<String> = placement.selector.iter().flat_map(|s| &s.match_labels).map(|(k, v)| format!("{k}={v}")).collect();
            Some(format!("no prober has the labels {}", labels.join(", ")))
        }
        (n, 0) => Some(format!("none of the {n} probers that it may run on has {}: upgrade them", placement.needs.join(", "))),
        _ => None,
    }
}

fn selects(placement: &Placement, labels: &BTreeMap<String, String>) -> bool {
    placement.selector.as_ref().is_none_or(|s| s.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v)))
}

/// The fleet at one moment: made once for all the checks that a command places.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    /// Who may be given checks.
    eligible: Vec<Candidate>,
    /// Who is there, but must stay for a while first.
    waiting: Vec<Candidate>,
}

impl Fleet {
    pub(crate) fn of(state: &State) -> Fleet {
        let now = state.now();
        let mut all = Fleet::default();
        for prober in state.probers.iter().filter(|p| p.alive) {
            let list = if fleet::eligible(prober, now) { &mut all.eligible } else { &mut all.waiting };
            list.push(Candidate::of(prober));
        }
        all.eligible.sort_by_key(|c| c.zone);
        all
    }

    /// How many may be given checks.
    pub(crate) fn len(&self) -> usize {
        self.eligible.len()
    }

    /// Those of `names` who may be given checks.
    pub(crate) fn among(&self, names: &[String]) -> Vec<&Candidate> {
        self.eligible.iter().filter(|c| names.binary_search(&c.name).is_ok()).collect()
    }
}

/// How a check was placed, in numbers: what a prober that comes is compared with. Derived, never stored; a check that has none
/// is placed in full.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    hash: u64,
    placement: Placement,
    /// (zone, score) of those that run it.
    chosen: Vec<(u64, u64)>,
}

impl Placed {
    /// Whether a prober that was not there would be chosen now.
    fn wants(&self, new: &Candidate) -> bool {
        if !new.fits(&self.placement) {
            return false;
        }
        let (zone, score) = (new.zone_by(spread_by(&self.placement)), mix(self.hash, new.hash));
        // Its place among those of its zone, and that of the last one of all, were it there.
        let seen_of = |zone: u64, score: u64, with_new: bool| self.chosen.iter().filter(|(z, s)| *z == zone && *s > score).count() + usize::from(with_new);
        let own = (seen_of(zone, score, false), u64::MAX - score);
        // Equal scores: let the full placement decide.
        self.chosen.iter().any(|(z, s)| own <= (seen_of(*z, *s, *z == zone && score > *s), u64::MAX - *s))
    }
}

/// Makes a check's assignments follow the fleet.
pub(crate) fn place(state: &mut State, fleet: &Fleet, check: &str) {
    let Some(record) = state.checks.get(check) else {
        state.placed.remove(check);
        return;
    };
    let placement = record.placement.clone().unwrap_or_default();
    let open: Vec<(u64, String)> = assign::of_check(state, check).filter(|a| a.until_us == 0).map(|a| (a.id, a.prober.clone())).collect();
    let (mut chosen, at_hand) = placed(state, fleet, check, &placement, &open);
    match at_hand {
        Some(chosen) => drop(state.placed.insert(check.to_owned(), Placed { hash: hash(check), placement, chosen })),
        None => drop(state.placed.remove(check)),
    }
    bugs::disorder(Bug::HashMapOrder, &mut chosen);
    let ended: Vec<u64> = open.iter().filter(|(_, p)| !chosen.contains(p)).map(|(id, _)| *id).collect();
    let started: Vec<&String> = chosen.iter().filter(|p| !open.iter().any(|(_, o)| o == *p)).collect();
    if ended.is_empty() && started.is_empty() {
        return;
    }
    let Some(record) = state.checks.get(check).cloned() else { return };
    for id in ended {
        assign::end(state, id);
    }
    for prober in started {
        assign::start(state, &record, prober);
    }
    voice::drop_unassigned(state, check);
    verdict::judge(state, check, state.now(), 0);
}

/// Who runs a check, and in numbers if it has all that it wants of those who may.
///
/// Those who may are the eligible, and the absent that are waited for with what they have. If there is none, those who wait to
/// be trusted again; if nobody is there at all, those who had it: they may be probing alone (rule R9), or will say that they were off.
fn placed(state: &State, fleet: &Fleet, check: &str, placement: &Placement, open: &[(u64, String)]) -> (Vec<String>, Option<Vec<(u64, u64)>>) {
    let now = state.now();
    let absent = |may: fn(&ProberRecord, i64) -> bool| -> Vec<Candidate> {
        let holders = open.iter().filter_map(|(_, name)| state.probers.get(name));
        holders.filter(|p| !p.alive && may(p, now)).map(Candidate::of).collect()
    };
    let kept = absent(fleet::keeps);
    let chosen = choose_ranked(check, placement, fleet.eligible.iter().chain(&kept));
    if !chosen.is_empty() {
        let full = chosen.len() >= wanted(placement);
        let at_hand = full.then(|| chosen.iter().map(|r| (r.zone, r.score)).collect());
        return (chosen.into_iter().map(|r| r.name.to_owned()).collect(), at_hand);
    }
    let waiting = choose(check, placement, &fleet.waiting);
    if waiting.is_empty() { (choose(check, placement, &absent(|_, _| true)), None) } else { (waiting, None) }
}

/// The numbers at hand of checks that are asked about in order: no search for each of them.
pub(crate) struct Numbers<'a>(std::iter::Peekable<std::collections::btree_map::Range<'a, String, Placed>>);

/// Of the checks after one.
pub(crate) fn numbers_after<'a>(state: &'a State, check: &str) -> Numbers<'a> {
    Numbers(state.placed.range::<str, _>((Bound::Excluded(check), Bound::Unbounded)).peekable())
}

impl Numbers<'_> {
    /// Whether a check may want one of those who come; no is certain.
    pub(crate) fn may_want(&mut self, check: &str, newcomers: &[&Candidate]) -> bool {
        while self.0.next_if(|(other, _)| other.as_str() < check).is_some() {}
        let numbers = self.0.next_if(|(other, _)| *other == check);
        numbers.is_none_or(|(_, placed)| newcomers.iter().any(|new| placed.wants(new)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prober(name: &str, zone: &str) -> Candidate {
        Candidate::of(&ProberRecord { name: name.to_owned(), labels: [("zone".to_owned(), zone.to_owned())].into(), ..ProberRecord::default() })
    }

    #[test]
    fn a_check_goes_to_who_can_run_it() {
        let old = prober("old", "a");
        let announced = |available| vec![Capability { name: HTTP3.to_owned(), available, ..Capability::default() }];
        let new = Candidate { able: able(&announced(true)), ..prober("new", "b") };
        let barred = Candidate { able: able(&announced(false)), ..prober("barred", "c") };
        let fleet = [old, new, barred];
        let spec = |version: HttpVersion| {
            let http = HttpCheck { version: version as i32, ..HttpCheck::default() };
            CheckSpec { kind: Some(CheckKind { kind: Some(check_kind::Kind::Http(http)) }), ..CheckSpec::default() }
        };
        let placement = |version| Placement { needs: needs(&spec(version)), ..Placement::default() };
        assert_eq!(choose("default/c", &placement(HttpVersion::HttpVersion3), &fleet), ["new"]);
        assert_eq!(choose("default/c", &placement(HttpVersion::Auto), &fleet).len(), 3);
    }

    #[test]
    fn zones_are_spread() {
        let fleet: Vec<Candidate> = (0..9).map(|i| prober(&format!("p{i}"), ["a", "b", "c"][i % 3])).collect();
        for n in 0..50 {
            let chosen = choose(&format!("default/c{n}"), &Placement::default(), &fleet);
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
            let fleet: Vec<Candidate> = zones.iter().enumerate().map(|(i, z)| prober(&format!("p{i}"), ["a", "b", "c", "d"][*z])).collect();
            let gone = &fleet[leaver.index(fleet.len())].name;
            let rest: Vec<&Candidate> = fleet.iter().filter(|p| &p.name != gone).collect();
            let placement = Placement { count, ..Placement::default() };
            for n in 0..20 {
                let check = format!("default/c{n}");
                let (with, without) = (choose(&check, &placement, &fleet), choose(&check, &placement, rest.iter().copied()));
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

    proptest::proptest! {
        /// The numbers at hand decide as the whole fleet would: a newcomer is wanted exactly if it is chosen.
        #[test]
        fn a_newcomer_is_wanted_exactly_if_it_is_chosen(zones in proptest::collection::vec(0..4usize, 3..16), count in 1..6u32, spread in proptest::bool::ANY) {
            let fleet: Vec<Candidate> = zones.iter().enumerate().map(|(i, z)| prober(&format!("p{i}"), ["a", "b", "c", "d"][*z])).collect();
            let (new, old) = fleet.split_last().expect("at least three");
            let placement = Placement { count, spread_by: if spread { String::new() } else { "rack".to_owned() }, ..Placement::default() };
            for n in 0..40 {
                let check = format!("default/c{n}");
                let chosen: Vec<(u64, u64)> = choose_ranked(&check, &placement, old).iter().map(|r| (r.zone, r.score)).collect();
                if chosen.len() == count as usize {
                    let placed = Placed { hash: hash(&check), placement: placement.clone(), chosen };
                    proptest::prop_assert_eq!(placed.wants(new), choose(&check, &placement, &fleet).contains(&new.name));
                }
            }
        }
    }

    #[test]
    fn checks_are_spread_over_the_fleet() {
        let fleet: Vec<Candidate> = (0..10).map(|i| prober(&format!("p{i}"), "a")).collect();
        let mut load: BTreeMap<String, usize> = BTreeMap::new();
        for n in 0..1_000 {
            for name in choose(&format!("default/c{n}"), &Placement::default(), &fleet) {
                *load.entry(name).or_default() += 1;
            }
        }
        assert!(load.len() == 10 && load.values().all(|n| (230..=370).contains(n)), "{load:?}");
    }
}
