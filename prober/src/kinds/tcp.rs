//! TCP: connect; TLS if asked for, after STARTTLS if asked for; a dialogue if asked for. And the certificate watch, which is the same without words.

use probity_proto::v1::{Reason, TcpCheck, TcpStep, TlsCheck, TlsOptions, tcp_step::Step};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::capture::Captures;
use super::net::Wire;
use super::{Attempt, Failure, lines, net, starttls};

/// Bytes that are read in search of what is expected.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

pub(crate) async fn run(attempt: &mut Attempt<'_>, check: &TcpCheck) -> Result<(), Failure> {
    let (host, port) = net::host_port(&check.address)?;
    let stream = open(attempt, host, port, &check.starttls).await?;
    let default = TlsOptions::default();
    let options = check.tls.as_ref().or((!check.starttls.is_empty()).then_some(&default));
    let later = check.dialogue.iter().any(|s| matches!(s.step, Some(Step::StartTls(_)))) || check.lines.iter().any(|s| s.start_tls);
    let mut dialogue = Dialogue { host, options: options.unwrap_or(&default), captures: Captures::default(), unread: Vec::new() };
    let mut wire = Wire::Plain(stream);
    if options.is_some() && !later {
        wire = dialogue.secure(attempt, wire).await?;
    }
    if !check.lines.is_empty() {
        return lines::converse(attempt, wire, &check.lines, host, dialogue.options).await;
    }
    let step = |step| TcpStep { step: Some(step) };
    if !check.send.is_empty() {
        wire = dialogue.step(attempt, wire, &step(Step::Send(check.send.clone()))).await?;
    }
    if !check.expect.is_empty() {
        wire = dialogue.step(attempt, wire, &step(Step::Expect(check.expect.clone()))).await?;
    }
    for step in &check.dialogue {
        wire = dialogue.step(attempt, wire, step).await?;
    }
    Ok(())
}

/// The certificate watch: a handshake and what it shows.
pub(crate) async fn watch(attempt: &mut Attempt<'_>, check: &TlsCheck) -> Result<(), Failure> {
    let (host, port) = net::host_port(&check.address)?;
    let stream = open(attempt, host, port, &check.starttls).await?;
    let default = TlsOptions::default();
    attempt.tls(stream, host, check.options.as_ref().unwrap_or(&default), &[]).await.map(drop)
}

async fn open(attempt: &mut Attempt<'_>, host: &str, port: u16, protocol: &str) -> Result<TcpStream, Failure> {
    let addresses = attempt.resolve(host).await?;
    let mut stream = attempt.connect(&addresses, port).await?;
    if !protocol.is_empty() {
        starttls::ask(attempt, &mut stream, protocol).await?;
    }
    Ok(stream)
}

struct Dialogue<'c> {
    host: &'c str,
    options: &'c TlsOptions,
    captures: Captures,
    /// What came after the last thing that was expected.
    unread: Vec<u8>,
}

impl Dialogue<'_> {
    async fn secure(&mut self, attempt: &mut Attempt<'_>, wire: Wire) -> Result<Wire, Failure> {
        let Wire::Plain(stream) = wire else { return Ok(wire) };
        Ok(Wire::Tls(Box::new(attempt.tls(stream, self.host, self.options, &[]).await?)))
    }

    async fn step(&mut self, attempt: &mut Attempt<'_>, mut wire: Wire, step: &TcpStep) -> Result<Wire, Failure> {
        match &step.step {
            Some(Step::Send(bytes)) => {
                attempt.phases.next("request");
                let io = |e: std::io::Error| Failure::new(net::io_reason(&e, Reason::ConnectionReset), e.to_string());
                match std::str::from_utf8(bytes) {
                    Ok(text) => wire.write_all(self.captures.text(text).as_bytes()).await.map_err(io)?,
                    Err(_) => wire.write_all(bytes).await.map_err(io)?,
                }
                wire.flush().await.map_err(io)?;
                Ok(wire)
            }
            Some(Step::Expect(pattern)) => {
                self.expect(attempt, &mut wire, pattern).await?;
                Ok(wire)
            }
            Some(Step::StartTls(_)) => {
                if !self.unread.is_empty() {
                    let message = format!("{} bytes in plain text after the consent to TLS", self.unread.len());
                    return Err(Failure::new(Reason::ProtocolError, message));
                }
                self.secure(attempt, wire).await
            }
            None => Err(Failure::new(Reason::Unsupported, "a step that this prober does not know")),
        }
    }

    async fn expect(&mut self, attempt: &mut Attempt<'_>, wire: &mut Wire, pattern: &str) -> Result<(), Failure> {
        attempt.phases.next("first_byte");
        let expected = attempt.context.patterns.regex(pattern)?;
        let mut answer = std::mem::take(&mut self.unread);
        let mut buffer = vec![0; 4_096];
        let mut began = false;
        loop {
            if let Some(found) = expected.captures(&answer) {
                for name in expected.capture_names().flatten() {
                    if let Some(value) = found.name(name) {
                        self.captures.keep(name, Value::String(String::from_utf8_lossy(value.as_bytes()).into_owned()))?;
                    }
                }
                let end = found.get(0).map_or(0, |m| m.end());
                // The rest of a line belongs to what was expected of it.
                let end = answer[end..].iter().position(|b| *b == b'\n').map_or(answer.len(), |n| end + n + 1);
                self.unread = answer.split_off(end);
                return Ok(());
            }
            if answer.len() >= ANSWER_BYTES_MAX {
                return Err(Failure::new(Reason::ExpectMismatch, format!("{} bytes without {pattern:?}", answer.len())));
            }
            let n = wire.read(&mut buffer).await.map_err(|e| Failure::new(net::io_reason(&e, Reason::ConnectionReset), e.to_string()))?;
            if n == 0 {
                let reason = if answer.is_empty() { Reason::ConnectionClosed } else { Reason::ExpectMismatch };
                return Err(Failure::new(reason, format!("closed after {} bytes without {pattern:?}", answer.len())));
            }
            if !began {
                began = true;
                attempt.phases.next("transfer");
            }
            answer.extend_from_slice(&buffer[..n]);
        }
    }
}
