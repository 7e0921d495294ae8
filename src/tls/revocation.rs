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

use crate::tls::certificate;
use crate::tls::fault::{MaterialError, MaterialErrorKind, Warning};
use crate::tls::material::Found;

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
    let Ok(([], list)) = CertificateRevocationList::from_der(der) else {
        return Err(MaterialErrorKind::UnusableCrl { number, reason: webpki::Error::BadDer });
    };
    if list.version().is_none() {
        return Err(MaterialErrorKind::OldCrl { number });
    }
    webpki::BorrowedCertRevocationList::from_der(der)
        .map_err(|reason| MaterialErrorKind::UnusableCrl { number, reason })?;
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

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;
    use rcgen::{CrlDistributionPoint, CrlIssuingDistributionPoint, KeyIdMethod};
    use time::Duration;

    use crate::tls::material::Material;
    use crate::tls::testing::{Ca, Files, now, sources};

    /// A server whose client CAs and lists are these.
    fn load(cas: &[&Ca], crls: &[&str]) -> Result<Material, MaterialError> {
        let (files, ca) = (Files::new(), Ca::new("of the server"));
        let mut sources = sources(&files.write("srv.pem", ca.server().pem()));
        let texts: String = cas.iter().map(|ca| ca.cert.as_str()).collect();
        sources.client_cas = vec![files.write("ca.pem", texts)];
        sources.crls = vec![files.write("crl.pem", crls.concat())];
        Material::load(&sources)
    }

    #[test]
    fn a_list_that_covers_only_some_certificates_is_refused() {
        let ca = Ca::new("test CA");
        let part = ca.crl_with(&[], |params| {
            params.issuing_distribution_point = Some(CrlIssuingDistributionPoint {
                distribution_point: CrlDistributionPoint { uris: vec!["http://a/1.crl".into()] },
                scope: None,
            });
        });
        let error = load(&[&ca], &[&part]).unwrap_err();
        assert!(matches!(error.kind, MaterialErrorKind::PartialCrl { .. }), "{error}");
    }

    /// What `openssl ca` makes without a crlnumber file.
    #[test]
    fn a_list_of_version_1_is_refused_with_the_remedy() {
        let (ca, files) = (Ca::new("test CA"), Files::new());
        files.write("ca.pem", &ca.cert);
        files.write("key.pem", &ca.key);
        files.write("index.txt", "");
        let settings = "default_ca=d\n[d]\ndatabase=index.txt\ndefault_md=sha256";
        files.write("ca.cnf", format!("[ca]\n{settings}\ndefault_crl_days=30\n"));
        files.openssl("ca -gencrl -config ca.cnf -cert ca.pem -keyfile key.pem -out crl.pem");
        let error = load(&[&ca], &[&files.text("crl.pem")]).unwrap_err();
        assert!(matches!(error.kind, MaterialErrorKind::OldCrl { number: 1 }), "{error}");
        assert!(error.to_string().contains("crlnumber"), "{error}");
    }

    #[test]
    fn a_list_that_another_key_signed_is_refused_before_it_locks_everybody_out() {
        let (ca, namesake) = (Ca::new("test CA"), Ca::new("test CA"));
        let error = load(&[&ca], &[&namesake.crl(&[])]).unwrap_err();
        assert!(matches!(error.kind, MaterialErrorKind::CrlOfOtherKey { .. }), "{error}");
        // With no list, two CAs of one name are no problem; with one, it is of either.
        assert!(load(&[&ca, &namesake], &[&Ca::new("other CA").crl(&[])]).is_ok());
        let error = load(&[&ca, &namesake], &[&ca.crl(&[])]).unwrap_err();
        assert!(matches!(error.kind, MaterialErrorKind::AmbiguousCrl { .. }), "{error}");
        // The same CA twice is one.
        assert!(load(&[&ca, &ca], &[&ca.crl(&[])]).is_ok());
    }

    #[test]
    fn a_list_that_names_no_key_is_believed_to_be_of_the_ca_of_its_name() {
        let ca = Ca::new("test CA");
        let unnamed = ca.crl_with(&[], |params| {
            params.key_identifier_method = KeyIdMethod::PreSpecified(vec![]);
        });
        // An identifier that is empty differs from that of the CA.
        let error = load(&[&ca], &[&unnamed]).unwrap_err();
        assert!(matches!(error.kind, MaterialErrorKind::CrlOfOtherKey { .. }), "{error}");
        assert!(certificate::may_be_key(None, Some(&[1])));
        assert!(certificate::may_be_key(Some(&[1]), None));
    }

    #[test]
    fn lists_that_are_late_or_of_nobody_known_are_worth_a_warning() {
        let (ca, other) = (Ca::new("test CA"), Ca::new("other CA"));
        let stale = ca.crl_with(&[], |params| {
            params.this_update = now() - Duration::DAY * 3;
            params.next_update = now() - Duration::DAY;
        });
        let material = load(&[&ca], &[&stale, &other.crl(&[])]).unwrap();
        assert_eq!(material.crls.len(), 2);
        let [stale, foreign] = &material.warnings[..] else { panic!("{:?}", material.warnings) };
        assert!(matches!(stale, Warning::StaleCrl { issuer, .. } if issuer == "CN=test CA"));
        assert!(matches!(foreign, Warning::ForeignCrl { issuer, .. } if issuer == "CN=other CA"));
    }

    /// RUSTSEC-2026-0104 was a panic on such a list.
    #[test]
    fn a_list_that_is_damaged_anywhere_is_an_error_or_is_not_believed_and_nothing_worse() {
        let (ca, files) = (Ca::new("test CA"), Files::new());
        files.write("crl.pem", ca.crl(&[&ca.client("revoked")]));
        files.openssl("crl -in crl.pem -outform der -out crl.der");
        let der = std::fs::read(files.path("crl.der")).unwrap();
        let parsed = certificate::parse(&ca.der).unwrap();
        assert!(check_one(&der, 1, std::slice::from_ref(&parsed)).is_ok());
        for index in 0..der.len() {
            for flip in [1, 0x80, 0xff] {
                let mut damaged = der.clone();
                damaged[index] ^= flip;
                let _ = check_one(&damaged, 1, std::slice::from_ref(&parsed));
            }
            let _ = check_one(&der[..index], 1, &[]);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange_to_be_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            prop_assert!(check_one(&bytes, 1, &[]).is_err());
        }
    }
}
