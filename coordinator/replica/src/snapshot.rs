//! Snapshots: the raft message holds a manifest, the follower pulls chunks. Each chunk is checked, the whole by its state hash.
//!
//! The leader reads them from the disk, from an MVCC view of one index: a follower that pulls slowly costs it no memory, and the
//! checksums of the manifest are made a few chunks at a time, so that nobody else waits.

use probity_core::{Change, State};
use probity_proto::v1::*;
use prost::Message;
use redb::ReadTransaction;

use crate::Fatal;
use crate::store::{STATE, unseal};

/// A chunk closes when it has this many bytes.
const CHUNK_BYTES: usize = 512 * 1024;
/// Chunks that are asked for at once.
const PULLS: usize = 4;
/// Ticks after which a chunk that did not come is asked for again.
const PULL_TICKS: u32 = 20;
/// Chunks whose checksum is made in one step of the member.
const BUILD_CHUNKS: usize = 8;
/// A source that nobody pulled from for so many ticks is given up: while it lasts, the file keeps the pages of its index.
const IDLE_TICKS: u32 = 1_200;

/// One chunk of rows from `from` on, and where the next one begins.
pub(crate) fn rows_from(read: &ReadTransaction, from: &(u32, String)) -> Result<(StateRows, Option<(u32, String)>), Fatal> {
    let table = read.open_table(STATE).map_err(redb::Error::from)?;
    let mut out = StateRows::default();
    let mut bytes = 0;
    for row in table.range((from.0, from.1.as_str())..).map_err(redb::Error::from)? {
        let (key, value) = row.map_err(redb::Error::from)?;
        let (table, key) = key.value();
        if bytes >= CHUNK_BYTES {
            return Ok((out, Some((table, key.to_owned()))));
        }
        let value = unseal(&|| format!("row {key:?} of table {table}"), value.value()).map_err(|e| Fatal::Damaged(e.to_string()))?;
        bytes += key.len() + value.len() + 16;
        out.rows.push(StateRow { table, key: key.as_bytes().to_vec(), value: value.to_vec() });
    }
    Ok((out, None))
}

/// What followers pull from.
pub(crate) struct Source {
    pub(crate) manifest: SnapshotManifest,
    read: ReadTransaction,
    /// Where each chunk begins; while it is built, also the one after the last.
    starts: Vec<(u32, String)>,
    built: bool,
    idle: u32,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("manifest", &self.manifest).field("built", &self.built).finish_non_exhaustive()
    }
}

impl Source {
    /// Of a view that was taken when the rows on the disk were those of the manifest; it has no checksums yet.
    pub(crate) fn new(read: ReadTransaction, manifest: SnapshotManifest) -> Source {
        Source { manifest, read, starts: vec![(0, String::new())], built: false, idle: 0 }
    }

    /// Whether it can be offered.
    pub(crate) fn built(&self) -> bool {
        self.built
    }

    /// Makes the next few checksums.
    pub(crate) fn build(&mut self) -> Result<(), Fatal> {
        for _ in 0..BUILD_CHUNKS {
            let Some(from) = self.starts.last().filter(|_| !self.built) else { return Ok(()) };
            let (rows, next) = rows_from(&self.read, from)?;
            self.manifest.chunk_crc32c.push(crc32c::crc32c(&rows.encode_to_vec()));
            match next {
                Some(next) => self.starts.push(next),
                None => self.built = true,
            }
        }
        Ok(())
    }

    /// Time passes; false when nobody wants it any more.
    pub(crate) fn tick(&mut self) -> bool {
        self.idle += 1;
        self.idle < IDLE_TICKS
    }

    /// The answer to a pull.
    pub(crate) fn answer(source: Option<&mut Source>, pull: &SnapshotPull) -> Result<SnapshotChunk, Fatal> {
        let gone = SnapshotChunk { snapshot: pull.snapshot, chunk: pull.chunk, gone: true, ..SnapshotChunk::default() };
        let Some(source) = source.filter(|s| s.built && s.manifest.id == pull.snapshot) else { return Ok(gone) };
        source.idle = 0;
        let Some(from) = source.starts.get(pull.chunk as usize) else { return Ok(gone) };
        let (rows, _) = rows_from(&source.read, from)?;
        Ok(SnapshotChunk { data: rows.encode_to_vec(), gone: false, ..gone })
    }
}

/// A snapshot that is being pulled: the raft message waits until it is whole.
#[derive(Debug)]
pub(crate) struct Staging {
    pub(crate) message: PeerMessage,
    pub(crate) manifest: SnapshotManifest,
    chunks: Vec<Option<Vec<u8>>>,
    asked: Vec<u32>,
    now: u32,
}

/// What came of a chunk.
pub(crate) enum Staged {
    /// More is to come.
    Waiting,
    /// It is whole.
    Whole(Box<State>, Vec<Change>),
    /// It cannot be used; the leader will offer another.
    Broken,
}

impl Staging {
    pub(crate) fn new(message: PeerMessage, manifest: SnapshotManifest) -> Staging {
        let n = manifest.chunk_crc32c.len();
        Staging { message, manifest, chunks: vec![None; n], asked: vec![0; n], now: PULL_TICKS }
    }

    pub(crate) fn tick(&mut self) {
        self.now += 1;
    }

    /// The chunks to ask for now.
    pub(crate) fn pulls(&mut self) -> Vec<SnapshotPull> {
        let mut pulls = Vec::new();
        let missing: Vec<usize> = (0..self.chunks.len()).filter(|i| self.chunks[*i].is_none()).take(PULLS).collect();
        for i in missing {
            if self.now.saturating_sub(self.asked[i]) >= PULL_TICKS {
                self.asked[i] = self.now;
                pulls.push(SnapshotPull { snapshot: self.manifest.id, chunk: i as u32 });
            }
        }
        pulls
    }

    /// Takes a chunk; a damaged one is asked for again.
    pub(crate) fn take(&mut self, chunk: SnapshotChunk) -> Staged {
        if chunk.snapshot != self.manifest.id {
            return Staged::Waiting;
        }
        if chunk.gone {
            return Staged::Broken;
        }
        let i = chunk.chunk as usize;
        let Some(expected) = self.manifest.chunk_crc32c.get(i) else { return Staged::Waiting };
        if crc32c::crc32c(&chunk.data) != *expected {
            self.asked[i] = 0;
            return Staged::Waiting;
        }
        self.chunks[i] = Some(chunk.data);
        if self.chunks.iter().any(Option::is_none) {
            return Staged::Waiting;
        }
        match self.assemble() {
            Some((state, rows)) => Staged::Whole(Box::new(state), rows),
            None => Staged::Broken,
        }
    }

    fn assemble(&self) -> Option<(State, Vec<Change>)> {
        let mut state = State::default();
        let mut rows = Vec::new();
        for chunk in self.chunks.iter().flatten() {
            for row in StateRows::decode(chunk.as_slice()).ok()?.rows {
                let key = String::from_utf8(row.key).ok()?;
                state.load(row.table, &key, &row.value).ok()?;
                rows.push(Change { table: row.table, key, value: Some(row.value) });
            }
        }
        (state.hash() == self.manifest.state_hash).then_some((state, rows))
    }
}
