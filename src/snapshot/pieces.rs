//! Long ranges of a file in pieces, so that memory stays bounded.

use std::ops::Range;

use crate::snapshot::error::ErrorKind;
use crate::snapshot::storage::StorageBackend;
use crate::snapshot::structure::read;

/// Bytes that are in memory at a time.
const PIECE_BYTES: u64 = 256 * 1024;

/// Shows the bytes of a range to `visit`, in order.
pub(crate) fn each_piece(
    storage: &dyn StorageBackend,
    what: &'static str,
    range: Range<u64>,
    mut visit: impl FnMut(&[u8]),
) -> Result<(), ErrorKind> {
    let mut at = range.start;
    while at < range.end {
        let length = range.end.saturating_sub(at).min(PIECE_BYTES);
        visit(&read(storage, what, at, length)?);
        at = at.saturating_add(length);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::snapshot::storage::MemoryBackend;

    #[test]
    fn every_byte_is_seen_once_and_in_order() {
        let bytes: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
        let storage = MemoryBackend::new(Bytes::from(bytes.clone()), "numbers");
        let end = bytes.len() as u64;
        for range in [0..end, 5..5, 7..8, 3..PIECE_BYTES + 3, end - 1..end] {
            let mut seen = Vec::new();
            each_piece(&storage, "it", range.clone(), |piece| seen.extend_from_slice(piece))
                .unwrap();
            let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap());
            assert!(seen == bytes[start..end], "{range:?}");
        }
        assert!(each_piece(&storage, "it", end - 1..end + 1, |_| {}).is_err());
    }
}
