//! `coordinator` and `prober`: one server from one file; and what all servers share: signals, logs, traces.

use std::process::ExitCode;

use probity_coordinator::CoordinatorConfig;
use probity_otel::Otel;
use probity_prober::ProberConfig;
use probity_rpc::access::Role;
use probity_rpc::tls::{Certified, TlsFiles, written};
use tokio_util::sync::CancellationToken;

use crate::args::{ProberArgs, ServerArgs};
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
    // The exporter over HTTP makes a TLS client, whatever its URL is.
    let _ = rustls::crypto::ring::default_provider().install_default();
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
    mend(config.tls.as_ref())?;
    let stop = stop_on_signal();
    let members = config.initial_members.values().filter(|a| **a != config.advertise).cloned();
    let addresses = std::iter::once(config.advertise.clone()).chain(members).collect();
    keep_renewed(addresses, config.tls.as_ref(), &stop);
    let running = probity_coordinator::start(config, stop).await.map_err(|e| Fail::of(exit::NO, &e))?;
    tracing::info!(member = name, http = %running.http_addr, grpc = %running.grpc_addr, "coordinator runs");
    running.wait().await.map_err(|e| Fail::of(exit::NO, &e))?;
    tracing::info!(member = name, "coordinator has ended");
    Ok(ExitCode::SUCCESS)
}

/// Ends a renewal that a crash cut short.
fn mend(tls: Option<&TlsFiles>) -> Result<(), Fail> {
    if let Some(files) = tls
        && probity_rpc::enrol::mend(files).map_err(|e| Fail::of(exit::NO, &e))?
    {
        tracing::info!(dir = %files.dir.display(), "a renewal of the certificate that was cut short is ended");
    }
    Ok(())
}

/// Keeps the certificate of a server alive, for as long as it runs. With certificates of another authority somebody else does that, and
/// the log says once that the cluster cannot.
fn keep_renewed(addresses: Vec<String>, tls: Option<&TlsFiles>, stop: &CancellationToken) {
    let Some(files) = tls.cloned() else { return };
    let stop = stop.clone();
    let last = std::sync::Mutex::new(String::new());
    let told = move |end: Result<&Certified, &str>| match end {
        Ok(own) => tracing::info!(serial = own.serial, until = written(own.not_after_s), "the certificate was renewed"),
        Err(why) => {
            let repeated = last.lock().is_ok_and(|mut last| std::mem::replace(&mut *last, why.to_owned()) == why);
            if !repeated {
                tracing::warn!(why, "the certificate was not renewed; it is tried again until it ends");
            }
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = probity_rpc::enrol::keep_renewed(addresses, files, told) => {}
        }
    });
}

pub(super) async fn prober(args: ProberArgs) -> Outcome {
    let token_file = args.token_file;
    let args = args.server;
    let mut config = ProberConfig::load(&args.config, args.insecure).map_err(Fail::misuse)?;
    if args.check {
        println!("{}: prober {:?}, coordinators {}: ok", args.config.display(), config.name, config.coordinators.join(", "));
        return Ok(ExitCode::SUCCESS);
    }
    log("info");
    config.otel = otel("probity-prober", &config.name)?;
    let name = config.name.clone();
    mend(config.tls.as_ref())?;
    if let Some(files) = &config.tls {
        match token_file {
            Some(token_file) if !files.has_own() => {
                let who = super::ca::enrol_with(&config.coordinators, &token_file, files).await?;
                tracing::info!(who, "enrolled");
            }
            Some(_) => tracing::info!(dir = %files.dir.display(), "there is a certificate: the token is not used"),
            None => {}
        }
        files.own_as(Role::Prober, &name).map_err(|e| Fail::of(exit::MISUSE, &e))?;
    } else if token_file.is_some() {
        return Err(Fail::misuse(format!("{}: tls is not set: there is no place for what a token gets", args.config.display())));
    }
    tracing::info!(prober = name, "prober runs");
    let stop = stop_on_signal();
    keep_renewed(config.coordinators.clone(), config.tls.as_ref(), &stop);
    probity_prober::run(config, stop).await.map_err(|e| Fail::of(exit::NO, &e))?;
    tracing::info!(prober = name, "prober has ended");
    Ok(ExitCode::SUCCESS)
}
