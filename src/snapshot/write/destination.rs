//! The snapshot under a temporary name until it is complete.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use crate::snapshot::write::base::Base;
use crate::snapshot::write::error::ErrorKind;
use crate::snapshot::write::source::Source;

/// Refuses before the work what could not be renamed over after it.
pub(super) fn check(
    path: &Path,
    source: &Source,
    base: Option<&Base>,
    replace: bool,
) -> Result<(), ErrorKind> {
    if let Ok(existing) = fs::metadata(path) {
        if source.is(&existing) {
            return Err(ErrorKind::SameFile);
        }
        if base.is_some_and(|base| base.needs(&existing)) {
            return Err(ErrorKind::SameAsBase);
        }
    }
    // Not what a link points to: renaming would replace the link.
    match fs::symlink_metadata(path) {
        Ok(_) if !replace => Err(ErrorKind::Exists),
        Ok(existing) if !existing.is_file() => Err(ErrorKind::NotReplaceable),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(create_error(path, source)),
    }
}

/// A file whose temporary name is removed when it is dropped, unless it was renamed.
#[derive(Debug)]
pub(super) struct Temporary {
    file: File,
    path: PathBuf,
    renamed: bool,
}

impl Temporary {
    /// Creates a file in the directory of `destination`, so that renaming moves no bytes.
    pub(super) fn beside(destination: &Path) -> Result<Self, ErrorKind> {
        let process = std::process::id();
        // Names of files that an earlier process with this id could not remove are passed over.
        let mut number = 0_u32;
        loop {
            let name = format!(".hexz-nbd-{process}-{number}.tmp");
            let path = directory(destination).join(name);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Self { file, path, renamed: false }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 10_000 => {
                    number = number.saturating_add(1);
                }
                Err(source) => return Err(create_error(destination, source)),
            }
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Makes the file durable and gives it its name, in that order: after a power failure there is
    /// the complete file under its name, or what was there before.
    pub(super) fn publish(mut self, destination: &Path, replace: bool) -> Result<(), ErrorKind> {
        self.file.sync_all().map_err(ErrorKind::Sync)?;
        if replace {
            fs::rename(&self.path, destination).map_err(ErrorKind::Rename)?;
            self.renamed = true;
        } else {
            self.renamed = name_new(&self.path, destination)?;
        }
        match File::open(directory(destination)).and_then(|directory| directory.sync_all()) {
            // Some file systems cannot, and need not.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            result => result.map_err(ErrorKind::Sync),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // Nothing more can be done about a file that cannot be removed.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Gives the file a name that no other file has, even if one appeared in the meantime. Returns
/// whether the temporary name is gone.
fn name_new(from: &Path, to: &Path) -> Result<bool, ErrorKind> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Err(ErrorKind::Exists),
        // File systems that cannot do both at once, such as NFS: a link is never made over a file.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => match fs::hard_link(from, to) {
            Ok(()) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(ErrorKind::Exists),
            Err(error) => Err(ErrorKind::Rename(error)),
        },
        Err(error) => Err(ErrorKind::Rename(error.into())),
    }
}

pub(super) fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(super) fn create_error(destination: &Path, source: io::Error) -> ErrorKind {
    ErrorKind::Create { directory: directory(destination).display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn an_unfinished_file_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out.hxz");
        let first = Temporary::beside(&out).unwrap();
        let second = Temporary::beside(&out).unwrap();
        assert_eq!(names(directory.path()).len(), 2);
        drop((first, second));
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn a_file_that_appeared_in_the_meantime_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out.hxz");
        let temporary = Temporary::beside(&out).unwrap();
        fs::write(&out, "precious").unwrap();
        let error = temporary.publish(&out, false).unwrap_err();
        assert!(matches!(error, ErrorKind::Exists), "{error}");
        assert_eq!(fs::read(&out).unwrap(), b"precious");
        assert_eq!(names(directory.path()), ["out.hxz"]);
    }

    #[test]
    fn only_a_regular_file_is_replaced_and_never_the_image() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("image"), "image").unwrap();
        fs::write(path("other"), "other").unwrap();
        fs::hard_link(path("image"), path("hard")).unwrap();
        std::os::unix::fs::symlink("image", path("soft")).unwrap();
        std::os::unix::fs::symlink("other", path("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
        let source = Source::open(&path("image")).unwrap();
        let check = |name: &str, replace| check(&path(name), &source, None, replace);

        for same in ["image", "hard", "soft", "./image"] {
            assert!(matches!(check(same, true), Err(ErrorKind::SameFile)), "{same}");
            assert!(matches!(check(same, false), Err(ErrorKind::SameFile)), "{same}");
        }
        for other in ["link", "dangling", "."] {
            assert!(matches!(check(other, true), Err(ErrorKind::NotReplaceable)), "{other}");
        }
        for existing in ["other", "link", "dangling", "."] {
            assert!(matches!(check(existing, false), Err(ErrorKind::Exists)), "{existing}");
        }
        assert!(check("other", true).is_ok());
        assert!(check("new", false).is_ok());
    }
}
