//! Revocation lists that can be relied on.
//!
//! webpki asks one list about a certificate: the first whose issuer has the name of the
//! certificate's issuer, and whose distribution point, if it has one, fits. What could make that
//! the wrong list, or none, is refused here or put in order.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::cmp::Reverse;
use std::path::PathBuf;

use rustls::pki_types::CertificateRevocationListDer;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::certificate;
use super::fault::{MaterialError, MaterialErrorKind, Warning};
use super::material::Found;

/// OID of the extension "issuing distribution point", RFC 5280 section 5.2.5.
const ISSUING_DISTRIBUTION_POINT: &str = "2.5.29.28";

/// A revocation list and where it was found.
pub(super) struct FoundCrl {
    pub(super) file: PathBuf,
    /// Which one of the file, counted from 1.
    pub(super) number: usize,
    pub(super) der: CertificateRevocationListDer<'static>,
}

/// Checks the lists against the CAs and returns them, the newest first: of two lists of one CA,
/// the first is the one that counts.
pub(super) fn check(
    found: Vec<FoundCrl>,
    client_cas: &[Found],
    now: OffsetDateTime,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<CertificateRevocationListDer<'static>>, MaterialError> {
    let cas: Vec<_> = client_cas.iter().filter_map(|ca| certificate::parse(&ca.der)).collect();
    let mut dated = Vec::with_capacity(found.len());
    for FoundCrl { file, number, der } in found {
        let dates = check_one(&der, number, &cas);
        let Dates { this_update, next_update, issuer, is_foreign } =
            dates.map_err(|kind| MaterialError { file: file.clone(), kind })?;
        if is_foreign {
            let (file, issuer) = (file.clone(), issuer.clone());
            warnings.push(Warning::ForeignCrl { file, issuer });
        }
        if let Some(next_update) = next_update.filter(|next_update| *next_update < now) {
            warnings.push(Warning::StaleCrl { file, issuer, next_update });
        }
        dated.push((this_update, der));
    }
    dated.sort_by_key(|(this_update, _)| Reverse(*this_update));
    Ok(dated.into_iter().map(|(_, der)| der).collect())
}

/// What there is to say of a list that is fine.
struct Dates {
    this_update: OffsetDateTime,
    next_update: Option<OffsetDateTime>,
    issuer: String,
    /// Of none of the CAs.
    is_foreign: bool,
}

fn check_one(
    der: &[u8],
    number: usize,
    cas: &[X509Certificate<'_>],
) -> Result<Dates, MaterialErrorKind> {
    webpki::BorrowedCertRevocationList::from_der(der)
        .map_err(|reason| MaterialErrorKind::UnusableCrl { number, reason })?;
    let Ok(([], list)) = CertificateRevocationList::from_der(der) else {
        return Err(MaterialErrorKind::UnusableCrl { number, reason: webpki::Error::BadDer });
    };
    let issuer = certificate::name(list.issuer());
    let extensions = list.extensions();
    if extensions.iter().any(|extension| extension.oid.to_id_string() == ISSUING_DISTRIBUTION_POINT)
    {
        return Err(MaterialErrorKind::PartialCrl { issuer });
    }
    let mut named = cas.iter().filter(|ca| ca.subject().as_raw() == list.issuer().as_raw());
    let first = named.clone().next();
    if let Some(first) = first {
        let key = first.public_key().raw;
        if named.clone().any(|ca| ca.public_key().raw != key) {
            return Err(MaterialErrorKind::AmbiguousCrl { issuer });
        }
        let authority = certificate::authority_key_id(extensions);
        if !named.all(|ca| certificate::may_be_key(certificate::subject_key_id(ca), authority)) {
            return Err(MaterialErrorKind::CrlOfOtherKey { issuer });
        }
    }
    Ok(Dates {
        this_update: certificate::date(list.last_update()),
        next_update: list.next_update().map(certificate::date),
        issuer,
        is_foreign: first.is_none(),
    })
}
