//! Integration tests, one binary: real files, real clients, and peers that misbehave.

#![allow(
    clippy::cast_possible_truncation,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod access;
mod activation;
mod audit;
mod block_status;
mod cache;
mod certs;
mod corpus;
mod damage;
mod demo;
mod encryption;
mod exports;
mod extended;
mod formats;
mod generate;
mod history;
mod inspect;
mod interop;
mod layers;
mod limits;
mod manifest;
mod mapping;
mod matrix;
mod meta_context;
mod negotiation;
mod newcomers;
mod pack;
mod pack_base;
mod pack_encrypt;
mod panics;
mod protocol_table;
mod readahead;
mod readme;
mod reload;
mod service;
mod shutdown;
mod sign;
mod signatures;
mod simulation;
mod starttls;
mod status;
mod status_page;
mod structured;
mod support;
mod thin;
mod transmission;
mod upstream;
mod verify;
