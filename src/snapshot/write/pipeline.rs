//! Work for many threads, results in order.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Jobs for each worker that are queued, worked on, or done and waiting for an earlier one: enough
/// that no worker waits for a slow neighbour, few because each holds a batch.
const JOBS_PER_WORKER: usize = 3;

type Queue<J, R> = Mutex<Receiver<(J, SyncSender<R>)>>;

/// Runs `workers` on `jobs`, each on a thread of its own, and gives the results to `take` on the
/// calling thread in the order of the jobs. Ends with the first error.
pub(super) fn in_order<J: Send, R: Send, E>(
    jobs: impl Iterator<Item = J>,
    workers: Vec<impl FnMut(J) -> R + Send>,
    no_thread: impl Fn(io::Error) -> E,
    mut take: impl FnMut(R) -> Result<(), E>,
) -> Result<(), E> {
    let jobs_max = workers.len().saturating_mul(JOBS_PER_WORKER);
    let (sender, receiver) = sync_channel(jobs_max);
    let queue: Queue<J, R> = Mutex::new(receiver);
    let mut jobs = jobs.fuse();
    thread::scope(|scope| {
        // Both end with this closure, whatever its result: the workers find that no job comes or
        // that nobody waits for their results, and end too.
        let sender = sender;
        let mut waiting = VecDeque::with_capacity(jobs_max);
        for worker in workers {
            let queue = &queue;
            thread::Builder::new()
                .name("pack".into())
                .spawn_scoped(scope, move || work(queue, worker))
                .map_err(&no_thread)?;
        }
        loop {
            while waiting.len() < jobs_max
                && let Some(job) = jobs.next()
            {
                let (reply, result) = sync_channel(1);
                // Never waits: the queue has room for every job whose result is waited for.
                sender
                    .send((job, reply))
                    .map_err(|error| no_thread(io::Error::other(error.to_string())))?;
                waiting.push_back(result);
            }
            let Some(result) = waiting.pop_front() else {
                return Ok(());
            };
            match result.recv() {
                Ok(result) => take(result)?,
                // A worker panicked, and so will the scope when it finds out.
                Err(error) => return Err(no_thread(io::Error::other(error))),
            }
        }
    })
}

fn work<J, R>(queue: &Queue<J, R>, mut worker: impl FnMut(J) -> R) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((job, reply)) = next else {
            return;
        };
        if reply.send(worker(job)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_jobs_and_few_jobs_are_begun_ahead() {
        let begun = AtomicUsize::new(0);
        for workers in [1, 2, 7] {
            begun.store(0, Ordering::SeqCst);
            let worker = |job: usize| {
                begun.fetch_add(1, Ordering::SeqCst);
                // Some jobs take longer than others.
                (0..(job % 5) * 1000).fold(job, |sum, n| std::hint::black_box(sum ^ n ^ n))
            };
            let mut taken = Vec::new();
            let result = in_order(
                0..1000,
                vec![worker; workers],
                |error| error,
                |job| {
                    let ahead = begun.load(Ordering::SeqCst) - taken.len();
                    assert!(ahead <= workers * JOBS_PER_WORKER, "{ahead} with {workers}");
                    taken.push(job);
                    Ok(())
                },
            );
            result.unwrap();
            assert_eq!(taken, (0..1000).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_first_error_ends_the_work() {
        let begun = AtomicUsize::new(0);
        let worker = |job: usize| {
            begun.fetch_add(1, Ordering::SeqCst);
            job
        };
        let result = in_order(
            0..usize::MAX,
            vec![worker; 3],
            |error| error.to_string(),
            |job| if job == 10 { Err("ten".to_owned()) } else { Ok(()) },
        );
        assert_eq!(result, Err("ten".to_owned()));
        assert!(begun.load(Ordering::SeqCst) <= 11 + 3 * JOBS_PER_WORKER);
    }
}
