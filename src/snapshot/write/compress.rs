//! Plain bytes of the image to stored bytes, by one thread. Format sections 8 to 10 and 18.

use std::io;
use std::ops::Range;

use crate::snapshot::encryption::BlockCipher;
use crate::snapshot::write::base::Base;
use crate::snapshot::write::cut::Batch;
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
    /// Bytes that the base stores.
    InBase { hash: [u8; 32] },
    /// Bytes that were stored already when the block was looked at.
    Known { hash: [u8; 32], stored: Stored },
    /// Bytes that may be new.
    Compressed { hash: [u8; 32], crc: u32, bytes: Vec<u8> },
    /// Bytes that are stored in any case, and without a hash, which would show what they are.
    Encrypted { crc: u32, bytes: Vec<u8> },
}

/// What one thread needs to pack blocks.
pub(super) struct Worker<'a> {
    source: &'a Source,
    packer: BlockPacker<'a>,
    /// Kept from batch to batch, so that its memory is asked for once.
    plain: Vec<u8>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        source: &'a Source,
        known: &'a Known,
        cipher: Option<&'a BlockCipher>,
        settings: &Settings<'a>,
    ) -> Result<Self, ErrorKind> {
        let encoder = Encoder::new(settings.method).map_err(ErrorKind::Compressor)?;
        let packer = BlockPacker { base: settings.base, known, cipher, encoder };
        Ok(Self { source, packer, plain: Vec::new() })
    }

    /// Packs the blocks of a batch. Those that lie in a hole are not read.
    pub(super) fn pack(&mut self, batch: &Batch) -> Result<Vec<PackedBlock>, ErrorKind> {
        let Range { start: mut position, end } = batch.range();
        let mut blocks = Vec::with_capacity(batch.lengths.len());
        let mut rest = batch.lengths.as_slice();
        while let Some(data) = self.source.next_data(position..end) {
            let (hole, others) = split(rest, &mut position, |block| block.end <= data.start);
            blocks.extend(hole.iter().copied().map(PackedBlock::zeros));
            let offset = position;
            let (touched, others) = split(others, &mut position, |block| block.start < data.end);
            let first_block = batch.first_block.saturating_add(blocks.len() as u64);
            self.pack_data(&mut blocks, offset..position, first_block, touched)?;
            rest = others;
        }
        blocks.extend(rest.iter().copied().map(PackedBlock::zeros));
        Ok(blocks)
    }

    fn pack_data(
        &mut self,
        blocks: &mut Vec<PackedBlock>,
        data: Range<u64>,
        first_block: u64,
        lengths: &[u32],
    ) -> Result<(), ErrorKind> {
        let length = usize::try_from(data.end.saturating_sub(data.start))
            .expect("a batch is 1 MiB and one block at most");
        self.plain.resize(length, 0);
        self.source.read(data.start, &mut self.plain)?;
        let mut rest = self.plain.as_slice();
        let mut offset = data.start;
        for (number, plain_bytes) in (first_block..).zip(lengths.iter().copied()) {
            let (plain, others) = rest.split_at(rest.len().min(plain_bytes as usize));
            let contents = self.packer.pack(number, offset, plain)?;
            blocks.push(PackedBlock { plain_bytes, contents });
            rest = others;
            offset = offset.saturating_add(u64::from(plain_bytes));
        }
        Ok(())
    }
}

impl PackedBlock {
    fn zeros(plain_bytes: u32) -> Self {
        Self { plain_bytes, contents: Contents::Zeros }
    }
}

/// The first blocks, as long as they belong to a run, and the others. `position` is where the
/// first begins, and then where the first of the others does.
fn split<'l>(
    lengths: &'l [u32],
    position: &mut u64,
    belongs: impl Fn(Range<u64>) -> bool,
) -> (&'l [u32], &'l [u32]) {
    let mut count = 0_usize;
    for length in lengths {
        let end = position.saturating_add(u64::from(*length));
        if !belongs(*position..end) {
            break;
        }
        *position = end;
        count = count.saturating_add(1);
    }
    lengths.split_at(count)
}

/// How one block is packed.
struct BlockPacker<'a> {
    base: Option<&'a Base>,
    known: &'a Known,
    cipher: Option<&'a BlockCipher>,
    encoder: Encoder,
}

impl BlockPacker<'_> {
    /// Packs the block with this number among all blocks, from this place of the image.
    fn pack(&mut self, number: u64, offset: u64, plain: &[u8]) -> Result<Contents, ErrorKind> {
        if is_zero(plain) {
            return Ok(Contents::Zeros);
        }
        let hash = || *blake3::hash(plain).as_bytes();
        if let Some(cipher) = self.cipher {
            if let Some(base) = self.base
                && let hash = hash()
                && base.has(&hash, plain)
            {
                return Ok(Contents::InBase { hash });
            }
            let mut bytes = self.compress(offset, plain)?;
            cipher
                .encrypt(number, &mut bytes)
                .map_err(|damage| ErrorKind::Encrypt { offset, damage })?;
            return Ok(Contents::Encrypted { crc: crc32fast::hash(&bytes), bytes });
        }
        let hash = hash();
        if self.base.is_some_and(|base| base.has(&hash, plain)) {
            return Ok(Contents::InBase { hash });
        }
        if let Some(stored) = self.known.get(&hash) {
            return Ok(Contents::Known { hash, stored });
        }
        let bytes = self.compress(offset, plain)?;
        Ok(Contents::Compressed { hash, crc: crc32fast::hash(&bytes), bytes })
    }

    fn compress(&mut self, offset: u64, plain: &[u8]) -> Result<Vec<u8>, ErrorKind> {
        let encoded = self.encoder.encode(plain);
        encoded.map_err(|source| ErrorKind::Compress { offset, source })
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
    fn blocks_are_split_where_they_no_longer_belong_to_a_run() {
        let lengths = [100, 50, 200, 1];
        let mut position = 1000;
        let (hole, rest) = split(&lengths, &mut position, |block| block.end <= 1149);
        assert_eq!((hole, rest, position), (&[100][..], &[50, 200, 1][..], 1100));
        let (touched, rest) = split(rest, &mut position, |block| block.start < 1351);
        assert_eq!((touched, rest, position), (&[50, 200, 1][..], &[][..], 1351));
    }
}
