//! The NBD protocol: bytes and decisions. No I/O, no clock, no async.
//!
//! A session is two state machines, one after the other. [`Negotiation`] takes the client's bytes
//! until an export is chosen, [`Transmission`] takes requests and gives replies. Whoever owns the
//! socket moves bytes between it, the machines and their [`Outbox`].

pub(crate) mod answers;
pub(crate) mod block_status;
pub(crate) mod chunks;
pub mod context;
pub mod error_counts;
pub mod limits;
pub mod negotiation;
pub mod option;
pub mod outbox;
pub(crate) mod parts;
pub mod reply;
pub mod request;
pub mod transmission;
pub mod wire;
pub mod work;

pub use self::block_status::{Described, Extent};
pub use self::context::{Context, Contexts};
pub use self::negotiation::{Channel, Entered, Negotiation, Progress, Upgrade};
pub use self::outbox::Outbox;
pub use self::reply::{Piece, Replies};
pub use self::transmission::{Loaded, Terms, Transmission};
pub use self::work::{Failure, Load, Read, ReadFailure, Status, Work};

/// What a client may know of an export before it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// The name by which the server knows the export. At most
    /// [`NAME_BYTES_MAX`](limits::NAME_BYTES_MAX) bytes.
    pub name: String,
    /// A line for people, empty if there is none.
    pub description: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Requests of this many bytes serve best. Any number: the protocol's rules are applied to it.
    pub preferred_block_bytes: u32,
    /// Names of what can be known of its extents, such as `base:allocation`. At most
    /// [`CONTEXTS_MAX`](context::CONTEXTS_MAX).
    pub contexts: &'static [&'static str],
}

/// One line of a list of exports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The name to ask for.
    pub name: String,
    /// A line for people, empty if there is none.
    pub description: String,
}

/// An export that a client can choose.
pub trait NegotiatedExport {
    /// What the client may know of it.
    fn info(&self) -> &ExportInfo;
}

/// Why a client does not get an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// There is none of that name, as far as the client may know.
    Unknown,
    /// There is one, and it cannot be opened. The client may know that.
    Broken,
}

/// The exports as one client may see them.
pub trait ExportDirectory {
    /// What a client gets who chooses one.
    type Export: NegotiatedExport;

    /// All exports, in the order in which they are listed.
    fn list(&self) -> Vec<Listing>;

    /// The export of that name. The empty name asks for the default export.
    ///
    /// # Errors
    ///
    /// [`Absent`] if the client gets none.
    fn find(&self, name: &str) -> Result<Self::Export, Absent>;
}

/// The stream has lost its framing: nothing after it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("wrong magic {found:#x}")]
pub struct BadMagic {
    /// What stood where the magic belongs.
    pub found: u64,
}
