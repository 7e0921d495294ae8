//! Serving: raw settings become checked ones, then the server runs until it is told to stop.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::Failure;
use crate::cli::export_argument::ExportArgument;
use crate::cli::logging;
use crate::cli::size::ByteSize;
use crate::cli::uri::uri;
use crate::export::{Catalogue, Export, ExportSettings};
use crate::server::{Access, Endpoint, Insecure, Limits, Policy, Server};
use crate::snapshot::{Cache, File, FileBackend, OpenOptions};

/// The port that is registered for NBD.
const DEFAULT_LISTEN: &str = "127.0.0.1:10809";

/// Threads beside those that read and decode, for whatever else may block.
const SPARE_THREADS: usize = 4;

/// What `hexz-nbd` does when it is given no other command.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Snapshots to export: `[NAME=]PATH[,OPTION…]`, or a directory for every .hxz file in it
    ///
    /// An export is named after its file without the extension unless NAME is given. Options:
    /// `desc=TEXT` describes it, `size=index` takes the size from the index (for a snapshot of a
    /// block device that was recorded with the size 0), `stream=aux` exports the auxiliary stream
    /// (a memory dump), `as-raw` exports an archive that is not a disk image. A comma inside TEXT
    /// is written twice.
    #[arg(
        value_name = "SNAPSHOT",
        default_value = ".",
        value_parser = OsStringValueParser::new().try_map(ExportArgument::parse),
    )]
    snapshots: Vec<ExportArgument>,

    /// Export that clients get who ask for the empty name [default: the only one]
    #[arg(long, value_name = "NAME")]
    default_export: Option<String>,

    #[command(flatten)]
    listen: ListenArguments,

    /// Memory for decoded blocks and index pages, for all clients together
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    cache_size: ByteSize,

    #[command(flatten)]
    logging: logging::Arguments,
}

/// Where to listen.
#[derive(Debug, Args)]
pub(crate) struct ListenArguments {
    /// Address and port to listen on, repeatable [default: 127.0.0.1:10809]
    ///
    /// IPv6 addresses stand in brackets: `[::1]:10809`. Port 0 lets the system choose. Only
    /// loopback addresses are allowed: NBD without TLS belongs nowhere else.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<String>,

    /// Unix socket to listen on, repeatable
    ///
    /// Whoever may write to the socket may read every export: choose its directory accordingly.
    #[arg(long, value_name = "PATH")]
    unix: Vec<PathBuf>,
}

impl ListenArguments {
    /// Where to listen: the default port only if nothing else is asked for.
    pub(crate) fn endpoints(&self) -> Result<Vec<Endpoint>, Failure> {
        let mut endpoints = Vec::new();
        let default = self.listen.is_empty() && self.unix.is_empty();
        let default = default.then_some(DEFAULT_LISTEN);
        for text in self.listen.iter().map(String::as_str).chain(default) {
            endpoints.extend(resolve(text)?.into_iter().map(Endpoint::Tcp));
        }
        endpoints.extend(self.unix.iter().cloned().map(Endpoint::Unix));
        Ok(endpoints)
    }
}

fn resolve(text: &str) -> Result<Vec<SocketAddr>, Failure> {
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    text.to_socket_addrs().map(Iterator::collect).map_err(|error| {
        Failure::Usage(format!(
            "--listen {text}: {error}; expected ADDRESS:PORT, such as 127.0.0.1:10809 or \
             [::1]:10809"
        ))
    })
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    logging::start(&arguments.logging);
    let endpoints = arguments.listen.endpoints()?;
    let cache = Arc::new(Cache::new(arguments.cache_size.0));
    let mut catalogue = Catalogue::default();
    for snapshot in &arguments.snapshots {
        add(&mut catalogue, snapshot, &cache)?;
    }
    if let Some(name) = &arguments.default_export {
        catalogue
            .set_default(name)
            .map_err(|error| Failure::Usage(format!("--default-export: {error}")))?;
    }
    run_server(&endpoints, catalogue, |_| Ok(()))
}

/// Adds what an argument stands for. In a directory, what cannot be exported is logged and does
/// not keep the rest from being served.
fn add(
    catalogue: &mut Catalogue,
    argument: &ExportArgument,
    cache: &Arc<Cache>,
) -> Result<(), Failure> {
    if !argument.path.is_dir() {
        catalogue.add(open(argument, cache)?)?;
        return Ok(());
    }
    let directory = argument.path.display();
    if argument.name.is_some() || argument.description.is_some() {
        return Err(Failure::Usage(format!(
            "{directory} is a directory: its exports are named after its files, so it takes \
             neither NAME= nor desc="
        )));
    }
    let (mut found, mut exported) = (0_usize, 0_usize);
    for path in snapshots_in(&argument.path)? {
        found = found.saturating_add(1);
        let one = ExportArgument { path, ..argument.clone() };
        match open(&one, cache).and_then(|export| Ok(catalogue.add(export)?)) {
            Ok(()) => exported = exported.saturating_add(1),
            Err(error) => tracing::warn!(file = ?one.path, %error, "not exported"),
        }
    }
    if exported == 0 {
        return Err(Failure::failed(if found == 0 {
            format!("{directory}: there is no .hxz file in this directory")
        } else {
            format!("{directory}: none of the {found} .hxz files in this directory can be exported")
        }));
    }
    Ok(())
}

fn snapshots_in(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |error| {
        Failure::failed(format!("{}: cannot read the directory: {error}", directory.display()))
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "hxz") && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn open(argument: &ExportArgument, cache: &Arc<Cache>) -> Result<Export, Failure> {
    let options = OpenOptions {
        cache: Arc::clone(cache),
        size_from_index: argument.size_from_index,
        ..OpenOptions::default()
    };
    let file = File::open_with(Arc::new(FileBackend::new(&argument.path)?), options)?;
    let stem = || argument.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let settings = ExportSettings {
        name: argument.name.clone().unwrap_or_else(stem),
        description: argument.description.clone(),
        stream: argument.stream,
        as_raw: argument.as_raw,
    };
    Ok(Export::new(file, settings)?)
}

/// Runs a server until SIGTERM or SIGINT; a second one ends it at once. `announce` is called with
/// the sockets when clients can connect.
pub(crate) fn run_server(
    endpoints: &[Endpoint],
    catalogue: Catalogue,
    announce: impl FnOnce(&[Endpoint]) -> io::Result<()>,
) -> Result<(), Failure> {
    let limits = Limits::default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(limits.decoders_max.get().saturating_add(SPARE_THREADS))
        .build()
        .map_err(|error| Failure::failed(format!("cannot start threads: {error}")))?;
    let outcome = runtime.block_on(serve(endpoints, Arc::new(catalogue), limits, announce));
    // Reads that still wait for storage must not keep the process.
    runtime.shutdown_background();
    outcome
}

async fn serve(
    endpoints: &[Endpoint],
    catalogue: Arc<Catalogue>,
    limits: Limits,
    announce: impl FnOnce(&[Endpoint]) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let policy = Policy { catalogue: Arc::clone(&catalogue), tls: None, access: Access::default() };
    let server = match Server::bind(endpoints, policy, limits, Insecure::default()).await {
        Err(error) if error.is_refusal() => return Err(Failure::Usage(error.to_string())),
        bound => bound?,
    };
    let endpoints: Vec<Endpoint> = server.endpoints().cloned().collect();
    announce(&endpoints)?;
    log_start(&endpoints, &catalogue);
    let stop = CancellationToken::new();
    let mut running = std::pin::pin!(server.run(stop.clone()));
    for what in ["stopping: clients get what they asked for", "stopping at once"] {
        tokio::select! {
            outcome = &mut running => return Ok(outcome?),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("{what}");
        stop.cancel();
    }
    Err(Failure::failed("stopped by a second signal before every client was answered"))
}

fn log_start(endpoints: &[Endpoint], catalogue: &Catalogue) {
    for export in catalogue.iter() {
        let info = export.info();
        for endpoint in endpoints {
            let uri = uri(endpoint, &info.name);
            tracing::info!(
                name = ?info.name,
                uri,
                size_bytes = info.size_bytes,
                description = ?info.description,
                "export"
            );
        }
    }
    for endpoint in endpoints {
        tracing::info!(%endpoint, "listening");
    }
}
