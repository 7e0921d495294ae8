//! Snapshots that a test writes itself, since no tool makes them, or none so small.

use hexz_nbd::snapshot::format::header::{ChunkingParameters, Encryption, Header, Layout, Span};
use hexz_nbd::snapshot::format::index::{MasterIndex, PageRecord, encode_page};
use hexz_nbd::snapshot::format::{Compression, Entry, HEADER_BYTES};
use hexz_nbd::snapshot::{BlockCipher, Family};

use crate::support::fixtures;

/// What is in the file: one main stream.
#[derive(Clone)]
pub(crate) struct Contents {
    pub(crate) family: Family,
    pub(crate) compression: Compression,
    /// Of Zstandard. Any bytes are one.
    pub(crate) dictionary: Vec<u8>,
    pub(crate) passphrase: Option<&'static str>,
    pub(crate) parents: Vec<String>,
    pub(crate) variable_blocks: bool,
    pub(crate) blocks: Vec<Piece>,
    /// Entries of each page but the last.
    pub(crate) page_entries: usize,
}

impl Default for Contents {
    fn default() -> Self {
        Self {
            family: Family::C,
            compression: Compression::Lz4,
            dictionary: Vec::new(),
            passphrase: None,
            parents: Vec::new(),
            variable_blocks: false,
            blocks: Vec::new(),
            page_entries: 4096,
        }
    }
}

#[derive(Clone)]
pub(crate) enum Piece {
    Data(Vec<u8>),
    Zeros(u32),
    /// Length and hash.
    Parent(u32, [u8; 32]),
}

impl Contents {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        bytes.extend_from_slice(&self.dictionary);
        let encryption = self.passphrase.map(|_| Encryption { salt: [7; 16], iterations: 100_000 });
        let cipher = self.passphrase.zip(encryption).map(|(passphrase, encryption)| {
            BlockCipher::derive(&fixtures::passphrase(passphrase), &encryption).unwrap()
        });
        let mut index = MasterIndex::default();
        let mut start_block = 0;
        for pieces in self.blocks.chunks(self.page_entries) {
            let start_logical = index.main_bytes;
            let mut entries = Vec::new();
            for (piece, number) in pieces.iter().zip(start_block..) {
                let entry = self.entry(piece, number, cipher.as_ref(), &mut bytes);
                index.main_bytes += u64::from(entry.logical_length);
                entries.push(entry);
            }
            let page = self.page(&entries);
            let (offset, length) = (bytes.len() as u64, page.len() as u32);
            index.main.push(PageRecord { offset, length, start_block, start_logical });
            start_block += entries.len() as u64;
            bytes.extend_from_slice(&page);
        }
        let index_offset = bytes.len() as u64;
        bytes.extend_from_slice(&index.encode());
        let chunking =
            ChunkingParameters { average_log2: 13, minimum_bytes: 1024, maximum_bytes: 65_536 };
        let header = Header {
            layout: match self.family {
                Family::A | Family::B => Layout::OptionalParent,
                Family::C | Family::D => Layout::ParentList,
            },
            block_bytes: 4096,
            index_offset,
            parents: self.parents.clone(),
            dictionary: (!self.dictionary.is_empty())
                .then_some(Span { offset: 4096, length: self.dictionary.len() as u64 }),
            metadata: None,
            signature: None,
            encryption,
            compression: self.compression,
            has_main: true,
            has_auxiliary: false,
            variable_blocks: self.variable_blocks,
            chunking: (self.family == Family::D).then_some(chunking),
        };
        let header = header.encode().unwrap();
        bytes[..header.len()].copy_from_slice(&header);
        assert!(header.len() as u64 <= HEADER_BYTES);
        bytes
    }

    fn entry(
        &self,
        piece: &Piece,
        number: u64,
        cipher: Option<&BlockCipher>,
        bytes: &mut Vec<u8>,
    ) -> Entry {
        let empty = Entry { offset: 0, length: 0, logical_length: 0, crc: 0, hash: [0; 32] };
        match piece {
            Piece::Data(plain) => {
                let mut stored = self.compress(plain);
                let mut hash = *blake3::hash(plain).as_bytes();
                if let Some(cipher) = cipher {
                    cipher.encrypt(number, &mut stored).unwrap();
                    hash = [0; 32];
                }
                let offset = bytes.len() as u64;
                bytes.extend_from_slice(&stored);
                let (length, logical_length) = (stored.len() as u32, plain.len() as u32);
                Entry { offset, length, logical_length, crc: crc32fast::hash(&stored), hash }
            }
            Piece::Zeros(logical_length) => Entry { logical_length: *logical_length, ..empty },
            Piece::Parent(logical_length, hash) => {
                Entry { offset: u64::MAX, logical_length: *logical_length, hash: *hash, ..empty }
            }
        }
    }

    fn compress(&self, plain: &[u8]) -> Vec<u8> {
        match self.compression {
            Compression::Lz4 => lz4_flex::block::compress_prepend_size(plain),
            Compression::Zstd => {
                let mut zstd = zstd::bulk::Compressor::with_dictionary(3, &self.dictionary);
                zstd.as_mut().unwrap().compress(plain).unwrap()
            }
        }
    }

    /// Entries of family A have no hash.
    fn page(&self, entries: &[Entry]) -> Vec<u8> {
        let page = encode_page(entries);
        if self.family != Family::A {
            return page;
        }
        let (count, with_hashes) = page.split_at(8);
        let without = with_hashes.chunks(52).flat_map(|entry| &entry[..20]);
        count.iter().chain(without).copied().collect()
    }
}
