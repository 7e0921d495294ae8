//! What must hold for any bytes. Called by the fuzz targets, and by `tests/it/corpus.rs` for every
//! file of the corpus.

use bytes::Bytes;
use hexz_nbd::snapshot::format::header::candidates;
use hexz_nbd::snapshot::format::index::{MasterIndex, decode_page, encode_page};
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

/// Everything that a header points to lies in the file, and an index that is understood is the one
/// that was written.
pub(crate) fn header(bytes: &[u8]) {
    let file_bytes = bytes.len() as u64;
    for header in candidates(bytes, file_bytes).unwrap_or_default() {
        assert!(header.index_offset <= file_bytes);
        for span in [header.dictionary, header.metadata, header.signature].into_iter().flatten() {
            assert!(span.offset.checked_add(span.length).is_some_and(|end| end <= file_bytes));
        }
        let _ = header.encode();
        let index = usize::try_from(header.index_offset).unwrap();
        check_index(&bytes[index..], header.index_offset);
    }
    // Headers are hard to guess, so here is an index without one.
    check_index(bytes, 0);
}

fn check_index(bytes: &[u8], at: u64) {
    if let Ok((index, length)) = MasterIndex::decode(bytes, at) {
        let length = usize::try_from(length).unwrap();
        assert_eq!(index.encode(), bytes[..length]);
        for stream in Stream::ALL {
            assert!(index.pages(stream).len() * 28 <= length);
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
