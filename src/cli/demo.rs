//! `hexz-nbd demo`: a small file system, served to whoever wants to try a client.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::cli::Failure;
use crate::cli::certs::{self, ClientFiles, Target};
use crate::cli::logging;
use crate::cli::serve::{self, ServerSettings, Sockets};
use crate::cli::settings::{ListenSettings, Settings, TlsSettings};
use crate::cli::tls_settings;
use crate::cli::uri::uri;
use crate::export::{Catalogue, Export, ExportSettings};
use crate::server::reload::Built;
use crate::server::{Access, Endpoint, Policy};
use crate::snapshot::{File, MemoryBackend, OpenOptions, Stream};

/// Made by `scripts/demo-image`.
static SNAPSHOT: &[u8] = include_bytes!("demo.hxz");

const NAME: &str = "demo";

/// Who the certificate is made for.
const CLIENT: &str = "visitor";

/// Serve a small built-in ext4 file system, and print how to read it
///
/// Over TLS, to whoever holds the client certificate that is made at the start, in a directory of
/// its own that is removed at the end.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Serve without TLS
    #[arg(long)]
    plain: bool,

    #[command(flatten)]
    listen: ListenSettings,

    #[command(flatten)]
    logging: logging::Arguments,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    logging::start(&arguments.logging);
    let endpoints = serve::endpoints(&arguments.listen)?;
    let sockets = Sockets { handed_over: Vec::new(), endpoints };
    let certificates = if arguments.plain { None } else { Some(Certificates::make()?) };
    let server = certificates.as_ref().map(|certificates| certificates.server.clone());
    let build = move || build(server.as_deref());
    serve::run_server(sockets, ServerSettings::default(), build, |endpoints| {
        let mut out = io::stdout().lock();
        endpoints.iter().try_for_each(|endpoint| {
            let instructions = match (endpoint, &certificates) {
                (Endpoint::Tcp(address), Some(certificates)) => {
                    over_tls(*address, &certificates.client)
                }
                (Endpoint::Unix(_), Some(_)) => return Ok(()),
                (_, None) => in_plaintext(endpoint),
            };
            writeln!(out, "{instructions}")
        })
    })
}

/// Made for one demonstration, and removed with it.
struct Certificates {
    server: PathBuf,
    client: ClientFiles,
    _directory: tempfile::TempDir,
}

impl Certificates {
    fn make() -> Result<Self, Failure> {
        let directory = tempfile::Builder::new().prefix("hexz-nbd-demo-").tempdir()?;
        let (server, client) = certs::demo::make(directory.path(), CLIENT)?;
        Ok(Self { server, client, _directory: directory })
    }
}

fn build(certificate: Option<&Path>) -> Result<Built, Failure> {
    let backend = MemoryBackend::new(Bytes::from_static(SNAPSHOT), NAME);
    let file = File::open_with(Arc::new(backend), OpenOptions::default())?;
    let settings = ExportSettings {
        name: NAME.to_owned(),
        description: Some("a small ext4 file system, built into hexz-nbd".to_owned()),
        stream: Stream::Main,
        as_raw: false,
    };
    let mut catalogue = Catalogue::default();
    catalogue.add(Arc::new(Export::new(file, settings)?))?;
    let tls = TlsSettings { tls_cert: certificate.map(Path::to_owned), ..TlsSettings::default() };
    let tls = tls_settings::load(&Settings { tls, ..Settings::default() })?;
    let catalogue = Arc::new(catalogue);
    let policy = Policy { catalogue, tls: tls.tls, access: Access::default() };
    Ok(Built { policy, files: tls.files, exports: Vec::new() })
}

/// What to type in another terminal.
fn over_tls(address: SocketAddr, files: &ClientFiles) -> String {
    let target = Target::at(address);
    let uri = target.uri(NAME, files);
    let qemu = target.qemu_img(NAME, files);
    let nbd_client = target.nbd_client("", "/dev/nbd0", NAME, files);
    instructions(&uri, &qemu, &nbd_client)
}

fn in_plaintext(endpoint: &Endpoint) -> String {
    let uri = uri(endpoint, NAME, false);
    let qemu = format!("qemu-img info '{uri}'");
    let server = match endpoint {
        Endpoint::Tcp(address) => format!("{} {}", address.ip(), address.port()),
        Endpoint::Unix(path) => format!("-unix {}", path.display()),
    };
    instructions(&uri, &qemu, &format!("nbd-client {server} /dev/nbd0 -N {NAME}"))
}

fn instructions(uri: &str, qemu: &str, nbd_client: &str) -> String {
    format!(
        "Serving a small ext4 file system. In another terminal, try:

  nbdinfo '{uri}'
  nbdcopy '{uri}' demo.img
  {qemu}

or attach it to this machine and look inside:

  sudo modprobe nbd
  sudo {nbd_client}
  sudo mount -o ro /dev/nbd0 /mnt && cat /mnt/README.txt
  sudo umount /mnt && sudo nbd-client -d /dev/nbd0

Stop with Ctrl-C."
    )
}
