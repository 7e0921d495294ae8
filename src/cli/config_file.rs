//! Text of a configuration file → the same raw settings as the flags.

use std::fmt::Display;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::cli::Failure;
use crate::cli::cache_size::CacheSize;
use crate::cli::duration;
use crate::cli::export_argument::{self, ExportArgument, PartArgument};
use crate::cli::reading::{CheckChoice, ReadingSettings, parse_digest};
use crate::cli::settings::{
    AllowSettings, AuditChoice, InsecureSettings, LimitSettings, ListenSettings,
    MonitoringSettings, Settings, TlsChoice, TlsSettings,
};
use crate::cli::size::ByteSize;
use crate::export::RoundUp;
use crate::snapshot::Stream;
use crate::tls::MinVersion;

/// What a file says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ConfigFile {
    pub(crate) settings: Settings,
    pub(crate) exports: Vec<ExportArgument>,
}

impl ConfigFile {
    /// Reads a file. Paths in it are relative to its directory.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let failed = |error: &dyn Display| Failure::failed(format!("{}: {error}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
        let document = toml::from_str::<Document>(&text).map_err(|error| {
            let line = error.span().map_or(0, |span| {
                text.bytes().take(span.start).filter(|byte| *byte == b'\n').count()
            });
            failed(&format_args!("line {}: {}", line.saturating_add(1), error.message()))
        })?;
        let directory = path.parent().unwrap_or_else(|| Path::new(""));
        let file = document.resolve(directory);
        for export in &file.exports {
            let of_export = |error| format!("export {:?}: {error}", export.path);
            export.shape().map_err(|error| failed(&of_export(error)))?;
        }
        Ok(file)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Document {
    listen: Vec<String>,
    unix: Vec<PathBuf>,
    status_listen: Option<String>,
    status_allow: AllowSettings,
    status_host: Vec<String>,
    metrics_identities: bool,
    audit_log: Option<PathBuf>,
    default_export: Option<String>,
    key_file: Vec<PathBuf>,
    parent_dir: Vec<PathBuf>,
    verify_key: Vec<PathBuf>,
    require_manifest: bool,
    check: Option<CheckChoice>,
    #[serde(deserialize_with = "from_text")]
    cache_size: Option<CacheSize>,
    max_connections: Option<NonZeroUsize>,
    max_connections_per_address: Option<NonZeroUsize>,
    #[serde(deserialize_with = "time")]
    negotiation_timeout: Option<Duration>,
    #[serde(deserialize_with = "time")]
    handshake_timeout: Option<Duration>,
    #[serde(deserialize_with = "time")]
    idle_timeout: Option<Duration>,
    #[serde(deserialize_with = "time")]
    drain_timeout: Option<Duration>,
    #[serde(deserialize_with = "from_text")]
    max_inflight: Option<ByteSize>,
    #[serde(deserialize_with = "from_text")]
    max_inflight_per_connection: Option<ByteSize>,
    insecure_allow_plaintext: bool,
    insecure_allow_anonymous: bool,
    insecure_key_permissions: bool,
    tls: Tls,
    allow: AllowSettings,
    export: Vec<Export>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Tls {
    mode: Option<TlsChoice>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Vec<PathBuf>,
    crl: Vec<PathBuf>,
    certificates: Option<PathBuf>,
    #[serde(deserialize_with = "from_text")]
    min_version: Option<MinVersion>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Export {
    path: PathBuf,
    name: Option<String>,
    description: Option<String>,
    offset: Option<Bytes>,
    size: Option<Size>,
    partition: Option<u32>,
    #[serde(default, deserialize_with = "round_up")]
    round_up: Option<RoundUp>,
    stream: Option<StreamName>,
    key_file: Option<PathBuf>,
    #[serde(default)]
    parent_blake3: Vec<Digest>,
    #[serde(default)]
    verify_key: Vec<PathBuf>,
    #[serde(default)]
    require_manifest: bool,
    #[serde(default)]
    as_raw: bool,
    #[serde(default)]
    plaintext: bool,
    #[serde(default)]
    allow: AllowSettings,
}

/// A number, or a text with a number and a unit.
#[derive(Debug, Clone, Copy)]
struct Bytes(u64);

/// A BLAKE3 in hexadecimal digits.
#[derive(Debug)]
struct Digest([u8; 32]);

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_digest(&String::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

/// A number of bytes, or `index` for the one that the index of the snapshot has.
#[derive(Debug, Clone, Copy)]
enum Size {
    Bytes(Bytes),
    FromIndex,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected bytes, as a number or as a text such as \"64MiB\"")]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(bytes) => Ok(Self(bytes)),
            NumberOrText::Text(text) => {
                text.parse().map(|ByteSize(bytes)| Self(bytes)).map_err(D::Error::custom)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(bytes) => Ok(Self::Bytes(Bytes(bytes))),
            NumberOrText::Text(text) if text == "index" => Ok(Self::FromIndex),
            NumberOrText::Text(text) => {
                let parsed = text.parse().map(|ByteSize(bytes)| Self::Bytes(Bytes(bytes)));
                parsed.map_err(|error| D::Error::custom(format!("{error}, or \"index\"")))
            }
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StreamName {
    Main,
    Aux,
}

impl Document {
    fn resolve(self, directory: &Path) -> ConfigFile {
        let path = |path: PathBuf| directory.join(path);
        let paths = |paths: Vec<PathBuf>| paths.into_iter().map(path).collect();
        let exports = self.export.into_iter().map(|export| ExportArgument {
            name: export.name,
            path: path(export.path),
            description: export.description,
            size_from_index: matches!(export.size, Some(Size::FromIndex)),
            stream: export.stream.map(|stream| match stream {
                StreamName::Main => Stream::Main,
                StreamName::Aux => Stream::Auxiliary,
            }),
            part: PartArgument {
                offset: export.offset.map(|Bytes(bytes)| bytes),
                size: match export.size {
                    Some(Size::Bytes(Bytes(bytes))) => Some(bytes),
                    Some(Size::FromIndex) | None => None,
                },
                partition: export.partition,
            },
            round_up: export.round_up,
            key_file: export.key_file.map(path),
            verify_key: paths(export.verify_key),
            require_manifest: export.require_manifest,
            parent_blake3: export.parent_blake3.into_iter().map(|Digest(digest)| digest).collect(),
            as_raw: export.as_raw,
            plaintext: export.plaintext,
            allow: export.allow,
        });
        let settings = Settings {
            default_export: self.default_export,
            listen: ListenSettings { listen: self.listen, unix: paths(self.unix) },
            monitoring: MonitoringSettings {
                status_listen: self.status_listen,
                status_allow: self.status_allow,
                status_allow_cn: Vec::new(),
                status_host: self.status_host,
                metrics_identities: self.metrics_identities,
                audit_log: self.audit_log.map(|to| match AuditChoice::from(to) {
                    AuditChoice::File(file) => AuditChoice::File(path(file)),
                    other @ (AuditChoice::Journald | AuditChoice::StandardOutput) => other,
                }),
            },
            tls: TlsSettings {
                tls: self.tls.mode,
                tls_cert: self.tls.cert.map(path),
                tls_key: self.tls.key.map(path),
                tls_client_ca: paths(self.tls.client_ca),
                tls_crl: paths(self.tls.crl),
                tls_certificates: self.tls.certificates.map(path),
                tls_min_version: self.tls.min_version,
            },
            allow: self.allow,
            reading: ReadingSettings {
                key_file: paths(self.key_file),
                parent_dir: paths(self.parent_dir),
                verify_key: paths(self.verify_key),
                require_manifest: self.require_manifest,
                check: self.check,
            },
            limits: LimitSettings {
                cache_size: self.cache_size,
                max_connections: self.max_connections,
                max_connections_per_address: self.max_connections_per_address,
                negotiation_timeout: self.negotiation_timeout,
                handshake_timeout: self.handshake_timeout,
                idle_timeout: self.idle_timeout,
                drain_timeout: self.drain_timeout,
                max_inflight: self.max_inflight,
                max_inflight_per_connection: self.max_inflight_per_connection,
            },
            insecure: InsecureSettings {
                insecure_allow_plaintext: self.insecure_allow_plaintext,
                insecure_allow_anonymous: self.insecure_allow_anonymous,
                insecure_key_permissions: self.insecure_key_permissions,
            },
        };
        ConfigFile { settings, exports: exports.collect() }
    }
}

fn from_text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    String::deserialize(deserializer)?.parse().map(Some).map_err(D::Error::custom)
}

fn round_up<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RoundUp>, D::Error> {
    let Bytes(bytes) = Bytes::deserialize(deserializer)?;
    export_argument::round_up(bytes).map(Some).map_err(D::Error::custom)
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration::parse(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ConfigFile, Failure> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hexz-nbd.toml");
        std::fs::write(&path, text).unwrap();
        ConfigFile::read(&path)
    }

    #[test]
    fn every_key_is_the_flag_of_its_name() {
        let file = read(
            r#"
            listen = ["0.0.0.0:10809"]
            default_export = "root"
            status_listen = "127.0.0.1:9809"
            status_allow = { cn = ["prometheus"] }
            status_host = ["gateway.example.com"]
            metrics_identities = true
            audit_log = "/var/log/audit.json"
            cache_size = "1GiB"
            negotiation_timeout = "5s"
            idle_timeout = "1h"
            drain_timeout = "1min"
            max_inflight = "1GiB"
            max_inflight_per_connection = "32MiB"

            key_file = ["/etc/hexz-nbd/passphrase"]
            parent_dir = ["/srv/base"]
            verify_key = ["/etc/hexz-nbd/public.key"]
            require_manifest = true
            check = "blake3"

            [tls]
            mode = "require"
            cert = "/etc/hexz-nbd/srv.pem"
            min_version = "1.3"

            [allow]
            ou = ["operators"]

            [[export]]
            name = "root"
            path = "/srv/root.hxz"
            description = "golden image"
            size = "index"

            [export.allow]
            uri = ["spiffe://example/build/*"]

            [[export]]
            path = "/srv/public"
            plaintext = true
            "#,
        )
        .unwrap();
        let settings = file.settings;
        assert_eq!(settings.listen.listen, ["0.0.0.0:10809"]);
        let monitoring = &settings.monitoring;
        assert_eq!(monitoring.status_listen.as_deref(), Some("127.0.0.1:9809"));
        assert!(monitoring.metrics_identities);
        assert_eq!(monitoring.status_allow.cn, ["prometheus"]);
        assert_eq!(monitoring.status_host, ["gateway.example.com"]);
        assert_eq!(monitoring.audit_log, Some(AuditChoice::File("/var/log/audit.json".into())));
        assert_eq!(settings.limits.cache_size, Some(CacheSize::Bytes(ByteSize(1 << 30))));
        assert_eq!(settings.limits.negotiation_timeout, Some(Duration::from_secs(5)));
        assert_eq!(settings.limits.idle_timeout, Some(Duration::from_secs(3600)));
        assert_eq!(settings.limits.drain_timeout, Some(Duration::from_secs(60)));
        assert_eq!(settings.limits.max_inflight, Some(ByteSize(1 << 30)));
        assert_eq!(settings.limits.max_inflight_per_connection, Some(ByteSize(32 << 20)));
        assert_eq!(settings.reading.key_file, [Path::new("/etc/hexz-nbd/passphrase")]);
        assert_eq!(settings.reading.parent_dir, [Path::new("/srv/base")]);
        assert_eq!(settings.reading.verify_key, [Path::new("/etc/hexz-nbd/public.key")]);
        assert!(settings.reading.require_manifest);
        assert_eq!(settings.reading.check, Some(CheckChoice::Blake3));
        assert_eq!(settings.tls.tls, Some(TlsChoice::Require));
        assert_eq!(settings.tls.tls_cert, Some("/etc/hexz-nbd/srv.pem".into()));
        assert_eq!(settings.tls.tls_min_version, Some(MinVersion::Tls13));
        assert_eq!(settings.allow.ou, ["operators"]);
        let [root, public] = &file.exports[..] else { panic!() };
        assert_eq!(root.name.as_deref(), Some("root"));
        assert!(root.size_from_index && !root.plaintext);
        assert_eq!(root.allow.uri, ["spiffe://example/build/*"]);
        assert_eq!(public.path, Path::new("/srv/public"));
        assert!(public.plaintext && public.allow.is_empty());
    }

    #[test]
    fn a_part_of_a_snapshot_is_said_as_on_the_command_line() {
        let file = read(
            r#"
            [[export]]
            path = "a.hxz"
            offset = "1MiB"
            size = "64MiB"
            round_up = 512

            [[export]]
            path = "a.hxz"
            offset = 4096
            size = "index"
            stream = "aux"

            [[export]]
            path = "a.hxz"
            partition = 5
            round_up = "4KiB"
            "#,
        )
        .unwrap();
        let [window, rest, partition] = &file.exports[..] else { panic!() };
        let parse = |options: &str| ExportArgument::parse(options.into()).unwrap();
        for (read, written) in [
            (window, ",offset=1MiB,size=64MiB,round-up=512"),
            (rest, ",offset=4096,size=index,stream=aux"),
            (partition, ",partition=5,round-up=4096"),
        ] {
            let path = read.path.display();
            assert_eq!(read, &parse(&format!("{path}{written}")));
        }
        let error = read("[[export]]\npath = \"a.hxz\"\npartition = 1\noffset = 1").unwrap_err();
        assert!(error.to_string().contains("a.hxz\": partition= and offset="), "{error}");
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hexz-nbd.toml");
        std::fs::write(&path, "[tls]\ncert = \"srv.pem\"\n[[export]]\npath = \"a/b.hxz\"").unwrap();
        let file = ConfigFile::read(&path).unwrap();
        assert_eq!(file.settings.tls.tls_cert, Some(directory.path().join("srv.pem")));
        assert_eq!(file.exports[0].path, directory.path().join("a/b.hxz"));
        for (text, expected) in [
            ("audit.json", AuditChoice::File(directory.path().join("audit.json"))),
            ("journald", AuditChoice::Journald),
            ("-", AuditChoice::StandardOutput),
        ] {
            std::fs::write(&path, format!("audit_log = {text:?}")).unwrap();
            let file = ConfigFile::read(&path).unwrap();
            assert_eq!(file.settings.monitoring.audit_log, Some(expected));
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, line, part) in [
            ("listen = \"x\"", 1, "sequence"),
            ("\nlissten = []", 2, "unknown field `lissten`"),
            ("cache_size = \"1Q\"", 1, "unknown unit"),
            ("[tls]\n\nmode = \"maybe\"", 3, "unknown variant"),
            ("[tls]\nmin_version = \"1.1\"", 2, "1.2 or 1.3"),
            ("[[export]]\nname = \"x\"", 1, "missing field `path`"),
            ("[[export]]\npath = \"x\"\nallow = { cm = [] }", 3, "unknown field `cm`"),
            ("handshake_timeout = 3", 1, "expected a string"),
            ("[[export]]\npath = \"x\"\nround_up = 1000", 3, "power of two"),
            ("[[export]]\npath = \"x\"\nsize = \"indexes\"", 3, "\"index\""),
            ("[[export]]\npath = \"x\"\noffset = -1", 3, "expected bytes"),
            ("[[export]]\npath = \"x\"\noffset = \"1Q\"", 3, "unknown unit"),
            ("[[export]]\npath = \"x\"\nparent_blake3 = [\"12\"]", 3, "64 hexadecimal"),
            ("check = \"sha1\"", 1, "unknown variant"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(&format!("hexz-nbd.toml: line {line}: ")), "{text}: {error}");
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
