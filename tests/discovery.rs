//! Targets that are found: in real files, from a real HTTP server, in a real DNS answer; and what becomes of them when the source fails,
//! shrinks and grows back.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};

use common::{Client, Server, free_ports, wait_for};
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::SRV;
use hickory_proto::rr::{Name, RData, Record};
use serde_json::{Value, json};

/// What an inventory answers: a status and a body.
type Answer = Arc<Mutex<(u16, String)>>;

fn inventory() -> (SocketAddr, Answer) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let answer: Answer = Arc::new(Mutex::new((200, "[]".to_owned())));
    let given = answer.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap_or(0);
            let asked = String::from_utf8_lossy(&request[..read]).to_lowercase();
            let (mut status, mut body) = given.lock().expect("not poisoned").clone();
            if !asked.contains("authorization: bearer hush") {
                (status, body) = (401, String::new());
            }
            let _ =
                write!(stream, "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        }
    });
    (address, answer)
}

/// A DNS server with SRV records of these ports.
fn dns(ports: Vec<u16>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("its address");
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
            let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
            reply.metadata.response_code = ResponseCode::NoError;
            reply.metadata.authoritative = true;
            for asked in &query.queries {
                reply.add_query(asked.clone());
                for port in &ports {
                    let host = Name::from_ascii("localhost.").expect("a name");
                    reply.add_answer(Record::from_rdata(asked.name().clone(), 1, RData::SRV(SRV::new(1, 1, *port, host))));
                }
            }
            let _ = socket.send_to(&reply.to_vec().expect("encodes"), from);
        }
    });
    address
}

/// Something that accepts.
fn targets(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let ports = listeners.iter().map(|l| l.local_addr().expect("its address").port()).collect();
    for listener in listeners {
        std::thread::spawn(move || listener.incoming().flatten().for_each(drop));
    }
    ports
}

fn groups(ports: &[u16]) -> String {
    let group = |(i, port): (usize, &u16)| json!({"targets": [format!("127.0.0.1:{port}")], "labels": {"store": format!("s{i}"), "region": "eu", "__meta_row": i.to_string()}});
    Value::from(ports.iter().enumerate().map(group).collect::<Vec<_>>()).to_string()
}

#[test]
fn targets_are_found_kept_held_and_come_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    for name in ["targets", "secrets"] {
        std::fs::create_dir_all(data.join(name)).expect("a directory");
    }
    std::fs::write(data.join("secrets/inventory"), "hush\n").expect("a secret");
    let ports = targets(4);
    let (http, answer) = inventory();
    *answer.lock().expect("not poisoned") = (200, groups(&ports));
    std::fs::write(data.join("targets/eu-1.json"), groups(&ports[..1])).expect("a file");
    std::fs::write(data.join("targets/eu-2.yml"), format!("- targets: ['127.0.0.1:{}']\n  labels: {{store: s9}}\n", ports[1])).expect("a file");
    let srv = dns(ports[..2].to_vec());
    let own = free_ports(2);
    let (grpc, web) = (own[0].to_string(), own[1].to_string());
    let args = ["up", "--data-dir", data.to_str().expect("a path"), "--http-port", &web, "--grpc-port", &grpc];
    let _system = Server::start(&args, &dir.path().join("up.log"));
    let client = Client { server: format!("127.0.0.1:{grpc}"), tls_dir: None };
    client.wait_json("three probers", &["status"], |v| v["probers"]["alive"] == 3);
    let probe = |name: &str, targets: &str| {
        format!(
            "apiVersion: probity/v1\nkind: Probe\nmetadata: {{name: {name}}}\nspec:\n  interval: 1s\n  targets: {{{targets}}}\n  tcp: {{}}\n  placement: {{count: 1}}\n---\n"
        )
    };
    let text = [
        probe(
            "tills",
            &format!("httpSD: {{url: 'http://{http}/tills', refresh: 5s, auth: {{bearer: {{secretRef: inventory}}}}}}, key: $(target.labels.store), labels: [store], max: 10"),
        ),
        probe("files", "fileSD: {files: ['eu-*.json', eu-2.yml], refresh: 5s}"),
        probe("srv", &format!("dnsSRV: {{names: [_shop._tcp.example.test], servers: ['udp://{srv}'], refresh: 5s}}, key: $(target.labels.__meta_dns_srv_record_port)")),
    ]
    .concat();
    client.apply(dir.path(), &text);
    // A build without it says so; one with it finds no cluster here.
    let kubernetes = dir.path().join("kubernetes.yaml");
    std::fs::write(&kubernetes, probe("k8s", "kubernetes: {role: service}")).expect("a file");
    let said = client.run(&["apply", "-f", kubernetes.to_str().expect("a path")]);
    assert!(
        cfg!(feature = "kubernetes") && said.code == 0 || said.out.contains("cargo feature kubernetes") || said.err.contains("cargo feature kubernetes"),
        "{said:?}"
    );
    client.run(&["delete", "probe", "k8s"]);

    let discovery = |v: &Value| v["status"]["discovery"].clone();
    let up = |v: &Value, checks: usize| v["status"]["checks"].as_array().is_some_and(|c| c.len() == checks && c.iter().all(|c| c["verdict"] == "up"));
    client.wait_json("four tills", &["get", "probe", "tills"], |v| up(v, 4));
    client.wait_json("two of files", &["get", "probe", "files"], |v| up(v, 2));
    let found = client.wait_json("two of DNS", &["get", "probe", "srv"], |v| up(v, 2));
    let mut names: Vec<String> = ports[..2].iter().map(|p| format!("default/srv/{p}")).collect();
    names.sort();
    let checks = found["status"]["checks"].as_array().expect("checks");
    assert_eq!(checks.iter().map(|c| c["check"].as_str().expect("a name").to_owned()).collect::<Vec<_>>(), names);
    assert_eq!(checks[0]["target"].as_str().expect("a target").split(':').next(), Some("localhost"));

    // The source fails: everything stays, and it is said.
    *answer.lock().expect("not poisoned") = (500, String::new());
    let failing = client.wait_json("a failure", &["get", "probe", "tills"], |v| discovery(v)["error"].is_string());
    assert!(up(&failing, 4) && discovery(&failing)["error"].as_str().expect("text").contains("500"), "{failing}");
    let status = client.run(&["status"]);
    assert!(status.out.contains("discovery of default/tills fails, 4 targets are kept: the server answered 500"), "{status:?}");
    *answer.lock().expect("not poisoned") = (200, "[]".to_owned());
    client.wait_json("an empty answer", &["get", "probe", "tills"], |v| discovery(v)["error"] == "nothing was found" && up(v, 4));

    // Half of it: held, with an alert, until somebody accepts.
    *answer.lock().expect("not poisoned") = (200, groups(&ports[..2]));
    let held = client.wait_json("a held set", &["get", "probe", "tills"], |v| discovery(v)["held"]["targets"] == 2);
    assert!(up(&held, 4));
    assert_eq!(discovery(&held)["held"]["lostFirst"], json!(["s2", "s3"]));
    let alerts = client.json(&["alert", "list"]).expect("alerts");
    assert!(alerts["items"].as_array().expect("items").iter().any(|a| a["metadata"]["name"] == "targets:tills/held"), "{alerts}");
    let said = client.run(&["describe", "probe", "tills"]);
    assert!(said.out.contains("HELD") && said.out.contains("without s2, s3") && said.out.contains("probity targets accept tills"), "{said:?}");
    let metrics = wait_for("the metrics", || http_get(&web, "/metrics"));
    for line in [
        r#"probity_discovery_targets{namespace="default",probe="tills"} 4"#,
        r#"probity_discovery_held_targets{namespace="default",probe="tills"} 2"#,
        r#"probity_discovery_failing{namespace="default",probe="tills"} 0"#,
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    let good = |v: &Value| v["status"]["runs"]["good"].as_u64().unwrap_or(0);
    let before = good(&client.json(&["get", "probe", "tills"]).expect("a probe"));
    let said = client.run(&["targets", "accept", "tills", "--yes"]);
    assert_eq!((said.code, said.out.contains("accepted: 2 targets")), (0, true), "{said:?}");
    client.wait_json("two tills", &["get", "probe", "tills"], |v| up(v, 2) && discovery(v)["held"].is_null());
    assert_eq!(client.run(&["targets", "accept", "tills", "--yes"]).code, 1);

    // They come back, and their account goes on.
    *answer.lock().expect("not poisoned") = (200, groups(&ports));
    let back = client.wait_json("four tills again", &["get", "probe", "tills"], |v| up(v, 4));
    assert!(good(&back) >= before, "{} >= {before}", good(&back));
    let generations: Vec<u64> = back["status"]["checks"].as_array().expect("checks").iter().map(|c| c["generation"].as_u64().expect("a number")).collect();
    assert_eq!(generations, [1, 1, 2, 2], "a new schedule of the same check");
    common::assert_account(&client.json(&["status"]).expect("a status"));

    // A file that goes is no target less by itself: 1 of 2 is held.
    std::fs::remove_file(data.join("targets/eu-1.json")).expect("removed");
    client.wait_json("a held set of files", &["get", "probe", "files"], |v| discovery(v)["held"]["targets"] == 1 && up(v, 2));
    std::fs::write(data.join("targets/eu-3.json"), "[{\"targets\": [\"half").expect("a file");
    let broken = client.wait_json("a broken file", &["get", "probe", "files"], |v| discovery(v)["error"].is_string());
    assert!(discovery(&broken)["error"].as_str().expect("text").starts_with("eu-3.json: no valid YAML or JSON"), "{broken}");
}

fn http_get(port: &str, path: &str) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.starts_with("HTTP/1.1 200").then_some(text)
}
