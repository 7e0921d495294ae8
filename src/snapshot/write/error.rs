//! What can go wrong when a snapshot is written.

use std::io;

use crate::snapshot::format::FormatError;

/// What went wrong with which file: the image or the snapshot.
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
        /// Blocks of the image.
        blocks: u64,
        /// What an index holds.
        limit: u64,
    },
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
