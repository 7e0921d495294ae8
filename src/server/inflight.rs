//! Bytes on their way to clients: a budget for each, and one for all of them together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::nbd::limits::PART_BYTES;

/// What every client may be owed without asking anybody, in bytes: the part of a read that gets it
/// on, however much the others have taken.
const RESERVE_BYTES: u64 = PART_BYTES as u64;

/// Grants are changed by so many bytes at least, so that most replies touch no shared counter.
const STEP_BYTES: u64 = 256 * 1024;

/// What clients may be owed beyond their reserves, all together.
#[derive(Debug)]
pub(crate) struct Pool {
    free_bytes: AtomicU64,
    all_bytes: u64,
}

/// What one client may be owed. What it was granted goes back when it is dropped.
#[derive(Debug)]
pub(crate) struct Account {
    pool: Arc<Pool>,
    granted_bytes: u64,
    bytes_max: u64,
}

impl Pool {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { free_bytes: AtomicU64::new(bytes), all_bytes: bytes }
    }

    /// For a client that is never owed more than so many bytes.
    pub(crate) fn open(self: &Arc<Self>, bytes_max: u64) -> Account {
        Account { pool: Arc::clone(self), granted_bytes: 0, bytes_max }
    }

    /// What clients have been granted, in bytes.
    pub(crate) fn granted_bytes(&self) -> u64 {
        self.all_bytes.saturating_sub(self.free_bytes.load(Ordering::Relaxed))
    }

    /// Takes as much as there is, up to so many bytes.
    fn take(&self, bytes: u64) -> u64 {
        let left = |free: u64| Some(free.saturating_sub(bytes));
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let free = self.free_bytes.fetch_update(set, fetch, left);
        free.unwrap_or_else(|free| free).min(bytes)
    }

    fn give_back(&self, bytes: u64) {
        self.free_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Account {
    /// How much the client may be owed now, where it is owed so many bytes: a step more if that is
    /// to be had. What it does not need any more is given back.
    pub(crate) fn allowance(&mut self, owed_bytes: u64) -> u64 {
        let wanted = owed_bytes.saturating_add(STEP_BYTES).min(self.bytes_max);
        let wanted = wanted.saturating_sub(RESERVE_BYTES);
        if wanted > self.granted_bytes {
            let more = wanted.saturating_sub(self.granted_bytes).max(STEP_BYTES);
            self.granted_bytes = self.granted_bytes.saturating_add(self.pool.take(more));
        } else if wanted.saturating_add(4 * STEP_BYTES) < self.granted_bytes || owed_bytes == 0 {
            self.pool.give_back(self.granted_bytes.saturating_sub(wanted));
            self.granted_bytes = wanted;
        }
        RESERVE_BYTES.saturating_add(self.granted_bytes).min(self.bytes_max)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.pool.give_back(self.granted_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A client that asks for more whenever it may.
    fn greedy(account: &mut Account) -> u64 {
        let mut owed = 0;
        for _ in 0..1000 {
            owed = account.allowance(owed);
        }
        owed
    }

    #[test]
    fn a_client_is_owed_its_maximum_at_most() {
        let pool = Arc::new(Pool::new(100 * MIB));
        assert_eq!(greedy(&mut pool.open(16 * MIB)), 16 * MIB);
        assert_eq!(greedy(&mut pool.open(1000)), 1000);
        assert_eq!(pool.free_bytes.load(Ordering::Relaxed), 100 * MIB);
    }

    #[test]
    fn greedy_clients_take_the_pool_and_leave_everybody_the_reserve() {
        let pool = Arc::new(Pool::new(20 * MIB));
        let mut greedy_ones: Vec<Account> = (0..10).map(|_| pool.open(16 * MIB)).collect();
        let owed: u64 = greedy_ones.iter_mut().map(greedy).sum();
        assert_eq!(owed, 20 * MIB + 10 * RESERVE_BYTES);
        assert_eq!(pool.open(16 * MIB).allowance(0), RESERVE_BYTES);
        drop(greedy_ones);
        assert_eq!(greedy(&mut pool.open(16 * MIB)), 16 * MIB);
    }

    #[test]
    fn what_a_client_has_taken_is_there_for_others() {
        let pool = Arc::new(Pool::new(16 * MIB));
        let mut account = pool.open(32 * MIB);
        assert_eq!(greedy(&mut account), 16 * MIB + RESERVE_BYTES);
        account.allowance(2 * MIB);
        assert!(pool.free_bytes.load(Ordering::Relaxed) >= 13 * MIB);
        account.allowance(0);
        assert_eq!(pool.free_bytes.load(Ordering::Relaxed), 16 * MIB);
    }
}
