//! A short name for each connection, the same in the log and wherever else it is spoken of.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

/// Names one connection among those of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnectionId(u32);

impl ConnectionId {
    /// The next one. After four billion they begin again.
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A number is easier to say, to search for and to sort than anything random, and as short as can be.
impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}
