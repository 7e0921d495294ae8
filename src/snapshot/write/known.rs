//! Which blocks are stored already, by the hash of their plain bytes.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

/// Most blocks that are remembered. Beyond it blocks are stored again, so the file grows, but not
/// the memory: 7/8 of 2^23 places in the table, of 49 bytes each, are 392 MiB, and with blocks of
/// 64 KiB that covers 448 GiB of distinct data.
const BLOCKS_MAX: usize = 7 << 20;

/// Where the stored bytes of a block lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) crc: u32,
}

/// Filled in the order of the image by the thread that writes, and looked at by the threads that
/// compress, to save themselves work. Equal hashes are equal bytes, so their length is equal too.
#[derive(Debug)]
pub(super) struct Known {
    blocks: RwLock<HashMap<[u8; 32], Stored>>,
    blocks_max: usize,
}

impl Default for Known {
    fn default() -> Self {
        Self { blocks: RwLock::default(), blocks_max: BLOCKS_MAX }
    }
}

impl Known {
    pub(super) fn get(&self, hash: &[u8; 32]) -> Option<Stored> {
        self.blocks.read().unwrap_or_else(PoisonError::into_inner).get(hash).copied()
    }

    /// A place never changes, so it does not matter when a thread sees it.
    pub(super) fn insert(&self, hash: [u8; 32], stored: Stored) {
        let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        if blocks.len() < self.blocks_max {
            blocks.entry(hash).or_insert(stored);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_stays_and_memory_is_bounded() {
        let known = Known { blocks_max: 2, ..Known::default() };
        let stored = |offset| Stored { offset, length: 1, crc: 0 };
        for number in 0..4 {
            known.insert([number; 32], stored(u64::from(number)));
        }
        known.insert([1; 32], stored(99));
        let places: Vec<_> = (0..4).map(|number| known.get(&[number; 32])).collect();
        assert_eq!(places, [Some(stored(0)), Some(stored(1)), None, None]);
    }
}
