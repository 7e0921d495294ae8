//! `hexz-nbd sign`: the signature in a snapshot, and the manifest beside it.

mod output;
mod parents;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::Failure;
use crate::cli::escape::Escaped;
use crate::cli::key_files::{read_signing_key, read_verify_keys};
use crate::cli::progress::Progress;
use crate::cli::sign::output::{Output, copy_of};
use crate::snapshot::manifest::build::build;
use crate::snapshot::manifest::{self, Manifest, Root, Trust};
use crate::snapshot::signature::{sign_master_index, verify_master_index};
use crate::snapshot::structure::BLOCK_BYTES_MAX_DEFAULT;
use crate::snapshot::{FileBackend, SigningKey, StorageBackend, Stream, Structure};

/// Sign a snapshot, and write the manifest that authenticates every byte of it.
///
/// Makes the signature that Hexz's own tools make, inside the snapshot, unless it has a valid one by
/// this key: it covers the master index and the metadata only. Then writes FILE.manifest, which
/// covers everything that is served: header, dictionary, index pages, blocks, and the parents of a
/// thin snapshot.
///
/// The snapshot is replaced by a signed copy when both are safely on disk, so whoever reads the old
/// one reads on, and there must be room for the copy. A snapshot that is read-only, or
/// --manifest-only, is left as it is.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The snapshot
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Private key of 32 raw bytes, as `hexz-nbd keygen` makes it. Nobody else may read it
    #[arg(long, value_name = "PRIVATE")]
    key: PathBuf,

    /// Write the manifest only
    #[arg(long)]
    manifest_only: bool,

    /// Where to look for parents that are not beside the snapshot, repeatable. Each has to have a
    /// manifest
    #[arg(long = "parent-dir", value_name = "DIR")]
    parent_directories: Vec<PathBuf>,

    /// Public key that may have signed the manifest of a parent, beside the one that belongs to
    /// --key, repeatable
    #[arg(long = "parent-key", value_name = "PUB")]
    parent_keys: Vec<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let key = read_signing_key(&arguments.key)?;
    let mut parent_keys = read_verify_keys(&arguments.parent_keys)?;
    parent_keys.push(key.verify_key());
    let path = &arguments.file;
    let structure = open(path)?;
    output::check_replaceable(path, arguments.manifest_only)?;
    let manifest_path = manifest::path_beside(path);
    output::check_replaceable(&manifest_path, false)?;
    let parent_roots = parents::roots(&structure, &arguments.parent_directories, &parent_keys)?;

    let mut out = io::stdout().lock();
    let mut say = |line: &str| writeln!(out, "{}", Escaped(line));
    let name = path.display();
    let signed = if arguments.manifest_only {
        say(&format!("{name}: left as it is"))?;
        None
    } else if verify_master_index(&structure, &[key.verify_key()]).is_ok() {
        say(&format!("{name}: master index signature valid, left as it is"))?;
        None
    } else if fs::metadata(path)?.permissions().readonly() {
        say(&format!("{name}: read-only, left as it is"))?;
        None
    } else {
        Some(signed_copy(path, &key)?)
    };
    let root = match &signed {
        None => write_manifest(&structure, &parent_roots, &key, &manifest_path, || Ok(()))?,
        Some(copy) => {
            let structure = open_copy(copy, path)?;
            let publish = || copy.publish(path);
            let root = write_manifest(&structure, &parent_roots, &key, &manifest_path, publish)?;
            say(&format!("{name}: master index signed"))?;
            root
        }
    };
    say(&format!("{}: manifest written, root {root}", manifest_path.display()))?;
    say(&format!("signed by the key {}", key.verify_key()))?;
    Ok(())
}

fn open(path: &Path) -> Result<Structure, Failure> {
    Ok(Structure::read(Arc::new(FileBackend::new(path)?), BLOCK_BYTES_MAX_DEFAULT)?)
}

/// A copy, which in messages has the name of what it is a copy of.
fn open_copy(copy: &Output, path: &Path) -> Result<Structure, Failure> {
    let (file, name) = (FileBackend::new(copy.path())?, path.display().to_string());
    Ok(Structure::read(Arc::new(Named { file, name }), BLOCK_BYTES_MAX_DEFAULT)?)
}

#[derive(Debug)]
struct Named {
    file: FileBackend,
    name: String,
}

impl StorageBackend for Named {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(offset, buffer)
    }

    fn bytes(&self) -> u64 {
        self.file.bytes()
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// A copy of the snapshot with a signature, under a temporary name.
///
/// What is signed is what was copied, so it does not matter what becomes of the original.
fn signed_copy(path: &Path, key: &SigningKey) -> Result<Output, Failure> {
    let copy = copy_of(path)?;
    let unsigned = open_copy(&copy, path)?;
    let signed = sign_master_index(&unsigned, key)?;
    copy.write_at(unsigned.file_bytes(), &signed.signature)?;
    copy.write_at(0, &signed.header_area)?;
    Ok(copy)
}

/// Writes the manifest, reads it back, and gives first the snapshot and then the manifest its name.
/// In between there is a manifest that does not fit, which is refused, or none.
fn write_manifest(
    structure: &Structure,
    parent_roots: &[Root],
    key: &SigningKey,
    path: &Path,
    publish_snapshot: impl FnOnce() -> Result<(), Failure>,
) -> Result<Root, Failure> {
    let manifest = Output::beside(path)?;
    let bytes = Stream::ALL.iter().map(|stream| structure.index().stream_bytes(*stream));
    let progress = Progress::new("signing", bytes.fold(0, u64::saturating_add));
    let mut file: BufWriter<&File> = BufWriter::new(manifest.file());
    let root = build(structure, parent_roots, key, &mut file, &|bytes| progress.add(bytes))?;
    file.flush()?;
    drop(file);
    drop(progress);
    let written = Manifest::read(Arc::new(FileBackend::new(manifest.path())?), structure)?;
    written.check(Trust::Keys(&[key.verify_key()]), structure)?;
    manifest.sync()?;
    publish_snapshot()?;
    manifest.publish(path)?;
    Ok(root)
}
