//! Stored bytes on their way from storage to a decoder: neighbours with one read, in memory that each
//! thread keeps.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::cell::Cell;
use std::io;
use std::ops::Range;

use crate::snapshot::cache::FileId;
use crate::snapshot::storage::StorageBackend;

/// Stored bytes that are fetched with one read at most, where blocks are neighbours. Far more than a system
/// call costs, and little to throw away.
pub(crate) const RUN_BYTES_MAX: u64 = 256 * 1024;

/// Memory that a thread keeps for the next read, in bytes.
const KEPT_BYTES_MAX: usize = 512 * 1024;

thread_local! {
    static KEPT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What one read has fetched last. No other read gets to see it: a file may be replaced under its reader,
/// and what was good a moment ago says nothing then.
#[derive(Debug, Default)]
pub(crate) struct Fetched {
    /// Neighbours of which all are wanted.
    run: Option<(FileId, Range<u64>)>,
    /// Whose bytes lie in `bytes`, and where they begin.
    held: Option<(FileId, Range<u64>)>,
    bytes: Vec<u8>,
}

impl Fetched {
    /// Says that blocks are wanted which lie beside each other, all in this range of the file.
    pub(crate) fn expect(&mut self, file: FileId, run: Range<u64>) {
        self.run = Some((file, run));
    }

    /// Whether a range is part of what is expected.
    pub(crate) fn expects(&self, file: FileId, range: &Range<u64>) -> bool {
        self.run.as_ref().is_some_and(|run| contains(run, file, range))
    }

    /// The stored bytes of a range, read if need be, with what is expected behind them.
    ///
    /// # Errors
    ///
    /// As of the storage, if just these bytes cannot be read.
    pub(crate) fn stored(
        &mut self,
        file: FileId,
        storage: &dyn StorageBackend,
        range: Range<u64>,
    ) -> io::Result<&[u8]> {
        if !self.held.as_ref().is_some_and(|held| contains(held, file, &range)) {
            let run = self.run.take_if(|run| contains(run, file, &range));
            let ahead = run.map(|(_, run)| range.start..run.end).filter(|run| run.end > range.end);
            let is_fetched = ahead.is_some_and(|run| self.fetch(file, storage, run).is_ok());
            if !is_fetched {
                // Where neighbours cannot be read, this one perhaps can.
                self.fetch(file, storage, range.clone())?;
            }
        }
        self.held_part(&range).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// As [`Fetched::stored`], of these bytes alone, if they can be had without waiting.
    pub(crate) fn stored_at_once(
        &mut self,
        file: FileId,
        storage: &dyn StorageBackend,
        range: Range<u64>,
    ) -> Option<&[u8]> {
        if !self.held.as_ref().is_some_and(|held| contains(held, file, &range)) {
            self.held = None;
            let bytes = self.room(&range).ok()?;
            if !storage.read_resident_at(range.start, bytes) {
                return None;
            }
            self.held = Some((file, range.clone()));
        }
        self.held_part(&range)
    }

    fn fetch(
        &mut self,
        file: FileId,
        storage: &dyn StorageBackend,
        range: Range<u64>,
    ) -> io::Result<()> {
        self.held = None;
        storage.read_exact_at(range.start, self.room(&range)?)?;
        self.held = Some((file, range));
        Ok(())
    }

    fn room(&mut self, range: &Range<u64>) -> io::Result<&mut [u8]> {
        let length = usize::try_from(range.end.saturating_sub(range.start));
        let length = length.map_err(|_| io::ErrorKind::InvalidInput)?;
        if self.bytes.capacity() == 0 {
            self.bytes = KEPT.take();
        }
        if self.bytes.len() < length {
            self.bytes.resize(length, 0);
        }
        self.bytes.get_mut(..length).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn held_part(&self, range: &Range<u64>) -> Option<&[u8]> {
        let (_, held) = self.held.as_ref()?;
        let start = usize::try_from(range.start.checked_sub(held.start)?).ok()?;
        let end = usize::try_from(range.end.checked_sub(held.start)?).ok()?;
        self.bytes.get(start..end)
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.capacity() != 0 && bytes.capacity() <= KEPT_BYTES_MAX {
            KEPT.set(bytes);
        }
    }
}

fn contains((of, whole): &(FileId, Range<u64>), file: FileId, range: &Range<u64>) -> bool {
    *of == file && whole.start <= range.start && range.end <= whole.end
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Bytes that say where they lie, up to an end, and what was asked for.
    #[derive(Debug)]
    struct Numbered {
        end: u64,
        reads: Mutex<Vec<Range<u64>>>,
    }

    impl Numbered {
        fn up_to(end: u64) -> Self {
            Self { end, reads: Mutex::default() }
        }
    }

    impl StorageBackend for Numbered {
        fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            let end = offset.saturating_add(buffer.len() as u64);
            self.reads.lock().unwrap().push(offset..end);
            if end > self.end {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for (byte, place) in buffer.iter_mut().zip(offset..) {
                *byte = u8::try_from(place % 251).unwrap();
            }
            Ok(())
        }

        fn bytes(&self) -> u64 {
            self.end
        }

        fn name(&self) -> &str {
            "numbered"
        }
    }

    fn first_byte(fetched: &mut Fetched, file: FileId, storage: &Numbered, at: Range<u64>) -> u8 {
        let bytes = fetched.stored(file, storage, at.clone()).unwrap();
        assert_eq!(bytes.len() as u64, at.end.saturating_sub(at.start));
        bytes[0]
    }

    #[test]
    fn neighbours_that_are_expected_are_one_read_and_others_are_not() {
        let (storage, file, other) = (Numbered::up_to(10_000), FileId::next(), FileId::next());
        let mut fetched = Fetched::default();
        fetched.expect(file, 100..400);
        assert!(fetched.expects(file, &(300..400)));
        assert!(!fetched.expects(file, &(300..401)) && !fetched.expects(other, &(300..400)));
        assert_eq!(first_byte(&mut fetched, file, &storage, 100..200), 100);
        assert_eq!(first_byte(&mut fetched, file, &storage, 200..300), 200);
        assert_eq!(first_byte(&mut fetched, file, &storage, 300..400), (300 % 251) as u8);
        assert_eq!(first_byte(&mut fetched, file, &storage, 400..450), (400 % 251) as u8);
        // The same place of another file is another place.
        assert_eq!(first_byte(&mut fetched, other, &storage, 400..450), (400 % 251) as u8);
        assert_eq!(*storage.reads.lock().unwrap(), [100..400, 400..450, 400..450]);
    }

    #[test]
    fn bytes_before_the_end_of_a_file_that_became_shorter_are_still_read() {
        let (storage, file) = (Numbered::up_to(250), FileId::next());
        let mut fetched = Fetched::default();
        fetched.expect(file, 100..400);
        assert_eq!(first_byte(&mut fetched, file, &storage, 100..200), 100);
        let error = fetched.stored(file, &storage, 200..300).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(first_byte(&mut fetched, file, &storage, 200..250), 200);
    }

    #[test]
    fn what_one_read_has_fetched_is_not_seen_by_the_next() {
        let (storage, file) = (Numbered::up_to(1000), FileId::next());
        for _ in 0..2 {
            first_byte(&mut Fetched::default(), file, &storage, 0..10);
        }
        assert_eq!(*storage.reads.lock().unwrap(), [0..10, 0..10]);
    }
}
