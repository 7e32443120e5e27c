//! A real disk that is full: a small file system in memory. Mounting one needs root; without it these tests say so and pass over.

mod common;

use common::group::Group;
use common::small::Small;
use common::{Client, wait_for};

#[test]
fn the_leader_s_disk_fills_up_and_the_cluster_works_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let mounts: Option<Vec<Small>> = (1..=3).map(|i| Small::mount(&dir.path().join(format!("c{i}")), "16m")).collect();
    let Some(mounts) = mounts else { return };
    let mut group = Group::start(dir.path(), 3, 3);
    group.write("before");
    let full = group.leader();
    let name = format!("c{}", full + 1);
    mounts[full].fill();
    let large = "x".repeat(100_000);
    wait_for("another leader", || {
        group.client.run(&["halt", "--reason", &large]);
        group.server(full).log().contains("the disk is full").then_some(())
    });
    group.client.wait_json("another leader", &["status"], |s| s["leader"]["name"].is_string() && s["leader"]["name"] != name.as_str());
    let said = group.client.wait_json("what is wrong", &["status"], |s| s["degraded"].to_string().contains("its disk is full"));
    assert!(said["degraded"].to_string().contains(&format!("member {name} is silent: its disk is full")), "{said}");
    group.write("without it");

    let alone = Client { server: group.address(full), tls_dir: None };
    let read = alone.run(&["status", "--stale", "-o", "json"]);
    assert!(read.out.contains("its disk is full") && read.err.contains("stale: what"), "{read:?}");
    let refused = alone.run(&["halt", "--reason", "refused"]);
    assert!(refused.code == 0 || refused.code == 3, "latched, or refused: {refused:?}");
    let linear = alone.run(&["get", "members"]);
    assert!(linear.code == 3 && linear.err.contains("the disk of this coordinator is full"), "{linear:?}");

    mounts[full].free();
    group.settled(&["c1", "c2", "c3"]);
    group.write("together again");
    group.assert_equal(&[0, 1, 2]);
    assert!(group.servers[full].as_mut().is_some_and(|s| s.ended().is_none()), "it was not restarted");
}
