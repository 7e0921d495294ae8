//! What certificates and revocation lists say, for people and for programs.

use std::fmt::Write as _;
use std::time::Duration;

use aws_lc_rs::digest;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};
use x509_parser::{parse_x509_certificate, parse_x509_crl};

use crate::cli::certs::directory;

/// One block of a file. The names are those of the JSON and stay as they are.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Report {
    Certificate(CertificateReport),
    RevocationList(RevocationListReport),
    /// Nothing is said of it but that it is there.
    PrivateKey,
}

#[derive(Debug, Serialize)]
pub(super) struct CertificateReport {
    pub(super) subject: String,
    pub(super) issuer: String,
    /// `DNS:`, `IP:`, `URI:` or `email:` and the name.
    pub(super) names: Vec<String>,
    /// `CA`, `server`, `client`, `any`, or an object identifier. Empty if nothing is said, which
    /// allows everything.
    pub(super) purposes: Vec<String>,
    pub(super) key_usage: Option<String>,
    pub(super) serial: String,
    /// SHA-256, as `--allow-fingerprint` takes it.
    pub(super) fingerprint: String,
    pub(super) not_before: String,
    pub(super) not_after: String,
    pub(super) seconds_left: i64,
    pub(super) status: Status,
    pub(super) version: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct RevocationListReport {
    pub(super) issuer: String,
    pub(super) number: Option<String>,
    pub(super) this_update: String,
    pub(super) next_update: Option<String>,
    pub(super) seconds_left: Option<i64>,
    pub(super) status: Status,
    pub(super) revoked: Vec<Revoked>,
}

#[derive(Debug, Serialize)]
pub(super) struct Revoked {
    pub(super) serial: String,
    pub(super) at: String,
    pub(super) reason: Option<String>,
}

/// Where in its life something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Valid,
    NotYetValid,
    /// Sooner than the operator wants.
    ExpiresSoon,
    Expired,
}

impl Status {
    /// Of something that begins and ends, where `soon` is how much before the end is too late.
    fn of(
        begin: OffsetDateTime,
        end: Option<OffsetDateTime>,
        now: OffsetDateTime,
        soon: Option<Duration>,
    ) -> Self {
        if let Some(end) = end {
            // What is not a positive number of seconds is over.
            let Ok(left) = u64::try_from((end - now).whole_seconds()) else { return Self::Expired };
            if end < now {
                return Self::Expired;
            }
            if soon.is_some_and(|soon| Duration::from_secs(left) <= soon) {
                return Self::ExpiresSoon;
            }
        }
        if begin > now { Self::NotYetValid } else { Self::Valid }
    }
}

impl Report {
    /// Reads a certificate. `None` if it is none.
    pub(super) fn certificate(
        der: &[u8],
        now: OffsetDateTime,
        soon: Option<Duration>,
    ) -> Option<Self> {
        let Ok(([], certificate)) = parse_x509_certificate(der) else {
            return None;
        };
        Some(Self::Certificate(CertificateReport::of(&certificate, der, now, soon)))
    }

    /// Reads a revocation list. `None` if it is none.
    pub(super) fn revocation_list(
        der: &[u8],
        now: OffsetDateTime,
        soon: Option<Duration>,
    ) -> Option<Self> {
        RevocationListReport::of(der, now, soon).map(Self::RevocationList)
    }

    /// How much of its life is left, and what to call it, if it has an end.
    pub(super) fn status(&self) -> Option<(Status, &str)> {
        match self {
            Self::Certificate(certificate) => Some((certificate.status, &certificate.subject)),
            Self::RevocationList(list) => Some((list.status, &list.issuer)),
            Self::PrivateKey => None,
        }
    }
}

impl CertificateReport {
    fn of(
        certificate: &X509Certificate<'_>,
        der: &[u8],
        now: OffsetDateTime,
        soon: Option<Duration>,
    ) -> Self {
        let not_before = certificate.validity().not_before.to_datetime();
        let not_after = certificate.validity().not_after.to_datetime();
        let names = certificate.subject_alternative_name().ok().flatten();
        let usage = certificate.key_usage().ok().flatten();
        Self {
            subject: distinguished_name(certificate.subject()),
            issuer: distinguished_name(certificate.issuer()),
            names: names
                .map(|names| names.value.general_names.iter().map(general_name).collect())
                .unwrap_or_default(),
            purposes: purposes(certificate),
            key_usage: usage.map(|usage| usage.value.to_string()),
            serial: hex(certificate.raw_serial()),
            fingerprint: fingerprint(der),
            not_before: date(not_before),
            not_after: date(not_after),
            seconds_left: (not_after - now).whole_seconds(),
            status: Status::of(not_before, Some(not_after), now, soon),
            // The encoding counts from zero.
            version: certificate.version().0.saturating_add(1),
        }
    }
}

impl RevocationListReport {
    fn of(der: &[u8], now: OffsetDateTime, soon: Option<Duration>) -> Option<Self> {
        let Ok(([], list)) = parse_x509_crl(der) else { return None };
        let this_update = list.last_update().to_datetime();
        let next_update = list.next_update().map(|update| update.to_datetime());
        let revoked = list.iter_revoked_certificates().map(|entry| Revoked {
            serial: hex(entry.raw_serial()),
            at: date(entry.revocation_date.to_datetime()),
            reason: entry.reason_code().map(|(_, code)| code.to_string()),
        });
        Some(Self {
            issuer: distinguished_name(list.issuer()),
            number: list.crl_number().map(ToString::to_string),
            this_update: date(this_update),
            next_update: next_update.map(date),
            seconds_left: next_update.map(|update| (update - now).whole_seconds()),
            status: Status::of(this_update, next_update, now, soon),
            revoked: revoked.collect(),
        })
    }
}

fn purposes(certificate: &X509Certificate<'_>) -> Vec<String> {
    let mut purposes = Vec::new();
    if certificate.is_ca() {
        purposes.push("CA".to_owned());
    }
    if let Ok(Some(usage)) = certificate.extended_key_usage() {
        let usage = usage.value;
        for (has, name) in
            [(usage.any, "any"), (usage.server_auth, "server"), (usage.client_auth, "client")]
        {
            if has {
                purposes.push(name.to_owned());
            }
        }
        purposes.extend(usage.other.iter().map(ToString::to_string));
    }
    purposes
}

fn general_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => format!("DNS:{name}"),
        GeneralName::URI(uri) => format!("URI:{uri}"),
        GeneralName::RFC822Name(address) => format!("email:{address}"),
        GeneralName::IPAddress(bytes) => match directory::address(bytes) {
            Some(address) => format!("IP:{address}"),
            None => format!("IP:#{}", hex(bytes)),
        },
        GeneralName::OtherName(..)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => name.to_string(),
    }
}

/// A name as in RFC 4514, in the order of the certificate. Whoever made the certificate cannot
/// make one part look like two.
fn distinguished_name(name: &X509Name<'_>) -> String {
    let parts = name.iter_rdn().map(|part| {
        let values: Vec<_> = part.iter().map(attribute).collect();
        values.join("+")
    });
    parts.collect::<Vec<_>>().join(", ")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let kind = attribute.attr_type();
    let mut text = match oid2abbrev(kind, oid_registry()) {
        Ok(name) => name.to_owned(),
        Err(_) => kind.to_id_string(),
    };
    text.push('=');
    match attribute.as_str() {
        Ok(value) => {
            for character in value.chars() {
                if r#","+;<>\="#.contains(character) {
                    text.push('\\');
                }
                text.push(character);
            }
        }
        // An encoding that nobody uses any more.
        Err(_) => {
            let _ = write!(text, "#{}", hex(attribute.as_slice()));
        }
    }
    text
}

/// Seconds, in UTC.
pub(super) fn date(time: OffsetDateTime) -> String {
    let time = time.replace_nanosecond(0).unwrap_or(time);
    // Fails for years that certificates cannot express.
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

/// Bytes in hexadecimal. A number has no zeros before it.
pub(super) fn hex(bytes: &[u8]) -> String {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let digits = bytes.iter().skip(zeros.min(bytes.len().saturating_sub(1)));
    digits.fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of a certificate, as `--allow-fingerprint` takes it.
pub(super) fn fingerprint(der: &[u8]) -> String {
    digest::digest(&digest::SHA256, der).as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_second_is_valid_and_soon_is_what_the_operator_says() {
        let end = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let begin = end - time::Duration::days(10);
        let day = Some(Duration::from_secs(86_400));
        for (seconds_before_end, soon, expected) in [
            (0, None, Status::Valid),
            (-1, None, Status::Expired),
            (86_401, day, Status::Valid),
            (86_400, day, Status::ExpiresSoon),
            (0, day, Status::ExpiresSoon),
            (-1, day, Status::Expired),
            (11 * 86_400, day, Status::NotYetValid),
            (11 * 86_400, Some(Duration::from_secs(u64::MAX)), Status::ExpiresSoon),
        ] {
            let now = end - time::Duration::seconds(seconds_before_end);
            let status = Status::of(begin, Some(end), now, soon);
            assert_eq!(status, expected, "{seconds_before_end} {soon:?}");
        }
        assert_eq!(Status::of(begin, None, end, day), Status::Valid, "without an end");
        let half = end + time::Duration::milliseconds(500);
        assert_eq!(Status::of(begin, Some(end), half, None), Status::Expired);
    }

    #[test]
    fn numbers_are_shown_without_leading_zeros() {
        for (bytes, text) in
            [(&[][..], ""), (&[0], "00"), (&[0, 0], "00"), (&[0, 0x90, 1], "9001"), (&[5], "05")]
        {
            assert_eq!(hex(bytes), text);
        }
    }
}
