//! Certificates, good and bad, made by `hexz-nbd certs` or by openssl.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use hexz_nbd::tls::issue::{self, Authority, Issued, Validity};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use crate::support::process::{Client, HEXZ_NBD};

/// Who makes the certificates that are as they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maker {
    HexzNbd,
    OpensslEcdsa,
    OpensslRsa,
}

/// What openssl is told to write into certificates.
const OPENSSL_CONFIGURATION: &str = "
[ca]
default_ca = this
[this]
database = index.txt
new_certs_dir = .
rand_serial = yes
crlnumber = crl-number.txt
unique_subject = no
default_md = sha256
policy = any
certificate = ca-cert.pem
private_key = ca-key.pem
default_days = 30
default_crl_days = 30
[any]
commonName = supplied
[req]
distinguished_name = nothing
prompt = no
utf8 = yes
string_mask = utf8only
[nothing]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[authority_for_all_uses]
basicConstraints = critical, CA:TRUE
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = clientAuth
";

/// A directory with a CA, a server (`srv.pem` and the split files) and clients (`NAME.pem`, and
/// split in the directory `NAME`), as `hexz-nbd certs` lays it out.
#[derive(Debug)]
pub(crate) struct Pki {
    directory: TempDir,
    maker: Maker,
}

impl Pki {
    /// A CA, and a server that is dialled as 127.0.0.1.
    pub(crate) fn new(maker: Maker) -> Self {
        let pki = Self { directory: tempfile::tempdir().unwrap(), maker };
        pki.write("openssl.cnf", OPENSSL_CONFIGURATION);
        pki.write("index.txt", "");
        // Without it openssl makes lists of version 1, which nobody should use any more.
        pki.write("crl-number.txt", "01\n");
        pki.key("leaf-key.pem");
        if maker == Maker::HexzNbd {
            pki.certs(&["init", ".", "--host", "nbd.example.com"]);
            return pki;
        }
        pki.key("ca-key.pem");
        pki.openssl(
            "req -x509 -key ca-key.pem -out ca-cert.pem -days 30 -extensions authority \
                     -subj /CN=CA",
        );
        pki.key("server-key.pem");
        pki.openssl("req -new -key server-key.pem -out server.csr -subj /CN=nbd.example.com");
        pki.openssl("ca -batch -notext -in server.csr -out server-cert.pem -extensions server");
        pki.openssl("ca -gencrl -out ca-crl.pem");
        pki.write(
            "srv.pem",
            ["server-key.pem", "server-cert.pem", "ca-cert.pem"]
                .map(|name| pki.read(name))
                .concat(),
        );
        protect(&pki.path("srv.pem"), 0o600);
        pki
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), contents).unwrap();
        self.path(name)
    }

    /// `hexz-nbd certs` in the directory. What it prints.
    pub(crate) fn certs(&self, arguments: &[&str]) -> String {
        let client = Client::new(HEXZ_NBD).current_dir(self.directory.path());
        client.arg("certs").args(arguments).run().succeeded().text().to_owned()
    }

    /// Makes a client by `hexz-nbd certs client`.
    pub(crate) fn client(&self, name: &str, options: &[&str]) -> Holder {
        self.certs(&[&["client", name, "--dir", "."], options].concat());
        self.holder(name)
    }

    /// openssl in the directory, with its own configuration. The words have no spaces in them.
    pub(crate) fn openssl(&self, words: &str) {
        let words: Vec<_> = words.split_whitespace().collect();
        self.openssl_words(&words);
    }

    pub(crate) fn openssl_words(&self, words: &[&str]) {
        let client = Client::new("openssl").current_dir(self.directory.path());
        client.env("OPENSSL_CONF", self.path("openssl.cnf")).args(words).run().succeeded();
    }

    /// The client whose files have this name.
    pub(crate) fn holder(&self, name: &str) -> Holder {
        Holder { bundle: self.path(&format!("{name}.pem")), directory: self.path(name) }
    }

    /// Puts certificate and key where clients look for them, with the CA of the server.
    pub(crate) fn hold(&self, name: &str, certificate: &str, key: &str) -> Holder {
        let ca = self.read("ca-cert.pem");
        let directory = self.path(name);
        fs::create_dir(&directory).unwrap();
        let write = |file: &str, text: &str| fs::write(directory.join(file), text).unwrap();
        write("ca-cert.pem", &ca);
        write("client-cert.pem", certificate);
        write("client-key.pem", key);
        self.write(&format!("{name}.pem"), format!("{key}{certificate}{ca}"));
        self.holder(name)
    }

    /// A client that has the CA of the server and nothing of its own.
    pub(crate) fn nobody(&self) -> Holder {
        let holder = self.hold("nobody", "", "");
        fs::remove_file(holder.directory.join("client-cert.pem")).unwrap();
        fs::remove_file(holder.directory.join("client-key.pem")).unwrap();
        holder
    }

    /// A good client with this common name.
    pub(crate) fn good(&self, name: &str) -> Holder {
        if self.maker == Maker::HexzNbd {
            return self.client(name, &[]);
        }
        self.sign(name, name, "client", "")
    }

    /// A client whose certificate was revoked.
    pub(crate) fn revoked(&self, common_name: &str) -> Holder {
        if self.maker == Maker::HexzNbd {
            self.certs(&["client", common_name, "--dir", "."]);
            let (certificate, key) = ("client-cert.pem", "client-key.pem");
            let [certificate, key] =
                [certificate, key].map(|file| self.read(&format!("{common_name}/{file}")));
            self.certs(&["revoke", common_name, "--dir", "."]);
            fs::remove_dir_all(self.path(common_name)).unwrap();
            fs::remove_file(self.path(&format!("{common_name}.pem"))).unwrap();
            return self.hold("revoked", &certificate, &key);
        }
        let holder = self.sign("revoked", common_name, "client", "");
        self.openssl("ca -revoke revoked/client-cert.pem");
        self.openssl("ca -gencrl -out ca-crl.pem");
        holder
    }

    /// A client whose certificate is valid for a day from then on.
    pub(crate) fn valid_for_a_day(&self, name: &str, common_name: &str, from: Duration) -> Holder {
        let not_before = OffsetDateTime::now_utc() + from;
        let not_after = not_before + Duration::days(1);
        if self.maker == Maker::HexzNbd {
            let client = issue::Client { common_name: common_name.into(), ..Default::default() };
            let validity = Validity { not_before, not_after };
            let Issued { certificate_pem, key_pem, .. } =
                self.authority().client(&client, validity).unwrap();
            return self.hold(name, &certificate_pem, &key_pem);
        }
        let days = [not_before, not_after].map(|time| {
            format!("{}{:02}{:02}000000Z", time.year(), u8::from(time.month()), time.day())
        });
        let dates = format!("-startdate {} -enddate {}", days[0], days[1]);
        self.sign(name, common_name, "client", &dates)
    }

    /// A client with the certificate of a server.
    pub(crate) fn server_only(&self, common_name: &str) -> Holder {
        if self.maker == Maker::HexzNbd {
            let [certificate, key] =
                ["server-cert.pem", "server-key.pem"].map(|name| self.read(name));
            return self.hold("server-only", &certificate, &key);
        }
        self.sign("server-only", common_name, "server", "")
    }

    /// A client with the certificate of a CA below the CA.
    pub(crate) fn authority_as_client(&self, common_name: &str) -> Holder {
        self.named("authority", &format!("/CN={common_name}"), "authority_for_all_uses")
    }

    /// A client with what a plain `openssl x509 -req` makes, X.509 version 1.
    pub(crate) fn version_1(&self, common_name: &str) -> Holder {
        self.request(common_name);
        self.openssl(
            "x509 -req -in leaf.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 30 \
             -out leaf.pem",
        );
        self.hold("version-1", &self.read("leaf.pem"), &self.read("leaf-key.pem"))
    }

    /// A client that signed for itself. As a CA, which is what openssl makes unless it is told
    /// otherwise, or not.
    pub(crate) fn self_signed(&self, name: &str, common_name: &str, extensions: &str) -> Holder {
        self.openssl(&format!(
            "req -x509 -key leaf-key.pem -out leaf.pem -days 30 -extensions {extensions} \
             -subj /CN={common_name}"
        ));
        self.hold(name, &self.read("leaf.pem"), &self.read("leaf-key.pem"))
    }

    /// A client that another CA signed.
    pub(crate) fn of_another_ca(&self, common_name: &str) -> Holder {
        let other = Self::new(self.maker);
        if self.maker != Maker::HexzNbd {
            // Another name too, or the first to be wrong would be the signature.
            other.openssl(
                "req -x509 -key ca-key.pem -out ca-cert.pem -days 30 -extensions authority \
                 -subj /CN=another-CA",
            );
        }
        other.good(common_name);
        let [certificate, key] = ["client-cert.pem", "client-key.pem"]
            .map(|file| other.read(&format!("{common_name}/{file}")));
        self.hold("foreign", &certificate, &key)
    }

    /// A client with a subject of whatever characters.
    pub(crate) fn named(&self, name: &str, subject: &str, extensions: &str) -> Holder {
        self.openssl_words(&[
            "req",
            "-new",
            "-key",
            "leaf-key.pem",
            "-out",
            "leaf.csr",
            "-subj",
            subject,
        ]);
        self.openssl(&format!(
            "x509 -req -in leaf.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 30 \
             -extfile openssl.cnf -extensions {extensions} -out leaf.pem"
        ));
        self.hold(name, &self.read("leaf.pem"), &self.read("leaf-key.pem"))
    }

    fn authority(&self) -> Authority {
        let [certificate, key] = ["ca-cert.pem", "ca-key.pem"].map(|name| {
            x509_parser::pem::parse_x509_pem(self.read(name).as_bytes()).unwrap().1.contents
        });
        Authority::from_der(&certificate, &key).unwrap()
    }

    fn key(&self, name: &str) {
        let algorithm = match self.maker {
            Maker::OpensslRsa => "RSA -pkeyopt rsa_keygen_bits:2048",
            Maker::HexzNbd | Maker::OpensslEcdsa => "EC -pkeyopt ec_paramgen_curve:P-256",
        };
        self.openssl(&format!("genpkey -algorithm {algorithm} -out {name}"));
        protect(&self.path(name), 0o600);
    }

    fn request(&self, common_name: &str) {
        self.openssl(&format!("req -new -key leaf-key.pem -out leaf.csr -subj /CN={common_name}"));
    }

    fn sign(&self, name: &str, common_name: &str, extensions: &str, options: &str) -> Holder {
        self.request(common_name);
        self.openssl(&format!(
            "ca -batch -notext -in leaf.csr -out leaf.pem -extensions {extensions} {options}"
        ));
        self.hold(name, &self.read("leaf.pem"), &self.read("leaf-key.pem"))
    }
}

/// Where a client has its certificate, its key and the CA of the server.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    /// All three in one file.
    pub(crate) bundle: PathBuf,
    /// The three of them on their own.
    pub(crate) directory: PathBuf,
}

impl Holder {
    /// Whether there is a certificate.
    pub(crate) fn has_certificate(&self) -> bool {
        self.directory.join("client-cert.pem").exists()
    }

    /// The CA of the server.
    pub(crate) fn ca(&self) -> PathBuf {
        self.directory.join("ca-cert.pem")
    }

    /// The URI of an export for libnbd.
    pub(crate) fn uri(&self, port: u16, export: &str) -> String {
        let directory = self.directory.to_str().unwrap();
        format!("nbds://127.0.0.1:{port}/{export}?tls-certificates={directory}")
    }
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Who may do what with a file.
pub(crate) fn protect(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
