//! TCP: connect; TLS if asked for; one exchange if asked for.

use probity_proto::v1::{Reason, TcpCheck};
use regex::bytes::Regex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Attempt, Failure, net};

/// Bytes that are read in search of what is expected.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

pub(crate) async fn run(attempt: &mut Attempt<'_>, check: &TcpCheck) -> Result<(), Failure> {
    let (host, port) = net::host_port(&check.address)?;
    let addresses = attempt.resolve(host).await?;
    let stream = attempt.connect(&addresses, port).await?;
    match &check.tls {
        Some(options) => {
            let stream = attempt.tls(stream, host, options, &[]).await?;
            exchange(attempt, stream, check).await
        }
        None => exchange(attempt, stream, check).await,
    }
}

async fn exchange(attempt: &mut Attempt<'_>, mut stream: impl AsyncRead + AsyncWrite + Unpin, check: &TcpCheck) -> Result<(), Failure> {
    let io = |e: std::io::Error| Failure::new(net::io_reason(&e, Reason::ConnectionReset), e.to_string());
    if !check.send.is_empty() {
        attempt.phases.next("request");
        stream.write_all(&check.send).await.map_err(io)?;
        stream.flush().await.map_err(io)?;
    }
    if check.expect.is_empty() {
        return Ok(());
    }
    attempt.phases.next("first_byte");
    let expected = Regex::new(&check.expect).map_err(|e| Failure::new(Reason::Unsupported, e.to_string()))?;
    let mut answer = Vec::new();
    let mut buffer = vec![0; 4_096];
    loop {
        let n = stream.read(&mut buffer).await.map_err(io)?;
        if n == 0 {
            let reason = if answer.is_empty() { Reason::ConnectionClosed } else { Reason::ExpectMismatch };
            return Err(Failure::new(reason, format!("closed after {} bytes without {:?}", answer.len(), check.expect)));
        }
        if answer.is_empty() {
            attempt.phases.next("transfer");
        }
        answer.extend_from_slice(&buffer[..n]);
        if expected.is_match(&answer) {
            return Ok(());
        }
        if answer.len() >= ANSWER_BYTES_MAX {
            return Err(Failure::new(Reason::ExpectMismatch, format!("{} bytes without {:?}", answer.len(), check.expect)));
        }
    }
}
