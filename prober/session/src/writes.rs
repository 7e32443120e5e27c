//! What is to be written and is not on the disk yet, in its order, so that nobody who keeps time waits for a disk.
//!
//! The driver takes a [`Batch`] where it may block, commits it, and says so; then the next. The disk sees every change in the order in
//! which it was made, so that a crash leaves a state that was. What may only happen after a change is on the disk asks [`Writes`]: rows
//! are sent then, and faults obey then.

use std::sync::Arc;

use probity_proto::v1::ReportRow;

use crate::store::{Change, Store, StoreError};

/// Changes that are written together.
#[derive(Debug)]
pub struct Batch {
    store: Arc<Store>,
    changes: Vec<Change>,
    written: Written,
}

/// A batch that is on the disk.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    number: u64,
    /// The spool that it ends in, and the sequence that is reached there.
    spool: u32,
    sequence: u64,
}

impl Batch {
    /// Writes it; returns when it is on the disk.
    pub fn commit(self) -> Result<Written, StoreError> {
        self.store.commit(&self.changes)?;
        Ok(self.written)
    }
}

/// The queue before the disk. It holds no more than the spool, the desired set and the ended faults do, whose bounds are its own.
#[derive(Debug)]
pub(crate) struct Writes {
    store: Arc<Store>,
    changes: Vec<Change>,
    /// The batch that is made up next, and the last one that is on the disk.
    number: u64,
    written: u64,
    /// The last batch that faults must wait for.
    faults: u64,
    /// How many spools began here before the present one; its rows up to this sequence are on the disk.
    spool: u32,
    sequence: u64,
}

impl Writes {
    pub(crate) fn new(store: Store, sequence: u64) -> Writes {
        Writes { store: Arc::new(store), changes: Vec::new(), number: 1, written: 0, faults: 0, spool: 0, sequence }
    }

    pub(crate) fn push(&mut self, change: Change) {
        match &change {
            Change::Fence(_) | Change::Spent { .. } => self.faults = self.number,
            Change::Join { .. } => (self.faults, self.spool, self.sequence) = (self.number, self.spool + 1, 0),
            _ => {}
        }
        self.changes.push(change);
    }

    pub(crate) fn add_row(&mut self, row: Arc<ReportRow>) {
        match self.changes.last_mut() {
            Some(Change::AddRows(rows)) => rows.push(row),
            _ => self.changes.push(Change::AddRows(vec![row])),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Everything so far, if there is anything; `sequence`: what the spool reaches.
    pub(crate) fn take(&mut self, sequence: u64) -> Option<Batch> {
        if self.changes.is_empty() {
            return None;
        }
        let written = Written { number: self.number, spool: self.spool, sequence };
        self.number += 1;
        Some(Batch { store: self.store.clone(), changes: std::mem::take(&mut self.changes), written })
    }

    pub(crate) fn on_written(&mut self, written: Written) {
        self.written = self.written.max(written.number);
        // What was written of another cluster's spool says nothing of this one's.
        if written.spool == self.spool {
            self.sequence = self.sequence.max(written.sequence);
        }
    }

    /// Rows up to this sequence are on the disk.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Fences and spent ids are on the disk.
    pub(crate) fn faults_are_written(&self) -> bool {
        self.written >= self.faults
    }
}
