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
