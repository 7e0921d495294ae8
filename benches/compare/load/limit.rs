//! The yardstick: a server that decodes nothing, checks nothing and keeps no limit. It knows GO,
//! simple replies and reads, answers all requests of one read with one vectored write, and takes
//! every offset for a good one. Nobody would serve with it; it shows what the machine can do.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::{fs, thread};

use clap::Args;
use serde_json::{Value, json};

use crate::{doing, wire};

/// Most slices that the kernel takes with one call.
const SLICES_MAX: usize = 1024;

#[derive(Args)]
pub(crate) struct Settings {
    /// Raw image, which is read into memory.
    #[arg(long)]
    image: PathBuf,
    #[arg(long)]
    listen: SocketAddr,
}

pub(crate) fn run(settings: &Settings) -> io::Result<Value> {
    let image: Arc<[u8]> =
        fs::read(&settings.image).map_err(doing(settings.image.display()))?.into();
    let listener =
        TcpListener::bind(settings.listen).map_err(doing(format_args!("{}", settings.listen)))?;
    println!("{}", json!({ "port": listener.local_addr()?.port() }));
    for stream in listener.incoming() {
        let stream = stream?;
        let image = Arc::clone(&image);
        // A client that goes is no news.
        thread::spawn(move || serve(stream, &image));
    }
    Ok(Value::Null)
}

fn serve(mut stream: TcpStream, image: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    let (mut start, mut end) = negotiate(&mut stream, &mut buffer, image.len() as u64)?;
    let mut headers = Vec::new();
    let mut reads = Vec::new();
    loop {
        headers.clear();
        reads.clear();
        while end - start >= wire::REQUEST_BYTES {
            let request = &buffer[start..start + wire::REQUEST_BYTES];
            start += wire::REQUEST_BYTES;
            if wire::be16(request, 6) != wire::COMMAND_READ {
                return Ok(());
            }
            let mut header = [0; wire::SIMPLE_BYTES];
            header[..4].copy_from_slice(&wire::SIMPLE_MAGIC.to_be_bytes());
            header[8..].copy_from_slice(&request[8..16]);
            headers.push(header);
            let offset = wire::be64(request, 16) as usize;
            reads.push(offset..offset + wire::be32(request, 24) as usize);
        }
        for (headers, reads) in headers.chunks(SLICES_MAX / 2).zip(reads.chunks(SLICES_MAX / 2)) {
            let mut slices: Vec<IoSlice<'_>> = headers
                .iter()
                .zip(reads)
                .flat_map(|(header, read)| {
                    [IoSlice::new(header), IoSlice::new(&image[read.clone()])]
                })
                .collect();
            let mut left = &mut slices[..];
            while !left.is_empty() {
                let written = stream.write_vectored(left)?;
                IoSlice::advance_slices(&mut left, written);
            }
        }
        buffer.copy_within(start..end, 0);
        (start, end) = (0, end - start);
        let received = stream.read(&mut buffer[end..])?;
        if received == 0 {
            return Ok(());
        }
        end += received;
    }
}

/// Up to the answer to GO. Returns which bytes of the buffer were received behind it.
fn negotiate(stream: &mut TcpStream, buffer: &mut [u8], size: u64) -> io::Result<(usize, usize)> {
    let mut greeting = wire::GREETING.to_vec();
    greeting.extend_from_slice(&(wire::FLAGS as u16).to_be_bytes());
    stream.write_all(&greeting)?;
    // The flags of the client, which say nothing of interest.
    let (mut start, mut end) = (4, 0);
    loop {
        while end < start + 16 || end < start + 16 + wire::be32(buffer, start + 12) as usize {
            let received = stream.read(&mut buffer[end..])?;
            if received == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            end += received;
        }
        let option = wire::be32(buffer, start + 8);
        start += 16 + wire::be32(buffer, start + 12) as usize;
        let mut out = Vec::new();
        let mut reply = |code: u32, payload: &[u8]| {
            out.extend_from_slice(&wire::OPTION_REPLY_MAGIC.to_be_bytes());
            out.extend_from_slice(&option.to_be_bytes());
            out.extend_from_slice(&code.to_be_bytes());
            out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
            out.extend_from_slice(payload);
        };
        if option == wire::OPTION_GO {
            let mut info = wire::INFO_EXPORT.to_be_bytes().to_vec();
            info.extend_from_slice(&size.to_be_bytes());
            // It has flags, and is read-only.
            info.extend_from_slice(&3_u16.to_be_bytes());
            reply(wire::REPLY_INFO, &info);
            reply(wire::REPLY_ACK, &[]);
            stream.write_all(&out)?;
            return Ok((start, end));
        }
        reply(wire::REPLY_UNSUPPORTED, &[]);
        stream.write_all(&out)?;
    }
}
