//! Sizes for people and to the byte.

use std::fmt;

use indicatif::BinaryBytes;

/// A number of bytes, as `3.00 MiB (3145851 bytes)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("1 byte"),
            bytes @ ..1024 => write!(f, "{bytes} bytes"),
            bytes => write!(f, "{} ({bytes} bytes)", BinaryBytes(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_exact_whatever_its_unit() {
        for (bytes, shown) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1.00 KiB (1024 bytes)"),
            (3_145_851, "3.00 MiB (3145851 bytes)"),
        ] {
            assert_eq!(Size(bytes).to_string(), shown);
        }
    }
}
