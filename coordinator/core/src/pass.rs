//! The pass: what a fleet that changes moves may be very much. The command that begins it places some; the rest follows with the ticks after it, once
//! through all checks, so that no step of a replica takes longer than the others wait for it: of other commands hundreds are in a step.
//!
//! Architecture invariant: how far a command comes follows from the state alone. The numbers that only some replicas have at hand
//! (`state.placed`) save work, and decide nothing.

use probity_proto::bugs;
use probity_proto::v1::PlacementPassRecord;

use crate::placement::{self, Candidate, Fleet};
use crate::state::State;
use crate::verdict;

/// Checks that one command places anew: some 50 ms of work.
const PLACED_AT_ONCE: usize = 1_000;
/// Checks that it looks at for that: a replica that has no numbers at hand places all of them.
const LOOKED_AT_ONCE: usize = 2_000;
/// With more newcomers every check is placed anew: comparing it with each of them would cost more...
const COMPARED_MAX: usize = 16;
/// ...and so it is when one of so many probers is new: most checks want one of them.
const COMPARED_SHARE: usize = 8;

/// Places a check, and judges it, now if the command has not placed too many: then the pass does.
pub(crate) fn soon(state: &mut State, fleet: &Fleet, check: &str) {
    if state.placed_now < bugs::at_once(PLACED_AT_ONCE) {
        state.placed_now += 1;
        settle(state, fleet, check);
        return;
    }
    // Which checks wait is state: it cannot be told from their assignments.
    if let Some(check) = state.checks.get_mut(check) {
        check.unsettled = true;
    }
    if state.passes.get("").is_none_or(|p| !p.owed || p.wrapped || p.after != p.until) {
        begin(state, |pass| pass.owed = true);
    }
}

/// Who comes may be wanted by any check.
pub(crate) fn compare_with(state: &mut State, newcomers: Vec<String>) {
    begin(state, |pass| {
        pass.newcomers.extend(newcomers);
        pass.newcomers.sort_unstable();
        pass.newcomers.dedup();
    });
}

/// Every check is to be placed.
pub(crate) fn everything(state: &mut State) {
    begin(state, |pass| pass.everything = true);
}

/// Lets the pass do more, for each check once: round from where it is.
fn begin(state: &mut State, more: impl FnOnce(&mut PlacementPassRecord)) {
    state.pass_goes_on = true;
    let mut pass = state.passes.get("").cloned().unwrap_or_default();
    more(&mut pass);
    pass.until = pass.after.clone();
    pass.wrapped = false;
    state.passes.put(pass);
}

/// The next piece of the pass, if it is this command's to do.
pub(crate) fn go_on(state: &mut State) {
    let Some(mut pass) = state.passes.get("").filter(|_| state.pass_goes_on).cloned() else { return };
    let fleet = Fleet::of(state);
    let new: Vec<&Candidate> = fleet.among(&pass.newcomers);
    let many = pass.newcomers.len() > COMPARED_MAX || pass.newcomers.len() * bugs::at_once(COMPARED_SHARE) > fleet.len();
    let all = pass.everything || many;
    let (mut places, mut looks) = (bugs::at_once(PLACED_AT_ONCE).saturating_sub(state.placed_now), bugs::at_once(LOOKED_AT_ONCE));
    let mut concerned = Vec::new();
    let mut through = true;
    let mut numbers = placement::numbers_after(state, &pass.after);
    for record in state.checks.after(&pass.after).take_while(|c| !pass.wrapped || c.check <= pass.until) {
        let check = &record.check;
        if looks == 0 || places == 0 {
            through = false;
            break;
        }
        looks -= 1;
        let due = all || pass.owed && record.unsettled;
        places -= usize::from(due);
        if due || !pass.newcomers.is_empty() && numbers.may_want(check, &new) {
            concerned.push(check.clone());
        }
        pass.after.clone_from(check);
    }
    if !through {
        state.passes.put(pass);
    } else if pass.wrapped || pass.until.is_empty() {
        state.passes.remove("");
    } else {
        pass.after.clear();
        pass.wrapped = true;
        state.passes.put(pass);
    }
    for check in concerned {
        settle(state, &fleet, &check);
    }
}

fn settle(state: &mut State, fleet: &Fleet, check: &str) {
    if state.checks.get(check).is_some_and(|c| c.unsettled)
        && let Some(check) = state.checks.get_mut(check)
    {
        check.unsettled = false;
    }
    placement::place(state, fleet, check);
    // Whoever left is not heard any more, even if nobody else can run it.
    verdict::judge(state, check, state.now(), 0);
}

/// While there is something left to place, time need not pass.
pub(crate) fn next_deadline(state: &State) -> Option<i64> {
    (!state.passes.is_empty()).then(|| state.now())
}
