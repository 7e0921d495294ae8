//! Who is on the other end, and what they may open. No sockets, nothing that waits.
//!
//! ```text
//! PEM files ─→ Material ─→ TlsConfig ─→ a handshake ─→ PeerIdentity ─→ Rules
//!                                            └───────→ HandshakeFailure
//! ```
//!
//! * [`Sources`] says which files, [`Material`] is what they hold, checked as far as it can be
//!   without a client.
//! * [`TlsConfig`] is the configuration of rustls that follows.
//! * [`PeerIdentity`] is what a verified certificate says about its holder, and [`Rules`] decide
//!   what that opens.
//! * [`HandshakeFailure`] is one line for the log when there is nobody to let in: nbd-client tells
//!   its user nothing.
//! * [`issue`] and [`revocation_list`] make what the others read.

pub mod access;
mod certificate;
pub mod config;
pub mod expiry;
pub mod fault;
pub mod handshake;
pub mod identity;
pub mod issue;
pub mod material;
mod name;
pub mod pattern;
pub mod pem;
mod revocation;
pub mod revocation_list;
pub mod rules;
pub mod sources;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use self::access::Access;
pub use self::config::{ClientAuth, ConfigError, MinVersion, TlsConfig};
pub use self::expiry::{Expiring, Expiry};
pub use self::fault::{MaterialError, MaterialErrorKind, Warning};
pub use self::handshake::{Cause, HandshakeFailure};
pub use self::identity::{Fingerprint, FingerprintError, IdentityError, PeerIdentity};
pub use self::material::Material;
pub use self::pattern::{UriPattern, UriPatternError};
pub use self::pem::{FileError, FileErrorKind, Pem, read_certificates};
pub use self::rules::{Decision, Rule, RuleError, Rules};
pub use self::sources::{ServerFiles, Sources};
