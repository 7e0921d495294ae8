//! The configuration of rustls that follows from keys and certificates.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};

use crate::tls::expiry::{Expiry, expiries};
use crate::tls::handshake::HandshakeFailure;
use crate::tls::material::Material;

static TLS13_ONLY: &[&SupportedProtocolVersion] = &[&TLS13];

/// Whether clients have to show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// No handshake succeeds without one that a client CA signed.
    Required,
    /// Clients without one are let in. One that is shown is verified all the same.
    Anonymous,
}

/// The oldest version of TLS that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MinVersion {
    /// 1.2 and 1.3. The stock nbd-client speaks 1.2 only.
    #[default]
    Tls12,
    /// 1.3 only.
    Tls13,
}

impl MinVersion {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::Tls12 => rustls::ALL_VERSIONS,
            Self::Tls13 => TLS13_ONLY,
        }
    }
}

impl FromStr for MinVersion {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "1.2" => Ok(Self::Tls12),
            "1.3" => Ok(Self::Tls13),
            _ => Err(ConfigError::UnknownVersion),
        }
    }
}

impl fmt::Display for MinVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls12 => "1.2",
            Self::Tls13 => "1.3",
        })
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a version of TLS that is spoken here.
    #[error("the oldest version of TLS is either 1.2 or 1.3")]
    UnknownVersion,
    /// Client certificates are required and nobody could have signed them.
    #[error("client certificates are required, but there is no client CA to check them against")]
    NoClientCa,
    /// A client CA is no certificate that one can trust.
    #[error("a client CA cannot be used: {0}")]
    ClientCa(rustls::Error),
    /// Client CAs and revocation lists do not make a verifier.
    #[error("client certificates cannot be verified: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// Certificate and key do not make a server.
    #[error("the server's certificate and key cannot be used: {0}")]
    Server(rustls::Error),
}

/// How this server speaks TLS, and whom it believes.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    server: Arc<ServerConfig>,
    /// The one inside `server`. There is none if no client is asked for a certificate.
    clients: Option<Arc<dyn ClientCertVerifier>>,
    expiries: Arc<[Expiry]>,
}

impl TlsConfig {
    /// Builds the configuration.
    ///
    /// * AEAD suites only: rustls has no others. No renegotiation and no compression, which it
    ///   lacks too.
    /// * **No resumption**: no tickets are sent and no session is stored, so each connection is a
    ///   full handshake against the CAs, lists and rules of its moment, and nothing outlives a
    ///   reload. An NBD connection lives for hours; a handshake saved is not worth a revoked client
    ///   let in, which is what resumption led to in Go (CVE-2025-68121) and nginx (CVE-2025-23419).
    ///   No 0-RTT follows from it.
    /// * **Revocation** is checked for the whole chain below the CA. A certificate whose issuer has
    ///   no list passes: a list of one CA must not lock out another one's clients. That it passes
    ///   only then, and not because a list of its issuer was found not to apply (the class of
    ///   RUSTSEC-2026-0049), is why [`Material::load`] takes complete lists only.
    /// * **A list past its `nextUpdate`** goes on to be used, and is a warning: it still names
    ///   everybody who was revoked, whereas refusing it would lock out every client at the moment
    ///   at which a cron job failed.
    /// * The names of the client CAs are not sent. They are nobody's business before a handshake,
    ///   and clients that find no match among them (GnuTLS, OpenSSL) send no certificate at all,
    ///   so the log could not say that theirs is of another CA.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]. Material that was loaded from files for the same [`ClientAuth`] has been
    /// checked for each of them.
    pub fn new(material: &Material, min_version: MinVersion) -> Result<Self, ConfigError> {
        let provider = provider();
        let clients = client_verifier(material, &provider)?;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(min_version.versions())
            .map_err(ConfigError::Server)?;
        let mut server = match &clients {
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
            None => builder.with_no_client_auth(),
        }
        .with_single_cert(material.chain.clone(), material.key.clone_key())
        .map_err(ConfigError::Server)?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;
        let expiries = expiries(material).into();
        Ok(Self { server: Arc::new(server), clients, expiries })
    }

    /// What a handshake needs.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// Until when what it is made of is good.
    #[must_use]
    pub fn expiries(&self) -> &[Expiry] {
        &self.expiries
    }

    /// Whether no handshake succeeds without a client certificate.
    #[must_use]
    pub fn requires_client_certificate(&self) -> bool {
        self.clients.as_ref().is_some_and(|clients| clients.client_auth_mandatory())
    }

    /// Verifies the certificates of a connection that is open already against this configuration:
    /// whether CAs, revocation lists and the time of day still allow what another configuration,
    /// or an earlier moment, allowed. `None` is a client without a certificate.
    ///
    /// # Errors
    ///
    /// What a new handshake of that client would fail with.
    pub fn verify_again(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
    ) -> Result<(), HandshakeFailure> {
        let Some(clients) = &self.clients else { return Ok(()) };
        match chain.and_then(<[_]>::split_first) {
            Some((leaf, intermediates)) => clients
                .verify_client_cert(leaf, intermediates, UnixTime::now())
                .map(|_| ())
                .map_err(|error| HandshakeFailure::from(&error)),
            None if clients.client_auth_mandatory() => {
                Err(HandshakeFailure::from(&rustls::Error::NoCertificatesPresented))
            }
            None => Ok(()),
        }
    }
}

/// The one source of cryptography, named in each place: the default of the process belongs to
/// whoever sets it first.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn client_verifier(
    material: &Material,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, ConfigError> {
    if material.client_cas.is_empty() {
        return match material.client_auth {
            ClientAuth::Required => Err(ConfigError::NoClientCa),
            ClientAuth::Anonymous => Ok(None),
        };
    }
    let mut roots = RootCertStore::empty();
    for ca in &material.client_cas {
        roots.add(ca.clone()).map_err(ConfigError::ClientCa)?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(provider))
        .with_crls(material.crls.iter().cloned())
        .allow_unknown_revocation_status()
        .clear_root_hint_subjects();
    let builder = match material.client_auth {
        ClientAuth::Required => builder,
        ClientAuth::Anonymous => builder.allow_unauthenticated(),
    };
    Ok(Some(builder.build()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    use rustls::SupportedCipherSuite;

    use crate::tls::testing::{Ca, material, tls_config};

    /// Encrypt-then-MAC and CBC would be others. rustls has never had them, and this notices if a
    /// release or a feature brings one.
    #[test]
    fn every_cipher_suite_is_one_with_aead() {
        let ca = Ca::new("test CA");
        let config = tls_config(&format!("{}{}", ca.server().pem(), ca.cert), &[]).server();
        let suites: &[SupportedCipherSuite] = &config.crypto_provider().cipher_suites;
        assert!(suites.len() >= 5);
        for suite in suites {
            let name = format!("{:?}", suite.suite());
            assert!(name.contains("GCM") || name.contains("CHACHA20_POLY1305"), "{name}");
        }
    }

    #[test]
    fn nothing_is_kept_between_connections_and_nothing_is_accepted_early() {
        let ca = Ca::new("test CA");
        let config = tls_config(&format!("{}{}", ca.server().pem(), ca.cert), &[]).server();
        assert!(!config.session_storage.can_cache());
        assert!(!config.ticketer.enabled());
        assert_eq!((config.send_tls13_tickets, config.max_early_data_size), (0, 0));
        assert!(!config.send_half_rtt_data);
        assert!(config.alpn_protocols.is_empty());
    }

    #[test]
    fn material_that_nobody_checked_is_an_error_and_no_panic() {
        let ca = Ca::new("test CA");
        let material = || material(&format!("{}{}", ca.server().pem(), ca.cert), &[]);
        let build = |material: &Material| TlsConfig::new(material, MinVersion::Tls12);
        assert!(build(&material()).is_ok());

        let mut none = material();
        none.client_cas.clear();
        assert!(matches!(build(&none), Err(ConfigError::NoClientCa)));
        let mut garbage = material();
        garbage.client_cas = vec![vec![1, 2, 3].into()];
        assert!(matches!(build(&garbage), Err(ConfigError::ClientCa(_))));
        let mut garbage = material();
        garbage.crls = vec![vec![1, 2, 3].into()];
        assert!(matches!(build(&garbage), Err(ConfigError::Verifier(_))));
        let mut other = material();
        other.chain = vec![ca.client("other").der];
        assert!(matches!(build(&other), Err(ConfigError::Server(_))));
        let mut empty = material();
        empty.chain.clear();
        assert!(matches!(build(&empty), Err(ConfigError::Server(_))));
    }

    #[test]
    fn the_oldest_version_is_written_as_it_is_read() {
        for version in [MinVersion::Tls12, MinVersion::Tls13] {
            assert_eq!(version.to_string().parse::<MinVersion>().unwrap(), version);
        }
        for text in ["", "1", "1.1", "1.4", "TLSv1.2"] {
            assert!(text.parse::<MinVersion>().is_err(), "{text}");
        }
    }
}
