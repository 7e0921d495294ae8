//! Thin snapshots: their bytes come from the right parent, or not at all.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use hexz_nbd::snapshot::{
    Cache, Damage, Error, ErrorKind, File, FileBackend, OpenOptions, Property, Registry, Slice,
    Stream,
};
use tempfile::TempDir;

use crate::support::contents::{Contents, Piece};
use crate::support::fixtures::{self, Fixture, Kind, sha256};
use crate::support::process::{Client, HEXZ_NBD, Process};

/// A directory for files of a chain.
struct Chain(TempDir);

impl Chain {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn copy(&self, fixture: &str) -> PathBuf {
        self.copy_as(fixture, fixture)
    }

    fn copy_as(&self, fixture: &str, name: &str) -> PathBuf {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::copy(fixtures::path(fixture), self.path(name)).unwrap();
        self.path(name)
    }

    fn write(&self, name: &str, contents: &Contents) -> PathBuf {
        fs::write(self.path(name), contents.encode()).unwrap();
        self.path(name)
    }
}

fn options() -> OpenOptions {
    OpenOptions { cache: Arc::new(Cache::new(32 << 20)), ..OpenOptions::default() }
}

fn open_with(path: &Path, options: OpenOptions) -> Result<Arc<File>, Error> {
    File::open_with(Arc::new(FileBackend::new(path)?), options)
}

fn open(path: &Path) -> Result<Arc<File>, Error> {
    open_with(path, options())
}

fn read_all(file: &File) -> Result<Vec<u8>, Error> {
    file.read_at(Stream::Main, 0, 1 << 30)
}

fn noise(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

fn thin_fixtures() -> Vec<Fixture> {
    let all = fixtures::all().into_iter();
    let is_thin = |f: &Fixture| f.kind == Kind::Valid && !f.parents.is_empty();
    let thin: Vec<Fixture> = all.filter(is_thin).collect();
    assert!(thin.len() >= 10);
    thin
}

#[test]
fn reads_in_any_order_and_from_the_cache_give_what_one_long_read_gives() {
    for fixture in thin_fixtures() {
        let file = fixture.open().unwrap();
        let whole = read_all(&file).unwrap();
        assert_eq!(sha256(&whole), fixture.main.as_ref().unwrap().sha256, "{}", fixture.file);
        let anew = fixture.open().unwrap();
        for start in (0..whole.len()).step_by(10_007).rev() {
            let end = (start + 20_000).min(whole.len());
            let bytes = anew.read_at(Stream::Main, start as u64, end - start).unwrap();
            assert!(bytes == whole[start..end], "{} at {start}", fixture.file);
            let cached = anew.cached_slices(Stream::Main, start as u64, (end - start) as u64);
            let mut bytes = Vec::new();
            for slice in cached.unwrap_or_else(|| panic!("{} at {start}", fixture.file)) {
                match slice {
                    Slice::Data(data) => bytes.extend_from_slice(&data),
                    Slice::Zeros(zeros) => bytes.resize(bytes.len() + zeros as usize, 0),
                }
            }
            assert!(bytes == whole[start..end], "{} at {start}, cached", fixture.file);
        }
    }
}

#[test]
fn holes_and_depths_are_told_through_parents() {
    for fixture in thin_fixtures() {
        let file = fixture.open().unwrap();
        let whole = read_all(&file).unwrap();
        let runs = |property| -> Vec<_> {
            let runs = file.runs(Stream::Main, 0..whole.len() as u64, property).unwrap();
            runs.map(|run| run.unwrap()).collect()
        };
        let deepest = file.ancestors().iter().map(|ancestor| ancestor.depth).max().unwrap();
        let (holes, depths) = (runs(Property::Hole), runs(Property::ParentDepth));
        for runs in [&holes, &depths, &runs(Property::Shared)] {
            assert_eq!(
                runs.iter().map(|run| run.range.end - run.range.start).sum::<u64>(),
                whole.len() as u64
            );
        }
        let mut hole_bytes = vec![false; whole.len()];
        for run in holes.iter().filter(|run| run.value == 1) {
            let range = run.range.start as usize..run.range.end as usize;
            assert!(whole[range.clone()].iter().all(|byte| *byte == 0), "{}", fixture.file);
            hole_bytes[range].fill(true);
        }
        // Nothing but data comes from a parent, and some of it does.
        let extents = fixture.main.as_ref().unwrap().parent_extents.clone();
        assert!(depths.iter().any(|run| run.value == deepest), "{}: {depths:?}", fixture.file);
        for run in &depths {
            let referred =
                |at: u64| extents.iter().any(|(start, n)| (*start..start + n).contains(&at));
            for at in [run.range.start, run.range.end - 1] {
                let is_hole = hole_bytes[at as usize];
                assert_eq!(run.value != 0, referred(at) && !is_hole, "{} at {at}", fixture.file);
            }
        }
    }
}

/// A parent has four blocks of one size; the child's are placed by the test.
fn parent() -> (Contents, Vec<Vec<u8>>) {
    let blocks: Vec<Vec<u8>> = (0..4).map(|seed| noise(seed, 4096)).collect();
    let pieces = blocks.iter().cloned().map(Piece::Data).collect();
    (Contents { blocks: pieces, ..Contents::default() }, blocks)
}

fn child(variable_blocks: bool, blocks: Vec<Piece>) -> Contents {
    Contents {
        parents: vec!["anywhere/base.hxz".into()],
        variable_blocks,
        blocks,
        ..Contents::default()
    }
}

fn is_unresolvable(error: &Error) -> bool {
    matches!(error.kind, ErrorKind::Block { damage: Damage::Reference(_), .. })
}

#[test]
fn a_reference_is_what_its_writer_meant_or_an_error() {
    let (base, blocks) = parent();
    let all = blocks.concat();
    let zeros_behind = [&all[12_288..], &[0; 4096]].concat();
    for (name, child, expected) in [
        (
            "by content, elsewhere",
            child(true, vec![Piece::Parent(4096, hash(&blocks[2]))]),
            Some(blocks[2].clone()),
        ),
        (
            "in its place",
            child(true, vec![Piece::Parent(4096, hash(&blocks[0]))]),
            Some(blocks[0].clone()),
        ),
        // What commits write: the hash of the block that holds the first byte.
        (
            "by place, across blocks",
            child(false, vec![Piece::Zeros(1000), Piece::Parent(4096, hash(&blocks[0]))]),
            Some([&[0; 1000], &all[1000..5096]].concat()),
        ),
        (
            "without a hash",
            child(false, vec![Piece::Zeros(5000), Piece::Parent(2000, [0; 32])]),
            Some([&[0; 5000], &all[5000..7000]].concat()),
        ),
        // Not a commit, so nothing but the bytes themselves has the hash.
        (
            "a hash of another range",
            child(true, vec![Piece::Zeros(1000), Piece::Parent(3096, hash(&blocks[0]))]),
            None,
        ),
        (
            "a range with the hash",
            child(true, vec![Piece::Parent(8192, hash(&all[..8192]))]),
            Some(all[..8192].to_vec()),
        ),
        ("a hash of nothing", child(true, vec![Piece::Parent(4096, [7; 32])]), None),
        (
            "the right hash, another length",
            child(true, vec![Piece::Parent(4095, hash(&blocks[1]))]),
            None,
        ),
        (
            "over the end",
            child(false, vec![Piece::Zeros(12_288), Piece::Parent(8192, hash(&blocks[3]))]),
            Some([&[0; 12_288][..], &zeros_behind].concat()),
        ),
        (
            "behind the end",
            child(false, vec![Piece::Zeros(16_384), Piece::Parent(100, [0; 32])]),
            None,
        ),
    ] {
        let chain = Chain::new();
        chain.write("base.hxz", &base);
        let file = open(&chain.write("child.hxz", &child)).unwrap();
        match (read_all(&file), expected) {
            (Ok(bytes), Some(expected)) => assert!(bytes == expected, "{name}"),
            (Err(error), None) => assert!(is_unresolvable(&error), "{name}: {error}"),
            (Ok(_), None) => panic!("{name}: bytes were invented"),
            (Err(error), Some(_)) => panic!("{name}: {error}"),
        }
        // What does not resolve is neither data nor a hole.
        let length = file.size(Stream::Main);
        let runs: Vec<_> = file.runs(Stream::Main, 0..length, Property::Hole).unwrap().collect();
        let fails = runs.iter().any(Result::is_err);
        assert_eq!(fails, read_all(&file).is_err(), "{name}");
    }
}

/// The base of the base has it, which upstream's reader serves as zeros.
#[test]
fn blocks_of_any_generation_and_chains_of_one_two_and_sixteen_are_found() {
    let (base, blocks) = parent();
    for length in [1, 2, 16] {
        let chain = Chain::new();
        chain.write("0.hxz", &base);
        for generation in 1..=length {
            let own = noise(100 + generation, 4096);
            let contents = Contents {
                parents: vec![format!("{}.hxz", generation - 1)],
                variable_blocks: true,
                blocks: vec![Piece::Data(own), Piece::Parent(4096, hash(&blocks[3]))],
                ..Contents::default()
            };
            chain.write(&format!("{generation}.hxz"), &contents);
        }
        let file = open(&chain.path(&format!("{length}.hxz"))).unwrap();
        assert_eq!(file.ancestors().len(), length as usize);
        let expected = [noise(100 + length, 4096), blocks[3].clone()].concat();
        assert!(read_all(&file).unwrap() == expected, "{length}");
        let depth = file.runs(Stream::Main, 4096..8192, Property::ParentDepth).unwrap();
        let depths: Vec<u32> = depth.map(|run| run.unwrap().value).collect();
        assert_eq!(depths, [length], "{length}");
    }
}

#[test]
fn by_place_through_every_generation() {
    let (base, blocks) = parent();
    let chain = Chain::new();
    chain.write("0.hxz", &base);
    for generation in 1..=16_usize {
        // One block of its own, everything else from below.
        let mut pieces = vec![Piece::Parent(4096, [0; 32]); 4];
        pieces[generation % 4] = Piece::Data(noise(generation as u32 + 50, 4096));
        let parents = vec![format!("{}.hxz", generation - 1)];
        let contents = Contents { parents, blocks: pieces, ..Contents::default() };
        chain.write(&format!("{generation}.hxz"), &contents);
    }
    let file = open(&chain.path("16.hxz")).unwrap();
    let expected: Vec<u8> = [16, 13, 14, 15].map(|n| noise(n + 50, 4096)).concat();
    assert!(read_all(&file).unwrap() == expected);
    assert!(read_all(&open(&chain.path("2.hxz")).unwrap()).unwrap()[..4096] == blocks[0]);
}

#[test]
fn no_chain_is_longer_wider_or_rounder_than_the_limits() {
    let chain = Chain::new();
    let (base, _) = parent();
    let of = |parents: Vec<String>| Contents {
        parents,
        variable_blocks: true,
        blocks: vec![Piece::Zeros(4096)],
        ..Contents::default()
    };
    let check = |name: &str, kind: fn(&ErrorKind) -> bool| {
        let error = open(&chain.path(name)).unwrap_err();
        let mut innermost = &error.kind;
        while let ErrorKind::Parent(inner) = innermost {
            innermost = &inner.kind;
        }
        assert!(kind(innermost), "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
    };
    chain.write("0.hxz", &base);
    for generation in 1..=17 {
        let contents = of(vec![format!("{}.hxz", generation - 1)]);
        chain.write(&format!("{generation}.hxz"), &contents);
    }
    assert!(open(&chain.path("16.hxz")).is_ok());
    check("17.hxz", |kind| matches!(kind, ErrorKind::TooManyGenerations));
    // Also if the chain was open already.
    let options = options();
    let _open = open_with(&chain.path("16.hxz"), options.clone()).unwrap();
    let error = open_with(&chain.path("17.hxz"), options).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::TooManyGenerations), "{error}");

    chain.write("self.hxz", &of(vec!["/elsewhere/self.hxz".into()]));
    check("self.hxz", |kind| matches!(kind, ErrorKind::ParentCycle { .. }));
    chain.write("one.hxz", &of(vec!["two.hxz".into()]));
    chain.write("two.hxz", &of(vec!["three.hxz".into()]));
    chain.write("three.hxz", &of(vec!["one.hxz".into()]));
    check("one.hxz", |kind| matches!(kind, ErrorKind::ParentCycle { .. }));
    for number in 0..16 {
        chain.write(&format!("wide-{number}.hxz"), &base);
    }
    let names: Vec<String> = (0..16).map(|number| format!("wide-{number}.hxz")).collect();
    chain.write("wide.hxz", &of(names.clone()));
    assert_eq!(open(&chain.path("wide.hxz")).unwrap().ancestors().len(), 16);
    chain.write("wider.hxz", &of([&names[..], &["0.hxz".into()]].concat()));
    check("wider.hxz", |kind| matches!(kind, ErrorKind::TooManyParents { parents: 17 }));
    // Five families of 16.
    let mut heads = Vec::new();
    for family in 0..5 {
        let names: Vec<String> = (0..16).map(|number| format!("f{family}-{number}.hxz")).collect();
        names.iter().for_each(|name| drop(chain.write(name, &base)));
        chain.write(&format!("f{family}.hxz"), &of(names));
        heads.push(format!("f{family}.hxz"));
    }
    chain.write("tree.hxz", &of(heads));
    check("tree.hxz", |kind| matches!(kind, ErrorKind::TooManyAncestors));
}

/// 16 layers of 4 parents, each of which names all of the next layer, and no reference resolves:
/// without bounds that are four to the power of 16 comparisons.
#[test]
fn references_that_resolve_nowhere_take_no_time() {
    let chain = Chain::new();
    let layer = |layer: u32| (0..4).map(move |n| format!("{layer}-{n}.hxz")).collect::<Vec<_>>();
    for name in layer(0) {
        chain.write(&name, &parent().0);
    }
    for number in 1..=14 {
        for (n, name) in layer(number).iter().enumerate() {
            let hash = [number as u8 * 16 + n as u8 + 1; 32];
            let parents = layer(number - 1);
            let blocks = vec![Piece::Parent(4096, hash)];
            chain.write(
                name,
                &Contents { parents, variable_blocks: true, blocks, ..Contents::default() },
            );
        }
    }
    let file = open(&chain.path("14-0.hxz")).unwrap();
    let error = read_all(&file).unwrap_err();
    assert!(is_unresolvable(&error), "{error}");
}

#[test]
fn parents_are_looked_for_by_name_in_known_directories_only() {
    let chain = Chain::new();
    let secret = chain.copy_as("v082-thin-base.hxz", "secret/v082-thin-base.hxz");
    let child = chain.copy_as("v082-thin-child.hxz", "images/child.hxz");
    let error = open(&child).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error.kind, ErrorKind::MissingParent { .. }), "{text}");
    for part in ["images/child.hxz", "v082-thin-base.hxz", "--parent-dir"] {
        assert!(text.contains(part), "{text}");
    }
    // Where the recorded path leads from the directory of the process or of the file.
    let mut contents = fs::read(&child).unwrap();
    let recorded = b"v082-thin-base.hxz";
    let at = contents.windows(recorded.len()).position(|bytes| bytes == recorded).unwrap();
    let in_header = String::from_utf8_lossy(&contents[..400]).into_owned();
    assert!(at < 400, "{in_header}");
    let dots = b"../../../s/base.hx";
    contents[at..at + dots.len()].copy_from_slice(dots);
    fs::create_dir_all(chain.path("s")).unwrap();
    let dotted = chain.path("images/a/b/dotted.hxz");
    fs::create_dir_all(dotted.parent().unwrap()).unwrap();
    fs::write(&dotted, &contents).unwrap();
    chain.copy_as("v082-thin-base.hxz", "s/base.hx");
    assert!(matches!(open(&dotted).unwrap_err().kind, ErrorKind::MissingParent { .. }));

    let named = OpenOptions {
        parent_directories: vec![chain.path("nowhere"), secret.parent().unwrap().to_owned()],
        ..options()
    };
    let file = open_with(&child, named.clone()).unwrap();
    let expected = fixtures::named("v082-thin-child.hxz").main.unwrap().sha256;
    assert_eq!(sha256(&read_all(&file).unwrap()), expected);

    // A link, a directory and a pipe beside the child are no parent.
    let beside = chain.path("images/v082-thin-base.hxz");
    symlink(&secret, &beside).unwrap();
    let error = open(&child).unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");
    assert!(open_with(&child, named).is_ok());
    fs::remove_file(&beside).unwrap();
    fs::create_dir(&beside).unwrap();
    assert!(open(&child).unwrap_err().to_string().contains("not a regular file"));
    fs::remove_dir(&beside).unwrap();
    assert!(Command::new("mkfifo").arg(&beside).status().unwrap().success());
    assert!(open(&child).unwrap_err().to_string().contains("not a regular file"));
}

/// Snapshots of one disk often have one name, in directories of their own.
#[test]
fn a_parent_may_have_the_name_of_its_child_in_another_directory() {
    let chain = Chain::new();
    let (base, blocks) = parent();
    fs::create_dir(chain.path("monday")).unwrap();
    fs::create_dir(chain.path("tuesday")).unwrap();
    fs::write(chain.path("monday/disk.hxz"), base.encode()).unwrap();
    let contents = Contents {
        parents: vec!["/backup/monday/disk.hxz".into()],
        variable_blocks: true,
        blocks: vec![Piece::Parent(4096, hash(&blocks[1]))],
        ..Contents::default()
    };
    fs::write(chain.path("tuesday/disk.hxz"), contents.encode()).unwrap();
    let parent_directories = vec![chain.path("monday")];
    let file =
        open_with(&chain.path("tuesday/disk.hxz"), OpenOptions { parent_directories, ..options() });
    assert!(read_all(&file.unwrap()).unwrap() == blocks[1]);
}

#[test]
fn a_parent_is_opened_once_and_its_blocks_are_cached_once() {
    let chain = Chain::new();
    let (base, blocks) = parent();
    let base = chain.write("base.hxz", &base);
    let refers = child(true, vec![Piece::Parent(4096, hash(&blocks[2]))]);
    let (one, two) = (chain.write("one.hxz", &refers), chain.write("two.hxz", &refers));
    let options = OpenOptions { registry: Arc::new(Registry::default()), ..options() };
    let [base, one, two] = [base, one, two].map(|path| open_with(&path, options.clone()).unwrap());
    assert!(Arc::ptr_eq(&one.parents()[0], &two.parents()[0]));
    assert!(Arc::ptr_eq(&one.parents()[0], &base));
    assert!(base.cached_slices(Stream::Main, 8192, 4096).is_none());
    read_all(&one).unwrap();
    assert!(base.cached_slices(Stream::Main, 8192, 4096).is_some());
    let used = options.cache.used_bytes();
    assert!(read_all(&two).unwrap() == blocks[2]);
    assert!(options.cache.used_bytes() - used < 4096, "only the page of the second child is new");
}

/// Bytes for bytes of the same layout: the index of the child fits both.
#[test]
fn a_replaced_parent_is_noticed_by_hashes_or_by_its_pin() {
    // Family A has no hashes.
    let chain = Chain::new();
    let child = chain.copy("v045-thin-commit.hxz");
    let fixture = fixtures::named("v045-thin-commit.hxz");
    let base_name =
        Path::new(&fixture.parents[0]).file_name().unwrap().to_str().unwrap().to_owned();
    let base = chain.copy(&base_name);
    let digest = hash(&fs::read(&base).unwrap());
    let pinned = OpenOptions { parent_digests: vec![[1; 32], digest], ..options() };
    let file = open_with(&child, pinned.clone()).unwrap();
    assert_eq!(sha256(&read_all(&file).unwrap()), fixture.main.as_ref().unwrap().sha256);
    // Another valid snapshot under the name of the parent.
    fs::copy(fixtures::path("v020-lz4-multipage.hxz"), chain.path("new")).unwrap();
    fs::rename(chain.path("new"), &base).unwrap();
    // As long as the child is open, it has the parent that it had.
    let again = open_with(&child, pinned.clone()).unwrap();
    assert!(Arc::ptr_eq(&again, &file));
    let pinned = OpenOptions { registry: Arc::default(), ..pinned };
    let error = open_with(&child, pinned).unwrap_err();
    let found = blake3::hash(&fs::read(&base).unwrap()).to_hex();
    assert!(matches!(error.kind, ErrorKind::UnpinnedParent { .. }), "{error}");
    for part in ["v045-thin-commit.hxz", &base_name, "parent-blake3", found.as_str()] {
        assert!(error.to_string().contains(part), "{error}");
    }
    // Where there are hashes, references into another parent do not resolve.
    let chain = Chain::new();
    let (base, blocks) = parent();
    let mut other = base.clone();
    other.blocks[1] = Piece::Data(noise(77, 4096));
    let path = chain.write("base.hxz", &base);
    let pieces: Vec<Piece> = blocks.iter().map(|block| Piece::Parent(4096, hash(block))).collect();
    for variable_blocks in [true, false] {
        let mut refers = child_of(variable_blocks, &pieces);
        refers.parents = vec!["base.hxz".into()];
        let child = chain.write("child.hxz", &refers);
        fs::write(&path, other.encode()).unwrap();
        let file = open(&child).unwrap();
        let error = file.read_at(Stream::Main, 4096, 10).unwrap_err();
        assert!(is_unresolvable(&error), "{error}");
        assert!(file.read_at(Stream::Main, 0, 4096).unwrap() == blocks[0]);
    }
}

fn child_of(variable_blocks: bool, pieces: &[Piece]) -> Contents {
    child(variable_blocks, pieces.to_vec())
}

#[test]
fn a_stream_that_only_the_parent_has_is_not_invented() {
    let chain = Chain::new();
    chain.write("base.hxz", &parent().0);
    let mut contents = child(true, vec![Piece::Zeros(4096)]).encode();
    // The declared size of a stream without pages: the last eight bytes are the auxiliary one's.
    let at = contents.len() - 8;
    contents[at] = 100;
    fs::write(chain.path("child.hxz"), contents).unwrap();
    let error = open(&chain.path("child.hxz")).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::StreamSize { .. }), "{error}");
}

fn server(arguments: &[String]) -> Process {
    Process::start(arguments)
}

fn digest(server: &Process, export: &str) -> String {
    let copy = tempfile::NamedTempFile::new().unwrap();
    Client::new("nbdcopy").arg(server.uri(export)).arg(copy.path()).run().succeeded();
    sha256(&fs::read(copy.path()).unwrap())
}

#[test]
fn thin_snapshots_are_served_verified_and_shown_with_their_parents() {
    let chain = Chain::new();
    let child = chain.copy_as("v082-thin-grandchild.hxz", "images/grandchild.hxz");
    for name in ["v082-thin-base.hxz", "v082-thin-child.hxz"] {
        chain.copy_as(name, &format!("bases/{name}"));
    }
    let bases = chain.path("bases").display().to_string();
    let expected = fixtures::named("v082-thin-grandchild.hxz").main.unwrap();
    let digests: Vec<String> = ["v082-thin-base.hxz", "v082-thin-child.hxz"]
        .map(|name| blake3::hash(&fs::read(fixtures::path(name)).unwrap()).to_hex().to_string())
        .into();
    let pinned = format!(
        "pinned={},parent-blake3={},parent-blake3={}",
        child.display(),
        digests[0],
        digests[1]
    );
    let badly = format!("badly={},parent-blake3={}", child.display(), digests[1]);
    let arguments = ["--parent-dir", &bases, &child.display().to_string(), &pinned, &badly, &bases];
    let server = server(&arguments.map(str::to_owned));
    assert_eq!(digest(&server, "grandchild"), expected.sha256);
    assert_eq!(digest(&server, "pinned"), expected.sha256);
    server.wait_until(
        |line| line["export"] == "badly" && line["error"].to_string().contains(&digests[0]),
        1,
    );
    let map = Client::new("nbdinfo")
        .args(["--map=hexz:parent-depth", "--json"])
        .arg(server.uri("grandchild"))
        .run()
        .succeeded();
    let map = String::from_utf8(map.stdout).unwrap();
    for depth in ["\"type\": 0", "\"type\": 1", "\"type\": 2"] {
        assert!(map.contains(depth), "{map}");
    }

    let verify =
        |options: &[&str]| Client::new(HEXZ_NBD).arg("verify").args(options).arg(&child).run();
    verify(&["--parent-dir", &bases]).succeeded();
    assert!(verify(&[]).failed().stderr.contains("v082-thin-child.hxz is not there"));
    let inspect = Client::new(HEXZ_NBD).args(["inspect", "--parent-dir", &bases]).arg(&child);
    let text = String::from_utf8(inspect.run().succeeded().stdout).unwrap();
    assert!(text.contains("parent file: ") && text.contains("bases/v082-thin-child.hxz"), "{text}");
    assert!(!text.contains("unnoticed"), "{text}");
    let family_a = Client::new(HEXZ_NBD).arg("inspect").arg(fixtures::path("v045-thin-commit.hxz"));
    let text = String::from_utf8(family_a.run().succeeded().stdout).unwrap();
    assert!(text.contains("unnoticed") && text.contains("parent-blake3="), "{text}");
}

#[test]
fn damage_in_a_parent_is_an_error_in_the_child_where_it_is_used() {
    let chain = Chain::new();
    let (base, blocks) = parent();
    let mut contents = base.encode();
    // In the stored bytes of its second block.
    contents[4096 + 4200 + 50] ^= 1;
    fs::write(chain.path("base.hxz"), contents).unwrap();
    let pieces: Vec<Piece> = blocks.iter().map(|b| Piece::Parent(4096, hash(b))).collect();
    let path = chain.write("child.hxz", &child_of(true, &pieces));
    let file = open(&path).unwrap();
    let error = file.read_at(Stream::Main, 4096, 1).unwrap_err();
    assert!(error.to_string().contains("base.hxz: damaged block"), "{error}");
    assert!(file.read_at(Stream::Main, 8192, 4096).unwrap() == blocks[2]);
    let verified = Client::new(HEXZ_NBD).arg("verify").arg(&path).run().failed();
    let stdout = String::from_utf8(verified.stdout).unwrap();
    assert!(stdout.starts_with("main 4096+4096: "), "{stdout}");
}

#[test]
fn a_snapshot_is_served_as_soon_as_its_parent_is_there() {
    let chain = Chain::new();
    let (base, blocks) = parent();
    let bases = chain.path("bases");
    fs::create_dir(&bases).unwrap();
    let child = chain.write("child.hxz", &child_of(true, &[Piece::Parent(4096, hash(&blocks[3]))]));
    let other = chain.copy("v082-onebyte.hxz");
    let arguments = [Path::new("--parent-dir"), &bases, &child, &other];
    let server = Process::start(arguments);
    server.wait_until(|line| line["error"].to_string().contains("base.hxz is not there"), 1);
    fs::write(chain.path("new"), base.encode()).unwrap();
    fs::rename(chain.path("new"), bases.join("base.hxz")).unwrap();
    server.wait_for("reloaded", 1);
    assert_eq!(digest(&server, "child"), sha256(&blocks[3]));
}
