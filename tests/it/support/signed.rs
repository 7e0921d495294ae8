//! Snapshots in memory that change, and their manifests.

use std::io::{self, Cursor};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hexz_nbd::snapshot::manifest::build::{BuildError, build};
use hexz_nbd::snapshot::manifest::{self, Checked, Manifest, ManifestErrorKind, Root, Trust};
use hexz_nbd::snapshot::signature::sign_master_index;
use hexz_nbd::snapshot::{
    Cache, Check, Error, File, MemoryBackend, OpenOptions, SigningKey, StorageBackend, Structure,
    VerifyKey, verify,
};

use crate::support::fixtures::{self, Fixture};

/// Bytes of which one is another, without a copy of the rest.
#[derive(Debug)]
pub(crate) struct Flipped {
    pub(crate) bytes: Bytes,
    pub(crate) at: usize,
    pub(crate) mask: u8,
}

impl StorageBackend for Flipped {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        MemoryBackend::new(self.bytes.clone(), "flipped").read_exact_at(offset, buffer)?;
        let inside = (self.at as u64).checked_sub(offset).map(|at| at as usize);
        if let Some(byte) = inside.and_then(|at| buffer.get_mut(at)) {
            *byte ^= self.mask;
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn name(&self) -> &str {
        "flipped"
    }
}

/// One file first, and another one of the same length when it is told so.
#[derive(Debug)]
pub(crate) struct Replaced {
    first: Bytes,
    second: Bytes,
    is_second: AtomicBool,
}

impl Replaced {
    pub(crate) fn new(first: Bytes, second: Bytes) -> Arc<Self> {
        assert_eq!(first.len(), second.len());
        Arc::new(Self { first, second, is_second: AtomicBool::new(false) })
    }

    pub(crate) fn replace(&self) {
        self.is_second.store(true, Ordering::SeqCst);
    }
}

impl StorageBackend for Replaced {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let is_second = self.is_second.load(Ordering::SeqCst);
        let bytes = if is_second { &self.second } else { &self.first };
        MemoryBackend::new(bytes.clone(), "replaced").read_exact_at(offset, buffer)
    }

    fn bytes(&self) -> u64 {
        self.first.len() as u64
    }

    fn name(&self) -> &str {
        "replaced"
    }
}

/// A snapshot in memory that lies in a directory, perhaps with a manifest beside it, and that
/// becomes another one of the same length when it is told so.
#[derive(Debug)]
pub(crate) struct Placed {
    bytes: Mutex<Bytes>,
    length: u64,
    manifest: Option<Bytes>,
    directory: Option<PathBuf>,
}

impl Placed {
    pub(crate) fn new(bytes: Bytes, manifest: Option<Bytes>, directory: Option<&Path>) -> Self {
        let (length, directory) = (bytes.len() as u64, directory.map(Path::to_path_buf));
        Self { bytes: Mutex::new(bytes), length, manifest, directory }
    }

    pub(crate) fn replace(&self, bytes: Bytes) {
        assert_eq!(bytes.len() as u64, self.length);
        *self.bytes.lock().unwrap() = bytes;
    }
}

impl StorageBackend for Placed {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.lock().unwrap().clone();
        MemoryBackend::new(bytes, "placed").read_exact_at(offset, buffer)
    }

    fn bytes(&self) -> u64 {
        self.length
    }

    fn name(&self) -> &str {
        "placed"
    }

    fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    fn companion(&self, suffix: &str) -> Result<Option<Arc<dyn StorageBackend>>, Error> {
        assert_eq!(suffix, manifest::EXTENSION);
        Ok(self.manifest.clone().map(memory))
    }
}

pub(crate) fn key(number: u8) -> SigningKey {
    SigningKey::from_seed(&[number; 32]).unwrap()
}

pub(crate) fn memory(bytes: impl Into<Bytes>) -> Arc<dyn StorageBackend> {
    Arc::new(MemoryBackend::new(bytes.into(), "memory"))
}

pub(crate) fn structure(storage: Arc<dyn StorageBackend>) -> Result<Structure, Error> {
    Structure::read(storage, 1 << 24)
}

pub(crate) fn bytes(fixture: &str) -> Bytes {
    std::fs::read(fixtures::path(fixture)).unwrap().into()
}

/// The file with our signature of its master index.
pub(crate) fn with_signature(snapshot: &Bytes, number: u8) -> Bytes {
    let signed = sign_master_index(&structure(memory(snapshot.clone())).unwrap(), &key(number));
    let signed = signed.unwrap();
    let mut file = snapshot.to_vec();
    file[..4096].copy_from_slice(&signed.header_area);
    file.extend_from_slice(&signed.signature);
    file.into()
}

/// The manifest of a snapshot, signed by key 1.
pub(crate) fn sign(snapshot: &Bytes, parents: &[Root]) -> Result<Bytes, BuildError> {
    let structure = structure(memory(snapshot.clone()))?;
    let mut out = Cursor::new(Vec::new());
    build(&structure, parents, &key(1), &mut out, &|_| {})?;
    Ok(out.into_inner().into())
}

/// The manifest of a fixture, and of its parents before it.
pub(crate) fn sign_fixture(fixture: &Fixture) -> Bytes {
    sign(&bytes(&fixture.file), &parent_roots(fixture)).unwrap()
}

pub(crate) fn parent_roots(fixture: &Fixture) -> Vec<Root> {
    let name = |path: &String| Path::new(path).file_name().unwrap().to_str().unwrap().to_owned();
    let parents = fixture.parents.iter().map(|path| fixtures::named(&name(path)));
    parents
        .map(|parent| {
            let structure = structure(memory(bytes(&parent.file))).unwrap();
            Manifest::read(memory(sign_fixture(&parent)), &structure).unwrap().root()
        })
        .collect()
}

/// Everything that can be compared with the manifest, by whoever trusts key 1.
pub(crate) fn check(
    snapshot: Arc<dyn StorageBackend>,
    manifest: Arc<dyn StorageBackend>,
) -> Result<Checked, Refusal> {
    let structure = structure(snapshot).map_err(Refusal::Snapshot)?;
    let manifest = Manifest::read(manifest, &structure).map_err(|e| Refusal::Manifest(e.kind))?;
    let keys: [VerifyKey; 2] = [key(2).verify_key(), key(1).verify_key()];
    let checked = manifest
        .check(Trust::Keys(&keys), &structure)
        .map_err(|error| Refusal::Manifest(error.kind))?;
    manifest::verify::verify(&manifest, &structure, &|_| {})
        .map_err(|error| Refusal::Manifest(error.kind))?;
    Ok(checked)
}

#[derive(Debug)]
#[expect(dead_code, reason = "shown when a test fails")]
pub(crate) enum Refusal {
    Snapshot(Error),
    Manifest(ManifestErrorKind),
}

/// Whether every block is what its entry says. For snapshots that need neither key nor parents.
pub(crate) fn blocks_are_whole(snapshot: Arc<dyn StorageBackend>) -> bool {
    let cache = Arc::new(Cache::new(1 << 20));
    let check = Check::Blake3;
    let options = OpenOptions { cache, check, size_from_index: true, ..OpenOptions::default() };
    File::open_with(snapshot, options)
        .is_ok_and(|file| verify(&file, std::num::NonZeroUsize::MIN, &|_| {}).is_empty())
}
