//! One file per group of subcommands.

mod apply;
mod ca;
mod cluster;
mod demo;
mod describe;
mod gameday;
mod get;
mod halt;
pub(crate) mod probe;
mod server;
mod shop;
mod slo;
mod status;
mod up;
mod watch;

use std::process::ExitCode;

use clap::CommandFactory;

use crate::Outcome;
use crate::api::Api;
use crate::args::{AlertCommand, CaCommand, Cli, Command, GameDayCommand, SloCommand};

/// Runs the subcommand.
pub(crate) async fn run(cli: Cli) -> Outcome {
    let global = cli.global;
    let mut api = Api::new(&global);
    let format = global.output;
    match cli.command {
        Command::Up(args) => up::run(args).await,
        Command::Coordinator(args) => server::coordinator(args).await,
        Command::Prober(args) => server::prober(args).await,
        Command::Shop(args) => shop::run(args).await,
        Command::Probe(args) => Ok(probe::run(args, matches!(format, crate::args::Format::Json)).await),
        Command::Apply(args) => apply::apply(&mut api, args, format).await,
        Command::Diff(args) => apply::diff(&mut api, args, format).await,
        Command::Validate(args) => apply::validate(&global.namespace, args, format),
        Command::Get(args) => get::get(&mut api, args, format).await,
        Command::Describe(args) => describe::describe(&mut api, args, format).await,
        Command::Delete(args) => apply::delete(&mut api, args).await,
        Command::Explain(args) => apply::explain(args),
        Command::Status => status::status(&mut api, format).await,
        Command::Events(args) => get::events(&mut api, args, format).await,
        Command::Audit => get::plain(&mut api, "audit", format).await,
        Command::Alert(AlertCommand::List) => get::plain(&mut api, "alerts", format).await,
        Command::Alert(AlertCommand::History) => get::plain(&mut api, "episodes", format).await,
        Command::Slo(SloCommand::Explain { name }) => slo::explain(&mut api, &name, format).await,
        Command::GameDay(command) => match command {
            GameDayCommand::Plan(args) => gameday::plan(&mut api, args, format).await,
            GameDayCommand::Run(args) => gameday::run(&mut api, args, format).await,
            GameDayCommand::List => get::plain(&mut api, "gamedays", format).await,
            GameDayCommand::Report { name } => gameday::report(&mut api, &name, format).await,
            GameDayCommand::Abort { name, reason } => gameday::abort(&mut api, &name, reason).await,
        },
        Command::Halt(args) => halt::run(&mut api, args, format).await,
        Command::Cluster(command) => cluster::run(&mut api, command, format).await,
        Command::Ca(CaCommand::Init(args)) => ca::init(args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "probity", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Version => {
            println!("probity {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    }
}
