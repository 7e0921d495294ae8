//! `hexz-nbd certs`: a small PKI of one's own, in one directory.

mod client;
mod client_lines;
mod client_name;
pub(crate) mod demo;
mod directory;
mod files;
mod init;
mod report;
mod revoke;
mod server;
mod show;

pub(crate) use self::client_lines::{ClientFiles, Target, quoted};

use crate::cli::Failure;

/// Make, revoke and look at certificates.
///
/// `certs init` makes an authority (CA) and a certificate for the server, `certs client NAME` one
/// for each client. Whoever holds a client certificate of this CA may be let in; whoever holds
/// ca-key.pem can make more of them, and the server does not need it.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Init(init::Arguments),
    Server(server::Arguments),
    Client(client::Arguments),
    Revoke(revoke::Arguments),
    Show(show::Arguments),
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Init(arguments) => init::run(&arguments),
        Command::Server(arguments) => server::run(&arguments),
        Command::Client(arguments) => client::run(&arguments),
        Command::Revoke(arguments) => revoke::run(&arguments),
        Command::Show(arguments) => show::run(&arguments),
    }
}
