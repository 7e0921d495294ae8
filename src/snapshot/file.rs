//! An opened snapshot: how long, what is where, and give me these bytes.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;

use crate::snapshot::cache::{BlockKey, Cache, FileId, PageKey};
use crate::snapshot::chain::{Ancestor, ancestors};
use crate::snapshot::content::{self, Content};
use crate::snapshot::decode::{Compressor, Decoder, Encryptor};
use crate::snapshot::error::{Damage, Error, ErrorKind};
use crate::snapshot::extents::SharedBlocks;
use crate::snapshot::fetch::Fetched;
use crate::snapshot::format::index::{ENTRY_BYTES_WITH_HASH, Entry, EntryKind, PAGE_COUNT_BYTES};
use crate::snapshot::format::{Family, FormatError, Stream};
use crate::snapshot::hash_index::HashIndex;
use crate::snapshot::open::{Check, OpenOptions};
use crate::snapshot::page::{Block, Contents, Expected, Page};
use crate::snapshot::read::{Pattern, Read, Stop};
use crate::snapshot::stream_size::{StreamSize, measure};
use crate::snapshot::structure::{self, Structure};

/// An immutable snapshot, shared by all who read it.
#[derive(Debug)]
pub struct File {
    id: FileId,
    structure: Structure,
    decoder: Decoder,
    check: Check,
    cache: Arc<Cache>,
    content: Content,
    parents: Box<[Arc<File>]>,
    ancestors: Box<[Ancestor]>,
    /// Which blocks have which hash, when a child has asked.
    pub(crate) hashes: Mutex<Option<Arc<HashIndex>>>,
    /// BLAKE3 of the whole file, when somebody has asked.
    digest: OnceLock<[u8; 32]>,
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
        parents: Vec<Arc<Self>>,
        options: &OpenOptions,
    ) -> Result<Arc<Self>, Error> {
        let header = structure.header();
        let ancestors = ancestors(&parents).map_err(|kind| structure.error(kind))?;
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
            cache: Arc::clone(&options.cache),
            content,
            structure,
            parents: parents.into(),
            ancestors: ancestors.into(),
            shared: OnceLock::new(),
            hashes: Mutex::default(),
            digest: OnceLock::new(),
            main,
            auxiliary,
        }))
    }

    pub(crate) fn id(&self) -> FileId {
        self.id
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

    /// The snapshots that this one, if it is thin, refers to first.
    #[must_use]
    pub fn parents(&self) -> &[Arc<Self>] {
        &self.parents
    }

    /// All snapshots above this one, the nearest first, each once.
    #[must_use]
    pub fn ancestors(&self) -> &[Ancestor] {
        &self.ancestors
    }

    /// BLAKE3 of all bytes of the file, which is read once for it.
    ///
    /// # Errors
    ///
    /// [`Error`] if it cannot be read.
    pub fn digest(&self) -> Result<[u8; 32], Error> {
        if let Some(digest) = self.digest.get() {
            return Ok(*digest);
        }
        let digest = self.structure.digest()?;
        Ok(*self.digest.get_or_init(|| digest))
    }

    /// What was packed.
    #[must_use]
    pub fn content(&self) -> Content {
        self.content
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

    /// A page, if it is in the cache.
    pub(crate) fn cached_page(&self, stream: Stream, page: usize) -> Option<Arc<Page>> {
        self.cache.page(&PageKey { file: self.id, stream, page })
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

    /// The block that holds a position. `None` behind the last block.
    pub(crate) fn block_at(&self, stream: Stream, position: u64) -> Result<Option<Block>, Error> {
        if position >= self.stream_size(stream).blocks_end {
            return Ok(None);
        }
        let page = self.page(stream, self.page_at(stream, position))?;
        Ok(page.block(page.find(position)))
    }

    /// The block with a number, in whatever stream.
    pub(crate) fn block_of_number(&self, number: u64) -> Result<Option<(Stream, Block)>, Error> {
        let index = self.structure.index();
        let first = index.auxiliary.first();
        let auxiliary = first.is_some_and(|record| record.start_block <= number);
        let stream = if auxiliary { Stream::Auxiliary } else { Stream::Main };
        let Some((page, at)) = self.place_of(stream, number) else { return Ok(None) };
        Ok(self.page(stream, page)?.block(at).map(|block| (stream, block)))
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

    /// A block, if it is in the cache.
    pub(crate) fn cached_block(&self, pattern: Pattern, block: &Block) -> Option<Bytes> {
        self.cache.block(&self.block_key(block)?, pattern)
    }

    /// How far all readers of whatever snapshots together may be read ahead of, in bytes.
    #[must_use]
    pub fn ahead_bytes_max(&self) -> u64 {
        self.cache.ahead_bytes_max()
    }

    /// So many blocks that were in the cache were of use.
    pub(crate) fn has_served_from_cache(&self, blocks: usize) {
        self.cache.has_served(blocks);
    }

    /// A block that is stored, or as much of it as is wanted.
    pub(crate) fn block(
        &self,
        read: Read<'_>,
        stream: Stream,
        block: &Block,
        wanted_bytes: u32,
    ) -> Result<Bytes, Stop> {
        let key = self
            .block_key(block)
            .ok_or_else(|| self.damaged(Damage::Entry("no stored bytes"), stream, block, 0))?;
        let fetched = &read.account.fetched;
        if self.takes_start(read.pattern, block, wanted_bytes)
            && self.cache.block(&key, read.pattern).is_none()
            && self.cache.meets_first(&key)
        {
            let mut fetched = fetched.borrow_mut();
            let stored = self.stored(&mut fetched, &key)?;
            return self
                .decode_start(stored, &key, block.number, wanted_bytes)
                .map_err(|damage| self.damaged(damage, stream, block, key.offset).into());
        }
        self.cache.block_or_decode(&key, read.pattern, || {
            // Once more, now that the reader would wait for this: a thread may have been stopped for long before.
            if read.is_for_nobody(block.range.end) {
                return Err(Stop::Miss);
            }
            let expected = || self.expected(stream, block);
            Ok(self.decode(&mut fetched.borrow_mut(), stream, block, &key, expected)?)
        })
    }

    /// Whether nothing but the stored bytes of a block is needed to decode it.
    pub(crate) fn decodes_without_waiting(&self) -> bool {
        self.check == Check::Crc && self.structure.manifest().is_none()
    }

    /// A block that is stored, or as much of it as is wanted, if it can be decoded without waiting for
    /// storage or for somebody else. Only of a file that [`File::decodes_without_waiting`].
    pub(crate) fn block_at_once(
        &self,
        read: Read<'_>,
        block: &Block,
        wanted_bytes: u32,
    ) -> Option<Bytes> {
        let key = self.block_key(block)?;
        let mut fetched = read.account.fetched.borrow_mut();
        let range = key.offset..key.offset.saturating_add(u64::from(key.length));
        let storage = self.structure.storage();
        if self.takes_start(read.pattern, block, wanted_bytes) {
            // First of all, since it would be no newcomer any more for whoever waits for its bytes.
            let stored = fetched.stored_at_once(self.id, storage, range.clone())?;
            if self.cache.meets_first(&key) {
                return self.decode_start(stored, &key, block.number, wanted_bytes).ok();
            }
        }
        self.cache.block_or_decode_at_once(&key, read.pattern, || {
            let stored = fetched.stored_at_once(self.id, storage, range)?;
            let (crc, number) = (key.crc, block.number);
            let mut plain = self.cache.room(key.logical_length);
            let decoded = self.decoder.decode(stored, crc, number, None, plain.as_mut());
            decoded.ok().map(|()| Bytes::from_owner(plain))
        })
    }

    /// Whether the start of a block is decoded in place of the whole while nobody wants more of it: where
    /// that spares something, and where the CRC-32 of the stored bytes is all that it is compared with.
    fn takes_start(&self, pattern: Pattern, block: &Block, wanted_bytes: u32) -> bool {
        let most = (block.logical_length() / 4).saturating_mul(3);
        pattern == Pattern::Random
            && wanted_bytes <= most
            && self.decoder.stops_early()
            && self.decodes_without_waiting()
    }

    /// The first bytes of a block. The cache does not get them.
    fn decode_start(
        &self,
        stored: &[u8],
        key: &BlockKey,
        number: u64,
        wanted_bytes: u32,
    ) -> Result<Bytes, Damage> {
        let mut start = self.cache.room(wanted_bytes);
        let length = key.logical_length;
        self.decoder.decode_start(stored, key.crc, number, length, start.as_mut())?;
        self.cache.has_decoded_start();
        Ok(Bytes::from_owner(start))
    }

    /// What a block is compared with beside its CRC-32: what was signed, else its hash if that is
    /// asked for and there is one.
    fn expected(&self, stream: Stream, block: &Block) -> Result<Option<Expected>, Error> {
        if self.structure.manifest().is_some() {
            return self.signed(stream, block).map(Some);
        }
        Ok(match self.check {
            Check::Crc => None,
            Check::Blake3 => plain_hash(self.entry_hash(stream, block)?),
        })
    }

    /// What was signed of a block.
    fn signed(&self, stream: Stream, block: &Block) -> Result<Expected, Error> {
        let lost = || self.damaged(Damage::Entry("no hash that was signed"), stream, block, 0);
        let (page, at) = self.place_of(stream, block.number).ok_or_else(lost)?;
        self.page(stream, page)?.expected(at).ok_or_else(lost)
    }

    /// Reads and decodes the stored bytes of a block, whatever the cache holds.
    fn decode(
        &self,
        fetched: &mut Fetched,
        stream: Stream,
        block: &Block,
        key: &BlockKey,
        expected: impl FnOnce() -> Result<Option<Expected>, Error>,
    ) -> Result<Bytes, Error> {
        let stored = self.stored(fetched, key)?;
        let expected = expected()?;
        let mut plain = self.cache.room(key.logical_length);
        self.decoder
            .decode(stored, key.crc, block.number, expected, plain.as_mut())
            .map_err(|damage| self.damaged(damage, stream, block, key.offset))?;
        Ok(Bytes::from_owner(plain))
    }

    /// The stored bytes of a block, read if need be.
    fn stored<'a>(&self, fetched: &'a mut Fetched, key: &BlockKey) -> Result<&'a [u8], Error> {
        let (what, offset) = ("block", key.offset);
        let range = offset..offset.saturating_add(u64::from(key.length));
        fetched
            .stored(self.id, self.structure.storage(), range)
            .map_err(|source| ErrorKind::Read { what, offset, length: key.length as usize, source })
            .map_err(|kind| self.structure.error(kind))
    }

    /// Checks everything that is known of a block, past the cache: what was decoded before says
    /// nothing of the bytes that are stored now.
    pub(crate) fn check_entry(
        &self,
        stream: Stream,
        block: &Block,
        entry: &Entry,
        signed: Option<Expected>,
    ) -> Result<(), Error> {
        match entry.kind(self.structure.entry_bounds()) {
            Err(what) => {
                let entry_at = self.entry_position(stream, block).unwrap_or(0);
                Err(self.damaged(Damage::Entry(what), stream, block, entry_at))
            }
            // Zeros that were stored are read without their stored bytes. Here they count.
            Ok(kind @ (EntryKind::Data | EntryKind::Nothing)) if entry.length != 0 => {
                // Nothing is signed of a block of no bytes but its entry.
                let signed = signed.filter(|_| kind == EntryKind::Data);
                let Entry { offset, length, crc, .. } = *entry;
                let block =
                    Block { contents: Contents::Stored { offset, length, crc }, ..block.clone() };
                let Some(key) = self.block_key(&block) else {
                    return Ok(());
                };
                let expected = signed.or_else(|| plain_hash(entry.hash));
                self.decode(&mut Fetched::default(), stream, &block, &key, || Ok(expected))
                    .map(drop)
            }
            Ok(EntryKind::Data | EntryKind::Nothing | EntryKind::Sparse) => Ok(()),
            Ok(EntryKind::Parent) => {
                let length = u64::from(block.logical_length());
                self.slices(stream, block.range.start, length).map(drop)
            }
        }
    }

    pub(crate) fn damaged(
        &self,
        damage: Damage,
        stream: Stream,
        block: &Block,
        stored_at: u64,
    ) -> Error {
        let position = block.range.start;
        self.structure.error(ErrorKind::Block { damage, stream, position, stored_at })
    }

    /// The hash in the entry of a block. All zero if there is none. It is read from the file where
    /// it is not kept in memory.
    pub(crate) fn entry_hash(&self, stream: Stream, block: &Block) -> Result<[u8; 32], Error> {
        const HASH_BYTES: u64 = 32;
        if let Contents::Reference(reference) = &block.contents {
            return Ok(reference.hash());
        }
        if self.structure.family() == Family::A {
            return Ok([0; 32]);
        }
        if self.structure.manifest().is_some() {
            return Ok(match self.signed(stream, block)? {
                Expected::Plain(hash) => hash,
                Expected::Stored(_) => [0; 32],
            });
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

    /// The page of the block with a number, and its place there.
    fn place_of(&self, stream: Stream, number: u64) -> Option<(usize, usize)> {
        let pages = self.structure.index().pages(stream);
        let page = pages.partition_point(|page| page.start_block <= number).checked_sub(1)?;
        let in_page = number.checked_sub(pages.get(page)?.start_block)?;
        Some((page, usize::try_from(in_page).ok()?))
    }

    /// Where the entry of a block lies in the file.
    pub(crate) fn entry_position(&self, stream: Stream, block: &Block) -> Option<u64> {
        let (page, in_page) = self.place_of(stream, block.number)?;
        let record = self.structure.index().pages(stream).get(page)?;
        let entry = (in_page as u64).checked_mul(self.structure.family().entry_bytes())?;
        record.offset.checked_add(PAGE_COUNT_BYTES)?.checked_add(entry)
    }
}

fn plain_hash(hash: [u8; 32]) -> Option<Expected> {
    (hash != [0; 32]).then_some(Expected::Plain(hash))
}
