//! One index page as it is kept in memory: what a read needs, and nothing else.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::snapshot::format::index::{Entry, EntryBounds, EntryKind};
use crate::snapshot::format::{FormatError, PageRecord};
use crate::snapshot::reference::Reference;

/// What a block is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Stored bytes with their CRC-32.
    Stored { offset: u64, length: u32, crc: u32 },
    /// Zeros: not stored, or stored and known by their hash.
    Zeros,
    /// Bytes of a parent.
    Reference(Arc<Reference>),
    /// The entry is corrupt; what is wrong with it.
    Corrupt(&'static str),
}

/// One block of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    /// Bytes of the stream.
    pub(crate) range: Range<u64>,
    /// Number in the whole snapshot, counted through both streams. Feeds the nonce of encryption.
    pub(crate) number: u64,
    pub(crate) contents: Contents,
}

impl Block {
    /// Length in bytes. Entries hold it as a u32.
    pub(crate) fn logical_length(&self) -> u32 {
        u32::try_from(self.range.end.saturating_sub(self.range.start)).unwrap_or(u32::MAX)
    }
}

/// A page, without the hashes: 24 bytes for each entry instead of 52, and more for references.
#[derive(Debug)]
pub(crate) struct Page {
    record: PageRecord,
    /// Where each block ends in the stream. Sorted; blocks of no bytes repeat the one before.
    ends: Box<[u64]>,
    contents: Box<[PackedContents]>,
    references: Box<[Arc<Reference>]>,
    /// Of each entry, where they were signed.
    hashes: Option<Hashes>,
}

/// BLAKE3 of blocks, one for each entry of a page.
#[derive(Debug)]
pub(crate) enum Hashes {
    /// Of the plain bytes, from the entries themselves.
    Plain(Box<[[u8; 32]]>),
    /// Of the stored bytes, from a manifest.
    Stored(Box<[[u8; 32]]>),
}

/// What a block must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// BLAKE3 of its plain bytes.
    Plain([u8; 32]),
    /// BLAKE3 of its stored bytes.
    Stored([u8; 32]),
}

/// [`Contents`] in 16 bytes. Stored blocks never lie below the header, so small offsets are free
/// to mean something else.
#[derive(Debug, Clone, Copy)]
struct PackedContents {
    offset: u64,
    length: u32,
    crc: u32,
}

const ZEROS: u64 = 0;
const CORRUPT: u64 = 1;
const REFERENCE: u64 = 2;

/// Everything that can be wrong with an entry, so that a number stands for a sentence.
const CORRUPTIONS: [&str; 8] = [
    "unknown",
    "parent reference without a parent",
    "parent reference",
    "sparse entry",
    "block position",
    "empty block",
    "block length above the limit",
    "stored length out of proportion",
];

impl PackedContents {
    const ZEROS: Self = Self { offset: ZEROS, length: 0, crc: 0 };

    fn corrupt(what: &'static str) -> Self {
        let number = CORRUPTIONS.iter().position(|known| *known == what).unwrap_or(0);
        Self { offset: CORRUPT, length: u32::try_from(number).unwrap_or(0), crc: 0 }
    }

    fn unpack(self, references: &[Arc<Reference>]) -> Contents {
        match self.offset {
            ZEROS => Contents::Zeros,
            REFERENCE => match references.get(self.length as usize) {
                Some(reference) => Contents::Reference(Arc::clone(reference)),
                None => Contents::Corrupt("parent reference"),
            },
            CORRUPT => {
                let what = CORRUPTIONS.get(self.length as usize).copied();
                Contents::Corrupt(what.unwrap_or("unknown"))
            }
            offset => Contents::Stored { offset, length: self.length, crc: self.crc },
        }
    }
}

impl Page {
    /// Packs the entries of a page. A corrupt entry spoils its own block only.
    ///
    /// # Errors
    ///
    /// If the blocks do not add up to `expected_end`, where the next page begins: then no
    /// position of the page can be trusted. `None` for the last page, which the caller checks.
    pub(crate) fn pack(
        entries: &[Entry],
        record: PageRecord,
        bounds: EntryBounds,
        expected_end: Option<u64>,
    ) -> Result<Self, FormatError> {
        let overflow = FormatError::Invalid { what: "sum of block lengths", offset: record.offset };
        let zeros = hashes_of_zeros(entries, bounds.logical_bytes_max);
        let mut ends = Vec::with_capacity(entries.len());
        let mut contents = Vec::with_capacity(entries.len());
        let mut references = Vec::new();
        let mut end = record.start_logical;
        for entry in entries {
            end = end
                .checked_add(u64::from(entry.logical_length))
                .filter(|end| i64::try_from(*end).is_ok())
                .ok_or_else(|| overflow.clone())?;
            ends.push(end);
            contents.push(match entry.kind(bounds) {
                Ok(EntryKind::Sparse | EntryKind::Nothing) => PackedContents::ZEROS,
                Ok(EntryKind::Data) if zeros.get(&entry.logical_length) == Some(&entry.hash) => {
                    PackedContents::ZEROS
                }
                Ok(EntryKind::Data) => {
                    PackedContents { offset: entry.offset, length: entry.length, crc: entry.crc }
                }
                Ok(EntryKind::Parent) => {
                    let length = u32::try_from(references.len()).unwrap_or(u32::MAX);
                    references.push(Arc::new(Reference::new(entry.hash)));
                    PackedContents { offset: REFERENCE, length, crc: 0 }
                }
                Err(what) => PackedContents::corrupt(what),
            });
        }
        if expected_end.is_some_and(|expected| expected != end) {
            return Err(overflow);
        }
        let (ends, contents, references) = (ends.into(), contents.into(), references.into());
        Ok(Self { record, ends, contents, references, hashes: None })
    }

    /// The same page, with hashes that were signed.
    pub(crate) fn with_hashes(self, hashes: Hashes) -> Self {
        Self { hashes: Some(hashes), ..self }
    }

    /// What was signed of the block at a position among the entries.
    pub(crate) fn expected(&self, at: usize) -> Option<Expected> {
        match self.hashes.as_ref()? {
            Hashes::Plain(hashes) => hashes.get(at).copied().map(Expected::Plain),
            Hashes::Stored(hashes) => hashes.get(at).copied().map(Expected::Stored),
        }
    }

    /// Where the page ends in the stream.
    pub(crate) fn end(&self) -> u64 {
        self.ends.last().copied().unwrap_or(self.record.start_logical)
    }

    /// Whether a corrupt entry may be corrupt in its length in the stream, so that what lies
    /// behind it may be out of place. Matters only where nothing says where the page must end.
    pub(crate) fn has_doubtful_length(&self) -> bool {
        self.contents.iter().any(|contents| {
            matches!(
                contents.unpack(&self.references),
                Contents::Corrupt(
                    "empty block"
                        | "block length above the limit"
                        | "stored length out of proportion"
                )
            )
        })
    }

    /// Memory that the page takes, in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        /// Two counters before each, and the pointer to it.
        const COUNTERS_BYTES: usize = 3 * size_of::<usize>();
        let entry = size_of::<u64>().saturating_add(size_of::<PackedContents>());
        let entries = self.ends.len().saturating_mul(entry);
        let reference = size_of::<Reference>().saturating_add(COUNTERS_BYTES);
        let references = self.references.len().saturating_mul(reference);
        let hashes = self.hashes.as_ref().map_or(0, |_| self.ends.len().saturating_mul(32));
        let known = size_of::<Self>().saturating_add(entries);
        known.saturating_add(references).saturating_add(hashes) as u64
    }

    /// Position among the entries of the block that holds the byte at `position`, by binary
    /// search. The number of entries if it lies behind the page.
    pub(crate) fn find(&self, position: u64) -> usize {
        self.ends.partition_point(|end| *end <= position)
    }

    /// Where the stored bytes end that follow those of an entry without a gap, of blocks that begin before
    /// `end` in the stream: at most so many behind `start`, where those of the entry begin.
    pub(crate) fn stored_run(&self, at: usize, start: u64, end: u64, bytes_max: u64) -> u64 {
        let blocks = self.contents.iter().zip(&self.ends).skip(at);
        let mut run_end = start;
        for (contents, block_end) in blocks {
            // Whatever is not stored is beside the file's header, and so behind no other block.
            if contents.offset == run_end {
                let next = run_end.saturating_add(u64::from(contents.length));
                if next.saturating_sub(start) > bytes_max {
                    break;
                }
                run_end = next;
            } else if contents.offset != ZEROS {
                break;
            }
            if *block_end >= end {
                break;
            }
        }
        run_end
    }

    /// The entry at a position that [`Page::find`] gave.
    pub(crate) fn block(&self, at: usize) -> Option<Block> {
        let end = *self.ends.get(at)?;
        let start = match at.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => self.record.start_logical,
        };
        Some(Block {
            range: start..end,
            number: self.record.start_block.saturating_add(at as u64),
            contents: self.contents.get(at)?.unpack(&self.references),
        })
    }
}

/// BLAKE3 of zeros, for each length at which a data entry of the page may be nothing but zeros.
///
/// Zeros compress to next to nothing, so other entries need not be looked at; and entries above
/// the limit must not, since they are corrupt and may claim gigabytes. One pass over the zeros of
/// the longest gives the hashes of all shorter ones.
pub(crate) fn hashes_of_zeros(
    entries: &[Entry],
    logical_bytes_max: u32,
) -> BTreeMap<u32, [u8; 32]> {
    const CHUNK: [u8; 16 * 1024] = [0; 16 * 1024];
    let mut hashes: BTreeMap<u32, [u8; 32]> = entries
        .iter()
        .filter(|entry| entry.length != 0 && entry.length <= zeros_stored_max(entry.logical_length))
        .filter(|entry| entry.logical_length <= logical_bytes_max && entry.hash != [0; 32])
        .map(|entry| (entry.logical_length, [0; 32]))
        .collect();
    let mut hasher = blake3::Hasher::new();
    let mut hashed: u32 = 0;
    for (length, hash) in &mut hashes {
        while hashed < *length {
            let chunk = CHUNK.get(..length.saturating_sub(hashed) as usize).unwrap_or(&CHUNK);
            hasher.update(chunk);
            hashed = hashed.saturating_add(u32::try_from(chunk.len()).unwrap_or(u32::MAX));
        }
        *hash = *hasher.finalize().as_bytes();
    }
    hashes
}

/// More than any compressor makes of zeros: LZ4 needs a byte for 255 of them.
fn zeros_stored_max(logical_length: u32) -> u32 {
    (logical_length / 64).saturating_add(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: EntryBounds =
        EntryBounds { index_offset: 1 << 20, logical_bytes_max: 16 << 20, has_parents: false };
    const RECORD: PageRecord =
        PageRecord { offset: 5000, length: 0, start_block: 7, start_logical: 1000 };

    fn data(logical_length: u32) -> Entry {
        Entry { offset: 4096, length: 50, logical_length, crc: 9, hash: [3; 32] }
    }

    fn zeros_stored_as_data(logical_length: u32) -> Entry {
        let hash = *blake3::hash(&vec![0; logical_length as usize]).as_bytes();
        Entry { hash, ..data(logical_length) }
    }

    #[test]
    fn the_block_of_a_position_is_found_whatever_the_lengths() {
        let entries = [data(10), data(0), data(1), data(100)];
        let entries = entries.map(|e| Entry { length: e.logical_length.min(50), ..e });
        let page = Page::pack(&entries, RECORD, BOUNDS, Some(1111)).unwrap();
        for (position, at, range) in [
            (1000, 0, 1000..1010),
            (1009, 0, 1000..1010),
            (1010, 2, 1010..1011),
            (1011, 3, 1011..1111),
            (1110, 3, 1011..1111),
        ] {
            assert_eq!(page.find(position), at);
            let block = page.block(at).unwrap();
            assert_eq!((block.range, block.number), (range, 7 + at as u64));
        }
        assert_eq!(page.find(1111), 4);
        assert_eq!(page.block(4), None);
    }

    #[test]
    fn a_page_whose_blocks_do_not_reach_the_next_page_is_refused() {
        for wrong in [1009, 1011] {
            assert!(Page::pack(&[data(10)], RECORD, BOUNDS, Some(wrong)).is_err());
        }
        let far = PageRecord { start_logical: u64::MAX - 5, ..RECORD };
        assert!(Page::pack(&[data(10)], far, BOUNDS, None).is_err());
    }

    #[test]
    fn zeros_that_were_stored_are_known_by_their_hash() {
        let mut entries = vec![data(300_000)];
        entries.extend([262_144, 1, 4096, 16_384, 16_385, 262_143].map(zeros_stored_as_data));
        let page = Page::pack(&entries, RECORD, BOUNDS, None).unwrap();
        assert!(matches!(page.block(0).unwrap().contents, Contents::Stored { .. }));
        for at in 1..entries.len() {
            assert_eq!(page.block(at).unwrap().contents, Contents::Zeros, "entry {at}");
        }
    }

    #[test]
    fn an_entry_that_claims_gigabytes_is_not_hashed_for() {
        let entries = [data(u32::MAX), data(BOUNDS.logical_bytes_max + 1), data(4096)];
        let hashes = hashes_of_zeros(&entries, BOUNDS.logical_bytes_max);
        assert_eq!(hashes.into_keys().collect::<Vec<_>>(), [4096]);
    }

    #[test]
    fn a_corrupt_entry_spoils_its_own_block_only() {
        let corrupt = Entry { offset: 17, ..data(10) };
        let page = Page::pack(&[data(10), corrupt, data(10)], RECORD, BOUNDS, Some(1030)).unwrap();
        assert_eq!(page.block(1).unwrap().contents, Contents::Corrupt("block position"));
        assert!(matches!(page.block(2).unwrap().contents, Contents::Stored { .. }));
    }

    #[test]
    fn every_complaint_of_an_entry_has_its_sentence() {
        for what in CORRUPTIONS {
            assert_eq!(PackedContents::corrupt(what).unpack(&[]), Contents::Corrupt(what));
        }
    }
}
