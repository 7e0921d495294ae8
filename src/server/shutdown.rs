//! Stopping: accept nobody, answer what was asked for, cut who does not take the answer.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::server::{ServerError, Shared};

/// Ends a server: all of it, however long its clients would like it to go on.
///
/// Who has chosen an export gets what it has asked for, within the drain timeout. What anybody asks
/// for from now on is refused with the reason, and who asks for nothing is hung up on. Whoever is left
/// then is cut off, which is no failure of the server: that the time is bounded is what the operator
/// asked for.
pub(crate) async fn stop(mut accepting: JoinSet<Result<(), ServerError>>, shared: &Arc<Shared>) {
    // First and completely: who comes now is refused by the system and can go elsewhere, instead of
    // waiting in the queue of a socket that nobody will look at again.
    accepting.shutdown().await;
    shared.stop.cancel();
    shared.tasks.close();
    let open = shared.tasks.len();
    if open != 0 {
        tracing::info!(sessions = open, "stopping");
    }
    if timeout(shared.limits.drain_timeout, shared.tasks.wait()).await.is_err() {
        let sessions = shared.tasks.len();
        tracing::warn!(
            sessions,
            "cutting sessions that did not end: these clients did not take their replies within \
             --drain-timeout"
        );
        shared.cut.cancel();
        shared.tasks.wait().await;
    }
}
