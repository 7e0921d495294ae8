//! How far a stream goes, from what is declared and what the index holds.

use crate::snapshot::content::Content;
use crate::snapshot::error::Error;
use crate::snapshot::format::{FormatError, Stream};
use crate::snapshot::page::Page;
use crate::snapshot::structure::Structure;

/// How far a stream goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamSize {
    /// What is served.
    pub(crate) bytes: u64,
    /// Where the blocks end. What lies behind them in a converted tar archive reads as zeros.
    pub(crate) blocks_end: u64,
}

/// Compares the declared size of a stream with its last page. Format sections 6 and 13.
pub(crate) fn measure(
    structure: &Structure,
    stream: Stream,
    content: Content,
    size_from_index: bool,
) -> Result<StreamSize, Error> {
    let declared = structure.index().stream_bytes(stream);
    let last = structure.index().pages(stream).len().checked_sub(1);
    let last = last.map(|last| structure.page(stream, last, None)).transpose()?;
    let blocks_end = last.as_ref().map_or(0, Page::end);
    if declared == 0 && last.is_some_and(|page| size_from_index && page.has_doubtful_length()) {
        let offset = structure.header().index_offset;
        let kind = FormatError::Invalid { what: "length of a block without stream size", offset };
        return Err(structure.error(kind.into()));
    }
    let tar_tail = content == Content::Tar && declared > blocks_end;
    let without_size = declared == 0 && stream == Stream::Main && content == Content::Image;
    let bytes = match declared {
        0 if size_from_index => blocks_end,
        _ if declared == blocks_end || tar_tail || without_size => declared,
        _ => return Err(structure.stream_size_error(stream, declared, blocks_end)),
    };
    Ok(StreamSize { bytes, blocks_end })
}
