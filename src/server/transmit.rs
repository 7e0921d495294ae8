//! Transmission with one client: between its socket, the state machine and the export.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::Span;

use crate::export::Export;
use crate::metrics::{CacheOutcome, ExportMetrics};
use crate::nbd::transmission::{Ending, Served};
use crate::nbd::{
    Described, Entered, Failure, Load, Loaded, Outbox, Piece, Read, ReadFailure, Status, Terms,
    Transmission, Work,
};
use crate::server::Shared;
use crate::server::client::Client;
use crate::server::session::{INPUT_BYTES, STOP_GRACE, SessionError, Stream};

/// Work that is done, and what the metrics want to know of it.
struct Done {
    outcome: Outcome,
    cache: CacheOutcome,
    took: Duration,
}

enum Outcome {
    Read(Read, Result<Vec<Piece>, ReadFailure>),
    Load(Load, Result<Loaded, Failure>),
    Status(Status, Result<Vec<Described>, Failure>),
}

/// From the first request to the last reply.
pub(crate) async fn transmit(
    stream: &mut impl Stream,
    input: BytesMut,
    outbox: Outbox,
    entered: Entered<Arc<Export>>,
    shared: &Shared,
    client: &Client,
    served: &mut Served,
) -> Result<Ending, SessionError> {
    let Entered { export, replies, contexts } = entered;
    let terms = Terms { export_bytes: export.info().size_bytes, replies, contexts };
    let mut session = Transmission::new(terms, outbox);
    let names = client.known().names();
    let counted = shared.metrics.client(&export.info().name, names.as_deref());
    let counters = Counters { client, shared, export: counted };
    let ending = exchange(stream, input, &export, &mut session, &counters, served).await;
    // However it ended: requests may have come before what ended it.
    counters.count(session.served(), served);
    ending
}

async fn exchange(
    stream: &mut impl Stream,
    mut input: BytesMut,
    export: &Arc<Export>,
    session: &mut Transmission,
    counters: &Counters<'_>,
    served: &mut Served,
) -> Result<Ending, SessionError> {
    let shared = counters.shared;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut account = shared.inflight.open(shared.limits.owed_bytes_max);
    let mut working = JoinSet::new();
    // Enough to keep every decoder busy, and so few that clients take turns.
    let working_max = shared.limits.decoders_max.get().saturating_mul(2);
    let mut clock = Clock::new(shared.limits.idle_timeout);
    let mut stopped = None;
    let mut unflushed = true;
    loop {
        while working.len() < working_max {
            session.allow(account.allowance(session.owed_bytes()));
            let Some(work) = session.next_work(&mut input)? else { break };
            match at_once(work, export) {
                Ok(done) => take(session, done, counters),
                Err(work) => {
                    working.spawn(elsewhere(work, Arc::clone(export), shared));
                }
            }
        }
        counters.count(session.served(), served);
        if session.is_over() && !unflushed {
            return match session.ending() {
                Some(Ending::Broken) => Err(SessionError::Broken),
                ending => Ok(ending.unwrap_or(Ending::Finished)),
            };
        }
        let wants_input =
            session.wants_input() && working.len() < working_max && input.len() < INPUT_BYTES;
        let unsent = unflushed || session.outbox().has_remaining();
        let is_parting = stopped.filter(|_| session.ending().is_none() && session.is_idle());
        input.reserve(INPUT_BYTES);
        // Cancel-safe: bytes read stay in `input`, bytes written leave the outbox, and a write
        // that was not flushed is remembered.
        tokio::select! {
            biased;
            () = shared.stop.cancelled(), if stopped.is_none() => {
                session.stop();
                stopped = Some(Instant::now() + STOP_GRACE);
            }
            Some(done) = working.join_next() => {
                take(session, done??, counters);
                clock.restart();
            }
            sent = send(&mut writer, session.outbox()), if unsent => {
                unflushed = sent?;
                clock.restart();
            }
            received = reader.read_buf(&mut input), if wants_input => {
                if received? == 0 {
                    session.finish();
                }
                clock.restart();
            }
            () = until(is_parting), if is_parting.is_some() => session.finish(),
            () = until(clock.end), if clock.end.is_some() && working.is_empty() => {
                return Err(SessionError::Idle);
            }
        }
    }
}

/// When a client has been idle for too long, if there is such a thing.
struct Clock {
    timeout: Option<Duration>,
    end: Option<Instant>,
}

impl Clock {
    fn new(timeout: Option<Duration>) -> Self {
        let mut clock = Self { timeout, end: None };
        clock.restart();
        clock
    }

    fn restart(&mut self) {
        self.end = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Counts what one client asks for.
struct Counters<'a> {
    client: &'a Client,
    shared: &'a Shared,
    export: ExportMetrics,
}

impl Counters<'_> {
    /// What has come since the last time.
    fn count(&self, now: Served, before: &mut Served) {
        if now == *before {
            return;
        }
        let since = |of: fn(&Served) -> u64| of(&now).saturating_sub(of(before));
        self.export.requests([
            since(|served| served.reads),
            since(|served| served.loads),
            since(|served| served.statuses),
            since(|served| served.flushes),
            since(|served| served.refused),
        ]);
        self.export.read_bytes(since(|served| served.read_bytes));
        if now.errors != before.errors {
            for (error, count) in now.errors.since(before.errors).filter(|(_, count)| *count != 0) {
                self.shared.metrics.error_replies(&format!("{error:?}"), count);
            }
        }
        self.client.has_served(&now);
        *before = now;
    }

    fn took(&self, done: &Done) {
        let is_damage = match &done.outcome {
            Outcome::Read(_, outcome) => {
                self.shared.metrics.read_took(done.cache, done.took, &self.client.id);
                outcome.as_ref().is_err_and(|failure| failure.is_damage)
            }
            Outcome::Load(_, outcome) => outcome.as_ref().is_err_and(|failure| failure.is_damage),
            Outcome::Status(_, outcome) => outcome.as_ref().is_err_and(|failure| failure.is_damage),
        };
        if is_damage {
            self.export.damaged();
        }
    }
}

/// Does what needs no waiting, or gives it back.
fn at_once(work: Work, export: &Export) -> Result<Done, Work> {
    let began = Instant::now();
    let outcome = match work {
        Work::Read(read) => match export.read_cached(read.offset, read.length) {
            Some(pieces) => Outcome::Read(read, Ok(pieces)),
            None => return Err(Work::Read(read)),
        },
        Work::Load(load) => match export.load_cached(load.offset, load.length) {
            Some(loaded) => Outcome::Load(load, Ok(loaded)),
            None => return Err(Work::Load(load)),
        },
        Work::Status(_) => return Err(work),
    };
    Ok(Done { outcome, cache: CacheOutcome::Hit, took: began.elapsed() })
}

/// Does what may read storage and decode, where that stalls nobody, when a decoder is free.
fn elsewhere(
    work: Work,
    export: Arc<Export>,
    shared: &Shared,
) -> impl Future<Output = Result<Done, JoinError>> + use<> {
    let (began, span) = (Instant::now(), Span::current());
    let decoders = Arc::clone(&shared.decoders);
    async move {
        // The semaphore is never closed; without a permit the read would only be less polite.
        let permit = decoders.acquire_owned().await;
        let work = move || {
            let outcome = span.in_scope(|| perform(work, &export));
            drop(permit);
            outcome
        };
        let outcome = tokio::task::spawn_blocking(work).await?;
        Ok(Done { outcome, cache: CacheOutcome::Miss, took: began.elapsed() })
    }
}

fn perform(work: Work, export: &Export) -> Outcome {
    match work {
        Work::Read(read) => {
            let outcome = export.read(read.offset, read.length);
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

fn take(session: &mut Transmission, done: Done, counters: &Counters<'_>) {
    counters.took(&done);
    match done.outcome {
        Outcome::Read(read, outcome) => session.reply(read, outcome),
        Outcome::Load(load, outcome) => session.loaded(load, outcome),
        Outcome::Status(status, outcome) => session.describe(status, outcome),
    }
}

/// Writes some of what is owed, or flushes when everything is written. Returns whether there is
/// something to flush.
async fn send(writer: &mut (impl AsyncWrite + Unpin), outbox: &mut Outbox) -> io::Result<bool> {
    if !outbox.has_remaining() {
        writer.flush().await?;
        return Ok(false);
    }
    if writer.write_buf(outbox).await? == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(true)
}
