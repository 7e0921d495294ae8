//! Files that appear all or none, and secrets that are never anybody else's.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

/// Mode of a file that everybody may read.
const PUBLIC: u32 = 0o644;
/// Mode of a file that nobody else may read.
const SECRET: u32 = 0o600;
/// Mode of a directory that was made for secrets.
const DIRECTORY: u32 = 0o700;

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    /// There is a file of this name, which nobody has asked to lose.
    #[error("{} exists, use --force to replace it", .0.display())]
    Exists(PathBuf),
    /// There is something of this name that is no file.
    #[error("{} exists and is not a regular file", .0.display())]
    NotReplaceable(PathBuf),
    /// A directory cannot be made, or is something else.
    #[error("cannot create the directory {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// What is to be written. The order is that in which the files appear.
#[derive(Default)]
pub(super) struct Files {
    planned: Vec<Planned>,
}

struct Planned {
    path: PathBuf,
    contents: String,
    mode: u32,
}

impl Files {
    /// Plans a file that everybody may read.
    pub(super) fn public(&mut self, path: PathBuf, contents: String) {
        self.planned.push(Planned { path, contents, mode: PUBLIC });
    }

    /// Plans a file that only its owner may read.
    pub(super) fn secret(&mut self, path: PathBuf, contents: String) {
        self.planned.push(Planned { path, contents, mode: SECRET });
    }

    /// Writes all files under temporary names, and gives them theirs when all are safely on disk.
    pub(super) fn write(&self, replace: bool) -> Result<(), FilesError> {
        for Planned { path, .. } in &self.planned {
            check(path, replace)?;
        }
        for Planned { path, .. } in &self.planned {
            let directory = parent(path);
            DirBuilder::new()
                .recursive(true)
                .mode(DIRECTORY)
                .create(directory)
                .map_err(|source| FilesError::Directory { path: directory.to_owned(), source })?;
        }
        let temporaries: Vec<_> =
            self.planned.iter().map(Temporary::write).collect::<Result<_, _>>()?;
        for temporary in temporaries {
            temporary.publish(replace)?;
        }
        Ok(())
    }
}

/// Refuses before anything is written what could not be written later.
fn check(path: &Path, replace: bool) -> Result<(), FilesError> {
    // Not what a link points to: renaming would replace the link.
    match fs::symlink_metadata(path) {
        Ok(existing) if !existing.is_file() => Err(FilesError::NotReplaceable(path.to_owned())),
        Ok(_) if !replace => Err(FilesError::Exists(path.to_owned())),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(FilesError::Write { path: path.to_owned(), source }),
    }
}

/// A complete file under another name, which is removed unless it gets its own.
struct Temporary<'a> {
    path: PathBuf,
    planned: &'a Planned,
    renamed: bool,
}

impl<'a> Temporary<'a> {
    fn write(planned: &'a Planned) -> Result<Self, FilesError> {
        let failed = |source| FilesError::Write { path: planned.path.clone(), source };
        let (mut file, temporary) = Self::create(planned).map_err(failed)?;
        let written = file.write_all(planned.contents.as_bytes()).and_then(|()| file.sync_all());
        written.map_err(failed)?;
        Ok(temporary)
    }

    /// Creates the file in the directory where it stays, with its mode from the first moment on.
    fn create(planned: &'a Planned) -> io::Result<(File, Self)> {
        let process = std::process::id();
        // Names of files that an earlier process with this id could not remove are passed over.
        let mut number = 0_u32;
        loop {
            let path = parent(&planned.path).join(format!(".hexz-nbd-{process}-{number}.tmp"));
            let mut options = OpenOptions::new();
            match options.write(true).create_new(true).mode(planned.mode).open(&path) {
                Ok(file) => return Ok((file, Self { path, planned, renamed: false })),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 10_000 => {
                    number += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn publish(mut self, replace: bool) -> Result<(), FilesError> {
        let path = &self.planned.path;
        let failed = |source| FilesError::Write { path: path.clone(), source };
        if replace {
            fs::rename(&self.path, path).map_err(failed)?;
            self.renamed = true;
        } else {
            // A file that appeared since it was looked for is kept, too.
            match rustix::fs::renameat_with(CWD, &self.path, CWD, path, RenameFlags::NOREPLACE) {
                Ok(()) => self.renamed = true,
                Err(Errno::EXIST) => return Err(FilesError::Exists(path.clone())),
                // File systems that cannot do both at once, such as NFS.
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                    fs::hard_link(&self.path, path).map_err(failed)?;
                }
                Err(error) => return Err(failed(error.into())),
            }
        }
        match File::open(parent(path)).and_then(|directory| directory.sync_all()) {
            // Some file systems cannot, and need not.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            result => result.map_err(failed),
        }
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.renamed {
            // Nothing more can be done about a file that cannot be removed.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn one_file_that_exists_keeps_all_others_from_being_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("b"), "precious").unwrap();
        let mut files = Files::default();
        files.secret(path("a"), "new".into());
        files.public(path("b"), "new".into());
        let error = files.write(false).unwrap_err();
        assert!(matches!(error, FilesError::Exists(_)), "{error}");
        assert_eq!(names(directory.path()), ["b"]);
        assert_eq!(fs::read(path("b")).unwrap(), b"precious");

        files.write(true).unwrap();
        assert_eq!(names(directory.path()), ["a", "b"]);
        assert_eq!(fs::read(path("b")).unwrap(), b"new");
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("file"), "").unwrap();
        let mut files = Files::default();
        files.secret(path("a"), "new".into());
        files.secret(path("file/b"), "new".into());
        assert!(files.write(true).is_err());
        assert_eq!(names(directory.path()), ["file"]);
    }

    #[test]
    fn links_and_directories_are_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("directory")).unwrap();
        std::os::unix::fs::symlink("elsewhere", path("link")).unwrap();
        for name in ["directory", "link"] {
            let mut files = Files::default();
            files.public(path(name), "new".into());
            let error = files.write(true).unwrap_err();
            assert!(matches!(error, FilesError::NotReplaceable(_)), "{name}: {error}");
        }
    }

    #[test]
    fn a_file_that_appeared_in_the_meantime_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let planned = Planned { path: path.clone(), contents: "new".into(), mode: SECRET };
        let temporary = Temporary::write(&planned).unwrap();
        fs::write(&path, "precious").unwrap();
        let error = temporary.publish(false).unwrap_err();
        assert!(matches!(error, FilesError::Exists(_)), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert_eq!(names(directory.path()), ["a"]);
    }
}
