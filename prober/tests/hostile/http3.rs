//! HTTP/3: QUIC servers that pour without an end, on every stream that they have.

use super::*;
use crate::common::quic::{quic, raw, tls};
use crate::common::tls::Authority;
use quinn::{Connection, SendStream};
use tokio::net::UdpSocket;

/// SETTINGS without any, on a control stream; then status 200 by QPACK's static table.
const SETTINGS: &[u8] = &[0x00, 0x04, 0x00];
const OK: &[u8] = &[0x01, 0x03, 0x00, 0x00, 0xd9];
/// A length of 2^30.
const HUGE: &[u8] = &[0xc0, 0, 0, 0, 0x40, 0, 0, 0];

fn spec(authority: &Authority, server: SocketAddr) -> String {
    let ca = authority.pem().trim_end().replace('\n', "\n      ");
    let url = format!("https://shop.test:{}/", server.port());
    format!("hosts: {{shop.test: 127.0.0.1}}\ntimeout: 20s\nhttp:\n  version: 3\n  url: {url}\n  maxBodyBytes: 1MiB\n  tls:\n    ca: |\n      {ca}\n")
}

async fn filled(mut stream: SendStream, with: &'static [u8]) {
    while stream.write_all(with).await.is_ok() {}
}

/// A stream that the server opens, with what it begins with.
async fn opened(connection: &Connection, head: &[u8]) -> Option<SendStream> {
    let mut stream = connection.open_uni().await.ok()?;
    stream.write_all(head).await.ok()?;
    Some(stream)
}

#[tokio::test]
async fn the_answer_has_no_end() {
    let (bench, authority) = (Bench::new().await, Authority::new());
    let frame = leaked([&[0x00, 0x60, 0x00][..], &[b'x'; 8_192]].concat());
    let interim: &[u8] = &[0x01, 0x03, 0x00, 0x00, 0xd8];
    for (name, head, then, reason, message) in [
        ("a body in frames", OK.to_vec(), frame, Reason::BodyTooLarge, "more than 1048576 bytes"),
        ("a body of one frame", [OK, &[0x00], HUGE].concat(), &[b'x'; 8_192], Reason::BodyTooLarge, "more than 1048576 bytes"),
        ("a head", [&[0x01], HUGE].concat(), &[0x21; 8_192], Reason::HeadersTooLarge, "no end"),
        ("an unknown frame", [OK, &[0x21], HUGE].concat(), &[0x21; 8_192], Reason::ProtocolError, "does not go on"),
        ("interim answers", vec![], leaked(interim.repeat(1_000)), Reason::HeadersTooLarge, "no end"),
        ("empty frames of a body", OK.to_vec(), leaked([0x00, 0x00].repeat(4_000)), Reason::ProtocolError, "unexpected frame"),
    ] {
        let server = raw(&authority, &head, then).await;
        bench.probe(&format!("HTTP/3: {name}"), &spec(&authority, server), reason, message).await;
    }
}

#[tokio::test]
async fn other_streams_have_no_end() {
    let (bench, authority) = (Bench::new().await, Authority::new());
    let config = || tls(authority.issue("shop.test"), b"h3");
    let no_end = "no end";
    let settings = quic(config(), |connection| async move {
        if let Some(control) = opened(&connection, &[&[0x00, 0x04], HUGE].concat()).await {
            filled(control, &[0x21; 8_192]).await;
        }
    })
    .await;
    bench.probe("HTTP/3: settings", &spec(&authority, settings), Reason::HeadersTooLarge, no_end).await;
    // As many as are allowed, of a type that nobody knows, or QPACK's own.
    for (name, kind) in [("streams of an unknown type", 0x21), ("instructions of QPACK", 0x02)] {
        let server = quic(config(), move |connection| async move {
            let _control = opened(&connection, SETTINGS).await;
            while let Some(stream) = opened(&connection, &[kind]).await {
                tokio::spawn(filled(stream, &[0x21; 8_192]));
                if kind == 0x02 {
                    break;
                }
            }
            drop(connection.closed().await);
        })
        .await;
        // QPACK's are not read, since our settings allow no table: the window stops them.
        let (timeout, reason, message) = if kind == 0x02 { ("1s", Reason::ResponseTimeout, "first_byte") } else { ("20s", Reason::HeadersTooLarge, no_end) };
        bench.probe(&format!("HTTP/3: {name}"), &spec(&authority, server).replace("20s", timeout), reason, message).await;
    }
    // One after the other, each ended at once.
    let many = quic(config(), |connection| async move {
        let _control = opened(&connection, SETTINGS).await;
        while let Some(mut stream) = opened(&connection, &[0x21; 1_000]).await {
            let _ = stream.finish();
        }
    })
    .await;
    bench.probe("HTTP/3: many streams", &spec(&authority, many), Reason::HeadersTooLarge, no_end).await;
}

#[tokio::test]
async fn the_handshake_has_no_end() {
    let (bench, authority) = (Bench::new().await, Authority::new());
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let address = socket.local_addr().expect("its address");
    tokio::spawn(async move {
        let (mut buffer, noise) = ([0; 2_048], [0xc3; 1_200]);
        while let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
            for _ in 0..4_000 {
                let _ = socket.send_to(&noise, peer).await;
            }
        }
    });
    bench.probe("HTTP/3: noise", &spec(&authority, address), Reason::TlsHandshake, "the handshake has no end").await;
}
