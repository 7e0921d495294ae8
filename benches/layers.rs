//! One benchmark for each layer: layer/operation/condition/size.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a benchmark fails by panicking"
)]

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hexz_nbd::export::{Catalogue, Export, ExportSettings};
use hexz_nbd::nbd::{Contexts, Outbox, Piece, Replies, Terms, Transmission, Work};
use hexz_nbd::server::{Access, Endpoint, ExportAccess, Insecure, Limits, Policy, Server};
use hexz_nbd::server::{Tls, TlsMode};
use hexz_nbd::snapshot::write::{Method, ZstdLevel};
use hexz_nbd::snapshot::{Check, Compressor, File, Lz4Compressor, Stream, ZstdCompressor};
use hexz_nbd::tls::issue::{Authority, Client, Validity};
use hexz_nbd::tls::{ClientAuth, Material, MinVersion, ServerFiles, Sources, TlsConfig};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection};
use tokio_util::sync::CancellationToken;

use crate::support::{BLOCK, image, open, open_checked, pack, request, warm};

mod support;

const IMAGE_BYTES: usize = 64 << 20;

criterion_group!(layers, snapshot, nbd, server, tls);
criterion_main!(layers);

struct Snapshots {
    _directory: tempfile::TempDir,
    lz4: PathBuf,
    zstd: PathBuf,
}

fn snapshots() -> Snapshots {
    let directory = tempfile::tempdir().unwrap();
    let image = image(IMAGE_BYTES);
    let lz4 = pack(directory.path(), "lz4.hxz", &image, Method::Lz4);
    let zstd = pack(directory.path(), "zstd.hxz", &image, Method::Zstd(ZstdLevel::DEFAULT));
    Snapshots { _directory: directory, lz4, zstd }
}

fn snapshot(criterion: &mut Criterion) {
    let files = snapshots();
    let plain = image(BLOCK);
    let mut group = criterion.benchmark_group("snapshot");

    let file = open(&files.lz4, 256 << 20);
    group.bench_function("open/lz4/64MiB", |b| b.iter(|| open(&files.lz4, 0)));
    let mut position = 0;
    group.bench_function("locate/warm/4KiB", |b| {
        b.iter(|| {
            position = (position + 7_777_777) % (IMAGE_BYTES as u64 - 4096);
            let range = position..position + 4096;
            black_box(file.extents(Stream::Main, range).unwrap().next())
        });
    });

    group.throughput(Throughput::Bytes(BLOCK as u64));
    let mut out = vec![0; BLOCK];
    let stored = lz4_flex::block::compress_prepend_size(&plain);
    let lz4 = Lz4Compressor::new();
    group.bench_function("decode/lz4/64KiB", |b| {
        b.iter(|| lz4.decompress(black_box(&stored), &mut out).unwrap());
    });
    let stored = zstd::bulk::compress(&plain, 3).unwrap();
    let zstd = ZstdCompressor::new(Vec::new()).unwrap();
    group.bench_function("decode/zstd/64KiB", |b| {
        b.iter(|| zstd.decompress(black_box(&stored), &mut out).unwrap());
    });
    group.bench_function("check/crc32/64KiB", |b| b.iter(|| crc32fast::hash(black_box(&plain))));
    group.bench_function("check/blake3/64KiB", |b| b.iter(|| blake3::hash(black_box(&plain))));

    for (condition, path, cache_bytes, check) in [
        ("warm", &files.lz4, 256 << 20, Check::Crc),
        ("cold-lz4", &files.lz4, 0, Check::Crc),
        ("cold-lz4-check-blake3", &files.lz4, 0, Check::Blake3),
        ("cold-zstd", &files.zstd, 0, Check::Crc),
        ("cold-zstd-check-blake3", &files.zstd, 0, Check::Blake3),
    ] {
        let file = open_checked(path, cache_bytes, check);
        file.slices(Stream::Main, 0, IMAGE_BYTES as u64).unwrap();
        let mut block = 0;
        group.bench_function(format!("read/{condition}/64KiB"), |b| {
            b.iter(|| {
                block = (block + 37) % (IMAGE_BYTES / BLOCK);
                let offset = (block * BLOCK) as u64;
                black_box(file.slices(Stream::Main, offset, BLOCK as u64).unwrap())
            });
        });
    }
    group.finish();
}

fn nbd(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("nbd");
    let request = request(1, 0, 4096);
    let data = bytes::Bytes::from(vec![7; 4096]);
    for (condition, replies) in [("cached", Replies::Simple), ("structured", Replies::Structured)] {
        let terms = Terms { export_bytes: 1 << 30, replies, contexts: Contexts::default() };
        let mut session = Transmission::new(terms, Outbox::default());
        session.allow(1 << 30);
        group.bench_function(format!("request-to-reply/{condition}/4KiB"), |b| {
            b.iter(|| {
                let mut input = BytesMut::from(&request[..]);
                let Some(Work::Read(read)) = session.next_work(&mut input).unwrap() else {
                    panic!()
                };
                session.reply(read, Ok(vec![Piece::Data(data.clone())]));
                let owed = bytes::Buf::remaining(session.outbox());
                bytes::Buf::advance(session.outbox(), owed);
            });
        });
    }
    group.finish();
}

fn server(criterion: &mut Criterion) {
    let files = snapshots();
    let warm = warm(&files.lz4, 256 << 20, IMAGE_BYTES);
    let address = serve(vec![("warm", warm), ("cold", open(&files.zstd, 0))]);

    let mut group = criterion.benchmark_group("server");
    group.bench_function("connect/plain/go", |b| b.iter(|| connect(address, "warm")));
    let mut client = connect(address, "warm");
    let mut read_random = |length: u32| {
        static SEED: AtomicU64 = AtomicU64::new(1);
        let draw = SEED.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let offset = draw % (IMAGE_BYTES as u64 - u64::from(length));
        read(&mut client, offset, length);
    };
    group.bench_function("read/warm/4KiB", |b| b.iter(|| read_random(4096)));

    // What a warm client notices of one that makes the server decode all the time.
    let stop = Arc::new(AtomicBool::new(false));
    let other = {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            let mut client = connect(address, "cold");
            let mut offset = 0;
            while !stop.load(Ordering::Relaxed) {
                for queued in 0..8 {
                    let offset = (offset + queued * (1 << 20)) % (IMAGE_BYTES as u64);
                    client.write_all(&request(offset, offset, 1 << 20)).unwrap();
                }
                client.read_exact(&mut vec![0; 8 * (16 + (1 << 20))]).unwrap();
                offset += 8 << 20;
            }
        })
    };
    group.bench_function("read/warm-beside-cold-zstd/4KiB", |b| b.iter(|| read_random(4096)));
    stop.store(true, Ordering::Relaxed);
    other.join().unwrap();

    group.throughput(Throughput::Bytes(256 * 1024));
    group.bench_function("read/warm/256KiB", |b| b.iter(|| read_random(256 * 1024)));
    let mut cold = connect(address, "cold");
    let mut offset = 0;
    group.bench_function("read/cold-zstd/256KiB", |b| {
        b.iter(|| {
            read(&mut cold, offset, 256 * 1024);
            offset = (offset + 256 * 1024) % (IMAGE_BYTES as u64);
        });
    });
    group.finish();
}

/// What it costs to come in, and what a client that is served already notices of those who do.
fn tls(criterion: &mut Criterion) {
    let files = snapshots();
    let warm = warm(&files.lz4, 256 << 20, IMAGE_BYTES);
    let directory = tempfile::tempdir().unwrap();
    let (policy, client) = pki(directory.path(), catalogue(vec![("warm", warm)]));
    let address = run(policy);

    let mut group = criterion.benchmark_group("tls");
    group.sample_size(50);
    group.bench_function("handshake/mutual/p256", |b| b.iter(|| shake_hands(address, &client)));
    let mut reader = connect(address, "warm");
    group.bench_function("read/warm/4KiB", |b| b.iter(|| read(&mut reader, 4096, 4096)));
    let stop = Arc::new(AtomicBool::new(false));
    let knocking: Vec<_> = (0..8)
        .map(|_| {
            let (stop, client) = (Arc::clone(&stop), Arc::clone(&client));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    shake_hands(address, &client);
                }
            })
        })
        .collect();
    group.bench_function("read/warm-beside-8-handshakes/4KiB", |b| {
        b.iter(|| read(&mut reader, 4096, 4096));
    });
    stop.store(true, Ordering::Relaxed);
    knocking.into_iter().for_each(|thread| thread.join().unwrap());
    group.finish();
}

/// A server that lets plaintext clients read, and a client with a certificate for the others.
fn pki(directory: &Path, catalogue: Catalogue) -> (Policy, Arc<ClientConfig>) {
    let validity = Validity::days(time::OffsetDateTime::now_utc(), 1).unwrap();
    let (authority, ca) = Authority::generate(validity).unwrap();
    let server = authority.server(&["localhost".parse().unwrap()], validity).unwrap();
    let identity = Client { common_name: "bench".into(), ..Client::default() };
    let client = authority.client(&identity, validity).unwrap();

    let bundle = directory.join("srv.pem");
    let text = [&*server.key_pem, &server.certificate_pem, &ca.certificate_pem].concat();
    std::fs::write(&bundle, text).unwrap();
    let material = Material::load(&Sources {
        server: ServerFiles::Files { cert: bundle, key: None },
        client_cas: vec![],
        crls: vec![],
        credentials_directory: None,
        client_auth: ClientAuth::Required,
        insecure_key_permissions: true,
    });
    let config = TlsConfig::new(&material.unwrap(), MinVersion::Tls12).unwrap();
    let open = ExportAccess { plaintext: true, ..ExportAccess::default() };
    let access = Access { exports: [("warm".to_owned(), open)].into(), ..Access::default() };
    let tls = Some(Tls { mode: TlsMode::Selective, config });

    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.certificate).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::from_pem_slice(client.key_pem.as_bytes()).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![client.certificate], key)
        .unwrap();
    (Policy { catalogue: Arc::new(catalogue), tls, access }, Arc::new(client))
}

/// Connects, begins TLS, and has an option answered: then the server has accepted the client.
fn shake_hands(address: SocketAddr, config: &Arc<ClientConfig>) {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.read_exact(&mut [0; 18]).unwrap();
    socket.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x05\0\0\0\0").unwrap();
    socket.read_exact(&mut [0; 20]).unwrap();
    let name = "localhost".try_into().unwrap();
    let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    stream.write_all(b"IHAVEOPT\0\0\0\x02\0\0\0\0").unwrap();
    stream.read_exact(&mut [0; 20]).unwrap();
}

/// Serves in plaintext until the process ends.
fn serve(files: Vec<(&'static str, Arc<File>)>) -> SocketAddr {
    run(Policy::plaintext(catalogue(files)))
}

fn catalogue(files: Vec<(&'static str, Arc<File>)>) -> Catalogue {
    let mut catalogue = Catalogue::default();
    for (name, file) in files {
        let name = name.to_owned();
        let settings =
            ExportSettings { name, description: None, stream: Stream::Main, as_raw: false };
        catalogue.add(Arc::new(Export::new(file, settings).unwrap())).unwrap();
    }
    catalogue
}

fn run(policy: Policy) -> SocketAddr {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async move {
            let endpoint = Endpoint::Tcp((Ipv4Addr::LOCALHOST, 0).into());
            let (limits, insecure) = (Limits::default(), Insecure::default());
            let server = Server::bind(&[endpoint], policy, limits, insecure).await.unwrap();
            let Some(Endpoint::Tcp(address)) = server.endpoints().next() else { panic!() };
            sender.send(*address).unwrap();
            server.run(CancellationToken::new()).await
        })
    });
    receiver.recv().unwrap()
}

fn connect(address: SocketAddr, export: &str) -> TcpStream {
    let mut client = TcpStream::connect(address).unwrap();
    client.set_nodelay(true).unwrap();
    client.read_exact(&mut [0; 18]).unwrap();
    let name = export.as_bytes();
    let length = u32::try_from(name.len()).unwrap();
    let mut hello = 3_u32.to_be_bytes().to_vec();
    hello.extend_from_slice(b"IHAVEOPT");
    for number in [7, length + 6, length] {
        hello.extend_from_slice(&number.to_be_bytes());
    }
    hello.extend_from_slice(name);
    hello.extend_from_slice(&[0, 0]);
    client.write_all(&hello).unwrap();
    // One fact, then the acknowledgement.
    client.read_exact(&mut [0; 20 + 12 + 20]).unwrap();
    client
}

fn read(client: &mut TcpStream, offset: u64, length: u32) {
    client.write_all(&request(offset, offset, length)).unwrap();
    let mut reply = vec![0; 16 + length as usize];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..8], 0x6744_6698_0000_0000_u64.to_be_bytes());
}
