//! What goes where in the file: blocks and pages interleaved, master index, header last. Format
//! sections 2 and 18.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use crate::snapshot::format::index::{
    self, Entry, MasterIndex, PAGE_ENTRIES_MAX, PARENT_REFERENCE_OFFSET, PageRecord,
};
use crate::snapshot::format::{HEADER_BYTES, Header};
use crate::snapshot::write::compress::{Contents, PackedBlock};
use crate::snapshot::write::error::ErrorKind;
use crate::snapshot::write::known::{Known, Stored};
use crate::snapshot::write::writeback::Writeback;
use crate::snapshot::write::{Summary, check_block_count};

/// Blocks of a few KiB are gathered into one system call.
const BUFFER_BYTES: usize = 1 << 20;

/// A snapshot that is being written.
pub(super) struct Body<'a> {
    file: &'a File,
    writer: BufWriter<&'a File>,
    writeback: Writeback,
    known: &'a Known,
    /// Where the next byte goes.
    offset: u64,
    /// The page that is being filled.
    entries: Vec<Entry>,
    /// Number of its first block, and where that begins in the image.
    page_start: (u64, u64),
    index: MasterIndex,
    summary: Summary,
}

impl<'a> Body<'a> {
    /// Leaves the header area zero: whoever finds the file unfinished sees that it is.
    pub(super) fn begin(
        mut file: &'a File,
        writeback: Writeback,
        known: &'a Known,
    ) -> Result<Self, ErrorKind> {
        let offset = HEADER_BYTES;
        file.seek(SeekFrom::Start(offset)).map_err(|source| ErrorKind::Write { offset, source })?;
        Ok(Self {
            file,
            writer: BufWriter::with_capacity(BUFFER_BYTES, file),
            writeback,
            known,
            offset,
            entries: Vec::new(),
            page_start: (0, 0),
            index: MasterIndex::default(),
            summary: Summary::default(),
        })
    }

    /// Appends the next block of the image.
    pub(super) fn push(&mut self, block: PackedBlock) -> Result<(), ErrorKind> {
        let plain_bytes = u64::from(block.plain_bytes);
        let (hash, stored) = match block.contents {
            Contents::Zeros => {
                add(&mut self.summary.sparse_bytes, plain_bytes);
                ([0; 32], Stored { offset: 0, length: 0, crc: 0 })
            }
            Contents::InBase { hash } => {
                add(&mut self.summary.base_bytes, plain_bytes);
                (hash, Stored { offset: PARENT_REFERENCE_OFFSET, length: 0, crc: 0 })
            }
            Contents::Known { hash, stored } => {
                add(&mut self.summary.duplicate_bytes, plain_bytes);
                (hash, stored)
            }
            Contents::Compressed { hash, crc, bytes } => {
                // It may have been stored since the block was looked at.
                if let Some(stored) = self.known.get(&hash) {
                    add(&mut self.summary.duplicate_bytes, plain_bytes);
                    (hash, stored)
                } else {
                    let stored = self.store(&bytes, crc)?;
                    self.known.insert(hash, stored);
                    (hash, stored)
                }
            }
            Contents::Encrypted { crc, bytes } => ([0; 32], self.store(&bytes, crc)?),
        };
        add(&mut self.summary.image_bytes, plain_bytes);
        self.entries.push(Entry {
            offset: stored.offset,
            length: stored.length,
            logical_length: block.plain_bytes,
            crc: stored.crc,
            hash,
        });
        if self.entries.len() as u64 == PAGE_ENTRIES_MAX {
            self.end_page()?;
        }
        Ok(())
    }

    /// Writes what is left. What was written is not durable yet.
    pub(super) fn finish(mut self, mut header: Header) -> Result<Summary, ErrorKind> {
        self.end_page()?;
        self.index.main_bytes = self.summary.image_bytes;
        let index_offset = self.offset;
        self.append(&self.index.encode())?;
        self.writer.flush().map_err(|source| ErrorKind::Write { offset: index_offset, source })?;
        header.index_offset = index_offset;
        header.has_main = !self.index.main.is_empty();
        self.file
            .write_all_at(&header.encode()?, 0)
            .map_err(|source| ErrorKind::Write { offset: 0, source })?;
        self.summary.file_bytes = self.offset;
        Ok(self.summary)
    }

    fn end_page(&mut self) -> Result<(), ErrorKind> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let (start_block, start_logical) = self.page_start;
        let next_block = start_block.saturating_add(self.entries.len() as u64);
        // Blocks that are cut by content cannot be counted before.
        check_block_count(next_block)?;
        let page = index::encode_page(&self.entries);
        let length = u32::try_from(page.len()).expect("a page has at most 4096 entries");
        let offset = self.offset;
        self.append(&page)?;
        self.index.main.push(PageRecord { offset, length, start_block, start_logical });
        self.page_start = (next_block, self.summary.image_bytes);
        self.entries.clear();
        Ok(())
    }

    fn store(&mut self, bytes: &[u8], crc: u32) -> Result<Stored, ErrorKind> {
        let length = u32::try_from(bytes.len()).expect("16 MiB do not grow to 4 GiB");
        let stored = Stored { offset: self.offset, length, crc };
        self.append(bytes)?;
        Ok(stored)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), ErrorKind> {
        let offset = self.offset;
        self.writer.write_all(bytes).map_err(|source| ErrorKind::Write { offset, source })?;
        add(&mut self.offset, bytes.len() as u64);
        self.writeback.wrote(bytes.len())
    }
}

/// No sum of bytes that a machine can hold comes near the end of a u64.
fn add(sum: &mut u64, bytes: u64) {
    *sum = sum.saturating_add(bytes);
}
