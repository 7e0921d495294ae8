//! `hexz-nbd certs server`: a new certificate for the server, from the CA that is there.

use std::io::{self, Write as _};
use std::path::PathBuf;

use time::OffsetDateTime;

use crate::cli::Failure;
use crate::cli::certs::directory::{self, SERVER_CERTIFICATE};
use crate::cli::certs::files::Files;
use crate::cli::certs::{init, report};
use crate::tls::issue::{Host, Validity};

/// Renew the server's certificate, or make it for other names.
///
/// Needs --force to replace the certificate that `certs init` made. Clients and their certificates
/// stay as they are, and a running server notices the new one.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Directory of the PKI
    #[arg(long = "dir", value_name = "DIR", default_value = "certs")]
    directory: PathBuf,

    /// DNS name or IP address that clients use to reach the server, repeatable [default: those of
    /// the certificate that is there]
    #[arg(long = "host", value_name = "NAME|IP", value_delimiter = ',')]
    hosts: Vec<Host>,

    /// Days that the certificate is valid, though no longer than the CA is
    #[arg(long, value_name = "N", default_value_t = 365,
        value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,

    /// Replace the certificate and the key that are there
    #[arg(long)]
    force: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let directory = &arguments.directory;
    let now = OffsetDateTime::now_utc();
    let authority = directory::authority(directory, now)?;
    let mut hosts = arguments.hosts.clone();
    if hosts.is_empty()
        && let Some(before) = directory::leaf_if_any(&directory.join(SERVER_CERTIFICATE))?
    {
        hosts = before.hosts;
    }
    let hosts = init::with_loopback(&hosts);
    let validity = Validity::days(now, arguments.days)?.within(authority.not_after());
    let server = authority.server(&hosts, validity)?;
    let ca_pem = authority.certificate_pem();

    let mut files = Files::default();
    directory::plan_server(&mut files, directory, &server, &ca_pem);
    files.write(arguments.force)?;
    writeln!(
        io::stdout(),
        "made a certificate for {}, valid until {}",
        hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        report::date(server.not_after),
    )?;
    Ok(())
}
