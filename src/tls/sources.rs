//! Which files to read.

use std::path::{Path, PathBuf};

use crate::tls::config::ClientAuth;

/// Names in the directory layout that QEMU, libvirt and nbdkit share.
pub(super) const CA_FILE: &str = "ca-cert.pem";
pub(super) const CRL_FILE: &str = "ca-crl.pem";
const SERVER_CERTIFICATE_FILE: &str = "server-cert.pem";
const SERVER_KEY_FILE: &str = "server-key.pem";

/// Where the server's own certificate and key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerFiles {
    /// In files of any name.
    Files {
        /// The certificate and its chain, in any order. May hold the key and the client CA too.
        cert: PathBuf,
        /// The key, if it is not in `cert`.
        key: Option<PathBuf>,
    },
    /// In the directory layout that QEMU, libvirt and nbdkit share: `server-cert.pem`,
    /// `server-key.pem`, `ca-cert.pem` and, if there is one, `ca-crl.pem`.
    Directory(PathBuf),
}

/// Which files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The server's own.
    pub server: ServerFiles,
    /// CAs that sign client certificates. If none is named, they are looked for, as
    /// [`Material::load`](crate::tls::Material::load) says.
    pub client_cas: Vec<PathBuf>,
    /// Revocation lists of those CAs. If none is named, one is looked for likewise.
    pub crls: Vec<PathBuf>,
    /// `$CREDENTIALS_DIRECTORY`, where systemd leaves what `LoadCredential=` names, and pods mount
    /// their secrets.
    pub credentials_directory: Option<PathBuf>,
    /// Whether there has to be a client CA.
    pub client_auth: ClientAuth,
    /// Take a key that others than its owner can read.
    pub insecure_key_permissions: bool,
}

impl Sources {
    /// Every file that is read, or would be if it existed. One that appears may change the result
    /// as much as one that changes.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.cert()];
        files.extend(self.key());
        let named = [(&self.client_cas, CA_FILE), (&self.crls, CRL_FILE)];
        for (named, name) in named {
            if named.is_empty() {
                files.extend(self.looked_for(name));
            } else {
                files.extend(named.iter().cloned());
            }
        }
        files
    }

    pub(super) fn cert(&self) -> PathBuf {
        match &self.server {
            ServerFiles::Files { cert, .. } => cert.clone(),
            ServerFiles::Directory(directory) => directory.join(SERVER_CERTIFICATE_FILE),
        }
    }

    pub(super) fn key(&self) -> Option<PathBuf> {
        match &self.server {
            ServerFiles::Files { key, .. } => key.clone(),
            ServerFiles::Directory(directory) => Some(directory.join(SERVER_KEY_FILE)),
        }
    }

    /// Where a file is looked for that was not named: beside the certificate, then among the
    /// credentials.
    pub(super) fn looked_for(&self, name: &str) -> Vec<PathBuf> {
        let credentials = self.credentials_directory.as_ref().map(|directory| directory.join(name));
        let mut places = vec![self.cert().with_file_name(name)];
        places.extend(credentials.filter(|place| !places.contains(place)));
        places
    }

    /// Whether the service manager put this file where it is.
    pub(super) fn is_credential(&self, file: &Path) -> bool {
        self.credentials_directory.as_deref().is_some_and(|dir| file.parent() == Some(dir))
    }
}
