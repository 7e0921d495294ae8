//! What a client is owed: headers, slices of blocks and zeros, in the order in which they leave.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BytesMut};

use crate::nbd::Piece;
use crate::nbd::error_counts::ErrorCounts;
use crate::nbd::wire::Errno;

/// Zeros that are sent lie here once, for all clients.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Pieces up to this length are copied behind the header before them. That costs less than a vector of
/// their own, and they keep no block in memory while they wait for the client.
pub(crate) const COPIED_BYTES_MAX: usize = 16 * 1024;

/// Copied bytes in one piece of memory, about. It grows by doubling, so without an end to that a client would
/// cost twice what it is owed.
const COPIES_BYTES_MAX: usize = 64 * 1024;

/// A queue of bytes on their way out. Slices of blocks are kept as they are, never copied; zeros
/// take no memory.
///
/// It is a [`Buf`]: a driver writes from it, all at once with vectored writes.
#[derive(Debug, Default)]
pub struct Outbox {
    pieces: VecDeque<Piece>,
    /// Headers that were written since the last slice.
    small: BytesMut,
    remaining: u64,
    errors: ErrorCounts,
}

impl Outbox {
    /// Bytes that are owed.
    #[must_use]
    pub fn owed_bytes(&self) -> u64 {
        self.remaining
    }

    /// An error was appended.
    pub(crate) fn count_error(&mut self, error: Errno) {
        self.errors.count(error);
    }

    /// The errors among what was appended until now.
    #[must_use]
    pub fn errors(&self) -> ErrorCounts {
        self.errors
    }

    /// Appends a copy of some bytes: a header, a name.
    pub fn push_copy(&mut self, bytes: &[u8]) {
        self.small.extend_from_slice(bytes);
        self.remaining = self.remaining.saturating_add(bytes.len() as u64);
    }

    /// Appends a part of a reply.
    pub fn push(&mut self, piece: Piece) {
        match piece {
            Piece::Data(data) if data.len() <= COPIED_BYTES_MAX => {
                if self.small.len().saturating_add(data.len()) > COPIES_BYTES_MAX {
                    self.seal();
                }
                self.push_copy(&data);
            }
            // There would be nothing to write while there is something to send.
            Piece::Zeros(0) => {}
            Piece::Data(_) | Piece::Zeros(_) => {
                self.seal();
                self.remaining = self.remaining.saturating_add(piece.bytes());
                self.pieces.push_back(piece);
            }
        }
    }

    /// Gives memory back while nothing is owed. It is asked for again with the next reply.
    pub fn rest(&mut self) {
        if self.remaining == 0 {
            self.pieces = VecDeque::new();
            self.small = BytesMut::new();
        }
    }

    /// What was copied becomes a piece of its own, before what comes next.
    fn seal(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push_back(Piece::Data(self.small.split().freeze()));
        }
    }
}

impl Buf for Outbox {
    fn remaining(&self) -> usize {
        usize::try_from(self.remaining).unwrap_or(usize::MAX)
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&self.small, chunk)
    }

    /// # Panics
    ///
    /// If more is taken than there is, as [`Buf`] demands.
    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining(), "advance beyond what is owed");
        let mut count = count as u64;
        self.remaining = self.remaining.saturating_sub(count);
        while count > 0 {
            let Some(front) = self.pieces.front_mut() else {
                // The assertion above: the rest lies among the copied bytes.
                self.small.advance(usize::try_from(count).unwrap_or(usize::MAX));
                return;
            };
            let taken = count.min(front.bytes());
            count = count.saturating_sub(taken);
            front.advance(taken);
            if front.bytes() == 0 {
                self.pieces.pop_front();
            }
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let small = (!self.small.is_empty()).then_some(&*self.small);
        let chunks = self.pieces.iter().flat_map(chunks).chain(small);
        let mut count = 0;
        for (slot, chunk) in slices.iter_mut().zip(chunks) {
            *slot = IoSlice::new(chunk);
            count += 1;
        }
        count
    }
}

/// Bytes of a part of a reply, as slices to send. Zeros repeat.
fn chunks(piece: &Piece) -> impl Iterator<Item = &[u8]> {
    let (data, mut zeros) = match piece {
        Piece::Data(data) => (Some(&**data), 0),
        Piece::Zeros(count) => (None, *count),
    };
    let zeros = std::iter::from_fn(move || {
        let some = some_zeros(zeros);
        zeros = zeros.saturating_sub(some.len() as u64);
        (!some.is_empty()).then_some(some)
    });
    data.into_iter().chain(zeros)
}

fn chunk(piece: &Piece) -> &[u8] {
    match piece {
        Piece::Data(data) => data,
        Piece::Zeros(count) => some_zeros(*count),
    }
}

fn some_zeros(count: u64) -> &'static [u8] {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    ZEROS.get(..count).unwrap_or(&ZEROS)
}

impl Piece {
    /// Forgets the first bytes, which were sent.
    fn advance(&mut self, count: u64) {
        match self {
            Self::Data(data) => data.advance(usize::try_from(count).unwrap_or(usize::MAX)),
            Self::Zeros(zeros) => *zeros = zeros.saturating_sub(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn outbox() -> (Outbox, Vec<u8>) {
        let mut outbox = Outbox::default();
        outbox.push_copy(b"header");
        outbox.push(Piece::Data(Bytes::from(vec![7; 1000])));
        outbox.push(Piece::Zeros(200_000));
        outbox.push_copy(b"next");
        outbox.push(Piece::Data(Bytes::from_static(b"tiny")));
        let expected = [&b"header"[..], &[7; 1000], &vec![0; 200_000], b"nexttiny"].concat();
        (outbox, expected)
    }

    #[test]
    fn what_goes_in_comes_out_in_order_however_it_is_taken() {
        for step in [1, 5, 999, 65_536, 1 << 20] {
            let (mut outbox, expected) = outbox();
            assert_eq!(outbox.owed_bytes(), expected.len() as u64);
            let mut taken = Vec::new();
            while outbox.has_remaining() {
                let chunk = outbox.chunk();
                let count = chunk.len().min(step);
                taken.extend_from_slice(&chunk[..count]);
                outbox.advance(count);
            }
            assert_eq!(taken, expected);
            assert_eq!(outbox.owed_bytes(), 0);
        }
    }

    #[test]
    fn one_vectored_write_takes_everything() {
        let (mut outbox, expected) = outbox();
        let mut slices = [IoSlice::new(&[]); 64];
        let count = outbox.chunks_vectored(&mut slices);
        assert_eq!(slices[..count].iter().flat_map(|s| s.to_vec()).collect::<Vec<_>>(), expected);
        outbox.advance(expected.len());
        assert!(!outbox.has_remaining());
        assert_eq!(outbox.chunks_vectored(&mut [IoSlice::new(&[]); 4]), 0);
    }

    #[test]
    fn pieces_of_no_bytes_do_not_stand_in_the_way() {
        let mut outbox = Outbox::default();
        outbox.push(Piece::Zeros(0));
        outbox.push(Piece::Data(Bytes::new()));
        assert!(!outbox.has_remaining() && outbox.chunk().is_empty());
        outbox.push(Piece::Zeros(0));
        outbox.push(Piece::Data(Bytes::from_static(b"tiny")));
        assert_eq!(outbox.chunk(), b"tiny");
    }

    #[test]
    fn blocks_are_not_copied() {
        let block = Bytes::from(vec![7; 65_536]);
        let mut outbox = Outbox::default();
        outbox.push_copy(b"header");
        outbox.push(Piece::Data(block.clone()));
        outbox.advance(6);
        assert_eq!(outbox.chunk().as_ptr(), block.as_ptr());
    }

    #[test]
    fn short_pieces_of_a_block_keep_it_no_longer_in_memory() {
        let block = Bytes::from(vec![7; 65_536]);
        let mut outbox = Outbox::default();
        outbox.push(Piece::Data(block.slice(..COPIED_BYTES_MAX)));
        assert!(block.is_unique());
        assert_eq!(outbox.copy_to_bytes(COPIED_BYTES_MAX), block.slice(..COPIED_BYTES_MAX));
        outbox.push(Piece::Data(block.slice(..=COPIED_BYTES_MAX)));
        assert!(!block.is_unique());
    }

    #[test]
    fn many_short_pieces_take_little_more_memory_than_they_count() {
        let block = Bytes::from(vec![7; 5000]);
        let mut outbox = Outbox::default();
        for _ in 0..2000 {
            outbox.push(Piece::Data(block.clone()));
        }
        assert!(outbox.small.capacity() <= 2 * COPIES_BYTES_MAX, "{}", outbox.small.capacity());
        assert!(outbox.pieces.iter().all(|piece| piece.bytes() <= COPIES_BYTES_MAX as u64));
        let sent = outbox.copy_to_bytes(outbox.remaining());
        assert!(sent.len() == 10_000_000 && sent.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn what_is_owed_survives_a_rest_and_memory_does_not() {
        let mut outbox = Outbox::default();
        outbox.push_copy(&[7; 100]);
        outbox.rest();
        assert_eq!(outbox.remaining(), 100);
        outbox.advance(100);
        outbox.rest();
        assert_eq!((outbox.small.capacity(), outbox.pieces.capacity()), (0, 0));
    }
}
