//! Every stored byte of a snapshot against everything that is known of it, on many threads.

use std::collections::HashSet;
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::snapshot::error::{Error, ErrorKind};
use crate::snapshot::file::File;
use crate::snapshot::format::index::Entry;
use crate::snapshot::format::{PageRecord, Stream};
use crate::snapshot::page::Page;

/// Plain bytes that a worker takes at a time: long enough that workers seldom meet, short enough
/// that all of them have something to do until the end.
const RUN_BYTES: u64 = 4 << 20;

/// Stored blocks remembered as whole, so that what is deduplicated is decoded once. Past this
/// many everything is forgotten: some blocks are then decoded again, and memory stays bounded.
const WHOLE_BLOCKS_MAX: usize = 1 << 18;

/// A range of a stream that cannot be read, or whose stored bytes are not what was packed.
#[derive(Debug)]
pub struct DamagedRange {
    /// The stream.
    pub stream: Stream,
    /// Bytes of the stream. Empty for a damaged block of no bytes, as chunkers leave at the end.
    pub range: Range<u64>,
    /// What is wrong with its first block.
    pub error: ErrorKind,
    /// How many blocks it spans.
    pub blocks: u64,
}

impl DamagedRange {
    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }
}

impl fmt::Display for DamagedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}+{}: ", self.stream, self.range.start, self.bytes())?;
        if let ErrorKind::Block { damage, .. } = &self.error {
            write!(f, "{damage}")?;
        } else {
            write!(f, "{}", self.error)?;
        }
        match self.blocks {
            ..=1 => Ok(()),
            blocks => write!(f, " ({blocks} blocks, the first is described)"),
        }
    }
}

/// Decodes every block of both streams and compares it with its CRC-32 and, where there is one,
/// its BLAKE3. Goes on after damage; what it found is in the order of the streams, neighbours
/// merged. Whether the size of a stream is recorded does not matter: the index says what is there.
///
/// Reads past the cache of the file and reports to `progress`, from any thread, how many bytes of
/// a stream were looked at. Memory is bounded, whatever the size of the snapshot, but for the
/// list of what is damaged.
pub fn verify(
    file: &File,
    threads: NonZeroUsize,
    progress: &(dyn Fn(u64) + Sync),
) -> Vec<DamagedRange> {
    let verification = Verification {
        file,
        plan: Mutex::new(Plan::new(file)),
        whole: Mutex::new(HashSet::new()),
        progress,
    };
    let damaged = thread::scope(|scope| {
        // Fewer threads than asked for are slower and not wrong, so a refusal is no failure.
        let helpers: Vec<_> = (1..threads.get())
            .map_while(|_| thread::Builder::new().spawn_scoped(scope, || verification.work()).ok())
            .collect();
        let mut damaged = verification.work();
        for helper in helpers {
            match helper.join() {
                Ok(more) => damaged.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        damaged
    });
    merge(damaged)
}

/// Bytes that [`verify`] looks at: all that the blocks of both streams hold.
#[must_use]
pub fn verified_bytes(file: &File) -> u64 {
    let ends = Stream::ALL.map(|stream| {
        let pages = file.structure().index().pages(stream).len();
        pages.checked_sub(1).map_or(0, |last| file.page_end(stream, last))
    });
    ends.into_iter().fold(0, u64::saturating_add)
}

/// What the workers share.
struct Verification<'a> {
    file: &'a File,
    plan: Mutex<Plan<'a>>,
    /// Entries whose stored bytes were found whole. Deduplicated blocks have equal entries.
    whole: Mutex<HashSet<Entry>>,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl Verification<'_> {
    fn work(&self) -> Vec<DamagedRange> {
        let mut damaged = Vec::new();
        loop {
            // Bound to a name first, so that the lock is not held while the work is done.
            let step = lock(&self.plan).next();
            match step {
                None => return damaged,
                Some(Ok(run)) => self.check(&run, &mut damaged),
                Some(Err(page)) => {
                    (self.progress)(page.bytes());
                    damaged.push(page);
                }
            }
        }
    }

    fn check(&self, run: &Run, damaged: &mut Vec<DamagedRange>) {
        let LoadedPage { stream, entries, page } = &*run.page;
        for at in run.blocks.clone() {
            let (Some(entry), Some(block)) = (entries.get(at), page.block(at)) else {
                return;
            };
            if let Err(error) = self.check_once(entry, || {
                self.file.check_entry(*stream, &block, entry, page.expected(at))
            }) {
                let (stream, range) = (*stream, block.range.clone());
                damaged.push(DamagedRange { stream, range, error: error.kind, blocks: 1 });
            }
            (self.progress)(u64::from(block.logical_length()));
        }
    }

    /// Encrypted blocks are never equal, and remembering them would only take memory.
    fn check_once(
        &self,
        entry: &Entry,
        check: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let is_shareable = entry.length != 0 && self.file.structure().header().encryption.is_none();
        if is_shareable && lock(&self.whole).contains(entry) {
            return Ok(());
        }
        check()?;
        if is_shareable {
            let mut whole = lock(&self.whole);
            if whole.len() >= WHOLE_BLOCKS_MAX {
                whole.clear();
            }
            whole.insert(*entry);
        }
        Ok(())
    }
}

/// Blocks of a page, to be checked by one worker.
struct Run {
    page: Arc<LoadedPage>,
    blocks: Range<usize>,
}

/// A page with its hashes, which [`Page`] does not keep.
struct LoadedPage {
    stream: Stream,
    entries: Vec<Entry>,
    page: Page,
}

/// Gives out runs of blocks. Holds one page at a time, and each worker holds at most one more.
struct Plan<'a> {
    file: &'a File,
    pages: Box<dyn Iterator<Item = (Stream, usize, PageRecord)> + Send + 'a>,
    current: Option<Run>,
}

impl<'a> Plan<'a> {
    fn new(file: &'a File) -> Self {
        let index = file.structure().index();
        let pages = Stream::ALL.into_iter().flat_map(move |stream| {
            let pages = index.pages(stream).iter().enumerate();
            pages.map(move |(page, record)| (stream, page, *record))
        });
        Self { file, pages: Box::new(pages), current: None }
    }

    fn load(&self, stream: Stream, page: usize, record: PageRecord) -> Result<LoadedPage, Error> {
        let structure = self.file.structure();
        let entries = structure.page_entries(stream, page)?;
        let end = self.file.page_end(stream, page);
        let page = structure.pack(&entries, record, Some(end))?;
        Ok(LoadedPage { stream, entries: entries.entries, page })
    }
}

impl Iterator for Plan<'_> {
    type Item = Result<Run, DamagedRange>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = match self.current.take() {
            Some(rest) => rest,
            None => {
                let (stream, page, record) = self.pages.next()?;
                match self.load(stream, page, record) {
                    Ok(loaded) => Run { blocks: 0..loaded.entries.len(), page: Arc::new(loaded) },
                    Err(error) => {
                        let family = self.file.structure().family();
                        return Some(Err(DamagedRange {
                            stream,
                            range: record.start_logical..self.file.page_end(stream, page),
                            error: error.kind,
                            blocks: record.entries(family),
                        }));
                    }
                }
            }
        };
        let mut run_bytes = 0_u64;
        let taken = rest.page.entries.iter().skip(rest.blocks.start).take_while(|entry| {
            let is_room = run_bytes < RUN_BYTES;
            run_bytes = run_bytes.saturating_add(u64::from(entry.logical_length));
            is_room
        });
        let end = rest.blocks.start.saturating_add(taken.count()).min(rest.blocks.end);
        if end < rest.blocks.end {
            self.current = Some(Run { page: Arc::clone(&rest.page), blocks: end..rest.blocks.end });
        }
        Some(Ok(Run { page: rest.page, blocks: rest.blocks.start..end }))
    }
}

fn merge(mut damaged: Vec<DamagedRange>) -> Vec<DamagedRange> {
    damaged.sort_by_key(|damaged| (damaged.stream, damaged.range.start, damaged.range.end));
    damaged.dedup_by(|next, before| {
        let is_neighbour = (before.stream, before.range.end) == (next.stream, next.range.start);
        if is_neighbour {
            before.range.end = next.range.end;
            before.blocks = before.blocks.saturating_add(next.blocks);
        }
        is_neighbour
    });
    damaged
}

/// What a panicking worker left is not used: the panic goes on in [`verify`].
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::error::Damage;

    fn damaged(stream: Stream, range: Range<u64>) -> DamagedRange {
        let error = ErrorKind::Block {
            damage: Damage::Checksum { expected: 0x1234, found: 0xabcd },
            stream,
            position: range.start,
            stored_at: 4096,
        };
        DamagedRange { stream, range, error, blocks: 1 }
    }

    #[test]
    fn neighbours_are_one_range_and_streams_are_never_mixed() {
        let merged = merge(vec![
            damaged(Stream::Auxiliary, 30..40),
            damaged(Stream::Main, 20..30),
            damaged(Stream::Main, 0..10),
            damaged(Stream::Main, 50..60),
            damaged(Stream::Main, 10..20),
            damaged(Stream::Main, 60..60),
        ]);
        let ranges: Vec<_> = merged.iter().map(|d| (d.stream, d.range.clone(), d.blocks)).collect();
        assert_eq!(
            ranges,
            [(Stream::Main, 0..30, 3), (Stream::Main, 50..60, 2), (Stream::Auxiliary, 30..40, 1)]
        );
    }

    #[test]
    fn a_range_says_where_it_is_and_what_is_wrong_with_it() {
        let mut range = damaged(Stream::Main, 1_048_576..1_114_112);
        assert_eq!(
            range.to_string(),
            "main 1048576+65536: checksum is 0000abcd instead of 00001234"
        );
        range.blocks = 3;
        assert!(range.to_string().ends_with(" (3 blocks, the first is described)"), "{range}");
    }
}
