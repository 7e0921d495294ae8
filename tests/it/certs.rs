//! `hexz-nbd certs`: with the real binary, and with the programs that have to accept its work.
//!
//! Needs the Debian packages openssl, nbdkit, nbd-client, libnbd-bin and qemu-utils.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use hexz_nbd::tls::issue::{Authority, Client, Validity};
use tempfile::TempDir;
use time::OffsetDateTime;

/// A directory for a PKI, and the commands in it.
struct Pki {
    directory: TempDir,
}

impl Pki {
    /// Nothing yet.
    fn empty() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// With a CA and a server.
    fn new() -> Self {
        let pki = Self::empty();
        pki.ok(&["init", "pki", "--host", "nbd.example.com,10.0.0.5"]);
        pki
    }

    /// With a client as well.
    fn with_client(name: &str) -> Self {
        let pki = Self::new();
        pki.ok(&["client", name, "--dir", "pki"]);
        pki
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("pki").join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_hexz-nbd"))
            .arg("certs")
            .args(arguments)
            .current_dir(self.directory.path())
            .output()
            .unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that has to fail with this exit code, and returns why it did.
    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        stderr(&output)
    }

    /// Runs openssl in the directory of the PKI.
    fn openssl(&self, arguments: &str) -> Output {
        let arguments = arguments.split_whitespace();
        tool("openssl").args(arguments).current_dir(self.path("")).output().unwrap()
    }

    fn openssl_ok(&self, arguments: &str) -> String {
        let output = self.openssl(arguments);
        assert!(output.status.success(), "openssl {arguments}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// All files with their contents.
    fn contents(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        let mut directories = vec![self.directory.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    let contents = fs::read(&path).unwrap();
                    files.push((path, contents));
                }
            }
        }
        files.sort();
        files
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A program that a test needs. It is a failure that it is not there.
fn tool(program: &str) -> Command {
    let package = match program {
        "nbdinfo" => "libnbd-bin",
        "qemu-img" => "qemu-utils",
        other => other,
    };
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let is_there = path.split(':').any(|directory| Path::new(directory).join(program).exists());
    assert!(is_there, "this test needs {program}, which is in the package {package}");
    let mut command = Command::new(program);
    command.env("PATH", path).stdin(Stdio::null());
    command
}

/// nbdkit with a certificate of ours, which lets nobody in who has none.
struct Nbdkit {
    child: Child,
    port: u16,
}

impl Nbdkit {
    fn start(certificates: &Path) -> Self {
        let work = tempfile::tempdir().unwrap();
        for _ in 0..10 {
            // It takes no port 0, so another process may be faster: then again.
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let ready = work.path().join(port.to_string());
            let mut child = tool("nbdkit")
                .args(["--foreground", "--exit-with-parent", "--tls=require", "--tls-verify-peer"])
                .arg(format!("--tls-certificates={}", certificates.display()))
                .arg(format!("--pidfile={}", ready.display()))
                .arg(format!("--port={port}"))
                .args(["--ipaddr=127.0.0.1", "memory", "1M"])
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            while child.try_wait().unwrap().is_none() {
                if ready.exists() {
                    return Self { child, port };
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        panic!("nbdkit does not start with {}", certificates.display());
    }

    /// The lines for clients that `certs client` prints for this server, which are commands that
    /// need no kernel.
    fn client_lines(&self, pki: &Pki, name: &str, more: &[&str]) -> Vec<String> {
        let server = format!("127.0.0.1:{}", self.port);
        let mut arguments = vec!["client", name, "--dir", "pki", "--server", &server];
        arguments.extend(more);
        commands(&pki.ok(&arguments))
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn commands(printed: &str) -> Vec<String> {
    let programs = ["nbd-client -l", "nbdinfo", "qemu-img"];
    let is_command = |line: &&str| programs.iter().any(|program| line.starts_with(program));
    let commands: Vec<_> = printed.lines().filter(is_command).map(str::to_owned).collect();
    assert_eq!(commands.len(), programs.len(), "{printed}");
    commands
}

/// Runs a printed line as a person does, who pastes it into a shell.
fn shell(line: &str) -> Output {
    tool(line.split(' ').next().unwrap());
    tool("sh").args(["-c", line]).output().unwrap()
}

fn assert_all(lines: &[String], success: bool) {
    for line in lines {
        let output = shell(line);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.success(), success, "{line}\n{stdout}\n{}", stderr(&output));
    }
}

#[test]
fn init_makes_the_files_that_servers_look_for_with_secrets_for_the_owner_only() {
    let pki = Pki::new();
    for (name, mode) in [
        ("", 0o700),
        ("ca-cert.pem", 0o644),
        ("ca-key.pem", 0o600),
        ("ca-crl.pem", 0o644),
        ("server-cert.pem", 0o644),
        ("server-key.pem", 0o600),
        ("srv.pem", 0o600),
    ] {
        let metadata = fs::metadata(pki.path(name)).unwrap();
        // What the umask takes away is missing from what everybody may read, never from secrets.
        let allowed = metadata.permissions().mode() & 0o777;
        assert_eq!(allowed & !mode, 0, "{name}: {allowed:o}");
        assert_eq!(allowed & 0o600, 0o600, "{name}: {allowed:o}");
    }
    assert_eq!(fs::read_dir(pki.path("")).unwrap().count(), 6);
    let expected = ["server-key.pem", "server-cert.pem", "ca-cert.pem"].map(|name| pki.read(name));
    assert_eq!(pki.read("srv.pem"), expected.concat());
}

#[test]
fn init_prints_what_to_type_next() {
    let pki = Pki::empty();
    let printed = pki.ok(&["init", "my pki", "--host", "nbd.example.com"]);
    for line in [
        "  hexz-nbd --tls-cert 'my pki/srv.pem' --listen 0.0.0.0:10809 SNAPSHOT.hxz",
        "  hexz-nbd certs client NAME --dir 'my pki'",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line}\n{printed}");
    }
}

#[test]
fn without_a_directory_it_is_certs() {
    let pki = Pki::empty();
    pki.ok(&["init"]);
    let printed = pki.ok(&["client", "alice"]);
    assert!(printed.contains("\nnbd-client -l localhost -certfile"), "{printed}");
    pki.ok(&["revoke", "alice"]);
    pki.ok(&["server", "--force"]);
    let directory = pki.directory.path().join("certs");
    assert!(directory.join("srv.pem").exists() && directory.join("alice.pem").exists());
}

#[test]
fn certificates_are_what_openssl_calls_fit_for_their_purpose_and_no_other() {
    let pki = Pki::new();
    pki.ok(&[
        "client",
        "alice",
        "--dir",
        "pki",
        "--ou",
        "ops",
        "--dns",
        "alice.example.com",
        "--uri",
        "spiffe://example.org/alice",
    ]);
    for (certificate, purpose, fits) in [
        ("server-cert.pem", "sslserver", true),
        ("server-cert.pem", "sslclient", false),
        ("alice/client-cert.pem", "sslclient", true),
        ("alice/client-cert.pem", "sslserver", false),
    ] {
        let output = pki.openssl(&format!(
            "verify -x509_strict -CAfile ca-cert.pem -purpose {purpose} {certificate}"
        ));
        assert_eq!(output.status.success(), fits, "{certificate} {purpose} {}", stderr(&output));
    }

    let ca = pki.openssl_ok("x509 -noout -text -in ca-cert.pem");
    let server = pki.openssl_ok("x509 -noout -text -in server-cert.pem");
    let client = pki.openssl_ok("x509 -noout -text -in alice/client-cert.pem");
    for text in [&ca, &server, &client] {
        assert!(text.contains("Version: 3"), "{text}");
        assert!(text.contains("NIST CURVE: P-256"), "{text}");
        assert!(
            text.contains("Subject Key Identifier") && text.contains("Authority Key Identifier")
        );
    }
    assert!(ca.contains("CA:TRUE, pathlen:0"), "{ca}");
    assert!(
        ca.contains("Key Usage: critical\n                Certificate Sign, CRL Sign\n"),
        "{ca}"
    );
    for (text, usage) in
        [(&server, "TLS Web Server Authentication"), (&client, "TLS Web Client Authentication")]
    {
        assert!(text.contains("CA:FALSE"), "{text}");
        assert!(
            text.contains("Key Usage: critical\n                Digital Signature, Key Enciph")
        );
        assert!(
            text.contains(&format!("Extended Key Usage: \n                {usage}\n")),
            "{text}"
        );
    }
    assert!(
        server.contains(
            "DNS:nbd.example.com, IP Address:10.0.0.5, DNS:localhost, IP Address:127.0.0.1, \
             IP Address:0:0:0:0:0:0:0:1"
        ),
        "{server}"
    );
    assert!(client.contains("Subject: OU = ops, CN = alice"), "{client}");
    assert!(client.contains("DNS:alice.example.com, URI:spiffe://example.org/alice"), "{client}");
}

#[test]
fn days_are_counted_from_now_and_never_beyond_the_ca() {
    let pki = Pki::empty();
    pki.ok(&["init", "pki", "--days", "10"]);
    pki.ok(&["client", "alice", "--dir", "pki", "--days", "20000"]);
    let seconds = |days: u32| days * 24 * 60 * 60;
    let ends_within = |name: &str, seconds: u32| {
        !pki.openssl(&format!("x509 -noout -checkend {seconds} -in {name}")).status.success()
    };
    assert!(ends_within("server-cert.pem", seconds(11)));
    assert!(!ends_within("server-cert.pem", seconds(9)));
    assert!(ends_within("ca-cert.pem", seconds(3651)));
    assert!(!ends_within("ca-cert.pem", seconds(3649)));
    assert!(ends_within("alice/client-cert.pem", seconds(3651)));
    let end = |name: &str| pki.openssl_ok(&format!("x509 -noout -enddate -in {name}"));
    assert_eq!(end("alice/client-cert.pem"), end("ca-cert.pem"));

    for days in ["0", "36501", "-1", "x"] {
        pki.fails(2, &["client", "bob", "--dir", "pki", &format!("--days={days}")]);
    }
}

#[test]
fn nothing_is_overwritten_without_force_and_nothing_is_half_made() {
    let pki = Pki::with_client("alice");
    let before = pki.contents();
    let error = pki.fails(1, &["init", "pki"]);
    assert!(error.contains("ca-key.pem exists") && error.contains("certs server"), "{error}");
    let error = pki.fails(1, &["client", "alice", "--dir", "pki"]);
    assert!(error.contains("exists, use --force"), "{error}");
    let error = pki.fails(1, &["server", "--dir", "pki"]);
    assert!(error.contains("exists, use --force"), "{error}");
    assert_eq!(pki.contents(), before);

    // One file of many is enough.
    let other = Pki::empty();
    fs::create_dir(other.path("")).unwrap();
    fs::write(other.path("srv.pem"), "precious").unwrap();
    let before = other.contents();
    assert!(other.fails(1, &["init", "pki"]).contains("srv.pem exists"));
    assert_eq!(other.contents(), before);

    pki.ok(&["init", "pki", "--force"]);
    let output = pki.openssl("verify -CAfile ca-cert.pem alice/client-cert.pem");
    assert!(!output.status.success(), "the CA is another one");
    pki.ok(&["client", "alice", "--dir", "pki", "--force"]);
    pki.openssl_ok("verify -CAfile ca-cert.pem alice/client-cert.pem");
}

#[test]
fn a_replaced_secret_is_as_secret_as_a_new_one() {
    let pki = Pki::with_client("alice");
    for name in ["alice.pem", "alice/client-key.pem"] {
        fs::set_permissions(pki.path(name), fs::Permissions::from_mode(0o666)).unwrap();
    }
    pki.ok(&["client", "alice", "--dir", "pki", "--force"]);
    for name in ["alice.pem", "alice/client-key.pem"] {
        let mode = fs::metadata(pki.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_client_gets_one_file_and_the_same_split() {
    let pki = Pki::with_client("alice");
    let split = ["client-key.pem", "client-cert.pem", "ca-cert.pem"]
        .map(|name| pki.read(&format!("alice/{name}")));
    assert_eq!(pki.read("alice.pem"), split.concat());
    assert_eq!(pki.read("alice/ca-cert.pem"), pki.read("ca-cert.pem"));
}

#[test]
fn names_that_leave_the_directory_or_take_the_files_of_others_are_refused() {
    let pki = Pki::new();
    let before = pki.contents();
    for (name, reason) in [
        ("../alice", "letters, digits"),
        ("..", "letters, digits"),
        ("/etc/alice", "letters, digits"),
        ("a\nb", "letters, digits"),
        ("", "letters, digits"),
        ("srv", "srv.pem is a file of the CA or the server"),
        ("ca-key", "ca-key.pem is a file of the CA or the server"),
        ("alice.pem", ".pem"),
    ] {
        let error = pki.fails(2, &["client", "--dir", "pki", "--", name]);
        assert!(error.contains(reason), "{name:?}: {error}");
    }
    for option in ["--ou=a\nb", "--dns=a b", "--uri=builder"] {
        pki.fails(1, &["client", "alice", "--dir", "pki", option]);
    }
    for host in ["a b", "host:10809", "[::1]", ""] {
        pki.fails(2, &["server", "--dir", "pki", "--force", "--host", host]);
    }
    assert_eq!(pki.contents(), before);
}

#[test]
fn without_a_ca_there_are_no_clients_and_the_error_says_what_to_do() {
    let pki = Pki::empty();
    let error = pki.fails(1, &["client", "alice", "--dir", "pki"]);
    assert!(error.contains("hexz-nbd certs init pki --host NAME"), "{error}");
    assert!(pki.contents().is_empty());

    let (pki, other) = (Pki::new(), Pki::new());
    fs::copy(other.path("ca-key.pem"), pki.path("ca-key.pem")).unwrap();
    let error = pki.fails(1, &["client", "alice", "--dir", "pki"]);
    assert!(error.contains("is not the key of the CA certificate"), "{error}");
    fs::write(pki.path("ca-key.pem"), "garbage").unwrap();
    let error = pki.fails(1, &["client", "alice", "--dir", "pki"]);
    assert!(error.contains("ca-key.pem: not PEM"), "{error}");
}

#[test]
fn the_server_is_renewed_under_its_names_and_clients_stay_as_they_are() {
    let pki = Pki::with_client("alice");
    let (ca, client, server) =
        (pki.read("ca-cert.pem"), pki.read("alice.pem"), pki.read("srv.pem"));
    pki.ok(&["server", "--dir", "pki", "--force"]);
    assert_eq!((ca, client), (pki.read("ca-cert.pem"), pki.read("alice.pem")));
    assert_ne!(server, pki.read("srv.pem"));
    let names = |pki: &Pki| {
        let names = pki.openssl_ok("x509 -noout -ext subjectAltName -in server-cert.pem");
        names.lines().nth(1).unwrap().trim().to_owned()
    };
    assert!(names(&pki).starts_with("DNS:nbd.example.com, IP Address:10.0.0.5, DNS:localhost"));
    pki.ok(&["server", "--dir", "pki", "--force", "--host", "new.example.com"]);
    assert!(names(&pki).starts_with("DNS:new.example.com, DNS:localhost"));
    pki.openssl_ok("verify -CAfile ca-cert.pem -purpose sslserver srv.pem");
}

#[test]
fn the_ca_of_another_tool_is_used_as_it_is() {
    let pki = Pki::empty();
    fs::create_dir(pki.path("")).unwrap();
    pki.openssl_ok(
        "req -x509 -newkey rsa:2048 -nodes -keyout ca-key.pem -out ca-cert.pem -days 30 \
         -subj /O=Example/CN=Root -addext keyUsage=critical,keyCertSign,cRLSign",
    );
    pki.ok(&["server", "--dir", "pki", "--host", "nbd.example.com"]);
    pki.ok(&["client", "alice", "--dir", "pki"]);
    pki.ok(&["client", "bob", "--dir", "pki"]);
    assert!(pki.ok(&["revoke", "bob", "--dir", "pki"]).contains("the new list"));
    let check = "verify -crl_check -CRLfile ca-crl.pem -CAfile ca-cert.pem";
    pki.openssl_ok(&format!("{check} -purpose sslserver server-cert.pem"));
    pki.openssl_ok(&format!("{check} -purpose sslclient alice/client-cert.pem"));
    let output = pki.openssl(&format!("{check} bob/client-cert.pem"));
    assert!(stderr(&output).contains("certificate revoked"), "{}", stderr(&output));
    assert_all(&Nbdkit::start(&pki.path("")).client_lines(&pki, "alice", &["--force"]), true);

    // A name that could not be repeated as an issuer would break every chain.
    fs::remove_file(pki.path("ca-cert.pem")).unwrap();
    pki.openssl_ok(
        "req -x509 -key ca-key.pem -out ca-cert.pem -days 30 -subj /DC=org/DC=example/CN=Root",
    );
    let error = pki.fails(1, &["client", "carol", "--dir", "pki"]);
    assert!(error.contains("two parts of a kind"), "{error}");
}

#[test]
fn revocation_is_seen_and_adds_to_what_was_revoked_before() {
    let pki = Pki::with_client("alice");
    pki.ok(&["client", "bob", "--dir", "pki"]);
    pki.ok(&["client", "carol", "--dir", "pki"]);
    let revoked = |name: &str| {
        let output = pki.openssl(&format!(
            "verify -x509_strict -crl_check -CRLfile ca-crl.pem -CAfile ca-cert.pem \
             {name}/client-cert.pem"
        ));
        let text = stderr(&output);
        assert!(output.status.success() || text.contains("certificate revoked"), "{text}");
        !output.status.success()
    };
    let number = || pki.openssl_ok("crl -noout -crlnumber -in ca-crl.pem").trim().to_owned();
    assert_eq!((revoked("alice"), revoked("bob")), (false, false));
    assert_eq!(number(), "crlNumber=0x01");

    let printed = pki.ok(&["revoke", "alice", "--dir", "pki", "--reason", "key-compromise"]);
    assert!(printed.contains("revoked alice (serial "), "{printed}");
    assert!(printed.contains("a running server"), "{printed}");
    assert_eq!((revoked("alice"), revoked("bob")), (true, false));

    // As a file, here the one that stays when the other has gone to the client.
    fs::remove_file(pki.path("carol.pem")).unwrap();
    pki.ok(&["revoke", "pki/bob.pem", "--dir", "pki"]);
    pki.ok(&["revoke", "carol", "--dir", "pki"]);
    assert_eq!((revoked("alice"), revoked("bob"), revoked("carol")), (true, true, true));
    assert_eq!(number(), "crlNumber=0x04");
    let text = pki.openssl_ok("crl -noout -text -in ca-crl.pem");
    assert!(text.contains("Key Compromise"), "{text}");
    pki.openssl_ok("crl -noout -verify -CAfile ca-cert.pem -in ca-crl.pem");
}

#[test]
fn revoking_twice_changes_nothing_and_is_no_failure() {
    let pki = Pki::with_client("alice");
    pki.ok(&["revoke", "alice", "--dir", "pki"]);
    let before = pki.contents();
    let printed = pki.ok(&["revoke", "alice", "--dir", "pki"]);
    assert!(printed.contains("was revoked at") && printed.contains("unchanged"), "{printed}");
    assert_eq!(pki.contents(), before);
}

#[test]
fn what_cannot_be_revoked_is_said_and_the_list_stays() {
    let (pki, other) = (Pki::with_client("alice"), Pki::with_client("mallory"));
    let before = pki.contents();
    let foreign = other.path("mallory.pem").display().to_string();
    for (what, reason) in [
        ("bob", "there is no client bob in pki"),
        ("pki/bob.pem", "pki/bob.pem: cannot open the file"),
        (&*foreign, "is not of the CA in pki"),
        ("pki/ca-cert.pem", "holds no certificate of a server or client"),
        ("pki/ca-key.pem", "holds no certificate of a server or client"),
    ] {
        let error = pki.fails(1, &["revoke", what, "--dir", "pki"]);
        assert!(error.contains(reason), "{what}: {error}");
    }
    pki.fails(2, &["revoke", "--dir", "pki"]);
    pki.fails(2, &["revoke", "alice", "--serial", "1", "--dir", "pki"]);
    assert_eq!(pki.contents(), before);

    // A list of another CA must not be signed by this one.
    fs::copy(other.path("ca-crl.pem"), pki.path("ca-crl.pem")).unwrap();
    let error = pki.fails(1, &["revoke", "alice", "--dir", "pki"]);
    assert!(error.contains("not signed by this CA"), "{error}");
    fs::write(pki.path("ca-crl.pem"), "garbage").unwrap();
    let error = pki.fails(1, &["revoke", "alice", "--dir", "pki"]);
    assert!(error.contains("ca-crl.pem: not PEM"), "{error}");
}

#[test]
fn a_certificate_that_was_replaced_is_revoked_by_its_serial_number() {
    let pki = Pki::with_client("alice");
    fs::copy(pki.path("alice/client-cert.pem"), pki.path("old.pem")).unwrap();
    let printed = pki.ok(&["client", "alice", "--dir", "pki", "--force"]);
    let line = printed.lines().find(|line| line.contains("certs revoke --serial")).unwrap();
    let arguments: Vec<_> = line.split_whitespace().skip(2).collect();
    pki.ok(&arguments);
    let check = "verify -crl_check -CRLfile ca-crl.pem -CAfile ca-cert.pem";
    assert!(!pki.openssl(&format!("{check} old.pem")).status.success());
    pki.openssl_ok(&format!("{check} alice/client-cert.pem"));

    // Not worth a word once it is revoked.
    pki.ok(&["revoke", "alice", "--dir", "pki"]);
    let printed = pki.ok(&["client", "alice", "--dir", "pki", "--force"]);
    assert!(!printed.contains("--serial"), "{printed}");
}

#[test]
fn revocations_at_the_same_time_are_all_kept() {
    let pki = Pki::new();
    let names: Vec<_> = (0..8).map(|number| format!("client{number}")).collect();
    for name in &names {
        pki.ok(&["client", name, "--dir", "pki"]);
    }
    thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| pki.ok(&["revoke", name, "--dir", "pki"]));
        }
    });
    let text = pki.ok(&["show", "pki/ca-crl.pem"]);
    assert!(text.contains("revoked:      8") && text.contains("number:       9"), "{text}");
}

#[test]
fn show_says_what_openssl_says() {
    let pki = Pki::new();
    pki.ok(&["client", "alice", "--dir", "pki", "--ou", "ops", "--uri", "spiffe://a.example/b"]);
    let text = pki.ok(&["show", "pki/alice.pem"]);
    let field = |option: &str| {
        let line = pki.openssl_ok(&format!("x509 -noout {option} -in alice.pem"));
        line.trim().split_once('=').unwrap().1.replace(':', "").to_ascii_lowercase()
    };
    for line in [
        "pki/alice.pem: private key, not shown".to_owned(),
        "  subject:      OU=ops, CN=alice".to_owned(),
        "  names:        URI:spiffe://a.example/b".to_owned(),
        "  purpose:      client".to_owned(),
        "  purpose:      CA".to_owned(),
        format!("  serial:       {}", field("-serial")),
        format!("  fingerprint:  {}", field("-fingerprint -sha256")),
        "  version:      3".to_owned(),
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
    }
    assert!(!text.contains("BEGIN"), "{text}");
}

#[test]
fn show_as_json_is_one_list_of_everything() {
    let pki = Pki::with_client("alice");
    pki.ok(&["revoke", "alice", "--dir", "pki", "--reason", "superseded"]);
    let text = pki.ok(&["show", "--json", "pki/srv.pem", "pki/ca-crl.pem"]);
    let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    let kinds: Vec<_> = shown.as_array().unwrap().iter().map(|block| &block["kind"]).collect();
    assert_eq!(kinds, ["private_key", "certificate", "certificate", "revocation_list"]);
    assert_eq!(shown[1]["file"], "pki/srv.pem");
    assert_eq!(shown[1]["purposes"], serde_json::json!(["server"]));
    assert_eq!(shown[1]["names"][1], "IP:10.0.0.5");
    assert_eq!(shown[1]["status"], "valid");
    assert_eq!(shown[3]["number"], "2");
    assert_eq!(shown[3]["revoked"][0]["reason"], "Superseded");
}

#[test]
fn show_fails_for_what_has_expired_or_soon_will() {
    let pki = Pki::with_client("alice");
    let show = |arguments: &[&str]| {
        let output = pki.run(&[&["show"], arguments].concat());
        (output.status.code().unwrap(), stderr(&output))
    };
    assert_eq!(show(&["pki/alice.pem", "pki/ca-crl.pem"]).0, 0);
    assert_eq!(show(&["pki/alice.pem", "--expires-within", "360d"]).0, 0);
    let (code, error) = show(&["pki/srv.pem", "pki/alice.pem", "--expires-within", "366d"]);
    assert_eq!(code, 1);
    assert!(error.contains("pki/srv.pem: CN=nbd.example.com expires soon"), "{error}");
    assert!(error.contains("pki/alice.pem: CN=alice expires soon"), "{error}");
    assert_eq!(show(&["pki/ca-crl.pem", "--expires-within", "600w"]).0, 1);
    assert_eq!(show(&["pki/alice.pem", "--expires-within", "30"]).0, 2);

    let past = OffsetDateTime::now_utc() - time::Duration::days(12);
    let (authority, _) = Authority::generate(Validity::days(past, 100).unwrap()).unwrap();
    let client = Client { common_name: "late".into(), ..Client::default() };
    let late = authority.client(&client, Validity::days(past, 10).unwrap()).unwrap();
    fs::write(pki.path("late.pem"), late.certificate_pem).unwrap();
    let output = pki.run(&["show", "pki/late.pem", "pki/alice.pem"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("pki/late.pem: CN=late has expired"), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("expired 2 days ago") && text.contains("CN=alice"), "{text}");
}

#[test]
fn an_authority_that_expired_signs_nothing_more() {
    let pki = Pki::new();
    let past = OffsetDateTime::now_utc() - time::Duration::days(12);
    let (_, ca) = Authority::generate(Validity::days(past, 10).unwrap()).unwrap();
    fs::write(pki.path("ca-cert.pem"), ca.certificate_pem).unwrap();
    fs::write(pki.path("ca-key.pem"), ca.key_pem).unwrap();
    let error = pki.fails(1, &["client", "alice", "--dir", "pki"]);
    assert!(error.contains("the CA certificate expired at"), "{error}");
}

/// What a plain `openssl x509 -req` makes with OpenSSL 3.0, and rustls refuses.
#[test]
fn show_warns_of_version_1_and_says_what_helps() {
    let pki = Pki::new();
    pki.openssl_ok("req -newkey rsa:2048 -nodes -keyout old.key -out old.csr -subj /CN=old");
    pki.openssl_ok(
        "x509 -req -in old.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -out old.pem",
    );
    let version = pki.openssl_ok("x509 -noout -text -in old.pem");
    assert!(version.contains("Version: 1"), "this openssl makes another version:\n{version}");
    let text = pki.ok(&["show", "pki/old.pem"]);
    assert!(text.contains("1, which hexz-nbd refuses") && text.contains("-extfile"), "{text}");
}

#[test]
fn text_in_certificates_cannot_reach_the_terminal_or_pass_for_other_text() {
    let pki = Pki::new();
    let subject = "/CN=\x1b[31mred, OU=admin";
    let output = tool("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "odd.key"])
        .args(["-out", "odd.pem", "-subj", subject])
        .current_dir(pki.path(""))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = pki.ok(&["show", "pki/odd.pem"]);
    assert!(text.contains(r"CN=\u{1b}[31mred\, OU\=admin") && !text.contains('\x1b'), "{text}");
    let output = pki.run(&["show", "pki/odd.pem", "--expires-within", "999w"]);
    assert!(!stderr(&output).contains('\x1b'), "{}", stderr(&output));
}

#[test]
fn files_that_hold_no_certificate_are_refused_whatever_is_in_them() {
    let pki = Pki::new();
    let certificate = pki.read("ca-cert.pem");
    let key = pki.read("ca-key.pem").replace("PRIVATE KEY", "CERTIFICATE");
    for (contents, reason) in [
        ("", "the file is empty"),
        ("\u{fffd}\0binary", "not PEM"),
        ("-----BEGIN CERTIFICATE-----\n", "damaged PEM"),
        ("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", "damaged PEM"),
        ("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "cannot be parsed"),
        (&*certificate.replace("CERTIFICATE", "X509 CRL"), "the revocation list cannot be parsed"),
        (&*key, "the certificate cannot be parsed"),
    ] {
        fs::write(pki.path("odd.pem"), contents).unwrap();
        let error = pki.fails(1, &["show", "pki/odd.pem"]);
        assert!(error.contains(reason), "{contents}: {error}");
    }
    assert!(pki.fails(1, &["show", "pki/none.pem"]).contains("pki/none.pem: cannot open the file"));
    assert!(pki.fails(1, &["show", "/dev/zero"]).contains("not a regular file"));
}

/// The printed lines for nbd-client, libnbd and QEMU, as printed, against GnuTLS.
#[test]
fn other_servers_and_clients_accept_the_certificates() {
    let pki = Pki::new();
    let nbdkit = Nbdkit::start(&pki.path(""));
    let lines = nbdkit.client_lines(&pki, "alice", &[]);
    assert_all(&lines, true);
    let output = shell(lines.iter().find(|line| line.starts_with("nbdinfo")).unwrap());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("with TLS") && text.contains("export-size: 1048576"), "{text}");
    let named = nbdkit.client_lines(&pki, "bob", &["--export", "disk, no 1"]);
    assert_all(&named, true);

    // Each side refuses a certificate of another CA, even if all else is as it should be.
    let other = Pki::with_client("alice");
    let parts = |pki: &Pki| {
        ["alice/client-key.pem", "alice/client-cert.pem", "ca-cert.pem"].map(|part| pki.read(part))
    };
    let (own, foreign) = (parts(&pki), parts(&other));
    for [key, certificate, ca] in
        [[&own[0], &own[1], &foreign[2]], [&foreign[0], &foreign[1], &own[2]]]
    {
        fs::write(pki.path("alice.pem"), [&**key, certificate, ca].concat()).unwrap();
        fs::write(pki.path("alice/client-key.pem"), key).unwrap();
        fs::write(pki.path("alice/client-cert.pem"), certificate).unwrap();
        fs::write(pki.path("alice/ca-cert.pem"), ca).unwrap();
        assert_all(&lines, false);
    }
}

#[test]
fn other_servers_refuse_who_is_revoked() {
    let pki = Pki::with_client("bob");
    let nbdkit = Nbdkit::start(&pki.path(""));
    let lines = nbdkit.client_lines(&pki, "alice", &[]);
    assert_all(&lines, true);
    pki.ok(&["revoke", "alice", "--dir", "pki"]);
    // nbdkit reads the list when it starts.
    let port = nbdkit.port;
    drop(nbdkit);
    let nbdkit = Nbdkit::start(&pki.path(""));
    let move_to = |line: &String| line.replace(&port.to_string(), &nbdkit.port.to_string());
    assert_all(&lines.iter().map(move_to).collect::<Vec<_>>(), false);
    assert_all(&nbdkit.client_lines(&pki, "bob", &["--force"]), true);
}
