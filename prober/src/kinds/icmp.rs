//! ICMP echo (ping) by surge-ping: over a raw socket where that is allowed, else over an unprivileged datagram socket.

use std::net::IpAddr;
use std::time::Duration;

use probity_proto::v1::{IcmpCheck, Reason};
use socket2::Type;
use surge_ping::{Client, Config, ICMP, PingIdentifier, PingSequence, SurgeError};
use tokio::time::Instant;

use super::{Attempt, Failure};

/// Lets everybody ping without being root.
const MEND: &str = "allow ping: sudo sysctl net.ipv4.ping_group_range=\"0 2147483647\"";

/// One socket per family, where the host lets us have it.
pub(crate) struct Sockets {
    v4: Option<Client>,
    v6: Option<Client>,
}

impl std::fmt::Debug for Sockets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sockets").field("v4", &self.v4.is_some()).field("v6", &self.v6.is_some()).finish()
    }
}

fn client(kind: ICMP) -> Option<Client> {
    [Type::RAW, Type::DGRAM].into_iter().find_map(|ty| Client::new(&Config::builder().kind(kind).sock_type_hint(ty).build()).ok())
}

impl Sockets {
    pub(crate) fn open() -> Sockets {
        Sockets { v4: client(ICMP::V4), v6: client(ICMP::V6) }
    }

    /// How to get the right that is missing; empty when it is there.
    pub(crate) fn hint(&self) -> String {
        if self.v4.is_some() { String::new() } else { MEND.to_owned() }
    }

    fn of(&self, ip: IpAddr) -> Option<&Client> {
        if ip.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }
}

pub(crate) async fn run(attempt: &mut Attempt<'_>, check: &IcmpCheck) -> Result<(), Failure> {
    let addresses = attempt.resolve(&check.host).await?;
    let Some(ip) = addresses.first().copied() else {
        return Err(Failure::new(Reason::DnsNoAddress, format!("{} has no address", check.host)));
    };
    attempt.peer = ip.to_string();
    let Some(client) = attempt.context.icmp.of(ip) else { return Err(Failure::new(Reason::NoPermission, MEND)) };
    let mut pinger = client.pinger(ip, PingIdentifier(rand::random())).await;
    attempt.phases.next("rtt");
    let payload: Vec<u8> = (0..check.payload_bytes).map(|_| rand::random()).collect();
    let mut rtts = Vec::new();
    let mut last = None;
    for i in 0..check.count.max(1) {
        if i > 0 {
            tokio::time::sleep(Duration::from_micros(check.packet_interval_us)).await;
        }
        // The last answer may come just before the run's own time-out, so that the reason is ours to tell.
        let left = attempt.deadline.saturating_duration_since(Instant::now()).saturating_sub(Duration::from_millis(5));
        pinger.timeout(left / (check.count.max(1) - i));
        match pinger.ping(PingSequence(i as u16), &payload).await {
            Ok((_, rtt)) => rtts.push(rtt),
            Err(e) => last = Some(e),
        }
    }
    let sent = u64::from(check.count.max(1));
    let lost_ppm = (sent - rtts.len() as u64) * 1_000_000 / sent;
    attempt.facts.push(("icmp.loss_ppm", lost_ppm.to_string()));
    if let Some(mean) = rtts.iter().sum::<Duration>().checked_div(rtts.len() as u32) {
        attempt.facts.push(("icmp.rtt_mean_us", mean.as_micros().to_string()));
    }
    match last {
        Some(SurgeError::IOError(e)) if rtts.is_empty() => {
            let reason = super::net::io_reason(&e, Reason::IcmpUnreachable);
            let reason = if reason == Reason::ConnectUnreachable { Reason::IcmpUnreachable } else { reason };
            Err(Failure::new(reason, format!("{ip}: {e}")))
        }
        Some(_) if rtts.is_empty() => Err(Failure::new(Reason::IcmpNoReply, format!("{ip}: no reply to {sent} echo requests"))),
        Some(_) if lost_ppm > u64::from(check.max_loss_ppm) => {
            Err(Failure::new(Reason::IcmpLoss, format!("{ip}: {} of {sent} echo requests lost", sent - rtts.len() as u64)))
        }
        _ => Ok(()),
    }
}
