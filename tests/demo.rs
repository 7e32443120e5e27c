//! `up --demo` as a newcomer meets it: the first screen, a game day, Ctrl-C, and everything still known the next day.

mod common;

use std::path::Path;

use common::{Client, Server, assert_account, wait_for};
use nix::sys::signal::Signal;

/// Like `shop-outage` of the demo, in less time.
const QUICK: &str = r#"
apiVersion: probity/v1
kind: Scenario
metadata: {name: quick}
spec:
  maxDuration: 2m
  targets: {proxy: {max: 1}}
  steadyState: [{probe: shop-http, verdict: up}]
  steps:
    - {name: outage, fault: proxy.reset, target: proxy, with: {proxy: shop-http}, after: 1s, for: 14s, undo: descriptor-lifetime}
  abortIf: [{probe: shop-tcp, verdict: down}]
  expect:
    - {probe: shop-http, verdict: down, within: 10s, recoversWithin: 20s}
    - {alert: shop-availability/page-1m, firesWithin: 14s, resolvesWithin: 30s}
    - {probe: shop-tcp, verdict: up}
"#;

/// One demo looks for its ports at a time: between the look and the use another one could take them.
static STARTING: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Starts the demo; other tests may have its usual ports.
fn up(dir: &Path) -> (Server, Client) {
    let _alone = STARTING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let data = dir.join("data");
    let log = dir.join("up.log");
    let before = std::fs::read_to_string(&log).unwrap_or_default().len();
    let ports = common::free_ports(2);
    let (web, grpc) = (ports[0].to_string(), ports[1].to_string());
    let server = Server::start(&["up", "--demo", "--data-dir", data.to_str().expect("a path"), "--http-port", &web, "--grpc-port", &grpc], &log);
    let screen = wait_for("the first screen", || Some(server.log()[before..].to_owned()).filter(|l| l.contains("Ctrl-C stops everything.")));
    for words in
        ["PROBE", "shop-http", "shop-tcp", "shop-dns", "shop-ping", "SLO shop-availability: 99% over 1d", "a full outage pages after 8.6 s", "Ready in"]
    {
        assert!(screen.contains(words), "{words:?} is not in {screen}");
    }
    let printed = screen.split("--server ").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("the printed command says where");
    (server, Client { server: printed.to_owned(), tls_dir: None })
}

#[test]
fn the_demo_closes_the_loop_and_remembers_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut server, client) = up(dir.path());
    let status = client.wait_json("a healthy status", &["status"], |s| s["checks"]["up"].as_u64() >= Some(3));
    assert_account(&status);
    client.apply(dir.path(), QUICK);

    let day = client.run(&["gameday", "run", "quick", "--yes"]);
    assert_eq!(day.code, 0, "{day:?}");
    for words in ["INJECTED", "DOWN", "FIRING", "delivered", "UNDONE", "verified", "RECOVERED", "RESOLVED", "theory 8.6 s", "PASSED"] {
        assert!(day.out.contains(words), "{words:?} is not in {}", day.out);
    }
    let report = client.json(&["gameday", "report", "quick-1"]).expect("a report");
    for measured in report["status"]["measured"].as_array().expect("measured lines") {
        assert_eq!(measured["ok"], true, "{measured}");
    }
    let episodes = client.json(&["alert", "history"]).expect("episodes");
    assert_eq!(episodes["items"].as_array().map(Vec::len), Some(1), "{episodes}");
    wait_for("the pager's two lines", || {
        let log = server.log();
        (log.contains("FIRING  shop-availability/page-1m") && log.contains("RESOLVED  shop-availability/page-1m")).then_some(())
    });
    assert_account(&client.json(&["status"]).expect("a status"));

    assert_eq!(server.stop_by(Signal::SIGINT), 0, "{}", server.log());

    // It is back in a tenth of a second: only a pause longer than the probes' interval surely has a slot in it.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let (mut server, client) = up(dir.path());
    let report = client.json(&["gameday", "report", "quick-1"]).expect("it is still known");
    assert_eq!(report["status"]["result"], "passed");
    let off = |s: &serde_json::Value| s["runs"]["missed"]["prober_off"].as_u64() > Some(0);
    let status = client.wait_json("the time it was off in the account", &["status"], off);
    assert_account(&status);
    server.kill9();

    let (mut server, client) = up(dir.path());
    let status = client.wait_json("an account after a crash", &["status"], |s| s["runs"]["good"].as_u64() > Some(0));
    assert_account(&status);
    assert_eq!(server.stop(), 0, "{}", server.log());
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn abort_interrupt_and_halt_undo_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut server, client) = up(dir.path());
    client.apply(dir.path(), &QUICK.replace("name: quick", "name: long").replace("for: 14s", "for: 90s"));
    let running = |name: &str| {
        let phase = |d: &serde_json::Value| d["status"]["faults"].as_array().is_some_and(|f| f.iter().any(|f| f["state"] == "seen" || f["state"] == "active"));
        client.wait_json("the fault", &["gameday", "report", name], phase);
    };
    let undone = |name: &str, reason: &str| {
        let day = client.wait_json("the end", &["gameday", "report", name], |d| d["status"]["phase"] == "ended");
        assert_eq!(day["status"]["result"], "aborted", "{day}");
        assert!(day["status"]["reason"].as_str().is_some_and(|r| r.contains(reason)), "{day}");
        for fault in day["status"]["faults"].as_array().expect("faults") {
            assert_eq!(fault["state"], "undone", "{day}");
        }
        client.wait_json("recovery", &["get", "probe", "shop-http"], |p| p["status"]["verdict"] == "up");
    };

    assert_eq!(client.run(&["gameday", "run", "long", "--yes", "--detach"]).code, 0);
    running("long-1");
    assert_eq!(client.run(&["gameday", "abort", "long-1", "--reason", "enough"]).code, 0);
    undone("long-1", "enough");

    let log = dir.path().join("run.log");
    let args = ["gameday", "run", "long", "--yes", "--server", &client.server];
    let follower = Server::start(&args, &log);
    running("long-2");
    follower.signal(Signal::SIGINT);
    undone("long-2", "interrupted");

    assert_eq!(client.run(&["gameday", "run", "long", "--yes", "--detach"]).code, 0);
    running("long-3");
    assert_eq!(client.run(&["halt", "--reason", "real incident"]).code, 0);
    undone("long-3", "halted");
    let refused = client.run(&["gameday", "run", "long", "--yes"]);
    assert!(refused.code == 1 && refused.err.contains("halted"), "{refused:?}");
    assert_eq!(client.run(&["halt", "lift"]).code, 0);
    assert_eq!(server.stop(), 0, "{}", server.log());
}
