//! A server that demands manifests, end to end: what was changed fails, what nobody or somebody
//! else signed is not there, and all else is served.

use std::fs;

use hexz_nbd::snapshot::Stream;

use crate::damage::scene::Scene;
use crate::support::fixtures::{self, sha256};
use crate::support::process::{Client, HEXZ_NBD, Process};
use crate::support::signed::{memory, structure};

#[test]
fn what_is_not_as_it_was_signed_fails_and_the_rest_is_served() {
    let scene = Scene::new();
    for (name, fixture) in [
        ("good.hxz", "v082-lz4-aux.hxz"),
        ("swapped.hxz", "v020-lz4-multipage.hxz"),
        ("unsigned.hxz", "v082-onebyte.hxz"),
        ("stranger.hxz", "v082-zeros-lz4.hxz"),
    ] {
        scene.write(name, fs::read(fixtures::path(fixture)).unwrap());
    }
    let run = |arguments: &[&str]| {
        Client::new(HEXZ_NBD).args(arguments).current_dir(scene.directory()).run().succeeded();
    };
    run(&["keygen", "keys"]);
    run(&["keygen", "others"]);
    for (keys, name) in [("keys", "good"), ("keys", "swapped"), ("others", "stranger")] {
        run(&["sign", "--key", &format!("{keys}/private.key"), &format!("{name}.hxz")]);
    }
    let page_bytes = swap_equal_pages(&scene, "swapped.hxz");

    let images = scene.directory().display().to_string();
    let key = scene.path("keys/public.key").display().to_string();
    let server = Process::start(["--verify-key", &key, "--require-manifest", &images]);

    // Copied before, between and after, to see that it makes no difference.
    let good = fixtures::named("v082-lz4-aux.hxz");
    let check_good = || {
        for (export, content) in [("good", &good.main), ("good/aux", &good.aux)] {
            let copy = tempfile::NamedTempFile::new().unwrap();
            let nbdcopy = Client::new("nbdcopy").arg(server.uri(export)).arg(copy.path());
            nbdcopy.run().succeeded();
            let bytes = fs::read(copy.path()).unwrap();
            assert_eq!(sha256(&bytes), content.as_ref().unwrap().sha256, "{export}");
        }
    };
    check_good();
    // What is where fails as well as the bytes do.
    for (options, message) in [(&[][..], "not described"), (&["--no-extents"], "read failed")] {
        let copy = scene.path("swapped.img");
        let nbdcopy = Client::new("nbdcopy").args(options).arg(server.uri("swapped")).arg(&copy);
        let failed = nbdcopy.run().failed();
        assert!(failed.stderr.contains("Input/output error"), "{}", failed.stderr);
        let told = |line: &serde_json::Value| {
            let error = line["error"].as_str().unwrap_or_default();
            line["message"] == message
                && line["export"] == "swapped"
                && error.contains("swapped.hxz: not what was signed")
                && error.contains("index page")
        };
        server.wait_until(told, 1);
    }
    check_good();
    // Nothing of the swapped pages has left, and what lies behind them is served.
    let nbdsh = format!(
        "h.connect_uri('{}')\n\
         try:\n  h.pread(1, 0)\n  print('served')\nexcept nbd.Error as error:\n  print(error.errno)\n\
         print(len(h.pread(512, {page_bytes})))",
        server.uri("swapped")
    );
    let output = Client::new("nbdsh").args(["-c", &nbdsh]).run().succeeded();
    assert_eq!(output.text().trim(), "EIO\n512");

    for (export, why) in [
        ("unsigned", "there is no manifest beside it, and one is required"),
        ("stranger", "which is none of those given"),
    ] {
        let told = |line: &serde_json::Value| {
            let is_it = line["message"] == "not exported" && line["export"] == export;
            is_it && line["error"].as_str().is_some_and(|error| error.contains(why))
        };
        server.wait_until(told, 1);
        Client::new("nbdinfo").arg(server.uri(export)).run().failed();
    }
    check_good();
}

/// A block with the CRC-32 and not with the BLAKE3 that its entry has.
#[test]
fn blocks_are_compared_with_what_the_operator_chose() {
    let scene = Scene::new();
    let mut contents = fs::read(fixtures::path("h-base.hxz")).unwrap();
    let record = structure(memory(contents.clone())).unwrap().index().main[0];
    // The last byte of the hash of the first entry.
    contents[record.offset as usize + 8 + 51] ^= 1;
    scene.write("disk.hxz", contents);
    let disk = scene.path("disk.hxz").display().to_string();
    let config = scene.path("hexz-nbd.toml").display().to_string();
    for (options, is_served) in [
        (&[][..], true),
        (&["--check", "crc"], true),
        (&["--check", "blake3"], false),
        (&["--config", &config], false),
    ] {
        fs::write(&config, "check = \"blake3\"").unwrap();
        let server = Process::start(options.iter().chain([&disk.as_str()]));
        let read = format!("h.connect_uri('{}')\nh.pread(1, 0)", server.uri("disk"));
        let nbdsh = Client::new("nbdsh").args(["-c", &read]).run();
        assert_eq!(nbdsh.status.success(), is_served, "{options:?}: {}", nbdsh.text());
        if !is_served {
            let told = |line: &serde_json::Value| {
                line["error"].as_str().is_some_and(|error| error.contains("BLAKE3 differs"))
            };
            server.wait_until(told, 1);
        }
    }
}

/// Copied in the order in which most tools copy: the snapshot first.
#[test]
fn a_manifest_that_comes_later_is_noticed_and_a_key_that_is_replaced_lets_nobody_in() {
    let scene = Scene::new();
    let run = |arguments: &[&str]| {
        Client::new(HEXZ_NBD).args(arguments).current_dir(scene.directory()).run().succeeded();
    };
    run(&["keygen", "keys"]);
    run(&["keygen", "others"]);
    for name in ["disk.hxz", "first.hxz"] {
        scene.write(name, fs::read(fixtures::path("v082-onebyte.hxz")).unwrap());
        run(&["sign", "--key", "keys/private.key", name]);
    }
    let images = scene.path("images");
    fs::create_dir(&images).unwrap();
    let put = |name: &str, from: &str| {
        fs::copy(scene.path(from), images.join("new")).unwrap();
        fs::rename(images.join("new"), images.join(name)).unwrap();
    };
    put("first.hxz.manifest", "first.hxz.manifest");
    put("first.hxz", "first.hxz");
    put("disk.hxz", "disk.hxz");
    let key = scene.path("trusted.key");
    fs::copy(scene.path("keys/public.key"), &key).unwrap();
    let arguments = ["--require-manifest", "--verify-key"].map(std::ffi::OsStr::new);
    let arguments = arguments.into_iter().chain([key.as_os_str(), images.as_os_str()]);
    let server = Process::start(arguments);
    let refused = |export: &str, times: usize| {
        let is_it = |line: &serde_json::Value| {
            line["message"] == "not exported" && line["export"] == export
        };
        server.wait_until(is_it, times);
        Client::new("nbdinfo").args(["--size", &server.uri(export)]).run().failed();
    };
    refused("disk", 1);
    put("disk.hxz.manifest", "disk.hxz.manifest");
    server.wait_for("reloaded", 1);
    for export in ["disk", "first"] {
        Client::new("nbdinfo").args(["--size", &server.uri(export)]).run().succeeded();
    }
    fs::copy(scene.path("others/public.key"), scene.path("replaced")).unwrap();
    fs::rename(scene.path("replaced"), &key).unwrap();
    refused("first", 1);
    refused("disk", 2);
}

/// Two pages change places, those before the last. Gives where they end in the stream.
fn swap_equal_pages(scene: &Scene, name: &str) -> u64 {
    let mut snapshot = scene.read(name).to_vec();
    let structure = structure(memory(snapshot.clone())).unwrap();
    let [first, second, third] = structure.index().pages(Stream::Main) else { panic!() };
    assert_eq!(first.length, second.length);
    let range = |offset: u64| offset as usize..offset as usize + first.length as usize;
    let kept = snapshot[range(first.offset)].to_vec();
    snapshot.copy_within(range(second.offset), first.offset as usize);
    snapshot[range(second.offset)].copy_from_slice(&kept);
    scene.write(name, snapshot);
    third.start_logical
}
