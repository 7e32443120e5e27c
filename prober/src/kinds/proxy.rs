//! A connection by a proxy: HTTP CONNECT (RFC 9110, section 9.3.6) or SOCKS5 (RFC 1928). The proxy resolves the target's name.
//!
//! What fails on the way to the proxy, or at it, is `proxy_error`, in the phase `proxy`: it is not the target's failure, unless the proxy
//! says that it is.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use probity_proto::v1::{HttpProxy, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Attempt, Failure, net};

/// Bytes of a proxy's answer to CONNECT.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Connects to the target by the proxy; without `tunnel` an HTTP proxy is only connected to, for it is asked for the whole URL then.
pub(super) async fn connect(attempt: &mut Attempt<'_>, proxy: &HttpProxy, host: &str, port: u16, tunnel: bool) -> Result<TcpStream, Failure> {
    // Names are the proxy's to resolve, where it is; what can be told from here is refused here.
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) => attempt.allowed(ip)?,
        Err(_) if host.eq_ignore_ascii_case("localhost") => attempt.allowed(IpAddr::from([127, 0, 0, 1]))?,
        Err(_) => {}
    }
    let password = if proxy.username.is_empty() { String::new() } else { attempt.secret(&proxy.password_secret_ref, self::host(proxy)).await? };
    let before = attempt.phases.alias(Some("proxy"));
    let connected = match proxy.url.split_once("://") {
        Some(("http", address)) => http(attempt, proxy, address, host, port, tunnel, &password).await,
        Some(("socks5", address)) => socks5(attempt, proxy, address, host, port, &password).await,
        _ => Err(Failure::new(Reason::Unsupported, format!("no proxy like {:?} is known here", proxy.url))),
    };
    attempt.phases.alias(before);
    connected
}

/// Its name or address, as a secret is sent to it.
pub(super) fn host(proxy: &HttpProxy) -> &str {
    let address = proxy.url.split_once("://").map_or(proxy.url.as_str(), |(_, address)| address);
    net::host_port(address).map_or("", |(host, _)| host)
}

/// What goes wrong before the proxy speaks is the proxy's, unless it is this host's.
fn at_proxy(failure: Failure) -> Failure {
    if failure.reason as i32 >= 100 { failure } else { error(&failure.message) }
}

fn error(message: &str) -> Failure {
    Failure::new(Reason::ProxyError, format!("the proxy: {message}"))
}

fn io(e: &std::io::Error) -> Failure {
    error(&e.to_string())
}

async fn to_proxy(attempt: &mut Attempt<'_>, address: &str) -> Result<TcpStream, Failure> {
    let (host, port) = net::host_port(address)?;
    let addresses = attempt.resolve(host).await.map_err(at_proxy)?;
    attempt.connect(&addresses, port).await.map_err(at_proxy)
}

async fn http(attempt: &mut Attempt<'_>, proxy: &HttpProxy, address: &str, host: &str, port: u16, tunnel: bool, password: &str) -> Result<TcpStream, Failure> {
    let mut stream = to_proxy(attempt, address).await?;
    if !tunnel {
        return Ok(stream);
    }
    let auth = if proxy.username.is_empty() {
        String::new()
    } else {
        format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(format!("{}:{password}", proxy.username)))
    };
    let request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{auth}\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|e| io(&e))?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        // Byte by byte: what follows the head is the target's.
        head.push(stream.read_u8().await.map_err(|e| io(&e))?);
        if head.len() > HEAD_BYTES_MAX {
            return Err(error("its answer has no end"));
        }
    }
    let head = String::from_utf8_lossy(&head);
    let status = head.strip_prefix("HTTP/1.").and_then(|h| h.get(2..5));
    match status {
        Some(code) if code.starts_with('2') => Ok(stream),
        Some(_) => Err(error(&format!("it answered {:?} to CONNECT", head.lines().next().unwrap_or_default()))),
        None => Err(error("it does not speak HTTP")),
    }
}

async fn socks5(attempt: &mut Attempt<'_>, proxy: &HttpProxy, address: &str, host: &str, port: u16, password: &str) -> Result<TcpStream, Failure> {
    let mut stream = to_proxy(attempt, address).await?;
    let method = if proxy.username.is_empty() { 0 } else { 2 };
    stream.write_all(&[5, 1, method]).await.map_err(|e| io(&e))?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).await.map_err(|e| io(&e))?;
    if chosen != [5, method] {
        return Err(error(if chosen[0] == 5 { "it wants to be told otherwise who we are" } else { "it does not speak SOCKS5" }));
    }
    if method == 2 {
        // RFC 1929
        let length = |text: &str| u8::try_from(text.len()).map_err(|_| error("username and password have at most 255 bytes"));
        let (name, password) = (&proxy.username, password);
        let message = [&[1, length(name)?], name.as_bytes(), &[length(password)?], password.as_bytes()].concat();
        stream.write_all(&message).await.map_err(|e| io(&e))?;
        stream.read_exact(&mut chosen).await.map_err(|e| io(&e))?;
        if chosen[1] != 0 {
            return Err(error("it refuses username and password"));
        }
    }
    let target = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(IpAddr::V4(v4)) => [&[1], &v4.octets()[..]].concat(),
        Ok(IpAddr::V6(v6)) => [&[4], &v6.octets()[..]].concat(),
        Err(_) => {
            let length = u8::try_from(host.len()).map_err(|_| error("a name has at most 255 bytes"))?;
            [&[3, length], host.as_bytes()].concat()
        }
    };
    stream.write_all(&[&[5, 1, 0], target.as_slice(), &port.to_be_bytes()].concat()).await.map_err(|e| io(&e))?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply).await.map_err(|e| io(&e))?;
    let said = |reason, what: &str| Err(Failure::new(reason, format!("the proxy says: {what}")));
    match reply[1] {
        0 => {}
        3 => return said(Reason::ConnectUnreachable, "network unreachable"),
        4 => return said(Reason::ConnectUnreachable, "host unreachable"),
        5 => return said(Reason::ConnectRefused, "connection refused"),
        6 => return said(Reason::ConnectTimeout, "TTL expired"),
        2 => return Err(error("its rules do not allow the target")),
        code => return Err(error(&format!("SOCKS5 error {code}"))),
    }
    let bound = match reply[3] {
        1 => 4,
        4 => 16,
        3 => usize::from(stream.read_u8().await.map_err(|e| io(&e))?),
        _ => return Err(error("it does not speak SOCKS5")),
    };
    let mut address = vec![0; bound + 2];
    stream.read_exact(&mut address).await.map_err(|e| io(&e))?;
    Ok(stream)
}
