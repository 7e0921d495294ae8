//! Where an image is cut into blocks: at equal distances, or where its content says.

use std::ops::Range;

use fastcdc::v2020;

use crate::snapshot::format::header::ChunkingParameters;
use crate::snapshot::structure::BLOCK_BYTES_MAX_DEFAULT;
use crate::snapshot::write::boundaries::Boundaries;
use crate::snapshot::write::error::ErrorKind;
use crate::snapshot::write::source::Source;

/// What a worker takes at once, in plain bytes, and as much more as its last block needs: enough
/// that small blocks do not pay for a system call and a queue each, little enough that every core
/// has some of a small image.
const BATCH_BYTES: u32 = 1 << 20;

/// How an image is cut into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Blocks of one size, but for the last.
    Blocks(BlockSize),
    /// Where the content says: what lies behind an insertion is cut as it was without it.
    Content(Chunking),
}

impl Cut {
    /// Plain bytes of the largest block there can be.
    pub(super) const fn block_bytes_max(self) -> u32 {
        match self {
            Self::Blocks(size) => size.get(),
            Self::Content(chunking) => chunking.parameters().maximum_bytes,
        }
    }

    /// What the header says of it. A thin snapshot has parameters always, and for blocks of one
    /// size they are those with which content-defined chunking cuts just there: smallest and
    /// largest chunk are one size.
    pub(super) fn parameters(self) -> ChunkingParameters {
        match self {
            Self::Blocks(size) => {
                let bits = (Chunking::AVERAGE_LOG2_MIN, Chunking::AVERAGE_LOG2_MAX);
                let average_log2 = size.get().ilog2().clamp(bits.0, bits.1);
                let (minimum_bytes, maximum_bytes) = (size.get(), size.get());
                ChunkingParameters { average_log2, minimum_bytes, maximum_bytes }
            }
            Self::Content(chunking) => chunking.parameters(),
        }
    }
}

/// Plain bytes of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSize(u32);

impl BlockSize {
    /// A sector. With smaller blocks the 52 bytes of an index entry would take more than a tenth
    /// of the image.
    pub const MIN: u32 = 512;

    /// What the reader accepts unless told otherwise. Format section 15.
    pub const MAX: u32 = BLOCK_BYTES_MAX_DEFAULT;

    /// What Hexz's own tools use.
    pub const DEFAULT: Self = Self(64 << 10);

    /// `None` unless it is a multiple of 512 from 512 to 16 MiB: blocks are whole sectors, so that
    /// reading one never decodes two of them.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        let bytes = u32::try_from(bytes).ok().filter(|bytes| bytes.is_multiple_of(Self::MIN))?;
        Self::of_base(bytes)
    }

    /// A size that a base has already. Hexz takes any, whole sectors or not.
    pub(super) fn of_base(bytes: u32) -> Option<Self> {
        (Self::MIN..=Self::MAX).contains(&bytes).then_some(Self(bytes))
    }

    pub(super) const fn get(self) -> u32 {
        self.0
    }
}

/// Parameters with which `FastCDC` (2020) can cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunking(ChunkingParameters);

impl Chunking {
    const AVERAGE_LOG2_MIN: u32 = v2020::AVERAGE_MIN.ilog2();
    const AVERAGE_LOG2_MAX: u32 = v2020::AVERAGE_MAX.ilog2();

    /// `None` outside of the limits of the algorithm, which cannot cut with others (upstream's
    /// tools panic on them): average 256 bytes to 4 MiB, smallest chunk 64 bytes to 1 MiB, largest
    /// 1 KiB to 16 MiB and not below the smallest.
    #[must_use]
    pub fn new(parameters: ChunkingParameters) -> Option<Self> {
        let ChunkingParameters { average_log2, minimum_bytes, maximum_bytes } = parameters;
        let possible = (Self::AVERAGE_LOG2_MIN..=Self::AVERAGE_LOG2_MAX).contains(&average_log2)
            && (v2020::MINIMUM_MIN..=v2020::MINIMUM_MAX).contains(&minimum_bytes)
            && (v2020::MAXIMUM_MIN..=v2020::MAXIMUM_MAX).contains(&maximum_bytes)
            && minimum_bytes <= maximum_bytes;
        possible.then_some(Self(parameters))
    }

    /// The parameters.
    #[must_use]
    pub const fn parameters(self) -> ChunkingParameters {
        self.0
    }
}

/// Blocks that follow each other in the image, for one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Batch {
    /// Where the first begins in the image.
    pub(super) start: u64,
    /// Its number among all blocks.
    pub(super) first_block: u64,
    /// Plain bytes of each.
    pub(super) lengths: Vec<u32>,
}

impl Batch {
    pub(super) fn range(&self) -> Range<u64> {
        let bytes = self.lengths.iter().copied().map(u64::from).sum();
        self.start..self.start.saturating_add(bytes)
    }
}

/// All batches of an image, in order. Cutting by content reads the image, and ends with the first
/// error.
pub(super) struct Batches<'a> {
    cutter: Cutter<'a>,
    position: u64,
    image_bytes: u64,
    next_block: u64,
}

enum Cutter<'a> {
    Blocks(u32),
    Content(Box<Boundaries<'a>>),
}

impl<'a> Batches<'a> {
    pub(super) fn new(source: &'a Source, cut: Cut) -> Self {
        let cutter = match cut {
            Cut::Blocks(size) => Cutter::Blocks(size.get()),
            Cut::Content(chunking) => Cutter::Content(Box::new(Boundaries::new(source, chunking))),
        };
        Self { cutter, position: 0, image_bytes: source.bytes(), next_block: 0 }
    }

    fn next_length(&mut self) -> Result<u32, ErrorKind> {
        match &mut self.cutter {
            Cutter::Blocks(block_bytes) => {
                let left = self.image_bytes.saturating_sub(self.position);
                Ok(u32::try_from(left).map_or(*block_bytes, |left| left.min(*block_bytes)))
            }
            Cutter::Content(boundaries) => boundaries.next_length(self.position),
        }
    }

    fn next_batch(&mut self) -> Result<Batch, ErrorKind> {
        let (start, first_block) = (self.position, self.next_block);
        let mut lengths = Vec::new();
        while self.position < self.image_bytes
            && self.position.saturating_sub(start) < u64::from(BATCH_BYTES)
        {
            let length = self.next_length()?;
            lengths.push(length);
            self.position = self.position.saturating_add(u64::from(length));
        }
        self.next_block = first_block.saturating_add(lengths.len() as u64);
        Ok(Batch { start, first_block, lengths })
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch, ErrorKind>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.position >= self.image_bytes {
            return None;
        }
        let batch = self.next_batch();
        if batch.is_err() {
            self.position = self.image_bytes;
        }
        Some(batch)
    }
}

/// How many batches there are at most: more workers would have nothing to do.
pub(super) fn batches_max(image_bytes: u64, cut: Cut) -> u64 {
    let batch_bytes = match cut {
        Cut::Blocks(size) => size.get().max(BATCH_BYTES),
        Cut::Content(_) => BATCH_BYTES,
    };
    image_bytes.div_ceil(u64::from(batch_bytes))
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
        // A base may have any size.
        for bytes in [512, 513, 65537, 16 << 20] {
            assert_eq!(BlockSize::of_base(bytes), Some(BlockSize(bytes)));
        }
        for bytes in [0, 511, (16 << 20) + 1, u32::MAX] {
            assert_eq!(BlockSize::of_base(bytes), None, "{bytes}");
        }
    }

    #[test]
    fn parameters_that_the_algorithm_cannot_cut_with_are_none() {
        let new = |(average_log2, minimum_bytes, maximum_bytes)| {
            Chunking::new(ChunkingParameters { average_log2, minimum_bytes, maximum_bytes })
        };
        for possible in [(16, 16384, 262_144), (8, 64, 1024), (22, 1 << 20, 16 << 20)] {
            assert!(new(possible).is_some(), "{possible:?}");
        }
        for impossible in [
            (7, 64, 1024),
            (23, 1 << 20, 16 << 20),
            (64, 64, 1024),
            (u32::MAX, u32::MAX, u32::MAX),
            (0, 0, 0),
            (16, 63, 262_144),
            (16, (1 << 20) + 1, 16 << 20),
            (16, 64, 1023),
            (16, 64, (16 << 20) + 1),
            (16, 16384, 16383),
        ] {
            assert!(new(impossible).is_none(), "{impossible:?}");
        }
    }

    #[test]
    fn the_parameters_of_blocks_of_one_size_cut_there() {
        for bytes in [1024, 65536, 1 << 20] {
            let size = BlockSize::new(bytes).unwrap();
            let parameters = Cut::Blocks(size).parameters();
            let Some(chunking) = Chunking::new(parameters) else { panic!("{parameters:?}") };
            let file = tempfile::NamedTempFile::new().unwrap();
            let noise = blake3::Hasher::new().finalize_xof();
            let image = std::io::copy(
                &mut std::io::Read::take(noise, 3_000_001),
                &mut file.as_file().try_clone().unwrap(),
            );
            image.unwrap();
            let source = Source::open(file.path()).unwrap();
            let by_content: Vec<_> =
                Batches::new(&source, Cut::Content(chunking)).map(Result::unwrap).collect();
            let by_size: Vec<_> =
                Batches::new(&source, Cut::Blocks(size)).map(Result::unwrap).collect();
            assert_eq!(by_content, by_size);
        }
    }

    #[test]
    fn batches_are_whole_blocks_that_cover_the_image_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for block_bytes in [512, 1536, 65536, 3 << 20, 16 << 20] {
            for image_bytes in [0, 1, 1 << 20, (1 << 20) + 1, (40 << 20) - 1] {
                file.as_file().set_len(image_bytes).unwrap();
                let source = Source::open(file.path()).unwrap();
                let cut = Cut::Blocks(BlockSize::new(block_bytes).unwrap());
                let (mut position, mut block, mut batches) = (0, 0, 0);
                for batch in Batches::new(&source, cut) {
                    let batch = batch.unwrap();
                    assert_eq!((batch.start, batch.first_block), (position, block));
                    assert_eq!(batch.start % block_bytes, 0);
                    let (last, whole) = batch.lengths.split_last().unwrap();
                    assert!(whole.iter().all(|length| u64::from(*length) == block_bytes));
                    assert!(u64::from(*last) <= block_bytes);
                    position = batch.range().end;
                    block += batch.lengths.len() as u64;
                    batches += 1;
                }
                assert_eq!(position, image_bytes, "{block_bytes}");
                assert_eq!(block, image_bytes.div_ceil(block_bytes));
                assert!(batches <= batches_max(image_bytes, cut), "{block_bytes}");
            }
        }
    }
}
