//! Sorted tables of records. Every change is remembered until it is written, and the state hash follows it.
//!
//! The hash is a sum over records, so it costs only what changed, and does not depend on the order of changes.
//!
//! A large table is written in pieces while it goes on changing: a round of writing begins by a freeze, and a row that is changed before its
//! turn came is encoded first. So the pieces together are the rows as of the freeze, and no step waits for all of them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::hash::Hasher;
use std::ops::Bound;

use compact_str::CompactString;
use siphasher::sip::SipHasher13;

/// The key of a row. Up to 24 bytes stand in the key itself, so that a search in a large table does not go to the heap for each comparison.
pub type Key = CompactString;

/// A row of the replicated state.
pub trait Record: prost::Message + Default + Clone + PartialEq {
    /// Number of its table: part of the store's keys, for ever.
    const TABLE: u32;
    /// Its key, unique in the table. Numbers are zero-padded (see [`number_key`]) so that they sort.
    fn key(&self) -> Key;
}

/// A number as a key that sorts like the number.
pub fn number_key(n: u64) -> Key {
    // By hand: several of these are made for each row of a report, and the formatter takes ten times as long.
    let mut digits = [b'0'; 20];
    let mut rest = n;
    for digit in digits.iter_mut().rev() {
        *digit += (rest % 10) as u8;
        rest /= 10;
    }
    Key::from_utf8_lossy(&digits)
}

/// Joins the parts of a composite key; the separator can stand in no name.
pub fn pair_key(a: &str, b: &str) -> Key {
    join([a, b], '\u{1f}')
}

/// Joins parts by a separator, without the formatter.
pub(crate) fn join<const N: usize>(parts: [&str; N], separator: char) -> Key {
    let mut key = Key::with_capacity(parts.iter().map(|part| part.len() + separator.len_utf8()).sum::<usize>() - separator.len_utf8());
    for (i, part) in parts.into_iter().enumerate() {
        if i > 0 {
            key.push(separator);
        }
        key.push_str(part);
    }
    key
}

/// What changed in a row since the last freeze: the value as of this one, or none where it was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// [`Record::TABLE`].
    pub table: u32,
    /// [`Record::key`].
    pub key: Key,
    /// The encoded record.
    pub value: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
struct Row<R> {
    record: R,
    /// Share of this row in the sum, as of when it was last encoded; 0 before the first time.
    hash: u64,
    /// The round that its last change belongs to; 0 when it never changed.
    changed: u32,
    /// The round that it was last encoded for, or that it came too late for.
    written: u32,
}

/// What a round of writing still has to do.
#[derive(Debug, Clone)]
enum Rest {
    /// The rows that had changed; some of them are gone, or stand there twice.
    Changed(std::vec::IntoIter<Key>),
    /// Every row, from here on.
    All(Bound<Key>),
}

/// A round of writing that is under way.
#[derive(Debug, Clone)]
struct Frozen {
    rest: Rest,
    /// Encoded already, because they were about to change.
    early: VecDeque<Change>,
    /// What the round adds to the sum so far.
    sum: u64,
}

/// A sorted table of records.
#[derive(Debug, Clone)]
pub struct Table<R> {
    rows: BTreeMap<Key, Row<R>>,
    /// Keys in the order in which their rows changed.
    dirty: Vec<Key>,
    /// A removed row leaves its old hash here, if it was ever written. It may be back by the time of the next freeze.
    removed: Vec<(Key, u64)>,
    /// The round that changes belong to now.
    round: u32,
    /// The round before it, until all of it is written.
    frozen: Option<Frozen>,
}

impl<R> Default for Table<R> {
    fn default() -> Self {
        Table { rows: BTreeMap::new(), dirty: Vec::new(), removed: Vec::new(), round: 1, frozen: None }
    }
}

impl Frozen {
    /// Encodes a row that belongs to the round before `round` and is not encoded yet.
    fn encode<R: Record>(&mut self, key: &str, row: &mut Row<R>, round: u32) -> Option<Change> {
        let due = row.written < round - 1 && (row.changed == round - 1 || matches!(self.rest, Rest::All(_)));
        due.then(|| {
            let value = row.record.encode_to_vec();
            let hash = row_hash(R::TABLE, key, &value);
            self.sum = self.sum.wrapping_add(hash).wrapping_sub(row.hash);
            (row.hash, row.written) = (hash, round - 1);
            Change { table: R::TABLE, key: key.into(), value: Some(value) }
        })
    }
}

impl<R: Record> Row<R> {
    /// Is about to change in `round`: what the round before it still needs of it is taken first.
    fn touch(&mut self, key: &str, round: u32, dirty: &mut Vec<Key>, frozen: &mut Option<Frozen>) {
        if self.changed == round {
            return;
        }
        if let Some(frozen) = frozen {
            let early = frozen.encode(key, self, round);
            frozen.early.extend(early);
        }
        self.changed = round;
        dirty.push(key.into());
    }
}

impl<R: Record> Table<R> {
    /// The record at `key`.
    pub fn get(&self, key: &str) -> Option<&R> {
        self.rows.get(key).map(|row| &row.record)
    }

    /// The record at `key`, to be changed. Its key must stay the same.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut R> {
        let row = self.rows.get_mut(key)?;
        row.touch(key, self.round, &mut self.dirty, &mut self.frozen);
        Some(&mut row.record)
    }

    /// Inserts or replaces; returns what was replaced.
    pub fn put(&mut self, record: R) -> Option<R> {
        match self.rows.entry(record.key()) {
            Entry::Occupied(mut entry) => {
                let key = entry.key().clone();
                let row = entry.get_mut();
                row.touch(&key, self.round, &mut self.dirty, &mut self.frozen);
                Some(std::mem::replace(&mut row.record, record))
            }
            Entry::Vacant(entry) => {
                self.dirty.push(entry.key().clone());
                entry.insert(Row { record, hash: 0, changed: self.round, written: self.round - 1 });
                None
            }
        }
    }

    /// Removes and returns.
    pub fn remove(&mut self, key: &str) -> Option<R> {
        let mut row = self.rows.remove(key)?;
        if let Some(frozen) = &mut self.frozen
            && row.changed != self.round
        {
            let early = frozen.encode(key, &mut row, self.round);
            frozen.early.extend(early);
        }
        // One that came and went between two rounds was never written: most of a short history, in a flood.
        if row.hash != 0 {
            self.removed.push((key.into(), row.hash));
        }
        Some(row.record)
    }

    /// All records in key order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &R> {
        self.rows.values().map(|row| &row.record)
    }

    /// The records after `key`, in key order.
    pub fn after<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a R> + use<'a, R> {
        self.rows.range::<str, _>((Bound::Excluded(key), Bound::<&str>::Unbounded)).map(|(_, row)| &row.record)
    }

    /// The records whose key starts with `prefix`, in key order.
    pub fn prefix<'a>(&'a self, prefix: &str) -> impl Iterator<Item = &'a R> + use<'a, R> {
        let prefix = Key::from(prefix);
        self.rows.range(prefix.clone()..).take_while(move |(key, _)| key.starts_with(prefix.as_str())).map(|(_, row)| &row.record)
    }

    /// All keys, in order: for loops that change the table.
    pub fn keys(&self) -> Vec<Key> {
        self.rows.keys().cloned().collect()
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether there is a row.
    pub(crate) fn holds(&self, key: &str) -> bool {
        self.rows.contains_key(key)
    }

    /// Begins a round of writing: the changes since the last one as of now, or every row. The last round is over. A key that is gone and back stands
    /// there twice: first as gone.
    pub(crate) fn freeze(&mut self, all: bool) {
        self.round += 1;
        let changed = std::mem::take(&mut self.dirty);
        let mut frozen = Frozen { rest: Rest::All(Bound::Unbounded), early: VecDeque::new(), sum: 0 };
        for (key, hash) in std::mem::take(&mut self.removed) {
            frozen.sum = frozen.sum.wrapping_sub(hash);
            if !all {
                frozen.early.push_back(Change { table: R::TABLE, key, value: None });
            }
        }
        if !all {
            frozen.rest = Rest::Changed(changed.into_iter());
        }
        self.frozen = Some(frozen);
    }

    /// Moves about `bytes` of what is left of the round to `out`, and takes them off. When nothing is left, what the round adds to the sum (wrapping).
    pub(crate) fn drain(&mut self, bytes: &mut usize, out: &mut Vec<Change>) -> Option<u64> {
        let Some(frozen) = &mut self.frozen else { return Some(0) };
        let mut take = |change: Change| {
            *bytes = bytes.saturating_sub(change.key.len() + change.value.as_ref().map_or(0, Vec::len) + ROW_OVERHEAD);
            out.push(change);
            *bytes > 0
        };
        while let Some(change) = frozen.early.pop_front() {
            if !take(change) {
                return None;
            }
        }
        loop {
            let next = match &mut frozen.rest {
                Rest::Changed(keys) => keys.next().map(|key| self.rows.get_mut(&key).and_then(|row| frozen.encode(&key, row, self.round))),
                Rest::All(from) => match self.rows.range_mut((from.clone(), Bound::Unbounded)).next() {
                    Some((key, row)) => {
                        *from = Bound::Excluded(key.clone());
                        Some(frozen.encode(key, row, self.round))
                    }
                    None => None,
                },
            };
            let Some(change) = next else { break };
            if change.is_some_and(|change| !take(change)) {
                return None;
            }
        }
        self.frozen.take().map(|frozen| frozen.sum)
    }

    /// Loads a stored row without marking it as changed; returns its part of the hash.
    pub(crate) fn load(&mut self, key: &str, value: &[u8]) -> Result<u64, prost::DecodeError> {
        let record = R::decode(value)?;
        let hash = row_hash(R::TABLE, key, value);
        self.rows.insert(key.into(), Row { record, hash, changed: 0, written: 0 });
        Ok(hash)
    }
}

/// What a row costs besides its key and its value, about.
const ROW_OVERHEAD: usize = 12;

/// The part of one row in the state hash.
fn row_hash(table: u32, key: &str, value: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write_u32(table);
    hasher.write_u64(key.len() as u64);
    hasher.write(key.as_bytes());
    hasher.write(value);
    hasher.finish()
}
