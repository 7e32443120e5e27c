//! A cluster as the README has it: three coordinators and two probers under mutual TLS, and the leader killed in a game day.

mod common;

use std::net::SocketAddr;
use std::path::Path;

use common::{Client, Pager, Server, answers, assert_account, free_ports, probity, quick_slo, wait_for};
use serde_json::Value;

struct Cluster {
    coordinators: Vec<Server>,
    probers: Vec<Server>,
    shop: Server,
    configs: Vec<String>,
    client: Client,
    viewer: Client,
    /// The shop, through the fault proxy of the first prober.
    proxy: SocketAddr,
    tcp: u16,
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

impl Cluster {
    fn start(dir: &Path) -> Cluster {
        let ports = free_ports(10);
        let tls = dir.join("tls");
        let mut args = vec!["ca".to_owned(), "init".to_owned(), "--dir".to_owned(), text(&tls)];
        for who in [
            "--coordinator c1=127.0.0.1",
            "--coordinator c2=127.0.0.1",
            "--coordinator c3=127.0.0.1",
            "--prober e1",
            "--prober e2",
            "--admin me",
            "--viewer eyes",
        ] {
            args.extend(who.split(' ').map(str::to_owned));
        }
        let made = probity(&args.iter().map(String::as_str).collect::<Vec<_>>()).output().expect("probity runs");
        assert!(made.status.success(), "{made:?}");
        let address = |port: u16| format!("127.0.0.1:{port}");
        let members: Vec<String> = (0..3).map(|i| format!("c{}: \"{}\"", i + 1, address(ports[3 + i]))).collect();
        let servers: Vec<String> = (0..3).map(|i| address(ports[3 + i])).collect();
        let mut configs = Vec::new();
        for i in 0..3 {
            let name = format!("c{}", i + 1);
            let config = format!(
                "cluster: test\nname: {name}\ndataDir: {}\nlisten: {{http: \"{}\", grpc: \"{}\"}}\nadvertise: \"{}\"\ninitialMembers: {{{}}}\ntls: {{dir: {}}}\nallowLoopback: true\n",
                text(&dir.join(&name)),
                address(ports[i]),
                servers[i],
                servers[i],
                members.join(", "),
                text(&tls.join(&name)),
            );
            let path = dir.join(format!("{name}.yaml"));
            std::fs::write(&path, config).expect("a file");
            configs.push(text(&path));
        }
        let (http, tcp, dns, proxy) = (address(ports[6]), address(ports[7]), address(ports[8]), address(ports[9]));
        let shop = Server::start(&["shop", "--http", &http, "--tcp", &tcp, "--dns", &dns], &dir.join("shop.log"));
        let mut probers = Vec::new();
        for name in ["e1", "e2"] {
            let proxies = if name == "e1" { format!("[{{name: shop-http, listen: \"{proxy}\", upstream: \"{http}\"}}]") } else { "[]".to_owned() };
            let config = format!(
                "name: {name}\ncoordinators: [{}]\nlabels: {{zone: {name}}}\ndataDir: {}\ntls: {{dir: {}}}\nfaults: {{allow: [proxy.reset]}}\nproxies: {proxies}\nallowLoopback: true\n",
                servers.iter().map(|s| format!("\"{s}\"")).collect::<Vec<_>>().join(", "),
                text(&dir.join(name)),
                text(&tls.join(name)),
            );
            let path = dir.join(format!("{name}.yaml"));
            std::fs::write(&path, config).expect("a file");
            probers.push(Server::start(&["prober", "--config", &text(&path)], &dir.join(format!("{name}.log"))));
        }
        let client = Client { server: servers.join(","), tls_dir: Some(tls.join("me")) };
        let viewer = Client { server: servers.join(","), tls_dir: Some(tls.join("eyes")) };
        let coordinators = configs.iter().map(|c| Server::start(&["coordinator", "--config", c], Path::new(&format!("{c}.log")))).collect();
        let cluster = Cluster { coordinators, probers, shop, configs, client, viewer, proxy: proxy.parse().expect("an address"), tcp: ports[7] };
        wait_for("the cluster to form", || (cluster.client.run(&["cluster", "init"]).code == 0).then_some(()));
        cluster.client.wait_json("both probers", &["status"], |s| s["probers"]["alive"] == 2);
        cluster
    }

    fn restart(&mut self, i: usize) {
        let config = &self.configs[i];
        self.coordinators[i] = Server::start(&["coordinator", "--config", config], Path::new(&format!("{config}.log")));
    }
}

fn resources(cluster: &Cluster, pager: &Pager) -> String {
    format!(
        r#"
apiVersion: probity/v1
kind: Probe
metadata: {{name: shop-http}}
spec: {{interval: 500ms, timeout: 400ms, target: "http://{}", http: {{}}}}
---
apiVersion: probity/v1
kind: Probe
metadata: {{name: shop-tcp}}
spec: {{interval: 500ms, timeout: 400ms, target: "127.0.0.1:{}", tcp: {{}}}}
---
{}---
apiVersion: probity/v1
kind: Receiver
metadata: {{name: pager}}
spec: {{webhook: {{url: "http://{}/"}}}}
---
apiVersion: probity/v1
kind: Route
metadata: {{name: pages}}
spec: {{match: {{severity: page}}, receivers: [pager]}}
---
apiVersion: probity/v1
kind: Scenario
metadata: {{name: outage}}
spec:
  maxDuration: 3m
  targets: {{proxy: {{max: 1}}}}
  steadyState: [{{probe: shop-http, verdict: up}}]
  steps:
    - {{name: outage, fault: proxy.reset, target: proxy, with: {{proxy: shop-http}}, after: 1s, for: 25s, undo: descriptor-lifetime}}
  expect:
    - {{probe: shop-http, verdict: down, within: 15s, recoversWithin: 30s}}
    - {{alert: shop/page, firesWithin: 25s, resolvesWithin: 60s}}
    - {{probe: shop-tcp, verdict: up}}
"#,
        cluster.proxy,
        cluster.tcp,
        quick_slo("default", "shop", "shop-http"),
        pager.address
    )
}

fn count(status: &Value, key: &str) -> u64 {
    status["runs"][key].as_u64().unwrap_or(0)
}

#[test]
fn the_leader_dies_in_a_game_day_and_nothing_is_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut cluster = Cluster::start(dir.path());
    let pager = Pager::start();
    let client = cluster.client.clone();
    client.apply(dir.path(), &resources(&cluster, &pager));
    client.wait_json("verdicts", &["status"], |s| s["checks"]["up"] == 2);
    assert!(answers(cluster.proxy), "the shop answers through the proxy");

    let refused = cluster.viewer.run(&["gameday", "run", "outage", "--yes"]);
    assert_eq!(refused.code, 1, "a viewer may look only: {refused:?}");
    assert!(cluster.viewer.json(&["status"]).is_some());

    assert_eq!(client.run(&["gameday", "run", "outage", "--yes", "--detach"]).code, 0);
    client.wait_json("the outage", &["get", "probe", "shop-http"], |p| p["status"]["verdict"] == "down");
    assert!(!answers(cluster.proxy), "the fault is real");
    let before = client.json(&["status"]).expect("a status");
    let leader = before["leader"]["name"].as_str().expect("a leader").to_owned();
    let killed = leader.trim_start_matches('c').parse::<usize>().expect("c1, c2 or c3") - 1;
    cluster.coordinators[killed].kill9();

    let after = client.wait_json("a new leader", &["status"], |s| s["leader"]["name"].as_str().is_some_and(|l| l != leader));
    assert!(after["term"].as_u64() > before["term"].as_u64());
    for key in ["planned", "good", "bad"] {
        assert!(count(&after, key) >= count(&before, key), "{key} was acknowledged: {before} then {after}");
    }
    cluster.restart(killed);

    let day = client.wait_json("the end", &["gameday", "report", "outage-1"], |d| d["status"]["phase"] == "ended");
    assert_eq!(day["status"]["result"], "passed", "{day}");
    for fault in day["status"]["faults"].as_array().expect("faults") {
        assert_eq!(fault["state"], "undone", "{day}");
    }
    assert!(answers(cluster.proxy), "the fault has ended");
    let episodes = client.json(&["alert", "history"]).expect("episodes");
    assert_eq!(episodes["items"].as_array().map(Vec::len), Some(1), "one incident: {episodes}");
    let pages = wait_for("both pages", || Some(pager.pages()).filter(|p| p.iter().any(|p| p["data"]["status"] == "resolved")));
    let ids: std::collections::BTreeSet<&str> = pages.iter().filter_map(|p| p["id"].as_str()).collect();
    assert_eq!(ids.len(), 2, "one firing and one resolved, however often each was sent: {pages:?}");

    let healed = |s: &Value| s["members"].as_array().is_some_and(|m| m.len() == 3 && m.iter().all(|m| m["lagEntries"].as_u64() < Some(50)));
    let status = client.wait_json("three members", &["status"], healed);
    assert_account(&status);
    for server in cluster.coordinators.iter_mut().chain(&mut cluster.probers).chain([&mut cluster.shop]) {
        assert_eq!(server.stop(), 0, "{}", server.log());
        assert!(!server.log().contains("panicked"), "{}", server.log());
    }
}

#[test]
fn a_prober_that_dies_takes_its_fault_along() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut cluster = Cluster::start(dir.path());
    let pager = Pager::start();
    let client = cluster.client.clone();
    client.apply(dir.path(), &resources(&cluster, &pager));
    client.wait_json("verdicts", &["status"], |s| s["checks"]["up"] == 2);
    assert_eq!(client.run(&["gameday", "run", "outage", "--yes", "--detach"]).code, 0);
    wait_for("the fault", || (!answers(cluster.proxy)).then_some(()));
    cluster.probers[0].kill9();
    // Off for two intervals: of a start that is fast enough no slot would be missed.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let config = text(&dir.path().join("e1.yaml"));
    cluster.probers[0] = Server::start(&["prober", "--config", &config], &dir.path().join("e1.log"));
    wait_for("the proxy without its fault", || answers(cluster.proxy).then_some(()));
    let day = client.wait_json("the end", &["gameday", "report", "outage-1"], |d| d["status"]["phase"] == "ended");
    assert_ne!(day["status"]["result"], "passed", "{day}");
    assert!(answers(cluster.proxy), "a fault that ended does not start again");
    let off = |s: &Value| s["runs"]["missed"]["prober_off"].as_u64() > Some(0) && s["checks"]["up"] == 2;
    assert_account(&client.wait_json("the account of the crash", &["status"], off));
}
