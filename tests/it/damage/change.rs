//! What happens to the bytes of a file, drawn from a seed.

use std::ops::Range;

use bytes::Bytes;

/// Something that happens to the bytes of a file.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Flip { at: usize, bit: usize },
    Set { at: usize, to: u8 },
    Fill { range: Range<usize>, with: u8 },
    Cut { length: usize },
}

impl Change {
    /// Somewhere in a range of the file.
    pub(super) fn draw(random: &mut Random, range: &Range<usize>) -> Self {
        let at = range.start + random.below(range.len());
        match random.below(8) {
            0 => Self::Set { at, to: random.below(256) as u8 },
            1 => {
                let end = (at + 1 + random.below(64)).min(range.end);
                Self::Fill { range: at..end, with: [0, 0xff][random.below(2)] }
            }
            _ => Self::Flip { at, bit: random.below(8) },
        }
    }

    pub(super) fn apply(&self, contents: &Bytes) -> Bytes {
        let mut changed = contents.to_vec();
        match self {
            Self::Flip { at, bit } => changed[*at] ^= 1 << bit,
            Self::Set { at, to } => changed[*at] = *to,
            Self::Fill { range, with } => changed[range.clone()].fill(*with),
            Self::Cut { length } => changed.truncate(*length),
        }
        Bytes::from(changed)
    }

    /// Bytes that are other ones now, and perhaps some between them. Empty if none are.
    pub(super) fn changed(&self, contents: &Bytes) -> Range<usize> {
        match self {
            Self::Flip { at, .. } | Self::Set { at, .. } => *at..at + 1,
            Self::Fill { range, .. } => range.clone(),
            Self::Cut { length } => *length..contents.len(),
        }
    }
}

/// SplitMix64: small, and the same on every machine.
pub(super) struct Random(u64);

impl Random {
    /// Another sequence for each file and purpose.
    pub(super) fn new(name: &str, purpose: u64) -> Self {
        Self(u64::from(crc32fast::hash(name.as_bytes())) << 8 | purpose)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
