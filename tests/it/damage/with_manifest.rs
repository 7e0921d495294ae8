//! Snapshots that are read through a manifest which is required: nothing but what was signed
//! leaves them, whatever is done to them, before they are opened or after.

use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use hexz_nbd::snapshot::{
    Cache, Error, ErrorKind, Family, File, OpenOptions, Root, Stream, manifest::ManifestErrorKind,
};

use crate::damage::scene::{
    Kind, PASSPHRASE, Scene, anybody, kinds, manifest_required, three_pages,
};
use crate::support::contents::{Contents, Piece};
use crate::support::packing::noise;
use crate::support::signed::{self, Placed, memory, structure};

/// Why a snapshot is not what was signed.
fn refusal(error: &Error) -> &ManifestErrorKind {
    match &error.kind {
        ErrorKind::Manifest(manifest) => &manifest.kind,
        ErrorKind::Parent(parent) => refusal(parent),
        _ => panic!("{error}"),
    }
}

impl Kind {
    fn scene(&self) -> Scene {
        let scene = Scene::new();
        let mut parents = Vec::new();
        if let Some(parent) = &self.parent {
            scene.write("parent.hxz", parent.encode());
            scene.sign("parent.hxz", &[]);
            parents.push("parent.hxz");
        }
        scene.write("disk.hxz", self.snapshot.encode());
        scene.sign("disk.hxz", &parents);
        scene
    }
}

#[test]
fn no_byte_of_snapshot_manifest_parent_or_its_manifest_can_be_another() {
    for kind in kinds() {
        let scene = kind.scene();
        let options = || OpenOptions { registry: Arc::default(), ..manifest_required() };
        let options = || OpenOptions { cache: Arc::new(Cache::new(1 << 12)), ..options() };
        assert!(scene.content("disk.hxz", options()).unwrap() == kind.plain, "{}", kind.name);
        let mut files = vec!["disk.hxz", "disk.hxz.manifest"];
        if kind.parent.is_some() {
            files.extend(["parent.hxz", "parent.hxz.manifest"]);
        }
        for file in files {
            scene.with_each_byte_flipped(file, |at| match scene.content("disk.hxz", options()) {
                Err(_) => {}
                // The root of a parent is in the manifest of its child. Who signed it does not matter,
                // nor what of it is not used.
                Ok(bytes) => {
                    assert!(file.starts_with("parent"), "{}: byte {at} of {file}", kind.name);
                    assert!(bytes == kind.plain, "{}: byte {at} of {file}", kind.name);
                }
            });
        }
    }
}

/// The pages look alike: as many blocks, as long. Without a manifest nothing tells that they have
/// changed places, but where the number of a block belongs to its encryption.
#[test]
fn swapped_pages_are_an_error_where_they_are_read() {
    for (family, passphrase) in
        [(Family::A, None), (Family::C, None), (Family::C, Some(PASSPHRASE))]
    {
        let contents = three_pages(family, passphrase, 1);
        let scene = Scene::new();
        scene.write("disk.hxz", contents.encode());
        scene.sign("disk.hxz", &[]);
        let plain = scene.content("disk.hxz", manifest_required()).unwrap();

        let mut swapped = scene.read("disk.hxz").to_vec();
        swap_pages(&mut swapped);
        scene.write("disk.hxz", swapped);
        match scene.content("disk.hxz", anybody()) {
            Ok(bytes) => {
                assert!(passphrase.is_none());
                assert!(bytes == [&plain[800..1600], &plain[..800], &plain[1600..]].concat());
            }
            Err(_) => assert!(passphrase.is_some()),
        }
        let file = scene.open("disk.hxz", manifest_required()).unwrap();
        for (at, page) in [(0, 0), (799, 0), (800, 1)] {
            let error = file.read_at(Stream::Main, at, 1).unwrap_err();
            let stream = Stream::Main;
            let refusal = refusal(&error);
            assert!(
                matches!(refusal, ManifestErrorKind::Page { stream: s, page: p, .. }
                    if (*s, *p) == (stream, page)),
                "{error}"
            );
        }
        assert!(file.read_at(Stream::Main, 1600, 800).unwrap() == plain[1600..]);
    }
}

/// The first two, in place.
fn swap_pages(snapshot: &mut [u8]) {
    let [first, second, ..] = pages(snapshot)[..] else { panic!() };
    let kept = snapshot[first.0..first.1].to_vec();
    snapshot.copy_within(second.0..second.1, first.0);
    snapshot[second.0..second.1].copy_from_slice(&kept);
}

/// Begin and end of each, in the file.
fn pages(snapshot: &[u8]) -> Vec<(usize, usize)> {
    let structure = structure(memory(snapshot.to_vec())).unwrap();
    let pages = structure.index().main.iter();
    pages.map(|page| (page.offset as usize, page.offset as usize + page.length as usize)).collect()
}

/// An older state of the disk that was signed as well, of the same layout: all its checksums and
/// hashes are right, and so is the master index. Parts of it come into the newer one after that was
/// opened, and nothing is left in the cache.
#[test]
fn parts_of_an_older_snapshot_in_a_newer_one_that_is_open_are_an_error() {
    for (family, passphrase) in
        [(Family::A, None), (Family::C, None), (Family::C, Some(PASSPHRASE))]
    {
        let [old, new] =
            [1, 2].map(|seed| Bytes::from(three_pages(family, passphrase, seed).encode()));
        let index_offset = structure(memory(new.clone())).unwrap().header().index_offset as usize;
        assert!(old.len() == new.len() && old[index_offset..] == new[index_offset..]);
        let manifest = signed::sign(&new, &[]).unwrap();
        let open = |options: OpenOptions| {
            let storage = Arc::new(Placed::new(new.clone(), Some(manifest.clone()), None));
            let options = OpenOptions { cache: Arc::new(Cache::new(0)), ..options };
            let file = File::open_with(Arc::<Placed>::clone(&storage), options).unwrap();
            (storage, file)
        };
        let plain = open(anybody()).1.read_at(Stream::Main, 0, 2400).unwrap();
        let [_, (start, end), _] = pages(&new)[..] else { panic!() };
        let blocks = pages(&new)[0].1..start;
        let replays = [
            ("page", start..end),
            ("blocks", blocks.clone()),
            ("page and blocks", blocks.start..end),
            ("all but the header and the index", 4096..index_offset),
        ];
        for (what, range) in replays {
            let mut replayed = new.to_vec();
            replayed[range.clone()].copy_from_slice(&old[range]);
            let (storage, file) = open(manifest_required());
            assert!(file.read_at(Stream::Main, 0, 2400).unwrap() == plain);
            storage.replace(replayed.clone().into());
            for at in (0..2400).step_by(200) {
                match file.read_at(Stream::Main, at as u64, 200) {
                    Ok(bytes) => assert!(bytes == plain[at..at + 200], "{what} at {at}"),
                    // A block that was signed is read while its page is.
                    Err(error) => assert!(
                        (800..1600).contains(&at) || what.starts_with("all"),
                        "{what} at {at}: {error}"
                    ),
                }
            }
            file.read_at(Stream::Main, 800, 1).unwrap_err();
            if what == "page and blocks" {
                let (storage, file) = open(anybody());
                storage.replace(replayed.into());
                let bytes = file.read_at(Stream::Main, 800, 800).unwrap();
                assert!(bytes != plain[800..1600], "nothing else notices");
            }
        }
    }
}

#[test]
fn a_snapshot_that_was_cut_off_is_an_error_before_it_is_opened_and_after() {
    for kind in kinds() {
        let scene = kind.scene();
        let intact = scene.read("disk.hxz");
        let open = scene.open("disk.hxz", manifest_required()).unwrap();
        for length in (0..intact.len()).step_by(97).chain(4000..intact.len()) {
            scene.write("disk.hxz", &intact[..length]);
            scene.open("disk.hxz", manifest_required()).unwrap_err();
        }
        // Who has the whole one open reads on in it.
        assert!(open.read_at(Stream::Main, 0, 1 << 20).unwrap() == kind.plain);

        // This one becomes shorter while it is open.
        scene.write("disk.hxz", &intact);
        let options = OpenOptions { cache: Arc::new(Cache::new(0)), ..manifest_required() };
        let open = scene.open("disk.hxz", options).unwrap();
        let file = fs::OpenOptions::new().write(true).open(scene.path("disk.hxz")).unwrap();
        file.set_len(4096).unwrap();
        let error = open.read_at(Stream::Main, 0, 1).unwrap_err();
        assert!(error.to_string().contains("cannot read"), "{}: {error}", kind.name);
    }
}

/// Of the same layout, and by the same key.
#[test]
fn the_manifest_of_another_snapshot_is_refused_and_so_is_none() {
    for family in [Family::A, Family::C] {
        let scene = Scene::new();
        for (name, seed) in [("one.hxz", 1), ("two.hxz", 2)] {
            scene.write(name, three_pages(family, None, seed).encode());
            scene.sign(name, &[]);
            scene.open(name, manifest_required()).unwrap();
        }
        scene.write("one.hxz.manifest", scene.read("two.hxz.manifest"));
        // The same header and index: what tells them apart are the pages.
        let error = scene.content("one.hxz", manifest_required()).unwrap_err();
        assert!(matches!(refusal(&error), ManifestErrorKind::Page { .. }), "{error}");
        // Where that is so, one passes under the name of the other, manifest and all.
        scene.write("one.hxz", scene.read("two.hxz"));
        assert!(scene.content("one.hxz", manifest_required()).is_ok());

        fs::remove_file(scene.path("one.hxz.manifest")).unwrap();
        let error = scene.open("one.hxz", manifest_required()).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::NoManifest { .. }), "{error}");
    }
}

/// By the same key, with its own manifest, and of the same layout.
#[test]
fn a_parent_that_is_another_signed_snapshot_is_refused() {
    for kind in kinds() {
        let Some(parent) = &kind.parent else { continue };
        let scene = kind.scene();
        let mut other: Contents = parent.clone();
        other.blocks[0] = Piece::Data(noise(9, 70));
        let root: Root = {
            scene.write("parent.hxz", other.encode());
            scene.sign("parent.hxz", &[])
        };
        assert!(scene.open("parent.hxz", manifest_required()).is_ok());
        let error = scene.open("disk.hxz", manifest_required()).unwrap_err();
        assert!(
            matches!(refusal(&error), ManifestErrorKind::OtherRoot { stated, .. } if *stated == root),
            "{error}"
        );
        assert!(error.to_string().contains("parent.hxz"), "{error}");
        // Without a manifest, hashes tell where there are any. Family A has none.
        match scene.content("disk.hxz", anybody()) {
            Ok(bytes) => assert!(kind.snapshot.family == Family::A && bytes != kind.plain),
            Err(error) => assert!(kind.snapshot.family == Family::D, "{error}"),
        }
        // Nor does a parent do that nobody signed, right as it is.
        scene.write("parent.hxz", parent.encode());
        scene.sign("parent.hxz", &[]);
        assert!(scene.content("disk.hxz", manifest_required()).unwrap() == kind.plain);
        fs::remove_file(scene.path("parent.hxz.manifest")).unwrap();
        let error = scene.open("disk.hxz", manifest_required()).unwrap_err();
        let ErrorKind::Parent(error) = error.kind else { panic!("{error}") };
        assert!(matches!(error.kind, ErrorKind::NoManifest { .. }), "{error}");
    }
}
