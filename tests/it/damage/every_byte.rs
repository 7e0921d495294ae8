//! Every byte of every fixture's header, master index, metadata and signature, one by one, and of
//! the pages of small ones: where nothing is left to chance.
//!
//! The parents of each lie in a directory of their own. `unnoticed.rs` has the two single bits that
//! would make a difference there if other files lay beside them, or were made for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use hexz_nbd::snapshot::{ErrorKind, OpenOptions, VerifyKey};

use crate::damage::change::Change;
use crate::damage::subject::Subject;
use crate::support::fixtures::{self, Fixture, Kind};
use crate::support::signed;

/// In files of so few bytes, every bit of header and index, and a bit of each byte of the pages.
const SMALL_BYTES: usize = 30_000;

fn valid(is_meant: impl Fn(&Fixture) -> bool) -> Vec<Fixture> {
    let valid = fixtures::all().into_iter().filter(|fixture| fixture.kind == Kind::Valid);
    let meant: Vec<Fixture> = valid.filter(is_meant).collect();
    assert!(meant.len() > 2);
    meant
}

fn check_every_byte(subject: &Subject, every_bit: bool) {
    let is_small = subject.contents.len() < SMALL_BYTES;
    let [header, tail, pages @ ..] = &subject.parts[..] else { panic!() };
    for at in header.clone().chain(tail.clone()) {
        let bits = if every_bit || is_small { 0..8 } else { at % 8..at % 8 + 1 };
        bits.for_each(|bit| subject.check(&Change::Flip { at, bit }));
    }
    // The padding of the header.
    for at in (header.end..4096).step_by(61).chain([4095]) {
        subject.check(&Change::Flip { at, bit: at % 8 });
    }
    for at in pages.iter().filter(|_| is_small).flat_map(Clone::clone) {
        subject.check(&Change::Flip { at, bit: at % 8 });
    }
}

#[test]
fn of_plain_snapshots() {
    for fixture in valid(|fixture| fixture.is_plain() && fixture.signature.is_none()) {
        check_every_byte(&Subject::new(&fixture.file), false);
    }
}

#[test]
fn of_encrypted_snapshots() {
    for fixture in valid(|fixture| fixture.encrypted) {
        check_every_byte(&Subject::new(&fixture.file), true);
    }
}

#[test]
fn of_thin_snapshots() {
    for fixture in valid(|fixture| !fixture.parents.is_empty()) {
        check_every_byte(&Subject::new(&fixture.file), true);
    }
}

/// Without a key, nobody looks at the signature. With one, what it covers cannot change: everything
/// from the master index on.
#[test]
fn of_signed_snapshots() {
    for fixture in valid(|fixture| fixture.signature.is_some()) {
        check_every_byte(&Subject::new(&fixture.file), true);

        let public = fixtures::path(fixture.public_key_file.as_deref().unwrap());
        let key = VerifyKey::from_bytes(&std::fs::read(public).unwrap()).unwrap();
        let options = OpenOptions { verify_keys: vec![key], ..OpenOptions::default() };
        let subject = Subject::with_options(&fixture.file, options);
        for at in subject.parts[0].clone() {
            subject.check(&Change::Flip { at, bit: at % 8 });
        }
        for at in subject.parts[1].clone() {
            let change = Change::Flip { at, bit: at % 8 };
            let result = subject.open(change.apply(&subject.contents));
            assert!(result.is_err(), "{}: {change:?}", fixture.file);
        }
    }
}

/// Salt and iterations are all that the derivation of a key takes from the file.
#[test]
fn of_what_a_key_is_derived_from() {
    let fixture = fixtures::named("v082-enc-zstd-fixed-aux.hxz");
    let contents = signed::bytes(&fixture.file);
    let encryption = signed::structure(signed::memory(contents.clone())).unwrap();
    let salt = encryption.header().encryption.unwrap().salt;
    let salt_at = contents[..4096].windows(16).position(|bytes| bytes == salt).unwrap();
    let iterations_at = salt_at + 16;
    assert_eq!(contents[iterations_at..iterations_at + 4], 100_000_u32.to_le_bytes());
    let in_salt = (salt_at..iterations_at).map(|at| (at, at % 8));
    // Fewer than are accepted, some more, and more than are accepted.
    let in_iterations = [(0, 5), (0, 0), (2, 4), (3, 0), (3, 7)];
    let in_iterations = in_iterations.map(|(byte, bit)| (iterations_at + byte, bit));
    let mut refusals = BTreeSet::new();
    for (at, bit) in in_salt.chain(in_iterations) {
        let change = Change::Flip { at, bit };
        let storage = Arc::new(signed::Placed::new(change.apply(&contents), None, None));
        let passphrases = fixture.password.as_deref().map(fixtures::passphrase);
        let passphrases = passphrases.into_iter().collect();
        let options = OpenOptions { passphrases, ..OpenOptions::default() };
        let error = hexz_nbd::snapshot::File::open_with(storage, options).unwrap_err();
        refusals.insert(match error.kind {
            ErrorKind::WrongPassphrase { .. } => "wrong passphrase",
            ErrorKind::Iterations(_) => "iterations",
            _ => panic!("{change:?}: {error}"),
        });
    }
    assert_eq!(refusals.len(), 2);
}
