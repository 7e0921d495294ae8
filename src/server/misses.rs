//! What one client waits for that the cache does not have: decoded where its socket is when there is one
//! thing to do, on all cores when there are more, and never where it could stall others.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::Span;

use crate::export::Export;
use crate::nbd::{Described, Failure, Load, Loaded, Piece, Read, ReadFailure, Status, Work};
use crate::server::decoders::{Client, Decoders};
use crate::server::panics::message;
use crate::snapshot::{Effort, Pattern};

/// What is fetched ahead in one piece, so that others come between.
const AHEAD_PIECE_BYTES: u64 = 256 * 1024;

/// Things that one client waits for at the same time at most.
const WAITING_MAX: usize = 64;

/// Work that is done, and how long the client waited for it.
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    pub(crate) took: Duration,
}

pub(crate) enum Outcome {
    Read(Read, Result<Vec<Piece>, ReadFailure>),
    Load(Load, Result<Loaded, Failure>),
    Status(Status, Result<Vec<Described>, Failure>),
}

/// A read panicked, which is a bug.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Panicked(String);

/// The misses of one client.
pub(crate) struct Misses {
    queue: Arc<Queue>,
    decoders: Arc<Decoders>,
    /// Begun and not given back.
    waiting: usize,
    /// Whether there was anything since the last rest.
    was_used: bool,
}

struct Queue {
    jobs: Mutex<Jobs>,
    /// Where the last read of the client ended, for what is fetched ahead of it.
    position: AtomicU64,
    export: Arc<Export>,
    has_finished: Notify,
    span: Span,
}

#[derive(Default)]
struct Jobs {
    works: VecDeque<Job>,
    /// What is fetched before the client asks, when there is nothing else to do.
    ahead: VecDeque<Range<u64>>,
    /// What helpers have done.
    finished: VecDeque<Result<Done, Panicked>>,
    /// Threads that were asked for and have not found the queue empty.
    helpers: usize,
}

struct Job {
    work: Work,
    pattern: Pattern,
    began: Instant,
    /// Whether it was tried where the socket is.
    must_wait: bool,
}

impl Misses {
    pub(crate) fn new(export: &Arc<Export>, decoders: &Arc<Decoders>) -> Self {
        let queue = Queue {
            jobs: Mutex::default(),
            position: AtomicU64::new(0),
            export: Arc::clone(export),
            has_finished: Notify::new(),
            span: Span::current(),
        };
        Self { queue: Arc::new(queue), decoders: Arc::clone(decoders), waiting: 0, was_used: false }
    }

    /// Whether more may be begun.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting < WAITING_MAX
    }

    /// Whether nothing is waited for.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Begins something that is not in the cache.
    pub(crate) fn begin(&mut self, work: Work, pattern: Pattern, began: Instant) {
        self.waiting = self.waiting.saturating_add(1);
        self.was_used = true;
        let must_wait = matches!(work, Work::Status(_));
        self.queue.lock().works.push_back(Job { work, pattern, began, must_wait });
    }

    /// Fetches bytes before the client asks for them, piece by piece.
    pub(crate) fn fetch_ahead(&mut self, range: Range<u64>) {
        self.was_used = true;
        let mut jobs = self.queue.lock();
        let mut start = range.start;
        while start < range.end {
            let end = start.saturating_add(AHEAD_PIECE_BYTES).min(range.end);
            jobs.ahead.push_back(start..end);
            start = end;
        }
    }

    /// The client has come so far. What it has read itself is not fetched any more.
    pub(crate) fn has_reached(&self, position: u64) {
        self.queue.position.store(position, Ordering::Relaxed);
    }

    /// Forgets what was to be fetched ahead.
    pub(crate) fn forget_ahead(&mut self) {
        self.queue.lock().ahead.clear();
    }

    /// Asks for as many threads as there is to do beside what this one does.
    pub(crate) fn share(&mut self) {
        if !self.was_used {
            return;
        }
        let asked = {
            let mut jobs = self.queue.lock();
            let wanted = jobs.helpers_wanted(self.decoders.threads_max());
            let asked = wanted.saturating_sub(jobs.helpers);
            jobs.helpers = jobs.helpers.saturating_add(asked);
            asked
        };
        for _ in 0..asked {
            self.decoders.help(Arc::clone(&self.queue) as Arc<dyn Client>);
        }
    }

    /// Whether the next can be tried here.
    pub(crate) fn has_one_to_try(&self) -> bool {
        !self.is_empty() && self.queue.lock().works.front().is_some_and(|job| !job.must_wait)
    }

    /// Tries the next here, where it must not wait. What would have to wait stays in the queue.
    pub(crate) fn try_one(&mut self) -> Option<Done> {
        let mut job = self.queue.lock().works.pop_front()?;
        if job.must_wait {
            self.queue.lock().works.push_front(job);
            return None;
        }
        match at_once(job.work, &self.queue.export, Effort::Decode, job.pattern) {
            Ok(outcome) => {
                self.waiting = self.waiting.saturating_sub(1);
                Some(Done { outcome, took: job.began.elapsed() })
            }
            Err(work) => {
                job = Job { work, must_wait: true, ..job };
                self.queue.lock().works.push_front(job);
                None
            }
        }
    }

    /// When another thread has done something. Cancel-safe.
    pub(crate) async fn finished(&self) {
        self.queue.has_finished.notified().await;
    }

    /// Something that another thread has done, if there is something.
    pub(crate) fn next_finished(&mut self) -> Option<Result<Done, Panicked>> {
        if self.is_empty() {
            return None;
        }
        let done = self.queue.lock().finished.pop_front()?;
        self.waiting = self.waiting.saturating_sub(1);
        Some(done)
    }

    /// Gives memory back while nothing is waited for.
    pub(crate) fn rest(&mut self) {
        if !std::mem::take(&mut self.was_used) {
            return;
        }
        let mut jobs = self.queue.lock();
        jobs.works.shrink_to_fit();
        jobs.finished.shrink_to_fit();
        jobs.ahead.shrink_to_fit();
    }
}

impl Drop for Misses {
    fn drop(&mut self) {
        // Nobody waits for these any more.
        let mut jobs = self.queue.lock();
        jobs.works.clear();
        jobs.ahead.clear();
    }
}

impl Jobs {
    /// Threads for which there is something to do, beside the one that the socket is on.
    fn helpers_wanted(&self, threads_max: usize) -> usize {
        let here = self.works.front().is_some_and(|first| !first.must_wait);
        let works = self.works.len().saturating_sub(usize::from(here));
        works.saturating_add(self.ahead.len()).min(threads_max)
    }

    fn next(&mut self) -> Option<Next> {
        let work = self.works.pop_front().map(Next::Work);
        work.or_else(|| self.ahead.pop_front().map(Next::Ahead))
    }
}

/// What a helper does.
enum Next {
    Work(Job),
    Ahead(Range<u64>),
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client for Queue {
    fn work(&self) -> bool {
        let next = {
            let mut jobs = self.lock();
            let next = jobs.next();
            if next.is_none() {
                jobs.helpers = jobs.helpers.saturating_sub(1);
            }
            next
        };
        let Some(next) = next else { return false };
        match next {
            Next::Work(Job { work, pattern, began, .. }) => {
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    self.span.in_scope(|| perform(work, pattern, &self.export))
                }));
                let done = match outcome {
                    Ok(outcome) => Ok(Done { outcome, took: began.elapsed() }),
                    Err(panic) => Err(Panicked(message(panic.as_ref()).to_owned())),
                };
                self.lock().finished.push_back(done);
                self.has_finished.notify_one();
            }
            // Should it panic, whoever reads these bytes meets that too.
            Next::Ahead(range) => {
                let _ = catch_unwind(AssertUnwindSafe(|| self.export.fetch(range, &self.position)));
            }
        }
        true
    }
}

/// Does what needs no waiting, or gives it back.
pub(crate) fn at_once(
    work: Work,
    export: &Export,
    effort: Effort,
    pattern: Pattern,
) -> Result<Outcome, Work> {
    match work {
        Work::Read(read) => {
            let mut pieces = Vec::new();
            if export.read_at_once(read.offset, read.length, effort, pattern, &mut pieces) {
                Ok(Outcome::Read(read, Ok(pieces)))
            } else {
                Err(Work::Read(read))
            }
        }
        Work::Load(load) => match export.load_at_once(load.offset, load.length, effort) {
            Some(loaded) => Ok(Outcome::Load(load, Ok(loaded))),
            None => Err(Work::Load(load)),
        },
        Work::Status(_) => Err(work),
    }
}

fn perform(work: Work, pattern: Pattern, export: &Export) -> Outcome {
    match work {
        Work::Read(read) => {
            let outcome = export.read_by(pattern, read.offset, read.length);
            Outcome::Read(read, outcome)
        }
        Work::Load(load) => {
            let outcome = export.load(load.offset, load.length);
            Outcome::Load(load, outcome)
        }
        Work::Status(status) => {
            let Status { offset, length, contexts, extents_max, .. } = status;
            let outcome = export.describe(offset, length, contexts, extents_max);
            Outcome::Status(status, outcome)
        }
    }
}
