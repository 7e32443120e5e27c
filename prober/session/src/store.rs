//! What a prober keeps on its disk: spool id, rows, assignments, the highest fence, the faults that ended.

use probity_proto::v1::*;
use prost::Message;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

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
    fence: u64,
    ended: u64,
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
        let mut store = Store { db, fence: 0, ended: 0 };
        let saved = match store.load()? {
            Some(saved) => saved,
            None => {
                store.write(|txn| put(txn, "spool_id", new_spool_id.as_bytes()))?;
                Saved { spool_id: new_spool_id.to_owned(), fresh: true, ..Saved::default() }
            }
        };
        store.fence = saved.fence;
        store.ended = saved.ended.len() as u64;
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

    /// Rows, the sequence they reach, and how far each assignment is in rows.
    pub(crate) fn add_rows(&self, rows: &[ReportRow], sequence: u64, positions: &[(u64, u64)]) -> Result<(), StoreError> {
        self.write(|txn| {
            let mut table = txn.open_table(ROWS).map_err(error)?;
            for row in rows {
                table.insert(row.sequence, row.encode_to_vec().as_slice()).map_err(error)?;
            }
            let mut table = txn.open_table(POSITIONS).map_err(error)?;
            for (id, n) in positions {
                table.insert(id, n).map_err(error)?;
            }
            put(txn, "sequence", &sequence.to_le_bytes())
        })
    }

    pub(crate) fn remove_rows(&self, sequences: &[u64]) -> Result<(), StoreError> {
        if sequences.is_empty() {
            return Ok(());
        }
        self.write(|txn| {
            let mut table = txn.open_table(ROWS).map_err(error)?;
            for sequence in sequences {
                table.remove(sequence).map_err(error)?;
            }
            Ok(())
        })
    }

    /// What a revision changed: after a crash the assignments are those of the revision that stands beside them.
    pub(crate) fn set_assignments(&self, revision: u64, changed: &[AssignmentSpec], gone: &[u64]) -> Result<(), StoreError> {
        self.write(|txn| {
            let mut table = txn.open_table(ASSIGNMENTS).map_err(error)?;
            let mut positions = txn.open_table(POSITIONS).map_err(error)?;
            for spec in changed {
                table.insert(spec.id, spec.encode_to_vec().as_slice()).map_err(error)?;
            }
            for id in gone {
                table.remove(id).map_err(error)?;
                positions.remove(id).map_err(error)?;
            }
            put(txn, "revision", &revision.to_le_bytes())
        })
    }

    /// Belongs to a cluster from now on, with nothing of another one: ids and fences mean nothing across clusters.
    pub(crate) fn join(&mut self, cluster_id: &str, spool_id: &str) -> Result<(), StoreError> {
        self.fence = 0;
        self.write(|txn| {
            for table in [ROWS, ASSIGNMENTS] {
                txn.delete_table(table).map_err(error)?;
            }
            txn.delete_table(POSITIONS).map_err(error)?;
            for number in ["sequence", "fence", "revision"] {
                put(txn, number, &0u64.to_le_bytes())?;
            }
            put(txn, "spool_id", spool_id.as_bytes())?;
            put(txn, "cluster_id", cluster_id.as_bytes())
        })
    }

    /// The first cluster of this store.
    pub(crate) fn set_cluster(&self, cluster_id: &str) -> Result<(), StoreError> {
        self.write(|txn| put(txn, "cluster_id", cluster_id.as_bytes()))
    }

    pub(crate) fn set_fence(&mut self, fence: u64) -> Result<(), StoreError> {
        if fence <= self.fence {
            return Ok(());
        }
        self.fence = fence;
        self.write(|txn| put(txn, "fence", &fence.to_le_bytes()))
    }

    pub(crate) fn set_ended(&mut self, ids: Vec<String>) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let first = self.ended;
        self.ended += ids.len() as u64;
        self.write(|txn| {
            let mut table = txn.open_table(ENDED).map_err(error)?;
            for (i, id) in ids.iter().enumerate() {
                table.insert(id.as_str(), first + i as u64).map_err(error)?;
            }
            let oldest = self.ended.saturating_sub(ENDED_KEPT as u64);
            if oldest > 0 {
                table.retain(|_, order| order >= oldest).map_err(error)?;
            }
            Ok(())
        })
    }
}

fn put(txn: &redb::WriteTransaction, key: &str, value: &[u8]) -> Result<(), redb::Error> {
    txn.open_table(META).map_err(error)?.insert(key, value).map_err(error)?;
    Ok(())
}
