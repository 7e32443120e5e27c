//! The newest part of the log, in memory, and which rows of the store hold it.
//!
//! What one write brings shares rows, since each row costs a walk through the store's tree: a row begins at its first entry's index, and holds
//! entries up to where the next one begins. Entries at the front of the first row may no longer be in the log.

use std::collections::VecDeque;

use probity_proto::v1::{RaftEntries, RaftEntry};
use prost::Message;
use raft::eraftpb::Entry;

use crate::convert;

/// Bytes of the entries in a row, about.
const ROW_BYTES: usize = 1 << 20;

#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Index and term of the newest entry that is no longer in it.
    pub(crate) truncated: (u64, u64),
    entries: VecDeque<Entry>,
    /// Of their data.
    pub(crate) bytes: u64,
    /// Where the rows begin.
    rows: VecDeque<u64>,
}

/// What a write changes in the rows.
#[derive(Debug, Default)]
pub(crate) struct Writing {
    /// Rows to be removed.
    pub(crate) useless: Vec<u64>,
    /// Rows to be inserted, after that.
    pub(crate) fresh: Vec<(u64, Vec<u8>)>,
}

/// Why a row is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RowError {
    Decode,
    Entry(String),
    Missing(u64),
}

/// The bytes of entries' data.
pub(crate) fn bytes<'e>(entries: impl IntoIterator<Item = &'e Entry>) -> u64 {
    entries.into_iter().map(|e| e.data.len() as u64).sum()
}

impl Log {
    /// A log that begins after `truncated`.
    pub(crate) fn after(truncated: (u64, u64)) -> Log {
        Log { truncated, ..Log::default() }
    }

    /// Takes the next row of the store.
    pub(crate) fn load(&mut self, begin: u64, value: &[u8]) -> Result<(), RowError> {
        let mut records = RaftEntries::decode(value).map_err(|_| RowError::Decode)?.entries;
        if records.is_empty() {
            // As builds before wrote it: one entry.
            records.push(RaftEntry::decode(value).map_err(|_| RowError::Decode)?);
        }
        for (record, index) in records.into_iter().zip(begin..) {
            let entry = convert::to_entry(record).map_err(|e| RowError::Entry(e.to_string()))?;
            let next = self.last().0 + 1;
            if entry.index != index || index > next {
                return Err(RowError::Missing(index.min(next)));
            }
            if index == next {
                self.bytes += entry.data.len() as u64;
                self.entries.push_back(entry);
            }
        }
        self.rows.push_back(begin);
        Ok(())
    }

    /// How many rows hold it.
    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Index and term of the newest entry.
    pub(crate) fn last(&self) -> (u64, u64) {
        self.entries.back().map_or(self.truncated, |e| (e.index, e.term))
    }

    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.truncated.0 {
            return Some(self.truncated.1);
        }
        let offset = index.checked_sub(self.truncated.0 + 1)?;
        self.entries.get(offset as usize).map(|e| e.term)
    }

    /// The entries from `low` to before `high`, or none where it does not hold all of them.
    pub(crate) fn range(&self, low: u64, high: u64) -> Option<Vec<Entry>> {
        let place = |index: u64| index.checked_sub(self.truncated.0 + 1).map(|at| at as usize).filter(|at| *at <= self.entries.len());
        Some(self.entries.range(place(low)?..place(high)?).cloned().collect())
    }

    /// What has to be written so that `entries` follow what comes before them: the rows after are of no use, and one that they cut into is written
    /// anew, with them.
    pub(crate) fn writing(&self, entries: &[Entry]) -> Writing {
        let Some(first) = entries.first().map(|e| e.index) else { return Writing::default() };
        let stay = self.rows.partition_point(|row| *row < first);
        let is_cut = first <= self.last().0 && self.rows.get(stay) != Some(&first);
        let cut = stay.checked_sub(1).filter(|_| is_cut);
        let begin = cut.map_or(first, |at| self.rows[at].max(self.truncated.0 + 1));
        let again = self.entries.range(self.offset(begin)..self.offset(first));
        Writing { useless: self.rows.range(cut.unwrap_or(stay)..).copied().collect(), fresh: rows(again.chain(entries)) }
    }

    /// `writing` was done.
    pub(crate) fn wrote(&mut self, writing: Writing, entries: Vec<Entry>) {
        let Some(first) = entries.first().map(|e| e.index) else { return };
        self.rows.truncate(self.rows.len() - writing.useless.len());
        self.rows.extend(writing.fresh.iter().map(|(row, _)| *row));
        let kept = self.offset(first);
        self.bytes -= bytes(self.entries.range(kept..));
        self.entries.truncate(kept);
        self.bytes += bytes(&entries);
        self.entries.extend(entries);
    }

    /// Where an entry stands that is in it, or that may follow.
    fn offset(&self, index: u64) -> usize {
        (index - self.truncated.0 - 1) as usize
    }

    /// The rows of which no entry is left when all up to `index` go.
    pub(crate) fn useless(&self, index: u64) -> impl Iterator<Item = u64> + '_ {
        let ends = self.rows.iter().skip(1).map(|next| next - 1).chain([self.last().0]);
        self.rows.iter().zip(ends).take_while(move |(_, end)| *end <= index).map(|(row, _)| *row)
    }

    /// All up to `index`, whose term that is, are gone.
    pub(crate) fn cut(&mut self, (index, term): (u64, u64)) {
        let rows = self.useless(index).count();
        self.rows.drain(..rows);
        let dropped = self.offset(index + 1);
        self.bytes -= bytes(self.entries.range(..dropped));
        self.entries.drain(..dropped);
        self.truncated = (index, term);
    }

    pub(crate) fn is_longer(&self, entries: u64, bytes: u64) -> bool {
        self.entries.len() as u64 > entries || self.bytes > bytes
    }

    /// From where on it is kept when it is longer than `entries_max` or `bytes_max`: a quarter of both, and all that is not applied.
    pub(crate) fn keep_from(&self, applied: u64, entries_max: u64, bytes_max: u64) -> Option<u64> {
        if !self.is_longer(entries_max, bytes_max) {
            return None;
        }
        let mut kept_bytes = 0;
        let newest = self.entries.iter().rev().take((entries_max / 4) as usize).take_while(|e| {
            kept_bytes += e.data.len() as u64;
            kept_bytes <= bytes_max / 4
        });
        let by_size = self.last().0 + 1 - newest.count() as u64;
        Some(by_size.min(applied + 1))
    }
}

/// Rows for entries: where each begins, and its bytes.
fn rows<'e>(entries: impl Iterator<Item = &'e Entry>) -> Vec<(u64, Vec<u8>)> {
    let mut rows: Vec<(u64, RaftEntries)> = Vec::new();
    let mut room = 0;
    for entry in entries {
        if room == 0 || rows.is_empty() {
            rows.push((entry.index, RaftEntries::default()));
            room = ROW_BYTES;
        }
        room = room.saturating_sub(entry.data.len());
        if let Some((_, row)) = rows.last_mut() {
            row.entries.push(convert::from_entry(entry.clone()));
        }
    }
    rows.into_iter().map(|(begin, row)| (begin, row.encode_to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The log, and the rows of a store that did what it was told.
    #[derive(Default)]
    struct World {
        log: Log,
        stored: BTreeMap<u64, Vec<u8>>,
    }

    fn entries(from: u64, count: u64, term: u64, size: usize) -> Vec<Entry> {
        (from..from + count).map(|index| Entry { index, term, data: vec![7; size].into(), ..Default::default() }).collect()
    }

    impl World {
        fn write(&mut self, entries: Vec<Entry>) {
            let writing = self.log.writing(&entries);
            for row in &writing.useless {
                assert!(self.stored.remove(row).is_some(), "row {row} is not there");
            }
            self.stored.extend(writing.fresh.iter().cloned());
            self.log.wrote(writing, entries);
            self.check();
        }

        fn cut(&mut self, index: u64) {
            let term = self.log.term_of(index).expect("it is in the log");
            for row in self.log.useless(index) {
                assert!(self.stored.remove(&row).is_some(), "row {row} is not there");
            }
            self.log.cut((index, term));
            self.check();
        }

        /// What is read back is what is in memory.
        fn check(&self) {
            let mut again = Log::after(self.log.truncated);
            for (begin, value) in &self.stored {
                again.load(*begin, value).expect("a row");
            }
            assert_eq!((&again.entries, &again.rows, again.bytes), (&self.log.entries, &self.log.rows, self.log.bytes));
        }
    }

    #[test]
    fn what_is_stored_is_what_is_in_memory() {
        // Every way in which a write can meet the rows that there are, and a cut.
        for (overwritten, cut) in (1..=9).flat_map(|first| (0..first).map(move |cut| (first, cut))) {
            let mut world = World::default();
            for first in [1, 2, 5] {
                world.write(entries(first, if first == 5 { 4 } else { 3 }, 1, 10));
            }
            if cut > 0 {
                world.cut(cut);
            }
            world.write(entries(overwritten, 2, 2, 20));
            assert_eq!(world.log.last(), (overwritten + 1, 2));
            world.cut(overwritten);
            world.write(entries(overwritten + 2, 3, 2, 5));
            world.cut(overwritten + 4);
            assert_eq!((world.log.entries.len(), world.stored.len(), world.log.bytes), (0, 0, 0));
        }
    }

    #[test]
    fn large_entries_have_rows_of_their_own() {
        let mut world = World::default();
        world.write(entries(1, 6, 1, ROW_BYTES / 2));
        assert_eq!(world.log.rows, [1, 3, 5]);
        world.write(entries(4, 1, 2, 1));
        assert_eq!(world.log.rows, [1, 3]);
    }

    #[test]
    fn what_is_missing_is_noticed() {
        let mut world = World::default();
        world.write(entries(1, 3, 1, 1));
        world.write(entries(4, 3, 1, 1));
        let mut again = Log::default();
        assert_eq!(again.load(4, &world.stored[&4]), Err(RowError::Missing(1)));
        assert_eq!(again.load(1, &world.stored[&4]), Err(RowError::Missing(1)), "a row under another's key");
        assert_eq!(again.load(1, b"\xff"), Err(RowError::Decode));
        // A row of one entry, as it was written once.
        let record = RaftEntry { index: 1, term: 1, ..RaftEntry::default() };
        assert_eq!(again.load(1, &record.encode_to_vec()), Ok(()));
        assert_eq!(again.last(), (1, 1));
    }
}
