//! `coordinator` and `prober`: one server from one file; and what all servers share: signals, logs, traces.

use std::process::ExitCode;

use probity_coordinator::CoordinatorConfig;
use probity_otel::Otel;
use probity_prober::ProberConfig;
use tokio_util::sync::CancellationToken;

use crate::args::ServerArgs;
use crate::{Fail, Outcome, exit};

/// Waits for Ctrl-C or SIGTERM.
pub(super) async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        },
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}

/// A token that a signal cancels. The second signal ends the process at once: everything accepted is on disk anyway.
pub(super) fn stop_on_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        stop_signal().await;
        told.cancel();
        stop_signal().await;
        std::process::exit(130);
    });
    stop
}

/// Log lines go to standard error; `RUST_LOG` says which.
pub(super) fn log(default: &str) {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let _ = format.with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()).try_init();
}

/// Where spans and metrics go, as the environment says.
pub(super) fn otel(service: &str, instance: &str) -> Result<Otel, Fail> {
    let attributes = [("service.instance.id", instance.to_owned()), ("service.version", env!("CARGO_PKG_VERSION").to_owned())];
    Otel::from_env(service, &attributes).map_err(|e| Fail::of(exit::MISUSE, &e))
}

pub(super) async fn coordinator(args: ServerArgs) -> Outcome {
    let mut config = CoordinatorConfig::load(&args.config, args.insecure).map_err(Fail::misuse)?;
    if args.check {
        println!("{}: coordinator {:?} of cluster {:?}, http {}, grpc {}: ok", args.config.display(), config.name, config.cluster, config.http, config.grpc);
        return Ok(ExitCode::SUCCESS);
    }
    log("info");
    config.otel = otel("probity-coordinator", &config.name)?;
    let name = config.name.clone();
    let stop = stop_on_signal();
    let running = probity_coordinator::start(config, stop).await.map_err(|e| Fail::of(exit::NO, &e))?;
    tracing::info!(member = name, http = %running.http_addr, grpc = %running.grpc_addr, "coordinator runs");
    running.wait().await.map_err(|e| Fail::of(exit::NO, &e))?;
    tracing::info!(member = name, "coordinator has ended");
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn prober(args: ServerArgs) -> Outcome {
    let mut config = ProberConfig::load(&args.config).map_err(Fail::misuse)?;
    if args.check {
        println!("{}: prober {:?}, coordinators {}: ok", args.config.display(), config.name, config.coordinators.join(", "));
        return Ok(ExitCode::SUCCESS);
    }
    log("info");
    config.otel = otel("probity-prober", &config.name)?;
    let name = config.name.clone();
    tracing::info!(prober = name, "prober runs");
    probity_prober::run(config, stop_on_signal()).await.map_err(|e| Fail::of(exit::NO, &e))?;
    tracing::info!(prober = name, "prober has ended");
    Ok(ExitCode::SUCCESS)
}
