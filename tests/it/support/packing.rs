//! What tests of `pack` share: images, settings, the command.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::AtomicBool;

use hexz_nbd::snapshot::write::{self, BlockSize, Cut, Error, Method, Settings, Source, Summary};

pub(crate) fn settings(method: Method, block_bytes: usize) -> Settings<'static> {
    Settings {
        method,
        cut: Cut::Blocks(BlockSize::new(block_bytes as u64).unwrap()),
        threads: NonZeroUsize::new(2).unwrap(),
        replace: false,
        base: None,
        passphrase: None,
    }
}

pub(crate) fn write_to(
    image: &Path,
    out: &Path,
    settings: &Settings<'_>,
) -> Result<Summary, Error> {
    let source = Source::open(image)?;
    write::write(&source, out, settings, &AtomicBool::new(false), &|_| ())
}

/// Runs `hexz-nbd pack` in a directory, with a pipe as its input that never gets a byte.
pub(crate) fn command(directory: &Path, arguments: &[&str]) -> Output {
    let child = Command::new(env!("CARGO_BIN_EXE_hexz-nbd"))
        .arg("pack")
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.wait_with_output().unwrap()
}

/// Names in a directory, sorted.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

pub(crate) fn text(length: usize) -> Vec<u8> {
    b"In a hole in the ground there lived a block. ".iter().copied().cycle().take(length).collect()
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
