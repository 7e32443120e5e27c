//! Certificates renew themselves across changes of leader: the leader is killed each time that renewals fall due.

mod common;

use std::path::Path;

use common::group::Group;
use common::{Server, assert_account, run, wait_for};
use probity_rpc::tls::{Certified, TlsFiles};

/// Long enough for a busy machine to elect a leader within its last third.
const LIFETIME: &str = "36s";

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A certificate that ends soon, from a token, in a directory of its own.
fn enrol(group: &Group, who: &[&str], dir: &Path) {
    let said = group.client.run(&[&["ca", "token", "--lifetime", LIFETIME], who].concat());
    assert_eq!(said.code, 0, "{said:?}");
    let token = dir.with_extension("token");
    std::fs::write(&token, said.out).expect("a file");
    let said = run(&["ca", "enrol", "--token-file", &text(&token), "--dir", &text(dir), "--server", &group.client.server]);
    assert_eq!(said.code, 0, "{said:?}");
}

#[test]
fn a_leader_that_dies_when_certificates_are_due_takes_none_along() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = Group::start_secure(dir.path(), 3, 3, &[]);
    group.settled(&["c1", "c2", "c3"]);
    let tls = dir.path().join("tls");
    for name in ["c1", "c2", "c3"] {
        let fresh = dir.path().join(format!("fresh-{name}"));
        enrol(&group, &["--coordinator", &format!("{name}=127.0.0.1")], &fresh);
        for file in ["tls.key", "tls.crt"] {
            std::fs::rename(fresh.join(file), tls.join(name).join(file)).expect("replaced");
        }
    }
    enrol(&group, &["--prober", "e1"], &tls.join("e1"));
    let servers: Vec<String> = (0..3).map(|i| format!("\"{}\"", group.address(i))).collect();
    let config = format!(
        "name: e1\ncoordinators: [{}]\ndataDir: {}\ntls: {{dir: {}}}\nallowLoopback: true\n",
        servers.join(", "),
        text(&dir.path().join("e1")),
        text(&tls.join("e1"))
    );
    let path = dir.path().join("e1.yaml");
    std::fs::write(&path, config).expect("a file");
    let prober = Server::start(&["prober", "--config", &text(&path)], &dir.path().join("e1.log"));
    let probe = |name: &str| {
        format!(
            "apiVersion: probity/v1\nkind: Probe\nmetadata: {{name: {name}}}\nspec: {{interval: 1s, timeout: 1s, target: \"{}\", tcp: {{}}}}\n",
            group.address(0)
        )
    };
    group.client.apply(dir.path(), &probe("first"));
    let probes: Vec<String> = (0..2).map(|round| probe(&format!("round-{round}"))).collect();
    group.client.wait_json("the prober", &["status"], |s| s["probers"]["alive"] == 1);

    let own = |name: &str| -> Option<Certified> { TlsFiles::new(tls.join(name)).own().ok() };
    let names = ["c1", "c2", "c3", "e1"];
    for change in &probes {
        let before: Vec<Certified> = names.iter().map(|n| own(n).expect("it holds")).collect();
        let due = before.iter().map(Certified::renew_at_s).min().expect("four");
        wait_for("a renewal to fall due", || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_secs();
            (now + 1 >= due.unsigned_abs()).then_some(())
        });
        let leader = group.leader();
        group.server(leader).kill9();
        // People go on, and so do changes.
        group.client.apply(dir.path(), change);
        let renewed = |n: usize| wait_for(names[n], || own(names[n]).filter(|now| now.serial != before[n].serial));
        for n in (0..4).filter(|n| *n != leader) {
            let now = renewed(n);
            assert!(now.not_before_s < before[n].not_after_s, "without a gap");
        }
        group.run(leader);
        renewed(leader);
        group.settled(&["c1", "c2", "c3"]);
        group.client.wait_json("the prober", &["status"], |s| s["probers"]["alive"] == 1);
    }
    let audit = group.client.json(&["audit"]).expect("the audit");
    for name in names {
        let renewals = audit["items"].as_array().into_iter().flatten().filter(|i| i["status"]["action"] == "renew" && i["status"]["actor"] == name).count();
        assert!(renewals >= 2, "{name}: {audit}");
    }
    let status = group.client.json(&["status"]).expect("a status");
    assert_account(&status);
    let logs = (0..3).map(|i| group.servers[i].as_ref().map(Server::log).unwrap_or_default()).chain([prober.log()]);
    for log in logs {
        assert!(!log.contains("panicked") && !log.contains("has expired"), "{log}");
    }
}
