//! What was read before, when it is not in the cache any more.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quick_cache::DefaultHashBuilder;

/// Bytes of the cache for each block that can be remembered.
const CACHE_BYTES_EACH: u64 = 8 * 1024;

/// Slots in which a key may be: the one that was written the longest time ago is given up.
const WAYS: usize = 4;

const SETS_MIN: usize = 64;

/// 16 MiB of memory.
const SETS_MAX: usize = 1 << 20;

/// An era lasts until blocks of this share of the cache were asked for.
const ERAS_EACH: u64 = 4;

/// What came before so many eras is forgotten: two caches full. To keep what comes again no sooner would be
/// of no use, since it is driven out meanwhile.
const ERAS_KEPT: u8 = 8;

/// Which blocks were there before.
///
/// Four bytes for each, so that one that never was is taken for one that was once in millions.
pub(crate) struct Seen {
    hasher: DefaultHashBuilder,
    era_bytes: u64,
    memory: Mutex<Memory>,
}

struct Memory {
    /// The system gives memory for it where something is written.
    slots: Vec<Slot>,
    era: u8,
    /// What has come in this era.
    bytes: u64,
}

/// The upper 24 bits are a part of the hash of a key, the others the era in which it was there. 0 is empty.
type Slot = u32;

const ERA_BITS: Slot = 0xff;

impl Seen {
    /// A memory beside a cache of so many bytes.
    pub(crate) fn beside(cache_bytes: u64) -> Self {
        let slots = usize::try_from(cache_bytes / CACHE_BYTES_EACH).unwrap_or(usize::MAX);
        let sets = (slots / WAYS).clamp(SETS_MIN, SETS_MAX);
        let slots = vec![0; sets.saturating_mul(WAYS)];
        Self {
            hasher: DefaultHashBuilder::default(),
            era_bytes: (cache_bytes / ERAS_EACH).max(1),
            memory: Mutex::new(Memory { slots, era: 0, bytes: 0 }),
        }
    }

    /// Whether a block of so many bytes was there before. From now on it was.
    pub(crate) fn again(&self, key: &impl Hash, bytes: u32) -> bool {
        let hash = self.hasher.hash_one(key);
        let mut memory = self.lock();
        memory.bytes = memory.bytes.saturating_add(u64::from(bytes));
        if memory.bytes >= self.era_bytes {
            memory.bytes = 0;
            memory.era = memory.era.wrapping_add(1);
        }
        memory.again(hash)
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn again(&mut self, hash: u64) -> bool {
        let era = self.era;
        let sets = (self.slots.len() / WAYS).max(1);
        // One half says where, the other what.
        let set = usize::try_from(hash >> 32).unwrap_or(0).checked_rem(sets).unwrap_or(0);
        let mark = u32::try_from(hash & 0xff_ffff).unwrap_or(0).max(1) << ERA_BITS.count_ones();
        let first = set.saturating_mul(WAYS);
        let Some(ways) = self.slots.get_mut(first..first.saturating_add(WAYS)) else {
            return false;
        };
        // Empty ones are older than all others.
        let age = |slot: Slot| if slot == 0 { u8::MAX } else { era.wrapping_sub(era_of(slot)) };
        let known = ways.iter().position(|slot| slot & !ERA_BITS == mark);
        let place = known.or_else(|| {
            let ages = ways.iter().map(|slot| age(*slot)).enumerate();
            ages.max_by_key(|(_, age)| *age).map(|(place, _)| place)
        });
        let Some(slot) = place.and_then(|place| ways.get_mut(place)) else { return false };
        let is_there = known.is_some() && age(*slot) < ERAS_KEPT;
        *slot = mark | u32::from(era);
        is_there
    }
}

fn era_of(slot: Slot) -> u8 {
    let [.., era] = slot.to_be_bytes();
    era
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen").field("era_bytes", &self.era_bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CACHE: u64 = 64 << 20;
    const BLOCK: u32 = 64 << 10;
    /// Of which the cache is full.
    const FULL: u64 = CACHE / BLOCK as u64;

    fn known(seen: &Seen, keys: std::ops::Range<u64>) -> u64 {
        keys.filter(|key| seen.again(key, BLOCK)).count() as u64
    }

    #[test]
    fn what_was_there_is_known_again_while_less_came_than_fills_the_cache_nearly_twice() {
        let seen = Seen::beside(CACHE);
        let some = FULL * 7 / 4;
        assert_eq!(known(&seen, 0..some), 0);
        assert!(known(&seen, 0..some) > some * 19 / 20);
    }

    #[test]
    fn what_came_before_that_is_forgotten() {
        let seen = Seen::beside(CACHE);
        for _ in 0..3 {
            assert_eq!(known(&seen, 0..FULL * 9 / 4), 0);
        }
        // However often it was there, and when eras have no numbers left.
        for _ in 0..500 {
            known(&seen, 0..FULL / 4);
        }
        assert_eq!(known(&seen, 0..FULL / 4), FULL / 4);
        assert_eq!(known(&seen, FULL..4 * FULL), 0);
    }

    #[test]
    fn short_blocks_are_remembered_for_as_many_bytes_as_long_ones() {
        let seen = Seen::beside(CACHE);
        let some = 4 * FULL;
        assert!((0..some).all(|key| !seen.again(&key, BLOCK / 4)));
        let known = (0..some).filter(|key| seen.again(key, BLOCK / 4)).count() as u64;
        assert!(known > some * 3 / 4, "{known} of {some}");
    }
}
