//! UDP: one datagram out, and one that comes back. Silence is bad: whether a datagram arrived only its answer can tell.

use std::time::Duration;

use probity_proto::v1::{Reason, UdpCheck};
use std::net::SocketAddr;
use tokio::time::timeout_at;

use super::{Attempt, Failure, net};

/// No datagram is larger.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// The run gives up that much before its time-out, so that the reason is ours to tell.
const SPARE: Duration = Duration::from_millis(5);

pub(crate) async fn run(attempt: &mut Attempt<'_>, check: &UdpCheck) -> Result<(), Failure> {
    let (host, port) = net::host_port(&check.address)?;
    let peer = SocketAddr::new(attempt.one_address(host).await?, port);
    let expected = attempt.context.patterns.regex(&check.expect)?;
    attempt.phases.next("first_byte");
    let socket = attempt.udp(peer).await?;
    // Refused: a host without that port says so by ICMP.
    let io = |e: std::io::Error| Failure::new(net::io_reason(&e, Reason::ConnectError), format!("{peer}: {e}"));
    socket.send(&check.send).await.map_err(io)?;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    let mut others = 0u32;
    let until = attempt.deadline.checked_sub(SPARE).unwrap_or(attempt.deadline);
    let answered = timeout_at(until, async {
        loop {
            let n = socket.recv(&mut buffer).await.map_err(io)?;
            if expected.is_match(&buffer[..n]) {
                return Ok(n);
            }
            others = others.saturating_add(1);
        }
    });
    match answered.await {
        Ok(Ok(n)) => {
            attempt.fact("udp.answer_bytes", n.to_string());
            Ok(())
        }
        Ok(Err(failure)) => Err(failure),
        Err(_) if others > 0 => Err(Failure::new(Reason::ExpectMismatch, format!("{others} answers, none of which matches {:?}", check.expect))),
        // The frame's own message says how long that was.
        Err(_) => std::future::pending().await,
    }
}
