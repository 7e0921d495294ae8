//! How long things take, in classes: a histogram of atomic numbers, which whoever serves adds to
//! without a lock.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;

use crate::metrics::labels::{CacheLabel, ConnectionLabel};

/// Upper bounds of the classes, in seconds: 10 µs to 10 s, three for each power of ten.
const BOUNDS: [f64; 19] = [
    1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0,
    2.0, 5.0, 10.0,
];

/// The classes, and one for what takes longer than all of them.
const CLASSES: usize = BOUNDS.len() + 1;

/// How long reads take, by where their bytes came from. One family: the format wants the name once.
/// Clones count together.
#[derive(Debug, Clone)]
pub(super) struct ReadDurations {
    hits: Latency,
    misses: Latency,
    /// The same as `misses`, with examples. Its lock is nothing beside what a miss costs.
    shown_misses: HistogramWithExemplars<ConnectionLabel>,
}

/// A histogram. Clones count together.
#[derive(Debug, Clone, Default)]
struct Latency(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    classes: [AtomicU64; CLASSES],
    nanoseconds: AtomicU64,
}

/// How many fell into each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Classes([u64; CLASSES]);

impl Default for ReadDurations {
    fn default() -> Self {
        Self {
            hits: Latency::default(),
            misses: Latency::default(),
            shown_misses: HistogramWithExemplars::new(BOUNDS.into_iter()),
        }
    }
}

impl ReadDurations {
    pub(super) fn hit(&self, took: Duration) {
        self.hits.observe(took);
    }

    pub(super) fn miss(&self, took: Duration, connection: String) {
        self.misses.observe(took);
        let example = ConnectionLabel { connection };
        self.shown_misses.observe(took.as_secs_f64(), Some(example), None);
    }

    /// Both together.
    pub(super) fn classes(&self) -> Classes {
        self.hits.classes().and(self.misses.classes())
    }
}

impl EncodeMetric for ReadDurations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        self.hits.encode(encoder.encode_family(&CacheLabel { cache: "hit" })?)?;
        self.shown_misses.encode(encoder.encode_family(&CacheLabel { cache: "miss" })?)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl Latency {
    fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let class = BOUNDS.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.0.classes.get(class) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    fn classes(&self) -> Classes {
        Classes(std::array::from_fn(|class| {
            self.0.classes.get(class).map_or(0, |count| count.load(Ordering::Relaxed))
        }))
    }
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let Classes(classes) = self.classes();
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(classes).collect();
        let sum = Duration::from_nanos(self.0.nanoseconds.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, classes.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl Classes {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let mut sum = self;
        for (count, more) in sum.0.iter_mut().zip(other.0) {
            *count = count.saturating_add(more);
        }
        sum
    }

    /// What has come since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        let mut difference = self;
        for (count, less) in difference.0.iter_mut().zip(before.0) {
            *count = count.saturating_sub(less);
        }
        difference
    }

    /// The time, in seconds, within which this part of all (0 to 1) was done: within its class in
    /// proportion, as Prometheus estimates quantiles. What took longer than the last bound counts as
    /// having taken that. `None` if there was nothing.
    #[must_use]
    pub fn quantile(self, part: f64) -> Option<f64> {
        let all: u64 = self.0.iter().sum();
        if all == 0 {
            return None;
        }
        let wanted = part * all as f64;
        let (mut below, mut lower) = (0.0, 0.0);
        for (count, upper) in self.0.into_iter().zip(BOUNDS) {
            let count = count as f64;
            if count > 0.0 && below + count >= wanted {
                return Some(lower + (upper - lower) * ((wanted - below) / count).clamp(0.0, 1.0));
            }
            below += count;
            lower = upper;
        }
        Some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_the_class_in_proportion() {
        let latency = Latency::default();
        assert_eq!(latency.classes().quantile(0.5), None);
        for _ in 0..90 {
            latency.observe(Duration::from_micros(15));
        }
        for _ in 0..10 {
            latency.observe(Duration::from_millis(4));
        }
        let classes = latency.classes();
        assert!((classes.quantile(0.45).unwrap() - 1.5e-5).abs() < 1e-9);
        assert_eq!(classes.quantile(0.9), Some(2e-5));
        assert!((classes.quantile(0.95).unwrap() - 3.5e-3).abs() < 1e-9);
        assert_eq!(classes.quantile(1.0), Some(5e-3));
        latency.observe(Duration::from_secs(3600));
        let since = latency.classes().since(classes);
        assert_eq!(since.quantile(0.5), Some(10.0));
        assert_eq!(since.and(since).quantile(0.01), Some(10.0));
        // A bound belongs to the class below it, as `le` says.
        let exact = Latency::default();
        exact.observe(Duration::from_micros(10));
        assert_eq!(exact.classes().0.iter().position(|count| *count == 1), Some(0));
    }
}
