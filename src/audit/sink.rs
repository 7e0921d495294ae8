//! Where lines go: a file that is appended to, or the journal.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fcntl_setfl};

use crate::audit::AuditError;

/// The socket of the journal: systemd's "Native Journal Protocol".
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Who may read a new file: its owner and its group.
const MODE: u32 = 0o640;

/// To open a pipe that nobody reads is an error, and not a reason to wait. To files it means nothing.
const O_NONBLOCK: i32 = OFlags::NONBLOCK.bits().cast_signed();

/// Where to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To the end of a file, which is made if it is not there.
    File(PathBuf),
    /// To the standard output of the process.
    StandardOutput,
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
                let opened = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(MODE)
                    .custom_flags(O_NONBLOCK)
                    .open(path);
                let prepared = opened.and_then(|file| {
                    let is_torn = prepare(&file, path)?;
                    Ok(Self::File { file, is_torn })
                });
                prepared.map_err(|source| AuditError::Open { path: path.clone(), source })
            }
            Target::StandardOutput => {
                let opened = std::io::stdout().as_fd().try_clone_to_owned();
                let opened =
                    opened.map(|output| Self::File { file: output.into(), is_torn: false });
                opened.map_err(|source| AuditError::Open { path: "-".into(), source })
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

/// Makes a file that was opened ready, and says whether it ends with half a line, which a full disk or a
/// crash of the host leaves behind.
fn prepare(file: &File, path: &Path) -> io::Result<bool> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        // A pipe with a reader that is slow is waited for: the thread has nothing else to do.
        fcntl_setfl(file, OFlags::APPEND)?;
        return Ok(false);
    }
    let Some(last) = metadata.len().checked_sub(1) else { return Ok(false) };
    let mut byte = [0];
    // If it cannot be read, an empty line does no harm.
    let is_whole = File::open(path).and_then(|file| file.read_exact_at(&mut byte, last));
    Ok(is_whole.is_err() || byte != *b"\n")
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

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::Read as _;

    use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

    fn line(text: &str) -> Line {
        Line { text: text.to_owned(), event: "open", connection: Some("c7".to_owned()) }
    }

    #[test]
    fn behind_half_a_line_the_next_one_stands_by_itself() {
        // As a disk that is nearly full: it takes the beginning of what is written.
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        fcntl_setpipe_size(&writer, 4096).unwrap();
        let mut sink = Sink::File { file: File::from(writer), is_torn: false };
        sink.write(&line(&"a".repeat(3000))).unwrap();
        // What does not fill whole pages goes into the rest of the first: 3001 and 1095 bytes.
        let long = "b".repeat(2 * 4096 + 1094);
        sink.write(&line(&long)).unwrap_err();
        // Nothing at all is taken, which tears nothing.
        sink.write(&line("c")).unwrap_err();
        let mut text = vec![0; 8192];
        let mut reader = File::from(reader);
        let first = reader.read(&mut text).unwrap();
        sink.write(&line("d")).unwrap();
        sink.write(&line("e")).unwrap();
        let second = reader.read(&mut text[first..]).unwrap();
        let text = String::from_utf8(text[..first + second].to_vec()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[1].len() < long.len() && lines[1].starts_with("bb"), "{lines:?}");
        assert_eq!(lines[2..], ["d", "e"]);
    }

    #[test]
    fn half_a_line_that_was_there_before_stays_by_itself() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (there, expected) in [("", "a\n"), ("x\n", "x\na\n"), ("x\nha", "x\nha\na\n")] {
            std::fs::write(file.path(), there).unwrap();
            let mut sink = Sink::open(&Target::File(file.path().to_owned())).unwrap();
            sink.write(&line("a")).unwrap();
            assert_eq!(std::fs::read_to_string(file.path()).unwrap(), expected);
        }
    }

    #[test]
    fn the_journal_is_given_the_line_and_what_to_find_it_by() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let opened = Sink::open(&Target::Journal(path.clone()));
        assert!(matches!(opened, Err(AuditError::Journal { .. })), "{opened:?}");
        let journal = UnixDatagram::bind(&path).unwrap();
        let mut sink = Sink::open(&Target::Journal(path)).unwrap();
        sink.write(&line("{\"event\":\"open\"}")).unwrap();
        let mut entry = [0; 1000];
        let length = journal.recv(&mut entry).unwrap();
        let entry = std::str::from_utf8(&entry[..length]).unwrap();
        let fields: Vec<&str> = entry.lines().collect();
        assert_eq!(
            fields,
            [
                "MESSAGE={\"event\":\"open\"}",
                "PRIORITY=6",
                "SYSLOG_IDENTIFIER=hexz-nbd-audit",
                "HEXZ_NBD_EVENT=open",
                "HEXZ_NBD_CONNECTION=c7",
            ]
        );
    }
}
