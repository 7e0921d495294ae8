//! A server in this process, on a port of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hexz_nbd::export::{Catalogue, Export, ExportSettings};
use hexz_nbd::server::{self, Endpoint, Insecure, Limits, Policy, Reloader, ServerError, Streams};
use hexz_nbd::snapshot::{File, Stream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::client::Client;
use crate::support::fixtures;

/// What [`Server::start`] exports: name, and the file behind it.
pub(crate) const EXPORTS: [(&str, &str); 4] = [
    ("damaged", "h-flip-block.hxz"),
    ("disk", "v082-ext4.hxz"),
    ("empty", "v082-empty.hxz"),
    ("zstd", "v082-zstd.hxz"),
];

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    reloader: Reloader,
    streams: Streams,
    stop: CancellationToken,
    running: JoinSet<Result<(), ServerError>>,
}

impl Server {
    /// Exports [`EXPORTS`], of which `disk` is the default.
    pub(crate) async fn start() -> Self {
        Self::with_limits(Limits::default()).await
    }

    pub(crate) async fn with_limits(limits: Limits) -> Self {
        Self::exporting(&EXPORTS, limits).await
    }

    /// Exports these files under these names, of which one is `disk`.
    pub(crate) async fn exporting(exports: &[(&str, &str)], limits: Limits) -> Self {
        Self::with(Policy::plaintext(catalogue_of(exports)), limits).await
    }

    /// Serves what the policy says.
    pub(crate) async fn with(policy: Policy, limits: Limits) -> Self {
        let endpoint = Endpoint::Tcp((Ipv4Addr::LOCALHOST, 0).into());
        let insecure = Insecure::default();
        let server = server::Server::bind(&[endpoint], policy, limits, insecure).await.unwrap();
        let Some(Endpoint::Tcp(address)) = server.endpoints().next() else { panic!("no socket") };
        let address = *address;
        let (reloader, streams) = (server.reloader(), server.streams());
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(server.run(stop.clone()));
        Self { address, reloader, streams, stop, running }
    }

    /// As a reload does.
    pub(crate) fn replace(&self, policy: Policy) {
        self.reloader.replace(policy).unwrap();
    }

    /// What serves a client on a stream in memory.
    pub(crate) fn streams(&self) -> Streams {
        self.streams.clone()
    }

    /// A client that has not sent anything yet.
    pub(crate) async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    /// A client that has greeted and been greeted.
    pub(crate) async fn greet(&self) -> Client {
        let mut client = self.connect().await;
        client.greet(3).await;
        client
    }

    /// A client that has chosen an export.
    pub(crate) async fn open(&self, export: &str) -> Client {
        let mut client = self.greet().await;
        client.go(export).await;
        client
    }

    /// Begins to stop. [`Server::stopped`] waits for the end.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    pub(crate) async fn stopped(mut self) -> Result<(), ServerError> {
        self.running.join_next().await.unwrap().unwrap()
    }

    /// Proves that the server still serves.
    pub(crate) async fn serves(&self) {
        let mut client = self.open("disk").await;
        client.request(0, 0, 7, 1080, 2).await;
        assert_eq!(client.reply(2).await, (0, 7, vec![0x53, 0xef]), "the magic of ext4");
        client.request(0, 2, 8, 0, 0).await;
        client.expect_end().await;
    }
}

/// [`EXPORTS`], of which `disk` is the default.
pub(crate) fn catalogue() -> Catalogue {
    catalogue_of(&EXPORTS)
}

fn catalogue_of(exports: &[(&str, &str)]) -> Catalogue {
    let mut catalogue = Catalogue::default();
    for (name, file) in exports {
        catalogue.add(export(name, file)).unwrap();
    }
    catalogue.set_default("disk").unwrap();
    catalogue
}

/// A fixture under a name.
pub(crate) fn export(name: &str, file: &str) -> Arc<Export> {
    let description = Some(format!("from {file}"));
    let name = name.to_owned();
    let settings = ExportSettings { name, description, stream: Stream::Main, as_raw: false };
    let file = File::open(fixtures::path(file)).unwrap();
    Arc::new(Export::new(file, settings).unwrap())
}

/// The intact bytes of an export.
pub(crate) fn contents(file: &str) -> Vec<u8> {
    File::open(fixtures::path(file)).unwrap().read_at(Stream::Main, 0, 1 << 30).unwrap()
}
