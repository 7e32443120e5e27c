//! The engine: one task owns the proxies, the active faults and the journal. Orders come in, events go out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use probity_proto::v1::{Capability, FaultSpec, FaultState, ProxyInfo, UndoClass};
use probity_scenario::{Fault, KINDS, Lease, kind};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::journal::{Journal, Step};
use crate::proxy::{Mode, Proxy, ProxyConfig};

/// Orders that wait for the engine.
const ORDERS: usize = 256;
/// Events that wait for the prober; more wait in the engine.
const EVENTS: usize = 1_024;
/// How often active faults are looked at: did they touch traffic, has a lease ended?
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a look at the undone host may take.
const VERIFY_TIMEOUT: Duration = Duration::from_millis(500);

/// What an engine works with.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Where the journal is.
    pub journal_dir: PathBuf,
    /// Proxies to run.
    pub proxies: Vec<ProxyConfig>,
    /// Kinds that the host's owner allows: `proxy.reset`, `proxy.*`. Empty: none.
    pub allow: Vec<String>,
}

/// The engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The journal cannot be used.
    #[error("cannot open the fault journal in {}", dir.display())]
    Journal {
        /// Its directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A proxy's address is taken or not ours.
    #[error("fault proxy {name:?} cannot listen on {listen}")]
    Listen {
        /// Its name.
        name: String,
        /// The address.
        listen: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A fault to hold.
#[derive(Debug, Clone)]
pub struct FaultOrder {
    /// Unique for ever.
    pub fault_id: String,
    /// What to do.
    pub spec: FaultSpec,
    /// It ends after this, unless renewed.
    pub lease: Duration,
    /// It ends after this, renewed or not.
    pub not_after: Duration,
}

/// Something happened to a fault, just now.
#[derive(Debug, Clone, PartialEq)]
pub struct FaultEvent {
    /// Which.
    pub fault_id: String,
    /// Its new state.
    pub state: FaultState,
    /// In words.
    pub detail: String,
    /// How surely it ends.
    pub undo: UndoClass,
}

#[derive(Debug)]
enum Order {
    Start(FaultOrder),
    Renew(String, Duration),
    End(String, String),
    EndAll(String),
    Shutdown(oneshot::Sender<()>),
}

/// A handle on the engine's task.
#[derive(Debug)]
pub struct Engine {
    orders: mpsc::Sender<Order>,
    capabilities: Vec<Capability>,
    proxies: Vec<ProxyInfo>,
    task: JoinHandle<()>,
}

struct Active {
    spec: FaultSpec,
    fault: Fault,
    lease: Lease,
    seen: bool,
}

struct Worker {
    journal: Journal,
    proxies: BTreeMap<String, Proxy>,
    allow: Vec<String>,
    active: BTreeMap<String, Active>,
    events: mpsc::Sender<FaultEvent>,
    /// What leases are measured from.
    start: Instant,
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Whether a kind is allowed by `proxy.reset` or `proxy.*`.
fn allowed(allow: &[String], kind: &str) -> bool {
    allow.iter().any(|a| a == kind || a == "*" || a.strip_suffix('*').is_some_and(|prefix| kind.starts_with(prefix)))
}

impl Engine {
    /// Starts the proxies and the task. What an earlier process left open in the journal ended with it: that is reported, once looked at.
    pub async fn open(config: EngineConfig) -> Result<(Engine, mpsc::Receiver<FaultEvent>), EngineError> {
        let dir = config.journal_dir.clone();
        let (mut journal, left) = Journal::open(&dir).map_err(|source| EngineError::Journal { dir: dir.clone(), source })?;
        let mut proxies = BTreeMap::new();
        for proxy in config.proxies {
            let (name, listen) = (proxy.name.clone(), proxy.listen);
            let proxy = Proxy::start(proxy).await.map_err(|source| EngineError::Listen { name: name.clone(), listen, source })?;
            proxies.insert(name, proxy);
        }
        let infos = proxies
            .iter()
            .map(|(name, p)| ProxyInfo { name: name.clone(), listen: p.local_addr().to_string(), upstream: p.config().upstream.clone() })
            .collect();
        let capabilities = KINDS
            .iter()
            .map(|k| {
                let detail = if !allowed(&config.allow, k.name) {
                    format!("not allowed on this host (faults.allow: [{}] in its configuration allows it)", k.name)
                } else if proxies.is_empty() {
                    "this host has no fault proxy (proxies: in its configuration adds one)".to_owned()
                } else {
                    String::new()
                };
                Capability { name: format!("fault/{}", k.name), available: detail.is_empty(), detail, undo: k.undo as i32 }
            })
            .collect();
        let (events_tx, events) = mpsc::channel(EVENTS);
        for entry in &left {
            let undo = kind(&entry.kind).map_or(UndoClass::Unspecified, |k| k.undo);
            let detail = "it ended with the process that held it".to_owned();
            let _ = events_tx.try_send(FaultEvent { fault_id: entry.fault.clone(), state: FaultState::Undone, detail, undo });
        }
        journal.clear().map_err(|source| EngineError::Journal { dir, source })?;
        let (orders, inbox) = mpsc::channel(ORDERS);
        let worker = Worker { journal, proxies, allow: config.allow, active: BTreeMap::new(), events: events_tx, start: Instant::now() };
        let task = tokio::spawn(worker.run(inbox));
        Ok((Engine { orders, capabilities, proxies: infos, task }, events))
    }

    /// Starts a fault; what comes of it is an event.
    pub async fn start(&self, order: FaultOrder) {
        let _ = self.orders.send(Order::Start(order)).await;
    }

    /// Prolongs its lease to this long from now, never past its `not_after`.
    pub async fn renew(&self, fault_id: &str, lease: Duration) {
        let _ = self.orders.send(Order::Renew(fault_id.to_owned(), lease)).await;
    }

    /// Ends it; ending what has ended is fine.
    pub async fn end(&self, fault_id: &str, reason: &str) {
        let _ = self.orders.send(Order::End(fault_id.to_owned(), reason.to_owned())).await;
    }

    /// Ends all.
    pub async fn end_all(&self, reason: &str) {
        let _ = self.orders.send(Order::EndAll(reason.to_owned())).await;
    }

    /// What this host can do, and why not what it cannot.
    pub fn capabilities(&self) -> Vec<Capability> {
        self.capabilities.clone()
    }

    /// Its proxies, where they really listen.
    pub fn proxies(&self) -> Vec<ProxyInfo> {
        self.proxies.clone()
    }

    /// Ends all faults, verified, then the proxies.
    pub async fn shutdown(self) {
        let (tx, rx) = oneshot::channel();
        if self.orders.send(Order::Shutdown(tx)).await.is_ok() {
            let _ = rx.await;
        }
        let _ = self.task.await;
    }
}

impl Worker {
    async fn run(mut self, mut inbox: mpsc::Receiver<Order>) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let done = loop {
            tokio::select! {
                order = inbox.recv() => match order {
                    Some(Order::Start(order)) => self.start(order).await,
                    Some(Order::Renew(id, lease)) => {
                        let now_us = self.mono_us();
                        if let Some(active) = self.active.get_mut(&id) {
                            active.lease.renew(now_us, us(lease));
                        }
                    }
                    Some(Order::End(id, reason)) => self.end(&id, &reason).await,
                    Some(Order::EndAll(reason)) => self.end_all(&reason).await,
                    Some(Order::Shutdown(done)) => break Some(done),
                    None => break None,
                },
                _ = look.tick(), if !self.active.is_empty() => self.look().await,
            }
        };
        self.end_all("the prober stops").await;
        for proxy in self.proxies.values() {
            proxy.shutdown().await;
        }
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    fn mono_us(&self) -> u64 {
        us(self.start.elapsed())
    }

    async fn tell(&self, fault_id: &str, state: FaultState, detail: impl Into<String>, undo: UndoClass) {
        let event = FaultEvent { fault_id: fault_id.to_owned(), state, detail: detail.into(), undo };
        let _ = self.events.send(event).await;
    }

    async fn start(&mut self, order: FaultOrder) {
        let id = order.fault_id.clone();
        if self.active.contains_key(&id) {
            return;
        }
        let undo = kind(&order.spec.kind).map_or(UndoClass::Unspecified, |k| k.undo);
        if let Err(why) = self.try_start(order).await {
            self.tell(&id, FaultState::Refused, why, undo).await;
        }
    }

    async fn try_start(&mut self, order: FaultOrder) -> Result<(), String> {
        let fault = Fault::parse(&order.spec).map_err(|e| e.to_string())?;
        if !allowed(&self.allow, &order.spec.kind) {
            return Err(format!("{} is not allowed on this host", order.spec.kind));
        }
        let proxy = self.proxies.get(fault.proxy()).ok_or_else(|| format!("no fault proxy {:?} on this host", fault.proxy()))?;
        if self.active.values().any(|a| a.fault.proxy() == fault.proxy()) {
            return Err(format!("fault proxy {:?} is disturbed already", fault.proxy()));
        }
        let mode = mode(&fault);
        let id = &order.fault_id;
        self.journal.write(id, &order.spec.kind, Step::Intent).map_err(|e| format!("cannot write the journal: {e}"))?;
        proxy.set_mode(mode);
        let undo = kind(&order.spec.kind).map_or(UndoClass::Unspecified, |k| k.undo);
        let detail = format!("{} on proxy {}", order.spec.kind, fault.proxy());
        let kind = order.spec.kind.clone();
        let lease = Lease::new(self.mono_us(), us(order.lease), us(order.not_after));
        let active = Active { spec: order.spec, fault, lease, seen: false };
        self.active.insert(id.clone(), active);
        self.tell(id, FaultState::Active, detail, undo).await;
        // The intent covers a failure here: undo is the same either way.
        let _ = self.journal.write(id, &kind, Step::Applied);
        Ok(())
    }

    /// Reports first effects; ends what has outlived its lease.
    async fn look(&mut self) {
        let now_us = self.mono_us();
        let mut seen = Vec::new();
        let mut over = Vec::new();
        for (id, active) in &mut self.active {
            let touched = self.proxies.get(active.fault.proxy()).is_some_and(Proxy::touched);
            if touched && !active.seen {
                active.seen = true;
                seen.push((id.clone(), active.spec.kind.clone()));
            }
            over.extend(active.lease.over(now_us).map(|why| (id.clone(), why)));
        }
        for (id, kind_name) in seen {
            let undo = kind(&kind_name).map_or(UndoClass::Unspecified, |k| k.undo);
            self.tell(&id, FaultState::Seen, "it touched traffic", undo).await;
        }
        for (id, reason) in over {
            self.end(&id, reason).await;
        }
    }

    async fn end_all(&mut self, reason: &str) {
        let ids: Vec<String> = self.active.keys().cloned().collect();
        for id in ids {
            self.end(&id, reason).await;
        }
    }

    /// Undoes a fault, looks whether it is undone, and says so.
    async fn end(&mut self, id: &str, reason: &str) {
        let Some(active) = self.active.remove(id) else { return };
        let undo = kind(&active.spec.kind).map_or(UndoClass::Unspecified, |k| k.undo);
        let Some(proxy) = self.proxies.get(active.fault.proxy()) else { return };
        proxy.set_mode(Mode::Pass);
        let (state, detail) = match verify(proxy).await {
            Ok(what) => (FaultState::Undone, format!("{what} ({reason})")),
            Err(what) => (FaultState::Unknown, format!("{what} ({reason})")),
        };
        // Should this fail, the next start looks again.
        let _ = self.journal.write(id, &active.spec.kind, Step::Undone);
        self.tell(id, state, detail, undo).await;
    }
}

fn mode(fault: &Fault) -> Mode {
    match fault {
        Fault::Latency { delay_us, jitter_us, .. } => Mode::Latency { delay: Duration::from_micros(*delay_us), jitter: Duration::from_micros(*jitter_us) },
        Fault::Cut { .. } => Mode::Cut,
        Fault::Reset { .. } => Mode::Reset,
        Fault::Blackhole { .. } => Mode::Blackhole,
    }
}

/// How a fresh connection fares when nothing is said.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It stays open, or the other side speaks first.
    Open,
    /// It is closed or reset.
    Closed,
    /// There is none.
    None,
}

async fn fate(address: &str) -> Fate {
    let Ok(Ok(mut stream)) = tokio::time::timeout(VERIFY_TIMEOUT, TcpStream::connect(address)).await else { return Fate::None };
    let mut byte = [0u8; 1];
    match tokio::time::timeout(Duration::from_millis(50), stream.read(&mut byte)).await {
        Err(_) | Ok(Ok(1..)) => Fate::Open,
        Ok(_) => Fate::Closed,
    }
}

/// Looks whether a connection through the proxy fares like one beside it.
async fn verify(proxy: &Proxy) -> Result<String, String> {
    if proxy.mode() != Mode::Pass {
        return Err("the proxy still disturbs".to_owned());
    }
    let through = proxy.local_addr().to_string();
    let (direct, through) = tokio::join!(fate(&proxy.config().upstream), fate(&through));
    match (direct, through) {
        (Fate::Open, Fate::Open) => Ok("a fresh connection passes".to_owned()),
        (Fate::Closed, Fate::Closed) => Ok("the proxy passes; the upstream closes fresh connections by itself".to_owned()),
        (Fate::None, Fate::Closed) => Ok("the proxy passes; the upstream itself accepts no connection".to_owned()),
        (direct, through) => Err(format!("beside the proxy a connection is {direct:?}, through it {through:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    async fn engine(allow: &[&str]) -> (Engine, mpsc::Receiver<FaultEvent>, SocketAddr, tempfile::TempDir) {
        let upstream = echo().await;
        let dir = tempfile::tempdir().expect("a directory");
        let proxies = vec![ProxyConfig { name: "p".to_owned(), listen: "127.0.0.1:0".parse().expect("valid"), upstream: upstream.to_string() }];
        let allow = allow.iter().map(|s| (*s).to_owned()).collect();
        let (engine, events) = Engine::open(EngineConfig { journal_dir: dir.path().to_owned(), proxies, allow }).await.expect("opens");
        let address = engine.proxies()[0].listen.parse().expect("an address");
        (engine, events, address, dir)
    }

    fn order(kind: &str, params: &[(&str, &str)], lease: Duration) -> FaultOrder {
        let mut params: BTreeMap<String, String> = params.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        params.insert("proxy".to_owned(), "p".to_owned());
        let spec = FaultSpec { kind: kind.to_owned(), params, undo: 0 };
        FaultOrder { fault_id: format!("id-{kind}"), spec, lease, not_after: Duration::from_secs(60) }
    }

    async fn exchange(address: SocketAddr) -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"hello").await?;
        let mut buffer = vec![0; 5];
        stream.read_exact(&mut buffer).await?;
        Ok(buffer)
    }

    #[tokio::test]
    async fn a_reset_is_felt_and_undone() {
        let (engine, mut events, address, _dir) = engine(&["proxy.*"]).await;
        let mut living = TcpStream::connect(address).await.expect("connects");
        living.write_all(b"x").await.expect("writes");
        living.read_exact(&mut [0; 1]).await.expect("echoes");
        engine.start(order("proxy.reset", &[], Duration::from_secs(30))).await;
        assert_eq!(events.recv().await.expect("an event").state, FaultState::Active);
        let error = living.read_exact(&mut [0; 1]).await.expect_err("the living connection is reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert!(exchange(address).await.is_err());
        assert_eq!(events.recv().await.expect("an event").state, FaultState::Seen);
        engine.end("id-proxy.reset", "test").await;
        let undone = events.recv().await.expect("an event");
        assert_eq!((undone.state, undone.detail.as_str()), (FaultState::Undone, "a fresh connection passes (test)"));
        assert_eq!(exchange(address).await.expect("passes"), b"hello");
        engine.shutdown().await;
    }

    #[tokio::test]
    async fn a_lease_ends_by_itself() {
        let (engine, mut events, address, _dir) = engine(&["proxy.cut"]).await;
        engine.start(order("proxy.cut", &[], Duration::from_millis(100))).await;
        assert_eq!(events.recv().await.expect("an event").state, FaultState::Active);
        let undone = events.recv().await.expect("an event");
        assert_eq!(undone.state, FaultState::Undone);
        assert!(undone.detail.contains("lease"), "{}", undone.detail);
        assert_eq!(exchange(address).await.expect("passes"), b"hello");
    }

    #[tokio::test]
    async fn latency_delays_answers() {
        let (engine, mut events, address, _dir) = engine(&["*"]).await;
        engine.start(order("proxy.latency", &[("delay", "200ms")], Duration::from_secs(30))).await;
        events.recv().await.expect("an event");
        let start = Instant::now();
        assert_eq!(exchange(address).await.expect("passes, late"), b"hello");
        assert!(start.elapsed() >= Duration::from_millis(200));
    }

    #[tokio::test]
    async fn what_is_not_allowed_is_refused() {
        let (engine, mut events, address, _dir) = engine(&["proxy.latency"]).await;
        engine.start(order("proxy.reset", &[], Duration::from_secs(30))).await;
        let event = events.recv().await.expect("an event");
        assert_eq!((event.state, event.detail.as_str()), (FaultState::Refused, "proxy.reset is not allowed on this host"));
        assert_eq!(exchange(address).await.expect("passes"), b"hello");
        let reset = engine.capabilities().into_iter().find(|c| c.name == "fault/proxy.reset").expect("listed");
        assert!(!reset.available);
    }

    #[tokio::test]
    async fn what_a_dead_process_left_is_reported() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut journal, left) = Journal::open(dir.path()).expect("opens");
        assert!(left.is_empty());
        journal.write("f1", "proxy.reset", Step::Intent).expect("writes");
        journal.write("f1", "proxy.reset", Step::Applied).expect("writes");
        drop(journal);
        let config = EngineConfig { journal_dir: dir.path().to_owned(), proxies: Vec::new(), allow: Vec::new() };
        let (_engine, mut events) = Engine::open(config).await.expect("opens");
        let event = events.recv().await.expect("an event");
        assert_eq!((event.fault_id.as_str(), event.state), ("f1", FaultState::Undone));
    }
}
