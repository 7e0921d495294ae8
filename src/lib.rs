//! Read-only NBD server for Hexz snapshots: the parts of the `hexz-nbd` command, as a library.
//!
//! Bytes come in from a socket, become a request, the request becomes slices of blocks of an
//! immutable snapshot, and the slices leave through the same socket.
//!
//! ```text
//! cli ─→ server ─→ export ─→ snapshot
//!           ├────→ nbd ←──────┘ (export only)
//!           └────→ tls, metrics, audit
//! ```
//!
//! * [`snapshot`] reads `.hxz` files: how long, what is where, give me these bytes.
//! * [`nbd`] is the protocol: bytes and decisions, no I/O.
//! * [`export`] is a snapshot under a name.
//! * [`tls`] is who is on the other end, and what they may open.
//! * [`metrics`] counts.
//! * [`audit`] writes down who came, what was given and what was refused.
//! * [`server`] has the sockets, and is the only place that waits.
//! * [`tls`] makes certificates.
//! * [`cli`] is what the operator types.
//!
//! A snapshot is read like this:
//!
//! ```no_run
//! use hexz_nbd::File;
//! use hexz_nbd::snapshot::Stream;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let snap = File::open("vm_snapshot.hxz")?;
//! let first_sector = snap.read_at(Stream::Main, 0, 512)?;
//! # Ok(())
//! # }
//! ```
//!
//! And served like this, with [`serve_nbd`] or, with more choices, a [`server::Server`].

pub mod audit;
pub mod cli;
pub mod export;
pub mod metrics;
pub mod nbd;
pub mod server;
pub mod snapshot;
pub mod tls;

pub use crate::server::serve_nbd;
pub use crate::snapshot::{File, FileBackend, Lz4Compressor};
