//! Machines that boot from one image at the same time: each reads the same ranges in the same order.

use std::io;
use std::num::NonZeroU32;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use crate::link::Link;
use crate::measure::{self, Count};
use crate::open::Opener;
use crate::plan::Random;
use crate::replies::Replies;
use crate::{Target, doing, wire};

const SECTOR: u64 = 4096;
/// What a kernel asks for at a time, in sectors: 4 to 128 KiB.
const REQUEST_SECTORS_MAX: u64 = 32;
/// Requests that follow each other before the reader jumps.
const RUN_REQUESTS_MAX: u64 = 16;
/// As many as a kernel reads ahead.
const QUEUE: usize = 4;

#[derive(Args)]
pub(crate) struct Settings {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value = "200")]
    clients: NonZeroU32,
    /// Bytes that each client reads, about.
    #[arg(long, default_value_t = 300 << 20)]
    bytes: u64,
    /// Each client starts at a random time in so many milliseconds.
    #[arg(long, default_value_t = 2000)]
    spread: u32,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Process of which the time on a core is told.
    #[arg(long)]
    pid: Option<u32>,
}

pub(crate) fn run(settings: &Settings) -> io::Result<Value> {
    let opener = Opener::new(&settings.target)?;
    let mut opened = Vec::new();
    let mut random = Random::new(settings.seed);
    for _ in 0..settings.clients.get() {
        let delay = random.below(u64::from(settings.spread) + 1);
        opened.push((opener.open(Vec::new())?, Duration::from_millis(delay)));
    }
    let size = opened.iter().map(|((_, size), _)| *size).min().unwrap_or(0);
    let trace = trace(size, settings.bytes, &mut random)?;
    let structured = opener.structured();
    let prepared = opened.into_iter().map(|((link, _), delay)| (link, delay)).collect();
    measure::run(prepared, settings.pid, |(link, delay)| {
        sleep(delay);
        boot(link, structured, &trace)
    })
}

/// Offsets and lengths, runs of requests that follow each other here and there in the image.
fn trace(size: u64, bytes: u64, random: &mut Random) -> io::Result<Vec<(u64, u32)>> {
    let room = (size / SECTOR).checked_sub(RUN_REQUESTS_MAX * REQUEST_SECTORS_MAX);
    let room =
        room.ok_or_else(|| io::Error::other("the export is smaller than one run of reads"))?;
    let (mut trace, mut total) = (Vec::new(), 0);
    while total < bytes {
        let mut sector = random.below(room + 1);
        for _ in 0..=random.below(RUN_REQUESTS_MAX) {
            let sectors = 1 + random.below(REQUEST_SECTORS_MAX);
            trace.push((sector * SECTOR, (sectors * SECTOR) as u32));
            total += sectors * SECTOR;
            sector += sectors;
        }
    }
    Ok(trace)
}

fn boot(mut link: Link, structured: bool, trace: &[(u64, u32)]) -> io::Result<Count> {
    let mut count = Count::new();
    let mut replies = Replies::new(QUEUE, structured);
    let mut free: Vec<usize> = (0..QUEUE).collect();
    let mut out = Vec::new();
    let mut rest = trace.iter();
    loop {
        out.clear();
        while let Some(&slot) = free.last()
            && let Some(&(offset, length)) = rest.next()
        {
            free.pop();
            replies.ask(slot, offset, length, &mut out);
            count.requests += 1;
            count.bytes += u64::from(length);
        }
        if !out.is_empty() {
            link.send(&out)?;
        }
        if free.len() == QUEUE {
            break;
        }
        let before = free.len();
        while free.len() == before {
            link.receive(|bytes| replies.feed(bytes, |_, _, _| ())).map_err(doing("boot"))?;
            replies.take_done(&mut free);
        }
    }
    count.end = Instant::now();
    wire::request(&mut out, wire::COMMAND_DISCONNECT, 0, 0, 0);
    link.send(&out)?;
    Ok(count)
}
