//! The log: on standard error, for people or for machines.

use std::io::{IsTerminal as _, stderr};

use clap::{Args, ValueEnum};
use tracing::Level;

/// What to log, and how.
#[derive(Debug, Args)]
#[group(skip)]
#[command(next_help_heading = "Logging")]
pub(crate) struct Arguments {
    /// How much to log: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: Level,

    /// Lines for people, or a JSON object a line
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: Format,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

/// Begins to log. Once in a process.
pub(crate) fn start(arguments: &Arguments) {
    let log = tracing_subscriber::fmt()
        .with_writer(stderr)
        .with_max_level(arguments.log_level)
        .with_target(false);
    match arguments.log_format {
        Format::Text => log.with_ansi(stderr().is_terminal()).init(),
        Format::Json => log.json().flatten_event(true).init(),
    }
}
