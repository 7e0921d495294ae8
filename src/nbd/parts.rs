//! A request that is too long to be answered at once: fetched in parts, answered in order.
//!
//! None of it is ever in memory as a whole. Where chunks may say of each part whether it is good,
//! each is sent as it comes. Where one header promises all the bytes, everything is loaded and
//! checked before the first of them is sent, and then read again.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;
use std::ops::Range;

use crate::nbd::chunks::{
    Fragments, push_content, push_data_header, push_done, push_error, push_whole,
};
use crate::nbd::limits::PART_BYTES;
use crate::nbd::reply::{ReplyTo, simple_reply, total_bytes};
use crate::nbd::wire::chunk_flags;
use crate::nbd::work::{Failure, ReadFailure};
use crate::nbd::{Outbox, Piece, Replies};

/// One request of which parts are on their way.
#[derive(Debug)]
pub(crate) struct InParts {
    to: ReplyTo,
    range: Range<u64>,
    /// What follows when everything is loaded.
    then: Then,
    stage: Stage,
    /// Where the next part begins that is asked for.
    next: u64,
    /// How many parts were asked for and have not come.
    awaited: usize,
    /// Parts that came before their turn, by their place.
    early: BTreeMap<u64, Result<Vec<Piece>, ReadFailure>>,
    early_bytes: u64,
    /// Where the next part begins that is sent.
    sent: u64,
    /// Zeros before that which were not sent yet: with those of the next part they are one hole.
    zeros: u64,
    /// Whether everything that was loaded until now reads as zeros.
    is_hole: bool,
    /// What was wrong first.
    failure: Option<(u64, Failure)>,
}

/// What is done with the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// They are loaded and checked, and nothing is sent.
    Loading,
    /// They are sent, each with headers of its own.
    Chunks,
    /// They are sent behind one header that has promised all of them.
    Promised,
    /// The answer is complete, or is not worth completing.
    Over(End),
}

/// What loading is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Nothing: that was the request.
    Done,
    /// One header, and all the bytes.
    Promise,
}

/// What is known of bytes that were loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loaded {
    /// They are stored nowhere and read as zeros.
    Zeros,
    /// There are some that are stored.
    Data,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It is answered, with an error perhaps.
    Answered,
    /// Some of what was promised cannot be sent. There is no way to say so: hang up.
    Broken,
}

/// A part that is needed next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Its bytes.
    Read { offset: u64, length: u32 },
    /// That it is loaded and good.
    Load { offset: u64, length: u32 },
}

impl InParts {
    /// A long read.
    pub(crate) fn of_read(to: ReplyTo, length: u32, fragments: Fragments) -> Self {
        let promise = to.replies == Replies::Simple || fragments == Fragments::One;
        let stage = if promise { Stage::Loading } else { Stage::Chunks };
        Self::new(to, u64::from(length), Then::Promise, stage)
    }

    /// Bytes that are to be quick to read.
    pub(crate) fn of_load(to: ReplyTo, length: u64) -> Self {
        Self::new(to, length, Then::Done, Stage::Loading)
    }

    fn new(to: ReplyTo, length: u64, then: Then, stage: Stage) -> Self {
        let range = to.offset..to.offset.saturating_add(length);
        let (next, sent) = (range.start, range.start);
        let (awaited, early, failure) = (0, BTreeMap::new(), None);
        Self {
            to,
            range,
            then,
            stage,
            next,
            awaited,
            early,
            early_bytes: 0,
            sent,
            zeros: 0,
            is_hole: true,
            failure,
        }
    }

    /// The next part that is needed, if more are. What a header has promised must not be
    /// interrupted, so that begins only when `nothing_else` is on its way.
    pub(crate) fn next_part(&mut self, nothing_else: bool, outbox: &mut Outbox) -> Option<Part> {
        if self.stage == Stage::Loading && self.is_all_in() && !self.is_over() {
            match self.then {
                Then::Promise if !nothing_else => return None,
                Then::Promise => self.promise(outbox),
                Then::Done => {
                    push_done(self.to, outbox);
                    self.stage = Stage::Over(End::Answered);
                }
            }
        }
        if self.next >= self.range.end || self.is_over() || self.failure.is_some() {
            return None;
        }
        let part_bytes = u64::from(PART_BYTES);
        // To a multiple of the length of a part, where blocks begin too.
        let end = self.next.checked_next_multiple_of(part_bytes).unwrap_or(u64::MAX);
        let end = if end == self.next { end.saturating_add(part_bytes) } else { end };
        let offset = self.next;
        self.next = end.min(self.range.end);
        self.awaited = self.awaited.saturating_add(1);
        let length = u32::try_from(self.next.saturating_sub(offset)).unwrap_or(PART_BYTES);
        Some(match self.stage {
            Stage::Loading => Part::Load { offset, length },
            Stage::Chunks | Stage::Promised | Stage::Over(_) => Part::Read { offset, length },
        })
    }

    /// A part that was loaded, or cannot be.
    pub(crate) fn loaded(&mut self, offset: u64, outcome: Result<Loaded, Failure>) {
        self.awaited = self.awaited.saturating_sub(1);
        match outcome {
            Ok(Loaded::Zeros) => {}
            Ok(Loaded::Data) => self.is_hole = false,
            Err(failure) => {
                if self.failure.as_ref().is_none_or(|(first, _)| offset < *first) {
                    self.failure = Some((offset, failure));
                }
            }
        }
    }

    /// A part that was read, or cannot be.
    pub(crate) fn read(
        &mut self,
        offset: u64,
        outcome: Result<Vec<Piece>, ReadFailure>,
        outbox: &mut Outbox,
    ) {
        self.awaited = self.awaited.saturating_sub(1);
        self.early_bytes = self.early_bytes.saturating_add(held_bytes(&outcome));
        self.early.insert(offset, outcome);
        while !self.is_over()
            && self.failure.is_none()
            && let Some(outcome) = self.early.remove(&self.sent)
        {
            self.early_bytes = self.early_bytes.saturating_sub(held_bytes(&outcome));
            self.send(outcome, outbox);
        }
    }

    /// Bytes of the parts that came before their turn.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.early_bytes
    }

    /// How it ended, when nothing is awaited any more. Until then no other request may begin.
    pub(crate) fn ended(&mut self, outbox: &mut Outbox) -> Option<End> {
        if self.awaited != 0 {
            return None;
        }
        if let Some((offset, failure)) = self.failure.take() {
            if self.stage == Stage::Promised {
                // Whatever came now would be taken for what was promised.
                self.stage = Stage::Over(End::Broken);
            } else {
                let place = failure.position.unwrap_or(offset);
                push_error(self.to, failure.error, failure.message, Some(place), outbox);
                self.stage = Stage::Over(End::Answered);
            }
        }
        match self.stage {
            Stage::Over(end) => Some(end),
            Stage::Loading | Stage::Chunks | Stage::Promised => None,
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over(_))
    }

    fn is_all_in(&self) -> bool {
        self.next >= self.range.end && self.awaited == 0 && self.failure.is_none()
    }

    /// Everything was good a moment ago, so the header may promise it.
    fn promise(&mut self, outbox: &mut Outbox) {
        let bytes = self.range.end.saturating_sub(self.range.start);
        if self.is_hole {
            let hole = vec![Piece::Zeros(bytes)];
            push_whole(self.to, self.range.start, hole, Fragments::One, outbox);
            self.stage = Stage::Over(End::Answered);
            return;
        }
        match self.to.replies {
            Replies::Simple => outbox.push_copy(&simple_reply(None, self.to.cookie)),
            Replies::Structured | Replies::Extended => {
                push_data_header(self.to, chunk_flags::DONE, self.range.start, bytes, outbox);
            }
        }
        self.stage = Stage::Promised;
        self.next = self.range.start;
    }

    /// The part whose turn it is.
    fn send(&mut self, outcome: Result<Vec<Piece>, ReadFailure>, outbox: &mut Outbox) {
        let offset = self.sent;
        match outcome {
            Ok(mut pieces) => {
                self.sent = offset.saturating_add(total_bytes(&pieces));
                let is_last = self.sent >= self.range.end;
                if self.stage == Stage::Chunks {
                    let offset = self.with_zeros_before(offset, &mut pieces);
                    while !is_last && let Some(Piece::Zeros(zeros)) = pieces.last() {
                        self.zeros = self.zeros.saturating_add(*zeros);
                        pieces.pop();
                    }
                    push_content(self.to, offset, pieces, Fragments::Many, is_last, outbox);
                } else {
                    pieces.into_iter().for_each(|piece| outbox.push(piece));
                }
                if is_last {
                    self.stage = Stage::Over(End::Answered);
                }
            }
            Err(ReadFailure { mut before, error, message, is_damage }) => {
                let position = Some(offset.saturating_add(total_bytes(&before)));
                if self.stage == Stage::Chunks {
                    let offset = self.with_zeros_before(offset, &mut before);
                    push_content(self.to, offset, before, Fragments::Many, false, outbox);
                }
                self.failure = Some((offset, Failure { error, message, position, is_damage }));
            }
        }
    }

    /// Puts the zeros that were not sent yet before the bytes of a part, and says where all that
    /// begins.
    fn with_zeros_before(&mut self, offset: u64, pieces: &mut Vec<Piece>) -> u64 {
        let zeros = std::mem::take(&mut self.zeros);
        if zeros != 0 {
            pieces.insert(0, Piece::Zeros(zeros));
        }
        offset.saturating_sub(zeros)
    }
}

fn held_bytes(outcome: &Result<Vec<Piece>, ReadFailure>) -> u64 {
    match outcome {
        Ok(pieces) => total_bytes(pieces),
        Err(failure) => total_bytes(&failure.before),
    }
}

#[cfg(test)]
mod tests;
