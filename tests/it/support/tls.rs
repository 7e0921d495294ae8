//! A small PKI, servers with its certificates, and a client that speaks TLS.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hexz_nbd::export::Catalogue;
use hexz_nbd::server::{Access, Policy, Tls, TlsMode};
use hexz_nbd::tls::issue::{self, Authority, Host, Issued, Validity};
use hexz_nbd::tls::revocation_list::RevocationList;
use hexz_nbd::tls::{ClientAuth, Material, MinVersion, Rule, Rules, TlsConfig};
use rcgen::RevocationReason;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::client::{ACK, Client, ERR_UNKNOWN, PATIENCE, option, query};
use crate::support::server::{Server, catalogue};

const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const GO: u32 = 7;

/// Both that are spoken.
pub(crate) const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A client that has upgraded.
pub(crate) type TlsClient = Client<TlsStream<TcpStream>>;

/// An authority and a server.
pub(crate) struct Pki {
    authority: Authority,
    ca_pem: String,
    pub(crate) server: Issued,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let (authority, ca) = Authority::generate(a_day()).unwrap();
        let server = server(&authority);
        Self { authority, ca_pem: ca.certificate_pem, server }
    }

    /// Another certificate for the server.
    pub(crate) fn renew_server(&mut self) {
        self.server = server(&self.authority);
    }

    /// A client of that common name.
    pub(crate) fn client(&self, name: &str) -> Issued {
        let client = issue::Client { common_name: name.to_owned(), ..issue::Client::default() };
        self.authority.client(&client, a_day()).unwrap()
    }

    /// A list of these, in PEM.
    pub(crate) fn crl(&self, revoked: &[&Issued]) -> String {
        let now = now();
        let mut list = RevocationList::default();
        for issued in revoked {
            let parsed = x509_parser::parse_x509_certificate(&issued.certificate).unwrap().1;
            list.add(parsed.raw_serial(), now, RevocationReason::Unspecified);
        }
        list.sign(&self.authority, now).unwrap()
    }

    /// What the server reads from its files, with its own CA for clients and nothing revoked.
    pub(crate) fn material(&self) -> Material {
        Material {
            chain: vec![self.server.certificate.clone()],
            key: key(&self.server),
            client_cas: vec![self.authority.certificate().clone()],
            crls: vec![],
            client_auth: ClientAuth::Required,
            server_not_after: self.server.not_after,
            files: vec![],
            warnings: vec![],
        }
    }

    /// As [`Pki::material`], with these revoked.
    pub(crate) fn material_without(&self, revoked: &[&Issued]) -> Material {
        let list = CertificateRevocationListDer::from_pem_slice(self.crl(revoked).as_bytes());
        Material { crls: vec![list.unwrap()], ..self.material() }
    }

    /// All that the server needs in one file, as `certs init` makes it.
    pub(crate) fn bundle(&self) -> String {
        [&self.server.key_pem[..], &self.server.certificate_pem, &self.ca_pem].concat()
    }

    /// A client that trusts this authority, shows a certificate, speaks these versions, and would
    /// resume its sessions.
    pub(crate) fn connector(
        &self,
        shown: &Issued,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![shown.certificate.clone()], key(shown))
            .unwrap();
        Arc::new(config)
    }

    /// A client that has just been made.
    pub(crate) fn somebody(&self) -> Arc<ClientConfig> {
        self.connector(&self.client("somebody"), &VERSIONS)
    }
}

/// A directory with files that only their owner can read.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Replaces the whole file at once, as whoever rotates certificates does.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let (path, new) = (self.path(name), self.path("new"));
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        io::Write::write_all(&mut options.open(&new).unwrap(), text.as_bytes()).unwrap();
        fs::rename(new, &path).unwrap();
        path
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// A copy of a fixture.
    pub(crate) fn copy(&self, from: &Path, name: &str) -> PathBuf {
        fs::copy(from, self.path(name)).unwrap();
        self.path(name)
    }
}

/// [`catalogue`] over TLS to whoever has a certificate.
pub(crate) fn policy(mode: TlsMode, material: &Material) -> Policy {
    policy_of(Arc::new(catalogue()), mode, material, Access::default())
}

pub(crate) fn policy_of(
    catalogue: Arc<Catalogue>,
    mode: TlsMode,
    material: &Material,
    access: Access,
) -> Policy {
    let config = TlsConfig::new(material, MinVersion::Tls12).unwrap();
    Policy { catalogue, tls: Some(Tls { mode, config }), access }
}

/// Rules that let in these common names.
pub(crate) fn allow(names: &[&str]) -> Rules {
    names.iter().map(|name| Rule::common_name(name).unwrap()).collect()
}

impl Client {
    /// Asks for TLS and shakes hands.
    pub(crate) async fn start_tls(mut self, config: &Arc<ClientConfig>) -> io::Result<TlsClient> {
        assert_eq!(self.option(STARTTLS, b"").await, (vec![], ACK));
        shake_hands(self.stream, config).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<TlsStream<S>> {
    /// Nothing more comes, and the server says so within TLS: the stream was not cut.
    pub(crate) async fn expect_close_notify(&mut self) {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await;
        read.expect("the server does not hang up").expect("the stream was cut");
        assert_eq!(rest, b"", "more came than was expected");
    }
}

/// After `STARTTLS` was acknowledged.
pub(crate) async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    config: &Arc<ClientConfig>,
) -> io::Result<Client<TlsStream<S>>> {
    let name = ServerName::try_from("localhost").unwrap();
    let handshake = TlsConnector::from(Arc::clone(config)).connect(name, stream);
    let stream = timeout(PATIENCE, handshake).await.expect("the server says nothing")?;
    Ok(Client { stream })
}

impl Server {
    /// Whoever has a certificate of the PKI reads everything, and nobody else anything.
    pub(crate) async fn with_tls(pki: &Pki) -> Self {
        let policy = policy(TlsMode::Required, &pki.material());
        Self::with(policy, hexz_nbd::server::Limits::default()).await
    }

    /// A client that has upgraded.
    pub(crate) async fn upgrade(&self, config: &Arc<ClientConfig>) -> TlsClient {
        self.greet().await.start_tls(config).await.unwrap()
    }

    /// A client that has upgraded and chosen an export.
    pub(crate) async fn open_tls(&self, export: &str, config: &Arc<ClientConfig>) -> TlsClient {
        let mut client = self.upgrade(config).await;
        client.go(export).await;
        client
    }

    /// Proves that the server still serves over TLS.
    pub(crate) async fn serves_tls(&self, config: &Arc<ClientConfig>) {
        let mut client = self.open_tls("disk", config).await;
        assert_eq!(client.read(1080, 2).await, [0x53, 0xef], "the magic of ext4");
        client.request(0, 2, 8, 0, 0).await;
        client.expect_close_notify().await;
    }

    /// The handshake of this client fails, and it gets nothing.
    pub(crate) async fn rejects(&self, config: &Arc<ClientConfig>) {
        // In TLS 1.3 the client is done before the server has seen its certificate.
        if let Ok(mut client) = self.greet().await.start_tls(config).await {
            // It may be gone already.
            let _ = client.stream.write_all(&option(LIST, b"")).await;
            let read = timeout(PATIENCE, client.stream.read(&mut [0])).await;
            read.expect("the server says nothing").expect_err("the client was let in");
        }
    }

    /// The client shakes hands, and there is nothing for it.
    pub(crate) async fn shows_nothing(&self, config: &Arc<ClientConfig>) {
        let mut client = self.upgrade(config).await;
        assert_eq!(client.option(LIST, b"").await, (vec![], ACK));
        for export in ["disk", "", "made up"] {
            assert_eq!(client.option(GO, &query(export, &[])).await, (vec![], ERR_UNKNOWN));
        }
    }
}

/// A stream that sends few bytes at a time, and breaks after so many.
pub(crate) struct Trickle {
    pub(crate) stream: TcpStream,
    pub(crate) piece_bytes: usize,
    pub(crate) left_bytes: usize,
}

impl AsyncRead for Trickle {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Trickle {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let piece = bytes.len().min(self.piece_bytes).min(self.left_bytes);
        if piece == 0 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let written = Pin::new(&mut self.stream).poll_write(context, &bytes[..piece]);
        if let Poll::Ready(Ok(count)) = &written {
            self.left_bytes -= count;
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn server(authority: &Authority) -> Issued {
    let hosts = ["localhost", "127.0.0.1"].map(|host| host.parse::<Host>().unwrap());
    authority.server(&hosts, a_day()).unwrap()
}

fn key(issued: &Issued) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap()
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from(std::time::SystemTime::now())
}

fn a_day() -> Validity {
    Validity::days(now(), 1).unwrap()
}
