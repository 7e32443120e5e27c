//! What all runs hold together: a prober without room says that it has none, and blames no target.

use super::common::*;
use flate2::Compression;
use flate2::write::GzEncoder;
use probity_prober::ProbeContext;
use probity_prober::kinds::ContextConfig;
use probity_prober::policy::AddressPolicy;
use probity_proto::v1::Reason;
use std::io::Write;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const KIB: usize = 1 << 10;

fn room_for(bytes: usize) -> ProbeContext {
    let _ = rustls::crypto::ring::default_provider().install_default();
    ProbeContext::new(ContextConfig { address_policy: AddressPolicy::Anywhere, bodies_bytes_max: bytes as u64, ..ContextConfig::default() })
}

#[tokio::test]
async fn slow_bodies_of_many_runs() {
    // A quarter of the room each beside what is free, then silence.
    let server = serve(|mut stream, _| async move {
        read_request(&mut stream).await;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 1_000 * KIB);
        let _ = stream.write_all(&[head.as_bytes(), &vec![b'x'; (256 + 64) * KIB]].concat()).await;
        let _ = stream.read(&mut [0]).await;
    })
    .await;
    let small = answer(ok("small")).await;
    let context = room_for(1_024 * KIB);
    let spec = format!("target: http://{server}/\ntimeout: 5s");
    // Five quarters: one of them at least finds no room, and the others go on until their time-outs.
    let results = futures_util::future::join_all((0..5).map(|_| probe_in(&context, &spec))).await;
    let (without, others): (Vec<_>, Vec<_>) = results.iter().partition(|r| r.reason == Reason::Overloaded);
    assert!(!without.is_empty() && !others.is_empty(), "{results:#?}");
    for result in others {
        assert_reason(result, Reason::TransferTimeout);
    }
    assert_eq!(without[0].message, "the answers that this prober's runs hold may take 1048576 bytes together (bodies.maxBytes), beside 64 KiB of each");
    // What they held was given back.
    assert_reason(&probe_in(&context, &format!("target: http://{small}/\nhttp: {{expect: {{body: [{{contains: small}}]}}}}")).await, Reason::Good);
    assert_reason(&probe_in(&context, &spec).await, Reason::TransferTimeout);
}

#[tokio::test]
async fn a_large_answer_and_a_large_message() {
    let context = room_for(1_024 * KIB);
    let body = vec![b'x'; 2_048 * KIB];
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&body).expect("in memory");
    let gzip = gzip.finish().expect("in memory");
    let plain = answer([format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat()).await;
    let packed = answer([format!("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n", gzip.len()).as_bytes(), &gzip].concat()).await;
    let chat = serve(move |stream, _| async move {
        use futures_util::{SinkExt, StreamExt};
        use tokio_tungstenite::tungstenite::Message;
        let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
        for size in [900, 900, 900, 2_048] {
            let _ = socket.send(Message::binary(vec![0; size * KIB])).await;
        }
        while let Some(Ok(_)) = socket.next().await {}
    })
    .await;
    for (spec, bound) in [
        (format!("target: http://{plain}/\nhttp: {{maxBodyBytes: 4MiB}}"), "maxBodyBytes: 4MiB"),
        (format!("target: http://{packed}/\nhttp: {{maxDecompressedBytes: 4MiB, compression: [gzip]}}"), "maxDecompressedBytes: 4MiB"),
        (format!("target: ws://{chat}/\nwebsocket: {{maxMessageBytes: 4MiB, expect: never}}"), "maxMessageBytes: 4MiB"),
    ] {
        let result = probe_in(&context, &format!("{spec}\ntimeout: 20s")).await;
        assert_reason(&result, Reason::Overloaded);
        // By the run's own bound it is the target's failing.
        let bound_of_run = probe_in(&context, &format!("{}\ntimeout: 20s", spec.replace(bound, &bound.replace("4MiB", "512KiB")))).await;
        assert!(matches!(bound_of_run.reason, Reason::BodyTooLarge | Reason::DecompressedTooLarge), "{bound_of_run:?}");
    }
    // Three messages of 900 KiB came one after the other: what was passed over is not held.
    let good = probe_in(&context, &format!("target: ws://{chat}/\nwebsocket: {{maxMessageBytes: 4MiB}}")).await;
    assert_reason(&good, Reason::Good);
}

#[tokio::test]
async fn pings_between_fragments_free_nothing() {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::frame::Frame;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
    // One message of two MiB in fragments, each with a ping behind it.
    const FRAGMENTS: usize = 32;
    let chat = serve(|stream, _| async move {
        let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
        for i in 0..FRAGMENTS {
            let code = OpCode::Data(if i == 0 { Data::Binary } else { Data::Continue });
            let _ = socket.send(Message::Frame(Frame::message(vec![b'x'; 64 * KIB], code, i + 1 == FRAGMENTS))).await;
            let _ = socket.send(Message::Ping("p".into())).await;
        }
        while let Some(Ok(_)) = socket.next().await {}
    })
    .await;
    let spec = format!("target: ws://{chat}/\nwebsocket: {{maxMessageBytes: 4MiB, expect: x}}\ntimeout: 20s");
    assert_reason(&probe_in(&room_for(1_024 * KIB), &spec).await, Reason::Overloaded);
    assert_reason(&probe_in(&room_for(4_096 * KIB), &spec).await, Reason::Good);
}
