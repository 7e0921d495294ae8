//! What the operator types: the only place that knows clap and prints.
#![expect(clippy::print_stderr, reason = "a command talks to a person")]

mod cache_size;
mod certs;
mod config_file;
mod demo;
mod duration;
mod escape;
mod export_argument;
mod exports;
pub mod failure;
mod generate;
mod inspect;
mod key_files;
mod keygen;
mod logging;
mod memory;
mod monitoring;
mod open_files;
mod pack;
mod passphrases;
mod progress;
mod reading;
mod report;
mod serve;
mod service_manager;
mod settings;
mod sign;
mod signatures;
mod size;
mod tls_settings;
mod uri;
mod verify;

pub use self::failure::Failure;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Serve Hexz snapshots over NBD, read-only
#[derive(Debug, Parser)]
#[command(name = "hexz-nbd", version, args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    serve: serve::Arguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    Pack(pack::Arguments),
    Inspect(inspect::Arguments),
    Verify(verify::Arguments),
    Keygen(keygen::Arguments),
    Sign(sign::Arguments),
    Demo(demo::Arguments),
    Certs(certs::Arguments),
    Generate(generate::Arguments),
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
        None => serve::run(command_line.serve),
        Some(Command::Pack(arguments)) => pack::run(arguments),
        Some(Command::Inspect(arguments)) => inspect::run(arguments),
        Some(Command::Verify(arguments)) => verify::run(arguments),
        Some(Command::Keygen(arguments)) => keygen::run(&arguments),
        Some(Command::Sign(arguments)) => sign::run(&arguments),
        Some(Command::Demo(arguments)) => demo::run(&arguments),
        Some(Command::Certs(arguments)) => certs::run(arguments),
        Some(Command::Generate(arguments)) => generate::run(&arguments),
    }
}
