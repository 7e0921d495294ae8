//! Sockets, tasks, deadlines: the only place that waits.

pub mod activation;
pub(crate) mod budget;
pub(crate) mod client;
pub(crate) mod connection_id;
pub(crate) mod decoders;
pub(crate) mod history;
pub(crate) mod inflight;
pub(crate) mod link;
pub mod listener;
pub(crate) mod log_ration;
pub(crate) mod misses;
pub(crate) mod offer;
pub(crate) mod panics;
pub mod policy;
pub(crate) mod refusal;
pub mod reload;
pub(crate) mod roster;
pub(crate) mod session;
pub(crate) mod shutdown;
pub mod status;
pub mod status_listener;
pub(crate) mod status_page;
pub(crate) mod transmit;
pub(crate) mod upgrade;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::AuditLog;
use crate::export::Catalogue;
use crate::metrics::Metrics;
use crate::nbd::limits::OWED_BYTES_MAX;
use crate::server::activation::HandedOver;
use crate::server::budget::Addresses;
use crate::server::decoders::Decoders;
use crate::server::inflight::Pool;
use crate::server::listener::Listener;
use crate::server::log_ration::LogRation;
use crate::server::roster::Roster;
use crate::server::session::Peer;
use crate::server::status::Observer;
use crate::server::upgrade::Turns;
use crate::snapshot::{Cache, File};

pub use self::listener::Endpoint;
pub use self::policy::{Access, ExportAccess, Policy, Tls, TlsMode};
pub use self::reload::Reloader;

/// As much as the cache: replies are made of cached blocks, so the two together bound the memory.
const INFLIGHT_BYTES_DEFAULT: u64 = 256 << 20;

/// For clients to end that are cut off.
const CUT_MAX: Duration = Duration::from_millis(500);

/// Bounds on what clients may take. Every session of a server shares them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Clients that are served at the same time. Others wait to be accepted.
    pub connections_max: NonZeroUsize,
    /// Clients of one address that are served at the same time. Others are turned away.
    pub connections_per_address_max: NonZeroUsize,
    /// From the first byte to the chosen export, TLS included.
    pub negotiation_timeout: Duration,
    /// From the answer to `STARTTLS` to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// From the last byte that a client sent or took until it is disconnected. `None` for never:
    /// the Linux kernel does not connect again.
    pub idle_timeout: Option<Duration>,
    /// Bytes that one client may have asked for and not taken yet.
    pub owed_bytes_max: u64,
    /// The same of all clients together. Each may have one part of a read on its way beyond it,
    /// [`PART_BYTES`](crate::nbd::limits::PART_BYTES) at most.
    pub inflight_bytes_max: u64,
    /// Threads that wait for storage and decode, for all clients together. What needs no waiting is decoded
    /// beside them, on the thread that the client's socket is on.
    pub decoders_max: NonZeroUsize,
    /// From the wish to stop until connections are cut.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    /// 1024 clients, 256 of one address, 10 seconds to negotiate and 10 for the handshake, idle for
    /// ever, 256 MiB in flight and 16 MiB for one client, one decoder for each processor, 30 seconds
    /// to drain.
    fn default() -> Self {
        Self {
            connections_max: const { NonZeroUsize::new(1024).unwrap() },
            connections_per_address_max: const { NonZeroUsize::new(256).unwrap() },
            negotiation_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: None,
            owed_bytes_max: OWED_BYTES_MAX,
            inflight_bytes_max: INFLIGHT_BYTES_DEFAULT,
            decoders_max: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// What the operator has said aloud to allow on addresses that other hosts can reach.
#[derive(Debug, Clone, Copy, Default)]
pub struct Insecure {
    /// Serving without TLS.
    pub plaintext: bool,
    /// Serving over TLS whoever asks.
    pub anonymous: bool,
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
        "refusing to serve {address} without TLS: every byte would go in plaintext to anybody who \
         connects. Give a certificate with --tls-cert (`hexz-nbd certs init` makes one) and leave \
         --tls at `require`; or listen on loopback (127.0.0.1, [::1]) or a Unix socket; or say \
         --insecure-allow-plaintext"
    )]
    ExposedPlaintext {
        /// What other hosts could reach.
        address: SocketAddr,
    },
    /// TLS to whoever asks hides the bytes from everybody but whoever asks.
    #[error(
        "refusing to serve {address} without client certificates: anybody who connects could read \
         every export. Name the CA of your clients with --tls-client-ca, or say \
         --insecure-allow-anonymous"
    )]
    ExposedAnonymous {
        /// What other hosts could reach.
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

impl ServerError {
    /// Whether what was asked for is refused, rather than failed.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NoEndpoint | Self::ExposedPlaintext { .. } | Self::ExposedAnonymous { .. }
        )
    }
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
    /// What is served and to whom. New sessions take the latest, others watch for changes.
    pub(crate) policy: watch::Sender<Arc<Policy>>,
    pub(crate) insecure: Insecure,
    /// What other hosts can reach.
    exposed: Vec<SocketAddr>,
    pub(crate) limits: Limits,
    /// One permit for each client.
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) addresses: Arc<Addresses>,
    /// Bytes on their way to all clients.
    pub(crate) inflight: Arc<Pool>,
    /// Turns for TLS handshakes.
    pub(crate) turns: Turns,
    /// Threads for reads that may wait for storage, and for decoding on all cores.
    pub(crate) decoders: Arc<Decoders>,
    pub(crate) started: SystemTime,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) roster: Roster,
    pub(crate) log_ration: LogRation,
    /// Empty without an audit log.
    pub(crate) audit: OnceLock<AuditLog>,
    pub(crate) tasks: TaskTracker,
    /// No new clients and requests; what was accepted is answered.
    pub(crate) stop: CancellationToken,
    /// Connections end now.
    pub(crate) cut: CancellationToken,
}

/// Ends a server whose clients are not to be waited for.
#[derive(Debug)]
pub struct Cutter {
    shared: Arc<Shared>,
}

impl Cutter {
    /// Cuts every client off, and waits a moment for their ends to be logged.
    pub async fn cut(&self) {
        self.shared.cut.cancel();
        self.shared.tasks.close();
        // Who takes longer is held up by something that nobody can cut.
        let _ = tokio::time::timeout(CUT_MAX, self.shared.tasks.wait()).await;
        self.shared.roster.cut(&self.shared);
    }
}

/// Serves clients on streams that the caller has, as an embedding program does, or a test. They
/// count among the clients of the server, and end when it stops.
#[derive(Debug, Clone)]
pub struct Streams {
    shared: Arc<Shared>,
}

impl Streams {
    /// Serves one client, from the greeting to the end. Whatever goes wrong is its own affair.
    pub async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send) {
        // The semaphore is never closed.
        let _slot = self.shared.connections.acquire().await;
        let session = session::serve(stream, Peer::Stream, &self.shared);
        self.shared.tasks.track_future(session).await;
    }
}

impl Server {
    /// Takes the sockets. What other hosts can reach must be protected, or the operator must have
    /// said aloud that it need not be.
    ///
    /// # Errors
    ///
    /// [`ServerError`] if an endpoint cannot be had. None is kept then.
    pub async fn bind(
        endpoints: &[Endpoint],
        policy: Policy,
        limits: Limits,
        insecure: Insecure,
    ) -> Result<Self, ServerError> {
        Self::bind_beside(Vec::new(), endpoints, policy, limits, insecure).await
    }

    /// As [`Server::bind`], beside sockets that somebody else made, to which the same rules apply.
    ///
    /// # Errors
    ///
    /// [`ServerError`] if an endpoint cannot be had. None is kept then.
    pub async fn bind_beside(
        handed_over: Vec<HandedOver>,
        endpoints: &[Endpoint],
        policy: Policy,
        limits: Limits,
        insecure: Insecure,
    ) -> Result<Self, ServerError> {
        let all = || handed_over.iter().map(|socket| &socket.endpoint).chain(endpoints);
        if all().next().is_none() {
            return Err(ServerError::NoEndpoint);
        }
        let exposed: Vec<SocketAddr> = all().filter_map(Endpoint::exposed).collect();
        check_exposure(&exposed, &policy, insecure)?;
        let mut listeners = Vec::with_capacity(all().count());
        for socket in handed_over {
            let endpoint = socket.endpoint.clone();
            let listener = Listener::of(socket);
            listeners.push(listener.map_err(|source| ServerError::Bind { endpoint, source })?);
        }
        for endpoint in endpoints {
            let listener = Listener::bind(endpoint).await;
            listeners.push(listener.map_err(|source| {
                let endpoint = endpoint.clone();
                ServerError::Bind { endpoint, source }
            })?);
        }
        let connections = limits.connections_max.get().min(Semaphore::MAX_PERMITS);
        let threads = tokio::runtime::Handle::current().metrics().num_workers();
        let shared = Shared {
            policy: watch::Sender::new(Arc::new(policy)),
            insecure,
            exposed,
            connections: Arc::new(Semaphore::new(connections)),
            addresses: Arc::new(Addresses::new(limits.connections_per_address_max)),
            inflight: Arc::new(Pool::new(limits.inflight_bytes_max)),
            turns: Turns::new(threads),
            decoders: Arc::new(Decoders::new(limits.decoders_max)),
            limits,
            started: SystemTime::now(),
            metrics: Arc::new(Metrics::new(env!("CARGO_PKG_VERSION"))),
            roster: Roster::default(),
            log_ration: LogRation::new(),
            audit: OnceLock::new(),
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

    /// What serves clients on streams that are no sockets of this server.
    #[must_use]
    pub fn streams(&self) -> Streams {
        Streams { shared: Arc::clone(&self.shared) }
    }

    /// Records from now on who comes, what is given and what is refused. Once in the life of a server;
    /// a second log is not written to.
    pub fn audit_to(&self, log: AuditLog) {
        if self.shared.audit.set(log).is_err() {
            tracing::error!("there is an audit log already");
        }
    }

    /// What tells others how the server is. `cache` is the one of its snapshots.
    #[must_use]
    pub fn observer(&self, cache: Arc<Cache>) -> Observer {
        Observer::new(Arc::clone(&self.shared), cache)
    }

    /// What can replace the policy while the server runs.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        Reloader::new(Arc::clone(&self.shared))
    }

    /// What can end it at once.
    #[must_use]
    pub fn cutter(&self) -> Cutter {
        Cutter { shared: Arc::clone(&self.shared) }
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
        let for_summaries = Arc::clone(&shared);
        accepting.spawn(async move {
            for_summaries.log_ration.summarize().await;
            Ok(())
        });
        let outcome = tokio::select! {
            () = stop.cancelled() => Ok(()),
            Some(ended) = accepting.join_next() => ended.unwrap_or(Ok(())),
        };
        shutdown::stop(accepting, &shared).await;
        outcome
    }
}

/// Nothing that other hosts can reach is unprotected by mistake, and nothing that was said aloud
/// goes without a warning.
fn check_exposure(
    exposed: &[SocketAddr],
    policy: &Policy,
    insecure: Insecure,
) -> Result<(), ServerError> {
    let tls = policy.tls.as_ref();
    let plaintext = tls.is_none_or(|tls| tls.mode != TlsMode::Required);
    let anonymous = tls.is_some_and(|tls| !tls.config.requires_client_certificate());
    if let Some(address) = exposed.first().copied() {
        if plaintext && !insecure.plaintext {
            return Err(ServerError::ExposedPlaintext { address });
        }
        if anonymous && !insecure.anonymous {
            return Err(ServerError::ExposedAnonymous { address });
        }
    }
    if plaintext && insecure.plaintext {
        tracing::warn!(?exposed, "clients are served without TLS, wherever they are");
    }
    if anonymous && insecure.anonymous {
        tracing::warn!(?exposed, "clients are served without certificates, wherever they are");
    }
    Ok(())
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
    let policy = Policy::plaintext(Catalogue::of_one(snap));
    let endpoint = Endpoint::Tcp((Ipv4Addr::LOCALHOST, port).into());
    let (limits, insecure) = (Limits::default(), Insecure::default());
    Server::bind(&[endpoint], policy, limits, insecure).await?.run(CancellationToken::new()).await
}
