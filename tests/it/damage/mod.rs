//! Snapshots with flipped bits and missing ends: the right bytes or an error, nothing else.
//!
//! Thousands of changes to files of every family and compression. Each is drawn from a seed, and
//! a failure names the file and the change. Three things no reader can notice, because nothing in
//! the file says otherwise, are kept apart and shown below for what they are.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use hexz_nbd::snapshot::{
    Cache, Content, ErrorKind, File, MemoryBackend, OpenOptions, Slice, Stream,
};

use crate::support::fixtures;

/// One file for each combination of family, compression and what else the layout may have, the
/// smallest there is.
const SUBJECTS: [&str; 20] = [
    // A: with LZ4 and several pages, with Zstandard, with a dictionary.
    "v020-lz4-multipage.hxz",
    "v045-lz4-aux.hxz",
    "v014-zstd-cdc.hxz",
    "v020-zstd-dict.hxz",
    "v045-zstd-dict-unused.hxz",
    // B.
    "v051-lz4-aux.hxz",
    "v051-zstd-cdc.hxz",
    // C, by 0.5 to 0.8.
    "v070-fixed-base.hxz",
    "v060-zstd-sparse.hxz",
    "v082-lz4-fixed-multipage.hxz",
    "v082-parent-b.hxz",
    "v070-zstd-dict.hxz",
    "v082-tar.hxz",
    // D.
    "v082-zstd-dict.hxz",
    "h-base.hxz",
    "v082-signed-twice.hxz",
    "v082-dirtree.hxz",
    "v082-zeros-sparse.hxz",
    "v082-zeros-lz4.hxz",
    "v082-blockdev-size0.hxz",
];

/// Changes to random places, for each file.
const ANYWHERE: usize = 200;

/// Changes to header, master index, metadata and pages, for each file.
const WHERE_IT_MATTERS: usize = 400;

#[test]
fn changes_anywhere_give_the_right_bytes_or_an_error() {
    for name in SUBJECTS {
        let subject = Subject::new(name);
        let file_bytes = subject.contents.len();
        // Nothing covers a dictionary in family A. See the test of damaged dictionaries.
        let behind_header = match name {
            "v020-zstd-dict.hxz" => subject.dictionary.end,
            _ => 4096,
        };
        let ranges = [0..4096, behind_header..file_bytes];
        let mut random = Random::new(name, 1);
        for _ in 0..subject.share_of(ANYWHERE) {
            // The header area takes one in sixteen, whatever the length of the file.
            let range = &ranges[random.below(16).min(1)];
            subject.check(&Change::draw(&mut random, range));
        }
    }
}

#[test]
fn changes_to_header_index_and_pages_give_the_right_bytes_or_an_error() {
    for name in SUBJECTS {
        let subject = Subject::new(name);
        let mut random = Random::new(name, 2);
        for _ in 0..subject.share_of(WHERE_IT_MATTERS) {
            // Each part as often as any other, however short.
            let part = &subject.parts[random.below(subject.parts.len())];
            subject.check(&Change::draw(&mut random, part));
        }
    }
}

/// Where there is little to change, nothing is left to chance.
#[test]
fn every_single_bit_of_header_index_and_pages_of_small_files() {
    for name in ["v082-parent-b.hxz", "v014-zstd-cdc.hxz", "v082-signed-twice.hxz"] {
        let subject = Subject::new(name);
        for part in &subject.parts {
            for at in part.clone() {
                for bit in 0..8 {
                    // One bit of each byte of a long page, another one in each.
                    if part.len() < 400 || bit == at % 8 {
                        subject.check(&Change::Flip { at, bit });
                    }
                }
            }
        }
    }
}

#[test]
fn a_file_cut_off_anywhere_is_an_error_or_reads_right() {
    for name in SUBJECTS {
        let subject = Subject::new(name);
        let mut random = Random::new(name, 3);
        let file_bytes = subject.contents.len();
        let index_offset = subject.parts[1].start;
        for _ in 0..60 {
            subject.check(&Change::Cut { length: random.below(file_bytes) });
        }
        for length in index_offset.saturating_sub(20)..file_bytes {
            subject.check(&Change::Cut { length });
        }
    }
}

/// Pages of fixed blocks look alike. Only their order in the file tells them apart.
#[test]
fn swapped_pages_of_equal_length_are_refused() {
    for name in ["v020-lz4-multipage.hxz", "v082-lz4-fixed-multipage.hxz"] {
        let subject = Subject::new(name);
        let records = subject.parts[1].start + 8;
        let mut contents = subject.contents.to_vec();
        // Offset and length, which are the first twelve bytes of a record.
        let (first, second) = (records..records + 12, records + 28..records + 40);
        let kept = contents[first.clone()].to_vec();
        contents.copy_within(second.clone(), first.start);
        contents[second].copy_from_slice(&kept);
        let error = open(Bytes::from(contents), OpenOptions::default()).unwrap_err();
        assert!(error.to_string().contains("page record"), "{name}: {error}");
    }
}

/// Nothing covers a dictionary in family A: neither a CRC nor, as in later families, the BLAKE3 of
/// what was decoded with it. Blocks that are whole then decode to other bytes.
#[test]
fn a_damaged_dictionary_is_noticed_where_blocks_have_hashes_and_only_there() {
    for (name, has_hashes) in [("v020-zstd-dict.hxz", false), ("v082-zstd-dict.hxz", true)] {
        let subject = Subject::new(name);
        let mut random = Random::new(name, 4);
        let mut served_wrong = 0;
        for _ in 0..20 {
            // The end of a dictionary is what blocks copy from most.
            let at = 4096 + 112_640 - 1 - random.below(20_000);
            let damaged = Change::Flip { at, bit: random.below(8) }.apply(&subject.contents);
            let file = open(damaged, OpenOptions::default()).unwrap();
            for block in &subject.blocks {
                match read(&file, block.stream, &block.range) {
                    Ok(bytes) if bytes == subject.intact(block) => {}
                    Ok(_) => served_wrong += 1,
                    Err(error) => {
                        assert!(matches!(error.kind, ErrorKind::Block { .. }), "{error}");
                    }
                }
            }
        }
        assert_eq!(served_wrong == 0, has_hashes, "{name}: {served_wrong} blocks");
    }
}

/// The declared size of a converted tar archive is that of the tar file: larger than its blocks,
/// and nothing else in the file tells by how much. The files in it are not affected.
#[test]
fn the_declared_size_of_a_converted_archive_changes_nothing_but_the_zeros_behind_it() {
    let subject = Subject::new("v082-tar.hxz");
    let size_at = subject.parts[1].end - 16;
    let mut changed = 0;
    for bit in 0..64 {
        let change = Change::Flip { at: size_at + bit / 8, bit: bit % 8 };
        let Ok(file) = open(change.apply(&subject.contents), OpenOptions::default()) else {
            continue;
        };
        changed += 1;
        assert_eq!(file.content(), Content::Tar);
        let size = file.size(Stream::Main);
        assert!(size > 378_000, "{change:?}");
        let slices = file.slices(Stream::Main, 378_000, size - 378_000).unwrap();
        assert_eq!(slices, [Slice::Zeros(size - 378_000)], "{change:?}");
        for block in &subject.blocks {
            let bytes = read(&file, block.stream, &block.range).unwrap();
            assert_eq!(bytes, subject.intact(block), "{change:?}");
        }
    }
    assert!(changed > 0);
}

/// Where no size is recorded, the lengths of blocks are all there is, and nothing says where the
/// last page must end. A damaged length then fails its own block or the whole file, but may move
/// the blocks behind it in that page; every other change is noticed as always.
#[test]
fn without_a_recorded_size_a_damaged_length_fails_its_own_block() {
    let options = OpenOptions { size_from_index: true, ..OpenOptions::default() };
    let subject = Subject::with_options("v082-blockdev-size0.hxz", options);
    assert_eq!(subject.blocks.len(), 4);
    for block in &subject.blocks {
        let length = block.entry.start + 12..block.entry.start + 16;
        for at in block.entry.clone() {
            for bit in 0..8 {
                let change = Change::Flip { at, bit };
                if !length.contains(&at) {
                    subject.check(&change);
                    continue;
                }
                let changed = change.apply(&subject.contents);
                let Ok(file) = open(changed, subject.options.clone()) else {
                    continue;
                };
                assert_ne!(file.size(Stream::Main), 260_000, "{change:?}");
                let own = block.range.start..block.range.start + 1;
                let error = read(&file, Stream::Main, &own).unwrap_err();
                assert!(matches!(error.kind, ErrorKind::Block { .. }), "{change:?}: {error}");
            }
        }
    }
}

/// A file that is changed, and what it must read as.
struct Subject {
    name: &'static str,
    contents: Bytes,
    /// Header, master index with all behind it, and each page, in this order.
    parts: Vec<Range<usize>>,
    /// File bytes before the first block or page behind the header: the dictionary.
    dictionary: Range<usize>,
    sizes: [u64; 2],
    plain: [Vec<u8>; 2],
    blocks: Vec<Block>,
    content: Content,
    options: OpenOptions,
}

struct Block {
    stream: Stream,
    range: Range<u64>,
    /// File bytes.
    stored: Range<usize>,
    /// File bytes.
    entry: Range<usize>,
    /// Index in `parts`.
    page: usize,
}

impl Subject {
    fn new(name: &'static str) -> Self {
        Self::with_options(name, OpenOptions::default())
    }

    fn with_options(name: &'static str, options: OpenOptions) -> Self {
        // One cache for all changed files. None finds what another left there.
        let options = OpenOptions { cache: Arc::new(Cache::new(16 << 20)), ..options };
        let contents = Bytes::from(std::fs::read(fixtures::path(name)).unwrap());
        let file = open(contents.clone(), options.clone()).unwrap();
        let structure = file.structure();
        let mut parts = vec![
            0..header_bytes(&contents),
            structure.header().index_offset as usize..contents.len(),
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
        let dictionary = dictionary.map_or(0..0, |d| d.offset as usize..d.end() as usize);
        let sizes = Stream::ALL.map(|stream| file.size(stream));
        let plain = Stream::ALL.map(|stream| file.read_at(stream, 0, 1 << 30).unwrap());
        let fixture = fixtures::named(name);
        let digest = match fixture.recoverable_main {
            Some(recoverable) if options.size_from_index => recoverable.sha256,
            _ => fixture.main.unwrap().sha256,
        };
        assert_eq!(fixtures::sha256(&plain[0]), digest, "{name}");
        // What lies behind a size of 0 is not served, damaged or not.
        blocks.retain(|block| block.range.end <= sizes[block.stream as usize]);
        let content = file.content();
        Self { name, contents, parts, dictionary, sizes, plain, blocks, content, options }
    }

    /// Fewer changes where each takes long: thousands of blocks are read one by one.
    fn share_of(&self, changes: usize) -> usize {
        if self.blocks.len() > 1000 { changes / 5 } else { changes }
    }

    fn intact(&self, block: &Block) -> &[u8] {
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

    fn check(&self, change: &Change) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.check_or_panic(change)));
        if let Err(panic) = outcome {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            panic!("{} after {change:?}: {}", self.name, text.unwrap_or_default());
        }
    }

    fn check_or_panic(&self, change: &Change) {
        let changed = change.changed(&self.contents);
        let file = match open(change.apply(&self.contents), self.options.clone()) {
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

/// What the header takes, and a few bytes of the padding behind it.
fn header_bytes(contents: &[u8]) -> usize {
    contents[..4096].iter().rposition(|byte| *byte != 0).unwrap() + 9
}

fn open(contents: Bytes, options: OpenOptions) -> Result<Arc<File>, hexz_nbd::snapshot::Error> {
    File::open_with(Arc::new(MemoryBackend::new(contents, "changed")), options)
}

fn read(
    file: &File,
    stream: Stream,
    range: &Range<u64>,
) -> Result<Vec<u8>, hexz_nbd::snapshot::Error> {
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

/// Something that happens to the bytes of a file.
#[derive(Debug, Clone)]
enum Change {
    Flip { at: usize, bit: usize },
    Set { at: usize, to: u8 },
    Fill { range: Range<usize>, with: u8 },
    Cut { length: usize },
}

impl Change {
    /// Somewhere in a range of the file.
    fn draw(random: &mut Random, range: &Range<usize>) -> Self {
        let at = range.start + random.below(range.len());
        match random.below(8) {
            0 => Self::Set { at, to: random.below(256) as u8 },
            1 => {
                let end = (at + 1 + random.below(64)).min(range.end);
                Self::Fill { range: at..end, with: [0, 0xff][random.below(2)] }
            }
            _ => Self::Flip { at, bit: random.below(8) },
        }
    }

    fn apply(&self, contents: &Bytes) -> Bytes {
        let mut changed = contents.to_vec();
        match self {
            Self::Flip { at, bit } => changed[*at] ^= 1 << bit,
            Self::Set { at, to } => changed[*at] = *to,
            Self::Fill { range, with } => changed[range.clone()].fill(*with),
            Self::Cut { length } => changed.truncate(*length),
        }
        Bytes::from(changed)
    }

    /// Bytes that are other ones now, and perhaps some between them. Empty if none are.
    fn changed(&self, contents: &Bytes) -> Range<usize> {
        match self {
            Self::Flip { at, .. } | Self::Set { at, .. } => *at..at + 1,
            Self::Fill { range, .. } => range.clone(),
            Self::Cut { length } => *length..contents.len(),
        }
    }
}

/// SplitMix64: small, and the same on every machine.
struct Random(u64);

impl Random {
    /// Another sequence for each file and purpose.
    fn new(name: &str, purpose: u64) -> Self {
        Self(u64::from(crc32fast::hash(name.as_bytes())) << 8 | purpose)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
