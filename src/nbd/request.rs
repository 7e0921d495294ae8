//! Request bytes to a decision: everything is checked before anything is allocated.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::Buf;

use crate::nbd::chunks::Fragments;
use crate::nbd::limits::READ_BYTES_MAX;
use crate::nbd::wire::{Command, Errno, REQUEST_BYTES, REQUEST_MAGIC, command_flags};
use crate::nbd::{BadMagic, Replies};

/// A request as it came. Section "Request message".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Command flags.
    pub flags: u16,
    /// What is asked for.
    pub command: Command,
    /// Chosen by the client, returned with the reply.
    pub cookie: u64,
    /// First byte of the export.
    pub offset: u64,
    /// Number of bytes.
    pub length: u32,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Answer with these bytes of the export.
    Read {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u32,
        /// Whether a structured reply may have several chunks.
        fragments: Fragments,
    },
    /// Answer with success: there is nothing to make durable.
    Flush,
    /// Answer what was accepted, then end the session.
    Disconnect,
    /// Pass over the bytes that follow the request, then answer with an error.
    RefuseWrite {
        /// Number of bytes that follow.
        payload_bytes: u32,
    },
    /// Answer with an error.
    Refuse(Refusal),
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It would change the export.
    ReadOnly,
    /// More bytes than one read may have.
    TooLong,
    /// Not all bytes are in the export.
    PastEnd,
    /// A flag that this command does not have, or not as things were negotiated.
    UnknownFlag,
    /// A flush with fields that must be zero.
    FlushOfRange,
    /// A command that is not known here.
    UnknownCommand,
}

impl Refusal {
    /// What the client is told. Section "Error values".
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::ReadOnly => Errno::EPERM,
            Self::TooLong
            | Self::PastEnd
            | Self::UnknownFlag
            | Self::FlushOfRange
            | Self::UnknownCommand => Errno::EINVAL,
        }
    }

    /// A sentence for the person at the client.
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::ReadOnly => "the export is read-only",
            Self::TooLong => "one read is limited to 32 MiB",
            Self::PastEnd => "the read reaches past the end of the export",
            Self::UnknownFlag => "the request has a flag that its command does not have here",
            Self::FlushOfRange => "a flush has neither offset nor length",
            Self::UnknownCommand => "this server does not know the command",
        }
    }
}

impl Request {
    /// Decodes a request. Source: section "Request message".
    ///
    /// ```text
    /// 0       4       6         8        16       24       28
    /// | magic | flags | command | cookie | offset | length |
    /// ```
    ///
    /// # Errors
    ///
    /// [`BadMagic`] if the stream has lost its framing: the caller hangs up without a reply.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, BadMagic> {
        // The array is as long as the fields together, so taking them cannot fail.
        let mut fields = bytes.as_slice();
        let magic = fields.get_u32();
        if magic != REQUEST_MAGIC {
            return Err(BadMagic { found: u64::from(magic) });
        }
        Ok(Self {
            flags: fields.get_u16(),
            command: Command(fields.get_u16()),
            cookie: fields.get_u64(),
            offset: fields.get_u64(),
            length: fields.get_u32(),
        })
    }

    /// Decides what becomes of the request, for an export of that size and a client that gets
    /// such replies.
    #[must_use]
    pub fn check(&self, export_bytes: u64, replies: Replies) -> Action {
        // "MUST NOT be set unless the transmission flags include `NBD_FLAG_SEND_DF`".
        let known_flags = match (self.command, replies) {
            (Command::READ, Replies::Structured) => command_flags::DF,
            _ => 0,
        };
        match self.command {
            Command::WRITE => Action::RefuseWrite { payload_bytes: self.length },
            Command::TRIM | Command::WRITE_ZEROES => Action::Refuse(Refusal::ReadOnly),
            Command::DISC => Action::Disconnect,
            Command::READ | Command::FLUSH if self.flags & !known_flags != 0 => {
                Action::Refuse(Refusal::UnknownFlag)
            }
            // "length and offset are reserved, and MUST be set to all-zero".
            Command::FLUSH if (self.offset, self.length) != (0, 0) => {
                Action::Refuse(Refusal::FlushOfRange)
            }
            Command::FLUSH => Action::Flush,
            Command::READ if self.length > READ_BYTES_MAX => Action::Refuse(Refusal::TooLong),
            Command::READ => match self.offset.checked_add(u64::from(self.length)) {
                Some(end) if end <= export_bytes => {
                    let unfragmented = self.flags & command_flags::DF != 0;
                    let fragments = if unfragmented { Fragments::One } else { Fragments::Many };
                    Action::Read { offset: self.offset, length: self.length, fragments }
                }
                Some(_) | None => Action::Refuse(Refusal::PastEnd),
            },
            _ => Action::Refuse(Refusal::UnknownCommand),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPORT_BYTES: u64 = 1 << 30;
    const BOTH: [Replies; 2] = [Replies::Simple, Replies::Structured];

    fn request(command: Command, offset: u64, length: u32) -> Request {
        Request { flags: 0, command, cookie: 7, offset, length }
    }

    #[test]
    fn a_request_is_laid_out_as_in_the_protocol_document() {
        let mut bytes = [0; REQUEST_BYTES];
        bytes.copy_from_slice(
            b"\x25\x60\x95\x13\x00\x01\x00\x02\
              \x03\x04\x05\x06\x07\x08\x09\x0a\
              \x0b\x0c\x0d\x0e\x0f\x10\x11\x12\
              \x13\x14\x15\x16",
        );
        assert_eq!(
            Request::decode(&bytes),
            Ok(Request {
                flags: 1,
                command: Command::DISC,
                cookie: 0x0304_0506_0708_090a,
                offset: 0x0b0c_0d0e_0f10_1112,
                length: 0x1314_1516,
            })
        );
        bytes[0] = 0;
        assert_eq!(Request::decode(&bytes), Err(BadMagic { found: 0x0060_9513 }));
    }

    #[test]
    fn read_is_served_up_to_the_last_byte_and_not_one_further() {
        let read = |offset, length| Action::Read { offset, length, fragments: Fragments::Many };
        for (offset, length, expected) in [
            (0, 0, read(0, 0)),
            (EXPORT_BYTES, 0, read(EXPORT_BYTES, 0)),
            (EXPORT_BYTES - 1, 1, read(EXPORT_BYTES - 1, 1)),
            (0, READ_BYTES_MAX, read(0, READ_BYTES_MAX)),
            (0, READ_BYTES_MAX + 1, Action::Refuse(Refusal::TooLong)),
            (EXPORT_BYTES, 1, Action::Refuse(Refusal::PastEnd)),
            (EXPORT_BYTES - 1, 2, Action::Refuse(Refusal::PastEnd)),
            (u64::MAX, 1, Action::Refuse(Refusal::PastEnd)),
            (u64::MAX - 5, 6, Action::Refuse(Refusal::PastEnd)),
            (0, u32::MAX, Action::Refuse(Refusal::TooLong)),
        ] {
            let request = request(Command::READ, offset, length);
            for replies in BOTH {
                assert_eq!(request.check(EXPORT_BYTES, replies), expected, "{request:?}");
            }
        }
        assert_eq!(READ_BYTES_MAX, 32 << 20, "the sentence says so");
    }

    #[test]
    fn whatever_writes_is_not_permitted() {
        for flags in [0, 1, u16::MAX] {
            for (offset, length) in [(0, 1), (0, 0), (u64::MAX, u32::MAX)] {
                for command in [Command::WRITE, Command::TRIM, Command::WRITE_ZEROES] {
                    let request = Request { flags, ..request(command, offset, length) };
                    let expected = if command == Command::WRITE {
                        Action::RefuseWrite { payload_bytes: length }
                    } else {
                        Action::Refuse(Refusal::ReadOnly)
                    };
                    for replies in BOTH {
                        assert_eq!(request.check(EXPORT_BYTES, replies), expected);
                    }
                }
            }
        }
        assert_eq!(Refusal::ReadOnly.errno(), Errno::EPERM);
    }

    #[test]
    fn unknown_commands_and_flags_are_invalid() {
        for replies in BOTH {
            for number in [5, 7, 8, 9, 100, u16::MAX] {
                let action = request(Command(number), 0, 1).check(EXPORT_BYTES, replies);
                assert_eq!(action, Action::Refuse(Refusal::UnknownCommand), "{number}");
            }
            for bit in 0..16 {
                for command in [Command::READ, Command::FLUSH] {
                    let request = Request { flags: 1 << bit, ..request(command, 0, 0) };
                    let expected = match (command, bit, replies) {
                        (Command::READ, 2, Replies::Structured) => {
                            Action::Read { offset: 0, length: 0, fragments: Fragments::One }
                        }
                        _ => Action::Refuse(Refusal::UnknownFlag),
                    };
                    assert_eq!(request.check(EXPORT_BYTES, replies), expected, "{request:?}");
                }
            }
            let both = Request { flags: 0b101, ..request(Command::READ, 0, 0) };
            let action = both.check(EXPORT_BYTES, replies);
            assert_eq!(action, Action::Refuse(Refusal::UnknownFlag));
        }
    }

    #[test]
    fn a_flush_is_of_everything() {
        for replies in BOTH {
            let action = request(Command::FLUSH, 0, 0).check(EXPORT_BYTES, replies);
            assert_eq!(action, Action::Flush);
            for (offset, length) in [(1, 0), (0, 1)] {
                let action = request(Command::FLUSH, offset, length).check(EXPORT_BYTES, replies);
                assert_eq!(action, Action::Refuse(Refusal::FlushOfRange));
            }
        }
    }
}
