//! Streams of probers. Heartbeats live in the leader's memory; rows and fault reports become commands, acknowledged when committed.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use probity_core::desired::{Touched, desired_since, is_news};
use probity_core::gameday::LEASE_US;
use probity_proto::v1::command::Op;
use probity_proto::v1::coordinator_message::Message as ToProber;
use probity_proto::v1::prober_message::Message as FromProber;
use probity_proto::v1::*;
use probity_rpc::v1::fleet_server::Fleet;
use prost::Message as _;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::gate::Admitted;
use crate::node::{Node, ProposeError};

/// A prober's heartbeats.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);
/// Silent for this long, and its checks move.
pub(crate) const SILENT: Duration = Duration::from_secs(3);
/// Messages to one prober that wait for its stream.
const OUTGOING: usize = 64;
/// Messages of rows of one prober that wait for their commit: more wait in the prober's spool.
const ROWS_WAITING: usize = 4;

/// Hellos of one command.
const JOINED_AT_ONCE: usize = 64;
/// No hello is added to so many bytes of them.
const JOINED_BYTES: usize = 64 << 10;

/// What a prober said last.
#[derive(Debug, Clone)]
pub struct Heard {
    /// When.
    pub at: Instant,
    /// Its own numbers.
    pub heartbeat: Heartbeat,
}

/// The leader's memory of the fleet.
#[derive(Debug, Default)]
pub(crate) struct FleetMemory {
    heard: Mutex<BTreeMap<String, Heard>>,
    grace_from: Mutex<Option<Instant>>,
    /// Who tells a prober of its desired set: one per stream, so bounded by the streams.
    listeners: Mutex<BTreeMap<String, Vec<Arc<Notify>>>>,
}

/// Woken when the desired set of its prober may have changed.
#[derive(Debug)]
pub(crate) struct Listener<'a> {
    memory: &'a FleetMemory,
    prober: String,
    notify: Arc<Notify>,
}

impl Listener<'_> {
    async fn notified(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        if let Ok(mut listeners) = self.memory.listeners.lock()
            && let Some(of_prober) = listeners.get_mut(&self.prober)
        {
            of_prober.retain(|n| !Arc::ptr_eq(n, &self.notify));
            if of_prober.is_empty() {
                listeners.remove(&self.prober);
            }
        }
    }
}

impl FleetMemory {
    pub(crate) fn heard(&self, prober: &str, heartbeat: Heartbeat) {
        if let Ok(mut heard) = self.heard.lock() {
            heard.insert(prober.to_owned(), Heard { at: Instant::now(), heartbeat });
        }
    }

    /// A prober cannot be heard for a reason that is not its own.
    fn still_there(&self, prober: &str) {
        if let Some(heard) = self.lock().get_mut(prober) {
            heard.at = Instant::now();
        }
    }

    /// A new leader gives everybody time to find it.
    pub(crate) fn start_grace(&self) {
        if let (Ok(mut grace), Ok(mut heard)) = (self.grace_from.lock(), self.heard.lock()) {
            *grace = Some(Instant::now());
            heard.clear();
        }
    }

    /// How long a prober has been silent, as far as this leader can know.
    pub(crate) fn silent_for(&self, prober: &str) -> Duration {
        let heard = self.heard.lock().ok().and_then(|h| h.get(prober).map(|h| h.at));
        let grace = self.grace_from.lock().ok().and_then(|g| *g);
        heard.into_iter().chain(grace).max().map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// Wakes with each change that concerns a prober; what changed before is for its first look.
    fn listen(&self, prober: &str) -> Listener<'_> {
        let notify = Arc::new(Notify::new());
        if let Ok(mut listeners) = self.listeners.lock() {
            listeners.entry(prober.to_owned()).or_default().push(notify.clone());
        }
        Listener { memory: self, prober: prober.to_owned(), notify }
    }

    /// The desired sets of these probers changed.
    pub(crate) fn wake(&self, touched: &Touched) {
        let Ok(listeners) = self.listeners.lock() else { return };
        match touched {
            Touched::Everybody => listeners.values().flatten().for_each(|n| n.notify_one()),
            Touched::These(probers) => probers.iter().filter_map(|p| listeners.get(p)).flatten().for_each(|n| n.notify_one()),
        }
    }

    /// What everybody said last. Whoever holds this must not ask anything else of this memory.
    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct FleetService {
    pub(crate) node: Node,
    pub(crate) member: String,
    pub(crate) flush: Duration,
    pub(crate) trace_ppm: u32,
    pub(crate) joins: Joins,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

/// A hello, and who waits for its commit.
type Joining = (ProberHello, oneshot::Sender<Result<(), ProposeError>>);

/// Gathers hellos: those that come while one command is committed go together in the next. A site that comes back is many probers at once, and
/// each of their commands would compare every check with one of them.
#[derive(Debug, Clone)]
pub(crate) struct Joins(mpsc::Sender<Joining>);

impl Joins {
    pub(crate) fn gather(node: Node, tasks: &TaskTracker, stop: CancellationToken) -> Joins {
        let (tx, mut waiting) = mpsc::channel::<Joining>(JOINED_AT_ONCE);
        tasks.spawn(async move {
            loop {
                let first = tokio::select! {
                    () = stop.cancelled() => return,
                    first = waiting.recv() => first,
                };
                let (mut joined, mut callers, mut bytes, mut next) = (Vec::new(), Vec::new(), 0, first);
                while let Some((hello, caller)) = next {
                    bytes += hello.encoded_len();
                    joined.push(ProberJoined { hello: Some(hello) });
                    callers.push(caller);
                    let room = joined.len() < JOINED_AT_ONCE && bytes < JOINED_BYTES;
                    next = if room { waiting.try_recv().ok() } else { None };
                }
                if joined.is_empty() {
                    return;
                }
                let op = Op::FleetChange(FleetChange { joined, ..FleetChange::default() });
                let committed = tokio::select! {
                    () = stop.cancelled() => return,
                    answer = node.propose_while_leading(Node::command(op)) => answer.map(|_| ()),
                };
                for caller in callers {
                    let _ = caller.send(committed.clone());
                }
            }
        });
        Joins(tx)
    }

    async fn join(&self, hello: ProberHello) -> Result<(), ProposeError> {
        let (tx, rx) = oneshot::channel();
        self.0.send((hello, tx)).await.map_err(|_| ProposeError::Stopping)?;
        rx.await.map_err(|_| ProposeError::Stopping)?
    }
}

type Outgoing = mpsc::Sender<Result<CoordinatorMessage, Status>>;

fn message(message: ToProber) -> Result<CoordinatorMessage, Status> {
    Ok(CoordinatorMessage { message: Some(message) })
}

#[tonic::async_trait]
impl Fleet for FleetService {
    type SessionStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn session(&self, request: Request<Streaming<ProberMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        let admitted = Admitted::of(&request)?;
        let incoming = request.into_inner();
        let (tx, rx) = mpsc::channel(OUTGOING);
        let service = self.clone();
        self.tasks.spawn(async move {
            let stop = service.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = async {
                    if let Err(status) = service.serve(incoming, &tx, &admitted).await {
                        let _ = tx.send(Err(status)).await;
                    }
                } => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

impl FleetService {
    async fn serve(&self, mut incoming: Streaming<ProberMessage>, tx: &Outgoing, admitted: &Admitted) -> Result<(), Status> {
        let Some(ProberMessage { message: Some(FromProber::Hello(hello)) }) = incoming.message().await? else {
            return Err(Status::invalid_argument("a prober says hello first"));
        };
        if !admitted.is(&hello.name) {
            let message = format!("the certificate is of prober {:?}, not of prober {:?}", admitted.caller.name, hello.name);
            return Err(Status::permission_denied(message));
        }
        if hello.name.is_empty() || hello.name.len() > 253 {
            return Err(Status::invalid_argument("a prober's name has 1 to 253 characters"));
        }
        if !self.node.leadership.borrow().leading {
            self.not_leader(tx).await;
            return Ok(());
        }
        let prober = hello.name.clone();
        let spool_id = hello.spool_id.clone();
        let (follows, of_cluster) = (hello.desired_revision, hello.cluster_id.clone());
        self.node.shared.fleet.heard(&prober, Heartbeat::default());
        match self.present(&prober, self.joins.join(hello)).await {
            // It may have waited for long, and could not be heard.
            Ok(()) => self.node.shared.fleet.still_there(&prober),
            Err(ProposeError::Refusal(_)) => {
                self.not_leader(tx).await;
                return Ok(());
            }
            Err(e) => return Err(Status::unavailable(e.to_string())),
        }
        tracing::info!(prober, "prober connected");
        let cluster_id = self.node.query(|state, _| state.meta().cluster_id.clone()).await.map_err(|e| Status::unavailable(e.to_string()))?;
        let follows = if of_cluster == cluster_id { follows } else { 0 };
        let welcome = Welcome {
            cluster_id,
            member: self.member.clone(),
            heartbeat_us: HEARTBEAT.as_micros() as u64,
            flush_us: self.flush.as_micros() as u64,
            unsteady_flush_us: 200_000,
        };
        let _ = tx.send(message(ToProber::Welcome(welcome))).await;
        let _ = tx.send(message(ToProber::Ack(self.ack(&prober, &spool_id).await?))).await;
        let (rows_tx, rows_rx) = mpsc::channel(ROWS_WAITING);
        tokio::select! {
            end = self.listen(&mut incoming, tx, &prober, rows_tx) => end,
            end = self.commit_rows(rows_rx, tx, &prober, &spool_id) => end,
            end = self.tell_desired(tx, &prober, follows) => end,
        }
    }

    async fn not_leader(&self, tx: &Outgoing) {
        let leader_address = self
            .node
            .query(|state, live| live.status.leader.and_then(|id| state.members.get(&probity_core::number_key(id))).map(|m| m.address.clone()))
            .await
            .ok()
            .flatten()
            .unwrap_or_default();
        let _ = tx.send(message(ToProber::NotLeader(NotLeader { leader_address }))).await;
    }

    /// Everything of this spool that is committed.
    async fn ack(&self, prober: &str, spool_id: &str) -> Result<RowsAck, Status> {
        let (prober, spool_id) = (prober.to_owned(), spool_id.to_owned());
        self.node
            .query(move |state, _| {
                let known = state.probers.get(&prober).filter(|p| p.spool_id == spool_id);
                RowsAck { sequence: known.map_or(0, |p| p.last_sequence), spool_id }
            })
            .await
            .map_err(|e| Status::unavailable(e.to_string()))
    }

    async fn listen(&self, incoming: &mut Streaming<ProberMessage>, tx: &Outgoing, prober: &str, rows: mpsc::Sender<FromProber>) -> Result<(), Status> {
        while let Some(next) = incoming.message().await? {
            match next.message {
                Some(FromProber::Heartbeat(heartbeat)) => {
                    let sent_us = heartbeat.sent_us;
                    self.node.shared.fleet.heard(prober, heartbeat);
                    let name = prober.to_owned();
                    let look = move |state: &probity_core::State, _: &crate::node::Live<'_>| {
                        let given_up = state.probers.get(&name).is_none_or(|p| !p.alive);
                        (state.meta().fence, state.meta().halt.is_some(), given_up)
                    };
                    let (fence, committed, given_up) = self.node.query(look).await.map_err(|e| Status::unavailable(e.to_string()))?;
                    // Only a leader renews leases.
                    if !self.node.leadership.borrow().leading {
                        self.not_leader(tx).await;
                        return Ok(());
                    }
                    // It was silent for too long and is heard again on the stream that it always had: a new hello brings it back.
                    if given_up {
                        return Err(Status::unavailable("given up while it was silent: say hello again"));
                    }
                    let reply = HeartbeatReply {
                        echo_us: sent_us,
                        cluster_time_us: self.node.now_us(),
                        fence,
                        lease_us: LEASE_US as u64,
                        halted: committed || self.node.halt_latched(),
                    };
                    let _ = tx.send(message(ToProber::Heartbeat(reply))).await;
                }
                // A full queue waits here, and so does the prober: its spool is the buffer.
                Some(other @ (FromProber::Rows(_) | FromProber::Fault(_))) => {
                    if self.present(prober, rows.send(other)).await.is_err() {
                        return Ok(());
                    }
                }
                _ => return Err(Status::invalid_argument("a message that has no place here")),
            }
        }
        Ok(())
    }

    /// Waits for what a prober has to wait for here. Its heartbeats wait behind that: it is no silence of its own.
    async fn present<T>(&self, prober: &str, waited_for: impl Future<Output = T>) -> T {
        let mut waited_for = std::pin::pin!(waited_for);
        loop {
            tokio::select! {
                done = &mut waited_for => return done,
                () = tokio::time::sleep(HEARTBEAT) => self.node.shared.fleet.still_there(prober),
            }
        }
    }

    /// Commits what the prober reports, in its order, and acknowledges what is committed.
    async fn commit_rows(&self, mut reports: mpsc::Receiver<FromProber>, tx: &Outgoing, prober: &str, spool_id: &str) -> Result<(), Status> {
        while let Some(report) = reports.recv().await {
            let (committed, ack) = match report {
                FromProber::Rows(rows) => {
                    // Nobody reports in another's name.
                    if rows.rows.iter().any(|r| r.prober != prober) {
                        return Err(Status::permission_denied("a row of another prober"));
                    }
                    (self.node.report(AcceptRows { rows: rows.rows }).await, None)
                }
                FromProber::Fault(report) => {
                    let ack = FaultAck { fault_id: report.fault_id.clone(), state: report.state };
                    let op = Op::FaultReports(FaultReports { reports: vec![ProberFaultReport { prober: prober.to_owned(), report: Some(report) }] });
                    (self.node.propose_while_leading(Node::command(op)).await, Some(ack))
                }
                _ => continue,
            };
            if let Err(e) = committed {
                tracing::warn!(prober, error = %e, "a report was not committed; the prober sends it again");
                self.not_leader(tx).await;
                return Ok(());
            }
            let reply = match ack {
                Some(ack) => ToProber::FaultAck(ack),
                None => ToProber::Ack(self.ack(prober, spool_id).await?),
            };
            let _ = tx.send(message(reply)).await;
        }
        Ok(())
    }

    /// Sends what changed of the desired set, from the revision that the prober follows on; the whole set where that is not known.
    async fn tell_desired(&self, tx: &Outgoing, prober: &str, follows: u64) -> Result<(), Status> {
        let woken = self.node.shared.fleet.listen(prober);
        let mut leadership = self.node.leadership();
        let (mut told, mut told_halted) = (follows, None);
        loop {
            let (name, trace_ppm, latched) = (prober.to_owned(), self.trace_ppm, self.node.halt_latched());
            let next = self
                .node
                .query(move |state, live| {
                    let halted = latched || state.meta().halt.is_some();
                    // A halt may be latched, which has no revision.
                    let news = told_halted != Some(halted) || is_news(state, &name, told);
                    news.then(|| DesiredSet { cluster_time_us: live.now_us, halted, ..desired_since(state, &name, told, trace_ppm) })
                })
                .await
                .map_err(|e| Status::unavailable(e.to_string()))?;
            if !leadership.borrow_and_update().leading {
                self.not_leader(tx).await;
                return Ok(());
            }
            if let Some(set) = next {
                (told, told_halted) = (set.revision, Some(set.halted));
                if tx.send(message(ToProber::Desired(set))).await.is_err() {
                    return Ok(());
                }
            }
            tokio::select! {
                () = woken.notified() => {}
                end = leadership.changed() => if end.is_err() { return Ok(()) },
            }
        }
    }
}
