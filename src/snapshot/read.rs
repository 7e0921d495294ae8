//! Slices of a range of a stream, block by block and through parents.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::snapshot::error::{Damage, Error};
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
    /// May read storage and decode.
    Storage,
}

/// One read, in whatever snapshots of a chain it takes place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Read<'a> {
    pub(crate) reach: Reach,
    /// How many references may still be compared with ranges of parents.
    pub(crate) comparisons: &'a Cell<u32>,
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
        let read = Read { reach: Reach::Storage, comparisons: &Cell::new(COMPARISONS_MAX) };
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
        let range = self.check_range(stream, offset, length).ok()?;
        let mut slices = Vec::new();
        let read = Read { reach: Reach::Cache, comparisons: &Cell::new(0) };
        self.collect(read, stream, range, &mut slices).ok()?;
        let blocks = slices.iter().filter(|slice| matches!(slice, Slice::Data(_))).count();
        self.has_served_from_cache(blocks);
        Some(slices)
    }

    /// Appends the slices of a range that was checked. Those before a failure stay.
    pub(crate) fn collect(
        &self,
        read: Read<'_>,
        stream: Stream,
        range: Range<u64>,
        slices: &mut Vec<Slice>,
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
                if position < end {
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

    pub(crate) fn push_part(
        &self,
        read: Read<'_>,
        stream: Stream,
        part: &Part,
        slices: &mut Vec<Slice>,
    ) -> Result<(), Stop> {
        match &part.block.contents {
            Contents::Zeros => slices.push(Slice::Zeros(part.length())),
            Contents::Stored { .. } => {
                let plain = self.block_in_reach(read, stream, &part.block)?;
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
        slices: &mut Vec<Slice>,
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
            Reach::Cache => self.cached_page(stream, page).ok_or(Stop::Miss),
            Reach::Storage => Ok(self.page(stream, page)?),
        }
    }

    fn block_in_reach(&self, read: Read<'_>, stream: Stream, block: &Block) -> Result<Bytes, Stop> {
        match read.reach {
            Reach::Cache => self.cached_block(block).ok_or(Stop::Miss),
            Reach::Storage => Ok(self.block(stream, block)?),
        }
    }

    fn wrong_sum(&self) -> Error {
        let offset = self.structure().header().index_offset;
        self.structure().error(FormatError::Invalid { what: "sum of blocks", offset }.into())
    }
}
