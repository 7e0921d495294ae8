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

/// What it says of itself.
pub(crate) fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_session_that_panics_gives_back_what_it_holds_and_nobody_else_panics() {
        let slot = Arc::new(());
        let held = Arc::clone(&slot);
        let session = async move {
            tokio::task::yield_now().await;
            let _held = held;
            panic!("on purpose");
        };
        Contained::new(Peer::Unix, session).await;
        assert_eq!(Arc::strong_count(&slot), 1);
    }

    #[test]
    fn the_message_of_a_panic_is_found_however_it_was_made() {
        let caught = |panicking: fn()| catch_unwind(panicking).unwrap_err();
        assert_eq!(message(caught(|| panic!("as it is")).as_ref()), "as it is");
        let argument = || panic!("made of {}", std::process::id());
        assert!(message(caught(argument).as_ref()).starts_with("made of "));
        let other = || std::panic::panic_any(1);
        assert_eq!(message(caught(other).as_ref()), "no message");
    }
}
