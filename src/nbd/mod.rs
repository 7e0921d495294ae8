//! The NBD protocol: bytes and decisions. No I/O, no clock, no async.
