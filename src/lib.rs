//! Read-only NBD server for Hexz snapshots.
pub mod nbd;
pub mod snapshot;
