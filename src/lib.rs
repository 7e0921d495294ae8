//! Read-only NBD server for Hexz snapshots.
pub mod cli;
pub mod nbd;
pub mod snapshot;
