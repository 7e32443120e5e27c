//! One packet of a trace by UDP or TCP: the kernel tells in the socket's error queue who refused it. No right is needed for that.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use probity_proto::v1::NetOptions;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, UdpSocket};

use super::packet::{self, Trouble};
use super::path::Heard;
use crate::kinds::net::bind;

/// Room for an error and who sent it.
const CONTROL_BYTES: usize = 256;

fn open(net: &NetOptions, to: IpAddr, ty: Type, protocol: Protocol, ttl: u32) -> io::Result<Socket> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, ty, Some(protocol))?;
    socket.set_nonblocking(true)?;
    bind(&socket, net, to)?;
    if to.is_ipv4() {
        socket.set_ttl_v4(ttl)?;
        setsockopt(&socket.as_fd(), sockopt::Ipv4RecvErr, &true)?;
    } else {
        socket.set_unicast_hops_v6(ttl)?;
        setsockopt(&socket.as_fd(), sockopt::Ipv6RecvErr, &true)?;
    }
    Ok(socket)
}

/// A datagram to a port where nobody should be: the target says so.
pub(super) async fn udp(net: &NetOptions, to: IpAddr, port: u16, ttl: u32) -> io::Result<Option<Heard>> {
    let socket = UdpSocket::from_std(open(net, to, Type::DGRAM, Protocol::UDP, ttl)?.into())?;
    socket.connect(SocketAddr::new(to, port)).await?;
    let sent = Instant::now();
    socket.send(b"probity trace").await?;
    let answered = socket.recv(&mut [0; 64]).await;
    let rtt = sent.elapsed();
    match answered {
        Ok(_) => Ok(Some(Heard { from: to, rtt, target: true, said: String::new() })),
        // An error that nobody is blamed for is this host's own.
        Err(e) => blamed(&socket)?.map_or(Err(e), |(trouble, from)| Ok(Some(Heard::error(trouble, from, to, rtt)))),
    }
}

/// The first packet of a connection: whether it is accepted or refused, the target has answered.
pub(super) async fn tcp(net: &NetOptions, to: IpAddr, port: u16, ttl: u32) -> io::Result<Option<Heard>> {
    let socket = open(net, to, Type::STREAM, Protocol::TCP, ttl)?;
    // For the error queue, once the other one is used up.
    let queue = socket.try_clone()?;
    let sent = Instant::now();
    let connected = TcpSocket::from_std_stream(socket.into()).connect(SocketAddr::new(to, port)).await;
    let rtt = sent.elapsed();
    match connected {
        Ok(_) => Ok(Some(Heard { from: to, rtt, target: true, said: String::new() })),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            let by_router = blamed(&queue)?.map(|(trouble, from)| Heard::error(trouble, from, to, rtt));
            Ok(by_router.or(Some(Heard { from: to, rtt, target: true, said: String::new() })))
        }
        Err(e) => blamed(&queue)?.map_or(Err(e), |(trouble, from)| Ok(Some(Heard::error(trouble, from, to, rtt)))),
    }
}

/// Who sent an ICMP error about this socket's packet, and which.
fn blamed(socket: &impl AsRawFd) -> io::Result<Option<(Trouble, IpAddr)>> {
    let mut buffer = [0; 256];
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let mut control = [0; CONTROL_BYTES];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = match recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
        Ok(message) => message,
        Err(nix::errno::Errno::EAGAIN) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    Ok(message.cmsgs().into_iter().flatten().find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(e, Some(from)) => {
            let from = IpAddr::V4(u32::from_be(from.sin_addr.s_addr).into());
            packet::trouble_v4(e.ee_type, e.ee_code, e.ee_info).map(|trouble| (trouble, from))
        }
        ControlMessageOwned::Ipv6RecvErr(e, Some(from)) => {
            packet::trouble_v6(e.ee_type, e.ee_code, e.ee_info).map(|trouble| (trouble, IpAddr::V6(from.sin6_addr.s6_addr.into())))
        }
        _ => None,
    }))
}
