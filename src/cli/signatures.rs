//! What `verify` and `inspect` say of signatures.

use std::fmt::{self, Display};
use std::path::PathBuf;

use serde::Serialize;

use crate::cli::Failure;
use crate::cli::escape::Escaped;
use crate::cli::key_files::read_verify_keys;
use crate::snapshot::manifest::{self, Manifest, ManifestError, Trust};
use crate::snapshot::signature::{SignatureError, verify_master_index};
use crate::snapshot::{Structure, VerifyKey};

/// Who must have signed a snapshot.
#[derive(Debug, clap::Args)]
pub(crate) struct SignatureArguments {
    /// Public key of 32 raw bytes that may have signed the snapshot and its manifest, repeatable.
    #[arg(long = "key", value_name = "PUB")]
    keys: Vec<PathBuf>,

    /// Fail if there is no manifest beside the snapshot.
    #[arg(long, requires = "keys")]
    pub(crate) require_manifest: bool,
}

impl SignatureArguments {
    /// The keys, from their files.
    pub(crate) fn keys(&self) -> Result<Vec<VerifyKey>, Failure> {
        Ok(read_verify_keys(&self.keys)?)
    }
}

/// A line for each thing that holds of a snapshot that was opened with these keys.
pub(crate) fn lines(structure: &Structure, keys: &[VerifyKey]) -> Vec<String> {
    let name = structure.name();
    let signature = verify_master_index(structure, keys).ok();
    let signature = signature.map(|key| format!("{name}: master index signature valid by {key}"));
    let manifest = structure.manifest().map(|manifest| {
        format!("{}: manifest valid, root {}", manifest::name_beside(structure), manifest.root())
    });
    [signature, manifest].into_iter().flatten().collect()
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
    pub(crate) fn of(structure: &Structure, keys: &[VerifyKey]) -> Option<Self> {
        let path = manifest::name_beside(structure);
        let manifest = match Manifest::beside(structure) {
            Ok(manifest) => manifest?,
            Err(error) => {
                let error = Some(error.to_string());
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
