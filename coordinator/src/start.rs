//! Starting and stopping a coordinator: everything is opened and bound before anything is served.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use probity_core::COMMAND_VERSION;
use probity_proto::v1::*;
use probity_replica::{Config, Fatal, Medium, OpenError, Replica};
use probity_rpc::MESSAGE_BYTES_MAX;
use probity_rpc::access::Role;
use probity_rpc::client::channel;
use probity_rpc::refusal::Refusal;
use probity_rpc::tls::{TlsError, TlsFiles};
use probity_rpc::v1::FormRequest;
use probity_rpc::v1::access_server::AccessServer;
use probity_rpc::v1::fleet_server::FleetServer;
use probity_rpc::v1::operator_server::OperatorServer;
use probity_rpc::v1::peer_client::PeerClient;
use probity_rpc::v1::peer_server::PeerServer;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::transport::Server;

use crate::clock::ClusterClock;
use crate::config::CoordinatorConfig;
use crate::disk::{DataFile, SyncTimes, make_whole};
use crate::driver::Driver;
use crate::effects::Effects;
use crate::fleet::{FleetMemory, FleetService, Joins};
use crate::forward::Forward;
use crate::gate::{Admitted, Gate, GateLayer};
use crate::issue::{AccessService, cannot_issue};
use crate::listen::{Connections, ServerTls};
use crate::node::{Leadership, MESSAGES, Node, ProposeError, REQUESTS, Shared};
use crate::openid::OpenId;
use crate::operator::OperatorService;
use crate::outside::Policy;
use crate::peer::{PeerService, Peers, find_members};
use crate::secrets::Secrets;
use crate::telemetry::GameDayTraces;
use crate::{discovery, heartbeat, http, leader, listen, membership};

/// Calls at a time on one connection: a console that watches everything has some tens.
const STREAMS_MAX: u32 = 256;
/// Headers of a call: a token, and little else.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// Streams that a client opened and reset before they were served (the rapid-reset attack).
const RESETS_MAX: usize = 32;
/// What enrols sends a key and a token.
const SMALL_MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// A coordinator cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
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
    /// The file is no store of ours.
    #[error("cannot open {}; it is left as it is (a member of several: start with an empty data directory and `probity cluster replace` it; the only one: restore a backup)", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: redb::DatabaseError,
    },
    /// The file is no store of ours, and redb could not even say so.
    #[error("{} is no store of probity, or it is damaged; it is left as it is (a member of several: start with an empty data directory and `probity cluster replace` it; the only one: restore a backup)", .0.display())]
    NoStore(PathBuf),
    /// What the store holds does not fit together.
    #[error(
        "cannot use the store; it is left as it is (a member of several: start with an empty data directory and `probity cluster replace` it; the only one: restore a backup)"
    )]
    Replica(#[from] OpenError),
    /// An address is taken or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The TLS files.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The HTTP client for notifications.
    #[error("cannot make the HTTP client")]
    Client(#[from] reqwest::Error),
    /// The first group of one could not be formed.
    #[error("cannot form the cluster: {0}")]
    Form(String),
}

/// A running coordinator.
#[derive(Debug)]
pub struct Running {
    /// The handle.
    pub node: Node,
    /// Where the HTTP side listens.
    pub http_addr: SocketAddr,
    /// Where the gRPC side listens.
    pub grpc_addr: SocketAddr,
    driver: tokio::task::JoinHandle<Result<(), Fatal>>,
    tasks: TaskTracker,
    otel: probity_otel::Otel,
    stop: CancellationToken,
}

impl Running {
    /// Waits until it has ended: by its stop token, or because its store failed.
    pub async fn wait(self) -> Result<(), Fatal> {
        let end = self.driver.await.unwrap_or(Ok(()));
        self.stop.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await;
        self.otel.shutdown().await;
        end
    }
}

/// The command set that this build understands. Tests play a newer build, which a release cannot.
pub(crate) fn command_version() -> u32 {
    let played = cfg!(debug_assertions).then(|| std::env::var("PROBITY_TEST_COMMAND_VERSION").ok()?.parse().ok()).flatten();
    played.unwrap_or(COMMAND_VERSION)
}

/// Random, and never 0, which raft takes for "none".
pub(crate) fn new_member_id() -> u64 {
    rand::random::<u64>() >> 1 | 1
}

/// Opens the store; one process at a time.
fn open(config: &CoordinatorConfig) -> Result<(Replica, SyncTimes), StartError> {
    let dir = &config.data_dir;
    std::fs::create_dir_all(dir).map_err(|source| StartError::DataDir { dir: dir.clone(), source })?;
    let path = dir.join("coordinator.redb");
    let mut file = DataFile::new(&path);
    // redb may panic on a file that is none of its own; nothing is written before that.
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| make_whole(&path).and_then(|()| file.open())));
    let db = match opened {
        Ok(Ok(db)) => db,
        Ok(Err(redb::DatabaseError::DatabaseAlreadyOpen)) => return Err(StartError::InUse(dir.clone())),
        Ok(Err(source)) => return Err(StartError::Open { path, source }),
        Err(_) => return Err(StartError::NoStore(path)),
    };
    let times = file.times.clone();
    let replica_config = Config { new_id: new_member_id(), command_version: command_version(), ..Config::default() };
    Ok((Replica::open_on(replica_config, db, Box::new(file), rand::random())?, times))
}

/// Starts a coordinator; it runs until `stop`.
pub async fn start(config: CoordinatorConfig, stop: CancellationToken) -> Result<Running, StartError> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http_listener = bind(config.http).await?;
    let grpc_listener = bind(config.grpc).await?;
    let http_addr = http_listener.local_addr().map_err(|source| StartError::Listen { address: config.http, source })?;
    let grpc_addr = grpc_listener.local_addr().map_err(|source| StartError::Listen { address: config.grpc, source })?;
    let (tls, http_tls) = match &config.tls {
        Some(files) => {
            files.own_as(Role::Coordinator, &config.name)?;
            let cannot = cannot_issue(Some(files), &config.name);
            if !cannot.is_empty() {
                tracing::warn!("this coordinator {cannot}");
            }
            (Some(ServerTls::load(files.clone(), &["h2"])?), Some(ServerTls::load(files.clone(), &["http/1.1"])?))
        }
        None => (None, None),
    };
    let (replica, sync_times) = open(&config)?;
    let identity = replica.identity();
    let address = if config.advertise.is_empty() { grpc_addr.to_string() } else { config.advertise.clone() };
    let own = MemberRecord {
        id: identity.id,
        name: config.name.clone(),
        address,
        http_address: http_addr.to_string(),
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
        max_command_version: command_version(),
        ..MemberRecord::default()
    };
    let (requests_tx, requests) = mpsc::channel(REQUESTS);
    let (messages_tx, messages) = mpsc::channel(MESSAGES);
    let (applied, applied_rx) = watch::channel(0);
    let (leadership, leadership_rx) = watch::channel(Leadership::default());
    let shared = Arc::new(Shared {
        clock: ClusterClock::new(),
        fleet: FleetMemory::default(),
        halt_latch: Default::default(),
        reported: tokio::sync::Semaphore::new(crate::node::REPORTED_BYTES as usize),
        stranger: Default::default(),
        conditions: Default::default(),
    });
    let node = Node { requests: requests_tx, messages: messages_tx.clone(), applied: applied_rx, leadership: leadership_rx, shared };
    let tasks = TaskTracker::new();
    let peers = Peers::new(identity.id, config.tls.clone(), messages_tx, tasks.clone(), stop.clone());
    let driver = Driver {
        replica,
        sync_times,
        node: node.clone(),
        requests,
        messages,
        applied,
        leadership,
        peers: peers.clone(),
        address_of: Default::default(),
        woken_for: 0,
        to_start: None,
        patrol: Default::default(),
        patrol_from: std::time::Instant::now(),
    };
    let driver_stop = stop.clone();
    // redb blocks: the owner has a thread of its own, with a runtime of one.
    let driver = tokio::task::spawn_blocking(move || match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => runtime.block_on(driver.run(driver_stop)),
        Err(e) => {
            tracing::error!(error = %e, "cannot start the driver's runtime");
            Ok(())
        }
    });
    let policy = Policy { allow_loopback: config.allow_loopback };
    let secrets = Secrets::new(config.secrets_dir.clone(), config.heartbeats.iter().map(|h| h.url_secret_ref.clone()).collect(), config.secrets_need_allow);
    let effects = Effects::new(secrets.clone(), policy)?;
    let sources = discovery::Sources::new(secrets.clone(), config.targets_dir.clone(), policy);
    tasks.spawn(discovery::run(node.clone(), sources, stop.clone()));
    tasks.spawn(leader::run(node.clone(), effects, GameDayTraces::new(config.otel.clone()), stop.clone()));
    for heartbeat in config.heartbeats.clone() {
        tasks.spawn(heartbeat::run(node.clone(), heartbeat, secrets.clone(), stop.clone()));
    }
    let others = config.initial_members.iter().filter(|(name, _)| **name != config.name).map(|(_, a)| a.clone()).collect();
    tasks.spawn(find_members(others, config.tls.clone(), node.clone(), peers.clone(), own.clone(), stop.clone()));
    tasks.spawn(membership::keep_own_record(node.clone(), own.clone(), config.tls.clone(), stop.clone()));
    tasks.spawn(membership::look_after(node.clone(), config.tls.clone(), stop.clone()));
    let fleet = FleetService {
        node: node.clone(),
        member: config.name.clone(),
        flush: config.flush,
        trace_ppm: config.trace_ppm,
        joins: Joins::gather(node.clone(), &tasks, stop.clone()),
        tasks: tasks.clone(),
        stop: stop.clone(),
    };
    let peer = PeerService { node: node.clone(), peers: peers.clone(), own: own.clone(), cluster_name: config.cluster.clone() };
    let forward = Forward::new(node.clone(), config.tls.clone());
    let operator = OperatorService {
        node: node.clone(),
        config: config.clone(),
        own: own.clone(),
        peers: peers.clone(),
        forward: forward.clone(),
        watches: Default::default(),
        stop: stop.clone(),
    };
    let openid = config.openid.clone().map(OpenId::new).transpose()?;
    let connections = Arc::new(Connections::default());
    let gate = Gate::follow(node.clone(), config.tls.is_none(), openid, connections.clone(), stop.clone()).await;
    let access = AccessService { operator: operator.clone() };
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .layer(GateLayer(gate.clone(), forward));
    let router = server
        .add_service(FleetServer::new(fleet).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(PeerServer::new(peer).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(AccessServer::new(access).max_decoding_message_size(SMALL_MESSAGE_BYTES_MAX))
        .add_service(OperatorServer::new(operator.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX));
    let conns = listen::incoming(grpc_listener, tls, connections.clone(), stop.clone());
    let incoming = tokio_stream::wrappers::ReceiverStream::new(conns).map(Ok::<_, std::io::Error>);
    let serve_stop = stop.clone();
    tasks.spawn(async move {
        // A client that stays does not keep us: the stop cuts it off.
        tokio::select! {
            end = router.serve_with_incoming(incoming) => if let Err(e) = end { tracing::error!(error = %e, "the gRPC side ended") },
            () = serve_stop.cancelled() => {}
        }
    });
    let http_conns = listen::incoming(http_listener, http_tls, connections.clone(), stop.clone());
    tasks.spawn(http::serve(http_conns, http::router(node.clone(), gate, connections, &own, &config.http_names), stop.clone()));
    let running = Running { node, http_addr, grpc_addr, driver, tasks, otel: config.otel.clone(), stop };
    if config.auto_init {
        let initialized = running.node.query(|state, _| !state.meta().cluster_id.is_empty()).await.unwrap_or(false);
        if !initialized
            && let Err(status) = operator.form_cluster(&Admitted::local()).await
            && status.code() != tonic::Code::AlreadyExists
        {
            return Err(StartError::Form(status.message().to_owned()));
        }
    }
    Ok(running)
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

/// Forms the group: every other member first, this one last, which then asks for votes.
pub(crate) async fn form_group(
    node: &Node,
    peers: &Peers,
    tls: Option<&TlsFiles>,
    own: &MemberRecord,
    cluster_id: &str,
    members: &[MemberRecord],
) -> Result<(), Status> {
    // This one first of all on its own disk: should it die in between, it goes on with the same cluster id.
    let voters: Vec<u64> = members.iter().map(|m| m.id).collect();
    for member in members.iter().filter(|m| m.id != own.id) {
        let channel = channel(&member.address, tls).map_err(|e| Status::failed_precondition(e.to_string()))?;
        let request = FormRequest { cluster_id: cluster_id.to_owned(), members: members.to_vec() };
        PeerClient::new(channel).form(request).await.map_err(|s| Status::failed_precondition(format!("{}: {}", member.name, s.message())))?;
        peers.set_address(member.id, &member.address);
    }
    node.form(cluster_id.to_owned(), voters).await.map_err(crate::operator::status)?.map_err(|e| Status::failed_precondition(e.to_string()))?;
    let _ = node.requests.send(crate::node::Request::Campaign).await;
    Ok(())
}

/// Proposes while the first leader is elected.
pub(crate) async fn propose_patiently(node: &Node, command: Command) -> Result<Applied, ProposeError> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match node.propose(command.clone()).await {
            Err(ProposeError::Refusal(Refusal::NotLeader(None) | Refusal::NoQuorum)) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            other => return other,
        }
    }
}
