//! The leader's search for targets: asks each probe's source in turn, and proposes what it got when that is news.
//!
//! What counts of it is decided in apply ([`probity_core::discovery`]). Everything here is bounded: how many sources are asked at once,
//! how long, how much is read.

mod dns;
mod file;
mod http;
#[cfg(any(feature = "kubernetes", feature = "fuzz"))]
#[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only its parser is fuzzed"))]
mod kubernetes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use probity_core::State;
use probity_proto::discovery::{Found, targets_of};
use probity_proto::v1::command::Op;
use probity_proto::v1::discovery::Source;
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::node::Node;
use crate::outside::{Policy, host_of};
use crate::secrets::Secrets;

/// Sources that are asked at once.
const ASKED_MAX: usize = 16;
/// How long one may take, with all its pages and names.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of one answer or file: ten thousand targets with their labels have about 5 MiB.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How often it is looked who is due.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A reason is for people, and in the log.
const ERROR_CHARS_MAX: usize = 512;

/// What a source is asked with.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    secrets: Secrets,
    /// Of the probe that asks.
    namespace: String,
    targets_dir: Option<PathBuf>,
    policy: Policy,
}

impl Sources {
    pub(crate) fn new(secrets: Secrets, targets_dir: Option<PathBuf>, policy: Policy) -> Sources {
        Sources { secrets, namespace: String::new(), targets_dir, policy }
    }

    /// The same, as a probe of `namespace` asks them.
    fn of(&self, namespace: &str) -> Sources {
        Sources { namespace: namespace.to_owned(), ..self.clone() }
    }

    async fn ask(&self, source: &Source, refresh: Duration) -> Result<Vec<Found>, String> {
        match source {
            Source::Http(http) => http::ask(self, http, refresh).await,
            Source::File(file) => file::ask(self.targets_dir.as_deref(), file).await,
            Source::DnsSrv(srv) => dns::ask(self.policy, srv).await,
            #[cfg(feature = "kubernetes")]
            Source::Kubernetes(kubernetes) => kubernetes::ask(self, kubernetes).await,
            #[cfg(not(feature = "kubernetes"))]
            Source::Kubernetes(_) => Err(NO_KUBERNETES.to_owned()),
        }
    }

    /// A secret that is sent to `url`.
    async fn secret(&self, name: &str, url: &str) -> Result<String, String> {
        self.secrets.read_for(name, &self.namespace, Some(&host_of(url))).await
    }
}

/// Why a probe with a Kubernetes discovery is refused.
#[cfg(not(feature = "kubernetes"))]
pub(crate) const NO_KUBERNETES: &str = "this build has no discovery in Kubernetes (cargo feature kubernetes)";

/// A probe whose targets are looked for.
#[derive(Debug, Clone)]
struct Job {
    namespace: String,
    probe: String,
    generation: u64,
    spec: Arc<ProbeSpec>,
}

#[derive(Debug)]
struct Planned {
    job: Job,
    due: Instant,
    /// The task that asks now.
    asked: Option<tokio::task::Id>,
}

/// Looks for targets while this member leads.
pub(crate) async fn run(node: Node, sources: Sources, stop: CancellationToken) {
    let mut planned: BTreeMap<(String, String), Planned> = BTreeMap::new();
    let mut seen_revision = None;
    let mut asked: JoinSet<()> = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(done) = asked.join_next_with_id() => {
                // One that panicked is asked again too.
                let id = done.map_or_else(|e| e.id(), |(id, ())| id);
                planned.values_mut().filter(|p| p.asked == Some(id)).for_each(|p| p.asked = None);
            }
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if !node.leadership.borrow().leading {
            (planned, seen_revision) = (BTreeMap::new(), None);
            continue;
        }
        let Ok((revision, jobs)) = node.query(move |state, _| jobs(state, seen_revision)).await else { continue };
        seen_revision = Some(revision);
        if let Some(jobs) = jobs {
            plan(&mut planned, jobs);
        }
        let now = Instant::now();
        // Who waits longest comes first, or some that hang would be asked again and again before all others.
        let mut due: Vec<&mut Planned> = planned.values_mut().filter(|p| p.due <= now && p.asked.is_none()).collect();
        due.sort_by_key(|p| p.due);
        let room = ASKED_MAX.saturating_sub(asked.len());
        for p in due.into_iter().take(room) {
            let refresh = Duration::from_micros(p.job.spec.discovery.as_ref().map_or(0, |d| d.refresh_us));
            p.due = now + refresh.max(Duration::from_secs(1));
            let (node, sources, job) = (node.clone(), sources.of(&p.job.namespace), p.job.clone());
            p.asked = Some(asked.spawn(async move { look(&node, &sources, &job, refresh).await }).id());
        }
    }
}

/// The probes that discover, when any resource changed since `seen`.
fn jobs(state: &State, seen: Option<u64>) -> (u64, Option<Vec<Job>>) {
    let revision = state.meta().resource_revision;
    if seen == Some(revision) {
        return (revision, None);
    }
    let discovers = |r: &Resource| match &r.spec {
        Some(Spec::Probe(spec)) if spec.discovery.is_some() => {
            Some(Job { namespace: r.namespace.clone(), probe: r.name.clone(), generation: r.generation, spec: Arc::new(spec.clone()) })
        }
        _ => None,
    };
    (revision, Some(state.resources.prefix("Probe/").filter_map(discovers).collect()))
}

/// New and changed ones are asked at once, the others when their time comes.
fn plan(planned: &mut BTreeMap<(String, String), Planned>, jobs: Vec<Job>) {
    let now = Instant::now();
    let mut old = std::mem::take(planned);
    for job in jobs {
        let key = (job.namespace.clone(), job.probe.clone());
        let known = old.remove(&key);
        let due = known.as_ref().filter(|p| p.job.generation == job.generation).map_or(now, |p| p.due);
        planned.insert(key, Planned { due, asked: known.and_then(|p| p.asked), job });
    }
}

async fn look(node: &Node, sources: &Sources, job: &Job, refresh: Duration) {
    let Some(source) = job.spec.discovery.as_ref().and_then(|d| d.source.as_ref()) else { return };
    let asked = tokio::time::timeout(TIMEOUT, sources.ask(source, refresh)).await;
    let found = asked.unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())));
    let (targets, note, error) = match found.and_then(|found| targets_of(&job.spec, found)) {
        Ok((targets, note)) => (targets, note, String::new()),
        Err(error) => (Vec::new(), String::new(), error),
    };
    let cut = |text: String| text.chars().take(ERROR_CHARS_MAX).collect::<String>();
    let op =
        DiscoverTargets { namespace: job.namespace.clone(), probe: job.probe.clone(), generation: job.generation, targets, error: cut(error), note: cut(note) };
    let news = node.query(move |state, _| probity_core::discovery::is_news(state, &op).then_some(op)).await;
    if let Ok(Some(op)) = news {
        if !op.error.is_empty() {
            tracing::warn!(probe = format!("{}/{}", op.namespace, op.probe), error = op.error, "targets not discovered");
        }
        // Not committed: it is news still, and found again.
        let _ = node.propose(Node::command(Op::DiscoverTargets(op))).await;
    }
}

/// For tests/fuzz.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_kubernetes(bytes: &[u8]) {
    kubernetes::fuzz(bytes);
}
