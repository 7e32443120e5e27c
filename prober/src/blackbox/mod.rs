//! A stand-in for prometheus/blackbox_exporter: its `blackbox.yml`, its paths, its metrics; the runs are those of every other probe.
//!
//! What blackbox does wrong is done right here (docs/blackbox.md has the list); what it can do and this cannot is refused when the file is
//! read, never ignored. Nothing of it goes to a coordinator.

mod history;
mod metrics;
mod module;
mod serve;
mod verdict;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use probity_proto::resources::blackbox::{Config, Module, parse};
use probity_proto::resources::{Problem, SourceFile};
use probity_proto::v1::Reason;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::kinds::{self, ProbeContext, RunInfo, RunResult};
use history::{History, Record};

#[cfg(feature = "fuzz")]
pub(crate) use serve::fuzz;
pub(crate) use serve::probe_router;
pub use serve::router;

/// Probes that may run at once: Prometheus scrapes each target once per interval, so more are a flood.
const PROBES_MAX: usize = 4_096;
/// A configuration is some kilobytes; more is another file.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// What its owner chooses.
#[derive(Debug, Clone)]
pub struct Options {
    /// `blackbox.yml`
    pub config_file: PathBuf,
    /// Taken off Prometheus' own time-out, so that the answer comes before it.
    pub timeout_offset_us: u64,
    /// Probes that `/` and `/logs` remember; as many failed ones beside them.
    pub history_limit: usize,
}

impl Options {
    /// With blackbox's defaults.
    pub fn new(config_file: PathBuf) -> Options {
        Options { config_file, timeout_offset_us: 500_000, history_limit: 100 }
    }
}

/// Reads a configuration; the error has a line for each problem.
pub fn load(path: &std::path::Path) -> Result<Config, String> {
    let unreadable = |e: &dyn std::fmt::Display| format!("cannot read {}: {e}", path.display());
    let size = std::fs::metadata(path).map_err(|e| unreadable(&e))?.len();
    if size > CONFIG_BYTES_MAX {
        return Err(unreadable(&format!("it has {size} bytes, at most {CONFIG_BYTES_MAX} are read")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| unreadable(&e))?;
    parse(&SourceFile { name: path.display().to_string(), text }).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
        lines.join("\n")
    })
}

/// The exporter: a configuration that can be read again, and what was probed of late.
#[derive(Debug)]
pub struct Exporter {
    options: Options,
    context: Arc<ProbeContext>,
    config: RwLock<Arc<Config>>,
    reloaded: Mutex<Reloaded>,
    history: Mutex<History>,
    unknown_modules: AtomicU64,
    running: Semaphore,
}

#[derive(Debug, Clone, Copy)]
struct Reloaded {
    successful: bool,
    success_at_s: f64,
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// One probe as it was asked for.
#[derive(Debug)]
struct Asked<'a> {
    name: &'a str,
    module: &'a Module,
    target: &'a str,
    hostname: &'a str,
    timeout_us: u64,
}

impl Exporter {
    /// Reads the configuration.
    pub fn new(options: Options, context: Arc<ProbeContext>) -> Result<Exporter, String> {
        let config = load(&options.config_file)?;
        Ok(Exporter {
            history: Mutex::new(History::new(options.history_limit)),
            options,
            context,
            config: RwLock::new(Arc::new(config)),
            reloaded: Mutex::new(Reloaded { successful: true, success_at_s: now_s() }),
            unknown_modules: AtomicU64::new(0),
            running: Semaphore::new(PROBES_MAX),
        })
    }

    /// Reads the configuration again; with a problem in it the old one stays.
    pub fn reload(&self) -> Result<(), String> {
        let loaded = load(&self.options.config_file);
        if let Ok(mut reloaded) = self.reloaded.lock() {
            reloaded.successful = loaded.is_ok();
            if loaded.is_ok() {
                reloaded.success_at_s = now_s();
            }
        }
        let config = loaded.inspect_err(|e| tracing::error!("the configuration was not reloaded: {e}"))?;
        if let Ok(mut current) = self.config.write() {
            *current = Arc::new(config);
        }
        tracing::info!(file = %self.options.config_file.display(), "configuration reloaded");
        Ok(())
    }

    fn config(&self) -> Arc<Config> {
        self.config.read().map(|c| c.clone()).unwrap_or_default()
    }

    async fn probe(&self, asked: &Asked<'_>) -> Record {
        let started_at = SystemTime::now();
        let started_at_us = started_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as i64;
        let result = match module::check(self.context.secrets(), asked).await {
            Ok(spec) => {
                let check = format!("blackbox/{}", asked.name);
                let info = RunInfo { check: &check, started_at_us, ..RunInfo::default() };
                kinds::run(&self.context, &spec, &info).await
            }
            Err(message) => RunResult { reason: Reason::ProberError, message, ..RunResult::default() },
        };
        let verdict = verdict::of(&asked.module.prober, &result);
        let metrics = metrics::render(asked, &result, &verdict);
        Record {
            id: 0,
            module: asked.name.to_owned(),
            target: asked.target.to_owned(),
            timeout_us: asked.timeout_us,
            started_at_us,
            success: verdict.success,
            why_not: verdict.why_not,
            shown: asked.module.shown.clone(),
            metrics: metrics.into(),
            result,
        }
    }

    fn remember(&self, record: Record) -> Arc<Record> {
        match self.history.lock() {
            Ok(mut history) => history.add(record),
            Err(_) => Arc::new(record),
        }
    }

    fn count_unknown(&self) {
        self.unknown_modules.fetch_add(1, Ordering::Relaxed);
    }

    /// What it says of itself.
    pub(crate) fn own_metrics(&self) -> String {
        let reloaded = self.reloaded.lock().map_or(Reloaded { successful: false, success_at_s: 0.0 }, |r| *r);
        metrics::own(reloaded.successful, reloaded.success_at_s, self.unknown_modules.load(Ordering::Relaxed))
    }
}

/// Reads the configuration again on every SIGHUP, until `stop`.
pub async fn reload_on_hangup(exporter: Arc<Exporter>, stop: CancellationToken) {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else { return };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            hangup = hangups.recv() => if hangup.is_none() { return },
        }
        let exporter = exporter.clone();
        // What is wrong with it is in the log.
        let _ = tokio::task::spawn_blocking(move || exporter.reload()).await;
    }
}
