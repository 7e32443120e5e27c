//! Whether a peer's message makes sense to raft, which takes what does not for a bug of its own and panics.
//!
//! A member that speaks the protocol never sends such; one whose disk or memory lies may. It is dropped, and said.

use raft::RaftLog;
use raft::Storage;
use raft::eraftpb::{Message, MessageType};

/// Terms grow by elections: nobody had so many.
pub(crate) const TERM_MAX: u64 = u64::MAX / 2;

/// Why a message makes none; nothing when it does.
pub(crate) fn nonsense(log: &RaftLog<impl Storage>, m: &Message) -> Option<String> {
    if m.term > TERM_MAX {
        return Some(format!("term {}", m.term));
    }
    match m.msg_type {
        MessageType::MsgHeartbeat if m.commit > log.last_index() => {
            Some(format!("{} is committed, and this member's log ends at {}: has its disk lost what it acknowledged?", m.commit, log.last_index()))
        }
        MessageType::MsgAppend => appended(log, m),
        _ => None,
    }
}

/// Entries follow each other, and do not change what is committed.
fn appended(log: &RaftLog<impl Storage>, m: &Message) -> Option<String> {
    let (mut index, mut term) = (m.index, m.log_term);
    for entry in &m.entries {
        if Some(entry.index) != index.checked_add(1) || entry.term < term || entry.term > m.term {
            return Some(format!("entry {} of term {} after entry {index} of term {term}", entry.index, entry.term));
        }
        (index, term) = (entry.index, entry.term);
    }
    if !log.match_term(m.index, m.log_term) {
        return None;
    }
    let other = m.entries.iter().take_while(|e| e.index <= log.committed).find(|e| !log.match_term(e.index, e.term));
    other.map(|e| format!("another entry {} than the committed one", e.index))
}
