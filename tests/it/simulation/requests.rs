//! Requests that a client sends, legal or not, and what each must be answered with.

use std::ops::Range;

use crate::simulation::model::Export;
use crate::simulation::options::Replies;
use crate::simulation::random::Random;

pub(crate) const EPERM: u32 = 1;
pub(crate) const EIO: u32 = 5;
const EINVAL: u32 = 22;

const READ: u16 = 0;
const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
const FLUSH: u16 = 3;
const CACHE: u16 = 5;
const BLOCK_STATUS: u16 = 7;

const DF: u16 = 1 << 2;
const REQ_ONE: u16 = 1 << 3;
const PAYLOAD_LEN: u16 = 1 << 5;

/// A request, and what must come of it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) answer: Answer,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// These bytes, or those before the damage and an error.
    Bytes { range: Range<u64>, in_one: bool },
    /// Success without bytes.
    Done,
    /// Extents of this range in these contexts.
    Extents { range: Range<u64>, contexts: Vec<u32>, first_only: bool },
    /// This error.
    Error(u32),
}

/// What a client may ask of an export.
pub(crate) struct Terms<'a> {
    pub(crate) export: &'a Export,
    pub(crate) replies: Replies,
    pub(crate) contexts: &'a [u32],
    /// Longest read that it sends, mostly.
    pub(crate) read_bytes_max: u64,
}

impl Terms<'_> {
    /// Whatever a client may think of, half of it wrong.
    pub(crate) fn any_request(&self, cookie: u64, random: &mut Random) -> (Vec<u8>, Asked) {
        let (offset, length) = self.any_range(random);
        let asked = |offset, answer| Asked { cookie, offset, answer };
        let send =
            |flags, command, offset, length| self.header(flags, command, cookie, offset, length);
        match random.below(16) {
            0..6 => {
                let wants_df = random.one_in(4);
                let flags = if wants_df { DF } else { 0 };
                let answer = self.read(flags, offset, length);
                (send(flags, READ, offset, length), asked(offset, answer))
            }
            6 => {
                let most = *random.pick(&[1, 100, 70_000]);
                let payload = random.below(most);
                let extended = self.replies == Replies::Extended;
                let flags = if extended { PAYLOAD_LEN } else { 0 };
                let mut bytes = send(flags, WRITE, offset, payload);
                bytes.extend(vec![0x25; payload as usize]);
                (bytes, asked(offset, Answer::Error(EPERM)))
            }
            7 => {
                let command = *random.pick(&[4, 6]);
                let flags = *random.pick(&[0, 1, 2, 16]);
                (send(flags, command, offset, length), asked(offset, Answer::Error(EPERM)))
            }
            8 => (send(0, FLUSH, 0, 0), asked(0, Answer::Done)),
            9 => {
                let command = *random.pick(&[8, 9, 77, u16::MAX]);
                (send(0, command, offset, length), asked(offset, Answer::Error(EINVAL)))
            }
            10 => {
                let flags = 1 << *random.pick(&[0, 1, 4, 6, 9, 15]);
                let command = *random.pick(&[READ, FLUSH, CACHE, BLOCK_STATUS]);
                (send(flags, command, offset, length), asked(offset, Answer::Error(EINVAL)))
            }
            11 => {
                let answer = match self.export.has(offset, length) {
                    false => Answer::Error(EINVAL),
                    true if self.export.first_damaged(&(offset..offset + length)).is_some() => {
                        Answer::Error(EIO)
                    }
                    true => Answer::Done,
                };
                (send(0, CACHE, offset, length), asked(offset, answer))
            }
            12 if self.replies == Replies::Extended => self.filtered(cookie, random),
            _ => {
                let flags = if random.one_in(3) { REQ_ONE } else { 0 };
                let answer = self.extents(offset, length, self.contexts, flags != 0);
                (send(flags, BLOCK_STATUS, offset, length), asked(offset, answer))
            }
        }
    }

    pub(crate) fn header(
        &self,
        flags: u16,
        command: u16,
        cookie: u64,
        offset: u64,
        length: u64,
    ) -> Vec<u8> {
        let extended = self.replies == Replies::Extended;
        let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        if extended {
            bytes.extend_from_slice(&length.to_be_bytes());
        } else {
            bytes.extend_from_slice(&(length as u32).to_be_bytes());
        }
        bytes
    }

    /// Mostly in the export, often at its edges, sometimes beyond.
    fn any_range(&self, random: &mut Random) -> (u64, u64) {
        let size = self.export.size();
        let longest = if random.one_in(20) { size } else { self.read_bytes_max };
        let length = match random.below(8) {
            0 => 0,
            1 => 1,
            2 => 512,
            3 => random.below(65_536).min(longest),
            _ => random.below(longest + 1),
        };
        let offset = match random.below(8) {
            0 => 0,
            1 => size.saturating_sub(length),
            2 => (size + 1).saturating_sub(length),
            3 => size,
            4 if random.one_in(4) => random.number(),
            _ => random.below(size + 1).min(size.saturating_sub(length)),
        };
        (offset, length)
    }

    fn read(&self, flags: u16, offset: u64, length: u64) -> Answer {
        let is_simple = self.replies == Replies::Simple;
        if is_simple && flags != 0 || length > 32 << 20 || !self.export.has(offset, length) {
            return Answer::Error(EINVAL);
        }
        Answer::Bytes { range: offset..offset + length, in_one: is_simple || flags == DF }
    }

    fn extents(&self, offset: u64, length: u64, contexts: &[u32], first_only: bool) -> Answer {
        if contexts.is_empty() || length == 0 || !self.export.has(offset, length) {
            return Answer::Error(EINVAL);
        }
        Answer::Extents { range: offset..offset + length, contexts: contexts.to_vec(), first_only }
    }

    /// A question about some of the contexts, which the bytes behind the request name.
    fn filtered(&self, cookie: u64, random: &mut Random) -> (Vec<u8>, Asked) {
        let (offset, length) = self.any_range(random);
        let mut ids: Vec<u32> =
            self.contexts.iter().copied().filter(|_| random.one_in(2)).collect();
        if random.one_in(4) {
            ids.push(*random.pick(&[0, 1, 4, u32::MAX]));
        }
        let is_chosen = |id: &u32| self.contexts.contains(id);
        let mut once = ids.clone();
        once.sort_unstable();
        once.dedup();
        let is_right = !ids.is_empty() && ids.iter().all(is_chosen) && once.len() == ids.len();
        let answer = if is_right {
            self.extents(offset, length, &once, false)
        } else {
            Answer::Error(EINVAL)
        };
        let payload_bytes = 8 + 4 * ids.len() as u64;
        let mut bytes = self.header(PAYLOAD_LEN, BLOCK_STATUS, cookie, offset, payload_bytes);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
        (bytes, Asked { cookie, offset, answer })
    }
}
