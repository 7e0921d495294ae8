//! The manifests of a thin snapshot's parents, whose roots go into its own.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::Failure;
use crate::cli::sign::open;
use crate::snapshot::manifest::{self, Manifest, ManifestErrorKind, Root, Trust};
use crate::snapshot::{FileBackend, Structure, VerifyKey};

/// The root of each parent, in the order of the header. What a parent has of parents itself is in
/// its root.
///
/// Each manifest must be signed by one of the keys and fit its snapshot: a signature of the child
/// would otherwise vouch for a parent that anybody may have put there.
pub(super) fn roots(
    structure: &Structure,
    child: &Path,
    directories: &[PathBuf],
    keys: &[VerifyKey],
) -> Result<Vec<Root>, Failure> {
    let parents = structure.header().parents.iter();
    parents.map(|recorded| root(recorded, child, directories, keys)).collect()
}

fn root(
    recorded: &str,
    child: &Path,
    directories: &[PathBuf],
    keys: &[VerifyKey],
) -> Result<Root, Failure> {
    let path = find(recorded, child, directories)?;
    let beside = manifest::path_beside(&path);
    if !beside.is_file() {
        return Err(Failure::failed(format!(
            "{}: its parent has no manifest, sign the parent first: {}",
            child.display(),
            path.display()
        )));
    }
    let parent = open(&path)?;
    let manifest = Manifest::read(Arc::new(FileBackend::new(&beside)?), &parent)?;
    match manifest.check(Trust::Keys(keys), &parent) {
        Ok(_) => Ok(manifest.root()),
        Err(error) if matches!(error.kind, ManifestErrorKind::UnknownKey(_)) => {
            Err(Failure::failed(format!(
                "{error}; if the parent may be signed by it, say so with --parent-key"
            )))
        }
        Err(error) => Err(error.into()),
    }
}

/// The recorded path comes from a file that anybody may have made: nothing but its last part is
/// used, and nothing but a regular file is opened. Format section 12.
fn find(recorded: &str, child: &Path, directories: &[PathBuf]) -> Result<PathBuf, Failure> {
    let beside = child.parent().unwrap_or(Path::new(""));
    let Some(name) = Path::new(recorded).file_name() else {
        return Err(Failure::failed(format!(
            "{}: its parent is recorded as {recorded:?}, which names no file",
            child.display()
        )));
    };
    let mut places = [beside].into_iter().chain(directories.iter().map(PathBuf::as_path));
    let found = places.find_map(|directory| {
        let path = directory.join(name);
        path.is_file().then_some(path)
    });
    let Some(path) = found else {
        return Err(Failure::failed(format!(
            "{}: its parent {} is neither beside it nor in a directory of --parent-dir",
            child.display(),
            Path::new(name).display()
        )));
    };
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    if identity(&path)? == identity(child)? {
        return Err(Failure::failed(format!("{}: names itself as its parent", child.display())));
    }
    Ok(path)
}
