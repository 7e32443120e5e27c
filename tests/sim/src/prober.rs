//! A prober's host: the real session, and a thin driver that mirrors `prober/src/driver.rs`.

use probity_proto::bugs::{self, Bug};
use probity_proto::v1::coordinator_message::Message as FromCoordinator;
use probity_proto::v1::prober_message::Message as ToCoordinator;
use probity_proto::v1::*;
use probity_session::{Batch, Clock, Config, FaultAction, RunDone, Session, SlotStart, StoreError};

use crate::clock::HostClock;
use crate::disk::Disk;
use crate::engine::{Engine, Journal, Order};
use crate::fleet::HEARTBEAT_US;
use crate::world::{Event, Phase, World};

/// The longest sleep.
const SLEEP_MAX_US: u64 = 500_000;
/// So long before they are due slots are handed out.
const AHEAD_US: i64 = 20_000;
/// How often an active fault is looked at.
const LOOK_US: u64 = 50_000;
/// How long what is written is under way to the disk.
const WRITE_US: u64 = 20_000;

/// So often a prober may lose its disk: the cluster remembers a bounded number of its spools.
const WIPES_MAX: u32 = 5;

/// A forward step of the clock in which several slots of a check may fall due.
const CLOCK_STEP_US: i64 = 100_000;

/// No probe runs more often.
const INTERVAL_MIN_US: u64 = 500_000;

/// A prober's host.
pub(crate) struct Prober {
    pub(crate) name: String,
    pub(crate) disk: Disk,
    pub(crate) clock: HostClock,
    pub(crate) journal: Journal,
    /// Grows when its process ends.
    pub(crate) life: u64,
    pub(crate) process: Option<Process>,
    /// Since when it is off, and for how long it ever was.
    pub(crate) off_since: Option<u64>,
    pub(crate) off_us: u64,
    pub(crate) starts: u64,
    pub(crate) wiped: u32,
    /// The slots that it may have overslept when its idea of the cluster's time went forward.
    pub(crate) overslept_max: u64,
}

/// A running prober.
pub(crate) struct Process {
    pub(crate) session: Session,
    /// What is under way to the disk: a crash loses it.
    writing: Option<Batch>,
    clock: Clock,
    /// The wall clock when it started, from which its own clock goes on monotonically.
    start: (i64, u64),
    pub(crate) stream: Option<u64>,
    pub(crate) welcomed: bool,
    next_heartbeat: u64,
    pub(crate) engine: Engine,
    /// Only the newest planned wake-up counts.
    turn: u64,
    next_member: usize,
    failures: u32,
    fence: u64,
}

impl Process {
    /// What was under way is on the disk now, and the next goes on its way.
    fn write(&mut self) -> Result<(), StoreError> {
        if let Some(batch) = self.writing.take() {
            let written = batch.commit()?;
            self.session.on_written(written);
        }
        self.writing = self.session.take_batch();
        Ok(())
    }
}

impl Prober {
    /// The clock that the session goes by.
    fn mono_us(&self, now: u64) -> u64 {
        let Some(process) = &self.process else { return 0 };
        let (wall, mono) = process.start;
        wall as u64 + (self.clock.mono_us(now) - mono)
    }

    fn cluster_us(&self, now: u64) -> i64 {
        self.process.as_ref().map_or(0, |p| p.clock.cluster_us(self.mono_us(now)))
    }

    fn lease_clock_us(&self, now: u64) -> u64 {
        if bugs::on(Bug::LeaseByWallClock) { self.clock.wall_us(now) as u64 } else { self.clock.mono_us(now) }
    }
}

impl World {
    pub(crate) fn start_prober(&mut self, p: usize) {
        let prober = &mut self.probers[p];
        if prober.process.is_some() {
            return;
        }
        let wall = prober.clock.wall_us(self.now);
        let config = Config {
            prober: prober.name.clone(),
            new_spool_id: format!("{}-{}", prober.name, prober.life),
            spool_bytes_max: 64 << 20,
            flush_us: 10_000_000,
            unsteady_flush_us: 200_000,
            ahead_us: AHEAD_US,
        };
        let opened = prober.disk.open().map_err(|e| e.to_string()).and_then(|db| Session::open(db, config, wall).map_err(|e| format!("{e:?}")));
        let session = match opened {
            Ok(session) => session,
            Err(_) if prober.disk.is_dead() || prober.disk.take_sync_failed() => return self.crash_prober(p, true),
            Err(e) => return self.violate("R9", format!("prober {p} cannot open its own spool: {e}")),
        };
        let mono = prober.clock.mono_us(self.now);
        prober.process = Some(Process {
            session,
            writing: None,
            clock: Clock::new(0),
            start: (wall, mono),
            stream: None,
            welcomed: false,
            next_heartbeat: 0,
            engine: Engine::default(),
            turn: 0,
            next_member: p,
            failures: 0,
            fence: 0,
        });
        prober.starts += 1;
        if let Some(since) = prober.off_since.take() {
            prober.off_us += self.now - since;
        }
        // What the last process held ended with it.
        let left = std::mem::take(&mut prober.journal.open);
        if !left.is_empty() {
            self.after_a_fault_was_left(p);
        }
        for id in left {
            self.fault_event(p, &id, FaultState::Undone, "it ended with the process that held it");
        }
        self.connect_later(p, None);
        self.prober_turn(p);
    }

    pub(crate) fn crash_prober(&mut self, p: usize, power: bool) {
        let prober = &mut self.probers[p];
        prober.life += 1;
        if power {
            prober.disk.cut_power(&mut self.rng.disks);
            self.counts.add("prober lost power");
        } else {
            prober.disk.kill();
            self.counts.add("prober killed");
        }
        prober.off_since.get_or_insert(self.now);
        let process = prober.process.take();
        if let Some(stream) = process.as_ref().and_then(|p| p.stream) {
            self.break_stream(stream, power);
        }
        drop(process);
        let wait = if self.phase == Phase::Heal { 200_000 } else { self.rng.hosts.skewed(60_000, 6_000_000) };
        self.after(wait, Event::StartProber { p });
    }

    /// A prober's host is there again without its disk.
    pub(crate) fn wipe_prober(&mut self, p: usize) {
        if self.probers[p].wiped >= WIPES_MAX || self.probers[p].process.is_none() {
            return;
        }
        self.crash_prober(p, true);
        let prober = &mut self.probers[p];
        prober.wiped += 1;
        prober.disk.wipe();
        // Its journal was there too.
        prober.journal = Journal::default();
        self.counts.add("prober lost its disk");
    }

    /// Calls a coordinator after a pause: the one that was named, or the next.
    pub(crate) fn connect_later(&mut self, p: usize, hint: Option<usize>) {
        let (members, life) = (self.plan.hosts(), self.probers[p].life);
        let Some(process) = &mut self.probers[p].process else { return };
        let m = hint.unwrap_or_else(|| {
            process.next_member += 1;
            process.next_member % members
        });
        let most = 100_000u64 << process.failures.min(4);
        process.failures += 1;
        let pause = self.rng.hosts.between(most / 2, most);
        self.after(pause, Event::Connect { p, life, m });
    }

    pub(crate) fn prober_connected(&mut self, p: usize, stream: u64) {
        let Some(process) = &mut self.probers[p].process else { return };
        process.stream = Some(stream);
        process.welcomed = false;
        process.session.on_connected();
        let hello = ProberHello {
            spool_id: process.session.spool_id().to_owned(),
            desired_revision: process.session.revision(),
            cluster_id: process.session.cluster_id().to_owned(),
            acknowledged: process.session.acknowledged(),
            name: self.probers[p].name.clone(),
            labels: [("zone".to_owned(), format!("z{}", p % 3))].into(),
            ..ProberHello::default()
        };
        self.tell_member(stream, ToCoordinator::Hello(hello));
    }

    pub(crate) fn prober_loses(&mut self, stream: u64, hint: Option<usize>) {
        let Some(s) = self.streams.remove(&stream) else { return };
        let prober = &mut self.probers[s.p];
        if prober.life != s.prober_life {
            return;
        }
        if let Some(process) = prober.process.as_mut().filter(|p| p.stream == Some(stream)) {
            process.stream = None;
            process.welcomed = false;
            self.connect_later(s.p, hint);
        }
    }

    pub(crate) fn prober_hears(&mut self, stream: u64, message: CoordinatorMessage) {
        let Some((p, life)) = self.streams.get(&stream).map(|s| (s.p, s.prober_life)) else { return };
        let now = self.now;
        let prober = &mut self.probers[p];
        if prober.life != life || prober.process.as_ref().is_none_or(|q| q.stream != Some(stream)) {
            return;
        }
        let (received, cluster) = (prober.mono_us(now), prober.cluster_us(now));
        let Some(process) = &mut prober.process else { return };
        match message.message {
            Some(FromCoordinator::Welcome(welcome)) => {
                process.welcomed = true;
                process.failures = 0;
                process.session.set_flush(welcome.flush_us, welcome.unsteady_flush_us);
                process.next_heartbeat = 0;
                process.session.on_welcome(&welcome.cluster_id);
            }
            Some(FromCoordinator::Desired(set)) => {
                let older = set.fence < process.fence;
                process.fence = process.fence.max(set.fence);
                process.session.on_desired(set, cluster);
                let lost = process.session.revision() == 0;
                self.counts.add_n("desired set of an older fence", u64::from(older));
                if lost {
                    // A change to something that it does not follow: a new hello asks for the whole set.
                    self.counts.add("desired set asked for anew");
                    return self.prober_loses(stream, None);
                }
            }
            Some(FromCoordinator::Ack(ack)) => {
                self.checks.acked(&ack);
                process.session.on_ack(&ack);
            }
            Some(FromCoordinator::Heartbeat(reply)) => {
                let before = process.clock.cluster_us(received);
                process.clock.on_sample(reply.echo_us, received, reply.cluster_time_us);
                // As after a change of leader: slots that are due at once now are overslept.
                let step = process.clock.cluster_us(received) - before;
                if step > CLOCK_STEP_US {
                    let of_each = 1 + step as u64 / INTERVAL_MIN_US;
                    prober.overslept_max += of_each * process.session.assignments() as u64;
                    self.counts.add("prober's clock stepped forward");
                }
                process.session.faults.set_clock_error(process.clock.error_us());
                process.session.on_heartbeat(&reply, cluster);
            }
            Some(FromCoordinator::FaultAck(ack)) => process.session.faults.on_ack(&ack),
            Some(FromCoordinator::NotLeader(not)) => {
                let hint = not.leader_address.strip_prefix('c').and_then(|n| n.parse().ok());
                return self.prober_loses(stream, hint);
            }
            None => {}
        }
        self.prober_turn(p);
    }

    /// Whether the store took it; a prober whose store fails stops.
    fn prober_stored(&mut self, p: usize, done: Result<(), StoreError>) -> bool {
        if self.probers[p].disk.is_dead() {
            self.counts.add("prober died in a write or sync");
            self.crash_prober(p, true);
            return false;
        }
        if done.is_err() && self.probers[p].disk.take_sync_failed() {
            self.counts.add("prober ended by a failed sync");
            self.crash_prober(p, true);
            return false;
        }
        if let Err(e) = done {
            self.violate("R9", format!("prober {p} stopped although nothing was wrong with its disk: {e:?}"));
            return false;
        }
        true
    }

    fn fault_event(&mut self, p: usize, id: &str, state: FaultState, detail: &str) {
        let cluster = self.probers[p].cluster_us(self.now);
        let Some(process) = &mut self.probers[p].process else { return };
        process.session.faults.on_event(id, state, detail.to_owned(), UndoClass::FdLifetime, cluster);
        process.session.save_faults();
    }

    /// Everything that is due now.
    fn prober_turn(&mut self, p: usize) {
        let now = self.now;
        let cluster = self.probers[p].cluster_us(now);
        let Some(process) = &mut self.probers[p].process else { return };
        for slot in process.session.due(cluster) {
            self.start_run(p, slot, cluster);
        }
        let Some(process) = &mut self.probers[p].process else { return };
        process.session.close_rows(cluster);
        process.session.save_faults();
        let stored = process.write();
        if !self.prober_stored(p, stored) {
            return;
        }
        self.tell_engine(p);
        self.end_leases(p);
        self.report(p);
        self.heartbeat(p);
        self.plan_wake(p);
    }

    fn start_run(&mut self, p: usize, slot: SlotStart, cluster: i64) {
        let prober = &self.probers[p];
        let disturbed = prober.process.as_ref().is_some_and(|q| q.engine.disturbs());
        let (reason, took) = match (self.targets_up, disturbed) {
            (_, true) => (Reason::ConnectionReset, self.rng.probes.skewed(500, 20_000)),
            (true, false) => (Reason::Good, self.rng.probes.skewed(500, 80_000)),
            (false, false) if self.rng.probes.percent(50) => (Reason::ConnectTimeout, 1_000_000),
            (false, false) => (Reason::ConnectRefused, self.rng.probes.skewed(200, 5_000)),
        };
        let wait = (slot.due_us - cluster).max(0);
        let run = RunDone { reason, started_at_us: cluster + wait, duration_us: took, ..RunDone::default() };
        let life = prober.life;
        self.after(wait as u64 + took, Event::Ran { p, life, assignment: slot.assignment, n: slot.n, run: Box::new(run) });
    }

    pub(crate) fn prober_ran(&mut self, p: usize, life: u64, assignment: u64, n: u64, run: RunDone) {
        if self.probers[p].life != life {
            return;
        }
        let cluster = self.probers[p].cluster_us(self.now);
        self.counts.add("probe runs");
        if let Some(broken) = self.checks.ran((p, life), assignment, n) {
            return self.violate("R1", broken);
        }
        let Some(process) = &mut self.probers[p].process else { return };
        process.session.on_run_done(assignment, n, run, cluster);
        self.prober_turn(p);
    }

    fn tell_engine(&mut self, p: usize) {
        let now = self.now;
        let prober = &mut self.probers[p];
        let (clock_us, cluster) = (prober.lease_clock_us(now), prober.cluster_us(now));
        let Some(process) = &mut prober.process else { return };
        let mut events = Vec::new();
        for action in process.session.fault_actions(cluster) {
            match action {
                FaultAction::Start { fault_id, lease_us, not_after_us, .. } => {
                    let order = Order { id: fault_id.clone(), lease_us, not_after_us };
                    if let Err(broken) = process.engine.start(order, &mut prober.journal, clock_us, now) {
                        return self.violate("R4", broken);
                    }
                    self.counts.add("game-day fault begun");
                    events.push((fault_id, FaultState::Active, "held".to_owned()));
                }
                FaultAction::Renew { fault_id, lease_us } => process.engine.renew(&fault_id, lease_us, clock_us, now),
                FaultAction::End { fault_id, reason } => {
                    if process.engine.end(&fault_id, &mut prober.journal) {
                        events.push((fault_id, FaultState::Undone, reason));
                    }
                }
            }
        }
        let begun = events.iter().any(|(_, state, _)| *state == FaultState::Active);
        for (id, state, detail) in events {
            self.fault_event(p, &id, state, &detail);
        }
        if begun {
            self.after_a_fault_began(p);
        }
    }

    fn end_leases(&mut self, p: usize) {
        let (now, drift) = (self.now, 2 * self.plan.max_drift_ppm);
        let prober = &mut self.probers[p];
        let clock_us = prober.lease_clock_us(now);
        let Some(process) = &mut prober.process else { return };
        let over = process.engine.over(clock_us);
        for (id, _) in &over {
            process.engine.end(id, &mut prober.journal);
        }
        if let Some(broken) = process.engine.outlived(now, drift) {
            return self.violate("R5", broken);
        }
        for (id, why) in over {
            self.counts.add("game-day fault ended by its lease");
            self.fault_event(p, &id, FaultState::Undone, why);
        }
    }

    fn report(&mut self, p: usize) {
        loop {
            let Some(process) = &mut self.probers[p].process else { return };
            let Some(stream) = process.stream.filter(|_| process.welcomed) else { return };
            let faults: Vec<FaultReport> = std::iter::from_fn(|| process.session.next_fault_report()).collect();
            let rows = process.session.rows_to_send();
            if faults.is_empty() && rows.is_empty() {
                return;
            }
            for report in faults {
                self.tell_member(stream, ToCoordinator::Fault(report));
            }
            if !rows.is_empty() {
                self.checks.sent(&rows);
                self.tell_member(stream, ToCoordinator::Rows(ReportRows { rows }));
            }
        }
    }

    fn heartbeat(&mut self, p: usize) {
        let mono = self.probers[p].mono_us(self.now);
        let Some(process) = &mut self.probers[p].process else { return };
        let Some(stream) = process.stream.filter(|_| process.welcomed && mono >= process.next_heartbeat) else { return };
        process.next_heartbeat = mono + HEARTBEAT_US;
        let heartbeat = Heartbeat { sent_us: mono, desired_revision: process.session.revision(), ..Heartbeat::default() };
        self.tell_member(stream, ToCoordinator::Heartbeat(heartbeat));
    }

    fn plan_wake(&mut self, p: usize) {
        let (cluster, life) = (self.probers[p].cluster_us(self.now), self.probers[p].life);
        let Some(process) = &mut self.probers[p].process else { return };
        let wait = process.session.next_wakeup().map_or(SLEEP_MAX_US, |at| (at - cluster).max(0) as u64 + 1);
        let most = if process.engine.disturbs() { LOOK_US } else { SLEEP_MAX_US };
        let most = if process.writing.is_some() { WRITE_US } else { most };
        process.turn += 1;
        let turn = process.turn;
        self.after(wait.min(most), Event::Wake { p, life, turn });
    }

    pub(crate) fn prober_wake(&mut self, p: usize, life: u64, turn: u64) {
        let current = self.probers[p].process.as_ref().is_some_and(|q| q.turn == turn);
        if self.probers[p].life == life && current {
            self.prober_turn(p);
        }
    }
}
