//! Who belongs to the group. Voters change by joint consensus only; the members' records change in the same entry, or neither does.
//!
//! A change enters the joint configuration; the leader, whoever it is by then, leaves it on a later tick. raft's own automatic
//! leave is not used: it is lost with a change of leader.

use probity_core::{number_key, requests};
use probity_proto::v1::command::Op;
use probity_proto::v1::peer_message::Message as Peer;
use probity_proto::v1::*;
use prost::Message as _;
use raft::{Changer, ProgressState, StateRole, eraftpb};

use crate::Fatal;
use crate::convert;
use crate::interface::{Outputs, Reply};
use crate::node::Replica;
use crate::sense::TERM_MAX;
use crate::store::FormError;

/// A member stays for so many ticks after it has seen its own removal. Others may not know of it yet, and until they do their elections ask for
/// its vote: if it were gone at once, the loss of one more member could leave them without a quorum for ever.
const LINGER_TICKS: u64 = 200;
/// A member whose log lacks no more than this many entries has caught up.
const CAUGHT_UP_ENTRIES: u64 = 64;

impl Replica {
    /// Becomes a future member of a group that exists: nothing is known of it until its leader sends a snapshot, and until
    /// then this member neither votes nor counts. Asking again for the same group is fine.
    pub fn join(&mut self, cluster_id: &str) -> Result<(), FormError> {
        let identity = self.identity();
        if identity.cluster_id == cluster_id {
            return Ok(());
        }
        let Some(store) = &mut self.unformed else { return Err(FormError::Belongs(identity.cluster_id)) };
        store.join(cluster_id).map_err(Fatal::Store)?;
        self.start()?;
        Ok(())
    }

    /// Whether it waits for its first snapshot as a future member.
    pub fn joining(&self) -> bool {
        self.raft.as_ref().is_some_and(|r| r.store().joining())
    }

    /// Whether a raft message may go on to raft.
    ///
    /// Requests of members that this one does not know are heard: it may lag behind the change that brought them. What an id
    /// outside the configuration grants is dropped by raft, so it never votes.
    pub(crate) fn accepts(&mut self, from: u64, m: &RaftMessage, out: &mut Outputs) -> Result<bool, Fatal> {
        use eraftpb::MessageType::*;
        let Some(raft) = &self.raft else { return Ok(false) };
        let is = |wanted: eraftpb::MessageType| m.msg_type == wanted as u32;
        let store = raft.store();
        let identity = store.identity.clone();
        if store.joining() {
            // A log from its first entry on would lack who votes: only a snapshot says so.
            return Ok(is(MsgHeartbeat) || is(MsgSnapshot) || is(MsgAppend) && m.index != 0);
        }
        if store.is_member(from) {
            // A leader counts on more than is here. From anybody else it is nonsense, and dropped as such.
            if is(MsgHeartbeat) && (raft.raft.term..=TERM_MAX).contains(&m.term) && m.commit > raft.raft.raft_log.last_index() {
                return Err(Fatal::Lost { acknowledged: m.commit, last: raft.raft.raft_log.last_index() });
            }
            return Ok(true);
        }
        if is(MsgRequestVote) || is(MsgRequestPreVote) {
            let told = NotMember { applied: self.applied };
            out.messages.push(PeerMessage { cluster_id: identity.cluster_id, from: identity.id, to: from, message: Some(Peer::NotMember(told)) });
        }
        Ok([MsgAppend, MsgHeartbeat, MsgSnapshot, MsgRequestVote, MsgRequestPreVote].into_iter().any(is))
    }

    /// Whoever has applied at least as much as this member, and does not know it, has seen its removal.
    pub(crate) fn told_not_member(&self, told: &NotMember) -> Result<(), Fatal> {
        if self.joining() || told.applied < self.applied {
            return Ok(());
        }
        Err(Fatal::Removed { index: told.applied })
    }

    /// Proposes a change of members.
    pub(crate) fn configure(&mut self, tag: u64, command: Command, out: &mut Outputs) {
        if let Some(result) = requests::find(&self.state, &command.request_id) {
            out.replies.push((tag, Reply::Applied { index: self.applied, result }));
            return;
        }
        let incarnation = self.incarnation;
        let Some(raft) = &mut self.raft else { return };
        if raft.raft.state != StateRole::Leader {
            let leader = (raft.raft.leader_id != 0).then_some(raft.raft.leader_id);
            out.replies.push((tag, Reply::NotLeader { leader }));
            return;
        }
        let under_way = raft.raft.has_pending_conf() || !raft.store().conf_state.voters_outgoing.is_empty();
        let change = if under_way { Err("another change of members is under way; ask again".to_owned()) } else { self.change_of(&command) };
        let Some(raft) = &mut self.raft else { return };
        match change {
            Ok(change) => {
                let context = [incarnation.to_le_bytes(), tag.to_le_bytes()].concat();
                if raft.propose_conf_change(context, change).is_err() {
                    out.replies.push((tag, Reply::Busy));
                }
            }
            Err(message) => out.replies.push((tag, refused(self.applied, message))),
        }
    }

    /// The change of raft's configuration that a command stands for.
    fn change_of(&self, command: &Command) -> Result<eraftpb::ConfChangeV2, String> {
        use eraftpb::ConfChangeType::*;
        let Some(raft) = &self.raft else { return Err("no group".to_owned()) };
        let store = raft.store();
        let single = |change_type, node_id| eraftpb::ConfChangeSingle { change_type, node_id, ..Default::default() };
        let mut changes = Vec::new();
        match &command.op {
            Some(Op::AddMember(op)) => {
                let id = op.member.as_ref().map_or(0, |m| m.id);
                if id == 0 || store.is_member(id) {
                    return Err(format!("{id:x} is a member already"));
                }
                changes.push(single(AddLearnerNode, id));
            }
            Some(Op::PromoteMember(op)) => {
                if !store.conf_state.learners.contains(&op.id) {
                    return Err(format!("{:x} is no learner", op.id));
                }
                changes.push(single(AddNode, op.id));
                let replaces = self.state.members.get(&number_key(op.id)).map_or(0, |m| m.replaces);
                if store.is_member(replaces) {
                    changes.push(single(RemoveNode, replaces));
                }
            }
            Some(Op::RemoveMember(op)) => {
                if !store.is_member(op.id) {
                    return Err(format!("{:x} is no member", op.id));
                }
                if op.id == store.identity.id {
                    return Err("the leader does not remove itself: hand leadership over first (`probity cluster transfer`)".to_owned());
                }
                changes.push(single(RemoveNode, op.id));
            }
            _ => return Err("that command changes no members".to_owned()),
        }
        let voters_stay =
            changes.iter().all(|c| c.change_type == AddLearnerNode || store.conf_state.learners.contains(&c.node_id) && c.change_type == RemoveNode);
        let transition = if voters_stay { eraftpb::ConfChangeTransition::Auto } else { eraftpb::ConfChangeTransition::Explicit };
        Ok(eraftpb::ConfChangeV2 { transition, changes: changes.into(), context: command.encode_to_vec().into(), ..Default::default() })
    }

    /// Begins to hand leadership over.
    pub(crate) fn transfer(&mut self, tag: u64, to: u64, out: &mut Outputs) {
        let ready = self.could_lead(to);
        let Some(raft) = &mut self.raft else { return };
        if raft.raft.state != StateRole::Leader {
            let leader = (raft.raft.leader_id != 0).then_some(raft.raft.leader_id);
            out.replies.push((tag, Reply::NotLeader { leader }));
            return;
        }
        let reply = if ready {
            raft.transfer_leader(to);
            let applied = Applied { index: self.applied, ..Applied::default() };
            Reply::Applied { index: self.applied, result: CommandResult { result: Some(command_result::Result::Applied(applied)) } }
        } else {
            refused(self.applied, format!("{to:x} cannot take over: it is no other voter that has caught up and answers"))
        };
        out.replies.push((tag, reply));
    }

    /// What the leader does by itself, each tick: leave a joint configuration, promote who has caught up.
    pub(crate) fn tend_members(&mut self) -> Result<(), Fatal> {
        let Some(raft) = &mut self.raft else { return Ok(()) };
        let own = raft.raft.id;
        if raft.raft.state != StateRole::Leader || raft.raft.has_pending_conf() || raft.raft.lead_transferee.is_some() {
            return Ok(());
        }
        let conf = raft.store().conf_state.clone();
        if !conf.voters.contains(&own) {
            // On its way out. It leads on for a moment if nobody can take over yet.
            return self.hand_over();
        }
        if !conf.voters_outgoing.is_empty() {
            // Refused only while leadership is handed over: then the next leader leaves.
            let _ = raft.propose_conf_change(Vec::new(), eraftpb::ConfChangeV2::default());
            return Ok(());
        }
        let Some(learner) = conf.learners.iter().copied().find(|id| self.caught_up(*id)) else { return Ok(()) };
        if self.state.members.get(&number_key(learner)).is_some_and(|m| m.replaces == own) {
            return self.hand_over();
        }
        let command = Command { version: 1, op: Some(Op::PromoteMember(PromoteMember { id: learner })), ..Command::default() };
        if let (Ok(change), Some(raft)) = (self.change_of(&command), &mut self.raft) {
            let _ = raft.propose_conf_change(Vec::new(), change);
        }
        Ok(())
    }

    /// The other voter that is furthest, if it could lead at once.
    pub(crate) fn successor(&self) -> Option<u64> {
        let raft = self.raft.as_ref()?;
        let others = raft.store().conf_state.voters.iter().copied().filter(|id| self.could_lead(*id));
        others.max_by_key(|id| raft.raft.prs().get(*id).map(|p| (p.matched, *id)))
    }

    /// Whether a voter could take over at once.
    pub(crate) fn could_lead(&self, id: u64) -> bool {
        self.raft.as_ref().is_some_and(|r| r.raft.id != id && r.store().conf_state.voters.contains(&id) && self.caught_up(id))
    }

    /// Answers, waits for no snapshot, and lacks next to nothing.
    fn caught_up(&self, id: u64) -> bool {
        let Some(raft) = &self.raft else { return false };
        let last = raft.raft.raft_log.last_index();
        // Whoever was just added has confirmed nothing.
        let near = |p: &raft::Progress| p.matched != 0 && p.state != ProgressState::Snapshot && p.matched + CAUGHT_UP_ENTRIES >= last;
        self.answers(id) && raft.raft.prs().get(id).is_some_and(near)
    }

    /// Whether a member was heard of within two election time-outs. raft's own flag is cleared at every check of the quorum, and then
    /// says for a moment that nobody is there.
    pub(crate) fn answers(&self, id: u64) -> bool {
        let lately = 2 * self.config.election_ticks as u64;
        self.heard.get(&id).is_some_and(|at| self.ticks.saturating_sub(*at) <= lately)
    }

    /// Leadership to the voter that is furthest.
    fn hand_over(&mut self) -> Result<(), Fatal> {
        if let (Some(best), Some(raft)) = (self.successor(), &mut self.raft) {
            raft.transfer_leader(best);
        }
        Ok(())
    }

    /// A committed change: the records and the configuration, or neither; on the disk before anything follows from it.
    pub(crate) fn apply_conf_change(&mut self, entry: &eraftpb::Entry, out: &mut Outputs) -> Result<(), Fatal> {
        let unreadable = || Fatal::Entry { index: entry.index };
        let change = convert::to_conf_change(&entry.data).map_err(|()| unreadable())?;
        let Some(raft) = &mut self.raft else { return Ok(()) };
        let mut go = possible(raft.raft.prs(), &change);
        if !change.context.is_empty() {
            let command = Command::decode(&change.context[..]).map_err(|_| unreadable())?;
            let reply = if go {
                let result = probity_core::apply(&mut self.state, entry.index, &command);
                self.check_version()?;
                // An answer from before is the answer to a change from before.
                go = matches!(&result.result, Some(command_result::Result::Applied(applied)) if applied.index == entry.index);
                Reply::Applied { index: entry.index, result }
            } else {
                refused(entry.index, "the members have changed meanwhile; ask again".to_owned())
            };
            out.replies.extend(self.own_tag(&entry.context).map(|tag| (tag, reply)));
        }
        self.applied = entry.index;
        let Some(raft) = &mut self.raft else { return Ok(()) };
        if go {
            let conf_state = raft.apply_conf_change(&change)?;
            let store = raft.mut_store();
            store.conf_state = convert::from_conf_state(&conf_state);
            self.heard.retain(|id, _| store.is_member(*id));
            self.outdate_snapshots();
        }
        self.flush()?;
        let Some(raft) = &mut self.raft else { return Ok(()) };
        let own = raft.raft.id;
        if !raft.store().joining() && !raft.store().is_member(own) {
            self.removed_at.get_or_insert((entry.index, self.ticks));
            if raft.raft.state != StateRole::Follower {
                // It came to lead in the middle of its own removal. raft has no place for a leader outside the group, and panics.
                let term = raft.raft.term;
                raft.raft.become_follower(term, raft::INVALID_ID);
            }
        }
        Ok(())
    }

    /// In each tick: whoever was removed has stayed long enough.
    pub(crate) fn tend_removal(&self) -> Result<(), Fatal> {
        match self.removed_at {
            Some((index, at)) if self.ticks - at >= LINGER_TICKS => Err(Fatal::Removed { index }),
            _ => Ok(()),
        }
    }
}

/// Whether raft will take a change: the same on every replica, since all have the same configuration at that index.
fn possible(tracker: &raft::ProgressTracker, change: &eraftpb::ConfChangeV2) -> bool {
    let mut changer = Changer::new(tracker);
    if change.leave_joint() {
        changer.leave_joint().is_ok()
    } else if let Some(auto_leave) = change.enter_joint() {
        changer.enter_joint(auto_leave, &change.changes).is_ok()
    } else {
        changer.simple(&change.changes).is_ok()
    }
}

fn refused(index: u64, message: String) -> Reply {
    let refused = Refused { code: RefusalCode::Conflict as i32, message };
    Reply::Applied { index, result: CommandResult { result: Some(command_result::Result::Refused(refused)) } }
}
