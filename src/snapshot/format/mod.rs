//! Bytes of a `.hxz` file to structures and back. No I/O: callers bring the bytes and their place.
//!
//! Every release writes version 1 although the layout changed three times, so the layout is
//! recognised, never assumed: [`header::candidates`] gives the readings that a header allows, and
//! the master index and one page decide between them (format section 4, done in `snapshot::open`).

pub mod fields;
pub mod header;
pub mod index;

pub use self::header::{Compression, Header, Layout};
pub use self::index::{Entry, MasterIndex, PageRecord};

use std::fmt;

/// Length of the header area, in bytes. Blocks and pages never lie below it. Format section 2.
pub const HEADER_BYTES: u64 = 4096;

/// Which releases laid the file out like this. Format section 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Releases 0.1.2 to 0.4.5: one parent, no hashes.
    A,
    /// Releases 0.5.0 and 0.5.1: one parent, BLAKE3 for each block.
    B,
    /// Releases 0.5.2 to 0.7.0, and 0.8 without content-defined chunking: a list of parents.
    C,
    /// Releases 0.8: as C, with the parameters of content-defined chunking.
    D,
}

impl Family {
    /// Length of one entry of an index page, in bytes. Format section 6.
    #[must_use]
    pub const fn entry_bytes(self) -> u64 {
        match self {
            Self::A => index::ENTRY_BYTES_WITHOUT_HASH,
            Self::B | Self::C | Self::D => index::ENTRY_BYTES_WITH_HASH,
        }
    }

    /// Releases that wrote it, for people.
    #[must_use]
    pub const fn releases(self) -> &'static str {
        match self {
            Self::A => "0.1.2 to 0.4.5",
            Self::B => "0.5.0 and 0.5.1",
            Self::C => "0.5.2 to 0.8",
            Self::D => "0.8",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Which of the two byte streams of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// The disk image, or whatever was packed. Older releases call it disk or primary.
    Main,
    /// A memory dump, if any. Older releases call it memory or secondary.
    Auxiliary,
}

impl Stream {
    /// Both, in the order of the file.
    pub const ALL: [Self; 2] = [Self::Main, Self::Auxiliary];
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Main => "main",
            Self::Auxiliary => "auxiliary",
        })
    }
}

/// What is wrong with bytes of a snapshot, and where. Retrying does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The bytes end before the value does.
    #[error("{what} is cut short at byte {offset}")]
    Truncated {
        /// Structure or field.
        what: &'static str,
        /// Where it begins in the file.
        offset: u64,
    },
    /// A value that no release writes.
    #[error("{what} at byte {offset} has an impossible value")]
    Invalid {
        /// Structure or field.
        what: &'static str,
        /// Where it begins in the file.
        offset: u64,
    },
    /// A value above what this reader accepts.
    #[error("{what} at byte {offset} is {value}, more than the limit of {limit}")]
    Limit {
        /// Structure or field.
        what: &'static str,
        /// Where it begins in the file.
        offset: u64,
        /// What the file says.
        value: u64,
        /// What is accepted.
        limit: u64,
    },
}
