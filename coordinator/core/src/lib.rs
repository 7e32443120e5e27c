//! The replicated core: state, commands, and what follows from them.
//!
//! Architecture invariant: apply is a pure function of (state, command) (rule R3). No clock, no randomness, no I/O, no
//! float, no hash-map order, no YAML or JSON parsing. At equal cluster version and equal index, every replica has the
//! same state hash.

pub mod access;
pub mod account;
pub mod admission;
mod apply;
pub mod assign;
pub mod audit;
pub mod checks;
pub mod deadline;
pub mod desired;
pub mod discovery;
pub mod events;
pub mod fleet;
pub mod gameday;
mod index;
pub mod invariants;
pub mod members;
mod pass;
pub mod placement;
pub mod requests;
mod resources;
pub mod restore;
pub mod rows;
mod sickness;
pub mod slo;
mod state;
mod table;
pub mod verdict;
pub mod voice;

pub use apply::{COMMAND_VERSION, apply};
pub use deadline::next_deadline;
pub use state::{LoadError, State, resource_key};
pub use table::{Change, Key, Record, Table, number_key, pair_key};
