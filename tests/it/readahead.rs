//! What is fetched before it is asked for, and what of it stays: seen from outside, by what was decoded.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use tempfile::TempDir;

use crate::simulation::random::Random;
use crate::support::client::Client;
use crate::support::pki::text;
use crate::support::process::pack;
use crate::support::watched::Watched;

const BLOCK: usize = 64 << 10;

/// A server of a snapshot in which no two blocks are the same, and a cache for a part of it.
struct Scene {
    _directory: TempDir,
    image: Vec<u8>,
    watched: Watched,
}

impl Scene {
    fn new(image_bytes: usize, cache_size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path: PathBuf = directory.path().join("noise.img");
        let mut random = Random::new(7);
        let image: Vec<u8> =
            (0..image_bytes / 8).flat_map(|_| random.number().to_le_bytes()).collect();
        std::fs::write(&path, &image).unwrap();
        let snapshot = pack(&path, &["--block-size", "64KiB"]);
        let watched = Watched::start(&["--cache-size", cache_size, text(&snapshot)]);
        Self { _directory: directory, image, watched }
    }

    async fn open(&self) -> Client {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.watched.process.port()));
        let mut client = Client::connect(address).await;
        client.greet(3).await;
        client.go("").await;
        client
    }

    async fn read(&self, client: &mut Client, offset: usize, length: usize) {
        let bytes = client.read(offset as u64, length as u32).await;
        assert!(bytes == self.image[offset..][..length], "{offset} {length}");
    }

    /// How many blocks were decoded until now.
    fn decoded(&self) -> f64 {
        self.watched.metrics()["hexz_nbd_cache_misses_total"]
    }
}

#[tokio::test]
async fn who_reads_in_order_has_each_block_decoded_once_however_small_the_cache() {
    const IMAGE: usize = 48 << 20;
    for length in [4 << 10, 100 << 10, 256 << 10] {
        let scene = Scene::new(IMAGE, "16MiB");
        let mut client = scene.open().await;
        // The first third fills the cache.
        for offset in (0..IMAGE - length).step_by(length) {
            scene.read(&mut client, offset, length).await;
        }
        let decoded = scene.decoded();
        assert!(decoded <= (IMAGE / BLOCK) as f64, "{decoded} blocks for reads of {length}");
    }
}

#[tokio::test]
async fn who_jumps_has_nothing_decoded_that_it_did_not_ask_for() {
    const READS: usize = 100;
    let scene = Scene::new(48 << 20, "64MiB");
    let mut client = scene.open().await;
    for number in 0..READS {
        // Each in a block of its own, far from the one before.
        let block = number * 7 * 37 % (48 << 4);
        scene.read(&mut client, block * BLOCK + 4096, 8192).await;
    }
    assert_eq!(scene.decoded(), READS as f64);
}

#[tokio::test]
async fn the_process_takes_the_memory_that_its_cache_counts() {
    const IMAGE: usize = 192 << 20;
    const CACHE: u64 = 96 << 20;
    /// Replies on their way, and what threads keep for themselves.
    const BESIDE: u64 = 6 << 20;
    let scene = Scene::new(IMAGE, "96MiB");
    let before = scene.watched.process.peak_memory_bytes();
    let mut client = scene.open().await;
    for offset in (0..IMAGE).step_by(256 << 10) {
        scene.read(&mut client, offset, 256 << 10).await;
    }
    let mut random = Random::new(8);
    for _ in 0..3000 {
        let offset = (random.number() % (IMAGE as u64 - 5000)) as usize;
        scene.read(&mut client, offset, 5000).await;
    }
    let taken = scene.watched.process.peak_memory_bytes() - before;
    assert!(scene.watched.metrics()["hexz_nbd_cache_bytes"] > 0.8 * CACHE as f64);
    assert!(taken < CACHE + CACHE / 20 + BESIDE, "{} MiB for 96", taken >> 20);
}
