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
    let text =
        |text: &str| [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat();
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
