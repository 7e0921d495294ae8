//! Snapshots that are open, each once, whoever exports what of it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::Failure;
use crate::cli::reading::Reading;
use crate::server::reload::State;
use crate::snapshot::{Cache, File, FileBackend};

/// Open files, by what they were opened from and how. Whoever has the same file shares its blocks
/// in the cache.
#[derive(Debug, Default)]
pub(crate) struct OpenFiles(HashMap<Key, Arc<File>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    path: PathBuf,
    /// Of the file when it was opened.
    state: State,
    reading: Reading,
}

impl Key {
    fn new(path: &Path, state: &State, reading: &Reading) -> Self {
        Self { path: path.to_owned(), state: state.clone(), reading: reading.clone() }
    }
}

impl OpenFiles {
    /// The file, if it is open here or in `before`; else it is opened.
    pub(crate) fn open(
        &mut self,
        path: &Path,
        state: &State,
        reading: &Reading,
        cache: &Arc<Cache>,
        any_permissions: bool,
        before: &Self,
    ) -> Result<Arc<File>, Failure> {
        if let Some(file) = self.keep(path, state, reading, before) {
            return Ok(file);
        }
        let options = reading.options(cache, any_permissions)?;
        let file = File::open_with(Arc::new(FileBackend::new(path)?), options)?;
        self.0.insert(Key::new(path, state, reading), Arc::clone(&file));
        Ok(file)
    }

    /// The file, if it is open here or in `before`. From then on it is here.
    pub(crate) fn keep(
        &mut self,
        path: &Path,
        state: &State,
        reading: &Reading,
        before: &Self,
    ) -> Option<Arc<File>> {
        let key = Key::new(path, state, reading);
        let file = Arc::clone(self.0.get(&key).or_else(|| before.0.get(&key))?);
        self.0.insert(key, Arc::clone(&file));
        Some(file)
    }
}
