//! Why a handshake failed, for the log of the server.
//!
//! nbd-client does its handshake in a child without a terminal and shows its user "Connection
//! reset"; what the operator reads here is the only explanation there is. So a line names the cause
//! and the remedy.

use std::fmt;
use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};
use time::OffsetDateTime;

use crate::tls::certificate::{Utc, escaped};

/// Why there is nobody to let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The client sent no certificate.
    NoCertificate,
    /// The client's certificate is of X.509 version 1.
    Version1,
    /// The client's certificate is that of a CA.
    CaAsLeaf,
    /// The client's certificate, or one above it, is past its time.
    Expired,
    /// The client's certificate, or one above it, is before its time.
    NotYetValid,
    /// No client CA signed it.
    UnknownCa,
    /// A revocation list names it.
    Revoked,
    /// The revocation list of its CA cannot be used.
    UnusableCrl,
    /// It is not for clients.
    WrongPurpose,
    /// It, or the proof that the client has its key, is wrongly signed.
    BadSignature,
    /// It is damaged, or there is something in it that cannot be verified.
    BadCertificate,
    /// The client does not trust the server's certificate.
    RejectedByClient,
    /// The client ended the handshake for another reason.
    Alert,
    /// The client speaks no version of TLS that is allowed.
    TlsVersion,
    /// The client has no cipher, curve or signature in common with the server.
    NothingInCommon,
    /// What came is not TLS.
    NotTls,
    /// It is TLS, and against the rules.
    ProtocolError,
    /// The client left.
    HungUp,
    /// Something on this side.
    Other,
}

impl Cause {
    /// Every cause, for counters that exist before they count.
    pub const ALL: [Self; 19] = [
        Self::NoCertificate,
        Self::Version1,
        Self::CaAsLeaf,
        Self::Expired,
        Self::NotYetValid,
        Self::UnknownCa,
        Self::Revoked,
        Self::UnusableCrl,
        Self::WrongPurpose,
        Self::BadSignature,
        Self::BadCertificate,
        Self::RejectedByClient,
        Self::Alert,
        Self::TlsVersion,
        Self::NothingInCommon,
        Self::NotTls,
        Self::ProtocolError,
        Self::HungUp,
        Self::Other,
    ];

    /// A word for metrics. It stays as it is, whatever becomes of the sentences.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Version1 => "version_1",
            Self::CaAsLeaf => "ca_as_leaf",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::UnknownCa => "unknown_ca",
            Self::Revoked => "revoked",
            Self::UnusableCrl => "unusable_crl",
            Self::WrongPurpose => "wrong_purpose",
            Self::BadSignature => "bad_signature",
            Self::BadCertificate => "bad_certificate",
            Self::RejectedByClient => "rejected_by_client",
            Self::Alert => "alert",
            Self::TlsVersion => "tls_version",
            Self::NothingInCommon => "nothing_in_common",
            Self::NotTls => "not_tls",
            Self::ProtocolError => "protocol_error",
            Self::HungUp => "hung_up",
            Self::Other => "other",
        }
    }

    /// What happened, and what to do.
    fn sentence(self) -> &'static str {
        match self {
            Self::NoCertificate => {
                "the client sent no certificate; nbd-client needs -keyfile as well as -certfile"
            }
            Self::Version1 => {
                "the client's certificate is of X.509 version 1, which a plain `openssl x509 -req` \
                 makes; make it with an -extfile, or with `hexz-nbd certs client`"
            }
            Self::CaAsLeaf => {
                "the client's certificate is that of a CA, as `openssl req -x509` makes it; sign \
                 one with CA:FALSE, or make one with `hexz-nbd certs client`"
            }
            Self::Expired => {
                "the client's certificate, or one above it, has expired; renew it, and compare the \
                 clocks if it has not"
            }
            Self::NotYetValid => {
                "the client's certificate, or one above it, is not valid yet; compare the clocks"
            }
            Self::UnknownCa => {
                "no client CA signed the client's certificate; have it signed by one, name its CA \
                 with --tls-client-ca, or let the client send the intermediate CAs too"
            }
            Self::Revoked => "the client's certificate has been revoked; issue a new one",
            Self::UnusableCrl => {
                "the revocation list of the client's CA cannot be used; replace it with one that \
                 this CA signed"
            }
            Self::WrongPurpose => {
                "the client's certificate is not for clients; issue one with the extended key \
                 usage clientAuth"
            }
            Self::BadSignature => {
                "the client's certificate, or the proof that it has the key, is wrongly signed; \
                 look whether its CA has the name of a client CA and another key, and whether its \
                 key belongs to its certificate"
            }
            Self::BadCertificate => "the client's certificate cannot be verified; issue a new one",
            Self::RejectedByClient => {
                "the client does not trust this server's certificate; give it the CA \
                 (-cacertfile of nbd-client), and look whether the certificate has the name or \
                 address that the client connects to, and has not expired"
            }
            Self::Alert => "the client ended the handshake",
            Self::TlsVersion => {
                "the client speaks no version of TLS that is allowed; the stock nbd-client speaks \
                 1.2 only, which --tls-min-version 1.3 locks out"
            }
            Self::NothingInCommon => {
                "the client has no cipher, curve or signature in common with the server; allow it \
                 AES-GCM or ChaCha20-Poly1305 with ECDHE"
            }
            Self::NotTls => {
                "what the client sent is not TLS; it has to begin the handshake once STARTTLS is \
                 acknowledged"
            }
            Self::ProtocolError => "the client broke the rules of TLS",
            Self::HungUp => {
                "the client hung up during the handshake; it may not trust this server's \
                 certificate, or it has no certificate to send"
            }
            Self::Other => "the handshake failed on this side",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

/// A failed handshake, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}", cause.sentence(), in_parentheses(detail))]
pub struct HandshakeFailure {
    /// Why.
    pub cause: Cause,
    /// What else is known: dates, alerts, the words of rustls. Fit for a log.
    pub detail: String,
}

fn in_parentheses(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

/// From what tokio-rustls returns, which wraps the error of rustls if there is one.
impl From<&io::Error> for HandshakeFailure {
    fn from(error: &io::Error) -> Self {
        if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            return Self::from(tls);
        }
        let cause = if is_hang_up(error.kind()) { Cause::HungUp } else { Cause::Other };
        Self { cause, detail: escaped(&error.to_string()) }
    }
}

impl From<&Error> for HandshakeFailure {
    fn from(error: &Error) -> Self {
        let (cause, detail) = classify(error);
        Self { cause, detail: detail.unwrap_or_default() }
    }
}

fn is_hang_up(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the errors of rustls grow with its releases")]
fn classify(error: &Error) -> (Cause, Option<String>) {
    let words = || Some(escaped(&error.to_string()));
    match error {
        Error::NoCertificatesPresented => (Cause::NoCertificate, None),
        Error::InvalidCertificate(error) => classify_certificate(error),
        Error::InvalidCertRevocationList(_) => (Cause::UnusableCrl, words()),
        Error::AlertReceived(alert) => classify_alert(*alert),
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => (Cause::TlsVersion, None),
        Error::PeerIncompatible(_) => (Cause::NothingInCommon, words()),
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge
            | InvalidMessage::InvalidEmptyPayload,
        ) => (Cause::NotTls, words()),
        Error::InvalidMessage(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerMisbehaved(_)
        | Error::DecryptError
        | Error::PeerSentOversizedRecord => (Cause::ProtocolError, words()),
        _ => (Cause::Other, words()),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the errors of rustls grow with its releases")]
fn classify_certificate(error: &CertificateError) -> (Cause, Option<String>) {
    let words = || Some(escaped(&error.to_string()));
    let when = |what: &str, time: &rustls::pki_types::UnixTime| {
        let seconds = i64::try_from(time.as_secs()).ok()?;
        let time = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
        Some(format!("{what} {}", Utc(time)))
    };
    match error {
        CertificateError::Expired => (Cause::Expired, None),
        CertificateError::ExpiredContext { not_after, .. } => {
            (Cause::Expired, when("valid until", not_after))
        }
        CertificateError::NotValidYet => (Cause::NotYetValid, None),
        CertificateError::NotValidYetContext { not_before, .. } => {
            (Cause::NotYetValid, when("valid from", not_before))
        }
        CertificateError::Revoked => (Cause::Revoked, None),
        CertificateError::UnknownIssuer => (Cause::UnknownCa, None),
        CertificateError::UnknownRevocationStatus
        | CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => (Cause::UnusableCrl, words()),
        CertificateError::BadSignature => (Cause::BadSignature, None),
        CertificateError::InvalidPurpose => (Cause::WrongPurpose, None),
        CertificateError::InvalidPurposeContext { .. } => (Cause::WrongPurpose, words()),
        // What rustls has no variant for, it passes on from webpki.
        CertificateError::Other(other) => match other.0.downcast_ref::<webpki::Error>() {
            Some(webpki::Error::UnsupportedCertVersion) => (Cause::Version1, None),
            Some(webpki::Error::CaUsedAsEndEntity) => (Cause::CaAsLeaf, None),
            _ => (Cause::BadCertificate, words()),
        },
        _ => (Cause::BadCertificate, words()),
    }
}

/// RFC 8446 section 6.2.
#[expect(clippy::wildcard_enum_match_arm, reason = "the alerts of TLS grow")]
fn classify_alert(alert: AlertDescription) -> (Cause, Option<String>) {
    let words = Some(format!("alert {alert:?}"));
    match alert {
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateRevoked
        | AlertDescription::UnsupportedCertificate => (Cause::RejectedByClient, words),
        AlertDescription::ProtocolVersion => (Cause::TlsVersion, words),
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            (Cause::NothingInCommon, words)
        }
        AlertDescription::CloseNotify | AlertDescription::UserCanceled => (Cause::HungUp, words),
        _ => (Cause::Alert, words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::HashSet;

    use rustls::pki_types::UnixTime;

    #[test]
    fn every_cause_has_a_word_and_a_sentence_of_its_own() {
        let words: HashSet<_> = Cause::ALL.iter().map(|cause| cause.reason()).collect();
        let sentences: HashSet<_> = Cause::ALL.iter().map(|cause| cause.sentence()).collect();
        assert_eq!((words.len(), sentences.len()), (Cause::ALL.len(), Cause::ALL.len()));
        for word in words {
            assert!(word.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_')));
        }
    }

    #[test]
    fn what_no_handshake_of_the_tests_brings_about_is_told_apart_too() {
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(0));
        for (error, cause) in [
            (CertificateError::Expired.into(), Cause::Expired),
            (CertificateError::NotValidYet.into(), Cause::NotYetValid),
            (CertificateError::InvalidPurpose.into(), Cause::WrongPurpose),
            (CertificateError::BadEncoding.into(), Cause::BadCertificate),
            (
                CertificateError::ExpiredRevocationListContext { time, next_update: time }.into(),
                Cause::UnusableCrl,
            ),
            (PeerIncompatible::NoCipherSuitesInCommon.into(), Cause::NothingInCommon),
            (PeerIncompatible::NoKxGroupsInCommon.into(), Cause::NothingInCommon),
            (Error::AlertReceived(AlertDescription::UnknownCA), Cause::RejectedByClient),
            (Error::AlertReceived(AlertDescription::BadCertificate), Cause::RejectedByClient),
            (Error::AlertReceived(AlertDescription::ProtocolVersion), Cause::TlsVersion),
            (Error::AlertReceived(AlertDescription::InternalError), Cause::Alert),
            (Error::AlertReceived(AlertDescription::UserCanceled), Cause::HungUp),
            (Error::DecryptError, Cause::ProtocolError),
            (Error::FailedToGetRandomBytes, Cause::Other),
        ] {
            assert_eq!(HandshakeFailure::from(&error).cause, cause, "{error:?}");
        }
    }

    #[test]
    fn an_error_of_the_socket_is_a_client_that_left_or_a_fault_of_ours() {
        for (kind, cause) in [
            (io::ErrorKind::UnexpectedEof, Cause::HungUp),
            (io::ErrorKind::ConnectionReset, Cause::HungUp),
            (io::ErrorKind::BrokenPipe, Cause::HungUp),
            (io::ErrorKind::OutOfMemory, Cause::Other),
            (io::ErrorKind::InvalidData, Cause::Other),
        ] {
            assert_eq!(HandshakeFailure::from(&io::Error::from(kind)).cause, cause);
        }
    }

    #[test]
    fn a_line_is_one_line_whatever_the_peer_sent() {
        let error = Error::General("\u{1b}[2J\nfake: line".into());
        let line = HandshakeFailure::from(&error).to_string();
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}
