//! Why a manifest, or a snapshot under it, is refused.

use crate::snapshot::error::{Error, ErrorKind};
use crate::snapshot::format::{FormatError, Stream};
use crate::snapshot::manifest::root::{Hex, Root};

/// What is wrong with which manifest, or with the snapshot beside it.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {kind}")]
pub struct ManifestError {
    /// The manifest, as its storage names it.
    pub file: String,
    /// What is wrong.
    pub kind: ManifestErrorKind,
}

/// What is wrong. Only [`ManifestErrorKind::Read`] and [`ManifestErrorKind::Snapshot`] may pass when
/// it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ManifestErrorKind {
    /// The first bytes are others.
    #[error("not a manifest: it does not begin with \"HXZMAN01\"")]
    Magic,
    /// A field that has no such value.
    #[error("not a manifest of this version: {0}")]
    Layout(#[from] FormatError),
    /// It is not as long as it says.
    #[error("the manifest is {found} bytes long and should be {expected}")]
    Length {
        /// What follows from its first fields, in bytes.
        expected: u64,
        /// What it is, in bytes.
        found: u64,
    },
    /// It was made for another snapshot, or this one has changed.
    #[error("the manifest is of a snapshot with {signed} {what}, this one has {found}")]
    OtherSnapshot {
        /// What is counted.
        what: &'static str,
        /// What the manifest says.
        signed: u64,
        /// What is so.
        found: u64,
    },
    /// None of the keys.
    #[error("the manifest is signed by the key {}, which is none of those given", Hex(.0))]
    UnknownKey([u8; 32]),
    /// By the right key, but of something else.
    #[error("the signature of the manifest does not hold")]
    Signature,
    /// A child has pinned another one.
    #[error("the manifest has the root {stated}, but {pinned} is required")]
    OtherRoot {
        /// What is required.
        pinned: Root,
        /// What the manifest says.
        stated: Root,
    },
    /// Header, dictionary, master index, metadata or signatures of the snapshot, or the manifest's
    /// own hashes, are not those that were signed.
    #[error(
        "the snapshot is not the one that was signed: its header, dictionary, master index or \
         metadata, or the manifest itself, has changed"
    )]
    Root,
    /// An index page, or the hashes of its blocks, are not those that were signed.
    #[error(
        "index page {page} of the {stream} stream at byte {offset}, or the manifest's hashes of \
         its blocks, are not those that were signed"
    )]
    Page {
        /// The stream.
        stream: Stream,
        /// Number of the page in its stream.
        page: usize,
        /// Where it lies in the snapshot.
        offset: u64,
    },
    /// A stored block is not the one that was signed.
    #[error(
        "the block stored at byte {stored_at} is not the one that was signed; {stream} stream at \
         byte {position}"
    )]
    Block {
        /// The stream.
        stream: Stream,
        /// Where the block begins in the stream.
        position: u64,
        /// Where it lies in the snapshot.
        stored_at: u64,
    },
    /// Whoever signed did so without looking.
    #[error(
        "neither the index nor the manifest has a hash of the block stored at byte {stored_at}"
    )]
    NoHash {
        /// Where it lies in the snapshot.
        stored_at: u64,
    },
    /// The header in the file is not the one by which it was recognised.
    #[error("the snapshot has changed while it was read")]
    Changed,
    /// The manifest cannot be read, or became shorter since it was opened.
    #[error("{0}")]
    Read(ErrorKind),
    /// The snapshot cannot be read, or contradicts itself.
    #[error("{0}")]
    Snapshot(Error),
}

impl ManifestErrorKind {
    /// As [`ErrorKind::may_pass`].
    pub(crate) fn may_pass(&self) -> bool {
        if let Self::Read(kind) | Self::Snapshot(Error { kind, .. }) = self {
            return kind.may_pass();
        }
        false
    }
}

impl From<Error> for ManifestErrorKind {
    fn from(error: Error) -> Self {
        Self::Snapshot(error)
    }
}
