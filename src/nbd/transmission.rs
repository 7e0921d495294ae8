//! Requests to replies, for one client and one export. Section "Transmission".
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::{Buf, BytesMut};

use crate::nbd::reply::simple_reply;
use crate::nbd::request::{Action, Refusal, Request};
use crate::nbd::wire::{Errno, REQUEST_BYTES, SIMPLE_REPLY_BYTES};
use crate::nbd::{BadMagic, Outbox, Piece};

/// The client's requests go in, reads come out, their bytes go in, replies come out.
#[derive(Debug)]
pub struct Transmission {
    export_bytes: u64,
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
}

impl Transmission {
    /// A session with a client that has chosen an export of that size. What it is owed already,
    /// the last replies of the negotiation, is in the outbox.
    #[must_use]
    pub fn new(export_bytes: u64, owed_bytes_max: u64, outbox: Outbox) -> Self {
        Self {
            export_bytes,
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
            match request.check(self.export_bytes) {
                Action::Read { offset, length } => {
                    self.reading_bytes = self.reading_bytes.saturating_add(cost(length));
                    self.reads = self.reads.saturating_add(1);
                    return Ok(Some(Read { cookie, offset, length }));
                }
                Action::Flush => self.answer(None, cookie),
                Action::Refuse(refusal) => self.answer(Some(refusal.errno()), cookie),
                Action::RefuseWrite { payload_bytes } => {
                    self.refused_write = Some(RefusedWrite { cookie, payload_bytes });
                }
                Action::Disconnect => self.ending = Some(Ending::Disconnected),
            }
        }
        Ok(None)
    }

    /// Answers a read with its bytes, which must be as many as it asked for, or with an error,
    /// which carries none.
    pub fn reply(&mut self, read: Read, outcome: Result<Vec<Piece>, Errno>) {
        let Read { cookie, offset: _, length } = read;
        self.reading_bytes = self.reading_bytes.saturating_sub(cost(length));
        self.reads = self.reads.saturating_sub(1);
        match outcome {
            // A reply of another length would shift everything behind it.
            Ok(pieces) if pieces.iter().map(Piece::bytes).sum::<u64>() == u64::from(length) => {
                self.answer(None, cookie);
                for piece in pieces {
                    self.outbox.push(piece);
                }
            }
            Ok(_) => self.answer(Some(Errno::EIO), cookie),
            Err(error) => self.answer(Some(error), cookie),
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

    fn answer(&mut self, error: Option<Errno>, cookie: u64) {
        self.outbox.push_copy(&simple_reply(error, cookie));
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
        self.answer(Some(Refusal::ReadOnly.errno()), cookie);
        true
    }
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
    use crate::nbd::wire::Command;

    const EXPORT_BYTES: u64 = 1 << 20;

    fn session() -> Transmission {
        Transmission::new(EXPORT_BYTES, OWED_BYTES_MAX, Outbox::default())
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

    fn pieces(length: u32) -> Result<Vec<Piece>, Errno> {
        Ok(vec![Piece::Data(Bytes::from(vec![7; length as usize]))])
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
        session.reply(first, Err(Errno::EIO));
        assert_eq!(
            taken(&mut session),
            [&simple_reply(None, 2)[..], &[7, 7], &simple_reply(Some(Errno::EIO), 1)].concat()
        );
    }

    #[test]
    fn a_reply_of_the_wrong_length_is_an_error_without_data() {
        for length in [0, 2, 4] {
            let mut session = session();
            let mut input = BytesMut::from(&request(Command::READ, 1, 0, 3)[..]);
            let read = session.next_read(&mut input).unwrap().unwrap();
            session.reply(read, pieces(length));
            assert_eq!(taken(&mut session), simple_reply(Some(Errno::EIO), 1));
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
        let mut session = Transmission::new(0, 1600, Outbox::default());
        let mut input = BytesMut::from(&request(Command::TRIM, 1, 0, 1).repeat(1000)[..]);
        assert!(session.next_read(&mut input).unwrap().is_none());
        assert_eq!(taken(&mut session).len(), 1600);
        assert_eq!(input.len(), 900 * REQUEST_BYTES);
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
