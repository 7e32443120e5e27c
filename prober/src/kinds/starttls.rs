//! From plain text to TLS on the same connection, as each protocol asks for it.
//!
//! Nothing is read beyond the server's consent: bytes that come with it would have been sent in plain text, by whoever is in between
//! (the injection of CVE-2011-0411).

use probity_proto::v1::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::certificate::Der;
use super::{Attempt, Failure, net};

/// A server's reply: more is no reply.
const REPLY_BYTES_MAX: usize = 16 * 1024;
/// An LDAP extended request for TLS (RFC 4511, section 4.14): OID 1.3.6.1.4.1.1466.20037.
const LDAP_START_TLS: &[u8] = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037";
/// PostgreSQL's SSLRequest.
const POSTGRES_SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Asks for TLS; the handshake comes next.
pub(super) async fn ask(attempt: &mut Attempt<'_>, stream: &mut TcpStream, protocol: &str) -> Result<(), Failure> {
    attempt.phases.next("starttls");
    match protocol {
        "smtp" => {
            smtp(stream, "", "220").await?;
            let offered = smtp(stream, "EHLO probity.invalid\r\n", "250").await?;
            let words = |line: &str| line.get(4..).is_some_and(|w| w.trim().eq_ignore_ascii_case("STARTTLS"));
            if !offered.lines().any(words) {
                return Err(refused("the server does not offer STARTTLS"));
            }
            smtp(stream, "STARTTLS\r\n", "220").await.map(drop)
        }
        "ftp" => {
            numbered(stream, "", "220").await?;
            numbered(stream, "AUTH TLS\r\n", "234").await.map(drop)
        }
        "imap" => {
            expect(stream, "", |text| text.ends_with("\r\n"), |text| text.starts_with("* OK")).await?;
            let tagged = |text: &str| text.lines().last().is_some_and(|l| l.starts_with("a1 ")) && text.ends_with("\r\n");
            expect(stream, "a1 STARTTLS\r\n", tagged, |text| text.lines().last().is_some_and(|l| l.starts_with("a1 OK"))).await
        }
        "pop3" => {
            expect(stream, "", |text| text.ends_with("\r\n"), |text| text.starts_with("+OK")).await?;
            expect(stream, "STLS\r\n", |text| text.ends_with("\r\n"), |text| text.starts_with("+OK") && text.lines().count() == 1).await
        }
        "ldap" => ldap(stream).await,
        "postgres" => {
            stream.write_all(POSTGRES_SSL_REQUEST).await.map_err(|e| io(&e))?;
            match stream.read_u8().await.map_err(|e| io(&e))? {
                b'S' => Ok(()),
                b'N' => Err(refused("the server answered N: it has no TLS")),
                other => Err(protocol_error(&format!("the server answered {:?}", char::from(other)))),
            }
        }
        other => Err(Failure::new(Reason::Unsupported, format!("no STARTTLS of {other:?} is known here"))),
    }
}

/// SMTP, where each line of a reply has its code (RFC 5321, section 4.2.1).
async fn smtp(stream: &mut TcpStream, command: &str, code: &str) -> Result<String, Failure> {
    let reply = numbered(stream, command, code).await?;
    match reply.lines().find(|l| !l.starts_with(code)) {
        Some(line) => Err(protocol_error(&format!("a line {line:?} within a reply of {code}"))),
        None => Ok(reply),
    }
}

/// Where a reply ends that begins with a number: with its line, or with the first that has the same number and no `-` after it (RFC 959,
/// section 4.2). What stands in between is text.
fn reply_end(text: &str) -> Option<usize> {
    let (mut at, mut first) = (0, None);
    for line in text.split_inclusive('\n') {
        if !line.ends_with('\n') {
            return None;
        }
        at += line.len();
        let goes_on = line.as_bytes().get(3) == Some(&b'-');
        match first {
            None if goes_on => first = line.get(..3),
            Some(code) if goes_on || line.get(..3) != Some(code) => {}
            _ => return Some(at),
        }
    }
    None
}

/// SMTP and FTP: replies that begin with a number.
async fn numbered(stream: &mut TcpStream, command: &str, code: &str) -> Result<String, Failure> {
    let reply = reply(stream, command, |text| reply_end(text).is_some()).await?;
    let last = reply.lines().last().unwrap_or_default();
    if reply_end(&reply) != Some(reply.len()) {
        return Err(protocol_error("the server sent more than its reply"));
    }
    if !last.starts_with(code) {
        return Err(refused(&format!("the server answered {last:?}, want {code}")));
    }
    Ok(reply)
}

async fn expect(stream: &mut TcpStream, command: &str, whole: impl Fn(&str) -> bool, good: impl Fn(&str) -> bool) -> Result<(), Failure> {
    let reply = reply(stream, command, whole).await?;
    if good(&reply) { Ok(()) } else { Err(refused(&format!("the server answered {:?}", reply.lines().last().unwrap_or_default()))) }
}

/// What the server says until it is `whole`.
async fn reply(stream: &mut TcpStream, command: &str, whole: impl Fn(&str) -> bool) -> Result<String, Failure> {
    stream.write_all(command.as_bytes()).await.map_err(|e| io(&e))?;
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 1_024];
        let n = stream.read(&mut buffer).await.map_err(|e| io(&e))?;
        if n == 0 {
            return Err(Failure::new(Reason::ConnectionClosed, format!("closed after {} bytes of a reply", bytes.len())));
        }
        bytes.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&bytes);
        if whole(&text) {
            return Ok(text.into_owned());
        }
        if bytes.len() > REPLY_BYTES_MAX {
            return Err(protocol_error(&format!("a reply of more than {REPLY_BYTES_MAX} bytes")));
        }
    }
}

async fn ldap(stream: &mut TcpStream) -> Result<(), Failure> {
    stream.write_all(LDAP_START_TLS).await.map_err(|e| io(&e))?;
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 1_024];
        let n = stream.read(&mut buffer).await.map_err(|e| io(&e))?;
        bytes.extend_from_slice(&buffer[..n]);
        if let Some((message, rest)) = Der(&bytes).next(0x30) {
            if rest.tag().is_some() {
                return Err(protocol_error("the server sent more than its reply"));
            }
            let code = || Der(message).next(0x02)?.1.inside(0x78)?.next(0x0a).map(|(code, _)| code.to_vec());
            return match code().as_deref() {
                Some([0]) => Ok(()),
                Some(code) => Err(refused(&format!("the server answered with LDAP result code {code:?}"))),
                None => Err(protocol_error("the server answered with no extended response")),
            };
        }
        if n == 0 || bytes.len() > REPLY_BYTES_MAX {
            return Err(protocol_error("the server answered with no LDAP message"));
        }
    }
}

fn io(error: &std::io::Error) -> Failure {
    Failure::new(net::io_reason(error, Reason::ConnectionReset), error.to_string())
}

fn refused(message: &str) -> Failure {
    Failure::new(Reason::StarttlsRefused, message)
}

fn protocol_error(message: &str) -> Failure {
    Failure::new(Reason::ProtocolError, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_end_with_their_number() {
        for (text, end) in [
            ("220 x\r\n", Some(7)),
            ("220 x", None),
            ("220-x\r\n", None),
            ("220-x\r\n220 y\r\n", Some(14)),
            // Text in between, numbers too: it is no end, and nothing that was injected.
            ("220-x\r\n Welcome\r\n221 z\r\n220 y\r\n", Some(31)),
            ("234 go\r\n230 injected\r\n", Some(8)),
            ("\n", Some(1)),
            ("", None),
        ] {
            assert_eq!(reply_end(text), end, "{text:?}");
        }
    }
}
