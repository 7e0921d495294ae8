//! What of a block a read wants.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use bytes::Bytes;

use crate::snapshot::page::Block;

/// Parts up to so many bytes are copied into the replies that they become, and so not before.
pub(crate) const COPIED_LATER_BYTES_MAX: usize = 16 * 1024;

/// But those of longer blocks are copied at once: too much memory for so few bytes even until then.
const KEPT_BLOCK_BYTES_MAX: usize = 256 * 1024;

/// The part of a block that lies in a range.
pub(crate) struct Part {
    pub(crate) range: Range<u64>,
    pub(crate) block: Block,
}

impl Part {
    pub(crate) fn length(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    /// How much of its block there is before its end, in bytes: so much must be decoded. All of it if the part
    /// begins where the block does, since whoever begins there goes on, more often than not.
    pub(crate) fn bytes_to_end(&self) -> u32 {
        let whole = self.block.logical_length();
        let start = self.block.range.start;
        if self.range.start == start {
            return whole;
        }
        u32::try_from(self.range.end.saturating_sub(start)).map_or(whole, |bytes| bytes.min(whole))
    }

    /// The same part of a block of equal length that stands elsewhere.
    pub(crate) fn within(&self, block: &Block) -> Self {
        let into_block = self.range.start.saturating_sub(self.block.range.start);
        let start = block.range.start.saturating_add(into_block);
        let end = start.saturating_add(self.length());
        Self { range: start..end, block: block.clone() }
    }

    /// This part of the plain bytes of its block. It keeps the whole block in memory as long as it
    /// lives, so a short one is a copy: what waits for a client that takes nothing is then never
    /// more than twice what it counts for. The shortest are copied by whoever keeps them.
    pub(crate) fn of(&self, plain: &Bytes) -> Bytes {
        // A block was checked to have its length when it was decoded, and that fits a u32.
        let start = self.range.start.saturating_sub(self.block.range.start);
        let end = start.saturating_add(self.length());
        let index = |position: u64| usize::try_from(position).unwrap_or(usize::MAX);
        let part = plain.slice(index(start).min(plain.len())..index(end).min(plain.len()));
        let is_short = part.len() < plain.len().div_ceil(2);
        let is_copied_later =
            part.len() <= COPIED_LATER_BYTES_MAX && plain.len() <= KEPT_BLOCK_BYTES_MAX;
        if is_short && !is_copied_later { Bytes::copy_from_slice(&part) } else { part }
    }
}
