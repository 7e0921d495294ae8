//! Serving: raw settings become checked ones, then the server runs until it is told to stop.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::Failure;
use crate::cli::cache_size::CacheSize;
use crate::cli::config_file::ConfigFile;
use crate::cli::export_argument::ExportArgument;
use crate::cli::exports::{Exports, Opened};
use crate::cli::key_files::read_verify_keys;
use crate::cli::logging;
use crate::cli::monitoring::Monitoring;
use crate::cli::passphrases;
use crate::cli::service_manager;
use crate::cli::settings::{LimitSettings, ListenSettings, Settings};
use crate::cli::size::ByteSize;
use crate::cli::tls_settings;
use crate::cli::uri::uri;
use crate::export::{Catalogue, RoundUp};
use crate::server::activation::{self, HandedOver};
use crate::server::reload::{Built, Progress, Seen};
use crate::server::{Endpoint, Insecure, Limits, Policy, Server};
use crate::snapshot::Cache;

/// The port that is registered for NBD.
const DEFAULT_LISTEN: &str = "127.0.0.1:10809";

/// Threads beside those that read and decode, for whatever else may block.
const SPARE_THREADS: usize = 4;

/// What `hexz-nbd` does when it is given no other command.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Snapshots to export: `[NAME=]PATH[,OPTION…]`, or a directory for every .hxz file in it
    /// [default: the current directory]
    ///
    /// An export is named after its file without the extension unless NAME is given; the auxiliary
    /// stream of its snapshot (a memory dump), if there is one, is `NAME/aux`. Options: `desc=TEXT`
    /// describes it, `partition=N` exports a partition of the disk (MBR or GPT), `offset=BYTES` and
    /// `size=BYTES` export a part of it, `round-up=512` pads it with zeros to whole sectors,
    /// `size=index` takes the size from the index (for a snapshot of a block device that was
    /// recorded with the size 0), `stream=main` or `stream=aux` exports one stream alone,
    /// `key-file=FILE` has the passphrase of an encrypted one, `parent-blake3=HEX` pins the parents of a
    /// thin one to files with this BLAKE3 (repeatable, one for each), `verify-key=PUB` and
    /// `require-manifest` say how it must be signed, `as-raw` exports an archive that is not a
    /// disk image, `plaintext` opens it to clients without TLS under --tls=on. A comma inside TEXT is written twice.
    #[arg(
        value_name = "SNAPSHOT",
        value_parser = OsStringValueParser::new().try_map(ExportArgument::parse),
    )]
    snapshots: Vec<ExportArgument>,

    /// File with settings and exports, TOML. Flags win over it; snapshots are added to its exports
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    settings: Settings,

    #[command(flatten)]
    logging: logging::Arguments,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    logging::start(&arguments.logging);
    // There are no threads yet, as it demands.
    let handed_over = activation::take()?;
    let (settings, _) = read_settings(&arguments)?;
    let endpoints = if handed_over.is_empty() || settings.listen != ListenSettings::default() {
        endpoints(&settings.listen)?
    } else {
        Vec::new()
    };
    let cache_bytes = settings.limits.cache_size.unwrap_or(CacheSize::Auto).bytes();
    tracing::debug!(bytes = cache_bytes, "cache");
    let cache = Arc::new(Cache::new(cache_bytes));
    let server = ServerSettings::new(&settings, &cache)?;
    let exports = Mutex::new(Exports::new(cache));
    let build = move || {
        let mut exports = exports.lock().unwrap_or_else(PoisonError::into_inner);
        build(&arguments, &mut exports)
    };
    run_server(Sockets { handed_over, endpoints }, server, build, |_| Ok(()))
}

fn read_settings(arguments: &Arguments) -> Result<(Settings, Vec<ExportArgument>), Failure> {
    let file = arguments.config.as_deref().map(ConfigFile::read).transpose()?.unwrap_or_default();
    let mut exports = file.exports;
    exports.extend(arguments.snapshots.iter().cloned());
    if exports.is_empty() {
        exports.push(ExportArgument::of_path("."));
    }
    Ok((arguments.settings.clone().or(file.settings), exports))
}

/// What is served and to whom, from the command line and all files as they are now.
fn build(arguments: &Arguments, exports: &mut Exports) -> Result<Built, Failure> {
    let (settings, wanted) = read_settings(arguments)?;
    let tls = tls_settings::load(&settings)?;
    // What is named for all must be right, whether anything needs it or not.
    read_verify_keys(&settings.reading.verify_key)?;
    passphrases::load(&settings.reading.key_file, settings.insecure.insecure_key_permissions)?;
    let opened = exports.open_all(&wanted, &settings)?;
    let Opened { mut catalogue, access, watched, has_directories } = opened;
    if let Some(name) = &settings.default_export
        && let Err(error) = catalogue.set_default(name)
    {
        if !has_directories {
            return Err(Failure::Usage(format!("--default-export: {error}")));
        }
        tracing::warn!(export = name, "the default export is not there; it may come yet");
        catalogue.expect_default(name);
    }
    if access.has_rules() && tls.tls.is_none() {
        return Err(Failure::Usage(
            "there are rules about who may read, and no TLS by which clients could show who they \
             are: give a certificate with --tls-cert"
                .to_owned(),
        ));
    }
    for export in catalogue.iter().filter(|export| access.forgets(&export.info().name)) {
        tracing::warn!(
            export = export.info().name.as_str(),
            "nobody may read this export: others have rules, and it has none"
        );
    }
    let mut files = tls.files;
    files.extend(arguments.config.clone());
    files.extend(passphrases::files(&settings.reading.key_file));
    files.extend(settings.reading.verify_key.iter().cloned());
    for export in &wanted {
        files.extend(export.key_file.iter().chain(&export.verify_key).cloned());
    }
    let policy = Policy { catalogue: Arc::new(catalogue), tls: tls.tls, access };
    Ok(Built { policy, files, exports: watched })
}

/// The Linux kernel knows whole sectors only.
fn propose_padding(export: &str, size_bytes: u64) {
    let lost = size_bytes % u64::from(RoundUp::MIN);
    if lost != 0 {
        tracing::info!(
            export,
            size_bytes,
            "the Linux kernel's nbd client would lose the last {lost} bytes, which are no whole \
             sector: `round-up=512` pads the export"
        );
    }
}

/// Where to listen: the default port only if nothing else is asked for.
pub(crate) fn endpoints(settings: &ListenSettings) -> Result<Vec<Endpoint>, Failure> {
    let mut endpoints = Vec::new();
    let default = settings.listen.is_empty() && settings.unix.is_empty();
    let default = default.then_some(DEFAULT_LISTEN);
    for text in settings.listen.iter().map(String::as_str).chain(default) {
        endpoints.extend(resolve("--listen", text)?.into_iter().map(Endpoint::Tcp));
    }
    endpoints.extend(settings.unix.iter().cloned().map(Endpoint::Unix));
    Ok(endpoints)
}

pub(crate) fn resolve(flag: &str, text: &str) -> Result<Vec<SocketAddr>, Failure> {
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    text.to_socket_addrs().map(Iterator::collect).map_err(|error| {
        Failure::Usage(format!(
            "{flag} {text}: {error}; expected ADDRESS:PORT, such as 127.0.0.1:10809 or \
             [::1]:10809"
        ))
    })
}

/// Where to listen: on sockets that are there, and on sockets that are to be made.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) handed_over: Vec<HandedOver>,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// What does not change while the server runs.
#[derive(Debug, Default)]
pub(crate) struct ServerSettings {
    limits: Limits,
    insecure: Insecure,
    monitoring: Monitoring,
}

impl ServerSettings {
    fn new(settings: &Settings, cache: &Arc<Cache>) -> Result<Self, Failure> {
        let default = Limits::default();
        let LimitSettings {
            cache_size: _,
            max_connections,
            max_connections_per_address,
            negotiation_timeout,
            handshake_timeout,
            idle_timeout,
            drain_timeout,
            max_inflight,
            max_inflight_per_connection,
        } = settings.limits;
        let no_client = "no client can be that fast";
        for (flag, time, why) in [
            ("--negotiation-timeout", negotiation_timeout, no_client),
            ("--handshake-timeout", handshake_timeout, no_client),
            ("--idle-timeout", idle_timeout, "leave it out to let clients be idle for ever"),
            ("--drain-timeout", drain_timeout, "nothing could be answered; 1ms is the least"),
        ] {
            if time.is_some_and(|time| time.is_zero()) {
                return Err(Failure::Usage(format!("{flag}: {why}")));
            }
        }
        let (in_all, each) = (max_inflight, max_inflight_per_connection);
        for (flag, size) in [("--max-inflight", in_all), ("--max-inflight-per-connection", each)] {
            if size == Some(ByteSize(0)) {
                return Err(Failure::Usage(format!("{flag}: nothing could be read")));
            }
        }
        if let (Some(in_all), Some(each)) = (in_all, each)
            && each.0 > in_all.0
        {
            return Err(Failure::Usage(format!(
                "--max-inflight-per-connection: {each} for one client are more than the {in_all} \
                 that --max-inflight allows to all of them"
            )));
        }
        let limits = Limits {
            connections_max: max_connections.unwrap_or(default.connections_max),
            connections_per_address_max: max_connections_per_address
                .unwrap_or(default.connections_per_address_max),
            negotiation_timeout: negotiation_timeout.unwrap_or(default.negotiation_timeout),
            handshake_timeout: handshake_timeout.unwrap_or(default.handshake_timeout),
            idle_timeout: idle_timeout.or(default.idle_timeout),
            drain_timeout: drain_timeout.unwrap_or(default.drain_timeout),
            inflight_bytes_max: in_all.map_or(default.inflight_bytes_max, |size| size.0),
            owed_bytes_max: each.map_or(default.owed_bytes_max, |size| size.0),
            ..default
        };
        let insecure = Insecure {
            plaintext: settings.insecure.insecure_allow_plaintext,
            anonymous: settings.insecure.insecure_allow_anonymous,
        };
        let monitoring = Monitoring::new(&settings.monitoring, cache)?;
        Ok(Self { limits, insecure, monitoring })
    }
}

/// Runs a server until SIGTERM or SIGINT; a second one ends it at once. What is served is built at
/// the start, and again on SIGHUP and when its files change. `announce` is called with the sockets
/// when clients can connect.
pub(crate) fn run_server(
    sockets: Sockets,
    settings: ServerSettings,
    build: impl Fn() -> Result<Built, Failure> + Send + Sync + 'static,
    announce: impl FnOnce(&[Endpoint]) -> io::Result<()>,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(settings.limits.decoders_max.get().saturating_add(SPARE_THREADS))
        .build()
        .map_err(|error| Failure::failed(format!("cannot start threads: {error}")))?;
    let outcome = runtime.block_on(serve(sockets, settings, build, announce));
    // Reads that still wait for storage must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// For the service manager.
fn serving(catalogue: &Catalogue) -> String {
    format!("serving {} exports", catalogue.iter().count())
}

/// systemd takes a reload for done when it hears so, and what waits for it goes on: not before the
/// policy is in force.
fn tell_of_reload(progress: Progress<'_>) {
    match progress {
        Progress::Begun => service_manager::reloading(),
        Progress::InForce(policy) => service_manager::ready(&serving(&policy.catalogue)),
        Progress::Failed => service_manager::ready("the last reload failed, see the log"),
    }
}

async fn serve(
    Sockets { handed_over, endpoints }: Sockets,
    settings: ServerSettings,
    build: impl Fn() -> Result<Built, Failure> + Send + Sync + 'static,
    announce: impl FnOnce(&[Endpoint]) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hang_up = signal(SignalKind::hangup())?;
    // They mean nothing here, and would end the process, which whoever sends them to a server does
    // not mean. Once taken, they stay taken.
    for meaningless in [SignalKind::user_defined1(), SignalKind::user_defined2()] {
        drop(signal(meaningless)?);
    }
    let build = Arc::new(build);
    // It may take its time, in which the server can be stopped.
    let mut building = tokio::task::spawn_blocking({
        let build = Arc::clone(&build);
        move || build()
    });
    let built = tokio::select! {
        built = &mut building => built?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let Built { policy, files, exports } = built?;
    let seen = Seen::new(files, exports);
    let (catalogue, has_tls) = (Arc::clone(&policy.catalogue), policy.tls.is_some());
    let ServerSettings { limits, insecure, monitoring } = settings;
    let bound = Server::bind_beside(handed_over, &endpoints, policy, limits, insecure).await;
    let server = match bound {
        Err(error) if error.is_refusal() => return Err(Failure::Usage(error.to_string())),
        bound => bound?,
    };
    let endpoints: Vec<Endpoint> = server.endpoints().cloned().collect();
    let watch = monitoring.watch(&server).await?;
    announce(&endpoints)?;
    for export in catalogue.iter() {
        let info = export.info();
        for endpoint in &endpoints {
            tracing::info!(
                name = info.name.as_str(),
                uri = uri(endpoint, &info.name, has_tls),
                size_bytes = info.size_bytes,
                description = info.description.as_str(),
                "export"
            );
        }
        propose_padding(&info.name, info.size_bytes);
    }
    for endpoint in &endpoints {
        tracing::info!(%endpoint, "listening");
    }
    let rebuild = move || build().map_err(|failure| failure.to_string().into());
    let tell = |progress: Progress<'_>| {
        if matches!(progress, Progress::Begun) {
            watch.reopen();
        }
        tell_of_reload(progress);
    };
    let reloading = server.reloader().run(hang_up, seen, rebuild, tell);
    let mut reloading = std::pin::pin!(reloading);
    let stop = CancellationToken::new();
    let cutter = server.cutter();
    let mut running = std::pin::pin!(server.run(stop.clone()));
    let mut watchdog = std::pin::pin!(service_manager::keep_watchdog_fed());
    service_manager::ready(&serving(&catalogue));
    for what in ["stopping: clients get what they asked for", "stopping at once"] {
        tokio::select! {
            outcome = &mut running => return Ok(outcome?),
            // What is loaded now would be for nobody.
            () = &mut reloading, if !stop.is_cancelled() => {}
            () = &mut watchdog => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("{what}");
        service_manager::stopping();
        stop.cancel();
    }
    cutter.cut().await;
    Err(Failure::failed("stopped by a second signal before every client was answered"))
}
