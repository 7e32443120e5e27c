//! The state on the disk: pieces of rows, each with its checksum, in the order in which they were written. Of a row that stands there several times,
//! in one piece or in several, the newest is right. Every now and then all rows are written anew, and what was before them goes.
//!
//! So a write costs what changed, as one value after the other; a tree of rows costs a search and a page for each of them.

use std::collections::HashSet;
use std::ops::Range;

use probity_core::{Change, LoadError, State};
use probity_proto::v1::*;
use prost::Message;

/// About how large a piece is; it travels to followers in one message.
pub(crate) const PIECE_BYTES: usize = 512 << 10;

/// All rows are written anew when what changed since then has so many times their bytes...
const CHANGES_RATIO: u64 = 2;
/// ...or was written in so many rounds: what was removed from the state takes room until then.
const ROUNDS_MAX: u64 = 256;

/// The pieces that are on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pieces {
    /// Their numbers. Older ones are of no use any more, newer ones are of a round that is not over.
    pub(crate) live: Range<u64>,
    /// Of the first ones, which hold every row there was.
    whole_bytes: u64,
    /// Of the others.
    changes_bytes: u64,
    /// How often changes were written since.
    rounds: u64,
}

impl Pieces {
    /// A round was written, as the pieces up to `to`.
    pub(crate) fn add_round(&mut self, to: u64, bytes: u64, whole: bool) {
        if whole {
            *self = Pieces { live: self.live.end..to, whole_bytes: bytes, changes_bytes: 0, rounds: 0 };
        } else {
            self.live.end = to;
            self.changes_bytes += bytes;
            self.rounds += 1;
        }
    }

    /// Whether the next round should be of every row.
    pub(crate) fn outgrown(&self, changes_bytes_min: u64) -> bool {
        self.live.is_empty() || self.rounds >= ROUNDS_MAX || self.changes_bytes > changes_bytes_min.max(self.whole_bytes * CHANGES_RATIO)
    }

    pub(crate) fn to_record(&self) -> PiecesRecord {
        PiecesRecord { from: self.live.start, to: self.live.end, whole_bytes: self.whole_bytes, changes_bytes: self.changes_bytes, rounds: self.rounds }
    }

    pub(crate) fn of_record(record: &PiecesRecord) -> Pieces {
        Pieces { live: record.from..record.to, whole_bytes: record.whole_bytes, changes_bytes: record.changes_bytes, rounds: record.rounds }
    }
}

/// Changes as a piece.
pub(crate) fn encode(changes: Vec<Change>) -> Vec<u8> {
    let row = |change: Change| StateRow {
        table: change.table,
        key: change.key.as_bytes().to_vec(),
        gone: change.value.is_none(),
        value: change.value.unwrap_or_default(),
    };
    StateRows { rows: changes.into_iter().map(row).collect() }.encode_to_vec()
}

/// Every row of a state.
pub(crate) fn of_whole(state: &mut State) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    state.freeze(true);
    loop {
        let (rows, last) = state.drain(PIECE_BYTES);
        pieces.push(encode(rows));
        if last {
            return pieces;
        }
    }
}

/// A state that is loaded from pieces, newest first.
#[derive(Debug, Default)]
pub(crate) struct Loader {
    state: State,
    gone: HashSet<(u32, String)>,
    rows: u64,
}

/// A piece cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PieceError {
    #[error("a piece of the state cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    #[error("the key of a row is no text")]
    Key(#[from] std::string::FromUtf8Error),
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl Loader {
    /// The next older piece.
    pub(crate) fn piece(&mut self, bytes: &[u8]) -> Result<(), PieceError> {
        self.piece_of(StateRows::decode(bytes)?)
    }

    /// The same, decoded. Its newest rows are its last.
    pub(crate) fn piece_of(&mut self, rows: StateRows) -> Result<(), PieceError> {
        rows.rows.into_iter().rev().try_for_each(|row| self.row(row))
    }

    fn row(&mut self, row: StateRow) -> Result<(), PieceError> {
        let key = String::from_utf8(row.key)?;
        if self.state.holds(row.table, &key) {
            return Ok(());
        }
        let key = (row.table, key);
        if row.gone {
            self.gone.insert(key);
        } else if !self.gone.contains(&key) {
            self.state.load(key.0, &key.1, &row.value)?;
            self.rows += 1;
        }
        Ok(())
    }

    pub(crate) fn state(self) -> State {
        self.state
    }

    /// How many rows are loaded.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Of what is loaded so far.
    pub(crate) fn hash(&self) -> u64 {
        self.state.hash()
    }
}
