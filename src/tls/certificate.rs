//! What the other files of this part ask of a certificate, on top of x509-parser.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;

use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ParsedExtension, X509Extension};
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Name;

/// Parses one certificate that is nothing but that.
pub(super) fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], certificate)) => Some(certificate),
        Ok(_) | Err(_) => None,
    }
}

/// Signed in its own name, as roots are. The signature is not checked: whoever holds the file
/// decided to trust it.
pub(super) fn is_self_issued(certificate: &X509Certificate<'_>) -> bool {
    certificate.subject().as_raw() == certificate.issuer().as_raw()
}

/// Subject key identifier, RFC 5280 section 4.2.1.2.
pub(super) fn subject_key_id<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| {
        let ParsedExtension::SubjectKeyIdentifier(id) = extension.parsed_extension() else {
            return None;
        };
        Some(id.0)
    })
}

/// Authority key identifier, RFC 5280 sections 4.2.1.1 and 5.2.1.
pub(super) fn authority_key_id<'a>(extensions: &'a [X509Extension<'_>]) -> Option<&'a [u8]> {
    extensions.iter().find_map(|extension| {
        let ParsedExtension::AuthorityKeyIdentifier(id) = extension.parsed_extension() else {
            return None;
        };
        id.key_identifier.as_ref().map(|id| id.0)
    })
}

/// Whether an issuer with this key identifier may have signed what names that one. Both are
/// optional, and only two that differ say no.
pub(super) fn may_be_key(subject: Option<&[u8]>, authority: Option<&[u8]>) -> bool {
    subject.zip(authority).is_none_or(|(subject, authority)| subject == authority)
}

/// A time of a certificate. Years that no calendar has do not occur in a certificate that parses.
pub(super) fn date(time: ASN1Time) -> OffsetDateTime {
    time.to_datetime()
}

/// A distinguished name on one line, fit for a log.
pub(super) fn name(name: &X509Name<'_>) -> String {
    escaped(&name.to_string())
}

/// Text that a peer or a file had a hand in, on one line: what could move a cursor is escaped.
pub(super) fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// A point in time as certificates have it: to the second, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Utc(pub(super) OffsetDateTime);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.0.to_calendar_date();
        let (hour, minute, second) = self.0.to_hms();
        let month = u8::from(month);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}
