//! The `probity` command: arguments in, one call, readable output. Everything that decides lives in the crates below it.

mod api;
mod args;
mod cmd;
mod output;
mod renewal;
mod settings;

use std::process::ExitCode;

use clap::Parser;

// A coordinator makes and drops small pieces on several threads all the time: a third of its processor time went to glibc's malloc.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit codes of the whole command.
pub(crate) mod exit {
    /// The answer is no: refused, not found, degraded.
    pub(crate) const NO: u8 = 1;
    /// The command line or a configuration file is wrong.
    pub(crate) const MISUSE: u8 = 2;
    /// No coordinator answered, or there is no quorum.
    pub(crate) const UNREACHABLE: u8 = 3;
    /// A game day was aborted.
    pub(crate) const ABORTED: u8 = 4;
    /// A game day could not tell.
    pub(crate) const INCONCLUSIVE: u8 = 5;
}

/// Why a command ends early: what to print, and the exit code.
#[derive(Debug)]
pub(crate) struct Fail {
    code: u8,
    pub(crate) message: String,
}

impl Fail {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Fail { code, message: message.into() }
    }

    pub(crate) fn no(message: impl Into<String>) -> Self {
        Fail::new(exit::NO, message)
    }

    pub(crate) fn misuse(message: impl Into<String>) -> Self {
        Fail::new(exit::MISUSE, message)
    }

    /// An error with its causes, on one line.
    pub(crate) fn of(code: u8, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let text = inner.to_string();
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = inner.source();
        }
        Fail { code, message }
    }
}

pub(crate) type Outcome = Result<ExitCode, Fail>;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(cmd::run(cli));
    // Whatever still runs was told to stop and has been awaited; a stuck blocking task must not hold the shell.
    runtime.shutdown_timeout(std::time::Duration::from_secs(3));
    match outcome {
        Ok(code) => code,
        Err(fail) => {
            eprintln!("error: {}", fail.message);
            ExitCode::from(fail.code)
        }
    }
}
