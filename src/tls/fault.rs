//! What can be wrong with keys and certificates, and what to do about it.

use std::fmt;
use std::path::PathBuf;

use time::OffsetDateTime;

use crate::tls::certificate::Utc;
use crate::tls::pem::{FileError, FileErrorKind};

/// Files that do not make a server that can check its clients.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", file.display())]
pub struct MaterialError {
    /// The file where the fault is, or should not be missing.
    pub file: PathBuf,
    /// What is wrong.
    pub kind: MaterialErrorKind,
}

impl MaterialError {
    /// Whether there is no such file.
    pub(super) fn is_absent(&self) -> bool {
        matches!(&self.kind, MaterialErrorKind::File(kind) if kind.is_absent())
    }
}

impl From<FileError> for MaterialError {
    fn from(FileError { file, kind }: FileError) -> Self {
        Self { file, kind: MaterialErrorKind::File(kind) }
    }
}

/// What is wrong with a file, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum MaterialErrorKind {
    /// It cannot be read as PEM.
    #[error(transparent)]
    File(FileErrorKind),
    /// No private key, and no other file for it.
    #[error(
        "there is no private key in it; put the key of the server certificate into this file, or \
         name its file with --tls-key"
    )]
    NoKey,
    /// More than one private key.
    #[error("there are {count} private keys where one is needed")]
    SeveralKeys {
        /// How many.
        count: usize,
    },
    /// An algorithm or size that is not spoken, or no key at all.
    #[error(
        "the private key cannot be used: {0}; RSA of 2048 to 8192 bits, P-256, P-384, P-521 \
             and Ed25519 can"
    )]
    UnsupportedKey(rustls::Error),
    /// A key that is not private.
    #[error(
        "the private key can be read by others than its owner (mode {mode:04o}); take that away \
         with `chmod 600`, or start with --insecure-key-permissions"
    )]
    ExposedKey {
        /// Permissions of the file.
        mode: u32,
    },
    /// Key and certificates are of different pairs.
    #[error("the private key belongs to none of the {count} certificates in it")]
    KeyMatchesNone {
        /// How many certificates there are.
        count: usize,
    },
    /// Not a certificate, whatever the PEM says.
    #[error("certificate {number} of the file cannot be parsed")]
    MalformedCertificate {
        /// Which one, counted from 1.
        number: usize,
    },
    /// A certificate that no verifier takes.
    #[error(
        "the certificate {subject} is of X.509 version 1, which TLS libraries refuse: a plain \
         `openssl x509 -req` makes those; give it an -extfile, or use `hexz-nbd certs`"
    )]
    Version1 {
        /// Whose.
        subject: String,
    },
    /// A certificate that a verifier would not take.
    #[error("the certificate {subject} cannot be used: {reason}")]
    UnusableCertificate {
        /// Whose.
        subject: String,
        /// Why.
        reason: webpki::Error,
    },
    /// Only CAs sign clients. A leaf that is trusted as one would let its holder sign more.
    #[error("the certificate {subject} is not that of a CA (its basic constraints do not say so)")]
    NotACa {
        /// Whose.
        subject: String,
    },
    /// No revocation list where one is needed.
    #[error("there is no revocation list (X509 CRL) in it")]
    NoCrl,
    /// A revocation list of X.509 version 1, which cannot say which certificates it covers.
    #[error(
        "revocation list {number} of the file is of version 1, which is not supported; `openssl ca` \
         makes version 2 when its configuration names a crlnumber file"
    )]
    OldCrl {
        /// Which one, counted from 1.
        number: usize,
    },
    /// A revocation list that cannot be used.
    #[error("revocation list {number} of the file cannot be used: {reason}")]
    UnusableCrl {
        /// Which one, counted from 1.
        number: usize,
        /// Why.
        reason: webpki::Error,
    },
    /// A list that covers only some certificates. Whether it covers one depends on what that says
    /// of itself, so that a certificate that it does not cover would pass unchecked.
    #[error(
        "the revocation list of {issuer} is only a part (it has an issuing distribution point); \
         give the complete list"
    )]
    PartialCrl {
        /// Whose.
        issuer: String,
    },
    /// No certificate of this CA would pass, because the signature of the list would not.
    #[error(
        "the revocation list of {issuer} was signed with another key than that of the client CA \
         of this name; give the list that belongs to the CA"
    )]
    CrlOfOtherKey {
        /// Whose.
        issuer: String,
    },
    /// A list says by name whose it is.
    #[error(
        "there is a revocation list of {issuer}, and several client CAs have that name and \
         different keys: which one it is of cannot be said, so give the CAs different names"
    )]
    AmbiguousCrl {
        /// Whose.
        issuer: String,
    },
    /// Nobody could be let in, or everybody would have to be.
    #[error("{}", no_client_ca(looked_for, *intermediates))]
    NoClientCa {
        /// Where it was looked for.
        looked_for: Vec<PathBuf>,
        /// There are CA certificates in the bundle, but none is a root.
        intermediates: bool,
    },
}

fn no_client_ca(looked_for: &[PathBuf], intermediates: bool) -> String {
    let places: Vec<_> = looked_for.iter().map(|place| place.display().to_string()).collect();
    let places = places.join(" and ");
    let intermediates = if intermediates {
        " (the intermediate CAs in it are not taken: a public CA's would let in all its customers)"
    } else {
        ""
    };
    format!(
        "there is no CA to check client certificates against, neither in the file{intermediates} \
         nor as {places}; name it with --tls-client-ca, append the certificate of a root CA to \
         the file, make one with `hexz-nbd certs init`, or let in everybody who connects with \
         --insecure-allow-anonymous"
    )
}

/// What works today and is worth a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// Clients will refuse the server.
    ServerExpired {
        /// The file.
        file: PathBuf,
        /// Since when.
        not_after: OffsetDateTime,
    },
    /// Clients will refuse the server until then.
    ServerNotYetValid {
        /// The file.
        file: PathBuf,
        /// Until when.
        not_before: OffsetDateTime,
    },
    /// A CA certificate as the server's own. OpenSSL and GnuTLS take it, others do not.
    ServerIsCa {
        /// The file.
        file: PathBuf,
    },
    /// The certificate is not for servers. Clients will refuse it.
    ServerPurpose {
        /// The file.
        file: PathBuf,
    },
    /// Certificates of the bundle that are in nobody's chain.
    Unused {
        /// The file.
        file: PathBuf,
        /// Whose.
        subject: String,
    },
    /// The CA is past its time. What it signed is trusted until that expires on its own.
    ClientCaExpired {
        /// The file.
        file: PathBuf,
        /// Whose.
        subject: String,
        /// Since when.
        not_after: OffsetDateTime,
    },
    /// There should be a newer list. This one goes on to be used.
    StaleCrl {
        /// The file.
        file: PathBuf,
        /// Whose.
        issuer: String,
        /// Since when.
        next_update: OffsetDateTime,
    },
    /// The list is of no client CA. It may be of an intermediate one, which clients send.
    ForeignCrl {
        /// The file.
        file: PathBuf,
        /// Whose.
        issuer: String,
    },
}

/// One line for a log.
impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServerExpired { file, not_after } => {
                let (file, since) = (file.display(), Utc(*not_after));
                write!(f, "{file}: the server certificate expired at {since}; clients refuse it")
            }
            Self::ServerNotYetValid { file, not_before } => {
                let (file, from) = (file.display(), Utc(*not_before));
                write!(f, "{file}: the server certificate is valid from {from} on, not earlier")
            }
            Self::ServerIsCa { file } => write!(
                f,
                "{}: the server certificate is that of a CA, which some clients refuse",
                file.display()
            ),
            Self::ServerPurpose { file } => write!(
                f,
                "{}: the server certificate is not for servers (extended key usage without \
                 serverAuth); clients refuse it",
                file.display()
            ),
            Self::Unused { file, subject } => {
                let file = file.display();
                write!(f, "{file}: the certificate {subject} is not needed for anything")
            }
            Self::ClientCaExpired { file, subject, not_after } => {
                let (file, since) = (file.display(), Utc(*not_after));
                write!(f, "{file}: the client CA {subject} expired at {since}")
            }
            Self::StaleCrl { file, issuer, next_update } => {
                let (file, since) = (file.display(), Utc(*next_update));
                write!(
                    f,
                    "{file}: the revocation list of {issuer} should have been renewed by {since}; \
                     it goes on to be used"
                )
            }
            Self::ForeignCrl { file, issuer } => {
                let file = file.display();
                write!(f, "{file}: the revocation list of {issuer} is of none of the client CAs")
            }
        }
    }
}
