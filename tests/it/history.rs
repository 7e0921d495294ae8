//! What has gone wrong in other servers, tried on this one. Each test names where it happened. Most
//! such tests stand with the rule that they are about; here are those that belong to none.

use std::io;

use crate::simulation::random::Random;
use crate::support::client::{ACK, Client, ERR_UNKNOWN, query};
use crate::support::process::{Process, pack};
use crate::support::server::contents;
use crate::support::storage::{harmless, watched};
use crate::support::wire::{EIO, EPERM, GO, LIST, OPT_INFO, READ, TRIM, WRITE, WRITE_ZEROES};
use crate::support::{fixtures, server};

/// nbdkit CVE-2019-14850: whoever connects and goes again cost a read of the storage each time.
#[tokio::test]
async fn storage_is_not_read_before_a_client_reads() {
    let (server, read) = watched("v082-ext4.hxz", 1 << 20, harmless).await;
    let opened = read.bytes();
    for _ in 0..20 {
        let mut client = server.greet().await;
        assert_eq!(client.option(LIST, b"").await.1, ACK);
        assert_eq!(client.option(OPT_INFO, &query("disk", &[0, 1, 2, 3])).await.1, ACK);
        assert_eq!(client.option(GO, &query("disk", &[0, 1, 2, 3])).await.1, ACK);
    }
    assert_eq!(read.bytes(), opened);
    let mut client = server.open("disk").await;
    client.read(1080, 2).await;
    assert!(read.bytes() > opened);
}

/// qemu CVE-2020-10761: the answer to an unknown name of the greatest length was too long.
#[tokio::test]
async fn an_unknown_name_of_the_greatest_length_gets_a_sentence_of_bounded_length() {
    let server = server::Server::start().await;
    let mut client = server.greet().await;
    for character in ["x", "ü", "\u{10ffff}"] {
        let name = character.repeat(4096 / character.len());
        for code in [OPT_INFO, GO] {
            // The client checks that it is text of 4096 bytes at most.
            assert_eq!(client.option(code, &query(&name, &[])).await, (vec![], ERR_UNKNOWN));
        }
    }
}

/// libnbd CVE-2022-0485, where errors became zeros. Every third read of the storage goes wrong, in
/// whatever way, and nothing but right bytes or an error comes of it.
#[tokio::test]
async fn storage_that_lies_or_fails_gives_errors_and_never_wrong_bytes() {
    fn fails(number: u64, buffer: &mut [u8]) -> io::Result<()> {
        let flip = (number as usize * 7919) % buffer.len();
        match number % 12 {
            0 => Err(io::Error::other("the disk is on fire")),
            3 => Err(io::ErrorKind::UnexpectedEof.into()),
            6 => {
                buffer[flip] ^= 1 << (number % 8);
                Ok(())
            }
            9 => {
                buffer.fill(0);
                Ok(())
            }
            _ => Ok(()),
        }
    }
    let image = contents("v082-ext4.hxz");
    // Nothing is kept, so everything is read again and again.
    let (server, read) = watched("v082-ext4.hxz", 0, fails).await;
    let mut client = server.open("disk").await;
    read.begin_harm();
    let (mut right, mut wrong) = (0, 0);
    for number in 0..600_u64 {
        let (offset, length) = (number * 27_917 % (15 << 20), 4096 + number as u32 * 100);
        client.request(0, READ, number, offset, length).await;
        let (error, cookie, data) = client.reply(length as usize).await;
        assert_eq!(cookie, number);
        if error == 0 {
            assert!(data == image[offset as usize..][..length as usize], "{offset}+{length}");
            right += 1;
        } else {
            assert_eq!(error, EIO);
            wrong += 1;
        }
    }
    assert!(right > 20 && wrong > 20, "{right} were right, {wrong} were not");
}

/// Incus #3687: read-only was honoured on some ways only. Whatever a client sends, the file stays
/// what it was, and is not even open for writing.
#[tokio::test]
async fn no_command_changes_the_file_and_it_is_not_open_for_writing() {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("disk.hxz");
    std::fs::copy(fixtures::path("v082-ext4.hxz"), &copy).unwrap();
    let before = std::fs::metadata(&copy).unwrap().modified().unwrap();
    let server = Process::start([&copy]);
    let mut client = Client::connect((std::net::Ipv4Addr::LOCALHOST, server.port()).into()).await;
    client.greet(3).await;
    client.go("disk").await;
    for flags in [0, 1, 2, 16, 0xffff] {
        for (offset, length) in [(0, 512), (0, 0), (4096, 70_000), (u64::MAX, 1)] {
            for command in [WRITE, TRIM, WRITE_ZEROES] {
                client.request(flags, command, 1, offset, length).await;
                if command == WRITE {
                    client.send(&vec![0xee; length as usize]).await;
                }
                assert_eq!(client.reply(0).await, (EPERM, 1, vec![]));
            }
        }
    }
    assert_eq!(client.read(1080, 2).await, [0x53, 0xef]);
    let original = std::fs::read(fixtures::path("v082-ext4.hxz")).unwrap();
    assert!(std::fs::read(&copy).unwrap() == original);
    assert_eq!(std::fs::metadata(&copy).unwrap().modified().unwrap(), before);
    let mut seen = 0;
    for descriptor in std::fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap() {
        let path = descriptor.unwrap().path();
        if std::fs::read_link(&path).is_ok_and(|target| target == copy) {
            let number = path.file_name().unwrap().to_str().unwrap();
            let info = format!("/proc/{}/fdinfo/{number}", server.id());
            let info = std::fs::read_to_string(info).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
            assert_eq!(flags & 3, 0, "not O_RDONLY");
            seen += 1;
        }
    }
    assert!(seen > 0, "the file is not open at all");
}

/// The class of slow readers that pin memory: many clients ask for a gigabyte together, of which no
/// two bytes are the same, and take nothing.
#[tokio::test]
async fn clients_that_take_nothing_cost_their_budget_and_slow_nobody() {
    const CLIENTS: u64 = 32;
    const PART: u64 = 256 << 10;
    // Cache, bytes in flight, a part for each client, and the process itself. Without the budget
    // for all, the clients may have 16 MiB each.
    const BYTES_MAX: u64 = (8 << 20) + (8 << 20) + CLIENTS * PART + (48 << 20);
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("noise.img");
    let mut random = Random::new(1);
    let noise: Vec<u8> = (0..8 << 20).flat_map(|_| random.number().to_le_bytes()).collect();
    std::fs::write(&image, &noise).unwrap();
    let snapshot = pack(&image, &["--block-size", "64KiB"]);
    let mut arguments = ["--cache-size", "8MiB", "--max-inflight", "8MiB"].map(Into::into).to_vec();
    arguments.push(snapshot.into_os_string());
    let server = Process::start(arguments);
    let address = (std::net::Ipv4Addr::LOCALHOST, server.port()).into();
    let open = async || {
        let mut client = Client::connect(address).await;
        client.greet(3).await;
        client.go("").await;
        client
    };
    let mut stuck = Vec::new();
    for number in 0..CLIENTS {
        let mut client = open().await;
        for part in 0..128 {
            let offset = (number * 37 + part) * PART % noise.len() as u64;
            client.request(0, READ, part, offset, PART as u32).await;
        }
        stuck.push(client);
    }
    for round in 0..100 {
        let offset = round * 70_001 * 9;
        let read = open().await.read(offset, 300_000).await;
        assert!(read == noise[offset as usize..][..300_000]);
    }
    let peak = server.peak_memory_bytes();
    assert!(peak < BYTES_MAX, "{} MiB for {CLIENTS} clients", peak >> 20);
}
