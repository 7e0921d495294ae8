//! Requests and replies, over real sockets. Protocol document, section "Transmission phase".

use std::collections::BTreeMap;

use crate::support::client::request;
use crate::support::fixtures;
use crate::support::server::{Server, contents};
use crate::support::wire::{DISC, EINVAL, EIO, EPERM, FLUSH, READ, TRIM, WRITE, WRITE_ZEROES};
use tokio::io::AsyncWriteExt;

const DISK_BYTES: u64 = 16 << 20;

#[tokio::test]
async fn reads_of_any_place_and_length_give_the_bytes_of_the_snapshot() {
    let server = Server::start().await;
    for (export, file) in [("disk", "v082-ext4.hxz"), ("zstd", "v082-zstd.hxz")] {
        let expected = contents(file);
        let mut client = server.open(export).await;
        let size = expected.len() as u64;
        for length in [1, 511, 512, 513, 4096, 65_537, 1 << 20] {
            for offset in [0, 1, 1000, 262_143, 262_144, size / 2, size - u64::from(length)] {
                let start = offset as usize;
                let data = client.read(offset, length).await;
                assert!(data == expected[start..start + length as usize], "{offset}+{length}");
            }
        }
    }
}

/// Upstream's server pads such reads with zeros.
#[tokio::test]
async fn a_read_past_the_end_is_invalid_and_carries_no_payload() {
    let server = Server::start().await;
    let mut client = server.open("disk").await;
    for (offset, length) in [
        (DISK_BYTES, 1),
        (DISK_BYTES - 1, 2),
        (DISK_BYTES - 4096, 8192),
        (u64::MAX, 1),
        (u64::MAX - 4095, 4096),
        (0, (32 << 20) + 1),
        (0, u32::MAX),
    ] {
        client.request(0, READ, 5, offset, length).await;
        assert_eq!(client.reply(0).await, (EINVAL, 5, vec![]), "{offset}+{length}");
        // Still in step.
        assert_eq!(client.read(1080, 2).await, [0x53, 0xef]);
    }
    let mut empty = server.open("empty").await;
    empty.request(0, READ, 6, 0, 1).await;
    assert_eq!(empty.reply(0).await, (EINVAL, 6, vec![]));
}

#[tokio::test]
async fn unknown_commands_and_flags_are_invalid_and_the_session_stays_in_step() {
    let server = Server::start().await;
    let mut client = server.open("disk").await;
    for command in [7, 8, 9, 255, u16::MAX] {
        client.request(0, command, 1, 0, 4096).await;
        assert_eq!(client.reply(0).await, (EINVAL, 1, vec![]), "command {command}");
    }
    for bit in 0..16 {
        for command in [READ, FLUSH] {
            client.request(1 << bit, command, 2, 0, 0).await;
            assert_eq!(client.reply(0).await, (EINVAL, 2, vec![]), "flag {bit} of {command}");
        }
    }
    assert_eq!(client.read(1080, 2).await, [0x53, 0xef]);
}

/// "it SHOULD return `EPERM` if it receives a write or trim request on a read-only export"
#[tokio::test]
async fn nothing_writes_and_the_payload_of_a_write_is_passed_over() {
    let before = std::fs::read(fixtures::path("v082-ext4.hxz")).unwrap();
    let server = Server::start().await;
    let mut client = server.open("disk").await;
    for flags in [0, 1, u16::MAX] {
        for (offset, length) in [(0, 0), (0, 1), (512, 4096), (u64::MAX, 70_000), (0, 3 << 20)] {
            client.request(flags, WRITE, 1, offset, length).await;
            // The payload looks like requests, to be found out if it is taken for some.
            let payload = request(0, READ, 99, 0, 1).repeat(length as usize / 28 + 1);
            client.send(&payload[..length as usize]).await;
            assert_eq!(client.reply(0).await, (EPERM, 1, vec![]));
            for command in [TRIM, WRITE_ZEROES] {
                client.request(flags, command, 2, offset, length).await;
                assert_eq!(client.reply(0).await, (EPERM, 2, vec![]));
            }
        }
    }
    assert_eq!(client.read(1080, 2).await, [0x53, 0xef]);
    assert!(std::fs::read(fixtures::path("v082-ext4.hxz")).unwrap() == before);
}

#[tokio::test]
async fn flush_succeeds_since_there_is_nothing_to_write() {
    let server = Server::start().await;
    let mut client = server.open("disk").await;
    client.request(0, FLUSH, 1, 0, 0).await;
    assert_eq!(client.reply(0).await, (0, 1, vec![]));
    client.request(0, FLUSH, 2, 1, 0).await;
    assert_eq!(client.reply(0).await, (EINVAL, 2, vec![]));
}

#[tokio::test]
async fn many_requests_at_once_get_each_its_own_reply() {
    let server = Server::start().await;
    let expected = contents("v082-zstd.hxz");
    let mut client = server.open("zstd").await;
    let (mut requests, mut lengths) = (Vec::new(), BTreeMap::new());
    for number in 0..500_u64 {
        let (offset, length) = (number * 4001 % 2_000_000, 1 + (number * 7919 % 60_000) as u32);
        requests.extend_from_slice(&request(0, READ, offset, offset, length));
        lengths.insert(offset, length as usize);
    }
    assert_eq!(lengths.len(), 500);
    let (mut reader, mut writer) = client.stream.split();
    let sent = async {
        writer.write_all(&requests).await.unwrap();
    };
    let received = async {
        while !lengths.is_empty() {
            use tokio::io::AsyncReadExt;
            assert_eq!(reader.read_u64().await.unwrap(), 0x6744_6698_0000_0000);
            let offset = reader.read_u64().await.unwrap();
            let length = lengths.remove(&offset).expect("a reply to a request that was made");
            let mut data = vec![0; length];
            reader.read_exact(&mut data).await.unwrap();
            let start = offset as usize;
            assert!(data == expected[start..start + length], "{offset}+{length}");
        }
    };
    tokio::join!(sent, received);
}

#[tokio::test]
async fn cookies_belong_to_the_client_even_if_it_uses_one_twice() {
    let server = Server::start().await;
    let mut client = server.open("disk").await;
    client.send(&request(0, READ, 7, 1080, 2).repeat(10)).await;
    for _ in 0..10 {
        assert_eq!(client.reply(2).await, (0, 7, vec![0x53, 0xef]));
    }
}

#[tokio::test]
async fn a_wrong_magic_ends_that_session_only() {
    let server = Server::start().await;
    let mut other = server.open("disk").await;
    for garbage in [&[0; 28][..], &[0xff; 28], b"IHAVEOPT\0\0\0\x02\0\0\0\0............"] {
        let mut client = server.open("disk").await;
        client.send(garbage).await;
        client.expect_end().await;
    }
    assert_eq!(other.read(1080, 2).await, [0x53, 0xef]);
}

/// "The server MUST handle all outstanding requests"
#[tokio::test]
async fn disconnecting_waits_for_what_was_asked_before() {
    let server = Server::start().await;
    let mut client = server.open("zstd").await;
    let bytes = [request(0, READ, 1, 0, 1 << 20), request(0, DISC, 2, 0, 0)].concat();
    client.send(&bytes).await;
    let (error, cookie, data) = client.reply(1 << 20).await;
    assert_eq!((error, cookie), (0, 1));
    assert!(data == contents("v082-zstd.hxz")[..1 << 20]);
    client.expect_end().await;
}

#[tokio::test]
async fn a_client_that_closes_its_sending_side_still_gets_its_replies() {
    let server = Server::start().await;
    let mut client = server.open("zstd").await;
    client.request(0, READ, 1, 0, 1 << 20).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.reply(1 << 20).await.0, 0);
    client.expect_end().await;
}

/// CVE-2022-0485's class: an error must never look like zeros.
#[tokio::test]
async fn a_damaged_block_is_an_error_without_payload_and_other_blocks_are_served() {
    let server = Server::start().await;
    let damaged = fixtures::named("h-flip-block.hxz");
    let bad = damaged.expect.unwrap().bad_main_ranges.unwrap();
    let intact = contents(&damaged.derived_from.unwrap());
    let mut client = server.open("damaged").await;
    let mut errors = 0;
    for start in (0..intact.len()).step_by(4096) {
        let end = (start + 4096).min(intact.len());
        client.request(0, READ, 1, start as u64, (end - start) as u32).await;
        let (error, _, data) = client.reply(end - start).await;
        let touched = bad
            .iter()
            .any(|(offset, length)| (*offset as usize) < end && start < (offset + length) as usize);
        assert_eq!(error, if touched { EIO } else { 0 }, "{start}");
        assert!(touched || data == intact[start..end], "{start}");
        errors += u32::from(touched);
    }
    assert!(errors > 0);
}

/// A client that takes nothing costs its budget, and slows nobody.
#[tokio::test]
async fn clients_that_never_take_a_reply_do_not_keep_others_from_theirs() {
    let server = Server::start().await;
    let mut greedy = Vec::new();
    for _ in 0..20 {
        let client = server.open("disk").await;
        // As much as the sockets take, without waiting for the rest.
        let requests = request(0, READ, 1, 0, DISK_BYTES as u32).repeat(1000);
        let _ = client.stream.try_write(&requests);
        greedy.push(client);
    }
    for _ in 0..20 {
        server.serves().await;
    }
}
