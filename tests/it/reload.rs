//! New certificates, rules and exports while clients read: whoever lost its right is out, and
//! nobody else notices.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use hexz_nbd::export::Catalogue;
use hexz_nbd::server::{Access, ExportAccess, Limits, Policy, TlsMode};
use hexz_nbd::tls::Material;
use hexz_nbd::tls::issue::Issued;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::ServerSessionMemoryCache;
use rustls::{ClientConfig, HandshakeKind, ServerConfig};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::support::client::{ACK, Client, ERR_UNKNOWN, PATIENCE, query};
use crate::support::fixtures;
use crate::support::process::Process;
use crate::support::server::{Server, catalogue, contents, export};
use crate::support::tls::{Files, Pki, TlsClient, VERSIONS, allow, policy, policy_of, shake_hands};
use crate::support::wire::{ABORT, GO, LIST, OPT_INFO};

fn kind(client: &TlsClient) -> Option<HandshakeKind> {
    client.stream.get_ref().1.handshake_kind()
}

/// Go CVE-2025-68121, nginx CVE-2025-23419: a session from before a reload let in whom the reload
/// had locked out.
#[tokio::test]
async fn a_session_from_before_a_reload_lets_nobody_in_who_would_not_be_let_in_without() {
    let (pki, other) = (Pki::new(), Pki::new());
    for version in VERSIONS {
        let alice = pki.client("alice");
        let config = pki.connector(&alice, &[version]);
        let server = Server::with_tls(&pki).await;
        for _ in 0..3 {
            let mut client = server.open_tls("disk", &config).await;
            // Tickets come with the first bytes, if they come.
            client.read(0, 512).await;
            assert_eq!(kind(&client), Some(HandshakeKind::Full));
        }
        let in_force = |material: &Material| server.replace(policy(TlsMode::Required, material));

        in_force(&pki.material_without(&[&alice]));
        server.rejects(&config).await;
        in_force(&pki.material());
        server.serves_tls(&config).await;

        in_force(&Material { client_cas: other.material().client_cas, ..pki.material() });
        server.rejects(&config).await;
        in_force(&pki.material());
        server.serves_tls(&config).await;

        server.replace(ruled(&pki, allow(&["bob"])));
        server.shows_nothing(&config).await;
        server.replace(ruled(&pki, allow(&["alice", "bob"])));
        let client = server.open_tls("disk", &config).await;
        assert_eq!(kind(&client), Some(HandshakeKind::Full));
    }
}

/// What the test above is worth: with a server that keeps sessions, its clients resume them.
#[tokio::test]
async fn a_client_of_these_tests_resumes_where_it_can() {
    let pki = Pki::new();
    let Policy { tls: Some(tls), .. } = policy(TlsMode::Required, &pki.material()) else {
        panic!("there is TLS");
    };
    for version in VERSIONS {
        let mut server = ServerConfig::clone(&tls.config.server());
        server.session_storage = ServerSessionMemoryCache::new(10);
        server.send_tls13_tickets = 2;
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let config = pki.connector(&pki.client("alice"), &[version]);
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            let serving = async {
                let mut stream = acceptor.accept(theirs).await.unwrap();
                tokio::io::AsyncWriteExt::write_all(&mut stream, b"x").await.unwrap();
                stream
            };
            let (mut client, _served) =
                tokio::join!(async { shake_hands(ours, &config).await.unwrap() }, serving);
            client.receive(1).await;
            assert_eq!(client.stream.get_ref().1.handshake_kind(), Some(expected));
        }
    }
}

#[tokio::test]
async fn a_reload_ends_the_connections_that_it_no_longer_allows_and_no_others() {
    let (pki, other) = (Pki::new(), Pki::new());
    let (alice, bob) = (pki.client("alice"), other.client("bob"));
    let (alice_config, bob_config) = (connector(&pki, &alice), connector(&pki, &bob));
    let both = both_cas(&pki, &other);
    let material = || Material { client_cas: both.clone(), ..pki.material() };
    let serve = |catalogue: Catalogue, material: &Material, access: Access| {
        policy_of(Arc::new(catalogue), TlsMode::Required, material, access)
    };
    let own = |name: &str, rules: &[&str]| {
        let rules = ExportAccess { rules: allow(rules), plaintext: false };
        BTreeMap::from([(name.to_owned(), rules)])
    };
    let before = || serve(catalogue(), &material(), Access::default());
    let mut without_disk = Catalogue::default();
    without_disk.add(export("zstd", "v082-zstd.hxz")).unwrap();
    let revoked = Material { crls: pki.material_without(&[&alice]).crls, ..material() };
    let one_ca = Material { client_cas: other.material().client_cas, ..pki.material() };
    let reloads = [
        ("revoked", serve(catalogue(), &revoked, Access::default())),
        ("another CA", serve(catalogue(), &one_ca, Access::default())),
        ("export removed", serve(without_disk, &material(), Access::default())),
        ("rules", ruled_with(serve(catalogue(), &material(), Access::default()), &["bob"])),
        (
            "rules of the export",
            serve(
                catalogue(),
                &material(),
                Access {
                    rules: allow(&["alice", "bob"]),
                    exports: own("disk", &["bob"]),
                    ..Access::default()
                },
            ),
        ),
    ];
    let zstd = contents("v082-zstd.hxz");
    let server = Server::with(before(), Limits::default()).await;
    for (why, reload) in reloads {
        server.replace(before());
        let mut reads_disk = server.open_tls("disk", &alice_config).await;
        assert_eq!(reads_disk.read(1080, 2).await, [0x53, 0xef]);
        let mut reads_on = server.open_tls("zstd", &bob_config).await;
        // Half a request: the session is in the middle of something.
        let request = crate::support::client::request(0, 0, 7, 4096, 65_536);
        reads_on.send(&request[..11]).await;
        server.replace(reload);
        reads_disk.expect_close_notify().await;
        reads_on.send(&request[11..]).await;
        let expected = zstd[4096..4096 + 65_536].to_vec();
        assert_eq!(reads_on.reply(65_536).await, (0, 7, expected), "{why}");
    }
}

/// Also while it chooses, which it may take some time for.
#[tokio::test]
async fn a_client_that_came_before_a_reload_hears_of_nothing_that_it_took_away() {
    let pki = Pki::new();
    let alice = pki.client("alice");
    let config = connector(&pki, &alice);
    let before = || policy(TlsMode::Required, &pki.material());
    let server = Server::with(before(), Limits::default()).await;
    let mut only_zstd = Catalogue::default();
    only_zstd.add(export("zstd", "v082-zstd.hxz")).unwrap();
    let only_zstd = Arc::new(only_zstd);
    let reloads = [
        ruled(&pki, allow(&["bob"])),
        policy(TlsMode::Required, &pki.material_without(&[&alice])),
        Policy::plaintext(catalogue()),
        policy_of(only_zstd, TlsMode::Required, &pki.material(), Access::default()),
    ];
    for (reload, left) in reloads.into_iter().zip([0, 0, 0, 1]) {
        server.replace(before());
        let mut upgraded = server.upgrade(&config).await;
        assert_eq!(upgraded.option(LIST, b"").await.0.len(), 4);
        let upgrades_later = server.greet().await;
        server.replace(reload);
        let upgrades_later = upgrades_later.start_tls(&config).await.unwrap();
        for mut client in [upgraded, upgrades_later] {
            let (listed, last) = client.option(LIST, b"").await;
            assert_eq!((listed.len(), last), (left, ACK), "{listed:?}");
            for code in [OPT_INFO, GO] {
                let answer = client.option(code, &query("disk", &[0, 1, 2, 3])).await;
                assert_eq!(answer, (vec![], ERR_UNKNOWN));
            }
        }
    }
}

/// Clients on each side of a change between the three modes.
#[tokio::test]
async fn a_change_of_mode_ends_what_it_forbids() {
    let pki = Pki::new();
    let somebody = pki.somebody();
    let open = |mode| {
        let access = ExportAccess { plaintext: true, ..ExportAccess::default() };
        let exports = BTreeMap::from([("zstd".to_owned(), access)]);
        let access = Access { exports, ..Access::default() };
        policy_of(Arc::new(catalogue()), mode, &pki.material(), access)
    };
    let server = Server::with(open(TlsMode::Selective), Limits::default()).await;
    let mut plain = server.open("zstd").await;
    let mut upgraded = server.open_tls("zstd", &somebody).await;
    let mut not_chosen = server.greet().await;
    assert_eq!(not_chosen.option(LIST, b"").await.1, ACK);
    server.replace(open(TlsMode::Required));
    plain.expect_end().await;
    assert_eq!(upgraded.read(0, 512).await.len(), 512);
    // It came when this was allowed, and is told what it may have now.
    let gone = async {
        not_chosen.send_option(GO, &query("zstd", &[])).await;
        not_chosen.request(0, 0, 1, 0, 512).await;
        let mut answer = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut not_chosen.stream, &mut answer);
        let _ = read.await;
        answer
    };
    let answer = timeout(PATIENCE, gone).await.expect("the server does not hang up");
    assert!(answer.len() < 512, "bytes of an export: {answer:?}");

    server.replace(Policy::plaintext(catalogue()));
    upgraded.expect_close_notify().await;
    let mut plain = server.open("disk").await;
    server.replace(open(TlsMode::Selective));
    plain.expect_end().await;
}

const READERS: usize = 32;

/// What the readers have done so far.
#[derive(Debug, Clone)]
struct Load {
    reads: watch::Sender<u64>,
    done: CancellationToken,
}

/// Reads and compares until told to stop. Some keep their connection, others come again and again.
async fn read_on(
    address: SocketAddr,
    config: Arc<ClientConfig>,
    number: usize,
    expected: Arc<Vec<u8>>,
    load: Load,
) {
    const LENGTH: usize = 16 << 10;
    let comes_again = number.is_multiple_of(4);
    let mut client: Option<TlsClient> = None;
    let mut offset = number * 4096;
    while !load.done.is_cancelled() {
        let mut reader = match client.take() {
            Some(client) => client,
            None => {
                let mut client = Client::connect(address).await;
                client.greet(3).await;
                let mut client = client.start_tls(&config).await.unwrap();
                client.go("disk").await;
                client
            }
        };
        let data = reader.read(offset as u64, LENGTH as u32).await;
        assert!(data == expected[offset..offset + LENGTH], "{offset}");
        offset = (offset + 7 * 4096) % (expected.len() - LENGTH);
        load.reads.send_modify(|reads| *reads += 1);
        if comes_again {
            reader.request(0, 2, 0, 0, 0).await;
            reader.expect_close_notify().await;
        } else {
            client = Some(reader);
        }
    }
    if let Some(mut reader) = client {
        reader.request(0, 2, 0, 0, 0).await;
        reader.expect_close_notify().await;
    }
}

impl Load {
    fn start(address: SocketAddr, pki: &Pki) -> (Self, JoinSet<()>) {
        let load = Self { reads: watch::Sender::new(0), done: CancellationToken::new() };
        let expected = Arc::new(contents("v082-ext4.hxz"));
        let config = pki.somebody();
        let mut readers = JoinSet::new();
        for number in 0..READERS {
            let (config, expected) = (Arc::clone(&config), Arc::clone(&expected));
            readers.spawn(read_on(address, config, number, expected, load.clone()));
        }
        (load, readers)
    }

    /// As many reads more as there are readers.
    async fn go_on(&self) {
        let mut reads = self.reads.subscribe();
        let enough = *reads.borrow_and_update() + READERS as u64;
        let gone_on = reads.wait_for(|reads| *reads >= enough);
        timeout(PATIENCE, gone_on).await.expect("nobody reads").unwrap();
    }

    async fn end(self, mut readers: JoinSet<()>) {
        self.done.cancel();
        while let Some(ended) = readers.join_next().await {
            ended.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_notice_nothing_of_a_hundred_new_certificates() {
    let mut pki = Pki::new();
    let server = Server::with_tls(&pki).await;
    let catalogue = Arc::new(catalogue());
    let (load, readers) = Load::start(server.address, &pki);
    let gone = pki.client("somebody who is gone");
    for _ in 0..100 {
        load.go_on().await;
        pki.renew_server();
        let (catalogue, material) = (Arc::clone(&catalogue), pki.material_without(&[&gone]));
        server.replace(policy_of(catalogue, TlsMode::Required, &material, Access::default()));
    }
    load.go_on().await;
    let newest = server.open_tls("disk", &pki.somebody()).await;
    assert_eq!(shown_by_server(&newest), pki.server.certificate);
    load.end(readers).await;
}

fn shown_by_server(client: &TlsClient) -> rustls::pki_types::CertificateDer<'static> {
    client.stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

/// The same with files and signals.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_notice_nothing_of_new_files_and_signals() {
    let (mut pki, files) = (Pki::new(), Files::new());
    let server = served(&pki, &files);
    let (load, readers) = Load::start(address(&server), &pki);
    for signals in 1..=15 {
        load.go_on().await;
        pki.renew_server();
        files.write("srv.pem", &pki.bundle());
        server.reload();
        // Those that come of the look at the files are not counted.
        server.wait_until(|line| is_reload(line, "signal"), signals);
        let mut newest = upgraded(&server, &pki.somebody()).await;
        assert_eq!(shown_by_server(&newest), pki.server.certificate);
        assert_eq!(newest.option(ABORT, b"").await, (vec![], ACK));
        newest.expect_close_notify().await;
    }
    load.go_on().await;
    load.end(readers).await;
    let errors: Vec<Value> =
        server.log().into_iter().filter(|line| line.get("error").is_some()).collect();
    assert_eq!(errors, [] as [Value; 0]);
}

#[tokio::test]
async fn what_cannot_be_loaded_is_logged_and_what_was_in_force_goes_on() {
    let (pki, files) = (Pki::new(), Files::new());
    let server = served(&pki, &files);
    let somebody = pki.somebody();
    let mut reads_on = upgraded(&server, &somebody).await;
    reads_on.go("disk").await;
    let good = [("srv.pem", pki.bundle()), ("hexz-nbd.toml", config(""))];
    let stranger = Pki::new();
    let key_of_another = pki.bundle().replace(&pki.server.key_pem, &stranger.server.key_pem);
    for (file, broken, fragment) in [
        ("srv.pem", "garbage".to_owned(), "srv.pem"),
        ("srv.pem", key_of_another, "none of the"),
        ("srv.pem", String::new(), "srv.pem"),
        ("ca-crl.pem", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n".into(), "crl"),
        ("hexz-nbd.toml", config("exprot = 1"), "exprot"),
        ("hexz-nbd.toml", config("[[export]]\npath = \"disk.hxz\""), "two exports named"),
        ("hexz-nbd.toml", config("default_export = \"nobody\""), "nobody"),
        ("hexz-nbd.toml", config("[allow]\ncn = [\"*\"]"), "rule to allow"),
    ] {
        files.write(file, &broken);
        let failures = |line: &Value| {
            line["message"] == "not reloaded: what was in force stays in force"
                && line["error"].as_str().unwrap().contains(fragment)
        };
        let before = server.log().iter().filter(|line| failures(line)).count();
        server.reload();
        server.wait_until(failures, before + 1);
        assert_eq!(reads_on.read(1080, 2).await, [0x53, 0xef], "{fragment}");
        let mut comes_now = upgraded(&server, &somebody).await;
        comes_now.go("disk").await;
        assert_eq!(comes_now.read(1080, 2).await, [0x53, 0xef], "{fragment}");
        match good.iter().find(|(name, _)| *name == file) {
            Some((_, good)) => drop(files.write(file, good)),
            None => files.remove(file),
        }
    }
    let before = server.log().iter().filter(|line| is_reload(line, "signal")).count();
    server.reload();
    server.wait_until(|line| is_reload(line, "signal"), before + 1);
    assert_eq!(reads_on.read(1080, 2).await, [0x53, 0xef]);
}

#[tokio::test]
async fn changed_files_are_noticed_without_a_signal() {
    let (mut pki, files) = (Pki::new(), Files::new());
    let server = served(&pki, &files);
    let alice = pki.client("alice");
    let alice_config = connector(&pki, &alice);
    let mut alice_reads = upgraded(&server, &alice_config).await;
    alice_reads.go("disk").await;
    let mut bob_reads = upgraded(&server, &pki.somebody()).await;
    bob_reads.go("disk").await;
    // A list that was not there, as `certs revoke` makes it.
    files.write("ca-crl.pem", &pki.crl(&[&alice]));
    alice_reads.expect_close_notify().await;
    server.wait_until(|line| is_reload(line, "changed files"), 1);
    server.wait_until(
        |line| {
            let error = line["error"].as_str().unwrap_or_default();
            error.starts_with("cut off:") && error.contains("has been revoked")
        },
        1,
    );
    let refused = async {
        let mut client = Client::connect(address(&server)).await;
        client.greet(3).await;
        let mut client = client.start_tls(&alice_config).await?;
        tokio::io::AsyncReadExt::read(&mut client.stream, &mut [0]).await
    };
    timeout(PATIENCE, refused).await.expect("the server says nothing").unwrap_err();

    pki.renew_server();
    files.write("srv.pem", &pki.bundle());
    server.wait_until(|line| is_reload(line, "changed files"), 2);
    let newest = upgraded(&server, &pki.somebody()).await;
    assert_eq!(shown_by_server(&newest), pki.server.certificate);
    assert_eq!(bob_reads.read(1080, 2).await, [0x53, 0xef]);
}

#[tokio::test]
async fn a_changed_configuration_adds_and_removes_exports() {
    let (pki, files) = (Pki::new(), Files::new());
    let server = served(&pki, &files);
    let somebody = pki.somebody();
    let mut reads_disk = upgraded(&server, &somebody).await;
    reads_disk.go("disk").await;
    let mut reads_zstd = upgraded(&server, &somebody).await;
    reads_zstd.go("zstd").await;

    let onebyte = fixtures::path("v082-onebyte.hxz");
    let disk = "[[export]]\npath = \"disk.hxz\"\n";
    let missing = "[[export]]\npath = \"missing.hxz\"\n";
    let exports = format!("{disk}[[export]]\nname = \"new\"\npath = {onebyte:?}\n{missing}");
    files.write("hexz-nbd.toml", &exports_only(&exports));
    server.reload();
    reads_zstd.expect_close_notify().await;
    server.wait_until(
        |line| line["error"].as_str().unwrap_or_default().contains("no longer served"),
        1,
    );
    assert_eq!(reads_disk.read(1080, 2).await, [0x53, 0xef]);
    let mut comes_now = upgraded(&server, &somebody).await;
    let (listed, _) = comes_now.option(LIST, b"").await;
    assert_eq!(listed.len(), 2);
    assert_eq!(comes_now.option(GO, &query("zstd", &[])).await, (vec![], ERR_UNKNOWN));
    assert_eq!(comes_now.go("new").await.0, 1);
}

/// A snapshot that is gone is one that cannot be opened anew, and who reads it reads on.
#[tokio::test]
async fn a_snapshot_that_was_deleted_is_served_until_the_configuration_forgets_it() {
    let (pki, files) = (Pki::new(), Files::new());
    let server = served(&pki, &files);
    let somebody = pki.somebody();
    let mut reads_on = upgraded(&server, &somebody).await;
    reads_on.go("zstd").await;
    files.remove("zstd.hxz");
    server.reload();
    server.wait_for("cannot be opened anew: what was open stays", 1);
    let expected = contents("v082-zstd.hxz");
    for (offset, bytes) in expected.chunks(256 << 10).enumerate() {
        let data = reads_on.read((offset * (256 << 10)) as u64, bytes.len() as u32).await;
        assert!(data == bytes, "{offset}");
    }
    files.write("hexz-nbd.toml", &exports_only("[[export]]\npath = \"disk.hxz\"\n"));
    server.reload();
    reads_on.expect_close_notify().await;
}

/// Names that only a key has, in whatever form bytes are printed.
fn traces_of_key(pem: &str) -> Vec<String> {
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    let der = key.secret_der();
    // The numbers that make it secret lie behind the names of the algorithm and the curve.
    assert_eq!(der[34..36], [4, 32], "the length of the number");
    let secret = &der[36..68];
    let spelt = |spell: fn(&u8) -> String, between: &str| {
        secret
            .chunks_exact(8)
            .map(|chunk| chunk.iter().map(spell).collect::<Vec<_>>().join(between))
            .collect::<Vec<_>>()
    };
    let lines = pem.lines().filter(|line| !line.starts_with("-----") && line.len() > 16);
    let mut traces: Vec<String> = lines.map(|line| line[line.len() - 16..].to_owned()).collect();
    assert!(traces.len() >= 2);
    for between in ["", " ", ":", ", "] {
        traces.extend(spelt(|byte| format!("{byte:02x}"), between));
        traces.extend(spelt(|byte| format!("{byte:02X}"), between));
        traces.extend(spelt(u8::to_string, between));
    }
    traces
}

#[tokio::test]
async fn no_log_and_no_error_holds_anything_of_a_private_key() {
    let (mut pki, files) = (Pki::new(), Files::new());
    let mut traces = traces_of_key(&pki.server.key_pem);
    let bundle = files.write("srv.pem", &pki.bundle());
    let disk = fixtures::path("v082-onebyte.hxz");
    let arguments = |cert: &std::path::Path| {
        let flags = ["--log-level", "trace", "--tls-cert"].map(std::ffi::OsString::from);
        flags.into_iter().chain([cert.into(), disk.clone().into()])
    };
    let mut server = Process::start(arguments(&bundle));
    let mut client = upgraded(&server, &pki.somebody()).await;
    client.go("").await;
    client.read(0, 1).await;
    let stranger = Pki::new();
    // Failed handshakes, and keys where they do not belong.
    let _ = Client::connect(address(&server)).await;
    let key_of_another = pki.bundle().replace(&pki.server.key_pem, &stranger.server.key_pem);
    let damaged = pki.bundle().replacen("-----END PRIVATE KEY", "-----END OTHER KEY", 1);
    let cut = pki.bundle().replacen("BEGIN PRIVATE KEY", "BEGIN CERTIFICATE", 1);
    for (failures, broken) in [key_of_another, damaged, cut].iter().enumerate() {
        files.write("srv.pem", broken);
        server.reload();
        server.wait_until(|line| line["level"] == "ERROR" && line["why"] == "signal", failures + 1);
    }
    traces.extend(traces_of_key(&stranger.server.key_pem));
    pki.renew_server();
    traces.extend(traces_of_key(&pki.server.key_pem));
    files.write("srv.pem", &pki.bundle());
    server.reload();
    server.wait_until(|line| is_reload(line, "signal"), 1);
    client.read(0, 1).await;
    assert!(server.terminate().success());
    let mut said = format!("{:?}", server.log());
    // The key for a configuration file, and for a snapshot.
    for wrong in [["--config".as_ref(), bundle.as_os_str()], ["--".as_ref(), bundle.as_os_str()]] {
        let output = std::process::Command::new(crate::support::process::HEXZ_NBD)
            .args(wrong)
            .output()
            .unwrap();
        assert!(!output.status.success());
        said.push_str(std::str::from_utf8(&output.stderr).unwrap());
    }
    assert!(said.contains("hung up without a word") && said.contains("srv.pem"), "{said}");
    for trace in traces {
        assert!(!said.contains(&trace), "{trace} in {said}");
    }
}

/// Two snapshots, over TLS, from a configuration file: `disk` and `zstd`.
fn served(pki: &Pki, files: &Files) -> Process {
    files.write("srv.pem", &pki.bundle());
    files.copy(&fixtures::path("v082-ext4.hxz"), "disk.hxz");
    files.copy(&fixtures::path("v082-zstd.hxz"), "zstd.hxz");
    let path = files.write("hexz-nbd.toml", &config(""));
    Process::start(["--config".as_ref(), path.as_os_str()])
}

/// What [`served`] begins with, and more.
fn config(more: &str) -> String {
    let (keys, tables) = if more.starts_with('[') { ("", more) } else { (more, "") };
    let exports = "[[export]]\npath = \"disk.hxz\"\n[[export]]\npath = \"zstd.hxz\"\n";
    format!("{keys}\n{}{tables}\n", exports_only(exports))
}

fn exports_only(exports: &str) -> String {
    format!("[tls]\ncert = \"srv.pem\"\n{exports}")
}

async fn upgraded(server: &Process, config: &Arc<ClientConfig>) -> TlsClient {
    let mut client = Client::connect(address(server)).await;
    client.greet(3).await;
    client.start_tls(config).await.unwrap()
}

fn address(server: &Process) -> SocketAddr {
    ([127, 0, 0, 1], server.port()).into()
}

fn is_reload(line: &Value, why: &str) -> bool {
    line["message"] == "reloaded" && line["why"] == why
}

fn ruled(pki: &Pki, rules: hexz_nbd::tls::Rules) -> Policy {
    let access = Access { rules, ..Access::default() };
    policy_of(Arc::new(catalogue()), TlsMode::Required, &pki.material(), access)
}

fn ruled_with(policy: Policy, names: &[&str]) -> Policy {
    Policy { access: Access { rules: allow(names), ..Access::default() }, ..policy }
}

fn both_cas(pki: &Pki, other: &Pki) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    [pki.material().client_cas, other.material().client_cas].concat()
}

fn connector(pki: &Pki, shown: &Issued) -> Arc<ClientConfig> {
    pki.connector(shown, &VERSIONS)
}
