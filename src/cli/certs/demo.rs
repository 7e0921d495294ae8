//! Certificates for `hexz-nbd demo`, made when it starts.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use crate::cli::Failure;
use crate::cli::certs::client_lines::ClientFiles;
use crate::cli::certs::client_name::ClientName;
use crate::cli::certs::directory::{self, SERVER_BUNDLE};
use crate::cli::certs::files::Files;
use crate::cli::certs::init;
use crate::tls::issue::{Authority, Client, Validity};

/// Longer than anybody looks at a demonstration.
const DAYS: u32 = 30;

/// Makes certificates for a server on this host and for one client. Returns the server's file and
/// the client's. The key of the CA is kept by nobody.
pub(crate) fn make(directory: &Path, client: &str) -> Result<(PathBuf, ClientFiles), Failure> {
    let name = ClientName::parse(client)?;
    let validity = Validity::days(OffsetDateTime::now_utc(), DAYS)?;
    let (authority, ca) = Authority::generate(validity)?;
    let server = authority.server(&init::loopback(), validity)?;
    let identity = Client { common_name: client.to_owned(), ..Client::default() };
    let client = authority.client(&identity, validity)?;
    let mut files = Files::default();
    directory::plan_server(&mut files, directory, &server, &ca.certificate_pem);
    directory::plan_client(&mut files, directory, &name, &client, &ca.certificate_pem);
    files.write(false)?;
    let client = ClientFiles {
        bundle: directory.join(name.bundle()),
        directory: directory.join(name.as_str()),
    };
    Ok((directory.join(SERVER_BUNDLE), client))
}
