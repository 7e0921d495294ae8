//! What is known of one client, from its coming to its end, and who is told of it: the log, the
//! audit log, the metrics and the status.
//!
//! At level info a connection has two lines at most: `opened` and `closed`, or one of `refused` and
//! `closed` if it never opened anything. Those of the latter kind are rationed: anybody can make them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::time::Instant;

use crate::audit::{Event, EventKind, Identity, Tls, Who};
use crate::nbd::transmission::Served;
use crate::server::Shared;
use crate::server::connection_id::ConnectionId;
use crate::server::policy::Certified;
use crate::server::refusal::{Reason, Refusal};
use crate::server::session::{Peer, SessionError};

/// As many different refusals of one connection are recorded one by one. A client may ask for names as
/// long as it negotiates; the rest is counted.
const REFUSALS_RECORDED_MAX: u32 = 16;

/// One client. The server's [`Roster`](crate::server::roster::Roster) has it as long as it is here.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: ConnectionId,
    pub(crate) peer: Peer,
    pub(crate) came: SystemTime,
    began: Instant,
    /// Touched at a few moments of a connection, and when somebody asks for the status.
    known: Mutex<Known>,
    reads: AtomicU64,
    read_bytes: AtomicU64,
}

/// What comes to be known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub(crate) tls: Option<Tls>,
    pub(crate) certified: Option<Arc<Certified>>,
    /// What it may read.
    pub(crate) export: Option<String>,
    refusals: u32,
    /// The first of them.
    refusal: Option<Refusal>,
    /// Those that were recorded one by one.
    recorded: u32,
    /// The last of them.
    last: Option<Refusal>,
    /// Whether its end is told already.
    is_gone: bool,
}

impl Known {
    /// The names in its certificate, for people.
    pub(crate) fn names(&self) -> Option<String> {
        self.certified.as_ref().map(|certified| certified.identity.names())
    }
}

impl Client {
    pub(super) fn new(peer: Peer) -> Self {
        Self {
            id: ConnectionId::next(),
            peer,
            came: SystemTime::now(),
            began: Instant::now(),
            known: Mutex::default(),
            reads: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
        }
    }

    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// What is known by now.
    pub(crate) fn known(&self) -> Known {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads that were accepted, and their bytes.
    pub(crate) fn reads(&self) -> (u64, u64) {
        (self.reads.load(Ordering::Relaxed), self.read_bytes.load(Ordering::Relaxed))
    }

    pub(crate) fn has_served(&self, served: &Served) {
        self.reads.store(served.reads, Ordering::Relaxed);
        self.read_bytes.store(served.read_bytes, Ordering::Relaxed);
    }

    /// It has finished a TLS handshake.
    pub(crate) fn is_in_tls(&self, tls: Option<Tls>, certified: Option<Arc<Certified>>) {
        let mut known = self.lock();
        known.tls = tls;
        known.certified = certified;
    }

    /// It may read an export from now on.
    pub(crate) fn opened(&self, export: &str, shared: &Shared) {
        let known = {
            let mut known = self.lock();
            known.export = Some(export.to_owned());
            known.clone()
        };
        let (peer, identity) = (self.peer, known.identity());
        let (version, suite) = known.version_and_suite();
        let refusals = (known.refusals != 0).then_some(known.refusals);
        tracing::info!(%peer, export, identity, version, suite, refusals, "opened");
        self.record(shared, &known, || EventKind::Open { export: export.to_owned() });
    }

    /// It was not given what it came for.
    pub(crate) fn refused(&self, refusal: Refusal, shared: &Shared) {
        let (known, is_recorded) = {
            let mut known = self.lock();
            known.refusals = known.refusals.saturating_add(1);
            known.refusal.get_or_insert_with(|| refusal.clone());
            // Clients ask for the same thing in several ways, one after another.
            let is_new = known.last.as_ref() != Some(&refusal);
            let is_recorded = is_new && known.recorded < REFUSALS_RECORDED_MAX;
            if is_recorded {
                known.recorded = known.recorded.saturating_add(1);
                known.last = Some(refusal.clone());
            }
            (known.clone(), is_recorded)
        };
        let Refusal { export, reason, detail } = refusal;
        let (peer, identity) = (self.peer, known.identity());
        tracing::debug!(%peer, export, identity, reason = detail, "refused");
        if known.refusals == 1 {
            shared.metrics.refused(reason.word());
        }
        if !is_recorded {
            return;
        }
        let shown = match &export {
            Some(name) => format!("{detail}: {name:?}"),
            None => detail.clone(),
        };
        shared.roster.was_refused(Some(self.id), self.peer, known.names(), &shown);
        self.record(shared, &known, || EventKind::Refuse { export, reason: reason.word(), detail });
    }

    /// It is gone.
    pub(crate) fn ended(&self, how: Result<&'static str, SessionError>, shared: &Shared) {
        if self.lock().export.is_none()
            && let Err(error) = &how
            && let Some(reason) = error.refusal()
        {
            self.refused(Refusal::of_all(reason, error.to_string()), shared);
        }
        let known = self.known();
        self.log_end(&how, &known, shared);
        self.gone(how.map_or_else(|error| error.to_string(), str::to_owned), shared);
    }

    /// Records its end, once.
    pub(super) fn gone(&self, ending: String, shared: &Shared) {
        let known = {
            let mut known = self.lock();
            if std::mem::replace(&mut known.is_gone, true) {
                return;
            }
            known.clone()
        };
        let (reads, read_bytes) = self.reads();
        let seconds = self.began.elapsed().as_secs_f64();
        let (export, refusals) = (known.export.clone(), known.refusals);
        let gone =
            || EventKind::Disconnect { export, reads, read_bytes, seconds, refusals, ending };
        self.record(shared, &known, gone);
    }

    fn log_end(&self, how: &Result<&'static str, SessionError>, known: &Known, shared: &Shared) {
        let (peer, seconds) = (self.peer, self.began.elapsed().as_secs_f64());
        let (reads, read_bytes) = self.reads();
        let ending = how.as_ref().ok();
        let error = how.as_ref().err().map(tracing::field::display);
        if let Err(SessionError::Panic(error)) = how {
            let report = "closed by a bug in hexz-nbd; please report it";
            tracing::error!(%peer, reads, read_bytes, seconds, %error, "{report}");
            return;
        }
        if known.export.is_some() {
            tracing::info!(%peer, reads, read_bytes, seconds, ending, error, "closed");
            return;
        }
        // Whoever looks whether there is a server at all, as balancers do, says nothing.
        if matches!(how, Err(SessionError::Silent)) {
            tracing::debug!(%peer, seconds, error, "closed");
            return;
        }
        if !shared.log_ration.take() {
            return;
        }
        let identity = known.identity();
        let (version, suite) = known.version_and_suite();
        let Some(Refusal { export, detail, .. }) = &known.refusal else {
            tracing::info!(%peer, identity, version, suite, seconds, ending, error, "closed");
            return;
        };
        // Not the same twice.
        let is_told = how.as_ref().is_err_and(|error| error.to_string() == *detail);
        let reason = (!is_told).then_some(detail);
        let refusals = (known.refusals > 1).then_some(known.refusals);
        tracing::info!(
            %peer, export, identity, version, suite, seconds, reason, refusals, ending, error, "refused"
        );
    }

    pub(super) fn record(&self, shared: &Shared, known: &Known, what: impl FnOnce() -> EventKind) {
        if let Some(audit) = shared.audit.get() {
            let who = Who {
                connection: Some(self.id.to_string()),
                peer: self.peer.to_string(),
                identity: known.certified.as_ref().map(|certified| identity(certified)),
                tls: known.tls,
            };
            audit.record(Event::of(who, what()));
        }
    }
}

impl Known {
    fn identity(&self) -> Option<impl tracing::Value + use<'_>> {
        self.certified.as_ref().map(|certified| tracing::field::display(&certified.identity))
    }

    fn version_and_suite(&self) -> (Option<&'static str>, Option<&'static str>) {
        (self.tls.map(|tls| tls.version), self.tls.map(|tls| tls.cipher_suite))
    }
}

fn identity(certified: &Certified) -> Identity {
    let identity = &certified.identity;
    Identity {
        common_name: identity.common_name.clone(),
        organizational_units: identity.organizational_units.clone(),
        dns_names: identity.dns_names.clone(),
        uris: identity.uris.clone(),
        fingerprint: identity.fingerprint.to_string(),
    }
}

/// A client that has more connections than one may have. It has none of its own to speak of.
pub(crate) fn turned_away(peer: Peer, shared: &Shared) {
    let (reason, detail) = (Reason::AddressLimit, "too many connections of one address");
    shared.metrics.refused(reason.word());
    shared.roster.was_refused(None, peer, None, detail);
    if let Some(audit) = shared.audit.get() {
        let who = Who { peer: peer.to_string(), ..Who::default() };
        let detail = detail.to_owned();
        audit.record(Event::of(
            who,
            EventKind::Refuse { export: None, reason: reason.word(), detail },
        ));
    }
    if shared.log_ration.take() {
        tracing::info!(%peer, "turned away: {detail}");
    }
}
