//! Raw settings of TLS → certificates that were read and checked.

use std::path::PathBuf;

use crate::cli::Failure;
use crate::cli::settings::{Settings, TlsChoice};
use crate::server::{Tls, TlsMode};
use crate::tls::{ClientAuth, Material, ServerFiles, Sources, TlsConfig};

/// TLS, and the files that it was made from.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// `None` for plaintext only.
    pub(crate) tls: Option<Tls>,
    pub(crate) files: Vec<PathBuf>,
}

/// Reads what the settings name. TLS is required as soon as there is a certificate.
pub(crate) fn load(settings: &Settings) -> Result<Loaded, Failure> {
    let tls = &settings.tls;
    let server = match (&tls.tls_cert, &tls.tls_certificates) {
        (Some(cert), _) => {
            Some(ServerFiles::Files { cert: cert.clone(), key: tls.tls_key.clone() })
        }
        (None, Some(directory)) => Some(ServerFiles::Directory(directory.clone())),
        (None, None) => None,
    };
    let mode = match (tls.tls, &server) {
        (None, None) => return without_certificate(settings),
        (Some(TlsChoice::Off), _) => {
            if server.is_some() {
                tracing::warn!("TLS is off: the certificate is not used");
            }
            return Ok(Loaded::default());
        }
        (Some(TlsChoice::On), _) => TlsMode::Selective,
        (Some(TlsChoice::Require) | None, _) => TlsMode::Required,
    };
    let Some(server) = server else {
        return Err(Failure::Usage(
            "TLS needs a certificate: give one with --tls-cert or --tls-certificates; `hexz-nbd \
             certs init` makes one"
                .to_owned(),
        ));
    };
    if settings.insecure.insecure_key_permissions {
        tracing::warn!("private keys are used even if others can read them");
    }
    let anonymous = settings.insecure.insecure_allow_anonymous;
    let sources = Sources {
        server,
        client_cas: tls.tls_client_ca.clone(),
        crls: tls.tls_crl.clone(),
        credentials_directory: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        client_auth: if anonymous { ClientAuth::Anonymous } else { ClientAuth::Required },
        insecure_key_permissions: settings.insecure.insecure_key_permissions,
    };
    let material = Material::load(&sources)?;
    for warning in &material.warnings {
        tracing::warn!("{warning}");
    }
    let config = TlsConfig::new(&material, tls.tls_min_version.unwrap_or_default())?;
    Ok(Loaded { tls: Some(Tls { mode, config }), files: sources.files() })
}

/// Settings of TLS without TLS are a mistake that must not go unnoticed.
fn without_certificate(settings: &Settings) -> Result<Loaded, Failure> {
    let tls = &settings.tls;
    if tls.tls_client_ca.is_empty() && tls.tls_crl.is_empty() && tls.tls_min_version.is_none() {
        return Ok(Loaded::default());
    }
    Err(Failure::Usage(
        "there are settings of TLS and no certificate: give one with --tls-cert".to_owned(),
    ))
}
