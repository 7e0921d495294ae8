//! What the operator types: the only place that knows clap and prints.
#![expect(clippy::print_stderr, reason = "a command talks to a person")]

mod escape;
pub mod failure;
mod inspect;
mod progress;
mod size;
mod verify;

pub use self::failure::Failure;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Serve Hexz snapshots over NBD, read-only.
#[derive(Debug, Parser)]
#[command(name = "hexz-nbd", version)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Arguments),
    Verify(verify::Arguments),
}

/// Parses the command line, runs the command, and says how it ended.
///
/// Exit codes: 0 fine, 1 failed, 2 wrong use of the command line.
#[must_use]
pub fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    match run(command_line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("hexz-nbd: {failure}");
            failure.exit_code()
        }
    }
}

fn run(command_line: CommandLine) -> Result<(), Failure> {
    match command_line.command {
        None => Err(Failure::Usage("no command".into())),
        Some(Command::Inspect(arguments)) => inspect::run(arguments),
        Some(Command::Verify(arguments)) => verify::run(arguments),
    }
}
