//! Plain stream to TLS stream. Nothing is carried over.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::PollSemaphore;

use crate::tls::HandshakeFailure;

/// Why a client is not upgraded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    /// Whoever sent them, they were not part of the handshake: CVE-2021-3716's class.
    #[error("{bytes} bytes in plaintext behind STARTTLS")]
    PlaintextAfterStartTls { bytes: usize },
    #[error("TLS handshake failed: {0}")]
    Handshake(HandshakeFailure),
}

impl UpgradeError {
    /// A word for metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::PlaintextAfterStartTls { .. } => "plaintext_after_starttls",
            Self::Handshake(failure) => failure.cause.reason(),
        }
    }
}

/// Shakes hands with a client that was told to begin. `unread` is what it had sent before.
pub(crate) async fn to_tls<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    unread: BytesMut,
    config: Arc<ServerConfig>,
    turns: &Turns,
) -> Result<TlsStream<S>, UpgradeError> {
    if !unread.is_empty() {
        return Err(UpgradeError::PlaintextAfterStartTls { bytes: unread.len() });
    }
    let shaken = shake_hands(stream, config, turns).await;
    shaken.map_err(|error| UpgradeError::Handshake(HandshakeFailure::from(&error)))
}

/// A handshake that takes turns with all others.
pub(crate) async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    config: Arc<ServerConfig>,
    turns: &Turns,
) -> io::Result<TlsStream<S>> {
    turns.take(TlsAcceptor::from(config).accept(stream)).await
}

/// Turns at the processors for handshakes, which cost a hundred times what a cached read does.
///
/// Clients that are served already keep at least one processor, however many others knock. A turn
/// is held while a handshake computes, never while it waits for its client.
#[derive(Debug)]
pub(crate) struct Turns(Arc<Semaphore>);

impl Turns {
    /// For a runtime of so many threads.
    pub(crate) fn new(threads: usize) -> Self {
        Self(Arc::new(Semaphore::new((threads / 2).max(1))))
    }

    fn take<F>(&self, handshake: F) -> InTurns<F> {
        InTurns { turns: PollSemaphore::new(Arc::clone(&self.0)), handshake }
    }
}

/// Polls a handshake while it has a turn.
struct InTurns<F> {
    turns: PollSemaphore,
    handshake: F,
}

impl<F: Future + Unpin> Future for InTurns<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // Dropped at the end of this call. The semaphore is never closed.
        let _turn = ready!(self.turns.poll_acquire(context));
        Pin::new(&mut self.handshake).poll(context)
    }
}
