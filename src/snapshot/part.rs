//! What of a block a read wants.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use bytes::Bytes;

use crate::snapshot::page::{Block, Contents};

/// The part of a block that lies in a range.
pub(crate) struct Part {
    pub(crate) range: Range<u64>,
    pub(crate) block: Block,
}

impl Part {
    /// What a converted tar archive declares behind its last block.
    pub(crate) fn behind_blocks(blocks_end: u64, range: Range<u64>) -> Self {
        let block =
            Block { range: blocks_end..range.end, number: u64::MAX, contents: Contents::Zeros };
        Self { range, block }
    }

    pub(crate) fn length(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    /// This part of the plain bytes of its block. It keeps the whole block in memory as long as it
    /// lives, so a short one is a copy: what waits for a client that takes nothing is then never
    /// more than twice what it counts for.
    pub(crate) fn of(&self, plain: &Bytes) -> Bytes {
        // A block was checked to have its length when it was decoded, and that fits a u32.
        let start = self.range.start.saturating_sub(self.block.range.start);
        let end = start.saturating_add(self.length());
        let index = |position: u64| usize::try_from(position).unwrap_or(usize::MAX);
        let part = plain.slice(index(start).min(plain.len())..index(end).min(plain.len()));
        let is_short = part.len() < plain.len().div_ceil(2);
        if is_short { Bytes::copy_from_slice(&part) } else { part }
    }
}
