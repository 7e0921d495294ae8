//! Thin snapshots that we write, read by upstream's own library: what the base stores is not stored
//! again, whatever the base is, and nothing is taken from it that it does not hold.

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hexz_nbd::snapshot::format::header::ChunkingParameters;
use hexz_nbd::snapshot::format::index::{ENTRY_BYTES_WITH_HASH, EntryKind, PAGE_COUNT_BYTES};
use hexz_nbd::snapshot::format::{Entry, Header};
use hexz_nbd::snapshot::write::{
    Base, Chunking, Cut, Error, ErrorKind, Method, Settings, Summary, ZstdLevel,
};
use hexz_nbd::snapshot::{Family, File, FileBackend, Stream, Structure};
use tempfile::TempDir;

use crate::support::fixtures;
use crate::support::packing::{command, names, noise, settings, text, write_to};
use crate::support::upstream;

const METHODS: [Method; 2] = [Method::Lz4, Method::Zstd(ZstdLevel::DEFAULT)];

/// A base and a child in one directory.
struct Thin {
    directory: TempDir,
}

impl Thin {
    /// With a base that Hexz made.
    fn on(fixture: &str) -> Self {
        let thin = Self { directory: tempfile::tempdir().unwrap() };
        fs::copy(fixtures::path(fixture), thin.path("base.hxz")).unwrap();
        thin
    }

    /// With a base of ours, of blocks of one size.
    fn on_blocks(image: &[u8], method: Method, block_bytes: usize) -> Self {
        let thin = Self { directory: tempfile::tempdir().unwrap() };
        fs::write(thin.path("base.img"), image).unwrap();
        let settings = settings(method, block_bytes);
        write_to(&thin.path("base.img"), &thin.path("base.hxz"), &settings).unwrap();
        thin
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn base_content(&self) -> Vec<u8> {
        upstream::read_main(&self.path("base.hxz"), None)
    }

    /// Packs and lets upstream read it.
    fn pack(&self, image: &[u8], method: Method) -> Summary {
        let summary = self.try_pack(image, method, 3).unwrap();
        let found = upstream::read_main(&self.path("child.hxz"), None);
        assert!(found == image, "upstream reads other bytes");
        assert!(self.read_child() == image, "we read other bytes");
        assert_eq!(summary.image_bytes, image.len() as u64);
        summary
    }

    /// Through our own reader.
    fn read_child(&self) -> Vec<u8> {
        let child = File::open(self.path("child.hxz")).unwrap();
        child.read_at(Stream::Main, 0, 1 << 30).unwrap()
    }

    fn try_pack(&self, image: &[u8], method: Method, threads: usize) -> Result<Summary, Error> {
        fs::write(self.path("child.img"), image).unwrap();
        let base = Base::open(&self.path("base.hxz"))?;
        let settings = Settings {
            cut: base.cut()?,
            base: Some(&base),
            threads: NonZeroUsize::new(threads).unwrap(),
            replace: true,
            ..settings(method, 4096)
        };
        write_to(&self.path("child.img"), &self.path("child.hxz"), &settings)
    }

    fn child(&self) -> Structure {
        structure(&self.path("child.hxz"))
    }
}

fn structure(path: &Path) -> Structure {
    Structure::read(std::sync::Arc::new(FileBackend::new(path).unwrap()), 1 << 24).unwrap()
}

/// Percent of what is not zero in the image.
fn share_in_base(summary: &Summary) -> u64 {
    summary.base_bytes * 100 / (summary.image_bytes - summary.sparse_bytes)
}

/// Some bytes changed, and some inserted, so that all behind them is shifted.
fn edited(content: &[u8]) -> Vec<u8> {
    let mut image = content.to_vec();
    let middle = image.len() / 2;
    image[middle + 5] ^= 0xff;
    image.splice(1000..1000, noise(11, 777));
    image
}

#[test]
fn over_bases_that_are_cut_by_content_an_insertion_costs_a_few_blocks() {
    for (fixture, percent_min) in [
        ("v082-lz4-default.hxz", 75),
        ("v082-lz4-workers1.hxz", 75),
        ("v082-zstd.hxz", 75),
        // A dictionary, which the child neither has nor needs.
        ("v082-zstd-dict.hxz", 60),
        ("v082-dcam.hxz", 90),
        ("v082-ext4.hxz", 65),
        // Family C: how it was cut is not recorded.
        ("v070-lz4-default.hxz", 45),
    ] {
        let thin = Thin::on(fixture);
        let content = thin.base_content();
        for method in METHODS {
            let summary = thin.pack(&content, method);
            assert_eq!(share_in_base(&summary), 100, "{fixture}: {summary:?}");
            assert_eq!(summary.duplicate_bytes, 0, "{fixture}");
            let summary = thin.pack(&edited(&content), method);
            assert!(share_in_base(&summary) >= percent_min, "{fixture}: {summary:?}");
            assert_eq!(summary.base_blocks_damaged, 0, "{fixture}");
        }
    }
}

#[test]
fn over_a_base_of_blocks_of_one_size_changes_in_place_cost_their_blocks() {
    let image = [noise(1, 300_000), vec![0; 100_000], text(200_000), noise(1, 300_001)].concat();
    for (method, block_bytes) in
        [(METHODS[0], 512), (METHODS[1], 4096), (METHODS[0], 65536), (METHODS[1], 2 << 20)]
    {
        let thin = Thin::on_blocks(&image, method, block_bytes);
        let mut changed = image.clone();
        changed[150_000] ^= 1;
        changed.truncate(850_000);
        for child in METHODS {
            assert_eq!(share_in_base(&thin.pack(&image, child)), 100, "{block_bytes}");
            let summary = thin.pack(&changed, child);
            let stored = summary.image_bytes - summary.sparse_bytes - summary.base_bytes;
            assert!(stored <= 2 * block_bytes as u64, "{block_bytes}: {summary:?}");
        }
    }
    let thin = Thin::on("v082-lz4-fixed-multipage.hxz");
    assert_eq!(share_in_base(&thin.pack(&thin.base_content(), Method::Lz4)), 100);
    let thin = Thin::on("v055-lz4-fixed.hxz");
    assert_eq!(share_in_base(&thin.pack(&thin.base_content(), Method::Lz4)), 100);
}

#[test]
fn the_header_says_that_blocks_vary_and_how_they_were_cut() {
    let thin = Thin::on("v082-lz4-default.hxz");
    thin.pack(&edited(&thin.base_content()), Method::Lz4);
    let child = thin.child();
    let theirs = structure(&thin.path("base.hxz")).header().clone();
    assert_eq!(child.family(), Family::D);
    assert!(child.header().variable_blocks);
    assert_eq!(child.header().chunking, theirs.chunking);
    assert_eq!(child.header().block_bytes, theirs.block_bytes);
    assert_eq!(child.header().parents, ["base.hxz"]);

    // Otherwise readers would take references by position.
    let thin = Thin::on_blocks(&noise(1, 100_000), Method::Lz4, 4096);
    thin.pack(&noise(1, 100_000), Method::Lz4);
    let child = thin.child();
    let (average_log2, minimum_bytes, maximum_bytes) = (12, 4096, 4096);
    assert_eq!(child.family(), Family::D);
    assert!(child.header().variable_blocks);
    assert_eq!(
        child.header().chunking,
        Some(ChunkingParameters { average_log2, minimum_bytes, maximum_bytes })
    );
    assert_eq!(child.header().block_bytes, 4096);
}

#[test]
fn references_say_nothing_but_the_hash_and_the_length() {
    let thin = Thin::on("v082-thin-base.hxz");
    let image = edited(&thin.base_content());
    let summary = thin.pack(&image, Method::Lz4);
    let child = thin.child();
    let (mut position, mut referred) = (0, 0);
    for page in &child.index().main {
        for entry in child.entries(page).unwrap() {
            let length = entry.logical_length as usize;
            let plain = &image[position..position + length];
            position += length;
            assert_ne!(length, 0);
            match entry.kind(child.entry_bounds()).unwrap() {
                EntryKind::Sparse => assert!(plain.iter().all(|byte| *byte == 0)),
                EntryKind::Data => assert_eq!(entry.hash, *blake3::hash(plain).as_bytes()),
                EntryKind::Parent => {
                    assert_eq!(entry.hash, *blake3::hash(plain).as_bytes());
                    assert_eq!((entry.offset, entry.length, entry.crc), (u64::MAX, 0, 0));
                    referred += length as u64;
                }
                EntryKind::Nothing => panic!("an empty block"),
            }
        }
    }
    assert_eq!(position, image.len());
    assert_eq!(referred, summary.base_bytes);
    assert!(referred > 1 << 20);
}

#[test]
fn what_a_thin_base_takes_from_its_own_base_is_stored_again() {
    // Upstream opens the base without its parents, as does the reader of these tests.
    let thin = Thin::on("v082-thin-child.hxz");
    let grandparent = fixtures::path("v082-thin-base.hxz");
    fs::copy(&grandparent, thin.path("v082-thin-base.hxz")).unwrap();
    let content = thin.base_content();
    let summary = thin.pack(&content, Method::Lz4);
    let own: u64 = data_bytes(&structure(&thin.path("base.hxz")));
    assert_ne!(own, 0);
    assert_eq!(summary.base_bytes, own);

    // And a thin one of ours.
    let image = noise(1, 1 << 20);
    let thin = Thin::on_blocks(&image, Method::Lz4, 4096);
    let mut middle = image.clone();
    middle[..40_960].copy_from_slice(&noise(2, 40_960));
    fs::write(thin.path("middle.img"), &middle).unwrap();
    fs::rename(thin.path("base.hxz"), thin.path("old.hxz")).unwrap();
    let old = Base::open(&thin.path("old.hxz")).unwrap();
    let settings =
        Settings { cut: old.cut().unwrap(), base: Some(&old), ..settings(Method::Lz4, 512) };
    write_to(&thin.path("middle.img"), &thin.path("base.hxz"), &settings).unwrap();
    let summary = thin.pack(&middle, Method::Lz4);
    assert_eq!(summary.base_bytes, 40_960);
}

/// Plain bytes of the distinct data blocks of the main stream.
fn data_bytes(structure: &Structure) -> u64 {
    let entries = structure.index().main.iter().flat_map(|page| structure.entries(page).unwrap());
    let data = entries.filter(|entry| entry.kind(structure.entry_bounds()) == Ok(EntryKind::Data));
    data.map(|entry| u64::from(entry.logical_length)).sum()
}

#[test]
fn a_base_of_a_release_that_only_we_read_is_referred_to() {
    for fixture in ["v051-lz4-aux.hxz", "v060-zstd-sparse.hxz"] {
        let thin = Thin::on(fixture);
        let base = File::open(thin.path("base.hxz")).unwrap();
        let content = base.read_at(Stream::Main, 0, 1 << 30).unwrap();
        let summary = thin.try_pack(&content, Method::Lz4, 2).unwrap();
        assert!(thin.read_child() == content, "{fixture}");
        if fixture == "v051-lz4-aux.hxz" {
            assert_eq!(share_in_base(&summary), 100, "{summary:?}");
        }
    }
}

#[test]
fn the_auxiliary_stream_of_the_base_is_searched_too() {
    let thin = Thin::on("v082-lz4-aux.hxz");
    let base = File::open(thin.path("base.hxz")).unwrap();
    let memory = base.read_at(Stream::Auxiliary, 0, 1 << 30).unwrap();
    let summary = thin.pack(&memory, Method::Lz4);
    assert_eq!(share_in_base(&summary), 100, "{summary:?}");
}

#[test]
fn the_file_is_the_same_with_any_number_of_threads() {
    for thin in [
        Thin::on("v082-lz4-default.hxz"),
        Thin::on_blocks(&text(3 << 20), Method::Lz4, 4096),
        Thin::on("v082-dcam.hxz"),
    ] {
        // What is new comes twice, so that threads meet blocks that others are writing.
        let new = noise(9, 2 << 20);
        let image = [edited(&thin.base_content()), new.clone(), vec![0; 1 << 20], new].concat();
        thin.try_pack(&image, Method::Lz4, 1).unwrap();
        let alone = fs::read(thin.path("child.hxz")).unwrap();
        for threads in [2, 4, 16] {
            thin.try_pack(&image, Method::Lz4, threads).unwrap();
            assert!(fs::read(thin.path("child.hxz")).unwrap() == alone, "{threads} threads");
        }
    }
}

#[test]
fn images_of_every_size_around_the_largest_chunk_read_back() {
    let thin = Thin::on("v082-lz4-default.hxz");
    for length in [0, 1, 16_383, 16_384, 262_143, 262_144, 262_145, 1_048_576, 3 << 20] {
        for image in [vec![0; length], vec![7; length], noise(5, length)] {
            let summary = thin.pack(&image, Method::Lz4);
            assert_eq!(summary.base_bytes, 0);
            assert_eq!(
                summary.sparse_bytes,
                if image.first() == Some(&0) { length as u64 } else { 0 }
            );
        }
    }
}

#[test]
fn holes_are_not_read_over_a_base_that_is_cut_by_content() {
    const IMAGE_BYTES: u64 = 64 << 30;
    let thin = Thin::on("v082-lz4-default.hxz");
    let content = thin.base_content();
    let image = fs::File::create(thin.path("child.img")).unwrap();
    image.set_len(IMAGE_BYTES).unwrap();
    image.write_all_at(&content, 30 << 30).unwrap();
    let base = Base::open(&thin.path("base.hxz")).unwrap();
    let settings =
        Settings { cut: base.cut().unwrap(), base: Some(&base), ..settings(Method::Lz4, 4096) };
    // Reading 64 GiB would take longer than anybody waits for a test.
    let summary = write_to(&thin.path("child.img"), &thin.path("child.hxz"), &settings).unwrap();
    assert_eq!(summary.image_bytes, IMAGE_BYTES);
    assert!(summary.base_bytes > content.len() as u64 / 2, "{summary:?}");
    assert!(summary.file_bytes < 20 << 20, "{summary:?}");
}

#[test]
fn a_damaged_block_of_the_base_is_stored_again() {
    let thin = Thin::on("v082-lz4-default.hxz");
    let content = thin.base_content();
    let base = structure(&thin.path("base.hxz"));
    let page = base.index().main[0];
    let entries = base.entries(&page).unwrap();
    let whole = thin.pack(&content, Method::Lz4).base_bytes;

    let file = fs::OpenOptions::new().write(true).open(thin.path("base.hxz")).unwrap();
    let data = |entry: &&Entry| entry.length > 1000;
    let damaged = entries.iter().find(data).unwrap();
    file.write_all_at(&[0x55; 100], damaged.offset + 500).unwrap();
    fs::write(thin.path("child.img"), &content).unwrap();
    let summary = thin.pack(&content, Method::Lz4);
    assert_eq!(summary.base_blocks_damaged, 1);
    assert_eq!(summary.base_bytes, whole - u64::from(damaged.logical_length));

    let output = command(thin.directory.path(), &["child.img", "again.hxz", "--base", "base.hxz"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.starts_with("hexz-nbd: base.hxz: 1 block of it is damaged"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

/// A hash is a claim: whoever wrote the base may have put any hash there, and readers of Hexz
/// never compare it.
#[test]
fn a_hash_that_the_block_of_the_base_does_not_have_is_not_believed() {
    let thin = Thin::on_blocks(&noise(1, 8 * 4096), Method::Lz4, 4096);
    let base = structure(&thin.path("base.hxz"));
    let page = base.index().main[0];
    let hash_at =
        |number: u64| page.offset + PAGE_COUNT_BYTES + (number + 1) * ENTRY_BYTES_WITH_HASH - 32;
    let new = noise(99, 4096);
    let file = fs::OpenOptions::new().write(true).open(thin.path("base.hxz")).unwrap();
    file.write_all_at(blake3::hash(&new).as_bytes(), hash_at(3)).unwrap();
    let summary = thin.pack(&[new, noise(1, 4096)].concat(), Method::Lz4);
    assert_eq!((summary.base_bytes, summary.base_blocks_damaged), (4096, 1));

    // The right bytes, but fewer than the base has: another block.
    let short = noise(1, 1000);
    file.write_all_at(blake3::hash(&short).as_bytes(), hash_at(0)).unwrap();
    let summary = thin.pack(&short, Method::Lz4);
    assert_eq!((summary.base_bytes, summary.base_blocks_damaged), (0, 1));
}

#[test]
fn what_cannot_be_a_base_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("disk.img"), "image").unwrap();
    fs::write(directory.path().join("text.hxz"), "text").unwrap();
    fs::create_dir(directory.path().join("directory")).unwrap();
    for fixture in ["v020-zstd-dict.hxz", "v082-enc-lz4.hxz", "h-trunc-tail.hxz"] {
        fs::copy(fixtures::path(fixture), directory.path().join(fixture)).unwrap();
    }
    for (base, reason) in [
        ("missing.hxz", "No such file"),
        ("directory", "not a regular file"),
        ("text.hxz", "not a Hexz snapshot"),
        ("disk.img", "not a Hexz snapshot"),
        ("/dev/null", "not a regular file"),
        ("v020-zstd-dict.hxz", "snapshots of Hexz 0.1.2 to 0.4.5 have no hashes"),
        ("v082-enc-lz4.hxz", "it is encrypted"),
        ("h-trunc-tail.hxz", "corrupt snapshot"),
    ] {
        let output = command(directory.path(), &["disk.img", "out.hxz", "--base", base]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{base}: {stderr}");
        assert!(
            stderr.starts_with(&format!("hexz-nbd: {base}: cannot be the base: ")),
            "{base}: {stderr}"
        );
        assert!(stderr.contains(reason), "{base}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    assert!(!directory.path().join("out.hxz").exists());
}

#[test]
fn the_base_is_never_replaced_by_its_child() {
    let thin = Thin::on("v082-onebyte.hxz");
    fs::hard_link(thin.path("base.hxz"), thin.path("again.hxz")).unwrap();
    fs::write(thin.path("child.img"), "image").unwrap();
    let before = fs::read(thin.path("base.hxz")).unwrap();
    for out in ["base.hxz", "again.hxz"] {
        let output =
            command(thin.directory.path(), &["child.img", out, "--base", "base.hxz", "--force"]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            stderr,
            format!("hexz-nbd: {out}: this is the base itself, or a parent of it\n")
        );
        assert_eq!(output.status.code(), Some(1));
    }
    assert!(fs::read(thin.path("base.hxz")).unwrap() == before);
    // Nor is what the base needs.
    for name in ["v082-thin-base.hxz", "v082-thin-child.hxz", "v082-thin-grandchild.hxz"] {
        fs::copy(fixtures::path(name), thin.path(name)).unwrap();
    }
    for out in ["v082-thin-base.hxz", "v082-thin-child.hxz"] {
        let arguments = ["child.img", out, "--base", "v082-thin-grandchild.hxz", "--force"];
        let output = command(thin.directory.path(), &arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("a parent of it"), "{out}: {stderr}");
        assert!(fs::read(thin.path(out)).unwrap() == fs::read(fixtures::path(out)).unwrap());
    }
}

#[test]
fn parameters_that_no_chunker_can_use_are_refused_but_with_a_block_size() {
    let thin = Thin::on("v082-lz4-default.hxz");
    let mut header = structure(&thin.path("base.hxz")).header().clone();
    fs::write(thin.path("child.img"), noise(1, 100_000)).unwrap();
    for (average_log2, minimum_bytes, maximum_bytes) in
        [(16, 63, 262_144), (40, 16384, 262_144), (16, u32::MAX, 0), (16, 0, 0), (16, 7, 7)]
    {
        header.chunking = Some(ChunkingParameters { average_log2, minimum_bytes, maximum_bytes });
        let file = fs::OpenOptions::new().write(true).open(thin.path("base.hxz")).unwrap();
        file.write_all_at(&header.encode().unwrap(), 0).unwrap();
        let error = thin.try_pack(b"image", Method::Lz4, 1).unwrap_err();
        assert!(
            matches!(error.kind, ErrorKind::BaseChunking | ErrorKind::BaseBlockSize { .. }),
            "{error}"
        );
        let output = command(
            thin.directory.path(),
            &["child.img", "out.hxz", "--base", "base.hxz", "--block-size", "4KiB", "--force"],
        );
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_block_size_is_refused_where_the_base_is_cut_by_content() {
    let thin = Thin::on("v082-lz4-default.hxz");
    fs::write(thin.path("child.img"), "image").unwrap();
    let output = command(
        thin.directory.path(),
        &["child.img", "out.hxz", "--base", "base.hxz", "--block-size", "64KiB"],
    );
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("--block-size") && stderr.contains("its content"), "{stderr}");
    assert_eq!(names(thin.directory.path()), ["base.hxz", "child.img"]);

    // One that the base does not have is only unwise.
    let thin = Thin::on_blocks(&noise(1, 90_112), Method::Lz4, 4096);
    let output = command(
        thin.directory.path(),
        &["base.img", "out.hxz", "--base", "base.hxz", "--block-size", "8192"],
    );
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.ends_with(", 0 B (0.0%) in the base\n"), "{stdout}");
}

#[test]
fn the_command_says_how_much_is_in_the_base_and_where_readers_look_for_it() {
    let thin = Thin::on("v082-lz4-default.hxz");
    fs::write(thin.path("child.img"), thin.base_content()).unwrap();
    fs::create_dir(thin.path("elsewhere")).unwrap();
    fs::create_dir(thin.path("working")).unwrap();
    std::os::unix::fs::symlink("base.hxz", thin.path("link.hxz")).unwrap();
    let canonical = fs::canonicalize(thin.path("base.hxz")).unwrap();
    let canonical = canonical.to_str().unwrap();
    for (base, out, recorded) in [
        ("../base.hxz", "../beside.hxz", "base.hxz"),
        // What a link names is what matters.
        ("../link.hxz", "../linked.hxz", "base.hxz"),
        ("../base.hxz", "../elsewhere/child.hxz", canonical),
        ("../base.hxz", "here.hxz", canonical),
    ] {
        let output = command(&thin.path("working"), &["../child.img", out, "--base", base]);
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert_eq!(stdout.lines().count(), 1, "{stdout}");
        assert!(
            stdout.contains(" duplicate, 2.") && stdout.ends_with("%) in the base\n"),
            "{stdout}"
        );
        let out = thin.path("working").join(out);
        assert_eq!(structure(&out).header().parents, [recorded]);
        assert!(upstream::read_main(&out, None) == thin.base_content());
        if recorded == "base.hxz" {
            assert_eq!(stderr, "");
        } else {
            assert!(stderr.contains("--parent-dir"), "{stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        }
    }
}

#[test]
fn a_path_that_no_header_can_hold_is_refused_before_the_work() {
    let root = tempfile::tempdir().unwrap();
    let mut deep = fs::canonicalize(root.path()).unwrap();
    while deep.as_os_str().len() < 3780 {
        deep.push("d".repeat(200));
    }
    fs::create_dir_all(&deep).unwrap();
    let image = root.path().join("disk.img");
    fs::write(&image, "image").unwrap();
    let out = root.path().join("out.hxz");
    let pack = |name: &str| {
        let path = deep.join(name);
        fs::copy(fixtures::path("v082-onebyte.hxz"), &path).unwrap();
        let base = Base::open(&path)?;
        let settings = Settings { base: Some(&base), replace: true, ..settings(Method::Lz4, 4096) };
        write_to(&image, &out, &settings).map(|_| path.as_os_str().len())
    };
    // 63 bytes of the header are not the path.
    let longest = 4096 - 63 - deep.as_os_str().len() - 1;
    assert_eq!(pack(&"b".repeat(longest)).unwrap(), 4033);
    assert_eq!(structure(&out).header().parents[0].len(), 4033);
    let error = pack(&"b".repeat(longest + 1)).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::BasePathTooLong(4034)), "{error}");
    // Beside the child its name is enough.
    let settings_of = |base| Settings { base: Some(base), ..settings(Method::Lz4, 4096) };
    let base = Base::open(&deep.join("b".repeat(longest + 1))).unwrap();
    write_to(&image, &deep.join("out.hxz"), &settings_of(&base)).unwrap();

    let odd = root.path().join(std::ffi::OsStr::from_bytes(b"\xff.hxz"));
    fs::copy(fixtures::path("v082-onebyte.hxz"), &odd).unwrap();
    let error = Base::open(&odd).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::BaseName), "{error}");
}

#[test]
fn an_image_may_be_cut_by_content_without_a_base() {
    let directory = tempfile::tempdir().unwrap();
    let theirs = fixtures::path("v082-lz4-default.hxz");
    let content = upstream::read_main(&theirs, None);
    let (image, out) = (directory.path().join("disk.img"), directory.path().join("out.hxz"));
    fs::write(&image, &content).unwrap();
    let theirs = structure(&theirs);
    let cut = Cut::Content(Chunking::new(theirs.header().chunking.unwrap()).unwrap());
    write_to(&image, &out, &Settings { cut, ..settings(Method::Lz4, 4096) }).unwrap();
    assert!(upstream::read_main(&out, None) == content);
    let ours = structure(&out);
    let header = ours.header().clone();
    let index_offset = theirs.header().index_offset;
    assert_eq!(&Header { index_offset, ..header }, theirs.header());
    let lengths = |structure: &Structure| -> Vec<_> {
        let pages = structure.index().main.iter();
        let entries = pages.flat_map(|page| structure.entries(page).unwrap());
        entries.map(|entry| entry.logical_length).filter(|length| *length != 0).collect()
    };
    assert_eq!(lengths(&ours), lengths(&theirs));
}
