//! From a storage to a snapshot that can be read: decompressor, key, parents.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use crate::snapshot::cache::{CACHE_BYTES_DEFAULT, Cache};
use crate::snapshot::chain::{self, Ancestor, Descent, Registry};
use crate::snapshot::decode::{Compressor, Encryptor, Lz4Compressor, ZstdCompressor};
use crate::snapshot::encryption::{BlockCipher, Passphrase};
use crate::snapshot::error::{Error, ErrorKind};
use crate::snapshot::file::File;
use crate::snapshot::format::Compression;
use crate::snapshot::format::header::Encryption;
use crate::snapshot::format::index::{Entry, EntryKind};
use crate::snapshot::signature::VerifyKey;
use crate::snapshot::signer::Signer;
use crate::snapshot::storage::{FileBackend, StorageBackend};
use crate::snapshot::structure::{self, BLOCK_BYTES_MAX_DEFAULT, PageEntries, Structure};

/// How a snapshot is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Where decoded blocks and index pages are kept.
    pub cache: Arc<Cache>,
    /// Take the size of a stream from its index where the index declares 0, as it does for a
    /// snapshot that was packed from a block device. Format section 13.
    ///
    /// Nothing then tells a damaged block length in the last page from a right one until the
    /// block is decoded, and lengths of holes never: blocks behind it would be found elsewhere.
    pub size_from_index: bool,
    /// Largest block accepted, in plain bytes.
    pub block_bytes_max: u32,
    /// What each decoded block is compared with.
    pub check: Check,
    /// Tried in turn if the snapshot is encrypted, and not kept. Deriving a key takes its time.
    pub passphrases: Vec<Passphrase>,
    /// Where parents of thin snapshots are looked for, behind the directory of the child.
    pub parent_directories: Vec<PathBuf>,
    /// BLAKE3 of the files that may stand above a thin snapshot, in any generation. If there is
    /// one, every file above it is read as a whole and must have one of them. References of
    /// family A carry nothing that would show that a parent was replaced.
    pub parent_digests: Vec<[u8; 32]>,
    /// Who must have signed the snapshot and its parents. Anybody and nobody if there is no key.
    ///
    /// A manifest beside the snapshot has to be by one of the keys, and then nothing is read that
    /// was not signed. Without a manifest the signature of the master index has to be: that of
    /// Hexz itself, which says nothing of index pages and blocks.
    pub verify_keys: Vec<VerifyKey>,
    /// Refuse a snapshot without a manifest. Its parents then have one as well.
    pub require_manifest: bool,
    /// Snapshots that are open already.
    pub registry: Arc<Registry>,
}

impl Default for OpenOptions {
    /// One cache of 256 MiB for all files that are opened like this, and a registry for each.
    fn default() -> Self {
        static SHARED: LazyLock<Arc<Cache>> =
            LazyLock::new(|| Arc::new(Cache::new(CACHE_BYTES_DEFAULT)));
        Self {
            cache: Arc::clone(&SHARED),
            size_from_index: false,
            block_bytes_max: BLOCK_BYTES_MAX_DEFAULT,
            check: Check::Crc,
            passphrases: Vec::new(),
            parent_directories: Vec::new(),
            parent_digests: Vec::new(),
            verify_keys: Vec::new(),
            require_manifest: false,
            registry: Arc::default(),
        }
    }
}

/// What a decoded block is compared with before a byte of it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Check {
    /// CRC-32 of the stored bytes: finds damage.
    Crc,
    /// The CRC-32, and BLAKE3 of the plain bytes where the index has it. Always so where a
    /// dictionary is used, since no CRC covers that.
    Blake3,
}

impl File {
    /// Opens a snapshot in a local file and picks the decompressor that it needs.
    ///
    /// # Errors
    ///
    /// [`Error`] if the file cannot be read, is not a snapshot, contradicts itself, or needs a
    /// key or parents.
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<Self>, Error> {
        let backend = FileBackend::new(path.as_ref())?;
        Self::open_with(Arc::new(backend), OpenOptions::default())
    }

    /// Opens a snapshot in any storage and picks the decompressor that it needs.
    ///
    /// # Errors
    ///
    /// As [`File::open`].
    pub fn open_with(
        storage: Arc<dyn StorageBackend>,
        options: OpenOptions,
    ) -> Result<Arc<Self>, Error> {
        let signer = Signer::of(&options);
        let file = Self::open_in(storage, &options, signer, &mut Descent::default())?;
        file.check_pins(&options.parent_digests)?;
        Ok(file)
    }

    /// Opens a snapshot, as a parent of others that are being opened or by itself.
    pub(crate) fn open_in(
        storage: Arc<dyn StorageBackend>,
        options: &OpenOptions,
        signer: Signer,
        descent: &mut Descent,
    ) -> Result<Arc<Self>, Error> {
        let key = chain::Key::new(&*storage, options, &signer);
        if let Some(open) = key.as_ref().and_then(|key| options.registry.find(key)) {
            return Ok(open);
        }
        let structure = Structure::read(storage, options.block_bytes_max)?;
        let structure = signer.check(structure, options.require_manifest)?;
        // It may be open as the parent of another snapshot.
        let root = structure.manifest().map(|manifest| Signer::Root(manifest.root()));
        let by_root = root.and_then(|root| chain::Key::new(structure.storage(), options, &root));
        if let Some(open) = by_root.as_ref().and_then(|key| options.registry.find(key)) {
            return Ok(open);
        }
        descent.count().map_err(|kind| structure.error(kind))?;
        let compressor = decompressor(&structure)?;
        let cipher = match structure.header().encryption {
            Some(encryption) => Some(unlock(&structure, &encryption, &options.passphrases)?),
            None => None,
        };
        let encryptor = cipher.map(|cipher| Box::new(cipher) as Box<dyn Encryptor>);
        let parents = chain::open_parents(&structure, options, &signer, descent)?;
        let file = Self::from_structure(structure, compressor, encryptor, parents, options)?;
        let keys = [key, by_root].into_iter().flatten();
        for key in keys.filter(|_| !file.needs_passphrase()) {
            options.registry.insert(key, &file);
        }
        Ok(file)
    }

    /// Whether anything that is read for it is encrypted.
    fn needs_passphrase(&self) -> bool {
        let is_encrypted = |file: &Self| file.structure().header().encryption.is_some();
        is_encrypted(self) || self.ancestors().iter().any(|above| is_encrypted(&above.file))
    }

    /// Every snapshot above this one must be one of those.
    fn check_pins(&self, digests: &[[u8; 32]]) -> Result<(), Error> {
        if digests.is_empty() {
            return Ok(());
        }
        for Ancestor { file, .. } in self.ancestors() {
            let digest = file.digest()?;
            if !digests.contains(&digest) {
                let parent = file.structure().name().to_owned();
                return Err(self.structure().error(ErrorKind::UnpinnedParent { parent, digest }));
            }
        }
        Ok(())
    }

    /// Opens a snapshot with a decompressor, and a decryptor if it is encrypted, of the caller's.
    ///
    /// # Errors
    ///
    /// As [`File::open`], and [`ErrorKind::WrongCompressor`] if the file needs another one.
    pub fn new(
        backend: Arc<dyn StorageBackend>,
        compressor: Box<dyn Compressor>,
        encryptor: Option<Box<dyn Encryptor>>,
    ) -> Result<Arc<Self>, Error> {
        let options = OpenOptions::default();
        let structure = Structure::read(backend, options.block_bytes_max)?;
        let header = structure.header();
        let (needed, given) = (header.compression, compressor.compression());
        let refusal = if header.encryption.is_some() && encryptor.is_none() {
            Some(ErrorKind::NeedsKey)
        } else if header.encryption.is_none() && encryptor.is_some() {
            Some(ErrorKind::NotEncrypted)
        } else if needed != given {
            Some(ErrorKind::WrongCompressor { needed: needed.name(), given: given.name() })
        } else {
            None
        };
        if let Some(kind) = refusal {
            return Err(structure.error(kind));
        }
        let nobody = Signer::Anybody;
        let mut descent = Descent::default();
        let parents = chain::open_parents(&structure, &options, &nobody, &mut descent)?;
        Self::from_structure(structure, compressor, encryptor, parents, &options)
    }
}

/// What the header says, with the dictionary of the file.
pub(crate) fn decompressor(structure: &Structure) -> Result<Box<dyn Compressor>, Error> {
    match structure.header().compression {
        Compression::Lz4 => Ok(Box::new(Lz4Compressor::new())),
        Compression::Zstd => {
            let dictionary = structure.dictionary()?;
            let offset = structure.header().dictionary.map_or(0, |span| span.offset);
            match ZstdCompressor::new(dictionary) {
                Ok(zstd) => Ok(Box::new(zstd)),
                Err(source) => Err(structure.error(ErrorKind::Dictionary { offset, source })),
            }
        }
    }
}

/// Index pages that are searched for a block to try a passphrase on. Behind so many pages of
/// holes, 256 GiB of them with common blocks, a wrong passphrase shows when a block is read.
const PROBED_PAGES_MAX: usize = 1024;

/// Blocks that are read to find some whose CRC-32 is right, and bytes of all of them together:
/// what a file says of its blocks must not decide how long it takes to open it.
const READ_BLOCKS_MAX: usize = 64;
const READ_BYTES_MAX: u64 = 64 << 20;

/// Blocks that a passphrase is tried on: more than one, so that one damaged block does not make
/// a right passphrase a wrong one.
const PROBED_BLOCKS_MAX: usize = 3;

/// The cipher of the first passphrase that fits. There is nothing in the file to compare a
/// passphrase with, so it is tried on the smallest blocks of a page; a snapshot without any takes
/// every passphrase. Format section 10.
fn unlock(
    structure: &Structure,
    encryption: &Encryption,
    passphrases: &[Passphrase],
) -> Result<BlockCipher, Error> {
    if passphrases.is_empty() {
        return Err(structure.error(ErrorKind::NeedsKey));
    }
    let probes = probes(structure)?;
    for passphrase in passphrases {
        let cipher = BlockCipher::derive(passphrase, encryption)
            .map_err(|error| structure.error(ErrorKind::Iterations(error)))?;
        let fits = |probe: &Probe| cipher.decrypt(probe.number, probe.stored.clone()).is_ok();
        if probes.is_empty() || probes.iter().any(fits) {
            return Ok(cipher);
        }
    }
    Err(structure.error(ErrorKind::WrongPassphrase { tried: passphrases.len() }))
}

/// The stored bytes of a block, undamaged as far as its CRC-32 tells.
struct Probe {
    number: u64,
    stored: Vec<u8>,
}

fn probes(structure: &Structure) -> Result<Vec<Probe>, Error> {
    let (mut read_blocks, mut read_bytes) = (0_usize, 0_u64);
    for (stream, page, record) in structure.pages().take(PROBED_PAGES_MAX) {
        // One that cannot be read, or was not signed so, is for those who read blocks of it.
        let Ok(PageEntries { entries, .. }) = structure.page_entries(stream, page) else {
            continue;
        };
        let bounds = structure.entry_bounds();
        let is_data = |entry: &Entry| entry.kind(bounds) == Ok(EntryKind::Data);
        let numbered = (record.start_block..).zip(entries);
        let mut blocks: Vec<(u64, Entry)> = numbered.filter(|(_, entry)| is_data(entry)).collect();
        blocks.sort_by_key(|(_, entry)| entry.length);
        let mut probes = Vec::new();
        for (number, entry) in blocks {
            let length = u64::from(entry.length);
            (read_blocks, read_bytes) =
                (read_blocks.saturating_add(1), read_bytes.saturating_add(length));
            if read_blocks > READ_BLOCKS_MAX || read_bytes > READ_BYTES_MAX {
                return Ok(probes);
            }
            let stored = structure::read(structure.storage(), "block", entry.offset, length)
                .map_err(|kind| structure.error(kind))?;
            if crc32fast::hash(&stored) == entry.crc {
                probes.push(Probe { number, stored });
            }
            if probes.len() == PROBED_BLOCKS_MAX {
                break;
            }
        }
        if !probes.is_empty() {
            return Ok(probes);
        }
    }
    Ok(Vec::new())
}
