//! What is exported of which snapshot, and what becomes of it when files come and go.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hexz_nbd::snapshot::write::{self, BlockSize, Cut, Method, Settings, Source};
use hexz_nbd::snapshot::{File, Stream};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::client::{ACK, Client as NbdClient, ERR_TLS_REQD, ERR_UNKNOWN, query};
use crate::support::fixtures;
use crate::support::process::{Client, Process, refused};
use crate::support::server::contents;
use crate::support::wire::{GO, LIST, OPT_INFO};

const BROKEN: &str = "the snapshot of this export cannot be opened; the server's log says why";

/// A directory with snapshots of its own.
struct Snapshots(TempDir);

impl Snapshots {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Packs an image. It appears under its name at once, also in place of another one.
    fn pack(&self, image: &[u8], name: &str) -> PathBuf {
        let source = self.path("image");
        fs::write(&source, image).unwrap();
        let settings = Settings {
            method: Method::Lz4,
            cut: Cut::Blocks(BlockSize::new(4096).unwrap()),
            threads: NonZeroUsize::MIN,
            replace: true,
            base: None,
            passphrase: None,
        };
        let source = Source::open(&source).unwrap();
        let path = self.path(name);
        write::write(&source, &path, &settings, &AtomicBool::new(false), &|_| {}).unwrap();
        path
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), contents).unwrap();
        self.path(name)
    }

    /// At once, also in place of another one.
    fn put(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::rename(self.write("new", contents), self.path(name)).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }
}

/// Bytes that differ from place to place, and from one seed to the next.
fn image(seed: u8, length: usize) -> Vec<u8> {
    let byte = |place: usize| (place / 512 % 251) as u8 ^ (place % 256) as u8 ^ seed;
    (0..length).map(byte).collect()
}

/// A fixture as an argument, with options.
fn fixture(name: &str, file: &str, options: &str) -> String {
    format!("{name}={}{options}", fixtures::path(file).display())
}

fn argument(path: &Path, options: &str) -> String {
    format!("{}{options}", path.display())
}

fn copied(server: &Process, export: &str) -> Vec<u8> {
    let uri = server.uri(export);
    Client::new("nbdcopy").args([&uri, "-"]).run().succeeded().stdout
}

/// Names and descriptions, in the order in which the server lists them.
fn listed(server: &Process) -> Vec<(String, String)> {
    let list = Client::new("nbdinfo").args(["--list", "--json", &server.uri("")]).run().succeeded();
    let exports = list.json()["exports"].as_array().unwrap().clone();
    let text = |export: &Value, key: &str| export[key].as_str().unwrap_or_default().to_owned();
    exports.iter().map(|e| (text(e, "export-name"), text(e, "description"))).collect()
}

fn names(server: &Process) -> Vec<String> {
    listed(server).into_iter().map(|(name, _)| name).collect()
}

async fn greeted(server: &Process) -> NbdClient {
    let address: SocketAddr = ([127, 0, 0, 1], server.port()).into();
    let mut client = NbdClient::connect(address).await;
    client.greet(3).await;
    client
}

async fn opened(server: &Process, export: &str) -> NbdClient {
    let mut client = greeted(server).await;
    client.go(export).await;
    client
}

async fn reads(client: &mut NbdClient, expected: &[u8]) {
    client.request(0, 0, 7, 0, expected.len() as u32).await;
    let (error, cookie, data) = client.reply(expected.len()).await;
    assert_eq!((error, cookie), (0, 7));
    assert!(data == expected);
}

/// Waits for that many lines with this message about this file.
fn wait_about(server: &Process, message: &str, file: &str, times: usize) {
    let is_wanted = |line: &Value| is_about(line, message, file);
    server.wait_until(is_wanted, times);
}

fn is_about(line: &Value, message: &str, file: &str) -> bool {
    let is_file = line["file"].as_str().unwrap_or_default().ends_with(file);
    line["message"].as_str().unwrap_or_default().starts_with(message) && is_file
}

/// Waits until something holds that no line of the log tells of.
fn wait_until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("it never comes to be that {what}");
}

/// Waits until the server has looked at its files and found a change so many times.
fn wait_reloaded(server: &Process, times: usize) {
    let is_reload = |line: &Value| line["message"] == "reloaded" && line["why"] == "changed files";
    server.wait_until(is_reload, times);
}

#[test]
fn a_window_shows_its_bytes_to_every_client() {
    let disk = contents("v082-ext4.hxz");
    let server = Process::start([
        fixture("middle", "v082-ext4.hxz", ",offset=1MiB,size=64KiB"),
        fixture("rest", "v082-ext4.hxz", ",offset=5000001"),
        fixture("start", "v082-ext4.hxz", ",size=1000,round-up=4096"),
        fixture("recovered", "v082-blockdev-size0.hxz", ",size=index,offset=100,size=2000"),
    ]);
    assert!(copied(&server, "middle") == disk[1 << 20..(1 << 20) + (64 << 10)]);
    assert!(copied(&server, "rest") == disk[5_000_001..]);
    let mut start = disk[..1000].to_vec();
    start.resize(4096, 0);
    assert!(copied(&server, "start") == start);
    assert_eq!(copied(&server, "recovered").len(), 2000);
    let descriptions = listed(&server);
    assert!(descriptions[0].1.contains("65536 bytes at offset 1048576 of"), "{descriptions:?}");

    let directory = tempfile::tempdir().unwrap();
    let raw = directory.path().join("raw");
    let convert = ["convert", "-f", "raw", "-O", "raw", &server.uri("middle")];
    Client::new("qemu-img").args(convert).arg(&raw).run().succeeded();
    assert!(fs::read(raw).unwrap() == disk[1 << 20..(1 << 20) + (64 << 10)]);
}

#[test]
fn a_part_that_the_snapshot_does_not_have_stops_the_start_with_the_numbers() {
    let onebyte = |options: &str| fixture("disk", "v082-zstd.hxz", options);
    for (options, parts) in [
        (",offset=4MiB", ["offset 4194304", "2098688 bytes"]),
        (
            ",offset=1MiB,size=2MiB",
            ["2097152 bytes at offset 1048576", "ends 1050112 bytes behind"],
        ),
        (",partition=1", ["v082-zstd.hxz", "there is no partition table"]),
    ] {
        let (code, said) = refused(&["--listen", "127.0.0.1:0", &onebyte(options)]);
        assert_eq!(code, 1, "{said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{options}: {said}");
    }
    let (code, said) = refused(&["--listen", "127.0.0.1:0", &onebyte(",partition=1,size=1")]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("exclude each other"), "{said}");
}

/// The kernel shows whole sectors only, so the last bytes of such an export are lost there.
#[test]
fn padding_is_proposed_where_the_kernel_would_lose_bytes_and_given_where_it_is_asked_for() {
    let snapshots = Snapshots::new();
    let odd = image(1, 5000);
    let path = snapshots.pack(&odd, "odd.hxz");
    let even = snapshots.pack(&image(2, 5120), "even.hxz");
    let server = Process::start([
        argument(&path, ""),
        argument(&even, ""),
        format!("padded={}", argument(&path, ",round-up=512")),
        fixture("empty", "v082-empty.hxz", ",round-up=512"),
    ]);
    let mut padded = odd.clone();
    padded.resize(5120, 0);
    assert!(copied(&server, "odd") == odd);
    assert!(copied(&server, "padded") == padded);
    assert!(copied(&server, "empty").is_empty());
    let log = server.log();
    let is_proposal = |line: &&Value| line["message"].as_str().unwrap_or("").contains("round-up");
    let [proposal] = &log.iter().filter(is_proposal).collect::<Vec<_>>()[..] else {
        panic!("{log:#?}")
    };
    assert_eq!((&proposal["level"], &proposal["export"]), (&"INFO".into(), &"odd".into()));
    assert_eq!(proposal["size_bytes"], 5000);
    let message = proposal["message"].as_str().unwrap();
    assert!(message.contains("lose the last 392 bytes"), "{message}");
    assert!(message.contains("`round-up=512`"), "{message}");
}

#[tokio::test]
async fn a_read_across_the_end_of_a_padded_export_gives_zeros_and_behind_it_an_error() {
    let snapshots = Snapshots::new();
    let odd = image(1, 5000);
    let path = snapshots.pack(&odd, "odd.hxz");
    let server = Process::start([argument(&path, ",round-up=512")]);
    let mut client = opened(&server, "").await;
    // Before and when it is in the cache.
    for _ in 0..2 {
        client.request(0, 0, 1, 4990, 130).await;
        let expected = [&odd[4990..], &[0; 120]].concat();
        assert_eq!(client.reply(130).await, (0, 1, expected));
    }
    client.request(0, 0, 2, 5100, 20).await;
    assert_eq!(client.reply(20).await, (0, 2, vec![0; 20]));
    client.request(0, 0, 3, 5100, 21).await;
    let (error, cookie, _) = client.reply(0).await;
    assert_eq!((error, cookie), (22, 3), "EINVAL");
}

#[test]
fn both_streams_are_exported_unless_one_is_asked_for() {
    let file = File::open(fixtures::path("v082-lz4-aux.hxz")).unwrap();
    let aux = file.read_at(Stream::Auxiliary, 0, 1 << 30).unwrap();
    let server = Process::start([
        fixture("vm", "v082-lz4-aux.hxz", ""),
        fixture("described", "v082-lz4-aux.hxz", ",desc=a machine,offset=512,size=512"),
        fixture("disk", "v082-lz4-aux.hxz", ",stream=main"),
        fixture("memory", "v082-lz4-aux.hxz", ",stream=aux"),
    ]);
    let list = listed(&server);
    let (names, descriptions): (Vec<_>, Vec<_>) = list.into_iter().unzip();
    let expected = ["vm", "vm/aux", "described", "described/aux", "disk", "memory"];
    assert_eq!(names, expected);
    assert!(descriptions[0].contains("main stream"), "{descriptions:?}");
    assert!(descriptions[1].contains("auxiliary stream"), "{descriptions:?}");
    assert_eq!(descriptions[2..4], ["a machine", "a machine (auxiliary stream)"]);
    assert!(copied(&server, "vm") == contents("v082-lz4-aux.hxz"));
    for export in ["vm/aux", "described/aux", "memory"] {
        assert!(copied(&server, export) == aux, "{export}");
    }
    // A window is one of the disk.
    assert_eq!(copied(&server, "described").len(), 512);

    // Two streams are one snapshot: the disk is what a client gets that asks for nothing.
    let alone = Process::start([fixture("vm", "v082-lz4-aux.hxz", ",round-up=64KiB")]);
    let size = |export: &str| {
        let uri = alone.uri(export);
        let output = Client::new("nbdinfo").args(["--size", &uri]).run().succeeded();
        output.text().trim().parse::<u64>().unwrap()
    };
    assert_eq!(size(""), size("vm"));
    for export in ["vm", "vm/aux"] {
        assert!(size(export).is_multiple_of(65_536), "{export}");
    }
}

/// A disk with a partition table that `sfdisk` makes.
fn partitioned(snapshots: &Snapshots, script: &str) -> Vec<u8> {
    let path = snapshots.write("disk", vec![0; 16 << 20]);
    let sfdisk = Client::new("sfdisk").args(["--quiet", "--no-reread", "--no-tell-kernel"]);
    sfdisk.arg(&path).input(script.as_bytes()).run().succeeded();
    fs::read(path).unwrap()
}

#[test]
fn a_partition_reads_as_its_bytes_of_the_disk() {
    let snapshots = Snapshots::new();
    let mbr = "label: dos\n1: start=2048, size=2048, type=83\n2: start=6144, size=20000, type=5\n\
               5: start=8192, size=3000, type=83\n6: start=14336, size=4097, type=83\n";
    let gpt = "label: gpt\n1: start=2048, size=2048\n4: start=6144, size=999\n";
    for (script, scheme, partitions) in [
        (mbr, "MBR", &[(1, 2048, 2048), (5, 8192, 3000), (6, 14_336, 4097)][..]),
        (gpt, "GPT", &[(1, 2048, 2048), (4, 6144, 999)]),
    ] {
        let mut disk = partitioned(&snapshots, script);
        for (number, start, count) in partitions {
            let bytes = image(*number, count * 512);
            disk[start * 512..(start + count) * 512].copy_from_slice(&bytes);
        }
        let path = snapshots.pack(&disk, "boot.hxz");
        let arguments = partitions.iter().map(|(number, ..)| {
            format!("p{number}={}", argument(&path, &format!(",partition={number}")))
        });
        let server = Process::start(arguments);
        for ((name, description), (number, ..)) in listed(&server).iter().zip(partitions) {
            assert_eq!(name, &format!("p{number}"));
            assert!(description.contains(&format!("partition {number} ({scheme}), ")));
        }
        for (number, start, count) in partitions {
            let expected = &disk[start * 512..(start + count) * 512];
            assert!(copied(&server, &format!("p{number}")) == expected, "{scheme} {number}");
            let raw = snapshots.path("raw");
            let uri = server.uri(&format!("p{number}"));
            let convert = ["convert", "-f", "raw", "-O", "raw", &uri];
            Client::new("qemu-img").args(convert).arg(&raw).run().succeeded();
            assert!(fs::read(&raw).unwrap() == expected, "{scheme} {number}");
        }
        let none = format!("p9={}", argument(&path, ",partition=9"));
        let (code, said) = refused(&["--listen", "127.0.0.1:0", &none]);
        assert_eq!(code, 1);
        assert!(said.contains("there is no partition 9; there are: 1 (1048576 bytes"), "{said}");
    }
}

/// What is behind a name that cannot be opened is nobody's business but the log's.
#[tokio::test]
async fn a_snapshot_that_cannot_be_opened_leaves_the_others_served_and_says_so_to_who_asks() {
    let snapshots = Snapshots::new();
    let broken = snapshots.write("broken.hxz", "no snapshot");
    let missing = snapshots.path("missing.hxz");
    let good = snapshots.pack(&image(1, 8192), "good.hxz");
    let server = Process::start([&broken, &good, &missing]);
    for file in ["broken.hxz", "missing.hxz"] {
        let log = server.log();
        let line = log.iter().find(|line| is_about(line, "not exported", file)).unwrap();
        assert_eq!(line["level"], "ERROR");
        assert!(line["error"].as_str().unwrap().contains(file), "{line}");
    }
    assert_eq!(names(&server), ["good"]);
    assert!(copied(&server, "good") == image(1, 8192));
    let mut client = greeted(&server).await;
    for code in [OPT_INFO, GO] {
        for (name, sentence) in [
            ("broken", BROKEN),
            ("missing", BROKEN),
            ("made up", "there is no export of that name"),
            // Which one is the default does not depend on what can be opened.
            ("", "there is no default export: ask for one by name"),
        ] {
            client.send_option(code, &query(name, &[])).await;
            let (reply, said) = client.option_reply(code).await;
            assert_eq!(reply, ERR_UNKNOWN);
            assert_eq!(String::from_utf8(said).unwrap(), sentence, "{name}");
        }
    }
    // `EXPORT_NAME` has no answer for it.
    client.send_option(1, b"broken").await;
    client.expect_end().await;
    let closed = |line: &Value| {
        line["error"].as_str().unwrap_or_default().contains("\"broken\" cannot be opened")
    };
    server.wait_until(closed, 1);
}

#[test]
fn without_a_single_export_the_server_does_not_start_and_says_every_reason() {
    let snapshots = Snapshots::new();
    let broken = snapshots.write("broken.hxz", "no snapshot");
    let missing = snapshots.path("missing.hxz");
    let [broken, missing] = [&broken, &missing].map(|path| path.to_str().unwrap());
    let (code, said) = refused(&["--listen", "127.0.0.1:0", broken, missing]);
    assert_eq!(code, 1);
    assert!(said.contains("broken.hxz: ") && said.contains("missing.hxz: "), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let directory = snapshots.0.path().to_str().unwrap();
    let (code, said) = refused(&["--listen", "127.0.0.1:0", directory]);
    assert_eq!(code, 1);
    assert!(said.contains("broken.hxz: "), "{said}");
    let (code, said) = refused(&["--listen", "127.0.0.1:0", &format!("{directory}/none/")]);
    assert_eq!(code, 1);
    assert!(said.contains("/none"), "{said}");
}

/// Hidden and broken is hidden.
#[tokio::test]
async fn a_broken_export_that_needs_tls_looks_like_none_without() {
    let snapshots = Snapshots::new();
    let pki = crate::support::tls::Pki::new();
    let bundle = snapshots.write("srv.pem", pki.bundle());
    fs::set_permissions(&bundle, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let secret = argument(&snapshots.write("secret.hxz", "no snapshot"), "");
    let open = argument(&snapshots.write("open.hxz", "no snapshot"), ",plaintext");
    let good = argument(&snapshots.pack(&image(1, 512), "good.hxz"), ",plaintext");
    let bundle = bundle.to_str().unwrap();
    let server = Process::start(["--tls=on", "--tls-cert", bundle, &secret, &open, &good]);
    let mut client = greeted(&server).await;
    let mut answers = Vec::new();
    for name in ["secret", "made up", "open"] {
        client.send_option(GO, &query(name, &[])).await;
        answers.push(client.option_reply(GO).await);
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[2], (ERR_UNKNOWN, BROKEN.as_bytes().to_vec()));
}

/// Rules and marks of a snapshot hold for all of it.
#[tokio::test]
async fn an_auxiliary_stream_is_as_open_as_its_disk() {
    let snapshots = Snapshots::new();
    let pki = crate::support::tls::Pki::new();
    let bundle = snapshots.write("srv.pem", pki.bundle());
    fs::set_permissions(&bundle, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let bundle = bundle.to_str().unwrap();
    let open = fixture("open", "v082-lz4-aux.hxz", ",plaintext");
    let secret = fixture("secret", "v082-lz4-aux.hxz", "");
    let server = Process::start(["--tls=on", "--tls-cert", bundle, &open, &secret]);
    let mut client = greeted(&server).await;
    let (list, _) = client.option(LIST, b"").await;
    assert_eq!(list.len(), 2);
    for (name, expected) in
        [("secret", ERR_TLS_REQD), ("secret/aux", ERR_TLS_REQD), ("open", ACK), ("open/aux", ACK)]
    {
        assert_eq!(client.option(OPT_INFO, &query(name, &[])).await.1, expected, "{name}");
    }
}

#[test]
fn a_default_export_may_be_a_file_that_is_yet_to_come() {
    let snapshots = Snapshots::new();
    snapshots.pack(&image(1, 512), "a.hxz");
    let directory = snapshots.0.path().to_str().unwrap();
    let server = Process::start(["--default-export", "b", directory]);
    server.wait_for("the default export is not there; it may come yet", 1);
    Client::new("nbdinfo").args(["--size", &server.uri("")]).run().failed();
    let b = image(2, 1024);
    snapshots.pack(&b, "b.hxz");
    wait_until("the exports are listed", || names(&server) == ["a", "b"]);
    assert!(copied(&server, "") == b);
    // Where nothing can come by itself, it is a mistake.
    let a = snapshots.path("a.hxz");
    let arguments = ["--listen", "127.0.0.1:0", "--default-export", "c", a.to_str().unwrap()];
    assert_eq!(refused(&arguments).0, 2);
}

#[tokio::test]
async fn files_that_come_to_a_directory_are_exported_and_those_that_go_stay_with_their_clients() {
    let snapshots = Snapshots::new();
    let (a, b) = (image(1, 8192), image(2, 8192));
    snapshots.pack(&a, "a.hxz");
    snapshots.pack(&b, "b.hxz");
    let server = Process::start([snapshots.0.path()]);
    assert_eq!(names(&server), ["a", "b"]);
    let mut reads_a = opened(&server, "a").await;
    let mut chooses = greeted(&server).await;

    let c = image(3, 4096);
    snapshots.pack(&c, "c.hxz");
    snapshots.remove("a.hxz");
    wait_until("the exports are listed", || names(&server) == ["b", "c"]);
    assert!(copied(&server, "c") == c);
    reads(&mut reads_a, &a).await;
    // Also to who came before.
    assert_eq!(chooses.option(GO, &query("a", &[])).await, (vec![], ERR_UNKNOWN));
    let (list, last) = chooses.option(LIST, b"").await;
    assert_eq!((list.len(), last), (1, ACK), "what it came to see and what is left of it");

    // Another reload on top, with a file replaced.
    let new = image(4, 12_288);
    let mut reads_b = opened(&server, "b").await;
    snapshots.pack(&new, "b.hxz");
    let size = || {
        let uri = server.uri("b");
        Client::new("nbdinfo").args(["--size", &uri]).run().succeeded().text().trim().to_owned()
    };
    wait_until("the new file is served", || size() == "12288");
    assert!(copied(&server, "b") == new);
    reads(&mut reads_b, &b).await;
    reads(&mut reads_a, &a).await;
}

/// An operator who takes the directory away means it.
#[tokio::test]
async fn clients_of_a_removed_file_go_when_its_directory_is_no_longer_exported() {
    let (snapshots, other) = (Snapshots::new(), Snapshots::new());
    let (a, b) = (image(1, 8192), image(2, 8192));
    snapshots.pack(&a, "a.hxz");
    other.pack(&b, "b.hxz");
    let config = Snapshots::new();
    let exports = |directories: &[&Snapshots]| {
        let export =
            |directory: &&Snapshots| format!("[[export]]\npath = {:?}\n", directory.0.path());
        config.write("config", directories.iter().map(export).collect::<String>())
    };
    let path = exports(&[&snapshots, &other]);
    let server = Process::start(["--config".as_ref(), path.as_os_str()]);
    let mut reads_a = opened(&server, "a").await;
    let mut reads_b = opened(&server, "b").await;
    snapshots.remove("a.hxz");
    wait_reloaded(&server, 1);
    reads(&mut reads_a, &a).await;
    exports(&[&other]);
    server.reload();
    reads_a.expect_end().await;
    reads(&mut reads_b, &b).await;
}

#[tokio::test]
async fn a_file_that_is_half_written_is_tried_again_when_it_has_changed_and_not_before() {
    let snapshots = Snapshots::new();
    snapshots.pack(&image(1, 4096), "a.hxz");
    let complete = fs::read(fixtures::path("v082-zstd.hxz")).unwrap();
    let server = Process::start([snapshots.0.path()]);
    let half = &complete[..complete.len() / 2];
    snapshots.put("b.hxz", half);
    wait_about(&server, "not exported", "b.hxz", 1);
    assert_eq!(names(&server), ["a"]);
    let mut client = greeted(&server).await;
    client.send_option(GO, &query("b", &[])).await;
    assert_eq!(client.option_reply(GO).await, (ERR_UNKNOWN, BROKEN.as_bytes().to_vec()));

    // Something else changes meanwhile: the same is not said again.
    snapshots.pack(&image(2, 4096), "c.hxz");
    wait_until("the exports are listed", || names(&server) == ["a", "c"]);
    let about_b =
        |log: &[Value]| log.iter().filter(|l| is_about(l, "not exported", "b.hxz")).count();
    assert_eq!(about_b(&server.log()), 1);
    snapshots.write("b.hxz", &complete);
    wait_until("the exports are listed", || names(&server) == ["a", "b", "c"]);
    assert!(copied(&server, "b") == contents("v082-zstd.hxz"));
}

#[tokio::test]
async fn what_cannot_be_opened_anew_is_served_as_it_was() {
    let snapshots = Snapshots::new();
    let a = image(1, 8192);
    let path = snapshots.pack(&a, "a.hxz");
    let server = Process::start([argument(&path, ",size=8192")]);
    let mut reads_on = opened(&server, "a").await;
    snapshots.put("a.hxz", "no snapshot");
    wait_about(&server, "cannot be opened anew", "a.hxz", 1);
    wait_reloaded(&server, 1);
    assert!(copied(&server, "a") == a);
    // A snapshot, and without what is asked of it.
    snapshots.pack(&image(2, 4096), "a.hxz");
    wait_about(&server, "cannot be opened anew", "a.hxz", 2);
    assert!(copied(&server, "a") == a);
    reads(&mut reads_on, &a).await;
    let new = image(3, 8192);
    snapshots.pack(&new, "a.hxz");
    wait_reloaded(&server, 3);
    assert!(copied(&server, "a") == new);
    reads(&mut reads_on, &a).await;
}

#[test]
fn an_empty_directory_is_served_with_a_warning_until_snapshots_come() {
    let (snapshots, elsewhere) = (Snapshots::new(), Snapshots::new());
    let server = Process::start([snapshots.0.path()]);
    let warning = |line: &Value| {
        line["level"] == "WARN" && line["message"].as_str().unwrap().starts_with("no .hxz file")
    };
    server.wait_until(warning, 1);
    assert!(names(&server).is_empty());
    let a = image(1, 4096);
    fs::rename(elsewhere.pack(&a, "a.hxz"), snapshots.path("a.hxz")).unwrap();
    wait_reloaded(&server, 1);
    assert!(copied(&server, "") == a);
}

/// Or whoever may write to the directory could take the place of any export.
#[test]
fn no_file_that_comes_to_a_directory_takes_a_name_that_was_given() {
    let (directory, elsewhere) = (Snapshots::new(), Snapshots::new());
    directory.pack(&image(1, 512), "a.hxz");
    let b = image(2, 1024);
    let given = elsewhere.pack(&b, "b.hxz");
    let server = Process::start([directory.0.path(), &given]);
    directory.pack(&image(3, 2048), "b.hxz");
    wait_about(&server, "not exported", "b.hxz", 1);
    // The rest goes on.
    directory.pack(&image(4, 512), "c.hxz");
    wait_until("the exports are listed", || names(&server) == ["a", "c", "b"]);
    assert!(copied(&server, "b") == b);
    elsewhere.put("b.hxz", "no snapshot");
    wait_about(&server, "cannot be opened anew", "b.hxz", 1);
    assert!(copied(&server, "b") == b);
}

/// What others do in the directory is nothing to the server.
#[test]
fn other_files_of_a_directory_may_come_and_go() {
    let snapshots = Snapshots::new();
    snapshots.pack(&image(1, 4096), "a.hxz");
    let server = Process::start([snapshots.0.path()]);
    snapshots.write("notes.txt", "x");
    snapshots.write("b.hxz.part", "x");
    snapshots.pack(&image(2, 4096), "c.hxz");
    wait_reloaded(&server, 1);
    snapshots.remove("b.hxz.part");
    snapshots.pack(&image(2, 4096), "d.hxz");
    wait_reloaded(&server, 2);
    assert_eq!(names(&server), ["a", "c", "d"]);
    let reloads = server.log().iter().filter(|line| line["message"] == "reloaded").count();
    assert_eq!(reloads, 2, "{:#?}", server.log());
}

#[test]
fn exports_are_listed_in_the_order_in_which_they_are_given() {
    let (first, second) = (Snapshots::new(), Snapshots::new());
    for name in ["m.hxz", "b.hxz"] {
        first.pack(&image(1, 512), name);
    }
    let [z, a] = ["z.hxz", "a.hxz"].map(|name| second.pack(&image(2, 512), name));
    let server = Process::start([&z, first.0.path(), &a]);
    assert_eq!(names(&server), ["z", "b", "m", "a"]);
    let config = second.write(
        "config",
        format!("[[export]]\npath = {z:?}\n[[export]]\npath = {a:?}\ndescription = \"golden\"\n"),
    );
    let server = Process::start([Path::new("--config"), &config, first.0.path()]);
    assert_eq!(names(&server), ["z", "a", "b", "m"]);
    assert_eq!(listed(&server)[1].1, "golden");
}
