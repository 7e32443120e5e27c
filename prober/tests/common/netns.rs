//! Network namespaces of a test's own: a loopback that answers nothing by itself, and a way with routers on it. They need root.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, Socket, Type};

/// Runs a test in a network namespace of its own, on one thread; skips it, and says so, where that is not permitted.
pub(crate) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(|| {
        if let Err(e) = unshare(CloneFlags::CLONE_NEWNET) {
            println!("SKIPPED: no network namespace of its own: {e} (this test needs root)");
            return;
        }
        sh("ip link set lo up");
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A command of iproute2 and the like; in the caller's namespace.
pub(crate) fn sh(command: &str) {
    let status = Command::new("sh").args(["-ec", command]).status().expect("sh runs");
    assert!(status.success(), "{command}");
}

/// No echo is answered here but by the test itself.
pub(crate) fn silence() {
    sh("echo 1 > /proc/sys/net/ipv4/icmp_echo_ignore_all");
}

/// The internet checksum (RFC 1071), written for tests alone.
pub(crate) fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// A message to send: from whom, and its ICMP part, whose checksum is filled in.
pub(crate) type Forged = (Ipv4Addr, Vec<u8>);

/// Answers echo requests by hand: `forge` gets each request's ICMP part, and how many came before it. Ends with the test's namespace
/// falling silent for 5 seconds.
pub(crate) fn answer_by_hand(forge: impl Fn(&[u8], usize) -> Vec<Forged> + Send + 'static) {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).expect("raw");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    // A new thread is in the namespace of the one that makes it.
    std::thread::spawn(move || {
        use std::io::Read;
        let (mut buffer, mut before) = ([0; 10_000], 0);
        while let Ok(n) = (&socket).read(&mut buffer) {
            let packet = &buffer[..n];
            if packet[20] != 8 {
                continue;
            }
            let asker: IpAddr = Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]).into();
            for (from, mut message) in forge(&packet[20..], before) {
                if message.len() >= 4 {
                    message[2..4].copy_from_slice(&[0, 0]);
                    let sum = checksum(&message);
                    message[2..4].copy_from_slice(&sum);
                }
                let sender = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).expect("raw");
                sender.bind(&SocketAddr::new(from.into(), 0).into()).expect("an address of loopback");
                sender.send_to(&message, &SocketAddr::new(asker, 0).into()).expect("it is sent");
            }
            before += 1;
        }
    });
}

/// The reply to a request.
pub(crate) fn reply(request: &[u8]) -> Vec<u8> {
    let mut reply = request.to_vec();
    reply[0] = 0;
    reply
}

/// An ICMP error about a request to `to`.
pub(crate) fn error(kind: u8, code: u8, mtu: u16, request: &[u8], to: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0, 0, 0];
    message.extend_from_slice(&mtu.to_be_bytes());
    message.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 127, 0, 0, 1]);
    message.extend_from_slice(&to.octets());
    message.extend_from_slice(request);
    message
}

/// A namespace that lives as long as this.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Holder {
    fn new() -> Holder {
        let child = Command::new("unshare").args(["-n", "sh", "-c", "echo; exec sleep 120"]).stdout(Stdio::piped()).spawn().expect("unshare runs");
        let mut holder = Holder(child);
        // It has its namespace once it says something.
        use std::io::Read;
        holder.0.stdout.as_mut().expect("its output").read_exact(&mut [0]).expect("it starts");
        holder
    }

    fn sh(&self, command: &str) {
        let pid = self.0.id().to_string();
        let status = Command::new("nsenter").args(["-t", &pid, "-n", "sh", "-ec", command]).status().expect("nsenter runs");
        assert!(status.success(), "{command}");
    }
}

/// From here (10.99.1.1) over a router (10.99.1.2) to a far host (10.99.2.2); the second link's MTU is 1300. The router knows of
/// unreachable (10.99.10.0/24), prohibited (10.99.11.0/24) and silent (10.99.12.0/24) networks.
pub(crate) struct Way {
    _router: Holder,
    _far: Holder,
}

pub(crate) const ROUTER: &str = "10.99.1.2";
pub(crate) const FAR: &str = "10.99.2.2";

impl Way {
    /// In the caller's namespace, which must be one of its own.
    pub(crate) fn new() -> Way {
        let (router, far) = (Holder::new(), Holder::new());
        sh(&format!("ip link add near0 type veth peer name near1 netns {}", router.0.id()));
        router.sh(&format!("ip link add far0 type veth peer name far1 netns {}", far.0.id()));
        sh(
            "ip addr add 10.99.1.1/24 dev near0; ip -6 addr add fd99:1::1/64 dev near0 nodad; ip link set near0 up; ip route add 10.99.0.0/16 via 10.99.1.2; ip -6 route add fd99::/16 via fd99:1::2",
        );
        router.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; echo 0 > /proc/sys/net/ipv4/icmp_ratemask; \
             echo 0 > /proc/sys/net/ipv6/icmp/ratelimit; ip link set lo up; \
             ip addr add 10.99.1.2/24 dev near1; ip -6 addr add fd99:1::2/64 dev near1 nodad; ip link set near1 up; \
             ip addr add 10.99.2.1/24 dev far0; ip -6 addr add fd99:2::1/64 dev far0 nodad; ip link set far0 mtu 1300; ip link set far0 up; \
             ip route add unreachable 10.99.10.0/24; ip route add prohibit 10.99.11.0/24; ip route add blackhole 10.99.12.0/24");
        far.sh("echo 0 > /proc/sys/net/ipv4/icmp_ratemask; ip link set lo up; ip addr add 10.99.2.2/24 dev far1; ip -6 addr add fd99:2::2/64 dev far1 nodad; \
             ip link set far1 mtu 1300; ip link set far1 up; ip route add default via 10.99.2.1; ip -6 route add default via fd99:2::1");
        Way { _router: router, _far: far }
    }
}
