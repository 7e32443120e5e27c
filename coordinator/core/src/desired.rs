//! What a prober should do: its assignments and its faults, and how that changed.
//!
//! A revision names one state of all desired sets. It is counted in the replicated state, so it means the same on every member,
//! and a prober may go on at another one from the revision it has. What changed since then comes from a log beside the state:
//! derived, bounded, never stored; where it does not reach back far enough the answer is the whole set.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use probity_proto::v1::*;
use prost::Message;

use crate::state::State;
use crate::{assign, checks, gameday, number_key};

/// The share of good runs that are traced, in parts per million.
pub const TRACE_PPM: u32 = 10_000;
/// Changes of one prober's assignments that are remembered: beyond, a prober that comes back is told the whole set, which is
/// about as long.
pub const CHANGES_KEPT: usize = 1_024;

/// What changed lately, by prober.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    /// What changed up to here nobody remembers.
    floor: u64,
    /// The newest change that concerns everybody: a new leader, a halt, a game day.
    everybody: u64,
    probers: BTreeMap<String, Changes>,
    /// Probers by their newest change.
    newest: BTreeSet<(u64, String)>,
}

#[derive(Debug, Clone, Default)]
struct Changes {
    floor: u64,
    newest: u64,
    /// (revision, assignment), oldest first.
    assignments: VecDeque<(u64, u64)>,
}

/// Whose desired set changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// Everybody's.
    Everybody,
    /// Theirs.
    These(Vec<String>),
}

impl Log {
    /// A log that begins at a revision: of a state that was loaded.
    pub(crate) fn from_revision(floor: u64) -> Log {
        Log { floor, everybody: floor, ..Log::default() }
    }

    fn note(&mut self, revision: u64, prober: &str, assignment: u64) {
        let changes = self.probers.entry(prober.to_owned()).or_default();
        self.newest.remove(&(changes.newest, prober.to_owned()));
        self.newest.insert((revision, prober.to_owned()));
        changes.newest = revision;
        changes.assignments.push_back((revision, assignment));
        if changes.assignments.len() > CHANGES_KEPT
            && let Some((dropped, _)) = changes.assignments.pop_front()
        {
            changes.floor = dropped;
        }
    }

    /// The assignments of a prober that changed after a revision, each once; none when that is not known any more.
    fn since(&self, prober: &str, revision: u64) -> Option<BTreeSet<u64>> {
        let changes = self.probers.get(prober);
        if revision < self.floor.max(changes.map_or(0, |c| c.floor)) {
            return None;
        }
        let newer = changes.into_iter().flat_map(|c| c.assignments.iter().rev().take_while(|(r, _)| *r > revision));
        Some(newer.map(|(_, id)| *id).collect())
    }
}

/// An assignment of a prober began, changed or went.
pub(crate) fn changed(state: &mut State, prober: &str, assignment: u64) {
    let meta = state.meta_mut();
    meta.desired_revision += 1;
    let revision = meta.desired_revision;
    state.desired.note(revision, prober, assignment);
}

/// Something that concerns everybody changed: the fence, a halt, faults.
pub(crate) fn everybody(state: &mut State) {
    let meta = state.meta_mut();
    meta.desired_revision += 1;
    state.desired.everybody = meta.desired_revision;
}

/// A game day began or ended: whoever runs a check of these probes links its trace, or no longer does.
pub(crate) fn traces_changed(state: &mut State, namespace: &str, probes: &BTreeSet<String>) {
    let pairs: Vec<(String, u64)> = probes
        .iter()
        .flat_map(|probe| checks::of_probe(state, namespace, probe))
        .flat_map(|check| assign::of_check(state, &check).map(|a| (a.prober.clone(), a.id)).collect::<Vec<_>>())
        .collect();
    for (prober, id) in pairs {
        changed(state, &prober, id);
    }
}

/// Whose desired sets changed after a revision.
pub fn touched_since(state: &State, revision: u64) -> Touched {
    let log = &state.desired;
    if log.everybody > revision || revision < log.floor || revision > state.meta().desired_revision {
        return Touched::Everybody;
    }
    Touched::These(log.newest.range((revision + 1, String::new())..).map(|(_, prober)| prober.clone()).collect())
}

/// The assignments of a prober that changed since the revision that it follows; none when it follows nothing (0), or when that is
/// not known.
fn changes(state: &State, prober: &str, revision: u64) -> Option<BTreeSet<u64>> {
    if revision == 0 || revision > state.meta().desired_revision { None } else { state.desired.since(prober, revision) }
}

/// Whether there is anything to tell a prober that follows `revision`.
pub fn is_news(state: &State, prober: &str, revision: u64) -> bool {
    changes(state, prober, revision).is_none_or(|c| !c.is_empty()) || state.desired.everybody > revision
}

/// What a prober that follows `revision` is to be told: what changed since, or the whole set where that is not known.
pub fn desired_since(state: &State, prober: &str, revision: u64, trace_ppm: u32) -> DesiredSet {
    let meta = state.meta();
    let mut set = DesiredSet { revision: meta.desired_revision, fence: meta.fence, halted: meta.halt.is_some(), ..DesiredSet::default() };
    set.lease_us = gameday::LEASE_US as u64;
    let Some(changed) = changes(state, prober, revision) else {
        (set.assignments, set.faults) = desired_set(state, prober, trace_ppm);
        return set;
    };
    set.base_revision = revision;
    let disturbed = !gameday::running(state).is_empty();
    for id in changed {
        match state.assignments.get(&number_key(id)) {
            Some(a) => set.assignments.push(assignment(state, a, trace_ppm, disturbed)),
            None => set.removed.push(id),
        }
    }
    set.faults = faults(state, prober);
    set
}

/// The assignments and faults of a prober, in a fixed order.
pub fn desired_set(state: &State, prober: &str, trace_ppm: u32) -> (Vec<AssignmentSpec>, Vec<FaultWish>) {
    let disturbed = !gameday::running(state).is_empty();
    let assignments = assign::of_prober(state, prober).map(|a| assignment(state, a, trace_ppm, disturbed)).collect();
    (assignments, faults(state, prober))
}

/// The faults that a prober should know of: few, always all of them.
fn faults(state: &State, prober: &str) -> Vec<FaultWish> {
    let fence = state.meta().fence;
    let of_prober = state.faults.iter().filter(|f| f.prober == prober && f.ended_at_us == 0);
    of_prober
        .map(|f| FaultWish {
            fault_id: f.id.clone(),
            fence: f.fence.max(fence),
            spec: f.spec.clone(),
            not_after_us: f.not_after_us,
            wanted: f.wanted,
            game_day: f.game_day.clone(),
        })
        .collect()
}

fn assignment(state: &State, a: &AssignmentRecord, trace_ppm: u32, disturbed: bool) -> AssignmentSpec {
    AssignmentSpec {
        id: a.id,
        check: a.check.clone(),
        generation: a.generation,
        spec: CheckSpec::decode(&a.spec[..]).ok(),
        interval_us: a.interval_us,
        phase_us: a.phase_us,
        from_us: a.from_us,
        until_us: a.until_us,
        next_n: a.next_n,
        thresholds_us: a.thresholds_us.clone(),
        game_day_trace: if disturbed { gameday::trace_of_check(state, &a.check) } else { String::new() },
        trace_ppm,
    }
}
