//! Snapshots that we write, read by upstream's own library and by ours.

use std::collections::HashMap;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hexz_core::{Archive, ArchiveStream};
use hexz_nbd::snapshot::format::index::EntryKind;
use hexz_nbd::snapshot::write::{
    self, BlockSize, Cut, ErrorKind, Method, Settings, Source, Summary, ZstdLevel,
};
use hexz_nbd::snapshot::{Check, File, FileBackend, OpenOptions, Stream};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::support::fixtures;
use crate::support::packing::{command, names, noise, settings, text, write_to};
use crate::support::upstream::InMemory;

const METHODS: [Method; 2] = [Method::Lz4, Method::Zstd(ZstdLevel::DEFAULT)];

#[test]
fn every_size_around_a_block_reads_back_through_upstream_and_through_us() {
    for method in METHODS {
        for block_bytes in [512, 4096, 65536, 3 << 20] {
            for length in [0, 1, block_bytes - 1, block_bytes, block_bytes + 1, 3 * block_bytes] {
                for image in [vec![0; length], noise(7, length), text(length)] {
                    check(&image, &settings(method, block_bytes));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_mix_of_blocks_reads_back_through_upstream_and_through_us(
        blocks in prop::collection::vec(0..8_u8, 0..40),
        tail_percent in 0..100_usize,
        block_bytes in prop::sample::select(vec![512, 1536, 4096, 65536]),
        level in 0..=19,
        threads in 1..5_usize,
    ) {
        let mut image: Vec<u8> =
            blocks.iter().flat_map(|kind| block(*kind, block_bytes)).collect();
        image.truncate(image.len() - (image.len().min(block_bytes) * tail_percent) / 100);
        let method = ZstdLevel::new(level).map_or(Method::Lz4, Method::Zstd);
        let settings = settings(method, block_bytes);
        check(&image, &Settings { threads: NonZeroUsize::new(threads).unwrap(), ..settings });
    }
}

#[test]
fn more_blocks_than_a_page_holds_go_into_several_pages() {
    for blocks in [4095_usize, 4096, 4097, 2 * 4096, 2 * 4096 + 77] {
        let image: Vec<u8> = (0..blocks).flat_map(|number| block(number as u8, 512)).collect();
        for method in METHODS {
            let packed = check(&image, &settings(method, 512));
            let file = File::open(&packed.out).unwrap();
            let pages = &file.structure().index().main;
            assert_eq!(pages.len(), blocks.div_ceil(4096), "{blocks}");
        }
    }
}

#[test]
fn the_file_is_the_same_with_any_number_of_threads() {
    // Duplicates near and far, so that threads meet blocks that others are writing.
    let mut image: Vec<u8> = (0..3000_u32).flat_map(|n| block((n % 97) as u8, 4096)).collect();
    image.extend(noise(3, 2 << 20));
    image.extend(text(1000));
    for method in METHODS {
        let pack_with = |threads| {
            let threads = NonZeroUsize::new(threads).unwrap();
            let packed = pack(&image, &Settings { threads, ..settings(method, 4096) });
            fs::read(&packed.out).unwrap()
        };
        let alone = pack_with(1);
        for threads in [2, 3, 8, 32] {
            assert!(pack_with(threads) == alone, "{method:?} with {threads} threads");
        }
    }
}

#[test]
fn the_header_is_what_upstream_writes_for_blocks_of_one_size() {
    let theirs = File::open(fixtures::path("v082-lz4-fixed-multipage.hxz")).unwrap();
    let image = theirs.read_at(Stream::Main, 0, 1 << 30).unwrap();
    let packed = pack(&image, &settings(Method::Lz4, 1024));
    let ours = File::open(&packed.out).unwrap();
    let mut header = ours.structure().header().clone();
    header.index_offset = theirs.structure().header().index_offset;
    assert_eq!(&header, theirs.structure().header());
    assert_eq!(ours.structure().family(), theirs.structure().family());
    assert_eq!(ours.content(), theirs.content());
}

#[test]
fn equal_blocks_are_stored_once_and_zeros_never() {
    let image = [noise(1, 4096), noise(2, 4096), noise(1, 4096), vec![0; 8192], noise(1, 4096)];
    let packed = check(&image.concat(), &settings(Method::Lz4, 4096));
    let Summary { image_bytes, sparse_bytes, duplicate_bytes, file_bytes, .. } = packed.summary;
    assert_eq!((image_bytes, sparse_bytes, duplicate_bytes), (6 * 4096, 8192, 8192));
    assert_eq!(file_bytes, fs::metadata(&packed.out).unwrap().len());
    assert!(file_bytes < 4096 + 2 * 4200 + 500, "{file_bytes}");
}

#[test]
fn holes_of_a_file_are_neither_read_nor_stored() {
    const TIB: u64 = 1 << 40;
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("sparse.img");
    let file = fs::File::create(&image).unwrap();
    file.set_len(TIB).unwrap();
    let (first, last) = (noise(1, 100_000), noise(2, 5000));
    let places = [(300 << 30, &first), (TIB - 5000, &last)];
    for (offset, bytes) in places {
        file.write_all_at(bytes, offset).unwrap();
    }
    let out = directory.path().join("out.hxz");
    // Reading a tebibyte would take longer than anybody waits for a test.
    let summary = write_to(&image, &out, &settings(Method::Lz4, 16 << 20)).unwrap();
    assert_eq!(summary.image_bytes, TIB);
    assert_eq!(summary.sparse_bytes, TIB - 2 * (16 << 20));

    let snapshot = File::open(&out).unwrap();
    assert_eq!(snapshot.size(Stream::Main), TIB);
    for (offset, bytes) in places {
        assert_eq!(&snapshot.read_at(Stream::Main, offset, bytes.len()).unwrap(), bytes);
        let before = snapshot.read_at(Stream::Main, offset - 4096, 4096).unwrap();
        assert!(before.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_hole_that_ends_inside_a_block_reads_back() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("sparse.img");
    let file = fs::File::create(&image).unwrap();
    file.set_len((6 << 20) + 123).unwrap();
    for (number, offset) in
        [5_000, 200_000, 1 << 20, (4 << 20) - 1, (6 << 20) + 100].iter().enumerate()
    {
        file.write_all_at(&noise(number as u64, 23), *offset).unwrap();
    }
    let contents = fs::read(&image).unwrap();
    for block_bytes in [512, 1536, 65536, 1 << 20, 5 << 20] {
        let out = directory.path().join(format!("{block_bytes}.hxz"));
        let settings = settings(Method::Lz4, block_bytes);
        let summary = write_to(&image, &out, &settings).unwrap();
        check_readers(&contents, &out);
        check_layout(&contents, &out, &settings, summary);
    }
}

#[test]
fn a_file_that_exists_is_kept_unless_it_is_to_be_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let (image, out) = (directory.path().join("disk.img"), directory.path().join("out.hxz"));
    fs::write(&image, noise(1, 100_000)).unwrap();
    fs::write(&out, "precious").unwrap();
    let keep = settings(Method::Lz4, 4096);

    let error = write_to(&image, &out, &keep).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Exists), "{error}");
    assert!(error.to_string().contains("out.hxz"), "{error}");
    assert_eq!(fs::read(&out).unwrap(), b"precious");

    write_to(&image, &out, &Settings { replace: true, ..keep }).unwrap();
    check_readers(&noise(1, 100_000), &out);
    assert_eq!(names(directory.path()), ["disk.img", "out.hxz"]);
}

#[test]
fn the_image_is_never_replaced_by_its_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.img");
    fs::write(&image, "precious").unwrap();
    let again = directory.path().join("again.img");
    fs::hard_link(&image, &again).unwrap();
    let replace = Settings { replace: true, ..settings(Method::Lz4, 4096) };
    for out in [&image, &again] {
        let error = write_to(&image, out, &replace).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::SameFile), "{error}");
        assert_eq!(fs::read(out).unwrap(), b"precious");
    }
}

#[test]
fn an_image_that_changes_its_size_is_an_error_that_leaves_everything_as_it_was() {
    for (new_bytes, name) in [(1_u64 << 20, "shrinks"), ((16 << 20) + 1, "grows")] {
        let directory = tempfile::tempdir().unwrap();
        let (image, out) = (directory.path().join("disk.img"), directory.path().join("out.hxz"));
        fs::write(&image, noise(1, 16 << 20)).unwrap();
        fs::write(&out, "precious").unwrap();
        let settings = Settings { replace: true, ..settings(Method::Lz4, 65536) };
        let source = Source::open(&image).unwrap();
        let resize = |_| {
            let image = fs::OpenOptions::new().write(true).open(&image).unwrap();
            image.set_len(new_bytes).unwrap();
        };
        let error =
            write::write(&source, &out, &settings, &AtomicBool::new(false), &resize).unwrap_err();
        assert!(
            matches!(error.kind, ErrorKind::SizeChanged { before: 0x100_0000, now } if now == new_bytes),
            "{name}: {error}"
        );
        assert!(error.to_string().contains("disk.img"), "{error}");
        assert_eq!(fs::read(&out).unwrap(), b"precious");
        assert_eq!(names(directory.path()), ["disk.img", "out.hxz"], "{name}");
    }
}

#[test]
fn stopping_leaves_no_file_behind() {
    let directory = tempfile::tempdir().unwrap();
    let (image, out) = (directory.path().join("disk.img"), directory.path().join("out.hxz"));
    fs::write(&image, noise(1, 16 << 20)).unwrap();
    let source = Source::open(&image).unwrap();
    let stop = AtomicBool::new(false);
    let settings = settings(Method::Lz4, 65536);
    let progress = |_| stop.store(true, Ordering::Relaxed);
    let error = write::write(&source, &out, &settings, &stop, &progress).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Interrupted), "{error}");
    assert_eq!(names(directory.path()), ["disk.img"]);
}

#[test]
fn progress_adds_up_to_the_image() {
    let directory = tempfile::tempdir().unwrap();
    let (image, out) = (directory.path().join("disk.img"), directory.path().join("out.hxz"));
    fs::write(&image, noise(1, 5_000_001)).unwrap();
    let source = Source::open(&image).unwrap();
    let done = std::sync::Mutex::new(Vec::new());
    let progress = |bytes| done.lock().unwrap().push(bytes);
    let settings = settings(Method::Lz4, 4096);
    write::write(&source, &out, &settings, &AtomicBool::new(false), &progress).unwrap();
    let done = done.into_inner().unwrap();
    assert_eq!(done.iter().sum::<u64>(), 5_000_001);
    assert!(done.len() > 1, "{done:?}");
}

#[test]
fn the_command_packs_and_says_so_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let mut image = noise(1, 300_000);
    image.extend(vec![0; 700_000]);
    fs::write(directory.path().join("disk.img"), &image).unwrap();
    for options in [
        &[][..],
        &["--compression", "zstd:9", "--block-size", "1MiB", "--threads", "3"],
        &["--compression=zstd", "--block-size=4096"],
    ] {
        let mut arguments = vec!["disk.img", "out.hxz", "--force"];
        arguments.extend(options);
        let output = command(directory.path(), &arguments);
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{options:?}");
        assert_eq!(stdout.lines().count(), 1, "{stdout}");
        assert!(stdout.starts_with("packed 976.56 KiB into "), "{stdout}");
        assert!(stdout.ends_with(" sparse, 0.0% duplicate\n"), "{stdout}");
        assert!(output.stderr.is_empty());
        check_readers(&image, &directory.path().join("out.hxz"));
    }
}

#[test]
fn the_command_is_refused_with_exit_code_2_when_it_asks_for_what_cannot_be() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("disk.img"), "image").unwrap();
    for (option, value) in [
        ("--compression", "none"),
        ("--compression", "zstd:23"),
        ("--compression", "lz4:1"),
        ("--block-size", "100"),
        ("--block-size", "0"),
        ("--block-size", "17MiB"),
        ("--block-size", "64KiX"),
        ("--threads", "0"),
        ("--threads", "1025"),
    ] {
        let output = command(directory.path(), &["disk.img", "out.hxz", option, value]);
        assert_eq!(output.status.code(), Some(2), "{option} {value}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(option) && stderr.contains(value), "{stderr}");
    }
    assert_eq!(command(directory.path(), &["disk.img"]).status.code(), Some(2));
    assert_eq!(names(directory.path()), ["disk.img"]);
}

#[test]
fn the_command_fails_with_exit_code_1_and_one_line_that_names_the_file() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("disk.img"), "image").unwrap();
    fs::write(directory.path().join("taken.hxz"), "precious").unwrap();
    for (arguments, named, reason) in [
        (["missing.img", "out.hxz"], "missing.img", "No such file"),
        ([".", "out.hxz"], ".", "neither a regular file nor a block device"),
        // A pipe: the command does not wait for what comes through it.
        (["/dev/stdin", "out.hxz"], "/dev/stdin", "neither a regular file nor a block device"),
        (["disk.img", "taken.hxz"], "taken.hxz", "exists, use --force"),
        (["disk.img", "disk.img"], "disk.img", "the image itself"),
        (["disk.img", "nowhere/out.hxz"], "nowhere/out.hxz", "No such file"),
    ] {
        let output = command(directory.path(), &arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with(&format!("hexz-nbd: {named}: ")), "{stderr}");
        assert!(stderr.contains(reason), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(output.stdout.is_empty());
    }
    assert_eq!(fs::read(directory.path().join("taken.hxz")).unwrap(), b"precious");
    assert_eq!(names(directory.path()), ["disk.img", "taken.hxz"]);
}

#[test]
fn a_signal_stops_the_command_and_leaves_no_file_behind() {
    for signal in ["-INT", "-TERM"] {
        let directory = tempfile::tempdir().unwrap();
        // Its index alone has a hundred GiB, so the signal comes first.
        let image = fs::File::create(directory.path().join("disk.img")).unwrap();
        image.set_len(1 << 40).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_hexz-nbd"))
            .args(["pack", "disk.img", "out.hxz", "--block-size", "512"])
            .current_dir(directory.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        while names(directory.path()).len() == 1 {
            assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
            std::thread::yield_now();
        }
        let kill = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("out.hxz: interrupted"), "{stderr}");
        assert_eq!(names(directory.path()), ["disk.img"]);
    }
}

/// A snapshot in a directory of its own, which goes with it.
struct Packed {
    out: PathBuf,
    summary: Summary,
    _directory: TempDir,
}

/// Packs and checks everything that can be checked about the file.
fn check(image: &[u8], settings: &Settings<'_>) -> Packed {
    let packed = pack(image, settings);
    check_readers(image, &packed.out);
    check_layout(image, &packed.out, settings, packed.summary);
    packed
}

fn pack(image: &[u8], settings: &Settings<'_>) -> Packed {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    fs::write(&path, image).unwrap();
    let out = directory.path().join("out.hxz");
    let summary = write_to(&path, &out, settings).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(names(directory.path()), ["disk.img", "out.hxz"]);
    Packed { out, summary, _directory: directory }
}

/// Both libraries give back the image.
fn check_readers(image: &[u8], out: &Path) {
    let theirs = Archive::open(Arc::new(InMemory(fs::read(out).unwrap().into())), None).unwrap();
    assert_eq!(theirs.size(ArchiveStream::Main), image.len() as u64);
    assert_eq!(theirs.size(ArchiveStream::Auxiliary), 0);
    let bytes = theirs.read_at(ArchiveStream::Main, 0, image.len()).unwrap();
    assert!(bytes == image, "upstream reads other bytes");

    let options = OpenOptions { check: Check::Blake3, ..OpenOptions::default() };
    let ours = File::open_with(Arc::new(FileBackend::new(out).unwrap()), options).unwrap();
    assert_eq!(ours.size(Stream::Main), image.len() as u64);
    let bytes = ours.read_at(Stream::Main, 0, image.len()).unwrap();
    assert!(bytes == image, "we read other bytes");
}

/// Format sections 2, 5, 6 and 18: no gaps, zeros sparse, equal blocks once, sums and hashes right.
fn check_layout(image: &[u8], out: &Path, settings: &Settings<'_>, summary: Summary) {
    let stored = fs::read(out).unwrap();
    let file = File::open(out).unwrap();
    let structure = file.structure();
    let mut known = HashMap::new();
    let (mut next_byte, mut next_block) = (4096, 0);
    let mut blocks = image.chunks(structure.header().block_bytes as usize);
    let (mut sparse, mut duplicate, mut position) = (0, 0, 0);
    for page in &structure.index().main {
        assert_eq!((page.start_block, page.start_logical), (next_block, position));
        for entry in structure.entries(page).unwrap() {
            let plain = blocks.next().unwrap();
            let length = plain.len() as u64;
            position += length;
            next_block += 1;
            assert_eq!(u64::from(entry.logical_length), length);
            if plain.iter().all(|byte| *byte == 0) {
                assert_eq!(entry.kind(structure.entry_bounds()), Ok(EntryKind::Sparse));
                sparse += length;
                continue;
            }
            assert_eq!(entry.kind(structure.entry_bounds()), Ok(EntryKind::Data));
            assert_eq!(entry.hash, *blake3::hash(plain).as_bytes());
            if let Some(place) = known.get(plain) {
                assert_eq!(*place, (entry.offset, entry.length, entry.crc));
                duplicate += length;
                continue;
            }
            assert_eq!(entry.offset, next_byte);
            let start = entry.offset as usize;
            let bytes = &stored[start..start + entry.length as usize];
            assert_eq!(entry.crc, crc32fast::hash(bytes));
            known.insert(plain, (entry.offset, entry.length, entry.crc));
            next_byte += u64::from(entry.length);
        }
        assert_eq!(page.offset, next_byte);
        next_byte += u64::from(page.length);
    }
    assert!(blocks.next().is_none());
    assert_eq!(structure.header().index_offset, next_byte);
    let index = structure.index().encode();
    assert_eq!(stored[next_byte as usize..], index);
    let size = BlockSize::new(structure.header().block_bytes.into()).unwrap();
    assert_eq!(Cut::Blocks(size), settings.cut);
    assert_eq!(
        summary,
        Summary {
            image_bytes: image.len() as u64,
            file_bytes: stored.len() as u64,
            sparse_bytes: sparse,
            duplicate_bytes: duplicate,
            ..Summary::default()
        }
    );
    assert_eq!(fs::metadata(out).unwrap().mode() & 0o111, 0);
}

/// Zeros, text, a block that is almost zero, or one of several kinds of noise.
fn block(kind: u8, length: usize) -> Vec<u8> {
    match kind % 8 {
        0 => vec![0; length],
        1 => text(length),
        2 => {
            let mut block = vec![0; length];
            block[length - 1] = kind;
            block
        }
        _ => noise(kind.into(), length),
    }
}
