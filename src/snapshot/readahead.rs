//! Notices a reader that goes on sequentially, and says what to fetch before it asks.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

/// How far a reader is read ahead of at most, in bytes: some milliseconds of the fastest clients.
pub const AHEAD_BYTES_MAX: u64 = 4 << 20;

/// A reader that leaves out so many bytes still goes on: file systems have their own blocks between those
/// of files.
const SKIPPED_BYTES_MAX: u64 = 64 * 1024;

/// What a reader has read in order before it is believed to go on, in bytes.
const RUN_BYTES_MIN: u64 = 64 * 1024;

/// One reader. It is read ahead of by as much as it has read in order, so that little is wasted on who
/// soon jumps; when it does, it begins anew.
#[derive(Debug, Clone, Default)]
pub struct ReadAhead {
    /// Where the last read ended.
    next: u64,
    /// Bytes that were read in order.
    run_bytes: u64,
    /// Reads of which that is made.
    run_reads: u64,
    /// Whether something had to be fetched since the reader has jumped.
    has_missed: bool,
    /// Where that ends which it was said to fetch.
    ahead: u64,
}

/// What becomes of a reader with a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It goes on where it was.
    Onward,
    /// It reads somewhere else: what was to be fetched is not wanted any more.
    Jump,
}

impl ReadAhead {
    /// It reads. Says whether that was to be expected.
    pub fn reads(&mut self, offset: u64, length: u64) -> Step {
        let end = offset.saturating_add(length);
        let skipped = offset.checked_sub(self.next);
        if skipped.is_none_or(|skipped| skipped > SKIPPED_BYTES_MAX) {
            *self = Self { next: end, run_bytes: length, run_reads: 1, ..Self::default() };
            return Step::Jump;
        }
        self.next = end;
        self.run_bytes = self.run_bytes.saturating_add(length);
        self.run_reads = self.run_reads.saturating_add(1);
        Step::Onward
    }

    /// Whether it has read in order for long enough to be believed.
    #[must_use]
    pub fn is_sequential(&self) -> bool {
        self.run_reads > 1 && self.run_bytes >= RUN_BYTES_MIN
    }

    /// Where its last read ended.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }

    /// What it reads is not at hand.
    pub fn misses(&mut self) {
        self.has_missed = true;
    }

    /// What to fetch now, of a stream of so many bytes, if a reader may be read ahead of by `bytes_max`.
    /// `None` while it has enough, or while everything it wants is at hand anyway.
    pub fn wants(&mut self, stream_bytes: u64, bytes_max: u64) -> Option<Range<u64>> {
        if !self.is_sequential() || !self.has_missed {
            return None;
        }
        let window = self.run_bytes.min(bytes_max).min(AHEAD_BYTES_MAX);
        let from = self.ahead.max(self.next);
        let to = self.next.saturating_add(window).min(stream_bytes);
        // In large pieces: each is a task for somebody.
        let is_worth_it =
            to.saturating_sub(from) >= window.div_ceil(2).max(1) || to == stream_bytes;
        if from >= to || !is_worth_it {
            return None;
        }
        self.ahead = to;
        Some(from..to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;
    const STREAM: u64 = 1 << 30;

    /// Reads in order, each of which misses. Returns what was wanted after each.
    fn run(ahead: &mut ReadAhead, from: u64, length: u64, count: u64) -> Vec<Option<Range<u64>>> {
        let places = (0..count)
            .scan(from, |place, _| Some(std::mem::replace(place, place.saturating_add(length))));
        places
            .map(|offset| {
                ahead.reads(offset, length);
                ahead.misses();
                ahead.wants(STREAM, AHEAD_BYTES_MAX)
            })
            .collect()
    }

    #[test]
    fn who_reads_in_order_is_read_ahead_of_without_a_gap_and_never_twice() {
        let mut ahead = ReadAhead::default();
        let wanted: Vec<_> = run(&mut ahead, 0, 64 * KIB, 200).into_iter().flatten().collect();
        assert!(wanted.len() < 30, "{wanted:?}");
        for pair in wanted.windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
        }
        let reached = 200 * 64 * KIB;
        let last = wanted.last().unwrap().end;
        assert!((reached + AHEAD_BYTES_MAX / 2..=reached + AHEAD_BYTES_MAX).contains(&last));
    }

    #[test]
    fn it_is_read_ahead_of_by_as_much_as_it_has_read() {
        let mut ahead = ReadAhead::default();
        let wanted = run(&mut ahead, 1 << 20, 64 * KIB, 3);
        let place = |pieces: u64| (1 << 20) + pieces * 64 * KIB;
        assert_eq!(wanted, [None, Some(place(2)..place(4)), Some(place(4)..place(6))]);
    }

    #[test]
    fn who_jumps_is_left_alone_until_it_goes_on_again() {
        let mut ahead = ReadAhead::default();
        assert!(run(&mut ahead, 0, 64 * KIB, 20).iter().flatten().count() > 3);
        for offset in [500 << 20, 5 << 20, 77 << 20, 0] {
            assert_eq!(ahead.reads(offset, 4 * KIB), Step::Jump);
            ahead.misses();
            assert_eq!(ahead.wants(STREAM, AHEAD_BYTES_MAX), None);
            assert!(!ahead.is_sequential());
        }
        assert!(run(&mut ahead, 4 * KIB, 64 * KIB, 2).iter().flatten().count() == 2);
    }

    #[test]
    fn a_small_gap_is_no_jump_and_a_step_back_is_one() {
        let mut ahead = ReadAhead::default();
        run(&mut ahead, 0, 64 * KIB, 4);
        assert_eq!(ahead.reads(260 * KIB, 4 * KIB), Step::Onward);
        assert_eq!(ahead.reads(260 * KIB, 4 * KIB), Step::Jump);
    }

    #[test]
    fn where_everything_is_at_hand_nothing_is_wanted() {
        let mut ahead = ReadAhead::default();
        for number in 0..100 {
            ahead.reads(number * 64 * KIB, 64 * KIB);
            assert_eq!(ahead.wants(STREAM, AHEAD_BYTES_MAX), None);
        }
        assert!(ahead.is_sequential());
    }

    #[test]
    fn neither_the_end_of_the_stream_nor_the_budget_is_overstepped() {
        let mut ahead = ReadAhead::default();
        run(&mut ahead, 0, 256 * KIB, 8);
        assert_eq!(ahead.wants(STREAM, 0), None);
        let mut ahead = ReadAhead::default();
        for number in 0..10 {
            ahead.reads(number * 64 * KIB, 64 * KIB);
            ahead.misses();
            if let Some(wanted) = ahead.wants(1000 * KIB, 200 * KIB) {
                assert!(wanted.end - (number + 1) * 64 * KIB <= 200 * KIB);
                assert!(wanted.end <= 1000 * KIB);
            }
        }
        assert!(ahead.ahead > 640 * KIB, "it was read ahead of");
    }
}
