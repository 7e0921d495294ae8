//! What the tests share.

pub(crate) mod audit;
pub(crate) mod browser;
pub(crate) mod chunks;
pub(crate) mod client;
pub(crate) mod contents;
pub(crate) mod fixtures;
pub(crate) mod packing;
pub(crate) mod pki;
pub(crate) mod process;
pub(crate) mod scrape;
pub(crate) mod server;
pub(crate) mod signed;
pub(crate) mod storage;
pub(crate) mod tls;
pub(crate) mod upstream;
pub(crate) mod watched;
pub(crate) mod wire;
