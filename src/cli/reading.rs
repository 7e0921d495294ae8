//! How snapshots are opened: what is said for all of them, and what one export says.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::cli::Failure;
use crate::cli::passphrases;
use crate::snapshot::{Cache, Check, OpenOptions};

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
            key_file: if self.key_file.is_empty() { other.key_file } else { self.key_file },
            check: self.check.or(other.check),
        }
    }
}

/// For one snapshot. Equal ones open a file in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Reading {
    pub(crate) size_from_index: bool,
    pub(crate) key_files: Vec<PathBuf>,
    pub(crate) check: Check,
}

impl Reading {
    /// As the settings say.
    pub(crate) fn new(settings: &ReadingSettings) -> Self {
        Self {
            size_from_index: false,
            key_files: settings.key_file.clone(),
            check: match settings.check {
                Some(CheckChoice::Blake3) => Check::Blake3,
                Some(CheckChoice::Crc) | None => Check::Crc,
            },
        }
    }

    /// Reads what has to be read for it: passphrases, which are gone when the snapshot is open.
    pub(crate) fn options(
        &self,
        cache: &Arc<Cache>,
        any_permissions: bool,
    ) -> Result<OpenOptions, Failure> {
        Ok(OpenOptions {
            cache: Arc::clone(cache),
            size_from_index: self.size_from_index,
            check: self.check,
            passphrases: passphrases::load(&self.key_files, any_permissions)?,
            ..OpenOptions::default()
        })
    }
}
