//! From the greeting to the choice of an export. Section "Fixed newstyle negotiation".
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::{Buf, BytesMut};

use crate::nbd::answers::{Facts, acknowledge, describe, list, list_contexts, refuse};
use crate::nbd::limits::{OPTION_PAYLOAD_BYTES_MAX, OPTION_SKIPPED_BYTES_MAX, OPTIONS_MAX};
use crate::nbd::option::{self, ClientOption, ContextQuery, OptionHeader, Refusal};
use crate::nbd::wire::{
    CLIENT_FLAGS_BYTES, INIT_MAGIC, OPTION_HEADER_BYTES, OPTION_MAGIC, OptionCode,
    RESERVED_ZEROS_BYTES, ReplyCode, client_flags, handshake_flags, transmission_flags,
};
use crate::nbd::{Absent, BadMagic, Contexts, ExportDirectory, NegotiatedExport, Outbox, Replies};

#[cfg(test)]
mod tests;

/// What a read-only export can do for every client. Section "Transmission flags".
const TRANSMISSION_FLAGS: u16 = transmission_flags::HAS_FLAGS
    | transmission_flags::READ_ONLY
    | transmission_flags::SEND_FLUSH
    | transmission_flags::CAN_MULTI_CONN
    | transmission_flags::SEND_CACHE;

/// The answer to almost everything before TLS where it is required, whatever else is wrong.
const TLS_REQUIRED: Refusal =
    Refusal { code: ReplyCode::ERR_TLS_REQD, message: "this server requires TLS" };

/// The client's bytes go in, replies come out, until an export is chosen or the session ends.
#[derive(Debug)]
pub struct Negotiation<D> {
    channel: Channel<D>,
    state: State,
    flags: ClientFlags,
    replies: Replies,
    chosen: Chosen,
    options: u32,
    is_stopping: bool,
}

/// Metadata contexts that the client has chosen, and of which export. Another export has other
/// contexts, so they are forgotten if the client enters that.
#[derive(Debug, Default)]
struct Chosen {
    export: String,
    contexts: Contexts,
}

/// What the client's bytes travel through, and what it may see there. Section "TLS support".
#[derive(Debug)]
pub enum Channel<D> {
    /// A server without TLS: `NOTLS`.
    Plain(D),
    /// A client that may upgrade to TLS, and sees these exports without: `SELECTIVETLS`.
    MayUpgrade(D),
    /// A client that must upgrade to TLS. There is no export here that it could be shown:
    /// `FORCEDTLS`.
    MustUpgrade,
    /// A client that has upgraded.
    Tls(D),
}

/// What a client said about itself before its first option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct ClientFlags {
    /// It understands replies to options.
    fixed: bool,
    /// It does without the zeros after `EXPORT_NAME`.
    no_zeros: bool,
}

/// All that is left of a negotiation in plaintext when TLS begins: what the client said before its
/// first option, and will not say again.
#[derive(Debug, PartialEq, Eq)]
pub struct Upgrade(ClientFlags);

impl Upgrade {
    /// Begins anew, with a client that has finished its handshake. It is not greeted again.
    #[must_use]
    pub fn negotiate<D: ExportDirectory>(self, directory: D) -> Negotiation<D> {
        let channel = Channel::Tls(directory);
        Negotiation::begin(channel, State::Option, self.0)
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    ClientFlags,
    Option,
    /// The payload of an option that was refused for its length.
    Skipping {
        payload_bytes: usize,
    },
}

/// How far one call has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress<E> {
    /// There is no whole option among the bytes that are there.
    NeedsInput,
    /// An option was answered. The client should get the answer before the next one is looked at.
    Answered,
    /// Transmission begins. What is left of the input belongs to it.
    Enter(Entered<E>),
    /// The client was told that TLS begins. Nothing that it sent before the end of the handshake
    /// may be looked at, so what is left of the input ends the session.
    StartTls(Upgrade),
    /// The client said goodbye and was answered.
    Aborted,
}

/// What a client chose.
#[derive(Debug, PartialEq, Eq)]
pub struct Entered<E> {
    /// The export.
    pub export: E,
    /// How requests come and are answered.
    pub replies: Replies,
    /// What the client may ask of extents.
    pub contexts: Contexts,
}

/// What a client did that ends the session without a word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// "the server MUST close the TCP connection if it does not recognize the client's flags".
    #[error("unknown client flags {0:#x}")]
    ClientFlags(u32),
    /// Not an option where one belongs.
    #[error("not an NBD option: {0}")]
    Magic(#[from] BadMagic),
    /// Too long to be skipped.
    #[error("{option:?} with {payload_bytes} bytes of data")]
    OptionTooLong {
        /// The option.
        option: OptionCode,
        /// What it announces.
        payload_bytes: u32,
    },
    /// Options without end.
    #[error("more than {OPTIONS_MAX} options")]
    TooManyOptions,
    /// `EXPORT_NAME` has no error reply.
    #[error("no export named {0:?}")]
    UnknownExport(String),
    /// `EXPORT_NAME` has no error reply.
    #[error("the snapshot of the export {0:?} cannot be opened")]
    BrokenExport(String),
    /// `EXPORT_NAME` has no error reply.
    #[error("{0}")]
    ExportName(&'static str),
    /// The client said that it would not understand a reply.
    #[error("{0:?} from a client without fixed newstyle negotiation")]
    NotFixed(OptionCode),
}

/// What is to be done about an option.
enum Step<E> {
    Refuse(Refusal),
    List,
    ListContexts(E, Contexts),
    SetContexts(E, Contexts),
    Describe(E, Facts),
    Enter(E, Facts),
    EnterOldStyle(E),
    Replies(Replies),
    StartTls,
    Abort,
}

impl<D> Channel<D> {
    /// The exports that the client may see as things are.
    fn directory(&self) -> Option<&D> {
        match self {
            Self::Plain(directory) | Self::MayUpgrade(directory) | Self::Tls(directory) => {
                Some(directory)
            }
            Self::MustUpgrade => None,
        }
    }
}

impl<D: ExportDirectory> Negotiation<D> {
    /// A session with a client that has just connected. Greets it.
    #[must_use]
    pub fn new(channel: Channel<D>, outbox: &mut Outbox) -> Self {
        outbox.push_copy(&INIT_MAGIC.to_be_bytes());
        outbox.push_copy(&OPTION_MAGIC.to_be_bytes());
        let flags = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;
        outbox.push_copy(&flags.to_be_bytes());
        Self::begin(channel, State::ClientFlags, ClientFlags::default())
    }

    /// With nothing negotiated yet.
    fn begin(channel: Channel<D>, state: State, flags: ClientFlags) -> Self {
        let (replies, chosen) = (Replies::Simple, Chosen::default());
        Self { channel, state, flags, replies, chosen, options: 0, is_stopping: false }
    }

    /// From now on options are answered with `NBD_REP_ERR_SHUTDOWN`.
    pub fn stop(&mut self) {
        self.is_stopping = true;
    }

    /// Takes at most one message from the input and puts the answer into the outbox.
    ///
    /// # Errors
    ///
    /// [`Violation`] if the session cannot go on: hang up, after sending what is in the outbox.
    pub fn advance(
        &mut self,
        input: &mut BytesMut,
        outbox: &mut Outbox,
    ) -> Result<Progress<D::Export>, Violation> {
        match self.state {
            State::ClientFlags => self.on_client_flags(input),
            State::Option => self.on_option(input, outbox),
            State::Skipping { payload_bytes } => {
                let skipped = payload_bytes.min(input.len());
                input.advance(skipped);
                let payload_bytes = payload_bytes.saturating_sub(skipped);
                if payload_bytes != 0 {
                    self.state = State::Skipping { payload_bytes };
                    return Ok(Progress::NeedsInput);
                }
                self.state = State::Option;
                self.on_option(input, outbox)
            }
        }
    }

    fn on_client_flags(&mut self, input: &mut BytesMut) -> Result<Progress<D::Export>, Violation> {
        if input.len() < CLIENT_FLAGS_BYTES {
            return Ok(Progress::NeedsInput);
        }
        let flags = input.get_u32();
        if flags & !(client_flags::FIXED_NEWSTYLE | client_flags::NO_ZEROES) != 0 {
            return Err(Violation::ClientFlags(flags));
        }
        self.flags = ClientFlags {
            fixed: flags & client_flags::FIXED_NEWSTYLE != 0,
            no_zeros: flags & client_flags::NO_ZEROES != 0,
        };
        self.state = State::Option;
        Ok(Progress::Answered)
    }

    fn on_option(
        &mut self,
        input: &mut BytesMut,
        outbox: &mut Outbox,
    ) -> Result<Progress<D::Export>, Violation> {
        let Some((header, rest)) = input.split_first_chunk::<OPTION_HEADER_BYTES>() else {
            return Ok(Progress::NeedsInput);
        };
        let OptionHeader { code, payload_bytes } = OptionHeader::decode(header)?;
        if !self.flags.fixed && code != OptionCode::EXPORT_NAME {
            return Err(Violation::NotFixed(code));
        }
        let payload_length = usize::try_from(payload_bytes).unwrap_or(usize::MAX);
        if payload_bytes > OPTION_PAYLOAD_BYTES_MAX {
            input.advance(OPTION_HEADER_BYTES);
            return self.on_too_long(code, payload_bytes, payload_length, outbox);
        }
        let Some(payload) = rest.get(..payload_length) else {
            return Ok(Progress::NeedsInput);
        };
        self.begin_option(code)?;
        let step = self.decide(code, payload)?;
        input.advance(OPTION_HEADER_BYTES.saturating_add(payload_length));
        Ok(self.perform(code, step, outbox))
    }

    /// Refuses the option at once. It is skipped while it comes in, never kept.
    fn on_too_long(
        &mut self,
        option: OptionCode,
        payload_bytes: u32,
        payload_length: usize,
        outbox: &mut Outbox,
    ) -> Result<Progress<D::Export>, Violation> {
        self.begin_option(option)?;
        if option == OptionCode::EXPORT_NAME {
            return Err(Violation::ExportName("an export name of more than 4096 bytes"));
        }
        let may_be_without_tls = [OptionCode::STARTTLS, OptionCode::ABORT].contains(&option);
        let refusal = if self.channel.directory().is_none() && !may_be_without_tls {
            TLS_REQUIRED
        } else {
            let message = "the option is longer than any that this server knows";
            Refusal { code: ReplyCode::ERR_TOO_BIG, message }
        };
        refuse(option, refusal, outbox);
        if payload_bytes > OPTION_SKIPPED_BYTES_MAX {
            return Err(Violation::OptionTooLong { option, payload_bytes });
        }
        self.state = State::Skipping { payload_bytes: payload_length };
        Ok(Progress::Answered)
    }

    fn begin_option(&mut self, option: OptionCode) -> Result<(), Violation> {
        if option == OptionCode::SET_META_CONTEXT {
            // Each time anew, and if that fails there are none.
            self.chosen = Chosen::default();
        }
        self.options = self.options.saturating_add(1);
        if self.options > OPTIONS_MAX { Err(Violation::TooManyOptions) } else { Ok(()) }
    }

    fn decide(&self, code: OptionCode, payload: &[u8]) -> Result<Step<D::Export>, Violation> {
        match code {
            OptionCode::ABORT => return Ok(Step::Abort),
            OptionCode::EXPORT_NAME if self.is_stopping => {
                return Err(Violation::ExportName("an export of a server that is stopping"));
            }
            _ if self.is_stopping => {
                let message = "the server is shutting down";
                return Ok(Step::Refuse(Refusal { code: ReplyCode::ERR_SHUTDOWN, message }));
            }
            OptionCode::STARTTLS => return Ok(self.on_starttls(payload)),
            _ => {}
        }
        let Some(directory) = self.channel.directory() else {
            return Self::on_plaintext(code);
        };
        let option = match option::decode(code, payload) {
            Ok(option) => option,
            Err(refusal) if code == OptionCode::EXPORT_NAME => {
                return Err(Violation::ExportName(refusal.message));
            }
            Err(refusal) => return Ok(Step::Refuse(refusal)),
        };
        Ok(match option {
            ClientOption::List => Step::List,
            ClientOption::ExportName(_) if self.replies == Replies::Extended => {
                return Err(Violation::ExportName("an export by its name, with extended headers"));
            }
            ClientOption::ExportName(name) => {
                Step::EnterOldStyle(directory.find(name).map_err(|absent| match absent {
                    Absent::Unknown => Violation::UnknownExport(name.to_owned()),
                    Absent::Broken => Violation::BrokenExport(name.to_owned()),
                })?)
            }
            ClientOption::Info(query) => match directory.find(query.name) {
                Ok(export) => Step::Describe(export, Facts::from(&query)),
                Err(absent) => Step::Refuse(self.absent_export(query.name, absent)),
            },
            ClientOption::Go(query) => match directory.find(query.name) {
                Ok(export) => Step::Enter(export, Facts::from(&query)),
                Err(absent) => Step::Refuse(self.absent_export(query.name, absent)),
            },
            ClientOption::ListMetaContext(query) => match directory.find(query.name) {
                Ok(export) => Step::list_contexts(export, &query),
                Err(absent) => Step::Refuse(self.absent_export(query.name, absent)),
            },
            ClientOption::SetMetaContext(_) if self.replies == Replies::Simple => {
                let message = "metadata contexts need structured replies: ask for those first";
                Step::Refuse(Refusal { code: ReplyCode::ERR_INVALID, message })
            }
            ClientOption::SetMetaContext(query) => match directory.find(query.name) {
                Ok(export) => Step::set_contexts(export, &query),
                Err(absent) => Step::Refuse(self.absent_export(query.name, absent)),
            },
            ClientOption::StructuredReply if self.replies == Replies::Extended => {
                let message = "extended headers are negotiated already, and are more";
                Step::Refuse(Refusal { code: ReplyCode::ERR_EXT_HEADER_REQD, message })
            }
            ClientOption::StructuredReply => Step::Replies(Replies::Structured),
            ClientOption::ExtendedHeaders if self.replies == Replies::Extended => {
                let message = "extended headers are negotiated already";
                Step::Refuse(Refusal { code: ReplyCode::ERR_INVALID, message })
            }
            ClientOption::ExtendedHeaders => Step::Replies(Replies::Extended),
            ClientOption::Unknown => Step::Refuse(Refusal {
                code: ReplyCode::ERR_UNSUP,
                message: "this server does not know the option",
            }),
        })
    }

    /// Section "TLS support": acknowledged once, before TLS, with no payload.
    fn on_starttls(&self, payload: &[u8]) -> Step<D::Export> {
        let refuse = |code, message| Step::Refuse(Refusal { code, message });
        match self.channel {
            Channel::Plain(_) => refuse(ReplyCode::ERR_POLICY, "this server runs without TLS"),
            Channel::Tls(_) => refuse(ReplyCode::ERR_INVALID, "TLS has begun already"),
            Channel::MayUpgrade(_) | Channel::MustUpgrade if !payload.is_empty() => {
                refuse(ReplyCode::ERR_INVALID, "beginning TLS takes no data")
            }
            Channel::MayUpgrade(_) | Channel::MustUpgrade => Step::StartTls,
        }
    }

    /// "If the server receives any other option, it MUST reply with `NBD_REP_ERR_TLS_REQD`", and
    /// to `EXPORT_NAME` it cannot reply.
    fn on_plaintext(code: OptionCode) -> Result<Step<D::Export>, Violation> {
        if code == OptionCode::EXPORT_NAME {
            return Err(Violation::ExportName("an export without TLS, which is required"));
        }
        Ok(Step::Refuse(TLS_REQUIRED))
    }

    /// An unknown name and a hidden one must look the same, so the answer depends on nothing else.
    fn absent_export(&self, name: &str, absent: Absent) -> Refusal {
        let (code, message) = match self.channel {
            // Only told to clients who would get the export if it could be opened.
            _ if absent == Absent::Broken => (
                ReplyCode::ERR_UNKNOWN,
                "the snapshot of this export cannot be opened; the server's log says why",
            ),
            Channel::MayUpgrade(_) => {
                (ReplyCode::ERR_TLS_REQD, "there is no export of that name without TLS")
            }
            _ if name.is_empty() => {
                (ReplyCode::ERR_UNKNOWN, "there is no default export: ask for one by name")
            }
            Channel::Plain(_) | Channel::MustUpgrade | Channel::Tls(_) => {
                (ReplyCode::ERR_UNKNOWN, "there is no export of that name")
            }
        };
        Refusal { code, message }
    }

    fn perform(
        &mut self,
        option: OptionCode,
        step: Step<D::Export>,
        outbox: &mut Outbox,
    ) -> Progress<D::Export> {
        let flags = self.transmission_flags();
        match step {
            Step::Refuse(refusal) => refuse(option, refusal, outbox),
            Step::List => {
                let listed = self.channel.directory().map_or_else(Vec::new, D::list);
                list(&listed, outbox);
            }
            Step::ListContexts(export, contexts) => {
                list_contexts(option, export.info(), contexts, outbox);
            }
            Step::SetContexts(export, contexts) => {
                list_contexts(option, export.info(), contexts, outbox);
                self.chosen = Chosen { export: export.info().name.clone(), contexts };
            }
            Step::Describe(export, facts) => describe(option, export.info(), flags, &facts, outbox),
            Step::Enter(export, facts) => {
                describe(option, export.info(), flags, &facts, outbox);
                return Progress::Enter(self.entered(export));
            }
            Step::EnterOldStyle(export) => {
                outbox.push_copy(&export.info().size_bytes.to_be_bytes());
                outbox.push_copy(&flags.to_be_bytes());
                if !self.flags.no_zeros {
                    outbox.push_copy(&[0; RESERVED_ZEROS_BYTES]);
                }
                return Progress::Enter(self.entered(export));
            }
            Step::Replies(replies) => {
                self.replies = replies;
                acknowledge(option, outbox);
            }
            Step::StartTls => {
                acknowledge(option, outbox);
                return Progress::StartTls(Upgrade(self.flags));
            }
            Step::Abort => {
                acknowledge(option, outbox);
                return Progress::Aborted;
            }
        }
        Progress::Answered
    }

    fn entered(&self, export: D::Export) -> Entered<D::Export> {
        let is_same = self.chosen.export == export.info().name;
        let contexts = if is_same { self.chosen.contexts } else { Contexts::default() };
        Entered { export, replies: self.replies, contexts }
    }

    /// The server "MUST leave this flag clear if structured replies have not been negotiated" is
    /// said of `SEND_DF`, and the same of `BLOCK_STATUS_PAYLOAD` and extended headers.
    fn transmission_flags(&self) -> u16 {
        TRANSMISSION_FLAGS
            | match self.replies {
                Replies::Simple => 0,
                Replies::Structured => transmission_flags::SEND_DF,
                Replies::Extended => {
                    transmission_flags::SEND_DF | transmission_flags::BLOCK_STATUS_PAYLOAD
                }
            }
    }
}

impl<E: NegotiatedExport> Step<E> {
    /// Without a query, all contexts are meant.
    fn list_contexts(export: E, query: &ContextQuery<'_>) -> Self {
        let names = export.info().contexts;
        let all = query.queries().next().is_none();
        let contexts = if all {
            Contexts::first(names.len())
        } else {
            Contexts::asked_for(names, query.queries(), true)
        };
        Self::ListContexts(export, contexts)
    }

    fn set_contexts(export: E, query: &ContextQuery<'_>) -> Self {
        let contexts = Contexts::asked_for(export.info().contexts, query.queries(), false);
        Self::SetContexts(export, contexts)
    }
}
