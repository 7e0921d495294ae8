//! Signal or changed file → exports, certificates, rules. Build first, swap second.

use std::error::Error;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::Signal;

use crate::server::policy::Policy;
use crate::server::{ServerError, Shared, check_exposure};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Replaces the policy of a running server.
#[derive(Debug)]
pub struct Reloader {
    shared: Arc<Shared>,
}

/// A policy and the files that it was made from.
#[derive(Debug)]
pub struct Built {
    /// What to serve, and to whom.
    pub policy: Policy,
    /// A change of one of these is a reason to build anew.
    pub files: Vec<PathBuf>,
}

type BuildError = Box<dyn Error + Send + Sync>;

impl Reloader {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// What is served from now on, and to whom. Sessions that it does not allow any more end; all
    /// others go on undisturbed.
    ///
    /// # Errors
    ///
    /// [`ServerError`] if it would leave unprotected what other hosts can reach. The policy before
    /// stays in force.
    pub fn replace(&self, policy: Policy) -> Result<(), ServerError> {
        check_exposure(&self.shared.exposed, &policy, self.shared.insecure)?;
        self.shared.policy.send_replace(Arc::new(policy));
        Ok(())
    }

    /// Builds anew on every signal, and when a file changes. What cannot be built is logged, and
    /// what was in force stays. Runs until the future is dropped.
    pub async fn run<B>(self, mut signal: Signal, mut files: Vec<PathBuf>, build: B)
    where
        B: Fn() -> Result<Built, BuildError> + Send + Sync + 'static,
    {
        let build = Arc::new(build);
        let mut seen = look(files.clone()).await;
        loop {
            let why = tokio::select! {
                _ = signal.recv() => "signal",
                () = tokio::time::sleep(LOOK_EVERY) => {
                    let now = look(files.clone()).await;
                    if now == seen {
                        continue;
                    }
                    "changed files"
                }
            };
            // Before the files are read: what changes meanwhile is seen next time.
            seen = look(files.clone()).await;
            let builder = Arc::clone(&build);
            let built = tokio::task::spawn_blocking(move || builder()).await;
            let replaced = match built {
                Ok(Ok(Built { policy, files: new_files })) => {
                    if new_files != files {
                        files = new_files;
                        seen = look(files.clone()).await;
                    }
                    self.replace(policy).map_err(BuildError::from)
                }
                Ok(Err(error)) => Err(error),
                Err(error) => Err(error.into()),
            };
            match replaced {
                Ok(()) => tracing::info!(why, "reloaded"),
                Err(error) => {
                    tracing::error!(why, %error, "not reloaded: what was in force stays in force");
                }
            }
        }
    }
}

/// What tells one state of a file from another. `None` if it is not there.
type Seen = Option<(u64, u64, u64, Option<SystemTime>)>;

async fn look(files: Vec<PathBuf>) -> Vec<Seen> {
    let looked = tokio::task::spawn_blocking(move || files.iter().map(|f| look_at(f)).collect());
    looked.await.unwrap_or_default()
}

/// Follows links, so that a directory of links that is swapped as a whole is seen too.
fn look_at(file: &Path) -> Seen {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.len(), metadata.modified().ok()))
}
