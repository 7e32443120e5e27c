//! What is wrong gets one clear line and a proper exit code, and damages nothing.

mod common;

use std::io::Write;
use std::net::{TcpListener, TcpStream};

use common::{Client, Server, free_ports, probity, run, wait_for};

fn config(dir: &std::path::Path, http: u16, grpc: u16) -> String {
    let path = dir.join("c1.yaml");
    let text = format!(
        "cluster: test\nname: c1\ndataDir: {}\nlisten: {{http: \"127.0.0.1:{http}\", grpc: \"127.0.0.1:{grpc}\"}}\ninitialMembers: {{c1: \"127.0.0.1:{grpc}\"}}\n",
        dir.join("data").display()
    );
    std::fs::write(&path, text).expect("a file");
    path.display().to_string()
}

/// One line that says `what`.
fn assert_one_error(said: &common::Said, code: i32, what: &str) {
    assert_eq!(said.code, code, "{said:?}");
    let errors: Vec<&str> = said.err.lines().filter(|l| l.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].contains(what), "{said:?}");
    assert!(!said.err.contains("panicked"), "{said:?}");
}

#[test]
fn servers_refuse_what_they_cannot_use() {
    let dir = tempfile::tempdir().expect("a directory");
    let ports = free_ports(2);
    let config = config(dir.path(), ports[0], ports[1]);
    let coordinator = ["coordinator", "--insecure", "--config", &config];

    assert_one_error(&run(&["coordinator", "--config", &config]), 2, "tls is not set");

    let held = TcpListener::bind(("127.0.0.1", ports[0])).expect("the port is free");
    assert_one_error(&run(&coordinator), 1, &format!("cannot listen on 127.0.0.1:{}", ports[0]));
    drop(held);

    let mut first = Server::start(&coordinator, &dir.path().join("c1.log"));
    let client = Client { server: format!("127.0.0.1:{}", ports[1]), tls_dir: None };
    let status = wait_for("an answer", || Some(client.run(&["status"])).filter(|s| s.err.contains("not initialised")));
    assert_eq!(status.code, 1);
    assert_eq!(client.run(&["cluster", "init"]).code, 0);

    let others = free_ports(2);
    let second = self::config(dir.path(), others[0], others[1]);
    assert_one_error(&run(&["coordinator", "--insecure", "--config", &second]), 1, "is in use by another process");

    for port in &ports {
        let mut stream = TcpStream::connect(("127.0.0.1", *port)).expect("it listens");
        let garbage: Vec<u8> = (0..4_096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let _ = stream.write_all(&garbage);
    }
    client.wait_json("a leader", &["status"], |s| s["leader"].is_object());
    assert_eq!(first.stop(), 0);
    assert!(!first.log().contains("panicked"), "{}", first.log());

    let store = dir.path().join("data/coordinator.redb");
    let whole = std::fs::read(&store).expect("the store");
    std::fs::write(&store, &whole[..5_000]).expect("cut short");
    let second = self::config(dir.path(), others[0], others[1]);
    assert_one_error(&run(&["coordinator", "--insecure", "--config", &second]), 1, "truncated");
    assert_eq!(std::fs::read(&store).expect("the store").len(), 5_000, "it is left as it is");
    std::fs::write(&store, b"no store").expect("garbage");
    assert_one_error(&run(&["coordinator", "--insecure", "--config", &second]), 1, "cannot open");
    assert_eq!(std::fs::read(&store).expect("the store"), b"no store");
}

#[test]
fn resources_with_mistakes_are_refused_as_a_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let bad = dir.path().join("bad.yaml");
    let text = "apiVersion: probity/v1\nkind: Probe\nmetadata: {name: a}\nspec:\n  intervall: 5s\n  timeout: 1h\n  target: https://x\n  http: {}\n";
    std::fs::write(&bad, text).expect("a file");
    let path = bad.to_str().expect("a path");
    let said = run(&["validate", "-f", path]);
    assert_eq!(said.code, 1, "{said:?}");
    for line in [
        format!("{path}:5:3: spec.intervall: unknown key \"intervall\" (did you mean \"interval\"?)"),
        format!("{path}:6:12: spec.timeout: 1h is above the interval"),
    ] {
        assert!(said.err.contains(&line), "{line} is not in {said:?}");
    }
    let said = run(&["up", "-f", path, "--data-dir", dir.path().join("never").to_str().expect("a path")]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(!dir.path().join("never").exists(), "nothing was started");
}

#[test]
fn misuse_is_two_and_nobody_there_is_three() {
    let port = free_ports(1)[0];
    let server = format!("127.0.0.1:{port}");
    for (args, code) in [
        (vec!["frobnicate"], 2),
        (vec!["get", "nonsense", "--server", &server], 2),
        (vec!["probe", "ftp://x"], 2),
        (vec!["apply", "-f", "/nowhere/at/all.yaml", "--server", &server], 2),
        (vec!["status", "--server", &server], 3),
        (vec!["explain", "probe.spec.nonsense"], 1),
        (vec!["version"], 0),
    ] {
        let said: common::Said = probity(&args).output().expect("probity runs").into();
        assert_eq!(said.code, code, "{args:?}: {said:?}");
    }
}
