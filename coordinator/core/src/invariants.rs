//! Rules of the design that a state must fulfil, by their names: checked in tests, in the simulation, and counted in production.
//!
//! Only what can be seen in one state. That replicas agree (R3), that what was acknowledged stays (R2), that a host is as it
//! was (R5, R6) needs more than one look, and is checked where that is to be had.

use probity_proto::v1::*;

use crate::fleet::{DEPARTED_KEPT, RETIRED_SPOOLS_KEPT};
use crate::index::Index;
use crate::state::State;
use crate::table::{Key, Record, Table};
use crate::{access, account, assign, audit, checks, discovery, events, number_key, requests, voice};

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// R1, R4, ...
    pub rule: &'static str,
    /// What was seen.
    pub detail: String,
}

/// Looks at everything that can be seen in one state.
pub fn check(state: &State) -> Vec<Violation> {
    let mut patrol = Patrol::default();
    while !patrol.walk(state, usize::MAX) {}
    patrol.last_round.into_iter().map(|(_, violation)| violation).collect()
}

/// Violations that are kept of one round: enough to see that something is wrong, and what.
const FOUND_KEPT: usize = 100;

/// Looks at a state piece by piece while it goes on changing: what is looked at together belongs to one moment, and no look takes long.
#[derive(Debug, Default)]
pub struct Patrol {
    at: Place,
    found: Found,
    last_round: Vec<(Place, Violation)>,
}

/// What is looked at next: all that is few, then assignments and voters after a key. Of a violation: where it was seen.
#[derive(Debug, Default, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    #[default]
    Few,
    Assignments(Key),
    Voters(Key),
}

impl Patrol {
    /// Looks at about `rows` more rows; whether that was the end of a round.
    pub fn walk(&mut self, state: &State, rows: usize) -> bool {
        let found = &mut self.found;
        self.at = match std::mem::take(&mut self.at) {
            Place::Few => {
                few(state, found);
                Place::Assignments(Key::default())
            }
            Place::Assignments(after) => {
                match each(&state.assignments, after, rows, |a| found.at(|| Place::Assignments(a.key()), |found| assignment(state, a, found))) {
                    Some(last) => Place::Assignments(last),
                    None => Place::Voters(Key::default()),
                }
            }
            Place::Voters(after) => match each(&state.voters, after, rows, |v| found.at(|| Place::Voters(v.key()), |found| voter(state, v, found))) {
                Some(last) => Place::Voters(last),
                None => {
                    self.last_round = std::mem::take(&mut found.0);
                    return true;
                }
            },
        };
        false
    }

    /// What the newest look at each place found: this round so far, and of the last one what this one has not come to again.
    pub fn found(&self) -> impl Iterator<Item = &Violation> {
        let to_come = |(place, _): &&(Place, Violation)| self.at == Place::Few || *place > self.at;
        self.found.0.iter().chain(self.last_round.iter().filter(to_come)).map(|(_, violation)| violation)
    }
}

/// Visits up to `rows` records after a key; the last one's, unless that was the end.
fn each<R: Record>(table: &Table<R>, after: Key, rows: usize, mut look: impl FnMut(&R)) -> Option<Key> {
    let mut last = after;
    let mut left = rows;
    for record in table.after(&last) {
        look(record);
        left -= 1;
        if left == 0 {
            last = record.key();
            return Some(last);
        }
    }
    None
}

fn few(state: &State, found: &mut Found) {
    let total = account::total(state, state.now());
    found.unless(total.unexplained == 0, "R1", || format!("{} slots are unexplained", total.unexplained));
    spools(state, found);
    faults(state, found);
    bounds(state, found);
    derived(state, found);
}

#[derive(Debug, Default)]
struct Found(Vec<(Place, Violation)>);

impl Found {
    /// Looks at a place other than the few.
    fn at(&mut self, place: impl FnOnce() -> Place, look: impl FnOnce(&mut Found)) {
        let before = self.0.len();
        look(self);
        if self.0.len() > before {
            let place = place();
            self.0[before..].iter_mut().for_each(|found| found.0 = place.clone());
        }
    }

    fn unless(&mut self, holds: bool, rule: &'static str, detail: impl FnOnce() -> String) {
        if !holds && self.0.len() < FOUND_KEPT {
            self.0.push((Place::Few, Violation { rule, detail: detail() }));
        }
    }

    fn at_most(&mut self, what: &str, is: usize, bound: usize) {
        self.unless(is <= bound, "R12", || format!("{is} {what}, the bound is {bound}"));
    }
}

fn assignment(state: &State, a: &AssignmentRecord, found: &mut Found) {
    // R1: every slot is accounted for, once.
    let known = a.good + a.bad + a.missed.values().sum::<u64>();
    found.unless(a.next_n >= a.first_n && known == a.next_n - a.first_n, "R1", || {
        format!("assignment {}: {known} outcomes for slots {} to {}", a.id, a.first_n, a.next_n)
    });
    found.unless(a.next_n <= assign::last_end_n(a), "R1", || format!("assignment {}: slots after its end are counted", a.id));
    let reasons: u64 = a.bad_by_reason.values().sum();
    found.unless(reasons == a.bad, "R1", || format!("assignment {}: {} bad, by reason {reasons}", a.id, a.bad));
    found.unless(a.until_us == 0 || a.until_us >= a.from_us, "R1", || format!("assignment {} ends before it begins", a.id));
    // R1: nobody runs a check twice, or one that is no more, or an old generation of it.
    if a.until_us == 0 {
        let open = assign::of_check(state, &a.check).filter(|b| b.until_us == 0 && b.prober == a.prober).count();
        found.unless(open == 1, "R1", || format!("{open} open assignments of {} to {}", a.check, a.prober));
        let generation = state.checks.get(&a.check).map(|c| c.generation);
        found.unless(generation == Some(a.generation), "R1", || {
            format!("open assignment {} of {} at generation {}, the check is at {generation:?}", a.id, a.check, a.generation)
        });
        found.unless(state.probers.get(&a.prober).is_some(), "R1", || format!("assignment {} to nobody", a.id));
    }
    // R3: with the sizes that `derived` compares, the index is what a restart would derive.
    found.unless(state.index.holds(a), "R3", || format!("assignment {} is not where the index says", a.id));
    let at_its_key = state.assignments.get(&number_key(a.id)).is_some_and(|same| same.id == a.id);
    found.unless(at_its_key, "R3", || format!("assignment {} is not at its key", a.id));
}

fn voter(state: &State, v: &VoterRecord, found: &mut Found) {
    let runs = assign::of_check(state, &v.check).any(|a| a.until_us == 0 && a.prober == v.prober);
    found.unless(runs, "R12", || format!("{} still votes on {}", v.prober, v.check));
    let recent: usize = v.recent.iter().map(|r| r.count as usize).sum();
    found.at_most("recent outcomes", recent, voice::RECENT_KEPT as usize);
    found.at_most("details", v.details.len(), voice::DETAILS_KEPT);
}

/// R2: a retired spool never comes back.
fn spools(state: &State, found: &mut Found) {
    for p in state.probers.iter() {
        found.unless(!p.retired_spools.contains(&p.spool_id), "R2", || format!("the spool of {} is a retired one", p.name));
    }
}

/// R4 and R5: what ended is not wanted, and nothing is wanted after its game day, in a halt, or without a fence and an end.
fn faults(state: &State, found: &mut Found) {
    for fault in state.faults.iter().filter(|f| f.wanted) {
        let id = &fault.id;
        found.unless(fault.ended_at_us == 0, "R4", || format!("fault {id} ended and is wanted"));
        found.unless(fault.fence <= state.meta().fence, "R4", || format!("fault {id} has a fence from the future"));
        found.unless(fault.not_after_us > 0, "R4", || format!("fault {id} has no end"));
        let day_runs = state.game_days.get(&fault.game_day).is_some_and(|d| d.ended_at_us == 0);
        found.unless(day_runs, "R5", || format!("fault {id} is wanted after its game day"));
        found.unless(state.meta().halt.is_none(), "R5", || format!("fault {id} is wanted in a halt"));
    }
}

/// R12: nothing is unbounded.
fn bounds(state: &State, found: &mut Found) {
    found.at_most("events", state.events.len(), events::EVENTS_KEPT);
    found.at_most("audit records", state.audit.len(), audit::AUDIT_KEPT as usize);
    found.at_most("answered requests", state.requests.len(), requests::REQUESTS_KEPT);
    found.at_most("tokens", state.tokens.len(), access::TOKENS_KEPT);
    found.at_most("revocations", state.revocations.len(), access::REVOCATIONS_KEPT);
    found.at_most("departed probers", state.departed.len(), DEPARTED_KEPT);
    found.at_most("checks without their target", state.retired_checks.len(), checks::RETIRED_KEPT);
    for d in state.discoveries.iter() {
        found.at_most("discovered targets", d.targets.len().max(d.held.len()), discovery::TARGETS_MAX);
    }
    for p in state.probers.iter() {
        found.at_most("retired spools", p.retired_spools.len(), RETIRED_SPOOLS_KEPT);
    }
}

/// R3: what is derived from records is what a restart would derive. Of assignments only how many there are: each is looked at by itself.
fn derived(state: &State, found: &mut Found) {
    let mut index = Index::default();
    state.probers.iter().for_each(|p| index.add_prober(p));
    state.requests.iter().for_each(|r| index.add_request(r));
    state.ledgers.iter().for_each(|l| index.add_ledger(l));
    state.resources.iter().for_each(|r| index.add_resource(r));
    found.unless(state.index.same_but_assignments(&index), "R3", || "an index differs from its table".to_owned());
    let sizes = state.index.assignments();
    found.unless(sizes == [state.assignments.len(); 3], "R3", || format!("{} assignments, {sizes:?} in the indexes", state.assignments.len()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(patrol: &Patrol) -> usize {
        patrol.found().count()
    }

    #[test]
    fn a_violation_that_goes_on_is_counted_once_and_one_that_is_over_not_again() {
        let mut state = State::new();
        // Each votes on a check that nobody assigned to it.
        for prober in ["p1", "p2", "p3"] {
            state.voters.put(VoterRecord { check: "default/c".to_owned(), prober: prober.to_owned(), ..VoterRecord::default() });
        }
        assert_eq!(check(&state).len(), 3);
        let mut patrol = Patrol::default();
        while !patrol.walk(&state, 1) {}
        assert_eq!(count(&patrol), 3);
        // At each moment of the next rounds, too.
        for _ in 0..20 {
            patrol.walk(&state, 1);
            assert_eq!(count(&patrol), 3);
        }
        while !patrol.walk(&state, 1) {}
        let first = state.voters.iter().next().expect("three").key();
        state.voters.remove(&first);
        assert_eq!(count(&patrol), 3, "it was not looked at again yet");
        while !patrol.walk(&state, 1) {}
        assert_eq!(count(&patrol), 2);
    }
}
