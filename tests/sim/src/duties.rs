//! The leader's duties outside the log: who fell silent, and what receivers must be told. Mirrors `coordinator/src/leader.rs`
//! and `effects.rs`.

use probity_core::slo::outbox;
use probity_proto::v1::command::Op;
use probity_proto::v1::*;

use crate::member::{Request, Waiter, command};
use crate::world::{Event, World};

/// How often duties are looked at.
const LOOK_EVERY_US: u64 = 200_000;
/// Silent for this long, and its checks move.
const SILENT_US: u64 = 3_000_000;

/// A notification on its way.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) row: OutboxRecord,
    arrives: bool,
}

impl World {
    pub(crate) fn member_duties(&mut self, m: usize, life: u64) {
        if self.members[m].life != life {
            return;
        }
        self.after(LOOK_EVERY_US, Event::Duties { m, life });
        if self.members[m].node.as_ref().is_some_and(|n| n.leading) {
            self.silent(m);
            self.announce(m);
            self.deliver_due(m, life);
            self.ask_inventory(m, life);
        }
    }

    /// Departures go in one command: their checks move at once.
    fn silent(&mut self, m: usize) {
        let mono = self.members[m].clock.mono_us(self.now);
        let unheard = self.unheard(m);
        let Some(node) = &mut self.members[m].node else { return };
        // Their heartbeats wait behind what is not taken here.
        for name in unheard {
            node.heard.entry(name).and_modify(|at| *at = mono);
        }
        if node.left_under_way {
            return;
        }
        let last = |name: &str| node.heard.get(name).copied().unwrap_or(0).max(node.grace_from);
        let alive = node.replica.state().probers.iter().filter(|p| p.alive);
        let left: Vec<String> = alive.filter(|p| mono.saturating_sub(last(&p.name)) > SILENT_US).map(|p| p.name.clone()).collect();
        if left.is_empty() {
            return;
        }
        node.left_under_way = true;
        self.counts.add("prober declared silent");
        let op = Op::FleetChange(FleetChange { left, ..FleetChange::default() });
        self.request(m, Request::Propose(command(op), Waiter::Left));
    }

    fn deliver_due(&mut self, m: usize, life: u64) {
        let now_us = self.cluster_us(m);
        let Some(node) = &mut self.members[m].node else { return };
        let due: Vec<OutboxRecord> = node.replica.state().outbox.iter().filter(|row| outbox::due(row, now_us)).cloned().collect();
        for row in due {
            let key = (row.episode.clone(), row.receiver.clone(), row.revision);
            let fresh = self.members[m].node.as_mut().is_some_and(|n| n.deliveries.insert(key));
            if fresh {
                let arrives = self.phase != crate::world::Phase::Chaos || self.rng.hosts.percent(75);
                let took = self.rng.hosts.skewed(1_000, 2_000_000);
                if arrives {
                    self.checks.delivered(&row, self.now);
                    self.counts.add("notification delivered");
                } else {
                    self.counts.add("notification lost");
                }
                self.after(took, Event::Delivered { m, life, delivery: Box::new(Delivery { row, arrives }) });
            }
        }
    }

    /// What came of it is committed; should that fail, it is told again.
    pub(crate) fn member_delivered(&mut self, m: usize, life: u64, delivery: Delivery) {
        if self.members[m].life != life {
            return;
        }
        let at_us = self.cluster_us(m);
        let Delivery { row, arrives } = delivery;
        let done = EffectDone {
            episode: row.episode.clone(),
            receiver: row.receiver.clone(),
            revision: row.revision,
            delivered: arrives,
            status: if arrives { 200 } else { 503 },
            at_us,
            next_at_us: if arrives { 0 } else { at_us + (1_000_000 << row.attempts.min(3)) },
            ..EffectDone::default()
        };
        let key = (row.episode, row.receiver, row.revision);
        self.request(m, Request::Propose(command(Op::EffectsDone(EffectsDone { done: vec![done] })), Waiter::Effect { key }));
    }
}
