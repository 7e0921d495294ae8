//! A storage that counts what is read from it, and does harm on demand.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hexz_nbd::export::{Catalogue, Export, ExportSettings};
use hexz_nbd::server::{Limits, Policy};
use hexz_nbd::snapshot::{Cache, File, FileBackend, OpenOptions, StorageBackend, Stream};

use crate::support::fixtures;
use crate::support::server::Server;

/// What becomes of a read: it gets the number of the read and the bytes that are stored.
pub(crate) type Harm = fn(u64, &mut [u8]) -> io::Result<()>;

/// A file of `tests/data`.
#[derive(Debug)]
struct Watched {
    file: FileBackend,
    read: Arc<Reads>,
    harm: Harm,
}

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    bytes: AtomicU64,
    count: AtomicU64,
    /// Reads up to this number are left in peace.
    harmless: AtomicU64,
}

impl Reads {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// From now on there is harm.
    pub(crate) fn begin_harm(&self) {
        self.harmless.store(self.count.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

impl StorageBackend for Watched {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read.bytes.fetch_add(buffer.len() as u64, Ordering::SeqCst);
        let number = self.read.count.fetch_add(1, Ordering::SeqCst);
        self.file.read_exact_at(offset, buffer)?;
        if number < self.read.harmless.load(Ordering::SeqCst) {
            return Ok(());
        }
        (self.harm)(number, buffer)
    }

    fn bytes(&self) -> u64 {
        self.file.bytes()
    }

    fn name(&self) -> &str {
        self.file.name()
    }
}

/// A server with one export, `disk`, whose storage is watched, and with a cache of so many bytes.
/// There is no harm before [`Reads::begin_harm`].
pub(crate) async fn watched(file: &str, cache_bytes: u64, harm: Harm) -> (Server, Arc<Reads>) {
    let read = Arc::new(Reads { harmless: AtomicU64::new(u64::MAX), ..Reads::default() });
    let file = FileBackend::new(&fixtures::path(file)).unwrap();
    let backend = Watched { file, read: Arc::clone(&read), harm };
    let cache = Arc::new(Cache::new(cache_bytes));
    let options = OpenOptions { cache, ..OpenOptions::default() };
    let file = File::open_with(Arc::new(backend), options).unwrap();
    let (name, stream) = ("disk".to_owned(), Stream::Main);
    let settings = ExportSettings { name, description: None, stream, as_raw: false };
    let mut catalogue = Catalogue::default();
    catalogue.add(Arc::new(Export::new(file, settings).unwrap())).unwrap();
    (Server::with(Policy::plaintext(catalogue), Limits::default()).await, read)
}

/// No harm at all.
pub(crate) fn harmless(_: u64, _: &mut [u8]) -> io::Result<()> {
    Ok(())
}
