//! Connections that do nothing, to see what they cost.

use std::io;

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::open::Opener;
use crate::replies::Replies;
use crate::{Target, doing};

#[derive(Args)]
pub(crate) struct Settings {
    #[command(flatten)]
    target: Target,
    #[arg(long)]
    connections: u32,
    /// Bytes that each reads once, from the start of the export.
    #[arg(long)]
    read: Option<u32>,
}

pub(crate) fn run(settings: &Settings) -> io::Result<Value> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let opener = Opener::new(&settings.target)?;
    let mut links = Vec::new();
    let mut buffer = Vec::new();
    for number in 1..=settings.connections {
        let mut open = || -> io::Result<()> {
            let (mut link, _) = opener.open(std::mem::take(&mut buffer))?;
            if let Some(length) = settings.read {
                let mut replies = Replies::new(1, opener.structured());
                let (mut out, mut done) = (Vec::new(), Vec::new());
                replies.ask(0, 0, length, &mut out);
                link.send(&out)?;
                while done.is_empty() {
                    link.receive(|bytes| replies.feed(bytes, |_, _, _| ()))?;
                    replies.take_done(&mut done);
                }
            }
            buffer = link.take_buffer();
            links.push(link);
            Ok(())
        };
        open().map_err(doing(format_args!("connection {number}")))?;
    }
    println!("{}", json!({ "ready": links.len() }));
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(Value::Null)
}
