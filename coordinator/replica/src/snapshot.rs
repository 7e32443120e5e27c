//! Snapshots: the raft message holds a manifest, the follower pulls chunks. Each chunk is checked, the whole by its state hash.

use probity_core::{Change, State};
use probity_proto::v1::*;
use prost::Message;

/// A chunk closes when it has this many bytes.
const CHUNK_BYTES: usize = 512 * 1024;
/// Chunks that are asked for at once.
const PULLS: usize = 4;
/// Ticks after which a chunk that did not come is asked for again.
const PULL_TICKS: u32 = 20;

/// What followers pull from.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) manifest: SnapshotManifest,
    chunks: Vec<Vec<u8>>,
}

impl Source {
    /// The state as of `index`, whose hash must be up to date.
    pub(crate) fn new(id: u64, state: &State, index: u64, term: u64, conf_state: ConfStateRecord) -> Source {
        let mut chunks = Vec::new();
        let mut open = StateRows::default();
        let mut bytes = 0;
        for (table, key, value) in state.rows() {
            bytes += key.len() + value.len() + 16;
            open.rows.push(StateRow { table, key: key.into_bytes(), value });
            if bytes >= CHUNK_BYTES {
                chunks.push(std::mem::take(&mut open).encode_to_vec());
                bytes = 0;
            }
        }
        chunks.push(open.encode_to_vec());
        let manifest = SnapshotManifest {
            index,
            term,
            conf_state: Some(conf_state),
            state_hash: state.hash(),
            chunk_crc32c: chunks.iter().map(|c| crc32c::crc32c(c)).collect(),
            id,
        };
        Source { manifest, chunks }
    }

    /// The answer to a pull.
    pub(crate) fn answer(source: Option<&Source>, pull: &SnapshotPull) -> SnapshotChunk {
        let data = source.filter(|s| s.manifest.id == pull.snapshot).and_then(|s| s.chunks.get(pull.chunk as usize)).cloned();
        let gone = data.is_none();
        SnapshotChunk { snapshot: pull.snapshot, chunk: pull.chunk, data: data.unwrap_or_default(), gone }
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
