//! Files that releases of Hexz made, and what they must read back to.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use hexz_nbd::snapshot::{Error, File, FileBackend, OpenOptions, Passphrase};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// The list of all fixtures. Its own `schema` field describes the fields.
#[derive(Deserialize)]
pub(crate) struct Manifest {
    pub(crate) fixtures: Vec<Fixture>,
}

#[derive(Deserialize)]
pub(crate) struct Fixture {
    pub(crate) file: String,
    pub(crate) kind: Kind,
    #[serde(default)]
    pub(crate) family: String,
    #[serde(default)]
    pub(crate) compression: String,
    #[serde(default)]
    pub(crate) encrypted: bool,
    pub(crate) password: Option<String>,
    #[serde(default)]
    pub(crate) parents: Vec<String>,
    #[serde(default)]
    pub(crate) block_device: bool,
    /// Offset and length, as are the next.
    pub(crate) dictionary: Option<(u64, u64)>,
    pub(crate) signature: Option<(u64, u64)>,
    pub(crate) public_key_file: Option<String>,
    pub(crate) metadata_kind: Option<String>,
    pub(crate) main: Option<StreamContent>,
    pub(crate) aux: Option<StreamContent>,
    pub(crate) recoverable_main: Option<Recoverable>,
    pub(crate) derived_from: Option<String>,
    pub(crate) patch: Option<String>,
    pub(crate) expect: Option<Expect>,
    pub(crate) upstream_0_8_2_readback: Option<Readback>,
    pub(crate) main_sha256_if_intact: Option<String>,
    pub(crate) file_sha256: String,
}

#[derive(Deserialize, PartialEq, Eq, Clone, Copy, Debug)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Valid,
    Hostile,
}

#[derive(Deserialize)]
pub(crate) struct StreamContent {
    pub(crate) size: u64,
    pub(crate) sha256: String,
    pub(crate) chunk_sha256_64k: Vec<String>,
    pub(crate) sparse_extents: Vec<(u64, u64)>,
    pub(crate) zero_data_extents: Vec<(u64, u64)>,
    pub(crate) parent_extents: Vec<(u64, u64)>,
}

#[derive(Deserialize)]
pub(crate) struct Recoverable {
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

#[derive(Deserialize)]
pub(crate) struct Expect {
    pub(crate) open: String,
    pub(crate) reads: String,
    pub(crate) bad_main_ranges: Option<Vec<(u64, u64)>>,
}

/// What a reader of upstream's made of it.
#[derive(Deserialize)]
pub(crate) struct Readback {
    pub(crate) result: String,
}

impl Fixture {
    pub(crate) fn path(&self) -> PathBuf {
        path(&self.file)
    }

    /// Whether it is of a kind that `inspect` calls an archive.
    pub(crate) fn is_archive(&self) -> bool {
        matches!(self.metadata_kind.as_deref(), Some("file-manifest" | "tar-manifest"))
    }

    /// Opens it with its password, and looks for its parents beside it.
    pub(crate) fn open(&self) -> Result<Arc<File>, Error> {
        let passphrases = self.password.as_deref().map(passphrase).into_iter().collect();
        let storage = Arc::new(FileBackend::new(&self.path())?);
        File::open_with(storage, OpenOptions { passphrases, ..OpenOptions::default() })
    }

    /// Neither encrypted nor thin.
    pub(crate) fn is_plain(&self) -> bool {
        self.kind == Kind::Valid && !self.encrypted && self.parents.is_empty()
    }
}

/// All fixtures, each checked against its own digest, so that a damaged checkout is not mistaken
/// for a bug.
pub(crate) fn all() -> Vec<Fixture> {
    let manifest = std::fs::read(path("manifest.json")).unwrap();
    let manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
    for fixture in &manifest.fixtures {
        let contents = std::fs::read(fixture.path()).unwrap();
        assert_eq!(sha256(&contents), fixture.file_sha256, "{} is damaged", fixture.file);
    }
    manifest.fixtures
}

/// Options by which the program reads every encrypted fixture.
pub(crate) fn key_file_options() -> Vec<String> {
    static FILES: LazyLock<Vec<PathBuf>> = LazyLock::new(|| {
        let passwords: BTreeSet<String> = all().into_iter().filter_map(|f| f.password).collect();
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let mut files = Vec::new();
        for (number, password) in passwords.iter().enumerate() {
            let mut file = tempfile::NamedTempFile::new_in(directory).unwrap();
            file.write_all(password.as_bytes()).unwrap();
            let path = directory.join(format!("password-{number}"));
            file.persist(&path).unwrap();
            files.push(path);
        }
        files
    });
    FILES.iter().flat_map(|file| ["--key-file".to_owned(), file.display().to_string()]).collect()
}

/// One fixture.
pub(crate) fn named(file: &str) -> Fixture {
    all().into_iter().find(|fixture| fixture.file == file).unwrap()
}

/// A file of `tests/data`.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A passphrase as a reader wants it.
pub(crate) fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(Zeroizing::new(text.as_bytes().to_vec())).unwrap()
}

/// SHA-256 in lower case hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
