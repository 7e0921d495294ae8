//! What the tests share.

pub(crate) mod client;
pub(crate) mod fixtures;
pub(crate) mod process;
pub(crate) mod server;
pub(crate) mod tls;
