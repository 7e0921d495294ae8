//! A snapshot under a name: what clients see of it, and what its errors mean to them.

pub mod catalogue;
pub(crate) mod extents;
pub mod partition;
pub mod window;

pub use self::catalogue::{Catalogue, CatalogueError, View};
pub use self::partition::PartitionError;
pub use self::window::{RoundUp, Window, WindowError};

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::export::extents::CONTEXT_NAMES;
use crate::export::partition::Partition;
use crate::nbd::outbox::COPIED_BYTES_MAX;
use crate::nbd::wire::Errno;
use crate::nbd::{ExportInfo, Failure, Loaded, NegotiatedExport, Piece, ReadFailure};
use crate::snapshot::part::COPIED_LATER_BYTES_MAX;
use crate::snapshot::{
    Content, Effort, Error, ErrorKind, File, Interrupted, Pattern, Reader, Sink, Slice, Stream,
};

/// How a snapshot is exported.
#[derive(Debug, Clone)]
pub struct ExportSettings {
    /// The name that clients ask for.
    pub name: String,
    /// A line for people. Facts about the snapshot if there is none.
    pub description: Option<String>,
    /// Which stream of the snapshot.
    pub stream: Stream,
    /// Export the bytes even if they are not a disk image.
    pub as_raw: bool,
}

/// Which bytes of a stream are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Shape {
    /// What of the stream.
    pub part: Part,
    /// Pad the export with zeros to a multiple of this.
    pub round_up: Option<RoundUp>,
}

/// A part of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Part {
    /// All of it.
    #[default]
    Whole,
    /// Bytes from an offset on.
    Window {
        /// Where it begins, in bytes.
        offset: u64,
        /// How long it is. To the end of the stream if it is not said.
        bytes: Option<u64>,
    },
    /// A partition of a disk, as Linux counts them.
    Partition(u32),
}

/// Why a snapshot is not exported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// A directory, a tar archive or a model: its bytes are no block device.
    #[error(
        "{file}: not a disk image but an {content}, which holds no file system that a client \
         could mount; export its bytes all the same with `as-raw`"
    )]
    NotAnImage {
        /// The file.
        file: String,
        /// What it holds.
        content: Content,
    },
    /// Packed from a block device or a pipe by a tool that recorded the size 0.
    #[error(
        "{file}: the recorded size is 0, as for a snapshot that was packed from a block device; \
         take the size from the index with `size=index`"
    )]
    WithoutSize {
        /// The file.
        file: String,
    },
    /// The snapshot does not have this stream.
    #[error("{file}: the snapshot has no {stream} stream")]
    NoStream {
        /// The file.
        file: String,
        /// The stream.
        stream: Stream,
    },
    /// A window that does not lie in the stream.
    #[error("{file}: {error}")]
    Window {
        /// The file.
        file: String,
        /// What is wrong.
        error: WindowError,
    },
    /// There is no such partition.
    #[error("{file}: {error}")]
    Partition {
        /// The file.
        file: String,
        /// What is wrong.
        error: PartitionError,
    },
}

/// One stream of an open snapshot, under a name.
#[derive(Debug)]
pub struct Export {
    info: ExportInfo,
    file: Arc<File>,
    stream: Stream,
    window: Window,
}

impl Export {
    /// Exports a stream of a snapshot, if it is one that makes sense as a block device.
    ///
    /// # Errors
    ///
    /// [`ExportError`], which names the override where there is one.
    pub fn new(file: Arc<File>, settings: ExportSettings) -> Result<Self, ExportError> {
        Self::shaped(file, settings, Shape::default())
    }

    /// As [`Export::new`], of a part of the stream, or padded. Reads the table of a partition, so
    /// call it where that stalls nobody.
    ///
    /// # Errors
    ///
    /// [`ExportError`], also if the stream has no such part.
    pub fn shaped(
        file: Arc<File>,
        settings: ExportSettings,
        shape: Shape,
    ) -> Result<Self, ExportError> {
        let name = || file.structure().name().to_owned();
        if settings.stream == Stream::Auxiliary && file.size(Stream::Auxiliary) == 0 {
            return Err(ExportError::NoStream { file: name(), stream: settings.stream });
        }
        match file.content() {
            Content::Image => {}
            Content::ImageWithoutSize if settings.stream == Stream::Auxiliary => {}
            Content::ImageWithoutSize if file.size(Stream::Main) != 0 => {}
            Content::ImageWithoutSize => return Err(ExportError::WithoutSize { file: name() }),
            content @ (Content::Directory | Content::Tar | Content::Safetensors) => {
                if !settings.as_raw {
                    return Err(ExportError::NotAnImage { file: name(), content });
                }
            }
        }
        let (window, part) = shape.of(&file, settings.stream)?;
        Ok(Self::showing(file, settings, window, part.as_deref()))
    }

    /// Exports all of a stream whatever it holds.
    #[must_use]
    pub fn unchecked(file: Arc<File>, settings: ExportSettings) -> Self {
        let window = Window::whole(file.size(settings.stream));
        Self::showing(file, settings, window, None)
    }

    fn showing(
        file: Arc<File>,
        settings: ExportSettings,
        window: Window,
        part: Option<&str>,
    ) -> Self {
        let ExportSettings { name, description, stream, as_raw: _ } = settings;
        let header = file.structure().header();
        let all = CONTEXT_NAMES.as_slice();
        let contexts =
            if file.can_tell_shared() { all } else { all.split_last().map_or(all, |(_, all)| all) };
        let info = ExportInfo {
            name,
            description: description.unwrap_or_else(|| describe(&file, stream, &window, part)),
            size_bytes: window.size_bytes(),
            preferred_block_bytes: header.block_bytes,
            contexts,
        };
        Self { info, file, stream, window }
    }

    /// Which bytes of the stream the export shows.
    #[must_use]
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Name, description, size.
    #[must_use]
    pub fn info(&self) -> &ExportInfo {
        &self.info
    }

    /// The bytes of a read that was checked against [`ExportInfo::size_bytes`], if all of them are
    /// in the cache. Never waits.
    #[must_use]
    pub fn read_cached(&self, offset: u64, length: u32) -> Option<Vec<Piece>> {
        let mut pieces = Vec::new();
        let (effort, pattern) = (Effort::Cached, Pattern::Random);
        self.read_at_once(offset, length, effort, pattern, &mut pieces).then_some(pieces)
    }

    /// Appends the bytes of a read that was checked against [`ExportInfo::size_bytes`], if they are to be
    /// had without waiting. Otherwise it is `false`, and nothing is appended.
    #[must_use]
    pub fn read_at_once(
        &self,
        offset: u64,
        length: u32,
        effort: Effort,
        pattern: Pattern,
        pieces: &mut Vec<Piece>,
    ) -> bool {
        let Some((range, zeros)) = self.window.map(offset, u64::from(length)) else { return false };
        let bytes = range.end.saturating_sub(range.start);
        let before = pieces.len();
        let mut sink = Pieces(pieces);
        if !self.file.slices_at_once(self.stream, range.start, bytes, effort, pattern, &mut sink) {
            pieces.truncate(before);
            return false;
        }
        if zeros != 0 {
            pieces.push(Piece::Zeros(zeros));
        }
        true
    }

    /// The bytes of a read. May read storage and decode, so call it where that stalls nobody.
    ///
    /// # Errors
    ///
    /// What the client may know, and the bytes before the failure. The file, and where in it,
    /// goes to the log.
    pub fn read(&self, offset: u64, length: u32) -> Result<Vec<Piece>, ReadFailure> {
        self.read_by(Pattern::Random, offset, length)
    }

    /// As [`Export::read`], for a reader of whom more is known.
    ///
    /// # Errors
    ///
    /// As [`Export::read`].
    pub fn read_by(
        &self,
        pattern: Pattern,
        offset: u64,
        length: u32,
    ) -> Result<Vec<Piece>, ReadFailure> {
        let export = self.info.name.as_str();
        let Some((range, zeros)) = self.window.map(offset, u64::from(length)) else {
            let size_bytes = self.info.size_bytes;
            tracing::info!(export, offset, length, size_bytes, error = PAST_END, "read failed");
            return Err(ReadFailure {
                before: vec![],
                error: Errno::EINVAL,
                message: PAST_END,
                is_damage: false,
            });
        };
        let bytes = range.end.saturating_sub(range.start);
        match self.file.slices_or_part(self.stream, range.start, bytes, pattern) {
            Ok(slices) => Ok(pieces(slices, zeros)),
            Err(Interrupted { before, error }) => {
                tracing::info!(export, offset, length, %error, "read failed");
                let (errno, message) = for_clients(&error);
                let (before, is_damage) = (pieces(before, 0), is_damage(&error));
                Err(ReadFailure { before, error: errno, message, is_damage })
            }
        }
    }

    /// What bytes are, if reading them is quick: as [`Export::read_at_once`]. Never waits.
    #[must_use]
    pub fn load_at_once(&self, offset: u64, length: u32, effort: Effort) -> Option<Loaded> {
        let mut pieces = Vec::new();
        let pattern = Pattern::Announced;
        self.read_at_once(offset, length, effort, pattern, &mut pieces).then(|| loaded(&pieces))
    }

    /// Sees that bytes are in the cache for a client, as far as they are in the export and behind its position,
    /// where its last read ended. May read storage and decode, so call it where that stalls nobody. What is
    /// wrong with them is told to those who read them.
    pub fn fetch(&self, range: Range<u64>, position: &AtomicU64) {
        let length = range.end.min(self.info.size_bytes).saturating_sub(range.start);
        if let Some((in_stream, _)) = self.window.map(range.start, length) {
            let from = in_stream.start.saturating_sub(range.start);
            self.file.fetch(self.stream, in_stream, Reader { position, from });
        }
    }

    /// How far a client of so many may be read ahead of, in bytes.
    #[must_use]
    pub fn ahead_bytes_max(&self, clients: usize) -> u64 {
        let all = self.file.ahead_bytes_max();
        all.checked_div(clients.max(1) as u64).unwrap_or(all)
    }

    /// Fetches and checks bytes, so that reading them is quick for a while. May read storage and
    /// decode, so call it where that stalls nobody.
    ///
    /// # Errors
    ///
    /// As [`Export::read`].
    pub fn load(&self, offset: u64, length: u32) -> Result<Loaded, Failure> {
        self.read_by(Pattern::Announced, offset, length).map(|pieces| loaded(&pieces)).map_err(
            |ReadFailure { before, error, message, is_damage }| {
                let before = before.iter().map(Piece::bytes).fold(0, u64::saturating_add);
                let position = Some(offset.saturating_add(before));
                Failure { error, message, position, is_damage }
            },
        )
    }
}

impl Shape {
    /// What it is of a stream, and facts about the part for people.
    fn of(self, file: &File, stream: Stream) -> Result<(Window, Option<String>), ExportError> {
        let name = || file.structure().name().to_owned();
        let failed = |error| ExportError::Window { file: name(), error };
        let stream_bytes = file.size(stream);
        let (window, part) = match self.part {
            Part::Whole => (Window::whole(stream_bytes), None),
            Part::Window { offset, bytes } => {
                let window = Window::part(stream_bytes, offset, bytes).map_err(failed)?;
                let bytes = window.size_bytes();
                (window, Some(format!("{bytes} bytes at offset {offset} of {stream_bytes}")))
            }
            Part::Partition(number) => {
                let mut read = |offset, length| {
                    let length = usize::try_from(length).unwrap_or(usize::MAX);
                    file.read_at(stream, offset, length).map_err(|error| error.to_string())
                };
                let (scheme, found) = partition::find(number, stream_bytes, &mut read)
                    .map_err(|error| ExportError::Partition { file: name(), error })?;
                if scheme == (partition::Scheme::Gpt { from_backup: true }) {
                    let file = name();
                    tracing::warn!(
                        file,
                        "its partition table is damaged: using the copy at the end"
                    );
                }
                let Partition { offset, bytes, .. } = found;
                let window = Window::part(stream_bytes, offset, Some(bytes)).map_err(failed)?;
                let place = format!("{bytes} bytes at offset {offset} of {stream_bytes}");
                (window, Some(format!("partition {number} ({scheme}), {place}")))
            }
        };
        let window = match self.round_up {
            Some(unit) => window.rounded_up(unit).map_err(failed)?,
            None => window,
        };
        Ok((window, part))
    }
}

impl NegotiatedExport for Arc<Export> {
    fn info(&self) -> &ExportInfo {
        &self.info
    }
}

/// What bytes are, of which every one was checked.
fn loaded(pieces: &[Piece]) -> Loaded {
    let is_hole = pieces.iter().all(|piece| matches!(piece, Piece::Zeros(_)));
    if is_hole { Loaded::Zeros } else { Loaded::Data }
}

// What a snapshot leaves to be copied, replies copy: else it would keep a block in memory.
const _: () = assert!(COPIED_LATER_BYTES_MAX <= COPIED_BYTES_MAX);

/// Slices of a snapshot, as parts of a reply.
struct Pieces<'a>(&'a mut Vec<Piece>);

impl Sink for Pieces<'_> {
    fn push(&mut self, slice: Slice) {
        self.0.push(piece(slice));
    }
}

fn piece(slice: Slice) -> Piece {
    match slice {
        Slice::Data(data) => Piece::Data(data),
        Slice::Zeros(bytes) => Piece::Zeros(bytes),
    }
}

const PAST_END: &str = "the request reaches past the end of the export";

fn pieces(slices: Vec<Slice>, zeros: u64) -> Vec<Piece> {
    let behind = (zeros != 0).then_some(Piece::Zeros(zeros));
    slices.into_iter().map(piece).chain(behind).collect()
}

/// What an error of the snapshot means to a client, and to the person there, who must not learn
/// what the server's files are called or what is in them.
fn for_clients(error: &Error) -> (Errno, &'static str) {
    match &error.kind {
        ErrorKind::OutOfRange { .. } => (Errno::EINVAL, PAST_END),
        ErrorKind::Block { .. } => (Errno::EIO, "a block of the snapshot is damaged"),
        ErrorKind::Corrupt(_) => (Errno::EIO, "the index of the snapshot is damaged"),
        ErrorKind::Manifest(_) => (Errno::EIO, "the snapshot is not what was signed"),
        ErrorKind::Read { .. } => (Errno::EIO, "the storage of the snapshot cannot be read"),
        // Those of opening a file, which a read does not meet.
        ErrorKind::Open(_)
        | ErrorKind::NotAFile
        | ErrorKind::Header(_)
        | ErrorKind::Ambiguous { .. }
        | ErrorKind::StreamSize { .. }
        | ErrorKind::NeedsKey
        | ErrorKind::WrongPassphrase { .. }
        | ErrorKind::Iterations(_)
        | ErrorKind::NotEncrypted
        | ErrorKind::NotRegular
        | ErrorKind::Parent(_)
        | ErrorKind::MissingParent { .. }
        | ErrorKind::UnnamedParent { .. }
        | ErrorKind::ParentCycle { .. }
        | ErrorKind::TooManyParents { .. }
        | ErrorKind::TooManyGenerations
        | ErrorKind::TooManyAncestors
        | ErrorKind::UnpinnedParent { .. }
        | ErrorKind::TooManyBlocks { .. }
        | ErrorKind::NoManifest { .. }
        | ErrorKind::Signature(_)
        | ErrorKind::WrongCompressor { .. }
        | ErrorKind::Dictionary { .. } => (Errno::EIO, "the snapshot cannot be read"),
    }
}

/// Whether bytes of the snapshot are there and wrong, which a copy of it helps against, and not patience.
fn is_damage(error: &Error) -> bool {
    matches!(error.kind, ErrorKind::Block { .. } | ErrorKind::Corrupt(_) | ErrorKind::Manifest(_))
}

/// Facts about the snapshot in one line.
fn describe(file: &File, stream: Stream, window: &Window, part: Option<&str>) -> String {
    let structure = file.structure();
    let header = structure.header();
    let mut what = match stream {
        // Which of them is worth a word only where there are two.
        Stream::Main if file.size(Stream::Auxiliary) != 0 => {
            format!("{}, {stream} stream", file.content())
        }
        Stream::Main => file.content().to_string(),
        Stream::Auxiliary => format!("{stream} stream"),
    };
    if let Some(part) = part {
        what = format!("{what}, {part}");
    }
    if window.zeros() != 0 {
        what = format!("{what}, and {} zeros", window.zeros());
    }
    let encrypted = if header.encryption.is_some() { ", encrypted" } else { "" };
    let thin = match file.ancestors().len() {
        0 => String::new(),
        1 => ", over one parent".to_owned(),
        parents => format!(", over {parents} parents"),
    };
    let signed = if structure.manifest().is_some() { ", signed as a whole" } else { "" };
    format!(
        "Hexz snapshot, {what}, {compression}{encrypted}{thin}{signed}, stored in {stored} bytes",
        compression = header.compression.name(),
        stored = structure.file_bytes(),
    )
}

#[cfg(test)]
mod tests;
