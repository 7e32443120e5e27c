//! Three coordinators of Probity as real processes on loopback, in plain text.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use probity_rpc::client::{Operator, request_id};
use probity_rpc::v1::{ApplyReply, ApplyRequest, InitClusterRequest, ReadRequest, SourceFile};
use serde_json::Value;
use tempfile::TempDir;

use crate::ports::free_ports;

type Error = Box<dyn std::error::Error>;

/// How long a cluster may take to form.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process that ends with us.
#[derive(Debug)]
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Debug)]
pub(crate) struct Cluster {
    dir: TempDir,
    probity: std::path::PathBuf,
    pub(crate) members: Vec<Process>,
    pub(crate) servers: Vec<String>,
}

impl Cluster {
    pub(crate) async fn start(probity: &Path) -> Result<Cluster, Error> {
        let dir = tempfile::tempdir()?;
        let ports = free_ports(6);
        let servers: Vec<String> = ports[..3].iter().map(|p| format!("127.0.0.1:{p}")).collect();
        let list: Vec<String> = servers.iter().enumerate().map(|(i, s)| format!("c{i}: \"{s}\"")).collect();
        for (i, server) in servers.iter().enumerate() {
            let text = format!(
                "cluster: bench\nname: c{i}\ndataDir: {}/c{i}\nlisten: {{http: \"127.0.0.1:{}\", grpc: \"{server}\"}}\nadvertise: \"{server}\"\ninitialMembers: {{{}}}\nallowLoopback: true\n",
                dir.path().display(),
                ports[3 + i],
                list.join(", ")
            );
            std::fs::write(dir.path().join(format!("c{i}.yaml")), text)?;
        }
        let mut cluster = Cluster { dir, probity: probity.to_owned(), members: Vec::new(), servers };
        for i in 0..3 {
            let process = cluster.spawn(i)?;
            cluster.members.push(process);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let done = cluster.operator().call(async |mut c| c.init_cluster(InitClusterRequest { request_id: "init".to_owned() }).await).await;
            match done {
                Ok(_) => return Ok(cluster),
                Err(e) if Instant::now() > deadline => return Err(e.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    fn spawn(&self, i: usize) -> Result<Process, Error> {
        let config = self.dir.path().join(format!("c{i}.yaml"));
        let log = std::fs::File::create(self.dir.path().join(format!("c{i}.log")))?;
        let child = Command::new(&self.probity)
            .args(["coordinator", "--insecure", "--config"])
            .arg(config)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Process(child))
    }

    /// A client that knows all members.
    pub(crate) fn operator(&self) -> Operator {
        Operator::new(self.servers.clone(), None, Duration::from_secs(10))
    }

    /// Which member leads.
    pub(crate) async fn leader(&self) -> Result<usize, Error> {
        let mut operator = self.operator();
        let request = ReadRequest { path: "/api/v1/status".to_owned(), stale: false };
        let reply = operator.look(async |mut c| c.read(request.clone()).await).await?;
        let status: Value = serde_json::from_str(&reply.json)?;
        let address = status["leader"]["address"].as_str().unwrap_or_default();
        self.servers.iter().position(|s| s == address).ok_or_else(|| format!("no leader in {status}").into())
    }

    /// kill -9, and what it takes to have it back.
    pub(crate) fn kill(&mut self, i: usize) -> Result<(), Error> {
        self.members[i].0.kill()?;
        self.members[i].0.wait()?;
        Ok(())
    }

    pub(crate) fn restart(&mut self, i: usize) -> Result<(), Error> {
        self.members[i] = self.spawn(i)?;
        Ok(())
    }
}

/// One change: a receiver whose document has about `bytes` bytes.
pub(crate) async fn change(operator: &mut Operator, name: String, value: u64, bytes: usize) -> Result<ApplyReply, tonic::Status> {
    let head = format!("apiVersion: probity/v1\nkind: Receiver\nmetadata: {{name: {name}}}\nspec: {{webhook: {{url: \"http://127.0.0.1:9/{value:020}");
    let text = format!("{head}{}\"}}}}\n", "x".repeat(bytes.saturating_sub(head.len() + 5)));
    let request = ApplyRequest {
        request_id: request_id(),
        files: vec![SourceFile { name: "bench.yaml".to_owned(), text }],
        default_namespace: "default".to_owned(),
        ..ApplyRequest::default()
    };
    operator.call(async |mut c| c.apply(request.clone()).await).await
}
