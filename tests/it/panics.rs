//! A bug of ours costs the client that met it its connection, and nobody else anything.

use std::io;
use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hexz_nbd::export::{Catalogue, Export, ExportSettings};
use hexz_nbd::server::{Limits, Policy};
use hexz_nbd::snapshot::storage::StorageBackend;
use hexz_nbd::snapshot::{File, MemoryBackend, OpenOptions, Stream};

use crate::support::fixtures;
use crate::support::server::{Server, contents};

/// Panics once, when it is armed.
#[derive(Debug)]
struct Mine {
    storage: MemoryBackend,
    armed: AtomicBool,
}

impl StorageBackend for Mine {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        assert!(!self.armed.swap(false, Ordering::SeqCst), "stepped on a mine");
        self.storage.read_exact_at(offset, buffer)
    }

    fn bytes(&self) -> u64 {
        self.storage.bytes()
    }

    fn name(&self) -> &str {
        self.storage.name()
    }
}

/// What the server logs on this thread.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The runtime of the test has one thread, so that its log is that of the sessions.
#[tokio::test]
async fn a_read_that_panics_ends_its_client_alone_and_is_logged_as_a_bug() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .with_target(false)
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let file = Bytes::from(std::fs::read(fixtures::path("v082-ext4.hxz")).unwrap());
    let storage = MemoryBackend::new(file, "mined");
    let mine = Arc::new(Mine { storage, armed: AtomicBool::new(false) });
    let limits = Limits { connections_max: NonZeroUsize::new(2).unwrap(), ..Limits::default() };
    let server = Server::with(policy(Arc::clone(&mine)), limits).await;
    let disk = contents("v082-ext4.hxz");
    let mut others = server.open("disk").await;
    let mut somewhere_else = 0;
    for _ in 0..3 {
        let mut unlucky = server.open("disk").await;
        mine.armed.store(true, Ordering::SeqCst);
        somewhere_else = unread(&disk, somewhere_else);
        let offset = somewhere_else as u64;
        unlucky.request(0, 0, 7, offset, 2).await;
        unlucky.expect_end().await;
        assert!(!mine.armed.load(Ordering::SeqCst), "nobody stepped on the mine");
        // The very block, of which nothing half done is left, and for which nobody waits in vain.
        let expected = &disk[somewhere_else..][..2];
        assert_eq!(others.read(offset, 2).await, expected);
        assert_eq!(others.read(1080, 2).await, [0x53, 0xef]);
    }
    // Every session has logged its end then.
    server.stop();
    server.stopped().await.unwrap();
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let reports = text.lines().filter(|line| {
        line.contains(" ERROR connection{id=c")
            && line.contains("closed by a bug in hexz-nbd; please report it peer=127.0.0.1:")
            && line.contains("stepped on a mine")
    });
    assert_eq!(reports.count(), 3, "{text}");
}

/// A place in a block that nobody has read yet: further on than the largest block, 256 KiB, reaches,
/// and no zeros, of which all blocks are the same.
fn unread(disk: &[u8], last: usize) -> usize {
    let from = last + (256 << 10);
    from + disk[from..].iter().position(|byte| *byte != 0).unwrap()
}

fn policy(storage: Arc<Mine>) -> Policy {
    let file = File::open_with(storage, OpenOptions::default()).unwrap();
    let (name, description) = ("disk".to_owned(), None);
    let settings = ExportSettings { name, description, stream: Stream::Main, as_raw: false };
    let mut catalogue = Catalogue::default();
    catalogue.add(Arc::new(Export::new(file, settings).unwrap())).unwrap();
    Policy::plaintext(catalogue)
}
