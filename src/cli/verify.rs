//! `hexz-nbd verify`: is every byte of a snapshot what was packed?

use std::io::{self, Write as _};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use crate::cli::Failure;
use crate::cli::escape::Escaped;
use crate::cli::passphrases;
use crate::cli::progress::Progress;
use crate::cli::signatures;
use crate::cli::size::ByteSize;
use crate::snapshot::verify::verified_bytes;
use crate::snapshot::{self, Cache, Check, DamagedRange, File, FileBackend, OpenOptions};

/// Room for a few index pages, in bytes. Blocks are read past the cache.
const CACHE_BYTES: u64 = 8 << 20;

/// Decode every block of a snapshot and check it.
///
/// Each block is compared with its CRC-32 and, where the snapshot has one, its BLAKE3. Damaged
/// ranges go to standard output, one a line: stream, first byte, length, what is wrong. The exit
/// code is 0 if all is whole, 1 if anything is damaged or cannot be read.
///
/// With --key, the manifest beside the snapshot must be signed by one of the keys and hold for every
/// page and block, and for what a thin snapshot uses of its parents. Without a manifest, the signature of the
/// master index must be valid by one of the keys, which says nothing of pages and blocks.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The snapshot.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// File with the passphrase of an encrypted snapshot, repeatable: each is tried. Without it, the
    /// environment variable HEXZ_NBD_PASSPHRASE.
    #[arg(long, value_name = "FILE")]
    key_file: Vec<PathBuf>,

    /// Directory in which parents of a thin snapshot are looked for, behind its own, repeatable.
    #[arg(long, value_name = "DIR")]
    parent_dir: Vec<PathBuf>,

    /// How many blocks to decode at the same time. As many as there are processors if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    #[command(flatten)]
    signatures: signatures::SignatureArguments,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let keys = arguments.signatures.keys()?;
    let options = OpenOptions {
        cache: Arc::new(Cache::new(CACHE_BYTES)),
        size_from_index: true,
        check: Check::Blake3,
        passphrases: passphrases::load(&arguments.key_file, false)?,
        parent_directories: arguments.parent_dir.clone(),
        verify_keys: keys.clone(),
        require_manifest: arguments.signatures.require_manifest,
        ..OpenOptions::default()
    };
    let file = File::open_with(Arc::new(FileBackend::new(&arguments.file)?), options)?;
    let threads = match arguments.threads {
        Some(threads) => NonZeroUsize::new(usize::from(threads)),
        None => thread::available_parallelism().ok(),
    };
    let bytes = verified_bytes(&file);
    let progress = Progress::new("verify", bytes);
    let add = |bytes| progress.add(bytes);
    let damaged = snapshot::verify(&file, threads.unwrap_or(NonZeroUsize::MIN), &add);
    // Gone before anything is printed where it was drawn.
    drop(progress);

    let name = file.structure().name();
    let mut out = io::stdout().lock();
    for range in &damaged {
        writeln!(out, "{}", Escaped(&range.to_string()))?;
    }
    if damaged.is_empty() {
        for line in signatures::lines(file.structure(), &keys) {
            writeln!(out, "{}", Escaped(&line))?;
        }
        writeln!(out, "{}: whole, {}", Escaped(name), ByteSize(bytes))?;
        return Ok(());
    }
    let damaged_bytes: u64 = damaged.iter().map(DamagedRange::bytes).sum();
    let ranges = damaged.len();
    Err(Failure::failed(format!(
        "{name}: {damaged_bytes} of {bytes} bytes are damaged, ranges: {ranges}"
    )))
}
