//! Upstream's own reader, release 0.8.2.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hexz_common::sign::verify_digest;
use hexz_core::algo::compression::create_compressor;
use hexz_core::algo::encryption::Encryptor;
use hexz_core::algo::encryption::aes_gcm::AesGcmEncryptor;
use hexz_core::api::file::ParentLoader;
use hexz_core::format::header::Header;
use hexz_core::store::StorageBackend;
use hexz_core::{Archive, ArchiveStream};
use sha2::{Digest, Sha256};

/// The main stream, as upstream's own tools open a file: parents as written if they exist, else
/// beside the child, and without their own parents.
pub(crate) fn read_main(path: &Path, passphrase: Option<&str>) -> Vec<u8> {
    let directory = path.parent().unwrap().to_owned();
    let loader: ParentLoader = Box::new(move |recorded| {
        let recorded = PathBuf::from(recorded);
        Ok(open(&if recorded.exists() { recorded } else { directory.join(recorded) }, None, None))
    });
    let archive = open(path, passphrase, Some(&loader));
    let size = usize::try_from(archive.size(ArchiveStream::Main)).unwrap();
    archive.read_at(ArchiveStream::Main, 0, size).unwrap()
}

/// Whether a file is signed by a key, as far as upstream's header and its signatures go: what
/// `verify_archive` of hexz-ops does. That crate would bring a hundred others with it, two older
/// TLS libraries among them.
pub(crate) fn is_signed_by(path: &Path, public_key: &Path) -> bool {
    let contents = fs::read(path).unwrap();
    let header = Header::read_from(&mut &contents[..]).unwrap();
    let signature_at = header.signature_offset.unwrap() as usize;
    let signature = contents[signature_at..][..64].try_into().unwrap();
    let digest = Sha256::digest(&contents[header.index_offset as usize..signature_at]);
    verify_digest(public_key, &digest, signature).is_ok()
}

fn open(path: &Path, passphrase: Option<&str>, loader: Option<&ParentLoader>) -> Arc<Archive> {
    let backend = Arc::new(InMemory(fs::read(path).unwrap().into()));
    let header = Header::read_from_backend(&*backend).unwrap();
    let dictionary = header.load_dictionary(&*backend).unwrap();
    let compressor = create_compressor(header.compression, None, dictionary.as_deref());
    let encryptor = passphrase.map(|passphrase| {
        let key = header.encryption.as_ref().unwrap();
        let passphrase = passphrase.as_bytes();
        let aes = AesGcmEncryptor::new(passphrase, &key.salt, key.iterations).unwrap();
        Box::new(aes) as Box<dyn Encryptor>
    });
    Archive::with_cache_and_loader(backend, compressor, encryptor, None, None, loader).unwrap()
}

/// A file in memory for upstream's library.
#[derive(Debug)]
pub(crate) struct InMemory(pub(crate) Bytes);

impl StorageBackend for InMemory {
    fn read_exact(&self, offset: u64, length: usize) -> hexz_common::Result<Bytes> {
        let start = offset as usize;
        Ok(self.0.slice(start..start + length))
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}
