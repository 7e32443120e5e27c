//! The fault proxy: a TCP proxy in user space that passes everything on, until a fault tells it otherwise.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at once; more wait in the kernel.
const CONNECTIONS_MAX: usize = 4_096;
/// Bytes that are read at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// Pieces on their way in one direction: what bounds the memory of a delayed connection.
const CHUNKS_IN_FLIGHT: usize = 16;
/// How long the upstream may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A proxy to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Faults name it so.
    pub name: String,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where it passes connections on to, host:port.
    pub upstream: String,
}

/// What the proxy does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Passes everything on.
    #[default]
    Pass,
    /// Pieces of answers come later, counted from their arrival.
    Latency {
        /// By this much...
        delay: Duration,
        /// ...plus or minus at most this.
        jitter: Duration,
    },
    /// Closes connections.
    Cut,
    /// Resets connections (RST).
    Reset,
    /// Accepts, and passes nothing.
    Blackhole,
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    config: ProxyConfig,
    local: SocketAddr,
    mode: watch::Sender<Mode>,
    touched: Arc<AtomicBool>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Proxy {
    /// Listens, and starts to pass connections on.
    pub async fn start(config: ProxyConfig) -> io::Result<Proxy> {
        let listener = TcpListener::bind(config.listen).await?;
        let local = listener.local_addr()?;
        let (mode, watch) = watch::channel(Mode::Pass);
        let proxy = Proxy { config, local, mode, touched: Arc::default(), stop: CancellationToken::new(), tasks: TaskTracker::new() };
        let link = Link { upstream: proxy.config.upstream.clone().into(), mode: watch, touched: proxy.touched.clone() };
        proxy.tasks.spawn(accept(listener, link, proxy.stop.clone(), proxy.tasks.clone()));
        Ok(proxy)
    }

    /// Its configuration.
    pub fn config(&self) -> &ProxyConfig {
        &self.config
    }

    /// Where it really listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Changes what it does, for living connections too.
    pub fn set_mode(&self, mode: Mode) {
        self.touched.store(false, Ordering::Release);
        self.mode.send_replace(mode);
    }

    /// What it does.
    pub fn mode(&self) -> Mode {
        *self.mode.borrow()
    }

    /// Whether a connection has felt the present mode.
    pub fn touched(&self) -> bool {
        self.touched.load(Ordering::Acquire)
    }

    /// Ends it with all its connections.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// What a connection needs.
#[derive(Clone)]
struct Link {
    upstream: Arc<str>,
    mode: watch::Receiver<Mode>,
    touched: Arc<AtomicBool>,
}

impl Link {
    fn touch(&self) {
        self.touched.store(true, Ordering::Release);
    }
}

async fn accept(listener: TcpListener, link: Link, stop: CancellationToken, tasks: TaskTracker) {
    let limit = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = async {
                let permit = limit.clone().acquire_owned().await.ok();
                (permit, listener.accept().await)
            } => accepted,
        };
        match accepted {
            (permit, Ok((client, _))) => {
                let (link, stop) = (link.clone(), stop.clone());
                tasks.spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = serve(client, link) => {}
                    }
                    drop(permit);
                });
            }
            // Out of descriptors: some come back.
            (_, Err(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A reset instead of a close: the kernel sends RST when linger is zero.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

async fn serve(mut client: TcpStream, mut link: Link) {
    let mode = *link.mode.borrow_and_update();
    match mode {
        Mode::Cut => return link.touch(),
        Mode::Reset => {
            link.touch();
            return reset(&client);
        }
        Mode::Blackhole => {
            link.touch();
            // Held until the fault is over; then the client must connect again.
            let _ = link.mode.changed().await;
            return;
        }
        Mode::Pass | Mode::Latency { .. } => {}
    }
    let mut upstream = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&*link.upstream)).await {
        Ok(Ok(upstream)) => upstream,
        // What the client would see without the proxy is closest to a reset.
        _ => return reset(&client),
    };
    let _ = client.set_nodelay(true);
    let _ = upstream.set_nodelay(true);
    let ended_by = {
        let (mut client_read, mut client_write) = client.split();
        let (mut upstream_read, mut upstream_write) = upstream.split();
        let up = pass(&mut client_read, &mut upstream_write);
        let down = delayed(&mut upstream_read, &mut client_write, link.clone());
        // Each direction ends by itself: half-closed connections live on.
        tokio::select! {
            _ = async { tokio::join!(up, down) } => return,
            mode = disturbed(&mut link) => mode,
        }
    };
    link.touch();
    match ended_by {
        Mode::Reset => reset(&client),
        Mode::Blackhole => drop(link.mode.changed().await),
        _ => {}
    }
}

/// Waits for a mode that living connections do not survive.
async fn disturbed(link: &mut Link) -> Mode {
    loop {
        if link.mode.changed().await.is_err() {
            return Mode::Cut;
        }
        let mode = *link.mode.borrow_and_update();
        if matches!(mode, Mode::Cut | Mode::Reset | Mode::Blackhole) {
            return mode;
        }
    }
}

/// Passes one direction on as it comes.
async fn pass(from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut buffer).await {
            Ok(n) if n > 0 => {
                if to.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
            _ => {
                let _ = to.shutdown().await;
                return;
            }
        }
    }
}

/// Passes answers on, each piece after the delay of its arrival, in order.
async fn delayed(from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>, link: Link) {
    let (tx, mut rx) = mpsc::channel::<(Instant, Bytes)>(CHUNKS_IN_FLIGHT);
    let read = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(n) = from.read(&mut buffer).await {
            if n == 0 {
                break;
            }
            let due = Instant::now() + delay_now(&link);
            if tx.send((due, Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                break;
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = rx.recv().await {
            if due > Instant::now() {
                tokio::time::sleep_until(due).await;
            }
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

/// The delay of a piece that arrives now.
fn delay_now(link: &Link) -> Duration {
    let Mode::Latency { delay, jitter } = *link.mode.borrow() else { return Duration::ZERO };
    link.touch();
    let jitter = jitter.as_micros() as i64;
    let shift = if jitter == 0 { 0 } else { rand::rng().random_range(-jitter..=jitter) };
    Duration::from_micros((delay.as_micros() as i64 + shift).max(0) as u64)
}
