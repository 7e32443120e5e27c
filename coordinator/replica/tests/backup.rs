//! Snapshots and backups: a view of one index, read while the group works on.

mod common;

use common::*;
use probity_proto::v1::backup_part::Part;
use probity_proto::v1::command::Op;
use probity_proto::v1::*;
use probity_replica::{Backup, BackupError, Checked, Config, Replica};

fn parts(mut backup: Backup) -> Vec<BackupPart> {
    std::iter::from_fn(|| backup.next_part().expect("it can be read")).collect()
}

fn check(parts: Vec<BackupPart>) -> Result<Checked, BackupError> {
    let mut checked = Checked::default();
    parts.into_iter().try_for_each(|part| checked.part(part))?;
    checked.whole()?;
    Ok(checked)
}

/// More than a chunk holds.
fn large(net: &mut Net, resources: usize) {
    for i in 0..resources {
        let document_json = "x".repeat(60_000);
        let resource =
            Resource { kind: "Scenario".to_owned(), namespace: "default".to_owned(), name: format!("s{i:03}"), document_json, ..Resource::default() };
        let leader = net.leader().expect("a leader");
        let base_revision = net.member(leader).state().meta().resource_revision;
        net.change(Op::ApplyResources(ApplyResources { base_revision, put: vec![resource], ..ApplyResources::default() })).expect("applied");
    }
}

#[test]
fn a_follower_that_lags_behind_the_log_pulls_a_snapshot_while_others_write() {
    let mut net = Net::formed(&[1, 2, 3]);
    large(&mut net, 30);
    let slow = (1..=3).find(|id| net.leader() != Some(*id)).expect("a follower");
    net.isolate(slow, true);
    net.fill(400);
    net.isolate(slow, false);
    for i in 0..60 {
        net.write(&format!("meanwhile {i}"));
        net.tick();
    }
    let leader = net.leader().expect("a leader");
    net.until("it has caught up", |net| net.member(slow).status().applied == net.member(leader).status().applied);
    assert_eq!(net.member(slow).state().resources.len(), 30);
    net.assert_equal();
}

#[test]
fn a_follower_that_crashes_in_the_middle_of_a_snapshot_begins_anew() {
    let mut net = Net::formed(&[1, 2, 3]);
    large(&mut net, 60);
    let slow = (1..=3).find(|id| net.leader() != Some(*id)).expect("a follower");
    net.isolate(slow, true);
    net.fill(400);
    let leader = net.leader().expect("a leader");
    // It is offered, and begins to pull, but what it asks for does not arrive.
    net.cut.remove(&(leader, slow));
    net.ticks(40);
    net.crash(slow);
    net.isolate(slow, false);
    net.start(slow).expect("it opens");
    net.until("it has caught up", |net| net.member(slow).status().applied == net.member(leader).status().applied);
    net.assert_equal();
}

#[test]
fn a_backup_is_of_one_index_whatever_is_written_meanwhile() {
    let mut net = Net::formed(&[1, 2, 3]);
    large(&mut net, 30);
    let leader = net.leader().expect("a leader");
    let mut backup = net.members.get_mut(&leader).expect("it runs").backup().expect("a backup");
    let at = net.member(leader).status().applied;
    let hash = net.member(leader).state().hash();
    let mut read = Vec::new();
    while let Some(part) = backup.next_part().expect("it can be read") {
        net.write("meanwhile");
        read.push(part);
    }
    assert!(read.len() > 4, "several chunks: {}", read.len());
    let checked = check(read).expect("whole");
    let (header, rows) = checked.whole().expect("whole");
    assert_eq!((header.index, header.state_hash, header.cluster_id.as_str()), (at, hash, CLUSTER));
    assert!(rows > 30);
}

#[test]
fn what_is_not_the_backup_that_was_made_is_refused() {
    let mut net = Net::formed(&[1]);
    large(&mut net, 12);
    let backup = net.members.get_mut(&1).expect("it runs").backup().expect("a backup");
    let whole = parts(backup);
    assert!(check(whole.clone()).is_ok());
    let message = |parts: Vec<BackupPart>| check(parts).expect_err("refused").to_string();
    let mut changed = whole.clone();
    assert!(matches!(changed[1].part, Some(Part::Rows(_))), "rows come second");
    let rows = changed.iter_mut().filter_map(|part| if let Some(Part::Rows(rows)) = &mut part.part { Some(rows) } else { None });
    let row = rows.flat_map(|rows| &mut rows.rows).find(|r| r.table == 3).expect("a resource");
    let mut resource: Resource = prost::Message::decode(&row.value[..]).expect("a resource");
    resource.generation += 1;
    row.value = prost::Message::encode_to_vec(&resource);
    assert!(message(changed).contains("state hash"));
    assert!(message(whole[..whole.len() - 1].to_vec()).contains("end is missing"));
    assert!(message([&whole[..1], &whole[2..]].concat()).contains("rows are missing"));
    assert!(message(whole[1..].to_vec()).contains("out of order"));
    assert!(message([&whole[..], &whole[..1]].concat()).contains("follows its end"));
}

#[test]
fn a_backup_becomes_another_cluster_that_begins_halted() {
    let mut net = Net::formed(&[1, 2, 3]);
    net.fill(5);
    let leader = net.leader().expect("a leader");
    let backup = net.members.get_mut(&leader).expect("it runs").backup().expect("a backup");
    let at = net.member(leader).status().applied;
    let checked = check(parts(backup)).expect("whole");
    let disk = Disk::default();
    let open = |disk: &Disk| redb::Builder::new().create_with_backend(disk.clone()).expect("a store");
    let header = checked.restore(open(&disk), "another", record(77, "n1")).expect("restored");
    assert_eq!(header.index, at);

    let mut fresh = Net::empty(Config::default());
    fresh.disks.insert(77, disk.clone());
    fresh.start(77).expect("it opens");
    fresh.until("it leads", |net| net.leader() == Some(77));
    let state = fresh.member(77).state();
    assert_eq!(state.meta().cluster_id, "another");
    assert_eq!(state.members.iter().map(|m| m.id).collect::<Vec<_>>(), [77]);
    assert!(state.meta().halt.as_ref().is_some_and(|h| h.reason.contains("restored from a backup")));
    assert!(fresh.member(77).status().applied > at + 900_000_000, "fences go on above all that the old cluster gave out");
    fresh.change(Op::LiftHalt(LiftHalt {})).expect("it takes commands");
    // It grows like any other; the old members have no part in it.
    fresh.start(2).expect("it opens");
    fresh.members.get_mut(&2).expect("it runs").join("another").expect("it joins");
    fresh.configure(Op::AddMember(AddMember { member: Some(record(2, "n2")) })).expect("added");
    fresh.settled(&[2, 77]);
    fresh.assert_equal();
    let again = check(parts(fresh.members.get_mut(&2).expect("it runs").backup().expect("a backup"))).expect("whole");
    assert!(again.restore(open(&disk.copy()), "third", record(77, "n1")).expect_err("not empty").to_string().contains("not empty"));
}

#[test]
fn a_member_without_a_cluster_has_nothing_to_back_up() {
    let db = redb::Builder::new().create_with_backend(Disk::default()).expect("a store");
    let mut replica = Replica::open(Config::default(), db, 1).expect("it opens");
    assert!(replica.backup().is_err());
}
