//! The stream to a client while it reads: whatever can be written and read without waiting.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::ReadBuf;

use crate::nbd::Outbox;
use crate::server::session::Stream;

/// Room for what a client sends, in bytes: 585 requests.
const INPUT_BYTES: usize = 16 * 1024;

/// Slices that are written with one call.
const SLICES_MAX: usize = 64;

thread_local! {
    /// What is read goes here first, so that clients who send nothing keep no memory for it.
    static RECEIVED: RefCell<[u8; INPUT_BYTES]> = const { RefCell::new([0; INPUT_BYTES]) };
}

/// A stream, and whether there is something to flush.
#[derive(Debug)]
pub(crate) struct Link<'a, S> {
    stream: &'a mut S,
    is_unflushed: bool,
}

/// What has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// Replies were written.
    Sent,
    /// So many bytes were read, and what was owed before may have been written. 0 at the end.
    Received(usize),
}

impl<'a, S: Stream> Link<'a, S> {
    pub(crate) fn new(stream: &'a mut S) -> Self {
        Self { stream, is_unflushed: true }
    }

    /// Whether there is something to write or to flush.
    pub(crate) fn is_behind(&self, outbox: &Outbox) -> bool {
        self.is_unflushed || outbox.has_remaining()
    }

    /// Writes what is owed, and reads if that is wanted. Cancel-safe: bytes that were read are in `input`,
    /// bytes that were written have left the outbox.
    pub(crate) fn poll(
        &mut self,
        context: &mut Context<'_>,
        outbox: &mut Outbox,
        input: &mut BytesMut,
        wants_input: bool,
    ) -> Poll<io::Result<Moved>> {
        let has_sent = self.poll_send(context, outbox)?;
        if wants_input && let Poll::Ready(received) = self.poll_receive(context, input)? {
            return Poll::Ready(Ok(Moved::Received(received)));
        }
        if has_sent { Poll::Ready(Ok(Moved::Sent)) } else { Poll::Pending }
    }

    /// Whether anything was sent.
    fn poll_send(&mut self, context: &mut Context<'_>, outbox: &mut Outbox) -> io::Result<bool> {
        let mut has_sent = false;
        while outbox.has_remaining() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = outbox.chunks_vectored(&mut slices);
            let slices = slices.get(..count).unwrap_or(&[]);
            match Pin::new(&mut *self.stream).poll_write_vectored(context, slices)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(sent) => {
                    outbox.advance(sent);
                    self.is_unflushed = true;
                    has_sent = true;
                }
                Poll::Pending => return Ok(has_sent),
            }
        }
        if self.is_unflushed && Pin::new(&mut *self.stream).poll_flush(context)?.is_ready() {
            self.is_unflushed = false;
            has_sent = true;
        }
        Ok(has_sent)
    }

    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        input: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        RECEIVED.with_borrow_mut(|buffer| {
            let mut received = ReadBuf::new(buffer);
            let polled = Pin::new(&mut *self.stream).poll_read(context, &mut received);
            polled.map_ok(|()| {
                input.extend_from_slice(received.filled());
                received.filled().len()
            })
        })
    }
}
