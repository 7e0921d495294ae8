//! How much of the log strangers may fill.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// As many lines at once.
const BURST: u32 = 100;

/// And one more in each such time: ten in a second.
const REFILL: Duration = Duration::from_millis(100);

/// How long after the first line that was left out it is said how many there were.
const SUMMARY_AFTER: Duration = Duration::from_secs(10);

/// Lines about clients that opened nothing. Anybody can cause them, so that there are only so many;
/// the metrics and the audit log have all.
#[derive(Debug)]
pub(crate) struct LogRation {
    ration: Mutex<Ration>,
    /// That lines begin to be left out.
    left_out: Notify,
}

#[derive(Debug)]
struct Ration {
    left: u32,
    filled: Instant,
    left_out: u64,
}

impl LogRation {
    pub(crate) fn new() -> Self {
        let ration = Ration { left: BURST, filled: Instant::now(), left_out: 0 };
        Self { ration: Mutex::new(ration), left_out: Notify::new() }
    }

    /// Whether one more line may be written. If not, [`LogRation::summarize`] will say that it is
    /// missing.
    pub(crate) fn take(&self) -> bool {
        let mut ration = self.lock();
        if ration.take(Instant::now()) {
            return true;
        }
        ration.left_out = ration.left_out.saturating_add(1);
        if ration.left_out == 1 {
            self.left_out.notify_one();
        }
        false
    }

    /// Says how many lines were left out, a while after the first of them. Until the future is
    /// dropped.
    pub(crate) async fn summarize(&self) {
        loop {
            self.left_out.notified().await;
            tokio::time::sleep(SUMMARY_AFTER).await;
            let lines = std::mem::take(&mut self.lock().left_out);
            tracing::warn!(
                lines,
                "many clients open nothing: lines about them were left out; the metrics and the audit \
                 log have them all"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ration> {
        self.ration.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ration {
    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled);
        let refills = u32::try_from(passed.as_nanos() / REFILL.as_nanos()).unwrap_or(u32::MAX);
        if refills != 0 {
            self.left = self.left.saturating_add(refills).min(BURST);
            self.filled = now;
        }
        let Some(left) = self.left.checked_sub(1) else { return false };
        self.left = left;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_burst_there_are_ten_lines_a_second_and_never_more_than_a_burst() {
        let start = Instant::now();
        let mut ration = Ration { left: BURST, filled: start, left_out: 0 };
        let mut taken_at = |milliseconds: u64| {
            let now = start + Duration::from_millis(milliseconds);
            std::iter::from_fn(|| ration.take(now).then_some(())).count()
        };
        assert_eq!(taken_at(0), 100);
        assert_eq!(taken_at(50), 0);
        assert_eq!(taken_at(1000), 10);
        assert_eq!(taken_at(1099), 0);
        assert_eq!(taken_at(3_600_000), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_left_out_is_told_and_counted_anew() {
        let ration = LogRation::new();
        let mut telling = std::pin::pin!(ration.summarize());
        for _ in 0..2 {
            let taken = (0..150).filter(|_| ration.take()).count();
            assert_eq!((taken, ration.lock().left_out), (100, 50));
            let told = tokio::time::timeout(SUMMARY_AFTER * 2, &mut telling).await;
            assert!(told.is_err(), "it goes on");
            assert_eq!(ration.lock().left_out, 0);
        }
    }
}
