//! Structured replies: what one request is answered with, as chunks that each say what they are.
//! Section "Structured reply chunk message".
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::nbd::limits::NAME_BYTES_MAX;
use crate::nbd::reply::{ReplyTo, cut, push_chunk_header, simple_reply};
use crate::nbd::wire::{ChunkType, Errno, chunk_flags};
use crate::nbd::{Outbox, Piece, Replies};

/// Whether the bytes of a read may be cut into several chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragments {
    /// One chunk for each run of data and each hole.
    Many,
    /// One chunk, with the zeros of holes where there is data too. `NBD_CMD_FLAG_DF`.
    One,
}

/// Answers a request that succeeds without any bytes.
pub(crate) fn push_done(to: ReplyTo, outbox: &mut Outbox) {
    match to.replies {
        Replies::Simple => outbox.push_copy(&simple_reply(None, to.cookie)),
        Replies::Structured | Replies::Extended => {
            push_chunk_header(to, chunk_flags::DONE, ChunkType::NONE, 0, outbox);
        }
    }
}

/// Ends a reply with an error, where the client can take them in words, and with the place of the
/// export if it is about one. A simple reply has a number only.
pub(crate) fn push_error(
    to: ReplyTo,
    error: Errno,
    message: &str,
    position: Option<u64>,
    outbox: &mut Outbox,
) {
    /// Error number and length of the message.
    const FIXED_BYTES: usize = 6;
    outbox.count_error(error);
    if to.replies == Replies::Simple {
        outbox.push_copy(&simple_reply(Some(error), to.cookie));
        return;
    }
    let message = cut(message, NAME_BYTES_MAX).as_bytes();
    let message_bytes = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let position = position.map(u64::to_be_bytes);
    let position = position.as_ref().map_or(&[][..], |position| &position[..]);
    let kind = if position.is_empty() { ChunkType::ERROR } else { ChunkType::ERROR_OFFSET };
    let payload_bytes = FIXED_BYTES.saturating_add(message.len()).saturating_add(position.len());
    push_chunk_header(to, chunk_flags::DONE, kind, payload_bytes as u64, outbox);
    outbox.push_copy(&error.0.to_be_bytes());
    outbox.push_copy(&message_bytes.to_be_bytes());
    outbox.push_copy(message);
    outbox.push_copy(position);
}

/// Answers a read with all its bytes, in whatever form the client gets them.
pub(crate) fn push_whole(
    to: ReplyTo,
    position: u64,
    mut pieces: impl AsMut<Vec<Piece>>,
    fragments: Fragments,
    outbox: &mut Outbox,
) {
    match to.replies {
        Replies::Simple => {
            outbox.push_copy(&simple_reply(None, to.cookie));
            pieces.as_mut().drain(..).for_each(|piece| outbox.push(piece));
        }
        Replies::Structured | Replies::Extended => {
            push_content(to, position, pieces, fragments, true, outbox);
        }
    }
}

/// Sends bytes of the export from `position` on: data as it is, holes as their length. With
/// `is_last` the last chunk ends the reply, and there is one even if there are no bytes.
pub(crate) fn push_content(
    to: ReplyTo,
    mut position: u64,
    mut pieces: impl AsMut<Vec<Piece>>,
    fragments: Fragments,
    is_last: bool,
    outbox: &mut Outbox,
) {
    let pieces = pieces.as_mut();
    let mut left: u64 = pieces.iter().map(Piece::bytes).sum();
    if left == 0 && is_last {
        push_done(to, outbox);
    }
    let mut pieces = pieces.drain(..);
    while left > 0 {
        let run = Run::first_of(pieces.as_slice(), fragments);
        left = left.saturating_sub(run.bytes);
        let flags = if left == 0 && is_last { chunk_flags::DONE } else { 0 };
        let pieces = pieces.by_ref().take(run.pieces);
        if run.is_hole {
            push_chunk_header(to, flags, ChunkType::OFFSET_HOLE, 12, outbox);
            outbox.push_copy(&position.to_be_bytes());
            outbox.push_copy(&bounded(run.bytes).to_be_bytes());
            pieces.for_each(drop);
        } else {
            push_data_header(to, flags, position, run.bytes, outbox);
            pieces.for_each(|piece| outbox.push(piece));
        }
        position = position.saturating_add(run.bytes);
    }
}

/// Begins a chunk of data, of which so many bytes follow.
pub(crate) fn push_data_header(
    to: ReplyTo,
    flags: u16,
    position: u64,
    bytes: u64,
    outbox: &mut Outbox,
) {
    push_chunk_header(to, flags, ChunkType::OFFSET_DATA, bytes.saturating_add(8), outbox);
    outbox.push_copy(&position.to_be_bytes());
}

/// Neighbours that make one chunk.
struct Run {
    pieces: usize,
    bytes: u64,
    is_hole: bool,
}

impl Run {
    /// The run at the beginning. It has bytes if any piece has: pieces without belong to the run
    /// that they lie in or before.
    fn first_of(pieces: &[Piece], fragments: Fragments) -> Self {
        let is_zeros = |piece: &Piece| matches!(piece, Piece::Zeros(_));
        let mut filled = pieces.iter().filter(|piece| piece.bytes() != 0);
        let is_hole = match fragments {
            Fragments::Many => filled.next().is_some_and(is_zeros),
            Fragments::One => filled.all(is_zeros),
        };
        let belongs = |piece: &&Piece| {
            fragments == Fragments::One || piece.bytes() == 0 || is_zeros(piece) == is_hole
        };
        let run = || pieces.iter().take_while(belongs);
        Self { pieces: run().count(), bytes: run().map(Piece::bytes).sum(), is_hole }
    }
}

/// Holes are bounded by the longest read, far below 4 GiB.
fn bounded(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::{Buf, Bytes};

    use super::*;

    const COOKIE: u64 = 0x0102_0304_0506_0708;
    const TO: ReplyTo = ReplyTo { cookie: COOKIE, offset: 1000, replies: Replies::Structured };

    fn data(bytes: &'static [u8]) -> Piece {
        Piece::Data(Bytes::from_static(bytes))
    }

    fn sent(push: impl FnOnce(&mut Outbox)) -> Vec<u8> {
        let mut outbox = Outbox::default();
        push(&mut outbox);
        assert_eq!(outbox.owed_bytes(), outbox.remaining() as u64);
        outbox.copy_to_bytes(outbox.remaining()).to_vec()
    }

    /// A chunk, by hand.
    fn chunk(flags: u8, kind: u16, parts: &[&[u8]]) -> Vec<u8> {
        let payload = parts.concat();
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let fields = [&kind.to_be_bytes()[..], &COOKIE.to_be_bytes(), &length, &payload].concat();
        [&[0x66, 0x8e, 0x33, 0xef, 0, flags][..], &fields].concat()
    }

    #[test]
    fn runs_of_data_and_of_zeros_are_one_chunk_each() {
        let pieces = vec![
            data(b""),
            data(b"ab"),
            Piece::Zeros(0),
            data(b"c"),
            Piece::Zeros(1 << 20),
            data(b""),
            Piece::Zeros(5),
            data(b"d"),
            Piece::Zeros(0),
        ];
        let expected = |last| {
            [
                chunk(0, 1, &[&1000_u64.to_be_bytes(), b"abc"]),
                chunk(0, 2, &[&1003_u64.to_be_bytes(), &1_048_581_u32.to_be_bytes()]),
                chunk(last, 1, &[&1_049_584_u64.to_be_bytes(), b"d"]),
            ]
            .concat()
        };
        for is_last in [false, true] {
            let pieces = pieces.clone();
            let sent =
                sent(|outbox| push_content(TO, 1000, pieces, Fragments::Many, is_last, outbox));
            assert_eq!(sent, expected(u8::from(is_last)));
        }
    }

    /// "If the area being read contains both data and a hole, the server MUST use
    /// `NBD_REPLY_TYPE_OFFSET_DATA` with the zeroes explicitly present."
    #[test]
    fn an_unfragmented_reply_has_one_chunk_of_content() {
        let offset = 7_u64.to_be_bytes();
        let hole = [&offset[..], &30_u32.to_be_bytes()];
        for (pieces, expected) in [
            (vec![Piece::Zeros(3), data(b"ab")], chunk(1, 1, &[&offset, b"\0\0\0ab"])),
            (vec![data(b"ab"), Piece::Zeros(3)], chunk(1, 1, &[&offset, b"ab\0\0\0"])),
            (vec![Piece::Zeros(10), data(b""), Piece::Zeros(20)], chunk(1, 2, &hole)),
            (vec![data(b"ab"), data(b"cd")], chunk(1, 1, &[&offset, b"abcd"])),
        ] {
            let sent = sent(|outbox| push_content(TO, 7, pieces, Fragments::One, true, outbox));
            assert_eq!(sent, expected);
        }
    }

    #[test]
    fn no_bytes_are_a_chunk_only_where_the_reply_ends() {
        for pieces in [vec![], vec![data(b""), Piece::Zeros(0)]] {
            for fragments in [Fragments::Many, Fragments::One] {
                let push = |is_last| {
                    let pieces = pieces.clone();
                    sent(|outbox| push_content(TO, 7, pieces, fragments, is_last, outbox))
                };
                assert_eq!(push(true), chunk(1, 0, &[]));
                assert_eq!(push(false), b"");
            }
        }
    }

    #[test]
    fn an_error_has_a_number_a_sentence_and_perhaps_a_place() {
        let head = [&[0, 0, 0, 5, 0, 4][..], b"oh n"];
        let push = |position| sent(|outbox| push_error(TO, Errno::EIO, "oh n", position, outbox));
        assert_eq!(push(None), chunk(1, 0x8001, &head));
        let [number, words] = head;
        assert_eq!(push(Some(9)), chunk(1, 0x8002, &[number, words, &9_u64.to_be_bytes()]));
    }

    /// Section "Conventions": no string is longer than 4096 bytes.
    #[test]
    fn a_sentence_is_cut_at_a_character() {
        let long = "ü".repeat(40_000);
        let sent = sent(|outbox| push_error(TO, Errno::EIO, &long, Some(1), outbox));
        let number = 5_u32.to_be_bytes();
        let parts =
            [&number[..], &4096_u16.to_be_bytes(), &long.as_bytes()[..4096], &1_u64.to_be_bytes()];
        assert_eq!(sent, chunk(1, 0x8002, &parts));
    }

    #[test]
    fn blocks_are_not_copied_into_chunks() {
        let block = Bytes::from(vec![7; 65_536]);
        let mut outbox = Outbox::default();
        let pieces = vec![Piece::Data(block.clone())];
        push_content(TO, 0, pieces, Fragments::Many, true, &mut outbox);
        outbox.advance(28);
        assert_eq!(outbox.chunk().as_ptr(), block.as_ptr());
    }
}
