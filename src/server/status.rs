//! How the server is, over HTTP: for Prometheus, for whoever balances load, and for people.
//!
//! Its listener is its own, so that nobody who asks how the server is takes a client's place. What
//! it tells is for operators: all exports, and who reads them. The metrics, which go to other
//! systems, name no client unless that was asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use rustls::ServerConfig;
use serde::Serialize;

use crate::audit::{AuditLog, Tls};
use crate::metrics::{CertificateExpiry, Metrics, Observed};
use crate::server::Shared;
use crate::server::client::{Client, Known};
use crate::server::history::{History, unix_seconds};
use crate::server::roster::Refused;
use crate::server::status_page;
use crate::snapshot::Cache;
use crate::tls::Expiring;
use crate::tls::PeerIdentity;

/// Looks at a server that runs, or has not begun.
#[derive(Debug, Clone)]
pub struct Observer {
    pub(crate) shared: Arc<Shared>,
    cache: Arc<Cache>,
    history: Arc<History>,
}

/// Clients that are told one by one. The others are only counted.
const CLIENTS_MAX: usize = 500;

/// The state in a form that machines read. The names are those of the JSON and stay as they are.
#[derive(Debug, Serialize)]
struct Status {
    version: &'static str,
    now_unix_seconds: f64,
    started_unix_seconds: f64,
    /// Whether clients are to come.
    ready: bool,
    /// Whether the server is stopping.
    draining: bool,
    exports: Vec<ExportStatus>,
    /// Names whose snapshot cannot be opened.
    broken_exports: Vec<String>,
    connections: usize,
    connections_max: usize,
    /// Those that came first, if there are very many.
    clients: Vec<ClientStatus>,
    /// The newest first.
    refusals: Vec<RefusalStatus>,
    cache: CacheStatus,
    inflight_bytes: u64,
    expiries: Vec<ExpiryStatus>,
}

#[derive(Debug, Serialize)]
struct ExportStatus {
    name: String,
    size_bytes: u64,
    description: String,
    /// Clients that may read it now.
    connections: usize,
    requests: u64,
    read_bytes: u64,
    /// Requests that met a damaged block.
    damaged_blocks: u64,
}

#[derive(Debug, Serialize)]
struct ClientStatus {
    id: String,
    peer: String,
    since_unix_seconds: f64,
    state: &'static str,
    identity: Option<String>,
    fingerprint: Option<String>,
    tls: Option<Tls>,
    export: Option<String>,
    reads: u64,
    read_bytes: u64,
}

#[derive(Debug, Serialize)]
struct RefusalStatus {
    unix_seconds: f64,
    id: Option<String>,
    peer: String,
    identity: Option<String>,
    reason: String,
}

#[derive(Debug, Serialize)]
struct CacheStatus {
    bytes: u64,
    capacity_bytes: u64,
    hits: u64,
    misses: u64,
    evictions: u64,
}

#[derive(Debug, Serialize)]
struct ExpiryStatus {
    what: &'static str,
    name: String,
    unix_seconds: i64,
}

impl Observer {
    pub(crate) fn new(shared: Arc<Shared>, cache: Arc<Cache>) -> Self {
        Self { shared, cache, history: Arc::default() }
    }

    /// What is counted.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Remembers what the last minutes were like, until the future is dropped.
    pub fn remember(&self) -> impl Future<Output = ()> + use<> {
        Arc::clone(&self.history).record(Arc::clone(&self.shared.metrics))
    }

    /// Whether clients are to come: not while the server stops, nor without a single export.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.shared.stop.is_cancelled() && !self.shared.policy.borrow().catalogue.is_empty()
    }

    /// Whether NBD is spoken over TLS with client certificates only.
    pub(crate) fn asks_for_certificates(&self) -> bool {
        let policy = self.shared.policy.borrow();
        policy.tls.as_ref().is_some_and(|tls| tls.config.requires_client_certificate())
    }

    /// Whether a client that has shown this certificate may see more than whether the server is well.
    pub(crate) fn may_be_seen_by(&self, identity: Option<&PeerIdentity>) -> bool {
        self.shared.policy.borrow().access.allows_status(identity)
    }

    /// The TLS configuration in force, if it asks for client certificates.
    pub(crate) fn tls(&self) -> Option<Arc<ServerConfig>> {
        let policy = self.shared.policy.borrow();
        let tls = policy.tls.as_ref().filter(|tls| tls.config.requires_client_certificate())?;
        Some(tls.config.server())
    }

    fn observed(&self) -> Observed {
        let policy = Arc::clone(&self.shared.policy.borrow());
        let expiries = policy.tls.as_ref().map_or(&[][..], |tls| tls.config.expiries());
        let of = |what| expiries.iter().filter(move |expiry| expiry.what == what);
        let certificates = [(Expiring::Server, "server"), (Expiring::ClientCa, "client_ca")];
        let statistics = self.cache.statistics();
        Observed {
            cache_bytes: statistics.used_bytes,
            cache_capacity_bytes: statistics.capacity_bytes,
            cache_hits: statistics.hits,
            cache_misses: statistics.misses,
            cache_evictions: statistics.evictions,
            inflight_bytes: self.shared.inflight.granted_bytes(),
            audit_errors: self.shared.audit.get().map_or(0, AuditLog::errors),
            exports_served: policy.catalogue.iter().count() as u64,
            exports_broken: policy.catalogue.broken().count() as u64,
            certificates: certificates
                .into_iter()
                .flat_map(|(what, role)| {
                    of(what).map(move |expiry| CertificateExpiry {
                        role,
                        subject: expiry.name.clone(),
                        unix_seconds: expiry.unix_seconds,
                    })
                })
                .collect(),
            crls: of(Expiring::RevocationList)
                .map(|expiry| (expiry.name.clone(), expiry.unix_seconds))
                .collect(),
        }
    }

    fn status(&self) -> Status {
        let policy = Arc::clone(&self.shared.policy.borrow());
        let observed = self.observed();
        let connections_max = self.shared.limits.connections_max.get();
        let clients = self.shared.roster.clients().into_iter();
        let clients: Vec<_> = clients.map(|client| (client.known(), client)).collect();
        let mut readers: HashMap<&str, usize> = HashMap::new();
        for export in clients.iter().filter_map(|(known, _)| known.export.as_deref()) {
            let count = readers.entry(export).or_default();
            *count = count.saturating_add(1);
        }
        let exports = policy.catalogue.iter().map(|export| {
            let info = export.info();
            let [requests, read_bytes, damaged_blocks] =
                self.shared.metrics.export(&info.name).totals();
            ExportStatus {
                name: info.name.clone(),
                size_bytes: info.size_bytes,
                description: info.description.clone(),
                connections: readers.get(info.name.as_str()).copied().unwrap_or(0),
                requests,
                read_bytes,
                damaged_blocks,
            }
        });
        let expiries = policy.tls.as_ref().map_or(&[][..], |tls| tls.config.expiries());
        Status {
            version: env!("CARGO_PKG_VERSION"),
            now_unix_seconds: unix_seconds(SystemTime::now()),
            started_unix_seconds: unix_seconds(self.shared.started),
            ready: self.is_ready(),
            draining: self.shared.stop.is_cancelled(),
            exports: exports.collect(),
            broken_exports: policy.catalogue.broken().map(str::to_owned).collect(),
            connections: connections_max
                .saturating_sub(self.shared.connections.available_permits()),
            connections_max,
            clients: clients.iter().take(CLIENTS_MAX).map(client_status).collect(),
            refusals: self.shared.roster.refusals().into_iter().map(Into::into).collect(),
            cache: CacheStatus {
                bytes: observed.cache_bytes,
                capacity_bytes: observed.cache_capacity_bytes,
                hits: observed.cache_hits,
                misses: observed.cache_misses,
                evictions: observed.cache_evictions,
            },
            inflight_bytes: observed.inflight_bytes,
            expiries: expiries
                .iter()
                .map(|expiry| ExpiryStatus {
                    what: match expiry.what {
                        Expiring::Server => "server",
                        Expiring::ClientCa => "client_ca",
                        Expiring::RevocationList => "revocation_list",
                    },
                    name: expiry.name.clone(),
                    unix_seconds: expiry.unix_seconds,
                })
                .collect(),
        }
    }
}

fn client_status((known, client): &(Known, Arc<Client>)) -> ClientStatus {
    let (reads, read_bytes) = client.reads();
    let identity = known.certified.as_ref().map(|certified| &certified.identity);
    ClientStatus {
        id: client.id.to_string(),
        peer: client.peer.to_string(),
        since_unix_seconds: unix_seconds(client.came),
        state: if known.export.is_some() { "transmission" } else { "negotiation" },
        identity: known.names(),
        fingerprint: identity.map(|identity| identity.fingerprint.to_string()),
        tls: known.tls,
        export: known.export.clone(),
        reads,
        read_bytes,
    }
}

impl From<Refused> for RefusalStatus {
    fn from(refused: Refused) -> Self {
        Self {
            unix_seconds: unix_seconds(refused.at),
            id: refused.id.map(|id| id.to_string()),
            peer: refused.peer.to_string(),
            identity: refused.identity,
            reason: refused.reason,
        }
    }
}

/// For those whom no rule shows more: whether the server is well.
pub(crate) fn router_for_others(observer: Observer) -> Router {
    let why = "no rule shows the status to this certificate: --status-allow-cn, or status_allow in the \
               configuration file, says whom it is shown to\n";
    whether_it_is_well()
        .fallback(move || async move { (StatusCode::FORBIDDEN, why) })
        .layer(axum::middleware::map_response(with_headers))
        .with_state(observer)
}

fn whether_it_is_well() -> Router<Observer> {
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(ready))
}

/// Everything that can be asked.
pub(crate) fn router(observer: Observer) -> Router {
    whether_it_is_well()
        .route("/metrics", get(metrics))
        .route(
            "/status.json",
            get(|State(observer): State<Observer>| async move { Json(observer.status()) }),
        )
        .route(
            "/history.json",
            get(|State(observer): State<Observer>| async move { Json(observer.history.tell()) }),
        )
        .merge(status_page::routes())
        .layer(axum::middleware::map_response(with_headers))
        .with_state(observer)
}

async fn metrics(State(observer): State<Observer>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match observer.metrics().render(&observer.observed()) {
        Ok(text) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn ready(State(observer): State<Observer>) -> (StatusCode, &'static str) {
    if observer.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: stopping, or there is no export\n")
    }
}

/// Nothing of this is for other pages, for frames or for caches. The page has a policy of its own,
/// by which it may load its parts.
async fn with_headers(mut response: Response) -> Response {
    const HEADERS: [(HeaderName, &str); 5] = [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ];
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}
