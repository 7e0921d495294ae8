//! Makes certificates for a small PKI: an authority, its servers and its clients. No I/O.

use std::collections::HashSet;
use std::fmt::{self, Write as _};

use aws_lc_rs::rand;
use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::parse_x509_certificate;

pub use super::name::{Host, NAME_CHARACTERS_MAX, NameError};
use super::name::{dns_name, dns_san, text, uri_san};

/// How far in the past certificates and revocation lists begin, against clocks that are late.
pub const CLOCK_SKEW: Duration = Duration::minutes(5);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// What should be the authority's certificate is none.
    #[error("the CA certificate cannot be parsed")]
    CertificateMalformed,
    /// It is one, of something else.
    #[error("this is not the certificate of a CA")]
    NotAnAuthority,
    /// It may sign certificates or revocation lists, not both.
    #[error("the key usage of the CA certificate lacks {0}")]
    MayNotSign(&'static str),
    /// It could not be named as the issuer of what it signs.
    #[error("the name of the CA has two parts of a kind, which is not supported: {0}")]
    RepeatedName(String),
    /// Nothing that it signs would be accepted.
    #[error("the CA certificate expired at {0}")]
    Expired(OffsetDateTime),
    /// What should be the authority's key is none.
    #[error("the CA key cannot be parsed")]
    KeyMalformed(#[source] rcgen::Error),
    /// Key and certificate are of two authorities.
    #[error("the CA key is not the key of the CA certificate")]
    KeyOfAnother,
    /// A name that does not fit into a certificate.
    #[error(transparent)]
    Name(#[from] NameError),
    /// More days than the calendar of certificates has.
    #[error("a validity of {0} days ends after the year 9999")]
    TooLong(u32),
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// Signing failed.
    #[error("the certificate cannot be made")]
    Sign(#[source] rcgen::Error),
}

/// From when until when, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Before it nobody accepts the certificate.
    pub not_before: OffsetDateTime,
    /// After it nobody accepts the certificate.
    pub not_after: OffsetDateTime,
}

impl Validity {
    /// A number of days from now, and [`CLOCK_SKEW`] before it.
    ///
    /// # Errors
    ///
    /// [`IssueError::TooLong`] if a certificate cannot express the end.
    pub fn days(now: OffsetDateTime, days: u32) -> Result<Self, IssueError> {
        let not_after = now.checked_add(Duration::days(days.into()));
        let not_before = now.checked_sub(CLOCK_SKEW);
        match (not_before, not_after) {
            (Some(not_before), Some(not_after)) if not_after.year() <= 9999 => {
                Ok(Self { not_before, not_after })
            }
            _ => Err(IssueError::TooLong(days)),
        }
    }

    /// The same, ending no later than something else does.
    #[must_use]
    pub fn within(self, not_after: OffsetDateTime) -> Self {
        Self { not_after: self.not_after.min(not_after), ..self }
    }
}

/// Who a client is: what the rules of a server look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Client {
    /// Common name.
    pub common_name: String,
    /// Organizational unit.
    pub organizational_unit: Option<String>,
    /// Host names.
    pub dns_names: Vec<String>,
    /// URIs, such as SPIFFE ids.
    pub uris: Vec<String>,
}

/// A certificate and the key that belongs to it.
pub struct Issued {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// The certificate, in PEM.
    pub certificate_pem: String,
    /// The private key, in PEM and PKCS#8. A secret.
    pub key_pem: String,
    /// Until when it is valid.
    pub not_after: OffsetDateTime,
}

/// Without the key: what is debugged ends up in logs.
impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// A certificate authority with its key.
pub struct Authority {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) certificate: CertificateDer<'static>,
    /// Subject key identifier, which its revocation lists repeat.
    pub(super) key_identifier: Option<Vec<u8>>,
    not_after: OffsetDateTime,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes an authority, which signs itself. Its name ends with some of its serial number: two
    /// authorities of one name confuse those who search for an issuer by name.
    ///
    /// # Errors
    ///
    /// [`IssueError`] if the system has no random numbers or signing fails.
    pub fn generate(validity: Validity) -> Result<(Self, Issued), IssueError> {
        let serial = random_serial()?;
        let mut name = "hexz-nbd CA ".to_owned();
        for byte in serial.iter().rev().take(4) {
            // Writing to a string cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        let mut params = params(validity, &serial);
        params.distinguished_name.push(DnType::CommonName, name);
        // It signs leaves, and no other authority.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = new_key()?;
        let certificate = params.self_signed(&key).map_err(IssueError::Sign)?;
        let issued = issued(&certificate, &key, validity);
        let authority = Self::from_der(certificate.der(), &key.serialize_der())?;
        Ok((authority, issued))
    }

    /// The certificate, in PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
        pem::encode_config(&Pem::new("CERTIFICATE", self.certificate.as_ref()), config)
    }

    /// Takes up an authority that exists. Its certificate and key are in DER, the key in any of
    /// PKCS#8, SEC1 and PKCS#1.
    ///
    /// # Errors
    ///
    /// [`IssueError`] if the certificate is not one of an authority that may sign certificates and
    /// revocation lists, or the key is not its key.
    pub fn from_der(certificate: &[u8], key: &[u8]) -> Result<Self, IssueError> {
        let parsed = parse(certificate).ok_or(IssueError::CertificateMalformed)?;
        if !parsed.is_ca() {
            return Err(IssueError::NotAnAuthority);
        }
        let usage = parsed.key_usage().map_err(|_| IssueError::CertificateMalformed)?;
        if let Some(usage) = usage.map(|extension| extension.value) {
            if !usage.key_cert_sign() {
                return Err(IssueError::MayNotSign("keyCertSign"));
            }
            if !usage.crl_sign() {
                return Err(IssueError::MayNotSign("cRLSign"));
            }
        }
        let mut kinds = HashSet::new();
        if !parsed.subject().iter_attributes().all(|part| kinds.insert(part.attr_type())) {
            // What writes names keeps one of each kind, and would say so to nobody.
            return Err(IssueError::RepeatedName(parsed.subject().to_string()));
        }
        let key = KeyPair::try_from(key).map_err(IssueError::KeyMalformed)?;
        if key.subject_public_key_info() != parsed.public_key().raw {
            return Err(IssueError::KeyOfAnother);
        }
        let not_after = parsed.validity().not_after.to_datetime();
        let key_identifier = subject_key_identifier(&parsed);
        let certificate = CertificateDer::from(certificate).into_owned();
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|_| IssueError::CertificateMalformed)?;
        Ok(Self { issuer, certificate, key_identifier, not_after })
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Until when it is valid. Nothing that it signs should be valid longer.
    #[must_use]
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Refuses an authority whose time is over.
    ///
    /// # Errors
    ///
    /// [`IssueError::Expired`].
    pub fn check_time(&self, now: OffsetDateTime) -> Result<(), IssueError> {
        if self.not_after > now { Ok(()) } else { Err(IssueError::Expired(self.not_after)) }
    }

    /// Whether it signed a certificate.
    #[must_use]
    pub fn has_issued(&self, certificate: &X509Certificate<'_>) -> bool {
        parse(&self.certificate).is_some_and(|own| {
            own.subject().as_raw() == certificate.issuer().as_raw()
                && certificate.verify_signature(Some(own.public_key())).is_ok()
        })
    }

    /// Makes a key and a certificate for a server that is dialled by these names.
    ///
    /// # Errors
    ///
    /// [`IssueError`] if a name does not fit into a certificate or signing fails.
    pub fn server(&self, hosts: &[Host], validity: Validity) -> Result<Issued, IssueError> {
        // Nobody reads it: clients look at the alternative names.
        let mut common_name = "hexz-nbd server".to_owned();
        if let Some(first) = hosts.first().map(ToString::to_string)
            && first.len() <= NAME_CHARACTERS_MAX
        {
            common_name = first;
        }
        let mut params = params(validity, &random_serial()?);
        params.distinguished_name.push(DnType::CommonName, common_name);
        for host in hosts {
            params.subject_alt_names.push(host.subject_alternative_name()?);
        }
        self.leaf(params, ExtendedKeyUsagePurpose::ServerAuth, validity)
    }

    /// Makes a key and a certificate for a client.
    ///
    /// # Errors
    ///
    /// [`IssueError`] if a name does not fit into a certificate or signing fails.
    pub fn client(&self, client: &Client, validity: Validity) -> Result<Issued, IssueError> {
        let mut params = params(validity, &random_serial()?);
        if let Some(unit) = &client.organizational_unit {
            params.distinguished_name.push(DnType::OrganizationalUnitName, text(unit)?);
        }
        params.distinguished_name.push(DnType::CommonName, text(&client.common_name)?);
        for name in &client.dns_names {
            params.subject_alt_names.push(dns_san(&dns_name(name)?)?);
        }
        for uri in &client.uris {
            params.subject_alt_names.push(uri_san(uri)?);
        }
        self.leaf(params, ExtendedKeyUsagePurpose::ClientAuth, validity)
    }

    fn leaf(
        &self,
        mut params: CertificateParams,
        purpose: ExtendedKeyUsagePurpose,
        validity: Validity,
    ) -> Result<Issued, IssueError> {
        // Said, since it brings the subject key identifier too.
        params.is_ca = IsCa::ExplicitNoCa;
        // An ECDSA key enciphers nothing, but QEMU refuses a certificate that does not say so.
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![purpose];
        let key = new_key()?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(IssueError::Sign)?;
        Ok(issued(&certificate, &key, validity))
    }
}

/// Parses one certificate with nothing behind it.
fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    match parse_x509_certificate(der) {
        Ok(([], certificate)) => Some(certificate),
        Ok(_) | Err(_) => None,
    }
}

fn subject_key_identifier(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.iter_extensions().find_map(|extension| {
        if let ParsedExtension::SubjectKeyIdentifier(identifier) = extension.parsed_extension() {
            Some(identifier.0.to_vec())
        } else {
            None
        }
    })
}

fn params(validity: Validity, serial: &[u8]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.distinguished_name = DistinguishedName::new();
    params.use_authority_key_identifier_extension = true;
    params
}

fn issued(certificate: &rcgen::Certificate, key: &KeyPair, validity: Validity) -> Issued {
    Issued {
        certificate: certificate.der().clone(),
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
        not_after: validity.not_after,
    }
}

fn new_key() -> Result<KeyPair, IssueError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::Sign)
}

/// A positive number of exactly 128 bits: the highest bit but one is set, the highest is not, so
/// that every encoding of it has 16 bytes.
fn random_serial() -> Result<[u8; 16], IssueError> {
    let mut serial = [0; 16];
    rand::fill(&mut serial).map_err(|_| IssueError::Random)?;
    serial[0] = serial[0] & 0x3f | 0x40;
    Ok(serial)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn year() -> Validity {
        Validity::days(now(), 365).unwrap()
    }

    fn client(common_name: &str) -> Client {
        Client { common_name: common_name.into(), ..Client::default() }
    }

    #[test]
    fn serial_numbers_are_positive_of_one_length_and_never_the_same() {
        let serials: HashSet<_> = (0..100).map(|_| random_serial().unwrap()).collect();
        assert_eq!(serials.len(), 100);
        assert!(serials.iter().all(|serial| (0x40..0x80).contains(&serial[0])));
    }

    #[test]
    fn an_authority_is_the_same_after_it_was_stored() {
        let (authority, issued) = Authority::generate(year()).unwrap();
        let pem = x509_parser::pem::parse_x509_pem(issued.key_pem.as_bytes()).unwrap().1;
        let again = Authority::from_der(&issued.certificate, &pem.contents).unwrap();
        assert_eq!(again.not_after(), year().not_after);
        assert_eq!(again.key_identifier.as_ref().unwrap().len(), 20);

        let leaf = again.client(&client("alice"), year()).unwrap();
        let parsed = parse(&leaf.certificate).unwrap();
        assert!(authority.has_issued(&parsed));
        let (other, _) = Authority::generate(year()).unwrap();
        assert!(!other.has_issued(&parsed));
        assert!(again.check_time(now()).is_ok());
        assert!(matches!(again.check_time(year().not_after), Err(IssueError::Expired(_))));
    }

    #[test]
    fn what_is_no_authority_signs_nothing() {
        let key = |issued: &Issued| {
            x509_parser::pem::parse_x509_pem(issued.key_pem.as_bytes()).unwrap().1.contents
        };
        let (authority, ca) = Authority::generate(year()).unwrap();
        let (_, other) = Authority::generate(year()).unwrap();
        let leaf = authority.client(&client("alice"), year()).unwrap();
        let refused = |certificate: &[u8], key: &[u8]| {
            Authority::from_der(certificate, key).unwrap_err().to_string()
        };
        assert!(refused(&leaf.certificate, &key(&leaf)).contains("not the certificate of a CA"));
        assert!(refused(&ca.certificate, &key(&other)).contains("is not the key of"));
        assert!(refused(&ca.certificate, b"garbage").contains("key cannot be parsed"));
        assert!(refused(b"garbage", &key(&ca)).contains("certificate cannot be parsed"));
        let trailing = [&*ca.certificate, b"x"].concat();
        assert!(refused(&trailing, &key(&ca)).contains("certificate cannot be parsed"));
    }

    #[test]
    fn a_key_is_never_debugged() {
        let (authority, issued) = Authority::generate(year()).unwrap();
        for text in [format!("{authority:?}"), format!("{issued:?}")] {
            assert!(text.contains("not_after") && !text.contains("PRIVATE"), "{text}");
        }
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        let (authority, _) = Authority::generate(year()).unwrap();
        let long = "x".repeat(65);
        for name in ["", &long, "a\nb", "\u{9b}31m"] {
            let error = authority.client(&client(name), year()).unwrap_err();
            assert!(matches!(error, IssueError::Name(NameError::Text(_))), "{name:?}: {error}");
        }
        for uri in ["", "builder", ":x", "1a:x", "spiffe:", "spiffe://a b", "spiffe://ü", "a\n:b"]
        {
            let client = Client { uris: vec![uri.into()], ..client("alice") };
            let error = authority.client(&client, year()).unwrap_err();
            assert!(matches!(error, IssueError::Name(NameError::Uri(_))), "{uri:?}: {error}");
        }
        let client = Client { dns_names: vec!["a b".into()], ..client("alice") };
        let error = authority.client(&client, year()).unwrap_err();
        assert!(matches!(error, IssueError::Name(NameError::Dns(_))), "{error}");
    }

    #[test]
    fn validity_ends_with_the_authority_and_within_the_calendar() {
        let ca = Validity::days(now(), 10).unwrap();
        assert_eq!(year().within(ca.not_after), ca);
        assert_eq!(ca.within(year().not_after), ca);
        assert!(Validity::days(now(), 36_500).is_ok());
        assert!(matches!(Validity::days(now(), u32::MAX), Err(IssueError::TooLong(_))));
    }
}
