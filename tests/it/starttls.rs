//! From plaintext to TLS: protocol document, section "TLS support", and what has gone wrong there
//! in others.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::{Buf as _, BytesMut};
use hexz_nbd::export::Catalogue;
use hexz_nbd::nbd::{
    Absent, Channel, ExportDirectory, ExportInfo, Listing, NegotiatedExport, Negotiation, Outbox,
    Progress,
};
use hexz_nbd::server::{Access, ExportAccess, Limits, TlsMode};
use proptest::collection::vec;
use proptest::prelude::*;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::support::audit::AuditFile;
use crate::support::client::{
    ACK, Client, ERR_INVALID, ERR_POLICY, ERR_TLS_REQD, PATIENCE, option, query, request,
};
use crate::support::fixtures;
use crate::support::process::Process;
use crate::support::server::{EXPORTS, Server, catalogue, export};
use crate::support::tls::{
    Files, Pki, TlsClient, Trickle, VERSIONS, allow, policy, policy_of, shake_hands,
};
use crate::support::wire::{
    ABORT, EXPORT_NAME, EXTENDED_HEADERS, GO, LIST, OPT_INFO, SET_META_CONTEXT, STARTTLS,
    STRUCTURED_REPLY,
};

/// What every reply to an option begins with.
const REPLY_MAGIC: [u8; 8] = 0x3_e889_0455_65a9_u64.to_be_bytes();

/// FORCEDTLS: "it MUST reply with `NBD_REP_ERR_TLS_REQD` to any other option"
#[tokio::test]
async fn where_tls_is_required_all_other_options_are_refused_before_it_and_the_session_goes_on() {
    let pki = Pki::new();
    let server = Server::with_tls(&pki).await;
    let mut client = server.greet().await;
    let payloads = [vec![], query("disk", &[0, 1, 2, 3]), query("", &[]), vec![0xff; 100]];
    for code in [0, LIST, 4, OPT_INFO, GO, STRUCTURED_REPLY, 9, SET_META_CONTEXT, 11, 12, u32::MAX]
    {
        for payload in payloads.iter().chain([&vec![0; 20_000]]) {
            let answer = client.option(code, payload).await;
            assert_eq!(answer, (vec![], ERR_TLS_REQD), "{code} {}", payload.len());
        }
    }
    let mut client = client.start_tls(&pki.somebody()).await.unwrap();
    client.go("disk").await;
    assert_eq!(client.read(1080, 2).await, [0x53, 0xef]);

    let mut leaving = server.greet().await;
    assert_eq!(leaving.option(ABORT, b"").await, (vec![], ACK));
    leaving.expect_end().await;
}

/// "If the server receives `NBD_OPT_EXPORT_NAME`, it MUST terminate the session"
#[tokio::test]
async fn where_tls_is_required_an_export_name_before_it_ends_the_session() {
    let server = Server::with_tls(&Pki::new()).await;
    for (flags, name) in [(3, &b"disk"[..]), (1, b""), (0, b"disk"), (2, b"made up"), (3, b"\xff")]
    {
        let mut client = server.connect().await;
        client.greet(flags).await;
        client.send_option(EXPORT_NAME, name).await;
        client.expect_end().await;
    }
}

/// SELECTIVETLS: what needs TLS and what does not exist look the same without.
#[tokio::test]
async fn where_tls_is_optional_only_exports_marked_for_plaintext_are_seen_without() {
    let pki = Pki::new();
    let server = Server::with(selective(&pki, &["zstd"]), Limits::default()).await;
    let mut client = server.greet().await;
    let (listed, last) = client.option(LIST, b"").await;
    assert_eq!((listed, last), (vec![b"\0\0\0\x04zstdfrom v082-zstd.hxz".to_vec()], ACK));
    for code in [OPT_INFO, GO] {
        for name in ["disk", "", "damaged", "made up"] {
            let answer = client.option(code, &query(name, &[1, 2, 3])).await;
            assert_eq!(answer, (vec![], ERR_TLS_REQD), "{name:?}");
        }
    }
    for name in ["disk", "", "made up"] {
        let mut client = server.greet().await;
        client.send_option(EXPORT_NAME, name.as_bytes()).await;
        client.expect_end().await;
    }
    client.go("zstd").await;

    let mut client = server.upgrade(&pki.somebody()).await;
    let (listed, last) = client.option(LIST, b"").await;
    assert_eq!((listed.len(), last), (EXPORTS.len(), ACK));
    client.go("disk").await;
    assert_eq!(client.read(1080, 2).await, [0x53, 0xef]);
}

/// "if the client sends along any data with the request, `NBD_REP_ERR_INVALID`", and a second
/// `STARTTLS` is invalid too.
#[tokio::test]
async fn starttls_is_refused_with_data_and_within_tls_and_the_session_goes_on() {
    let pki = Pki::new();
    let somebody = pki.somebody();
    for mode in [TlsMode::Required, TlsMode::Selective] {
        let server = Server::with(policy(mode, &pki.material()), Limits::default()).await;
        let mut client = server.greet().await;
        assert_eq!(client.option(STARTTLS, b"x").await, (vec![], ERR_INVALID));
        assert_eq!(client.option(STARTTLS, &[0; 16]).await, (vec![], ERR_INVALID));
        let mut client = client.start_tls(&somebody).await.unwrap();
        assert_eq!(client.option(STARTTLS, b"").await, (vec![], ERR_INVALID));
        assert_eq!(client.option(STARTTLS, b"x").await, (vec![], ERR_INVALID));
        client.go("disk").await;
        assert_eq!(client.read(1080, 2).await, [0x53, 0xef]);
    }
    let server = Server::start().await;
    let mut client = server.greet().await;
    for _ in 0..2 {
        assert_eq!(client.option(STARTTLS, b"").await, (vec![], ERR_POLICY));
    }
}

#[tokio::test]
async fn starttls_of_a_client_without_fixed_newstyle_ends_the_session() {
    let pki = Pki::new();
    for mode in [TlsMode::Required, TlsMode::Selective] {
        let server = Server::with(policy(mode, &pki.material()), Limits::default()).await;
        for flags in [0, 2] {
            let mut client = server.connect().await;
            client.greet(flags).await;
            client.send_option(STARTTLS, b"").await;
            client.expect_end().await;
        }
    }
}

/// What a client, or somebody on the way, sends behind `STARTTLS` before TLS has begun:
/// CVE-2011-0411, CVE-2021-3716, CVE-2021-38371.
fn injections(somebody: &Arc<ClientConfig>) -> Vec<Vec<u8>> {
    vec![
        option(LIST, b""),
        option(GO, &query("onebyte", &[0, 1, 2, 3])),
        [option(LIST, b""), option(GO, &query("", &[])), request(0, 0, 7, 0, 1)].concat(),
        option(EXPORT_NAME, b"onebyte"),
        option(STARTTLS, b""),
        option(ABORT, b""),
        b"I".to_vec(),
        client_hello(somebody),
        [client_hello(somebody), option(LIST, b"")].concat(),
    ]
}

#[tokio::test]
async fn plaintext_in_one_segment_with_starttls_ends_the_connection_unread_and_the_log_says_so() {
    let (pki, files) = (Pki::new(), Files::new());
    for mode in ["on", "require"] {
        let server = tls_process(&files.write("srv.pem", &pki.bundle()), mode);
        let injections = injections(&pki.somebody());
        for injection in &injections {
            let mut client = Client::connect(address(&server)).await;
            client.greet(3).await;
            client.send(&[option(STARTTLS, b""), injection.clone()].concat()).await;
            assert_eq!(client.option_reply(STARTTLS).await, (ACK, vec![]));
            client.expect_end().await;
        }
        let said = "bytes in plaintext behind STARTTLS";
        server.wait_until(|line| error(line).contains(said), injections.len());
        assert!(server.log().iter().all(|line| !was_let_in(line)), "{:#?}", server.log());
    }
}

/// What arrives when TLS has begun already is TLS or nothing.
#[tokio::test]
async fn plaintext_behind_starttls_is_never_read_as_options_wherever_the_segments_end() {
    const STARTTLS_BYTES: usize = 16;
    let (pki, files) = (Pki::new(), Files::new());
    let audit = AuditFile::new();
    let server = tls_process_with(&files.write("srv.pem", &pki.bundle()), "on", &audit.argument());
    let (mut sessions, mut after_the_answer) = (0, 0);
    for injection in injections(&pki.somebody()) {
        let bytes = [option(STARTTLS, b""), injection].concat();
        for end in (1..bytes.len()).take(40) {
            inject(&server, &[&bytes[..end], &bytes[end..]]).await;
            sessions += 1;
            if end > STARTTLS_BYTES {
                let (starttls, injected) = bytes.split_at(STARTTLS_BYTES);
                let (first, second) = injected.split_at(end - STARTTLS_BYTES);
                inject(&server, &[starttls, first, second]).await;
                sessions += 1;
                after_the_answer += usize::from(bytes[STARTTLS_BYTES] == b'I');
            }
        }
    }
    // The log leaves some of so many out.
    audit.wait_until(|line| line["event"] == "disconnect", sessions);
    let lines = audit.lines();
    let let_in = |line: &serde_json::Value| line["event"] == "open" || !line["tls"].is_null();
    assert!(!lines.iter().any(let_in), "{lines:#?}");
    let log = server.log();
    assert!(log.iter().all(|line| !was_let_in(line)), "{log:#?}");
    let is_not_tls = |line: &&serde_json::Value| line["detail"].to_string().contains("is not TLS");
    let not_tls = lines.iter().filter(is_not_tls).count();
    assert!(not_tls >= after_the_answer, "{not_tls} {after_the_answer}");
}

/// Sends segments, the first of which begin with `STARTTLS`. When all of that is sent, the rest
/// waits for the answer, so that it comes when the server expects TLS.
async fn inject(server: &Process, segments: &[&[u8]]) {
    let mut client = Client::connect(address(server)).await;
    client.greet(3).await;
    let (mut sent, mut acknowledged) = (0, false);
    for segment in segments {
        // The server may have hung up already.
        let _ = client.stream.write_all(segment).await;
        sent += segment.len();
        if sent >= 16 && !acknowledged {
            assert_eq!(client.option_reply(STARTTLS).await, (ACK, vec![]));
            acknowledged = true;
        }
    }
    let _ = client.stream.shutdown().await;
    let mut rest = Vec::new();
    let read = timeout(PATIENCE, client.stream.read_to_end(&mut rest)).await;
    let _ = read.expect("the server does not hang up");
    // Records of TLS: alerts, and handshakes in answer to a hello.
    assert!(rest.is_empty() || matches!(rest[0], 0x14..=0x16), "{rest:?}");
    assert!(!holds(&rest, &REPLY_MAGIC), "{rest:?}");
}

/// CVE-2021-3716: structured replies that somebody on the way had asked for were sent within TLS
/// to a client that had not.
#[tokio::test]
async fn what_was_negotiated_before_tls_is_forgotten_after_it() {
    let pki = Pki::new();
    let server = Server::with(selective(&pki, &["zstd"]), Limits::default()).await;
    let mut client = server.greet().await;
    let contexts = b"\0\0\0\x04zstd\0\0\0\x01\0\0\0\x0fbase:allocation";
    for (code, payload) in [
        (STRUCTURED_REPLY, &b""[..]),
        (SET_META_CONTEXT, contexts),
        (OPT_INFO, &query("zstd", &[3])),
        (EXTENDED_HEADERS, b""),
    ] {
        // Whether the server knows the option or not.
        client.option(code, payload).await;
    }
    let mut client = client.start_tls(&pki.somebody()).await.unwrap();
    client.go("zstd").await;
    assert_eq!(client.read(0, 512).await.len(), 512, "a simple reply");
    const BLOCK_STATUS: u16 = 7;
    const EINVAL: u32 = 22;
    client.request(0, BLOCK_STATUS, 9, 0, 512).await;
    assert_eq!(client.reply(0).await, (EINVAL, 9, vec![]));
}

/// The client speaks of itself once, before TLS, and does not do so again.
#[tokio::test]
async fn a_client_that_does_without_zeros_does_so_after_tls() {
    let pki = Pki::new();
    let server = Server::with_tls(&pki).await;
    for (flags, zeros) in [(1, 124), (3, 0)] {
        let mut client = server.connect().await;
        client.greet(flags).await;
        let mut client = client.start_tls(&pki.somebody()).await.unwrap();
        client.send_option(EXPORT_NAME, b"disk").await;
        let size = (16_u64 << 20).to_be_bytes();
        assert_eq!(client.receive(8).await, size);
        client.receive(2).await;
        assert_eq!(client.receive(zeros).await, vec![0; zeros]);
        assert_eq!(client.read(1080, 2).await, [0x53, 0xef]);
    }
}

#[tokio::test]
async fn a_handshake_in_segments_of_one_byte_succeeds() {
    let pki = Pki::new();
    let server = Server::with_tls(&pki).await;
    for version in VERSIONS {
        let config = pki.connector(&pki.client("slow"), &[version]);
        let stream = before_handshake(&server).await.stream;
        let trickle = Trickle { stream, piece_bytes: 1, left_bytes: usize::MAX };
        let mut client = shake_hands(trickle, &config).await.unwrap();
        client.go("disk").await;
        assert_eq!(client.read(1080, 2).await, [0x53, 0xef]);
    }
}

/// RUSTSEC-2024-0399: a panic.
#[tokio::test]
async fn a_hello_in_records_of_one_byte_is_understood() {
    let pki = Pki::new();
    let server = Server::with_tls(&pki).await;
    for version in VERSIONS {
        let config = pki.connector(&pki.client("odd"), &[version]);
        let mut tls = connection(&config);
        let mut client = before_handshake(&server).await;
        let hello = written(&mut tls);
        let (header, message) = hello.split_at(5);
        let records: Vec<u8> = message
            .iter()
            .flat_map(|byte| [header[0], header[1], header[2], 0, 1, *byte])
            .collect();
        client.send(&records).await;
        while tls.is_handshaking() {
            let mut received = [0; 4096];
            let count = timeout(PATIENCE, client.stream.read(&mut received)).await;
            let count = count.expect("the server says nothing").unwrap();
            assert_ne!(count, 0, "the server hung up");
            let mut received = &received[..count];
            while !received.is_empty() {
                tls.read_tls(&mut received).unwrap();
                tls.process_new_packets().unwrap();
            }
            client.send(&written(&mut tls)).await;
        }
        std::io::Write::write_all(&mut tls.writer(), &option(LIST, b"")).unwrap();
        client.send(&written(&mut tls)).await;
        let mut listed = Vec::new();
        while listed.len() < 20 {
            let received = client.receive(1).await;
            tls.read_tls(&mut &received[..]).unwrap();
            tls.process_new_packets().unwrap();
            let mut some = [0; 20];
            if let Ok(count) = tls.reader().read(&mut some) {
                listed.extend_from_slice(&some[..count]);
            }
        }
        assert_eq!(listed[..8], REPLY_MAGIC);
    }
}

/// RUSTSEC-2024-0336: an endless loop.
#[tokio::test]
async fn a_client_that_says_goodbye_during_the_handshake_is_gone() {
    const CLOSE_NOTIFY: &[u8] = b"\x15\x03\x03\0\x02\x01\0";
    let pki = Pki::new();
    let connections_max = NonZeroUsize::new(2).unwrap();
    let limits = Limits { connections_max, ..Limits::default() };
    let server = Server::with(policy(TlsMode::Required, &pki.material()), limits).await;
    let hello = client_hello(&pki.somebody());
    let goodbyes = [
        CLOSE_NOTIFY.to_vec(),
        [&hello, CLOSE_NOTIFY].concat(),
        [&hello, CLOSE_NOTIFY, &[0x15; 100]].concat(),
        [CLOSE_NOTIFY, &hello].concat(),
        CLOSE_NOTIFY.repeat(20),
    ];
    for goodbye in goodbyes.iter().cycle().take(20) {
        let mut client = before_handshake(&server).await;
        client.send(goodbye).await;
        let _ = client.stream.shutdown().await;
        let read = timeout(PATIENCE, client.stream.read_to_end(&mut Vec::new())).await;
        let _ = read.expect("the server does not hang up");
    }
    server.serves_tls(&pki.somebody()).await;
}

/// nbd pull request 173: the end of the stream taken for "try again", for ever.
#[tokio::test]
async fn a_connection_that_is_cut_without_goodbye_gives_its_slot_back() {
    let pki = Pki::new();
    let connections_max = NonZeroUsize::new(2).unwrap();
    let limits = Limits { connections_max, ..Limits::default() };
    let server = Server::with(policy(TlsMode::Required, &pki.material()), limits).await;
    let somebody = pki.somebody();
    for round in 0..100 {
        let client = match round % 3 {
            0 => server.upgrade(&somebody).await,
            _ => server.open_tls("disk", &somebody).await,
        };
        let (stream, _) = client.stream.into_inner();
        if round % 2 == 0 {
            // Reset rather than end of stream.
            stream.set_zero_linger().unwrap();
        }
    }
    server.serves_tls(&somebody).await;
    // Nobody is left who would have to be waited for.
    server.stop();
    timeout(PATIENCE, server.stopped()).await.expect("a session goes on").unwrap();
}

/// CVE-2017-7539, CVE-2013-7441, within TLS.
#[tokio::test]
async fn a_client_may_hang_up_after_any_byte_of_a_session_in_tls() {
    let pki = Pki::new();
    let connections_max = NonZeroUsize::new(4).unwrap();
    let limits = Limits { connections_max, ..Limits::default() };
    let server = Server::with(policy(TlsMode::Required, &pki.material()), limits).await;
    let somebody = pki.somebody();
    let mut whole_sessions = 0;
    for left_bytes in (0..).step_by(17) {
        let stream = before_handshake(&server).await.stream;
        let trickle = Trickle { stream, piece_bytes: usize::MAX, left_bytes };
        let Ok(mut client) = shake_hands(trickle, &somebody).await else { continue };
        let session =
            [option(LIST, b""), option(GO, &query("disk", &[])), request(0, 0, 1, 0, 512)];
        let sent = async {
            for bytes in session {
                client.stream.write_all(&bytes).await?;
                client.stream.flush().await?;
            }
            client.stream.shutdown().await
        };
        if sent.await.is_ok() {
            whole_sessions += 1;
            if whole_sessions == 3 {
                break;
            }
        }
    }
    server.serves_tls(&somebody).await;
}

/// So that a client knows that nobody cut the stream.
#[tokio::test]
async fn tls_ends_with_a_goodbye_whoever_ends() {
    let pki = Pki::new();
    for version in VERSIONS {
        let somebody = pki.connector(&pki.client("somebody"), &[version]);
        let server = Server::with_tls(&pki).await;
        let open = async || -> TlsClient { server.open_tls("disk", &somebody).await };

        let mut disconnects = open().await;
        disconnects.request(0, 2, 1, 0, 0).await;
        disconnects.expect_close_notify().await;

        let mut says_goodbye = open().await;
        says_goodbye.stream.shutdown().await.unwrap();
        says_goodbye.expect_close_notify().await;

        let mut aborts = server.upgrade(&somebody).await;
        assert_eq!(aborts.option(ABORT, b"").await, (vec![], ACK));
        aborts.expect_close_notify().await;

        let mut breaks_rules = open().await;
        breaks_rules.send(&[0; 28]).await;
        breaks_rules.expect_close_notify().await;

        let mut asks_for_nothing_known = server.upgrade(&somebody).await;
        asks_for_nothing_known.send_option(EXPORT_NAME, b"made up").await;
        asks_for_nothing_known.expect_close_notify().await;

        let mut loses_its_right = open().await;
        let access = Access { rules: allow(&["another"]), ..Access::default() };
        let catalogue = Arc::new(catalogue());
        server.replace(policy_of(catalogue, TlsMode::Required, &pki.material(), access));
        loses_its_right.expect_close_notify().await;
        server.replace(policy(TlsMode::Required, &pki.material()));

        let (mut reads, mut chooses) = (open().await, server.upgrade(&somebody).await);
        assert_eq!(chooses.option(OPT_INFO, &query("disk", &[])).await.1, ACK);
        server.stop();
        reads.expect_close_notify().await;
        chooses.expect_close_notify().await;
        timeout(PATIENCE, server.stopped()).await.expect("a session goes on").unwrap();
    }
}

/// A directory of one export that nobody may hear of without TLS.
#[derive(Debug)]
struct Secrets(ExportInfo);

impl Secrets {
    const NAME: &str = "secret-name";
    const DESCRIPTION: &str = "secret description";
    const SIZE_BYTES: u64 = 0x5e_c2e7_51ce;

    fn new() -> Self {
        Self(ExportInfo {
            name: Self::NAME.into(),
            description: Self::DESCRIPTION.into(),
            size_bytes: Self::SIZE_BYTES,
            preferred_block_bytes: 4096,
            contexts: &["secret:context"],
        })
    }
}

impl NegotiatedExport for Secrets {
    fn info(&self) -> &ExportInfo {
        &self.0
    }
}

impl ExportDirectory for Secrets {
    type Export = Self;

    fn list(&self) -> Vec<Listing> {
        let (name, description) = (Self::NAME.into(), Self::DESCRIPTION.into());
        vec![Listing { name, description }]
    }

    fn find(&self, name: &str) -> Result<Self, Absent> {
        ["", Self::NAME].contains(&name).then(Self::new).ok_or(Absent::Unknown)
    }
}

/// Options that make sense, and all others.
fn any_option(name: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let names = prop_oneof![Just(name), Just(""), Just("open")];
    let queries = (names, vec(0..5_u16, 0..4)).prop_map(|(name, facts)| query(name, &facts));
    let payloads = prop_oneof![
        4 => queries,
        2 => Just(vec![]),
        1 => Just(name.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..40),
        1 => Just(vec![0; 17_000]),
    ];
    let codes = prop_oneof![8 => 0..13_u32, 1 => any::<u32>()];
    (codes, payloads).prop_map(|(code, payload)| option(code, &payload))
}

/// Bytes of a client that has been greeted.
fn any_session(name: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![5 => Just(3_u32), 1 => 0..4_u32, 1 => any::<u32>()];
    let rest = [request(0, 0, 1, 0, 4096), vec![0; 64]].concat();
    (flags, vec(any_option(name), 0..12)).prop_map(move |(flags, options)| {
        [&flags.to_be_bytes()[..], &options.concat(), &rest].concat()
    })
}

fn holds(bytes: &[u8], secret: &[u8]) -> bool {
    bytes.windows(secret.len()).any(|window| window == secret)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_options_before_required_tls_yield_anything_of_an_export(
        session in any_session(Secrets::NAME),
    ) {
        let mut outbox = Outbox::default();
        let mut machine = Negotiation::<Secrets>::new(Channel::MustUpgrade, &mut outbox);
        let mut input = BytesMut::from(&session[..]);
        while let Ok(progress) = machine.advance(&mut input, &mut outbox) {
            match progress {
                Progress::Answered => {}
                Progress::Enter(_) => prop_assert!(false, "entered"),
                Progress::NeedsInput | Progress::StartTls(_) | Progress::Aborted => break,
            }
        }
        let sent_bytes = outbox.remaining();
        let sent = outbox.copy_to_bytes(sent_bytes);
        for secret in [
            Secrets::NAME.as_bytes(),
            Secrets::DESCRIPTION.as_bytes(),
            &Secrets::SIZE_BYTES.to_be_bytes(),
        ] {
            prop_assert!(!holds(&sent, secret));
        }
        // After the greeting there are refusals, each with a sentence, and acknowledgements.
        let mut rest = &sent[18..];
        while let Some((header, behind)) = rest.split_first_chunk::<20>() {
            prop_assert_eq!(&header[..8], &REPLY_MAGIC[..]);
            let field = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
            let (code, reply) = (field(8), field(12));
            prop_assert!(reply >= 0x8000_0000 || [ABORT, STARTTLS].contains(&code), "{}", code);
            rest = &behind[field(16) as usize..];
        }
        prop_assert!(rest.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Over sockets, and where TLS is optional too: the session goes to its end, whatever it is.
    #[test]
    fn no_bytes_without_tls_yield_anything_of_an_export_that_needs_it(
        sessions in vec(any_session("secret-name"), 8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // A size that no other number of a session looks like.
            let file = "v082-lz4-default.hxz";
            let secret = export("secret-name", file);
            let size = secret.info().size_bytes.to_be_bytes();
            let begin = secret.read(0, 16).unwrap();
            let hexz_nbd::nbd::Piece::Data(begin) = &begin[0] else { panic!("{begin:?}") };
            for mode in [TlsMode::Required, TlsMode::Selective] {
                let mut catalogue = Catalogue::default();
                catalogue.add(Arc::clone(&secret)).unwrap();
                catalogue.add(export("open", "v082-onebyte.hxz")).unwrap();
                catalogue.set_default("secret-name").unwrap();
                let access = plaintext(&["open"]);
                let material = Pki::new().material();
                let policy = policy_of(Arc::new(catalogue), mode, &material, access);
                let server = Server::with(policy, Limits::default()).await;
                for session in &sessions {
                    let mut client = server.connect().await;
                    // It may hang up in between.
                    let _ = client.stream.write_all(session).await;
                    let _ = client.stream.shutdown().await;
                    let mut sent = Vec::new();
                    let read = timeout(PATIENCE, client.stream.read_to_end(&mut sent)).await;
                    let _ = read.expect("the server does not hang up");
                    for secret in [&b"secret-name"[..], file.as_bytes(), &size, begin] {
                        assert!(!holds(&sent, secret), "{mode:?}: {sent:?}");
                    }
                }
            }
        });
    }
}

/// [`policy`] with exports that are open to clients without TLS.
fn selective(pki: &Pki, open: &[&str]) -> hexz_nbd::server::Policy {
    let catalogue = Arc::new(catalogue());
    policy_of(catalogue, TlsMode::Selective, &pki.material(), plaintext(open))
}

fn plaintext(open: &[&str]) -> Access {
    let open = open.iter().map(|name| {
        let access = ExportAccess { plaintext: true, ..ExportAccess::default() };
        ((*name).to_owned(), access)
    });
    Access { exports: open.collect::<BTreeMap<_, _>>(), ..Access::default() }
}

/// A client that was told to begin the handshake.
async fn before_handshake(server: &Server) -> Client {
    let mut client = server.greet().await;
    assert_eq!(client.option(STARTTLS, b"").await, (vec![], ACK));
    client
}

fn connection(config: &Arc<ClientConfig>) -> ClientConnection {
    let name = ServerName::try_from("localhost").unwrap();
    ClientConnection::new(Arc::clone(config), name).unwrap()
}

fn written(connection: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn client_hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    written(&mut connection(config))
}

/// The real binary with one export, open to clients without TLS where the mode allows.
fn tls_process(bundle: &std::path::Path, mode: &str) -> Process {
    tls_process_with(bundle, mode, &[])
}

fn tls_process_with(bundle: &std::path::Path, mode: &str, more: &[String]) -> Process {
    let mut export = std::ffi::OsString::from("onebyte=");
    export.push(fixtures::path("v082-onebyte.hxz"));
    export.push(",plaintext");
    let [tls, cert] = ["--tls", "--tls-cert"].map(std::ffi::OsString::from);
    let more = more.iter().map(std::ffi::OsString::from);
    Process::start([tls, mode.into(), cert, bundle.into(), export].into_iter().chain(more))
}

fn address(server: &Process) -> SocketAddr {
    ([127, 0, 0, 1], server.port()).into()
}

fn error(line: &serde_json::Value) -> &str {
    line["error"].as_str().unwrap_or_default()
}

/// Whether it tells of a client that got anywhere.
fn was_let_in(line: &serde_json::Value) -> bool {
    line["message"] == "opened" || line["version"].is_string()
}

/// What nbd-client would have to tell its user.
#[tokio::test]
async fn a_client_whose_certificate_is_refused_is_told_so_rather_than_cut_off() {
    let (pki, other) = (Pki::new(), Pki::new());
    let server = Server::with_tls(&pki).await;
    for version in VERSIONS {
        let stranger = pki.connector(&other.client("stranger"), &[version]);
        for _ in 0..20 {
            let mut client = before_handshake(&server).await;
            let mut tls = connection(&stranger);
            let outcome = async {
                while tls.is_handshaking() {
                    client.send(&written(&mut tls)).await;
                    receive(&mut client, &mut tls).await?;
                }
                // In TLS 1.3 the client believes that it is in, and goes on.
                std::io::Write::write_all(&mut tls.writer(), &option(LIST, b"")).unwrap();
                for bytes in written(&mut tls).chunks(10) {
                    client.stream.write_all(bytes).await?;
                }
                loop {
                    receive(&mut client, &mut tls).await?;
                }
            };
            let outcome: std::io::Result<()> = outcome.await;
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains("UnknownCA"), "{error}");
        }
    }
}

async fn receive(client: &mut Client, tls: &mut ClientConnection) -> std::io::Result<()> {
    let mut received = [0; 4096];
    let count = timeout(PATIENCE, client.stream.read(&mut received)).await;
    let count = count.expect("the server says nothing")?;
    if count == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let mut received = &received[..count];
    while !received.is_empty() {
        tls.read_tls(&mut received)?;
        tls.process_new_packets().map_err(std::io::Error::other)?;
    }
    Ok(())
}
