//! Small snapshots in a directory of their own, which a test writes, signs and changes.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hexz_nbd::snapshot::manifest::path_beside;
use hexz_nbd::snapshot::{
    Cache, Compression, Error, Family, File, FileBackend, Manifest, OpenOptions, Root, Stream,
};
use tempfile::TempDir;

use crate::support::contents::{Contents, Piece};
use crate::support::fixtures;
use crate::support::packing::noise;
use crate::support::signed::{self, key, memory};

pub(super) const PASSPHRASE: &str = "open sesame";

pub(super) struct Scene(TempDir);

impl Scene {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn directory(&self) -> &Path {
        self.0.path()
    }

    /// Anew, so that nobody has the old one open.
    pub(super) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        let beside = self.path(&format!("{name}.new"));
        fs::write(&beside, bytes).unwrap();
        fs::rename(beside, path).unwrap();
    }

    pub(super) fn read(&self, name: &str) -> Bytes {
        fs::read(self.path(name)).unwrap().into()
    }

    /// Writes a manifest beside a snapshot, by key 1. Parents are signed before.
    pub(super) fn sign(&self, name: &str, parents: &[&str]) -> Root {
        let roots: Vec<Root> = parents.iter().map(|parent| self.root(parent)).collect();
        let manifest = signed::sign(&self.read(name), &roots).unwrap();
        fs::write(path_beside(&self.path(name)), manifest).unwrap();
        self.root(name)
    }

    fn root(&self, name: &str) -> Root {
        let structure = signed::structure(memory(self.read(name))).unwrap();
        let manifest = self.read(&format!("{name}.manifest"));
        Manifest::read(memory(manifest), &structure).unwrap().root()
    }

    pub(super) fn open(&self, name: &str, options: OpenOptions) -> Result<Arc<File>, Error> {
        File::open_with(Arc::new(FileBackend::new(&self.path(name))?), options)
    }

    /// The main stream, to its end.
    pub(super) fn content(&self, name: &str, options: OpenOptions) -> Result<Vec<u8>, Error> {
        self.open(name, options)?.read_at(Stream::Main, 0, 1 << 30)
    }

    /// Each byte of a file in turn is another one while `look` looks.
    pub(super) fn with_each_byte_flipped(&self, name: &str, mut look: impl FnMut(usize)) {
        let intact = self.read(name);
        let file = fs::OpenOptions::new().write(true).open(self.path(name)).unwrap();
        for (at, byte) in intact.iter().enumerate() {
            file.write_all_at(&[byte ^ 1 << (at % 8)], at as u64).unwrap();
            look(at);
            file.write_all_at(&[*byte], at as u64).unwrap();
        }
        assert!(self.read(name) == intact);
    }
}

/// Nothing is asked of signatures. Nobody finds what another has left in the cache.
pub(super) fn anybody() -> OpenOptions {
    OpenOptions {
        cache: Arc::new(Cache::new(1 << 18)),
        passphrases: vec![fixtures::passphrase(PASSPHRASE)],
        ..OpenOptions::default()
    }
}

/// A manifest by key 1 is required.
pub(super) fn manifest_required() -> OpenOptions {
    OpenOptions { verify_keys: vec![key(1).verify_key()], require_manifest: true, ..anybody() }
}

/// Three pages of four blocks, all of one length, and the next ones for each seed.
pub(super) fn three_pages(family: Family, passphrase: Option<&'static str>, seed: u64) -> Contents {
    let blocks = (0..12).map(|number| Piece::Data(noise(seed * 100 + number, 200))).collect();
    Contents { family, passphrase, blocks, page_entries: 4, ..Contents::default() }
}

/// A snapshot with what it needs.
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) snapshot: Contents,
    pub(super) parent: Option<Contents>,
    pub(super) plain: Vec<u8>,
}

/// One small snapshot of each kind, with two pages: data, zeros, and references where it is thin.
pub(super) fn kinds() -> Vec<Kind> {
    let data: Vec<Vec<u8>> = (0..4).map(|seed| noise(seed, 70)).collect();
    let blocks = vec![
        Piece::Data(data[0].clone()),
        Piece::Zeros(64),
        Piece::Data(data[1].clone()),
        Piece::Data(b"again ".repeat(20)),
    ];
    let plain = [&data[0][..], &[0; 64], &data[1], &b"again ".repeat(20)].concat();
    let ordinary = Contents { family: Family::D, blocks, page_entries: 3, ..Contents::default() };
    let kind = |name, changed: Contents| Kind {
        name,
        snapshot: changed,
        parent: None,
        plain: plain.clone(),
    };
    let mut kinds = vec![
        kind("plain", ordinary.clone()),
        kind("family A", Contents { family: Family::A, ..ordinary.clone() }),
        kind("encrypted", Contents { passphrase: Some(PASSPHRASE), ..ordinary.clone() }),
        kind(
            "Zstandard with a dictionary",
            Contents {
                compression: Compression::Zstd,
                dictionary: b"once again and again ".repeat(10),
                ..ordinary.clone()
            },
        ),
    ];
    // By content: the last one first. In family A by place.
    let [first, _, second, text] = &ordinary.blocks[..] else { panic!() };
    for (name, family) in [("thin", Family::D), ("thin of family A", Family::A)] {
        let parent = Contents { family, ..ordinary.clone() };
        let hash = |piece: &Piece| match (piece, family) {
            (Piece::Data(plain), Family::D) => {
                Piece::Parent(plain.len() as u32, *blake3::hash(plain).as_bytes())
            }
            (Piece::Data(plain), _) => Piece::Parent(plain.len() as u32, [0; 32]),
            _ => panic!(),
        };
        let own = Piece::Data(data[2].clone());
        let (blocks, plain) = match family {
            Family::D => (
                vec![own, hash(text), hash(second), hash(first)],
                [&data[2][..], &b"again ".repeat(20), &data[1], &data[0]].concat(),
            ),
            _ => (
                vec![hash(first), Piece::Zeros(64), hash(second), hash(text), own],
                [&plain[..], &data[2]].concat(),
            ),
        };
        let parents = vec!["parent.hxz".to_owned()];
        let variable_blocks = family == Family::D;
        let snapshot = Contents { family, parents, blocks, variable_blocks, ..ordinary.clone() };
        kinds.push(Kind { name, snapshot, parent: Some(parent), plain });
    }
    kinds
}
