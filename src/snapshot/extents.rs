//! What ranges of a stream are made of. Reads index pages; a block only where nothing else tells
//! what a reference into a parent means.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;
use std::sync::Arc;

use crate::snapshot::error::Error;
use crate::snapshot::file::File;
use crate::snapshot::format::index::PAGE_ENTRIES_MAX;
use crate::snapshot::format::{FormatError, Stream};
use crate::snapshot::page::{Block, Contents, Page};
use crate::snapshot::read::{Account, Read, Stop};
use crate::snapshot::reference::{Origin, Reference};

/// Most blocks that one question about extents looks at: 16 GiB of blocks of 64 KiB. What lies
/// behind is for the next question, so that none takes long.
const BLOCKS_MAX: u32 = 1 << 18;

/// Most blocks of a snapshot that is searched for shared ones. Each takes 8 bytes of memory during
/// the search, and no number in a file may decide how much that is.
const SHARED_SEARCH_BLOCKS_MAX: u64 = 1 << 22;

/// What can be asked of the bytes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Property {
    /// 1 if they read as zeros and are not stored, else 0.
    Hole,
    /// 1 if they are stored once for several places of the snapshot that stores them, else 0.
    Shared,
    /// How many generations of parents back they come from. 0 for those of the snapshot itself,
    /// and for holes.
    ParentDepth,
}

/// A range of a stream of which a property is the same throughout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Bytes of the stream.
    pub range: Range<u64>,
    /// The property.
    pub value: u32,
}

/// A range of a stream that is all hole or all data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of the stream.
    pub range: Range<u64>,
    /// Whether they read as zeros and cost nothing.
    pub is_hole: bool,
}

/// Where blocks are stored that are used more than once, sorted.
#[derive(Debug)]
pub(crate) struct SharedBlocks(Box<[u64]>);

impl File {
    /// What a range of a stream is made of: neighbours of one kind are one extent. Reads index
    /// pages, so call it where that stalls nobody. What comes back may end before the range does
    /// if that is long: ask again from there.
    ///
    /// # Errors
    ///
    /// [`Error`] if the range is not inside the stream.
    pub fn extents(
        &self,
        stream: Stream,
        range: Range<u64>,
    ) -> Result<impl Iterator<Item = Result<Extent, Error>>, Error> {
        let runs = self.runs(stream, range, Property::Hole)?;
        Ok(runs.map(|run| run.map(|Run { range, value }| Extent { range, is_hole: value != 0 })))
    }

    /// As [`File::extents`], of any property.
    ///
    /// # Errors
    ///
    /// [`Error`] if the range is not inside the stream.
    pub fn runs(
        &self,
        stream: Stream,
        range: Range<u64>,
        property: Property,
    ) -> Result<Runs<'_>, Error> {
        let length = range.end.saturating_sub(range.start);
        let rest = self.check_range(stream, range.start, length)?;
        let account = Account::new();
        Ok(Runs { file: self, stream, rest, property, account, blocks: 0, page: None })
    }

    /// Whether [`Property::Shared`] can be asked: not of snapshots with so many blocks that the
    /// search would take too much memory, nor of children of such.
    #[must_use]
    pub fn can_tell_shared(&self) -> bool {
        let ancestors = self.ancestors().iter().map(|ancestor| &*ancestor.file);
        ancestors.chain([self]).all(Self::has_few_blocks)
    }

    fn has_few_blocks(&self) -> bool {
        let pages = |stream| self.structure().index().pages(stream).len() as u64;
        let pages = Stream::ALL.into_iter().map(pages).fold(0, u64::saturating_add);
        pages.saturating_mul(PAGE_ENTRIES_MAX) <= SHARED_SEARCH_BLOCKS_MAX
    }

    fn shared_blocks(&self) -> Result<&SharedBlocks, Error> {
        if let Some(known) = self.shared.get() {
            return Ok(known);
        }
        // Two who ask at once both search: no lock is held while storage is read.
        let found = self.find_shared_blocks()?;
        Ok(self.shared.get_or_init(|| found))
    }

    fn find_shared_blocks(&self) -> Result<SharedBlocks, Error> {
        let mut stored = Vec::new();
        if !self.has_few_blocks() {
            return Ok(SharedBlocks(Box::default()));
        }
        for stream in Stream::ALL {
            for number in 0..self.structure().index().pages(stream).len() {
                let page = self.page(stream, number)?;
                let blocks = (0..).map_while(|at| page.block(at));
                stored.extend(blocks.filter_map(|block| match block.contents {
                    Contents::Stored { offset, .. } => Some(offset),
                    Contents::Zeros | Contents::Reference(_) | Contents::Corrupt(_) => None,
                }));
            }
        }
        stored.sort_unstable();
        let next = stored.iter().skip(1);
        let pairs = stored.iter().zip(next).filter(|(one, next)| one == next);
        let mut shared: Vec<u64> = pairs.map(|(offset, _)| *offset).collect();
        shared.dedup();
        Ok(SharedBlocks(shared.into()))
    }
}

impl SharedBlocks {
    fn contain(&self, block: &Block) -> bool {
        match block.contents {
            Contents::Stored { offset, .. } => self.0.binary_search(&offset).is_ok(),
            Contents::Zeros | Contents::Reference(_) | Contents::Corrupt(_) => false,
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
struct Question<'a> {
    property: Property,
    /// What it may still cost.
    account: &'a Account,
}

/// The property of bytes from a position on, up to where it may be another one.
#[derive(Debug, Clone, Copy)]
struct Step {
    end: u64,
    value: u32,
    is_hole: bool,
}

impl Step {
    fn hole(end: u64, property: Property) -> Self {
        Self { end, value: u32::from(property == Property::Hole), is_hole: true }
    }
}

impl File {
    /// The property of a block that holds a position, through whatever parents.
    fn step(
        &self,
        stream: Stream,
        block: &Block,
        position: u64,
        question: Question<'_>,
    ) -> Result<Step, Error> {
        let property = question.property;
        let end = block.range.end;
        let value = match (&block.contents, property) {
            (Contents::Zeros, _) => return Ok(Step::hole(end, property)),
            (Contents::Reference(reference), _) => {
                return self.step_of_reference(stream, block, reference, position, question);
            }
            (Contents::Stored { .. }, Property::Shared) => self.shared_blocks()?.contain(block),
            (Contents::Stored { .. } | Contents::Corrupt(_), _) => false,
        };
        Ok(Step { end, value: u32::from(value), is_hole: false })
    }

    fn step_of_reference(
        &self,
        stream: Stream,
        block: &Block,
        reference: &Reference,
        position: u64,
        question: Question<'_>,
    ) -> Result<Step, Error> {
        let Question { property, account } = question;
        let lost = || self.unresolvable("its parent is not open", stream, block);
        let read = Read::of_storage(account);
        let origin = self.origin(read, stream, block, reference).map_err(|stop| match stop {
            Stop::Failed(error) => error,
            Stop::Miss => lost(),
        })?;
        let end = block.range.end;
        let (step, depth) = match origin {
            Origin::Place { parent } => {
                let parent = self.parents().get(*parent).ok_or_else(lost)?;
                if position >= parent.size(stream) {
                    return Ok(Step::hole(end, property));
                }
                let Some(there) = parent.block_at(stream, position)? else {
                    return Ok(Step::hole(parent.size(stream).min(end), property));
                };
                let step = parent.step(stream, &there, position, question)?;
                (Step { end: step.end.min(parent.size(stream)).min(end), ..step }, 1)
            }
            Origin::Block { ancestor, stream, block: there } => {
                let ancestor = self.ancestors().get(*ancestor).ok_or_else(lost)?;
                let into_block = position.saturating_sub(block.range.start);
                let position = there.range.start.saturating_add(into_block);
                let step = ancestor.file.step(*stream, there, position, question)?;
                // Back to where the block stands here.
                let left = there.range.end.saturating_sub(step.end);
                (Step { end: end.saturating_sub(left), ..step }, ancestor.depth)
            }
            Origin::Nowhere(why) => return Err(self.unresolvable(why, stream, block)),
        };
        let is_deeper = property == Property::ParentDepth && !step.is_hole;
        let value = if is_deeper { step.value.saturating_add(depth) } else { step.value };
        Ok(Step { value, ..step })
    }
}

/// Runs of a range, one after another. See [`File::runs`].
#[derive(Debug)]
pub struct Runs<'a> {
    file: &'a File,
    stream: Stream,
    rest: Range<u64>,
    property: Property,
    /// For all of them together.
    account: Account,
    /// How many blocks were looked at.
    blocks: u32,
    /// The page of the previous block, so that it is found once.
    page: Option<(usize, Arc<Page>)>,
}

impl Runs<'_> {
    /// The end of the block at the start of `rest`, or of the part of it that has one property,
    /// and the property.
    fn next_block(&mut self) -> Result<(u64, u32), Error> {
        let position = self.rest.start;
        if position >= self.file.stream_size(self.stream).blocks_end {
            return Ok((self.rest.end, u32::from(self.property == Property::Hole)));
        }
        let number = self.file.page_at(self.stream, position);
        let page = match &self.page {
            Some((same, page)) if *same == number => Arc::clone(page),
            _ => self.file.page(self.stream, number)?,
        };
        let block = page.block(page.find(position));
        self.page = Some((number, page));
        let structure = self.file.structure();
        let offset = structure.header().index_offset;
        let wrong = || FormatError::Invalid { what: "sum of block lengths", offset };
        let block = block.ok_or_else(|| structure.error(wrong().into()))?;
        self.blocks = self.blocks.saturating_add(1);
        let question = Question { property: self.property, account: &self.account };
        let step = self.file.step(self.stream, &block, position, question)?;
        Ok((step.end.max(position.saturating_add(1)).min(self.rest.end), step.value))
    }
}

impl Iterator for Runs<'_> {
    type Item = Result<Run, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.rest.start;
        let mut value = None;
        while self.rest.start < self.rest.end && self.blocks < BLOCKS_MAX {
            match self.next_block() {
                Ok((end, same)) if *value.get_or_insert(same) == same => self.rest.start = end,
                Ok(_) => break,
                // What came before the broken page is still true; the error comes next.
                Err(_) if self.rest.start > start => break,
                Err(error) => {
                    self.rest.start = self.rest.end;
                    return Some(Err(error));
                }
            }
        }
        value.map(|value| Ok(Run { range: start..self.rest.start, value }))
    }
}
