//! Keys of signatures: 32 raw bytes in a file, as upstream has them.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::snapshot::signature::{KEY_BYTES, KeyError};
use crate::snapshot::{SigningKey, VerifyKey};
use crate::tls::pem::Access;

/// Why a key file is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", path.display())]
pub(crate) struct KeyFileError {
    path: PathBuf,
    kind: KeyFileErrorKind,
}

#[derive(Debug, thiserror::Error)]
enum KeyFileErrorKind {
    #[error("cannot read the key: {0}")]
    Read(#[from] io::Error),
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
    let read = |path: &PathBuf| Ok(VerifyKey::from_bytes(&read_bytes(&File::open(path)?)?)?);
    paths.iter().map(|path| read(path).map_err(|kind| at(path, kind))).collect()
}

/// Reads a private key that nobody else can read.
pub(crate) fn read_signing_key(path: &Path) -> Result<SigningKey, KeyFileError> {
    let read = || {
        let file = File::open(path)?;
        let access = Access::of(&file.metadata()?);
        if access.is_exposed() {
            return Err(KeyFileErrorKind::Exposed(access.mode));
        }
        Ok(SigningKey::from_seed(&read_bytes(&file)?)?)
    };
    read().map_err(|kind| at(path, kind))
}

/// No more than what shows that a file is too long. Never longer than its room, so that no copy of
/// a secret is left behind by a buffer that has grown.
fn read_bytes(file: &File) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(4 * KEY_BYTES));
    file.take(2 * KEY_BYTES as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn at(path: &Path, kind: KeyFileErrorKind) -> KeyFileError {
    KeyFileError { path: path.to_owned(), kind }
}
