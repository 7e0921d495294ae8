//! A whole snapshot against its manifest, without its passphrase and its parents.

use crate::snapshot::format::Stream;
use crate::snapshot::format::index::EntryKind;
use crate::snapshot::manifest::build::StoredBlocks;
use crate::snapshot::manifest::{Manifest, ManifestError, ManifestErrorKind};
use crate::snapshot::structure::Structure;

/// Compares every index page with the manifest, and every stored block of which the manifest has a
/// hash. Where it has none, the entries have: [`verify`](crate::snapshot::verify::verify) compares
/// those. [`Manifest::check`] has to come first.
///
/// # Errors
///
/// [`ManifestError`] with the first page or block that is not what was signed.
pub fn verify(
    manifest: &Manifest,
    structure: &Structure,
    progress: &dyn Fn(u64),
) -> Result<(), ManifestError> {
    let mut blocks = StoredBlocks::new(structure);
    let at_manifest = |kind| manifest.error(kind);
    for stream in Stream::ALL {
        for (page, record) in structure.index().pages(stream).iter().enumerate() {
            let checked = manifest.page(structure, stream, page)?;
            let mut position = record.start_logical;
            for (number, entry) in checked.entries.iter().enumerate() {
                let signed = checked.own_hashes.as_ref().and_then(|hashes| hashes.get(number));
                let is_data = entry.kind(structure.entry_bounds()) == Ok(EntryKind::Data);
                if let Some(signed) = signed.filter(|_| is_data) {
                    let found = blocks.hash(stream, position, entry);
                    if found.map_err(|error| at_manifest(error.into()))? != *signed {
                        let stored_at = entry.offset;
                        let kind = ManifestErrorKind::Block { stream, position, stored_at };
                        return Err(at_manifest(kind));
                    }
                }
                position = position.saturating_add(u64::from(entry.logical_length));
                progress(u64::from(entry.logical_length));
            }
        }
    }
    Ok(())
}
