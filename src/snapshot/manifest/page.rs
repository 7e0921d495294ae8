//! Index pages as a manifest sees them: bytes, their hash, and entries that lack one.

use crate::snapshot::error::Error;
use crate::snapshot::format::PageRecord;
use crate::snapshot::format::index::{Entry, EntryBounds, EntryKind, decode_page};
use crate::snapshot::structure::{Structure, read};

/// A BLAKE3.
pub type Hash = [u8; 32];

/// Separates the hashes of pages from every other use of BLAKE3.
const CONTEXT: &str = "hexz-nbd manifest v1 page";

/// The hash of a page: its bytes as they are in the file, and the hashes of its blocks if the
/// manifest has them. A page begins with the number of its entries, so one cannot pass for the
/// other.
pub(super) fn leaf(page: &[u8], own_hashes: &[Hash]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(page);
    hasher.update(own_hashes.as_flattened());
    *hasher.finalize().as_bytes()
}

pub(super) fn read_page(structure: &Structure, record: &PageRecord) -> Result<Vec<u8>, Error> {
    let length = u64::from(record.length);
    let bytes = read(structure.storage(), "index page", record.offset, length);
    bytes.map_err(|kind| structure.error(kind))
}

pub(super) fn decode(
    structure: &Structure,
    record: &PageRecord,
    bytes: &[u8],
) -> Result<Vec<Entry>, Error> {
    let entries = decode_page(bytes, record, structure.family());
    entries.map_err(|error| structure.error(error.into()))
}

/// The first data entry that has no hash of its plain bytes.
pub(super) fn missing_hash(entries: &[Entry], bounds: EntryBounds) -> Option<&Entry> {
    let lacks = |entry: &&Entry| entry.hash == [0; 32] && entry.kind(bounds) == Ok(EntryKind::Data);
    entries.iter().find(lacks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_depends_on_the_page_and_on_every_hash() {
        let page = [1, 0, 0, 0, 0, 0, 0, 0, 9];
        let leaves = [
            leaf(&page, &[]),
            leaf(&page, &[[0; 32]]),
            leaf(&page, &[[0; 32], [0; 32]]),
            leaf(&page, &[[1; 32]]),
            leaf(&page[..8], &[]),
            *blake3::hash(&page).as_bytes(),
        ];
        for (number, one) in leaves.iter().enumerate() {
            assert!(!leaves[number + 1..].contains(one), "{number}");
        }
    }
}
