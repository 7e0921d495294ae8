//! What is not counted but known anyway, and told when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::metrics::labels::{CertificateLabels, CrlLabel, ExportsLabel};

/// What is only told.
#[derive(Debug, Default)]
pub(super) struct ObservedMetrics {
    cache_bytes: Gauge,
    cache_capacity_bytes: Gauge,
    cache_hits: Counter<u64, AtomicU64>,
    cache_misses: Counter<u64, AtomicU64>,
    cache_evictions: Counter<u64, AtomicU64>,
    audit_errors: Counter<u64, AtomicU64>,
    inflight_bytes: Gauge,
    exports: Family<ExportsLabel, Gauge>,
    certificates: Family<CertificateLabels, Gauge>,
    crls: Family<CrlLabel, Gauge>,
}

/// How things are when somebody asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// What the cache holds, in bytes.
    pub cache_bytes: u64,
    /// What it may hold, in bytes.
    pub cache_capacity_bytes: u64,
    /// Blocks that reads took from the cache, since the start.
    pub cache_hits: u64,
    /// Blocks that were fetched and decoded.
    pub cache_misses: u64,
    /// Blocks and index pages that made room for others.
    pub cache_evictions: u64,
    /// Bytes that were asked for and not taken yet, as far as they are granted.
    pub inflight_bytes: u64,
    /// Lines that the audit log lacks, and attempts to open it again that failed.
    pub audit_errors: u64,
    /// Exports that are served.
    pub exports_served: u64,
    /// Exports whose snapshot cannot be opened.
    pub exports_broken: u64,
    /// Until when certificates are valid.
    pub certificates: Vec<CertificateExpiry>,
    /// Until when revocation lists are: who made each, and its last second in Unix time.
    pub crls: Vec<(String, i64)>,
}

/// Until when a certificate is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateExpiry {
    /// What it is for: `server` or `client_ca`.
    pub role: &'static str,
    /// Whose it is.
    pub subject: String,
    /// Its last second, in Unix time.
    pub unix_seconds: i64,
}

impl ObservedMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let bytes = Unit::Bytes;
        registry.register_with_unit(
            "cache",
            "Blocks and index pages in the cache",
            bytes.clone(),
            self.cache_bytes.clone(),
        );
        registry.register_with_unit(
            "cache_capacity",
            "What the cache may hold",
            bytes.clone(),
            self.cache_capacity_bytes.clone(),
        );
        registry.register(
            "cache_hits",
            "Blocks that reads took from the cache",
            self.cache_hits.clone(),
        );
        registry.register(
            "cache_misses",
            "Blocks that were fetched and decoded",
            self.cache_misses.clone(),
        );
        registry.register(
            "cache_evictions",
            "Blocks and index pages that made room for others",
            self.cache_evictions.clone(),
        );
        registry.register(
            "audit_errors",
            "Lines that the audit log lacks, and attempts to open it again that failed",
            self.audit_errors.clone(),
        );
        registry.register_with_unit(
            "inflight",
            "Granted to clients for what they asked for and have not taken",
            bytes,
            self.inflight_bytes.clone(),
        );
        registry.register(
            "exports",
            "Exports, by whether their snapshot can be read",
            self.exports.clone(),
        );
        registry.register_with_unit(
            "certificate_expiry_timestamp",
            "Last second of a certificate, in Unix time",
            Unit::Seconds,
            self.certificates.clone(),
        );
        registry.register_with_unit(
            "crl_expiry_timestamp",
            "Last second of a revocation list, in Unix time",
            Unit::Seconds,
            self.crls.clone(),
        );
    }

    pub(super) fn set(&self, now: &Observed) {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.cache_bytes.set(signed(now.cache_bytes));
        self.cache_capacity_bytes.set(signed(now.cache_capacity_bytes));
        self.inflight_bytes.set(signed(now.inflight_bytes));
        for (counter, value) in [
            (&self.cache_hits, now.cache_hits),
            (&self.cache_misses, now.cache_misses),
            (&self.cache_evictions, now.cache_evictions),
            (&self.audit_errors, now.audit_errors),
        ] {
            counter.inner().store(value, Ordering::Relaxed);
        }
        for (state, exports) in [("served", now.exports_served), ("broken", now.exports_broken)] {
            self.exports.get_or_create(&ExportsLabel { state }).set(signed(exports));
        }
        // Those of before may be gone.
        self.certificates.clear();
        for CertificateExpiry { role, subject, unix_seconds } in &now.certificates {
            let labels = CertificateLabels { role, subject: subject.clone() };
            set_to_first(&self.certificates, &labels, *unix_seconds);
        }
        self.crls.clear();
        for (issuer, unix_seconds) in &now.crls {
            set_to_first(&self.crls, &CrlLabel { issuer: issuer.clone() }, *unix_seconds);
        }
    }
}

/// Several may have one name, such as a CA and its successor: the one that ends first is told.
fn set_to_first<L>(family: &Family<L, Gauge>, labels: &L, unix_seconds: i64)
where
    L: Clone + std::hash::Hash + Eq,
{
    let before = family.get(labels).map(|gauge| gauge.get());
    let first = before.map_or(unix_seconds, |before| before.min(unix_seconds));
    family.get_or_create(labels).set(first);
}
