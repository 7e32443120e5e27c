//! Disks that are full, that break, and files that give space back.

mod common;

use common::*;
use probity_proto::v1::command::Op;
use probity_proto::v1::*;
use probity_replica::{Config, Fatal, Input, Reply, Role};
use prost::Message;

fn reasons(net: &Net, id: u64) -> String {
    net.member(id).state().meta().halt.as_ref().map(|h| h.reason.clone()).unwrap_or_default()
}

/// Writes at the leader until the disk of `id` has no more room.
fn fill_up(net: &mut Net, id: u64) {
    let limit = net.disks[&id].len();
    net.disks[&id].limit(limit);
    for i in 0..5_000 {
        if net.members.get(&id).is_none_or(|m| m.status().disk_full) {
            return;
        }
        let op = Op::SetHalt(SetHalt { reason: format!("{i} {}", "x".repeat(20_000)) });
        let _ = net.change(op);
    }
    panic!("the disk never was full");
}

#[test]
fn a_leader_whose_disk_is_full_hands_over_and_comes_back_when_there_is_room() {
    let mut net = Net::on_media(&[1, 2, 3]);
    let leader = net.leader().expect("a leader");
    net.write("before");
    fill_up(&mut net, leader);
    assert!(net.member(leader).disk_full(), "{:?}", net.ended);
    assert_eq!(net.member(leader).status().role, Role::Follower);
    net.until("another one leads", |net| net.leader().is_some_and(|l| l != leader));
    net.write("under the new one");
    // It answers from what it has, and takes nothing.
    assert!(!reasons(&net, leader).is_empty());
    assert_eq!(net.ask(leader, |tag| Input::Read { tag }), Some(Reply::NotLeader { leader: None }));
    net.ticks(100);
    assert!(net.member(leader).disk_full(), "there is no room yet");
    net.disks[&leader].limit(0);
    net.until("it is back", |net| !net.member(leader).disk_full() && reasons(net, leader) == "under the new one");
    net.write("together");
    net.assert_equal();
}

#[test]
fn a_follower_whose_disk_is_full_costs_the_others_nothing() {
    let mut net = Net::on_media(&[1, 2, 3]);
    let follower = (1..=3).find(|id| net.leader() != Some(*id)).expect("a follower");
    let leader = net.leader();
    fill_up(&mut net, follower);
    net.fill(300);
    assert_eq!(net.leader(), leader);
    net.disks[&follower].limit(0);
    net.until("it is back", |net| !net.member(follower).disk_full() && reasons(net, follower) == "299");
    net.assert_equal();
}

#[test]
fn alone_with_a_full_disk_it_still_answers_and_goes_on_later() {
    let mut net = Net::on_media(&[1]);
    net.write("acknowledged");
    fill_up(&mut net, 1);
    let last = reasons(&net, 1);
    assert!(net.change(Op::SetHalt(SetHalt { reason: "refused".to_owned() })).is_err());
    net.disks[&1].limit(0);
    net.until("it leads again", |net| net.leader() == Some(1));
    // What was acknowledged is there; what was under way is there or not.
    let number = |text: &str| text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    assert!(number(&reasons(&net, 1)) >= number(&last));
    net.write("again");
    net.assert_equal();
}

#[test]
fn when_every_disk_is_full_nothing_is_acknowledged_and_nothing_is_lost() {
    let mut net = Net::on_media(&[1, 2, 3]);
    net.write("acknowledged");
    for id in 1..=3 {
        let limit = net.disks[&id].len();
        net.disks[&id].limit(limit);
    }
    let mut acknowledged = String::new();
    for i in 0..5_000 {
        let reason = format!("{i} {}", "x".repeat(20_000));
        match net.change(Op::SetHalt(SetHalt { reason: reason.clone() })) {
            Ok(_) => acknowledged = reason,
            Err(_) if net.members.values().filter(|m| m.status().disk_full).count() >= 2 => break,
            Err(_) => net.ticks(5),
        }
    }
    assert!(net.members.values().filter(|m| m.status().disk_full).count() >= 2);
    net.disks.values().for_each(|d| d.limit(0));
    net.until("a leader", |net| net.leader().is_some() && net.members.values().all(|m| !m.status().disk_full));
    net.assert_equal();
    let leader = net.leader().expect("a leader");
    let number = |text: &str| text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    assert!(number(&reasons(&net, leader)) >= number(&acknowledged));
    net.write("again");
}

#[test]
fn a_failed_sync_ends_the_member_and_says_why() {
    let mut net = Net::on_media(&[1, 2, 3]);
    let leader = net.leader().expect("a leader");
    net.disks[&leader].fail_syncs(true);
    let _ = net.change(Op::SetHalt(SetHalt { reason: "x".to_owned() }));
    let fatal = net.ended.get(&leader).expect("it ended");
    assert!(matches!(fatal, Fatal::Store(_)), "{fatal:?}");
    assert!(format!("{fatal:?}").contains("the medium is broken"), "{fatal:?}");
    net.until("another one leads", |net| net.leader().is_some());
    net.write("without it");
}

#[test]
fn a_file_that_cannot_be_made_smaller_for_want_of_room_is_used_as_it_is() {
    let mut net = Net::empty(Config { compact_bytes_min: 1 << 20, log_entries_max: 20, flush_entries: 10, ..Config::default() });
    net.media = true;
    net.form(&[1]);
    for i in 0..60 {
        net.write(&format!("{i} {}", "x".repeat(100_000)));
    }
    net.ticks(200);
    net.crash(1);
    let before = net.disks[&1].copy();
    let mut opened = 0;
    for after in 0..60 {
        let disk = before.copy();
        disk.fail_writes(after);
        net.disks.insert(1, disk);
        // A write of the start itself may be the one that finds no room: then it does not start.
        if net.start(1).is_ok() {
            opened += 1;
            net.disks[&1].room_again();
            net.until("it leads", |net| net.leader().is_some());
            net.write("goes on");
            net.crash(1);
        }
    }
    assert!(opened > 0);
}

#[test]
fn a_member_that_restarts_knows_what_of_its_log_was_committed() {
    let mut net = Net::on_media(&[1, 2, 3]);
    let follower = (1..=3).find(|id| net.leader() != Some(*id)).expect("a follower");
    // Nothing of the state is written in so few ticks.
    for i in 0..10 {
        net.write(&format!("{i}"));
    }
    let (committed, last) = (net.member(follower).status().commit, net.member(follower).status().last);
    net.crash(follower);
    net.start(follower).expect("it opens");
    let status = net.member(follower).status();
    assert_eq!(status.last, last);
    // The index that came with the newest entry, not after it.
    assert!(status.commit >= committed - 1, "{} of {committed}", status.commit);
}

/// Changes a member's file behind its back, while it does not run.
fn tamper(net: &Net, id: u64, change: impl FnOnce(&redb::WriteTransaction)) {
    let db = redb::Builder::new().create_with_backend(net.disks[&id].clone()).expect("it opens");
    let txn = db.begin_write().expect("begun");
    change(&txn);
    txn.commit().expect("committed");
}

#[test]
fn what_vanished_from_the_store_is_noticed_before_it_votes_again() {
    const PIECES: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("pieces");
    const LOG: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("log");
    const META: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("meta");
    type Change = fn(&redb::WriteTransaction);
    let damages: [(&str, Change); 5] = [
        ("of the state is missing", |txn| drop(txn.open_table(PIECES).expect("a table").pop_first().expect("a piece"))),
        ("state hash", |txn| {
            // The newest piece is of the last write, so none of its rows is in a newer one.
            let mut table = txn.open_table(PIECES).expect("a table");
            let (number, bytes) =
                redb::ReadableTable::last(&table).expect("read").map(|(number, piece)| (number.value(), piece.value().to_vec())).expect("a piece");
            let mut rows = StateRows::decode(&bytes[..bytes.len() - 4]).expect("rows");
            rows.rows.pop();
            let mut bytes = rows.encode_to_vec();
            bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
            table.insert(number, &bytes[..]).expect("written");
        }),
        ("the log ends", |txn| drop(txn.open_table(LOG).expect("a table").pop_last().expect("an entry"))),
        ("hard_state has vanished", |txn| drop(txn.open_table(META).expect("a table").remove("hard_state").expect("a row"))),
        ("has vanished", |txn| assert!(txn.delete_table(META).expect("a table"))),
    ];
    for (what, damage) in damages {
        let mut net = Net::on_media(&[1, 2, 3]);
        net.fill(60);
        let follower = (1..=3).find(|id| net.leader() != Some(*id)).expect("a follower");
        net.members.get_mut(&follower).expect("it runs").flush().expect("written");
        net.crash(follower);
        tamper(&net, follower, damage);
        let refused = net.start(follower).expect_err("it does not start").to_string();
        assert!(refused.contains(what) && refused.contains("probity cluster replace"), "{what}: {refused}");
    }
}

#[test]
fn followers_give_space_back_one_at_a_time_and_the_leader_when_it_starts_anew() {
    let mut net = Net::empty(Config { compact_bytes_min: 2 << 20, log_entries_max: 20, flush_entries: 5, ..Config::default() });
    net.media = true;
    net.form(&[1, 2, 3]);
    for i in 0..40 {
        let leader = net.leader().expect("a leader");
        let base_revision = net.member(leader).state().meta().resource_revision;
        let document_json = "x".repeat(100_000);
        let resource = Resource { kind: "Scenario".to_owned(), namespace: "default".to_owned(), name: format!("s{i}"), document_json, ..Resource::default() };
        net.change(Op::ApplyResources(ApplyResources { base_revision, put: vec![resource], ..ApplyResources::default() })).expect("applied");
        // Written each, as in a group in which time passes between changes.
        net.tick();
    }
    // What was kept goes: resources, and then their audit records.
    let leader = net.leader().expect("a leader");
    let base_revision = net.member(leader).state().meta().resource_revision;
    let delete = (0..40).map(|i| ResourceKey { kind: "Scenario".to_owned(), namespace: "default".to_owned(), name: format!("s{i}") }).collect();
    net.change(Op::ApplyResources(ApplyResources { base_revision, delete, ..ApplyResources::default() })).expect("applied");
    for _ in 0..2_100 {
        net.write("to the end of the audit");
        net.tick();
    }
    let sizes = |net: &Net| net.disks.values().map(Disk::len).collect::<Vec<_>>();
    let before = sizes(&net);
    assert!(before.iter().all(|len| *len > 2 << 20), "{before:?}");
    let done = |net: &Net| net.members.values().map(|m| m.compactions()).collect::<Vec<_>>();
    let mut turns = Vec::new();
    for minute in 1..=6 {
        let was = done(&net);
        net.time_us = minute * 60_000_000;
        net.write("a minute later");
        net.ticks(200);
        turns.push(done(&net).iter().zip(&was).filter(|(now, was)| now > was).count());
    }
    assert!(turns.iter().all(|n| *n <= 1), "one at a time: {turns:?}");
    let smaller = |net: &Net, id: u64| net.disks[&id].len() * 2 < before[id as usize - 1];
    for id in (1..=3).filter(|id| *id != leader) {
        assert!(smaller(&net, id), "{before:?} then {:?}", sizes(&net));
    }
    assert!(!smaller(&net, leader), "the leader does not pause");
    net.crash(leader);
    net.start(leader).expect("it opens");
    assert!(smaller(&net, leader));
    net.until("a leader", |net| net.leader().is_some());
    net.assert_equal();
}

#[test]
fn a_log_of_large_entries_is_cut_by_their_bytes() {
    const BYTES_MAX: u64 = 256 * 1024;
    let mut net = Net::with(Config { flush_entries: 4, log_bytes_max: BYTES_MAX, ..Config::default() }, &[1, 2, 3]);
    for i in 0..60 {
        net.write(&format!("{i}{}", "x".repeat(30_000)));
    }
    net.ticks(200);
    for member in net.members.values() {
        let kept = member.log_bytes();
        assert!(kept > 0 && kept <= BYTES_MAX + 4 * 31_000, "{kept} bytes in the log of {member:?}");
    }
    // What is left is enough to start from.
    net.crash(2);
    net.write("without it");
    net.start(2).expect("it opens");
    net.until("a leader", |net| net.leader().is_some());
    net.ticks(20);
    net.assert_equal();
}
