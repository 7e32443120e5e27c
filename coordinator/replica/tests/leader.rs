//! Who should lead, and which build may take part.

mod common;

use common::*;
use probity_proto::v1::command::Op;
use probity_proto::v1::*;
use probity_replica::{Config, Fatal, Input, OpenError, Reply};
use prost::Message as _;

/// Everybody's disk, each second, for so many seconds.
fn seconds(net: &mut Net, n: usize, p99_us: impl Fn(u64) -> u64) {
    for _ in 0..n {
        for id in net.members.keys().copied().collect::<Vec<_>>() {
            net.step(id, Input::Persistence { p99_us: p99_us(id) });
        }
        net.ticks(20);
    }
}

#[test]
fn a_leader_with_a_slow_disk_hands_over_to_the_fastest_and_stays_away() {
    let mut net = Net::formed(&[1, 2, 3]);
    let slow = net.leader().expect("a leader");
    let fastest = (1..=3).rev().find(|id| *id != slow).expect("another");
    let p99 = |id| {
        if id == slow {
            400_000
        } else if id == fastest {
            2_000
        } else {
            3_000
        }
    };
    seconds(&mut net, 8, p99);
    assert_eq!(net.leader(), Some(slow), "not for a moment");
    seconds(&mut net, 6, p99);
    assert_eq!(net.leader(), Some(fastest));
    net.write("under the new one");
    seconds(&mut net, 40, p99);
    assert_eq!(net.leader(), Some(fastest));
}

#[test]
fn leadership_stays_where_nobody_is_better() {
    let everybody_slow = |_| 400_000;
    let slow_followers = |leader: u64| move |id: u64| if id == leader { 5_000 } else { 900_000 };
    let a_little_better = |leader: u64| move |id: u64| if id == leader { 120_000 } else { 90_000 };
    for case in 0..3 {
        let mut net = Net::formed(&[1, 2, 3]);
        let leader = net.leader().expect("a leader");
        match case {
            0 => seconds(&mut net, 30, everybody_slow),
            1 => seconds(&mut net, 30, slow_followers(leader)),
            _ => seconds(&mut net, 30, a_little_better(leader)),
        }
        assert_eq!(net.leader(), Some(leader), "case {case}");
    }
    // Slow now and then is not slow.
    let mut net = Net::formed(&[1, 2, 3]);
    let leader = net.leader().expect("a leader");
    for round in 0..10 {
        seconds(&mut net, 6, |id| if id == leader { 400_000 } else { 1_000 });
        seconds(&mut net, 1, |_| 1_000);
        assert_eq!(net.leader(), Some(leader), "round {round}");
    }
}

fn version(version: u32) -> Op {
    Op::SetClusterVersion(SetClusterVersion { version })
}

fn announce(net: &mut Net, id: u64, max_command_version: u32) {
    let member = MemberRecord { max_command_version, ..record(id, &format!("c{id}")) };
    net.change(Op::PutMember(PutMember { member: Some(member) })).expect("taken down");
}

#[test]
fn an_upgrade_rolls_and_there_is_no_way_back() {
    let mut net = Net::with(Config { command_version: 1, ..Config::default() }, &[1, 2, 3]);
    assert!(net.change(version(2)).expect_err("nobody understands it").contains("understands command version 1 only"));
    net.config.command_version = 2;
    for id in 1..=3 {
        net.crash(id);
        net.until("a leader", |net| net.leader().is_some());
        net.start(id).expect("it opens");
        net.until("a leader", |net| net.leader().is_some());
        net.write("while it rolls");
        announce(&mut net, id, 2);
        assert_eq!(net.change(version(2)).is_ok(), id == 3);
    }
    net.assert_equal();
    let newer = Command { version: 2, op: Some(Op::SetHalt(SetHalt { reason: "new".to_owned() })), ..Command::default() };
    let leader = net.leader().expect("a leader");
    assert!(!format!("{:?}", net.ask(leader, |tag| Input::Propose { tag, command: newer.encode_to_vec() })).contains("Refused"));
    // The old build refuses the store...
    net.config.command_version = 1;
    let follower = (1..=3).find(|id| net.leader() != Some(*id)).expect("a follower");
    net.member(follower);
    net.members.get_mut(&follower).expect("it runs").flush().expect("written");
    net.crash(follower);
    assert!(matches!(net.start(follower), Err(OpenError::Version { cluster: 2, build: 1 })));
    // ...and an old newcomer is not taken in.
    assert!(net.configure(Op::AddMember(AddMember { member: Some(record(9, "c9")) })).expect_err("too old").contains("upgrade it first"));
}

#[test]
fn an_old_build_that_meets_the_new_version_in_its_log_stops_before_it_disagrees() {
    let mut net = Net::with(Config { command_version: 2, log_entries_max: 50, flush_entries: 10, ..Config::default() }, &[1, 2, 3]);
    for id in 1..=3 {
        announce(&mut net, id, 2);
    }
    net.ticks(200);
    let follower = (1..=3).find(|id| net.leader() != Some(*id)).expect("a follower");
    net.crash(follower);
    net.change(version(2)).expect("raised");
    net.config.command_version = 1;
    net.start(follower).expect("what it has is of version 1");
    net.ticks(30);
    assert!(matches!(net.ended.get(&follower), Some(Fatal::Version { cluster: 2, build: 1 })), "{:?}", net.ended);
    // The same when it comes by a snapshot.
    net.fill(200);
    net.start(follower).expect("what it has is of version 1");
    net.ticks(60);
    assert!(matches!(net.ended.get(&follower), Some(Fatal::Version { cluster: 2, build: 1 })), "{:?}", net.ended);
    net.config.command_version = 2;
    net.start(follower).expect("it opens");
    net.until("it is back", |net| net.leader().is_some_and(|l| net.member(l).status().applied == net.member(follower).status().applied));
    net.assert_equal();
}

/// Steps everybody's clocks: each member's wall clock is this far from the right one.
fn clocks(net: &mut Net, now_us: u64, off_us: &[i64]) {
    for (id, off) in (1..).zip(off_us) {
        net.step(id, Input::Clock { mono_us: now_us, wall_us: 1_000_000_000 + now_us as i64 + off });
    }
}

/// Ticks with clocks that go on, until `done`.
fn ticks_with_clocks(net: &mut Net, off_us: &[i64], done: impl Fn(&Net) -> bool) -> bool {
    for tick in 1..600 {
        clocks(net, tick * 50_000, off_us);
        net.tick();
        if done(net) {
            return true;
        }
    }
    false
}

#[test]
fn a_leader_whose_wall_clock_is_the_odd_one_proposes_nothing_and_hands_over() {
    let mut net = Net::formed(&[1, 2, 3]);
    let first = net.leader().expect("a leader");
    let mut off = [200_000, -200_000, 0];
    off[first as usize - 1] = 30_000_000;
    // It learns the time only now: to everybody it is as if it had just been elected.
    clocks(&mut net, 1, &off);
    assert!(!net.member(first).clocks_agree());
    let command = Command { version: 1, op: Some(Op::SetHalt(SetHalt::default())), ..Command::default() };
    let halt = |tag| Input::Propose { tag, command: command.encode_to_vec() };
    assert_eq!(net.ask(first, halt), Some(Reply::Busy), "nothing that bears its time");
    let right = |net: &Net| net.leader().is_some_and(|l| l != first && net.member(l).clocks_agree());
    assert!(ticks_with_clocks(&mut net, &off, right), "one of the others leads, and may");
    assert!(net.member(first).clock_handovers() > 0);
    net.write("by the right time");
}

#[test]
fn while_no_two_wall_clocks_agree_nobody_proposes_and_once_they_do_it_goes_on() {
    let mut net = Net::formed(&[1, 2, 3]);
    let off = [0, 20_000_000, -20_000_000];
    let any = |net: &Net| net.leader().is_some_and(|l| net.member(l).clocks_agree());
    assert!(!ticks_with_clocks(&mut net, &off, any));
    assert!(ticks_with_clocks(&mut net, &[0, 900_000, -20_000_000], any), "somebody set one right");
    net.write("again");
}
