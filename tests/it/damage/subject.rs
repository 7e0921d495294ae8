//! A file that is changed, and what it must read as after each change.

use std::fs;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use hexz_nbd::snapshot::{
    BlockCipher, Cache, Compression, Compressor, Content, Damage, Encryptor, Error, File,
    Lz4Compressor, OpenOptions, Slice, Stream, Structure, ZstdCompressor,
};
use tempfile::TempDir;

use crate::damage::change::Change;
use crate::support::fixtures::{self, Fixture};
use crate::support::signed::{self, Placed};

/// A file that is changed, and what it must read as.
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) contents: Bytes,
    /// Header, master index with all behind it, and each page, in this order.
    pub(super) parts: Vec<Range<usize>>,
    /// File bytes before the first block or page behind the header: the dictionary.
    pub(super) dictionary: Range<usize>,
    sizes: [u64; 2],
    plain: [Vec<u8>; 2],
    pub(super) blocks: Vec<Block>,
    content: Content,
    options: OpenOptions,
    cipher: Option<Cipher>,
    /// Where its parents lie, and nothing else.
    relatives: TempDir,
    /// The file as it was: as long as it is open, so are its parents, and each change finds them.
    _intact: Option<Arc<File>>,
}

/// A key is derived once, since that takes its time.
#[derive(Debug, Clone)]
struct Cipher(Arc<BlockCipher>);

impl Encryptor for Cipher {
    fn decrypt(&self, block_number: u64, stored: Vec<u8>) -> Result<Vec<u8>, Damage> {
        self.0.decrypt(block_number, stored)
    }
}

pub(super) struct Block {
    pub(super) stream: Stream,
    pub(super) range: Range<u64>,
    /// File bytes.
    stored: Range<usize>,
    /// File bytes.
    pub(super) entry: Range<usize>,
    /// Index in `parts`.
    page: usize,
}

impl Subject {
    pub(super) fn new(name: &str) -> Self {
        Self::with_options(name, OpenOptions::default())
    }

    pub(super) fn with_options(name: &str, options: OpenOptions) -> Self {
        let fixture = fixtures::named(name);
        let contents = Bytes::from(fs::read(fixture.path()).unwrap());
        let relatives = tempfile::tempdir().unwrap();
        copy_parents(&fixture, &relatives);
        let cipher = fixture.password.as_deref().map(|password| {
            let structure = Structure::read(signed::memory(contents.clone()), 1 << 24).unwrap();
            let encryption = structure.header().encryption.unwrap();
            let passphrase = fixtures::passphrase(password);
            Cipher(Arc::new(BlockCipher::derive(&passphrase, &encryption).unwrap()))
        });
        // One cache for all changed files. None finds what another left there.
        let options = OpenOptions { cache: Arc::new(Cache::new(16 << 20)), ..options };
        let mut subject = Self {
            name: name.to_owned(),
            contents: contents.clone(),
            parts: Vec::new(),
            dictionary: 0..0,
            sizes: [0; 2],
            plain: [Vec::new(), Vec::new()],
            blocks: Vec::new(),
            content: Content::Image,
            options,
            cipher,
            relatives,
            _intact: None,
        };
        let file = subject.open(contents).unwrap();
        subject.look_at(&file, &fixture);
        subject._intact = Some(file);
        subject
    }

    pub(super) fn open(&self, contents: Bytes) -> Result<Arc<File>, Error> {
        let storage = Arc::new(Placed::new(contents, None, Some(self.relatives.path())));
        let Some(cipher) = &self.cipher else {
            return File::open_with(storage, self.options.clone());
        };
        // What the file says now may be something else.
        let compression = Structure::read(Arc::<Placed>::clone(&storage), 1 << 24)?;
        let compressor: Box<dyn Compressor> = match compression.header().compression {
            Compression::Lz4 => Box::new(Lz4Compressor::new()),
            Compression::Zstd => Box::new(ZstdCompressor::new(Vec::new()).unwrap()),
        };
        File::new(storage, compressor, Some(Box::new(cipher.clone())))
    }

    fn look_at(&mut self, file: &Arc<File>, fixture: &Fixture) {
        let structure = file.structure();
        let mut parts = vec![
            0..header_bytes(&self.contents),
            structure.header().index_offset as usize..self.contents.len(),
        ];
        let mut blocks = Vec::new();
        for stream in Stream::ALL {
            let mut position = 0;
            for record in structure.index().pages(stream) {
                let start = record.offset as usize;
                let entries = structure.entries(record).unwrap();
                let entry_bytes = structure.family().entry_bytes() as usize;
                for (number, entry) in entries.iter().enumerate() {
                    let at = start + 8 + number * entry_bytes;
                    let end = position + u64::from(entry.logical_length);
                    let stored = match entry.length {
                        0 => 0..0,
                        length => entry.offset as usize..entry.offset as usize + length as usize,
                    };
                    let (range, entry) = (position..end, at..at + entry_bytes);
                    blocks.push(Block { stream, range, stored, entry, page: parts.len() });
                    position = end;
                }
                parts.push(start..start + record.length as usize);
            }
        }
        let dictionary = structure.header().dictionary;
        self.dictionary = dictionary.map_or(0..0, |d| d.offset as usize..d.end() as usize);
        self.parts = parts;
        self.sizes = Stream::ALL.map(|stream| file.size(stream));
        self.plain = Stream::ALL.map(|stream| file.read_at(stream, 0, 1 << 30).unwrap());
        let digest = match &fixture.recoverable_main {
            Some(recoverable) if self.options.size_from_index => &recoverable.sha256,
            _ => &fixture.main.as_ref().unwrap().sha256,
        };
        assert_eq!(fixtures::sha256(&self.plain[0]), *digest, "{}", self.name);
        if let Some(auxiliary) = &fixture.aux {
            assert_eq!(fixtures::sha256(&self.plain[1]), auxiliary.sha256, "{}", self.name);
        }
        // What lies behind a size of 0 is not served, damaged or not.
        blocks.retain(|block| block.range.end <= self.sizes[block.stream as usize]);
        self.blocks = blocks;
        self.content = file.content();
    }

    /// Fewer changes where each takes long: thousands of blocks are read one by one.
    pub(super) fn share_of(&self, changes: usize) -> usize {
        if self.blocks.len() > 1000 { changes / 5 } else { changes }
    }

    pub(super) fn intact(&self, block: &Block) -> &[u8] {
        let plain = &self.plain[block.stream as usize];
        &plain[block.range.start as usize..block.range.end as usize]
    }

    /// Whether a block may fail after a change of these bytes. Never whether it may be wrong.
    fn may_fail(&self, block: &Block, changed: &Range<usize>) -> bool {
        let meets = |other: &Range<usize>| changed.start < other.end && other.start < changed.end;
        let page = &self.parts[block.page];
        // The count, and the lengths that say where every block of the page lies.
        let entries = page.start + 8;
        let lengths = (entries..page.end).step_by(block.entry.len()).map(|at| at + 12..at + 16);
        meets(&(0..4096))
            || meets(&self.parts[1])
            || meets(&self.dictionary)
            || meets(&block.stored)
            || meets(&block.entry)
            || meets(&(page.start..entries))
            || (meets(page) && lengths.into_iter().any(|length| meets(&length)))
    }

    pub(super) fn check(&self, change: &Change) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.check_or_panic(change)));
        if let Err(panic) = outcome {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            panic!("{} after {change:?}: {}", self.name, text.unwrap_or_default());
        }
    }

    fn check_or_panic(&self, change: &Change) {
        let changed = change.changed(&self.contents);
        let file = match self.open(change.apply(&self.contents)) {
            Ok(file) => file,
            Err(error) => {
                // Damage to one block must not take the whole file down.
                let essential = [0..4096, self.dictionary.clone()];
                let is_essential = self
                    .parts
                    .iter()
                    .chain(&essential)
                    .any(|part| changed.start < part.end && part.start < changed.end);
                assert!(is_essential || changed.is_empty(), "refused to open: {error}");
                return;
            }
        };
        for stream in Stream::ALL {
            let size = file.size(stream);
            // A size that was wiped out is one that was never recorded, and nothing is served.
            let is_without_size = size == 0 && file.content() == Content::ImageWithoutSize;
            // See the test of the declared size.
            let is_tar = self.content == Content::Tar;
            let is_right = size == self.sizes[stream as usize];
            assert!(is_right || is_without_size || is_tar, "{stream} has {size} bytes");
        }
        for block in &self.blocks {
            match read(&file, block.stream, &block.range) {
                Ok(bytes) => {
                    assert!(bytes == self.intact(block), "wrong bytes in {:?}", block.range);
                }
                Err(error) => {
                    assert!(self.may_fail(block, &changed), "{:?}: {error}", block.range);
                }
            }
        }
    }
}

/// All generations, into one directory.
fn copy_parents(fixture: &Fixture, directory: &TempDir) {
    for recorded in &fixture.parents {
        let name = Path::new(recorded).file_name().unwrap();
        let parent = fixtures::named(name.to_str().unwrap());
        fs::copy(parent.path(), directory.path().join(name)).unwrap();
        copy_parents(&parent, directory);
    }
}

/// What the header takes, and a few bytes of the padding behind it.
fn header_bytes(contents: &[u8]) -> usize {
    contents[..4096].iter().rposition(|byte| *byte != 0).unwrap() + 9
}

pub(super) fn read(file: &File, stream: Stream, range: &Range<u64>) -> Result<Vec<u8>, Error> {
    let length = range.end - range.start;
    let mut bytes = Vec::with_capacity(length as usize);
    for slice in file.slices(stream, range.start, length)? {
        match slice {
            Slice::Data(data) => bytes.extend_from_slice(&data),
            Slice::Zeros(zeros) => bytes.resize(bytes.len() + zeros as usize, 0),
        }
    }
    Ok(bytes)
}
