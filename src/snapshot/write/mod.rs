//! An image to a `.hxz` file as Hexz 0.8 writes them. Format section 18.
//!
//! Threads read, hash and compress; the caller's thread alone decides what is stored and where, in
//! the order of the image, so the file does not depend on the number of threads.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

pub mod base;
mod body;
mod boundaries;
mod compress;
pub mod cut;
mod destination;
pub mod error;
mod known;
mod pipeline;
pub mod source;
mod writeback;

pub use self::base::Base;
pub use self::cut::{BlockSize, Chunking, Cut};
pub use self::error::{Error, ErrorKind};
pub use self::source::Source;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::snapshot::encryption::{BlockCipher, ITERATIONS_DEFAULT, Passphrase};
use crate::snapshot::format::header::Encryption;
use crate::snapshot::format::index::{
    MASTER_INDEX_BYTES_MAX, MASTER_INDEX_FIXED_BYTES, PAGE_ENTRIES_MAX, PAGE_RECORD_BYTES,
};
use crate::snapshot::format::{Compression, Header, Layout};
use crate::snapshot::write::body::Body;
use crate::snapshot::write::compress::Worker;
use crate::snapshot::write::cut::{Batch, Batches};
use crate::snapshot::write::destination::Temporary;
use crate::snapshot::write::known::Known;

/// How a snapshot is written.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// How blocks are compressed.
    pub method: Method,
    /// Where the image is cut. With a base best as [`Base::cut`] says: blocks that are cut
    /// otherwise are not found in it.
    pub cut: Cut,
    /// Threads that read and compress.
    pub threads: NonZeroUsize,
    /// Whether a file that exists may be replaced.
    pub replace: bool,
    /// Whose blocks are not stored again. The snapshot cannot be read without it.
    pub base: Option<&'a Base>,
    /// Encrypts the blocks. No two of them are then stored once, and neither sizes nor holes nor
    /// the hashes of what is in the base become secret.
    pub passphrase: Option<&'a Passphrase>,
}

/// How blocks are compressed, and how hard the compressor tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// LZ4 block format. It has no levels.
    Lz4,
    /// Zstandard.
    Zstd(ZstdLevel),
}

impl Method {
    fn compression(self) -> Compression {
        match self {
            Self::Lz4 => Compression::Lz4,
            Self::Zstd(_) => Compression::Zstd,
        }
    }
}

/// A level of Zstandard, 1 to 22.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZstdLevel(i32);

impl ZstdLevel {
    /// What Hexz's own tools use.
    pub const DEFAULT: Self = Self(3);

    /// `None` outside of 1 to 22. The negative levels of Zstandard are no better than LZ4.
    #[must_use]
    pub fn new(level: i32) -> Option<Self> {
        (1..=22).contains(&level).then_some(Self(level))
    }

    const fn get(self) -> i32 {
        self.0
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Length of the image, in bytes.
    pub image_bytes: u64,
    /// Length of the snapshot, in bytes.
    pub file_bytes: u64,
    /// Bytes of the image in blocks of zeros, which are not stored.
    pub sparse_bytes: u64,
    /// Bytes of the image in blocks that are stored already, elsewhere in the image.
    pub duplicate_bytes: u64,
    /// Bytes of the image in blocks that the base stores.
    pub base_bytes: u64,
    /// Blocks of the base that do not hold what its index says, where the image has just that.
    /// Nothing refers to them.
    pub base_blocks_damaged: u64,
}

/// Packs an image into a new file, which appears under its name when it is complete and durable.
///
/// Takes memory for four batches a thread, each of 1 MiB and what its last block needs more, and
/// at most 392 MiB to recognise blocks that are stored already. `stop` may be set at any time and
/// is noticed after a batch; `progress` is called with the plain bytes of each batch.
///
/// # Errors
///
/// [`Error`] if the image cannot be read, changes its size, has more blocks than an index can
/// hold, if the file exists, would replace the image or the base, or cannot be written, or if
/// `stop` was set. The destination is then as it was before, unless only [`ErrorKind::Sync`] of
/// its directory failed.
pub fn write(
    source: &Source,
    destination: &Path,
    settings: &Settings<'_>,
    stop: &AtomicBool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Summary, Error> {
    let written = |kind| Error { file: destination.display().to_string(), kind };
    let image_bytes = source.bytes();
    check_block_count(image_bytes.div_ceil(u64::from(settings.cut.block_bytes_max())))
        .map_err(|kind| source.error(kind))?;
    destination::check(destination, source, settings.base, settings.replace).map_err(written)?;
    let mut header = header(destination, settings)?;
    let cipher = settings.passphrase.map(new_key).transpose().map_err(written)?;
    let cipher = cipher.map(|(encryption, cipher)| {
        header.encryption = Some(encryption);
        cipher
    });

    let temporary = Temporary::beside(destination).map_err(written)?;
    let mut summary = writeback::while_writing(temporary.file(), written, |writeback| {
        let known = Known::default();
        let mut body = Body::begin(temporary.file(), writeback, &known).map_err(written)?;
        // No more than there is work for.
        let threads = usize::try_from(cut::batches_max(image_bytes, settings.cut))
            .map_or(settings.threads.get(), |batches| batches.min(settings.threads.get()));
        let workers = (0..threads)
            .map(|_| Worker::new(source, &known, cipher.as_ref(), settings))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|kind| source.error(kind))?;
        pipeline::in_order(
            Batches::new(source, settings.cut),
            workers
                .into_iter()
                .map(|mut worker| move |batch: Result<Batch, _>| worker.pack(&batch?))
                .collect(),
            |cause| source.error(ErrorKind::Thread(cause)),
            |blocks| {
                if stop.load(Ordering::Relaxed) {
                    return Err(written(ErrorKind::Interrupted));
                }
                let blocks = blocks.map_err(|kind| source.error(kind))?;
                let plain_bytes = blocks.iter().map(|block| u64::from(block.plain_bytes)).sum();
                for block in blocks {
                    body.push(block).map_err(written)?;
                }
                progress(plain_bytes);
                Ok(())
            },
        )?;
        source.check_size().map_err(|kind| source.error(kind))?;
        body.finish(header).map_err(written)
    })?;
    summary.base_blocks_damaged = settings.base.map_or(0, Base::damaged_blocks);
    temporary.publish(destination, settings.replace).map_err(written)?;
    Ok(summary)
}

/// A key that no other file has: its nonces are the numbers of blocks.
fn new_key(passphrase: &Passphrase) -> Result<(Encryption, BlockCipher), ErrorKind> {
    let mut encryption = Encryption { salt: [0; 16], iterations: ITERATIONS_DEFAULT };
    aws_lc_rs::rand::fill(&mut encryption.salt).map_err(|_| ErrorKind::Key)?;
    let cipher = BlockCipher::derive(passphrase, &encryption).map_err(|_| ErrorKind::Key)?;
    Ok((encryption, cipher))
}

/// All of the header that is known before the work, so that one that cannot be written is refused
/// before it.
fn header(destination: &Path, settings: &Settings<'_>) -> Result<Header, Error> {
    let mut header = Header {
        layout: Layout::ParentList,
        block_bytes: match settings.cut {
            Cut::Blocks(size) => size.get(),
            // Hexz writes its default there when it cuts by content.
            Cut::Content(_) => BlockSize::DEFAULT.get(),
        },
        index_offset: 0,
        parents: Vec::new(),
        dictionary: None,
        metadata: None,
        signature: None,
        encryption: None,
        compression: settings.method.compression(),
        has_main: false,
        has_auxiliary: false,
        variable_blocks: false,
        // Blocks of one size have none, in files of every release.
        chunking: None,
    };
    if let Cut::Content(chunking) = settings.cut {
        header.variable_blocks = true;
        header.chunking = Some(chunking.parameters());
    }
    if let Some(base) = settings.base {
        let path = base.recorded_path(destination)?;
        let path_bytes = path.len();
        header.parents.push(path);
        // A reference of ours means the bytes with its hash, wherever they lie in the base. In a
        // file that says it has blocks of one size readers take it for one of `commit --thin`,
        // which means the bytes at its own position, if the block there has the hash. With data
        // that repeats itself, shifted, such a block exists and the bytes are others. So thin
        // files always say that blocks vary. Format section 12, step 2.
        header.variable_blocks = true;
        header.chunking = Some(settings.cut.parameters());
        header.encode().map_err(|_| base.error(ErrorKind::BasePathTooLong(path_bytes)))?;
    }
    Ok(header)
}

/// Refuses what no reader would open. Format section 15.
fn check_block_count(blocks: u64) -> Result<(), ErrorKind> {
    const PAGES_MAX: u64 = (MASTER_INDEX_BYTES_MAX - MASTER_INDEX_FIXED_BYTES) / PAGE_RECORD_BYTES;
    const BLOCKS_MAX: u64 = PAGES_MAX * PAGE_ENTRIES_MAX;
    if blocks > BLOCKS_MAX {
        return Err(ErrorKind::TooManyBlocks { blocks, limit: BLOCKS_MAX });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zstandard_has_levels_1_to_22() {
        for level in [1, 3, 22] {
            assert_eq!(ZstdLevel::new(level), Some(ZstdLevel(level)));
        }
        for level in [i32::MIN, -1, 0, 23, i32::MAX] {
            assert_eq!(ZstdLevel::new(level), None, "{level}");
        }
    }

    #[test]
    fn an_image_of_more_blocks_than_an_index_holds_is_refused() {
        // 64 MiB of page records, 4096 blocks a page: 4.5 TiB of 512 bytes each.
        assert!(check_block_count((4 << 40) / 512).is_ok());
        assert!(matches!(
            check_block_count((5 << 40) / 512),
            Err(ErrorKind::TooManyBlocks { blocks: 10_737_418_240, .. })
        ));
        assert!(check_block_count(u64::MAX).is_err());
    }
}
