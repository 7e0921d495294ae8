//! What real clients make of holes and extents: nbdinfo, nbdsh, nbdcopy and qemu-img.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc::sync_channel;

use hexz_nbd::snapshot::{File, Stream};
use serde_json::Value;

use crate::support::fixtures;
use crate::support::process::{Client, Process};
use crate::support::server::contents;

/// Images with holes of every kind; edges that are no multiple of a sector among them.
const FILES: [&str; 5] = [
    "v014-zstd-cdc.hxz",
    "v020-lz4-multipage.hxz",
    "v082-ext4.hxz",
    "v082-lz4-default.hxz",
    "v082-zeros-sparse.hxz",
];

fn serve(file: &str) -> Process {
    Process::start([fixtures::path(file)])
}

/// Bytes of all extents of a kind, which must cover the export without a gap.
fn covered(extents: &[Value], kind: impl Fn(&Value) -> bool, size: u64) -> Vec<bool> {
    let mut covered = vec![false; size as usize];
    let mut end = 0;
    for extent in extents {
        let offset = extent["offset"].as_u64().or(extent["start"].as_u64()).unwrap();
        let length = extent["length"].as_u64().unwrap();
        assert_eq!(offset, end, "a gap");
        end += length;
        if kind(extent) {
            let cut = end.min(size) as usize;
            covered[offset as usize..cut].fill(true);
        }
    }
    // qemu counts in sectors.
    assert!(end == size || end == size.next_multiple_of(512), "{end} of {size}");
    covered
}

/// Every byte that is called a hole reads as zero, and every whole sector of a hole is called one.
fn check(file: &str, is_hole: &[bool]) {
    let image = contents(file);
    assert!(image.iter().zip(is_hole).all(|(byte, hole)| !hole || *byte == 0), "{file}");
    let snapshot = File::open(fixtures::path(file)).unwrap();
    let extents = snapshot.extents(Stream::Main, 0..image.len() as u64).unwrap();
    for extent in extents.map(Result::unwrap).filter(|extent| extent.is_hole) {
        let sectors = extent.range.start.next_multiple_of(512)..extent.range.end / 512 * 512;
        if !sectors.is_empty() {
            let told = &is_hole[sectors.start as usize..sectors.end as usize];
            assert!(told.iter().all(|hole| *hole), "{file}: {sectors:?}");
        }
    }
}

#[test]
fn nbdinfo_maps_every_hole_of_the_snapshot_and_no_data() {
    for file in FILES {
        let server = serve(file);
        let arguments = ["--map", "--json", &server.uri("")];
        let map = Client::new("nbdinfo").args(arguments).run().succeeded().json();
        let size = contents(file).len() as u64;
        let holes = covered(map.as_array().unwrap(), |extent| extent["type"] == 3, size);
        check(file, &holes);
    }
}

#[test]
fn nbdinfo_maps_what_only_a_snapshot_knows() {
    let server = serve("v082-ext4.hxz");
    for context in ["hexz:shared", "hexz:parent-depth"] {
        let arguments = [&format!("--map={context}"), "--json", &server.uri("")];
        let map = Client::new("nbdinfo").args(arguments).run().succeeded().json();
        let seen = covered(map.as_array().unwrap(), |extent| extent["type"] == 1, 16 << 20);
        assert!(context == "hexz:shared" || !seen.contains(&true), "nothing is of a parent");
    }
    let known = Client::new("nbdinfo").arg(server.uri("")).run().succeeded();
    for context in ["base:allocation", "hexz:parent-depth", "hexz:shared"] {
        assert!(known.text().contains(context), "{}", known.text());
    }
}

#[test]
fn qemu_img_maps_every_hole_of_the_snapshot_and_no_data() {
    for file in FILES {
        let server = serve(file);
        let uri = server.uri("");
        let arguments = ["map", "-f", "raw", "--output=json", &uri];
        let map = Client::new("qemu-img").args(arguments).run().succeeded().json();
        let size = contents(file).len() as u64;
        let holes = covered(map.as_array().unwrap(), |extent| extent["zero"] == true, size);
        check(file, &holes);
    }
}

/// Copies that leave out what the map calls holes are still the image.
#[test]
fn copies_that_trust_the_map_are_the_image() {
    let directory = tempfile::tempdir().unwrap();
    for file in FILES {
        let (server, image) = (serve(file), contents(file));
        let (uri, copy) = (server.uri(""), directory.path().join("copy"));
        Client::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "raw", "-S", "512", &uri])
            .arg(&copy)
            .run()
            .succeeded();
        let mut copied = std::fs::read(&copy).unwrap();
        copied.truncate(image.len());
        assert!(copied == image, "{file} with qemu-img");
        std::fs::remove_file(&copy).unwrap();
        Client::new("nbdcopy").args(["--allocated", &uri]).arg(&copy).run().succeeded();
        assert!(std::fs::read(&copy).unwrap() == image, "{file} with nbdcopy");
        std::fs::remove_file(&copy).unwrap();
        Client::new("nbdcopy").arg(&uri).arg(&copy).run().succeeded();
        assert!(std::fs::read(&copy).unwrap() == image, "{file} with nbdcopy, sparse");
        std::fs::remove_file(&copy).unwrap();
    }
}

#[test]
fn nbdsh_asks_for_extents_and_loads_ahead() {
    const SCRIPT: &str = r#"
assert h.can_meta_context("base:allocation") and h.can_meta_context("hexz:shared")
assert not h.can_meta_context("qemu:dirty-bitmap:x") and h.can_cache()
size = h.get_size()
seen = {}
def extents(context, offset, entries, error):
    assert len(entries) % 2 == 0 and error.value == 0
    seen[context] = (offset, list(zip(entries[::2], entries[1::2])))
for offset, length in [(0, size), (5, 1000), (size - 1, 1), (4096, size - 4096)]:
    seen.clear()
    h.block_status(length, offset, extents)
    assert set(seen) == {"base:allocation", "hexz:shared"}, seen
    for start, entries in seen.values():
        assert start == offset
        assert 0 < sum(bytes for bytes, _ in entries) <= length
    seen.clear()
    h.block_status(length, offset, extents, nbd.CMD_FLAG_REQ_ONE)
    assert all(len(entries) == 1 for _, entries in seen.values())
h.cache(size, 0)
h.shutdown()
"#;
    let server = serve("v082-ext4.hxz");
    Client::new("nbdsh")
        .args(["-c", "h.add_meta_context(\"base:allocation\")"])
        .args(["-c", "h.add_meta_context(\"hexz:shared\")"])
        .args(["-c", &format!("h.connect_uri(\"{}\")", server.uri(""))])
        .args(["-c", SCRIPT])
        .run()
        .succeeded();
}

/// qemu 8.2 and later ask for extended headers, so every test with qemu is one of those.
#[test]
fn qemu_negotiates_extended_headers() {
    let server = serve("v082-ext4.hxz");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let between = listener.local_addr().unwrap();
    let port = server.port();
    let (said, heard) = sync_channel(1);
    let relay = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let (mut to_client, mut from_server) =
            (client.try_clone().unwrap(), server.try_clone().unwrap());
        let back = std::thread::spawn(move || {
            // Either end may be the first to go.
            let _ = std::io::copy(&mut from_server, &mut to_client);
        });
        let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = client.read(&mut buffer) {
            all.extend_from_slice(&buffer[..count]);
            if server.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = server.shutdown(std::net::Shutdown::Both);
        back.join().unwrap();
        said.send(all).unwrap();
    });
    let uri = format!("nbd://{between}/");
    let arguments = ["map", "-f", "raw", "--output=json", &uri];
    Client::new("qemu-img").args(arguments).run().succeeded();
    relay.join().unwrap();
    let all = heard.recv().unwrap();
    let has = |bytes: &[u8]| all.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(b"IHAVEOPT\0\0\0\x0b\0\0\0\0"), "it did not ask");
    assert!(has(&0x21e4_1c71_u32.to_be_bytes()), "it sent no extended request");
}
