//! Which faults may live on this host: only wishes of the newest fence, never an id a second time, never past `notAfter`,
//! none under a halt (rules R4, R5). The engine enforces the times by itself; this decides what it is told.
//!
//! An id is on the disk before the engine hears of it: whatever happens in between, after a restart it does not begin again. Only a
//! beginning waits for the disk, and its times run on meanwhile; an end never does.

use std::collections::{BTreeMap, BTreeSet};

use probity_proto::bugs::{self, Bug};
use probity_proto::v1::*;

/// What the engine should do.
#[derive(Debug, Clone, PartialEq)]
pub enum FaultAction {
    /// Hold a fault.
    Start {
        /// Its id.
        fault_id: String,
        /// What to do.
        spec: FaultSpec,
        /// It ends after this, unless renewed.
        lease_us: u64,
        /// It ends after this.
        not_after_us: u64,
    },
    /// Hold it this much longer.
    Renew {
        /// Its id.
        fault_id: String,
        /// From now.
        lease_us: u64,
    },
    /// End it.
    End {
        /// Its id.
        fault_id: String,
        /// Why, for the report.
        reason: String,
    },
}

/// A fault that is to begin once its id is on the disk.
#[derive(Debug)]
struct Held {
    fault_id: String,
    spec: FaultSpec,
    lease_us: u64,
    /// In cluster time: since when its lease runs, and `notAfter`.
    leased_at_us: i64,
    not_after_us: i64,
}

/// Faults of a prober.
#[derive(Debug)]
pub struct FaultBook {
    fence: u64,
    clock_error_us: u64,
    /// Started, not ended: notAfter in cluster time.
    active: BTreeMap<String, i64>,
    /// Begun or ended once: never to begin again.
    spent: BTreeSet<String>,
    newly_spent: Vec<String>,
    /// Spent by an earlier process, of which this one has said nothing yet.
    of_before: BTreeSet<String>,
    actions: Vec<FaultAction>,
    held: Vec<Held>,
    /// Not acknowledged yet, oldest first.
    reports: Vec<FaultReport>,
    sent: usize,
}

impl FaultBook {
    pub(crate) fn new(fence: u64, spent: Vec<String>) -> FaultBook {
        FaultBook {
            fence,
            clock_error_us: 0,
            active: BTreeMap::new(),
            of_before: spent.iter().cloned().collect(),
            spent: spent.into_iter().collect(),
            newly_spent: Vec::new(),
            actions: Vec::new(),
            held: Vec::new(),
            reports: Vec::new(),
            sent: 0,
        }
    }

    /// The uncertainty that reports carry.
    pub fn set_clock_error(&mut self, error_us: u64) {
        self.clock_error_us = error_us;
    }

    pub(crate) fn clock_error_us(&self) -> u64 {
        self.clock_error_us
    }

    pub(crate) fn on_connected(&mut self) {
        self.sent = 0;
    }

    /// Whether a command of this fence is still to be obeyed.
    pub(crate) fn accept_fence(&mut self, fence: u64) -> bool {
        if fence < self.fence {
            return false;
        }
        self.fence = fence;
        true
    }

    /// Fences of another cluster mean nothing here, and neither does what it wanted.
    pub(crate) fn on_other_cluster(&mut self) {
        self.fence = 0;
        for held in std::mem::take(&mut self.held) {
            self.active.remove(&held.fault_id);
        }
        for fault_id in self.active.keys().cloned() {
            self.actions.push(FaultAction::End { fault_id, reason: "the prober joined another cluster".to_owned() });
        }
        self.reports.clear();
        self.sent = 0;
    }

    pub(crate) fn on_desired(&mut self, wishes: Vec<FaultWish>, halted: bool, lease_us: u64, now_us: i64) {
        let wanted: BTreeMap<&str, &FaultWish> = wishes.iter().filter(|w| w.wanted && !halted).map(|w| (w.fault_id.as_str(), w)).collect();
        let reason = if halted { "halted" } else { "asked to end" };
        let over: Vec<String> = self.active.keys().filter(|id| !wanted.contains_key(id.as_str())).cloned().collect();
        for fault_id in over {
            self.end(fault_id, reason, now_us);
        }
        for wish in &wishes {
            if self.spent.contains(&wish.fault_id) {
                self.own_up(wish, now_us);
                continue;
            }
            let may = wish.wanted && !halted && wish.fence >= self.fence && wish.not_after_us > now_us;
            match (&wish.spec, may) {
                (Some(spec), true) => {
                    self.active.insert(wish.fault_id.clone(), wish.not_after_us);
                    self.spend(&wish.fault_id);
                    let (fault_id, spec, not_after_us) = (wish.fault_id.clone(), spec.clone(), wish.not_after_us);
                    self.held.push(Held { fault_id, spec, lease_us, leased_at_us: now_us, not_after_us });
                }
                // Never started here, and never will be: say so once, so that nobody waits.
                _ => self.ended_with(&wish.fault_id, FaultState::Undone, "never started here".to_owned(), now_us, UndoClass::Unspecified),
            }
        }
    }

    /// The leader still wants what it wanted: leases go on. A halt ends all.
    pub(crate) fn on_heartbeat(&mut self, reply: &HeartbeatReply, now_us: i64) {
        if !self.accept_fence(reply.fence) {
            return;
        }
        for fault_id in self.active.keys().cloned().collect::<Vec<_>>() {
            if reply.halted {
                self.end(fault_id, "halted", now_us);
            } else if let Some(held) = self.held.iter_mut().find(|h| h.fault_id == fault_id) {
                (held.lease_us, held.leased_at_us) = (reply.lease_us, now_us);
            } else {
                self.actions.push(FaultAction::Renew { fault_id, lease_us: reply.lease_us });
            }
        }
    }

    /// Ends what the engine holds; what it was not told of yet never begins.
    fn end(&mut self, fault_id: String, reason: &str, now_us: i64) {
        let held = self.held.len();
        self.held.retain(|h| h.fault_id != fault_id);
        if self.held.len() < held {
            self.ended_with(&fault_id, FaultState::Undone, format!("never started here: {reason}"), now_us, UndoClass::Unspecified);
        } else {
            self.actions.push(FaultAction::End { fault_id, reason: reason.to_owned() });
        }
    }

    /// The engine says what happened.
    pub fn on_event(&mut self, fault_id: &str, state: FaultState, detail: String, undo: UndoClass, now_us: i64) {
        match state {
            FaultState::Undone | FaultState::Refused | FaultState::Unknown => self.ended_with(fault_id, state, detail, now_us, undo),
            _ => self.report(fault_id, state, detail, now_us, undo),
        }
    }

    fn spend(&mut self, fault_id: &str) {
        if self.spent.insert(fault_id.to_owned()) && !bugs::on(Bug::EndedIdForgotten) {
            self.newly_spent.push(fault_id.to_owned());
        }
    }

    /// A fault that the cluster waits for, that an earlier process had, and of whose end nothing is known here: its report may be lost, or
    /// it never came to the engine. What the engine finds in its journal it says by itself.
    fn own_up(&mut self, wish: &FaultWish, now_us: i64) {
        if self.of_before.remove(&wish.fault_id) {
            let detail = "this prober was started anew meanwhile: it is over, and how it ended is not known";
            self.report(&wish.fault_id, FaultState::Unknown, detail.to_owned(), now_us, UndoClass::Unspecified);
        }
    }

    fn ended_with(&mut self, fault_id: &str, state: FaultState, detail: String, now_us: i64, undo: UndoClass) {
        self.active.remove(fault_id);
        self.spend(fault_id);
        self.report(fault_id, state, detail, now_us, undo);
    }

    fn report(&mut self, fault_id: &str, state: FaultState, detail: String, now_us: i64, undo: UndoClass) {
        self.of_before.remove(fault_id);
        self.reports.push(FaultReport {
            fault_id: fault_id.to_owned(),
            state: state as i32,
            at_us: now_us,
            clock_error_us: self.clock_error_us,
            detail,
            undo: undo as i32,
        });
    }

    /// Orders for the engine; what is to begin only when all that was to be remembered is on the disk (`written`).
    pub(crate) fn take_actions(&mut self, written: bool, now_us: i64) -> Vec<FaultAction> {
        let mut actions = std::mem::take(&mut self.actions);
        for held in if written { std::mem::take(&mut self.held) } else { Vec::new() } {
            let waited_us = u64::try_from(now_us - held.leased_at_us).unwrap_or(0);
            let lease_us = held.lease_us.saturating_sub(waited_us);
            let not_after_us = u64::try_from(held.not_after_us - now_us).unwrap_or(0);
            if lease_us == 0 || not_after_us == 0 {
                let detail = "never started here: its time was over before its id was on the disk";
                self.ended_with(&held.fault_id, FaultState::Undone, detail.to_owned(), now_us, UndoClass::Unspecified);
            } else {
                actions.push(FaultAction::Start { fault_id: held.fault_id, spec: held.spec, lease_us, not_after_us });
            }
        }
        actions
    }

    /// Ids to be remembered on the disk, before any action is handed out.
    pub(crate) fn take_newly_spent(&mut self) -> Vec<String> {
        std::mem::take(&mut self.newly_spent)
    }

    /// The report to send next on the present stream. Ask only with room for it: it is not handed out again before the next stream.
    pub fn next_report(&mut self) -> Option<FaultReport> {
        let report = self.reports.get(self.sent).cloned()?;
        self.sent += 1;
        Some(report)
    }

    /// A report is committed.
    pub fn on_ack(&mut self, ack: &FaultAck) {
        if let Some(i) = self.reports.iter().position(|r| r.fault_id == ack.fault_id && r.state == ack.state) {
            self.reports.remove(i);
            self.sent = self.sent.saturating_sub(usize::from(i < self.sent));
        }
    }
}
