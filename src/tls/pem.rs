//! Files in PEM, RFC 7468: the only place that knows what reads them.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls_pemfile::Item;

use crate::tls::access::{self, Access};

/// Largest file with keys and certificates that is read, in bytes. A bundle is a few KiB, all roots
/// of the public web together are less than 300 KiB.
pub const CERTIFICATES_BYTES_MAX: u64 = 1024 * 1024;

/// Largest file with revocation lists that is read, in bytes. A large company's list is a few MiB.
pub const CRLS_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A file that cannot be read as PEM.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", file.display())]
pub struct FileError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub kind: FileErrorKind,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileErrorKind {
    /// It cannot be opened.
    #[error("cannot open the file: {0}")]
    Open(io::Error),
    /// A directory, a pipe or a socket.
    #[error("not a regular file")]
    NotAFile,
    /// It cannot be read.
    #[error("cannot read the file: {0}")]
    Read(io::Error),
    /// No honest file is that large.
    #[error("larger than {bytes_max} bytes")]
    TooLarge {
        /// The bound, in bytes.
        bytes_max: u64,
    },
    /// There is nothing in it.
    #[error("the file is empty")]
    Empty,
    /// DER where PEM is expected.
    #[error(
        "not PEM but binary (DER or PKCS#12); convert it with `openssl x509 -inform der`, \
         `openssl pkey -inform der` or `openssl pkcs12 -nodes`"
    )]
    Binary,
    /// Text of another kind.
    #[error("not PEM: there is no line that starts with -----BEGIN")]
    NotPem,
    /// A section is broken.
    #[error("damaged PEM: {0}")]
    Damaged(String),
    /// The key is behind a passphrase, and nobody is there to type it.
    #[error(
        "the private key is encrypted, which is not supported; decrypt it with \
         `umask 077; openssl pkey -in FILE -out KEY.pem`"
    )]
    EncryptedKey,
    /// No certificate where one is needed.
    #[error("there is no certificate in it")]
    NoCertificate,
}

impl FileErrorKind {
    /// Whether there is no such file.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Open(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// What a file holds, each kind in the order in which it holds it.
#[derive(Debug)]
pub struct Pem {
    /// Private keys, PKCS#8, PKCS#1 or SEC1.
    pub keys: Vec<PrivateKeyDer<'static>>,
    /// Certificates.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Revocation lists.
    pub crls: Vec<CertificateRevocationListDer<'static>>,
    /// Who may read the file. Taken from the open file, so it is that of what was read and not of
    /// a link to it.
    pub(super) access: Access,
}

impl Pem {
    /// Reads a file of at most so many bytes.
    ///
    /// # Errors
    ///
    /// [`FileError`] if it cannot be read, or is not PEM.
    pub fn read(file: &Path, bytes_max: u64) -> Result<Self, FileError> {
        Self::read_kind(file, bytes_max).map_err(|kind| FileError { file: file.into(), kind })
    }

    fn read_kind(file: &Path, bytes_max: u64) -> Result<Self, FileErrorKind> {
        let (bytes, access) = access::read(file, bytes_max)?;
        Self::decode(&bytes, access)
    }

    fn decode(bytes: &[u8], access: Access) -> Result<Self, FileErrorKind> {
        if bytes.trim_ascii().is_empty() {
            return Err(FileErrorKind::Empty);
        }
        if !contains(bytes, b"-----BEGIN ") {
            // A sequence, which is what every structure in DER begins with.
            let binary = bytes.first() == Some(&0x30);
            return Err(if binary { FileErrorKind::Binary } else { FileErrorKind::NotPem });
        }
        // PKCS#8, RFC 7468 section 11, and the traditional form, RFC 1421 section 4.6.1.1.
        if contains(bytes, b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
            || contains(bytes, b"Proc-Type: 4,ENCRYPTED")
        {
            return Err(FileErrorKind::EncryptedKey);
        }
        let (mut keys, mut certificates, mut crls) = (Vec::new(), Vec::new(), Vec::new());
        let mut rest = bytes;
        while let Some((item, remainder)) =
            rustls_pemfile::read_one_from_slice(rest).map_err(|error| damaged(&error))?
        {
            rest = remainder;
            match item {
                Item::X509Certificate(certificate) => certificates.push(certificate),
                Item::Pkcs1Key(key) => keys.push(key.into()),
                Item::Pkcs8Key(key) => keys.push(key.into()),
                Item::Sec1Key(key) => keys.push(key.into()),
                Item::Crl(crl) => crls.push(crl),
                // Of no use here, and no harm.
                Item::SubjectPublicKeyInfo(_) | Item::Csr(_) | _ => {}
            }
        }
        Ok(Self { keys, certificates, crls, access })
    }
}

/// Reads the certificates of a file, in its order, whatever else is in it.
///
/// # Errors
///
/// [`FileError`] if the file cannot be read, or holds no certificate.
pub fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let Pem { certificates, .. } = Pem::read(file, CERTIFICATES_BYTES_MAX)?;
    if certificates.is_empty() {
        return Err(FileError { file: file.into(), kind: FileErrorKind::NoCertificate });
    }
    Ok(certificates)
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// Says what is wrong without the contents: the line may be part of a key.
fn damaged(error: &rustls_pemfile::Error) -> FileErrorKind {
    FileErrorKind::Damaged(match error {
        rustls_pemfile::Error::MissingSectionEnd { end_marker } => {
            format!("there is no line {:?}", String::from_utf8_lossy(end_marker))
        }
        rustls_pemfile::Error::IllegalSectionStart { .. } => {
            "a line that starts with -----BEGIN does not end with -----".to_owned()
        }
        rustls_pemfile::Error::Base64Decode(_) => "a section is not valid Base64".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    use crate::tls::testing::{Ca, Files};

    const PRIVATE: Access = Access { mode: 0o600, user: 0 };

    fn refusal(file: &Path) -> FileErrorKind {
        Pem::read(file, 1024).unwrap_err().kind
    }

    #[test]
    fn what_is_no_pem_is_called_what_it_is() {
        let (files, ca) = (Files::new(), Ca::new("test CA"));
        let file = |text: &[u8]| files.write("file", text);
        assert!(matches!(refusal(&file(b"")), FileErrorKind::Empty));
        assert!(matches!(refusal(&file(b" \n\n")), FileErrorKind::Empty));
        assert!(matches!(refusal(&file(&ca.der)), FileErrorKind::Binary));
        assert!(matches!(refusal(&file(b"hello")), FileErrorKind::NotPem));
        assert!(matches!(refusal(&file(&[b'x'; 1025])), FileErrorKind::TooLarge { .. }));
        assert!(matches!(refusal(&file(&[b'x'; 1024])), FileErrorKind::NotPem));
        assert!(matches!(refusal(files.path("").as_path()), FileErrorKind::NotAFile));
        assert!(refusal(&files.path("absent")).is_absent());
        let unfinished = ca.cert.lines().take(3).collect::<Vec<_>>().join("\n");
        assert!(matches!(refusal(&file(unfinished.as_bytes())), FileErrorKind::Damaged(_)));
        let odd = ca.cert.replacen("MII", "M?I", 1);
        assert!(matches!(refusal(&file(odd.as_bytes())), FileErrorKind::Damaged(_)));
    }

    /// Opening it would wait for somebody who writes.
    #[test]
    fn a_pipe_is_refused_and_not_waited_for() {
        let files = Files::new();
        let made = std::process::Command::new("mkfifo").arg(files.path("pipe")).status();
        assert!(made.unwrap().success());
        assert!(matches!(refusal(&files.path("pipe")), FileErrorKind::NotAFile));
    }

    #[test]
    fn an_encrypted_key_is_refused_with_the_command_that_decrypts_it() {
        let files = Files::new();
        files.openssl("genrsa -out plain.key 2048");
        files.openssl("pkcs8 -topk8 -in plain.key -passout pass:secret -out new.key");
        files.openssl(
            "rsa -in plain.key -traditional -aes128 -passout pass:secret -out traditional.key",
        );
        for name in ["new.key", "traditional.key"] {
            let error = Pem::read(&files.path(name), CERTIFICATES_BYTES_MAX).unwrap_err();
            assert!(matches!(error.kind, FileErrorKind::EncryptedKey), "{name}: {error}");
            assert!(error.to_string().contains("openssl pkey"), "{error}");
        }
    }

    /// Windows' line ends, text around the sections, and sections that nobody asked for.
    #[test]
    fn what_stands_around_the_sections_does_no_harm() {
        let ca = Ca::new("test CA");
        let text = format!("Bag Attributes\n{}\n# the key\n{}", ca.cert, ca.key);
        for text in [text.clone(), text.replace('\n', "\r\n")] {
            let text =
                format!("{text}-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n");
            let pem = Pem::decode(text.as_bytes(), PRIVATE).unwrap();
            assert_eq!((pem.keys.len(), pem.certificates), (1, vec![ca.der.clone()]));
        }
    }

    #[test]
    fn certificates_are_read_for_show_from_files_with_anything_else_in_them() {
        let (files, ca) = (Files::new(), Ca::new("test CA"));
        let leaf = ca.server();
        let bundle = files.write("srv.pem", format!("{}{}", leaf.pem(), ca.cert));
        assert_eq!(read_certificates(&bundle).unwrap(), [leaf.der, ca.der]);
        let key = files.write("key.pem", &leaf.key);
        let error = read_certificates(&key).unwrap_err();
        assert!(matches!(error.kind, FileErrorKind::NoCertificate));
        assert!(error.to_string().starts_with(&format!("{}: ", key.display())));
    }

    #[test]
    fn an_error_never_shows_what_may_be_a_key() {
        let ca = Ca::new("test CA");
        let broken = ca.key.replace("-----END PRIVATE KEY-----", "");
        let odd = ca.key.replacen("MIG", "M!G", 1);
        for text in [broken, odd] {
            let error = Pem::decode(text.as_bytes(), PRIVATE).unwrap_err();
            for line in ca.key.lines().filter(|line| !line.starts_with('-')) {
                assert!(!format!("{error} {error:?}").contains(line));
            }
        }
        let pem = Pem::decode(ca.key.as_bytes(), PRIVATE).unwrap();
        assert!(format!("{pem:?}").contains("elided"));
    }

    #[test]
    fn what_others_than_the_owner_may_do_is_exposure_and_credentials_are_known_by_their_mark() {
        for (mode, user, exposed, credential) in [
            (0o600, 1000, false, false),
            (0o400, 0, false, false),
            (0o640, 0, true, true),
            (0o440, 0, true, true),
            (0o440, 7, true, false),
            (0o444, 0, true, false),
            (0o460, 0, true, false),
            (0o620, 1000, true, false),
            (0o601, 1000, true, false),
        ] {
            let access = Access { mode, user };
            assert_eq!(
                (access.is_exposed(), access.is_credential()),
                (exposed, credential),
                "{access:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange_to_be_read(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            text in "(-----(BEGIN|END) (PRIVATE KEY|CERTIFICATE|X509 CRL)-----\n|[A-Za-z=]{0,8}\n?){0,8}",
        ) {
            let _ = Pem::decode(&bytes, PRIVATE);
            let _ = Pem::decode(text.as_bytes(), PRIVATE);
        }
    }
}
