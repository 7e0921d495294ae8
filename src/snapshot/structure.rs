//! What a file is: header, family and master index, recognised and checked. Format section 4.
//!
//! This is all that can be known of a snapshot without a key, without its parents and without
//! decoding a block. Opening reads the header, the master index and one page, whatever the size.

use std::sync::Arc;

use crate::snapshot::error::{Error, ErrorKind};
use crate::snapshot::format::header::{self, FILE_BYTES_MIN, Header, HeaderError, Layout};
use crate::snapshot::format::index::{
    self, Entry, EntryBounds, MASTER_INDEX_BYTES_MAX, MASTER_INDEX_FIXED_BYTES, MasterIndex,
    PAGE_RECORD_BYTES, PageRecord,
};
use crate::snapshot::format::{Family, FormatError, HEADER_BYTES, Stream};
use crate::snapshot::manifest::{Checked, CheckedPage, Manifest};
use crate::snapshot::page::{Hashes, Page};
use crate::snapshot::pieces::each_piece;
use crate::snapshot::storage::StorageBackend;

/// Largest block accepted unless the caller says otherwise, in plain bytes. Format section 15.
pub const BLOCK_BYTES_MAX_DEFAULT: u32 = 16 << 20;

/// Largest dictionary accepted, in bytes. Format section 15.
const DICTIONARY_BYTES_MAX: u64 = 1 << 20;

/// Largest metadata accepted, in bytes. Format section 15.
const METADATA_BYTES_MAX: u64 = 64 << 20;

/// A file that was recognised as a snapshot.
#[derive(Debug)]
pub struct Structure {
    storage: Arc<dyn StorageBackend>,
    header: Header,
    family: Family,
    index: MasterIndex,
    block_bytes_max: u32,
    signed: Option<Signed>,
}

/// What says that the snapshot is as it was signed, and what was found to be so.
#[derive(Debug)]
struct Signed {
    manifest: Manifest,
    checked: Checked,
}

/// The entries of an index page, as they stand in the file.
#[derive(Debug)]
pub(crate) struct PageEntries {
    pub(crate) entries: Vec<Entry>,
    /// BLAKE3 of the stored bytes of data entries, where a manifest has it.
    pub(crate) stored_hashes: Option<Vec<[u8; 32]>>,
}

impl Structure {
    /// Recognises a snapshot. `block_bytes_max` bounds the memory that one block may take.
    ///
    /// # Errors
    ///
    /// [`Error`] if the storage fails or the file is not a snapshot of any known release.
    pub fn read(storage: Arc<dyn StorageBackend>, block_bytes_max: u32) -> Result<Self, Error> {
        let name = storage.name().to_owned();
        recognise(storage, block_bytes_max).map_err(|kind| Error { file: name, kind })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Which releases laid the file out like this.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// The master index.
    #[must_use]
    pub fn index(&self) -> &MasterIndex {
        &self.index
    }

    /// Length of the file in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.storage.bytes()
    }

    /// What to call the file in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        self.storage.name()
    }

    /// Takes a manifest that was checked against this snapshot. From then on nothing is read that
    /// was not signed but by [`Structure::entries`].
    pub(crate) fn signed(self, manifest: Manifest, checked: Checked) -> Self {
        Self { signed: Some(Signed { manifest, checked }), ..self }
    }

    /// The manifest that covers what is read, if there is one.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        self.signed.as_ref().map(|signed| &signed.manifest)
    }

    /// The entries of a page, which are those that were signed if the snapshot has a manifest.
    pub(crate) fn page_entries(&self, stream: Stream, page: usize) -> Result<PageEntries, Error> {
        let Some(signed) = &self.signed else {
            let entries = self.entries(&self.record(stream, page)?)?;
            return Ok(PageEntries { entries, stored_hashes: None });
        };
        match signed.manifest.page(self, stream, page) {
            Ok(CheckedPage { entries, own_hashes }) => {
                Ok(PageEntries { entries, stored_hashes: own_hashes })
            }
            Err(error) => Err(self.error(ErrorKind::Manifest(Box::new(error)))),
        }
    }

    fn record(&self, stream: Stream, page: usize) -> Result<PageRecord, Error> {
        self.index.pages(stream).get(page).copied().ok_or_else(|| {
            let offset = self.header.index_offset;
            self.error(FormatError::Invalid { what: "page number", offset }.into())
        })
    }

    /// Number of blocks of both streams: where the last page ends, since numbering runs through.
    pub(crate) fn blocks(&self) -> u64 {
        let last = Stream::ALL.into_iter().rev().find_map(|stream| self.index.pages(stream).last());
        last.map_or(0, |last| last.start_block.saturating_add(last.entries(self.family)))
    }

    /// All pages, with the number of each in its stream.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (Stream, usize, &PageRecord)> {
        Stream::ALL.into_iter().flat_map(|stream| {
            let records = self.index.pages(stream).iter().enumerate();
            records.map(move |(page, record)| (stream, page, record))
        })
    }

    /// The entries of one page, exactly as they stand in the file, whether signed or not.
    ///
    /// # Errors
    ///
    /// [`Error`] if the page cannot be read or is not as long as it says.
    pub fn entries(&self, record: &PageRecord) -> Result<Vec<Entry>, Error> {
        read_entries(&*self.storage, record, self.family).map_err(|kind| self.error(kind))
    }

    /// Bounds against which the entries of this file are checked.
    #[must_use]
    pub fn entry_bounds(&self) -> EntryBounds {
        EntryBounds {
            index_offset: self.header.index_offset,
            logical_bytes_max: self.block_bytes_max,
            has_parents: !self.header.parents.is_empty(),
        }
    }

    /// Where a page must end in its stream: where the next one begins. `None` for the last page.
    #[must_use]
    pub fn page_end(&self, stream: Stream, page: usize) -> Option<u64> {
        self.index.pages(stream).get(page.checked_add(1)?).map(|next| next.start_logical)
    }

    /// The text or JSON behind the master index. Empty if there is none.
    ///
    /// # Errors
    ///
    /// [`Error`] if it cannot be read or is larger than 64 MiB.
    pub fn metadata(&self) -> Result<Vec<u8>, Error> {
        if let Some(signed) = &self.signed {
            return Ok(signed.checked.metadata.clone());
        }
        self.span("metadata", self.header.metadata, METADATA_BYTES_MAX)
    }

    /// The dictionary for Zstandard. Empty if there is none.
    ///
    /// # Errors
    ///
    /// [`Error`] if it cannot be read, is larger than 1 MiB, or does not fill the room between the
    /// header and the first block: a dictionary of another length decodes to other bytes.
    pub fn dictionary(&self) -> Result<Vec<u8>, Error> {
        if let Some(signed) = &self.signed {
            return Ok(signed.checked.dictionary.clone());
        }
        let dictionary = self.span("dictionary", self.header.dictionary, DICTIONARY_BYTES_MAX)?;
        if let Some(span) = self.header.dictionary
            && let Some(first) = self.first_stored_byte()?
            && (span.offset, span.end()) != (HEADER_BYTES, first)
        {
            let kind = FormatError::Invalid { what: "dictionary length", offset: span.offset };
            return Err(self.error(kind.into()));
        }
        Ok(dictionary)
    }

    /// Where the first block or page lies. Format section 2: there are no gaps.
    fn first_stored_byte(&self) -> Result<Option<u64>, Error> {
        let Some(record) = self.index.first_page() else {
            return Ok(None);
        };
        let blocks = self.entries(&record)?;
        let stored = blocks.iter().filter(|entry| entry.length != 0).map(|entry| entry.offset);
        Ok(stored.chain([record.offset]).min())
    }

    /// Loads and packs a page that must end at `end`, if that is known.
    pub(crate) fn page(
        &self,
        stream: Stream,
        page: usize,
        end: Option<u64>,
    ) -> Result<Page, Error> {
        let (record, entries) = (self.record(stream, page)?, self.page_entries(stream, page)?);
        self.pack(&entries, record, end)
    }

    /// As [`Page::pack`]. Hashes are kept where nothing may be read again without being checked.
    pub(crate) fn pack(
        &self,
        PageEntries { entries, stored_hashes }: &PageEntries,
        record: PageRecord,
        end: Option<u64>,
    ) -> Result<Page, Error> {
        let page = Page::pack(entries, record, self.entry_bounds(), end)
            .map_err(|error| self.error(error.into()))?;
        Ok(match (&self.signed, stored_hashes) {
            (None, _) => page,
            (Some(_), Some(stored)) => page.with_hashes(Hashes::Stored(stored.clone().into())),
            (Some(_), None) => {
                let plain = entries.iter().map(|entry| entry.hash).collect();
                page.with_hashes(Hashes::Plain(plain))
            }
        })
    }

    /// BLAKE3 of all bytes of the file.
    pub(crate) fn digest(&self) -> Result<[u8; 32], Error> {
        let mut hasher = blake3::Hasher::new();
        each_piece(&*self.storage, "the file", 0..self.file_bytes(), |piece| {
            hasher.update(piece);
        })
        .map_err(|kind| self.error(kind))?;
        Ok(*hasher.finalize().as_bytes())
    }

    pub(crate) fn storage(&self) -> &dyn StorageBackend {
        &*self.storage
    }

    /// The blocks of a stream do not add up to what was declared.
    pub(crate) fn stream_size_error(&self, stream: Stream, declared: u64, found: u64) -> Error {
        let index_offset = self.header.index_offset;
        self.error(ErrorKind::StreamSize { stream, declared, found, index_offset })
    }

    pub(crate) fn error(&self, kind: ErrorKind) -> Error {
        Error { file: self.name().to_owned(), kind }
    }

    fn span(
        &self,
        what: &'static str,
        span: Option<header::Span>,
        limit: u64,
    ) -> Result<Vec<u8>, Error> {
        let Some(span) = span else {
            return Ok(Vec::new());
        };
        if span.length > limit {
            let kind = FormatError::Limit { what, offset: span.offset, value: span.length, limit };
            return Err(self.error(kind.into()));
        }
        read(&*self.storage, what, span.offset, span.length).map_err(|kind| self.error(kind))
    }
}

fn recognise(
    storage: Arc<dyn StorageBackend>,
    block_bytes_max: u32,
) -> Result<Structure, ErrorKind> {
    let file_bytes = storage.bytes();
    let area = read(&*storage, "header", 0, HEADER_BYTES.min(file_bytes))?;
    let candidates = header::candidates(&area, file_bytes).map_err(ErrorKind::Header)?;
    if file_bytes < FILE_BYTES_MIN {
        let what = "the file";
        return Err(FormatError::Truncated { what, offset: file_bytes }.into());
    }
    let mut survivors = Vec::new();
    let mut complaint = None;
    for header in candidates {
        match index_and_family(&*storage, &header) {
            Ok((index, family)) => survivors.push((header, index, family)),
            Err(error) => complaint = complaint.or(Some(error)),
        }
    }
    // An empty file has no pages, and then both layouts say the same.
    let ambiguous =
        survivors.len() > 1 && survivors.iter().any(|(_, index, _)| index.first_page().is_some());
    match survivors.into_iter().next() {
        Some((header, ..)) if ambiguous => {
            Err(ErrorKind::Ambiguous { index_offset: header.index_offset })
        }
        Some((header, index, family)) => {
            index.check_pages(&header, family)?;
            Ok(Structure { storage, header, family, index, block_bytes_max, signed: None })
        }
        None => Err(complaint.unwrap_or(ErrorKind::Header(HeaderError::Magic))),
    }
}

/// Format section 4, steps 4 and 5, for one reading of the header.
fn index_and_family(
    storage: &dyn StorageBackend,
    header: &Header,
) -> Result<(MasterIndex, Family), ErrorKind> {
    let at = header.index_offset;
    let bytes = read_master_index(storage, at)?;
    let (index, index_bytes) = MasterIndex::decode(&bytes, at)?;
    if !index.agrees_with(header, index_bytes) {
        return Err(FormatError::Invalid { what: "master index", offset: at }.into());
    }
    let family = family_of(storage, header, &index)?;
    Ok((index, family))
}

/// Reads no more than the index itself, so that metadata behind it costs nothing, and nothing
/// before its counts were compared with the bytes that are left.
fn read_master_index(storage: &dyn StorageBackend, at: u64) -> Result<Vec<u8>, ErrorKind> {
    let what = "master index";
    let available = storage.bytes().saturating_sub(at);
    let mut length = MASTER_INDEX_FIXED_BYTES;
    let mut count_at = at;
    for _ in Stream::ALL {
        let count = read(storage, what, count_at, 8)?;
        let count = count.try_into().map_or(u64::MAX, u64::from_le_bytes);
        let records = count.saturating_mul(PAGE_RECORD_BYTES);
        length = length.saturating_add(records);
        if length > available {
            return Err(FormatError::Truncated { what, offset: count_at }.into());
        }
        if length > MASTER_INDEX_BYTES_MAX {
            let (value, limit) = (length, MASTER_INDEX_BYTES_MAX);
            return Err(FormatError::Limit { what, offset: at, value, limit }.into());
        }
        count_at = count_at.saturating_add(records).saturating_add(8);
    }
    read(storage, what, at, length)
}

/// The first page tells: its length fits one size of entry only.
fn family_of(
    storage: &dyn StorageBackend,
    header: &Header,
    index: &MasterIndex,
) -> Result<Family, ErrorKind> {
    let newest = if header.chunking.is_some() { Family::D } else { Family::C };
    let Some(record) = index.first_page() else {
        return Ok(match header.layout {
            Layout::ParentList => newest,
            Layout::OptionalParent => Family::B,
        });
    };
    let wrong = FormatError::Invalid { what: "first page", offset: record.offset };
    let below_index = record
        .offset
        .checked_add(u64::from(record.length))
        .is_some_and(|end| end <= header.index_offset);
    if record.offset < HEADER_BYTES || !below_index {
        return Err(wrong.into());
    }
    let count = read(storage, "first page", record.offset, index::PAGE_COUNT_BYTES)?;
    let count = count.try_into().map_or(0, u64::from_le_bytes);
    let families: &[Family] = match header.layout {
        Layout::ParentList => &[newest],
        Layout::OptionalParent => &[Family::A, Family::B],
    };
    let fits = |family: &&Family| {
        let entries = family.entry_bytes().checked_mul(count);
        let page = entries.and_then(|bytes| bytes.checked_add(index::PAGE_COUNT_BYTES));
        (1..=index::PAGE_ENTRIES_MAX).contains(&count) && page == Some(u64::from(record.length))
    };
    families.iter().find(fits).copied().ok_or_else(|| wrong.into())
}

fn read_entries(
    storage: &dyn StorageBackend,
    record: &PageRecord,
    family: Family,
) -> Result<Vec<Entry>, ErrorKind> {
    let bytes = read(storage, "index page", record.offset, u64::from(record.length))?;
    Ok(index::decode_page(&bytes, record, family)?)
}

/// Reads a structure whose length was checked against a limit before.
pub(crate) fn read(
    storage: &dyn StorageBackend,
    what: &'static str,
    offset: u64,
    length: u64,
) -> Result<Vec<u8>, ErrorKind> {
    let Ok(length) = usize::try_from(length) else {
        return Err(FormatError::Truncated { what, offset }.into());
    };
    let mut bytes = vec![0; length];
    match storage.read_exact_at(offset, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(source) => Err(ErrorKind::Read { what, offset, length, source }),
    }
}
