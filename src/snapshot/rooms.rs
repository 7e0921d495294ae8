//! Memory for decoded blocks, which is used again and again.
//!
//! A cache that is full gets a block and gives one up at the same moment, thousands of times a second. An
//! allocator cuts small things out of what was given up, or hands it to the system and gets it back
//! page by page: then the process takes a third more memory than the cache counts, and a tenth of its time.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The smallest size, in bytes.
const BYTES_MIN: usize = 64;

/// Memory that nobody uses and that is kept all the same, in bytes.
const IDLE_BYTES_MAX: usize = 4 << 20;

/// Where the memory of blocks comes from and goes to. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Rooms(Arc<Mutex<Idle>>);

#[derive(Default)]
struct Idle {
    /// By their size, each of which is a capacity.
    by_size: Vec<(usize, Vec<Vec<u8>>)>,
    bytes: usize,
}

/// Memory for one block. It goes back when it is dropped.
pub(crate) struct Room {
    bytes: Vec<u8>,
    rooms: Rooms,
}

/// What a block of a length takes, in bytes.
pub(crate) fn room_bytes(length: usize) -> usize {
    let length = length.max(BYTES_MIN);
    // Eight sizes between a power of two and the next: an eighth is wasted at most.
    let step = length.checked_next_power_of_two().map_or(1, |power| (power / 16).max(1));
    length.checked_next_multiple_of(step).unwrap_or(length)
}

impl Rooms {
    /// Memory for so many bytes, all zero: a faulty decoder must not show what was there before.
    pub(crate) fn take(&self, length: usize) -> Room {
        let size = room_bytes(length);
        // The lock is not held any more when the system is asked for memory.
        let idle = self.lock().take(size);
        let mut bytes = idle.unwrap_or_else(|| Vec::with_capacity(size));
        bytes.clear();
        bytes.resize(length, 0);
        Room { bytes, rooms: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    fn take(&mut self, size: usize) -> Option<Vec<u8>> {
        let at = self.by_size.binary_search_by_key(&size, |(size, _)| *size).ok()?;
        let (_, idle) = self.by_size.get_mut(at)?;
        let bytes = idle.pop()?;
        self.bytes = self.bytes.saturating_sub(size);
        Some(bytes)
    }

    /// Returns what is too much.
    fn put(&mut self, bytes: Vec<u8>) -> Option<Vec<u8>> {
        let size = bytes.capacity();
        if self.bytes.saturating_add(size) > IDLE_BYTES_MAX {
            return Some(bytes);
        }
        let at = match self.by_size.binary_search_by_key(&size, |(size, _)| *size) {
            Ok(at) => at,
            Err(at) => {
                self.by_size.insert(at, (size, Vec::new()));
                at
            }
        };
        if let Some((_, idle)) = self.by_size.get_mut(at) {
            idle.push(bytes);
            self.bytes = self.bytes.saturating_add(size);
        }
        None
    }
}

impl AsRef<[u8]> for Room {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsMut<[u8]> for Room {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // What is too much is freed when the lock is not held any more.
        let _too_much = self.rooms.lock().put(bytes);
    }
}

impl fmt::Debug for Rooms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rooms").field("idle_bytes", &self.lock().bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn an_eighth_is_wasted_at_most_and_nothing_of_usual_blocks() {
        for length in [4096, 16_384, 65_536, 1 << 20, 16 << 20, 1408, 7 << 16] {
            assert_eq!(room_bytes(length), length, "{length}");
        }
        for length in (1..200_000).step_by(37) {
            let bytes = room_bytes(length);
            assert!(
                bytes >= length && bytes <= BYTES_MIN.max(length + length / 8),
                "{length}: {bytes}"
            );
        }
        assert_eq!(room_bytes(0), BYTES_MIN);
    }

    #[test]
    fn what_is_given_back_is_used_again_and_shows_nothing_of_before() {
        let rooms = Rooms::default();
        let mut room = rooms.take(65_000);
        room.as_mut().fill(7);
        let place = room.as_ref().as_ptr();
        let block = Bytes::from_owner(room);
        let part = block.slice(5..10);
        drop(block);
        assert_eq!(rooms.lock().bytes, 0, "a slice of it is still there");
        drop(part);
        assert_eq!(rooms.lock().bytes, 65_536);
        let again = rooms.take(64_000);
        assert_eq!(again.as_ref().as_ptr(), place);
        assert!(again.as_ref().len() == 64_000 && again.as_ref().iter().all(|byte| *byte == 0));
        assert_eq!(rooms.lock().bytes, 0);
    }

    #[test]
    fn what_nobody_uses_is_bounded() {
        let rooms = Rooms::default();
        let taken: Vec<Room> = (0..200).map(|number| rooms.take(60_000 + number * 100)).collect();
        drop(taken);
        let idle = rooms.lock().bytes;
        assert!((IDLE_BYTES_MAX - 100_000..=IDLE_BYTES_MAX).contains(&idle), "{idle}");
        drop(rooms.take(16 << 20));
        assert_eq!(rooms.lock().bytes, idle);
    }
}
