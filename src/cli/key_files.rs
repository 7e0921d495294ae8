//! Keys of signatures: 32 raw bytes in a file, as upstream has them.

use std::path::{Path, PathBuf};

use crate::snapshot::signature::{KEY_BYTES, KeyError};
use crate::snapshot::{SigningKey, VerifyKey};
use crate::tls::{FileErrorKind, access};

/// More than a key has, to say how long what is none is.
const FILE_BYTES_MAX: u64 = 64 * KEY_BYTES as u64;

/// Why a key file is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", path.display())]
pub(crate) struct KeyFileError {
    path: PathBuf,
    kind: KeyFileErrorKind,
}

#[derive(Debug, thiserror::Error)]
enum KeyFileErrorKind {
    #[error(transparent)]
    File(#[from] FileErrorKind),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(
        "the private key can be read by others than its owner (mode {0:04o}); take that away with \
         `chmod 600`"
    )]
    Exposed(u32),
}

/// Reads public keys.
pub(crate) fn read_verify_keys(paths: &[PathBuf]) -> Result<Vec<VerifyKey>, KeyFileError> {
    let read = |path: &PathBuf| Ok(VerifyKey::from_bytes(&access::read(path, FILE_BYTES_MAX)?.0)?);
    paths.iter().map(|path| read(path).map_err(|kind| at(path, kind))).collect()
}

/// Reads a private key that nobody else can read.
pub(crate) fn read_signing_key(path: &Path) -> Result<SigningKey, KeyFileError> {
    let read = || {
        let (bytes, access) = access::read(path, FILE_BYTES_MAX)?;
        if access.is_exposed() {
            return Err(KeyFileErrorKind::Exposed(access.mode));
        }
        Ok(SigningKey::from_seed(&bytes)?)
    };
    read().map_err(|kind| at(path, kind))
}

fn at(path: &Path, kind: KeyFileErrorKind) -> KeyFileError {
    KeyFileError { path: path.to_owned(), kind }
}
