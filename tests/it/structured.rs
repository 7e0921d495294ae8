//! Structured replies, over real sockets. Protocol document, sections "Structured reply chunk
//! message" and "Structured reply types".

use std::collections::BTreeMap;

use hexz_nbd::server::Limits;
use hexz_nbd::snapshot::{Extent, File, Stream};
use tokio::io::AsyncWriteExt;

use crate::support::chunks::{Chunk, assemble, merged};
use crate::support::client::{ACK, ERR_INVALID, query, request};
use crate::support::fixtures;
use crate::support::server::{Server, contents};
use crate::support::wire::{
    DF, DISC, EINVAL, EIO, EPERM, FLUSH, READ, STRUCTURED_REPLY, TRIM, WRITE, WRITE_ZEROES,
};

const DISK_BYTES: u64 = 16 << 20;

/// Largest read.
const READ_BYTES_MAX: u64 = 32 << 20;

fn error(error: u32, message: &str, offset: Option<u64>) -> Chunk {
    Chunk::Error { error, message: message.to_owned(), offset }
}

/// Images with holes of every kind: not stored, stored, none at all, many, at odd places, behind
/// the last block.
const HOLED: [(&str, &str); 7] = [
    ("all", "v082-zeros-sparse.hxz"),
    ("dense", "v082-zstd.hxz"),
    ("disk", "v082-ext4.hxz"),
    ("empty", "v082-empty.hxz"),
    ("many", "v020-lz4-multipage.hxz"),
    ("odd", "v082-lz4-default.hxz"),
    ("tail", "v014-zstd-cdc.hxz"),
];

async fn holed() -> Server {
    Server::exporting(&HOLED, Limits::default()).await
}

fn extents(file: &str, offset: u64, length: u64) -> Vec<Extent> {
    let file = File::open(fixtures::path(file)).unwrap();
    let extents = file.extents(Stream::Main, offset..offset + length).unwrap();
    extents.collect::<Result<_, _>>().unwrap()
}

/// "the server MUST send enough data chunks to cover the entire region described by the offset and
/// length of the client's request"
#[tokio::test]
async fn data_and_hole_chunks_are_the_extents_of_the_snapshot_and_cover_the_request() {
    let server = holed().await;
    let mut holes_seen = 0;
    for (export, file) in HOLED {
        let image = contents(file);
        let size = image.len() as u64;
        let mut client = server.open_structured(export).await;
        let mut reads = vec![(0, size), (size / 3, size / 3), (size / 2, 0), (size, 0)];
        for extent in extents(file, 0, size).into_iter().take(50) {
            // Into, out of and across every edge.
            for edge in [extent.range.start, extent.range.end] {
                let start = edge.saturating_sub(700);
                reads.extend([(start, 699), (start, 700), (start, 701), (edge, 1), (edge, 1001)]);
            }
        }
        for (offset, length) in reads {
            let length = length.min(size.saturating_sub(offset)).min(READ_BYTES_MAX);
            let chunks = client.read_chunks(0, offset, length as u32).await;
            let (bytes, holes) = assemble(&chunks, offset);
            let start = offset as usize;
            assert!(bytes == image[start..start + length as usize], "{file}: {offset}+{length}");
            if length == 0 {
                assert_eq!(chunks, [Chunk::None]);
                continue;
            }
            let expected = extents(file, offset, length);
            let chunks = merged(chunks);
            assert_eq!(chunks.len(), expected.len(), "{file}: one run for each extent");
            let expected = expected.into_iter().filter(|extent| extent.is_hole);
            let expected: Vec<_> = expected.map(|extent| extent.range).collect();
            assert_eq!(holes, expected, "{file}: {offset}+{length}");
            holes_seen += holes.len();
        }
    }
    assert!(holes_seen > 1000);
}

/// "If this flag is set, the server MUST send at most one content chunk", and up to 65,536 bytes
/// without an excuse. This server has none for longer ones either.
#[tokio::test]
async fn an_unfragmented_read_is_one_chunk_with_the_zeros_of_holes_beside_data() {
    let server = holed().await;
    let (mut holes, mut mixed) = (0, 0);
    for (export, file) in HOLED {
        let image = contents(file);
        let size = image.len() as u64;
        let mut client = server.open_structured(export).await;
        for length in [1, 512, 4096, 65_536, 1 << 20, READ_BYTES_MAX] {
            for offset in [0, 1, size / 4, size / 3, size / 2] {
                let offset = offset.min(size);
                let length = length.min(size - offset);
                let chunks = client.read_chunks(DF, offset, length as u32).await;
                let [chunk] = &chunks[..] else { panic!("{chunks:?}") };
                let (bytes, _) = assemble(&chunks, offset);
                let start = offset as usize;
                assert!(bytes == image[start..start + length as usize], "{offset}+{length}");
                let extents = extents(file, offset, length);
                let is_hole = !extents.is_empty() && extents.iter().all(|extent| extent.is_hole);
                assert_eq!(matches!(chunk, Chunk::Hole { .. }), is_hole);
                holes += u32::from(is_hole);
                mixed += u32::from(extents.len() > 1);
            }
        }
    }
    assert!(holes > 0 && mixed > 0, "{holes} holes, {mixed} mixed");
}

/// "The server MUST set this transmission flag to 1 if the `NBD_CMD_READ` request supports the
/// `NBD_CMD_FLAG_DF` flag, and MUST leave this flag clear if structured replies have not been
/// negotiated."
#[tokio::test]
async fn send_df_is_advertised_after_structured_replies_were_negotiated() {
    let server = Server::start().await;
    let mut client = server.greet().await;
    assert_eq!(client.option(STRUCTURED_REPLY, b"x").await.1, ERR_INVALID);
    let (facts, _) = client.option(6, &query("disk", &[])).await;
    assert_eq!(facts[0][10..], [0x05, 0x07]);
    for _ in 0..2 {
        assert_eq!(client.option(STRUCTURED_REPLY, b"").await, (vec![], ACK));
        let (facts, _) = client.option(6, &query("disk", &[])).await;
        assert_eq!(facts[0][10..], [0x05, 0x87]);
    }
    assert_eq!(client.option(STRUCTURED_REPLY, b"x").await.1, ERR_INVALID);
    assert_eq!(client.go("disk").await, (DISK_BYTES, 0x0587));
    let chunks = client.read_chunks(DF, 1080, 2).await;
    assert_eq!(chunks, [Chunk::Data { offset: 1080, bytes: vec![0x53, 0xef] }]);

    let mut client = server.connect().await;
    client.greet(1).await;
    client.option(STRUCTURED_REPLY, b"").await;
    client.send_option(1, b"disk").await;
    assert_eq!(client.receive(134).await[8..10], [0x05, 0x87]);
    let chunks = client.read_chunks(0, 1080, 2).await;
    assert_eq!(chunks, [Chunk::Data { offset: 1080, bytes: vec![0x53, 0xef] }]);
}

#[tokio::test]
async fn a_client_that_does_not_ask_for_structured_replies_gets_simple_ones() {
    let server = holed().await;
    let image = contents("v082-lz4-default.hxz");
    let mut structured = server.open_structured("odd").await;
    let mut simple = server.open("odd").await;
    let (offset, length) = (1_200_000, 600_000);
    structured.request(0, READ, 1, offset, length).await;
    let data = simple.read(offset, length).await;
    assert!(data == image[offset as usize..][..length as usize]);
    assert!(assemble(&structured.chunks(1).await, offset).0 == data);
    for (flags, command) in [(DF, READ), (0, 99)] {
        simple.request(flags, command, 2, 0, 1).await;
        assert_eq!(simple.reply(0).await, (EINVAL, 2, vec![]));
    }
}

/// "The server SHOULD prefer sending errors via a structured reply, as the error can then be
/// accompanied by a string payload to present to a human user."
#[tokio::test]
async fn what_is_refused_is_refused_in_words_and_the_session_stays_in_step() {
    let server = Server::start().await;
    let mut client = server.open_structured("disk").await;
    let past_end = "the request reaches past the end of the export";
    let flag = "the request has a flag that its command does not have here";
    let read_only = "the export is read-only";
    for (flags, command, offset, length, number, sentence) in [
        (0, READ, DISK_BYTES, 1, EINVAL, past_end),
        (DF, READ, DISK_BYTES - 1, 2, EINVAL, past_end),
        (0, READ, u64::MAX, 1, EINVAL, past_end),
        (0, READ, 0, (32 << 20) + 1, EINVAL, "one read is limited to 32 MiB"),
        (DF, READ, 0, u32::MAX, EINVAL, "one read is limited to 32 MiB"),
        (1, READ, 0, 1, EINVAL, flag),
        (DF | 8, READ, 0, 1, EINVAL, flag),
        (DF, FLUSH, 0, 0, EINVAL, flag),
        (0, FLUSH, 1, 0, EINVAL, "a flush has neither offset nor length"),
        (0, 77, 0, 1, EINVAL, "this server does not know the command"),
        (0, TRIM, 0, 1, EPERM, read_only),
        (0, WRITE_ZEROES, 0, 1, EPERM, read_only),
        (0, WRITE, 0, 70_000, EPERM, read_only),
    ] {
        client.request(flags, command, 5, offset, length).await;
        if command == WRITE {
            client.send(&request(0, READ, 99, 0, 1).repeat(2500)).await;
        }
        assert_eq!(client.chunks(5).await, [error(number, sentence, None)], "{command}");
        // Still in step.
        client.request(0, FLUSH, 6, 0, 0).await;
        assert_eq!(client.chunks(6).await, [Chunk::None]);
        let chunks = client.read_chunks(0, 1080, 2).await;
        assert_eq!(chunks, [Chunk::Data { offset: 1080, bytes: vec![0x53, 0xef] }]);
    }
}

const DAMAGED: &str = "a block of the snapshot is damaged";

/// CVE-2022-0485's class: what cannot be read is never sent, and what comes before it is.
#[tokio::test]
async fn the_bytes_before_a_damaged_block_are_delivered_and_the_error_says_where_it_begins() {
    let server = Server::start().await;
    let damaged = fixtures::named("h-flip-block.hxz");
    let bad = damaged.expect.unwrap().bad_main_ranges.unwrap();
    let image = contents(&damaged.derived_from.unwrap());
    let size = image.len() as u64;
    let [(bad_start, bad_length)] = bad[..] else { panic!("{bad:?}") };
    let bad_end = bad_start + bad_length;
    let mut client = server.open_structured("damaged").await;
    for flags in [0, DF] {
        for (offset, end) in [
            (0, size),
            (0, bad_start + 1),
            (bad_start - 1, bad_start + 1),
            (bad_start - 100_000, bad_end + 100_000),
            (bad_start, bad_end),
            (bad_start + 1, bad_end),
            (bad_end - 1, size),
        ] {
            let mut chunks = client.read_chunks(flags, offset, (end - offset) as u32).await;
            let place = bad_start.max(offset);
            assert_eq!(chunks.pop(), Some(error(EIO, DAMAGED, Some(place))));
            assert!(flags == 0 || chunks.len() <= 1, "fragments");
            // A long unfragmented read is checked before the first byte is sent.
            if flags == DF && end - offset > 256 * 1024 {
                assert_eq!(chunks, []);
                continue;
            }
            let (bytes, _) = assemble(&chunks, offset);
            assert!(bytes == image[offset as usize..place as usize], "{offset} to {end}");
        }
        for (offset, end) in [(0, bad_start), (bad_end, size), (bad_start, bad_start)] {
            let chunks = client.read_chunks(flags, offset, (end - offset) as u32).await;
            let (bytes, _) = assemble(&chunks, offset);
            assert!(bytes == image[offset as usize..end as usize], "{offset} to {end}");
        }
    }
    // A simple reply has no place for them.
    let mut client = server.open("damaged").await;
    client.request(0, READ, 3, 0, size as u32).await;
    assert_eq!(client.reply(0).await, (EIO, 3, vec![]));
    assert!(client.read(0, bad_start as u32).await == image[..bad_start as usize]);
}

/// The client learns nothing of the server's files, neither names nor places.
#[tokio::test]
async fn no_sentence_names_a_file() {
    let server = Server::start().await;
    let mut client = server.open_structured("damaged").await;
    client.request(0, READ, 1, 0, 421_000).await;
    for chunk in client.chunks(1).await {
        if let Chunk::Error { message, .. } = chunk {
            assert!(!message.contains(['/', '.', '\\']) && !message.contains("hxz"), "{message}");
        }
    }
}

/// "it is always safe to interleave chunks of that reply with messages related to other requests"
#[tokio::test]
async fn many_requests_of_all_kinds_at_once_get_each_its_own_chunks() {
    let server = holed().await;
    let image = contents("v082-lz4-default.hxz");
    let size = image.len() as u64;
    let mut client = server.open_structured("odd").await;
    let (mut requests, mut asked) = (Vec::new(), BTreeMap::new());
    for cookie in 0..600_u64 {
        let offset = cookie * 104_729 % size;
        let length = (cookie * 7919 % 150_000).min(size - offset);
        let (flags, command, offset, length) = match cookie % 6 {
            0 => (0, FLUSH, 0, 0),
            1 => (0, TRIM, offset, length),
            2 => (0, READ, size, 1),
            3 => (DF, READ, offset, length),
            _ => (0, READ, offset, length),
        };
        requests.extend_from_slice(&request(flags, command, cookie, offset, length as u32));
        asked.insert(cookie, (offset, length));
    }
    client.stream.write_all(&requests).await.unwrap();
    let mut replies: BTreeMap<u64, Vec<Chunk>> = BTreeMap::new();
    while !asked.is_empty() {
        let (is_last, cookie, chunk) = client.chunk().await;
        replies.entry(cookie).or_default().push(chunk);
        if !is_last {
            continue;
        }
        let (offset, length) = asked.remove(&cookie).expect("a reply to a request that was made");
        let chunks = replies.remove(&cookie).unwrap();
        match cookie % 6 {
            0 => assert_eq!(chunks, [Chunk::None]),
            1 => assert_eq!(chunks, [error(EPERM, "the export is read-only", None)]),
            2 => assert!(matches!(&chunks[..], [Chunk::Error { error: EINVAL, .. }])),
            kind => {
                assert!(kind != 3 || chunks.len() == 1);
                let (bytes, _) = assemble(&chunks, offset);
                assert!(bytes == image[offset as usize..(offset + length) as usize], "{cookie}");
            }
        }
    }
    assert!(replies.is_empty());
    client.request(0, DISC, 1, 0, 0).await;
    client.expect_end().await;
}

/// Nothing is owed for zeros that are not sent, so they stop nobody.
#[tokio::test]
async fn reads_of_holes_without_end_are_answered_before_any_is_taken() {
    let limits = Limits { owed_bytes_max: 2 << 20, ..Limits::default() };
    let server = Server::exporting(&HOLED, limits).await;
    let mut client = server.open_structured("all").await;
    client.send(&request(0, READ, 1, 0, 1 << 20).repeat(1000)).await;
    for _ in 0..1000 {
        assert_eq!(client.chunks(1).await, [Chunk::Hole { offset: 0, length: 1 << 20 }]);
    }
}
