//! One member of the Raft group: the `raft` crate's node, its log and the replicated state on redb, driven step by step.
//!
//! Sans-IO: inputs in, outputs out; the only I/O is redb's, whose `StorageBackend` the simulator replaces. No clock: time is
//! ticks. raft's types stay inside; bytes from the network are parsed by prost and checked field by field.
//!
//! How a group comes to be: an empty member has an id and nothing else, and never votes. [`Replica::form`] gives it a cluster id
//! and the first voters, once; a member that belongs to a cluster refuses another. Whoever forms a group must reach every voter,
//! so two groups can never share one. Later members come by [`Replica::join`]: as learners that know nothing, not even who votes,
//! until the leader's snapshot tells them; they vote when they have caught up.

mod agree;
mod backup;
mod clock;
mod convert;
mod disk;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod interface;
mod log;
mod members;
mod node;
mod peers;
mod pieces;
mod propose;
mod sense;
mod slow;
mod snapshot;
mod store;

pub use backup::{Backup, BackupError, Checked};
pub use clock::ClusterClock;
pub use disk::Medium;
pub use interface::{Config, Input, Outputs, Progress, Reply, Role, Status};
pub use node::Replica;
pub use propose::Draft;
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
    /// The cluster has left this build behind.
    #[error("the cluster runs command version {cluster}, this build understands {build}: start a newer one")]
    Version {
        /// Of the cluster.
        cluster: u32,
        /// Of this build.
        build: u32,
    },
    /// What was written is not what is read.
    #[error("{0}")]
    Damaged(String),
    /// It is in no configuration any more.
    #[error(
        "this member was removed from the cluster (log index {index}): delete its data directory; `probity cluster join` takes it in again as a new member"
    )]
    Removed {
        /// Where its removal was applied, here or where it was heard of.
        index: u64,
    },
    /// The leader knows entries to be on this disk that are not.
    #[error(
        "the disk went back in time: entries up to {acknowledged} were acknowledged from here, and the log ends at {last}; delete the data directory, then `probity cluster replace` this member"
    )]
    Lost {
        /// What this member once acknowledged.
        acknowledged: u64,
        /// What it has.
        last: u64,
    },
    /// A committed entry that this version cannot read.
    #[error("log entry {index} is no command that this version knows")]
    Entry {
        /// Where in the log.
        index: u64,
    },
}
