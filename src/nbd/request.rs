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

#[cfg(test)]
mod tests;

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
