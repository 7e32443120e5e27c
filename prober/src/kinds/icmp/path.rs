//! The way to a target, hop by hop: packets whose time to live ends one router further each, and who says so (RFC 792, RFC 4443).
//!
//! A few hops are asked at once, so that a trace takes little longer than its slowest window; it ends where the target answers, or
//! where a whole window is silent.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use probity_proto::v1::{NetOptions, Reason, TraceOptions, TraceProtocol};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::super::Failure;
use super::engine::{Engine, What};
use super::packet::Trouble;
use super::socket::Sending;
use super::transport;

/// Hops that are asked at once; so many silent ones in a row end the trace.
const WINDOW: u32 = 5;
/// Between two packets to the same hop: routers limit how many errors they send.
const QUERY_INTERVAL: Duration = Duration::from_millis(50);
const PAYLOAD_BYTES: usize = 32;

/// A router on the way, or the target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hop {
    /// How many routers away, from 1.
    pub ttl: u32,
    /// Who answered: more than one where packets take several ways.
    pub hosts: Vec<IpAddr>,
    /// Packets sent.
    pub sent: u32,
    /// Answers.
    pub received: u32,
    /// The fastest of them.
    pub rtt_min_ns: u64,
    /// Their mean.
    pub rtt_mean_ns: u64,
    /// The slowest.
    pub rtt_max_ns: u64,
    /// What it said, if not that the time to live was over.
    pub said: String,
    /// The target itself.
    pub target: bool,
}

impl Hop {
    fn heard(&mut self, heard: &Heard) {
        if !self.hosts.contains(&heard.from) {
            self.hosts.push(heard.from);
        }
        let ns = heard.rtt.as_nanos() as u64;
        self.rtt_min_ns = if self.received == 0 { ns } else { self.rtt_min_ns.min(ns) };
        self.rtt_max_ns = self.rtt_max_ns.max(ns);
        let sum = self.rtt_mean_ns * u64::from(self.received) + ns;
        self.received += 1;
        self.rtt_mean_ns = sum / u64::from(self.received);
        self.target |= heard.target;
        if self.said.is_empty() {
            self.said.clone_from(&heard.said);
        }
    }

    /// `3 10.0.0.1 0.412ms`, `4 *`
    fn text(&self) -> String {
        if self.received == 0 {
            return format!("{} *", self.ttl);
        }
        let hosts: Vec<String> = self.hosts.iter().map(ToString::to_string).collect();
        let lost = if self.received < self.sent { format!(" {}/{} lost", self.sent - self.received, self.sent) } else { String::new() };
        let said = if self.said.is_empty() { String::new() } else { format!(" {}", self.said) };
        format!("{} {} {}ms{lost}{said}", self.ttl, hosts.join(","), probity_proto::units::decimal(self.rtt_mean_ns / 1_000, 1_000))
    }
}

/// A path in one line.
pub(super) fn text(path: &[Hop]) -> String {
    path.iter().map(Hop::text).collect::<Vec<_>>().join(", ")
}

/// An answer to one packet.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) from: IpAddr,
    pub(super) rtt: Duration,
    pub(super) target: bool,
    pub(super) said: String,
}

impl Heard {
    /// An ICMP error that somebody sent.
    pub(super) fn error(trouble: Trouble, from: IpAddr, target: IpAddr, rtt: Duration) -> Heard {
        let said = match trouble {
            Trouble::TtlExceeded => String::new(),
            // That is how a host says that a datagram arrived.
            Trouble::Unreachable("port unreachable") if from == target => String::new(),
            Trouble::Unreachable(what) => what.to_owned(),
            Trouble::TooBig(mtu) => format!("too big (MTU {mtu})"),
            Trouble::BadHeader => "parameter problem".to_owned(),
        };
        Heard { from, rtt, target: from == target && trouble != Trouble::TtlExceeded, said }
    }
}

/// Traces the way to an address.
pub(super) async fn trace(
    engine: Option<&Engine>,
    net: &NetOptions,
    to: IpAddr,
    sending: &Sending,
    options: &TraceOptions,
    until: Instant,
) -> Result<Vec<Hop>, Failure> {
    let mut path: Vec<Hop> = Vec::new();
    let mut first = 1;
    while first <= options.max_hops && Instant::now() < until {
        let last = (first + WINDOW - 1).min(options.max_hops);
        let end = until.min(Instant::now() + Duration::from_micros(options.wait_us) + QUERY_INTERVAL * options.queries);
        let mut window: Vec<Hop> = (first..=last).map(|ttl| Hop { ttl, ..Hop::default() }).collect();
        match (options.protocol(), engine) {
            (TraceProtocol::Icmp, Some(engine)) => by_icmp(engine, to, sending, options, &mut window, end).await?,
            (TraceProtocol::Icmp, None) => return Err(Failure::new(Reason::NoPermission, super::MEND)),
            _ => by_transport(net, to, options, &mut window, end).await?,
        }
        let reached = window.iter().position(|hop| hop.target);
        let ended = window.iter().position(|hop| !hop.said.is_empty());
        let silent = window.iter().all(|hop| hop.received == 0);
        window.truncate(reached.or(ended).map_or(window.len(), |i| i + 1));
        path.extend(window);
        if reached.is_some() || ended.is_some() || silent {
            break;
        }
        first = last + 1;
    }
    // Of the silence at the end one line is enough.
    while let [.., before, last] = path.as_slice()
        && before.received == 0
        && last.received == 0
    {
        path.pop();
    }
    Ok(path)
}

async fn by_icmp(engine: &Engine, to: IpAddr, sending: &Sending, options: &TraceOptions, window: &mut [Hop], end: Instant) -> Result<(), Failure> {
    let hops = window.len();
    let mut session = engine.session(hops * options.queries as usize);
    let mut awaited = 0;
    for query in 0..options.queries {
        for hop in window.iter_mut() {
            let sending = Sending { ttl: hop.ttl as u8, ..*sending };
            session.send(to, PAYLOAD_BYTES, &sending).await.map_err(|e| super::send_failure(&e, to, &sending))?;
            hop.sent += 1;
            awaited += 1;
        }
        // Listens meanwhile; after the last ones as long as is waited for.
        let pause = if query + 1 == options.queries { end } else { end.min(Instant::now() + QUERY_INTERVAL) };
        while awaited > 0
            && let Ok(Some(event)) = timeout_at(pause, session.inbox.recv()).await
        {
            awaited -= 1;
            let heard = match event.what {
                What::Reply { rtt, .. } => Heard { from: event.from, rtt, target: true, said: String::new() },
                What::Trouble { trouble, rtt } => Heard::error(trouble, event.from, to, rtt),
            };
            if let Some(hop) = window.get_mut(event.index as usize % hops) {
                hop.heard(&heard);
            }
        }
        if query + 1 < options.queries {
            tokio::time::sleep_until(pause).await;
        }
    }
    Ok(())
}

async fn by_transport(net: &NetOptions, to: IpAddr, options: &TraceOptions, window: &mut [Hop], end: Instant) -> Result<(), Failure> {
    let mut probes = FuturesUnordered::new();
    for query in 0..options.queries {
        for (i, hop) in window.iter_mut().enumerate() {
            hop.sent += 1;
            let ttl = hop.ttl;
            probes.push(async move {
                sleep(QUERY_INTERVAL * query).await;
                let wait = Duration::from_micros(options.wait_us);
                let heard = match options.protocol() {
                    TraceProtocol::Tcp => timeout(wait, transport::tcp(net, to, options.port as u16, ttl)).await,
                    // As traceroute does, each hop and packet another port, so that none is answered by a service.
                    _ => timeout(wait, transport::udp(net, to, (options.port + (ttl - 1) * options.queries + query) as u16, ttl)).await,
                };
                (i, heard.unwrap_or(Ok(None)))
            });
        }
    }
    while let Ok(Some((i, heard))) = timeout_at(end, probes.next()).await {
        let heard = heard.map_err(|e| Failure::new(super::net::io_reason(&e, Reason::IcmpUnreachable), format!("{to}: {e}")))?;
        if let (Some(heard), Some(hop)) = (heard, window.get_mut(i)) {
            hop.heard(&heard);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hops_add_up() {
        let from: IpAddr = [10, 0, 0, 1].into();
        let target: IpAddr = [10, 0, 0, 9].into();
        let mut hop = Hop { ttl: 2, sent: 3, ..Hop::default() };
        assert_eq!(hop.text(), "2 *");
        for us in [100, 300] {
            hop.heard(&Heard::error(Trouble::TtlExceeded, from, target, Duration::from_micros(us)));
        }
        assert_eq!((hop.rtt_min_ns, hop.rtt_mean_ns, hop.rtt_max_ns, hop.target), (100_000, 200_000, 300_000, false));
        assert_eq!(hop.text(), "2 10.0.0.1 0.2ms 1/3 lost");
        hop.heard(&Heard::error(Trouble::Unreachable("port unreachable"), target, target, Duration::from_micros(200)));
        assert!(hop.target && hop.said.is_empty());
        assert_eq!(text(&[hop, Hop { ttl: 3, ..Hop::default() }]), "2 10.0.0.1,10.0.0.9 0.2ms, 3 *");
        assert_eq!(Heard::error(Trouble::Unreachable("host unreachable"), from, target, Duration::ZERO).said, "host unreachable");
    }
}
