//! What a verified certificate says about its holder.
//!
//! Nothing here decides whether a certificate is genuine: rustls did, before its chain gets here.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt::{self, Write as _};
use std::str::FromStr;

use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::x509::AttributeTypeAndValue;

use super::certificate;

/// SHA-256 of a certificate in DER, as `openssl x509 -fingerprint -sha256` shows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        // A SHA-256 has 32 bytes, so that all of them are copied.
        for (to, from) in bytes.iter_mut().zip(digest::digest(&digest::SHA256, der).as_ref()) {
            *to = *from;
        }
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Text that is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a SHA-256 fingerprint: 64 hexadecimal digits are expected, as \
     `openssl x509 -noout -fingerprint -sha256` and `hexz-nbd certs show` print them"
)]
pub struct FingerprintError;

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    /// Takes what tools print: in upper or lower case, with a colon between the bytes or without,
    /// and with `SHA256:` before it or not.
    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let digits = match text.split_at_checked("sha256:".len()) {
            Some((prefix, digits)) if prefix.eq_ignore_ascii_case("sha256:") => digits,
            Some(_) | None => text,
        };
        let separated = digits.contains(':');
        let mut characters = digits.chars();
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            if separated && index != 0 && characters.next() != Some(':') {
                return Err(FingerprintError);
            }
            let mut digit = || characters.next()?.to_digit(16);
            let (high, low) = digit().zip(digit()).ok_or(FingerprintError)?;
            *byte = u8::try_from(high << 4 | low).map_err(|_| FingerprintError)?;
        }
        if characters.next().is_some() { Err(FingerprintError) } else { Ok(Self(bytes)) }
    }
}

/// Why a certificate says nothing about its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// There is none.
    #[error("the chain has no certificate")]
    NoCertificate,
    /// rustls takes it, and it cannot be parsed all the same.
    #[error("the certificate cannot be parsed")]
    Malformed,
    /// Its alternative names cannot be parsed, or there are two lists of them.
    #[error("the alternative names of the certificate cannot be parsed")]
    MalformedNames,
}

/// The holder of a verified certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Common name. The last one where there are several, which is the most specific.
    pub common_name: Option<String>,
    /// Organizational units, in the order of the certificate.
    pub organizational_units: Vec<String>,
    /// Alternative names that are host names.
    pub dns_names: Vec<String>,
    /// Alternative names that are URIs, such as SPIFFE ids.
    pub uris: Vec<String>,
    /// Of the certificate itself.
    pub fingerprint: Fingerprint,
    /// Serial number in hexadecimal, without leading zeros.
    pub serial: String,
    /// Distinguished name of who signed it. Fit for a log.
    pub issuer: String,
    /// Until when it is valid.
    pub not_after: OffsetDateTime,
}

impl PeerIdentity {
    /// Reads the first certificate of a chain that was verified.
    ///
    /// # Errors
    ///
    /// [`IdentityError`] if there is something in it that cannot be read. Who that is cannot be
    /// said, so they are not let in.
    pub fn from_chain(chain: &[CertificateDer<'_>]) -> Result<Self, IdentityError> {
        let der = chain.first().ok_or(IdentityError::NoCertificate)?;
        let certificate = certificate::parse(der).ok_or(IdentityError::Malformed)?;
        let (mut dns_names, mut uris) = (Vec::new(), Vec::new());
        let names =
            certificate.subject_alternative_name().map_err(|_| IdentityError::MalformedNames)?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                GeneralName::Invalid(..) => return Err(IdentityError::MalformedNames),
                GeneralName::OtherName(..)
                | GeneralName::RFC822Name(_)
                | GeneralName::X400Address(_)
                | GeneralName::DirectoryName(_)
                | GeneralName::EDIPartyName(_)
                | GeneralName::IPAddress(_)
                | GeneralName::RegisteredID(..) => {}
            }
        }
        let subject = certificate.subject();
        Ok(Self {
            common_name: subject.iter_common_name().last().and_then(text),
            organizational_units: subject.iter_organizational_unit().filter_map(text).collect(),
            dns_names,
            uris,
            fingerprint: Fingerprint::of(der),
            serial: certificate.serial.to_str_radix(16),
            issuer: certificate::name(certificate.issuer()),
            not_after: certificate::date(certificate.validity().not_after),
        })
    }
}

/// The text of an attribute. None if it is empty or in an encoding of the last century, which no
/// rule can match then.
fn text(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    attribute.as_str().ok().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// One line for a log. Names are quoted, and what could move a cursor is escaped: the CA vouches
/// for who they belong to, not for what they look like.
impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = String::new();
        if let Some(name) = &self.common_name {
            write!(line, "CN={name:?} ")?;
        }
        for (kind, names) in
            [("OU", &self.organizational_units), ("DNS", &self.dns_names), ("URI", &self.uris)]
        {
            for name in names {
                write!(line, "{kind}={name:?} ")?;
            }
        }
        write!(f, "{line}SHA256:{}", self.fingerprint)
    }
}
