//! When something happens without a command: the leader proposes a tick then, and not before.

use crate::state::State;
use crate::{account, fleet, gameday, pass, slo};

/// The next such moment in log time.
pub fn next_deadline(state: &State) -> Option<i64> {
    [pass::next_deadline(state), account::next_deadline(state), fleet::next_deadline(state), slo::next_deadline(state), gameday::next_deadline(state)]
        .into_iter()
        .flatten()
        .min()
}
