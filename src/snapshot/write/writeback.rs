//! Sends what is written to the disk while the rest is compressed, so that the sync before the file gets
//! its name finds little to do: packing then takes as long as the slower of both, and not as both.

use std::fs::File;
use std::io;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;

use crate::snapshot::write::error::ErrorKind;

/// Written bytes after which the disk is to begin. A sync costs a few milliseconds whatever it finds.
const STEP_BYTES: u64 = 32 << 20;

/// Tells how far a file is written.
pub(super) struct Writeback {
    wanted: SyncSender<()>,
    unsynced_bytes: u64,
}

impl Writeback {
    /// Says that so many more bytes were written. Never waits.
    ///
    /// # Errors
    ///
    /// If the disk could not take what came before. [`while_writing`] knows why.
    pub(super) fn wrote(&mut self, bytes: usize) -> Result<(), ErrorKind> {
        self.unsynced_bytes = self.unsynced_bytes.saturating_add(bytes as u64);
        if self.unsynced_bytes < STEP_BYTES {
            return Ok(());
        }
        match self.wanted.try_send(()) {
            Ok(()) => self.unsynced_bytes = 0,
            // The disk is not done with what it has.
            Err(TrySendError::Full(())) => {}
            Err(TrySendError::Disconnected(())) => {
                return Err(ErrorKind::Sync(io::ErrorKind::BrokenPipe.into()));
            }
        }
        Ok(())
    }
}

/// Runs `write`, which has to drop what it is given when it has written everything.
///
/// # Errors
///
/// That of the disk, which is told once and would not come again at a later sync; else that of `write`.
pub(super) fn while_writing<T, E>(
    file: &File,
    error: impl Fn(ErrorKind) -> E,
    write: impl FnOnce(Writeback) -> Result<T, E>,
) -> Result<T, E> {
    // One that is worked on, and one that says that there is more.
    let (wanted, steps) = sync_channel(1);
    thread::scope(|scope| {
        let syncing = thread::Builder::new()
            .name("writeback".into())
            .spawn_scoped(scope, move || steps.iter().try_for_each(|()| file.sync_data()))
            .map_err(|cause| error(ErrorKind::Thread(cause)))?;
        let written = write(Writeback { wanted, unsynced_bytes: 0 });
        match syncing.join() {
            Ok(Ok(())) => written,
            Ok(Err(source)) => Err(error(ErrorKind::Sync(source))),
            Err(_) => Err(error(ErrorKind::Sync(io::Error::other("the thread panicked")))),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const CHUNK: usize = 8 << 20;

    #[test]
    fn what_is_written_meanwhile_is_what_was_meant_and_errors_of_the_writer_come_through() {
        let mut file = tempfile::tempfile().unwrap();
        let handle = file.try_clone().unwrap();
        let mut write = |writeback: &mut Writeback| {
            (0..10).try_for_each(|number| {
                file.write_all(&vec![number; CHUNK]).unwrap();
                writeback.wrote(CHUNK)
            })
        };
        while_writing(&handle, |kind| kind, |mut writeback| write(&mut writeback)).unwrap();
        assert_eq!(handle.metadata().unwrap().len(), 10 * CHUNK as u64);
        let failed: Result<(), _> =
            while_writing(&handle, |kind| kind.to_string(), |_| Err("mine".to_owned()));
        assert_eq!(failed.unwrap_err(), "mine");
    }

    #[test]
    fn an_error_of_the_disk_ends_the_writing_and_is_the_one_that_is_told() {
        // A pipe cannot be synced.
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let pipe = File::from(writer);
        let outcome: Result<(), _> = while_writing(
            &pipe,
            |kind| kind,
            |mut writeback| loop {
                writeback.wrote(CHUNK)?;
                thread::yield_now();
            },
        );
        drop(reader);
        let Err(ErrorKind::Sync(source)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(source.kind(), io::ErrorKind::InvalidInput);
    }
}
