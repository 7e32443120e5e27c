//! Operators: they change resources, read them, run game days, halt. Each has one thing under way, tries it again under the same
//! request id, and remembers what it saw. Their history is what linearizability is judged by.

use std::collections::VecDeque;

use probity_core::{State, resource_key};
use probity_proto::v1::command::Op;
use probity_proto::v1::receiver_spec::Receiver;
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;
use probity_replica::Reply;

use crate::checks::history::{Entry, Kind};
use crate::member::{Request, Waiter, command};
use crate::net::Host;
use crate::plan::Fault;
use crate::world::{Event, Phase, World};

/// A concurrent change of resources is tried again this often, by the coordinator.
const CONFLICT_TRIES: u32 = 5;
/// Attempts of one operation, until its outcome is called unknown.
const ATTEMPTS: u32 = 12;
/// A coordinator that cannot be connected to is given up after this.
const CONNECT_TIMEOUT_US: u64 = 2_000_000;
/// One that vanished without a word is noticed after this.
const PEER_SILENT_US: u64 = 3_000_000;
/// Keys that are written and read.
const KEYS: u64 = 3;

/// What an operator asks for.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    Init(InitCluster),
    Put(Vec<Resource>),
    Delete(ResourceKey),
    Read(String),
    StartDay(GameDayPlan),
    AbortDay(String),
    Halt,
    Lift,
    RemoveProber(String),
    /// The set of targets of that revision, which is held.
    AcceptTargets(u64),
}

/// A call to a coordinator.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    caller: Caller,
    ask: Ask,
}

/// Whom an answer is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    client: usize,
    op: u64,
    /// The coordinator that handed the request on, in that life of it.
    via: Option<(usize, u64)>,
}

/// What comes back.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Done {
        index: u64,
        name: String,
    },
    /// Apply, or the coordinator before it, said no: nothing was changed.
    Refused,
    /// Nothing was proposed.
    NotLeader(Option<usize>),
    Unknown,
    Read(Option<String>),
}

#[derive(Debug)]
struct Current {
    op: u64,
    ask: Ask,
    attempt: u32,
    /// An earlier attempt may still take effect.
    maybe: bool,
    entry: Option<usize>,
}

/// An operator.
#[derive(Debug, Default)]
pub(crate) struct Client {
    pub(crate) script: VecDeque<Ask>,
    current: Option<Current>,
    next_op: u64,
    target: usize,
    days: Vec<String>,
    /// Something succeeded since everything was healed.
    pub(crate) served: bool,
}

/// The value of a key in a state.
pub(crate) fn value_of(state: &State, key: &str) -> Option<String> {
    match &state.resources.get(&resource_key("Receiver", "default", key))?.spec {
        Some(Spec::Receiver(ReceiverSpec { receiver: Some(Receiver::Webhook(w)) })) => Some(w.url.clone()),
        _ => None,
    }
}

/// A resource that holds a value.
pub(crate) fn holder(key: &str, value: &str) -> Resource {
    let webhook = WebhookReceiver { url: value.to_owned(), ..WebhookReceiver::default() };
    Resource {
        kind: "Receiver".to_owned(),
        namespace: "default".to_owned(),
        name: key.to_owned(),
        document_json: value.to_owned(),
        spec: Some(Spec::Receiver(ReceiverSpec { receiver: Some(Receiver::Webhook(webhook)) })),
        ..Resource::default()
    }
}

fn request_id(client: usize, op: u64) -> String {
    format!("client-{client}-{op}")
}

impl World {
    pub(crate) fn client_turn(&mut self, c: usize) {
        if self.clients[c].current.is_some() {
            return;
        }
        let ask = self.clients[c].script.pop_front().unwrap_or_else(|| self.think(c));
        let client = &mut self.clients[c];
        client.next_op += 1;
        let op = client.next_op;
        let kind = match &ask {
            Ask::Read(key) => Some((key.clone(), Kind::Read(None))),
            Ask::Put(resources) => {
                resources.first().filter(|r| r.name.starts_with("key")).map(|r| (r.name.clone(), Kind::Write(Some(r.document_json.clone()))))
            }
            Ask::Delete(key) if key.name.starts_with("key") => Some((key.name.clone(), Kind::Write(None))),
            _ => None,
        };
        let entry = kind.map(|(key, kind)| self.checks.history.begin(Entry { key, kind, from: self.now, to: None }));
        client.current = Some(Current { op, ask, attempt: 0, maybe: false, entry });
        self.attempt(c);
    }

    /// A prober that the leader shows as silent.
    fn silent_prober(&self) -> Option<String> {
        let node = self.members[self.leader()?].node.as_ref()?;
        node.replica.state().probers.iter().find(|p| !p.alive).map(|p| p.name.clone())
    }

    fn think(&mut self, c: usize) -> Ask {
        if self.plan.has(Fault::ProberRemoved)
            && self.phase == Phase::Chaos
            && let Some(name) = self.silent_prober()
            && self.rng.clients.percent(20)
        {
            return Ask::RemoveProber(name);
        }
        if let Some(revision) = self.held_targets()
            && self.rng.clients.percent(20)
        {
            return Ask::AcceptTargets(revision);
        }
        let inventory = self.plan.has(Fault::Inventory);
        let rng = &mut self.rng.clients;
        let key = format!("key{}", rng.below(KEYS));
        let days = self.phase == Phase::Chaos;
        match rng.below(100) {
            0..35 => Ask::Read(key),
            70..73 if days && inventory => Ask::Put(vec![crate::setup::found(rng)]),
            70..80 if days => Ask::Put(vec![crate::setup::probe(rng)]),
            80..83 if days => Ask::Delete(ResourceKey { kind: "Probe".to_owned(), namespace: "default".to_owned(), name: format!("p{}", rng.below(3)) }),
            83..93 if days => Ask::StartDay(crate::setup::game_day(rng, c, self.plan.probers)),
            93..95 if days => self.clients[c].days.pop().map_or(Ask::Read(key), Ask::AbortDay),
            95..97 if days => Ask::Halt,
            97..100 if days => Ask::Lift,
            35..40 => Ask::Delete(ResourceKey { kind: "Receiver".to_owned(), namespace: "default".to_owned(), name: key }),
            _ => Ask::Put(vec![holder(&key, &format!("v{c}-{}", self.clients[c].next_op))]),
        }
    }

    fn attempt(&mut self, c: usize) {
        let (members, now) = (self.plan.hosts(), self.now);
        let client = &mut self.clients[c];
        let Some(current) = &mut client.current else { return };
        current.attempt += 1;
        if current.attempt > ATTEMPTS {
            // Nothing can begin before the group is initialised: that is tried for ever.
            let unknown = current.maybe || matches!(current.ask, Ask::Init(_));
            return self.finish(c, if unknown { None } else { Some(Answer::Refused) });
        }
        let (op, attempt) = (current.op, current.attempt);
        // Whoever stands between may send a call to any coordinator, so a read may come to one that everybody else has left.
        let anybody = self.rng.clients.percent(if matches!(current.ask, Ask::Read(_)) { 50 } else { 10 });
        let m = if anybody { self.rng.clients.below(members as u64) as usize } else { client.target % members };
        let call = Call { caller: Caller { client: c, op, via: None }, ask: current.ask.clone() };
        let patience = if matches!(call.ask, Ask::Read(_)) { 1_000_000 } else { 6_000_000 };
        // One connection: a call arrives once or not at all.
        if let Some(delay) = self.net.send(Host::Client(c), Host::Member(m), &mut self.counts).first() {
            self.at(now + delay, Event::Call { m, call });
        }
        self.after(patience, Event::ClientTimeout { c, op, attempt });
    }

    pub(crate) fn client_retry(&mut self, c: usize, op: u64, attempt: u32) {
        if self.clients[c].current.as_ref().is_some_and(|q| q.op == op && q.attempt == attempt) {
            self.attempt(c);
        }
    }

    pub(crate) fn client_timeout(&mut self, c: usize, op: u64, attempt: u32) {
        let client = &mut self.clients[c];
        let Some(current) = client.current.as_mut().filter(|q| q.op == op && q.attempt == attempt) else { return };
        current.maybe = true;
        client.target += 1;
        self.attempt(c);
    }

    pub(crate) fn client_answer(&mut self, c: usize, op: u64, answer: Answer) {
        let client = &mut self.clients[c];
        let Some(current) = client.current.as_mut().filter(|q| q.op == op) else { return };
        match answer {
            Answer::NotLeader(hint) => {
                client.target = hint.unwrap_or(client.target + 1);
                let (attempt, wait) = (current.attempt, self.rng.clients.between(30_000, 200_000));
                self.after(wait, Event::ClientRetry { c, op, attempt });
            }
            Answer::Unknown => {
                current.maybe = true;
                client.target += 1;
                self.attempt(c);
            }
            Answer::Refused if current.maybe && !matches!(current.ask, Ask::Init(_)) => self.finish(c, None),
            answer => self.finish(c, Some(answer)),
        }
    }

    /// The end of an operation; without an answer its outcome is unknown.
    fn finish(&mut self, c: usize, answer: Option<Answer>) {
        let Some(current) = self.clients[c].current.take() else { return };
        let again = match current.ask {
            Ask::Init(_) => answer.is_none(),
            Ask::Put(_) => current.ask.is_base() && !matches!(answer, Some(Answer::Done { .. })),
            _ => false,
        };
        match &answer {
            Some(Answer::Done { index, name }) => {
                self.counts.add("change acknowledged");
                self.counts.add_n("silent prober removed", u64::from(matches!(current.ask, Ask::RemoveProber(_))));
                self.counts.add_n("held targets accepted", u64::from(matches!(current.ask, Ask::AcceptTargets(_))));
                self.clients[c].served = true;
                self.checks.change_acked(*index, request_id(c, current.op));
                if !name.is_empty() {
                    self.clients[c].days.push(name.clone());
                }
            }
            Some(Answer::Read(_)) => {
                self.counts.add("read answered");
                self.clients[c].served = true;
            }
            Some(_) => self.counts.add("change refused"),
            None => self.counts.add("outcome unknown"),
        }
        if let Some(entry) = current.entry {
            match answer {
                Some(Answer::Read(value)) => self.checks.history.read(entry, value, self.now),
                Some(Answer::Done { .. }) => self.checks.history.written(entry, self.now),
                Some(_) => self.checks.history.nothing(entry),
                None => {}
            }
        }
        if again {
            self.clients[c].script.push_front(current.ask);
        }
        let wait = self.rng.clients.skewed(5_000, 800_000);
        self.after(wait, Event::ClientTurn { c });
    }

    /// Answers whoever asked, by the way that the request came.
    pub(crate) fn answer(&mut self, m: usize, caller: Caller, answer: Answer) {
        let Caller { client: c, op, via } = caller;
        if let Some((by, life)) = via {
            let delay = self.net.stream(Host::Member(m), Host::Member(by), &mut self.counts);
            let (wait, answer) = delay.map_or((PEER_SILENT_US, Answer::Unknown), |delay| (delay, answer));
            self.counts.add_n("answer lost on its way to who handed on", u64::from(delay.is_none()));
            return self.after(wait, Event::HandedBack { m: by, life, caller: Caller { via: None, ..caller }, answer });
        }
        if let Some(delay) = self.net.send(Host::Member(m), Host::Client(c), &mut self.counts).first() {
            self.after(*delay, Event::Answer { c, op, answer });
        }
    }

    /// What came of a request that was handed on.
    pub(crate) fn handed_back(&mut self, m: usize, life: u64, caller: Caller, answer: Answer) {
        if self.members[m].life == life {
            self.answer(m, caller, answer);
        }
    }

    /// A coordinator is called.
    pub(crate) fn member_call(&mut self, m: usize, call: Call) {
        let Call { caller, ask } = call;
        let Some(node) = &self.members[m].node else {
            // Its host refuses the connection.
            return if caller.via.is_some() {
                self.answer(m, caller, Answer::Unknown)
            };
        };
        if let Ask::Read(key) = ask {
            return self.request(m, Request::Read(Waiter::Read { caller, key }));
        }
        // Whoever forms the group may not lead it yet.
        if !node.leading && !matches!(ask, Ask::Init(_)) {
            return match self.hint(m).filter(|leader| *leader != m) {
                Some(leader) if caller.via.is_none() => self.hand_on(m, leader, caller, ask),
                // One hop only.
                hint => {
                    self.counts.add_n("request handed on to one that does not lead", u64::from(caller.via.is_some()));
                    self.answer(m, caller, Answer::NotLeader(hint));
                }
            };
        }
        self.propose(m, caller, ask, 0);
    }

    /// A follower hands a request on to the leader that it knows (`coordinator/src/forward.rs`).
    fn hand_on(&mut self, m: usize, leader: usize, caller: Caller, ask: Ask) {
        let life = self.members[m].life;
        match self.net.stream(Host::Member(m), Host::Member(leader), &mut self.counts) {
            Some(delay) => {
                self.counts.add("request handed on to the leader");
                let caller = Caller { via: Some((m, life)), ..caller };
                self.after(delay, Event::Call { m: leader, call: Call { caller, ask } });
            }
            None => self.after(CONNECT_TIMEOUT_US, Event::HandedBack { m, life, caller, answer: Answer::Unknown }),
        }
    }

    fn propose(&mut self, m: usize, caller: Caller, ask: Ask, tries: u32) {
        let Caller { client, op, .. } = caller;
        let Some(node) = &self.members[m].node else { return };
        let state = node.replica.state();
        let base_revision = state.meta().resource_revision;
        let wanted = match &ask {
            Ask::Init(init) => Op::InitCluster(init.clone()),
            Ask::Put(put) => Op::ApplyResources(ApplyResources { base_revision, put: put.clone(), ..ApplyResources::default() }),
            Ask::Delete(key) => {
                if state.resources.get(&resource_key(&key.kind, &key.namespace, &key.name)).is_none() {
                    return self.answer(m, caller, Answer::Refused);
                }
                Op::ApplyResources(ApplyResources { base_revision, delete: vec![key.clone()], ..ApplyResources::default() })
            }
            Ask::StartDay(plan) => Op::StartGameDay(StartGameDay { plan: Some(plan.clone()), trace_id: String::new() }),
            Ask::AbortDay(name) => Op::AbortGameDay(AbortGameDay { namespace: "default".to_owned(), name: name.clone(), reason: "asked".to_owned() }),
            Ask::Halt => Op::SetHalt(SetHalt { reason: "asked".to_owned() }),
            Ask::Lift => Op::LiftHalt(LiftHalt {}),
            Ask::RemoveProber(name) => Op::RemoveProber(RemoveProber { name: name.clone() }),
            Ask::AcceptTargets(revision) => {
                Op::AcceptTargets(AcceptTargets { namespace: "default".to_owned(), probe: crate::inventory::PROBE.to_owned(), revision: *revision })
            }
            Ask::Read(_) => return,
        };
        // Some want what only a newer command set has.
        let version = if self.plan.has(Fault::Upgrade) && ask.changes_resources() && !ask.is_base() && op.is_multiple_of(4) { 2 } else { 1 };
        let command = Command { version, request_id: request_id(client, op), actor: format!("client-{client}"), ..*command(wanted) };
        self.request(m, Request::Propose(Box::new(command), Waiter::Call { caller, ask: Box::new(ask), tries }));
    }

    pub(crate) fn call_reply(&mut self, m: usize, caller: Caller, ask: Ask, tries: u32, reply: Option<Reply>) {
        let answer = match reply {
            Some(Reply::Applied { index, result }) => match result.result {
                Some(command_result::Result::Applied(applied)) => Answer::Done { index, name: applied.name },
                Some(command_result::Result::Refused(r)) if r.code() == RefusalCode::Conflict && tries < CONFLICT_TRIES && ask.changes_resources() => {
                    self.counts.add("change tried again after a conflict");
                    return self.propose(m, caller, ask, tries + 1);
                }
                _ => Answer::Refused,
            },
            Some(Reply::NotLeader { leader }) => Answer::NotLeader(leader.and_then(|id| self.member_of(id))),
            Some(Reply::Busy) => Answer::NotLeader(None),
            _ => Answer::Unknown,
        };
        self.answer(m, caller, answer);
    }
}

impl Ask {
    fn changes_resources(&self) -> bool {
        matches!(self, Ask::Put(_) | Ask::Delete(_))
    }

    /// What the run needs before anything else.
    fn is_base(&self) -> bool {
        matches!(self, Ask::Put(resources) if resources.iter().any(|r| r.name == "steady"))
    }
}
