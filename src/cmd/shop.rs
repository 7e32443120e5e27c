//! `shop`: three small services to practise on. They answer truthfully and quickly, and nothing else.

use std::net::SocketAddr;
use std::process::ExitCode;

use bytes::Bytes;
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType, rdata::A};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::args::ShopArgs;
use crate::{Fail, Outcome};

/// The shop's listeners, bound but not yet served.
pub(super) struct Shop {
    http: TcpListener,
    tcp: TcpListener,
    dns_udp: UdpSocket,
    dns_tcp: TcpListener,
}

/// At most this many connections are served at once; more wait in the kernel.
const CONNECTIONS_MAX: usize = 256;

impl Shop {
    pub(super) async fn bind(http: SocketAddr, tcp: SocketAddr, dns: SocketAddr) -> Result<Shop, Fail> {
        let taken = |what: &str, address: SocketAddr| {
            let what = what.to_owned();
            move |e: std::io::Error| Fail::no(format!("cannot listen on {address} for the shop's {what} service: {e}"))
        };
        Ok(Shop {
            http: TcpListener::bind(http).await.map_err(taken("HTTP", http))?,
            tcp: TcpListener::bind(tcp).await.map_err(taken("TCP", tcp))?,
            dns_udp: UdpSocket::bind(dns).await.map_err(taken("DNS", dns))?,
            dns_tcp: TcpListener::bind(dns).await.map_err(taken("DNS", dns))?,
        })
    }

    /// Serves until `stop`.
    pub(super) async fn serve(self, stop: CancellationToken) {
        let tracker = TaskTracker::new();
        let udp = self.dns_udp;
        let dns_udp = async move {
            let mut buffer = [0u8; 4096];
            loop {
                if let Ok((n, from)) = udp.recv_from(&mut buffer).await
                    && let Some(reply) = answer(&buffer[..n])
                {
                    let _ = udp.send_to(&reply, from).await;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = accept(self.http, &tracker, &stop, http) => {}
            () = accept(self.tcp, &tracker, &stop, greet) => {}
            () = accept(self.dns_tcp, &tracker, &stop, dns_tcp) => {}
            () = dns_udp => {}
        }
        tracker.close();
        tracker.wait().await;
    }
}

async fn accept<F>(listener: TcpListener, tracker: &TaskTracker, stop: &CancellationToken, serve: fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let limit = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = limit.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let stop = stop.clone();
                tracker.spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = serve(stream) => {}
                    }
                    drop(permit);
                });
            }
            // Out of descriptors: wait for some to come back.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    }
}

async fn http(stream: TcpStream) {
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(sell)).await;
}

async fn sell(_request: hyper::Request<hyper::body::Incoming>) -> Result<hyper::Response<Full<Bytes>>, hyper::http::Error> {
    let body = Full::new(Bytes::from_static(b"{\"status\":\"ok\",\"open\":true}\n"));
    hyper::Response::builder().header("content-type", "application/json").body(body)
}

/// Greets, then echoes lines.
async fn greet(mut stream: TcpStream) {
    if stream.write_all(b"220 shop ready\r\n").await.is_err() {
        return;
    }
    let mut buffer = [0u8; 1024];
    while let Ok(n) = stream.read(&mut buffer).await {
        if n == 0 || stream.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

async fn dns_tcp(mut stream: TcpStream) {
    while let Ok(length) = stream.read_u16().await {
        let mut query = vec![0u8; usize::from(length)];
        if stream.read_exact(&mut query).await.is_err() {
            return;
        }
        let Some(reply) = answer(&query) else { return };
        let Ok(length) = u16::try_from(reply.len()) else { return };
        if stream.write_u16(length).await.is_err() || stream.write_all(&reply).await.is_err() {
            return;
        }
    }
}

/// Knows one name, `shop`, and that it is here.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?.clone();
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.authoritative = true;
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    let known = question.name().to_ascii().trim_end_matches('.').eq_ignore_ascii_case("shop");
    if !known {
        reply.metadata.response_code = ResponseCode::NXDomain;
    } else if question.query_type() == RecordType::A {
        reply.add_answer(Record::from_rdata(question.name().clone(), 60, RData::A(A::new(127, 0, 0, 1))));
    }
    reply.add_query(question);
    reply.to_vec().ok()
}

pub(super) async fn run(args: ShopArgs) -> Outcome {
    let shop = Shop::bind(args.http, args.tcp, args.dns).await?;
    println!("shop: http {}  tcp {}  dns {} (A shop)", args.http, args.tcp, args.dns);
    println!("Ctrl-C closes it");
    let stop = CancellationToken::new();
    let signal = stop.clone();
    tokio::spawn(async move {
        super::server::stop_signal().await;
        signal.cancel();
    });
    shop.serve(stop).await;
    Ok(ExitCode::SUCCESS)
}
