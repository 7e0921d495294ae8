//! Sockets that the service manager made: systemd's `LISTEN_FDS`, sd_listen_fds(3).

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;

use listenfd::ListenFd;
use socket2::SockRef;

use crate::server::listener::Endpoint;

/// The first descriptor that is handed over, as the protocol has it.
const FIRST_DESCRIPTOR: usize = 3;

/// A listening socket that was handed to this process. Its file, if it has one, is the giver's.
#[derive(Debug)]
pub struct HandedOver {
    pub(crate) endpoint: Endpoint,
    pub(crate) socket: StdSocket,
}

#[derive(Debug)]
pub(crate) enum StdSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Why what was handed over cannot be served on.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// A datagram socket, a pipe, a connection: nobody could connect to it.
    #[error(
        "descriptor {descriptor}, which the service manager handed over, is no listening stream \
         socket; in a systemd socket unit use ListenStream= with Accept=no"
    )]
    NotListening {
        /// Its number.
        descriptor: usize,
    },
    /// It has no file whose directory and mode could keep strangers out.
    #[error(
        "descriptor {descriptor}, which the service manager handed over, is a Unix socket without \
         a file, to which every process of the machine could connect; give it a path"
    )]
    NoPath {
        /// Its number.
        descriptor: usize,
    },
    /// It does not even say what it is.
    #[error("descriptor {descriptor}, which the service manager handed over, cannot be used")]
    Unusable {
        /// Its number.
        descriptor: usize,
        /// Why.
        source: io::Error,
    },
}

/// Takes the sockets that were handed to this process, none if there are none. They can be taken
/// once: the variables that tell of them are removed from the environment, which is why this must
/// be called before there are threads.
///
/// # Errors
///
/// [`ActivationError`] if one of them is no listening stream socket.
pub fn take() -> Result<Vec<HandedOver>, ActivationError> {
    let mut given = ListenFd::from_env();
    (0..given.len()).map(|index| take_one(&mut given, index)).collect()
}

fn take_one(given: &mut ListenFd, index: usize) -> Result<HandedOver, ActivationError> {
    let descriptor = FIRST_DESCRIPTOR.saturating_add(index);
    let unusable = |source| ActivationError::Unusable { descriptor, source };
    let not_listening = ActivationError::NotListening { descriptor };
    // What is not of the one kind may be of the other.
    if let Ok(Some(socket)) = given.take_tcp_listener(index) {
        if !SockRef::from(&socket).is_listener().map_err(unusable)? {
            return Err(not_listening);
        }
        let endpoint = Endpoint::Tcp(socket.local_addr().map_err(unusable)?);
        return Ok(HandedOver { endpoint, socket: StdSocket::Tcp(socket) });
    }
    let Ok(Some(socket)) = given.take_unix_listener(index) else { return Err(not_listening) };
    if !SockRef::from(&socket).is_listener().map_err(unusable)? {
        return Err(not_listening);
    }
    let address = socket.local_addr().map_err(unusable)?;
    let path = address.as_pathname().map(Path::to_owned);
    let endpoint = Endpoint::Unix(path.ok_or(ActivationError::NoPath { descriptor })?);
    Ok(HandedOver { endpoint, socket: StdSocket::Unix(socket) })
}
