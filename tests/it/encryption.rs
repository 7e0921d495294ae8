//! Encrypted snapshots: read with their passphrase, refused without, and the passphrase stays
//! where it is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use hexz_nbd::snapshot::format::index::EntryKind;
use hexz_nbd::snapshot::{
    Cache, Damage, Error, ErrorKind, File, FileBackend, MemoryBackend, OpenOptions, Stream,
    Structure,
};
use tempfile::TempDir;

use crate::support::fixtures::{self, Fixture, passphrase, sha256};
use crate::support::process::{Client, HEXZ_NBD, Process};

/// The encrypted fixtures that have no parents.
fn encrypted() -> Vec<Fixture> {
    let all = fixtures::all().into_iter();
    let encrypted: Vec<_> =
        all.filter(|fixture| fixture.encrypted && fixture.parents.is_empty()).collect();
    assert!(encrypted.len() >= 5);
    encrypted
}

fn open(fixture: &Fixture, passphrases: &[&str]) -> Result<Arc<File>, Error> {
    let storage = Arc::new(FileBackend::new(&fixture.path())?);
    let passphrases = passphrases.iter().map(|text| passphrase(text)).collect();
    let cache = Arc::new(Cache::new(32 << 20));
    File::open_with(storage, OpenOptions { passphrases, cache, ..OpenOptions::default() })
}

#[test]
fn encrypted_files_of_every_release_read_back_to_their_digests() {
    for fixture in encrypted() {
        let file = open(&fixture, &[fixture.password.as_deref().unwrap()]).unwrap();
        for (stream, content) in [(Stream::Main, &fixture.main), (Stream::Auxiliary, &fixture.aux)]
        {
            let Some(content) = content else { continue };
            for attempt in ["decoded", "from the cache"] {
                let bytes = file.read_at(stream, 0, 1 << 30).unwrap();
                assert_eq!(sha256(&bytes), content.sha256, "{} {stream} {attempt}", fixture.file);
            }
            let cached = file.cached_slices(stream, 0, content.size).unwrap();
            assert_eq!(cached.iter().map(|slice| slice.bytes()).sum::<u64>(), content.size);
        }
    }
}

#[test]
fn a_wrong_passphrase_is_an_error_when_the_file_is_opened() {
    for fixture in encrypted() {
        let right = fixture.password.as_deref().unwrap();
        let wrong = format!("{right} ");
        let error = open(&fixture, &[&wrong]).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::WrongPassphrase { tried: 1 }), "{error}");
        let error = error.to_string();
        assert!(error.contains(&fixture.file) && error.contains("the passphrase is wrong"));
        assert!(!error.contains(right), "{error}");
        let error = open(&fixture, &[&wrong, "x"]).unwrap_err();
        assert!(error.to_string().contains("none of the passphrases is right"), "{error}");
        assert!(open(&fixture, &[&wrong, right]).is_ok());
        let error = open(&fixture, &[]).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::NeedsKey), "{error}");
        assert!(error.to_string().contains("--key-file"), "{error}");
    }
}

/// The bytes of a fixture, and where its smallest data block is stored.
fn with_smallest_block(fixture: &Fixture) -> (Vec<u8>, u64) {
    let structure =
        Structure::read(Arc::new(FileBackend::new(&fixture.path()).unwrap()), 1 << 24).unwrap();
    let bounds = structure.entry_bounds();
    let entries = structure.entries(&structure.index().first_page().unwrap()).unwrap();
    let data = entries.iter().filter(|entry| entry.kind(bounds) == Ok(EntryKind::Data));
    let smallest = data.min_by_key(|entry| entry.length).unwrap().offset;
    (fs::read(fixture.path()).unwrap(), smallest)
}

fn open_bytes(contents: Vec<u8>, password: &str) -> Result<Arc<File>, Error> {
    let storage = Arc::new(MemoryBackend::new(Bytes::from(contents), "changed"));
    let passphrases = vec![passphrase(password)];
    File::open_with(storage, OpenOptions { passphrases, ..OpenOptions::default() })
}

/// The block that a passphrase would be tried on first.
#[test]
fn one_damaged_block_does_not_make_a_right_passphrase_wrong() {
    let fixture = fixtures::named("v082-enc-zstd-fixed-aux.hxz");
    let (mut contents, smallest) = with_smallest_block(&fixture);
    contents[usize::try_from(smallest).unwrap()] ^= 1;
    assert!(open_bytes(contents.clone(), fixture.password.as_deref().unwrap()).is_ok());
    let error = open_bytes(contents, "wrong").unwrap_err();
    assert!(matches!(error.kind, ErrorKind::WrongPassphrase { .. }), "{error}");
}

#[test]
fn a_file_cannot_ask_for_hours_of_key_derivation_nor_for_none() {
    let fixture = fixtures::named("v082-enc-zstd-fixed-aux.hxz");
    let contents = fs::read(fixture.path()).unwrap();
    let wanted = 100_000_u32.to_le_bytes();
    let at = contents[..200].windows(4).position(|bytes| bytes == wanted).unwrap();
    for iterations in [0_u32, 99_999, 10_000_001, u32::MAX] {
        let mut contents = contents.clone();
        contents[at..at + 4].copy_from_slice(&iterations.to_le_bytes());
        let error = open_bytes(contents, fixture.password.as_deref().unwrap()).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::Iterations(_)), "{error}");
        assert!(error.to_string().contains(&iterations.to_string()), "{error}");
    }
}

/// Ciphertext of another place of the same file, with its CRC-32 made to fit.
#[test]
fn a_block_that_was_moved_within_the_file_is_not_decrypted() {
    let fixture = fixtures::named("v082-enc-zstd-fixed-aux.hxz");
    let mut contents = fs::read(fixture.path()).unwrap();
    let structure =
        Structure::read(Arc::new(FileBackend::new(&fixture.path()).unwrap()), 1 << 24).unwrap();
    let record = structure.index().main[0];
    let entries = structure.entries(&record).unwrap();
    let data: Vec<usize> = (0..entries.len()).filter(|at| entries[*at].length != 0).collect();
    let (one, other) = (data[1], data[3]);
    assert_eq!(entries[one].logical_length, entries[other].logical_length);
    // Offset, length, logical length and CRC-32 of one entry, in place of those of another.
    let place = |entry: usize| usize::try_from(record.offset).unwrap() + 8 + 52 * entry;
    let moved = contents[place(one)..place(one) + 20].to_vec();
    contents[place(other)..place(other) + 20].copy_from_slice(&moved);
    let file = open_bytes(contents, fixture.password.as_deref().unwrap()).unwrap();
    let error = file.read_at(Stream::Main, other as u64 * 4096, 1).unwrap_err();
    let damage = Damage::Decryption;
    assert!(matches!(error.kind, ErrorKind::Block { damage: d, .. } if d == damage));
    assert!(file.read_at(Stream::Main, one as u64 * 4096, 4096).is_ok());
}

const PASSWORD: &str = "correct horse";

/// A directory with two snapshots of one passphrase and one of another.
struct Scene(TempDir);

impl Scene {
    fn new() -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        for (from, to) in [
            ("v082-enc-lz4.hxz", "one.hxz"),
            ("v082-enc-lz4.hxz", "two.hxz"),
            ("v082-enc-zstd-fixed-aux.hxz", "other.hxz"),
            ("v082-onebyte.hxz", "plain.hxz"),
        ] {
            fs::copy(fixtures::path(from), scene.path(to)).unwrap();
        }
        scene.secret("key", PASSWORD);
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn secret(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, format!("{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// What the server says that does not start with this key file for one snapshot.
    fn refused(&self, key: &str) -> String {
        let arguments = ["--key-file", key, "one.hxz"];
        let client = Client::new(HEXZ_NBD).args(arguments).current_dir(self.0.path());
        client.run().failed().stderr
    }

    fn serve(&self, arguments: &[&str], environment: &[(&str, &Path)]) -> Process {
        let mut command = Command::new(HEXZ_NBD);
        command.current_dir(self.0.path());
        for name in ["HEXZ_NBD_PASSPHRASE", "CREDENTIALS_DIRECTORY"] {
            command.env_remove(name);
        }
        command.envs(environment.iter().copied());
        Process::start_from(command, ["--log-level", "trace"].iter().chain(arguments))
    }
}

fn digest(server: &Process, export: &str) -> String {
    let copy = tempfile::NamedTempFile::new().unwrap();
    Client::new("nbdcopy").arg(server.uri(export)).arg(copy.path()).run().succeeded();
    sha256(&fs::read(copy.path()).unwrap())
}

fn exports(server: &Process) -> Vec<String> {
    let log = server.log().into_iter();
    let mut names: Vec<String> = log
        .filter(|line| line["message"] == "export")
        .map(|line| line["name"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn passphrases_come_from_files_the_environment_and_credentials() {
    let scene = Scene::new();
    let fixture = fixtures::named("v082-enc-lz4.hxz");
    let credentials = tempfile::tempdir().unwrap();
    let credential = credentials.path().join("passphrase");
    fs::copy(scene.path("key"), &credential).unwrap();
    fs::set_permissions(&credential, fs::Permissions::from_mode(0o400)).unwrap();
    let (secret, directory) = (Path::new(PASSWORD), credentials.path());
    let other = scene.secret("other-key", "zweites Kennwort äöü");
    for (arguments, environment, count) in [
        (vec!["--key-file", "key"], vec![], 3),
        (vec![], vec![("HEXZ_NBD_PASSPHRASE", secret)], 3),
        (vec![], vec![("CREDENTIALS_DIRECTORY", directory)], 3),
        // The first that is there is taken.
        (vec!["--key-file", "key"], vec![("HEXZ_NBD_PASSPHRASE", Path::new("wrong"))], 3),
        (vec!["--key-file", "other-key", "--key-file", "key"], vec![], 5),
    ] {
        let server = scene.serve(&[&arguments[..], &["."]].concat(), &environment);
        assert_eq!(exports(&server).len(), count, "{arguments:?} {environment:?}");
        assert_eq!(digest(&server, "one"), fixture.main.as_ref().unwrap().sha256);
        for line in server.log() {
            let line = line.to_string();
            assert!(!line.contains(PASSWORD) && !line.contains("Kennwort"), "{line}");
        }
    }
    // One export has a passphrase of its own, on the command line and in a file.
    let server =
        scene.serve(&["--key-file", "key", "one.hxz", "other.hxz,key-file=other-key"], &[]);
    assert_eq!(exports(&server), ["one", "other", "other/aux"]);
    let config = format!(
        "[[export]]\npath = \"one.hxz\"\nkey_file = \"key\"\n\
         [[export]]\npath = \"other.hxz\"\nkey_file = {:?}\n",
        other
    );
    fs::write(scene.path("hexz-nbd.toml"), config).unwrap();
    let server = scene.serve(&["--config", "hexz-nbd.toml"], &[]);
    assert_eq!(exports(&server), ["one", "other", "other/aux"]);
    let expected = fixtures::named("v082-enc-zstd-fixed-aux.hxz").aux.unwrap().sha256;
    assert_eq!(digest(&server, "other/aux"), expected);
}

#[test]
fn what_cannot_be_decrypted_is_named_in_the_log_and_does_not_stop_the_others() {
    let scene = Scene::new();
    let server = scene.serve(&["--key-file", "key", "."], &[]);
    let wanted = |line: &serde_json::Value| line["message"] == "not exported";
    server.wait_until(wanted, 1);
    let line = server.log().into_iter().find(wanted).unwrap();
    assert_eq!(line["export"], "other");
    assert!(line["error"].as_str().unwrap().contains("the passphrase is wrong"), "{line}");
    assert_eq!(exports(&server), ["one", "plain", "two"]);
}

#[test]
fn at_the_start_a_wrong_passphrase_or_key_file_is_one_clear_line() {
    let scene = Scene::new();
    scene.secret("empty", "");
    fs::write(scene.path("open"), PASSWORD).unwrap();
    fs::set_permissions(scene.path("open"), fs::Permissions::from_mode(0o644)).unwrap();
    for (key, part) in [
        ("other.hxz", "larger than 65536 bytes"),
        ("open", "chmod 600"),
        ("empty", "there is no passphrase in it"),
        ("absent", "cannot open the file"),
    ] {
        let error = scene.refused(key);
        assert!(error.contains(part) && error.contains(key), "{error}");
        assert!(!error.contains(PASSWORD), "{error}");
    }
    scene.secret("wrong", "battery staple");
    let error = scene.refused("wrong");
    assert!(error.contains("one.hxz: the snapshot is encrypted, and the passphrase is wrong"));
    assert!(!error.contains("battery"), "{error}");
}

#[test]
fn the_whole_of_an_encrypted_snapshot_is_verified_with_its_passphrase() {
    let scene = Scene::new();
    let verify = |key: &str| {
        let arguments = ["verify", "--key-file", key, "one.hxz"];
        Client::new(HEXZ_NBD).args(arguments).current_dir(scene.0.path()).run()
    };
    let verified = String::from_utf8(verify("key").succeeded().stdout).unwrap();
    assert!(verified.contains("one.hxz: whole, "), "{verified}");
    scene.secret("wrong", "battery staple");
    assert!(verify("wrong").failed().stderr.contains("the passphrase is wrong"));
}
