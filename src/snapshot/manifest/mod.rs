//! The detached manifest of a snapshot: a signature over everything that is served of it.
//!
//! Hexz's own signature covers the master index and the metadata, so index pages and blocks can be
//! replaced under it. A manifest lies beside the snapshot as `FILE.hxz.manifest`, where other
//! readers ignore it, and has a BLAKE3 for each index page and, where index entries carry no
//! hash, for each stored block. What they all add up to, with the header and everything else that
//! decides what is read, is the [`Root`], which is signed. `docs/manifest.md` has the layout.
//!
//! * [`Manifest::read`] reads what stands beside a snapshot, [`Manifest::check`] compares it with
//!   the snapshot and with keys or a pinned root.
//! * [`Manifest::page`] gives the entries of an index page, if they are those that were signed.
//!   With them come the hashes against which blocks are compared.
//! * [`build`](build::build) makes a manifest.

pub mod build;
pub mod error;
mod head;
mod page;
pub mod root;
pub mod verify;

pub use self::error::{ManifestError, ManifestErrorKind};
pub use self::page::Hash;
pub use self::root::Root;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::snapshot::format::{Entry, FormatError, PageRecord, Stream};
use crate::snapshot::manifest::head::{HEAD_BYTES_MAX, HEAD_BYTES_MIN, Head};
use crate::snapshot::manifest::page::{leaf, missing_hash};
use crate::snapshot::manifest::root::{Snapshot, root};
use crate::snapshot::signature::VerifyKey;
use crate::snapshot::storage::StorageBackend;
use crate::snapshot::structure::{Structure, read};

/// What is put behind the name of a snapshot to get that of its manifest.
pub const EXTENSION: &str = ".manifest";

/// Where the manifest of a snapshot lies.
#[must_use]
pub fn path_beside(snapshot: &Path) -> PathBuf {
    let mut path = snapshot.as_os_str().to_owned();
    path.push(EXTENSION);
    path.into()
}

/// As [`path_beside`], for messages.
#[must_use]
pub fn name_beside(structure: &Structure) -> String {
    format!("{}{EXTENSION}", structure.name())
}

/// Whom or what a manifest must be of.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// Signed by one of these keys.
    Keys(&'a [VerifyKey]),
    /// It has this root, whoever signed it: so it is with a parent that its child's manifest pins.
    Root(Root),
}

/// A manifest that lies beside a snapshot. Nothing of it is believed before [`Manifest::check`].
#[derive(Debug)]
pub struct Manifest {
    storage: Arc<dyn StorageBackend>,
    head: Head,
    leaves: Vec<Hash>,
    main_pages: usize,
}

/// What of a snapshot was read and hashed for its root, to be used in place of what is read again:
/// the file may change in between.
#[derive(Debug)]
pub struct Checked {
    /// As [`Structure::dictionary`].
    pub dictionary: Vec<u8>,
    /// As [`Structure::metadata`].
    pub metadata: Vec<u8>,
}

/// The entries of an index page that was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedPage {
    /// As they stand in the file.
    pub entries: Vec<Entry>,
    /// For each entry the BLAKE3 of its stored bytes, of which only those of data entries mean
    /// anything. `None` where every data entry has the BLAKE3 of its plain bytes.
    pub own_hashes: Option<Vec<Hash>>,
}

impl Manifest {
    /// Reads the manifest of a snapshot, but for the hashes of its blocks. Memory is bounded by the
    /// number of index pages, 32 bytes for each.
    ///
    /// # Errors
    ///
    /// [`ManifestError`] if it is no manifest, is of a snapshot of another shape, is longer or
    /// shorter than it says, or cannot be read.
    pub fn read(
        storage: Arc<dyn StorageBackend>,
        structure: &Structure,
    ) -> Result<Self, ManifestError> {
        let name = storage.name().to_owned();
        read_beside(storage, structure).map_err(|kind| ManifestError { file: name, kind })
    }

    /// The manifest that lies beside a snapshot, if there is one. As [`Manifest::read`].
    ///
    /// # Errors
    ///
    /// As [`Manifest::read`].
    pub fn beside(structure: &Structure) -> Result<Option<Self>, ManifestError> {
        match structure.storage().companion(EXTENSION) {
            Ok(Some(storage)) => Self::read(storage, structure).map(Some),
            Ok(None) => Ok(None),
            Err(error) => {
                let file = name_beside(structure);
                Err(ManifestError { file, kind: ManifestErrorKind::Read(error.kind) })
            }
        }
    }

    /// The root that it states.
    #[must_use]
    pub fn root(&self) -> Root {
        self.head.root
    }

    /// The key by which it says to be signed.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.head.key
    }

    /// The roots of the snapshot's parents, in the order of its header.
    #[must_use]
    pub fn parent_roots(&self) -> &[Root] {
        &self.head.parent_roots
    }

    /// Whether it has hashes of stored blocks.
    #[must_use]
    pub fn has_own_hashes(&self) -> bool {
        self.head.own_hashes
    }

    /// Computes the root from the snapshot as it is, and the page hashes of the manifest.
    ///
    /// # Errors
    ///
    /// [`ManifestError`] if the snapshot cannot be read or has changed since it was recognised.
    pub fn root_of(&self, structure: &Structure) -> Result<(Root, Checked), ManifestError> {
        let snapshot = Snapshot::read(structure).map_err(|error| self.error(error.into()))?;
        let snapshot = snapshot.ok_or_else(|| self.error(ManifestErrorKind::Changed))?;
        let root = root(&snapshot, self.head.own_hashes, &self.leaves, &self.head.parent_roots);
        Ok((root, snapshot.into_checked()))
    }

    /// Checks that the manifest is one to be trusted, and that it is of this snapshot: header,
    /// dictionary, master index and metadata are those that were signed. Pages and blocks are
    /// compared when they are read. A thin snapshot is no better than its parents: each has to be
    /// checked against its root in [`Manifest::parent_roots`].
    ///
    /// # Errors
    ///
    /// [`ManifestError`] with what does not hold.
    pub fn check(&self, trust: Trust<'_>, structure: &Structure) -> Result<Checked, ManifestError> {
        self.check_trust(trust).map_err(|kind| self.error(kind))?;
        let (found, checked) = self.root_of(structure)?;
        if found != self.head.root {
            return Err(self.error(ManifestErrorKind::Root));
        }
        Ok(checked)
    }

    fn check_trust(&self, trust: Trust<'_>) -> Result<(), ManifestErrorKind> {
        match trust {
            Trust::Root(pinned) if pinned == self.head.root => Ok(()),
            Trust::Root(pinned) => {
                Err(ManifestErrorKind::OtherRoot { pinned, stated: self.head.root })
            }
            Trust::Keys(keys) => {
                let key = keys.iter().find(|key| *key.as_bytes() == self.head.key);
                let key = key.ok_or(ManifestErrorKind::UnknownKey(self.head.key))?;
                let holds = key.verifies(&self.head.root.signed_message(), &self.head.signature);
                if holds { Ok(()) } else { Err(ManifestErrorKind::Signature) }
            }
        }
    }

    /// Reads an index page of the snapshot and the hashes of its blocks, if both are what was
    /// signed. `structure` is the snapshot that was given to [`Manifest::check`].
    ///
    /// # Errors
    ///
    /// [`ManifestError`] if the page or the manifest's hashes were changed, or cannot be read.
    pub fn page(
        &self,
        structure: &Structure,
        stream: Stream,
        page: usize,
    ) -> Result<CheckedPage, ManifestError> {
        self.checked_page(structure, stream, page).map_err(|kind| self.error(kind))
    }

    fn checked_page(
        &self,
        structure: &Structure,
        stream: Stream,
        page: usize,
    ) -> Result<CheckedPage, ManifestErrorKind> {
        let record = structure.index().pages(stream).get(page);
        let leaves_before = match stream {
            Stream::Main => 0,
            Stream::Auxiliary => self.main_pages,
        };
        let signed = leaves_before.checked_add(page).and_then(|number| self.leaves.get(number));
        let (Some(record), Some(signed)) = (record, signed) else {
            let offset = structure.header().index_offset;
            return Err(FormatError::Invalid { what: "page number", offset }.into());
        };
        let bytes = page::read_page(structure, record)?;
        let own_hashes = self.own_hashes(structure, record)?;
        if leaf(&bytes, own_hashes.as_deref().unwrap_or_default()) != *signed {
            return Err(ManifestErrorKind::Page { stream, page, offset: record.offset });
        }
        let entries = page::decode(structure, record, &bytes)?;
        if own_hashes.is_none()
            && let Some(entry) = missing_hash(&entries, structure.entry_bounds())
        {
            return Err(ManifestErrorKind::NoHash { stored_at: entry.offset });
        }
        Ok(CheckedPage { entries, own_hashes })
    }

    /// The hashes of one page. Their place follows from the number of entries before them, which
    /// was checked when the snapshot was recognised.
    fn own_hashes(
        &self,
        structure: &Structure,
        record: &PageRecord,
    ) -> Result<Option<Vec<Hash>>, ManifestErrorKind> {
        if !self.head.own_hashes {
            return Ok(None);
        }
        let before = record.start_block.checked_mul(HASH_BYTES);
        let at = before.and_then(|before| self.own_hashes_at()?.checked_add(before));
        let length = record.entries(structure.family()).checked_mul(HASH_BYTES);
        let (Some(at), Some(length)) = (at, length) else {
            return Err(FormatError::Invalid { what: "page record", offset: record.offset }.into());
        };
        let bytes = read(&*self.storage, "hashes of blocks", at, length)
            .map_err(ManifestErrorKind::Read)?;
        Ok(Some(hashes(&bytes)))
    }

    fn own_hashes_at(&self) -> Option<u64> {
        let leaves = (self.leaves.len() as u64).checked_mul(HASH_BYTES)?;
        self.head.bytes().checked_add(leaves)
    }

    fn error(&self, kind: ManifestErrorKind) -> ManifestError {
        ManifestError { file: self.storage.name().to_owned(), kind }
    }
}

/// Length of a hash in bytes.
const HASH_BYTES: u64 = 32;

fn hashes(bytes: &[u8]) -> Vec<Hash> {
    bytes.as_chunks().0.to_vec()
}

fn read_beside(
    storage: Arc<dyn StorageBackend>,
    structure: &Structure,
) -> Result<Manifest, ManifestErrorKind> {
    let found = storage.bytes();
    if found < HEAD_BYTES_MIN {
        return Err(ManifestErrorKind::Length { expected: HEAD_BYTES_MIN, found });
    }
    let bytes = read(&*storage, "manifest", 0, found.min(HEAD_BYTES_MAX))
        .map_err(ManifestErrorKind::Read)?;
    let head = Head::decode(&bytes)?;
    let shape = Shape::of(structure);
    shape.check(&head)?;
    let expected = shape.manifest_bytes(&head);
    if expected != Some(found) {
        return Err(ManifestErrorKind::Length { expected: expected.unwrap_or(u64::MAX), found });
    }
    // The number of pages is that of the snapshot's master index, which is bounded.
    let leaves = shape.pages.saturating_mul(HASH_BYTES);
    let leaves =
        read(&*storage, "page hashes", head.bytes(), leaves).map_err(ManifestErrorKind::Read)?;
    let main_pages = structure.index().pages(Stream::Main).len();
    Ok(Manifest { storage, head, leaves: hashes(&leaves), main_pages })
}

/// How large the parts of a snapshot are, by which the length of its manifest is known.
#[derive(Debug, Clone, Copy)]
struct Shape {
    file_bytes: u64,
    pages: u64,
    entries: u64,
    parents: usize,
}

impl Shape {
    fn of(structure: &Structure) -> Self {
        let records = || Stream::ALL.into_iter().flat_map(|stream| structure.index().pages(stream));
        let entries = records().map(|record| record.entries(structure.family()));
        Self {
            file_bytes: structure.file_bytes(),
            pages: records().count() as u64,
            entries: entries.fold(0, u64::saturating_add),
            parents: structure.header().parents.len(),
        }
    }

    fn check(self, head: &Head) -> Result<(), ManifestErrorKind> {
        let (parents, signed_parents) = (self.parents as u64, head.parent_roots.len() as u64);
        for (what, signed, found) in [
            ("bytes", head.file_bytes, self.file_bytes),
            ("index pages", head.pages, self.pages),
            ("parents", signed_parents, parents),
        ] {
            if signed != found {
                return Err(ManifestErrorKind::OtherSnapshot { what, signed, found });
            }
        }
        Ok(())
    }

    fn manifest_bytes(self, head: &Head) -> Option<u64> {
        let hashes = if head.own_hashes { self.entries } else { 0 };
        let hashes = hashes.checked_add(self.pages)?;
        hashes.checked_mul(HASH_BYTES)?.checked_add(head.bytes())
    }
}
