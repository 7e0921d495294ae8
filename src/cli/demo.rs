//! `hexz-nbd demo`: a small file system, served to whoever wants to try a client.

use std::io::{self, Write as _};
use std::sync::Arc;

use bytes::Bytes;

use crate::cli::Failure;
use crate::cli::logging;
use crate::cli::serve::{self, ServerSettings};
use crate::cli::settings::ListenSettings;
use crate::cli::uri::uri;
use crate::export::{Catalogue, Export, ExportSettings};
use crate::server::reload::Built;
use crate::server::{Endpoint, Policy};
use crate::snapshot::{File, MemoryBackend, OpenOptions, Stream};

/// Made by `scripts/demo-image`.
static SNAPSHOT: &[u8] = include_bytes!("demo.hxz");

const NAME: &str = "demo";

/// Serve a small snapshot of an ext4 file system that is built in, and print how to read it
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    listen: ListenSettings,

    #[command(flatten)]
    logging: logging::Arguments,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    logging::start(&arguments.logging);
    let endpoints = serve::endpoints(&arguments.listen)?;
    serve::run_server(&endpoints, ServerSettings::default(), build, |endpoints| {
        let mut out = io::stdout().lock();
        endpoints.iter().try_for_each(|endpoint| writeln!(out, "{}", instructions(endpoint)))
    })
}

fn build() -> Result<Built, Failure> {
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
    Ok(Built { policy: Policy::plaintext(catalogue), files: Vec::new() })
}

/// What to type in another terminal.
fn instructions(endpoint: &Endpoint) -> String {
    let uri = uri(endpoint, NAME, false);
    let attach = match endpoint {
        Endpoint::Tcp(address) => {
            format!("{} {} /dev/nbd0 -name {NAME} -readonly", address.ip(), address.port())
        }
        Endpoint::Unix(path) => {
            format!("-unix {} /dev/nbd0 -name {NAME} -readonly", path.display())
        }
    };
    format!(
        "Serving a small ext4 file system. In another terminal, try:

  nbdinfo '{uri}'
  nbdcopy '{uri}' demo.img
  qemu-img convert -f raw -O raw '{uri}' demo.img

or attach it to this machine and look inside:

  sudo modprobe nbd
  sudo nbd-client {attach}
  sudo mount -o ro /dev/nbd0 /mnt && cat /mnt/README.txt
  sudo umount /mnt && sudo nbd-client -d /dev/nbd0

Stop with Ctrl-C."
    )
}
