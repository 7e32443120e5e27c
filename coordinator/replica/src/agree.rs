//! Whether a new leader's wall clock is that of a quorum. Until then it proposes nothing, since everything that it proposes bears a
//! time; where its own clock is the odd one, leadership goes to a member whose clock a quorum shares.
//!
//! A leader asks every voter, and judges by the answers that came back quickly. Once a quorum agreed it leads for its whole term: from
//! then on log time follows its monotonic clock alone.

use std::collections::BTreeMap;

use probity_proto::bugs::{self, Bug};
use probity_proto::v1::peer_message::Message as Peer;
use probity_proto::v1::*;
use raft::StateRole;

use crate::interface::Outputs;
use crate::node::Replica;

/// Wall clocks agree when they differ by no more than this.
const AGREE_US: u64 = 1_000_000;
/// An answer that took longer to come says too little.
const ROUND_TRIP_MAX_US: u64 = 1_000_000;
/// A voter is asked again after this many ticks.
const ASK_TICKS: u64 = 2;
/// Between two tries to hand over: as long as one may take.
const HAND_OVER_TICKS: u64 = 20;

/// This host's clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostTime {
    pub(crate) mono_us: u64,
    pub(crate) wall_us: i64,
}

impl HostTime {
    /// What the wall clock shows when the monotonic one shows `mono_us`, unless it is set.
    fn wall_at(self, mono_us: u64) -> i64 {
        self.wall_us.saturating_add_unsigned(mono_us).saturating_sub_unsigned(self.mono_us)
    }
}

/// What a leader knows of the others' clocks.
#[derive(Debug, Default)]
pub(crate) struct Council {
    term: u64,
    /// When a quorum agreed, by these clocks: the wall clock may be set before this leader begins.
    agreed: Option<HostTime>,
    asked_at: u64,
    handed_over_at: Option<u64>,
    /// What each voter's wall clock showed when our monotonic one was 0: ours may be set between two answers.
    wall_at_0_us: BTreeMap<u64, i64>,
}

impl Replica {
    /// Whether this leader may propose: a quorum's wall clocks agree with its own. A member that was never told the time does not ask.
    pub fn clocks_agree(&self) -> bool {
        let Some(raft) = &self.raft else { return true };
        let settled = self.council.agreed.is_some() && self.council.term == raft.raft.term;
        self.host.is_none() || settled || bugs::on(Bug::WallClockUnchecked)
    }

    /// The wall clock that a quorum agreed to, at `mono_us` of the monotonic one; the host's own, where nobody was asked.
    pub fn agreed_wall_us(&self, mono_us: u64) -> Option<i64> {
        self.council.agreed.or(self.host).map(|then| then.wall_at(mono_us))
    }

    /// At the end of each step: a leader asks, judges, and hands over when a quorum's clocks are others than its own.
    pub(crate) fn tend_clocks(&mut self, out: &mut Outputs) {
        let (Some(raft), Some(host)) = (&mut self.raft, self.host) else { return };
        let (term, own) = (raft.raft.term, raft.raft.id);
        if raft.raft.state != StateRole::Leader {
            return;
        }
        let fresh = self.council.term != term;
        if fresh {
            self.council = Council { term, ..Council::default() };
        }
        if self.council.agreed.is_some() {
            return;
        }
        let store = raft.store();
        let (voters, outgoing) = (store.conf_state.voters.clone(), store.conf_state.voters_outgoing.clone());
        let quorum = |agree: &dyn Fn(u64) -> bool| {
            let of = |ids: &[u64]| ids.is_empty() || 2 * ids.iter().filter(|id| agree(**id)).count() > ids.len();
            of(&voters) && of(&outgoing)
        };
        let ahead = |id: u64| if id == own { Some(0) } else { self.council.wall_at_0_us.get(&id).map(|at_0| at_0.saturating_sub(host.wall_at(0))) };
        let shares = |with: i64| quorum(&|id| ahead(id).is_some_and(|a| a.abs_diff(with) <= AGREE_US));
        if shares(0) {
            self.council.agreed = Some(host);
            return;
        }
        let better = voters.iter().copied().find(|id| self.could_lead(*id) && ahead(*id).is_some_and(shares));
        let tried_lately = self.council.handed_over_at.is_some_and(|at| self.ticks.saturating_sub(at) < HAND_OVER_TICKS);
        if let (Some(to), false, Some(raft)) = (better, tried_lately, &mut self.raft) {
            self.council.handed_over_at = Some(self.ticks);
            self.clock_handovers += 1;
            raft.transfer_leader(to);
        }
        if fresh || self.ticks.saturating_sub(self.council.asked_at) >= ASK_TICKS {
            self.council.asked_at = self.ticks;
            let cluster_id = self.identity().cluster_id;
            let others = voters.iter().chain(&outgoing).copied().filter(|id| *id != own).collect::<std::collections::BTreeSet<u64>>();
            out.messages.extend(others.into_iter().map(|to| {
                let ask = ClockAsk { term, sent_us: host.mono_us };
                PeerMessage { cluster_id: cluster_id.clone(), from: own, to, message: Some(Peer::ClockAsk(ask)) }
            }));
        }
    }

    /// Somebody leads, and asks for this host's wall clock.
    pub(crate) fn on_clock_ask(&self, to: u64, ask: &ClockAsk, out: &mut Outputs) {
        if let Some(host) = self.host {
            let tell = ClockTell { term: ask.term, sent_us: ask.sent_us, wall_us: host.wall_us };
            let identity = self.identity();
            out.messages.push(PeerMessage { cluster_id: identity.cluster_id, from: identity.id, to, message: Some(Peer::ClockTell(tell)) });
        }
    }

    /// An answer; one that took too long, or is of an earlier term, says nothing.
    pub(crate) fn on_clock_tell(&mut self, from: u64, tell: &ClockTell) {
        let (Some(raft), Some(host)) = (&self.raft, self.host) else { return };
        let member = raft.store().is_member(from);
        let Some(round_trip) = host.mono_us.checked_sub(tell.sent_us).filter(|us| *us <= ROUND_TRIP_MAX_US) else { return };
        if member && tell.term == raft.raft.term && tell.term == self.council.term {
            let then = HostTime { mono_us: tell.sent_us + round_trip / 2, wall_us: tell.wall_us };
            self.council.wall_at_0_us.insert(from, then.wall_at(0));
        }
    }

    /// How often this member handed leadership over for its wall clock.
    pub fn clock_handovers(&self) -> u64 {
        self.clock_handovers
    }
}
