//! Upstream's own code on one side, ours on the other: its cipher behind our reader, its reader on what
//! we encrypt, refer and sign, its keys in our hands. `pack_base.rs` and `pack_encrypt.rs` have more of
//! the writer, and every test of fixtures reads what upstream's tools wrote.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hexz_common::sign::{generate_keypair, sign_digest};
use hexz_core::algo::encryption::Encryptor as _;
use hexz_core::algo::encryption::aes_gcm::AesGcmEncryptor;
use hexz_nbd::snapshot::format::header::Encryption;
use hexz_nbd::snapshot::signature::verify_master_index;
use hexz_nbd::snapshot::{
    Compression, Compressor, Damage, Encryptor, ErrorKind, File, FileBackend, Lz4Compressor,
    SigningKey, Stream, Structure, VerifyKey, ZstdCompressor,
};

use sha2::{Digest as _, Sha256};

use crate::support::fixtures::{self, Fixture, sha256};
use crate::support::packing::noise;
use crate::support::process::{Client, HEXZ_NBD};
use crate::support::signed::{bytes, key, memory, structure, with_signature};
use crate::support::upstream::{is_signed_by, read_main};

#[derive(Debug)]
struct Upstream(AesGcmEncryptor);

impl Encryptor for Upstream {
    fn decrypt(&self, block_number: u64, stored: Vec<u8>) -> Result<Vec<u8>, Damage> {
        self.0.decrypt(&stored, block_number).map_err(|_| Damage::Decryption)
    }
}

fn open(fixture: &Fixture, password: &str) -> Arc<File> {
    let backend = Arc::new(FileBackend::new(&fixture.path()).unwrap());
    let structure = Structure::read(Arc::<FileBackend>::clone(&backend), 1 << 24).unwrap();
    let Encryption { salt, iterations } = structure.header().encryption.unwrap();
    let compressor: Box<dyn Compressor> = match structure.header().compression {
        Compression::Lz4 => Box::new(Lz4Compressor::new()),
        Compression::Zstd => Box::new(ZstdCompressor::new(Vec::new()).unwrap()),
    };
    let key = AesGcmEncryptor::new(password.as_bytes(), &salt, iterations).unwrap();
    File::new(backend, compressor, Some(Box::new(Upstream(key)))).unwrap()
}

#[test]
fn encrypted_files_are_read_through_a_decryptor_of_the_callers() {
    for fixture in fixtures::all() {
        let Some(password) = fixture.password.as_deref() else { continue };
        if !fixture.parents.is_empty() {
            continue;
        }
        let file = open(&fixture, password);
        for (stream, content) in [(Stream::Main, &fixture.main), (Stream::Auxiliary, &fixture.aux)]
        {
            let Some(content) = content else { continue };
            let bytes = file.read_at(stream, 0, 1 << 30).unwrap();
            assert_eq!(sha256(&bytes), content.sha256, "{} {stream}", fixture.file);
        }
    }
}

#[test]
fn a_wrong_key_gives_an_error_and_never_bytes() {
    let fixture = fixtures::named("v082-enc-zstd-fixed-aux.hxz");
    let error = open(&fixture, "wrong").read_at(Stream::Main, 0, 1).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Block { damage: Damage::Decryption, .. }), "{error}");
}

/// All that upstream reads right, of the kinds that the others leave out: encrypted, thin, signed
/// before. Paths of commits are absolute and lead nowhere.
#[test]
fn upstream_reads_and_verifies_its_own_files_after_we_signed_them() {
    let mut signed = 0;
    for fixture in fixtures::all() {
        let is_read = fixture.upstream_0_8_2_readback.as_ref();
        let is_read = is_read.is_some_and(|readback| readback.result == "identical");
        let is_found = |path: &String| Path::new(path).is_relative();
        let is_kind =
            fixture.encrypted || !fixture.parents.is_empty() || fixture.signature.is_some();
        if !is_read || !is_kind || !fixture.parents.iter().all(is_found) {
            continue;
        }
        let directory = tempfile::tempdir().unwrap();
        for parent in &fixture.parents {
            let name = Path::new(parent).file_name().unwrap();
            let parent = fixtures::path(name.to_str().unwrap());
            fs::copy(parent, directory.path().join(name)).unwrap();
        }
        let (path, public) = (directory.path().join("disk.hxz"), directory.path().join("pub"));
        fs::write(&path, with_signature(&bytes(&fixture.file), 1)).unwrap();
        fs::write(&public, key(1).verify_key().as_bytes()).unwrap();
        let read = read_main(&path, fixture.password.as_deref());
        assert_eq!(sha256(&read), fixture.main.unwrap().sha256, "{}", fixture.file);
        assert!(is_signed_by(&path, &public), "{}", fixture.file);
        fs::write(&public, key(2).verify_key().as_bytes()).unwrap();
        assert!(!is_signed_by(&path, &public), "{}", fixture.file);
        signed += 1;
    }
    assert!(signed >= 8, "{signed}");
}

/// A directory with a key pair that upstream made.
struct Keys(tempfile::TempDir);

impl Keys {
    fn new() -> Self {
        let keys = Self(tempfile::tempdir().unwrap());
        generate_keypair(&keys.path("private.key"), &keys.path("public.key")).unwrap();
        // Upstream's tools make it so.
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(keys.path("private.key"), mode).unwrap();
        keys
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &[&str]) {
        Client::new(HEXZ_NBD).args(arguments).current_dir(self.0.path()).run().succeeded();
    }
}

/// No fixture is signed and encrypted, or signed and thin. By the command, with a key of upstream's.
#[test]
fn upstream_reads_and_verifies_what_we_packed_thin_encrypted_and_signed() {
    const SECRET: &str = "Kennwort äöü";
    let place = Keys::new();
    let image = [noise(1, 500_000), vec![0; 300_000], noise(2, 200_001)].concat();
    let edited = [&image[..100_000], &noise(3, 70_000), &image[170_000..]].concat();
    fs::write(place.path("image"), &image).unwrap();
    fs::write(place.path("edited"), &edited).unwrap();
    fs::write(place.path("secret"), SECRET).unwrap();
    fs::set_permissions(place.path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let encrypt = ["--encrypt", "--key-file", "secret"];
    let thin = ["--base", "base.hxz"];
    for (name, options, input, content) in [
        ("base.hxz", vec![], "image", &image),
        ("encrypted.hxz", encrypt.to_vec(), "image", &image),
        ("thin.hxz", thin.to_vec(), "edited", &edited),
        ("both.hxz", [&encrypt[..], &thin[..]].concat(), "edited", &edited),
    ] {
        place.run(&[&["pack"], &options[..], &[input, name]].concat());
        place.run(&["sign", "--key", "private.key", name]);
        let path = place.path(name);
        let passphrase = options.contains(&"--encrypt").then_some(SECRET);
        assert!(read_main(&path, passphrase) == *content, "{name}");
        assert!(is_signed_by(&path, &place.path("public.key")), "{name}");
    }
}

#[test]
fn what_upstream_signs_with_its_key_is_what_we_sign_with_it_and_valid_here() {
    let place = Keys::new();
    let public = VerifyKey::from_bytes(&fs::read(place.path("public.key")).unwrap()).unwrap();
    for name in ["v082-thin-child.hxz", "v082-enc-lz4.hxz", "v045-thin-commit.hxz"] {
        let mut signed = with_signature(&bytes(name), 1).to_vec();
        let structure_of = |file: &[u8]| structure(memory(file.to_vec())).unwrap();
        let header = structure_of(&signed).header().clone();
        let signature_at = header.signature.unwrap().offset as usize;
        let digest: [u8; 32] =
            Sha256::digest(&signed[header.index_offset as usize..signature_at]).into();
        let theirs = sign_digest(&place.path("private.key"), &digest).unwrap();
        signed[signature_at..].copy_from_slice(&theirs);
        assert_eq!(verify_master_index(&structure_of(&signed), &[public]).unwrap(), public);

        let seed = fs::read(place.path("private.key")).unwrap();
        let ours = SigningKey::from_seed(&seed).unwrap();
        assert_eq!(ours.sign(&digest).unwrap(), theirs);
    }
}
