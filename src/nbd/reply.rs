//! What the server answers: parts of replies, and their headers.

use bytes::Bytes;

use crate::nbd::wire::{
    CHUNK_HEADER_BYTES, CHUNK_MAGIC, ChunkType, Errno, OPTION_REPLY_HEADER_BYTES,
    OPTION_REPLY_MAGIC, OptionCode, ReplyCode, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC,
};

/// How requests are answered. Section "Transmission".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replies {
    /// With a number, then all the bytes or none.
    Simple,
    /// With chunks, since the client said that it understands them.
    Structured,
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

/// Header of a chunk. Source: section "Structured reply chunk message".
///
/// ```text
/// 0       4       6      8        16       20
/// | magic | flags | type | cookie | length |
/// ```
#[must_use]
pub fn chunk_header(
    flags: u16,
    kind: ChunkType,
    cookie: u64,
    payload_bytes: u32,
) -> [u8; CHUNK_HEADER_BYTES] {
    let mut bytes = [0; CHUNK_HEADER_BYTES];
    bytes[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.0.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..].copy_from_slice(&payload_bytes.to_be_bytes());
    bytes
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

/// The beginning of a text, whole characters only.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_laid_out_as_in_the_protocol_document() {
        assert_eq!(
            simple_reply(Some(Errno::EINVAL), 0x0102_0304_0506_0708),
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22, 1, 2, 3, 4, 5, 6, 7, 8]
        );
        assert_eq!(
            chunk_header(1, ChunkType::ERROR_OFFSET, 0x0102_0304_0506_0708, 9),
            [0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 2, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 9]
        );
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
