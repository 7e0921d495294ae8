//! Numbers of bytes: as people write them, and as they are shown to them.

use std::fmt;
use std::str::FromStr;

use indicatif::BinaryBytes;

/// A number of bytes. Written as digits and a unit, such as `64KiB`, `64K`, `1MB` or `65536`; shown
/// as `3.00 MiB (3145851 bytes)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

/// Why a text is not a number of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ByteSizeError {
    /// There is no whole number at the start.
    #[error("expected a whole number and a unit, such as 64KiB or 65536")]
    Number,
    /// What follows the number is no unit.
    #[error(
        "unknown unit {0:?}: use B, KiB, MiB, GiB or TiB, or KB, MB, GB or TB for powers of 1000"
    )]
    Unit(String),
    /// It does not fit into 64 bits.
    #[error("more bytes than can be counted")]
    TooLarge,
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    /// Units are powers of 1024, with and without `iB`, and powers of 1000 with `B`. Upper and
    /// lower case are the same.
    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(ByteSizeError::Number);
        }
        let unit = unit.trim_start();
        let (base, power) = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => (1_u64, 1),
            "k" | "kib" => (1024, 1),
            "m" | "mib" => (1024, 2),
            "g" | "gib" => (1024, 3),
            "t" | "tib" => (1024, 4),
            "kb" => (1000, 1),
            "mb" => (1000, 2),
            "gb" => (1000, 3),
            "tb" => (1000, 4),
            // A fraction of a unit, or of a byte.
            other if other.starts_with(['.', ',']) => return Err(ByteSizeError::Number),
            _ => return Err(ByteSizeError::Unit(unit.to_owned())),
        };
        // The number is all digits, so only its size can be wrong.
        let number: u64 = number.parse().map_err(|_| ByteSizeError::TooLarge)?;
        number.checked_mul(base.pow(power)).map(Self).ok_or(ByteSizeError::TooLarge)
    }
}

impl fmt::Display for ByteSize {
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
            assert_eq!(ByteSize(bytes).to_string(), shown);
        }
    }

    #[test]
    fn binary_and_decimal_units_are_told_apart() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65536),
            ("512B", 512),
            ("64KiB", 65536),
            ("64K", 65536),
            ("64k", 65536),
            ("64KB", 64_000),
            ("1MiB", 1 << 20),
            ("1M", 1 << 20),
            ("1MB", 1_000_000),
            ("256 MiB", 256 << 20),
            ("2GiB", 2 << 30),
            ("2G", 2 << 30),
            ("2GB", 2_000_000_000),
            ("3TiB", 3 << 40),
            ("3T", 3 << 40),
            ("3tb", 3_000_000_000_000),
            (" 7mib ", 7 << 20),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_a_reason() {
        for text in ["", "B", "KiB", "-1", "+1", "1.5MiB", "0,5G", ".5K", "٣KiB"] {
            assert_eq!(text.parse::<ByteSize>(), Err(ByteSizeError::Number), "{text}");
        }
        for (text, unit) in [("1Ki", "Ki"), ("1bytes", "bytes"), ("1 0", "0"), ("0x10", "x10")] {
            assert_eq!(text.parse::<ByteSize>(), Err(ByteSizeError::Unit(unit.into())), "{text}");
        }
        for text in ["18446744073709551616", "16777216TiB", "99999999999999999999999KiB"] {
            assert_eq!(text.parse::<ByteSize>(), Err(ByteSizeError::TooLarge), "{text}");
        }
    }
}
