//! The encoding of single values: little-endian, fixed width, nothing aligned. Format section 3.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::snapshot::format::FormatError;

/// Reads values one after another from a slice that lies at a known place of the file.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    /// Position in the file of the first byte of `rest`, for error messages.
    at: u64,
}

impl<'a> Fields<'a> {
    /// `bytes` were read from position `at` of the file.
    pub(crate) fn new(bytes: &'a [u8], at: u64) -> Self {
        Self { rest: bytes, at }
    }

    /// Position in the file of the next value.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    /// What has not been read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn bytes(
        &mut self,
        count: usize,
        what: &'static str,
    ) -> Result<&'a [u8], FormatError> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(FormatError::Truncated { what, offset: self.at });
        };
        self.rest = rest;
        self.at = self.at.saturating_add(count as u64);
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], FormatError> {
        let offset = self.at;
        let taken = self.bytes(N, what)?;
        taken.try_into().map_err(|_| FormatError::Truncated { what, offset })
    }

    pub(crate) fn salt(&mut self, what: &'static str) -> Result<[u8; 16], FormatError> {
        self.array(what)
    }

    pub(crate) fn hash(&mut self, what: &'static str) -> Result<[u8; 32], FormatError> {
        self.array(what)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, FormatError> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// One byte, 0 or 1 only.
    pub(crate) fn bool(&mut self, what: &'static str) -> Result<bool, FormatError> {
        let offset = self.at;
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FormatError::Invalid { what, offset }),
        }
    }

    /// A tag byte, 0 or 1, then the value if the tag is 1.
    pub(crate) fn optional<T>(
        &mut self,
        what: &'static str,
        value: impl FnOnce(&mut Self) -> Result<T, FormatError>,
    ) -> Result<Option<T>, FormatError> {
        if self.bool(what)? { value(self).map(Some) } else { Ok(None) }
    }

    /// A u64 byte length and UTF-8 without NUL, at least one byte.
    pub(crate) fn string(&mut self, what: &'static str) -> Result<String, FormatError> {
        let offset = self.at;
        let length = self.u64(what)?;
        let length =
            usize::try_from(length).map_err(|_| FormatError::Truncated { what, offset })?;
        let text = str::from_utf8(self.bytes(length, what)?)
            .map_err(|_| FormatError::Invalid { what, offset })?;
        if text.is_empty() || text.contains('\0') {
            return Err(FormatError::Invalid { what, offset });
        }
        Ok(text.to_owned())
    }
}

/// Writes values in the same encoding.
#[derive(Default)]
pub(crate) struct FieldWriter {
    bytes: Vec<u8>,
}

impl FieldWriter {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.bytes.push(u8::from(value));
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.raw(&value.to_le_bytes());
    }

    pub(crate) fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    pub(crate) fn string(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.raw(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_values_are_read_back_in_order() {
        let mut writer = FieldWriter::default();
        writer.u32(7);
        writer.optional(Some(9_u64), FieldWriter::u64);
        writer.optional(None, FieldWriter::u64);
        writer.string("näme");
        writer.bool(true);
        let bytes = writer.into_bytes();

        let mut fields = Fields::new(&bytes, 100);
        assert_eq!(fields.u32("a").unwrap(), 7);
        assert_eq!(fields.optional("b", |f| f.u64("b")).unwrap(), Some(9));
        assert_eq!(fields.optional("c", |f| f.u64("c")).unwrap(), None);
        assert_eq!(fields.string("d").unwrap(), "näme");
        assert!(fields.bool("e").unwrap());
        assert_eq!(fields.position(), 100 + bytes.len() as u64);
        assert!(fields.u8("f").is_err());
    }

    #[test]
    fn a_string_that_lies_about_its_length_is_an_error_not_an_allocation() {
        for length in [5, u64::MAX, u64::from(u32::MAX)] {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.extend_from_slice(b"abcd");
            assert!(Fields::new(&bytes, 0).string("path").is_err(), "{length}");
        }
    }

    #[test]
    fn a_string_is_neither_empty_nor_broken_utf8_nor_holds_nul() {
        for text in [&b""[..], b"\xff\xfe", b"a\0b"] {
            let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(text);
            assert!(Fields::new(&bytes, 0).string("path").is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_flag_is_zero_or_one() {
        assert!(!Fields::new(&[0], 0).bool("flag").unwrap());
        assert!(Fields::new(&[2], 0).bool("flag").is_err());
    }
}
