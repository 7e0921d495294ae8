//! Stored bytes of one block to plain bytes: check, decrypt, decompress. Format sections 8 to 10.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

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
        let Some((prefix, block)) = stored.split_first_chunk() else {
            return Err(Damage::Compression("no length before the LZ4 block".into()));
        };
        let expected = plain.len() as u64;
        let declared = u64::from(u32::from_le_bytes(*prefix));
        if declared != expected {
            return Err(Damage::Length { expected, found: declared });
        }
        let written = lz4_flex::block::decompress_into(block, plain)
            .map_err(|error| Damage::Compression(error.to_string()))?;
        exactly(expected, written)
    }
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

    /// Decodes one block, and compares it with its CRC-32 and with what else is expected of it.
    /// `logical_length` was checked against the limit before.
    pub(crate) fn decode(
        &self,
        stored: &[u8],
        crc: u32,
        block_number: u64,
        logical_length: u32,
        expected: Option<Expected>,
    ) -> Result<Vec<u8>, Damage> {
        let found = crc32fast::hash(stored);
        if found != crc {
            return Err(Damage::Checksum { expected: crc, found });
        }
        if let Some(Expected::Stored(hash)) = expected
            && *blake3::hash(stored).as_bytes() != hash
        {
            return Err(Damage::StoredHash);
        }
        let decrypted = match &self.encryptor {
            Some(encryptor) => Some(encryptor.decrypt(block_number, stored.to_vec())?),
            None => None,
        };
        let stored = decrypted.as_deref().unwrap_or(stored);
        // A fresh buffer, zeroed: a faulty decoder must not show what memory held before.
        let mut plain = vec![0; logical_length as usize];
        self.compressor.decompress(stored, &mut plain)?;
        if let Some(Expected::Plain(hash)) = expected
            && *blake3::hash(&plain).as_bytes() != hash
        {
            return Err(Damage::Hash);
        }
        Ok(plain)
    }
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
        Decoder::new(Box::new(compressor), None).decode(&stored, crc, 0, length, None)
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
        assert!(matches!(decoder.decode(&stored, crc, 0, 5, None), Err(Damage::Checksum { .. })));
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
