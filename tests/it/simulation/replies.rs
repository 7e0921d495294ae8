//! What the server answers, held against what it must answer.

use std::collections::HashMap;
use std::ops::Range;

use crate::simulation::model::Export;
use crate::simulation::options::Replies;
use crate::simulation::requests::{Answer, Asked, EIO};
use crate::simulation::wire::Receiver;

/// Requests that were sent and not answered yet.
pub(crate) struct Awaited<'a> {
    export: &'a Export,
    replies: Replies,
    /// By their cookies. Several of one cookie are all the same request.
    asked: HashMap<u64, Vec<Open>>,
}

struct Open {
    asked: Asked,
    /// Everything of a read up to here has come.
    position: u64,
    content_chunks: u32,
    /// Contexts whose extents have not come.
    contexts: Vec<u32>,
}

impl<'a> Awaited<'a> {
    pub(crate) fn new(export: &'a Export, replies: Replies) -> Self {
        Self { export, replies, asked: HashMap::new() }
    }

    pub(crate) fn add(&mut self, asked: Asked) {
        let contexts = match &asked.answer {
            Answer::Extents { contexts, .. } => contexts.clone(),
            _ => Vec::new(),
        };
        let open = Open { position: asked.offset, content_chunks: 0, contexts, asked };
        self.asked.entry(open.asked.cookie).or_default().push(open);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// Takes one reply, or one chunk of one. `None` if the server hung up.
    pub(crate) async fn receive(&mut self, receiver: &mut Receiver) -> Option<()> {
        match self.replies {
            Replies::Simple => self.receive_simple(receiver).await,
            Replies::Structured | Replies::Extended => self.receive_chunk(receiver).await,
        }
    }

    async fn receive_simple(&mut self, receiver: &mut Receiver) -> Option<()> {
        assert_eq!(receiver.number(4).await?, 0x6744_6698, "the magic of a simple reply");
        let error = receiver.number(4).await? as u32;
        let cookie = receiver.number(8).await?;
        let open = self.close(cookie);
        match open.asked.answer {
            Answer::Bytes { range, .. } => match self.export.first_damaged(&range) {
                Some(_) => assert_eq!(error, EIO, "damaged bytes"),
                None => {
                    assert_eq!(error, 0, "{range:?} of {}", self.export.name);
                    let bytes = receiver.receive((range.end - range.start) as usize).await?;
                    assert!(bytes == self.export.range(range.clone()), "wrong bytes in {range:?}");
                }
            },
            Answer::Done => assert_eq!(error, 0),
            Answer::Error(expected) => assert_eq!(error, expected),
            Answer::Extents { .. } => panic!("no contexts without structured replies"),
        }
        Some(())
    }

    async fn receive_chunk(&mut self, receiver: &mut Receiver) -> Option<()> {
        let is_extended = self.replies == Replies::Extended;
        let magic = if is_extended { 0x6e8a_278c } else { 0x668e_33ef };
        assert_eq!(receiver.number(4).await?, magic, "the magic of a chunk");
        let (flags, kind) = (receiver.number(2).await?, receiver.number(2).await?);
        let cookie = receiver.number(8).await?;
        let offset = if is_extended { Some(receiver.number(8).await?) } else { None };
        let length = receiver.number(if is_extended { 8 } else { 4 }).await?;
        assert!(flags <= 1, "flags {flags}");
        let payload = receiver.receive(length as usize).await?;
        let mut payload = Fields(&payload);
        let open = self.asked.get_mut(&cookie).and_then(|open| open.first_mut());
        let open = open.unwrap_or_else(|| panic!("a chunk for cookie {cookie}, which is not open"));
        if let Some(offset) = offset {
            assert_eq!(offset, open.asked.offset, "the offset that extended headers repeat");
        }
        let mut error = None;
        match kind {
            0 => assert!(flags == 1 && length == 0),
            1 => {
                let start = payload.number(8);
                let range = start..start + payload.0.len() as u64;
                open.content(&range, self.export);
                assert!(payload.0 == self.export.range(range.clone()), "wrong bytes in {range:?}");
                payload.0 = &[];
            }
            2 => {
                let start = payload.number(8);
                let range = start..start + payload.number(4);
                open.content(&range, self.export);
                let zeros = self.export.range(range.clone());
                assert!(zeros.iter().all(|byte| *byte == 0), "{range:?} is no hole");
            }
            5 | 6 => {
                assert_eq!(kind == 6, is_extended);
                open.extents(&mut payload, is_extended, self.export);
            }
            0x8001 | 0x8002 => {
                let number = payload.number(4) as u32;
                let length = payload.number(2) as usize;
                let (sentence, rest) = payload.0.split_at(length);
                payload.0 = rest;
                assert!(!std::str::from_utf8(sentence).unwrap().is_empty());
                error = Some((number, (kind == 0x8002).then(|| payload.number(8))));
                assert_eq!(flags, 1);
            }
            kind => panic!("a chunk of type {kind:#x}"),
        }
        assert!(payload.0.is_empty(), "bytes behind a chunk of type {kind:#x}");
        if flags == 1 {
            self.close(cookie).check_end(error, self.export);
        }
        Some(())
    }

    fn close(&mut self, cookie: u64) -> Open {
        let open = self.asked.get_mut(&cookie);
        let open = open.unwrap_or_else(|| panic!("a reply to cookie {cookie}, which is not open"));
        let closed = open.remove(0);
        if open.is_empty() {
            self.asked.remove(&cookie);
        }
        closed
    }
}

impl Open {
    /// Some bytes of a read. They come in order from this server, though they need not.
    fn content(&mut self, range: &Range<u64>, export: &Export) {
        let Answer::Bytes { range: wanted, in_one } = &self.asked.answer else {
            panic!("content for {:?}", self.asked)
        };
        assert!(!range.is_empty() && range.start == self.position && range.end <= wanted.end);
        assert_eq!(export.first_damaged(range), None, "damaged bytes were sent");
        self.position = range.end;
        self.content_chunks += 1;
        assert!(!in_one || self.content_chunks == 1, "fragments");
    }

    fn extents(&mut self, payload: &mut Fields<'_>, is_extended: bool, export: &Export) {
        let Answer::Extents { range, first_only, .. } = &self.asked.answer else {
            panic!("extents for {:?}", self.asked)
        };
        let id = payload.number(4) as u32;
        let place = self.contexts.iter().position(|context| *context == id);
        self.contexts.remove(place.expect("a context that was not asked for"));
        let width = if is_extended { 8 } else { 4 };
        if is_extended {
            let count = payload.number(4) as usize;
            assert_eq!(payload.0.len(), count * 16);
        }
        let (mut position, mut before, mut count) = (range.start, None, 0);
        while !payload.0.is_empty() {
            let (bytes, status) = (payload.number(width), payload.number(width));
            assert!(bytes != 0 && position + bytes <= range.end, "beyond what was asked for");
            assert_ne!(before, Some(status), "neighbours of one status");
            if id == 1 {
                check_allocation(position..position + bytes, status, range, export);
            } else {
                assert!(status <= 1);
            }
            position += bytes;
            before = Some(status);
            count += 1;
        }
        assert!(count != 0 && (!first_only || count == 1));
        assert!(*first_only || position == range.end || count >= 4096, "not all is described");
    }

    fn check_end(self, error: Option<(u32, Option<u64>)>, export: &Export) {
        match self.asked.answer {
            Answer::Bytes { range, in_one } => match export.first_damaged(&range) {
                Some(bad) => {
                    assert_eq!(error, Some((EIO, Some(bad))), "the place of the damage");
                    let is_long = range.end - range.start > 256 * 1024;
                    assert!(self.position == bad || in_one && is_long && self.content_chunks == 0);
                }
                None => assert_eq!((self.position, error), (range.end, None), "bytes are missing"),
            },
            Answer::Done => assert_eq!(error, None),
            Answer::Error(expected) => assert_eq!(error.map(|error| error.0), Some(expected)),
            Answer::Extents { .. } => {
                assert!(error.is_none() && self.contexts.is_empty(), "extents are missing");
            }
        }
    }
}

/// A hole reads as zeros and has whole sectors; what is called data has no whole sector of hole,
/// but where the question cuts one.
fn check_allocation(extent: Range<u64>, status: u64, asked: &Range<u64>, export: &Export) {
    if status == 3 {
        assert!(extent.start.is_multiple_of(512) || extent.start == asked.start);
        assert!(
            export.range(extent.clone()).iter().all(|byte| *byte == 0),
            "{extent:?} is no hole"
        );
        return;
    }
    assert_eq!(status, 0);
    let mut sector = extent.start.next_multiple_of(512);
    while sector + 512 <= extent.end {
        assert!(!export.is_hole_sector(sector), "{sector} is a hole");
        sector += 512;
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// A big-endian number of that many bytes.
    fn number(&mut self, bytes: usize) -> u64 {
        let (number, rest) = self.0.split_at(bytes);
        self.0 = rest;
        number.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}
