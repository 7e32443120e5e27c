//! Phases of a run: one after the other without a gap, so that they add up to it. One that was not reached is not there.

use std::time::{Duration, Instant};

use probity_proto::v1::Reason;
use probity_session::Phase;

/// The clock of one attempt.
#[derive(Debug)]
pub(crate) struct Phases {
    start: Instant,
    current: Option<(&'static str, Instant)>,
    done: Vec<Phase>,
    /// What all phases are called for a while: on the way to a proxy, or for a token.
    alias: Option<&'static str>,
    /// What was taken off.
    waits: Duration,
}

impl Phases {
    pub(crate) fn start() -> Phases {
        Phases { start: Instant::now(), current: None, done: Vec::with_capacity(6), alias: None, waits: Duration::ZERO }
    }

    /// Ends the phase in hand and begins the next.
    pub(crate) fn next(&mut self, name: &'static str) {
        if self.alias.is_some() && self.current.is_some_and(|(current, _)| Some(current) == self.alias) {
            return;
        }
        let name = self.alias.unwrap_or(name);
        let now = Instant::now();
        // The first one begins with the run.
        let from = if self.close(now) { now } else { self.start };
        self.current = Some((name, from));
    }

    /// Ends the phase in hand, which took as long as was measured where it happened (the kernel's time stamps).
    pub(crate) fn measured(&mut self, duration: Duration) {
        if self.close(Instant::now())
            && let Some(phase) = self.done.last_mut()
        {
            phase.duration_us = duration.as_micros() as u64;
        }
    }

    /// Takes off what this host let the run wait just now: its clock stood still, so what follows still begins where the last phase ended.
    pub(crate) fn waited(&mut self, wait: Duration) {
        self.start += wait;
        if let Some((_, from)) = &mut self.current {
            *from += wait;
        }
        self.waits += wait;
    }

    /// All that was taken off.
    pub(crate) fn waits(&self) -> Duration {
        self.waits
    }

    /// Until what this returns is given back all phases are one of this name. Within another the outer one stays: the way to a token's
    /// server by a proxy is part of the token.
    pub(crate) fn alias(&mut self, name: Option<&'static str>) -> Option<&'static str> {
        let before = self.alias;
        self.alias = name.and(before).or(name);
        if let Some(name) = self.alias {
            self.next(name);
        }
        before
    }

    fn close(&mut self, now: Instant) -> bool {
        let Some((name, from)) = self.current.take() else { return false };
        let at = |t: Instant| t.duration_since(self.start).as_micros() as u64;
        let start_us = at(from);
        self.done.push(Phase { name, start_us, duration_us: at(now) - start_us });
        true
    }

    /// The reason of a time-out now, and the phase it fell into.
    pub(crate) fn timeout(&self) -> (Reason, &'static str) {
        let name = self.current.map_or("start", |(name, _)| name);
        let reason = match name {
            "resolve" => Reason::DnsTimeout,
            "connect" => Reason::ConnectTimeout,
            "tls" => Reason::TlsTimeout,
            "request" => Reason::RequestTimeout,
            "transfer" => Reason::TransferTimeout,
            "rtt" => Reason::IcmpNoReply,
            "proxy" => Reason::ProxyError,
            "auth" => Reason::AuthError,
            _ => Reason::ResponseTimeout,
        };
        (reason, name)
    }

    /// How long it took, and its phases.
    pub(crate) fn finish(&mut self) -> (Duration, Vec<Phase>) {
        self.close(Instant::now());
        let phases = std::mem::take(&mut self.done);
        let us = phases.last().map_or(0, |p| p.start_us + p.duration_us);
        (Duration::from_micros(us), phases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_names_for_a_while_the_outer_one_stays() {
        let mut phases = Phases::start();
        phases.next("resolve");
        let before = phases.alias(Some("auth"));
        phases.next("connect");
        let within = phases.alias(Some("proxy"));
        phases.next("tls");
        assert_eq!(phases.timeout(), (Reason::AuthError, "auth"));
        phases.alias(within);
        phases.next("request");
        assert_eq!(phases.timeout(), (Reason::AuthError, "auth"));
        phases.alias(before);
        phases.next("transfer");
        let names: Vec<&str> = phases.finish().1.into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["resolve", "auth", "transfer"]);
    }
}
