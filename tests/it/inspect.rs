//! `hexz-nbd inspect` on real files: every number against the list of fixtures.

use std::path::Path;
use std::process::{Command, Output};

use hexz_nbd::snapshot::Compression;
use hexz_nbd::snapshot::format::header::{Header, Layout};
use hexz_nbd::snapshot::format::{HEADER_BYTES, MasterIndex};
use serde_json::{Value, json};

use crate::support::fixtures;

fn inspect(file: &Path, options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hexz-nbd"))
        .arg("inspect")
        .arg(file)
        .args(options)
        .output()
        .unwrap()
}

fn report(name: &str) -> Value {
    let output = inspect(&fixtures::path(name), &["--json"]);
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(file: &Path) -> String {
    let output = inspect(file, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The list of fixtures with all its fields, of the files that are valid.
fn manifest() -> Vec<Value> {
    let manifest = std::fs::read(fixtures::path("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let fixtures = manifest["fixtures"].as_array().unwrap();
    fixtures.iter().filter(|fixture| fixture["kind"] == "valid").cloned().collect()
}

#[test]
fn what_is_said_of_a_file_is_what_the_list_of_fixtures_says() {
    for fixture in manifest() {
        let name = fixture["file"].as_str().unwrap();
        let report = report(name);
        for (said, expected) in [
            (&report["file_bytes"], &fixture["file_size"]),
            (&report["compression"], &fixture["compression"]),
            (&report["block_bytes"], &fixture["block_size_header"]),
            (&report["dictionary_bytes"], &fixture["dictionary"][1]),
            (&report["metadata_bytes"], &fixture["metadata"][1]),
            (&report["signature"]["offset"], &fixture["signature"][0]),
            (&report["signature"]["length_bytes"], &fixture["signature"][1]),
            (&report["encryption"]["iterations"], &fixture["kdf_iterations"]),
            (&report["parents"], &fixture["parents"]),
            (&report["chunking"]["minimum_bytes"], &fixture["cdc_params"][1]),
            (&report["chunking"]["maximum_bytes"], &fixture["cdc_params"][2]),
        ] {
            assert_eq!(said, expected, "{name}");
        }
        // Without pages the layouts say the same.
        if fixture["family"] != "any" {
            assert_eq!(report["family"], fixture["family"], "{name}");
        }
        let variable = fixture["variable_blocks"] == true;
        let method = if variable { "content_defined" } else { "fixed" };
        assert_eq!(report["chunking"]["method"], method, "{name}");
        let average = fixture["cdc_params"][0].as_u64().map(|log2| 1_u64 << log2);
        assert_eq!(report["chunking"]["average_bytes"], json!(average), "{name}");
        let content = match fixture["metadata_kind"].as_str() {
            Some("file-manifest") => "directory",
            Some("tar-manifest") => "tar",
            _ if !fixture["recoverable_main"].is_null() => "image_without_size",
            _ => "image",
        };
        assert_eq!(report["content"], content, "{name}");
        check_stream(name, &report["main"], &fixture["main"]);
        if fixture["aux"].is_null() {
            assert_eq!(report["auxiliary"], Value::Null, "{name}");
        } else {
            check_stream(name, &report["auxiliary"], &fixture["aux"]);
        }
    }
}

fn check_stream(name: &str, said: &Value, stream: &Value) {
    let blocks = &stream["blocks"];
    for (said, expected) in [
        (&said["declared_bytes"], &stream["size"]),
        (&said["indexed_bytes"], &stream["blocks_total_logical"]),
        (&said["pages"], &stream["pages"]),
        (&said["data_entries"], &blocks["data"]),
        (&said["distinct_blocks"], &blocks["unique_offsets"]),
        (&said["sparse_entries"], &blocks["sparse"]),
        (&said["parent_entries"], &blocks["parent_ref"]),
        (&said["empty_entries"], &blocks["zero_length"]),
        (&said["corrupt_entries"], &json!(0)),
        (&said["unreadable_pages"], &json!(0)),
    ] {
        assert_eq!(said, expected, "{name}");
    }
    let count = |kind: &str| blocks[kind].as_u64().unwrap();
    let entries = count("data") + count("sparse") + count("parent_ref") + count("zero_length");
    assert_eq!(said["entries"], entries, "{name}");
    assert_eq!(said["sparse"]["bytes"], extent_bytes(&stream["sparse_extents"]), "{name}");
    assert_eq!(said["parent"]["bytes"], extent_bytes(&stream["parent_extents"]), "{name}");
    let is_deduplicated = count("data") > count("unique_offsets");
    let duplicate_bytes = said["duplicate"]["bytes"].as_u64().unwrap();
    assert_eq!(duplicate_bytes > 0, is_deduplicated, "{name}");
    if count("data_without_hash") > 0 {
        assert_eq!(said["zeros_stored_as_data"], Value::Null, "{name}");
    } else if stream["size"] != 0 {
        let zeros = extent_bytes(&stream["zero_data_extents"]);
        assert_eq!(said["zeros_stored_as_data"]["bytes"], zeros, "{name}");
    }
    let lengths = &said["block_lengths"];
    if entries == 0 {
        assert_eq!(*lengths, Value::Null, "{name}");
    } else {
        let expected = &stream["logical_len"];
        let expected = json!({
            "minimum_bytes": expected["min"],
            "median_bytes": expected["p50"],
            "maximum_bytes": expected["max"],
        });
        assert_eq!(*lengths, expected, "{name}");
    }
}

fn extent_bytes(extents: &Value) -> u64 {
    extents.as_array().unwrap().iter().map(|extent| extent[1].as_u64().unwrap()).sum()
}

#[test]
fn shares_are_of_the_stream_and_the_ratio_is_of_the_file() {
    let report = report("v082-ext4.hxz");
    let main = &report["main"];
    assert_eq!(main["duplicate"], json!({"bytes": 13_631_488, "percent": 81.25}));
    let ratio = report["ratio"].as_f64().unwrap();
    assert!((ratio - 16_777_216.0 / 753_981.0).abs() < 1e-9, "{ratio}");
}

#[test]
fn text_has_one_aligned_line_for_each_name_with_exact_sizes() {
    let text = text(&fixtures::path("v082-thin-child-enc.hxz"));
    let columns: Vec<usize> = text
        .lines()
        .map(|line| {
            let name = line.find(": ").unwrap() + 1;
            name + line[name..].find(|c: char| c != ' ').unwrap()
        })
        .collect();
    assert!(columns.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
    for part in [
        "2.01 MiB (2103594 bytes)",
        "v082-thin-base.hxz",
        "pbkdf2-hmac-sha256 with 600000 iterations",
        "D (releases 0.8)",
        "minimum 15332, median 80311, maximum 262144 bytes",
    ] {
        assert!(text.contains(part), "{part} is missing from:\n{text}");
    }
}

#[test]
fn a_snapshot_of_a_block_device_is_told_with_the_size_that_its_index_holds() {
    let text = text(&fixtures::path("v082-blockdev-size0.hxz"));
    assert!(text.contains("packed from a block device or a pipe"), "{text}");
    assert!(text.contains("the index holds 253.91 KiB (260000 bytes)"), "{text}");
    let report = report("v082-blockdev-size0.hxz");
    assert_eq!(report["main"]["declared_bytes"], 0);
    assert_eq!(report["main"]["indexed_bytes"], 260_000);
}

#[test]
fn no_key_material_is_shown() {
    for options in [&[][..], &["--json"]] {
        let output = inspect(&fixtures::path("v082-enc-lz4.hxz"), options);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("600000") && !text.contains("salt"), "{text}");
    }
}

#[test]
fn control_characters_in_a_recorded_path_do_not_reach_the_terminal() {
    let header = Header {
        layout: Layout::ParentList,
        block_bytes: 65536,
        index_offset: HEADER_BYTES,
        parents: vec!["\x1b]0;owned\x07\n\u{9b}2Jbase.hxz".into()],
        dictionary: None,
        metadata: None,
        signature: None,
        encryption: None,
        compression: Compression::Lz4,
        has_main: false,
        has_auxiliary: false,
        variable_blocks: false,
        chunking: None,
    };
    let mut contents = header.encode().unwrap();
    contents.extend(MasterIndex::default().encode());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), contents).unwrap();

    let text = text(file.path());
    assert!(text.lines().all(|line| !line.chars().any(char::is_control)), "{text:?}");
    let line = text.lines().find(|line| line.starts_with("parent:")).unwrap();
    assert!(line.ends_with(r"\u{1b}]0;owned\u{7}\n\u{9b}2Jbase.hxz"), "{line:?}");
}

#[test]
fn what_is_no_snapshot_is_refused_with_one_line() {
    let output = inspect(&fixtures::path("manifest.json"), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("not a Hexz snapshot") && message.lines().count() == 1, "{message}");
}

/// Damage beyond the first page is for `verify`; here the rest is still described.
#[test]
fn a_page_that_cannot_be_read_is_counted_and_left_out() {
    let mut contents = std::fs::read(fixtures::path("v020-lz4-multipage.hxz")).unwrap();
    let index_offset = u64::from_le_bytes(contents[12..20].try_into().unwrap()) as usize;
    let second = index_offset + 8 + 28;
    let page = u64::from_le_bytes(contents[second..second + 8].try_into().unwrap()) as usize;
    contents[page] ^= 1;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), contents).unwrap();
    let output = inspect(file.path(), &["--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["main"]["unreadable_pages"], 1);
    assert_eq!(report["main"]["entries"], 9000 - 4096);
}
