//! Slices of a range of a stream, block by block and through parents.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::snapshot::error::{Damage, Error};
use crate::snapshot::fetch::{Fetched, RUN_BYTES_MAX};
use crate::snapshot::file::File;
use crate::snapshot::format::{FormatError, Stream};
use crate::snapshot::page::{Block, Contents, Page};
use crate::snapshot::part::Part;
use crate::snapshot::reference::{COMPARISONS_MAX, Origin, Reference};

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

/// Takes the slices of a read, in order.
pub trait Sink {
    /// The next.
    fn push(&mut self, slice: Slice);
}

impl Sink for Vec<Slice> {
    fn push(&mut self, slice: Slice) {
        Self::push(self, slice);
    }
}

/// For those who do not want the bytes.
struct Nowhere;

impl Sink for Nowhere {
    fn push(&mut self, _: Slice) {}
}

/// A read that did not come to its end.
#[derive(Debug)]
pub struct Interrupted {
    /// The bytes before those that cannot be served: up to the damaged block.
    pub before: Vec<Slice>,
    /// What is wrong.
    pub error: Error,
}

/// How far a read may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// What is in the cache. Never waits.
    Cache,
    /// What can be decoded from the system's page cache beside that, up to a bound. Never waits.
    PageCache,
    /// May read storage, decode, and wait for others who do.
    Storage,
}

/// How much effort a read may cost that must not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// What is in the cache is handed out.
    Cached,
    /// Blocks that are not are decoded, a few, if the system has their stored bytes in memory.
    Decode,
}

/// Whether a read says something of what will be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// What is read now is likely to be read again.
    Random,
    /// It was said that this will be read soon.
    Announced,
    /// Everything is read in order. However often a block is touched by that, the cache takes it for one
    /// that was never read, so that copies of whole disks do not drive out what others use.
    Sequential,
}

/// Plain bytes of blocks that one read may decode where it must not wait: a few tens of microseconds.
const DECODED_AT_ONCE_BYTES_MAX: u64 = 128 * 1024;

/// What one read may still do and has done, in whatever snapshots of a chain.
#[derive(Debug)]
pub(crate) struct Account {
    /// References that may be compared with ranges of parents.
    comparisons: Cell<u32>,
    /// Plain bytes that may be decoded at once.
    at_once_bytes: Cell<u64>,
    /// Blocks that were in the cache.
    hits: Cell<usize>,
    /// Stored bytes of neighbouring blocks.
    pub(crate) fetched: RefCell<Fetched>,
}

impl Account {
    pub(crate) fn new() -> Self {
        Self {
            comparisons: Cell::new(COMPARISONS_MAX),
            at_once_bytes: Cell::new(DECODED_AT_ONCE_BYTES_MAX),
            hits: Cell::new(0),
            fetched: RefCell::default(),
        }
    }

    /// Takes one of the comparisons, if there is one left.
    pub(crate) fn compares(&self) -> bool {
        let left = self.comparisons.get().checked_sub(1);
        left.is_some_and(|left| {
            self.comparisons.set(left);
            true
        })
    }

    /// Takes so many of the bytes that may be decoded at once, if there are enough left.
    fn decodes_at_once(&self, bytes: u64) -> bool {
        let left = self.at_once_bytes.get().checked_sub(bytes);
        left.is_some_and(|left| {
            self.at_once_bytes.set(left);
            true
        })
    }
}

/// One read, in whatever snapshots of a chain it takes place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Read<'a> {
    pub(crate) reach: Reach,
    pub(crate) pattern: Pattern,
    pub(crate) account: &'a Account,
    /// For whom it is, if that is somebody who has not asked.
    pub(crate) reader: Option<Reader<'a>>,
}

/// A reader for whom bytes are fetched before it asks, and who moves on meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    /// Where its last read ended.
    pub position: &'a AtomicU64,
    /// Where in the stream that counts from, in bytes.
    pub from: u64,
}

impl Reader<'_> {
    fn has_passed(self, end: u64) -> bool {
        self.from.saturating_add(self.position.load(Ordering::Relaxed)) >= end
    }
}

impl<'a> Read<'a> {
    /// One that may wait, of whole blocks.
    pub(crate) fn of_storage(account: &'a Account) -> Self {
        Self { reach: Reach::Storage, pattern: Pattern::Sequential, account, reader: None }
    }

    /// Whether its reader has read all before a place of the stream. That may have been driven out of the cache
    /// since.
    pub(crate) fn is_for_nobody(self, end: u64) -> bool {
        self.reader.is_some_and(|reader| reader.has_passed(end))
    }

    pub(crate) fn may_wait(self) -> bool {
        self.reach == Reach::Storage
    }
}

/// Why a read ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Something is not in the cache.
    Miss,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl File {
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
        self.slices_or_part(stream, offset, length, Pattern::Sequential)
            .map_err(|interrupted| interrupted.error)
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
        pattern: Pattern,
    ) -> Result<Vec<Slice>, Interrupted> {
        let mut slices = Vec::new();
        let account = Account::new();
        let read = Read { pattern, ..Read::of_storage(&account) };
        let outcome = self
            .check_range(stream, offset, length)
            .map_err(Stop::Failed)
            .and_then(|range| self.collect(read, stream, range, &mut slices));
        match outcome {
            Ok(()) => Ok(slices),
            Err(Stop::Failed(error)) => Err(Interrupted { before: slices, error }),
            Err(Stop::Miss) => Err(Interrupted { before: slices, error: self.wrong_sum() }),
        }
    }

    /// As [`File::slices`], if everything is in the cache. Neither waits nor reads storage.
    #[must_use]
    pub fn cached_slices(&self, stream: Stream, offset: u64, length: u64) -> Option<Vec<Slice>> {
        let mut slices = Vec::new();
        let (effort, pattern) = (Effort::Cached, Pattern::Random);
        let is_whole = self.slices_at_once(stream, offset, length, effort, pattern, &mut slices);
        is_whole.then_some(slices)
    }

    /// As [`File::slices`], if that can be had without waiting. Otherwise `false`, and what was pushed is
    /// not all of it. Whatever is wrong is told by [`File::slices`].
    pub fn slices_at_once(
        &self,
        stream: Stream,
        offset: u64,
        length: u64,
        effort: Effort,
        pattern: Pattern,
        slices: &mut dyn Sink,
    ) -> bool {
        let Ok(range) = self.check_range(stream, offset, length) else { return false };
        let account = Account::new();
        let reach = match effort {
            Effort::Cached => Reach::Cache,
            Effort::Decode => Reach::PageCache,
        };
        let read = Read { reach, pattern, account: &account, reader: None };
        let is_whole = self.collect(read, stream, range, slices).is_ok();
        if is_whole {
            self.has_served_from_cache(account.hits.get());
        }
        is_whole
    }

    /// Sees that a range is in the cache for its reader, as far as it lies in the stream and before that reader.
    /// May read storage and decode. What is wrong with it is told to those who read it.
    pub fn fetch(&self, stream: Stream, range: Range<u64>, reader: Reader<'_>) {
        let end = range.end.min(self.size(stream));
        let account = Account::new();
        let read = Read { reader: Some(reader), ..Read::of_storage(&account) };
        // A damaged block ends it: whoever reads in order will not come further either.
        let _ = self.collect(read, stream, range.start.min(end)..end, &mut Nowhere);
    }

    /// Appends the slices of a range that was checked. Those before a failure stay.
    pub(crate) fn collect(
        &self,
        read: Read<'_>,
        stream: Stream,
        range: Range<u64>,
        slices: &mut dyn Sink,
    ) -> Result<(), Stop> {
        let blocks_end = self.stream_size(stream).blocks_end;
        let mut position = range.start;
        while position < range.end {
            if position >= blocks_end {
                // What a converted tar archive declares behind its last block.
                slices.push(Slice::Zeros(range.end.saturating_sub(position)));
                return Ok(());
            }
            let page = self.page_in_reach(read, stream, self.page_at(stream, position))?;
            let mut at = page.find(position);
            let before = position;
            while position < range.end
                && let Some(block) = page.block(at)
            {
                let end = block.range.end.min(range.end);
                if read.is_for_nobody(end) {
                    position = position.max(end);
                } else if position < end {
                    if read.may_wait() {
                        self.expect_neighbours(read.account, &page, at, &block, range.end);
                    }
                    self.push_part(read, stream, &Part { range: position..end, block }, slices)?;
                    position = end;
                }
                at = at.saturating_add(1);
            }
            // Pages are checked to follow each other when they are loaded, so this cannot be; if
            // it ever is, a read must fail with it rather than be short.
            if position == before {
                return Err(self.wrong_sum().into());
            }
        }
        Ok(())
    }

    /// Sees that blocks which lie beside each other in the file are fetched with one read.
    fn expect_neighbours(
        &self,
        account: &Account,
        page: &Page,
        at: usize,
        block: &Block,
        end: u64,
    ) {
        let Contents::Stored { offset, length, .. } = block.contents else { return };
        let mut fetched = account.fetched.borrow_mut();
        let stored = offset..offset.saturating_add(u64::from(length));
        if !fetched.expects(self.id(), &stored) {
            let run_end = page.stored_run(at, offset, end, RUN_BYTES_MAX);
            fetched.expect(self.id(), offset..run_end.max(stored.end));
        }
    }

    pub(crate) fn push_part(
        &self,
        read: Read<'_>,
        stream: Stream,
        part: &Part,
        slices: &mut dyn Sink,
    ) -> Result<(), Stop> {
        match &part.block.contents {
            Contents::Zeros => slices.push(Slice::Zeros(part.length())),
            Contents::Stored { .. } => {
                let plain = self.block_in_reach(read, stream, part)?;
                slices.push(Slice::Data(part.of(&plain)));
            }
            Contents::Reference(reference) => {
                self.push_reference(read, stream, part, reference, slices)?;
            }
            Contents::Corrupt(what) => {
                let entry_at = self.entry_position(stream, &part.block).unwrap_or(0);
                return Err(self
                    .damaged(Damage::Entry(what), stream, &part.block, entry_at)
                    .into());
            }
        }
        Ok(())
    }

    fn push_reference(
        &self,
        read: Read<'_>,
        stream: Stream,
        part: &Part,
        reference: &Reference,
        slices: &mut dyn Sink,
    ) -> Result<(), Stop> {
        let lost = || self.unresolvable("its parent is not open", stream, &part.block);
        match self.origin(read, stream, &part.block, reference)? {
            Origin::Place { parent } => {
                let parent = self.parents().get(*parent).ok_or_else(lost)?;
                let end = part.range.end.min(parent.size(stream)).max(part.range.start);
                parent.collect(read, stream, part.range.start..end, slices)?;
                let behind = part.range.end.saturating_sub(end);
                if behind != 0 {
                    slices.push(Slice::Zeros(behind));
                }
                Ok(())
            }
            Origin::Block { ancestor, stream: there, block } => {
                // It lies elsewhere than where its reader will come to it.
                let read = Read { reader: None, ..read };
                let ancestor = self.ancestors().get(*ancestor).ok_or_else(lost)?;
                if !self.prove(read, reference, &ancestor.file, *there, block)? {
                    let why = "the block of the parent has other bytes than its hash says";
                    return Err(self.unresolvable(why, stream, &part.block).into());
                }
                ancestor.file.push_part(read, *there, &part.within(block), slices)
            }
            Origin::Nowhere(why) => Err(self.unresolvable(why, stream, &part.block).into()),
        }
    }

    fn page_in_reach(
        &self,
        read: Read<'_>,
        stream: Stream,
        page: usize,
    ) -> Result<Arc<Page>, Stop> {
        match read.reach {
            // A page describes thousands of blocks, and takes as long to decode as ten of them.
            Reach::Cache | Reach::PageCache => self.cached_page(stream, page).ok_or(Stop::Miss),
            Reach::Storage => Ok(self.page(stream, page)?),
        }
    }

    /// The plain bytes of a block, or its first bytes as far as a part of it is wanted.
    fn block_in_reach(&self, read: Read<'_>, stream: Stream, part: &Part) -> Result<Bytes, Stop> {
        let block = &part.block;
        match read.reach {
            Reach::Storage => self.block(read, stream, block, part.bytes_to_end()),
            Reach::Cache | Reach::PageCache => {
                if let Some(plain) = self.cached_block(read.pattern, block) {
                    read.account.hits.set(read.account.hits.get().saturating_add(1));
                    return Ok(plain);
                }
                let bytes = u64::from(block.logical_length());
                let may_decode = read.reach == Reach::PageCache
                    && self.decodes_without_waiting()
                    && read.account.decodes_at_once(bytes);
                let plain = may_decode
                    .then(|| self.block_at_once(read, block, part.bytes_to_end()))
                    .flatten();
                plain.ok_or(Stop::Miss)
            }
        }
    }

    fn wrong_sum(&self) -> Error {
        let offset = self.structure().header().index_offset;
        self.structure().error(FormatError::Invalid { what: "sum of blocks", offset }.into())
    }
}
