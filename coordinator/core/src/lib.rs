//! The replicated core: state, commands, and what follows from them.
//!
//! Architecture invariant: apply is a pure function of (state, command) (rule R3). No clock, no randomness, no I/O, no
//! float, no hash-map order, no YAML or JSON parsing. At equal cluster version and equal index, every replica has the
//! same state hash.

pub mod events;
mod state;
mod table;

pub use state::{LoadError, State, resource_key};
pub use table::{Change, Record, Table, number_key, pair_key};

use probity_proto::v1::{Command, CommandResult};

/// The newest command set that this build understands. A cluster runs at the lowest of its members'.
pub const COMMAND_VERSION: u32 = 1;

/// Applies the command at `index` of the log.
pub fn apply(state: &mut State, index: u64, command: &Command) -> CommandResult {
    let _ = (index, command);
    let now = state.now().max(command.time_us);
    state.meta_mut().time_us = now;
    CommandResult::default()
}

/// When, in log time, something happens without a command: the leader proposes a tick then.
pub fn next_deadline(state: &State) -> Option<i64> {
    let _ = state;
    None
}
