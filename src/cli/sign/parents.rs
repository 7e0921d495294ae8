//! The manifests of a thin snapshot's parents, whose roots go into its own.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cli::Failure;
use crate::snapshot::manifest::{Manifest, ManifestErrorKind, Root, Trust};
use crate::snapshot::structure::BLOCK_BYTES_MAX_DEFAULT;
use crate::snapshot::{Structure, VerifyKey, chain};

/// The root of each parent, in the order of the header. What a parent has of parents itself is in
/// its root.
///
/// Each manifest must be signed by one of the keys and fit its snapshot: a signature of the child
/// would otherwise vouch for a parent that anybody may have put there.
pub(super) fn roots(
    child: &Structure,
    directories: &[PathBuf],
    keys: &[VerifyKey],
) -> Result<Vec<Root>, Failure> {
    let parents = child.header().parents.iter();
    parents.map(|recorded| root(recorded, child, directories, keys)).collect()
}

fn root(
    recorded: &str,
    child: &Structure,
    directories: &[PathBuf],
    keys: &[VerifyKey],
) -> Result<Root, Failure> {
    let storage = chain::locate(child, recorded, directories)?;
    let parent = Structure::read(Arc::new(storage), BLOCK_BYTES_MAX_DEFAULT)?;
    let Some(manifest) = Manifest::beside(&parent)? else {
        return Err(Failure::failed(format!(
            "{}: its parent has no manifest, sign the parent first: {}",
            child.name(),
            parent.name()
        )));
    };
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
