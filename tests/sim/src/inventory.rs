//! Where the probe "found" gets its targets: an inventory that grows and shrinks, loses much, is empty, or does not answer. The leader asks it,
//! as `coordinator/src/discovery` does: what it got is proposed when it is news.

use probity_core::discovery::is_news;
use probity_core::resource_key;
use probity_proto::v1::command::Op;
use probity_proto::v1::*;

use crate::member::{Request, Waiter, command};
use crate::rng::Rng;
use crate::world::{Event, World};

/// The probe that discovers.
pub(crate) const PROBE: &str = "found";
/// How often it is asked for.
const REFRESH_US: u64 = 1_000_000;
/// Targets that ever are.
const TARGETS: u64 = 8;

/// What an inventory answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    All,
    Nothing,
    Error,
}

/// The inventory.
#[derive(Debug)]
pub(crate) struct Inventory {
    targets: std::collections::BTreeSet<u64>,
    answers: Answers,
}

/// What the driver of a leader remembers between two looks.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    due: u64,
    generation: u64,
    pub(crate) under_way: bool,
}

impl Inventory {
    pub(crate) fn new() -> Inventory {
        Inventory { targets: (0..TARGETS - 2).collect(), answers: Answers::All }
    }

    /// It becomes another one, perhaps only for a while; what happened to it.
    pub(crate) fn disturb(&mut self, rng: &mut Rng) -> &'static str {
        let half = self.targets.len().div_ceil(2);
        match rng.below(6) {
            0 => {
                self.answers = Answers::Nothing;
                "inventory is empty"
            }
            1 => {
                self.answers = Answers::Error;
                "inventory does not answer"
            }
            2 if half > 1 => {
                self.targets = self.targets.iter().copied().skip(half / 2).take(half).collect();
                "inventory lost much"
            }
            3 if self.targets.len() > 3 => {
                self.targets.pop_first();
                "inventory lost a target"
            }
            _ => {
                self.targets.insert(rng.below(TARGETS));
                self.targets.insert(rng.below(TARGETS));
                "inventory grew"
            }
        }
    }

    pub(crate) fn mend(&mut self) {
        self.answers = Answers::All;
    }

    fn found(&self) -> (Vec<Target>, &'static str) {
        let target = |n: &u64| Target { key: format!("t{n}"), address: format!("10.0.1.{n}:1"), ..Target::default() };
        match self.answers {
            Answers::All => (self.targets.iter().map(target).collect(), ""),
            Answers::Nothing => (Vec::new(), ""),
            Answers::Error => (Vec::new(), "no answer within 20 s"),
        }
    }
}

/// A discovery of this probe.
pub(crate) fn discovery() -> Discovery {
    let http = HttpDiscovery { url: "http://inventory.example.com/".to_owned(), ..HttpDiscovery::default() };
    Discovery { source: Some(discovery::Source::Http(http)), refresh_us: REFRESH_US, key: "$(target.address)".to_owned(), max: 100, ..Discovery::default() }
}

impl World {
    /// A leader asks when it is time, at once after the probe has changed.
    pub(crate) fn ask_inventory(&mut self, m: usize, life: u64) {
        let mono = self.members[m].clock.mono_us(self.now);
        let Some(node) = &mut self.members[m].node else { return };
        let Some(probe) = node.replica.state().resources.get(&resource_key("Probe", "default", PROBE)) else { return };
        let changed = node.asked.generation != probe.generation;
        if node.asked.under_way || !changed && node.asked.due > mono {
            return;
        }
        node.asked = Asked { due: mono + REFRESH_US, generation: probe.generation, under_way: true };
        let (targets, error) = self.inventory.found();
        let op = DiscoverTargets {
            namespace: "default".to_owned(),
            probe: PROBE.to_owned(),
            generation: probe.generation,
            targets,
            error: error.to_owned(),
            note: String::new(),
        };
        let took = self.rng.hosts.skewed(1_000, 3_000_000);
        self.after(took, Event::Found { m, life, found: Box::new(op) });
    }

    pub(crate) fn member_found(&mut self, m: usize, life: u64, found: DiscoverTargets) {
        if self.members[m].life != life {
            return;
        }
        let Some(node) = &mut self.members[m].node else { return };
        if !is_news(node.replica.state(), &found) {
            node.asked.under_way = false;
            return;
        }
        self.request(m, Request::Propose(command(Op::DiscoverTargets(found)), Waiter::Found));
    }

    /// The revision of the set that waits for a person, as the leader shows it.
    pub(crate) fn held_targets(&self) -> Option<u64> {
        let node = self.members[self.leader()?].node.as_ref()?;
        let record = probity_core::discovery::of_probe(node.replica.state(), "default", PROBE)?;
        (record.held_since_us != 0).then_some(record.held_revision)
    }

    /// What of the inventory is not the probe's yet, at the end.
    pub(crate) fn not_found(&self, state: &probity_core::State) -> Option<String> {
        state.resources.get(&resource_key("Probe", "default", PROBE))?;
        let known = probity_core::discovery::of_probe(state, "default", PROBE).cloned().unwrap_or_default();
        let settled = known.failing_since_us == 0 && known.held_since_us == 0 && known.targets == self.inventory.found().0;
        (!settled).then(|| format!("the inventory has {:?}, known is {known:?}", self.inventory.targets))
    }
}
