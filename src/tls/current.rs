//! The configuration in force, which a reload replaces.

use std::ops::Deref;
use std::sync::Arc;

use tokio::sync::watch;

/// A value and how many there have been before it.
#[derive(Debug)]
pub struct InForce<T> {
    /// 0 for the first, then one more with each reload.
    pub generation: u64,
    /// What is in force.
    pub value: T,
}

impl<T> Deref for InForce<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// What is in force. Whoever asks keeps what they got for as long as they need it: a handshake
/// begins and ends with one configuration.
#[derive(Debug)]
pub struct Current<T>(watch::Sender<Arc<InForce<T>>>);

impl<T> Current<T> {
    /// Puts the first value in force.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(watch::Sender::new(Arc::new(InForce { generation: 0, value })))
    }

    /// What is in force now.
    #[must_use]
    pub fn get(&self) -> Arc<InForce<T>> {
        Arc::clone(&self.0.borrow())
    }

    /// Puts another value in force, and returns its generation. Build it first: there is no moment
    /// without a value, and none with half of one.
    pub fn replace(&self, value: T) -> u64 {
        let mut generation = 0;
        self.0.send_modify(|current| {
            generation = current.generation.saturating_add(1);
            *current = Arc::new(InForce { generation, value });
        });
        generation
    }

    /// Notices when another value comes into force. For tasks with connections to end.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<InForce<T>>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_old_value_keeps_it_and_who_asks_gets_the_new_one() {
        let current = Current::new("old");
        let mut changes = current.subscribe();
        let old = current.get();
        assert_eq!((old.generation, old.value), (0, "old"));

        assert_eq!(current.replace("new"), 1);
        assert_eq!((old.generation, **old), (0, "old"));
        assert_eq!((current.get().generation, current.get().value), (1, "new"));
        assert!(changes.has_changed().unwrap());
        assert_eq!(changes.borrow_and_update().value, "new");
    }
}
