//! Sorted tables of records. Every change is remembered until it is written, and the state hash follows it.
//!
//! The hash is a sum over records, so it costs only what changed, and does not depend on the order of changes.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;

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

/// What changed in a row since the last [`State::take_changes`](crate::State::take_changes): the new value, or none where it was removed.
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
    /// Share of this row in the sum, as of the last drain; 0 before the first.
    hash: u64,
    /// Its key is among the changed ones.
    dirty: bool,
}

/// A sorted table of records.
#[derive(Debug, Clone)]
pub struct Table<R> {
    rows: BTreeMap<String, Row<R>>,
    /// Changed keys; a removed row leaves its old hash here.
    dirty: BTreeSet<String>,
    removed: BTreeMap<String, u64>,
}

impl<R> Default for Table<R> {
    fn default() -> Self {
        Table { rows: BTreeMap::new(), dirty: BTreeSet::new(), removed: BTreeMap::new() }
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
        if !std::mem::replace(&mut row.dirty, true) {
            self.dirty.insert(key.to_owned());
        }
        Some(&mut row.record)
    }

    /// Inserts or replaces.
    pub fn put(&mut self, record: R) {
        let key = record.key();
        self.dirty.insert(key.clone());
        match self.rows.get_mut(&key) {
            Some(row) => {
                row.record = record;
                row.dirty = true;
            }
            None => {
                let hash = self.removed.remove(&key).unwrap_or(0);
                self.rows.insert(key, Row { record, hash, dirty: true });
            }
        }
    }

    /// Removes and returns.
    pub fn remove(&mut self, key: &str) -> Option<R> {
        let row = self.rows.remove(key)?;
        self.dirty.insert(key.to_owned());
        self.removed.insert(key.to_owned(), row.hash);
        Some(row.record)
    }

    /// All records in key order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &R> {
        self.rows.values().map(|row| &row.record)
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

    /// Moves the changes since the last call to `out`, in key order, and returns what they add to the state hash (wrapping).
    pub(crate) fn drain(&mut self, out: &mut Vec<Change>) -> u64 {
        let mut sum = 0u64;
        for key in std::mem::take(&mut self.dirty) {
            let value = match self.rows.get_mut(&key) {
                Some(row) => {
                    let value = row.record.encode_to_vec();
                    let hash = row_hash(R::TABLE, &key, &value);
                    sum = sum.wrapping_add(hash).wrapping_sub(row.hash);
                    row.hash = hash;
                    row.dirty = false;
                    Some(value)
                }
                None => {
                    sum = sum.wrapping_sub(self.removed.remove(&key).unwrap_or(0));
                    None
                }
            };
            out.push(Change { table: R::TABLE, key, value });
        }
        sum
    }

    /// Loads a stored row without marking it as changed; returns its part of the hash.
    pub(crate) fn load(&mut self, key: &str, value: &[u8]) -> Result<u64, prost::DecodeError> {
        let record = R::decode(value)?;
        let hash = row_hash(R::TABLE, key, value);
        self.rows.insert(key.to_owned(), Row { record, hash, dirty: false });
        Ok(hash)
    }
}

/// The part of one row in the state hash.
fn row_hash(table: u32, key: &str, value: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write_u32(table);
    hasher.write_u64(key.len() as u64);
    hasher.write(key.as_bytes());
    hasher.write(value);
    hasher.finish()
}
