//! The thread that writes, and the queue before it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tokio::time::Instant;

use crate::audit::event::{Event, EventKind};
use crate::audit::sink::{Line, Sink, Target};
use crate::audit::{AuditError, OnLoss};

/// Events that wait to be written: a second or so of all that a busy server has to tell. Most take some
/// hundreds of bytes, and what a certificate says at most what a handshake lets through.
const WAITING_MAX: usize = 4096;

/// How long to wait before something is opened again that could not be.
const OPEN_AGAIN: Duration = Duration::from_secs(5);

/// How often at most it is told that lines are lost.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// How long the end of the process waits for the last lines.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Where events are recorded. Cheap to clone.
#[derive(Clone)]
pub struct AuditLog {
    orders: SyncSender<Order>,
    /// That the file is to be opened again before the next line.
    reopen: Arc<AtomicBool>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Lines that could not be written.
    lost: AtomicU64,
    /// Those, and attempts to open the log again that failed.
    errors: AtomicU64,
}

impl Counts {
    fn lost_one(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.errors.fetch_add(1, Ordering::Relaxed);
    }
}

enum Order {
    Record(Box<Event>),
    /// There is something to do without an event.
    Wake,
    /// Whoever waits at the other end is told by its being dropped.
    Close(
        #[expect(dead_code, reason = "dropped when everything before it is written")] SyncSender<()>,
    ),
}

impl AuditLog {
    /// Opens it and starts its thread. `on_loss` is called, now and then, when lines cannot be
    /// written.
    ///
    /// # Errors
    ///
    /// [`AuditError`] if it cannot be written to.
    pub fn open(target: Target, on_loss: OnLoss) -> Result<Self, AuditError> {
        let sink = Some(Sink::open(&target)?);
        let (orders, waiting) = sync_channel(WAITING_MAX);
        let counts = Arc::new(Counts::default());
        let reopen = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            target,
            sink,
            reopen: Arc::clone(&reopen),
            tried: Instant::now(),
            counts: Arc::clone(&counts),
            told: 0,
            why: None,
            on_loss,
            complained: None,
        };
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(&waiting))
            .map_err(AuditError::Thread)?;
        Ok(Self { orders, reopen, counts })
    }

    /// Records an event, and does not wait for it. If more wait to be written than memory should be
    /// spent on, it is lost and counted.
    pub fn record(&self, event: Event) {
        if self.orders.try_send(Order::Record(Box::new(event))).is_err() {
            self.counts.lost_one();
        }
    }

    /// From now on writes to whatever has the name of the file now: whoever rotates logs has renamed
    /// the one before.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
        // With others waiting already, it is seen before the next of them.
        let _ = self.orders.try_send(Order::Wake);
    }

    /// Waits until everything is written, though not for ever: the disk may not answer.
    pub fn close(&self) {
        let end = Instant::now() + CLOSE_MAX;
        let (sender, done) = sync_channel(0);
        let mut order = Order::Close(sender);
        while let Err(TrySendError::Full(back)) = self.orders.try_send(order) {
            if Instant::now() >= end {
                return;
            }
            order = back;
            std::thread::sleep(Duration::from_millis(10));
        }
        // Nothing is ever sent: it ends when the other end is dropped.
        let _ = done.recv_timeout(end.saturating_duration_since(Instant::now()));
    }

    /// Lines that could not be written since the start, and attempts to open the log again that
    /// failed.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.counts.errors.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditLog").field("counts", &self.counts).finish_non_exhaustive()
    }
}

struct Writer {
    target: Target,
    /// `None` while it cannot be opened.
    sink: Option<Sink>,
    /// When it was opened, or could not be.
    tried: Instant,
    reopen: Arc<AtomicBool>,
    counts: Arc<Counts>,
    /// As many of the lost as the log says are lost.
    told: u64,
    /// Why the last of them was.
    why: Option<String>,
    on_loss: OnLoss,
    complained: Option<Instant>,
}

impl Writer {
    fn run(mut self, waiting: &Receiver<Order>) {
        loop {
            // What is lost is told when there is room again, even if nothing else happens.
            let order = if self.lost() == self.told {
                waiting.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                waiting.recv_timeout(OPEN_AGAIN)
            };
            if self.reopen.swap(false, Ordering::Acquire) {
                self.reopen();
            }
            match order {
                Ok(Order::Record(event)) => self.record(&event),
                Ok(Order::Wake) => {}
                Ok(Order::Close(_)) | Err(RecvTimeoutError::Timeout) => self.tell_lost(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn lost(&self) -> u64 {
        self.counts.lost.load(Ordering::Relaxed)
    }

    fn record(&mut self, event: &Event) {
        self.tell_lost();
        if let Err(why) = self.write(event) {
            self.counts.lost_one();
            self.complain(why);
        }
    }

    /// Says in the log that lines of it are missing.
    fn tell_lost(&mut self) {
        let lost = self.lost();
        let lines = lost.saturating_sub(self.told);
        if lines == 0 {
            return;
        }
        let overflow = || "more happened at once than could be written".to_owned();
        let reason = self.why.clone().unwrap_or_else(overflow);
        self.complain(reason.clone());
        match self.write(&Event::new(EventKind::Lost { lines, reason })) {
            Ok(()) => {
                self.told = lost;
                self.why = None;
            }
            Err(why) => self.why = Some(why),
        }
    }

    fn write(&mut self, event: &Event) -> Result<(), String> {
        if self.sink.is_none() && self.tried.elapsed() >= OPEN_AGAIN {
            self.tried = Instant::now();
            self.sink = Some(Sink::open(&self.target).map_err(|error| with_source(&error))?);
        }
        let Some(sink) = &mut self.sink else {
            return Err(self.why.clone().unwrap_or_else(|| "it is not open".to_owned()));
        };
        let connection = event.connection().map(str::to_owned);
        let line = Line { text: event.to_line(), event: event.name(), connection };
        let Err(error) = sink.write(&line) else { return Ok(()) };
        // A journal that was started again has another socket behind the same name.
        if matches!(sink, Sink::Journal(_)) {
            self.sink = None;
        }
        Err(format!("cannot write the audit log: {error}"))
    }

    /// The file that is open stays, if no other can be opened.
    fn reopen(&mut self) {
        self.tried = Instant::now();
        match Sink::open(&self.target) {
            Ok(sink) => self.sink = Some(sink),
            Err(error) => {
                self.counts.errors.fetch_add(1, Ordering::Relaxed);
                self.complain(with_source(&error));
            }
        }
    }

    /// Tells whoever started the log, and not too often.
    fn complain(&mut self, why: String) {
        if self.complained.is_none_or(|at| at.elapsed() >= TELL_AGAIN) {
            self.complained = Some(Instant::now());
            (self.on_loss)(&why);
        }
        self.why = Some(why);
    }
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
