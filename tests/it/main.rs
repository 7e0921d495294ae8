//! Integration tests, one binary: real files, real clients, and peers that misbehave.

#![allow(
    clippy::cast_possible_truncation,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod formats;
mod interop;
mod support;
mod upstream;
