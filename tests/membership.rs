//! Members of a real cluster come, go, hand over and are replaced; a lost disk does not come back unseen.

mod common;

use common::group::Group;
use common::{Client, Server, run, wait_for};

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
    wait_for("the status to say that it is missing", || (group.client.run(&["cluster", "status"]).code == 1).then_some(()));

    // Nor is a client led astray that asks it first.
    let others: Vec<String> = (0..3).filter(|i| *i != lost).map(|i| group.address(i)).collect();
    let client = Client { server: format!("{},{}", group.address(lost), others.join(",")), tls_dir: None };
    let replaced = client.run(&["cluster", "replace", &name, &group.address(lost)]);
    assert_eq!(replaced.code, 0, "{replaced:?}");
    group.settled(&["c1", "c2", "c3"]);
    group.write("after");
    group.assert_equal(&[0, 1, 2]);
    // And it counts: another one may die.
    let other = (lost + 1) % 3;
    group.server(other).kill9();
    group.leader();
    group.write("with two of three");
    // The last one is alone: whoever asks is told so, though two of the three addresses do not answer at all.
    let last = group.leader();
    group.server(last).kill9();
    let alone = wait_for("its loneliness", || Some(group.client.run(&["status"])).filter(|s| s.err.contains("there is no quorum now")));
    assert!(alone.code == 3 && alone.err.contains("no answer from") && alone.err.contains(&group.address(last)), "{alone:?}");
}

#[test]
fn what_a_member_of_an_old_cluster_said_is_void_when_it_is_gone() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = Group::start(dir.path(), 3, 3);
    for i in 0..2 {
        group.server(i).kill9();
        std::fs::remove_dir_all(group.data(i)).expect("its disk is gone");
        group.run(i);
    }
    wait_for("the refusal", || group.server(0).log().contains("belongs to member").then_some(()));
    let client = Client { server: group.address(0), tls_dir: None };
    assert!(client.run(&["cluster", "init"]).err.contains("belongs to member"));
    group.server(2).kill9();
    std::fs::remove_dir_all(group.data(2)).expect("its disk is gone");
    group.run(2);
    // Nobody knows the old cluster any more: these three may begin anew.
    wait_for("a new cluster", || (client.run(&["cluster", "init"]).code == 0).then_some(()));
    group.settled(&["c1", "c2", "c3"]);
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

#[test]
fn an_upgrade_rolls_through_the_cluster_and_a_downgrade_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = Group::start(dir.path(), 4, 3);
    let version = |s: &serde_json::Value| s["cluster"]["version"].as_u64().unwrap_or(0);
    let old = version(&group.client.wait_json("a status", &["status"], |s| version(s) > 0));
    let next = (old + 1).to_string();
    // One after the other plays the next build; the cluster moves on when the last one does.
    group.environment = vec![("PROBITY_TEST_COMMAND_VERSION".to_owned(), next.clone())];
    for i in 0..3 {
        assert_eq!(version(&group.client.wait_json("a status", &["status"], |s| s["leader"]["name"].is_string())), old);
        group.server(i).stop();
        group.run(i);
        let upgraded = |m: &serde_json::Value| m["status"]["commandVersion"].as_u64() == next.parse().ok();
        group.client.wait_json("it says so", &["get", "members"], |m| m["items"].as_array().is_some_and(|m| m.iter().filter(|m| upgraded(m)).count() == i + 1));
        group.write("while it rolls");
    }
    group.client.wait_json("the next version", &["status"], |s| version(s) == old + 1);
    group.write("under the next version");
    group.assert_equal(&[0, 1, 2]);

    group.environment.clear();
    let follower = (group.leader() + 1) % 3;
    assert_eq!(group.server(follower).stop(), 0);
    group.run(follower);
    let code = wait_for("its refusal", || group.servers[follower].as_mut().and_then(Server::ended));
    let log = group.server(follower).log();
    assert!(code == 1 && log.contains(&format!("the cluster runs command version {next}, this build understands {old}")), "{code}: {log}");
    group.configure(3, 0);
    group.run(3);
    wait_for("the newcomer to listen", || std::net::TcpStream::connect(group.address(3)).ok());
    let joined = group.client.run(&["cluster", "join", &group.address(3)]);
    assert!(joined.code == 1 && joined.err.contains("upgrade it first"), "{joined:?}");
}
