//! A snapshot in memory, as the built-in demonstration has it.

use std::io;

use bytes::Bytes;

use crate::snapshot::storage::StorageBackend;

/// Reads from bytes in memory.
#[derive(Debug)]
pub struct MemoryBackend {
    contents: Bytes,
    name: String,
}

impl MemoryBackend {
    /// `name` stands for the bytes in messages.
    #[must_use]
    pub fn new(contents: Bytes, name: impl Into<String>) -> Self {
        Self { contents, name: name.into() }
    }
}

impl StorageBackend for MemoryBackend {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let wanted = usize::try_from(offset)
            .ok()
            .and_then(|start| self.contents.get(start..start.checked_add(buffer.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(wanted);
        Ok(())
    }

    fn read_resident_at(&self, offset: u64, buffer: &mut [u8]) -> bool {
        self.read_exact_at(offset, buffer).is_ok()
    }

    fn bytes(&self) -> u64 {
        self.contents.len() as u64
    }

    fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stay_inside() {
        let backend = MemoryBackend::new(Bytes::from_static(b"abcdef"), "letters");
        let mut two = [0; 2];
        backend.read_exact_at(4, &mut two).unwrap();
        assert_eq!(&two, b"ef");
        for offset in [5, 6, u64::MAX, u64::MAX - 1] {
            assert!(backend.read_exact_at(offset, &mut two).is_err(), "{offset}");
        }
    }
}
