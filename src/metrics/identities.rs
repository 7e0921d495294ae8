//! Whose names are told in the metrics, if they are to be told at all.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// As many identities are told by name, for each of those who could make others; the rest is `other`.
const IDENTITIES_MAX: usize = 1000;

/// The names of those who have read, if they are to be told.
#[derive(Debug, Default)]
pub(super) struct Identities {
    pub(super) are_told: AtomicBool,
    seen: Mutex<HashSet<String>>,
}

impl Identities {
    /// The label for a client.
    pub(super) fn label(&self, identity: Option<&str>) -> Option<String> {
        if !self.are_told.load(Ordering::Relaxed) {
            return None;
        }
        let Some(identity) = identity else { return Some(String::new()) };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= IDENTITIES_MAX && !seen.contains(identity) {
            return Some("other".to_owned());
        }
        seen.insert(identity.to_owned());
        Some(identity.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_only_if_they_are_to_be_and_only_so_many() {
        let identities = Identities::default();
        assert_eq!(identities.label(Some("alice")), None);
        identities.are_told.store(true, Ordering::Relaxed);
        assert_eq!(identities.label(None).as_deref(), Some(""));
        for number in 0..IDENTITIES_MAX {
            let name = number.to_string();
            assert_eq!(identities.label(Some(&name)), Some(name));
        }
        assert_eq!(identities.label(Some("alice")).as_deref(), Some("other"));
        assert_eq!(identities.label(Some("7")).as_deref(), Some("7"));
    }
}
