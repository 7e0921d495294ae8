//! How many errors of which number.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::nbd::wire::Errno;

/// The errors that a server can answer with. Section "Error values".
const COUNTED: [Errno; 4] = [Errno::EPERM, Errno::EIO, Errno::EINVAL, Errno::ESHUTDOWN];

/// How often each was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ErrorCounts([u64; COUNTED.len()]);

impl ErrorCounts {
    pub(crate) fn count(&mut self, error: Errno) {
        let place = COUNTED.iter().position(|counted| *counted == error);
        if let Some(count) = place.and_then(|place| self.0.get_mut(place)) {
            *count = count.saturating_add(1);
        }
    }

    /// Each error with how often it was answered since `before`.
    pub fn since(self, before: Self) -> impl Iterator<Item = (Errno, u64)> {
        let pairs = self.0.into_iter().zip(before.0);
        COUNTED.into_iter().zip(pairs.map(|(now, before)| now.saturating_sub(before)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_is_counted_by_itself() {
        let mut counts = ErrorCounts::default();
        counts.count(Errno::EIO);
        let before = counts;
        for error in [Errno::EIO, Errno::EPERM, Errno::EIO, Errno(4711)] {
            counts.count(error);
        }
        let since: Vec<_> = counts.since(before).filter(|(_, count)| *count != 0).collect();
        assert_eq!(since, [(Errno::EPERM, 1), (Errno::EIO, 2)]);
    }
}
