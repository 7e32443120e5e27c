//! A real disk that fails or is slow: its syncs are answered wrongly, or late, by `strace --inject`. Without strace, or where one process may not trace
//! another, these tests say so and pass over; not where root has strace.

mod common;

use std::process::{Child, Command, Stdio};

use common::group::Group;
use common::{Server, wait_for};

/// Somebody between a process and its disk; gone when dropped.
struct Tampered(Child);

impl Tampered {
    /// `what` becomes of each sync, in strace's words.
    fn with(server: &Server, what: &str) -> Option<Tampered> {
        let pid = server.id().to_string();
        let inject = format!("inject=fdatasync,fsync:{what}");
        let args = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync", "-e", &inject, "-p", &pid];
        let Ok(child) = Command::new("strace").args(args).stderr(Stdio::null()).spawn() else {
            eprintln!("SKIPPED: there is no strace here (Debian: apt-get install strace)");
            return None;
        };
        let mut tampered = Tampered(child);
        let traced = wait_for("strace to attach, or to give up", || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let attached = status.lines().any(|l| l.starts_with("TracerPid:") && l.split_whitespace().nth(1) != Some("0"));
            (attached || tampered.0.try_wait().expect("its state").is_some()).then_some(attached)
        });
        if !traced {
            assert!(!nix::unistd::geteuid().is_root(), "root may trace its own");
            eprintln!("SKIPPED: strace may not trace another process here (root may; see /proc/sys/kernel/yama/ptrace_scope)");
        }
        traced.then_some(tampered)
    }
}

impl Drop for Tampered {
    fn drop(&mut self) {
        // The kernel takes a dead tracer's hands off.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_leader_whose_sync_fails_ends_and_says_why_and_the_others_go_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = Group::start(dir.path(), 3, 3);
    group.write("before");
    let failing = group.leader();
    let Some(tampered) = Tampered::with(group.server(failing), "error=EIO") else { return };
    group.write("while it fails");
    let code = wait_for("the member to end", || group.server(failing).ended());
    let said = group.server(failing).log();
    assert!(code != 0 && said.contains("Input/output error"), "{code}: {said}");
    drop(tampered);
    group.servers[failing] = None;
    group.write("without it");
    assert_ne!(group.leader(), failing);
    group.run(failing);
    group.settled(&["c1", "c2", "c3"]);
    group.write("together again");
    group.assert_equal(&[0, 1, 2]);
}

#[test]
fn a_follower_with_a_slow_disk_is_waited_for_by_nobody_and_a_slow_leader_hands_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = Group::start(dir.path(), 3, 3);
    group.write("before");
    let leader = group.leader();
    let slow = (leader + 1) % 3;
    let Some(tampered) = Tampered::with(group.server(slow), "delay_enter=60000000") else { return };
    let only = group.address(leader);
    let everybody = std::mem::replace(&mut group.client.server, only);
    for i in 0..10 {
        group.write(&format!("{i} beside a slow disk"));
    }
    // All of them were committed while its disk was at the first.
    let name = format!("c{}", slow + 1);
    group.client.wait_json("a follower that lacks them all", &["cluster", "status"], |m| {
        let items = m["items"].as_array().cloned().unwrap_or_default();
        items.iter().any(|m| m["metadata"]["name"] == name.as_str() && m["status"]["lagEntries"].as_u64() >= Some(10))
    });
    drop(tampered);
    group.client.server = everybody;
    group.settled(&["c1", "c2", "c3"]);

    let leader = group.leader();
    let Some(tampered) = Tampered::with(group.server(leader), "delay_enter=150000") else { return };
    wait_for("leadership to be handed over", || {
        group.write("at a slow leader");
        group.server(leader).log().contains("leadership is handed over").then_some(())
    });
    drop(tampered);
    group.write("at another");
    group.settled(&["c1", "c2", "c3"]);
    group.assert_equal(&[0, 1, 2]);
}
