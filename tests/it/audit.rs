//! The audit log: everything about every client in the form of docs/audit.md, nothing lost in
//! silence, and nobody kept from being served because of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use socket2::SockRef;

use crate::support::audit::{AuditFile, lines_of};
use crate::support::client::{Client as NbdClient, query};
use crate::support::fixtures;
use crate::support::pki::{Maker, Pki, text};
use crate::support::process::{Client, Process, refused};
use crate::support::watched::Watched;

const FILE: &str = "v082-lz4-default.hxz";
const EXPORT: &str = "v082-lz4-default";

fn copy(uri: &str) -> Option<u64> {
    let copy = tempfile::NamedTempFile::new().unwrap();
    let options = ["--connections=1", "--no-extents"];
    let output = Client::new("nbdcopy").args(options).arg(uri).arg(copy.path()).run();
    output.status.success().then(|| copy.as_file().metadata().unwrap().len())
}

fn of_event<'a>(lines: &'a [Value], event: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == event).collect()
}

/// The names of the fields that docs/audit.md describes, those of objects with a dot.
fn documented() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/audit.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, _)| name.to_owned()).collect()
}

fn fields(value: &Value, prefix: &str, into: &mut BTreeSet<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        fields(value, &format!("{prefix}{name}."), into);
        if !value.is_object() {
            into.insert(format!("{prefix}{name}"));
        }
    }
}

#[test]
fn who_came_what_they_were_given_and_what_they_were_refused_stands_in_the_log() {
    let (pki, audit) = (Pki::new(Maker::OpensslEcdsa), AuditFile::new());
    let alice = pki.named("alice", "/OU=ops/CN=alice", "client");
    let (bob, mallory) = (pki.good("bob"), pki.of_another_ca("mallory"));
    let (bundle, file) = (pki.path("srv.pem"), fixtures::path(FILE));
    let arguments =
        ["--allow-cn=alice", "--tls-cert", text(&bundle), text(&file)].map(str::to_owned);
    let mut server = Process::start(audit.argument().iter().chain(&arguments));
    let port = server.port();
    let bytes = copy(&alice.uri(port, EXPORT)).unwrap();
    for stranger in [bob.uri(port, EXPORT), mallory.uri(port, EXPORT), server.uri(EXPORT)] {
        assert_eq!(copy(&stranger), None);
    }
    assert_eq!(copy(&alice.uri(port, "n%0ail")), None);
    assert!(server.terminate().success());

    let lines = audit.lines();
    let (first, last) = (&lines[0], &lines[lines.len() - 1]);
    assert_eq!((&first["event"], &first["pid"]), (&"start".into(), &server.id().into()));
    assert_eq!(first["version"], env!("CARGO_PKG_VERSION"));
    assert!(lines.iter().all(|line| line["pid"] == first["pid"]));
    assert_eq!(last["event"], "stop");
    for line in &lines {
        assert_eq!(line["schema"], 1);
        assert!(line["time"].as_str().unwrap().starts_with("20"), "{line}");
    }

    let opened = of_event(&lines, "open");
    assert!(!opened.is_empty(), "{lines:#?}");
    for opened in &opened {
        assert_eq!(opened["identity"]["common_name"], "alice", "{opened}");
        assert_eq!(opened["identity"]["organizational_units"], serde_json::json!(["ops"]));
        assert_eq!(
            (&opened["export"], &opened["tls"]["version"]),
            (&EXPORT.into(), &"TLSv1_3".into())
        );
    }
    let certificate = alice.directory.join("client-cert.pem");
    let options = ["x509", "-noout", "-fingerprint", "-sha256", "-in", text(&certificate)];
    let output = Client::new("openssl").args(options).run().succeeded();
    let fingerprint = output.text().trim().rsplit('=').next().unwrap().replace(':', "");
    assert_eq!(opened[0]["identity"]["fingerprint"], fingerprint.to_lowercase());

    let gone = of_event(&lines, "disconnect");
    let read: u64 = gone.iter().map(|line| line["read_bytes"].as_u64().unwrap()).sum();
    assert_eq!(read, bytes);
    let came = of_event(&lines, "connect");
    assert_eq!(came.len(), gone.len(), "{lines:#?}");
    assert!(gone.iter().all(|line| line["seconds"].as_f64().unwrap() > 0.0));

    let refusals: BTreeMap<&str, &Value> = of_event(&lines, "refuse")
        .into_iter()
        .map(|line| (line["reason"].as_str().unwrap(), line))
        .collect();
    let reasons: Vec<&str> = refusals.keys().copied().collect();
    assert_eq!(reasons, ["no_such_export", "not_allowed", "tls_handshake", "tls_required"]);
    assert_eq!(refusals["not_allowed"]["identity"]["common_name"], "bob");
    assert_eq!(refusals["not_allowed"]["export"], EXPORT);
    assert_eq!(refusals["no_such_export"]["export"], "n\nil");
    assert!(refusals["tls_handshake"]["detail"].as_str().unwrap().contains("no client CA"));
    assert_eq!(refusals["tls_required"]["identity"], Value::Null);

    // However many ways a client asks in.
    let mut asked: Vec<String> = of_event(&lines, "refuse")
        .iter()
        .map(|line| format!("{} {} {}", line["connection"], line["export"], line["reason"]))
        .collect();
    let all = asked.len();
    asked.dedup();
    assert_eq!(asked.len(), all, "{asked:#?}");

    // The same names as in the log.
    let of_alice = server.log().into_iter().find(|line| line["message"] == "opened").unwrap();
    assert_eq!(of_alice["span"]["id"], opened[0]["connection"], "{of_alice}");
    let mut seen = BTreeSet::new();
    lines.iter().for_each(|line| fields(line, "", &mut seen));
    let documented = documented();
    let undocumented: Vec<_> = seen.difference(&documented).collect();
    assert!(undocumented.is_empty(), "docs/audit.md lacks {undocumented:?}");
    assert!(seen.len() >= 20, "{seen:?}");
}

#[test]
fn whoever_rotates_the_log_loses_no_line() {
    let audit = AuditFile::new();
    let file = fixtures::path("v082-onebyte.hxz");
    let mut server =
        Process::start(audit.argument().iter().map(String::as_str).chain([text(&file)]));
    let uri = server.uri("v082-onebyte");
    assert_eq!(copy(&uri), Some(1));
    audit.wait_until(|line| line["event"] == "disconnect", 1);
    let rotated = audit.path.with_extension("1");
    std::fs::rename(&audit.path, &rotated).unwrap();
    // Until the signal, it goes on in the old file.
    assert_eq!(copy(&uri), Some(1));
    server.reload();
    server.wait_until(|line| line["message"] == "reloaded" && line["why"] == "signal", 1);
    assert_eq!(copy(&uri), Some(1));
    assert!(server.terminate().success());
    let (old, new) = (lines_of(&rotated), audit.lines());
    assert_eq!(new.last().unwrap()["event"], "stop", "{new:#?}");
    let all = [old, new].concat();
    for event in ["connect", "open", "disconnect"] {
        assert_eq!(of_event(&all, event).len(), 3, "{event}: {all:#?}");
    }
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&audit.path.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777 & !0o640, 0, "{mode:o}");
}

#[test]
fn a_full_disk_keeps_nobody_from_being_served_and_is_told() {
    let audit = AuditFile::new();
    std::os::unix::fs::symlink("/dev/full", &audit.path).unwrap();
    let file = fixtures::path("v082-onebyte.hxz");
    let [flag, path] = audit.argument();
    let mut watched = Watched::start(&[&flag, &path, text(&file)]);
    for _ in 0..3 {
        assert_eq!(copy(&watched.process.uri("v082-onebyte")), Some(1));
    }
    // The start, and three lines of each client.
    watched.wait_for("hexz_nbd_audit_errors_total", 10.0);
    let is_told = |line: &Value| {
        line["message"] == "lines of the audit log are lost"
            && line["level"] == "ERROR"
            && line["why"].to_string().contains("No space left on device")
    };
    watched.process.wait_until(is_told, 1);
    let told = watched.process.log().iter().filter(|line| is_told(line)).count();
    assert!(told < 10, "as often as lines are lost");
    assert_eq!(watched.get("/readyz").0, 200);

    // There is room again.
    std::fs::remove_file(&audit.path).unwrap();
    watched.process.reload();
    watched.process.wait_until(|line| line["why"] == "signal", 1);
    assert_eq!(copy(&watched.process.uri("v082-onebyte")), Some(1));
    assert!(watched.process.terminate().success());
    let lines = audit.lines();
    assert_eq!(
        (&lines[0]["event"], &lines[0]["lines"]),
        (&"lost".into(), &10.into()),
        "{lines:#?}"
    );
    assert!(lines[0]["reason"].to_string().contains("No space left"), "{lines:#?}");
    assert_eq!(of_event(&lines, "disconnect").len(), 1, "{lines:#?}");
}

#[test]
fn standard_output_has_the_lines_and_nothing_else() {
    let file = fixtures::path("v082-onebyte.hxz");
    let mut server = Process::start(["--audit-log", "-", text(&file)]);
    assert_eq!(copy(&server.uri("v082-onebyte")), Some(1));
    server.reload();
    server.wait_until(|line| line["why"] == "signal", 1);
    assert!(server.terminate().success());
    let events: Vec<String> = server
        .stdout()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].to_string())
        .collect();
    let expected = ["start", "connect", "open", "disconnect", "stop"].map(|e| format!("\"{e}\""));
    assert_eq!(events, expected);
}

#[test]
fn a_log_that_cannot_be_written_to_is_an_error_at_the_start() {
    let file = fixtures::path("v082-onebyte.hxz");
    let (code, line) = refused(&["--audit-log", "/proc/nowhere/audit.json", text(&file)]);
    assert_eq!(code, 1, "{line}");
    assert!(line.contains("cannot append to the audit log \"/proc/nowhere/audit.json\""), "{line}");
    assert!(line.contains("No such file"), "{line}");

    // Who does not get its socket has not begun.
    let audit = AuditFile::new();
    let [flag, path] = audit.argument();
    let running = Process::start([text(&file)]);
    let taken = format!("127.0.0.1:{}", running.port());
    let (_, line) = refused(&[&flag, &path, "--listen", &taken, text(&file)]);
    assert!(line.contains("cannot listen"), "{line}");
    assert!(audit.lines().is_empty(), "{:#?}", audit.lines());
}

#[tokio::test]
async fn whoever_is_cut_off_by_a_second_signal_has_a_line_before_the_last() {
    let audit = AuditFile::new();
    let arguments = audit.argument();
    let [flag, path] = &arguments;
    let mut watched =
        Watched::start(&[flag, path, "--drain-timeout=1h", text(&fixtures::path(FILE))]);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, watched.process.port()));
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = NbdClient::connect(address).await;
        client.greet(3).await;
        client.go(EXPORT).await;
        // More than the sockets hold, and not taken.
        for cookie in 0..8 {
            client.request(0, 0, cookie, 0, 3_000_000).await;
        }
        clients.push(client);
    }
    let accepted = format!("hexz_nbd_requests_total{{export=\"{EXPORT}\",type=\"read\"}}");
    watched.wait_until(&accepted, |reads| reads >= 20.0);
    watched.process.signal(rustix::process::Signal::TERM);
    watched.process.wait_for("stopping: clients get what they asked for", 1);
    watched.process.signal(rustix::process::Signal::TERM);
    assert!(!watched.process.ended().success());
    let lines = audit.lines();
    assert_eq!(of_event(&lines, "disconnect").len(), 20, "{lines:#?}");
    assert_eq!(lines.last().unwrap()["event"], "stop", "{lines:#?}");
}

#[tokio::test]
async fn whoever_asks_without_tls_and_resets_the_connection_is_recorded_as_refused() {
    let (pki, audit) = (Pki::new(Maker::OpensslEcdsa), AuditFile::new());
    let (bundle, file) = (pki.path("srv.pem"), fixtures::path("v082-onebyte.hxz"));
    let arguments = ["--tls-cert", text(&bundle), text(&file)].map(str::to_owned);
    let server = Process::start(audit.argument().iter().chain(&arguments));
    let mut client = NbdClient::connect((Ipv4Addr::LOCALHOST, server.port()).into()).await;
    SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    client.greet(3).await;
    client.send_option(7, &query("v082-onebyte", &[])).await;
    client.option_reply(7).await;
    drop(client);
    audit.wait_until(|line| line["event"] == "disconnect", 1);
    let lines = audit.lines();
    let refused = of_event(&lines, "refuse");
    assert_eq!((refused.len(), &refused[0]["reason"]), (1, &"tls_required".into()), "{lines:#?}");
}

/// Those of a connection by its name.
fn lines_at_info(server: &Process) -> BTreeMap<String, Vec<String>> {
    let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in server.log() {
        if let Some(id) = line["span"]["id"].as_str() {
            assert_eq!(line["level"], "INFO", "{line}");
            let message = line["message"].as_str().unwrap().to_owned();
            lines.entry(id.to_owned()).or_default().push(message);
        }
    }
    lines
}

#[tokio::test]
async fn at_info_a_connection_has_two_lines_at_most_whatever_it_does() {
    let (pki, audit) = (Pki::new(Maker::OpensslEcdsa), AuditFile::new());
    let alice = pki.good("alice");
    let (bundle, file) = (pki.path("srv.pem"), fixtures::path("v082-onebyte.hxz"));
    let disk = format!("disk={},plaintext", text(&file));
    let arguments = ["--tls=on", "--tls-cert", text(&bundle), &disk].map(str::to_owned);
    let server = Process::start(audit.argument().iter().chain(&arguments));
    let (port, address) = (server.port(), SocketAddr::from((Ipv4Addr::LOCALHOST, server.port())));
    assert_eq!(copy(&alice.uri(port, "disk")), Some(1));
    Client::new("nbdinfo").args(["--list", &server.uri("")]).run().succeeded();
    assert_eq!(copy(&pki.of_another_ca("mallory").uri(port, "disk")), None);
    // Refused many times, and then let in.
    let mut curious = NbdClient::connect(address).await;
    curious.greet(3).await;
    for number in 0..30 {
        curious.send_option(7, &query(&format!("nil{number}"), &[])).await;
        curious.option_reply(7).await;
    }
    curious.go("disk").await;
    drop(curious);
    // Who says nothing is worth none, whether it reads the greeting or resets the connection.
    let mut silent = NbdClient::connect(address).await;
    silent.receive(18).await;
    drop(silent);
    let silent = NbdClient::connect(address).await;
    SockRef::from(&silent.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(silent);
    audit.wait_until(|line| line["ending"] == "the client hung up without a word", 2);

    // The log comes a little later.
    server.wait_for("opened", 2);
    server.wait_for("closed", 3);
    let lines = lines_at_info(&server);
    assert!(lines.values().all(|lines| lines.len() <= 2), "{lines:#?}");
    let curious = server
        .log()
        .into_iter()
        .find(|line| line["message"] == "opened" && line["refusals"] == 30)
        .unwrap_or_else(|| panic!("{lines:#?}"));
    assert_eq!(curious["export"], "disk");
    // Of so many the first ones are recorded, and how many there were.
    let id = &curious["span"]["id"];
    let all = audit.lines();
    let of_curious = |event: &str| {
        let lines = of_event(&all, event).into_iter();
        lines.filter(|line| line["connection"] == *id).collect::<Vec<_>>()
    };
    assert_eq!(of_curious("refuse").len(), 16);
    assert_eq!(of_curious("disconnect")[0]["refusals"], 30);
    let silent = of_event(&all, "disconnect")
        .into_iter()
        .filter(|line| line["ending"] == "the client hung up without a word");
    for line in silent {
        assert!(!lines.contains_key(line["connection"].as_str().unwrap()), "{lines:#?}");
    }
}

#[tokio::test]
async fn a_flood_of_refused_clients_fills_the_audit_log_and_the_metrics_and_not_the_log() {
    let audit = AuditFile::new();
    let file = fixtures::path("v082-onebyte.hxz");
    let [flag, path] = audit.argument();
    let watched = Watched::start(&[&flag, &path, text(&file)]);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, watched.process.port()));
    for _ in 0..1000 {
        let mut stranger = NbdClient::connect(address).await;
        stranger.greet(3).await;
        stranger.send_option(7, &query("nil", &[])).await;
        stranger.option_reply(7).await;
    }
    watched.wait_for("hexz_nbd_connections_refused_total{reason=\"no_such_export\"}", 1000.0);
    watched.wait_for("hexz_nbd_connections{state=\"negotiation\"}", 0.0);
    audit.wait_until(|line| line["event"] == "disconnect", 1000);
    assert_eq!(of_event(&audit.lines(), "refuse").len(), 1000);
    let lines = watched.process.log().iter().filter(|line| line["message"] == "refused").count();
    assert!((100..1000).contains(&lines), "{lines}");
    watched.process.wait_until(|line| line["lines"].as_u64().is_some_and(|lines| lines > 100), 1);
    // Whoever is let in meanwhile has its lines.
    assert_eq!(copy(&watched.process.uri("v082-onebyte")), Some(1));
    watched.process.wait_for("opened", 1);
}
