//! What the log says of exports that are not as they should be: once, and again when it changes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::server::reload::State;

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// The snapshot cannot be opened.
    Broken(String),
    /// The file of a directory makes no export.
    NotAnExport(String),
    /// What was open before is served in place of what cannot be opened.
    Kept(String),
    /// There is nothing in a directory.
    EmptyDirectory,
}

/// What is wrong with files, each in the state that it is in.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    reports: HashMap<Key, (State, Report)>,
    /// In the order in which they came.
    order: Vec<Key>,
}

/// A file, and the export that should be made of it.
type Key = (PathBuf, String);

impl Reports {
    /// `state` is that of the file. An export without a name is a directory.
    pub(crate) fn add(&mut self, path: &Path, name: &str, state: State, report: Report) {
        let key = (path.to_owned(), name.to_owned());
        self.order.push(key.clone());
        self.reports.insert(key, (state, report));
    }

    /// Logs what was not so before.
    pub(crate) fn log_new(&self, before: &Self) {
        for key in &self.order {
            let (Some((state, report)), (path, export)) = (self.reports.get(key), key) else {
                continue;
            };
            if before.reports.get(key).is_some_and(|known| (&known.0, &known.1) == (state, report))
            {
                continue;
            }
            let (file, export) = (path.display(), Some(export.as_str()).filter(|e| !e.is_empty()));
            match report {
                Report::Broken(error) => {
                    tracing::error!(%file, export, error, "not exported");
                }
                Report::NotAnExport(error) => {
                    tracing::warn!(%file, export, error, "not exported");
                }
                Report::Kept(error) => {
                    tracing::error!(%file, export, error, "cannot be opened anew: what was open stays");
                }
                Report::EmptyDirectory => {
                    tracing::warn!(%file, "no .hxz file in this directory yet: those that come are exported");
                }
            }
        }
    }
}
