//! A snapshot in a local file or on a block device.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::snapshot::error::{Error, ErrorKind};
use crate::snapshot::storage::StorageBackend;

/// Reads a local file with positioned reads.
#[derive(Debug)]
pub struct FileBackend {
    file: File,
    bytes: u64,
    name: String,
}

impl FileBackend {
    /// Opens a regular file or block device, read-only.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Open`] if the system refuses, [`ErrorKind::NotAFile`] for anything else.
    pub fn new(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        Self::open(path, name.clone()).map_err(|kind| Error { file: name, kind })
    }

    fn open(path: &Path, name: String) -> Result<Self, ErrorKind> {
        // Without O_NONBLOCK, opening a pipe waits for a writer that may never come.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .map_err(ErrorKind::Open)?;
        let metadata = file.metadata().map_err(ErrorKind::Open)?;
        let bytes = if metadata.is_file() {
            metadata.len()
        } else if metadata.file_type().is_block_device() {
            file.seek(SeekFrom::End(0)).map_err(ErrorKind::Open)?
        } else {
            return Err(ErrorKind::NotAFile);
        };
        Ok(Self { file, bytes, name })
    }
}

impl StorageBackend for FileBackend {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn name(&self) -> &str {
        &self.name
    }
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
    fn a_file_that_became_shorter_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(100).unwrap();
        let backend = FileBackend::new(file.path()).unwrap();
        file.as_file().set_len(50).unwrap();
        let error = backend.read_exact_at(40, &mut [0; 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
