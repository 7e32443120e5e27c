//! The same exchanges with nothing around them: what a probe costs at least. Each is a process of its own, so that the kernel accounts
//! for it apart; it prints how many exchanges it made in which time, and the microseconds of processor time of each.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use regex::bytes::Regex;
use tokio::net::{TcpStream, UdpSocket};

use crate::prober::BODY_PATTERN;
use crate::target::QUERY;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Exchanges at once.
const AT_ONCE: usize = 32;

/// The same at a rate: more than these are not begun.
const UNDER_WAY_MAX: usize = 512;

/// How long an answer to a datagram is waited for.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// What is exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    Http,
    Tcp,
    Dns,
}

/// Processor time of this process, or of its children that ended.
pub(crate) fn cpu(who: UsageWho) -> Duration {
    let time = |t: TimeVal| Duration::from_micros((t.tv_sec() * 1_000_000 + t.tv_usec()) as u64);
    getrusage(who).map_or(Duration::ZERO, |usage| time(usage.user_time()) + time(usage.system_time()))
}

pub(crate) async fn run(kind: Kind, addresses: Vec<String>, seconds: u64, rate: u64) -> Result<(), Error> {
    if rate > 0 {
        return paced(kind, addresses, seconds, rate).await;
    }
    let pattern = Regex::new(BODY_PATTERN)?;
    let (start, before) = (Instant::now(), cpu(UsageWho::RUSAGE_SELF));
    let end = start + Duration::from_secs(seconds);
    let loops = (0..AT_ONCE).map(|i| {
        let (addresses, pattern) = (&addresses, &pattern);
        async move {
            let mut made = 0u64;
            for n in i.. {
                if Instant::now() >= end {
                    break;
                }
                let address = &addresses[n % addresses.len()];
                once(kind, address, n, pattern).await?;
                made += 1;
            }
            Ok::<u64, Error>(made)
        }
    });
    let mut made = 0;
    for of_loop in futures_util::future::join_all(loops).await {
        made += of_loop?;
    }
    let used = cpu(UsageWho::RUSAGE_SELF) - before;
    println!("{made} {:.3} {:.2}", start.elapsed().as_secs_f64(), used.as_secs_f64() * 1e6 / made as f64);
    Ok(())
}

/// So many a second, a handful each millisecond, however long each takes.
async fn paced(kind: Kind, addresses: Vec<String>, seconds: u64, rate: u64) -> Result<(), Error> {
    let pattern = Regex::new(BODY_PATTERN)?;
    let (start, before) = (Instant::now(), cpu(UsageWho::RUSAGE_SELF));
    let (addresses, pattern) = (std::sync::Arc::new(addresses), std::sync::Arc::new(pattern));
    let mut tasks = tokio::task::JoinSet::new();
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let mut made = 0;
    while start.elapsed() < Duration::from_secs(seconds) {
        tick.tick().await;
        let due = made.max((start.elapsed().as_secs_f64() * rate as f64) as u64);
        // What a busy machine does not finish must not pile up.
        let due = due.min(made + UNDER_WAY_MAX.saturating_sub(tasks.len()) as u64);
        for n in made..due {
            let (addresses, pattern) = (addresses.clone(), pattern.clone());
            tasks.spawn(async move { once(kind, &addresses[n as usize % addresses.len()], n as usize, &pattern).await.map_err(|e| e.to_string()) });
        }
        made = due;
        while let Some(done) = tasks.try_join_next() {
            done??;
        }
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let used = cpu(UsageWho::RUSAGE_SELF) - before;
    println!("{made} {:.3} {:.2}", start.elapsed().as_secs_f64(), used.as_secs_f64() * 1e6 / made as f64);
    Ok(())
}

async fn once(kind: Kind, address: &str, n: usize, pattern: &Regex) -> Result<(), Error> {
    match kind {
        Kind::Http => http(address, pattern).await,
        Kind::Tcp => tcp(address).await,
        Kind::Dns => dns(address, n as u16).await,
    }
}

async fn http(address: &str, pattern: &Regex) -> Result<(), Error> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let work = async {
        let request = http::Request::get("/")
            .header("user-agent", "probity-bench")
            .header("accept", "*/*")
            .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
            .header("host", address)
            .header("connection", "close")
            .body(Empty::<Bytes>::new())?;
        let body = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
        if pattern.is_match(&body) { Ok::<(), Error>(()) } else { Err("the answer is another".into()) }
    };
    tokio::pin!(work, connection);
    tokio::select! {
        done = &mut work => done,
        _ = &mut connection => work.await,
    }
}

async fn tcp(address: &str) -> Result<(), Error> {
    drop(TcpStream::connect(address).await?);
    Ok(())
}

async fn dns(address: &str, id: u16) -> Result<(), Error> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(address).await?;
    let mut query = QUERY.to_vec();
    query[..2].copy_from_slice(&id.to_be_bytes());
    let mut answer = [0; 1_232];
    let length = loop {
        socket.send(&query).await?;
        // A busy machine loses a datagram now and then: asked again, or the loop would wait for it for ever.
        if let Ok(length) = tokio::time::timeout(ANSWER_WAIT, socket.recv(&mut answer)).await {
            break length?;
        }
    };
    if length > query.len() && answer[..2] == id.to_be_bytes() { Ok(()) } else { Err("no answer to the question".into()) }
}
