//! `halt`: taken by any coordinator even without a quorum, told to its probers at once, committed as soon as it can be.
//!
//! Each halt that waits stands for itself: one that the leader refuses, or a lift that fails, takes nothing from another that holds.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use probity_proto::v1::command::Op;
use probity_proto::v1::{Command, SetHalt};
use probity_rpc::refusal::Refusal;
use probity_rpc::v1::{HaltReply, HaltRequest};
use tonic::{Request, Status};

use crate::gate::Admitted;
use crate::listen::Link;
use crate::node::ProposeError;
use crate::operator::{OperatorService, status};

/// Halts that wait to be committed. The oldest gives way to the next: the cluster is halted by either.
const WAITING_MAX: usize = 64;
/// How often one that waits is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Halts that were taken here and are not committed yet; while there is one, this member's probers are halted.
#[derive(Debug, Default)]
pub(crate) struct HaltLatch {
    /// The newest number, and the request of each that waits.
    waiting: Mutex<(u64, BTreeMap<u64, String>)>,
}

impl HaltLatch {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, String>)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one; what stands for it, and whether it was not taken before: who handed it on asks again until it is committed.
    pub(crate) fn take(&self, request_id: &str) -> (u64, bool) {
        let mut waiting = self.lock();
        let known = waiting.1.iter().find(|(_, known)| !request_id.is_empty() && *known == request_id);
        if let Some((id, _)) = known {
            return (*id, false);
        }
        waiting.0 += 1;
        let id = waiting.0;
        waiting.1.insert(id, request_id.to_owned());
        if waiting.1.len() > WAITING_MAX {
            waiting.1.pop_first();
        }
        (id, true)
    }

    /// That one is committed, or refused.
    pub(crate) fn settle(&self, id: u64) {
        self.lock().1.remove(&id);
    }

    /// The newest there was.
    pub(crate) fn newest(&self) -> u64 {
        self.lock().0
    }

    /// A lift was committed: it is of all up to the newest that there was when it was asked for.
    pub(crate) fn lift(&self, up_to: u64) {
        self.lock().1.retain(|id, _| *id > up_to);
    }

    /// Whether that one waits still.
    fn waits(&self, id: u64) -> bool {
        self.lock().1.contains_key(&id)
    }

    /// Whether any does.
    pub(crate) fn is_on(&self) -> bool {
        !self.lock().1.is_empty()
    }
}

/// Whether asking again changes nothing.
fn final_no(status: &Status) -> bool {
    use tonic::Code;
    matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument | Code::NotFound)
}

impl OperatorService {
    /// `halt`, of whoever may.
    pub(crate) async fn take_halt(&self, request: Request<HaltRequest>) -> Result<HaltReply, Status> {
        let admitted = Admitted::of(&request)?;
        let asked = request.get_ref().clone();
        // Taken by any coordinator, without a quorum too: its probers hear of it with their next heartbeat.
        let (id, fresh) = self.node.take_halt(&asked.request_id);
        let probers_told = self.node.shared.fleet.lock().len() as u32;
        let all_ended_by_us = self.node.now_us() + probity_core::gameday::LEASE_US + 5_000_000;
        let op = Op::SetHalt(SetHalt { reason: asked.reason.clone() });
        let command = Self::command(&admitted, &asked.request_id, op);
        let link = request.extensions().get::<Link>().cloned();
        let hand_on_for = link.as_ref().filter(|_| !admitted.handed_on);
        match self.commit_halt(id, command.clone(), hand_on_for, &asked).await {
            Ok((committed, told_there)) => {
                if !committed && fresh {
                    self.go_on_halting(id, command, link, asked);
                }
                Ok(HaltReply { committed, all_ended_by_us, probers_told: probers_told + told_there })
            }
            Err(status) if final_no(&status) || (admitted.handed_on && matches!(Refusal::of(&status), Some(Refusal::NotLeader(Some(_))))) => {
                self.node.settle_halt(id);
                Err(status)
            }
            Err(_) => {
                if fresh {
                    self.go_on_halting(id, command, link, asked);
                }
                Ok(HaltReply { committed: false, all_ended_by_us, probers_told })
            }
        }
    }

    /// Commits a halt here, or hands it on to the leader: whether it is committed, which settles it, and how many probers more were told of it
    /// there. A leader that only took it may be gone before it is committed.
    async fn commit_halt(&self, id: u64, command: Command, hand_on_for: Option<&Link>, asked: &HaltRequest) -> Result<(bool, u32), Status> {
        let done = match (self.node.propose(command).await, hand_on_for) {
            (Ok(_), _) => (true, 0),
            (Err(ProposeError::Refusal(Refusal::NotLeader(Some(leader)))), Some(link)) => {
                let reply = self.forward.halt(&leader, link, asked.clone()).await?;
                (reply.committed, reply.probers_told)
            }
            (Err(e), _) => return Err(status(e)),
        };
        if done.0 {
            self.node.settle_halt(id);
        }
        Ok(done)
    }

    fn go_on_halting(&self, id: u64, command: Command, link: Option<Link>, asked: HaltRequest) {
        let service = self.clone();
        tokio::spawn(async move { service.keep_halting(id, command, link, asked).await });
    }

    /// A halt that waits is committed as soon as there is a quorum.
    async fn keep_halting(&self, id: u64, command: Command, link: Option<Link>, asked: HaltRequest) {
        while self.node.shared.halt_latch.waits(id) {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
            if let Err(status) = self.commit_halt(id, command.clone(), link.as_ref(), &asked).await
                && final_no(&status)
            {
                tracing::warn!(error = status.message(), "a halt that was taken here is refused by the leader");
                self.node.settle_halt(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_refused_takes_nothing_from_another() {
        let latch = HaltLatch::default();
        assert!(!latch.is_on());
        let ((first, _), (second, _)) = (latch.take("a"), latch.take("b"));
        latch.settle(second);
        assert!(latch.is_on() && latch.waits(first) && !latch.waits(second), "the first holds still");
        latch.settle(second);
        assert!(latch.is_on(), "and is not settled by what settles another twice");
        latch.settle(first);
        assert!(!latch.is_on());
        latch.take("c");
        latch.take("d");
        let asked_for = latch.newest();
        let (later, _) = latch.take("e");
        latch.lift(asked_for);
        assert!(latch.waits(later), "what was taken while a lift was on its way holds");
        latch.lift(latch.newest());
        assert!(!latch.is_on(), "a lift is of all there were");
    }

    #[test]
    fn those_that_wait_are_bounded_and_hold_on() {
        let latch = HaltLatch::default();
        let ids: Vec<u64> = (0..WAITING_MAX + 3).map(|n| latch.take(&n.to_string()).0).collect();
        assert_eq!(ids.iter().filter(|id| latch.waits(**id)).count(), WAITING_MAX);
        assert!(latch.waits(ids[ids.len() - 1]) && !latch.waits(ids[0]));
    }
    #[test]
    fn one_that_is_asked_for_again_is_the_same() {
        let latch = HaltLatch::default();
        let (first, fresh) = latch.take("a");
        assert!(fresh);
        assert_eq!(latch.take("a"), (first, false));
        latch.settle(first);
        assert!(!latch.is_on(), "one answer settles it");
        assert_ne!(latch.take(""), latch.take(""), "who gives no id asks for another each time");
    }
}
