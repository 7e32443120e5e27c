//! What goes wrong, and when it is healed.

use crate::disk::{At, When};
use crate::net::{Host, Weather};
use crate::plan::Fault;
use crate::rng::Rng;
use crate::world::{Event, Phase, World};

/// The one who disturbs.
#[derive(Debug)]
pub(crate) struct Nemesis {
    rng: Rng,
}

/// A disturbance that ends.
#[derive(Debug)]
pub(crate) enum Undo {
    Links(Vec<(Host, Host)>),
    Weather,
    Disk(usize, u64),
    Targets,
    Inventory,
    Room(usize),
    /// Somebody sets a member's wall clock right.
    Clock(usize),
}

impl Nemesis {
    pub(crate) fn new(rng: Rng) -> Nemesis {
        Nemesis { rng }
    }
}

impl World {
    pub(crate) fn nemesis_turn(&mut self) {
        if self.phase != Phase::Chaos || self.plan.faults.is_empty() {
            return;
        }
        let fault = *self.nemesis.rng.pick(&self.plan.faults);
        self.disturb(fault);
        let wait = self.nemesis.rng.between(self.plan.pace_us / 4, self.plan.pace_us * 2);
        self.after(wait, Event::Nemesis);
    }

    fn some_member(&mut self) -> usize {
        self.nemesis.rng.below(self.plan.hosts() as u64) as usize
    }

    fn some_prober(&mut self) -> usize {
        self.nemesis.rng.below(self.plan.probers as u64) as usize
    }

    /// A prober, one that holds a fault if there is one.
    fn suspect(&mut self) -> usize {
        let holding = self.probers.iter().position(|p| p.process.as_ref().is_some_and(|q| q.engine.disturbs()));
        holding.unwrap_or_else(|| self.some_prober())
    }

    /// A fault has begun on a prober: its owners may not reach it any more until long after its lease.
    pub(crate) fn after_a_fault_began(&mut self, p: usize) {
        if self.phase == Phase::Chaos && self.plan.has(Fault::ProberCrash) && self.nemesis.rng.percent(30) {
            let wait = self.nemesis.rng.below(500_000);
            self.crash_prober_after(p, wait);
        }
        if self.phase == Phase::Chaos && self.plan.has(Fault::ProberAlone) && self.nemesis.rng.percent(40) {
            let long = self.nemesis.rng.between(17_000_000, 40_000_000);
            self.cut_off(p, long);
        }
    }

    /// A prober is there again, and has just said that what it held is over: it may end again before anybody has heard.
    pub(crate) fn after_a_fault_was_left(&mut self, p: usize) {
        if self.phase == Phase::Chaos && self.plan.has(Fault::ProberCrash) && self.nemesis.rng.percent(60) {
            let wait = self.nemesis.rng.below(100_000);
            self.crash_prober_after(p, wait);
        }
    }

    fn crash_prober_after(&mut self, p: usize, wait: u64) {
        let life = self.probers[p].life;
        let power = self.nemesis.rng.percent(50);
        self.after(wait, Event::CrashProber { p, life, power });
    }

    fn cut_off(&mut self, p: usize, long: u64) {
        let prober = Host::Prober(p);
        let members: Vec<Host> = (0..self.plan.hosts()).map(Host::Member).collect();
        let links: Vec<(Host, Host)> = members.iter().flat_map(|m| [(*m, prober), (prober, *m)]).collect();
        links.iter().for_each(|(a, b)| self.net.block(*a, *b));
        self.counts.add("prober cut off");
        self.after(long, Event::Undo(Undo::Links(links)));
        if self.plan.has(Fault::ClockJump) && self.nemesis.rng.percent(50) {
            self.probers[p].clock.wall_offset_us -= self.nemesis.rng.between(5_000_000, 120_000_000) as i64;
            self.counts.add("wall clock set");
        }
    }

    fn for_a_while(&mut self, undo: Undo) {
        let long = self.nemesis.rng.skewed(200_000, 8_000_000);
        self.after(long, Event::Undo(undo));
    }

    fn hosts(&self) -> Vec<Host> {
        let members = (0..self.plan.hosts()).map(Host::Member);
        let probers = (0..self.plan.probers).map(Host::Prober);
        members.chain(probers).chain((0..self.plan.clients).map(Host::Client)).collect()
    }

    fn disturb(&mut self, fault: Fault) {
        match fault {
            Fault::Partition => self.partition(None),
            Fault::IsolateLeader => {
                if let Some(leader) = self.leader() {
                    self.partition(Some(leader));
                }
            }
            Fault::OneWay => self.one_way(),
            Fault::Kill => {
                let m = self.some_member();
                self.crash_if_up(m, false);
            }
            Fault::PowerCut => {
                let m = self.some_member();
                self.crash_if_up(m, true);
            }
            Fault::CrashInWrite => self.trap(),
            Fault::ProberCrash => {
                let p = self.some_prober();
                let power = self.nemesis.rng.percent(50);
                if self.probers[p].process.is_some() {
                    self.crash_prober(p, power);
                }
            }
            Fault::ProberAlone => {
                let p = self.suspect();
                let long = self.nemesis.rng.skewed(1_000_000, 40_000_000);
                self.cut_off(p, long);
            }
            Fault::Pause => {
                let m = self.some_member();
                let long = self.nemesis.rng.skewed(50_000, 4_000_000);
                let until = (self.now + long).max(self.members[m].paused_until);
                self.members[m].paused_until = until;
                self.counts.add("member paused");
                // Longer than any election time-out.
                self.counts.add_n("member paused for longer than an election", u64::from(long > 1_000_000));
            }
            Fault::ClockJump => self.jump_clock(),
            Fault::Drift => {
                let now = self.now;
                let most = self.plan.max_drift_ppm;
                let drift = self.nemesis.rng.between(0, 2 * most) as i64 - most as i64;
                self.some_clock().set_drift(now, drift);
                self.counts.add("clock drifts otherwise");
            }
            Fault::Weather => {
                self.net.weather = self.plan.weather;
                self.counts.add("bad weather");
                self.for_a_while(Undo::Weather);
            }
            Fault::SlowDisk => {
                let m = self.some_member();
                self.members[m].sync_us = self.nemesis.rng.skewed(5_000, 300_000);
                self.counts.add("slow disk");
                let usual = self.plan.sync_us;
                self.for_a_while(Undo::Disk(m, usual));
            }
            Fault::DiskFull => {
                let m = self.some_member();
                let room = self.nemesis.rng.skewed(1_000, 2_000_000);
                self.members[m].disk.set_room(Some(room));
                self.for_a_while(Undo::Room(m));
            }
            Fault::SyncError => {
                if self.nemesis.rng.percent(30) {
                    let p = self.some_prober();
                    self.probers[p].disk.fail_next_sync();
                } else {
                    let m = self.some_member();
                    self.members[m].disk.fail_next_sync();
                }
            }
            Fault::BitRot => self.rot(),
            Fault::Membership => {
                let turn = self.nemesis.rng.below(1 << 20);
                self.change_members(turn);
            }
            Fault::Upgrade => {
                let turn = self.nemesis.rng.below(1 << 20);
                self.upgrade(turn);
            }
            Fault::ProberWiped => {
                let p = self.some_prober();
                self.wipe_prober(p);
            }
            // Operators do it: see `client`.
            Fault::ProberRemoved => {}
            Fault::Inventory => {
                let what = self.inventory.disturb(&mut self.nemesis.rng);
                self.counts.add(what);
                self.for_a_while(Undo::Inventory);
            }
            Fault::Outage => {
                self.targets_up = false;
                self.counts.add("targets down");
                self.for_a_while(Undo::Targets);
            }
        }
    }

    /// A member's host is off for a moment, and some bits of its disk are others when it comes back. Only one member at a time: what the
    /// others hold must make a quorum.
    fn rot(&mut self) {
        let m = self.some_member();
        let enough = self.group().is_some_and(|(_, status)| status.voters.len() >= 3 && status.voters.contains(&self.members[m].id));
        if !enough || self.change.is_some() || self.fragile().is_some_and(|other| other != m) || self.members[m].node.is_none() {
            return;
        }
        self.crash_member(m, false);
        let bits = self.nemesis.rng.skewed(1, 200);
        let changed = self.members[m].disk.rot(bits, &mut self.nemesis.rng);
        self.counts.add_n("bits rotten", changed);
    }

    fn crash_if_up(&mut self, m: usize, power: bool) {
        if self.members[m].node.is_some() {
            self.crash_member(m, power);
        }
    }

    /// Splits the hosts in two; or cuts one member off from the others, with or without those who talk to it.
    fn partition(&mut self, alone: Option<usize>) {
        let hosts = self.hosts();
        let side: Vec<bool> = hosts
            .iter()
            .map(|h| match (alone, h) {
                (Some(m), Host::Member(other)) => *other == m,
                _ => self.nemesis.rng.percent(50),
            })
            .collect();
        let mut links = Vec::new();
        for (i, a) in hosts.iter().enumerate() {
            for (j, b) in hosts.iter().enumerate() {
                if side[i] != side[j] {
                    links.push((*a, *b));
                }
            }
        }
        self.counts.add(if alone.is_some() { "leader isolated" } else { "partition" });
        self.cut(links);
    }

    fn one_way(&mut self) {
        let hosts = self.hosts();
        let mut links = Vec::new();
        for _ in 0..self.nemesis.rng.between(1, 4) {
            let a = Host::Member(self.some_member());
            let b = *self.nemesis.rng.pick(&hosts);
            links.push(if self.nemesis.rng.percent(50) { (a, b) } else { (b, a) });
        }
        self.counts.add("one-way or partial partition");
        self.cut(links);
    }

    fn cut(&mut self, links: Vec<(Host, Host)>) {
        for (a, b) in &links {
            self.net.block(*a, *b);
        }
        self.for_a_while(Undo::Links(links));
    }

    fn trap(&mut self) {
        let at = *self.nemesis.rng.pick(&[At::Write, At::Sync, At::Any]);
        let when = if self.nemesis.rng.percent(50) { When::Before } else { When::After };
        let n = self.nemesis.rng.below(80);
        if self.nemesis.rng.percent(30) {
            let p = self.some_prober();
            self.probers[p].disk.set_trap(n, at, when);
        } else {
            let m = self.some_member();
            self.members[m].disk.set_trap(n, at, when);
        }
    }

    fn some_clock(&mut self) -> &mut crate::clock::HostClock {
        let hosts = self.plan.hosts();
        let n = self.nemesis.rng.below((hosts + self.plan.probers) as u64) as usize;
        if n < hosts { &mut self.members[n].clock } else { &mut self.probers[n - hosts].clock }
    }

    fn jump_clock(&mut self) {
        let by = self.nemesis.rng.skewed(10_000, 120_000_000) as i64;
        let by = if self.nemesis.rng.percent(50) { by } else { -by };
        if self.nemesis.rng.percent(50) {
            let p = self.suspect();
            self.probers[p].clock.wall_offset_us += by;
        } else {
            let m = self.some_member();
            let now = self.now;
            let member = &mut self.members[m];
            member.clock.wall_offset_us += by;
            member.clock_set_at = now;
            self.for_a_while(Undo::Clock(m));
        }
        self.counts.add("wall clock set");
    }

    pub(crate) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Links(links) => links.iter().for_each(|(a, b)| self.net.unblock(*a, *b)),
            Undo::Weather => self.net.weather = Weather::FINE,
            Undo::Disk(m, sync_us) => self.members[m].sync_us = sync_us,
            Undo::Targets => self.targets_up = true,
            Undo::Inventory => self.inventory.mend(),
            Undo::Room(m) => self.members[m].disk.set_room(None),
            Undo::Clock(m) => self.set_right(m),
        }
    }

    fn set_right(&mut self, m: usize) {
        let (now, off) = (self.now, self.nemesis.rng.between(0, 400_000) as i64 - 200_000);
        let member = &mut self.members[m];
        member.clock.wall_offset_us = off;
        member.clock_set_at = now;
    }

    /// No disturbance any more, and none to come.
    pub(crate) fn heal(&mut self) {
        self.net.heal();
        self.targets_up = true;
        self.inventory.mend();
        self.at(self.now, Event::Operator);
        for m in 0..self.members.len() {
            self.members[m].sync_us = self.plan.sync_us;
            self.members[m].paused_until = 0;
            let life = self.members[m].life;
            self.at(self.now, Event::Resume { m, life });
            self.members[m].disk.clear_trap();
            self.members[m].disk.set_room(None);
            self.members[m].disk.mend_syncs();
            self.set_right(m);
            self.at(self.now, Event::StartMember { m });
            self.poke(m);
        }
        for p in 0..self.probers.len() {
            self.probers[p].disk.clear_trap();
            self.probers[p].disk.mend_syncs();
            self.at(self.now, Event::StartProber { p });
        }
    }
}
