use bytes::Bytes;

use super::*;
use crate::nbd::chunks::Fragments;
use crate::nbd::limits::OWED_BYTES_MAX;
use crate::nbd::reply::simple_reply;
use crate::nbd::wire::{CHUNK_HEADER_BYTES, Command, REQUEST_BYTES, command_flags};

const EXPORT_BYTES: u64 = 1 << 20;

const PART: u64 = PART_BYTES as u64;

fn session() -> Transmission {
    session_with(Replies::Simple)
}

fn structured() -> Transmission {
    session_with(Replies::Structured)
}

fn session_with(replies: Replies) -> Transmission {
    let terms = Terms { export_bytes: EXPORT_BYTES, replies, contexts: Contexts::first(2) };
    let mut session = Transmission::new(terms, Outbox::default());
    session.allow(OWED_BYTES_MAX);
    session
}

/// The next work, which is a read.
fn next_read(session: &mut Transmission, input: &mut BytesMut) -> Option<Read> {
    session.next_work(input).unwrap().map(|work| match work {
        Work::Read(read) => read,
        other @ (Work::Load(_) | Work::Status(_)) => panic!("{other:?}"),
    })
}

fn request(command: Command, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = b"\x25\x60\x95\x13\0\0".to_vec();
    bytes.extend_from_slice(&command.0.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

fn taken(session: &mut Transmission) -> Vec<u8> {
    let outbox = session.outbox();
    outbox.copy_to_bytes(outbox.remaining()).to_vec()
}

fn pieces(length: u32) -> Result<Vec<Piece>, ReadFailure> {
    Ok(vec![data(length)])
}

fn data(length: u32) -> Piece {
    Piece::Data(Bytes::from(vec![7; length as usize]))
}

fn failure(before: Vec<Piece>) -> Result<Vec<Piece>, ReadFailure> {
    Err(ReadFailure { before, error: Errno::EIO, message: "broken", is_damage: false })
}

/// What a request is answered with, where a read comes to that.
fn answer(
    mut session: Transmission,
    request: &[u8],
    outcome: Result<Vec<Piece>, ReadFailure>,
) -> Vec<u8> {
    let mut input = BytesMut::from(request);
    if let Some(read) = next_read(&mut session, &mut input) {
        session.reply(read, outcome);
    }
    assert!(input.is_empty());
    taken(&mut session)
}

fn to(offset: u64) -> ReplyTo {
    ReplyTo { cookie: 1, offset, replies: Replies::Structured }
}

fn content(offset: u64, pieces: Vec<Piece>, fragments: Fragments, is_last: bool) -> Vec<u8> {
    let mut outbox = Outbox::default();
    push_content(to(offset), offset, pieces, fragments, is_last, &mut outbox);
    outbox.copy_to_bytes(outbox.remaining()).to_vec()
}

fn error(error: Errno, message: &str, position: Option<u64>) -> Vec<u8> {
    let mut outbox = Outbox::default();
    push_error(to(0), error, message, position, &mut outbox);
    outbox.copy_to_bytes(outbox.remaining()).to_vec()
}

#[test]
fn a_structured_read_is_answered_with_chunks_as_it_allows() {
    for (flags, fragments) in [(0, Fragments::Many), (command_flags::DF, Fragments::One)] {
        let mut request = request(Command::READ, 1, 100, 12);
        request[4..6].copy_from_slice(&flags.to_be_bytes());
        let pieces = vec![data(3), data(2), Piece::Zeros(7)];
        let expected = content(100, pieces.clone(), fragments, true);
        assert_eq!(answer(structured(), &request, Ok(pieces)), expected);
    }
    let empty = request(Command::READ, 1, EXPORT_BYTES, 0);
    let expected = content(EXPORT_BYTES, vec![], Fragments::Many, true);
    assert_eq!(answer(structured(), &empty, Ok(vec![])), expected);
    assert_eq!(expected.len(), CHUNK_HEADER_BYTES);
}

#[test]
fn a_failed_read_delivers_what_comes_before_only_where_the_client_can_tell() {
    let request = request(Command::READ, 1, 100, 12);
    for before in [vec![], vec![data(3)], vec![data(3), Piece::Zeros(8)]] {
        let simple = answer(session(), &request, failure(before.clone()));
        assert_eq!(simple, simple_reply(Some(Errno::EIO), 1));
        let place = 100 + total_bytes(&before);
        let expected = [
            content(100, before.clone(), Fragments::Many, false),
            error(Errno::EIO, "broken", Some(place)),
        ];
        assert_eq!(answer(structured(), &request, failure(before)), expected.concat());
    }
}

/// An offset "MUST lie within the original offset and length of the request".
#[test]
fn a_failed_read_of_no_bytes_has_no_place() {
    let request = request(Command::READ, 1, 100, 0);
    let expected = error(Errno::EIO, "broken", None);
    assert_eq!(answer(structured(), &request, failure(vec![])), expected);
}

#[test]
fn structured_refusals_come_with_a_sentence() {
    for (request, refusal) in [
        (request(Command::READ, 1, EXPORT_BYTES, 1), Refusal::PastEnd),
        (request(Command::READ, 1, 0, u32::MAX), Refusal::TooLong),
        (request(Command::TRIM, 1, 0, 1), Refusal::ReadOnly),
        (request(Command::WRITE, 1, 0, 0), Refusal::ReadOnly),
        (request(Command::FLUSH, 1, 0, 1), Refusal::FlushOfRange),
        (request(Command(99), 1, 0, 1), Refusal::UnknownCommand),
    ] {
        let expected = error(refusal.errno(), refusal.message(), None);
        // A refused write is answered with the request that comes next.
        let mut session = structured();
        let mut input = BytesMut::from(&request[..]);
        assert!(next_read(&mut session, &mut input).is_none());
        assert_eq!(taken(&mut session), expected, "{refusal:?}");
    }
    let flush = request(Command::FLUSH, 1, 0, 0);
    let done = content(0, vec![], Fragments::Many, true);
    assert_eq!(answer(structured(), &flush, Ok(vec![])), done);
}

#[test]
fn holes_are_owed_as_what_is_sent_of_them() {
    let mut session = structured();
    let mut input = BytesMut::from(&request(Command::READ, 1, 0, PART_BYTES).repeat(100)[..]);
    let mut answered = 0;
    while let Some(read) = next_read(&mut session, &mut input) {
        let bytes = u64::from(read.length);
        session.reply(read, Ok(vec![Piece::Zeros(bytes)]));
        answered += 1;
    }
    assert_eq!(answered, 100, "zeros that are not sent stopped the client");
    assert_eq!(session.outbox().owed_bytes(), 100 * (CHUNK_HEADER_BYTES as u64 + 12));
}

#[test]
fn replies_leave_in_the_order_in_which_reads_are_answered() {
    let mut session = session();
    let mut input = BytesMut::new();
    input.extend_from_slice(&request(Command::READ, 1, 0, 3));
    input.extend_from_slice(&request(Command::READ, 2, 0, 2));
    let first = next_read(&mut session, &mut input).unwrap();
    let second = next_read(&mut session, &mut input).unwrap();
    assert!(next_read(&mut session, &mut input).is_none());
    session.reply(second, pieces(2));
    session.reply(first, failure(vec![data(1)]));
    assert_eq!(
        taken(&mut session),
        [&simple_reply(None, 2)[..], &[7, 7], &simple_reply(Some(Errno::EIO), 1)].concat()
    );
}

#[test]
fn a_reply_of_the_wrong_length_is_an_error_without_data() {
    let request = request(Command::READ, 1, 100, 3);
    let sentence = "the server read another number of bytes than was asked for";
    let wrong = [0, 2, 4].map(pieces);
    for outcome in wrong.into_iter().chain([3, 4].map(|length| failure(vec![data(length)]))) {
        let simple = answer(session(), &request, outcome.clone());
        assert_eq!(simple, simple_reply(Some(Errno::EIO), 1));
        let expected = error(Errno::EIO, sentence, Some(100));
        assert_eq!(answer(structured(), &request, outcome), expected);
    }
}

#[test]
fn the_bytes_of_a_refused_write_are_passed_over_as_they_come() {
    let mut session = session();
    let mut input = BytesMut::from(&request(Command::WRITE, 1, 0, u32::MAX)[..]);
    let mut left = u64::from(u32::MAX);
    while left > 0 {
        assert!(next_read(&mut session, &mut input).is_none());
        assert!(input.is_empty() && taken(&mut session).is_empty());
        let some = left.min(1 << 30);
        input.resize(usize::try_from(some).unwrap(), 0x25);
        left -= some;
    }
    input.extend_from_slice(&request(Command::FLUSH, 2, 0, 0));
    assert!(next_read(&mut session, &mut input).is_none());
    assert_eq!(
        taken(&mut session),
        [simple_reply(Some(Errno::EPERM), 1), simple_reply(None, 2)].concat()
    );
}

#[test]
fn a_client_that_takes_nothing_is_not_listened_to() {
    let mut session = session();
    let mut input = BytesMut::new();
    let mut reads = Vec::new();
    for cookie in 0..1000 {
        input.extend_from_slice(&request(Command::READ, cookie, 0, PART_BYTES));
    }
    session.allow(32 * (PART + REPLY_COST));
    while let Some(read) = next_read(&mut session, &mut input) {
        reads.push(read);
    }
    assert_eq!(reads.len(), 32);
    assert!(!session.wants_input());
    for read in reads {
        session.reply(read, pieces(PART_BYTES));
    }
    assert!(next_read(&mut session, &mut input).is_none());
    session.outbox().advance(PART_BYTES as usize + 32 * 256);
    assert!(next_read(&mut session, &mut input).is_some());
    assert!(next_read(&mut session, &mut input).is_none());
}

#[test]
fn a_client_that_is_allowed_nothing_gets_on_all_the_same() {
    let mut session = session();
    session.allow(0);
    let mut input = BytesMut::from(&request(Command::READ, 1, 0, PART_BYTES).repeat(3)[..]);
    for _ in 0..3 {
        assert!(session.wants_input());
        let read = next_read(&mut session, &mut input).unwrap();
        assert!(next_read(&mut session, &mut input).is_none() && !session.wants_input());
        session.reply(read, pieces(PART_BYTES));
        assert!(next_read(&mut session, &mut input).is_none());
        assert_eq!(taken(&mut session).len(), PART_BYTES as usize + 16);
    }
}

#[test]
fn a_long_read_is_never_in_memory_as_a_whole() {
    for replies in [Replies::Simple, Replies::Structured, Replies::Extended] {
        let terms = Terms { export_bytes: 1 << 30, replies, contexts: Contexts::default() };
        let mut session = Transmission::new(terms, Outbox::default());
        session.allow(OWED_BYTES_MAX);
        let mut bytes = request(Command::READ, 1, 0, 32 << 20);
        if replies == Replies::Extended {
            bytes = extended(0, Command::READ, 1, 0, 32 << 20);
        }
        let mut input = BytesMut::from(&bytes[..]);
        let (mut sent, mut most) = (0, 0);
        loop {
            while let Some(work) = session.next_work(&mut input).unwrap() {
                match work {
                    Work::Read(read) => {
                        let bytes = read.length;
                        session.reply(read, pieces(bytes));
                    }
                    Work::Load(load) => session.loaded(load, Ok(Loaded::Data)),
                    Work::Status(status) => panic!("{status:?}"),
                }
                most = session.owed_bytes().max(most);
            }
            if session.is_idle() {
                break;
            }
            sent += taken(&mut session).len();
        }
        assert!(((32 << 20)..(32 << 20) + 8192).contains(&sent), "{sent}");
        assert!(most <= PARTS_AHEAD_BYTES, "{most} bytes at a time");
    }
}

#[test]
fn what_comes_behind_a_long_request_waits_for_it() {
    let mut session = session();
    let mut input = BytesMut::from(&request(Command::CACHE, 1, 0, 2 * PART_BYTES)[..]);
    input.extend_from_slice(&request(Command::FLUSH, 2, 0, 0));
    let mut loads = Vec::new();
    while let Some(work) = session.next_work(&mut input).unwrap() {
        let Work::Load(load) = work else { panic!("{work:?}") };
        loads.push(load);
    }
    assert_eq!(loads.len(), 2);
    assert!(taken(&mut session).is_empty() && !session.is_idle());
    for load in loads {
        session.loaded(load, Ok(Loaded::Data));
    }
    assert!(session.next_work(&mut input).unwrap().is_none());
    let expected = [simple_reply(None, 1), simple_reply(None, 2)].concat();
    assert_eq!(taken(&mut session), expected);
}

/// Advice costs no more than the longest read, however long the range is.
#[test]
fn of_a_long_range_only_the_beginning_is_loaded() {
    let terms =
        Terms { export_bytes: 1 << 40, replies: Replies::Simple, contexts: Contexts::default() };
    let mut session = Transmission::new(terms, Outbox::default());
    let mut input = BytesMut::from(&request(Command::CACHE, 1, 0, u32::MAX)[..]);
    let mut loaded = 0;
    while let Some(work) = session.next_work(&mut input).unwrap() {
        let Work::Load(load) = work else { panic!("{work:?}") };
        loaded += u64::from(load.length);
        session.loaded(load, Ok(Loaded::Data));
    }
    assert_eq!(loaded, PREFETCH_BYTES_MAX);
    assert_eq!(taken(&mut session), simple_reply(None, 1));
}

fn extended(flags: u16, command: Command, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = b"\x21\xe4\x1c\x71".to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.0.to_be_bytes());
    for number in [cookie, offset, length] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes
}

#[test]
fn extents_are_described_in_the_contexts_that_were_asked_for() {
    let flags = command_flags::PAYLOAD_LEN;
    let mut filtered = extended(flags, Command::BLOCK_STATUS, 1, 7, 12);
    filtered.extend_from_slice(b"\0\0\0\0\0\0\0\x05\0\0\0\x02");
    for (bytes, length, count) in
        [(extended(0, Command::BLOCK_STATUS, 1, 7, 5), 5, 2), (filtered, 5, 1)]
    {
        let mut session = session_with(Replies::Extended);
        // Not before all of it is there.
        let (most, last) = bytes.split_at(bytes.len() - 1);
        let mut input = BytesMut::from(most);
        assert!(session.next_work(&mut input).unwrap().is_none());
        input.extend_from_slice(last);
        let Some(Work::Status(status)) = session.next_work(&mut input).unwrap() else { panic!() };
        assert!(input.is_empty());
        assert_eq!((status.offset, status.length), (7, length));
        let extents = vec![crate::nbd::Extent { bytes: 5, status: 3 }];
        let described: Vec<Described> = status
            .contexts
            .iter()
            .map(|context| Described { context, extents: extents.clone() })
            .collect();
        session.describe(status, Ok(described));
        assert_eq!(taken(&mut session).len(), count * (32 + 8 + 16));
        assert!(session.is_idle());
    }
}

#[test]
fn extents_that_are_not_what_was_asked_for_are_an_error() {
    let bytes = request(Command::BLOCK_STATUS, 1, 0, 100);
    let extents = |bytes| vec![crate::nbd::Extent { bytes, status: 0 }];
    let contexts: Vec<_> = Contexts::first(3).iter().collect();
    let of = |place: usize, bytes| Described { context: contexts[place], extents: extents(bytes) };
    for (described, is_right) in [
        (vec![of(0, 100), of(1, 10)], true),
        (vec![of(0, 100)], false),
        (vec![of(1, 100), of(0, 100)], false),
        (vec![of(0, 100), of(1, 100), of(2, 100)], false),
        (vec![of(0, 101), of(1, 100)], false),
        (vec![of(0, 0), of(1, 100)], false),
        (vec![], false),
    ] {
        let mut session = structured();
        let mut input = BytesMut::from(&bytes[..]);
        let Some(Work::Status(status)) = session.next_work(&mut input).unwrap() else { panic!() };
        session.describe(status, Ok(described));
        let kind = taken(&mut session)[6];
        assert_eq!(kind == 0, is_right);
    }
}

#[test]
fn after_the_stop_requests_are_refused_and_what_was_accepted_is_answered() {
    for replies in [Replies::Simple, Replies::Structured] {
        let mut session = session_with(replies);
        let mut input = BytesMut::from(&request(Command::READ, 1, 0, 10)[..]);
        let read = next_read(&mut session, &mut input).unwrap();
        session.stop();
        assert!(session.wants_input());
        for command in
            [Command::READ, Command::WRITE, Command::FLUSH, Command::CACHE, Command::BLOCK_STATUS]
        {
            input.extend_from_slice(&request(command, 9, 0, 0));
            assert!(session.next_work(&mut input).unwrap().is_none());
            assert!(session.next_work(&mut input).unwrap().is_none());
            let reply = taken(&mut session);
            let at = if replies == Replies::Simple { 4 } else { 20 };
            assert_eq!(reply[at..at + 4], 108_u32.to_be_bytes(), "{command:?}");
        }
        session.reply(read, pieces(10));
        let reply = taken(&mut session);
        assert!(reply.ends_with(&[7; 10]) && session.is_idle() && !session.is_over());
        input.extend_from_slice(&request(Command::DISC, 9, 0, 0));
        assert!(session.next_work(&mut input).unwrap().is_none());
        assert!(session.is_over());
    }
}

/// "a server SHOULD initiate hard disconnect".
#[test]
fn a_payload_beyond_measure_ends_the_session_and_a_shorter_one_is_passed_over() {
    let flags = command_flags::PAYLOAD_LEN;
    let mut session = session_with(Replies::Extended);
    let long = extended(flags, Command::WRITE, 1, 0, (32 << 20) + 1);
    let ended = session.next_work(&mut BytesMut::from(&long[..])).unwrap_err();
    assert_eq!(ended, Violation::PayloadTooLong((32 << 20) + 1));

    let mut session = session_with(Replies::Extended);
    let mut input = BytesMut::from(&extended(flags, Command::READ, 1, 0, 5)[..]);
    input.extend_from_slice(b"bytes");
    input.extend_from_slice(&extended(0, Command::FLUSH, 2, 0, 0));
    assert!(session.next_work(&mut input).unwrap().is_none());
    let sent = taken(&mut session);
    assert_eq!(sent[4..8], [0, 1, 0x80, 1]);
    assert_eq!(sent[sent.len() - 32..][4..16], [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
}

#[test]
fn refused_requests_stop_a_client_that_takes_nothing_too() {
    for (replies, reply_bytes) in [
        (Replies::Simple, SIMPLE_REPLY_BYTES),
        (Replies::Structured, error(Errno::EPERM, Refusal::ReadOnly.message(), None).len()),
    ] {
        let owed_bytes_max = 100 * reply_bytes;
        let mut session = session_with(replies);
        session.allow(owed_bytes_max as u64);
        let mut input = BytesMut::from(&request(Command::TRIM, 1, 0, 1).repeat(1000)[..]);
        assert!(next_read(&mut session, &mut input).is_none());
        assert_eq!(taken(&mut session).len(), owed_bytes_max);
        assert_eq!(input.len(), 900 * REQUEST_BYTES);
    }
}

#[test]
fn disconnecting_waits_for_what_was_accepted_and_looks_at_nothing_more() {
    let mut session = session();
    let mut input = BytesMut::from(&request(Command::READ, 1, 0, 1)[..]);
    input.extend_from_slice(&request(Command::DISC, 2, 0, 0));
    input.extend_from_slice(&request(Command::READ, 3, 0, 1));
    let read = next_read(&mut session, &mut input).unwrap();
    assert!(next_read(&mut session, &mut input).is_none());
    assert_eq!(session.ending(), Some(Ending::Disconnected));
    assert!(!session.is_over() && !session.wants_input());
    session.reply(read, pieces(1));
    assert!(!session.is_over());
    assert_eq!(taken(&mut session).len(), 17);
    assert!(session.is_over());
}

#[test]
fn lost_framing_ends_the_session() {
    let mut input = BytesMut::from(&[0; REQUEST_BYTES][..]);
    assert_eq!(
        session().next_work(&mut input).unwrap_err(),
        Violation::Magic(BadMagic { found: 0 })
    );
}
