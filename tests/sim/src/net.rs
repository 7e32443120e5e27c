//! Links between hosts: delay, loss, duplication, and blocked directions. Who sends decides what is sent again.

use std::collections::BTreeSet;

use crate::report::Counts;
use crate::rng::Rng;

/// A host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    Member(usize),
    Prober(usize),
    Client(usize),
}

/// What the network is like now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) delay_us: (u64, u64),
    pub(crate) loss_ppm: u64,
    pub(crate) duplicate_ppm: u64,
    /// Messages that take far longer than the others, and so are overtaken.
    pub(crate) late_ppm: u64,
    pub(crate) late_us: u64,
}

impl Weather {
    pub(crate) const FINE: Weather = Weather { delay_us: (200, 2_000), loss_ppm: 0, duplicate_ppm: 0, late_ppm: 0, late_us: 0 };
}

/// The network.
#[derive(Debug)]
pub(crate) struct Net {
    rng: Rng,
    pub(crate) weather: Weather,
    blocked: BTreeSet<(Host, Host)>,
}

impl Net {
    pub(crate) fn new(rng: Rng) -> Net {
        Net { rng, weather: Weather::FINE, blocked: BTreeSet::new() }
    }

    pub(crate) fn block(&mut self, from: Host, to: Host) {
        self.blocked.insert((from, to));
    }

    pub(crate) fn unblock(&mut self, from: Host, to: Host) {
        self.blocked.remove(&(from, to));
    }

    pub(crate) fn heal(&mut self) {
        self.blocked.clear();
        self.weather = Weather::FINE;
    }

    pub(crate) fn is_blocked(&self, from: Host, to: Host) -> bool {
        self.blocked.contains(&(from, to))
    }

    fn delay(&mut self, counts: &mut Counts) -> u64 {
        let (from, to) = self.weather.delay_us;
        let mut delay = self.rng.between(from, to);
        if self.rng.chance(self.weather.late_ppm) {
            counts.add("message late, overtaken");
            delay += self.rng.between(0, self.weather.late_us);
        }
        delay
    }

    /// Delays of the copies of a message that arrive.
    pub(crate) fn send(&mut self, from: Host, to: Host, counts: &mut Counts) -> Vec<u64> {
        if self.is_blocked(from, to) {
            counts.add("message cut off by a partition");
            return Vec::new();
        }
        if self.rng.chance(self.weather.loss_ppm) {
            counts.add("message lost");
            return Vec::new();
        }
        let mut copies = vec![self.delay(counts)];
        if self.rng.chance(self.weather.duplicate_ppm) {
            counts.add("message duplicated");
            copies.push(self.delay(counts));
        }
        copies
    }

    /// Delay of a message in a stream, where a loss is only a delay; none when the stream breaks.
    pub(crate) fn stream(&mut self, from: Host, to: Host, counts: &mut Counts) -> Option<u64> {
        // A stream needs both directions: the acknowledgements go the other way.
        if self.is_blocked(from, to) || self.is_blocked(to, from) {
            counts.add("stream cut off by a partition");
            return None;
        }
        let again = if self.rng.chance(self.weather.loss_ppm) { 200_000 } else { 0 };
        Some(self.delay(counts) + again)
    }
}
