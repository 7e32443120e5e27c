//! Entries for tests/fuzz: what other members send, on any bytes. Must come to an end, and not panic.

use probity_proto::v1::*;
use prost::Message;

use crate::convert;

/// A message of another member, converted as far as raft takes it.
pub fn peer_message(bytes: &[u8]) {
    let _ = convert::to_conf_change(bytes);
    let Ok(peer) = PeerMessage::decode(bytes) else { return };
    let Some(peer_message::Message::Raft(raft)) = peer.message else { return };
    if let Ok(message) = convert::from_peer(peer.from, peer.to, raft) {
        // The generated getters panic on unknown numbers: none is let through.
        let _ = (message.get_msg_type(), message.get_entries().iter().map(|e| e.get_entry_type()).collect::<Vec<_>>());
        assert!(convert::to_peer(&peer.cluster_id, message).is_some(), "what is taken can be sent on");
    }
}
