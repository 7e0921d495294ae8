//! Which blocks of a snapshot have which hash, for children that refer to them by content.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::sync::{Arc, PoisonError};

use crate::snapshot::error::{Error, ErrorKind};
use crate::snapshot::file::File;
use crate::snapshot::format::index::{Entry, EntryKind};
use crate::snapshot::format::{Family, Stream};
use crate::snapshot::page::Block;

/// Most blocks that are searched above one snapshot: 2 TiB of common ones. Each takes 12 bytes of
/// memory as long as its snapshot is open, and no number in a file may decide how much that is.
const BLOCKS_MAX: u64 = 32 << 20;

/// Data blocks that have a hash, sorted by its first half. Of equal ones there is the first.
#[derive(Debug)]
pub(crate) struct HashIndex(Box<[Indexed]>);

/// 12 bytes, which is why the prefix is in two pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Indexed {
    prefix: [u32; 2],
    /// Number of the block in the snapshot.
    number: u32,
}

fn prefix(hash: &[u8; 32]) -> [u32; 2] {
    let word = |bytes: Option<&[u8; 4]>| bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes));
    let (first, rest) = hash.split_at(4);
    [word(first.first_chunk()), word(rest.first_chunk())]
}

impl File {
    /// A data block of this snapshot with that hash and length, in either stream. The first
    /// search reads the whole index. What is found verifies itself when it is decoded.
    pub(crate) fn find_hash(
        &self,
        hash: &[u8; 32],
        logical_length: u32,
    ) -> Result<Option<(Stream, Block)>, Error> {
        // Such files have none.
        if self.structure().family() == Family::A || self.structure().header().encryption.is_some()
        {
            return Ok(None);
        }
        let index = self.hash_index()?;
        let wanted = prefix(hash);
        let at = index.0.partition_point(|indexed| indexed.prefix < wanted);
        let Some(indexed) = index.0.get(at).filter(|indexed| indexed.prefix == wanted) else {
            return Ok(None);
        };
        let Some((stream, block)) = self.block_of_number(u64::from(indexed.number))? else {
            return Ok(None);
        };
        let is_it =
            block.logical_length() == logical_length && self.entry_hash(stream, &block)? == *hash;
        Ok(is_it.then_some((stream, block)))
    }

    /// Whether everything above this snapshot together has few enough blocks to be searched.
    pub(crate) fn check_searchable(&self) -> Result<(), Error> {
        self.check_blocks_above(BLOCKS_MAX)
    }

    fn check_blocks_above(&self, limit: u64) -> Result<(), Error> {
        let blocks = self.ancestors().iter().map(|ancestor| ancestor.file.structure().blocks());
        let blocks = blocks.fold(0, u64::saturating_add);
        if blocks > limit {
            return Err(self.structure().error(ErrorKind::TooManyBlocks { blocks, limit }));
        }
        Ok(())
    }

    /// Whoever comes first reads the index. The others need it too, so they wait.
    fn hash_index(&self) -> Result<Arc<HashIndex>, Error> {
        let mut index = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = &*index {
            return Ok(Arc::clone(index));
        }
        let built = Arc::new(self.build_hash_index()?);
        *index = Some(Arc::clone(&built));
        Ok(built)
    }

    fn build_hash_index(&self) -> Result<HashIndex, Error> {
        let structure = self.structure();
        let bounds = structure.entry_bounds();
        let mut indexed = Vec::new();
        for (stream, page, record) in structure.pages() {
            let entries = match structure.page_entries(stream, page) {
                Ok(page) => page.entries,
                // It may be readable the next time.
                Err(error) if error.kind.may_pass() => return Err(error),
                // What it holds cannot be read anyway.
                Err(_) => continue,
            };
            let has_hash =
                |entry: &Entry| entry.kind(bounds) == Ok(EntryKind::Data) && entry.hash != [0; 32];
            let numbered = (record.start_block..).zip(&entries);
            indexed.extend(numbered.filter(|(_, entry)| has_hash(entry)).filter_map(
                |(number, entry)| {
                    let number = u32::try_from(number).ok()?;
                    Some(Indexed { prefix: prefix(&entry.hash), number })
                },
            ));
        }
        indexed.sort_unstable();
        indexed.dedup_by_key(|indexed| indexed.prefix);
        Ok(HashIndex(indexed.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn file(name: &str) -> Arc<File> {
        File::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
    }

    #[test]
    fn every_data_block_of_both_streams_is_found_by_its_hash_and_length_only() {
        let file = file("v051-lz4-aux.hxz");
        let mut streams = Vec::new();
        for stream in Stream::ALL {
            for page in 0..file.structure().index().pages(stream).len() {
                for entry in file.structure().page_entries(stream, page).unwrap().entries {
                    let length = entry.logical_length;
                    let found = file.find_hash(&entry.hash, length).unwrap();
                    if entry.length == 0 {
                        assert_eq!(found, None);
                        continue;
                    }
                    let (found_in, block) = found.unwrap();
                    assert_eq!(file.entry_hash(found_in, &block).unwrap(), entry.hash);
                    assert_eq!(file.find_hash(&entry.hash, length + 1).unwrap(), None);
                    let mut other = entry.hash;
                    other[31] ^= 1;
                    assert_eq!(file.find_hash(&other, length).unwrap(), None);
                    streams.push(found_in);
                }
            }
        }
        assert!(streams.contains(&Stream::Main) && streams.contains(&Stream::Auxiliary));
    }

    #[test]
    fn snapshots_with_more_blocks_than_the_limit_are_not_searched() {
        let child = file("v082-thin-grandchild.hxz");
        let above: u64 = child.ancestors().iter().map(|a| a.file.structure().blocks()).sum();
        assert!(child.ancestors().len() == 2 && above > 20);
        assert!(child.check_blocks_above(above).is_ok());
        let error = child.check_blocks_above(above - 1).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::TooManyBlocks { blocks, .. } if blocks == above));
    }
}
