//! One member of the Raft group: the `raft` crate's node, its log and the replicated state on redb, driven step by step.
//!
//! Sans-IO: inputs in, outputs out; the only I/O is redb's, whose `StorageBackend` the simulator replaces. No clock: time is
//! ticks. raft's types stay inside; bytes from the network are parsed by prost and checked field by field.
//!
//! How a group comes to be: an empty member has an id and nothing else, and never votes. [`Replica::form`] gives it a cluster id
//! and the first voters, once; a member that belongs to a cluster refuses another. Whoever forms a group must reach every voter,
//! so two groups can never share one.

mod convert;
mod node;
mod snapshot;
mod store;

pub use node::{Config, Input, Outputs, Progress, Replica, Reply, Role, Status};
pub use store::{FormError, Identity, OpenError};

/// The store broke: the member must stop, since what it promised may not be on the disk.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// redb, or the disk below it.
    #[error("the store failed")]
    Store(#[from] redb::Error),
    /// The raft crate found its own state impossible.
    #[error("raft failed")]
    Raft(#[from] raft::Error),
    /// A committed entry that this version cannot read.
    #[error("log entry {index} is no command that this version knows")]
    Entry {
        /// Where in the log.
        index: u64,
    },
}
