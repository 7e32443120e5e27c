//! A coordinator that cannot keep up: it is stopped for most of each second. Reports wait in the probers' spools, none is lost, and nothing grows
//! without bound.

mod common;

use std::time::Duration;

use common::group::Group;
use common::{Server, answers_text, assert_account, free_ports, wait_for};
use nix::sys::signal::Signal;

const CHECKS: usize = 100;
/// Slow for so many rounds of a second: reports of three flushes come together.
const ROUNDS: usize = 30;
/// What the coordinator may hold more while it is slow: four messages of rows for each prober, and the log of what it takes in.
const MORE_KIB: u64 = 64 * 1024;

/// A sum of samples of a prober's metric.
fn metric(port: u16, name: &str, labels: &[&str]) -> Option<u64> {
    let text = answers_text(port, "/metrics")?;
    let mut samples = text.lines().filter(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))).peekable();
    samples.peek()?;
    let wanted = samples.filter(|l| labels.is_empty() || labels.iter().any(|label| l.contains(label)));
    Some(wanted.filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>() as u64)
}

#[test]
fn a_coordinator_that_cannot_keep_up_loses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = Group::start(dir.path(), 1, 1);
    let ports = free_ports(2);
    let probers: Vec<Server> = (0..2)
        .map(|i| {
            let config = format!(
                "name: p{i}\ncoordinators: [\"{}\"]\ndataDir: {}\nlisten: {{http: \"127.0.0.1:{}\"}}\nlabels: {{zone: z{i}}}\nallowLoopback: true\n",
                group.address(0),
                dir.path().join(format!("p{i}")).display(),
                ports[i],
            );
            let path = dir.path().join(format!("p{i}.yaml"));
            std::fs::write(&path, config).expect("a file");
            Server::start(&["prober", "--insecure", "--config", &path.display().to_string()], &dir.path().join(format!("p{i}.log")))
        })
        .collect();
    // One that answers, and one that does not: outcomes differ, and all are to arrive.
    let targets: Vec<String> = (0..CHECKS).map(|i| format!("{{address: \"127.0.0.1:{}\", key: \"t{i}\"}}", if i % 2 == 0 { ports[0] } else { 9 })).collect();
    let probe = format!(
        "apiVersion: probity/v1\nkind: Probe\nmetadata: {{name: many}}\nspec:\n  interval: 1s\n  timeout: 1s\n  targets: {{static: [{}]}}\n  tcp: {{address: $(target.address)}}\n  placement: {{count: 2}}\n",
        targets.join(", ")
    );
    group.client.wait_json("the probers", &["status"], |s| s["probers"]["alive"] == 2);
    group.client.apply(dir.path(), &probe);
    group.client.wait_json("reports", &["status"], |s| s["runs"]["good"].as_u64() > Some(100) && s["runs"]["bad"].as_u64() > Some(100));

    let usual = group.server(0).memory_kib();
    let (mut waiting, mut memory) = (0, 0);
    for _ in 0..ROUNDS {
        group.server(0).signal(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(850));
        waiting = waiting.max(ports.iter().filter_map(|port| metric(*port, "probity_prober_spool_rows", &[])).sum());
        group.server(0).signal(Signal::SIGCONT);
        std::thread::sleep(Duration::from_millis(150));
        memory = memory.max(group.server(0).memory_kib());
    }
    println!("rows that waited in the spools: {waiting}; the coordinator held {usual} KiB, then at most {memory} KiB");
    assert!(waiting > 0, "what it did not take waited in the spools");
    assert!(memory < usual + MORE_KIB, "{usual} KiB, then {memory} KiB");

    // It is fast again: everything that was run arrives, once.
    let said = group.client.run(&["delete", "probe", "many"]);
    assert_eq!(said.code, 0, "{said:?}");
    for port in &ports {
        wait_for("the spools to be empty", || (metric(*port, "probity_prober_assignments", &[])? == 0).then_some(()));
        wait_for("the spools to be empty", || (metric(*port, "probity_prober_spool_rows", &[])? == 0).then_some(()));
        assert_eq!(metric(*port, "probity_prober_dropped_slots_total", &[]), Some(0));
    }
    let status = group.client.wait_json("nothing pending", &["status"], |s| s["runs"]["pending"] == 0);
    assert_account(&status);
    let runs = &status["runs"];
    for reason in ["spool_dropped", "spool_replaced", "prober_lost"] {
        assert!(runs["missed"][reason].is_null(), "{runs}");
    }
    let ran: u64 = ports.iter().filter_map(|port| metric(*port, "probity_probe_runs_total", &["outcome=\"good\"", "outcome=\"bad\""])).sum();
    let counted: u64 = ["good", "bad", "extra"].iter().filter_map(|key| runs[*key].as_u64()).sum();
    // Those that were under way when their checks were deleted belong to no slot that was planned.
    assert!(counted <= ran && ran - counted <= 2 * CHECKS as u64, "of {ran} runs {counted} are in the account: {runs}");
    assert!(group.server(0).log().lines().all(|l| !l.contains("panicked")) && probers.iter().all(|p| !p.log().contains("panicked")));
}
