//! Requests to replies, for one client and one export. Section "Transmission".
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::{Buf, BytesMut};

use crate::nbd::chunks::{Fragments, push_content, push_done, push_error};
use crate::nbd::reply::simple_reply;
use crate::nbd::request::{Action, Refusal, Request};
use crate::nbd::wire::{Errno, REQUEST_BYTES, SIMPLE_REPLY_BYTES};
use crate::nbd::{BadMagic, Outbox, Piece, Replies};

/// The client's requests go in, reads come out, their bytes go in, replies come out.
#[derive(Debug)]
pub struct Transmission {
    export_bytes: u64,
    replies: Replies,
    owed_bytes_max: u64,
    outbox: Outbox,
    /// Bytes of the reads that were accepted and not answered yet.
    reading_bytes: u64,
    reads: usize,
    refused_write: Option<RefusedWrite>,
    ending: Option<Ending>,
}

/// A write whose bytes are on their way. It is answered when they have passed: some clients do not
/// look for a reply before they have sent everything.
#[derive(Debug)]
struct RefusedWrite {
    cookie: u64,
    payload_bytes: u32,
}

/// Why no more requests are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The client said goodbye.
    Disconnected,
    /// The client hung up, or the server is stopping.
    Finished,
}

/// A read that was accepted. Neither cloned nor made elsewhere, so each is answered once.
#[derive(Debug)]
pub struct Read {
    cookie: u64,
    /// First byte of the export.
    pub offset: u64,
    /// Number of bytes. All of them are in the export.
    pub length: u32,
    fragments: Fragments,
}

/// Why a read has not all its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadFailure {
    /// The bytes that come before those that cannot be read.
    pub before: Vec<Piece>,
    /// What went wrong.
    pub error: Errno,
    /// The same, for the person at the client. It says nothing of the server's own files.
    pub message: &'static str,
}

impl Transmission {
    /// A session with a client that has chosen an export of that size, and such replies. What it
    /// is owed already, the last replies of the negotiation, is in the outbox.
    #[must_use]
    pub fn new(export_bytes: u64, replies: Replies, owed_bytes_max: u64, outbox: Outbox) -> Self {
        Self {
            export_bytes,
            replies,
            owed_bytes_max,
            outbox,
            reading_bytes: 0,
            reads: 0,
            refused_write: None,
            ending: None,
        }
    }

    /// The next read among the bytes that came in. Everything that needs no bytes of the export
    /// is answered on the way. `None` if there is no whole request, or the client has to take
    /// replies first, or the session ends.
    ///
    /// # Errors
    ///
    /// [`BadMagic`] if the stream has lost its framing: hang up.
    pub fn next_read(&mut self, input: &mut BytesMut) -> Result<Option<Read>, BadMagic> {
        while self.wants_input() {
            if !self.pass_over_write(input) {
                return Ok(None);
            }
            let Some(bytes) = input.first_chunk::<REQUEST_BYTES>() else {
                return Ok(None);
            };
            let request = Request::decode(bytes)?;
            input.advance(REQUEST_BYTES);
            let cookie = request.cookie;
            match request.check(self.export_bytes, self.replies) {
                Action::Read { offset, length, fragments } => {
                    self.reading_bytes = self.reading_bytes.saturating_add(cost(length));
                    self.reads = self.reads.saturating_add(1);
                    return Ok(Some(Read { cookie, offset, length, fragments }));
                }
                Action::Flush => self.acknowledge(cookie),
                Action::Refuse(refusal) => self.refuse(refusal, cookie),
                Action::RefuseWrite { payload_bytes } => {
                    self.refused_write = Some(RefusedWrite { cookie, payload_bytes });
                }
                Action::Disconnect => self.ending = Some(Ending::Disconnected),
            }
        }
        Ok(None)
    }

    /// Answers a read with its bytes, which must be as many as it asked for, or with an error. A
    /// simple reply with an error carries no bytes, a structured one those before the failure.
    pub fn reply(&mut self, read: Read, outcome: Result<Vec<Piece>, ReadFailure>) {
        let Read { cookie, offset, length, fragments } = read;
        self.reading_bytes = self.reading_bytes.saturating_sub(cost(length));
        self.reads = self.reads.saturating_sub(1);
        let outbox = &mut self.outbox;
        match (self.replies, checked(outcome, length)) {
            (Replies::Simple, Ok(pieces)) => {
                outbox.push_copy(&simple_reply(None, cookie));
                for piece in pieces {
                    outbox.push(piece);
                }
            }
            (Replies::Simple, Err(failure)) => {
                outbox.push_copy(&simple_reply(Some(failure.error), cookie));
            }
            (Replies::Structured, Ok(pieces)) => {
                push_content(cookie, offset, pieces, fragments, true, outbox);
            }
            (Replies::Structured, Err(ReadFailure { before, error, message })) => {
                // A read of no bytes has no place either.
                let place = (length != 0).then(|| offset.saturating_add(total_bytes(&before)));
                push_content(cookie, offset, before, fragments, false, outbox);
                push_error(cookie, error, message, place, outbox);
            }
        }
    }

    /// Whether to read from the socket. False while too much is owed: a client that does not take
    /// its replies stops itself, and nobody else.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        let owed_bytes = self.reading_bytes.saturating_add(self.outbox.owed_bytes());
        self.ending.is_none() && owed_bytes < self.owed_bytes_max
    }

    /// What the client is owed. Write from it.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// No more requests are accepted. What was accepted is answered.
    pub fn finish(&mut self) {
        self.ending.get_or_insert(Ending::Finished);
    }

    /// Why no more requests are accepted. `None` while they are.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// Whether everything is answered and sent, and no more will come.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.ending.is_some() && self.reads == 0 && !self.outbox.has_remaining()
    }

    /// Any request but a read may be answered either way. Only an error chunk has a sentence.
    fn acknowledge(&mut self, cookie: u64) {
        match self.replies {
            Replies::Simple => self.outbox.push_copy(&simple_reply(None, cookie)),
            Replies::Structured => push_done(cookie, &mut self.outbox),
        }
    }

    fn refuse(&mut self, refusal: Refusal, cookie: u64) {
        let error = refusal.errno();
        match self.replies {
            Replies::Simple => self.outbox.push_copy(&simple_reply(Some(error), cookie)),
            Replies::Structured => {
                push_error(cookie, error, refusal.message(), None, &mut self.outbox);
            }
        }
    }

    /// Drops what there is of the bytes of a refused write. False if more are to come.
    fn pass_over_write(&mut self, input: &mut BytesMut) -> bool {
        let Some(write) = &mut self.refused_write else {
            return true;
        };
        let left = usize::try_from(write.payload_bytes).unwrap_or(usize::MAX);
        let passed = left.min(input.len());
        input.advance(passed);
        write.payload_bytes =
            write.payload_bytes.saturating_sub(u32::try_from(passed).unwrap_or(u32::MAX));
        if write.payload_bytes != 0 {
            return false;
        }
        let cookie = write.cookie;
        self.refused_write = None;
        self.refuse(Refusal::ReadOnly, cookie);
        true
    }
}

/// A reply of another length would shift everything behind it, or say something of bytes that
/// nobody asked for.
fn checked(
    outcome: Result<Vec<Piece>, ReadFailure>,
    length: u32,
) -> Result<Vec<Piece>, ReadFailure> {
    let length = u64::from(length);
    let is_right = match &outcome {
        Ok(pieces) => total_bytes(pieces) == length,
        Err(failure) => total_bytes(&failure.before) < length || failure.before.is_empty(),
    };
    if is_right {
        return outcome;
    }
    let message = "the server read another number of bytes than was asked for";
    Err(ReadFailure { before: Vec::new(), error: Errno::EIO, message })
}

fn total_bytes(pieces: &[Piece]) -> u64 {
    pieces.iter().map(Piece::bytes).sum()
}

/// What a read counts for while it is not answered: short ones cost memory too.
fn cost(length: u32) -> u64 {
    u64::from(length).saturating_add(SIMPLE_REPLY_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::nbd::limits::OWED_BYTES_MAX;
    use crate::nbd::wire::{CHUNK_HEADER_BYTES, Command, command_flags};

    const EXPORT_BYTES: u64 = 1 << 20;

    fn session() -> Transmission {
        Transmission::new(EXPORT_BYTES, Replies::Simple, OWED_BYTES_MAX, Outbox::default())
    }

    fn structured() -> Transmission {
        Transmission::new(EXPORT_BYTES, Replies::Structured, OWED_BYTES_MAX, Outbox::default())
    }

    fn request(command: Command, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
        let mut bytes = b"\x25\x60\x95\x13\0\0".to_vec();
        bytes.extend_from_slice(&command.0.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes
    }

    fn taken(session: &mut Transmission) -> Vec<u8> {
        let outbox = session.outbox();
        outbox.copy_to_bytes(outbox.remaining()).to_vec()
    }

    fn pieces(length: u32) -> Result<Vec<Piece>, ReadFailure> {
        Ok(vec![data(length)])
    }

    fn data(length: u32) -> Piece {
        Piece::Data(Bytes::from(vec![7; length as usize]))
    }

    fn failure(before: Vec<Piece>) -> Result<Vec<Piece>, ReadFailure> {
        Err(ReadFailure { before, error: Errno::EIO, message: "broken" })
    }

    /// What a request is answered with, where a read comes to that.
    fn answer(
        mut session: Transmission,
        request: &[u8],
        outcome: Result<Vec<Piece>, ReadFailure>,
    ) -> Vec<u8> {
        let mut input = BytesMut::from(request);
        if let Some(read) = session.next_read(&mut input).unwrap() {
            session.reply(read, outcome);
        }
        assert!(input.is_empty());
        taken(&mut session)
    }

    fn content(offset: u64, pieces: Vec<Piece>, fragments: Fragments, is_last: bool) -> Vec<u8> {
        let mut outbox = Outbox::default();
        push_content(1, offset, pieces, fragments, is_last, &mut outbox);
        outbox.copy_to_bytes(outbox.remaining()).to_vec()
    }

    fn error(error: Errno, message: &str, position: Option<u64>) -> Vec<u8> {
        let mut outbox = Outbox::default();
        push_error(1, error, message, position, &mut outbox);
        outbox.copy_to_bytes(outbox.remaining()).to_vec()
    }

    #[test]
    fn a_structured_read_is_answered_with_chunks_as_it_allows() {
        for (flags, fragments) in [(0, Fragments::Many), (command_flags::DF, Fragments::One)] {
            let mut request = request(Command::READ, 1, 100, 12);
            request[4..6].copy_from_slice(&flags.to_be_bytes());
            let pieces = vec![data(3), data(2), Piece::Zeros(7)];
            let expected = content(100, pieces.clone(), fragments, true);
            assert_eq!(answer(structured(), &request, Ok(pieces)), expected);
        }
        let empty = request(Command::READ, 1, EXPORT_BYTES, 0);
        let expected = content(EXPORT_BYTES, vec![], Fragments::Many, true);
        assert_eq!(answer(structured(), &empty, Ok(vec![])), expected);
        assert_eq!(expected.len(), CHUNK_HEADER_BYTES);
    }

    #[test]
    fn a_failed_read_delivers_what_comes_before_only_where_the_client_can_tell() {
        let request = request(Command::READ, 1, 100, 12);
        for before in [vec![], vec![data(3)], vec![data(3), Piece::Zeros(8)]] {
            let simple = answer(session(), &request, failure(before.clone()));
            assert_eq!(simple, simple_reply(Some(Errno::EIO), 1));
            let place = 100 + total_bytes(&before);
            let expected = [
                content(100, before.clone(), Fragments::Many, false),
                error(Errno::EIO, "broken", Some(place)),
            ];
            assert_eq!(answer(structured(), &request, failure(before)), expected.concat());
        }
    }

    /// An offset "MUST lie within the original offset and length of the request".
    #[test]
    fn a_failed_read_of_no_bytes_has_no_place() {
        let request = request(Command::READ, 1, 100, 0);
        let expected = error(Errno::EIO, "broken", None);
        assert_eq!(answer(structured(), &request, failure(vec![])), expected);
    }

    #[test]
    fn structured_refusals_come_with_a_sentence() {
        for (request, refusal) in [
            (request(Command::READ, 1, EXPORT_BYTES, 1), Refusal::PastEnd),
            (request(Command::READ, 1, 0, u32::MAX), Refusal::TooLong),
            (request(Command::TRIM, 1, 0, 1), Refusal::ReadOnly),
            (request(Command::WRITE, 1, 0, 0), Refusal::ReadOnly),
            (request(Command::FLUSH, 1, 0, 1), Refusal::FlushOfRange),
            (request(Command(99), 1, 0, 1), Refusal::UnknownCommand),
        ] {
            let expected = error(refusal.errno(), refusal.message(), None);
            // A refused write is answered with the request that comes next.
            let mut session = structured();
            let mut input = BytesMut::from(&request[..]);
            assert!(session.next_read(&mut input).unwrap().is_none());
            assert_eq!(taken(&mut session), expected, "{refusal:?}");
        }
        let flush = request(Command::FLUSH, 1, 0, 0);
        let done = content(0, vec![], Fragments::Many, true);
        assert_eq!(answer(structured(), &flush, Ok(vec![])), done);
    }

    #[test]
    fn holes_are_owed_as_what_is_sent_of_them() {
        let mut session = structured();
        let mut input = BytesMut::from(&request(Command::READ, 1, 0, 1 << 20).repeat(100)[..]);
        let mut answered = 0;
        while let Some(read) = session.next_read(&mut input).unwrap() {
            session.reply(read, Ok(vec![Piece::Zeros(1 << 20)]));
            answered += 1;
        }
        assert_eq!(answered, 100, "zeros that are not sent stopped the client");
        assert_eq!(session.outbox().owed_bytes(), 100 * (CHUNK_HEADER_BYTES as u64 + 12));
    }

    #[test]
    fn replies_leave_in_the_order_in_which_reads_are_answered() {
        let mut session = session();
        let mut input = BytesMut::new();
        input.extend_from_slice(&request(Command::READ, 1, 0, 3));
        input.extend_from_slice(&request(Command::READ, 2, 0, 2));
        let first = session.next_read(&mut input).unwrap().unwrap();
        let second = session.next_read(&mut input).unwrap().unwrap();
        assert!(session.next_read(&mut input).unwrap().is_none());
        session.reply(second, pieces(2));
        session.reply(first, failure(vec![data(1)]));
        assert_eq!(
            taken(&mut session),
            [&simple_reply(None, 2)[..], &[7, 7], &simple_reply(Some(Errno::EIO), 1)].concat()
        );
    }

    #[test]
    fn a_reply_of_the_wrong_length_is_an_error_without_data() {
        let request = request(Command::READ, 1, 100, 3);
        let sentence = "the server read another number of bytes than was asked for";
        let wrong = [0, 2, 4].map(pieces);
        for outcome in wrong.into_iter().chain([3, 4].map(|length| failure(vec![data(length)]))) {
            let simple = answer(session(), &request, outcome.clone());
            assert_eq!(simple, simple_reply(Some(Errno::EIO), 1));
            let expected = error(Errno::EIO, sentence, Some(100));
            assert_eq!(answer(structured(), &request, outcome), expected);
        }
    }

    #[test]
    fn the_bytes_of_a_refused_write_are_passed_over_as_they_come() {
        let mut session = session();
        let mut input = BytesMut::from(&request(Command::WRITE, 1, 0, u32::MAX)[..]);
        let mut left = u64::from(u32::MAX);
        while left > 0 {
            assert!(session.next_read(&mut input).unwrap().is_none());
            assert!(input.is_empty() && taken(&mut session).is_empty());
            let some = left.min(1 << 30);
            input.resize(usize::try_from(some).unwrap(), 0x25);
            left -= some;
        }
        input.extend_from_slice(&request(Command::FLUSH, 2, 0, 0));
        assert!(session.next_read(&mut input).unwrap().is_none());
        assert_eq!(
            taken(&mut session),
            [simple_reply(Some(Errno::EPERM), 1), simple_reply(None, 2)].concat()
        );
    }

    #[test]
    fn a_client_that_takes_nothing_is_not_listened_to() {
        let mut session = session();
        let mut input = BytesMut::new();
        let mut reads = Vec::new();
        for cookie in 0..1000 {
            input.extend_from_slice(&request(Command::READ, cookie, 0, 1 << 20));
        }
        while let Some(read) = session.next_read(&mut input).unwrap() {
            reads.push(read);
        }
        assert_eq!(reads.len(), 32);
        assert!(!session.wants_input());
        for read in reads {
            session.reply(read, pieces(1 << 20));
        }
        assert!(session.next_read(&mut input).unwrap().is_none());
        session.outbox().advance(2 << 20);
        assert!(session.next_read(&mut input).unwrap().is_some());
    }

    #[test]
    fn refused_requests_stop_a_client_that_takes_nothing_too() {
        for (replies, reply_bytes) in [
            (Replies::Simple, SIMPLE_REPLY_BYTES),
            (Replies::Structured, error(Errno::EPERM, Refusal::ReadOnly.message(), None).len()),
        ] {
            let owed_bytes_max = 100 * reply_bytes;
            let mut session =
                Transmission::new(0, replies, owed_bytes_max as u64, Outbox::default());
            let mut input = BytesMut::from(&request(Command::TRIM, 1, 0, 1).repeat(1000)[..]);
            assert!(session.next_read(&mut input).unwrap().is_none());
            assert_eq!(taken(&mut session).len(), owed_bytes_max);
            assert_eq!(input.len(), 900 * REQUEST_BYTES);
        }
    }

    #[test]
    fn disconnecting_waits_for_what_was_accepted_and_looks_at_nothing_more() {
        let mut session = session();
        let mut input = BytesMut::from(&request(Command::READ, 1, 0, 1)[..]);
        input.extend_from_slice(&request(Command::DISC, 2, 0, 0));
        input.extend_from_slice(&request(Command::READ, 3, 0, 1));
        let read = session.next_read(&mut input).unwrap().unwrap();
        assert!(session.next_read(&mut input).unwrap().is_none());
        assert_eq!(session.ending(), Some(Ending::Disconnected));
        assert!(!session.is_over() && !session.wants_input());
        session.reply(read, pieces(1));
        assert!(!session.is_over());
        assert_eq!(taken(&mut session).len(), 17);
        assert!(session.is_over());
    }

    #[test]
    fn lost_framing_ends_the_session() {
        let mut input = BytesMut::from(&[0; REQUEST_BYTES][..]);
        assert_eq!(session().next_read(&mut input).unwrap_err(), BadMagic { found: 0 });
    }
}
