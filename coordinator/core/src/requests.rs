//! Request ids: a retry after a lost reply is applied once (for 15 minutes of log time).

use prost::Message;
use probity_proto::v1::{CommandResult, RequestRecord};

use crate::state::State;

/// How long an answer is remembered, in microseconds of log time.
const KEPT_US: i64 = 15 * 60 * 1_000_000;

/// How often expired answers are looked for.
const PRUNE_EVERY_US: i64 = 60 * 1_000_000;

/// What was answered to this request before.
pub(crate) fn find(state: &State, id: &str) -> Option<CommandResult> {
    if id.is_empty() {
        return None;
    }
    CommandResult::decode(state.requests.get(id)?.result.as_slice()).ok()
}

/// Remembers the answer.
pub(crate) fn remember(state: &mut State, id: &str, result: &CommandResult) {
    if !id.is_empty() {
        let at_us = state.now();
        state.requests.put(RequestRecord { id: id.to_owned(), at_us, result: result.encode_to_vec() });
    }
}

/// Forgets what has expired, once a minute.
pub(crate) fn prune(state: &mut State) {
    let now = state.now();
    if now < state.meta().pruned_at_us + PRUNE_EVERY_US {
        return;
    }
    state.meta_mut().pruned_at_us = now;
    let old: Vec<String> = state.requests.iter().filter(|r| r.at_us + KEPT_US < now).map(|r| r.id.clone()).collect();
    for id in old {
        state.requests.remove(&id);
    }
}
