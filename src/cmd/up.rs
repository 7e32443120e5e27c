//! `up`: a whole single-node Probity in one process, from the same parts as a cluster.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use probity_coordinator::CoordinatorConfig;
use probity_prober::ProberConfig;
use probity_prober::config::SPOOL_AGE_MAX;
use probity_prober::policy::AddressPolicy;
use probity_prober::selfcheck::SelfCheckConfig;
use probity_rpc::v1::{ApplyRequest, SourceFile};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::demo::{Demo, Ports};
use super::{apply, get, server, slo};
use crate::api::{Api, request_id};
use crate::args::UpArgs;
use crate::output::{at, cell, duration, print_lines, seconds};
use crate::settings::Settings;
use crate::{Fail, Outcome, exit};

/// Rows and verdicts of a laptop should be fresh, and there are few of them.
const FLUSH: Duration = Duration::from_secs(1);
/// How long the first screen waits for verdicts.
const PATIENCE: Duration = Duration::from_secs(15);
const ZONES: [&str; 3] = ["a", "b", "c"];
const GRPC_PORT: u16 = 7601;
/// Where the first prober's own metrics are; the others' follow.
const PROBER_PORT: u16 = 7602;

/// Runs until Ctrl-C.
pub(super) async fn run(args: UpArgs) -> Outcome {
    let started = Instant::now();
    server::log("warn");
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Asked for before anything runs: a mistake in a file starts nothing.
    let files = apply::read_files(&args.file)?;
    apply::check_shape(&files)?;
    println!("Probity {}, single node, loopback, no TLS: not for production", env!("CARGO_PKG_VERSION"));
    let stop = server::stop_on_signal();
    let mut ports = Ports::default();
    let web = ports.free("web page", args.http_port)?;
    let grpc = ports.free("other commands' side", args.grpc_port)?;
    println!("  web   http://{web}     data  {}\n", args.data_dir.display());
    let name = cluster_name(&args);
    let config = coordinator_config(&args, &name, web, grpc)?;
    // The coordinator outlives the probers: what they still have to say is heard.
    let coordinator_stop = CancellationToken::new();
    let coordinator = probity_coordinator::start(config, coordinator_stop.clone()).await.map_err(|e| Fail::of(exit::NO, &e))?;
    let system = System { args, name, web, grpc, ports, stop: stop.clone(), tasks: TaskTracker::new(), probers: JoinSet::new() };
    let outcome = system.run(files, started).await;
    coordinator_stop.cancel();
    coordinator.wait().await.map_err(|e| Fail::of(exit::NO, &e))?;
    outcome
}

/// A data directory keeps its name: its probers and rows bear it.
fn cluster_name(args: &UpArgs) -> String {
    let kept = ["demo", "local"].into_iter().find(|name| args.data_dir.join(format!("{name}-a")).is_dir());
    kept.unwrap_or(if args.demo { "demo" } else { "local" }).to_owned()
}

fn coordinator_config(args: &UpArgs, name: &str, http: SocketAddr, grpc: SocketAddr) -> Result<CoordinatorConfig, Fail> {
    Ok(CoordinatorConfig {
        cluster: name.to_owned(),
        name: format!("{name}-1"),
        data_dir: args.data_dir.join("coordinator"),
        http,
        grpc,
        advertise: grpc.to_string(),
        initial_members: Default::default(),
        tls: None,
        secrets_dir: secrets_dir(&args.data_dir),
        secrets_need_allow: false,
        targets_dir: Some(args.data_dir.join("targets")),
        heartbeats: Vec::new(),
        http_names: Vec::new(),
        openid: None,
        auto_init: true,
        allow_loopback: true,
        flush: FLUSH,
        trace_ppm: if args.demo { 1_000_000 } else { probity_core::desired::TRACE_PPM },
        otel: server::otel("probity-coordinator", &format!("{name}-1"))?,
    })
}

fn secrets_dir(data_dir: &Path) -> Option<PathBuf> {
    Some(data_dir.join("secrets"))
}

struct System {
    args: UpArgs,
    name: String,
    web: SocketAddr,
    grpc: SocketAddr,
    ports: Ports,
    stop: CancellationToken,
    tasks: TaskTracker,
    probers: JoinSet<Result<(), probity_prober::Error>>,
}

impl System {
    async fn run(mut self, mut files: Vec<SourceFile>, started: Instant) -> Outcome {
        let outcome = self.serve(&mut files, started).await;
        self.stop.cancel();
        let mut failed = None;
        while let Some(ended) = self.probers.join_next().await {
            if let Ok(Err(e)) = ended {
                failed = Some(Fail::of(exit::NO, &e));
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
        outcome?;
        match failed {
            Some(fail) => Err(fail),
            None => {
                let typed: Vec<String> = std::env::args().skip(1).collect();
                println!("stopped; `{} {}` goes on from here", invoked(), typed.join(" "));
                Ok(ExitCode::SUCCESS)
            }
        }
    }

    async fn serve(&mut self, files: &mut Vec<SourceFile>, started: Instant) -> Result<(), Fail> {
        let demo = if self.args.demo { Some(Demo::new(&mut self.ports)?) } else { None };
        if let Some(demo) = &demo {
            demo.start(&self.tasks, &self.stop).await?;
            files.insert(0, demo.resources(self.web));
        }
        for (i, zone) in ZONES.into_iter().enumerate() {
            let http = self.ports.free("prober's metrics", PROBER_PORT + i as u16)?;
            // One host has the proxy; all probe through it.
            let proxies = demo.iter().filter(|_| zone == ZONES[0]).map(Demo::proxy).collect();
            let config = self.prober_config(zone, http, proxies)?;
            self.probers.spawn(probity_prober::run(config, self.stop.clone()));
        }
        let mut api = Api::new(&Settings {
            server: vec![self.grpc.to_string()],
            tls_dir: None,
            namespace: "default".to_owned(),
            namespace_given: false,
            stale: false,
            token: None,
        })?;
        if !files.is_empty() {
            self.or_stopped(apply_files(&mut api, std::mem::take(files))).await?;
        }
        self.or_stopped(async {
            wait_until_probing(&mut api).await;
            Ok(())
        })
        .await?;
        if self.stop.is_cancelled() {
            return Ok(());
        }
        self.first_screen(&mut api, started).await;
        tokio::select! {
            () = self.stop.cancelled() => {}
            // A prober that ends by itself could not go on: say why, and end.
            Some(Ok(ended)) = self.probers.join_next() => ended.map_err(|e| Fail::of(exit::NO, &e))?,
        }
        println!("\nstopping: faults are undone, what was measured is kept");
        Ok(())
    }

    /// The work, unless Ctrl-C came first or a prober could not start.
    async fn or_stopped(&mut self, work: impl Future<Output = Result<(), Fail>>) -> Result<(), Fail> {
        tokio::select! {
            done = work => done,
            () = self.stop.cancelled() => Ok(()),
            Some(Ok(Err(e))) = self.probers.join_next() => Err(Fail::of(exit::NO, &e)),
        }
    }

    fn prober_config(&self, zone: &str, http: SocketAddr, proxies: Vec<probity_chaos::ProxyConfig>) -> Result<ProberConfig, Fail> {
        let name = format!("{}-{zone}", self.name);
        Ok(ProberConfig {
            coordinators: vec![self.grpc.to_string()],
            labels: [("zone".to_owned(), zone.to_owned())].into(),
            data_dir: self.args.data_dir.join(&name),
            http: Some(http),
            tls: None,
            secrets_dir: secrets_dir(&self.args.data_dir),
            secrets_need_allow: false,
            spool_bytes_max: 64 << 20,
            bodies_bytes_max: probity_prober::kinds::BODIES_BYTES_MAX,
            spool_age_max: SPOOL_AGE_MAX,
            // A laptop without a network still probes itself.
            self_check: SelfCheckConfig::off(),
            faults_allow: proxy_faults(&proxies),
            proxies,
            address_policy: AddressPolicy::Anywhere,
            otel: server::otel("probity-prober", &name)?,
            blackbox: None,
            name,
        })
    }

    async fn first_screen(&self, api: &mut Api, started: Instant) {
        let Ok(probes) = api.read("/api/v1/probes?checks=false").await else { return };
        print_lines(&get::table("probes", &probes));
        let slos = api.read("/api/v1/slos").await.unwrap_or_default();
        for item in slos["items"].as_array().into_iter().flatten() {
            let mut lines = vec![String::new(), slo::headline(item)];
            if let Some(rule) = at(item, "status.rules").as_array().and_then(|r| r.first()) {
                let word = if self.args.demo { ": demo rules" } else { "" };
                lines.push(format!(
                    "  a full outage pages after {} ({}x, {}/{}{word})",
                    duration(rule, "fullOutageFiresAfterSeconds"),
                    cell(rule, "burnRate"),
                    window(rule, "longSeconds"),
                    window(rule, "shortSeconds"),
                ));
            }
            print_lines(&lines);
        }
        let command = invoked();
        let server = if self.grpc.port() == GRPC_PORT { String::new() } else { format!(" --server {}", self.grpc) };
        let mut lines = vec![String::new(), format!("Ready in {}. In another terminal:", seconds(started.elapsed().as_secs_f64()))];
        if probes["items"].as_array().is_none_or(Vec::is_empty) {
            lines.push(format!("  {command} apply -f FILE{server}    # nothing is watched yet; {command} explain probe"));
        } else {
            lines.push(format!("  {command} get probes -w{server}"));
        }
        if self.args.demo {
            lines.push(format!("  {command} gameday run shop-outage{server}    # 1 minute"));
        }
        lines.push("Ctrl-C stops everything.".to_owned());
        print_lines(&lines);
    }
}

/// Of a host with proxies, its own are what may be disturbed.
fn proxy_faults(proxies: &[probity_chaos::ProxyConfig]) -> Vec<String> {
    let kinds = probity_scenario::KINDS.iter().map(|kind| kind.name).filter(|name| name.starts_with("proxy."));
    if proxies.is_empty() { Vec::new() } else { kinds.map(str::to_owned).collect() }
}

/// "1m", not "60 s": as it was written.
fn window(rule: &Value, key: &str) -> String {
    probity_proto::units::format_duration((rule[key].as_f64().unwrap_or(0.0) * 1e6) as u64)
}

/// The command as it was typed, so that what is printed can be pasted.
fn invoked() -> String {
    let path = std::env::args().next().unwrap_or_else(|| "probity".to_owned());
    if path.contains('/') && !path.starts_with(['/', '.']) { format!("./{path}") } else { path }
}

/// Applies everything as one; a refusal names every problem.
async fn apply_files(api: &mut Api, files: Vec<SourceFile>) -> Result<(), Fail> {
    let request = ApplyRequest { request_id: request_id(), files, default_namespace: api.namespace.clone(), ..ApplyRequest::default() };
    apply::accepted(&apply::send(api, &request).await?)
}

/// Waits until every check was run and has a verdict or a reason why not, but not for ever.
async fn wait_until_probing(api: &mut Api) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let (Ok(status), Ok(probes)) = (api.read("/api/v1/status").await, api.read("/api/v1/probes?checks=false").await) {
            let fleet = at(&status, "probers.alive").as_u64() >= Some(ZONES.len() as u64);
            if fleet && probes["items"].as_array().into_iter().flatten().all(settled) {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A verdict, or a missed run: then there will be none. An interval that is longer than our patience is not waited for.
fn settled(probe: &Value) -> bool {
    let status = &probe["status"];
    let missed = at(status, "runs.missed").as_object().is_some_and(|m| m.values().any(|n| n.as_u64() > Some(0)));
    let long = at(probe, "spec.interval").as_str().and_then(|t| probity_proto::units::parse_duration(t).ok()).unwrap_or(30_000_000) > 3_000_000;
    let done = ["good", "bad"].iter().any(|k| status["runs"][k].as_u64() >= Some(3 * ZONES.len() as u64));
    missed || long || status["verdict"] != "unknown" && done
}
