//! Echo messages as bytes: ICMP (RFC 792) and ICMPv6 (RFC 4443). Pure: no socket, no clock, and nothing that comes in makes it panic.
//!
//! The payload begins and ends with the packet's random 64-bit token. The head is what a router quotes of a packet that it gave up;
//! the tail is where the token stands in what the kernel loops back with a transmit stamp, however long the link's header was.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an echo message before its payload.
pub(crate) const HEADER_BYTES: usize = 8;
const TOKEN_BYTES: usize = 8;
const IPV4_HEADER_MIN: usize = 20;
const IPV6_HEADER: usize = 40;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_ICMPV6: u8 = 58;

/// The fields of an echo message that tell whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Echo {
    pub(crate) id: u16,
    pub(crate) sequence: u16,
    pub(crate) token: u64,
}

/// Why a packet did not get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// With the code's meaning.
    Unreachable(&'static str),
    /// Larger than a link on the way, whose MTU that is (0: not said).
    TooBig(u32),
    /// Its time to live ran out.
    TtlExceeded,
    /// A header that somebody could not use.
    BadHeader,
}

/// What came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// An echo reply.
    Reply(Echo),
    /// An error about an echo request to `to`. The token is missing where less than 16 bytes of it were quoted.
    Error { trouble: Trouble, to: IpAddr, id: u16, sequence: u16, token: Option<u64> },
}

/// An echo request. ICMPv6 checksums need the addresses: the kernel fills them in.
pub(crate) fn request(v6: bool, echo: Echo, payload_bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + payload_bytes);
    out.extend_from_slice(&[if v6 { 128 } else { 8 }, 0, 0, 0]);
    out.extend_from_slice(&echo.id.to_be_bytes());
    out.extend_from_slice(&echo.sequence.to_be_bytes());
    out.extend_from_slice(&echo.token.to_be_bytes());
    let filler = payload_bytes.saturating_sub(2 * TOKEN_BYTES);
    out.extend((0..filler).map(|i| i as u8));
    out.extend_from_slice(&echo.token.to_be_bytes());
    if !v6 {
        let sum = checksum(&out).to_be_bytes();
        out[2..4].copy_from_slice(&sum);
    }
    out
}

/// The internet checksum (RFC 1071): 0 over a message that holds its own right one.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    let mut chunks = bytes.chunks_exact(4);
    for chunk in &mut chunks {
        sum += u64::from(u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
    }
    let rest = chunks.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum += u64::from(u32::from_be_bytes(last));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn token_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + TOKEN_BYTES)?.try_into().ok()?))
}

/// The token at the end of a packet, which the kernel loops back with a transmit stamp.
pub(crate) fn token_at_end(bytes: &[u8]) -> Option<u64> {
    token_at(bytes, bytes.len().checked_sub(TOKEN_BYTES)?)
}

/// The ICMP message inside an IPv4 packet, and the time to live it arrived with.
pub(crate) fn inside_v4(packet: &[u8]) -> Option<(&[u8], u8)> {
    let first = *packet.first()?;
    let header = usize::from(first & 0xf) * 4;
    if first >> 4 != 4 || header < IPV4_HEADER_MIN || *packet.get(9)? != PROTOCOL_ICMP {
        return None;
    }
    Some((packet.get(header..)?, *packet.get(8)?))
}

/// An ICMP message; `check` where the kernel has not verified its checksum.
pub(crate) fn parse_v4(message: &[u8], check: bool) -> Option<Heard> {
    let (kind, code) = (*message.first()?, *message.get(1)?);
    if check && checksum(message) != 0 {
        return None;
    }
    if kind == 0 && code == 0 {
        return reply(message).map(Heard::Reply);
    }
    let trouble = trouble_v4(kind, code, u16_at(message, 6)?.into())?;
    let quoted = message.get(HEADER_BYTES..)?;
    let (inner, _) = inside_v4(quoted)?;
    let to = Ipv4Addr::from(u32_at(quoted, 16)?);
    error(trouble, to.into(), 8, inner)
}

/// An ICMPv6 message, whose checksum the kernel has verified.
pub(crate) fn parse_v6(message: &[u8]) -> Option<Heard> {
    let (kind, code) = (*message.first()?, *message.get(1)?);
    if kind == 129 && code == 0 {
        return reply(message).map(Heard::Reply);
    }
    let trouble = trouble_v6(kind, code, u32_at(message, 4)?)?;
    let quoted = message.get(HEADER_BYTES..)?;
    // Our own requests have no extension headers.
    if quoted.first()? >> 4 != 6 || *quoted.get(6)? != PROTOCOL_ICMPV6 {
        return None;
    }
    let to: [u8; 16] = quoted.get(24..IPV6_HEADER)?.try_into().ok()?;
    error(trouble, Ipv6Addr::from(to).into(), 128, quoted.get(IPV6_HEADER..)?)
}

fn reply(message: &[u8]) -> Option<Echo> {
    Some(Echo { id: u16_at(message, 4)?, sequence: u16_at(message, 6)?, token: token_at(message, HEADER_BYTES)? })
}

/// An error about the echo request `inner`, of which perhaps only the header was quoted.
pub(crate) fn error(trouble: Trouble, to: IpAddr, request_type: u8, inner: &[u8]) -> Option<Heard> {
    if *inner.first()? != request_type {
        return None;
    }
    Some(Heard::Error { trouble, to, id: u16_at(inner, 4)?, sequence: u16_at(inner, 6)?, token: token_at(inner, HEADER_BYTES) })
}

/// What an ICMP error says (RFC 792, RFC 1122 section 3.2.2.1, RFC 1191).
pub(crate) fn trouble_v4(kind: u8, code: u8, mtu: u32) -> Option<Trouble> {
    match (kind, code) {
        (3, 4) => Some(Trouble::TooBig(mtu)),
        (3, code) => Some(Trouble::Unreachable(match code {
            0 => "network unreachable",
            1 => "host unreachable",
            2 => "protocol unreachable",
            3 => "port unreachable",
            5 => "source route failed",
            6 => "network unknown",
            7 => "host unknown",
            9 | 10 | 13 => "administratively prohibited",
            11 | 12 => "unreachable for this type of service",
            _ => "unreachable",
        })),
        (11, _) => Some(Trouble::TtlExceeded),
        (12, _) => Some(Trouble::BadHeader),
        _ => None,
    }
}

/// What an ICMPv6 error says (RFC 4443, section 3).
pub(crate) fn trouble_v6(kind: u8, code: u8, mtu: u32) -> Option<Trouble> {
    match kind {
        1 => Some(Trouble::Unreachable(match code {
            0 => "no route",
            1 => "administratively prohibited",
            2 => "beyond the scope of the source address",
            3 => "address unreachable",
            4 => "port unreachable",
            5 => "source address failed policy",
            6 => "route rejected",
            _ => "unreachable",
        })),
        2 => Some(Trouble::TooBig(mtu)),
        3 => Some(Trouble::TtlExceeded),
        4 => Some(Trouble::BadHeader),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ECHO: Echo = Echo { id: 0x1234, sequence: 7, token: 0x0102_0304_0506_0708 };

    fn v4(inner: &[u8], to: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 63, 1, 0, 0, 10, 0, 0, 1];
        packet.extend_from_slice(&to);
        packet.extend_from_slice(inner);
        packet
    }

    fn error_v4(kind: u8, code: u8, mtu: u16, quoted: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, code, 0, 0, 0, 0];
        message.extend_from_slice(&mtu.to_be_bytes());
        message.extend_from_slice(quoted);
        let sum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
        message
    }

    #[test]
    fn a_reply_is_a_request_with_another_type() {
        let mut message = request(false, ECHO, 56);
        assert_eq!((message.len(), checksum(&message)), (64, 0));
        message[0] = 0;
        assert_eq!(parse_v4(&message, true), None, "its checksum is that of the request");
        assert_eq!(parse_v4(&message, false), Some(Heard::Reply(ECHO)));
        assert_eq!(token_at_end(&message), Some(ECHO.token));
        let mut message = request(true, ECHO, 16);
        message[0] = 129;
        assert_eq!(parse_v6(&message), Some(Heard::Reply(ECHO)));
    }

    #[test]
    fn errors_quote_the_request() {
        let quoted = v4(&request(false, ECHO, 56), [192, 0, 2, 1]);
        let to: IpAddr = [192, 0, 2, 1].into();
        for (kind, code, mtu, trouble) in [
            (3, 1, 0, Trouble::Unreachable("host unreachable")),
            (3, 4, 1_400, Trouble::TooBig(1_400)),
            (11, 0, 0, Trouble::TtlExceeded),
            (12, 0, 0, Trouble::BadHeader),
        ] {
            let whole = error_v4(kind, code, mtu, &quoted);
            assert_eq!(parse_v4(&whole, true), Some(Heard::Error { trouble, to, id: ECHO.id, sequence: ECHO.sequence, token: Some(ECHO.token) }));
            let short = error_v4(kind, code, mtu, &quoted[..28]);
            assert_eq!(parse_v4(&short, true), Some(Heard::Error { trouble, to, id: ECHO.id, sequence: ECHO.sequence, token: None }));
        }
        // Somebody else's UDP packet, and our own request as the loopback interface shows it.
        let mut udp = quoted.clone();
        udp[9] = 17;
        assert_eq!(parse_v4(&error_v4(3, 3, 0, &udp), true), None);
        assert_eq!(parse_v4(&request(false, ECHO, 56), true), None);
    }

    proptest! {
        #[test]
        fn nothing_from_outside_panics(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = parse_v4(&bytes, false);
            let _ = parse_v6(&bytes);
            let _ = inside_v4(&bytes);
            let _ = token_at_end(&bytes);
            let _ = parse_v4(&error_v4(11, 0, 0, &bytes), true);
        }

        #[test]
        fn any_changed_bit_is_noticed(token in any::<u64>(), size in 16usize..200, bit in any::<prop::sample::Index>()) {
            let mut message = request(false, Echo { token, ..ECHO }, size);
            let bit = bit.index(message.len() * 8);
            message[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(checksum(&message), 0);
        }
    }
}
