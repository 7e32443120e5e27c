//! Round trips as a capture on the loopback sees them: the reference for what the prober says of its pings.
//!
//! A packet socket is told of every packet as `tcpdump` is, with the kernel's time of each: a request's is taken where it is handed to the
//! device, which is not where the prober's own stamp comes from; a reply's is of its arrival. Needs the right to open one (CAP_NET_RAW).

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

/// `ETH_P_ALL`, in the order of the network: only who wants every protocol is shown what leaves.
const EVERY_PROTOCOL: u16 = 3u16.to_be();
/// `PACKET_OUTGOING` (packet(7)): what leaves. On the loopback every packet is seen twice.
const OUTGOING: u8 = 4;
/// So that a stall of this process loses nothing: more than a second at 10,000 pings/s.
const BUFFER_BYTES: usize = 64 << 20;
/// The heads of IP (with options) and ICMP.
const HEAD_BYTES: u32 = 68;
/// How often it is looked whether it is over.
const LOOK: Duration = Duration::from_millis(100);

/// The round trips to each address in nanoseconds, in the order in which the requests left.
pub(super) type RoundTrips = HashMap<Ipv4Addr, Vec<i64>>;

/// A capture under way.
pub(super) struct Capture {
    over: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<RoundTrips>>,
}

impl Capture {
    pub(super) fn start() -> io::Result<Capture> {
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(EVERY_PROTOCOL))))?;
        // ICMP over IPv4 (the first byte's half is the version), and of that the heads.
        socket.attach_filter(&[
            SockFilter::new(0x30, 0, 0, 0),
            SockFilter::new(0x54, 0, 0, 0xf0),
            SockFilter::new(0x15, 0, 3, 0x40),
            SockFilter::new(0x30, 0, 0, 9),
            SockFilter::new(0x15, 0, 1, 1),
            SockFilter::new(0x06, 0, 0, HEAD_BYTES),
            SockFilter::new(0x06, 0, 0, 0),
        ])?;
        if setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
            setsockopt(&socket.as_fd(), sockopt::RcvBuf, &BUFFER_BYTES)?;
        }
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimestampns, &true)?;
        socket.set_read_timeout(Some(LOOK))?;
        let over = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let over = over.clone();
            move || watch(&socket, &over)
        });
        Ok(Capture { over, thread })
    }

    /// What was seen until now.
    pub(super) fn end(self) -> io::Result<RoundTrips> {
        self.over.store(true, Ordering::Release);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the capture ended in a panic")))
    }
}

fn watch(socket: &Socket, over: &AtomicBool) -> io::Result<RoundTrips> {
    let mut seen = Seen::default();
    let mut buffer = [0; HEAD_BYTES as usize];
    loop {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
        let message = match recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty()) {
            Ok(message) => message,
            // What is queued is read before it is over.
            Err(Errno::EAGAIN) if over.load(Ordering::Acquire) => return Ok(seen.found),
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
        };
        let leaves = message.address.as_ref().and_then(|a| a.as_link_addr()).is_some_and(|a| a.pkttype() == OUTGOING);
        let stamp = message.cmsgs()?.find_map(|c| if let ControlMessageOwned::ScmTimestampns(t) = c { Some(t) } else { None });
        if let (Some(stamp), Some(bytes)) = (stamp, message.iovs().next()) {
            seen.packet(bytes, leaves, stamp.tv_sec() * 1_000_000_000 + stamp.tv_nsec());
        }
    }
}

#[derive(Default)]
struct Seen {
    /// When requests left, by address, identifier and sequence.
    left: HashMap<(Ipv4Addr, [u8; 4]), i64>,
    found: RoundTrips,
}

impl Seen {
    fn packet(&mut self, bytes: &[u8], leaves: bool, at_ns: i64) -> Option<()> {
        let address = |from: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(from..from + 4)?).ok()?));
        let icmp = bytes.get(usize::from(*bytes.first()? & 15) * 4..)?;
        let which = <[u8; 4]>::try_from(icmp.get(4..8)?).ok()?;
        match (*icmp.first()?, leaves) {
            (8, true) => {
                self.left.insert((address(16)?, which), at_ns);
            }
            (0, false) => {
                let from = address(12)?;
                let left = self.left.remove(&(from, which))?;
                self.found.entry(from).or_default().push(at_ns - left);
            }
            _ => {}
        }
        Some(())
    }
}
