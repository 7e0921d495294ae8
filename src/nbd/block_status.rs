//! Extents of an export to chunks. Section "Structured reply types", `NBD_REPLY_TYPE_BLOCK_STATUS`.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::nbd::reply::{ReplyTo, push_chunk_header};
use crate::nbd::wire::{ChunkType, chunk_flags};
use crate::nbd::{Context, Outbox, Replies};

/// Bytes of an export that have something in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How many. Never 0.
    pub bytes: u64,
    /// What they have in common, as the metadata context defines it.
    pub status: u32,
}

/// The beginning of a range, or all of it, in one metadata context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// What is said of it.
    pub context: Context,
    /// One after another from the beginning of the range.
    pub extents: Vec<Extent>,
}

/// Answers a `BLOCK_STATUS` with a chunk for each context, of which there must be one.
pub(crate) fn push_status(to: ReplyTo, described: &[Described], outbox: &mut Outbox) {
    let mut left = described.len();
    for Described { context, extents } in described {
        left = left.saturating_sub(1);
        let flags = if left == 0 { chunk_flags::DONE } else { 0 };
        let count = extents.len() as u64;
        if to.replies == Replies::Extended {
            let payload_bytes = count.saturating_mul(16).saturating_add(8);
            push_chunk_header(to, flags, ChunkType::BLOCK_STATUS_EXT, payload_bytes, outbox);
            outbox.push_copy(&context.wire_id().to_be_bytes());
            outbox.push_copy(&u32::try_from(count).unwrap_or(0).to_be_bytes());
            for extent in extents {
                outbox.push_copy(&extent.bytes.to_be_bytes());
                outbox.push_copy(&u64::from(extent.status).to_be_bytes());
            }
        } else {
            let payload_bytes = count.saturating_mul(8).saturating_add(4);
            push_chunk_header(to, flags, ChunkType::BLOCK_STATUS, payload_bytes, outbox);
            outbox.push_copy(&context.wire_id().to_be_bytes());
            for extent in extents {
                // No longer than the request, whose length has 32 bits too.
                let bytes = u32::try_from(extent.bytes).unwrap_or(u32::MAX);
                outbox.push_copy(&bytes.to_be_bytes());
                outbox.push_copy(&extent.status.to_be_bytes());
            }
        }
    }
}

/// Whether what is described can be sent: every context with extents, none of them without bytes,
/// and together no longer than what was asked for.
pub(crate) fn is_sound(described: &[Described], length: u64) -> bool {
    let is_sound = |extents: &[Extent]| {
        let sum = |sum: u64, extent: &Extent| sum.checked_add(extent.bytes);
        extents.iter().all(|extent| extent.bytes != 0)
            && extents.iter().try_fold(0, sum).is_some_and(|sum| (1..=length).contains(&sum))
    };
    !described.is_empty() && described.iter().all(|described| is_sound(&described.extents))
}

#[cfg(test)]
mod tests {
    use bytes::Buf;

    use super::*;
    use crate::nbd::Contexts;

    fn described(extents: &[(u64, u32)]) -> Vec<Described> {
        let extents: Vec<Extent> =
            extents.iter().map(|&(bytes, status)| Extent { bytes, status }).collect();
        let contexts = Contexts::first(2);
        contexts.iter().map(|context| Described { context, extents: extents.clone() }).collect()
    }

    fn sent(replies: Replies) -> Vec<u8> {
        let to = ReplyTo { cookie: 0x0102_0304_0506_0708, offset: 0x2a, replies };
        let mut outbox = Outbox::default();
        push_status(to, &described(&[(65_536, 3), (0x1000_0000, 0)]), &mut outbox);
        outbox.copy_to_bytes(outbox.remaining()).to_vec()
    }

    #[test]
    fn each_context_is_a_chunk_and_the_last_ends_the_reply() {
        let chunk = |flags: u8, id: u8| {
            let head =
                [0x66, 0x8e, 0x33, 0xef, 0, flags, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 20];
            let extents = [0, 1, 0, 0, 0, 0, 0, 3, 0x10, 0, 0, 0, 0, 0, 0, 0];
            [&head[..], &[0, 0, 0, id], &extents].concat()
        };
        assert_eq!(sent(Replies::Structured), [chunk(0, 1), chunk(1, 2)].concat());
    }

    #[test]
    fn extended_chunks_have_lengths_of_64_bits_and_a_count() {
        let chunk = |flags: u8, id: u8| {
            let head = [0x6e, 0x8a, 0x27, 0x8c, 0, flags, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8];
            let numbers = [0x2a_u64, 40, u64::from(id) << 32 | 2, 65_536, 3, 0x1000_0000, 0];
            [&head[..], numbers.map(u64::to_be_bytes).as_flattened()].concat()
        };
        assert_eq!(sent(Replies::Extended), [chunk(0, 1), chunk(1, 2)].concat());
    }

    #[test]
    fn what_a_client_could_not_go_on_from_is_not_sent() {
        for (extents, sound) in [
            (&[(10, 0)][..], true),
            (&[(4, 0), (6, 1)], true),
            (&[(1, 0)], true),
            (&[], false),
            (&[(0, 0)], false),
            (&[(4, 0), (0, 1)], false),
            (&[(11, 0)], false),
            (&[(u64::MAX, 0), (1, 0)], false),
        ] {
            assert_eq!(is_sound(&described(extents), 10), sound, "{extents:?}");
        }
        assert!(!is_sound(&[], 10));
    }
}
