//! An image to a `.hxz` file: family D with blocks of one size. Format section 18.
//!
//! Threads read, hash and compress; the caller's thread alone decides what is stored and where, in
//! the order of the image, so the file does not depend on the number of threads.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod body;
mod compress;
mod destination;
pub mod error;
mod known;
mod pipeline;
pub mod source;

pub use self::error::{Error, ErrorKind};
pub use self::source::Source;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::snapshot::format::Compression;
use crate::snapshot::format::index::{
    MASTER_INDEX_BYTES_MAX, MASTER_INDEX_FIXED_BYTES, PAGE_ENTRIES_MAX, PAGE_RECORD_BYTES,
};
use crate::snapshot::structure::BLOCK_BYTES_MAX_DEFAULT;
use crate::snapshot::write::body::Body;
use crate::snapshot::write::compress::Worker;
use crate::snapshot::write::destination::Temporary;
use crate::snapshot::write::known::Known;

/// How a snapshot is written.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How blocks are compressed.
    pub method: Method,
    /// Plain bytes of every block but the last.
    pub block_size: BlockSize,
    /// Threads that read and compress.
    pub threads: NonZeroUsize,
    /// Whether a file that exists may be replaced.
    pub replace: bool,
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

/// Plain bytes of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSize(u32);

impl BlockSize {
    /// A sector. Blocks are whole sectors, so that reading one never decodes two of them, and with
    /// smaller ones the 52 bytes of an index entry would take more than a tenth of the image.
    pub const MIN: u32 = 512;

    /// What the reader accepts unless told otherwise. Format section 15.
    pub const MAX: u32 = BLOCK_BYTES_MAX_DEFAULT;

    /// `None` unless it is a multiple of 512 from 512 to 16 MiB.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        u32::try_from(bytes)
            .ok()
            .filter(|bytes| (Self::MIN..=Self::MAX).contains(bytes))
            .filter(|bytes| bytes.is_multiple_of(Self::MIN))
            .map(Self)
    }

    const fn get(self) -> u32 {
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
}

/// What a worker takes at once, in plain bytes: large enough that small blocks do not pay for a
/// system call and a queue each, small enough that every core has some of a small image.
const BATCH_BYTES: u32 = 1 << 20;

/// Packs an image into a new file, which appears under its name when it is complete and durable.
///
/// Takes memory for four batches a thread, each 1 MiB or one block, whichever is larger, and at
/// most 392 MiB to recognise blocks that are stored already. `stop` may be set at any time and is
/// noticed after a batch; `progress` is called with the plain bytes of each batch.
///
/// # Errors
///
/// [`Error`] if the image cannot be read, changes its size, has more blocks than an index can
/// hold, if the file exists or cannot be written, or if `stop` was set. The destination is then as
/// it was before, unless only [`ErrorKind::Sync`] of its directory failed.
pub fn write(
    source: &Source,
    destination: &Path,
    settings: &Settings,
    stop: &AtomicBool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Summary, Error> {
    let written = |kind| Error { file: destination.display().to_string(), kind };
    let image_bytes = source.bytes();
    check_block_count(image_bytes, settings.block_size).map_err(|kind| source.error(kind))?;
    destination::check(destination, source, settings.replace).map_err(written)?;

    let temporary = Temporary::beside(destination).map_err(written)?;
    let known = Known::default();
    let mut body = Body::begin(temporary.file(), &known).map_err(written)?;
    let batches = batches(image_bytes, settings.block_size);
    // No more than there is work for.
    let workers = batches
        .clone()
        .take(settings.threads.get())
        .map(|_| Worker::new(source, &known, settings))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|kind| source.error(kind))?;
    pipeline::in_order(
        batches,
        workers.into_iter().map(|mut worker| move |range| worker.pack(range)).collect(),
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
    let summary = body.finish(settings).map_err(written)?;
    temporary.publish(destination, settings.replace).map_err(written)?;
    Ok(summary)
}

/// Whole blocks, in the order of the image.
fn batches(image_bytes: u64, block_size: BlockSize) -> impl Iterator<Item = Range<u64>> + Clone {
    let block_bytes = block_size.get();
    let batch_bytes = BATCH_BYTES.checked_next_multiple_of(block_bytes).unwrap_or(block_bytes);
    (0..image_bytes)
        .step_by(batch_bytes as usize)
        .map(move |start| start..start.saturating_add(u64::from(batch_bytes)).min(image_bytes))
}

/// Refuses before the work what no reader would open after it. Format section 15.
fn check_block_count(image_bytes: u64, block_size: BlockSize) -> Result<(), ErrorKind> {
    const PAGES_MAX: u64 = (MASTER_INDEX_BYTES_MAX - MASTER_INDEX_FIXED_BYTES) / PAGE_RECORD_BYTES;
    const BLOCKS_MAX: u64 = PAGES_MAX * PAGE_ENTRIES_MAX;
    let blocks = image_bytes.div_ceil(u64::from(block_size.get()));
    if blocks > BLOCKS_MAX {
        return Err(ErrorKind::TooManyBlocks { blocks, limit: BLOCKS_MAX });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_whole_sectors_up_to_the_limit_of_the_reader() {
        for bytes in [512, 1024, 65536, 16 << 20] {
            assert_eq!(BlockSize::new(bytes).map(BlockSize::get).map(u64::from), Some(bytes));
        }
        for bytes in [0, 1, 511, 513, 65537, (16 << 20) + 512, 1 << 32, u64::MAX] {
            assert_eq!(BlockSize::new(bytes), None, "{bytes}");
        }
    }

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
    fn batches_are_whole_blocks_that_cover_the_image_once() {
        for block_bytes in [512, 1536, 65536, 3 << 20, 16 << 20] {
            for image_bytes in [0, 1, 1 << 20, (1 << 20) + 1, (40 << 20) - 1] {
                let mut position = 0;
                for batch in batches(image_bytes, BlockSize::new(block_bytes).unwrap()) {
                    assert_eq!(batch.start, position);
                    assert_eq!(batch.start % block_bytes, 0);
                    assert!(batch.end > batch.start);
                    position = batch.end;
                }
                assert_eq!(position, image_bytes, "{block_bytes}");
            }
        }
    }

    #[test]
    fn an_image_of_more_blocks_than_an_index_holds_is_refused_before_the_work() {
        // 64 MiB of page records, 4096 blocks a page: 4.5 TiB of 512 bytes each.
        let sectors = BlockSize::new(512).unwrap();
        assert!(check_block_count(4 << 40, sectors).is_ok());
        assert!(matches!(
            check_block_count(5 << 40, sectors),
            Err(ErrorKind::TooManyBlocks { blocks: 10_737_418_240, .. })
        ));
        assert!(check_block_count(5 << 40, BlockSize::new(1024).unwrap()).is_ok());
        assert!(check_block_count(u64::MAX, BlockSize::new(65536).unwrap()).is_err());
    }
}
