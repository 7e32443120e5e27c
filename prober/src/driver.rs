//! The prober's one owner task: it drives the session with time, runs, the coordinator's messages and the engine's events.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use probity_chaos::{Engine, EngineConfig, EngineError, FaultEvent};
use probity_proto::reason::Class;
use probity_proto::v1::coordinator_message::Message as FromCoordinator;
use probity_proto::v1::prober_message::Message as ToCoordinator;
use probity_proto::v1::*;
use probity_session::{Clock, Config, Session, StoreError};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::blackbox::{Exporter, Options};
use crate::config::ProberConfig;
use crate::disk::Disk;
use crate::faults;
use crate::health::Health;
use crate::kinds::{ContextConfig, ProbeContext};
use crate::runs::Runs;
use crate::selfcheck::{self, Checked};
use crate::stream::{self, StreamEvent};

/// Stream events that wait for the driver.
const EVENTS: usize = 256;
/// How often the leader hears of us, until its welcome says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// The longest sleep: due slots of a desired set that arrives meanwhile wake it anyway.
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// How long the outcome of a run may wait until it is looked at: a row is sent after 200 ms at the earliest.
const LINGER: Duration = Duration::from_millis(20);
/// How long runs are waited for at the end.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two turns that only time asks for, so that ten thousand slots in a second are not as many wake-ups.
const TURN_GAP: Duration = Duration::from_millis(10);
/// Slots are handed out so long before they are due: twice the gap, so that one turn may be late by as much and no slot is.
const AHEAD_US: i64 = 2 * TURN_GAP.as_micros() as i64;

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
    /// The host gives no timer, or no thread.
    #[error("the host has no timer or no thread to spare")]
    Host(#[source] std::io::Error),
}

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
    runs: Runs,
    disk: Disk,
    /// When the disk takes more, if it is to.
    disk_wait: Option<Duration>,
    health: Health,
    /// Asks for a self-check.
    doubt: Arc<Notify>,
}

/// Runs a prober until `stop`; what it owes is on its disk when this returns. Its schedule is kept by a thread of its own, which hands out
/// slots before they are due, however busy the runs keep the others.
pub async fn run(config: ProberConfig, stop: CancellationToken) -> Result<(), Error> {
    let workers = Handle::current();
    // Whoever drops this wants it to end.
    let stop = stop.child_token();
    let _guard = stop.clone().drop_guard();
    let (ended_tx, ended) = tokio::sync::oneshot::channel();
    let drive = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Host);
        let _ = ended_tx.send(runtime.and_then(|runtime| runtime.block_on(drive(config, workers, stop))));
    };
    std::thread::Builder::new().name("schedule".to_owned()).spawn(drive).map_err(Error::Host)?;
    ended.await.unwrap_or_else(|_| Err(Error::Host(std::io::Error::other("the thread that keeps the schedule ended"))))
}

async fn drive(config: ProberConfig, workers: Handle, stop: CancellationToken) -> Result<(), Error> {
    let db = open(&config.data_dir)?;
    let start_wall_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let session_config = Config {
        prober: config.name.clone(),
        new_spool_id: format!("{:032x}", rand::random::<u128>()),
        spool_bytes_max: config.spool_bytes_max,
        flush_us: 10_000_000,
        unsteady_flush_us: 200_000,
        ahead_us: AHEAD_US,
    };
    let mut session = Session::open(db, session_config, start_wall_us as i64)?;
    session.set_spool_age(config.spool_age_max.as_micros() as u64);
    let (events_tx, mut events) = mpsc::channel(EVENTS);
    let (checks_tx, mut checks) = mpsc::channel(selfcheck::RESULTS);
    let (health, doubt) = (Health::default(), Arc::new(Notify::new()));
    // What needs no clock of this thread lives with the runs.
    let services = Services { config: config.clone(), health: health.clone(), doubt: doubt.clone(), events: events_tx, checks: checks_tx, stop: stop.clone() };
    let started = workers.spawn(services.start()).await;
    let (context, engine, mut fault_events) = started.map_err(|e| Error::Host(std::io::Error::other(e)))??;
    if config.self_check.is_on() {
        session.expect_self_checks();
    }
    let mut driver = Driver {
        runs: Runs::new(context.clone(), health.clone(), &config.name).map_err(Error::Host)?,
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
        disk: Disk::new(),
        disk_wait: None,
        health,
        doubt,
    };
    let mut next_heartbeat = tokio::time::Instant::now();
    loop {
        driver.turn().await;
        driver.health.set(&driver.config.name, driver.session.spooled(), driver.session.assignments(), driver.outgoing.is_some());
        let sleep = driver.sleep().min(next_heartbeat.saturating_duration_since(tokio::time::Instant::now())).max(TURN_GAP);
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(sleep) => {}
            Some(event) = events.recv() => driver.on_stream(event),
            Some(event) = fault_events.recv() => driver.on_fault(event),
            Some(checked) = checks.recv() => driver.on_self_check(checked),
            written = driver.disk.written() => driver.session.on_written(written?),
        }
        if tokio::time::Instant::now() >= next_heartbeat {
            driver.send_heartbeat();
            next_heartbeat = tokio::time::Instant::now() + driver.heartbeat;
        }
    }
    driver.finish().await
}

/// What a prober has beside its schedule.
struct Services {
    config: ProberConfig,
    health: Health,
    doubt: Arc<Notify>,
    events: mpsc::Sender<StreamEvent>,
    checks: mpsc::Sender<Checked>,
    stop: CancellationToken,
}

impl Services {
    async fn start(self) -> Result<(Arc<ProbeContext>, Engine, mpsc::Receiver<FaultEvent>), Error> {
        let Services { config, health, doubt, events, checks, stop } = self;
        let engine_config = EngineConfig { journal_dir: config.data_dir.clone(), proxies: config.proxies.clone(), allow: config.faults_allow.clone() };
        let (engine, fault_events) = Engine::open(engine_config).await?;
        let context = ContextConfig {
            address_policy: config.address_policy,
            secrets_dir: config.secrets_dir.clone(),
            secrets_need_allow: config.secrets_need_allow,
            bodies_bytes_max: config.bodies_bytes_max,
            otel: config.otel.clone(),
            ..ContextConfig::default()
        };
        let context = Arc::new(ProbeContext::new(context));
        if let Some(address) = config.http {
            let listener = tokio::net::TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
            let blackbox = config.blackbox.clone().map(|file| Exporter::new(Options::new(file), context.clone()));
            let blackbox = blackbox.transpose().map_err(Error::Blackbox)?.map(Arc::new);
            if let Some(exporter) = &blackbox {
                tokio::spawn(crate::blackbox::reload_on_hangup(exporter.clone(), stop.clone()));
            }
            tokio::spawn(crate::health::serve(listener, health, context.clone(), blackbox, stop.clone()));
        }
        tokio::spawn(stream::keep(config.name.clone(), config.coordinators.clone(), config.tls.clone(), events, stop.clone()));
        if config.self_check.is_on() {
            tokio::spawn(selfcheck::run(config.self_check, doubt, checks, stop));
        }
        Ok((context, engine, fault_events))
    }
}

/// The prober's store; one process at a time.
fn open(dir: &PathBuf) -> Result<redb::Database, Error> {
    std::fs::create_dir_all(dir).map_err(|source| Error::DataDir { dir: dir.clone(), source })?;
    let path = dir.join("prober.redb");
    // redb may panic on a file that is none of its own: the error must still be one line.
    let opened = std::panic::catch_unwind(|| make_whole(&path).and_then(|()| redb::Database::create(&path)));
    match opened {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(redb::DatabaseError::DatabaseAlreadyOpen)) => Err(Error::InUse(dir.clone())),
        Ok(Err(source)) => Err(Error::Open { path, source }),
        Err(_) => Err(StoreError::Damaged(format!("{} is no store of probity", path.display())).into()),
    }
}

/// Makes a new store under another name first: one whose making was cut short would be taken for none of ours for ever.
fn make_whole(path: &std::path::Path) -> Result<(), redb::DatabaseError> {
    if path.exists() {
        return Ok(());
    }
    let unfinished = path.with_extension("redb.new");
    match std::fs::remove_file(&unfinished) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    drop(redb::Database::create(&unfinished)?);
    std::fs::rename(&unfinished, path)?;
    path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all())?;
    Ok(())
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
        let most = if self.runs.any() { LINGER } else { SLEEP_MAX };
        Duration::from_micros(wait.max(0) as u64).min(most).min(self.disk_wait.unwrap_or(most))
    }

    /// Everything that is due now.
    async fn turn(&mut self) {
        let now = self.now();
        let slots = self.session.due(now);
        if !slots.is_empty() {
            self.runs.start(slots, now);
        }
        for done in self.runs.ended() {
            if done.run.reason.class() == Class::Bad {
                self.doubt.notify_one();
            }
            self.session.on_run_done(done.assignment, done.n, done.run, now);
        }
        self.session.close_rows(now);
        self.session.save_faults();
        self.disk_wait = self.disk.write(&mut self.session);
        faults::tell(&self.engine, self.session.fault_actions(now)).await;
        self.send();
    }

    /// Sends as much as the stream takes; the rest stays where it is.
    fn send(&mut self) {
        let Some(outgoing) = self.outgoing.clone().filter(|_| self.welcomed) else { return };
        while let Ok(permit) = outgoing.try_reserve() {
            if let Some(report) = self.session.next_fault_report() {
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
        capabilities.extend(["http", "http3", "tcp", "dns", "tls", "udp", "grpc", "websocket"].map(|kind| Capability {
            name: format!("probe/{kind}"),
            available: true,
            ..Capability::default()
        }));
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
            acknowledged: self.session.acknowledged(),
        }
    }

    fn on_stream(&mut self, event: StreamEvent) {
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
                    self.on_message(message);
                }
            }
        }
    }

    fn on_message(&mut self, message: FromCoordinator) {
        match message {
            FromCoordinator::Welcome(welcome) => {
                tracing::info!(prober = self.config.name, member = welcome.member, "connected");
                self.welcomed = true;
                self.session.on_welcome(&welcome.cluster_id);
                self.session.set_flush(welcome.flush_us, welcome.unsteady_flush_us);
                self.heartbeat = Duration::from_micros(welcome.heartbeat_us.clamp(100_000, 60_000_000));
                self.send_heartbeat();
            }
            FromCoordinator::Desired(set) => {
                let now = self.now();
                self.session.on_desired(set, now);
                if self.session.revision() == 0 {
                    // A change to something that we do not follow: a new hello asks for the whole set.
                    self.outgoing = None;
                    self.welcomed = false;
                }
            }
            FromCoordinator::Ack(ack) => self.session.on_ack(&ack),
            FromCoordinator::Heartbeat(reply) => {
                let received = self.mono_us();
                self.clock.on_sample(reply.echo_us, received, reply.cluster_time_us);
                self.session.faults.set_clock_error(self.clock.error_us());
                let now = self.now();
                self.session.on_heartbeat(&reply, now);
            }
            FromCoordinator::FaultAck(ack) => self.session.faults.on_ack(&ack),
            FromCoordinator::NotLeader(_) => {}
        }
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

    fn on_fault(&mut self, event: FaultEvent) {
        let now = self.now();
        tracing::info!(prober = self.config.name, fault = event.fault_id, state = ?event.state, detail = event.detail, "fault");
        self.session.faults.on_event(&event.fault_id, event.state, event.detail, event.undo, now);
        self.session.save_faults();
    }

    /// An orderly end: faults undone, runs awaited, rows on the disk.
    async fn finish(self) -> Result<(), Error> {
        let Driver { mut session, mut disk, mut runs, clock, start, start_wall_us, engine, context, .. } = self;
        engine.shutdown().await;
        // Runs end by their own time-outs; an orderly stop waits a little for them, no longer.
        let _ = tokio::time::timeout(PATIENCE, runs.wait()).await;
        let now = clock.cluster_us(start_wall_us + start.elapsed().as_micros() as u64);
        for done in runs.ended() {
            session.on_run_done(done.assignment, done.n, done.run, now);
        }
        session.close_everything(now);
        disk.write_all(&mut session).await?;
        context.otel.shutdown().await;
        Ok(())
    }
}
