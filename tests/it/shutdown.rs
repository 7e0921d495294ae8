//! Stopping: what was asked for is answered, and nobody is waited for without end.

use std::io::ErrorKind;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hexz_nbd::server::Limits;
use rustix::process::Signal;
use tokio::net::TcpStream;

use crate::support::client::{self, ACK, ERR_SHUTDOWN, option, query, request};
use crate::support::fixtures;
use crate::support::process::Process;
use crate::support::server::Server;
use crate::support::tls::{Files, Pki, shake_hands};
use crate::support::wire::{ESHUTDOWN, GO, READ, STARTTLS};

const DISK_BYTES: u32 = 16 << 20;

/// "The error value issued in respect of ... any subsequently received requests SHOULD be
/// `ESHUTDOWN`", and options are to be errored with `NBD_REP_ERR_SHUTDOWN`.
#[tokio::test]
async fn what_is_asked_after_the_stop_is_refused_with_that_reason() {
    // The server waits for questions a moment only, and this machine may be slow.
    for _ in 0..20 {
        let server = Server::start().await;
        let (mut reads, mut chooses) = (server.open("disk").await, server.greet().await);
        server.stop();
        reads.request(0, READ, 7, 0, 512).await;
        chooses.send_option(GO, &query("disk", &[])).await;
        let reply = tokio::join!(reads.receive_all(), chooses.receive_all());
        server.stopped().await.unwrap();
        if reply.0.is_empty() || reply.1.is_empty() {
            continue;
        }
        let expected =
            [&0x6744_6698_u32.to_be_bytes()[..], &ESHUTDOWN.to_be_bytes(), &[0; 7], &[7]];
        assert_eq!(reply.0, expected.concat());
        assert_eq!(reply.1[12..16], ERR_SHUTDOWN.to_be_bytes());
        return;
    }
    panic!("the connections ended without a word");
}

#[tokio::test]
async fn what_was_accepted_is_answered_and_then_the_server_ends() {
    let server = Server::start().await;
    let address = server.address;
    let mut idle = server.open("disk").await;
    let mut greeted = server.greet().await;
    let mut working = server.open("zstd").await;
    working.request(0, 0, 1, 0, 1 << 20).await;
    // The first byte of the reply tells that the request was accepted.
    working.stream.peek(&mut [0]).await.unwrap();
    server.stop();
    assert_eq!(working.reply(1 << 20).await.0, 0);
    working.expect_end().await;
    idle.expect_end().await;
    greeted.expect_end().await;
    server.stopped().await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_when_time_is_up() {
    let drain_timeout = Duration::from_millis(100);
    let server = Server::with_limits(Limits { drain_timeout, ..Limits::default() }).await;
    let client = server.open("disk").await;
    let requests = request(0, 0, 1, 0, 16 << 20).repeat(10);
    client.stream.try_write(&requests).unwrap();
    client.stream.peek(&mut [0]).await.unwrap();
    server.stop();
    server.stopped().await.unwrap();
}

#[tokio::test]
async fn over_tls_the_end_is_announced_by_a_close_notify() {
    let pki = Pki::new();
    let server = Server::with_tls(&pki).await;
    let somebody = pki.somebody();
    let mut reading = server.open_tls("disk", &somebody).await;
    let mut choosing = server.upgrade(&somebody).await;
    assert_eq!(reading.read(1080, 2).await, [0x53, 0xef]);
    server.stop();
    reading.expect_close_notify().await;
    choosing.expect_close_notify().await;
    server.stopped().await.unwrap();
}

/// A client that has asked for more than the sockets hold, and takes nothing of it for now.
async fn stuck(server: &Process) -> client::Client {
    let mut client = connect(server).await;
    client.greet(3).await;
    client.go("").await;
    client.request(0, 0, 1, 0, DISK_BYTES).await;
    client.stream.peek(&mut [0]).await.unwrap();
    client
}

async fn connect(server: &Process) -> client::Client {
    client::Client::connect(([127, 0, 0, 1], server.port()).into()).await
}

#[tokio::test]
async fn nobody_new_is_let_in_while_a_client_still_takes_its_reply() {
    let mut server = Process::start([fixtures::path("v082-ext4.hxz")]);
    let mut client = stuck(&server).await;
    server.signal(Signal::TERM);
    server.wait_until(|line| line["message"] == "stopping" && line["sessions"] == 1, 1);
    // Refused by the system, and not left to wait.
    let refused = TcpStream::connect(("127.0.0.1", server.port())).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let gone = UnixStream::connect(server.socket()).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);

    let (error, cookie, data) = client.reply(DISK_BYTES as usize).await;
    assert_eq!((error, cookie, &data[1080..1082]), (0, 1, &[0x53, 0xef][..]));
    client.expect_end().await;
    assert_eq!(server.ended().code(), Some(0), "{:#?}", server.log());
}

/// That the time is bounded is what the operator asked for, so it is no failure.
#[tokio::test]
async fn a_stuck_client_is_cut_after_the_drain_timeout_and_the_exit_code_is_0() {
    let disk = fixtures::path("v082-ext4.hxz").into_os_string();
    let mut server = Process::start(["--drain-timeout".into(), "200ms".into(), disk]);
    let _client = stuck(&server).await;
    assert_eq!(server.terminate().code(), Some(0), "{:#?}", server.log());
    let log = server.log();
    let cut = |line: &&serde_json::Value| {
        line["level"] == "WARN" && line["message"].as_str().unwrap().contains("--drain-timeout")
    };
    assert_eq!(log.iter().filter(cut).count(), 1, "{log:#?}");
}

#[tokio::test]
async fn a_second_signal_ends_the_server_at_once_and_the_exit_code_says_so() {
    for second in [Signal::TERM, Signal::INT] {
        // An hour, so that only the second signal can be what ends it.
        let disk = fixtures::path("v082-ext4.hxz").into_os_string();
        let mut server = Process::start(["--drain-timeout".into(), "1h".into(), disk]);
        let _client = stuck(&server).await;
        server.signal(Signal::TERM);
        server.wait_for("stopping", 1);
        server.signal(second);
        assert_eq!(server.ended().code(), Some(1), "{:#?}", server.log());
        assert!(!server.socket().exists());
    }
}

/// QEMU's CVE-2024-7409, second part.
#[tokio::test]
async fn a_stop_ends_clients_in_every_phase_that_is_half_way() {
    let (pki, files) = (Pki::new(), Files::new());
    let bundle = files.write("srv.pem", &pki.bundle()).into_os_string();
    let disk = fixtures::path("v082-ext4.hxz").into_os_string();
    let mut server = Process::start(["--tls-cert".into(), bundle, disk]);
    let silent = connect(&server).await;
    let mut half_an_option = connect(&server).await;
    half_an_option.greet(3).await;
    half_an_option.send(&option(3, &[0; 100])[..50]).await;
    let mut before_hello = connect(&server).await;
    before_hello.greet(3).await;
    assert_eq!(before_hello.option(STARTTLS, b"").await, (vec![], ACK));
    let mut half_a_hello = connect(&server).await;
    half_a_hello.greet(3).await;
    assert_eq!(half_a_hello.option(STARTTLS, b"").await, (vec![], ACK));
    half_a_hello.send(b"\x16\x03\x01\x40\0\x01\0\xff\0\x03\x03").await;
    let mut reading = connect(&server).await;
    reading.greet(3).await;
    assert_eq!(reading.option(STARTTLS, b"").await, (vec![], ACK));
    let mut reading = shake_hands(reading.stream, &pki.somebody()).await.unwrap();
    reading.go("").await;
    assert_eq!(reading.read(1080, 2).await, [0x53, 0xef]);
    reading.send(&request(0, 0, 1, 0, 512)[..14]).await;

    assert_eq!(server.terminate().code(), Some(0), "{:#?}", server.log());
    let mut greeted = silent;
    greeted.receive(18).await;
    for client in [greeted, half_an_option, before_hello, half_a_hello] {
        let mut client = client;
        client.expect_end().await;
    }
    reading.expect_close_notify().await;
}

/// nbd-server's CVE-2015-0847: a signal at the wrong moment was the end of it.
#[test]
fn a_storm_of_signals_during_negotiations_disturbs_nobody() {
    let mut server = Process::start([fixtures::path("v082-ext4.hxz")]);
    let mut half_way = Vec::new();
    for round in 0..100 {
        let mut client = std::net::TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        server.signal(Signal::HUP);
        let mut greeting = [0; 18];
        client.read_exact(&mut greeting).unwrap();
        server.signal(Signal::USR1);
        client.write_all(&3_u32.to_be_bytes()).unwrap();
        let list = option(3, b"");
        let (first, second) = list.split_at(round % list.len());
        client.write_all(first).unwrap();
        server.signal(Signal::USR2);
        client.write_all(second).unwrap();
        // The magic of a reply.
        client.read_exact(&mut greeting[..8]).unwrap();
        assert_eq!(greeting[..8], 0x3_e889_0455_65a9_u64.to_be_bytes());
        half_way.push(client);
    }
    server.wait_for("reloaded", 1);
    assert_eq!(server.terminate().code(), Some(0), "{:#?}", server.log());
}
