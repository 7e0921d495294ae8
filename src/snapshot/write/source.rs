//! The image: a regular file, with or without holes, or a block device.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::snapshot::write::error::{Error, ErrorKind};

/// An opened image.
#[derive(Debug)]
pub struct Source {
    file: File,
    metadata: Metadata,
    bytes: u64,
    name: String,
}

impl Source {
    /// Opens a regular file or block device, read-only.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Open`] if the system refuses, [`ErrorKind::NotAnImage`] for anything else.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        Self::open_named(path, name.clone()).map_err(|kind| Error { file: name, kind })
    }

    fn open_named(path: &Path, name: String) -> Result<Self, ErrorKind> {
        // Without O_NONBLOCK, opening a pipe waits for a writer that may never come.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .map_err(ErrorKind::Open)?;
        let metadata = file.metadata().map_err(ErrorKind::Open)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(ErrorKind::NotAnImage);
        }
        let bytes = size(&file).map_err(ErrorKind::Open)?;
        Ok(Self { file, metadata, bytes, name })
    }

    /// Length in bytes when it was opened.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn error(&self, kind: ErrorKind) -> Error {
        Error { file: self.name.clone(), kind }
    }

    /// Whether this is the image, whatever the path says.
    pub(super) fn is(&self, other: &Metadata) -> bool {
        let same_file = (self.metadata.dev(), self.metadata.ino()) == (other.dev(), other.ino());
        // A device may have several nodes.
        let same_device = other.file_type().is_block_device()
            && self.metadata.file_type().is_block_device()
            && self.metadata.rdev() == other.rdev();
        same_file || same_device
    }

    /// The first bytes of a range that may be anything but zero. `None` if there is only a hole.
    pub(super) fn next_data(&self, range: Range<u64>) -> Option<Range<u64>> {
        // A file system or device that knows no holes gives an error or all of the range.
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(range.start)) {
            Ok(start) => start.max(range.start),
            Err(Errno::NXIO) => range.end,
            Err(_) => range.start,
        };
        if start >= range.end {
            return None;
        }
        let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start)).unwrap_or(range.end);
        // A hole where there was data a moment ago: the image is in use, and reading is safe.
        let end = if end > start { end.min(range.end) } else { range.end };
        Some(start..end)
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ErrorKind> {
        self.file.read_exact_at(buffer, offset).map_err(|source| {
            if let Err(changed @ ErrorKind::SizeChanged { .. }) = self.check_size() {
                return changed;
            }
            ErrorKind::Read { offset, length: buffer.len(), source }
        })
    }

    /// Whether the image is still as long as it was.
    pub(super) fn check_size(&self) -> Result<(), ErrorKind> {
        let length = 0;
        let now = size(&self.file).map_err(|source| ErrorKind::Read {
            offset: self.bytes,
            length,
            source,
        })?;
        let before = self.bytes;
        if now == before { Ok(()) } else { Err(ErrorKind::SizeChanged { before, now }) }
    }
}

/// Metadata has no size for a block device, its end has.
fn size(file: &File) -> io::Result<u64> {
    Ok(rustix::fs::seek(file, SeekFrom::End(0))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_bytes_at_positions_is_refused_without_waiting_for_it() {
        let directory = tempfile::tempdir().unwrap();
        for path in [directory.path(), Path::new("/dev/null")] {
            let error = Source::open(path).unwrap_err();
            assert!(matches!(error.kind, ErrorKind::NotAnImage), "{error}");
        }
        let missing = directory.path().join("missing.img");
        let error = Source::open(&missing).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::Open(_)), "{error}");
        assert!(error.to_string().contains("missing.img"), "{error}");
    }

    #[test]
    fn data_is_found_between_holes_and_nowhere_else() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        file.as_file().write_all_at(&[7; 100], 4 << 20).unwrap();
        let source = Source::open(file.path()).unwrap();

        let data = source.next_data(0..8 << 20).unwrap();
        assert!(data.start <= 4 << 20 && data.end >= (4 << 20) + 100, "{data:?}");
        // Only what the caller asks for.
        assert_eq!(source.next_data((4 << 20) + 10..(4 << 20) + 20).unwrap().start, 4_194_314);
        assert_eq!(source.next_data((4 << 20) + 10..(4 << 20) + 20).unwrap().end, 4_194_324);
        // The file system may know no holes; then everything is data.
        if data.start > 0 {
            assert_eq!(source.next_data(0..1 << 20), None);
            assert_eq!(source.next_data(7 << 20..8 << 20), None);
        }
    }

    #[test]
    fn a_change_of_size_is_told_from_a_failing_disk() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1000).unwrap();
        let source = Source::open(file.path()).unwrap();
        assert!(source.check_size().is_ok());
        file.as_file().set_len(500).unwrap();
        let error = source.read(400, &mut [0; 200]).unwrap_err();
        assert!(matches!(error, ErrorKind::SizeChanged { before: 1000, now: 500 }), "{error}");
        file.as_file().set_len(1001).unwrap();
        assert!(matches!(source.check_size(), Err(ErrorKind::SizeChanged { now: 1001, .. })));
    }
}
