//! `hexz-nbd certs client`: a certificate for somebody who may read, and how to use it.

use std::io::{self, Write as _};
use std::path::{self, Path, PathBuf};

use time::OffsetDateTime;

use crate::cli::Failure;
use crate::cli::certs::client_lines::{ClientFiles, Target, quoted};
use crate::cli::certs::client_name::ClientName;
use crate::cli::certs::directory::{self, Leaf, SERVER_CERTIFICATE};
use crate::cli::certs::files::Files;
use crate::cli::certs::{init, report};
use crate::cli::escape::Escaped;
use crate::tls::issue::{Authority, Client, Host, Validity};

/// Make a certificate for a client, and show how clients use it.
///
/// Writes DIR/NAME.pem, with key, certificate and CA in one file, and the same in DIR/NAME/ as
/// ca-cert.pem, client-cert.pem and client-key.pem, where libnbd and QEMU look for them. Then
/// prints the lines to type on the client.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Who it is for: the common name of the certificate, which --allow-cn lets in
    #[arg(value_name = "NAME", value_parser = ClientName::parse)]
    name: ClientName,

    /// Directory of the PKI
    #[arg(long = "dir", value_name = "DIR", default_value = "certs")]
    directory: PathBuf,

    /// Organizational unit, which --allow-ou lets in
    #[arg(long, value_name = "OU")]
    ou: Option<String>,

    /// Host name in the certificate, which --allow-dns lets in, repeatable
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,

    /// URI in the certificate, which --allow-uri lets in, such as spiffe://example.org/builder,
    /// repeatable
    #[arg(long, value_name = "URI")]
    uri: Vec<String>,

    /// Days that the certificate is valid, though no longer than the CA is
    #[arg(long, value_name = "N", default_value_t = 365,
        value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,

    /// Server to show the lines for, repeatable [default: the hosts of the server's certificate]
    #[arg(long = "server", value_name = "HOST[:PORT]", value_parser = Target::parse)]
    servers: Vec<Target>,

    /// Export to show the lines for [default: the server's default export]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    export: String,

    /// Replace the certificate and the key that are there
    ///
    /// The certificate that was there stays good until it expires or is revoked.
    #[arg(long)]
    force: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let directory = &arguments.directory;
    let now = OffsetDateTime::now_utc();
    let authority = directory::authority(directory, now)?;
    let ca_pem = authority.certificate_pem();
    let targets = targets(arguments)?;
    let client = Client {
        common_name: arguments.name.as_str().to_owned(),
        organizational_unit: arguments.ou.clone(),
        dns_names: arguments.dns.clone(),
        uris: arguments.uri.clone(),
    };
    let validity = Validity::days(now, arguments.days)?.within(authority.not_after());
    let issued = authority.client(&client, validity)?;

    let bundle = directory.join(arguments.name.bundle());
    let split = directory.join(arguments.name.as_str());
    let replaced = replaced(&arguments.name, directory, &authority, now);
    let mut files = Files::default();
    directory::plan_client(&mut files, directory, &arguments.name, &issued, &ca_pem);
    files.write(arguments.force)?;

    let mut out = io::stdout().lock();
    writeln!(
        out,
        "made a certificate for {}, valid until {}, fingerprint {}",
        arguments.name.as_str(),
        report::date(issued.not_after),
        report::fingerprint(&issued.certificate),
    )?;
    if let Some(replaced) = replaced {
        writeln!(
            out,
            "the one before it stays good until {}, unless it is revoked:\n  \
             hexz-nbd certs revoke --serial {} --dir {}",
            report::date(replaced.not_after),
            report::hex(&replaced.serial),
            quoted(&directory.to_string_lossy()),
        )?;
    }
    let show = |path: &Path| Escaped(&path.to_string_lossy()).to_string();
    writeln!(
        out,
        "\ncopy {} to a client that uses nbd-client, or the directory {} to one that uses libnbd \
         or QEMU,\nand put their place there into these lines:",
        show(&bundle),
        show(&split)
    )?;
    let files =
        ClientFiles { bundle: path::absolute(&bundle)?, directory: path::absolute(&split)? };
    for target in targets {
        write!(out, "\n{}", target.lines(&arguments.export, &files))?;
    }
    Ok(())
}

/// The servers to show lines for. A server's own names for itself only if it has no others, and no
/// wildcards: nobody can dial them.
fn targets(arguments: &Arguments) -> Result<Vec<Target>, Failure> {
    if !arguments.servers.is_empty() {
        return Ok(arguments.servers.clone());
    }
    let server = directory::leaf_if_any(&arguments.directory.join(SERVER_CERTIFICATE))?;
    let loopback = init::loopback();
    let remote = |host: &Host| !loopback.contains(host) && !host.to_string().starts_with('*');
    let mut hosts: Vec<_> =
        server.map(|server| server.hosts).unwrap_or_default().into_iter().filter(remote).collect();
    if hosts.is_empty() {
        hosts.extend(loopback.into_iter().take(1));
    }
    Ok(hosts.into_iter().map(Target::of).collect())
}

/// The certificate that is about to be replaced, if somebody could still use it. What cannot be
/// read is replaced without a word: it is of no use to anybody.
fn replaced(
    name: &ClientName,
    directory: &Path,
    authority: &Authority,
    now: OffsetDateTime,
) -> Option<Leaf> {
    let leaf = directory::leaf(&directory::client_certificate(directory, name)?).ok()?;
    let revoked = directory::revocation_list(directory, authority).ok().flatten();
    let revoked = revoked.is_some_and(|list| list.revoked_at(&leaf.serial).is_some());
    (leaf.not_after > now && !revoked).then_some(leaf)
}
