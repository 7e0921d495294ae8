//! The directory of a PKI: which file is what, and how it is read.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::{FromDer as _, GeneralName};

use crate::cli::Failure;
use crate::cli::certs::client_name::ClientName;
use crate::cli::certs::files::Files;
use crate::tls::issue::{Authority, Host, Issued};
use crate::tls::pem::CRLS_BYTES_MAX;
use crate::tls::revocation_list::RevocationList;
use crate::tls::{FileError, Pem};

pub(super) const CA_CERTIFICATE: &str = "ca-cert.pem";
pub(super) const CA_KEY: &str = "ca-key.pem";
pub(super) const CA_CRL: &str = "ca-crl.pem";
pub(super) const SERVER_CERTIFICATE: &str = "server-cert.pem";
const SERVER_KEY: &str = "server-key.pem";
pub(super) const SERVER_BUNDLE: &str = "srv.pem";
pub(super) const CLIENT_CERTIFICATE: &str = "client-cert.pem";
const CLIENT_KEY: &str = "client-key.pem";

/// Files of the directory that no client may be named after.
pub(super) const FIXED: [&str; 6] =
    [CA_CERTIFICATE, CA_KEY, CA_CRL, SERVER_CERTIFICATE, SERVER_KEY, SERVER_BUNDLE];

/// Why a file of certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} holds no {what} in PEM", path.display())]
    Missing { path: PathBuf, what: &'static str },
    #[error("{}: the certificate cannot be parsed", .0.display())]
    Certificate(PathBuf),
}

impl ReadError {
    fn missing(path: &Path, what: &'static str) -> Self {
        Self::Missing { path: path.to_owned(), what }
    }

    fn is_absent(&self) -> bool {
        matches!(self, Self::File(error) if error.kind.is_absent())
    }
}

/// What a file holds. Revocation lists are what makes one large.
pub(super) fn read(path: &Path) -> Result<Pem, ReadError> {
    Ok(Pem::read(path, CRLS_BYTES_MAX)?)
}

/// The authority of a directory, if its time is not over.
pub(super) fn authority(directory: &Path, now: OffsetDateTime) -> Result<Authority, Failure> {
    let path = directory.join(CA_CERTIFICATE);
    let pem = match read(&path) {
        Err(error) if error.is_absent() => {
            return Err(Failure::failed(format!(
                "there is no CA in {}: make one with `hexz-nbd certs init {} --host NAME`",
                directory.display(),
                directory.display()
            )));
        }
        pem => pem?,
    };
    let certificate = pem.certificates.into_iter().next();
    let certificate = certificate.ok_or_else(|| ReadError::missing(&path, "certificate"))?;
    let path = directory.join(CA_KEY);
    let key = read(&path)?.keys.into_iter().next();
    let key = key.ok_or_else(|| ReadError::missing(&path, "private key"))?;
    let authority = Authority::from_der(&certificate, key.secret_der())?;
    authority.check_time(now)?;
    Ok(authority)
}

/// Where the certificate of a client is. Its one file may have been moved to the client.
pub(super) fn client_certificate(directory: &Path, name: &ClientName) -> Option<PathBuf> {
    let bundle = directory.join(name.bundle());
    let split = directory.join(name.as_str()).join(CLIENT_CERTIFICATE);
    [bundle, split].into_iter().find(|path| path.exists())
}

/// What the authority of a directory has revoked. `None` if there is no list.
pub(super) fn revocation_list(
    directory: &Path,
    authority: &Authority,
) -> Result<Option<RevocationList>, Failure> {
    let path = directory.join(CA_CRL);
    match read(&path) {
        Ok(pem) => {
            let list = pem.crls.into_iter().next();
            let list = list.ok_or_else(|| ReadError::missing(&path, "revocation list"))?;
            Ok(Some(RevocationList::from_der(&list, authority)?))
        }
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What matters of a leaf certificate in a file: the first that is not one of a CA.
pub(super) struct Leaf {
    pub(super) der: Vec<u8>,
    pub(super) serial: Vec<u8>,
    pub(super) not_after: OffsetDateTime,
    pub(super) hosts: Vec<Host>,
}

pub(super) fn leaf(path: &Path) -> Result<Leaf, ReadError> {
    for der in read(path)?.certificates {
        let Ok(([], certificate)) = X509Certificate::from_der(&der) else {
            return Err(ReadError::Certificate(path.to_owned()));
        };
        if !certificate.is_ca() {
            return Ok(Leaf {
                serial: certificate.raw_serial().to_vec(),
                not_after: certificate.validity().not_after.to_datetime(),
                hosts: hosts(&certificate),
                der: der.to_vec(),
            });
        }
    }
    Err(ReadError::missing(path, "certificate of a server or client"))
}

/// The leaf in a file, if there is the file.
pub(super) fn leaf_if_any(path: &Path) -> Result<Option<Leaf>, ReadError> {
    match leaf(path) {
        Err(error) if error.is_absent() => Ok(None),
        leaf => leaf.map(Some),
    }
}

fn hosts(certificate: &X509Certificate<'_>) -> Vec<Host> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let host = |name: &GeneralName<'_>| {
        if let GeneralName::DNSName(name) = name {
            name.parse().ok()
        } else if let GeneralName::IPAddress(bytes) = name {
            address(bytes).map(Host::Address)
        } else {
            None
        }
    };
    names.value.general_names.iter().filter_map(host).collect()
}

/// An address as certificates have it.
pub(super) fn address(bytes: &[u8]) -> Option<std::net::IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(Into::into);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(Into::into)).ok()
}

/// Plans the files of a server.
pub(super) fn plan_server(files: &mut Files, directory: &Path, server: &Issued, ca_pem: &str) {
    let path = |name| directory.join(name);
    files.public(path(SERVER_CERTIFICATE), server.certificate_pem.clone());
    files.secret(path(SERVER_KEY), server.key_pem.clone());
    files.secret(path(SERVER_BUNDLE), bundle(server, ca_pem));
}

/// Plans the files of a client.
pub(super) fn plan_client(
    files: &mut Files,
    directory: &Path,
    name: &ClientName,
    client: &Issued,
    ca_pem: &str,
) {
    let split = directory.join(name.as_str());
    files.public(split.join(CA_CERTIFICATE), ca_pem.to_owned());
    files.public(split.join(CLIENT_CERTIFICATE), client.certificate_pem.clone());
    files.secret(split.join(CLIENT_KEY), client.key_pem.clone());
    files.secret(directory.join(name.bundle()), bundle(client, ca_pem));
}

/// Key, certificate and CA in one file.
fn bundle(issued: &Issued, ca_pem: &str) -> String {
    [&*issued.key_pem, &issued.certificate_pem, ca_pem].concat()
}
