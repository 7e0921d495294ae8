use bytes::{Buf, Bytes};

use super::*;
use crate::nbd::wire::Errno;

const PART: u64 = PART_BYTES as u64;
const FAILED: Failure =
    Failure { error: Errno::EIO, message: "broken", position: None, is_damage: false };

fn to(offset: u64, replies: Replies) -> ReplyTo {
    ReplyTo { cookie: 1, offset, replies }
}

fn taken(outbox: &mut Outbox) -> Vec<u8> {
    outbox.copy_to_bytes(outbox.remaining()).to_vec()
}

fn bytes_of(offset: u64, length: u32) -> Vec<Piece> {
    let byte = u8::try_from(offset / PART % 251).unwrap();
    vec![Piece::Data(Bytes::from(vec![byte; length as usize]))]
}

fn parts(request: &mut InParts, outbox: &mut Outbox) -> Vec<Part> {
    std::iter::from_fn(|| request.next_part(true, outbox)).collect()
}

#[test]
fn parts_end_where_blocks_do_and_cover_the_range() {
    let mut outbox = Outbox::default();
    let mut request =
        InParts::of_read(to(PART - 5, Replies::Structured), PART_BYTES + 9, Fragments::Many);
    let read = |offset, length| Part::Read { offset, length };
    assert_eq!(
        parts(&mut request, &mut outbox),
        [read(PART - 5, 5), read(PART, PART_BYTES), read(2 * PART, 4)]
    );
}

#[test]
fn chunks_are_sent_in_order_however_the_parts_come() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let mut outbox = Outbox::default();
        let to = to(0, Replies::Structured);
        let mut request = InParts::of_read(to, 3 * PART_BYTES, Fragments::Many);
        let parts = parts(&mut request, &mut outbox);
        for place in order {
            let Part::Read { offset, length } = parts[place] else { panic!() };
            assert_eq!(request.ended(&mut outbox), None);
            request.read(offset, Ok(bytes_of(offset, length)), &mut outbox);
        }
        assert_eq!(request.ended(&mut outbox), Some(End::Answered));
        let mut sent = taken(&mut outbox);
        for place in 0..3_u8 {
            let rest = sent.split_off(20 + 8 + PART_BYTES as usize);
            assert_eq!(sent[5], u8::from(place == 2), "only the last chunk ends the reply");
            assert_eq!(sent[20..28], (u64::from(place) * PART).to_be_bytes());
            assert!(sent[28..].iter().all(|byte| *byte == place));
            sent = rest;
        }
        assert!(sent.is_empty());
    }
}

#[test]
fn behind_a_damaged_part_nothing_is_sent_or_asked_for() {
    let mut outbox = Outbox::default();
    let to = to(0, Replies::Structured);
    let mut request = InParts::of_read(to, 9 * PART_BYTES, Fragments::Many);
    for _ in 0..3 {
        request.next_part(true, &mut outbox).unwrap();
    }
    request.read(2 * PART, Ok(bytes_of(2 * PART, PART_BYTES)), &mut outbox);
    let failure = ReadFailure {
        before: bytes_of(PART, 10),
        error: Errno::EIO,
        message: "broken",
        is_damage: false,
    };
    request.read(PART, Err(failure), &mut outbox);
    request.read(0, Ok(bytes_of(0, PART_BYTES)), &mut outbox);
    assert_eq!(request.next_part(true, &mut outbox), None);
    assert_eq!(request.ended(&mut outbox), Some(End::Answered));
    let sent = taken(&mut outbox);
    let error = &sent[(28 + PART_BYTES as usize) + (28 + 10)..];
    assert_eq!(error[4..8], [0, 1, 0x80, 2]);
    assert_eq!(error[error.len() - 8..], (PART + 10).to_be_bytes());
}

#[test]
fn what_one_header_promises_is_loaded_first_and_begins_when_nothing_else_is_on_its_way() {
    for (replies, fragments, header_bytes) in
        [(Replies::Simple, Fragments::Many, 16), (Replies::Extended, Fragments::One, 40)]
    {
        let mut outbox = Outbox::default();
        let mut request = InParts::of_read(to(0, replies), 2 * PART_BYTES, fragments);
        let load = |offset| Part::Load { offset, length: PART_BYTES };
        assert_eq!(parts(&mut request, &mut outbox), [load(0), load(PART)]);
        request.loaded(PART, Ok(Loaded::Data));
        assert_eq!(request.next_part(true, &mut outbox), None, "one is not loaded");
        request.loaded(0, Ok(Loaded::Data));
        assert_eq!(request.next_part(false, &mut outbox), None, "a reply is on its way");
        assert_eq!(taken(&mut outbox), b"");
        let read = |offset| Part::Read { offset, length: PART_BYTES };
        assert_eq!(parts(&mut request, &mut outbox), [read(0), read(PART)]);
        assert_eq!(taken(&mut outbox).len(), header_bytes);
        request.read(PART, Ok(bytes_of(PART, PART_BYTES)), &mut outbox);
        assert_eq!(taken(&mut outbox), b"");
        request.read(0, Ok(bytes_of(0, PART_BYTES)), &mut outbox);
        assert_eq!(request.ended(&mut outbox), Some(End::Answered));
        let sent = taken(&mut outbox);
        assert_eq!(sent.len() as u64, 2 * PART);
        assert!(sent[..PART_BYTES as usize].iter().all(|byte| *byte == 0));
        assert!(sent[PART_BYTES as usize..].iter().all(|byte| *byte == 1));
    }
}

#[test]
fn a_hole_is_sent_as_one_however_many_parts_it_has() {
    for (replies, fragments) in [
        (Replies::Structured, Fragments::Many),
        (Replies::Structured, Fragments::One),
        (Replies::Simple, Fragments::Many),
    ] {
        let mut outbox = Outbox::default();
        let mut request = InParts::of_read(to(7, replies), 3 * PART_BYTES, fragments);
        while let Some(part) = request.next_part(true, &mut outbox) {
            match part {
                Part::Load { offset, .. } => request.loaded(offset, Ok(Loaded::Zeros)),
                Part::Read { offset, length } => {
                    let zeros = vec![Piece::Zeros(u64::from(length))];
                    request.read(offset, Ok(zeros), &mut outbox);
                }
            }
        }
        assert_eq!(request.ended(&mut outbox), Some(End::Answered));
        let sent = taken(&mut outbox);
        if replies == Replies::Simple {
            assert_eq!(sent.len() as u64, 16 + 3 * PART);
            continue;
        }
        assert_eq!(sent[4..8], [0, 1, 0, 2], "the last chunk is a hole");
        assert_eq!(sent[20..28], 7_u64.to_be_bytes());
        assert_eq!(sent[28..], (3 * PART_BYTES).to_be_bytes());
    }
}

#[test]
fn zeros_before_damage_are_sent() {
    let mut outbox = Outbox::default();
    let to = to(0, Replies::Structured);
    let mut request = InParts::of_read(to, 2 * PART_BYTES, Fragments::Many);
    assert_eq!(parts(&mut request, &mut outbox).len(), 2);
    request.read(0, Ok(vec![Piece::Zeros(PART)]), &mut outbox);
    let before = vec![Piece::Zeros(9)];
    let failure = ReadFailure { before, error: Errno::EIO, message: "broken", is_damage: false };
    request.read(PART, Err(failure), &mut outbox);
    assert_eq!(request.ended(&mut outbox), Some(End::Answered));
    let sent = taken(&mut outbox);
    assert_eq!(sent[28..32], (PART_BYTES + 9).to_be_bytes());
    assert_eq!(sent[sent.len() - 8..], (PART + 9).to_be_bytes());
}

#[test]
fn damage_that_loading_finds_is_an_error_and_no_promise() {
    for (replies, fragments) in
        [(Replies::Simple, Fragments::Many), (Replies::Structured, Fragments::One)]
    {
        let mut outbox = Outbox::default();
        let mut request = InParts::of_read(to(0, replies), 3 * PART_BYTES, fragments);
        assert_eq!(parts(&mut request, &mut outbox).len(), 3);
        request.loaded(2 * PART, Err(FAILED));
        request.loaded(PART, Err(Failure { position: Some(PART + 7), ..FAILED }));
        assert_eq!(request.ended(&mut outbox), None);
        request.loaded(0, Ok(Loaded::Data));
        assert_eq!(request.next_part(true, &mut outbox), None);
        assert_eq!(request.ended(&mut outbox), Some(End::Answered));
        let sent = taken(&mut outbox);
        if replies == Replies::Simple {
            assert_eq!(sent, simple_reply(Some(Errno::EIO), 1));
        } else {
            assert_eq!(sent[4..8], [0, 1, 0x80, 2]);
            assert_eq!(sent[sent.len() - 8..], (PART + 7).to_be_bytes());
        }
    }
}

#[test]
fn a_broken_promise_ends_the_session() {
    let mut outbox = Outbox::default();
    let mut request = InParts::of_read(to(0, Replies::Simple), 2 * PART_BYTES, Fragments::Many);
    assert_eq!(parts(&mut request, &mut outbox).len(), 2);
    request.loaded(0, Ok(Loaded::Data));
    request.loaded(PART, Ok(Loaded::Data));
    assert_eq!(parts(&mut request, &mut outbox).len(), 2);
    let failure =
        ReadFailure { before: vec![], error: Errno::EIO, message: "broken", is_damage: false };
    request.read(0, Err(failure), &mut outbox);
    request.read(PART, Ok(bytes_of(PART, PART_BYTES)), &mut outbox);
    assert_eq!(request.ended(&mut outbox), Some(End::Broken));
    assert_eq!(taken(&mut outbox).len(), 16, "nothing that could be taken for the bytes");
}

#[test]
fn loading_is_answered_when_everything_is_loaded() {
    for (replies, reply) in [
        (Replies::Simple, &b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01"[..]),
        (Replies::Structured, b"\x66\x8e\x33\xef\0\x01\0\0\0\0\0\0\0\0\0\x01\0\0\0\0"),
    ] {
        for length in [0, 1, 2 * PART] {
            let mut outbox = Outbox::default();
            let mut request = InParts::of_load(to(0, replies), length);
            while let Some(part) = request.next_part(false, &mut outbox) {
                assert_eq!(taken(&mut outbox), b"");
                let Part::Load { offset, .. } = part else { panic!("{part:?}") };
                request.loaded(offset, Ok(Loaded::Data));
            }
            assert_eq!(request.ended(&mut outbox), Some(End::Answered));
            assert_eq!(taken(&mut outbox), reply);
        }
    }
}
