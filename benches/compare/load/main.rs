//! `nbd-load`: asks NBD servers for as much as they give, and costs little itself.
//!
//! Client and server of a comparison share the cores, so what the client costs is missing in what
//! the server shows. Hence a thread and a blocking socket for each connection, one write for all
//! requests that can be sent, large reads, and no copy of what was read: replies are checked
//! (magic, error, cookie, length) and their data is thrown away where it lies.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    clippy::cast_possible_truncation,
    reason = "a tool on the command line that measures time"
)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::{fmt, io};

use clap::{Args, Parser, Subcommand};
use serde_json::Value;

mod boot;
mod connect;
mod digest;
mod hold;
mod limit;
mod link;
mod measure;
mod open;
mod plan;
mod read;
mod replies;
mod start;
mod tls;
mod wire;

/// Loads an NBD server and prints what it gave, as one line of JSON.
#[derive(Parser)]
#[command(name = "nbd-load")]
struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Read, and count bytes, requests and microseconds.
    Read(read::Settings),
    /// Connect, open the export and disconnect, over and over.
    Connect(connect::Settings),
    /// Be many machines that boot from one image at the same time.
    Boot(boot::Settings),
    /// Read everything and print a digest of it.
    Digest(digest::Settings),
    /// Open connections and keep them until standard input ends.
    Hold(hold::Settings),
    /// Start a server and print how long its first byte takes.
    Start(start::Settings),
    /// Serve an image from memory without any check: what the machine can do.
    ServeLimit(limit::Settings),
}

/// What is connected to, and how.
#[derive(Args)]
struct Target {
    /// Address and port of the server.
    #[arg(long)]
    address: SocketAddr,
    /// Name of the export.
    #[arg(long, default_value = "")]
    export: String,
    /// Directory with ca-cert.pem, client-cert.pem and client-key.pem: TLS 1.3, on both sides with
    /// a certificate.
    #[arg(long)]
    tls: Option<PathBuf>,
    /// Name that the server's certificate has to have.
    #[arg(long, default_value = "localhost")]
    server_name: String,
    /// Negotiate structured replies.
    #[arg(long)]
    structured: bool,
}

fn main() -> ExitCode {
    let printed = match Command::parse().action {
        Action::Read(settings) => read::run(&settings),
        Action::Connect(settings) => connect::run(&settings),
        Action::Boot(settings) => boot::run(&settings),
        Action::Digest(settings) => digest::run(&settings),
        Action::Hold(settings) => hold::run(&settings),
        Action::Start(settings) => start::run(&settings),
        Action::ServeLimit(settings) => limit::run(&settings),
    };
    match printed {
        Ok(Value::Null) => ExitCode::SUCCESS,
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("nbd-load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// An error that says what was being done.
fn doing(what: impl fmt::Display) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}
