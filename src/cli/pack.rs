//! `hexz-nbd pack`: a disk image or block device to a snapshot.

use std::io::{self, Write as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use indicatif::BinaryBytes;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::escape::Escaped;
use crate::cli::failure::Failure;
use crate::cli::passphrases;
use crate::cli::progress::Progress;
use crate::cli::size::ByteSize;
use crate::snapshot::Passphrase;
use crate::snapshot::write::{
    self, Base, BlockSize, Cut, ErrorKind, Method, Settings, Source, Summary, ZstdLevel,
};

/// Pack a disk image or block device into a snapshot.
///
/// Blocks of zeros and holes take no room, and equal blocks are stored once. The snapshot appears
/// under its name when it is complete and safely on disk; before that there is only a hidden
/// temporary file beside it. The image must not be in use: a change of its size is noticed, a
/// change of its contents is not.
///
/// With --base, what the base holds already is not stored again. Such a thin snapshot cannot be read
/// without its base, as it was: keep both. Only what the base itself stores is found in it: blocks
/// that the base takes from a base of its own are stored again, since Hexz 0.8 would not find them
/// there.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Image to read: a regular file or a block device
    image: PathBuf,

    /// Snapshot to write
    #[arg(value_name = "OUT.hxz")]
    output: PathBuf,

    /// How blocks are compressed: lz4, or zstd with a level from 1 (fast) to 22 (small). A bare
    /// zstd is zstd:3
    #[arg(long, value_name = "lz4|zstd[:LEVEL]", default_value = "lz4", value_parser = method)]
    compression: Method,

    /// Plain bytes in a block, a multiple of 512 up to 16MiB. Larger blocks compress better, smaller
    /// ones are read faster at random [default: 64KiB, with --base what the base has]
    #[arg(long, value_name = "SIZE", value_parser = block_size)]
    block_size: Option<BlockSize>,

    /// Do not store again what this snapshot holds. The image is cut where the base was, so that
    /// equal data is found. Neither encrypted nor made by Hexz before 0.5
    #[arg(long, value_name = "PARENT.hxz")]
    base: Option<PathBuf>,

    /// Encrypt the blocks, with a passphrase from --key-file, else from the environment variable
    /// HEXZ_NBD_PASSPHRASE, else from the credential `passphrase` of systemd
    ///
    /// The scheme is that of Hexz: AES-256-GCM, with a key from the passphrase by
    /// PBKDF2-HMAC-SHA256 (600000 iterations). It hides contents, and no more: whoever has the file
    /// sees the size of the image, where it is zero, how well each block compresses, the path of a
    /// base, and the BLAKE3 of each block that is in the base. And it is no proof that the snapshot
    /// is as it was written: header and index are not authenticated, so whoever can write to the
    /// file can turn blocks into zeros, and nobody notices. Sign it, if that matters. The passphrase
    /// is all there is: take a long one, there is no second way to the contents.
    #[arg(long)]
    encrypt: bool,

    /// File with the passphrase for --encrypt. One line break at its end does not count
    #[arg(long, value_name = "FILE", requires = "encrypt")]
    key_file: Option<PathBuf>,

    /// Threads that read and compress, 1 to 1024. The snapshot is the same with any number
    /// [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Replace OUT.hxz if it exists
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let threads = match arguments.threads.map(usize::from).and_then(NonZeroUsize::new) {
        Some(threads) => threads,
        None => thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
    };
    let source = Source::open(&arguments.image)?;
    let base = arguments.base.as_deref().map(Base::open).transpose()?;
    let passphrase =
        if arguments.encrypt { Some(passphrase(arguments.key_file.as_slice())?) } else { None };
    let settings = Settings {
        method: arguments.compression,
        cut: cut(base.as_ref(), arguments.block_size)?,
        threads,
        replace: arguments.force,
        base: base.as_ref(),
        passphrase: passphrase.as_ref(),
    };
    let stop = stop_on_signal()?;
    let progress = Progress::new("packing", source.bytes());
    let summary =
        write::write(&source, &arguments.output, &settings, &stop, &|bytes| progress.add(bytes));
    drop(progress);
    match summary {
        Ok(summary) => {
            let base = arguments.base.as_deref().zip(base.as_ref());
            writeln!(io::stdout(), "{}", describe(&summary, base.is_some()))?;
            if let Some((path, base)) = base {
                warn_of_base(path, base, &arguments.output, &summary)?;
            }
        }
        Err(error) if matches!(error.kind, ErrorKind::Exists) => {
            return Err(Failure::failed(format!("{error}, use --force to replace it")));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn passphrase(key_file: &[PathBuf]) -> Result<Passphrase, Failure> {
    let passphrase = passphrases::load(key_file, false)?.into_iter().next().ok_or_else(|| {
        Failure::Usage(format!(
            "--encrypt needs a passphrase: name a file that holds it with --key-file, or set the \
             environment variable {}",
            passphrases::VARIABLE
        ))
    })?;
    if !passphrase.is_utf8() {
        return Err(Failure::failed(
            "the passphrase is not UTF-8, and Hexz's own tools could not be told it: take another",
        ));
    }
    Ok(passphrase)
}

/// Equal data makes equal blocks only where both are cut alike.
fn cut(base: Option<&Base>, block_size: Option<BlockSize>) -> Result<Cut, Failure> {
    let Some(base) = base else {
        return Ok(Cut::Blocks(block_size.unwrap_or(BlockSize::DEFAULT)));
    };
    match (base.cut(), block_size) {
        (Ok(Cut::Content(_)), Some(_)) => Err(Failure::Usage(
            "--block-size cannot be used with this --base: the base is cut where its content says, \
             and in blocks of one size hardly anything of it would be found"
                .into(),
        )),
        (Ok(Cut::Blocks(_)) | Err(_), Some(size)) => Ok(Cut::Blocks(size)),
        (cut, None) => Ok(cut?),
    }
}

/// What whoever keeps the snapshot has to know of its base.
fn warn_of_base(path: &Path, base: &Base, output: &Path, summary: &Summary) -> Result<(), Failure> {
    let path = path.display().to_string();
    let path = Escaped(&path);
    if summary.base_blocks_damaged != 0 {
        let blocks = match summary.base_blocks_damaged {
            1 => "1 block of it is".to_owned(),
            blocks => format!("{blocks} blocks of it are"),
        };
        eprintln!(
            "hexz-nbd: {path}: {blocks} damaged, what should be there was stored again: \
             `hexz-nbd verify` finds out more"
        );
    }
    if base.recorded_path(output)?.starts_with('/') {
        eprintln!(
            "hexz-nbd: {path}: the base is in another directory than the snapshot: servers look \
             for it by its name, beside the snapshot and in each --parent-dir"
        );
    }
    Ok(())
}

/// Becomes true with the first SIGINT or SIGTERM, so that the temporary file can be removed.
fn stop_on_signal() -> io::Result<Arc<AtomicBool>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    // Not waited for: it ends with the process.
    thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        stopped.store(true, Ordering::Relaxed);
    })?;
    Ok(stop)
}

/// One line for people.
fn describe(summary: &Summary, has_base: bool) -> String {
    let mut line = format!(
        "packed {} into {} ({}), {} sparse, {} duplicate",
        BinaryBytes(summary.image_bytes),
        BinaryBytes(summary.file_bytes),
        share(summary.file_bytes, summary.image_bytes),
        share(summary.sparse_bytes, summary.image_bytes),
        share(summary.duplicate_bytes, summary.image_bytes),
    );
    if has_base {
        let bytes = BinaryBytes(summary.base_bytes);
        let part = share(summary.base_bytes, summary.image_bytes);
        line.push_str(&format!(", {bytes} ({part}) in the base"));
    }
    line
}

/// A part of a whole in percent, with one decimal. Of nothing there is no part.
fn share(part: u64, whole: u64) -> String {
    let tenths = (u128::from(part) * 1000 + u128::from(whole / 2)).checked_div(u128::from(whole));
    tenths.map_or_else(|| "-".into(), |tenths| format!("{}.{}%", tenths / 10, tenths % 10))
}

fn method(text: &str) -> Result<Method, String> {
    match text.split_once(':') {
        None if text == "lz4" => Ok(Method::Lz4),
        None if text == "zstd" => Ok(Method::Zstd(ZstdLevel::DEFAULT)),
        Some(("zstd", level)) => level
            .parse()
            .ok()
            .and_then(ZstdLevel::new)
            .map(Method::Zstd)
            .ok_or_else(|| "the level of zstd is a number from 1 to 22".into()),
        Some(("lz4", _)) => Err("lz4 has no levels".into()),
        _ => Err("expected lz4, zstd or zstd:LEVEL".into()),
    }
}

fn block_size(text: &str) -> Result<BlockSize, String> {
    let ByteSize(bytes) = text.parse().map_err(|error| format!("{error}"))?;
    BlockSize::new(bytes).ok_or_else(|| "expected a multiple of 512 up to 16MiB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compression_is_a_name_and_a_level_where_there_are_levels() {
        let zstd = |level| Ok(Method::Zstd(ZstdLevel::new(level).unwrap()));
        assert_eq!(method("lz4"), Ok(Method::Lz4));
        assert_eq!(method("zstd"), zstd(3));
        assert_eq!(method("zstd:1"), zstd(1));
        assert_eq!(method("zstd:22"), zstd(22));
        for wrong in ["", "none", "LZ4", "lz4:1", "lz4:", "zstd:", "zstd:0", "zstd:23", "zstd:-1"] {
            assert!(method(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_are_rounded_and_of_nothing_there_is_none() {
        assert_eq!(share(1, 3), "33.3%");
        assert_eq!(share(2, 3), "66.7%");
        assert_eq!(share(0, 7), "0.0%");
        assert_eq!(share(3, 2), "150.0%");
        assert_eq!(share(u64::MAX, u64::MAX), "100.0%");
        assert_eq!(share(4096, 0), "-");
    }
}
