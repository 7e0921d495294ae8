//! Real clients against the real binary.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;

use hexz_nbd::snapshot::{File, Stream};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::fixtures::{self, Fixture, Kind, key_file_options, sha256};
use crate::support::process::{Client, Output, Process, refused};

/// An export and what every client must read from it.
pub(crate) struct Expected {
    pub(crate) name: String,
    argument: String,
    size: u64,
    sha256: String,
    /// Empty where the manifest has none.
    chunk_sha256_64k: Vec<String>,
}

impl Expected {
    pub(crate) fn new(fixture: &Fixture) -> Self {
        let mut argument = argument(&fixture.file);
        if fixture.is_archive() {
            argument.push_str(",as-raw");
        }
        if let Some(public_key) = &fixture.public_key_file {
            argument.push_str(&format!(",verify-key={}", self::argument(public_key)));
        }
        let (size, sha256, chunk_sha256_64k) = match (&fixture.recoverable_main, &fixture.main) {
            (Some(recoverable), _) => {
                argument.push_str(",size=index");
                (recoverable.size, recoverable.sha256.clone(), Vec::new())
            }
            (None, Some(main)) => (main.size, main.sha256.clone(), main.chunk_sha256_64k.clone()),
            (None, None) => panic!("{} has no main stream", fixture.file),
        };
        Self { name: stem(&fixture.file).to_owned(), argument, size, sha256, chunk_sha256_64k }
    }

    /// The auxiliary stream, if there is one.
    pub(crate) fn auxiliary(fixture: &Fixture) -> Option<Self> {
        let content = fixture.aux.as_ref()?;
        let name = format!("{}-aux", stem(&fixture.file));
        let mut argument = format!("{name}={},stream=aux", argument(&fixture.file));
        if fixture.is_archive() {
            argument.push_str(",as-raw");
        }
        Some(Self {
            name,
            argument,
            size: content.size,
            sha256: content.sha256.clone(),
            chunk_sha256_64k: content.chunk_sha256_64k.clone(),
        })
    }

    pub(crate) fn check(&self, bytes: &[u8], client: &str) {
        assert_eq!(bytes.len() as u64, self.size, "{} with {client}", self.name);
        for (number, digest) in self.chunk_sha256_64k.iter().enumerate() {
            let chunk = &bytes[number << 16..bytes.len().min((number + 1) << 16)];
            assert_eq!(&sha256(chunk)[..16], digest, "{} with {client}: {number}", self.name);
        }
        assert_eq!(sha256(bytes), self.sha256, "{} with {client}", self.name);
    }
}

/// Every stream of every file that a release has made.
fn expected() -> Vec<Expected> {
    let mut all = Vec::new();
    for fixture in fixtures::all().iter().filter(|fixture| fixture.kind == Kind::Valid) {
        all.push(Expected::new(fixture));
        all.extend(Expected::auxiliary(fixture));
    }
    assert!(all.len() > 55, "{} exports", all.len());
    all
}

pub(crate) fn serve(exports: &[Expected]) -> Process {
    let arguments = exports.iter().map(|export| export.argument.clone());
    Process::start(key_file_options().into_iter().chain(arguments))
}

/// A server with these files of `tests/data`.
fn serve_files(files: &[&str]) -> Process {
    Process::start(files.iter().map(|file| argument(file)))
}

/// A file of `tests/data` on the command line, where a comma is written twice.
fn argument(file: &str) -> String {
    fixtures::path(file).to_str().unwrap().replace(',', ",,")
}

fn stem(file: &str) -> &str {
    file.strip_suffix(".hxz").unwrap()
}

/// Copies an export into a file of that directory and reads it.
pub(crate) fn nbdcopy(uri: &str, directory: &TempDir, options: &[&str]) -> Vec<u8> {
    let copy = directory.path().join("nbdcopy.img");
    Client::new("nbdcopy").args(options).args([uri.as_ref(), copy.as_os_str()]).run().succeeded();
    take(&copy)
}

/// The export as qemu reads it, which rounds sizes up to whole sectors: the zeros that it adds are
/// checked and cut off.
fn qemu_copy(export: &Expected, uri: &str, directory: &TempDir) -> Vec<u8> {
    let copy = directory.path().join("qemu.img");
    let convert = Client::new("qemu-img").args(["convert", "-f", "raw", "-O", "raw", uri]);
    convert.arg(&copy).run().succeeded();
    let mut bytes = take(&copy);
    assert_eq!(bytes.len() as u64, export.size.next_multiple_of(512), "{}", export.name);
    let added = bytes.split_off(export.size as usize);
    assert!(added.iter().all(|byte| *byte == 0), "{}: {added:?}", export.name);
    bytes
}

fn qemu_io(uri: &str, command: &str) -> Output {
    Client::new("qemu-io").args(["-r", "-f", "raw", "-c", command, uri]).run()
}

/// Reads a file and removes it, so that the next client cannot live on it.
fn take(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    std::fs::remove_file(path).unwrap();
    bytes
}

/// What every script begins with.
const PRELUDE: &str = r#"
import errno, json, os, random
uri = os.environ["EXPORT_URI"]
image = open(os.environ["IMAGE"], "rb").read()

def refused_with(number, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == number, error
    else:
        raise AssertionError("not refused")
"#;

/// Connects libnbd to the export and runs a script that has the connection as `h` and the bytes
/// that it must read as `image`. It fails by an assertion.
fn nbdsh(uri: &str, image: &[u8], script: &str) -> Output {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, image).unwrap();
    let client = Client::new("nbdsh").env("IMAGE", file.path()).env("EXPORT_URI", uri);
    client.args(["-u", uri, "-c", PRELUDE, "-c", script]).run()
}

fn nbdinfo(arguments: &[&str]) -> Value {
    Client::new("nbdinfo").arg("--json").args(arguments).run().succeeded().json()
}

fn names(listing: &Value) -> BTreeSet<String> {
    let exports = listing["exports"].as_array().unwrap();
    exports.iter().map(|export| export["export-name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn nbdcopy_reads_every_stream_of_every_plain_file_over_tcp_and_unix() {
    let (exports, directory) = (expected(), tempfile::tempdir().unwrap());
    let server = serve(&exports);
    for (number, export) in exports.iter().enumerate() {
        let bytes = nbdcopy(&server.uri(&export.name), &directory, &[]);
        export.check(&bytes, "nbdcopy");
        if number % 4 == 0 {
            let bytes = nbdcopy(&server.unix_uri(&export.name), &directory, &[]);
            export.check(&bytes, "nbdcopy over a Unix socket");
        }
    }
}

#[test]
fn qemu_img_converts_every_stream_of_every_plain_file() {
    let (exports, directory) = (expected(), tempfile::tempdir().unwrap());
    let server = serve(&exports);
    for export in &exports {
        let bytes = qemu_copy(export, &server.uri(&export.name), &directory);
        export.check(&bytes, "qemu");
    }
    assert!(exports.iter().any(|export| export.size % 512 != 0 && export.size > 512));
    let ext4 = exports.iter().find(|export| export.name == "v082-ext4").unwrap();
    let bytes = qemu_copy(ext4, &server.unix_uri("v082-ext4"), &directory);
    ext4.check(&bytes, "qemu over a Unix socket");
}

#[test]
fn nbdcopy_with_four_connections_and_64_requests_each_reads_the_same() {
    let directory = tempfile::tempdir().unwrap();
    for file in ["v082-ext4.hxz", "v020-lz4-multipage.hxz", "v082-lz4-default.hxz"] {
        let export = Expected::new(&fixtures::named(file));
        let server = serve(std::slice::from_ref(&export));
        let options = ["--connections=4", "--threads=4", "--requests=64", "--request-size=65536"];
        let bytes = nbdcopy(&server.uri(&export.name), &directory, &options);
        export.check(&bytes, "nbdcopy with four connections");
        server.wait_for("opened", 4);
    }
}

#[test]
fn a_directory_is_served_without_the_files_that_cannot_be() {
    let directory = fixtures::path("").to_str().unwrap().replace(',', ",,");
    // nbdinfo looks into one export after another on connections of their own, and the one by which
    // it lists them waits.
    let patience = ["--negotiation-timeout", "1min"].map(str::to_owned);
    let options = key_file_options().into_iter().chain(patience);
    let server = Process::start(options.chain([directory]));
    let listed = names(&nbdinfo(&["--list", &server.uri("")]));
    let refused: Vec<String> = server
        .log()
        .iter()
        .filter(|line| line["message"] == "not exported")
        .map(|line| line["file"].to_string())
        .collect();
    for fixture in fixtures::all() {
        let is_served = listed.contains(stem(&fixture.file));
        let is_refused = refused.iter().any(|file| file.contains(&fixture.file));
        assert_ne!(is_served, is_refused, "{}", fixture.file);
        match &fixture.expect {
            Some(expect) if expect.open == "must-fail" => assert!(!is_served, "{}", fixture.file),
            Some(expect) if expect.open == "may-fail" => {}
            Some(_) => assert!(is_served, "{}", fixture.file),
            None => {
                let is_image = !fixture.is_archive() && fixture.recoverable_main.is_none();
                assert_eq!(is_served, is_image, "{}", fixture.file);
            }
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let export = Expected::new(&fixtures::named("h-base.hxz"));
    export.check(&nbdcopy(&server.uri("h-base"), &directory, &[]), "nbdcopy");
}

#[test]
fn a_file_that_cannot_be_served_ends_the_start_with_one_line_that_names_it() {
    let mut files = 0;
    for fixture in fixtures::all() {
        let must_fail = match &fixture.expect {
            Some(expect) => expect.open == "must-fail",
            // Nobody has told the passphrase.
            None => fixture.encrypted,
        };
        if !must_fail {
            continue;
        }
        files += 1;
        let (code, line) = refused(&["--listen", "127.0.0.1:0", &argument(&fixture.file)]);
        assert_eq!(code, 1, "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.starts_with("hexz-nbd: ") && line.contains(&fixture.file), "{line}");
    }
    assert!(fixtures::all().iter().any(|fixture| fixture.kind == Kind::Hostile));
    assert!(files >= 9, "{files} files");
}

#[test]
fn a_damaged_block_is_an_error_for_its_bytes_and_for_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let mut damaged = 0;
    for fixture in fixtures::all() {
        let Some(expect) = fixture.expect.as_ref().filter(|e| e.open == "must-succeed") else {
            continue;
        };
        damaged += 1;
        let server = serve_files(&[fixture.derived_from.as_deref().unwrap(), &fixture.file]);
        let intact = nbdcopy(&server.uri("h-base"), &directory, &[]);
        assert_eq!(Some(sha256(&intact)), fixture.main_sha256_if_intact);
        let uri = server.uri(stem(&fixture.file));
        let copy = directory.path().join("never.img");
        let copied = Client::new("nbdcopy").args([uri.as_ref(), copy.as_os_str()]).run().failed();
        assert!(copied.stderr.contains("Input/output error"), "{}", copied.stderr);

        let bad = expect.bad_main_ranges.as_ref().unwrap();
        let script = format!("bad = {}\n{READ_AROUND_DAMAGE}", json!(bad));
        nbdsh(&uri, &intact, &script).succeeded();
        // The next client finds everything as it was.
        nbdsh(&uri, &intact, &script).succeeded();
        server.wait_for("read failed", 1);
    }
    assert_eq!(damaged, 2);
}

/// One connection from the first to the last read: an error ends nothing.
const READ_AROUND_DAMAGE: &str = r#"
def check(offset, length):
    damaged = any(offset < start + count and start < offset + length for start, count in bad)
    if damaged:
        refused_with(errno.EIO, lambda: h.pread(length, offset))
    else:
        assert h.pread(length, offset) == image[offset : offset + length], (offset, length)
    return damaged

size = h.get_size()
assert size == len(image)
results = [check(offset, min(4096, size - offset)) for offset in range(0, size, 4096)]
assert set(results) == {False, True}
for start, count in bad:
    assert not check(start - 1, 1)
    assert check(start, 1)
    assert check(start + count - 1, 1)
    assert not check(start + count, 1)
"#;

#[test]
fn an_ext4_image_that_came_over_nbd_is_clean_and_has_its_files() {
    let directory = tempfile::tempdir().unwrap();
    let export = Expected::new(&fixtures::named("v082-ext4.hxz"));
    let server = serve(std::slice::from_ref(&export));
    let image = directory.path().join("ext4.img");
    let image = image.to_str().unwrap();
    Client::new("nbdcopy").args([&server.uri(&export.name), image]).run().succeeded();

    let checked = Client::new("e2fsck").args(["-f", "-n", image]).run().succeeded();
    assert!(checked.text().contains("84/4096 files"), "{}", checked.text());
    for (file, digest) in [
        ("/records.db", "36805ab35015199c3729f8e1be58407a68e68324e6408fd29d5b1887efea85a9"),
        ("/bin/blob2.bin", "8afd4d5e74e98baa6619551c6a307574f6809e19f14396084728d27f8cd902e4"),
        ("/dir00/file007.txt", "9d227a4af3b58124be9a7027d1220af23d596036bfeb42022f639a8b36153915"),
    ] {
        let command = format!("cat {file}");
        let content = Client::new("debugfs").args(["-R", &command, image]).run().succeeded();
        assert_eq!(sha256(&content.stdout), digest, "{file}: {}", content.stderr);
    }
}

#[test]
fn nbdinfo_shows_size_flags_block_sizes_and_description() {
    let multipage = argument("v020-lz4-multipage.hxz");
    let server = Process::start([
        &*argument("v082-ext4.hxz"),
        &format!("small={multipage},desc=512-byte blocks,, version 0.2"),
    ]);
    let exports = nbdinfo(&[&server.uri("v082-ext4")]);
    let flags = |export: &Value| {
        for (flag, expected) in [
            ("is_read_only", true),
            ("can_multi_conn", true),
            ("can_flush", true),
            ("can_df", true),
            ("is_rotational", false),
            ("can_trim", false),
            ("can_zero", false),
            ("can_fua", false),
            ("can_cache", true),
        ] {
            assert_eq!(export[flag], expected, "{flag}");
        }
    };
    let export = &exports["exports"][0];
    flags(export);
    assert_eq!(exports["protocol"], "newstyle-fixed");
    assert_eq!(exports["structured"], true);
    assert_eq!(export["export-size"], 16_777_216);
    assert_eq!(export["block_size_minimum"], 1);
    assert_eq!(export["block_size_preferred"], 65_536);
    assert_eq!(export["block_size_maximum"], 32 << 20);
    assert_eq!(export["description"], "Hexz snapshot, image, lz4, stored in 753981 bytes");

    let text = Client::new("nbdinfo").arg(server.uri("v082-ext4")).run().succeeded();
    assert!(text.text().contains("using structured packets"), "{}", text.text());

    let listing = nbdinfo(&["--list", &server.unix_uri("")]);
    let small = &listing["exports"][1];
    flags(small);
    assert_eq!(small["export-name"], "small");
    assert_eq!(small["export-size"], 4_608_000);
    assert_eq!(small["block_size_preferred"], 512);
    assert_eq!(small["description"], "512-byte blocks, version 0.2");
    assert_eq!(names(&listing), ["small", "v082-ext4"].map(String::from).into());
}

/// nbd-client reads every name and description into a buffer of 1024 bytes.
#[test]
fn nbd_client_lists_every_export_and_survives_a_long_description() {
    let onebyte = argument("v082-onebyte.hxz");
    let long = "long description ".repeat(200);
    let server = Process::start([
        format!("a={onebyte},desc={long}"),
        format!("b={onebyte},desc=a short one"),
        format!("c={onebyte}"),
    ]);
    let socket = server.socket();
    let tcp = ["-l", "127.0.0.1", &server.port().to_string()].map(String::from);
    let unix = ["-l", "-unix", socket.to_str().unwrap()].map(String::from);
    for arguments in [tcp, unix] {
        let output = Client::new("nbd-client").args(&arguments).run().succeeded();
        let listed: Vec<(&str, &str)> =
            output.text().lines().filter_map(|line| line.split_once(": ")).collect();
        let [(_, cut), short, own] = listed[listed.len() - 3..] else { unreachable!() };
        assert!(cut.len() > 900 && long.starts_with(cut), "{}", output.text());
        assert_eq!(short, ("b", "a short one"));
        assert_eq!(own, ("c", "Hexz snapshot, image, zstd, stored in 4226 bytes"));
    }
}

#[test]
fn libnbd_reads_any_offset_and_length() {
    let directory = tempfile::tempdir().unwrap();
    // Their sizes are multiples of nothing.
    for file in ["v082-lz4-default.hxz", "v051-zstd-cdc.hxz", "v082-onebyte.hxz"] {
        let export = Expected::new(&fixtures::named(file));
        let server = serve(std::slice::from_ref(&export));
        let uri = server.uri(&export.name);
        let image = nbdcopy(&uri, &directory, &[]);
        export.check(&image, "nbdcopy");
        nbdsh(&uri, &image, READ_ANYWHERE).succeeded();
        nbdsh(&server.unix_uri(&export.name), &image, READ_ANYWHERE).succeeded();
    }
}

const READ_ANYWHERE: &str = r#"
size = h.get_size()
assert size == len(image)
reads = [(0, 1), (1, 1), (511, 2), (4097, 999), (65535, 3), (65537, 131071)]
reads += [(0, size), (size - 1, 1), (size // 2, size - size // 2)]
dice = random.Random(1)
for _ in range(300):
    offset = dice.randrange(size)
    reads.append((offset, dice.randrange(1, size - offset + 1) % 300000 + 1))
checked = 0
for offset, length in reads:
    length = min(length, size - offset)
    if length > 0:
        assert h.pread(length, offset) == image[offset : offset + length], (offset, length)
        checked += 1
assert checked > 300
"#;

#[test]
fn nbdcopy_reads_a_sparse_image_whatever_it_makes_of_the_holes() {
    let directory = tempfile::tempdir().unwrap();
    for file in ["v082-zeros-sparse.hxz", "v020-lz4-sparse-signed.hxz", "v014-zstd-cdc.hxz"] {
        let export = Expected::new(&fixtures::named(file));
        let server = serve(std::slice::from_ref(&export));
        for options in [&[][..], &["--allocated"], &["--synchronous"]] {
            let bytes = nbdcopy(&server.uri(&export.name), &directory, options);
            export.check(&bytes, "nbdcopy");
        }
    }
}

#[test]
fn libnbd_sees_data_and_holes_as_chunks() {
    let directory = tempfile::tempdir().unwrap();
    for file in ["v082-lz4-default.hxz", "v082-ext4.hxz", "v020-lz4-multipage.hxz"] {
        let export = Expected::new(&fixtures::named(file));
        let server = serve(std::slice::from_ref(&export));
        let image = nbdcopy(&server.uri(&export.name), &directory, &[]);
        export.check(&image, "nbdcopy");
        let snapshot = File::open(fixtures::path(file)).unwrap();
        let holes: Vec<(u64, u64)> = snapshot
            .extents(Stream::Main, 0..export.size)
            .unwrap()
            .map(Result::unwrap)
            .filter(|extent| extent.is_hole)
            .map(|extent| (extent.range.start, extent.range.end))
            .collect();
        let script = format!("holes = {}\n{READ_STRUCTURED}", json!(holes));
        nbdsh(&server.uri(&export.name), &image, &script).succeeded();
    }
}

const READ_STRUCTURED: &str = r#"
assert h.get_structured_replies_negotiated() and h.can_df()
assert holes
size = h.get_size()

def read(offset, length, flags=0):
    chunks = []
    def chunk(data, position, status, error):
        chunks.append((position, bytes(data), status))
        assert error.value == 0
    assert h.pread_structured(length, offset, chunk, flags) == image[offset : offset + length]
    end = offset
    for position, data, status in chunks:
        assert position == end and len(data) > 0
        assert data == image[position : position + len(data)]
        end += len(data)
    assert end == offset + length
    return chunks

def merged(found):
    result = []
    for start, end in found:
        if result and result[-1][1] == start:
            result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result

found = []
for offset in range(0, size, 1 << 20):
    for position, data, status in read(offset, min(1 << 20, size - offset)):
        if status == nbd.READ_HOLE:
            found.append((position, position + len(data)))
        else:
            assert status == nbd.READ_DATA
assert merged(found) == [tuple(hole) for hole in holes]
for start, end in holes[:20]:
    [(position, data, status)] = read(start, 1)
    assert status == nbd.READ_HOLE
    begin = max(start - 100, 0)
    mixed = min(end + 100, size) - begin
    assert len(read(begin, mixed)) > 1
    [(position, data, status)] = read(begin, mixed, nbd.CMD_FLAG_DF)
    assert status == nbd.READ_DATA
"#;

#[test]
fn libnbd_is_told_where_damage_begins_and_gets_what_comes_before() {
    let directory = tempfile::tempdir().unwrap();
    let damaged = fixtures::named("h-flip-block.hxz");
    let [(start, _)] = damaged.expect.unwrap().bad_main_ranges.unwrap()[..] else { panic!() };
    let server = serve_files(&["h-base.hxz", &damaged.file]);
    let image = nbdcopy(&server.uri("h-base"), &directory, &[]);
    let script = format!("start = {start}\n{READ_UP_TO_DAMAGE}");
    nbdsh(&server.uri("h-flip-block"), &image, &script).succeeded();
    server.wait_for("read failed", 1);
    let log = server.log();
    let failed = log.iter().find(|line| line["message"] == "read failed").unwrap();
    assert!(failed["error"].as_str().unwrap().contains(&damaged.file), "{failed}");
}

const READ_UP_TO_DAMAGE: &str = r#"
said = []
h.set_debug(True)
h.set_debug_callback(lambda context, line: said.append(line))
for offset in (0, start - 1, start, start + 1):
    chunks, errors = {}, []
    def chunk(data, position, status, error):
        if status == nbd.READ_ERROR:
            errors.append((position, error.value))
            # The rest of the read goes on, and its result is what counts.
            error.value = 0
        else:
            chunks[position] = bytes(data)
    refused_with(errno.EIO, lambda: h.pread_structured(len(image) - offset, offset, chunk))
    place = max(start, offset)
    assert errors == [(place, errno.EIO)], errors
    before = b"".join(chunks[position] for position in sorted(chunks))
    assert before == image[offset:place], (offset, len(before))
assert any("a block of the snapshot is damaged" in line for line in said), said
assert h.pread(100, 0) == image[:100]
"#;

#[test]
fn what_the_server_refuses_leaves_the_connection_as_good_as_before() {
    let directory = tempfile::tempdir().unwrap();
    let export = Expected::new(&fixtures::named("v082-lz4-default.hxz"));
    let server = serve(std::slice::from_ref(&export));
    let image = nbdcopy(&server.uri(&export.name), &directory, &[]);
    export.check(&image, "nbdcopy");
    let output = nbdsh(&server.uri(&export.name), &image, REFUSED_REQUESTS);
    output.succeeded();
    export.check(&nbdcopy(&server.uri(&export.name), &directory, &[]), "nbdcopy afterwards");
}

/// Without the strict mode libnbd sends what it knows to be wrong.
const REFUSED_REQUESTS: &str = r#"
h.set_strict_mode(0)
size = h.get_size()
for number, call in [
    (errno.EINVAL, lambda: h.pread(1, size)),
    (errno.EINVAL, lambda: h.pread(2, size - 1)),
    (errno.EINVAL, lambda: h.pread(1, 1 << 62)),
    (errno.EINVAL, lambda: h.pread((32 << 20) + 1, 0)),
    (errno.EPERM, lambda: h.pwrite(b"written", 0)),
    (errno.EPERM, lambda: h.pwrite(bytes(3 << 20), 0)),
    (errno.EPERM, lambda: h.pwrite(b"x", size)),
    (errno.EPERM, lambda: h.trim(4096, 0)),
    (errno.EPERM, lambda: h.zero(4096, 0)),
    (errno.EINVAL, lambda: h.cache(2, size - 1)),
]:
    refused_with(number, call)
    assert h.pread(7, 4093) == image[4093:4100]
    h.flush()
assert h.pread(size, 0) == image
h.shutdown()
"#;

#[test]
fn two_connections_see_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve_files(&["v082-ext4.hxz"]);
    let image = nbdcopy(&server.uri(""), &directory, &[]);
    let script = r#"
assert h.can_multi_conn() and h.is_read_only()
other = nbd.NBD()
other.connect_uri(uri)
for offset in range(0, len(image), 1 << 20):
    first, second = h.pread(1 << 20, offset), other.pread(1 << 20, offset)
    assert first == second == image[offset : offset + (1 << 20)], offset
h.flush()
other.shutdown()
assert h.pread(16, 1080) == image[1080:1096]
"#;
    nbdsh(&server.uri("v082-ext4"), &image, script).succeeded();
}

#[test]
fn sixty_four_reads_at_once_are_each_answered_with_their_own_bytes() {
    let directory = tempfile::tempdir().unwrap();
    for file in ["v082-ext4.hxz", "v020-zstd-dict.hxz"] {
        let server = serve_files(&[file]);
        let image = nbdcopy(&server.uri(""), &directory, &[]);
        let script = r#"
size = h.get_size()
for round in range(3):
    asked = []
    for number in range(64):
        length = 4096 + 37 * number
        offset = (number * 7919 + round * 104729) * 131 % (size - length)
        buffer = nbd.Buffer(length)
        asked.append((h.aio_pread(buffer, offset), buffer, offset, length))
    while h.aio_in_flight() > 0:
        h.poll(-1)
    for cookie, buffer, offset, length in asked:
        assert h.aio_command_completed(cookie)
        assert buffer.to_bytearray() == image[offset : offset + length], (offset, length)
"#;
        // A server that nobody has read from yet decodes all of it at once.
        let cold = serve_files(&[file]);
        nbdsh(&cold.uri(""), &image, script).succeeded();
        nbdsh(&server.uri(""), &image, script).succeeded();
    }
}

#[test]
fn qemu_compares_measures_and_reads_an_export() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve_files(&["v082-ext4.hxz", "v082-zeros-sparse.hxz"]);
    let uri = server.uri("v082-ext4");
    let info = Client::new("qemu-img").args(["info", "--output=json", &uri]).run().succeeded();
    assert_eq!(info.json()["virtual-size"], 16_777_216);

    let mut image = nbdcopy(&uri, &directory, &[]);
    let copy = directory.path().join("copy.img");
    let compare = || {
        let arguments = ["compare", "-f", "raw", "-F", "raw", &uri, copy.to_str().unwrap()];
        Client::new("qemu-img").args(arguments).run()
    };
    std::fs::write(&copy, &image).unwrap();
    assert!(compare().succeeded().text().contains("identical"));
    *image.last_mut().unwrap() ^= 1;
    std::fs::write(&copy, &image).unwrap();
    assert_eq!(compare().failed().status.code(), Some(1));

    let zeros = server.uri("v082-zeros-sparse");
    qemu_io(&zeros, "read -P 0 0 1048576").succeeded();
    qemu_io(&zeros, "read -P 1 0 1048576").failed();
    qemu_io(&uri, "read -P 0 262144 786432").succeeded();
}

#[test]
fn qemu_io_cannot_open_an_export_for_writing_or_write_to_it() {
    let server = serve_files(&["v082-ext4.hxz"]);
    let uri = server.uri("v082-ext4");
    let written = Client::new("qemu-io").args(["-f", "raw", "-c", "write 0 512", &uri]).run();
    let written = written.failed();
    assert!(written.stderr.contains("Permission denied"), "{}", written.stderr);
    qemu_io(&uri, "write 0 512").failed();
    qemu_io(&uri, "read 0 512").succeeded();
}

#[test]
fn fio_reads_at_random_without_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve_files(&["v082-ext4.hxz"]);
    let report = directory.path().join("report.json");
    Client::new("fio")
        .current_dir(directory.path())
        .args(["--name=random", "--ioengine=nbd", "--rw=randread", "--readonly", "--bs=4k"])
        .args(["--iodepth=32", "--numjobs=2", "--number_ios=1000", "--output-format=json"])
        .arg(format!("--uri={}", server.uri("v082-ext4")))
        .arg(format!("--output={}", report.display()))
        .run()
        .succeeded();
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    let jobs = report["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), 2);
    for job in jobs {
        assert_eq!(job["error"], 0, "{job}");
        assert_eq!(job["read"]["total_ios"], 1000, "{job}");
        assert_eq!(job["read"]["short_ios"], 0, "{job}");
    }
}

#[test]
fn an_unknown_export_is_refused_with_a_sentence_that_reaches_the_user() {
    let server = serve_files(&["v082-ext4.hxz", "v082-onebyte.hxz"]);
    for (name, sentence) in [
        ("nothing", "there is no export of that name"),
        ("", "there is no default export: ask for one by name"),
    ] {
        let uri = server.uri(name);
        let info = Client::new("qemu-img").args(["info", &uri]).run().failed();
        assert!(info.stderr.contains(sentence), "{}", info.stderr);
        let info = Client::new("nbdinfo").arg(&uri).run().failed();
        assert!(info.stderr.contains("No such file or directory"), "{}", info.stderr);
    }
}

#[test]
fn the_empty_name_is_the_only_export_or_the_chosen_one() {
    let directory = tempfile::tempdir().unwrap();
    let [aux, onebyte] =
        ["v082-lz4-aux.hxz", "v082-onebyte.hxz"].map(|file| Expected::new(&fixtures::named(file)));
    let alone = Process::start([&aux.argument]);
    aux.check(&nbdcopy(&alone.uri(""), &directory, &[]), "nbdcopy");

    let several = Process::start([&aux.argument, &onebyte.argument]);
    let copy = directory.path().join("never.img");
    Client::new("nbdcopy").args([several.uri("").as_ref(), copy.as_os_str()]).run().failed();

    for export in [&aux, &onebyte] {
        let chosen =
            Process::start(["--default-export", &export.name, &aux.argument, &onebyte.argument]);
        export.check(&nbdcopy(&chosen.uri(""), &directory, &[]), "nbdcopy");
        export.check(&nbdcopy(&chosen.unix_uri(""), &directory, &[]), "nbdcopy");
    }
    let (code, line) = refused(&["--default-export", "other", &aux.argument]);
    assert_eq!(code, 2);
    assert!(line.contains("--default-export") && line.contains("other"), "{line}");
}

#[test]
fn sigterm_ends_the_server_with_exit_code_0_while_a_client_is_connected() {
    let mut server = serve_files(&["v082-ext4.hxz"]);
    let uri = server.uri("v082-ext4");
    // The second connection begins when the first has been used.
    let script = r#"
import sys
assert h.pread(512, 0) == bytes(512)
other = nbd.NBD()
other.connect_uri(h.get_uri())
sys.stdin.read()
for connection in h, other:
    try:
        connection.pread(512, 1 << 20)
    except nbd.Error:
        continue
    raise AssertionError("answered by nobody")
"#;
    let client = Client::new("nbdsh").args(["-u", &uri, "-c", script]).start();
    server.wait_for("opened", 2);
    let status = server.terminate();
    assert_eq!(status.code(), Some(0), "{:#?}", server.log());
    assert!(!server.socket().exists());
    client.finish().succeeded();
}

#[test]
fn a_wrong_start_says_what_is_wrong_and_what_to_do() {
    let onebyte = argument("v082-onebyte.hxz");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let size = format!("{onebyte},size=nine");
    let parts: &[(&[&str], i32, &[&str])] = &[
        (
            &["--listen", "0.0.0.0:0", &onebyte],
            2,
            &["0.0.0.0:0", "plaintext", "loopback", "--tls-cert"],
        ),
        (&["--listen", "[::]:0", &onebyte], 2, &["[::]:0", "plaintext", "loopback"]),
        (&["--listen", &taken, &onebyte], 1, &[&taken, "in use"]),
        (&["--writable", &onebyte], 2, &["--writable", "--help"]),
        (&["--listen", "127.0.0.1:0", "/nowhere/disk.hxz"], 1, &["/nowhere/disk.hxz", "No such"]),
        (&[&size], 2, &["size=nine", "size=index"]),
    ];
    for (arguments, code, words) in parts {
        let (found, message) = refused(arguments);
        assert_eq!(found, *code, "{arguments:?}: {message}");
        for word in *words {
            assert!(message.contains(word), "{arguments:?}: no {word:?} in {message}");
        }
    }
}
