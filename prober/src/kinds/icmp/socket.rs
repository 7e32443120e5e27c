//! The ICMP sockets: how they are opened, what the kernel is asked to keep away from them, and one packet out.
//!
//! Raw where that is permitted; else the unprivileged datagram socket of Linux (`net.ipv4.ping_group_range`), where errors come through
//! the error queue.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::sockopt::{self, Timestamping};
use nix::sys::socket::{ControlMessage, MsgFlags, SetSockOpt, SockaddrStorage, TimestampingFlag, getsockopt, sendmsg, setsockopt};
use nix::{getsockopt_impl, libc, setsockopt_impl, sockopt_impl};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

/// Asked for, so that a stall of this process loses no reply: at 150,000 packets/s of 768 bytes with their overhead, about 140 ms.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;

sockopt_impl!(
    /// `IP_PMTUDISC_PROBE` sets the don't-fragment bit and forgets what is known of the path's MTU, so that whoever drops a packet says so.
    Ipv4Discover,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    i32
);
sockopt_impl!(
    /// The same of IPv6.
    Ipv6Discover,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU_DISCOVER,
    i32
);

sockopt_impl!(
    /// How much memory the socket's queues take, and how many packets found them full (`linux/sock_diag.h`).
    MemoryInfo,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_MEMINFO,
    [u32; 9]
);
/// `SK_MEMINFO_DROPS`.
const DROPS: usize = 8;
/// The time to live of packets that need no other.
const TTL: u8 = 64;

/// An open socket.
#[derive(Debug)]
pub(crate) struct IcmpSocket {
    fd: OwnedFd,
    /// IPv6.
    pub(crate) v6: bool,
    /// Raw: IPv4 packets come with their header, errors come as messages.
    pub(crate) raw: bool,
    /// The identifier in our requests; of a datagram socket the kernel's.
    pub(crate) id: u16,
}

impl AsRawFd for IcmpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// How one packet is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sending {
    /// Time to live, or hop limit.
    pub(crate) ttl: u8,
    /// Type of service, or traffic class: DSCP and ECN.
    pub(crate) tos: u8,
    /// Where from; unspecified: as the host's routes say.
    pub(crate) source: Option<IpAddr>,
    /// The interface's index; 0: as the host's routes say.
    pub(crate) interface: u32,
}

impl IcmpSocket {
    pub(crate) fn open(v6: bool, dont_fragment: bool) -> io::Result<IcmpSocket> {
        let (domain, protocol) = if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let (socket, raw) = match Socket::new(domain, Type::RAW, Some(protocol)) {
            Ok(socket) => (socket, true),
            Err(_) => (Socket::new(domain, Type::DGRAM, Some(protocol))?, false),
        };
        socket.set_nonblocking(true)?;
        let id = if raw {
            let id = rand::random();
            socket.attach_filter(&if v6 { filter_v6(id) } else { filter_v4(id) })?;
            id
        } else {
            let any: SocketAddr = if v6 { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() } else { ([0, 0, 0, 0], 0).into() };
            socket.bind(&any.into())?;
            socket.local_addr()?.as_socket().map_or(0, |a| a.port())
        };
        let socket = IcmpSocket { fd: socket.into(), v6, raw, id };
        socket.prepare(dont_fragment)?;
        Ok(socket)
    }

    fn prepare(&self, dont_fragment: bool) -> io::Result<()> {
        if self.set(sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
            self.set(sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES)?;
        }
        self.set(sockopt::ReceiveTimestampns, &true)?;
        // The stamps of when a packet left, in the error queue. The packet comes with them: its token tells which.
        self.set(Timestamping, &(TimestampingFlag::SOF_TIMESTAMPING_TX_SOFTWARE | TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE))?;
        if self.v6 {
            self.set(sockopt::Ipv6Ttl, &TTL.into())?
        } else {
            self.set(sockopt::Ipv4Ttl, &TTL.into())?
        }
        if self.v6 {
            self.set(sockopt::Ipv6RecvHopLimit, &true)?;
        } else if !self.raw {
            self.set(sockopt::Ipv4RecvTtl, &true)?;
        }
        if !self.raw {
            if self.v6 { self.set(sockopt::Ipv6RecvErr, &true)? } else { self.set(sockopt::Ipv4RecvErr, &true)? }
        }
        if dont_fragment {
            if self.v6 { self.set(Ipv6Discover, &libc::IPV6_PMTUDISC_PROBE)? } else { self.set(Ipv4Discover, &libc::IP_PMTUDISC_PROBE)? }
        }
        Ok(())
    }

    fn set<O: SetSockOpt>(&self, option: O, value: &O::Val) -> io::Result<()> {
        Ok(setsockopt(&self.fd.as_fd(), option, value)?)
    }

    /// Packets that the kernel dropped because we did not read in time; 0 where it does not say.
    pub(crate) fn dropped(&self) -> u32 {
        getsockopt(&self.fd.as_fd(), MemoryInfo).map_or(0, |info| info[DROPS])
    }

    /// Bytes of memory that wait to be read; 0 where the kernel does not say.
    pub(crate) fn unread(&self) -> u32 {
        getsockopt(&self.fd.as_fd(), MemoryInfo).map_or(0, |info| info[0])
    }

    /// Sends one packet, now or not at all.
    pub(crate) fn send(&self, bytes: &[u8], to: IpAddr, sending: &Sending) -> io::Result<()> {
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        let bytes = [IoSlice::new(bytes)];
        let (ttl, tos, class) = (i32::from(sending.ttl), sending.tos, i32::from(sending.tos));
        if *sending == (Sending { ttl: TTL, tos: 0, source: None, interface: 0 }) {
            sendmsg(self.as_raw_fd(), &bytes, &[], MsgFlags::MSG_DONTWAIT, Some(&to))?;
            return Ok(());
        }
        let pinned = sending.source.is_some() || sending.interface != 0;
        let (info_v4, info_v6) = (packet_info_v4(sending), packet_info_v6(sending));
        let mut control = if self.v6 { vec![ControlMessage::Ipv6HopLimit(&ttl)] } else { vec![ControlMessage::Ipv4Ttl(&ttl)] };
        if tos != 0 {
            control.push(if self.v6 { ControlMessage::Ipv6TClass(&class) } else { ControlMessage::Ipv4Tos(&tos) });
        }
        if pinned {
            control.push(if self.v6 { ControlMessage::Ipv6PacketInfo(&info_v6) } else { ControlMessage::Ipv4PacketInfo(&info_v4) });
        }
        sendmsg(self.as_raw_fd(), &bytes, &control, MsgFlags::MSG_DONTWAIT, Some(&to))?;
        Ok(())
    }
}

fn packet_info_v4(sending: &Sending) -> libc::in_pktinfo {
    let source = match sending.source {
        Some(IpAddr::V4(source)) => u32::from_ne_bytes(source.octets()),
        _ => 0,
    };
    let none = libc::in_addr { s_addr: 0 };
    libc::in_pktinfo { ipi_ifindex: sending.interface as i32, ipi_spec_dst: libc::in_addr { s_addr: source }, ipi_addr: none }
}

fn packet_info_v6(sending: &Sending) -> libc::in6_pktinfo {
    let source = match sending.source {
        Some(IpAddr::V6(source)) => source.octets(),
        _ => [0; 16],
    };
    libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: source }, ipi6_ifindex: sending.interface }
}

// Classic BPF (Linux: Documentation/networking/filter.rst), so that others' packets never wake us.
const LOAD_BYTE: u16 = 0x30;
const LOAD_BYTE_X: u16 = 0x50;
const LOAD_HALF: u16 = 0x28;
const LOAD_HALF_X: u16 = 0x48;
const X_FROM_IP_HEADER: u16 = 0xb1;
const IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const WHOLE: u32 = u32::MAX;

/// Echo replies to our identifier, and errors, which are looked at in user space.
fn filter_v4(id: u16) -> [SockFilter; 10] {
    [
        SockFilter::new(X_FROM_IP_HEADER, 0, 0, 0),
        SockFilter::new(LOAD_BYTE_X, 0, 0, 0),
        SockFilter::new(IF_EQUAL, 0, 2, 0),
        SockFilter::new(LOAD_HALF_X, 0, 0, 4),
        SockFilter::new(IF_EQUAL, 3, 4, id.into()),
        SockFilter::new(IF_EQUAL, 2, 0, 3),
        SockFilter::new(IF_EQUAL, 1, 0, 11),
        SockFilter::new(IF_EQUAL, 0, 1, 12),
        SockFilter::new(RETURN, 0, 0, WHOLE),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// The same of ICMPv6, where the socket gets no IP header.
fn filter_v6(id: u16) -> [SockFilter; 10] {
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 0),
        SockFilter::new(IF_EQUAL, 0, 2, 129),
        SockFilter::new(LOAD_HALF, 0, 0, 4),
        SockFilter::new(IF_EQUAL, 4, 5, id.into()),
        SockFilter::new(IF_EQUAL, 3, 0, 1),
        SockFilter::new(IF_EQUAL, 2, 0, 2),
        SockFilter::new(IF_EQUAL, 1, 0, 3),
        SockFilter::new(IF_EQUAL, 0, 1, 4),
        SockFilter::new(RETURN, 0, 0, WHOLE),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}
