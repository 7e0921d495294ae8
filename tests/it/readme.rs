//! The commands of README.md, as they stand there but for host and port.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::fixtures;
use crate::support::process::{Client, HEXZ_NBD, Output, Process};

const HOST: &str = "nbd.example.com";
const PORT: &str = "10809";

/// The lines of a fenced block that is tagged with a word.
fn block(tag: &str) -> Vec<String> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
    let readme = readme.unwrap();
    let (_, rest) = readme.split_once(&format!("```sh {tag}\n")).expect("a block of that tag");
    let (block, _) = rest.split_once("```").unwrap();
    block.lines().map(str::to_owned).collect()
}

/// Words of a line as a shell would pass them: quotes stand around whole words only.
fn words(line: &str, port: &str) -> Vec<String> {
    let line = line.replace(HOST, "localhost").replace(PORT, port);
    line.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect()
}

fn run(directory: &TempDir, words: &[String]) -> Output {
    let client = match words[0].as_str() {
        "hexz-nbd" => Client::new(HEXZ_NBD),
        "nbd-client" => Client::new("nbd-client"),
        "nbdinfo" => Client::new("nbdinfo"),
        "nbdcopy" => Client::new("nbdcopy"),
        "qemu-img" => Client::new("qemu-img"),
        other => panic!("no test knows {other}"),
    };
    client.args(&words[1..]).current_dir(directory.path()).run()
}

#[test]
fn the_remote_path_works_from_nothing_to_revocation() {
    let directory = tempfile::tempdir().unwrap();
    fs::copy(fixtures::path("v082-ext4.hxz"), directory.path().join("disk.hxz")).unwrap();

    let server = block("server");
    let [init, client, serve] = &server[..] else { panic!("{server:?}") };
    run(&directory, &words(init, PORT)).succeeded();
    run(&directory, &words(client, PORT)).succeeded();
    let mut command = Command::new(HEXZ_NBD);
    command.current_dir(directory.path());
    // It brings a port of its own; that of the README is likely taken.
    let serve = words(serve, "0");
    assert_eq!(serve[0], "hexz-nbd");
    let server = Process::start_from(command, &serve[1..]);
    let endpoint = server.log().into_iter().find_map(|line| {
        let endpoint = line["endpoint"].as_str()?.strip_prefix("0.0.0.0:")?;
        Some(endpoint.to_owned())
    });
    let port = endpoint.unwrap();

    let lines = block("client");
    assert_eq!(lines.len(), 4);
    for line in &lines {
        let output = run(&directory, &words(line, &port)).succeeded();
        match line.split_whitespace().next().unwrap() {
            "nbdcopy" => {}
            "qemu-img" => assert!(output.text().contains("16777216 bytes"), "{line}"),
            _ => assert!(output.text().contains("disk"), "{line}"),
        }
    }
    let image = fs::read(directory.path().join("disk.img")).unwrap();
    let expected = fixtures::named("v082-ext4.hxz").main.unwrap().sha256;
    assert_eq!(fixtures::sha256(&image), expected);

    let [revoke] = &block("revoke")[..] else { panic!() };
    run(&directory, &words(revoke, &port)).succeeded();
    server.wait_for("reloaded", 1);
    for line in &lines {
        run(&directory, &words(line, &port)).failed();
    }
}

#[test]
fn the_commands_about_signatures_work() {
    let directory = tempfile::tempdir().unwrap();
    fs::copy(fixtures::path("v082-ext4.hxz"), directory.path().join("disk.hxz")).unwrap();
    let lines = block("sign");
    assert_eq!(lines.len(), 4);
    let outputs: Vec<_> =
        lines.iter().map(|line| run(&directory, &words(line, PORT)).succeeded()).collect();
    assert!(outputs[2].text().contains("manifest valid, root "), "{}", outputs[2].text());
    assert!(outputs[3].text().contains("master index signature valid"), "{}", outputs[3].text());
}
