//! Encrypted snapshots that we write, read by upstream's own library and by ours.

use std::collections::HashSet;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use hexz_nbd::snapshot::format::index::EntryKind;
use hexz_nbd::snapshot::write::{Base, Method, Settings, Summary, ZstdLevel};
use hexz_nbd::snapshot::{
    self, ErrorKind, File, FileBackend, OpenOptions, Passphrase, Stream, Structure,
};
use tempfile::TempDir;

use crate::support::fixtures;
use crate::support::packing::{names, noise, settings, text, write_to};
use crate::support::upstream;

const SECRET: &str = "Größe, correct horse";

struct Scene(TempDir);

impl Scene {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn pack(&self, image: &[u8], out: &str, settings: &Settings<'_>) -> Summary {
        fs::write(self.path("disk.img"), image).unwrap();
        write_to(&self.path("disk.img"), &self.path(out), settings).unwrap()
    }

    /// Runs the command, with a passphrase in the environment only if it is given here.
    fn command(&self, arguments: &[&str], passphrase: Option<&str>) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hexz-nbd"));
        command.arg("pack").args(arguments).current_dir(self.0.path());
        command.env_remove("HEXZ_NBD_PASSPHRASE").env_remove("CREDENTIALS_DIRECTORY");
        command.envs(passphrase.map(|passphrase| ("HEXZ_NBD_PASSPHRASE", passphrase)));
        command.output().unwrap()
    }

    fn key_file(&self, name: &str, contents: &str) {
        fs::write(self.path(name), contents).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
}

fn structure(path: &Path) -> Structure {
    Structure::read(Arc::new(FileBackend::new(path).unwrap()), 1 << 24).unwrap()
}

fn open(path: &Path, passphrase: &Passphrase) -> Result<Arc<File>, snapshot::Error> {
    let options = OpenOptions { passphrases: vec![passphrase.clone()], ..OpenOptions::default() };
    File::open_with(Arc::new(FileBackend::new(path).unwrap()), options)
}

/// Both libraries give back the image.
fn check_readers(image: &[u8], path: &Path) {
    assert!(upstream::read_main(path, Some(SECRET)) == image, "upstream reads other bytes");
    let ours = open(path, &fixtures::passphrase(SECRET)).unwrap();
    let bytes = ours.read_at(Stream::Main, 0, image.len() + 1).unwrap();
    assert!(bytes == image, "we read other bytes");
}

/// Zeros, blocks that repeat, and more blocks than a page holds.
fn image(block_bytes: usize, blocks: usize) -> Vec<u8> {
    let block = |number: usize| match number % 7 {
        0 | 1 => vec![0; block_bytes],
        2 => text(block_bytes),
        other => noise((other % 5) as u64, block_bytes),
    };
    let mut image: Vec<u8> = (0..blocks).flat_map(block).collect();
    image.extend(noise(77, block_bytes / 3));
    image
}

#[test]
fn encrypted_snapshots_read_back_through_upstream_and_through_us() {
    let scene = Scene::new();
    let secret = fixtures::passphrase(SECRET);
    for (method, block_bytes, blocks, threads) in [
        (Method::Lz4, 512, 9000, 4),
        (Method::Zstd(ZstdLevel::DEFAULT), 4096, 300, 1),
        (Method::Lz4, 65536, 40, 3),
        (Method::Zstd(ZstdLevel::DEFAULT), 3 << 20, 3, 2),
        (Method::Lz4, 4096, 0, 1),
    ] {
        let image = image(block_bytes, blocks);
        let settings = Settings {
            passphrase: Some(&secret),
            replace: true,
            threads: NonZeroUsize::new(threads).unwrap(),
            ..settings(method, block_bytes)
        };
        let summary = scene.pack(&image, "out.hxz", &settings);
        assert_eq!(summary.duplicate_bytes, 0);
        check_readers(&image, &scene.path("out.hxz"));
    }
    let settings =
        Settings { passphrase: Some(&secret), replace: true, ..settings(Method::Lz4, 4096) };
    scene.pack(&[], "out.hxz", &settings);
    check_readers(&[], &scene.path("out.hxz"));
}

/// Format section 10: the entries say where zeros are and how long blocks are, and no more.
#[test]
fn every_block_is_stored_by_itself_and_the_index_has_no_hash_of_it() {
    let scene = Scene::new();
    let secret = fixtures::passphrase(SECRET);
    let image = image(4096, 200);
    let settings = Settings { passphrase: Some(&secret), ..settings(Method::Lz4, 4096) };
    let summary = scene.pack(&image, "out.hxz", &settings);
    let contents = fs::read(scene.path("out.hxz")).unwrap();
    let structure = structure(&scene.path("out.hxz"));
    let encryption = structure.header().encryption.unwrap();
    assert_eq!(encryption.iterations, 600_000);
    let mut seen = HashSet::new();
    let (mut next, mut sparse) = (4096, 0);
    for page in &structure.index().main {
        for entry in structure.entries(page).unwrap() {
            assert_eq!(entry.hash, [0; 32]);
            match entry.kind(structure.entry_bounds()).unwrap() {
                EntryKind::Sparse => sparse += u64::from(entry.logical_length),
                EntryKind::Data => {
                    assert_eq!(entry.offset, next);
                    next += u64::from(entry.length);
                    let start = entry.offset as usize;
                    let stored = &contents[start..start + entry.length as usize];
                    assert_eq!(entry.crc, crc32fast::hash(stored));
                    assert!(seen.insert(stored.to_vec()), "a block is stored like another one");
                }
                other => panic!("{other:?}"),
            }
        }
        next += u64::from(page.length);
    }
    assert_eq!(sparse, summary.sparse_bytes);
    assert!(sparse > 0 && seen.len() > 100);
}

#[test]
fn nothing_of_the_contents_is_in_the_file_and_a_second_pack_shares_nothing() {
    let scene = Scene::new();
    let secret = fixtures::passphrase(SECRET);
    let image = [noise(1, 100_000), text(100_000), noise(2, 50_000)].concat();
    // Blocks that LZ4 cannot compress stand in a plain file as they are.
    let plain = settings(Method::Lz4, 4096);
    scene.pack(&image, "plain.hxz", &plain);
    let encrypted = Settings { passphrase: Some(&secret), ..plain };
    scene.pack(&image, "one.hxz", &encrypted);
    scene.pack(&image, "two.hxz", &encrypted);

    let windows = |name: &str| -> HashSet<[u8; 8]> {
        let contents = fs::read(scene.path(name)).unwrap();
        let blocks = &contents[4096..structure(&scene.path(name)).header().index_offset as usize];
        blocks.windows(8).map(|window| window.try_into().unwrap()).collect()
    };
    let found = |windows: &HashSet<[u8; 8]>| {
        image.chunks_exact(8).filter(|bytes| windows.contains(*bytes)).count()
    };
    assert!(found(&windows("plain.hxz")) > 10_000);
    assert_eq!(found(&windows("one.hxz")), 0);
    let salt = |name: &str| structure(&scene.path(name)).header().encryption.unwrap().salt;
    assert_ne!(salt("one.hxz"), salt("two.hxz"));
    assert_ne!(salt("one.hxz"), [0; 16]);
    // Equal plain bytes at the same place, and no stored block alike.
    let read = |name: &str| fs::read(scene.path(name)).unwrap();
    let (one, two) = (read("one.hxz"), read("two.hxz"));
    let entries = |name: &str| {
        let structure = structure(&scene.path(name));
        structure.entries(&structure.index().main[0]).unwrap()
    };
    for (a, b) in entries("one.hxz").iter().zip(&entries("two.hxz")) {
        assert_eq!((a.offset, a.length), (b.offset, b.length));
        let range = a.offset as usize..a.offset as usize + a.length as usize;
        assert_ne!(one[range.clone()], two[range]);
        assert_ne!(a.crc, b.crc);
    }
    // Nor is the passphrase.
    for contents in [&one, &two] {
        assert!(!contents.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()));
    }
}

#[test]
fn only_the_passphrase_reads_it() {
    let scene = Scene::new();
    let secret = fixtures::passphrase(SECRET);
    let settings = Settings { passphrase: Some(&secret), ..settings(Method::Lz4, 4096) };
    scene.pack(&noise(1, 10_000), "out.hxz", &settings);
    let error = open(&scene.path("out.hxz"), &fixtures::passphrase("wrong")).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::WrongPassphrase { .. }), "{error}");
    let error = File::open(scene.path("out.hxz")).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::NeedsKey), "{error}");
}

#[test]
fn an_encrypted_child_refers_to_its_base_by_hashes_and_hides_the_rest() {
    let secret = fixtures::passphrase(SECRET);
    for fixture in ["v082-thin-base.hxz", "v082-lz4-fixed-multipage.hxz", "v070-lz4-default.hxz"] {
        let scene = Scene::new();
        fs::copy(fixtures::path(fixture), scene.path("base.hxz")).unwrap();
        let mut image = upstream::read_main(&scene.path("base.hxz"), None);
        // The number of a block counts those that are in the base, and zeros.
        image.splice(700_000..700_000, vec![0; 600_000]);
        image.truncate(image.len() / 1024 * 1024);
        image.extend(noise(5, 300_000));
        image.extend(noise(5, 300_000));
        let base = Base::open(&scene.path("base.hxz")).unwrap();
        let settings = Settings {
            cut: base.cut().unwrap(),
            base: Some(&base),
            passphrase: Some(&secret),
            ..settings(Method::Zstd(ZstdLevel::DEFAULT), 4096)
        };
        let summary = scene.pack(&image, "child.hxz", &settings);
        assert!(summary.base_bytes > 400_000, "{fixture}: {summary:?}");
        assert!(summary.sparse_bytes > 0, "{fixture}");
        check_readers(&image, &scene.path("child.hxz"));
        let structure = structure(&scene.path("child.hxz"));
        assert!(structure.header().encryption.is_some());
        let (mut references, mut data) = (0, 0);
        for page in &structure.index().main {
            for entry in structure.entries(page).unwrap() {
                match entry.kind(structure.entry_bounds()).unwrap() {
                    EntryKind::Parent => {
                        assert_ne!(entry.hash, [0; 32]);
                        references += 1;
                    }
                    EntryKind::Data => {
                        assert_eq!(entry.hash, [0; 32]);
                        data += 1;
                    }
                    EntryKind::Sparse => {}
                    EntryKind::Nothing => panic!("an empty block"),
                }
            }
        }
        assert!(references > 0 && data > 0, "{fixture}");
    }
}

#[test]
fn the_command_takes_the_passphrase_from_a_file_or_the_environment() {
    let scene = Scene::new();
    let image = image(65536, 10);
    fs::write(scene.path("disk.img"), &image).unwrap();
    scene.key_file("key", &format!("{SECRET}\n"));
    let pack = ["disk.img", "out.hxz", "--force", "--encrypt"];
    let with_file = [&pack[..], &["--key-file", "key"]].concat();
    for (arguments, environment) in [
        (&with_file[..], None),
        // A file that is named goes before the environment.
        (&with_file[..], Some("another")),
        (&pack[..], Some(SECRET)),
    ] {
        let output = scene.command(arguments, environment);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty());
        check_readers(&image, &scene.path("out.hxz"));
    }
}

#[test]
fn the_command_does_not_encrypt_without_a_passphrase_and_takes_none_without_encrypting() {
    let scene = Scene::new();
    fs::write(scene.path("disk.img"), "image").unwrap();
    scene.key_file("empty", "\n");
    scene.key_file("key", SECRET);
    scene.key_file("latin1", "");
    fs::write(scene.path("latin1"), b"Stra\xdfe").unwrap();
    let pack = ["disk.img", "out.hxz"];
    for (options, environment, code, parts) in [
        (&["--encrypt"][..], None, 2, &["--key-file", "HEXZ_NBD_PASSPHRASE"][..]),
        (&["--encrypt"], Some(""), 2, &["HEXZ_NBD_PASSPHRASE", "empty"]),
        (&["--encrypt", "--key-file", "empty"], None, 1, &["empty", "no passphrase"]),
        (&["--encrypt", "--key-file", "missing"], None, 1, &["missing", "No such file"]),
        (&["--encrypt", "--key-file", "latin1"], None, 1, &["not UTF-8"]),
        (&["--key-file", "key"], None, 2, &["--encrypt"]),
    ] {
        let output = scene.command(&[&pack[..], options].concat(), environment);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{options:?}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{options:?}: {stderr}");
        }
        assert!(!stderr.contains(SECRET));
    }
    assert_eq!(names(scene.0.path()), ["disk.img", "empty", "key", "latin1"]);
    // What is in the environment encrypts nothing by itself.
    let output = scene.command(&pack, Some(SECRET));
    assert!(output.status.success());
    assert_eq!(structure(&scene.path("out.hxz")).header().encryption, None);
}
