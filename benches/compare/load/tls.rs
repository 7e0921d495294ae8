//! TLS 1.3: the handshake by rustls, and then records in place.
//!
//! rustls decrypts into a buffer of its own for each record. With the keys that it hands out (as it
//! does for kernel TLS) a record is decrypted where it was received, so the client costs AES-GCM
//! and little else.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, ConnectionTrafficSecrets, RootCertStore, version};

const RECORD_HEADER_BYTES: usize = 5;
const RECORD_PLAIN_BYTES_MAX: usize = 16 * 1024;
const TAG_BYTES: usize = 16;
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const NEW_SESSION_TICKET: u8 = 4;

/// What a client needs for a handshake.
pub(crate) struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Client {
    /// One cipher suite, AES-256-GCM, and one key exchange, X25519, so that every server does the
    /// same work. No session is resumed.
    pub(crate) fn new(directory: &Path, name: &str) -> io::Result<Self> {
        let file = |name: &str| directory.join(name);
        let pem = |name: &str, error| {
            io::Error::other(format!("cannot use {}: {error}", file(name).display()))
        };
        let certificates = |name: &str| -> io::Result<Vec<CertificateDer<'static>>> {
            CertificateDer::pem_file_iter(file(name))
                .and_then(Iterator::collect)
                .map_err(|error| pem(name, error))
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates("ca-cert.pem")? {
            roots.add(certificate).map_err(io::Error::other)?;
        }
        let key = PrivateKeyDer::from_pem_file(file("client-key.pem"))
            .map_err(|error| pem("client-key.pem", error))?;
        let provider = CryptoProvider {
            cipher_suites: vec![provider::cipher_suite::TLS13_AES_256_GCM_SHA384],
            kx_groups: vec![provider::kx_group::X25519],
            ..provider::default_provider()
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&version::TLS13])
            .and_then(|config| {
                config
                    .with_root_certificates(roots)
                    .with_client_auth_cert(certificates("client-cert.pem").map_err(other)?, key)
            })
            .map_err(io::Error::other)?;
        config.resumption = Resumption::disabled();
        config.enable_secret_extraction = true;
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        Ok(Self { config: Arc::new(config), name })
    }

    /// Shakes hands. `buffer` holds the returned number of bytes then, which were received behind
    /// the handshake: tickets, as a rule.
    pub(crate) fn handshake(
        &self,
        stream: &mut TcpStream,
        buffer: &mut [u8],
    ) -> io::Result<(Records, usize)> {
        let mut connection =
            UnbufferedClientConnection::new(Arc::clone(&self.config), self.name.clone())
                .map_err(io::Error::other)?;
        let mut filled = 0;
        let mut out = Vec::with_capacity(4096);
        loop {
            let UnbufferedStatus { discard, state } =
                connection.process_tls_records(&mut buffer[..filled]);
            let mut done = false;
            let mut wants_more = false;
            match state.map_err(io::Error::other)? {
                ConnectionState::EncodeTlsData(mut data) => {
                    let end = out.len();
                    while let Err(EncodeError::InsufficientSize(error)) =
                        data.encode(&mut out[end..])
                    {
                        out.resize(end + error.required_size, 0);
                    }
                }
                ConnectionState::TransmitTlsData(transmitted) => {
                    stream.write_all(&out)?;
                    out.clear();
                    transmitted.done();
                }
                ConnectionState::BlockedHandshake => wants_more = true,
                ConnectionState::WriteTraffic(_) => done = true,
                other => return Err(io::Error::other(format!("{other:?} during the handshake"))),
            }
            buffer.copy_within(discard..filled, 0);
            filled -= discard;
            if done {
                let (secrets, _) =
                    connection.dangerous_into_kernel_connection().map_err(io::Error::other)?;
                let records = Records {
                    incoming: Direction::new(secrets.rx)?,
                    outgoing: Direction::new(secrets.tx)?,
                };
                return Ok((records, filled));
            }
            if wants_more {
                let received = stream.read(&mut buffer[filled..])?;
                if received == 0 {
                    return Err(io::Error::other("the server hung up during the handshake"));
                }
                filled += received;
            }
        }
    }
}

fn other(error: io::Error) -> rustls::Error {
    rustls::Error::General(error.to_string())
}

/// Both directions of a connection after its handshake.
pub(crate) struct Records {
    incoming: Direction,
    outgoing: Direction,
}

impl Records {
    /// Decrypts each whole record of `received` where it is and gives its data to `take`. Returns
    /// how many bytes these were.
    pub(crate) fn open(
        &mut self,
        received: &mut [u8],
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<usize> {
        let mut at = 0;
        while let Some(header) = received.get(at..at + RECORD_HEADER_BYTES) {
            let header: [u8; RECORD_HEADER_BYTES] =
                [header[0], header[1], header[2], header[3], header[4]];
            let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
            let start = at + RECORD_HEADER_BYTES;
            let Some(record) = received.get_mut(start..start + length) else { break };
            at = start + length;
            match header[0] {
                CHANGE_CIPHER_SPEC => continue,
                APPLICATION_DATA => {}
                kind => return Err(io::Error::other(format!("a record of type {kind}"))),
            }
            let plain = self
                .incoming
                .key
                .open_in_place(self.incoming.sequence.next(), Aad::from(header), record)
                .map_err(|_| io::Error::other("a record that does not decrypt"))?;
            let Some(last) = plain.iter().rposition(|byte| *byte != 0) else {
                return Err(io::Error::other("a record without a type"));
            };
            let (data, kind) = (&plain[..last], plain[last]);
            match (kind, data.first()) {
                (APPLICATION_DATA, _) => take(data)?,
                (HANDSHAKE, Some(&NEW_SESSION_TICKET)) => {}
                (ALERT, _) if data.get(1) == Some(&0) => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                (kind, first) => {
                    return Err(io::Error::other(format!("TLS content {kind}, {first:?}")));
                }
            }
        }
        Ok(at)
    }

    /// Appends `plain` as records.
    pub(crate) fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        for part in plain.chunks(RECORD_PLAIN_BYTES_MAX) {
            let length = ((part.len() + 1 + TAG_BYTES) as u16).to_be_bytes();
            let header = [APPLICATION_DATA, 3, 3, length[0], length[1]];
            out.extend_from_slice(&header);
            let start = out.len();
            out.extend_from_slice(part);
            out.push(APPLICATION_DATA);
            let tag = self
                .outgoing
                .key
                .seal_in_place_separate_tag(
                    self.outgoing.sequence.next(),
                    Aad::from(header),
                    &mut out[start..],
                )
                .map_err(|_| io::Error::other("cannot encrypt"))?;
            out.extend_from_slice(tag.as_ref());
        }
        Ok(())
    }
}

struct Direction {
    key: LessSafeKey,
    sequence: Sequence,
}

impl Direction {
    fn new((number, secrets): (u64, ConnectionTrafficSecrets)) -> io::Result<Self> {
        let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else {
            return Err(io::Error::other("no AES-256-GCM was negotiated"));
        };
        let mut fixed = [0; 12];
        fixed.copy_from_slice(iv.as_ref());
        let key = UnboundKey::new(&AES_256_GCM, key.as_ref()).map_err(io::Error::other)?;
        Ok(Self { key: LessSafeKey::new(key), sequence: Sequence { iv: fixed, number } })
    }
}

/// Numbers of records, of which each is used once.
struct Sequence {
    iv: [u8; 12],
    number: u64,
}

impl Sequence {
    fn next(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.number.to_be_bytes()) {
            *byte ^= number;
        }
        self.number += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}
