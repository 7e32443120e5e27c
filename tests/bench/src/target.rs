//! What is probed: nginx for HTTP and TCP, knot for DNS (both of Debian), on several loopback addresses, because one destination gives out
//! of ports at some ten thousand connections a second.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::{TcpStream, UdpSocket};

use crate::cluster::Process;
use crate::ports::free_ports;

type Error = Box<dyn std::error::Error>;

/// Loopback addresses that are probed.
pub(crate) const ADDRESSES: usize = 64;
/// What nginx answers.
pub(crate) const BODY: &str = "{\"status\": \"ok\"}\\n";
/// A query for the address of `www.bench.test`, but for its id.
pub(crate) const QUERY: &[u8] = b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x03www\x05bench\x04test\0\0\x01\0\x01";

/// 127.0.0.1 and those after it.
pub(crate) fn addresses(count: usize) -> Vec<String> {
    (1..=count).map(|i| format!("127.0.{}.{}", i / 250, i % 250)).collect()
}

fn quiet(command: &mut Command) -> std::io::Result<Process> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(Process)
}

/// nginx, if it is installed.
pub(crate) fn nginx(dir: &Path, addresses: &[String], port: u16) -> std::io::Result<Process> {
    let at = dir.display();
    let listen: String = addresses.iter().map(|a| format!("listen {a}:{port} backlog=4096; ")).collect();
    let config = format!(
        "master_process off; worker_rlimit_nofile 32768; daemon off; pid {at}/pid; error_log {at}/error.log;\nevents {{ worker_connections 16384; }}\nhttp {{ access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n server {{ {listen} location / {{ default_type application/json; return 200 '{BODY}'; }} }} }}\n"
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config)?;
    quiet(Command::new("nginx").arg("-c").arg(&file))
}

/// nginx where it is installed, else the shop.
pub(crate) fn web(dir: &TempDir, probity: &Path, port: u16) -> Result<(Process, &'static str, Vec<String>), Error> {
    let many = addresses(ADDRESSES);
    if let Ok(nginx) = nginx(dir.path(), &many, port) {
        return Ok((nginx, "nginx", many));
    }
    let others = free_ports(2);
    let mut shop = Command::new(probity);
    shop.args(["shop", "--http", &format!("127.0.0.1:{port}"), "--tcp", &format!("127.0.0.1:{}", others[0]), "--dns", &format!("127.0.0.1:{}", others[1])]);
    Ok((quiet(&mut shop)?, "probity shop", addresses(1)))
}

/// knot with the zone `bench.test`, if it is installed.
pub(crate) fn knot(dir: &Path, port: u16) -> std::io::Result<Process> {
    let at = dir.join("knot");
    std::fs::create_dir_all(&at)?;
    let at = at.display();
    std::fs::write(
        dir.join("knot/bench.test.zone"),
        "$ORIGIN bench.test.\n$TTL 300\n@ SOA ns host 1 3600 600 86400 300\n@ NS ns\nns A 127.0.0.1\nwww A 192.0.2.1\n",
    )?;
    let config = format!(
        "server:\n  rundir: {at}\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\ndatabase:\n  storage: {at}/db\nzone:\n  - domain: bench.test\n    storage: {at}\n    file: bench.test.zone\n    zonefile-sync: -1\n    journal-content: none\n"
    );
    let file = dir.join("knot.conf");
    std::fs::write(&file, config)?;
    quiet(Command::new("knotd").arg("-c").arg(&file))
}

const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something listens.
pub(crate) async fn answers(address: &str, port: u16) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect((address, port)).await.is_err() {
        if Instant::now() > deadline {
            return Err(format!("nothing answers on {address}:{port} after 20 s").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Waits until a DNS server answers.
pub(crate) async fn resolves(port: u16) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(("127.0.0.1", port)).await?;
    let mut answer = [0; 512];
    loop {
        let _ = socket.send(QUERY).await;
        if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(100), socket.recv(&mut answer)).await {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("no DNS server answers on port {port} after 20 s").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
