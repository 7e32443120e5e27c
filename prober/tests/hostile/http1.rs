//! HTTP/1.1: bodies, heads, trailers and codings without an end, and kept connections that are closed under a request.

use std::io::Write;

use super::*;

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

#[tokio::test]
async fn without_end() {
    let bench = Bench::new().await;
    let case = async |name: &str, head: &str, drop: &[u8], reason, message: &str| {
        let server = endless(head, drop, NO_PAUSE).await;
        bench.probe(name, &format!("timeout: 20s\nhttp: {{url: 'http://{server}/', maxBodyBytes: 1MiB}}"), reason, message).await;
    };
    let (chunk, many) = (format!("2000\r\n{}\r\n", "x".repeat(8_192)), b"x-more: yes\r\n".repeat(500));
    case("a body until the end of the connection", "HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 8_192], Reason::BodyTooLarge, "more than 1048576 bytes").await;
    case("a body in chunks", CHUNKED, chunk.as_bytes(), Reason::BodyTooLarge, "more than 1048576 bytes").await;
    case("a body that is announced", "HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n", b"x", Reason::BodyTooLarge, "").await;
    case("headers", "HTTP/1.1 200 OK\r\n", &many, Reason::HeadersTooLarge, "head").await;
    case("one header", "HTTP/1.1 200 OK\r\nx-long: ", &[b'x'; 8_192], Reason::HeadersTooLarge, "head").await;
    case("a status line", "HTTP/1.1 200 ", &[b'x'; 8_192], Reason::HeadersTooLarge, "head").await;
    case("trailers", &format!("{CHUNKED}1\r\nx\r\n0\r\n"), &many, Reason::ProtocolError, "trailers").await;
    case("an extension of a chunk", &format!("{CHUNKED}1;"), &[b'x'; 8_192], Reason::ProtocolError, "").await;
    case("the size of a chunk", CHUNKED, &[b'1'; 8_192], Reason::ProtocolError, "").await;
    // Nothing but zeros is a number still.
    let server = endless(CHUNKED, [b'0'; 8_192], NO_PAUSE).await;
    bench.probe("zeros before the size of a chunk", &format!("target: http://{server}/"), Reason::TransferTimeout, "in transfer").await;
}

#[tokio::test]
async fn many_without_end_share_the_room() {
    let bench = Bench::with_room(ROOM_BYTES).await;
    // Each alone may have more than there is for all, and they come at once: without the room for all of 800 MiB.
    let server = endless("HTTP/1.1 200 OK\r\n\r\n", [b'x'; 8_192], Duration::from_millis(1)).await;
    let before = lowered();
    let spec = format!("timeout: 20s\nhttp: {{url: 'http://{server}/', maxBodyBytes: 100MiB}}");
    let results = futures_util::future::join_all((0..MANY).map(|_| probe_in(&bench.context, &spec))).await;
    let cost = kib("VmHWM:").saturating_sub(before);
    println!("{MANY} bodies without an end: {cost} KiB for {ROOM_BYTES} bytes of room");
    assert!(cost <= MANY_KIB_MAX, "{cost} KiB");
    for result in &results {
        assert_reason(result, Reason::Overloaded);
    }
}

#[tokio::test]
async fn a_byte_a_second() {
    let bench = Bench::new().await;
    for (name, head, drop, reason, phase) in [
        ("a head", "HTTP/1.1 200 OK\r\n", "x", Reason::ResponseTimeout, "first_byte"),
        ("a body", "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n", "x", Reason::TransferTimeout, "transfer"),
        ("chunks", CHUNKED, "1\r\nx\r\n", Reason::TransferTimeout, "transfer"),
        ("interim answers", "", "HTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\n", Reason::ResponseTimeout, "first_byte"),
    ] {
        let server = endless(head, drop, BYTE_A_SECOND).await;
        bench.probe(name, &format!("target: http://{server}/"), reason, &format!("no answer within 1s in {phase}")).await;
    }
    // As fast as it can, they are still no answer.
    let server = endless("", b"HTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\n".repeat(100), NO_PAUSE).await;
    bench.probe("endless interim answers", &format!("target: http://{server}/"), Reason::ResponseTimeout, "first_byte").await;
}

/// 30 MiB of `x` in 27 bytes, as other tools make it.
const BROTLI_BOMB: &[u8] = include_bytes!("bomb.br");
const BOMB_BYTES: usize = 30 << 20;

/// A zstd frame of run-length blocks (RFC 8878), 100 kB of `x` each.
fn zstd() -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58];
    for left in (0..BOMB_BYTES / 100_000).rev() {
        frame.extend_from_slice(&((100_000u32 << 3) | 1 << 1 | u32::from(left == 0)).to_le_bytes()[..3]);
        frame.push(b'x');
    }
    frame
}

#[tokio::test]
async fn bombs() {
    let bench = Bench::new().await;
    let compressed = |zlib: bool, times: usize| {
        let mut bytes = vec![b'x'; BOMB_BYTES];
        for _ in 0..times {
            bytes = if zlib {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
                encoder.write_all(&bytes).and_then(|()| encoder.finish()).expect("memory")
            } else {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
                encoder.write_all(&bytes).and_then(|()| encoder.finish()).expect("memory")
            };
        }
        bytes
    };
    for (coding, bomb) in [
        ("gzip", compressed(false, 1)),
        ("deflate", compressed(true, 1)),
        ("br", BROTLI_BOMB.to_vec()),
        ("zstd", zstd()),
        ("gzip, gzip", compressed(false, 2)),
        // Not one upon the other, but side by side: members of one file (RFC 1952, section 2.2).
        ("gzip", compressed(false, 1).repeat(10)),
    ] {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-encoding: {coding}\r\ncontent-length: {}\r\n\r\n", bomb.len());
        let server = endless([head.into_bytes(), bomb].concat(), "", NO_PAUSE).await;
        let http = format!("http: {{url: 'http://{server}/', compression: [gzip, br, zstd, deflate], maxDecompressedBytes: 1MiB}}");
        let kib_max = if coding == "br" { BROTLI_RUN_KIB_MAX } else { RUN_KIB_MAX };
        bench
            .probe_within(kib_max, &format!("a bomb in {coding}"), &format!("timeout: 20s\n{http}"), Reason::DecompressedTooLarge, "become more than 1048576")
            .await;
    }
}
