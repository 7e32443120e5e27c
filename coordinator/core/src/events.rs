//! What happened, for people: a bounded history in the state.

use probity_proto::v1::EventRecord;

use crate::state::State;
use crate::table::number_key;

/// How many events are kept.
pub const EVENTS_KEPT: usize = 5_000;

/// Records an event at the present log time.
pub fn record(state: &mut State, kind: &str, namespace: &str, subject: &str, message: String) {
    let at_us = state.now();
    let meta = state.meta_mut();
    let sequence = meta.next_event;
    meta.next_event += 1;
    state.events.put(EventRecord { sequence, at_us, kind: kind.to_owned(), subject: subject.to_owned(), namespace: namespace.to_owned(), message });
    if let Some(old) = sequence.checked_sub(EVENTS_KEPT as u64) {
        state.events.remove(&number_key(old));
    }
}
