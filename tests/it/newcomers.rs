//! What is read for the first time, in part or once, and what of it stays.

use std::fs::Permissions;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use hexz_nbd::snapshot::{Cache, Effort, File, FileBackend, OpenOptions, Pattern, Slice, Stream};

use crate::simulation::random::Random;
use crate::support::client::Client;
use crate::support::fixtures;
use crate::support::pki::text;
use crate::support::process::pack;
use crate::support::watched::Watched;

const BLOCK: usize = 64 << 10;

/// Blocks that can be compressed, some that cannot, and zeros.
fn image(random: &mut Random, blocks: usize) -> Vec<u8> {
    let mut image = Vec::with_capacity(blocks * BLOCK);
    for number in 0..blocks {
        match number % 4 {
            0 => image.extend(random.bytes(BLOCK)),
            1 if number % 8 == 1 => image.resize(image.len() + BLOCK, 0),
            _ => {
                let mut word = || {
                    let length = 1 + random.below(12) as usize;
                    random.bytes(length)
                };
                let words: Vec<Vec<u8>> = (0..50).map(|_| word()).collect();
                let end = image.len() + BLOCK;
                while image.len() < end {
                    image.extend(random.pick(&words));
                }
                image.truncate(end);
            }
        }
    }
    image
}

fn open(path: &Path, cache: &Arc<Cache>) -> Arc<File> {
    let passphrases = vec![fixtures::passphrase("secret")];
    let options = OpenOptions { cache: Arc::clone(cache), passphrases, ..OpenOptions::default() };
    File::open_with(Arc::new(FileBackend::new(path).unwrap()), options).unwrap()
}

fn bytes(slices: Vec<Slice>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for slice in slices {
        match slice {
            Slice::Data(data) => bytes.extend_from_slice(&data),
            Slice::Zeros(count) => bytes.resize(bytes.len() + count as usize, 0),
        }
    }
    bytes
}

#[test]
fn whatever_was_read_before_and_however_far_the_bytes_are_right() {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key");
    std::fs::write(&key, "secret").unwrap();
    std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    let mut random = Random::new(11);
    let image = image(&mut random, 60);
    let path = directory.path().join("disk.img");
    std::fs::write(&path, &image).unwrap();
    for options in [
        &["--compression", "lz4"][..],
        &["--compression", "zstd"],
        &["--compression", "lz4", "--encrypt", "--key-file", text(&key)],
    ] {
        let snapshot = pack(&path, &[&["--block-size", "64KiB", "--force"], options].concat());
        for cache_bytes in [0, 6 << 20, 32 << 20] {
            let cache = Arc::new(Cache::new(cache_bytes));
            let file = open(&snapshot, &cache);
            for _ in 0..800 {
                let offset = random.below(image.len() as u64);
                let longest = *random.pick(&[600, 5000, 100_000]);
                let length = random.below(longest).min(image.len() as u64 - offset);
                let pattern =
                    *random.pick(&[Pattern::Random, Pattern::Random, Pattern::Sequential]);
                let mut slices = Vec::new();
                let effort = Effort::Decode;
                let is_whole = random.one_in(2)
                    && file.slices_at_once(
                        Stream::Main,
                        offset,
                        length,
                        effort,
                        pattern,
                        &mut slices,
                    );
                if !is_whole {
                    slices = file.slices_or_part(Stream::Main, offset, length, pattern).unwrap();
                }
                let expected = &image[offset as usize..][..length as usize];
                assert!(bytes(slices) == expected, "{options:?} {cache_bytes} {offset} {length}");
            }
        }
    }
}

#[test]
fn a_few_blocks_are_decoded_at_once_if_that_is_asked_for_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("noise.img");
    let image = Random::new(12).bytes(10 * BLOCK);
    std::fs::write(&path, &image).unwrap();
    let snapshot = pack(&path, &["--block-size", "64KiB"]);
    let cache = Arc::new(Cache::new(32 << 20));
    let file = open(&snapshot, &cache);
    // Pages of the index are not decoded at once.
    file.read_at(Stream::Main, 9 * BLOCK as u64, 1).unwrap();
    let read = |block: usize, blocks: usize, effort| {
        let (offset, length) = (block * BLOCK, blocks * BLOCK);
        let mut slices = Vec::new();
        let (start, pattern) = (offset as u64, Pattern::Sequential);
        let is_whole =
            file.slices_at_once(Stream::Main, start, length as u64, effort, pattern, &mut slices);
        assert!(!is_whole || bytes(slices) == image[offset..][..length]);
        is_whole
    };
    let before = cache.statistics().misses;
    assert!(!read(0, 2, Effort::Cached));
    assert_eq!(cache.statistics().misses, before);
    assert!(read(0, 2, Effort::Decode));
    assert_eq!(cache.statistics().misses, before + 2);
    assert!(read(0, 2, Effort::Cached));
    assert!(!read(3, 5, Effort::Decode), "that takes too long for those who wait");
}

#[test]
fn of_a_block_that_is_new_the_start_is_decoded_and_the_second_time_it_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("noise.img");
    std::fs::write(&path, Random::new(13).bytes(4 * BLOCK)).unwrap();
    let snapshot = pack(&path, &["--block-size", "64KiB"]);
    let cache = Arc::new(Cache::new(32 << 20));
    let file = open(&snapshot, &cache);
    let read = |offset| {
        file.slices_or_part(Stream::Main, offset, 4096, Pattern::Random).unwrap();
        let is_cached = file.cached_slices(Stream::Main, offset, 4096).is_some();
        (cache.statistics().misses, is_cached)
    };
    assert_eq!(read(8192), (1, false));
    assert_eq!(read(8192), (2, true));
    assert_eq!(read(40_960), (2, true));
    // Near the end the whole is little more, and at the start the rest is wanted next.
    assert_eq!(read(2 * BLOCK as u64 - 4096), (3, true));
    assert_eq!(read(2 * BLOCK as u64), (4, true));
}

#[tokio::test]
async fn a_disk_that_is_copied_once_does_not_make_the_process_grow_and_the_third_time_it_is_at_hand()
 {
    const IMAGE: usize = 160 << 20;
    /// Newcomers, replies on their way, and what threads keep for themselves.
    const GROWTH: u64 = 28 << 20;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("noise.img");
    let mut random = Random::new(14);
    let image: Vec<u8> = (0..IMAGE / 8).flat_map(|_| random.number().to_le_bytes()).collect();
    std::fs::write(&path, &image).unwrap();
    let snapshot = pack(&path, &["--block-size", "64KiB"]);
    let watched = Watched::start(&["--cache-size", "256MiB", text(&snapshot)]);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, watched.process.port()));
    let decoded = || watched.metrics()["hexz_nbd_cache_misses_total"];
    let mut client = Client::connect(address).await;
    client.greet(3).await;
    client.go("").await;
    let before = watched.process.peak_memory_bytes();
    for pass in 1..=3 {
        for offset in (0..IMAGE).step_by(256 << 10) {
            let bytes = client.read(offset as u64, 256 << 10).await;
            assert!(bytes == image[offset..][..256 << 10], "{offset}");
        }
        let grown = watched.process.peak_memory_bytes() - before;
        match pass {
            1 => assert!(grown < GROWTH, "{} MiB", grown >> 20),
            2 => assert!(grown > IMAGE as u64 / 2, "{} MiB", grown >> 20),
            _ => assert!(decoded() < 2.2 * (IMAGE / BLOCK) as f64, "{}", decoded()),
        }
    }
}
