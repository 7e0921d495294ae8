//! Who is told how the server is, and who was here: from raw settings to listeners and logs.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::audit::{AuditLog, Event, EventKind, Target};
use crate::cli::Failure;
use crate::cli::serve::resolve;
use crate::cli::settings::{AuditChoice, MonitoringSettings};
use crate::server::Server;
use crate::server::status_listener::{StatusError, StatusListener};
use crate::snapshot::Cache;

/// What watches a server.
#[derive(Debug, Default)]
pub(crate) struct Monitoring {
    status: Option<StatusPlace>,
    audit: Option<AuditLog>,
    tells_identities: bool,
}

/// Where the status is shown, and the cache that it tells of.
#[derive(Debug)]
struct StatusPlace {
    addresses: Vec<SocketAddr>,
    cache: Arc<Cache>,
}

impl Monitoring {
    /// Opens the audit log. Nothing listens yet.
    pub(crate) fn new(settings: &MonitoringSettings, cache: &Arc<Cache>) -> Result<Self, Failure> {
        let status = match &settings.status_listen {
            Some(text) => {
                let addresses = resolve("--status-listen", text)?;
                Some(StatusPlace { addresses, cache: Arc::clone(cache) })
            }
            None => None,
        };
        let tells_identities = settings.metrics_identities;
        if tells_identities && status.is_none() {
            return Err(Failure::Usage(
                "--metrics-identities: nobody could read the metrics; give --status-listen too"
                    .to_owned(),
            ));
        }
        let audit = settings.audit_log.as_ref().map(|to| {
            let target = match to {
                AuditChoice::Journald => Target::journal(),
                AuditChoice::File(path) => Target::File(path.clone()),
            };
            let on_loss = |why: &str| tracing::error!(why, "lines of the audit log are lost");
            AuditLog::open(target, Arc::new(on_loss))
        });
        let audit = audit.transpose()?;
        if let Some(audit) = &audit {
            let (version, pid) = (env!("CARGO_PKG_VERSION"), std::process::id());
            audit.record(Event::new(EventKind::Start { version, pid }));
        }
        Ok(Self { status, audit, tells_identities })
    }

    /// Begins to watch a server, from before the first client until what is returned is dropped.
    pub(crate) async fn watch(&self, server: &Server) -> Result<JoinSet<()>, Failure> {
        let mut watching = JoinSet::new();
        if let Some(audit) = &self.audit {
            server.audit_to(audit.clone());
            let (audit, mut hang_up) = (audit.clone(), signal(SignalKind::hangup())?);
            watching.spawn(async move {
                while hang_up.recv().await.is_some() {
                    audit.reopen();
                }
            });
        }
        let Some(StatusPlace { addresses, cache }) = &self.status else { return Ok(watching) };
        let observer = server.observer(Arc::clone(cache));
        if self.tells_identities {
            observer.metrics().tell_identities();
        }
        for address in addresses {
            let listener = match StatusListener::bind(*address, observer.clone()).await {
                Err(error @ StatusError::Exposed(_)) => {
                    return Err(Failure::Usage(error.to_string()));
                }
                bound => bound?,
            };
            tracing::info!(address = %listener.address()?, "showing the status");
            watching.spawn(listener.run());
        }
        watching.spawn(observer.remember());
        Ok(watching)
    }

    /// What waits for the end of the server, to write the last lines.
    pub(crate) fn closing(&self) -> Closing {
        Closing(self.audit.clone())
    }
}

/// Ends the audit log.
#[derive(Debug)]
pub(crate) struct Closing(Option<AuditLog>);

impl Closing {
    /// Writes what is to be written still. Waits for it, though not for ever.
    pub(crate) fn close(self) {
        if let Some(audit) = self.0 {
            audit.record(Event::new(EventKind::Stop));
            audit.close();
        }
    }
}
