//! Sockets, tasks, deadlines: the only place that waits.

pub mod listener;
pub mod session;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::export::Catalogue;
use crate::nbd::limits::OWED_BYTES_MAX;
use crate::server::listener::Listener;
use crate::snapshot::File;

pub use self::listener::Endpoint;

/// Bounds on what clients may take. Every session of a server shares them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Clients that are served at the same time. Others wait to be accepted.
    pub connections_max: NonZeroUsize,
    /// From the first byte to the chosen export.
    pub negotiation_timeout: Duration,
    /// Bytes that one client may have asked for and not taken yet.
    pub owed_bytes_max: u64,
    /// Reads that wait for storage or decode at the same time, for all clients together.
    pub decoders_max: NonZeroUsize,
    /// From the wish to stop until connections are cut.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    /// 1024 clients, 10 seconds to negotiate, one decoder for each processor, 30 seconds to drain.
    fn default() -> Self {
        Self {
            connections_max: const { NonZeroUsize::new(1024).unwrap() },
            negotiation_timeout: Duration::from_secs(10),
            owed_bytes_max: OWED_BYTES_MAX,
            decoders_max: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// Why a server cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Nobody asked for a place to listen.
    #[error("there is no address to listen on")]
    NoEndpoint,
    /// The address is in use, not ours, or not allowed.
    #[error("cannot listen on {endpoint}")]
    Bind {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// Plaintext without authentication belongs on loopback only.
    #[error(
        "refusing to listen on {address}: NBD without TLS sends every byte in plaintext to anybody \
         who connects, so it is served on loopback (127.0.0.1, [::1]) and Unix sockets only; to \
         reach it from another host, forward the port through SSH"
    )]
    NotLoopback {
        /// Where it would have listened.
        address: SocketAddr,
    },
    /// The listening socket is broken.
    #[error("cannot accept clients on {endpoint} any more")]
    Accept {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        source: io::Error,
    },
}

/// A server that has its sockets and has not begun to serve.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
    shared: Arc<Shared>,
}

/// What all sessions of a server have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) limits: Limits,
    /// One permit for each client.
    pub(crate) connections: Arc<Semaphore>,
    /// One permit for each read that may wait for storage or decode.
    pub(crate) decoders: Arc<Semaphore>,
    pub(crate) tasks: TaskTracker,
    /// No new clients and requests; what was accepted is answered.
    pub(crate) stop: CancellationToken,
    /// Connections end now.
    pub(crate) cut: CancellationToken,
}

impl Server {
    /// Takes the sockets. Plaintext is refused on anything but loopback and Unix sockets.
    ///
    /// # Errors
    ///
    /// [`ServerError`] if an endpoint cannot be had. None is kept then.
    pub async fn bind(
        endpoints: &[Endpoint],
        catalogue: Arc<Catalogue>,
        limits: Limits,
    ) -> Result<Self, ServerError> {
        if endpoints.is_empty() {
            return Err(ServerError::NoEndpoint);
        }
        let mut listeners = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            if let Endpoint::Tcp(address) = endpoint
                && !address.ip().to_canonical().is_loopback()
            {
                return Err(ServerError::NotLoopback { address: *address });
            }
            let listener = Listener::bind(endpoint).await;
            listeners.push(listener.map_err(|source| {
                let endpoint = endpoint.clone();
                ServerError::Bind { endpoint, source }
            })?);
        }
        let connections = limits.connections_max.get().min(Semaphore::MAX_PERMITS);
        let decoders = limits.decoders_max.get().min(Semaphore::MAX_PERMITS);
        let shared = Shared {
            catalogue,
            connections: Arc::new(Semaphore::new(connections)),
            decoders: Arc::new(Semaphore::new(decoders)),
            limits,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
        };
        Ok(Self { listeners, shared: Arc::new(shared) })
    }

    /// Where the server listens, with the port that the system chose where 0 was asked for.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.listeners.iter().map(Listener::endpoint)
    }

    /// Serves until `stop` is cancelled, then answers what was accepted and returns.
    ///
    /// # Errors
    ///
    /// [`ServerError::Accept`] if a listening socket breaks. What a client does never ends the
    /// server.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ServerError> {
        let Self { listeners, shared } = self;
        let mut accepting = tokio::task::JoinSet::new();
        for listener in listeners {
            accepting.spawn(listener.accept_all(Arc::clone(&shared)));
        }
        let outcome = tokio::select! {
            () = stop.cancelled() => Ok(()),
            Some(ended) = accepting.join_next() => ended.unwrap_or(Ok(())),
        };
        shared.stop.cancel();
        drop(accepting);
        shared.tasks.close();
        let open = shared.tasks.len();
        if open != 0 {
            tracing::info!(sessions = open, "stopping");
        }
        if timeout(shared.limits.drain_timeout, shared.tasks.wait()).await.is_err() {
            tracing::info!(sessions = shared.tasks.len(), "cutting sessions that did not end");
            shared.cut.cancel();
            shared.tasks.wait().await;
        }
        outcome
    }
}

/// Serves the main stream of a snapshot as the default export on `127.0.0.1:port`, to any number
/// of clients, for ever.
///
/// What a client does wrong is logged and ends that client alone. For other addresses, several
/// exports, limits or an orderly end use [`Server`], of which this is the shortest form.
///
/// # Errors
///
/// [`ServerError`] if the port cannot be had or the listening socket breaks.
///
/// # Examples
///
/// ```no_run
/// use std::sync::Arc;
/// use hexz_nbd::{File, FileBackend, Lz4Compressor, serve_nbd};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let backend = Arc::new(FileBackend::new("vm_snapshot.hxz".as_ref())?);
/// let compressor = Box::new(Lz4Compressor::new());
/// let snap = File::new(backend, compressor, None)?;
///
/// serve_nbd(snap, 10809).await?;
/// # Ok(())
/// # }
/// ```
pub async fn serve_nbd(snap: Arc<File>, port: u16) -> Result<(), ServerError> {
    let catalogue = Arc::new(Catalogue::of_one(snap));
    let endpoint = Endpoint::Tcp((Ipv4Addr::LOCALHOST, port).into());
    Server::bind(&[endpoint], catalogue, Limits::default())
        .await?
        .run(CancellationToken::new())
        .await
}
