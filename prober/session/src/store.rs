//! What a prober keeps on its disk: spool id, rows, assignments, the highest fence, the faults that ended.

use std::ops::RangeInclusive;
use std::sync::Arc;

use probity_proto::v1::*;
use prost::Message;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::row::slots;
use crate::running::Packed;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const ROWS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");
const ASSIGNMENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("assignments");
const POSITIONS: TableDefinition<'_, u64, u64> = TableDefinition::new("positions");
const ENDED: TableDefinition<'_, &str, u64> = TableDefinition::new("ended");

/// Ids of faults that began or ended here and are remembered; they are unique for ever, and wishes for old ones do not come back.
const ENDED_KEPT: usize = 10_000;

/// The prober's store is broken.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// redb, or the disk below it.
    #[error("the prober's store failed")]
    Store(#[from] redb::Error),
    /// A record that is none.
    #[error("the prober's store is damaged: {0}")]
    Damaged(String),
}

#[derive(Debug)]
pub(crate) struct Store {
    db: Database,
}

/// What an earlier run left.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    pub(crate) spool_id: String,
    pub(crate) sequence: u64,
    pub(crate) fence: u64,
    pub(crate) rows: Vec<ReportRow>,
    pub(crate) assignments: Vec<AssignmentSpec>,
    pub(crate) ended: Vec<String>,
    /// The desired set that `assignments` are, and of which cluster.
    pub(crate) revision: u64,
    pub(crate) cluster_id: String,
    /// There was nothing: the spool id is the new one.
    pub(crate) fresh: bool,
}

fn error(e: impl Into<redb::Error>) -> redb::Error {
    e.into()
}

fn damaged<T>(what: &str) -> impl Fn(T) -> StoreError + '_ {
    move |_| StoreError::Damaged(what.to_owned())
}

impl Store {
    pub(crate) fn open(db: Database, new_spool_id: &str) -> Result<(Store, Saved), StoreError> {
        let store = Store { db };
        let saved = match store.load()? {
            Some(saved) => saved,
            None => {
                store.write(|txn| put(txn, "spool_id", new_spool_id.as_bytes()))?;
                Saved { spool_id: new_spool_id.to_owned(), fresh: true, ..Saved::default() }
            }
        };
        Ok((store, saved))
    }

    fn load(&self) -> Result<Option<Saved>, StoreError> {
        let read = self.db.begin_read().map_err(error)?;
        let Ok(meta) = read.open_table(META) else { return Ok(None) };
        let get = |key: &str| meta.get(key).map_err(error).map(|v| v.map(|g| g.value().to_vec()));
        let number = |key: &str| -> Result<u64, StoreError> {
            let bytes = get(key)?;
            bytes.map_or(Ok(0), |b| b.try_into().map(u64::from_le_bytes).map_err(damaged(key)))
        };
        let Some(spool_id) = get("spool_id")? else { return Ok(None) };
        let mut saved = Saved {
            spool_id: String::from_utf8(spool_id).map_err(damaged("spool id"))?,
            sequence: number("sequence")?,
            fence: number("fence")?,
            revision: number("revision")?,
            cluster_id: get("cluster_id")?.map_or(Ok(String::new()), |id| String::from_utf8(id).map_err(damaged("cluster id")))?,
            ..Saved::default()
        };
        if let Ok(rows) = read.open_table(ROWS) {
            for row in rows.iter().map_err(error)? {
                let (_, value) = row.map_err(error)?;
                saved.rows.push(ReportRow::decode(value.value()).map_err(damaged("a row"))?);
            }
        }
        let positions = read.open_table(POSITIONS).ok();
        if let Ok(table) = read.open_table(ASSIGNMENTS) {
            for row in table.iter().map_err(error)? {
                let (id, value) = row.map_err(error)?;
                let mut spec = AssignmentSpec::decode(value.value()).map_err(damaged("an assignment"))?;
                if let Some(positions) = &positions
                    && let Some(position) = positions.get(id.value()).map_err(error)?
                {
                    spec.next_n = spec.next_n.max(position.value());
                }
                saved.assignments.push(spec);
            }
        }
        if let Ok(ended) = read.open_table(ENDED) {
            for row in ended.iter().map_err(error)? {
                saved.ended.push(row.map_err(error)?.0.value().to_owned());
            }
        }
        Ok(Some(saved))
    }

    fn write(&self, change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>) -> Result<(), StoreError> {
        let mut txn = self.db.begin_write().map_err(error)?;
        txn.set_quick_repair(true);
        change(&txn)?;
        Ok(txn.commit().map_err(error)?)
    }

    /// Changes in their order, in one transaction.
    pub(crate) fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.write(|txn| changes.iter().try_for_each(|change| apply(txn, change)))
    }
}

/// What is to become of the disk.
#[derive(Debug)]
pub(crate) enum Change {
    /// Rows; the last one's sequence is what the spool reaches, and each ends where its assignment is.
    AddRows(Vec<Arc<ReportRow>>),
    /// Rows of which less is kept.
    ReplaceRows(Vec<Arc<ReportRow>>),
    /// Rows that are committed, by their sequences.
    RemoveRows(RangeInclusive<u64>),
    /// What a revision changed: after a crash the assignments are those of the revision that stands beside them.
    Assignments { revision: u64, changed: Vec<(u64, Packed)>, gone: Vec<u64> },
    /// The first cluster of this store.
    Cluster(String),
    /// Belongs to a cluster from now on, with nothing of another one: ids and fences mean nothing across clusters.
    Join { cluster_id: String, spool_id: String },
    /// The highest fence.
    Fence(u64),
    /// Faults that began or ended, and how many did before the first of them.
    Spent { ids: Vec<String>, before: u64 },
}

fn apply(txn: &redb::WriteTransaction, change: &Change) -> Result<(), redb::Error> {
    match change {
        Change::AddRows(rows) => add_rows(txn, rows),
        Change::ReplaceRows(rows) => put_rows(txn, rows),
        Change::RemoveRows(sequences) => {
            let mut table = txn.open_table(ROWS).map_err(error)?;
            table.retain_in(sequences.clone(), |_, _| false).map_err(error)
        }
        Change::Assignments { revision, changed, gone } => {
            let mut table = txn.open_table(ASSIGNMENTS).map_err(error)?;
            let mut positions = txn.open_table(POSITIONS).map_err(error)?;
            for (id, packed) in changed {
                table.insert(id, &**packed).map_err(error)?;
            }
            for id in gone {
                table.remove(id).map_err(error)?;
                positions.remove(id).map_err(error)?;
            }
            put(txn, "revision", &revision.to_le_bytes())
        }
        Change::Cluster(id) => put(txn, "cluster_id", id.as_bytes()),
        Change::Join { cluster_id, spool_id } => {
            for table in [ROWS, ASSIGNMENTS] {
                txn.delete_table(table).map_err(error)?;
            }
            txn.delete_table(POSITIONS).map_err(error)?;
            for number in ["sequence", "fence", "revision"] {
                put(txn, number, &0u64.to_le_bytes())?;
            }
            put(txn, "spool_id", spool_id.as_bytes())?;
            put(txn, "cluster_id", cluster_id.as_bytes())
        }
        Change::Fence(fence) => put(txn, "fence", &fence.to_le_bytes()),
        Change::Spent { ids, before } => add_spent(txn, ids, *before),
    }
}

fn put_rows(txn: &redb::WriteTransaction, rows: &[Arc<ReportRow>]) -> Result<(), redb::Error> {
    let mut table = txn.open_table(ROWS).map_err(error)?;
    let mut bytes = Vec::new();
    for row in rows {
        bytes.clear();
        // A vector grows as it must: encoding into it does not fail.
        let _ = row.encode(&mut bytes);
        table.insert(row.sequence, bytes.as_slice()).map_err(error)?;
    }
    Ok(())
}

fn add_rows(txn: &redb::WriteTransaction, rows: &[Arc<ReportRow>]) -> Result<(), redb::Error> {
    put_rows(txn, rows)?;
    let mut table = txn.open_table(POSITIONS).map_err(error)?;
    for row in rows {
        table.insert(row.assignment, row.first_n + slots(row)).map_err(error)?;
    }
    drop(table);
    rows.last().map_or(Ok(()), |last| put(txn, "sequence", &last.sequence.to_le_bytes()))
}

fn add_spent(txn: &redb::WriteTransaction, ids: &[String], before: u64) -> Result<(), redb::Error> {
    let mut table = txn.open_table(ENDED).map_err(error)?;
    for (id, order) in ids.iter().zip(before..) {
        table.insert(id.as_str(), order).map_err(error)?;
    }
    let oldest = (before + ids.len() as u64).saturating_sub(ENDED_KEPT as u64);
    if oldest > 0 {
        table.retain(|_, order| order >= oldest).map_err(error)?;
    }
    Ok(())
}

fn put(txn: &redb::WriteTransaction, key: &str, value: &[u8]) -> Result<(), redb::Error> {
    txn.open_table(META).map_err(error)?.insert(key, value).map_err(error)?;
    Ok(())
}
