//! From the start of a server to its first byte.

use std::ffi::OsString;
use std::io;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use crate::open::Opener;
use crate::replies::Replies;
use crate::{Target, doing};

const BYTES: u32 = 4096;
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Args)]
pub(crate) struct Settings {
    #[command(flatten)]
    target: Target,
    /// The server, which has to listen on the address, and its arguments.
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

pub(crate) fn run(settings: &Settings) -> io::Result<Value> {
    let opener = Opener::new(&settings.target)?;
    let (program, arguments) =
        settings.command.split_first().ok_or_else(|| io::Error::other("no server is named"))?;
    let start = Instant::now();
    let mut server = Server(
        Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(doing(program.to_string_lossy()))?,
    );
    while TcpStream::connect(settings.target.address).is_err() {
        if let Some(status) = server.0.try_wait()? {
            return Err(io::Error::other(format!("the server ended with {status}")));
        }
        if start.elapsed() > PATIENCE {
            return Err(io::Error::other("the server does not listen"));
        }
        sleep(Duration::from_micros(100));
    }
    let (mut link, _) = opener.open(Vec::new())?;
    let mut replies = Replies::new(1, opener.structured());
    let (mut out, mut done) = (Vec::new(), Vec::new());
    replies.ask(0, 0, BYTES, &mut out);
    link.send(&out)?;
    let mut first = None;
    while done.is_empty() {
        link.receive(|bytes| {
            replies.feed(bytes, |_, _, _| {
                first.get_or_insert_with(|| start.elapsed());
            })
        })?;
        replies.take_done(&mut done);
    }
    let first = first.unwrap_or_else(|| start.elapsed());
    Ok(json!({ "milliseconds": first.as_secs_f64() * 1e3 }))
}

/// A server that does not outlive the measurement.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
