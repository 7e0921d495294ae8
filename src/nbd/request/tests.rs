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
                let passed = Action::PassOver { payload_bytes: length, refusal: Refusal::ReadOnly };
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
            for command in [Command::READ, Command::FLUSH, Command::CACHE, Command::BLOCK_STATUS] {
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
                let request = Request { flags, ..request(Command::BLOCK_STATUS, offset, length) };
                let expected =
                    expected.map_or_else(Action::Refuse, |()| status(offset, length, first_only));
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
    let check = |command, length| Request { flags, ..request(command, 9, length) }.check(&terms);
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
    for payload in [&b""[..], &[0; 7], &[0; 8], &[0; 11], &[0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1, 0]]
    {
        assert_eq!(request.check_filter(payload, &terms), Err(Refusal::BadFilter));
    }
}
