//! A probe as somebody writes it, run against servers of the test.
#![allow(dead_code)]

pub(crate) mod netns;
pub(crate) mod ocsp;
pub(crate) mod quic;
pub(crate) mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use probity_prober::kinds::{ContextConfig, Phase, run};
use probity_prober::policy::AddressPolicy;
use probity_prober::{ProbeContext, RunInfo, RunResult};
use probity_proto::lower;
use probity_proto::resources::{SourceFile, parse};
use probity_proto::v1::resource::Spec;
use probity_proto::v1::{CheckSpec, Reason, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

pub(crate) fn context() -> ProbeContext {
    context_with(AddressPolicy::Anywhere, None)
}

pub(crate) fn context_with(address_policy: AddressPolicy, secrets_dir: Option<PathBuf>) -> ProbeContext {
    let _ = rustls::crypto::ring::default_provider().install_default();
    ProbeContext::new(ContextConfig { address_policy, secrets_dir, ..ContextConfig::default() })
}

/// The check of a probe whose `spec` is this YAML; what is wrong with it is a panic.
pub(crate) fn check(spec: &str) -> CheckSpec {
    let indented: String = spec.trim_end().lines().map(|l| format!("  {l}\n")).collect();
    let text = format!("apiVersion: probity/v1\nkind: Probe\nmetadata: {{name: test}}\nspec:\n  interval: 24h\n{indented}");
    let parsed = parse(&[SourceFile { name: "test.yaml".to_owned(), text: text.clone() }], "default");
    let problems: Vec<String> = parsed.problems.iter().map(ToString::to_string).collect();
    assert!(problems.is_empty(), "{problems:#?}\n{text}");
    let Some(Spec::Probe(probe)) = parsed.resources[0].resource.spec.clone() else { panic!("no probe") };
    lower::check_spec(&probe, probe.targets.first().unwrap_or(&Target::default())).expect("it can be lowered")
}

/// One run of a probe.
pub(crate) async fn probe(spec: &str) -> RunResult {
    probe_in(&context(), spec).await
}

pub(crate) async fn probe_in(context: &ProbeContext, spec: &str) -> RunResult {
    run(context, &check(spec), &RunInfo::default()).await
}

/// One run of a probe of a cluster's namespace.
pub(crate) async fn probe_of(context: &ProbeContext, namespace: &str, spec: &str) -> RunResult {
    let name = format!("{namespace}/test");
    run(context, &check(spec), &RunInfo { check: &name, ..RunInfo::default() }).await
}

/// A run of that reason; its phases must add up.
#[track_caller]
pub(crate) fn assert_reason(result: &RunResult, reason: Reason) {
    assert_eq!(result.reason, reason, "{result:#?}");
    let sum: u64 = result.phases.iter().map(|p| p.duration_us).sum();
    assert_eq!(sum, result.duration.as_micros() as u64, "phases add up: {result:#?}");
}

pub(crate) fn fact<'r>(result: &'r RunResult, name: &str) -> &'r str {
    result.facts.iter().find(|(n, _)| *n == name).map_or("", |(_, value)| value)
}

pub(crate) fn phase_names(phases: &[Phase]) -> Vec<&str> {
    phases.iter().map(|p| p.name).collect()
}

/// A server on loopback whose every connection is handled by a function.
pub(crate) async fn serve<F, Fut>(handler: F) -> SocketAddr
where
    F: Fn(TcpStream, SocketAddr) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    serve_on("127.0.0.1:0".parse().expect("an address"), handler).await
}

pub(crate) async fn serve_on<F, Fut>(address: SocketAddr, handler: F) -> SocketAddr
where
    F: Fn(TcpStream, SocketAddr) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(address).await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    let handler = Arc::new(handler);
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            tokio::spawn(handler(stream, peer));
        }
    });
    address
}

/// Reads a request's head; with its body when it has a length.
pub(crate) async fn read_request(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4_096];
    loop {
        let n = stream.read(&mut buffer).await.unwrap_or(0);
        bytes.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let length = || {
            let line = text.lines().find(|l| l.to_ascii_lowercase().starts_with("content-length:"))?;
            line.split_once(':')?.1.trim().parse::<usize>().ok()
        };
        let whole = text.find("\r\n\r\n").is_some_and(|head| bytes.len() >= head + 4 + length().unwrap_or(0));
        if n == 0 || whole {
            return text;
        }
    }
}

/// A server that answers every request with the same text, then closes.
pub(crate) async fn answer(text: impl Into<Vec<u8>>) -> SocketAddr {
    let text: Arc<Vec<u8>> = Arc::new(text.into());
    serve(move |mut stream, _| {
        let text = text.clone();
        async move {
            read_request(&mut stream).await;
            let _ = stream.write_all(&text).await;
            let _ = stream.shutdown().await;
        }
    })
    .await
}

/// An answer with status 200.
pub(crate) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

/// A port where nobody is.
pub(crate) async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("its address")
}

/// An address whose connections are never answered: its queue is full, so that the kernel drops what comes. Keep what is returned.
pub(crate) async fn blackhole(address: SocketAddr) -> (SocketAddr, Vec<TcpStream>, TcpListener) {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.expect("a socket");
    socket.bind(address).expect("a free port");
    let listener = socket.listen(0).expect("it listens");
    let address = listener.local_addr().expect("its address");
    let mut held = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(std::time::Duration::from_millis(300), TcpStream::connect(address)).await {
        held.push(stream);
        assert!(held.len() < 64, "the queue never fills");
    }
    (address, held, listener)
}
