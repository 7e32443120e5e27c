//! ICMP echo (ping), IPv4 and IPv6, on sockets of our own: see [`engine`] for why.

mod engine;
mod packet;
mod path;
mod socket;
mod stats;
mod transport;

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use probity_proto::v1::{IcmpCheck, NetOptions, Reason, TraceOptions};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Attempt, Failure, ProbeContext, net};
use engine::{Engine, Session};
pub use path::Hop;
use socket::{IcmpSocket, Sending};
use stats::Stats;

/// Lets everybody ping without being root.
const MEND: &str = "allow ping: sudo sysctl net.ipv4.ping_group_range=\"0 2147483647\"";
/// A run ends that much before its time-out, so that the reason is ours to tell.
const SPARE: Duration = Duration::from_millis(10);

/// A run's report waits no longer for the path that belongs to it.
const PATH_TIME_MAX: Duration = Duration::from_secs(3);

/// The sockets that all runs share, opened when first needed. Each thread has its own while there are no more threads than processors: the kernel
/// lets one sender at a time into a raw socket, and who waits there sleeps.
#[derive(Debug)]
pub(crate) struct Sockets {
    of_threads: Vec<Engines>,
}

/// By family, and whether fragmenting is forbidden.
type Engines = [OnceLock<Option<Arc<Engine>>>; 4];

impl Default for Sockets {
    fn default() -> Sockets {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Sockets { of_threads: (0..threads).map(|_| Engines::default()).collect() }
    }
}

/// Threads that have pinged so far.
static THREADS: AtomicUsize = AtomicUsize::new(0);
thread_local! {
    /// This one's number.
    static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed);
}

impl Sockets {
    /// How to get the right that is missing; empty when it is there.
    pub(crate) fn hint() -> String {
        if IcmpSocket::open(false, false).is_ok() { String::new() } else { MEND.to_owned() }
    }

    fn get(&self, v6: bool, dont_fragment: bool) -> Option<&Arc<Engine>> {
        let of_thread = &self.of_threads[THREAD.with(|number| number % self.of_threads.len())];
        let slot = &of_thread[usize::from(v6) + 2 * usize::from(dont_fragment)];
        slot.get_or_init(|| Engine::start(v6, dont_fragment).map_err(|e| tracing::debug!(v6, "no ICMP socket: {e}")).ok().map(Arc::new)).as_ref()
    }
}

pub(crate) async fn run(attempt: &mut Attempt<'_>, check: &IcmpCheck) -> Result<(), Failure> {
    let ip = attempt.one_address(&check.host).await?;
    attempt.peer = ip.to_string();
    if let Some(options) = check.trace.as_ref().filter(|t| t.alone) {
        return alone(attempt, check, options, ip).await;
    }
    let Some(engine) = attempt.context.icmp.get(ip.is_ipv6(), check.dont_fragment) else { return Err(Failure::new(Reason::NoPermission, MEND)) };
    attempt.fact("network.type", if ip.is_ipv4() { "ipv4" } else { "ipv6" });
    let sending = sending(attempt.net, check, ip)?;
    attempt.phases.next("rtt");
    let mut session = engine.session(check.count.max(1) as usize);
    let mut stats = Stats::default();
    let mut exchanged = exchange(&mut session, &mut stats, check, ip, &sending, attempt.deadline.checked_sub(SPARE).unwrap_or(attempt.deadline)).await;
    if exchanged.is_ok() && !stats.settled() && session.behind().await {
        exchanged = Err(Failure::new(Reason::Overloaded, format!("{ip}: this prober could not read replies in time")));
    }
    while let Ok(event) = session.inbox.try_recv() {
        stats.hear(&event);
    }
    for (name, value) in stats.facts() {
        attempt.fact(name, value);
    }
    if let Some(mean) = stats.mean() {
        // What counts of an echo is its round trip, not the time until this process was told.
        attempt.phases.measured(mean);
    }
    exchanged?;
    stats.judge(check, ip)
}

/// A trace that is the run itself.
async fn alone(attempt: &mut Attempt<'_>, check: &IcmpCheck, options: &TraceOptions, ip: IpAddr) -> Result<(), Failure> {
    let sending = sending(attempt.net, check, ip)?;
    attempt.phases.next("path");
    let until = attempt.deadline.checked_sub(SPARE).unwrap_or(attempt.deadline);
    let engine = attempt.context.icmp.get(ip.is_ipv6(), false).map(AsRef::as_ref);
    attempt.path = path::trace(engine, attempt.net, ip, &sending, options, until).await?;
    match attempt.path.last() {
        Some(hop) if hop.target && hop.said.is_empty() => Ok(()),
        Some(hop) if !hop.said.is_empty() => {
            let from = hop.hosts.first().map(ToString::to_string).unwrap_or_default();
            Err(Failure::new(Reason::IcmpUnreachable, format!("{from} says: {}", hop.said)))
        }
        _ => Err(Failure::new(Reason::IcmpNoReply, format!("{ip} is not reached"))),
    }
}

/// The way to a target of which a run has just turned bad.
pub(crate) async fn path_of_bad(context: &ProbeContext, net: &NetOptions, check: &IcmpCheck, peer: &str) -> Vec<Hop> {
    let (Some(options), Ok(ip)) = (&check.trace, peer.parse::<IpAddr>()) else { return Vec::new() };
    let Ok(sending) = sending(net, check, ip) else { return Vec::new() };
    let engine = context.icmp.get(ip.is_ipv6(), false).map(AsRef::as_ref);
    path::trace(engine, net, ip, &sending, options, Instant::now() + PATH_TIME_MAX).await.unwrap_or_default()
}

/// A path in one line.
pub(crate) fn path_text(path: &[Hop]) -> String {
    path::text(path)
}

fn sending(net: &NetOptions, check: &IcmpCheck, ip: IpAddr) -> Result<Sending, Failure> {
    let source: Option<IpAddr> = net.source_address.parse().ok();
    if let Some(source) = source.filter(|s| s.is_ipv4() != ip.is_ipv4()) {
        return Err(Failure::new(Reason::ProberError, format!("{ip} cannot be reached from {source}")));
    }
    let interface = match net.source_interface.as_str() {
        "" => 0,
        name => nix::net::if_::if_nametoindex(name).map_err(|e| Failure::new(Reason::ProberError, format!("interface {name:?}: {e}")))?,
    };
    Ok(Sending { ttl: check.ttl.clamp(1, 255) as u8, tos: check.tos as u8, source, interface })
}

/// Sends on time, whatever was answered meanwhile; then waits for what is missing.
async fn exchange(session: &mut Session, stats: &mut Stats, check: &IcmpCheck, ip: IpAddr, sending: &Sending, until: Instant) -> Result<(), Failure> {
    let interval = Duration::from_micros(check.packet_interval_us);
    let start = Instant::now();
    for i in 0..check.count.max(1) {
        let at = start + interval * i;
        if i > 0 {
            hear(session, stats, check, at.min(until), |_| false).await?;
            sleep_until(at.min(until)).await;
        }
        if Instant::now() >= until {
            return Err(Failure::new(Reason::Overloaded, format!("{ip}: this prober could send only {i} of {} echo requests in time", check.count)));
        }
        stats.sent();
        session.send(ip, check.payload_bytes as usize, sending).await.map_err(|e| send_failure(&e, ip, sending))?;
    }
    hear(session, stats, check, until, Stats::settled).await?;
    if check.no_duplicates && stats.received() > 0 {
        // A duplicate of the last reply comes after it.
        hear(session, stats, check, (Instant::now() + interval).min(until), |_| false).await?;
    }
    Ok(())
}

/// Takes events until then, or until it is done.
async fn hear(session: &mut Session, stats: &mut Stats, check: &IcmpCheck, until: Instant, done: impl Fn(&Stats) -> bool) -> Result<(), Failure> {
    while !done(stats) {
        let Ok(Some(event)) = timeout_at(until, session.inbox.recv()).await else { return Ok(()) };
        stats.hear(&event);
        if let Some(failure) = stats.hopeless(check) {
            return Err(failure);
        }
    }
    Ok(())
}

fn send_failure(error: &std::io::Error, ip: IpAddr, sending: &Sending) -> Failure {
    // EMSGSIZE: the first link is too narrow, so no router needs to say it.
    let reason = match (net::io_reason(error, Reason::IcmpUnreachable), error.raw_os_error()) {
        (_, Some(90)) => Reason::IcmpTooBig,
        // EINVAL: the source is not of this host.
        (_, Some(22)) if sending.source.is_some() => Reason::ProberError,
        (Reason::ConnectUnreachable, _) => Reason::IcmpUnreachable,
        (reason, _) => reason,
    };
    Failure::new(reason, format!("{ip}: {error}"))
}

/// For tests/fuzz: with and without an IP header, of both families.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(bytes: &[u8]) {
    for message in [Some(bytes), packet::inside_v4(bytes).map(|(inner, _)| inner)].into_iter().flatten() {
        let _ = (packet::parse_v4(message, true), packet::parse_v4(message, false), packet::parse_v6(message), packet::token_at_end(message));
    }
    let _ = packet::checksum(bytes);
}
