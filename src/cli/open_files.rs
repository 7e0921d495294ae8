//! Snapshots that are open, each once, whoever exports what of it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::server::reload::State;
use crate::snapshot::{Cache, Error, File, FileBackend, OpenOptions};

/// Open files, by what they were opened from and how. Whoever has the same file shares its blocks
/// in the cache.
#[derive(Debug, Default)]
pub(crate) struct OpenFiles(HashMap<Key, Arc<File>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    path: PathBuf,
    /// Of the file when it was opened.
    state: State,
    size_from_index: bool,
}

impl Key {
    fn new(path: &Path, state: &State, size_from_index: bool) -> Self {
        Self { path: path.to_owned(), state: state.clone(), size_from_index }
    }
}

impl OpenFiles {
    /// The file, if it is open here or in `before`; else it is opened.
    pub(crate) fn open(
        &mut self,
        path: &Path,
        state: &State,
        size_from_index: bool,
        cache: &Arc<Cache>,
        before: &Self,
    ) -> Result<Arc<File>, Error> {
        if let Some(file) = self.keep(path, state, size_from_index, before) {
            return Ok(file);
        }
        let cache = Arc::clone(cache);
        let options = OpenOptions { cache, size_from_index, ..OpenOptions::default() };
        let file = File::open_with(Arc::new(FileBackend::new(path)?), options)?;
        self.0.insert(Key::new(path, state, size_from_index), Arc::clone(&file));
        Ok(file)
    }

    /// The file, if it is open here or in `before`. From then on it is here.
    pub(crate) fn keep(
        &mut self,
        path: &Path,
        state: &State,
        size_from_index: bool,
        before: &Self,
    ) -> Option<Arc<File>> {
        let key = Key::new(path, state, size_from_index);
        let file = Arc::clone(self.0.get(&key).or_else(|| before.0.get(&key))?);
        self.0.insert(key, Arc::clone(&file));
        Some(file)
    }
}
