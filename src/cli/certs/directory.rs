//! The directory of a PKI: which file is what, and how it is read.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer as _, GeneralName};

use crate::cli::Failure;
use crate::cli::certs::client_name::ClientName;
use crate::cli::certs::files::Files;
use crate::tls::issue::{Authority, Host, Issued};
use crate::tls::revocation_list::RevocationList;

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

/// Largest file that is read, in bytes. A revocation list of a hundred thousand entries has less.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Why a file of certificates cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is larger than any file of certificates", .0.display())]
    TooLarge(PathBuf),
    #[error("{}: the PEM is damaged", path.display())]
    Pem { path: PathBuf, source: x509_parser::error::PEMError },
    #[error("{} holds no {what} in PEM", path.display())]
    Missing { path: PathBuf, what: &'static str },
    #[error("{}: the certificate cannot be parsed", .0.display())]
    Certificate(PathBuf),
}

/// All PEM blocks of a file.
pub(super) fn blocks(path: &Path) -> Result<Vec<Pem>, ReadError> {
    Pem::iter_from_buffer(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|source| ReadError::Pem { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    let failed = |source| ReadError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(ReadError::TooLarge(path.to_owned()));
    }
    Ok(bytes)
}

/// The first block of a kind.
fn block(path: &Path, what: &'static str, is: fn(&str) -> bool) -> Result<Pem, ReadError> {
    blocks(path)?
        .into_iter()
        .find(|block| is(&block.label))
        .ok_or_else(|| ReadError::Missing { path: path.to_owned(), what })
}

pub(super) fn is_certificate(label: &str) -> bool {
    label == "CERTIFICATE"
}

pub(super) fn is_crl(label: &str) -> bool {
    label == "X509 CRL"
}

pub(super) fn is_key(label: &str) -> bool {
    label == "PRIVATE KEY" || label.ends_with(" PRIVATE KEY")
}

/// The authority of a directory, if its time is not over.
pub(super) fn authority(directory: &Path, now: OffsetDateTime) -> Result<Authority, Failure> {
    let path = directory.join(CA_CERTIFICATE);
    let certificate = match block(&path, "certificate", is_certificate) {
        Err(ReadError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(Failure::failed(format!(
                "there is no CA in {}: make one with `hexz-nbd certs init {} --host NAME`",
                directory.display(),
                directory.display()
            )));
        }
        certificate => certificate?,
    };
    let key = block(&directory.join(CA_KEY), "private key", is_key)?;
    let authority = Authority::from_der(&certificate.contents, &key.contents)?;
    authority.check_time(now)?;
    Ok(authority)
}

/// The first certificate of a file as it stands there, without what is around it.
pub(super) fn certificate_pem(path: &Path) -> Result<String, ReadError> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let text = String::from_utf8_lossy(&read(path)?).into_owned();
    let pem = text.find(BEGIN).and_then(|begin| {
        let (inside, _) = text.get(begin..)?.split_once(END)?;
        Some(format!("{inside}{END}\n"))
    });
    pem.ok_or_else(|| ReadError::Missing { path: path.to_owned(), what: "certificate" })
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
    match block(&directory.join(CA_CRL), "revocation list", is_crl) {
        Ok(block) => Ok(Some(RevocationList::from_der(&block.contents, authority)?)),
        Err(ReadError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
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
    for block in blocks(path)?.into_iter().filter(|block| is_certificate(&block.label)) {
        let Ok(([], certificate)) = X509Certificate::from_der(&block.contents) else {
            return Err(ReadError::Certificate(path.to_owned()));
        };
        if !certificate.is_ca() {
            return Ok(Leaf {
                serial: certificate.raw_serial().to_vec(),
                not_after: certificate.validity().not_after.to_datetime(),
                hosts: hosts(&certificate),
                der: block.contents,
            });
        }
    }
    Err(ReadError::Missing { path: path.to_owned(), what: "certificate of a server or client" })
}

/// The leaf in a file, if there is the file.
pub(super) fn leaf_if_any(path: &Path) -> Result<Option<Leaf>, ReadError> {
    match leaf(path) {
        Err(ReadError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
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
