//! Snapshots with flipped bits and missing ends: the right bytes or an error, nothing else.
//!
//! Here: thousands of changes to plain files of every family and compression. Each is drawn from a
//! seed, and a failure names the file and the change. Three things no reader can notice, because
//! nothing in the file says otherwise, are kept apart and shown below for what they are.
//!
//! `every_byte.rs`: each byte of header, index and signature of all fixtures, one by one.
//! `unnoticed.rs`: what nobody can notice in encrypted and thin files, and the remedy.
//! `with_manifest.rs` and `served.rs`: with a manifest required, everything is noticed.

mod change;
mod every_byte;
mod scene;
mod served;
mod subject;
mod unnoticed;
mod with_manifest;

use bytes::Bytes;
use hexz_nbd::snapshot::{Content, ErrorKind, OpenOptions, Slice, Stream};

use crate::damage::change::{Change, Random};
use crate::damage::subject::{Subject, read};

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
        let error = subject.open(Bytes::from(contents)).unwrap_err();
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
            let file = subject.open(damaged).unwrap();
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
        let Ok(file) = subject.open(change.apply(&subject.contents)) else {
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
                let Ok(file) = subject.open(change.apply(&subject.contents)) else {
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
