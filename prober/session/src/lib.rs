//! What a prober must never get wrong, without a clock, a socket or a thread: which slots run when, what becomes of their
//! outcomes until they are committed, and which faults may live.
//!
//! Sans-IO: the driver and the simulator pass in times and messages. The only I/O is redb's, below its `StorageBackend`.
//! A prober alone keeps its schedule: assignments and rows are on its disk (rule R9).

mod clock;
mod faults;
mod row;
mod store;
mod trust;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use probity_proto::reason::Class;
use probity_proto::slots::Schedule;
use probity_proto::v1::*;

pub use clock::Clock;
pub use faults::{FaultAction, FaultBook};
use row::OpenRow;
use store::Store;
pub use store::StoreError;
use trust::Trust;

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
}

/// A slot whose run should start now.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotStart {
    /// Its assignment.
    pub assignment: u64,
    /// Its number.
    pub n: u64,
    /// When it was due.
    pub due_us: i64,
    /// What to run.
    pub spec: AssignmentSpec,
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
    /// Its trace.
    pub trace_id: String,
    /// The address.
    pub peer: String,
    /// How late it started.
    pub lag_us: u64,
    /// Attempts that failed before the one that decided.
    pub failed_attempts: Vec<FailedAttempt>,
}

/// Some slots of one outcome that wait for their predecessors.
#[derive(Debug)]
struct Piece {
    count: u64,
    run: RunDone,
    /// Held back since, and until when at most: a self-check has yet to say whether it is to be believed.
    doubted: Option<(i64, i64)>,
}

impl Piece {
    fn of(count: u64, run: RunDone) -> Piece {
        Piece { count, run, doubted: None }
    }
}

/// One assignment as the prober sees it.
#[derive(Debug)]
struct Running {
    spec: AssignmentSpec,
    /// The next slot to start.
    next_n: u64,
    /// The next slot to go into a row: everything before is in a row.
    row_n: u64,
    finished: BTreeMap<u64, Piece>,
    row: OpenRow,
    /// Slots due before this were never to be run here: (time, why).
    not_before: (i64, Reason),
}

impl Running {
    fn new(spec: AssignmentSpec, not_before: (i64, Reason)) -> Running {
        Running { next_n: spec.next_n, row_n: spec.next_n, finished: BTreeMap::new(), row: OpenRow::default(), not_before, spec }
    }

    fn schedule(&self) -> Schedule {
        Schedule { interval_us: self.spec.interval_us.max(1), phase_us: self.spec.phase_us }
    }

    /// Slots due at or after this are not planned.
    fn until(&self) -> i64 {
        if self.spec.until_us == 0 { i64::MAX } else { self.spec.until_us }
    }
}

/// The session.
#[derive(Debug)]
pub struct Session {
    config: Config,
    store: Store,
    assignments: BTreeMap<u64, Running>,
    /// Rows that are on the disk and not acknowledged, oldest first.
    spool: VecDeque<ReportRow>,
    /// When each of them was begun; those of an earlier run count from the start of this one.
    begun_at: VecDeque<i64>,
    /// All before this one gave up their content for their age.
    aged: usize,
    spool_age_us: i64,
    spool_bytes: u64,
    /// How many of them went out on the present stream.
    sent: usize,
    spool_id: String,
    sequence: u64,
    revision: u64,
    cluster_id: String,
    /// How many spools began in this run.
    spools_begun: u32,
    dropped_slots: u64,
    trust: Trust,
    /// Faults and their reports.
    pub faults: FaultBook,
}

impl Session {
    /// Opens what an earlier run left; `now_us` is when this one begins: slots before it were missed for being off.
    pub fn open(db: redb::Database, config: Config, now_us: i64) -> Result<Session, StoreError> {
        let (store, saved) = Store::open(db, &config.new_spool_id)?;
        let assignments = saved.assignments.into_iter().map(|spec| (spec.id, Running::new(spec, (now_us, Reason::ProberOff)))).collect();
        let spool_bytes = saved.rows.iter().map(row::size).sum();
        Ok(Session {
            config,
            store,
            assignments,
            begun_at: std::iter::repeat_n(now_us, saved.rows.len()).collect(),
            aged: 0,
            spool_age_us: SPOOL_AGE_US,
            spool: saved.rows.into(),
            spool_bytes,
            sent: 0,
            spool_id: saved.spool_id,
            sequence: saved.sequence,
            revision: saved.revision,
            cluster_id: saved.cluster_id,
            spools_begun: u32::from(saved.fresh),
            dropped_slots: 0,
            trust: Trust::default(),
            faults: FaultBook::new(saved.fence, saved.ended),
        })
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
        (self.spool.len() as u64, self.spool_bytes, self.dropped_slots)
    }

    /// How many assignments are followed.
    pub fn assignments(&self) -> usize {
        self.assignments.len()
    }

    /// What the coordinator asks for. `flush_us` of its welcome.
    pub fn set_flush(&mut self, flush_us: u64, unsteady_flush_us: u64) {
        self.config.flush_us = flush_us.max(1);
        self.config.unsteady_flush_us = unsteady_flush_us.max(1);
    }

    /// How old a row may become in the spool; beyond, only how many slots it was is kept.
    pub fn set_spool_age(&mut self, age_us: u64) {
        self.spool_age_us = i64::try_from(age_us).unwrap_or(SPOOL_AGE_US).min(SPOOL_AGE_US);
    }

    /// A new stream: everything unacknowledged goes out again, in order.
    pub fn on_connected(&mut self) {
        self.sent = 0;
        self.faults.on_connected();
    }

    /// A coordinator says which cluster it is of. Coming from another one, or from one that was restored from a backup, everything
    /// begins anew: assignments, rows and fences of the old one would mean something else here. Its unacknowledged rows are the
    /// old cluster's, and are dropped; the faults that it wanted end.
    pub fn on_welcome(&mut self, cluster_id: &str) -> Result<(), StoreError> {
        if cluster_id.is_empty() || cluster_id == self.cluster_id {
            return Ok(());
        }
        if self.cluster_id.is_empty() {
            self.store.set_cluster(cluster_id)?;
        } else {
            let spool_id = self.next_spool_id();
            self.store.join(cluster_id, &spool_id)?;
            self.dropped_slots += self.spool.iter().map(row::slots).sum::<u64>();
            self.spool.clear();
            self.begun_at.clear();
            self.aged = 0;
            self.assignments.clear();
            (self.spool_id, self.sequence, self.spool_bytes, self.sent, self.revision) = (spool_id, 0, 0, 0, 0);
            self.faults.on_other_cluster();
        }
        self.cluster_id = cluster_id.to_owned();
        Ok(())
    }

    /// An id that no spool had before: the one that this run was given, then with a number.
    fn next_spool_id(&mut self) -> String {
        self.spools_begun += 1;
        let given = &self.config.new_spool_id;
        if self.spools_begun == 1 { given.clone() } else { format!("{given}-{}", self.spools_begun) }
    }

    /// Follows a desired set, or what changed since the revision that is followed. One of an older fence is refused; a change to
    /// another revision cannot be followed: [`Session::revision`] is 0 then, and the whole set is to be asked for.
    pub fn on_desired(&mut self, set: DesiredSet, now_us: i64) -> Result<(), StoreError> {
        if !self.faults.accept_fence(set.fence) {
            return Ok(());
        }
        self.store.set_fence(set.fence)?;
        if set.base_revision != 0 && set.base_revision != self.revision {
            self.revision = 0;
            return Ok(());
        }
        let gone: Vec<u64> = if set.base_revision == 0 {
            let wanted: BTreeSet<u64> = set.assignments.iter().map(|a| a.id).collect();
            self.assignments.keys().filter(|id| !wanted.contains(id)).copied().collect()
        } else {
            set.removed.iter().filter(|id| self.assignments.contains_key(id)).copied().collect()
        };
        self.close_all(&gone)?;
        for id in &gone {
            self.assignments.remove(id);
        }
        let changed: Vec<AssignmentSpec> = set.assignments.into_iter().filter_map(|spec| self.follow(spec, now_us)).collect();
        if !changed.is_empty() || !gone.is_empty() {
            self.store.set_assignments(set.revision, &changed, &gone)?;
        }
        self.revision = set.revision;
        self.faults.on_desired(set.faults, set.halted, set.lease_us, now_us);
        self.store.set_ended(self.faults.take_newly_spent())
    }

    /// Takes up an assignment as it is now; what is to be stored of it, if it is new or changed.
    fn follow(&mut self, spec: AssignmentSpec, now_us: i64) -> Option<AssignmentSpec> {
        match self.assignments.get_mut(&spec.id) {
            Some(running) => {
                let new = AssignmentSpec { next_n: running.spec.next_n, ..spec };
                let changed = running.spec != new;
                running.spec = new;
                // What is in the open row is not on the disk yet: after a crash it must be owned up to.
                changed.then(|| AssignmentSpec { next_n: running.row.first_n().unwrap_or(running.row_n), ..running.spec.clone() })
            }
            None => {
                self.assignments.insert(spec.id, Running::new(spec.clone(), (now_us, Reason::AssignedLate)));
                Some(spec)
            }
        }
    }

    /// The runs to start now. What was overslept is missed, never run late in a burst; an n is never run twice.
    pub fn due(&mut self, now_us: i64) -> Vec<SlotStart> {
        let mut starts = Vec::new();
        for running in self.assignments.values_mut() {
            let schedule = running.schedule();
            let until = running.until();
            let (not_before, why) = running.not_before;
            running.miss_until(schedule.first_at_or_after(not_before.min(now_us).min(until)), why);
            let patience = (running.spec.interval_us as i64).max(1_000_000);
            running.miss_until(schedule.first_at_or_after((now_us - patience).min(until)), Reason::Overloaded);
            while schedule.due(running.next_n) <= now_us && schedule.due(running.next_n) < until {
                let n = running.next_n;
                running.next_n += 1;
                starts.push(SlotStart { assignment: running.spec.id, n, due_us: schedule.due(n), spec: running.spec.clone() });
            }
        }
        starts
    }

    /// A run has finished.
    pub fn on_run_done(&mut self, assignment: u64, n: u64, run: RunDone, now_us: i64) {
        let Some(running) = self.assignments.get_mut(&assignment) else { return };
        if n >= running.row_n && n < running.next_n {
            let mut piece = Piece::of(1, run);
            self.trust.judge(&mut piece, now_us);
            running.finished.insert(n, piece);
            running.collect(now_us);
        }
    }

    /// Closes the rows that are due, on the disk; returns how many.
    pub fn close_rows(&mut self, now_us: i64) -> Result<usize, StoreError> {
        let mut due = Vec::new();
        for (id, running) in &mut self.assignments {
            running.collect(now_us);
            if running.row.due_at(self.config.flush_us, self.config.unsteady_flush_us).is_some_and(|at| at <= now_us) {
                due.push(*id);
            }
        }
        self.close_all(&due)?;
        self.drop_aged(now_us)?;
        Ok(due.len())
    }

    /// Closes every open row: before an orderly end.
    pub fn close_everything(&mut self, now_us: i64) -> Result<(), StoreError> {
        for running in self.assignments.values_mut() {
            running.collect(now_us);
        }
        let all: Vec<u64> = self.assignments.keys().copied().collect();
        self.close_all(&all)
    }

    /// Rows of several assignments, in one transaction.
    fn close_all(&mut self, ids: &[u64]) -> Result<(), StoreError> {
        let mut rows = Vec::new();
        for id in ids {
            let Some(running) = self.assignments.get_mut(id) else { continue };
            let begun_at = running.row.begun_at_us();
            let Some(mut row) = running.row.take() else { continue };
            self.begun_at.push_back(begun_at);
            self.sequence += 1;
            row.prober = self.config.prober.clone();
            row.spool_id = self.spool_id.clone();
            row.sequence = self.sequence;
            row.assignment = *id;
            row.clock_error_us = self.faults.clock_error_us();
            rows.push(row);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let positions: Vec<(u64, u64)> = rows.iter().map(|r| (r.assignment, self.assignments[&r.assignment].row_n)).collect();
        self.store.add_rows(&rows, self.sequence, &positions)?;
        self.spool_bytes += rows.iter().map(row::size).sum::<u64>();
        self.spool.extend(rows);
        self.shrink()
    }

    /// Keeps the spool within its bytes: the oldest rows give up everything but how many slots they were.
    fn shrink(&mut self) -> Result<(), StoreError> {
        let mut shrunk = Vec::new();
        for at in 0..self.spool.len() {
            if self.spool_bytes <= self.config.spool_bytes_max {
                break;
            }
            shrunk.extend(self.drop_content(at));
        }
        if shrunk.is_empty() { Ok(()) } else { self.store.add_rows(&shrunk, self.sequence, &[]) }
    }

    /// The same for rows that nobody took for too long.
    fn drop_aged(&mut self, now_us: i64) -> Result<(), StoreError> {
        let mut shrunk = Vec::new();
        while self.begun_at.get(self.aged).is_some_and(|at| at.saturating_add(self.spool_age_us) < now_us) {
            shrunk.extend(self.drop_content(self.aged));
            self.aged += 1;
        }
        if shrunk.is_empty() { Ok(()) } else { self.store.add_rows(&shrunk, self.sequence, &[]) }
    }

    /// What is left of a row of the spool, if it had more.
    fn drop_content(&mut self, at: usize) -> Option<ReportRow> {
        let row = self.spool.get_mut(at)?;
        let stub = row::dropped(row);
        if stub == *row {
            return None;
        }
        self.spool_bytes = self.spool_bytes - row::size(row) + row::size(&stub);
        self.dropped_slots += row::slots(row);
        *row = stub.clone();
        Some(stub)
    }

    /// Rows to send next on the present stream; each call goes on where the last one ended.
    pub fn rows_to_send(&mut self) -> Vec<ReportRow> {
        let rows: Vec<ReportRow> = self.spool.iter().skip(self.sent).take(ROWS_PER_MESSAGE).cloned().collect();
        self.sent += rows.len();
        rows
    }

    /// Everything up to a sequence is committed.
    pub fn on_ack(&mut self, ack: &RowsAck) -> Result<(), StoreError> {
        if ack.spool_id != self.spool_id {
            return Ok(());
        }
        let done: Vec<u64> = self.spool.iter().map(|r| r.sequence).take_while(|s| *s <= ack.sequence).collect();
        for _ in &done {
            self.begun_at.pop_front();
            if let Some(row) = self.spool.pop_front() {
                self.spool_bytes -= row::size(&row);
            }
        }
        self.sent = self.sent.saturating_sub(done.len());
        self.aged = self.aged.saturating_sub(done.len());
        self.store.remove_rows(&done)
    }

    /// Takes what the fault book wants persisted.
    pub fn save_faults(&mut self) -> Result<(), StoreError> {
        self.store.set_ended(self.faults.take_newly_spent())
    }

    /// When something is to do next.
    pub fn next_wakeup(&self) -> Option<i64> {
        self.assignments
            .values()
            .flat_map(|r| {
                let due = r.schedule().due(r.next_n);
                let doubted = r.finished.get(&r.row_n).and_then(|p| p.doubted).map(|(_, until)| until);
                [(due < r.until()).then_some(due), doubted, r.row.due_at(self.config.flush_us, self.config.unsteady_flush_us)]
            })
            .flatten()
            .min()
    }
}

impl Running {
    /// Counts the slots before `n` that were not started as missed.
    fn miss_until(&mut self, n: u64, why: Reason) {
        if n > self.next_n {
            let run = RunDone { reason: why, ..RunDone::default() };
            self.finished.insert(self.next_n, Piece::of(n - self.next_n, run));
            self.next_n = n;
        }
    }

    /// Moves finished slots into the row as far as they are contiguous.
    fn collect(&mut self, now_us: i64) {
        while let Some(next) = self.finished.first_entry().filter(|e| *e.key() == self.row_n && e.get().doubted.is_none_or(|(_, until)| until <= now_us)) {
            let piece = next.remove();
            let level = match piece.run.reason.class() {
                Class::Good => self.spec.thresholds_us.iter().filter(|t| piece.run.duration_us > **t).count() as u32,
                _ => 0,
            };
            self.row.add(self.row_n, piece.count, level, piece.run, now_us);
            self.row_n += piece.count;
        }
    }
}

#[cfg(test)]
mod tests;
