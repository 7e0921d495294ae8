//! What the operator types: the only place that knows clap and prints.

pub mod failure;

pub use self::failure::Failure;
