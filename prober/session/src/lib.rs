//! What a prober must never get wrong, without a clock, a socket or a thread: which slots run when, what becomes of their
//! outcomes until they are committed, and which faults may live.
//!
//! Sans-IO: the driver and the simulator pass in times and messages. The only I/O is redb's, below its `StorageBackend`.
//! A prober alone keeps its schedule: assignments and rows are on its disk (rule R9).

mod agenda;
mod clock;
mod faults;
mod row;
mod running;
mod spool;
mod store;
mod trust;
mod writes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use probity_proto::v1::*;
use prost::{DecodeError, Message};

use agenda::Agenda;
pub use clock::Clock;
pub use faults::{FaultAction, FaultBook};
use running::{Packed, Piece, Running};
use spool::Spool;
pub use store::StoreError;
use store::{Change, Store};
use trust::Trust;
use writes::Writes;
pub use writes::{Batch, Written};

/// A row is kept so long for a coordinator, unless [`Session::set_spool_age`] says less: coordinators wait no longer.
const SPOOL_AGE_US: i64 = 24 * 3_600 * 1_000_000;
/// Rows in one message.
const ROWS_PER_MESSAGE: usize = 256;

/// Bounds and times of a session.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the prober.
    pub prober: String,
    /// For a new spool; an old one keeps its own.
    pub new_spool_id: String,
    /// Bytes of rows that are kept while nobody takes them; beyond, the oldest are replaced by their size.
    pub spool_bytes_max: u64,
    /// A steady pair's rows are sent this often.
    pub flush_us: u64,
    /// An unsteady pair's rows are sent this soon.
    pub unsteady_flush_us: u64,
    /// Slots are handed out so long before they are due: whoever runs them keeps the time of each, and is not told of them one by one.
    pub ahead_us: i64,
}

/// A slot whose run should start when it is due, which is now or soon.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotStart {
    /// Its assignment.
    pub assignment: u64,
    /// Its number.
    pub n: u64,
    /// When it is due.
    pub due_us: i64,
    /// The assignment as it is encoded: of all its slots the same piece of memory, until it changes.
    pub packed: Arc<[u8]>,
}

impl SlotStart {
    /// What to run.
    pub fn spec(&self) -> Result<AssignmentSpec, DecodeError> {
        AssignmentSpec::decode(&*self.packed)
    }
}

/// A phase of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    /// By its name, as limits on it have it.
    pub name: &'static str,
    /// From the start of the run.
    pub start_us: u64,
    /// How long it took.
    pub duration_us: u64,
}

/// A finished run.
#[derive(Debug, Clone, Default)]
pub struct RunDone {
    /// Its outcome.
    pub reason: Reason,
    /// When it began, in cluster time.
    pub started_at_us: i64,
    /// How long it took.
    pub duration_us: u64,
    /// Phases, in order.
    pub phases: Vec<Phase>,
    /// For people.
    pub message: String,
    /// Its trace; 0: none.
    pub trace_id: u128,
    /// The address.
    pub peer: String,
    /// How late it started.
    pub lag_us: u64,
    /// Attempts that failed before the one that decided.
    pub failed_attempts: Vec<FailedAttempt>,
}

/// The session.
#[derive(Debug)]
pub struct Session {
    config: Config,
    writes: Writes,
    assignments: BTreeMap<u64, Running>,
    /// When the next slot of each is due.
    slots: Agenda,
    /// When the row of each is to be closed, or what is held back goes into it.
    rows: Agenda,
    spool: Spool,
    spool_age_us: i64,
    spool_id: String,
    sequence: u64,
    revision: u64,
    cluster_id: String,
    /// How many spools began in this run.
    spools_begun: u32,
    /// The highest fence that was given to the disk, and how many ids of faults.
    fence: u64,
    spent: u64,
    trust: Trust,
    /// Faults and their reports.
    pub faults: FaultBook,
}

impl Session {
    /// Opens what an earlier run left; `now_us` is when this one begins: slots before it were missed for being off.
    pub fn open(db: redb::Database, config: Config, now_us: i64) -> Result<Session, StoreError> {
        let (store, saved) = Store::open(db, &config.new_spool_id)?;
        let mut session = Session {
            config,
            writes: Writes::new(store, saved.sequence),
            assignments: BTreeMap::new(),
            slots: Agenda::default(),
            rows: Agenda::default(),
            spool: Spool::of(saved.rows, now_us),
            spool_age_us: SPOOL_AGE_US,
            spool_id: saved.spool_id,
            sequence: saved.sequence,
            revision: saved.revision,
            cluster_id: saved.cluster_id,
            spools_begun: u32::from(saved.fresh),
            fence: saved.fence,
            spent: saved.ended.len() as u64,
            trust: Trust::default(),
            faults: FaultBook::new(saved.fence, saved.ended),
        };
        for spec in saved.assignments {
            let id = spec.id;
            session.assignments.insert(id, Running::new(&spec, (now_us, Reason::ProberOff)));
            session.plan(id);
        }
        Ok(session)
    }

    /// The id of the spool: lives with its disk.
    pub fn spool_id(&self) -> &str {
        &self.spool_id
    }

    /// The revision of the desired set that is followed; 0 = none, the whole set is wanted.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The cluster whose desired set is followed; empty before the first.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// (rows, bytes, slots dropped since the start) of the spool.
    pub fn spooled(&self) -> (u64, u64, u64) {
        self.spool.totals()
    }

    /// How many assignments are followed.
    pub fn assignments(&self) -> usize {
        self.assignments.len()
    }

    /// What the coordinator asks for. `flush_us` of its welcome.
    pub fn set_flush(&mut self, flush_us: u64, unsteady_flush_us: u64) {
        let flush = (flush_us.max(1), unsteady_flush_us.max(1));
        if flush == (self.config.flush_us, self.config.unsteady_flush_us) {
            return;
        }
        (self.config.flush_us, self.config.unsteady_flush_us) = flush;
        for (id, running) in &mut self.assignments {
            let at = running.next_row_at(flush.0, flush.1);
            self.rows.set(*id, &mut running.row_at, at);
        }
    }

    /// How old a row may become in the spool; beyond, only how many slots it was is kept.
    pub fn set_spool_age(&mut self, age_us: u64) {
        self.spool_age_us = i64::try_from(age_us).unwrap_or(SPOOL_AGE_US).min(SPOOL_AGE_US);
    }

    /// A new stream: everything unacknowledged goes out again, in order.
    pub fn on_connected(&mut self) {
        self.spool.on_connected();
        self.faults.on_connected();
    }

    /// A coordinator says which cluster it is of. Coming from another one, or from one that was restored from a backup, everything
    /// begins anew: assignments, rows and fences of the old one would mean something else here. Its unacknowledged rows are the
    /// old cluster's, and are dropped; the faults that it wanted end.
    pub fn on_welcome(&mut self, cluster_id: &str) {
        if cluster_id.is_empty() || cluster_id == self.cluster_id {
            return;
        }
        if self.cluster_id.is_empty() {
            self.writes.push(Change::Cluster(cluster_id.to_owned()));
        } else {
            let spool_id = self.next_spool_id();
            self.writes.push(Change::Join { cluster_id: cluster_id.to_owned(), spool_id: spool_id.clone() });
            self.spool.give_up();
            self.assignments.clear();
            self.slots.clear();
            self.rows.clear();
            (self.spool_id, self.sequence, self.revision, self.fence) = (spool_id, 0, 0, 0);
            self.faults.on_other_cluster();
        }
        self.cluster_id = cluster_id.to_owned();
    }

    /// An id that no spool had before: the one that this run was given, then with a number.
    fn next_spool_id(&mut self) -> String {
        self.spools_begun += 1;
        let given = &self.config.new_spool_id;
        if self.spools_begun == 1 { given.clone() } else { format!("{given}-{}", self.spools_begun) }
    }

    /// Follows a desired set, or what changed since the revision that is followed. One of an older fence is refused; a change to
    /// another revision cannot be followed: [`Session::revision`] is 0 then, and the whole set is to be asked for.
    pub fn on_desired(&mut self, set: DesiredSet, now_us: i64) {
        if !self.faults.accept_fence(set.fence) {
            return;
        }
        self.remember_fence(set.fence);
        if set.base_revision != 0 && set.base_revision != self.revision {
            self.revision = 0;
            return;
        }
        let gone: Vec<u64> = if set.base_revision == 0 {
            let wanted: BTreeSet<u64> = set.assignments.iter().map(|a| a.id).collect();
            self.assignments.keys().filter(|id| !wanted.contains(id)).copied().collect()
        } else {
            set.removed.iter().filter(|id| self.assignments.contains_key(id)).copied().collect()
        };
        for id in &gone {
            self.close(*id);
            if let Some(mut running) = self.assignments.remove(id) {
                self.slots.set(*id, &mut running.slot_at, None);
                self.rows.set(*id, &mut running.row_at, None);
            }
        }
        let changed: Vec<(u64, Packed)> = set.assignments.into_iter().filter_map(|spec| self.follow(spec, now_us)).collect();
        if !changed.is_empty() || !gone.is_empty() {
            self.shrink();
            self.writes.push(Change::Assignments { revision: set.revision, changed, gone });
        }
        self.revision = set.revision;
        self.faults.on_desired(set.faults, set.halted, set.lease_us, now_us);
        self.save_faults();
    }

    /// Takes up an assignment as it is now; what is to be stored of it, if it is new or changed.
    fn follow(&mut self, spec: AssignmentSpec, now_us: i64) -> Option<(u64, Packed)> {
        let id = spec.id;
        let stored = match self.assignments.get_mut(&id) {
            Some(running) => running.follow(spec)?,
            None => {
                let running = Running::new(&spec, (now_us, Reason::AssignedLate));
                let stored = running.packed().clone();
                self.assignments.insert(id, running);
                stored
            }
        };
        self.plan(id);
        Some((id, stored))
    }

    /// Puts an assignment where it belongs in both agendas.
    fn plan(&mut self, id: u64) {
        let Some(running) = self.assignments.get_mut(&id) else { return };
        let (slot, row) = (running.next_slot_at(), running.next_row_at(self.config.flush_us, self.config.unsteady_flush_us));
        self.slots.set(id, &mut running.slot_at, slot);
        self.rows.set(id, &mut running.row_at, row);
    }

    /// The runs to start now or soon. What was overslept is missed, never run late in a burst; an n is never run twice.
    pub fn due(&mut self, now_us: i64) -> Vec<SlotStart> {
        let mut starts = Vec::new();
        let due: Vec<u64> = self.slots.due(now_us.saturating_add(self.config.ahead_us)).collect();
        for id in due {
            if let Some(running) = self.assignments.get_mut(&id) {
                // As if asked when the slot is due: one that is to come makes none overslept that is due now.
                let at_us = running.slot_at.map_or(now_us, |due| due.max(now_us));
                running.start(at_us, &mut starts);
            }
            self.plan(id);
        }
        starts
    }

    /// A run has finished.
    pub fn on_run_done(&mut self, assignment: u64, n: u64, run: RunDone, now_us: i64) {
        let Some(running) = self.assignments.get_mut(&assignment).filter(|r| r.waits_for(n)) else { return };
        let mut piece = Piece::of(1, run);
        self.trust.judge(&mut piece, now_us);
        if running.finish(n, piece, now_us) {
            self.trust.doubts(assignment);
        }
        self.plan(assignment);
    }

    /// Closes the rows that are due; returns how many.
    pub fn close_rows(&mut self, now_us: i64) -> usize {
        let due: Vec<u64> = self.rows.due(now_us).collect();
        let mut closed = 0;
        for id in due {
            let Some(running) = self.assignments.get_mut(&id) else { continue };
            running.collect(now_us);
            if running.row.due_at(self.config.flush_us, self.config.unsteady_flush_us).is_some_and(|at| at <= now_us) {
                self.close(id);
                closed += 1;
            }
            self.plan(id);
        }
        self.shrink();
        let aged = self.spool.drop_older(now_us.saturating_sub(self.spool_age_us));
        self.replace(aged);
        closed
    }

    /// Closes every open row: before an orderly end.
    pub fn close_everything(&mut self, now_us: i64) {
        let all: Vec<u64> = self.assignments.keys().copied().collect();
        for id in all {
            if let Some(running) = self.assignments.get_mut(&id) {
                running.collect(now_us);
            }
            self.close(id);
            self.plan(id);
        }
        self.shrink();
    }

    /// An assignment's open row goes into the spool.
    fn close(&mut self, id: u64) {
        let Some(running) = self.assignments.get_mut(&id) else { return };
        let begun_at = running.row.begun_at_us();
        let Some(mut row) = running.row.take() else { return };
        self.sequence += 1;
        row.prober.clone_from(&self.config.prober);
        row.spool_id.clone_from(&self.spool_id);
        row.sequence = self.sequence;
        row.assignment = id;
        row.clock_error_us = self.faults.clock_error_us();
        let row = Arc::new(row);
        self.writes.add_row(row.clone());
        self.spool.push(row, begun_at);
    }

    /// Keeps the spool within its bytes.
    fn shrink(&mut self) {
        let shrunk = self.spool.shrink(self.config.spool_bytes_max);
        self.replace(shrunk);
    }

    fn replace(&mut self, shrunk: Vec<Arc<ReportRow>>) {
        if !shrunk.is_empty() {
            self.writes.push(Change::ReplaceRows(shrunk));
        }
    }

    /// Rows to send next on the present stream; each call goes on where the last one ended. Only what is on the disk is sent: a spool
    /// that forgot what it had sent would give the same sequence to other outcomes.
    pub fn rows_to_send(&mut self) -> Vec<ReportRow> {
        self.spool.next(self.writes.sequence(), ROWS_PER_MESSAGE)
    }

    /// Up to which sequence the present spool was acknowledged: for the hello.
    pub fn acknowledged(&self) -> u64 {
        self.spool.first_sequence().map_or(self.sequence, |first| first.saturating_sub(1))
    }

    /// Everything up to a sequence is committed.
    pub fn on_ack(&mut self, ack: &RowsAck) {
        if ack.spool_id != self.spool_id {
            return;
        }
        if let Some(done) = self.spool.on_ack(ack.sequence) {
            self.writes.push(Change::RemoveRows(done));
        }
    }

    /// A leader answers: leases go on, or all ends under a halt. Its fence is remembered as a desired set's is.
    pub fn on_heartbeat(&mut self, reply: &HeartbeatReply, now_us: i64) {
        self.faults.on_heartbeat(reply, now_us);
        self.remember_fence(reply.fence);
    }

    fn remember_fence(&mut self, fence: u64) {
        if fence > self.fence {
            self.fence = fence;
            self.writes.push(Change::Fence(fence));
        }
    }

    /// Takes what the fault book wants persisted.
    pub fn save_faults(&mut self) {
        let ids = self.faults.take_newly_spent();
        if !ids.is_empty() {
            let before = self.spent;
            self.spent += ids.len() as u64;
            self.writes.push(Change::Spent { ids, before });
        }
    }

    /// What the engine is to do. What begins does so only once the fence that it follows from and its id are on the disk (rule R4).
    pub fn fault_actions(&mut self, now_us: i64) -> Vec<FaultAction> {
        self.faults.take_actions(self.writes.faults_are_written(), now_us)
    }

    /// What is to be told of faults next, once it is on the disk. Ask only with room for it.
    pub fn next_fault_report(&mut self) -> Option<FaultReport> {
        if self.writes.faults_are_written() { self.faults.next_report() } else { None }
    }

    /// Whether something waits for the disk: anything at all, and something that faults wait for.
    pub fn unwritten(&self) -> (bool, bool) {
        (!self.writes.is_empty(), !self.writes.faults_are_written())
    }

    /// What is to be written next, if anything is. One batch after the other, and each is told to [`Session::on_written`].
    pub fn take_batch(&mut self) -> Option<Batch> {
        self.writes.take(self.sequence)
    }

    /// A batch is on the disk.
    pub fn on_written(&mut self, written: Written) {
        self.writes.on_written(written);
    }

    /// Writes what is to be written, here and now: for those who may wait.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        if let Some(batch) = self.take_batch() {
            let written = batch.commit()?;
            self.on_written(written);
        }
        Ok(())
    }

    /// When something is to do next.
    pub fn next_wakeup(&self) -> Option<i64> {
        let slot = self.slots.first().map(|due| due.saturating_sub(self.config.ahead_us));
        slot.into_iter().chain(self.rows.first()).min()
    }
}

#[cfg(test)]
mod tests;
