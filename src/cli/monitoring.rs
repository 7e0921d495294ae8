//! Who is told how the server is, and who was here: from raw settings to listeners and logs.

use std::net::SocketAddr;
use std::sync::Arc;

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
    audit: Option<Target>,
    tells_identities: bool,
    /// Whether the status is not for everybody who can reach it.
    has_rules: bool,
}

/// Where the status is shown, and the cache that it tells of.
#[derive(Debug)]
struct StatusPlace {
    addresses: Vec<SocketAddr>,
    hosts: Arc<[String]>,
    cache: Arc<Cache>,
}

impl Monitoring {
    /// Nothing is opened yet.
    pub(crate) fn new(settings: &MonitoringSettings, cache: &Arc<Cache>) -> Result<Self, Failure> {
        let status = match &settings.status_listen {
            Some(text) => {
                let addresses = resolve("--status-listen", text)?;
                let hosts = settings.status_host.iter().cloned().collect();
                Some(StatusPlace { addresses, hosts, cache: Arc::clone(cache) })
            }
            None => None,
        };
        for (flag, is_given) in [
            ("--metrics-identities", settings.metrics_identities),
            ("--status-allow-cn", !settings.status_allow.is_empty()),
            ("--status-host", !settings.status_host.is_empty()),
        ] {
            if is_given && status.is_none() {
                return Err(Failure::Usage(format!(
                    "{flag}: there is no status to be seen; give --status-listen too"
                )));
            }
        }
        let (tells_identities, has_rules) =
            (settings.metrics_identities, !settings.status_allow.is_empty());
        let audit = settings.audit_log.as_ref().map(|to| match to {
            AuditChoice::Journald => Target::journal(),
            AuditChoice::StandardOutput => Target::StandardOutput,
            AuditChoice::File(path) => Target::File(path.clone()),
        });
        Ok(Self { status, audit, tells_identities, has_rules })
    }

    /// Begins to watch a server that has its sockets, from before the first client.
    pub(crate) async fn watch(&self, server: &Server) -> Result<Watch, Failure> {
        let audit = self.audit.clone().map(|target| {
            let on_loss = |why: &str| tracing::error!(why, "lines of the audit log are lost");
            AuditLog::open(target, Arc::new(on_loss))
        });
        let audit = audit.transpose()?;
        if let Some(audit) = &audit {
            audit.record(Event::new(EventKind::Start { version: env!("CARGO_PKG_VERSION") }));
            server.audit_to(audit.clone());
        }
        let showing = self.show(server).await?;
        Ok(Watch { audit, _showing: showing })
    }

    async fn show(&self, server: &Server) -> Result<JoinSet<()>, Failure> {
        let mut watching = JoinSet::new();
        let Some(StatusPlace { addresses, hosts, cache }) = &self.status else {
            return Ok(watching);
        };
        let observer = server.observer(Arc::clone(cache));
        if self.tells_identities {
            observer.metrics().tell_identities();
        }
        for address in addresses {
            let listener =
                match StatusListener::bind(*address, Arc::clone(hosts), observer.clone()).await {
                    Err(error @ StatusError::Exposed(_)) => {
                        return Err(Failure::Usage(error.to_string()));
                    }
                    bound => bound?,
                };
            let address = listener.address()?;
            tracing::info!(%address, "showing the status");
            if self.has_rules && !listener.asks_for_certificates() {
                tracing::warn!(
                    %address,
                    "rules do not say who sees the status here: it is plain HTTP, without certificates"
                );
            }
            watching.spawn(listener.run());
        }
        watching.spawn(observer.remember());
        Ok(watching)
    }
}

/// Watches a server until it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    audit: Option<AuditLog>,
    /// Those who show the status. They end with this.
    _showing: JoinSet<()>,
}

impl Watch {
    /// What was renamed is left, and a new one begun.
    pub(crate) fn reopen(&self) {
        if let Some(audit) = &self.audit {
            audit.reopen();
        }
    }
}

impl Drop for Watch {
    /// Writes what is to be written still. Waits for it, though not for ever.
    fn drop(&mut self) {
        if let Some(audit) = &self.audit {
            audit.record(Event::new(EventKind::Stop));
            audit.close();
        }
    }
}
