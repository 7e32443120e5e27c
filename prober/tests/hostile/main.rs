//! Bad targets, and what they cost: each run ends by its deadline at the latest, with the reason of what its target did, within a bound of
//! memory that what the target sends does not move.
//!
//! A binary of its own, whose cases run one after the other, because the kernel keeps one high-water mark of memory for a process.

#[path = "../common/mod.rs"]
mod common;
mod http1;
mod http2;
mod http3;
mod talk;

use std::net::SocketAddr;
use std::time::Duration;

use common::*;
use probity_prober::ProbeContext;
use probity_prober::kinds::ContextConfig;
use probity_prober::policy::AddressPolicy;
use probity_proto::v1::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};

/// Runs of one case at once.
const AT_ONCE: u64 = 4;
/// What each may cost, with its server's side, which lives in this process too: the largest body of the cases is 1 MiB, decoded 1 MiB more,
/// each in a vector that doubles; HTTP/2's window is 2 MiB. What is sent without an end would pass it within the time-out.
const RUN_KIB_MAX: u64 = 6 * 1024;
/// The same with brotli's window, which is of 16 MiB at most (RFC 7932, section 9.1).
const BROTLI_RUN_KIB_MAX: u64 = RUN_KIB_MAX + 16 * 1024;

/// What many runs at once may cost: the room that they are given, four times for vectors that grow, and 256 KiB each for a connection with both of its sides.
const ROOM_BYTES: u64 = 4 << 20;
const MANY: u64 = 200;
const MANY_KIB_MAX: u64 = 4 * ROOM_BYTES / 1024 + MANY * 256;

static ALONE: Mutex<()> = Mutex::const_new(());

/// Bad targets, probed alone in this process.
struct Bench {
    context: ProbeContext,
    problems: std::sync::Mutex<Vec<String>>,
    _alone: MutexGuard<'static, ()>,
}

/// All at once: one case says little of the next.
impl Drop for Bench {
    fn drop(&mut self) {
        let problems = self.problems.lock().expect("nobody panics with it");
        assert!(std::thread::panicking() || problems.is_empty(), "{}", problems.join("\n"));
    }
}

impl Bench {
    async fn new() -> Bench {
        Bench::with_secrets(None).await
    }

    /// Whose runs share some room.
    async fn with_room(bytes: u64) -> Bench {
        let mut bench = Bench::new().await;
        let config = ContextConfig { address_policy: AddressPolicy::Anywhere, bodies_bytes_max: bytes, ..ContextConfig::default() };
        bench.context = ProbeContext::new(config);
        bench
    }

    async fn with_secrets(secrets: Option<&std::path::Path>) -> Bench {
        let alone = ALONE.lock().await;
        let context = context_with(probity_prober::policy::AddressPolicy::Anywhere, secrets.map(Into::into));
        Bench { context, problems: std::sync::Mutex::default(), _alone: alone }
    }

    /// Probes a bad target some times at once: each run must have the reason, and a message that holds the text.
    async fn probe(&self, name: &str, spec: &str, reason: Reason, message: &str) {
        self.probe_within(RUN_KIB_MAX, name, spec, reason, message).await;
    }

    async fn probe_within(&self, kib_max: u64, name: &str, spec: &str, reason: Reason, message: &str) {
        let spec = if spec.contains("timeout:") { spec.to_owned() } else { format!("timeout: 1s\n{spec}") };
        let before = lowered();
        let runs = (0..AT_ONCE).map(|_| probe_in(&self.context, &spec));
        // Generous: the machine may be busy; what must not be is a run without an end.
        let results = tokio::time::timeout(Duration::from_secs(60), futures_util::future::join_all(runs)).await;
        let cost = kib("VmHWM:").saturating_sub(before);
        println!("{name}: {cost} KiB for {AT_ONCE} runs");
        let mut problems = self.problems.lock().expect("nobody panics with it");
        if cost > AT_ONCE * kib_max {
            problems.push(format!("{name}: {cost} KiB"));
        }
        for result in results.unwrap_or_else(|_| panic!("{name} did not end")) {
            if result.reason != reason || !result.message.contains(message) {
                problems.push(format!("{name}: {:?}: {:?}, want {reason:?}: {message:?}", result.reason, result.message));
                break;
            }
        }
    }
}

/// Sets the high-water mark back to what is in use (proc(5)), and has it, in KiB.
fn lowered() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").expect("the kernel takes it");
    kib("VmHWM:")
}

/// A line of this process's status.
fn kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|l| l.starts_with(name)).expect("the line");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

/// Says `head` once something was heard, then `drop` again and again.
async fn endless(head: impl Into<Vec<u8>>, drop: impl Into<Vec<u8>>, pause: Duration) -> SocketAddr {
    let (head, drop) = (leaked(head.into()), leaked(drop.into()));
    serve(move |mut stream, _| async move {
        hear(&mut stream).await;
        pour(stream, head, drop, pause).await;
    })
    .await
}

/// The same, of a server that speaks first.
async fn endless_at_once(head: impl Into<Vec<u8>>, drop: impl Into<Vec<u8>>, pause: Duration) -> SocketAddr {
    let (head, drop) = (leaked(head.into()), leaked(drop.into()));
    serve(move |stream, _| pour(stream, head, drop, pause)).await
}

async fn hear(stream: &mut TcpStream) {
    let _ = stream.read(&mut [0; 4_096]).await;
}

async fn pour(stream: TcpStream, head: &'static [u8], drop: &'static [u8], pause: Duration) {
    let (mut reading, mut writing) = stream.into_split();
    // What is heard is passed over, so that no full buffer on the other side ends it.
    let listening = tokio::spawn(async move {
        let mut buffer = [0; 16 * 1024];
        while reading.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
    });
    let _ = writing.write_all(head).await;
    while !drop.is_empty() && writing.write_all(drop).await.is_ok() {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    let _ = listening.await;
}

/// For servers that outlive the call; a test has few of them.
fn leaked(bytes: Vec<u8>) -> &'static [u8] {
    Vec::leak(bytes)
}

const NO_PAUSE: Duration = Duration::ZERO;
const BYTE_A_SECOND: Duration = Duration::from_secs(1);
