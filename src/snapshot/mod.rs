//! The `.hxz` file: how long, what is where, and give me these bytes.
//!
//! Knows nothing of NBD, TLS or async runtimes, and never serves a byte that it did not check.
//! Calls that may read storage or decode say so; the others never wait.

pub mod cache;
pub mod chain;
pub mod content;
pub mod decode;
pub mod encryption;
pub mod error;
pub mod extents;
pub(crate) mod fetch;
pub mod file;
pub mod format;
mod hash_index;
pub mod manifest;
pub mod open;
pub(crate) mod page;
pub(crate) mod part;
pub(crate) mod pieces;
mod read;
pub mod readahead;
pub(crate) mod reference;
pub(crate) mod rooms;
mod seen;
pub mod signature;
mod signer;
pub mod storage;
pub(crate) mod stream_size;
pub mod structure;
pub mod verify;
pub mod write;

pub use self::cache::Cache;
pub use self::chain::{Ancestor, Registry};
pub use self::content::Content;
pub use self::decode::{Compressor, Encryptor, Lz4Compressor, ZstdCompressor};
pub use self::encryption::{BlockCipher, Passphrase};
pub use self::error::{Damage, Error, ErrorKind};
pub use self::extents::{Extent, Property};
pub use self::file::File;
pub use self::format::{Compression, Family, Stream};
pub use self::manifest::{Manifest, ManifestError, Root, Trust};
pub use self::open::{Check, OpenOptions};
pub use self::read::{Effort, Interrupted, Pattern, Reader, Sink, Slice};
pub use self::readahead::ReadAhead;
pub use self::signature::{SigningKey, VerifyKey};
pub use self::storage::{FileBackend, MemoryBackend, StorageBackend};
pub use self::structure::Structure;
pub use self::verify::{DamagedRange, verify};
