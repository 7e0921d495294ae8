//! Arguments and entries of a configuration file → opened exports, and who may read them.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::Failure;
use crate::cli::export_argument::ExportArgument;
use crate::cli::settings::AllowSettings;
use crate::export::{Catalogue, Export, ExportSettings};
use crate::server::{Access, ExportAccess};
use crate::snapshot::{Cache, File, FileBackend, OpenOptions};
use crate::tls::{Rule, RuleError, Rules};

/// Opens exports, and knows those that are open: what has not changed is not opened again.
#[derive(Debug)]
pub(crate) struct Exports {
    cache: Arc<Cache>,
    open: HashMap<ExportArgument, Open>,
}

/// An export that is open, and the state of its file when it was opened.
#[derive(Debug, Clone)]
struct Open {
    export: Arc<Export>,
    state: Option<FileState>,
}

/// What is served, and who may read what.
pub(crate) type Opened = (Catalogue, Access);

/// What tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl From<&Metadata> for FileState {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Exports {
    pub(crate) fn new(cache: Arc<Cache>) -> Self {
        Self { cache, open: HashMap::new() }
    }

    /// Opens everything that is asked for. Exports that were open before and are not asked for
    /// any more are forgotten, if all goes well.
    pub(crate) fn open_all(
        &mut self,
        arguments: &[ExportArgument],
        allow: &AllowSettings,
    ) -> Result<Opened, Failure> {
        let mut catalogue = Catalogue::default();
        let mut access = Access { rules: rules(allow)?, ..Access::default() };
        let mut open = HashMap::new();
        for argument in arguments {
            let own =
                ExportAccess { rules: rules(&argument.allow)?, plaintext: argument.plaintext };
            if !argument.path.is_dir() {
                let opened = self.open(argument)?;
                catalogue.add(Arc::clone(&opened.export))?;
                access.exports.insert(opened.export.info().name.clone(), own);
                open.insert(argument.clone(), opened);
                continue;
            }
            let before = open.len();
            for one in in_directory(argument)? {
                let added = self.open(&one).and_then(|opened| {
                    catalogue.add(Arc::clone(&opened.export))?;
                    Ok(opened)
                });
                match added {
                    Ok(opened) => {
                        access.exports.insert(opened.export.info().name.clone(), own.clone());
                        open.insert(one, opened);
                    }
                    // What cannot be exported does not keep the rest from being served.
                    Err(error) => {
                        tracing::warn!(file = %one.path.display(), %error, "not exported")
                    }
                }
            }
            if open.len() == before {
                let directory = argument.path.display();
                return Err(Failure::failed(format!(
                    "{directory}: none of the .hxz files in this directory can be exported"
                )));
            }
        }
        self.open = open;
        Ok((catalogue, access))
    }

    /// What is open already, as long as its file is the same.
    fn open(&self, argument: &ExportArgument) -> Result<Open, Failure> {
        let state = std::fs::metadata(&argument.path).ok().map(|found| FileState::from(&found));
        if let Some(known) = self.open.get(argument)
            && known.state == state
        {
            return Ok(known.clone());
        }
        let options = OpenOptions {
            cache: Arc::clone(&self.cache),
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
        let export = Arc::new(Export::new(file, settings)?);
        Ok(Open { export, state })
    }
}

/// A directory stands for the snapshots in it.
fn in_directory(argument: &ExportArgument) -> Result<Vec<ExportArgument>, Failure> {
    let directory = argument.path.display();
    if argument.name.is_some() || argument.description.is_some() {
        return Err(Failure::Usage(format!(
            "{directory} is a directory: its exports are named after its files, so it takes neither \
             a name nor a description"
        )));
    }
    let paths = snapshots_in(&argument.path)?;
    if paths.is_empty() {
        let message = format!("{directory}: there is no .hxz file in this directory");
        return Err(Failure::failed(message));
    }
    Ok(paths.into_iter().map(|path| ExportArgument { path, ..argument.clone() }).collect())
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
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
    }

    /// Opens all files of a directory. The exports, in the order of their names.
    fn open(exports: &mut Exports, directory: &Path) -> Vec<Arc<Export>> {
        let arguments = [ExportArgument::of_path(directory)];
        let (catalogue, _) = exports.open_all(&arguments, &AllowSettings::default()).unwrap();
        catalogue.iter().cloned().collect()
    }

    #[test]
    fn what_has_not_changed_stays_open_and_what_has_is_opened_anew() {
        let directory = tempfile::tempdir().unwrap();
        let put = |from: &str, name: &str| {
            std::fs::copy(fixture(from), directory.path().join("new")).unwrap();
            std::fs::rename(directory.path().join("new"), directory.path().join(name)).unwrap();
        };
        put("v082-onebyte.hxz", "a.hxz");
        put("v082-onebyte.hxz", "b.hxz");
        let mut exports = Exports::new(Arc::new(Cache::new(1 << 20)));
        let first = open(&mut exports, directory.path());
        put("v082-zstd.hxz", "b.hxz");
        put("v082-onebyte.hxz", "c.hxz");
        let second = open(&mut exports, directory.path());
        assert!(Arc::ptr_eq(&first[0], &second[0]));
        assert!(!Arc::ptr_eq(&first[1], &second[1]));
        assert_eq!((second[1].info().size_bytes, second.len()), (2_098_688, 3));
    }

    /// Whoever builds the next policy after one that failed starts from what is in force.
    #[test]
    fn what_is_open_is_kept_when_something_else_cannot_be_opened() {
        let mut exports = Exports::new(Arc::new(Cache::new(1 << 20)));
        let good = ExportArgument::of_path(fixture("v082-onebyte.hxz"));
        let missing = ExportArgument::of_path(fixture("missing.hxz"));
        let none = AllowSettings::default();
        let only = |exports: &mut Exports| {
            let (catalogue, _) = exports.open_all(std::slice::from_ref(&good), &none).unwrap();
            Arc::clone(catalogue.iter().next().unwrap())
        };
        let first = only(&mut exports);
        exports.open_all(&[good.clone(), missing], &none).unwrap_err();
        assert!(Arc::ptr_eq(&first, &only(&mut exports)));
    }
}
