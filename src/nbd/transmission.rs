//! Requests to replies, for one client and one export. Section "Transmission".
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::{Buf, BytesMut};

use crate::nbd::block_status::{Described, is_sound, push_status};
use crate::nbd::chunks::{Fragments, push_content, push_done, push_error, push_whole};
use crate::nbd::limits::{EXTENTS_MAX, PART_BYTES, PARTS_AHEAD_BYTES, PREFETCH_BYTES_MAX};
use crate::nbd::parts::{End, InParts, Part};
use crate::nbd::reply::{ReplyTo, total_bytes};
use crate::nbd::request::{Action, Refusal, Request, StatusOf};
use crate::nbd::wire::{Errno, SIMPLE_REPLY_BYTES};
use crate::nbd::{BadMagic, Contexts, Outbox, Piece, Replies};

pub use crate::nbd::parts::Loaded;
pub use crate::nbd::request::Terms;

/// The client's requests go in, work comes out, its results go in, replies come out.
#[derive(Debug)]
pub struct Transmission {
    terms: Terms,
    /// Bytes that the client may be owed.
    allowed_bytes: u64,
    outbox: Outbox,
    /// What the work that was given out and not answered yet counts for, in bytes.
    working_bytes: u64,
    /// How much work that is, without the parts of a long request.
    working: usize,
    in_parts: Option<InParts>,
    passing: Option<PassingOver>,
    served: Served,
    is_stopping: bool,
    ending: Option<Ending>,
}

/// What was asked for and accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Served {
    /// Number of reads.
    pub reads: u64,
    /// Bytes of all of them together.
    pub read_bytes: u64,
}

/// A refused request whose payload is on its way. It is answered when that has passed: some clients
/// do not look for a reply before they have sent everything.
#[derive(Debug)]
struct PassingOver {
    to: ReplyTo,
    payload_bytes: u64,
    refusal: Refusal,
}

/// Why no more requests are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The client said goodbye.
    Disconnected,
    /// The client hung up, or the server is stopping.
    Finished,
    /// A reply was begun that cannot be completed, since what it promised was damaged meanwhile.
    /// Hanging up is the only way to say so.
    Broken,
}

/// What a client did that ends the session without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The stream has lost its framing.
    #[error("not an NBD request: {0}")]
    Magic(#[from] BadMagic),
    /// More bytes behind a request than any may have.
    #[error("a request with a payload of {0} bytes")]
    PayloadTooLong(u64),
}

/// Something that the client waits for. Neither cloned nor made elsewhere, so each is answered
/// once.
#[derive(Debug)]
pub enum Work {
    /// Bytes. Answer with [`Transmission::reply`].
    Read(Read),
    /// That bytes can be read. Answer with [`Transmission::loaded`].
    Load(Load),
    /// Extents. Answer with [`Transmission::describe`].
    Status(Status),
}

/// A read, or a part of one. All of it is in the export.
#[derive(Debug)]
pub struct Read {
    /// First byte of the export.
    pub offset: u64,
    /// Number of bytes, at most [`PART_BYTES`].
    pub length: u32,
    answer: Answer,
}

/// What becomes of the bytes of a read.
#[derive(Debug)]
enum Answer {
    Whole(ReplyTo, Fragments),
    Part,
}

/// Bytes that are to be fetched and checked, and not sent. All of them are in the export.
#[derive(Debug)]
pub struct Load {
    /// First byte of the export.
    pub offset: u64,
    /// Number of bytes, at most [`PART_BYTES`].
    pub length: u32,
}

/// A question about extents. All of the range is in the export.
#[derive(Debug)]
pub struct Status {
    /// First byte of the export.
    pub offset: u64,
    /// Number of bytes. Not 0.
    pub length: u64,
    /// What is asked. Each must be answered.
    pub contexts: Contexts,
    /// Most extents that are wanted for each context.
    pub extents_max: usize,
    to: ReplyTo,
}

/// Why something cannot be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong.
    pub error: Errno,
    /// The same, for the person at the client. It says nothing of the server's own files.
    pub message: &'static str,
    /// Where in the export, if that is known.
    pub position: Option<u64>,
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
    /// A session with a client that has chosen an export. What it is owed already, the last
    /// replies of the negotiation, is in the outbox.
    #[must_use]
    pub fn new(terms: Terms, outbox: Outbox) -> Self {
        Self {
            terms,
            allowed_bytes: 0,
            outbox,
            working_bytes: 0,
            working: 0,
            in_parts: None,
            passing: None,
            served: Served::default(),
            is_stopping: false,
            ending: None,
        }
    }

    /// The next thing to do. Everything that needs nothing of the export is answered on the way.
    /// `None` if there is no whole request in the input, or the client has to take replies first,
    /// or the session ends.
    ///
    /// # Errors
    ///
    /// [`Violation`] if nothing that follows can be trusted: hang up.
    pub fn next_work(&mut self, input: &mut BytesMut) -> Result<Option<Work>, Violation> {
        loop {
            if self.in_parts.is_some() {
                if let Some(part) = self.next_part() {
                    return Ok(Some(part));
                }
                if !self.end_parts() {
                    return Ok(None);
                }
            }
            if self.ending.is_some() || !self.pass_over(input) {
                return Ok(None);
            }
            let Some((request, rest)) = Request::decode(input, self.terms.replies)? else {
                return Ok(None);
            };
            let mut action = request.check(&self.terms);
            let mut taken = input.len().saturating_sub(rest.len());
            if let Action::FilteredStatus { payload_bytes } = action {
                let Some(payload) = rest.get(..payload_bytes) else { return Ok(None) };
                let status = request.check_filter(payload, &self.terms);
                action = status.map_or_else(Action::Refuse, Action::Status);
                taken = taken.saturating_add(payload_bytes);
            }
            if self.is_stopping {
                action = refused_while_stopping(action);
            }
            if !self.affords(cost(&action)) {
                return Ok(None);
            }
            input.advance(taken);
            if let Some(work) = self.accept(&request, action)? {
                return Ok(Some(work));
            }
        }
    }

    /// Answers a read with its bytes, which must be as many as it asked for, or with an error. A
    /// simple reply with an error carries no bytes, a structured one those before the failure.
    pub fn reply(&mut self, read: Read, outcome: Result<Vec<Piece>, ReadFailure>) {
        let Read { offset, length, answer } = read;
        self.working_bytes = self.working_bytes.saturating_sub(read_cost(length));
        let outcome = checked(outcome, length);
        let outbox = &mut self.outbox;
        let (to, fragments) = match answer {
            Answer::Whole(to, fragments) => (to, fragments),
            Answer::Part => {
                if let Some(request) = &mut self.in_parts {
                    request.read(offset, outcome, outbox);
                }
                self.end_parts();
                return;
            }
        };
        self.working = self.working.saturating_sub(1);
        match (to.replies, outcome) {
            (_, Ok(pieces)) => push_whole(to, offset, pieces, fragments, outbox),
            // There is no place for the bytes before.
            (Replies::Simple, Err(failure)) => {
                push_error(to, failure.error, failure.message, None, outbox);
            }
            (Replies::Structured | Replies::Extended, Err(failure)) => {
                let ReadFailure { before, error, message } = failure;
                // A read of no bytes has no place either.
                let place = (length != 0).then(|| offset.saturating_add(total_bytes(&before)));
                push_content(to, offset, before, fragments, false, outbox);
                push_error(to, error, message, place, outbox);
            }
        }
    }

    /// Says that bytes are loaded, or why they cannot be.
    pub fn loaded(&mut self, load: Load, outcome: Result<Loaded, Failure>) {
        let Load { offset, length: _ } = load;
        self.working_bytes = self.working_bytes.saturating_sub(LOAD_COST);
        if let Some(request) = &mut self.in_parts {
            request.loaded(offset, outcome);
        }
        self.end_parts();
    }

    /// Answers a question about extents, for each context that it asks about.
    pub fn describe(&mut self, status: Status, outcome: Result<Vec<Described>, Failure>) {
        let Status { length, contexts, to, .. } = status;
        self.working_bytes = self.working_bytes.saturating_sub(status_cost(contexts));
        self.working = self.working.saturating_sub(1);
        let wrong = || {
            let message = "the server found no extents where some were asked for";
            Failure { error: Errno::EIO, message, position: None }
        };
        let outcome = outcome.and_then(|described| {
            let is_sound = is_sound(&described, length)
                && described.iter().map(|one| one.context).eq(contexts.iter());
            if is_sound { Ok(described) } else { Err(wrong()) }
        });
        match outcome {
            Ok(described) => push_status(to, &described, &mut self.outbox),
            Err(failure) => self.fail(to, failure.error, failure.message),
        }
    }

    /// How much the client may be owed from now on, in bytes. One part of a read may come on top
    /// where nothing is owed, so that it always gets on.
    pub fn allow(&mut self, bytes: u64) {
        self.allowed_bytes = bytes;
    }

    /// What the client is owed: bytes that it has not taken, and those that are on their way.
    #[must_use]
    pub fn owed_bytes(&self) -> u64 {
        let held = self.in_parts.as_ref().map_or(0, InParts::held_bytes);
        self.working_bytes.saturating_add(held).saturating_add(self.outbox.owed_bytes())
    }

    /// Whether to read from the socket. False while too much is owed: a client that does not take
    /// its replies stops itself, and nobody else.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        let owed = self.owed_bytes();
        self.ending.is_none() && self.in_parts.is_none() && (owed == 0 || owed < self.allowed_bytes)
    }

    /// What the client is owed. Write from it.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// What was accepted is answered, and what comes from now on is answered with `ESHUTDOWN`.
    pub fn stop(&mut self) {
        self.is_stopping = true;
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

    /// What was accepted until now.
    #[must_use]
    pub fn served(&self) -> Served {
        self.served
    }

    /// Whether everything that was accepted is answered and sent.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.working == 0 && self.in_parts.is_none() && !self.outbox.has_remaining()
    }

    /// Whether everything is answered and sent, and no more will come.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.ending.is_some() && self.is_idle()
    }

    /// What becomes of a request that can be afforded.
    fn accept(&mut self, request: &Request, action: Action) -> Result<Option<Work>, Violation> {
        let replies = self.terms.replies;
        let to = ReplyTo { cookie: request.cookie, offset: request.offset, replies };
        if let Action::Read { length, .. } = action {
            self.served.reads = self.served.reads.saturating_add(1);
            self.served.read_bytes = self.served.read_bytes.saturating_add(u64::from(length));
        }
        match action {
            Action::Read { length, fragments, .. } if length > PART_BYTES => {
                self.in_parts = Some(InParts::of_read(to, length, fragments));
            }
            Action::Read { offset, length, fragments } => {
                self.begin(read_cost(length));
                let answer = Answer::Whole(to, fragments);
                return Ok(Some(Work::Read(Read { offset, length, answer })));
            }
            Action::Load { offset: _, length } => {
                self.in_parts = Some(InParts::of_load(to, length.min(PREFETCH_BYTES_MAX)));
            }
            Action::Status(StatusOf { offset, length, contexts, first_only }) => {
                self.begin(status_cost(contexts));
                let extents_max = if first_only { 1 } else { EXTENTS_MAX };
                let status = Status { offset, length, contexts, extents_max, to };
                return Ok(Some(Work::Status(status)));
            }
            Action::Flush => push_done(to, &mut self.outbox),
            Action::Refuse(refusal) => self.fail(to, refusal.errno(), refusal.message()),
            Action::PassOver { payload_bytes, refusal } => {
                self.passing = Some(PassingOver { to, payload_bytes, refusal });
            }
            Action::Disconnect => self.ending = Some(Ending::Disconnected),
            // A filter was looked at before, as far as it was there.
            Action::HangUp | Action::FilteredStatus { .. } => {
                return Err(Violation::PayloadTooLong(request.length));
            }
        }
        Ok(None)
    }

    fn begin(&mut self, cost: u64) {
        self.working = self.working.saturating_add(1);
        self.working_bytes = self.working_bytes.saturating_add(cost);
    }

    fn affords(&self, cost: u64) -> bool {
        let owed = self.owed_bytes();
        owed == 0 || owed.saturating_add(cost) <= self.allowed_bytes
    }

    fn next_part(&mut self) -> Option<Work> {
        let (owed, part) = (self.owed_bytes(), read_cost(PART_BYTES));
        let is_ahead = owed.saturating_add(part) > PARTS_AHEAD_BYTES;
        let is_affordable = self.affords(part);
        let request = self.in_parts.as_mut()?;
        if is_ahead || !is_affordable {
            return None;
        }
        Some(match request.next_part(self.working == 0, &mut self.outbox)? {
            Part::Read { offset, length } => {
                self.working_bytes = self.working_bytes.saturating_add(read_cost(length));
                Work::Read(Read { offset, length, answer: Answer::Part })
            }
            Part::Load { offset, length } => {
                self.working_bytes = self.working_bytes.saturating_add(LOAD_COST);
                Work::Load(Load { offset, length })
            }
        })
    }

    /// Whether there is no long request any more.
    fn end_parts(&mut self) -> bool {
        let ended = self.in_parts.as_mut().and_then(|request| request.ended(&mut self.outbox));
        if let Some(end) = ended {
            self.in_parts = None;
            if end == End::Broken {
                self.ending = Some(Ending::Broken);
            }
        }
        self.in_parts.is_none()
    }

    fn fail(&mut self, to: ReplyTo, error: Errno, message: &str) {
        push_error(to, error, message, None, &mut self.outbox);
    }

    /// Drops what there is of the payload of a refused request. False if more is to come.
    fn pass_over(&mut self, input: &mut BytesMut) -> bool {
        let Some(passing) = &mut self.passing else {
            return true;
        };
        let left = usize::try_from(passing.payload_bytes).unwrap_or(usize::MAX);
        let passed = left.min(input.len());
        input.advance(passed);
        passing.payload_bytes = passing.payload_bytes.saturating_sub(passed as u64);
        if passing.payload_bytes != 0 {
            return false;
        }
        let PassingOver { to, refusal, .. } = *passing;
        self.passing = None;
        self.fail(to, refusal.errno(), refusal.message());
        true
    }
}

/// Whoever asks after the stop is told, whatever it asks for.
fn refused_while_stopping(action: Action) -> Action {
    let refusal = Refusal::ShuttingDown;
    match action {
        Action::Disconnect | Action::HangUp => action,
        Action::PassOver { payload_bytes, .. } => Action::PassOver { payload_bytes, refusal },
        Action::Read { .. }
        | Action::Load { .. }
        | Action::Status(_)
        | Action::FilteredStatus { .. }
        | Action::Flush
        | Action::Refuse(_) => Action::Refuse(refusal),
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

/// What a part that is only loaded counts for, in bytes: it stays in the cache.
const LOAD_COST: u64 = 64;

/// What a reply takes beside the bytes that were asked for, in bytes: headers of several chunks, or an
/// error with its sentence.
const REPLY_COST: u64 = 256;

/// What a read counts for while it is not answered, in bytes: short ones cost memory too.
fn read_cost(length: u32) -> u64 {
    u64::from(length).saturating_add(REPLY_COST)
}

/// What a question about extents counts for while it is not answered, in bytes.
fn status_cost(contexts: Contexts) -> u64 {
    (contexts.count() as u64).saturating_mul(EXTENTS_MAX as u64).saturating_mul(16)
}

/// What a request counts for when it is accepted. Long ones are weighed part by part.
fn cost(action: &Action) -> u64 {
    match action {
        Action::Read { length, .. } => read_cost(PART_BYTES.min(*length)),
        Action::Status(status) => status_cost(status.contexts),
        Action::Load { .. }
        | Action::FilteredStatus { .. }
        | Action::Flush
        | Action::Disconnect
        | Action::Refuse(_)
        | Action::PassOver { .. }
        | Action::HangUp => SIMPLE_REPLY_BYTES as u64,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::nbd::limits::OWED_BYTES_MAX;
    use crate::nbd::reply::simple_reply;
    use crate::nbd::wire::{CHUNK_HEADER_BYTES, Command, REQUEST_BYTES, command_flags};

    const EXPORT_BYTES: u64 = 1 << 20;

    const PART: u64 = PART_BYTES as u64;

    fn session() -> Transmission {
        session_with(Replies::Simple)
    }

    fn structured() -> Transmission {
        session_with(Replies::Structured)
    }

    fn session_with(replies: Replies) -> Transmission {
        let terms = Terms { export_bytes: EXPORT_BYTES, replies, contexts: Contexts::first(2) };
        let mut session = Transmission::new(terms, Outbox::default());
        session.allow(OWED_BYTES_MAX);
        session
    }

    /// The next work, which is a read.
    fn next_read(session: &mut Transmission, input: &mut BytesMut) -> Option<Read> {
        session.next_work(input).unwrap().map(|work| match work {
            Work::Read(read) => read,
            other @ (Work::Load(_) | Work::Status(_)) => panic!("{other:?}"),
        })
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
        if let Some(read) = next_read(&mut session, &mut input) {
            session.reply(read, outcome);
        }
        assert!(input.is_empty());
        taken(&mut session)
    }

    fn to(offset: u64) -> ReplyTo {
        ReplyTo { cookie: 1, offset, replies: Replies::Structured }
    }

    fn content(offset: u64, pieces: Vec<Piece>, fragments: Fragments, is_last: bool) -> Vec<u8> {
        let mut outbox = Outbox::default();
        push_content(to(offset), offset, pieces, fragments, is_last, &mut outbox);
        outbox.copy_to_bytes(outbox.remaining()).to_vec()
    }

    fn error(error: Errno, message: &str, position: Option<u64>) -> Vec<u8> {
        let mut outbox = Outbox::default();
        push_error(to(0), error, message, position, &mut outbox);
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
            assert!(next_read(&mut session, &mut input).is_none());
            assert_eq!(taken(&mut session), expected, "{refusal:?}");
        }
        let flush = request(Command::FLUSH, 1, 0, 0);
        let done = content(0, vec![], Fragments::Many, true);
        assert_eq!(answer(structured(), &flush, Ok(vec![])), done);
    }

    #[test]
    fn holes_are_owed_as_what_is_sent_of_them() {
        let mut session = structured();
        let mut input = BytesMut::from(&request(Command::READ, 1, 0, PART_BYTES).repeat(100)[..]);
        let mut answered = 0;
        while let Some(read) = next_read(&mut session, &mut input) {
            let bytes = u64::from(read.length);
            session.reply(read, Ok(vec![Piece::Zeros(bytes)]));
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
        let first = next_read(&mut session, &mut input).unwrap();
        let second = next_read(&mut session, &mut input).unwrap();
        assert!(next_read(&mut session, &mut input).is_none());
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
            assert!(next_read(&mut session, &mut input).is_none());
            assert!(input.is_empty() && taken(&mut session).is_empty());
            let some = left.min(1 << 30);
            input.resize(usize::try_from(some).unwrap(), 0x25);
            left -= some;
        }
        input.extend_from_slice(&request(Command::FLUSH, 2, 0, 0));
        assert!(next_read(&mut session, &mut input).is_none());
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
            input.extend_from_slice(&request(Command::READ, cookie, 0, PART_BYTES));
        }
        session.allow(32 * (PART + REPLY_COST));
        while let Some(read) = next_read(&mut session, &mut input) {
            reads.push(read);
        }
        assert_eq!(reads.len(), 32);
        assert!(!session.wants_input());
        for read in reads {
            session.reply(read, pieces(PART_BYTES));
        }
        assert!(next_read(&mut session, &mut input).is_none());
        session.outbox().advance(PART_BYTES as usize + 32 * 256);
        assert!(next_read(&mut session, &mut input).is_some());
        assert!(next_read(&mut session, &mut input).is_none());
    }

    #[test]
    fn a_client_that_is_allowed_nothing_gets_on_all_the_same() {
        let mut session = session();
        session.allow(0);
        let mut input = BytesMut::from(&request(Command::READ, 1, 0, PART_BYTES).repeat(3)[..]);
        for _ in 0..3 {
            assert!(session.wants_input());
            let read = next_read(&mut session, &mut input).unwrap();
            assert!(next_read(&mut session, &mut input).is_none() && !session.wants_input());
            session.reply(read, pieces(PART_BYTES));
            assert!(next_read(&mut session, &mut input).is_none());
            assert_eq!(taken(&mut session).len(), PART_BYTES as usize + 16);
        }
    }

    #[test]
    fn a_long_read_is_never_in_memory_as_a_whole() {
        for replies in [Replies::Simple, Replies::Structured, Replies::Extended] {
            let terms = Terms { export_bytes: 1 << 30, replies, contexts: Contexts::default() };
            let mut session = Transmission::new(terms, Outbox::default());
            session.allow(OWED_BYTES_MAX);
            let mut bytes = request(Command::READ, 1, 0, 32 << 20);
            if replies == Replies::Extended {
                bytes = extended(0, Command::READ, 1, 0, 32 << 20);
            }
            let mut input = BytesMut::from(&bytes[..]);
            let (mut sent, mut most) = (0, 0);
            loop {
                while let Some(work) = session.next_work(&mut input).unwrap() {
                    match work {
                        Work::Read(read) => {
                            let bytes = read.length;
                            session.reply(read, pieces(bytes));
                        }
                        Work::Load(load) => session.loaded(load, Ok(Loaded::Data)),
                        Work::Status(status) => panic!("{status:?}"),
                    }
                    most = session.owed_bytes().max(most);
                }
                if session.is_idle() {
                    break;
                }
                sent += taken(&mut session).len();
            }
            assert!(((32 << 20)..(32 << 20) + 8192).contains(&sent), "{sent}");
            assert!(most <= PARTS_AHEAD_BYTES, "{most} bytes at a time");
        }
    }

    #[test]
    fn what_comes_behind_a_long_request_waits_for_it() {
        let mut session = session();
        let mut input = BytesMut::from(&request(Command::CACHE, 1, 0, 2 * PART_BYTES)[..]);
        input.extend_from_slice(&request(Command::FLUSH, 2, 0, 0));
        let mut loads = Vec::new();
        while let Some(work) = session.next_work(&mut input).unwrap() {
            let Work::Load(load) = work else { panic!("{work:?}") };
            loads.push(load);
        }
        assert_eq!(loads.len(), 2);
        assert!(taken(&mut session).is_empty() && !session.is_idle());
        for load in loads {
            session.loaded(load, Ok(Loaded::Data));
        }
        assert!(session.next_work(&mut input).unwrap().is_none());
        let expected = [simple_reply(None, 1), simple_reply(None, 2)].concat();
        assert_eq!(taken(&mut session), expected);
    }

    /// Advice costs no more than the longest read, however long the range is.
    #[test]
    fn of_a_long_range_only_the_beginning_is_loaded() {
        let terms = Terms {
            export_bytes: 1 << 40,
            replies: Replies::Simple,
            contexts: Contexts::default(),
        };
        let mut session = Transmission::new(terms, Outbox::default());
        let mut input = BytesMut::from(&request(Command::CACHE, 1, 0, u32::MAX)[..]);
        let mut loaded = 0;
        while let Some(work) = session.next_work(&mut input).unwrap() {
            let Work::Load(load) = work else { panic!("{work:?}") };
            loaded += u64::from(load.length);
            session.loaded(load, Ok(Loaded::Data));
        }
        assert_eq!(loaded, PREFETCH_BYTES_MAX);
        assert_eq!(taken(&mut session), simple_reply(None, 1));
    }

    fn extended(flags: u16, command: Command, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
        let mut bytes = b"\x21\xe4\x1c\x71".to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&command.0.to_be_bytes());
        for number in [cookie, offset, length] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    #[test]
    fn extents_are_described_in_the_contexts_that_were_asked_for() {
        let flags = command_flags::PAYLOAD_LEN;
        let mut filtered = extended(flags, Command::BLOCK_STATUS, 1, 7, 12);
        filtered.extend_from_slice(b"\0\0\0\0\0\0\0\x05\0\0\0\x02");
        for (bytes, length, count) in
            [(extended(0, Command::BLOCK_STATUS, 1, 7, 5), 5, 2), (filtered, 5, 1)]
        {
            let mut session = session_with(Replies::Extended);
            // Not before all of it is there.
            let (most, last) = bytes.split_at(bytes.len() - 1);
            let mut input = BytesMut::from(most);
            assert!(session.next_work(&mut input).unwrap().is_none());
            input.extend_from_slice(last);
            let Some(Work::Status(status)) = session.next_work(&mut input).unwrap() else {
                panic!()
            };
            assert!(input.is_empty());
            assert_eq!((status.offset, status.length), (7, length));
            let extents = vec![crate::nbd::Extent { bytes: 5, status: 3 }];
            let described: Vec<Described> = status
                .contexts
                .iter()
                .map(|context| Described { context, extents: extents.clone() })
                .collect();
            session.describe(status, Ok(described));
            assert_eq!(taken(&mut session).len(), count * (32 + 8 + 16));
            assert!(session.is_idle());
        }
    }

    #[test]
    fn extents_that_are_not_what_was_asked_for_are_an_error() {
        let bytes = request(Command::BLOCK_STATUS, 1, 0, 100);
        let extents = |bytes| vec![crate::nbd::Extent { bytes, status: 0 }];
        let contexts: Vec<_> = Contexts::first(3).iter().collect();
        let of =
            |place: usize, bytes| Described { context: contexts[place], extents: extents(bytes) };
        for (described, is_right) in [
            (vec![of(0, 100), of(1, 10)], true),
            (vec![of(0, 100)], false),
            (vec![of(1, 100), of(0, 100)], false),
            (vec![of(0, 100), of(1, 100), of(2, 100)], false),
            (vec![of(0, 101), of(1, 100)], false),
            (vec![of(0, 0), of(1, 100)], false),
            (vec![], false),
        ] {
            let mut session = structured();
            let mut input = BytesMut::from(&bytes[..]);
            let Some(Work::Status(status)) = session.next_work(&mut input).unwrap() else {
                panic!()
            };
            session.describe(status, Ok(described));
            let kind = taken(&mut session)[6];
            assert_eq!(kind == 0, is_right);
        }
    }

    #[test]
    fn after_the_stop_requests_are_refused_and_what_was_accepted_is_answered() {
        for replies in [Replies::Simple, Replies::Structured] {
            let mut session = session_with(replies);
            let mut input = BytesMut::from(&request(Command::READ, 1, 0, 10)[..]);
            let read = next_read(&mut session, &mut input).unwrap();
            session.stop();
            assert!(session.wants_input());
            for command in [
                Command::READ,
                Command::WRITE,
                Command::FLUSH,
                Command::CACHE,
                Command::BLOCK_STATUS,
            ] {
                input.extend_from_slice(&request(command, 9, 0, 0));
                assert!(session.next_work(&mut input).unwrap().is_none());
                assert!(session.next_work(&mut input).unwrap().is_none());
                let reply = taken(&mut session);
                let at = if replies == Replies::Simple { 4 } else { 20 };
                assert_eq!(reply[at..at + 4], 108_u32.to_be_bytes(), "{command:?}");
            }
            session.reply(read, pieces(10));
            let reply = taken(&mut session);
            assert!(reply.ends_with(&[7; 10]) && session.is_idle() && !session.is_over());
            input.extend_from_slice(&request(Command::DISC, 9, 0, 0));
            assert!(session.next_work(&mut input).unwrap().is_none());
            assert!(session.is_over());
        }
    }

    /// "a server SHOULD initiate hard disconnect".
    #[test]
    fn a_payload_beyond_measure_ends_the_session_and_a_shorter_one_is_passed_over() {
        let flags = command_flags::PAYLOAD_LEN;
        let mut session = session_with(Replies::Extended);
        let long = extended(flags, Command::WRITE, 1, 0, (32 << 20) + 1);
        let ended = session.next_work(&mut BytesMut::from(&long[..])).unwrap_err();
        assert_eq!(ended, Violation::PayloadTooLong((32 << 20) + 1));

        let mut session = session_with(Replies::Extended);
        let mut input = BytesMut::from(&extended(flags, Command::READ, 1, 0, 5)[..]);
        input.extend_from_slice(b"bytes");
        input.extend_from_slice(&extended(0, Command::FLUSH, 2, 0, 0));
        assert!(session.next_work(&mut input).unwrap().is_none());
        let sent = taken(&mut session);
        assert_eq!(sent[4..8], [0, 1, 0x80, 1]);
        assert_eq!(sent[sent.len() - 32..][4..16], [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn refused_requests_stop_a_client_that_takes_nothing_too() {
        for (replies, reply_bytes) in [
            (Replies::Simple, SIMPLE_REPLY_BYTES),
            (Replies::Structured, error(Errno::EPERM, Refusal::ReadOnly.message(), None).len()),
        ] {
            let owed_bytes_max = 100 * reply_bytes;
            let mut session = session_with(replies);
            session.allow(owed_bytes_max as u64);
            let mut input = BytesMut::from(&request(Command::TRIM, 1, 0, 1).repeat(1000)[..]);
            assert!(next_read(&mut session, &mut input).is_none());
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
        let read = next_read(&mut session, &mut input).unwrap();
        assert!(next_read(&mut session, &mut input).is_none());
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
        assert_eq!(
            session().next_work(&mut input).unwrap_err(),
            Violation::Magic(BadMagic { found: 0 })
        );
    }
}
