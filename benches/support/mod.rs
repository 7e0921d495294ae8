//! What the benchmarks share: an image, snapshots of it, and a request on the wire.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use hexz_nbd::snapshot::write::{self, BlockSize, Cut, Method, Settings, Source};
use hexz_nbd::snapshot::{Cache, Check, File, FileBackend, OpenOptions, Pattern, Stream};

/// Plain bytes of a block of every snapshot here.
pub(crate) const BLOCK: usize = 64 * 1024;

/// Phrases from a small vocabulary between noise: compresses about as well as a system image. The
/// same bytes every time, and a shorter image is the beginning of a longer one.
pub(crate) fn image(image_bytes: usize) -> Vec<u8> {
    const PHRASE: usize = 40;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let vocabulary: Vec<u8> = (0..256).flat_map(|_| random().to_le_bytes()).collect();
    let mut image = Vec::with_capacity(image_bytes + PHRASE);
    while image.len() < image_bytes {
        let draw = random();
        if draw & 1 == 0 {
            let start = usize::try_from(draw >> 32).unwrap() % (vocabulary.len() - PHRASE);
            image.extend_from_slice(&vocabulary[start..start + PHRASE]);
        } else {
            image.extend((0..4).flat_map(|_| random().to_le_bytes()));
        }
    }
    image.truncate(image_bytes);
    image
}

/// A snapshot of an image, with the image beside it.
pub(crate) fn pack(directory: &Path, name: &str, image: &[u8], method: Method) -> PathBuf {
    let raw = directory.join("image");
    std::fs::write(&raw, image).unwrap();
    let path = directory.join(name);
    let settings = Settings {
        method,
        cut: Cut::Blocks(BlockSize::new(BLOCK as u64).unwrap()),
        threads: NonZeroUsize::new(2).unwrap(),
        replace: false,
        base: None,
        passphrase: None,
    };
    let source = Source::open(&raw).unwrap();
    write::write(&source, &path, &settings, &AtomicBool::new(false), &|_| {}).unwrap();
    path
}

/// A snapshot, opened with a cache of its own.
pub(crate) fn open(path: &Path, cache_bytes: u64) -> Arc<File> {
    open_checked(path, cache_bytes, Check::Crc)
}

/// As [`open`], with a say in what is compared when a block is decoded.
pub(crate) fn open_checked(path: &Path, cache_bytes: u64, check: Check) -> Arc<File> {
    let cache = Arc::new(Cache::new(cache_bytes));
    let options = OpenOptions { cache, check, ..OpenOptions::default() };
    File::open_with(Arc::new(FileBackend::new(path).unwrap()), options).unwrap()
}

/// A snapshot whose first bytes are in its cache, which has room for them.
pub(crate) fn warm(path: &Path, cache_bytes: u64, bytes: usize) -> Arc<File> {
    let file = open(path, cache_bytes);
    file.slices_or_part(Stream::Main, 0, bytes as u64, Pattern::Announced).unwrap();
    file
}

/// A read as a client sends it.
pub(crate) fn request(cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let magic = 0x2560_9513_0000_0000_u64;
    let words = [magic, cookie, offset].map(u64::to_be_bytes).concat();
    [&words[..], &length.to_be_bytes()].concat()
}
