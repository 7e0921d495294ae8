//! An opened snapshot: how long, what is where, and give me these bytes.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::snapshot::cache::{BlockKey, Cache, FileId, PageKey};
use crate::snapshot::content::{self, Content};
use crate::snapshot::decode::{Compressor, Decoder, Encryptor};
use crate::snapshot::error::{Damage, Error, ErrorKind};
use crate::snapshot::extents::SharedBlocks;
use crate::snapshot::format::index::{ENTRY_BYTES_WITH_HASH, Entry, EntryKind, PAGE_COUNT_BYTES};
use crate::snapshot::format::{Family, FormatError, Stream};
use crate::snapshot::open::{Check, OpenOptions};
use crate::snapshot::page::{Block, Contents, Page};
use crate::snapshot::part::Part;
use crate::snapshot::stream_size::{StreamSize, measure};
use crate::snapshot::structure::{self, Structure};

/// Bytes of a stream, as they lie in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slice {
    /// Bytes of one decoded block.
    Data(Bytes),
    /// This many zeros, which lie nowhere.
    Zeros(u64),
}

impl Slice {
    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeros(bytes) => *bytes,
        }
    }
}

/// A read that did not come to its end.
#[derive(Debug)]
pub struct Interrupted {
    /// The bytes before those that cannot be served: up to the damaged block.
    pub before: Vec<Slice>,
    /// What is wrong.
    pub error: Error,
}

/// An immutable snapshot, shared by all who read it.
#[derive(Debug)]
pub struct File {
    id: FileId,
    structure: Structure,
    decoder: Decoder,
    check: Check,
    cache: Arc<Cache>,
    content: Content,
    /// Which stored blocks are used more than once, when somebody has asked.
    pub(crate) shared: OnceLock<SharedBlocks>,
    main: StreamSize,
    auxiliary: StreamSize,
}

impl File {
    pub(crate) fn from_structure(
        structure: Structure,
        compressor: Box<dyn Compressor>,
        encryptor: Option<Box<dyn Encryptor>>,
        options: OpenOptions,
    ) -> Result<Arc<Self>, Error> {
        let header = structure.header();
        if !header.parents.is_empty() {
            return Err(
                structure.error(ErrorKind::NeedsParents { parents: header.parents.clone() })
            );
        }
        let has_dictionary = header.dictionary.is_some_and(|span| span.length != 0);
        let metadata = structure.metadata()?;
        let mut content = Content::from_metadata(&metadata);
        let main = measure(&structure, Stream::Main, content, options.size_from_index)?;
        let auxiliary = measure(&structure, Stream::Auxiliary, content, options.size_from_index)?;
        if content == Content::Tar
            && let Some(declared) = content::tar_bytes(&metadata)
            && declared != main.blocks_end
        {
            return Err(structure.stream_size_error(Stream::Main, declared, main.blocks_end));
        }
        if main.bytes == 0 && main.blocks_end != 0 {
            content = Content::ImageWithoutSize;
        }
        Ok(Arc::new(Self {
            id: FileId::next(),
            check: if has_dictionary { Check::Blake3 } else { options.check },
            decoder: Decoder::new(compressor, encryptor),
            cache: options.cache,
            content,
            structure,
            shared: OnceLock::new(),
            main,
            auxiliary,
        }))
    }

    /// Size of a stream in bytes. 0 for a stream that the snapshot does not have.
    #[must_use]
    pub fn size(&self, stream: Stream) -> u64 {
        self.stream_size(stream).bytes
    }

    /// Header, family and index.
    #[must_use]
    pub fn structure(&self) -> &Structure {
        &self.structure
    }

    /// What was packed.
    #[must_use]
    pub fn content(&self) -> Content {
        self.content
    }

    /// Reads into a new buffer. A read that reaches over the end of the stream is shortened, as
    /// in upstream's library; use [`File::slices`] to have it refused.
    ///
    /// # Errors
    ///
    /// [`Error`] if a block that the read touches cannot be served.
    pub fn read_at(&self, stream: Stream, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let available = self.size(stream).saturating_sub(offset);
        let length = usize::try_from(available).map_or(length, |available| available.min(length));
        let mut bytes = Vec::with_capacity(length);
        for slice in self.slices(stream, offset.min(self.size(stream)), length as u64)? {
            match slice {
                Slice::Data(data) => bytes.extend_from_slice(&data),
                Slice::Zeros(_) => bytes.resize(
                    bytes.len().saturating_add(usize::try_from(slice.bytes()).unwrap_or(0)),
                    0,
                ),
            }
        }
        Ok(bytes)
    }

    /// Reads without copying: slices of decoded blocks, in order. May read storage and decode, so
    /// call it where that stalls nobody.
    ///
    /// # Errors
    ///
    /// [`Error`] if the range is not inside the stream or a block that it touches cannot be served.
    pub fn slices(&self, stream: Stream, offset: u64, length: u64) -> Result<Vec<Slice>, Error> {
        self.slices_or_part(stream, offset, length).map_err(|interrupted| interrupted.error)
    }

    /// As [`File::slices`], for callers who have a use for the bytes before a failure.
    ///
    /// # Errors
    ///
    /// [`Interrupted`], as [`File::slices`].
    pub fn slices_or_part(
        &self,
        stream: Stream,
        offset: u64,
        length: u64,
    ) -> Result<Vec<Slice>, Interrupted> {
        let mut slices = Vec::new();
        match self.collect_slices(stream, offset, length, &mut slices) {
            Ok(()) => Ok(slices),
            Err(error) => Err(Interrupted { before: slices, error }),
        }
    }

    fn collect_slices(
        &self,
        stream: Stream,
        offset: u64,
        length: u64,
        slices: &mut Vec<Slice>,
    ) -> Result<(), Error> {
        let range = self.check_range(stream, offset, length)?;
        self.walk(
            stream,
            range,
            |page| self.page(stream, page),
            |part| {
                slices.push(match part.block.contents {
                    Contents::Zeros => Slice::Zeros(part.length()),
                    Contents::Corrupt(_) | Contents::Stored { .. } => {
                        Slice::Data(part.of(&self.block(stream, &part)?))
                    }
                });
                Ok(())
            },
        )?;
        self.check_total(slices, length)
    }

    /// As [`File::slices`], if everything is in the cache. Neither waits nor reads storage.
    #[must_use]
    pub fn cached_slices(&self, stream: Stream, offset: u64, length: u64) -> Option<Vec<Slice>> {
        struct Miss;
        let range = self.check_range(stream, offset, length).ok()?;
        let mut slices = Vec::new();
        let find = |page| self.cache.page(&PageKey { file: self.id, stream, page }).ok_or(Miss);
        let hit = self.walk(stream, range, find, |part| {
            slices.push(match part.block.contents {
                Contents::Zeros => Slice::Zeros(part.length()),
                Contents::Corrupt(_) => return Err(Miss),
                Contents::Stored { .. } => {
                    let key = self.block_key(&part.block).ok_or(Miss)?;
                    Slice::Data(part.of(&self.cache.block(&key).ok_or(Miss)?))
                }
            });
            Ok(())
        });
        hit.is_ok().then_some(slices)
    }

    pub(crate) fn stream_size(&self, stream: Stream) -> StreamSize {
        match stream {
            Stream::Main => self.main,
            Stream::Auxiliary => self.auxiliary,
        }
    }

    pub(crate) fn check_range(
        &self,
        stream: Stream,
        offset: u64,
        length: u64,
    ) -> Result<Range<u64>, Error> {
        let size = self.size(stream);
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(offset..end),
            _ => Err(self.structure.error(ErrorKind::OutOfRange { offset, length, size })),
        }
    }

    /// Pages are checked to follow each other when they are loaded, so this cannot fail; if it
    /// ever does, a read must fail with it rather than be short.
    fn check_total(&self, slices: &[Slice], length: u64) -> Result<(), Error> {
        if slices.iter().map(Slice::bytes).sum::<u64>() == length {
            return Ok(());
        }
        let offset = self.structure.header().index_offset;
        Err(self.structure.error(FormatError::Invalid { what: "sum of blocks", offset }.into()))
    }

    pub(crate) fn page(&self, stream: Stream, page: usize) -> Result<Arc<Page>, Error> {
        let key = PageKey { file: self.id, stream, page };
        let end = self.page_end(stream, page);
        self.cache.page_or_load(&key, || self.structure.page(stream, page, Some(end)).map(Arc::new))
    }

    /// Where a page must end. The file may have been changed since it was opened: the last page
    /// must still end where it did, as every other page must reach the next.
    pub(crate) fn page_end(&self, stream: Stream, page: usize) -> u64 {
        let next = self.structure.page_end(stream, page);
        next.unwrap_or(self.stream_size(stream).blocks_end)
    }

    /// The page that holds a position, by binary search. Of pages that begin at the same place
    /// only the last has bytes.
    pub(crate) fn page_at(&self, stream: Stream, position: u64) -> usize {
        let pages = self.structure.index().pages(stream);
        pages.partition_point(|page| page.start_logical <= position).saturating_sub(1)
    }

    /// Visits the blocks of a range in order, with the part of each that lies in it.
    fn walk<E>(
        &self,
        stream: Stream,
        range: Range<u64>,
        mut find_page: impl FnMut(usize) -> Result<Arc<Page>, E>,
        mut visit: impl FnMut(Part) -> Result<(), E>,
    ) -> Result<(), E> {
        let blocks_end = self.stream_size(stream).blocks_end;
        let mut position = range.start;
        while position < range.end {
            if position >= blocks_end {
                return visit(Part::behind_blocks(blocks_end, position..range.end));
            }
            let page = find_page(self.page_at(stream, position))?;
            let mut at = page.find(position);
            let before = position;
            while position < range.end
                && let Some(block) = page.block(at)
            {
                let end = block.range.end.min(range.end);
                if position < end {
                    visit(Part { range: position..end, block })?;
                    position = end;
                }
                at = at.saturating_add(1);
            }
            if position == before {
                break;
            }
        }
        Ok(())
    }

    /// `None` if there are no stored bytes.
    fn block_key(&self, block: &Block) -> Option<BlockKey> {
        let Contents::Stored { offset, length, crc } = block.contents else {
            return None;
        };
        Some(BlockKey {
            file: self.id,
            offset,
            length,
            logical_length: block.logical_length(),
            crc,
            number: if self.decoder.is_encrypted() { block.number } else { 0 },
        })
    }

    fn block(&self, stream: Stream, part: &Part) -> Result<Bytes, Error> {
        let block = &part.block;
        let damaged = |damage, stored_at| self.damaged(damage, stream, block, stored_at);
        let key = match (block.contents, self.block_key(block)) {
            (Contents::Stored { .. }, Some(key)) => key,
            (Contents::Corrupt(what), _) => {
                let entry_at = self.entry_position(stream, block).unwrap_or(0);
                return Err(damaged(Damage::Entry(what), entry_at));
            }
            _ => return Err(damaged(Damage::Entry("no stored bytes"), 0)),
        };
        self.cache.block_or_decode(&key, || {
            self.decode(stream, block, &key, || match self.check {
                Check::Crc => Ok([0; 32]),
                Check::Blake3 => self.stored_hash(stream, block),
            })
        })
    }

    /// Reads and decodes the stored bytes of a block, whatever the cache holds. All zero is no
    /// hash to compare with.
    fn decode(
        &self,
        stream: Stream,
        block: &Block,
        key: &BlockKey,
        hash: impl FnOnce() -> Result<[u8; 32], Error>,
    ) -> Result<Bytes, Error> {
        let damaged = |damage| self.damaged(damage, stream, block, key.offset);
        let length = u64::from(key.length);
        let stored = structure::read(self.structure.storage(), "block", key.offset, length)
            .map_err(|kind| self.structure.error(kind))?;
        let plain = self
            .decoder
            .decode(stored, key.crc, block.number, key.logical_length)
            .map_err(damaged)?;
        let hash = hash()?;
        if hash != [0; 32] && *blake3::hash(&plain).as_bytes() != hash {
            return Err(damaged(Damage::Hash));
        }
        Ok(Bytes::from(plain))
    }

    /// Checks everything that is known of a block, past the cache: what was decoded before says
    /// nothing of the bytes that are stored now.
    pub(crate) fn check_entry(
        &self,
        stream: Stream,
        block: &Block,
        entry: &Entry,
    ) -> Result<(), Error> {
        match entry.kind(self.structure.entry_bounds()) {
            Err(what) => {
                let entry_at = self.entry_position(stream, block).unwrap_or(0);
                Err(self.damaged(Damage::Entry(what), stream, block, entry_at))
            }
            // Zeros that were stored are read without their stored bytes. Here they count.
            Ok(EntryKind::Data | EntryKind::Nothing) if entry.length != 0 => {
                let Entry { offset, length, crc, .. } = *entry;
                let block =
                    Block { contents: Contents::Stored { offset, length, crc }, ..block.clone() };
                let Some(key) = self.block_key(&block) else {
                    return Ok(());
                };
                self.decode(stream, &block, &key, || Ok(entry.hash)).map(drop)
            }
            Ok(EntryKind::Data | EntryKind::Nothing | EntryKind::Sparse) => Ok(()),
            Ok(EntryKind::Parent) => {
                let length = u64::from(block.logical_length());
                self.slices(stream, block.range.start, length).map(drop)
            }
        }
    }

    fn damaged(&self, damage: Damage, stream: Stream, block: &Block, stored_at: u64) -> Error {
        let position = block.range.start;
        self.structure.error(ErrorKind::Block { damage, stream, position, stored_at })
    }

    /// The hash of a block, from the file: it is not kept in memory. All zero if there is none.
    fn stored_hash(&self, stream: Stream, block: &Block) -> Result<[u8; 32], Error> {
        const HASH_BYTES: u64 = 32;
        if self.structure.family() == Family::A {
            return Ok([0; 32]);
        }
        let wrong = || {
            let offset = self.structure.header().index_offset;
            self.structure.error(FormatError::Invalid { what: "block number", offset }.into())
        };
        let entry = self.entry_position(stream, block).ok_or_else(wrong)?;
        let at = entry.saturating_add(ENTRY_BYTES_WITH_HASH - HASH_BYTES);
        let hash = structure::read(self.structure.storage(), "block hash", at, HASH_BYTES)
            .map_err(|kind| self.structure.error(kind))?;
        hash.try_into().map_err(|_| wrong())
    }

    /// Where the entry of a block lies in the file.
    fn entry_position(&self, stream: Stream, block: &Block) -> Option<u64> {
        let pages = self.structure.index().pages(stream);
        let page = pages.partition_point(|page| page.start_block <= block.number).checked_sub(1)?;
        let record = pages.get(page)?;
        let in_page = block.number.checked_sub(record.start_block)?;
        let entry = in_page.checked_mul(self.structure.family().entry_bytes())?;
        record.offset.checked_add(PAGE_COUNT_BYTES)?.checked_add(entry)
    }
}
