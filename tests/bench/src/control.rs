//! Committed changes per second. A change of Probity is parsed, judged, replicated, applied, audited and shown as an event; etcd's is a put.
//! Same disk, same bytes of value, same number of clients, one connection for eight clients, in turn.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::{self, Cluster};
use crate::etcd::{self, Etcd};
use crate::stats::{cpu_seconds, median, percentile, print_table, rss_mib};

type Error = Box<dyn std::error::Error>;

/// Bytes of one value.
const VALUE_BYTES: usize = 256;
/// Keys of one client, written in turn.
const KEYS: u64 = 16;
/// Clients that share a connection.
const PER_CONNECTION: usize = 8;

/// What one measurement found.
#[derive(Debug, Default, Clone)]
struct Measured {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Of all three members, per change.
    cpu_us: f64,
    errors: u64,
}

pub(crate) async fn run(probity: &Path, seconds: u64, clients: &[usize], rounds: usize) -> Result<(), Error> {
    let cluster = Cluster::start(probity).await?;
    let etcd = Etcd::start().await?;
    if etcd.is_none() {
        println!("etcd is not installed (Debian: apt-get install etcd-server): Probity alone");
    }
    let mut rows = vec![["clients", "system", "changes/s", "p50", "p99", "cpu/change", "errors", "ratio"].map(str::to_owned).to_vec()];
    for count in clients {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            ours.push(probity_round(&cluster, *count, seconds).await?);
            if let Some(etcd) = &etcd {
                theirs.push(etcd_round(etcd, *count, seconds).await?);
            }
        }
        let (ours, theirs) = (middle(&ours), middle(&theirs));
        let line = |system: &str, m: &Measured, ratio: String| {
            let cells = [
                count.to_string(),
                system.to_owned(),
                format!("{:.0}", m.per_second),
                format!("{:.1} ms", m.p50_ms),
                format!("{:.1} ms", m.p99_ms),
                format!("{:.0} us", m.cpu_us),
                m.errors.to_string(),
                ratio,
            ];
            cells.to_vec()
        };
        if etcd.is_some() {
            rows.push(line("probity", &ours, format!("{:.2}", ours.per_second / theirs.per_second)));
            rows.push(line("etcd", &theirs, "1.00".to_owned()));
        } else {
            rows.push(line("probity", &ours, String::new()));
        }
    }
    print_table(&rows);
    let rss: Vec<String> = cluster.members.iter().map(|m| format!("{:.0}", rss_mib(m.0.id()))).collect();
    println!("memory of the members of Probity afterwards: {} MiB", rss.join(", "));
    Ok(())
}

/// Medians, each for itself.
fn middle(rounds: &[Measured]) -> Measured {
    let of = |f: fn(&Measured) -> f64| median(&mut rounds.iter().map(f).collect::<Vec<f64>>());
    Measured {
        per_second: of(|m| m.per_second),
        p50_ms: of(|m| m.p50_ms),
        p99_ms: of(|m| m.p99_ms),
        cpu_us: of(|m| m.cpu_us),
        errors: rounds.iter().map(|m| m.errors).sum(),
    }
}

/// Runs `clients` tasks on this one thread until the time is over; each gives the latencies of its changes and how many failed.
async fn measure<F, T>(clients: usize, seconds: u64, pids: &[u32], start: F) -> Result<Measured, Error>
where
    F: Fn(usize, Arc<AtomicBool>) -> T,
    T: Future<Output = (Vec<f64>, u64)> + 'static,
{
    let stop = Arc::new(AtomicBool::new(false));
    let cpu = || pids.iter().map(|p| cpu_seconds(*p)).sum::<f64>();
    let (began, cpu_before) = (Instant::now(), cpu());
    let tasks: Vec<_> = (0..clients).map(|i| tokio::task::spawn_local(start(i, stop.clone()))).collect();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let (mut latencies, mut errors) = (Vec::new(), 0);
    for task in tasks {
        let (mut of_task, failed) = task.await?;
        latencies.append(&mut of_task);
        errors += failed;
    }
    let (took, cpu_used) = (began.elapsed().as_secs_f64(), cpu() - cpu_before);
    latencies.sort_by(f64::total_cmp);
    Ok(Measured {
        per_second: latencies.len() as f64 / took,
        p50_ms: percentile(&latencies, 50.0),
        p99_ms: percentile(&latencies, 99.0),
        cpu_us: cpu_used * 1e6 / latencies.len().max(1) as f64,
        errors,
    })
}

async fn probity_round(cluster: &Cluster, clients: usize, seconds: u64) -> Result<Measured, Error> {
    let mut connections = Vec::new();
    for i in 0..clients.div_ceil(PER_CONNECTION) {
        let mut operator = cluster.operator();
        // Finds the leader once; clones share the connection.
        cluster::change(&mut operator, format!("warm-{i}"), 0, VALUE_BYTES).await?;
        connections.push(operator);
    }
    let pids: Vec<u32> = cluster.members.iter().map(|m| m.0.id()).collect();
    measure(clients, seconds, &pids, |i, stop| {
        let mut operator = connections[i / PER_CONNECTION].clone();
        async move {
            let (mut latencies, mut errors, mut n) = (Vec::new(), 0, 0u64);
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let began = Instant::now();
                match cluster::change(&mut operator, format!("r-{i}-{}", n % KEYS), rand::random(), VALUE_BYTES).await {
                    Ok(reply) if reply.problems.is_empty() => latencies.push(began.elapsed().as_secs_f64() * 1e3),
                    _ => errors += 1,
                }
            }
            (latencies, errors)
        }
    })
    .await
}

async fn etcd_round(etcd: &Etcd, clients: usize, seconds: u64) -> Result<Measured, Error> {
    let connections = (0..clients.div_ceil(PER_CONNECTION)).map(|i| etcd.channel(i % 3)).collect::<Result<Vec<_>, _>>()?;
    let pids: Vec<u32> = etcd.members.iter().map(|m| m.0.id()).collect();
    measure(clients, seconds, &pids, |i, stop| {
        let mut channel = connections[i / PER_CONNECTION].clone();
        async move {
            let (mut latencies, mut errors, mut n) = (Vec::new(), 0, 0u64);
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let value: Vec<u8> = rand::random::<u64>().to_le_bytes().into_iter().cycle().take(VALUE_BYTES).collect();
                let began = Instant::now();
                match etcd::put(&mut channel, format!("r-{i}-{}", n % KEYS).into_bytes(), value).await {
                    Ok(()) => latencies.push(began.elapsed().as_secs_f64() * 1e3),
                    Err(_) => errors += 1,
                }
            }
            (latencies, errors)
        }
    })
    .await
}
