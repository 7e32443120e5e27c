//! One file per group of subcommands.

mod apply;
pub(crate) mod blackbox;
mod ca;
mod cluster;
mod context;
mod demo;
mod describe;
mod gameday;
mod get;
mod halt;
pub(crate) mod import;
pub(crate) mod probe;
mod server;
mod shop;
mod slo;
mod status;
mod targets;
mod up;
mod watch;

use std::process::ExitCode;

use clap::CommandFactory;

use crate::Outcome;
use crate::api::Api;
use crate::args::{AlertCommand, CaCommand, Cli, Command, Format, GameDayCommand, ImportCommand, SloCommand, TargetsCommand};
use crate::renewal;
use crate::settings::Settings;

/// Runs the subcommand.
pub(crate) async fn run(cli: Cli) -> Outcome {
    let global = cli.global;
    let format = global.output;
    // What runs here, or needs nobody, asks for no context.
    let command = match cli.command {
        Command::Up(args) => return up::run(args).await,
        Command::Coordinator(args) => return server::coordinator(args).await,
        Command::Prober(args) => return server::prober(args).await,
        Command::Shop(args) => return shop::run(args).await,
        Command::Probe(args) => return Ok(probe::run(*args, matches!(format, crate::args::Format::Json)).await),
        Command::Explain(args) => return apply::explain(args),
        Command::Ca(CaCommand::Init(args)) => return ca::init(args),
        Command::Ca(CaCommand::Sign(args)) => return ca::sign(args),
        Command::Context(command) => return context::run(command, &global),
        Command::Blackbox(args) => return blackbox::run(args).await,
        Command::Import(ImportCommand::Blackbox(args)) => return import::blackbox(args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "probity", &mut std::io::stdout());
            return Ok(ExitCode::SUCCESS);
        }
        Command::Version => {
            println!("probity {}", env!("CARGO_PKG_VERSION"));
            return Ok(ExitCode::SUCCESS);
        }
        command => command,
    };
    let settings = Settings::resolve(&global)?;
    renewal::mend(&settings);
    let mut api = Api::new(&settings)?;
    let outcome = asked(&mut api, &settings, command, format).await;
    renewal::look(&settings, api.operator.address()).await;
    outcome
}

/// What is asked of the coordinators.
async fn asked(api: &mut Api, settings: &Settings, command: Command, format: Format) -> Outcome {
    match command {
        Command::Apply(args) => apply::apply(api, args, format).await,
        Command::Diff(args) => apply::diff(api, args, format).await,
        Command::Validate(args) => apply::validate(&settings.namespace, args, format),
        Command::Get(args) => get::get(api, args, format).await,
        Command::Describe(args) => describe::describe(api, args, format).await,
        Command::Delete(args) => apply::delete(api, args).await,
        Command::Status => status::status(api, format).await,
        Command::Events(args) => get::events(api, args, format).await,
        Command::Audit(args) => get::audit(api, args, format).await,
        Command::Alert(AlertCommand::List) => get::plain(api, "alerts", format).await,
        Command::Alert(AlertCommand::History) => get::plain(api, "episodes", format).await,
        Command::Slo(SloCommand::Explain { name }) => slo::explain(api, &name, format).await,
        Command::GameDay(command) => match command {
            GameDayCommand::Plan(args) => gameday::plan(api, args, format).await,
            GameDayCommand::Run(args) => gameday::run(api, args, format).await,
            GameDayCommand::List => get::plain(api, "gamedays", format).await,
            GameDayCommand::Report { name } => gameday::report(api, &name, format).await,
            GameDayCommand::Abort { name, reason } => gameday::abort(api, &name, reason).await,
        },
        Command::Targets(TargetsCommand::Accept { probe, yes }) => targets::accept(api, &probe, yes).await,
        Command::Halt(args) => halt::run(api, args, format).await,
        Command::Cluster(command) => cluster::run(api, command, format).await,
        Command::Ca(CaCommand::Token(args)) => ca::token(api, settings, args, format).await,
        Command::Ca(CaCommand::Enrol(args)) => ca::enrol_here(settings, args).await,
        Command::Ca(CaCommand::Revoke(args)) => ca::revoke(api, args).await,
        Command::Up(_)
        | Command::Coordinator(_)
        | Command::Prober(_)
        | Command::Shop(_)
        | Command::Probe(_)
        | Command::Explain(_)
        | Command::Ca(CaCommand::Init(_) | CaCommand::Sign(_))
        | Command::Context(_)
        | Command::Blackbox(_)
        | Command::Import(_)
        | Command::Completions { .. }
        | Command::Version => unreachable!("answered above"),
    }
}
