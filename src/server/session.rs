//! One client: drives negotiation, then transmission.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::export::Export;
use crate::nbd::negotiation::Violation;
use crate::nbd::transmission::Ending;
use crate::nbd::{
    BadMagic, Channel, Entered, Negotiation, Outbox, Piece, Progress, Read, ReadFailure,
    Transmission,
};
use crate::server::Shared;

/// Room for what a client sends, in bytes: 146 requests.
const INPUT_BYTES: usize = 4096;

/// How long, and for how many bytes, to look at what a client still sends after the last reply.
/// Closing at once would make the system discard the reply on the way.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 1 << 20;

/// Why a session ended other than by agreement.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the client hung up while negotiating")]
    HungUp,
    #[error("no export was chosen in time")]
    NegotiationTimeout,
    #[error("protocol violation: {0}")]
    Violation(#[from] Violation),
    #[error("protocol violation: {0}")]
    Framing(#[from] BadMagic),
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    /// A read panicked. That is a bug, and only this client is told.
    #[error("internal error: {0}")]
    Panic(#[from] tokio::task::JoinError),
}

/// Who is on the other end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    Tcp(SocketAddr),
    Unix,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// What a session came to, for the log.
#[derive(Debug, Default)]
struct Summary {
    reads: u64,
    read_bytes: u64,
}

pub(crate) async fn serve_tcp(stream: TcpStream, peer: SocketAddr, shared: &Shared) {
    // Replies are written whole; waiting for more of them costs up to 40 ms each.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
    }
    let (reader, writer) = stream.into_split();
    serve(reader, writer, Peer::Tcp(peer), shared).await;
}

pub(crate) async fn serve_unix(stream: UnixStream, shared: &Shared) {
    let (reader, writer) = stream.into_split();
    serve(reader, writer, Peer::Unix, shared).await;
}

/// From the greeting to the last reply. Whatever the client does, it ends here.
async fn serve(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    peer: Peer,
    shared: &Shared,
) {
    let (mut summary, began) = (Summary::default(), Instant::now());
    let outcome = tokio::select! {
        outcome = converse(&mut reader, &mut writer, peer, shared, &mut summary) => outcome,
        () = shared.cut.cancelled() => Ok("cut by shutdown"),
    };
    hang_up(&mut reader, &mut writer).await;
    let Summary { reads, read_bytes } = summary;
    let seconds = began.elapsed().as_secs_f64();
    match outcome {
        Ok(ending) => tracing::info!(%peer, reads, read_bytes, seconds, ending, "closed"),
        Err(error) => tracing::info!(%peer, reads, read_bytes, seconds, %error, "closed"),
    }
}

async fn converse(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    peer: Peer,
    shared: &Shared,
    summary: &mut Summary,
) -> Result<&'static str, SessionError> {
    let mut input = BytesMut::new();
    let negotiation =
        timeout(shared.limits.negotiation_timeout, negotiate(reader, writer, &mut input, shared));
    let chosen = tokio::select! {
        chosen = negotiation => chosen.map_err(|_| SessionError::NegotiationTimeout)??,
        () = shared.stop.cancelled() => return Ok("shutdown"),
    };
    let Some((Entered { export, replies }, outbox)) = chosen else {
        return Ok("aborted by the client");
    };
    tracing::info!(%peer, export = ?export.info().name, "opened");
    let owed_bytes_max = shared.limits.owed_bytes_max;
    let session = Transmission::new(export.info().size_bytes, replies, owed_bytes_max, outbox);
    let ending = transmit(reader, writer, input, session, &export, shared, summary).await?;
    Ok(match ending {
        Some(Ending::Disconnected) => "disconnected by the client",
        Some(Ending::Finished) if shared.stop.is_cancelled() => "shutdown",
        Some(Ending::Finished) | None => "hung up by the client",
    })
}

/// Until an export is chosen. `None` if the client said goodbye.
async fn negotiate(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    input: &mut BytesMut,
    shared: &Shared,
) -> Result<Option<(Entered<Arc<Export>>, Outbox)>, SessionError> {
    let mut outbox = Outbox::default();
    let mut negotiation =
        Negotiation::new(Channel::Plain(Arc::clone(&shared.catalogue)), &mut outbox);
    loop {
        let progress = negotiation.advance(input, &mut outbox);
        if let Ok(Progress::Enter(entered)) = progress {
            return Ok(Some((entered, outbox)));
        }
        // Before the next option is looked at, so that nobody piles up answers.
        writer.write_all_buf(&mut outbox).await?;
        writer.flush().await?;
        match progress? {
            Progress::Answered | Progress::Enter(_) => {}
            // Without TLS it is never begun.
            Progress::Aborted | Progress::StartTls(_) => return Ok(None),
            Progress::NeedsInput => {
                input.reserve(INPUT_BYTES);
                if reader.read_buf(input).await? == 0 {
                    return Err(SessionError::HungUp);
                }
            }
        }
    }
}

/// From the first request to the last reply.
async fn transmit(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    mut input: BytesMut,
    mut session: Transmission,
    export: &Arc<Export>,
    shared: &Shared,
    summary: &mut Summary,
) -> Result<Option<Ending>, SessionError> {
    let mut misses = JoinSet::new();
    // Enough to keep every decoder busy, and so few that clients take turns.
    let misses_max = shared.limits.decoders_max.get().saturating_mul(2);
    let mut unflushed = true;
    loop {
        while misses.len() < misses_max
            && let Some(read) = session.next_read(&mut input)?
        {
            summary.reads = summary.reads.saturating_add(1);
            summary.read_bytes = summary.read_bytes.saturating_add(u64::from(read.length));
            if let Some(pieces) = export.read_cached(read.offset, read.length) {
                session.reply(read, Ok(pieces));
            } else {
                misses.spawn(fetch(read, Arc::clone(export), shared));
            }
        }
        if session.is_over() && !unflushed {
            return Ok(session.ending());
        }
        let wants_input = session.wants_input() && misses.len() < misses_max;
        let unsent = unflushed || session.outbox().has_remaining();
        input.reserve(INPUT_BYTES);
        // Cancel-safe: bytes read stay in `input`, bytes written leave the outbox, and a write
        // that was not flushed is remembered.
        tokio::select! {
            biased;
            () = shared.stop.cancelled(), if session.ending().is_none() => session.finish(),
            Some(done) = misses.join_next() => {
                let (read, outcome) = done??;
                session.reply(read, outcome);
            }
            sent = send(writer, session.outbox()), if unsent => unflushed = sent?,
            received = reader.read_buf(&mut input), if wants_input => {
                if received? == 0 {
                    session.finish();
                }
            }
        }
    }
}

type Fetched = Result<(Read, Result<Vec<Piece>, ReadFailure>), tokio::task::JoinError>;

/// Reads what is not in the cache, where that stalls nobody, when a decoder is free.
fn fetch(
    read: Read,
    export: Arc<Export>,
    shared: &Shared,
) -> impl Future<Output = Fetched> + use<> {
    let decoders = Arc::clone(&shared.decoders);
    async move {
        // The semaphore is never closed; without a permit the read would only be less polite.
        let permit = decoders.acquire_owned().await;
        let work = move || {
            let outcome = export.read(read.offset, read.length);
            drop(permit);
            (read, outcome)
        };
        tokio::task::spawn_blocking(work).await
    }
}

/// Writes some of what is owed, or flushes when everything is written. Returns whether there is
/// something to flush.
async fn send(writer: &mut (impl AsyncWrite + Unpin), outbox: &mut Outbox) -> io::Result<bool> {
    if !outbox.has_remaining() {
        writer.flush().await?;
        return Ok(false);
    }
    if writer.write_buf(outbox).await? == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(true)
}

/// Says that no more will come, and waits a moment for the client to do the same.
async fn hang_up(reader: &mut (impl AsyncRead + Unpin), writer: &mut (impl AsyncWrite + Unpin)) {
    let farewell = async {
        writer.shutdown().await?;
        let mut ignored = reader.take(LINGER_BYTES);
        tokio::io::copy(&mut ignored, &mut tokio::io::sink()).await
    };
    // It may be gone already, and there is nothing left to lose.
    let _ = timeout(LINGER, farewell).await;
}
