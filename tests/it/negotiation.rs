//! From the greeting to the choice of an export, over real sockets. Protocol document, sections
//! "Newstyle negotiation" and "Option types".

use std::time::Duration;

use hexz_nbd::server::Limits;
use tokio::io::AsyncWriteExt;

use crate::support::client::{
    ACK, ERR_INVALID, ERR_POLICY, ERR_TOO_BIG, ERR_UNKNOWN, ERR_UNSUP, option, query, request,
};
use crate::support::server::{EXPORTS, Server};
use crate::support::wire::{ABORT, EXPORT_NAME, GO, LIST, OPT_INFO, STARTTLS};

const UNKNOWN: u32 = 77;

#[tokio::test]
async fn a_list_holds_every_export_with_its_description_in_order() {
    let server = Server::start().await;
    let mut client = server.greet().await;
    let (listed, last) = client.option(LIST, b"").await;
    assert_eq!(last, ACK);
    let expected = EXPORTS.map(|(name, file)| {
        let description = format!("from {file}");
        [&(name.len() as u32).to_be_bytes()[..], name.as_bytes(), description.as_bytes()].concat()
    });
    assert_eq!(listed, expected);
}

#[tokio::test]
async fn info_describes_and_the_session_goes_on_and_go_enters() {
    let server = Server::start().await;
    let mut client = server.greet().await;
    for code in [OPT_INFO, OPT_INFO, GO] {
        let (facts, last) = client.option(code, &query("disk", &[3, 1, 2, 0x7777, 3])).await;
        assert_eq!(last, ACK);
        let size = (16_u64 << 20).to_be_bytes();
        // HAS_FLAGS, READ_ONLY, SEND_FLUSH, CAN_MULTI_CONN, SEND_CACHE.
        assert_eq!(facts[0], [&[0, 0], &size[..], &0x0507_u16.to_be_bytes()].concat());
        assert_eq!(facts[1], b"\0\x01disk");
        assert_eq!(facts[2], b"\0\x02from v082-ext4.hxz");
        let sizes = [1_u32, 65_536, 32 << 20].map(u32::to_be_bytes).concat();
        assert_eq!(facts[3], [&[0, 3], &sizes[..]].concat());
        assert_eq!(facts.len(), 4);
    }
    assert_eq!(client.read(1080, 2).await, [0x53, 0xef]);
}

#[tokio::test]
async fn the_empty_name_is_the_default_export() {
    let server = Server::start().await;
    let mut client = server.greet().await;
    let (facts, last) = client.option(GO, &query("", &[1])).await;
    assert_eq!((facts[1].as_slice(), last), (&b"\0\x01disk"[..], ACK));
    assert_eq!(client.read(1080, 2).await, [0x53, 0xef]);
}

/// CVE-2020-10761: the error text for the longest name.
#[tokio::test]
async fn an_unknown_export_is_an_error_in_words_and_the_session_goes_on() {
    let server = Server::start().await;
    let mut client = server.greet().await;
    for name in ["nothing", "DISK", "disk ", "../disk", &"ü".repeat(2048)] {
        for code in [OPT_INFO, GO] {
            assert_eq!(client.option(code, &query(name, &[])).await, (vec![], ERR_UNKNOWN));
        }
    }
    assert_eq!(client.option(GO, &query(&"x".repeat(4097), &[])).await.1, ERR_TOO_BIG);
    client.go("disk").await;
}

/// CVE-2022-26496, CVE-2017-15118: payloads of every awkward length.
#[tokio::test]
async fn options_of_every_length_are_answered_and_the_session_stays_in_step() {
    let server = Server::start().await;
    let mut client = server.greet().await;
    let lengths = (0..300).chain([511, 512, 1023, 1024, 4095, 4096, 4097, 4100, 4102, 4103]);
    for length in lengths.chain([16_383, 16_384, 16_385, 20_000, 65_535, 65_536]) {
        let payload = vec![0xff; length];
        let too_long = length > 16_384;
        let unknown = client.option(UNKNOWN, &payload).await.1;
        assert_eq!(unknown, if too_long { ERR_TOO_BIG } else { ERR_UNSUP }, "{length}");
        let info = client.option(OPT_INFO, &payload).await.1;
        assert_eq!(info, if too_long { ERR_TOO_BIG } else { ERR_INVALID }, "{length}");
        let list = client.option(LIST, &payload).await.1;
        let expected = match length {
            0 => ACK,
            _ if too_long => ERR_TOO_BIG,
            _ => ERR_INVALID,
        };
        assert_eq!(list, expected, "{length}");
    }
    client.go("disk").await;
}

/// CVE-2017-15119: a huge payload is not read before anybody is known.
#[tokio::test]
async fn an_option_that_announces_gigabytes_is_refused_and_ends_the_session() {
    let server = Server::start().await;
    for length in [65_537, 1 << 30, u32::MAX] {
        for code in [LIST, OPT_INFO, GO, UNKNOWN] {
            let mut client = server.greet().await;
            let mut bytes = option(code, b"");
            bytes[12..].copy_from_slice(&length.to_be_bytes());
            client.send(&bytes).await;
            let (reply, message) = client.option_reply(code).await;
            assert_eq!(reply, ERR_TOO_BIG);
            assert!(!message.is_empty());
            client.expect_end().await;
        }
        let mut client = server.greet().await;
        let mut bytes = option(EXPORT_NAME, b"");
        bytes[12..].copy_from_slice(&length.to_be_bytes());
        client.send(&bytes).await;
        client.expect_end().await;
    }
    server.serves().await;
}

/// CVE-2022-26495: a name length that wraps.
#[tokio::test]
async fn name_lengths_that_lie_are_malformed() {
    let server = Server::start().await;
    let mut client = server.greet().await;
    for length in [5, 6, 7, 1 << 31, u32::MAX - 6, u32::MAX - 3, u32::MAX] {
        for code in [OPT_INFO, GO] {
            let mut payload = query("disk", &[]);
            payload[..4].copy_from_slice(&length.to_be_bytes());
            assert_eq!(client.option(code, &payload).await.1, ERR_INVALID, "{length}");
        }
    }
    client.go("disk").await;
}

/// "`NBD_REP_ERR_POLICY` (if it does not support TLS for policy reasons)"
#[tokio::test]
async fn starttls_is_refused_without_tls_and_the_session_goes_on() {
    let server = Server::start().await;
    let mut client = server.greet().await;
    assert_eq!(client.option(STARTTLS, b"").await.1, ERR_POLICY);
    assert_eq!(client.option(STARTTLS, b"payload").await.1, ERR_POLICY);
    client.go("disk").await;
}

/// "The server MUST reply with `NBD_REP_ACK`."
#[tokio::test]
async fn abort_is_acknowledged_before_the_server_hangs_up() {
    let server = Server::start().await;
    let mut client = server.greet().await;
    assert_eq!(client.option(ABORT, b"").await, (vec![], ACK));
    client.expect_end().await;
}

#[tokio::test]
async fn export_name_enters_with_and_without_the_zeros() {
    let server = Server::start().await;
    for (flags, zeros) in [(0, 124), (1, 124), (2, 0), (3, 0)] {
        let mut client = server.connect().await;
        client.greet(flags).await;
        client.send_option(EXPORT_NAME, b"disk").await;
        let size = (16_u64 << 20).to_be_bytes();
        assert_eq!(client.receive(10).await, [&size[..], &0x0507_u16.to_be_bytes()].concat());
        assert_eq!(client.receive(zeros).await, vec![0; zeros]);
        assert_eq!(client.read(1080, 2).await, [0x53, 0xef]);
    }
}

/// "If the server is unwilling to allow the export, it MUST terminate the session."
#[tokio::test]
async fn export_name_of_an_unknown_export_ends_the_session() {
    let server = Server::start().await;
    for name in [&b"nothing"[..], b"\xff\xff", b"disk\0", &[b'x'; 5000], &[b'x'; 30_000]] {
        let mut client = server.greet().await;
        client.send_option(EXPORT_NAME, name).await;
        client.expect_end().await;
    }
    server.serves().await;
}

/// "the server MUST close the TCP connection if it does not recognize the client's flags"
#[tokio::test]
async fn unknown_client_flags_end_the_session() {
    let server = Server::start().await;
    for flags in [4, 0x8000_0003, u32::MAX] {
        let mut client = server.connect().await;
        client.greet(flags).await;
        client.expect_end().await;
    }
    server.serves().await;
}

#[tokio::test]
async fn what_is_no_option_ends_the_session() {
    let server = Server::start().await;
    for garbage in [
        &[0; 16][..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03garbage",
    ] {
        let mut client = server.greet().await;
        client.send(garbage).await;
        client.expect_end().await;
    }
    server.serves().await;
}

#[tokio::test]
async fn options_without_end_end_the_session() {
    let server = Server::start().await;
    let mut client = server.greet().await;
    for _ in 0..1000 {
        assert_eq!(client.option(UNKNOWN, b"").await.1, ERR_UNSUP);
    }
    client.send_option(UNKNOWN, b"").await;
    client.expect_end().await;
    server.serves().await;
}

/// CVE-2019-14851, CVE-2021-20286: legal options in odd orders.
#[tokio::test]
async fn options_in_any_order_are_answered_each_on_its_own() {
    let server = Server::start().await;
    let known = [
        (LIST, Vec::new(), ACK),
        (OPT_INFO, query("disk", &[0, 1, 2, 3]), ACK),
        (OPT_INFO, query("nothing", &[]), ERR_UNKNOWN),
        (GO, query("nothing", &[3]), ERR_UNKNOWN),
        (STARTTLS, Vec::new(), ERR_POLICY),
        (UNKNOWN, b"data".to_vec(), ERR_UNSUP),
        (LIST, b"data".to_vec(), ERR_INVALID),
    ];
    let mut client = server.greet().await;
    for first in &known {
        for second in &known {
            for (code, payload, expected) in [first, second] {
                assert_eq!(client.option(*code, payload).await.1, *expected);
            }
        }
    }
    client.go("disk").await;
}

#[tokio::test]
async fn options_sent_before_the_answers_are_answered_in_order() {
    let server = Server::start().await;
    let mut client = server.greet().await;
    let bytes = [
        option(LIST, b"data"),
        option(UNKNOWN, &[0; 20_000]),
        option(GO, &query("disk", &[])),
        request(0, 0, 9, 1080, 2),
    ];
    client.send(&bytes.concat()).await;
    assert_eq!(client.option_reply(LIST).await.0, ERR_INVALID);
    assert_eq!(client.option_reply(UNKNOWN).await.0, ERR_TOO_BIG);
    assert_eq!(client.option_reply(GO).await.0, 3);
    assert_eq!(client.option_reply(GO).await.0, ACK);
    assert_eq!(client.reply(2).await, (0, 9, vec![0x53, 0xef]));
}

/// CVE-2017-7539, CVE-2013-7441: hanging up anywhere harms nobody else.
#[tokio::test]
async fn a_client_may_hang_up_after_every_byte() {
    let server = Server::start().await;
    let session = [
        3_u32.to_be_bytes().to_vec(),
        option(LIST, b""),
        option(OPT_INFO, &query("disk", &[3])),
        option(GO, &query("disk", &[])),
        request(0, 0, 1, 0, 4096),
        request(0, 1, 2, 0, 16),
        vec![0; 16],
        request(0, 2, 3, 0, 0),
    ]
    .concat();
    for end in 0..=session.len() {
        let mut client = server.connect().await;
        client.send(&session[..end]).await;
        if end % 2 == 0 {
            client.stream.shutdown().await.unwrap();
        }
    }
    server.serves().await;
}

#[tokio::test]
async fn a_client_that_does_not_choose_in_time_is_dropped_and_others_are_served() {
    let negotiation_timeout = Duration::from_secs(2);
    let server = Server::with_limits(Limits { negotiation_timeout, ..Limits::default() }).await;
    let mut silent = server.connect().await;
    let mut greeted = server.greet().await;
    let mut halfway = server.greet().await;
    halfway.send(b"IHAVE").await;
    let mut working = server.open("disk").await;
    silent.receive(18).await;
    silent.expect_end().await;
    greeted.expect_end().await;
    halfway.expect_end().await;
    // The limit is for choosing, not for a session.
    assert_eq!(working.read(1080, 2).await, [0x53, 0xef]);
}
