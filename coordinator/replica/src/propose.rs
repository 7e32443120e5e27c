//! What a step was asked to propose, in few messages: each follower gets, and answers, one append for all of them.

use bytes::Bytes;
use probity_proto::bugs::{self, Bug};
use probity_proto::v1::*;
use prost::Message as _;
use raft::{StateRole, eraftpb};

use crate::interface::{Outputs, Reply};
use crate::node::{MESSAGE_BYTES, Replica};

/// A command before it is stamped. Encoded by whoever asks for it, since the owner of a replica has other things to do; a clone costs nothing.
#[derive(Debug, Clone)]
pub struct Draft {
    version: u32,
    body: Bytes,
}

impl Draft {
    /// All but version and time.
    pub fn of(command: Command) -> Draft {
        Draft { version: command.version, body: Command { version: 0, time_us: 0, ..command }.encode_to_vec().into() }
    }

    /// How many bytes it has in the log, but for the stamp.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    /// The command for [`Input::Propose`](crate::Input::Propose), at the leader's time, of the version it needs or else the first, `newest` at most.
    pub fn stamped(&self, newest: u32, time_us: i64) -> Vec<u8> {
        let stamp = Command { version: self.version.clamp(1, newest), time_us, ..Command::default() };
        // Fields may stand in any order: one message after the other is both.
        let mut bytes = Vec::with_capacity(self.body.len() + stamp.encoded_len());
        bytes.extend_from_slice(&self.body);
        stamp.encode_raw(&mut bytes);
        bytes
    }
}

/// A proposal that came in: its caller's tag, and the encoded command.
pub(crate) type Proposal = (u64, Vec<u8>);

impl Replica {
    /// Proposes, and answers what raft does not take.
    pub(crate) fn propose(&mut self, proposals: Vec<Proposal>, out: &mut Outputs) {
        // Whatever a leader proposes bears a time.
        let clocks_agree = self.clocks_agree();
        let Some(raft) = self.raft.as_mut().filter(|raft| raft.raft.state == StateRole::Leader) else {
            let leader = self.raft.as_ref().map(|raft| raft.raft.leader_id).filter(|id| *id != 0);
            out.replies.extend(proposals.into_iter().map(|(tag, _)| (tag, Reply::NotLeader { leader })));
            return;
        };
        if !clocks_agree {
            out.replies.extend(proposals.into_iter().map(|(tag, _)| (tag, Reply::Busy)));
            return;
        }
        let mut waiting = proposals.into_iter().peekable();
        while waiting.peek().is_some() {
            let (mut message, mut taken, mut size) = (eraftpb::Message { from: raft.raft.id, ..Default::default() }, Vec::new(), 0);
            message.set_msg_type(eraftpb::MessageType::MsgPropose);
            while size < bugs::at_once(MESSAGE_BYTES)
                && let Some((tag, command)) = waiting.next()
            {
                size += command.len();
                let (data, context) = (Bytes::from(command), [self.incarnation.to_le_bytes(), tag.to_le_bytes()].concat());
                message.mut_entries().push(eraftpb::Entry { data: data.clone(), context: context.into(), ..Default::default() });
                taken.push((tag, data));
            }
            if raft.raft.step(message).is_err() {
                out.replies.extend(taken.into_iter().map(|(tag, _)| (tag, Reply::Busy)));
                continue;
            }
            let first = raft.raft.raft_log.last_index() + 1 - taken.len() as u64;
            #[cfg(feature = "sim-bugs")]
            if bugs::on(Bug::ApplyBeforeCommit) {
                for (index, (_, data)) in (first..).zip(&taken) {
                    self.rash = index;
                    if let Ok(command) = Command::decode(data.as_ref()) {
                        probity_core::apply(&mut self.state, index, &command);
                    }
                }
            }
            if bugs::on(Bug::AckBeforeCommit) {
                for (index, (tag, _)) in (first..).zip(taken) {
                    let result = command_result::Result::Applied(Applied { index, ..Applied::default() });
                    out.replies.push((tag, Reply::Applied { index, result: CommandResult { result: Some(result) } }));
                }
            }
        }
    }
}
