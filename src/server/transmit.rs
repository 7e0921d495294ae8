//! Transmission with one client: between its socket, the state machine and the export.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, sleep_until};

use crate::export::Export;
use crate::metrics::{CacheOutcome, ExportMetrics};
use crate::nbd::transmission::{Ending, Served};
use crate::nbd::{Entered, Outbox, Piece, Terms, Transmission, Work};
use crate::server::Shared;
use crate::server::client::Client;
use crate::server::inflight::Account;
use crate::server::link::{Link, Moved};
use crate::server::misses::{Done, Misses, Outcome, at_once};
use crate::server::session::{STOP_GRACE, SessionError, Stream};
use crate::snapshot::readahead::Step;
use crate::snapshot::{Effort, Pattern, ReadAhead};

/// As many bytes of requests wait at most for those before them to be answered.
const INPUT_BYTES_MAX: usize = 4096;

/// Parts of a reply for which a client keeps memory while it is served.
const PIECES_KEPT: usize = 8;

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
    let mut link = Link::new(stream);
    let mut reader = Reader {
        export,
        account: shared.inflight.open(shared.limits.owed_bytes_max),
        misses: Misses::new(export, &shared.decoders),
        ahead: ReadAhead::default(),
        has_fetched_ahead: false,
        pieces: Vec::new(),
    };
    let mut clock = Clock::new(shared.limits.idle_timeout);
    let stopping = shared.stop.cancelled();
    tokio::pin!(stopping);
    let mut stopped = None;
    // Whether the client was served while something waited to be tried: a client that always has requests in
    // the cache on their way would else never get the one that is not.
    let mut has_passed_over = false;
    loop {
        while let Some(done) = reader.misses.next_finished() {
            take(session, done?, counters);
        }
        if std::mem::take(&mut has_passed_over)
            && let Some(done) = reader.misses.try_one()
        {
            take(session, done, counters);
        }
        reader.take_requests(session, &mut input, counters)?;
        reader.fetch_ahead(shared);
        counters.count(session.served(), served);
        let is_behind = link.is_behind(session.outbox());
        if session.is_over() && !is_behind {
            return match session.ending() {
                Some(Ending::Broken) => Err(SessionError::Broken),
                ending => Ok(ending.unwrap_or(Ending::Finished)),
            };
        }
        reader.misses.share();
        let wants_input =
            session.wants_input() && reader.misses.has_room() && input.len() < INPUT_BYTES_MAX;
        let is_parting = stopped.filter(|_| session.ending().is_none() && session.is_idle());
        let is_working = !reader.misses.is_empty();
        if !is_behind && !is_working {
            session.rest();
            reader.rest();
            if input.is_empty() {
                input = BytesMut::new();
            }
        }
        let has_one_to_try = reader.misses.has_one_to_try();
        // Cancel-safe: bytes read stay in `input`, bytes written leave the outbox.
        tokio::select! {
            biased;
            () = &mut stopping, if stopped.is_none() => {
                session.stop();
                stopped = Some(Instant::now() + STOP_GRACE);
            }
            moved = poll_fn(|context| {
                link.poll(context, session.outbox(), &mut input, wants_input)
            }), if is_behind || wants_input => {
                if moved? == Moved::Received(0) {
                    session.finish();
                }
                has_passed_over = has_one_to_try;
                clock.restart();
            }
            () = reader.misses.finished(), if is_working => clock.restart(),
            () = std::future::ready(()), if has_one_to_try => {
                if let Some(done) = reader.misses.try_one() {
                    take(session, done, counters);
                }
                // Others have their turn after each.
                tokio::task::yield_now().await;
            }
            () = until(is_parting), if is_parting.is_some() => session.finish(),
            () = until(clock.end), if clock.end.is_some() && !is_working => {
                return Err(SessionError::Idle);
            }
        }
    }
}

/// From requests to what is done about them.
struct Reader<'a> {
    export: &'a Arc<Export>,
    account: Account,
    misses: Misses,
    ahead: ReadAhead,
    has_fetched_ahead: bool,
    /// Parts of the reply that is made just now. Empty between replies.
    pieces: Vec<Piece>,
}

impl Reader<'_> {
    /// Answers what is in the cache, and begins what is not.
    fn take_requests(
        &mut self,
        session: &mut Transmission,
        input: &mut BytesMut,
        counters: &Counters<'_>,
    ) -> Result<(), SessionError> {
        let mut began = None;
        while self.misses.has_room() {
            session.allow(self.account.allowance(session.owed_bytes()));
            let Some(work) = session.next_work(input)? else { break };
            let is_read = matches!(work, Work::Read(_));
            let before = began.unwrap_or_else(Instant::now);
            if let Some(work) = self.answer_from_cache(work, session) {
                self.misses.begin(work, self.pattern(), before);
            } else if is_read {
                let now = Instant::now();
                counters.hit(now.saturating_duration_since(before));
                began = Some(now);
            }
        }
        Ok(())
    }

    /// Answers something from the cache, or gives it back.
    fn answer_from_cache(&mut self, work: Work, session: &mut Transmission) -> Option<Work> {
        let (export, effort) = (self.export, Effort::Cached);
        if let Work::Read(read) = work {
            let (offset, length) = (read.offset, read.length);
            if self.ahead.reads(offset, u64::from(length)) == Step::Jump {
                self.forget_ahead();
            }
            let pattern = self.pattern();
            if !export.read_at_once(offset, length, effort, pattern, &mut self.pieces) {
                self.ahead.misses();
                return Some(Work::Read(read));
            }
            session.reply_with(read, &mut self.pieces);
            return None;
        }
        match at_once(work, export, effort, self.pattern()) {
            Ok(outcome) => {
                answer(session, outcome);
                None
            }
            Err(work) => Some(work),
        }
    }

    fn pattern(&self) -> Pattern {
        if self.ahead.is_sequential() { Pattern::Sequential } else { Pattern::Random }
    }

    fn forget_ahead(&mut self) {
        if std::mem::take(&mut self.has_fetched_ahead) {
            self.misses.forget_ahead();
        }
    }

    /// Has fetched what the client will want next, if it reads in order.
    fn fetch_ahead(&mut self, shared: &Shared) {
        let (all, free) =
            (shared.limits.connections_max.get(), shared.connections.available_permits());
        let bytes_max = self.export.ahead_bytes_max(all.saturating_sub(free));
        self.misses.has_reached(self.ahead.position());
        if let Some(range) = self.ahead.wants(self.export.info().size_bytes, bytes_max) {
            self.has_fetched_ahead = true;
            self.misses.fetch_ahead(range);
        }
    }

    fn rest(&mut self) {
        self.misses.rest();
        if self.pieces.capacity() > PIECES_KEPT {
            self.pieces = Vec::new();
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

    /// A read was answered from the cache.
    fn hit(&self, took: Duration) {
        self.shared.metrics.read_took(CacheOutcome::Hit, took, &self.client.id);
    }

    /// Something was answered that was not in the cache.
    fn miss(&self, done: &Done) {
        let is_damage = match &done.outcome {
            Outcome::Read(_, outcome) => {
                self.shared.metrics.read_took(CacheOutcome::Miss, done.took, &self.client.id);
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

fn take(session: &mut Transmission, done: Done, counters: &Counters<'_>) {
    counters.miss(&done);
    answer(session, done.outcome);
}

fn answer(session: &mut Transmission, outcome: Outcome) {
    match outcome {
        Outcome::Read(read, outcome) => session.reply(read, outcome),
        Outcome::Load(load, outcome) => session.loaded(load, outcome),
        Outcome::Status(status, outcome) => session.describe(status, outcome),
    }
}
