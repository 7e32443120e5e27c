//! Runs that are under way: how they are started, and how the driver learns what they found.
//!
//! An outcome does not wake the driver: it is collected when it wakes anyway, some milliseconds later at most.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use probity_proto::v1::{AssignmentSpec, CheckSpec, FailedAttempt, Reason};
use probity_session::{RunDone, SlotStart};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::health::Health;
use crate::kinds::{self, ProbeContext, RunInfo, RunResult};

/// Runs at once; a slot that finds no room is missed(overloaded), never late.
const RUNS_MAX: usize = 4_096;

/// A run that has ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) assignment: u64,
    pub(crate) n: u64,
    pub(crate) run: RunDone,
}

/// Outcomes that wait for the driver: at most those of the runs that were under way when it last looked.
type Outcomes = Arc<Mutex<Vec<Done>>>;

#[derive(Debug)]
pub(crate) struct Runs {
    context: Arc<ProbeContext>,
    health: Health,
    prober: Arc<str>,
    /// Where they run.
    workers: Handle,
    tasks: TaskTracker,
    outcomes: Outcomes,
    under_way: usize,
}

impl Runs {
    pub(crate) fn new(context: Arc<ProbeContext>, health: Health, prober: &str, workers: Handle) -> Runs {
        Runs { context, health, prober: prober.into(), workers, tasks: TaskTracker::new(), outcomes: Outcomes::default(), under_way: 0 }
    }

    /// Whether outcomes are still to come.
    pub(crate) fn any(&self) -> bool {
        self.under_way > 0
    }

    /// Starts the run of a slot; `late_us`: how late that is. Without room it is over at once.
    pub(crate) fn start(&mut self, slot: SlotStart, now_us: i64) {
        let late_us = now_us.saturating_sub(slot.due_us).max(0) as u64;
        self.under_way += 1;
        let report = Report { outcomes: self.outcomes.clone(), assignment: slot.assignment, n: slot.n, run: None };
        if self.under_way > RUNS_MAX {
            self.health.count(&slot.spec.check, Reason::Overloaded, 0);
            return report.send(RunDone { reason: Reason::Overloaded, ..RunDone::default() });
        }
        // What the scheduler adds until the task runs is lag too.
        let queued = Instant::now();
        let (context, health, prober) = (self.context.clone(), self.health.clone(), self.prober.clone());
        let work = async move {
            let waited_us = queued.elapsed().as_micros() as u64;
            let times = (now_us + waited_us as i64, late_us + waited_us);
            let run = run(&context, &slot.spec, &prober, slot.n, times).await;
            health.count(&slot.spec.check, run.reason, run.duration_us);
            health.started(run.lag_us, run.failed_attempts.len());
            report.send(run);
        };
        self.tasks.spawn_on(work, &self.workers);
    }

    /// What has ended since.
    pub(crate) fn ended(&mut self) -> Vec<Done> {
        let ended = std::mem::take(&mut *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner));
        self.under_way -= ended.len();
        ended
    }

    /// Waits for all of them.
    pub(crate) async fn wait(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// One run, at (its start in cluster time, how late that is).
async fn run(context: &ProbeContext, spec: &AssignmentSpec, prober: &str, n: u64, (started_at_us, lag_us): (i64, u64)) -> RunDone {
    let info = RunInfo { check: &spec.check, prober, n, game_day_trace: &spec.game_day_trace, trace_ppm: spec.trace_ppm, started_at_us, lag_us };
    let default = CheckSpec::default();
    let result = kinds::run(context, spec.spec.as_ref().unwrap_or(&default), &info).await;
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
struct Report {
    outcomes: Outcomes,
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
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(done);
    }
}
