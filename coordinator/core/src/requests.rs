//! Request ids: a retry after a lost reply is applied once (for 15 minutes of log time).

use probity_proto::bugs::{self, Bug};
use probity_proto::v1::{CommandResult, RefusalCode, RequestRecord, command_result};
use prost::Message;

use crate::state::State;
use crate::table::Record;

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
    let now = state.now();
    let request = RequestRecord { id: id.to_owned(), at_us: now, result: result.encode_to_vec() };
    state.index.add_request(&request);
    // One of the same time stands in the index as this one does.
    if let Some(old) = state.requests.put(request).filter(|old| old.at_us != now) {
        state.index.requests.remove(&(old.at_us, old.key()));
    }
}

/// Forgets what has expired.
pub(crate) fn prune(state: &mut State) {
    let now = state.now();
    let due = |state: &State| state.index.requests.first().is_some_and(|(at_us, _)| at_us + KEPT_US < now || state.requests.len() > REQUESTS_KEPT);
    while due(state)
        && let Some((_, id)) = state.index.requests.pop_first()
    {
        state.requests.remove(&id);
    }
}
