//! What can be set, on the command line or in a file: raw, each as it was written.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PathBufValueParser, TypedValueParser as _};
use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::cli::cache_size::CacheSize;
use crate::cli::duration;
use crate::cli::reading::ReadingSettings;
use crate::cli::size::ByteSize;
use crate::tls::MinVersion;

/// Where to listen.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[group(skip)]
pub(crate) struct ListenSettings {
    /// Address and port to listen on, repeatable [default: 127.0.0.1:10809]
    ///
    /// IPv6 addresses stand in brackets: `[::1]:10809`. Port 0 lets the system choose. What other
    /// hosts can reach, such as `0.0.0.0:10809`, needs TLS with client certificates. Sockets that
    /// systemd hands over take the place of the default.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Vec<String>,

    /// Unix socket to listen on, repeatable
    ///
    /// Without TLS, whoever may write to the socket may read every export: choose its directory
    /// accordingly.
    #[arg(long, value_name = "PATH")]
    pub(crate) unix: Vec<PathBuf>,
}

/// Who is told how the server is, and who was here.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Monitoring")]
pub(crate) struct MonitoringSettings {
    /// Address and port of the status: a page for people at /, /metrics for Prometheus, /healthz,
    /// /readyz, /status.json
    ///
    /// Plain HTTP on loopback, such as `127.0.0.1:9809`. What other hosts can reach is HTTPS with
    /// client certificates, with the certificate and the client CA of NBD, unless
    /// --insecure-allow-plaintext is given. The page and /status.json name clients and exports.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) status_listen: Option<String>,

    /// Show the status to certificates with this common name, repeatable, where other hosts can reach it
    ///
    /// Without any, it is shown to every certificate of the client CA if there are no rules about who may
    /// read either; if there are some, to nobody, but for /healthz and /readyz. In a configuration file,
    /// `status_allow` takes all kinds of rules.
    #[arg(long, value_name = "NAME")]
    pub(crate) status_allow_cn: Vec<String>,

    /// The same, from a configuration file
    #[arg(skip)]
    pub(crate) status_allow: AllowSettings,

    /// Name by which the status may be asked for in plaintext, beside addresses and localhost, repeatable
    ///
    /// Other names are refused, so that no page of a stranger reads the status through a browser that
    /// reaches it (DNS rebinding).
    #[arg(long, value_name = "NAME")]
    pub(crate) status_host: Vec<String>,

    /// Count reads by the identity of the client too, in /metrics
    ///
    /// Whoever collects the metrics then knows who reads what.
    #[arg(long)]
    pub(crate) metrics_identities: bool,

    /// Record who comes, what they open and what they are refused, one JSON line each: in a file, in
    /// systemd's journal with the word `journald`, or on standard output with `-`
    ///
    /// The file is opened again on SIGHUP, as logrotate needs it. What cannot be written is counted
    /// in the metrics and does not keep anybody from being served.
    #[arg(
        long,
        value_name = "FILE|journald|-",
        value_parser = PathBufValueParser::new().map(AuditChoice::from),
    )]
    pub(crate) audit_log: Option<AuditChoice>,
}

/// Where the audit log is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AuditChoice {
    Journald,
    StandardOutput,
    File(PathBuf),
}

impl From<PathBuf> for AuditChoice {
    fn from(path: PathBuf) -> Self {
        match path.to_str() {
            Some("journald") => Self::Journald,
            Some("-") => Self::StandardOutput,
            _ => Self::File(path),
        }
    }
}

/// Certificates, and what is done without them.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "TLS")]
pub(crate) struct TlsSettings {
    /// What clients may do without TLS [default: require with a certificate, else off]
    #[arg(long, value_name = "MODE", value_enum)]
    pub(crate) tls: Option<TlsChoice>,

    /// Certificate of the server, PEM; its file may hold the key, the chain and the client CA too
    ///
    /// `hexz-nbd certs init` makes such a file.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Private key of the server, if it is not in the file of --tls-cert
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,

    /// CA that signs client certificates, repeatable
    ///
    /// If there is none, it is looked for: among the certificates of --tls-cert, then in
    /// `ca-cert.pem` beside it, then in the credentials directory of systemd.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_client_ca: Vec<PathBuf>,

    /// Revocation list of a client CA, repeatable [default: ca-crl.pem beside the certificate]
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_crl: Vec<PathBuf>,

    /// Directory with ca-cert.pem, server-cert.pem, server-key.pem and perhaps ca-crl.pem
    ///
    /// The layout that QEMU, libvirt and nbdkit share.
    #[arg(long, value_name = "DIR", conflicts_with = "tls_cert")]
    pub(crate) tls_certificates: Option<PathBuf>,

    /// Oldest version of TLS, 1.2 or 1.3 [default: 1.2]
    ///
    /// With 1.3, the stock nbd-client is locked out: it speaks 1.2 only.
    #[arg(long, value_name = "VERSION")]
    pub(crate) tls_min_version: Option<MinVersion>,
}

/// What clients may do without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TlsChoice {
    /// Everything: there is no TLS
    Off,
    /// Read exports that are marked `plaintext`, and see no others
    On,
    /// Nothing
    Require,
}

/// Whose certificates let in. One that matches is enough.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Args, Deserialize)]
#[group(skip)]
#[command(next_help_heading = "Authorisation")]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AllowSettings {
    /// Allow certificates with this common name, repeatable
    ///
    /// Without any rule, every certificate of the client CA is allowed. With one, for whatever
    /// export, all others are denied.
    #[arg(long = "allow-cn", value_name = "NAME")]
    pub(crate) cn: Vec<String>,

    /// Allow certificates with this organizational unit, repeatable
    #[arg(long = "allow-ou", value_name = "NAME")]
    pub(crate) ou: Vec<String>,

    /// Allow certificates with this DNS name, repeatable
    #[arg(long = "allow-dns", value_name = "NAME")]
    pub(crate) dns: Vec<String>,

    /// Allow certificates with this URI, such as a SPIFFE id, repeatable; the last segment may be *
    #[arg(long = "allow-uri", value_name = "URI")]
    pub(crate) uri: Vec<String>,

    /// Allow the certificate with this SHA-256 fingerprint, repeatable
    #[arg(long = "allow-fingerprint", value_name = "HEX")]
    pub(crate) fingerprint: Vec<String>,
}

/// What clients may take.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[group(skip)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitSettings {
    /// Memory for decoded blocks and index pages, for all clients together: so much, or `auto` for a
    /// quarter of what is available at the start, within the limits of control groups [default: auto]
    #[arg(long, value_name = "SIZE")]
    pub(crate) cache_size: Option<CacheSize>,

    /// Clients at a time; others wait [default: 1024]
    #[arg(long, value_name = "N")]
    pub(crate) max_connections: Option<NonZeroUsize>,

    /// Clients of one address at a time; others are turned away [default: 256]
    #[arg(long, value_name = "N")]
    pub(crate) max_connections_per_address: Option<NonZeroUsize>,

    /// Time for a client to choose an export, TLS included [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) negotiation_timeout: Option<Duration>,

    /// Time for the TLS handshake [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) handshake_timeout: Option<Duration>,

    /// Disconnect a client that takes and sends nothing for so long [default: never]
    ///
    /// The Linux kernel does not reconnect: its /dev/nbdN fails every read from then on. Clients that
    /// have lost their power or network are noticed without this.
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) idle_timeout: Option<Duration>,

    /// Time for clients to take what they asked for when the server stops [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) drain_timeout: Option<Duration>,

    /// Bytes asked for and not taken yet, for all clients together; more has to wait [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_inflight: Option<ByteSize>,

    /// Bytes asked for and not taken yet, for each client; more has to wait [default: 16MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_inflight_per_connection: Option<ByteSize>,
}

/// What has to be said aloud. Each is logged as a warning at every start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Args)]
#[group(skip)]
#[command(next_help_heading = "Insecure")]
pub(crate) struct InsecureSettings {
    /// Serve without TLS on addresses that other hosts can reach, and show them the status
    #[arg(long)]
    pub(crate) insecure_allow_plaintext: bool,

    /// Do not ask clients for certificates
    #[arg(long)]
    pub(crate) insecure_allow_anonymous: bool,

    /// Use a private key or a key file that its group or others can read
    #[arg(long)]
    pub(crate) insecure_key_permissions: bool,
}

/// All settings of a server but the exports.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[group(skip)]
pub(crate) struct Settings {
    /// Export that clients get who ask for the empty name [default: the only one]
    #[arg(long, value_name = "NAME")]
    pub(crate) default_export: Option<String>,

    #[command(flatten)]
    pub(crate) listen: ListenSettings,

    #[command(flatten)]
    pub(crate) monitoring: MonitoringSettings,

    #[command(flatten)]
    pub(crate) tls: TlsSettings,

    #[command(flatten)]
    pub(crate) allow: AllowSettings,

    #[command(flatten)]
    pub(crate) reading: ReadingSettings,

    #[command(flatten)]
    pub(crate) limits: LimitSettings,

    #[command(flatten)]
    pub(crate) insecure: InsecureSettings,
}

impl Settings {
    /// These settings, and those of `other` for what is not set here. A list that is set stands
    /// for itself: it is not added to the other one.
    pub(crate) fn or(self, other: Self) -> Self {
        let (tls, other_tls) = (self.tls, other.tls);
        // Certificate and key belong together, wherever they come from.
        let names_files = tls.tls_cert.is_some() || tls.tls_certificates.is_some();
        let (cert, key, directory) = if names_files {
            (tls.tls_cert, tls.tls_key, tls.tls_certificates)
        } else {
            (other_tls.tls_cert, other_tls.tls_key, other_tls.tls_certificates)
        };
        let listens = self.listen != ListenSettings::default();
        let (limits, monitoring) = (self.limits, self.monitoring);
        Self {
            default_export: self.default_export.or(other.default_export),
            listen: if listens { self.listen } else { other.listen },
            monitoring: MonitoringSettings {
                status_listen: monitoring.status_listen.or(other.monitoring.status_listen),
                metrics_identities: monitoring.metrics_identities
                    || other.monitoring.metrics_identities,
                audit_log: monitoring.audit_log.or(other.monitoring.audit_log),
                status_allow: if monitoring.status_allow_cn.is_empty() {
                    other.monitoring.status_allow
                } else {
                    AllowSettings {
                        cn: monitoring.status_allow_cn.clone(),
                        ..AllowSettings::default()
                    }
                },
                status_allow_cn: monitoring.status_allow_cn,
                status_host: first_set(monitoring.status_host, other.monitoring.status_host),
            },
            tls: TlsSettings {
                tls: tls.tls.or(other_tls.tls),
                tls_cert: cert,
                tls_key: key,
                tls_client_ca: first_set(tls.tls_client_ca, other_tls.tls_client_ca),
                tls_crl: first_set(tls.tls_crl, other_tls.tls_crl),
                tls_certificates: directory,
                tls_min_version: tls.tls_min_version.or(other_tls.tls_min_version),
            },
            allow: if self.allow.is_empty() { other.allow } else { self.allow },
            reading: self.reading.or(other.reading),
            limits: LimitSettings {
                cache_size: limits.cache_size.or(other.limits.cache_size),
                max_connections: limits.max_connections.or(other.limits.max_connections),
                max_connections_per_address: limits
                    .max_connections_per_address
                    .or(other.limits.max_connections_per_address),
                negotiation_timeout: limits
                    .negotiation_timeout
                    .or(other.limits.negotiation_timeout),
                handshake_timeout: limits.handshake_timeout.or(other.limits.handshake_timeout),
                idle_timeout: limits.idle_timeout.or(other.limits.idle_timeout),
                drain_timeout: limits.drain_timeout.or(other.limits.drain_timeout),
                max_inflight: limits.max_inflight.or(other.limits.max_inflight),
                max_inflight_per_connection: limits
                    .max_inflight_per_connection
                    .or(other.limits.max_inflight_per_connection),
            },
            insecure: InsecureSettings {
                insecure_allow_plaintext: self.insecure.insecure_allow_plaintext
                    || other.insecure.insecure_allow_plaintext,
                insecure_allow_anonymous: self.insecure.insecure_allow_anonymous
                    || other.insecure.insecure_allow_anonymous,
                insecure_key_permissions: self.insecure.insecure_key_permissions
                    || other.insecure.insecure_key_permissions,
            },
        }
    }
}

impl AllowSettings {
    /// Whether there is no rule.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

pub(crate) fn first_set<T>(first: Vec<T>, second: Vec<T>) -> Vec<T> {
    if first.is_empty() { second } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_first_wins_and_the_rest_is_filled_in() {
        let flags = Settings {
            listen: ListenSettings { listen: vec!["[::1]:1".into()], unix: vec![] },
            tls: TlsSettings { tls_crl: vec!["flag".into()], ..TlsSettings::default() },
            ..Settings::default()
        };
        let file = Settings {
            default_export: Some("disk".into()),
            listen: ListenSettings { listen: vec![], unix: vec!["socket".into()] },
            tls: TlsSettings {
                tls_cert: Some("cert".into()),
                tls_crl: vec!["file".into()],
                ..TlsSettings::default()
            },
            ..Settings::default()
        };
        let both = flags.clone().or(file.clone());
        assert_eq!(both.listen, flags.listen);
        assert_eq!(both.default_export, file.default_export);
        assert_eq!(both.tls.tls_crl, flags.tls.tls_crl);
        assert_eq!(both.tls.tls_cert, file.tls.tls_cert);
    }

    #[test]
    fn a_key_is_never_taken_with_a_certificate_of_another_place() {
        let of = |cert: Option<&str>, key: Option<&str>| Settings {
            tls: TlsSettings {
                tls_cert: cert.map(Into::into),
                tls_key: key.map(Into::into),
                ..TlsSettings::default()
            },
            ..Settings::default()
        };
        let both = of(Some("a"), None).or(of(Some("b"), Some("b-key")));
        assert_eq!(both, of(Some("a"), None));
    }
}
