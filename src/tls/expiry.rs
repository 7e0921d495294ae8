//! Until when certificates and revocation lists are good, for whoever wants to be told in time.

use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::tls::certificate::{date, name, parse};
use crate::tls::material::Material;

/// What ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Expiring {
    /// The server's own certificate, or one above it that it sends along.
    Server,
    /// That of a CA which signs client certificates.
    ClientCa,
    /// A revocation list. It goes on to be used.
    RevocationList,
}

/// Until when something is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// What it is.
    pub what: Expiring,
    /// Whose certificate, or who made the list.
    pub name: String,
    /// Its last second, in Unix time.
    pub unix_seconds: i64,
}

/// Of everything that is in use. What does not say when it ends is left out.
pub(super) fn expiries(material: &Material) -> Vec<Expiry> {
    let server = material.chain.iter().map(|der| (Expiring::Server, der));
    let cas = material.client_cas.iter().map(|der| (Expiring::ClientCa, der));
    let certificates = server.chain(cas).filter_map(|(what, der)| {
        let certificate = parse(der)?;
        let unix_seconds = date(certificate.validity().not_after).unix_timestamp();
        Some(Expiry { what, name: name(certificate.subject()), unix_seconds })
    });
    let lists = material.crls.iter().filter_map(|der| {
        let (_, list) = CertificateRevocationList::from_der(der).ok()?;
        let unix_seconds = date(list.next_update()?).unix_timestamp();
        Some(Expiry { what: Expiring::RevocationList, name: name(list.issuer()), unix_seconds })
    });
    certificates.chain(lists).collect()
}
