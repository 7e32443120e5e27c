//! `icmp:` of a probe.

use super::super::read::{At, Fields, Mistakes};
use super::target_or;
use crate::units;
use crate::v1::*;

/// More packets in one run are a load test.
const COUNT_MAX: u64 = 1_000;

pub(super) fn icmp(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> IcmpCheck {
    let trace = f.get("trace").and_then(|at| trace(&at, mistakes));
    let rtt = f.get("maxRtt").and_then(|at| at.fields(mistakes)).map(|mut rtt| {
        let mut limit = |key| rtt.duration(key, mistakes).unwrap_or(0);
        let limits = (limit("min"), limit("mean"), limit("p95"), limit("max"));
        rtt.finish(mistakes);
        limits
    });
    let (max_rtt_min_us, max_rtt_mean_us, max_rtt_p95_us, max_rtt_max_us) = rtt.unwrap_or_default();
    IcmpCheck {
        host: target_or(f, "host", mistakes),
        count: f.int("count", 1..=COUNT_MAX, mistakes).unwrap_or(1) as u32,
        packet_interval_us: f.duration("packetInterval", mistakes).unwrap_or(200_000),
        payload_bytes: f.int("payloadSize", 16..=9_000, mistakes).unwrap_or(56) as u32,
        ttl: f.int("ttl", 1..=255, mistakes).unwrap_or(64) as u32,
        max_loss_ppm: f.get("maxLoss").and_then(|at| at.parsed(mistakes, units::parse_percent_ppm)).unwrap_or(0),
        tos: tos(f, mistakes),
        max_rtt_min_us,
        max_rtt_mean_us,
        max_rtt_p95_us,
        max_rtt_max_us,
        max_jitter_us: f.duration("maxJitter", mistakes).unwrap_or(0),
        dont_fragment: f.flag("dontFragment", mistakes).unwrap_or(false),
        no_duplicates: f.flag("noDuplicates", mistakes).unwrap_or(false),
        no_reordering: f.flag("noReordering", mistakes).unwrap_or(false),
        trace,
    }
}

/// `true`, or how.
fn trace(at: &At<'_>, mistakes: &mut Mistakes) -> Option<TraceOptions> {
    let mut options = TraceOptions { max_hops: 30, queries: 3, wait_us: 1_000_000, ..TraceOptions::default() };
    match at.text(&mut Mistakes::default()).as_deref() {
        Some("true") => return Some(options),
        Some("false") => return None,
        Some(other) => {
            mistakes.add(&at.path, at.place(), format!("{other:?} is no trace"), "want true, false or {protocol, port, maxHops, queries, wait}");
            return None;
        }
        None => {}
    }
    let mut f = at.fields(mistakes)?;
    let protocols = [("icmp", TraceProtocol::Icmp), ("udp", TraceProtocol::Udp), ("tcp", TraceProtocol::Tcp)];
    let protocol = f.choice("protocol", &protocols, mistakes).unwrap_or_default();
    options.protocol = protocol.into();
    // The port that traceroute has always begun with; a web server's.
    let default_port = if protocol == TraceProtocol::Tcp { 443 } else { 33_434 };
    options.port = f.int("port", 1..=65_000, mistakes).unwrap_or(default_port) as u32;
    options.max_hops = f.int("maxHops", 1..=64, mistakes).unwrap_or(30) as u32;
    options.queries = f.int("queries", 1..=8, mistakes).unwrap_or(3) as u32;
    options.wait_us = f.duration("wait", mistakes).unwrap_or(options.wait_us);
    if !(10_000..=10_000_000).contains(&options.wait_us) {
        mistakes.add(&f.path_of("wait"), f.place(), format!("{} is out of range", units::format_duration(options.wait_us)), "want 10ms to 10s");
    }
    f.finish(mistakes);
    Some(options)
}

/// The byte by its whole (`tos`) or by its upper six bits (`dscp`).
fn tos(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> u32 {
    let whole = f.int("tos", 0..=255, mistakes);
    let Some(at) = f.get("dscp") else { return whole.unwrap_or(0) as u32 };
    if whole.is_some() {
        mistakes.add(&at.path, at.place(), "both tos and dscp are given", "keep one: dscp is the upper six bits of tos");
    }
    at.parsed(mistakes, dscp).unwrap_or(0) << 2
}

/// A code point by number or name (RFC 2474, 2597, 3246, 5865, 8622).
fn dscp(text: &str) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    let digit = |byte: u8, low: u8, high: u8| (b'0' + low..=b'0' + high).contains(&byte).then(|| u32::from(byte - b'0'));
    let found = match lower.as_bytes() {
        b"ef" => Some(46),
        b"va" => Some(44),
        b"le" => Some(1),
        [b'c', b's', class] => digit(*class, 0, 7).map(|c| c * 8),
        [b'a', b'f', class, drop] => digit(*class, 1, 4).zip(digit(*drop, 1, 3)).map(|(c, d)| c * 8 + d * 2),
        _ => lower.parse().ok().filter(|n| *n < 64),
    };
    found.ok_or_else(|| format!("{text:?} is no DSCP (want 0 to 63, cs0 to cs7, af11 to af43, ef, va or le)"))
}

/// Whether the packets of a run can all be sent before it times out.
pub(super) fn fits(check: &IcmpCheck, timeout_us: u64) -> Result<(), String> {
    let last_us = check.packet_interval_us.saturating_mul(u64::from(check.count.saturating_sub(1)));
    if last_us < timeout_us {
        return Ok(());
    }
    let (last, timeout) = (units::format_duration(last_us), units::format_duration(timeout_us));
    Err(format!("the last of {} packets is sent after {last}, and the run's time-out is {timeout}", check.count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_points() {
        for (text, value) in [("0", 0), ("46", 46), ("EF", 46), ("cs5", 40), ("af41", 34), ("af13", 14), ("le", 1)] {
            assert_eq!(dscp(text), Ok(value), "{text}");
        }
        for text in ["64", "cs8", "af51", "af14", "af4", "af411", "", "-1", "x"] {
            assert!(dscp(text).is_err(), "{text}");
        }
    }
}
