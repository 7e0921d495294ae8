//! Reads, as many at a time as the queue is deep.

use std::io;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use crate::link::Link;
use crate::measure::{self, Count};
use crate::open::Opener;
use crate::plan::{self, Outline, Pattern, Plan};
use crate::replies::Replies;
use crate::{Target, doing, wire};

#[derive(Args)]
pub(crate) struct Settings {
    #[command(flatten)]
    target: Target,
    /// Sequential reads share the span among connections; random ones are anywhere in it.
    #[arg(long, value_enum)]
    pattern: Pattern,
    /// Bytes of each read.
    #[arg(long)]
    block: NonZeroU32,
    /// Requests of a connection that wait for a reply at a time.
    #[arg(long, default_value_t = 1)]
    queue: u16,
    #[arg(long, default_value_t = 1)]
    connections: u16,
    /// How long to read. With --requests or --once, at most.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// How many reads, for all connections together.
    #[arg(long)]
    requests: Option<u64>,
    /// Bytes from the start of the export that are read [default: all].
    #[arg(long)]
    span: Option<u64>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Random reads that touch no 128 KiB twice, and end when all were touched.
    #[arg(long)]
    distinct: bool,
    /// Sequential reads that end at the end of the span.
    #[arg(long)]
    once: bool,
    /// Each connection reads the whole span in order.
    #[arg(long)]
    same: bool,
    /// Read the span three times before, which does not count: who keeps what was read twice has it then.
    #[arg(long)]
    warm: bool,
    /// Process of which the time on a core is told.
    #[arg(long)]
    pid: Option<u32>,
}

pub(crate) fn run(settings: &Settings) -> io::Result<Value> {
    if settings.queue == 0 || settings.connections == 0 {
        return Err(io::Error::other("--queue and --connections are at least 1"));
    }
    let block = settings.block.get();
    if settings.distinct && !plan::fits_window(u64::from(block)) {
        return Err(io::Error::other("--distinct needs a --block that divides 128 KiB"));
    }
    let opener = Opener::new(&settings.target)?;
    let mut opened = Vec::new();
    for _ in 0..settings.connections {
        opened.push(opener.open(Vec::new())?);
    }
    let size = opened.iter().map(|(_, size)| *size).min().unwrap_or(0);
    let span = settings.span.unwrap_or(size).min(size);
    if span < u64::from(block) {
        return Err(io::Error::other(format!("{span} bytes are less than a block of {block}")));
    }
    let outline = Outline {
        pattern: settings.pattern,
        span,
        block: u64::from(block),
        connections: u64::from(settings.connections),
        same: settings.same,
        once: settings.once,
        distinct: settings.distinct,
        seed: settings.seed,
    };
    if settings.warm {
        for _ in 0..3 {
            warm(&opener, span)?;
        }
    }
    let prepared: Vec<Connection> = opened
        .into_iter()
        .zip(0..)
        .map(|((link, _), index)| Connection {
            link,
            replies: Replies::new(usize::from(settings.queue), opener.structured()),
            plan: outline.plan(index),
            block,
            queue: usize::from(settings.queue),
            requests_max: settings.requests.map_or(u64::MAX, |requests| {
                requests / outline.connections + u64::from(index < requests % outline.connections)
            }),
        })
        .collect();
    let time = Duration::try_from_secs_f64(settings.seconds).map_err(io::Error::other)?;
    measure::run(prepared, settings.pid, |connection| connection.read(time))
}

/// Reads the span once, large blocks in order.
fn warm(opener: &Opener<'_>, span: u64) -> io::Result<()> {
    const BLOCK: u32 = 256 * 1024;
    let (link, _) = opener.open(Vec::new())?;
    let outline = Outline {
        pattern: Pattern::Sequential,
        span: span.next_multiple_of(u64::from(BLOCK)),
        block: u64::from(BLOCK),
        connections: 1,
        same: false,
        once: true,
        distinct: false,
        seed: 0,
    };
    let mut connection = Connection {
        link,
        replies: Replies::new(4, opener.structured()),
        plan: outline.plan(0),
        block: BLOCK,
        queue: 4,
        requests_max: span / u64::from(BLOCK),
    };
    connection.requests_max = connection.requests_max.max(1);
    connection.read(Duration::from_secs(600)).map(|_| ()).map_err(doing("warm up"))
}

struct Connection {
    link: Link,
    replies: Replies,
    plan: Plan,
    block: u32,
    queue: usize,
    requests_max: u64,
}

impl Connection {
    /// Keeps the queue full until time, plan or requests are used up, and then says goodbye.
    fn read(mut self, time: Duration) -> io::Result<Count> {
        let start = Instant::now();
        let mut count = Count::new();
        let mut free: Vec<usize> = (0..self.queue).collect();
        let mut out = Vec::with_capacity(self.queue * wire::REQUEST_BYTES);
        let (mut asked, mut answered) = (0, 0);
        let mut sent = start;
        let mut is_over = false;
        loop {
            out.clear();
            if !is_over {
                while asked < self.requests_max
                    && let Some(&slot) = free.last()
                    && let Some(offset) = self.plan.next()
                {
                    free.pop();
                    self.replies.ask(slot, offset, self.block, &mut out);
                    asked += 1;
                }
            }
            if !out.is_empty() {
                self.link.send(&out)?;
            }
            if asked == answered {
                break;
            }
            let before = free.len();
            while free.len() == before {
                self.link.receive(|bytes| self.replies.feed(bytes, |_, _, _| ()))?;
                self.replies.take_done(&mut free);
            }
            let now = Instant::now();
            let done = (free.len() - before) as u64;
            answered += done;
            // What comes after the end is waited for, and not counted.
            if !is_over {
                count.requests += done;
                count.bytes += done * u64::from(self.block);
                count.end = now;
                if self.queue == 1 {
                    count.took(now - sent);
                }
                is_over = now - start >= time;
            }
            sent = now;
        }
        out.clear();
        wire::request(&mut out, wire::COMMAND_DISCONNECT, 0, 0, 0);
        self.link.send(&out)?;
        Ok(count)
    }
}
