//! What the requests of one client are counted by, without looking anything up.

use prometheus_client::metrics::counter::Counter;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestType {
    /// Bytes.
    Read,
    /// To make bytes quick to read.
    Cache,
    /// Extents.
    BlockStatus,
    /// To make durable what was written, which is nothing.
    Flush,
    /// What is refused: a write, a request that does not fit the export.
    Refused,
}

impl RequestType {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Read, Self::Cache, Self::BlockStatus, Self::Flush, Self::Refused];

    /// The value of the label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Cache => "cache",
            Self::BlockStatus => "block_status",
            Self::Flush => "flush",
            Self::Refused => "refused",
        }
    }
}

/// Of all exports together, or of one client.
#[derive(Debug, Clone, Default)]
pub(super) struct Totals {
    pub(super) reads: Counter,
    pub(super) read_bytes: Counter,
}

/// What the requests of one client to its export are counted by.
#[derive(Debug)]
pub struct ExportMetrics {
    /// In the order of [`RequestType::ALL`].
    pub(super) requests: [Counter; 5],
    pub(super) read_bytes: Counter,
    pub(super) damaged: Counter,
    pub(super) all: Totals,
    pub(super) identity: Option<Totals>,
}

impl ExportMetrics {
    /// So many requests, in the order of [`RequestType::ALL`].
    pub fn requests(&self, counts: [u64; 5]) {
        let [reads, ..] = counts;
        for totals in [Some(&self.all), self.identity.as_ref()].into_iter().flatten() {
            totals.reads.inc_by(reads);
        }
        for (counter, count) in self.requests.iter().zip(counts) {
            if count != 0 {
                counter.inc_by(count);
            }
        }
    }

    /// So many bytes of reads.
    pub fn read_bytes(&self, bytes: u64) {
        self.read_bytes.inc_by(bytes);
        for totals in [Some(&self.all), self.identity.as_ref()].into_iter().flatten() {
            totals.read_bytes.inc_by(bytes);
        }
    }

    /// All of its requests, the bytes of its reads, and those that met a damaged block.
    #[must_use]
    pub fn totals(&self) -> [u64; 3] {
        let requests = self.requests.iter().map(Counter::get).sum();
        [requests, self.read_bytes.get(), self.damaged.get()]
    }

    /// A request met a damaged block.
    pub fn damaged(&self) {
        self.damaged.inc();
    }
}
