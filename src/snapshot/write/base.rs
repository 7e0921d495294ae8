//! The parent of a thin snapshot: which of its blocks can be referred to, and under which name.
//!
//! Only data blocks that the base itself stores: a reader of Hexz 0.8 looks for a hash among
//! these, in both streams, and nowhere else. What lives in the parents of the base is stored
//! again. Format sections 12 and 16.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::snapshot::chain::{ANCESTORS_MAX, PARENTS_MAX, locate};
use crate::snapshot::decode::Decoder;
use crate::snapshot::error::ErrorKind as ReadErrorKind;
use crate::snapshot::format::header::ChunkingParameters;
use crate::snapshot::format::index::EntryKind;
use crate::snapshot::format::{Entry, Family, Stream};
use crate::snapshot::open;
use crate::snapshot::storage::{FileBackend, StorageBackend as _};
use crate::snapshot::structure::{self, BLOCK_BYTES_MAX_DEFAULT, Structure};
use crate::snapshot::write::cut::{BlockSize, Chunking, Cut};
use crate::snapshot::write::destination;
use crate::snapshot::write::error::{Error, ErrorKind};

/// Most blocks that are remembered. What the base has beyond it is stored again, so the file grows,
/// but not the memory: 7/8 of 2^23 places in the table, of 57 bytes each, are 456 MiB.
const BLOCKS_MAX: usize = 7 << 20;

/// How Hexz 0.7 cuts, which did not record it. Format section 14.
const CHUNKING_0_7: ChunkingParameters =
    ChunkingParameters { average_log2: 16, minimum_bytes: 16 << 10, maximum_bytes: 256 << 10 };

/// A snapshot whose blocks need not be stored again.
#[derive(Debug)]
pub struct Base {
    structure: Structure,
    decoder: Decoder,
    metadata: Metadata,
    /// Where it really lies.
    canonical: String,
    /// The files above it, as far as they are there.
    ancestors: Vec<Metadata>,
    blocks: Blocks,
    damaged: AtomicU64,
}

impl Base {
    /// Opens a snapshot and reads its whole index. Takes memory for the blocks it has, at most
    /// 456 MiB.
    ///
    /// # Errors
    ///
    /// [`Error`] if it cannot be read, is no snapshot, is encrypted or so old that its index has
    /// no hashes, or has a path that cannot be recorded.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        Self::open_named(path).map_err(|kind| Error { file: name, kind })
    }

    fn open_named(path: &Path) -> Result<Self, ErrorKind> {
        let backend = FileBackend::new(path).map_err(|error| ErrorKind::Base(error.kind))?;
        let metadata =
            fs::metadata(path).map_err(|error| ErrorKind::Base(ReadErrorKind::Open(error)))?;
        // Readers open nothing else in place of a parent.
        if !metadata.is_file() {
            return Err(ErrorKind::Base(ReadErrorKind::NotAFile));
        }
        let canonical = fs::canonicalize(path)
            .map_err(|error| ErrorKind::Base(ReadErrorKind::Open(error)))?
            .into_os_string()
            .into_string()
            .map_err(|_| ErrorKind::BaseName)?;
        let structure = Structure::read(Arc::new(backend), BLOCK_BYTES_MAX_DEFAULT)
            .map_err(|error| ErrorKind::Base(error.kind))?;
        if structure.header().encryption.is_some() {
            return Err(ErrorKind::BaseEncrypted);
        }
        if structure.family() == Family::A {
            return Err(ErrorKind::BaseWithoutHashes);
        }
        let ancestors = ancestors(&structure);
        let decompressor =
            open::decompressor(&structure).map_err(|error| ErrorKind::Base(error.kind))?;
        let decoder = Decoder::new(decompressor, None);
        let blocks = Blocks::of(&structure, BLOCKS_MAX)?;
        let damaged = AtomicU64::new(0);
        Ok(Self { structure, decoder, metadata, canonical, ancestors, blocks, damaged })
    }

    /// How the base is cut, so that equal data makes equal blocks. Releases 0.6 and 0.7 cut by
    /// content and did not record how; what 0.7 does by default is taken for it, and what was cut
    /// otherwise is then not recognised.
    ///
    /// # Errors
    ///
    /// [`Error`] if what the header says is nothing that can be done.
    pub fn cut(&self) -> Result<Cut, Error> {
        let header = self.structure.header();
        let blocks = |bytes| {
            let kind = ErrorKind::BaseBlockSize { bytes, limit: BlockSize::MAX };
            BlockSize::of_base(bytes).map(Cut::Blocks).ok_or_else(|| self.error(kind))
        };
        match header.chunking {
            // Blocks of one size, as thin snapshots of ours record them.
            Some(ChunkingParameters { minimum_bytes, maximum_bytes, .. })
                if minimum_bytes == maximum_bytes =>
            {
                blocks(maximum_bytes)
            }
            Some(parameters) => Chunking::new(parameters)
                .map(Cut::Content)
                .ok_or_else(|| self.error(ErrorKind::BaseChunking)),
            None if header.variable_blocks => Chunking::new(CHUNKING_0_7)
                .map(Cut::Content)
                .ok_or_else(|| self.error(ErrorKind::BaseChunking)),
            None => blocks(header.block_bytes),
        }
    }

    /// What a snapshot at `destination` records as its parent: the name of the base if it lies in
    /// the same directory, so that both can be moved together; else its absolute path.
    ///
    /// # Errors
    ///
    /// [`Error`] if there is no such directory.
    pub fn recorded_path(&self, destination: &Path) -> Result<String, Error> {
        let directory = destination::directory(destination);
        let canonical = fs::canonicalize(directory).map_err(|source| Error {
            file: destination.display().to_string(),
            kind: destination::create_error(destination, source),
        })?;
        let path = Path::new(&self.canonical);
        let name = path.file_name().and_then(|name| name.to_str());
        match name {
            Some(name) if path.parent() == Some(&canonical) => Ok(name.to_owned()),
            _ => Ok(self.canonical.clone()),
        }
    }

    /// Blocks that do not hold what their hash says, of those that the image wanted.
    pub(super) fn damaged_blocks(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Whether this is the base, or a snapshot above it, whatever the path says.
    pub(super) fn needs(&self, other: &Metadata) -> bool {
        let mut needed = self.ancestors.iter().chain([&self.metadata]);
        needed.any(|needed| (needed.dev(), needed.ino()) == (other.dev(), other.ino()))
    }

    /// Whether the base has a block of exactly these bytes. A hash in an index is only a claim:
    /// the block is decoded once and compared before anybody relies on it.
    pub(super) fn has(&self, hash: &[u8; 32], plain: &[u8]) -> bool {
        let Some(block) = self.blocks.by_hash.get(hash) else {
            return false;
        };
        match block.state.load(Ordering::Relaxed) {
            State::WHOLE => true,
            State::DAMAGED | State::SEVERAL => false,
            // Two threads may come here at once, and find the same.
            _ if self.decode(block).is_some_and(|found| found == plain) => {
                block.state.store(State::WHOLE, Ordering::Relaxed);
                true
            }
            _ => {
                if block.state.swap(State::DAMAGED, Ordering::Relaxed) != State::DAMAGED {
                    self.damaged.fetch_add(1, Ordering::Relaxed);
                }
                false
            }
        }
    }

    fn decode(&self, block: &BaseBlock) -> Option<Vec<u8>> {
        let BaseBlock { offset, length, logical_length, crc, .. } = *block;
        let storage = self.structure.storage();
        let stored = structure::read(storage, "block", offset, u64::from(length)).ok()?;
        // Without encryption the number of the block does not matter.
        self.decoder.decode(&stored, crc, 0, logical_length, None).ok()
    }

    pub(super) fn error(&self, kind: ErrorKind) -> Error {
        Error { file: self.structure.name().to_owned(), kind }
    }
}

/// What stands above a snapshot, as far as it lies beside it: it must not be replaced. What cannot
/// be found or read is left out, since nothing of it is needed here.
fn ancestors(base: &Structure) -> Vec<Metadata> {
    let parents = |child: &Structure| {
        let recorded = child.header().parents.iter().take(PARENTS_MAX);
        let found = recorded.filter_map(|recorded| locate(child, recorded, &[]).ok());
        found.collect::<Vec<_>>()
    };
    let (mut found, mut next) = (Vec::new(), parents(base));
    while let Some(file) = next.pop() {
        if found.len() >= ANCESTORS_MAX {
            break;
        }
        found.extend(fs::metadata(file.name()).ok());
        if let Ok(structure) = Structure::read(Arc::new(file), BLOCK_BYTES_MAX_DEFAULT) {
            next.extend(parents(&structure));
        }
    }
    found
}

/// Where the base stores which bytes.
#[derive(Debug)]
struct Blocks {
    by_hash: HashMap<[u8; 32], BaseBlock>,
}

/// What is known of a block of the base.
#[derive(Debug)]
struct BaseBlock {
    offset: u64,
    length: u32,
    logical_length: u32,
    crc: u32,
    state: AtomicU8,
}

/// Whether a block was compared, and how that went.
struct State;

impl State {
    const UNKNOWN: u8 = 0;
    const WHOLE: u8 = 1;
    const DAMAGED: u8 = 2;
    /// Stored in several places: which of them a reader takes is its own affair.
    const SEVERAL: u8 = 3;
}

impl Blocks {
    fn of(structure: &Structure, blocks_max: usize) -> Result<Self, ErrorKind> {
        let mut blocks = Self { by_hash: HashMap::new() };
        let bounds = structure.entry_bounds();
        for stream in Stream::ALL {
            for record in structure.index().pages(stream) {
                let entries =
                    structure.entries(record).map_err(|error| ErrorKind::Base(error.kind))?;
                for entry in entries {
                    blocks.add(&entry, entry.kind(bounds), blocks_max);
                }
            }
        }
        Ok(blocks)
    }

    /// Blocks with one hash that are stored in several places, or whose entry is broken in one, are
    /// not referred to: readers do not agree which they take, and one of them may be damaged.
    fn add(&mut self, entry: &Entry, kind: Result<EntryKind, &'static str>, blocks_max: usize) {
        if entry.hash == [0; 32] {
            return;
        }
        match kind {
            Ok(EntryKind::Data) => match self.by_hash.get(&entry.hash) {
                Some(known) if known.offset != entry.offset => self.spoil(entry, blocks_max),
                Some(_) => {}
                None if self.by_hash.len() < blocks_max => {
                    self.by_hash.insert(entry.hash, BaseBlock::from(entry));
                }
                None => {}
            },
            // No chunk of an image is looked for that has no bytes.
            Ok(EntryKind::Sparse | EntryKind::Parent | EntryKind::Nothing) => {}
            Err(_) => self.spoil(entry, blocks_max),
        }
    }

    /// Without room for it, no other block of that hash gets in either.
    fn spoil(&mut self, entry: &Entry, blocks_max: usize) {
        if self.by_hash.len() < blocks_max || self.by_hash.contains_key(&entry.hash) {
            let block = self.by_hash.entry(entry.hash).or_insert_with(|| BaseBlock::from(entry));
            *block.state.get_mut() = State::SEVERAL;
        }
    }
}

impl From<&Entry> for BaseBlock {
    fn from(entry: &Entry) -> Self {
        Self {
            offset: entry.offset,
            length: entry.length,
            logical_length: entry.logical_length,
            crc: entry.crc,
            state: AtomicU8::new(State::UNKNOWN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(hash: u8, offset: u64) -> Entry {
        Entry { offset, length: 10, logical_length: 20, crc: 0, hash: [hash; 32] }
    }

    #[test]
    fn only_data_blocks_with_a_hash_are_known_and_memory_is_bounded() {
        let mut blocks = Blocks { by_hash: HashMap::new() };
        for (hash, kind) in [
            (0, EntryKind::Data),
            (1, EntryKind::Data),
            (2, EntryKind::Parent),
            (3, EntryKind::Sparse),
            (4, EntryKind::Nothing),
            (5, EntryKind::Data),
            (6, EntryKind::Data),
        ] {
            blocks.add(&entry(hash, 4096), Ok(kind), 2);
        }
        let mut known: Vec<_> = blocks.by_hash.keys().map(|hash| hash[0]).collect();
        known.sort_unstable();
        assert_eq!(known, [1, 5]);
        assert!(size_of::<([u8; 32], BaseBlock)>() <= 56);
    }

    #[test]
    fn blocks_of_one_hash_in_several_places_are_not_referred_to() {
        let mut blocks = Blocks { by_hash: HashMap::new() };
        let state = |blocks: &Blocks| {
            blocks.by_hash.get(&[1; 32]).map(|block| block.state.load(Ordering::Relaxed))
        };
        blocks.add(&entry(1, 4096), Ok(EntryKind::Data), 9);
        // What is deduplicated has one place.
        blocks.add(&entry(1, 4096), Ok(EntryKind::Data), 9);
        assert_eq!(state(&blocks), Some(State::UNKNOWN));
        blocks.add(&entry(1, 5000), Ok(EntryKind::Data), 9);
        assert_eq!(state(&blocks), Some(State::SEVERAL));
        let mut blocks = Blocks { by_hash: HashMap::new() };
        blocks.add(&entry(1, 4096), Err("block position"), 9);
        blocks.add(&entry(1, 4096), Ok(EntryKind::Data), 9);
        assert_eq!(state(&blocks), Some(State::SEVERAL));
    }
}
