//! Every file of the fuzz corpus, and every fixture, through the checks that the fuzzers run.

use std::fs;
use std::path::Path;

use crate::support::fixtures;

#[path = "../../fuzz/checks.rs"]
mod checks;
#[path = "../../fuzz/nbd_checks.rs"]
mod nbd_checks;

#[test]
fn blocks_of_the_corpus_fill_their_buffer_or_fail() {
    each_of("block", checks::block);
}

#[test]
fn pages_of_the_corpus_are_what_was_written() {
    each_of("page", checks::page);
}

#[test]
fn headers_and_indexes_of_the_corpus_point_into_their_files() {
    each_of("header", checks::header);
    for fixture in fixtures::all() {
        checks::header(&fs::read(fixture.path()).unwrap());
    }
}

#[test]
fn manifests_of_the_corpus_hold_only_if_they_are_those_that_were_signed() {
    each_of("manifest", checks::manifest);
}

#[test]
fn options_of_the_corpus_are_each_answered_once() {
    each_of("options", nbd_checks::options);
}

#[test]
fn requests_of_the_corpus_are_each_answered_once_in_any_order() {
    each_of("requests", nbd_checks::requests);
}

#[test]
fn sessions_of_the_corpus_do_not_depend_on_packets() {
    each_of("session", nbd_checks::session);
}

#[test]
fn snapshots_of_the_corpus_and_all_fixtures_read_the_same_in_any_steps() {
    each_of("snapshot", checks::snapshot);
    for fixture in fixtures::all() {
        checks::snapshot(&fs::read(fixture.path()).unwrap());
    }
}

fn each_of(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files = 0;
    for entry in fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        check(&fs::read(path).unwrap());
        files += 1;
    }
    assert!(files > 0, "the corpus of {target} is empty");
}
