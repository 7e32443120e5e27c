//! Our peer messages to raft's and back. Every enum value is checked: raft's own getters panic on unknown ones.

use bytes::Bytes;
use probity_proto::v1::*;
use prost::Message as _;
use raft::eraftpb;

/// Why a peer's message is not passed to raft.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadMessage {
    /// A type that is unknown, or that no peer may send.
    #[error("message type {0} is not accepted from a peer")]
    Type(u32),
    /// An entry of another kind than normal.
    #[error("entry type {0} is not supported")]
    Entry(u32),
}

fn message_type(number: u32) -> Option<eraftpb::MessageType> {
    use eraftpb::MessageType::*;
    // MsgPropose is missing on purpose: followers forward writes by our own RPC. So are the local types.
    let known = [
        MsgAppend,
        MsgAppendResponse,
        MsgRequestVote,
        MsgRequestVoteResponse,
        MsgSnapshot,
        MsgHeartbeat,
        MsgHeartbeatResponse,
        MsgTransferLeader,
        MsgTimeoutNow,
        MsgReadIndex,
        MsgReadIndexResp,
        MsgRequestPreVote,
        MsgRequestPreVoteResponse,
    ];
    known.into_iter().find(|t| *t as u32 == number)
}

/// A peer's message for raft. A snapshot's data is its manifest.
pub(crate) fn from_peer(from: u64, to: u64, m: RaftMessage) -> Result<eraftpb::Message, BadMessage> {
    let mut out = eraftpb::Message {
        msg_type: message_type(m.msg_type).ok_or(BadMessage::Type(m.msg_type))?,
        from,
        to,
        term: m.term,
        log_term: m.log_term,
        index: m.index,
        entries: m.entries.into_iter().map(to_entry).collect::<Result<Vec<_>, _>>()?.into(),
        commit: m.commit,
        commit_term: m.commit_term,
        request_snapshot: m.request_snapshot,
        reject: m.reject,
        reject_hint: m.reject_hint,
        context: m.context.into(),
        priority: m.priority,
        ..Default::default()
    };
    if let Some(manifest) = m.snapshot {
        out.set_snapshot(to_snapshot(&manifest));
    }
    Ok(out)
}

/// raft's message for a peer; `None` for what stays inside.
pub(crate) fn to_peer(cluster_id: &str, mut m: eraftpb::Message) -> Option<PeerMessage> {
    message_type(m.msg_type as u32)?;
    let snapshot = m.snapshot.as_ref().filter(|s| !s.data.is_empty()).and_then(|s| SnapshotManifest::decode(&s.data[..]).ok());
    let raft = RaftMessage {
        msg_type: m.msg_type as u32,
        term: m.term,
        log_term: m.log_term,
        index: m.index,
        entries: m.take_entries().into_iter().map(from_entry).collect(),
        commit: m.commit,
        commit_term: m.commit_term,
        snapshot,
        request_snapshot: m.request_snapshot,
        reject: m.reject,
        reject_hint: m.reject_hint,
        context: m.context.to_vec(),
        priority: m.priority,
    };
    Some(PeerMessage { cluster_id: cluster_id.to_owned(), from: m.from, to: m.to, message: Some(peer_message::Message::Raft(raft)) })
}

pub(crate) fn to_entry(e: RaftEntry) -> Result<eraftpb::Entry, BadMessage> {
    if e.entry_type != 0 {
        return Err(BadMessage::Entry(e.entry_type));
    }
    Ok(eraftpb::Entry {
        entry_type: eraftpb::EntryType::EntryNormal,
        term: e.term,
        index: e.index,
        data: e.data.into(),
        context: e.context.into(),
        ..Default::default()
    })
}

pub(crate) fn from_entry(e: eraftpb::Entry) -> RaftEntry {
    RaftEntry { entry_type: e.entry_type as u32, term: e.term, index: e.index, data: e.data.to_vec(), context: e.context.to_vec() }
}

pub(crate) fn to_conf_state(c: &ConfStateRecord) -> eraftpb::ConfState {
    eraftpb::ConfState {
        voters: c.voters.clone(),
        learners: c.learners.clone(),
        voters_outgoing: c.voters_outgoing.clone(),
        learners_next: c.learners_next.clone(),
        auto_leave: c.auto_leave,
        ..Default::default()
    }
}

pub(crate) fn to_snapshot(manifest: &SnapshotManifest) -> eraftpb::Snapshot {
    let mut out = eraftpb::Snapshot { data: Bytes::from(manifest.encode_to_vec()), ..Default::default() };
    let metadata = out.mut_metadata();
    metadata.index = manifest.index;
    metadata.term = manifest.term;
    metadata.set_conf_state(to_conf_state(&manifest.conf_state.clone().unwrap_or_default()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proposals_and_unknown_types_are_refused() {
        for number in [0, 1, 2, 99] {
            let message = RaftMessage { msg_type: number, ..RaftMessage::default() };
            assert_eq!(from_peer(1, 2, message), Err(BadMessage::Type(number)));
        }
        let entry = RaftEntry { entry_type: 7, ..RaftEntry::default() };
        let message = RaftMessage { msg_type: eraftpb::MessageType::MsgAppend as u32, entries: vec![entry], ..RaftMessage::default() };
        assert_eq!(from_peer(1, 2, message), Err(BadMessage::Entry(7)));
    }
}
