//! The command line of pbm-fs: arguments, output and progress. All logic is in the crates below.

mod args;
mod commands;
mod exit;
mod format;
mod open;
mod progress;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind as ClapKind;

use crate::args::{Cli, OutputFormat};
use crate::exit::{Failure, Outcome};

fn main() -> ExitCode {
    // The guard of a lock is this program again: it must not start threads or read arguments like everybody else.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|a| a == pbmfs_agent::lock::guard::GUARD_ARGUMENT)
    {
        return guard();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    start_log(cli.global.verbose);
    let format = cli.global.output;
    match commands::run(cli) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed(code)) => ExitCode::from(code),
        Err(failure) => {
            failure.print(format);
            ExitCode::from(failure.code())
        }
    }
}

fn guard() -> ExitCode {
    match pbmfs_agent::lock::guard::run(std::io::stdin(), std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            format::note(format!("pbm-fs lock guard: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// Wrong arguments: as clap words it, or as JSON when the command line asks for that anywhere.
fn usage(e: &clap::Error) -> ExitCode {
    let asked: Vec<_> = std::env::args_os().collect();
    let json = asked
        .windows(2)
        .any(|w| (w[0] == "-o" || w[0] == "--out") && w[1] == "json")
        || asked
            .iter()
            .any(|a| a == "--out=json" || a == "-ojson" || a == "-o=json");
    let help = matches!(e.kind(), ClapKind::DisplayHelp | ClapKind::DisplayVersion);
    if json && !help {
        let text = e.to_string();
        // What comes behind an empty line are hints.
        let lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
        let sentence = lines.collect::<Vec<_>>().join(" ");
        Failure::usage(sentence.strip_prefix("error: ").unwrap_or(&sentence)).print(OutputFormat::Json);
    } else {
        // A closed stdout or stderr is no reason to fail differently.
        let _ = e.print();
    }
    ExitCode::from(if help { exit::DONE } else { exit::USAGE })
}

fn start_log(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("PBMFS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Colours only for people; and a line that cannot be written is lost rather than a panic.
        .with_ansi(std::io::stderr().is_terminal())
        .log_internal_errors(false)
        .with_target(false)
        .compact()
        .init();
}
