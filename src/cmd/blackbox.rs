//! `blackbox`: a stand-in for prometheus/blackbox_exporter, by its own flags.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use probity_prober::ProbeContext;
use probity_prober::blackbox::{Exporter, Options, load, reload_on_hangup, router};
use probity_prober::kinds::ContextConfig;
use probity_prober::policy::AddressPolicy;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use super::server;
use crate::{Fail, Outcome};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  probity blackbox --config.file=/etc/prometheus/blackbox.yml --config.check\n  probity blackbox --config.file=/etc/prometheus/blackbox.yml --web.listen-address=:9115\n  curl 'http://127.0.0.1:9115/probe?module=http_2xx&target=https://example.com&debug=true'\n\nWhat differs from blackbox_exporter: docs/blackbox.md"
)]
pub(crate) struct BlackboxArgs {
    /// Configuration; read again on SIGHUP and POST /-/reload
    #[arg(long = "config.file", default_value = "blackbox.yml", value_name = "FILE")]
    config_file: PathBuf,
    /// Only check the configuration
    #[arg(long = "config.check")]
    config_check: bool,
    /// Where to listen, as :9115 or 127.0.0.1:9115; may be given again
    #[arg(long = "web.listen-address", default_value = ":9115", value_parser = listen_address, value_name = "ADDR")]
    listen: Vec<SocketAddr>,
    /// Seconds taken off the time-out that Prometheus asks for
    #[arg(long, default_value_t = 0.5, value_name = "SECONDS")]
    timeout_offset: f64,
    /// Probes that are remembered for / and /logs
    #[arg(long = "history.limit", default_value_t = 100, value_name = "N")]
    history_limit: usize,
    /// Least level that is logged
    #[arg(long = "log.level", value_enum, default_value_t = Level::Info)]
    log_level: Level,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

/// As Go has it: without a host it is all addresses of this one, of both families.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix(':') {
        let port = port.parse().map_err(|_| format!("{text:?} has no port (want for example :9115)"))?;
        return Ok(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port));
    }
    text.parse().map_err(|_| format!("{text:?} is no address to listen on (want for example :9115 or 127.0.0.1:9115)"))
}

/// More history than this is a mistake: each entry has some kilobytes.
const HISTORY_MAX: usize = 100_000;

pub(super) async fn run(args: BlackboxArgs) -> Outcome {
    if !(0.0..=3_600.0).contains(&args.timeout_offset) {
        return Err(Fail::misuse(format!("--timeout-offset {} is out of range (want 0 to 3600 seconds)", args.timeout_offset)));
    }
    if args.history_limit > HISTORY_MAX {
        return Err(Fail::misuse(format!("--history.limit {} is out of range (want at most {HISTORY_MAX})", args.history_limit)));
    }
    if args.config_check {
        let config = load(&args.config_file).map_err(Fail::no)?;
        println!("{}: {} modules: ok", args.config_file.display(), config.modules.len());
        return Ok(ExitCode::SUCCESS);
    }
    server::log(match args.log_level {
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    });
    let options =
        Options { timeout_offset_us: (args.timeout_offset * 1e6) as u64, history_limit: args.history_limit, ..Options::new(args.config_file.clone()) };
    let otel = server::otel("probity-blackbox", "blackbox")?;
    let context = ProbeContext::new(ContextConfig { address_policy: AddressPolicy::Anywhere, otel, ..ContextConfig::default() });
    let exporter = Arc::new(Exporter::new(options, Arc::new(context)).map_err(Fail::no)?);
    let stop = server::stop_on_signal();
    let tasks = TaskTracker::new();
    for address in &args.listen {
        let listener = TcpListener::bind(address).await.map_err(|e| Fail::no(format!("cannot listen on {address}: {e}")))?;
        tracing::info!(address = %listener.local_addr().unwrap_or(*address), file = %args.config_file.display(), "blackbox listens");
        let (router, stop) = (router(exporter.clone()), stop.clone());
        tasks.spawn(async move {
            let told = stop.clone();
            if let Err(e) = axum::serve(listener, router).with_graceful_shutdown(async move { told.cancelled().await }).await {
                tracing::error!("the listener has ended: {e}");
                stop.cancel();
            }
        });
    }
    tasks.spawn(reload_on_hangup(exporter, stop.clone()));
    tasks.close();
    tasks.wait().await;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_go_writes_them() {
        assert_eq!(listen_address(":9115"), Ok("[::]:9115".parse().expect("an address")));
        assert_eq!(listen_address("127.0.0.1:1"), Ok("127.0.0.1:1".parse().expect("an address")));
        assert!([":", "9115", ":x", "host:1"].iter().all(|a| listen_address(a).is_err()));
    }
}
