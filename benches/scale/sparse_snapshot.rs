//! Writes a snapshot of a size that no test machine has on disk. The index is all there, an entry with
//! data for every block; the blocks are stored once and used many times. See scripts/sparse-snapshot.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a command")]

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

use hexz_nbd::snapshot::format::index::{PAGE_ENTRIES_MAX, PageRecord, encode_page};
use hexz_nbd::snapshot::format::{Compression, Entry, HEADER_BYTES, Header, Layout, MasterIndex};

const SECTOR: u64 = 512;
/// Pairs of numbers in a sector.
const SECTOR_PAIRS: usize = 512 / 16;
/// What Hexz's own tools use, and what the index is made to look like.
const BLOCK_BYTES: u64 = 64 << 10;
/// An index of these takes 832 MiB.
const BLOCKS_MAX: u64 = 1 << 24;
/// Different blocks. A power of two.
const CONTENTS: usize = 1024;

fn main() -> ExitCode {
    if let Err(error) = run() {
        eprintln!("sparse-snapshot: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [size, path] = arguments.as_slice() else {
        return Err("usage: sparse-snapshot SIZE FILE, as in: 1TiB huge.hxz".into());
    };
    let image_bytes = parse(size).ok_or_else(|| {
        format!("{size}: expected a number of GiB or TiB, as 64GiB, up to 256TiB")
    })?;
    // Larger blocks where it must be, and as many pages as with small ones, since these are what is
    // read and checked when a snapshot is opened.
    let mut block_bytes = BLOCK_BYTES;
    while image_bytes / block_bytes > BLOCKS_MAX {
        block_bytes *= 2;
    }
    let page_entries = PAGE_ENTRIES_MAX * BLOCK_BYTES / block_bytes;
    let blocks = image_bytes / block_bytes;
    write(path, blocks, block_bytes, page_entries).map_err(|error| format!("{path}: {error}"))?;
    println!("{blocks} blocks of {} KiB, {page_entries} in a page", block_bytes >> 10);
    Ok(())
}

fn parse(size: &str) -> Option<u64> {
    let (number, shift) = match size.strip_suffix("TiB") {
        Some(number) => (number, 40),
        None => (size.strip_suffix("GiB")?, 30),
    };
    let number = number.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (1..=256 << 40).contains(&number).then_some(number)
}

/// Which of the different blocks is in a place: neighbours are never equal.
fn content_of(block: u64) -> usize {
    const GOLDEN: u32 = 0x9e37_79b1;
    const SHIFT: u32 = 32 - CONTENTS.ilog2();
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    let low = block as u32;
    (low.wrapping_mul(GOLDEN) >> SHIFT) as usize
}

/// Each sector says over and over which block it belongs to, and which sector it is.
fn plain(content: usize, block_bytes: u64) -> Vec<u8> {
    let sector = |number: u64| [(content as u64).to_le_bytes(), number.to_le_bytes()].concat();
    (0..block_bytes / SECTOR).flat_map(|number| sector(number).repeat(SECTOR_PAIRS)).collect()
}

fn write(
    path: &str,
    blocks: u64,
    block_bytes: u64,
    page_entries: u64,
) -> Result<(), Box<dyn Error>> {
    let file = File::create_new(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, &file);
    out.seek(SeekFrom::Start(HEADER_BYTES))?;
    let mut offset = HEADER_BYTES;
    let mut index = MasterIndex { main_bytes: blocks * block_bytes, ..MasterIndex::default() };
    let mut stored: Vec<Option<Entry>> = vec![None; CONTENTS];
    let mut entries = Vec::new();
    for start_block in (0..blocks).step_by(usize::try_from(page_entries)?) {
        entries.clear();
        for block in start_block..blocks.min(start_block + page_entries) {
            let content = content_of(block);
            let entry = match stored[content] {
                Some(entry) => entry,
                None => {
                    let plain = plain(content, block_bytes);
                    let bytes = lz4_flex::block::compress_prepend_size(&plain);
                    out.write_all(&bytes)?;
                    let entry = Entry {
                        offset,
                        length: u32::try_from(bytes.len())?,
                        logical_length: u32::try_from(block_bytes)?,
                        crc: crc32fast::hash(&bytes),
                        hash: *blake3::hash(&plain).as_bytes(),
                    };
                    offset += bytes.len() as u64;
                    *stored[content].insert(entry)
                }
            };
            entries.push(entry);
        }
        let page = encode_page(&entries);
        out.write_all(&page)?;
        let length = u32::try_from(page.len())?;
        let start_logical = start_block * block_bytes;
        index.main.push(PageRecord { offset, length, start_block, start_logical });
        offset += page.len() as u64;
    }
    out.write_all(&index.encode())?;
    out.flush()?;
    file.write_all_at(&header(block_bytes, offset)?.encode()?, 0)?;
    Ok(())
}

fn header(block_bytes: u64, index_offset: u64) -> Result<Header, Box<dyn Error>> {
    Ok(Header {
        layout: Layout::ParentList,
        block_bytes: u32::try_from(block_bytes)?,
        index_offset,
        parents: Vec::new(),
        dictionary: None,
        metadata: None,
        signature: None,
        encryption: None,
        compression: Compression::Lz4,
        has_main: true,
        has_auxiliary: false,
        variable_blocks: false,
        chunking: None,
    })
}
