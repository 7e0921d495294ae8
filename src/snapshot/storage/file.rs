//! A snapshot in a local file or on a block device.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::{Errno, ReadWriteFlags};

use crate::snapshot::error::{Error, ErrorKind};
use crate::snapshot::storage::{Identity, StorageBackend};

/// Reads a local file with positioned reads.
#[derive(Debug)]
pub struct FileBackend {
    file: File,
    bytes: u64,
    name: String,
    identity: Identity,
    path: PathBuf,
}

impl FileBackend {
    /// Opens a regular file or block device, read-only.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Open`] if the system refuses, [`ErrorKind::NotAFile`] for anything else.
    pub fn new(path: &Path) -> Result<Self, Error> {
        Self::named(path, Self::open(path, OFlags::empty()))
    }

    /// Opens a regular file and nothing else, also no link to one: the name comes from somebody
    /// who is not trusted.
    ///
    /// # Errors
    ///
    /// As [`FileBackend::new`], and [`ErrorKind::NotRegular`].
    pub(crate) fn regular(path: &Path) -> Result<Self, Error> {
        let opened = match Self::open(path, OFlags::NOFOLLOW) {
            Ok((_, metadata)) if !metadata.is_file() => Err(ErrorKind::NotRegular),
            Err(ErrorKind::Open(error))
                if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) =>
            {
                Err(ErrorKind::NotRegular)
            }
            opened => opened,
        };
        Self::named(path, opened)
    }

    fn open(path: &Path, flags: OFlags) -> Result<(File, Metadata), ErrorKind> {
        // Without O_NONBLOCK, opening a pipe waits for a writer that may never come.
        let flags = flags.union(OFlags::NONBLOCK).bits().cast_signed();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = opened.map_err(ErrorKind::Open)?;
        let metadata = file.metadata().map_err(ErrorKind::Open)?;
        Ok((file, metadata))
    }

    fn named(path: &Path, opened: Result<(File, Metadata), ErrorKind>) -> Result<Self, Error> {
        let name = path.display().to_string();
        let measured = opened.and_then(|(file, metadata)| Self::measured(path, file, &metadata));
        measured.map_err(|kind| Error { file: name, kind })
    }

    fn measured(path: &Path, mut file: File, metadata: &Metadata) -> Result<Self, ErrorKind> {
        let bytes = if metadata.is_file() {
            metadata.len()
        } else if metadata.file_type().is_block_device() {
            file.seek(SeekFrom::End(0)).map_err(ErrorKind::Open)?
        } else {
            return Err(ErrorKind::NotAFile);
        };
        let (device, inode) = (metadata.dev(), metadata.ino());
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let identity = Identity { device, inode, bytes, modified };
        let (name, path) = (path.display().to_string(), path.to_path_buf());
        Ok(Self { file, bytes, name, identity, path })
    }
}

impl StorageBackend for FileBackend {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// `RWF_NOWAIT`: what is in the page cache, or nothing. File systems that do not know it say so, and
    /// then nothing is.
    fn read_resident_at(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let wanted = buffer.len();
        let buffers = &mut [IoSliceMut::new(buffer)];
        let read = rustix::io::preadv2(&self.file, buffers, offset, ReadWriteFlags::NOWAIT);
        read.is_ok_and(|read| read == wanted)
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> Option<Identity> {
        Some(self.identity)
    }

    fn directory(&self) -> Option<&Path> {
        self.path.parent()
    }

    fn companion(&self, suffix: &str) -> Result<Option<Arc<dyn StorageBackend>>, Error> {
        for path in companions(&self.path, suffix) {
            match Self::regular(&path) {
                Ok(found) => return Ok(Some(Arc::new(found))),
                Err(Error { kind: ErrorKind::Open(error), .. })
                    if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// Where something lies beside a file: beside its path, and where that is a link beside the file
/// that it leads to.
pub(crate) fn companions(path: &Path, suffix: &str) -> Vec<PathBuf> {
    let with_suffix = |path: &Path| {
        let mut path = path.as_os_str().to_owned();
        path.push(suffix);
        PathBuf::from(path)
    };
    let leads_to = std::fs::canonicalize(path).ok();
    let is_link = |target: &PathBuf| target.file_name() != path.file_name() || path.is_symlink();
    let mut places = vec![with_suffix(path)];
    places.extend(leads_to.filter(is_link).map(|target| with_suffix(&target)));
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_and_a_missing_file_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing.hxz");
        assert!(matches!(
            FileBackend::new(directory.path()),
            Err(Error { kind: ErrorKind::NotAFile, .. })
        ));
        let error = FileBackend::new(&missing).unwrap_err();
        assert!(error.to_string().contains("missing.hxz"), "{error}");
    }

    #[test]
    fn what_is_in_memory_is_read_without_waiting_or_not_at_all() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"in the page cache").unwrap();
        let backend = FileBackend::new(file.path()).unwrap();
        let mut bytes = [0; 4];
        // Some file systems cannot tell.
        if backend.read_resident_at(7, &mut bytes) {
            assert_eq!(&bytes, b"page");
        }
        assert!(!backend.read_resident_at(14, &mut bytes), "there are but three bytes");
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(100).unwrap();
        let backend = FileBackend::new(file.path()).unwrap();
        file.as_file().set_len(50).unwrap();
        let error = backend.read_exact_at(40, &mut [0; 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
