//! What can be wrong with a snapshot, and where.

use std::io;

use crate::snapshot::chain::{ANCESTORS_MAX, DEPTH_MAX, PARENTS_MAX};
use crate::snapshot::encryption::IterationsError;
use crate::snapshot::format::header::HeaderError;
use crate::snapshot::format::{FormatError, Stream};
use crate::snapshot::manifest::ManifestError;
use crate::snapshot::signature::SignatureError;

/// What went wrong with which file.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {kind}")]
pub struct Error {
    /// The file, as the storage names it.
    pub file: String,
    /// What went wrong.
    pub kind: ErrorKind,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum ErrorKind {
    /// The file cannot be opened.
    #[error("cannot open the file: {0}")]
    Open(io::Error),
    /// A directory, a pipe or a socket: nothing that has bytes at positions.
    #[error("not a regular file or block device")]
    NotAFile,
    /// The storage failed, or the file became shorter since it was opened.
    #[error("cannot read {what} at byte {offset}, {length} bytes: {source}")]
    Read {
        /// Structure that was to be read.
        what: &'static str,
        /// Its position in the file.
        offset: u64,
        /// Its length in bytes.
        length: usize,
        /// Why.
        source: io::Error,
    },
    /// The first bytes are not a header that can be read.
    #[error("{}", with_source(.0))]
    Header(HeaderError),
    /// The file contradicts itself.
    #[error("corrupt snapshot: {0}")]
    Corrupt(#[from] FormatError),
    /// No file of a real release can be read in two ways.
    #[error("corrupt snapshot: header, index and pages at byte {index_offset} fit two layouts")]
    Ambiguous {
        /// Where the master index begins.
        index_offset: u64,
    },
    /// The blocks do not add up to the size of the stream.
    #[error(
        "corrupt snapshot: the {stream} stream is declared with {declared} bytes, its index at \
         byte {index_offset} holds {found}"
    )]
    StreamSize {
        /// The stream.
        stream: Stream,
        /// Size in the master index, in bytes.
        declared: u64,
        /// Sum of the blocks, in bytes.
        found: u64,
        /// Where the master index begins.
        index_offset: u64,
    },
    /// A block that cannot be served. Other blocks of the file may be fine.
    #[error(
        "damaged block: {damage}; {stream} stream at byte {position}, stored at byte {stored_at}"
    )]
    Block {
        /// What is wrong with it.
        damage: Damage,
        /// The stream.
        stream: Stream,
        /// Where the block begins in the stream.
        position: u64,
        /// Where its bytes lie in the file, or its page where the entry itself is wrong.
        stored_at: u64,
    },
    /// The blocks are encrypted and there is no key.
    #[error("the snapshot is encrypted, and there is no passphrase: name its file with --key-file")]
    NeedsKey,
    /// No passphrase fits.
    #[error(
        "the snapshot is encrypted, and {}", 
        if *tried == 1 { "the passphrase is wrong" } else { "none of the passphrases is right" }
    )]
    WrongPassphrase {
        /// How many were tried.
        tried: usize,
    },
    /// The key is not derived.
    #[error("the snapshot is encrypted, and {0}")]
    Iterations(#[from] IterationsError),
    /// A key was given for a snapshot that is not encrypted.
    #[error("a key was given, but the snapshot is not encrypted")]
    NotEncrypted,
    /// A parent of a thin snapshot, or a manifest, must be a regular file.
    #[error("not a regular file, and a link to one is not followed")]
    NotRegular,
    /// A parent cannot be opened.
    #[error("its parent cannot be opened: {0}")]
    Parent(Box<Error>),
    /// There is no file of the name of a parent.
    #[error(
        "its parent {parent} is not there: looked in {}; name its directory with --parent-dir",
        .looked_in.join(" and ")
    )]
    MissingParent {
        /// Last component of the recorded path. Untrusted.
        parent: String,
        /// Directories.
        looked_in: Vec<String>,
    },
    /// The recorded path of a parent ends with no name.
    #[error("its parent has no name: {recorded:?}")]
    UnnamedParent {
        /// As recorded. Untrusted.
        recorded: String,
    },
    /// A snapshot would be its own ancestor.
    #[error("its parent {parent} is the snapshot itself, or made from it")]
    ParentCycle {
        /// Last component of the recorded path. Untrusted.
        parent: String,
    },
    /// The header names more parents than any tool writes.
    #[error("the snapshot has {parents} parents, and {PARENTS_MAX} are accepted")]
    TooManyParents {
        /// How many.
        parents: usize,
    },
    /// A chain of parents is too long.
    #[error("the snapshot has more than {DEPTH_MAX} generations of parents")]
    TooManyGenerations,
    /// Parents have too many parents.
    #[error("the snapshot has more than {ANCESTORS_MAX} parents in all generations")]
    TooManyAncestors,
    /// Some snapshot above this one is not one of those that the operator pinned.
    #[error(
        "its parent {parent} is not one that was pinned with parent-blake3: its BLAKE3 is {}",
        blake3::Hash::from_bytes(*digest)
    )]
    UnpinnedParent {
        /// The file.
        parent: String,
        /// BLAKE3 of all its bytes.
        digest: [u8; 32],
    },
    /// The manifest is not right, or the snapshot is not what it says.
    #[error("not what was signed: {0}")]
    Manifest(Box<ManifestError>),
    /// There is no manifest where one is required.
    #[error(
        "there is no manifest beside it, and one is required: `hexz-nbd sign` makes {manifest}"
    )]
    NoManifest {
        /// The file that it would be.
        manifest: String,
    },
    /// The signature of the master index does not hold.
    #[error("not signed as required: {0}")]
    Signature(Box<SignatureError>),
    /// The parents are too large to be searched for blocks by their hash.
    #[error("its parents have {blocks} blocks, and {limit} are searched for those of a child")]
    TooManyBlocks {
        /// How many.
        blocks: u64,
        /// The limit.
        limit: u64,
    },
    /// The given decompressor is not the one that the file needs.
    #[error("the blocks are compressed with {needed}, not with {given}")]
    WrongCompressor {
        /// What the header says.
        needed: &'static str,
        /// What the caller brought.
        given: &'static str,
    },
    /// The dictionary cannot be used.
    #[error("the dictionary at byte {offset} cannot be used: {source}")]
    Dictionary {
        /// Where it lies.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// A read of bytes that the stream does not have.
    #[error("bytes {offset} to {offset}+{length} lie outside the stream of {size} bytes")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// Size of the stream in bytes.
        size: u64,
    },
}

impl ErrorKind {
    /// Whether it may be gone when it is tried again: the storage failed, and nothing is known to
    /// be wrong with the bytes.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        if let Self::Parent(error) = self {
            return error.kind.may_pass();
        }
        if let Self::Manifest(error) = self {
            return error.kind.may_pass();
        }
        matches!(self, Self::Read { .. })
    }
}

/// What is wrong with one block. Format sections 7 to 9.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Its entry in the index page is not one that any release writes.
    #[error("impossible index entry ({0})")]
    Entry(&'static str),
    /// CRC-32 of the stored bytes.
    #[error("checksum is {found:08x} instead of {expected:08x}")]
    Checksum {
        /// From the index page.
        expected: u32,
        /// Of the bytes in the file.
        found: u32,
    },
    /// BLAKE3 of the plain bytes.
    #[error("BLAKE3 differs")]
    Hash,
    /// BLAKE3 of the stored bytes, which the manifest has.
    #[error("not the block that was signed")]
    StoredHash,
    /// The block cannot be encrypted.
    #[error("encryption failed")]
    Encryption,
    /// Decryption refused the stored bytes.
    #[error("decryption failed")]
    Decryption,
    /// A reference into a parent leads to nothing that is certain.
    #[error("unresolvable reference into a parent ({0})")]
    Reference(&'static str),
    /// The decompressor refused the stored bytes.
    #[error("decompression failed ({0})")]
    Compression(String),
    /// The decompressed bytes are too few or too many.
    #[error("{found} bytes instead of {expected}")]
    Length {
        /// From the index page.
        expected: u64,
        /// What the stored bytes say or give.
        found: u64,
    },
}

fn with_source(error: &HeaderError) -> String {
    match error {
        HeaderError::NoLayout(source) => format!("corrupt snapshot: {error} ({source})"),
        HeaderError::Unfinished | HeaderError::Magic | HeaderError::Version(_) => error.to_string(),
    }
}
