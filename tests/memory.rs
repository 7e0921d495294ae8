//! What a file claims is not what is allocated for it. A binary of its own: the peak is that of
//! the whole process.
#![cfg(target_os = "linux")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use hexz_nbd::snapshot::{Cache, File, MemoryBackend, OpenOptions, Stream, verify};

/// What opening, reading and verifying may add to the peak, in bytes: the cache, two blocks of
/// the largest length on two threads, and what the allocator keeps.
const GROWTH_BYTES_MAX: u64 = 128 << 20;

const CACHE_BYTES: u64 = 16 << 20;

#[test]
fn files_that_claim_gigabytes_cost_no_more_than_others() {
    let claims = claims();
    let options =
        OpenOptions { cache: Arc::new(Cache::new(CACHE_BYTES)), ..OpenOptions::default() };
    let before = peak_bytes();
    for (claim, contents) in claims {
        let backend = MemoryBackend::new(Bytes::from(contents), claim);
        if let Ok(file) = File::open_with(Arc::new(backend), options.clone()) {
            for stream in Stream::ALL {
                let step = 64 << 10;
                for position in (0..file.size(stream).min(1 << 20)).step_by(step) {
                    // Right or not is asked elsewhere.
                    drop(file.read_at(stream, position, step));
                }
            }
            assert!(!verify(&file, NonZeroUsize::new(2).unwrap(), &|_| ()).is_empty(), "{claim}");
        }
        let growth = peak_bytes().saturating_sub(before);
        assert!(growth < GROWTH_BYTES_MAX, "{claim}: {growth} bytes more than before");
    }
}

/// An intact file whose fields claim more than there is.
fn claims() -> Vec<(&'static str, Vec<u8>)> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let intact = std::fs::read(data.join("h-base.hxz")).unwrap();
    let index = u64_at(&intact, 12) as usize;
    let page = u64_at(&intact, index + 8) as usize;
    let main_bytes = index + 8 + 28 + 8;
    let logical_length = page + 8 + 12;
    let with = |at: usize, value: &[u8]| {
        let mut contents = intact.clone();
        contents[at..at + value.len()].copy_from_slice(value);
        contents
    };
    let mut claims = vec![
        ("number of pages", with(index, &u64::MAX.to_le_bytes())),
        ("number of pages in bytes", with(index, &(u64::MAX / 28).to_le_bytes())),
        ("number of pages below the limit", with(index, &2_000_000_u64.to_le_bytes())),
        ("number of auxiliary pages", with(index + 36, &(1_u64 << 40).to_le_bytes())),
        ("page length", with(index + 16, &u32::MAX.to_le_bytes())),
        ("entries of a page", with(page, &u64::MAX.to_le_bytes())),
        ("number of parents", with(20, &500_u64.to_le_bytes())),
    ];
    // Lengths of blocks with the size of the stream to match, so that the file opens.
    for (claim, length) in
        [("4 GiB", u32::MAX), ("above the limit", (16 << 20) + 1), ("the limit", 16 << 20)]
    {
        let mut contents = with(logical_length, &length.to_le_bytes());
        let old = u64::from(u32::from_le_bytes(intact[logical_length..][..4].try_into().unwrap()));
        let size = u64_at(&intact, main_bytes) - old + u64::from(length);
        contents[main_bytes..main_bytes + 8].copy_from_slice(&size.to_le_bytes());
        claims.push((claim, contents));
    }
    for name in ["h-page-len-huge.hxz", "h-logical-len-max.hxz", "h-index-past-eof.hxz"] {
        claims.push((name, std::fs::read(data.join(name)).unwrap()));
    }
    claims
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Most memory that the process ever held.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
