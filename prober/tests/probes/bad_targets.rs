//! Targets that misbehave: each run ends by its deadline at the latest, with a reason of its own, and holds a bounded amount of memory.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::common::tls::Authority;
use super::common::*;
use probity_proto::v1::Reason;
use tokio::io::AsyncWriteExt;

/// A server that says one thing, then the same again and again, with a pause between.
async fn dripping(head: &'static str, drop: &'static [u8], pause: Duration) -> SocketAddr {
    serve(move |mut stream, _| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(head.as_bytes()).await;
        while stream.write_all(drop).await.is_ok() {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    })
    .await
}

async fn http(address: SocketAddr, more: &str, reason: Reason, message: &str) {
    let began = Instant::now();
    let timeout = if more.contains("timeout") { "" } else { "timeout: 400ms\n" };
    let result = probe(&format!("target: http://{address}/\n{timeout}{more}")).await;
    assert_reason(&result, reason);
    assert!(result.message.contains(message), "{message:?} is not in {:?}", result.message);
    // Generous: the machine may be busy; what must not be is a run without an end.
    assert!(began.elapsed() < Duration::from_secs(20), "it did not end: {result:?}");
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn silence() {
    let (unanswering, _held, _listener) = blackhole("127.0.0.1:0".parse().expect("an address")).await;
    http(unanswering, "", Reason::ConnectTimeout, "no answer within 400ms in connect").await;
    let mute = serve(|stream, _| async move {
        let _held = stream;
        tokio::time::sleep(60 * SECOND).await;
    })
    .await;
    http(mute, "", Reason::ResponseTimeout, "no answer within 400ms in first_byte").await;
    let result = probe(&format!("target: https://{mute}/\ntimeout: 300ms")).await;
    assert_reason(&result, Reason::TlsTimeout);
    let hasty = serve(|_, _| async {}).await;
    let result = probe(&format!("target: http://{hasty}/")).await;
    assert!(matches!(result.reason, Reason::ConnectionClosed | Reason::ConnectionReset), "{result:?}");
}

#[tokio::test]
async fn drips() {
    // One byte a second, so that no single read times out.
    http(dripping("HTTP/1.1 200 OK\r\n", b"x", SECOND).await, "", Reason::ResponseTimeout, "first_byte").await;
    http(dripping("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n", b"x", SECOND).await, "", Reason::TransferTimeout, "transfer").await;
    http(dripping("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n", SECOND).await, "", Reason::TransferTimeout, "transfer").await;
}

#[tokio::test]
async fn without_end() {
    let zero = Duration::ZERO;
    http(dripping("HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 8_192], zero).await, "timeout: 10s", Reason::BodyTooLarge, "more than 1048576 bytes").await;
    let chunks = dripping("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"5\r\nxxxxx\r\n", zero).await;
    http(chunks, "timeout: 10s\nhttp: {maxBodyBytes: 100KiB}", Reason::BodyTooLarge, "more than 102400 bytes").await;
    http(dripping("HTTP/1.1 200 OK\r\n", b"x-more: yes\r\n", zero).await, "timeout: 10s", Reason::HeadersTooLarge, "head").await;
    http(dripping("HTTP/1.1 200 OK\r\nx-long: ", &[b'x'; 8_192], zero).await, "timeout: 10s", Reason::HeadersTooLarge, "head").await;
    http(dripping("HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", zero).await, "", Reason::ResponseTimeout, "first_byte").await;
    http(dripping("", b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", SECOND).await, "", Reason::BodyTooLarge, "").await;
}

#[tokio::test]
async fn nonsense() {
    for (said, reason) in [
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nx\r\n", Reason::ProtocolError),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n", Reason::ProtocolError),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nxx", Reason::ConnectionClosed),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort", Reason::ConnectionClosed),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\ncontent-length: 11\r\n\r\n", Reason::ProtocolError),
        ("HTTP/1.1 999999 OK\r\n\r\n", Reason::ProtocolError),
        ("SSH-2.0-OpenSSH_9.2\r\n", Reason::ProtocolError),
        ("\0\u{1}\u{2}\r\n\r\n", Reason::ProtocolError),
        ("HTTP/1.1 200 OK\r\nbad header\r\n\r\n", Reason::ProtocolError),
        ("", Reason::ConnectionClosed),
        ("HTTP/1.1 2", Reason::ConnectionClosed),
    ] {
        let address = answer(said).await;
        let result = probe(&format!("target: http://{address}/\ntimeout: 3s")).await;
        assert_eq!(result.reason, reason, "{said:?}: {result:?}");
    }
}

#[tokio::test]
async fn redirect_loops() {
    let address = serve(|mut stream, _| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n").await;
    })
    .await;
    http(address, "timeout: 5s\nhttp: {followRedirects: 20}", Reason::RedirectLoop, "again").await;
}

#[tokio::test]
async fn broken_tls() {
    let plain = serve(|mut stream, _| async move {
        let _ = stream.write_all(ok("no TLS here").as_bytes()).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    })
    .await;
    let result = probe(&format!("target: https://{plain}/\ntimeout: 3s")).await;
    assert_reason(&result, Reason::TlsHandshake);
    let closing = serve(|stream, _| async move { drop(stream) }).await;
    let result = probe(&format!("target: https://{closing}/\ntimeout: 3s")).await;
    assert!(matches!(result.reason, Reason::TlsHandshake | Reason::ConnectionReset), "{result:?}");
    // A record that announces 16 KiB and never ends.
    let endless = serve(|mut stream, _| async move {
        let _ = stream.write_all(&[22, 3, 3, 0x40, 0]).await;
        while stream.write_all(&[0; 16]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let result = probe(&format!("target: https://{endless}/\ntimeout: 400ms")).await;
    assert!(matches!(result.reason, Reason::TlsTimeout | Reason::TlsHandshake), "{result:?}");
    // After a good handshake, bytes that are no record.
    let authority = Authority::new();
    let acceptor = authority.acceptor("shop.test", &[]);
    let spoilt = serve(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                let (mut tcp, _) = stream.into_inner();
                let _ = tcp.write_all(&[0xff; 64]).await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    })
    .await;
    let ca = authority.pem().trim_end().replace('\n', "\n      ");
    let spec = format!("hosts: {{shop.test: 127.0.0.1}}\ntimeout: 3s\nhttp:\n  url: https://shop.test:{}/\n  tls:\n    ca: |\n      {ca}", spoilt.port());
    assert_reason(&probe(&spec).await, Reason::TlsHandshake);
}
