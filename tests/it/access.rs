//! Who gets in and who does not: real clients with certificates good and bad against the real
//! binary.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration as Patience;

use hexz_nbd::tls::{Cause, HandshakeFailure};
use serde_json::Value;
use tempfile::TempDir;
use time::Duration;

use crate::support::client::{
    ACK, ERR_POLICY, ERR_UNKNOWN, INFO as INFO_REPLY, SERVER, option, query, request,
};
use crate::support::fixtures::{self, sha256};
use crate::support::pki::{Holder, Maker, Pki, protect, text};
use crate::support::process::{Client, HEXZ_NBD, Output, Process, refused};
use crate::support::wire::{ABORT, EXPORT_NAME, GO, LIST, OPT_INFO, STARTTLS};

/// The export that most servers here have. Nobody who is refused may see its name or size.
const EXPORT: &str = "golden-image";
const EXPORT_FILE: &str = "v070-fixed-base.hxz";
const EXPORT_BYTES: usize = 819_200;

/// Another one.
const OTHER_FILE: &str = "v082-parent-a.hxz";

/// What there is against a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// The certificate, or that there is none, and a word of the remedy in the log.
    Handshake(Cause, &'static str),
    /// The certificate is good and no rule allows it.
    NoRule,
}

/// What a client is and does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Nbdinfo,
    Nbdcopy,
    QemuImg,
    NbdClient,
    OpensslTls12,
    OpensslTls13,
}

const TOOLS: [Tool; 6] = [
    Tool::Nbdinfo,
    Tool::Nbdcopy,
    Tool::QemuImg,
    Tool::NbdClient,
    Tool::OpensslTls12,
    Tool::OpensslTls13,
];

/// What came of it.
#[derive(Debug)]
struct Attempt {
    succeeded: bool,
    /// Bytes of the export, if the tool reads any.
    bytes: Option<Vec<u8>>,
    /// All that the user gets to see.
    said: String,
}

impl Tool {
    /// The default export of a server as this client gets it, or else whatever the client can find
    /// out.
    fn attempt(self, server: &Process, holder: &Holder, directory: &TempDir) -> Attempt {
        let copy = directory.path().join("copy.img");
        let uri = holder.uri(server.port(), "");
        let output = match self {
            Self::Nbdinfo => Client::new("nbdinfo").args(["--list", &uri]).run(),
            Self::Nbdcopy => Client::new("nbdcopy").args([uri.as_str(), text(&copy)]).run(),
            Self::QemuImg => qemu_img_convert(server.port(), holder, "", &copy),
            Self::NbdClient => nbd_client_list(server.port(), holder),
            Self::OpensslTls12 => return openssl_attempt(server, holder, "-tls1_2"),
            Self::OpensslTls13 => return openssl_attempt(server, holder, "-tls1_3"),
        };
        let bytes = copy.exists().then(|| {
            let bytes = fs::read(&copy).unwrap();
            fs::remove_file(&copy).unwrap();
            bytes
        });
        let succeeded = output.status.success();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), output.stderr);
        Attempt { succeeded, bytes, said }
    }

    /// Whether it shows names, and no bytes.
    fn only_lists(self) -> bool {
        matches!(self, Self::Nbdinfo | Self::NbdClient)
    }
}

/// qemu refuses to use most of the bad certificates itself, unless it is told not to look.
fn qemu_img_convert(port: u16, holder: &Holder, export: &str, copy: &Path) -> Output {
    let credentials = format!(
        "tls-creds-x509,id=tls0,dir={},endpoint=client,sanity-check=off",
        text(&holder.directory)
    );
    let mut image = format!(
        "driver=raw,file.driver=nbd,file.host=127.0.0.1,file.port={port},file.tls-creds=tls0"
    );
    if !export.is_empty() {
        image.push_str(",file.export=");
        image.push_str(export);
    }
    let convert = Client::new("qemu-img").args(["convert", "-O", "raw", "--object", &credentials]);
    convert.args(["--image-opts", &image, text(copy)]).run()
}

/// Without a certificate of its own: `-certfile` and no `-keyfile`, which is how people come to
/// send none.
fn nbd_client_list(port: u16, holder: &Holder) -> Output {
    let (port, bundle, ca) = (port.to_string(), text(&holder.bundle), holder.ca());
    let list = Client::new("nbd-client").args(["-l", "127.0.0.1", &port, "-certfile", bundle]);
    let list = if holder.has_certificate() { list.args(["-keyfile", bundle]) } else { list };
    list.args(["-cacertfile", text(&ca)]).run()
}

/// Asks for everything there is to know, and then for every byte if anything is told.
fn openssl_attempt(server: &Process, holder: &Holder, version: &str) -> Attempt {
    let everything = query("", &[1, 2, 3]);
    // Behind a GO that was refused it is no goodbye, but ends the session as well.
    let (go, goodbye) = (option(GO, &everything), request(0, 2, 2, 0, 0));
    let questions = [option(LIST, b""), option(OPT_INFO, &everything), go.clone(), goodbye.clone()];
    let told = s_client(server, holder, version, &questions.concat());
    let said = format!("{}{}", String::from_utf8_lossy(&told.stdout), told.stderr);
    let (replies, rest) = option_replies(&told.stdout);
    if !replies.iter().any(|(code, _)| [SERVER, INFO_REPLY].contains(code)) {
        return Attempt { succeeded: false, bytes: Some(rest.to_vec()), said };
    }
    let length = u32::try_from(EXPORT_BYTES).unwrap();
    let reading = [go, request(0, 0, 1, 0, length), goodbye];
    let read = s_client(server, holder, version, &reading.concat());
    let (replies, rest) = option_replies(&read.stdout);
    let is_granted = replies.last().is_some_and(|(code, _)| *code == ACK);
    let succeeded = is_granted && rest.starts_with(&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    Attempt { succeeded, bytes: rest.get(16..).map(<[u8]>::to_vec), said }
}

/// `openssl s_client` through STARTTLS. Sends bytes, and returns those that came.
fn s_client(server: &Process, holder: &Holder, version: &str, sent: &[u8]) -> Output {
    let port = behind_starttls(server.port()).to_string();
    let ca = holder.ca();
    let client = Client::new("openssl")
        .args(["s_client", "-quiet", "-nocommands", version])
        .args(["-verify_return_error", "-verify_ip", "127.0.0.1", "-CAfile", text(&ca)])
        .args(["-connect", &format!("127.0.0.1:{port}")]);
    let client = if holder.has_certificate() {
        let [certificate, key] =
            ["client-cert.pem", "client-key.pem"].map(|name| holder.directory.join(name));
        client.args(["-cert", text(&certificate), "-key", text(&key)])
    } else {
        client
    };
    client.input(sent).run()
}

/// A port behind which a server is about to begin TLS, for a client that knows nothing of NBD.
fn behind_starttls(server_port: u16) -> u16 {
    let (reply, server) = starttls(server_port);
    assert_eq!(reply, ACK);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let forward = |mut from: TcpStream, mut to: TcpStream| {
            thread::spawn(move || {
                // Whoever hangs up, the other side is told.
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        };
        forward(client.try_clone().unwrap(), server.try_clone().unwrap());
        forward(server, client);
    });
    port
}

/// Asks for TLS. The reply, and the connection.
fn starttls(port: u16) -> (u32, TcpStream) {
    let (reply, stream) = plaintext(port, &option(STARTTLS, b""), 20);
    (u32::from_be_bytes(reply[12..16].try_into().unwrap()), stream)
}

/// Greets a server, sends options without TLS, and takes so many bytes.
fn plaintext(port: u16, options: &[u8], count: usize) -> (Vec<u8>, TcpStream) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Patience::from_secs(20))).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
    stream.write_all(&[&3_u32.to_be_bytes()[..], options].concat()).unwrap();
    let mut replies = vec![0; count];
    stream.read_exact(&mut replies).unwrap();
    (replies, stream)
}

/// All that a server has to say to these options without TLS.
fn plaintext_to_the_end(port: u16, options: &[u8]) -> Vec<u8> {
    let (_, mut stream) = plaintext(port, options, 0);
    let mut replies = Vec::new();
    stream.read_to_end(&mut replies).unwrap();
    replies
}

/// Replies to options, and what is behind them.
fn option_replies(mut bytes: &[u8]) -> (Vec<(u32, Vec<u8>)>, &[u8]) {
    let mut replies = Vec::new();
    while bytes.starts_with(&0x3_e889_0455_65a9_u64.to_be_bytes()) {
        let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let end = 20 + number(16) as usize;
        replies.push((number(12), bytes[20..end].to_vec()));
        bytes = &bytes[end..];
    }
    (replies, bytes)
}

/// A file of `tests/data` under a name, on the command line.
fn export(name: &str, file: &str) -> String {
    format!("{name}={}", fixtures::path(file).to_str().unwrap().replace(',', ",,"))
}

fn digest(file: &str) -> String {
    fixtures::named(file).main.unwrap().sha256
}

/// A server for [`EXPORT`] with what `certs init` makes.
fn serve(pki: &Pki, arguments: &[&str]) -> Process {
    let (bundle, export) = (pki.path("srv.pem"), export(EXPORT, EXPORT_FILE));
    Process::start([&["--tls-cert", text(&bundle), &export], arguments].concat())
}

/// The names that a client is shown.
fn listed(port: u16, holder: &Holder) -> BTreeSet<String> {
    let uri = holder.uri(port, "");
    names(&Client::new("nbdinfo").args(["--list", "--json", &uri]).run().succeeded())
}

fn names(listing: &Output) -> BTreeSet<String> {
    let listing = listing.json();
    let exports = listing["exports"].as_array().unwrap();
    exports.iter().map(|export| export["export-name"].as_str().unwrap().to_owned()).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// SHA-256 of an export as a client reads it, or what it was told.
fn copied(uri: &str, directory: &TempDir) -> Result<String, String> {
    let copy = directory.path().join("copied.img");
    let output = Client::new("nbdcopy").args([uri, text(&copy)]).run();
    if !output.status.success() {
        return Err(output.stderr);
    }
    let digest = sha256(&fs::read(&copy).unwrap());
    fs::remove_file(copy).unwrap();
    Ok(digest)
}

/// Waits for the end of a connection that was refused for this cause.
fn wait_for_failure(server: &Process, seen: usize, cause: Cause, remedy: &str) {
    let sentence = HandshakeFailure { cause, detail: String::new() }.to_string();
    assert!(sentence.contains(remedy), "no {remedy:?} in {sentence:?}");
    let expected = format!("TLS handshake failed: {sentence}");
    let line = server.wait_behind(seen, |line| {
        let error = line["error"].as_str().unwrap_or_default();
        line["message"] == "refused" && error.starts_with(&expected)
    });
    assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    assert_eq!(line["level"], "INFO", "{line}");
    let all = server.log().split_off(seen);
    let failed = |line: &&Value| line["error"].as_str().is_some_and(|e| e.starts_with("TLS "));
    let mut causes = all.iter().filter(failed).map(|line| line["error"].as_str().unwrap());
    assert!(causes.all(|error| error.starts_with(&expected)), "another cause too: {all:#?}");
    let detail = &line["error"].as_str().unwrap()[expected.len()..];
    assert!(detail.is_empty() || (detail.starts_with(" (") && detail.ends_with(')')), "{line}");
}

/// All clients with all certificates. Whatever else is wrong with it, the name in a certificate is
/// the one that is allowed wherever it can be, so that only the fault keeps it out.
fn every_client_with_every_certificate(maker: Maker) {
    let pki = Pki::new(maker);
    let day = Duration::DAY;
    let handshake = Fault::Handshake;
    let revoked = pki.revoked("alice");
    let (alice, nobody) = (pki.good("alice"), pki.nobody());
    // It has all that it needs in a file, and does not name it as -keyfile.
    fs::copy(&alice.bundle, &nobody.bundle).unwrap();
    let holders = [
        ("nobody", nobody, handshake(Cause::NoCertificate, "-keyfile")),
        (
            "of another CA",
            pki.of_another_ca("alice"),
            handshake(Cause::UnknownCa, "--tls-client-ca"),
        ),
        (
            "expired",
            pki.valid_for_a_day("expired", "alice", day * -3),
            handshake(Cause::Expired, "renew it"),
        ),
        (
            "not yet valid",
            pki.valid_for_a_day("early", "alice", day * 3),
            handshake(Cause::NotYetValid, "clocks"),
        ),
        ("revoked", revoked, handshake(Cause::Revoked, "issue a new one")),
        (
            "self-signed",
            pki.self_signed("self-signed", "alice", "client"),
            handshake(Cause::UnknownCa, "--tls-client-ca"),
        ),
        (
            "self-signed as openssl does it",
            pki.self_signed("self-signed-ca", "alice", "authority_for_all_uses"),
            handshake(Cause::CaAsLeaf, "openssl req -x509"),
        ),
        (
            "a CA",
            pki.authority_as_client("alice"),
            handshake(Cause::CaAsLeaf, "hexz-nbd certs client"),
        ),
        ("server only", pki.server_only("alice"), handshake(Cause::WrongPurpose, "clientAuth")),
        ("version 1", pki.version_1("alice"), handshake(Cause::Version1, "-extfile")),
        ("not allowed", pki.good("bob"), Fault::NoRule),
        ("good", alice, Fault::Nothing),
    ];
    let server = serve(&pki, &["--allow-cn", "alice"]);
    let directory = tempfile::tempdir().unwrap();
    let expected = digest(EXPORT_FILE);
    let good = &holders.last().unwrap().1;
    for tool in TOOLS {
        for (name, holder, fault) in &holders {
            let seen = server.log().len();
            let attempt = tool.attempt(&server, holder, &directory);
            let cell = format!("{maker:?}, {tool:?}, {name}: {attempt:?}");
            match fault {
                Fault::Nothing => {
                    assert!(attempt.succeeded, "{cell}");
                    if tool.only_lists() {
                        assert!(attempt.said.contains(EXPORT), "{cell}");
                    } else {
                        assert_eq!(
                            sha256(&attempt.bytes.unwrap()),
                            expected,
                            "{maker:?}, {tool:?}"
                        );
                    }
                    continue;
                }
                Fault::Handshake(cause, remedy) => {
                    assert!(!attempt.succeeded, "{cell}");
                    wait_for_failure(&server, seen, *cause, remedy);
                }
                Fault::NoRule => {
                    // An empty list is no failure.
                    assert!(tool.only_lists() || !attempt.succeeded, "{cell}");
                    let line = server.wait_behind(seen, |line| line["message"] == "refused");
                    let (identity, reason) = (&line["identity"], line["reason"].as_str().unwrap());
                    assert!(identity.as_str().unwrap().starts_with("CN=\"bob\" "), "{line}");
                    assert!(reason.starts_with("no rule allows this client"), "{line}");
                }
            }
            assert!(attempt.bytes.is_none_or(|bytes| bytes.is_empty()), "{tool:?}, {name}");
            for secret in [EXPORT, &EXPORT_BYTES.to_string()] {
                assert!(!attempt.said.contains(secret), "{cell}");
            }
            let uri = good.uri(server.port(), EXPORT);
            let size = Client::new("nbdinfo").args(["--size", &uri]).run().succeeded();
            assert_eq!(size.text().trim(), EXPORT_BYTES.to_string(), "after {cell}");
        }
    }
    let looked =
        server.wait_behind(0, |line| line["message"] == "closed" && line["version"] == "TLSv1_2");
    assert!(looked["suite"].as_str().unwrap().starts_with("TLS_ECDHE_"), "{looked}");
    // Whoever was let in is in the log as well, with everything that there is to know.
    let opened = server.log().into_iter().rfind(|line| line["message"] == "opened").unwrap();
    assert_eq!(opened["export"], EXPORT, "{opened}");
    assert_eq!(opened["version"], "TLSv1_3", "{opened}");
    assert!(opened["suite"].as_str().unwrap().starts_with("TLS13_"), "{opened}");
    assert!(opened["identity"].as_str().unwrap().starts_with("CN=\"alice\" "), "{opened}");
}

#[test]
fn every_client_gets_in_with_a_good_certificate_of_hexz_nbd_certs_and_with_no_bad_one() {
    every_client_with_every_certificate(Maker::HexzNbd);
}

#[test]
fn every_client_gets_in_with_a_good_ecdsa_certificate_of_openssl_and_with_no_bad_one() {
    every_client_with_every_certificate(Maker::OpensslEcdsa);
}

#[test]
fn every_client_gets_in_with_a_good_rsa_certificate_of_openssl_and_with_no_bad_one() {
    every_client_with_every_certificate(Maker::OpensslRsa);
}

#[test]
fn a_client_that_does_not_trust_the_server_is_told_of_in_the_log() {
    let (pki, other) = (Pki::new(Maker::HexzNbd), Pki::new(Maker::HexzNbd));
    let server = serve(&pki, &[]);
    let stranger = other.client("alice", &[]);
    let seen = server.log().len();
    s_client(&server, &stranger, "-tls1_3", b"").failed();
    wait_for_failure(&server, seen, Cause::RejectedByClient, "-cacertfile");
}

#[test]
fn each_rule_lets_in_whom_it_names_and_nobody_else() {
    let pki = Pki::new(Maker::HexzNbd);
    // Each has the name of another where no rule for that name looks.
    let holders = [
        ("alice", pki.client("alice", &["--ou", "build.example.com"])),
        ("operator", pki.client("operator", &["--ou", "ops", "--dns", "alice"])),
        ("builder", pki.client("builder", &["--ou", "alice", "--dns", "build.example.com"])),
        ("robot", pki.client("robot", &["--dns", "ops", "--uri", "spiffe://example.org/build/7"])),
        (
            "stranger",
            pki.client(
                "ops",
                &[
                    "--ou",
                    "operators",
                    "--dns",
                    "a.build.example.com",
                    "--uri",
                    "spiffe://example.org/build/7/8",
                ],
            ),
        ),
    ];
    let shown = pki.certs(&["show", "ops.pem"]);
    let fingerprint =
        shown.lines().find_map(|line| line.trim().strip_prefix("fingerprint:")).unwrap().trim();
    for (rules, allowed) in [
        (vec!["--allow-cn", "alice"], set(["alice"])),
        (vec!["--allow-ou", "ops"], set(["operator"])),
        (vec!["--allow-dns", "build.example.com"], set(["builder"])),
        (vec!["--allow-uri", "spiffe://example.org/build/*"], set(["robot"])),
        (vec!["--allow-fingerprint", fingerprint], set(["stranger"])),
        (
            vec!["--allow-cn", "alice", "--allow-dns", "BUILD.example.com"],
            set(["alice", "builder"]),
        ),
        (vec!["--allow-cn", "nobody-at-all"], set([])),
        (vec![], set(["alice", "operator", "builder", "robot", "stranger"])),
    ] {
        let server = serve(&pki, &rules);
        for (name, holder) in &holders {
            let seen = listed(server.port(), holder);
            let expected = if allowed.contains(*name) { set([EXPORT]) } else { set([]) };
            assert_eq!(seen, expected, "{name} with {rules:?}");
            for export in ["", EXPORT] {
                let uri = holder.uri(server.port(), export);
                let opened = Client::new("nbdinfo").args(["--size", &uri]).run().status.success();
                assert_eq!(opened, allowed.contains(*name), "{name} with {rules:?}: {export:?}");
            }
        }
    }
}

#[test]
fn an_export_that_a_client_may_not_read_does_not_exist_for_it() {
    let (pki, directory) = (Pki::new(Maker::HexzNbd), tempfile::tempdir().unwrap());
    let alice = pki.client("alice", &[]);
    let bob = pki.client("bob", &["--ou", "ops"]);
    let [blue_path, red_path] = [EXPORT_FILE, OTHER_FILE].map(fixtures::path);
    let configuration = format!(
        "[tls]\ncert = 'srv.pem'\n\
         [[export]]\nname = 'blue'\npath = '{}'\nallow = {{ cn = ['alice'] }}\n\
         [[export]]\nname = 'red'\npath = '{}'\nallow = {{ ou = ['ops'] }}\n",
        blue_path.display(),
        red_path.display(),
    );
    let configuration = pki.write("hexz-nbd.toml", configuration);
    // At this level each refusal has a line of its own.
    let server = Process::start(["--log-level", "debug", "--config", text(&configuration)]);
    let port = server.port();

    for (holder, own, file, foreign) in
        [(&alice, "blue", EXPORT_FILE, "red"), (&bob, "red", OTHER_FILE, "blue")]
    {
        assert_eq!(listed(port, holder), set([own]));
        assert_eq!(copied(&holder.uri(port, own), &directory), Ok(digest(file)));
        for unknown in [foreign, "nil"] {
            let error = copied(&holder.uri(port, unknown), &directory).unwrap_err();
            assert!(error.contains("No such file or directory"), "{error}");
            let copy = directory.path().join("never.img");
            let output = qemu_img_convert(port, holder, unknown, &copy).failed();
            assert!(output.stderr.contains("there is no export of that name"), "{}", output.stderr);
            assert!(!copy.exists());
        }
    }

    // Names of one length, so that nothing but the name differs in what is sent.
    for version in ["-tls1_2", "-tls1_3"] {
        let answer = |code: u32, name: &str| {
            let payload =
                if code == EXPORT_NAME { name.into() } else { query(name, &[0, 1, 2, 3]) };
            let sent = [option(LIST, b""), option(code, &payload), option(ABORT, b"")].concat();
            s_client(&server, &alice, version, &sent).stdout
        };
        for code in [EXPORT_NAME, OPT_INFO, GO] {
            let seen = server.log().len();
            let forbidden = answer(code, "red");
            let made_up = answer(code, "nil");
            assert_eq!(forbidden, made_up, "option {code}");
            let (replies, rest) = option_replies(&forbidden);
            let codes: Vec<u32> = replies.iter().map(|(code, _)| *code).collect();
            let expected: &[u32] = match code {
                EXPORT_NAME => &[SERVER, ACK],
                _ => &[SERVER, ACK, ERR_UNKNOWN, ACK],
            };
            assert_eq!((&codes[..], rest), (expected, &b""[..]), "option {code}");
            // Only the log tells them apart.
            for (name, reason) in [("red", "no rule allows"), ("nil", "there is no export")] {
                let line = server.wait_behind(seen, |line| line["export"] == name);
                assert_eq!(line["message"], "refused", "{line}");
                assert!(line["reason"].as_str().unwrap().starts_with(reason), "{line}");
            }
        }
    }
}

#[test]
fn under_tls_on_a_client_without_tls_sees_what_is_marked_plaintext_and_nothing_else() {
    let (pki, directory) = (Pki::new(Maker::HexzNbd), tempfile::tempdir().unwrap());
    let alice = pki.client("alice", &[]);
    let public = format!("{},plaintext", export("public", OTHER_FILE));
    let server = serve(&pki, &["--tls", "on", &public]);
    let port = server.port();

    let listing = Client::new("nbdinfo").args(["--list", "--json", &server.uri("")]).run();
    assert_eq!(names(&listing.succeeded()), set(["public"]));
    let listing = Client::new("nbd-client").args(["-l", "127.0.0.1", &port.to_string()]).run();
    let listing = listing.succeeded();
    assert!(listing.text().contains("public") && !listing.text().contains(EXPORT));
    assert_eq!(copied(&server.uri("public"), &directory), Ok(digest(OTHER_FILE)));
    copied(&server.uri(EXPORT), &directory).unwrap_err();
    for code in [EXPORT_NAME, OPT_INFO, GO] {
        let answer = |name: &str| {
            let payload =
                if code == EXPORT_NAME { name.into() } else { query(name, &[0, 1, 2, 3]) };
            plaintext_to_the_end(port, &[option(code, &payload), option(ABORT, b"")].concat())
        };
        assert_eq!(answer(EXPORT), answer("silver-image"), "option {code}");
    }
    let seen = server.log().len();
    copied(&server.uri(EXPORT), &directory).unwrap_err();
    // By name: the line of an earlier refusal may come late.
    let line = server.wait_behind(seen, |line| line["export"] == EXPORT);
    assert_eq!(line["message"], "refused", "{line}");
    assert!(line["reason"].as_str().unwrap().contains("not marked `plaintext`"), "{line}");

    assert_eq!(listed(port, &alice), set([EXPORT, "public"]));
    assert_eq!(copied(&alice.uri(port, EXPORT), &directory), Ok(digest(EXPORT_FILE)));
    assert_eq!(copied(&alice.uri(port, "public"), &directory), Ok(digest(OTHER_FILE)));
}

#[test]
fn under_tls_require_no_client_without_tls_gets_anything() {
    let (pki, directory) = (Pki::new(Maker::HexzNbd), tempfile::tempdir().unwrap());
    let alice = pki.client("alice", &[]);
    for arguments in [&["--tls", "require"][..], &[]] {
        let server = serve(&pki, arguments);
        let (port, copy) = (server.port().to_string(), directory.path().join("copy.img"));
        let (uri, copy_text) = (server.uri(""), text(&copy));
        for (program, arguments) in [
            ("nbdinfo", vec![uri.as_str()]),
            ("nbdinfo", vec!["--list", &uri]),
            ("nbdcopy", vec![&uri, copy_text]),
            ("qemu-img", vec!["convert", "-O", "raw", &uri, copy_text]),
            ("nbd-client", vec!["-l", "127.0.0.1", &port]),
        ] {
            let output = Client::new(program).args(&arguments).run().failed();
            let said = format!("{}{}", output.text(), output.stderr);
            assert!(!said.contains(EXPORT), "{program} {arguments:?}: {said}");
            assert!(!copy.exists() || fs::metadata(&copy).unwrap().len() == 0);
        }
        assert_eq!(copied(&alice.uri(server.port(), ""), &directory), Ok(digest(EXPORT_FILE)));
        let log = server.log();
        let mut opened = log.iter().filter(|line| line["message"] == "opened").peekable();
        assert!(opened.peek().is_some() && opened.all(|line| line["version"].is_string()));
    }
}

#[test]
fn under_tls_off_starttls_is_refused_and_a_certificate_is_not_used() {
    let (pki, directory) = (Pki::new(Maker::HexzNbd), tempfile::tempdir().unwrap());
    let alice = pki.client("alice", &[]);
    let server = serve(&pki, &["--tls", "off"]);
    assert_eq!(starttls(server.port()).0, ERR_POLICY);
    copied(&alice.uri(server.port(), ""), &directory).unwrap_err();
    nbd_client_list(server.port(), &alice).failed();
    assert_eq!(copied(&server.uri(""), &directory), Ok(digest(EXPORT_FILE)));
    assert!(warnings(&server).iter().any(|warning| warning.contains("TLS is off")));
}

#[test]
fn tls_1_3_only_locks_nbd_client_out_and_the_log_says_so() {
    let (pki, directory) = (Pki::new(Maker::HexzNbd), tempfile::tempdir().unwrap());
    let alice = pki.client("alice", &[]);
    let server = serve(&pki, &["--tls-min-version", "1.3"]);
    for tool in [Tool::NbdClient, Tool::OpensslTls12] {
        let seen = server.log().len();
        let attempt = tool.attempt(&server, &alice, &directory);
        assert!(!attempt.succeeded && !attempt.said.contains(EXPORT), "{tool:?}: {attempt:?}");
        wait_for_failure(&server, seen, Cause::TlsVersion, "the stock nbd-client speaks 1.2 only");
    }
    for tool in [Tool::Nbdcopy, Tool::QemuImg, Tool::OpensslTls13] {
        let attempt = tool.attempt(&server, &alice, &directory);
        assert!(attempt.succeeded, "{tool:?}: {attempt:?}");
        assert_eq!(sha256(&attempt.bytes.unwrap()), digest(EXPORT_FILE), "{tool:?}");
    }
}

#[test]
fn certificates_are_found_wherever_people_keep_them() {
    let (pki, directory) = (Pki::new(Maker::HexzNbd), tempfile::tempdir().unwrap());
    let revoked = pki.revoked("alice");
    let alice = pki.client("alice", &[]);
    let alone = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&pki.path(name)).to_owned();
    // Nothing is beside this one.
    for name in ["server-cert.pem", "server-key.pem"] {
        fs::copy(pki.path(name), alone.path().join(name)).unwrap();
    }
    let lone = |name: &str| text(&alone.path().join(name)).to_owned();
    let credentials = tempfile::tempdir().unwrap();
    for name in ["ca-cert.pem", "ca-crl.pem"] {
        fs::copy(pki.path(name), credentials.path().join(name)).unwrap();
    }
    let lone_files =
        [("--tls-cert", lone("server-cert.pem")), ("--tls-key", lone("server-key.pem"))];
    let named = [("--tls-client-ca", path("ca-cert.pem")), ("--tls-crl", path("ca-crl.pem"))];
    for (files, with_credentials) in [
        (vec![("--tls-certificates", path(""))], false),
        (vec![("--tls-cert", path("srv.pem"))], false),
        (
            vec![("--tls-cert", path("server-cert.pem")), ("--tls-key", path("server-key.pem"))],
            false,
        ),
        ([lone_files.clone(), named].concat(), false),
        (lone_files.to_vec(), true),
    ] {
        let arguments = files.iter().flat_map(|(flag, file)| [*flag, file.as_str()]);
        let mut command = Command::new(HEXZ_NBD);
        command.env_remove("CREDENTIALS_DIRECTORY");
        if with_credentials {
            command.env("CREDENTIALS_DIRECTORY", credentials.path());
        }
        let export = export(EXPORT, EXPORT_FILE);
        let server = Process::start_from(command, arguments.chain([export.as_str()]));
        let read = copied(&alice.uri(server.port(), EXPORT), &directory);
        assert_eq!(read, Ok(digest(EXPORT_FILE)), "{files:?}");
        let seen = server.log().len();
        copied(&revoked.uri(server.port(), EXPORT), &directory).unwrap_err();
        wait_for_failure(&server, seen, Cause::Revoked, "revoked");
    }
}

#[test]
fn what_would_be_unsafe_or_cannot_work_does_not_start_and_names_the_ways_out() {
    let pki = Pki::new(Maker::HexzNbd);
    let path = |name: &str| text(&pki.path(name)).to_owned();
    let (srv, absent, other_key) = (path("srv.pem"), path("absent.pem"), path("leaf-key.pem"));
    let server_cert = path("server-cert.pem");
    let alone = tempfile::tempdir().unwrap();
    let lone = alone.path().join("lone.pem");
    fs::write(&lone, pki.read("server-key.pem") + &pki.read("server-cert.pem")).unwrap();
    protect(&lone, 0o600);
    let lone = text(&lone).to_owned();
    let garbage = pki.write("garbage.pem", "-----BEGIN CERTIFICATE-----\n!\n");
    let garbage = text(&garbage);
    let open_key = pki.write("open-key.pem", pki.read("srv.pem"));
    protect(&open_key, 0o640);
    let open_key = text(&open_key);
    let unknown_key = pki.write("unknown.toml", "[tls]\ncert = 'srv.pem'\ncertt = 'x'\n");
    let unknown_key = text(&unknown_key);
    let export = export(EXPORT, EXPORT_FILE);
    let (any, any6, loopback) = ("0.0.0.0:0", "[::]:0", "127.0.0.1:0");
    let rows: &[(&[&str], i32, &[&str])] = &[
        (
            &["--listen", any],
            2,
            &["0.0.0.0:0", "--tls-cert", "certs init", "loopback", "--insecure-allow-plaintext"],
        ),
        (&["--listen", any6], 2, &["[::]:0", "--tls-cert", "--insecure-allow-plaintext"]),
        (&["--listen", loopback, "--listen", any], 2, &["0.0.0.0:0", "--tls-cert"]),
        (
            &["--listen", any, "--tls-cert", &srv, "--tls", "on"],
            2,
            &["0.0.0.0:0", "--tls", "`require`", "--insecure-allow-plaintext"],
        ),
        (
            &["--listen", any, "--tls-cert", &srv, "--tls", "off"],
            2,
            &["--insecure-allow-plaintext"],
        ),
        (
            &["--listen", any, "--tls-cert", &lone],
            1,
            &[
                "no CA",
                &lone,
                "ca-cert.pem",
                "--tls-client-ca",
                "certs init",
                "--insecure-allow-anonymous",
            ],
        ),
        (&["--listen", loopback, "--tls-cert", &lone], 1, &["no CA", "--tls-client-ca"]),
        (
            &["--listen", loopback, "--tls-cert", open_key],
            1,
            &[open_key, "0640", "chmod 600", "--insecure-key-permissions"],
        ),
        (&["--listen", loopback, "--allow-cn", "alice"], 2, &["rules", "--tls-cert"]),
        (
            &["--listen", loopback, "--tls-cert", &srv, "--tls", "off", "--allow-cn", "alice"],
            2,
            &["rules", "no TLS"],
        ),
        (&["--listen", loopback, "--tls", "require"], 2, &["--tls-cert", "certs init"]),
        (&["--listen", loopback, "--tls-client-ca", &srv], 2, &["no certificate", "--tls-cert"]),
        (
            &["--listen", loopback, "--tls-cert", &server_cert, "--tls-key", &other_key],
            1,
            &[&server_cert, "belongs to none"],
        ),
        (&["--listen", loopback, "--tls-cert", &server_cert], 1, &[&server_cert, "private key"]),
        (&["--listen", loopback, "--tls-cert", &absent], 1, &[&absent, "No such file"]),
        (&["--listen", loopback, "--tls-cert", &srv, "--tls-crl", &absent], 1, &[&absent]),
        (&["--listen", loopback, "--tls-cert", garbage], 1, &[garbage]),
        (&["--listen", loopback, "--tls-cert", &srv, "--tls-client-ca", garbage], 1, &[garbage]),
        (&["--config", unknown_key], 1, &[unknown_key, "line 3", "certt"]),
        (
            &["--listen", loopback, "--tls-cert", &srv, "--allow-cn", "build-*"],
            2,
            &["allow cn", "build-*"],
        ),
        (
            &["--listen", loopback, "--tls-cert", &srv, "--tls-min-version", "1.1"],
            2,
            &["--tls-min-version", "1.2 or 1.3"],
        ),
    ];
    for (arguments, code, words) in rows {
        let (found, message) = refused(&[*arguments, &[&export]].concat());
        assert_eq!(found, *code, "{arguments:?}: {message}");
        for word in *words {
            assert!(message.contains(word), "{arguments:?}: no {word:?} in {message}");
        }
    }
}

fn warnings(server: &Process) -> Vec<String> {
    let log = server.log();
    let warnings = log.iter().filter(|line| line["level"] == "WARN");
    warnings.map(|line| line["message"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_is_insecure_starts_when_it_is_said_aloud_and_is_warned_of() {
    let (pki, directory) = (Pki::new(Maker::HexzNbd), tempfile::tempdir().unwrap());
    let (alice, nobody) = (pki.client("alice", &[]), pki.nobody());
    let path = |name: &str| text(&pki.path(name)).to_owned();
    let (srv, any) = (path("srv.pem"), ["--listen", "0.0.0.0:0"]);
    let export = export(EXPORT, EXPORT_FILE);
    let lone = directory.path().join("lone.pem");
    fs::write(&lone, pki.read("server-key.pem") + &pki.read("server-cert.pem")).unwrap();
    protect(&lone, 0o600);
    let open_key = directory.path().join("open-key.pem");
    fs::write(&open_key, pki.read("srv.pem")).unwrap();
    protect(&open_key, 0o644);
    let start = |flags: &[&str]| Process::start([&any, flags, &[&export]].concat());

    let plaintext = "clients are served without TLS, wherever they are";
    let anonymous = "clients are served without certificates, wherever they are";
    let permissions = "private keys are used even if others can read them";
    for (flags, warning, holder) in [
        (&["--insecure-allow-plaintext"][..], plaintext, None),
        (
            &["--insecure-allow-plaintext", "--tls-cert", &srv, "--tls", "on"],
            plaintext,
            Some(&alice),
        ),
        (&["--insecure-allow-anonymous", "--tls-cert", text(&lone)], anonymous, Some(&nobody)),
        (&["--insecure-allow-anonymous", "--tls-cert", &srv], anonymous, Some(&nobody)),
        (&["--insecure-key-permissions", "--tls-cert", text(&open_key)], permissions, Some(&alice)),
    ] {
        let server = start(flags);
        assert_eq!(warnings(&server), [warning], "{flags:?}");
        let uri = holder.map_or_else(|| server.uri(""), |holder| holder.uri(server.port(), ""));
        assert_eq!(copied(&uri, &directory), Ok(digest(EXPORT_FILE)), "{flags:?}");
    }
    assert_eq!(warnings(&start(&["--tls-cert", &srv])), [""; 0]);
}

/// From nothing: the two commands for the server, and what `certs client` prints for the clients.
#[test]
fn two_commands_serve_who_holds_a_certificate_and_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let here = || {
        let mut command = Command::new(HEXZ_NBD);
        command.current_dir(directory.path()).env_remove("CREDENTIALS_DIRECTORY");
        command
    };
    fs::copy(fixtures::path(EXPORT_FILE), directory.path().join("disk.hxz")).unwrap();
    let init = here().args(["certs", "init", ".", "--host", "nbd.example.com"]).output().unwrap();
    assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
    let printed = String::from_utf8(init.stdout).unwrap();
    let serve = printed.lines().find(|line| line.contains("--tls-cert")).unwrap();
    assert!(
        serve.trim().starts_with("hexz-nbd --tls-cert ./srv.pem --listen 0.0.0.0:10809"),
        "{printed}"
    );
    let mut command = here();
    // But for the port, which may be taken.
    command.args(["--tls-cert", "srv.pem", "--listen", "0.0.0.0:0"]);
    let server = Process::start_as_written(command);

    let address = format!("127.0.0.1:{}", server.port());
    let mut client = here();
    client.args(["certs", "client", "alice", "--dir", "."]);
    let client = client.args(["--server", &address, "--export", "disk"]).output().unwrap();
    assert!(client.status.success(), "{}", String::from_utf8_lossy(&client.stderr));
    let printed = String::from_utf8(client.stdout).unwrap();
    let lines = ["nbd-client -l", "nbdinfo", "qemu-img"]
        .map(|program| printed.lines().find(|line| line.starts_with(program)).unwrap().to_owned());
    for line in &lines {
        let output = Client::new("sh").args(["-c", line]).run().succeeded();
        let said = output.text();
        assert!(said.contains("disk") || said.contains("800 KiB"), "{line}: {said}");
    }
    let alice = Holder {
        bundle: directory.path().join("alice.pem"),
        directory: directory.path().join("alice"),
    };
    let read = copied(&alice.uri(server.port(), "disk"), &directory);
    assert_eq!(read, Ok(digest(EXPORT_FILE)));

    copied(&format!("nbd://{address}/disk"), &directory).unwrap_err();
    fs::remove_file(alice.directory.join("client-cert.pem")).unwrap();
    fs::remove_file(alice.directory.join("client-key.pem")).unwrap();
    copied(&alice.uri(server.port(), "disk"), &directory).unwrap_err();
    server.wait_behind(0, |line| {
        let line = line.as_str().unwrap();
        line.contains(" refused ")
            && line.contains("nbd-client needs -keyfile as well as -certfile")
    });
}

#[test]
fn control_characters_of_a_certificate_do_not_reach_the_log() {
    let pki = Pki::new(Maker::OpensslEcdsa);
    let odd = pki.named("odd", "/OU=ops\u{9b}2J\n\rINFO opened/CN=\u{1b}[31mred\u{7}", "client");
    let shown = r#"CN="\u{1b}[31mred\u{7}" OU="ops\u{9b}2J\n\rINFO opened" SHA256:"#;
    let bundle = pki.path("srv.pem");
    let export = export(EXPORT, EXPORT_FILE);
    let arguments = ["--tls-cert", text(&bundle), &export];

    let json = Process::start(arguments);
    let mut command = Command::new(HEXZ_NBD);
    command.args(arguments).args(["--listen", "127.0.0.1:0"]);
    let people = Process::start_as_written(command);
    for server in [&json, &people] {
        let uri = |export: &str| odd.uri(server.port(), export);
        Client::new("nbdinfo").args(["--size", &uri(EXPORT)]).run().succeeded();
        // A name that a client makes up is no better.
        Client::new("nbdinfo").args(["--size", &uri("%1b%5b31mred%0a")]).run().failed();
    }
    let identity = |line: &Value| line["identity"].as_str().unwrap_or_default().to_owned();
    json.wait_behind(0, |line| line["message"] == "opened" && identity(line).starts_with(shown));
    let refused = json.wait_behind(0, |line| line["message"] == "refused");
    assert!(identity(&refused).starts_with(shown), "{refused}");
    // JSON escapes what is in its strings by itself.
    assert_eq!(refused["export"], "\u{1b}[31mred\n");
    let contains = |line: &Value, part: &str| line.as_str().unwrap().contains(part);
    people.wait_behind(0, |line| contains(line, " opened ") && contains(line, shown));
    people.wait_behind(0, |line| contains(line, " refused ") && contains(line, shown));
    for line in people.log() {
        assert!(!line.as_str().unwrap().contains(char::is_control), "{line:?}");
    }
}
