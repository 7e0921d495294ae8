//! What the server answers: parts of replies, and their headers.

use bytes::Bytes;

use crate::nbd::wire::{
    Errno, OPTION_REPLY_HEADER_BYTES, OPTION_REPLY_MAGIC, OptionCode, ReplyCode,
    SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC,
};

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
            option_reply(OptionCode::GO, ReplyCode::ERR_UNKNOWN, 9),
            [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 7, 0x80, 0, 0, 6, 0, 0, 0, 9]
        );
    }
}
