//! Members among themselves: a bounded queue and a stream to each; what cannot be delivered is dropped, raft sends it again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use probity_core::State;
use probity_proto::v1::{MemberRecord, PeerMessage};
use probity_replica::Input;
use probity_rpc::MESSAGE_BYTES_MAX;
use probity_rpc::client::channel;
use probity_rpc::tls::TlsFiles;
use probity_rpc::v1::peer_client::PeerClient;
use probity_rpc::v1::peer_server::Peer;
use probity_rpc::v1::*;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request as Rpc, Response, Status, Streaming};

use crate::gate::Admitted;
use crate::membership;
use crate::node::{Live, Node};

/// Messages to one member that wait for its stream.
const QUEUE: usize = 4_096;
/// Messages inside its stream.
const IN_STREAM: usize = 256;

/// What is wrong with a member whose disk is full.
pub(crate) const DISK_FULL: &str = "its disk is full: it takes no part until there is room, and answers --stale reads";
/// How often the TLS files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What waits for one member, and its address.
type Queue = (mpsc::Sender<PeerMessage>, watch::Sender<String>);

/// The ways to the other members.
#[derive(Debug, Clone)]
pub(crate) struct Peers {
    queues: Arc<Mutex<BTreeMap<u64, Queue>>>,
    tls: Option<TlsFiles>,
    messages: mpsc::Sender<Input>,
    tasks: TaskTracker,
    stop: CancellationToken,
    runtime: tokio::runtime::Handle,
    own_id: u64,
}

impl Peers {
    pub(crate) fn new(own_id: u64, tls: Option<TlsFiles>, messages: mpsc::Sender<Input>, tasks: TaskTracker, stop: CancellationToken) -> Peers {
        Peers { queues: Arc::default(), tls, messages, tasks, stop, runtime: tokio::runtime::Handle::current(), own_id }
    }

    /// Where a member is reached.
    pub(crate) fn set_address(&self, id: u64, address: &str) {
        if id == self.own_id || address.is_empty() {
            return;
        }
        let Ok(mut queues) = self.queues.lock() else { return };
        if let Some((_, known)) = queues.get(&id) {
            known.send_replace(address.to_owned());
            return;
        }
        let (tx, rx) = mpsc::channel(QUEUE);
        let (address_tx, address_rx) = watch::channel(address.to_owned());
        queues.insert(id, (tx, address_tx));
        let task = deliver(id, address_rx, rx, self.tls.clone(), self.messages.clone());
        let stop = self.stop.clone();
        self.tasks.spawn_on(
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = task => {}
                }
            },
            &self.runtime,
        );
    }

    /// Queues a message; raft copes with a loss.
    pub(crate) fn send(&self, message: PeerMessage) {
        let Ok(queues) = self.queues.lock() else { return };
        if let Some((queue, _)) = queues.get(&message.to) {
            let _ = queue.try_send(message);
        }
    }
}

async fn deliver(id: u64, address: watch::Receiver<String>, mut queue: mpsc::Receiver<PeerMessage>, tls: Option<TlsFiles>, messages: mpsc::Sender<Input>) {
    loop {
        // Who is never spoken to (a member that was removed) is not dialled either.
        let Some(first) = queue.recv().await else { return };
        let to = address.borrow().clone();
        if let Ok(channel) = channel(&to, tls.as_ref()) {
            let mut client = PeerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX);
            let (tx, rx) = mpsc::channel(IN_STREAM);
            let _ = tx.try_send(first);
            let call = client.deliver(ReceiverStream::new(rx));
            tokio::pin!(call);
            let stamp = tls.as_ref().map(TlsFiles::stamp);
            let mut look = tokio::time::interval(LOOK_EVERY);
            loop {
                tokio::select! {
                    _ = &mut call => break,
                    // A renewed certificate is used before the old one ends.
                    _ = look.tick() => if tls.as_ref().map(TlsFiles::stamp) != stamp { break },
                    message = queue.recv() => match message {
                        Some(message) => {
                            tokio::select! {
                                _ = &mut call => break,
                                sent = tx.send(message) => if sent.is_err() { break },
                            }
                        }
                        None => return,
                    },
                }
            }
        }
        let _ = messages.try_send(Input::Unreachable(id));
        // What waited is old by now.
        while queue.try_recv().is_ok() {}
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The service for other members.
#[derive(Debug, Clone)]
pub(crate) struct PeerService {
    pub(crate) node: Node,
    pub(crate) peers: Peers,
    pub(crate) own: MemberRecord,
    pub(crate) cluster_name: String,
}

impl PeerService {
    /// Whether what comes is of the member whose certificate was shown, as far as this one knows the group.
    async fn is_from(&self, admitted: &Admitted, id: u64) -> Result<(), Status> {
        let known = self.node.query(move |state, _| state.members.get(&probity_core::number_key(id)).map(|m| m.name.clone())).await;
        match known.map_err(|e| Status::unavailable(e.to_string()))? {
            Some(name) if !admitted.is(&name) => {
                Err(Status::permission_denied(format!("the certificate is of coordinator {:?}, what comes with it is of {name:?}", admitted.caller.name)))
            }
            _ => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn deliver(&self, request: Rpc<Streaming<PeerMessage>>) -> Result<Response<DeliverReply>, Status> {
        let admitted = Admitted::of(&request)?;
        let mut stream = request.into_inner();
        let mut from = None;
        while let Some(message) = stream.message().await? {
            if from != Some(message.from) {
                self.is_from(&admitted, message.from).await?;
                from = Some(message.from);
            }
            // Back-pressure: the sender's queue fills, and drops.
            if self.node.messages.send(Input::Peer(message)).await.is_err() {
                break;
            }
        }
        Ok(Response::new(DeliverReply {}))
    }

    async fn identify(&self, request: Rpc<IdentifyRequest>) -> Result<Response<IdentifyReply>, Status> {
        let asker = request.into_inner();
        let look = move |state: &State, live: &Live<'_>| {
            let holder = probity_core::members::by_name(state, &asker.name).filter(|m| asker.id != 0 && m.id != asker.id).cloned();
            let condition = if live.status.disk_full { DISK_FULL } else { "" };
            (live.status.identity.cluster_id.clone(), live.status.voters.is_empty(), holder, condition.to_owned())
        };
        let (cluster_id, no_voters, holder_of_name, condition) = self.node.query(look).await.map_err(|e| Status::unavailable(e.to_string()))?;
        Ok(Response::new(IdentifyReply {
            id: self.own.id,
            name: self.own.name.clone(),
            initialized: !cluster_id.is_empty(),
            joining: !cluster_id.is_empty() && no_voters,
            cluster_id,
            cluster_name: self.cluster_name.clone(),
            holder_of_name,
            condition,
            address: self.own.address.clone(),
            http_address: self.own.http_address.clone(),
            max_command_version: self.own.max_command_version,
            software_version: self.own.software_version.clone(),
        }))
    }

    async fn form(&self, request: Rpc<FormRequest>) -> Result<Response<FormReply>, Status> {
        let request = request.into_inner();
        let voters = request.members.iter().map(|m| m.id).collect();
        self.node
            .form(request.cluster_id, voters)
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?
            .map_err(|e| Status::failed_precondition(e.to_string()))?;
        for member in &request.members {
            self.peers.set_address(member.id, &member.address);
        }
        Ok(Response::new(FormReply {}))
    }

    async fn join(&self, request: Rpc<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let request = request.into_inner();
        if request.id != self.own.id {
            return Err(Status::failed_precondition(format!("{:x} is meant, and this is {:x}: its data directory is another one", request.id, self.own.id)));
        }
        let can = self.own.max_command_version;
        if request.version > can {
            let text = format!("the cluster runs command version {}, this build understands {can}: upgrade it first", request.version);
            return Err(Status::failed_precondition(text));
        }
        self.node.join(request.cluster_id).await.map_err(|e| Status::unavailable(e.to_string()))?.map_err(|e| Status::failed_precondition(e.to_string()))?;
        self.node.set_stranger(None);
        for member in &request.members {
            self.peers.set_address(member.id, &member.address);
        }
        Ok(Response::new(JoinReply {}))
    }

    async fn announce(&self, request: Rpc<AnnounceRequest>) -> Result<Response<AnnounceReply>, Status> {
        let admitted = Admitted::of(&request)?;
        let Some(member) = request.into_inner().member else { return Err(Status::invalid_argument("no member is named")) };
        if !admitted.is(&member.name) {
            return Err(Status::permission_denied(format!("the certificate is not of {:?}", member.name)));
        }
        // Nor is the record of another: it says where that one's messages go.
        self.is_from(&admitted, member.id).await?;
        membership::put_record(&self.node, member).await.map_err(crate::operator::status)?;
        Ok(Response::new(AnnounceReply {}))
    }
}

/// Finds the other first members: a restarted one may hear of them before its state tells it where they are. A member without
/// a group learns there whether its name belongs to another one: then its data directory was lost, and it has to be replaced. It goes on asking
/// until it has one, because the others change too: what a member of an old cluster said is void when that one is gone.
pub(crate) async fn find_members(addresses: Vec<String>, tls: Option<TlsFiles>, node: Node, peers: Peers, own: MemberRecord, stop: CancellationToken) {
    let mut found = BTreeSet::new();
    let mut taken: BTreeMap<&String, String> = BTreeMap::new();
    loop {
        let unformed = node.query(|_, live| live.status.identity.cluster_id.is_empty()).await.unwrap_or(false);
        if !unformed && found.len() == addresses.len() {
            return;
        }
        for address in &addresses {
            if !unformed && found.contains(address) {
                continue;
            }
            // Who does not answer may still be what it was.
            let Ok(reply) = identify(address, tls.as_ref(), Some(&own)).await else { continue };
            peers.set_address(reply.id, address);
            found.insert(address);
            match reply.holder_of_name {
                Some(holder) => drop(taken.insert(address, membership::name_is_taken(&own, &reply.cluster_id, &holder))),
                None => drop(taken.remove(address)),
            }
        }
        let says = taken.values().next().filter(|_| unformed).cloned();
        if let Some(text) = says.as_ref().filter(|text| node.stranger().as_ref() != Some(text)) {
            tracing::error!("{text}");
        }
        node.set_stranger(says);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// Who is at an address.
pub(crate) async fn identify(address: &str, tls: Option<&TlsFiles>, asker: Option<&MemberRecord>) -> Result<IdentifyReply, String> {
    let channel = channel(address, tls).map_err(|e| e.to_string())?;
    let mut client = PeerClient::new(channel);
    let call = client.identify(asker.map(|m| IdentifyRequest { id: m.id, name: m.name.clone() }).unwrap_or_default());
    match tokio::time::timeout(Duration::from_secs(3), call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(format!("{address}: {}", status.message())),
        Err(_) => Err(format!("{address}: no answer within 3 s")),
    }
}
