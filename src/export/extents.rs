//! What an export is made of, in the terms of its metadata contexts.

use crate::export::{Export, for_clients, is_damage};
use crate::nbd::wire::allocation_state;
use crate::nbd::{Context, Contexts, Described, Extent, Failure};
use crate::snapshot::{Error, Property};

/// What can be known of the extents of an export, under which name. Those of the protocol document
/// begin with `base:`, ours with `hexz:`; the README says what their numbers mean.
pub(crate) const CONTEXTS: [(&str, Property); 3] = [
    ("base:allocation", Property::Hole),
    ("hexz:parent-depth", Property::ParentDepth),
    ("hexz:shared", Property::Shared),
];

/// The same, as clients see them. The last cannot be told of every snapshot.
pub(crate) static CONTEXT_NAMES: [&str; 3] = {
    let [(first, _), (second, _), (third, _)] = CONTEXTS;
    [first, second, third]
};

/// Holes are told in whole sectors, and what else of them there is as data, which is never wrong:
/// qemu-img counts in sectors, and would take the data in the sector where a hole ends for zeros.
const SECTOR_BYTES: u64 = 512;

impl Export {
    /// Describes the beginning of a range that was checked against the size of the export, in some
    /// of its contexts, with at most so many extents in each. May read storage, so call it where
    /// that stalls nobody.
    ///
    /// # Errors
    ///
    /// As [`Export::read`].
    pub fn describe(
        &self,
        offset: u64,
        length: u64,
        contexts: Contexts,
        extents_max: usize,
    ) -> Result<Vec<Described>, Failure> {
        let describe = |context: Context| {
            let extents = self.extents(offset, length, context, extents_max)?;
            Ok(Described { context, extents })
        };
        contexts.iter().map(describe).collect::<Result<_, _>>().map_err(|error: Error| {
            tracing::info!(export = self.info.name.as_str(), offset, length, %error, "not described");
            let is_damage = is_damage(&error);
            let (error, message) = for_clients(&error);
            Failure { error, message, position: None, is_damage }
        })
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        context: Context,
        extents_max: usize,
    ) -> Result<Vec<Extent>, Error> {
        let Some((_, property)) = CONTEXTS.get(context.place()) else { return Ok(Vec::new()) };
        // What is asked was checked to lie in the export.
        let Some((range, zeros)) = self.window.map(offset, length) else { return Ok(Vec::new()) };
        let mut extents = Collected::new(*property, offset, self.info.size_bytes);
        let mut left = range.end.saturating_sub(range.start);
        for run in self.file.runs(self.stream, range, *property)? {
            match run {
                Ok(run) => {
                    let bytes = run.range.end.saturating_sub(run.range.start);
                    extents.push(bytes, run.value);
                    left = left.saturating_sub(bytes);
                }
                // The client asks again from there, and is told then.
                Err(_) if extents.count() > 0 => break,
                Err(error) => return Err(error),
            }
            // One more shows that those before are complete.
            if extents.count() > extents_max {
                break;
            }
        }
        if left == 0 && zeros != 0 {
            extents.push(zeros, u32::from(*property == Property::Hole));
        }
        Ok(extents.first(extents_max))
    }
}

/// Extents of a range, neighbours of one status merged.
#[derive(Debug)]
pub(crate) struct Collected {
    property: Property,
    /// Where the next run begins in the export.
    position: u64,
    /// Size of the export. A hole that reaches this has no sector behind it to spoil.
    export_bytes: u64,
    extents: Vec<Extent>,
}

impl Collected {
    /// Of a range that begins there.
    pub(crate) fn new(property: Property, position: u64, export_bytes: u64) -> Self {
        Self { property, position, export_bytes, extents: Vec::new() }
    }

    /// How many there are. The last may still grow.
    pub(crate) fn count(&self) -> usize {
        self.extents.len()
    }

    /// The next bytes of the range, and what their property is.
    pub(crate) fn push(&mut self, bytes: u64, value: u32) {
        let (start, end) = (self.position, self.position.saturating_add(bytes));
        self.position = end;
        if self.property != Property::Hole {
            self.add(bytes, value);
        } else if value == 0 {
            self.add(bytes, 0);
        } else {
            let first_whole = start.checked_next_multiple_of(SECTOR_BYTES).unwrap_or(end).min(end);
            let last_whole = if end == self.export_bytes { end } else { end - end % SECTOR_BYTES };
            let last_whole = last_whole.max(first_whole);
            self.add(first_whole.saturating_sub(start), 0);
            let hole = allocation_state::HOLE | allocation_state::ZERO;
            self.add(last_whole.saturating_sub(first_whole), hole);
            self.add(end.saturating_sub(last_whole), 0);
        }
    }

    /// At most so many.
    pub(crate) fn first(mut self, extents_max: usize) -> Vec<Extent> {
        self.extents.truncate(extents_max);
        self.extents
    }

    fn add(&mut self, bytes: u64, status: u32) {
        match self.extents.last_mut() {
            _ if bytes == 0 => {}
            Some(last) if last.status == status => last.bytes = last.bytes.saturating_add(bytes),
            _ => self.extents.push(Extent { bytes, status }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(
        property: Property,
        position: u64,
        runs: &[(u64, u32)],
        extents_max: usize,
    ) -> Vec<(u64, u32)> {
        let mut collected = Collected::new(property, position, 10_000);
        for (bytes, value) in runs {
            collected.push(*bytes, *value);
        }
        let extents = collected.first(extents_max);
        extents.into_iter().map(|extent| (extent.bytes, extent.status)).collect()
    }

    #[test]
    fn holes_are_told_in_whole_sectors_and_the_rest_of_them_is_data() {
        for (position, runs, expected) in [
            (0, &[(512, 0), (1024, 1), (512, 0)][..], &[(512, 0), (1024, 3), (512, 0)][..]),
            (0, &[(500, 0), (1024, 1), (524, 0)], &[(512, 0), (512, 3), (1024, 0)]),
            (0, &[(500, 0), (1000, 1), (500, 0)], &[(512, 0), (512, 3), (976, 0)]),
            (0, &[(500, 0), (600, 1), (500, 0)], &[(512, 0), (512, 3), (576, 0)]),
            (0, &[(500, 0), (500, 1), (500, 0)], &[(1500, 0)]),
            (700, &[(2000, 1)], &[(324, 0), (1536, 3), (140, 0)]),
            // The end of the export is no edge.
            (9000, &[(1000, 1)], &[(216, 0), (784, 3)]),
            (9900, &[(100, 1)], &[(100, 0)]),
        ] {
            assert_eq!(
                collected(Property::Hole, position, runs, 9),
                expected,
                "{position} {runs:?}"
            );
        }
    }

    #[test]
    fn other_properties_are_told_as_they_are_and_neighbours_merged() {
        let runs = [(5, 1), (6, 1), (7, 0), (8, 2)];
        let all = collected(Property::ParentDepth, 3, &runs, 9);
        assert_eq!(all, [(11, 1), (7, 0), (8, 2)]);
        assert_eq!(collected(Property::Shared, 3, &runs, 1), [(11, 1)]);
    }
}
