//! Which part may know which: the arrows of ARCHITECTURE.md, as data.

use std::fs;
use std::path::{Path, PathBuf};

/// A part, and the parts that it may name. All others of ours it must not know.
const ARROWS: [(&str, &[&str]); 8] = [
    ("cli", &["audit", "server", "export", "snapshot", "tls"]),
    ("server", &["audit", "export", "metrics", "nbd", "snapshot", "tls"]),
    ("audit", &[]),
    ("metrics", &[]),
    ("export", &["snapshot", "nbd"]),
    ("nbd", &[]),
    ("snapshot", &[]),
    ("tls", &[]),
];

#[test]
fn every_part_names_only_what_its_arrows_allow() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut checked = 0;
    for (part, allowed) in ARROWS {
        for file in rust_files(&source.join(part)) {
            checked += 1;
            let text = fs::read_to_string(&file).unwrap();
            for (number, line) in text.lines().enumerate() {
                for (other, _) in ARROWS {
                    let named = line.contains(&format!("crate::{other}::"));
                    assert!(
                        !named || other == part || allowed.contains(&other),
                        "{}:{}: {part} must not know {other}",
                        file.display(),
                        number + 1
                    );
                }
            }
        }
    }
    assert!(checked > 20, "only {checked} files were found");
}

#[test]
fn every_directory_of_the_source_is_a_part_with_arrows() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            assert!(ARROWS.iter().any(|(part, _)| *part == name), "{name} has no arrows");
        }
    }
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
