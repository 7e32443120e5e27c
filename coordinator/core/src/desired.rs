//! What a prober should do: its assignments and its faults.

use probity_proto::v1::*;

use crate::state::State;
use crate::{assign, gameday};

/// The share of good runs that are traced, in parts per million.
pub const TRACE_PPM: u32 = 10_000;

/// The assignments and faults of a prober, in a fixed order.
pub fn desired_set(state: &State, prober: &str, trace_ppm: u32) -> (Vec<AssignmentSpec>, Vec<FaultWish>) {
    let disturbed = !gameday::running(state).is_empty();
    let assignments = assign::of_prober(state, prober).map(|a| assignment(state, a, trace_ppm, disturbed)).collect();
    let fence = state.meta().fence;
    let faults = state
        .faults
        .iter()
        .filter(|f| f.prober == prober && f.ended_at_us == 0)
        .map(|f| FaultWish {
            fault_id: f.id.clone(),
            fence: f.fence.max(fence),
            spec: f.spec.clone(),
            not_after_us: f.not_after_us,
            wanted: f.wanted,
            game_day: f.game_day.clone(),
        })
        .collect();
    (assignments, faults)
}

fn assignment(state: &State, a: &AssignmentRecord, trace_ppm: u32, disturbed: bool) -> AssignmentSpec {
    AssignmentSpec {
        id: a.id,
        check: a.check.clone(),
        generation: a.generation,
        spec: a.spec.clone(),
        interval_us: a.interval_us,
        phase_us: a.phase_us,
        from_us: a.from_us,
        until_us: a.until_us,
        next_n: a.next_n,
        thresholds_us: a.thresholds_us.clone(),
        game_day_trace: if disturbed { gameday::trace_of_check(state, &a.check) } else { String::new() },
        trace_ppm,
    }
}
