//! `icmp:` of a probe.

use super::super::read::{Fields, Mistakes};
use super::target_or;
use crate::units;
use crate::v1::*;

pub(super) fn icmp(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> IcmpCheck {
    IcmpCheck {
        host: target_or(f, "host", mistakes),
        count: f.int("count", 1..=100, mistakes).unwrap_or(1) as u32,
        packet_interval_us: f.duration("packetInterval", mistakes).unwrap_or(200_000),
        payload_bytes: f.int("payloadSize", 16..=9_000, mistakes).unwrap_or(56) as u32,
        ttl: f.int("ttl", 1..=255, mistakes).unwrap_or(64) as u32,
        max_loss_ppm: f.get("maxLoss").and_then(|at| at.parsed(mistakes, units::parse_percent_ppm)).unwrap_or(0),
    }
}
