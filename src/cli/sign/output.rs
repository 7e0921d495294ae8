//! What `sign` writes: complete files, which take the place of what was there at once.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tempfile::NamedTempFile;

use crate::cli::Failure;

/// A file under a temporary name, beside the one that it will replace. Removed unless it is
/// published.
#[derive(Debug)]
pub(super) struct Output {
    file: NamedTempFile,
    /// What was copied, and must still be there when the copy takes its place.
    original: Option<State>,
}

/// What tells that a file was written to or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: SystemTime,
}

impl State {
    fn of(metadata: &fs::Metadata) -> io::Result<Self> {
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: metadata.modified()?,
        })
    }
}

/// Refuses before the work what is not to be replaced after it: renaming would replace a link and
/// not what it points to. `is_left` if nothing will be.
pub(super) fn check_replaceable(path: &Path, is_left: bool) -> Result<(), Failure> {
    match fs::symlink_metadata(path) {
        Ok(existing) if existing.is_file() || (is_left && path.is_file()) => Ok(()),
        Ok(_) => Err(Failure::failed(format!(
            "{}: not a regular file; of a link, sign what it points to",
            path.display()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failure(path, &error)),
    }
}

/// A copy with the owner and the permissions of the original, so that whoever could read that can
/// read this. Where the file system can share the bytes, they are not copied.
pub(super) fn copy_of(path: &Path) -> Result<Output, Failure> {
    let original = File::open(path).map_err(|error| failure(path, &error))?;
    let metadata = original.metadata().map_err(|error| failure(path, &error))?;
    let mut copy = Output::beside(path)?;
    let write = || -> io::Result<State> {
        let file = copy.file();
        let ours = file.metadata()?;
        if (ours.uid(), ours.gid()) != (metadata.uid(), metadata.gid()) {
            fchown(file, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        file.set_permissions(metadata.permissions())?;
        io::copy(&mut &original, &mut &*file)?;
        State::of(&metadata)
    };
    copy.original = Some(write().map_err(|error| {
        let hint = "cannot make a signed copy, --manifest-only needs none";
        Failure::failed(format!("{}: {hint}: {error}", path.display()))
    })?);
    Ok(copy)
}

impl Output {
    /// An empty file that others may read, as far as the umask allows.
    pub(super) fn beside(path: &Path) -> Result<Self, Failure> {
        let file = tempfile::Builder::new()
            .prefix(".hexz-nbd-")
            .suffix(".tmp")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory(path))
            .map_err(|error| failure(path, &error))?;
        Ok(Self { file, original: None })
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) fn file(&self) -> &File {
        self.file.as_file()
    }

    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file().write_all_at(bytes, offset)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file().sync_all()
    }

    /// Gives the file its name when it is safely on disk.
    pub(super) fn publish(&self, path: &Path) -> Result<(), Failure> {
        let publish = || {
            self.sync()?;
            fs::rename(self.path(), path)?;
            match File::open(directory(path)).and_then(|directory| directory.sync_all()) {
                // Some file systems cannot, and need not.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
                result => result,
            }
        };
        if let Some(original) = self.original {
            let now = fs::symlink_metadata(path).and_then(|metadata| State::of(&metadata));
            if !now.is_ok_and(|now| now == original) {
                return Err(Failure::failed(format!(
                    "{}: changed while it was signed, and is left as it is",
                    path.display()
                )));
            }
        }
        publish().map_err(|error| failure(path, &error))
    }
}

fn directory(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_owned()
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_does_not_replace_a_file_that_has_changed_in_the_meantime() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.hxz");
        let changes: [fn(&Path); 3] = [
            |path| fs::write(path, "longer than it was").unwrap(),
            |path| fs::remove_file(path).unwrap(),
            |path| {
                let other = path.with_extension("new");
                fs::write(&other, "first").unwrap();
                fs::rename(other, path).unwrap();
            },
        ];
        for change in changes {
            fs::write(&path, "first").unwrap();
            let copy = copy_of(&path).unwrap();
            assert_eq!(fs::read(copy.path()).unwrap(), b"first");
            change(&path);
            let now = fs::read(&path).ok();
            let failure = copy.publish(&path).unwrap_err();
            assert!(failure.to_string().contains("changed while it was signed"), "{failure}");
            assert_eq!(fs::read(&path).ok(), now);
        }
        fs::write(&path, "first").unwrap();
        let copy = copy_of(&path).unwrap();
        copy.write_at(0, b"F").unwrap();
        copy.publish(&path).unwrap();
        drop(copy);
        assert_eq!(fs::read(&path).unwrap(), b"First");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
