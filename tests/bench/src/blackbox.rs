//! `/probe` of `probity blackbox` beside Debian's blackbox_exporter: the same module, the same target, in the same run; processor time per probe by
//! the kernel's account of each exporter's process. The load and the target are not counted, so that only the exporters are compared.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::cluster::Process;
use crate::ports::free_ports;
use crate::stats::{cpu_seconds, median, percentile, print_table, rss_mib};
use crate::target;

type Error = Box<dyn std::error::Error>;

/// What the bench asks of each exporter.
const MODULES: &str = "modules:\n  http: {prober: http, http: {preferred_ip_protocol: ip4, fail_if_body_not_matches_regexp: ['\"status\":\\s*\"ok\"']}}\n  tcp: {prober: tcp, tcp: {preferred_ip_protocol: ip4}}\n  icmp: {prober: icmp, icmp: {preferred_ip_protocol: ip4}}\n";

/// Probes before anything is counted.
const WARM_UP: usize = 200;

struct Exporter {
    name: &'static str,
    process: Process,
    port: u16,
}

#[derive(Default)]
struct Measured {
    cpu_us: Vec<f64>,
    per_s: Vec<f64>,
    p50_ms: Vec<f64>,
    p99_ms: Vec<f64>,
}

pub(crate) async fn run(probity: &Path, probes: usize, concurrency: usize, rounds: usize) -> Result<(), Error> {
    let dir = tempfile::tempdir()?;
    let ports = free_ports(3);
    let target = target::web(&dir, probity, ports[0])?;
    target::answers("127.0.0.1", ports[0]).await?;
    let config = dir.path().join("blackbox.yml");
    std::fs::write(&config, MODULES)?;
    let mut exporters = vec![exporter("probity", Command::new(probity).arg("blackbox"), &config, ports[1])?];
    match exporter("blackbox_exporter", &mut Command::new("prometheus-blackbox-exporter"), &config, ports[2]) {
        Ok(exporter) => exporters.push(exporter),
        Err(_) => println!("blackbox_exporter is not installed (Debian: prometheus-blackbox-exporter): no comparison"),
    }
    for exporter in &exporters {
        target::answers("127.0.0.1", exporter.port).await?;
    }
    println!("load average {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    println!("{probes} probes a round, {concurrency} at once, {rounds} rounds, medians; target: {} on this machine", target.1);
    let mut rows = vec![["PROBE", "EXPORTER", "CPU US/PROBE", "PROBES/S", "P50 MS", "P99 MS", "RSS MIB", "RATIO"].map(str::to_owned).to_vec()];
    let web: Vec<String> = target.2.iter().map(|a| format!("{a}:{}", ports[0])).collect();
    for (module, addresses) in [("http", &web), ("tcp", &web), ("icmp", &target.2)] {
        let mut measured: Vec<Measured> = exporters.iter().map(|_| Measured::default()).collect();
        let mut failed = None;
        for _ in 0..rounds {
            // In turns, so that what else happens on the machine hits both.
            for (exporter, measured) in exporters.iter().zip(&mut measured) {
                if let Err(e) = round(exporter, module, addresses, probes, concurrency, measured).await {
                    failed = Some(format!("{module}: {}: {e}", exporter.name));
                }
            }
        }
        if let Some(why) = failed {
            println!("{why}");
            continue;
        }
        let ours = median(&mut measured[0].cpu_us);
        for (exporter, m) in exporters.iter().zip(&mut measured) {
            let cpu = median(&mut m.cpu_us);
            let mut row = vec![module.to_owned(), exporter.name.to_owned(), format!("{cpu:.0}"), format!("{:.0}", median(&mut m.per_s))];
            row.push(format!("{:.2}", median(&mut m.p50_ms)));
            row.push(format!("{:.2}", median(&mut m.p99_ms)));
            row.push(format!("{:.0}", rss_mib(exporter.process.0.id())));
            row.push(format!("{:.1}", cpu / ours));
            rows.push(row);
        }
    }
    print_table(&rows);
    Ok(())
}

fn exporter(name: &'static str, command: &mut Command, config: &Path, port: u16) -> Result<Exporter, Error> {
    let command = command.arg(format!("--config.file={}", config.display())).arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let child = command.arg("--log.level=error").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    Ok(Exporter { name, process: Process(child), port })
}

async fn round(exporter: &Exporter, module: &str, targets: &[String], probes: usize, concurrency: usize, into: &mut Measured) -> Result<(), Error> {
    // In turn: one destination alone gives out of ports.
    let paths: Vec<String> = targets.iter().map(|target| format!("/probe?module={module}&target={target}")).collect();
    closed_loop(exporter.port, &paths, WARM_UP.min(probes), 1).await?;
    let pid = exporter.process.0.id();
    let (cpu, start) = (cpu_seconds(pid), Instant::now());
    let mut took_ms = closed_loop(exporter.port, &paths, probes, concurrency).await?;
    let seconds = start.elapsed().as_secs_f64();
    into.cpu_us.push((cpu_seconds(pid) - cpu) * 1e6 / probes as f64);
    into.per_s.push(probes as f64 / seconds);
    took_ms.sort_by(f64::total_cmp);
    into.p50_ms.push(percentile(&took_ms, 50.0));
    into.p99_ms.push(percentile(&took_ms, 99.0));
    Ok(())
}

/// Every client asks again as soon as it has its answer; each probe must be a success.
async fn closed_loop(port: u16, paths: &[String], probes: usize, concurrency: usize) -> Result<Vec<f64>, Error> {
    let each = probes.div_ceil(concurrency);
    let clients: Vec<_> = (0..concurrency).map(|i| client(port, paths, each, i)).collect();
    let mut all = Vec::with_capacity(each * concurrency);
    for took in futures_util::future::join_all(clients).await {
        all.extend(took?);
    }
    Ok(all)
}

async fn client(port: u16, paths: &[String], probes: usize, first: usize) -> Result<Vec<f64>, Error> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut took_ms = Vec::with_capacity(probes);
    for i in first..first + probes {
        let start = Instant::now();
        ask(&mut sender, &paths[i % paths.len()]).await?;
        took_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    drop(sender);
    let _ = driver.await;
    Ok(took_ms)
}

async fn ask(sender: &mut SendRequest<Empty<Bytes>>, path: &str) -> Result<(), Error> {
    sender.ready().await?;
    let request = http::Request::get(path).header("host", "bench").body(Empty::new())?;
    let body = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
    let text = std::str::from_utf8(&body)?;
    if text.lines().any(|l| l == "probe_success 1") { Ok(()) } else { Err(format!("a probe failed: {text}").into()) }
}
