//! Sockets that a service manager hands over, as systemd does.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::fixtures;
use crate::support::process::{Client, HEXZ_NBD, Process};
use crate::support::server::contents;

const DISK: &str = "v082-ext4.hxz";

/// What a service manager does: makes sockets, puts them where they are looked for, becomes the
/// server.
const HAND_OVER: &str = r"
import fcntl, os, socket, sys
kinds, pid, program = sys.argv[1].split(), sys.argv[2], sys.argv[3:]
def make(kind):
    kind, _, where = kind.partition('=')
    family = socket.AF_UNIX if where else socket.AF_INET
    type = socket.SOCK_DGRAM if kind == 'udp' else socket.SOCK_STREAM
    made = socket.socket(family, type)
    made.bind(where.replace('@', '\0') if where else ('0.0.0.0' if kind == 'exposed' else '127.0.0.1', 0))
    if kind not in ('udp', 'bound'):
        made.listen()
    return made
made = [os.pipe()[0] if kind == 'pipe' else make(kind) for kind in kinds]
# Out of the way first, so that none is overwritten by another.
moved = [fcntl.fcntl(one, fcntl.F_DUPFD, 100) for one in made]
for number, one in enumerate(moved):
    os.dup2(one, 3 + number)
environment = dict(os.environ, LISTEN_FDS=str(len(made)), LISTEN_PID=pid or str(os.getpid()))
os.execve(program[0], program, environment)
";

/// The server, with these sockets handed over; to another process if a `pid` is given.
fn handed_over(kinds: &str, pid: &str) -> Command {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", HAND_OVER, kinds, pid, HEXZ_NBD]);
    command
}

/// Where a server that logs JSON says that it listens.
fn endpoints(server: &Process) -> BTreeSet<String> {
    let log = server.log();
    let listening = log.iter().filter(|line| line["message"] == "listening");
    listening.map(|line| line["endpoint"].as_str().unwrap().to_owned()).collect()
}

fn size_at(uri: &str) {
    let size = Client::new("nbdinfo").args(["--size", uri]).run().succeeded();
    assert_eq!(size.text().trim().parse(), Ok(contents(DISK).len()), "{uri}");
}

#[test]
fn sockets_that_are_handed_over_are_served_and_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let mut command = handed_over(&format!("tcp unix={}", socket.display()), "");
    command.arg(fixtures::path(DISK));
    let mut server = Process::start_as_written(command);
    let is_unix = |line: &Value| line.as_str().unwrap().contains(" listening endpoint=unix:");
    server.wait_until(is_unix, 1);
    let said = server.log();
    let listening = said.iter().filter(|line| line.as_str().unwrap().contains("listening"));
    assert_eq!(listening.count(), 2, "{said:#?}");

    let uris = [server.uri(""), format!("nbd+unix:///?socket={}", socket.display())];
    for uri in &uris {
        size_at(uri);
        let copy = directory.path().join("copy");
        Client::new("nbdcopy").arg(uri).arg(&copy).run().succeeded();
        assert!(std::fs::read(&copy).unwrap() == contents(DISK), "{uri}: wrong bytes");
    }
    assert_eq!(server.terminate().code(), Some(0), "{:#?}", server.log());
    assert!(socket.exists(), "it belongs to whoever made it");
    assert!(UnixStream::connect(&socket).is_err());
}

#[test]
fn sockets_that_are_handed_over_are_served_beside_those_that_are_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let command = handed_over(&format!("tcp unix={}", socket.display()), "");
    let mut server = Process::start_from(command, [fixtures::path(DISK)]);
    server.wait_for("listening", 4);
    let endpoints = endpoints(&server);
    assert_eq!(endpoints.len(), 4, "{endpoints:?}");
    for endpoint in endpoints {
        size_at(&match endpoint.strip_prefix("unix:") {
            Some(path) => format!("nbd+unix:///?socket={path}"),
            None => format!("nbd://{endpoint}"),
        });
    }
    let own = server.socket();
    assert_eq!(server.terminate().code(), Some(0));
    assert!(socket.exists() && !own.exists());
}

#[test]
fn what_was_handed_to_another_process_is_left_alone() {
    let server = Process::start_from(handed_over("tcp udp pipe", "1"), [fixtures::path(DISK)]);
    assert_eq!(endpoints(&server).len(), 2);
}

#[test]
fn what_is_handed_over_and_cannot_be_served_stops_the_start_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let abstract_socket = format!("tcp unix=@{}", directory.path().display());
    for (kinds, code, words) in [
        ("udp", 1, &["descriptor 3", "no listening stream socket", "ListenStream="][..]),
        ("tcp pipe", 1, &["descriptor 4", "no listening stream socket"]),
        ("bound", 1, &["descriptor 3", "no listening stream socket"]),
        (&abstract_socket, 1, &["descriptor 4", "without a file", "give it a path"]),
        ("exposed", 2, &["0.0.0.0:", "plaintext", "--tls-cert"]),
    ] {
        let (found, message) = refused(kinds, &fixtures::path(DISK));
        assert_eq!(found, code, "{kinds}: {message}");
        for word in words {
            assert!(message.contains(word), "{kinds}: no {word:?} in {message}");
        }
    }
}

fn refused(kinds: &str, disk: &Path) -> (i32, String) {
    let arguments = ["-c", HAND_OVER, kinds, "", HEXZ_NBD];
    let output = Client::new("python3").args(arguments).arg(disk).run().failed();
    (output.status.code().unwrap(), output.stderr)
}
