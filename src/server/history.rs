//! The last minutes, sample by sample, so that whoever looks sees what was before.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior};

use crate::metrics::{Done, Metrics};

/// From one sample to the next.
const INTERVAL: Duration = Duration::from_secs(2);

/// Ten minutes.
const SAMPLES_MAX: usize = 300;

/// Samples of what was done.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<Samples>);

#[derive(Debug, Default)]
struct Samples {
    all: VecDeque<Sample>,
    /// When the last of them was taken.
    end: Option<SystemTime>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    read_bytes_per_second: f64,
    reads_per_second: f64,
    /// `None` if nothing was read.
    latency_p50_seconds: Option<f64>,
    latency_p99_seconds: Option<f64>,
}

/// All samples, the oldest first. The names are those of the JSON and stay as they are.
#[derive(Debug, Serialize)]
pub(crate) struct Told {
    interval_seconds: u64,
    end_unix_seconds: f64,
    read_bytes_per_second: Vec<f64>,
    reads_per_second: Vec<f64>,
    latency_p50_seconds: Vec<Option<f64>>,
    latency_p99_seconds: Vec<Option<f64>>,
}

impl History {
    /// Takes samples until the future is dropped.
    pub(crate) async fn record(self: Arc<Self>, metrics: Arc<Metrics>) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let (mut before, mut at) = (metrics.done(), Instant::now());
        loop {
            ticks.tick().await;
            let (now, passed) = (metrics.done(), at.elapsed());
            at = Instant::now();
            self.add(Sample::between(before, now, passed));
            before = now;
        }
    }

    fn add(&self, sample: Sample) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.all.len() >= SAMPLES_MAX {
            samples.all.pop_front();
        }
        samples.all.push_back(sample);
        samples.end = Some(SystemTime::now());
    }

    pub(crate) fn tell(&self) -> Told {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = samples.end.unwrap_or_else(SystemTime::now);
        let all = &samples.all;
        Told {
            interval_seconds: INTERVAL.as_secs(),
            end_unix_seconds: unix_seconds(end),
            read_bytes_per_second: all.iter().map(|one| one.read_bytes_per_second).collect(),
            reads_per_second: all.iter().map(|one| one.reads_per_second).collect(),
            latency_p50_seconds: all.iter().map(|one| one.latency_p50_seconds).collect(),
            latency_p99_seconds: all.iter().map(|one| one.latency_p99_seconds).collect(),
        }
    }
}

impl Sample {
    fn between(before: Done, now: Done, passed: Duration) -> Self {
        let seconds = passed.as_secs_f64().max(f64::EPSILON);
        let latency = now.latency.since(before.latency);
        Self {
            read_bytes_per_second: now.read_bytes.saturating_sub(before.read_bytes) as f64
                / seconds,
            reads_per_second: now.reads.saturating_sub(before.reads) as f64 / seconds,
            latency_p50_seconds: latency.quantile(0.5),
            latency_p99_seconds: latency.quantile(0.99),
        }
    }
}

/// Seconds since 1970 and fractions of them, to the millisecond.
pub(crate) fn unix_seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::task::JoinSet;

    use crate::metrics::CacheOutcome;

    #[tokio::test(start_paused = true)]
    async fn samples_are_rates_and_the_oldest_make_room() {
        let (history, metrics) = (Arc::new(History::default()), Arc::new(Metrics::new("1")));
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&history).record(Arc::clone(&metrics)));
        assert!(history.tell().reads_per_second.is_empty());
        tokio::time::sleep(INTERVAL / 2).await;
        let export = metrics.export("disk");
        export.requests([4, 0, 0, 0, 0]);
        export.read_bytes(10_000);
        metrics.read_took(CacheOutcome::Hit, Duration::from_micros(15), &"");
        metrics.read_took(CacheOutcome::Miss, Duration::from_micros(15), &"");
        tokio::time::sleep(INTERVAL * 3).await;
        let told = history.tell();
        assert_eq!(told.read_bytes_per_second, [5000.0, 0.0, 0.0]);
        assert_eq!(told.reads_per_second, [2.0, 0.0, 0.0]);
        assert!((told.latency_p50_seconds[0].unwrap() - 1.5e-5).abs() < 1e-9);
        assert_eq!(told.latency_p50_seconds[1..], [None, None]);
        for _ in 0..SAMPLES_MAX {
            tokio::time::sleep(INTERVAL).await;
        }
        let told = history.tell();
        assert_eq!(told.reads_per_second, [0.0; SAMPLES_MAX]);
    }
}
