//! `hexz-nbd certs init`: a directory with a CA and a certificate for the server.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use time::OffsetDateTime;

use crate::cli::Failure;
use crate::cli::certs::client_lines::quoted;
use crate::cli::certs::directory::{self, CA_CERTIFICATE, CA_CRL, CA_KEY, SERVER_BUNDLE};
use crate::cli::certs::files::{Files, FilesError};
use crate::cli::certs::report;
use crate::tls::issue::{Authority, Host, Validity};
use crate::tls::revocation_list::RevocationList;

/// How long a CA is valid, in days. One that serves longer has to be replaced on every client.
const CA_DAYS: u32 = 3650;

/// Make a CA and a certificate for the server.
///
/// Writes ca-cert.pem, ca-key.pem and an empty ca-crl.pem; server-cert.pem and server-key.pem; and
/// srv.pem, which has what a server needs in one file. These are the names that QEMU, libvirt and
/// nbdkit look for.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Directory of the PKI. Made if it does not exist
    #[arg(value_name = "DIR", default_value = "certs")]
    directory: PathBuf,

    /// DNS name or IP address that clients use to reach the server, repeatable
    ///
    /// Clients compare it with what they dialled. localhost, 127.0.0.1 and ::1 are always added.
    #[arg(long = "host", value_name = "NAME|IP", value_delimiter = ',')]
    hosts: Vec<Host>,

    /// Days that the server's certificate is valid. The CA is valid for 3650, or for as many if
    /// they are more
    #[arg(long, value_name = "N", default_value_t = 365,
        value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,

    /// Replace the CA and what is there. No client certificate of the CA before it is good any more
    #[arg(long)]
    force: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let directory = &arguments.directory;
    let hosts = with_loopback(&arguments.hosts);
    let now = OffsetDateTime::now_utc();
    let (authority, ca) = Authority::generate(Validity::days(now, arguments.days.max(CA_DAYS))?)?;
    let server = authority.server(&hosts, Validity::days(now, arguments.days)?)?;
    let crl = RevocationList::default().sign(&authority, now)?;

    let mut files = Files::default();
    files.secret(directory.join(CA_KEY), ca.key_pem);
    files.public(directory.join(CA_CERTIFICATE), ca.certificate_pem.clone());
    files.public(directory.join(CA_CRL), crl);
    directory::plan_server(&mut files, directory, &server, &ca.certificate_pem);
    match files.write(arguments.force) {
        Err(error @ FilesError::Exists(_)) => {
            return Err(Failure::failed(format!(
                "{error} and all certificates of its CA; \
                 `hexz-nbd certs server` renews the server's alone"
            )));
        }
        result => result?,
    }

    let path = |name| quoted(&directory.join(name).to_string_lossy());
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "made a CA, valid until {}, and a certificate for {}, valid until {}",
        report::date(ca.not_after),
        hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        report::date(server.not_after),
    )?;
    writeln!(out, "\nserve snapshots to whoever holds a client certificate of this CA:")?;
    writeln!(
        out,
        "  hexz-nbd --tls-cert {} --listen 0.0.0.0:10809 SNAPSHOT.hxz",
        path(SERVER_BUNDLE)
    )?;
    writeln!(out, "\nmake such a certificate:")?;
    writeln!(out, "  hexz-nbd certs client NAME --dir {}", quoted(&directory.to_string_lossy()))?;
    writeln!(
        out,
        "\nkeep {} secret: who has it can make certificates; the server does not need it",
        path(CA_KEY)
    )?;
    Ok(())
}

/// The hosts, each once, and this host under its own names.
pub(super) fn with_loopback(given: &[Host]) -> Vec<Host> {
    let mut hosts: Vec<Host> = Vec::new();
    for host in given.iter().cloned().chain(loopback()) {
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

pub(super) fn loopback() -> [Host; 3] {
    [
        Host::Dns("localhost".to_owned()),
        Host::Address(Ipv4Addr::LOCALHOST.into()),
        Host::Address(Ipv6Addr::LOCALHOST.into()),
    ]
}
