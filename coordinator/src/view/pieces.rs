//! Readings that grow with the fleet, in pieces: the state is raft's thread's, and whoever looks at 100,000 checks at a stroke keeps the cluster waiting
//! for longer than an election takes. A piece takes some milliseconds; between two of them raft does whatever there is to do.
//!
//! Nothing in such a reading is older than its `asOf.index`, that of its first piece; what came in since may be in it. Each check, and each part of an
//! account, is as of one moment, so an account adds up all the same.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use probity_core::account::{self, AccountView};
use probity_core::verdict::{self, Finding};
use probity_core::{State, assign, resource_key};
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::status::{Seen, TOLD};
use super::{Asked, Query, Scope, ViewError, as_of, items, not_found};
use crate::node::{Live, Node, ProposeError};

/// How long one look may take, about: a tick of raft is 50 ms.
const PIECE: Duration = Duration::from_millis(4);
/// Where a look waits long for its turn, raft's thread is behind: fewer and longer looks then, or a reading would have no end. It adds this share of
/// what was waited for, and no more than a tick.
const SHARE: u32 = 8;
const PIECE_MAX: Duration = Duration::from_millis(40);
/// The clock is asked after so many rows.
const ROWS: usize = 16;
/// An answer may have so many bytes: a gRPC message has 16 MiB.
const ANSWER_BYTES_MAX: usize = 15 * 1024 * 1024;
/// A page that another one follows: half of that, because checks differ.
const PAGE_BYTES: usize = 8 * 1024 * 1024;

/// Readings of this sort at a time, whoever asks: the others wait for their turn.
const READINGS: usize = 4;

static ROOM: Semaphore = Semaphore::const_new(READINGS);

/// Whatever can be looked at, a piece at a time.
pub(crate) trait Look {
    /// Looks at the state where it lives.
    fn look<T: Send + 'static>(&self, look: impl FnOnce(&State, &Live<'_>) -> T + Send + 'static) -> impl Future<Output = Result<T, ProposeError>> + Send;
}

impl Look for Node {
    fn look<T: Send + 'static>(&self, look: impl FnOnce(&State, &Live<'_>) -> T + Send + 'static) -> impl Future<Output = Result<T, ProposeError>> + Send {
        self.query(look)
    }
}

/// An answer, and as of when it is.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) value: Value,
    pub(crate) index: u64,
    pub(crate) as_of_us: i64,
}

/// When a piece is over.
pub(super) struct Turn {
    until: Instant,
    rows: usize,
}

impl Turn {
    /// Of a look that was asked for then.
    fn begin(asked: Instant) -> Turn {
        let piece = (asked.elapsed() / SHARE).clamp(PIECE, PIECE_MAX);
        Turn { until: Instant::now() + piece, rows: 0 }
    }

    /// Another row was looked at: whether there is time for one more.
    pub(super) fn more(&mut self) -> bool {
        self.rows += 1;
        !self.rows.is_multiple_of(ROWS) || Instant::now() < self.until
    }
}

/// Something that is done in pieces: whether it is over.
trait Pass: Send + Sized + 'static {
    fn go_on(&mut self, state: &State, turn: &mut Turn) -> bool;

    /// What is done with a piece where nobody waits.
    fn between(&mut self) {}
}

async fn run<P: Pass>(node: &impl Look, mut pass: P) -> Result<P, ProposeError> {
    loop {
        let asked = Instant::now();
        let over;
        (pass, over) = node
            .look(move |state, _| {
                let over = pass.go_on(state, &mut Turn::begin(asked));
                (pass, over)
            })
            .await?;
        pass.between();
        if over {
            return Ok(pass);
        }
    }
}

/// Answers a path such as `/api/v1/probes?namespace=shop`, with what `scope` may see.
pub(crate) async fn answer(node: &impl Look, path: &str, scope: &Scope) -> Result<Result<Answer, ViewError>, ProposeError> {
    let asked = match super::ask(path, scope) {
        Ok(asked) => asked,
        Err(e) => return Ok(Err(e)),
    };
    let _room = ROOM.acquire().await;
    match asked {
        Asked::Status => status(node, scope).await.map(Ok),
        Asked::Probers(query) => probers(node, Arc::new(query)).await.map(Ok),
        Asked::Probes(query) => probes(node, Arc::new(query), None).await,
        Asked::Probe(query, namespace, name) => probes(node, Arc::new(query), Some((namespace, name))).await,
        Asked::Other(..) => {
            let look = move |state: &State, live: &Live<'_>| {
                let value = super::small(state, live, &asked)?;
                Ok(Answer { value, index: live.status.applied, as_of_us: state.now() })
            };
            node.look(look).await
        }
    }
}

async fn status(node: &impl Look, scope: &Scope) -> Result<Answer, ProposeError> {
    let (of, whose) = (scope.clone(), scope.clone());
    let (mut head, t) = node.look(move |state, live| (super::status::head(state, live, &of), live.now_us)).await?;
    let seen = run(node, Seen::new(whose)).await?;
    let total = total(node, t).await?;
    let value = super::status::whole(&mut head, seen, &total);
    Ok(Answer { value, index: head.index, as_of_us: head.as_of_us })
}

impl Pass for Seen {
    fn go_on(&mut self, state: &State, turn: &mut Turn) -> bool {
        for check in state.checks.after(&self.after) {
            if self.scope.sees(&check.namespace) {
                self.look_at(state, check);
            }
            if !turn.more() {
                self.after = check.check.clone();
                return false;
            }
        }
        true
    }
}

impl Seen {
    fn look_at(&mut self, state: &State, check: &CheckRecord) {
        match check.verdict() {
            Verdict::Up => self.up += 1,
            Verdict::Unknown => self.unknown += 1,
            Verdict::Down => {
                self.down += 1;
                if self.first_down.len() < TOLD {
                    self.first_down.push(check.check.clone());
                }
            }
        }
        if !assign::of_check(state, &check.check).any(|a| a.until_us == 0) {
            // The checks of a probe stand together.
            let of = format!("{}/{}", check.namespace, check.probe);
            match self.unwatched.last_mut().filter(|(last, ..)| *last == of) {
                Some((_, checks, _)) => *checks += 1,
                None => {
                    let why = if self.unwatched.len() < TOLD { items::why_nobody(state, check) } else { String::new() };
                    self.unwatched.push((of, 1, why));
                }
            }
        } else if check.verdict() != Verdict::Down {
            for finding in verdict::findings(state, &check.check) {
                if let Finding::PathBroken { zones, probers } = finding {
                    self.broken += 1;
                    if self.first_broken.len() < TOLD {
                        self.first_broken.push((check.check.clone(), zones, probers));
                    }
                }
            }
        }
    }
}

/// The account of everything, as of `t`.
pub(crate) async fn total(node: &impl Look, t: i64) -> Result<AccountView, ProposeError> {
    let total = run(node, Total { t, part: Part::Checks, after: String::new(), view: AccountView::default() }).await?;
    Ok(total.view.finish())
}

struct Total {
    t: i64,
    part: Part,
    after: String,
    view: AccountView,
}

#[derive(Clone, Copy)]
enum Part {
    Checks,
    Retired,
    Orphans,
}

impl Total {
    fn assignments(&mut self, state: &State, check: &str) {
        assign::of_check(state, check).for_each(|a| self.view.add(a, self.t));
    }
}

/// A check at a time, with its assignments: what is over goes from them to it, and would be missing or there twice else.
impl Pass for Total {
    fn go_on(&mut self, state: &State, turn: &mut Turn) -> bool {
        let after = std::mem::take(&mut self.after);
        match self.part {
            Part::Checks => {
                for check in state.checks.after(&after) {
                    check.closed.iter().for_each(|closed| self.view.add_closed(closed));
                    self.assignments(state, &check.check);
                    if !turn.more() {
                        self.after = check.check.clone();
                        return false;
                    }
                }
                self.part = Part::Retired;
            }
            Part::Retired => {
                for check in state.retired_checks.after(&after) {
                    check.closed.iter().for_each(|closed| self.view.add_closed(closed));
                    self.assignments(state, &check.check);
                    if !turn.more() {
                        self.after = check.check.clone();
                        return false;
                    }
                }
                self.part = Part::Orphans;
            }
            Part::Orphans => {
                for check in assign::checks_after(state, &after) {
                    if state.checks.get(check).is_none() && state.retired_checks.get(check).is_none() {
                        self.assignments(state, check);
                    }
                    if !turn.more() {
                        self.after = check.clone();
                        return false;
                    }
                }
                if let Some(closed) = &state.meta().closed {
                    self.view.add_closed(closed);
                }
                return true;
            }
        }
        self.go_on(state, turn)
    }
}

/// The verdicts of all checks, by namespace, probe and target.
pub(crate) async fn verdicts(node: &impl Look) -> Result<Vec<(String, String, String, Verdict)>, ProposeError> {
    run(node, Verdicts::default()).await.map(|pass| pass.all)
}

#[derive(Default)]
struct Verdicts {
    after: String,
    all: Vec<(String, String, String, Verdict)>,
}

impl Pass for Verdicts {
    fn go_on(&mut self, state: &State, turn: &mut Turn) -> bool {
        for c in state.checks.after(&self.after) {
            self.all.push((c.namespace.clone(), c.probe.clone(), c.target_key.clone(), c.verdict()));
            if !turn.more() {
                self.after = c.check.clone();
                return false;
            }
        }
        true
    }
}

/// A prober at a time, since each has as many assignments as it has.
async fn probers(node: &impl Look, query: Arc<Query>) -> Result<Answer, ProposeError> {
    let (mut items, mut after, mut first) = (Vec::new(), Some(String::new()), None);
    while let Some(from) = after {
        let (query, asked) = (query.clone(), Instant::now());
        let look = move |state: &State, live: &Live<'_>| {
            let (mut piece, mut turn) = (Vec::new(), Turn::begin(asked));
            for prober in state.probers.after(&from) {
                if query.selects(&prober.labels) {
                    piece.push(items::prober(state, live, prober));
                }
                if !turn.more() {
                    return (piece, Some(prober.name.clone()), as_of(state, live), live.status.applied, state.now());
                }
            }
            (piece, None, as_of(state, live), live.status.applied, state.now())
        };
        let (piece, next, as_of, index, as_of_us) = node.look(look).await?;
        items.extend(piece);
        first.get_or_insert((as_of, index, as_of_us));
        after = next;
    }
    let (as_of, index, as_of_us) = first.unwrap_or_default();
    Ok(Answer { value: json!({"items": items, "asOf": as_of}), index, as_of_us })
}

async fn probes(node: &impl Look, query: Arc<Query>, one: Option<(String, String)>) -> Result<Result<Answer, ViewError>, ProposeError> {
    let (asked, only) = (query.clone(), one.clone());
    let head = move |state: &State, live: &Live<'_>| {
        let keys: VecDeque<String> = match only {
            Some((namespace, name)) => [resource_key("Probe", &namespace, &name)].into(),
            None => {
                let all = state.resources.prefix("Probe/").filter(|r| asked.includes(&r.namespace) && asked.selects(&r.labels));
                all.map(|r| resource_key(&r.kind, &r.namespace, &r.name)).collect()
            }
        };
        (keys, as_of(state, live), live.status.applied, state.now(), live.now_us)
    };
    let (mut keys, as_of, index, as_of_us, t) = node.look(head).await?;
    let from = match query.from.as_deref().map(|from| from.split_once('\n')) {
        Some(Some((key, check))) => {
            keys.retain(|k| k.as_str() >= key);
            Some((key.to_owned(), check.to_owned()))
        }
        _ => None,
    };
    let pages = query.paged || from.is_some();
    let pass = Probes { keys, t, with_checks: query.checks, pages, from, current: None, ready: Vec::new(), items: Vec::new(), bytes: 0, next: None };
    let Probes { mut items, bytes, next, .. } = run(node, pass).await?;
    if !pages && bytes > ANSWER_BYTES_MAX {
        let mib = ANSWER_BYTES_MAX >> 20;
        let message = format!(
            "the answer would be larger than {mib} MiB: ask for one probe, a namespace or a selector, without the checks (checks=false), or page by page (paged=true)"
        );
        return Ok(Err(ViewError { code: "too_large", message }));
    }
    let mut value = match one {
        None => json!({"items": items}),
        Some((namespace, name)) => match items.pop() {
            Some(item) => item,
            None => return Ok(Err(not_found(format!("no probe {name:?} in namespace {namespace:?}")))),
        },
    };
    if let Some(next) = next {
        value["continue"] = next.into();
    }
    value["asOf"] = as_of;
    Ok(Ok(Answer { value, index, as_of_us }))
}

/// Probes one after the other, each check by check.
struct Probes {
    keys: VecDeque<String>,
    t: i64,
    with_checks: bool,
    /// It ends at a page's size, and says where the next one begins.
    pages: bool,
    /// Where this page begins: a probe, and the last check that was on the page before.
    from: Option<(String, String)>,
    current: Option<Current>,
    /// Looked at, and not made into items yet.
    ready: Vec<Current>,
    items: Vec<Value>,
    bytes: usize,
    next: Option<String>,
}

/// A probe that is being looked at.
struct Current {
    resource: Resource,
    probe: items::ProbeSum,
    /// The last check that was looked at.
    after: String,
    checks: Vec<Value>,
    /// The checks that were made into text to know how long it is.
    measured: usize,
    /// Its summary was on an earlier page.
    goes_on: bool,
    /// No more checks on this page: the last one that is.
    cut: Option<String>,
}

impl Probes {
    fn begin(&mut self, state: &State, key: &str) -> Option<Current> {
        let resource = state.resources.get(key)?;
        let Some(Spec::Probe(spec)) = &resource.spec else { return None };
        let probe = items::ProbeSum::begin(state, resource, spec);
        // Its specification is in the document; decoded it is as long again.
        let resource = without_spec(resource);
        let from = self.from.take_if(|(of, _)| of == key).map(|(_, check)| check).filter(|check| !check.is_empty());
        let goes_on = from.is_some();
        Some(Current { resource, probe, after: from.unwrap_or_default(), checks: Vec::new(), measured: 0, goes_on, cut: None })
    }
}

fn without_spec(r: &Resource) -> Resource {
    Resource {
        kind: r.kind.clone(),
        namespace: r.namespace.clone(),
        name: r.name.clone(),
        labels: r.labels.clone(),
        generation: r.generation,
        document_json: r.document_json.clone(),
        created_at_us: r.created_at_us,
        updated_at_us: r.updated_at_us,
        ..Resource::default()
    }
}

impl Pass for Probes {
    fn go_on(&mut self, state: &State, turn: &mut Turn) -> bool {
        loop {
            let Some(mut current) = self.current.take() else {
                if self.next.is_some() {
                    return true;
                }
                let Some(key) = self.keys.pop_front() else { return true };
                self.current = self.begin(state, &key);
                if !turn.more() {
                    return false;
                }
                continue;
            };
            let whole = format!("{}/{}", current.resource.namespace, current.resource.name);
            let prefix = format!("{whole}/");
            let single = state.checks.get(&whole).filter(|_| current.after.is_empty());
            let start = if current.after.len() > whole.len() { current.after.clone() } else { prefix.clone() };
            let rest = state.checks.after(&start).take_while(|c| c.check.starts_with(&prefix));
            for check in single.into_iter().chain(rest) {
                if !current.goes_on {
                    current.probe.add(state, check, self.t);
                }
                if self.with_checks && current.cut.is_none() {
                    current.checks.push(items::check(state, check));
                }
                current.after = check.check.clone();
                if !turn.more() {
                    self.current = Some(current);
                    return false;
                }
                // The rest of it is another page's.
                if current.goes_on && current.cut.is_some() {
                    break;
                }
            }
            if !current.goes_on {
                account::add_retired(state, &current.resource.namespace, &current.resource.name, self.t, current.probe.account());
            }
            if let Some(cut) = &current.cut {
                let key = resource_key("Probe", &current.resource.namespace, &current.resource.name);
                self.next = Some(format!("{key}\n{cut}"));
            }
            self.ready.push(current);
        }
    }

    fn between(&mut self) {
        let length = |checks: &[Value]| checks.iter().map(|c| c.to_string().len()).sum::<usize>();
        for current in self.ready.iter_mut().chain(&mut self.current) {
            self.bytes += length(&current.checks[current.measured..]);
            current.measured = current.checks.len();
        }
        for done in std::mem::take(&mut self.ready) {
            let item = done.item(self.with_checks);
            self.bytes += if self.with_checks { item["spec"].to_string().len() } else { item.to_string().len() };
            self.items.push(item);
        }
        if self.pages && self.bytes >= PAGE_BYTES {
            match &mut self.current {
                Some(current) => current.cut = current.cut.take().or_else(|| Some(current.after.clone())),
                None => self.next = self.next.take().or_else(|| self.keys.front().map(|key| format!("{key}\n"))),
            }
        } else if !self.pages && self.bytes > ANSWER_BYTES_MAX {
            // It will be refused: nothing more is gathered.
            (self.current, self.ready) = (None, Vec::new());
            self.keys.clear();
            self.items.clear();
        }
    }
}

impl Current {
    fn item(self, with_checks: bool) -> Value {
        let Current { resource, probe, checks, goes_on, .. } = self;
        if goes_on {
            let metadata = json!({"namespace": resource.namespace, "name": resource.name});
            return super::compact(json!({"apiVersion": "probity/v1", "kind": "Probe", "metadata": metadata, "status": {"checks": checks}}));
        }
        items::resource(&resource, probe.status(with_checks.then_some(checks)))
    }
}

/// A state that nobody changes, for tests.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) struct Still {
    pub(crate) state: State,
    pub(crate) status: probity_replica::Status,
    /// How long the looks took.
    pub(crate) looks: std::sync::Mutex<Vec<Duration>>,
}

#[cfg(any(test, feature = "fuzz"))]
impl Look for Still {
    fn look<T: Send + 'static>(&self, look: impl FnOnce(&State, &Live<'_>) -> T + Send + 'static) -> impl Future<Output = Result<T, ProposeError>> + Send {
        let (conditions, fleet) = (Default::default(), Default::default());
        let live = Live { status: &self.status, now_us: self.state.now(), age_us: 0, conditions: &conditions, fleet: &fleet, violations: 0 };
        let began = Instant::now();
        let seen = look(&self.state, &live);
        self.looks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(began.elapsed());
        std::future::ready(Ok(seen))
    }
}

#[cfg(any(test, feature = "fuzz"))]
impl Still {
    pub(crate) fn of(state: State) -> Still {
        let status = probity_replica::Status {
            identity: probity_replica::Identity { id: 1, cluster_id: "c".to_owned() },
            role: probity_replica::Role::Follower,
            term: 1,
            leader: None,
            commit: 1,
            applied: 1,
            hashed: 1,
            last: 1,
            voters: Vec::new(),
            voters_outgoing: Vec::new(),
            learners: Vec::new(),
            disk_full: false,
            progress: Default::default(),
        };
        Still { state, status, looks: Default::default() }
    }

    /// Nobody is waited for here.
    pub(crate) fn read(&self, path: &str, scope: &Scope) -> Result<Value, ViewError> {
        Still::done(answer(self, path, scope)).map(|answer| answer.value)
    }

    pub(crate) fn done<T>(what: impl Future<Output = Result<T, ProposeError>>) -> T {
        let mut what = std::pin::pin!(what);
        loop {
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            match what.as_mut().poll(&mut context) {
                std::task::Poll::Ready(done) => return done.unwrap_or_else(|e| unreachable!("{e}")),
                // Another test has the room.
                std::task::Poll::Pending => std::thread::yield_now(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use probity_core::apply;
    use probity_proto::v1::check_kind::Kind;
    use probity_proto::v1::command::Op;
    use probity_rpc::access::Caller;
    use prost::Message;

    use super::*;

    fn everybody() -> Scope {
        Scope::of(&Caller::local("me".to_owned()))
    }

    struct Fleet {
        state: State,
        index: u64,
        time_us: i64,
    }

    impl Fleet {
        fn apply(&mut self, op: Op) {
            self.index += 1;
            self.time_us += 1_000;
            let command = Command { version: 1, time_us: self.time_us, op: Some(op), ..Command::default() };
            let result = apply(&mut self.state, self.index, &command);
            assert!(matches!(result.result, Some(command_result::Result::Applied(_))), "{result:?}");
            self.state.take_changes();
        }

        fn put(&mut self, name: &str, targets: std::ops::Range<usize>) {
            let target = |t: usize| Target { key: format!("target-{t:06}"), address: format!("10.0.0.1:{}", t % 60_000), ..Target::default() };
            let tcp = TcpCheck { address: "$(target.address)".to_owned(), ..TcpCheck::default() };
            let spec = ProbeSpec {
                interval_us: 30_000_000,
                timeout_us: 1_000_000,
                targets: targets.map(target).collect(),
                kind: Some(CheckKind { kind: Some(Kind::Tcp(tcp)) }),
                ..ProbeSpec::default()
            };
            let put = Resource {
                kind: "Probe".to_owned(),
                namespace: "default".to_owned(),
                name: name.to_owned(),
                spec: Some(Spec::Probe(spec)),
                document_json: "{\"spec\":{}}".to_owned(),
                ..Resource::default()
            };
            let base_revision = self.state.meta().resource_revision;
            self.apply(Op::ApplyResources(ApplyResources { base_revision, put: vec![put], ..ApplyResources::default() }));
        }

        fn tick(&mut self, seconds: i64) {
            self.time_us += seconds * 1_000_000;
            self.apply(Op::Tick(Tick {}));
        }
    }

    /// `checks` of probes with `targets` each, three probers a check, and what they said last.
    fn fleet(probers: usize, checks: usize, targets: usize) -> Fleet {
        let mut fleet = Fleet { state: State::new(), index: 0, time_us: 1_780_000_000_000_000 };
        fleet.apply(Op::InitCluster(InitCluster { cluster_id: "c".to_owned(), version: 1, ..InitCluster::default() }));
        fleet.apply(Op::LeaderStarted(LeaderStarted { member: 1, term: 1 }));
        for n in 0..probers {
            let hello = ProberHello { name: format!("p{n:04}"), labels: [("zone".to_owned(), format!("z{}", n % 10))].into(), ..ProberHello::default() };
            fleet.apply(Op::FleetChange(FleetChange { joined: vec![ProberJoined { hello: Some(hello) }], ..FleetChange::default() }));
        }
        for n in 0..checks.div_ceil(targets) {
            fleet.put(&format!("probe-{n:03}"), 0..targets.min(checks - n * targets));
        }
        fleet.tick(100);
        // What a change moves is moved in pieces.
        while probity_core::next_deadline(&fleet.state).is_some_and(|at| at <= fleet.state.now()) {
            fleet.tick(0);
        }
        let voters: Vec<VoterRecord> = fleet.state.assignments.iter().map(|a| said(&a.check, &a.prober)).collect();
        for voter in voters {
            fleet.state.voters.put(voter);
        }
        fleet
    }

    fn said(check: &str, prober: &str) -> VoterRecord {
        let phase = |name: &str| Phase { name: name.to_owned(), start_us: 100, duration_us: 900 };
        let detail = |n: u64| RunDetail {
            n,
            started_at_us: 1_780_000_000_000_000,
            duration_us: 1_000,
            reason: Reason::Good as i32,
            phases: vec![phase("resolve"), phase("connect")],
            trace_id: "0123456789abcdef0123456789abcdef".to_owned(),
            peer: "10.0.0.1:80".to_owned(),
            ..RunDetail::default()
        };
        VoterRecord {
            check: check.to_owned(),
            prober: prober.to_owned(),
            voice: Verdict::Up as i32,
            last_reason: Reason::Good as i32,
            last_at_us: 1_780_000_000_000_000,
            last_duration_us: 1_000,
            recent: vec![OutcomeRun { count: 60, reason: Reason::Good as i32, ..OutcomeRun::default() }],
            details: (0..4).map(|n| detail(n).encode_to_vec().into()).collect(),
            ..VoterRecord::default()
        }
    }

    #[test]
    fn what_is_put_together_is_the_whole() {
        let mut fleet = fleet(5, 300, 100);
        // Targets go, a probe goes, and what was due of them is still counted.
        fleet.put("probe-001", 0..50);
        let delete = vec![ResourceKey { kind: "Probe".to_owned(), namespace: "default".to_owned(), name: "probe-002".to_owned() }];
        let base_revision = fleet.state.meta().resource_revision;
        fleet.apply(Op::ApplyResources(ApplyResources { base_revision, delete, ..ApplyResources::default() }));
        let still = Still::of(fleet.state);
        let now = still.state.now();
        let whole = account::total(&still.state, now);
        assert!(whole.planned > 0 && whole.pending > 0 && whole.unexplained == 0, "{whole:?}");
        assert_eq!(Still::done(total(&still, now)), whole);
        let status = still.read("/api/v1/status", &everybody()).expect("a status");
        let counted: u64 = ["up", "down", "unknown"].iter().filter_map(|verdict| status["checks"][verdict].as_u64()).sum();
        assert_eq!((counted, status["runs"]["planned"].as_u64()), (150, Some(whole.planned)), "{status}");
        for name in ["probe-000", "probe-001"] {
            let path = format!("/api/v1/probes/default/{name}");
            let one = still.read(&path, &everybody()).expect("a probe");
            let account = account::of_probe(&still.state, "default", name, now);
            assert_eq!(one["status"]["runs"], super::super::account(&account), "{name}");
            let checks = if name == "probe-000" { 100 } else { 50 };
            assert_eq!(one["status"]["checks"].as_array().map(Vec::len), Some(checks));
            let bare = still.read(&format!("{path}?checks=false"), &everybody()).expect("a probe");
            assert!(bare["status"]["checks"].is_null() && bare["status"]["checkCount"] == checks && bare["status"]["proberCount"] == 3 * checks);
        }
        let verdicts = Still::done(verdicts(&still));
        assert_eq!(verdicts.len(), 150);
    }

    #[test]
    fn pages_are_the_whole_and_more_than_fits_is_refused() {
        let still = Still::of(fleet(3, 5_000, 2_500).state);
        let refused = still.read("/api/v1/probes", &everybody()).expect_err("more than 15 MiB");
        assert!(refused.code == "too_large" && refused.message.contains("paged=true"), "{refused:?}");
        let (mut path, mut pages, mut seen) = ("/api/v1/probes?paged=true".to_owned(), 0, Vec::new());
        loop {
            let page = still.read(&path, &everybody()).expect("a page");
            assert!(page.to_string().len() < 16 * 1024 * 1024);
            pages += 1;
            for item in page["items"].as_array().expect("items") {
                let of = item["metadata"]["name"].as_str().expect("a name");
                seen.extend(item["status"]["checks"].as_array().into_iter().flatten().map(|c| c["check"].as_str().expect("a name").to_owned()));
                assert!(item["status"]["runs"].is_object() || pages > 1, "the summary of {of} is where it begins");
            }
            let Some(next) = page["continue"].as_str() else { break };
            path = format!("/api/v1/probes?from={}", next.replace('\n', "%0A"));
        }
        assert!(pages >= 2, "{pages}");
        let all: Vec<String> = still.state.checks.iter().map(|c| c.check.clone()).collect();
        assert_eq!(seen, all, "each check once, in order");
    }

    /// Not a test of anything: `cargo test --release -p probity-coordinator scale -- --ignored --nocapture`.
    #[test]
    #[ignore = "prints how long the state is held by readings of 100,000 checks"]
    fn scale() {
        let still = Still::of(fleet(1_000, 100_000, 1_000).state);
        let row = |what: &str, work: &dyn Fn() -> usize| {
            still.looks.lock().expect("not poisoned").clear();
            let bytes = work();
            let looks = still.looks.lock().expect("not poisoned").clone();
            let (sum, most) = (looks.iter().sum::<Duration>(), looks.iter().max().copied().unwrap_or_default());
            println!(
                "{what:<44} {:>6} looks, {:>8.1} ms in all, longest {:>7.1} ms, {bytes} bytes",
                looks.len(),
                sum.as_secs_f64() * 1e3,
                most.as_secs_f64() * 1e3
            );
        };
        let read = |path: &str| still.read(path, &everybody()).map_or(0, |value| value.to_string().len());
        row("get probes (checks=false)", &|| read("/api/v1/probes?checks=false"));
        row("get probes -o json, one page", &|| read("/api/v1/probes?paged=true"));
        row("get probes -o json, all pages", &|| {
            let (mut path, mut bytes) = ("/api/v1/probes?paged=true".to_owned(), 0);
            loop {
                let page = still.read(&path, &everybody()).expect("a page");
                bytes += page.to_string().len();
                let Some(next) = page["continue"].as_str() else { return bytes };
                path = format!("/api/v1/probes?from={}", next.replace('\n', "%0A"));
            }
        });
        row("status", &|| read("/api/v1/status"));
        row("metrics: the account and the verdicts", &|| {
            Still::done(total(&still, still.state.now()));
            Still::done(verdicts(&still)).len()
        });
        row("get probers", &|| read("/api/v1/probers"));
        row("describe one probe", &|| read("/api/v1/probes/default/probe-007"));
        // As it was: at a stroke.
        let stroke = |what: &str, work: &dyn Fn() -> usize| {
            let began = Instant::now();
            let n = work();
            println!("{what:<44} at a stroke {:>8.1} ms ({n})", began.elapsed().as_secs_f64() * 1e3);
        };
        stroke("every check as JSON", &|| still.state.checks.iter().map(|c| items::check(&still.state, c)).collect::<Vec<_>>().len());
        stroke("the account of all", &|| account::total(&still.state, still.state.now()).planned as usize);
        stroke("findings of all", &|| still.state.checks.iter().map(|c| verdict::findings(&still.state, &c.check).len()).sum());
    }
}
