//! Members come and go: learners, joint consensus, changes cut short by a crash, members that must not come back.

mod common;

use common::*;
use probity_proto::v1::command::Op;
use probity_proto::v1::*;
use probity_replica::{Fatal, Input, OpenError, Role};

fn remove(id: u64) -> Op {
    Op::RemoveMember(RemoveMember { id })
}

#[test]
fn a_group_grows_from_one_to_five_and_shrinks_again() {
    let mut net = Net::formed(&[1]);
    net.fill(300);
    for id in 2..=5 {
        net.start(id).expect("it opens");
        net.join(record(id, &format!("c{id}"))).expect("it joins");
        net.settled(&(1..=id).collect::<Vec<_>>());
        net.write("more");
    }
    net.assert_equal();
    // Five bear the loss of two, one of them the leader.
    let leader = net.leader().expect("a leader");
    net.crash(leader);
    net.crash(if leader == 5 { 4 } else { 5 });
    net.until("a new leader", |net| net.leader().is_some());
    net.write("still here");
    let gone: Vec<u64> = (1..=5).filter(|id| !net.members.contains_key(id)).collect();
    for id in gone {
        net.configure(remove(id)).expect("removed");
        let left = net.voters();
        net.settled(&left);
    }
    assert_eq!(net.voters().len(), 3);
    net.write("three");
    net.assert_equal();
}

#[test]
fn a_learner_counts_for_nothing_until_it_has_caught_up() {
    let mut net = Net::formed(&[1, 2]);
    net.fill(10);
    net.start(3).expect("it opens");
    net.isolate(3, true);
    net.join(record(3, "c3")).expect("it joins");
    net.ticks(100);
    assert_eq!(net.voters(), [1, 2]);
    let leader = net.leader().expect("a leader");
    assert_eq!(net.member(leader).status().learners, [3]);
    net.write("without it");
    assert_ne!(net.member(3).status().role, Role::Candidate);
    net.isolate(3, false);
    net.settled(&[1, 2, 3]);
    net.assert_equal();
}

#[test]
fn a_new_leader_finishes_the_change_that_the_old_one_began() {
    let mut net = Net::formed(&[1, 2, 3]);
    let old = net.leader().expect("a leader");
    net.start(4).expect("it opens");
    net.join(record(4, "c4")).expect("it joins");
    // Until the joint configuration is there, and no further.
    net.until("joint", |net| !net.member(old).status().voters_outgoing.is_empty());
    net.crash(old);
    net.settled(&[1, 2, 3, 4]);
    net.start(old).expect("it opens");
    net.write("after");
    net.assert_equal();
}

#[test]
fn a_dead_member_is_replaced_in_one_step_and_its_disk_is_welcome_no_more() {
    let mut net = Net::formed(&[1, 2, 3]);
    let dead = (1..=3).find(|id| net.leader() != Some(*id)).expect("a follower");
    net.crash(dead);
    net.fill(20);
    let name = format!("c{dead}");
    net.start(9).expect("it opens");
    assert!(net.join(record(9, &name)).expect_err("the name is taken").contains("cluster replace"));
    net.join(MemberRecord { replaces: dead, ..record(9, &name) }).expect("it joins");
    net.settled(&(1..=9).filter(|id| net.disks.contains_key(id) && *id != dead).collect::<Vec<_>>());
    assert!(net.configure(Op::AddMember(AddMember { member: Some(record(dead, "again")) })).expect_err("retired").contains("empty data directory"));
    // It comes back from the dead, asks for votes, is told, and ends.
    net.start(dead).expect("it opens");
    net.until("it ends", |net| net.ended.contains_key(&dead));
    assert!(matches!(net.ended[&dead], Fatal::Removed { .. }), "{:?}", net.ended);
    net.write("undisturbed");
    net.assert_equal();
}

#[test]
fn who_saw_its_own_removal_does_not_start_again() {
    let mut net = Net::formed(&[1, 2, 3]);
    let follower = (1..=3).find(|id| net.leader() != Some(*id)).expect("a follower");
    net.configure(remove(follower)).expect("removed");
    net.ticks(100);
    assert!(!net.member(follower).status().voters.contains(&follower), "it stays for a while: others may still need its vote");
    net.ticks(120);
    assert!(matches!(net.ended.get(&follower), Some(Fatal::Removed { .. })), "{:?}", net.ended);
    assert!(matches!(net.start(follower), Err(OpenError::Removed { .. })));
}

#[test]
fn the_leader_is_not_removed_and_hands_over_only_to_who_can_lead() {
    let mut net = Net::formed(&[1, 2, 3]);
    let leader = net.leader().expect("a leader");
    assert!(net.configure(remove(leader)).expect_err("it leads").contains("cluster transfer"));
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    net.crash(others[0]);
    net.ticks(30);
    let asked = |net: &mut Net, to| format!("{:?}", net.ask(leader, |tag| Input::Transfer { tag, to }));
    assert!(asked(&mut net, others[0]).contains("cannot take over"));
    assert!(asked(&mut net, 77).contains("cannot take over"));
    assert!(asked(&mut net, leader).contains("cannot take over"));
    assert!(!asked(&mut net, others[1]).contains("cannot take over"));
    net.until("it took over", |net| net.leader() == Some(others[1]));
    net.write("under the new one");
    net.configure(remove(leader)).expect("now it can be removed");
}

#[test]
fn two_changes_at_once_are_one_change_and_a_refusal() {
    let mut net = Net::formed(&[1, 2, 3]);
    let leader = net.leader().expect("a leader");
    let followers: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    for id in &followers {
        net.isolate(*id, true);
    }
    let command = |id| Command { version: 1, op: Some(remove(id)), ..Command::default() };
    net.step(leader, Input::Configure { tag: 900, command: command(followers[0]) });
    net.step(leader, Input::Configure { tag: 901, command: command(followers[1]) });
    let said = format!("{:?}", net.replies.iter().find(|(_, tag, _)| *tag == 901));
    assert!(said.contains("under way"), "{said}");
    assert_eq!(net.voters(), [1, 2, 3], "nothing is decided without a quorum");
}

#[test]
fn a_retry_after_a_lost_reply_changes_nothing_again() {
    let mut net = Net::formed(&[1, 2, 3]);
    let leader = net.leader().expect("a leader");
    net.start(4).expect("it opens");
    let op = Op::AddMember(AddMember { member: Some(record(4, "c4")) });
    let command = Command { version: 1, request_id: "join".to_owned(), op: Some(op), ..Command::default() };
    let first = net.ask(leader, |tag| Input::Configure { tag, command: command.clone() }).expect("a reply");
    net.members.get_mut(&4).expect("it runs").join(CLUSTER).expect("it joins");
    net.settled(&[1, 2, 3, 4]);
    let again = net.ask(leader, |tag| Input::Configure { tag, command }).expect("a reply");
    assert_eq!(format!("{first:?}").split("result").nth(1), format!("{again:?}").split("result").nth(1));
    net.ticks(20);
    assert_eq!(net.voters(), [1, 2, 3, 4], "not back to a learner");
}

#[test]
fn a_disk_that_went_back_in_time_ends_its_member() {
    let mut net = Net::formed(&[1, 2, 3]);
    net.fill(5);
    let follower = (1..=3).find(|id| net.leader() != Some(*id)).expect("a follower");
    // A copy of its disk, put back after more was acknowledged: what a restored machine image does.
    net.crash(follower);
    let copy = net.disks[&follower].copy();
    net.start(follower).expect("it opens");
    net.fill(5);
    net.crash(follower);
    net.disks.insert(follower, copy);
    net.start(follower).expect("it opens");
    net.ticks(30);
    assert!(matches!(net.ended.get(&follower), Some(Fatal::Lost { .. })), "{:?}", net.ended);
}

#[test]
fn configurations_survive_restarts_of_everybody() {
    let mut net = Net::formed(&[1, 2, 3]);
    net.start(4).expect("it opens");
    net.join(record(4, "c4")).expect("it joins");
    net.settled(&[1, 2, 3, 4]);
    net.configure(remove(net.leader().map(|l| if l == 1 { 2 } else { 1 }).expect("a leader"))).expect("removed");
    net.ticks(240);
    let voters = net.voters();
    assert_eq!(voters.len(), 3);
    for id in voters.clone() {
        net.crash(id);
    }
    for id in voters.clone() {
        net.start(id).expect("it opens");
        assert_eq!(net.member(id).status().voters, voters);
    }
    net.until("a leader", |net| net.leader().is_some());
    net.write("again");
    net.assert_equal();
}

#[test]
fn who_answers_is_never_called_silent() {
    let mut net = Net::formed(&[1, 2, 3]);
    let leader = net.leader().expect("a leader");
    let silent = |net: &Net| net.member(leader).status().progress.into_iter().filter(|(_, p)| !p.recent).map(|(id, _)| id).collect::<Vec<_>>();
    // Over many checks of the quorum.
    for tick in 0..200 {
        net.tick();
        assert_eq!(silent(&net), [0u64; 0], "tick {tick}");
    }
    let follower = (1..=3).find(|id| *id != leader).expect("a follower");
    net.isolate(follower, true);
    net.ticks(40);
    assert_eq!(silent(&net), [follower]);
}

#[test]
fn a_member_whose_disk_failed_while_it_joined_does_not_say_that_it_has() {
    let mut net = Net::formed(&[1, 2, 3]);
    net.start(4).expect("it opens");
    net.disks[&4].fail_syncs(true);
    let joins = |net: &mut Net| net.members.get_mut(&4).expect("it runs").join(CLUSTER);
    assert!(joins(&mut net).is_err());
    net.disks[&4].fail_syncs(false);
    assert!(joins(&mut net).is_err(), "its file is trusted no more, and nothing is on it");
    // After a restart it can.
    net.crash(4);
    net.start(4).expect("it opens");
    net.join(record(4, "c4")).expect("joined");
    net.settled(&[1, 2, 3, 4]);
}
