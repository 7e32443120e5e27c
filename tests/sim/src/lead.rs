//! Who leads, as a member's driver follows it (`coordinator/src/driver.rs`, `node.rs`): a leader takes its clock and says so in the log before it
//! acts; callers are answered, or told that the outcome is unknown.

use probity_proto::v1::command::Op;
use probity_proto::v1::*;
use probity_replica::{Reply, Role};

use crate::client::Answer;
use crate::inventory::Asked;
use crate::member::{Member, Request, Said, Waiter, command};
use crate::world::{Event, World};

/// Wall clocks that were compared differ by no more than this: what is allowed, and half of the longest round trip.
const CLOCKS_DIFFER_US: u64 = 1_600_000;
/// A clock that was set within this time may have been another one when it was asked for.
const CLOCK_SET_LATELY_US: u64 = 10_000_000;
/// What raft would not take is proposed again after this.
const BUSY_RETRY_US: u64 = 200_000;

impl World {
    /// A change of role; and a leader whose wall clock is a quorum's begins to lead.
    pub(crate) fn follow_role(&mut self, m: usize) {
        let member = &mut self.members[m];
        let Some(node) = &mut member.node else { return };
        let status = node.replica.status();
        if node.seen != (status.term, status.leader) {
            node.seen = (status.term, status.leader);
            node.leading = false;
            node.to_start = status.role == Role::Leader;
            // What an earlier leadership proposed for itself says nothing of this one.
            node.tick_proposed = false;
            node.asked = Asked::default();
            // Nor does anybody wait for it on behalf of a prober.
            node.waiting.retain(|_, w| !matches!(w, Waiter::Tick | Waiter::LeaderStarted | Waiter::Prober { .. }));
            self.counts.add_n("leader elected", u64::from(status.role == Role::Leader));
            let sessions: Vec<u64> = node.sessions.keys().copied().collect();
            for stream in sessions {
                self.not_leader(m, stream);
            }
        }
        self.start_leading(m);
    }

    /// A leader takes its clock, and says so in the log before it acts.
    fn start_leading(&mut self, m: usize) {
        let member = &mut self.members[m];
        let Some(node) = member.node.as_mut().filter(|n| n.to_start && n.replica.clocks_agree()) else { return };
        node.to_start = false;
        let status = node.replica.status();
        let mono = member.clock.mono_us(self.now);
        let wall = node.replica.agreed_wall_us(mono).unwrap_or_else(|| member.clock.wall_us(self.now));
        node.clock.lead_from(node.replica.state().now(), wall, mono);
        node.grace_from = mono;
        node.heard.clear();
        let op = Op::LeaderStarted(LeaderStarted { member: status.identity.id, term: status.term });
        node.inbox.push_front(Request::Propose(command(op), Waiter::LeaderStarted));
        self.counts.add("leader began to lead");
        self.poke(m);
        if let Some(detail) = self.time_of_few(m, wall, &status.voters) {
            self.violate("time", detail);
        }
    }

    /// A leader's wall clock is that of a quorum, as far as clocks were not set just now.
    fn time_of_few(&self, m: usize, wall: i64, voters: &[u64]) -> Option<String> {
        let shares = |member: &Member| {
            let set_lately = self.now.saturating_sub(member.clock_set_at) < CLOCK_SET_LATELY_US && member.clock_set_at != 0;
            set_lately || member.clock.wall_us(self.now).abs_diff(wall) <= CLOCKS_DIFFER_US
        };
        let shared = self.members.iter().filter(|member| voters.contains(&member.id) && shares(member)).count();
        (2 * shared <= voters.len()).then(|| format!("member {m} leads by a wall clock that {shared} of {} voters share", voters.len()))
    }

    /// An answer, or none within its time.
    pub(crate) fn reply(&mut self, m: usize, waiter: Waiter, reply: Option<Reply>) {
        let refused = |result: &CommandResult| matches!(result.result, Some(command_result::Result::Refused(_)));
        let applied = matches!(&reply, Some(Reply::Applied { result, .. }) if !refused(result));
        match waiter {
            Waiter::Call { caller, ask, tries } => self.call_reply(m, caller, *ask, tries, reply),
            Waiter::Read { caller, key } => {
                if matches!(reply, Some(Reply::ReadReady)) {
                    let value = self.members[m].node.as_ref().and_then(|n| crate::client::value_of(n.replica.state(), &key));
                    self.answer(m, caller, Answer::Read(value));
                }
            }
            Waiter::LeaderStarted => {
                if let Some(node) = self.members[m].node.as_mut().filter(|n| n.replica.status().role == Role::Leader) {
                    node.leading = applied;
                    node.to_start = !applied;
                }
            }
            Waiter::Tick => {
                if let Some(node) = &mut self.members[m].node {
                    node.tick_proposed = false;
                }
            }
            Waiter::Left => {
                if let Some(node) = &mut self.members[m].node {
                    node.left_under_way = false;
                }
            }
            Waiter::Found => {
                if let Some(node) = &mut self.members[m].node {
                    node.asked.under_way = false;
                }
            }
            Waiter::Effect { key } => {
                if let Some(node) = &mut self.members[m].node {
                    node.deliveries.remove(&key);
                }
            }
            Waiter::Operator => {}
            Waiter::Prober { stream, command, said } if matches!(reply, Some(Reply::Busy)) => {
                self.counts.add("report proposed again");
                let life = self.members[m].life;
                self.after(BUSY_RETRY_US, Event::ProposeAgain { m, life, stream, command, said });
            }
            Waiter::Prober { stream, said: Said::Hello, .. } => self.joined(m, stream, applied),
            Waiter::Prober { stream, said: Said::Rows, .. } => self.reported(m, stream, applied, None),
            Waiter::Prober { stream, said: Said::Fault(ack), .. } => self.reported(m, stream, applied, Some(ack)),
        }
    }

    pub(crate) fn member_expire(&mut self, m: usize, life: u64, tag: u64) {
        if self.members[m].life != life {
            return;
        }
        let waiter = self.members[m].node.as_mut().and_then(|n| n.waiting.remove(&tag));
        match waiter {
            // The driver waits for its own as long as it takes, and so does a stream while this member leads: a proposal is lost only with leadership.
            Some(own @ (Waiter::Tick | Waiter::LeaderStarted | Waiter::Prober { .. })) => {
                self.counts.add_n("report waited for longer than a caller waits", u64::from(matches!(own, Waiter::Prober { .. })));
                if let Some(node) = &mut self.members[m].node {
                    node.waiting.insert(tag, own);
                }
            }
            Some(waiter) => self.reply(m, waiter, None),
            None => {}
        }
    }
}
