//! What a run's events add up to: loss, round trips, jitter (RFC 3550), duplicates, reordering (RFC 4737). Integers in nanoseconds.

use std::net::IpAddr;
use std::time::Duration;

use probity_proto::v1::{IcmpCheck, Reason};

use super::super::Failure;
use super::engine::{Event, Stamps, What};
use super::packet::Trouble;

/// The packets of one run.
#[derive(Debug, Default)]
pub(super) struct Stats {
    packets: Vec<Packet>,
    pub(super) duplicates: u32,
    pub(super) reordered: u32,
    highest: Option<u32>,
    first_stamps: Option<Stamps>,
    trouble: Option<(Trouble, IpAddr)>,
    /// Interarrival jitter times 16, as RFC 3550 (A.8) keeps it.
    jitter_x16_ns: u64,
    last_rtt_ns: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Packet {
    rtt_ns: Option<u64>,
    failed: bool,
}

impl Stats {
    pub(super) fn sent(&mut self) {
        self.packets.push(Packet::default());
    }

    pub(super) fn hear(&mut self, event: &Event) {
        let Some(packet) = self.packets.get_mut(event.index as usize) else { return };
        match event.what {
            What::Reply { .. } if packet.rtt_ns.is_some() => self.duplicates += 1,
            What::Reply { rtt, stamps } => {
                let rtt_ns = rtt.as_nanos() as u64;
                packet.rtt_ns = Some(rtt_ns);
                self.first_stamps.get_or_insert(stamps);
                // RFC 4737, section 3: one that comes after a later one.
                if self.highest.is_some_and(|h| h > event.index) {
                    self.reordered += 1;
                }
                self.highest = self.highest.max(Some(event.index));
                // The difference of two transit times is that of the round trips.
                if let Some(last) = self.last_rtt_ns.replace(rtt_ns) {
                    self.jitter_x16_ns = (self.jitter_x16_ns + last.abs_diff(rtt_ns)).saturating_sub((self.jitter_x16_ns + 8) / 16);
                }
            }
            What::Trouble { trouble, .. } => {
                packet.failed = true;
                self.trouble.get_or_insert((trouble, event.from));
            }
        }
    }

    /// Whether nothing more is awaited.
    pub(super) fn settled(&self) -> bool {
        self.packets.iter().all(|p| p.rtt_ns.is_some() || p.failed)
    }

    /// The trouble that somebody reported, once it alone is more than may be lost.
    pub(super) fn hopeless(&self, check: &IcmpCheck) -> Option<Failure> {
        let failed = self.packets.iter().filter(|p| p.failed && p.rtt_ns.is_none()).count() as u64;
        let (trouble, from) = self.trouble?;
        let limit = u64::from(check.max_loss_ppm) * u64::from(check.count.max(1));
        if failed == 0 || failed * 1_000_000 <= limit { None } else { Some(said(trouble, from)) }
    }

    pub(super) fn received(&self) -> u64 {
        self.packets.iter().filter(|p| p.rtt_ns.is_some()).count() as u64
    }

    fn rtts_ns(&self) -> Vec<u64> {
        let mut rtts: Vec<u64> = self.packets.iter().filter_map(|p| p.rtt_ns).collect();
        rtts.sort_unstable();
        rtts
    }

    /// The mean round trip, where there was one.
    pub(super) fn mean(&self) -> Option<Duration> {
        let rtts = self.rtts_ns();
        (!rtts.is_empty()).then(|| Duration::from_nanos(rtts.iter().sum::<u64>() / rtts.len() as u64))
    }

    fn jitter_ns(&self) -> u64 {
        self.jitter_x16_ns / 16
    }

    pub(super) fn facts(&self) -> Vec<(&'static str, String)> {
        let sent = self.packets.len() as u64;
        let mut facts = vec![("icmp.sent", sent.to_string()), ("icmp.received", self.received().to_string())];
        if let (Some((min, mean, p95, max)), Some(stamps)) = (summary(&self.rtts_ns()), self.first_stamps) {
            facts.push(("icmp.rtt_min_ns", min.to_string()));
            facts.push(("icmp.rtt_mean_ns", mean.to_string()));
            facts.push(("icmp.rtt_p95_ns", p95.to_string()));
            facts.push(("icmp.rtt_max_ns", max.to_string()));
            if sent > 1 {
                facts.push(("icmp.jitter_ns", self.jitter_ns().to_string()));
            }
            facts.extend(stamps.ttl.map(|ttl| ("icmp.reply_ttl", ttl.to_string())));
            let stamps = match (stamps.transmit_by_kernel, stamps.receive_by_kernel) {
                (true, true) => "kernel",
                (false, true) => "kernel_receive",
                _ => "user",
            };
            facts.push(("icmp.stamps", stamps.to_owned()));
        }
        for (name, count) in [("icmp.duplicates", self.duplicates), ("icmp.reordered", self.reordered)] {
            if count > 0 {
                facts.push((name, count.to_string()));
            }
        }
        facts
    }

    /// Whether the run was good.
    pub(super) fn judge(&self, check: &IcmpCheck, to: IpAddr) -> Result<(), Failure> {
        let sent = self.packets.len() as u64;
        let lost = sent - self.received();
        if self.received() == 0 {
            return Err(self.trouble.map_or_else(
                || Failure::new(Reason::IcmpNoReply, format!("{to}: no reply to {sent} echo request{}", if sent == 1 { "" } else { "s" })),
                |(trouble, from)| said(trouble, from),
            ));
        }
        if lost * 1_000_000 > u64::from(check.max_loss_ppm) * sent {
            let percent = probity_proto::units::decimal(u64::from(check.max_loss_ppm), 10_000);
            return Err(Failure::new(Reason::IcmpLoss, format!("{to}: {lost} of {sent} echo requests lost, want at most {percent}%")));
        }
        let Some((min, mean, p95, max)) = summary(&self.rtts_ns()) else { return Ok(()) };
        for (name, ns, limit_us) in
            [("min", min, check.max_rtt_min_us), ("mean", mean, check.max_rtt_mean_us), ("p95", p95, check.max_rtt_p95_us), ("max", max, check.max_rtt_max_us)]
        {
            over(Reason::IcmpRtt, to, &format!("{name} round trip"), ns, limit_us)?;
        }
        over(Reason::IcmpJitter, to, "jitter", self.jitter_ns(), check.max_jitter_us)?;
        if check.no_duplicates && self.duplicates > 0 {
            return Err(Failure::new(Reason::IcmpDuplicate, format!("{to}: {} duplicate replies", self.duplicates)));
        }
        if check.no_reordering && self.reordered > 0 {
            return Err(Failure::new(Reason::IcmpReordered, format!("{to}: {} replies came after later ones", self.reordered)));
        }
        Ok(())
    }
}

/// Min, mean, p95 (nearest rank) and max of what is sorted.
fn summary(sorted: &[u64]) -> Option<(u64, u64, u64, u64)> {
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let rank = (sorted.len() * 95).div_ceil(100).max(1);
    Some((min, sorted.iter().sum::<u64>() / sorted.len() as u64, sorted[rank - 1], max))
}

/// 0 = no limit.
fn over(reason: Reason, to: IpAddr, what: &str, ns: u64, limit_us: u64) -> Result<(), Failure> {
    if limit_us == 0 || ns <= limit_us * 1_000 {
        return Ok(());
    }
    let limit = probity_proto::units::format_duration(limit_us);
    Err(Failure::new(reason, format!("{to}: {what} of {}ms, want at most {limit}", probity_proto::units::decimal(ns / 1_000, 1_000))))
}

/// What a router or host said of a packet.
fn said(trouble: Trouble, from: IpAddr) -> Failure {
    match trouble {
        Trouble::Unreachable(what) => Failure::new(Reason::IcmpUnreachable, format!("{from} says: {what}")),
        Trouble::TooBig(0) => Failure::new(Reason::IcmpTooBig, format!("{from} says: too big for the next link")),
        Trouble::TooBig(mtu) => Failure::new(Reason::IcmpTooBig, format!("{from} says: too big for the next link, whose MTU is {mtu}")),
        Trouble::TtlExceeded => Failure::new(Reason::IcmpTtlExceeded, format!("{from} says: time to live exceeded")),
        Trouble::BadHeader => Failure::new(Reason::IcmpUnreachable, format!("{from} says: parameter problem")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(rtts_us: &[(u32, u64)]) -> Stats {
        let mut stats = Stats::default();
        (0..4).for_each(|_| stats.sent());
        for (index, us) in rtts_us {
            let stamps = Stamps { transmit_by_kernel: true, receive_by_kernel: true, ttl: Some(64) };
            stats.hear(&Event { index: *index, from: [10, 0, 0, 1].into(), what: What::Reply { rtt: Duration::from_micros(*us), stamps } });
        }
        stats
    }

    fn reason(stats: &Stats, check: IcmpCheck) -> Reason {
        stats.judge(&IcmpCheck { count: 4, ..check }, [10, 0, 0, 1].into()).map_or_else(|f| f.reason, |()| Reason::Good)
    }

    #[test]
    fn limits() {
        let check = IcmpCheck::default;
        let all = heard(&[(0, 100), (1, 200), (2, 300), (3, 400)]);
        let cases = [
            (check(), Reason::Good),
            (IcmpCheck { max_rtt_min_us: 99, ..check() }, Reason::IcmpRtt),
            (IcmpCheck { max_rtt_min_us: 100, max_rtt_mean_us: 250, max_rtt_p95_us: 400, max_rtt_max_us: 400, ..check() }, Reason::Good),
            (IcmpCheck { max_rtt_mean_us: 249, ..check() }, Reason::IcmpRtt),
            (IcmpCheck { max_rtt_p95_us: 399, ..check() }, Reason::IcmpRtt),
            (IcmpCheck { max_rtt_max_us: 399, ..check() }, Reason::IcmpRtt),
            (IcmpCheck { max_jitter_us: 1, ..check() }, Reason::IcmpJitter),
            (IcmpCheck { max_jitter_us: 100, no_duplicates: true, no_reordering: true, ..check() }, Reason::Good),
        ];
        for (check, want) in cases {
            assert_eq!(reason(&all, check.clone()), want, "{check:?}");
        }
        let three = heard(&[(0, 100), (2, 100), (1, 100), (1, 130)]);
        assert_eq!((three.duplicates, three.reordered, three.settled()), (1, 1, false));
        assert_eq!(reason(&three, check()), Reason::IcmpLoss);
        assert_eq!(reason(&three, IcmpCheck { max_loss_ppm: 250_000, ..check() }), Reason::Good);
        assert_eq!(reason(&three, IcmpCheck { max_loss_ppm: 250_000, no_duplicates: true, ..check() }), Reason::IcmpDuplicate);
        assert_eq!(reason(&three, IcmpCheck { max_loss_ppm: 250_000, no_reordering: true, ..check() }), Reason::IcmpReordered);
        assert_eq!(reason(&heard(&[]), check()), Reason::IcmpNoReply);
    }

    #[test]
    fn jitter_is_that_of_rfc_3550() {
        // J += (|D| - J) / 16: 100/16 = 6.25, then (100 - 6.25) / 16 more, and again.
        let mut stats = heard(&[(0, 100), (1, 200), (2, 100), (3, 200)]);
        let expected = [6_250.0, 12_109.0, 17_602.0];
        assert!((stats.jitter_ns() as f64 - expected[2]).abs() < 3.0, "{}", stats.jitter_ns());
        stats.hear(&Event { index: 9, from: [10, 0, 0, 1].into(), what: What::Trouble { trouble: Trouble::TtlExceeded, rtt: Duration::ZERO } });
        assert!(stats.trouble.is_none(), "a packet that was never sent");
    }

    #[test]
    fn trouble_ends_a_run_when_it_is_too_much() {
        let mut stats = heard(&[(0, 100)]);
        let check = IcmpCheck { count: 4, max_loss_ppm: 250_000, ..IcmpCheck::default() };
        let trouble =
            |index| Event { index, from: [10, 0, 0, 9].into(), what: What::Trouble { trouble: Trouble::Unreachable("host unreachable"), rtt: Duration::ZERO } };
        stats.hear(&trouble(1));
        assert!(stats.hopeless(&check).is_none(), "a quarter may be lost");
        stats.hear(&trouble(2));
        let failure = stats.hopeless(&check).expect("half is lost");
        assert_eq!((failure.reason, failure.message.as_str()), (Reason::IcmpUnreachable, "10.0.0.9 says: host unreachable"));
    }
}
