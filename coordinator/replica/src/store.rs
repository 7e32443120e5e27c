//! Log, votes and state in one redb file; the newest part of the log also in memory.
//!
//! Every value carries a crc32c: redb checks its pages on repair, not on reads. So that nothing vanishes either, with a page of a tree, the
//! state hash stands beside the index that the rows are of, each table must hold as many rows as its tree says, and each piece be there.

use std::collections::VecDeque;

use probity_core::State;
use probity_proto::bugs::{self, Bug};
use probity_proto::v1::*;
use prost::Message;
use raft::eraftpb;
use raft::{GetEntriesContext, RaftState, StorageError};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};

use crate::convert;
use crate::log::{Log, RowError};
use crate::pieces::{Loader, PieceError, Pieces};
use crate::snapshot::Source;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const PIECES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("pieces");
/// How builds before the first release kept the state.
const STATE: TableDefinition<'_, (u32, &str), &[u8]> = TableDefinition::new("state");

/// Pieces of no use that are dropped in one step.
const DROPPED_AT_ONCE: u64 = 16;

/// Who a member is: made with its data directory, for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Random; an id outside the group's configuration never votes.
    pub id: u64,
    /// Empty until the group was formed.
    pub cluster_id: String,
}

/// Why a store cannot be opened. The file is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// redb, or the disk below it.
    #[error("the store cannot be read")]
    Store(#[from] redb::Error),
    /// The file could not be made smaller, and not for want of room.
    #[error("the store failed while its file was made smaller")]
    Compaction(#[source] Box<crate::Fatal>),
    /// A value's checksum is wrong.
    #[error("the store is damaged: {0} has a wrong checksum; delete the data directory, then `probity cluster replace` this member")]
    Checksum(String),
    /// A value is no record of ours.
    #[error("the store is damaged: {0} cannot be decoded; delete the data directory, then `probity cluster replace` this member")]
    Decode(String),
    /// Rows of the state are missing, or are not those that were written.
    #[error(
        "the store is damaged: the rows as of index {index} have state hash {found:016x}, and {written:016x} was written; delete the data directory, then `probity cluster replace` this member"
    )]
    StateHash {
        /// Which index the rows are of.
        index: u64,
        /// Of the rows that are there.
        found: u64,
        /// Of the rows that were written.
        written: u64,
    },
    /// A row of the state cannot be loaded.
    #[error(transparent)]
    State(#[from] probity_core::LoadError),
    /// Pieces do not fit together.
    #[error("the store is damaged: {0}; delete the data directory, then `probity cluster replace` this member")]
    Inconsistent(String),
    /// raft does not accept what is stored.
    #[error("raft does not accept the store")]
    Raft(#[from] raft::Error),
    /// Written by a cluster that this build does not understand.
    #[error("the cluster runs command version {cluster}, this build understands {build}: a cluster does not go back, start a newer build")]
    Version {
        /// Of the cluster.
        cluster: u32,
        /// Of this build.
        build: u32,
    },
    /// It saw its own removal.
    #[error("this member, {id:x}, was removed from cluster {cluster_id}: delete its data directory; `probity cluster join` takes it in again as a new member")]
    Removed {
        /// The member.
        id: u64,
        /// The cluster that it belonged to.
        cluster_id: String,
    },
}

/// The first entry of every log has the index after this: a log that begins later than 0 makes new members start from a
/// snapshot, which is where they learn who votes.
const FORMED_AT: (u64, u64) = (1, 1);

/// A group cannot be formed with this member.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// It has one already.
    #[error("this member belongs to cluster {0} already")]
    Belongs(String),
    /// It would not be a voter.
    #[error("this member, {0:x}, is not among the first voters")]
    NotAmong(u64),
    /// The store failed.
    #[error(transparent)]
    Fatal(#[from] crate::Fatal),
    /// raft does not accept it.
    #[error("the group cannot be started")]
    Open(#[from] OpenError),
}

/// What makes a round of pieces count.
#[derive(Debug)]
pub(crate) struct RoundEnd {
    /// It began with the state as of this entry.
    pub(crate) index: u64,
    pub(crate) term: u64,
    /// Who belonged to the group then.
    pub(crate) conf_state: ConfStateRecord,
    pub(crate) state_hash: u64,
    /// Of every row, not only of those that had changed.
    pub(crate) whole: bool,
    /// The log before this is dropped.
    pub(crate) keep_from: u64,
}

/// What is on the disk, and the log in memory.
#[derive(Debug)]
pub(crate) struct Store {
    db: Database,
    pub(crate) identity: Identity,
    hard_state: eraftpb::HardState,
    pub(crate) conf_state: ConfStateRecord,
    pub(crate) log: Log,
    /// State rows are on the disk as of this index.
    pub(crate) flushed: u64,
    /// The hash of those rows; a store that was formed and has none of its own yet says nothing.
    state_hash: Option<u64>,
    pub(crate) pieces: Pieces,
    /// Where the next piece goes: after those of a round that is not over, too.
    next_piece: u64,
    /// Bytes of that round.
    round_bytes: u64,
    /// There is no piece before this one any more.
    first_piece: u64,
    /// Checksums of the pieces from the first that counts to the last there is.
    crcs: VecDeque<u32>,
    /// What followers pull a snapshot from, while one needs it.
    pub(crate) source: Option<Source>,
    /// raft asked for a snapshot that is not there yet.
    pub(crate) snapshot_wanted: std::cell::Cell<bool>,
}

/// Appends the checksum to what was written to `bytes`.
fn seal(bytes: &mut Vec<u8>) {
    let crc = crc32c::crc32c(bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
}

pub(crate) fn unseal<'b>(what: &dyn Fn() -> String, bytes: &'b [u8]) -> Result<&'b [u8], OpenError> {
    let (value, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| OpenError::Checksum(what()))?;
    if crc32c::crc32c(value) == u32::from_le_bytes(*crc) { Ok(value) } else { Err(OpenError::Checksum(what())) }
}

fn error(e: impl Into<redb::Error>) -> redb::Error {
    e.into()
}

impl Store {
    /// Opens a store; a new one gets `new_id`.
    pub(crate) fn open(db: Database, new_id: u64) -> Result<(Store, State), OpenError> {
        let mut store = Store {
            db,
            identity: Identity { id: new_id, cluster_id: String::new() },
            hard_state: eraftpb::HardState::default(),
            conf_state: ConfStateRecord::default(),
            log: Log::default(),
            flushed: 0,
            state_hash: None,
            pieces: Pieces::default(),
            next_piece: 0,
            round_bytes: 0,
            first_piece: 0,
            crcs: VecDeque::new(),
            source: None,
            snapshot_wanted: std::cell::Cell::new(false),
        };
        let mut state = State::new();
        if store.load_meta()? {
            store.load_log()?;
            state = store.load_state()?;
        } else {
            store.write_identity().map_err(OpenError::Store)?;
        }
        Ok((store, state))
    }

    fn load_meta(&mut self) -> Result<bool, OpenError> {
        let read = self.db.begin_read().map_err(error)?;
        let Some(meta) = existing(read.open_table(META))? else {
            let rows = existing(read.open_table(LOG))?.is_some() || existing(read.open_table(STATE))?.is_some();
            return if rows { Err(OpenError::Inconsistent("who this member is has vanished".to_owned())) } else { Ok(false) };
        };
        let get = |key: &str| -> Result<Option<Vec<u8>>, OpenError> {
            match meta.get(key).map_err(error)? {
                Some(guard) => Ok(Some(unseal(&|| key.to_owned(), guard.value())?.to_vec())),
                None => Ok(None),
            }
        };
        // All of these are written together, first of all.
        let must = |key: &str| get(key)?.ok_or_else(|| OpenError::Inconsistent(format!("{key} has vanished")));
        let identity = must("identity")?;
        let member = decode::<MemberRecord>("identity", &identity)?;
        self.identity = Identity { id: member.id, cluster_id: member.name };
        let record = decode::<HardStateRecord>("hard_state", &must("hard_state")?)?;
        self.hard_state.term = record.term;
        self.hard_state.vote = record.vote;
        self.hard_state.commit = record.commit;
        self.conf_state = decode("conf_state", &must("conf_state")?)?;
        let pair = |key: &str| -> Result<(u64, u64), OpenError> {
            let record = decode::<RaftEntry>(key, &must(key)?)?;
            Ok((record.index, record.term))
        };
        self.log = Log::after(pair("truncated")?);
        self.flushed = pair("flushed")?.0;
        self.pieces = Pieces::of_record(&decode("pieces", &must("pieces")?)?);
        if let Some(bytes) = get("state_hash")? {
            let bytes = bytes.try_into().map_err(|_| OpenError::Decode("state_hash".to_owned()))?;
            self.state_hash = Some(u64::from_le_bytes(bytes));
        }
        Ok(true)
    }

    fn load_log(&mut self) -> Result<(), OpenError> {
        let read = self.db.begin_read().map_err(error)?;
        let mut written = 0;
        if let Some(log) = existing(read.open_table(LOG))? {
            written = log.len().map_err(error)?;
            for row in log.iter().map_err(error)? {
                let (index, value) = row.map_err(error)?;
                let begin = index.value();
                let what = || format!("the log from entry {begin}");
                self.log.load(begin, unseal(&what, value.value())?).map_err(|e| match e {
                    RowError::Decode => OpenError::Decode(what()),
                    RowError::Entry(text) => OpenError::Inconsistent(text),
                    RowError::Missing(index) => OpenError::Inconsistent(format!("log entry {index} is missing")),
                })?;
            }
        }
        if self.log.rows() as u64 != written || self.log.last().0 < self.hard_state.commit.max(self.flushed) {
            return Err(OpenError::Inconsistent(format!("the log ends at {}, and more was written", self.log.last().0)));
        }
        if self.flushed < self.log.truncated.0 {
            return Err(OpenError::Inconsistent(format!("the state is of index {}, the log begins after {}", self.flushed, self.log.truncated.0)));
        }
        Ok(())
    }

    fn load_state(&mut self) -> Result<State, OpenError> {
        let read = self.db.begin_read().map_err(error)?;
        if existing(read.open_table(STATE))?.is_some() {
            return Err(OpenError::Inconsistent("it is in a form that only builds before the first release wrote".to_owned()));
        }
        let live = self.pieces.live.clone();
        (self.first_piece, self.next_piece) = (live.start, live.end);
        let Some(table) = existing(read.open_table(PIECES))? else {
            return if live.is_empty() { Ok(State::new()) } else { Err(OpenError::Inconsistent("the state has vanished".to_owned())) };
        };
        if let Some((first, _)) = table.first().map_err(error)? {
            self.first_piece = first.value().min(live.start);
        }
        if live.is_empty() {
            return Ok(State::new());
        }
        let mut loader = Loader::default();
        for number in live.rev() {
            let piece = table.get(number).map_err(error)?.ok_or_else(|| OpenError::Inconsistent(format!("piece {number} of the state is missing")))?;
            let piece = unseal(&|| format!("piece {number} of the state"), piece.value())?;
            self.crcs.push_front(crc32c::crc32c(piece));
            loader.piece(piece).map_err(|e| match e {
                PieceError::Load(e) => OpenError::State(e),
                PieceError::Decode(_) | PieceError::Key(_) => OpenError::Decode(format!("piece {number} of the state")),
            })?;
        }
        match self.state_hash {
            Some(written) if written != loader.hash() => Err(OpenError::StateHash { index: self.flushed, found: loader.hash(), written }),
            _ => Ok(loader.state()),
        }
    }

    fn commit(&self, write: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>) -> Result<(), redb::Error> {
        self.transaction(true, write)
    }

    /// Quick repair saves a look at the whole file at the start after a crash, and costs each commit a second sync. The log's commits, which somebody
    /// waits for, go without: redb is crash-safe either way.
    fn transaction(&self, quick_repair: bool, write: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>) -> Result<(), redb::Error> {
        let mut txn = self.db.begin_write().map_err(error)?;
        txn.set_quick_repair(quick_repair);
        if bugs::on(Bug::LogNotSynced) && !quick_repair {
            let _ = txn.set_durability(redb::Durability::None);
        }
        write(&txn)?;
        txn.commit().map_err(error)
    }

    fn put_meta(txn: &redb::WriteTransaction, key: &str, mut value: Vec<u8>) -> Result<(), redb::Error> {
        seal(&mut value);
        txn.open_table(META).map_err(error)?.insert(key, value.as_slice()).map_err(error)?;
        Ok(())
    }

    fn write_identity(&self) -> Result<(), redb::Error> {
        self.write_identity_as(&self.identity.cluster_id)
    }

    fn write_identity_as(&self, cluster_id: &str) -> Result<(), redb::Error> {
        let record = MemberRecord { id: self.identity.id, name: cluster_id.to_owned(), ..MemberRecord::default() };
        let (index, term) = self.log.truncated;
        self.commit(|txn| {
            Self::put_meta(txn, "identity", record.encode_to_vec())?;
            Self::put_meta(txn, "hard_state", hard_state_record(&self.hard_state).encode_to_vec())?;
            Self::put_meta(txn, "truncated", position(index, term))?;
            Self::put_meta(txn, "flushed", position(index, term))?;
            Self::put_meta(txn, "pieces", self.pieces.to_record().encode_to_vec())?;
            Self::put_meta(txn, "conf_state", self.conf_state.encode_to_vec())
        })
    }

    /// Becomes a member of a new group.
    pub(crate) fn form(&mut self, cluster_id: &str, voters: &[u64]) -> Result<(), redb::Error> {
        let mut voters = voters.to_vec();
        voters.sort_unstable();
        voters.dedup();
        self.conf_state = ConfStateRecord { voters, ..ConfStateRecord::default() };
        self.log = Log::after(FORMED_AT);
        self.flushed = FORMED_AT.0;
        self.hard_state.commit = FORMED_AT.0;
        self.hard_state.term = FORMED_AT.1;
        self.belong(cluster_id)
    }

    /// Belongs to a group from now on: once that is on the disk, or asking again would find it done.
    fn belong(&mut self, cluster_id: &str) -> Result<(), redb::Error> {
        self.write_identity_as(cluster_id)?;
        self.identity.cluster_id = cluster_id.to_owned();
        Ok(())
    }

    /// Becomes a future member of a group that exists: the leader's snapshot brings the rest.
    pub(crate) fn join(&mut self, cluster_id: &str) -> Result<(), redb::Error> {
        self.belong(cluster_id)
    }

    /// The file itself.
    pub(crate) fn database(&mut self) -> &mut Database {
        &mut self.db
    }

    /// Whether `bytes` more can be written: tried, and taken back.
    pub(crate) fn has_room(db: &Database, bytes: usize) -> bool {
        let write = |value: Option<Vec<u8>>| -> Result<(), redb::Error> {
            let mut txn = db.begin_write().map_err(error)?;
            txn.set_quick_repair(true);
            {
                let mut meta = txn.open_table(META).map_err(error)?;
                match value {
                    Some(value) => drop(meta.insert("room", value.as_slice()).map_err(error)?),
                    None => drop(meta.remove("room").map_err(error)?),
                }
            }
            txn.commit().map_err(error)
        };
        // No zeros: a file system that leaves them out would have room for any number.
        write(Some(vec![0xa5; bytes])).and_then(|()| write(None)).is_ok()
    }

    /// A view of what is on the disk now.
    pub(crate) fn read(&self) -> Result<redb::ReadTransaction, redb::Error> {
        self.db.begin_read().map_err(error)
    }

    /// Becomes the only member of a new group, whose state is `pieces` and whose log begins after `position`.
    pub(crate) fn restore(&mut self, cluster_id: &str, position: (u64, u64), state_hash: u64, pieces: Vec<Vec<u8>>) -> Result<(), redb::Error> {
        let manifest = SnapshotManifest {
            index: position.0,
            term: position.1,
            conf_state: Some(ConfStateRecord { voters: vec![self.identity.id], ..ConfStateRecord::default() }),
            state_hash,
            ..SnapshotManifest::default()
        };
        let hard_state = eraftpb::HardState { term: position.1, commit: position.0, ..Default::default() };
        self.install(&manifest, pieces, &hard_state)?;
        self.belong(cluster_id)
    }

    /// Whether an id has any part in the group.
    pub(crate) fn is_member(&self, id: u64) -> bool {
        let c = &self.conf_state;
        [&c.voters, &c.learners, &c.voters_outgoing, &c.learners_next].iter().any(|ids| ids.contains(&id))
    }

    /// In the group to be, and nothing heard of it yet.
    pub(crate) fn joining(&self) -> bool {
        self.conf_state.voters.is_empty()
    }

    /// One Ready's entries and hard state, in one transaction. A commit index alone waits for none, since a majority's logs say it again; but it goes
    /// along with entries: a member that has changes of the group in its log must know which of them are committed, or it would stand for election
    /// in the group of before.
    pub(crate) fn append(&mut self, entries: Vec<eraftpb::Entry>, hard_state: Option<&eraftpb::HardState>) -> Result<(), redb::Error> {
        let hard_state = hard_state.unwrap_or(&self.hard_state).clone();
        if entries.is_empty() && (hard_state.term, hard_state.vote) == (self.hard_state.term, self.hard_state.vote) {
            self.hard_state = hard_state;
            return Ok(());
        }
        let mut writing = self.log.writing(&entries);
        writing.fresh.iter_mut().for_each(|(_, bytes)| seal(bytes));
        self.transaction(false, |txn| {
            if !entries.is_empty() {
                let mut log = txn.open_table(LOG).map_err(error)?;
                for row in &writing.useless {
                    log.remove(row).map_err(error)?;
                }
                for (row, bytes) in &writing.fresh {
                    log.insert(row, bytes.as_slice()).map_err(error)?;
                }
            }
            Self::put_meta(txn, "hard_state", hard_state_record(&hard_state).encode_to_vec())
        })?;
        self.log.wrote(writing, entries);
        self.hard_state = hard_state;
        Ok(())
    }

    /// The commit index alone: with the next entries, or the end of a round of writing the state, it is on the disk.
    pub(crate) fn set_commit(&mut self, commit: u64) {
        self.hard_state.commit = commit;
    }

    /// Writes a piece of a round, if it has any rows; and when it is the last, all that makes the round count. Drops some of what counts no more.
    pub(crate) fn write_piece(&mut self, piece: Vec<u8>, end: Option<&RoundEnd>) -> Result<(), redb::Error> {
        let (number, length, crc) = (self.next_piece, piece.len() as u64, crc32c::crc32c(&piece));
        let mut pieces = self.pieces.clone();
        let to = number + u64::from(length > 0);
        if let Some(end) = end {
            pieces.add_round(to, self.round_bytes + length, end.whole);
        }
        let useless = self.first_piece..pieces.live.start.min(self.first_piece + DROPPED_AT_ONCE);
        let cut = end.map_or(0, |end| end.keep_from.saturating_sub(1).min(end.index));
        let cut = self.log.term_of(cut).filter(|_| cut > self.log.truncated.0).map(|term| (cut, term));
        self.transaction(end.is_some(), |txn| {
            let mut table = txn.open_table(PIECES).map_err(error)?;
            if length > 0 {
                let mut sealed = piece;
                seal(&mut sealed);
                table.insert(number, sealed.as_slice()).map_err(error)?;
            }
            for number in useless.clone() {
                table.remove(number).map_err(error)?;
            }
            let Some(end) = end else { return Ok(()) };
            Self::put_meta(txn, "hard_state", hard_state_record(&self.hard_state).encode_to_vec())?;
            Self::put_meta(txn, "conf_state", end.conf_state.encode_to_vec())?;
            Self::put_meta(txn, "flushed", position(end.index, end.term))?;
            Self::put_meta(txn, "state_hash", end.state_hash.to_le_bytes().to_vec())?;
            Self::put_meta(txn, "pieces", pieces.to_record().encode_to_vec())?;
            if let Some((cut, term)) = cut {
                let mut log = txn.open_table(LOG).map_err(error)?;
                for row in self.log.useless(cut) {
                    log.remove(row).map_err(error)?;
                }
                Self::put_meta(txn, "truncated", position(cut, term))?;
            }
            Ok(())
        })?;
        self.next_piece = to;
        self.crcs.extend((length > 0).then_some(crc));
        self.first_piece = useless.end.max(self.first_piece);
        self.round_bytes += length;
        let Some(end) = end else { return Ok(()) };
        self.round_bytes = 0;
        self.crcs.drain(..(pieces.live.start - self.pieces.live.start) as usize);
        self.pieces = pieces;
        self.flushed = end.index;
        self.state_hash = Some(end.state_hash);
        if let Some(cut) = cut {
            self.log.cut(cut);
        }
        Ok(())
    }

    /// Whether pieces are on the disk that count no more.
    pub(crate) fn has_useless_pieces(&self) -> bool {
        self.first_piece < self.pieces.live.start
    }

    /// The checksums of the pieces that count, oldest first.
    pub(crate) fn crcs(&self) -> Vec<u32> {
        let live = (self.pieces.live.end - self.pieces.live.start) as usize;
        self.crcs.iter().take(live).copied().collect()
    }

    /// A piece as it was when `read` began.
    pub(crate) fn piece(read: &redb::ReadTransaction, number: u64) -> Result<Vec<u8>, crate::Fatal> {
        let table = read.open_table(PIECES).map_err(error)?;
        let what = || format!("piece {number} of the state");
        let piece = table.get(number).map_err(error)?.ok_or_else(|| crate::Fatal::Damaged(format!("{} is missing", what())))?;
        Ok(unseal(&what, piece.value()).map_err(|e| crate::Fatal::Damaged(e.to_string()))?.to_vec())
    }

    /// Replaces everything by a snapshot, of which `pieces` are the chunks.
    pub(crate) fn install(&mut self, manifest: &SnapshotManifest, pieces: Vec<Vec<u8>>, hard_state: &eraftpb::HardState) -> Result<(), redb::Error> {
        let record = HardStateRecord { term: hard_state.term, vote: hard_state.vote, commit: hard_state.commit.max(manifest.index) };
        let conf = if bugs::on(Bug::SnapshotWithoutConfState) { self.conf_state.clone() } else { manifest.conf_state.clone().unwrap_or_default() };
        let mut live = Pieces::default();
        live.add_round(pieces.len() as u64, pieces.iter().map(|p| p.len() as u64).sum(), true);
        let crcs = pieces.iter().map(|p| crc32c::crc32c(p)).collect();
        self.commit(|txn| {
            txn.delete_table(PIECES).map_err(error)?;
            txn.delete_table(LOG).map_err(error)?;
            let mut table = txn.open_table(PIECES).map_err(error)?;
            for (number, mut piece) in (0..).zip(pieces) {
                seal(&mut piece);
                table.insert(number, piece.as_slice()).map_err(error)?;
            }
            Self::put_meta(txn, "hard_state", record.encode_to_vec())?;
            Self::put_meta(txn, "conf_state", conf.encode_to_vec())?;
            Self::put_meta(txn, "truncated", position(manifest.index, manifest.term))?;
            Self::put_meta(txn, "flushed", position(manifest.index, manifest.term))?;
            Self::put_meta(txn, "pieces", live.to_record().encode_to_vec())?;
            Self::put_meta(txn, "state_hash", manifest.state_hash.to_le_bytes().to_vec())
        })?;
        self.hard_state.term = record.term;
        self.hard_state.vote = record.vote;
        self.hard_state.commit = record.commit;
        self.conf_state = conf;
        self.log = Log::after((manifest.index, manifest.term));
        self.flushed = manifest.index;
        self.state_hash = Some(manifest.state_hash);
        (self.first_piece, self.next_piece, self.round_bytes) = (0, live.live.end, 0);
        self.pieces = live;
        self.crcs = crcs;
        Ok(())
    }

    pub(crate) fn hard_state(&self) -> &eraftpb::HardState {
        &self.hard_state
    }
}

/// A table, if it was ever made; a tree that cannot be read is no absent table.
fn existing<T>(opened: Result<T, redb::TableError>) -> Result<Option<T>, OpenError> {
    match opened {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(e) => Err(OpenError::Store(e.into())),
    }
}

fn hard_state_record(hs: &eraftpb::HardState) -> HardStateRecord {
    let vote = if bugs::on(Bug::VoteNotPersisted) { 0 } else { hs.vote };
    HardStateRecord { term: hs.term, vote, commit: hs.commit }
}

fn position(index: u64, term: u64) -> Vec<u8> {
    RaftEntry { index, term, ..RaftEntry::default() }.encode_to_vec()
}

fn decode<M: Message + Default>(what: &str, bytes: &[u8]) -> Result<M, OpenError> {
    M::decode(bytes).map_err(|_| OpenError::Decode(what.to_owned()))
}

impl raft::Storage for Store {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), convert::to_conf_state(&self.conf_state)))
    }

    fn entries(&self, low: u64, high: u64, max_size: impl Into<Option<u64>>, _: GetEntriesContext) -> raft::Result<Vec<eraftpb::Entry>> {
        if low <= self.log.truncated.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let mut found = self.log.range(low, high).ok_or(raft::Error::Store(StorageError::Unavailable))?;
        raft::util::limit_size(&mut found, max_size.into());
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.log.truncated.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        self.log.term_of(index).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.log.truncated.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.log.last().0)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<eraftpb::Snapshot> {
        match &self.source {
            // After a change of members there is no source: a new one must be in the snapshot that it starts from.
            Some(source) if source.manifest.index >= request_index && source.manifest.index >= self.log.truncated.0 => {
                Ok(convert::to_snapshot(&source.manifest))
            }
            _ => {
                self.snapshot_wanted.set(true);
                Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}
