//! What must hold for whatever a client sends. Called by the fuzz targets, and by
//! `tests/it/corpus.rs` for every file of the corpus.

use bytes::{Buf, Bytes, BytesMut};
use hexz_nbd::nbd::limits::{OWED_BYTES_MAX, PART_BYTES};
use hexz_nbd::nbd::wire::Errno;
use hexz_nbd::nbd::{
    Absent, Channel, Described, ExportDirectory, ExportInfo, Extent, Failure, Listing, Loaded,
    NegotiatedExport, Negotiation, Outbox, Piece, Progress, ReadFailure, Replies, Status, Terms,
    Transmission, Work,
};

/// However a client negotiates, each option has one last answer, in words if it is an error, and
/// nothing is answered before TLS where that is required.
pub(crate) fn options(bytes: &[u8]) {
    type Begin = fn(&mut Outbox) -> Negotiation<OneDisk>;
    let channels: [Begin; 3] = [
        |outbox| Negotiation::new(Channel::Plain(OneDisk), outbox),
        |outbox| Negotiation::new(Channel::MayUpgrade(OneDisk), outbox),
        |outbox| Negotiation::new(Channel::MustUpgrade, outbox),
    ];
    for (number, begin) in channels.into_iter().enumerate() {
        let mut outbox = Outbox::default();
        let mut session = begin(&mut outbox);
        assert_eq!(taken(&mut outbox), b"NBDMAGICIHAVEOPT\0\x03");
        let mut input = BytesMut::from(bytes);
        let mut tells = number != 2;
        loop {
            let progress = session.advance(&mut input, &mut outbox);
            let sent = taken(&mut outbox);
            match progress {
                Ok(Progress::NeedsInput) => {
                    assert!(sent.is_empty() && input.len() < 16 + (16 << 10));
                    break;
                }
                Ok(Progress::Answered) => check_answer(&sent, tells),
                // In the old way there is no answer with a header.
                Ok(Progress::Enter(_)) => {
                    assert!(tells && [10, 134].contains(&sent.len()) || is_answer(&sent));
                    break;
                }
                Ok(Progress::Aborted) => {
                    check_answer(&sent, tells);
                    break;
                }
                Ok(Progress::StartTls(upgrade)) => {
                    check_answer(&sent, tells);
                    // What follows in plaintext ends the session; here it stands for what comes
                    // through TLS.
                    session = upgrade.negotiate(OneDisk);
                    tells = true;
                }
                Err(_) => {
                    assert!(sent.is_empty() || is_answer(&sent));
                    break;
                }
            }
        }
    }
}

fn is_answer(sent: &[u8]) -> bool {
    sent.starts_with(&0x3_e889_0455_65a9_u64.to_be_bytes())
}

/// One option's replies: any number of facts, then one that is the last.
fn check_answer(mut sent: &[u8], tells: bool) {
    // Client flags are not answered.
    let mut last = sent.is_empty();
    while !sent.is_empty() {
        assert!(!last, "a reply behind the last");
        assert_eq!(sent.get_u64(), 0x3_e889_0455_65a9);
        let (_option, code) = (sent.get_u32(), sent.get_u32());
        let length = sent.get_u32() as usize;
        let (payload, rest) = sent.split_at(length);
        sent = rest;
        last = !(2..=4).contains(&code);
        assert!(tells || last, "something is told before TLS");
        if code >> 31 == 1 {
            assert!(!payload.is_empty() && payload.len() <= 4096);
            std::str::from_utf8(payload).unwrap();
        }
        assert!(code != 1 || payload.is_empty());
    }
    assert!(last);
}

/// Bytes of a record from which `requests` makes a request.
const RECORD_BYTES: usize = 12;

/// Every request is answered exactly once, whatever is asked and in whatever order the work is done,
/// and what the client is owed stays within what it may be owed, and one answer.
pub(crate) fn requests(bytes: &[u8]) {
    let Some((order, records)) = bytes.split_first() else { return };
    for replies in [Replies::Simple, Replies::Structured, Replies::Extended] {
        for allowed in [0, 4096, OWED_BYTES_MAX] {
            transmit(*order, records, replies, allowed);
        }
    }
}

fn transmit(order: u8, records: &[u8], replies: Replies, allowed: u64) {
    let (records, _) = records.as_chunks::<RECORD_BYTES>();
    let mut input = BytesMut::new();
    let mut asked = 0;
    for (cookie, record) in (0..).zip(records) {
        let mut fields = &record[..];
        let (command, flags) = (u16::from(fields.get_u8() % 10), 1_u16 << (fields.get_u8() % 7));
        let flags = if flags == 1 << 6 { 0 } else { flags };
        let payload = u16::from(fields.get_u8());
        let offset = u64::from(fields.get_u32()) % (DISK_BYTES + 2);
        let length = u64::from(fields.get_u32()) % (DISK_BYTES + 2);
        let _ = fields.get_u8();
        let is_extended = replies == Replies::Extended;
        let has_payload = if is_extended { flags == 1 << 5 } else { command == 1 };
        input.extend_from_slice(
            &if is_extended { 0x21e4_1c71_u32 } else { 0x2560_9513 }.to_be_bytes(),
        );
        input.extend_from_slice(&flags.to_be_bytes());
        input.extend_from_slice(&command.to_be_bytes());
        input.extend_from_slice(&u64::to_be_bytes(cookie));
        input.extend_from_slice(&offset.to_be_bytes());
        let length = if has_payload { u64::from(payload) } else { length };
        if is_extended {
            input.extend_from_slice(&length.to_be_bytes());
        } else {
            input.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
        }
        if command == 2 {
            break;
        }
        asked += 1;
        if has_payload {
            input.extend(std::iter::repeat_n(record[3], usize::from(payload)));
        }
    }
    let contexts = hexz_nbd::nbd::Contexts::first(2);
    let terms = Terms { export_bytes: DISK_BYTES, replies, contexts };
    let mut session = Transmission::new(terms, Outbox::default());
    session.allow(allowed);
    let (mut waiting, mut sent) = (Vec::new(), Vec::new());
    loop {
        match session.next_work(&mut input) {
            Ok(Some(work)) => waiting.push(work),
            Ok(None) if waiting.is_empty() && session.outbox().has_remaining() => {
                // As much as a socket takes at a time.
                let some = session.outbox().remaining().min(1 + usize::from(order) * 100);
                sent.extend_from_slice(&session.outbox().copy_to_bytes(some));
            }
            Ok(None) if waiting.is_empty() => break,
            Ok(None) => {
                let work = waiting.swap_remove(usize::from(order) % waiting.len());
                perform(&mut session, work);
            }
            Err(violation) => panic!("{violation}"),
        }
        let most = allowed + u64::from(PART_BYTES) + (64 << 10) * 2 + 4096;
        assert!(session.owed_bytes() <= most, "{} are owed", session.owed_bytes());
        if waiting.len() > usize::from(order % 5) {
            let work = waiting.swap_remove(usize::from(order) % waiting.len());
            perform(&mut session, work);
        }
    }
    let answered = match replies {
        Replies::Simple => count_simple(&sent, records),
        Replies::Structured | Replies::Extended => {
            check_chunks(&sent, replies);
            count_last_chunks(&sent, replies)
        }
    };
    assert_eq!(answered, asked, "{replies:?}, {allowed} allowed");
}

/// Replies that end, by the headers of the chunks.
fn count_last_chunks(mut sent: &[u8], replies: Replies) -> usize {
    let header_bytes = if replies == Replies::Extended { 32 } else { 20 };
    let mut count = 0;
    while !sent.is_empty() {
        let (header, rest) = sent.split_at(header_bytes);
        count += usize::from(header[5]);
        let length = match replies {
            Replies::Extended => usize::try_from((&header[24..]).get_u64()).unwrap(),
            _ => (&header[16..]).get_u32() as usize,
        };
        sent = &rest[length..];
    }
    count
}

/// Simple replies, whose lengths only the requests tell.
fn count_simple(mut sent: &[u8], records: &[[u8; RECORD_BYTES]]) -> usize {
    let mut count = 0;
    while !sent.is_empty() {
        assert_eq!(sent.get_u32(), 0x6744_6698);
        let (error, cookie) = (sent.get_u32(), sent.get_u64());
        let record = records[usize::try_from(cookie).unwrap()];
        if error == 0 && record[0].is_multiple_of(10) {
            let length = u64::from((&record[7..]).get_u32()) % (DISK_BYTES + 2);
            sent = &sent[usize::try_from(length).unwrap()..];
        }
        count += 1;
    }
    count
}

fn perform(session: &mut Transmission, work: Work) {
    match work {
        Work::Read(read) => {
            let outcome = read_disk(read.offset, read.length);
            session.reply(read, outcome);
        }
        Work::Load(load) => {
            let outcome = read_disk(load.offset, load.length).map(|_| Loaded::Data);
            let position = Some(DAMAGED_FROM.max(load.offset));
            let failed = |failure: ReadFailure| {
                let ReadFailure { error, message, .. } = failure;
                Failure { error, message, position, is_damage: true }
            };
            session.loaded(load, outcome.map_err(failed));
        }
        Work::Status(status) => {
            let described = describe_disk(&status);
            session.describe(status, Ok(described));
        }
    }
}

fn taken(outbox: &mut Outbox) -> Vec<u8> {
    outbox.copy_to_bytes(outbox.remaining()).to_vec()
}

/// What a client is answered does not depend on how its bytes are cut into packets.
///
/// The client says what it says, and once more after asking for structured replies, and for
/// extended headers.
pub(crate) fn session(bytes: &[u8]) {
    const STRUCTURED_REPLY: &[u8] = b"IHAVEOPT\0\0\0\x08\0\0\0\0";
    const EXTENDED_HEADERS: &[u8] = b"IHAVEOPT\0\0\0\x0b\0\0\0\0";
    let (flags, rest) = bytes.split_at(bytes.len().min(4));
    let before = |option: &[u8]| [flags, option, rest].concat();
    for bytes in [bytes, &before(STRUCTURED_REPLY), &before(EXTENDED_HEADERS)] {
        let whole = converse(bytes, bytes.len().max(1));
        for packet in [1, 3, 28, 100] {
            assert!(converse(bytes, packet) == whole, "in packets of {packet}");
        }
    }
}

const DISK_BYTES: u64 = 100_000;

/// Data and holes of this many bytes take turns on the disk.
const RUN_BYTES: u64 = 1000;

/// From here on the disk is damaged.
const DAMAGED_FROM: u64 = 77_777;

struct OneDisk;

struct Disk(ExportInfo);

impl NegotiatedExport for Disk {
    fn info(&self) -> &ExportInfo {
        &self.0
    }
}

impl ExportDirectory for OneDisk {
    type Export = Disk;

    fn list(&self) -> Vec<Listing> {
        vec![Listing { name: "disk".into(), description: "a disk".into() }]
    }

    fn find(&self, name: &str) -> Result<Disk, Absent> {
        match name {
            "" | "disk" => Ok(Disk(ExportInfo {
                name: "disk".into(),
                description: "a disk".into(),
                size_bytes: DISK_BYTES,
                preferred_block_bytes: 65_536,
                contexts: &["base:allocation", "test:everything"],
            })),
            _ => Err(Absent::Unknown),
        }
    }
}

/// Everything that the server sends to a client that sends these bytes, and whether it hung up.
fn converse(bytes: &[u8], packet: usize) -> (Vec<u8>, bool) {
    let (mut sent, mut input, mut outbox) = (Vec::new(), BytesMut::new(), Outbox::default());
    let mut negotiation = Negotiation::new(Channel::Plain(OneDisk), &mut outbox);
    let mut packets = bytes.chunks(packet);
    let entered = loop {
        let progress = negotiation.advance(&mut input, &mut outbox);
        sent.extend_from_slice(&outbox.copy_to_bytes(outbox.remaining()));
        match progress {
            Ok(Progress::Answered) => {}
            Ok(Progress::Enter(entered)) => break entered,
            Ok(Progress::Aborted | Progress::StartTls(_)) | Err(_) => return (sent, true),
            Ok(Progress::NeedsInput) => match packets.next() {
                Some(packet) => input.extend_from_slice(packet),
                None => return (sent, false),
            },
        }
    };
    let (export_bytes, replies) = (entered.export.info().size_bytes, entered.replies);
    let terms = Terms { export_bytes, replies, contexts: entered.contexts };
    let mut session = Transmission::new(terms, outbox);
    session.allow(OWED_BYTES_MAX);
    let negotiated = sent.len();
    let hung_up = loop {
        let work = session.next_work(&mut input);
        let outbox = session.outbox();
        sent.extend_from_slice(&outbox.copy_to_bytes(outbox.remaining()));
        let Ok(work) = work else { break true };
        if let Some(work) = work {
            perform(&mut session, work);
        } else if session.is_over() {
            break true;
        } else {
            match packets.next() {
                Some(packet) => input.extend_from_slice(packet),
                None => break false,
            }
        }
    };
    if replies != Replies::Simple {
        check_chunks(&sent[negotiated..], replies);
    }
    (sent, hung_up)
}

/// Runs of data and holes in the first context, and everything as one in the second.
fn describe_disk(status: &Status) -> Vec<Described> {
    let end = status.offset + status.length;
    assert!(status.length > 0 && end <= DISK_BYTES);
    let describe = |context: hexz_nbd::nbd::Context| {
        let (mut extents, mut position) = (Vec::new(), status.offset);
        while position < end && extents.len() < status.extents_max {
            let run = position / RUN_BYTES;
            let run_end = if context.place() == 0 { ((run + 1) * RUN_BYTES).min(end) } else { end };
            let status = if run.is_multiple_of(2) { 0 } else { 3 };
            extents.push(Extent { bytes: run_end - position, status });
            position = run_end;
        }
        Described { context, extents }
    };
    status.contexts.iter().map(describe).collect()
}

fn read_disk(offset: u64, length: u32) -> Result<Vec<Piece>, ReadFailure> {
    let (mut pieces, mut position, end) = (Vec::new(), offset, offset + u64::from(length));
    assert!(end <= DISK_BYTES);
    while position < end {
        if position >= DAMAGED_FROM {
            return Err(ReadFailure {
                before: pieces,
                error: Errno::EIO,
                message: "damaged",
                is_damage: true,
            });
        }
        let run = position / RUN_BYTES;
        let run_end = ((run + 1) * RUN_BYTES).min(DAMAGED_FROM).min(end);
        pieces.push(if run.is_multiple_of(2) {
            let run_bytes = usize::try_from(run_end - position).unwrap();
            Piece::Data(Bytes::from(vec![7; run_bytes]))
        } else {
            Piece::Zeros(run_end - position)
        });
        position = run_end;
    }
    Ok(pieces)
}

/// Structured replies can be told apart without knowing the requests, and say what is on the disk.
fn check_chunks(mut bytes: &[u8], replies: Replies) {
    let is_extended = replies == Replies::Extended;
    while !bytes.is_empty() {
        assert_eq!(bytes.get_u32(), if is_extended { 0x6e8a_278c } else { 0x668e_33ef });
        let (flags, kind) = (bytes.get_u16(), bytes.get_u16());
        let _cookie = bytes.get_u64();
        let length = if is_extended {
            let _offset = bytes.get_u64();
            bytes.get_u64()
        } else {
            u64::from(bytes.get_u32())
        };
        let length = usize::try_from(length).unwrap();
        let (mut payload, rest) = bytes.split_at(length);
        bytes = rest;
        match kind {
            0 => assert_eq!((flags, length), (1, 0)),
            1 => {
                let position = payload.get_u64();
                assert!(!payload.is_empty());
                for (number, byte) in payload.iter().enumerate() {
                    let run = (position + number as u64) / RUN_BYTES;
                    assert_eq!(*byte, if run.is_multiple_of(2) { 7 } else { 0 });
                }
                assert!(position + payload.len() as u64 <= DAMAGED_FROM);
            }
            2 => {
                let (position, hole) = (payload.get_u64(), u64::from(payload.get_u32()));
                assert!(hole != 0 && payload.is_empty());
                assert_eq!(position / RUN_BYTES, (position + hole - 1) / RUN_BYTES);
                assert_eq!(position / RUN_BYTES % 2, 1);
            }
            5 | 6 => {
                assert_eq!(kind == 6, is_extended);
                assert!((1..=2).contains(&payload.get_u32()));
                let mut count = (length - 4) / 8;
                if is_extended {
                    count = payload.get_u32() as usize;
                    assert_eq!(length, 8 + 16 * count);
                }
                assert_ne!(count, 0);
                for _ in 0..count {
                    let (bytes, state) = if is_extended {
                        (payload.get_u64(), payload.get_u64())
                    } else {
                        (u64::from(payload.get_u32()), u64::from(payload.get_u32()))
                    };
                    assert!((1..=DISK_BYTES).contains(&bytes) && [0, 3].contains(&state));
                }
                assert!(payload.is_empty());
            }
            0x8001 | 0x8002 => {
                assert!(flags == 1 && payload.get_u32() != 0);
                let (message, mut place) = {
                    let length = usize::from(payload.get_u16());
                    payload.split_at(length)
                };
                assert!(!std::str::from_utf8(message).unwrap().is_empty());
                if kind == 0x8002 {
                    assert!((DAMAGED_FROM..DISK_BYTES).contains(&place.get_u64()));
                }
                assert!(place.is_empty());
            }
            other => panic!("a chunk of type {other}"),
        }
    }
}
