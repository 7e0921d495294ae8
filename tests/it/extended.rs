//! Extended headers, rule by rule, against raw sockets. The extension `extension-ext-header` of the
//! protocol document, as qemu and libnbd speak it.

use crate::meta_context::contexts_query;
use crate::support::chunks::Chunk;
use crate::support::client::{ACK, Client, ERR_EXT_HEADER_REQD, ERR_INVALID, request};
use crate::support::server::{Server, contents};
use crate::support::wire::{
    BLOCK_STATUS, CACHE, DF, DISC, EINVAL, EPERM, EXPORT_NAME, EXTENDED_HEADERS, FLUSH,
    PAYLOAD_LEN, READ, SET_META_CONTEXT, STRUCTURED_REPLY, TRIM, WRITE, WRITE_ZEROES,
};

/// A client that has extended headers, and contexts if any are named.
async fn open(server: &Server, export: &str, contexts: &[&str]) -> Client {
    let mut client = server.greet().await;
    assert_eq!(client.option(EXTENDED_HEADERS, b"").await, (vec![], ACK));
    let payload = contexts_query(export, contexts);
    assert_eq!(client.option(SET_META_CONTEXT, &payload).await.0.len(), contexts.len());
    client.go(export).await;
    client
}

fn extended(flags: u16, command: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = 0x21e4_1c71_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    for number in [cookie, offset, length] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes
}

/// What one request is answered with.
async fn ask(
    client: &mut Client,
    flags: u16,
    command: u16,
    offset: u64,
    length: u64,
) -> Vec<Chunk> {
    client.send(&extended(flags, command, 5, offset, length)).await;
    answer(client, offset).await
}

async fn answer(client: &mut Client, offset: u64) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    loop {
        let (is_last, cookie, chunk) = client.extended_chunk(offset).await;
        assert_eq!(cookie, 5);
        chunks.push(chunk);
        if is_last {
            return chunks;
        }
    }
}

fn is_error(chunks: &[Chunk], number: u32) -> bool {
    matches!(chunks, [Chunk::Error { error, .. }] if *error == number)
}

/// "the client MUST use the 32-byte extended request header" and "the server MUST use the 32-byte
/// extended reply header".
#[tokio::test]
async fn requests_and_replies_of_every_kind_have_extended_headers() {
    let server = Server::start().await;
    let image = contents("v082-ext4.hxz");
    let mut client = open(&server, "disk", &[]).await;
    let data = Chunk::Data { offset: 1000, bytes: image[1000..1100].to_vec() };
    for flags in [0, DF] {
        assert_eq!(ask(&mut client, flags, READ, 1000, 100).await, std::slice::from_ref(&data));
    }
    for (command, offset, length) in [(FLUSH, 0, 0), (CACHE, 0, 65_536), (READ, 9, 0)] {
        assert_eq!(ask(&mut client, 0, command, offset, length).await, [Chunk::None]);
    }
    for command in [TRIM, WRITE_ZEROES] {
        assert!(is_error(&ask(&mut client, 0, command, 0, 1 << 40).await, EPERM));
    }
    client.send(&extended(0, DISC, 1, 0, 0)).await;
    client.expect_end().await;
}

#[tokio::test]
async fn lengths_of_64_bits_are_taken_as_such() {
    let server = Server::start().await;
    let mut client = open(&server, "disk", &["base:allocation"]).await;
    for (command, length) in [
        (READ, 1 << 32),
        (READ, (1 << 32) + 4096),
        (READ, u64::MAX),
        (CACHE, (1 << 32) + 4096),
        (BLOCK_STATUS, 1 << 32),
        (BLOCK_STATUS, u64::MAX),
    ] {
        assert!(is_error(&ask(&mut client, 0, command, 0, length).await, EINVAL), "{length}");
    }
    // Still in step.
    assert_eq!(ask(&mut client, 0, FLUSH, 0, 0).await, [Chunk::None]);
}

/// The chunk with lengths of 64 bits is the only one that is sent.
#[tokio::test]
async fn extents_have_lengths_and_states_of_64_bits() {
    let server = Server::start().await;
    let mut client = open(&server, "disk", &["base:allocation", "hexz:shared"]).await;
    client.send(&extended(0, BLOCK_STATUS, 5, 0, 16 << 20)).await;
    for (context, is_last) in [(1, false), (3, true)] {
        let header = client.receive(32).await;
        assert_eq!(header[4..8], [0, u8::from(is_last), 0, 6]);
        let length = u64::from_be_bytes(header[24..].try_into().unwrap());
        let payload = client.receive(length as usize).await;
        assert_eq!(payload[..4], u32::to_be_bytes(context));
        let count = u32::from_be_bytes(payload[4..8].try_into().unwrap());
        assert_eq!(payload.len() as u32, 8 + 16 * count);
        let (extents, rest) = payload[8..].as_chunks::<16>();
        let bytes = |extent: &[u8; 16]| u64::from_be_bytes(extent[..8].try_into().unwrap());
        assert_eq!(extents.iter().map(bytes).sum::<u64>(), 16 << 20);
        assert!(rest.is_empty());
    }
}

/// `NBD_FLAG_BLOCK_STATUS_PAYLOAD`.
#[tokio::test]
async fn a_filter_names_the_contexts_that_are_described() {
    let server = Server::start().await;
    let mut client = open(&server, "disk", &["base:allocation", "hexz:shared"]).await;
    for (ids, expected) in [(&[1][..], &[1][..]), (&[3], &[3]), (&[3, 1], &[1, 3])] {
        let mut payload = 4096_u64.to_be_bytes().to_vec();
        payload.extend(ids.iter().flat_map(|id: &u32| id.to_be_bytes()));
        let mut bytes = extended(PAYLOAD_LEN, BLOCK_STATUS, 5, 512, payload.len() as u64);
        bytes.extend_from_slice(&payload);
        client.send(&bytes).await;
        let described: Vec<u32> = answer(&mut client, 512)
            .await
            .iter()
            .map(|chunk| match chunk {
                Chunk::Status { context, extents } => {
                    assert_eq!(extents.iter().map(|(bytes, _)| bytes).sum::<u64>(), 4096);
                    *context
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(described, expected);
    }
}

#[tokio::test]
async fn a_filter_that_makes_no_sense_is_invalid_and_the_session_goes_on() {
    let server = Server::start().await;
    let mut client = open(&server, "disk", &["base:allocation", "hexz:shared"]).await;
    let ids = |ids: &[u32]| {
        let mut payload = 4096_u64.to_be_bytes().to_vec();
        payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
        payload
    };
    for payload in [
        vec![],
        vec![0; 7],
        ids(&[]),
        ids(&[0]),
        ids(&[2]),
        ids(&[1, 1]),
        ids(&[1, 3, 1]),
        ids(&[1; 100]),
        [ids(&[1]), vec![0]].concat(),
        [vec![0; 8], vec![0, 0, 0, 1]].concat(),
        vec![0xff; 70_000],
    ] {
        let mut bytes = extended(PAYLOAD_LEN, BLOCK_STATUS, 5, 0, payload.len() as u64);
        bytes.extend_from_slice(&payload);
        client.send(&bytes).await;
        assert!(is_error(&answer(&mut client, 0).await, EINVAL), "{} bytes", payload.len());
    }
    assert_eq!(ask(&mut client, 0, FLUSH, 0, 0).await, [Chunk::None]);
}

/// "a server SHOULD gracefully consume *length* bytes of payload".
#[tokio::test]
async fn a_payload_that_no_request_has_is_passed_over_and_that_of_a_write_is_not_permitted() {
    let server = Server::start().await;
    let mut client = open(&server, "disk", &[]).await;
    for (command, error) in [
        (READ, EINVAL),
        (FLUSH, EINVAL),
        (CACHE, EINVAL),
        (99, EINVAL),
        (TRIM, EPERM),
        (WRITE, EPERM),
    ] {
        for length in [0, 1, 32, 100_000] {
            let mut bytes = extended(PAYLOAD_LEN, command, 5, 0, length);
            bytes.extend(vec![0x21; length as usize]);
            client.send(&bytes).await;
            assert!(is_error(&answer(&mut client, 0).await, error), "{command} {length}");
        }
    }
    // Without the flag there is no payload, whatever the length says.
    assert!(is_error(&ask(&mut client, 0, WRITE, 0, 512).await, EPERM));
    assert_eq!(ask(&mut client, 0, FLUSH, 0, 0).await, [Chunk::None]);
}

/// "A server SHOULD initiate hard disconnect if a client sets the `NBD_CMD_FLAG_PAYLOAD_LEN` flag
/// and uses a *length* larger than a server's ... maximum payload length".
#[tokio::test]
async fn a_payload_longer_than_any_may_be_ends_the_session() {
    let server = Server::start().await;
    for length in [(32 << 20) + 1, u64::from(u32::MAX), u64::MAX] {
        for command in [WRITE, READ, BLOCK_STATUS] {
            let mut client = open(&server, "disk", &[]).await;
            client.send(&extended(PAYLOAD_LEN, command, 5, 0, length)).await;
            client.expect_end().await;
        }
    }
    server.serves().await;
}

#[tokio::test]
async fn extended_headers_are_negotiated_once_without_data_and_replace_structured_replies() {
    let server = Server::start().await;
    let mut client = server.greet().await;
    assert_eq!(client.option(EXTENDED_HEADERS, b"x").await, (vec![], ERR_INVALID));
    assert_eq!(client.option(STRUCTURED_REPLY, b"").await.1, ACK);
    assert_eq!(client.option(EXTENDED_HEADERS, b"").await.1, ACK);
    assert_eq!(client.option(EXTENDED_HEADERS, b"").await.1, ERR_INVALID);
    assert_eq!(client.option(STRUCTURED_REPLY, b"").await.1, ERR_EXT_HEADER_REQD);
    // SEND_DF and BLOCK_STATUS_PAYLOAD beside what everybody gets.
    assert_eq!(client.go("disk").await.1, 0x1587);
    assert_eq!(ask(&mut client, 0, FLUSH, 0, 0).await, [Chunk::None]);
}

/// The extension forbids the old way in.
#[tokio::test]
async fn an_export_name_with_extended_headers_ends_the_session() {
    let server = Server::start().await;
    let mut client = server.greet().await;
    client.option(EXTENDED_HEADERS, b"").await;
    client.send_option(EXPORT_NAME, b"disk").await;
    client.expect_end().await;
}

#[tokio::test]
async fn a_request_in_the_other_form_ends_the_session() {
    let server = Server::start().await;
    let mut client = open(&server, "disk", &[]).await;
    client.send(&[request(0, READ, 1, 0, 512), vec![0; 4]].concat()).await;
    client.expect_end().await;
    for structured in [false, true] {
        let mut client = if structured {
            server.open_structured("disk").await
        } else {
            server.open("disk").await
        };
        client.send(&extended(0, READ, 1, 0, 512)).await;
        client.expect_end().await;
    }
    server.serves().await;
}
