//! What can go wrong when a snapshot is written.

use std::io;

use crate::snapshot::error::{Damage, ErrorKind as ReadErrorKind};
use crate::snapshot::format::{Family, FormatError};
use crate::snapshot::write::cut::BlockSize;

/// What went wrong with which file: the image, the base or the snapshot.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {kind}")]
pub struct Error {
    /// The file.
    pub file: String,
    /// What went wrong.
    pub kind: ErrorKind,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum ErrorKind {
    /// The image cannot be opened.
    #[error("cannot open the image: {0}")]
    Open(io::Error),
    /// The image is a directory, a pipe, a terminal: nothing that has bytes at positions.
    #[error("the image is neither a regular file nor a block device")]
    NotAnImage,
    /// The image cannot be read.
    #[error("cannot read the image at byte {offset}, {length} bytes: {source}")]
    Read {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: usize,
        /// Why.
        source: io::Error,
    },
    /// The image is in use. What was read before does not belong to what would be read now.
    #[error("the image changed its size while it was packed, from {before} to {now} bytes")]
    SizeChanged {
        /// When it was opened, in bytes.
        before: u64,
        /// Since then, in bytes.
        now: u64,
    },
    /// The index would be larger than readers accept.
    #[error("the image has {blocks} blocks, more than the limit of {limit}: take larger blocks")]
    TooManyBlocks {
        /// Blocks of the image, or as many as were cut until it was noticed.
        blocks: u64,
        /// What an index holds.
        limit: u64,
    },
    /// The base cannot be read, or is no snapshot.
    #[error("cannot be the base: {0}")]
    Base(ReadErrorKind),
    /// Blocks of an encrypted snapshot have no hashes, and no reader has two keys.
    #[error("cannot be the base: it is encrypted, so its index has no hashes to find blocks by")]
    BaseEncrypted,
    /// Family A.
    #[error(
        "cannot be the base: snapshots of Hexz {} have no hashes to find blocks by, pack it again",
        Family::A.releases()
    )]
    BaseWithoutHashes,
    /// A header holds UTF-8 only.
    #[error("cannot be the base: its path is not UTF-8")]
    BaseName,
    /// The header cannot hold the path.
    #[error("cannot be the base: its path is too long for a header, {0} bytes")]
    BasePathTooLong(usize),
    /// Nothing that a chunker could do.
    #[error(
        "its header has impossible parameters for cutting by content: choose a block size, though \
         few blocks will be found in it"
    )]
    BaseChunking,
    /// Blocks that are cut alike would be too small or too large.
    #[error(
        "its blocks of {bytes} bytes are not from {min} to {limit} bytes long: choose a block size",
        min = BlockSize::MIN
    )]
    BaseBlockSize {
        /// Plain bytes of a block of the base.
        bytes: u32,
        /// The largest.
        limit: u32,
    },
    /// The snapshot would replace its base, or what that needs itself.
    #[error("this is the base itself, or a parent of it")]
    SameAsBase,
    /// There is such a file, and it is not to be replaced.
    #[error("the file exists")]
    Exists,
    /// What exists is not a file: a directory, a link, a device.
    #[error("only a regular file can be replaced")]
    NotReplaceable,
    /// The snapshot would replace the image.
    #[error("this is the image itself")]
    SameFile,
    /// No file can be made in the directory of the snapshot.
    #[error("cannot create a file in the directory {directory}: {source}")]
    Create {
        /// The directory.
        directory: String,
        /// Why.
        source: io::Error,
    },
    /// The snapshot cannot be written.
    #[error("cannot write at byte {offset}: {source}")]
    Write {
        /// Where in the snapshot.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The snapshot, or the directory that names it, may not survive a power failure.
    #[error("cannot make the file durable: {0}")]
    Sync(io::Error),
    /// The complete snapshot cannot be given its name.
    #[error("cannot rename the complete file: {0}")]
    Rename(io::Error),
    /// The compressor failed.
    #[error("cannot compress the block at byte {offset}: {source}")]
    Compress {
        /// Where the block begins in the image.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The cipher failed.
    #[error("cannot encrypt the block at byte {offset}: {damage}")]
    Encrypt {
        /// Where the block begins in the image.
        offset: u64,
        /// Why.
        damage: Damage,
    },
    /// The system gives no random numbers for the salt, or no key can be derived.
    #[error("cannot make a key for encryption")]
    Key,
    /// The compressor cannot be set up.
    #[error("cannot set up the compressor: {0}")]
    Compressor(io::Error),
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The header cannot be encoded.
    #[error("cannot encode the header: {0}")]
    Header(#[from] FormatError),
    /// The caller wanted it to stop.
    #[error("interrupted, nothing was written")]
    Interrupted,
}
