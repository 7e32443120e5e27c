//! The operators' service: changes, game days, halt, and the read API over gRPC.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use probity_core::{COMMAND_VERSION, State, admission, checks, placement, requests, resource_key};
use probity_proto::lower;
use probity_proto::resources::{self, ParsedResource, Problem};
use probity_proto::v1::command::Op;
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;
use probity_rpc::refusal::Refusal;
use probity_rpc::v1::operator_server::Operator;
use probity_rpc::v1::*;
use prost::Message;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::config::CoordinatorConfig;
use crate::forward::Forward;
use crate::gate::{Admitted, Standing};
use crate::node::{Node, ProposeError};
use crate::peer::{Peers, identify};
use crate::watches::Watches;
use crate::{start, view};

/// A concurrent change of resources is tried again this often.
const CONFLICT_TRIES: usize = 5;
/// Readings of one watch that wait for its stream.
const WATCHED: usize = 1;
/// A watched reading comes at most this often.
const WATCH_EVERY: Duration = Duration::from_millis(200);
/// And one that takes long, so many times as long after it: a watch is never most of what a coordinator does.
const WATCH_REST: u32 = 4;

#[derive(Debug, Clone)]
pub(crate) struct OperatorService {
    pub(crate) node: Node,
    pub(crate) config: CoordinatorConfig,
    pub(crate) own: MemberRecord,
    pub(crate) peers: Peers,
    pub(crate) forward: Forward,
    pub(crate) watches: Watches,
    pub(crate) stop: CancellationToken,
}

/// A proposal's error as a status.
pub(crate) fn status(error: ProposeError) -> Status {
    match error {
        ProposeError::Refusal(refusal) => refusal.status(),
        ProposeError::Stopping => Status::unavailable("the coordinator is stopping"),
        ProposeError::Refused(refused) => match refused.code() {
            RefusalCode::NotFound => Status::not_found(refused.message),
            RefusalCode::AlreadyExists => Status::already_exists(refused.message),
            RefusalCode::Invalid => Status::invalid_argument(refused.message),
            _ => Status::failed_precondition(refused.message),
        },
    }
}

impl OperatorService {
    /// A command of whoever was admitted.
    pub(crate) fn command(admitted: &Admitted, request_id: &str, op: Op) -> Command {
        let caller = &admitted.caller;
        Command {
            request_id: request_id.to_owned(),
            actor: caller.name.clone(),
            origin: caller.origin.clone(),
            credential: caller.credential.clone(),
            op: Some(op),
            ..Command::default()
        }
    }

    /// Changes are checked against the leader's state, so only the leader takes them.
    fn must_lead(&self) -> Result<(), Status> {
        if self.node.leadership.borrow().leading { Ok(()) } else { Err(Refusal::NotLeader(None).status()) }
    }

    pub(crate) async fn must_lead_or_hint(&self) -> Result<(), Status> {
        if self.must_lead().is_ok() {
            return Ok(());
        }
        let (full, formed, address) = self
            .node
            .query(|state, live| {
                let address = live.status.leader.and_then(|id| state.members.get(&probity_core::number_key(id))).map(|m| m.address.clone());
                (live.status.disk_full, !live.status.identity.cluster_id.is_empty(), address)
            })
            .await
            .map_err(status)?;
        if full {
            return Err(Refusal::DiskFull.status());
        }
        if !formed {
            return Err(self.node.stranger().map_or(Refusal::NotInitialized, Refusal::Stranger).status());
        }
        let own = self.own.address.clone();
        Err(Refusal::NotLeader(address.filter(|a| *a != own)).status())
    }

    /// Looks, and changes what the look decides; `None` where others came in between, and it has to be judged again.
    async fn change<T: Send + 'static>(
        &self,
        look: impl FnOnce(&State) -> (T, Option<Command>) + Send + 'static,
    ) -> Result<Option<(T, Option<Vec<AppliedChange>>)>, Status> {
        match self.node.judge(look).await {
            Ok((found, applied)) => Ok(Some((found, applied.map(|applied| applied.changes.into_iter().map(shown).collect())))),
            Err(ProposeError::Refused(r)) if r.code() == RefusalCode::Conflict => Ok(None),
            Err(e) => Err(status(e)),
        }
    }
}

fn shown(change: ResourceChange) -> AppliedChange {
    AppliedChange { key: change.key, action: change.action, generation: change.generation, diff: String::new() }
}

fn read_reply(answer: &view::Answer) -> ReadReply {
    ReadReply { json: answer.value.to_string(), index: answer.index, as_of_us: answer.as_of_us }
}

/// What a checked set of files would do.
struct Checked {
    puts: Vec<Resource>,
    deletes: Vec<ResourceKey>,
    problems: Vec<Problem>,
    /// In a dry run.
    changes: Vec<AppliedChange>,
    /// Of each of `changes` but those of `deletes`: the document that there is, where it will change and the difference is wanted.
    old: Vec<Option<String>>,
    notes: Vec<String>,
}

impl Checked {
    /// Adds the differences: not where the state is read, which waits for nobody.
    fn with_diffs(mut self) -> Checked {
        for ((change, new), old) in self.changes.iter_mut().zip(&self.puts).zip(self.old.drain(..)) {
            if let (Some(old), Some(key)) = (old, &change.key) {
                change.diff = view::diff(key, &old, &new.document_json);
            }
        }
        self
    }
}

fn check(state: &State, parsed: &[ParsedResource], request: &ApplyRequest) -> Checked {
    let puts: Vec<Resource> = parsed.iter().map(|p| p.resource.clone()).collect();
    let mut deletes = Vec::new();
    if request.prune {
        let matches = |r: &&Resource| request.prune_selector.iter().all(|(k, v)| r.labels.get(k) == Some(v));
        let kept = |r: &&Resource| puts.iter().any(|p| p.kind == r.kind && p.namespace == r.namespace && p.name == r.name);
        let gone = state.resources.iter().filter(|r| r.namespace == request.default_namespace).filter(matches).filter(|r| !kept(r));
        deletes.extend(gone.map(|r| ResourceKey { kind: r.kind.clone(), namespace: r.namespace.clone(), name: r.name.clone() }));
    }
    let mut problems: Vec<Problem> = Vec::new();
    for resource in parsed {
        #[cfg(not(feature = "kubernetes"))]
        if let Some(Spec::Probe(ProbeSpec { discovery: Some(Discovery { source: Some(discovery::Source::Kubernetes(_)), .. }), .. })) = &resource.resource.spec
        {
            problems.push(resource.problem("spec.targets.kubernetes", crate::discovery::NO_KUBERNETES, ""));
        }
        if let Some(Spec::Scenario(spec)) = &resource.resource.spec {
            problems.extend(probity_scenario::validate(spec).into_iter().map(|p| resource.problem(&p.path, p.message, p.hint)));
        }
    }
    for found in admission::problems(state, &puts, &deletes) {
        let of = |p: &&ParsedResource| p.resource.kind == found.key.kind && p.resource.namespace == found.key.namespace && p.resource.name == found.key.name;
        problems.push(match parsed.iter().find(of) {
            Some(resource) => resource.problem(&found.path, found.message, found.hint),
            None => Problem {
                file: format!("{}/{}", found.key.kind, found.key.name),
                line: 1,
                column: 1,
                path: found.path,
                message: found.message,
                hint: found.hint,
            },
        });
    }
    // What is really applied says itself what it changed.
    let mut changes: Vec<AppliedChange> = puts.iter().filter(|_| request.dry_run).map(|new| would_change(state, new)).collect();
    let document = |r: &Resource| state.resources.get(&resource_key(&r.kind, &r.namespace, &r.name)).map_or(String::new(), |old| old.document_json.clone());
    let shown = |(change, new): (&AppliedChange, &Resource)| (request.diff && change.action != "unchanged").then(|| document(new));
    let old = changes.iter().zip(&puts).map(shown).collect();
    changes.extend(deletes.iter().map(|key| AppliedChange { key: Some(key.clone()), action: "deleted".to_owned(), ..AppliedChange::default() }));
    let notes = puts.iter().filter_map(|r| note(state, r, &puts)).collect();
    Checked { puts, deletes, problems, changes, old, notes }
}

fn would_change(state: &State, new: &Resource) -> AppliedChange {
    let old = state.resources.get(&resource_key(&new.kind, &new.namespace, &new.name));
    let (action, generation) = match old {
        None => ("created", 1),
        Some(old) if old.document_json == new.document_json && old.spec == new.spec && old.labels == new.labels => ("unchanged", old.generation),
        Some(old) => ("configured", old.generation + u64::from(old.spec != new.spec)),
    };
    let key = ResourceKey { kind: new.kind.clone(), namespace: new.namespace.clone(), name: new.name.clone() };
    AppliedChange { key: Some(key), action: action.to_owned(), generation, diff: String::new() }
}

/// What is said when it is applied: what an SLO can do, and that nobody would run a probe.
fn note(state: &State, resource: &Resource, puts: &[Resource]) -> Option<String> {
    let slo = match &resource.spec {
        Some(Spec::Slo(slo)) => slo,
        Some(Spec::Probe(probe)) => return nobody_runs(state, probe).map(|why| format!("probe {}: nobody runs it yet: {why}", resource.name)),
        _ => return None,
    };
    if slo.no_alerts {
        return Some(format!("SLO {}: no alerts, as asked", resource.name));
    }
    let named = puts.iter().find(|p| p.kind == "BurnRatePolicy" && p.namespace == resource.namespace && p.name == slo.policy);
    let policy = match named.and_then(|r| r.spec.as_ref()) {
        Some(Spec::BurnRatePolicy(policy)) => policy.clone(),
        _ => probity_core::slo::policy::of(state, &resource.namespace, slo)?,
    };
    let first = policy.rules.first()?;
    let outage = probity_core::slo::theory::full_outage_us(slo.target_ppm, first);
    Some(format!("SLO {}: a full outage fires {} after {}", resource.name, first.name, probity_proto::units::format_duration(outage / 100_000 * 100_000)))
}

/// Why nobody would run one of a probe's targets: of the first for which that is so.
fn nobody_runs(state: &State, probe: &ProbeSpec) -> Option<String> {
    let placed = |target: &Target| checks::placement_of(probe, &lower::check_spec(probe, target)?, target);
    // Many targets have few placements among them.
    let distinct: BTreeSet<Vec<u8>> = probe.targets.iter().filter_map(|t| placed(t).ok()).map(|p| p.encode_to_vec()).collect();
    distinct.iter().filter_map(|p| Placement::decode(p.as_slice()).ok()).find_map(|p| placement::why_nobody(state, &p))
}

fn problem_message(p: &Problem) -> ProblemMessage {
    ProblemMessage { file: p.file.clone(), line: p.line, column: p.column, path: p.path.clone(), message: p.message.clone(), hint: p.hint.clone() }
}

type WatchStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<ReadReply, Status>> + Send>>;

#[tonic::async_trait]
impl Operator for OperatorService {
    type WatchStream = WatchStream;

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyReply>, Status> {
        let admitted = Admitted::of(&request)?;
        self.must_lead_or_hint().await?;
        let mut asked = request.into_inner();
        let files = std::mem::take(&mut asked.files).into_iter().map(|f| resources::SourceFile { name: f.name, text: f.text });
        let parsed = resources::parse(&files.collect::<Vec<_>>(), &asked.default_namespace);
        let mut namespaces: BTreeSet<&str> = parsed.resources.iter().map(|p| p.resource.namespace.as_str()).collect();
        if asked.prune {
            namespaces.insert(&asked.default_namespace);
        }
        namespaces.into_iter().try_for_each(|namespace| admitted.in_namespace(namespace))?;
        let shared = Arc::new((parsed, asked, admitted));
        for _ in 0..CONFLICT_TRIES {
            let known = shared.clone();
            let look = move |state: &State| {
                let (parsed, asked, admitted) = &*known;
                let mut checked = check(state, &parsed.resources, asked);
                checked.problems.splice(..0, parsed.problems.iter().cloned());
                // What was answered before is answered again, whatever has become of the resources.
                let done = !asked.dry_run && (checked.problems.is_empty() || requests::find(state, &asked.request_id).is_some());
                let command = done.then(|| {
                    let (put, delete) = (std::mem::take(&mut checked.puts), std::mem::take(&mut checked.deletes));
                    let op = Op::ApplyResources(ApplyResources { base_revision: state.meta().resource_revision, put, delete, purge: false });
                    Self::command(admitted, &asked.request_id, op)
                });
                (checked, command)
            };
            let Some((mut checked, applied)) = self.change(look).await? else { continue };
            if let Some(changes) = applied {
                return Ok(Response::new(ApplyReply { changes, problems: Vec::new(), notes: checked.notes }));
            }
            if checked.problems.is_empty() && shared.1.diff {
                checked = tokio::task::spawn_blocking(move || checked.with_diffs()).await.map_err(|e| Status::internal(e.to_string()))?;
            }
            let changes = if checked.problems.is_empty() { checked.changes } else { Vec::new() };
            return Ok(Response::new(ApplyReply { changes, problems: checked.problems.iter().map(problem_message).collect(), notes: checked.notes }));
        }
        Err(Status::aborted("the resources keep changing under this apply; try again"))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<ApplyReply>, Status> {
        let admitted = Admitted::of(&request)?;
        self.must_lead_or_hint().await?;
        let asked = request.into_inner();
        let key = asked.key.clone().unwrap_or_default();
        admitted.in_namespace(&key.namespace)?;
        let shared = Arc::new((asked, admitted));
        for _ in 0..CONFLICT_TRIES {
            let (known, wanted) = (shared.clone(), key.clone());
            let look = move |state: &State| {
                let exists = state.resources.get(&resource_key(&wanted.kind, &wanted.namespace, &wanted.name)).is_some();
                let problems = admission::problems(state, &[], std::slice::from_ref(&wanted));
                let (asked, admitted) = &*known;
                let answered = requests::find(state, &asked.request_id).is_some();
                let command = (answered || exists && problems.is_empty()).then(|| {
                    let base_revision = state.meta().resource_revision;
                    let op = Op::ApplyResources(ApplyResources { base_revision, put: Vec::new(), delete: vec![wanted], purge: asked.purge });
                    Self::command(admitted, &asked.request_id, op)
                });
                ((exists, problems), command)
            };
            let Some(((exists, problems), applied)) = self.change(look).await? else { continue };
            if applied.is_none() && !exists {
                return Err(Status::not_found(format!("no {} {:?} in namespace {:?}", key.kind, key.name, key.namespace)));
            }
            let message = |p: admission::AdmissionProblem| ProblemMessage {
                file: format!("{}/{}", p.key.kind, p.key.name),
                line: 1,
                column: 1,
                path: p.path,
                message: p.message,
                hint: p.hint,
            };
            let problems = if applied.is_some() { Vec::new() } else { problems.into_iter().map(message).collect() };
            return Ok(Response::new(ApplyReply { problems, changes: applied.unwrap_or_default(), ..ApplyReply::default() }));
        }
        Err(Status::aborted("the resources keep changing under this delete; try again"))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<ReadReply>, Status> {
        let admitted = Admitted::of(&request)?;
        let asked = request.into_inner();
        if !asked.stale {
            // What only the leader knows (heartbeats, progress) is asked of it too.
            self.must_lead_or_hint().await?;
            self.node.read_index().await.map_err(status)?;
        }
        let answer = self.reading(&asked.path, &view::Scope::of(&admitted.caller)).await?;
        Ok(Response::new(read_reply(&answer)))
    }

    async fn watch(&self, request: Request<ReadRequest>) -> Result<Response<WatchStream>, Status> {
        let admitted = Admitted::of(&request)?;
        let standing = request.extensions().get::<Standing>().cloned().ok_or_else(|| Status::internal("a request that passed no gate"))?;
        self.must_lead_or_hint().await?;
        let path = request.into_inner().path;
        let open = self.watches.begin(&admitted.caller.name)?;
        // A wrong path is told at once.
        let scope = view::Scope::of(&admitted.caller);
        let mut first = self.reading(&path, &scope).await?;
        let mut last = view::digest(&mut first.value);
        let (tx, rx) = tokio::sync::mpsc::channel(WATCHED);
        let (service, mut changed, mut leadership) = (self.clone(), self.node.changed(), self.node.leadership());
        tokio::spawn(async move {
            let _open = open;
            let _ = tx.send(Ok(read_reply(&first))).await;
            let lost = standing.lost();
            tokio::pin!(lost);
            loop {
                tokio::select! {
                    () = service.stop.cancelled() => return,
                    why = &mut lost => {
                        let _ = tx.send(Err(Status::unauthenticated(why))).await;
                        return;
                    }
                    () = tx.closed() => return,
                    _ = leadership.changed() => if !leadership.borrow_and_update().leading { return },
                    end = changed.changed() => if end.is_err() { return },
                }
                let began = Instant::now();
                let Ok(mut next) = service.reading(&path, &scope).await else { return };
                let digest = view::digest(&mut next.value);
                let rest = WATCH_EVERY.max(began.elapsed() * WATCH_REST);
                if digest != last {
                    last = digest;
                    if tx.send(Ok(read_reply(&next))).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = tx.closed() => return,
                    () = tokio::time::sleep(rest) => {}
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn start_game_day(&self, request: Request<StartGameDayRequest>) -> Result<Response<StartGameDayReply>, Status> {
        let admitted = Admitted::of(&request)?;
        self.must_lead_or_hint().await?;
        let asked = request.get_ref().clone();
        admitted.in_namespace(&asked.namespace)?;
        let (namespace, name, parameters, seed) = (asked.namespace.clone(), asked.scenario.clone(), asked.parameters.clone(), asked.seed);
        let planned = self
            .node
            .query(move |state, _| {
                let Some(scenario) = state.resources.get(&resource_key("Scenario", &namespace, &name)) else {
                    return Err(format!("no Scenario {name:?} in namespace {namespace:?}"));
                };
                let probers: Vec<&ProberRecord> = state.probers.iter().collect();
                let plan = probity_scenario::plan(scenario, &parameters, &probers, seed)
                    .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
                let json = view::plan(state, &plan).to_string();
                Ok((plan, json))
            })
            .await
            .map_err(status)?;
        let (plan, plan_json) = planned.map_err(Status::failed_precondition)?;
        if asked.dry_run {
            return Ok(Response::new(StartGameDayReply { name: String::new(), plan_json }));
        }
        let op = Op::StartGameDay(StartGameDay { plan: Some(plan), trace_id: probity_otel::new_trace_id() });
        let applied = self.node.propose(Self::command(&admitted, &asked.request_id, op)).await.map_err(status)?;
        Ok(Response::new(StartGameDayReply { name: applied.name, plan_json }))
    }

    async fn abort_game_day(&self, request: Request<AbortGameDayRequest>) -> Result<Response<AbortGameDayReply>, Status> {
        let admitted = Admitted::of(&request)?;
        self.must_lead_or_hint().await?;
        let asked = request.get_ref().clone();
        admitted.in_namespace(&asked.namespace)?;
        let op = Op::AbortGameDay(AbortGameDay { namespace: asked.namespace, name: asked.name, reason: asked.reason });
        self.node.propose(Self::command(&admitted, &asked.request_id, op)).await.map_err(status)?;
        Ok(Response::new(AbortGameDayReply {}))
    }

    async fn halt(&self, request: Request<HaltRequest>) -> Result<Response<HaltReply>, Status> {
        self.take_halt(request).await.map(Response::new)
    }

    async fn lift_halt(&self, request: Request<LiftHaltRequest>) -> Result<Response<LiftHaltReply>, Status> {
        let admitted = Admitted::of(&request)?;
        self.must_lead_or_hint().await?;
        let request_id = request.get_ref().request_id.clone();
        let newest = self.node.shared.halt_latch.newest();
        self.node.propose(Self::command(&admitted, &request_id, Op::LiftHalt(LiftHalt {}))).await.map_err(status)?;
        // Not before: what was not lifted holds.
        self.node.lift_halts(newest);
        Ok(Response::new(LiftHaltReply {}))
    }

    async fn init_cluster(&self, request: Request<InitClusterRequest>) -> Result<Response<InitClusterReply>, Status> {
        let admitted = Admitted::of(&request)?;
        if let Some(text) = self.node.stranger() {
            return Err(Status::failed_precondition(text));
        }
        self.form_cluster(&admitted).await.map(Response::new)
    }

    async fn join_member(&self, request: Request<JoinMemberRequest>) -> Result<Response<MembershipReply>, Status> {
        self.add(request).await.map(Response::new)
    }

    async fn remove_member(&self, request: Request<RemoveMemberRequest>) -> Result<Response<MembershipReply>, Status> {
        self.remove(request).await.map(Response::new)
    }

    type BackupStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<BackupPart, Status>> + Send>>;

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        self.back_up(request).await.map(|stream| Response::new(Box::pin(stream) as Self::BackupStream))
    }

    async fn accept_targets(&self, request: Request<AcceptTargetsRequest>) -> Result<Response<AcceptTargetsReply>, Status> {
        let admitted = Admitted::of(&request)?;
        self.must_lead_or_hint().await?;
        let asked = request.get_ref().clone();
        admitted.in_namespace(&asked.namespace)?;
        let op = Op::AcceptTargets(AcceptTargets { namespace: asked.namespace, probe: asked.probe, revision: asked.revision });
        self.node.propose(Self::command(&admitted, &asked.request_id, op)).await.map_err(status)?;
        Ok(Response::new(AcceptTargetsReply {}))
    }

    async fn remove_prober(&self, request: Request<RemoveProberRequest>) -> Result<Response<RemoveProberReply>, Status> {
        let admitted = Admitted::of(&request)?;
        self.must_lead_or_hint().await?;
        let asked = request.into_inner();
        let op = Op::RemoveProber(RemoveProber { name: asked.name });
        self.node.propose(Self::command(&admitted, &asked.request_id, op)).await.map_err(status)?;
        Ok(Response::new(RemoveProberReply {}))
    }

    async fn transfer_leader(&self, request: Request<TransferLeaderRequest>) -> Result<Response<TransferLeaderReply>, Status> {
        self.transfer(request).await.map(Response::new)
    }
}

impl OperatorService {
    async fn reading(&self, path: &str, scope: &view::Scope) -> Result<view::Answer, Status> {
        view::answer(&self.node, path, scope).await.map_err(status)?.map_err(|e| match e.code {
            "not_found" => Status::not_found(e.message),
            "forbidden" => Status::permission_denied(e.message),
            _ => Status::invalid_argument(e.message),
        })
    }

    /// Forms the group of initialMembers: every one must be there, and belong to nobody else.
    pub(crate) async fn form_cluster(&self, admitted: &Admitted) -> Result<InitClusterReply, Status> {
        let mut members = BTreeMap::new();
        members.insert(self.own.id, self.own.clone());
        let mut problems = Vec::new();
        let own_cluster = self.node.query(|_, live| live.status.identity.cluster_id.clone()).await.map_err(status)?;
        for (name, address) in self.config.initial_members.iter().filter(|(name, _)| **name != self.config.name) {
            match identify(address, self.config.tls.as_ref(), Some(&self.own)).await {
                Ok(reply) if reply.name != *name => problems.push(format!("{address} is member {:?}, not {name:?}", reply.name)),
                Ok(reply) if reply.initialized && reply.cluster_id != own_cluster => {
                    problems.push(format!("{name} belongs to cluster {} already", reply.cluster_id))
                }
                Ok(reply) => {
                    let record = MemberRecord {
                        id: reply.id,
                        name: reply.name,
                        address: address.clone(),
                        http_address: reply.http_address,
                        software_version: reply.software_version,
                        max_command_version: reply.max_command_version,
                        ..MemberRecord::default()
                    };
                    members.insert(reply.id, record);
                }
                Err(e) => problems.push(format!("{name}: {e}")),
            }
        }
        if !problems.is_empty() {
            return Err(Status::failed_precondition(format!("cannot form the cluster: {}", problems.join("; "))));
        }
        let already = self.node.query(|state, _| state.meta().cluster_id.clone()).await.map_err(status)?;
        if !already.is_empty() {
            return Err(Status::already_exists(format!("already initialised as cluster {already}")));
        }
        let cluster_id = if own_cluster.is_empty() { format!("{:016x}", rand::random::<u64>()) } else { own_cluster };
        let members: Vec<MemberRecord> = members.into_values().collect();
        start::form_group(&self.node, &self.peers, self.config.tls.as_ref(), &self.own, &cluster_id, &members).await?;
        let version = members.iter().map(|m| m.max_command_version).min().unwrap_or(COMMAND_VERSION);
        let op = Op::InitCluster(InitCluster { cluster_id: cluster_id.clone(), cluster_name: self.config.cluster.clone(), version, members: members.clone() });
        start::propose_patiently(&self.node, Self::command(admitted, "", op)).await.map_err(status)?;
        Ok(InitClusterReply { cluster_id, members })
    }
}
