//! How snapshots are opened: what is said for all of them, and what one export says.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::cli::Failure;
use crate::cli::key_files::read_verify_keys;
use crate::cli::passphrases;
use crate::cli::settings::first_set;
use crate::server::reload::{State, Watched};
use crate::snapshot::manifest::EXTENSION;
use crate::snapshot::storage::companions;
use crate::snapshot::{Cache, Check, OpenOptions, Registry, VerifyKey};

/// For all snapshots.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Snapshots")]
pub(crate) struct ReadingSettings {
    /// File with the passphrase of encrypted snapshots, repeatable: each is tried
    ///
    /// One line break at its end does not count. Without it, the passphrase is taken from the
    /// environment variable HEXZ_NBD_PASSPHRASE, else from the credential `passphrase` of systemd.
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Vec<PathBuf>,

    /// Directory in which parents of thin snapshots are looked for, behind that of the child,
    /// repeatable
    ///
    /// Only the last component of the path that a snapshot records counts, and only regular files.
    #[arg(long, value_name = "DIR")]
    pub(crate) parent_dir: Vec<PathBuf>,

    /// Public key of which the holder must have signed the snapshots, repeatable: one is enough
    ///
    /// A manifest beside a snapshot has to be signed by one of the keys, and then nothing is served
    /// that was not signed. Without a manifest, the signature of the master index has to be valid
    /// by one of them: that is Hexz's own signature, which covers neither index pages nor blocks.
    #[arg(long, value_name = "PUB")]
    pub(crate) verify_key: Vec<PathBuf>,

    /// Refuse snapshots without a manifest, as `hexz-nbd sign` makes it
    #[arg(long)]
    pub(crate) require_manifest: bool,

    /// What each decoded block is compared with [default: crc]
    #[arg(long, value_name = "CHECK", value_enum)]
    pub(crate) check: Option<CheckChoice>,
}

/// What decoded blocks are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CheckChoice {
    /// The CRC-32 of the stored bytes, which finds damage
    Crc,
    /// Also the BLAKE3 of the plain bytes, which finds forgery, where the index has it
    Blake3,
}

impl ReadingSettings {
    /// These settings, and those of `other` for what is not set here.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            key_file: first_set(self.key_file, other.key_file),
            parent_dir: first_set(self.parent_dir, other.parent_dir),
            verify_key: first_set(self.verify_key, other.verify_key),
            require_manifest: self.require_manifest || other.require_manifest,
            check: self.check.or(other.check),
        }
    }
}

/// What all snapshots share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) cache: Arc<Cache>,
    pub(crate) registry: Arc<Registry>,
}

/// For one snapshot. Equal ones open a file in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Reading {
    pub(crate) size_from_index: bool,
    pub(crate) key_files: Vec<PathBuf>,
    pub(crate) parent_directories: Vec<PathBuf>,
    /// BLAKE3 of the files that may be parents. Any if there is none.
    pub(crate) parent_digests: Vec<[u8; 32]>,
    /// The keys themselves: a file with another one demands another signature.
    pub(crate) verify_keys: Vec<VerifyKey>,
    pub(crate) require_manifest: bool,
    /// The places of the manifest, and what is there, if that matters.
    pub(crate) manifest: Vec<(Watched, State)>,
    pub(crate) check: Check,
}

impl Reading {
    /// As the settings say, but for the keys.
    pub(crate) fn new(settings: &ReadingSettings) -> Self {
        Self {
            size_from_index: false,
            key_files: settings.key_file.clone(),
            parent_directories: settings.parent_dir.clone(),
            parent_digests: Vec::new(),
            verify_keys: Vec::new(),
            require_manifest: settings.require_manifest,
            manifest: Vec::new(),
            check: match settings.check {
                Some(CheckChoice::Blake3) => Check::Blake3,
                Some(CheckChoice::Crc) | None => Check::Crc,
            },
        }
    }

    /// With keys, a snapshot is opened by its manifest, so it matters whether there is one.
    pub(crate) fn with_keys(mut self, keys: &[PathBuf], path: &Path) -> Result<Self, Failure> {
        self.verify_keys = read_verify_keys(keys)?;
        if !self.verify_keys.is_empty() {
            let places = companions(path, EXTENSION).into_iter().map(Watched::File);
            self.manifest = places.map(|place| (place.clone(), place.look())).collect();
        }
        Ok(self)
    }

    /// Whether a snapshot must be signed, or stand upon parents, as it had to be before.
    pub(crate) fn demands_the_same(&self, before: &Self) -> bool {
        let demands = |reading: &Self| {
            (reading.verify_keys.clone(), reading.require_manifest, reading.parent_digests.clone())
        };
        demands(self) == demands(before)
    }

    /// Reads what has to be read for it: passphrases, which are gone when the snapshot is open.
    pub(crate) fn options(
        &self,
        shared: &Shared,
        any_permissions: bool,
    ) -> Result<OpenOptions, Failure> {
        if self.require_manifest && self.verify_keys.is_empty() {
            return Err(Failure::Usage(
                "a manifest is required, but by whom? Name the public key with --verify-key".into(),
            ));
        }
        Ok(OpenOptions {
            cache: Arc::clone(&shared.cache),
            registry: Arc::clone(&shared.registry),
            parent_directories: self.parent_directories.clone(),
            parent_digests: self.parent_digests.clone(),
            verify_keys: self.verify_keys.clone(),
            require_manifest: self.require_manifest,
            size_from_index: self.size_from_index,
            check: self.check,
            passphrases: passphrases::load(&self.key_files, any_permissions)?,
            ..OpenOptions::default()
        })
    }
}

/// Digits of a BLAKE3, as `b3sum` prints it.
pub(crate) fn parse_digest(text: &str) -> Result<[u8; 32], String> {
    let wrong = || format!("{text:?} is no BLAKE3: expected 64 hexadecimal digits, as of b3sum");
    blake3::Hash::from_hex(text).map(Into::into).map_err(|_| wrong())
}
