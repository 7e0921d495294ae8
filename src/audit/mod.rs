//! Who came, what they were given and what they were refused: one JSON line for each, for those who
//! have to answer for it. Knows nothing of what it records.
//!
//! Whoever records never waits: a thread of its own writes. What cannot be written is counted, and
//! told in the log itself as soon as it can be written again. docs/audit.md is the schema.

mod event;
mod sink;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;

pub use self::event::{Event, EventKind, Identity, Tls, Who};
pub use self::sink::Target;
pub use self::writer::AuditLog;

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be opened for appending.
    #[error("cannot append to the audit log {path:?}")]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no journal on this host, or it cannot be reached from here.
    #[error("cannot reach the journal at {path:?}")]
    Journal {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no thread for it.
    #[error("cannot start the thread that writes the audit log")]
    Thread(#[source] std::io::Error),
}

/// What is told when a line could not be written: the reason, in words.
pub type OnLoss = Arc<dyn Fn(&str) + Send + Sync>;
