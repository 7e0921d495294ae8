//! What a verified certificate says about its holder.
//!
//! Nothing here decides whether a certificate is genuine: rustls did, before its chain gets here.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::x509::AttributeTypeAndValue;

use crate::tls::certificate;

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

/// One line for a log: the names and the fingerprint.
impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.names();
        let space = if names.is_empty() { "" } else { " " };
        write!(f, "{names}{space}SHA256:{}", self.fingerprint)
    }
}

impl PeerIdentity {
    /// The names, such as `CN="alice" DNS="alice.example.org"`, in one line. They are quoted, and what
    /// could move a cursor is escaped: the CA vouches for who they belong to, not for what they look
    /// like. Empty if there are none.
    #[must_use]
    pub fn names(&self) -> String {
        let mut names = Vec::new();
        if let Some(name) = &self.common_name {
            names.push(format!("CN={name:?}"));
        }
        for (kind, of_kind) in
            [("OU", &self.organizational_units), ("DNS", &self.dns_names), ("URI", &self.uris)]
        {
            names.extend(of_kind.iter().map(|name| format!("{kind}={name:?}")));
        }
        names.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;
    use rcgen::{
        CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, SanType, string,
    };

    use crate::tls::testing::{Ca, Files};

    fn certificate(params: &CertificateParams) -> CertificateDer<'static> {
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn identity(params: &CertificateParams) -> Result<PeerIdentity, IdentityError> {
        PeerIdentity::from_chain(&[certificate(params)])
    }

    fn named(names: &[(DnType, &str)]) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, name) in names {
            params.distinguished_name.push(kind.clone(), *name);
        }
        params
    }

    #[test]
    fn every_name_of_a_certificate_is_found() {
        let mut params =
            named(&[(DnType::CommonName, "build-7"), (DnType::OrganizationalUnitName, "größe")]);
        let ia5 = |text: &str| string::Ia5String::try_from(text).unwrap();
        params.subject_alt_names = vec![
            SanType::DnsName(ia5("Build-7.corp")),
            SanType::URI(ia5("spiffe://corp/ns/build")),
            SanType::IpAddress([127, 0, 0, 1].into()),
            SanType::DnsName(ia5("*.corp")),
        ];
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x0a, 0xff]));
        params.not_after = rcgen::date_time_ymd(2101, 2, 3);
        let der = certificate(&params);
        let found = PeerIdentity::from_chain(std::slice::from_ref(&der)).unwrap();
        assert_eq!(found.common_name.as_deref(), Some("build-7"));
        assert_eq!(found.organizational_units, ["größe"]);
        assert_eq!(found.dns_names, ["Build-7.corp", "*.corp"]);
        assert_eq!(found.uris, ["spiffe://corp/ns/build"]);
        assert_eq!(found.serial, "aff");
        assert_eq!(found.not_after, params.not_after);
        assert_eq!(found.fingerprint, Fingerprint::of(&der));
        assert_eq!(
            found.to_string(),
            format!(
                "CN=\"build-7\" OU=\"größe\" DNS=\"Build-7.corp\" DNS=\"*.corp\" \
                 URI=\"spiffe://corp/ns/build\" SHA256:{}",
                found.fingerprint
            )
        );
    }

    #[test]
    fn a_certificate_without_names_has_an_identity_that_no_name_matches() {
        let found = identity(&named(&[])).unwrap();
        assert_eq!(found.common_name, None);
        assert_eq!(identity(&named(&[(DnType::CommonName, "")])).unwrap().common_name, None);
        assert_eq!(found.to_string(), format!("SHA256:{}", found.fingerprint));
    }

    /// RUSTSEC-2025-0055 is of this class.
    #[test]
    fn names_that_would_move_a_cursor_are_escaped_wherever_they_are_printed() {
        let name = "\u{1b}[2Jroot\n\u{9b}\"";
        let ca = Ca::new(name);
        let mut params =
            named(&[(DnType::CommonName, name), (DnType::OrganizationalUnitName, name)]);
        params.subject_alt_names = vec![SanType::URI("spiffe://x/\u{1b}[2J".try_into().unwrap())];
        let found = PeerIdentity::from_chain(&[ca.issue(params).der]).unwrap();
        for shown in [found.to_string(), found.issuer.clone(), format!("{found:?}")] {
            assert!(!shown.contains(char::is_control), "{shown:?}");
        }
        // What rules compare is what the certificate says.
        assert_eq!(found.common_name.as_deref(), Some(name));
    }

    #[test]
    fn alternative_names_that_cannot_be_read_are_nobodys() {
        const SUBJECT_ALTERNATIVE_NAME: &[u64] = &[2, 5, 29, 17];
        let mut params = named(&[(DnType::CommonName, "x")]);
        // A host name that is not ASCII, nor UTF-8.
        for content in [vec![0x30, 0x04, 0x82, 0x02, 0xff, 0xfe], vec![0x30, 0x7f]] {
            params.custom_extensions =
                vec![CustomExtension::from_oid_content(SUBJECT_ALTERNATIVE_NAME, content)];
            assert_eq!(identity(&params), Err(IdentityError::MalformedNames));
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_identity() {
        assert_eq!(PeerIdentity::from_chain(&[]), Err(IdentityError::NoCertificate));
        let mut longer = certificate(&named(&[])).to_vec();
        longer.push(0);
        for bytes in [vec![], vec![0x30], longer] {
            let chain = [CertificateDer::from(bytes)];
            assert_eq!(PeerIdentity::from_chain(&chain), Err(IdentityError::Malformed));
        }
    }

    #[test]
    fn the_fingerprint_is_the_one_that_openssl_prints() {
        let files = Files::new();
        let ca = Ca::new("test CA");
        files.write("ca.pem", &ca.cert);
        files.openssl("x509 -in ca.pem -noout -fingerprint -sha256 -out print.txt");
        let printed = files.text("print.txt");
        let (_, digits) = printed.trim().split_once('=').unwrap();
        assert_eq!(digits.parse(), Ok(Fingerprint::of(&ca.der)));
    }

    #[test]
    fn a_fingerprint_is_taken_as_tools_print_it_and_in_no_other_form() {
        let plain = "0123456789abcdef".repeat(4);
        let colons: Vec<_> = plain.as_bytes().chunks(2).map(String::from_utf8_lossy).collect();
        let colons = colons.join(":");
        let expected: Fingerprint = plain.parse().unwrap();
        assert_eq!(expected.to_string(), plain);
        for text in [
            plain.to_uppercase(),
            colons.clone(),
            colons.to_uppercase(),
            format!("SHA256:{plain}"),
            format!("sha256:{colons}"),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in [
            "".to_owned(),
            "sha256:".to_owned(),
            plain[1..].to_owned(),
            format!("{plain}0"),
            format!("{plain}:"),
            format!(":{plain}"),
            format!(" {plain}"),
            colons.replacen(':', "", 1),
            format!("{}:{}", &plain[..32], &plain[32..]),
            format!("SHA1:{plain}"),
            format!("sha256:sha256:{plain}"),
            format!("+{}", &plain[1..]),
            "ä".repeat(64),
        ] {
            assert_eq!(text.parse::<Fingerprint>(), Err(FingerprintError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_and_no_bytes_are_too_strange_to_be_refused(
            text in "\\PC{0,100}",
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = text.parse::<Fingerprint>();
            let _ = PeerIdentity::from_chain(&[CertificateDer::from(bytes)]);
        }

        #[test]
        fn a_damaged_certificate_is_an_error_or_an_identity_and_nothing_worse(
            at in any::<prop::sample::Index>(),
            value in any::<u8>(),
        ) {
            let mut bytes = certificate(&named(&[(DnType::CommonName, "x")])).to_vec();
            let index = at.index(bytes.len());
            bytes[index] = value;
            let _ = PeerIdentity::from_chain(&[CertificateDer::from(bytes)]);
        }

        #[test]
        fn a_fingerprint_survives_being_printed(bytes in any::<[u8; 32]>()) {
            let fingerprint = Fingerprint(bytes);
            prop_assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        }
    }
}
