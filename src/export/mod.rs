//! A snapshot under a name: what clients see of it, and what its errors mean to them.

pub mod catalogue;
pub(crate) mod extents;

pub use self::catalogue::{Catalogue, CatalogueError, View};

use std::sync::Arc;

use crate::export::extents::{CONTEXT_NAMES, CONTEXTS, Collected};
use crate::nbd::wire::Errno;
use crate::nbd::{
    Context, Contexts, Described, ExportInfo, Extent, Failure, Loaded, NegotiatedExport, Piece,
    ReadFailure,
};
use crate::snapshot::{Content, Error, ErrorKind, File, Interrupted, Slice, Stream};

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
}

/// One stream of an open snapshot, under a name.
#[derive(Debug)]
pub struct Export {
    info: ExportInfo,
    file: Arc<File>,
    stream: Stream,
}

impl Export {
    /// Exports a stream of a snapshot, if it is one that makes sense as a block device.
    ///
    /// # Errors
    ///
    /// [`ExportError`], which names the override where there is one.
    pub fn new(file: Arc<File>, settings: ExportSettings) -> Result<Self, ExportError> {
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
        Ok(Self::unchecked(file, settings))
    }

    /// Exports a stream whatever it holds.
    #[must_use]
    pub fn unchecked(file: Arc<File>, settings: ExportSettings) -> Self {
        let ExportSettings { name, description, stream, as_raw: _ } = settings;
        let header = file.structure().header();
        let all = CONTEXT_NAMES.as_slice();
        let contexts =
            if file.can_tell_shared() { all } else { all.split_last().map_or(all, |(_, all)| all) };
        let info = ExportInfo {
            name,
            description: description.unwrap_or_else(|| describe(&file, stream)),
            size_bytes: file.size(stream),
            preferred_block_bytes: header.block_bytes,
            contexts,
        };
        Self { info, file, stream }
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
        self.file.cached_slices(self.stream, offset, u64::from(length)).map(pieces)
    }

    /// The bytes of a read. May read storage and decode, so call it where that stalls nobody.
    ///
    /// # Errors
    ///
    /// What the client may know, and the bytes before the failure. The file, and where in it,
    /// goes to the log.
    pub fn read(&self, offset: u64, length: u32) -> Result<Vec<Piece>, ReadFailure> {
        match self.file.slices_or_part(self.stream, offset, u64::from(length)) {
            Ok(slices) => Ok(pieces(slices)),
            Err(Interrupted { before, error }) => {
                tracing::info!(export = self.info.name.as_str(), offset, length, %error, "read failed");
                let (errno, message) = for_clients(&error);
                Err(ReadFailure { before: pieces(before), error: errno, message })
            }
        }
    }

    /// Fetches and checks bytes, so that reading them is quick for a while. May read storage and
    /// decode, so call it where that stalls nobody.
    ///
    /// # Errors
    ///
    /// As [`Export::read`].
    pub fn load(&self, offset: u64, length: u32) -> Result<Loaded, Failure> {
        self.read(offset, length).map(|pieces| loaded(&pieces)).map_err(
            |ReadFailure { before, error, message }| {
                let before = before.iter().map(Piece::bytes).fold(0, u64::saturating_add);
                Failure { error, message, position: Some(offset.saturating_add(before)) }
            },
        )
    }

    /// Describes the beginning of a range that was checked against [`ExportInfo::size_bytes`], in
    /// some of the export's contexts, with at most so many extents in each. May read storage, so
    /// call it where that stalls nobody.
    ///
    /// # Errors
    ///
    /// As [`Export::read`].
    pub fn describe(
        &self,
        offset: u64,
        length: u64,
        contexts: Contexts,
        extents_max: usize,
    ) -> Result<Vec<Described>, Failure> {
        let describe = |context: Context| {
            let extents = self.extents(offset, length, context, extents_max)?;
            Ok(Described { context, extents })
        };
        contexts.iter().map(describe).collect::<Result<_, _>>().map_err(|error: Error| {
            tracing::info!(export = self.info.name.as_str(), offset, length, %error, "not described");
            let (error, message) = for_clients(&error);
            Failure { error, message, position: None }
        })
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        context: Context,
        extents_max: usize,
    ) -> Result<Vec<Extent>, Error> {
        let Some((_, property)) = CONTEXTS.get(context.place()) else { return Ok(Vec::new()) };
        let range = offset..offset.saturating_add(length);
        let mut extents = Collected::new(*property, offset, self.info.size_bytes);
        for run in self.file.runs(self.stream, range, *property)? {
            match run {
                Ok(run) => {
                    extents.push(run.range.end.saturating_sub(run.range.start), run.value);
                }
                // The client asks again from there, and is told then.
                Err(_) if extents.count() > 0 => break,
                Err(error) => return Err(error),
            }
            // One more shows that those before are complete.
            if extents.count() > extents_max {
                break;
            }
        }
        Ok(extents.first(extents_max))
    }
}

impl NegotiatedExport for Arc<Export> {
    fn info(&self) -> &ExportInfo {
        &self.info
    }
}

/// What bytes are, of which every one was checked.
#[must_use]
pub fn loaded(pieces: &[Piece]) -> Loaded {
    let is_hole = pieces.iter().all(|piece| matches!(piece, Piece::Zeros(_)));
    if is_hole { Loaded::Zeros } else { Loaded::Data }
}

fn pieces(slices: Vec<Slice>) -> Vec<Piece> {
    slices
        .into_iter()
        .map(|slice| match slice {
            Slice::Data(data) => Piece::Data(data),
            Slice::Zeros(bytes) => Piece::Zeros(bytes),
        })
        .collect()
}

/// What an error of the snapshot means to a client, and to the person there, who must not learn
/// what the server's files are called or what is in them.
fn for_clients(error: &Error) -> (Errno, &'static str) {
    match &error.kind {
        ErrorKind::OutOfRange { .. } => {
            (Errno::EINVAL, "the read reaches past the end of the export")
        }
        ErrorKind::Block { .. } => (Errno::EIO, "a block of the snapshot is damaged"),
        ErrorKind::Corrupt(_) => (Errno::EIO, "the index of the snapshot is damaged"),
        ErrorKind::Read { .. } => (Errno::EIO, "the storage of the snapshot cannot be read"),
        // Those of opening a file, which a read does not meet.
        ErrorKind::Open(_)
        | ErrorKind::NotAFile
        | ErrorKind::Header(_)
        | ErrorKind::Ambiguous { .. }
        | ErrorKind::StreamSize { .. }
        | ErrorKind::NeedsKey
        | ErrorKind::NotEncrypted
        | ErrorKind::NeedsParents { .. }
        | ErrorKind::WrongCompressor { .. }
        | ErrorKind::Dictionary { .. } => (Errno::EIO, "the snapshot cannot be read"),
    }
}

/// Facts about the snapshot in one line.
fn describe(file: &File, stream: Stream) -> String {
    let structure = file.structure();
    let header = structure.header();
    let what = match stream {
        Stream::Main => file.content().to_string(),
        Stream::Auxiliary => format!("{stream} stream"),
    };
    format!(
        "Hexz snapshot, {what}, {compression}, stored in {stored} bytes",
        compression = header.compression.name(),
        stored = structure.file_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn export(fixture: &str, stream: Stream, as_raw: bool) -> Result<Export, ExportError> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(fixture);
        let settings = ExportSettings { name: "disk".into(), description: None, stream, as_raw };
        Export::new(File::open(path).unwrap(), settings)
    }

    #[test]
    fn only_disk_images_are_exported_unless_the_operator_insists() {
        for (fixture, content) in
            [("v082-dirtree.hxz", Content::Directory), ("v082-tar.hxz", Content::Tar)]
        {
            let error = export(fixture, Stream::Main, false).unwrap_err();
            assert!(matches!(&error, ExportError::NotAnImage { content: c, .. } if *c == content));
            assert!(error.to_string().contains("as-raw"));
            assert!(export(fixture, Stream::Main, true).is_ok());
        }
    }

    #[test]
    fn a_snapshot_without_a_size_is_refused_with_the_way_out() {
        let error = export("v082-blockdev-size0.hxz", Stream::Main, false).unwrap_err();
        assert!(error.to_string().contains("size=index"), "{error}");
    }

    #[test]
    fn a_failed_read_gives_the_bytes_before_the_damage_and_no_name_of_a_file() {
        let damaged = export("h-flip-block.hxz", Stream::Main, false).unwrap();
        let failure = damaged.read(0, 421_000).unwrap_err();
        assert_eq!(failure.before.iter().map(Piece::bytes).sum::<u64>(), 232_213);
        assert_eq!(failure.error, Errno::EIO);
        assert_eq!(failure.message, "a block of the snapshot is damaged");
        let failure = damaged.read(420_999, 2).unwrap_err();
        assert_eq!((failure.before, failure.error), (vec![], Errno::EINVAL));
    }

    #[test]
    fn a_stream_that_is_not_there_is_not_exported_as_nothing() {
        assert!(export("v082-lz4-aux.hxz", Stream::Auxiliary, false).is_ok());
        let error = export("v082-zstd.hxz", Stream::Auxiliary, false).unwrap_err();
        assert!(matches!(error, ExportError::NoStream { .. }));
    }
}
