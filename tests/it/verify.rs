//! `hexz-nbd verify` and what stands behind it: damage is found, all of it, and where it is.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use hexz_nbd::snapshot::format::Entry;
use hexz_nbd::snapshot::verify::verified_bytes;
use hexz_nbd::snapshot::{File, MemoryBackend, OpenOptions, Stream, Structure, verify};

use crate::support::fixtures::{self, Kind};

fn run(file: &Path, options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hexz-nbd"))
        .arg("verify")
        .arg(file)
        .args(options)
        .output()
        .unwrap()
}

#[test]
fn every_valid_file_is_whole() {
    let keys = fixtures::key_file_options();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    for fixture in fixtures::all().iter().filter(|fixture| fixture.kind == Kind::Valid) {
        let output = run(&fixture.path(), if fixture.encrypted { &keys } else { &[] });
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{}: {stdout}", fixture.file);
        assert!(stdout.contains(": whole, ") && stdout.lines().count() == 1, "{stdout}");
        assert!(output.stderr.is_empty(), "{}", fixture.file);
    }
}

#[test]
fn damaged_ranges_are_listed_exactly_and_what_cannot_be_opened_fails() {
    let mut listed = 0;
    for fixture in fixtures::all() {
        let Some(expect) = fixture.expect.as_ref().filter(|_| fixture.kind == Kind::Hostile) else {
            continue;
        };
        for threads in ["1", "3"] {
            let output = run(&fixture.path(), &["--threads", threads]);
            assert_eq!(output.status.code(), Some(1), "{}", fixture.file);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            assert!(stderr.contains(&fixture.file), "{stderr}");
            if expect.open != "must-succeed" {
                continue;
            }
            let ranges = expect.bad_main_ranges.clone().unwrap();
            let stdout = String::from_utf8(output.stdout).unwrap();
            let lines: Vec<&str> = stdout.lines().collect();
            assert_eq!(lines.len(), ranges.len(), "{stdout}");
            for (line, (start, length)) in lines.iter().zip(ranges) {
                assert!(line.starts_with(&format!("main {start}+{length}: ")), "{line}");
            }
            listed += 1;
        }
    }
    assert_eq!(listed, 4);
}

#[test]
fn the_first_line_says_what_is_wrong() {
    let output = run(&fixtures::path("h-flip-block.hxz"), &[]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout, "main 232213+2689: checksum is 9b94ae98 instead of 2c8621ad\n");
}

#[test]
fn a_wrong_number_of_threads_is_a_wrong_use_of_the_command() {
    for threads in ["0", "-1", "many", "1025"] {
        let output = run(&fixtures::path("h-base.hxz"), &["--threads", threads]);
        assert_eq!(output.status.code(), Some(2), "{threads}");
    }
}

/// A fixture that tests change: its bytes, and where the entries of the main stream lie.
struct Patient {
    contents: Vec<u8>,
    entries: Vec<Placed>,
}

struct Placed {
    entry: Entry,
    page: usize,
    /// Where the entry itself lies in the file.
    at: usize,
    range: Range<u64>,
}

impl Patient {
    fn new(name: &str) -> Self {
        let contents = std::fs::read(fixtures::path(name)).unwrap();
        let backend = MemoryBackend::new(Bytes::from(contents.clone()), name);
        let structure = Structure::read(Arc::new(backend), 1 << 24).unwrap();
        let mut entries = Vec::new();
        let mut position = 0;
        for (page, record) in structure.index().main.iter().enumerate() {
            let mut at = record.offset as usize + 8;
            for entry in structure.entries(record).unwrap() {
                let end = position + u64::from(entry.logical_length);
                entries.push(Placed { entry, page, at, range: position..end });
                position = end;
                at += structure.family().entry_bytes() as usize;
            }
        }
        Self { contents, entries }
    }

    /// Flips a bit in the middle of the stored bytes of an entry.
    fn flip_stored(&mut self, number: usize) -> &Entry {
        let entry = &self.entries[number].entry;
        self.contents[entry.offset as usize + entry.length as usize / 2] ^= 4;
        entry
    }

    /// What is found wrong with the main stream, on two threads.
    fn damaged(&self) -> Vec<Range<u64>> {
        let file = self.open();
        let seen = AtomicU64::new(0);
        let progress = |bytes| {
            seen.fetch_add(bytes, Ordering::Relaxed);
        };
        let damaged = verify(&file, NonZeroUsize::new(2).unwrap(), &progress);
        assert_eq!(seen.into_inner(), verified_bytes(&file), "progress ends where it should");
        assert!(damaged.iter().all(|range| range.stream == Stream::Main));
        damaged.into_iter().map(|damaged| damaged.range).collect()
    }

    fn open(&self) -> Arc<File> {
        let backend = MemoryBackend::new(Bytes::from(self.contents.clone()), "patient");
        File::open_with(Arc::new(backend), OpenOptions::default()).unwrap()
    }

    fn ranges_of(&self, is_damaged: impl Fn(&Placed) -> bool) -> Vec<Range<u64>> {
        let mut merged: Vec<Range<u64>> = Vec::new();
        for placed in self.entries.iter().filter(|placed| is_damaged(placed)) {
            match merged.last_mut() {
                Some(last) if last.end == placed.range.start => last.end = placed.range.end,
                _ => merged.push(placed.range.clone()),
            }
        }
        merged
    }
}

#[test]
fn a_damaged_block_that_is_shared_is_damaged_wherever_it_stands() {
    let mut patient = Patient::new("v082-lz4-fixed-multipage.hxz");
    // The stored block that stands at the most places.
    let uses = |offset| patient.entries.iter().filter(|p| p.entry.offset == offset).count();
    let data = || patient.entries.iter().enumerate().filter(|(_, p)| p.entry.length != 0);
    let number = data().max_by_key(|(_, placed)| uses(placed.entry.offset)).unwrap().0;
    let offset = patient.flip_stored(number).offset;
    let expected = patient.ranges_of(|placed| placed.entry.offset == offset);
    assert!(expected.len() > 2);
    assert_eq!(patient.damaged(), expected);
}

#[test]
fn a_damaged_page_makes_its_range_damaged_and_the_rest_is_still_verified() {
    let mut patient = Patient::new("v020-lz4-multipage.hxz");
    let in_second = patient.entries.iter().find(|placed| placed.page == 1).unwrap();
    // The lowest byte of its length in the stream: then the page does not reach the next.
    patient.contents[in_second.at + 12] ^= 1;
    let later = patient.entries.iter().rposition(|p| p.entry.length != 0 && p.page == 2).unwrap();
    let offset = patient.flip_stored(later).offset;
    let expected = patient.ranges_of(|placed| placed.page == 1 || placed.entry.offset == offset);
    assert!(expected.iter().any(|range| range.end - range.start >= 4096 * 512));
    assert!(expected.len() > 1);
    assert_eq!(patient.damaged(), expected);
}

#[test]
fn an_entry_that_no_writer_makes_spoils_its_own_block() {
    let mut patient = Patient::new("h-base.hxz");
    let at = patient.entries[7].at;
    // The highest byte of the offset.
    patient.contents[at + 7] ^= 0x80;
    assert_eq!(patient.damaged(), [patient.entries[7].range.clone()]);
}

#[test]
fn a_changed_hash_is_found_although_the_checksum_is_right() {
    let mut patient = Patient::new("h-base.hxz");
    let at = patient.entries[3].at;
    patient.contents[at + 51] ^= 1;
    assert_eq!(patient.damaged(), [patient.entries[3].range.clone()]);
}

/// Reads know them by their hash and never look at the stored bytes. Other readers do.
#[test]
fn zeros_that_are_stored_are_checked_like_all_other_blocks() {
    let mut patient = Patient::new("v082-lz4-default.hxz");
    let zeros = fixtures::named("v082-lz4-default.hxz").main.unwrap().zero_data_extents[0];
    let number = patient.entries.iter().position(|p| p.range.start == zeros.0).unwrap();
    patient.flip_stored(number);
    let range = zeros.0..zeros.0 + zeros.1;
    assert_eq!(patient.damaged(), std::slice::from_ref(&range));
    let read = patient.open().read_at(Stream::Main, zeros.0, zeros.1 as usize).unwrap();
    assert!(read.iter().all(|byte| *byte == 0));
}

#[test]
fn a_damaged_block_of_no_bytes_is_reported_as_an_empty_range() {
    let mut patient = Patient::new("v082-zeros-lz4.hxz");
    let number = patient.entries.iter().position(|p| p.entry.logical_length == 0).unwrap();
    assert_ne!(patient.flip_stored(number).length, 0);
    let nothing = patient.entries[number].range.clone();
    assert_eq!(nothing, 1_048_576..1_048_576);
    assert_eq!(patient.damaged(), [nothing]);
}

#[test]
fn what_was_packed_without_a_size_is_verified_as_far_as_its_index_goes() {
    let mut patient = Patient::new("v082-blockdev-size0.hxz");
    let last = patient.entries.len() - 1;
    let offset = patient.flip_stored(last).offset;
    let expected = patient.ranges_of(|placed| placed.entry.offset == offset);
    assert_eq!(patient.damaged(), expected);
}

/// Both streams, every stored block: flip one bit of each in turn, and it is found.
#[test]
fn no_stored_block_escapes() {
    for name in ["v082-parent-b.hxz", "v082-parent-a.hxz", "v014-zstd-cdc.hxz"] {
        let patient = Patient::new(name);
        let offsets: BTreeSet<u64> = patient
            .entries
            .iter()
            .filter(|placed| placed.entry.length != 0)
            .map(|placed| placed.entry.offset)
            .collect();
        assert!(!offsets.is_empty());
        for offset in offsets {
            let mut patient = Patient::new(name);
            let number = patient.entries.iter().position(|p| p.entry.offset == offset).unwrap();
            patient.flip_stored(number);
            let expected = patient.ranges_of(|placed| placed.entry.offset == offset);
            assert_eq!(patient.damaged(), expected, "{name} at {offset}");
        }
    }
}

#[test]
fn the_auxiliary_stream_is_verified_too() {
    let mut contents = std::fs::read(fixtures::path("v082-lz4-aux.hxz")).unwrap();
    let backend = MemoryBackend::new(Bytes::from(contents.clone()), "intact");
    let structure = Structure::read(Arc::new(backend), 1 << 24).unwrap();
    let entry = structure.entries(&structure.index().auxiliary[0]).unwrap()[1];
    contents[entry.offset as usize + 10] ^= 1;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), contents).unwrap();
    let output = run(file.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    let stdout = String::from_utf8(output.stdout).unwrap();
    // The main stream begins with the same bytes, which are stored once.
    let ranges: Vec<&str> = stdout.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(ranges, ["main 32768+32768", "auxiliary 32768+32768"]);
}
