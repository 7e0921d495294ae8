//! The `.hxz` file: open, length, reads, extents. Knows nothing of NBD, TLS or async runtimes.
pub mod format;
