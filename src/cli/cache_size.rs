//! How large the cache is.

use std::str::FromStr;

use crate::cli::memory::available_bytes;
use crate::cli::size::{ByteSize, ByteSizeError};
use crate::snapshot::cache::CACHE_BYTES_DEFAULT;

/// What the operator says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CacheSize {
    /// As much as the machine can well spare.
    Auto,
    /// So much.
    Bytes(ByteSize),
}

/// Of the memory there is, the cache takes one part in so many. The rest is for the stored bytes of the same
/// snapshots, which the system keeps, for replies on their way, and for others.
const SHARE: u64 = 4;

/// Fewer bytes are no cache.
const AUTO_BYTES_MIN: u64 = 16 << 20;

impl CacheSize {
    /// In bytes.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::Auto => auto(available_bytes()),
            Self::Bytes(ByteSize(bytes)) => bytes,
        }
    }
}

fn auto(available_bytes: Option<u64>) -> u64 {
    available_bytes.map_or(CACHE_BYTES_DEFAULT, |bytes| (bytes / SHARE).max(AUTO_BYTES_MIN))
}

impl FromStr for CacheSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        if text.trim() == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_number_or_auto() {
        assert_eq!("auto".parse(), Ok(CacheSize::Auto));
        assert_eq!("64MiB".parse(), Ok(CacheSize::Bytes(ByteSize(64 << 20))));
        assert_eq!("0".parse(), Ok(CacheSize::Bytes(ByteSize(0))));
        assert_eq!("automatic".parse::<CacheSize>(), Err(ByteSizeError::Number));
    }

    #[test]
    fn auto_is_a_quarter_of_what_there_is() {
        assert_eq!(auto(Some(8 << 30)), 2 << 30);
        assert_eq!(auto(Some(1 << 20)), AUTO_BYTES_MIN);
        assert_eq!(auto(None), CACHE_BYTES_DEFAULT);
    }
}
