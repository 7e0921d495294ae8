//! Who is on the other end, and what they may open. No sockets, nothing that waits.

pub mod issue;
mod name;
pub mod revocation_list;
