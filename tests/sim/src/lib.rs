//! The simulator: the real replica (raft, log, state on redb), the real core and the real prober sessions, on a simulated
//! network, simulated disks and simulated clocks; one seed, one thread, no real time.
//!
//! First safety under faults, then everything is healed and progress is demanded. The same seed gives the same trace hash.
//! What tokio does in production (streams, time-outs, the leader's duties outside the log) is mirrored by thin drivers here:
//! `step`, `lead`, `fleet` and `duties` for the coordinator's, `prober` for the prober's. What is simulated, and what is checked under which name, stands
//! in docs/simulation.md.

mod change;
mod checks;
mod client;
mod clock;
mod disk;
mod duties;
mod engine;
mod fleet;
mod inventory;
mod lead;
mod member;
mod nemesis;
mod net;
mod plan;
mod prober;
mod report;
mod rng;
mod setup;
mod step;
mod world;

pub use probity_proto::bugs::{BUGS, Bug};
pub use report::{Counts, Report, Violation};

/// Runs one seed, with a known bug or without.
pub fn run(seed: u64, bug: Option<Bug>) -> Report {
    probity_proto::bugs::set(bug);
    probity_proto::bugs::set_small_pieces(seed % 2 == 1);
    let report = world::World::new(seed).run();
    probity_proto::bugs::set(None);
    probity_proto::bugs::set_small_pieces(false);
    report
}

thread_local! {
    static QUIET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs what may panic over a damaged store without a word of it.
pub(crate) fn quietly<T>(f: impl FnOnce() -> T) -> T {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
    let out = f();
    QUIET.set(false);
    out
}
