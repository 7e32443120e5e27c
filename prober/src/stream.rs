//! The stream to a coordinator: connect, follow the leader, connect again for ever. What goes over it the driver decides.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use probity_proto::v1::{CoordinatorMessage, ProberMessage, coordinator_message};
use probity_rpc::MESSAGE_BYTES_MAX;
use probity_rpc::client::{cause, channel};
use probity_rpc::tls::TlsFiles;
use probity_rpc::v1::fleet_client::FleetClient;
use rand::Rng;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Messages on their way out; the driver keeps what does not fit.
const OUTGOING: usize = 64;

/// How often the TLS files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A prober that no coordinator takes for so long says why: an election is over by then.
const TOLD_AFTER: Duration = Duration::from_secs(5);
/// Reasons that are told of one absence.
const TOLD_MAX: usize = 16;

/// Why nobody takes this prober, for its log: each reason once, until somebody does.
struct Doubts {
    prober: String,
    since: Instant,
    told: BTreeSet<String>,
}

impl Doubts {
    fn new(prober: String) -> Doubts {
        Doubts { prober, since: Instant::now(), told: BTreeSet::new() }
    }

    fn tell(&mut self, address: &str, why: &str) {
        let text = format!("{address}: {why}");
        if self.since.elapsed() >= TOLD_AFTER && self.told.len() < TOLD_MAX && self.told.insert(text) {
            tracing::warn!(prober = self.prober, address, why, "no coordinator takes this prober; what is assigned to it goes on");
        }
    }

    fn served(&mut self) {
        self.since = Instant::now();
        self.told.clear();
    }
}

/// What the driver learns of the stream.
#[derive(Debug)]
pub(crate) enum StreamEvent {
    /// A coordinator took the stream: this goes to it.
    Connected(mpsc::Sender<ProberMessage>),
    /// It said something.
    Message(Box<CoordinatorMessage>),
    /// It is gone; why, for the log.
    Disconnected(String),
}

/// Keeps a stream up until `stop`.
pub(crate) async fn keep(prober: String, addresses: Vec<String>, tls: Option<TlsFiles>, events: mpsc::Sender<StreamEvent>, stop: CancellationToken) {
    let mut doubts = Doubts::new(prober);
    let mut turn = 0;
    let mut hint: Option<String> = None;
    let mut failures = 0u32;
    loop {
        let address = hint.take().unwrap_or_else(|| {
            turn += 1;
            addresses[(turn - 1) % addresses.len()].clone()
        });
        let end = tokio::select! {
            () = stop.cancelled() => return,
            end = once(&address, tls.as_ref(), &events) => end,
        };
        match end {
            End::NotLeader(leader, served) => {
                if served {
                    doubts.served();
                } else if leader.is_none() {
                    doubts.tell(&address, "it does not lead, and knows nobody who does: there is no quorum");
                }
                hint = leader;
            }
            End::Gone(why, served) => {
                failures = if served { 0 } else { failures.saturating_add(1) };
                if served {
                    doubts.served()
                } else {
                    doubts.tell(&address, &why)
                }
                if events.send(StreamEvent::Disconnected(format!("{address}: {why}"))).await.is_err() {
                    return;
                }
            }
        }
        // A short pause even after a hint: during an election everybody points at somebody else.
        let most = Duration::from_millis(100) * 2u32.pow(failures.min(4));
        let pause = most.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

enum End {
    /// Who does, and whether it had worked.
    NotLeader(Option<String>, bool),
    /// Why, and whether it had worked.
    Gone(String, bool),
}

async fn once(address: &str, tls: Option<&TlsFiles>, events: &mpsc::Sender<StreamEvent>) -> End {
    let channel = match channel(address, tls) {
        Ok(channel) => channel,
        Err(e) => return End::Gone(e.to_string(), false),
    };
    let mut client = FleetClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (tx, rx) = mpsc::channel(OUTGOING);
    // The hello must be in the stream before the coordinator answers its head.
    if events.send(StreamEvent::Connected(tx)).await.is_err() {
        return End::Gone("the prober stops".to_owned(), false);
    }
    let mut incoming = match client.session(ReceiverStream::new(rx)).await {
        Ok(response) => response.into_inner(),
        Err(status) => return End::Gone(cause(&status), false),
    };
    let mut served = false;
    let stamp = tls.map(TlsFiles::stamp);
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        let message = tokio::select! {
            message = incoming.message() => message,
            _ = look.tick() => {
                // A renewed certificate is used before the old one ends: what is spooled goes over the next stream.
                if tls.map(TlsFiles::stamp) != stamp {
                    return End::Gone("the TLS files changed".to_owned(), true);
                }
                continue;
            }
        };
        match message {
            Ok(Some(CoordinatorMessage { message: Some(coordinator_message::Message::NotLeader(not)) })) => {
                let _ = events.send(StreamEvent::Disconnected(format!("{address}: it does not lead"))).await;
                return End::NotLeader(Some(not.leader_address).filter(|a| !a.is_empty()), served);
            }
            Ok(Some(message)) => {
                served = true;
                if events.send(StreamEvent::Message(Box::new(message))).await.is_err() {
                    return End::Gone("the prober stops".to_owned(), served);
                }
            }
            Ok(None) => return End::Gone("the coordinator ended the stream".to_owned(), served),
            Err(status) => return End::Gone(cause(&status), served),
        }
    }
}
