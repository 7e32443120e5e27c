//! Dead man's switches of a real coordinator: one that hangs, and a receiver that refuses, are nobody else's matter.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use common::{Client, Server, free_ports, quick_slo, wait_for};

/// Counts the calls of each path; `/hangs` is never answered.
#[derive(Debug, Clone)]
struct Counter {
    address: SocketAddr,
    calls: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Counter {
    fn start() -> Counter {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let counter = Counter { address: listener.local_addr().expect("its address"), calls: Arc::default() };
        let kept = counter.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = kept.clone();
                std::thread::spawn(move || kept.serve(stream));
            }
        });
        counter
    }

    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        loop {
            let mut path = String::new();
            let mut length = 0;
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).ok()? == 0 {
                    return None;
                }
                if let Some(rest) = line.strip_prefix("POST ") {
                    path = rest.split(' ').next()?.to_owned();
                }
                if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = n.trim().parse().ok()?;
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            reader.read_exact(&mut vec![0; length]).ok()?;
            *self.calls.lock().expect("not poisoned").entry(path.clone()).or_default() += 1;
            if path != "/hangs" {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
            }
        }
    }

    fn calls(&self, path: &str) -> usize {
        self.calls.lock().expect("not poisoned").get(path).copied().unwrap_or(0)
    }
}

/// A probe of a closed port, an SLO on it that fires within seconds, and a receiver.
fn outage(namespace: &str, closed: u16, receiver: &str) -> String {
    let meta = |name: &str| format!("metadata: {{name: {name}, namespace: {namespace}}}");
    format!(
        r#"
apiVersion: probity/v1
kind: Probe
{}
spec: {{interval: 500ms, timeout: 400ms, target: "127.0.0.1:{closed}", tcp: {{}}}}
---
{}---
apiVersion: probity/v1
kind: Route
{}
spec: {{match: {{severity: page}}, receivers: [team]}}
---
{}"#,
        meta("door"),
        quick_slo(namespace, "door", "door"),
        meta("pages"),
        team(namespace, receiver)
    )
}

fn team(namespace: &str, receiver: &str) -> String {
    format!("apiVersion: probity/v1\nkind: Receiver\nmetadata: {{name: team, namespace: {namespace}}}\nspec: {receiver}\n")
}

#[test]
fn a_receiver_that_refuses_and_a_switch_that_hangs_stop_nobody_else_s() {
    let dir = tempfile::tempdir().expect("a directory");
    let counter = Counter::start();
    let (at, ports) = (counter.address, free_ports(3));
    let (grpc, closed) = (format!("127.0.0.1:{}", ports[0]), ports[1]);
    let secrets = dir.path().join("secrets");
    std::fs::create_dir(&secrets).expect("a directory");
    for name in ["all", "shop", "search", "hangs"] {
        std::fs::write(secrets.join(name), format!("http://{at}/{name}\n")).expect("a file");
    }
    let switch = |secret: &str, more: &str| format!("  - {{url: {{secretRef: {secret}}}, every: 1s{more}}}\n");
    let config = format!(
        "cluster: test\nname: c1\ndataDir: {}\nlisten: {{http: \"127.0.0.1:{}\", grpc: \"{grpc}\"}}\nadvertise: \"{grpc}\"\nsecretsDir: {}\nallowLoopback: true\nheartbeat:\n{}{}{}{}",
        dir.path().join("c1").display(),
        ports[2],
        secrets.display(),
        switch("hangs", ", namespace: shop, receiver: team"),
        switch("all", ""),
        switch("shop", ", namespace: shop"),
        switch("search", ", namespace: search"),
    );
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let coordinator = Server::start(&["coordinator", "--insecure", "--config", &file("c1.yaml", &config)], &dir.path().join("c1.log"));
    let client = Client { server: grpc.clone(), tls_dir: None };
    wait_for("the cluster to form", || (client.run(&["cluster", "init"]).code == 0).then_some(()));
    let prober = format!("name: e1\ncoordinators: [\"{grpc}\"]\ndataDir: {}\nallowLoopback: true\n", dir.path().join("e1").display());
    let _prober = Server::start(&["prober", "--insecure", "--config", &file("e1.yaml", &prober)], &dir.path().join("e1.log"));

    // Nobody refuses yet: all are called, but for what hangs.
    wait_for("each switch", || ["/all", "/shop", "/search"].iter().all(|path| counter.calls(path) >= 3).then_some(()));
    // Of shop's two Alertmanagers one is gone: who was told is told.
    client.apply(dir.path(), &outage("shop", closed, &format!("{{alertmanager: {{urls: [\"http://127.0.0.1:{closed}\", \"http://{at}\"]}}}}")));
    client.apply(dir.path(), &outage("search", closed, &format!("{{webhook: {{url: \"http://127.0.0.1:{closed}/\"}}}}")));
    wait_for("shop's page", || (counter.calls("/api/v2/alerts") > 0).then_some(()));
    wait_for("search's switch to stop", || {
        let log = coordinator.log();
        log.lines().any(|l| l.contains("no heartbeat") && l.contains("search") && l.contains("receiver team was not told in 5 attempts")).then_some(())
    });
    let before = ["/all", "/shop", "/search"].map(|path| counter.calls(path));
    wait_for("the others to go on", || (counter.calls("/all") >= before[0] + 5 && counter.calls("/shop") >= before[1] + 5).then_some(()));
    assert_eq!(counter.calls("/search"), before[2], "its receiver is not told");
    assert!(counter.calls("/hangs") >= 1);
    let told = client.json(&["alert", "list", "-n", "shop"]).expect("alerts").to_string();
    assert!(told.contains("\"delivered\":true"), "{told}");

    client.apply(dir.path(), &team("search", &format!("{{webhook: {{url: \"http://{at}/pages\"}}}}")));
    wait_for("search's page", || (counter.calls("/pages") > 0).then_some(()));
    wait_for("search's switch again", || (counter.calls("/search") > before[2]).then_some(()));
    assert!(!coordinator.log().contains("panicked"), "{}", coordinator.log());
}
