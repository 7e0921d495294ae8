//! Which offset is read next.

use std::ops::Range;

/// Reads of this size never touch the same block of a snapshot or cluster of an image twice, and no
/// readahead of a few blocks helps them.
const WINDOW_BYTES: u64 = 128 * 1024;

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Pattern {
    Sequential,
    Random,
}

/// The offsets that one connection reads.
pub(crate) struct Plan {
    order: Order,
    block: u64,
    random: Random,
}

enum Order {
    /// Blocks of `part`, again and again or once.
    Sequential { part: Range<u64>, next: u64, once: bool },
    /// Any of so many blocks.
    Random { blocks: u64 },
    /// One block of each window.
    Distinct { windows: std::vec::IntoIter<u64> },
}

/// What all connections have in common.
#[derive(Clone, Copy)]
pub(crate) struct Outline {
    pub(crate) pattern: Pattern,
    /// Bytes from the start of the export that are read.
    pub(crate) span: u64,
    pub(crate) block: u64,
    pub(crate) connections: u64,
    /// Every connection reads everything in order, and not its part.
    pub(crate) same: bool,
    pub(crate) once: bool,
    pub(crate) distinct: bool,
    pub(crate) seed: u64,
}

impl Outline {
    /// The offsets of one of the connections.
    pub(crate) fn plan(&self, connection: u64) -> Plan {
        let share = |total: u64, index: u64| total * index / self.connections;
        let part = |total: u64| share(total, connection)..share(total, connection + 1);
        let blocks = self.span / self.block;
        let order = match self.pattern {
            Pattern::Sequential => {
                let part = if self.same { 0..blocks } else { part(blocks) };
                Order::Sequential { next: part.start, part, once: self.once }
            }
            Pattern::Random if self.distinct => {
                let windows = self.span / WINDOW_BYTES;
                // The same order for all connections, of which each takes its part.
                let mut order: Vec<u64> = (0..windows).collect();
                let mut random = Random::new(self.seed);
                for index in (1..windows).rev() {
                    order.swap(index as usize, random.below(index + 1) as usize);
                }
                let part = part(windows);
                order.truncate(part.end as usize);
                let windows = order.split_off(part.start as usize).into_iter();
                Order::Distinct { windows }
            }
            Pattern::Random => Order::Random { blocks },
        };
        let random = Random::new(self.seed.wrapping_add(1 + connection));
        Plan { order, block: self.block, random }
    }
}

impl Iterator for Plan {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        match &mut self.order {
            Order::Sequential { part, next, once } => {
                if *next == part.end {
                    if *once || part.is_empty() {
                        return None;
                    }
                    *next = part.start;
                }
                *next += 1;
                Some((*next - 1) * self.block)
            }
            Order::Random { blocks } => Some(self.random.below(*blocks) * self.block),
            Order::Distinct { windows } => {
                let inside = self.random.below(WINDOW_BYTES / self.block);
                Some(windows.next()? * WINDOW_BYTES + inside * self.block)
            }
        }
    }
}

/// SplitMix64: a multiplication or two for each number, and the same ones for a seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let mixed = mixed ^ (mixed >> 31);
        ((u128::from(mixed) * u128::from(limit)) >> 64) as u64
    }
}

/// Whether blocks of this size fit into the windows of distinct reads.
pub(crate) fn fits_window(block: u64) -> bool {
    WINDOW_BYTES.is_multiple_of(block)
}
