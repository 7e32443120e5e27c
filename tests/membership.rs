//! Members of a real cluster come, go, hand over and are replaced; a lost disk does not come back unseen.

mod common;

use std::path::{Path, PathBuf};

use common::{Client, Server, free_ports, run, wait_for};
use serde_json::Value;

/// Coordinators c1, c2, ... on loopback, in plain text.
struct Group {
    dir: PathBuf,
    ports: Vec<u16>,
    servers: Vec<Option<Server>>,
    client: Client,
}

impl Group {
    /// Room for `room` coordinators, of which the first `first` form the cluster.
    fn start(dir: &Path, room: usize, first: usize) -> Group {
        let ports = free_ports(2 * room);
        let server = (0..room).map(|i| format!("127.0.0.1:{}", ports[i])).collect::<Vec<_>>().join(",");
        let client = Client { server, tls_dir: None };
        let mut group = Group { dir: dir.to_owned(), ports, servers: (0..room).map(|_| None).collect(), client };
        for i in 0..first {
            group.configure(i, first);
            group.run(i);
        }
        wait_for("the cluster to form", || (group.client.run(&["cluster", "init"]).code == 0).then_some(()));
        group
    }

    fn address(&self, i: usize) -> String {
        format!("127.0.0.1:{}", self.ports[i])
    }

    fn config(&self, i: usize) -> String {
        self.dir.join(format!("c{}.yaml", i + 1)).display().to_string()
    }

    /// Writes a configuration; the first members name each other.
    fn configure(&self, i: usize, first: usize) {
        let members: Vec<String> = (0..first).map(|m| format!("c{}: \"{}\"", m + 1, self.address(m))).collect();
        let initial = if first == 0 { String::new() } else { format!("initialMembers: {{{}}}\n", members.join(", ")) };
        let (data, http, grpc) = (self.data(i).display().to_string(), self.ports[self.servers.len() + i], self.address(i));
        let listen = format!("{{http: \"127.0.0.1:{http}\", grpc: \"{grpc}\"}}");
        let text = format!("cluster: test\nname: c{}\ndataDir: {data}\nlisten: {listen}\nadvertise: \"{grpc}\"\n{initial}allowLoopback: true\n", i + 1);
        std::fs::write(self.config(i), text).expect("a file");
    }

    fn data(&self, i: usize) -> PathBuf {
        self.dir.join(format!("c{}", i + 1))
    }

    fn run(&mut self, i: usize) {
        let log = self.dir.join(format!("c{}.log", i + 1));
        self.servers[i] = Some(Server::start(&["coordinator", "--insecure", "--config", &self.config(i)], &log));
    }

    fn server(&mut self, i: usize) -> &mut Server {
        self.servers[i].as_mut().expect("it was started")
    }

    fn leader(&self) -> usize {
        let status = self.client.wait_json("a leader", &["status"], |s| s["leader"]["name"].is_string());
        index(status["leader"]["name"].as_str().expect("a name"))
    }

    /// A change that must be acknowledged.
    fn write(&self, reason: &str) {
        let said = self.client.run(&["halt", "--reason", reason]);
        assert_eq!(said.code, 0, "{said:?}");
    }

    /// Waits until these members are there, each a voter that lacks nothing.
    fn settled(&self, wanted: &[&str]) -> Value {
        self.client.wait_json(&format!("members {wanted:?}"), &["cluster", "status"], |m| {
            let items = m["items"].as_array().cloned().unwrap_or_default();
            let mut names: Vec<String> = items.iter().filter_map(|m| m["metadata"]["name"].as_str().map(str::to_owned)).collect();
            names.sort();
            names == wanted && items.iter().all(|m| m["status"]["votes"] == true && m["status"]["lagEntries"].as_u64() < Some(10))
        })
    }

    /// The state hash of each member that runs, at equal index.
    fn assert_equal(&self, members: &[usize]) {
        wait_for("equal states", || {
            let mut seen = std::collections::BTreeSet::new();
            for i in members {
                let one = Client { server: self.address(*i), tls_dir: None };
                let status = one.json(&["status", "--stale"])?;
                seen.insert((status["index"].as_u64()?, status["stateHash"].as_str()?.to_owned()));
            }
            (seen.len() == 1).then_some(())
        });
    }
}

fn index(name: &str) -> usize {
    name.trim_start_matches('c').parse::<usize>().expect("c1, c2, ...") - 1
}

#[test]
fn members_join_lead_and_leave_while_the_cluster_works() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = Group::start(dir.path(), 5, 3);
    group.write("before");
    let refused = group.client.run(&["cluster", "join", &group.address(3)]);
    assert_eq!(refused.code, 1, "nobody is there yet: {refused:?}");
    for i in [3, 4] {
        group.configure(i, 0);
        group.run(i);
        let address = group.address(i);
        wait_for("the newcomer to listen", || std::net::TcpStream::connect(&address).ok());
        let joined = group.client.run(&["cluster", "join", &address]);
        assert_eq!(joined.code, 0, "{joined:?}");
        assert_eq!(joined.out.contains("4 voters bear the loss of 1, as 3 do"), i == 3, "{joined:?}");
        group.write("another");
    }
    group.settled(&["c1", "c2", "c3", "c4", "c5"]);
    assert_eq!(group.client.run(&["cluster", "status"]).code, 0);
    let again = group.client.run(&["cluster", "join", &group.address(4)]);
    assert_eq!(again.code, 0, "a second time changes nothing: {again:?}");

    let handed = group.client.run(&["cluster", "transfer", "c5"]);
    assert_eq!((handed.code, handed.out.as_str()), (0, "c5 leads\n"), "{handed:?}");
    assert_eq!(group.leader(), 4);
    // The leader hands over, and ends when it hears of its removal.
    let removed = group.client.run(&["cluster", "remove", "c5"]);
    assert_eq!(removed.code, 0, "{removed:?}");
    group.settled(&["c1", "c2", "c3", "c4"]);
    wait_for("c5 to end", || group.servers[4].as_mut().and_then(Server::ended));
    assert!(group.server(4).log().contains("was removed from the cluster"), "{}", group.server(4).log());
    let back = run(&["coordinator", "--insecure", "--config", &group.config(4)]);
    assert!(matches!(back.code, 1) || group.server(4).log().contains("removed"), "{back:?}");
    assert_eq!(group.client.run(&["cluster", "remove", "c4"]).code, 0);
    group.settled(&["c1", "c2", "c3"]);
    assert_eq!(group.client.run(&["cluster", "remove", "c9"]).code, 1);
    group.write("after");
    group.assert_equal(&[0, 1, 2]);
}

#[test]
fn a_member_that_lost_its_disk_is_refused_and_then_replaced() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = Group::start(dir.path(), 3, 3);
    group.write("before");
    let lost = (group.leader() + 1) % 3;
    let name = format!("c{}", lost + 1);
    group.server(lost).kill9();
    std::fs::remove_dir_all(group.data(lost)).expect("its disk is gone");
    group.run(lost);
    let mend = format!("probity cluster replace {name} {}", group.address(lost));
    wait_for("its refusal", || group.server(lost).log().contains(&mend).then_some(()));
    // It tells whoever asks it, and takes part in nothing.
    let alone = Client { server: group.address(lost), tls_dir: None };
    let asked = alone.run(&["status"]);
    assert!(asked.code == 1 && asked.err.contains(&mend), "{asked:?}");
    let init = alone.run(&["cluster", "init"]);
    assert!(init.code == 1 && init.err.contains(&mend), "{init:?}");
    let join = group.client.run(&["cluster", "join", &group.address(lost)]);
    assert!(join.code == 1 && join.err.contains("cluster replace"), "{join:?}");
    assert_eq!(group.client.run(&["cluster", "status"]).code, 1, "it is missing");

    let replaced = group.client.run(&["cluster", "replace", &name, &group.address(lost)]);
    assert_eq!(replaced.code, 0, "{replaced:?}");
    group.settled(&["c1", "c2", "c3"]);
    group.write("after");
    group.assert_equal(&[0, 1, 2]);
    // And it counts: another one may die.
    let other = (lost + 1) % 3;
    group.server(other).kill9();
    group.leader();
    group.write("with two of three");
}

#[test]
fn the_last_quorum_is_not_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = Group::start(dir.path(), 3, 3);
    let leader = group.leader();
    let (dead, alive) = ((leader + 1) % 3, (leader + 2) % 3);
    group.server(dead).kill9();
    group.client.wait_json("its silence", &["cluster", "status"], |m| {
        m["items"].as_array().is_some_and(|items| items.iter().any(|m| m["status"]["reachable"] == false))
    });
    let refused = group.client.run(&["cluster", "remove", &format!("c{}", alive + 1)]);
    assert!(refused.code == 1 && refused.err.contains("no quorum"), "{refused:?}");
    let refused = group.client.run(&["cluster", "transfer", &format!("c{}", dead + 1)]);
    assert!(refused.code == 1 && refused.err.contains("cannot take over"), "{refused:?}");
    let removed = group.client.run(&["cluster", "remove", &format!("c{}", dead + 1)]);
    assert!(removed.code == 0 && removed.out.contains("2 voters bear the loss of 0, as 1 do"), "{removed:?}");
}

#[test]
fn a_backup_becomes_a_new_cluster_that_the_old_members_have_no_part_in() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = Group::start(dir.path(), 4, 3);
    group.client.apply(dir.path(), "apiVersion: probity/v1\nkind: Probe\nmetadata: {name: kept}\nspec: {interval: 1s, target: \"127.0.0.1:9\", tcp: {}}\n");
    let file = dir.path().join("b").display().to_string();
    let made = group.client.run(&["cluster", "backup", &file]);
    assert_eq!(made.code, 0, "{made:?}");
    let again = group.client.run(&["cluster", "backup", &file]);
    assert!(again.code == 1 && again.err.contains("exists already"), "{again:?}");
    let old = group.client.json(&["status"]).expect("a status");
    assert!(made.out.contains(old["cluster"]["id"].as_str().expect("an id")), "{made:?}");
    group.configure(3, 0);
    let checked = run(&["cluster", "restore", &file, "--insecure", "--check", "--config", &group.config(3)]);
    assert!(checked.code == 0 && checked.out.contains("whole"), "{checked:?}");

    // Everything is lost: the old members are gone for good.
    for i in 0..3 {
        group.server(i).kill9();
        std::fs::remove_dir_all(group.data(i)).expect("its disk is gone");
    }
    let restored = run(&["cluster", "restore", &file, "--insecure", "--config", &group.config(3)]);
    assert_eq!(restored.code, 0, "{restored:?}");
    let twice = run(&["cluster", "restore", &file, "--insecure", "--config", &group.config(3)]);
    assert!(twice.code == 1 && twice.err.contains("exists already"), "{twice:?}");
    group.run(3);
    let client = Client { server: group.address(3), tls_dir: None };
    let new = client.wait_json("the new cluster", &["status"], |s| s["leader"]["name"] == "c4");
    assert_ne!(new["cluster"]["id"], old["cluster"]["id"]);
    assert!(new["halt"]["reason"].as_str().is_some_and(|r| r.contains("restored from a backup")), "{new}");
    assert_eq!(client.run(&["get", "probe", "kept"]).code, 0);
    assert_eq!(client.run(&["halt", "lift"]).code, 0);
    group.configure(0, 0);
    group.run(0);
    wait_for("c1 to listen", || std::net::TcpStream::connect(group.address(0)).ok());
    let joined = client.run(&["cluster", "join", &group.address(0)]);
    assert_eq!(joined.code, 0, "{joined:?}");

    let mut bytes = std::fs::read(&file).expect("the backup");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).expect("written");
    let damaged = run(&["cluster", "restore", &file, "--insecure", "--check", "--config", &group.config(3)]);
    assert!(damaged.code == 1 && damaged.err.contains("wrong checksum at byte"), "{damaged:?}");
}
