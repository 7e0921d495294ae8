//! What nobody can notice, because nothing in the files says otherwise: shown for what it is, and
//! how a manifest that is required puts an end to it.
//!
//! Those of converted archives, of images without a size and of dictionaries in family A are in the
//! module above. Two of these here are a single bit: of a name, and of a flag.

use std::path::Path;

use hexz_nbd::snapshot::format::header::candidates;
use hexz_nbd::snapshot::{ErrorKind, Family};

use crate::damage::scene::{PASSPHRASE, Scene, anybody, manifest_required, three_pages};
use crate::support::contents::{Contents, Piece};
use crate::support::fixtures;
use crate::support::packing::noise;
use crate::support::signed::{memory, structure};

/// Signs a snapshot, changes it, and gives what is read of it then. With a manifest required it is
/// an error.
fn read_after(
    scene: &Scene,
    name: &str,
    parents: &[&str],
    change: impl FnOnce(&mut Vec<u8>),
) -> Vec<u8> {
    for parent in parents {
        scene.sign(parent, &[]);
    }
    scene.sign(name, parents);
    let intact = scene.content(name, manifest_required()).unwrap();
    assert!(scene.content(name, anybody()).unwrap() == intact);
    let mut changed = scene.read(name).to_vec();
    change(&mut changed);
    scene.write(name, changed);
    let error = scene.content(name, manifest_required()).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Manifest(_)), "{error}");
    let bytes = scene.content(name, anybody()).unwrap();
    assert!(bytes != intact, "it was meant to be noticed by nobody");
    bytes
}

/// Where the entries of the first page are.
fn entries_at(snapshot: &[u8]) -> usize {
    structure(memory(snapshot.to_vec())).unwrap().index().main[0].offset as usize + 8
}

/// Format section 10. Encryption does not help: entries are not part of what is encrypted.
#[test]
fn an_entry_of_data_that_became_one_of_zeros() {
    for passphrase in [None, Some(PASSPHRASE)] {
        let contents = three_pages(Family::C, passphrase, 1);
        let scene = Scene::new();
        scene.write("disk.hxz", contents.encode());
        let plain = scene.content("disk.hxz", anybody()).unwrap();
        let bytes = read_after(&scene, "disk.hxz", &[], |snapshot| {
            // All of the second entry but its length in the stream.
            let entry = entries_at(snapshot) + 52;
            snapshot[entry..entry + 12].fill(0);
            snapshot[entry + 16..entry + 52].fill(0);
        });
        assert!(bytes == [&plain[..200], &[0; 200], &plain[400..]].concat());
    }
}

/// Format section 10: the master index is not encrypted either, and has no checksum.
#[test]
fn an_end_that_was_cut_off_with_its_pages() {
    for passphrase in [None, Some(PASSPHRASE)] {
        let scene = Scene::new();
        scene.write("disk.hxz", three_pages(Family::C, passphrase, 1).encode());
        let plain = scene.content("disk.hxz", anybody()).unwrap();
        let bytes = read_after(&scene, "disk.hxz", &[], |snapshot| {
            let structure = structure(memory(snapshot.clone())).unwrap();
            let mut index = structure.index().clone();
            index.main_bytes = index.main.pop().unwrap().start_logical;
            snapshot.truncate(structure.header().index_offset as usize);
            snapshot.extend(index.encode());
        });
        assert!(bytes == plain[..1600]);
    }
}

/// Format section 12: nothing in a child tells one parent from another but hashes, and entries of
/// family A have none. The recorded name is part of a header without a checksum.
#[test]
fn a_bit_in_the_name_of_a_parent_of_family_a() {
    let scene = Scene::new();
    for name in ["v045-lz4-aux.hxz", "v055-lz4-fixed.hxz", "v045-thin-commit.hxz"] {
        scene.write(name, fixtures_bytes(name));
    }
    for name in ["v055-thin-commit.hxz", "v045-thin-grandchild.hxz"] {
        scene.write(name, fixtures_bytes(name));
    }
    scene.sign("v045-lz4-aux.hxz", &[]);
    scene.sign("v055-lz4-fixed.hxz", &[]);
    scene.sign("v055-thin-commit.hxz", &["v055-lz4-fixed.hxz"]);
    scene.sign("v045-thin-commit.hxz", &["v045-lz4-aux.hxz"]);
    scene.sign("v045-thin-grandchild.hxz", &["v045-thin-commit.hxz"]);
    let plain = scene.content("v045-thin-grandchild.hxz", manifest_required()).unwrap();

    let mut snapshot = scene.read("v045-thin-grandchild.hxz").to_vec();
    let recorded =
        candidates(&snapshot[..4096], snapshot.len() as u64).unwrap()[0].parents[0].clone();
    let name = Path::new(&recorded).file_name().unwrap().to_str().unwrap();
    let at = snapshot.windows(name.len()).position(|bytes| bytes == name.as_bytes()).unwrap();
    snapshot[at + 2] ^= b'4' ^ b'5';
    assert_eq!((b'4' ^ b'5').count_ones(), 1);
    scene.write("v045-thin-grandchild.hxz", snapshot);
    let bytes = scene.content("v045-thin-grandchild.hxz", anybody()).unwrap();
    assert!(bytes.len() == plain.len() && bytes != plain);
    scene.content("v045-thin-grandchild.hxz", manifest_required()).unwrap_err();
}

fn fixtures_bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixtures::path(name)).unwrap()
}

fn reference(length: u32, hash_of: &[u8]) -> Piece {
    Piece::Parent(length, *blake3::hash(hash_of).as_bytes())
}

/// Format section 12: the hash in a reference that a commit made is that of the block of the parent
/// that holds its first byte. Of the other blocks that it goes across there is none.
#[test]
fn a_parent_that_differs_behind_the_block_of_which_a_commit_has_the_hash() {
    for family in [Family::B, Family::C] {
        let parent = |second| Contents {
            family,
            blocks: vec![Piece::Data(noise(1, 300)), Piece::Data(noise(second, 300))],
            ..Contents::default()
        };
        let child = Contents {
            family,
            parents: vec!["parent.hxz".into()],
            blocks: vec![reference(600, &noise(1, 300))],
            ..Contents::default()
        };
        let scene = Scene::new();
        scene.write("parent.hxz", parent(2).encode());
        scene.write("disk.hxz", child.encode());
        scene.sign("parent.hxz", &[]);
        scene.sign("disk.hxz", &["parent.hxz"]);
        let plain = scene.content("disk.hxz", manifest_required()).unwrap();
        assert!(plain == [noise(1, 300), noise(2, 300)].concat());
        // With a right manifest of its own.
        scene.write("parent.hxz", parent(3).encode());
        scene.sign("parent.hxz", &[]);
        let bytes = scene.content("disk.hxz", anybody()).unwrap();
        assert!(bytes == [noise(1, 300), noise(3, 300)].concat());
        scene.content("disk.hxz", manifest_required()).unwrap_err();
    }
}

/// A parent of four blocks, and a child with what the test wants.
fn over_four_blocks(family: Family, variable_blocks: bool, blocks: Vec<Piece>) -> Scene {
    let pieces = (0..4).map(|seed| Piece::Data(noise(seed, 400))).collect();
    let parent = Contents { family, blocks: pieces, ..Contents::default() };
    let parents = vec!["parent.hxz".into()];
    let child = Contents { family, parents, variable_blocks, blocks, ..Contents::default() };
    let scene = Scene::new();
    scene.write("parent.hxz", parent.encode());
    scene.write("disk.hxz", child.encode());
    scene
}

/// A reference without a hash is read by its place.
#[test]
fn a_reference_of_which_the_hash_was_wiped_out() {
    let scene = over_four_blocks(Family::D, true, vec![reference(400, &noise(2, 400))]);
    let bytes = read_after(&scene, "disk.hxz", &["parent.hxz"], |snapshot| {
        let hash = entries_at(snapshot) + 20;
        snapshot[hash..hash + 32].fill(0);
    });
    assert!(bytes == noise(0, 400));
}

/// Format section 12: the flag is all that tells the references of a commit, which are read by their
/// place, from those of other writers. A commit whose blocks are as long as those of the parent, but
/// begin elsewhere, reads otherwise with the other flag.
#[test]
fn the_flag_that_tells_a_commit_from_other_writers() {
    let blocks = vec![Piece::Data(noise(9, 100)), reference(400, &noise(0, 400))];
    let scene = over_four_blocks(Family::C, false, blocks);
    let commit = scene.read("disk.hxz");
    let bytes = read_after(&scene, "disk.hxz", &["parent.hxz"], |snapshot| {
        let flag = snapshot[..4096].iter().rposition(|byte| *byte != 0).unwrap() + 2;
        snapshot[flag] = 1;
        let header = &candidates(&snapshot[..4096], snapshot.len() as u64).unwrap()[0];
        assert!(header.variable_blocks && header.has_main && !header.has_auxiliary);
    });
    let changed = scene.read("disk.hxz");
    let flips = commit.iter().zip(&changed[..]).map(|(one, other)| (one ^ other).count_ones());
    assert_eq!(flips.sum::<u32>(), 1);
    assert!(bytes == [noise(9, 100), noise(0, 400)].concat());
}
