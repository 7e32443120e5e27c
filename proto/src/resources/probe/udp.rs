//! `udp:` of a probe.

use super::super::read::{At, Fields, Mistakes};
use super::assertion::regex;
use super::target_or;
use crate::v1::*;

/// The most that a datagram over IPv4 can hold.
const DATAGRAM_BYTES_MAX: usize = 65_507;

pub(super) fn udp(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> UdpCheck {
    UdpCheck {
        address: target_or(f, "address", mistakes),
        send: text_or_hex(f, "send", "sendHex", mistakes).unwrap_or_default(),
        expect: f.get("expect").and_then(|at| at.parsed(mistakes, regex)).unwrap_or_default(),
    }
}

/// Bytes as text or as hexadecimal digits.
pub(super) fn text_or_hex(f: &mut Fields<'_>, text: &'static str, hex: &'static str, mistakes: &mut Mistakes) -> Option<Vec<u8>> {
    let (text_at, hex_at) = (f.get(text), f.get(hex));
    if let (Some(_), Some(at)) = (&text_at, &hex_at) {
        mistakes.add(&at.path, at.place(), format!("both {text} and {hex} are given"), "keep one");
    }
    let bytes = |at: At<'_>, parse: fn(&str) -> Result<Vec<u8>, String>, mistakes: &mut Mistakes| at.parsed(mistakes, parse);
    match (text_at, hex_at) {
        (Some(at), _) => bytes(at, |t| sized(t.as_bytes().to_vec()), mistakes),
        (None, Some(at)) => bytes(at, |t| unhex(t).and_then(sized), mistakes),
        (None, None) => None,
    }
}

fn sized(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    if bytes.len() > DATAGRAM_BYTES_MAX { Err(format!("{} bytes are too many (want at most {DATAGRAM_BYTES_MAX})", bytes.len())) } else { Ok(bytes) }
}

/// `de ad be ef`, `deadbeef`
fn unhex(text: &str) -> Result<Vec<u8>, String> {
    let wrong = || format!("{text:?} is not hexadecimal (want pairs of 0-9, a-f, for example 00ff)");
    let digits: Vec<u32> = text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).ok_or_else(wrong)).collect::<Result<_, _>>()?;
    if digits.len() % 2 == 1 {
        return Err(wrong());
    }
    Ok(digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal() {
        assert_eq!((unhex("00 ff"), unhex("DEad"), unhex("")), (Ok(vec![0, 255]), Ok(vec![0xde, 0xad]), Ok(vec![])));
        assert!(unhex("0").is_err() && unhex("0g").is_err() && unhex("é0").is_err());
    }
}
