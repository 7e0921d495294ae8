//! What the tests share.

pub(crate) mod fixtures;
pub(crate) mod process;
