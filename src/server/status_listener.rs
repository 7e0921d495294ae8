//! The sockets of the status: HTTP/1.1, over TLS where other hosts can reach it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::server::status::{Observer, router};

/// Those who ask at the same time. Others wait.
const CONNECTIONS_MAX: usize = 32;

/// For the TLS handshake, and for the head of a request.
const PATIENCE: Duration = Duration::from_secs(5);

/// From the first byte of a connection to the last, whatever it asks.
const CONNECTION_MAX: Duration = Duration::from_secs(300);

/// Pause after the system could not give a socket.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The address is in use, or not ours.
    #[error("cannot listen on {address} for the status")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// What other hosts can reach tells them what is served.
    #[error(
        "refusing to show the status on {0} without TLS and client certificates: names and sizes of \
         all exports would go to anybody who connects. Give a certificate with --tls-cert and the CA \
         of clients; or listen on loopback (127.0.0.1, [::1]); or say --insecure-allow-plaintext"
    )]
    Exposed(SocketAddr),
}

/// A socket on which the status is shown.
#[derive(Debug)]
pub struct StatusListener {
    socket: TcpListener,
    observer: Observer,
    /// Whether whoever asks needs a certificate.
    is_protected: bool,
    /// Whether only this host reaches it, so that nobody has to show a certificate.
    is_local: bool,
}

impl StatusListener {
    /// Takes the socket. On loopback the status is plain HTTP. What other hosts can reach is HTTPS
    /// with client certificates, with the same certificate and CAs as NBD, unless plaintext was
    /// allowed aloud.
    ///
    /// # Errors
    ///
    /// [`StatusError`].
    pub async fn bind(address: SocketAddr, observer: Observer) -> Result<Self, StatusError> {
        let is_exposed = !address.ip().to_canonical().is_loopback();
        let is_protected = is_exposed && !observer.shared.insecure.plaintext;
        if is_protected && !observer.asks_for_certificates() {
            return Err(StatusError::Exposed(address));
        }
        if is_exposed && !is_protected {
            tracing::warn!(%address, "the status is shown without TLS to whoever can reach it");
        }
        match TcpListener::bind(address).await {
            Ok(socket) => Ok(Self { socket, observer, is_protected, is_local: !is_exposed }),
            Err(source) => Err(StatusError::Bind { address, source }),
        }
    }

    /// Where it is, with the port that the system chose where 0 was asked for.
    ///
    /// # Errors
    ///
    /// If the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Answers whoever asks, until the future is dropped.
    pub async fn run(self) {
        let Self { socket, observer, is_protected, is_local } = self;
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut routes = router(observer.clone());
        if is_local {
            routes = routes.layer(axum::middleware::from_fn(only_by_address));
        }
        // Ends all of them when it is dropped.
        let mut asking = JoinSet::new();
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let stream = match socket.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept whoever asks for the status");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            while asking.try_join_next().is_some() {}
            let (routes, observer) = (routes.clone(), observer.clone());
            asking.spawn(async move {
                let answered = async {
                    if is_protected {
                        answer_over_tls(stream, routes, &observer).await;
                    } else {
                        answer(stream, routes).await;
                    }
                };
                // Who asks for longer may come again.
                let _ = timeout(CONNECTION_MAX, answered).await;
                drop(slot);
            });
        }
    }
}

/// Refuses what was sent to a name other than `localhost`.
///
/// A page of a stranger in a browser on this host can have its own name resolve to a loopback address
/// and would read who reads what (DNS rebinding). It cannot make the browser send another name.
async fn only_by_address(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).map(HeaderValue::as_bytes);
    if host.is_none_or(is_address) {
        return next.run(request).await;
    }
    let why =
        "the status is shown under an address, such as 127.0.0.1, or under the name localhost\n";
    (StatusCode::MISDIRECTED_REQUEST, why).into_response()
}

/// Whether the host of a URL is an address or `localhost`, whatever the port.
fn is_address(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let Ok(host) = host.parse::<Authority>() else { return false };
    let name = host.host();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

/// By the configuration that is in force now.
async fn answer_over_tls(stream: TcpStream, routes: Router, observer: &Observer) {
    let Some(config) = observer.tls() else { return };
    let handshake = TlsAcceptor::from(config).accept(stream);
    match timeout(PATIENCE, handshake).await {
        Ok(Ok(stream)) => answer(stream, routes).await,
        Ok(Err(error)) => tracing::debug!(%error, "no TLS with whoever asks for the status"),
        Err(_) => tracing::debug!("no TLS in time with whoever asks for the status"),
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, routes: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    if let Err(error) = connection.await {
        tracing::debug!(%error, "who asked for the status was not answered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_an_address_or_localhost() {
        for (host, is_good) in [
            ("127.0.0.1:9809", true),
            ("127.0.0.1", true),
            ("[::1]:9809", true),
            ("localhost:9809", true),
            ("LOCALHOST", true),
            ("192.0.2.1", true),
            ("attacker.example:9809", false),
            ("127.0.0.1.attacker.example", false),
            ("localhost.attacker.example", false),
            ("attacker.example@127.0.0.1@x", false),
            ("", false),
        ] {
            assert_eq!(is_address(host.as_bytes()), is_good, "{host}");
        }
        assert!(!is_address(b"\xff"));
    }
}
