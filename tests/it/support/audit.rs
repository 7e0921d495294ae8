//! An audit log, and what stands in it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

/// How long to wait for lines that are due.
const PATIENCE: Duration = Duration::from_secs(30);

/// The file of an audit log.
#[derive(Debug)]
pub(crate) struct AuditFile {
    pub(crate) path: PathBuf,
    _directory: TempDir,
}

impl AuditFile {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { path: directory.path().join("audit.json"), _directory: directory }
    }

    /// What makes a server write to it.
    pub(crate) fn argument(&self) -> [String; 2] {
        ["--audit-log".to_owned(), self.path.display().to_string()]
    }

    /// What it holds.
    pub(crate) fn lines(&self) -> Vec<Value> {
        lines_of(&self.path)
    }

    /// Waits until there are so many lines of that kind.
    pub(crate) fn wait_until(&self, wanted: impl Fn(&Value) -> bool, times: usize) {
        let end = Instant::now() + PATIENCE;
        while self.lines().iter().filter(|line| wanted(line)).count() < times {
            assert!(Instant::now() < end, "{:#?}", self.lines());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Every line is a JSON object, but for one that is being written.
pub(crate) fn lines_of(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
