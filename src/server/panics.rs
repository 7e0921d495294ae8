//! A panic ends the session that it happens in, and nothing else.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::server::session::Peer;

/// A session whose panics are logged as what they are, and go no further.
pub(crate) struct Contained {
    peer: Peer,
    /// In a box, so that a session takes its place in memory once.
    session: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Contained {
    pub(crate) fn new(peer: Peer, session: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { peer, session: Box::pin(session) }
    }
}

impl Future for Contained {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // Nobody sees what a panic left half done: the session is dropped, and what it shares with
        // others is counted in guards that are dropped with it.
        let polled = catch_unwind(AssertUnwindSafe(|| self.session.as_mut().poll(context)));
        polled.unwrap_or_else(|panic| {
            let (peer, panic) = (self.peer, message(panic.as_ref()));
            tracing::error!(%peer, panic, "closed by a bug in hexz-nbd; please report it");
            Poll::Ready(())
        })
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
