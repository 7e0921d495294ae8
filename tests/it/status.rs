//! The status over HTTP: its numbers are those of what clients really did, and it is shown to
//! nobody who should not see it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tokio::time::Instant;

use crate::support::client::{Client as NbdClient, request};
use crate::support::fixtures;
use crate::support::pki::{Maker, Pki, text};
use crate::support::process::{Client, HEXZ_NBD, Process, refused};
use crate::support::watched::Watched;

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const CACHE: u16 = 5;
const EPERM: u32 = 1;
const EINVAL: u32 = 22;

#[tokio::test]
async fn what_clients_asked_for_is_what_the_metrics_say() {
    let damaged = fixtures::path("h-flip-block.hxz");
    let good = fixtures::path("v082-lz4-aux.hxz");
    let watched = Watched::start(&["--cache-size=256MiB", text(&good), text(&damaged)]);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, watched.process.port()));
    watched.wait_for("hexz_nbd_connections{state=\"transmission\"}", 0.0);

    let mut client = NbdClient::connect(address).await;
    client.greet(3).await;
    let (size, _) = client.go("v082-lz4-aux").await;
    // Whoever decodes a block misses it once, however often it is looked for on the way.
    for (offset, length, hits, misses) in
        [(0, 1000, 0.0, 1.0), (0, 1000, 1.0, 1.0), (5, 4096, 2.0, 1.0)]
    {
        client.read(offset, length).await;
        watched.wait_for("hexz_nbd_cache_hits_total", hits);
        watched.wait_for("hexz_nbd_cache_misses_total", misses);
    }
    client.read(70_000, 65_536).await;
    for (command, length, error) in
        [(WRITE, 0, EPERM), (FLUSH, 0, 0), (READ, u32::MAX, EINVAL), (READ, 1, EINVAL)]
    {
        let offset = if command == READ { size } else { 0 };
        client.request(0, command, 7, offset, length).await;
        let (answered, _, _) = client.reply(0).await;
        assert_eq!(answered, error, "command {command}");
    }
    watched.wait_for("hexz_nbd_connections{state=\"transmission\"}", 1.0);
    let mut other = NbdClient::connect(address).await;
    other.greet(3).await;
    watched.wait_for("hexz_nbd_connections{state=\"negotiation\"}", 1.0);
    other.go("h-flip-block").await;
    other.request(0, READ, 8, 232_213, 10).await;
    assert_eq!(other.reply(10).await.0, 5);
    watched.wait_for("hexz_nbd_damaged_blocks_total{export=\"h-flip-block\"}", 1.0);
    other.request(0, CACHE, 9, 232_213, 10).await;
    assert_eq!(other.reply(0).await.0, 5);
    watched.wait_for("hexz_nbd_damaged_blocks_total{export=\"h-flip-block\"}", 2.0);

    let metrics = watched.metrics();
    let number = |name: &str| metrics.get(name).copied().unwrap_or(f64::NAN);
    let requests = |export: &str, kind: &str| {
        number(&format!("hexz_nbd_requests_total{{export=\"{export}\",type=\"{kind}\"}}"))
    };
    assert_eq!(requests("v082-lz4-aux", "read"), 4.0);
    assert_eq!(requests("v082-lz4-aux", "flush"), 1.0);
    assert_eq!(requests("v082-lz4-aux", "refused"), 3.0);
    assert_eq!(requests("v082-lz4-aux", "block_status"), 0.0);
    assert_eq!(requests("h-flip-block", "read"), 1.0);
    assert_eq!(number("hexz_nbd_read_bytes_total{export=\"v082-lz4-aux\"}"), 71_632.0);
    for (code, count) in [("EPERM", 1.0), ("EINVAL", 2.0), ("EIO", 2.0)] {
        assert_eq!(number(&format!("hexz_nbd_error_replies_total{{code=\"{code}\"}}")), count);
    }
    let durations =
        |cache: &str| number(&format!("hexz_nbd_read_duration_seconds_count{{cache=\"{cache}\"}}"));
    assert_eq!(durations("hit") + durations("miss"), 5.0);
    assert!(durations("hit") >= 1.0 && durations("miss") >= 2.0, "{metrics:#?}");
    assert_eq!(number("hexz_nbd_connections_accepted_total"), 2.0);
    assert_eq!(number("hexz_nbd_exports{state=\"served\"}"), 3.0);
    assert!(number("hexz_nbd_cache_bytes") > 65_536.0);
    assert_eq!(number("hexz_nbd_cache_capacity_bytes"), 268_435_456.0);
    assert!(number("hexz_nbd_cache_hits_total") > 0.0);
    assert_eq!(number("hexz_nbd_reloads_total{outcome=\"failure\"}"), 0.0);
    // What comes with what ends the connection is counted too.
    let mut last = NbdClient::connect(address).await;
    last.greet(3).await;
    last.go("v082-lz4-aux").await;
    let reads = (0..20).flat_map(|cookie| request(0, READ, cookie, 0, 1)).collect::<Vec<_>>();
    last.send(&[&reads[..], &[0x5a; 28]].concat()).await;
    watched.wait_for("hexz_nbd_requests_total{export=\"v082-lz4-aux\",type=\"read\"}", 24.0);
    drop((client, other, last));
    watched.wait_for("hexz_nbd_connections{state=\"transmission\"}", 0.0);
}

#[test]
fn a_whole_copy_is_counted_to_the_byte_and_an_example_names_its_connection() {
    let watched = Watched::start(&[text(&fixtures::path("v082-dcam.hxz"))]);
    let copy = tempfile::NamedTempFile::new().unwrap();
    let options = ["--connections=1", "--no-extents"];
    let uri = watched.process.uri("v082-dcam");
    Client::new("nbdcopy").args(options).arg(uri).arg(copy.path()).run().succeeded();
    let bytes = std::fs::metadata(copy.path()).unwrap().len();
    watched.wait_for("hexz_nbd_read_bytes_total{export=\"v082-dcam\"}", bytes as f64);
    let (_, _, body) = watched.get("/metrics");
    let example = body.lines().find_map(|line| {
        line.split_once(" # {connection=\"")?.1.split_once('"').map(|(id, _)| id.to_owned())
    });
    let example = example.unwrap_or_else(|| panic!("no example in {body}"));
    let has_id = |line: &Value| line["message"] == "closed" && line["span"]["id"] == *example;
    watched.process.wait_until(has_id, 1);
}

#[test]
fn handshakes_and_expiries_are_told_and_nobodys_name() {
    let pki = Pki::new(Maker::OpensslEcdsa);
    let alice = pki.good("alice");
    let watched = Watched::start(&[
        "--tls-cert",
        text(&pki.path("srv.pem")),
        text(&fixtures::path("v082-onebyte.hxz")),
    ]);
    let port = watched.process.port();
    let good = alice.uri(port, "v082-onebyte");
    Client::new("nbdinfo").args(["--size", &good]).run().succeeded();
    let revoked = pki.of_another_ca("mallory").uri(port, "v082-onebyte");
    Client::new("nbdinfo").args(["--size", &revoked]).run().failed();
    watched.wait_for("hexz_nbd_handshakes_total{outcome=\"failure\",reason=\"unknown_ca\"}", 1.0);
    let metrics = watched.metrics();
    assert!(metrics["hexz_nbd_handshakes_total{outcome=\"success\",reason=\"\"}"] >= 1.0);
    let expiry = |role: &str| {
        let prefix = format!("hexz_nbd_certificate_expiry_timestamp_seconds{{role=\"{role}\"");
        metrics.iter().find(|(name, _)| name.starts_with(&prefix)).map(|(_, value)| *value)
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    for role in ["server", "client_ca"] {
        assert!(expiry(role).unwrap() > now.as_secs_f64(), "{role}: {metrics:#?}");
    }
    let (_, _, metrics) = watched.get("/metrics");
    assert!(!metrics.contains("alice") && !metrics.contains("mallory"), "{metrics}");
    assert!(!metrics.contains("hexz_nbd_identity_reads_total{"), "{metrics}");
}

#[test]
fn reads_are_counted_by_identity_if_that_is_asked_for() {
    let pki = Pki::new(Maker::OpensslEcdsa);
    let (bundle, file) = (pki.path("srv.pem"), fixtures::path("v082-onebyte.hxz"));
    let arguments = ["--metrics-identities", "--tls-cert", text(&bundle), text(&file)];
    let watched = Watched::start(&arguments);
    for name in ["alice", "bob"] {
        let uri = pki.good(name).uri(watched.process.port(), "v082-onebyte");
        let copy = tempfile::NamedTempFile::new().unwrap();
        let options = ["--connections=1", "--no-extents"];
        Client::new("nbdcopy").args(options).arg(uri).arg(copy.path()).run().succeeded();
    }
    for (metric, value) in [("reads", 1.0), ("read_bytes", 1.0)] {
        for name in ["alice", "bob"] {
            let labels = format!("export=\"v082-onebyte\",identity=\"CN=\\\"{name}\\\"\"");
            watched.wait_for(&format!("hexz_nbd_identity_{metric}_total{{{labels}}}"), value);
        }
    }
    for alone in ["--metrics-identities", "--status-allow-cn=x", "--status-host=x"] {
        let (code, line) = refused(&[alone, text(&file)]);
        assert_eq!((code, line.contains("give --status-listen too")), (2, true), "{line}");
    }
}

#[tokio::test]
async fn who_is_here_and_who_was_refused_is_shown_and_the_last_minutes_are_remembered() {
    let pki = Pki::new(Maker::OpensslEcdsa);
    let alice = pki.good("alice");
    let watched = Watched::start(&[
        "--tls=on",
        "--tls-cert",
        text(&pki.path("srv.pem")),
        &format!("disk={},plaintext", text(&fixtures::path("v082-lz4-aux.hxz"))),
    ]);
    let port = watched.process.port();
    // Older ones do not let `-u` name files.
    let python = format!(
        "h.set_uri_allow_local_file(True); h.connect_uri({:?}); h.pread(4096, 0); \
         import time; time.sleep(600)",
        alice.uri(port, "disk")
    );
    let shell = Client::new("nbdsh").args(["-c", &python]).start();
    watched.wait_for("hexz_nbd_read_bytes_total{export=\"disk\"}", 4096.0);
    let mut plain = NbdClient::connect((Ipv4Addr::LOCALHOST, port).into()).await;
    plain.greet(3).await;
    watched.wait_for("hexz_nbd_connections{state=\"negotiation\"}", 1.0);
    // As it stands in a URI.
    let uri = alice.uri(port, "%3Cnil%3E%1B");
    Client::new("nbdinfo").arg(uri).run().failed();
    watched.wait_for("hexz_nbd_connections_refused_total{reason=\"no_such_export\"}", 1.0);

    let status = watched.json("/status.json");
    let clients = status["clients"].as_array().unwrap();
    assert_eq!(clients.len(), 2, "{status:#}");
    let [of_alice, of_plain] = &clients[..] else { panic!("{status:#}") };
    assert_eq!(of_alice["identity"], "CN=\"alice\"");
    assert_eq!(of_alice["fingerprint"].as_str().unwrap().len(), 64);
    assert_eq!(of_alice["tls"]["version"], "TLSv1_3");
    assert_eq!((&of_alice["state"], &of_alice["export"]), (&"transmission".into(), &"disk".into()));
    assert_eq!((&of_alice["reads"], &of_alice["read_bytes"]), (&1.into(), &4096.into()));
    assert_eq!((&of_plain["state"], &of_plain["tls"]), (&"negotiation".into(), &Value::Null));
    assert_eq!(of_plain["identity"], Value::Null);
    let now = status["now_unix_seconds"].as_f64().unwrap();
    let since = of_alice["since_unix_seconds"].as_f64().unwrap();
    assert!(status["started_unix_seconds"].as_f64().unwrap() <= since && since <= now);
    let refusal = &status["refusals"][0];
    assert_eq!(
        refusal["reason"], "there is no export of that name: \"<nil>\\u{1b}\"",
        "{status:#}"
    );
    assert_eq!(refusal["identity"], "CN=\"alice\"");
    let export = &status["exports"][0];
    assert_eq!((&export["connections"], &export["requests"]), (&1.into(), &1.into()), "{export}");
    assert_eq!((&export["read_bytes"], &export["damaged_blocks"]), (&4096.into(), &0.into()));
    assert_eq!(watched.json("/history.json")["interval_seconds"], 2);
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let history = watched.json("/history.json");
        let rates = history["read_bytes_per_second"].as_array().unwrap();
        let of = |name: &str| history[name].as_array().unwrap().len();
        assert!(of("reads_per_second") == rates.len() && of("latency_p99_seconds") == rates.len());
        let bytes: f64 = rates.iter().map(|rate| rate.as_f64().unwrap() * 2.0).sum();
        // A sample may be a little longer than the others.
        if bytes > 3000.0 && bytes < 5000.0 {
            let latencies = history["latency_p50_seconds"].as_array().unwrap();
            assert!(latencies.iter().any(|one| one.as_f64().is_some_and(|one| one > 0.0)));
            break;
        }
        assert!(Instant::now() < end, "{history:#}");
        std::thread::sleep(Duration::from_millis(200));
    }

    drop((shell, plain));
    watched.wait_for("hexz_nbd_connections{state=\"transmission\"}", 0.0);
    watched.wait_for("hexz_nbd_connections{state=\"negotiation\"}", 0.0);
    assert_eq!(watched.json("/status.json")["clients"], serde_json::json!([]));
}

#[test]
fn reloads_broken_exports_and_readiness_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let watched = Watched::start(&[text(directory.path())]);
    assert_eq!(watched.get("/healthz").0, 200);
    let (code, _, body) = watched.get("/readyz");
    assert_eq!((code, body.contains("no export")), (503, true), "{body}");
    std::fs::write(path("bad.hxz"), "nothing").unwrap();
    watched.wait_for("hexz_nbd_exports{state=\"broken\"}", 1.0);
    assert_eq!(watched.get("/readyz").0, 503, "what is broken is no reason to come");
    std::fs::copy(fixtures::path("v082-onebyte.hxz"), path("new")).unwrap();
    std::fs::rename(path("new"), path("good.hxz")).unwrap();
    watched.wait_for("hexz_nbd_exports{state=\"served\"}", 1.0);
    watched.wait_for("hexz_nbd_exports{state=\"broken\"}", 1.0);
    assert!(watched.metrics()["hexz_nbd_reloads_total{outcome=\"success\"}"] >= 1.0);
    assert_eq!(watched.get("/readyz").0, 200);
    let status = watched.json("/status.json");
    assert_eq!(status["exports"][0]["name"], "good");
    assert_eq!(status["exports"][0]["size_bytes"], 1);
    assert_eq!(status["broken_exports"], serde_json::json!(["bad"]));
    assert_eq!((&status["ready"], &status["draining"]), (&true.into(), &false.into()));

    // What is gone is told no more.
    let is_told = || watched.get("/metrics").2.contains("{export=\"good\"");
    assert!(is_told());
    std::fs::rename(path("good.hxz"), path("other.hxz")).unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while is_told() {
        assert!(Instant::now() < end, "{}", watched.get("/metrics").2);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[tokio::test]
async fn a_server_that_drains_is_alive_and_not_ready() {
    let mut watched =
        Watched::start(&["--drain-timeout", "1min", text(&fixtures::path("v082-lz4-default.hxz"))]);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, watched.process.port()));
    let mut client = NbdClient::connect(address).await;
    client.greet(3).await;
    client.go("v082-lz4-default").await;
    // More than the sockets hold, and not taken.
    for cookie in 0..8 {
        client.request(0, READ, cookie, 0, 3_000_000).await;
    }
    let accepted = "hexz_nbd_requests_total{export=\"v082-lz4-default\",type=\"read\"}";
    // Long reads are taken up one after another.
    watched.wait_until(accepted, |reads| reads >= 1.0);
    watched.process.signal(Signal::TERM);
    // The line after which it is so, and not that of the signal.
    watched.process.wait_for("stopping", 1);
    let (code, _, body) = watched.get("/readyz");
    assert_eq!((code, body.contains("stopping")), (503, true), "{body}");
    assert_eq!(watched.get("/healthz").0, 200);
    watched.process.reload();
    let mut errors = Vec::new();
    for cookie in 0..8 {
        let (error, answered, _) = client.reply(3_000_000).await;
        assert_eq!(answered, cookie);
        errors.push(error);
    }
    // Whatever was accepted is answered, and the others are told.
    let refused = errors.iter().position(|error| *error != 0).unwrap_or(errors.len());
    assert!(refused >= 1 && errors[refused..].iter().all(|error| *error == 108), "{errors:?}");
    drop(client);
    assert!(watched.process.ended().success());
    let log = watched.process.log();
    assert!(!log.iter().any(|line| line["message"] == "reloaded"), "for nobody: {log:#?}");
}

#[test]
fn nothing_is_for_other_pages_and_nobody_waits_for_long() {
    let watched = Watched::start(&[text(&fixtures::path("v082-onebyte.hxz"))]);
    for path in ["/metrics", "/healthz", "/readyz", "/status.json", "/history.json", "/nothing"] {
        let (code, head, _) = watched.get(path);
        assert_eq!(code, if path == "/nothing" { 404 } else { 200 }, "{path}");
        for header in [
            "cache-control: no-store",
            "content-security-policy: default-src 'none'",
            "x-content-type-options: nosniff",
            "x-frame-options: deny",
        ] {
            assert!(head.contains(header), "{path}: {head}");
        }
        assert!(!head.contains("access-control"), "{head}");
    }
    // A stranger's page whose name now resolves to this host.
    let rebound = watched.say(
        b"GET /status.json HTTP/1.1\r\nHost: attacker.example:9809\r\nConnection: close\r\n\r\n",
    );
    assert!(rebound.starts_with("HTTP/1.1 421 ") && !rebound.contains("v082"), "{rebound}");
    assert!(
        watched
            .say(b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .contains(" 405 ")
    );
    let huge = format!("GET /{} HTTP/1.1\r\n", "x".repeat(1 << 20));
    let answer = {
        let mut stream = TcpStream::connect(watched.address).unwrap();
        let _ = stream.write_all(huge.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(!answer.contains(" 200 "), "{answer}");
}

#[test]
fn whoever_keeps_the_status_busy_keeps_nobody_from_asking_whether_the_server_is_alive() {
    let watched = Watched::start(&[text(&fixtures::path("v082-onebyte.hxz"))]);
    // Those who say nothing, and those who ask for much and take nothing.
    let mut busy: Vec<TcpStream> = Vec::new();
    let ask = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    for number in 0..300 {
        let mut stream = TcpStream::connect(watched.address).unwrap();
        if number % 2 == 0 {
            stream.write_all(&ask).unwrap();
        }
        busy.push(stream);
    }
    assert_eq!(watched.get("/healthz").0, 200);
    // One connection, one request.
    let answers = watched.say(&b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(3));
    assert_eq!(answers.matches("200 OK").count(), 1, "{answers}");
    for stream in &mut busy {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut rest = Vec::new();
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "nobody stays");
        }
    }
}

#[test]
fn the_rules_say_whose_certificate_shows_the_status() {
    let pki = Pki::new(Maker::OpensslEcdsa);
    let [alice, bob, monitor] =
        ["alice", "bob", "monitor"].map(|name| text(&pki.good(name).bundle).to_owned());
    let (bundle, file) = (pki.path("srv.pem"), fixtures::path("v082-onebyte.hxz"));
    let with_tls = ["--tls-cert", text(&bundle), "--status-listen", "0.0.0.0:0", text(&file)];
    let code = |server: &Process, holder: &str, path: &str| {
        let url = format!("https://127.0.0.1:{}{path}", status_port(server));
        let output = Client::new("curl")
            .args(["--silent", "--insecure", "--cert", holder, "--write-out", "%{http_code}"])
            .args(["--output", "/dev/null", &url])
            .run();
        output.succeeded().text().parse::<u16>().unwrap()
    };
    let secrets = ["/", "/metrics", "/status.json", "/history.json"];
    let health = ["/healthz", "/readyz"];
    let config = pki.write("status.toml", "status_listen = '127.0.0.1:0'");
    let plain = Process::start(["--config", text(&config), "--status-allow-cn=x", text(&file)]);
    plain.wait_until(
        |line| line["level"] == "WARN" && line["message"].to_string().contains("plain HTTP"),
        1,
    );
    for (rules, may_see) in [
        (&[][..], &[&alice, &bob, &monitor][..]),
        // Whoever may not read is not told what there is.
        (&["--allow-cn=alice"], &[]),
        (&["--allow-cn=alice", "--status-allow-cn=monitor"], &[&monitor]),
        (&["--status-allow-cn=monitor"], &[&monitor]),
    ] {
        let server = Process::start(with_tls.iter().chain(rules));
        for holder in [&alice, &bob, &monitor] {
            let expected = if may_see.contains(&holder) { 200 } else { 403 };
            for path in secrets {
                assert_eq!(code(&server, holder, path), expected, "{rules:?} {holder} {path}");
            }
            assert!(health.iter().all(|path| code(&server, holder, path) == 200));
        }
    }
}

#[test]
fn what_other_hosts_can_reach_needs_certificates_or_to_be_said_aloud() {
    let file = fixtures::path("v082-onebyte.hxz");
    let listen = ["--listen", "127.0.0.1:0", "--status-listen", "0.0.0.0:0"];
    let (code, line) = refused(&[&listen[..], &[text(&file)]].concat());
    assert_eq!(code, 2, "{line}");
    assert!(line.contains("refusing to show the status on 0.0.0.0:0"), "{line}");
    let (code, line) = refused(&["--status-listen", "nowhere", text(&file)]);
    assert_eq!((code, line.contains("--status-listen nowhere")), (2, true), "{line}");

    let pki = Pki::new(Maker::OpensslEcdsa);
    let certificate = pki.path("srv.pem");
    let with_tls = ["--tls-cert", text(&certificate), "--status-listen", "0.0.0.0:0", text(&file)];
    let server = Process::start(with_tls);
    let port = status_port(&server);
    let ask = |holder: Option<&str>| {
        let connect = format!("127.0.0.1:{port}");
        let mut arguments = vec!["s_client", "-quiet", "-connect", &connect];
        if let Some(file) = holder {
            arguments.extend(["-cert", file, "-key", file]);
        }
        let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let output = Client::new("openssl").args(arguments).input(request).run();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let alice = pki.good("alice");
    let alice = alice.bundle.display().to_string();
    assert!(ask(Some(&alice)).contains("200 OK"));
    assert!(!ask(None).contains("200"));
    let mallory = pki.of_another_ca("mallory").bundle.display().to_string();
    assert!(!ask(Some(&mallory)).contains("200"));
    // In plaintext there is nothing at all.
    let mut plain = TcpStream::connect(("127.0.0.1", port)).unwrap();
    plain.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("hexz_nbd"));

    // Said aloud, which is a warning.
    let aloud = [&with_tls[..4], &["--insecure-allow-plaintext", text(&file)]].concat();
    let aloud = [&aloud[..], &["--status-host", "gateway.example.com"]].concat();
    let server = Process::start(aloud);
    for (host, code) in [("attacker.example", 421), ("gateway.example.com", 200)] {
        let mut plain = TcpStream::connect(("127.0.0.1", status_port(&server))).unwrap();
        let request = format!("GET /status.json HTTP/1.1\r\nHost: {host}\r\n\r\n");
        plain.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        plain.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{host}: {answer}");
    }
    let mut plain = TcpStream::connect(("127.0.0.1", status_port(&server))).unwrap();
    plain.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("200 OK"), "{answer}");
    let warned =
        |line: &Value| line["message"].to_string().contains("the status is shown without TLS");
    server.wait_until(warned, 1);
}

fn status_port(server: &Process) -> u16 {
    let port = server.log().iter().find_map(|line| {
        let address = line["address"].as_str()?;
        (line["message"] == "showing the status")
            .then(|| address.rsplit_once(':').unwrap().1.parse().unwrap())
    });
    port.unwrap()
}

/// What systemd hears with `Type=notify-reload` and a watchdog.
#[test]
fn a_service_manager_is_told_of_the_start_of_reloads_of_life_and_of_the_stop() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = Command::new(HEXZ_NBD);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let file = fixtures::path("v082-onebyte.hxz");
    let mut server = Process::start_from(command, [&file]);
    let wait_for = |wanted: &[&str]| {
        let mut buffer = [0; 4096];
        loop {
            let length = socket.recv(&mut buffer).unwrap();
            let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if wanted.iter().all(|part| said.contains(part)) {
                return;
            }
            let is_life = said.contains("WATCHDOG=1");
            assert!(is_life || !said.contains("STOPPING"), "{wanted:?}: {said}");
        }
    };
    wait_for(&["READY=1", "STATUS=serving 1 exports"]);
    wait_for(&["WATCHDOG=1"]);
    server.reload();
    wait_for(&["RELOADING=1", "MONOTONIC_USEC="]);
    wait_for(&["READY=1"]);
    wait_for(&["WATCHDOG=1"]);
    server.signal(Signal::TERM);
    wait_for(&["STOPPING=1"]);
    assert!(server.ended().success());
}
