//! Where the bytes of a snapshot lie.

pub mod file;
pub mod memory;

pub use self::file::FileBackend;
pub(crate) use self::file::companions;
pub use self::memory::MemoryBackend;

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::snapshot::error::Error;

/// Positioned reads of immutable bytes.
///
/// Calls may block, so they are made where that stalls nobody. Implementations read exactly what
/// is asked for or fail; a file that has become shorter fails with
/// [`io::ErrorKind::UnexpectedEof`]. Nothing is mapped into memory: a file truncated under a
/// mapping ends the process.
pub trait StorageBackend: Send + Sync + Debug {
    /// Fills `buffer` with the bytes at `offset`.
    ///
    /// # Errors
    ///
    /// Whatever the storage reports. Nothing may be concluded from the contents of `buffer` then.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Fills `buffer` as [`StorageBackend::read_exact_at`] does, if that is sure not to wait, and says
    /// whether it did. A storage that cannot tell never does.
    fn read_resident_at(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let (_, _) = (offset, buffer);
        false
    }

    /// Length in bytes when the storage was opened.
    fn bytes(&self) -> u64;

    /// What to call it in messages: a path, an address.
    fn name(&self) -> &str;

    /// What tells it from all others, if there is anything.
    fn identity(&self) -> Option<Identity> {
        None
    }

    /// The directory in which it lies, if it lies in one. Relatives are looked for there.
    fn directory(&self) -> Option<&Path> {
        None
    }

    /// What lies beside it under its name and a suffix. `None` if there is nothing.
    ///
    /// # Errors
    ///
    /// [`Error`] if there is something that cannot be read.
    fn companion(&self, suffix: &str) -> Result<Option<Arc<dyn StorageBackend>>, Error> {
        let _ = suffix;
        Ok(None)
    }
}

/// Which file it is, and in which state. Equal ones hold the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    /// When it was written last: seconds and nanoseconds.
    modified: (i64, i64),
}
