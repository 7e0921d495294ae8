//! The master index and the pages it names. Format sections 5 to 7.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::snapshot::format::fields::FieldWriter;
use crate::snapshot::format::fields::Fields;
use crate::snapshot::format::header::Header;
use crate::snapshot::format::{Family, FormatError, HEADER_BYTES, Stream};

/// Length of a page record in the master index, in bytes.
pub const PAGE_RECORD_BYTES: u64 = 28;

/// Length of the two page counts and the two stream sizes, in bytes.
pub const MASTER_INDEX_FIXED_BYTES: u64 = 32;

/// Largest master index accepted, in bytes. Upstream's own limit. Format section 15.
pub const MASTER_INDEX_BYTES_MAX: u64 = 64 << 20;

/// Most entries of one page. Format section 6.
pub const PAGE_ENTRIES_MAX: u64 = 4096;

/// Length of an entry in family A, in bytes.
pub const ENTRY_BYTES_WITHOUT_HASH: u64 = 20;

/// Length of an entry in families B to D, in bytes.
pub const ENTRY_BYTES_WITH_HASH: u64 = 52;

/// Length of the entry count at the start of a page, in bytes.
pub const PAGE_COUNT_BYTES: u64 = 8;

/// Largest stream accepted, in bytes: beyond it clients and file systems misbehave.
pub const STREAM_BYTES_MAX: u64 = (1 << 63) - 1;

/// Offset that marks an entry as a reference into a parent. Format section 7.
pub const PARENT_REFERENCE_OFFSET: u64 = u64::MAX;

/// Where an index page lies and what it begins with. Format section 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRecord {
    /// First byte of the page in the file.
    pub offset: u64,
    /// Length of the page in bytes.
    pub length: u32,
    /// Number of the page's first block, counted through both streams.
    pub start_block: u64,
    /// Position in the stream of the page's first byte.
    pub start_logical: u64,
}

impl PageRecord {
    /// Number of entries, from the length of the page.
    #[must_use]
    pub fn entries(&self, family: Family) -> u64 {
        let entries = u64::from(self.length).saturating_sub(PAGE_COUNT_BYTES);
        entries.checked_div(family.entry_bytes()).unwrap_or(0)
    }
}

/// The pages of both streams and the sizes of the streams. Format section 5.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MasterIndex {
    /// Pages of the main stream, in order.
    pub main: Vec<PageRecord>,
    /// Pages of the auxiliary stream, in order.
    pub auxiliary: Vec<PageRecord>,
    /// Declared size of the main stream, in bytes.
    pub main_bytes: u64,
    /// Declared size of the auxiliary stream, in bytes.
    pub auxiliary_bytes: u64,
}

impl MasterIndex {
    /// Decodes the index that begins with `bytes`, which were read from position `at`. Returns
    /// it with its length in bytes.
    ///
    /// ```text
    /// | main pages: u64 | 28 bytes each | auxiliary pages: u64 | 28 bytes each | sizes: u64, u64
    /// ```
    ///
    /// # Errors
    ///
    /// [`FormatError`] if the bytes end early or a stream is too large. Nothing is allocated for
    /// pages whose records are not there.
    pub fn decode(bytes: &[u8], at: u64) -> Result<(Self, u64), FormatError> {
        let mut fields = Fields::new(bytes, at);
        let main = page_records(&mut fields)?;
        let auxiliary = page_records(&mut fields)?;
        let main_bytes = stream_size(&mut fields)?;
        let auxiliary_bytes = stream_size(&mut fields)?;
        let length = fields.position().saturating_sub(at);
        Ok((Self { main, auxiliary, main_bytes, auxiliary_bytes }, length))
    }

    /// Encodes the index.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = FieldWriter::default();
        for pages in [&self.main, &self.auxiliary] {
            writer.u64(pages.len() as u64);
            for page in pages {
                writer.u64(page.offset);
                writer.u32(page.length);
                writer.u64(page.start_block);
                writer.u64(page.start_logical);
            }
        }
        writer.u64(self.main_bytes);
        writer.u64(self.auxiliary_bytes);
        writer.into_bytes()
    }

    /// Pages of one stream.
    #[must_use]
    pub fn pages(&self, stream: Stream) -> &[PageRecord] {
        match stream {
            Stream::Main => &self.main,
            Stream::Auxiliary => &self.auxiliary,
        }
    }

    /// Declared size of one stream, in bytes.
    #[must_use]
    pub fn stream_bytes(&self, stream: Stream) -> u64 {
        match stream {
            Stream::Main => self.main_bytes,
            Stream::Auxiliary => self.auxiliary_bytes,
        }
    }

    /// The first page of either stream: the one by which a family is recognised.
    #[must_use]
    pub fn first_page(&self) -> Option<PageRecord> {
        self.main.first().or(self.auxiliary.first()).copied()
    }

    /// Whether flags and metadata of a header agree with this index of `index_bytes`. Format
    /// section 4, step 4.
    #[must_use]
    pub fn agrees_with(&self, header: &Header, index_bytes: u64) -> bool {
        let end = header.index_offset.checked_add(index_bytes);
        header.has_main != self.main.is_empty()
            && header.has_auxiliary != self.auxiliary.is_empty()
            && header.metadata.is_none_or(|metadata| Some(metadata.offset) == end)
            && header.signature.is_none_or(|signature| Some(signature.offset) >= end)
    }

    /// Checks every page record against its neighbours, so that a page that is loaded later
    /// cannot serve bytes of another place. Pages lie in the file in the order of their blocks,
    /// which tells swapped pages of equal length apart. Format sections 2 and 6.
    ///
    /// # Errors
    ///
    /// [`FormatError::Invalid`] with the position of the record in the file.
    pub fn check_pages(&self, header: &Header, family: Family) -> Result<(), FormatError> {
        let mut next_block = 0;
        let mut offset_min = HEADER_BYTES;
        let mut record_at = header.index_offset.saturating_add(PAGE_COUNT_BYTES);
        for stream in Stream::ALL {
            let mut next_logical_min = 0;
            for (number, page) in self.pages(stream).iter().enumerate() {
                let entries = page.entries(family);
                let end = page.offset.saturating_add(u64::from(page.length));
                let inside = page.offset >= offset_min && end <= header.index_offset;
                let whole = u64::from(page.length)
                    == entries
                        .saturating_mul(family.entry_bytes())
                        .saturating_add(PAGE_COUNT_BYTES);
                let counted = (1..=PAGE_ENTRIES_MAX).contains(&entries);
                let numbered = page.start_block == next_block;
                let ordered = if number == 0 {
                    page.start_logical == 0
                } else {
                    page.start_logical >= next_logical_min
                };
                if !(inside && whole && counted && numbered && ordered) {
                    return Err(FormatError::Invalid { what: "page record", offset: record_at });
                }
                next_block = next_block.saturating_add(entries);
                next_logical_min = page.start_logical;
                offset_min = end;
                record_at = record_at.saturating_add(PAGE_RECORD_BYTES);
            }
            record_at = record_at.saturating_add(PAGE_COUNT_BYTES);
        }
        Ok(())
    }
}

fn page_records(fields: &mut Fields<'_>) -> Result<Vec<PageRecord>, FormatError> {
    let offset = fields.position();
    let count = fields.u64("number of pages")?;
    let bytes = count
        .checked_mul(PAGE_RECORD_BYTES)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .filter(|bytes| *bytes <= fields.rest().len())
        .ok_or(FormatError::Truncated { what: "page records", offset })?;
    let mut records = Fields::new(fields.bytes(bytes, "page records")?, offset);
    (0..count)
        .map(|_| {
            Ok(PageRecord {
                offset: records.u64("page offset")?,
                length: records.u32("page length")?,
                start_block: records.u64("first block of a page")?,
                start_logical: records.u64("start of a page")?,
            })
        })
        .collect()
}

fn stream_size(fields: &mut Fields<'_>) -> Result<u64, FormatError> {
    let offset = fields.position();
    let value = fields.u64("stream size")?;
    if value > STREAM_BYTES_MAX {
        return Err(FormatError::Limit {
            what: "stream size",
            offset,
            value,
            limit: STREAM_BYTES_MAX,
        });
    }
    Ok(value)
}

/// One block as an index page describes it. Format sections 6 and 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Where the stored bytes lie, or what kind of entry it is.
    pub offset: u64,
    /// Stored bytes.
    pub length: u32,
    /// Bytes of the stream.
    pub logical_length: u32,
    /// CRC-32 of the stored bytes.
    pub crc: u32,
    /// BLAKE3 of the plain bytes. All zero where there is none.
    pub hash: [u8; 32],
}

/// What an entry stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// Stored bytes.
    Data,
    /// Zeros that are not stored.
    Sparse,
    /// Bytes of a parent.
    Parent,
    /// Nothing: the chunker's last, empty chunk.
    Nothing,
}

/// Hash of an empty chunk: BLAKE3 of no bytes. Format section 7.
pub const HASH_OF_NOTHING: [u8; 32] = [
    0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6, 0xa0, 0x40, 0x4d, 0xea, 0x36, 0xdc, 0xc9, 0x49,
    0x9b, 0xcb, 0x25, 0xc9, 0xad, 0xc1, 0x12, 0xb7, 0xcc, 0x9a, 0x93, 0xca, 0xe4, 0x1f, 0x32, 0x62,
];

/// Largest payload of an empty chunk, in bytes: an empty LZ4 block takes 5, an empty Zstandard
/// frame 9 to 13, encryption 16 more.
const NOTHING_STORED_BYTES_MAX: u32 = 48;

/// Bounds of the file against which an entry is checked.
#[derive(Debug, Clone, Copy)]
pub struct EntryBounds {
    /// Stored bytes lie below this position.
    pub index_offset: u64,
    /// Largest block accepted, in plain bytes. Format section 15.
    pub logical_bytes_max: u32,
    /// Whether the header names a parent.
    pub has_parents: bool,
}

impl Entry {
    /// What the entry stands for, if it is one that a writer makes and that lies inside the
    /// bounds; otherwise what is wrong with it. A flipped bit must not turn data into zeros, so
    /// everything else is an error. Format sections 7, 8 and 15.
    ///
    /// # Errors
    ///
    /// The offending part, for a message.
    pub fn kind(&self, bounds: EntryBounds) -> Result<EntryKind, &'static str> {
        if self.offset == PARENT_REFERENCE_OFFSET {
            return match self {
                Self { length: 0, crc: 0, logical_length, .. }
                    if bounds.has_parents && *logical_length > bounds.logical_bytes_max =>
                {
                    Err("block length above the limit")
                }
                Self { length: 0, crc: 0, .. } if bounds.has_parents => Ok(EntryKind::Parent),
                Self { length: 0, crc: 0, .. } => Err("parent reference without a parent"),
                _ => Err("parent reference"),
            };
        }
        if self.length == 0 {
            return match self {
                Self { offset: 0, crc: 0, .. } if self.hash == [0; 32] => {
                    let empty = self.logical_length == 0;
                    Ok(if empty { EntryKind::Nothing } else { EntryKind::Sparse })
                }
                _ => Err("sparse entry"),
            };
        }
        let stored_inside = self.offset >= HEADER_BYTES
            && self
                .offset
                .checked_add(u64::from(self.length))
                .is_some_and(|end| end <= bounds.index_offset);
        if !stored_inside {
            return Err("block position");
        }
        if self.logical_length == 0 {
            let hash_fits = self.hash == [0; 32] || self.hash == HASH_OF_NOTHING;
            let empty = hash_fits && self.length <= NOTHING_STORED_BYTES_MAX;
            return if empty { Ok(EntryKind::Nothing) } else { Err("empty block") };
        }
        if self.logical_length > bounds.logical_bytes_max {
            return Err("block length above the limit");
        }
        if u64::from(self.length) > stored_bytes_max(self.logical_length) {
            return Err("stored length out of proportion");
        }
        Ok(EntryKind::Data)
    }
}

/// Most bytes that a block may take in the file, whatever its compression. Format section 15.
#[must_use]
pub fn stored_bytes_max(logical_length: u32) -> u64 {
    let logical = u64::from(logical_length);
    logical.saturating_add(logical / 64).saturating_add(1024)
}

/// Decodes a page that was read from `record.offset`.
///
/// # Errors
///
/// [`FormatError`] if length and count disagree. What single entries say is checked by
/// [`Entry::kind`].
pub fn decode_page(
    bytes: &[u8],
    record: &PageRecord,
    family: Family,
) -> Result<Vec<Entry>, FormatError> {
    let mut fields = Fields::new(bytes, record.offset);
    let count = fields.u64("page entry count")?;
    let exact =
        count.checked_mul(family.entry_bytes()).and_then(|b| b.checked_add(PAGE_COUNT_BYTES));
    let length = bytes.len() as u64;
    if exact != Some(length) || length != u64::from(record.length) {
        return Err(FormatError::Invalid { what: "page entry count", offset: record.offset });
    }
    (0..count)
        .map(|_| {
            Ok(Entry {
                offset: fields.u64("block offset")?,
                length: fields.u32("block length")?,
                logical_length: fields.u32("block logical length")?,
                crc: fields.u32("block CRC")?,
                hash: match family {
                    Family::A => [0; 32],
                    Family::B | Family::C | Family::D => fields.hash("block hash")?,
                },
            })
        })
        .collect()
}

/// Encodes a page in the layout of families B to D.
#[must_use]
pub fn encode_page(entries: &[Entry]) -> Vec<u8> {
    let mut writer = FieldWriter::default();
    writer.u64(entries.len() as u64);
    for entry in entries {
        writer.u64(entry.offset);
        writer.u32(entry.length);
        writer.u32(entry.logical_length);
        writer.u32(entry.crc);
        writer.raw(&entry.hash);
    }
    writer.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: EntryBounds =
        EntryBounds { index_offset: 1 << 20, logical_bytes_max: 16 << 20, has_parents: false };

    fn data() -> Entry {
        Entry { offset: 4096, length: 100, logical_length: 65536, crc: 9, hash: [3; 32] }
    }

    fn nothing() -> Entry {
        Entry { length: 5, logical_length: 0, hash: HASH_OF_NOTHING, ..data() }
    }

    fn sparse() -> Entry {
        Entry { offset: 0, length: 0, crc: 0, hash: [0; 32], ..data() }
    }

    fn parent() -> Entry {
        Entry { offset: u64::MAX, length: 0, crc: 0, ..data() }
    }

    #[test]
    fn the_hash_of_nothing_is_that_of_blake3() {
        assert_eq!(HASH_OF_NOTHING, *blake3::hash(b"").as_bytes());
    }

    #[test]
    fn entries_that_writers_make_are_told_apart() {
        let with_parents = EntryBounds { has_parents: true, ..BOUNDS };
        assert_eq!(data().kind(BOUNDS), Ok(EntryKind::Data));
        assert_eq!(sparse().kind(BOUNDS), Ok(EntryKind::Sparse));
        assert_eq!(parent().kind(with_parents), Ok(EntryKind::Parent));
        assert_eq!(nothing().kind(BOUNDS), Ok(EntryKind::Nothing));
        assert_eq!(Entry { logical_length: 0, ..sparse() }.kind(BOUNDS), Ok(EntryKind::Nothing));
    }

    #[test]
    fn anything_else_is_corruption_and_never_zeros() {
        for wrong in [
            Entry { crc: 1, ..sparse() },
            Entry { hash: [1; 32], ..sparse() },
            Entry { offset: 4096, ..sparse() },
            Entry { length: 0, ..data() },
            Entry { offset: 0, ..data() },
            Entry { offset: 4095, ..data() },
            Entry { offset: BOUNDS.index_offset - 99, ..data() },
            Entry { offset: u64::MAX - 1, ..data() },
            Entry { logical_length: u32::MAX, ..data() },
            Entry { length: 67585, ..data() },
            Entry { hash: [1; 32], ..nothing() },
            Entry { length: 49, ..nothing() },
            Entry { crc: 1, ..parent() },
            Entry { length: 1, ..parent() },
            parent(),
        ] {
            assert!(wrong.kind(BOUNDS).is_err(), "{wrong:?}");
        }
        let with_parents = EntryBounds { has_parents: true, ..BOUNDS };
        let wide = Entry { logical_length: BOUNDS.logical_bytes_max + 1, ..parent() };
        assert!(wide.kind(with_parents).is_err());
    }

    #[test]
    fn a_page_reads_back_what_was_written() {
        let entries = [data(), sparse(), nothing()];
        let bytes = encode_page(&entries);
        let record = PageRecord {
            offset: 5000,
            length: u32::try_from(bytes.len()).unwrap(),
            start_block: 0,
            start_logical: 0,
        };
        assert_eq!(decode_page(&bytes, &record, Family::D).unwrap(), entries);
        assert!(decode_page(&bytes[..bytes.len() - 1], &record, Family::D).is_err());
        assert!(decode_page(&bytes, &record, Family::A).is_err());
    }

    #[test]
    fn a_master_index_reads_back_and_lies_about_counts_are_refused_without_allocating() {
        let page = PageRecord { offset: 4096, length: 60, start_block: 0, start_logical: 0 };
        let index = MasterIndex { main: vec![page], main_bytes: 65536, ..MasterIndex::default() };
        let mut bytes = index.encode();
        assert_eq!(bytes.len() as u64, MASTER_INDEX_FIXED_BYTES + PAGE_RECORD_BYTES);
        assert_eq!(MasterIndex::decode(&bytes, 9).unwrap(), (index, bytes.len() as u64));
        for cut in 0..bytes.len() {
            assert!(MasterIndex::decode(&bytes[..cut], 9).is_err(), "cut at {cut}");
        }
        for count in [2, u64::MAX, u64::MAX / 28] {
            bytes[..8].copy_from_slice(&count.to_le_bytes());
            assert!(MasterIndex::decode(&bytes, 9).is_err(), "{count}");
        }
    }
}
