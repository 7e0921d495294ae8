//! Integration tests, one binary: real files, real clients, and peers that misbehave.

#![allow(
    clippy::cast_possible_truncation,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod corpus;
mod formats;
mod layers;
mod limits;
mod negotiation;
mod pack;
mod shutdown;
mod support;
mod transmission;
mod upstream;
