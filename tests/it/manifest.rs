//! The detached manifest: whatever is done to a snapshot or to its manifest, it is noticed.

use std::sync::Arc;

use bytes::Bytes;
use hexz_nbd::snapshot::manifest::build::BuildError;
use hexz_nbd::snapshot::manifest::{Manifest, ManifestErrorKind, Root, Trust};
use hexz_nbd::snapshot::{Damage, ErrorKind, Family, SigningKey, Stream};
use tempfile::TempDir;

use crate::support::fixtures::{self, Fixture, Kind};
use crate::support::process;
use crate::support::signed::{
    Flipped, Refusal, Replaced, blocks_are_whole, bytes, check, key, memory, parent_roots, sign,
    sign_fixture, structure,
};

fn valid() -> Vec<Fixture> {
    fixtures::all().into_iter().filter(|fixture| fixture.kind == Kind::Valid).collect()
}

fn root_of(snapshot: &Bytes, manifest: &Bytes) -> Root {
    let structure = structure(memory(snapshot.clone())).unwrap();
    Manifest::read(memory(manifest.clone()), &structure).unwrap().root()
}

fn refusal(snapshot: &Bytes, manifest: &Bytes) -> Refusal {
    check(memory(snapshot.clone()), memory(manifest.clone())).unwrap_err()
}

#[test]
fn every_snapshot_that_hexz_can_make_has_a_manifest_that_fits() {
    for fixture in valid() {
        let (snapshot, manifest) = (bytes(&fixture.file), sign_fixture(&fixture));
        let checked = check(memory(snapshot.clone()), memory(manifest.clone()));
        let checked = checked.unwrap_or_else(|refusal| panic!("{}: {refusal:?}", fixture.file));
        let structure = structure(memory(snapshot)).unwrap();
        assert!(checked.dictionary == structure.dictionary().unwrap());
        assert!(checked.metadata == structure.metadata().unwrap());

        let manifest = Manifest::read(memory(manifest), &structure).unwrap();
        assert_eq!(manifest.parent_roots(), parent_roots(&fixture), "{}", fixture.file);
        let has_blocks = structure.index().first_page().is_some();
        let lacks_hashes = structure.family() == Family::A || fixture.encrypted;
        assert_eq!(manifest.has_own_hashes(), lacks_hashes && has_blocks, "{}", fixture.file);
        let root = manifest.root();
        assert!(manifest.check(Trust::Root(root), &structure).is_ok());
        let mut other = *root.as_bytes();
        other[31] ^= 1;
        let result = manifest.check(Trust::Root(Root::from_bytes(other)), &structure);
        assert!(matches!(result.unwrap_err().kind, ManifestErrorKind::OtherRoot { .. }));
        for keys in [&[][..], &[key(2).verify_key()]] {
            let result = manifest.check(Trust::Keys(keys), &structure);
            assert!(matches!(result.unwrap_err().kind, ManifestErrorKind::UnknownKey(_)));
        }
    }
}

/// What `docs/manifest.md` says, once more and without our code but that which finds the pages.
#[test]
fn a_manifest_is_laid_out_as_documented() {
    for name in
        ["v082-lz4-aux.hxz", "v045-lz4-aux.hxz", "v082-two-parents.hxz", "v020-zstd-dict.hxz"]
    {
        let fixture = fixtures::named(name);
        let (snapshot, manifest) = (bytes(name), sign_fixture(&fixture));
        let structure = structure(memory(snapshot.clone())).unwrap();
        let header = structure.header();
        let own = structure.family() == Family::A;
        let parents = parent_roots(&fixture);

        let mut root = blake3::Hasher::new_derive_key("hexz-nbd manifest v1 root");
        root.update(&(snapshot.len() as u64).to_le_bytes());
        root.update(&snapshot[..4096]);
        let dictionary = header
            .dictionary
            .map_or(&[][..], |span| &snapshot[span.offset as usize..span.end() as usize]);
        for part in [dictionary, &snapshot[header.index_offset as usize..]] {
            root.update(&(part.len() as u64).to_le_bytes());
            root.update(part);
        }
        let (mut leaves, mut hashes) = (Vec::new(), Vec::new());
        for record in Stream::ALL.iter().flat_map(|stream| structure.index().pages(*stream)) {
            let mut leaf = blake3::Hasher::new_derive_key("hexz-nbd manifest v1 page");
            leaf.update(&snapshot[record.offset as usize..][..record.length as usize]);
            for entry in structure.entries(record).unwrap().iter().filter(|_| own) {
                let is_data = entry.length != 0 && entry.logical_length != 0;
                let stored = &snapshot[entry.offset as usize..][..entry.length as usize];
                let hash = if is_data { *blake3::hash(stored).as_bytes() } else { [0; 32] };
                leaf.update(&hash);
                hashes.extend(hash);
            }
            leaves.extend(leaf.finalize().as_bytes());
        }
        root.update(&[u8::from(own)]);
        root.update(&(leaves.len() as u64 / 32).to_le_bytes());
        root.update(&leaves);
        root.update(&(parents.len() as u64).to_le_bytes());
        for parent in &parents {
            root.update(parent.as_bytes());
        }
        let root = *root.finalize().as_bytes();
        let message = [&b"hexz-nbd manifest v1 signature\0"[..], &root].concat();

        let mut expected = b"HXZMAN01".to_vec();
        expected.extend((snapshot.len() as u64).to_le_bytes());
        expected.extend((leaves.len() as u64 / 32).to_le_bytes());
        expected.extend([u8::from(own), parents.len() as u8, 0, 0, 0, 0, 0, 0]);
        expected.extend(parents.iter().flat_map(|parent| *parent.as_bytes()));
        expected.extend(root);
        expected.extend(key(1).verify_key().as_bytes());
        expected.extend(key(1).sign(&message).unwrap());
        expected.extend(leaves);
        expected.extend(hashes);
        assert!(manifest == expected, "{name}");
    }
}

#[test]
fn no_bit_of_a_manifest_can_be_another() {
    for name in ["v082-lz4-aux.hxz", "v082-two-parents.hxz", "v045-thin-grandchild.hxz"] {
        let (snapshot, manifest) = (bytes(name), sign_fixture(&fixtures::named(name)));
        for at in 0..manifest.len() {
            // Every bit of what is not a hash.
            let masks = if at < 256 { &[1, 2, 4, 8, 16, 32, 64, 128][..] } else { &[4] };
            for mask in masks {
                let flipped = Flipped { bytes: manifest.clone(), at, mask: *mask };
                let result = check(memory(snapshot.clone()), Arc::new(flipped));
                assert!(result.is_err(), "{name}: byte {at}, mask {mask}");
            }
        }
    }
}

#[test]
fn no_byte_of_a_snapshot_can_be_another() {
    for (name, masks) in [
        ("v082-onebyte.hxz", &[1, 2, 4, 8, 16, 32, 64, 128][..]),
        ("v082-parent-b.hxz", &[0x01, 0x80]),
        ("v082-two-parents.hxz", &[0x10]),
        ("v082-zeros-lz4.hxz", &[0x04]),
        ("v045-thin-grandchild.hxz", &[0x20]),
    ] {
        let fixture = fixtures::named(name);
        let (snapshot, manifest) = (bytes(name), sign_fixture(&fixture));
        for at in 0..snapshot.len() {
            for mask in masks {
                let flipped = || Arc::new(Flipped { bytes: snapshot.clone(), at, mask: *mask });
                let result = check(flipped(), memory(manifest.clone()));
                // What the manifest has no hash of, the signed entries have one of.
                let is_whole =
                    result.is_ok() && (!fixture.is_plain() || blocks_are_whole(flipped()));
                let is_block = result.is_ok() && !fixture.is_plain() && in_block(&snapshot, at);
                assert!(!is_whole || is_block, "{name}: byte {at}, mask {mask}");
            }
        }
    }
}

/// Whether a byte is one of a stored block whose plain bytes have a hash.
fn in_block(snapshot: &Bytes, at: usize) -> bool {
    let structure = structure(memory(snapshot.clone())).unwrap();
    let pages = Stream::ALL.iter().flat_map(|stream| structure.index().pages(*stream));
    let mut entries = pages.flat_map(|record| structure.entries(record).unwrap());
    entries.any(|entry| {
        let range = entry.offset..entry.offset.saturating_add(entry.length.into());
        entry.hash != [0; 32] && range.contains(&(at as u64))
    })
}

#[test]
fn a_flipped_bit_of_an_encrypted_snapshot_is_noticed_without_its_key() {
    let fixture = fixtures::named("v082-enc-zstd-fixed-aux.hxz");
    let (snapshot, manifest) = (bytes(&fixture.file), sign_fixture(&fixture));
    for at in (0..snapshot.len()).step_by(61).chain(0..200) {
        let flipped = Flipped { bytes: snapshot.clone(), at, mask: 1 << (at % 8) };
        assert!(check(Arc::new(flipped), memory(manifest.clone())).is_err(), "byte {at}");
    }
}

#[test]
fn a_manifest_or_a_snapshot_of_another_length_is_refused() {
    for name in ["v082-parent-b.hxz", "v014-zstd-cdc.hxz"] {
        let fixture = fixtures::named(name);
        let (snapshot, manifest) = (bytes(name), sign_fixture(&fixture));
        for length in 0..manifest.len() {
            let refusal = refusal(&snapshot, &manifest.slice(..length));
            assert!(matches!(refusal, Refusal::Manifest(_)), "{name}: {length}: {refusal:?}");
        }
        for length in [0, 1, 4095, 4128, snapshot.len() - 64, snapshot.len() - 1] {
            check(memory(snapshot.slice(..length)), memory(manifest.clone())).unwrap_err();
        }
        let longer = |bytes: &Bytes| Bytes::from([&bytes[..], &[0]].concat());
        let refused = refusal(&snapshot, &longer(&manifest));
        let is_length = matches!(refused, Refusal::Manifest(ManifestErrorKind::Length { .. }));
        assert!(is_length, "{refused:?}");
        let refused = refusal(&longer(&snapshot), &manifest);
        let is_other =
            matches!(refused, Refusal::Manifest(ManifestErrorKind::OtherSnapshot { .. }));
        assert!(is_other, "{refused:?}");
    }
}

#[test]
fn the_manifest_of_another_snapshot_is_refused() {
    let fixtures = valid();
    let manifests: Vec<Bytes> = fixtures.iter().map(sign_fixture).collect();
    for (number, fixture) in fixtures.iter().enumerate() {
        let snapshot = bytes(&fixture.file);
        for (other, manifest) in manifests.iter().enumerate() {
            let fits = check(memory(snapshot.clone()), memory(manifest.clone())).is_ok();
            assert_eq!(fits, number == other, "{} and {}", fixture.file, fixtures[other].file);
        }
    }
}

/// Two pages that were signed, each in the place of the other.
#[test]
fn swapped_pages_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let packed = pack(&directory, "noise.img", 3, 5 << 20);
    let old = bytes("v020-lz4-multipage.hxz");
    for snapshot in [packed, old] {
        let manifest = sign(&snapshot, &[]).unwrap();
        let structure = structure(memory(snapshot.clone())).unwrap();
        let [first, second, ..] = structure.index().main[..] else { panic!() };
        assert_eq!(first.length, second.length);
        let range = |offset: u64| offset as usize..(offset as usize + first.length as usize);
        let mut swapped = snapshot.to_vec();
        swapped[range(first.offset)].copy_from_slice(&snapshot[range(second.offset)]);
        swapped[range(second.offset)].copy_from_slice(&snapshot[range(first.offset)]);
        let refusal = refusal(&swapped.into(), &manifest);
        let is_page = matches!(
            refusal,
            Refusal::Manifest(ManifestErrorKind::Page { stream: Stream::Main, page: 0, .. })
        );
        assert!(is_page, "{refusal:?}");
    }
}

/// A snapshot of so many bytes that do not compress.
fn pack(directory: &TempDir, name: &str, seed: u8, length: usize) -> Bytes {
    let mut image = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut image);
    let path = directory.path().join(name);
    std::fs::write(&path, image).unwrap();
    std::fs::read(process::pack(&path, &["--block-size", "512"])).unwrap().into()
}

/// An older state of the same disk, which has been signed too. Its pages and blocks fit into the
/// newer one: every checksum, every hash and the master index is right.
#[test]
fn pages_of_an_older_snapshot_in_a_newer_one_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let [old, new] =
        [("old.img", 1), ("new.img", 2)].map(|(name, seed)| pack(&directory, name, seed, 1 << 18));
    let index_offset = structure(memory(new.clone())).unwrap().header().index_offset as usize;
    assert_eq!(old.len(), new.len());
    assert!(old[index_offset..] == new[index_offset..], "the same index");
    let manifest = sign(&new, &[]).unwrap();
    assert!(check(memory(new.clone()), memory(manifest.clone())).is_ok());

    let mut replayed = new.to_vec();
    replayed[4096..index_offset].copy_from_slice(&old[4096..index_offset]);
    let replayed = Bytes::from(replayed);
    assert!(blocks_are_whole(memory(replayed.clone())), "nothing else notices");
    let refusal = refusal(&replayed, &manifest);
    let is_page = matches!(refusal, Refusal::Manifest(ManifestErrorKind::Page { page: 0, .. }));
    assert!(is_page, "{refusal:?}");

    // Old and whole, under the manifest of the new one: header and index are the same here.
    check(memory(old.clone()), memory(manifest)).unwrap_err();
    // What cannot be noticed, as the documentation says.
    assert!(check(memory(old.clone()), memory(sign(&old, &[]).unwrap())).is_ok());
}

#[test]
fn a_parent_is_pinned_by_its_root() {
    let child = fixtures::named("v082-thin-child.hxz");
    let roots = parent_roots(&child);
    let child = structure(memory(bytes(&child.file))).unwrap();
    let manifest = sign_fixture(&fixtures::named("v082-thin-child.hxz"));
    let manifest = Manifest::read(memory(manifest), &child).unwrap();
    let [pinned] = manifest.parent_roots() else { panic!() };
    assert_eq!(*pinned, roots[0]);
    // The right one, whoever signed it, and then another one of the same key.
    for (name, fits) in [("v082-thin-base.hxz", true), ("v082-lz4-default.hxz", false)] {
        let parent = bytes(name);
        let manifest = sign(&parent, &[]).unwrap();
        let parent = structure(memory(parent)).unwrap();
        let manifest = Manifest::read(memory(manifest), &parent).unwrap();
        assert_eq!(manifest.check(Trust::Root(*pinned), &parent).is_ok(), fits, "{name}");
    }
    // A changed root of a parent changes the root of the child.
    let snapshot = bytes("v082-thin-child.hxz");
    let other = sign(&snapshot, &[Root::from_bytes([7; 32])]).unwrap();
    assert_ne!(root_of(&snapshot, &other), manifest.root());
}

#[test]
fn a_file_that_is_replaced_while_it_is_opened_is_refused() {
    let name = "v082-zstd-dict.hxz";
    let signed = bytes(name);
    let manifest = sign_fixture(&fixtures::named(name));
    let decoded = structure(memory(signed.clone())).unwrap();
    let index_offset = decoded.header().index_offset as usize;
    let dictionary = decoded.header().dictionary.unwrap();
    // Informative fields, and bytes of the dictionary: the file can be opened with each of them.
    for at in
        [8, index_offset + 8 + 28 * decoded.index().main.len() + 8, dictionary.offset as usize]
    {
        let mut evil = signed.to_vec();
        evil[at] ^= 1;
        let evil = Bytes::from(evil);
        for (first, second, fits) in [
            (&evil, &signed, at == dictionary.offset as usize),
            // The index is the one that was decoded, and that was signed.
            (&signed, &evil, at > index_offset),
            (&signed, &signed, true),
        ] {
            let storage = Replaced::new(first.clone(), second.clone());
            let structure = structure(Arc::<Replaced>::clone(&storage)).unwrap();
            storage.replace();
            let read = Manifest::read(memory(manifest.clone()), &structure).unwrap();
            let checked = read.check(Trust::Keys(&[key(1).verify_key()]), &structure);
            assert_eq!(checked.is_ok(), fits, "byte {at}: {checked:?}");
            if let Ok(checked) = checked {
                assert!(checked.dictionary == decoded.dictionary().unwrap());
            }
        }
    }
}

#[test]
fn what_is_damaged_or_contradicts_itself_is_not_signed() {
    // Family A: its blocks are read to be hashed.
    let snapshot = bytes("v014-zstd-cdc.hxz");
    let decoded = structure(memory(snapshot.clone())).unwrap();
    let record = decoded.index().main[0];
    let entries = decoded.entries(&record).unwrap();
    let flipped = |at: u64| {
        let mut flipped = snapshot.to_vec();
        flipped[at as usize] ^= 0x40;
        Bytes::from(flipped)
    };
    let position = u64::from(entries[0].logical_length);
    match sign(&flipped(entries[1].offset + 3), &[]).unwrap_err() {
        BuildError::Snapshot(error) => assert!(
            matches!(
                error.kind,
                ErrorKind::Block { damage: Damage::Checksum { .. }, position: at, .. }
                    if at == position
            ),
            "{error}"
        ),
        error => panic!("{error}"),
    }
    // The second entry: highest byte of its offset, lowest of its length in the stream.
    let entry = record.offset + 8 + 20;
    let error = sign(&flipped(entry + 7), &[]).unwrap_err();
    assert!(error.to_string().contains("impossible index entry"), "{error}");
    sign(&flipped(entry + 12), &[]).unwrap_err();
    // The declared size of the stream.
    let size = snapshot.len() - 16;
    let error = sign(&flipped(size as u64), &[]).unwrap_err();
    assert!(error.to_string().contains("is declared with"), "{error}");

    let roots = |count| vec![Root::from_bytes([1; 32]); count];
    for (name, count) in [("v082-onebyte.hxz", 1), ("v082-thin-child.hxz", 0)] {
        let error = sign(&bytes(name), &roots(count)).unwrap_err();
        assert!(matches!(error, BuildError::Parents { .. }), "{error}");
    }
}

/// A signer that has not looked: a right signature does not make up for hashes that are not there.
#[test]
fn blocks_of_which_nobody_has_a_hash_are_refused() {
    let snapshot = bytes("v045-thin-commit.hxz");
    let decoded = structure(memory(snapshot.clone())).unwrap();
    let [record] = decoded.index().main[..] else { panic!() };
    let leaf = blake3::derive_key(
        "hexz-nbd manifest v1 page",
        &snapshot[record.offset as usize..][..record.length as usize],
    );
    let index_offset = decoded.header().index_offset as usize;
    let mut hashed = (snapshot.len() as u64).to_le_bytes().to_vec();
    hashed.extend(&snapshot[..4096]);
    hashed.extend([0; 8]);
    hashed.extend((snapshot.len() as u64 - index_offset as u64).to_le_bytes());
    hashed.extend(&snapshot[index_offset..]);
    hashed.extend([0, 1, 0, 0, 0, 0, 0, 0, 0]);
    hashed.extend(leaf);
    hashed.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    hashed.extend([9; 32]);
    let root = blake3::derive_key("hexz-nbd manifest v1 root", &hashed);
    let signer: SigningKey = key(1);
    let signature =
        signer.sign(&[&b"hexz-nbd manifest v1 signature\0"[..], &root].concat()).unwrap();

    let mut manifest = b"HXZMAN01".to_vec();
    manifest.extend((snapshot.len() as u64).to_le_bytes());
    manifest.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    manifest.extend([9; 32]);
    manifest.extend(root);
    manifest.extend(signer.verify_key().as_bytes());
    manifest.extend(signature);
    manifest.extend(leaf);
    let refusal = refusal(&snapshot, &manifest.into());
    let is_hash = matches!(refusal, Refusal::Manifest(ManifestErrorKind::NoHash { .. }));
    assert!(is_hash, "{refusal:?}");
}
