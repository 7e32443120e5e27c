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
    /// An entry of another kind than a command or a change of members.
    #[error("entry type {0} is not supported")]
    Entry(u32),
    /// A change of members that makes no sense.
    #[error("entry {0} is no change of members")]
    ConfChange(u64),
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
    let known = [eraftpb::EntryType::EntryNormal, eraftpb::EntryType::EntryConfChangeV2];
    let entry_type = known.into_iter().find(|t| *t as u32 == e.entry_type).ok_or(BadMessage::Entry(e.entry_type))?;
    if entry_type == eraftpb::EntryType::EntryConfChangeV2 {
        // Checked where it comes in: when it is applied it is too late to refuse.
        to_conf_change(&e.data).map_err(|()| BadMessage::ConfChange(e.index))?;
    }
    Ok(eraftpb::Entry { entry_type, term: e.term, index: e.index, data: e.data, context: e.context, ..Default::default() })
}

pub(crate) fn from_entry(e: eraftpb::Entry) -> RaftEntry {
    RaftEntry { entry_type: e.entry_type as u32, term: e.term, index: e.index, data: e.data, context: e.context }
}

/// A change of members from an entry's data: parsed by prost, rebuilt for raft. Both encodings are the same on the wire.
pub(crate) fn to_conf_change(data: &[u8]) -> Result<eraftpb::ConfChangeV2, ()> {
    let record = ConfChangeRecord::decode(data).map_err(drop)?;
    let transition = match record.transition {
        0 => eraftpb::ConfChangeTransition::Auto,
        1 => eraftpb::ConfChangeTransition::Implicit,
        2 => eraftpb::ConfChangeTransition::Explicit,
        _ => return Err(()),
    };
    let single = |change: &ConfChangeSingle| {
        let change_type = match change.change_type {
            0 => eraftpb::ConfChangeType::AddNode,
            1 => eraftpb::ConfChangeType::RemoveNode,
            2 => eraftpb::ConfChangeType::AddLearnerNode,
            _ => return Err(()),
        };
        // raft takes id 0 for "none".
        if change.node == 0 { Err(()) } else { Ok(eraftpb::ConfChangeSingle { change_type, node_id: change.node, ..Default::default() }) }
    };
    let changes: Vec<_> = record.changes.iter().map(single).collect::<Result<_, ()>>()?;
    Ok(eraftpb::ConfChangeV2 { transition, changes: changes.into(), context: record.context.into(), ..Default::default() })
}

pub(crate) fn from_conf_state(c: &eraftpb::ConfState) -> ConfStateRecord {
    // Sorted: raft's order comes from a hash table.
    let sorted = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    ConfStateRecord {
        voters: sorted(&c.voters),
        learners: sorted(&c.learners),
        voters_outgoing: sorted(&c.voters_outgoing),
        learners_next: sorted(&c.learners_next),
        auto_leave: c.auto_leave,
    }
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

    #[test]
    fn a_change_of_members_is_read_from_raft_s_own_bytes_and_nonsense_is_refused() {
        use protobuf::Message as _;
        let single = |change_type, node_id| eraftpb::ConfChangeSingle { change_type, node_id, ..Default::default() };
        let changes = vec![single(eraftpb::ConfChangeType::AddNode, u64::MAX), single(eraftpb::ConfChangeType::AddLearnerNode, 7)];
        let change = eraftpb::ConfChangeV2 {
            transition: eraftpb::ConfChangeTransition::Explicit,
            changes: changes.into(),
            context: Bytes::from_static(b"x"),
            ..Default::default()
        };
        assert_eq!(to_conf_change(&change.write_to_bytes().expect("bytes")), Ok(change));
        assert!(to_conf_change(&[]).expect("the change that leaves a joint configuration").leave_joint());
        let nobody = ConfChangeSingle { change_type: 0, node: 0 };
        let unknown = ConfChangeSingle { change_type: 3, node: 1 };
        for wrong in [
            ConfChangeRecord { transition: 3, ..Default::default() },
            ConfChangeRecord { changes: vec![nobody], ..Default::default() },
            ConfChangeRecord { changes: vec![unknown], ..Default::default() },
        ] {
            let entry = RaftEntry { entry_type: 2, index: 5, data: wrong.encode_to_vec().into(), ..RaftEntry::default() };
            assert_eq!(to_entry(entry), Err(BadMessage::ConfChange(5)));
        }
    }
}
