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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::limits::DESCRIPTION_BYTES_MAX;
    use crate::nbd::{ExportInfo, Listing};

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Export(ExportInfo);

    impl NegotiatedExport for Export {
        fn info(&self) -> &ExportInfo {
            &self.0
        }
    }

    /// One export, `disk`, which is the default too.
    #[derive(Debug)]
    struct OneDisk;

    impl ExportDirectory for OneDisk {
        type Export = Export;

        fn list(&self) -> Vec<Listing> {
            vec![Listing { name: "disk".into(), description: "d".repeat(5000) }]
        }

        fn find(&self, name: &str) -> Result<Export, Absent> {
            match name {
                "" | "disk" => Ok(Export(ExportInfo {
                    name: "disk".into(),
                    description: "a disk".into(),
                    size_bytes: 1000,
                    preferred_block_bytes: 65_536,
                    contexts: &["base:allocation", "hexz:shared"],
                })),
                "broken" => Err(Absent::Broken),
                _ => Err(Absent::Unknown),
            }
        }
    }

    fn greeted(flags: u32) -> (Negotiation<OneDisk>, Outbox) {
        greeted_in(Channel::Plain(OneDisk), flags)
    }

    fn greeted_in(channel: Channel<OneDisk>, flags: u32) -> (Negotiation<OneDisk>, Outbox) {
        let mut outbox = Outbox::default();
        let mut session = Negotiation::new(channel, &mut outbox);
        let _ = taken(&mut outbox);
        let mut input = BytesMut::from(&flags.to_be_bytes()[..]);
        assert_eq!(session.advance(&mut input, &mut outbox), Ok(Progress::Answered));
        (session, outbox)
    }

    fn taken(outbox: &mut Outbox) -> Vec<u8> {
        outbox.copy_to_bytes(outbox.remaining()).to_vec()
    }

    fn option(code: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap();
        [b"IHAVEOPT", &code.to_be_bytes()[..], &length.to_be_bytes(), payload].concat()
    }

    /// What one option is answered with, and how far the session has come.
    fn answer(bytes: &[u8]) -> (Result<Progress<Export>, Violation>, Vec<u8>) {
        let (mut session, mut outbox) = greeted(3);
        let mut input = BytesMut::from(bytes);
        let progress = session.advance(&mut input, &mut outbox);
        (progress, taken(&mut outbox))
    }

    #[test]
    fn the_greeting_offers_fixed_newstyle_and_no_zeros() {
        let mut outbox = Outbox::default();
        let _session = Negotiation::new(Channel::Plain(OneDisk), &mut outbox);
        assert_eq!(taken(&mut outbox), b"NBDMAGICIHAVEOPT\0\x03");
    }

    #[test]
    fn unknown_client_flags_end_the_session() {
        for bit in 2..32 {
            let mut outbox = Outbox::default();
            let mut session = Negotiation::new(Channel::Plain(OneDisk), &mut outbox);
            let flags = 3_u32 | 1 << bit;
            let mut input = BytesMut::from(&flags.to_be_bytes()[..]);
            let ended = session.advance(&mut input, &mut outbox);
            assert_eq!(ended, Err(Violation::ClientFlags(flags)));
        }
    }

    #[test]
    fn options_may_come_byte_by_byte() {
        let (mut session, mut outbox) = greeted(3);
        let mut input = BytesMut::new();
        let bytes = option(OptionCode::LIST.0, b"");
        for (number, byte) in bytes.iter().enumerate() {
            input.extend_from_slice(&[*byte]);
            let progress = session.advance(&mut input, &mut outbox).unwrap();
            let last = number == bytes.len() - 1;
            assert_eq!(progress, if last { Progress::Answered } else { Progress::NeedsInput });
        }
        assert!(input.is_empty());
    }

    #[test]
    fn an_option_that_is_too_long_is_refused_at_once_and_skipped() {
        let (mut session, mut outbox) = greeted(3);
        let long = option(OptionCode::GO.0, &vec![0; OPTION_SKIPPED_BYTES_MAX as usize]);
        let (first, rest) = long.split_at(20_000);
        let mut input = BytesMut::from(first);
        assert_eq!(session.advance(&mut input, &mut outbox), Ok(Progress::Answered));
        assert_eq!(taken(&mut outbox)[12..16], ReplyCode::ERR_TOO_BIG.0.to_be_bytes());
        assert_eq!(session.advance(&mut input, &mut outbox), Ok(Progress::NeedsInput));
        assert!(input.is_empty());
        input.extend_from_slice(rest);
        input.extend_from_slice(&option(OptionCode::ABORT.0, b""));
        assert_eq!(session.advance(&mut input, &mut outbox), Ok(Progress::Aborted));
    }

    #[test]
    fn an_option_of_4_gib_ends_the_session_before_it_is_read() {
        let mut bytes = option(OptionCode::INFO.0, b"");
        bytes[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
        let (progress, reply) = answer(&bytes);
        assert!(matches!(progress, Err(Violation::OptionTooLong { payload_bytes: u32::MAX, .. })));
        assert_eq!(reply[12..16], ReplyCode::ERR_TOO_BIG.0.to_be_bytes());
    }

    #[test]
    fn export_name_that_cannot_be_served_ends_the_session_in_silence() {
        for name in [&b"nothing"[..], b"broken", b"\xff", b"a\0", &[b'x'; 4097], &[b'x'; 20_000]] {
            let (progress, reply) = answer(&option(OptionCode::EXPORT_NAME.0, name));
            assert!(progress.is_err());
            assert_eq!(reply, b"");
        }
    }

    #[test]
    fn a_broken_export_is_told_from_an_unknown_one_by_the_sentence_alone() {
        for channel in [Channel::Plain, Channel::MayUpgrade, Channel::Tls] {
            let answer = |name: &[u8]| {
                let (mut session, mut outbox) = greeted_in(channel(OneDisk), 3);
                let length = u32::try_from(name.len()).unwrap().to_be_bytes();
                let query = [&length[..], name, &[0, 0]].concat();
                let mut input = BytesMut::from(&option(OptionCode::GO.0, &query)[..]);
                assert_eq!(session.advance(&mut input, &mut outbox), Ok(Progress::Answered));
                taken(&mut outbox)
            };
            let (broken, unknown) = (answer(b"broken"), answer(b"nothing"));
            assert_eq!(broken[12..16], ReplyCode::ERR_UNKNOWN.0.to_be_bytes());
            assert!(broken.ends_with(b"cannot be opened; the server's log says why"));
            assert!(unknown[20..].starts_with(b"there is no export of that name"));
        }
    }

    #[test]
    fn export_name_is_followed_by_zeros_unless_the_client_does_without() {
        for (flags, length) in [(0, 134), (1, 134), (2, 10), (3, 10)] {
            let (mut session, mut outbox) = greeted(flags);
            let mut input = BytesMut::from(&option(OptionCode::EXPORT_NAME.0, b"disk")[..]);
            let progress = session.advance(&mut input, &mut outbox).unwrap();
            assert!(matches!(progress, Progress::Enter(_)));
            let reply = taken(&mut outbox);
            assert_eq!(reply.len(), length);
            assert_eq!(reply[..10], *b"\0\0\0\0\0\0\x03\xe8\x05\x07");
        }
    }

    #[test]
    fn options_are_counted() {
        let (mut session, mut outbox) = greeted(3);
        for _ in 0..OPTIONS_MAX {
            let mut input = BytesMut::from(&option(99, b"")[..]);
            assert_eq!(session.advance(&mut input, &mut outbox), Ok(Progress::Answered));
        }
        let mut input = BytesMut::from(&option(99, b"")[..]);
        assert_eq!(session.advance(&mut input, &mut outbox), Err(Violation::TooManyOptions));
    }

    #[test]
    fn a_client_that_understands_no_replies_is_sent_none() {
        for flags in [0, 2] {
            let (mut session, mut outbox) = greeted(flags);
            let mut input = BytesMut::from(&option(OptionCode::LIST.0, b"")[..]);
            let ended = session.advance(&mut input, &mut outbox);
            assert_eq!(ended, Err(Violation::NotFixed(OptionCode::LIST)));
            assert_eq!(taken(&mut outbox), b"");
        }
    }

    fn code_of(
        session: &mut Negotiation<OneDisk>,
        outbox: &mut Outbox,
        code: OptionCode,
        payload: &[u8],
    ) -> (Progress<Export>, ReplyCode) {
        let mut input = BytesMut::from(&option(code.0, payload)[..]);
        let progress = session.advance(&mut input, outbox).unwrap();
        let reply = taken(outbox);
        (progress, ReplyCode(u32::from_be_bytes(reply[12..16].try_into().unwrap())))
    }

    const QUERY: &[u8] = b"\0\0\0\x04disk\0\0";

    /// "`NBD_REP_ERR_TLS_REQD` in reply to any option" but two, before TLS; never after.
    #[test]
    fn where_tls_is_required_nothing_is_answered_before_it() {
        let (mut session, mut outbox) = greeted_in(Channel::MustUpgrade, 3);
        for number in (0..100).filter(|number| ![1, 2, 5].contains(number)) {
            for payload in [&b""[..], QUERY, b"x"] {
                let code = OptionCode(number);
                let (progress, reply) = code_of(&mut session, &mut outbox, code, payload);
                assert_eq!((progress, reply), (Progress::Answered, ReplyCode::ERR_TLS_REQD));
            }
        }
        let mut input = BytesMut::from(&option(OptionCode::EXPORT_NAME.0, b"disk")[..]);
        assert!(session.advance(&mut input, &mut outbox).is_err());
        assert_eq!(taken(&mut outbox), b"");
    }

    #[test]
    fn starttls_is_acknowledged_once_before_tls_and_without_payload() {
        let start = OptionCode::STARTTLS;
        for channel in [Channel::MustUpgrade, Channel::MayUpgrade(OneDisk)] {
            let (mut session, mut outbox) = greeted_in(channel, 3);
            let (progress, reply) = code_of(&mut session, &mut outbox, start, b"x");
            assert_eq!((progress, reply), (Progress::Answered, ReplyCode::ERR_INVALID));
            let (progress, reply) = code_of(&mut session, &mut outbox, start, b"");
            let Progress::StartTls(upgrade) = progress else { panic!("{progress:?}") };
            assert_eq!(reply, ReplyCode::ACK);
            let mut session = upgrade.negotiate(OneDisk);
            let (progress, reply) = code_of(&mut session, &mut outbox, start, b"");
            assert_eq!((progress, reply), (Progress::Answered, ReplyCode::ERR_INVALID));
            let (progress, _) = code_of(&mut session, &mut outbox, OptionCode::GO, QUERY);
            assert!(matches!(progress, Progress::Enter(_)));
        }
        let (mut session, mut outbox) = greeted(3);
        let (_, reply) = code_of(&mut session, &mut outbox, start, b"");
        assert_eq!(reply, ReplyCode::ERR_POLICY);
    }

    /// What an option is answered with, and the flags that the export is described with.
    fn flags_of(session: &mut Negotiation<OneDisk>, outbox: &mut Outbox, code: OptionCode) -> u16 {
        let mut input = BytesMut::from(&option(code.0, QUERY)[..]);
        let progress = session.advance(&mut input, outbox).unwrap();
        assert_eq!(matches!(progress, Progress::Enter(_)), code == OptionCode::GO);
        u16::from_be_bytes(taken(outbox)[30..32].try_into().unwrap())
    }

    #[test]
    fn structured_replies_are_acknowledged_every_time_and_take_no_payload() {
        let code = OptionCode::STRUCTURED_REPLY;
        let (mut session, mut outbox) = greeted(3);
        for (payload, expected) in [
            (&b"x"[..], ReplyCode::ERR_INVALID),
            (b"", ReplyCode::ACK),
            (b"", ReplyCode::ACK),
            (b"x", ReplyCode::ERR_INVALID),
        ] {
            let (progress, reply) = code_of(&mut session, &mut outbox, code, payload);
            assert_eq!((progress, reply), (Progress::Answered, expected));
        }
        let (progress, _) = code_of(&mut session, &mut outbox, OptionCode::GO, QUERY);
        let Progress::Enter(Entered { replies, .. }) = progress else { panic!("{progress:?}") };
        assert_eq!(replies, Replies::Structured);
    }

    #[test]
    fn send_df_is_set_exactly_when_structured_replies_are_negotiated() {
        for (payload, flags) in [(None, 0x0507), (Some(&b"x"[..]), 0x0507), (Some(b""), 0x0587)] {
            let (mut session, mut outbox) = greeted(3);
            if let Some(payload) = payload {
                let code = OptionCode::STRUCTURED_REPLY;
                let _ = code_of(&mut session, &mut outbox, code, payload);
            }
            for code in [OptionCode::INFO, OptionCode::GO] {
                assert_eq!(flags_of(&mut session, &mut outbox, code), flags);
            }
            let mut input = BytesMut::from(&option(OptionCode::EXPORT_NAME.0, b"disk")[..]);
            let progress = session.advance(&mut input, &mut outbox).unwrap();
            let Progress::Enter(entered) = progress else { panic!("{progress:?}") };
            let structured = flags == 0x0587;
            assert_eq!(entered.replies == Replies::Structured, structured);
            assert_eq!(taken(&mut outbox)[8..10], flags.to_be_bytes());
        }
    }

    /// "State from before STARTTLS" is never used after it.
    #[test]
    fn structured_replies_that_were_negotiated_in_plaintext_are_forgotten() {
        let (mut session, mut outbox) = greeted_in(Channel::MayUpgrade(OneDisk), 3);
        let code = OptionCode::STRUCTURED_REPLY;
        let (_, reply) = code_of(&mut session, &mut outbox, code, b"");
        assert_eq!(reply, ReplyCode::ACK);
        let (progress, _) = code_of(&mut session, &mut outbox, OptionCode::STARTTLS, b"");
        let Progress::StartTls(upgrade) = progress else { panic!("{progress:?}") };
        let mut session = upgrade.negotiate(OneDisk);
        assert_eq!(flags_of(&mut session, &mut outbox, OptionCode::INFO), 0x0507);
        let (progress, _) = code_of(&mut session, &mut outbox, OptionCode::GO, QUERY);
        let Progress::Enter(entered) = progress else { panic!("{progress:?}") };
        assert_eq!(entered.replies, Replies::Simple);
    }

    fn contexts_query(queries: &[&str]) -> Vec<u8> {
        let text = |text: &str| {
            [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
        };
        let count = u32::try_from(queries.len()).unwrap().to_be_bytes();
        let queries: Vec<u8> = queries.iter().flat_map(|query| text(query)).collect();
        [text("disk"), count.to_vec(), queries].concat()
    }

    /// Names and numbers of the contexts that an option is answered with, and the last code.
    fn contexts_of(
        session: &mut Negotiation<OneDisk>,
        code: OptionCode,
        queries: &[&str],
    ) -> (Vec<(String, u32)>, ReplyCode) {
        let mut outbox = Outbox::default();
        let mut input = BytesMut::from(&option(code.0, &contexts_query(queries))[..]);
        assert_eq!(session.advance(&mut input, &mut outbox), Ok(Progress::Answered));
        let (mut ids, mut replies) = (Vec::new(), taken(&mut outbox));
        loop {
            let code = ReplyCode(u32::from_be_bytes(replies[12..16].try_into().unwrap()));
            if code != ReplyCode::META_CONTEXT {
                return (ids, code);
            }
            let length = u32::from_be_bytes(replies[16..20].try_into().unwrap());
            let rest = replies.split_off(20_usize.saturating_add(length as usize));
            let name = String::from_utf8(replies.split_off(24)).unwrap();
            ids.push((name, u32::from_be_bytes(replies[20..24].try_into().unwrap())));
            replies = rest;
        }
    }

    fn entered(session: &mut Negotiation<OneDisk>) -> Entered<Export> {
        let (progress, _) = code_of(session, &mut Outbox::default(), OptionCode::GO, QUERY);
        let Progress::Enter(entered) = progress else { panic!("{progress:?}") };
        entered
    }

    #[test]
    fn contexts_are_listed_by_namespace_and_chosen_by_name() {
        let list = OptionCode::LIST_META_CONTEXT;
        let set = OptionCode::SET_META_CONTEXT;
        for (queries, listed, chosen) in [
            (&[][..], &["base:allocation", "hexz:shared"][..], &[][..]),
            (&["base:"], &["base:allocation"], &[]),
            (&["hexz:shared", "base:allocation"], &["base:allocation", "hexz:shared"], &[1, 2]),
            (&["qemu:dirty-bitmap:x", ""], &[], &[]),
        ] {
            let (mut session, mut outbox) = greeted(3);
            let sr = OptionCode::STRUCTURED_REPLY;
            let _ = code_of(&mut session, &mut outbox, sr, b"");
            let (found, code) = contexts_of(&mut session, list, queries);
            let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!((&names[..], code), (listed, ReplyCode::ACK), "{queries:?}");
            assert!(found.iter().all(|(_, id)| *id == 0), "no number in a mere list");
            let (found, code) = contexts_of(&mut session, set, queries);
            let ids: Vec<u32> = found.iter().map(|(_, id)| *id).collect();
            assert_eq!((&ids[..], code), (chosen, ReplyCode::ACK), "{queries:?}");
            let contexts = entered(&mut session).contexts;
            let ids: Vec<u32> = contexts.iter().map(crate::nbd::Context::wire_id).collect();
            assert_eq!(ids, chosen, "{queries:?}");
        }
    }

    #[test]
    fn contexts_are_chosen_anew_each_time_and_a_failure_leaves_none() {
        let set = OptionCode::SET_META_CONTEXT;
        let (mut session, mut outbox) = greeted(3);
        let (_, code) = contexts_of(&mut session, set, &["base:allocation"]);
        assert_eq!(code, ReplyCode::ERR_INVALID, "they need structured replies");
        let _ = code_of(&mut session, &mut outbox, OptionCode::STRUCTURED_REPLY, b"");
        let _ = contexts_of(&mut session, set, &["base:allocation"]);
        let (ids, _) = contexts_of(&mut session, set, &["hexz:shared"]);
        assert_eq!(ids, [("hexz:shared".to_owned(), 2)]);
        let (_, reply) = code_of(&mut session, &mut outbox, set, b"\0\0\0\x04nope\0\0\0\0");
        assert_eq!(reply, ReplyCode::ERR_UNKNOWN);
        assert!(entered(&mut session).contexts.is_empty());

        let (mut session, mut outbox) = greeted(3);
        let _ = code_of(&mut session, &mut outbox, OptionCode::STRUCTURED_REPLY, b"");
        let _ = contexts_of(&mut session, set, &["base:allocation"]);
        let mut input = BytesMut::from(&option(set.0, &[0; 20_000])[..]);
        assert_eq!(session.advance(&mut input, &mut outbox), Ok(Progress::Answered));
        assert_eq!(taken(&mut outbox)[12..16], ReplyCode::ERR_TOO_BIG.0.to_be_bytes());
        assert_eq!(session.advance(&mut input, &mut outbox), Ok(Progress::NeedsInput));
        assert!(entered(&mut session).contexts.is_empty(), "too long is a failure too");
    }

    #[test]
    fn extended_headers_are_negotiated_once_and_take_the_place_of_structured_replies() {
        let code = OptionCode::EXTENDED_HEADERS;
        let (mut session, mut outbox) = greeted(3);
        for (code, payload, expected) in [
            (code, &b"x"[..], ReplyCode::ERR_INVALID),
            (code, b"", ReplyCode::ACK),
            (code, b"", ReplyCode::ERR_INVALID),
            (OptionCode::STRUCTURED_REPLY, b"", ReplyCode::ERR_EXT_HEADER_REQD),
        ] {
            let (progress, reply) = code_of(&mut session, &mut outbox, code, payload);
            assert_eq!((progress, reply), (Progress::Answered, expected));
        }
        assert_eq!(flags_of(&mut session, &mut outbox, OptionCode::INFO), 0x1587);
        let mut input = BytesMut::from(&option(OptionCode::EXPORT_NAME.0, b"disk")[..]);
        assert!(session.advance(&mut input, &mut outbox).is_err(), "there is no such way in");

        let (mut session, mut outbox) = greeted(3);
        let _ = code_of(&mut session, &mut outbox, OptionCode::STRUCTURED_REPLY, b"");
        let (_, reply) = code_of(&mut session, &mut outbox, code, b"");
        assert_eq!(reply, ReplyCode::ACK);
        assert_eq!(entered(&mut session).replies, Replies::Extended);
    }

    /// "SHOULD error further options received (other than an `NBD_OPT_ABORT`)".
    #[test]
    fn after_the_stop_options_are_refused_but_for_the_goodbye() {
        for channel in [Channel::Plain(OneDisk), Channel::MustUpgrade, Channel::Tls(OneDisk)] {
            let (mut session, mut outbox) = greeted_in(channel, 3);
            session.stop();
            for code in [3, 5, 6, 7, 8, 9, 10, 11, 99].map(OptionCode) {
                let (progress, reply) = code_of(&mut session, &mut outbox, code, QUERY);
                assert_eq!((progress, reply), (Progress::Answered, ReplyCode::ERR_SHUTDOWN));
            }
            let (progress, _) = code_of(&mut session, &mut outbox, OptionCode::ABORT, b"");
            assert_eq!(progress, Progress::Aborted);
            let mut input = BytesMut::from(&option(OptionCode::EXPORT_NAME.0, b"disk")[..]);
            assert!(session.advance(&mut input, &mut outbox).is_err());
        }
    }

    /// "State from before STARTTLS" again.
    #[test]
    fn contexts_and_extended_headers_that_were_negotiated_in_plaintext_are_forgotten() {
        let (mut session, mut outbox) = greeted_in(Channel::MayUpgrade(OneDisk), 3);
        let _ = code_of(&mut session, &mut outbox, OptionCode::EXTENDED_HEADERS, b"");
        let set = OptionCode::SET_META_CONTEXT;
        assert_eq!(contexts_of(&mut session, set, &["base:allocation"]).0.len(), 1);
        let (progress, _) = code_of(&mut session, &mut outbox, OptionCode::STARTTLS, b"");
        let Progress::StartTls(upgrade) = progress else { panic!("{progress:?}") };
        let entered = entered(&mut upgrade.negotiate(OneDisk));
        assert_eq!((entered.replies, entered.contexts), (Replies::Simple, Contexts::default()));
    }

    /// A made-up name must look like one that is hidden.
    #[test]
    fn a_name_that_is_not_seen_without_tls_is_answered_with_tls_required() {
        let (mut session, mut outbox) = greeted_in(Channel::MayUpgrade(OneDisk), 3);
        let query = b"\0\0\0\x04nope\0\0";
        for code in [OptionCode::INFO, OptionCode::GO] {
            let (_, reply) = code_of(&mut session, &mut outbox, code, query);
            assert_eq!(reply, ReplyCode::ERR_TLS_REQD);
        }
        let (progress, _) = code_of(&mut session, &mut outbox, OptionCode::GO, QUERY);
        assert!(matches!(progress, Progress::Enter(_)));
    }

    /// The client says once whether it wants the zeros, before TLS.
    #[test]
    fn what_the_client_said_of_itself_holds_after_tls() {
        for (flags, length) in [(1, 134), (3, 10)] {
            let (mut session, mut outbox) = greeted_in(Channel::MustUpgrade, flags);
            let (progress, _) = code_of(&mut session, &mut outbox, OptionCode::STARTTLS, b"");
            let Progress::StartTls(upgrade) = progress else { panic!("{progress:?}") };
            let mut session = upgrade.negotiate(OneDisk);
            let mut input = BytesMut::from(&option(OptionCode::EXPORT_NAME.0, b"disk")[..]);
            let progress = session.advance(&mut input, &mut outbox).unwrap();
            assert!(matches!(progress, Progress::Enter(_)));
            assert_eq!(taken(&mut outbox).len(), length);
        }
    }

    /// nbd-client 3.24 reads a description into a buffer of 1024 bytes.
    #[test]
    fn a_listed_description_is_cut() {
        let (_, reply) = answer(&option(OptionCode::LIST.0, b""));
        assert_eq!(reply.len(), 20 + 4 + 4 + DESCRIPTION_BYTES_MAX + 20);
    }
}
