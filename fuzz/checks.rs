//! What must hold for any bytes. Called by the fuzz targets, and by `tests/it/corpus.rs` for every
//! file of the corpus.

use bytes::{Buf, Bytes, BytesMut};
use hexz_nbd::nbd::limits::OWED_BYTES_MAX;
use hexz_nbd::nbd::wire::Errno;
use hexz_nbd::nbd::{
    Absent, Channel, Described, ExportDirectory, ExportInfo, Extent, Failure, Listing, Loaded,
    NegotiatedExport, Negotiation, Outbox, Piece, Progress, ReadFailure, Replies, Status, Terms,
    Transmission, Work,
};
use hexz_nbd::snapshot::format::index::{decode_page, encode_page};
use hexz_nbd::snapshot::format::{Family, PageRecord};
use hexz_nbd::snapshot::{
    Cache, Compressor, File, Lz4Compressor, MemoryBackend, OpenOptions, Stream, ZstdCompressor,
};
use std::sync::Arc;

/// Whatever is decompressed fills the buffer exactly, or fails.
pub(crate) fn block(bytes: &[u8]) {
    let Some((length, stored)) = bytes.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length));
    for poison in [0x00, 0xff] {
        let mut plain = vec![poison; length];
        let mut again = vec![!poison; length];
        let zstd = ZstdCompressor::new(Vec::new()).unwrap();
        let compressors: [&dyn Compressor; 2] = [&Lz4Compressor::new(), &zstd];
        for compressor in compressors {
            // What was in the buffers before must not show.
            if compressor.decompress(stored, &mut plain).is_ok() {
                compressor.decompress(stored, &mut again).unwrap();
                assert_eq!(plain, again);
            }
        }
    }
}

/// A page that is understood is the one that was written.
pub(crate) fn page(bytes: &[u8]) {
    for family in [Family::A, Family::B, Family::D] {
        let Ok(length) = u32::try_from(bytes.len()) else { return };
        let record = PageRecord { offset: 4096, length, start_block: 0, start_logical: 0 };
        if let Ok(entries) = decode_page(bytes, &record, family)
            && family != Family::A
        {
            assert_eq!(encode_page(&entries), bytes);
        }
    }
}

/// Opening and reading gives bytes or an error, and the same ones whatever the size of the reads.
pub(crate) fn snapshot(bytes: &[u8]) {
    let open = || {
        let cache = Arc::new(Cache::new(1 << 20));
        let options = OpenOptions { cache, block_bytes_max: 1 << 20, ..OpenOptions::default() };
        let backend = MemoryBackend::new(Bytes::copy_from_slice(bytes), "fuzz");
        File::open_with(Arc::new(backend), options)
    };
    let Ok(file) = open() else { return };
    for stream in Stream::ALL {
        let size = file.size(stream).min(4 << 20);
        let mut end = 0;
        for extent in file.extents(stream, 0..size).unwrap() {
            let Ok(extent) = extent else { break };
            assert_eq!(extent.range.start, end);
            end = extent.range.end;
            if extent.is_hole {
                let length = usize::try_from(extent.range.end - extent.range.start).unwrap();
                let hole = file.read_at(stream, extent.range.start, length).unwrap();
                assert!(hole.iter().all(|byte| *byte == 0));
            }
        }
        let Ok(whole) = file.read_at(stream, 0, usize::try_from(size).unwrap()) else { continue };
        assert_eq!(whole.len() as u64, size);
        let step = (whole.len() / 5).max(1);
        for (number, piece) in whole.chunks(step).enumerate() {
            let offset = (number * step) as u64;
            assert_eq!(file.read_at(stream, offset, piece.len()).unwrap(), piece);
        }
    }
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
                        Failure { error, message, position }
                    };
                    session.loaded(load, outcome.map_err(failed));
                }
                Work::Status(status) => {
                    let described = describe_disk(&status);
                    session.describe(status, Ok(described));
                }
            }
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
            return Err(ReadFailure { before: pieces, error: Errno::EIO, message: "damaged" });
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
