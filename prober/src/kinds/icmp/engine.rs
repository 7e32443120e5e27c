//! One socket shared by the runs of a thread: packets go out from the run's own task, one task reads what comes back and hands it to the run it is of.
//!
//! Both ends of a round trip are stamped by the kernel where it does so: on its way out in the error queue, on its way in beside the
//! message. The kernel stamps with the wall clock; where that was set meanwhile, the monotonic clock around the system calls is used.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg};
use nix::sys::time::TimeSpec;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::packet::{self, Echo, Heard, Trouble};
use super::socket::{IcmpSocket, Sending};

/// Messages read by one system call.
const BATCH: usize = 32;
/// The largest message: a payload of 9,000 bytes, its headers, and the link's.
const MESSAGE_BYTES_MAX: usize = 9_216;
/// Room for stamps of both kinds, the time to live, and an error with who said so.
const CONTROL_BYTES: usize = 256;
/// Batches in a row before other tasks of this thread get their turn.
const BATCHES_IN_A_ROW: usize = 16;
/// Events that a run is told of each of its packets: more duplicates are dropped.
pub(crate) const EVENTS_PER_PACKET: usize = 8;
/// Errors that are left on a datagram socket for whoever uses it next: so many are skipped.
const ERRORS_IN_A_ROW: usize = 4;
/// Looks at whether the reader has caught up, a pause apart.
const CATCH_UP_TRIES: usize = 4;
const CATCH_UP_PAUSE: Duration = Duration::from_millis(1);
/// How far the wall clock and the monotonic one may disagree on a round trip; beyond it the wall clock was set.
const STAMP_SLACK_NS: i64 = 50_000;

/// What a run is told of one of its packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    /// Which of the run's packets.
    pub(crate) index: u32,
    /// Who said so.
    pub(crate) from: IpAddr,
    /// What.
    pub(crate) what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Reply { rtt: Duration, stamps: Stamps },
    Trouble { trouble: Trouble, rtt: Duration },
}

/// Where the two times of a round trip come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamps {
    pub(crate) transmit_by_kernel: bool,
    pub(crate) receive_by_kernel: bool,
    /// The time to live that the reply came with.
    pub(crate) ttl: Option<u8>,
}

#[derive(Debug)]
struct Pending {
    to: IpAddr,
    index: u32,
    sequence: u16,
    sent_at: Instant,
    sent_wall_ns: i64,
    transmit_ns: Option<i64>,
    run: mpsc::Sender<Event>,
}

#[derive(Debug)]
struct Table {
    pending: HashMap<u64, Pending>,
    /// The latest token of each sequence number, for errors that quote no more than the header.
    tokens: Vec<u64>,
}

#[derive(Debug)]
struct Shared {
    fd: AsyncFd<IcmpSocket>,
    table: Mutex<Table>,
    sequence: AtomicU16,
    /// How often everything that was there was read.
    drained: AtomicU64,
}

/// A socket at work; it ends with its last user.
#[derive(Debug)]
pub(crate) struct Engine {
    shared: Arc<Shared>,
    reader: AbortHandle,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Engine {
    /// Opens a socket and begins to read. Call it on a tokio runtime.
    #[expect(deprecated, reason = "the safe constructor is unsound for types that change or close their descriptor, which IcmpSocket cannot")]
    pub(crate) fn start(v6: bool, dont_fragment: bool) -> io::Result<Engine> {
        let fd = AsyncFd::with_interest(IcmpSocket::open(v6, dont_fragment)?, Interest::READABLE | Interest::WRITABLE | Interest::ERROR)?;
        let table = Mutex::new(Table { pending: HashMap::new(), tokens: vec![0; 1 << 16] });
        let shared = Arc::new(Shared { fd, table, sequence: AtomicU16::new(rand::random()), drained: AtomicU64::new(0) });
        let reader = tokio::spawn(read(shared.clone())).abort_handle();
        Ok(Engine { shared, reader })
    }

    /// A run's own view, for at most that many packets.
    pub(crate) fn session(&self, packets: usize) -> Session {
        let (events, inbox) = mpsc::channel(packets.max(1) * EVENTS_PER_PACKET);
        Session { shared: self.shared.clone(), tokens: Vec::with_capacity(packets), dropped: self.shared.fd.get_ref().dropped(), events, inbox }
    }
}

/// The packets of one run; forgotten when it is dropped.
#[derive(Debug)]
pub(crate) struct Session {
    shared: Arc<Shared>,
    tokens: Vec<u64>,
    dropped: u32,
    events: mpsc::Sender<Event>,
    /// What came back.
    pub(crate) inbox: mpsc::Receiver<Event>,
}

impl Session {
    /// Sends the next packet.
    pub(crate) async fn send(&mut self, to: IpAddr, payload_bytes: usize, sending: &Sending) -> io::Result<()> {
        let socket = self.shared.fd.get_ref();
        let echo = Echo { id: socket.id, sequence: self.shared.sequence.fetch_add(1, Ordering::Relaxed), token: rand::random() };
        let bytes = packet::request(socket.v6, echo, payload_bytes);
        let index = self.tokens.len() as u32;
        self.tokens.push(echo.token);
        let mut tries = ERRORS_IN_A_ROW;
        self.shared
            .fd
            .async_io(Interest::WRITABLE, |socket| {
                loop {
                    self.shared.expect(to, index, echo, &self.events);
                    match socket.send(&bytes, to, sending) {
                        // What an earlier packet of somebody else met, told to whoever comes next.
                        Err(e) if !socket.raw && e.kind() != io::ErrorKind::WouldBlock && tries > 1 => tries -= 1,
                        sent => return sent,
                    }
                }
            })
            .await
    }

    /// Whether replies may be missing because this process did not read them in time: the kernel dropped some since the run began, or
    /// what had come by now is still not read after a while.
    pub(crate) async fn behind(&self) -> bool {
        let before = self.shared.drained.load(Ordering::Acquire);
        for _ in 0..CATCH_UP_TRIES {
            let socket = self.shared.fd.get_ref();
            if socket.dropped() != self.dropped {
                return true;
            }
            // One more than before may have begun before; two have not.
            if socket.unread() == 0 || self.shared.drained.load(Ordering::Acquire) >= before + 2 {
                return false;
            }
            tokio::time::sleep(CATCH_UP_PAUSE).await;
        }
        true
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut table = self.shared.table();
        for token in &self.tokens {
            table.pending.remove(token);
        }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, to: IpAddr, index: u32, echo: Echo, run: &mpsc::Sender<Event>) {
        let mut table = self.table();
        table.tokens[usize::from(echo.sequence)] = echo.token;
        let (sent_at, sent_wall_ns) = (Instant::now(), wall_ns());
        let pending = Pending { to, index, sequence: echo.sequence, sent_at, sent_wall_ns, transmit_ns: None, run: run.clone() };
        table.pending.insert(echo.token, pending);
    }
}

fn wall_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64)
}

fn stamp_ns(stamp: TimeSpec) -> i64 {
    stamp.tv_sec() * 1_000_000_000 + stamp.tv_nsec()
}

/// A message as it was read.
struct Message {
    heard: Heard,
    from: IpAddr,
    ttl: Option<u8>,
    stamp_ns: Option<i64>,
}

/// What one system call of each queue found.
#[derive(Default)]
struct Found {
    messages: Vec<Message>,
    transmitted: Vec<(u64, i64)>,
}

/// Buffers for one queue.
struct Queue {
    flags: MsgFlags,
    buffers: Vec<Vec<u8>>,
}

impl Queue {
    fn new(flags: MsgFlags) -> Queue {
        Queue { flags: flags | MsgFlags::MSG_DONTWAIT, buffers: vec![vec![0; MESSAGE_BYTES_MAX]; BATCH] }
    }

    /// Reads one batch; how many messages that was, and whether more may be there.
    fn read(&mut self, shared: &Shared, found: &mut Found) -> (usize, bool) {
        let socket = shared.fd.get_ref();
        // New ones each time: in used ones the kernel has left how much room for control messages the last message took.
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, Some(Vec::with_capacity(CONTROL_BYTES)));
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = self.buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
        match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), self.flags, None) {
            Ok(received) => {
                let mut n = 0;
                for message in received {
                    n += 1;
                    let Some(bytes) = message.iovs().next() else { continue };
                    let from = message.address.as_ref().and_then(address);
                    let control = message.cmsgs().into_iter().flatten();
                    if self.flags.contains(MsgFlags::MSG_ERRQUEUE) {
                        error_message(socket, bytes, from, control, found);
                    } else {
                        message_in(socket, bytes, from, control, found);
                    }
                }
                (n, n == BATCH || !socket.raw)
            }
            Err(Errno::EAGAIN) => (0, false),
            // An error that waited on the socket: it has its own message in the error queue.
            Err(_) => (0, !socket.raw),
        }
    }
}

fn address(storage: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = storage.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
}

fn message_in(socket: &IcmpSocket, bytes: &[u8], from: Option<IpAddr>, control: impl Iterator<Item = ControlMessageOwned>, found: &mut Found) {
    let (mut ttl, mut stamp) = (None, None);
    for message in control {
        match message {
            ControlMessageOwned::ScmTimestampns(time) => stamp = Some(stamp_ns(time)),
            ControlMessageOwned::ScmTimestampsns(times) => stamp = stamp.or(Some(stamp_ns(times.system))),
            ControlMessageOwned::Ipv4Ttl(n) | ControlMessageOwned::Ipv6HopLimit(n) => ttl = u8::try_from(n).ok(),
            _ => {}
        }
    }
    let heard = match (socket.v6, socket.raw) {
        (true, _) => packet::parse_v6(bytes),
        (false, false) => packet::parse_v4(bytes, false),
        (false, true) => packet::inside_v4(bytes).and_then(|(message, left)| {
            ttl = Some(left);
            packet::parse_v4(message, true)
        }),
    };
    if let (Some(heard), Some(from)) = (heard, from) {
        found.messages.push(Message { heard, from, ttl, stamp_ns: stamp });
    }
}

/// A transmit stamp with its packet, or (datagram sockets) an ICMP error with the packet that it is about.
fn error_message(socket: &IcmpSocket, bytes: &[u8], to: Option<IpAddr>, control: impl Iterator<Item = ControlMessageOwned>, found: &mut Found) {
    let mut stamp = None;
    for message in control {
        let (error, from): (_, Option<IpAddr>) = match message {
            ControlMessageOwned::ScmTimestampsns(times) => {
                stamp = Some(stamp_ns(times.system)).filter(|ns| *ns != 0);
                continue;
            }
            ControlMessageOwned::Ipv4RecvErr(error, from) => (error, from.map(|a| u32::from_be(a.sin_addr.s_addr)).map(|a| IpAddr::V4(a.into()))),
            ControlMessageOwned::Ipv6RecvErr(error, from) => (error, from.map(|a| IpAddr::V6(a.sin6_addr.s6_addr.into()))),
            _ => continue,
        };
        let (trouble, request) = match error.ee_origin {
            2 => (packet::trouble_v4(error.ee_type, error.ee_code, error.ee_info), 8),
            3 => (packet::trouble_v6(error.ee_type, error.ee_code, error.ee_info), 128),
            _ => (None, 0),
        };
        if let (Some(trouble), Some(from), Some(to), false) = (trouble, from, to, socket.raw)
            && let Some(heard) = packet::error(trouble, to, request, bytes)
        {
            found.messages.push(Message { heard, from, ttl: None, stamp_ns: None });
        }
    }
    if let (Some(stamp), Some(token)) = (stamp, packet::token_at_end(bytes)) {
        found.transmitted.push((token, stamp));
    }
}

/// Reads as long as the socket lives.
async fn read(shared: Arc<Shared>) {
    let mut incoming = Queue::new(MsgFlags::empty());
    let mut errors = Queue::new(MsgFlags::MSG_ERRQUEUE);
    let mut found = Found::default();
    loop {
        let Ok(mut ready) = shared.fd.ready(Interest::READABLE | Interest::ERROR).await else { return };
        // Cleared before reading: what comes later makes it ready again.
        ready.clear_ready();
        drop(ready);
        while drain(&shared, &mut incoming, &mut errors, &mut found) {
            tokio::task::yield_now().await;
        }
    }
}

/// Reads what is there, up to a bound: whether more may be.
fn drain(shared: &Shared, incoming: &mut Queue, errors: &mut Queue, found: &mut Found) -> bool {
    let mut empty = 0;
    for _ in 0..BATCHES_IN_A_ROW {
        let (n, more) = incoming.read(shared, found);
        let (now, wall_now_ns) = (Instant::now(), wall_ns());
        // A packet's transmit stamp is queued before its reply, so after the replies were read all their stamps are there.
        while let (1.., true) = errors.read(shared, found) {}
        deliver(shared, found, now, wall_now_ns);
        empty = if n > 0 { 0 } else { empty + 1 };
        if !more || empty == ERRORS_IN_A_ROW {
            shared.drained.fetch_add(1, Ordering::Release);
            return false;
        }
    }
    true
}

fn deliver(shared: &Shared, found: &mut Found, now: Instant, wall_now_ns: i64) {
    let mut table = shared.table();
    for (token, stamp) in found.transmitted.drain(..) {
        if let Some(pending) = table.pending.get_mut(&token) {
            pending.transmit_ns = Some(stamp);
        }
    }
    let id = shared.fd.get_ref().id;
    for message in found.messages.drain(..) {
        let (echo, claimed_to) = match message.heard {
            Heard::Reply(echo) => (Some(echo), message.from),
            Heard::Error { to, id, sequence, token, .. } => {
                let token = token.unwrap_or(table.tokens[usize::from(sequence)]);
                (Some(Echo { id, sequence, token }), to)
            }
        };
        let Some(echo) = echo.filter(|e| e.id == id) else { continue };
        // Whose it is: the token was never seen by anybody off the path, and the rest must fit.
        let Some(pending) = table.pending.get(&echo.token).filter(|p| p.to == claimed_to && p.sequence == echo.sequence) else { continue };
        let (rtt, transmit_by_kernel, receive_by_kernel) = round_trip(pending, message.stamp_ns, now, wall_now_ns);
        let what = match message.heard {
            Heard::Reply(_) => What::Reply { rtt, stamps: Stamps { transmit_by_kernel, receive_by_kernel, ttl: message.ttl } },
            Heard::Error { trouble, .. } => What::Trouble { trouble, rtt },
        };
        // Full: more duplicates than a run is told of.
        let _ = pending.run.try_send(Event { index: pending.index, from: message.from, what });
    }
}

/// The time between the stamps, by the kernel's unless the wall clock was set meanwhile.
fn round_trip(pending: &Pending, stamp_ns: Option<i64>, now: Instant, wall_now_ns: i64) -> (Duration, bool, bool) {
    let monotonic = now.saturating_duration_since(pending.sent_at);
    let monotonic_ns = monotonic.as_nanos() as i64;
    // The clocks' rates differ by some hundred parts per million at most.
    let slack_ns = monotonic_ns / 1_000 + STAMP_SLACK_NS;
    let wall_was_set = (wall_now_ns - pending.sent_wall_ns).abs_diff(monotonic_ns) > slack_ns as u64;
    let between = stamp_ns.unwrap_or(wall_now_ns) - pending.transmit_ns.unwrap_or(pending.sent_wall_ns);
    if wall_was_set || !(0..=monotonic_ns + slack_ns).contains(&between) {
        return (monotonic, false, false);
    }
    (Duration::from_nanos(between as u64), pending.transmit_ns.is_some(), stamp_ns.is_some())
}
