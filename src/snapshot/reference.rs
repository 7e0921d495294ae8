//! Where the bytes of a reference into a parent are. Format section 12.
//!
//! A reference has meant three things, depending on who wrote it, and nothing in the file says
//! which. What does not resolve is an error: zeros or bytes of another place would be invented.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::snapshot::chain::Ancestor;
use crate::snapshot::error::{Damage, Error};
use crate::snapshot::file::File;
use crate::snapshot::format::{Family, Stream};
use crate::snapshot::page::Block;
use crate::snapshot::part::Part;
use crate::snapshot::read::{Account, Read, Slice, Stop};

/// An entry of an index page that refers to a parent.
#[derive(Debug)]
pub(crate) struct Reference {
    /// BLAKE3 of the bytes, or of the block of the parent that holds the first of them. All zero
    /// if there is none.
    hash: [u8; 32],
    /// Found when it is read for the first time.
    origin: OnceLock<Origin>,
    /// Whether the bytes of a block that it leads to were found to have the hash.
    is_proven: AtomicBool,
}

/// Where the bytes are.
#[derive(Debug)]
pub(crate) enum Origin {
    /// They are a block of a snapshot above this one.
    Block {
        /// Its place among the ancestors.
        ancestor: usize,
        stream: Stream,
        block: Block,
    },
    /// They have the same place in a parent. What lies behind the end of the parent is zeros.
    Place {
        /// Its place among the parents.
        parent: usize,
    },
    /// They are nowhere, and why that is so.
    Nowhere(&'static str),
}

impl Reference {
    pub(crate) fn new(hash: [u8; 32]) -> Self {
        Self { hash, origin: OnceLock::new(), is_proven: AtomicBool::new(false) }
    }

    pub(crate) fn hash(&self) -> [u8; 32] {
        self.hash
    }
}

impl PartialEq for Reference {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for Reference {}

/// References of one read that may be compared with whole ranges of parents, which no known tool
/// makes necessary. A bound, because each such range may hold such references itself.
pub(crate) const COMPARISONS_MAX: u32 = 16;

impl File {
    /// Where the bytes of a block that is a reference are. Found once.
    pub(crate) fn origin<'r>(
        &self,
        read: Read<'_>,
        stream: Stream,
        block: &Block,
        reference: &'r Reference,
    ) -> Result<&'r Origin, Stop> {
        if let Some(origin) = reference.origin.get() {
            return Ok(origin);
        }
        if !read.may_wait() {
            return Err(Stop::Miss);
        }
        let origin = self.resolve(read.account, stream, block, &reference.hash)?;
        Ok(reference.origin.get_or_init(|| origin))
    }

    fn resolve(
        &self,
        account: &Account,
        stream: Stream,
        block: &Block,
        hash: &[u8; 32],
    ) -> Result<Origin, Error> {
        if *hash == [0; 32] {
            return Ok(self.by_position(stream, block));
        }
        if let Some(origin) = self.by_block_in_place(stream, block, hash)? {
            return Ok(origin);
        }
        if let Some(origin) = self.by_content(block, hash)? {
            return Ok(origin);
        }
        if let Some(origin) = self.by_comparison(account, stream, block, hash)? {
            return Ok(origin);
        }
        Ok(Origin::Nowhere("no parent has bytes of its hash"))
    }

    /// Without a hash: the first parent that is long enough.
    fn by_position(&self, stream: Stream, block: &Block) -> Origin {
        let reaches = |parent: &Arc<File>| reaches(parent, stream, block);
        match self.parents().iter().position(reaches) {
            Some(parent) => Origin::Place { parent },
            None => Origin::Nowhere("it begins behind the end of the parent"),
        }
    }

    /// The block of a parent that holds the first byte has the hash: it is what is meant, if it
    /// is the same range; or its place, in the files of a writer that only knew places. That was
    /// before family D, where the flag of such files is not believed: it may be a flipped bit.
    fn by_block_in_place(
        &self,
        stream: Stream,
        block: &Block,
        hash: &[u8; 32],
    ) -> Result<Option<Origin>, Error> {
        let structure = self.structure();
        let knew_places = !structure.header().variable_blocks && structure.family() != Family::D;
        for (number, parent) in self.parents().iter().enumerate() {
            let Some(there) = parent.block_at(stream, block.range.start)? else { continue };
            if parent.entry_hash(stream, &there)? != *hash {
                continue;
            }
            if there.range == block.range {
                let is_parent = |ancestor: &Ancestor| Arc::ptr_eq(&ancestor.file, parent);
                let ancestor = self.ancestors().iter().position(is_parent);
                return Ok(ancestor.map(|ancestor| Origin::Block {
                    ancestor,
                    stream,
                    block: there,
                }));
            }
            if knew_places && reaches(parent, stream, block) {
                return Ok(Some(Origin::Place { parent: number }));
            }
        }
        Ok(None)
    }

    /// Wherever it stands, in either stream, in whatever generation.
    fn by_content(&self, block: &Block, hash: &[u8; 32]) -> Result<Option<Origin>, Error> {
        self.check_searchable()?;
        for (ancestor, Ancestor { file, .. }) in self.ancestors().iter().enumerate() {
            if let Some((stream, block)) = file.find_hash(hash, block.logical_length())? {
                return Ok(Some(Origin::Block { ancestor, stream, block }));
            }
        }
        Ok(None)
    }

    /// The same place of a parent, if its bytes have the hash.
    fn by_comparison(
        &self,
        account: &Account,
        stream: Stream,
        block: &Block,
        hash: &[u8; 32],
    ) -> Result<Option<Origin>, Error> {
        let mut failure = None;
        for (number, parent) in self.parents().iter().enumerate() {
            let (start, end) = (block.range.start, block.range.end.min(parent.size(stream)));
            if start >= end {
                continue;
            }
            if !account.compares() {
                return Err(self.unresolvable("too many of them in one read", stream, block));
            }
            let mut slices = Vec::new();
            let read = Read::of_storage(account);
            match parent.collect(read, stream, start..end, &mut slices) {
                Ok(()) => {}
                // Another parent may have the bytes.
                Err(Stop::Failed(error)) => {
                    failure.get_or_insert(error);
                    continue;
                }
                Err(Stop::Miss) => continue,
            }
            slices.push(Slice::Zeros(block.range.end.saturating_sub(end)));
            if hash_of(&slices) == *hash {
                return Ok(Some(Origin::Place { parent: number }));
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// Whether the bytes of a block above this snapshot have the hash of a reference to it. The
    /// hash in the index of the parent is only a claim. Looked at once.
    pub(crate) fn prove(
        &self,
        read: Read<'_>,
        reference: &Reference,
        ancestor: &File,
        stream: Stream,
        block: &Block,
    ) -> Result<bool, Stop> {
        if reference.is_proven.load(Ordering::Relaxed) {
            return Ok(true);
        }
        if !read.may_wait() {
            return Err(Stop::Miss);
        }
        let mut whole = Vec::new();
        let part = Part { range: block.range.clone(), block: block.clone() };
        ancestor.push_part(read, stream, &part, &mut whole)?;
        let is_proven = hash_of(&whole) == reference.hash;
        reference.is_proven.store(is_proven, Ordering::Relaxed);
        Ok(is_proven)
    }

    pub(crate) fn unresolvable(&self, why: &'static str, stream: Stream, block: &Block) -> Error {
        let entry_at = self.entry_position(stream, block).unwrap_or(0);
        self.damaged(Damage::Reference(why), stream, block, entry_at)
    }
}

/// Whether a parent is long enough to have the first byte of a block in the same place.
fn reaches(parent: &File, stream: Stream, block: &Block) -> bool {
    block.range.start < parent.size(stream)
}

fn hash_of(slices: &[Slice]) -> [u8; 32] {
    const ZEROS: [u8; 16 * 1024] = [0; 16 * 1024];
    let mut hasher = blake3::Hasher::new();
    for slice in slices {
        match slice {
            Slice::Data(data) => {
                hasher.update(data);
            }
            Slice::Zeros(bytes) => {
                let mut left = usize::try_from(*bytes).unwrap_or(usize::MAX);
                while left > 0 {
                    let some = ZEROS.get(..left).unwrap_or(&ZEROS);
                    hasher.update(some);
                    left = left.saturating_sub(some.len());
                }
            }
        }
    }
    *hasher.finalize().as_bytes()
}
