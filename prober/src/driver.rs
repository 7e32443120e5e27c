//! The prober's one owner task: it drives the session with time, runs, the coordinator's messages and the engine's events.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use probity_chaos::{Engine, EngineConfig, EngineError, FaultEvent};
use probity_proto::reason::Class;
use probity_proto::v1::coordinator_message::Message as FromCoordinator;
use probity_proto::v1::prober_message::Message as ToCoordinator;
use probity_proto::v1::*;
use probity_session::{Clock, Config, RunDone, Session, SlotStart, StoreError};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::blackbox::{Exporter, Options};
use crate::config::ProberConfig;
use crate::faults;
use crate::health::Health;
use crate::kinds::{self, ContextConfig, ProbeContext, RunInfo};
use crate::selfcheck::{self, Checked};
use crate::stream::{self, StreamEvent};

/// Runs at once; a slot that finds no room is missed(overloaded), never late.
const RUNS_MAX: usize = 4_096;
/// Stream events that wait for the driver.
const EVENTS: usize = 256;
/// How often the leader hears of us, until its welcome says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// The longest sleep: due slots of a desired set that arrives meanwhile wake it anyway.
const SLEEP_MAX: Duration = Duration::from_millis(500);

/// The prober cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be made or read.
    #[error("cannot use the data directory {}", dir.display())]
    DataDir {
        /// Which.
        dir: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("the data directory {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The store is no store of ours, or damaged.
    #[error("cannot open {}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: redb::DatabaseError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The fault engine cannot start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The HTTP address is taken.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The blackbox configuration is wrong.
    #[error("{0}")]
    Blackbox(String),
}

/// A run that has ended: (assignment, slot, what it found).
type Done = (u64, u64, RunDone);

struct Driver {
    config: ProberConfig,
    session: Session,
    clock: Clock,
    start: Instant,
    start_wall_us: u64,
    context: Arc<ProbeContext>,
    engine: Engine,
    outgoing: Option<mpsc::Sender<ProberMessage>>,
    /// The coordinator has said welcome: rows may go out.
    welcomed: bool,
    heartbeat: Duration,
    runs: Arc<Semaphore>,
    done: mpsc::Sender<Done>,
    tasks: TaskTracker,
    health: Health,
    /// Asks for a self-check.
    doubt: Arc<Notify>,
}

/// Runs a prober until `stop`; what it owes is on its disk when this returns.
pub async fn run(config: ProberConfig, stop: CancellationToken) -> Result<(), Error> {
    let db = open(&config.data_dir)?;
    let engine_config = EngineConfig { journal_dir: config.data_dir.clone(), proxies: config.proxies.clone(), allow: config.faults_allow.clone() };
    let (engine, mut fault_events) = Engine::open(engine_config).await?;
    let start_wall_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let session_config = Config {
        prober: config.name.clone(),
        new_spool_id: format!("{:032x}", rand::random::<u128>()),
        spool_bytes_max: config.spool_bytes_max,
        flush_us: 10_000_000,
        unsteady_flush_us: 200_000,
    };
    let mut session = Session::open(db, session_config, start_wall_us as i64)?;
    let context =
        ContextConfig { address_policy: config.address_policy, secrets_dir: config.secrets_dir.clone(), otel: config.otel.clone(), ..ContextConfig::default() };
    let (events_tx, mut events) = mpsc::channel(EVENTS);
    let (done_tx, mut done) = mpsc::channel(RUNS_MAX);
    let tasks = TaskTracker::new();
    tasks.spawn(stream::keep(config.coordinators.clone(), config.tls.clone(), events_tx, stop.clone()));
    let doubt = Arc::new(Notify::new());
    let (checks_tx, mut checks) = mpsc::channel(selfcheck::RESULTS);
    session.set_spool_age(config.spool_age_max.as_micros() as u64);
    if config.self_check.is_on() {
        session.expect_self_checks();
        tasks.spawn(selfcheck::run(config.self_check.clone(), doubt.clone(), checks_tx.clone(), stop.clone()));
    }
    let health = Health::default();
    let context = Arc::new(ProbeContext::new(context));
    if let Some(address) = config.http {
        let listener = tokio::net::TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        let blackbox = config.blackbox.clone().map(|file| Exporter::new(Options::new(file), context.clone()));
        let blackbox = blackbox.transpose().map_err(Error::Blackbox)?.map(Arc::new);
        if let Some(exporter) = &blackbox {
            tasks.spawn(crate::blackbox::reload_on_hangup(exporter.clone(), stop.clone()));
        }
        tasks.spawn(crate::health::serve(listener, health.clone(), blackbox, stop.clone()));
    }
    let mut driver = Driver {
        config,
        session,
        clock: Clock::new(0),
        start: Instant::now(),
        start_wall_us,
        context,
        engine,
        outgoing: None,
        welcomed: false,
        heartbeat: HEARTBEAT,
        runs: Arc::new(Semaphore::new(RUNS_MAX)),
        done: done_tx,
        tasks,
        health,
        doubt,
    };
    let mut next_heartbeat = tokio::time::Instant::now();
    loop {
        driver.turn().await?;
        driver.health.set(&driver.config.name, driver.session.spooled(), driver.session.assignments(), driver.outgoing.is_some());
        let sleep = driver.sleep().min(next_heartbeat.saturating_duration_since(tokio::time::Instant::now()));
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(sleep) => {}
            Some(event) = events.recv() => driver.on_stream(event)?,
            Some(event) = fault_events.recv() => driver.on_fault(event)?,
            Some(checked) = checks.recv() => driver.on_self_check(checked),
            Some((assignment, n, run)) = done.recv() => {
                let now = driver.now();
                if run.reason.class() == Class::Bad {
                    driver.doubt.notify_one();
                }
                driver.session.on_run_done(assignment, n, run, now);
            }
        }
        if tokio::time::Instant::now() >= next_heartbeat {
            driver.send_heartbeat();
            next_heartbeat = tokio::time::Instant::now() + driver.heartbeat;
        }
    }
    driver.finish(done).await
}

fn failed_attempt(attempt: kinds::RunResult) -> FailedAttempt {
    FailedAttempt { reason: attempt.reason as i32, duration_us: attempt.duration.as_micros() as u64, message: attempt.message }
}

/// The prober's store; one process at a time.
fn open(dir: &PathBuf) -> Result<redb::Database, Error> {
    std::fs::create_dir_all(dir).map_err(|source| Error::DataDir { dir: dir.clone(), source })?;
    let path = dir.join("prober.redb");
    // redb may panic on a file that is none of its own: the error must still be one line.
    let opened = std::panic::catch_unwind(|| redb::Database::create(&path));
    match opened {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(redb::DatabaseError::DatabaseAlreadyOpen)) => Err(Error::InUse(dir.clone())),
        Ok(Err(source)) => Err(Error::Open { path, source }),
        Err(_) => Err(StoreError::Damaged(format!("{} is no store of probity", path.display())).into()),
    }
}

impl Driver {
    fn mono_us(&self) -> u64 {
        self.start_wall_us + self.start.elapsed().as_micros() as u64
    }

    /// Cluster time.
    fn now(&self) -> i64 {
        self.clock.cluster_us(self.mono_us())
    }

    fn sleep(&self) -> Duration {
        let wait = self.session.next_wakeup().map_or(i64::MAX, |at| at - self.now());
        Duration::from_micros(wait.max(0) as u64).min(SLEEP_MAX)
    }

    /// Everything that is due now.
    async fn turn(&mut self) -> Result<(), Error> {
        let now = self.now();
        for slot in self.session.due(now) {
            self.start_run(slot, now);
        }
        self.session.close_rows(now)?;
        self.session.save_faults()?;
        faults::tell(&self.engine, self.session.faults.take_actions()).await;
        self.send();
        Ok(())
    }

    fn start_run(&mut self, slot: SlotStart, now: i64) {
        let Ok(permit) = self.runs.clone().try_acquire_owned() else {
            self.health.count(&slot.spec.check, Reason::Overloaded, 0);
            let run = RunDone { reason: Reason::Overloaded, ..RunDone::default() };
            self.session.on_run_done(slot.assignment, slot.n, run, now);
            return;
        };
        // What the scheduler adds until the task runs is lag too.
        let (late_us, queued) = (now.saturating_sub(slot.due_us).max(0) as u64, Instant::now());
        let mut info = RunInfo {
            check: slot.spec.check.clone(),
            prober: self.config.name.clone(),
            n: slot.n,
            game_day_trace: slot.spec.game_day_trace.clone(),
            trace_ppm: slot.spec.trace_ppm,
            started_at_us: now,
            lag_us: 0,
        };
        let (context, done, health) = (self.context.clone(), self.done.clone(), self.health.clone());
        self.tasks.spawn(async move {
            let waited_us = queued.elapsed().as_micros() as u64;
            info.started_at_us += waited_us as i64;
            info.lag_us = late_us + waited_us;
            let default = CheckSpec::default();
            let result = kinds::run(&context, slot.spec.spec.as_ref().unwrap_or(&default), &info).await;
            let run = RunDone {
                reason: result.reason,
                started_at_us: info.started_at_us,
                duration_us: result.duration.as_micros() as u64,
                phases: result.phases,
                message: result.message,
                trace_id: result.trace_id,
                peer: result.peer,
                lag_us: info.lag_us,
                failed_attempts: result.failed.into_iter().map(failed_attempt).collect(),
            };
            health.count(&info.check, run.reason, run.duration_us);
            health.started(run.lag_us, run.failed_attempts.len());
            // The channel holds every run that may be under way.
            let _ = done.send((slot.assignment, slot.n, run)).await;
            drop(permit);
        });
    }

    /// Sends as much as the stream takes; the rest stays where it is.
    fn send(&mut self) {
        let Some(outgoing) = self.outgoing.clone().filter(|_| self.welcomed) else { return };
        while let Ok(permit) = outgoing.try_reserve() {
            if let Some(report) = self.session.faults.next_report() {
                permit.send(ProberMessage { message: Some(ToCoordinator::Fault(report)) });
                continue;
            }
            let rows = self.session.rows_to_send();
            if rows.is_empty() {
                return;
            }
            permit.send(ProberMessage { message: Some(ToCoordinator::Rows(ReportRows { rows })) });
        }
    }

    fn send_heartbeat(&mut self) {
        let Some(outgoing) = &self.outgoing else { return };
        let (spooled_rows, spooled_bytes, dropped_slots) = self.session.spooled();
        let (sick_since_us, sick_reason) = self.session.sick().map_or((0, String::new()), |(since, why)| (since, why.to_owned()));
        let heartbeat = Heartbeat {
            sent_us: self.mono_us(),
            desired_revision: self.session.revision(),
            spooled_rows,
            spooled_bytes,
            dropped_slots,
            sick: self.session.sick().is_some(),
            sick_since_us,
            sick_reason,
        };
        let _ = outgoing.try_send(ProberMessage { message: Some(ToCoordinator::Heartbeat(heartbeat)) });
    }

    fn hello(&self) -> ProberHello {
        let ping = &self.context.ping_hint;
        let mut capabilities = self.engine.capabilities();
        capabilities.extend(["http", "tcp", "dns", "tls"].map(|kind| Capability { name: format!("probe/{kind}"), available: true, ..Capability::default() }));
        capabilities.push(Capability { name: "probe/icmp".to_owned(), available: ping.is_empty(), detail: ping.clone(), undo: 0 });
        ProberHello {
            name: self.config.name.clone(),
            labels: self.config.labels.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            spool_id: self.session.spool_id().to_owned(),
            desired_revision: self.session.revision(),
            capabilities,
            proxies: self.engine.proxies(),
            cluster_id: self.session.cluster_id().to_owned(),
        }
    }

    fn on_stream(&mut self, event: StreamEvent) -> Result<(), Error> {
        match event {
            StreamEvent::Connected(outgoing) => {
                let hello = ProberMessage { message: Some(ToCoordinator::Hello(self.hello())) };
                let _ = outgoing.try_send(hello);
                self.outgoing = Some(outgoing);
                self.welcomed = false;
                self.session.on_connected();
            }
            StreamEvent::Disconnected(why) => {
                if self.welcomed {
                    tracing::warn!(prober = self.config.name, why, "lost the coordinator; probing goes on");
                }
                self.outgoing = None;
                self.welcomed = false;
            }
            StreamEvent::Message(message) => {
                if let Some(message) = message.message {
                    self.on_message(message)?;
                }
            }
        }
        Ok(())
    }

    fn on_message(&mut self, message: FromCoordinator) -> Result<(), Error> {
        match message {
            FromCoordinator::Welcome(welcome) => {
                tracing::info!(prober = self.config.name, member = welcome.member, "connected");
                self.welcomed = true;
                self.session.on_welcome(&welcome.cluster_id)?;
                self.session.set_flush(welcome.flush_us, welcome.unsteady_flush_us);
                self.heartbeat = Duration::from_micros(welcome.heartbeat_us.clamp(100_000, 60_000_000));
                self.send_heartbeat();
            }
            FromCoordinator::Desired(set) => {
                let now = self.now();
                self.session.on_desired(set, now)?;
                if self.session.revision() == 0 {
                    // A change to something that we do not follow: a new hello asks for the whole set.
                    self.outgoing = None;
                    self.welcomed = false;
                }
            }
            FromCoordinator::Ack(ack) => self.session.on_ack(&ack)?,
            FromCoordinator::Heartbeat(reply) => {
                let received = self.mono_us();
                self.clock.on_sample(reply.echo_us, received, reply.cluster_time_us);
                self.session.faults.set_clock_error(self.clock.error_us());
                self.session.faults.on_heartbeat(&reply);
            }
            FromCoordinator::FaultAck(ack) => self.session.faults.on_ack(&ack),
            FromCoordinator::NotLeader(_) => {}
        }
        Ok(())
    }

    fn on_self_check(&mut self, checked: Checked) {
        let now = self.now();
        let began = now - checked.began.elapsed().as_micros() as i64;
        let was = self.session.sick().is_some();
        self.session.on_self_check(began, checked.failed.as_deref(), now);
        match (was, self.session.sick()) {
            (false, Some((_, why))) => tracing::warn!(prober = self.config.name, why, "sick: runs do not count until this host's network works again"),
            (true, None) => tracing::info!(prober = self.config.name, "well again"),
            _ => return,
        }
        self.send_heartbeat();
    }

    fn on_fault(&mut self, event: FaultEvent) -> Result<(), Error> {
        let now = self.now();
        tracing::info!(prober = self.config.name, fault = event.fault_id, state = ?event.state, detail = event.detail, "fault");
        self.session.faults.on_event(&event.fault_id, event.state, event.detail, event.undo, now);
        Ok(self.session.save_faults()?)
    }

    /// An orderly end: faults undone, runs awaited, rows on the disk.
    async fn finish(self, mut done: mpsc::Receiver<Done>) -> Result<(), Error> {
        let Driver { mut session, clock, start, start_wall_us, engine, tasks, done: sender, context, .. } = self;
        engine.shutdown().await;
        drop(sender);
        tasks.close();
        let now = || clock.cluster_us(start_wall_us + start.elapsed().as_micros() as u64);
        // Runs end by their own time-outs; an orderly stop waits a little for them, no longer.
        let patience = tokio::time::sleep(Duration::from_secs(1));
        tokio::pin!(patience);
        loop {
            tokio::select! {
                () = &mut patience => break,
                run = done.recv() => match run {
                    Some((assignment, n, run)) => session.on_run_done(assignment, n, run, now()),
                    None => break,
                },
            }
        }
        session.close_everything(now())?;
        context.otel.shutdown().await;
        Ok(())
    }
}
