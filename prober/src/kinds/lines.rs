//! A conversation in lines, as SMTP, IRC and SSH have it: each expectation is judged against one line at a time, so that `^`, `$` and what a
//! group takes end with the line.

use std::collections::BTreeMap;

use probity_proto::v1::{LineStep, Reason, TlsOptions};
use regex::bytes::{Captures, Regex};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};

use super::net::Wire;
use super::{Attempt, Failure, net};

/// Bytes of a line: a longer one is no line of such a protocol.
const LINE_BYTES_MAX: usize = 64 * 1_024;
/// Lines that are passed over in one step.
const LINES_MAX: usize = 10_000;
/// Bytes of a label's value: a version, a name.
const LABEL_BYTES_MAX: usize = 1_024;
/// The labels of all steps, as JSON.
pub(crate) const LABELS_FACT: &str = "tcp.expect.labels";

pub(super) async fn converse(attempt: &mut Attempt<'_>, wire: Wire, steps: &[LineStep], host: &str, options: &TlsOptions) -> Result<(), Failure> {
    let io = |e: std::io::Error| Failure::new(net::io_reason(&e, Reason::ConnectionReset), e.to_string());
    let mut stream = BufReader::new(wire);
    let mut labels: BTreeMap<&str, String> = BTreeMap::new();
    for step in steps {
        let mut send = step.send.as_bytes().to_vec();
        if !step.expect.is_empty() {
            attempt.phases.next("first_byte");
            let pattern = attempt.context.patterns.regex(&step.expect)?;
            let line = expect(&mut stream, &pattern).await?;
            if let Some(groups) = pattern.captures(&line) {
                send = expanded(&groups, &step.send);
                labels.extend(step.labels.iter().map(|label| (label.name.as_str(), label_value(&groups, &label.value))));
                // At once: what the server said stays said, should a later step fail.
                if !labels.is_empty() {
                    attempt.fact(LABELS_FACT, serde_json::to_string(&labels).unwrap_or_default());
                }
            }
        }
        if !send.is_empty() {
            attempt.phases.next("request");
            send.push(b'\n');
            stream.write_all(&send).await.map_err(io)?;
            stream.flush().await.map_err(io)?;
        }
        if step.start_tls {
            stream = BufReader::new(secured(attempt, stream, host, options).await?);
        }
    }
    Ok(())
}

fn expanded(groups: &Captures<'_>, template: &str) -> Vec<u8> {
    let mut out = Vec::new();
    groups.expand(template.as_bytes(), &mut out);
    out
}

fn label_value(groups: &Captures<'_>, template: &str) -> String {
    let mut value = expanded(groups, template);
    value.truncate(LABEL_BYTES_MAX);
    String::from_utf8_lossy(&value).into_owned()
}

/// TLS over what was plain text. What came before it could have been put there by somebody in between.
async fn secured(attempt: &mut Attempt<'_>, stream: BufReader<Wire>, host: &str, options: &TlsOptions) -> Result<Wire, Failure> {
    if !stream.buffer().is_empty() {
        return Err(Failure::new(Reason::ProtocolError, format!("{} bytes in plain text after the consent to TLS", stream.buffer().len())));
    }
    match stream.into_inner() {
        Wire::Plain(stream) => Ok(Wire::Tls(Box::new(attempt.tls(stream, host, options, &[]).await?))),
        secure => Ok(secure),
    }
}

/// The first line that matches.
async fn expect(stream: &mut BufReader<impl AsyncRead + Unpin>, pattern: &Regex) -> Result<Vec<u8>, Failure> {
    let mismatch = |how: String| Failure::new(Reason::ExpectMismatch, format!("{how} without a match of {:?}", pattern.as_str()));
    for passed in 0..LINES_MAX {
        let mut line = Vec::new();
        let mut bounded = (&mut *stream).take(LINE_BYTES_MAX as u64);
        let n = bounded.read_until(b'\n', &mut line).await.map_err(|e| Failure::new(net::io_reason(&e, Reason::ConnectionReset), e.to_string()))?;
        if n == 0 {
            return Err(mismatch(format!("closed after {passed} lines")));
        }
        if n == LINE_BYTES_MAX && !line.ends_with(b"\n") {
            return Err(mismatch(format!("a line of more than {LINE_BYTES_MAX} bytes")));
        }
        while line.ends_with(b"\n") || line.ends_with(b"\r") {
            line.pop();
        }
        if pattern.is_match(&line) {
            return Ok(line);
        }
    }
    Err(mismatch(format!("{LINES_MAX} lines")))
}
