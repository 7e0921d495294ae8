//! Every release of Hexz, read to the last byte.

use hexz_nbd::snapshot::{Content, Extent, Family, File, FileBackend, OpenOptions, Stream};
use std::sync::Arc;

use crate::support::fixtures::{self, Kind, StreamContent, sha256};

#[test]
fn every_file_of_every_release_reads_back_to_its_digests() {
    let mut families = Vec::new();
    for fixture in fixtures::all().iter().filter(|fixture| fixture.kind == Kind::Valid) {
        let file = fixture.open().unwrap_or_else(|error| panic!("{error}"));
        let family = file.structure().family();
        assert!(
            fixture.family == family.to_string() || fixture.family == "any",
            "{}: {family}",
            fixture.file
        );
        assert_eq!(fixture.compression, file.structure().header().compression.name());
        families.push(family);
        for (stream, content) in [(Stream::Main, &fixture.main), (Stream::Auxiliary, &fixture.aux)]
        {
            match content {
                Some(content) => check_stream(&file, stream, content, &fixture.file),
                None => assert_eq!(file.size(stream), 0, "{}", fixture.file),
            }
        }
    }
    families.sort_unstable();
    families.dedup();
    assert_eq!(families, [Family::A, Family::B, Family::C, Family::D]);
}

fn check_stream(file: &Arc<File>, stream: Stream, content: &StreamContent, name: &str) {
    assert_eq!(file.size(stream), content.size, "{name}");
    let whole = file.read_at(stream, 0, usize::try_from(content.size).unwrap()).unwrap();
    assert_eq!(sha256(&whole), content.sha256, "{name} {stream}");
    // Backwards, so that no read continues the one before.
    for (number, digest) in content.chunk_sha256_64k.iter().enumerate().rev() {
        let chunk = file.read_at(stream, number as u64 * 65536, 65536).unwrap();
        assert_eq!(&sha256(&chunk)[..16], digest, "{name} {stream} chunk {number}");
    }
}

#[test]
fn holes_are_exactly_the_sparse_entries_and_the_zeros_that_carry_a_hash() {
    for fixture in fixtures::all().iter().filter(|fixture| fixture.is_plain()) {
        let file = File::open(fixture.path()).unwrap();
        let Some(content) = &fixture.main else { continue };
        let mut expected = content.sparse_extents.clone();
        // Without a hash, zeros that were stored look like any other block.
        if file.structure().family() != Family::A {
            expected.extend(&content.zero_data_extents);
        }
        expected.sort_unstable();
        if file.content() == Content::Tar {
            // What the declared size has beyond the blocks.
            expected.push((378_000, 21_360));
        }
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, length) in expected {
            match merged.last_mut() {
                Some(last) if last.0 + last.1 == start => last.1 += length,
                _ => merged.push((start, length)),
            }
        }
        let extents: Vec<Extent> =
            file.extents(Stream::Main, 0..content.size).unwrap().collect::<Result<_, _>>().unwrap();
        let holes: Vec<(u64, u64)> = extents
            .iter()
            .filter(|extent| extent.is_hole)
            .map(|extent| (extent.range.start, extent.range.end - extent.range.start))
            .collect();
        assert_eq!(holes, merged, "{}", fixture.file);
        // Together they cover everything, and no two neighbours are alike.
        let mut position = 0;
        for pair in extents.windows(2) {
            assert_ne!(pair[0].is_hole, pair[1].is_hole, "{}", fixture.file);
        }
        for extent in &extents {
            assert_eq!(extent.range.start, position);
            position = extent.range.end;
        }
        assert_eq!(position, content.size, "{}", fixture.file);
    }
}

#[test]
fn a_snapshot_of_a_block_device_gets_its_size_from_the_index_on_request() {
    for fixture in fixtures::all() {
        let Some(recoverable) = &fixture.recoverable_main else { continue };
        let plain = File::open(fixture.path()).unwrap();
        assert_eq!(plain.content(), Content::ImageWithoutSize);
        assert_eq!(plain.size(Stream::Main), 0);

        let backend = Arc::new(FileBackend::new(&fixture.path()).unwrap());
        let options = OpenOptions { size_from_index: true, ..OpenOptions::default() };
        let file = File::open_with(backend, options).unwrap();
        assert_eq!(file.size(Stream::Main), recoverable.size);
        let bytes = file.read_at(Stream::Main, 0, 1 << 20).unwrap();
        assert_eq!(sha256(&bytes), recoverable.sha256);
    }
}

#[test]
fn what_was_packed_is_recognised() {
    for fixture in fixtures::all().iter().filter(|fixture| fixture.kind == Kind::Valid) {
        let content = fixture.open().unwrap().content();
        let expected = match fixture.metadata_kind.as_deref() {
            Some("file-manifest") => Content::Directory,
            Some("tar-manifest") => Content::Tar,
            _ if fixture.recoverable_main.is_some() => Content::ImageWithoutSize,
            _ => Content::Image,
        };
        assert_eq!(content, expected, "{}", fixture.file);
        let empty = fixture.main.as_ref().is_some_and(|main| main.size == 0);
        assert_eq!(fixture.block_device, expected == Content::Image && !empty, "{}", fixture.file);
    }
}

#[test]
fn hostile_files_do_exactly_what_is_expected_of_a_hardened_reader() {
    let mut hostile = 0;
    for fixture in fixtures::all() {
        let Some(expect) = &fixture.expect else { continue };
        hostile += 1;
        let file = match File::open(fixture.path()) {
            Ok(_) if expect.open == "must-fail" => panic!("{} was opened", fixture.file),
            Err(error) if expect.open == "must-succeed" => panic!("{error}"),
            Err(error) => {
                assert!(error.to_string().contains(&fixture.file), "{error}");
                continue;
            }
            Ok(file) => file,
        };
        let origin = fixture.derived_from.as_deref().unwrap();
        let origin = File::open(fixtures::path(origin)).unwrap();
        let intact = origin.read_at(Stream::Main, 0, 1 << 30).unwrap();
        assert_eq!(Some(sha256(&intact)), fixture.main_sha256_if_intact);
        let bad = expect.bad_main_ranges.clone().unwrap_or_default();
        for step in [1000, 4096, 65_536] {
            for start in (0..intact.len()).step_by(step) {
                let end = (start + step).min(intact.len());
                let touches_bad = bad.iter().any(|(offset, length)| {
                    (*offset as usize) < end && start < (offset + length) as usize
                });
                match file.read_at(Stream::Main, start as u64, step) {
                    Ok(bytes) => {
                        assert!(!touches_bad, "{} at {start}: read a bad range", fixture.file);
                        assert_eq!(bytes, intact[start..end], "{} at {start}", fixture.file);
                    }
                    Err(error) => assert!(
                        touches_bad || expect.reads == "correct-or-error",
                        "{} at {start}: {error}",
                        fixture.file
                    ),
                }
            }
        }
    }
    assert_eq!(hostile, 9);
}
