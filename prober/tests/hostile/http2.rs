//! HTTP/2, frame by frame, over plain text (prior knowledge): what RFC 9113, section 10.5, warns of, and what breaks the protocol.

use super::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` and `:status: 103` in HPACK.
const OK: &[u8] = b"\x88";
const EARLY_HINTS: &[u8] = b"\x08\x03103";
/// `x-more: yes`, not to be indexed.
const HEADER: &[u8] = b"\x00\x06x-more\x03yes";

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// Its settings and its consent to ours, so that our window counts; then what it says.
pub(super) fn settled(frames: &[Vec<u8>]) -> Vec<u8> {
    [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[]), frames.concat()].concat()
}

fn spec(server: SocketAddr) -> String {
    format!("http: {{url: 'http://{server}/', version: '2', maxBodyBytes: 1MiB}}")
}

#[tokio::test]
async fn frames_without_end() {
    let bench = Bench::new().await;
    let head = frame(HEADERS, END_HEADERS, 1, OK);
    let open_head = frame(HEADERS, 0, 1, OK);
    let many = HEADER.repeat(100);
    for (name, said, drop, reason, message) in [
        ("CONTINUATION", vec![open_head.clone()], frame(CONTINUATION, 0, 1, &many), Reason::ProtocolError, "too_many_continuations"),
        ("empty CONTINUATION", vec![open_head], frame(CONTINUATION, 0, 1, &[]), Reason::ProtocolError, ""),
        ("SETTINGS", vec![], frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9]), Reason::ResponseTimeout, "first_byte"),
        ("PING", vec![], frame(PING, 0, 0, &[7; 8]), Reason::ResponseTimeout, "first_byte"),
        ("WINDOW_UPDATE", vec![], frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), Reason::ProtocolError, ""),
        ("unknown frames", vec![], frame(0xbb, 0, 0, &[7; 64]), Reason::ResponseTimeout, "first_byte"),
        ("interim answers", vec![], frame(HEADERS, END_HEADERS, 1, EARLY_HINTS), Reason::ResponseTimeout, "first_byte"),
        ("empty DATA", vec![head.clone()], frame(DATA, 0, 1, &[]), Reason::ProtocolError, "too_many_data_frames"),
        (
            "trailers",
            vec![head.clone(), frame(HEADERS, END_STREAM, 1, HEADER)],
            frame(CONTINUATION, 0, 1, &many),
            Reason::ProtocolError,
            "too_many_continuations",
        ),
    ] {
        let server = endless(settled(&said), drop.repeat(20), NO_PAUSE).await;
        let patient = reason == Reason::ProtocolError;
        bench.probe(&format!("h2 {name}"), &format!("timeout: {}\n{}", if patient { "20s" } else { "1s" }, spec(server)), reason, message).await;
    }
}

#[tokio::test]
async fn frames_that_end_it() {
    let bench = Bench::new().await;
    let head = frame(HEADERS, END_HEADERS, 1, OK);
    let reset = |code: u32| frame(RST_STREAM, 0, 1, &code.to_be_bytes());
    let large = [&[0x00, 0x01, b'x', 0x7f, 0xff, 0xff, 0x0f][..], &[b'y'; 64]].concat();
    for (name, said, reason, message) in [
        ("GOAWAY at once", settled(&[goaway(0, 0)]), Reason::ConnectionClosed, ""),
        ("GOAWAY, enhance your calm", settled(&[goaway(0, 11)]), Reason::ConnectionClosed, "excessive load"),
        // What the server still owes (RFC 9113, section 6.8) never comes.
        ("GOAWAY in the body", settled(&[head.clone(), goaway(1, 2)]), Reason::TransferTimeout, "in transfer"),
        ("a large body", settled(&[head.clone(), frame(DATA, 0, 1, &[b'x'; 8_192]).repeat(192)]), Reason::BodyTooLarge, "more than 1048576 bytes"),
        (
            "large headers",
            settled(&[frame(HEADERS, 0, 1, OK), frame(CONTINUATION, 0, 1, &HEADER.repeat(1_000)).repeat(4), frame(CONTINUATION, END_HEADERS, 1, &[])]),
            Reason::ProtocolError,
            "stream error",
        ),
        ("RST_STREAM, refused", settled(&[reset(7)]), Reason::ConnectionReset, "refused"),
        ("RST_STREAM in the body", settled(&[head.clone(), reset(2)]), Reason::ConnectionReset, "internal error"),
        ("a stream nobody opened", settled(&[frame(HEADERS, END_HEADERS, 99, OK)]), Reason::ProtocolError, ""),
        ("PUSH_PROMISE", settled(&[frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82])]), Reason::ProtocolError, ""),
        ("broken HPACK", settled(&[frame(HEADERS, END_HEADERS, 1, &[0xff; 32])]), Reason::ProtocolError, ""),
        ("a header that is announced only", settled(&[frame(HEADERS, END_HEADERS, 1, &large)]), Reason::ProtocolError, ""),
        ("a frame of 16 MiB", settled(&[vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]]), Reason::ProtocolError, ""),
        ("no settings", frame(DATA, 0, 1, b"x"), Reason::ProtocolError, ""),
        ("HTTP/1.1", ok("hello").into_bytes(), Reason::ProtocolError, ""),
        ("noise", vec![0x5a; 4_096], Reason::ProtocolError, ""),
    ] {
        let server = endless(said, "", NO_PAUSE).await;
        bench.probe(&format!("h2 {name}"), &format!("timeout: 5s\n{}", spec(server)), reason, message).await;
    }
    // Closed without a word.
    let server = serve(|mut stream, _| async move { hear(&mut stream).await }).await;
    for _ in 0..3 {
        let result = probe_in(&bench.context, &format!("timeout: 5s\n{}", spec(server))).await;
        assert!(matches!(result.reason, Reason::ConnectionClosed | Reason::ConnectionReset), "{result:#?}");
    }
}

#[tokio::test]
async fn grpc() {
    let bench = Bench::new().await;
    let head = frame(HEADERS, END_HEADERS, 1, &[OK, b"\x0f\x10\x10application/grpc"].concat());
    let many = HEADER.repeat(100);
    let flood = |kind, payload: &[u8]| frame(kind, 0, 1, payload).repeat(20);
    let data = |payload: &[u8]| frame(DATA, END_STREAM, 1, payload);
    for (name, said, drop, reason, message) in [
        ("a large message", vec![head.clone(), frame(DATA, 0, 1, &[0; 8_192]).repeat(9)], vec![], Reason::BodyTooLarge, "more than 65536 bytes"),
        ("headers without an end", vec![frame(HEADERS, 0, 1, OK)], flood(CONTINUATION, &many), Reason::ProtocolError, "too_many_continuations"),
        ("GOAWAY", vec![goaway(0, 0)], vec![], Reason::ConnectionClosed, "GOAWAY"),
        ("RST_STREAM", vec![frame(RST_STREAM, 0, 1, &[0, 0, 0, 2])], vec![], Reason::ConnectionReset, "RST_STREAM"),
        ("no trailers", vec![head.clone(), data(&[0, 0, 0, 0, 2, 8, 1])], vec![], Reason::ProtocolError, "no grpc-status"),
        ("silence after the head", vec![head.clone()], vec![], Reason::TransferTimeout, "transfer"),
        (
            "a status that is none",
            vec![frame(HEADERS, END_HEADERS | END_STREAM, 1, &[OK, b"\x00\x0bgrpc-status\x03yes"].concat())],
            vec![],
            Reason::ProtocolError,
            "no grpc-status",
        ),
    ] {
        let server = endless(settled(&said), drop, NO_PAUSE).await;
        bench.probe(&format!("grpc: {name}"), &format!("timeout: 2s\ntarget: {server}\ngrpc: {{}}"), reason, message).await;
    }
    // Well framed, with a status that says well, and a message that is none.
    let trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x0bgrpc-status\x010");
    for garbage in [&[0xff; 64][..], &[0, 0xff, 0xff, 0xff, 0xff, 1], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 1, 8], b""] {
        let server = endless(settled(&[head.clone(), frame(DATA, 0, 1, garbage), trailers.clone()]), "", NO_PAUSE).await;
        bench.probe("grpc: garbage", &format!("timeout: 5s\ntarget: {server}\ngrpc: {{}}"), Reason::ProtocolError, "no HealthCheckResponse").await;
    }
}
