//! Runs that are under way: how they are started, and how the driver learns what they found.
//!
//! An outcome does not wake the driver: it is collected when it wakes anyway, some milliseconds later at most.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use probity_otel::Series;
use probity_proto::v1::{AssignmentSpec, CheckSpec, FailedAttempt, Reason};
use probity_session::{RunDone, SlotStart};
use prost::DecodeError;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::cache::Cache;
use crate::health::Health;
use crate::kinds::{self, ProbeContext, RunInfo, RunResult};
use crate::lanes::{Lanes, Timed};

/// Runs at once; a slot that finds no room is missed(overloaded), never late.
const RUNS_MAX: usize = 4_096;
/// A slot that its lane is so late for is missed(overloaded): what a busy lane could not start must not come as a burst.
const PATIENCE_US: u64 = 1_000_000;

/// A check that runs at least this often is kept as its runs need it...
const OFTEN_US: u64 = 2_000_000;
/// ...if it is among so many, or among as many before them: more runs than these it would not do in time, and checks that run in turn must not
/// push each other out. What they take is a prober's, not a probe's (some 2 KiB each).
const KEPT_MAX: usize = 16_384;

/// A check as its runs need it.
#[derive(Debug)]
struct Prepared {
    /// What it was made of.
    packed: Arc<[u8]>,
    spec: AssignmentSpec,
    good: OnceLock<Series>,
}

/// A run that has ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) assignment: u64,
    pub(crate) n: u64,
    pub(crate) run: RunDone,
}

/// What all runs of a prober share.
#[derive(Debug)]
struct Shared {
    context: Arc<ProbeContext>,
    health: Health,
    prober: String,
    /// Outcomes that wait for the driver: at most those of the runs that were under way when it last looked.
    outcomes: Mutex<Vec<Done>>,
    /// By assignment.
    prepared: Cache<u64, Arc<Prepared>>,
}

impl Shared {
    fn prepare(&self, slot: &SlotStart) -> Result<Arc<Prepared>, DecodeError> {
        if let Some(kept) = self.prepared.get(&slot.assignment).filter(|kept| Arc::ptr_eq(&kept.packed, &slot.packed)) {
            return Ok(kept);
        }
        let prepared = Arc::new(Prepared { packed: slot.packed.clone(), spec: slot.spec()?, good: OnceLock::new() });
        if prepared.spec.interval_us <= OFTEN_US {
            self.prepared.put(slot.assignment, prepared.clone());
        } else {
            // It may have run more often before.
            self.prepared.remove(&slot.assignment);
        }
        Ok(prepared)
    }
}

/// A moment by both clocks.
#[derive(Debug, Clone, Copy)]
struct Moment {
    at: Instant,
    cluster_us: i64,
}

#[derive(Debug)]
pub(crate) struct Runs {
    shared: Arc<Shared>,
    lanes: Lanes<Start>,
    tasks: TaskTracker,
    under_way: usize,
}

impl Runs {
    pub(crate) fn new(context: Arc<ProbeContext>, health: Health, prober: &str) -> io::Result<Runs> {
        let shared = Shared { context, health, prober: prober.to_owned(), outcomes: Mutex::default(), prepared: Cache::new(KEPT_MAX) };
        Ok(Runs { shared: Arc::new(shared), lanes: Lanes::open()?, tasks: TaskTracker::new(), under_way: 0 })
    }

    /// Whether outcomes are still to come.
    pub(crate) fn any(&self) -> bool {
        self.under_way > 0
    }

    /// Has slots run when they are due, of which `now_us` is the time. Those without room are over at once.
    pub(crate) fn start(&mut self, slots: Vec<SlotStart>, now_us: i64) {
        let now = Moment { at: Instant::now(), cluster_us: now_us };
        let mut of_lanes: Vec<Vec<Start>> = (0..self.lanes.count()).map(|_| Vec::new()).collect();
        for slot in slots {
            self.under_way += 1;
            let report = Report { shared: self.shared.clone(), assignment: slot.assignment, n: slot.n, run: None };
            let start = Start { slot, now, report, _tracked: self.tasks.token() };
            if self.under_way > RUNS_MAX {
                start.overloaded();
            } else {
                of_lanes[self.lanes.of(start.slot.due_us)].push(start);
            }
        }
        for (lane, batch) in of_lanes.into_iter().enumerate().filter(|(_, batch)| !batch.is_empty()) {
            self.lanes.give(lane, batch).into_iter().for_each(Start::overloaded);
        }
    }

    /// What has ended since.
    pub(crate) fn ended(&mut self) -> Vec<Done> {
        let ended = std::mem::take(&mut *self.shared.outcomes.lock().unwrap_or_else(PoisonError::into_inner));
        self.under_way -= ended.len();
        ended
    }

    /// Waits for all of them.
    pub(crate) async fn wait(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// A slot on its way to its run.
#[derive(Debug)]
struct Start {
    slot: SlotStart,
    /// When it was handed out.
    now: Moment,
    report: Report,
    _tracked: TaskTrackerToken,
}

impl Start {
    fn overloaded(self) {
        self.missed(Reason::Overloaded, String::new());
    }

    fn missed(self, reason: Reason, message: String) {
        if let Ok(prepared) = self.report.shared.prepare(&self.slot) {
            self.report.shared.health.count(&prepared.spec.check, reason, 0);
        }
        self.report.send(RunDone { reason, message, ..RunDone::default() });
    }

    /// Its start in cluster time, and how late that is.
    fn times(&self) -> (i64, u64) {
        let now_us = self.now.cluster_us + self.now.at.elapsed().as_micros() as i64;
        (now_us, now_us.saturating_sub(self.slot.due_us).max(0) as u64)
    }
}

impl Timed for Start {
    fn at(&self) -> Instant {
        self.now.at + Duration::from_micros(self.slot.due_us.saturating_sub(self.now.cluster_us).max(0) as u64)
    }

    fn start(self) {
        tokio::spawn(async move {
            // What the lane adds until it comes to this is lag too.
            let times = self.times();
            if times.1 > PATIENCE_US {
                return self.overloaded();
            }
            let shared = &self.report.shared;
            let prepared = match shared.prepare(&self.slot) {
                Ok(prepared) => prepared,
                Err(e) => return self.missed(Reason::ProberError, format!("the assignment cannot be read: {e}")),
            };
            let run = run(shared, &prepared, self.slot.n, times).await;
            shared.health.count(&prepared.spec.check, run.reason, run.duration_us);
            shared.health.started(run.lag_us, run.failed_attempts.len());
            self.report.send(run);
        });
    }
}

/// One run, at (its start in cluster time, how late that is).
async fn run(shared: &Shared, prepared: &Prepared, n: u64, (started_at_us, lag_us): (i64, u64)) -> RunDone {
    let spec = &prepared.spec;
    let info = RunInfo {
        check: &spec.check,
        prober: &shared.prober,
        n,
        game_day_trace: &spec.game_day_trace,
        trace_ppm: spec.trace_ppm,
        started_at_us,
        lag_us,
        good: Some(&prepared.good),
    };
    let default = CheckSpec::default();
    let result = kinds::run(&shared.context, spec.spec.as_ref().unwrap_or(&default), &info).await;
    RunDone {
        reason: result.reason,
        started_at_us,
        duration_us: result.duration.as_micros() as u64,
        phases: result.phases,
        message: result.message,
        trace_id: result.trace_id,
        peer: result.peer,
        lag_us,
        failed_attempts: result.failed.into_iter().map(failed_attempt).collect(),
    }
}

fn failed_attempt(attempt: RunResult) -> FailedAttempt {
    FailedAttempt { reason: attempt.reason as i32, duration_us: attempt.duration.as_micros() as u64, message: attempt.message }
}

/// A run's promise that its slot gets an outcome, even from a run that panics.
#[derive(Debug)]
struct Report {
    shared: Arc<Shared>,
    assignment: u64,
    n: u64,
    run: Option<RunDone>,
}

impl Report {
    fn send(mut self, run: RunDone) {
        self.run = Some(run);
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let run = self.run.take().unwrap_or_else(|| RunDone { reason: Reason::ProberError, ..RunDone::default() });
        let done = Done { assignment: self.assignment, n: self.n, run };
        self.shared.outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(done);
    }
}
