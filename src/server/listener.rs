//! Accepting clients: on TCP and Unix sockets, whatever the system runs out of.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::server::activation::{HandedOver, StdSocket};
use crate::server::client;
use crate::server::panics::Contained;
use crate::server::session::{self, Peer};
use crate::server::{ServerError, Shared};

/// Pause after the system could not give a client's socket, as without file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A client whose machine has lost its power or its network says nothing more, ever, and would keep
/// its slot. After a minute of silence its kernel is asked whether it is there, four times in a
/// minute: it has been gone for two minutes then. The kernel of an idle client answers by itself.
/// Where replies are under way, the retransmissions of TCP find out.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// An address and a port. With port 0 the system chooses one.
    Tcp(SocketAddr),
    /// A socket in the file system. Who may use it is decided by the directory and its mode.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Endpoint {
    /// The address, if other hosts can reach it.
    pub(crate) fn exposed(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => (!address.ip().to_canonical().is_loopback()).then_some(*address),
            Self::Unix(_) => None,
        }
    }
}

/// A socket that clients connect to.
#[derive(Debug)]
pub(crate) struct Listener {
    endpoint: Endpoint,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    /// The file is its own, and not that of whoever handed the socket over.
    Unix(UnixListener, #[expect(dead_code, reason = "removes the file")] Option<SocketFile>),
}

enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Listener {
    pub(crate) async fn bind(endpoint: &Endpoint) -> io::Result<Self> {
        Ok(match endpoint {
            Endpoint::Tcp(address) => {
                let socket = TcpListener::bind(address).await?;
                let endpoint = Endpoint::Tcp(socket.local_addr()?);
                Self { endpoint, socket: Socket::Tcp(socket) }
            }
            Endpoint::Unix(path) => {
                let socket = bind_unix(path)?;
                let file = SocketFile(path.clone());
                Self { endpoint: endpoint.clone(), socket: Socket::Unix(socket, Some(file)) }
            }
        })
    }

    /// Within a runtime.
    pub(crate) fn of(HandedOver { endpoint, socket }: HandedOver) -> io::Result<Self> {
        let socket = match socket {
            StdSocket::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                Socket::Tcp(TcpListener::from_std(socket)?)
            }
            StdSocket::Unix(socket) => {
                socket.set_nonblocking(true)?;
                Socket::Unix(UnixListener::from_std(socket)?, None)
            }
        };
        Ok(Self { endpoint, socket })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Gives every client a task of its own, as long as there are slots. Ends with an error only
    /// if the socket itself is broken.
    pub(crate) async fn accept_all(self, shared: Arc<Shared>) -> Result<(), ServerError> {
        loop {
            let accepted = match self.accept().await {
                Ok(accepted) => accepted,
                Err(source) if is_broken(&source) => {
                    return Err(ServerError::Accept { endpoint: self.endpoint, source });
                }
                Err(error) => {
                    tracing::warn!(endpoint = %self.endpoint, %error, "cannot accept a client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // One client waits here without a slot; those behind it wait in the socket's queue.
            let Ok(slot) = Arc::clone(&shared.connections).acquire_owned().await else {
                return Ok(());
            };
            shared.metrics.accepted();
            let for_task = Arc::clone(&shared);
            match accepted {
                Accepted::Tcp(stream, peer) => {
                    let Some(address_slot) = shared.addresses.admit(peer.ip()) else {
                        client::turned_away(Peer::Tcp(peer), &shared);
                        continue;
                    };
                    if let Err(error) = keep_alive(&stream) {
                        tracing::debug!(%peer, %error, "cannot set keepalive");
                    }
                    shared.tasks.spawn(Contained::new(Peer::Tcp(peer), async move {
                        session::serve_tcp(stream, peer, &for_task).await;
                        drop((slot, address_slot));
                    }));
                }
                Accepted::Unix(stream) => {
                    shared.tasks.spawn(Contained::new(Peer::Unix, async move {
                        session::serve_unix(stream, &for_task).await;
                        drop(slot);
                    }));
                }
            }
        }
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Tcp(socket) => {
                let (stream, peer) = socket.accept().await?;
                Ok(Accepted::Tcp(stream, peer))
            }
            Socket::Unix(socket, _) => Ok(Accepted::Unix(socket.accept().await?.0)),
        }
    }
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Everything else passes: a client that is gone already, descriptors or memory that are used up.
fn is_broken(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP)
    )
}

/// Binds a Unix socket, over one that a dead server left.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

fn is_abandoned(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    is_socket
        && StdUnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// The file of a socket, which is of no use without the server.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::info!(path = ?self.0, %error, "cannot remove the socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_of_a_dead_server_is_replaced_and_that_of_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let endpoint = Endpoint::Unix(directory.path().join("socket"));
        let live = Listener::bind(&endpoint).await.unwrap();
        let refused = Listener::bind(&endpoint).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(live);
        assert!(!directory.path().join("socket").exists());

        drop(std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap());
        Listener::bind(&endpoint).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(Listener::bind(&Endpoint::Unix(path.clone())).await.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[tokio::test]
    async fn a_client_that_vanished_is_noticed_within_two_minutes() {
        let listener = Listener::bind(&Endpoint::Tcp(([127, 0, 0, 1], 0).into())).await.unwrap();
        let Endpoint::Tcp(address) = *listener.endpoint() else { panic!() };
        let _client = TcpStream::connect(address).await.unwrap();
        let Ok(Accepted::Tcp(stream, _)) = listener.accept().await else { panic!() };
        keep_alive(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        let probing =
            socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
        let noticed = socket.tcp_keepalive_time().unwrap() + probing;
        assert_eq!(noticed, Duration::from_secs(120));
    }

    #[test]
    fn running_out_of_descriptors_is_no_reason_to_stop() {
        for (errno, broken) in [
            (Errno::MFILE, false),
            (Errno::NFILE, false),
            (Errno::NOMEM, false),
            (Errno::CONNABORTED, false),
            (Errno::PERM, false),
            (Errno::BADF, true),
            (Errno::INVAL, true),
        ] {
            assert_eq!(is_broken(&io::Error::from(errno)), broken, "{errno}");
        }
    }
}
