//! What must hold for any bytes. Called by the fuzz targets, and by `tests/it/corpus.rs` for every
//! file of the corpus.

use bytes::Bytes;
use hexz_nbd::snapshot::format::header::candidates;
use hexz_nbd::snapshot::format::index::{MasterIndex, decode_page, encode_page};
use hexz_nbd::snapshot::format::{Family, PageRecord};
use hexz_nbd::snapshot::manifest::build::build;
use hexz_nbd::snapshot::manifest::{self, Manifest, Root, Trust};
use hexz_nbd::snapshot::{
    Cache, Compressor, File, Lz4Compressor, MemoryBackend, OpenOptions, SigningKey, Stream,
    Structure, ZstdCompressor,
};
use std::io::Cursor;
use std::sync::{Arc, LazyLock};

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

/// Snapshots with their manifests: one without hashes of blocks, and a thin one with them.
static SIGNED: LazyLock<Vec<(Structure, Bytes)>> = LazyLock::new(|| {
    let snapshots: [(&[u8], &[Root]); 2] = [
        (include_bytes!("../tests/data/v082-onebyte.hxz"), &[]),
        (include_bytes!("../tests/data/v045-thin-grandchild.hxz"), &[Root::from_bytes([5; 32])]),
    ];
    let sign = |(snapshot, parents)| {
        let structure = Structure::read(memory(snapshot), 1 << 20).unwrap();
        let mut out = Cursor::new(Vec::new());
        build(&structure, parents, &signing_key(), &mut out, &|_| {}).unwrap();
        (structure, out.into_inner().into())
    };
    snapshots.into_iter().map(sign).collect()
});

fn signing_key() -> SigningKey {
    SigningKey::from_seed(&[1; 32]).unwrap()
}

/// Whoever has not the key cannot make another manifest that holds.
pub(crate) fn manifest(bytes: &[u8]) {
    let keys = [signing_key().verify_key()];
    for (structure, signed) in SIGNED.iter() {
        let Ok(read) = Manifest::read(memory(bytes), structure) else { continue };
        let is_signed = bytes == signed;
        let holds = |trust| {
            read.check(trust, structure).is_ok()
                && manifest::verify::verify(&read, structure, &|_| {}).is_ok()
        };
        assert_eq!(holds(Trust::Keys(&keys)), is_signed);
        // Whoever pins the root does not care who signed.
        let root = Manifest::read(memory(signed), structure).unwrap().root();
        let without_signature = |bytes: &[u8]| {
            let at = 32 + read.parent_roots().len() * 32 + 32;
            [&bytes[..at], &bytes[at + 32 + 64..]].concat()
        };
        if holds(Trust::Root(root)) {
            assert_eq!(without_signature(bytes), without_signature(signed));
        }
    }
}

fn memory(bytes: &[u8]) -> Arc<MemoryBackend> {
    Arc::new(MemoryBackend::new(Bytes::copy_from_slice(bytes), "fuzz"))
}
