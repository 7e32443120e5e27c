//! Sorted tables of records. Every change is remembered until it is written, and the state hash follows it.
//!
//! The hash is a sum over records, so it costs only what changed, and does not depend on the order of changes.
//!
//! A large table is written in pieces while it goes on changing: a round of writing begins by a freeze, and a row that is changed before its
//! turn came is encoded first. So the pieces together are the rows as of the freeze, and no step waits for all of them.

use std::collections::{BTreeMap, VecDeque};
use std::hash::Hasher;
use std::ops::Bound;

use siphasher::sip::SipHasher13;

/// A row of the replicated state.
pub trait Record: prost::Message + Default + Clone + PartialEq {
    /// Number of its table: part of the store's keys, for ever.
    const TABLE: u32;
    /// Its key, unique in the table. Numbers are zero-padded (see [`number_key`]) so that they sort.
    fn key(&self) -> String;
}

/// A number as a key that sorts like the number.
pub fn number_key(n: u64) -> String {
    // By hand: several of these are made for each row of a report, and the formatter takes ten times as long.
    let mut digits = [b'0'; 20];
    let mut rest = n;
    for digit in digits.iter_mut().rev() {
        *digit += (rest % 10) as u8;
        rest /= 10;
    }
    String::from_utf8_lossy(&digits).into_owned()
}

/// Joins the parts of a composite key; the separator can stand in no name.
pub fn pair_key(a: &str, b: &str) -> String {
    format!("{a}\u{1f}{b}")
}

/// What changed in a row since the last freeze: the value as of this one, or none where it was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// [`Record::TABLE`].
    pub table: u32,
    /// [`Record::key`].
    pub key: String,
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
    Changed(std::vec::IntoIter<String>),
    /// Every row, from here on.
    All(Bound<String>),
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
    rows: BTreeMap<String, Row<R>>,
    /// Keys in the order in which their rows changed.
    dirty: Vec<String>,
    /// A removed row leaves its old hash here.
    removed: BTreeMap<String, u64>,
    /// The round that changes belong to now.
    round: u32,
    /// The round before it, until all of it is written.
    frozen: Option<Frozen>,
}

impl<R> Default for Table<R> {
    fn default() -> Self {
        Table { rows: BTreeMap::new(), dirty: Vec::new(), removed: BTreeMap::new(), round: 1, frozen: None }
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
            Change { table: R::TABLE, key: key.to_owned(), value: Some(value) }
        })
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
        if row.changed != self.round {
            if let Some(frozen) = &mut self.frozen {
                let early = frozen.encode(key, row, self.round);
                frozen.early.extend(early);
            }
            row.changed = self.round;
            self.dirty.push(key.to_owned());
        }
        Some(&mut row.record)
    }

    /// Inserts or replaces; returns what was replaced.
    pub fn put(&mut self, record: R) -> Option<R> {
        let key = record.key();
        if let Some(old) = self.get_mut(&key) {
            return Some(std::mem::replace(old, record));
        }
        let hash = self.removed.remove(&key).unwrap_or(0);
        self.dirty.push(key.clone());
        self.rows.insert(key, Row { record, hash, changed: self.round, written: self.round - 1 });
        None
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
        self.removed.insert(key.to_owned(), row.hash);
        Some(row.record)
    }

    /// All records in key order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &R> {
        self.rows.values().map(|row| &row.record)
    }

    /// The records after `key`, in key order.
    pub fn after<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a R> + use<'a, R> {
        self.rows.range((Bound::Excluded(key.to_owned()), Bound::Unbounded)).map(|(_, row)| &row.record)
    }

    /// The records whose key starts with `prefix`, in key order.
    pub fn prefix<'a>(&'a self, prefix: &str) -> impl Iterator<Item = &'a R> + use<'a, R> {
        let prefix = prefix.to_owned();
        self.rows.range(prefix.clone()..).take_while(move |(key, _)| key.starts_with(&prefix)).map(|(_, row)| &row.record)
    }

    /// All keys, in order: for loops that change the table.
    pub fn keys(&self) -> Vec<String> {
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

    /// Begins a round of writing: the changes since the last one as of now, or every row. The last round is over.
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
        self.rows.insert(key.to_owned(), Row { record, hash, changed: 0, written: 0 });
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
