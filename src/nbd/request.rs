//! Request bytes to a decision: everything is checked before anything is allocated.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::Buf;

use crate::nbd::chunks::Fragments;
use crate::nbd::limits::READ_BYTES_MAX;
use crate::nbd::wire::{
    Command, EXTENDED_REQUEST_BYTES, EXTENDED_REQUEST_MAGIC, Errno, REQUEST_BYTES, REQUEST_MAGIC,
    command_flags,
};
use crate::nbd::{BadMagic, Contexts, Replies};

/// What was negotiated, as far as it decides about requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Size of the export in bytes.
    pub export_bytes: u64,
    /// How requests come and are answered.
    pub replies: Replies,
    /// What the client may ask of extents.
    pub contexts: Contexts,
}

/// A request as it came. Section "Request message".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    /// Command flags.
    pub(crate) flags: u16,
    /// What is asked for.
    pub(crate) command: Command,
    /// Chosen by the client, returned with the reply.
    pub(crate) cookie: u64,
    /// First byte of the export.
    pub(crate) offset: u64,
    /// Number of bytes: of the export, or of a payload that follows.
    pub(crate) length: u64,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Answer with these bytes of the export.
    Read {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u32,
        /// Whether a structured reply may have several chunks.
        fragments: Fragments,
    },
    /// Make these bytes quick to read.
    Load {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Answer with the extents of this range.
    Status(StatusOf),
    /// The same of a range and of contexts that the bytes behind the request name.
    FilteredStatus {
        /// Number of bytes that follow.
        payload_bytes: usize,
    },
    /// Answer with success: there is nothing to make durable.
    Flush,
    /// Answer what was accepted, then end the session.
    Disconnect,
    /// Answer with an error.
    Refuse(Refusal),
    /// Pass over the bytes that follow the request, then answer with an error.
    PassOver {
        /// Number of bytes that follow.
        payload_bytes: u64,
        /// The answer.
        refusal: Refusal,
    },
    /// End the session: more bytes follow than any request may have.
    HangUp,
}

/// Which extents are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StatusOf {
    /// First byte.
    pub(crate) offset: u64,
    /// Number of bytes. Not 0.
    pub(crate) length: u64,
    /// What is asked of them. Not empty.
    pub(crate) contexts: Contexts,
    /// Whether only the first extent is wanted.
    pub(crate) first_only: bool,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
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
    /// Extents of no bytes.
    NothingToDescribe,
    /// Extents without a context in which they could be described.
    NoContext,
    /// Contexts that were not chosen, or bytes that name none.
    BadFilter,
    /// A command that is not known here.
    UnknownCommand,
    /// The server takes no more requests.
    ShuttingDown,
}

impl Refusal {
    /// What the client is told. Section "Error values".
    #[must_use]
    pub(crate) const fn errno(self) -> Errno {
        match self {
            Self::ReadOnly => Errno::EPERM,
            Self::ShuttingDown => Errno::ESHUTDOWN,
            Self::TooLong
            | Self::PastEnd
            | Self::UnknownFlag
            | Self::FlushOfRange
            | Self::NothingToDescribe
            | Self::NoContext
            | Self::BadFilter
            | Self::UnknownCommand => Errno::EINVAL,
        }
    }

    /// A sentence for the person at the client.
    #[must_use]
    pub(crate) const fn message(self) -> &'static str {
        match self {
            Self::ReadOnly => "the export is read-only",
            Self::TooLong => "one read is limited to 32 MiB",
            Self::PastEnd => "the request reaches past the end of the export",
            Self::UnknownFlag => "the request has a flag that its command does not have here",
            Self::FlushOfRange => "a flush has neither offset nor length",
            Self::NothingToDescribe => "there are no extents of no bytes",
            Self::NoContext => "no metadata context was chosen for this export",
            Self::BadFilter => "the request does not name metadata contexts that were chosen",
            Self::UnknownCommand => "this server does not know the command",
            Self::ShuttingDown => "the server is shutting down",
        }
    }
}

impl Request {
    /// Takes a request off the beginning of `bytes`, and gives what follows. `None` if there is no
    /// whole one. Source: section "Request message", and the extension for extended headers.
    ///
    /// ```text
    /// 0       4       6         8        16       24       28
    /// | magic | flags | command | cookie | offset | length |
    ///
    /// 0       4       6         8        16       24       32
    /// | magic | flags | command | cookie | offset | length |
    /// ```
    ///
    /// # Errors
    ///
    /// [`BadMagic`] if the stream has lost its framing: the caller hangs up without a reply.
    pub(crate) fn decode(
        bytes: &[u8],
        replies: Replies,
    ) -> Result<Option<(Self, &[u8])>, BadMagic> {
        let (magic, header_bytes) = match replies {
            Replies::Simple | Replies::Structured => (REQUEST_MAGIC, REQUEST_BYTES),
            Replies::Extended => (EXTENDED_REQUEST_MAGIC, EXTENDED_REQUEST_BYTES),
        };
        let Some((mut fields, rest)) = bytes.split_at_checked(header_bytes) else {
            return Ok(None);
        };
        // As many bytes as the fields have together, so taking them cannot fail.
        let found = fields.get_u32();
        if found != magic {
            return Err(BadMagic { found: u64::from(found) });
        }
        let request = Self {
            flags: fields.get_u16(),
            command: Command(fields.get_u16()),
            cookie: fields.get_u64(),
            offset: fields.get_u64(),
            length: match replies {
                Replies::Simple | Replies::Structured => u64::from(fields.get_u32()),
                Replies::Extended => fields.get_u64(),
            },
        };
        Ok(Some((request, rest)))
    }

    /// Decides what becomes of the request.
    #[must_use]
    pub(crate) fn check(&self, terms: &Terms) -> Action {
        match terms.replies {
            Replies::Extended if self.has(command_flags::PAYLOAD_LEN) => {
                self.check_with_payload(terms)
            }
            // Of old, the length of a write is that of its bytes, and no other request has any.
            Replies::Simple | Replies::Structured if self.command == Command::WRITE => {
                Action::PassOver { payload_bytes: self.length, refusal: Refusal::ReadOnly }
            }
            Replies::Simple | Replies::Structured | Replies::Extended => {
                self.check_alone(terms).unwrap_or_else(Action::Refuse)
            }
        }
    }

    /// "a server SHOULD initiate hard disconnect" if the payload is longer than any may be, and "in
    /// all other cases, a server SHOULD gracefully consume" it.
    fn check_with_payload(&self, terms: &Terms) -> Action {
        if self.length > u64::from(READ_BYTES_MAX) {
            return Action::HangUp;
        }
        let pass_over = |refusal| Action::PassOver { payload_bytes: self.length, refusal };
        match self.command {
            Command::DISC => Action::Disconnect,
            Command::WRITE | Command::TRIM | Command::WRITE_ZEROES => pass_over(Refusal::ReadOnly),
            Command::BLOCK_STATUS => {
                let unknown = !(command_flags::PAYLOAD_LEN | command_flags::REQ_ONE);
                if self.has(unknown) {
                    return pass_over(Refusal::UnknownFlag);
                }
                let ids = terms.contexts.count() as u64;
                let longest = ids.saturating_mul(CONTEXT_ID_BYTES).saturating_add(RANGE_BYTES);
                match usize::try_from(self.length) {
                    Ok(payload_bytes) if self.length <= longest => {
                        Action::FilteredStatus { payload_bytes }
                    }
                    _ => pass_over(Refusal::BadFilter),
                }
            }
            _ => pass_over(Refusal::UnknownFlag),
        }
    }

    /// What the bytes behind a `BLOCK_STATUS` ask for.
    ///
    /// ```text
    /// 0                  8            12
    /// | length of range  | context id | … |
    /// ```
    ///
    /// # Errors
    ///
    /// [`Refusal`] if they make no sense.
    pub(crate) fn check_filter(
        &self,
        mut payload: &[u8],
        terms: &Terms,
    ) -> Result<StatusOf, Refusal> {
        let length = payload.try_get_u64().map_err(|_| Refusal::BadFilter)?;
        let (ids, rest) = payload.as_chunks();
        let contexts = terms.contexts.filter(ids.iter().copied().map(u32::from_be_bytes));
        let contexts = contexts.filter(|contexts| !contexts.is_empty() && rest.is_empty());
        let contexts = contexts.ok_or(Refusal::BadFilter)?;
        Self { length, ..*self }.check_status(contexts, terms.export_bytes)
    }

    fn check_alone(&self, terms: &Terms) -> Result<Action, Refusal> {
        // "MUST NOT be set unless the transmission flags include `NBD_FLAG_SEND_DF`".
        let known_flags = match (self.command, terms.replies) {
            (Command::READ, Replies::Structured | Replies::Extended) => command_flags::DF,
            (Command::BLOCK_STATUS, _) => command_flags::REQ_ONE,
            _ => 0,
        };
        let no_unknown_flag =
            || if self.has(!known_flags) { Err(Refusal::UnknownFlag) } else { Ok(()) };
        match self.command {
            Command::DISC => Ok(Action::Disconnect),
            Command::WRITE | Command::TRIM | Command::WRITE_ZEROES => Err(Refusal::ReadOnly),
            Command::READ => {
                no_unknown_flag()?;
                let length = u32::try_from(self.length).ok();
                let length = length.filter(|length| *length <= READ_BYTES_MAX);
                let length = length.ok_or(Refusal::TooLong)?;
                self.check_range(terms.export_bytes)?;
                let unfragmented = self.has(command_flags::DF);
                let fragments = if unfragmented { Fragments::One } else { Fragments::Many };
                Ok(Action::Read { offset: self.offset, length, fragments })
            }
            Command::CACHE => {
                no_unknown_flag()?;
                self.check_range(terms.export_bytes)?;
                Ok(Action::Load { offset: self.offset, length: self.length })
            }
            Command::BLOCK_STATUS => {
                no_unknown_flag()?;
                // Extents are chunks, whatever was negotiated beside.
                let contexts = match terms.replies {
                    Replies::Simple => Contexts::default(),
                    Replies::Structured | Replies::Extended => terms.contexts,
                };
                self.check_status(contexts, terms.export_bytes).map(Action::Status)
            }
            Command::FLUSH => {
                no_unknown_flag()?;
                // "length and offset are reserved, and MUST be set to all-zero".
                if (self.offset, self.length) == (0, 0) {
                    Ok(Action::Flush)
                } else {
                    Err(Refusal::FlushOfRange)
                }
            }
            _ => Err(Refusal::UnknownCommand),
        }
    }

    fn check_status(&self, contexts: Contexts, export_bytes: u64) -> Result<StatusOf, Refusal> {
        if contexts.is_empty() {
            return Err(Refusal::NoContext);
        }
        if self.length == 0 {
            return Err(Refusal::NothingToDescribe);
        }
        self.check_range(export_bytes)?;
        let first_only = self.has(command_flags::REQ_ONE);
        Ok(StatusOf { offset: self.offset, length: self.length, contexts, first_only })
    }

    fn check_range(&self, export_bytes: u64) -> Result<(), Refusal> {
        match self.offset.checked_add(self.length) {
            Some(end) if end <= export_bytes => Ok(()),
            Some(_) | None => Err(Refusal::PastEnd),
        }
    }

    fn has(&self, flags: u16) -> bool {
        self.flags & flags != 0
    }
}

/// Length of a range before the contexts that it is asked about, in bytes.
const RANGE_BYTES: u64 = 8;

/// Length of the number of a context, in bytes.
const CONTEXT_ID_BYTES: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const EXPORT_BYTES: u64 = 1 << 30;
    const ALL: [Replies; 3] = [Replies::Simple, Replies::Structured, Replies::Extended];

    fn terms(replies: Replies) -> Terms {
        Terms { export_bytes: EXPORT_BYTES, replies, contexts: Contexts::first(2) }
    }

    fn request(command: Command, offset: u64, length: u64) -> Request {
        Request { flags: 0, command, cookie: 7, offset, length }
    }

    #[test]
    fn a_request_is_laid_out_as_in_the_protocol_document() {
        let compact = b"\x25\x60\x95\x13\x00\x01\x00\x02\
              \x03\x04\x05\x06\x07\x08\x09\x0a\
              \x0b\x0c\x0d\x0e\x0f\x10\x11\x12\
              \x13\x14\x15\x16rest";
        let extended = b"\x21\xe4\x1c\x71\x00\x01\x00\x02\
              \x03\x04\x05\x06\x07\x08\x09\x0a\
              \x0b\x0c\x0d\x0e\x0f\x10\x11\x12\
              \x13\x14\x15\x16\x17\x18\x19\x1arest";
        for (replies, bytes, length) in [
            (Replies::Simple, &compact[..], 0x1314_1516),
            (Replies::Structured, &compact[..], 0x1314_1516),
            (Replies::Extended, &extended[..], 0x1314_1516_1718_191a),
        ] {
            let expected = Request {
                flags: 1,
                command: Command::DISC,
                cookie: 0x0304_0506_0708_090a,
                offset: 0x0b0c_0d0e_0f10_1112,
                length,
            };
            assert_eq!(Request::decode(bytes, replies), Ok(Some((expected, &b"rest"[..]))));
            let header_bytes = bytes.len() - 4;
            assert_eq!(Request::decode(&bytes[..header_bytes - 1], replies), Ok(None));
            let mut wrong = bytes.to_vec();
            wrong[0] = 0;
            assert!(Request::decode(&wrong, replies).is_err());
        }
        // Each magic belongs to its own form.
        assert_eq!(
            Request::decode(extended, Replies::Structured),
            Err(BadMagic { found: u64::from(EXTENDED_REQUEST_MAGIC) })
        );
        assert!(Request::decode(compact, Replies::Extended).is_err());
    }

    #[test]
    fn read_is_served_up_to_the_last_byte_and_not_one_further() {
        let read = |offset, length| Action::Read { offset, length, fragments: Fragments::Many };
        let longest = u64::from(READ_BYTES_MAX);
        for (offset, length, expected) in [
            (0, 0, read(0, 0)),
            (EXPORT_BYTES, 0, read(EXPORT_BYTES, 0)),
            (EXPORT_BYTES - 1, 1, read(EXPORT_BYTES - 1, 1)),
            (0, longest, read(0, READ_BYTES_MAX)),
            (0, longest + 1, Action::Refuse(Refusal::TooLong)),
            (EXPORT_BYTES, 1, Action::Refuse(Refusal::PastEnd)),
            (EXPORT_BYTES - 1, 2, Action::Refuse(Refusal::PastEnd)),
            (u64::MAX, 1, Action::Refuse(Refusal::PastEnd)),
            (u64::MAX - 5, 6, Action::Refuse(Refusal::PastEnd)),
            (0, u64::from(u32::MAX), Action::Refuse(Refusal::TooLong)),
            (0, 1 << 32, Action::Refuse(Refusal::TooLong)),
            (0, u64::MAX, Action::Refuse(Refusal::TooLong)),
        ] {
            let request = request(Command::READ, offset, length);
            for replies in ALL {
                assert_eq!(request.check(&terms(replies)), expected, "{request:?}");
            }
        }
        assert_eq!(READ_BYTES_MAX, 32 << 20, "the sentence says so");
    }

    #[test]
    fn whatever_writes_is_not_permitted() {
        let refused = Action::Refuse(Refusal::ReadOnly);
        for flags in [0, 1, u16::MAX] {
            for (offset, length) in [(0, 1), (0, 0), (u64::MAX, u64::from(u32::MAX))] {
                for command in [Command::WRITE, Command::TRIM, Command::WRITE_ZEROES] {
                    let request = Request { flags, ..request(command, offset, length) };
                    let passed =
                        Action::PassOver { payload_bytes: length, refusal: Refusal::ReadOnly };
                    for replies in ALL {
                        let has_payload = match replies {
                            Replies::Extended => flags & command_flags::PAYLOAD_LEN != 0,
                            Replies::Simple | Replies::Structured => command == Command::WRITE,
                        };
                        let too_long = replies == Replies::Extended && length > 32 << 20;
                        let expected = match has_payload {
                            true if too_long => Action::HangUp,
                            true => passed,
                            false => refused,
                        };
                        assert_eq!(request.check(&terms(replies)), expected, "{request:?}");
                    }
                }
            }
        }
        assert_eq!(Refusal::ReadOnly.errno(), Errno::EPERM);
    }

    #[test]
    fn unknown_commands_and_flags_are_invalid() {
        for replies in ALL {
            for number in [8, 9, 100, u16::MAX] {
                let action = request(Command(number), 0, 1).check(&terms(replies));
                assert_eq!(action, Action::Refuse(Refusal::UnknownCommand), "{number}");
            }
            let has_chunks = replies != Replies::Simple;
            for bit in 0..16 {
                let flags = 1 << bit;
                for command in
                    [Command::READ, Command::FLUSH, Command::CACHE, Command::BLOCK_STATUS]
                {
                    let known = match command {
                        Command::READ if has_chunks => command_flags::DF,
                        Command::BLOCK_STATUS => command_flags::REQ_ONE,
                        _ => 0,
                    };
                    let request = Request { flags, ..request(command, 0, 0) };
                    let action = request.check(&terms(replies));
                    if flags & known != 0 {
                        assert_ne!(action, Action::Refuse(Refusal::UnknownFlag));
                    } else if replies == Replies::Extended && flags == command_flags::PAYLOAD_LEN {
                        let refusal = Refusal::UnknownFlag;
                        let expected = match command {
                            Command::BLOCK_STATUS => Action::FilteredStatus { payload_bytes: 0 },
                            _ => Action::PassOver { payload_bytes: 0, refusal },
                        };
                        assert_eq!(action, expected, "{request:?}");
                    } else {
                        let expected = Action::Refuse(Refusal::UnknownFlag);
                        assert_eq!(action, expected, "{request:?}");
                    }
                }
            }
            let both = Request { flags: 0b101, ..request(Command::READ, 0, 0) };
            let action = both.check(&terms(replies));
            assert_eq!(action, Action::Refuse(Refusal::UnknownFlag));
        }
    }

    #[test]
    fn a_flush_is_of_everything() {
        for replies in ALL {
            let action = request(Command::FLUSH, 0, 0).check(&terms(replies));
            assert_eq!(action, Action::Flush);
            for (offset, length) in [(1, 0), (0, 1)] {
                let action = request(Command::FLUSH, offset, length).check(&terms(replies));
                assert_eq!(action, Action::Refuse(Refusal::FlushOfRange));
            }
        }
    }

    /// CVE-2025-47711 and -47712: lengths at every edge.
    #[test]
    fn extents_are_of_bytes_that_there_are_and_at_least_one() {
        let contexts = Contexts::first(2);
        let status = |offset, length, first_only| {
            Action::Status(StatusOf { offset, length, contexts, first_only })
        };
        for (offset, length, expected) in [
            (0, 1, Ok(())),
            (7, EXPORT_BYTES - 7, Ok(())),
            (0, EXPORT_BYTES, Ok(())),
            (EXPORT_BYTES - 1, 1, Ok(())),
            (0, 0, Err(Refusal::NothingToDescribe)),
            (EXPORT_BYTES, 0, Err(Refusal::NothingToDescribe)),
            (0, EXPORT_BYTES + 1, Err(Refusal::PastEnd)),
            (EXPORT_BYTES, 1, Err(Refusal::PastEnd)),
            (1, u64::from(u32::MAX), Err(Refusal::PastEnd)),
            (1, u64::MAX, Err(Refusal::PastEnd)),
            (u64::MAX, u64::MAX, Err(Refusal::PastEnd)),
        ] {
            for replies in [Replies::Structured, Replies::Extended] {
                for (flags, first_only) in [(0, false), (command_flags::REQ_ONE, true)] {
                    let request =
                        Request { flags, ..request(Command::BLOCK_STATUS, offset, length) };
                    let expected = expected
                        .map_or_else(Action::Refuse, |()| status(offset, length, first_only));
                    assert_eq!(request.check(&terms(replies)), expected, "{request:?}");
                    let without = Terms { contexts: Contexts::default(), ..terms(replies) };
                    let action = request.check(&without);
                    assert_eq!(action, Action::Refuse(Refusal::NoContext));
                    let action = request.check(&terms(Replies::Simple));
                    assert_eq!(action, Action::Refuse(Refusal::NoContext));
                }
            }
        }
    }

    #[test]
    fn what_is_loaded_may_be_long_but_is_in_the_export() {
        for (offset, length, expected) in [
            (0, 0, Ok(())),
            (0, EXPORT_BYTES, Ok(())),
            (EXPORT_BYTES, 0, Ok(())),
            (1, EXPORT_BYTES, Err(Refusal::PastEnd)),
            (u64::MAX, 1, Err(Refusal::PastEnd)),
        ] {
            for replies in ALL {
                let action = request(Command::CACHE, offset, length).check(&terms(replies));
                let load = Action::Load { offset, length };
                assert_eq!(action, expected.map_or_else(Action::Refuse, |()| load));
            }
        }
    }

    #[test]
    fn a_payload_that_no_request_has_is_passed_over_and_one_beyond_measure_ends_the_session() {
        let terms = terms(Replies::Extended);
        let flags = command_flags::PAYLOAD_LEN;
        let check =
            |command, length| Request { flags, ..request(command, 9, length) }.check(&terms);
        for command in [Command::READ, Command::FLUSH, Command::CACHE, Command(99)] {
            let refusal = Refusal::UnknownFlag;
            let passed = Action::PassOver { payload_bytes: 32 << 20, refusal };
            assert_eq!(check(command, 32 << 20), passed, "{command:?}");
            assert_eq!(check(command, (32 << 20) + 1), Action::HangUp, "{command:?}");
            assert_eq!(check(command, u64::MAX), Action::HangUp, "{command:?}");
        }
        assert_eq!(check(Command::DISC, 9), Action::Disconnect);
        // Two contexts were chosen, so there is nothing to say in more than 16 bytes.
        let filtered = Action::FilteredStatus { payload_bytes: 16 };
        assert_eq!(check(Command::BLOCK_STATUS, 16), filtered);
        let refusal = Refusal::BadFilter;
        let passed = Action::PassOver { payload_bytes: 17, refusal };
        assert_eq!(check(Command::BLOCK_STATUS, 17), passed);
    }

    #[test]
    fn a_filter_names_a_range_and_chosen_contexts() {
        let terms = terms(Replies::Extended);
        let flags = command_flags::PAYLOAD_LEN | command_flags::REQ_ONE;
        let request = Request { flags, ..request(Command::BLOCK_STATUS, 9, 0) };
        let check = |length: u64, ids: &[u32]| {
            let mut payload = length.to_be_bytes().to_vec();
            payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
            request.check_filter(&payload, &terms)
        };
        let second = check(10, &[2]).unwrap();
        assert_eq!((second.offset, second.length, second.first_only), (9, 10, true));
        assert_eq!(second.contexts.iter().map(crate::nbd::Context::place).collect::<Vec<_>>(), [1]);
        assert_eq!(check(10, &[2, 1]).unwrap().contexts, terms.contexts);
        for (length, ids, refusal) in [
            (10, &[][..], Refusal::BadFilter),
            (10, &[0], Refusal::BadFilter),
            (10, &[3], Refusal::BadFilter),
            (10, &[1, 1], Refusal::BadFilter),
            (0, &[1], Refusal::NothingToDescribe),
            (EXPORT_BYTES, &[1], Refusal::PastEnd),
            (u64::MAX, &[1], Refusal::PastEnd),
        ] {
            assert_eq!(check(length, ids), Err(refusal), "{length} {ids:?}");
        }
        for payload in
            [&b""[..], &[0; 7], &[0; 8], &[0; 11], &[0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1, 0]]
        {
            assert_eq!(request.check_filter(payload, &terms), Err(Refusal::BadFilter));
        }
    }
}
