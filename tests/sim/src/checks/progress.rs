//! After everything is healed the cluster must come to its end: one leader, everybody on the same state, nothing owed. Then the
//! books are closed.

use super::rows::{Excuses, ledger_differs, unexplained_misses};
use super::{Checks, checksum};
use crate::plan::Fault;
use crate::world::{Event, Phase, World};

/// How often the demands are looked at.
const LOOK_US: u64 = 500_000;
/// Rows that may be under way in a healthy fleet.
const ROWS_UNDER_WAY: u64 = 8;

/// How far the waiting is.
#[derive(Debug, Default)]
pub(crate) struct Wait {
    until: u64,
    /// Everybody must get here.
    applied: u64,
}

impl World {
    pub(crate) fn progress_turn(&mut self) {
        if self.phase == Phase::Chaos {
            self.phase = Phase::Heal;
            self.checks.progress.until = self.now + self.plan.heal_us;
            self.heal();
            for c in 0..self.clients.len() {
                self.clients[c].served = false;
                if c == 0 && self.plan.halt_at_the_end {
                    self.clients[c].script.push_back(crate::client::Ask::Halt);
                }
            }
            return self.after(LOOK_US, Event::Progress);
        }
        match self.unmet() {
            None => self.close_the_books(),
            Some(demand) if self.now > self.checks.progress.until => self.violate("progress", demand),
            Some(_) => self.after(LOOK_US, Event::Progress),
        }
    }

    /// What is not as it should be yet.
    fn unmet(&mut self) -> Option<String> {
        let Some(leader) = self.leader() else {
            let seen = |member: &crate::member::Member| match &member.node {
                Some(node) => format!("{:?}, its clock is a quorum's: {}", node.replica.status(), node.replica.clocks_agree()),
                None => format!("not running (gone {}, damaged {})", member.gone, member.damaged),
            };
            let members: Vec<String> = self.members.iter().map(seen).collect();
            return Some(format!("nobody leads: {}", members.join("; ")));
        };
        let applied = std::mem::take(&mut self.checks.progress.applied);
        let node = self.members[leader].node.as_ref()?;
        let state = node.replica.state();
        self.checks.progress.applied = node.replica.status().applied;
        if applied == 0 {
            return Some("not looked at yet".to_owned());
        }
        if let Some(change) = self.change {
            let ids: Vec<u64> = self.members.iter().map(|member| member.id).collect();
            let seen = self.members.get(change.host()).and_then(|member| member.node.as_ref()).map(|n| n.replica.status());
            let group = self.group().map(|(_, status)| status);
            return Some(format!("a change of members is under way: {change:?}, hosts {ids:?}, the leader sees {group:?}, the member {seen:?}"));
        }
        for (m, member) in self.members.iter().enumerate().filter(|(_, member)| !member.gone) {
            let at = member.node.as_ref().map(|n| n.replica.status().applied);
            if at.is_none_or(|at| at < applied) {
                return Some(format!("member {m} is at {at:?}, the leader at {applied}"));
            }
        }
        if let Some(c) = self.clients.iter().position(|c| !c.served) {
            return Some(format!("client {c} is not served"));
        }
        for (p, prober) in self.probers.iter().enumerate() {
            let Some(process) = &prober.process else { return Some(format!("prober {p} is not there")) };
            let rows = process.session.spooled().0;
            let alive = state.probers.get(&prober.name).is_some_and(|r| r.alive);
            if !process.welcomed || !alive || rows > ROWS_UNDER_WAY {
                return Some(format!("prober {p}: connected {}, alive {alive}, {rows} rows owed", process.welcomed));
            }
            if process.engine.disturbs() {
                return Some(format!("prober {p} holds a fault"));
            }
        }
        if let Some(day) = probity_core::gameday::running(state).first() {
            return Some(format!("game day {day} goes on"));
        }
        if let Some(detail) = self.not_found(state) {
            return Some(detail);
        }
        if let Some(row) = state.outbox.iter().find(|r| r.delivered_revision != r.revision) {
            return Some(format!("{} is not told of {}", row.receiver, row.episode));
        }
        None
    }

    /// All demands are met: what was promised must be there.
    fn close_the_books(&mut self) {
        self.phase = Phase::Done;
        let excuses = Excuses {
            probers_stopped: self.probers.iter().any(|p| p.starts > 1),
            clocks_set: self.plan.has(Fault::ClockJump),
            spools_lost: self.probers.iter().any(|p| p.wiped > 0),
            overslept_max: self.probers.iter().map(|p| p.overslept_max).sum(),
        };
        let Some(leader) = self.leader() else { return };
        let Some(node) = &self.members[leader].node else { return };
        let state = node.replica.state();
        let checks: &Checks = &self.checks;
        let unlinearizable = checks.history.judge();
        let found = [
            ("R2", checks.lost_change()),
            ("R2", checks.done_twice(state)),
            ("R2", checks.rows.lost(state)),
            ("R2", checks.rows.counted_once(state)),
            ("R4", checks.untold(state)),
            ("R9", unexplained_misses(state, excuses)),
            ("R10", ledger_differs(state, "steady")),
            ("R10", ledger_differs(state, crate::inventory::PROBE)),
            ("linearizable", unlinearizable.0.map(|key| format!("no order explains the history of {key:?}"))),
        ];
        let mut at: std::collections::BTreeMap<u64, u32> = std::collections::BTreeMap::new();
        let mut differ = None;
        for (m, node) in self.members.iter().enumerate().filter_map(|(m, member)| Some((m, member.node.as_ref()?))) {
            let (applied, sum) = (node.replica.status().applied, checksum(node.replica.state()));
            if *at.entry(applied).or_insert(sum) != sum {
                differ = Some(format!("at index {applied} the state of member {m} is another one than that of the others"));
            }
        }
        let invariants = probity_core::invariants::check(state).into_iter().map(|v| (v.rule, Some(v.detail)));
        let all: Vec<(&'static str, Option<String>)> = found.into_iter().chain([("R3", differ)]).chain(invariants).collect();
        self.counts.add_n("key undecided", unlinearizable.1);
        if let Some((rule, Some(detail))) = all.into_iter().find(|(_, detail)| detail.is_some()) {
            self.violate(rule, detail);
        }
    }
}
