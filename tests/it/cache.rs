//! `CACHE`, against raw sockets and a storage that counts.

use crate::support::chunks::Chunk;
use crate::support::fixtures;
use crate::support::server::{Server, contents};
use crate::support::storage::{harmless, watched};
use crate::support::wire::{CACHE, DF, EINVAL, EIO, READ};

#[tokio::test]
async fn what_is_cached_is_read_from_storage_once_and_not_again() {
    let (server, read) = watched("v082-ext4.hxz", 64 << 20, harmless).await;
    let image = contents("v082-ext4.hxz");
    let mut client = server.open("disk").await;
    let before = read.bytes();
    client.request(0, CACHE, 1, 0, 16 << 20).await;
    assert_eq!(client.reply(0).await, (0, 1, vec![]));
    let loaded = read.bytes();
    assert!(loaded > before + 500_000, "{} bytes were loaded", loaded - before);
    for offset in (0..16 << 20).step_by(1 << 20) {
        assert!(client.read(offset, 70_000).await == image[offset as usize..][..70_000]);
    }
    assert_eq!(read.bytes(), loaded, "read again");
}

/// A decompression for each would make the server work hard for very little.
#[tokio::test]
async fn many_small_reads_of_one_block_cost_one_read_of_it() {
    let (server, read) = watched("v082-ext4.hxz", 64 << 20, harmless).await;
    let mut client = server.open("disk").await;
    client.read(0, 1).await;
    let first = read.bytes();
    for offset in 1..1000 {
        client.read(offset * 64, 64).await;
    }
    assert_eq!(read.bytes(), first);
}

#[tokio::test]
async fn a_range_past_the_end_and_unknown_flags_are_invalid_and_no_bytes_are_no_error() {
    let server = Server::start().await;
    let mut client = server.open("disk").await;
    for (flags, offset, length, expected) in [
        (0, 0, 0, 0),
        (0, 16 << 20, 0, 0),
        (0, (16 << 20) - 1, 1, 0),
        (0, 16 << 20, 1, EINVAL),
        (0, 1, 16 << 20, EINVAL),
        (0, u64::MAX, 1, EINVAL),
        (DF, 0, 512, EINVAL),
        (1, 0, 512, EINVAL),
    ] {
        client.request(flags, CACHE, 1, offset, length).await;
        assert_eq!(client.reply(0).await, (expected, 1, vec![]), "{offset}+{length}");
    }
    assert_eq!(client.read(1080, 2).await, [0x53, 0xef]);
}

#[tokio::test]
async fn damage_in_the_range_is_an_error_with_its_place_and_other_blocks_are_good() {
    let server = Server::start().await;
    let damaged = fixtures::named("h-flip-block.hxz");
    let (bad_start, _) = damaged.expect.unwrap().bad_main_ranges.unwrap()[0];
    let mut client = server.open_structured("damaged").await;
    client.request(0, CACHE, 1, 0, bad_start as u32 + 1).await;
    let [Chunk::Error { error, offset, .. }] = &client.chunks(1).await[..] else { panic!() };
    assert_eq!((*error, *offset), (EIO, Some(bad_start)));
    client.request(0, CACHE, 2, 0, bad_start as u32).await;
    assert_eq!(client.chunks(2).await, [Chunk::None]);
    client.request(0, READ, 3, 0, 1).await;
    assert_eq!(client.chunks(3).await.len(), 1);
}
