//! The handle on a member: propose, look, wait. Everything goes through one bounded channel to the owner of the replica; what other members say has
//! one of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use probity_core::State;
use probity_core::desired::Touched;
use probity_proto::v1::*;
use probity_replica::{Backup, Draft, Fatal, FormError, Input, Status};
use probity_rpc::refusal::Refusal;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::clock::ClusterClock;
use crate::fleet::FleetMemory;
use crate::halt::HaltLatch;

/// Requests that wait for the replica's owner; more wait at their callers.
pub(crate) const REQUESTS: usize = 1_024;
/// The same of what other members say, which waits behind no request: a heartbeat that is answered late is an election.
pub(crate) const MESSAGES: usize = 256;
/// How long a proposal may take until its outcome is called unknown.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of rows that are under way: raft would take eight times as many, and what it does not take is proposed in vain, again and again.
pub(crate) const REPORTED_BYTES: u32 = 8 << 20;
/// What raft would not take is proposed again after this.
const BUSY_RETRY: Duration = Duration::from_millis(200);
/// How long one try of a linearizable read may take: raft drops them silently during elections.
const READ_TRY: Duration = Duration::from_millis(500);

/// Why a proposal has no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// Somebody else leads, nobody does, or the outcome is unknown.
    #[error(transparent)]
    Refusal(#[from] Refusal),
    /// Apply answered no.
    #[error("{}", .0.message)]
    Refused(Refused),
    /// The node is stopping.
    #[error("the coordinator is stopping")]
    Stopping,
}

/// What a look at the state comes with.
#[derive(Debug)]
pub struct Live<'a> {
    /// The member's view of the group.
    pub status: &'a Status,
    /// Cluster time now.
    pub now_us: i64,
    /// What is shown was all that was committed this long ago, or later.
    pub age_us: u64,
    /// What keeps other members from taking part, in the leader's memory.
    pub conditions: &'a BTreeMap<u64, String>,
    /// What probers said last, in the leader's memory.
    pub fleet: &'a BTreeMap<String, crate::fleet::Heard>,
    /// Broken rules of the design that were seen in the state, of the last look at all of it.
    pub violations: usize,
}

pub(crate) type Query = Box<dyn FnOnce(&State, &Live<'_>) + Send>;
/// Who waits for the outcome of a proposal.
pub(crate) type Outcome = oneshot::Sender<Result<CommandResult, ProposeError>>;
/// Looks at the state, and says what to propose, if anything.
pub(crate) type Judgement = Box<dyn FnOnce(&State) -> Option<Command> + Send>;

pub(crate) enum Request {
    Propose(Draft, Outcome),
    Judge(Judgement, Outcome),
    Read(oneshot::Sender<Result<(), ProposeError>>),
    Query(Query),
    Form(String, Vec<u64>, oneshot::Sender<Result<(), FormError>>),
    Join(String, oneshot::Sender<Result<(), FormError>>),
    Configure(Box<Command>, Outcome),
    Backup(oneshot::Sender<Result<Backup, Fatal>>),
    Transfer(u64, Outcome),
    Campaign,
}

/// Who leads, as this member knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leadership {
    /// This member leads, and its LeaderStarted is applied: it may act.
    pub leading: bool,
    /// The term.
    pub term: u64,
    /// The leader's id.
    pub leader: Option<u64>,
}

/// What is shared beside the channel.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) clock: ClusterClock,
    pub(crate) fleet: FleetMemory,
    /// Halts that are not committed yet.
    pub(crate) halt_latch: HaltLatch,
    /// Room for [`REPORTED_BYTES`].
    pub(crate) reported: Semaphore,
    /// Why this member has no place in the cluster that it was started for.
    pub(crate) stranger: Mutex<Option<String>>,
    /// What keeps other members from taking part, as the leader found out.
    pub(crate) conditions: Mutex<BTreeMap<u64, String>>,
}

/// The handle.
#[derive(Debug, Clone)]
pub struct Node {
    pub(crate) requests: mpsc::Sender<Request>,
    /// Of other members, and of the ways to them.
    pub(crate) messages: mpsc::Sender<Input>,
    pub(crate) applied: watch::Receiver<u64>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) shared: Arc<Shared>,
}

impl Node {
    /// Proposes a command, and waits until it is committed and applied here. Safe to repeat with the same request id.
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        let draft = Draft::of(command);
        self.outcome(|tx| Request::Propose(draft, tx)).await
    }

    /// The same for a change of members.
    pub(crate) async fn configure(&self, command: Command) -> Result<Applied, ProposeError> {
        self.outcome(|tx| Request::Configure(Box::new(command), tx)).await
    }

    /// Begins to hand leadership to another voter.
    pub(crate) async fn transfer(&self, to: u64) -> Result<Applied, ProposeError> {
        self.outcome(|tx| Request::Transfer(to, tx)).await
    }

    /// The same for what a stream waits for: however long it takes while this member leads, since a proposal is lost only with leadership. Giving up
    /// earlier would bring it a second time, and more of them the slower everything is.
    pub(crate) async fn propose_while_leading(&self, command: Command) -> Result<Applied, ProposeError> {
        self.while_leading(Draft::of(command), None).await
    }

    /// The same for rows, of which a few megabytes are under way at a time; the rest waits here, in its order, and the prober with it. What is small and
    /// has a time to be heard in (hellos, faults) waits behind none of them.
    pub(crate) async fn report(&self, rows: AcceptRows) -> Result<Applied, ProposeError> {
        let draft = Draft::of(Node::command(command::Op::AcceptRows(rows)));
        let bytes = u32::try_from(draft.bytes()).unwrap_or(u32::MAX).clamp(1, REPORTED_BYTES);
        self.while_leading(draft, Some(bytes)).await
    }

    async fn while_leading(&self, draft: Draft, room: Option<u32>) -> Result<Applied, ProposeError> {
        let mut leadership = self.leadership();
        let term = leadership.borrow().term;
        let committed = async {
            let _room = match room {
                Some(bytes) => Some(self.shared.reported.acquire_many(bytes).await.map_err(|_| ProposeError::Stopping)?),
                None => None,
            };
            loop {
                match self.answer(|tx| Request::Propose(draft.clone(), tx)).await {
                    // Leadership is being handed over: nothing was proposed.
                    Err(ProposeError::Refusal(Refusal::NoQuorum)) => tokio::time::sleep(BUSY_RETRY).await,
                    answer => return answer,
                }
            }
        };
        tokio::select! {
            answer = committed => answer,
            _ = leadership.wait_for(|l| !l.leading || l.term != term) => Err(Refusal::Unknown.into()),
        }
    }

    async fn outcome(&self, request: impl FnOnce(Outcome) -> Request) -> Result<Applied, ProposeError> {
        tokio::time::timeout(PROPOSE_TIMEOUT, self.answer(request)).await.unwrap_or(Err(Refusal::Unknown.into()))
    }

    async fn answer(&self, request: impl FnOnce(Outcome) -> Request) -> Result<Applied, ProposeError> {
        let (tx, rx) = oneshot::channel();
        self.requests.send(request(tx)).await.map_err(|_| ProposeError::Stopping)?;
        applied(rx.await.map_err(|_| ProposeError::Stopping)?)
    }

    /// Proposes what a look at the leader's state decides, if anything, in one visit to the replica: what the look found, and what was applied. Who
    /// does not lead any more does not look.
    pub(crate) async fn judge<T: Send + 'static>(
        &self,
        look: impl FnOnce(&State) -> (T, Option<Command>) + Send + 'static,
    ) -> Result<(T, Option<Applied>), ProposeError> {
        let (found_tx, found) = oneshot::channel();
        let judgement: Judgement = Box::new(move |state| {
            let (found, command) = look(state);
            let _ = found_tx.send((found, command.is_some()));
            command
        });
        let done = async {
            let (tx, rx) = oneshot::channel();
            self.requests.send(Request::Judge(judgement, tx)).await.map_err(|_| ProposeError::Stopping)?;
            match (rx.await, found.await) {
                (Ok(outcome), found) => {
                    let applied = applied(outcome)?;
                    found.map(|(found, _)| (found, Some(applied))).map_err(|_| ProposeError::Stopping)
                }
                // Nothing was proposed, so there is no outcome.
                (Err(_), Ok((found, false))) => Ok((found, None)),
                (Err(_), _) => Err(ProposeError::Stopping),
            }
        };
        tokio::time::timeout(PROPOSE_TIMEOUT, done).await.unwrap_or(Err(Refusal::Unknown.into()))
    }

    /// A command with nothing but its operation; the driver stamps version and time.
    pub fn command(op: command::Op) -> Command {
        Command { op: Some(op), ..Command::default() }
    }

    /// Looks at the state where it lives.
    pub async fn query<T: Send + 'static>(&self, look: impl FnOnce(&State, &Live<'_>) -> T + Send + 'static) -> Result<T, ProposeError> {
        let (tx, rx) = oneshot::channel();
        let query: Query = Box::new(move |state, live| {
            let _ = tx.send(look(state, live));
        });
        self.requests.send(Request::Query(query)).await.map_err(|_| ProposeError::Stopping)?;
        rx.await.map_err(|_| ProposeError::Stopping)
    }

    /// Waits until this member's state holds everything that was committed before (ReadIndex).
    pub async fn read_index(&self) -> Result<(), ProposeError> {
        let mut last = ProposeError::Refusal(Refusal::NoQuorum);
        for _ in 0..4 {
            let (tx, rx) = oneshot::channel();
            self.requests.send(Request::Read(tx)).await.map_err(|_| ProposeError::Stopping)?;
            match tokio::time::timeout(READ_TRY, rx).await {
                Ok(Ok(Ok(()))) => return Ok(()),
                Ok(Ok(Err(e))) => {
                    last = e;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                _ => {}
            }
        }
        Err(last)
    }

    /// The applied index, as it grows.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    /// Who leads, as it changes.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Cluster time now.
    pub fn now_us(&self) -> i64 {
        self.shared.clock.now_us()
    }

    /// Whether every fault is to end: committed, or latched until it can be.
    pub(crate) fn halt_latched(&self) -> bool {
        self.shared.halt_latch.is_on()
    }

    /// Latches a halt, until it is settled or all are lifted.
    pub(crate) fn take_halt(&self, request_id: &str) -> (u64, bool) {
        let taken = self.shared.halt_latch.take(request_id);
        self.shared.fleet.wake(&Touched::Everybody);
        taken
    }

    pub(crate) fn settle_halt(&self, id: u64) {
        self.shared.halt_latch.settle(id);
        self.shared.fleet.wake(&Touched::Everybody);
    }

    pub(crate) fn lift_halts(&self, up_to: u64) {
        self.shared.halt_latch.lift(up_to);
        self.shared.fleet.wake(&Touched::Everybody);
    }

    pub(crate) async fn form(&self, cluster_id: String, voters: Vec<u64>) -> Result<Result<(), FormError>, ProposeError> {
        let (tx, rx) = oneshot::channel();
        self.requests.send(Request::Form(cluster_id, voters, tx)).await.map_err(|_| ProposeError::Stopping)?;
        rx.await.map_err(|_| ProposeError::Stopping)
    }

    pub(crate) async fn join(&self, cluster_id: String) -> Result<Result<(), FormError>, ProposeError> {
        let (tx, rx) = oneshot::channel();
        self.requests.send(Request::Join(cluster_id, tx)).await.map_err(|_| ProposeError::Stopping)?;
        rx.await.map_err(|_| ProposeError::Stopping)
    }

    /// Everything that is applied here, to be read at leisure.
    pub(crate) async fn backup(&self) -> Result<Result<Backup, Fatal>, ProposeError> {
        let (tx, rx) = oneshot::channel();
        self.requests.send(Request::Backup(tx)).await.map_err(|_| ProposeError::Stopping)?;
        rx.await.map_err(|_| ProposeError::Stopping)
    }

    /// Why this member has no place in its cluster, if so.
    pub(crate) fn stranger(&self) -> Option<String> {
        self.shared.stranger.lock().ok().and_then(|text| text.clone())
    }

    pub(crate) fn set_stranger(&self, text: Option<String>) {
        if let Ok(mut stranger) = self.shared.stranger.lock() {
            *stranger = text;
        }
    }
}

fn applied(outcome: Result<CommandResult, ProposeError>) -> Result<Applied, ProposeError> {
    match outcome?.result {
        Some(command_result::Result::Applied(applied)) => Ok(applied),
        Some(command_result::Result::Refused(refused)) if refused.code() == RefusalCode::NotInitialized => Err(Refusal::NotInitialized.into()),
        Some(command_result::Result::Refused(refused)) => Err(ProposeError::Refused(refused)),
        None => Err(Refusal::Unknown.into()),
    }
}
