//! Makes the manifest of a snapshot.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::HashMap;
use std::io::{self, Seek, SeekFrom, Write};

use crate::snapshot::chain::PARENTS_MAX;
use crate::snapshot::content::Content;
use crate::snapshot::error::{Damage, Error, ErrorKind};
use crate::snapshot::format::index::{Entry, EntryKind};
use crate::snapshot::format::{Family, FormatError, PageRecord, Stream};
use crate::snapshot::manifest::head::{Head, head_bytes};
use crate::snapshot::manifest::page::{Hash, decode, leaf, missing_hash, read_page};
use crate::snapshot::manifest::root::{Root, Snapshot, root};
use crate::snapshot::manifest::{HASH_BYTES, Shape};
use crate::snapshot::signature::{KeyError, SigningKey};
use crate::snapshot::stream_size::measure;
use crate::snapshot::structure::{Structure, read};

/// Why no manifest was made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The snapshot is damaged, contradicts itself, or cannot be read.
    #[error(transparent)]
    Snapshot(#[from] Error),
    /// Its header is not the one by which it was recognised.
    #[error("{0}: the snapshot has changed while it was read")]
    Changed(String),
    /// A root for each parent is needed.
    #[error("{file}: the snapshot has {parents} parents, and {roots} roots of parents were given")]
    Parents {
        /// The snapshot.
        file: String,
        /// Parents in its header.
        parents: usize,
        /// What was given.
        roots: usize,
    },
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The manifest cannot be written.
    #[error("cannot write the manifest: {0}")]
    Write(#[from] io::Error),
}

/// Writes the manifest of a snapshot to the beginning of `out`, which is empty.
///
/// Every index page and every stored block is read, and `progress` hears how many bytes of the
/// streams were looked at. What is no entry, does not add up, or has another CRC-32 than its entry
/// says is not signed. Blocks are not decoded: the hashes that their entries carry are signed as they
/// are. `parent_roots` are those of the parents' manifests, in the order of the header.
///
/// # Errors
///
/// [`BuildError`]. What was written to `out` is of no use then.
pub fn build(
    structure: &Structure,
    parent_roots: &[Root],
    key: &SigningKey,
    out: &mut (impl Write + Seek),
    progress: &dyn Fn(u64),
) -> Result<Root, BuildError> {
    let parents = structure.header().parents.len();
    if parents != parent_roots.len() {
        let (file, roots) = (structure.name().to_owned(), parent_roots.len());
        return Err(BuildError::Parents { file, parents, roots });
    }
    if parents > PARENTS_MAX {
        let (value, limit) = (parents as u64, PARENTS_MAX as u64);
        let kind = FormatError::Limit { what: "number of parents", offset: 20, value, limit };
        return Err(structure.error(kind.into()).into());
    }
    let snapshot = Snapshot::read(structure)?;
    let snapshot = snapshot.ok_or_else(|| BuildError::Changed(structure.name().to_owned()))?;
    check_sizes(structure, Content::from_metadata(snapshot.metadata()))?;

    let (leaves, own_hashes) = match leaves_without_hashes(structure, progress)? {
        Some(leaves) => (leaves, false),
        None => (leaves_with_hashes(structure, out, progress)?, true),
    };
    let root = root(&snapshot, own_hashes, &leaves, parent_roots);
    let head = Head {
        file_bytes: structure.file_bytes(),
        pages: leaves.len() as u64,
        own_hashes,
        parent_roots: parent_roots.to_vec(),
        root,
        key: *key.verify_key().as_bytes(),
        signature: key.sign(&root.signed_message())?,
    };
    out.seek(SeekFrom::Start(0))?;
    out.write_all(&head.encode())?;
    out.write_all(leaves.as_flattened())?;
    out.flush()?;
    Ok(root)
}

fn check_sizes(structure: &Structure, content: Content) -> Result<(), Error> {
    // A snapshot of a block device declares no size, which is no reason not to sign it.
    let size_from_index = true;
    Stream::ALL
        .into_iter()
        .try_for_each(|stream| measure(structure, stream, content, size_from_index).map(drop))
}

/// `None` if a data entry has no hash.
fn leaves_without_hashes(
    structure: &Structure,
    progress: &dyn Fn(u64),
) -> Result<Option<Vec<Hash>>, Error> {
    let lacks_hashes = structure.family() == Family::A || structure.header().encryption.is_some();
    if lacks_hashes && structure.blocks() != 0 {
        // They are looked at block by block, once.
        return Ok(None);
    }
    let mut blocks = StoredBlocks::new(structure);
    let mut leaves = Vec::new();
    for (stream, page, record) in structure.pages() {
        let (bytes, entries) = checked(structure, stream, page, record)?;
        if missing_hash(&entries, structure.entry_bounds()).is_some() {
            return Ok(None);
        }
        let mut position = record.start_logical;
        for entry in &entries {
            // For its CRC-32.
            blocks.hash(stream, position, entry)?;
            position = position.saturating_add(u64::from(entry.logical_length));
            progress(u64::from(entry.logical_length));
        }
        leaves.push(leaf(&bytes, &[]));
    }
    Ok(Some(leaves))
}

/// Writes the hashes of all blocks where they belong.
fn leaves_with_hashes(
    structure: &Structure,
    out: &mut (impl Write + Seek),
    progress: &dyn Fn(u64),
) -> Result<Vec<Hash>, BuildError> {
    let leaves_bytes = Shape::of(structure).pages.saturating_mul(HASH_BYTES);
    let head_bytes = head_bytes(structure.header().parents.len());
    out.seek(SeekFrom::Start(head_bytes.saturating_add(leaves_bytes)))?;
    let mut blocks = StoredBlocks::new(structure);
    let mut leaves = Vec::new();
    for (stream, page, record) in structure.pages() {
        let (bytes, entries) = checked(structure, stream, page, record)?;
        let mut hashes = Vec::with_capacity(entries.len());
        let mut position = record.start_logical;
        for entry in &entries {
            hashes.push(blocks.hash(stream, position, entry)?);
            position = position.saturating_add(u64::from(entry.logical_length));
            progress(u64::from(entry.logical_length));
        }
        out.write_all(hashes.as_flattened())?;
        leaves.push(leaf(&bytes, &hashes));
    }
    Ok(leaves)
}

/// A page whose entries all are such, and which ends where the next one begins. Where the last one
/// ends was compared with the size of the stream.
fn checked(
    structure: &Structure,
    stream: Stream,
    page: usize,
    record: &PageRecord,
) -> Result<(Vec<u8>, Vec<Entry>), Error> {
    let bytes = read_page(structure, record)?;
    let entries = decode(structure, record, &bytes)?;
    let mut position = Some(record.start_logical);
    for entry in &entries {
        if let Err(what) = entry.kind(structure.entry_bounds()) {
            let (damage, position) = (Damage::Entry(what), position.unwrap_or(u64::MAX));
            let kind = ErrorKind::Block { damage, stream, position, stored_at: record.offset };
            return Err(structure.error(kind));
        }
        position = position.and_then(|at| at.checked_add(u64::from(entry.logical_length)));
    }
    let end = structure.page_end(stream, page);
    if position.is_none() || end.is_some_and(|end| Some(end) != position) {
        let (what, offset) = ("sum of block lengths", record.offset);
        return Err(structure.error(FormatError::Invalid { what, offset }.into()));
    }
    Ok((bytes, entries))
}

/// Hashes of stored blocks that are remembered, so that what is deduplicated is read once. Past
/// this many everything is forgotten, and memory stays bounded.
const KNOWN_MAX: usize = 1 << 16;

/// Hashes stored blocks.
pub(super) struct StoredBlocks<'a> {
    structure: &'a Structure,
    /// By offset, length and CRC-32.
    known: HashMap<(u64, u32, u32), Hash>,
}

impl<'a> StoredBlocks<'a> {
    pub(super) fn new(structure: &'a Structure) -> Self {
        Self { structure, known: HashMap::new() }
    }

    /// BLAKE3 of the stored bytes of a data entry, if their CRC-32 is right. Zeros for every other
    /// kind of entry.
    pub(super) fn hash(
        &mut self,
        stream: Stream,
        position: u64,
        entry: &Entry,
    ) -> Result<Hash, Error> {
        if entry.kind(self.structure.entry_bounds()) != Ok(EntryKind::Data) {
            return Ok([0; 32]);
        }
        let key = (entry.offset, entry.length, entry.crc);
        if let Some(hash) = self.known.get(&key) {
            return Ok(*hash);
        }
        // Its length was compared with that of its plain bytes, which is bounded.
        let length = u64::from(entry.length);
        let stored = read(self.structure.storage(), "block", entry.offset, length)
            .map_err(|kind| self.structure.error(kind))?;
        let found = crc32fast::hash(&stored);
        if found != entry.crc {
            let damage = Damage::Checksum { expected: entry.crc, found };
            let stored_at = entry.offset;
            let kind = ErrorKind::Block { damage, stream, position, stored_at };
            return Err(self.structure.error(kind));
        }
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        let hash = *blake3::hash(&stored).as_bytes();
        self.known.insert(key, hash);
        Ok(hash)
    }
}
