//! What is counted, and its text for Prometheus. Knows nothing of what it counts.
//!
//! Whoever counts often takes a handle first ([`Metrics::export`], [`Metrics::connection`]), so that
//! a request touches atomic numbers and no map. What is known anyway, like the size of the cache, is
//! not counted at all but told when somebody asks: [`Observed`].

mod export;
mod identities;
mod labels;
mod latency;
mod observed;

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelValue;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::metrics::export::Totals;
use crate::metrics::identities::Identities;
use crate::metrics::labels::{
    CodeLabel, ExportLabel, HandshakeLabels, IdentityLabels, OutcomeLabel, ReasonLabel,
    RequestLabels, StateLabel,
};
use crate::metrics::latency::ReadDurations;
use crate::metrics::observed::ObservedMetrics;

pub use self::export::{ExportMetrics, RequestType};
pub use self::latency::Classes;
pub use self::observed::{CertificateExpiry, Observed};

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum State {
    /// From the greeting to the choice of an export, TLS included.
    #[expect(non_camel_case_types, reason = "the value of a label")]
    negotiation,
    /// From there to the end.
    #[expect(non_camel_case_types, reason = "the value of a label")]
    transmission,
}

/// Where the bytes of a read came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheOutcome {
    /// All of them were in the cache.
    Hit,
    /// Something had to be fetched and decoded.
    Miss,
}

/// What is counted. One for the whole process.
pub struct Metrics {
    registry: Registry,
    connections: Family<StateLabel, Gauge>,
    accepted: Counter,
    refused: Family<ReasonLabel, Counter>,
    handshakes: Family<HandshakeLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    read_bytes: Family<ExportLabel, Counter>,
    damaged: Family<ExportLabel, Counter>,
    errors: Family<CodeLabel, Counter>,
    durations: ReadDurations,
    all: Totals,
    reloads: Family<OutcomeLabel, Counter>,
    identities: Identities,
    identity_reads: Family<IdentityLabels, Counter>,
    identity_read_bytes: Family<IdentityLabels, Counter>,
    observed: ObservedMetrics,
    telling: Mutex<()>,
    /// Names of exports that anything was counted of.
    exports: Mutex<HashSet<String>>,
}

/// What was done since the start, all exports together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    /// Reads that were accepted.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// How long those took that were done.
    pub latency: Classes,
}

impl Metrics {
    /// Nothing is counted yet. `version` is that of the program.
    #[must_use]
    pub fn new(version: &'static str) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("hexz_nbd"),
            connections: Family::default(),
            accepted: Counter::default(),
            refused: Family::default(),
            handshakes: Family::default(),
            requests: Family::default(),
            read_bytes: Family::default(),
            damaged: Family::default(),
            errors: Family::default(),
            durations: ReadDurations::default(),
            all: Totals::default(),
            reloads: Family::default(),
            identities: Identities::default(),
            identity_reads: Family::default(),
            identity_read_bytes: Family::default(),
            observed: ObservedMetrics::default(),
            telling: Mutex::default(),
            exports: Mutex::default(),
        };
        metrics.register(version);
        // So that they are there before the first client, and before the first failure: a counter that
        // begins with 1 has not increased.
        for outcome in ["success", "failure"] {
            let _ = metrics.reloads.get_or_create(&OutcomeLabel { outcome });
        }
        for state in [State::negotiation, State::transmission] {
            metrics.connections.get_or_create(&StateLabel { state }).set(0);
        }
        metrics
    }

    /// Names and units as <https://prometheus.io/docs/practices/naming/> has them. The library adds
    /// `_total` to counters and units to names.
    fn register(&mut self, version: &'static str) {
        let registry = &mut self.registry;
        let build = Info::new([("version", version)]);
        registry.register("build", "The program that runs", build);
        let started = Gauge::<i64>::default();
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        started.set(i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX));
        registry.register_with_unit(
            "start_time",
            "When the program started, in Unix time",
            Unit::Seconds,
            started,
        );
        registry.register("connections", "Clients, by how far they are", self.connections.clone());
        registry.register("connections_accepted", "Clients that came", self.accepted.clone());
        registry.register(
            "connections_refused",
            "Clients that were not given what they came for, by the first reason",
            self.refused.clone(),
        );
        registry.register("handshakes", "TLS handshakes that ended", self.handshakes.clone());
        registry.register(
            "requests",
            "Requests that were accepted or refused",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "read",
            "Bytes of the reads that were accepted",
            Unit::Bytes,
            self.read_bytes.clone(),
        );
        registry.register("error_replies", "Requests answered with an error", self.errors.clone());
        registry.register_with_unit(
            "read_duration",
            "From a read that was taken up to its bytes; of a long one, for each part of 256 KiB",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register(
            "damaged_blocks",
            "Requests that met a damaged block",
            self.damaged.clone(),
        );
        registry.register("reloads", "Attempts to read everything anew", self.reloads.clone());
        registry.register(
            "identity_reads",
            "Reads that were accepted, by who asked; empty unless identities are to be told",
            self.identity_reads.clone(),
        );
        registry.register_with_unit(
            "identity_read",
            "Bytes of the reads that were accepted, by who asked",
            Unit::Bytes,
            self.identity_read_bytes.clone(),
        );
        self.observed.register(registry);
    }

    /// A client has come.
    pub fn accepted(&self) {
        self.accepted.inc();
    }

    /// A client was not given what it came for, for a reason in one word.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A connection, as long as the guard lives.
    #[must_use]
    pub fn connection(&self, state: State) -> Connected {
        let gauge = self.connections.get_or_create_owned(&StateLabel { state });
        gauge.inc();
        Connected(gauge)
    }

    /// A TLS handshake has ended; why it failed, in one word.
    pub fn handshake(&self, failure: Option<&'static str>) {
        let labels = match failure {
            None => HandshakeLabels { outcome: "success", reason: "" },
            Some(reason) => HandshakeLabels { outcome: "failure", reason },
        };
        self.handshakes.get_or_create(&labels).inc();
    }

    /// From now on who reads is told by name.
    pub fn tell_identities(&self) {
        self.identities.are_told.store(true, Ordering::Relaxed);
    }

    /// What to count the requests of a client by that has chosen an export.
    #[must_use]
    pub fn client(&self, export: &str, identity: Option<&str>) -> ExportMetrics {
        let mut counters = self.export(export);
        counters.identity = self.identities.label(identity).map(|identity| {
            let labels = IdentityLabels { export: export.to_owned(), identity };
            Totals {
                reads: self.identity_reads.get_or_create_owned(&labels),
                read_bytes: self.identity_read_bytes.get_or_create_owned(&labels),
            }
        });
        counters
    }

    /// What the requests of all clients to an export are counted by.
    #[must_use]
    pub fn export(&self, export: &str) -> ExportMetrics {
        let mut exports = self.exports.lock().unwrap_or_else(PoisonError::into_inner);
        if !exports.contains(export) {
            exports.insert(export.to_owned());
        }
        drop(exports);
        let requests = RequestType::ALL.map(|request| {
            let labels = RequestLabels { export: export.to_owned(), r#type: request.name() };
            self.requests.get_or_create_owned(&labels)
        });
        let label = ExportLabel { export: export.to_owned() };
        ExportMetrics {
            requests,
            read_bytes: self.read_bytes.get_or_create_owned(&label),
            damaged: self.damaged.get_or_create_owned(&label),
            all: self.all.clone(),
            identity: None,
        }
    }

    /// Requests were answered with an error, by its name, such as `EIO`.
    pub fn error_replies(&self, code: &str, count: u64) {
        self.errors.get_or_create(&CodeLabel { code: code.to_owned() }).inc_by(count);
    }

    /// A read took so long. Of those that had to wait, the connection is shown as an example.
    pub fn read_took(&self, outcome: CacheOutcome, took: Duration, connection: &dyn fmt::Display) {
        match outcome {
            CacheOutcome::Hit => self.durations.hit(took),
            CacheOutcome::Miss => self.durations.miss(took, connection.to_string()),
        }
    }

    /// Everything was read anew, or could not be.
    pub fn reloaded(&self, is_success: bool) {
        let outcome = if is_success { "success" } else { "failure" };
        self.reloads.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// What was done until now.
    #[must_use]
    pub fn done(&self) -> Done {
        Done {
            reads: self.all.reads.get(),
            read_bytes: self.all.read_bytes.get(),
            latency: self.durations.classes(),
        }
    }

    /// Forgets what was counted of exports that are not to be kept. Whoever has one of them open goes on
    /// to count where nobody looks.
    pub fn keep_exports(&self, is_kept: impl Fn(&str) -> bool) {
        let mut exports = self.exports.lock().unwrap_or_else(PoisonError::into_inner);
        exports.retain(|export| {
            if is_kept(export) {
                return true;
            }
            for request in RequestType::ALL {
                self.requests
                    .remove(&RequestLabels { export: export.clone(), r#type: request.name() });
            }
            let label = ExportLabel { export: export.clone() };
            self.read_bytes.remove(&label);
            self.damaged.remove(&label);
            false
        });
    }

    /// All of it in the OpenMetrics text format, with how things are now.
    ///
    /// # Errors
    ///
    /// If it cannot be formatted, which takes a bug.
    pub fn render(&self, now: &Observed) -> Result<String, fmt::Error> {
        // One after another: what is told is taken out and put in anew.
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        self.observed.set(now);
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics(…)")
    }
}

/// A connection that is counted until this is dropped.
#[derive(Debug)]
pub struct Connected(Gauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str, line: &str) -> Option<f64> {
        let line = text.lines().find_map(|one| one.strip_prefix(line)?.strip_prefix(' '));
        line.and_then(|value| value.split(' ').next()?.parse().ok())
    }

    #[test]
    fn everything_that_is_counted_is_told_under_its_name() {
        let metrics = Metrics::new("1.2.3");
        metrics.accepted();
        metrics.refused("address_limit");
        let connected = metrics.connection(State::transmission);
        metrics.handshake(None);
        metrics.handshake(Some("expired"));
        let export = metrics.export("a\"b\n");
        export.requests([2, 0, 1, 0, 3]);
        export.read_bytes(4096);
        export.damaged();
        metrics.error_replies("EIO", 2);
        metrics.read_took(CacheOutcome::Hit, Duration::from_micros(15), &"x");
        metrics.read_took(CacheOutcome::Miss, Duration::from_millis(3), &"k3f9");
        metrics.reloaded(false);
        let certificate = |subject: &str| CertificateExpiry {
            role: "server",
            subject: subject.into(),
            unix_seconds: 99,
        };
        let mut now = Observed {
            cache_bytes: 5,
            cache_hits: 7,
            exports_broken: 1,
            certificates: vec![certificate("CN=old")],
            crls: vec![("CN=ca".into(), 100)],
            ..Observed::default()
        };
        metrics.render(&now).unwrap();
        // A CA and its successor have one name.
        let later = CertificateExpiry { unix_seconds: 500, ..certificate("CN=new") };
        now.certificates = vec![later.clone(), certificate("CN=new"), later];
        let text = metrics.render(&now).unwrap();
        for (line, expected) in [
            ("hexz_nbd_build_info{version=\"1.2.3\"}", 1.0),
            ("hexz_nbd_connections_accepted_total", 1.0),
            ("hexz_nbd_connections_refused_total{reason=\"address_limit\"}", 1.0),
            ("hexz_nbd_connections{state=\"transmission\"}", 1.0),
            ("hexz_nbd_handshakes_total{outcome=\"success\",reason=\"\"}", 1.0),
            ("hexz_nbd_handshakes_total{outcome=\"failure\",reason=\"expired\"}", 1.0),
            ("hexz_nbd_requests_total{export=\"a\\\"b\\n\",type=\"read\"}", 2.0),
            ("hexz_nbd_requests_total{export=\"a\\\"b\\n\",type=\"refused\"}", 3.0),
            ("hexz_nbd_read_bytes_total{export=\"a\\\"b\\n\"}", 4096.0),
            ("hexz_nbd_damaged_blocks_total{export=\"a\\\"b\\n\"}", 1.0),
            ("hexz_nbd_error_replies_total{code=\"EIO\"}", 2.0),
            ("hexz_nbd_read_duration_seconds_count{cache=\"hit\"}", 1.0),
            ("hexz_nbd_read_duration_seconds_bucket{le=\"0.002\",cache=\"miss\"}", 0.0),
            ("hexz_nbd_read_duration_seconds_bucket{le=\"0.005\",cache=\"miss\"}", 1.0),
            ("hexz_nbd_reloads_total{outcome=\"failure\"}", 1.0),
            ("hexz_nbd_cache_bytes", 5.0),
            ("hexz_nbd_cache_capacity_bytes", 0.0),
            ("hexz_nbd_cache_hits_total", 7.0),
            ("hexz_nbd_inflight_bytes", 0.0),
            ("hexz_nbd_exports{state=\"broken\"}", 1.0),
            ("hexz_nbd_crl_expiry_timestamp_seconds{issuer=\"CN=ca\"}", 100.0),
            (
                "hexz_nbd_certificate_expiry_timestamp_seconds{role=\"server\",subject=\"CN=new\"}",
                99.0,
            ),
        ] {
            assert_eq!(value(&text, line), Some(expected), "{line}\n{text}");
        }
        assert!(!text.contains("CN=old"), "{text}");
        let family = "# TYPE hexz_nbd_read_duration_seconds ";
        assert_eq!(text.matches(family).count(), 1, "a family is told once\n{text}");
        assert!(text.contains("connection=\"k3f9\""), "the example of a miss\n{text}");
        drop(connected);
        let _ = metrics.export("kept");
        metrics.keep_exports(|export| export == "kept");
        let text = metrics.render(&now).unwrap();
        assert!(!text.contains("export=\"a"), "{text}");
        assert!(text.contains("hexz_nbd_damaged_blocks_total{export=\"kept\"} 0"), "{text}");
        assert_eq!(value(&text, "hexz_nbd_connections{state=\"transmission\"}"), Some(0.0));
    }
}
