//! UDP, gRPC health and WebSocket probes against servers of this test: honest ones, and those that are not.

mod common;

use std::net::SocketAddr;

use common::tls::Authority;
use common::*;
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use probity_proto::v1::Reason;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

#[tokio::test]
async fn datagrams() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let address = socket.local_addr().expect("its address");
    tokio::spawn(async move {
        let mut buffer = [0; 1_024];
        while let Ok((n, peer)) = socket.recv_from(&mut buffer).await {
            let asked = buffer[..n].to_vec();
            let answers: Vec<&[u8]> = match asked.as_slice() {
                b"PING" => vec![b"noise", b"PONG 7"],
                [0xde, 0xad] => vec![&[0xbe, 0xef]],
                b"" => vec![b""],
                _ => vec![],
            };
            for answer in answers {
                let _ = socket.send_to(answer, peer).await;
            }
        }
    });
    let context = context();
    for (options, reason, text) in [
        ("send: PING, expect: '^PONG [0-9]$'", Reason::Good, ""),
        ("sendHex: de ad, expect: '(?-u)^\\xbe\\xef$'", Reason::Good, ""),
        ("", Reason::Good, ""),
        ("send: PING, expect: PANG", Reason::ExpectMismatch, "2 answers, none of which matches \"PANG\""),
        ("send: anything", Reason::ResponseTimeout, "no answer within 400ms in first_byte"),
    ] {
        let result = probe_in(&context, &format!("target: {address}\nudp: {{{options}}}\ntimeout: 400ms")).await;
        assert_reason(&result, reason);
        assert_eq!(result.message, text, "{options}");
    }
    let closed = closed_port().await;
    let result = probe(&format!("target: {closed}\nudp: {{}}")).await;
    assert_reason(&result, Reason::ConnectRefused);
}

/// What a health server of this test answers a service's name with: the serving status, or a code and its message.
fn health(service: &[u8]) -> Result<u8, (u8, &'static str)> {
    match service {
        b"" | b"shop" => Ok(1),
        b"down" => Ok(2),
        b"secret" => Err((16, "who are you?")),
        _ => Err((5, "unknown service")),
    }
}

async fn answer_call(
    request: Request<Incoming>,
) -> Result<Response<http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>>, std::convert::Infallible> {
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    let timeout = request.headers()["grpc-timeout"].to_str().expect("text").to_owned();
    assert!(timeout.strip_suffix('m').is_some_and(|ms| (1..=10_000).contains(&ms.parse::<u32>().expect("a number"))), "{timeout}");
    let token = request.headers().get("authorization").cloned();
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(body[0], 0);
    let service = body.get(7..).unwrap_or_default().to_vec();
    if service == b"hang" {
        std::future::pending::<()>().await;
    }
    let outcome = match token {
        Some(token) if service == b"secret" && token == "Bearer let-me-in" => Ok(1),
        _ => health(&service),
    };
    let mut trailers = http::HeaderMap::new();
    let (code, message, data) = match outcome {
        Ok(status) => (0, "", Some(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]))),
        Err((code, message)) => (code, message, None),
    };
    trailers.insert("grpc-status", u16::from(code).into());
    trailers.insert("grpc-message", message.parse().expect("a header"));
    let frames = data.into_iter().map(Frame::data).chain([Frame::trailers(trailers)]).map(Ok);
    let body = BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)));
    Ok(Response::builder().header("content-type", "application/grpc").body(body).expect("a response"))
}

async fn serve_grpc(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let _ =
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer_call)).await;
}

#[tokio::test]
async fn grpc_health() {
    let address = serve(|stream, _| serve_grpc(stream)).await;
    let secrets = tempfile::tempdir().expect("a directory");
    std::fs::write(secrets.path().join("token"), "let-me-in\n").expect("a file");
    let context = context_with(probity_prober::policy::AddressPolicy::Anywhere, Some(secrets.path().to_owned()));
    for (options, reason, text) in [
        ("", Reason::Good, ""),
        ("service: shop", Reason::Good, ""),
        ("service: down", Reason::GrpcNotServing, "the service is NOT_SERVING"),
        ("service: down, expect: {status: [NOT_SERVING]}", Reason::Good, ""),
        ("service: nosuch", Reason::GrpcStatus, "NOT_FOUND (5): unknown service"),
        ("service: nosuch, expect: {status: [SERVICE_UNKNOWN]}", Reason::Good, ""),
        ("service: secret", Reason::GrpcStatus, "UNAUTHENTICATED (16): who are you?"),
        ("service: secret, metadata: {authorization: {secretRef: token, prefix: 'Bearer '}}", Reason::Good, ""),
        ("service: shop, metadata: {x-probe: {secretRef: nosuch}}", Reason::SecretMissing, ""),
        ("service: hang", Reason::RequestTimeout, "no answer within 500ms in request"),
    ] {
        let result = probe_in(&context, &format!("target: {address}\ngrpc: {{{options}}}\ntimeout: 500ms")).await;
        assert_reason(&result, reason);
        assert!(result.message == text || text.is_empty() && reason != Reason::Good, "{options}: {result:#?}");
        assert!(!format!("{result:?}").contains("let-me-in"), "a secret is never shown");
    }
    // No HTTP/2, HTTP/1.1, and nobody.
    let noise = answer("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    assert_reason(&probe(&format!("target: {noise}\ngrpc: {{}}\ntimeout: 2s")).await, Reason::ProtocolError);
    assert_reason(&probe(&format!("target: {}\ngrpc: {{}}", closed_port().await)).await, Reason::ConnectRefused);
}

#[tokio::test]
async fn grpc_health_over_tls_offers_http2() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("grpc.example", &[b"h2"]);
    let address = serve(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            serve_grpc(stream).await;
        }
    })
    .await;
    let ca: String = authority.pem().lines().map(|l| format!("      {l}\n")).collect();
    let result = probe(&format!("target: {address}\ngrpc:\n  service: shop\n  tls:\n    serverName: grpc.example\n    ca: |\n{ca}")).await;
    assert_reason(&result, Reason::Good);
    assert_eq!(phase_names(&result.phases), ["resolve", "connect", "tls", "request", "transfer"]);
    assert_reason(&probe(&format!("target: {address}\ngrpc: {{tls: {{}}}}")).await, Reason::TlsUntrusted);
}

/// A server that upgrades, then echoes in capitals, or does what it is told.
#[allow(clippy::result_large_err)]
async fn serve_websocket(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let choose = |request: &tokio_tungstenite::tungstenite::handshake::server::Request,
                  mut response: tokio_tungstenite::tungstenite::handshake::server::Response| {
        if let Some(offered) = request.headers().get("sec-websocket-protocol").and_then(|v| v.to_str().ok())
            && offered.split(", ").any(|p| p == "chat")
        {
            response.headers_mut().insert("sec-websocket-protocol", "chat".parse().expect("a header"));
        }
        Ok(response)
    };
    let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, choose).await else { return };
    while let Some(Ok(message)) = socket.next().await {
        let sent = match message {
            Message::Text(text) if text.as_str() == "bye" => {
                let frame = CloseFrame { code: CloseCode::Policy, reason: "not you".into() };
                socket.close(Some(frame)).await
            }
            Message::Text(text) if text.as_str() == "big" => socket.send(Message::text("x".repeat(100_000))).await,
            Message::Text(text) => {
                let _ = socket.send(Message::text("noise")).await;
                socket.send(Message::text(text.to_uppercase())).await
            }
            Message::Binary(bytes) => socket.send(Message::binary(bytes.iter().rev().copied().collect::<Vec<u8>>())).await,
            _ => Ok(()),
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn websocket_server() -> SocketAddr {
    serve(|stream, _| serve_websocket(stream)).await
}

#[tokio::test]
async fn websockets() {
    let address = websocket_server().await;
    let context = context();
    for (options, reason, text) in [
        ("", Reason::Good, ""),
        ("send: hello, expect: '^HELLO$'", Reason::Good, ""),
        (
            "dialogue: [{send: a}, {expect: A}, {sendHex: 01 02}, {expect: '(?-u)^\\x02\\x01$'}, {ping: true}, {sendBinary: xyz}, {expect: zyx}]",
            Reason::Good,
            "",
        ),
        ("subprotocols: [news, chat]", Reason::Good, ""),
        ("subprotocols: [news]", Reason::HeaderMismatch, ""),
        ("send: hello, expect: nothing", Reason::TransferTimeout, "no answer within 500ms in transfer"),
        ("send: bye, expect: x", Reason::ConnectionClosed, "the server closed with 1008 not you"),
        ("send: big, expect: x", Reason::Good, ""),
        ("send: big, expect: x, maxMessageBytes: 10kB", Reason::BodyTooLarge, ""),
    ] {
        let result = probe_in(&context, &format!("target: ws://{address}/chat\nwebsocket: {{{options}}}\ntimeout: 500ms")).await;
        assert_reason(&result, reason);
        assert!(result.message == text || text.is_empty() && reason != Reason::Good, "{options}: {result:#?}");
    }
    let result = probe_in(&context, &format!("target: ws://{address}/\nwebsocket: {{send: a, expect: nothing}}\ntimeout: 500ms")).await;
    assert_eq!(fact(&result, "websocket.unexpected"), "2, the last one \"A\"");
    let result = probe_in(&context, &format!("target: ws://{address}/\nwebsocket: {{subprotocols: [chat]}}")).await;
    assert_eq!((fact(&result, "websocket.subprotocol"), phase_names(&result.phases)), ("chat", vec!["resolve", "connect", "first_byte", "transfer"]));
}

#[tokio::test]
async fn websockets_that_are_none() {
    for (answer, reason) in [
        ("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", Reason::WebsocketRefused),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", Reason::WebsocketRefused),
        ("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: AAAA\r\n\r\n", Reason::ProtocolError),
        ("this is no HTTP\r\n\r\n", Reason::ProtocolError),
        ("", Reason::ConnectionClosed),
    ] {
        let address = common::answer(answer).await;
        let result = probe(&format!("target: ws://{address}/\nwebsocket: {{}}\ntimeout: 2s")).await;
        assert_eq!(result.reason, reason, "{answer:?}: {result:#?}");
    }
    // Headers without an end.
    let endless = serve(|mut stream, _| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n").await;
        while stream.write_all(&b"x-more: yes\r\n".repeat(1_000)).await.is_ok() {}
    })
    .await;
    let result = probe(&format!("target: ws://{endless}/\nwebsocket: {{}}\ntimeout: 5s")).await;
    assert_eq!(result.reason, Reason::ProtocolError, "{result:#?}");
    // One byte a while.
    let drip = serve(|mut stream, _| async move {
        read_request(&mut stream).await;
        for byte in b"HTTP/1.1 101 Switching Protocols\r\n" {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    let result = probe(&format!("target: ws://{drip}/\nwebsocket: {{}}\ntimeout: 300ms")).await;
    assert_reason(&result, Reason::ResponseTimeout);
}

#[tokio::test]
async fn secure_websockets() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("ws.example", &[b"http/1.1"]);
    let address = serve(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            serve_websocket(stream).await;
        }
    })
    .await;
    let ca: String = authority.pem().lines().map(|l| format!("      {l}\n")).collect();
    let url = format!("wss://{address}/");
    let result = probe(&format!("target: {url}\nwebsocket:\n  send: a\n  expect: A\n  tls:\n    serverName: ws.example\n    ca: |\n{ca}")).await;
    assert_reason(&result, Reason::Good);
    assert_eq!(phase_names(&result.phases), ["resolve", "connect", "tls", "first_byte", "transfer"]);
    assert_reason(&probe(&format!("target: {url}\nwebsocket: {{}}")).await, Reason::TlsUntrusted);
}
