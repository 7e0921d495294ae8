//! Parents of thin snapshots: looked for by name, each opened once. Format section 12.
//!
//! The path that a snapshot records is a hint from an untrusted file. Only its last component
//! counts, and only in directories that are known: that of the child, and those that the operator
//! names. So no file decides what else is opened.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::snapshot::error::{Error, ErrorKind};
use crate::snapshot::file::File;
use crate::snapshot::manifest;
use crate::snapshot::open::{Check, OpenOptions};
use crate::snapshot::signer::Signer;
use crate::snapshot::storage::{FileBackend, Identity, StorageBackend};
use crate::snapshot::structure::Structure;

/// Most parents of one snapshot. Format section 15.
pub const PARENTS_MAX: usize = 16;

/// Most generations above a snapshot. Format section 15.
pub const DEPTH_MAX: u32 = 16;

/// Most snapshots above one, in all generations together. Format section 15.
pub const ANCESTORS_MAX: usize = 64;

/// A snapshot above another one.
#[derive(Debug, Clone)]
pub struct Ancestor {
    /// The snapshot.
    pub file: Arc<File>,
    /// Generations between the two: 1 for a parent.
    pub depth: u32,
}

/// All snapshots above one with these parents: the parents, then theirs, and so on, each once.
///
/// # Errors
///
/// [`ErrorKind::TooManyAncestors`] or [`ErrorKind::TooManyGenerations`].
pub(crate) fn ancestors(parents: &[Arc<File>]) -> Result<Vec<Ancestor>, ErrorKind> {
    let mut ancestors: Vec<Ancestor> = Vec::new();
    let of = |files: &[Arc<File>], depth| {
        files.iter().cloned().map(move |file| Ancestor { file, depth }).collect::<Vec<_>>()
    };
    let mut next = VecDeque::from(of(parents, 1));
    while let Some(ancestor) = next.pop_front() {
        if ancestors.iter().any(|known| Arc::ptr_eq(&known.file, &ancestor.file)) {
            continue;
        }
        if ancestor.depth > DEPTH_MAX {
            return Err(ErrorKind::TooManyGenerations);
        }
        next.extend(of(ancestor.file.parents(), ancestor.depth.saturating_add(1)));
        ancestors.push(ancestor);
        if ancestors.len() > ANCESTORS_MAX {
            return Err(ErrorKind::TooManyAncestors);
        }
    }
    Ok(ancestors)
}

/// Snapshots that are open, so that each is opened once whoever needs it. It does not keep them
/// open. Those that need a passphrase, for themselves or for what is above them, are not in it: who
/// has none must not get one that is unlocked.
#[derive(Debug, Default)]
pub struct Registry(Mutex<HashMap<Key, Weak<File>>>);

/// What makes two openings of a file the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    identity: Identity,
    size_from_index: bool,
    block_bytes_max: u32,
    check: Check,
    parent_directories: Vec<PathBuf>,
    signer: Signer,
    require_manifest: bool,
    /// Of its manifest, where that matters.
    manifest: Option<Identity>,
}

impl Key {
    /// `None` for a storage that cannot be recognised.
    pub(crate) fn new(
        storage: &dyn StorageBackend,
        options: &OpenOptions,
        signer: &Signer,
    ) -> Option<Self> {
        let manifest = match signer {
            Signer::Anybody => None,
            Signer::Keys(_) | Signer::Root(_) => storage.companion(manifest::EXTENSION).ok()?,
        };
        Some(Self {
            manifest: manifest.and_then(|manifest| manifest.identity()),
            identity: storage.identity()?,
            size_from_index: options.size_from_index,
            block_bytes_max: options.block_bytes_max,
            check: options.check,
            parent_directories: options.parent_directories.clone(),
            signer: signer.clone(),
            require_manifest: options.require_manifest,
        })
    }
}

impl Registry {
    pub(crate) fn find(&self, key: &Key) -> Option<Arc<File>> {
        self.lock().get(key)?.upgrade()
    }

    pub(crate) fn insert(&self, key: Key, file: &Arc<File>) {
        let mut open = self.lock();
        open.retain(|_, file| file.strong_count() != 0);
        open.insert(key, Arc::downgrade(file));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Weak<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The snapshots that are being opened, each a child of the next to be opened.
#[derive(Debug, Default)]
pub(crate) struct Descent {
    path: Vec<Option<Identity>>,
    /// How many were opened, so that no file makes this take for ever.
    opened: usize,
}

impl Descent {
    /// One more snapshot is opened.
    pub(crate) fn count(&mut self) -> Result<(), ErrorKind> {
        self.opened = self.opened.saturating_add(1);
        // The one at the bottom is no ancestor.
        if self.opened > ANCESTORS_MAX.saturating_add(1) {
            return Err(ErrorKind::TooManyAncestors);
        }
        Ok(())
    }
}

/// Opens the parents of a snapshot, and theirs.
pub(crate) fn open_parents(
    structure: &Structure,
    options: &OpenOptions,
    signer: &Signer,
    descent: &mut Descent,
) -> Result<Vec<Arc<File>>, Error> {
    let recorded = &structure.header().parents;
    if recorded.len() > PARENTS_MAX {
        return Err(structure.error(ErrorKind::TooManyParents { parents: recorded.len() }));
    }
    if !recorded.is_empty() && descent.path.len() >= DEPTH_MAX as usize {
        return Err(structure.error(ErrorKind::TooManyGenerations));
    }
    descent.path.push(structure.storage().identity());
    let parents = recorded.iter().enumerate().map(|(number, recorded)| {
        let storage = find(structure, recorded, &options.parent_directories, descent)?;
        let signer = signer.of_parent(structure, number)?;
        File::open_in(Arc::new(storage), options, signer, descent)
            .map_err(|error| structure.error(ErrorKind::Parent(Box::new(error))))
    });
    let parents = parents.collect();
    descent.path.pop();
    parents
}

/// The file that is meant by a recorded path of a parent, if only its name counts.
///
/// # Errors
///
/// [`Error`] that names the snapshot and the parent, if there is none.
pub fn locate(
    child: &Structure,
    recorded: &str,
    parent_directories: &[PathBuf],
) -> Result<FileBackend, Error> {
    let descent = Descent { path: vec![child.storage().identity()], opened: 0 };
    find(child, recorded, parent_directories, &descent)
}

fn find(
    child: &Structure,
    recorded: &str,
    parent_directories: &[PathBuf],
    descent: &Descent,
) -> Result<FileBackend, Error> {
    let Some(name) = Path::new(recorded).file_name() else {
        return Err(child.error(ErrorKind::UnnamedParent { recorded: recorded.to_owned() }));
    };
    let mut search = Search { name, cycle: false, refused: None };
    let beside = child.storage().directory().into_iter();
    let named = parent_directories.iter().map(PathBuf::as_path);
    let mut looked_in = Vec::new();
    for directory in beside.chain(named) {
        if let Some(found) = search.look(directory, descent) {
            return Ok(found);
        }
        let here = directory.as_os_str().is_empty();
        looked_in.push(if here { ".".to_owned() } else { directory.display().to_string() });
    }
    let parent = name.to_string_lossy().into_owned();
    Err(match search {
        Search { refused: Some(error), .. } => child.error(ErrorKind::Parent(Box::new(error))),
        Search { cycle: true, .. } => child.error(ErrorKind::ParentCycle { parent }),
        _ => child.error(ErrorKind::MissingParent { parent, looked_in }),
    })
}

/// Looking for a file in one directory after another.
struct Search<'a> {
    name: &'a OsStr,
    /// A snapshot was found that is being opened already.
    cycle: bool,
    /// Why something of that name was not taken.
    refused: Option<Error>,
}

impl Search<'_> {
    fn look(&mut self, directory: &Path, descent: &Descent) -> Option<FileBackend> {
        match FileBackend::regular(&directory.join(self.name)) {
            Ok(found) => {
                let identity = found.identity();
                // A child may have the name of its parent in another directory.
                self.cycle |= descent.path.contains(&identity);
                (!descent.path.contains(&identity)).then_some(found)
            }
            Err(Error { kind: ErrorKind::Open(error), .. })
                if error.kind() == io::ErrorKind::NotFound =>
            {
                None
            }
            Err(error) => {
                self.refused.get_or_insert(error);
                None
            }
        }
    }
}
