//! What the server answers: parts of replies, and their headers.

use bytes::Bytes;

use crate::nbd::Outbox;
use crate::nbd::wire::{
    CHUNK_HEADER_BYTES, CHUNK_MAGIC, ChunkType, EXTENDED_CHUNK_HEADER_BYTES, EXTENDED_CHUNK_MAGIC,
    Errno, OPTION_REPLY_HEADER_BYTES, OPTION_REPLY_MAGIC, OptionCode, ReplyCode,
    SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC,
};

/// How requests are answered. Section "Transmission".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replies {
    /// With a number, then all the bytes or none.
    Simple,
    /// With chunks, since the client said that it understands them.
    Structured,
    /// With chunks whose headers are extended, as those of the requests are.
    Extended,
}

/// The request that is answered, and in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplyTo {
    /// Of the client.
    pub(crate) cookie: u64,
    /// Where the request begins, which extended headers repeat.
    pub(crate) offset: u64,
    pub(crate) replies: Replies,
}

/// A part of a reply on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes that somebody else keeps too: a slice of a decoded block.
    Data(Bytes),
    /// This many zeros, which lie nowhere.
    Zeros(u64),
}

impl Piece {
    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeros(count) => *count,
        }
    }
}

/// Header of a simple reply. Source: section "Simple reply message". Data follows only where
/// there is no error.
///
/// ```text
/// 0       4       8        16
/// | magic | error | cookie |
/// ```
#[must_use]
pub fn simple_reply(error: Option<Errno>, cookie: u64) -> [u8; SIMPLE_REPLY_BYTES] {
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.map_or(0, |error| error.0).to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// Appends the header of a chunk. Source: section "Structured reply chunk message", and the
/// extension for extended headers.
///
/// ```text
/// 0       4       6      8        16       20
/// | magic | flags | type | cookie | length |
///
/// 0       4       6      8        16       24       32
/// | magic | flags | type | cookie | offset | length |
/// ```
pub(crate) fn push_chunk_header(
    to: ReplyTo,
    flags: u16,
    kind: ChunkType,
    payload_bytes: u64,
    outbox: &mut Outbox,
) {
    let is_extended = to.replies == Replies::Extended;
    let magic = if is_extended { EXTENDED_CHUNK_MAGIC } else { CHUNK_MAGIC };
    let mut bytes = [0; EXTENDED_CHUNK_HEADER_BYTES];
    bytes[..4].copy_from_slice(&magic.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.0.to_be_bytes());
    bytes[8..16].copy_from_slice(&to.cookie.to_be_bytes());
    if is_extended {
        bytes[16..24].copy_from_slice(&to.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&payload_bytes.to_be_bytes());
        outbox.push_copy(&bytes);
    } else {
        // Payloads are bounded by the longest read and the longest message, far below 4 GiB.
        let payload_bytes = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
        bytes[16..20].copy_from_slice(&payload_bytes.to_be_bytes());
        outbox.push_copy(&bytes[..CHUNK_HEADER_BYTES]);
    }
}

/// Header of a reply to an option. Source: section "Fixed newstyle negotiation".
///
/// ```text
/// 0       8        12     16       20
/// | magic | option | code | length |
/// ```
#[must_use]
pub fn option_reply(
    option: OptionCode,
    code: ReplyCode,
    payload_bytes: u32,
) -> [u8; OPTION_REPLY_HEADER_BYTES] {
    let mut bytes = [0; OPTION_REPLY_HEADER_BYTES];
    bytes[..8].copy_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    bytes[8..12].copy_from_slice(&option.0.to_be_bytes());
    bytes[12..16].copy_from_slice(&code.0.to_be_bytes());
    bytes[16..].copy_from_slice(&payload_bytes.to_be_bytes());
    bytes
}

/// Length of all parts of a reply together, in bytes.
pub(crate) fn total_bytes(pieces: &[Piece]) -> u64 {
    pieces.iter().map(Piece::bytes).sum()
}

/// The beginning of a text, whole characters only.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use bytes::Buf;

    use super::*;

    #[test]
    fn headers_are_laid_out_as_in_the_protocol_document() {
        assert_eq!(
            simple_reply(Some(Errno::EINVAL), 0x0102_0304_0506_0708),
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22, 1, 2, 3, 4, 5, 6, 7, 8]
        );
        for (replies, expected) in [
            (
                Replies::Structured,
                &b"\x66\x8e\x33\xef\0\x01\x80\x02\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x09"[..],
            ),
            (
                Replies::Extended,
                b"\x6e\x8a\x27\x8c\0\x01\x80\x02\x01\x02\x03\x04\x05\x06\x07\x08\
                  \x11\x12\x13\x14\x15\x16\x17\x18\0\0\0\0\0\0\0\x09",
            ),
        ] {
            let to =
                ReplyTo { cookie: 0x0102_0304_0506_0708, offset: 0x1112_1314_1516_1718, replies };
            let mut outbox = Outbox::default();
            push_chunk_header(to, 1, ChunkType::ERROR_OFFSET, 9, &mut outbox);
            assert_eq!(outbox.copy_to_bytes(outbox.remaining()), expected);
        }
        assert_eq!(
            option_reply(OptionCode::GO, ReplyCode::ERR_UNKNOWN, 9),
            [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 7, 0x80, 0, 0, 6, 0, 0, 0, 9]
        );
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        for (text, bytes_max, expected) in
            [("näme", 2, "n"), ("näme", 3, "nä"), ("name", 100, "name")]
        {
            assert_eq!(cut(text, bytes_max), expected);
        }
    }
}
