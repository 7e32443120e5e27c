//! Indexes over the tables: derived, never stored, never part of the hash. They keep the cost of a command apart from the
//! size of the state.
//!
//! Whoever changes a record that stands in one goes through the function beside it: [`crate::assign::update`],
//! [`crate::fleet::put`], [`crate::requests::remember`], [`crate::slo::ledger::update`], [`crate::resources`].

use std::collections::{BTreeMap, BTreeSet};

use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;

use crate::slo::ledger;
use crate::{Key, Record, account, fleet};

/// Where to find things.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) by_check: BTreeMap<String, BTreeSet<u64>>,
    pub(crate) by_prober: BTreeMap<String, BTreeSet<u64>>,
    /// Assignments by when they are to be looked at, if no row comes before.
    pub(crate) attention: BTreeSet<(i64, u64)>,
    /// Probers by the moments at which time alone changes what they may run.
    pub(crate) turns: BTreeSet<(i64, String)>,
    /// Answered requests, oldest first.
    pub(crate) requests: BTreeSet<(i64, Key)>,
    /// Ledgers by when their SLO is to be judged, or forgotten.
    pub(crate) judge: BTreeSet<(i64, Key)>,
    /// Names of the SLOs on a probe, both with their namespace.
    pub(crate) slos_of_probe: BTreeMap<(String, String), BTreeSet<String>>,
}

impl Index {
    /// Adds an assignment of the table.
    pub(crate) fn add(&mut self, a: &AssignmentRecord) {
        self.by_check.entry(a.check.clone()).or_default().insert(a.id);
        self.by_prober.entry(a.prober.clone()).or_default().insert(a.id);
        self.attention.insert((account::attention_at(a), a.id));
    }

    /// Removes it again.
    pub(crate) fn remove(&mut self, a: &AssignmentRecord) {
        for (map, key) in [(&mut self.by_check, &a.check), (&mut self.by_prober, &a.prober)] {
            if let Some(ids) = map.get_mut(key) {
                ids.remove(&a.id);
                if ids.is_empty() {
                    map.remove(key);
                }
            }
        }
        self.attention.remove(&(account::attention_at(a), a.id));
    }

    /// Whether an assignment of the table stands where it belongs.
    pub(crate) fn holds(&self, a: &AssignmentRecord) -> bool {
        let listed = |map: &BTreeMap<String, BTreeSet<u64>>, key: &str| map.get(key).is_some_and(|ids| ids.contains(&a.id));
        listed(&self.by_check, &a.check) && listed(&self.by_prober, &a.prober) && self.attention.contains(&(account::attention_at(a), a.id))
    }

    /// How many assignments stand in each of their indexes.
    pub(crate) fn assignments(&self) -> [usize; 3] {
        let listed = |map: &BTreeMap<String, BTreeSet<u64>>| map.values().map(BTreeSet::len).sum();
        [listed(&self.by_check), listed(&self.by_prober), self.attention.len()]
    }

    /// Whether all but the indexes of assignments are equal.
    pub(crate) fn same_but_assignments(&self, other: &Index) -> bool {
        // Every field is named: a new one has to be thought of.
        let Index { by_check: _, by_prober: _, attention: _, turns, requests, judge, slos_of_probe } = self;
        (turns, requests, judge, slos_of_probe) == (&other.turns, &other.requests, &other.judge, &other.slos_of_probe)
    }

    /// Adds a prober of the table.
    pub(crate) fn add_prober(&mut self, prober: &ProberRecord) {
        self.turns.extend(turns(prober));
    }

    /// Removes it again.
    pub(crate) fn remove_prober(&mut self, prober: &ProberRecord) {
        for turn in turns(prober) {
            self.turns.remove(&turn);
        }
    }

    /// Adds a ledger of the table.
    pub(crate) fn add_ledger(&mut self, ledger: &LedgerRecord) {
        self.judge.insert((ledger::due_at(ledger), ledger.key()));
    }

    /// Removes it again.
    pub(crate) fn remove_ledger(&mut self, ledger: &LedgerRecord) {
        self.judge.remove(&(ledger::due_at(ledger), ledger.key()));
    }

    /// Adds a resource of the table.
    pub(crate) fn add_resource(&mut self, resource: &Resource) {
        if let Some(Spec::Slo(slo)) = &resource.spec {
            self.slos_of_probe.entry((resource.namespace.clone(), slo.probe.clone())).or_default().insert(resource.name.clone());
        }
    }

    /// Removes it again.
    pub(crate) fn remove_resource(&mut self, resource: &Resource) {
        let Some(Spec::Slo(slo)) = &resource.spec else { return };
        let key = (resource.namespace.clone(), slo.probe.clone());
        if let Some(names) = self.slos_of_probe.get_mut(&key) {
            names.remove(&resource.name);
            if names.is_empty() {
                self.slos_of_probe.remove(&key);
            }
        }
    }

    /// Adds an answered request of the table.
    pub(crate) fn add_request(&mut self, request: &RequestRecord) {
        self.requests.insert((request.at_us, request.key()));
    }
}

fn turns(prober: &ProberRecord) -> impl Iterator<Item = (i64, String)> {
    let name = prober.name.clone();
    fleet::turns(prober).map(move |at| (at, name.clone()))
}
