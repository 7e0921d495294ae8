//! What was counted, as a line of JSON.

use std::time::{Duration, Instant};
use std::{fs, io, thread};

use serde_json::{Value, json};

use crate::doing;

/// What one connection, or one thread that connects, has counted.
pub(crate) struct Count {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    /// When the last of them was done.
    pub(crate) end: Instant,
    /// How long each took, in nanoseconds, where that can be told.
    pub(crate) latencies: Vec<u32>,
}

impl Count {
    pub(crate) fn new() -> Self {
        Self { requests: 0, bytes: 0, end: Instant::now(), latencies: Vec::new() }
    }

    pub(crate) fn took(&mut self, time: Duration) {
        self.latencies.push(time.as_nanos().try_into().unwrap_or(u32::MAX));
    }
}

/// Runs `work` in as many threads as there are in `prepared`, and sums up what they count. With a
/// process, what it costs meanwhile is told too.
pub(crate) fn run<T: Send>(
    prepared: Vec<T>,
    process: Option<u32>,
    work: impl Fn(T) -> io::Result<Count> + Sync,
) -> io::Result<Value> {
    let cpu_before = process.map(cpu_seconds).transpose()?;
    let start = Instant::now();
    let counts = thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            prepared.into_iter().map(|prepared| scope.spawn(move || work(prepared))).collect();
        threads
            .into_iter()
            .map(|thread| {
                thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
            })
            .collect::<io::Result<Vec<Count>>>()
    })?;
    let cpu_after = process.map(cpu_seconds).transpose()?;

    let end = counts.iter().map(|count| count.end).max().unwrap_or(start);
    let seconds = (end - start).as_secs_f64().max(1e-9);
    let requests: u64 = counts.iter().map(|count| count.requests).sum();
    let bytes: u64 = counts.iter().map(|count| count.bytes).sum();
    let mut line = json!({
        "requests": requests,
        "bytes": bytes,
        "seconds": seconds,
        "per_second": requests as f64 / seconds,
        "mb_per_second": bytes as f64 / seconds / 1e6,
    });
    let mut latencies: Vec<u32> = counts.into_iter().flat_map(|count| count.latencies).collect();
    if !latencies.is_empty() {
        latencies.sort_unstable();
        let percentile = |percent: usize| {
            f64::from(latencies[(latencies.len() * percent / 100).min(latencies.len() - 1)]) / 1e3
        };
        line["p50_us"] = json!(percentile(50));
        line["p99_us"] = json!(percentile(99));
    }
    if let (Some(before), Some(after)) = (cpu_before, cpu_after) {
        line["server_cpu_seconds"] = json!(after - before);
    }
    Ok(line)
}

/// User and system time of a process. The kernel counts it exactly and tells it in steps of 10 ms.
fn cpu_seconds(process: u32) -> io::Result<f64> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).map_err(doing(&path))?;
    // The name of the program is in parentheses and may have anything in it.
    let fields = text.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    Ok(ticks / 100.0)
}
