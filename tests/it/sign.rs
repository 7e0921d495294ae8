//! `keygen`, `sign`, and what `verify` and `inspect` say of signatures.

use std::fs::{self, Permissions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use hexz_common::sign::{sign_digest, verify_digest};
use hexz_nbd::snapshot::format::Entry;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::support::fixtures;
use crate::support::process::{Client, HEXZ_NBD, Output, refused};
use crate::support::signed::{memory, structure};

/// A directory with keys, and with copies of fixtures.
struct Place(TempDir);

impl Place {
    fn new(fixtures: &[&str]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.run(&["keygen", "keys"]).succeeded();
        place.run(&["keygen", "other"]).succeeded();
        for fixture in fixtures {
            fs::copy(fixtures::path(fixture), place.path(fixture)).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Client::new(HEXZ_NBD).args(arguments).current_dir(self.0.path()).run()
    }

    fn sign(&self, arguments: &[&str]) -> Output {
        self.run(&[&["sign", "--key", "keys/private.key"], arguments].concat())
    }

    fn verify(&self, arguments: &[&str]) -> Output {
        self.run(&[&["verify", "--key", "keys/public.key"], arguments].concat())
    }

    fn inspect(&self, arguments: &[&str]) -> Value {
        self.run(&[&["inspect", "--json"], arguments].concat()).succeeded().json()
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(name)).unwrap();
        change(&mut bytes);
        fs::write(self.path(name), bytes).unwrap();
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// The only line of a command that fails.
fn complaint(output: Output) -> String {
    let output = output.failed();
    assert_eq!(output.status.code(), Some(1), "{}", output.stderr);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    output.stderr
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn keys_are_a_pair_that_upstream_can_use_and_nobody_else_can_read() {
    let place = Place::new(&[]);
    let (private, public) = (place.path("keys/private.key"), place.path("keys/public.key"));
    assert_eq!((mode(&private), mode(&place.path("keys"))), (0o600, 0o700));
    assert_eq!(fs::metadata(&private).unwrap().len(), 32);
    let digest = [7; 32];
    let signature = sign_digest(&private, &digest).unwrap();
    verify_digest(&public, &digest, &signature).unwrap();
    assert_ne!(fs::read(&public).unwrap(), fs::read(place.path("other/public.key")).unwrap());
}

#[test]
fn keys_are_never_overwritten() {
    for existing in ["private.key", "public.key"] {
        let place = Place::new(&[]);
        fs::create_dir(place.path("new")).unwrap();
        let path = place.path("new").join(existing);
        fs::write(&path, "precious").unwrap();
        let line = complaint(place.run(&["keygen", "new"]));
        assert!(line.contains(existing) && line.contains("is kept"), "{line}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert_eq!(fs::read_dir(place.path("new")).unwrap().count(), 1);
        fs::remove_file(&path).unwrap();
        // Nor what a link points to.
        symlink("nowhere", &path).unwrap();
        complaint(place.run(&["keygen", "new"]));
        assert_eq!(fs::read_dir(place.path("new")).unwrap().count(), 1);
    }
}

#[test]
fn a_private_key_that_others_can_read_is_refused() {
    let place = Place::new(&["v082-onebyte.hxz"]);
    let key = place.path("keys/private.key");
    for mode in [0o640, 0o604, 0o644, 0o660] {
        fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
        let line = complaint(place.sign(&["v082-onebyte.hxz"]));
        assert!(line.contains("chmod 600") && line.contains("private.key"), "{line}");
    }
    fs::set_permissions(&key, Permissions::from_mode(0o400)).unwrap();
    place.sign(&["v082-onebyte.hxz"]).succeeded();
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    for length in [0, 31, 33, 1000] {
        fs::write(&key, vec![7; length]).unwrap();
        let line = complaint(place.sign(&["v082-onebyte.hxz"]));
        assert!(line.contains("a key is 32 raw bytes"), "{line}");
    }
}

#[test]
fn a_signed_snapshot_is_valid_for_us_and_for_upstream_and_keeps_its_mode() {
    for name in ["v082-lz4-default.hxz", "v020-lz4-sparse-signed.hxz", "v082-enc-lz4.hxz"] {
        let place = Place::new(&[name]);
        let path = place.path(name);
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let before = fs::read(&path).unwrap();
        let mut open = fs::File::open(&path).unwrap();
        let output = place.sign(&[name]).succeeded();
        assert!(output.text().contains("master index signed"), "{}", output.text());
        assert_eq!(mode(&path), 0o640);

        // Who had it open reads on in what it was.
        let mut read = Vec::new();
        open.read_to_end(&mut read).unwrap();
        assert!(read == before);
        let after = fs::read(&path).unwrap();
        assert_eq!(after.len(), before.len() + 64);

        let index_offset = u64::from_le_bytes(after[12..20].try_into().unwrap()) as usize;
        let (signed, signature) = after.split_at(before.len());
        let digest = Sha256::digest(&signed[index_offset..]);
        let public = place.path("keys/public.key");
        verify_digest(&public, &digest, signature.try_into().unwrap()).unwrap();

        if name != "v082-enc-lz4.hxz" {
            let output = place.verify(&["--require-manifest", name]).succeeded();
            let text = output.text();
            assert!(text.contains("master index signature valid by "), "{text}");
            assert!(text.contains("manifest valid, root "), "{text}");
        }

        // Once more: nothing is left to sign, and the manifest is the same.
        let manifest = fs::read(place.path(&format!("{name}.manifest"))).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        place.sign(&[name]).succeeded();
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        assert!(fs::read(place.path(&format!("{name}.manifest"))).unwrap() == manifest);
        assert_eq!(place.files(), ["keys", "other", name, &format!("{name}.manifest")]);
    }
}

#[test]
fn a_snapshot_is_left_as_it_is_where_that_is_asked_for() {
    let name = "v082-lz4-default.hxz";
    let place = Place::new(&[name]);
    let before = fs::read(place.path(name)).unwrap();
    place.sign(&["--manifest-only", name]).succeeded();
    assert!(fs::read(place.path(name)).unwrap() == before);
    let output = place.verify(&[name]).succeeded();
    assert!(output.text().contains("manifest valid"), "{}", output.text());

    fs::set_permissions(place.path(name), Permissions::from_mode(0o444)).unwrap();
    fs::remove_file(place.path("v082-lz4-default.hxz.manifest")).unwrap();
    let output = place.sign(&[name]).succeeded();
    assert!(output.text().contains("read-only, left as it is"), "{}", output.text());
    assert!(fs::read(place.path(name)).unwrap() == before);
    place.verify(&["--require-manifest", name]).succeeded();
    // Without manifest there is nothing that would be signed.
    fs::remove_file(place.path("v082-lz4-default.hxz.manifest")).unwrap();
    let line = complaint(place.verify(&[name]));
    assert!(line.contains("the snapshot has no signature"), "{line}");
}

#[test]
fn what_is_damaged_is_not_signed_and_nothing_is_left_behind() {
    let name = "v014-zstd-cdc.hxz";
    let place = Place::new(&[name]);
    place.change(name, |bytes| bytes[5000] ^= 1);
    let before = fs::read(place.path(name)).unwrap();
    for arguments in [&[name][..], &["--manifest-only", name]] {
        let line = complaint(place.sign(arguments));
        assert!(line.contains("v014-zstd-cdc.hxz: damaged block: checksum"), "{line}");
        assert_eq!(place.files(), ["keys", "other", name]);
        assert!(fs::read(place.path(name)).unwrap() == before);
    }
    symlink(name, place.path("link.hxz")).unwrap();
    let line = complaint(place.sign(&["link.hxz"]));
    assert!(line.contains("link.hxz: not a regular file"), "{line}");
    complaint(place.sign(&["missing.hxz"]));
}

#[test]
fn a_thin_snapshot_is_signed_after_its_parents_and_pins_them() {
    let (base, child) = ("v082-thin-base.hxz", "v082-thin-child.hxz");
    let grandchild = "v082-thin-grandchild.hxz";
    let place = Place::new(&[base, child, grandchild]);
    let line = complaint(place.sign(&[grandchild]));
    assert!(line.contains(&format!("sign the parent first: {child}")), "{line}");
    for name in [base, child, grandchild] {
        place.sign(&[name]).succeeded();
    }
    let root = place.inspect(&[base])["manifest"]["root"].clone();
    assert_eq!(place.inspect(&[child])["manifest"]["parent_roots"], Value::from(vec![root]));

    // A parent that is no longer what its manifest says.
    place.change(base, |bytes| bytes[8] ^= 1);
    let line = complaint(place.sign(&[child]));
    assert!(line.contains("v082-thin-base.hxz.manifest: the snapshot is not the one"), "{line}");
    fs::remove_file(place.path(base)).unwrap();
    let line = complaint(place.sign(&[child]));
    assert!(line.contains("its parent v082-thin-base.hxz is not there"), "{line}");
}

#[test]
fn parents_are_found_in_directories_that_are_named_and_by_their_last_part_only() {
    let (base, child) = ("v055-lz4-fixed.hxz", "v055-thin-commit.hxz");
    let place = Place::new(&[child]);
    for directory in ["empty", "elsewhere"] {
        fs::create_dir(place.path(directory)).unwrap();
    }
    // A directory of that name is no parent.
    fs::create_dir(place.path("empty").join(base)).unwrap();
    fs::copy(fixtures::path(base), place.path("elsewhere").join(base)).unwrap();
    let directories = ["--parent-dir", "empty", "--parent-dir", "elsewhere"];
    let sign = || place.sign(&[&directories[..], &[child]].concat());
    let line = complaint(sign());
    assert!(line.contains("sign the parent first: elsewhere/v055-lz4-fixed.hxz"), "{line}");

    // By somebody else, which has to be said.
    let parent = "elsewhere/v055-lz4-fixed.hxz";
    place.run(&["sign", "--key", "other/private.key", parent]).succeeded();
    let line = complaint(sign());
    assert!(line.contains("say so with --parent-key"), "{line}");
    let with_key = [&directories[..], &["--parent-key", "other/public.key", child]].concat();
    place.sign(&with_key).succeeded();
    let manifest = &place.inspect(&["--key", "keys/public.key", child])["manifest"];
    assert_eq!(manifest["signature_and_root"], "valid");
}

#[test]
fn a_snapshot_that_names_itself_as_its_parent_cannot_be_signed() {
    let place = Place::new(&["h-self-parent.hxz"]);
    let line = complaint(place.sign(&["h-self-parent.hxz"]));
    assert!(line.contains("is the snapshot itself"), "{line}");
}

#[test]
fn verify_wants_one_of_the_keys_for_signature_and_manifest() {
    let name = "v082-signed.hxz";
    let place = Place::new(&[name]);
    let upstream = fixtures::path("v082-signed.pub");
    let upstream = upstream.to_str().unwrap();
    let output = place.run(&["verify", "--key", upstream, name]).succeeded();
    assert!(
        output.text().contains("master index signature valid by 6b86f680"),
        "{}",
        output.text()
    );
    assert!(!output.text().contains("authentic"), "{}", output.text());
    let line = complaint(place.verify(&[name]));
    assert!(line.contains("the master index signature is not valid by any of the keys"), "{line}");
    let line = complaint(place.run(&["verify", "--key", upstream, "--require-manifest", name]));
    assert!(line.contains("there is no manifest beside it"), "{line}");

    // The manifest by one key, the signature by the other.
    place.sign(&["--manifest-only", name]).succeeded();
    place.verify(&["--key", upstream, name]).succeeded();
    let line = complaint(place.run(&["verify", "--key", upstream, name]));
    assert!(line.contains("which is none of those given"), "{line}");
    // It covers what the signature would, and more.
    place.verify(&[name]).succeeded();
    let (code, _) = refused(&["verify", "--require-manifest", name]);
    assert_eq!(code, 2);
    complaint(place.run(&["verify", "--key", "missing.key", name]));
}

/// One block in the place of another: nothing else in a snapshot of family A would notice.
#[test]
fn a_block_that_was_replaced_with_its_checksum_is_noticed_by_the_manifest_alone() {
    let name = "v020-lz4-1m-blocks.hxz";
    let place = Place::new(&[name]);
    place.sign(&[name]).succeeded();
    place.verify(&[name]).succeeded();
    let structure = structure(memory(fs::read(place.path(name)).unwrap())).unwrap();
    let record = structure.index().main[0];
    let entries = structure.entries(&record).unwrap();
    let fits = |entry: &Entry| entry.length != 0 && entry.logical_length == 1 << 20;
    let mut data = entries.iter().enumerate().filter(|(_, entry)| fits(entry));
    let ((first, one), (second, other)) = (data.next().unwrap(), data.next().unwrap());
    assert_ne!(one.crc, other.crc);
    let at = |number: usize| record.offset as usize + 8 + number * 20;
    place.change(name, |bytes| bytes.copy_within(at(second)..at(second) + 20, at(first)));
    let line = complaint(place.verify(&[name]));
    assert!(line.contains("index page 0 of the main stream"), "{line}");
    fs::remove_file(place.path("v020-lz4-1m-blocks.hxz.manifest")).unwrap();
    place.verify(&[name]).succeeded();
}

#[test]
fn inspect_says_what_signature_and_manifest_are_worth() {
    let name = "v082-signed.hxz";
    let place = Place::new(&[name]);
    let upstream = fixtures::path("v082-signed.pub");
    let upstream = upstream.to_str().unwrap();
    let report = place.inspect(&[name]);
    assert_eq!(report["signature"]["master_index"], "not_checked");
    assert_eq!(report["manifest"], Value::Null);
    let report = place.inspect(&["--key", "keys/public.key", "--key", upstream, name]);
    assert_eq!(report["signature"]["master_index"], "valid");
    assert!(report["signature"]["key"].as_str().unwrap().starts_with("6b86f680"));
    let text = place.run(&["inspect", "--key", "keys/public.key", name]).succeeded();
    assert!(text.text().contains("not valid by these keys"), "{}", text.text());
    let text = place.run(&["inspect", "--key", upstream, name]).succeeded();
    assert!(text.text().contains("master index signature valid by 6b86f680"), "{}", text.text());

    place.sign(&[name]).succeeded();
    let manifest = place.inspect(&[name])["manifest"].clone();
    assert_eq!(manifest["signature_and_root"], "not_checked");
    let key: String = fs::read(place.path("keys/public.key"))
        .unwrap()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(manifest["key"], Value::from(key));
    assert_eq!(manifest["root"].as_str().unwrap().len(), 64);
    assert_eq!(manifest["block_hashes"], false);
    let manifest = place.inspect(&["--key", "keys/public.key", name])["manifest"].clone();
    assert_eq!(
        (&manifest["signature_and_root"], &manifest["error"]),
        (&"valid".into(), &Value::Null)
    );
    let text = place.run(&["inspect", "--key", "keys/public.key", name]).succeeded();
    for line in ["manifest root: ", "signature and root valid; `verify` compares pages and blocks"]
    {
        assert!(text.text().contains(line), "{}", text.text());
    }
    let wrong = |arguments: &[&str], what: &str| {
        let manifest = place.inspect(arguments)["manifest"].clone();
        assert_eq!(manifest["signature_and_root"], "wrong");
        let error = manifest["error"].as_str().unwrap();
        assert!(error.contains(what), "{error}");
    };
    wrong(&["--key", "other/public.key", name], "which is none of those given");
    // Its signature is as good as before: that does not cover the header.
    place.change(name, |bytes| bytes[8] ^= 1);
    wrong(&["--key", "keys/public.key", name], "the snapshot is not the one that was signed");
    wrong(&[name], "the snapshot is not the one that was signed");
    let report = place.inspect(&["--key", "keys/public.key", name]);
    assert_eq!(report["signature"]["master_index"], "valid");
    fs::write(place.path("v082-signed.hxz.manifest"), "nonsense").unwrap();
    wrong(&[name], "8 bytes long");
}

#[test]
fn damage_that_a_checksum_shows_is_not_signed() {
    let place = Place::new(&["h-flip-block.hxz", "v082-lz4-default.hxz"]);
    let line = complaint(place.sign(&["h-flip-block.hxz"]));
    assert!(line.contains("damaged block: checksum"), "{line}");
    assert!(!place.path("h-flip-block.hxz.manifest").exists());
    place.sign(&["v082-lz4-default.hxz"]).succeeded();
}

#[test]
fn a_manifest_is_found_where_a_link_leads_to() {
    let name = "v082-onebyte.hxz";
    let place = Place::new(&[name]);
    place.sign(&[name]).succeeded();
    fs::create_dir(place.path("links")).unwrap();
    std::os::unix::fs::symlink(place.path(name), place.path("links/other.hxz")).unwrap();
    let output = place.verify(&["--require-manifest", "links/other.hxz"]).succeeded();
    assert!(output.text().contains("manifest valid"), "{}", output.text());
    // A link to a manifest is none.
    let manifest = format!("{name}.manifest");
    fs::rename(place.path(&manifest), place.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", place.path(&manifest)).unwrap();
    let line = complaint(place.verify(&["--require-manifest", name]));
    assert!(line.contains("not a regular file"), "{line}");
}
