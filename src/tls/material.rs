//! What of the contents of the files is whose: key, chain, client CAs, revocation lists.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::x509::X509Version;

use crate::tls::certificate;
use crate::tls::config::ClientAuth;
use crate::tls::fault::{MaterialError, MaterialErrorKind, Warning};
use crate::tls::pem::{CERTIFICATES_BYTES_MAX, CRLS_BYTES_MAX, FileErrorKind, Pem};
use crate::tls::revocation::{self, FoundCrl};
use crate::tls::sources::{CA_FILE, CRL_FILE, ServerFiles, Sources};

/// Longest chain that is sent, in certificates. rustls verifies no more than six CAs above a leaf.
const CHAIN_CERTIFICATES_MAX: usize = 8;

/// Keys and certificates, each checked and in its place.
#[derive(Debug)]
pub struct Material {
    /// The server's certificate and those of the CAs between it and a root, in this order.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the first certificate of the chain.
    pub key: PrivateKeyDer<'static>,
    /// CAs that sign client certificates.
    pub client_cas: Vec<CertificateDer<'static>>,
    /// Complete revocation lists, newest first.
    pub crls: Vec<CertificateRevocationListDer<'static>>,
    /// Whether clients have to show a certificate.
    pub client_auth: ClientAuth,
    /// Until when the server's certificate is valid.
    pub server_not_after: OffsetDateTime,
    /// The files that were read, each once.
    pub files: Vec<PathBuf>,
    /// What works today and is worth a look.
    pub warnings: Vec<Warning>,
}

impl Material {
    /// Reads all files and sorts what they hold.
    ///
    /// **The server's certificate** is the one that the private key belongs to, wherever it stands.
    /// The chain follows from issuer to issuer through the rest of the file. Roots are not sent:
    /// who trusts one has it.
    ///
    /// **Client CAs** are those of [`Sources::client_cas`]; else the roots (self-signed CA
    /// certificates) in the bundle; else `ca-cert.pem` beside it; else that of the credentials
    /// directory. Intermediate CAs in the bundle are never taken: `fullchain.pem` of a public CA
    /// has one, and all the world could get a client certificate from it. In a directory,
    /// `ca-cert.pem` is the only place before the credentials, as for the others who share the
    /// layout.
    ///
    /// **Revocation lists** are those of [`Sources::crls`]; else `ca-crl.pem` beside the server's
    /// certificate; else that of the credentials directory; and whatever lists stand in the other
    /// files. `certs revoke` writes `ca-crl.pem`, and a list that is lying there and not used would
    /// let somebody in who was locked out, which is worse than one too many.
    ///
    /// # Errors
    ///
    /// [`MaterialError`], which names the file and the remedy.
    pub fn load(sources: &Sources) -> Result<Self, MaterialError> {
        let now = OffsetDateTime::from(SystemTime::now());
        let mut loader = Loader { sources, now, files: vec![], crls: vec![], warnings: vec![] };
        let server = loader.server()?;
        let client_cas = loader.client_cas(server.roots, server.has_intermediates)?;
        loader.read_crls()?;
        let crls = revocation::check(loader.crls, &client_cas, now, &mut loader.warnings)?;
        Ok(Self {
            chain: server.chain,
            key: server.key,
            client_cas: client_cas.into_iter().map(|ca| ca.der).collect(),
            crls,
            client_auth: sources.client_auth,
            server_not_after: server.not_after,
            files: loader.files,
            warnings: loader.warnings,
        })
    }
}

/// A certificate and where it was found.
pub(super) struct Found {
    pub(super) file: PathBuf,
    pub(super) der: CertificateDer<'static>,
}

/// A certificate of the bundle.
struct Parsed<'a> {
    der: &'a CertificateDer<'static>,
    x509: X509Certificate<'a>,
}

/// The server's own, and the roots that stood beside it.
struct Server {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    not_after: OffsetDateTime,
    roots: Vec<Found>,
    has_intermediates: bool,
}

/// What has been read so far.
struct Loader<'a> {
    sources: &'a Sources,
    now: OffsetDateTime,
    files: Vec<PathBuf>,
    crls: Vec<FoundCrl>,
    warnings: Vec<Warning>,
}

impl Loader<'_> {
    fn server(&mut self) -> Result<Server, MaterialError> {
        let file = self.sources.cert();
        let fail = |kind| MaterialError { file: file.clone(), kind };
        let Pem { keys, certificates, .. } = self.read(&file, CERTIFICATES_BYTES_MAX)?;
        let (key, key_file) = self.key(&file, keys)?;
        if certificates.is_empty() {
            return Err(fail(MaterialErrorKind::File(FileErrorKind::NoCertificate)));
        }
        let parsed = parse_all(&certificates).map_err(fail)?;
        let public_key = public_key(&key).map_err(|kind| MaterialError { file: key_file, kind })?;
        let leaf = parsed
            .iter()
            .find(|parsed| parsed.x509.public_key().raw == public_key)
            .ok_or_else(|| fail(MaterialErrorKind::KeyMatchesNone { count: parsed.len() }))?;
        self.check_leaf(&file, leaf).map_err(fail)?;
        let chain = chain(leaf, &parsed);
        let used = |der: &CertificateDer<'_>| chain.iter().any(|link| link.der == der);
        let mut roots = Vec::new();
        for Parsed { der, x509 } in parsed.iter().filter(|parsed| !used(parsed.der)) {
            if x509.is_ca() && certificate::is_self_issued(x509) {
                roots.push(Found { file: file.clone(), der: (*der).clone() });
            } else {
                let subject = certificate::name(x509.subject());
                self.warnings.push(Warning::Unused { file: file.clone(), subject });
            }
        }
        Ok(Server {
            not_after: certificate::date(leaf.x509.validity().not_after),
            has_intermediates: parsed.iter().any(|parsed| is_intermediate(&parsed.x509)),
            chain: chain.into_iter().map(|link| link.der.clone()).collect(),
            key,
            roots,
        })
    }

    /// The one private key, and the file that it is in.
    fn key(
        &mut self,
        cert_file: &Path,
        mut keys: Vec<PrivateKeyDer<'static>>,
    ) -> Result<(PrivateKeyDer<'static>, PathBuf), MaterialError> {
        let mut file = cert_file.to_owned();
        if let Some(key_file) = self.sources.key().filter(|key_file| key_file != cert_file) {
            let separate = self.read(&key_file, CERTIFICATES_BYTES_MAX)?.keys;
            // A bundle that repeats the key of the other file says nothing new.
            keys.retain(|key| !separate.contains(key));
            keys.extend(separate);
            file = key_file;
        }
        let count = keys.len();
        match (keys.pop(), count) {
            (Some(key), 1) => Ok((key, file)),
            (Some(_), _) => {
                Err(MaterialError { file, kind: MaterialErrorKind::SeveralKeys { count } })
            }
            (None, _) => Err(MaterialError { file, kind: MaterialErrorKind::NoKey }),
        }
    }

    /// What would make clients refuse the server, or rustls refuse to start.
    fn check_leaf(&mut self, file: &Path, leaf: &Parsed<'_>) -> Result<(), MaterialErrorKind> {
        let (file, x509) = (|| file.to_owned(), &leaf.x509);
        let subject = || certificate::name(x509.subject());
        if x509.version() == X509Version::V1 {
            return Err(MaterialErrorKind::Version1 { subject: subject() });
        }
        webpki::EndEntityCert::try_from(leaf.der).map_err(|reason| {
            MaterialErrorKind::UnusableCertificate { subject: subject(), reason }
        })?;
        let not_after = certificate::date(x509.validity().not_after);
        let not_before = certificate::date(x509.validity().not_before);
        if not_after < self.now {
            self.warnings.push(Warning::ServerExpired { file: file(), not_after });
        }
        if not_before > self.now {
            self.warnings.push(Warning::ServerNotYetValid { file: file(), not_before });
        }
        if x509.is_ca() {
            self.warnings.push(Warning::ServerIsCa { file: file() });
        }
        if let Ok(Some(purposes)) = x509.extended_key_usage()
            && !(purposes.value.server_auth || purposes.value.any)
        {
            self.warnings.push(Warning::ServerPurpose { file: file() });
        }
        Ok(())
    }

    fn client_cas(
        &mut self,
        roots: Vec<Found>,
        intermediates: bool,
    ) -> Result<Vec<Found>, MaterialError> {
        let in_bundle = matches!(self.sources.server, ServerFiles::Files { .. });
        let mut found = Vec::new();
        if !self.sources.client_cas.is_empty() {
            for file in &self.sources.client_cas {
                found.extend(self.read_cas(file)?);
            }
        } else if in_bundle && !roots.is_empty() {
            found = roots;
        } else {
            let looked_for = self.sources.looked_for(CA_FILE);
            match self.first_of(&looked_for, Self::read_cas)? {
                Some(cas) => found = cas,
                None if self.sources.client_auth == ClientAuth::Anonymous => {}
                None => {
                    let kind = MaterialErrorKind::NoClientCa { looked_for, intermediates };
                    return Err(MaterialError { file: self.sources.cert(), kind });
                }
            }
        }
        for ca in &found {
            self.check_ca(ca)?;
        }
        Ok(found)
    }

    fn read_cas(&mut self, file: &Path) -> Result<Vec<Found>, MaterialError> {
        let Pem { certificates, .. } = self.read(file, CERTIFICATES_BYTES_MAX)?;
        if certificates.is_empty() {
            let kind = MaterialErrorKind::File(FileErrorKind::NoCertificate);
            return Err(MaterialError { file: file.into(), kind });
        }
        Ok(certificates.into_iter().map(|der| Found { file: file.into(), der }).collect())
    }

    fn check_ca(&mut self, ca: &Found) -> Result<(), MaterialError> {
        let fail = |kind| MaterialError { file: ca.file.clone(), kind };
        let parsed = parse_all(std::slice::from_ref(&ca.der)).map_err(fail)?;
        for Parsed { der, x509 } in parsed {
            let subject = certificate::name(x509.subject());
            if x509.version() == X509Version::V1 {
                return Err(fail(MaterialErrorKind::Version1 { subject }));
            }
            if !x509.is_ca() {
                return Err(fail(MaterialErrorKind::NotACa { subject }));
            }
            if let Err(reason) = webpki::anchor_from_trusted_cert(der) {
                return Err(fail(MaterialErrorKind::UnusableCertificate { subject, reason }));
            }
            let not_after = certificate::date(x509.validity().not_after);
            if not_after < self.now {
                let file = ca.file.clone();
                self.warnings.push(Warning::ClientCaExpired { file, subject, not_after });
            }
        }
        Ok(())
    }

    fn read_crls(&mut self) -> Result<(), MaterialError> {
        if self.sources.crls.is_empty() {
            let looked_for = self.sources.looked_for(CRL_FILE);
            self.first_of(&looked_for, Self::read_crl)?;
        }
        for file in &self.sources.crls {
            self.read_crl(file)?;
        }
        Ok(())
    }

    /// Reads a file for its revocation lists, of which there has to be one.
    fn read_crl(&mut self, file: &Path) -> Result<(), MaterialError> {
        let already = self.crls.len();
        self.read(file, CRLS_BYTES_MAX)?;
        if self.crls.len() == already && !self.crls.iter().any(|crl| crl.file == file) {
            return Err(MaterialError { file: file.into(), kind: MaterialErrorKind::NoCrl });
        }
        Ok(())
    }

    /// Reads the first of some files that exists.
    fn first_of<T>(
        &mut self,
        files: &[PathBuf],
        read: impl Fn(&mut Self, &Path) -> Result<T, MaterialError>,
    ) -> Result<Option<T>, MaterialError> {
        for file in files {
            match read(self, file) {
                Err(error) if error.is_absent() => {}
                outcome => return outcome.map(Some),
            }
        }
        Ok(None)
    }

    /// Reads a file. Revocation lists are kept wherever they stand, and keys are refused wherever
    /// others can read them.
    fn read(&mut self, file: &Path, bytes_max: u64) -> Result<Pem, MaterialError> {
        let mut pem = Pem::read(file, bytes_max)?;
        let access = pem.access;
        let excused = self.sources.insecure_key_permissions
            || (access.is_credential() && self.sources.is_credential(file));
        if !pem.keys.is_empty() && access.is_exposed() && !excused {
            let kind = MaterialErrorKind::ExposedKey { mode: access.mode };
            return Err(MaterialError { file: file.into(), kind });
        }
        if !self.files.iter().any(|read| read == file) {
            self.files.push(file.into());
            let crls = pem.crls.drain(..).zip(1..);
            self.crls.extend(crls.map(|(der, number)| FoundCrl { file: file.into(), number, der }));
        }
        Ok(pem)
    }
}

fn parse_all<'a>(
    certificates: &'a [CertificateDer<'static>],
) -> Result<Vec<Parsed<'a>>, MaterialErrorKind> {
    let parse = |(der, number): (&'a CertificateDer<'static>, usize)| {
        let x509 = certificate::parse(der);
        let x509 = x509.ok_or(MaterialErrorKind::MalformedCertificate { number })?;
        Ok(Parsed { der, x509 })
    };
    certificates.iter().zip(1..).map(parse).collect()
}

/// The public half of a key, as certificates have it.
fn public_key(key: &PrivateKeyDer<'static>) -> Result<Vec<u8>, MaterialErrorKind> {
    let unsupported = MaterialErrorKind::UnsupportedKey;
    let signing = any_supported_type(key).map_err(unsupported)?;
    let public = signing.public_key();
    public
        .map(|public| public.to_vec())
        .ok_or_else(|| unsupported(rustls::InconsistentKeys::Unknown.into()))
}

/// From the leaf to below a root, issuer by issuer. Ends where the file does.
fn chain<'a>(leaf: &'a Parsed<'a>, all: &'a [Parsed<'a>]) -> Vec<&'a Parsed<'a>> {
    let mut chain = vec![leaf];
    let mut last = leaf;
    while !certificate::is_self_issued(&last.x509) && chain.len() < CHAIN_CERTIFICATES_MAX {
        let issuer = all.iter().find(|issuer| {
            issuer.x509.is_ca()
                && issuer.x509.subject().as_raw() == last.x509.issuer().as_raw()
                && certificate::may_be_key(
                    certificate::subject_key_id(&issuer.x509),
                    certificate::authority_key_id(last.x509.extensions()),
                )
                && !chain.iter().any(|link| link.der == issuer.der)
        });
        match issuer {
            Some(issuer) if !certificate::is_self_issued(&issuer.x509) => {
                chain.push(issuer);
                last = issuer;
            }
            Some(_) | None => break,
        }
    }
    chain
}

fn is_intermediate(x509: &X509Certificate<'_>) -> bool {
    x509.is_ca() && !certificate::is_self_issued(x509)
}

#[cfg(test)]
mod tests;
