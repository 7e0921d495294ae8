//! Upstream's own cipher behind our reader.

use std::sync::Arc;

use hexz_core::algo::encryption::Encryptor as _;
use hexz_core::algo::encryption::aes_gcm::AesGcmEncryptor;
use hexz_nbd::snapshot::format::header::Encryption;
use hexz_nbd::snapshot::{
    Compression, Compressor, Damage, Encryptor, ErrorKind, File, FileBackend, Lz4Compressor,
    Stream, Structure, ZstdCompressor,
};

use crate::support::fixtures::{self, Fixture, sha256};

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
