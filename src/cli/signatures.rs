//! What `verify` and `inspect` say of signatures.

use std::fmt::{self, Display};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::cli::Failure;
use crate::cli::escape::Escaped;
use crate::cli::key_files::read_verify_keys;
use crate::cli::progress::Progress;
use crate::snapshot::manifest::{self, Manifest, ManifestError, Trust};
use crate::snapshot::signature::{SignatureError, verify_master_index};
use crate::snapshot::structure::BLOCK_BYTES_MAX_DEFAULT;
use crate::snapshot::{Error, ErrorKind, FileBackend, Stream, Structure, VerifyKey};

/// Who must have signed a snapshot.
#[derive(Debug, clap::Args)]
pub(crate) struct SignatureArguments {
    /// Public key of 32 raw bytes that may have signed the snapshot and its manifest, repeatable.
    #[arg(long = "key", value_name = "PUB")]
    keys: Vec<PathBuf>,

    /// Fail if there is no manifest beside the snapshot.
    #[arg(long, requires = "keys")]
    require_manifest: bool,
}

/// Checks what was asked for, nothing without keys, and prints a line for each thing that holds.
pub(crate) fn verify(arguments: &SignatureArguments, file: &Path) -> Result<(), Failure> {
    let keys = read_verify_keys(&arguments.keys)?;
    if keys.is_empty() {
        return Ok(());
    }
    let structure = Structure::read(Arc::new(FileBackend::new(file)?), BLOCK_BYTES_MAX_DEFAULT)?;
    let mut lines = Vec::new();
    let manifest = open_manifest(&structure, file)?;
    match verify_master_index(&structure, &keys) {
        Ok(key) => lines.push(format!("{}: master index signature valid by {key}", file.display())),
        // The manifest covers what the signature would, and more.
        Err(SignatureError::Missing) if manifest.is_some() => {}
        Err(error @ (SignatureError::Missing | SignatureError::NotByTheseKeys)) => {
            return Err(Failure::failed(format!("{}: {error}", file.display())));
        }
        Err(SignatureError::Snapshot(error)) => return Err(error.into()),
    }
    match manifest {
        Some(manifest) => {
            manifest.check(Trust::Keys(&keys), &structure)?;
            let bytes = Stream::ALL.iter().map(|stream| structure.index().stream_bytes(*stream));
            let progress = Progress::new("manifest", bytes.fold(0, u64::saturating_add));
            manifest::verify::verify(&manifest, &structure, &|bytes| progress.add(bytes))?;
            drop(progress);
            let (path, root) = (manifest::path_beside(file), manifest.root());
            lines.push(format!("{}: manifest valid, root {root}", path.display()));
        }
        None if arguments.require_manifest => {
            let path = manifest::path_beside(file);
            return Err(Failure::failed(format!("{}: there is no manifest", path.display())));
        }
        None => {}
    }
    let mut out = io::stdout().lock();
    lines.iter().try_for_each(|line| writeln!(out, "{}", Escaped(line)))?;
    Ok(())
}

/// The manifest beside a snapshot, if there is one.
fn open_manifest(structure: &Structure, file: &Path) -> Result<Option<Manifest>, Failure> {
    match FileBackend::new(&manifest::path_beside(file)) {
        Ok(storage) => Ok(Some(Manifest::read(Arc::new(storage), structure)?)),
        Err(Error { kind: ErrorKind::Open(source), .. })
            if source.kind() == io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// The signature in a snapshot. The names are those of the JSON and stay as they are.
#[derive(Debug, Serialize)]
pub(crate) struct SignatureReport {
    offset: u64,
    length_bytes: u64,
    master_index: Verdict,
    /// The one by which it is valid.
    key: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// No key was given.
    NotChecked,
    Valid,
    NotByTheseKeys,
    /// The error says what.
    #[default]
    Wrong,
}

impl SignatureReport {
    /// `None` if there is no signature.
    pub(crate) fn of(structure: &Structure, keys: &[VerifyKey]) -> Result<Option<Self>, Failure> {
        let Some(span) = structure.header().signature else {
            return Ok(None);
        };
        let (master_index, key) = match verify_master_index(structure, keys) {
            _ if keys.is_empty() => (Verdict::NotChecked, None),
            Ok(key) => (Verdict::Valid, Some(key.to_string())),
            Err(SignatureError::Snapshot(error)) => return Err(error.into()),
            Err(SignatureError::Missing | SignatureError::NotByTheseKeys) => {
                (Verdict::NotByTheseKeys, None)
            }
        };
        Ok(Some(Self { offset: span.offset, length_bytes: span.length, master_index, key }))
    }
}

impl Display for SignatureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.master_index, &self.key) {
            (Verdict::Valid, Some(key)) => write!(f, "master index signature valid by {key}"),
            (Verdict::NotChecked, _) => write!(f, "present at byte {}, not checked", self.offset),
            _ => write!(f, "present at byte {}, not valid by these keys", self.offset),
        }
    }
}

/// The manifest beside a snapshot. The names are those of the JSON and stay as they are.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ManifestReport {
    file: String,
    root: Option<String>,
    /// The one by which it says to be signed.
    key: Option<String>,
    block_hashes: Option<bool>,
    parent_roots: Vec<String>,
    /// Of signature and root. Pages and blocks are not looked at.
    signature_and_root: Verdict,
    /// What is wrong.
    error: Option<String>,
}

impl ManifestReport {
    /// `None` if there is none. One that is wrong is no failure: it is shown.
    pub(crate) fn of(structure: &Structure, file: &Path, keys: &[VerifyKey]) -> Option<Self> {
        let path = manifest::path_beside(file).display().to_string();
        let manifest = match open_manifest(structure, file) {
            Ok(manifest) => manifest?,
            Err(failure) => {
                let error = Some(failure.to_string());
                return Some(Self { file: path, error, ..Self::default() });
            }
        };
        let (signature_and_root, error) = match check(&manifest, structure, keys) {
            Ok(verdict) => (verdict, None),
            Err(error) => (Verdict::Wrong, Some(error.kind.to_string())),
        };
        Some(Self {
            file: path,
            root: Some(manifest.root().to_string()),
            key: Some(manifest.key().iter().map(|byte| format!("{byte:02x}")).collect()),
            block_hashes: Some(manifest.has_own_hashes()),
            parent_roots: manifest.parent_roots().iter().map(ToString::to_string).collect(),
            signature_and_root,
            error,
        })
    }

    /// What to print, with the name of each.
    pub(crate) fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("manifest", Escaped(&self.file).to_string())];
        if let Some(root) = &self.root {
            lines.push(("manifest root", root.clone()));
        }
        lines.extend(self.parent_roots.iter().map(|root| ("root of a parent", root.clone())));
        if let Some(key) = &self.key {
            lines.push(("manifest key", key.clone()));
        }
        let verdict = match (self.signature_and_root, &self.error) {
            (Verdict::Valid, _) => {
                "signature and root valid; `verify` compares pages and blocks".to_owned()
            }
            (Verdict::NotChecked, _) => {
                "root fits the snapshot; whose key it is was not checked".to_owned()
            }
            (_, error) => Escaped(error.as_deref().unwrap_or("not valid")).to_string(),
        };
        lines.push(("manifest check", verdict));
        lines
    }
}

/// Without keys, whether the manifest fits the snapshot and is signed by the key that it names.
fn check(
    manifest: &Manifest,
    structure: &Structure,
    keys: &[VerifyKey],
) -> Result<Verdict, ManifestError> {
    if !keys.is_empty() {
        return manifest.check(Trust::Keys(keys), structure).map(|_| Verdict::Valid);
    }
    let named: Vec<VerifyKey> = VerifyKey::from_bytes(manifest.key()).into_iter().collect();
    manifest.check(Trust::Keys(&named), structure).map(|_| Verdict::NotChecked)
}
