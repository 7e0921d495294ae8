//! Plain bytes of the image to stored bytes, by one thread. Format sections 8, 9 and 18.

use std::io;
use std::ops::Range;

use crate::snapshot::write::error::ErrorKind;
use crate::snapshot::write::known::{Known, Stored};
use crate::snapshot::write::source::Source;
use crate::snapshot::write::{Method, Settings};

/// A block, ready to be written.
#[derive(Debug)]
pub(super) struct PackedBlock {
    pub(super) plain_bytes: u32,
    pub(super) contents: Contents,
}

/// What is in a block.
#[derive(Debug)]
pub(super) enum Contents {
    /// Zeros, which are not stored.
    Zeros,
    /// Bytes that were stored already when the block was looked at.
    Known { hash: [u8; 32], stored: Stored },
    /// Bytes that may be new.
    Compressed { hash: [u8; 32], crc: u32, bytes: Vec<u8> },
}

/// What one thread needs to pack blocks.
pub(super) struct Worker<'a> {
    source: &'a Source,
    known: &'a Known,
    block_bytes: u32,
    encoder: Encoder,
    /// Kept from batch to batch, so that its memory is asked for once.
    plain: Vec<u8>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        source: &'a Source,
        known: &'a Known,
        settings: &Settings,
    ) -> Result<Self, ErrorKind> {
        let encoder = Encoder::new(settings.method).map_err(ErrorKind::Compressor)?;
        let block_bytes = settings.block_size.get();
        Ok(Self { source, known, block_bytes, encoder, plain: Vec::new() })
    }

    /// Packs a range that begins where a block begins, and ends where one ends or with the image.
    pub(super) fn pack(&mut self, range: Range<u64>) -> Result<Vec<PackedBlock>, ErrorKind> {
        let mut blocks = Vec::new();
        let mut position = range.start;
        while let Some(data) = self.source.next_data(position..range.end) {
            let data = self.whole_blocks(data, range.end);
            push_zeros(&mut blocks, position..data.start, self.block_bytes);
            position = data.end;
            self.pack_data(&mut blocks, data)?;
        }
        push_zeros(&mut blocks, position..range.end, self.block_bytes);
        Ok(blocks)
    }

    /// The blocks that a run of data touches.
    fn whole_blocks(&self, data: Range<u64>, end: u64) -> Range<u64> {
        let block_bytes = u64::from(self.block_bytes);
        let into_block = data.start.checked_rem(block_bytes).unwrap_or(0);
        let start = data.start.saturating_sub(into_block);
        let data_end = data.end.checked_next_multiple_of(block_bytes).unwrap_or(end);
        start..data_end.min(end)
    }

    fn pack_data(
        &mut self,
        blocks: &mut Vec<PackedBlock>,
        data: Range<u64>,
    ) -> Result<(), ErrorKind> {
        let length = usize::try_from(data.end.saturating_sub(data.start))
            .expect("a batch is 1 MiB or one block");
        self.plain.resize(length, 0);
        self.source.read(data.start, &mut self.plain)?;
        let mut offset = data.start;
        for plain in self.plain.chunks(self.block_bytes as usize) {
            let plain_bytes = u32::try_from(plain.len()).expect("a chunk is at most one block");
            let contents = pack_block(&mut self.encoder, self.known, plain)
                .map_err(|source| ErrorKind::Compress { offset, source })?;
            blocks.push(PackedBlock { plain_bytes, contents });
            offset = offset.saturating_add(u64::from(plain_bytes));
        }
        Ok(())
    }
}

fn pack_block(encoder: &mut Encoder, known: &Known, plain: &[u8]) -> io::Result<Contents> {
    if is_zero(plain) {
        return Ok(Contents::Zeros);
    }
    let hash = *blake3::hash(plain).as_bytes();
    if let Some(stored) = known.get(&hash) {
        return Ok(Contents::Known { hash, stored });
    }
    let bytes = encoder.encode(plain)?;
    Ok(Contents::Compressed { hash, crc: crc32fast::hash(&bytes), bytes })
}

fn push_zeros(blocks: &mut Vec<PackedBlock>, hole: Range<u64>, block_bytes: u32) {
    let mut left = hole.end.saturating_sub(hole.start);
    while left > 0 {
        let plain_bytes = u32::try_from(left).map_or(block_bytes, |left| left.min(block_bytes));
        blocks.push(PackedBlock { plain_bytes, contents: Contents::Zeros });
        left = left.saturating_sub(u64::from(plain_bytes));
    }
}

/// Piece by piece: a data block differs in its first piece mostly, and within a piece there is no
/// branch, so that it is done with wide registers.
fn is_zero(plain: &[u8]) -> bool {
    plain.chunks(256).all(|piece| piece.iter().fold(0, |any, byte| any | byte) == 0)
}

/// A compressor and what it keeps between blocks.
enum Encoder {
    Lz4,
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Encoder {
    fn new(method: Method) -> io::Result<Self> {
        Ok(match method {
            Method::Lz4 => Self::Lz4,
            Method::Zstd(level) => Self::Zstd(zstd::bulk::Compressor::new(level.get())?),
        })
    }

    fn encode(&mut self, plain: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Lz4 => Ok(lz4_flex::block::compress_prepend_size(plain)),
            Self::Zstd(compressor) => compressor.compress(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_makes_a_block_data() {
        for length in [1, 255, 256, 257, 4096, 65535] {
            let mut plain = vec![0; length];
            assert!(is_zero(&plain));
            for position in [0, length / 2, length - 1] {
                plain[position] = 1;
                assert!(!is_zero(&plain), "{position} of {length}");
                plain[position] = 0;
            }
        }
    }

    #[test]
    fn a_hole_becomes_whole_blocks_and_a_short_one_at_the_end() {
        let mut blocks = Vec::new();
        push_zeros(&mut blocks, 4096..4096 + 2500, 1024);
        let lengths: Vec<_> = blocks.iter().map(|block| block.plain_bytes).collect();
        assert_eq!(lengths, [1024, 1024, 452]);
    }
}
