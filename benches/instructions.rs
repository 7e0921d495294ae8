//! How many instructions the hot paths take. Counted by callgrind, so there is no clock in it:
//! `scripts/instructions` runs each case and compares it with what is committed.
//!
//! ```text
//! instructions --list             the cases, and how many operations each is
//! instructions --snapshots DIR    makes what they read
//! instructions CASE DIR           does one, for callgrind to count
//! instructions                    does all, to see that they run
//! ```
//!
//! Snapshots are made by a process of their own: with its threads, the allocator would be in another
//! state at each run, and allocating is a good part of what is counted.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking, and prints"
)]

use std::hint::black_box;
use std::io::IoSlice;
use std::path::Path;

use bytes::{Buf, BytesMut};
use hexz_nbd::export::{Export, ExportSettings};
use hexz_nbd::nbd::{Contexts, Outbox, Replies, Terms, Transmission, Work};
use hexz_nbd::snapshot::Stream;
use hexz_nbd::snapshot::write::{Method, ZstdLevel};

use crate::support::{BLOCK, image, open, pack, request, warm};

#[allow(dead_code, reason = "not every benchmark uses all of it")]
mod support;

const DATA_BYTES: usize = 4 << 20;
/// Holes behind the data, as many blocks as there are of those.
const IMAGE_BYTES: usize = 2 * DATA_BYTES;
const BLOCKS: usize = IMAGE_BYTES / BLOCK;

/// What one connection does with what it has read from its socket at once.
const BATCH: usize = 32;
/// So that what happens once in a while, such as a buffer that is renewed, is in the average.
const BATCHES: usize = 64;

const CACHE_BYTES: u64 = 64 << 20;

const LZ4: &str = "lz4.hxz";
const ZSTD: &str = "zstd.hxz";

struct Case {
    name: &'static str,
    /// The count is divided by it.
    operations: usize,
    prepare: fn(&Path) -> Counted,
}

/// What is counted. It can be done again.
type Counted = Box<dyn FnMut()>;

const CASES: [Case; 8] = [
    Case {
        name: "cached read, 4 KiB",
        operations: BATCH * BATCHES,
        prepare: |directory| cached(directory, Replies::Simple, 4096, scattered),
    },
    Case {
        name: "cached read, 4 KiB, structured replies",
        operations: BATCH * BATCHES,
        prepare: |directory| cached(directory, Replies::Structured, 4096, scattered),
    },
    Case {
        name: "cached read, 256 KiB of 5 blocks",
        operations: BATCH * BATCHES,
        prepare: |directory| cached(directory, Replies::Simple, 256 << 10, over_blocks),
    },
    Case {
        name: "read of a hole, 256 KiB",
        operations: BATCH * BATCHES,
        prepare: |directory| cached(directory, Replies::Simple, 256 << 10, in_hole),
    },
    Case {
        name: "read of a hole, 256 KiB, structured replies",
        operations: BATCH * BATCHES,
        prepare: |directory| cached(directory, Replies::Structured, 256 << 10, in_hole),
    },
    Case {
        name: "cold block, LZ4, 64 KiB",
        operations: DATA_BYTES / BLOCK,
        prepare: |directory| cold(directory, LZ4),
    },
    Case {
        name: "cold block, Zstandard, 64 KiB",
        operations: DATA_BYTES / BLOCK,
        prepare: |directory| cold(directory, ZSTD),
    },
    Case { name: "extents, for each block", operations: BLOCKS * BATCHES, prepare: extents },
];

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--list"] => {
            for case in &CASES {
                println!("{}\t{}", case.operations, case.name);
            }
        }
        ["--snapshots", directory] => make_snapshots(Path::new(directory)),
        [name, directory] if !name.starts_with("--") => {
            let case = CASES.iter().find(|case| case.name == *name);
            let case = case.unwrap_or_else(|| panic!("no case {name:?}: see --list"));
            let mut work = (case.prepare)(Path::new(directory));
            // What the first time alone costs is no part of the hot path.
            work();
            counted(&mut *work);
        }
        // `cargo bench` and `cargo test` say --bench and --test.
        _ => {
            let directory = tempfile::tempdir().unwrap();
            make_snapshots(directory.path());
            for case in &CASES {
                (case.prepare)(directory.path())();
                println!("{}: runs, and scripts/instructions counts it", case.name);
            }
        }
    }
}

/// Callgrind counts between entry and exit of this, which it finds by name.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
    // A call at the very end would become a jump, and there would be no exit.
    black_box(());
}

fn make_snapshots(directory: &Path) {
    let mut image = image(DATA_BYTES);
    image.resize(IMAGE_BYTES, 0);
    pack(directory, LZ4, &image, Method::Lz4);
    pack(directory, ZSTD, &image, Method::Zstd(ZstdLevel::DEFAULT));
}

/// Where the read with a number begins.
type Places = fn(usize) -> usize;

fn scattered(number: usize) -> usize {
    (number * 7_777_777) % (DATA_BYTES - 4096) / 4096 * 4096
}

fn over_blocks(number: usize) -> usize {
    (number * 7) % (DATA_BYTES / BLOCK - 4) * BLOCK + 4096
}

fn in_hole(number: usize) -> usize {
    DATA_BYTES + over_blocks(number)
}

/// Requests that came with one read of the socket, answered from the cache, as `server` does it: all
/// of it but the system calls.
fn cached(directory: &Path, replies: Replies, length: u32, place: Places) -> Counted {
    let file = warm(&directory.join(LZ4), CACHE_BYTES, IMAGE_BYTES);
    let settings = ExportSettings {
        name: "disk".into(),
        description: None,
        stream: Stream::Main,
        as_raw: false,
    };
    let export = Export::new(file, settings).unwrap();
    let requests: Vec<_> = (0..BATCHES)
        .map(|batch| {
            let of = |number: usize| request(1, place(batch * BATCH + number) as u64, length);
            (0..BATCH).flat_map(of).collect::<Vec<_>>()
        })
        .collect();
    let terms = Terms { export_bytes: IMAGE_BYTES as u64, replies, contexts: Contexts::default() };
    let mut session = Transmission::new(terms, Outbox::default());
    session.allow(1 << 30);
    let mut input = BytesMut::with_capacity(64 << 10);
    Box::new(move || {
        for batch in &requests {
            input.extend_from_slice(batch);
            while let Some(work) = session.next_work(&mut input).unwrap() {
                let Work::Read(read) = work else { panic!("no read") };
                let pieces =
                    export.read_cached(read.offset, read.length).expect("not in the cache");
                session.reply(read, Ok(pieces));
            }
            take(session.outbox());
        }
    })
}

/// Takes everything, as vectored writes would.
fn take(outbox: &mut Outbox) {
    while outbox.has_remaining() {
        let mut slices = [IoSlice::new(&[]); 64];
        let count = outbox.chunks_vectored(&mut slices);
        let bytes = slices[..count].iter().map(|slice| slice.len()).sum();
        outbox.advance(black_box(bytes));
    }
}

/// Blocks that are read, checked and decoded, each for itself.
fn cold(directory: &Path, name: &str) -> Counted {
    let file = open(&directory.join(name), 0);
    Box::new(move || {
        black_box(file.slices(Stream::Main, 0, DATA_BYTES as u64).unwrap());
    })
}

/// What a question about block status asks, where each block differs from its neighbours or not.
fn extents(directory: &Path) -> Counted {
    let file = open(&directory.join(LZ4), CACHE_BYTES);
    Box::new(move || {
        for _ in 0..BATCHES {
            let all = file.extents(Stream::Main, 0..IMAGE_BYTES as u64).unwrap();
            assert_eq!(black_box(all.count()), 2);
        }
    })
}
