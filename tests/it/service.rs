//! What an operator relies on while clients read: numbers that are right under load, a stop that
//! loses nothing, a server that may die, and a service manager that is told the truth.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::FdFlags;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::client::Client as NbdClient;
use crate::support::fixtures;
use crate::support::pki::{Holder, Maker, Pki, text};
use crate::support::process::{Client, HEXZ_NBD, Process};
use crate::support::scrape::Scrape;
use crate::support::server::contents;
use crate::support::watched::Watched;
use crate::support::wire::{ESHUTDOWN, READ};

const DISK: &str = "v082-ext4.hxz";
const DISK_BYTES: u64 = 16 << 20;
const BLOCKS: &str = "v082-lz4-default.hxz";
const BLOCKS_BYTES: u64 = 3_145_851;

/// Nothing takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// With a command that starts the server when it is given arguments.
fn start_from(command: Command, arguments: &[&str]) -> Watched {
    let listen = ["--status-listen", "127.0.0.1:0"];
    let process = Process::start_from(command, listen.iter().chain(arguments));
    let address = process.log().iter().find_map(|line| {
        (line["message"] == "showing the status")
            .then(|| line["address"].as_str().unwrap().parse().unwrap())
    });
    Watched { address: address.unwrap(), process }
}

fn address(watched: &Watched) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, watched.process.port()).into()
}

/// Looks again until it is so.
fn wait_until(watched: &Watched, what: &str, is_so: impl Fn(&Scrape) -> bool) -> Scrape {
    let end = Instant::now() + PATIENCE;
    loop {
        let scrape = Scrape::of(watched);
        if is_so(&scrape) {
            return scrape;
        }
        assert!(Instant::now() < end, "not so: {what}: {}", scrape.text);
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn requests(export: &str, kind: &str) -> String {
    format!("hexz_nbd_requests_total{{export=\"{export}\",type=\"{kind}\"}}")
}

/// The bytes of an export for nbdcopy, which reads each once and asks for no extents.
fn nbdcopy(uri: &str, connections: u64, to: &Path) -> Client {
    // It takes no more connections than it has threads.
    let [connections, threads] =
        ["connections", "threads"].map(|what| format!("--{what}={connections}"));
    let options = ["--no-extents", "--request-size=65536", &connections, &threads];
    Client::new("nbdcopy").args(options).arg(uri).arg(to)
}

/// Two exports, plaintext and TLS, four programs that read at the same time, and somebody who looks
/// at the numbers all the while.
#[tokio::test(flavor = "multi_thread")]
async fn under_load_every_scrape_is_whole_and_in_the_end_the_numbers_are_what_clients_read() {
    let pki = Pki::new(Maker::OpensslEcdsa);
    let alice = pki.good("alice-of-accounts");
    let disk = format!("disk={},plaintext", text(&fixtures::path(DISK)));
    let blocks = format!("blocks={}", text(&fixtures::path(BLOCKS)));
    let certificate = pki.path("srv.pem");
    let watched =
        Watched::start(&["--tls", "on", "--tls-cert", text(&certificate), &disk, &blocks]);
    let port = watched.process.port();

    // It asks for more than the sockets hold, and takes nothing before that was seen.
    let mut slow = NbdClient::connect(address(&watched)).await;
    slow.greet(3).await;
    slow.go("disk").await;
    for cookie in 0..4 {
        slow.request(0, READ, cookie, 0, 3 << 20).await;
    }
    let inflight = "hexz_nbd_inflight_bytes";
    wait_until(&watched, "bytes are in flight", |scrape| scrape.number(inflight) > 0.0);

    let is_over = AtomicBool::new(false);
    let scrapes = std::thread::scope(|scope| {
        let scraper = scope.spawn(|| {
            let mut before = Scrape::of(&watched);
            let mut scrapes = 1;
            while !is_over.load(Ordering::Relaxed) {
                let now = Scrape::of(&watched);
                now.follows(&before);
                assert!(!now.text.contains("alice"), "{}", now.text);
                before = now;
                scrapes += 1;
            }
            scrapes
        });
        let clients = || clients(port, &alice);
        let clients = std::panic::catch_unwind(std::panic::AssertUnwindSafe(clients));
        is_over.store(true, Ordering::Relaxed);
        let scrapes = scraper.join().unwrap();
        clients.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        scrapes
    });
    assert!(scrapes > 10, "{scrapes}");
    for cookie in 0..4 {
        let (error, answered, data) = slow.reply(3 << 20).await;
        assert_eq!((error, answered), (0, cookie));
        assert!(data == contents(DISK)[..3 << 20]);
    }
    drop(slow);

    let end = wait_until(&watched, "all clients are gone", |scrape| {
        scrape.sum("hexz_nbd_connections") == 0
    });
    let count = |name: &str| end.count(name);
    let reads = |export: &str| count(&requests(export, "read"));
    let read_bytes =
        |export: &str| count(&format!("hexz_nbd_read_bytes_total{{export=\"{export}\"}}"));
    // nbdcopy, fio and the slow one.
    assert_eq!(read_bytes("disk"), DISK_BYTES + FIO_READS * 4096 + 4 * (3 << 20));
    assert_eq!(reads("disk"), DISK_BYTES / 65536 + FIO_READS + 4);
    // nbdcopy and qemu-io.
    assert_eq!(read_bytes("blocks"), BLOCKS_BYTES + 1_048_576);
    assert_eq!(reads("blocks"), BLOCKS_BYTES.div_ceil(65536) + 1);
    for export in ["disk", "blocks"] {
        assert_eq!(count(&requests(export, "refused")), 0);
    }
    assert_eq!(end.sum("hexz_nbd_error_replies_total"), 0);
    // Long reads are done in parts of 256 KiB, and each has its time: those of the slow one, and of QEMU.
    let parts = reads("disk") + reads("blocks") - 5 + 4 * 12 + 4;
    assert_eq!(end.sum("hexz_nbd_read_duration_seconds_count"), parts);
    let success = "hexz_nbd_handshakes_total{outcome=\"success\",reason=\"\"}";
    assert_eq!(count(success), COPY_CONNECTIONS + 1);
    assert_eq!(end.sum("hexz_nbd_handshakes_total"), COPY_CONNECTIONS + 1);
    // A line of the log for the end of each.
    let accepted = count("hexz_nbd_connections_accepted_total") as usize;
    let closed = |line: &Value| line["message"] == "closed";
    watched.process.wait_until(closed, accepted);
    assert_eq!(watched.process.log().iter().filter(|line| closed(line)).count(), accepted);
    assert_eq!(count(inflight), 0);
}

const COPY_CONNECTIONS: u64 = 4;
const FIO_READS: u64 = 2000;

/// All at the same time, and each with the right bytes.
fn clients(port: u16, alice: &Holder) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let plain = format!("nbd://127.0.0.1:{port}/disk");
    let encrypted = alice.uri(port, "blocks");
    let report = at("report.json");
    let copies = [
        (nbdcopy(&plain, COPY_CONNECTIONS, &at("disk")).start(), at("disk"), DISK),
        (nbdcopy(&encrypted, COPY_CONNECTIONS, &at("blocks")).start(), at("blocks"), BLOCKS),
    ];
    let fio = Client::new("fio")
        .current_dir(directory.path())
        .args(["--name=random", "--ioengine=nbd", "--rw=randread", "--readonly", "--bs=4k"])
        .args(["--iodepth=32", "--numjobs=2", "--output-format=json"])
        .arg(format!("--number_ios={}", FIO_READS / 2))
        .arg(format!("--uri={plain}"))
        .arg(format!("--output={}", report.display()))
        .start();
    let qemu = Client::new("qemu-io")
        .args(["-r", "--object"])
        .arg(format!("tls-creds-x509,id=tls0,dir={},endpoint=client", text(&alice.directory)))
        .args(["-c", "read 1M 1M", "--image-opts"])
        .arg(qemu_image(port, "blocks"))
        .start();
    for (copy, path, file) in copies {
        copy.finish().succeeded();
        assert!(fs::read(path).unwrap() == contents(file), "{file}: wrong bytes");
    }
    fio.finish().succeeded();
    qemu.finish().succeeded();
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    let read = |job: &Value| job["read"]["total_ios"].as_u64().unwrap();
    let ios: u64 = report["jobs"].as_array().unwrap().iter().map(read).sum();
    assert_eq!(ios, FIO_READS, "{report}");
}

/// An export for QEMU, over TLS with the object `tls0`.
fn qemu_image(port: u16, export: &str) -> String {
    format!(
        "driver=raw,file.driver=nbd,file.host=127.0.0.1,file.port={port},file.export={export},\
         file.tls-creds=tls0,file.reconnect-delay=60"
    )
}

/// Deterministic, and different for each.
fn offset_of(cookie: u64, length: u64) -> u64 {
    cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (DISK_BYTES - length)
}

/// More than is accepted for one client at a time, so that some of it is not accepted when the stop
/// comes: what was is answered, byte for byte; what was not is refused, or the connection ends.
#[tokio::test]
async fn a_stop_under_load_loses_nothing_that_was_accepted() {
    const EACH: u64 = 200;
    const LENGTH: u32 = 128 << 10;
    let file = fixtures::path(DISK);
    let names = ["a", "b", "c"];
    let exports = names.map(|name| format!("{name}={}", text(&file)));
    let mut arguments: Vec<&str> = exports.iter().map(String::as_str).collect();
    // What one may owe is less than it asks for.
    arguments.extend(["--max-inflight-per-connection", "12MiB"]);
    let mut watched = Watched::start(&arguments);
    let disk = contents(DISK);
    let mut clients = Vec::new();
    for name in names {
        let mut client = NbdClient::connect(address(&watched)).await;
        client.greet(3).await;
        client.go(name).await;
        for cookie in 0..EACH {
            let offset = offset_of(cookie, LENGTH.into());
            client.request(0, READ, cookie, offset, LENGTH).await;
        }
        clients.push((name, client));
    }
    let has_all =
        |scrape: &Scrape| names.iter().all(|name| scrape.number(&requests(name, "read")) > 9.0);
    wait_until(&watched, "each has some accepted", has_all);
    let before = Scrape::of(&watched);
    watched.process.signal(Signal::TERM);
    watched.process.wait_for("stopping", 1);
    for (_, client) in &mut clients {
        // Later than the stop, so none of them may be served. The server may have hung up.
        for cookie in EACH..EACH + 3 {
            client.request(0, READ, cookie, 0, LENGTH).await;
        }
    }
    for (name, client) in clients {
        let (answered, refused) = take_all(client, &disk, EACH, LENGTH).await;
        let accepted = before.count(&requests(name, "read")) as usize;
        assert!(answered >= accepted, "{name}: {answered} of {accepted} were answered");
        assert!(answered + refused <= EACH as usize + 3);
    }
    assert!(watched.process.ended().success(), "{:#?}", watched.process.log());
}

/// Every reply until the end: how many had bytes, which must be the right ones, and how many
/// refused.
async fn take_all(mut client: NbdClient, disk: &[u8], late: u64, length: u32) -> (usize, usize) {
    let replies = client.receive_all().await;
    let mut seen = std::collections::BTreeSet::new();
    let (mut rest, mut answered, mut refused) = (&replies[..], 0, 0);
    while !rest.is_empty() {
        let (header, behind) = rest.split_at_checked(16).expect("a whole header");
        assert_eq!(header[..4], 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(header[4..8].try_into().unwrap());
        let cookie = u64::from_be_bytes(header[8..].try_into().unwrap());
        assert!(seen.insert(cookie), "{cookie} is answered twice");
        if error == ESHUTDOWN {
            (rest, refused) = (behind, refused + 1);
            continue;
        }
        assert_eq!(error, 0);
        assert!(cookie < late, "{cookie} came after the stop");
        let (data, behind) = behind.split_at_checked(length as usize).expect("a whole reply");
        let offset = offset_of(cookie, length.into()) as usize;
        assert!(data == &disk[offset..][..length as usize], "{cookie}: wrong bytes");
        (rest, answered) = (behind, answered + 1);
    }
    (answered, refused)
}

/// What libnbd is told to do in the next test. It takes no reply before the server stops.
const ASK_AND_WAIT: &str = r#"
import errno, os, time
image = open(os.environ["IMAGE"], "rb").read()
where = os.environ["WHERE"]
handles = [nbd.NBD() for _ in range(4)]
for one in handles:
    one.set_uri_allow_local_file(True)
    one.connect_uri(os.environ["EXPORT_URI"])
asked = []
for number, one in enumerate(handles):
    for turn in range(60):
        offset = (number * 60 + turn) * 65536 % (len(image) - 131072)
        buffer = nbd.Buffer(131072)
        asked.append((one, one.aio_pread(buffer, offset), buffer, offset))
open(where + "/asked", "w").close()
while not os.path.exists(where + "/stopping"):
    time.sleep(0.02)
good = refused = 0
for one, cookie, buffer, offset in asked:
    while True:
        try:
            if one.aio_command_completed(cookie):
                assert buffer.to_bytearray() == image[offset:offset + 131072], offset
                good += 1
                break
            one.poll(-1)
        except nbd.Error as error:
            assert error.errnum in (errno.ESHUTDOWN, errno.ENOTCONN, errno.EINVAL), error
            if one.aio_is_dead() or one.aio_is_closed() or error.errnum == errno.ESHUTDOWN:
                refused += 1
                break
print(good, refused)
"#;

#[test]
fn a_stop_under_load_loses_nothing_for_libnbd_over_tls() {
    let pki = Pki::new(Maker::OpensslEcdsa);
    let alice = pki.good("alice");
    let (certificate, file) = (pki.path("srv.pem"), fixtures::path(DISK));
    // Less than each asks for.
    let mut watched = Watched::start(&[
        "--max-inflight-per-connection=1MiB",
        "--tls-cert",
        text(&certificate),
        text(&file),
    ]);
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("image"), contents(DISK)).unwrap();
    let uri = alice.uri(watched.process.port(), "v082-ext4");
    let client = Client::new("nbdsh")
        .env("IMAGE", at("image"))
        .env("WHERE", directory.path())
        .env("EXPORT_URI", &uri)
        .args(["-c", ASK_AND_WAIT])
        .start();
    wait_for_file(&at("asked"));
    let accepted = |scrape: &Scrape| scrape.sum("hexz_nbd_requests_total");
    let scrape = wait_until(&watched, "some are accepted", |scrape| accepted(scrape) > 20);
    watched.process.signal(Signal::TERM);
    watched.process.wait_for("stopping", 1);
    fs::write(at("stopping"), "").unwrap();
    let output = client.finish().succeeded();
    let said: Vec<usize> = output.text().split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert_eq!(said.iter().sum::<usize>(), 240);
    assert!(said[0] >= accepted(&scrape) as usize, "{said:?} of {}", accepted(&scrape));
    assert!(watched.process.ended().success(), "{:#?}", watched.process.log());
}

fn wait_for_file(path: &Path) {
    let end = Instant::now() + PATIENCE;
    while !path.exists() {
        assert!(Instant::now() < end, "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A server with a socket that outlives it, as the unit has it: who connects while there is no
/// server waits for the next.
fn on_socket(socket: &TcpListener, arguments: &[&str]) -> Watched {
    let script =
        "exec 3<&\"$0\"; LISTEN_FDS=1 LISTEN_PID=$$; export LISTEN_FDS LISTEN_PID; exec \"$@\"";
    // dash knows no descriptor above 9.
    let mut command = Command::new("/bin/bash");
    command.args(["-c", script, &socket.as_raw_fd().to_string(), HEXZ_NBD]);
    start_from(command, arguments)
}

/// QEMU reads a whole disk while its server is killed, without a word, and started anew, three
/// times. Every server has read for it, so each was killed in the middle.
#[test]
fn qemu_reads_on_over_servers_that_are_killed_and_has_the_right_bytes() {
    let pki = Pki::new(Maker::OpensslEcdsa);
    let alice = pki.good("alice");
    let (certificate, file) = (pki.path("srv.pem"), fixtures::path(DISK));
    let arguments = ["--tls-cert", text(&certificate), text(&file)];
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    rustix::io::fcntl_setfd(&socket, FdFlags::empty()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("copy");

    let mut watched = on_socket(&socket, &arguments);
    // In small pieces and slowly, so that it is in the middle when a server is killed.
    let image =
        qemu_image(port, "v082-ext4").replace("driver=raw", "driver=throttle,throttle-group=slow");
    let qemu = Client::new("qemu-img")
        .args([
            "dd",
            "-O",
            "raw",
            "bs=65536",
            "--object",
            "throttle-group,id=slow,x-bps-read=6000000",
        ])
        .arg("--object")
        .arg(format!("tls-creds-x509,id=tls0,dir={},endpoint=client", text(&alice.directory)))
        .arg("--image-opts")
        .arg(format!("if={image}"))
        .arg(format!("of={}", copy.display()))
        .start();
    let reads = requests("v082-ext4", "read");
    let has_read = |scrape: &Scrape| scrape.samples.get(&reads).is_some_and(|count| *count > 0.0);
    for _ in 0..3 {
        wait_until(&watched, "QEMU reads", has_read);
        watched.process.signal(Signal::KILL);
        assert!(!watched.process.ended().success());
        watched = on_socket(&socket, &arguments);
    }
    wait_until(&watched, "QEMU reads from the last one", has_read);
    qemu.finish().succeeded();
    assert!(fs::read(copy).unwrap() == contents(DISK), "wrong bytes");
}

/// Reads what a service manager is told.
struct Manager {
    socket: UnixDatagram,
    directory: TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, directory }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(HEXZ_NBD);
        command.env("NOTIFY_SOCKET", self.directory.path().join("notify"));
        command
    }

    /// The next that it is told.
    fn hears(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }
}

/// `systemctl reload` returns when the new configuration is in force: whoever comes then meets it.
#[tokio::test]
async fn a_reload_is_told_as_done_when_it_is_in_force() {
    let manager = Manager::new();
    let directory = tempfile::tempdir().unwrap();
    let file = fixtures::path("v082-onebyte.hxz");
    let config = directory.path().join("hexz-nbd.toml");
    let write = |names: usize| {
        let export = |n| format!("[[export]]\nname = \"e{n}\"\npath = \"{}\"\n", text(&file));
        fs::write(&config, (0..=names).map(export).collect::<String>()).unwrap();
    };
    write(0);
    let watched = start_from(manager.command(), &["--config", text(&config)]);
    assert!(manager.hears().contains("READY=1\nSTATUS=serving 1 exports"));
    for names in 1..20 {
        write(names);
        watched.process.reload();
        // It may have noticed the file by itself, and do it twice.
        loop {
            let begun = manager.hears();
            assert!(begun.contains("RELOADING=1\nMONOTONIC_USEC="), "{begun}");
            let ended = manager.hears();
            assert!(ended.contains("READY=1"), "{ended}");
            if ended.contains(&format!("STATUS=serving {} exports", names + 1)) {
                break;
            }
        }
        let mut client = NbdClient::connect(address(&watched)).await;
        client.greet(3).await;
        client.go(&format!("e{names}")).await;
    }
}

/// A policy that can be built and must not be put in force is no success either.
#[test]
fn a_reload_that_is_refused_in_the_end_is_not_told_as_a_success() {
    let manager = Manager::new();
    let pki = Pki::new(Maker::OpensslEcdsa);
    let config = pki.path("hexz-nbd.toml");
    let write = |mode: &str| {
        let tls = format!("[tls]\nmode = \"{mode}\"\ncert = \"srv.pem\"\n");
        let export = format!("[[export]]\npath = \"{}\"\n", text(&fixtures::path(DISK)));
        fs::write(&config, tls + &export).unwrap();
    };
    write("require");
    let arguments = ["--listen", "0.0.0.0:0", "--config", text(&config)];
    let server = Process::start_from(manager.command(), arguments);
    assert!(manager.hears().contains("READY=1\nSTATUS=serving 1 exports"));
    write("off");
    server.reload();
    assert!(manager.hears().contains("RELOADING=1"));
    let ended = manager.hears();
    assert!(ended.contains("READY=1\nSTATUS=the last reload failed, see the log"), "{ended}");
    let refused = |line: &Value| line["error"].to_string().contains("without TLS");
    server.wait_until(refused, 1);
}
