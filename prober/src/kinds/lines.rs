//! A conversation in lines, as SMTP, IRC and SSH have it: each expectation is judged against one line at a time, so that `^`, `$` and what a
//! group takes end with the line.

use probity_proto::v1::{LineStep, Reason};
use regex::bytes::Regex;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use super::{Attempt, Failure, net};

/// Bytes of a line: a longer one is no line of such a protocol.
const LINE_BYTES_MAX: usize = 64 * 1_024;
/// Lines that are passed over in one step.
const LINES_MAX: usize = 10_000;

pub(super) async fn converse(attempt: &mut Attempt<'_>, stream: impl AsyncRead + AsyncWrite + Unpin, steps: &[LineStep]) -> Result<(), Failure> {
    let io = |e: std::io::Error| Failure::new(net::io_reason(&e, Reason::ConnectionReset), e.to_string());
    let mut stream = BufReader::new(stream);
    for step in steps {
        let mut send = step.send.as_bytes().to_vec();
        if !step.expect.is_empty() {
            attempt.phases.next("first_byte");
            let pattern = attempt.context.patterns.regex(&step.expect)?;
            let line = expect(&mut stream, &pattern).await?;
            if let Some(groups) = pattern.captures(&line) {
                send.clear();
                groups.expand(step.send.as_bytes(), &mut send);
            }
        }
        if !send.is_empty() {
            attempt.phases.next("request");
            send.push(b'\n');
            stream.write_all(&send).await.map_err(io)?;
            stream.flush().await.map_err(io)?;
        }
    }
    Ok(())
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
