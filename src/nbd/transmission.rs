//! Requests to replies, for one client and one export. Section "Transmission".
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::{Buf, BytesMut};

use crate::nbd::block_status::{Described, is_sound, push_status};
use crate::nbd::chunks::{push_content, push_done, push_error, push_whole};
use crate::nbd::error_counts::ErrorCounts;
use crate::nbd::limits::{EXTENTS_MAX, PART_BYTES, PARTS_AHEAD_BYTES, PREFETCH_BYTES_MAX};
use crate::nbd::parts::{End, InParts, Part};
use crate::nbd::reply::{ReplyTo, total_bytes};
use crate::nbd::request::{Action, Refusal, Request, StatusOf};
use crate::nbd::wire::{Errno, SIMPLE_REPLY_BYTES};
use crate::nbd::work::{Answer, Failure, Load, Read, ReadFailure, Status, Work};
use crate::nbd::{BadMagic, Contexts, Outbox, Piece, Replies};

pub use crate::nbd::parts::Loaded;
pub use crate::nbd::request::Terms;

#[cfg(test)]
mod tests;

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
    /// Number of requests to load bytes.
    pub loads: u64,
    /// Number of questions about extents.
    pub statuses: u64,
    /// Number of flushes.
    pub flushes: u64,
    /// Number of requests that were refused.
    pub refused: u64,
    /// Errors that were answered, refusals among them.
    pub errors: ErrorCounts,
}

impl Served {
    fn count(&mut self, action: &Action) {
        let counter = match action {
            Action::Read { length, .. } => {
                self.read_bytes = self.read_bytes.saturating_add(u64::from(*length));
                &mut self.reads
            }
            Action::Load { .. } => &mut self.loads,
            Action::Status(_) | Action::FilteredStatus { .. } => &mut self.statuses,
            Action::Flush => &mut self.flushes,
            Action::Refuse(_) | Action::PassOver { .. } => &mut self.refused,
            Action::Disconnect | Action::HangUp => return,
        };
        *counter = counter.saturating_add(1);
    }
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

    /// Answers a read with its bytes, which must be as many as it asked for. What held them is left empty.
    pub fn reply_with(&mut self, read: Read, pieces: &mut Vec<Piece>) {
        let is_right = total_bytes(pieces) == u64::from(read.length);
        match read.answer {
            Answer::Whole(to, fragments) if is_right => {
                self.working_bytes = self.working_bytes.saturating_sub(read_cost(read.length));
                self.working = self.working.saturating_sub(1);
                push_whole(to, read.offset, pieces, fragments, &mut self.outbox);
            }
            // The others take their time.
            Answer::Whole(..) | Answer::Part => self.reply(read, Ok(std::mem::take(pieces))),
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
                let ReadFailure { before, error, message, is_damage: _ } = failure;
                // A read of no bytes has no place either.
                let place = (length != 0).then(|| offset.saturating_add(total_bytes(&before)));
                push_content(to, offset, before, fragments, false, outbox);
                push_error(to, error, message, place, outbox);
            }
        }
    }

    /// Says that bytes are loaded, or why they cannot be.
    pub fn loaded(&mut self, load: Load, outcome: Result<Loaded, Failure>) {
        let Load { offset, length: _, sealed: () } = load;
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
            Failure { error: Errno::EIO, message, position: None, is_damage: false }
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

    /// Gives memory back while nothing is to be done.
    pub fn rest(&mut self) {
        self.outbox.rest();
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
        Served { errors: self.outbox.errors(), ..self.served }
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
        self.served.count(&action);
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
                Work::Load(Load { offset, length, sealed: () })
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
    Err(ReadFailure { before: Vec::new(), error: Errno::EIO, message, is_damage: false })
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
