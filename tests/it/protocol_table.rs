//! `tests/PROTOCOL.md` is complete, and true as far as a machine can see.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Text of all files of a name, under `src` and `tests/it`.
fn sources() -> HashMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut folders, mut sources) =
        (vec![root.join("src"), root.join("tests/it")], HashMap::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let mut name = path.file_name().unwrap().to_str().unwrap().to_owned();
                if name == "tests.rs" {
                    // Those of the file beside the folder.
                    let folder = path.parent().unwrap().file_name().unwrap();
                    name = format!("{}.rs", folder.to_str().unwrap());
                }
                let text: &mut String = sources.entry(name).or_default();
                text.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    sources
}

#[test]
fn every_rule_of_the_protocol_names_a_test_that_is_there() {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/PROTOCOL.md");
    let (table, sources) = (fs::read_to_string(table).unwrap(), sources());
    let mut rules = 0;
    for row in table.lines().filter(|line| line.starts_with("| ")) {
        let (_, tests) = row.trim_end_matches(" |").rsplit_once(" | ").unwrap();
        if tests == "Test" {
            continue;
        }
        rules += 1;
        let mut named = 0;
        for test in tests.split(", ") {
            let name = test.trim_matches('`').split_once("::");
            let (file, test) = name.unwrap_or_else(|| panic!("no test in {row}"));
            let source = sources.get(file).unwrap_or_else(|| panic!("no file {file}: {row}"));
            let test = source
                .find(&format!("fn {test}()"))
                .unwrap_or_else(|| panic!("no test {test} in {file}"));
            let before = &source[..test];
            let attribute = before.rfind("#[").unwrap();
            assert!(before[attribute..].contains("test]"), "no test: {row}");
            named += 1;
        }
        assert_ne!(named, 0, "{row}");
    }
    assert!(rules > 90, "{rules} rules");
}
