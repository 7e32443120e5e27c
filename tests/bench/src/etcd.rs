//! Three members of etcd (Debian's etcd-server) as real processes on loopback, written to over its own gRPC.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::cluster::Process;
use crate::ports::free_ports;

type Error = Box<dyn std::error::Error>;

/// etcdserverpb.PutRequest, as far as it is used here (etcd's rpc.proto).
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) value: Vec<u8>,
}

/// etcdserverpb.PutResponse: nothing in it is looked at.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PutResponse {}

#[derive(Debug)]
pub(crate) struct Etcd {
    _dir: TempDir,
    pub(crate) members: Vec<Process>,
    pub(crate) clients: Vec<String>,
}

impl Etcd {
    /// None where etcd is not installed.
    pub(crate) async fn start() -> Result<Option<Etcd>, Error> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            return Ok(None);
        }
        let dir = tempfile::tempdir()?;
        let ports = free_ports(6);
        let peers: Vec<String> = (0..3).map(|i| format!("e{i}=http://127.0.0.1:{}", ports[3 + i])).collect();
        let mut etcd = Etcd { _dir: dir, members: Vec::new(), clients: ports[..3].iter().map(|p| format!("http://127.0.0.1:{p}")).collect() };
        for i in 0..3 {
            let (client, peer) = (&etcd.clients[i], format!("http://127.0.0.1:{}", ports[3 + i]));
            let child = Command::new("etcd")
                .args(["--name", &format!("e{i}"), "--data-dir", &etcd._dir.path().join(format!("e{i}")).display().to_string()])
                .args(["--listen-client-urls", client, "--advertise-client-urls", client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &peers.join(","), "--initial-cluster-state", "new", "--log-level", "error"])
                .env("ETCD_UNSUPPORTED_ARCH", "arm64")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            etcd.members.push(Process(child));
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut client = etcd.channel(0)?;
        while put(&mut client, b"ready".to_vec(), b"1".to_vec()).await.is_err() {
            if Instant::now() > deadline {
                return Err("etcd did not form a cluster within 20 s".into());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(Some(etcd))
    }

    pub(crate) fn channel(&self, member: usize) -> Result<Channel, Error> {
        Ok(Endpoint::from_shared(self.clients[member].clone())?.tcp_nodelay(true).connect_lazy())
    }
}

/// One committed write.
pub(crate) async fn put(channel: &mut Channel, key: Vec<u8>, value: Vec<u8>) -> Result<(), tonic::Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
    let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
    grpc.unary(tonic::Request::new(PutRequest { key, value }), path, codec).await.map(drop)
}
