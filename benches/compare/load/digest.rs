//! A digest of everything, which two servers share if they serve the same bytes.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::open::Opener;
use crate::replies::Replies;
use crate::{Target, doing, wire};

/// The digest is that of the digests of pieces of this size, in order, so pieces may come in any
/// order.
const PIECE: u32 = 256 * 1024;
const QUEUE: usize = 8;

#[derive(Args)]
pub(crate) struct Settings {
    #[command(flatten)]
    target: Option<Target>,
    /// A raw image instead of a server.
    #[arg(long, conflicts_with = "address")]
    file: Option<PathBuf>,
}

pub(crate) fn run(settings: &Settings) -> io::Result<Value> {
    let (size, pieces) = match (&settings.file, &settings.target) {
        (Some(path), _) => of_file(path).map_err(doing(path.display()))?,
        (None, Some(target)) => of_export(target)?,
        (None, None) => return Err(io::Error::other("--address or --file says what is read")),
    };
    let digest = Sha256::digest(pieces.concat());
    let text: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(json!({ "size": size, "digest": text }))
}

fn of_file(path: &PathBuf) -> io::Result<(u64, Vec<Vec<u8>>)> {
    let mut file = File::open(path)?;
    let (mut size, mut pieces) = (0, Vec::new());
    loop {
        let mut piece = Vec::new();
        let read = file.by_ref().take(u64::from(PIECE)).read_to_end(&mut piece)?;
        if read == 0 {
            return Ok((size, pieces));
        }
        size += read as u64;
        pieces.push(Sha256::digest(&piece).to_vec());
    }
}

fn of_export(target: &Target) -> io::Result<(u64, Vec<Vec<u8>>)> {
    let opener = Opener::new(target)?;
    let (mut link, size) = opener.open(Vec::new())?;
    let count = usize::try_from(size.div_ceil(u64::from(PIECE))).map_err(io::Error::other)?;
    let mut pieces = vec![Vec::new(); count];
    let mut replies = Replies::new(QUEUE, opener.structured());
    // What a chunk of zeros skips is zero, since a buffer is cleared before each read.
    let mut buffers = vec![(0, Vec::new()); QUEUE];
    let mut free: Vec<usize> = (0..QUEUE).collect();
    let (mut next, mut out) = (0, Vec::new());
    loop {
        out.clear();
        while next < count
            && let Some(slot) = free.pop()
        {
            let offset = next as u64 * u64::from(PIECE);
            let length = (size - offset).min(u64::from(PIECE)) as u32;
            buffers[slot] = (next, vec![0; length as usize]);
            replies.ask(slot, offset, length, &mut out);
            next += 1;
        }
        if !out.is_empty() {
            link.send(&out)?;
        }
        if next == count && free.len() == QUEUE {
            break;
        }
        let before = free.len();
        link.receive(|bytes| {
            replies.feed(bytes, |slot, position, data| {
                let at = position as usize;
                buffers[slot].1[at..at + data.len()].copy_from_slice(data);
            })
        })?;
        replies.take_done(&mut free);
        for &slot in &free[before..] {
            let (index, data) = &buffers[slot];
            pieces[*index] = Sha256::digest(data).to_vec();
        }
    }
    wire::request(&mut out, wire::COMMAND_DISCONNECT, 0, 0, 0);
    link.send(&out)?;
    Ok((size, pieces))
}
