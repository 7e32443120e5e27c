//! Request ids: a retry after a lost reply is applied once (for 15 minutes of log time).

use probity_proto::bugs::{self, Bug};
use probity_proto::v1::{CommandResult, RefusalCode, RequestRecord, command_result};
use prost::Message;

use crate::state::State;

/// How long an answer is remembered, in microseconds of log time.
const KEPT_US: i64 = 15 * 60 * 1_000_000;
/// How many answers are remembered at most; in a flood the oldest go first.
pub(crate) const REQUESTS_KEPT: usize = 20_000;

/// What was answered to this request before.
pub fn find(state: &State, id: &str) -> Option<CommandResult> {
    if id.is_empty() || bugs::on(Bug::RequestForgotten) {
        return None;
    }
    let known = state.requests.get(id).filter(|r| r.at_us + KEPT_US >= state.now())?;
    CommandResult::decode(known.result.as_slice()).ok()
}

/// Remembers the answer; but a change that others came in between is judged anew, and asked for again under the same id.
pub(crate) fn remember(state: &mut State, id: &str, result: &CommandResult) {
    let conflict = matches!(&result.result, Some(command_result::Result::Refused(r)) if r.code() == RefusalCode::Conflict);
    if id.is_empty() || conflict {
        return;
    }
    let request = RequestRecord { id: id.to_owned(), at_us: state.now(), result: result.encode_to_vec() };
    if let Some(old) = state.requests.get(id) {
        state.index.requests.remove(&(old.at_us, old.id.clone()));
    }
    state.index.add_request(&request);
    state.requests.put(request);
}

/// Forgets what has expired.
pub(crate) fn prune(state: &mut State) {
    let now = state.now();
    while let Some((at_us, id)) = state.index.requests.first().cloned()
        && (at_us + KEPT_US < now || state.requests.len() > REQUESTS_KEPT)
    {
        state.index.requests.remove(&(at_us, id.clone()));
        state.requests.remove(&id);
    }
}
