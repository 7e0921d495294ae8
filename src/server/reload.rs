//! Signal or changed file → exports, certificates, rules. Build first, swap second.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

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
    /// A change of one of these is, too. Each with its state before it was read, so that what
    /// changes while it is read is not missed.
    pub exports: Vec<(Watched, State)>,
}

/// Something on disk that is looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Watched {
    /// A file.
    File(PathBuf),
    /// The names in a directory that have an extension. Other files may come and go there.
    Names {
        /// The directory.
        directory: PathBuf,
        /// What comes behind the last dot.
        extension: &'static str,
    },
}

/// What tells one state from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum State {
    /// It is not there, or cannot be looked at.
    Absent,
    /// A file.
    File {
        /// The device that it is on.
        device: u64,
        /// Another one for a file that was put in its place.
        inode: u64,
        /// Its length.
        bytes: u64,
        /// When it was changed: seconds and nanoseconds.
        modified: (i64, i64),
    },
    /// Names, sorted.
    Names(Vec<OsString>),
}

impl Watched {
    /// The state that it is in. Follows links, so that a directory of links that is swapped as a
    /// whole is seen too. Reads the disk, so call it where that stalls nobody.
    #[must_use]
    pub fn look(&self) -> State {
        match self {
            Self::File(path) => {
                std::fs::metadata(path).map_or(State::Absent, |found| (&found).into())
            }
            Self::Names { directory, extension } => {
                let Ok(entries) = std::fs::read_dir(directory) else { return State::Absent };
                let mut names: Vec<OsString> = entries
                    .flatten()
                    .filter(|entry| entry.path().extension().is_some_and(|e| e == *extension))
                    .map(|entry| entry.file_name())
                    .collect();
                names.sort();
                State::Names(names)
            }
        }
    }
}

impl From<&Metadata> for State {
    fn from(metadata: &Metadata) -> Self {
        Self::File {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

type BuildError = Box<dyn Error + Send + Sync>;

/// How far a reload is, for whoever wants to be told.
#[derive(Debug)]
pub enum Progress<'a> {
    /// Everything is read anew.
    Begun,
    /// That is done, and this is in force.
    InForce(&'a Policy),
    /// That is done, and what was in force stays in force. The log says why.
    Failed,
}

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
        let catalogue = Arc::clone(&policy.catalogue);
        self.shared.policy.send_replace(Arc::new(policy));
        let open = self.shared.roster.open_exports();
        self.shared.metrics.keep_exports(|name| catalogue.offers(name) || open.contains(name));
        Ok(())
    }

    /// Builds anew on every signal, and when something changes that the policy in force was made
    /// from. What cannot be built is logged, and what was in force stays. `tell` is called when a
    /// reload begins, and when it has had its effect. Runs until the future is dropped.
    pub async fn run<B>(
        self,
        mut signal: Signal,
        mut seen: Seen,
        build: B,
        tell: impl Fn(Progress<'_>),
    ) where
        B: Fn() -> Result<Built, BuildError> + Send + Sync + 'static,
    {
        let build = Arc::new(build);
        loop {
            let why = tokio::select! {
                _ = signal.recv() => "signal",
                () = tokio::time::sleep(LOOK_EVERY) => {
                    if seen.look_again().await == seen {
                        continue;
                    }
                    "changed files"
                }
            };
            tell(Progress::Begun);
            // Before the files are read: what changes meanwhile is seen next time.
            seen = seen.look_again().await;
            let (builder, before) = (Arc::clone(&build), seen.clone());
            let built = tokio::task::spawn_blocking(move || {
                let Built { policy, files, exports } = builder()?;
                Ok::<_, BuildError>((policy, Seen::after(&before, files, exports)))
            });
            let replaced = match built.await {
                Ok(Ok((policy, now))) => {
                    seen = now;
                    self.replace(policy).map_err(BuildError::from)
                }
                Ok(Err(error)) => Err(error),
                Err(error) => Err(error.into()),
            };
            match replaced {
                Ok(()) => {
                    self.shared.metrics.reloaded(true);
                    tracing::info!(why, "reloaded");
                    let policy = Arc::clone(&self.shared.policy.borrow());
                    tell(Progress::InForce(&policy));
                }
                Err(error) => {
                    self.shared.metrics.reloaded(false);
                    tracing::error!(why, %error, "not reloaded: what was in force stays in force");
                    tell(Progress::Failed);
                }
            }
        }
    }
}

/// Everything that is looked at, in the state in which it was seen last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen(BTreeMap<Watched, State>);

impl Seen {
    /// Of files as they are now, and of exports as they were before they were read. Reads the
    /// disk, so call it where that stalls nobody.
    #[must_use]
    pub fn new(files: Vec<PathBuf>, exports: Vec<(Watched, State)>) -> Self {
        Self::after(&Self::default(), files, exports)
    }

    /// Files that were looked at before the policy was built have the state of then.
    fn after(before: &Self, files: Vec<PathBuf>, exports: Vec<(Watched, State)>) -> Self {
        let files = files.into_iter().map(Watched::File).map(|file| {
            let state = before.0.get(&file).cloned().unwrap_or_else(|| file.look());
            (file, state)
        });
        Self(files.chain(exports).collect())
    }

    async fn look_again(&self) -> Self {
        let watched: Vec<Watched> = self.0.keys().cloned().collect();
        let look = move || {
            watched
                .into_iter()
                .map(|watched| {
                    let state = watched.look();
                    (watched, state)
                })
                .collect()
        };
        Self(tokio::task::spawn_blocking(look).await.unwrap_or_default())
    }
}
