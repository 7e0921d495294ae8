//! Certificate revocation lists: read, extended, signed again. No I/O.

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::X509Extension;
use x509_parser::revocation_list::{CertificateRevocationList, RevokedCertificate};
use x509_parser::x509::ReasonCode;
use x509_parser::{parse_x509_certificate, parse_x509_crl};

use super::issue::{Authority, CLOCK_SKEW};

/// Why a revocation list cannot be read or signed.
#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    /// It is damaged or something else.
    #[error("the revocation list cannot be parsed")]
    Malformed,
    /// Extending it would vouch for what somebody else wrote.
    #[error("the revocation list is not signed by this CA")]
    OfAnother,
    /// It has something that changes its meaning and would be lost.
    #[error("the revocation list has a critical extension, which would be lost")]
    Unsupported,
    /// Signing failed.
    #[error("the revocation list cannot be signed")]
    Sign(#[source] rcgen::Error),
}

/// What an authority has revoked.
#[derive(Debug, Default)]
pub struct RevocationList {
    /// Number of the list that was read, in big-endian bytes. Empty before the first.
    number: Vec<u8>,
    entries: Vec<RevokedCertParams>,
}

impl RevocationList {
    /// Reads a list in DER that the authority has signed.
    ///
    /// # Errors
    ///
    /// [`RevocationError`] if it is not one, or is of another authority, or could not be written
    /// again without losing something that matters.
    pub fn from_der(der: &[u8], authority: &Authority) -> Result<Self, RevocationError> {
        let Ok(([], list)) = parse_x509_crl(der) else { return Err(RevocationError::Malformed) };
        let Ok((_, ca)) = parse_x509_certificate(&authority.certificate) else {
            return Err(RevocationError::Malformed);
        };
        if list.issuer().as_raw() != ca.subject().as_raw()
            || list.verify_signature(ca.public_key()).is_err()
        {
            return Err(RevocationError::OfAnother);
        }
        let critical = |extensions: &[X509Extension<'_>]| extensions.iter().any(|e| e.critical);
        if critical(list.extensions())
            || list.iter_revoked_certificates().any(|entry| critical(entry.extensions()))
        {
            return Err(RevocationError::Unsupported);
        }
        Ok(Self {
            number: number(&list),
            entries: list.iter_revoked_certificates().map(kept).collect(),
        })
    }

    /// How many certificates are on it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// When the certificate with this serial number was revoked. In big-endian bytes, with leading
    /// zeros or without.
    #[must_use]
    pub fn revoked_at(&self, serial: &[u8]) -> Option<OffsetDateTime> {
        let serial = without_zeros(serial);
        let entry = self
            .entries
            .iter()
            .find(|entry| without_zeros(entry.serial_number.as_ref()) == serial)?;
        Some(entry.revocation_time)
    }

    /// Adds a certificate. Does nothing if it is there already.
    pub fn add(&mut self, serial: &[u8], at: OffsetDateTime, reason: RevocationReason) {
        if self.revoked_at(serial).is_none() {
            self.entries.push(RevokedCertParams {
                serial_number: SerialNumber::from_slice(without_zeros(serial)),
                revocation_time: at,
                reason_code: Some(reason),
                invalidity_date: None,
            });
        }
    }

    /// Signs the list under the next number, in PEM.
    ///
    /// It is good for as long as the authority is: it lies beside the server that reads it, so a
    /// date before that would protect from nothing and lock everybody out when it passes.
    ///
    /// # Errors
    ///
    /// [`RevocationError::Sign`].
    pub fn sign(
        &self,
        authority: &Authority,
        now: OffsetDateTime,
    ) -> Result<String, RevocationError> {
        let this_update = now.saturating_sub(CLOCK_SKEW);
        let params = CertificateRevocationListParams {
            this_update,
            // Later than `this_update` even if the authority has expired, when nothing matters.
            next_update: authority.not_after().max(now.saturating_add(Duration::days(1))),
            crl_number: SerialNumber::from(next(&self.number)),
            issuing_distribution_point: None,
            revoked_certs: self.entries.clone(),
            key_identifier_method: match &authority.key_identifier {
                Some(identifier) => KeyIdMethod::PreSpecified(identifier.clone()),
                None => KeyIdMethod::Sha256,
            },
        };
        params
            .signed_by(&authority.issuer)
            .and_then(|list| list.pem())
            .map_err(RevocationError::Sign)
    }
}

fn number(list: &CertificateRevocationList<'_>) -> Vec<u8> {
    list.crl_number().map(|number| number.to_bytes_be()).unwrap_or_default()
}

/// An entry as it is written again.
fn kept(entry: &RevokedCertificate<'_>) -> RevokedCertParams {
    RevokedCertParams {
        serial_number: SerialNumber::from_slice(without_zeros(entry.raw_serial())),
        revocation_time: entry.revocation_date.to_datetime(),
        reason_code: entry.reason_code().and_then(|(_, code)| reason(code)),
        invalidity_date: entry.invalidity_date().map(|(_, date)| date.to_datetime()),
    }
}

fn reason(code: ReasonCode) -> Option<RevocationReason> {
    use RevocationReason as R;
    // The numbers of RFC 5280, section 5.3.1. There is no 7.
    [
        R::Unspecified,
        R::KeyCompromise,
        R::CaCompromise,
        R::AffiliationChanged,
        R::Superseded,
        R::CessationOfOperation,
        R::CertificateHold,
        R::RemoveFromCrl,
        R::PrivilegeWithdrawn,
        R::AaCompromise,
    ]
    .into_iter()
    .find(|reason| *reason as i64 == i64::from(code.0))
}

fn without_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    // A serial number of zero is one zero.
    bytes.get(zeros.min(bytes.len().saturating_sub(1))..).unwrap_or(bytes)
}

/// The number after this one.
fn next(number: &[u8]) -> Vec<u8> {
    let mut next = number.to_vec();
    for byte in next.iter_mut().rev() {
        let (sum, overflow) = byte.overflowing_add(1);
        *byte = sum;
        if !overflow {
            return next;
        }
    }
    next.insert(0, 1);
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::issue::Validity;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn authority() -> Authority {
        Authority::generate(Validity::days(now(), 365).unwrap()).unwrap().0
    }

    fn der(pem: &str) -> Vec<u8> {
        x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
    }

    #[test]
    fn earlier_entries_stay_and_the_number_grows() {
        let authority = authority();
        let mut list = RevocationList::default();
        let read = |list: &RevocationList| {
            let der = der(&list.sign(&authority, now()).unwrap());
            RevocationList::from_der(&der, &authority).unwrap()
        };
        let reasons = [
            RevocationReason::KeyCompromise,
            RevocationReason::Superseded,
            RevocationReason::PrivilegeWithdrawn,
        ];
        for (index, reason) in (1_u8..).zip(reasons) {
            list = read(&list);
            assert_eq!(list.number, [index]);
            list.add(&[0x90, index], now(), reason);
            // Twice is once.
            list.add(&[0, 0x90, index], now() + Duration::days(1), RevocationReason::Unspecified);
        }
        let list = read(&list);
        assert_eq!((list.number.as_slice(), list.len()), (&[4][..], 3));
        for (entry, reason) in list.entries.iter().zip(reasons) {
            assert_eq!(entry.reason_code, Some(reason));
        }
        assert_eq!(list.revoked_at(&[0x90, 2]), Some(now()));
        assert_eq!(list.revoked_at(&[0x90, 4]), None);
    }

    #[test]
    fn the_list_of_another_authority_is_not_extended() {
        let (own, other) = (authority(), authority());
        let pem = RevocationList::default().sign(&other, now()).unwrap();
        let error = RevocationList::from_der(&der(&pem), &own).unwrap_err();
        assert!(matches!(error, RevocationError::OfAnother), "{error}");

        let pem = RevocationList::default().sign(&own, now()).unwrap();
        let mut damaged = der(&pem);
        *damaged.last_mut().unwrap() ^= 1;
        let error = RevocationList::from_der(&damaged, &own).unwrap_err();
        assert!(matches!(error, RevocationError::OfAnother), "{error}");
        let error = RevocationList::from_der(b"garbage", &own).unwrap_err();
        assert!(matches!(error, RevocationError::Malformed), "{error}");
    }

    #[test]
    fn numbers_carry() {
        for (number, after) in [
            (&[][..], &[1][..]),
            (&[0], &[1]),
            (&[41], &[42]),
            (&[0xff], &[1, 0]),
            (&[1, 0xff, 0xff], &[2, 0, 0]),
        ] {
            assert_eq!(next(number), after);
        }
    }
}
