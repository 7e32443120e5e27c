//! What all runs of a prober hold of answers' bodies, in bytes, and how many large ones are worked on at once.
//!
//! Each run has bounds of its own (`maxBodyBytes`, `maxDecompressedBytes`, `maxMessageBytes`); they do not add up to a bound for the prober, because
//! many targets may be bad at once. A run that finds no room is missed(overloaded): that its answer was too much is this host's limit, and no target's
//! failing. What runs hold besides is small, and bounded by how many there may be.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use probity_proto::units::format_duration;
use probity_proto::v1::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::{Attempt, Failure};

/// Of each part, free: a few runs that hold much do not keep those that hold little from their answers. Bounded by how many runs there may be.
pub(super) const FREE_BYTES: u64 = 64 << 10;
/// Unless `bodies.maxBytes` says otherwise: as much again as what is free of the 4,096 runs that may be under way.
pub const BODIES_BYTES_MAX: u64 = 4_096 * FREE_BYTES;
/// A run that waits for its turn gives up that much before its time-out, so that the reason is ours to tell; a shorter wait takes nothing from it.
const SPARE: Duration = Duration::from_millis(5);

/// The account, of all runs.
#[derive(Debug)]
pub(crate) struct Bodies {
    max: u64,
    held: AtomicU64,
    /// Turns at working on large bodies. One for each processor: more would take the room of their windows and documents, and be no faster.
    turns: Arc<Semaphore>,
}

impl Bodies {
    pub(crate) fn new(max: u64) -> Arc<Bodies> {
        let turns = std::thread::available_parallelism().map_or(2, usize::from);
        Arc::new(Bodies { max, held: AtomicU64::new(0), turns: Arc::new(Semaphore::new(turns)) })
    }

    /// Bytes that are held now, beside the free ones.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// A run's part, empty as yet.
    pub(crate) fn part(self: &Arc<Bodies>) -> Held {
        Held { bodies: self.clone(), bytes: 0 }
    }
}

impl Attempt<'_> {
    /// Has a large body worked on by another thread: decoding and judging take milliseconds, which are not for a thread that times other runs.
    /// The wait for a turn is this host's: no phase has it.
    pub(crate) async fn work<T: Send + 'static>(&mut self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
        let turns = self.context.bodies.turns.clone();
        let until = self.deadline.checked_sub(SPARE).unwrap_or(self.deadline);
        let late = || Failure::new(Reason::Overloaded, "this prober has more large bodies to work on than its processors can");
        let (turn, waited) = match turns.clone().try_acquire_owned() {
            Ok(turn) => (turn, false),
            Err(_) => {
                let from = Instant::now();
                let turn = timeout_at(until, turns.acquire_owned()).await;
                self.phases.waited(from.elapsed());
                (turn.map_err(|_| late())?.map_err(|_| late())?, true)
            }
        };
        // The turn ends with the work, also when nobody waits for it any more.
        let working = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        let failed = |e: tokio::task::JoinError| Failure::new(Reason::ProberError, format!("the body could not be worked on: {e}"));
        // Who had no time to wait may blame the target; who waited may not.
        let done = if waited { timeout_at(until, working).await.map_err(|_| late())? } else { working.await };
        done.map_err(failed)
    }

    /// The same of a time-out later on: who waited so long had less time for its target than it was given.
    pub(super) fn late_by_waiting(&self) -> Option<Failure> {
        let waited = self.phases.waits();
        let message = || format!("no answer in time, of which the wait for a turn at a large body took {}", format_duration(waited.as_micros() as u64));
        (waited > SPARE).then(|| Failure::new(Reason::Overloaded, message()))
    }
}

/// What counts of a part.
fn above(bytes: u64) -> u64 {
    bytes.saturating_sub(FREE_BYTES)
}

/// Bytes that a run holds, given back when it is over.
#[derive(Debug)]
pub(crate) struct Held {
    bodies: Arc<Bodies>,
    bytes: u64,
}

impl Held {
    /// So many bytes more.
    pub(crate) fn more(&mut self, bytes: usize) -> Result<(), Failure> {
        let (bytes, max) = (self.bytes + bytes as u64, self.bodies.max);
        let counted = above(bytes) - above(self.bytes);
        // Nothing is taken by who finds no room: of two that want the last of it one has it.
        let room = |held: u64| held.checked_add(counted).filter(|held| *held <= max);
        if self.bodies.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            let free = FREE_BYTES >> 10;
            let message = format!("the answers that this prober's runs hold may take {max} bytes together (bodies.maxBytes), beside {free} KiB of each");
            return Err(Failure::new(Reason::Overloaded, message));
        }
        self.bytes = bytes;
        Ok(())
    }

    /// So many bytes are given back.
    pub(crate) fn less(&mut self, bytes: usize) {
        let left = self.bytes.saturating_sub(bytes as u64);
        self.bodies.held.fetch_sub(above(self.bytes) - above(left), Ordering::Relaxed);
        self.bytes = left;
    }

    /// All of it is given back.
    pub(crate) fn none(&mut self) {
        self.less(usize::MAX);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.none();
    }
}

/// A connection whose reader keeps what it read until it says otherwise: for libraries that put messages together by themselves.
#[derive(Debug)]
pub(crate) struct Metered<S> {
    stream: S,
    held: Held,
}

impl<S> Metered<S> {
    pub(crate) fn new(stream: S, held: Held) -> Metered<S> {
        Metered { stream, held }
    }

    /// So much of what was read is no longer kept.
    pub(crate) fn passed(&mut self, bytes: usize) {
        self.held.less(bytes);
    }

    /// Nothing of what was read so far is kept.
    pub(crate) fn all_passed(&mut self) {
        self.held.none();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        Poll::Ready(this.held.more(buffer.filled().len() - before).map_err(|f| io::Error::new(io::ErrorKind::OutOfMemory, f.message)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::super::phases::Phases;
    use super::super::{ContextConfig, ProbeContext, RunInfo, run};
    use super::*;
    use crate::policy::AddressPolicy;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use probity_otel::SpanIds;
    use probity_proto::v1::check_kind::Kind;
    use probity_proto::v1::{AddressFamily, CheckKind, CheckSpec, HttpCheck, HttpStep, NetOptions};
    use std::io::Write;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::OwnedSemaphorePermit;

    const FREE: usize = FREE_BYTES as usize;

    #[test]
    fn what_is_taken_is_given_back() {
        let bodies = Bodies::new(100);
        let (mut one, mut other) = (bodies.part(), bodies.part());
        assert!(one.more(FREE + 60).is_ok() && other.more(FREE + 40).is_ok());
        let full = other.more(1).expect_err("there is no room");
        assert_eq!((full.reason, bodies.held()), (Reason::Overloaded, 100));
        one.less(10);
        assert!(other.more(10).is_ok());
        drop(one);
        assert_eq!(bodies.held(), 50);
        other.less(60);
        assert_eq!(bodies.held(), 0);
        // Of the free ones ten were given back.
        assert!(other.more(110).is_ok() && other.more(1).is_err());
        drop(other);
        assert_eq!(bodies.held(), 0);
    }

    #[test]
    fn what_is_small_is_free() {
        let bodies = Bodies::new(100);
        let mut large = bodies.part();
        assert!(large.more(FREE + 100).is_ok());
        let mut small = bodies.part();
        assert!(small.more(FREE).is_ok(), "however full it is");
        assert!(small.more(1).is_err());
        assert_eq!(bodies.held(), 100);
    }

    #[test]
    fn of_two_that_want_the_last_room_one_has_it() {
        let (bodies, both) = (Bodies::new(100), std::sync::Barrier::new(2));
        let took = || {
            let takes = |_| {
                let mut part = bodies.part();
                both.wait();
                let took = part.more(FREE + 100).is_ok();
                both.wait();
                took
            };
            (0..5_000).map(takes).collect::<Vec<bool>>()
        };
        let (one, other) = std::thread::scope(|threads| {
            let (one, other) = (threads.spawn(took), threads.spawn(took));
            (one.join().expect("no panic"), other.join().expect("no panic"))
        });
        assert!(one.iter().zip(&other).all(|(one, other)| one != other));
    }

    fn context() -> ProbeContext {
        let _ = rustls::crypto::ring::default_provider().install_default();
        ProbeContext::new(ContextConfig { address_policy: AddressPolicy::Anywhere, ..ContextConfig::default() })
    }

    fn attempt<'c>(context: &'c ProbeContext, net: &'c NetOptions, deadline: Instant) -> Attempt<'c> {
        Attempt {
            context,
            namespace: "",
            net,
            family: AddressFamily::Any,
            deadline,
            phases: Phases::start(),
            peer: String::new(),
            facts: Vec::new(),
            path: Vec::new(),
            span: (SpanIds::root(), false),
        }
    }

    /// Takes all turns at large bodies.
    async fn all_turns(context: &ProbeContext) -> OwnedSemaphorePermit {
        let turns = &context.bodies.turns;
        turns.clone().acquire_many_owned(turns.available_permits() as u32).await.expect("all turns")
    }

    /// A server that answers each request with that many bytes, compressed.
    async fn compressed(size: usize) -> SocketAddr {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&vec![b'x'; size]).expect("in memory");
        let body = gzip.finish().expect("in memory");
        let answer = [format!("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move {
                    while stream.read(&mut [0; 4_096]).await.is_ok_and(|n| n > 0) {
                        let _ = stream.write_all(&answer).await;
                    }
                });
            }
        });
        address
    }

    fn spec(address: SocketAddr, timeout: Duration) -> CheckSpec {
        let http = HttpCheck {
            url: format!("http://{address}/"),
            method: "GET".to_owned(),
            compression: vec!["gzip".to_owned()],
            max_body_bytes: 1 << 20,
            max_decompressed_bytes: 1 << 20,
            ..HttpCheck::default()
        };
        CheckSpec { kind: Some(CheckKind { kind: Some(Kind::Http(http)) }), timeout_us: timeout.as_micros() as u64, ..CheckSpec::default() }
    }

    #[tokio::test]
    async fn small_ones_do_not_wait_behind_large_ones() {
        let context = context();
        let (small, large) = (compressed(FREE).await, compressed(FREE + 1).await);
        let turns = all_turns(&context).await;
        let found = async |address, timeout| run(&context, &spec(address, Duration::from_secs(timeout)), &RunInfo::default()).await.reason;
        assert_eq!((found(small, 60).await, found(large, 1).await), (Reason::Good, Reason::Overloaded));
        drop(turns);
        assert_eq!((found(small, 60).await, found(large, 60).await), (Reason::Good, Reason::Good));
        assert_eq!(found(compressed(2 << 20).await, 60).await, Reason::DecompressedTooLarge);
        assert_eq!(context.bodies.held(), 0);
    }

    #[tokio::test]
    async fn who_waits_in_vain_for_a_turn_says_so() {
        let context = context();
        let net = NetOptions::default();
        let soon = Instant::now() + Duration::from_millis(50);
        let turns = all_turns(&context).await;
        let late = attempt(&context, &net, soon).work(|| ()).await.expect_err("there is no turn");
        assert_eq!(late.reason, Reason::Overloaded);
        drop(turns);
        assert_eq!(attempt(&context, &net, Instant::now() + Duration::from_secs(60)).work(|| 7).await.ok(), Some(7));
    }

    #[tokio::test]
    async fn the_wait_for_a_turn_is_in_no_phase() {
        let (context, net) = (context(), NetOptions::default());
        let turns = all_turns(&context).await;
        let wait = Duration::from_millis(100);
        let start = Instant::now();
        let mut attempt = attempt(&context, &net, start + Duration::from_secs(60));
        attempt.phases.next("transfer");
        let release = async {
            tokio::time::sleep(wait).await;
            drop(turns);
        };
        let (worked, ()) = tokio::join!(biased; attempt.work(|| ()), release);
        assert!(worked.is_ok());
        attempt.phases.next("request");
        let (duration, phases) = attempt.phases.finish();
        assert!(duration + wait <= start.elapsed(), "{duration:?}");
        assert_eq!(phases.iter().map(|p| p.duration_us).sum::<u64>(), duration.as_micros() as u64, "{phases:?}");
        assert_eq!(attempt.late_by_waiting().map(|f| f.reason), Some(Reason::Overloaded));
    }

    #[tokio::test]
    async fn a_time_out_after_a_wait_is_not_the_targets() {
        let context = context();
        let (large, silent) = (compressed(FREE + 1).await, TcpListener::bind("127.0.0.1:0").await.expect("a free port"));
        let mut spec = spec(large, Duration::from_secs(3));
        if let Some(Kind::Http(http)) = spec.kind.as_mut().and_then(|k| k.kind.as_mut()) {
            let url = |address: SocketAddr| format!("http://{address}/");
            let step = |url| HttpStep { name: "step".to_owned(), url, method: "GET".to_owned(), ..HttpStep::default() };
            http.steps = vec![step(url(large)), step(url(silent.local_addr().expect("its address")))];
        }
        assert_eq!(run(&context, &spec, &RunInfo::default()).await.reason, Reason::ResponseTimeout);
        let turns = all_turns(&context).await;
        let release = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(turns);
        };
        let info = RunInfo::default();
        let (result, ()) = tokio::join!(run(&context, &spec, &info), release);
        assert_eq!(result.reason, Reason::Overloaded, "{result:?}");
    }
}
