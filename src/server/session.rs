//! One client: drives negotiation, then transmission.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::server::TlsStream;
use tracing::Instrument as _;

use crate::audit;
use crate::export::Export;
use crate::metrics::{Connected, State};
use crate::nbd::negotiation::Violation;
use crate::nbd::transmission::{self, Ending, Served};
use crate::nbd::{Channel, Entered, ExportDirectory, Negotiation, Outbox, Progress, Upgrade};
use crate::server::Shared;
use crate::server::client::Client;
use crate::server::misses::Panicked;
use crate::server::offer::Offer;
use crate::server::policy::{Certified, Policy, Shown, Tls, TlsMode, Withdrawn};
use crate::server::refusal::{Reason, Refusal};
use crate::server::roster::Roster;
use crate::server::transmit::transmit;
use crate::server::upgrade::{self, UpgradeError};
use crate::tls::IdentityError;

/// Room for what a client sends, in bytes: 146 requests.
const INPUT_BYTES: usize = 4096;

/// How long a client that waits for nothing is still listened to after the stop, so that what it
/// asks meanwhile is answered with an error and not with a dead connection.
pub(crate) const STOP_GRACE: Duration = Duration::from_millis(500);

/// How long, and for how many bytes, to look at what a client still sends after the last reply.
/// Closing at once would make the system discard the reply on the way.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 1 << 20;

/// How a session ended in which the client said goodbye before it chose.
const ABORTED: &str = "aborted by the client";

/// Why a session ended other than by agreement.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("the client hung up while negotiating")]
    HungUp,
    /// As balancers do that look whether there is a server.
    #[error("the client hung up without a word")]
    Silent,
    #[error("no export was chosen in time")]
    NegotiationTimeout,
    #[error("the TLS handshake was not finished in time")]
    HandshakeTimeout,
    #[error("protocol violation: {0}")]
    Violation(#[from] Violation),
    #[error("protocol violation: {0}")]
    Request(#[from] transmission::Violation),
    #[error("{0}")]
    Upgrade(#[from] UpgradeError),
    #[error("the client's certificate cannot be read: {0}")]
    Identity(#[from] IdentityError),
    #[error("cut off: {0}")]
    Withdrawn(Withdrawn),
    #[error("the server is stopping")]
    Stopped,
    #[error("nothing was sent or taken for as long as --idle-timeout allows")]
    Idle,
    /// What was good when the reply began is damaged now, and no reply can say so any more.
    #[error("cut in the middle of a reply: the snapshot was damaged while it was read")]
    Broken,
    /// Whoever cut the connection, it was not the client in an orderly way: it would have said so.
    #[error("connection cut: no close_notify came")]
    Truncated,
    #[error("connection lost: {0}")]
    Io(io::Error),
    /// A read panicked. That is a bug, and only this client is told.
    #[error("internal error: {0}")]
    Panic(#[from] Panicked),
}

impl SessionError {
    /// The kind of refusal that it is for a client that opened nothing, if it is one.
    pub(crate) fn refusal(&self) -> Option<Reason> {
        match self {
            Self::Upgrade(_) | Self::HandshakeTimeout | Self::Identity(_) => {
                Some(Reason::Handshake)
            }
            Self::NegotiationTimeout => Some(Reason::Timeout),
            Self::Violation(_) | Self::Request(_) => Some(Reason::Protocol),
            Self::HungUp
            | Self::Silent
            | Self::Withdrawn(_)
            | Self::Stopped
            | Self::Idle
            | Self::Broken
            | Self::Truncated
            | Self::Io(_)
            | Self::Panic(_) => None,
        }
    }
}

impl From<io::Error> for SessionError {
    fn from(error: io::Error) -> Self {
        // Of plain streams the end is no error, so this is how TLS tells of a truncation.
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Truncated } else { Self::Io(error) }
    }
}

/// Who is on the other end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    Tcp(SocketAddr),
    Unix,
    /// On a stream that is no socket of the server.
    Stream,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
            Self::Stream => f.write_str("stream"),
        }
    }
}

/// A byte stream to one client, whatever it is made of.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// One client, from the greeting to the last reply.
#[derive(Debug)]
struct Session<'a> {
    client: Arc<Client>,
    shared: &'a Shared,
    /// What was in force when the client came.
    policy: Arc<Policy>,
    /// When an export must have been chosen.
    deadline: Instant,
    served: Served,
    /// Whether it has sent anything.
    was_heard: bool,
    /// How far it is, for the metrics.
    counted: Connected,
}

/// Where a negotiation leads.
enum Chosen {
    Export(Entered<Arc<Export>>, Outbox),
    StartTls(Upgrade),
    Nothing,
}

pub(crate) async fn serve_tcp(stream: TcpStream, peer: SocketAddr, shared: &Shared) {
    // Replies are written whole; waiting for more of them costs up to 40 ms each.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
    }
    serve(stream, Peer::Tcp(peer), shared).await;
}

pub(crate) async fn serve_unix(stream: UnixStream, shared: &Shared) {
    serve(stream, Peer::Unix, shared).await;
}

/// Whatever the client does, it ends here.
pub(crate) async fn serve(stream: impl Stream, peer: Peer, shared: &Shared) {
    let listed = Roster::add(peer, shared);
    let span = tracing::info_span!("connection", id = %listed.client().id);
    serve_listed(stream, listed.client(), shared).instrument(span).await;
}

async fn serve_listed(stream: impl Stream, client: &Arc<Client>, shared: &Shared) {
    let policy = Arc::clone(&shared.policy.borrow());
    let deadline = client.began() + shared.limits.negotiation_timeout;
    let mut session = Session {
        client: Arc::clone(client),
        shared,
        policy,
        deadline,
        served: Served::default(),
        was_heard: false,
        counted: shared.metrics.connection(State::negotiation),
    };
    let outcome = tokio::select! {
        outcome = session.in_plaintext(stream) => outcome,
        () = shared.cut.cancelled() => Ok("cut by shutdown"),
    };
    client.ended(outcome, shared);
}

impl<'a> Session<'a> {
    /// The exports for a client of which so much is known.
    fn offer(&self, shown: Shown) -> Offer<'a> {
        Offer::new(self.shared, Arc::clone(&self.policy), shown, Arc::clone(&self.client))
    }

    /// A client that has just connected.
    async fn in_plaintext(
        &mut self,
        mut stream: impl Stream,
    ) -> Result<&'static str, SessionError> {
        let tls = self.policy.tls.clone();
        let shown = if tls.is_some() { Shown::Plaintext } else { Shown::Nothing };
        let offer = self.offer(shown.clone());
        let channel = match tls.as_ref().map(|tls| tls.mode) {
            None => Channel::Plain(offer),
            Some(TlsMode::Selective) => Channel::MayUpgrade(offer),
            Some(TlsMode::Required) => Channel::MustUpgrade,
        };
        let (mut input, mut outbox) = (BytesMut::new(), Outbox::default());
        let negotiation = Negotiation::new(channel, &mut outbox);
        let chosen = self.negotiate(&mut stream, negotiation, &mut input, outbox).await;
        let chosen = match chosen {
            // Whoever does not even read the greeting resets the connection.
            Err(SessionError::Io(_) | SessionError::Truncated) if !self.was_heard => {
                Err(SessionError::Silent)
            }
            chosen => chosen,
        };
        let demands_tls = tls.as_ref().is_some_and(|tls| tls.mode == TlsMode::Required);
        let gave_up = matches!(
            chosen,
            Ok(Chosen::Nothing)
                | Err(SessionError::HungUp | SessionError::Truncated | SessionError::Io(_))
        );
        if demands_tls && gave_up && self.was_heard {
            let detail = "the client did not begin TLS, which this server demands";
            self.client.refused(Refusal::of_all(Reason::TlsRequired, detail), self.shared);
        }
        let outcome = match (chosen, tls) {
            (Ok(Chosen::StartTls(upgrade)), Some(tls)) => {
                // In a box of its own: clients without TLS keep no room for it.
                return Box::pin(self.in_tls(stream, input, upgrade, &tls)).await;
            }
            (Ok(Chosen::Export(entered, outbox)), _) => {
                self.read(&mut stream, input, outbox, entered, shown).await
            }
            // Without TLS it is never begun.
            (Ok(Chosen::Nothing | Chosen::StartTls(_)), _) => Ok(ABORTED),
            (Err(error), _) => Err(error),
        };
        hang_up(&mut stream).await;
        outcome
    }

    /// A client that was told to begin TLS. What came before is forgotten.
    async fn in_tls(
        &mut self,
        stream: impl Stream,
        unread: BytesMut,
        upgrade: Upgrade,
        tls: &Tls,
    ) -> Result<&'static str, SessionError> {
        let config = tls.config.server();
        let handshake = upgrade::to_tls(stream, unread, config, &self.shared.turns);
        let deadline = self.deadline.min(Instant::now() + self.shared.limits.handshake_timeout);
        let handshake = self.until_stopped(timeout_at(deadline, handshake)).await?;
        let mut stream = match handshake {
            Ok(Ok(stream)) => {
                self.shared.metrics.handshake(None);
                stream
            }
            Ok(Err(error)) => {
                self.shared.metrics.handshake(Some(error.reason()));
                return Err(error.into());
            }
            Err(_) => {
                self.shared.metrics.handshake(Some("timeout"));
                return Err(SessionError::HandshakeTimeout);
            }
        };
        let outcome = self.in_tls_from_nothing(&mut stream, upgrade).await;
        hang_up(&mut stream).await;
        outcome
    }

    async fn in_tls_from_nothing<S: Stream>(
        &mut self,
        stream: &mut TlsStream<S>,
        upgrade: Upgrade,
    ) -> Result<&'static str, SessionError> {
        let (_, connection) = stream.get_ref();
        let chain = connection.peer_certificates();
        let client = chain.map(Certified::new).transpose()?.map(Arc::new);
        let version = connection.protocol_version().and_then(|version| version.as_str());
        let suite = connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
        let tls =
            version.zip(suite).map(|(version, cipher_suite)| audit::Tls { version, cipher_suite });
        self.client.is_in_tls(tls, client.clone());
        let shown = Shown::Tls(client);
        let negotiation = upgrade.negotiate(self.offer(shown.clone()));
        let mut input = BytesMut::new();
        match self.negotiate(stream, negotiation, &mut input, Outbox::default()).await? {
            Chosen::Export(entered, outbox) => {
                self.read(stream, input, outbox, entered, shown).await
            }
            Chosen::Nothing | Chosen::StartTls(_) => Ok(ABORTED),
        }
    }

    /// Until an export is chosen, TLS begins, or the client says goodbye.
    async fn negotiate<D: ExportDirectory<Export = Arc<Export>>>(
        &mut self,
        stream: &mut impl Stream,
        mut negotiation: Negotiation<D>,
        input: &mut BytesMut,
        mut outbox: Outbox,
    ) -> Result<Chosen, SessionError> {
        let (shared, was_heard) = (self.shared, &mut self.was_heard);
        let haggling = async {
            let mut is_stopping = false;
            loop {
                let progress = negotiation.advance(input, &mut outbox);
                if let Ok(Progress::Enter(entered)) = progress {
                    return Ok(Chosen::Export(entered, std::mem::take(&mut outbox)));
                }
                // Before the next option is looked at, so that nobody piles up answers.
                stream.write_all_buf(&mut outbox).await?;
                stream.flush().await?;
                match progress? {
                    Progress::Answered | Progress::Enter(_) => {}
                    Progress::StartTls(upgrade) => return Ok(Chosen::StartTls(upgrade)),
                    Progress::Aborted => return Ok(Chosen::Nothing),
                    Progress::NeedsInput => {
                        input.reserve(INPUT_BYTES);
                        // Cancel-safe: bytes read stay in `input`.
                        tokio::select! {
                            received = stream.read_buf(input) => {
                                match received? {
                                    0 if *was_heard => return Err(SessionError::HungUp),
                                    0 => return Err(SessionError::Silent),
                                    _ => *was_heard = true,
                                }
                            }
                            () = shared.stop.cancelled(), if !is_stopping => {
                                is_stopping = true;
                                negotiation.stop();
                            }
                        }
                    }
                }
            }
        };
        let grace_is_over = async {
            shared.stop.cancelled().await;
            sleep(STOP_GRACE).await;
        };
        tokio::select! {
            haggled = timeout_at(self.deadline, haggling) => {
                haggled.map_err(|_| SessionError::NegotiationTimeout)?
            }
            () = grace_is_over => Err(SessionError::Stopped),
        }
    }

    /// Serves the reads of a client that has chosen an export, as long as it may have it.
    async fn read(
        &mut self,
        stream: &mut impl Stream,
        input: BytesMut,
        outbox: Outbox,
        entered: Entered<Arc<Export>>,
        shown: Shown,
    ) -> Result<&'static str, SessionError> {
        let shared = self.shared;
        self.client.opened(&entered.export.info().name, shared);
        self.counted = shared.metrics.connection(State::transmission);
        let withdrawn = shared.until_withdrawn(shown, entered.export.info().name.clone());
        let ending = tokio::select! {
            // First: what was allowed when the client came may not be any more.
            biased;
            withdrawn = withdrawn => return Err(SessionError::Withdrawn(withdrawn)),
            ending = transmit(stream, input, outbox, entered, shared, &self.client, &mut self.served) => ending?,
        };
        Ok(match ending {
            Ending::Disconnected => "disconnected by the client",
            Ending::Finished if shared.stop.is_cancelled() => "shutdown",
            Ending::Finished => "hung up by the client",
            // Told as an error already.
            Ending::Broken => "cut in the middle of a reply",
        })
    }

    /// Gives up waiting for a client that has not chosen when the server stops.
    async fn until_stopped<T>(&self, waiting: impl Future<Output = T>) -> Result<T, SessionError> {
        tokio::select! {
            done = waiting => Ok(done),
            () = self.shared.stop.cancelled() => Err(SessionError::Stopped),
        }
    }
}

/// Says that no more will come, and waits a moment for the client to do the same.
async fn hang_up(stream: &mut impl Stream) {
    let farewell = async {
        stream.shutdown().await?;
        let mut ignored = stream.take(LINGER_BYTES);
        tokio::io::copy(&mut ignored, &mut tokio::io::sink()).await
    };
    // It may be gone already, and there is nothing left to lose.
    let _ = timeout(LINGER, farewell).await;
}
