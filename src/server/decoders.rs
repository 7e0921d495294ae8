//! Threads that read storage and decode, where that stalls nobody: a few, for all clients in turn.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Somebody who has work, piece by piece.
pub(crate) trait Client: Send + Sync {
    /// Does one piece, if there is any. Returns whether there is more. Does not panic.
    fn work(&self) -> bool;
}

/// Who waits for a thread. Clients take turns: after each piece it is the next one's.
pub(crate) struct Decoders {
    state: Mutex<State>,
    threads_max: usize,
}

#[derive(Default)]
struct State {
    threads: usize,
    waiting: VecDeque<Arc<dyn Client>>,
}

impl Decoders {
    pub(crate) fn new(threads_max: NonZeroUsize) -> Self {
        Self { state: Mutex::default(), threads_max: threads_max.get() }
    }

    /// How many work at the same time at most.
    pub(crate) fn threads_max(&self) -> usize {
        self.threads_max
    }

    /// Asks for one thread, which works for this client when it is its turn.
    pub(crate) fn help(self: &Arc<Self>, client: Arc<dyn Client>) {
        let is_new = {
            let mut state = self.lock();
            state.waiting.push_back(client);
            let is_new = state.threads < self.threads_max;
            if is_new {
                state.threads = state.threads.saturating_add(1);
            }
            is_new
        };
        if is_new {
            let decoders = Arc::clone(self);
            // It ends by itself, and whoever waits for it waits for its results.
            drop(tokio::task::spawn_blocking(move || decoders.run()));
        }
    }

    fn run(&self) {
        loop {
            let next = {
                let mut state = self.lock();
                let next = state.waiting.pop_front();
                if next.is_none() {
                    state.threads = state.threads.saturating_sub(1);
                }
                next
            };
            let Some(client) = next else { return };
            if client.work() {
                self.lock().waiting.push_back(client);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Decoders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoders").field("threads_max", &self.threads_max).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    type Log = Arc<Mutex<Vec<(char, usize)>>>;

    /// Has so many pieces of work, and writes down when one is done.
    struct Pieces {
        name: char,
        left: AtomicUsize,
        log: Log,
        /// Held by the test until everybody has asked.
        gate: Arc<Mutex<()>>,
    }

    impl Client for Pieces {
        fn work(&self) -> bool {
            drop(self.gate.lock().unwrap());
            let left = self.left.load(Ordering::Relaxed);
            if left == 0 {
                return false;
            }
            self.left.store(left - 1, Ordering::Relaxed);
            self.log.lock().unwrap().push((self.name, left));
            true
        }
    }

    #[tokio::test]
    async fn clients_take_turns_piece_by_piece_and_threads_end_when_there_is_nothing_to_do() {
        let (log, gate) = (Log::default(), Arc::new(Mutex::new(())));
        let decoders = Arc::new(Decoders::new(NonZeroUsize::MIN));
        let client = |name, pieces: usize| {
            let (left, log, gate) = (pieces.into(), Arc::clone(&log), Arc::clone(&gate));
            Arc::new(Pieces { name, left, log, gate })
        };
        {
            let _closed = gate.lock().unwrap();
            for (name, pieces) in [('a', 4), ('b', 2), ('c', 1)] {
                decoders.help(client(name, pieces));
            }
            assert_eq!(decoders.lock().threads, 1, "no more than may be");
        }
        while decoders.lock().threads != 0 {
            tokio::task::yield_now().await;
        }
        let order = [('a', 4), ('b', 2), ('c', 1), ('a', 3), ('b', 1), ('a', 2), ('a', 1)];
        assert_eq!(*log.lock().unwrap(), order);
        assert!(decoders.lock().waiting.is_empty());
    }
}
