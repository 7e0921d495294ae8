//! Where lines go: a file that is appended to, or the journal.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use crate::audit::AuditError;

/// The socket of the journal: systemd's "Native Journal Protocol".
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Who may read a new file: its owner and its group.
const MODE: u32 = 0o640;

/// Where to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To the end of a file, which is made if it is not there.
    File(PathBuf),
    /// To the journal, through its socket.
    Journal(PathBuf),
}

impl Target {
    /// The journal of this host.
    #[must_use]
    pub fn journal() -> Self {
        Self::Journal(JOURNAL.into())
    }
}

/// A target that is open.
#[derive(Debug)]
pub(super) enum Sink {
    File {
        file: File,
        /// Whether the last thing in it is half a line, which a full disk leaves behind.
        is_torn: bool,
    },
    Journal(UnixDatagram),
}

/// A line, and what the journal is to find it by.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) event: &'static str,
    pub(super) connection: Option<String>,
}

impl Sink {
    pub(super) fn open(target: &Target) -> Result<Self, AuditError> {
        match target {
            Target::File(path) => {
                let opened = OpenOptions::new().append(true).create(true).mode(MODE).open(path);
                match opened {
                    Ok(file) => Ok(Self::File { file, is_torn: false }),
                    Err(source) => Err(AuditError::Open { path: path.clone(), source }),
                }
            }
            Target::Journal(path) => {
                let connected = UnixDatagram::unbound().and_then(|socket| {
                    socket.connect(path)?;
                    Ok(socket)
                });
                match connected {
                    Ok(socket) => Ok(Self::Journal(socket)),
                    Err(source) => Err(AuditError::Journal { path: path.clone(), source }),
                }
            }
        }
    }

    /// Writes a line, or as much of it as there is room for.
    pub(super) fn write(&mut self, line: &Line) -> io::Result<()> {
        match self {
            Self::File { file, is_torn } => {
                let start = if *is_torn { "\n" } else { "" };
                let bytes = format!("{start}{}\n", line.text);
                write_counted(file, bytes.as_bytes()).map_err(|(written, error)| {
                    *is_torn |= written > 0;
                    error
                })?;
                *is_torn = false;
                Ok(())
            }
            Self::Journal(socket) => {
                let Line { text, event, connection } = line;
                let mut entry = format!(
                    "MESSAGE={text}\nPRIORITY=6\nSYSLOG_IDENTIFIER=hexz-nbd-audit\n\
                     HEXZ_NBD_EVENT={event}\n"
                );
                if let Some(connection) = connection {
                    entry.push_str(&format!("HEXZ_NBD_CONNECTION={connection}\n"));
                }
                socket.send(entry.as_bytes()).map(|_| ())
            }
        }
    }
}

/// Writes all of it, or says how much was written before the error.
fn write_counted(file: &mut File, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match file.write(rest) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(more) => written = written.saturating_add(more),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}
