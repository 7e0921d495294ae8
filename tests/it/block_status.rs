//! `BLOCK_STATUS`, rule by rule, against raw sockets.

use std::net::Ipv4Addr;

use hexz_nbd::server::Limits;
use hexz_nbd::snapshot::{File, Stream};

use crate::meta_context::contexts_query;
use crate::support::chunks::Chunk;
use crate::support::client::{ACK, Client};
use crate::support::fixtures;
use crate::support::process::{Process, pack};
use crate::support::server::{Server, contents};
use crate::support::wire::{
    BLOCK_STATUS, EINVAL, GO, READ, REQ_ONE, SET_META_CONTEXT, STRUCTURED_REPLY,
};

/// Snapshots with holes of every kind; sizes and edges that are no multiple of a sector among them.
const FILES: [(&str, &str); 6] = [
    ("all", "v082-zeros-sparse.hxz"),
    ("dense", "v082-zstd.hxz"),
    ("disk", "v082-ext4.hxz"),
    ("many", "v020-lz4-multipage.hxz"),
    ("odd", "v082-lz4-default.hxz"),
    ("tail", "v014-zstd-cdc.hxz"),
];

const ALLOCATION: u32 = 1;
const HOLE_AND_ZERO: u64 = 3;

async fn open(server: &Server, export: &str, contexts: &[&str]) -> Client {
    let mut client = server.greet().await;
    set_contexts(&mut client, export, contexts).await;
    client.go(export).await;
    client
}

async fn set_contexts(client: &mut Client, export: &str, contexts: &[&str]) {
    assert_eq!(client.option(STRUCTURED_REPLY, b"").await.1, ACK);
    let payload = contexts_query(export, contexts);
    let (chosen, last) = client.option(SET_META_CONTEXT, &payload).await;
    assert_eq!((chosen.len(), last), (contexts.len(), ACK));
}

async fn status(client: &mut Client, flags: u16, offset: u64, length: u32) -> Vec<Chunk> {
    client.request(flags, BLOCK_STATUS, offset, offset, length).await;
    client.chunks(offset).await
}

/// Extents of `base:allocation`, which is the only context.
async fn extents(client: &mut Client, flags: u16, offset: u64, length: u32) -> Vec<(u64, u64)> {
    match &status(client, flags, offset, length).await[..] {
        [Chunk::Status { context: ALLOCATION, extents }] => extents.clone(),
        other => panic!("{offset}+{length}: {other:?}"),
    }
}

/// "the server MUST return at least one status descriptor", they are "consecutive portions", and
/// "SHOULD use different status values between consecutive descriptors".
#[tokio::test]
async fn the_whole_device_is_described_and_every_hole_of_the_snapshot_is_found() {
    let server = Server::exporting(&FILES, Limits::default()).await;
    for (export, file) in FILES {
        let image = contents(file);
        let size = image.len() as u64;
        let mut client = open(&server, export, &["base:allocation"]).await;
        let (mut position, mut told) = (0, vec![false; image.len().div_ceil(512)]);
        while position < size {
            let length = u32::try_from(size - position).unwrap();
            let mut before = None;
            for (bytes, state) in extents(&mut client, 0, position, length).await {
                assert_ne!(bytes, 0);
                assert_ne!(before, Some(state), "{file}: neighbours of one status");
                let range = position as usize..(position + bytes) as usize;
                if state == HOLE_AND_ZERO {
                    assert!(range.start.is_multiple_of(512), "{file}: {range:?}");
                    assert!(range.end.is_multiple_of(512) || range.end == image.len());
                    assert!(
                        image[range.clone()].iter().all(|byte| *byte == 0),
                        "{file}: {range:?}"
                    );
                    told[range.start / 512..range.end.div_ceil(512)].fill(true);
                } else {
                    assert_eq!(state, 0);
                }
                position += bytes;
                before = Some(state);
            }
        }
        assert_eq!(position, size, "{file}");
        // As the snapshot has them, without their broken sectors.
        let snapshot = File::open(fixtures::path(file)).unwrap();
        for extent in snapshot.extents(Stream::Main, 0..size).unwrap().map(Result::unwrap) {
            let whole =
                extent.range.start.div_ceil(512) as usize..(extent.range.end / 512) as usize;
            if extent.is_hole {
                assert!(told[whole].iter().all(|told| *told), "{file}: {:?}", extent.range);
            }
        }
    }
}

/// CVE-2025-47711 and -47712: every length and place at an edge.
#[tokio::test]
async fn questions_at_every_edge_are_answered_within_what_was_asked_or_are_invalid() {
    let server = Server::exporting(&FILES, Limits::default()).await;
    let image = contents("v082-lz4-default.hxz");
    let size = image.len() as u64;
    let mut client = open(&server, "odd", &["base:allocation"]).await;
    let mut lengths = vec![0, 1, 511, 512, 513, u32::MAX, u32::MAX - 511, 1 << 31];
    lengths.extend([size as u32, size as u32 + 1, size as u32 - 1]);
    for offset in [0, 1, 511, 512, size - 513, size - 1, size, size + 1, u64::MAX, u64::MAX - 511] {
        for length in &lengths {
            let length = *length;
            for flags in [0, REQ_ONE] {
                let chunks = status(&mut client, flags, offset, length).await;
                let end = offset.checked_add(u64::from(length));
                let is_right = length != 0 && end.is_some_and(|end| end <= size);
                match &chunks[..] {
                    [Chunk::Status { extents, .. }] if is_right => {
                        let sum: u64 = extents.iter().map(|(bytes, _)| bytes).sum();
                        assert!(sum >= 1 && sum <= u64::from(length), "{offset}+{length}");
                        assert!(flags == 0 || extents.len() == 1, "{offset}+{length}");
                    }
                    [Chunk::Error { error: EINVAL, .. }] if !is_right => {}
                    other => panic!("{offset}+{length}: {other:?}"),
                }
            }
        }
    }
    client.request(0, READ, 3, 7, 5).await;
    let data = Chunk::Data { offset: 7, bytes: image[7..12].to_vec() };
    assert_eq!(client.chunks(3).await, [data], "still in step");
}

/// "If this flag is present, the server SHOULD NOT send metadata on more than one extent".
#[tokio::test]
async fn one_extent_is_described_if_one_is_wanted_and_it_is_the_first_of_all() {
    let server = Server::exporting(&FILES, Limits::default()).await;
    let size = contents("v020-lz4-multipage.hxz").len() as u64;
    let mut client = open(&server, "many", &["base:allocation"]).await;
    let mut position = 0;
    let mut seen = 0;
    while position < size && seen < 200 {
        let length = u32::try_from(size - position).unwrap();
        let all = extents(&mut client, 0, position, length).await;
        let one = extents(&mut client, REQ_ONE, position, length).await;
        assert_eq!(one, all[..1], "at {position}");
        position += one[0].0;
        seen += 1;
    }
    assert!(seen > 10);
}

/// "This chunk type MUST appear exactly once per metadata ID in a structured reply."
#[tokio::test]
async fn every_context_that_was_set_is_described_in_one_chunk() {
    let server = Server::exporting(&FILES, Limits::default()).await;
    let names = ["base:allocation", "hexz:parent-depth", "hexz:shared"];
    let mut client = open(&server, "disk", &names).await;
    let chunks = status(&mut client, 0, 0, 1 << 20).await;
    let ids: Vec<u32> = chunks
        .iter()
        .map(|chunk| match chunk {
            Chunk::Status { context, extents } => {
                assert_eq!(extents.iter().map(|(bytes, _)| bytes).sum::<u64>(), 1 << 20);
                *context
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids, [1, 2, 3]);
    let depth = Chunk::Status { context: 2, extents: vec![(1 << 20, 0)] };
    assert_eq!(chunks[1], depth, "nothing of this snapshot comes from a parent");
}

/// "Servers SHOULD reply to clients doing so anyway with `EINVAL`."
#[tokio::test]
async fn without_contexts_a_question_is_invalid_and_the_session_goes_on() {
    let server = Server::exporting(&FILES, Limits::default()).await;
    let mut structured = server.open_structured("disk").await;
    let chunks = status(&mut structured, 0, 0, 4096).await;
    assert!(matches!(&chunks[..], [Chunk::Error { error: EINVAL, offset: None, .. }]));
    assert_eq!(structured.read_chunks(0, 1080, 2).await.len(), 1);
    let mut simple = server.open("disk").await;
    simple.request(0, BLOCK_STATUS, 1, 0, 4096).await;
    assert_eq!(simple.reply(0).await, (EINVAL, 1, vec![]));
    assert_eq!(simple.read(1080, 2).await, [0x53, 0xef]);
}

/// A device of many extents is described piece by piece.
#[tokio::test]
async fn no_reply_has_more_than_4096_extents() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("comb.img");
    // Blocks of data and holes in turns, 10,000 of them.
    let comb: Vec<u8> = (0..10_000_u32)
        .flat_map(|block| vec![if block.is_multiple_of(2) { 7 } else { 0 }; 4096])
        .collect();
    std::fs::write(&image, &comb).unwrap();
    let snapshot = pack(&image, &["--block-size", "4KiB"]);
    let server = Process::start([snapshot.to_str().unwrap()]);
    let mut client = Client::connect((Ipv4Addr::LOCALHOST, server.port()).into()).await;
    client.greet(3).await;
    set_contexts(&mut client, "comb", &["base:allocation"]).await;
    assert_eq!(client.option(GO, &crate::support::client::query("comb", &[])).await.1, ACK);
    let all = extents(&mut client, 0, 0, comb.len() as u32).await;
    assert_eq!(all.len(), 4096);
    let (mut position, mut count) = (0, 0);
    while position < comb.len() as u64 {
        let some = extents(&mut client, 0, position, (comb.len() as u64 - position) as u32).await;
        for (bytes, state) in some {
            let value = comb[position as usize];
            assert_eq!((bytes, state), (4096, if value == 0 { 3 } else { 0 }));
            position += bytes;
            count += 1;
        }
    }
    assert_eq!(count, 10_000);
}

#[tokio::test]
async fn blocks_that_are_stored_once_for_several_places_are_shared_and_others_are_not() {
    const BLOCK: usize = 65_536;
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("shared.img");
    let bytes: Vec<u8> = [1, 2, 1, 0, 3, 3, 4].map(|value| vec![value; BLOCK]).concat();
    std::fs::write(&image, bytes).unwrap();
    let snapshot = pack(&image, &["--block-size", "64KiB"]);
    let server = Process::start([snapshot.to_str().unwrap()]);
    let mut client = Client::connect((Ipv4Addr::LOCALHOST, server.port()).into()).await;
    client.greet(3).await;
    set_contexts(&mut client, "shared", &["hexz:shared"]).await;
    client.go("shared").await;
    let block = BLOCK as u64;
    let expected = [(block, 1), (block, 0), (block, 1), (block, 0), (2 * block, 1), (block, 0)];
    let chunks = status(&mut client, 0, 0, 7 * BLOCK as u32).await;
    assert_eq!(chunks, [Chunk::Status { context: 3, extents: expected.to_vec() }]);
}
