//! Arguments and entries of a configuration file → opened exports, and who may read them.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use crate::cli::Failure;
use crate::cli::export_argument::ExportArgument;
use crate::cli::open_files::OpenFiles;
use crate::cli::passphrases;
use crate::cli::reading::{Reading, Shared};
use crate::cli::report::{Report, Reports};
use crate::cli::settings::{AllowSettings, Settings};
use crate::export::{Catalogue, CatalogueError, Export, ExportError, ExportSettings, Part, Shape};
use crate::server::reload::{State, Watched};
use crate::server::{Access, ExportAccess};
use crate::snapshot::storage::companions;
use crate::snapshot::{Cache, Error, ErrorKind, File, Registry, Stream, manifest};
use crate::tls::{Rule, RuleError, Rules};

/// A directory stands for the files in it with this extension.
const EXTENSION: &str = "hxz";

/// Opens exports, and knows those that are open: what has not changed is not opened again.
#[derive(Debug)]
pub(crate) struct Exports {
    shared: Shared,
    open: Open,
    has_started: bool,
}

/// What is open, and what has been said of what is not.
#[derive(Debug, Default)]
struct Open {
    files: OpenFiles,
    served: HashMap<String, Served>,
    /// The snapshots in each directory.
    directories: HashMap<PathBuf, Vec<PathBuf>>,
    from_directories: Vec<FromDirectory>,
    /// Those for which no passphrase was right.
    locked: HashMap<String, Locked>,
    reports: Reports,
}

/// A snapshot that no passphrase opens, with all that could change that. To try again what was
/// tried takes its time, and the others would wait for it.
#[derive(Debug, Clone)]
struct Locked {
    argument: ExportArgument,
    reading: Reading,
    state: State,
    key_files: Vec<(Watched, State)>,
    message: Arc<str>,
}

/// The exports of one argument, with what they were made from.
#[derive(Debug, Clone)]
struct Served {
    argument: ExportArgument,
    reading: Reading,
    state: State,
    /// One for each stream.
    exports: Vec<Arc<Export>>,
}

/// An export that may still be read when its file is not there any more.
#[derive(Debug, Clone)]
struct FromDirectory {
    directory: PathBuf,
    name: String,
    export: Weak<Export>,
}

/// What is served, and who may read what.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) catalogue: Catalogue,
    pub(crate) access: Access,
    /// What it was made from, each as it was before it was read.
    pub(crate) watched: Vec<(Watched, State)>,
    /// Exports may come and go by themselves.
    pub(crate) has_directories: bool,
}

/// One time that everything is opened.
struct Round<'a> {
    shared: &'a Shared,
    settings: &'a Settings,
    before: &'a Open,
    is_start: bool,
    /// Names of snapshots that are named by themselves. No file that comes to a directory takes
    /// one, wherever the directory stands.
    reserved: HashSet<String>,
    now: Open,
    opened: Opened,
    /// Why exports are broken.
    failures: Vec<Failure>,
}

impl Exports {
    pub(crate) fn new(cache: Arc<Cache>) -> Self {
        let shared = Shared { cache, registry: Arc::new(Registry::default()) };
        Self { shared, open: Open::default(), has_started: false }
    }

    /// Opens everything that is asked for. Exports that were open before and are not asked for
    /// any more are forgotten, if all goes well.
    ///
    /// A snapshot that cannot be opened is no reason not to serve the others. At the start there
    /// must be one that can, unless all that there is is a directory without snapshots.
    pub(crate) fn open_all(
        &mut self,
        arguments: &[ExportArgument],
        settings: &Settings,
    ) -> Result<Opened, Failure> {
        let mut access = Access { rules: rules(&settings.allow)?, ..Access::default() };
        access.status = rules(&settings.monitoring.status_allow)?;
        let (watched, has_directories) = (Vec::new(), false);
        let opened = Opened { catalogue: Catalogue::default(), access, watched, has_directories };
        // One that cannot be found at the moment is a directory all the same.
        let is_directory = |argument: &ExportArgument| {
            let was_directory = self.open.directories.contains_key(&argument.path);
            argument.path.is_dir() || was_directory && !argument.path.is_file()
        };
        let arguments: Vec<(&ExportArgument, bool)> =
            arguments.iter().map(|argument| (argument, is_directory(argument))).collect();
        let by_themselves = arguments.iter().filter(|(_, is_directory)| !is_directory);
        let mut round = Round {
            shared: &self.shared,
            settings,
            before: &self.open,
            is_start: !self.has_started,
            reserved: by_themselves.map(|(argument, _)| name_of(argument)).collect(),
            now: Open::default(),
            opened,
            failures: Vec::new(),
        };
        let mut directories = Vec::new();
        for (argument, is_directory) in arguments {
            let own =
                ExportAccess { rules: rules(&argument.allow)?, plaintext: argument.plaintext };
            if is_directory {
                round.serve_directory(argument, &own)?;
                directories.push((argument.path.as_path(), own));
            } else {
                round.serve(argument, &own, None)?;
            }
        }
        round.remember_removed(&directories);
        let Round { now, mut opened, failures, is_start, .. } = round;
        opened.has_directories = !directories.is_empty();
        if opened.catalogue.is_empty() && (is_start || directories.is_empty()) {
            match <[Failure; 1]>::try_from(failures) {
                Ok([failure]) => return Err(failure),
                Err(failures) if failures.is_empty() => {}
                Err(failures) => {
                    let reasons: Vec<String> = failures.iter().map(Failure::to_string).collect();
                    let message = format!("nothing can be exported: {}", reasons.join("; "));
                    return Err(Failure::failed(message));
                }
            }
        }
        now.reports.log_new(&self.open.reports);
        (self.open, self.has_started) = (now, true);
        Ok(opened)
    }
}

impl Round<'_> {
    /// A directory stands for the snapshots in it.
    fn serve_directory(
        &mut self,
        argument: &ExportArgument,
        own: &ExportAccess,
    ) -> Result<(), Failure> {
        let directory = &argument.path;
        if argument.name.is_some() || argument.description.is_some() {
            return Err(Failure::Usage(format!(
                "{} is a directory: its exports are named after its files, so it takes neither a \
                 name nor a description",
                directory.display()
            )));
        }
        let watched = Watched::Names { directory: directory.clone(), extension: EXTENSION };
        let state = watched.look();
        self.opened.watched.push((watched, state.clone()));
        let paths = match (snapshots_in(directory), self.before.directories.get(directory)) {
            (Ok(paths), _) => paths,
            // It may be there again in a moment, like the rest of its file system.
            (Err(failure), Some(known)) => {
                self.report(directory, "", state, Report::Kept(failure.to_string()));
                known.clone()
            }
            (Err(failure), None) => return Err(failure),
        };
        if paths.is_empty() {
            self.report(directory, "", State::Absent, Report::EmptyDirectory);
        }
        for path in &paths {
            let one = ExportArgument { path: path.clone(), ..argument.clone() };
            self.serve(&one, own, Some(directory))?;
        }
        self.now.directories.insert(directory.clone(), paths);
        Ok(())
    }

    /// Serves a snapshot, named by itself or found in a directory. What is wrong with one that was
    /// found keeps nobody from anything, and neither does what happens to a file when the server
    /// runs.
    fn serve(
        &mut self,
        argument: &ExportArgument,
        own: &ExportAccess,
        directory: Option<&Path>,
    ) -> Result<(), Failure> {
        let path = &argument.path;
        let name = name_of(argument);
        let watched = Watched::File(path.clone());
        // Before it is opened: what changes meanwhile is seen next time.
        let state = watched.look();
        self.opened.watched.push((watched, state.clone()));
        let known = self.before.served.get(&name);
        let served = match (self.serve_anew(argument, &name, &state, known), known) {
            (Ok(served), _) => served,
            // What was good enough before is good enough now.
            (Err((failure, true)), Some(known)) => {
                self.report(path, &name, state.clone(), Report::Kept(failure.to_string()));
                known.clone()
            }
            (Err((failure, _)), _) => {
                return self.serve_broken(&name, failure, argument, own, state, directory);
            }
        };
        for (place, export) in served.exports.iter().enumerate() {
            let catalogue = &mut self.opened.catalogue;
            let name = &export.info().name;
            let added = match place {
                _ if directory.is_some() && self.reserved.contains(name) => {
                    Err(CatalogueError::Duplicate(name.clone()))
                }
                0 => catalogue.add(Arc::clone(export)),
                _ => catalogue.add_beside(Arc::clone(export)),
            };
            match (added, directory) {
                (Ok(()), Some(directory)) => {
                    let (directory, name) = (directory.to_owned(), name.clone());
                    let export = Arc::downgrade(export);
                    self.now.from_directories.push(FromDirectory { directory, name, export });
                }
                (Ok(()), None) => {}
                (Err(error), None) => return Err(error.into()),
                (Err(error), Some(_)) => {
                    let report = Report::NotAnExport(error.to_string());
                    self.report(path, name, state.clone(), report);
                    // The second stream of another snapshot would only confuse.
                    return Ok(());
                }
            }
            self.opened.access.exports.insert(name.clone(), own.clone());
        }
        // For those who ask for the same file next time, if it was not opened now.
        let Served { argument, reading, state, .. } = &served;
        let (files, before) = (&mut self.now.files, &self.before.files);
        files.keep(&argument.path, state, reading, before);
        self.now.served.insert(name, served);
        Ok(())
    }

    /// What is served of a snapshot now, which is what was served before if nothing has changed.
    /// With a failure comes whether the snapshot must be no better than it had to be before.
    fn serve_anew(
        &mut self,
        argument: &ExportArgument,
        name: &str,
        state: &State,
        known: Option<&Served>,
    ) -> Result<Served, (Failure, bool)> {
        let reading =
            argument.reading(&self.settings.reading).map_err(|failure| (failure, true))?;
        self.opened.watched.extend(reading.manifest.iter().cloned());
        let is_same = |known: &&Served| {
            (&known.argument, &known.reading, &known.state) == (argument, &reading, state)
        };
        if let Some(known) = known.filter(is_same) {
            return Ok(known.clone());
        }
        let key_files = passphrases::files(&reading.key_files).into_iter().map(Watched::File);
        let key_files: Vec<_> = key_files.map(|file| (file.clone(), file.look())).collect();
        let is_locked = |locked: &&Locked| {
            (&locked.argument, &locked.reading, &locked.state, &locked.key_files)
                == (argument, &reading, state, &key_files)
        };
        let outcome = match self.before.locked.get(name).filter(is_locked) {
            Some(locked) => {
                self.now.locked.insert(name.to_owned(), locked.clone());
                Err(Failure::failed(locked.message.to_string()))
            }
            None => self.open(argument, name, state, &reading),
        };
        match outcome {
            Ok(exports) => {
                let (argument, state) = (argument.clone(), state.clone());
                Ok(Served { argument, reading, state, exports })
            }
            Err(failure) => {
                let same = known.is_none_or(|known| reading.demands_the_same(&known.reading));
                if is_wrong_passphrase(&failure) {
                    let (argument, state) = (argument.clone(), state.clone());
                    let message = failure.to_string().into();
                    let locked = Locked { argument, reading, state, key_files, message };
                    self.now.locked.insert(name.to_owned(), locked);
                }
                Err((failure, same))
            }
        }
    }

    /// Only the name of what cannot be opened.
    fn serve_broken(
        &mut self,
        name: &str,
        failure: Failure,
        argument: &ExportArgument,
        own: &ExportAccess,
        state: State,
        directory: Option<&Path>,
    ) -> Result<(), Failure> {
        let path = &argument.path;
        let is_wrong_use = matches!(&failure, Failure::Failed(error) if error.is::<ExportError>());
        let report = match directory {
            // The operator asks for something that this snapshot has not.
            None if is_wrong_use && self.is_start => return Err(failure),
            Some(_) if is_wrong_use => Report::NotAnExport(failure.to_string()),
            _ => Report::Broken(failure.to_string()),
        };
        self.report(path, name, state, report);
        self.watch_for_parent(&failure);
        self.failures.push(failure);
        if directory.is_some() && self.reserved.contains(name) {
            return Ok(());
        }
        match (self.opened.catalogue.add_broken(name), directory) {
            (Ok(()), _) => {
                self.opened.access.exports.insert(name.to_owned(), own.clone());
            }
            (Err(error), None) => return Err(error.into()),
            // Another reason not to serve it, and the first one is as good.
            (Err(_), Some(_)) => {}
        }
        Ok(())
    }

    fn open(
        &mut self,
        argument: &ExportArgument,
        name: &str,
        state: &State,
        reading: &Reading,
    ) -> Result<Vec<Arc<Export>>, Failure> {
        let Self { now, before, shared, settings, .. } = self;
        let any_permissions = settings.insecure.insecure_key_permissions;
        let (path, before) = (&argument.path, &before.files);
        let file = now.files.open(path, state, reading, shared, any_permissions, before)?;
        exports_of(&file, argument, name)
    }

    /// A parent that is not there may come, and one that is not good may be replaced or signed.
    fn watch_for_parent(&mut self, failure: &Failure) {
        let Failure::Failed(error) = failure else { return };
        let mut kind = error.downcast_ref::<Error>().map(|error| &error.kind);
        let mut places = Vec::new();
        while let Some(ErrorKind::Parent(parent)) = kind {
            places.push(PathBuf::from(&parent.file));
            places.extend(companions(Path::new(&parent.file), manifest::EXTENSION));
            kind = Some(&parent.kind);
        }
        if let Some(ErrorKind::MissingParent { parent, looked_in }) = kind {
            places.extend(looked_in.iter().map(|directory| Path::new(directory).join(parent)));
        }
        for watched in places.into_iter().map(Watched::File) {
            let state = watched.look();
            self.opened.watched.push((watched, state));
        }
    }

    fn report(&mut self, path: &Path, name: &str, state: State, report: Report) {
        self.now.reports.add(path, name, state, report);
    }

    /// Clients may keep what they have open of a file that was removed from a directory, under the
    /// rules of the directory.
    fn remember_removed(&mut self, directories: &[(&Path, ExportAccess)]) {
        for from in &self.before.from_directories {
            let own = directories.iter().find(|(directory, _)| *directory == from.directory);
            let (Some((_, own)), true) = (own, from.export.strong_count() != 0) else { continue };
            let Opened { catalogue, access, .. } = &mut self.opened;
            if !catalogue.offers(&from.name) {
                catalogue.add_removed(&from.name);
                access.exports.insert(from.name.clone(), own.clone());
            }
            let is_new = |other: &FromDirectory| !other.export.ptr_eq(&from.export);
            if self.now.from_directories.iter().all(is_new) {
                self.now.from_directories.push(from.clone());
            }
        }
    }
}

/// Of the snapshot itself: parents may be replaced without notice.
fn is_wrong_passphrase(failure: &Failure) -> bool {
    let Failure::Failed(error) = failure else { return false };
    let error = error.downcast_ref::<Error>();
    error.is_some_and(|error| matches!(error.kind, ErrorKind::WrongPassphrase { .. }))
}

/// The name of the main export of an argument that is no directory.
fn name_of(argument: &ExportArgument) -> String {
    let stem = || argument.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    argument.name.clone().unwrap_or_else(stem)
}

/// One export for each stream that is asked for.
fn exports_of(
    file: &Arc<File>,
    argument: &ExportArgument,
    name: &str,
) -> Result<Vec<Arc<Export>>, Failure> {
    let shape = argument.shape().map_err(Failure::Usage)?;
    let settings = |name: &str, description: Option<String>, stream| ExportSettings {
        name: name.to_owned(),
        description,
        stream,
        as_raw: argument.as_raw,
    };
    let export = |settings, shape| Export::shaped(Arc::clone(file), settings, shape).map(Arc::new);
    let description = argument.description.clone();
    let stream = argument.stream.unwrap_or(Stream::Main);
    let mut exports = vec![export(settings(name, description.clone(), stream), shape)?];
    if argument.stream.is_none() && file.size(Stream::Auxiliary) != 0 {
        let stream = Stream::Auxiliary;
        let description = description.map(|text| format!("{text} ({stream} stream)"));
        let shape = Shape { part: Part::Whole, ..shape };
        exports.push(export(settings(&format!("{name}/aux"), description, stream), shape)?);
    }
    Ok(exports)
}

fn snapshots_in(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |error| {
        Failure::failed(format!("{}: cannot read the directory: {error}", directory.display()))
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn rules(allow: &AllowSettings) -> Result<Rules, Failure> {
    let AllowSettings { cn, ou, dns, uri, fingerprint } = allow;
    type Parse = fn(&str) -> Result<Rule, RuleError>;
    let kinds: [(&str, &[String], Parse); 5] = [
        ("cn", cn, Rule::common_name),
        ("ou", ou, Rule::organizational_unit),
        ("dns", dns, Rule::dns),
        ("uri", uri, Rule::uri),
        ("fingerprint", fingerprint, Rule::fingerprint),
    ];
    let rules = kinds.into_iter().flat_map(|(kind, texts, parse)| {
        texts.iter().map(move |text| {
            parse(text)
                .map_err(|error| Failure::Usage(format!("rule to allow {kind} {text:?}: {error}")))
        })
    });
    rules.collect()
}

#[cfg(test)]
mod tests;
