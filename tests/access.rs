//! Who gets in, with real processes: certificates, tokens, roles, renewals, revocations, and plain words for everybody else.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use common::{Client, Said, Server, free_ports, run, wait_for};
use serde_json::Value;

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// One coordinator under mutual TLS, and an admin.
struct Cluster {
    dir: tempfile::TempDir,
    coordinator: Server,
    grpc: String,
    http: u16,
    admin: Client,
}

fn ca_init(dir: &Path, who: &[&str]) {
    let dir = text(dir);
    let said = run(&[&["ca", "init", "--dir", &dir], who].concat());
    assert_eq!(said.code, 0, "{said:?}");
}

impl Cluster {
    fn start() -> Cluster {
        Cluster::start_with("")
    }

    /// With more in its configuration.
    fn start_with(more: &str) -> Cluster {
        let dir = tempfile::tempdir().expect("a directory");
        let ports = free_ports(2);
        let grpc = format!("127.0.0.1:{}", ports[1]);
        let tls = dir.path().join("tls");
        ca_init(
            &tls,
            &["--coordinator", "c1=127.0.0.1", "--admin", "me", "--prober", "e9", "--client", "anna=operator:shop,chaos:shop", "--client", "otto=viewer:shop"],
        );
        let config = format!(
            "cluster: test\nname: c1\ndataDir: {}\nlisten: {{http: \"127.0.0.1:{}\", grpc: \"{grpc}\"}}\ntls: {{dir: {}}}\nhttpNames: [status.example.com]\nallowLoopback: true\n{more}",
            text(&dir.path().join("c1")),
            ports[0],
            text(&tls.join("c1")),
        );
        let path = dir.path().join("c1.yaml");
        std::fs::write(&path, config).expect("a file");
        let coordinator = Server::start(&["coordinator", "--config", &text(&path)], &dir.path().join("c1.log"));
        let admin = Client { server: grpc.clone(), tls_dir: Some(tls.join("me")) };
        wait_for("the cluster to form", || (admin.run(&["cluster", "init"]).code == 0).then_some(()));
        admin.wait_json("a leader", &["status"], |s| s["leader"].is_object());
        Cluster { dir, coordinator, grpc, http: ports[0], admin }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn client(&self, name: &str) -> Client {
        Client { server: self.grpc.clone(), tls_dir: Some(self.path("tls").join(name)) }
    }

    /// A file with a fresh token.
    fn token(&self, name: &str, args: &[&str]) -> String {
        let said = self.admin.run(&[&["ca", "token"], args].concat());
        assert_eq!(said.code, 0, "{said:?}");
        let path = self.path(name);
        std::fs::write(&path, said.out).expect("a file");
        text(&path)
    }

    fn enrol(&self, token: &str, dir: &str) -> Said {
        run(&["ca", "enrol", "--token-file", token, "--dir", &text(&self.path(dir)), "--server", &self.grpc])
    }

    fn prober(&self, name: &str, extra: &[&str]) -> Server {
        let config = format!(
            "name: {name}\ncoordinators: [\"{}\"]\ndataDir: {}\ntls: {{dir: {}}}\nallowLoopback: true\n",
            self.grpc,
            text(&self.path(name)),
            text(&self.path(&format!("tls-{name}"))),
        );
        let path = self.path(&format!("{name}.yaml"));
        std::fs::write(&path, config).expect("a file");
        let path = text(&path);
        let args = [&["prober", "--config", path.as_str()], extra].concat();
        Server::start(&args, &self.path(&format!("{name}.log")))
    }

    /// What curl with the cluster's authority says; the status first.
    fn http(&self, path: &str, extra: &[&str]) -> (u32, String) {
        let ca = text(&self.path("tls/ca.crt"));
        let url = format!("https://127.0.0.1:{}{path}", self.http);
        let args = [&["-s", "-i", "--max-time", "20", "--cacert", ca.as_str()], extra, &[url.as_str()]].concat();
        let output = std::process::Command::new("curl").args(&args).output().expect("curl runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let status = said.split_whitespace().nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, said)
    }
}

fn serial(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("tls.crt")).unwrap_or_default()
}

fn error_line(said: &Said) -> String {
    let lines: Vec<&str> = said.err.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "one line says it: {said:?}");
    lines[0].to_owned()
}

#[test]
fn a_prober_enrols_renews_is_revoked_and_comes_back() {
    let cluster = Cluster::start();
    let admin = &cluster.admin;
    let token = cluster.token("token-e1", &["--prober", "e1", "--lifetime", "20s"]);
    let secret = std::fs::read_to_string(&token).expect("the token");
    let tls = cluster.path("tls-e1");
    let mut prober = cluster.prober("e1", &["--token-file", &token]);
    admin.wait_json("the prober", &["status"], |s| s["probers"]["alive"] == 1);
    let first = serial(&tls);
    assert!(tls.join("tls.key").exists() && !tls.join("tls.key.new").exists());

    // The certificate is replaced before it ends, and the prober stays.
    wait_for("a renewal", || (serial(&tls) != first).then_some(()));
    let second = serial(&tls);
    wait_for("another", || (serial(&tls) != second).then_some(()));
    admin.wait_json("the prober still", &["status"], |s| s["probers"]["alive"] == 1);
    admin.wait_json("the audit", &["audit", "--for", "Certificate/e1"], |a| {
        let of = |action: &str| a["items"].as_array().into_iter().flatten().filter(|i| i["status"]["action"] == action).count();
        of("enrol") == 1 && of("renew") >= 2
    });

    // The token is burnt; nobody learns its secret from the cluster.
    let again = cluster.enrol(&token, "tls-thief");
    assert_eq!(again.code, 1, "{again:?}");
    assert!(error_line(&again).contains("was used already, from 127.0.0.1:"), "{again:?}");
    assert!(!cluster.path("tls-thief").join("tls.crt").exists());
    let tokens = admin.run(&["get", "tokens", "-o", "json"]);
    let secret = secret.trim().split('.').nth(1).expect("a secret").to_owned();
    assert!(tokens.out.contains("\"for\": \"e1\"") && !tokens.out.contains(&secret), "{tokens:?}");
    assert!(!cluster.coordinator.log().contains(&secret));

    let refused = admin.run(&["delete", "prober", "e1"]);
    assert!(error_line(&refused).contains("is alive: stop it first"), "{refused:?}");

    // Revoked: its stream is cut though its certificate would hold, and it is not let in again.
    assert_eq!(admin.run(&["ca", "revoke", "e1", "--reason", "stolen"]).code, 0);
    wait_for("the prober to be told", || prober.log().contains("was revoked").then_some(()));
    admin.wait_json("the silence", &["status"], |s| s["probers"]["alive"] == 0);
    prober.kill9();
    // Gone for good: its record goes, and the audit says by whom.
    let removed = wait_for("the prober to be removed", || Some(admin.run(&["delete", "prober", "e1"])).filter(|said| said.code == 0));
    assert!(removed.out.contains("prober e1 is removed"), "{removed:?}");
    assert_eq!(admin.json(&["get", "probers"]).expect("a list")["items"].as_array().map(Vec::len), Some(0));
    let audit = admin.json(&["audit", "--for", "Prober/e1"]).expect("the audit");
    assert_eq!((&audit["items"][0]["status"]["actor"], &audit["items"][0]["status"]["action"]), (&"me".into(), &"remove".into()));

    // A new token lets the name in again.
    std::fs::remove_dir_all(&tls).expect("the files of the thief");
    let token = cluster.token("token-e1b", &["--prober", "e1"]);
    let _prober = cluster.prober("e1", &["--token-file", &token]);
    admin.wait_json("the prober again", &["status"], |s| s["probers"]["alive"] == 1);
    let log = cluster.coordinator.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn people_may_do_what_their_roles_say_and_the_audit_tells() {
    let cluster = Cluster::start();
    let (admin, anna, otto) = (&cluster.admin, cluster.client("anna"), cluster.client("otto"));
    let probe = |namespace: &str, interval: &str| {
        format!(
            "apiVersion: probity/v1\nkind: Probe\nmetadata: {{name: till, namespace: {namespace}}}\nspec: {{interval: {interval}, timeout: 1s, target: \"127.0.0.1:9\", tcp: {{}}}}\n"
        )
    };
    let apply = |client: &Client, namespace: &str, interval: &str| {
        let file = cluster.path("probe.yaml");
        std::fs::write(&file, probe(namespace, interval)).expect("a file");
        client.run(&["apply", "-f", &text(&file)])
    };
    assert_eq!(apply(&anna, "shop", "10s").code, 0);
    assert_eq!(apply(&anna, "shop", "20s").code, 0);
    let refused = apply(&anna, "search", "10s");
    assert!(error_line(&refused).contains("it needs operator or admin in namespace \"search\""), "{refused:?}");
    let refused = apply(&otto, "shop", "10s");
    assert!(error_line(&refused).contains("otto (viewer:shop) may not do this: it needs operator or admin"), "{refused:?}");
    assert_eq!(apply(admin, "search", "10s").code, 0);

    // Each sees its own namespace.
    let names = |client: &Client| client.json(&["get", "probes", "-A"]).expect("a list")["items"].as_array().map_or(0, Vec::len);
    assert_eq!((names(admin), names(&anna), names(&otto)), (2, 1, 1));
    let refused = otto.run(&["get", "probes", "-n", "search"]);
    assert!(error_line(&refused).contains("it needs viewer in namespace \"search\""), "{refused:?}");
    let refused = anna.run(&["delete", "probe", "till", "-n", "search"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    for (command, needs) in [
        (vec!["ca", "revoke", "me"], "admin of the whole cluster"),
        (vec!["halt", "lift"], "chaos or admin of the whole cluster"),
        (vec!["get", "tokens"], "admin of the whole cluster"),
    ] {
        let refused = anna.run(&command);
        assert!(error_line(&refused).contains(needs), "{command:?}: {refused:?}");
    }
    // Whoever may disturb anything may end everything.
    assert_eq!(anna.run(&["halt", "--reason", "drill"]).code, 0);
    assert_eq!(admin.run(&["halt", "lift"]).code, 0);
    // A prober's certificate is for a prober.
    let refused = cluster.client("e9").run(&["status"]);
    assert!(error_line(&refused).contains("e9 (prober) may not do this"), "{refused:?}");

    let audit = admin.json(&["audit", "-n", "shop", "--for", "Probe/till"]).expect("the audit");
    let items = audit["items"].as_array().expect("items");
    assert_eq!(items.len(), 2, "{audit}");
    let (made, changed) = (&items[0]["status"], &items[1]["status"]);
    assert_eq!((made["actor"].as_str(), made["action"].as_str()), (Some("anna"), Some("created")));
    assert!(made["origin"].as_str().is_some_and(|o| o.starts_with("127.0.0.1:")), "{made}");
    assert!(made["credential"].as_str().is_some_and(|c| c.starts_with("certificate ")), "{made}");
    assert_eq!((changed["before"]["spec"]["interval"].as_str(), changed["after"]["spec"]["interval"].as_str()), (Some("10s"), Some("20s")));
    let table = admin.run(&["audit"]);
    for word in ["anna", "spec.interval", "halt", "lift halt", "Cluster/cluster"] {
        assert!(table.out.contains(word), "{word}: {}", table.out);
    }
    assert!(!otto.run(&["audit"]).out.contains("lift halt"), "what is of the whole cluster is for who sees the whole");

    // Out of the door by serial number.
    let serial = made["credential"].as_str().and_then(|c| c.strip_prefix("certificate ")).expect("a serial").to_owned();
    assert_eq!(admin.run(&["ca", "revoke", &serial]).code, 0);
    let refused = anna.run(&["get", "probes", "-n", "shop"]);
    assert!(error_line(&refused).contains("was revoked"), "{refused:?}");
}

#[test]
fn strangers_are_told_in_one_line() {
    let cluster = Cluster::start();
    let port = cluster.grpc.rsplit_once(':').expect("a port").1.to_owned();
    // Another authority, of the same names.
    let other = cluster.path("other");
    ca_init(&other, &["--coordinator", "c1=127.0.0.1", "--admin", "me"]);
    let theirs = |dir: PathBuf, server: &str| Client { server: server.to_owned(), tls_dir: Some(dir) }.run(&["status"]);
    let said = theirs(other.join("me"), &cluster.grpc);
    assert!(error_line(&said).contains("its certificate is not of the authority in"), "{said:?}");
    // It believes us, and we do not believe it.
    let mixed = cluster.path("mixed");
    std::fs::create_dir(&mixed).expect("a directory");
    for (name, from) in [("ca.crt", cluster.path("tls/me")), ("tls.crt", other.join("me")), ("tls.key", other.join("me"))] {
        std::fs::copy(from.join(name), mixed.join(name)).expect("a copy");
    }
    let said = theirs(mixed, &cluster.grpc);
    assert!(error_line(&said).contains("does not know the authority of our certificate"), "{said:?}");
    // A name that the certificate has not.
    let said = theirs(cluster.path("tls/me"), &format!("localhost:{port}"));
    assert!(error_line(&said).contains("its certificate is for other names"), "{said:?}");
    // TLS against plain text, and plain text against TLS.
    let said = theirs(cluster.path("tls/me"), &format!("127.0.0.1:{}", cluster.http));
    assert_eq!(said.code, 3, "the HTTP port speaks no gRPC: {said:?}");
    let said = Client { server: cluster.grpc.clone(), tls_dir: None }.run(&["status"]);
    assert_ne!(said.code, 0, "{said:?}");
    let said = Client { server: "c1.example.com:7601".to_owned(), tls_dir: None }.run(&["status"]);
    assert!(error_line(&said).contains("plain text is allowed on loopback only"), "{said:?}");
    // No certificate at all.
    let bare = cluster.path("bare");
    std::fs::create_dir(&bare).expect("a directory");
    std::fs::copy(cluster.path("tls/ca.crt"), bare.join("ca.crt")).expect("a copy");
    let said = theirs(bare, &cluster.grpc);
    assert!(error_line(&said).contains("a client certificate is wanted"), "{said:?}");

    // Tokens: expired, wrong, of another cluster, nonsense.
    let token = cluster.token("short", &["--client", "late=viewer", "--valid", "1s"]);
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    let said = cluster.enrol(&token, "late");
    assert!(error_line(&said).contains("has expired"), "{said:?}");
    let token = cluster.token("right", &["--client", "bob=viewer"]);
    let right = std::fs::read_to_string(&token).expect("the token");
    let mut parts: Vec<&str> = right.trim().split('.').collect();
    let (id, root) = (parts[0], parts[2]);
    let stranger = "0".repeat(64);
    for (wrong, why) in [
        (format!("{id}.AAAA.{root}"), "is not known here, or its secret is wrong"),
        (right.replace(root, &stranger), "its certificate is not of the authority with the fingerprint"),
        ("nonsense".to_owned(), "not a join token"),
    ] {
        let path = cluster.path("wrong");
        std::fs::write(&path, &wrong).expect("a file");
        let said = cluster.enrol(&text(&path), "nobody");
        assert!(error_line(&said).contains(why), "{said:?}");
        assert!(!said.err.contains(parts[1]), "no secret in an error: {said:?}");
    }
    parts.clear();
    // The right one works, once, for its name and role.
    assert_eq!(cluster.enrol(&token, "bob").code, 0);
    let bob = Client { server: cluster.grpc.clone(), tls_dir: Some(cluster.path("bob")) };
    assert_eq!(bob.run(&["get", "probes"]).code, 0);
    assert_eq!(bob.run(&["halt"]).code, 1);
    // A certificate whose time is over, because nobody used it, says so before anybody is asked.
    let token = cluster.token("brief", &["--client", "ann=viewer", "--lifetime", "10s"]);
    assert_eq!(cluster.enrol(&token, "ann").code, 0);
    let ann = Client { server: cluster.grpc.clone(), tls_dir: Some(cluster.path("ann")) };
    std::thread::sleep(std::time::Duration::from_secs(11));
    let said = wait_for("the certificate's end", || Some(ann.run(&["status"])).filter(|said| said.code != 0));
    assert!(error_line(&said).contains("the certificate of \"ann\"") && said.err.contains("has expired at 20"), "{said:?}");

    // A prober with the certificate of another name does not start; nor does a coordinator with a person's.
    let mut prober = cluster.prober("e2", &["--token-file", &cluster.token("t9", &["--prober", "e3"])]);
    wait_for("the prober to give up", || prober.log().contains("the certificate is of prober \"e3\", not of prober \"e2\"").then_some(()));
    prober.kill9();
    // Garbage, and half a handshake.
    for (port, bytes) in [(port.parse::<u16>().expect("a port"), vec![0x16, 3, 1, 0xff, 0xff, 1, 2, 3]), (cluster.http, vec![0u8; 4_096])] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        let _ = stream.write_all(&bytes);
    }
    assert_eq!(cluster.admin.run(&["status"]).code, 0);
    assert!(!cluster.coordinator.log().contains("panicked"), "{}", cluster.coordinator.log());
}

#[test]
fn the_http_side_reads_for_whom_it_knows() {
    if std::process::Command::new("curl").arg("--version").output().is_err() {
        println!("SKIPPED: curl is not installed");
        return;
    }
    let cluster = Cluster::start();
    let reader = |name: &str, of: &str| std::fs::read_to_string(cluster.token(name, &["--read", of])).expect("a token").trim().to_owned();
    let (all, shop) = (reader("r1", "grafana"), reader("r2", "wall=viewer:shop"));
    let bearer = |token: &str| format!("authorization: Bearer {token}");

    assert_eq!(cluster.http("/healthz", &[]).0, 200);
    let (status, said) = cluster.http("/api/v1/status", &[]);
    assert_eq!(status, 401, "{said}");
    assert!(said.to_ascii_lowercase().contains("www-authenticate: bearer") && said.contains("a token is wanted"), "{said}");
    assert_eq!(cluster.http("/", &[]).0, 401);
    assert_eq!(cluster.http("/api/v1/status", &["-H", "authorization: Bearer nonsense"]).0, 401);
    assert_eq!(cluster.http("/api/v1/status", &["-H", &bearer(&format!("{}x", all))]).0, 401);
    let (status, said) = cluster.http("/api/v1/status", &["-H", &bearer(&all)]);
    assert_eq!(status, 200, "{said}");
    let lower = said.to_ascii_lowercase();
    for header in ["x-content-type-options: nosniff", "x-frame-options: deny", "referrer-policy: no-referrer", "content-security-policy: default-src 'none'"] {
        assert!(lower.contains(header), "{header}: {said}");
    }
    // A browser's dialog, and a client certificate.
    assert_eq!(cluster.http("/", &["-u", &format!("anybody:{all}")]).0, 200);
    let (crt, key) = (text(&cluster.path("tls/otto/tls.crt")), text(&cluster.path("tls/otto/tls.key")));
    assert_eq!(cluster.http("/api/v1/probes", &["--cert", &crt, "--key", &key]).0, 200);
    // Each in its namespace; metrics name all of them.
    assert_eq!(cluster.http("/api/v1/probes?namespace=shop", &["-H", &bearer(&shop)]).0, 200);
    assert_eq!(cluster.http("/api/v1/probes?namespace=search", &["-H", &bearer(&shop)]).0, 403);
    assert_eq!(cluster.http("/metrics", &["-H", &bearer(&shop)]).0, 403);
    let (status, said) = cluster.http("/metrics", &["-H", &bearer(&all)]);
    assert_eq!(status, 200);
    assert!(said.contains("probity_connections "), "{said}");
    // Nothing writes, whoever asks.
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
        assert_eq!(cluster.http("/api/v1/probes", &["-X", method, "-H", &bearer(&all)]).0, 405, "{method}");
    }
    // A page of somebody else that made its name resolve to us.
    assert_eq!(cluster.http("/api/v1/status", &["-H", "host: evil.example", "-H", &bearer(&all)]).0, 421);
    assert_eq!(cluster.http("/api/v1/status", &["-H", "host: status.example.com", "-H", &bearer(&all)]).0, 200);
    // Too much of anything. An answer that comes before the request has been read may be lost to the reset that follows it: then once more.
    let huge = format!("x-big: {}", "a".repeat(60_000));
    let too_large = |args: &[&str]| wait_for("431", || (cluster.http("/api/v1/status", args).0 == 431).then_some(()));
    too_large(&["-H", &huge, "-H", &bearer(&all)]);
    let many: Vec<String> = (0..100).map(|i| format!("x-{i}: 1")).collect();
    let many: Vec<&str> = many.iter().flat_map(|h| ["-H", h.as_str()]).collect();
    too_large(&many);

    // The command line reads with a token too, and no more than reads.
    let ca = cluster.path("bare");
    std::fs::create_dir(&ca).expect("a directory");
    std::fs::copy(cluster.path("tls/ca.crt"), ca.join("ca.crt")).expect("a copy");
    let with_token = |args: &[&str]| -> Said {
        let client = Client { server: cluster.grpc.clone(), tls_dir: Some(ca.clone()) };
        client.command(args).env("PROBITY_TOKEN", &all).output().expect("probity runs").into()
    };
    assert_eq!(with_token(&["status"]).code, 0);
    assert!(error_line(&with_token(&["halt"])).contains("grafana (viewer) may not do this"));

    // A context keeps it all under one name.
    let home = cluster.path("home");
    let token_file = cluster.path("all");
    std::fs::write(&token_file, &all).expect("a file");
    let in_home = |args: &[&str]| -> Said { common::probity(args).env("XDG_CONFIG_HOME", &home).output().expect("probity runs").into() };
    let (server, dir, file) = (cluster.grpc.as_str(), text(&ca), text(&token_file));
    let added = in_home(&["context", "add", "test", "--server", server, "--tls-dir", &dir, "-n", "shop", "--token-file", &file]);
    assert_eq!(added.code, 0, "{added:?}");
    assert_eq!(in_home(&["status"]).code, 0);
    let listed = in_home(&["context", "list"]);
    assert!(listed.out.contains("shop") && !listed.out.contains(&all), "{listed:?}");
    assert_eq!(in_home(&["context", "use", "nope"]).code, 2);
    assert_eq!(in_home(&["status", "--context", "nope"]).code, 2);
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(home.join("probity/contexts.yaml")).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // Revoked is revoked.
    let id = all.split('.').next().and_then(|p| p.strip_prefix("probity-read-")).expect("an id").to_owned();
    assert_eq!(cluster.admin.run(&["ca", "revoke", &id]).code, 0);
    let (status, said) = cluster.http("/api/v1/status", &["-H", &bearer(&all)]);
    assert!(status == 401 && said.contains("was revoked"), "{said}");
}

/// An identity provider: discovery, its key, and tokens.
struct Provider {
    issuer: String,
    key: ring::signature::EcdsaKeyPair,
}

impl Provider {
    fn start() -> Provider {
        use base64::Engine;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        use ring::signature::KeyPair;
        let algorithm = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let random = ring::rand::SystemRandom::new();
        let pkcs8 = ring::signature::EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
        let key = ring::signature::EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).expect("the key");
        let part = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&key.public_key().as_ref()[range]);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let issuer = format!("http://{}", listener.local_addr().expect("its address"));
        let discovery = format!(r#"{{"issuer": "{issuer}", "jwks_uri": "{issuer}/keys"}}"#);
        let keys = format!(r#"{{"keys": [{{"kty": "EC", "crv": "P-256", "kid": "k", "x": "{}", "y": "{}"}}]}}"#, part(1..33), part(33..65));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut buffer = [0; 4_096];
                let n = stream.read(&mut buffer).unwrap_or(0);
                let body = if buffer[..n].starts_with(b"GET /keys ") { &keys } else { &discovery };
                let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()).as_bytes());
            }
        });
        Provider { issuer, key }
    }

    fn token(&self, group: &str) -> String {
        use base64::Engine;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let end = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_secs() + 600;
        let claims = format!(r#"{{"iss": "{}", "aud": "probity", "sub": "anna", "exp": {end}, "groups": ["{group}"]}}"#, self.issuer);
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg": "ES256", "kid": "k"}"#), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.key.sign(&ring::rand::SystemRandom::new(), message.as_bytes()).expect("signed");
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

#[test]
fn people_of_an_identity_provider_read() {
    if std::process::Command::new("curl").arg("--version").output().is_err() {
        println!("SKIPPED: curl is not installed");
        return;
    }
    let (provider, stranger) = (Provider::start(), Provider::start());
    let openid = format!("openid: {{issuer: \"{}\", audience: probity, roles: {{sre: [admin], shop: [\"operator:shop\"]}}}}\n", provider.issuer);
    let cluster = Cluster::start_with(&openid);
    let status = |token: &str, path: &str| cluster.http(path, &["-H", &format!("authorization: Bearer {token}")]).0;
    assert_eq!(status(&provider.token("sre"), "/api/v1/status"), 200);
    assert_eq!(status(&provider.token("sre"), "/metrics"), 200);
    assert_eq!(status(&provider.token("sre"), "/api/v1/tokens"), 403, "a bearer reads, whatever its role");
    assert_eq!(status(&provider.token("shop"), "/api/v1/probes?namespace=shop"), 200);
    assert_eq!(status(&provider.token("shop"), "/api/v1/probes?namespace=search"), 403);
    assert_eq!(status(&provider.token("cleaning"), "/api/v1/status"), 403);
    assert_eq!(status(&stranger.token("sre"), "/api/v1/status"), 401);
}

#[test]
fn files_of_ones_own_authority_are_read_again_when_they_change() {
    if std::process::Command::new("openssl").arg("version").output().is_err() {
        println!("SKIPPED: openssl is not installed");
        return;
    }
    let cluster = Cluster::start();
    // The coordinator gets a new certificate, of the same authority, by nothing but its files.
    let before = server_certificate(&cluster);
    let tls = cluster.path("tls/c1");
    let token = cluster.token("t", &["--coordinator", "c1=127.0.0.1,localhost"]);
    assert_eq!(cluster.enrol(&token, "fresh").code, 0);
    let fresh = cluster.path("fresh");
    assert!(fresh.join("issuer.csr").exists(), "what joined may be given an issuing certificate");
    for name in ["tls.key", "tls.crt"] {
        std::fs::rename(fresh.join(name), tls.join(name)).expect("replaced");
    }
    assert_ne!(wait_for("the new certificate", || Some(server_certificate(&cluster)).filter(|now| *now != before)), before);
    let port = cluster.grpc.rsplit_once(':').expect("a port").1;
    let by_name = Client { server: format!("localhost:{port}"), ..cluster.admin.clone() };
    assert_eq!(by_name.run(&["status"]).code, 0, "the new one has another name");
    // Files of no use change nothing.
    std::fs::write(tls.join("tls.crt"), "nonsense").expect("a file");
    assert_eq!(cluster.admin.run(&["status"]).code, 0);
    wait_for("a word of it", || cluster.coordinator.log().contains("the TLS files changed and are of no use").then_some(()));

    // The root's keeper signs the issuing certificate of who joined.
    let out = cluster.path("issuer.crt");
    let (dir, csr) = (text(&cluster.path("tls")), text(&fresh.join("issuer.csr")));
    let said = run(&["ca", "sign", "--dir", &dir, "--name", "c1", "--csr", &csr, "--out", &text(&out), "--domain", "127.0.0.1"]);
    assert_eq!(said.code, 0, "{said:?}");
    std::fs::copy(&out, tls.join("issuer.crt")).expect("a copy");
    std::fs::copy(fresh.join("issuer.key"), tls.join("issuer.key")).expect("a copy");
    let token = cluster.token("t2", &["--client", "eve=viewer"]);
    assert_eq!(cluster.enrol(&token, "eve").code, 0);
    let eve = Client { server: cluster.grpc.clone(), tls_dir: Some(cluster.path("eve")) };
    assert_eq!(eve.run(&["status"]).code, 0, "what it issues is believed");
    // Without one it says so, when the token is made and not when it is used.
    std::fs::remove_file(tls.join("issuer.key")).expect("gone");
    let said = cluster.admin.run(&["ca", "token", "--prober", "e7"]);
    assert!(error_line(&said).contains("coordinator c1 has no issuing certificate"), "{said:?}");
    // And to whoever looks, until it has one again.
    let admin = &cluster.admin;
    let why = |s: &serde_json::Value| s["degraded"].as_array().is_some_and(|d| d.iter().any(|r| r.as_str().is_some_and(|r| r.contains("cannot issue"))));
    admin.wait_json("a word of it", &["status"], why);
    let listed = admin.run(&["cluster", "status"]);
    assert!(listed.out.contains("cannot issue certificates while it leads"), "{listed:?}");
    std::fs::copy(fresh.join("issuer.key"), tls.join("issuer.key")).expect("a copy");
    admin.wait_json("the end of it", &["status"], |s| !why(s));
    let events = admin.run(&["events", "--for", "Member/c1"]);
    assert!(events.out.contains("can issue certificates again"), "{events:?}");
}

#[test]
fn a_persons_certificate_renews_itself_with_use() {
    let cluster = Cluster::start();
    let token = cluster.token("t", &["--client", "ann=viewer", "--lifetime", "30s"]);
    assert_eq!(cluster.enrol(&token, "ann").code, 0);
    let dir = cluster.path("ann");
    let ann = Client { server: cluster.grpc.clone(), tls_dir: Some(dir.clone()) };
    let (first, ca) = (serial(&dir), std::fs::read(dir.join("ca.crt")).expect("a file"));
    let said = ann.run(&["get", "probes", "-o", "json"]);
    assert!(said.code == 0 && said.err.is_empty() && serial(&dir) == first, "not before it is time: {said:?}");
    let said = wait_for("the renewal", || Some(ann.run(&["get", "probes", "-o", "json"])).filter(|_| serial(&dir) != first));
    assert!(said.code == 0 && said.err.contains("the certificate of ann was renewed: it is valid until 20"), "{said:?}");
    assert!(serde_json::from_str::<serde_json::Value>(&said.out).is_ok(), "what a program reads stays as it is: {said:?}");
    assert_eq!(std::fs::read(dir.join("ca.crt")).expect("a file"), ca);
    let said = ann.run(&["get", "probes"]);
    assert!(said.code == 0 && said.err.is_empty(), "{said:?}");
    let audit = cluster.admin.run(&["audit", "--for", "Certificate/ann"]);
    assert!(audit.out.contains("renew"), "{audit:?}");
}

/// The certificate that the gRPC port shows, by what a handshake in plain sight has of it.
fn server_certificate(cluster: &Cluster) -> String {
    let said = std::process::Command::new("openssl")
        .args(["s_client", "-connect", &cluster.grpc, "-showcerts", "-alpn", "h2"])
        .stdin(std::process::Stdio::null())
        .output()
        .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        .expect("openssl runs");
    let start = said.find("-----BEGIN").unwrap_or(0);
    said[start..].chars().take(600).collect()
}

#[test]
fn plain_text_is_for_loopback_and_only_when_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let data = text(&dir.path().join("data"));
    let coordinator = |http: &str, grpc: &str| format!("cluster: t\nname: c1\ndataDir: {data}\nlisten: {{http: \"{http}\", grpc: \"{grpc}\"}}\n");
    let near = write("near.yaml", coordinator("127.0.0.1:0", "127.0.0.1:0"));
    let far = write("far.yaml", coordinator("0.0.0.0:7600", "127.0.0.1:7601"));
    let prober = write("prober.yaml", format!("name: e1\ncoordinators: [\"c1.example.com:7601\"]\ndataDir: {data}\n"));
    for (args, code, why) in [
        (vec!["coordinator", "--check", "--config", &near], 2, "tls is not set"),
        (vec!["coordinator", "--check", "--insecure", "--config", &near], 0, ""),
        (
            vec!["coordinator", "--check", "--insecure", "--config", &far],
            2,
            "plain text is allowed on loopback only, and these are not: listen.http 0.0.0.0:7600",
        ),
        (vec!["prober", "--check", "--config", &prober], 2, "tls is not set"),
        (vec!["prober", "--check", "--insecure", "--config", &prober], 2, "\"c1.example.com:7601\" is not on this host"),
    ] {
        let said = run(&args);
        assert_eq!(said.code, code, "{args:?}: {said:?}");
        assert!(said.err.contains(why), "{args:?}: {said:?}");
    }
}

/// A connection that says nothing is not kept for ever, and costs nobody else anything.
#[test]
fn who_says_nothing_is_sent_away() {
    let cluster = Cluster::start();
    let port: u16 = cluster.grpc.rsplit_once(':').expect("a port").1.parse().expect("a port");
    let silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("it listens")).collect();
    assert_eq!(cluster.admin.run(&["status"]).code, 0);
    for mut stream in silent {
        stream.set_read_timeout(Some(common::PATIENCE)).expect("a time-out");
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest);
        assert!(end.is_ok() || end.is_err_and(|e| e.kind() != std::io::ErrorKind::WouldBlock), "it was closed");
    }
    let _: Value = cluster.admin.json(&["status"]).expect("still there");
}

/// Somebody at another address who opens all the connections that he can, and says nothing.
#[test]
fn silence_from_one_address_keeps_nobody_else_out() {
    let cluster = Cluster::start();
    let address: std::net::SocketAddr = cluster.grpc.parse().expect("an address");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (stopped, opened) = (stop.clone(), std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let counted = opened.clone();
    let flood = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        // Each holds what it has for as long as it is let, and comes again.
        let silent = async move |counted: &std::sync::atomic::AtomicUsize| loop {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            socket.bind("127.0.0.2:0".parse().expect("an address")).expect("loopback has many addresses");
            if let Ok(mut stream) = socket.connect(address).await {
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0]).await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        runtime.block_on(async {
            for _ in 0..300 {
                let counted = counted.clone();
                tokio::spawn(async move { silent(&counted).await });
            }
            while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
    });
    wait_for("many that say nothing", || (opened.load(std::sync::atomic::Ordering::SeqCst) > 1_000).then_some(()));
    for _ in 0..5 {
        // One call: it is not tried again where the connection is closed on it.
        let said = cluster.admin.run(&["status", "--stale"]);
        assert_eq!(said.code, 0, "{said:?}");
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    flood.join().expect("it ended");
}

/// A stream that was begun with a good credential ends with it.
#[test]
fn who_watches_is_looked_at_again() {
    let cluster = Cluster::start();
    let bare = cluster.path("bare");
    std::fs::create_dir(&bare).expect("a directory");
    std::fs::copy(cluster.path("tls/ca.crt"), bare.join("ca.crt")).expect("a copy");
    let watch = |client: &Client, token: Option<&str>| {
        let mut command = client.command(&["get", "probes", "-n", "shop", "-w"]);
        if let Some(token) = token {
            command.env("PROBITY_TOKEN", token);
        }
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().expect("probity runs")
    };
    let ended = |mut watching: std::process::Child| {
        let code = wait_for("the watch to end", || watching.try_wait().expect("its state")).code();
        let mut err = String::new();
        watching.stderr.take().expect("piped").read_to_string(&mut err).expect("text");
        (code, err)
    };
    let made = |path: String| std::fs::read_to_string(path).expect("a token").trim().to_owned();
    let (revoked, brief) =
        (made(cluster.token("r1", &["--read", "wall=viewer:shop"])), made(cluster.token("r2", &["--read", "brief=viewer:shop", "--valid", "3s"])));
    let reader = Client { server: cluster.grpc.clone(), tls_dir: Some(bare) };
    let (by_revoked, by_brief, by_certificate) = (watch(&reader, Some(&revoked)), watch(&reader, Some(&brief)), watch(&cluster.client("otto"), None));
    let (code, err) = ended(by_brief);
    assert!(code != Some(0) && err.contains("has expired"), "{code:?} {err}");
    let id = revoked.split('.').next().and_then(|p| p.strip_prefix("probity-read-")).expect("an id").to_owned();
    assert_eq!(cluster.admin.run(&["ca", "revoke", &id]).code, 0);
    let (code, err) = ended(by_revoked);
    assert!(code != Some(0) && err.contains("was revoked"), "{code:?} {err}");
    assert_eq!(cluster.admin.run(&["ca", "revoke", "otto"]).code, 0);
    let (code, err) = ended(by_certificate);
    assert!(code != Some(0), "{code:?} {err}");
}
