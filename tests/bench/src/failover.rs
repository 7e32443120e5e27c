//! From kill -9 of the leader to the first change that is committed under the new one, as a client sees it.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::cluster::{self, Cluster};
use crate::stats::{median, percentile};

type Error = Box<dyn std::error::Error>;

/// Between kills: the killed member is back and has caught up.
const SETTLE: Duration = Duration::from_secs(2);

pub(crate) async fn run(probity: &Path, kills: usize) -> Result<(), Error> {
    let mut cluster = Cluster::start(probity).await?;
    let mut seconds = Vec::new();
    for n in 0..kills {
        let leader = cluster.leader().await?;
        let others: Vec<String> = cluster.servers.iter().enumerate().filter(|(i, _)| *i != leader).map(|(_, s)| s.clone()).collect();
        let mut client = probity_rpc::client::Operator::new(others, None, Duration::from_secs(20));
        cluster.kill(leader)?;
        let began = Instant::now();
        cluster::change(&mut client, "after".to_owned(), n as u64, 256).await?;
        seconds.push(began.elapsed().as_secs_f64());
        println!("kill {:>3}: {:.3} s", n + 1, began.elapsed().as_secs_f64());
        cluster.restart(leader)?;
        tokio::time::sleep(SETTLE).await;
    }
    let middle = median(&mut seconds);
    println!(
        "{kills} kills of the leader: first commit under the next one after {middle:.3} s (median), {:.3} s (p90), {:.3} s (worst)",
        percentile(&seconds, 90.0),
        percentile(&seconds, 100.0)
    );
    Ok(())
}
