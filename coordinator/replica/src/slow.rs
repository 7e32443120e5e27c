//! A leader whose disk is slow hands over to a voter whose disk is not. Whoever leads waits for its own disk with every commit,
//! while a slow follower is simply not waited for.

use std::collections::BTreeMap;

use probity_core::number_key;
use probity_proto::v1::peer_message::Message as Peer;
use probity_proto::v1::*;

use crate::interface::{Outputs, Role};
use crate::node::Replica;

/// What is known of disks.
#[derive(Debug, Default)]
pub(crate) struct Disks {
    /// Since which tick the own one is slow.
    slow_since: Option<u64>,
    /// What others said: (99th percentile, tick).
    others: BTreeMap<u64, (u64, u64)>,
}

/// Reports older than this are not believed.
const FRESH_TICKS: u64 = 100;

impl Replica {
    /// How long this member's disk takes for a commit: a follower tells the leader, a leader judges itself.
    pub(crate) fn on_persistence(&mut self, p99_us: u64, out: &mut Outputs) {
        let status = self.status();
        match (status.role, status.leader) {
            (Role::Follower, Some(leader)) => {
                self.disks = Disks::default();
                let report = PersistenceReport { p99_us };
                let identity = status.identity;
                let message = Some(Peer::Persistence(report));
                out.messages.push(PeerMessage { cluster_id: identity.cluster_id, from: identity.id, to: leader, message });
            }
            (Role::Leader, _) => self.judge(p99_us),
            _ => self.disks = Disks::default(),
        }
    }

    /// A member says how its disk is.
    pub(crate) fn on_persistence_report(&mut self, from: u64, report: &PersistenceReport) {
        // Only members: the map stays as small as the group.
        if self.state.members.get(&number_key(from)).is_some() {
            self.disks.others.insert(from, (report.p99_us, self.ticks));
        }
    }

    fn judge(&mut self, own_us: u64) {
        let now = self.ticks;
        if own_us < self.config.slow_persist_us {
            self.disks.slow_since = None;
            return;
        }
        if now - *self.disks.slow_since.get_or_insert(now) < self.config.slow_ticks {
            return;
        }
        // Much better, and good by itself: or leadership would go to and fro.
        let good = |(id, (p99, at)): (&u64, &(u64, u64))| {
            let fresh = now.saturating_sub(*at) < FRESH_TICKS;
            (fresh && *p99 < self.config.slow_persist_us && p99.saturating_mul(2) < own_us).then_some((*p99, *id))
        };
        let mut better: Vec<(u64, u64)> = self.disks.others.iter().filter_map(good).collect();
        better.sort_unstable();
        if let Some((_, to)) = better.into_iter().find(|(_, id)| self.could_lead(*id)) {
            self.disks.slow_since = None;
            self.handed_over += 1;
            if let Some(raft) = &mut self.raft {
                raft.transfer_leader(to);
            }
        }
    }

    /// How often this member handed leadership over for its slow disk.
    pub fn handed_over(&self) -> u64 {
        self.handed_over
    }
}
