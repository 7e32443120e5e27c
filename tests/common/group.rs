//! A cluster of coordinators alone, whose members a test starts, stops and adds.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Client, Server, free_ports, run, wait_for};

/// Coordinators c1, c2, ... on loopback, in plain text or under mutual TLS.
#[derive(Debug)]
pub struct Group {
    pub dir: PathBuf,
    pub ports: Vec<u16>,
    pub servers: Vec<Option<Server>>,
    /// Settings of the coordinators that are started from now on.
    pub environment: Vec<(String, String)>,
    pub client: Client,
    /// What `probity ca init` wrote, where there is TLS.
    pub tls: Option<PathBuf>,
}

impl Group {
    /// Room for `room` coordinators, of which the first `first` form the cluster.
    pub fn start(dir: &Path, room: usize, first: usize) -> Group {
        Group::start_with(dir, room, first, None)
    }

    /// The same under mutual TLS: everybody in the room has a certificate, and so has whoever else is named, as for `probity ca init`. The
    /// group's client is the admin "me".
    pub fn start_secure(dir: &Path, room: usize, first: usize, who: &[&str]) -> Group {
        let tls = dir.join("tls");
        let at = tls.display().to_string();
        let coordinators: Vec<String> = (1..=room).map(|i| format!("c{i}=127.0.0.1")).collect();
        let coordinators: Vec<&str> = coordinators.iter().flat_map(|c| ["--coordinator", c.as_str()]).collect();
        let said = run(&[&["ca", "init", "--dir", &at, "--admin", "me"], coordinators.as_slice(), who].concat());
        assert_eq!(said.code, 0, "{said:?}");
        Group::start_with(dir, room, first, Some(tls))
    }

    fn start_with(dir: &Path, room: usize, first: usize, tls: Option<PathBuf>) -> Group {
        let ports = free_ports(2 * room);
        let server = (0..room).map(|i| format!("127.0.0.1:{}", ports[i])).collect::<Vec<_>>().join(",");
        let client = Client { server, tls_dir: tls.as_ref().map(|tls| tls.join("me")) };
        let mut group = Group { dir: dir.to_owned(), ports, servers: (0..room).map(|_| None).collect(), environment: Vec::new(), client, tls };
        for i in 0..first {
            group.configure(i, first);
            group.run(i);
        }
        wait_for("the cluster to form", || (group.client.run(&["cluster", "init"]).code == 0).then_some(()));
        group
    }

    pub fn address(&self, i: usize) -> String {
        format!("127.0.0.1:{}", self.ports[i])
    }

    pub fn config(&self, i: usize) -> String {
        self.dir.join(format!("c{}.yaml", i + 1)).display().to_string()
    }

    /// Writes a configuration; the first members name each other.
    pub fn configure(&self, i: usize, first: usize) {
        let members: Vec<String> = (0..first).map(|m| format!("c{}: \"{}\"", m + 1, self.address(m))).collect();
        let initial = if first == 0 { String::new() } else { format!("initialMembers: {{{}}}\n", members.join(", ")) };
        let (data, http, grpc) = (self.data(i).display().to_string(), self.ports[self.servers.len() + i], self.address(i));
        let listen = format!("{{http: \"127.0.0.1:{http}\", grpc: \"{grpc}\"}}");
        let tls = self.tls.as_ref().map(|tls| format!("tls: {{dir: {}/c{}}}\n", tls.display(), i + 1)).unwrap_or_default();
        let text = format!("cluster: test\nname: c{}\ndataDir: {data}\nlisten: {listen}\nadvertise: \"{grpc}\"\n{initial}{tls}allowLoopback: true\n", i + 1);
        std::fs::write(self.config(i), text).expect("a file");
    }

    pub fn data(&self, i: usize) -> PathBuf {
        self.dir.join(format!("c{}", i + 1))
    }

    pub fn run(&mut self, i: usize) {
        let log = self.dir.join(format!("c{}.log", i + 1));
        let config = self.config(i);
        let plain: &[&str] = if self.tls.is_none() { &["--insecure"] } else { &[] };
        self.servers[i] = Some(Server::start_with(&[&["coordinator", "--config", &config], plain].concat(), &self.environment, &log));
    }

    pub fn server(&mut self, i: usize) -> &mut Server {
        self.servers[i].as_mut().expect("it was started")
    }

    pub fn leader(&self) -> usize {
        let status = self.client.wait_json("a leader", &["status"], |s| s["leader"]["name"].is_string());
        index(status["leader"]["name"].as_str().expect("a name"))
    }

    /// A change that must be committed. Whoever takes a halt may end before it is: then it is asked for again.
    pub fn write(&self, reason: &str) {
        wait_for("a halt that is committed", || {
            let said = self.client.run(&["halt", "--reason", reason]);
            assert_eq!(said.code, 0, "{said:?}");
            said.out.contains("halt: committed").then_some(())
        });
    }

    /// Waits until these members are there, each a voter that lacks nothing.
    pub fn settled(&self, wanted: &[&str]) -> Value {
        self.client.wait_json(&format!("members {wanted:?}"), &["cluster", "status"], |m| {
            let items = m["items"].as_array().cloned().unwrap_or_default();
            let mut names: Vec<String> = items.iter().filter_map(|m| m["metadata"]["name"].as_str().map(str::to_owned)).collect();
            names.sort();
            names == wanted && items.iter().all(|m| m["status"]["votes"] == true && m["status"]["lagEntries"].as_u64() < Some(10))
        })
    }

    /// The state hash of each member that runs, at equal index.
    pub fn assert_equal(&self, members: &[usize]) {
        wait_for("equal states", || {
            let mut seen = std::collections::BTreeSet::new();
            for i in members {
                let one = Client { server: self.address(*i), tls_dir: self.client.tls_dir.clone() };
                let status = one.json(&["status", "--stale"])?;
                seen.insert((status["stateHashIndex"].as_u64()?, status["stateHash"].as_str()?.to_owned()));
            }
            (seen.len() == 1).then_some(())
        });
    }
}

pub fn index(name: &str) -> usize {
    name.trim_start_matches('c').parse::<usize>().expect("c1, c2, ...") - 1
}
