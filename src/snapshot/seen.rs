//! What was read before, long after it was forgotten.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::{Mutex, PoisonError};

use quick_cache::DefaultHashBuilder;

/// Bytes of a cache for each block that is remembered. Blocks that count are larger, so more of them are
/// remembered than kept.
const CACHE_BYTES_EACH: u64 = 8 * 1024;

const SLOTS_MIN: usize = 1024;

/// 16 MiB of memory.
const SLOTS_MAX: usize = 4 << 20;

/// Which keys were there before: four bytes each, so one that never was is taken for one that was once in
/// billions, and each drives out another at random.
pub(crate) struct Seen {
    hasher: DefaultHashBuilder,
    /// Memory that the system gives where something is written.
    slots: Mutex<Vec<u32>>,
}

impl Seen {
    /// A memory beside a cache of so many bytes.
    pub(crate) fn beside(cache_bytes: u64) -> Self {
        let slots = usize::try_from(cache_bytes / CACHE_BYTES_EACH).unwrap_or(SLOTS_MAX);
        Self {
            hasher: DefaultHashBuilder::default(),
            slots: Mutex::new(vec![0; slots.clamp(SLOTS_MIN, SLOTS_MAX)]),
        }
    }

    /// Whether the key was there before. From now on it was.
    pub(crate) fn again(&self, key: &impl Hash) -> bool {
        let hash = self.hasher.hash_one(key);
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // One half says where, the other what. Nothing is written as 0.
        let (place, mark) = (hash >> 32, (hash & 0xffff_ffff).max(1));
        let at = place.checked_rem(slots.len() as u64).and_then(|at| usize::try_from(at).ok());
        let (Some(slot), Ok(mark)) = (at.and_then(|at| slots.get_mut(at)), u32::try_from(mark))
        else {
            return false;
        };
        std::mem::replace(slot, mark) == mark
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_is_known_again_and_nothing_else() {
        let seen = Seen::beside(64 << 20);
        assert!((0..500_u64).all(|key| !seen.again(&key)));
        let known = (0..500_u64).filter(|key| seen.again(key)).count();
        assert!(known > 450, "{known}");
    }

    #[test]
    fn what_came_long_ago_is_forgotten() {
        let seen = Seen::beside(8 << 20);
        for key in 0..20_000_u64 {
            assert!(!seen.again(&key), "{key}");
        }
        let known = (0..100_u64).filter(|key| seen.again(key)).count();
        assert!(known < 5, "{known}");
    }
}
