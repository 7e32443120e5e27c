//! A disk that is full, and a file that is larger than what is in it.
//!
//! A full disk is the one error of a store that a member outlives. redb trusts its file no more after any error, so the member
//! does in place what a crash and a restart would do: it forgets all but what reads need, hands leadership over, and opens its
//! file again when there is room. What it had promised is on the disk; what it had not has no effect. A failed sync is another
//! matter: what was written before it may be lost and still read back, so it ends the member, whatever error it bears.
//!
//! redb gives space back only by a compaction, which stops the member while it runs. So it is done where nobody waits: before a
//! member takes part, and by one follower at a time, each in its own minute of the log's time.

use probity_proto::v1::peer_message::Message as Peer;
use probity_proto::v1::*;
use raft::eraftpb::MessageType;

use crate::Fatal;
use crate::interface::{Input, Outputs, Reply, Role, Status};
use crate::node::Replica;
use crate::store::{OpenError, Store};

/// The file of a member, which it may have to open again.
pub trait Medium: Send {
    /// Opens it. No sync may fail with an error of kind `StorageFull` or `QuotaExceeded`: those are taken for a write that did not happen.
    fn open(&mut self) -> Result<redb::Database, redb::DatabaseError>;
    /// Its size in bytes.
    fn bytes(&self) -> u64;
}

/// A full disk is looked at again after this many ticks.
const RETRY_TICKS: u64 = 20;
/// There is room again when this much can be written: enough for some seconds, so that a member does not come and go.
const ROOM_BYTES: usize = 1 << 20;
/// A file is worth a compaction when what is in use is less than its size divided by this.
const COMPACT_RATIO: u64 = 2;
/// How long the turn of one follower is, in log time.
const TURN_US: i64 = 60_000_000;
/// How often a follower looks whether it is its turn.
const LOOK_TICKS: u64 = 100;

/// What remains of a member while its disk is full.
pub(crate) struct Full {
    ticks: u64,
    pub(crate) status: Status,
}

/// Whether an error says that nothing was written for want of space.
pub(crate) fn is_full(error: &Fatal) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error, Fatal::Store(redb::Error::Io(e)) if matches!(e.kind(), StorageFull | QuotaExceeded))
}

impl Replica {
    /// Opens a member on its file, which it may open again: it outlives a full disk, and gives space back.
    pub fn open_on(config: crate::Config, db: redb::Database, medium: Box<dyn Medium>, incarnation: u64) -> Result<Replica, OpenError> {
        let mut db = db;
        let mut medium = medium;
        if medium.bytes() >= config.compact_bytes_min
            && let Err(error) = compact_if_wasteful(&mut db, medium.bytes()).map_err(Fatal::Store)
        {
            // Without room for it, it is left for another time; but after an error redb does nothing more with a file.
            if !is_full(&error) {
                return Err(OpenError::Compaction(error.into()));
            }
            drop(db);
            db = medium.open().map_err(|e| OpenError::Store(e.into()))?;
        }
        let mut replica = Replica::open(config, db, incarnation)?;
        replica.medium = Some(medium);
        Ok(replica)
    }

    /// Whether nothing can be written for want of space.
    pub fn disk_full(&self) -> bool {
        self.full.is_some()
    }

    /// Lets go of everything but what reads need.
    pub(crate) fn on_full(&mut self, out: &mut Outputs) {
        let mut status = self.status();
        if status.role == Role::Leader
            && let Some(to) = self.successor()
        {
            // Straight to the successor: raft is gone in a moment. It is safe from whoever leads, at any time.
            let timeout_now = RaftMessage { msg_type: MessageType::MsgTimeoutNow as u32, term: status.term, ..RaftMessage::default() };
            let identity = &status.identity;
            out.messages.push(PeerMessage { cluster_id: identity.cluster_id.clone(), from: identity.id, to, message: Some(Peer::Raft(timeout_now)) });
        }
        status.role = Role::Follower;
        status.leader = None;
        status.progress.clear();
        status.disk_full = true;
        self.full = Some(Full { ticks: 0, status });
        self.raft = None;
        self.unformed = None;
        self.staging = None;
        self.staged = None;
        self.stop_writing();
        self.reads.clear();
    }

    /// A step while the disk is full: nothing is taken, and after a while the disk is looked at.
    pub(crate) fn step_full(&mut self, inputs: impl IntoIterator<Item = Input>, out: &mut Outputs) -> Result<(), Fatal> {
        for input in inputs {
            match input {
                Input::Propose { tag, .. } | Input::Read { tag } | Input::Configure { tag, .. } | Input::Transfer { tag, .. } => {
                    out.replies.push((tag, Reply::NotLeader { leader: None }));
                }
                Input::Tick => {
                    let Some(full) = &mut self.full else { continue };
                    full.ticks += 1;
                    if full.ticks.is_multiple_of(RETRY_TICKS) {
                        self.look_for_room(out)?;
                    }
                }
                Input::Peer(_) | Input::Unreachable(_) | Input::Persistence { .. } | Input::Clock { .. } => {}
            }
        }
        Ok(())
    }

    /// Opens the file again; back to full when there is no room yet.
    fn look_for_room(&mut self, out: &mut Outputs) -> Result<(), Fatal> {
        let Some(medium) = &mut self.medium else { return Ok(()) };
        // A backup that is still read keeps the file: then the next look will do.
        let Ok(db) = medium.open() else { return Ok(()) };
        if !Store::has_room(&db, ROOM_BYTES) {
            return Ok(());
        }
        let applied = self.applied;
        let again = |e: OpenError| match e {
            // The last thing that it wrote was its own removal.
            OpenError::Removed { .. } => Fatal::Removed { index: applied },
            e => Fatal::Damaged(format!("the store cannot be opened again after the disk was full: {e}")),
        };
        let (store, state) = Store::open(db, self.config.new_id).map_err(again)?;
        self.incarnation = self.incarnation.wrapping_add(1);
        self.unformed = Some(store);
        self.state = state;
        self.full = None;
        self.start().map_err(again)?;
        out.applied = true;
        Ok(())
    }

    /// A follower whose turn it is gives space back.
    pub(crate) fn tend_file(&mut self) -> Result<(), Fatal> {
        if !self.ticks.is_multiple_of(LOOK_TICKS) || !self.may_pause() {
            return Ok(());
        }
        let bytes = self.medium.as_ref().map_or(0, |m| m.bytes());
        // Looking costs a walk through the file: once in each turn.
        let turn = self.state.now().div_euclid(TURN_US);
        if bytes < self.config.compact_bytes_min || self.looked_in_turn == turn {
            return Ok(());
        }
        self.looked_in_turn = turn;
        let Some(raft) = &mut self.raft else { return Ok(()) };
        if compact_if_wasteful(raft.mut_store().database(), bytes)? {
            self.compactions += 1;
        }
        Ok(())
    }

    /// Whether nobody waits for this member, and no other one may pause now.
    fn may_pause(&self) -> bool {
        let status = self.status();
        let followed = status.role == Role::Follower && status.leader.is_some_and(|l| l != status.identity.id);
        if !followed || self.staging.is_some() || !status.voters_outgoing.is_empty() {
            return false;
        }
        let turn = self.state.now().div_euclid(TURN_US).rem_euclid(status.voters.len().max(1) as i64);
        status.voters.iter().position(|id| *id == status.identity.id) == Some(turn as usize)
    }

    /// How often the file was made smaller since the start.
    pub fn compactions(&self) -> u64 {
        self.compactions
    }
}

/// Makes the file smaller when most of it is free.
fn compact_if_wasteful(db: &mut redb::Database, bytes: u64) -> Result<bool, redb::Error> {
    let txn = db.begin_write()?;
    let stats = txn.stats()?;
    txn.abort()?;
    let used = stats.allocated_pages() * stats.page_size() as u64;
    if used > bytes / COMPACT_RATIO {
        return Ok(false);
    }
    match db.compact() {
        Ok(done) => Ok(done),
        // A backup or a snapshot is being read: another time.
        Err(redb::CompactionError::Storage(e)) => Err(e.into()),
        Err(_) => Ok(false),
    }
}
