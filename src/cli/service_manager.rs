//! What a service manager that starts the server is told: systemd's `Type=notify-reload` and
//! watchdog. Without one, nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

/// Clients can connect.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Everything is read anew. [`ready`] ends it, however it went.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no clock to tell the service manager of"),
    }
}

/// No new clients are taken.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says again and again that the server is alive, if somebody wants to hear it, until the future is
/// dropped. Whoever runs it must run where the server runs, so that both hang together.
pub(crate) async fn keep_watchdog_fed() {
    let Some(patience) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    // Twice in its time, as systemd recommends.
    let interval = (patience / 2).max(Duration::from_millis(1));
    loop {
        tell(&[NotifyState::Watchdog]);
        tokio::time::sleep(interval).await;
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
