//! Backups: every row as of one index, from an MVCC read beside which the member works on; and a new cluster made of them.

use probity_core::restore::{INDEX_JUMP, into_new_cluster};
use std::ops::Range;

use probity_proto::v1::backup_part::Part;
use probity_proto::v1::*;
use prost::Message;
use redb::ReadTransaction;

use crate::Fatal;
use crate::disk::is_full;
use crate::interface::Outputs;
use crate::node::Replica;
use crate::pieces::{self, Loader, PieceError};
use crate::store::{Identity, OpenError, Store};

/// A backup that is being read.
#[derive(Debug)]
pub struct Backup {
    read: ReadTransaction,
    header: Option<BackupHeader>,
    /// The pieces that are still to come, newest first.
    pieces: Range<u64>,
    rows: u64,
    done: bool,
}

impl Replica {
    /// Everything that is applied here, as of now.
    pub fn backup(&mut self) -> Result<Backup, Fatal> {
        if let Err(error) = self.flush() {
            if self.medium.is_some() && is_full(&error) {
                self.on_full(&mut Outputs::default());
            }
            return Err(error);
        }
        let Some(raft) = &self.raft else {
            let why = if self.disk_full() { "the disk of this member is full: ask another one" } else { "this member belongs to no cluster" };
            return Err(Fatal::Damaged(why.to_owned()));
        };
        let store = raft.store();
        let meta = self.state.meta();
        let header = BackupHeader {
            cluster_id: store.identity.cluster_id.clone(),
            cluster_name: meta.cluster_name.clone(),
            index: self.applied,
            term: store.log.term_of(self.applied).unwrap_or(0),
            state_hash: self.state.hash(),
            version: meta.version,
            time_us: meta.time_us,
        };
        Ok(Backup { read: store.read()?, header: Some(header), pieces: store.pieces.live.clone(), rows: 0, done: false })
    }
}

impl Backup {
    /// The next part; none after the end.
    pub fn next_part(&mut self) -> Result<Option<BackupPart>, Fatal> {
        if let Some(header) = self.header.take() {
            return Ok(Some(BackupPart { part: Some(Part::Header(header)) }));
        }
        if let Some(number) = self.pieces.next_back() {
            let piece = Store::piece(&self.read, number)?;
            let rows = StateRows::decode(&piece[..]).map_err(|_| Fatal::Damaged(format!("piece {number} of the state cannot be decoded")))?;
            self.rows += rows.rows.len() as u64;
            return Ok(Some(BackupPart { part: Some(Part::Rows(rows)) }));
        }
        if std::mem::replace(&mut self.done, true) {
            return Ok(None);
        }
        Ok(Some(BackupPart { part: Some(Part::End(BackupEnd { rows: self.rows })) }))
    }
}

/// What is wrong with a backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A part is missing, or there is one too many.
    #[error("the backup is not whole: {0}")]
    Parts(&'static str),
    /// Written by a version that knows more.
    #[error(transparent)]
    Row(#[from] probity_core::LoadError),
    /// The rows are not those that were backed up.
    #[error("the backup is damaged: its state hash is {found:016x}, and {expected:016x} was backed up")]
    Hash {
        /// Of its rows.
        found: u64,
        /// In its header.
        expected: u64,
    },
    /// It cannot become a new cluster.
    #[error("{0}")]
    Refused(String),
    /// The new store.
    #[error("cannot write the new store")]
    Store(#[from] OpenError),
    /// The same.
    #[error("cannot write the new store")]
    Redb(#[from] redb::Error),
}

/// A backup's parts, checked as they come.
#[derive(Debug, Default)]
pub struct Checked {
    header: Option<BackupHeader>,
    loader: Loader,
    rows: u64,
    ended: bool,
}

impl Checked {
    /// Takes the next part.
    pub fn part(&mut self, part: BackupPart) -> Result<(), BackupError> {
        match (part.part, &self.header) {
            _ if self.ended => return Err(BackupError::Parts("something follows its end")),
            (Some(Part::Header(header)), None) => self.header = Some(header),
            (Some(Part::Rows(rows)), Some(_)) => {
                self.rows += rows.rows.len() as u64;
                self.loader.piece_of(rows).map_err(|e| match e {
                    PieceError::Load(e) => BackupError::Row(e),
                    PieceError::Key(_) | PieceError::Decode(_) => BackupError::Parts("a key is no text"),
                })?;
            }
            (Some(Part::End(end)), Some(header)) => {
                if end.rows != self.rows {
                    return Err(BackupError::Parts("rows are missing"));
                }
                if self.loader.hash() != header.state_hash {
                    return Err(BackupError::Hash { found: self.loader.hash(), expected: header.state_hash });
                }
                self.ended = true;
            }
            _ => return Err(BackupError::Parts("its parts are out of order")),
        }
        Ok(())
    }

    /// Header and number of rows, once it is whole and its hash is right.
    pub fn whole(&self) -> Result<(&BackupHeader, u64), BackupError> {
        let header = self.header.as_ref().filter(|_| self.ended).ok_or(BackupError::Parts("its end is missing"))?;
        Ok((header, self.loader.rows()))
    }

    /// Writes it to a new store as a cluster of one, whose member is `member`.
    pub fn restore(self, db: redb::Database, cluster_id: &str, member: MemberRecord) -> Result<BackupHeader, BackupError> {
        let header = self.whole()?.0.clone();
        let id = member.id;
        let mut state = self.loader.state();
        into_new_cluster(&mut state, header.index, cluster_id, member).map_err(|refused| BackupError::Refused(refused.message))?;
        let pieces = pieces::of_whole(&mut state);
        let position = (header.index + INDEX_JUMP, header.term + 1);
        let (mut store, _) = Store::open(db, id)?;
        if store.identity != (Identity { id, cluster_id: String::new() }) {
            return Err(BackupError::Refused("the store is not empty".to_owned()));
        }
        store.restore(cluster_id, position, state.hash(), pieces)?;
        Ok(header)
    }
}
