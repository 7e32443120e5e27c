//! A coordinator that commits nothing: it says what to probe, takes every row, acknowledges it at once, and counts.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use probity_proto::v1::coordinator_message::Message as ToProber;
use probity_proto::v1::prober_message::Message as FromProber;
use probity_proto::v1::*;
use probity_rpc::MESSAGE_BYTES_MAX;
use probity_rpc::v1::fleet_server::{Fleet, FleetServer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Assignments in one message.
const PER_MESSAGE: usize = 10_000;

/// Unix time.
pub(crate) fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as i64
}

/// What the rows said.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// How late the sampled runs started.
    pub(crate) lags_us: Vec<f64>,
    pub(crate) rows: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Sink {
    pub(crate) seen: Arc<Mutex<Seen>>,
    desired: Arc<watch::Sender<(u64, Vec<AssignmentSpec>)>>,
    flush_us: u64,
}

impl Sink {
    /// Serves on a port of its own; `flush_us`: how long rows are gathered.
    pub(crate) async fn start(flush_us: u64) -> std::io::Result<(Sink, u16)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let sink = Sink { seen: Arc::default(), desired: Arc::new(watch::channel((1, Vec::new())).0), flush_us };
        let service = FleetServer::new(sink.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        Ok((sink, port))
    }

    /// What to probe from now on.
    pub(crate) fn want(&self, assignments: Vec<AssignmentSpec>) {
        self.desired.send_modify(|(revision, wanted)| (*revision, *wanted) = (*revision + 1_000, assignments));
    }

    /// What was seen since the last call.
    pub(crate) fn take(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn count(&self, rows: &ReportRows) -> Option<RowsAck> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for row in &rows.rows {
            seen.rows += 1;
            seen.lags_us.extend(row.details.iter().map(|d| d.lag_us as f64));
        }
        rows.rows.last().map(|last| RowsAck { spool_id: last.spool_id.clone(), sequence: last.sequence })
    }

    async fn serve(self, mut incoming: Streaming<ProberMessage>, tx: mpsc::Sender<Result<CoordinatorMessage, Status>>) -> Option<()> {
        let mut desired = self.desired.subscribe();
        desired.mark_changed();
        let mut welcomed = false;
        loop {
            tokio::select! {
                message = incoming.message() => match message.ok()??.message? {
                    FromProber::Hello(hello) => {
                        let welcome = Welcome {
                            cluster_id: "bench".to_owned(),
                            member: "sink".to_owned(),
                            heartbeat_us: 1_000_000,
                            flush_us: self.flush_us,
                            unsteady_flush_us: 200_000,
                        };
                        say(&tx, ToProber::Welcome(welcome)).await?;
                        say(&tx, ToProber::Ack(RowsAck { spool_id: hello.spool_id, sequence: 0 })).await?;
                        welcomed = true;
                    }
                    FromProber::Heartbeat(heartbeat) => {
                        let reply = HeartbeatReply { echo_us: heartbeat.sent_us, cluster_time_us: now_us(), fence: 1, lease_us: 15_000_000, halted: false };
                        say(&tx, ToProber::Heartbeat(reply)).await?;
                    }
                    FromProber::Rows(rows) => {
                        if let Some(ack) = self.count(&rows) {
                            say(&tx, ToProber::Ack(ack)).await?;
                        }
                    }
                    FromProber::Fault(_) => {}
                },
                changed = desired.changed(), if welcomed => {
                    changed.ok()?;
                    let (revision, wanted) = desired.borrow_and_update().clone();
                    tell(&tx, revision, &wanted).await?;
                }
            }
        }
    }
}

/// A whole set, in messages of a bearable size.
async fn tell(tx: &mpsc::Sender<Result<CoordinatorMessage, Status>>, revision: u64, wanted: &[AssignmentSpec]) -> Option<()> {
    let mut base_revision = 0;
    for (i, part) in wanted.chunks(PER_MESSAGE).chain(wanted.is_empty().then_some(&[][..])).enumerate() {
        let revision = revision + i as u64;
        let set = DesiredSet {
            revision,
            fence: 1,
            base_revision,
            assignments: part.to_vec(),
            lease_us: 15_000_000,
            cluster_time_us: now_us(),
            ..DesiredSet::default()
        };
        say(tx, ToProber::Desired(set)).await?;
        base_revision = revision;
    }
    Some(())
}

async fn say(tx: &mpsc::Sender<Result<CoordinatorMessage, Status>>, message: ToProber) -> Option<()> {
    tx.send(Ok(CoordinatorMessage { message: Some(message) })).await.ok()
}

#[tonic::async_trait]
impl Fleet for Sink {
    type SessionStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn session(&self, request: Request<Streaming<ProberMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        let (tx, rx) = mpsc::channel(64);
        tokio::spawn(self.clone().serve(request.into_inner(), tx));
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}
