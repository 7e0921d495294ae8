//! What a server must say of its exports, found without it.

use std::ops::Range;

use hexz_nbd::snapshot::{File, Stream};

use crate::support::fixtures;
use crate::support::server::contents;

/// An export: its bytes, and which of them are damaged, stored nowhere, or too many to be asked.
pub(crate) struct Export {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    damaged: Vec<Range<u64>>,
    holes: Vec<Range<u64>>,
}

/// Exports of every kind: with holes, without, damaged, empty, of an odd size.
pub(crate) const FILES: [(&str, &str); 6] = [
    ("damaged", "h-flip-block.hxz"),
    ("disk", "v082-ext4.hxz"),
    ("empty", "v082-empty.hxz"),
    ("many", "v020-lz4-multipage.hxz"),
    ("odd", "v082-lz4-default.hxz"),
    ("tail", "v014-zstd-cdc.hxz"),
];

/// The contexts that every export has, in their order.
pub(crate) const CONTEXTS: [&str; 3] = ["base:allocation", "hexz:parent-depth", "hexz:shared"];

impl Export {
    pub(crate) fn all() -> Vec<Self> {
        FILES.iter().map(|(name, file)| Self::new(name, file)).collect()
    }

    fn new(name: &'static str, file: &str) -> Self {
        let fixture = fixtures::named(file);
        let bad = fixture.expect.and_then(|expect| expect.bad_main_ranges).unwrap_or_default();
        let damaged: Vec<Range<u64>> =
            bad.into_iter().map(|(start, length)| start..start + length).collect();
        // What a damaged file should have held is in the file that it was made from.
        let bytes = contents(fixture.derived_from.as_deref().unwrap_or(file));
        let opened = File::open(fixtures::path(file)).unwrap();
        let extents = opened.extents(Stream::Main, 0..bytes.len() as u64).unwrap();
        let extents = extents.map(Result::unwrap);
        let holes = extents.filter(|extent| extent.is_hole).map(|extent| extent.range).collect();
        Self { name, bytes, damaged, holes }
    }

    pub(crate) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The first byte of a range that cannot be read.
    pub(crate) fn first_damaged(&self, range: &Range<u64>) -> Option<u64> {
        let touched =
            |bad: &&Range<u64>| !range.is_empty() && bad.start < range.end && range.start < bad.end;
        self.damaged.iter().find(touched).map(|bad| bad.start.max(range.start))
    }

    pub(crate) fn range(&self, range: Range<u64>) -> &[u8] {
        &self.bytes[range.start as usize..range.end as usize]
    }

    /// Whether a range is in the export.
    pub(crate) fn has(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.size())
    }

    /// Whether a sector that begins there is all hole.
    pub(crate) fn is_hole_sector(&self, sector: u64) -> bool {
        let end = (sector + 512).min(self.size());
        self.holes.iter().any(|hole| hole.start <= sector && end <= hole.end)
    }
}
