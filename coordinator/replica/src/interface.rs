//! What goes in and comes out of a member, and what is seen of it.

use std::collections::BTreeMap;

use probity_core::COMMAND_VERSION;
use probity_proto::v1::*;

use crate::pieces::PIECE_BYTES;
use crate::store::Identity;

/// Sizes and times of a member. A tick is 50 ms in production.
#[derive(Debug, Clone)]
pub struct Config {
    /// Given to a new store; an old one keeps its own.
    pub new_id: u64,
    /// An election starts after this many to twice as many ticks without a leader.
    pub election_ticks: usize,
    /// Heartbeats of the leader.
    pub heartbeat_ticks: usize,
    /// The state is written after this many applied entries...
    pub flush_entries: u64,
    /// ...or this many ticks.
    pub flush_ticks: u64,
    /// Committed entries of so many bytes are applied in one step, if there are more: ticks must not wait for a backlog.
    pub apply_bytes: u64,
    /// About how much of the state is written with each tick: what others wait for.
    pub piece_bytes: usize,
    /// With less than this in changes the state is not written anew as a whole.
    pub changes_bytes_min: u64,
    /// The log is cut when it is longer than this; a quarter of it is kept for followers that lag a little.
    pub log_entries_max: u64,
    /// The same in bytes: reports of large fleets make large entries, and the log is in memory too.
    pub log_bytes_max: u64,
    /// A file below this is not made smaller.
    pub compact_bytes_min: u64,
    /// A disk is slow when the 99th percentile of its commits takes this many microseconds...
    pub slow_persist_us: u64,
    /// ...and a leader hands over when that lasted this many ticks.
    pub slow_ticks: u64,
    /// The newest command set that this build understands; a test plays a newer or an older build.
    pub command_version: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            new_id: 1,
            election_ticks: 10,
            heartbeat_ticks: 2,
            flush_entries: 16_384,
            flush_ticks: 100,
            apply_bytes: 64 << 10,
            piece_bytes: PIECE_BYTES,
            changes_bytes_min: 8 << 20,
            log_entries_max: 20_000,
            log_bytes_max: 128 << 20,
            compact_bytes_min: 32 << 20,
            slow_persist_us: 100_000,
            slow_ticks: 200,
            command_version: COMMAND_VERSION,
        }
    }
}

/// What a member is told.
#[derive(Debug)]
pub enum Input {
    /// Time passes.
    Tick,
    /// This host's clocks now: at the head of each step, where the group's wall clocks are to be compared.
    Clock {
        /// Only ever grows.
        mono_us: u64,
        /// May be set at any time.
        wall_us: i64,
    },
    /// From another member.
    Peer(PeerMessage),
    /// A change, at the leader. `tag` comes back with the reply.
    Propose {
        /// The caller's own number.
        tag: u64,
        /// What to apply, encoded: see [`Draft`](crate::Draft).
        command: Vec<u8>,
    },
    /// A linearizable read barrier (ReadIndex). It may be dropped without a word: ask again.
    Read {
        /// The caller's own number.
        tag: u64,
    },
    /// A change of members, at the leader: AddMember, PromoteMember or RemoveMember. Who votes changes with it, or neither does.
    Configure {
        /// The caller's own number.
        tag: u64,
        /// Which change.
        command: Command,
    },
    /// Hands leadership to a voter that has caught up. The answer says that it was begun.
    Transfer {
        /// The caller's own number.
        tag: u64,
        /// To whom.
        to: u64,
    },
    /// What a commit to this member's disk takes, about every second: the leader hands over when its disk is slow and another's is not.
    Persistence {
        /// 99th percentile of the last seconds, in microseconds.
        p99_us: u64,
    },
    /// Nothing can be sent to a member now.
    Unreachable(u64),
}

/// What came of a proposal or a read.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Committed and applied here.
    Applied {
        /// Where in the log.
        index: u64,
        /// What apply answered.
        result: CommandResult,
    },
    /// This member does not lead; nothing was proposed.
    NotLeader {
        /// Who does, when known.
        leader: Option<u64>,
    },
    /// Too much is under way; nothing was proposed.
    Busy,
    /// The state holds everything that was committed when the read began.
    ReadReady,
}

/// A member's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Not in a group yet.
    Unformed,
    /// Follows.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// What a member wants done. Messages may be sent at once: what they promise is on the disk.
#[derive(Debug, Default)]
pub struct Outputs {
    /// To other members.
    pub messages: Vec<PeerMessage>,
    /// To callers: (tag, reply).
    pub replies: Vec<(u64, Reply)>,
    /// Something was applied, or the state was replaced.
    pub applied: bool,
    /// There is more to do at once: another step, with or without inputs.
    pub more: bool,
    /// Messages that were dropped because they make no sense: whose, and why. For the log of a person.
    pub nonsense: Vec<(u64, String)>,
}

/// How far another member is, as the leader knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Its log equals ours up to here.
    pub matched: u64,
    /// It was heard of lately.
    pub recent: bool,
}

/// A look at a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Who it is.
    pub identity: Identity,
    /// Its role.
    pub role: Role,
    /// The term it knows.
    pub term: u64,
    /// The leader it knows.
    pub leader: Option<u64>,
    /// Committed up to.
    pub commit: u64,
    /// Applied up to.
    pub applied: u64,
    /// What the state hash is of: the state as it was after this entry. It follows `applied` with each round of writing.
    pub hashed: u64,
    /// Its log's end.
    pub last: u64,
    /// The voters; in the middle of a change, those to be.
    pub voters: Vec<u64>,
    /// Those who still vote until the change in hand is over; else empty.
    pub voters_outgoing: Vec<u64>,
    /// Members that catch up.
    pub learners: Vec<u64>,
    /// Nothing can be written here for want of space: no part is taken until there is room.
    pub disk_full: bool,
    /// Of each member, when it leads.
    pub progress: BTreeMap<u64, Progress>,
}
