//! Where passphrases come from: files, the environment, credentials of systemd. Never the command
//! line, which every user of the machine can see.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::cli::Failure;
use crate::snapshot::Passphrase;
use crate::tls::access;

/// Environment variable that holds a passphrase. Whoever may look at the process can read it as
/// long as it runs, so a file is the better place.
pub(crate) const VARIABLE: &str = "HEXZ_NBD_PASSPHRASE";

/// Name of the credential that holds a passphrase, for `LoadCredential=` of systemd.
const CREDENTIAL: &str = "passphrase";

/// Nobody types or generates more.
const PASSPHRASE_BYTES_MAX: u64 = 64 * 1024;

/// Most passphrases that are tried: each costs a derivation of a key.
const PASSPHRASES_MAX: usize = 16;

/// The passphrases to try for encrypted snapshots: those of the files if any is named, else the
/// one of the environment, else that of systemd. None of them is no mistake as long as nothing is
/// encrypted.
pub(crate) fn load(files: &[PathBuf], any_permissions: bool) -> Result<Vec<Passphrase>, Failure> {
    if files.len() > PASSPHRASES_MAX {
        return Err(Failure::Usage(format!(
            "{} key files: at most {PASSPHRASES_MAX} are tried, since each takes its time",
            files.len()
        )));
    }
    if !files.is_empty() {
        return files.iter().map(|file| read(file, any_permissions)).collect();
    }
    if let Some(text) = std::env::var_os(VARIABLE) {
        let bytes = Zeroizing::new(text.into_encoded_bytes());
        let passphrase = Passphrase::new(bytes);
        return passphrase.map(|passphrase| vec![passphrase]).ok_or_else(|| {
            Failure::Usage(format!("the passphrase in {VARIABLE} is empty: unset it, or fill it"))
        });
    }
    match credential() {
        Some(file) if file.exists() => read(&file, any_permissions).map(|only| vec![only]),
        _ => Ok(Vec::new()),
    }
}

/// Everything that is read or would be if it existed, to be watched for changes.
pub(crate) fn files(named: &[PathBuf]) -> Vec<PathBuf> {
    if named.is_empty() { credential().into_iter().collect() } else { named.to_vec() }
}

fn credential() -> Option<PathBuf> {
    credentials_directory().map(|directory| directory.join(CREDENTIAL))
}

fn credentials_directory() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// The contents of a file, without the end of the line that editors leave.
fn read(file: &Path, any_permissions: bool) -> Result<Passphrase, Failure> {
    let failed = |what: &dyn std::fmt::Display| {
        Failure::failed(format!("key file {}: {what}", file.display()))
    };
    let (mut bytes, access) =
        access::read(file, PASSPHRASE_BYTES_MAX).map_err(|error| failed(&error))?;
    let is_credential =
        access.is_credential() && credentials_directory().as_deref() == file.parent();
    if access.is_exposed() && !is_credential && !any_permissions {
        return Err(failed(&format_args!(
            "it can be read by others than its owner (mode {:04o}); take that away with `chmod \
             600`",
            access.mode
        )));
    }
    for end in [b'\n', b'\r'] {
        if bytes.last() == Some(&end) {
            bytes.pop();
        }
    }
    Passphrase::new(bytes).ok_or_else(|| failed(&"there is no passphrase in it"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(contents: &[u8], mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), contents).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn one_end_of_line_does_not_belong_to_a_passphrase() {
        let expected = Passphrase::new(Zeroizing::new(b" a b ".to_vec())).unwrap();
        for contents in [&b" a b "[..], b" a b \n", b" a b \r\n"] {
            assert_eq!(read(file(contents, 0o600).path(), false).unwrap(), expected);
        }
        assert_ne!(read(file(b" a b \n\n", 0o600).path(), false).unwrap(), expected);
    }

    #[test]
    fn a_file_that_is_no_secret_or_holds_none_is_refused() {
        for (contents, mode, part) in [
            (&b"secret"[..], 0o640, "chmod 600"),
            (b"secret", 0o604, "mode 0604"),
            (b"", 0o600, "no passphrase"),
            (b"\n", 0o600, "no passphrase"),
            (&[b'x'; 65_537], 0o600, "larger than 65536 bytes"),
        ] {
            let file = file(contents, mode);
            let error = read(file.path(), false).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains("secret\""), "{error}");
            assert!(error.contains(&*file.path().to_string_lossy()), "{error}");
        }
        assert!(read(file(b"secret", 0o644).path(), true).is_ok());
    }
}
