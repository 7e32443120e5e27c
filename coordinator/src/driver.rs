//! The owner of the replica: one thread, since redb blocks. It batches what came in, steps once, and hands out what follows.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use probity_core::invariants::Patrol;
use probity_core::{desired, next_deadline};
use probity_proto::v1::command::Op;
use probity_proto::v1::*;
use probity_replica::{Draft, Fatal, FormError, Input, Outputs, Replica, Reply, Role};
use probity_rpc::refusal::Refusal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::disk::SyncTimes;
use crate::held::Held;
use crate::node::{Leadership, Live, Node, Outcome, ProposeError, Request};
use crate::peer::Peers;

/// raft's tick.
const TICK: Duration = Duration::from_millis(50);
/// How often the disk's times are looked at, and told to the leader.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// A leader without a quorum of wall clocks that agree with its own says so after this long.
const CLOCKS_PATIENCE: Duration = Duration::from_secs(5);
/// A step that takes longer is told, once in so long: others wait for this member meanwhile, and after twice as much they elect.
const SLOW_STEP: Duration = Duration::from_millis(250);
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Inputs of one step: what is gathered while the last one was on its way to the disk.
const BATCH: usize = 512;

/// Rows of the state whose rules are looked at in each tick...
const PATROL_ROWS: usize = 200;
/// ...and how long after one look at all of it the next one begins.
const PATROL_REST: Duration = Duration::from_secs(15);

/// Our own proposals have no caller.
enum Waiter {
    Caller(Outcome),
    Read(oneshot::Sender<Result<(), ProposeError>>),
    LeaderStarted,
    Tick,
}

pub(crate) struct Driver {
    pub(crate) replica: Replica,
    pub(crate) node: Node,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) messages: mpsc::Receiver<Input>,
    pub(crate) applied: watch::Sender<u64>,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) peers: Peers,
    pub(crate) address_of: BTreeMap<u64, String>,
    pub(crate) sync_times: SyncTimes,
    /// The revision of the desired sets that probers were woken for.
    pub(crate) woken_for: u64,
    /// It was elected then, and has not said so in the log: its wall clock is not known to be a quorum's yet, or raft would not take the entry.
    pub(crate) to_start: Option<Instant>,
    /// Looks at the rules of the design in the state, all the time.
    pub(crate) patrol: Patrol,
    pub(crate) patrol_from: Instant,
}

/// How many callers wait for the outcome of a proposal, from tag `first` on.
fn under_way(waiting: &BTreeMap<u64, Waiter>, first: u64) -> usize {
    waiting.range(first..).filter(|(_, w)| matches!(w, Waiter::Caller(_))).count()
}

/// Tells whoever asked; a store that failed ends the member, as it does anywhere else.
fn belongs(outcome: Result<(), FormError>, reply: oneshot::Sender<Result<(), FormError>>) -> Result<(), Fatal> {
    match outcome {
        Err(FormError::Fatal(fatal)) => {
            let _ = reply.send(Err(FormError::Fatal(Fatal::Damaged("the store failed; start this member again".to_owned()))));
            Err(fatal)
        }
        outcome => {
            let _ = reply.send(outcome);
            Ok(())
        }
    }
}

impl Driver {
    /// Runs until `stop`, or until the store fails.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), Fatal> {
        let peers = self.peers.clone();
        self.replica.send_early(move |message| peers.send(message));
        let mut waiting: BTreeMap<u64, Waiter> = BTreeMap::new();
        let mut next_tag = 1u64;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tick_proposed = false;
        let mut current_at = Instant::now();
        let mut reported_at = Instant::now();
        let mut full = false;
        let mut handed_over = 0;
        // The last step left something to do.
        let mut more = false;
        let mut held: Held<Request> = Held::default();
        // What an earlier leadership has proposed may never be answered.
        let mut first_of_term = next_tag;
        // It is time to look whether the state waits for time to pass.
        let mut due = false;
        let mut warned = false;
        let mut slow_told: Option<Instant> = None;
        self.learn_addresses();
        loop {
            let mut batch: VecDeque<Request> = VecDeque::new();
            let mut inputs = vec![self.clock_input()];
            tokio::select! {
                // Time goes on whatever is waiting.
                biased;
                () = stop.cancelled() => {
                    self.replica.flush()?;
                    return Ok(());
                }
                _ = tick.tick() => {
                    inputs.push(Input::Tick);
                    self.look_at_rules();
                    if reported_at.elapsed() >= REPORT_EVERY {
                        reported_at = Instant::now();
                        inputs.extend(self.sync_times.p99_us().map(|p99_us| Input::Persistence { p99_us }));
                    }
                    due = true;
                }
                Some(message) = self.messages.recv() => inputs.push(message),
                request = self.requests.recv() => match request {
                    Some(request) => batch.push_back(request),
                    None => return Ok(()),
                },
                () = std::future::ready(()), if more => {}
            }
            while inputs.len() < BATCH
                && let Ok(message) = self.messages.try_recv()
            {
                inputs.push(message);
            }
            while batch.len() < BATCH {
                match self.requests.try_recv() {
                    Ok(request) => batch.push_back(request),
                    Err(_) => break,
                }
            }
            if std::mem::take(&mut due) && !tick_proposed && self.tick_due() {
                tick_proposed = true;
                waiting.insert(next_tag, Waiter::Tick);
                inputs.push(self.proposal(next_tag, &Draft::of(Node::command(Op::Tick(Tick {})))));
                next_tag += 1;
            }
            let (leads, mut queries) = (self.leadership.borrow().leading, Vec::new());
            for request in batch {
                match request {
                    Request::Propose(..) | Request::Judge(..) => held.push(request),
                    Request::Read(reply) => {
                        waiting.insert(next_tag, Waiter::Read(reply));
                        inputs.push(Input::Read { tag: next_tag });
                        next_tag += 1;
                    }
                    Request::Query(query) => queries.push(query),
                    Request::Form(cluster_id, voters, reply) => belongs(self.replica.form(&cluster_id, &voters), reply)?,
                    Request::Join(cluster_id, reply) => belongs(self.replica.join(&cluster_id), reply)?,
                    Request::Configure(command, reply) => {
                        waiting.insert(next_tag, Waiter::Caller(reply));
                        inputs.push(Input::Configure { tag: next_tag, command: self.stamped(*command) });
                        next_tag += 1;
                    }
                    Request::Transfer(to, reply) => {
                        waiting.insert(next_tag, Waiter::Caller(reply));
                        inputs.push(Input::Transfer { tag: next_tag, to });
                        next_tag += 1;
                    }
                    Request::Backup(reply) => drop(reply.send(self.replica.backup())),
                    Request::Campaign => self.replica.campaign()?,
                }
            }
            let time_is_up = !leads || inputs.iter().any(|input| matches!(input, Input::Tick));
            for request in held.take(under_way(&waiting, first_of_term), time_is_up) {
                let (draft, reply) = match request {
                    Request::Propose(draft, reply) => (Some(draft), reply),
                    Request::Judge(judgement, reply) if leads => (judgement(self.replica.state()).map(Draft::of), reply),
                    Request::Judge(_, reply) => {
                        let leader = self.replica.status().leader;
                        let _ = reply.send(self.proposed(Reply::NotLeader { leader }));
                        continue;
                    }
                    _ => continue,
                };
                if let Some(draft) = draft {
                    waiting.insert(next_tag, Waiter::Caller(reply));
                    inputs.push(self.proposal(next_tag, &draft));
                    next_tag += 1;
                }
            }
            let was_leading = self.leadership.borrow().clone();
            let began = Instant::now();
            let outputs = self.replica.step(inputs)?;
            let took = began.elapsed();
            if took > SLOW_STEP && slow_told.is_none_or(|at| at.elapsed() > TOLD_EVERY) {
                slow_told = Some(Instant::now());
                tracing::warn!(took_ms = took.as_millis() as u64, "a step took long: this host is busy, or its disk is slow; after 500 ms the others elect");
            }
            more = outputs.more;
            let ticking = tick_proposed;
            self.hand_out(outputs, &mut waiting, &mut tick_proposed);
            // What a tick left to do is not put off until time has passed.
            due = ticking && !tick_proposed && self.pass_under_way();
            more |= due;
            if self.follow_role(&was_leading, &mut waiting) {
                // What a leader proposed by itself has no answer when it leads no more.
                tick_proposed = false;
                first_of_term = next_tag;
                self.to_start = (self.replica.status().role == Role::Leader).then(Instant::now);
                warned = false;
            }
            if self.to_start.is_some() && self.replica.clocks_agree() {
                self.to_start = None;
                self.start_leading(&mut waiting, &mut next_tag)?;
            }
            if !warned && self.to_start.is_some_and(|at| at.elapsed() > CLOCKS_PATIENCE) {
                warned = true;
                tracing::error!("the wall clocks of a quorum do not agree within 1 s: nothing can be changed until they do (is NTP running on every member?)");
            }
            if self.replica.handed_over() > handed_over {
                handed_over = self.replica.handed_over();
                tracing::warn!("this member's disk is slow and another's is not: leadership is handed over");
            }
            if self.replica.disk_full() != full {
                full = !full;
                match full {
                    true => tracing::error!("the disk is full: this member takes no part until there is room"),
                    false => tracing::info!("there is room on the disk again"),
                }
            }
            if let Some(ticks) = self.replica.silent_ticks() {
                let silence = TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX));
                current_at = Instant::now().checked_sub(silence).map_or(current_at, |at| current_at.max(at));
            }
            if !queries.is_empty() {
                let status = self.replica.status();
                let conditions = self.node.shared.conditions.lock().map(|c| c.clone()).unwrap_or_default();
                let age_us = current_at.elapsed().as_micros() as u64;
                // Nobody who is asked in between waits for more than these looks.
                let fleet = self.node.shared.fleet.lock();
                let violations = self.patrol.found().count();
                let live = Live { status: &status, now_us: self.node.now_us(), age_us, conditions: &conditions, fleet: &fleet, violations };
                for query in queries {
                    query(self.replica.state(), &live);
                }
            }
            // Callers that gave up leave their senders behind; reads may have been dropped by raft.
            waiting.retain(|_, w| match w {
                Waiter::Caller(tx) => !tx.is_closed(),
                Waiter::Read(tx) => !tx.is_closed(),
                _ => true,
            });
            more |= held.due(under_way(&waiting, first_of_term));
        }
    }

    /// A piece of the state: what is broken is told when all of it was seen.
    fn look_at_rules(&mut self) {
        if self.patrol_from <= Instant::now() && self.patrol.walk(self.replica.state(), PATROL_ROWS) {
            self.patrol_from = Instant::now() + PATROL_REST;
            for violation in self.patrol.found() {
                tracing::error!("rule {} is broken, which is a bug: {}", violation.rule, violation.detail);
            }
        }
    }

    fn clock_input(&self) -> Input {
        Input::Clock { mono_us: self.node.shared.clock.mono_us(), wall_us: crate::clock::wall_us() }
    }

    fn proposal(&self, tag: u64, draft: &Draft) -> Input {
        Input::Propose { tag, command: draft.stamped(self.replica.command_version(), self.node.now_us()) }
    }

    fn stamped(&self, mut command: Command) -> Command {
        command.version = command.version.clamp(1, self.replica.command_version());
        command.time_us = self.node.now_us();
        command
    }

    /// Where the members are, as the state says. Who was removed keeps its queue: it may still have to be told.
    fn learn_addresses(&mut self) {
        for member in self.replica.state().members.iter() {
            if self.address_of.get(&member.id) != Some(&member.address) {
                self.address_of.insert(member.id, member.address.clone());
                self.peers.set_address(member.id, &member.address);
            }
        }
    }

    /// What moves checks has more to move.
    fn pass_under_way(&self) -> bool {
        !self.replica.state().passes.is_empty()
    }

    /// Something in the state waits for time to pass.
    fn tick_due(&self) -> bool {
        self.leadership.borrow().leading && next_deadline(self.replica.state()).is_some_and(|at| at <= self.node.now_us())
    }

    fn hand_out(&mut self, outputs: Outputs, waiting: &mut BTreeMap<u64, Waiter>, tick_proposed: &mut bool) {
        if outputs.applied {
            let status = self.replica.status();
            if status.role != Role::Leader {
                self.node.shared.clock.follow(self.replica.state().now());
            }
            self.learn_addresses();
            let revision = self.replica.state().meta().desired_revision;
            if revision != self.woken_for {
                self.node.shared.fleet.wake(&desired::touched_since(self.replica.state(), self.woken_for));
                self.woken_for = revision;
            }
            self.applied.send_replace(status.applied);
        }
        for message in outputs.messages {
            self.peers.send(message);
        }
        for (from, what) in outputs.nonsense {
            tracing::error!(from = format!("{from:x}"), "a member's message makes no sense and is dropped: {what}");
        }
        for (tag, reply) in outputs.replies {
            let Some(waiter) = waiting.remove(&tag) else { continue };
            match waiter {
                Waiter::Caller(tx) => drop(tx.send(self.proposed(reply))),
                Waiter::Read(tx) => drop(tx.send(self.proposed(reply).map(|_| ()))),
                Waiter::Tick => *tick_proposed = false,
                Waiter::LeaderStarted if self.replica.status().role == Role::Leader => match reply {
                    Reply::Applied { .. } => {
                        tracing::info!(term = self.replica.status().term, "leads");
                        self.leadership.send_modify(|l| l.leading = true);
                    }
                    // While leadership is on its way to another member raft takes nothing; should it come back, this one still has to begin.
                    _ => self.to_start = Some(Instant::now()),
                },
                Waiter::LeaderStarted => {}
            }
        }
    }

    fn proposed(&self, reply: Reply) -> Result<CommandResult, ProposeError> {
        match reply {
            Reply::Applied { result, .. } => Ok(result),
            Reply::ReadReady => Ok(CommandResult::default()),
            Reply::Busy => Err(Refusal::NoQuorum.into()),
            Reply::NotLeader { leader } => {
                if self.replica.status().role == Role::Unformed {
                    return Err(Refusal::NotInitialized.into());
                }
                let address = leader.and_then(|id| self.address_of.get(&id)).cloned();
                Err(Refusal::NotLeader(address).into())
            }
        }
    }

    /// A change of role, if there was one.
    fn follow_role(&mut self, before: &Leadership, waiting: &mut BTreeMap<u64, Waiter>) -> bool {
        let status = self.replica.status();
        if before.term == status.term && before.leader == status.leader {
            return false;
        }
        // What an earlier leadership proposed for itself may never be answered, and says nothing of this one.
        waiting.retain(|_, w| !matches!(w, Waiter::Tick | Waiter::LeaderStarted));
        self.leadership.send_replace(Leadership { leading: false, term: status.term, leader: status.leader });
        true
    }

    /// A new leader whose wall clock is a quorum's takes its clock, and says so in the log before it acts.
    fn start_leading(&mut self, waiting: &mut BTreeMap<u64, Waiter>, next_tag: &mut u64) -> Result<(), Fatal> {
        let status = self.replica.status();
        let mono_us = self.node.shared.clock.mono_us();
        let wall_us = self.replica.agreed_wall_us(mono_us).unwrap_or_else(crate::clock::wall_us);
        self.node.shared.clock.lead_from(self.replica.state().now(), wall_us, mono_us);
        self.node.shared.fleet.start_grace();
        let op = Op::LeaderStarted(LeaderStarted { member: status.identity.id, term: status.term });
        waiting.insert(*next_tag, Waiter::LeaderStarted);
        let input = self.proposal(*next_tag, &Draft::of(Node::command(op)));
        *next_tag += 1;
        // Should it leave something to do, the next tick does it.
        let outputs = self.replica.step([input])?;
        let mut ignored = false;
        self.hand_out(outputs, waiting, &mut ignored);
        Ok(())
    }
}
