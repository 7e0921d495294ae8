//! Certificates, files and handshakes for the tests of this part.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use crate::tls::config::{ClientAuth, MinVersion, TlsConfig, provider};
use crate::tls::material::Material;
use crate::tls::sources::{ServerFiles, Sources};

/// What a certificate and its key are in PEM, and the certificate in DER.
#[derive(Debug, Clone)]
pub(super) struct Leaf {
    pub(super) cert: String,
    pub(super) key: String,
    pub(super) der: CertificateDer<'static>,
    pub(super) serial: Vec<u8>,
}

impl Leaf {
    /// Certificate and key in one text.
    pub(super) fn pem(&self) -> String {
        format!("{}{}", self.cert, self.key)
    }
}

/// A CA that signs whatever it is asked to.
pub(super) struct Ca {
    pub(super) cert: String,
    pub(super) key: String,
    pub(super) der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(super) fn new(name: &str) -> Self {
        let (params, key) = (ca_params(name), KeyPair::generate().unwrap());
        let cert = params.self_signed(&key).unwrap();
        Self {
            cert: cert.pem(),
            key: key.serialize_pem(),
            der: cert.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    pub(super) fn intermediate(&self, name: &str) -> Self {
        let (params, key) = (ca_params(name), KeyPair::generate().unwrap());
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Self {
            cert: cert.pem(),
            key: key.serialize_pem(),
            der: cert.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A server certificate for `localhost`.
    pub(super) fn server(&self) -> Leaf {
        self.issue(leaf_params("server", ExtendedKeyUsagePurpose::ServerAuth))
    }

    /// A client certificate.
    pub(super) fn client(&self, name: &str) -> Leaf {
        self.issue(leaf_params(name, ExtendedKeyUsagePurpose::ClientAuth))
    }

    pub(super) fn issue(&self, mut params: CertificateParams) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let serial = KeyPair::generate().unwrap().public_key_raw()[1..17].to_vec();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Leaf { cert: cert.pem(), key: key.serialize_pem(), der: cert.der().clone(), serial }
    }

    /// A revocation list that names these.
    pub(super) fn crl(&self, revoked: &[&Leaf]) -> String {
        self.crl_with(revoked, |_| {})
    }

    pub(super) fn crl_with(
        &self,
        revoked: &[&Leaf],
        change: impl FnOnce(&mut CertificateRevocationListParams),
    ) -> String {
        let revoked = revoked.iter().map(|leaf| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&leaf.serial),
            revocation_time: now() - Duration::HOUR,
            reason_code: None,
            invalidity_date: None,
        });
        let mut params = CertificateRevocationListParams {
            this_update: now() - Duration::HOUR,
            next_update: now() + Duration::DAY,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        change(&mut params);
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

pub(super) fn now() -> OffsetDateTime {
    OffsetDateTime::from(std::time::SystemTime::now())
}

pub(super) fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

pub(super) fn leaf_params(name: &str, purpose: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now() - Duration::DAY;
    params.not_after = now() + Duration::DAY;
    params
}

/// A directory with files that only their owner can read.
pub(super) struct Files(TempDir);

impl Files {
    pub(super) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        self.protect(name, 0o600);
        path
    }

    pub(super) fn protect(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Runs openssl among the files. Arguments are parted by spaces.
    pub(super) fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(self.0.path())
            .output()
            .expect("the tests need the openssl command");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments}: {errors}");
    }

    pub(super) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

/// One bundle, and nothing else named.
pub(super) fn sources(cert: &Path) -> Sources {
    Sources {
        server: ServerFiles::Files { cert: cert.to_owned(), key: None },
        client_cas: vec![],
        crls: vec![],
        credentials_directory: None,
        client_auth: ClientAuth::Required,
        insecure_key_permissions: false,
    }
}

/// A server whose bundle is this text, and whose revocation lists are those.
pub(super) fn tls_config(bundle: &str, crls: &[&str]) -> TlsConfig {
    TlsConfig::new(&material(bundle, crls), MinVersion::Tls12).unwrap()
}

pub(super) fn material(bundle: &str, crls: &[&str]) -> Material {
    let files = Files::new();
    let mut sources = sources(&files.write("srv.pem", bundle));
    let crls = crls.iter().fold(String::new(), |mut all, crl| {
        write!(all, "{crl}").unwrap();
        all
    });
    if !crls.is_empty() {
        sources.crls.push(files.write("crls.pem", crls));
    }
    Material::load(&sources).unwrap()
}

/// A client that trusts a CA, and shows a certificate or none.
pub(super) fn client(
    ca: &Ca,
    versions: &[&'static rustls::SupportedProtocolVersion],
    shown: Option<(Vec<CertificateDer<'static>>, &str)>,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der.clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match shown {
        // As a client of another library would: rustls checks its own certificate first.
        Some((chain, key)) => {
            let key = any_supported_type(&private_key(key)).unwrap();
            let shown = SingleCertAndKey::from(CertifiedKey::new(chain, key));
            builder.with_client_cert_resolver(Arc::new(shown))
        }
        None => builder.with_no_client_auth(),
    })
}

fn private_key(pem: &str) -> PrivateKeyDer<'static> {
    rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap()
}

/// Both ends after a handshake, and what ended it on each.
#[derive(Debug)]
pub(super) struct Shaken {
    pub(super) server: ServerConnection,
    pub(super) client: ClientConnection,
    pub(super) server_outcome: Result<(), rustls::Error>,
    pub(super) client_outcome: Result<(), rustls::Error>,
}

/// A handshake in memory.
pub(super) fn shake(config: &TlsConfig, client: &Arc<ClientConfig>) -> Shaken {
    shake_with(config.server(), client)
}

pub(super) fn shake_with(server: Arc<rustls::ServerConfig>, client: &Arc<ClientConfig>) -> Shaken {
    let mut shaken = Shaken {
        server: ServerConnection::new(server).unwrap(),
        client: ClientConnection::new(Arc::clone(client), "localhost".try_into().unwrap()).unwrap(),
        server_outcome: Ok(()),
        client_outcome: Ok(()),
    };
    while shaken.client.wants_write() || shaken.server.wants_write() {
        let mut bytes = Vec::new();
        while shaken.client.wants_write() {
            shaken.client.write_tls(&mut bytes).unwrap();
        }
        let heard = feed(&bytes, |input| shaken.server.read_tls(input).map(|_| ()));
        let processed = shaken.server.process_new_packets().map(|_| ());
        if heard && shaken.server_outcome.is_ok() {
            shaken.server_outcome = processed;
        }
        let mut bytes = Vec::new();
        while shaken.server.wants_write() {
            shaken.server.write_tls(&mut bytes).unwrap();
        }
        let heard = feed(&bytes, |input| shaken.client.read_tls(input).map(|_| ()));
        let processed = shaken.client.process_new_packets().map(|_| ());
        if heard && shaken.client_outcome.is_ok() {
            shaken.client_outcome = processed;
        }
    }
    shaken
}

/// Whether there was something to feed.
fn feed(mut bytes: &[u8], mut read: impl FnMut(&mut &[u8]) -> std::io::Result<()>) -> bool {
    let some = !bytes.is_empty();
    while !bytes.is_empty() {
        read(&mut bytes).unwrap();
    }
    some
}
