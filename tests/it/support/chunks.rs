//! Structured replies, taken apart by hand.

use std::ops::Range;

use crate::support::client::{ACK, Client};
use crate::support::server::Server;
use crate::support::wire::STRUCTURED_REPLY;

/// One chunk of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Chunk {
    None,
    Data {
        offset: u64,
        bytes: Vec<u8>,
    },
    Hole {
        offset: u64,
        length: u32,
    },
    /// Extents of the context of that number: lengths, and what is said of them.
    Status {
        context: u32,
        extents: Vec<(u64, u64)>,
    },
    Error {
        error: u32,
        message: String,
        offset: Option<u64>,
    },
}

impl Server {
    /// A client that has asked for structured replies and chosen an export.
    pub(crate) async fn open_structured(&self, export: &str) -> Client {
        let mut client = self.greet().await;
        assert_eq!(client.option(STRUCTURED_REPLY, b"").await, (vec![], ACK));
        client.go(export).await;
        client
    }
}

impl Client {
    /// One chunk: whether it is the last of its reply, its cookie, and what it says.
    pub(crate) async fn chunk(&mut self) -> (bool, u64, Chunk) {
        let header = self.receive(20).await;
        let mut header = Fields(&header);
        assert_eq!(header.number(4), 0x668e_33ef);
        let (flags, kind) = (header.number(2), header.number(2));
        let (cookie, length) = (header.number(8), header.number(4));
        self.chunk_of(flags, kind, cookie, length).await
    }

    /// The same with an extended header, which repeats the offset of the request.
    pub(crate) async fn extended_chunk(&mut self, offset: u64) -> (bool, u64, Chunk) {
        let header = self.receive(32).await;
        let mut header = Fields(&header);
        assert_eq!(header.number(4), 0x6e8a_278c);
        let (flags, kind) = (header.number(2), header.number(2));
        let cookie = header.number(8);
        assert_eq!(header.number(8), offset, "the offset of the request");
        let length = header.number(8);
        self.chunk_of(flags, kind, cookie, length).await
    }

    async fn chunk_of(
        &mut self,
        flags: u64,
        kind: u64,
        cookie: u64,
        length: u64,
    ) -> (bool, u64, Chunk) {
        assert!(flags <= 1, "flags {flags}");
        let payload = self.receive(length as usize).await;
        let mut payload = Fields(&payload);
        let chunk = match kind {
            0 => Chunk::None,
            1 => Chunk::Data { offset: payload.number(8), bytes: payload.rest() },
            2 => Chunk::Hole { offset: payload.number(8), length: payload.number(4) as u32 },
            5 | 6 => {
                let context = payload.number(4) as u32;
                let width = if kind == 6 { 8 } else { 4 };
                if kind == 6 {
                    assert_eq!(payload.number(4), (length - 8) / 16, "the number of extents");
                }
                let mut extents = Vec::new();
                while !payload.0.is_empty() {
                    extents.push((payload.number(width), payload.number(width)));
                }
                Chunk::Status { context, extents }
            }
            0x8001 | 0x8002 => {
                let (error, length) = (payload.number(4) as u32, payload.number(2));
                assert!(error != 0 && (1..=4096).contains(&length));
                let message = String::from_utf8(payload.take(length as usize)).unwrap();
                let offset = (kind == 0x8002).then(|| payload.number(8));
                Chunk::Error { error, message, offset }
            }
            other => panic!("a chunk of type {other:#x}"),
        };
        assert!(payload.0.is_empty(), "more than {chunk:?} needs");
        (flags == 1, cookie, chunk)
    }

    /// All chunks of the one reply that is on its way.
    pub(crate) async fn chunks(&mut self, expected_cookie: u64) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        loop {
            let (is_last, cookie, chunk) = self.chunk().await;
            assert_eq!(cookie, expected_cookie);
            assert!(is_last || chunk != Chunk::None);
            chunks.push(chunk);
            if is_last {
                return chunks;
            }
        }
    }

    /// What a read is answered with.
    pub(crate) async fn read_chunks(&mut self, flags: u16, offset: u64, length: u32) -> Vec<Chunk> {
        self.request(flags, 0, offset, offset, length).await;
        self.chunks(offset).await
    }
}

/// The bytes that chunks hold, and the holes among them. They must lie one behind the other,
/// which this server does though it need not.
pub(crate) fn assemble(chunks: &[Chunk], offset: u64) -> (Vec<u8>, Vec<Range<u64>>) {
    let (mut bytes, mut holes, mut end) = (Vec::new(), Vec::new(), offset);
    for chunk in chunks {
        match chunk {
            Chunk::Data { offset, bytes: data } => {
                assert!(*offset == end && !data.is_empty(), "{offset} does not follow {end}");
                bytes.extend_from_slice(data);
            }
            Chunk::Hole { offset, length } => {
                assert!(*offset == end && *length != 0, "{offset} does not follow {end}");
                holes.push(end..end + u64::from(*length));
                bytes.resize(bytes.len() + *length as usize, 0);
            }
            Chunk::None | Chunk::Status { .. } | Chunk::Error { .. } => {}
        }
        end = offset + bytes.len() as u64;
    }
    (bytes, holes)
}

/// Chunks of data as one where they follow each other: a long read is answered in parts.
pub(crate) fn merged(chunks: Vec<Chunk>) -> Vec<Chunk> {
    let mut merged: Vec<Chunk> = Vec::new();
    for chunk in chunks {
        match (merged.last_mut(), chunk) {
            (Some(Chunk::Data { offset, bytes }), Chunk::Data { offset: next, bytes: more })
                if *offset + bytes.len() as u64 == next =>
            {
                bytes.extend(more);
            }
            (_, chunk) => merged.push(chunk),
        }
    }
    merged
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// A big-endian number of that many bytes.
    fn number(&mut self, bytes: usize) -> u64 {
        self.take(bytes).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn take(&mut self, bytes: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(bytes);
        self.0 = rest;
        taken.to_vec()
    }

    fn rest(&mut self) -> Vec<u8> {
        self.take(self.0.len())
    }
}
