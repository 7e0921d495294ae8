//! Connections that open the export and go.

use std::io;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use crate::measure::{self, Count};
use crate::open::Opener;
use crate::{Target, wire};

#[derive(Args)]
pub(crate) struct Settings {
    #[command(flatten)]
    target: Target,
    /// Connections at a time, of which each begins when its predecessor has ended.
    #[arg(long, default_value_t = 1)]
    connections: u16,
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Process of which the time on a core is told.
    #[arg(long)]
    pid: Option<u32>,
}

pub(crate) fn run(settings: &Settings) -> io::Result<Value> {
    let opener = Opener::new(&settings.target)?;
    let time = Duration::try_from_secs_f64(settings.seconds).map_err(io::Error::other)?;
    let mut goodbye = Vec::new();
    wire::request(&mut goodbye, wire::COMMAND_DISCONNECT, 0, 0, 0);
    measure::run(vec![(); usize::from(settings.connections)], settings.pid, |()| {
        let start = Instant::now();
        let mut count = Count::new();
        let mut begun = start;
        let mut buffer = Vec::new();
        while begun - start < time {
            let (mut link, _) = opener.open(buffer)?;
            link.send(&goodbye)?;
            // The server hangs up when it has noticed, so no connection piles up.
            buffer = link.drain()?;
            let now = Instant::now();
            count.requests += 1;
            count.end = now;
            count.took(now - begun);
            begun = now;
        }
        Ok(count)
    })
}
