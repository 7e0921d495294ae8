//! Metadata contexts: what can be known of the extents of an export. Section "Metadata querying".
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

/// Most contexts of one export.
pub const CONTEXTS_MAX: usize = 32;

/// One of the contexts of an export: its place in [`ExportInfo::contexts`](crate::nbd::ExportInfo).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context(u32);

impl Context {
    /// Place among the contexts of the export.
    #[must_use]
    pub fn place(self) -> usize {
        self.0 as usize
    }

    /// Number of the context on the wire. 0 is never used: some clients take it for none.
    #[must_use]
    pub fn wire_id(self) -> u32 {
        self.0.saturating_add(1)
    }
}

/// Some of the contexts of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contexts(u32);

impl Contexts {
    /// Those of `names` that any of the queries asks for.
    ///
    /// A query that ends with a colon asks for all names of its namespace where contexts are
    /// listed, and for none where they are chosen.
    pub fn asked_for<'a>(
        names: &[&str],
        queries: impl Iterator<Item = &'a str>,
        listing: bool,
    ) -> Self {
        let mut chosen = Self::default();
        for query in queries {
            let is_namespace = listing && query.ends_with(':');
            for (place, name) in (0..).zip(names.iter().take(CONTEXTS_MAX)) {
                if query == *name || is_namespace && name.starts_with(query) {
                    chosen.insert(Context(place));
                }
            }
        }
        chosen
    }

    /// The first so many contexts of an export, which are all if it has no more.
    #[must_use]
    pub fn first(count: usize) -> Self {
        let mut all = Self::default();
        for place in (0..).take(count.min(CONTEXTS_MAX)) {
            all.insert(Context(place));
        }
        all
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    #[must_use]
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// All of them, in the order of the export.
    pub fn iter(self) -> impl Iterator<Item = Context> {
        (0..u32::BITS).map(Context).filter(move |context| self.contains(*context))
    }

    /// Those that a client names by their numbers. `None` if one is not among these, or is named
    /// twice.
    pub(crate) fn filter(self, wire_ids: impl Iterator<Item = u32>) -> Option<Self> {
        let mut chosen = Self::default();
        for id in wire_ids {
            let context = Context(id.checked_sub(1)?);
            if !self.contains(context) || chosen.contains(context) {
                return None;
            }
            chosen.insert(context);
        }
        Some(chosen)
    }

    fn insert(&mut self, context: Context) {
        self.0 |= 1_u32.checked_shl(context.0).unwrap_or(0);
    }

    fn contains(self, context: Context) -> bool {
        self.0 & 1_u32.checked_shl(context.0).unwrap_or(0) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = ["base:allocation", "hexz:shared", "hexz:parent-depth"];

    #[test]
    fn names_are_asked_for_whole_and_in_lists_by_namespace() {
        for (query, listed, chosen) in [
            ("base:allocation", 0b001, 0b001),
            ("base:", 0b001, 0),
            ("hexz:", 0b110, 0),
            ("hexz:shared", 0b010, 0b010),
            ("hexz:share", 0, 0),
            ("hexz", 0, 0),
            ("", 0, 0),
            (":", 0, 0),
            ("qemu:", 0, 0),
            ("base:allocation:", 0, 0),
        ] {
            let asked = |listing| Contexts::asked_for(&NAMES, [query].into_iter(), listing);
            assert_eq!(asked(true), Contexts(listed), "{query}");
            assert_eq!(asked(false), Contexts(chosen), "{query}");
        }
        let twice = Contexts::asked_for(&NAMES, ["base:", "hexz:", "base:"].into_iter(), true);
        assert_eq!(twice, Contexts::first(3));
        assert_eq!(twice.count(), 3);
    }

    #[test]
    fn a_filter_names_chosen_contexts_once_each() {
        let chosen = Contexts(0b101);
        let ids: Vec<u32> = chosen.iter().map(Context::wire_id).collect();
        assert_eq!(ids, [1, 3]);
        for (ids, filtered) in [
            (&[][..], Some(Contexts(0))),
            (&[3], Some(Contexts(0b100))),
            (&[3, 1], Some(chosen)),
            (&[1, 1], None),
            (&[2], None),
            (&[0], None),
            (&[33], None),
            (&[u32::MAX], None),
        ] {
            assert_eq!(chosen.filter(ids.iter().copied()), filtered, "{ids:?}");
        }
    }

    #[test]
    fn there_is_room_for_so_many_contexts_and_no_more() {
        assert_eq!(Contexts::first(CONTEXTS_MAX + 5), Contexts(u32::MAX));
        let names = ["x:y"; CONTEXTS_MAX + 5];
        let all = Contexts::asked_for(&names, ["x:y"].into_iter(), false);
        assert_eq!(all, Contexts(u32::MAX));
    }
}
