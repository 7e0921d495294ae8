//! What one client may cost the others.

use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hexz_nbd::export::Catalogue;
use hexz_nbd::server::{Limits, Policy, TlsMode};
use hexz_nbd::snapshot::File;
use rustls::pki_types::ServerName;
use rustls::version::TLS12;
use rustls::{ClientConfig, ClientConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::simulation::random::Random;
use crate::support::client::{self, ACK, PATIENCE, option, request};
use crate::support::fixtures;
use crate::support::process::{Client, HEXZ_NBD, Process, pack, refused};
use crate::support::server::Server;
use crate::support::tls::{Files, Pki, TlsClient, policy, shake_hands};
use crate::support::wire::{LIST, READ, STARTTLS};

#[tokio::test]
async fn a_client_beyond_the_limit_is_served_when_another_leaves() {
    let connections_max = NonZeroUsize::MIN;
    let server = Server::with_limits(Limits { connections_max, ..Limits::default() }).await;
    for _ in 0..20 {
        let first = server.open("disk").await;
        let mut second = server.connect().await;
        let mut nothing = [0];
        assert!(second.stream.try_read(&mut nothing).is_err(), "greeted beyond the limit");
        drop(first);
        second.greet(3).await;
        second.go("disk").await;
    }
}

/// Every slot comes back, however a session ends.
#[tokio::test]
async fn slots_are_given_back_however_sessions_end() {
    let connections_max = NonZeroUsize::new(4).unwrap();
    let server = Server::with_limits(Limits { connections_max, ..Limits::default() }).await;
    for round in 0..100 {
        let mut client = server.connect().await;
        match round % 4 {
            0 => client.greet(u32::MAX).await,
            1 => client.send(&[0; 100]).await,
            2 => drop(server.open("disk").await),
            _ => {}
        }
    }
    server.serves().await;
}

/// A server that cannot accept, for want of descriptors, goes on when there are some again.
#[test]
fn running_out_of_descriptors_is_survived() {
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", "ulimit -n 40; exec \"$0\" \"$@\"", HEXZ_NBD]);
    let server = Process::start_from(limited, [fixtures::path("v082-onebyte.hxz")]);
    let clients: Vec<TcpStream> =
        (0..60).map(|_| TcpStream::connect(("127.0.0.1", server.port())).unwrap()).collect();
    server.wait_for("cannot accept a client", 1);
    drop(clients);
    let size = Client::new("nbdinfo").args(["--size", &server.uri("")]).run().succeeded();
    assert_eq!(size.text().trim(), "1");
}

/// `STARTTLS`, and then nothing, half a hello, garbage, or a hello that never ends.
#[tokio::test]
async fn handshakes_that_come_to_nothing_end_in_time_and_others_are_served() {
    let pki = Pki::new();
    let limits = Limits { handshake_timeout: Duration::from_secs(2), ..Limits::default() };
    let server = Server::with(policy(TlsMode::Required, &pki.material()), limits).await;
    let mut working = patiently_open(&server, &pki).await;

    let mut silent = before_handshake(&server).await;
    let mut halfway = before_handshake(&server).await;
    let hello = hello(&pki.somebody());
    halfway.send(&hello[..hello.len() / 2]).await;
    let mut garbage = before_handshake(&server).await;
    garbage.send(&[0xaa; 100]).await;
    let (mut slow, mut slow_sender) = before_handshake(&server).await.stream.into_split();
    assert_eq!(working.read(1080, 2).await, [0x53, 0xef]);

    silent.expect_end().await;
    halfway.expect_end().await;
    let read = timeout(PATIENCE, garbage.stream.read_to_end(&mut Vec::new())).await;
    let _ = read.expect("the server does not hang up");
    // The beginning of a hello of 16000 bytes. Each byte is progress, and none is a reprieve.
    slow_sender.write_all(b"\x16\x03\x01\x3e\x84\x01\0\x3e\x80\x03\x03").await.unwrap();
    let dribble = async {
        while slow_sender.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The connection is reset, which the other half sees too.
        std::future::pending::<()>().await;
    };
    let mut rest = Vec::new();
    let ended = async {
        tokio::select! {
            _ = slow.read_to_end(&mut rest) => {}
            () = dribble => {}
        }
    };
    timeout(PATIENCE, ended).await.expect("the server does not hang up");

    // The limit is for the handshake, not for a session.
    assert_eq!(working.read(1080, 2).await, [0x53, 0xef]);
    patiently_open(&server, &pki).await;
}

/// The time to choose includes that for the handshake: there is no second helping.
#[tokio::test]
async fn a_handshake_does_not_prolong_the_negotiation() {
    let pki = Pki::new();
    let limits = Limits { negotiation_timeout: Duration::from_secs(2), ..Limits::default() };
    let server = Server::with(policy(TlsMode::Required, &pki.material()), limits).await;
    before_handshake(&server).await.expect_end().await;
}

#[tokio::test]
async fn an_address_with_all_its_connections_is_turned_away_until_one_ends() {
    let connections_per_address_max = NonZeroUsize::new(2).unwrap();
    let limits = Limits { connections_per_address_max, ..Limits::default() };
    let server = Server::with_limits(limits).await;
    let mut clients = vec![server.open("disk").await, server.greet().await];
    for _ in 0..20 {
        server.connect().await.expect_end().await;
        drop(clients.remove(0));
        let admitted = async {
            loop {
                let mut client = server.connect().await;
                // The server may not have seen yet that the other is gone.
                if client.stream.peek(&mut [0]).await.is_ok_and(|count| count != 0) {
                    client.greet(3).await;
                    client.go("disk").await;
                    return client;
                }
            }
        };
        clients.push(timeout(PATIENCE, admitted).await.expect("no slot came back"));
    }
}

/// QEMU's CVE-2024-7409, and what a connection may cost before anybody is known.
#[tokio::test]
async fn five_hundred_clients_that_go_nowhere_keep_nobody_out_and_cost_little_memory() {
    const CLIENTS: usize = 500;
    const EACH_BYTES_MAX: u64 = 48 << 10;
    let (pki, files) = (Pki::new(), Files::new());
    let bundle = files.write("srv.pem", &pki.bundle());
    let disk = fixtures::path("v082-ext4.hxz");
    let limits = ["--max-connections-per-address", "600", "--negotiation-timeout", "1h"];
    let limits = limits.iter().chain(&["--handshake-timeout", "1h", "--tls-cert"]);
    let server = Process::start(
        limits.map(|flag| (*flag).into()).chain([bundle.into_os_string(), disk.into_os_string()]),
    );
    let somebody = pki.somebody();
    let serves = async || {
        let mut client = ready_for_tls(&server).await;
        assert_eq!(client.option(STARTTLS, b"").await, (vec![], ACK));
        let mut client = shake_hands(client.stream, &somebody).await.unwrap();
        client.go("").await;
        assert_eq!(client.read(1080, 2).await, [0x53, 0xef]);
    };
    serves().await;
    let before = server.peak_memory_bytes();

    let mut idle = Vec::new();
    for _ in 0..CLIENTS {
        idle.push(ready_for_tls(&server).await);
    }
    serves().await;
    // The largest option that is kept, and the largest record of TLS, each without its last byte.
    let largest = option(LIST, &[0; 16 << 10]);
    let mut record = b"\x16\x03\x01\x40\0\x01\0\xff\0\x03\x03".to_vec();
    record.resize(5 + (16 << 10) - 1, 0);
    for (number, client) in idle.iter_mut().enumerate() {
        if number % 2 == 0 {
            client.send(&largest[..largest.len() - 1]).await;
        } else {
            assert_eq!(client.option(STARTTLS, b"").await, (vec![], ACK));
            client.send(&record).await;
        }
    }
    serves().await;
    for client in idle.iter_mut().step_by(2) {
        // Proves that the rest was taken.
        client.send(&largest[largest.len() - 1..]).await;
        assert_eq!(client.option_reply(LIST).await.0, client::ERR_TLS_REQD);
    }
    let grown = server.peak_memory_bytes() - before;
    assert!(grown < EACH_BYTES_MAX * CLIENTS as u64, "{} bytes each", grown / CLIENTS as u64);
}

/// The clock is that of the test, so neither client is waited for, however slow the machine is.
#[tokio::test(start_paused = true)]
async fn a_client_that_is_idle_for_too_long_is_disconnected_and_one_that_reads_is_not() {
    let limits = Limits { idle_timeout: Some(Duration::from_secs(10)), ..Limits::default() };
    let server = Server::with_limits(limits).await;
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (streams, mut client) = (server.streams(), client::Client { stream: ours });
    let reading = async {
        client.greet(3).await;
        client.go("disk").await;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_secs(9)).await;
            assert_eq!(client.read(1080, 2).await, [0x53, 0xef]);
        }
        let last = tokio::time::Instant::now();
        client.expect_end().await;
        assert_eq!(last.elapsed().as_secs(), 10);
    };
    tokio::join!(streams.serve(theirs), reading);
}

/// One thread, and all requests are there before it begins: so nothing but the order that the server gives
/// them decides.
#[tokio::test]
async fn what_is_not_in_the_cache_has_its_turn_though_hits_keep_coming() {
    const HITS: u64 = 40_000;
    const MISS: u64 = HITS + 1;
    // Blocks that are kept at once, one of which is read before.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("noise.img");
    std::fs::write(&path, Random::new(5).bytes(1 << 20)).unwrap();
    let snapshot = pack(&path, &["--block-size", "4KiB"]);
    let file = File::open(&snapshot).unwrap();
    let server = Server::with(Policy::plaintext(Catalogue::of_one(file)), Limits::default()).await;
    let (ours, theirs) = tokio::io::duplex(4 << 20);
    let (streams, mut client) = (server.streams(), client::Client { stream: ours });
    let reading = async {
        client.greet(3).await;
        client.go("").await;
        client.read(0, 1).await;
        let mut requests = request(0, READ, MISS, 512 << 10, 1);
        for cookie in 0..HITS {
            requests.extend(request(0, READ, cookie, 0, 1));
        }
        client.send(&requests).await;
        let mut hits_before = 0;
        while client.reply(1).await.1 != MISS {
            hits_before += 1;
        }
        assert!(hits_before < HITS / 4, "it came behind {hits_before} others");
    };
    tokio::select! {
        () = reading => {}
        () = streams.serve(theirs) => panic!("the server hung up"),
    }
}

/// Column `tr` of /proc/net/tcp is 2 while the kernel has a keepalive timer, and 1 while it waits for
/// the last reply to be acknowledged.
#[tokio::test]
async fn every_client_is_asked_for_signs_of_life() {
    let server = Server::start().await;
    let _client = server.open("disk").await;
    let port = format!(":{:04X}", server.address.port());
    let timer = || {
        let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let mut served = sockets.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Established.
            (fields[1].ends_with(&port) && fields[3] == "01").then(|| fields[5].to_owned())
        });
        served.next().unwrap()
    };
    let mut tries = 0;
    while timer().starts_with("01:") && tries < 1000 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        tries += 1;
    }
    assert!(timer().starts_with("02:"), "{}", timer());
}

#[test]
fn limits_that_nobody_could_keep_are_refused_with_the_flag_and_the_reason() {
    for (arguments, words) in [
        (&["--negotiation-timeout", "0s"][..], &["--negotiation-timeout:", "fast"][..]),
        (&["--handshake-timeout", "0ms"], &["--handshake-timeout:", "fast"]),
        (&["--idle-timeout", "0s"], &["--idle-timeout:", "leave it out"]),
        (&["--idle-timeout", "30"], &["--idle-timeout", "30 of what?"]),
        (&["--drain-timeout", "0s"], &["--drain-timeout:", "1ms"]),
        (&["--max-inflight", "0"], &["--max-inflight:", "nothing could be read"]),
        (&["--max-inflight", "many"], &["--max-inflight", "whole number"]),
        (
            &["--max-inflight-per-connection", "0MiB"],
            &["--max-inflight-per-connection:", "nothing could be read"],
        ),
        (
            &["--max-inflight", "8MiB", "--max-inflight-per-connection", "9MiB"],
            &["--max-inflight-per-connection:", "9.00 MiB", "8.00 MiB"],
        ),
    ] {
        let (code, message) = refused(arguments);
        assert_eq!(code, 2, "{arguments:?}: {message}");
        for word in words {
            assert!(message.contains(word), "{arguments:?}: no {word:?} in {message}");
        }
    }
}

/// A client that is let in, even if this machine is busy for as long as the limit is.
async fn patiently_open(server: &Server, pki: &Pki) -> TlsClient {
    // In TLS 1.2 the server is done when the client is.
    let config = pki.connector(&pki.client("patient"), &[&TLS12]);
    for _ in 0..50 {
        if let Ok(mut client) = server.greet().await.start_tls(&config).await {
            client.go("disk").await;
            return client;
        }
    }
    panic!("no handshake comes to its end");
}

/// A client that was told to begin the handshake.
async fn before_handshake(server: &Server) -> client::Client {
    let mut client = server.greet().await;
    assert_eq!(client.option(STARTTLS, b"").await, (vec![], ACK));
    client
}

async fn ready_for_tls(server: &Process) -> client::Client {
    let mut client = client::Client::connect(([127, 0, 0, 1], server.port()).into()).await;
    client.greet(3).await;
    client
}

fn hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut bytes = Vec::new();
    let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}
