//! Snapshots: the raft message holds a manifest, the follower pulls chunks. Each chunk is checked, the whole by its state hash.
//!
//! The chunks are the pieces of the state on the leader's disk, read from an MVCC view of one index: a follower that pulls slowly costs it no
//! memory, and making a snapshot costs what one more write of the state costs.

use probity_core::State;
use probity_proto::v1::*;
use redb::ReadTransaction;

use crate::Fatal;
use crate::pieces::Loader;
use crate::store::Store;

/// Chunks that are asked for at once.
const PULLS: usize = 4;
/// Ticks after which a chunk that did not come is asked for again.
const PULL_TICKS: u32 = 20;
/// A source that nobody pulled from for so many ticks is given up: while it lasts, the file keeps the pages of its index.
const IDLE_TICKS: u32 = 1_200;

/// What followers pull from.
pub(crate) struct Source {
    pub(crate) manifest: SnapshotManifest,
    read: ReadTransaction,
    /// The first chunk's number on the disk.
    first: u64,
    idle: u32,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("manifest", &self.manifest).finish_non_exhaustive()
    }
}

impl Source {
    /// Of a view of when the pieces of the manifest's state were those from `first` on.
    pub(crate) fn new(read: ReadTransaction, first: u64, manifest: SnapshotManifest) -> Source {
        Source { manifest, read, first, idle: 0 }
    }

    /// Time passes; false when nobody wants it any more.
    pub(crate) fn tick(&mut self) -> bool {
        self.idle += 1;
        self.idle < IDLE_TICKS
    }

    /// The answer to a pull.
    pub(crate) fn answer(source: Option<&mut Source>, pull: &SnapshotPull) -> Result<SnapshotChunk, Fatal> {
        let gone = SnapshotChunk { snapshot: pull.snapshot, chunk: pull.chunk, gone: true, ..SnapshotChunk::default() };
        let Some(source) = source.filter(|s| s.manifest.id == pull.snapshot) else { return Ok(gone) };
        source.idle = 0;
        if pull.chunk as usize >= source.manifest.chunk_crc32c.len() {
            return Ok(gone);
        }
        let data = Store::piece(&source.read, source.first + u64::from(pull.chunk))?;
        Ok(SnapshotChunk { data, gone: false, ..gone })
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
    Whole(Box<State>, Vec<Vec<u8>>),
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
        let chunks: Vec<Vec<u8>> = std::mem::take(&mut self.chunks).into_iter().flatten().collect();
        let mut loader = Loader::default();
        let loaded = chunks.iter().rev().try_for_each(|chunk| loader.piece(chunk));
        match loaded.is_ok() && loader.hash() == self.manifest.state_hash {
            true => Staged::Whole(Box::new(loader.state()), chunks),
            false => Staged::Broken,
        }
    }
}
