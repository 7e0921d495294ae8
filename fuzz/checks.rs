//! What must hold for any bytes. Called by the fuzz targets, and by `tests/it/corpus.rs` for every
//! file of the corpus.

use bytes::{Buf, Bytes, BytesMut};
use hexz_nbd::nbd::limits::OWED_BYTES_MAX;
use hexz_nbd::nbd::{
    Channel, ExportDirectory, ExportInfo, Listing, NegotiatedExport, Negotiation, Outbox, Piece,
    Progress, Transmission,
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
pub(crate) fn session(bytes: &[u8]) {
    let whole = converse(bytes, bytes.len().max(1));
    for packet in [1, 3, 28, 100] {
        assert_eq!(converse(bytes, packet), whole, "in packets of {packet}");
    }
}

const DISK_BYTES: u64 = 100_000;

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

    fn find(&self, name: &str) -> Option<Disk> {
        matches!(name, "" | "disk").then(|| {
            Disk(ExportInfo {
                name: "disk".into(),
                description: "a disk".into(),
                size_bytes: DISK_BYTES,
                preferred_block_bytes: 65_536,
            })
        })
    }
}

/// Everything that the server sends to a client that sends these bytes, and whether it hung up.
fn converse(bytes: &[u8], packet: usize) -> (Vec<u8>, bool) {
    let (mut sent, mut input, mut outbox) = (Vec::new(), BytesMut::new(), Outbox::default());
    let mut negotiation = Negotiation::new(Channel::Plain(OneDisk), &mut outbox);
    let mut packets = bytes.chunks(packet);
    let disk = loop {
        let progress = negotiation.advance(&mut input, &mut outbox);
        sent.extend_from_slice(&outbox.copy_to_bytes(outbox.remaining()));
        match progress {
            Ok(Progress::Answered) => {}
            Ok(Progress::Enter(disk)) => break disk,
            Ok(Progress::Aborted | Progress::StartTls(_)) | Err(_) => return (sent, true),
            Ok(Progress::NeedsInput) => match packets.next() {
                Some(packet) => input.extend_from_slice(packet),
                None => return (sent, false),
            },
        }
    };
    let mut session = Transmission::new(disk.info().size_bytes, OWED_BYTES_MAX, outbox);
    loop {
        let Ok(read) = session.next_read(&mut input) else { return (sent, true) };
        let outbox = session.outbox();
        sent.extend_from_slice(&outbox.copy_to_bytes(outbox.remaining()));
        if let Some(read) = read {
            assert!(read.offset + u64::from(read.length) <= DISK_BYTES);
            let data = Piece::Data(Bytes::from(vec![7; read.length as usize]));
            session.reply(read, Ok(vec![data]));
        } else if session.is_over() {
            return (sent, true);
        } else {
            match packets.next() {
                Some(packet) => input.extend_from_slice(packet),
                None => return (sent, false),
            }
        }
    }
}
