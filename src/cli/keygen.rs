//! `hexz-nbd keygen`: a pair of keys to sign snapshots with.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::cli::Failure;
use crate::cli::certs::quoted;
use crate::cli::escape::Escaped;
use crate::snapshot::SigningKey;

/// Names that upstream's tool gives them, too.
const PRIVATE: &str = "private.key";
const PUBLIC: &str = "public.key";

/// Make a pair of keys to sign snapshots with.
///
/// Writes private.key, which `hexz-nbd sign` needs and nobody else may read, and public.key, which
/// `verify` and `inspect` take. Both are 32 raw bytes (Ed25519), as Hexz's own tools have them.
/// Files that exist are never overwritten.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Directory of the keys. Made if it does not exist
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let directory = &arguments.directory;
    let (private, public) = (directory.join(PRIVATE), directory.join(PUBLIC));
    let key = SigningKey::generate()?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| write_failure(directory, &error))?;
    // Before anything is written. What appears in the meantime is not overwritten either.
    for path in [&private, &public] {
        if fs::symlink_metadata(path).is_ok() {
            return Err(exists(path));
        }
    }
    write_new(&private, 0o600, key.seed())?;
    if let Err(failure) = write_new(&public, 0o644, key.verify_key().as_bytes()) {
        // A private key alone would keep the next try from writing both.
        let _ = fs::remove_file(&private);
        return Err(failure);
    }
    let path = |path: &Path| Escaped(&quoted(&path.to_string_lossy())).to_string();
    let (private, public) = (path(&private), path(&public));
    write!(
        io::stdout(),
        "{private}: signs; whoever has it can sign in your name\n\
         {public}: verifies; give it to whoever reads what you sign\n\
         \n\
         hexz-nbd sign --key {private} FILE.hxz\n\
         hexz-nbd verify --key {public} FILE.hxz\n"
    )?;
    Ok(())
}

/// Writes a file that did not exist, with its mode from the first moment on.
fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        let mut file: File =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        if written.is_err() {
            // Half a key is none.
            let _ = fs::remove_file(path);
        }
        written
    };
    write().map_err(|error| {
        let is_there = error.kind() == io::ErrorKind::AlreadyExists;
        if is_there { exists(path) } else { write_failure(path, &error) }
    })
}

fn exists(path: &Path) -> Failure {
    Failure::failed(format!(
        "{} exists and is kept: choose another directory, or move it away",
        path.display()
    ))
}

fn write_failure(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot write {}: {error}", path.display()))
}
