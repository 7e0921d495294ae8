//! The sockets of the status: HTTP/1.1, over TLS where other hosts can reach it.
//!
//! Whether the server is alive must be answered whoever else asks: a connection has one request and
//! seconds to be over with it, and when there are too many, the oldest makes room.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::server::status::{Observer, router, router_for_others};
use crate::server::upgrade;
use crate::tls::PeerIdentity;

/// Those who ask at the same time. When another comes, the oldest is cut off.
const CONNECTIONS_MAX: usize = 64;

/// For the TLS handshake, and for the head of a request.
const PATIENCE: Duration = Duration::from_secs(5);

/// From the first byte of a connection to the last.
const CONNECTION_MAX: Duration = Duration::from_secs(15);

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
    /// Names by which it may be asked for in plaintext, beside addresses. `None` where whoever asks
    /// needs a certificate.
    hosts: Option<Arc<[String]>>,
}

impl StatusListener {
    /// Takes the socket. On loopback the status is plain HTTP. What other hosts can reach is HTTPS
    /// with client certificates, with the same certificate and CAs as NBD, unless plaintext was
    /// allowed aloud. In plaintext it is asked for by address, as `localhost`, or by one of `hosts`.
    ///
    /// # Errors
    ///
    /// [`StatusError`].
    pub async fn bind(
        address: SocketAddr,
        hosts: Arc<[String]>,
        observer: Observer,
    ) -> Result<Self, StatusError> {
        let is_exposed = !address.ip().to_canonical().is_loopback();
        let is_protected = is_exposed && !observer.shared.insecure.plaintext;
        if is_protected && !observer.asks_for_certificates() {
            return Err(StatusError::Exposed(address));
        }
        if is_exposed && !is_protected {
            tracing::warn!(%address, "the status is shown without TLS to whoever can reach it");
        }
        let hosts = (!is_protected).then_some(hosts);
        match TcpListener::bind(address).await {
            Ok(socket) => Ok(Self { socket, observer, hosts }),
            Err(source) => Err(StatusError::Bind { address, source }),
        }
    }

    /// Whether whoever asks has to show a certificate.
    #[must_use]
    pub fn asks_for_certificates(&self) -> bool {
        self.hosts.is_none()
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
        let Self { socket, observer, hosts } = self;
        let shown = match hosts {
            Some(hosts) => {
                let by_name = axum::middleware::from_fn_with_state(hosts, only_by_name);
                Shown::Plain(router(observer.clone()).layer(by_name))
            }
            None => Shown::Certified {
                to_all: router_for_others(observer.clone()),
                to_some: router(observer.clone()),
            },
        };
        // Ends all of them when it is dropped.
        let mut asking = JoinSet::new();
        let mut oldest_first = VecDeque::new();
        loop {
            let stream = match socket.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept whoever asks for the status");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            while asking.try_join_next().is_some() {}
            make_room(&mut oldest_first);
            let (shown, observer) = (shown.clone(), observer.clone());
            oldest_first.push_back(asking.spawn(async move {
                let answered = async {
                    match shown {
                        Shown::Plain(routes) => answer(stream, routes).await,
                        Shown::Certified { to_all, to_some } => {
                            answer_over_tls(stream, to_all, to_some, &observer).await;
                        }
                    }
                };
                // Who takes longer may come again.
                let _ = timeout(CONNECTION_MAX, answered).await;
            }));
        }
    }
}

/// What is shown to whom.
#[derive(Debug, Clone)]
enum Shown {
    Plain(Router),
    /// By what the rules say of a client's certificate.
    Certified {
        to_all: Router,
        to_some: Router,
    },
}

/// Forgets those who are done, and cuts off the oldest of too many.
fn make_room(oldest_first: &mut VecDeque<AbortHandle>) {
    oldest_first.retain(|connection| !connection.is_finished());
    while oldest_first.len() >= CONNECTIONS_MAX
        && let Some(oldest) = oldest_first.pop_front()
    {
        oldest.abort();
    }
}

/// Refuses what was sent to a name that is not known.
///
/// A page of a stranger in a browser that reaches the status can have its own name resolve to this
/// address and would read who reads what (DNS rebinding). It cannot make the browser send another name.
async fn only_by_name(
    State(hosts): State<Arc<[String]>>,
    request: Request,
    next: Next,
) -> Response {
    let host = request.headers().get(header::HOST).map(HeaderValue::as_bytes);
    if host.is_none_or(|host| is_known(host, &hosts)) {
        return next.run(request).await;
    }
    let why = "the status is shown under an address, such as 127.0.0.1, under the name localhost, or \
               under a name of --status-host\n";
    (StatusCode::MISDIRECTED_REQUEST, why).into_response()
}

/// Whether the host of a URL is an address, `localhost` or one of these names, whatever the port.
fn is_known(host: &[u8], hosts: &[String]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let Ok(host) = host.parse::<Authority>() else { return false };
    let name = host.host();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let mut names = hosts.iter().map(String::as_str).chain(["localhost"]);
    names.any(|known| name.eq_ignore_ascii_case(known)) || address.parse::<IpAddr>().is_ok()
}

/// By the configuration that is in force now.
async fn answer_over_tls(stream: TcpStream, to_all: Router, to_some: Router, observer: &Observer) {
    let Some(config) = observer.tls() else { return };
    let handshake = upgrade::shake_hands(stream, config, &observer.shared.turns);
    let stream = match timeout(PATIENCE, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "no TLS with whoever asks for the status");
            return;
        }
        Err(_) => {
            tracing::debug!("no TLS in time with whoever asks for the status");
            return;
        }
    };
    let (_, connection) = stream.get_ref();
    let chain = connection.peer_certificates();
    let identity = chain.and_then(|chain| PeerIdentity::from_chain(chain).ok());
    let routes = if observer.may_be_seen_by(identity.as_ref()) { to_some } else { to_all };
    answer(stream, routes).await;
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, routes: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    if let Err(error) = connection.await {
        tracing::debug!(%error, "who asked for the status was not answered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_an_address_or_localhost_or_a_name_of_ours() {
        let ours = ["gateway.example.com".to_owned()];
        for (host, is_good) in [
            ("127.0.0.1:9809", true),
            ("127.0.0.1", true),
            ("[::1]:9809", true),
            ("localhost:9809", true),
            ("LOCALHOST", true),
            ("192.0.2.1", true),
            ("Gateway.example.com:9809", true),
            ("gateway.example.com.attacker.example", false),
            ("attacker.example:9809", false),
            ("127.0.0.1.attacker.example", false),
            ("localhost.attacker.example", false),
            ("attacker.example@127.0.0.1@x", false),
            ("", false),
        ] {
            assert_eq!(is_known(host.as_bytes(), &ours), is_good, "{host}");
        }
        assert!(!is_known(b"\xff", &ours));
    }
}
