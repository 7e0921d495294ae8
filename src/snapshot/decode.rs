//! Stored bytes of one block to plain bytes: check, decrypt, decompress. Format sections 8 to 10.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::borrow::Cow;
use std::fmt::Debug;
use std::io;
use std::sync::{Mutex, PoisonError};

use zstd::bulk::Decompressor;

use crate::snapshot::error::Damage;
use crate::snapshot::format::Compression;
use crate::snapshot::page::Expected;

/// Undoes the compression of single blocks.
pub trait Compressor: Send + Sync + Debug {
    /// Which compression it undoes.
    fn compression(&self) -> Compression;

    /// Decompresses `stored` into `plain` and fills it exactly.
    ///
    /// # Errors
    ///
    /// [`Damage`] if the stored bytes are not one block of exactly that length. Nothing may be
    /// concluded from the contents of `plain` then.
    fn decompress(&self, stored: &[u8], plain: &mut [u8]) -> Result<(), Damage>;

    /// Whether [`Compressor::decompress_start`] takes less time than the whole.
    fn stops_early(&self) -> bool {
        false
    }

    /// Decompresses the start of a block of `length` plain bytes, and fills `start` with it.
    ///
    /// # Errors
    ///
    /// [`Damage`] if the stored bytes do not begin a block of that length, as far as was looked.
    fn decompress_start(&self, stored: &[u8], length: u32, start: &mut [u8]) -> Result<(), Damage> {
        let mut plain = vec![0; length as usize];
        self.decompress(stored, &mut plain)?;
        let longer = Damage::Length { expected: start.len() as u64, found: plain.len() as u64 };
        start.copy_from_slice(plain.get(..start.len()).ok_or(longer)?);
        Ok(())
    }
}

/// Undoes the encryption of single blocks. Format section 10.
pub trait Encryptor: Send + Sync + Debug {
    /// Decrypts the stored bytes of the block with this number.
    ///
    /// # Errors
    ///
    /// [`Damage::Decryption`] if the bytes are not authentic for this number.
    fn decrypt(&self, block_number: u64, stored: Vec<u8>) -> Result<Vec<u8>, Damage>;
}

/// LZ4 blocks behind their length. Format section 9.
#[derive(Debug, Default, Clone, Copy)]
pub struct Lz4Compressor;

impl Lz4Compressor {
    /// An LZ4 decompressor. It has no state.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl Compressor for Lz4Compressor {
    fn compression(&self) -> Compression {
        Compression::Lz4
    }

    fn decompress(&self, stored: &[u8], plain: &mut [u8]) -> Result<(), Damage> {
        let expected = plain.len() as u64;
        let block = lz4_block(stored, expected)?;
        let written = lzzzz::lz4::decompress(block, plain).map_err(not_lz4)?;
        exactly(expected, written)
    }

    fn stops_early(&self) -> bool {
        true
    }

    fn decompress_start(&self, stored: &[u8], length: u32, start: &mut [u8]) -> Result<(), Damage> {
        let block = lz4_block(stored, u64::from(length))?;
        let bytes = start.len();
        let written = lzzzz::lz4::decompress_partial(block, start, bytes).map_err(not_lz4)?;
        exactly(bytes as u64, written)
    }
}

/// What stands behind the length, if that is as expected.
fn lz4_block(stored: &[u8], expected: u64) -> Result<&[u8], Damage> {
    let Some((prefix, block)) = stored.split_first_chunk() else {
        return Err(Damage::Compression("no length before the LZ4 block".into()));
    };
    let declared = u64::from(u32::from_le_bytes(*prefix));
    if declared == expected { Ok(block) } else { Err(Damage::Length { expected, found: declared }) }
}

/// What the library says is no more than this.
fn not_lz4(_: lzzzz::Error) -> Damage {
    Damage::Compression("not an LZ4 block of this length".into())
}

/// Zstandard frames, with or without a dictionary. Format section 9.
///
/// Decoding is one call into a buffer of the right size, so neither the window nor the content
/// size that a frame claims can make it allocate more than its fixed context.
pub struct ZstdCompressor {
    dictionary: Vec<u8>,
    /// Contexts are costly to make and cannot be shared, so they wait here between blocks. There
    /// are never more than blocks were decoded at the same time.
    idle: Mutex<Vec<Decompressor<'static>>>,
}

impl ZstdCompressor {
    /// A Zstandard decompressor. An empty dictionary is none.
    ///
    /// # Errors
    ///
    /// If the dictionary is not one.
    pub fn new(dictionary: Vec<u8>) -> io::Result<Self> {
        let compressor = Self { dictionary, idle: Mutex::new(Vec::new()) };
        let context = compressor.context()?;
        compressor.put_back(context);
        Ok(compressor)
    }

    fn context(&self) -> io::Result<Decompressor<'static>> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(|| Decompressor::with_dictionary(&self.dictionary), Ok)
    }

    fn put_back(&self, context: Decompressor<'static>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(context);
    }
}

impl Debug for ZstdCompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZstdCompressor")
            .field("dictionary_bytes", &self.dictionary.len())
            .finish_non_exhaustive()
    }
}

impl Compressor for ZstdCompressor {
    fn compression(&self) -> Compression {
        Compression::Zstd
    }

    fn decompress(&self, stored: &[u8], plain: &mut [u8]) -> Result<(), Damage> {
        let failed = |error: io::Error| Damage::Compression(error.to_string());
        let expected = plain.len() as u64;
        let mut context = self.context().map_err(failed)?;
        let written = context.decompress_to_buffer(stored, plain);
        self.put_back(context);
        exactly(expected, written.map_err(failed)?)
    }
}

fn exactly(expected: u64, written: usize) -> Result<(), Damage> {
    let found = written as u64;
    if found == expected { Ok(()) } else { Err(Damage::Length { expected, found }) }
}

/// How to get from the stored bytes of a file to plain bytes.
#[derive(Debug)]
pub(crate) struct Decoder {
    compressor: Box<dyn Compressor>,
    encryptor: Option<Box<dyn Encryptor>>,
}

impl Decoder {
    pub(crate) fn new(
        compressor: Box<dyn Compressor>,
        encryptor: Option<Box<dyn Encryptor>>,
    ) -> Self {
        Self { compressor, encryptor }
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.encryptor.is_some()
    }

    /// Decodes one block into `plain`, which it fills, and compares it with its CRC-32 and with what else
    /// is expected of it. Nothing may be concluded from the contents of `plain` if that fails.
    pub(crate) fn decode(
        &self,
        stored: &[u8],
        crc: u32,
        block_number: u64,
        expected: Option<Expected>,
        plain: &mut [u8],
    ) -> Result<(), Damage> {
        check_crc(stored, crc)?;
        if let Some(Expected::Stored(hash)) = expected
            && *blake3::hash(stored).as_bytes() != hash
        {
            return Err(Damage::StoredHash);
        }
        let stored = self.decrypt(block_number, stored)?;
        self.compressor.decompress(&stored, plain)?;
        if let Some(Expected::Plain(hash)) = expected
            && *blake3::hash(plain).as_bytes() != hash
        {
            return Err(Damage::Hash);
        }
        Ok(())
    }

    /// Whether [`Decoder::decode_start`] takes less time than the whole.
    pub(crate) fn stops_early(&self) -> bool {
        self.compressor.stops_early()
    }

    /// As [`Decoder::decode`], of the start of a block of `length` bytes, all of whose stored bytes are
    /// compared with the CRC-32.
    pub(crate) fn decode_start(
        &self,
        stored: &[u8],
        crc: u32,
        block_number: u64,
        length: u32,
        start: &mut [u8],
    ) -> Result<(), Damage> {
        check_crc(stored, crc)?;
        let stored = self.decrypt(block_number, stored)?;
        self.compressor.decompress_start(&stored, length, start)
    }

    fn decrypt<'a>(&self, block_number: u64, stored: &'a [u8]) -> Result<Cow<'a, [u8]>, Damage> {
        Ok(match &self.encryptor {
            Some(encryptor) => Cow::Owned(encryptor.decrypt(block_number, stored.to_vec())?),
            None => Cow::Borrowed(stored),
        })
    }
}

fn check_crc(stored: &[u8], crc: u32) -> Result<(), Damage> {
    let found = crc32fast::hash(stored);
    if found == crc { Ok(()) } else { Err(Damage::Checksum { expected: crc, found }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lz4(plain: &[u8]) -> Vec<u8> {
        lz4_flex::block::compress_prepend_size(plain)
    }

    fn decode(
        compressor: impl Compressor + 'static,
        stored: Vec<u8>,
        length: u32,
    ) -> Result<Vec<u8>, Damage> {
        let crc = crc32fast::hash(&stored);
        let mut plain = vec![0; length as usize];
        let decoder = Decoder::new(Box::new(compressor), None);
        decoder.decode(&stored, crc, 0, None, &mut plain).map(|()| plain)
    }

    #[test]
    fn both_compressions_give_back_the_plain_bytes() {
        let plain: Vec<u8> = (0..100_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let length = u32::try_from(plain.len()).unwrap();
        assert_eq!(decode(Lz4Compressor::new(), lz4(&plain), length).unwrap(), plain);
        let zstd = ZstdCompressor::new(Vec::new()).unwrap();
        let stored = zstd::bulk::compress(&plain, 3).unwrap();
        assert_eq!(decode(zstd, stored, length).unwrap(), plain);
    }

    #[test]
    fn the_start_of_a_block_is_that_of_the_whole_and_the_whole_is_checked() {
        let plain: Vec<u8> = (0..20_000_u32).flat_map(|n| (n * n / 7).to_le_bytes()).collect();
        let length = u32::try_from(plain.len()).unwrap();
        let zstd = Box::new(ZstdCompressor::new(Vec::new()).unwrap());
        let kinds: [(Box<dyn Compressor>, Vec<u8>); 2] = [
            (Box::new(Lz4Compressor::new()), lz4(&plain)),
            (zstd, zstd::bulk::compress(&plain, 3).unwrap()),
        ];
        for (compressor, mut stored) in kinds {
            let decoder = Decoder::new(compressor, None);
            let crc = crc32fast::hash(&stored);
            for bytes in [0, 1, 13, 4096, 40_000, plain.len() - 1, plain.len()] {
                let mut start = vec![0; bytes];
                decoder.decode_start(&stored, crc, 0, length, &mut start).unwrap();
                assert!(start == plain[..bytes], "{bytes}");
            }
            let start = &mut [0; 100][..];
            let longer = decoder.decode_start(&stored, crc, 0, length + 1, start);
            assert!(matches!(longer, Err(Damage::Length { .. })), "{longer:?}");
            *stored.last_mut().unwrap() ^= 1;
            let damaged = decoder.decode_start(&stored, crc, 0, length, start);
            assert!(matches!(damaged, Err(Damage::Checksum { .. })), "{damaged:?}");
        }
    }

    #[test]
    fn a_start_that_the_stored_bytes_do_not_hold_is_an_error() {
        let mut stored = lz4(&[7; 100]);
        stored[..4].copy_from_slice(&200_u32.to_le_bytes());
        let crc = crc32fast::hash(&stored);
        let decoder = Decoder::new(Box::new(Lz4Compressor::new()), None);
        let outcome = decoder.decode_start(&stored, crc, 0, 200, &mut [0; 150]);
        assert!(matches!(outcome, Err(Damage::Length { .. })), "{outcome:?}");
    }

    #[test]
    fn a_block_that_is_longer_or_shorter_than_its_entry_says_is_an_error() {
        for length in [0, 9_999, 10_001, 1 << 24] {
            assert!(
                matches!(
                    decode(Lz4Compressor::new(), lz4(&[7; 10_000]), length),
                    Err(Damage::Length { .. })
                ),
                "lz4 {length}"
            );
            let stored = zstd::bulk::compress(&[7; 10_000], 3).unwrap();
            let zstd = ZstdCompressor::new(Vec::new()).unwrap();
            assert!(decode(zstd, stored, length).is_err(), "zstd {length}");
        }
    }

    #[test]
    fn the_length_before_an_lz4_block_is_not_believed() {
        // The prefix and the entry agree on more than the block holds.
        let mut stored = lz4(&[7; 100]);
        stored[..4].copy_from_slice(&200_u32.to_le_bytes());
        assert!(decode(Lz4Compressor::new(), stored, 200).is_err());
    }

    #[test]
    fn stored_bytes_are_checked_before_anything_looks_at_them() {
        let decoder = Decoder::new(Box::new(Lz4Compressor::new()), None);
        let stored = lz4(b"hello");
        let crc = crc32fast::hash(&stored) ^ 1;
        assert!(matches!(
            decoder.decode(&stored, crc, 0, None, &mut [0; 5]),
            Err(Damage::Checksum { .. })
        ));
    }

    #[test]
    fn a_block_of_no_bytes_is_what_chunkers_leave_at_the_end() {
        assert_eq!(decode(Lz4Compressor::new(), lz4(b""), 0).unwrap(), b"");
        // As upstream makes it: with the streaming encoder, so without a content size.
        let stored = zstd::stream::encode_all(&b""[..], 3).unwrap();
        assert_eq!(decode(ZstdCompressor::new(Vec::new()).unwrap(), stored, 0).unwrap(), b"");
    }

    #[test]
    fn no_bytes_are_no_block() {
        assert!(decode(Lz4Compressor::new(), Vec::new(), 5).is_err());
        assert!(decode(ZstdCompressor::new(Vec::new()).unwrap(), Vec::new(), 5).is_err());
    }
}
