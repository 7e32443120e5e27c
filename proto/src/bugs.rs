//! Known bugs that the simulator must find: the proof of the proof.
//!
//! Without the feature `sim-bugs` [`on`] is constantly false and nothing of them is compiled. With it, a bug is on only in a thread
//! that asked for it, so a build of the whole workspace behaves as ever.

/// A bug that somebody could have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// A vote is forgotten in a crash: two leaders in one term.
    VoteNotPersisted,
    /// A client is answered when its command is in the leader's own log.
    AckBeforeCommit,
    /// A row that came twice counts twice.
    DuplicateRowApplied,
    /// Leases follow the host's wall clock, which may be set back.
    LeaseByWallClock,
    /// Apply walks over a hash map, whose order every process has to itself.
    HashMapOrder,
    /// A prober does not remember across its restarts which faults it has begun.
    EndedIdForgotten,
    /// A leader applies what it has proposed, not what is committed.
    ApplyBeforeCommit,
    /// A snapshot brings the state, and not who belongs to the group.
    SnapshotWithoutConfState,
    /// Whoever is asked answers a read from what it has.
    ReadWithoutQuorum,
    /// The log is written and not synced.
    LogNotSynced,
    /// A new leader takes its own wall clock for the time.
    WallClockUnchecked,
    /// A request that comes a second time is done a second time.
    RequestForgotten,
    /// A set of targets that lost much is taken without asking anybody.
    SmallSetTaken,
}

/// All of them, with their names on the command line.
pub const BUGS: &[(&str, Bug)] = &[
    ("vote-not-persisted", Bug::VoteNotPersisted),
    ("ack-before-commit", Bug::AckBeforeCommit),
    ("duplicate-row-applied", Bug::DuplicateRowApplied),
    ("lease-by-wall-clock", Bug::LeaseByWallClock),
    ("hash-map-order", Bug::HashMapOrder),
    ("ended-id-forgotten", Bug::EndedIdForgotten),
    ("apply-before-commit", Bug::ApplyBeforeCommit),
    ("snapshot-without-conf-state", Bug::SnapshotWithoutConfState),
    ("read-without-quorum", Bug::ReadWithoutQuorum),
    ("log-not-synced", Bug::LogNotSynced),
    ("wall-clock-unchecked", Bug::WallClockUnchecked),
    ("request-forgotten", Bug::RequestForgotten),
    ("small-set-taken", Bug::SmallSetTaken),
];

#[cfg(feature = "sim-bugs")]
mod switch {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<Option<Bug>> = const { Cell::new(None) };
        static SALT: Cell<u64> = const { Cell::new(0) };
        static SMALL: Cell<bool> = const { Cell::new(false) };
    }

    /// Lets what is done in pieces be done in very small ones in this thread: a simulated cluster is small.
    pub fn set_small_pieces(on: bool) {
        SMALL.set(on);
    }

    /// How large a piece is.
    pub fn at_once(usual: usize) -> usize {
        if SMALL.get() { 2 } else { usual }
    }

    /// Switches one bug on in this thread, or all off.
    pub fn set(bug: Option<Bug>) {
        ON.set(bug);
        SALT.set(0);
    }

    /// Whether a bug is on in this thread.
    pub fn on(bug: Bug) -> bool {
        ON.get() == Some(bug)
    }

    /// Puts things into an order that is another one with each call, as a hash map's is; the same in each run of a simulation.
    pub fn disorder<T>(bug: Bug, things: &mut [T]) {
        if on(bug) && !things.is_empty() {
            SALT.set(SALT.get() + 1);
            let by = SALT.get() as usize % things.len();
            things.rotate_left(by);
        }
    }
}

#[cfg(not(feature = "sim-bugs"))]
mod switch {
    use super::Bug;

    /// No bug is ever on.
    #[inline(always)]
    pub const fn on(_: Bug) -> bool {
        false
    }

    /// How large a piece is: as usual.
    #[inline(always)]
    pub const fn at_once(usual: usize) -> usize {
        usual
    }

    /// Leaves the order as it is.
    #[inline(always)]
    pub fn disorder<T>(_: Bug, _: &mut [T]) {}
}

pub use switch::*;
