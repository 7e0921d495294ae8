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
mod tests {
    use super::*;

    use rcgen::{ExtendedKeyUsagePurpose, KeyPair};
    use time::Duration;

    use crate::tls::config::{MinVersion, TlsConfig};
    use crate::tls::testing::{Ca, Files, ca_params, leaf_params, now, sources};

    fn kind(sources: &Sources) -> MaterialErrorKind {
        Material::load(sources).unwrap_err().kind
    }

    #[test]
    fn a_bundle_may_stand_in_any_order() {
        let (files, root) = (Files::new(), Ca::new("root"));
        let (upper, other) = (root.intermediate("upper"), Ca::new("other root"));
        let lower = upper.intermediate("lower");
        let leaf = lower.server();
        let parts = [&leaf.cert, &leaf.key, &root.cert, &upper.cert, &lower.cert, &other.cert];
        for shift in 0..parts.len() {
            for reversed in [false, true] {
                let mut parts = parts;
                parts.rotate_left(shift);
                if reversed {
                    parts.reverse();
                }
                let text: String = parts.iter().map(|part| part.as_str()).collect();
                let material = Material::load(&sources(&files.write("srv.pem", text))).unwrap();
                assert_eq!(material.chain, [&leaf.der, &lower.der, &upper.der].map(Clone::clone));
                let mut cas = material.client_cas.clone();
                cas.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
                let mut expected = [root.der.clone(), other.der.clone()];
                expected.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
                assert_eq!(cas, expected);
                assert_eq!(material.warnings, []);
                assert_eq!(material.files, [files.path("srv.pem")]);
            }
        }
    }

    #[test]
    fn keys_are_taken_in_every_form_that_openssl_writes() {
        let files = Files::new();
        files.openssl("genrsa -traditional -out rsa1.key 2048");
        files.openssl("pkcs8 -topk8 -nocrypt -in rsa1.key -out rsa8.key");
        // With the parameters of the curve before it, as `ecparam` does.
        files.openssl("ecparam -name prime256v1 -genkey -out ec1.key");
        files.openssl("pkcs8 -topk8 -nocrypt -in ec1.key -out ec8.key");
        files.openssl("ecparam -name secp384r1 -genkey -noout -out p384.key");
        files.openssl("genpkey -algorithm ed25519 -out ed.key");
        for (name, begin) in [
            ("rsa1", "BEGIN RSA PRIVATE KEY"),
            ("rsa8", "BEGIN PRIVATE KEY"),
            ("ec1", "BEGIN EC PRIVATE KEY"),
            ("ec8", "BEGIN PRIVATE KEY"),
            ("p384", "BEGIN EC PRIVATE KEY"),
            ("ed", "BEGIN PRIVATE KEY"),
        ] {
            let key = files.text(&format!("{name}.key"));
            assert!(key.contains(begin), "{name}");
            files.openssl(&format!(
                "req -x509 -key {name}.key -out {name}.crt -days 2 -subj /CN={name} \
                 -addext basicConstraints=critical,CA:FALSE"
            ));
            let ca = Ca::new("test CA");
            let bundle = format!("{key}{}{}", files.text(&format!("{name}.crt")), ca.cert);
            let material = Material::load(&sources(&files.write("srv.pem", bundle))).unwrap();
            assert!(TlsConfig::new(&material, MinVersion::Tls12).is_ok(), "{name}");
            assert_eq!(material.warnings, [], "{name}");
        }
    }

    #[test]
    fn a_key_is_needed_and_it_has_to_be_one_and_the_right_one() {
        let (files, ca) = (Files::new(), Ca::new("test CA"));
        let (leaf, other) = (ca.server(), ca.server());
        let bundle = |text: String| sources(&files.write("srv.pem", text));

        assert!(matches!(kind(&bundle(leaf.cert.clone())), MaterialErrorKind::NoKey));
        let only_key = kind(&bundle(leaf.key.clone()));
        assert!(matches!(only_key, MaterialErrorKind::File(FileErrorKind::NoCertificate)));
        let two = kind(&bundle(format!("{}{}", leaf.pem(), other.key)));
        assert!(matches!(two, MaterialErrorKind::SeveralKeys { count: 2 }));
        let wrong = kind(&bundle(format!("{}{}{}", leaf.cert, ca.cert, other.key)));
        assert!(matches!(wrong, MaterialErrorKind::KeyMatchesNone { count: 2 }));
        files.openssl("genrsa -out small.key 1024");
        let small = kind(&bundle(format!("{}{}", leaf.cert, files.text("small.key"))));
        assert!(matches!(small, MaterialErrorKind::UnsupportedKey(_)));

        // In two files, whether the bundle repeats the key or not.
        let key = files.write("srv.key", &leaf.key);
        for text in [leaf.cert.clone(), leaf.pem()] {
            let mut split = bundle(format!("{text}{}", ca.cert));
            let ServerFiles::Files { key: named, .. } = &mut split.server else { panic!() };
            *named = Some(key.clone());
            let material = Material::load(&split).unwrap();
            assert_eq!(material.files, [files.path("srv.pem"), key.clone()]);
        }
        let mut split = bundle(format!("{}{}", other.pem(), ca.cert));
        split.server = ServerFiles::Files { cert: files.path("srv.pem"), key: Some(key.clone()) };
        assert!(matches!(kind(&split), MaterialErrorKind::SeveralKeys { count: 2 }));
        // The whole bundle named twice is as good as once.
        files.write("srv.pem", format!("{}{}", leaf.pem(), ca.cert));
        let cert = files.path("srv.pem");
        split.server = ServerFiles::Files { cert: cert.clone(), key: Some(cert) };
        assert!(Material::load(&split).is_ok());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_unless_the_operator_insists() {
        let (files, ca) = (Files::new(), Ca::new("test CA"));
        let leaf = ca.server();
        let mut bundle = sources(&files.write("srv.pem", format!("{}{}", leaf.pem(), ca.cert)));
        for mode in [0o640, 0o604, 0o660, 0o666, 0o601] {
            files.protect("srv.pem", mode);
            bundle.insecure_key_permissions = false;
            let error = Material::load(&bundle).unwrap_err();
            assert!(
                matches!(error.kind, MaterialErrorKind::ExposedKey { mode: m } if m == mode),
                "{error}"
            );
            assert!(error.to_string().contains("--insecure-key-permissions"), "{error}");
            bundle.insecure_key_permissions = true;
            assert!(Material::load(&bundle).is_ok());
        }

        // It is the file that counts, and not a link to it.
        bundle.insecure_key_permissions = false;
        std::os::unix::fs::symlink("srv.pem", files.path("link.pem")).unwrap();
        bundle.server = ServerFiles::Files { cert: files.path("link.pem"), key: None };
        assert!(matches!(kind(&bundle), MaterialErrorKind::ExposedKey { .. }));
        files.protect("srv.pem", 0o400);
        assert!(Material::load(&bundle).is_ok());

        // Certificates are for everybody, and a key in the file of a CA is still a key.
        files.write("ca.pem", &ca.cert);
        files.protect("ca.pem", 0o644);
        bundle.client_cas = vec![files.path("ca.pem")];
        assert!(Material::load(&bundle).is_ok());
        files.write("ca.pem", format!("{}{}", ca.cert, ca.key));
        files.protect("ca.pem", 0o644);
        assert!(matches!(kind(&bundle), MaterialErrorKind::ExposedKey { .. }));
    }

    #[test]
    fn the_client_ca_is_looked_for_from_the_nearest_place_to_the_farthest() {
        let (files, credentials) = (Files::new(), Files::new());
        let cas = ["flag", "bundle", "beside", "credentials"].map(Ca::new);
        let [flag, in_bundle, beside, in_credentials] = &cas;
        let leaf = in_bundle.server();
        let mut sources =
            sources(&files.write("srv.pem", format!("{}{}", leaf.pem(), in_bundle.cert)));
        sources.client_cas = vec![files.write("flag.pem", &flag.cert)];
        sources.credentials_directory = Some(credentials.path(""));
        files.write("ca-cert.pem", &beside.cert);
        credentials.write("ca-cert.pem", &in_credentials.cert);
        let found = |sources: &Sources| Material::load(sources).unwrap().client_cas;
        let only = |ca: &Ca| vec![ca.der.clone()];

        assert_eq!(found(&sources), only(flag));
        sources.client_cas.push(files.write("more.pem", &beside.cert));
        assert_eq!(found(&sources), [flag.der.clone(), beside.der.clone()]);
        sources.client_cas.clear();
        assert_eq!(found(&sources), only(in_bundle));
        files.write("srv.pem", leaf.pem());
        assert_eq!(found(&sources), only(beside));
        std::fs::remove_file(files.path("ca-cert.pem")).unwrap();
        assert_eq!(found(&sources), only(in_credentials));
        std::fs::remove_file(credentials.path("ca-cert.pem")).unwrap();

        let error = Material::load(&sources).unwrap_err();
        assert_eq!(error.file, files.path("srv.pem"));
        let text = error.to_string();
        for way_out in [
            "--tls-client-ca",
            "append",
            "hexz-nbd certs init",
            "--insecure-allow-anonymous",
            &files.path("ca-cert.pem").display().to_string(),
            &credentials.path("ca-cert.pem").display().to_string(),
        ] {
            assert!(text.contains(way_out), "{way_out}: {text}");
        }
        sources.client_auth = ClientAuth::Anonymous;
        assert_eq!(found(&sources), []);
    }

    /// With a certificate of a public CA, its other customers would be let in.
    #[test]
    fn an_intermediate_ca_in_the_bundle_signs_no_clients() {
        let (files, root) = (Files::new(), Ca::new("a public CA"));
        let middle = root.intermediate("its intermediate");
        let full_chain = format!("{}{}", middle.server().pem(), middle.cert);
        let error = Material::load(&sources(&files.write("srv.pem", full_chain))).unwrap_err();
        assert!(
            matches!(error.kind, MaterialErrorKind::NoClientCa { intermediates: true, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("intermediate"), "{error}");
    }

    #[test]
    fn only_a_ca_is_taken_as_one() {
        let (files, ca) = (Files::new(), Ca::new("test CA"));
        let mut sources = sources(&files.write("srv.pem", ca.server().pem()));
        let mut client_ca = |text: &str| {
            sources.client_cas = vec![files.write("ca.pem", text)];
            Material::load(&sources).unwrap_err()
        };
        let error = client_ca(&ca.client("a leaf").cert);
        assert!(matches!(error.kind, MaterialErrorKind::NotACa { .. }), "{error}");
        assert_eq!(error.file, files.path("ca.pem"));
        let error = client_ca(&ca.key);
        assert!(
            matches!(error.kind, MaterialErrorKind::File(FileErrorKind::NoCertificate)),
            "{error}"
        );
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let error = client_ca(garbage);
        assert!(matches!(error.kind, MaterialErrorKind::MalformedCertificate { number: 1 }));
        files.openssl("req -new -newkey rsa:2048 -nodes -keyout v1.key -out v1.csr -subj /CN=v1");
        files.openssl("x509 -req -in v1.csr -signkey v1.key -days 2 -out v1.pem");
        let error = client_ca(&files.text("v1.pem"));
        assert!(matches!(error.kind, MaterialErrorKind::Version1 { .. }), "{error}");
    }

    #[test]
    fn a_server_certificate_of_version_1_is_refused_with_the_remedy() {
        let (files, ca) = (Files::new(), Ca::new("test CA"));
        files.openssl("req -new -newkey rsa:2048 -nodes -keyout v1.key -out v1.csr -subj /CN=v1");
        files.openssl("x509 -req -in v1.csr -signkey v1.key -days 2 -out v1.pem");
        let bundle = format!("{}{}{}", files.text("v1.pem"), files.text("v1.key"), ca.cert);
        let error = Material::load(&sources(&files.write("srv.pem", bundle))).unwrap_err();
        assert!(matches!(error.kind, MaterialErrorKind::Version1 { .. }), "{error}");
        assert!(error.to_string().contains("-extfile"), "{error}");
    }

    #[test]
    fn what_clients_will_not_like_is_a_warning_and_no_error() {
        let (files, ca) = (Files::new(), Ca::new("test CA"));
        let warned = |params| {
            let text = format!("{}{}", ca.issue(params).pem(), ca.cert);
            let material = Material::load(&sources(&files.write("srv.pem", text))).unwrap();
            let [warning] = &material.warnings[..] else { panic!("{:?}", material.warnings) };
            assert!(warning.to_string().contains("srv.pem: "), "{warning}");
            warning.clone()
        };
        let server = || leaf_params("server", ExtendedKeyUsagePurpose::ServerAuth);
        let mut expired = server();
        expired.not_after = now() - Duration::HOUR;
        assert!(matches!(warned(expired), Warning::ServerExpired { .. }));
        let mut early = server();
        early.not_before = now() + Duration::HOUR;
        assert!(matches!(warned(early), Warning::ServerNotYetValid { .. }));
        let client = leaf_params("client", ExtendedKeyUsagePurpose::ClientAuth);
        assert!(matches!(warned(client), Warning::ServerPurpose { .. }));
        assert!(matches!(warned(ca_params("a CA")), Warning::ServerIsCa { .. }));

        let mut old = ca_params("old CA");
        (old.not_before, old.not_after) = (now() - Duration::DAY * 2, now() - Duration::DAY);
        let old = old.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        let stray = ca.client("stray").cert;
        let text = format!("{}{old}{stray}", ca.server().pem());
        let material = Material::load(&sources(&files.write("srv.pem", text))).unwrap();
        let [unused, expired] = &material.warnings[..] else { panic!("{:?}", material.warnings) };
        assert!(matches!(unused, Warning::Unused { subject, .. } if subject == "CN=stray"));
        assert!(matches!(expired, Warning::ClientCaExpired { .. }));
    }

    #[test]
    fn the_directory_that_qemu_and_nbdkit_share_is_read_as_they_do() {
        let (files, ca, other) = (Files::new(), Ca::new("test CA"), Ca::new("other CA"));
        let leaf = ca.server();
        let mut sources = sources(&files.path(""));
        sources.server = ServerFiles::Directory(files.path(""));
        // A root beside the leaf is not what the others would take for the client CA.
        files.write("server-cert.pem", format!("{}{}", leaf.cert, other.cert));
        files.write("server-key.pem", &leaf.key);
        let error = Material::load(&sources).unwrap_err();
        assert!(matches!(error.kind, MaterialErrorKind::NoClientCa { .. }), "{error}");
        files.write("ca-cert.pem", &ca.cert);
        let material = Material::load(&sources).unwrap();
        assert_eq!((material.chain, material.client_cas), (vec![leaf.der], vec![ca.der.clone()]));
        assert_eq!(material.crls.len(), 0);
        files.write("ca-crl.pem", ca.crl(&[]));
        let material = Material::load(&sources).unwrap();
        assert_eq!(material.crls.len(), 1);
        let names = ["server-cert.pem", "server-key.pem", "ca-cert.pem", "ca-crl.pem"];
        assert_eq!(material.files, names.map(|name| files.path(name)));
        assert_eq!(sources.files(), names.map(|name| files.path(name)));
        files.protect("server-key.pem", 0o640);
        let error = Material::load(&sources).unwrap_err();
        assert_eq!(error.file, files.path("server-key.pem"));
    }

    #[test]
    fn a_list_that_lies_beside_the_certificate_is_used() {
        let (files, credentials, ca) = (Files::new(), Files::new(), Ca::new("test CA"));
        let mut sources =
            sources(&files.write("srv.pem", format!("{}{}", ca.server().pem(), ca.cert)));
        let crls = |sources: &Sources| Material::load(sources).unwrap().crls.len();
        assert_eq!(crls(&sources), 0);
        sources.credentials_directory = Some(credentials.path(""));
        credentials.write("ca-crl.pem", ca.crl(&[]));
        assert_eq!(crls(&sources), 1);
        files.write("ca-crl.pem", format!("{}{}", ca.crl(&[]), ca.crl(&[])));
        assert_eq!(crls(&sources), 2);
        sources.crls = vec![files.write("named.pem", ca.crl(&[]))];
        assert_eq!(crls(&sources), 1);
        // One in the bundle counts in any case.
        files.write("srv.pem", format!("{}{}{}", ca.server().pem(), ca.cert, ca.crl(&[])));
        assert_eq!(crls(&sources), 2);

        sources.crls = vec![files.write("none.pem", &ca.cert)];
        assert!(matches!(kind(&sources), MaterialErrorKind::NoCrl));
        let garbage = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
        sources.crls = vec![files.write("garbage.pem", garbage)];
        assert!(matches!(kind(&sources), MaterialErrorKind::UnusableCrl { number: 1, .. }));
        sources.crls = vec![files.path("absent.pem")];
        let error = Material::load(&sources).unwrap_err();
        assert_eq!(error.file, files.path("absent.pem"));
    }

    /// A watcher has to see a file come as well as change.
    #[test]
    fn the_files_of_the_sources_include_those_that_are_not_there_yet() {
        let (files, credentials) = (Files::new(), Files::new());
        let mut sources = sources(&files.path("srv.pem"));
        sources.credentials_directory = Some(credentials.path("dir"));
        assert_eq!(
            sources.files(),
            [
                files.path("srv.pem"),
                files.path("ca-cert.pem"),
                credentials.path("dir/ca-cert.pem"),
                files.path("ca-crl.pem"),
                credentials.path("dir/ca-crl.pem"),
            ]
        );
        sources.client_cas = vec!["ca.pem".into()];
        sources.crls = vec!["crl.pem".into()];
        assert_eq!(sources.files(), [files.path("srv.pem"), "ca.pem".into(), "crl.pem".into()]);
    }

    #[test]
    fn what_is_printed_of_the_material_holds_no_key() {
        let (files, ca) = (Files::new(), Ca::new("test CA"));
        let leaf = ca.server();
        let bundle = files.write("srv.pem", format!("{}{}", leaf.pem(), ca.cert));
        let material = Material::load(&sources(&bundle)).unwrap();
        let key = material.key.secret_der().to_vec();
        let shown = format!("{material:?}");
        assert!(shown.contains("elided") && !shown.contains(&format!("{:?}", &key[40..56])));
    }
}
