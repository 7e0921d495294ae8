//! The log: on standard error, for people or for machines.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{IsTerminal as _, stderr};
use std::panic::PanicHookInfo;

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

/// Begins to log, panics included. Once in a process.
pub(crate) fn start(arguments: &Arguments) {
    let log = tracing_subscriber::fmt()
        .with_writer(stderr)
        .with_max_level(arguments.log_level)
        .with_target(false);
    match arguments.log_format {
        Format::Text => log.with_ansi(stderr().is_terminal()).init(),
        Format::Json => log.json().flatten_event(true).init(),
    }
    std::panic::set_hook(Box::new(log_panic));
}

/// As a line of the log like any other, so that whoever collects it finds panics too, and a name in
/// the message cannot forge lines.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let backtrace =
        (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    let location = panic.location().map(tracing::field::display);
    let panic = panic.payload_as_str();
    tracing::error!(panic, location, backtrace, "a bug in hexz-nbd; please report it");
}
